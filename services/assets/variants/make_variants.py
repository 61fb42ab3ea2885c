"""The job of a rendition: fetches the original, makes and stores the variants, then points their
rows at the stored objects."""

import asyncio
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from services.assets.core import asset_rows, rules
from services.assets.core.asset_rows import SELECT_ASSET, VARIANTS, Asset, Variant, scope_of
from services.assets.core.visibility import belongs
from services.assets.variants.presets import Presets
from services.assets.variants.rendition_rows import RENDITIONS, Rendition
from shared import imaging
from shared.background import attempts
from shared.background.attempts import Attempt, Outcome
from shared.background.job_tables import JobTable
from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement
from shared.imaging import ImageRejected, ImagingPool
from shared.storage import ObjectNotFound, Storage


@dataclass(slots=True)
class _Key:
    """The storage key of a variant."""

    preset: str
    storage_key: str


_SELECT_KEYS = Statement(
    _Key, "SELECT preset, storage_key FROM variants WHERE asset_id = %(asset_id)s"
)
_SHOW_VARIANT = Statement(
    Variant,
    f"""
    UPDATE variants SET state = 'ready', version = version + 1, updated_at = now(),
        storage_key = %(key)s, mime_type = %(mime)s, width = %(width)s, height = %(height)s,
        size_bytes = %(bytes)s, sha256 = %(sha256)s
    WHERE asset_id = %(asset_id)s AND preset = %(preset)s RETURNING {VARIANTS.columns}
    """,
)
_MOVE_VARIANTS = Statement(
    Variant,
    f"""
    UPDATE variants SET state = %(state)s, version = version + 1, updated_at = now(),
        error_class = %(error_class)s, error_message = %(error_message)s,
        waits_for = %(waits_for)s, waiting_since = %(waiting_since)s
    WHERE asset_id = %(asset_id)s AND preset = ANY(%(presets)s) RETURNING {VARIANTS.columns}
    """,
)
_COUNT_FOR_BACKFILL = Command("""
    UPDATE backfills SET made = made + %(made)s::int, failed = failed + 1 - %(made)s::int,
        updated_at = now() WHERE id = %(id)s
""")
# By the state of a job, the state of its variants; those of a job that is done are READY already.
_VARIANT_STATES = {
    "running": "processing",
    "pending": "pending",
    "failed": "failed",
    "cancelled": "failed",
}


class VariantMaker:
    def __init__(self, db: Database, storage: Storage, pool: ImagingPool, presets: Presets) -> None:
        self._db = db
        self._storage = storage
        self._pool = pool
        self._presets = presets
        self._kind = JobTable(RENDITIONS, rules.JOB_STATES, "running", "done", _follow)

    async def run(self, rendition_id: str) -> None:
        await attempts.run(self._db, self._kind, rendition_id, self._make)

    async def _make(self, attempt: Attempt[Rendition]) -> Outcome[Rendition]:
        job = attempt.row
        async with self._db.transaction(job.owner) as m:
            asset = await m.first(SELECT_ASSET, {"id": job.asset_id})
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
        self, attempt: Attempt[Rendition], asset: Asset, made: Sequence[imaging.Variant]
    ) -> Outcome[Rendition]:
        """Stores the variants. Returns the outcome, which points their rows at the objects."""
        stored: dict[str, imaging.Variant] = {}
        try:
            for variant in made:
                key = _key(asset, variant, attempt.token)
                stored[key] = variant
                await self._storage.put(
                    key, variant.path, content_type=variant.mime_type, sha256=variant.sha256
                )
        except BaseException:
            # Also on cancellation: somebody asked for it, or another attempt has the row.
            await asyncio.shield(self._storage.delete(list(stored)))
            raise
        replaced: list[str] = []

        async def show(m: Mutation, _job: Rendition) -> None:
            replaced.extend(await _show(m, asset.id, stored))

        async def remove_replaced() -> None:
            await self._storage.delete(replaced)

        async def remove_stored() -> None:
            await self._storage.delete(list(stored))

        return Outcome(
            {},
            output_bytes=sum(v.size for v in made),
            in_transaction=show,
            after_commit=remove_replaced,
            if_not_committed=remove_stored,
        )


def _key(asset: Asset, variant: imaging.Variant, token: UUID) -> str:
    """Returns a key with the attempt in it, so that two attempts never write the same object."""
    unique = f"{variant.name}-{variant.sha256[:16]}-{token}.{variant.format}"
    return rules.object_key(
        asset.owner,
        scope_of(asset),
        str(asset.id),
        unique,
        folder="variants",
        public=asset.public,
    )


async def _show(m: Mutation, asset_id: UUID, stored: Mapping[str, imaging.Variant]) -> list[str]:
    """Points the rows at the stored objects. Returns the keys that they pointed at before."""
    asset = await asset_rows.lock(m, asset_id)
    if not all(belongs(key, asset) for key in stored):
        raise attempts.JobFailed("MOVED", "the asset's visibility changed meanwhile", final=False)
    before = await m.all(_SELECT_KEYS, {"asset_id": asset_id})
    for key, variant in stored.items():
        row = await m.one(
            _SHOW_VARIANT,
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
        await asset_rows.publish_variant(m, row)
    made = {variant.name for variant in stored.values()}
    return [row.storage_key for row in before if row.preset in made and row.storage_key]


async def _follow(m: Mutation, job: Rendition) -> None:
    """Keeps the variants' states in step with their job's, and counts the images of a backfill."""
    if job.backfill_id and job.state in ("done", "failed", "cancelled"):
        await m.run(_COUNT_FOR_BACKFILL, {"id": job.backfill_id, "made": int(job.state == "done")})
    state = _VARIANT_STATES.get(job.state)
    if state is None:
        return
    rows = await m.all(
        _MOVE_VARIANTS,
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
        await asset_rows.publish_variant(m, row)
