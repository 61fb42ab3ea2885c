"""The processes that work in a data directory, as `postmaster.pid` and /proc show them."""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cli.postgres.failures import EmbeddedPostgresError

SETTLE_S = 5.0
"""Time that the processes of a killed server get to notice its death."""
SHUTDOWN_LIMIT_S = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PidFile:
    """What a server notes in `postmaster.pid`. `pid`: its process, 0 if the file names none.
    `status`: starting, stopping, ready or standby, or nothing yet."""

    pid: int
    status: str

    @classmethod
    def of(cls, data: Path) -> Self | None:
        """Returns what the file says; None if there is no file."""
        try:
            lines = (data / "postmaster.pid").read_text(errors="replace").split("\n")
        except FileNotFoundError:
            return None
        pid = lines[0].strip()
        return cls(int(pid) if pid.isdigit() else 0, lines[7].strip() if len(lines) > 7 else "")


def settle(data: Path, check_wanted: Callable[[], None]) -> None:
    """Waits until a server whose launcher was killed has ended; removes a stale `postmaster.pid`
    that would block the next start.

    A file that names a dead process stays: PostgreSQL reads in it where to look for leftover
    children, and then replaces it. Leftover children are killed.
    """
    file = data / "postmaster.pid"
    since = time.monotonic()
    while noted := PidFile.of(data):
        pid = noted.pid
        if pid and not Path(f"/proc/{pid}").exists():
            end_leftovers(data)
            return
        if not pid or not _serves(pid, data):
            _log.warning(
                "removed a stale %s: process %d is no PostgreSQL on this directory", file, pid
            )
            file.unlink(missing_ok=True)
            return
        check_wanted()
        limit_s = SHUTDOWN_LIMIT_S if noted.status == "stopping" else SETTLE_S
        if time.monotonic() - since > limit_s:
            raise EmbeddedPostgresError(
                f"a PostgreSQL that this launcher didn't start (process {pid}) runs on"
                f" {data}; stop it: kill -INT {pid}"
            )
        time.sleep(0.02)


def end_leftovers(data: Path) -> None:
    """Kills the backends of a dead server. A backend that is stopped or in a long query doesn't
    notice that its server died, and no new server starts beside it. Recovery undoes what it hadn't
    committed."""
    noted = PidFile.of(data)
    if noted and noted.pid and _serves(noted.pid, data):
        return
    give_up = time.monotonic() + SETTLE_S
    while (left := _leftovers(data)) and time.monotonic() < give_up:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _leftovers(data: Path) -> list[int]:
    """Returns the ids of PostgreSQL processes that work in the data directory.

    In a container where root may not look into another account's process it finds none; busy ones
    then delay the next start until they notice.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "comm").read_text() == "postgres\n" and (process / "cwd").samefile(data):
                found.append(int(process.name))
    return found


def _serves(pid: int, data: Path) -> bool:
    """Returns whether the process is a PostgreSQL server on `data`. True if that can't be
    determined."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return False
    if Path(argv[0]).name not in ("postgres", "postmaster"):
        return False
    try:
        return Path(f"/proc/{pid}/cwd").samefile(data)
    except FileNotFoundError:
        return False
    except PermissionError:
        # In a container root may not look into another account's process, but anyone may read its
        # arguments.
        given = Path(argv[argv.index("-D") + 1]) if "-D" in argv[:-1] else Path()
        return not given.is_absolute() or given == data


def is_stopped(pid: int) -> bool:
    """Returns whether a signal (SIGSTOP) froze the process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False
