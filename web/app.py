"""The HTTP side of `web`: health, origins of other pages, and the bridge for everything else."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from shared.settings import Settings
from shared.storage.connections import HEADER_BYTES, BoundedConnection
from web.bridge import Bridge
from web.peers import Channels

_STOP_SECONDS = 10
_CORS_SECONDS = 3600
# What a page of another origin may send and read.
_SENT = [
    "authorization",
    "content-type",
    "connect-protocol-version",
    "connect-timeout-ms",
    "grpc-timeout",
    "x-grpc-web",
    "x-request-id",
    "x-user-agent",
]
_READ = ["atelier-reason", "grpc-status", "grpc-message", "grpc-status-details-bin"]

Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Web:
    """The application, and the streams that it serves."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bridge: Bridge | None = None
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.web_origins,
            allow_methods=["GET", "POST"],
            allow_headers=_SENT,
            expose_headers=_READ,
            max_age=_CORS_SECONDS,
        )
        self.application = Starlette(
            routes=[Route("/healthz", _healthy), Mount("/", self._call)],
            middleware=[cors],
            lifespan=self._live,
        )

    def stop(self) -> None:
        """Ends open streams. Call it before the server waits for its connections."""
        if self._bridge:
            self._bridge.stop()

    @asynccontextmanager
    async def _live(self, _app: Starlette) -> AsyncIterator[None]:
        channels = Channels(self._settings)
        self._bridge = Bridge(channels)
        try:
            yield
        finally:
            await channels.close()

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._bridge is None:
            raise RuntimeError("the server has no lifespan")
        await self._bridge.application(scope, receive, send)  # type: ignore[arg-type]


class Server(uvicorn.Server):
    """Ends open streams when it is told to stop."""

    def __init__(self, web: Web) -> None:
        super().__init__(
            uvicorn.Config(
                web.application,
                http=BoundedConnection,
                ws="none",  # an upgraded connection would escape the limits
                h11_max_incomplete_event_size=HEADER_BYTES,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_STOP_SECONDS,
            )
        )
        self._web = web

    async def shutdown(self, sockets: "list[socket.socket] | None" = None) -> None:
        self._web.stop()
        await super().shutdown(sockets)


async def _healthy(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})
