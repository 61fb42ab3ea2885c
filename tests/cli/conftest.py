import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.suite import ROOT, free_ports


@dataclass
class Command:
    """`./atelier` with a state directory and ports of the test's own."""

    state: Path
    environment: dict[str, str]

    def run(self, *arguments: str, timeout: float = 90) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [ROOT / "atelier", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=self.state.parent,
        )

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [ROOT / "atelier", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.state.parent,
            start_new_session=True,
        )

    def left_behind(self) -> list[str]:
        """Returns the command lines of processes that still run on this state directory."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environment = (process / "environ").read_bytes().decode(errors="replace")
                line = (
                    (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except OSError:
                continue
            if str(self.state) in environment + line and line:
                found.append(line)
        return found


@contextmanager
def private_command() -> Iterator[Command]:
    # Run by root, Postgres uses another account, which must be able to pass through.
    base = Path(tempfile.mkdtemp(prefix="atelier-cli-"))
    base.chmod(0o755)
    names = (
        "ASSETS_PORT",
        "CONVERSIONS_PORT",
        "PIPELINE_PORT",
        "TECHFILES_PORT",
        "STORAGE_HTTP_PORT",
        "WEB_PORT",
    )
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "ATELIER_STATE": str(base / "state"),
        "COLUMNS": "200",
        **{
            f"ATELIER_{name}": str(port)
            for name, port in zip(names, free_ports(len(names)), strict=True)
        },
    }
    try:
        yield Command(base / "state", environment)
    finally:
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def atelier_command() -> Iterator[Command]:
    with private_command() as command:
        yield command


def interrupt(process: "subprocess.Popen[str]") -> int:
    """Sends Ctrl-C as a terminal does; returns the exit status."""
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=40)
    return process.returncode
