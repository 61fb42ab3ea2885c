"""Variants: one decode makes all presets of an image. A `renditions` row is the job, `variants` rows its results."""

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from atelier.assets.v1 import variant_pb2 as pb
from atelier.assets.v1 import variant_pb2_grpc

from services.assets import assets, rules
from services.assets.visibility import belongs
from shared import attempts, errors, imaging, jobs
from shared.db import Database, Mutation
from shared.ids import new_id, parse_id
from shared.imaging import DEFAULT_PRESETS, ImageRejected, ImagingPool
from shared.storage import ObjectNotFound, Storage, StorageError

TASK = "make_variants"
QUEUE = "images"
MAX_ATTEMPTS = 6  # with their pauses some two minutes, in which a store may come back or be given room
PRESETS = {preset.name: preset for preset in DEFAULT_PRESETS}
JOB_STATES = {
    "pending": frozenset({"running", "failed", "cancelled"}),
    "running": frozenset({"running", "pending", "done", "failed", "cancelled"}),
    "done": frozenset[str](),
    "failed": frozenset[str](),
    "cancelled": frozenset[str](),
}


async def ask(m: Mutation, queue: jobs.JobQueue, asset: Any, presets: Sequence[str], *, priority: int) -> list[Any]:
    """Asks for presets of a READY image whose row is locked. Those already on their way are left. Returns all rows."""
    wanted = await m.all(
        "INSERT INTO variants AS v (id, owner, asset_id, preset)"
        " SELECT * FROM unnest(%(ids)s::uuid[], %(owners)s::text[], %(assets)s::uuid[], %(presets)s::text[])"
        " ON CONFLICT (asset_id, preset) DO UPDATE SET state = 'pending', version = v.version + 1,"
        "   updated_at = now(), error_class = '', error_message = ''"
        " WHERE v.state IN ('ready', 'failed') RETURNING *",
        {"ids": [new_id() for _ in presets], "owners": [m.owner] * len(presets), "assets": [asset.id] * len(presets),
         "presets": list(presets)},
    )  # fmt: skip
    for row in wanted:
        await assets.publish_variant(m, row)
    if wanted:
        rendition = new_id()
        await m.run(
            "INSERT INTO renditions (id, owner, asset_id, presets) VALUES (%s, %s, %s, %s)",
            (rendition, m.owner, asset.id, [row.preset for row in wanted]),
        )
        await queue.enqueue(m, TASK, QUEUE, rendition, priority=priority)
    return await m.all("SELECT * FROM variants WHERE asset_id = %s ORDER BY preset", (asset.id,))


class VariantService(variant_pb2_grpc.VariantServiceServicer):
    def __init__(self, db: Database, queue: jobs.JobQueue, urls: assets.Urls) -> None:
        self._db = db
        self._queue = queue
        self._urls = urls

    async def ListVariants(self, request: pb.ListVariantsRequest, context: Any) -> pb.ListVariantsResponse:
        asset_id = parse_id(request.asset_id, "asset_id")
        rows = await self._db.rows("SELECT v.* FROM variants v WHERE v.asset_id = %s ORDER BY v.preset", (asset_id,))
        if not rows and await self._db.row("SELECT id FROM assets WHERE id = %s", (asset_id,)) is None:
            raise errors.not_found("asset", asset_id)
        urls = self._urls if request.include_urls else None
        if urls and rows:  # a page shows one of them
            urls.meter.issued(rows[0].owner, "", max(row.size_bytes for row in rows))
        return pb.ListVariantsResponse(variants=[assets.variant_to_proto(row, urls) for row in rows])

    async def RegenerateVariants(
        self, request: pb.RegenerateVariantsRequest, context: Any
    ) -> pb.RegenerateVariantsResponse:
        asset_id = parse_id(request.asset_id, "asset_id")
        for index, name in enumerate(request.presets):
            if name not in PRESETS:
                raise errors.invalid(f"presets[{index}]", f"{name!r} is not a preset; there are {', '.join(PRESETS)}")

        async def work(m: Mutation) -> pb.RegenerateVariantsResponse:
            asset = await assets.lock(m, asset_id)
            if asset.state != "ready" or asset.mime_type == rules.PDF:
                what = "a PDF has no variants" if asset.mime_type == rules.PDF else f"it is {asset.state}"
                raise errors.precondition(f"{what}; variants are made of READY images", subject=f"assets/{asset_id}")
            rows = await ask(m, self._queue, asset, request.presets or list(PRESETS), priority=jobs.FRESH)
            return pb.RegenerateVariantsResponse(variants=[assets.variant_to_proto(row) for row in rows])

        return await self._db.mutate(request, pb.RegenerateVariantsResponse, work)


class VariantMaker:
    """The job: fetch the original, make what is asked for, store it, then let the rows show it."""

    def __init__(self, db: Database, storage: Storage, pool: ImagingPool) -> None:
        self._db = db
        self._storage = storage
        self._pool = pool
        self._kind = attempts.Kind("renditions", JOB_STATES, "running", "done", _follow, max_attempts=MAX_ATTEMPTS)

    async def run(self, rendition_id: str) -> None:
        await attempts.run(self._db, self._kind, rendition_id, self._make)

    async def _make(self, attempt: attempts.Attempt) -> attempts.Outcome:
        job = attempt.row
        async with self._db.transaction(job.owner) as m:
            asset = await m.one("SELECT * FROM assets WHERE id = %s", (job.asset_id,))
        directory = Path(tempfile.mkdtemp(prefix="atelier-"))
        try:
            original = directory / "original"
            await self._storage.fetch(asset.storage_key, original)
            attempt.input_bytes = asset.size_bytes
            presets = [PRESETS[name] for name in job.presets]
            made = await self._pool.run(imaging.make_variants, original, presets, directory)
            return await self._store(attempt, asset, made)
        except ImageRejected as refusal:
            raise attempts.JobFailed(refusal.reason, refusal.message) from None
        except ObjectNotFound:
            raise attempts.JobFailed("ORIGINAL_GONE", "the original is no longer stored") from None
        except StorageError as error:
            raise attempts.JobFailed("STORAGE", str(error), final=False) from None
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    async def _store(self, attempt: attempts.Attempt, asset: Any, made: Sequence[imaging.Variant]) -> attempts.Outcome:
        """Keys hold the attempt, so that two tries never write the same object."""
        scope = {name: getattr(asset, name) for name in assets.SCOPES}
        stored: dict[str, imaging.Variant] = {}
        try:
            for variant in made:
                unique = f"{variant.name}-{variant.sha256[:16]}-{attempt.token}.{variant.format}"
                key = rules.object_key(
                    asset.owner, scope, str(asset.id), unique, folder="variants", public=asset.public
                )
                stored[key] = variant
                await self._storage.put(key, variant.path, content_type=variant.mime_type, sha256=variant.sha256)
        except BaseException:  # also when cancelled, because somebody asked for it or another try has the row
            await asyncio.shield(self._storage.delete(list(stored)))
            raise
        replaced: list[str] = []

        async def show(m: Mutation, _job: Any) -> None:
            replaced.extend(await _show(m, asset.id, stored))

        async def remove_replaced() -> None:
            await self._storage.delete(replaced)

        async def remove_stored() -> None:
            await self._storage.delete(list(stored))

        return attempts.Outcome(
            {}, output_bytes=sum(v.size for v in made), also=show, after=remove_replaced, undo=remove_stored
        )


async def _show(m: Mutation, asset_id: UUID, stored: dict[str, imaging.Variant]) -> list[str]:
    """Points the rows at the stored objects. Returns the keys they pointed at before."""
    asset = await assets.lock(m, asset_id)
    if not all(belongs(key, asset) for key in stored):
        raise attempts.JobFailed("MOVED", "the asset's visibility changed meanwhile", final=False)
    before = await m.all("SELECT preset, storage_key FROM variants WHERE asset_id = %s", (asset_id,))
    for key, variant in stored.items():
        row = await m.one(
            "UPDATE variants SET state = 'ready', version = version + 1, updated_at = now(), storage_key = %(key)s,"
            " mime_type = %(mime)s, width = %(width)s, height = %(height)s, size_bytes = %(bytes)s,"
            " sha256 = %(sha256)s WHERE asset_id = %(asset_id)s AND preset = %(preset)s RETURNING *",
            {"key": key, "mime": variant.mime_type, "width": variant.width, "height": variant.height,
             "bytes": variant.size, "sha256": variant.sha256, "asset_id": asset_id, "preset": variant.name},
        )  # fmt: skip
        await assets.publish_variant(m, row)
    made = {variant.name for variant in stored.values()}
    return [row.storage_key for row in before if row.preset in made and row.storage_key]


async def _follow(m: Mutation, job: Any) -> None:
    """Keeps the variants' states in step with their job's."""
    state = {"running": "processing", "pending": "pending", "failed": "failed", "cancelled": "failed"}.get(job.state)
    if state is None:
        return
    rows = await m.all(
        "UPDATE variants SET state = %(state)s, version = version + 1, updated_at = now(),"
        " error_class = %(error_class)s, error_message = %(error_message)s"
        " WHERE asset_id = %(asset_id)s AND preset = ANY(%(presets)s) RETURNING *",
        {"state": state, "asset_id": job.asset_id, "presets": job.presets,
         "error_class": job.error_class if state == "failed" else "",
         "error_message": job.error_message if state == "failed" else ""},
    )  # fmt: skip
    for row in rows:
        await assets.publish_variant(m, row)
