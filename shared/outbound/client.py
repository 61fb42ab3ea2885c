"""The HTTP client for URLs that callers name and for servers that the operator names; the limits of
one exchange."""

import asyncio
import functools
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import certifi
import httpcore

from shared.outbound.guard import Backend, Resolve, Rules, SystemResolver
from shared.outbound.urls import OutboundRefused, Target, parse_url
from shared.settings import Settings, networks

EXCERPT_BYTES = 1000  # read from the answer to a POST; the rest is not read
_EXCERPT_SECONDS = 1.0  # to read them, after the head of the answer
_CONNECT_SECONDS = 5.0
_PIECES, _PIECE_BYTES = 1000, 256  # a file may arrive in 1000 pieces, plus one per 256 bytes
_TINY = "the server sends its answer in tiny pieces"
_SILENT_SECONDS = 10.0  # the longest pause of a file's server
_HEADERS = {
    "User-Agent": "atelier",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
}
_SLOWEST = 10_000  # least average bytes per second, after the time for a connection and a pause


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
class Reply:
    """A whole answer. `headers` has the names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def retry_after(self) -> float:
        """Returns the pause in seconds that the server asks for; 0 for none."""
        return seconds_to_wait(self.headers.get("retry-after", ""))


@dataclass(frozen=True)
class Fetched:
    """The facts about a fetched file. `content_type` is the server's claim, in lower case, without
    parameters."""

    size: int
    sha256: str
    content_type: str


@functools.cache
def _trusted(ca_file: Path | None) -> ssl.SSLContext:
    """Returns a context that trusts the usual authorities and the installation's own. Cached:
    reading them takes some 15 ms."""
    trusted = ssl.create_default_context(cafile=certifi.where())
    if ca_file:
        trusted.load_verify_locations(ca_file)
    return trusted


_EVERYWHERE = "0.0.0.0/0, ::/0"


class Outbound:
    """An HTTP client for URLs that callers name. `resolve` turns names into addresses; by default
    this machine's resolver does.

    `only` are URLs that the operator configured: then the client calls their servers (scheme, host
    and port), wherever they are, and nothing else.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        https_only: bool = False,
        resolve: Resolve | None = None,
        only: Sequence[str] = (),
    ) -> None:
        self._https_only = https_only
        self._only = {_server(parse_url(url)) for url in only}
        self._resolver = None if resolve else SystemResolver()
        self._backend = Backend(
            Rules(networks(_EVERYWHERE if only else settings.outbound_allowed_networks)),
            resolve or self._resolver,  # type: ignore[arg-type]  # one of the two is there
            configured=bool(only),
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

    async def call(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        timeout: float,
        max_bytes: int,
    ) -> Reply:
        """Sends a request and reads the whole answer, whatever its status. Raises OutboundRefused,
        OutboundFailed: TOO_LARGE beyond `max_bytes`; CONNECT and TLS mean that nothing was sent.
        `timeout`: seconds for the whole exchange."""
        async with self._exchange(method, url, headers, body, timeout, silent=timeout) as response:
            content, pieces = bytearray(), 0
            async for chunk in response.aiter_stream():
                content += chunk
                pieces += 1
                if len(content) > max_bytes:
                    raise OutboundFailed(
                        "TOO_LARGE", f"the answer has more than {max_bytes} bytes", response.status
                    )
                if pieces > _PIECES + len(content) // _PIECE_BYTES:
                    raise OutboundFailed("PROTOCOL", _TINY, response.status)
            named = {key.decode("latin-1").lower(): value for key, value in response.headers}
            values = {key: value.decode("latin-1").strip() for key, value in named.items()}
            return Reply(response.status, values, bytes(content))

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
        """Yields the answer when its head has arrived. `silent`: the longest pause in seconds."""
        target = parse_url(url, https_only=self._https_only)
        if self._only and _server(target) not in self._only:
            raise OutboundRefused(f"{target.host} is not a server that this client may call")
        own = {"Host": target.host_header, **_HEADERS}
        limits = {
            "connect": min(_CONNECT_SECONDS, timeout),
            "read": min(silent, timeout),
            "write": timeout,
            "pool": timeout,
        }
        with _translated(limits):
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


def _server(target: Target) -> tuple[str, str, int]:
    return target.scheme, target.host, target.port


@contextmanager
def _translated(limits: Mapping[str, float]) -> Iterator[None]:
    """Raises OutboundFailed for the errors of the HTTP client and of the network."""
    try:
        yield
    except httpcore.ReadTimeout:
        raise OutboundFailed("TIMEOUT", f"nothing came for {limits['read']:g} s") from None
    except (TimeoutError, httpcore.TimeoutException):
        raise OutboundFailed("TIMEOUT", f"no whole answer within {limits['pool']:g} s") from None
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
                    raise OutboundFailed("PROTOCOL", _TINY, 200)
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
