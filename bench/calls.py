"""B1, B2, B3: what a call costs the server, compared with the least that can answer it and with
FastAPI.

The measure is the CPU time of the server's process. Rounds of ours and of the reference alternate,
so that other load on the machine affects both. Postgres runs in processes of its own and isn't
counted.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import grpc
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc, upload_pb2, upload_pb2_grpc

from bench.figure import CannotRun, Figure, Report, Rounds, cpu_seconds
from bench.site import Site
from shared.database.ids import new_id

_CALLERS = 8
_WARM_UP = 800
_CALLS = 400
_ROUNDS = 31
_FACTS = {
    "colours": [["#f5f4f2", 0.71], ["#39424e", 0.2], ["#8a6f5c", 0.06]],
    "placeholder": "3OcRJYB4d3h/iIeHeEh3eIhw+j2w",
    "focal_x": 0.4813,
    "focal_y": 0.3725,
    "sharpness": 0.8127,
    "exposure": 0.7319,
}

Call = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class Party:
    """One side of a comparison: the server's process, and one call of it."""

    pid: int
    call: Call


def reading(report: Report) -> list[Figure]:
    """Measures B1."""
    return asyncio.run(_reading(report))


def against_fastapi(report: Report) -> list[Figure]:
    """Measures B2."""
    return asyncio.run(_against_fastapi(report))


def creating(report: Report) -> list[Figure]:
    """Measures B3."""
    return asyncio.run(_creating(report))


async def _reading(report: Report) -> list[Figure]:
    with Site() as site:
        served, address = site.assets("serve")
        bare, bare_address = site.server("bench.bare")
        asset_id = await seed(site, address)
        async with (
            grpc.aio.insecure_channel(address) as ours,
            grpc.aio.insecure_channel(bare_address) as least,
        ):
            request = asset_pb2.GetAssetRequest(asset_id=asset_id)
            metadata = (site.authorization,)
            get = asset_pb2_grpc.AssetServiceStub(ours).GetAsset
            get_bare = asset_pb2_grpc.AssetServiceStub(least).GetAsset
            if await get(request, metadata=metadata) != await get_bare(request):
                raise CannotRun(
                    "ours and the reference answer differently; bench/bare.py has to follow the"
                    " contract"
                )
            rounds = await _compare(
                report,
                Party(served.pid, lambda: get(request, metadata=metadata)),
                Party(bare.pid, lambda: get_bare(request)),
            )
    what = "GetAsset, everything on / bare handler and one query"
    return [
        rounds.figure("B1", what, "µs CPU", 1.25),
    ]


async def _against_fastapi(report: Report) -> list[Figure]:
    with Site() as site:
        served, address = site.assets("serve")
        rest, rest_address = site.server("bench.rest")
        asset_id = await seed(site, address)
        async with grpc.aio.insecure_channel(address) as ours:
            request = asset_pb2.GetAssetRequest(asset_id=asset_id)
            metadata = (site.authorization,)
            get = asset_pb2_grpc.AssetServiceStub(ours).GetAsset
            client = HttpClient(rest_address, f"/assets/{asset_id}", site.authorization)
            answer, expected = json.loads(await client.get()), await get(request, metadata=metadata)
            if answer["storage_key"] != expected.asset.file_path or answer["tags"] != list(
                expected.asset.tags
            ):
                raise CannotRun(
                    "ours and the reference answer differently; bench/rest.py has to follow the"
                    " contract"
                )
            rounds = await _compare(
                report,
                Party(served.pid, lambda: get(request, metadata=metadata)),
                Party(rest.pid, client.get),
            )
            client.close()
    per_second = Rounds([(1e6 / ours, 1e6 / reference) for ours, reference in rounds.pairs])
    what = "GetAsset, everything on / FastAPI, asyncpg, RLS, JWT, pydantic"
    return [per_second.figure("B2", what, "calls/s per core", 1.0, at_most=False)]


async def _creating(report: Report) -> list[Figure]:
    with Site() as site:
        served, address = site.assets("serve")
        bare, bare_address = site.server("bench.bare")
        async with (
            grpc.aio.insecure_channel(address) as ours,
            grpc.aio.insecure_channel(bare_address) as least,
        ):
            metadata = (site.authorization,)
            create = upload_pb2_grpc.UploadServiceStub(ours).RequestUpload
            create_bare = upload_pb2_grpc.UploadServiceStub(least).RequestUpload
            rounds = await _compare(
                report,
                Party(served.pid, lambda: create(upload_request(), metadata=metadata)),
                Party(bare.pid, lambda: create_bare(upload_request())),
            )
    what = "RequestUpload: idempotent, RLS, event, signed form / bare handler and one INSERT"
    return [rounds.figure("B3", what, "µs CPU", 1.8)]


def upload_request() -> upload_pb2.RequestUploadRequest:
    declaration = upload_pb2.UploadDeclaration(
        kind=asset_pb2.ASSET_KIND_PHOTO,
        file_name="front.jpg",
        mime_type="image/jpeg",
        size_bytes=2_140_026,
        tags=["front", "studio", "spring"],
        scope=asset_pb2.AssetScope(session_id="visit-7", room_id="studio"),
    )
    declaration.metadata.update({"camera": "X100", "shot": 12, "lights": ["key", "fill"]})
    return upload_pb2.RequestUploadRequest(request_id=str(new_id()), declaration=declaration)


async def seed(site: Site, address: str) -> str:
    """Makes a READY asset with tags, metadata and facts. Returns its id."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = upload_pb2_grpc.UploadServiceStub(channel)
        answer = await stub.RequestUpload(
            upload_request(), metadata=(site.authorization,), wait_for_ready=True
        )
    asset_id = UUID(answer.asset.id)
    site.sql(
        "UPDATE assets.assets SET state = 'ready', width = 3000, height = 4000, sha256 = %s, facts"
        " = %s::jsonb, storage_key = 'assets/user:ada/visit-7/studio/' || id || '/original/01'"
        " WHERE id = %s",
        ("ab" * 32, json.dumps(_FACTS), asset_id),
    )
    return str(asset_id)


async def _compare(report: Report, ours: Party, reference: Party) -> Rounds:
    """Measures microseconds of the server's CPU per call, in alternating rounds."""
    for party in (ours, reference):
        await _cost_per_call(party, _WARM_UP)
    pairs = []
    for number in range(_ROUNDS):
        pairs.append((await _cost_per_call(ours, _CALLS), await _cost_per_call(reference, _CALLS)))
        report(
            f"round {number + 1} of {_ROUNDS}: {pairs[-1][0]:.0f} µs, reference"
            f" {pairs[-1][1]:.0f} µs"
        )
    return Rounds(pairs)


async def _cost_per_call(party: Party, calls: int) -> float:
    async def caller() -> None:
        for _ in range(calls // _CALLERS):
            await party.call()

    before = cpu_seconds(party.pid)
    await asyncio.gather(*(caller() for _ in range(_CALLERS)))
    return (cpu_seconds(party.pid) - before) / (calls // _CALLERS * _CALLERS) * 1e6


class HttpClient:
    """Repeats one GET over kept connections. A client library would cost more than the server."""

    def __init__(self, address: str, path: str, header: tuple[str, str]) -> None:
        self._host, _, self._port = address.partition(":")
        self._request = (
            f"GET {path} HTTP/1.1\r\nhost: {address}\r\n{header[0]}: {header[1]}\r\n\r\n".encode()
        )
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def get(self) -> bytes:
        reader, writer = (
            self._idle.pop()
            if self._idle
            else await asyncio.open_connection(self._host, self._port)
        )
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise CannotRun(f"bench/rest.py answered {head[:40]!r}")
        body = await reader.readexactly(
            int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        )
        self._idle.append((reader, writer))
        return body

    def close(self) -> None:
        for _, writer in self._idle:
            with suppress(OSError):
                writer.close()
