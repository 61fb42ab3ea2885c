"""Reads the blocks of docs/clients.md and runs them in a shell."""

import os
import re
import subprocess

from tests.suite import ROOT

PAGE = (ROOT / "docs" / "clients.md").read_text()
BUILD = ROOT / ".tools" / "build"  # it is kept, so that a second run builds little
BUILD_SECONDS = 1500


def blocks(title: str) -> list[str]:
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


def preamble(user: str) -> str:
    """Returns the block that all languages need, with a user of the test's own."""
    [block] = blocks("What all of them need")
    return block.replace("--user ada", f"--user {user}")


def environment(own: dict[str, str]) -> dict[str, str]:
    """Returns the environment of the blocks. Compilers run one job at a time, since the suite runs
    beside them. Rust compiles its libraries once for both of its programs."""
    return {
        **os.environ,
        **own,
        "WORK": str(BUILD),
        "CARGO_TARGET_DIR": str(BUILD / "cargo"),
        "CARGO_BUILD_JOBS": "1",
        "GOFLAGS": "-p=1",
    }


def shell(*lines: str) -> list[str]:
    return ["bash", "-c", "\n".join(["set -eu -o pipefail", *lines])]


def run(own: dict[str, str], *lines: str) -> str:
    """Runs the lines; one that fails fails the test. Returns what they print."""
    done = subprocess.run(
        shell(*lines),
        cwd=ROOT,
        env=environment(own),
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
