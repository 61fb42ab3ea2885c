"""Serves gRPC: health, reflection, the guard around every method, garbage collection, processes,
drain on SIGTERM."""

import asyncio
import contextlib
import gc
import importlib
import multiprocessing
import multiprocessing.process
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import grpc
import structlog
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared import telemetry
from shared.rpc import auth, origin, reflection
from shared.rpc.guard import Guard
from shared.rpc.limits import TURN_AWAY_SECONDS, Limits
from shared.rpc.open_calls import Health
from shared.settings import PORTS, Settings

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_STREAMS_PER_CONNECTION = 100
LEAST_PING_INTERVAL_MS = 5_000  # Go and Java ping at most every 10 s; clocks aren't exact
_TAKE_BACK_SECONDS = 5.0
_YOUNG_OBJECTS = 10_000  # more than a call or an event for a thousand watchers makes
_log = structlog.get_logger("server")

Context = origin.Context  # for servicers


class _Collector(grpc.GenericRpcHandler):
    """Replaces the server while generated code registers handlers, so that each can be wrapped with
    the guard. The server finds all methods in this one handler.

    gRPC's asyncio server waits for each registered method with a task of its own and looks at all
    of these tasks at every call: with a hundred methods, that was a third of what a read cost.
    """

    def __init__(self) -> None:
        self.handlers: dict[str, grpc.RpcMethodHandler] = {}

    def add_generic_rpc_handlers(self, _handlers: object) -> None:
        pass

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler]
    ) -> None:
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self.handlers.get(call.method)


@dataclass
class Service:
    """The service that a main module gives to `serve`. `register(server)` is generated code bound
    to a servicer; `ready` returns whether its database answers; `drain` ends its watches."""

    name: str
    register: Sequence[Callable[[Any], None]]
    ready: Callable[[], Awaitable[bool]]
    drain: Callable[[], Awaitable[None]]


class Running:
    """A running server, listening on `port`."""

    def __init__(
        self,
        server: Any,
        health: Health,
        service: Service,
        port: int,
        limits: Limits,
        reporting: "asyncio.Task[None]",
    ) -> None:
        self.port = port
        self._server = server
        self._limits = limits
        self._health = health
        self._service = service
        self._reporting = reporting

    async def drain(self, seconds: float) -> None:
        """Reports NOT_SERVING, ends watches with a cursor, and gives calls in flight `seconds` to
        finish.

        gRPC's core answers CANCELLED to a call that reaches a stopping server, and no client
        repeats that. So the server goes on serving for a moment, in which balancers and clients
        that check health stop using it.
        """
        self._reporting.cancel()
        self._health.stop()
        await self._service.drain()
        await asyncio.sleep(min(TURN_AWAY_SECONDS, seconds))
        await self._server.stop(seconds)
        # gRPC doesn't wait for calls whose callers have gone, but these must clean up while the
        # database and the storage are still open.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TAKE_BACK_SECONDS):
                while self._limits.under_way():  # noqa: ASYNC110 (each call would pay for an event)
                    await asyncio.sleep(0.02)


async def start(service: Service, settings: Settings, verifier: auth.Verifier) -> Running:
    """Binds the port and starts serving."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
            ("grpc.so_reuseport", 1 if settings.processes > 1 else 0),
            ("grpc.keepalive_time_ms", 60_000),
            # Clients may ping idle connections. Without these options gRPC treats two pings within
            # five minutes, or within two hours without a call, as an attack and closes the
            # connection.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", LEAST_PING_INTERVAL_MS),
        ]
    )
    limits = Limits(
        max_in_flight=settings.max_in_flight,
        max_streams=settings.max_streams,
        default_deadline=settings.default_deadline_seconds,
        max_deadline=settings.max_deadline_seconds,
    )
    methods = _guarded_methods(service, limits, verifier)
    names = sorted({path[1:].partition("/")[0] for path in methods.handlers})
    health = Health(limits.open_streams)
    health_pb2_grpc.add_HealthServicer_to_server(health, methods)
    for name, handlers in reflection.handlers(names, limits.open_streams):
        methods.add_registered_method_handlers(name, handlers)
    server.add_generic_rpc_handlers((methods,))
    port = _bind(server, settings)
    await server.start()
    reporting = asyncio.create_task(_report_health(health, names, service.ready))
    _log.info("serving", service=service.name, port=port)
    return Running(server, health, service, port, limits, reporting)


async def serve(
    opened: "contextlib.AbstractAsyncContextManager[Service]", settings: Settings
) -> None:
    """Serves until SIGTERM or SIGINT, then drains."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if parent := multiprocessing.parent_process():
        # If the parent dies, nobody passes signals on, and the port would stay taken.
        asyncio.get_running_loop().add_reader(parent.sentinel, stop.set)
    async with opened as service:
        running = await start(
            service, settings, auth.Verifier(auth.load_trust(settings.trust_file))
        )
        # A full collection stops every call, for 0.1 s with a thousand watches. Objects from
        # start-up stay, so they are excluded; and the higher threshold keeps many calls in flight
        # from triggering collections.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG_OBJECTS)
        await stop.wait()
        await running.drain(settings.drain_seconds)


def _guarded_methods(service: Service, limits: Limits, verifier: auth.Verifier) -> _Collector:
    telemetry.IN_FLIGHT.set_function(lambda: limits.calls.taken)
    telemetry.STREAMS.set_function(lambda: limits.streams.taken)
    methods = _Collector()
    for register in service.register:
        register(methods)
    for path, handler in methods.handlers.items():
        methods.handlers[path] = Guard(path, verifier, limits).wrap(handler)
    return methods


def port_of(name: str, settings: Settings) -> int:
    return settings.port or PORTS[name]


def _bind(server: Any, settings: Settings) -> int:
    address = f"{settings.host}:{settings.port}"
    if settings.transport == "tls":
        assert settings.tls_certificate and settings.tls_key
        pair = (settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes())
        port: int = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port(address)
    return port


async def _report_health(
    health: Health, names: Sequence[str], ready: Callable[[], Awaitable[bool]]
) -> None:
    """Updates the health status every second. Health checks answer from memory, so that they do
    even while the pool is exhausted."""
    status = health_pb2.HealthCheckResponse
    while True:
        now = status.SERVING if await ready() else status.NOT_SERVING
        for name in ("", *names):
            health.set(name, now)
        await asyncio.sleep(1)


class CannotStart(Exception):
    """A setting or the machine prevents the start; the text is one line with the next step."""


def check_binding(name: str, settings: Settings) -> None:
    """Raises CannotStart for an address that may not or can't be bound."""
    loopback = settings.host in ("127.0.0.1", "::1", "localhost")
    if settings.transport == "loopback" and not loopback:
        raise CannotStart(
            f"{settings.host} is not loopback: set ATELIER_TRANSPORT=tls with certificates, or mesh"
            " if a balancer or mesh in front of this server ends TLS"
        )
    if settings.transport == "tls" and not (settings.tls_certificate and settings.tls_key):
        raise CannotStart("ATELIER_TRANSPORT=tls needs ATELIER_TLS_CERTIFICATE and ATELIER_TLS_KEY")
    port = port_of(name, settings)
    # SO_REUSEPORT would bind a taken port and share its connections, so this binds without it
    # first.
    with contextlib.closing(
        socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    ) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, port))
        except OSError as error:
            raise CannotStart(
                f"{name}: can't bind {settings.host}:{port} ({error.strerror}); stop what uses it"
                f" or set ATELIER_{name.upper()}_PORT"
            ) from None


def check_trust(path: Path) -> None:
    """Raises CannotStart for a trust file that can't be read or is invalid."""
    try:
        auth.load_trust(path)
    except OSError as error:
        raise CannotStart(
            f"the trust file {path} can't be read ({error.strerror}); set ATELIER_TRUST_FILE"
        ) from None
    except ValueError as error:
        raise CannotStart(f"{error}; correct the trust file, `atelier trust` checks it") from None


Opener = Callable[[str, Settings], "contextlib.AbstractAsyncContextManager[Service]"]


def run(name: str, settings: Settings, opener: Opener) -> None:
    """Serves the service that `opener` opens, in as many processes as the settings say. Returns
    when all have ended."""
    settings.port = port_of(name, settings)
    telemetry.set_up(name, settings.log_level)
    try:
        check_binding(name, settings)
        check_trust(settings.trust_file)
    except CannotStart as problem:
        sys.exit(f"atelier: {problem}")
    if settings.processes == 1:
        _process(name, settings, opener)
        return
    if not _keep_running(lambda: _spawn(name, settings, opener), settings.processes):
        sys.exit(f"atelier: {name}: a server process could not start; its own message stands above")


def _spawn(name: str, settings: Settings, opener: Any) -> multiprocessing.process.BaseProcess:
    spawn = multiprocessing.get_context("spawn")  # gRPC objects must not cross a fork
    # The opener is passed by its name: a child doesn't import a package's `__main__` under that
    # name.
    module = sys.modules[opener.__module__].__spec__
    assert module
    child = spawn.Process(
        target=_child, args=(name, settings.model_dump(), module.name, opener.__name__)
    )
    child.start()
    return child


def _child(name: str, values: dict[str, Any], module: str, opener: str) -> None:
    settings = Settings.model_validate(values)
    telemetry.set_up(name, settings.log_level)
    _process(name, settings, getattr(importlib.import_module(module), opener))


def _keep_running(spawn: Callable[[], multiprocessing.process.BaseProcess], count: int) -> bool:
    """Keeps `count` children running until SIGTERM or SIGINT, which they get too. Replaces a child
    that is killed. If one exits with an error, ends all and returns False."""
    children: list[multiprocessing.process.BaseProcess] = []
    stopping: list[int] = []

    def stop(number: int, _frame: object = None) -> None:
        stopping.append(number)
        for child in children:
            if child.pid and child.is_alive():
                os.kill(child.pid, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    succeeded = True
    while children or not stopping:
        while len(children) < count and not stopping:
            children.append(spawn())
            if stopping:  # the signal arrived before this child was in the list
                stop(stopping[0])
        connection.wait([child.sentinel for child in children], timeout=1)
        for child in [child for child in children if not child.is_alive()]:
            children.remove(child)
            if child.exitcode and child.exitcode > 0:
                succeeded = False
                stop(signal.SIGTERM)
            elif not stopping:
                _log.error(
                    "a server process was killed; starting another",
                    pid=child.pid,
                    exitcode=child.exitcode,
                )
    return succeeded


def _process(name: str, settings: Settings, opener: Opener) -> None:
    # Each connection and each download holds an open file; a shell's usual limit is 1,024.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    telemetry.serve_metrics(settings.host, settings.metrics_port, settings.processes)
    uvloop.run(serve(opener(name, settings), settings))
