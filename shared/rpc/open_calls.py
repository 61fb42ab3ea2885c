"""Methods that need no token: health and reflection.

Their streams have their own places, which callers with tokens don't share, and end after a fixed
time. `Health.Check` is unary and needs no place: it answers from memory even if the server is full.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared.rpc import auth, errors, origin
from shared.rpc.errors import DomainError, Reason
from shared.rpc.limits import Places

WATCH_SECONDS = 3600.0
REFLECTION_SECONDS = 600.0

Stream = Callable[[Any, Any], Awaitable[None]]
_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):
    """The standard health service. Watchers are independent: one that doesn't read blocks no
    other."""

    def __init__(self, places: Places) -> None:
        self._statuses: dict[str, Any] = {"": _Status.SERVING}
        self._changed = asyncio.Event()
        self._stopping = False
        self.Watch = counted(places, self._watch, WATCH_SECONDS)  # type: ignore[method-assign]

    def set(self, service: str, status: Any) -> None:
        if not self._stopping and self._statuses.get(service) != status:
            self._statuses[service] = status
            self._tell()

    def stop(self) -> None:
        """Reports every service as NOT_SERVING from now on."""
        self._stopping = True
        self._statuses = dict.fromkeys(self._statuses, _Status.NOT_SERVING)
        self._tell()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        if (status := self._statuses.get(request.service)) is None:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, "no service of this name is here; ask with an empty name"
            )
        return _Status(status=status)

    async def _watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _Status.SERVICE_UNKNOWN)
            if status != told:
                told = status
                await context.write(_Status(status=status))
            await changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def reflecting(answers: Callable[[Any, Any], AsyncIterable[Any]], places: Places) -> Stream:
    """Returns a counted stream of the answers of reflection."""

    async def serve(requests: Any, context: Any) -> None:
        async for answer in answers(requests, context):
            await context.write(answer)

    return counted(places, serve, REFLECTION_SECONDS)


def counted(places: Places, serve: Stream, seconds: float) -> Stream:
    """Wraps a stream so that it takes one of `places`, which client addresses share, and lasts at
    most `seconds`."""

    async def call(request: Any, context: Any) -> None:
        holder = None
        try:
            holder = places.take(_caller(context))
            async with asyncio.timeout(seconds):
                await serve(request, context)
        except DomainError as refusal:
            await errors.send(context, refusal)
        except TimeoutError:
            text = f"a stream without a token lasts at most {seconds:g} s; open another"
            await errors.send(context, DomainError(Reason.ERROR_REASON_DEADLINE, text))
        except grpc.aio.InternalError:  # a write waited for the client, which has gone
            raise asyncio.CancelledError from None
        finally:
            if holder:
                places.give_back(holder)

    return call


def _caller(context: Any) -> auth.Identity:
    """Returns an identity made from the peer's address: without a token there is no other name."""
    address = origin.address_of(context.peer())
    return auth.Identity(
        actor="", owner=f"address:{address or 'unknown'}", role="anonymous", expires_at=0
    )
