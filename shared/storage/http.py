"""The HTTP server of the disk backend: reads and uploads by signed URL or form, and public files.
Run it with

    python -m shared.storage.http

Settings from the environment: ATELIER_STORAGE_ROOT, ATELIER_STORAGE_SECRET_FILE,
ATELIER_STORAGE_HTTP_PORT (50080; 0 takes any free port). It listens on 127.0.0.1 only; a proxy in
front of it ends TLS. Routes: `/o/<key>` (GET, HEAD, PUT), `/o` (POST), `/healthz`.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Final, NoReturn

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared import logs

from .admission import HEALTH_PATH, Admission
from .base import (
    InvalidKey,
    MultipartEnded,
    ObjectNotFound,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from .connections import HEADER_BYTES, BoundedConnection
from .disk import DiskStorage, open_disk
from .exchange import Outer
from .links import OBJECTS_PATH, LinkRefused, read_secret
from .objects import Objects, Refused

HOST: Final = "127.0.0.1"
_log = logging.getLogger("atelier.storage.http")


def build_app(storage: DiskStorage) -> Starlette:
    """Returns the ASGI application."""
    objects = Objects(storage)
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
        middleware=[Middleware(Outer), Middleware(Admission), cors],
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
