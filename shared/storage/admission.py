"""Which requests the HTTP server takes on: how many at once, whose, and none that could be read in
two ways."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv6Address, ip_address
from typing import Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .connections import connection_of

MOST_REQUESTS: Final = 1000
MOST_OF_ADDRESS: Final = 250
HEALTH_PATH: Final = "/healthz"
_AGAIN_SECONDS: Final = "1"


class Admission:
    """At most 1,000 requests are served at once, and 250 of one address (of IPv6: of one network of
    64 bits).

    When all places are taken, a client that keeps the server waiting loses its place; if none does,
    the new request is answered 503 and told when to come back. Who asks for health needs no place.
    Requests from this machine itself aren't counted by their address: it is the proxy's, unless
    that says with X-Forwarded-For for whom it asks.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._taken = 0
        self._held: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif framed_twice(scope):
            error = "the request has a Transfer-Encoding beside a Content-Length, or in HTTP/1.0"
            await _refusal(400, error, "send one of the two", {"Connection": "close"})(
                scope, receive, send
            )
        elif scope["path"] == HEALTH_PATH:
            await self._app(scope, receive, send)
        else:
            await self._with_place(scope, receive, send)

    async def _with_place(self, scope: Scope, receive: Receive, send: Send) -> None:
        holder = _holder(scope)
        if self._held[holder] >= MOST_OF_ADDRESS and holder:
            error, step = (
                f"{MOST_OF_ADDRESS} requests of your address are under way",
                "let some end, then try again",
            )
            await _refusal(429, error, step, {"Retry-After": _AGAIN_SECONDS})(scope, receive, send)
            return
        connection = connection_of(scope)
        if self._taken >= MOST_REQUESTS and not (connection and connection.make_room()):
            error, step = "the server is busy", "try again in a moment; nothing was kept"
            await _refusal(503, error, step, {"Retry-After": _AGAIN_SECONDS})(scope, receive, send)
            return
        self._taken += 1
        self._held[holder] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._taken -= 1
            self._held[holder] -= 1
            if not self._held[holder]:
                del self._held[holder]  # addresses come and go; the table must not grow


def framed_twice(scope: Scope) -> bool:
    """Whether another reader of the same bytes, a proxy in front, may take the end of the body to
    be elsewhere."""
    names = {name for name, _ in scope["headers"]}
    return b"transfer-encoding" in names and (
        b"content-length" in names or scope["http_version"] == "1.0"
    )


def _holder(scope: Scope) -> str:
    """Whose place it is; '' for this machine."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback:
        return ""
    return (
        str(IPv6Address(int(address) >> 64 << 64))
        if isinstance(address, IPv6Address)
        else str(address)
    )


def _refusal(status: int, error: str, step: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"error": error, "next": step}, status, headers)
