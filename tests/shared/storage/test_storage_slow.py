"""Slow clients, and clients that frame a request in two ways, don't close the disk backend's port
to others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn

from shared.storage import ObjectNotFound, admission, connections, exchange, objects, open_disk
from shared.storage.connections import BoundedConnection
from shared.storage.disk import DiskStorage
from shared.storage.http import build_config
from tests.suite import browser

HOUR = timedelta(hours=1)
MIB = 1024 * 1024
FORM = (
    b"POST /o HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data;"
    b" boundary=b\r\nContent-Length: 9999999\r\n\r\n"
)
FIELD = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
TRICKLE = FORM + FIELD


class Few(BoundedConnection):
    most = 40
    header_seconds = 600  # a connection is closed only when another client needs its place


@dataclass
class Serving:
    disk: DiskStorage
    port: int
    server: uvicorn.Server
    opened: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def open(self, sent: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.opened.append(writer)
        writer.write(sent)
        return reader, writer

    def proven(self) -> int:
        """Returns the number of connections whose client has shown a valid signature."""
        return sum(each.waited() == 0 for each in self.server.server_state.connections)  # type: ignore[union-attr]

    async def told(self, sent: bytes) -> tuple[int, bytes]:
        """Sends bytes; returns the answer's status, and everything up to the end of the
        connection."""
        reader, _ = await self.open(sent)
        answer = b""
        with suppress(ConnectionError):
            while piece := await reader.read(65536):
                answer += piece
        return int(answer.split()[1]) if answer else 0, answer

    def put(self, key: str, length: int) -> bytes:
        """Returns a signed upload without its body."""
        signed = self.disk.sign_put(key, length=length, content_type="image/png", expires_in=HOUR)
        url = urlsplit(signed.url)
        head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        return f"{head}Content-Length: {length}\r\n\r\n".encode()

    def get(self, key: str) -> bytes:
        url = urlsplit(self.disk.sign_get(key, expires_in=HOUR))
        return f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@asynccontextmanager
async def serving(
    folder: Path, kind: type[BoundedConnection] = BoundedConnection
) -> AsyncIterator[Serving]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    port = listener.getsockname()[1]
    disk = open_disk(folder / "store", base_url=f"http://127.0.0.1:{port}", secret=b"s" * 32)
    server = uvicorn.Server(build_config(disk, kind))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    here = Serving(disk, port, server)
    try:
        yield here
    finally:
        for writer in here.opened:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        server.should_exit = True
        await task
        await disk.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def trickling(writer: asyncio.StreamWriter, drop: bytes = b"x") -> None:
    """Sends drop by drop, never silent for long, until the connection ends."""
    with suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(0.02)


async def ended(reader: asyncio.StreamReader) -> bytes:
    answer = b""
    with suppress(ConnectionError):
        async with asyncio.timeout(30):
            while piece := await reader.read(MIB):
                answer += piece
    return answer


@pytest.mark.parametrize(
    "start", [TRICKLE, FORM + b"--b\r\nContent-Dispo"], ids=["value", "header"]
)
async def test_a_form_that_trickles_unsigned_is_sent_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(objects, "_UNSIGNED_SECONDS", 0.5)
    monkeypatch.setattr(exchange, "_LINGER_SECONDS", 0.1)
    async with serving(tmp_path) as here:
        reader, writer = await here.open(start)
        sending = asyncio.create_task(trickling(writer))
        assert (await ended(reader)).startswith(b"HTTP/1.1 408")
        writer.close()
        await sending


async def test_a_form_without_end_before_its_file_is_refused(tmp_path: Path) -> None:
    fields = b"".join(
        f'--b\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{"x" * 16_000}\r\n'.encode()
        for n in range(10)
    )
    async with serving(tmp_path) as here, browser() as http:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = await http.post(f"{here.url}/o", content=fields + b"--b--\r\n", headers=headers)
    assert answer.status_code == 400 and "65536 bytes before its file" in answer.text


@pytest.mark.parametrize("part", [False, True], ids=["put", "part"])
async def test_a_signed_upload_that_trickles_is_given_up_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: bool
) -> None:
    monkeypatch.setattr(objects, "_BEHIND_SECONDS", 0.5)
    monkeypatch.setattr(exchange, "_LINGER_SECONDS", 0.1)
    async with serving(tmp_path) as here:
        if part:
            upload = await here.disk.start_multipart("a/b", content_type="image/png")
            url = urlsplit(here.disk.sign_part("a/b", upload, 1, length=MIB, expires_in=HOUR).url)
            headers = f"Host: x\r\nContent-Length: {MIB}"
            head = f"PUT {url.path}?{url.query} HTTP/1.1\r\n{headers}\r\n\r\n".encode()
        else:
            head = here.put("a/b", MIB)

        # A fast start earns no credit: a second's worth of data comes at once.
        reader, writer = await here.open(head + b"x" * 16 * 1024 * 10)
        sending = asyncio.create_task(trickling(writer))
        assert (await ended(reader)).startswith(b"HTTP/1.1 408")

        writer.close()
        await sending
        with pytest.raises(ObjectNotFound):
            await here.disk.stat("a/b")


async def test_a_reader_that_reads_nothing_is_left(tmp_path: Path) -> None:
    class Hasty(BoundedConnection):
        drain_seconds = 0.3

    async with serving(tmp_path, Hasty) as here:
        await here.disk.put("a/b", b"x" * 32 * MIB, content_type="image/png")
        for sent in (
            here.get("a/b"),
            here.get("a/b") + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", here.port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.sendall(sent)
                await until(lambda: here.server.server_state.connections)
                await until(lambda: not here.server.server_state.connections)


async def test_a_reader_that_takes_it_in_bits_gets_the_whole_and_owes_nothing(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as here:
        await here.disk.put("a/b", b"x" * 8 * MIB, content_type="image/png")
        reader, writer = await here.open(here.get("a/b"))
        await reader.readuntil(b"\r\n\r\n")
        [connection] = here.server.server_state.connections
        assert isinstance(connection, BoundedConnection)

        await until(lambda: connection._drain_due)
        assert await reader.readexactly(8 * MIB) == b"x" * 8 * MIB
        await until(lambda: connection._drain_due is None)
        writer.write(AFTER)
        assert (await reader.readline()).split()[1] == b"200"


async def test_slow_and_idle_connections_give_their_places_to_new_ones(tmp_path: Path) -> None:
    async with serving(tmp_path, Few) as here, browser() as http:
        await here.disk.put("a/b", b"12345", content_type="image/png")
        half = Few.most // 2
        held = [await here.open() for _ in range(half)] + [
            await here.open(TRICKLE) for _ in range(half)
        ]
        await until(lambda: len(here.server.server_state.connections) == Few.most)
        for _ in range(3):
            assert (await http.get(here.disk.sign_get("a/b", expires_in=HOUR))).content == b"12345"

        await here.open()
        assert await ended(held[0][0]) == b"", "the one that waited longest went"


async def test_an_upload_under_way_is_not_closed_for_a_flood(tmp_path: Path) -> None:
    async with serving(tmp_path, Few) as here:
        reader, writer = await here.open(here.put("a/b", 10) + b"12345")
        await until(lambda: here.proven() == 1)
        for _ in range(Few.most * 3):
            await here.open(TRICKLE)
        writer.write(b"67890")
        assert (await reader.readline()).split()[1] == b"200"


async def test_unsigned_requests_on_every_place_give_way_and_signed_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MOST_REQUESTS", 10)
    monkeypatch.setattr(connections, "_NOT_YET", 0.0)
    async with serving(tmp_path) as here, browser() as http:
        await here.disk.put("a/b", b"12345", content_type="image/png")
        url = here.disk.sign_get("a/b", expires_in=HOUR)
        slow = [await here.open(TRICKLE) for _ in range(10)]
        serving_now = here.server.server_state.tasks
        await until(lambda: len(serving_now) == 10)
        assert (await http.get(url)).status_code == 200

        puts = [await here.open(here.put(f"a/{number}", 10) + b"12345") for number in range(10)]
        await until(lambda: here.proven() == 10)
        assert [await ended(reader) for reader, _ in slow] == [b""] * 10, "they gave way"
        for _ in range(3):
            busy = await http.get(url)
            assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
            assert set(busy.json()) == {"error", "next"}
            assert (await http.get(f"{here.url}/healthz")).status_code == 200

        for reader, writer in puts:
            writer.write(b"67890")
            assert (await reader.readline()).split()[1] == b"200"
        assert (await http.get(url)).status_code == 200


async def test_one_address_behind_a_proxy_does_not_take_every_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MOST_OF_ADDRESS", 3)
    async with serving(tmp_path) as here, browser() as http:
        await here.disk.put("a/b", b"12345", content_type="image/png")
        url = here.disk.sign_get("a/b", expires_in=HOUR)
        for address, same, other in (
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("2001:db8::1", "2001:db8::ffff", "2001:db8:0:1::1"),
        ):
            forwarded = TRICKLE.replace(
                b"Host: x", f"Host: x\r\nX-Forwarded-For: {address}".encode()
            )
            held = [await here.open(forwarded) for _ in range(3)]
            await until(lambda: len(here.server.server_state.tasks) == 3)
            answers = [
                await http.get(url, headers={"X-Forwarded-For": each} if each else {})
                for each in (same, other, "")
            ]
            assert [answer.status_code for answer in answers] == [429, 200, 200]
            assert answers[0].headers["retry-after"] == "1"

            for _, writer in held:
                writer.close()
            await until(lambda: not here.server.server_state.tasks)


async def test_a_body_that_nobody_wanted_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte of such a body once ended the time limit for the next request's headers, and nothing
    restarted it."""
    monkeypatch.setattr(exchange, "_LINGER_SECONDS", 0.3)
    async with serving(tmp_path) as here:
        for path in ("/healthz", "/nowhere", "/o/public/nothing"):
            head = f"GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode()
            reader, _ = await here.open(head + b"x")
            answer = await ended(reader)
            assert b"connection: close" in answer.lower()


CHUNKED = b"Transfer-Encoding: chunked\r\n"
AFTER = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
ODD = {
    "both": b"POST /o HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "both, nothing sent": (
        b"POST /o HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n" + CHUNKED + b"\r\n"
    ),
    "both, sent by length": (
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"Content-Length: 5\r\n\r\nhello"
    ),
    "both, no body": (
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"Content-Length: 0\r\n\r\n0\r\n\r\n"
    ),
    "chunks in 1.0": b"POST /o HTTP/1.0\r\nHost: x\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "two lengths": (
        b"POST /o HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"
    ),
    "two lengths in one": b"POST /o HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 6\r\n\r\nhello",
    "a length with a sign": b"POST /o HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello",
    "a length that is none": b"POST /o HTTP/1.1\r\nHost: x\r\nContent-Length: five\r\n\r\nhello",
    "an enormous length": (
        b"POST /o HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\nhello"
    ),
    "another coding": (
        b"POST /o HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
    ),
    "chunked twice": b"POST /o HTTP/1.1\r\nHost: x\r\n" + CHUNKED * 2 + b"\r\n0\r\n\r\n",
    "a size that is none": (
        b"POST /o HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"\r\nxyz\r\nhello\r\n0\r\n\r\n"
    ),
    "a size with a sign": (
        b"POST /o HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"\r\n-5\r\nhello\r\n0\r\n\r\n"
    ),
    "a size in 0x": b"POST /o HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a space before the colon": b"POST /o HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\nhello",
    "a header folded first": b"POST /o HTTP/1.1\r\n Host: x\r\nContent-Length: 5\r\n\r\nhello",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("what", ODD)
async def test_what_could_be_read_in_two_ways_is_refused_and_the_connection_closed(
    tmp_path: Path, what: str
) -> None:
    async with serving(tmp_path) as here:
        async with asyncio.timeout(5):  # at once, not when a time limit has passed
            status, answer = await here.told(ODD[what] + AFTER)
    assert status == 400 and answer.count(b"HTTP/1.1 ") == 1, answer


async def test_one_length_said_twice_is_one_length(tmp_path: Path) -> None:
    async with serving(tmp_path) as here:
        head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        sent = head + b"Content-Length: 5\r\n" * 2 + b"\r\nhello"
        status, answer = await here.told(sent + AFTER)
    assert (status, answer.count(b"HTTP/1.1 ")) == (200, 1)


async def test_a_chunk_that_is_broken_after_the_answer_began_only_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_LINGER_SECONDS", 20)
    async with serving(tmp_path) as here:
        reader, writer = await here.open(
            b"GET /nowhere HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"\r\n5\r\nhel"
        )
        assert (await reader.readline()).split()[1] == b"404"
        writer.write(b"loWRONG\r\n\r\n")
        assert (await ended(reader)).count(b"HTTP/1.1 ") == 0
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"{here.url}/healthz")).status_code == 200
