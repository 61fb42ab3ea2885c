"""The origin of the current call: the client's address and user agent."""

from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Protocol
from urllib.parse import unquote

import grpc.aio

Context = grpc.aio.ServicerContext[Any, Any]  # of a method of any service
Address = IPv4Address | IPv6Address
Networks = Sequence[IPv4Network | IPv6Network]
_AGENT_LENGTH = 300


class _Call(Protocol):
    """The parts of the gRPC context that this module uses."""

    def peer(self) -> str: ...
    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


_context: ContextVar[_Call | None] = ContextVar("grpc_context", default=None)


@dataclass(frozen=True, slots=True)
class Origin:
    """A client's address and user agent. If unknown, `ip` is None and `user_agent` empty."""

    ip: str | None
    user_agent: str


NOWHERE = Origin(None, "")


def enter(context: _Call | None) -> None:
    """Stores the call's gRPC context for this task. `current` evaluates it only when called."""
    _context.set(context)


def networks(text: str) -> Networks:
    """Parses networks such as `10.0.0.0/8, fd00::/8`. Raises ValueError naming the faulty one."""
    return [ip_network(part.strip()) for part in text.split(",") if part.strip()]


def current(trusted: Networks) -> Origin:
    """Returns the current call's origin; NOWHERE in a job. `x-forwarded-for` counts only as far as
    proxies in `trusted` wrote it."""
    context = _context.get()
    if context is None:
        return NOWHERE
    sent = {
        name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)
    }
    address = address_of(context.peer())
    if address is not None and _any(address, trusted):
        # Each proxy appends the address of its client. Entries that an untrusted proxy wrote or
        # passed on prove nothing.
        for forwarded in reversed(sent.get("x-forwarded-for", "").split(",")):
            heard = _address(forwarded.strip())
            if heard is None:
                break
            address = heard
            if not _any(heard, trusted):
                break
    agent = "".join(c for c in sent.get("user-agent", "") if c.isprintable())[:_AGENT_LENGTH]
    return Origin(str(address) if address else None, agent)


def _any(address: Address, within: Networks) -> bool:
    return any(address in network for network in within)


def address_of(peer: str) -> Address | None:
    """Returns the address in a gRPC peer such as `ipv4:127.0.0.1:5000` or `ipv6:[::1]:5000`, quoted
    or not; None for other peers."""
    kind, _, rest = unquote(peer).partition(":")
    return _address(rest.rpartition(":")[0].strip("[]")) if kind in ("ipv4", "ipv6") else None


def _address(text: str) -> Address | None:
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
