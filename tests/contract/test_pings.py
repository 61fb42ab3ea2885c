"""Clients may ping an idle connection, as Go and Java do when they are told to keep it alive.

The tests write the frames by hand: gRPC's own client pings no more often than it thinks is welcome.
"""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shared.rpc import server
from tests.suite import Suite

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ACK = 1
ENHANCE_YOUR_CALM = 11
MANY = 8  # gRPC hangs up at the third or fourth ping that comes too soon
SHORTEST_OF_GO_AND_JAVA_MS = 10_000


class Connection:
    """An HTTP/2 connection that never calls anything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        writer.write(PREFACE)
        self._send(SETTINGS, 0, b"")

    def _send(self, kind: int, flags: int, payload: bytes) -> None:
        head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + bytes(4)
        self._writer.write(head + payload)

    async def _frame(self) -> tuple[int, int, bytes]:
        head = await self._reader.readexactly(9)
        return head[3], head[4], await self._reader.readexactly(int.from_bytes(head[:3]))

    async def ping(self, number: int) -> int | None:
        """Pings once. Returns None if the server answers, or the error code with which it hangs
        up."""
        self._send(PING, 0, struct.pack(">Q", number))
        while True:
            kind, flags, payload = await self._frame()
            if kind == SETTINGS and not flags & ACK:
                self._send(SETTINGS, ACK, b"")
            elif kind == PING and flags & ACK:
                return None
            elif kind == GOAWAY:
                return int.from_bytes(payload[4:8])


@asynccontextmanager
async def idle(suite: Suite) -> AsyncIterator[Connection]:
    host, port = suite.addresses["assets"].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


@pytest.mark.long
async def test_an_idle_connection_may_be_pinged_again_and_again(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LEAST_PING_INTERVAL_MS", 100)
    await suite.serve("assets")
    async with idle(suite) as connection, asyncio.timeout(30):
        for number in range(MANY):
            assert await connection.ping(number) is None
            await asyncio.sleep(0.3)


async def test_a_flood_of_pings_ends_the_connection(suite: Suite) -> None:
    await suite.serve("assets")
    async with idle(suite) as connection, asyncio.timeout(30):
        for number in range(MANY):
            if (code := await connection.ping(number)) is not None:
                break
        assert code == ENHANCE_YOUR_CALM


def test_the_shortest_pause_of_go_and_java_is_long_enough() -> None:
    assert server.LEAST_PING_INTERVAL_MS <= SHORTEST_OF_GO_AND_JAVA_MS / 2
