"""The whole suite as processes of this machine: Postgres, storage over HTTP, four servers, one
worker, and the web process."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import grpc
import httpx
import psycopg
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli.comeback import Comeback, Report
from cli.postgres import EmbeddedPostgres, EmbeddedPostgresError, how_it_ended
from cli.setup import login_url, make_bucket
from cli.state import State
from shared.settings import PORTS, SERVICES, STORAGE_HTTP_PORT, WEB_PORT, load

ROOT = Path(__file__).resolve().parent.parent
_START_SECONDS = 60
_LOG_BYTES = 10 * 1024 * 1024
_CLOSED_CONNECTION_SECONDS = 65
_STOP_SECONDS = 15.0
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Problem(Exception):
    """One line that says what prevents the start, and the next step."""


@dataclass(frozen=True)
class Options:
    """Parts that users bring themselves. Empty `database_url`: the embedded Postgres; empty
    `s3_endpoint`: the disk."""

    database_url: str = ""
    s3_endpoint: str = ""


@dataclass
class Process:
    name: str
    arguments: Sequence[str]
    environment: dict[str, str]
    comeback: Comeback
    popen: "subprocess.Popen[bytes] | None" = None


@dataclass
class Suite:
    """The suite: `start` runs it, `watch` keeps it running, `stop` ends it. Call all three from the
    thread that made it."""

    state: State
    options: Options
    report: Report
    postgres: EmbeddedPostgres | None = None
    stopped: Callable[[], bool] = lambda: False
    processes: list[Process] = field(default_factory=list)
    admin_url: str = ""
    _postgres_comeback: Comeback = field(init=False)
    _reviving: "Future[None] | None" = None
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _ending: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._postgres_comeback = Comeback("Postgres", self.report)

    def start(self) -> None:
        """Starts everything and returns when every service answers healthy. Raises Problem after
        stopping everything it started."""
        self.state.prepare()
        if not self.state.lock():
            raise Problem(
                f"a suite is already running on {self.state.directory}; stop it, or use --state for"
                " another"
            )
        try:
            check_ports(self.report)
            self.admin_url = self.options.database_url or self._start_postgres()
            self._migrate()
            self._bucket()
            self.report("Starting the services")
            self._spawn_all()
            self._await_health()
        except BaseException:
            self.stop()
            raise

    def watch(self, stopped: Callable[[], bool]) -> None:
        """Restarts ended processes until `stopped` returns True."""
        while not stopped():
            self.revive()
            time.sleep(0.2)

    def revive(self) -> None:
        """Restarts ended processes and Postgres, on the schedule of `Comeback`."""
        self._revive_postgres()
        for process in self.processes:
            comeback = process.comeback
            if process.popen and process.popen.poll() is None:
                comeback.runs()
                continue
            if process.popen and not comeback.waits:
                comeback.ended(how_it_ended(process.popen.returncode))
            if comeback.take_turn():
                try:
                    self._spawn(process)
                except OSError as error:  # no memory, or no more processes
                    comeback.failed(str(error))

    def restart_services(self) -> None:
        """Ends every process but Postgres and starts it again."""
        self._end_processes()
        for process in self.processes:
            process.comeback = Comeback(process.name, self.report)
            self._spawn(process)

    def stop(self) -> None:
        """Tells the worker, the servers and the storage to end, in this order, and waits up to 15 s
        before it kills them; then stops the database and releases the lock."""
        self._ending.set()
        if self._reviving:
            self._reviving.exception()
        self._end_processes()
        self.processes.clear()
        if self.postgres:
            self.postgres.stop()
            self.postgres = None
        self.state.unlock()

    def memory_megabytes(self) -> int:
        """Returns the resident memory of all processes in MB, shared pages counted once (PSS)."""
        roots = [p.popen.pid for p in self.processes if p.popen]
        with contextlib.suppress(EmbeddedPostgresError):
            roots += [self.postgres.pid] if self.postgres else []
        return sum(_pss_kilobytes(pid) for root in roots for pid in _with_children(root)) // 1024

    def _revive_postgres(self) -> None:
        """Starts Postgres in a thread: its recovery may take long, and meanwhile other processes
        must be restarted and Ctrl-C must work."""
        if not self.postgres or (self._reviving and not self._reviving.done()):
            return
        comeback = self._postgres_comeback
        if self._reviving:
            tried, self._reviving = self._reviving, None
            if problem := tried.exception():
                comeback.failed(" ".join(str(problem).split()))
            else:
                comeback.runs()
                for process in self.processes:  # any may have ended for want of it
                    process.comeback.hurry()
        elif not comeback.waits and (fault := self.postgres.fault):
            comeback.ended(fault)
        elif not comeback.waits:
            comeback.runs()
        if comeback.take_turn():
            self._reviving = self._thread.submit(self.postgres.revive, self._ending.is_set)

    def _end_processes(self) -> None:
        running = [
            process.popen
            for process in self.processes
            if process.popen and process.popen.poll() is None
        ]
        for popen in reversed(running):
            popen.terminate()
            popen.send_signal(signal.SIGCONT)  # a stopped process acts on SIGTERM only after this
        deadline = time.monotonic() + _STOP_SECONDS
        for popen in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(max(0.0, deadline - time.monotonic()))
            if popen.poll() is None:
                popen.kill()
                popen.wait(5)

    def _start_postgres(self) -> str:
        self.report("Starting Postgres")
        self.postgres = EmbeddedPostgres(self.state.postgres)
        try:
            self.postgres.start(self.stopped)
        except EmbeddedPostgresError as error:
            raise Problem(str(error)) from None
        admin = self.postgres.url
        try:
            with psycopg.connect(admin, autocommit=True) as conn:
                if not conn.execute("SELECT FROM pg_database WHERE datname = 'atelier'").rowcount:
                    conn.execute("CREATE DATABASE atelier")
        except psycopg.Error as error:
            raise Problem(
                f"Postgres: {_first_line(error)}; see {self.postgres.log}, then start again"
            ) from None
        return admin.rsplit("/", 1)[0] + "/atelier"

    def _migrate(self) -> None:
        missing = [name for name in SERVICES if not is_migrated(name, self.admin_url)]
        if not missing:
            return
        self.report("Bringing the schemas up to date")
        from shared.database.migrate import MigrationFailed, migrate

        for name in missing:
            self._go_on()
            try:
                migrate(
                    name,
                    self.admin_url,
                    self.state.password(name, "app"),
                    self.state.password(name, "worker"),
                )
            except MigrationFailed as error:
                raise Problem(str(error)) from None

    def _bucket(self) -> None:
        if not self.options.s3_endpoint:
            return
        from botocore.exceptions import BotoCoreError, ClientError

        os.environ |= {"ATELIER_STORAGE": "s3", "ATELIER_S3_ENDPOINT": self.options.s3_endpoint}
        try:
            make_bucket(load("assets"))
        except (BotoCoreError, ClientError) as error:
            raise Problem(f"object store {self.options.s3_endpoint}: {error}") from None

    def _spawn_all(self) -> None:
        common = self._environment()
        self.processes = []
        if not self.options.s3_endpoint:
            self._add("storage", ["shared.storage.http"], common)
        for name in SERVICES:
            url = login_url(self.admin_url, f"{name}_app", self.state.password(name, "app"))
            own = {
                "ATELIER_DATABASE_URL": url,
                "ATELIER_SERVICE_KEY_FILE": str(self.state.service_key(name)),
            }
            self._add(name, [f"services.{name}", "serve"], common | own)
        workers = dict(common)
        for name in SERVICES:
            url = login_url(self.admin_url, f"{name}_worker", self.state.password(name, "worker"))
            workers[f"ATELIER_{name.upper()}_DATABASE_URL"] = url
            workers[f"ATELIER_{name.upper()}_SERVICE_KEY_FILE"] = str(self.state.service_key(name))
        self._add("worker", ["cli.worker", *SERVICES], workers)
        self._add("web", ["web"], common)
        for process in self.processes:
            self._spawn(process)

    def _add(self, name: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self.processes.append(Process(name, arguments, environment, Comeback(name, self.report)))

    def _environment(self) -> dict[str, str]:
        return {
            "ATELIER_C2PA_CERTIFICATE": str(self.state.c2pa_certificate),
            "ATELIER_C2PA_KEY": str(self.state.c2pa_key),
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
            "PYTHONUNBUFFERED": "1",
            "ATELIER_TRUST_FILE": str(self.state.trust_file),
            "ATELIER_STORAGE_ROOT": str(self.state.objects),
            "ATELIER_STORAGE_SECRET_FILE": str(self.state.storage_secret),
            "ATELIER_STORAGE_HTTP_PORT": str(ports()["storage"]),
            "ATELIER_STORAGE_URL": f"http://127.0.0.1:{ports()['storage']}",
            **{
                f"ATELIER_{name.upper()}_ADDRESS": f"127.0.0.1:{ports()[name]}" for name in SERVICES
            },
        }

    def _spawn(self, process: Process) -> None:
        command = [sys.executable, "-m", *process.arguments]
        if setpriv := shutil.which("setpriv"):
            # Children end by themselves if the process that started the suite is killed and can't
            # stop them.
            command = [setpriv, "--pdeathsig", "TERM", *command]
        with self._open_log(process) as out:
            process.popen = subprocess.Popen(
                command,
                env=process.environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def _open_log(self, process: Process) -> BinaryIO:
        """Opens the process's log, or /dev/null: an unwritable log must not keep it from
        running."""
        log = self.state.logs / f"{process.name}.log"
        try:
            if log.exists() and log.stat().st_size > _LOG_BYTES:
                log.replace(log.with_suffix(".log.1"))
            return log.open("ab")
        except OSError as error:
            self.report(
                f"Can't write {log} ({error.strerror}): what {process.name} says is lost until it"
                " is restarted"
            )
            return Path(os.devnull).open("ab")

    def _await_health(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        waiting = {name: ports()[name] for name in SERVICES}
        while waiting or not self._storage_answers() or not answers("web"):
            for process in self.processes:
                if process.popen and process.popen.poll() is not None:
                    raise Problem(f"{process.name} does not start: {self._last_line(process)}")
            if self.postgres and (fault := self.postgres.fault):
                raise Problem(f"Postgres {fault}; see {self.postgres.log}, then start again")
            for name, port in list(waiting.items()):
                if is_serving(port):
                    del waiting[name]
            self._go_on()
            if time.monotonic() > deadline:
                raise Problem(
                    f"{', '.join(waiting)} not healthy after {_START_SECONDS} s; see"
                    f" {self.state.logs}"
                )
            time.sleep(0.05)

    def _go_on(self) -> None:
        if self.stopped():
            raise Problem("stopped before everything was up")

    def _storage_answers(self) -> bool:
        if self.options.s3_endpoint:
            return True
        return answers("storage")

    def _last_line(self, process: Process) -> str:
        log = self.state.logs / f"{process.name}.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        lines = [line for line in text.splitlines() if line.strip()]
        return f"{lines[-1][:300] if lines else 'it said nothing'} (all of it: {log})"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def ports() -> dict[str, int]:
    """Returns the ports of the four services, of `storage` and of `web`, from their settings or the
    defaults. Raises Problem."""
    chosen: dict[str, int] = {}
    for name, port in {**PORTS, "storage": STORAGE_HTTP_PORT, "web": WEB_PORT}.items():
        said = os.environ.get(_port_setting(name), str(port))
        if not said.isdecimal() or not 0 < int(said) < 65536:
            raise Problem(
                f"{_port_setting(name)}={said} is not a port; use a number from 1 to 65535"
            )
        if int(said) in chosen.values():
            raise Problem(
                f"{_port_setting(name)}={said} is another service's port; each needs its own"
            )
        chosen[name] = int(said)
    return chosen


def _port_setting(name: str) -> str:
    return "ATELIER_STORAGE_HTTP_PORT" if name == "storage" else f"ATELIER_{name.upper()}_PORT"


def check_ports(report: Report) -> None:
    """Raises Problem for a port that something listens on.

    The default ports lie in the range from which Linux takes ports of outgoing connections. A
    closed connection may hold one for up to a minute; this function waits for that.
    """
    for name, port in ports().items():
        deadline = time.monotonic() + _CLOSED_CONNECTION_SECONDS
        while (problem := _bind_problem(port)) is not None:
            if _listens(port) or time.monotonic() > deadline:
                raise Problem(
                    f"port {port} for {name} can't be used ({problem}); stop what uses it (`ss"
                    f" -ltnp 'sport = :{port}'` names it) or set {_port_setting(name)}, then try"
                    " again"
                )
            report(f"Waiting for port {port}, which a closed connection still holds")
            time.sleep(2)


def _bind_problem(port: int) -> str | None:
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def _listens(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(name: str) -> bool:
    """Returns whether `storage` or `web` is healthy."""
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{ports()[name]}/healthz", timeout=1).status_code == 200
    return False


def is_serving(port: int) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=1
            )
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def is_migrated(service: str, admin_url: str) -> bool:
    """Returns True if the newest revision is applied. Much faster than loading Alembic to find
    nothing to do."""
    files = (ROOT / "services" / service / "migrations" / "versions").glob("[0-9]*.py")
    newest = max(path.stem for path in files)
    try:
        with psycopg.connect(admin_url, connect_timeout=5) as conn:
            row = conn.execute(f"SELECT version_num FROM {service}.alembic_version").fetchone()
    except psycopg.errors.UndefinedTable:
        return False
    except psycopg.OperationalError as error:
        raise Problem(f"can't reach the database: {str(error).strip().splitlines()[-1]}") from None
    return row is not None and row[0] == newest


def _with_children(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _with_children(int(child))


def _pss_kilobytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Makes SIGINT, SIGTERM and SIGHUP set a flag instead of ending the process; yields a function
    that reads the flag."""
    seen: list[int] = []
    before = {number: signal.signal(number, lambda n, _f: seen.append(n)) for number in _STOPPING}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
