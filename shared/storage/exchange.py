"""What surrounds every request to the HTTP server: the access log, the headers that keep files
harmless, and the end of uploads that were refused."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .admission import framed_twice

_LINGER_BYTES: Final = 32 * 1024 * 1024
_LINGER_SECONDS: Final = 10
_GUARDS: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox; default-src 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"cross-origin"),
]
_log = logging.getLogger("atelier.storage.http")


class Outer:
    """The outermost middleware: writes the access log and makes an _Exchange per request.

    It logs the path without the query, which holds the signature.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange, began = _Exchange(scope, receive, send), time.monotonic()
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass  # the status stays 499: the client is gone
        except Exception:
            exchange.status = 500
            raise
        finally:
            milliseconds = round((time.monotonic() - began) * 1000, 1)
            fields = {
                "method": scope["method"],
                "path": scope["path"],
                "status": exchange.status,
                "ms": milliseconds,
            }
            _log.info("request", extra={"fields": fields})


class _Exchange:
    """One request and its answer: adds the headers that keep files harmless, and ends uploads that
    were refused.

    A request that is answered before it has arrived completely gets its answer at once. Many
    clients read it only after they have sent everything, and closing the connection would destroy
    it, so up to 32 MiB more are read and discarded first.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.status = 499
        self._receive = receive
        self._send = send
        self._arriving = _has_body(scope) and not framed_twice(scope)

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._arriving = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            closing = [(b"connection", b"close")] if self._arriving else []
            message["headers"] = [*message["headers"], *_GUARDS, *closing]
        elif self._arriving and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _linger(self) -> None:
        discarded = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._arriving and discarded < _LINGER_BYTES:
                    discarded += len((await self.receive()).get("body", b""))


def _has_body(scope: Scope) -> bool:
    named = dict(scope["headers"])
    return b"transfer-encoding" in named or named.get(b"content-length", b"0").strip(b"0") != b""
