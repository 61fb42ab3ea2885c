"""tools/new_noun.py writes nouns that pass every test that guards a noun, in all four services, or
it writes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.suite import ROOT
from tools import new_noun
from tools.new_noun import Noun
from tools.python_text import Problem

TOOLS = Path(sys.executable).parent
MADE = (
    "techfiles fabric --kinds woven,knitted",
    "assets mood_board --room library",
    "pipeline remark",
    "conversions backdrop --kinds studio,outdoors",
)
MODULES = (
    "services/techfiles/fabrics.py",
    "services/techfiles/fabric_rows.py",
    "services/assets/library/mood_boards.py",
    "services/assets/library/mood_board_rows.py",
    "services/pipeline/remarks.py",
    "services/pipeline/remark_rows.py",
    "services/conversions/backdrops.py",
    "services/conversions/backdrop_rows.py",
    "tests/techfiles/test_fabrics.py",
    "tests/assets/test_mood_boards.py",
    "tests/pipeline/test_remarks.py",
    "tests/conversions/test_backdrops.py",
)
GUARDS = (
    "tests/test_schema.py",
    "tests/test_statements.py",
    "tests/test_row_security.py",
    "tests/test_tenancy.py",
    "tests/test_pages.py",
    "tests/test_answers.py",
    "tests/test_erasure.py",
    "tests/contract/test_options.py",
    "tests/contract/test_comments.py",
    "tests/contract/test_limits.py",
    "tests/webhooks/test_endpoints.py",
    "tests/docs/test_assets.py",
)
# The tests of these files that name a new noun, and those that look at everything at once.
CHOSEN = (
    "fabric or mood_board or moodboard or remark or backdrop or test_schema or test_comments"
    " or every_table or every_rpc_has or every_rpc_with or names_every_type or every_subject"
    " or every_page or no_class_of"
)


def run(directory: Path, *command: str | Path) -> str:
    """Runs a command in a copy of the project; it must succeed. Returns what it prints."""
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": f"{directory}:{directory / 'gen'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies the project and adds four nouns to it."""
    directory = tmp_path_factory.mktemp("project")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).split("\0"):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes((ROOT / name).read_bytes())
            (directory / name).chmod((ROOT / name).stat().st_mode)
    for name in (".venv", ".tools"):
        (directory / name).symlink_to(ROOT / name)
    for arguments in MADE:
        run(directory, sys.executable, "-m", "tools.new_noun", *arguments.split())
    run(directory, sys.executable, "tools/stubs.py")
    return directory


@pytest.mark.docs
@pytest.mark.timeout(300)
def test_new_nouns_have_the_style_of_the_house(copy: Path) -> None:
    run(copy, TOOLS / "ruff", "check", ".")
    run(copy, TOOLS / "ruff", "format", "--check", ".")
    run(copy, TOOLS / "buf", "lint", "gen/atelier.binpb")
    run(copy, TOOLS / "lint-imports", "--no-cache")


@pytest.mark.docs
@pytest.mark.timeout(300)
def test_new_nouns_have_types(copy: Path) -> None:
    run(copy, TOOLS / "mypy", "--cache-dir", ".mypy_cache", *MODULES)


@pytest.mark.docs
@pytest.mark.timeout(600)
def test_new_nouns_pass_what_guards_a_noun(copy: Path) -> None:
    own = [module for module in MODULES if module.startswith("tests/")]
    said = run(
        copy, sys.executable, "-m", "pytest", "-q", "-m", "not docs", "-k", CHOSEN, *GUARDS, *own
    )
    assert "passed" in said and "failed" not in said


@pytest.mark.docs
@pytest.mark.timeout(300)
def test_the_page_of_a_new_noun_of_assets_works_as_it_stands(copy: Path) -> None:
    page = "tests/docs/test_assets.py::test_every_block_of_a_page_works_as_it_stands[moodboards]"
    run(copy, sys.executable, "-m", "pytest", "-q", page)


@pytest.mark.parametrize(
    ("noun", "problem"),
    [
        (
            Noun("techfiles", "collection", "collections"),
            "collection.proto defines Collection already",
        ),
        (Noun("techfiles", "slot", "slots"), "tables.sql has a table slots"),
        (Noun("techfiles", "run", "all_runs"), "EVENTS has the subject run"),
        (Noun("pipeline", "offer", "offers"), "result.proto defines Offer already"),
        (Noun("techfiles", "Fabric", "Fabrics"), "small letters"),
        (Noun("techfiles", "class", "classes"), "small letters"),
        (Noun("techfiles", "fish", "fish"), "--plural"),
        (Noun("techfiles", "fabric", "fabrics", ("woven",)), "two different words"),
        (Noun("techfiles", "fabric", "fabrics", room="library"), "--room"),
        (Noun("assets", "board", "boards"), "--room"),
        (Noun("assets", "board", "boards", room="attic"), "services/assets/attic is no package"),
        (Noun("techfiles", "thing" * 5, "things"), "at most 20 characters"),
    ],
    ids=lambda value: value.name if isinstance(value, Noun) else value,
)
def test_what_is_in_the_way_is_said_before_anything_is_written(noun: Noun, problem: str) -> None:
    with pytest.raises(Problem) as refused:
        new_noun.plan(noun)
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("path", "old", "new", "problem"),
    [
        ("pyproject.toml", '"__main__"', '"begin"', "has no contract"),
        ("services/techfiles/__main__.py", "register=", "adds=", "has no list `register`"),
        ("services/techfiles/__main__.py", "EVENTS =", "TYPES =", "has no EVENTS"),
        ("services/techfiles/__main__.py", "stream", "events", "has no `db` and `stream`"),
        ("tests/tenancy_cases/techfiles.py", "CASES =", "ALL =", "has no CASES"),
        ("tests/tenancy_cases/techfiles.py", "class Owned", "class Rows", "has no class Owned"),
        ("tests/test_pages.py", "LISTS:", "ROWS:", "has no LISTS"),
        ("docs/assets/webhooks.md", "`techfiles.", "`files.", "has no line like"),
    ],
)
def test_a_place_that_is_not_found_is_named(
    monkeypatch: pytest.MonkeyPatch, path: str, old: str, new: str, problem: str
) -> None:
    read = new_noun.read

    def changed(name: str) -> str:
        return read(name).replace(old, new) if name == path else read(name)

    monkeypatch.setattr(new_noun, "read", changed)
    with pytest.raises(Problem) as refused:
        new_noun.plan(Noun("techfiles", "fabric", "fabrics"))
    assert path in str(refused.value) and problem in str(refused.value)


@pytest.mark.parametrize(
    ("noun", "plural"),
    [("fabric", "fabrics"), ("entry", "entries"), ("dress", "dresses"), ("tray", "trays")],
)
def test_plurals(noun: str, plural: str) -> None:
    assert new_noun.plural_of(noun) == plural
