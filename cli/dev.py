"""`atelier dev`: runs the suite with its logs in this terminal, and restarts it on file changes."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from cli.postgres import server_binaries
from cli.suite import ROOT, Suite

_WATCHED = ("services", "shared", "web", "cli", "gen")
_LOOK_SECONDS = 0.5


def run(suite: Suite, console: Console, stopped: Callable[[], bool]) -> None:
    """Runs until `stopped` returns True. The suite must have been started."""
    if suite.postgres:
        console.print(
            f"psql: {server_binaries() / 'psql'} {suite.admin_url}", markup=False, soft_wrap=True
        )
    logs = _Logs(suite.state.logs)
    newest = _newest()
    while not stopped():
        for line in logs.new_lines():
            console.print(line, markup=False, soft_wrap=True)
        if (now := _newest()) > newest:
            newest = now
            console.print("[yellow]changed; starting the services again")
            suite.restart_services()
        suite.revive()
        time.sleep(_LOOK_SECONDS)


def _newest() -> float:
    files = (
        path
        for name in _WATCHED
        for path in (ROOT / name).rglob("*")
        if path.suffix in (".py", ".typ", ".sql")
    )
    return max((path.stat().st_mtime for path in files), default=0.0)


class _Logs:
    """Reads the lines that are appended to the logs after its creation."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read = {path: path.stat().st_size for path in directory.glob("*.log")}

    def new_lines(self) -> list[str]:
        lines = []
        for path in sorted(self._directory.glob("*.log")):
            with path.open("rb") as log:
                log.seek(0, os.SEEK_END)
                start = self._read.get(path, 0)
                log.seek(start if start <= log.tell() else 0)
                whole, _, _part = log.read().rpartition(b"\n")
                self._read[path] = log.tell() - len(_part)
            lines += [
                f"{path.stem:12} {line}" for line in whole.decode(errors="replace").splitlines()
            ]
        return lines
