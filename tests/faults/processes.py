"""Servers and workers in processes of their own, which tests kill, freeze and restart, and locks
that block them."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psycopg
from grpc_health.v1 import health_pb2, health_pb2_grpc
from psycopg.rows import namedtuple_row

from cli.postgres import EmbeddedPostgres
from tests.suite import APP_PASSWORD, ROOT, WORKER_PASSWORD, Cluster, DiskServer, Keys, free_port

LEASE_SECONDS = 2.0
PATIENCE_SECONDS = 60.0  # the limit for what takes a few seconds on an idle machine


def _children(parent: int) -> set[int]:
    with suppress(OSError):
        tasks = Path(f"/proc/{parent}/task").iterdir()
        return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}
    return set()


class Process:
    """One process that this test started. Signals go to it alone, unless a method says
    otherwise."""

    def __init__(self, module: str, command: str, environment: dict[str, str], log: Path) -> None:
        self.port = int(environment.get("ATELIER_PORT", "0"))
        self.log = log
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", module, command],
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(10)

    async def stop(self) -> int:
        """Sends SIGTERM; returns the exit status."""
        self.popen.terminate()
        return await asyncio.to_thread(self.popen.wait, 30)

    def freeze(self) -> None:
        """Sends SIGSTOP, to its children too."""
        for pid in (self.popen.pid, *self.children()):
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for pid in (*self.children(), self.popen.pid):
            os.kill(pid, signal.SIGCONT)

    def logged(self, text: str) -> bool:
        return text in self.log.read_text()

    def children(self) -> set[int]:
        """Returns the ids of its current working children: servers, and the fork server's
        children."""
        found = set()
        for pid in _children(self.popen.pid):
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"spawn_main" in command:
                    found.add(pid)
                elif b"forkserver" in command:
                    found |= _children(pid)
        return found

    async def healthy(self) -> None:
        """Returns once the server answers SERVING."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            async def serving() -> bool:
                assert self.popen.poll() is None, self.log.read_text()[-2000:]
                with suppress(grpc.aio.AioRpcError):
                    answer = await stub.Check(
                        health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=2
                    )
                    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
                return False

            await until(serving, "the server is healthy")


class Processes:
    """Starts processes over one database and one storage, and ends those that are left."""

    def __init__(
        self, cluster: Cluster, database: str, keys: Keys, storage: DiskServer, directory: Path
    ) -> None:
        self.cluster = cluster
        self.database = database
        self.keys = keys
        self.storage = storage
        self.directory = directory
        self.logs = directory
        self.addresses: dict[str, str] = {}
        self._started: list[Process] = []

    def work(self, service: str, **settings: Any) -> Process:
        return self._start(service, "work", {"job_lease_seconds": LEASE_SECONDS, **settings})

    def serve(self, service: str, port: int | None = None, **settings: Any) -> Process:
        process = self._start(service, "serve", {"port": port or free_port(), **settings})
        self.addresses.setdefault(service, f"127.0.0.1:{process.port}")
        return process

    def _start(self, service: str, command: str, settings: dict[str, Any]) -> Process:
        role, password = (
            ("app", APP_PASSWORD) if command == "serve" else ("worker", WORKER_PASSWORD)
        )
        values = {
            "database_url": self.cluster.url(self.database, f"{service}_{role}", password),
            "trust_file": self.keys.trust_file,
            "service_key_file": self.keys.directory / f"{service}.jwk",
            "storage_root": self.storage.root,
            "storage_secret_file": self.storage.secret_file,
            "storage_url": self.storage.url,
            "imaging_processes": 1,
            "drain_seconds": 5,
            **{
                f"{name}_address": address
                for name, address in self.addresses.items()
                if name != "techfiles"
            },
            **settings,
        }
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
            "TMPDIR": str(self.directory),
            **{f"ATELIER_{name.upper()}": str(value) for name, value in values.items()},
        }
        log = self.logs / f"{service}-{command}-{len(self._started)}.log"
        process = Process(f"services.{service}", command, environment, log)
        self._started.append(process)
        return process

    def running(self) -> list[Process]:
        return [process for process in self._started if process.popen.poll() is None]

    def close(self) -> None:
        for process in self.running():
            process.signal(signal.SIGCONT)
            process.kill()


class Superuser:
    """Reads what is really there, and locks it. Each statement commits by itself; `hold` keeps a
    transaction open."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def rows(self, statement: str, *parameters: Any) -> list[Any]:
        async with await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, row_factory=namedtuple_row
        ) as conn:
            cursor = await conn.execute(statement, parameters)
            return await cursor.fetchall() if cursor.description else []

    async def value(self, statement: str, *parameters: Any) -> Any:
        rows = await self.rows(statement, *parameters)
        return rows[0][0] if rows else None

    @asynccontextmanager
    async def hold(self, statement: str, *parameters: Any) -> AsyncIterator["Hold"]:
        """Runs the statement in a transaction that stays open until `release` or the end of the
        block."""
        conn = await psycopg.AsyncConnection.connect(self._url, row_factory=namedtuple_row)
        try:
            await conn.execute(statement, parameters)
            yield Hold(self, conn)
        finally:
            await conn.close()


class Hold:
    """Locks held by an open transaction."""

    def __init__(self, superuser: Superuser, conn: psycopg.AsyncConnection[Any]) -> None:
        self._superuser = superuser
        self._conn = conn
        self._pid = conn.info.backend_pid

    async def caught(
        self, role: str = "assets_worker", *, seconds: float = PATIENCE_SECONDS
    ) -> int:
        """Waits until a backend of `role` waits for these locks. Returns its process id."""
        statement = (
            "SELECT pid FROM pg_stat_activity WHERE usename = %s AND %s = ANY"
            " (pg_blocking_pids(pid))"
        )
        found = await until(
            lambda: self._superuser.value(statement, role, self._pid),
            "the worker waits for the lock",
            seconds=seconds,
        )
        return int(found)

    async def waited_for(self, number: int) -> None:
        """Waits until so many backends wait for these locks, in one queue."""
        statement = "SELECT count(*) FROM pg_locks WHERE NOT granted"

        async def all_wait() -> bool:
            return bool(await self._superuser.value(statement) >= number)

        await until(all_wait, f"{number} wait for the lock")

    async def release(self) -> None:
        await self._conn.rollback()


def end_process(pid: int) -> None:
    """Kills a child of a killed process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def kill_and_start(postgres: EmbeddedPostgres) -> None:
    status = Path(f"/proc/{postgres.pid}/stat")
    os.kill(postgres.pid, signal.SIGKILL)

    async def ended() -> bool:
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"

    await until(ended, "Postgres is gone")
    await asyncio.to_thread(postgres.start)


async def until(
    found: Callable[[], Any], what: str, *, pause: float = 0.05, seconds: float = PATIENCE_SECONDS
) -> Any:
    """Calls `found` repeatedly until its answer is true; returns it."""
    deadline = time.monotonic() + seconds
    while True:
        answer = await found()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(pause)
