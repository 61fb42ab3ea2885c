"""HTTP connections that can't be held for nothing: limits on headers, on readers, and on how many
there are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import h11
from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_BYTES: Final = 64 * 1024
"""Most bytes of a request line with its headers, give or take one read of the socket; more are
answered with 400."""

_STATE: Final = "connection"  # where a request's scope names its connection
_READER_SECONDS: Final = (
    10.0  # a reader that takes longer for what was written to it keeps the server waiting
)
_NOT_YET: Final = 2.0  # seconds for which a request isn't ended to make room for another


class BoundedConnection(H11Protocol):
    """Closes a connection whose next headers are not whole `header_seconds` after they were begun,
    and one whose client reads nothing of an answer, or too little, for `drain_seconds`.

    The first headers begin with the connection. Bytes that trickle in don't prolong the time. Idle
    connections between two requests are closed by the server's keep-alive timeout.

    At most `most` stay open: one more closes the one whose client has kept the server waiting
    longest. A client that has shown a right to what it does, with a signature or since the object
    is public, doesn't keep the server waiting unless it is slow to read.
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
        transport.set_write_buffer_limits(
            high=0
        )  # so that every byte that isn't taken starts the clock
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
        else:  # the answer has begun; another can't be sent within it
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_since = self.loop.time()
        self._drain_due = self.loop.call_later(self.drain_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._drained()
        super().resume_writing()

    def on_response_complete(self) -> None:
        self.prove(False)  # of the next request nothing is known
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._drained()
        super().connection_lost(exc)

    def prove(self, right: bool) -> None:
        """Whether the client has shown a right to what it does from now on."""
        self._unproven_since = None if right else self.loop.time()

    def waited(self) -> float:
        """For how many seconds the client has kept the server waiting."""
        now = self.loop.time()
        unproven = now - self._unproven_since if self._unproven_since is not None else 0.0
        unread = (
            now - self._unread_since - _READER_SECONDS if self._unread_since is not None else 0.0
        )
        return max(unproven, unread)

    def make_room(self) -> bool:
        """Ends the other request whose client has kept the server waiting longest. False: none has
        for long."""
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
    """The connection that a request came by. None: another server serves the application."""
    found: BoundedConnection | None = scope.get("state", {}).get(_STATE)
    return found


@contextmanager
def proven(scope: Scope) -> Iterator[None]:
    """Meanwhile the request's client is one that has shown a right to what it does."""
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
