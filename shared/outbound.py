"""Makes all HTTP requests to URLs that callers name: webhooks, imports by URL.

    async with Outbound(settings) as out:
        await out.check_url(url)                                             when it is saved
        answer = await out.post(url, body, headers, timeout=10)              when it is used
        fetched = await out.fetch(url, path, max_bytes=..., timeout=60)

The address that is connected to decides. A backend below the HTTP client resolves the name, checks
every address, and connects to one of the checked ones, so a name that points elsewhere a moment
later (DNS rebinding) gains nothing. SNI and Host keep the name. There are no redirects, proxies,
cookies, kept connections or decompression, so an answer can't lead the client elsewhere.

A name with several addresses is refused if any of them is refused: a name that points both outside
and inside is broken or malicious, and picking the good addresses would hide that. A refusal never
reveals whether the name exists.
"""

import asyncio
import functools
import hashlib
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import certifi
import httpcore
import idna

from shared.settings import Settings, networks

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str], Awaitable[Sequence[Address]]]

MAX_URL = 2000
EXCERPT_BYTES = 1000  # read from the answer to a POST; the rest is not read
_EXCERPT_SECONDS = 1.0  # to read them, after the head of the answer
_CONNECT_SECONDS = 5.0
_HEAD_BYTES = 64 * 1024  # the largest head of an answer, including all 1xx answers before it
# A file may arrive in 1000 pieces, plus one per 256 bytes.
_PIECES, _PIECE_BYTES = (
    1000,
    256,
)
_SILENT_SECONDS = 10.0  # the longest pause of a file's server
_SLOWEST = 10_000  # least average bytes per second, after the time for a connection and a pause
# Threads, started when needed; the event loop's own few must not wait for a slow name server. A
# thread may wait longer than the attempt that started it, so there are more threads than concurrent
# webhooks.
_RESOLVERS = 512
_MOST_TRIED = 4  # addresses of one name

_URL = re.compile(
    r"""(?P<scheme>[A-Za-z]+)://(?P<authority>[^/?#]*)(?P<target>[/?][!"$-\[\]-~]*|)"""
)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:@%\\]+)(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

# Networks without public servers: this network, private, carrier-grade NAT, loopback, link-local
# (with the clouds' metadata), protocol assignments, documentation, 6to4 relays, benchmarks,
# multicast, reserved, broadcast.
_BLOCKED_V4 = [
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "168.63.129.16/32",  # a cloud's metadata at a public address
    )
]
# For IPv6, only the global unicast range is allowed, without protocol assignments (such as Teredo),
# documentation and 6to4.
_GLOBAL_V6 = IPv6Network("2000::/3")
_BLOCKED_V6 = [
    IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]
# These hold an IPv4 address in the last 32 bits, to which the packet goes.
_CARRIES_V4 = [IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96")]

# Ports of other protocols, in which a crafted HTTP request might have a meaning. Below 1024 only
# HTTP's own ports are allowed.
_OTHER_PROTOCOLS = {
    1080,
    1433,
    1521,
    1719,
    1720,
    1723,
    2049,
    2181,
    2375,
    2376,
    2379,
    2380,
    3306,
    3389,
    3659,
    4045,
    4190,
    4222,
    5060,
    5061,
    5432,
    5672,
    5900,
    6000,
    6379,
    6566,
    6665,
    6666,
    6667,
    6668,
    6669,
    6679,
    6697,
    7000,
    7001,
    9042,
    9092,
    9100,
    10080,
    10250,
    11211,
    27017,
}

_NOT_PUBLIC = (
    "the host is not a public one: no such name, or an address that this server doesn't call"
)


class OutboundRefused(Exception):
    """The URL may not be called. The text is for the caller who named it."""


@dataclass
class OutboundFailed(Exception):
    """The request failed. `error_class`: CONNECT, TLS, TIMEOUT, PROTOCOL, TOO_LARGE, STATUS; `text`
    is for the caller; `status` is that of the answer, 0 without one."""

    error_class: str
    text: str
    status: int = 0

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Answer:
    """A receiver's answer. `excerpt`: the first bytes of its body. `retry_after`: the pause in
    seconds that it asks for; 0 for none."""

    status: int
    excerpt: bytes
    retry_after: float = 0.0


@dataclass(frozen=True)
class Fetched:
    """The facts about a fetched file. `content_type` is the server's claim, in lower case, without
    parameters."""

    size: int
    sha256: str
    content_type: str


@dataclass(frozen=True)
class Target:
    """The parts of a URL; `host` is a lower-case ASCII name or an address in canonical form."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (
            host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"
        )


def parse_url(url: str, *, https_only: bool = False) -> Target:
    """Parses a URL. Raises OutboundRefused for any unusual spelling that two parsers might read
    differently."""
    if len(url) > MAX_URL:
        raise OutboundRefused(f"the URL is longer than {MAX_URL} characters")
    found = _URL.fullmatch(url)
    if found is None:
        raise OutboundRefused(
            "not a URL like https://example.com/path: absolute, printable ASCII, without a"
            " #fragment"
        )
    scheme = found["scheme"].lower()
    if scheme not in ("http", "https") or (https_only and scheme != "https"):
        raise OutboundRefused(
            f"the URL must begin with {'https://' if https_only else 'https:// or http://'}"
        )
    if "@" in found["authority"]:
        raise OutboundRefused("the URL holds a user name or a password; leave them out")
    parts = _AUTHORITY.fullmatch(found["authority"])
    if parts is None:
        raise OutboundRefused("the URL's host or port is not spelled plainly")
    port = int(parts["port"] or {"http": 80, "https": 443}[scheme])
    if (port < 1024 and port not in (80, 443)) or port > 65535 or port in _OTHER_PROTOCOLS:
        raise OutboundRefused(
            f"port {port} is not one for HTTP; use 443, 80 or one above 1023 that no protocol owns"
        )
    target = found["target"]
    return Target(
        scheme, _host(parts["host"]), port, target if target.startswith("/") else f"/{target}"
    )


def _host(text: str) -> str:
    if text.startswith("["):
        try:
            return str(IPv6Address(text[1:-1]))
        except ValueError:
            raise OutboundRefused("the URL's host is not an IPv6 address") from None
    try:
        name = (
            text.lower()
            if text.isascii()
            else idna.encode(text, strict=True, std3_rules=True).decode()
        )
    except idna.IDNAError:
        raise OutboundRefused(
            "the URL's host is not a valid international name; write its xn-- form"
        ) from None
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        # Parsers read octal, hexadecimal and short forms as different addresses.
        try:
            return str(IPv4Address(name))
        except ValueError:
            raise OutboundRefused(
                "the URL's host is a number; write an IPv4 address as four decimal ones"
            ) from None
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise OutboundRefused(
            "the URL's host is not a name: letters, digits and hyphens, without a dot at its end"
        )
    return name


class Rules:
    """Decides which addresses may be connected to. `allowed` are networks of the operator, which
    always may."""

    def __init__(self, allowed: Iterable[Network] = ()) -> None:
        self._allowed = list(allowed)

    def allows(self, address: Address) -> bool:
        if any(
            address in network for network in self._allowed if network.version == address.version
        ):
            return True
        if isinstance(address, IPv4Address):
            return not any(address in network for network in _BLOCKED_V4)
        if any(address in network for network in _CARRIES_V4):
            return self.allows(IPv4Address(int(address) & 0xFFFFFFFF))
        return address in _GLOBAL_V6 and not any(address in network for network in _BLOCKED_V6)


class _SystemResolver:
    """Runs the machine's resolver in separate threads."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="resolve")

    async def __call__(self, name: str) -> list[Address]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(ip_address(entry[4][0]) for entry in found))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Connection(httpcore.AsyncNetworkStream):
    """Bounds the bytes before the body. The client bounds each head, but reads any number of 1xx
    answers, and meanwhile blocks this process. `head_left` is None once the head has arrived."""

    def __init__(self, plain: httpcore.AsyncNetworkStream) -> None:
        self._plain = plain
        self.head_left: int | None = _HEAD_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self.head_left is None:
            return await self._plain.read(max_bytes, timeout)
        if not self.head_left:
            raise httpcore.RemoteProtocolError("the head of the answer doesn't end")
        data = await self._plain.read(min(max_bytes, self.head_left), timeout)
        self.head_left -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._plain.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._plain.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _Connection(await self._plain.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._plain.get_extra_info(info)


class _Backend(httpcore.AsyncNetworkBackend):
    """The network backend of the HTTP client: the only place that opens a connection."""

    def __init__(self, rules: Rules, resolve: Resolve) -> None:
        self._rules = rules
        self._resolve = resolve
        self._plain = httpcore.AnyIOBackend()

    async def addresses(self, host: str) -> Sequence[Address]:
        """Returns all addresses of the host. Raises OutboundRefused if there is none or any isn't
        allowed; OSError if the name servers don't answer now."""
        try:
            found: Sequence[Address] = [ip_address(host)]
        except ValueError:
            try:
                found = await self._resolve(host)
            except socket.gaierror as error:
                if error.errno == socket.EAI_AGAIN:
                    raise
                found = []
            except UnicodeError:
                found = []
        if not found or not all(map(self._rules.allows, found)):
            raise OutboundRefused(_NOT_PUBLIC)
        return found

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                tried = list(await self.addresses(host))[:_MOST_TRIED]
                share = timeout and timeout / len(tried)
                for address in tried:
                    try:
                        return _Connection(
                            await self._plain.connect_tcp(
                                str(address), port, share, local_address, socket_options
                            )
                        )
                    except (httpcore.ConnectError, httpcore.ConnectTimeout):
                        continue
        except OSError as error:  # includes TimeoutError
            raise httpcore.ConnectError from error
        raise httpcore.ConnectError

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise OutboundRefused(_NOT_PUBLIC)

    async def sleep(self, seconds: float) -> None:
        await self._plain.sleep(seconds)


@functools.cache
def _trusted(ca_file: Path | None) -> ssl.SSLContext:
    """Returns a context that trusts the usual authorities and the installation's own. Cached:
    reading them takes some 15 ms."""
    trusted = ssl.create_default_context(cafile=certifi.where())
    if ca_file:
        trusted.load_verify_locations(ca_file)
    return trusted


class Outbound:
    """An HTTP client for URLs that callers name. `resolve` turns names into addresses; by default
    this machine's resolver does."""

    def __init__(
        self, settings: Settings, *, https_only: bool = False, resolve: Resolve | None = None
    ) -> None:
        self._https_only = https_only
        self._resolver = None if resolve else _SystemResolver()
        self._backend = _Backend(
            Rules(networks(settings.outbound_allowed_networks)),
            resolve or self._resolver,  # type: ignore[arg-type]  # one of the two is there
        )
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_trusted(settings.outbound_ca_file),
            max_connections=None,
            max_keepalive_connections=0,
            http1=True,
            http2=False,
            retries=0,
            network_backend=self._backend,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._pool.aclose()
        if self._resolver:
            self._resolver.close()

    async def check_url(self, url: str) -> None:
        """Raises OutboundRefused if the URL may not be called. Accepts a name whose servers don't
        answer, since each connection is checked again."""
        target = parse_url(url, https_only=self._https_only)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._backend.addresses(target.host)
        except OSError:
            pass

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, timeout: float
    ) -> Answer:
        """Sends a POST and reads the beginning of the answer, whatever its status. Raises
        OutboundRefused, OutboundFailed. `timeout`: seconds until the answer's head has arrived.

        The head decides. A body that is slow, breaks off or is malformed only makes the excerpt
        shorter.
        """
        status, retry_after, excerpt = 0, 0.0, bytearray()
        try:
            async with self._exchange(
                "POST", url, headers, body, timeout, silent=timeout
            ) as response:
                status, retry_after = (
                    response.status,
                    seconds_to_wait(_header(response, b"retry-after")),
                )
                async with asyncio.timeout(_EXCERPT_SECONDS):
                    async for chunk in response.aiter_stream():
                        excerpt += chunk[: EXCERPT_BYTES - len(excerpt)]
                        if len(excerpt) >= EXCERPT_BYTES:
                            break
        except OutboundFailed:
            if not status:
                raise
        return Answer(status, bytes(excerpt), retry_after)

    async def fetch(self, url: str, path: Path, *, max_bytes: int, timeout: float) -> Fetched:
        """Writes the answer of a GET to `path`, which is removed if that fails. Raises
        OutboundRefused, OutboundFailed: STATUS for anything but 200, TOO_LARGE beyond `max_bytes`,
        TIMEOUT also if the server pauses or is too slow. `timeout`: seconds for the whole
        transfer."""
        slow_from = asyncio.get_running_loop().time() + _CONNECT_SECONDS + _SILENT_SECONDS
        try:
            # This limit also covers bytes that the client reads without returning them: the head,
            # and the framing between pieces.
            async with asyncio.timeout_at(slow_from) as pace:
                async with self._exchange(
                    "GET", url, {}, None, timeout, silent=_SILENT_SECONDS
                ) as response:
                    _check_head(response, max_bytes)
                    return await _receive(
                        response,
                        path,
                        max_bytes,
                        lambda size: pace.reschedule(slow_from + size / _SLOWEST),
                    )
        except TimeoutError:
            raise OutboundFailed(
                "TIMEOUT", f"the file comes slower than {_SLOWEST // 1000} kB/s", 200
            ) from None

    @asynccontextmanager
    async def _exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: float,
        *,
        silent: float,
    ) -> AsyncIterator[httpcore.Response]:
        target = parse_url(url, https_only=self._https_only)
        own = {
            "Host": target.host_header,
            "User-Agent": "atelier",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        limits = {
            "connect": min(_CONNECT_SECONDS, timeout),
            "read": min(silent, timeout),
            "write": timeout,
            "pool": timeout,
        }
        try:
            async with asyncio.timeout(timeout):
                async with self._pool.stream(
                    method,
                    httpcore.URL(
                        scheme=target.scheme.encode(),
                        host=target.host.encode(),
                        port=target.port,
                        target=target.path.encode(),
                    ),
                    headers=list({**own, **headers}.items()),
                    content=body,
                    extensions={"timeout": limits},
                ) as response:
                    response.extensions["network_stream"].head_left = None
                    yield response
        except httpcore.ReadTimeout:
            raise OutboundFailed(
                "TIMEOUT", f"nothing came for {min(silent, timeout):g} s"
            ) from None
        except (TimeoutError, httpcore.TimeoutException):
            raise OutboundFailed("TIMEOUT", f"no whole answer within {timeout:g} s") from None
        except httpcore.ConnectError as error:
            if isinstance(error.__context__, ssl.SSLError):
                text = "no trusted TLS connection: certificate, name or protocol are not accepted"
                raise OutboundFailed("TLS", text) from None
            raise OutboundFailed("CONNECT", "no connection to the host") from None
        except (httpcore.ProtocolError, httpcore.NetworkError, ssl.SSLError):
            raise OutboundFailed(
                "PROTOCOL", "the connection broke, or what came was not HTTP"
            ) from None


def _check_head(response: httpcore.Response, max_bytes: int) -> None:
    """Raises OutboundFailed unless the head announces a file, of at most `max_bytes` if it states a
    size."""
    if response.status != 200:
        raise OutboundFailed("STATUS", _status_text(response.status), response.status)
    if _header(response, b"content-encoding") not in ("", "identity"):
        raise OutboundFailed("PROTOCOL", "the server packs what it was asked to send as it is", 200)
    announced = _header(response, b"content-length")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> OutboundFailed:
    return OutboundFailed("TOO_LARGE", f"there are more than {max_bytes} bytes at the URL", 200)


async def _receive(
    response: httpcore.Response, path: Path, max_bytes: int, arrived: Callable[[int], None]
) -> Fetched:
    """Writes the body to `path`, which is removed if that fails. Calls `arrived` with the number of
    bytes so far."""
    digest, size, pieces = hashlib.sha256(), 0, 0
    try:
        with path.open("wb") as file:
            async for chunk in response.aiter_stream():
                size += len(chunk)
                pieces += 1
                if size > max_bytes:
                    raise _too_large(max_bytes)
                # Each piece costs as much as thousands of bytes.
                if pieces > _PIECES + size // _PIECE_BYTES:
                    raise OutboundFailed(
                        "PROTOCOL", "the server sends the file in tiny pieces", 200
                    )
                arrived(size)
                digest.update(chunk)
                file.write(chunk)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    content_type = _header(response, b"content-type").partition(";")[0].strip()
    return Fetched(size, digest.hexdigest(), content_type)


def seconds_to_wait(retry_after: str) -> float:
    """Returns the seconds that a Retry-After header (seconds or a date) asks for; 0 if it is
    unreadable or past."""
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after)
    try:
        until = parsedate_to_datetime(retry_after)
        return max(
            0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        )
    except (ValueError, OverflowError):
        return 0.0


def _header(response: httpcore.Response, name: bytes) -> str:
    """Returns the header's first value in lower case, '' if it is missing."""
    return next(
        (
            value.decode("latin-1").strip().lower()
            for key, value in response.headers
            if key.lower() == name
        ),
        "",
    )


def _status_text(status: int) -> str:
    if 300 <= status < 400:
        return (
            f"the server answered {status}, a redirect, which is not followed; name the final URL"
        )
    return f"the server answered {status} instead of 200"
