"""The base of every server benchmark: an embedded Postgres, the schema of assets, and our
processes."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from bench.figure import CannotRun
from cli.postgres import EmbeddedPostgres
from cli.setup import login_url
from cli.state import LOCAL_ISSUER, State
from cli.suite import ROOT
from shared.database.migrate import migrate
from shared.rpc import auth

OWNER = "user:ada"
_START_SECONDS = 120  # long, because a program that counts instructions slows the server down


class Site:
    """A database of its own in a temporary directory. Its processes end with it."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            directory = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="atelier-bench-"))
            )
            directory.chmod(0o755)  # Postgres runs as another account when this is root
            self.state = State(directory)
            self.state.prepare()
            self.postgres = stack.enter_context(EmbeddedPostgres(self.state.postgres))
            admin = self.postgres.url
            with psycopg.connect(admin, autocommit=True) as conn:
                conn.execute("CREATE DATABASE atelier")
            self.admin_url = admin.rsplit("/", 1)[0] + "/atelier"
            passwords = [self.state.password("assets", role) for role in ("app", "worker")]
            migrate("assets", self.admin_url, *passwords)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def authorization(self) -> tuple[str, str]:
        key = auth.load_key(self.state.keys / "people.jwk")
        token = auth.sign(key, issuer=LOCAL_ISSUER, subject="ada", role="user", seconds=24 * 3600)
        return ("authorization", f"Bearer {token}")

    def url(self, role: str) -> str:
        """Returns the URL of the database for `assets_app` or `assets_worker`."""
        return login_url(self.admin_url, f"assets_{role}", self.state.password("assets", role))

    def assets(
        self, command: str, *, below: Sequence[str] = (), **settings: str
    ) -> tuple["subprocess.Popen[bytes]", str]:
        """Starts `python -m services.assets serve` (with metrics) or `work`; returns the process
        and its address. `settings` are extra environment variables; the rest is as in production.
        """
        port = free_port()
        own = {
            "ATELIER_DATABASE_URL": self.url("app" if command == "serve" else "worker"),
            "ATELIER_TRUST_FILE": str(self.state.trust_file),
            "ATELIER_STORAGE_ROOT": str(self.state.objects),
            "ATELIER_STORAGE_SECRET_FILE": str(self.state.storage_secret),
            "ATELIER_PORT": str(port),
            "ATELIER_METRICS_PORT": str(free_port()),
            **settings,
        }
        process = self.start("services.assets", command, environment=own, below=below)
        if command == "serve":
            await_port(process, port)
        return process, f"127.0.0.1:{port}"

    def server(
        self, module: str, *, below: Sequence[str] = ()
    ) -> tuple["subprocess.Popen[bytes]", str]:
        """Starts a reference, `python -m <module> <database> <port> <trust file>`; returns it and
        its address."""
        port = free_port()
        database = self.admin_url if module == "bench.bare" else self.url("app")
        process = self.start(
            module,
            database,
            str(port),
            str(self.state.trust_file),
            environment={},
            below=below,
        )
        await_port(process, port)
        return process, f"127.0.0.1:{port}"

    def start(
        self,
        module: str,
        *arguments: str,
        environment: dict[str, str],
        below: Sequence[str] = (),
    ) -> "subprocess.Popen[bytes]":
        """Starts a Python process that logs to a file. `below` is the command of a counting
        program."""
        # ATELIER_* variables of the developer's own suite would change the measurement.
        outside = {
            name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")
        }
        paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}"}
        with (self.state.logs / f"{module}.log").open("ab") as log:
            process = subprocess.Popen(
                [*below, sys.executable, "-m", module, *arguments],
                env=outside | paths | environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._stack.callback(_end, process)
        return process

    def sql(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """Runs a statement as superuser; returns its rows."""
        with psycopg.connect(self.admin_url, autocommit=True) as conn:
            cursor = conn.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_port(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise CannotRun(f"{process.args!r} doesn't listen on port {port}; run it by hand to see why")


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
