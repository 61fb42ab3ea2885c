"""Variants: one decode makes all presets of an image. A `renditions` row is the job, `variants`
rows its results."""

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from atelier.assets.v1 import asset_pb2, variant_pb2_grpc
from atelier.assets.v1 import variant_pb2 as pb

from services.assets.core import assets, rules
from services.assets.core.visibility import belongs
from services.assets.variants.presets import Presets
from shared import imaging
from shared.background import attempts, jobs, waiting
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.imaging import ImageRejected, ImagingPool, Reason
from shared.rpc import auth, errors
from shared.storage import ObjectNotFound, Storage

TASK = "make_variants"
QUEUE = "images"
# The original is at fault, so that trying again with the same bytes changes nothing.
UNDECODABLE = (str(Reason.CORRUPT), str(Reason.NOT_SUPPORTED), str(Reason.TYPE_NOT_ALLOWED))
_PRIORITY_FOR_OTHERS = (jobs.FRESH + jobs.BACKFILL) // 2
_MOST_FOR_OTHERS = (
    20  # of one owner's variants that others wait for; owners of public images aren't to be flooded
)
_LONGEST_WAIT_SECONDS = 20.0

_VARIANTS = """
    SELECT v.*, a.deleted_at FROM variants v JOIN assets a ON a.id = v.asset_id
    WHERE v.asset_id = %(id)s ORDER BY v.preset
"""
_VARIANT = """
    SELECT v.*, a.deleted_at FROM variants v JOIN assets a ON a.id = v.asset_id
    WHERE v.asset_id = %(id)s AND v.preset = %(preset)s
"""
_CURABLE = """
    SELECT preset FROM variants WHERE asset_id = %(id)s AND preset = ANY(%(presets)s) AND state
        = 'failed'
        AND NOT error_class = ANY(%(final)s)
"""
_WAITING_FOR_OTHERS = """
    SELECT count(*) AS number FROM renditions WHERE owner = %s AND for_others
        AND state IN ('pending', 'running')
"""

_COUNT_FOR_BACKFILL = """
    UPDATE backfills SET made = made + %(made)s, failed = failed + 1 - %(made)s, updated_at
        = now() WHERE id = %(id)s
"""


async def plan(
    m: Mutation,
    asset: Any,
    presets: Sequence[str],
    *,
    again: Sequence[str],
    for_others: bool = False,
    backfill_id: UUID | None = None,
) -> UUID | None:
    """Writes down that presets of a READY image whose row is locked are to be made. Returns the
    rendition that shall make them, None if there is nothing to do.

    Those already on their way are left; of those that came to an end, the ones in a state of
    `again` are made again.
    """
    wanted = await m.all(
        "INSERT INTO variants AS v (id, owner, asset_id, preset) SELECT * FROM"
        " unnest(%(ids)s::uuid[], %(owners)s::text[], %(assets)s::uuid[], %(presets)s::text[]) ON"
        " CONFLICT (asset_id, preset) DO UPDATE SET state = 'pending', version = v.version + 1,  "
        " updated_at = now(), error_class = '', error_message = '', waits_for = '', waiting_since ="
        " NULL WHERE v.state = ANY(%(again)s) RETURNING *",
        {
            "ids": [new_id() for _ in presets],
            "owners": [m.owner] * len(presets),
            "assets": [asset.id] * len(presets),
            "presets": list(presets),
            "again": list(again),
        },
    )
    for row in wanted:
        await assets.publish_variant(m, row)
    if not wanted:
        return None
    rendition: UUID = new_id()
    await m.run(
        "INSERT INTO renditions (id, owner, asset_id, presets, for_others, backfill_id)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        (rendition, m.owner, asset.id, [row.preset for row in wanted], for_others, backfill_id),
    )
    return rendition


async def ask(
    m: Mutation,
    queue: jobs.JobQueue,
    asset: Any,
    presets: Sequence[str],
    *,
    priority: int,
    again: Sequence[str] = ("ready", "failed"),
    for_others: bool = False,
) -> list[Any]:
    """`plan`, and the job that does it. Returns all the asset's variants."""
    rendition = await plan(m, asset, presets, again=again, for_others=for_others)
    if rendition:
        await queue.enqueue(m, TASK, QUEUE, rendition, priority=priority)
    return await m.all("SELECT * FROM variants WHERE asset_id = %s ORDER BY preset", (asset.id,))


def _refuse_unless_image(asset: Any) -> None:
    problem = assets.unusable(asset) or (
        "a PDF has no variants" if asset.mime_type == rules.PDF else ""
    )
    if problem:
        raise errors.precondition(
            f"{problem}; variants are made of READY images", subject=f"assets/{asset.id}"
        )


class OnDemand:
    """Variants that are made because somebody asks for them."""

    def __init__(self, db: Database, queue: jobs.JobQueue, presets: Presets) -> None:
        self._db = db
        self._queue = queue
        self._presets = presets

    async def get(self, asset_id: UUID, preset: str, field: str) -> Any:
        """The variant's row, with `deleted_at` of its asset. If there was none, there is one now,
        and its job.

        NOT_FOUND, INVALID_ARGUMENT on `field`, FAILED_PRECONDITION and OVERLOADED as GetVariant
        says.
        """
        row = await self._db.row(_VARIANT, {"id": asset_id, "preset": preset})
        if row is None:
            asset = await self._db.row("SELECT * FROM assets WHERE id = %s", (asset_id,))
            if asset is None:
                raise errors.not_found("asset", asset_id)
            self._presets.check({field: preset})
            await self._start(asset, preset)
            row = await self._db.row(_VARIANT, {"id": asset_id, "preset": preset})
        if row is None:
            raise errors.not_found("asset", asset_id)  # it went meanwhile
        return row

    async def finished(self, asset_id: UUID, preset: str, field: str, seconds: float) -> Any:
        """The row once it is READY or FAILED, or as it is after `seconds`."""

        async def read() -> Any:
            return await self.get(asset_id, preset, field)

        return await waiting.until_seen(read, lambda row: row.state in ("ready", "failed"), seconds)

    async def ready(self, asset_id: UUID, preset: str, seconds: float | None) -> Any:
        """For a download: the row of the READY variant. FAILED_PRECONDITION, with RetryInfo if it
        is still on its way when the time is over; a tenth of it is kept to say so."""
        wait = (
            _LONGEST_WAIT_SECONDS if seconds is None else min(0.9 * seconds, _LONGEST_WAIT_SECONDS)
        )
        row = await self.finished(asset_id, preset, "variant", wait)
        subject = f"assets/{asset_id}/variants/{preset}"
        if row.state == "failed":
            text = f"it can't be made ({row.error_class}): {row.error_message}"
            raise errors.precondition(text, subject=subject)
        if row.state != "ready":
            raise errors.precondition(
                "it is being made; try again in a moment", subject=subject, retry_seconds=2
            )
        return row

    async def _start(self, asset: Any, preset: str) -> None:
        """As the asset's owner: of a public asset anybody may have a variant made, once and for
        all."""
        caller = auth.current()
        for_others = asset.owner != caller.owner
        async with self._db.transaction(asset.owner, caller.actor) as m:
            locked = await assets.lock(m, asset.id)
            if for_others and not locked.public:
                raise errors.not_found("asset", asset.id)
            _refuse_unless_image(locked)
            if for_others:
                [asked] = await m.all(_WAITING_FOR_OTHERS, (m.owner,))
                if asked.number >= _MOST_FOR_OTHERS:
                    text = (
                        "others wait for many variants of this owner right now; nothing was"
                        " started, try again"
                    )
                    raise errors.retry_later(errors.Reason.ERROR_REASON_OVERLOADED, text, 2)
            priority = _PRIORITY_FOR_OTHERS if for_others else jobs.FRESH
            await ask(
                m, self._queue, locked, [preset], priority=priority, again=(), for_others=for_others
            )


class VariantService(variant_pb2_grpc.VariantServiceServicer):
    def __init__(
        self,
        db: Database,
        queue: jobs.JobQueue,
        urls: assets.Urls,
        presets: Presets,
        on_demand: OnDemand,
    ) -> None:
        self._db = db
        self._queue = queue
        self._urls = urls
        self._presets = presets
        self._on_demand = on_demand

    async def GetVariant(
        self, request: pb.GetVariantRequest, context: Any
    ) -> pb.GetVariantResponse:
        asset_id = parse_id(request.asset_id, "asset_id")
        if request.wait:
            row = await self._on_demand.finished(
                asset_id, request.preset, "preset", waiting.patience()
            )
        else:
            row = await self._on_demand.get(asset_id, request.preset, "preset")
        shown = self._shown(row, request.include_urls)
        if shown.url:
            self._urls.meter.issued(row.owner, "", row.size_bytes)
        return pb.GetVariantResponse(variant=shown)

    async def ListVariants(
        self, request: pb.ListVariantsRequest, context: Any
    ) -> pb.ListVariantsResponse:
        asset_id = parse_id(request.asset_id, "asset_id")
        rows = await self._db.rows(_VARIANTS, {"id": asset_id})
        if (
            not rows
            and await self._db.row("SELECT id FROM assets WHERE id = %s", (asset_id,)) is None
        ):
            raise errors.not_found("asset", asset_id)
        shown = [self._shown(row, request.include_urls) for row in rows]
        if fetched := [
            variant.size_bytes for variant in shown if variant.url
        ]:  # a page shows one of them
            self._urls.meter.issued(rows[0].owner, "", max(fetched))
        return pb.ListVariantsResponse(variants=shown)

    def _shown(self, row: Any, include_urls: bool) -> asset_pb2.Variant:
        return assets.variant_to_proto(
            row, self._urls if include_urls and not row.deleted_at else None
        )

    async def RegenerateVariants(
        self, request: pb.RegenerateVariantsRequest, context: Any
    ) -> pb.RegenerateVariantsResponse:
        asset_id = parse_id(request.asset_id, "asset_id")
        self._presets.check(
            {f"presets[{index}]": name for index, name in enumerate(request.presets)}
        )

        async def work(m: Mutation) -> pb.RegenerateVariantsResponse:
            asset = await assets.lock(m, asset_id)
            _refuse_unless_image(asset)
            presets = request.presets or list(self._presets.by_name)
            if request.only_failed:
                rows = await m.all(
                    _CURABLE, {"id": asset_id, "presets": list(presets), "final": list(UNDECODABLE)}
                )
                presets = [row.preset for row in rows]
            rows = await ask(m, self._queue, asset, presets, priority=jobs.FRESH)
            return pb.RegenerateVariantsResponse(
                variants=[assets.variant_to_proto(row) for row in rows]
            )

        return await self._db.mutate(request, pb.RegenerateVariantsResponse, work)


class VariantMaker:
    """The job: fetch the original, make what is asked for, store it, then let the rows show it."""

    def __init__(self, db: Database, storage: Storage, pool: ImagingPool, presets: Presets) -> None:
        self._db = db
        self._storage = storage
        self._pool = pool
        self._presets = presets
        self._kind = attempts.Kind("renditions", rules.JOB_STATES, "running", "done", _follow)

    async def run(self, rendition_id: str) -> None:
        await attempts.run(self._db, self._kind, rendition_id, self._make)

    async def _make(self, attempt: attempts.Attempt) -> attempts.Outcome:
        job = attempt.row
        async with self._db.transaction(job.owner) as m:
            asset = await m.one("SELECT * FROM assets WHERE id = %s", (job.asset_id,))
        if asset is None:  # purged, and this job's row with it
            raise attempts.Superseded
        if unknown := [name for name in job.presets if name not in self._presets.by_name]:
            text = f"{unknown[0]} is no longer a preset"
            raise attempts.JobFailed("PRESET_UNKNOWN", text)
        presets = [self._presets.by_name[name] for name in job.presets]
        directory = Path(tempfile.mkdtemp(prefix="atelier-"))
        try:
            original = directory / "original"
            await self._storage.fetch(asset.storage_key, original)
            attempt.input_bytes = asset.size_bytes
            made = await self._pool.run(
                imaging.make_variants, original, presets, directory, asset.source_type
            )
            return await self._store(attempt, asset, made)
        except ImageRejected as refusal:
            raise attempts.JobFailed(refusal.reason, refusal.message) from None
        except ObjectNotFound:
            raise attempts.JobFailed("ORIGINAL_GONE", "the original is no longer stored") from None
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    async def _store(
        self, attempt: attempts.Attempt, asset: Any, made: Sequence[imaging.Variant]
    ) -> attempts.Outcome:
        """Keys hold the attempt, so that two tries never write the same object."""
        scope = {name: getattr(asset, name) for name in assets.SCOPES}
        stored: dict[str, imaging.Variant] = {}
        try:
            for variant in made:
                unique = f"{variant.name}-{variant.sha256[:16]}-{attempt.token}.{variant.format}"
                key = rules.object_key(
                    asset.owner,
                    scope,
                    str(asset.id),
                    unique,
                    folder="variants",
                    public=asset.public,
                )
                stored[key] = variant
                await self._storage.put(
                    key, variant.path, content_type=variant.mime_type, sha256=variant.sha256
                )
        except (
            BaseException
        ):  # also when cancelled, because somebody asked for it or another try has the row
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
            {},
            output_bytes=sum(v.size for v in made),
            also=show,
            after=remove_replaced,
            undo=remove_stored,
        )


async def _show(m: Mutation, asset_id: UUID, stored: dict[str, imaging.Variant]) -> list[str]:
    """Points the rows at the stored objects. Returns the keys they pointed at before."""
    asset = await assets.lock(m, asset_id)
    if not all(belongs(key, asset) for key in stored):
        raise attempts.JobFailed("MOVED", "the asset's visibility changed meanwhile", final=False)
    before = await m.all(
        "SELECT preset, storage_key FROM variants WHERE asset_id = %s", (asset_id,)
    )
    for key, variant in stored.items():
        row = await m.one(
            "UPDATE variants SET state = 'ready', version = version + 1, updated_at = now(),"
            " storage_key = %(key)s, mime_type = %(mime)s, width = %(width)s, height = %(height)s,"
            " size_bytes = %(bytes)s, sha256 = %(sha256)s WHERE asset_id = %(asset_id)s AND preset"
            " = %(preset)s RETURNING *",
            {
                "key": key,
                "mime": variant.mime_type,
                "width": variant.width,
                "height": variant.height,
                "bytes": variant.size,
                "sha256": variant.sha256,
                "asset_id": asset_id,
                "preset": variant.name,
            },
        )
        await assets.publish_variant(m, row)
    made = {variant.name for variant in stored.values()}
    return [row.storage_key for row in before if row.preset in made and row.storage_key]


async def _follow(m: Mutation, job: Any) -> None:
    """Keeps the variants' states in step with their job's, and counts what a backfill has made."""
    if job.backfill_id and job.state in ("done", "failed", "cancelled"):
        await m.run(_COUNT_FOR_BACKFILL, {"id": job.backfill_id, "made": int(job.state == "done")})
    state = {
        "running": "processing",
        "pending": "pending",
        "failed": "failed",
        "cancelled": "failed",
    }.get(job.state)
    if state is None:
        return
    rows = await m.all(
        "UPDATE variants SET state = %(state)s, version = version + 1, updated_at = now(),"
        " error_class = %(error_class)s, error_message = %(error_message)s,"
        " waits_for = %(waits_for)s, waiting_since = %(waiting_since)s"
        " WHERE asset_id = %(asset_id)s AND preset = ANY(%(presets)s) RETURNING *",
        {
            "state": state,
            "asset_id": job.asset_id,
            "presets": job.presets,
            "error_class": job.error_class if state == "failed" else "",
            "error_message": job.error_message if state == "failed" or job.waits_for else "",
            "waits_for": job.waits_for,
            "waiting_since": job.waiting_since,
        },
    )
    for row in rows:
        await assets.publish_variant(m, row)
