import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Command, interrupt, private_command
from tests.cli.test_up import until
from tests.suite import ROOT

START = ROOT / "docs" / "assets.md"
SERVICES = ("assets", "pipeline", "techfiles")
PAGES = [ROOT / "docs" / "identity.md", ROOT / "docs" / "http.md"] + [
    page
    for service in SERVICES
    for page in (
        ROOT / "docs" / f"{service}.md",
        *sorted((ROOT / "docs" / service).glob("*.md")),
    )
]


def blocks(page: Path) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def running() -> Iterator[Command]:
    """Runs one suite for all pages, as a reader would have it."""
    with private_command() as command:
        process = command.start("up")
        try:
            until(process, "Ctrl-C stops")
            yield command
        finally:
            interrupt(process)


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_works_as_it_stands(page: Path, running: Command) -> None:
    """The blocks run in one shell, after those of docs/assets.md and of its service's first page;
    the last command of each must succeed."""
    first = [each for each in (START, page.parent.with_suffix(".md")) if each.exists()]
    before = [block for each in dict.fromkeys(first) if each != page for block in blocks(each)]
    lines = ["set -u -o pipefail", *before]
    for number, block in enumerate(blocks(page), start=1):
        lines += ["{", block, f'}} || {{ echo "block {number} failed" >&2; exit 1; }}']
    answer = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=ROOT,
        env={**os.environ, **running.environment},
        capture_output=True,
        text=True,
        timeout=100,
    )

    said = f"{answer.stdout}\n{answer.stderr}"
    assert answer.returncode == 0, said
    assert "Traceback" not in said


@pytest.mark.parametrize("service", SERVICES)
def test_every_page_is_listed_and_every_listed_page_is_there(service: str) -> None:
    start = ROOT / "docs" / f"{service}.md"
    listed = set(re.findall(rf"\({service}/([a-z_]+\.md)\)", start.read_text()))
    assert listed == {page.name for page in (ROOT / "docs" / service).glob("*.md")}
