"""The suite, started inside a test: real Postgres, real storage over HTTP, real gRPC on local
sockets."""

import asyncio
import importlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import grpc
import httpx
import psycopg

from shared.database.migrate import migrate
from shared.rpc import auth, server
from shared.rpc.auth import trust_entry
from shared.settings import SERVICES, Settings, load

ROOT = Path(__file__).resolve().parent.parent
APP_PASSWORD = "app-password-for-tests"
WORKER_PASSWORD = "worker-password-for-tests"
TEMPLATE = "atelier_template"


def browser() -> httpx.AsyncClient:
    """Returns a client for the suite's own addresses. They are plain HTTP, so certificates aren't
    loaded, which would take longer than most requests."""
    return httpx.AsyncClient(timeout=60, verify=False)


def built_services() -> list[str]:
    return [name for name in SERVICES if (ROOT / "services" / name / "__main__.py").exists()]


class Cluster:
    """A Postgres with a migrated template database, of which tests get clones."""

    def __init__(self, admin_url: str) -> None:
        self.admin_url = admin_url

    def url(self, database: str, role: str | None = None, password: str = "") -> str:
        parts = urlsplit(self.admin_url)
        user = f"{role}:{password}" if role else parts.netloc.rpartition("@")[0]
        return urlunsplit(
            parts._replace(netloc=f"{user}@{parts.netloc.rpartition('@')[2]}", path=f"/{database}")
        )

    def make_template(self) -> None:
        with psycopg.connect(self.admin_url, autocommit=True) as conn:
            conn.execute(f"CREATE DATABASE {TEMPLATE}")
        for name in built_services():
            migrate(name, self.url(TEMPLATE), APP_PASSWORD, WORKER_PASSWORD)

    def clone(self) -> str:
        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(self.admin_url, autocommit=True) as conn:
            # Copying files is faster than logging every page, and nothing here is ever recovered.
            conn.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY file_copy")
        return name

    def drop(self, name: str) -> None:
        with psycopg.connect(self.admin_url, autocommit=True) as conn:
            conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


class Keys:
    """Signing keys of a test's own: one for people, one per service, and one that nobody trusts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.people = auth.create_key(directory / "people.jwk")
        self.stranger = auth.create_key(directory / "stranger.jwk")
        self.services = {name: auth.create_key(directory / f"{name}.jwk") for name in SERVICES}
        people_roles = ["user", "vendor", "anonymous", "admin"]
        entries = [trust_entry(self.people, issuer="tests", roles=people_roles)]
        self.workers = auth.create_key(directory / "workers.jwk")
        entries.append(trust_entry(self.workers, issuer="workers", roles=["service"]))
        for name, key in self.services.items():
            roles = ["user", "vendor", "anonymous", "service"]
            entries.append(trust_entry(key, issuer=f"atelier-{name}", roles=roles, service=name))
        self.trust_file = directory / "trust.json"
        self.trust_file.write_text(__import__("json").dumps(entries))

    def token(
        self, subject: str, role: str = "user", *, seconds: float = 3600, owner: str | None = None
    ) -> str:
        return auth.sign(
            self.people, issuer="tests", subject=subject, role=role, seconds=seconds, owner=owner
        )

    def service_token(self, service: str, owner: str, *, act: str | None = None) -> str:
        """Returns the token with which `service` calls for `owner`, such as user:ada. `act` is the
        service it names, by default itself."""
        role, _, subject = owner.partition(":")
        return auth.sign(
            self.services[service],
            issuer=f"atelier-{service}",
            subject=subject,
            role=role,
            seconds=60,
            owner=owner,
            act=act or service,
        )

    def worker_token(self, subject: str) -> str:
        """Returns the token of an outside worker of the deployment."""
        return auth.sign(
            self.workers, issuer="workers", subject=subject, role="service", seconds=3600
        )

    def untrusted_token(self) -> str:
        return auth.sign(self.stranger, issuer="tests", subject="ada", role="user", seconds=60)


class Client:
    """A caller: a channel per service and a token. Stubs of `client.stub(module_grpc.XStub)` send
    the token."""

    def __init__(self, addresses: dict[str, str], token: str | None, subject: str = "") -> None:
        self.addresses = addresses
        self.token = token
        self.subject = subject
        self.options: list[tuple[str, int]] = []  # channel options, to be set before the first call
        self._channels: dict[str, grpc.aio.Channel] = {}

    def channel(self, service: str) -> grpc.aio.Channel:
        if service not in self._channels:
            self._channels[service] = grpc.aio.insecure_channel(
                self.addresses[service],
                options=[
                    ("grpc.use_local_subchannel_pool", 1),
                    ("grpc.max_reconnect_backoff_ms", 1000),
                    *self.options,
                ],
                interceptors=(
                    [kind(self.token) for kind in (_Bearer, _BearerStream, _BearerIn)]
                    if self.token
                    else []
                ),
            )
        return self._channels[service]

    def stub(self, stub_class: Callable[[Any], Any]) -> Any:
        service = stub_class.__module__.split(".")[1]
        return stub_class(self.channel(service))

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


class _WithToken:
    def __init__(self, token: str) -> None:
        self._header = ("authorization", f"Bearer {token}")

    def _details(self, details: Any) -> Any:
        return details._replace(metadata=[*(details.metadata or ()), self._header])


class _Bearer(_WithToken, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(self._details(details), request)


class _BearerStream(_WithToken, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(self._details(details), request)


class _BearerIn(_WithToken, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        return await continuation(self._details(details), requests)


class Suite:
    """The services of one test, in this process, each on a port of its own, over one cloned
    database."""

    def __init__(self, cluster: Cluster, database: str, keys: Keys, storage: "DiskServer") -> None:
        self.cluster = cluster
        self.database = database
        self.keys = keys
        self.storage = storage
        self.addresses: dict[str, str] = {}
        self.overrides: dict[str, Any] = {}
        self._servers: dict[str, tuple[server.Running, AsyncExitStack]] = {}
        self._clients: list[Client] = []
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._looking: psycopg.Connection[Any] | None = None

    def settings(self, service: str, role: str) -> Settings:
        password = APP_PASSWORD if role == "app" else WORKER_PASSWORD
        settings = load(service)
        values = {
            "database_url": self.cluster.url(self.database, f"{service}_{role}", password),
            "trust_file": self.keys.trust_file,
            "service_key_file": self.keys.directory / f"{service}.jwk",
            "storage_root": self.storage.root,
            "storage_secret_file": self.storage.secret_file,
            "storage_url": self.storage.url,
            "job_lease_seconds": 3.0,
            "imaging_processes": 1,
            "drain_seconds": 2.0,
            "thumbnail_wait_seconds": 0.0,  # in most tests nobody makes variants
            **{f"{name}_address": address for name, address in self.addresses.items()},
            **self.overrides,
        }
        return type(settings).model_validate({**settings.model_dump(), **values, "port": 0})

    async def serve(self, *services: str) -> None:
        """Starts servers. Services that a service calls must be started before it."""
        for name in services:
            module = importlib.import_module(f"services.{name}.__main__")
            settings = self.settings(name, "app")
            stack = AsyncExitStack()
            service = await stack.enter_async_context(module.service(name, settings))
            verifier = auth.Verifier(auth.load_trust(settings.trust_file))
            running = await server.start(service, settings, verifier)
            self._servers[name] = running, stack
            self.addresses[name] = f"127.0.0.1:{running.port}"

    async def stop(self, *services: str, seconds: float = 0) -> None:
        """Stops servers as SIGTERM does; calls in flight get `seconds`. `serve` starts them again
        on other ports."""
        for name in services:
            running, stack = self._servers.pop(name)
            async with stack:
                await running.drain(seconds)

    async def work(self, *services: str) -> None:
        for name in services:
            module = importlib.import_module(f"services.{name}.__main__")
            self._workers[name] = asyncio.create_task(
                module.work(name, self.settings(name, "worker"))
            )

    async def stop_work(self, *services: str) -> None:
        for name in services or list(self._workers):
            task = self._workers.pop(name)
            while not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=5)
            if not task.cancelled() and (error := task.exception()):
                raise error

    def client(self, subject: str | None = "ada", role: str = "user", **claims: Any) -> Client:
        """Returns a caller with a token, or without one if `subject` is None."""
        token = self.keys.token(subject, role, **claims) if subject else None
        client = Client(self.addresses, token, subject or "")
        self._clients.append(client)
        return client

    def as_token(self, token: str) -> Client:
        client = Client(self.addresses, token)
        self._clients.append(client)
        return client

    def sql(self, statement: str, parameters: Any = None) -> list[Any]:
        """Runs a statement as superuser, to look at what is really there or to cause faults.
        Promises are never tested through it."""
        if self._looking is None or self._looking.closed:
            self._looking = self._connect()
        cursor = self._looking.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []

    async def change(self, statement: str, parameters: Any = None) -> None:
        """Does the same for a statement that may have to wait for transactions of the server or the
        worker. These run in this very event loop, which must go on meanwhile."""

        def run() -> None:
            with self._connect() as conn:
                conn.execute(statement, parameters)

        await asyncio.to_thread(run)

    def _connect(self) -> psycopg.Connection[Any]:
        url = self.cluster.url(self.database)
        return psycopg.connect(
            url, autocommit=True, prepare_threshold=None
        )  # no prepared statements, because tests change tables

    async def close(self) -> None:
        if self._looking:
            self._looking.close()
        for client in self._clients:
            await client.close()
        await self.stop_work()
        await self.stop(*reversed(self._servers))


class DiskServer:
    """The disk backend's HTTP process, shared by the tests of a session."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "objects"
        self.secret_file = directory / "storage.secret"
        self.secret_file.write_text(secrets.token_hex(32))
        self.secret_file.chmod(0o600)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {
            **os.environ,
            "ATELIER_STORAGE_ROOT": str(self.root),
            "ATELIER_STORAGE_SECRET_FILE": str(self.secret_file),
            "ATELIER_STORAGE_HTTP_PORT": str(self.port),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shared.storage.http"],
            env=environment,
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(100):
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/healthz", verify=False).status_code == 200:
                    return
            time.sleep(0.05)
        self.stop()
        raise RuntimeError("the storage server doesn't start")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(number: int) -> list[int]:
    """Returns different free ports: all are held until all are known."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@asynccontextmanager
async def running_suite(cluster: Cluster, keys: Keys, storage: DiskServer) -> AsyncIterator[Suite]:
    database = await asyncio.to_thread(cluster.clone)
    suite = Suite(cluster, database, keys, storage)
    try:
        yield suite
    finally:
        await suite.close()
        await asyncio.to_thread(cluster.drop, database)
