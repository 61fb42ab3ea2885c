"""The HTTP server of the disk backend: reads and uploads by signed URL or form, and public files.
Run it with

    python -m shared.storage.http

Settings from the environment: ATELIER_STORAGE_ROOT, ATELIER_STORAGE_SECRET_FILE,
ATELIER_STORAGE_HTTP_PORT (50080; 0 takes any free port). It listens on 127.0.0.1 only; a proxy in
front of it ends TLS. Routes: `/o/<key>` (GET, HEAD, PUT), `/o` (POST), `/healthz`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from email.utils import format_datetime
from pathlib import Path
from typing import Final, NoReturn

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared import logs

from .admission import HEALTH_PATH, Admission, framed_twice
from .base import (
    PUBLIC_PREFIX,
    InvalidKey,
    MultipartEnded,
    ObjectNotFound,
    StorageError,
    StorageFull,
    StorageUnavailable,
    cache_control,
    content_disposition,
    is_raster,
)
from .connections import HEADER_BYTES, BoundedConnection, proven
from .disk import DiskStorage, open_disk
from .disk_files import OpenObject
from .forms import BadForm, UploadForm
from .links import OBJECTS_PATH, LinkRefused, ReadGrant, WriteGrant, read_secret

HOST: Final = "127.0.0.1"
FORM_OVERHEAD: Final = 256 * 1024
"""Bytes that a form may have in addition to its file."""

_RANGE_DIGITS: Final = 18  # no size has more digits, and int() refuses thousands of them
_UNSIGNED_SECONDS: Final = 20.0  # for a form's fields, which include its signature
_SILENT_SECONDS: Final = 30.0  # between two pieces of an upload
_BEHIND_SECONDS: Final = 60.0  # that an upload may lag behind the slowest allowed rate
_SLOWEST: Final = 16 * 1024  # least bytes per second
_LINGER_BYTES: Final = 32 * 1024 * 1024
_LINGER_SECONDS: Final = 10
_log = logging.getLogger("atelier.storage.http")


class Refused(Exception):
    """Refuses a request with a status, a text that says what is wrong, and the next step."""

    def __init__(
        self, status: int, error: str, next_step: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(error)
        self.answer = JSONResponse({"error": error, "next": next_step}, status, headers)


def build_app(storage: DiskStorage) -> Starlette:
    """Returns the ASGI application."""
    objects = _Objects(storage)
    routes = [
        Route(HEALTH_PATH, _healthy, methods=["GET"]),
        Route(OBJECTS_PATH, objects.post, methods=["POST"]),
        Route(OBJECTS_PATH + "/{key:path}", objects.read, methods=["GET", "HEAD"]),
        Route(OBJECTS_PATH + "/{key:path}", objects.put, methods=["PUT"]),
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=["*"],  # signatures authorise requests, cookies never do
        allow_methods=["GET", "HEAD", "POST", "PUT"],
        allow_headers=["*"],
        expose_headers=["ETag", "Content-Range", "Content-Disposition"],
        max_age=3600,
    )
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Outer), Middleware(Admission), cors],
        exception_handlers={
            Refused: _refused,
            StorageError: _storage_failed,
            HTTPException: _no_route,
        },
    )


def build_config(
    storage: DiskStorage, http: type[BoundedConnection] = BoundedConnection
) -> uvicorn.Config:
    """Returns the configuration of the server, whose connections are `BoundedConnection`s."""
    return uvicorn.Config(
        build_app(storage),
        http=http,
        ws="none",  # an upgraded connection would escape the limits
        h11_max_incomplete_event_size=HEADER_BYTES,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )


async def _healthy(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


class _Objects:
    """The three routes of objects."""

    def __init__(self, storage: DiskStorage) -> None:
        self._storage = storage

    async def read(self, request: Request) -> Response:
        key: str = request.path_params["key"]
        if key.startswith(PUBLIC_PREFIX) and "signature" not in request.query_params:
            grant = ReadGrant("", "", inline=True)
        else:
            grant = self._storage.links.verify_get(key, request.query_params.multi_items())
        opened = await self._storage.open(key)
        try:
            answer = self._answer(request, opened, grant)
        except BaseException:
            opened.close()
            raise
        if not isinstance(answer, _Bytes):
            opened.close()
        return answer

    def _answer(self, request: Request, opened: OpenObject, grant: ReadGrant) -> Response:
        stat = opened.stat
        content_type = grant.content_type or stat.content_type
        # Both types must be harmless: the stored one was declared for the bytes, the granted one is
        # sent to the browser.
        inline = grant.inline and is_raster(content_type) and is_raster(stat.content_type)
        headers = {
            "Accept-Ranges": "bytes",
            "Cache-Control": cache_control(stat.key, opened.cache_forever),
            "Content-Disposition": content_disposition(grant.file_name or None, inline=inline),
            "Content-Type": content_type,
            "ETag": f'"{stat.etag}"',
            "Last-Modified": format_datetime(stat.modified, usegmt=True),
        }
        if _names_etag(request.headers.get("if-none-match", ""), headers["ETag"]):
            return Response(status_code=304, headers=headers)
        status, start, end = 200, 0, stat.size
        wanted = request.headers.get("range")
        if wanted and request.headers.get("if-range", headers["ETag"]) == headers["ETag"]:
            span = _parse_range(wanted, stat.size)
            if span:
                status, (start, end) = 206, span
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{stat.size}"
        headers["Content-Length"] = str(end - start)
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        return _Bytes(opened, opened.read(start, end, self._storage.threads), status, headers)

    async def put(self, request: Request) -> Response:
        grant = self._storage.links.verify_put(
            request.path_params["key"], request.query_params.multi_items()
        )
        if not grant.part and request.headers.get("content-type") != grant.content_type:
            raise Refused(
                403,
                "the Content-Type is not the signed one",
                f"send Content-Type: {grant.content_type}",
            )
        declared = _declared_length(request)
        if declared is None:
            raise Refused(
                411, "the request has no Content-Length", f"send Content-Length: {grant.max_bytes}"
            )
        if declared != grant.max_bytes:
            status = 413 if declared > grant.max_bytes else 403
            raise Refused(
                status,
                "the Content-Length is not the signed one",
                f"send exactly {grant.max_bytes} bytes",
            )
        with proven(request.scope):
            etag = await self._store(grant, _arriving(request))
        return Response(status_code=200, headers={"ETag": etag})

    async def post(self, request: Request) -> Response:
        try:
            async with aclosing(_arriving(request)) as arriving:
                form = UploadForm(request.headers.get("content-type", ""), arriving)
                grant = self._storage.links.verify_post(await _unsigned(form))
                declared = _declared_length(request)
                if declared is not None and declared > grant.max_bytes + FORM_OVERHEAD:
                    raise _too_large(grant)
                with proven(request.scope):
                    etag = await self._store(grant, form.file())
        except BadForm as error:
            raise Refused(
                400, str(error), "send all signed fields, then the file, as multipart/form-data"
            ) from None
        return Response(status_code=204, headers={"ETag": etag})

    async def _store(self, grant: WriteGrant, body: AsyncIterator[bytes]) -> str:
        if grant.part:
            return f'"{(await self._storage.put_part(*grant.part, _capped(body, grant))).etag}"'
        stat = await self._storage.put(
            grant.key, _capped(body, grant), content_type=grant.content_type
        )
        return f'"{stat.etag}"'


async def _unsigned(form: UploadForm) -> dict[str, str]:
    """Returns a form's fields. They must arrive soon: anybody may begin a form, since its signature
    is among them."""
    try:
        async with asyncio.timeout(_UNSIGNED_SECONDS):
            return await form.fields()
    except TimeoutError:
        raise _too_slow() from None


async def _arriving(request: Request) -> AsyncGenerator[bytes, None]:
    """Yields the body; refuses a client that pauses or is too slow. Only the time that the server
    waits for the client counts."""
    stream, clock, left = request.stream(), asyncio.get_running_loop().time, _BEHIND_SECONDS
    while True:
        began = clock()
        try:
            async with asyncio.timeout(min(_SILENT_SECONDS, left)):
                piece = await anext(stream, None)
        except TimeoutError:
            raise _too_slow() from None
        if piece is None:
            return
        # A fast start earns no credit for later.
        left = min(left + len(piece) / _SLOWEST - (clock() - began), _BEHIND_SECONDS)
        if piece:
            yield piece


async def _capped(body: AsyncIterator[bytes], grant: WriteGrant) -> AsyncIterator[bytes]:
    received = 0
    async for piece in body:
        received += len(piece)
        if received > grant.max_bytes:
            raise _too_large(grant)
        yield piece
    if received < grant.min_bytes:
        raise Refused(
            400,
            f"{received} bytes arrived, at least {grant.min_bytes} were expected",
            "send the whole file",
        )


class _Bytes(StreamingResponse):
    """An answer with an object's bytes. It closes the object itself, since a client may be gone
    before the first byte is read."""

    def __init__(
        self, opened: OpenObject, chunks: AsyncIterator[bytes], status: int, headers: dict[str, str]
    ) -> None:
        super().__init__(chunks, status, headers)
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with proven(scope):
                await super().__call__(scope, receive, send)
        finally:
            self._opened.close()


def _too_large(grant: WriteGrant) -> Refused:
    return Refused(413, f"the file has more than {grant.max_bytes} bytes", "send a smaller file")


def _too_slow() -> Refused:
    return Refused(408, "the upload came too slowly", "send it again; nothing was kept")


def _declared_length(request: Request) -> int | None:
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def _names_etag(header: str, etag: str) -> bool:
    names = {name.strip().removeprefix("W/") for name in header.split(",")}
    return etag in names or "*" in names


def _parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Returns start and exclusive end of one byte range; None for a header that may be ignored
    (other units, several ranges, nonsense). Refuses a start past the end with 416."""
    unit, _, spec = header.partition("=")
    first, dash, last = spec.strip().partition("-")
    digits = first + last
    if unit.strip().lower() != "bytes" or not dash or not (digits.isascii() and digits.isdigit()):
        return None
    if max(len(first), len(last)) > _RANGE_DIGITS:
        return None
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last) + 1, size) if first and last else size
    if first and last and int(last) < int(first):
        return None
    if start >= size:
        error, step = (
            f"the object has {size} bytes and the range begins after them",
            "ask for a range inside it",
        )
        raise Refused(416, error, step, {"Content-Range": f"bytes */{size}"})
    return start, end


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error.answer


async def _storage_failed(_request: Request, error: Exception) -> Response:
    match error:
        case LinkRefused():
            status, text, step = 403, str(error), error.next_step
        case ObjectNotFound() | InvalidKey():
            status, text, step = 404, "there is no such object", "ask the service for a new URL"
        case MultipartEnded():
            status, text, step = (
                404,
                "the upload has ended",
                "ask the service for its state, or begin a new one",
            )
        case StorageFull():
            status, text, step = (
                507,
                "the storage is full; nothing was kept",
                "tell whoever runs it, then try again",
            )
        case StorageUnavailable():
            status, text, step = 503, "the storage can't be reached", "try again in a moment"
        case _:
            _log.error("storage failed", extra={"fields": {"error": str(error)}})
            status, text, step = 500, "the storage failed", "see the log of the storage server"
    return JSONResponse({"error": text, "next": step}, status)


async def _no_route(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = {
        "error": error.detail,
        "next": f"objects are at {OBJECTS_PATH}/<key> (GET, HEAD, PUT) and {OBJECTS_PATH} (POST)",
    }
    return JSONResponse(body, error.status_code, error.headers)


class _Outer:
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


_GUARDS: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox; default-src 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"cross-origin"),
]


def _give_up(problem: str) -> NoReturn:
    print(problem, file=sys.stderr)
    raise SystemExit(2)


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(2048)
    except OSError as error:
        _give_up(
            f"{HOST}:{port} can't be used ({error.strerror}): stop what listens there or set"
            " ATELIER_STORAGE_HTTP_PORT"
        )
    return listener


def _open_storage(base_url: str) -> DiskStorage:
    names = ("ATELIER_STORAGE_ROOT", "ATELIER_STORAGE_SECRET_FILE")
    root, secret_file = (os.environ.get(name, "") for name in names)
    for name, value in zip(names, (root, secret_file), strict=True):
        if not value:
            _give_up(f"{name} is not set: give it the path that the services use")
    try:
        return open_disk(Path(root), base_url=base_url, secret=read_secret(Path(secret_file)))
    except (OSError, ValueError, StorageError) as error:
        _give_up(f"{error}: check ATELIER_STORAGE_ROOT and ATELIER_STORAGE_SECRET_FILE")


def main() -> None:
    """Serves until SIGTERM or SIGINT, then gives uploads in flight ten seconds to finish. Exits
    with status 2 if it can't start."""
    logs.set_up("storage")
    _log.setLevel(logging.INFO)
    port = os.environ.get("ATELIER_STORAGE_HTTP_PORT") or "50080"
    if not port.isdigit() or int(port) > 65535:
        _give_up(f"ATELIER_STORAGE_HTTP_PORT is {port!r}: set it to a number from 0 to 65535")
    listener = _listen(int(port))
    url = f"http://{HOST}:{listener.getsockname()[1]}"
    storage = _open_storage(url)

    # Each upload and download holds an open connection and file.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # The server raises the signal again when it has finished; this turns it into a normal exit.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))

    _log.info("serving", extra={"fields": {"url": url}})
    uvicorn.Server(build_config(storage)).run(sockets=[listener])


if __name__ == "__main__":
    main()
