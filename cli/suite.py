"""The whole suite as processes of this machine: Postgres, storage over HTTP, four servers, one worker."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import grpc
import httpx
import psycopg
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli.state import State
from shared.embedded import EmbeddedPostgres, EmbeddedPostgresError
from shared.settings import PORTS, SERVICES, STORAGE_HTTP_PORT, load

ROOT = Path(__file__).resolve().parent.parent
_START_SECONDS = 60
_LOG_BYTES = 10 * 1024 * 1024
_CLOSED_CONNECTION_SECONDS = 65
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Report = Callable[[str], None]


class Problem(Exception):
    """What stands in the way, in one line with the next step."""


@dataclass(frozen=True)
class Options:
    """What a user may bring of their own. An empty `database_url` is the embedded Postgres, `s3_endpoint` the disk."""

    database_url: str = ""
    s3_endpoint: str = ""


@dataclass
class Process:
    name: str
    arguments: Sequence[str]
    environment: dict[str, str]
    started: float = 0.0
    popen: "subprocess.Popen[bytes] | None" = None


@dataclass
class Suite:
    """Started by `start`, watched by `watch`, ended by `stop`; all from the thread that made it."""

    state: State
    options: Options
    report: Report
    postgres: EmbeddedPostgres | None = None
    stopped: Callable[[], bool] = lambda: False
    processes: list[Process] = field(default_factory=list)
    admin_url: str = ""

    def start(self) -> None:
        """Returns when every service answers healthy. Raises Problem; whatever was started is stopped then."""
        self.state.prepare()
        if not self.state.lock():
            raise Problem(f"a suite is already running on {self.state.directory}; stop it, or use --state for another")
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
        """Starts processes that end, each at most once a second, until `stopped`."""
        while not stopped():
            self.revive()
            time.sleep(0.2)

    def revive(self) -> None:
        for process in self.processes:
            if process.popen and process.popen.poll() is not None and time.monotonic() - process.started > 1:
                self.report(f"{process.name} ended with status {process.popen.returncode}; starting it again")
                self._spawn(process)

    def restart_services(self) -> None:
        """Ends every process but Postgres; `revive` starts them."""
        for process in self.processes:
            if process.popen and process.popen.poll() is None:
                process.popen.terminate()
        for process in self.processes:
            if process.popen:
                process.popen.wait(30)

    def stop(self) -> None:
        """Servers first, so that nothing new begins; then the worker, the storage and the database."""
        for process in reversed(self.processes):
            if process.popen and process.popen.poll() is None:
                process.popen.terminate()
        for process in self.processes:
            if process.popen:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.popen.wait(15)
                if process.popen.poll() is None:
                    process.popen.kill()
                    process.popen.wait(5)
        self.processes.clear()
        if self.postgres:
            self.postgres.stop()
            self.postgres = None
        self.state.unlock()

    def memory_megabytes(self) -> int:
        """Resident memory of everything that runs, shared pages counted once (PSS)."""
        roots = [p.popen.pid for p in self.processes if p.popen] + ([self.postgres.pid] if self.postgres else [])
        return sum(_pss_kilobytes(pid) for root in roots for pid in _with_children(root)) // 1024

    def _start_postgres(self) -> str:
        self.report("Starting Postgres")
        self.postgres = EmbeddedPostgres(self.state.postgres)
        try:
            self.postgres.start()
        except EmbeddedPostgresError as error:
            raise Problem(str(error)) from None
        admin = self.postgres.url
        with psycopg.connect(admin, autocommit=True) as conn:
            if not conn.execute("SELECT FROM pg_database WHERE datname = 'atelier'").rowcount:
                conn.execute("CREATE DATABASE atelier")
        return admin.rsplit("/", 1)[0] + "/atelier"

    def _migrate(self) -> None:
        missing = [name for name in SERVICES if not is_migrated(name, self.admin_url)]
        if not missing:
            return
        self.report("Bringing the schemas up to date")
        from shared.migrate import MigrationFailed, migrate

        for name in missing:
            self._go_on()
            try:
                migrate(name, self.admin_url, self.state.password(name, "app"), self.state.password(name, "worker"))
            except MigrationFailed as error:
                raise Problem(str(error)) from None

    def _bucket(self) -> None:
        if not self.options.s3_endpoint:
            return
        from botocore.exceptions import BotoCoreError, ClientError

        from cli.setup import make_bucket

        os.environ |= {"ATELIER_STORAGE": "s3", "ATELIER_S3_ENDPOINT": self.options.s3_endpoint}
        try:
            make_bucket(load("assets"))
        except (BotoCoreError, ClientError) as error:
            raise Problem(f"object store {self.options.s3_endpoint}: {error}") from None

    def _spawn_all(self) -> None:
        common = self._environment()
        self.processes = [Process("storage", ["shared.storage.http"], common)] if not self.options.s3_endpoint else []
        for name in SERVICES:
            url = login_url(self.admin_url, f"{name}_app", self.state.password(name, "app"))
            own = {"ATELIER_DATABASE_URL": url, "ATELIER_SERVICE_KEY_FILE": str(self.state.service_key(name))}
            self.processes.append(Process(name, [f"services.{name}", "serve"], common | own))
        workers = dict(common)
        for name in SERVICES:
            url = login_url(self.admin_url, f"{name}_worker", self.state.password(name, "worker"))
            workers[f"ATELIER_{name.upper()}_DATABASE_URL"] = url
            workers[f"ATELIER_{name.upper()}_SERVICE_KEY_FILE"] = str(self.state.service_key(name))
        self.processes.append(Process("worker", ["cli.worker", *SERVICES], workers))
        for process in self.processes:
            self._spawn(process)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
            "PYTHONUNBUFFERED": "1",
            "ATELIER_TRUST_FILE": str(self.state.trust_file),
            "ATELIER_STORAGE_ROOT": str(self.state.objects),
            "ATELIER_STORAGE_SECRET_FILE": str(self.state.storage_secret),
            "ATELIER_STORAGE_HTTP_PORT": str(ports()["storage"]),
            "ATELIER_STORAGE_URL": f"http://127.0.0.1:{ports()['storage']}",
            **{f"ATELIER_{name.upper()}_ADDRESS": f"127.0.0.1:{ports()[name]}" for name in SERVICES},
        }

    def _spawn(self, process: Process) -> None:
        log = self.state.logs / f"{process.name}.log"
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        command = [sys.executable, "-m", *process.arguments]
        if setpriv := shutil.which("setpriv"):
            # Whoever started us may be killed without a chance to tell: children then end by themselves.
            command = [setpriv, "--pdeathsig", "TERM", *command]
        process.started = time.monotonic()
        with log.open("ab") as out:
            process.popen = subprocess.Popen(
                command, env=process.environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    def _await_health(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        waiting = {name: ports()[name] for name in SERVICES}
        while waiting or not self._storage_answers():
            for process in self.processes:
                if process.popen and process.popen.poll() is not None:
                    raise Problem(f"{process.name} does not start: {self._last_line(process)}")
            for name, port in list(waiting.items()):
                if is_serving(port):
                    del waiting[name]
            self._go_on()
            if time.monotonic() > deadline:
                raise Problem(f"{', '.join(waiting)} not healthy after {_START_SECONDS} s; see {self.state.logs}")
            time.sleep(0.05)

    def _go_on(self) -> None:
        if self.stopped():
            raise Problem("stopped before everything was up")

    def _storage_answers(self) -> bool:
        if self.options.s3_endpoint:
            return True
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{ports()['storage']}/healthz", timeout=1).status_code == 200
        return False

    def _last_line(self, process: Process) -> str:
        log = self.state.logs / f"{process.name}.log"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{lines[-1][:300] if lines else 'it said nothing'} (all of it: {log})"


def ports() -> dict[str, int]:
    """Of the four services and `storage`: the usual ones, or what their settings say. Raises Problem."""
    chosen: dict[str, int] = {}
    for name, port in {**PORTS, "storage": STORAGE_HTTP_PORT}.items():
        said = os.environ.get(_port_setting(name), str(port))
        if not said.isdecimal() or not 0 < int(said) < 65536:
            raise Problem(f"{_port_setting(name)}={said} is not a port; use a number from 1 to 65535")
        if int(said) in chosen.values():
            raise Problem(f"{_port_setting(name)}={said} is another service's port; each needs its own")
        chosen[name] = int(said)
    return chosen


def _port_setting(name: str) -> str:
    return "ATELIER_STORAGE_HTTP_PORT" if name == "storage" else f"ATELIER_{name.upper()}_PORT"


def check_ports(report: Report) -> None:
    """Raises Problem for a port that something listens on.

    The usual ports lie where Linux also takes ports for outgoing connections, so one may be held for up to a minute by
    a connection that is long closed: that is waited for.
    """
    for name, port in ports().items():
        deadline = time.monotonic() + _CLOSED_CONNECTION_SECONDS
        while (problem := _bind_problem(port)) is not None:
            if _listens(port) or time.monotonic() > deadline:
                raise Problem(
                    f"port {port} for {name} can't be used ({problem}); stop what uses it"
                    f" (`ss -ltnp 'sport = :{port}'` names it) or set {_port_setting(name)}, then try again"
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


def is_serving(port: int) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def is_migrated(service: str, admin_url: str) -> bool:
    """True if the newest revision is applied. Much quicker than loading Alembic to find nothing to do."""
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


def login_url(admin_url: str, role: str, password: str) -> str:
    parts = urlsplit(admin_url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{role}:{quote(password)}@{host}"))


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
    """Within, SIGINT, SIGTERM and SIGHUP set a flag instead of ending the process; yields what tells it."""
    seen: list[int] = []
    before = {number: signal.signal(number, lambda n, _f: seen.append(n)) for number in _STOPPING}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
