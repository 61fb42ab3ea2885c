"""HTTP connections whose request headers are bounded in size and in time."""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_BYTES: Final = 64 * 1024
"""Most bytes of a request line with its headers, give or take one read of the socket; more are answered with 400."""


class BoundedHeaders(H11Protocol):
    """Closes a connection whose next headers are not whole `header_seconds` after they were begun.

    The first ones begin with the connection. Bytes that trickle in don't prolong the time. Idle connections between
    two requests are closed by the server's keep-alive timeout.
    """

    header_seconds: ClassVar[float] = 10
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._end()
        elif self._deadline is None:
            self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def _begin(self) -> None:
        self._deadline = self.loop.call_later(self.header_seconds, self.transport.close)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
