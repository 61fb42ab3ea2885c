"""The programs in examples/ are short, and nothing there is generated or names a registry's
host."""

import re
import subprocess

import pytest

from tests.suite import ROOT

MAIN = {
    "go": "main.go",
    "typescript": "src/main.ts",
    "java": "src/main/java/mainjob/MainJob.java",
    "rust": "src/main.rs",
}
MOST_LINES = 120
MOST_COLUMNS = 100
SOURCES = (".go", ".ts", ".java", ".rs", ".md")
HOST = re.compile(r"https?://[\w-]+\.[\w.-]*[a-z]")  # not this machine's, nor {address}


def tracked(*folders: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout.split()


@pytest.mark.parametrize("language", sorted(MAIN))
def test_the_main_job_is_short(language: str) -> None:
    lines = (ROOT / "examples" / language / MAIN[language]).read_text().splitlines()
    assert len(lines) <= MOST_LINES


def test_lines_of_examples_and_of_their_page_fit_a_screen() -> None:
    names = [n for n in tracked(*(f"examples/{one}" for one in MAIN)) if n.endswith(SOURCES)]
    for name in [*names, "docs/clients.md"]:
        lines = (ROOT / name).read_text().expandtabs(4).splitlines()
        assert [line for line in lines if len(line) > MOST_COLUMNS] == [], name


def test_no_file_says_where_packages_come_from() -> None:
    names = tracked(*(f"examples/{one}" for one in MAIN), "docs/clients.md")
    assert names
    assert [name for name in names if HOST.search((ROOT / name).read_text())] == []


def test_nothing_that_is_generated_is_kept() -> None:
    folders = {"gen", "contract", "node_modules", "dist", "target"}
    names = tracked(*(f"examples/{one}" for one in MAIN))
    assert [name for name in names if folders & set(name.split("/"))] == []
