"""The routes of objects on the disk backend's HTTP server: reads with ranges, and uploads by signed
URL or form, which end if the client pauses or is too slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from email.utils import format_datetime
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from .base import PUBLIC_PREFIX, cache_control, content_disposition, is_raster
from .connections import proven
from .disk import DiskStorage
from .disk_files import OpenObject
from .forms import BadForm, UploadForm
from .links import ReadGrant, WriteGrant

FORM_OVERHEAD: Final = 256 * 1024
"""Bytes that a form may have in addition to its file."""

_RANGE_DIGITS: Final = 18  # no size has more digits, and int() refuses thousands of them
_UNSIGNED_SECONDS: Final = 20.0  # for a form's fields, which include its signature
_SILENT_SECONDS: Final = 30.0  # between two pieces of an upload
_BEHIND_SECONDS: Final = 60.0  # that an upload may lag behind the slowest allowed rate
_SLOWEST: Final = 16 * 1024  # least bytes per second


class Refused(Exception):
    """Refuses a request with a status, a text that says what is wrong, and the next step."""

    def __init__(
        self, status: int, error: str, next_step: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(error)
        self.answer = JSONResponse({"error": error, "next": next_step}, status, headers)


class Objects:
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
