"""Admits requests to the HTTP server: limits how many it serves at once, in total and per address,
and refuses requests with ambiguous framing."""

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
    """Serves at most 1,000 requests at once, and 250 per address (per /64 network for IPv6).

    When all places are taken, the client that has kept the server waiting longest loses its place;
    if none has, the new request is answered 503 with Retry-After. Health checks need no place.
    Requests from a loopback address aren't counted per address: it is the proxy's, unless the proxy
    names its client in X-Forwarded-For.
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
                del self._held[holder]  # otherwise the table would grow with every new address


def framed_twice(scope: Scope) -> bool:
    """Returns whether a proxy in front may see the end of the body elsewhere (request
    smuggling)."""
    names = {name for name, _ in scope["headers"]}
    return b"transfer-encoding" in names and (
        b"content-length" in names or scope["http_version"] == "1.0"
    )


def _holder(scope: Scope) -> str:
    """Returns the address or network that holds the place; '' for this machine."""
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
