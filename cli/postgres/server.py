"""One run of PostgreSQL's server, with its log."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import threading
from concurrent.futures import Future
from pathlib import Path

from cli.postgres.account import environment
from cli.postgres.failures import EmbeddedPostgresError
from cli.postgres.processes import SETTLE_S

LOG_LIMIT = 5 * 2**20
LOG_CHECK_S = 10.0

_log = logging.getLogger(__name__)


class Server:
    """One run of the server, watched by a thread of its own.

    The kernel sends the parent-death signal when the *thread* that spawned the child ends, not only
    when the process does: a server spawned from a pool thread (asyncio.to_thread) would go down
    with that thread. So this thread spawns the server and lives until it has ended; meanwhile it
    keeps the log within bounds.
    """

    def __init__(self, command: list[str], cwd: Path, log: Path) -> None:
        self._ended = threading.Event()
        self._log = log
        _bound_log(log)
        self._begin = log.stat().st_size if log.is_file() else 0
        spawned: Future[subprocess.Popen[bytes]] = Future()
        self._thread = threading.Thread(
            target=self._keep, args=(command, cwd, spawned), daemon=True
        )
        self._thread.start()
        self.process = spawned.result()

    def _keep(
        self, command: list[str], cwd: Path, spawned: "Future[subprocess.Popen[bytes]]"
    ) -> None:
        try:
            # In a session of its own the server doesn't receive the launcher's Ctrl-C.
            output = open_log(self._log)
            try:
                process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=environment(),
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            finally:
                os.close(output)
        except Exception as error:
            spawned.set_exception(error)
            return
        spawned.set_result(process)
        while process.poll() is None:
            self._ended.wait(LOG_CHECK_S)
            _bound_log(self._log)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        """Returns what the log has of this run."""
        if not self._log.is_file():
            return ""
        return self._log.read_bytes()[self._begin :].decode(errors="replace")

    def end(self, patience_s: float) -> None:
        """Ends the server, by stronger signals if it takes longer than `patience_s` seconds."""
        steps = (
            (signal.SIGINT, patience_s),
            (signal.SIGQUIT, min(5.0, patience_s)),
            (signal.SIGKILL, SETTLE_S),
        )
        for step, wait_s in steps:
            self.process.send_signal(step)
            self.process.send_signal(signal.SIGCONT)  # a stopped process acts only after this
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(wait_s)
                self._ended.set()
                self._thread.join()
                return
            _log.warning(
                "PostgreSQL (process %d) did not stop within %g s of %s",
                self.process.pid,
                wait_s,
                step.name,
            )
        raise EmbeddedPostgresError(
            f"PostgreSQL (process {self.process.pid}) does not die, even by SIGKILL; "
            "its disk probably hangs: check it with `dmesg`"
        )


def how_it_ended(status: int) -> str:
    """Describes an exit status of subprocess: 'was ended by SIGKILL', 'ended with status 1'."""
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


def open_log(log: Path) -> int:
    """Opens the file for the server's messages, or /dev/null if that fails: a log must not keep the
    server from running."""
    try:
        # With O_APPEND the file can be truncated while the server writes to it.
        return os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        _log.warning(
            "can't write %s (%s): what PostgreSQL says is lost until its next start",
            log,
            error.strerror,
        )
        return os.open(os.devnull, os.O_WRONLY)


def _bound_log(log: Path) -> None:
    """Truncates the log if it is too long. Its content is kept as the older log if the disk has
    room."""
    with contextlib.suppress(OSError):
        if log.stat().st_size <= LOG_LIMIT:
            return
        older = log.with_name(f"{log.name}.1")
        try:
            older.unlink(missing_ok=True)
            kept = os.open(older, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with log.open("rb") as source, open(kept, "wb") as target:
                shutil.copyfileobj(source, target)
        except OSError:
            older.unlink(missing_ok=True)
        os.truncate(log, 0)
