"""CONTRIBUTING.md and CHANGELOG.md name only what exists."""

import re
import tomllib
from pathlib import Path

import pytest

from shared.settings import Settings
from tests import calls
from tests.suite import ROOT, built_services

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
CHANGES = (ROOT / "CHANGELOG.md").read_text()
SUFFIXES = ("md", "proto", "py", "sh", "sql", "toml")
# Names of files and folders that each service has.
OF_EACH_SERVICE = {"__main__.py", "rules.py", "tables.sql", "migrations/versions"}


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 30
    assert named - set(re.findall(r"^(?:async )?def (test_\w+)\(", sources, re.MULTILINE)) == set()


def paths() -> set[str]:
    """Returns the files and folders that the page names, in words or in commands."""
    words = set(re.findall(r"[\w./-]+", PAGE.replace("<", " ").replace(">", " ")))
    found = {word.strip(".").removeprefix("./") for word in words}
    first = {path.name for path in ROOT.iterdir()} - {".venv", "gen", "dist"}
    return {
        path
        for path in found
        if ("/" in path and path.split("/")[0] in first)
        or re.search(rf"\w\.({'|'.join(SUFFIXES)})$", path)
    }


@pytest.mark.parametrize("path", sorted(paths()))
def test_every_file_that_the_page_names_is_there(path: str) -> None:
    if path in OF_EACH_SERVICE:
        assert any((ROOT / "services" / name / path).exists() for name in built_services())
    elif not path.startswith(("s.py", "_rows.py", ".venv")):
        assert (ROOT / path).exists()


def test_every_make_target_that_the_pages_name_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(
        re.findall(
            r"\bmake ([a-z-]+)",
            "".join(re.findall(r"`[^`]+`|```sh.*?```", PAGE + CHANGES, re.DOTALL)),
        )
    )
    assert len(named) > 7 and named <= targets


def test_every_import_rule_that_the_page_names_is_there() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rules = {contract["name"] for contract in config["tool"]["importlinter"]["contracts"]}
    named = {" ".join(text.split()) for text in re.findall(r'import rule "([^"]+)"', PAGE)}
    assert named and named <= rules


def test_the_changes_name_rpcs_and_settings_that_are_there() -> None:
    methods = {method.name for method in calls.methods_of([*built_services(), *calls.OF_EACH])}
    named = set(
        re.findall(r"\b((?:Batch|Create|Export|Explain|Get|Download|Heartbeat)[A-Z]\w+)", CHANGES)
    )
    assert len(named) > 5 and named <= methods
    settings = {f"ATELIER_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"ATELIER_\w+", CHANGES + PAGE)) <= settings


def test_every_page_of_the_documents_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\((docs/[\w-]+\.md)\)", (ROOT / "README.md").read_text()))
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages - linked == set(), "README.md needs a link to each"
    assert linked - pages == set(), "README.md has links to pages that are not there"


@pytest.mark.parametrize(("page", "most"), [("CONTRIBUTING.md", 400), ("CHANGELOG.md", 350)])
def test_pages_are_short_enough_to_be_read(page: str, most: int) -> None:
    lines = Path(ROOT / page).read_text().splitlines()
    assert len(lines) <= most, f"{page} has room for {most} lines: shorten it"
    long = [line for line in lines if len(line) > 100 and not line.startswith("|")]
    assert long == [], f"Wrap these lines of {page} at 100 columns"
