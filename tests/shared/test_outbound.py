"""Addresses that callers name are called only if they are public, or in a network that the operator
allows."""

import asyncio
import gzip
import hashlib
import itertools
import socket
import ssl
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.outbound import Outbound, OutboundFailed, OutboundRefused, client, parse_url
from shared.outbound.client import EXCERPT_BYTES, seconds_to_wait
from shared.outbound.guard import Address, Rules
from shared.settings import Settings, networks
from tests.receiver import Request, receiving, replying

PUBLIC = ip_address("93.184.215.14")
HERE = ip_address("127.0.0.1")


def settings(allowed: str = "", **more: Any) -> Settings:
    return Settings(outbound_allowed_networks=allowed, **more)


class Names:
    """A resolver that gives the test's answers one after the other, and repeats the last one."""

    def __init__(self, *answers: Sequence[Address]) -> None:
        self._answers = itertools.chain(answers, itertools.repeat(answers[-1]))
        self.asked: list[str] = []

    async def __call__(self, name: str) -> Sequence[Address]:
        self.asked.append(name)
        return next(self._answers)


INSIDE = [
    "127.0.0.1",
    "127.8.9.1",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "169.254.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "192.88.99.1",
    "168.63.129.16",
    "::",
    "::1",
    "fe80::1",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "2001:db8::1",
    "3fff::1",
    "100::1",
    "2002:7f00:1::1",
    "2002:808:808::1",
    "2001::1",
    "2001:0:7f00:1::",
    "64:ff9b:1::7f00:1",
    "5f00::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "::8.8.8.8",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
]
OUTSIDE = [
    "8.8.8.8",
    "93.184.215.14",
    "172.15.0.1",
    "172.32.0.1",
    "100.128.0.1",
    "192.0.1.1",
    "2606:2800:220:1::1",
    "2a00:1450:4001::200e",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_that_is_not_public_is_blocked(address: str) -> None:
    assert not Rules().allows(ip_address(address))


@pytest.mark.parametrize("address", OUTSIDE)
def test_a_public_address_is_allowed(address: str) -> None:
    assert Rules().allows(ip_address(address))


def test_no_address_is_public_that_the_standard_library_knows_to_be_special() -> None:
    samples = [ip_address(f"{first}.{second}.0.1") for first in range(256) for second in range(256)]
    assert [a for a in samples if Rules().allows(a) and not a.is_global] == []


def test_an_allowed_network_is_open_in_every_spelling_and_nothing_else_is() -> None:
    rules = Rules([ip_network("127.0.0.0/8"), ip_network("fd00:1::/32")])
    for address in ("127.0.0.1", "::ffff:127.0.0.1", "fd00:1::1"):
        assert rules.allows(ip_address(address)), address
    for address in ("10.0.0.1", "::1", "fd00:2::1", "::ffff:10.0.0.1"):
        assert not rules.allows(ip_address(address)), address


def test_a_setting_that_is_no_network_stops_the_start() -> None:
    assert networks(" 10.0.0.0/8, fd00::/8 ,") == [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
    for wrong in ("10.0.0.1/8", "inside", "10.0.0.0/8;fd00::/8"):
        with pytest.raises(ValueError):
            settings(wrong)


ODD = [
    "",
    "example.com",
    "//example.com/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "javascript:alert(1)",
    "http:example.com",
    "http:/example.com",
    "http:///path",
    "http://",
    " http://example.com/",
    "http://example.com/ ",
    "http://exa mple.com/",
    "http://example.com/a b",
    "http://example.com/\r\nHost: x",
    "http://example.com\n/",
    "http://example.com/\x00",
    "http://example.com/ä",
    "http://example.com\\@inside/",
    "http://example.com/\\",
    "http://example.com/#fragment",
    "http://user@example.com/",
    "http://u:p@example.com/",
    "http://@example.com/",
    "http://example.com:/",
    "http://example.com:x/",
    "http://example.com:99999/",
    "http://example.com:-1/",
    "http://example.com:+80/",
    "http://example.com./",
    "http://.example.com/",
    "http://exam..ple.com/",
    "http://-a.com/",
    "http://a-.com/",
    f"http://{'a' * 64}.com/",
    f"http://{'a.' * 127}com/",
    "http://%31%32%37.0.0.1/",
    "http://exa%6dple.com/",
    "http://a,b.com/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.1/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://127.0.0.01/",
    "http://127.0.0.1./",
    "http://1.2.3.256/",
    "http://1.2.3.4.5/",
    "http://example.0x1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
    "http://exⓐmple.com/",
    "http://ex\u00adample.com/",
    "http://١٢٧.0.0.1/",
    "http://[::1/",
    "http://::1/",
    "http://[::1]x/",
    "http://[fe80::1%25lo]/",
    "http://[fe80::1%lo]/",
    "http://[v1.x]/",
    "http://[::1]:x/",
    "http://[127.0.0.1]/",
    "http://example.com:22/",
    "http://example.com:25/",
    "http://example.com:6379/",
    "http://example.com:5432/",
    "http://example.com:0/",
    "http://example.com/" + "a" * 2000,
]


@pytest.mark.parametrize("url", ODD)
async def test_an_odd_spelling_is_refused_before_anybody_is_asked(url: str) -> None:
    names = Names([PUBLIC])
    async with Outbound(settings(), resolve=names) as out:
        with pytest.raises(OutboundRefused):
            await out.check_url(url)
        with pytest.raises(OutboundRefused):
            await out.post(url, b"", {}, timeout=2)
    assert names.asked == []


def test_a_plain_spelling_is_read_one_way() -> None:
    read = {
        "https://Example.COM": ("https", "example.com", 443, "/", "example.com"),
        "http://example.com:8080?a=b": ("http", "example.com", 8080, "/?a=b", "example.com:8080"),
        "https://bücher.example/x%20y?q=[1]": (
            "https",
            "xn--bcher-kva.example",
            443,
            "/x%20y?q=[1]",
            "xn--bcher-kva.example",
        ),
        "https://[2606:2800:0220:0001::0001]:8443/": (
            "https",
            "2606:2800:220:1::1",
            8443,
            "/",
            "[2606:2800:220:1::1]:8443",
        ),
        "https://93.184.215.14:443/": ("https", "93.184.215.14", 443, "/", "93.184.215.14"),
    }

    for url, expected in read.items():
        target = parse_url(url)
        assert (
            target.scheme,
            target.host,
            target.port,
            target.path,
            target.host_header,
        ) == expected


async def test_only_https_where_that_is_asked_for() -> None:
    async with Outbound(settings(), https_only=True, resolve=Names([PUBLIC])) as out:
        await out.check_url("https://example.com/")
        with pytest.raises(OutboundRefused, match="https"):
            await out.check_url("http://example.com/")


# 127.0.0.1 in every way that a URL can name it; the canary's port is filled in.
WAYS_HOME = [
    "http://127.0.0.1:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[64:ff9b::127.0.0.1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://localhost:{port}/",
    "http://LOCALHOST:{port}/",
    "http://localhost.:{port}/",
    "http://0.0.0.0:{port}/",
    "http://0:{port}/",
    "http://[::]:{port}/",
    "http://[::1]:{port}/",
    "http://127.1:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://example.com@127.0.0.1:{port}/",
    "http://example.com\\@127.0.0.1:{port}/",
    "http://①②⑦.0.0.1:{port}/",
]


async def test_no_spelling_of_this_machine_is_connected_to() -> None:
    async with receiving() as canary, receiving(host="::1", port=canary.port) as canary6:
        async with Outbound(settings()) as out:
            for way in WAYS_HOME:
                url = way.format(port=canary.port)
                with pytest.raises(OutboundRefused):
                    await out.check_url(url)
                with pytest.raises(OutboundRefused):
                    await out.post(url, b"", {}, timeout=5)
        assert (canary.connections, canary6.connections) == (0, 0)


async def test_a_name_that_points_inside_when_it_is_used_is_not_connected_to() -> None:
    async with receiving() as canary:
        names = Names([PUBLIC], [HERE])
        async with Outbound(settings(), resolve=names) as out:
            url = f"http://rebinding.example:{canary.port}/"
            await out.check_url(url)
            with pytest.raises(OutboundRefused):
                await out.post(url, b"", {}, timeout=2)
        assert names.asked == ["rebinding.example"] * 2
        assert canary.connections == 0


async def test_a_name_is_asked_for_once_and_what_was_judged_is_what_is_connected_to() -> None:
    """If the socket got the name, it would be looked up again after the check."""
    async with receiving() as here, receiving(host="127.0.0.2", port=here.port) as elsewhere:
        names = Names([ip_address("127.0.0.2")], [HERE])
        async with Outbound(settings("127.0.0.2/32"), resolve=names) as out:
            answer = await out.post(f"http://localhost:{here.port}/", b"x", {}, timeout=2)
        assert answer.status == 204
        assert (elsewhere.connections, here.connections, names.asked) == (1, 0, ["localhost"])


@pytest.mark.parametrize(
    "order", [[PUBLIC, HERE], [HERE, PUBLIC], [ip_address("::ffff:127.0.0.1")], []]
)
async def test_a_name_with_one_address_inside_is_refused_whole(order: list[Address]) -> None:
    async with receiving() as canary, Outbound(settings(), resolve=Names(order)) as out:
        for act in (out.check_url, lambda url: out.post(url, b"", {}, timeout=2)):
            with pytest.raises(OutboundRefused):
                await act(f"http://mixed.example:{canary.port}/")
        assert canary.connections == 0


async def test_a_refusal_does_not_tell_whether_the_name_exists() -> None:
    texts = set()
    for names in (Names([HERE]), Names([ip_address("10.1.2.3"), PUBLIC]), Names([])):
        async with Outbound(settings(), resolve=names) as out:
            with pytest.raises(OutboundRefused) as refused:
                await out.check_url("https://db.internal.example/")
            texts.add(str(refused.value))
    assert len(texts) == 1
    assert "10.1" not in texts.pop()


async def test_name_servers_that_are_away_refuse_nothing_at_save() -> None:
    async def away(_name: str) -> Sequence[Address]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    async with Outbound(settings(), resolve=away) as out:
        await out.check_url("https://example.com/")
        with pytest.raises(OutboundFailed) as failed:
            await out.post("https://example.com/", b"", {}, timeout=2)
        assert failed.value.error_class == "CONNECT"


async def test_slow_name_servers_delay_no_other_name(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def asked(name: str, *_: Any, **__: Any) -> list[Any]:
        if name.startswith("slow"):
            go.wait(60)
        return [(0, 0, 0, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    async with Outbound(settings("127.0.0.0/8")) as out:
        slow = [
            asyncio.create_task(out.check_url(f"https://slow{number}.test/"))
            for number in range(256)
        ]
        await asyncio.sleep(0)
        await out.check_url("https://quick.test/")
        assert not any(task.done() for task in slow), "it came before those that began before it"
        go.set()
        await asyncio.gather(*slow)


async def test_a_redirect_is_an_answer_that_nobody_follows() -> None:
    async with receiving() as canary, receiving(replying(302, location=canary.url)) as receiver:
        async with Outbound(settings("127.0.0.0/8")) as out:
            assert (await out.post(receiver.url, b"", {}, timeout=2)).status == 302
            with pytest.raises(OutboundFailed) as failed:
                await out.fetch(receiver.url, Path("/nonexistent"), max_bytes=10, timeout=2)
            assert (failed.value.error_class, failed.value.status) == ("STATUS", 302)
        assert canary.connections == 0


async def test_proxies_and_cookies_play_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as proxy, receiving(replying(200, set_cookie="a=b")) as receiver:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with Outbound(settings("127.0.0.0/8")) as out:
            for _ in range(2):
                await out.post(receiver.url, b"", {}, timeout=2)
        assert proxy.connections == 0
        assert (len(receiver.requests), receiver.connections) == (2, 2)
        assert not any("cookie" in request.headers for request in receiver.requests)


async def test_body_and_headers_arrive_and_the_host_is_the_name() -> None:
    async with receiving(replying(200, b"thanks")) as receiver:
        async with Outbound(settings("127.0.0.0/8"), resolve=Names([HERE])) as out:
            url = f"http://hooks.example:{receiver.port}/a?b=c"
            answer = await out.post(url, b"body", {"X-Of-Ours": "1"}, timeout=2)
        assert (answer.status, answer.excerpt) == (200, b"thanks")
        [request] = receiver.requests
        assert (request.line, request.body) == ("POST /a?b=c HTTP/1.1", b"body")
        assert request.headers["host"] == f"hooks.example:{receiver.port}"
        assert request.headers["x-of-ours"] == "1"


async def endless(_request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 X\r\ncontent-type: text/plain\r\n\r\n")
    for _ in range(1000):
        writer.write(b"x" * 65536)
        await writer.drain()


async def endless_headers(_request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 X\r\n")
    for number in range(100_000):
        writer.write(f"x-{number}: {'y' * 100}\r\n".encode())
        await writer.drain()


async def silent(_request: Request, writer: asyncio.StreamWriter) -> None:
    await writer.wait_closed()


def dripping(start: bytes, drop: bytes, *, pause: float = 0.02) -> Any:
    """Returns a server's reply that never ends."""

    async def reply(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(pause)

    return reply


OK, CHUNKED = b"HTTP/1.1 200 X\r\n", b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n"
INTERIM = b"HTTP/1.1 103 X\r\n\r\n"
TRICKLE = dripping(OK + b"\r\n", b"x")


async def nonsense(_request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-secret-banner\r\n\r\n")


async def given_up(
    reply: Any, folder: Path, *, timeout: float, max_bytes: int = 10_000_000
) -> OutboundFailed:
    """Returns how a fetch of this server's reply fails; nothing may be left in the folder."""
    async with receiving(reply) as receiver, Outbound(settings("127.0.0.0/8")) as out:
        with pytest.raises(OutboundFailed) as failed:
            await out.fetch(receiver.url, folder / "x", max_bytes=max_bytes, timeout=timeout)
    assert list(folder.iterdir()) == []
    return failed.value


async def test_of_a_huge_answer_only_the_beginning_is_read() -> None:
    async with receiving(endless) as receiver, Outbound(settings("127.0.0.0/8")) as out:
        answer = await out.post(receiver.url, b"", {}, timeout=5)
        assert answer.excerpt == b"x" * EXCERPT_BYTES


def saying(answer: bytes, *, then: str = "closes") -> Any:
    """Returns a server's reply of these bytes, after which the connection is closed, aborted or
    silent."""

    async def reply(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        if then == "aborts":
            writer.transport.abort()
        elif then == "keeps silent":
            await writer.wait_closed()

    return reply


LONG = b"content-length: 900\r\n\r\n"
DECIDED = {
    "a body that is slow": (dripping(OK + LONG, b"x"), 200),
    "a body that never comes": (saying(OK + LONG, then="keeps silent"), 200),
    "a body that breaks off": (saying(OK + LONG + b"thanks"), 200),
    "a reset after the head": (saying(OK + LONG, then="aborts"), 200),
    "chunks that break off": (saying(CHUNKED + b"6\r\ntha"), 200),
    "chunks that are none": (saying(CHUNKED + b"no size\r\n"), 200),
    "chunks that never end": (saying(CHUNKED + b"6\r\nthanks\r\n", then="keeps silent"), 200),
    "no length, never closed": (saying(OK + b"\r\nthanks", then="keeps silent"), 200),
    "no content": (saying(b"HTTP/1.1 204 X\r\n\r\n", then="keeps silent"), 204),
    "no content, with some": (saying(b"HTTP/1.1 204 X\r\n\r\nthanks"), 204),
    "accepted, no reason": (saying(b"HTTP/1.1 202\r\n\r\n"), 202),
    "an old version": (saying(b"HTTP/1.0 200 OK\r\n\r\nthanks"), 200),
    "1xx before it": (saying(INTERIM * 3 + b"HTTP/1.1 100 X\r\n\r\n" + OK + LONG), 200),
    "packed": (saying(OK + b"content-encoding: gzip\r\n" + LONG + b"no gzip"), 200),
    "a failure that is slow": (dripping(b"HTTP/1.1 503 X\r\n" + LONG, b"x"), 503),
}


@pytest.mark.parametrize("what", DECIDED)
async def test_the_head_of_an_answer_decides_whatever_its_body_does(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_EXCERPT_SECONDS", 0.2)
    reply, status = DECIDED[what]
    async with receiving(reply) as receiver, Outbound(settings("127.0.0.0/8")) as out:
        answer = await out.post(receiver.url, b"x", {}, timeout=30)
    assert (answer.status, answer.retry_after) == (status, 0)


async def test_time_that_runs_out_after_the_head_undoes_nothing() -> None:
    async with (
        receiving(dripping(OK + LONG, b"x")) as receiver,
        Outbound(settings("127.0.0.0/8")) as out,
    ):
        assert (await out.post(receiver.url, b"x", {}, timeout=0.5)).status == 200


async def test_an_answer_without_its_whole_head_is_none() -> None:
    for reply in (
        saying(OK),
        saying(OK + b"content-length: 9", then="aborts"),
        saying(INTERIM),
        saying(b""),
    ):
        async with receiving(reply) as receiver, Outbound(settings("127.0.0.0/8")) as out:
            with pytest.raises(OutboundFailed) as failed:
                await out.post(receiver.url, b"x", {}, timeout=30)
        assert (failed.value.error_class, failed.value.status) == ("PROTOCOL", 0)


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("600", 600, 600),
        ("0", 0, 0),
        (" 7 ", 7, 7),
        ("9" * 400, 1e99, float("inf")),
        ("in a minute", 0, 0),
        ("-5", 0, 0),
        ("1.5", 0, 0),
        ("", 0, 0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0, 0),
        ("Sun, 06 Nov 99999 08:49:37 GMT", 0, 0),
        ("\u0661", 0, 0),
        pytest.param(
            format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True),
            3600,
            7200,
            id="a date",
        ),
        pytest.param(
            (datetime.now(UTC) + timedelta(hours=2)).strftime("%c"), 3600, 7200, id="a date of old"
        ),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str, least: float, most: float) -> None:
    assert least <= seconds_to_wait(header.strip().lower()) <= most


@pytest.mark.parametrize(
    ("reply", "error_class"),
    [
        (silent, "TIMEOUT"),
        (TRICKLE, "TIMEOUT"),
        (dripping(b"", INTERIM), "TIMEOUT"),
        (endless_headers, "PROTOCOL"),
        (nonsense, "PROTOCOL"),
    ],
    ids=["silent", "trickle", "interim", "endless headers", "nonsense"],
)
async def test_a_receiver_that_does_not_answer_is_left(
    reply: Any, error_class: str, tmp_path: Path
) -> None:
    seconds = 0.4 if error_class == "TIMEOUT" else 30
    failure = await given_up(reply, tmp_path, timeout=seconds)
    assert failure.error_class == error_class
    assert "banner" not in str(failure)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (silent, "nothing came for 0.3 s"),
        (TRICKLE, "slower than 10 kB/s"),
        (dripping(OK + b"X: ", b"x"), "slower than 10 kB/s"),
        (dripping(b"", INTERIM), "slower than 10 kB/s"),
        (dripping(CHUNKED + b"1", b";x"), "slower than 10 kB/s"),
    ],
    ids=["silent", "body", "head", "interim", "chunk"],
)
async def test_a_file_that_does_not_come_is_not_waited_for(
    reply: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_SILENT_SECONDS", 0.3)
    monkeypatch.setattr(client, "_CONNECT_SECONDS", 1.0)
    failure = await given_up(reply, tmp_path, timeout=30)
    assert failure.error_class == "TIMEOUT" and text in str(failure)


@pytest.mark.parametrize(
    "reply",
    [dripping(b"", INTERIM * 1000, pause=0), dripping(CHUNKED, b"1\r\nx\r\n" * 1000, pause=0)],
    ids=["interim", "chunks"],
)
async def test_a_server_that_only_makes_work_is_left_at_once(reply: Any, tmp_path: Path) -> None:
    assert (await given_up(reply, tmp_path, timeout=5)).error_class == "PROTOCOL"


async def test_a_file_in_many_honest_pieces_is_whole(tmp_path: Path) -> None:
    piece = b"200\r\n" + b"x" * 512 + b"\r\n"

    async def pieces(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n" + piece * 4000 + b"0\r\n\r\n"
        )

    async with receiving(pieces) as receiver, Outbound(settings("127.0.0.0/8")) as out:
        fetched = await out.fetch(receiver.url, tmp_path / "x", max_bytes=10_000_000, timeout=30)
    assert fetched.size == 4000 * 512


async def test_nobody_there_is_said_without_details() -> None:
    async with receiving() as gone:
        pass
    async with Outbound(settings("127.0.0.0/8")) as out:
        with pytest.raises(OutboundFailed) as failed:
            await out.post(gone.url, b"", {}, timeout=2)
    assert (failed.value.error_class, str(failed.value)) == ("CONNECT", "no connection to the host")


async def test_a_fetch_is_whole_and_measured(tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    async with receiving(replying(200, data, content_type="Image/JPEG; q=1")) as receiver:
        async with Outbound(settings("127.0.0.0/8")) as out:
            fetched = await out.fetch(receiver.url, tmp_path / "x", max_bytes=len(data), timeout=5)
    assert (tmp_path / "x").read_bytes() == data
    assert (fetched.size, fetched.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert fetched.content_type == "image/jpeg"


@pytest.mark.parametrize("reply", [replying(200, b"x" * 1001), endless])
async def test_a_fetch_beyond_its_limit_leaves_nothing(reply: Any, tmp_path: Path) -> None:
    assert (await given_up(reply, tmp_path, timeout=5, max_bytes=1000)).error_class == "TOO_LARGE"


async def test_a_fetch_that_breaks_off_or_is_packed_leaves_nothing(tmp_path: Path) -> None:
    async def broken(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 100\r\n\r\nhalf")

    bomb = replying(200, gzip.compress(bytes(10_000_000)), content_encoding="gzip")
    for reply in (broken, bomb):
        async with receiving(reply) as receiver, Outbound(settings("127.0.0.0/8")) as out:
            with pytest.raises(OutboundFailed) as failed:
                await out.fetch(receiver.url, tmp_path / "x", max_bytes=100_000, timeout=5)
        assert failed.value.error_class == "PROTOCOL"
    assert list(tmp_path.iterdir()) == []


def certificate(directory: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """Makes a self-signed certificate for `name`, as PEM and in a server's context."""
    key = ec.generate_private_key(ec.SECP256R1())
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(named)
        .issuer_name(named)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path, key_path = directory / f"{name}.pem", directory / f"{name}.key"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path, key_path)
    return path, context


async def test_tls_is_checked_against_the_name(tmp_path: Path) -> None:
    authority, context = certificate(tmp_path, "hooks.example")
    seen: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: seen.append(name)
    trusting = settings("127.0.0.0/8", outbound_ca_file=authority)

    async with receiving(tls=context) as receiver:
        async with Outbound(trusting, resolve=Names([HERE])) as out:
            url = f"https://hooks.example:{receiver.port}/"
            assert (await out.post(url, b"", {}, timeout=5)).status == 204
            with pytest.raises(OutboundFailed) as failed:
                await out.post(f"https://other.example:{receiver.port}/", b"", {}, timeout=5)
            assert failed.value.error_class == "TLS"

        async with Outbound(settings("127.0.0.0/8"), resolve=Names([HERE])) as out:
            with pytest.raises(OutboundFailed) as failed:
                await out.post(url, b"", {}, timeout=5)
            assert failed.value.error_class == "TLS"
    assert seen[0] == "hooks.example"
    assert len(receiver.requests) == 1
