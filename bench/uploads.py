"""B8, B9: one large upload in a stream, and a thousand small ones at once.

B8 measures wall time, because an upload mostly waits for disk and network; rounds of ours and of
the reference alternate. The suite's own limit is 50 MB per file, so the server is started with a
larger one.
"""

import asyncio
import hashlib
import io
import itertools
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import pikepdf
import pyvips
from atelier.assets.v1 import asset_pb2, upload_pb2, upload_pb2_grpc
from google.rpc import error_details_pb2, status_pb2

from bench.figure import CannotRun, Figure, Report, Rounds
from bench.site import Site, await_port, free_port

_MIB = 1024 * 1024
_CHUNK = 256 * 1024
_ROUNDS = 9
_UPLOADS = 1000
_CLIENTS = 20  # each with a connection of its own, on which the server takes 100 calls at once
_LONGEST_PAUSE = 8.0
_PATIENCE = 120.0  # seconds within which each of the thousand uploads must end


def streaming(report: Report) -> list[Figure]:
    """Measures B8."""
    return asyncio.run(_streaming(report))


def at_once(report: Report) -> list[Figure]:
    """Measures B9."""
    return asyncio.run(_at_once(report))


async def _streaming(report: Report) -> list[Figure]:
    data = _pdf(100 * _MIB)
    with Site() as site:
        _, address = site.assets("serve", ATELIER_MAX_PDF_BYTES=str(200 * _MIB))
        _, bare_address = site.server("bench.bare")
        async with (
            grpc.aio.insecure_channel(address) as ours,
            grpc.aio.insecure_channel(bare_address) as least,
        ):
            pairs = []
            for number in range(_ROUNDS + 1):
                speeds = [
                    await _speed(channel, site.authorization, data) for channel in (ours, least)
                ]
                if number:  # the first round warms up
                    pairs.append((speeds[0], speeds[1]))
                report(
                    f"round {number} of {_ROUNDS}: {speeds[0]:.0f} MB/s, reference {speeds[1]:.0f}"
                    " MB/s"
                )
    what = "100 MiB in one stream, verified and stored on disk / bare stream to a file with fsync"
    return [Rounds(pairs).figure("B8", what, "MB/s", 0.9, at_most=False)]


async def _speed(channel: grpc.aio.Channel, authorization: tuple[str, str], data: bytes) -> float:
    declaration = upload_pb2.UploadDeclaration(
        kind=asset_pb2.ASSET_KIND_DOCUMENT,
        file_name="catalogue.pdf",
        mime_type="application/pdf",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )

    async def parts() -> AsyncIterator[upload_pb2.UploadRequest]:
        yield upload_pb2.UploadRequest(head={"declaration": declaration})
        for start in range(0, len(data), _CHUNK):
            yield upload_pb2.UploadRequest(chunk=data[start : start + _CHUNK])

    stub = upload_pb2_grpc.UploadServiceStub(channel)
    began = time.perf_counter()
    answer = await stub.Upload(parts(), metadata=(authorization,), wait_for_ready=True)
    took = time.perf_counter() - began
    if answer.asset.size_bytes != len(data):
        raise CannotRun(f"{answer.asset.size_bytes} bytes were stored of {len(data)}")
    return len(data) / took / 1e6


def _pdf(size: int) -> bytes:
    """Makes a PDF of the given size with random content, valid to a reader of its structure."""
    document, file = pikepdf.new(), io.BytesIO()
    document.add_blank_page()
    document.Root.Data = document.make_stream(os.urandom(size))
    document.save(file)
    return file.getvalue()


async def _at_once(report: Report) -> list[Figure]:
    pictures = [_jpeg(seed) for seed in range(8)]
    with Site() as site:
        port = free_port()
        storage = site.start(
            "shared.storage.http",
            environment={
                "ATELIER_STORAGE_ROOT": str(site.state.objects),
                "ATELIER_STORAGE_HTTP_PORT": str(port),
                "ATELIER_STORAGE_SECRET_FILE": str(site.state.storage_secret),
            },
        )
        await_port(storage, port)
        served, address = site.assets("serve", ATELIER_STORAGE_URL=f"http://127.0.0.1:{port}")
        memory: list[tuple[int, int]] = []
        errors = 0
        async with AsyncExitStack() as stack:
            clients = await _connected(stack, address, site.authorization)
            for number in range(3):
                took, faults = await _round(clients, pictures)
                errors += len(faults)
                memory.append((_resident(served.pid), _resident(storage.pid)))
                first = f", the first {faults[0]!r}" if faults else ""
                report(
                    f"round {number + 1} of 3: {_UPLOADS / took:.0f} uploads/s, {len(faults)}"
                    f" errors{first}"
                )
    waits = sum(each.waits for each in clients) / 3
    note = (
        f"{_UPLOADS / took:.0f} uploads/s; {waits / _UPLOADS:.1f} times an upload was asked to come"
        " back later"
    )
    growth = max(memory[2][n] / memory[1][n] for n in (0, 1))
    sizes = " MB, ".join(f"{each[0] / _MIB:.0f} + {each[1] / _MIB:.0f}" for each in memory)
    what = "1,000 uploads at once: request, POST, confirm"
    return [
        Figure("B9", f"{what}: errors", "errors", errors, 0, note=note),
        Figure(
            "B9",
            f"{what}: memory after the third thousand / the second",
            "x",
            growth,
            1.1,
            note=f"server + storage after each: {sizes} MB",
        ),
    ]


async def _connected(
    stack: AsyncExitStack, address: str, authorization: tuple[str, str]
) -> "list[_Client]":
    """Opens clients, each with a connection of its own, which `stack` closes."""
    http = await stack.enter_async_context(httpx.AsyncClient(timeout=_PATIENCE))
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [
        await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
        for _ in range(_CLIENTS)
    ]
    return [_Client(channel, http, authorization) for channel in channels]


async def _round(
    clients: "Sequence[_Client]", pictures: Sequence[bytes]
) -> tuple[float, list[BaseException]]:
    """Uploads a thousand pictures at once; returns the seconds and what failed."""
    began = time.perf_counter()
    ended = await asyncio.gather(
        *(clients[n % len(clients)].upload(pictures[n % len(pictures)]) for n in range(_UPLOADS)),
        return_exceptions=True,
    )
    took = time.perf_counter() - began
    return took, [each for each in ended if isinstance(each, BaseException)]


class _Client:
    """Uploads as docs/assets/uploads.md asks of clients that send many files at once."""

    def __init__(
        self, channel: grpc.aio.Channel, http: httpx.AsyncClient, authorization: tuple[str, str]
    ) -> None:
        self.waits = 0
        self._stub = upload_pb2_grpc.UploadServiceStub(channel)
        self._http = http
        self._metadata = (authorization,)

    async def upload(self, data: bytes) -> None:
        declaration = upload_pb2.UploadDeclaration(
            kind=asset_pb2.ASSET_KIND_PHOTO,
            file_name="front.jpg",
            mime_type="image/jpeg",
            size_bytes=len(data),
        )
        async with asyncio.timeout(_PATIENCE):
            requested = await self._call(
                self._stub.RequestUpload, upload_pb2.RequestUploadRequest(declaration=declaration)
            )
            target = requested.target
            sent = await self._http.post(
                target.url, data=dict(target.fields), files={"file": ("file", data)}
            )
            sent.raise_for_status()
            confirmed = await self._call(
                self._stub.ConfirmUpload,
                upload_pb2.ConfirmUploadRequest(upload_id=requested.upload_id),
            )
        assert confirmed.asset.state == asset_pb2.ASSET_STATE_READY

    async def _call(self, method: Any, request: Any) -> Any:
        for refusals in itertools.count():
            try:
                return await method(
                    request, metadata=self._metadata, timeout=_PATIENCE, wait_for_ready=True
                )
            except grpc.aio.AioRpcError as error:
                pause = min(_retry_seconds(error) * 2**refusals, _LONGEST_PAUSE)
                if not pause:
                    raise
                self.waits += 1
                await asyncio.sleep(random.uniform(pause, 2 * pause))


def _retry_seconds(error: grpc.aio.AioRpcError) -> float:
    """Returns the seconds after which the server says a repeat may help; 0 if it says nothing."""
    trailers: dict[str, Any] = dict(error.trailing_metadata() or ())
    info = error_details_pb2.RetryInfo()
    for detail in status_pb2.Status.FromString(
        trailers.get("grpc-status-details-bin", b"")
    ).details:
        if detail.Unpack(info):
            return info.retry_delay.ToMilliseconds() / 1000
    return 0.0


def _jpeg(seed: int) -> bytes:
    noise = pyvips.Image.gaussnoise(160, 120, mean=128, sigma=40, seed=seed).cast("uchar")
    return bytes(noise.bandjoin([noise, noise]).copy(interpretation="srgb").jpegsave_buffer(Q=85))


def _resident(pid: int) -> int:
    """Returns the bytes of memory that a process holds now, without its children."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
