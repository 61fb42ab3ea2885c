"""B13: purging a session of many assets, with rows, variants and bytes, compared with one DELETE
and an unlink per file.

Ours is the run with everything on: the trash's rules, an event per asset, bytes noted before they
are deleted. Meanwhile four clients read an asset; their slowest calls are compared with those of a
quiet time.
"""

import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc, storage_pb2, storage_pb2_grpc

from bench.figure import CannotRun, Figure, Report
from bench.site import OWNER, Site
from shared.database.ids import new_id
from shared.storage import open_disk

_ASSETS = 100_000
_VARIANTS = ("thumb", "small")
_READERS = 4
_PAUSE_SECONDS = 0.02
_QUIET_SECONDS = 20
_PATIENCE_SECONDS = 1800
_SEED = """
    INSERT INTO assets.assets (id, owner, created_by, kind, state, public, free, file_name,
        size_bytes, mime_type,
                               session_id, storage_key, sha256)
    SELECT id, %s, 'ada', 'photo', 'ready', false, true, 'front.jpg', 100, 'image/jpeg', %s,
           'assets/user/' || id || '/original/1', 'ab'
    FROM unnest(%s::uuid[]) AS id
"""
_SEED_VARIANTS = """
    INSERT INTO assets.variants (id, owner, asset_id, preset, state, size_bytes, storage_key)
    SELECT gen_random_uuid(), a.owner, a.id, preset, 'ready', 100, 'assets/user/' || a.id
        || '/variants/' || preset
    FROM assets.assets a, unnest(%s::text[]) AS preset WHERE a.session_id = %s
"""
_LEFT = """
    SELECT (SELECT count(*) FROM assets.storage_runs WHERE state <> 'done'), EXISTS (SELECT
        FROM assets.doomed_objects)
"""


def bulk(report: Report) -> list[Figure]:
    return asyncio.run(_bulk(report))


async def _bulk(report: Report) -> list[Figure]:
    with Site() as site:
        _, address = site.assets("serve")
        site.assets("work")
        data = site.state.objects / "data"
        picture = await _picture(site, data)
        read = _fill(site, data, "kept", picture, 1)[0].split("/")[2]
        async with grpc.aio.insecure_channel(address) as channel:
            reader = _Reader(channel, site.authorization, read)
            pairs: list[tuple[float, float]] = []
            p99s: list[tuple[float, float]] = []
            for number in range(2):
                report(f"round {number + 1}: making {2 * _ASSETS:,} assets")
                _fill(site, data, "ours", picture, _ASSETS)
                keys = _fill(site, data, "reference", picture, _ASSETS)
                site.sql("ANALYZE")
                os.sync()  # deleting a file that isn't on the disk yet costs almost nothing
                report(f"round {number + 1}: reading alone")
                quiet = await reader.read_until(asyncio.create_task(asyncio.sleep(_QUIET_SECONDS)))
                report(f"round {number + 1}: purging through the run")
                purging = asyncio.create_task(_purge(site, channel, data))
                busy = await reader.read_until(purging)
                report(f"round {number + 1}: DELETE and unlink")
                pairs.append((await purging, await asyncio.to_thread(_reference, site, data, keys)))
                p99s.append((busy, quiet))
    return [
        _figure(f"{_ASSETS:,} assets with variants and bytes purged / DELETE + unlink", "s", pairs),
        _figure("p99 of GetAsset meanwhile / otherwise", "ms", p99s),
    ]


def _figure(what: str, unit: str, pairs: Sequence[tuple[float, float]]) -> Figure:
    ratios = [ours / reference for ours, reference in pairs]
    ours, reference = (statistics.median(side) for side in zip(*pairs, strict=True))
    note = f"ratios {', '.join(f'{ratio:.2f}' for ratio in ratios)}"
    return Figure("B13", what, unit, ours, 2.0, reference, statistics.median(ratios), note=note)


def _fill(site: Site, data: Path, session: str, picture: bytes, number: int) -> list[str]:
    """Makes objects and rows, in the order in which the server makes them. Returns the keys."""
    ids = [str(new_id()) for _ in range(number)]
    keys = []
    for asset_id in ids:
        folder = data / "assets" / "user" / asset_id
        for name in ("original/1", *(f"variants/{preset}" for preset in _VARIANTS)):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture)
            keys.append(f"assets/user/{asset_id}/{name}")
    site.sql(_SEED, (OWNER, session, ids))
    site.sql(_SEED_VARIANTS, (list(_VARIANTS), session))
    return keys


async def _picture(site: Site, data: Path) -> bytes:
    """Returns an object in the store's own format: the reconciler takes any other for lost and
    would repair it during the measurement."""
    store = open_disk(site.state.objects, base_url="http://127.0.0.1:1", secret=b"-" * 32)
    await store.put("picture", b"x" * 100, content_type="image/jpeg")
    await store.close()
    return (data / "picture").read_bytes()


async def _purge(site: Site, channel: grpc.aio.Channel, data: Path) -> float:
    """Purges the session; returns the seconds until no row and no byte is left."""
    start = time.perf_counter()
    request = storage_pb2.DeleteSessionRequest(session_id="ours", purge=True)
    await storage_pb2_grpc.StorageServiceStub(channel).DeleteSession(
        request, metadata=(site.authorization,)
    )
    while await asyncio.to_thread(site.sql, _LEFT) != [(0, False)]:
        if time.perf_counter() - start > _PATIENCE_SECONDS:
            raise CannotRun(f"the purge did not end in {_PATIENCE_SECONDS} s")
        await asyncio.sleep(0.1)
    seconds = time.perf_counter() - start
    left = site.sql("SELECT count(*) FROM assets.assets WHERE session_id = 'ours'")
    if left != [(0,)]:
        raise CannotRun(f"{left[0][0]} assets are left after the purge")
    return seconds


def _reference(site: Site, data: Path, keys: Sequence[str]) -> float:
    start = time.perf_counter()
    site.sql("DELETE FROM assets.assets WHERE session_id = 'reference'")
    for key in keys:
        (data / key).unlink()
    return time.perf_counter() - start


class _Reader:
    """Four clients that read an asset, each at a steady pace."""

    def __init__(
        self, channel: grpc.aio.Channel, authorization: tuple[str, str], asset_id: str
    ) -> None:
        self._get = asset_pb2_grpc.AssetServiceStub(channel).GetAsset
        self._metadata = (authorization,)
        self._request = asset_pb2.GetAssetRequest(asset_id=asset_id)

    async def read_until(self, done: "asyncio.Task[Any]") -> float:
        """Returns the 99th percentile of a call in milliseconds, over the calls until `done` is
        done."""
        took: list[float] = []
        await asyncio.gather(*(self._read(done, took) for _ in range(_READERS)))
        return statistics.quantiles(took, n=100)[98] * 1000

    async def _read(self, done: "asyncio.Task[Any]", took: list[float]) -> None:
        while not done.done():
            start = time.perf_counter()
            await self._get(self._request, metadata=self._metadata)
            took.append(time.perf_counter() - start)
            await asyncio.sleep(_PAUSE_SECONDS)
