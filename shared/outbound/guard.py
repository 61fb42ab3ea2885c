"""The network below the HTTP client: it resolves a name, judges every address, and connects to one
that passed."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

import httpcore

from shared.outbound.urls import OutboundRefused

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str], Awaitable[Sequence[Address]]]

_HEAD_BYTES = 64 * 1024  # the largest head of an answer, including all 1xx answers before it
# Threads, started when needed; the event loop's own few must not wait for a slow name server. A
# thread may wait longer than the attempt that started it, so there are more threads than concurrent
# webhooks.
_RESOLVERS = 512
_MOST_TRIED = 4  # addresses of one name

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

_NOT_PUBLIC = (
    "the host is not a public one: no such name, or an address that this server doesn't call"
)


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


class SystemResolver:
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


class Backend(httpcore.AsyncNetworkBackend):
    """The network backend of the HTTP client: the only place that opens a connection. `configured`:
    the operator named the hosts, so that one without an address is a server that is away."""

    def __init__(self, rules: Rules, resolve: Resolve, *, configured: bool = False) -> None:
        self._rules = rules
        self._resolve = resolve
        self._configured = configured
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
                if self._configured or error.errno == socket.EAI_AGAIN:
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
