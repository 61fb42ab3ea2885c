"""HTTP connections that idle clients can't hold: limits on slow headers, on slow readers, and on
the number of connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import h11
from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_BYTES: Final = 64 * 1024
"""Most bytes of a request line with its headers, give or take one read of the socket; longer ones
are answered with 400."""

_STATE: Final = "connection"  # the name of the connection in a request's scope
_READER_SECONDS: Final = 10.0  # a client that reads more slowly keeps the server waiting
_NOT_YET: Final = 2.0  # seconds of waiting before a request may be ended to make room


class BoundedConnection(H11Protocol):
    """Closes a connection whose headers are incomplete `header_seconds` after their start, or whose
    client reads too little of an answer for `drain_seconds`.

    The first headers start with the connection. Bytes that trickle in don't extend the time. The
    server's keep-alive timeout closes idle connections between two requests.

    At most `most` connections stay open: one more closes the one whose client has kept the server
    waiting longest. A client that has proven a right to its request, with a signature or because
    the object is public, keeps the server waiting only if it reads slowly.
    """

    header_seconds: ClassVar[float] = 10
    drain_seconds: ClassVar[float] = 60
    most: ClassVar[int] = 1200
    _headers_due: asyncio.TimerHandle | None = None
    _drain_due: asyncio.TimerHandle | None = None
    _unproven_since: float | None = None
    _unread_since: float | None = None

    def __init__(
        self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None
    ) -> None:
        super().__init__(config, server_state, {**app_state, _STATE: self}, _loop)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # With 0, every byte that the client hasn't read starts the clock.
        transport.set_write_buffer_limits(high=0)
        self.prove(False)
        self._begin()
        if len(self.connections) > self.most:
            _close_slowest(self._others())

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._end()
        elif self._headers_due is None:
            self._begin()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # an answer has begun, so no other can be sent
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_since = self.loop.time()
        self._drain_due = self.loop.call_later(self.drain_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._drained()
        super().resume_writing()

    def on_response_complete(self) -> None:
        self.prove(False)  # the next request has to prove its right again
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._drained()
        super().connection_lost(exc)

    def prove(self, right: bool) -> None:
        """Records whether the client has proven a right to its request from now on."""
        self._unproven_since = None if right else self.loop.time()

    def waited(self) -> float:
        """Returns how many seconds the client has kept the server waiting."""
        now = self.loop.time()
        unproven = now - self._unproven_since if self._unproven_since is not None else 0.0
        unread = (
            now - self._unread_since - _READER_SECONDS if self._unread_since is not None else 0.0
        )
        return max(unproven, unread)

    def make_room(self) -> bool:
        """Ends the other request whose client has kept the server waiting longest. Returns False if
        none has for more than 2 s."""
        return _close_slowest(
            other for other in self._others() if other.serving() and other.waited() > _NOT_YET
        )

    def serving(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _others(self) -> Iterator[BoundedConnection]:
        for other in self.connections:
            if (
                other is not self
                and isinstance(other, BoundedConnection)
                and not other.transport.is_closing()
            ):
                yield other

    def _begin(self) -> None:
        self._headers_due = self.loop.call_later(self.header_seconds, self.transport.close)

    def _end(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _drained(self) -> None:
        self._unread_since = None
        if self._drain_due is not None:
            self._drain_due.cancel()
            self._drain_due = None


def connection_of(scope: Scope) -> BoundedConnection | None:
    """Returns a request's connection; None if another server serves the application."""
    found: BoundedConnection | None = scope.get("state", {}).get(_STATE)
    return found


@contextmanager
def proven(scope: Scope) -> Iterator[None]:
    """Marks the request's client as having proven its right, within the context."""
    connection = connection_of(scope)
    if connection:
        connection.prove(True)
    try:
        yield
    finally:
        if connection:
            connection.prove(False)


def _close_slowest(connections: Iterable[BoundedConnection]) -> bool:
    slowest = max(connections, key=BoundedConnection.waited, default=None)
    if slowest is None or slowest.waited() <= 0:
        return False
    slowest.transport.abort()
    return True
