"""The job of a comparison: fetches the two originals, makes one picture of them, stores it, then
adds it as a READY asset."""

import asyncio
import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from psycopg.types.json import Jsonb

from services.assets.accounting.enforcing import Quotas
from services.assets.comparisons import comparison_rows, rules, side_by_side
from services.assets.comparisons.comparison_rows import COMPARISONS, Comparison
from services.assets.core import asset_rows, holding
from services.assets.core import rules as asset_rules
from services.assets.core.asset_rows import ASSETS, LockedAsset
from services.assets.uploads import verifying
from services.assets.variants import rendition_rows
from services.assets.variants.presets import Presets
from shared import imaging
from shared.background import attempts, jobs
from shared.background.attempts import Attempt, Outcome
from shared.background.job_tables import JobTable
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.database.rows import Statement
from shared.imaging import Facts, ImageRejected, ImagingPool
from shared.rpc.errors import DomainError, Reason
from shared.storage import ObjectNotFound, Storage

_JPEG = "image/jpeg"
_MAKER = "side-by-side"


@dataclass(slots=True)
class _Original:
    id: UUID
    storage_key: str
    size_bytes: int


@dataclass(frozen=True)
class _Picture:
    """The picture that was made and stored. Its asset is new in every attempt, so that two attempts
    never write the same object."""

    asset_id: UUID
    key: str
    sha256: str
    facts: Facts


_SELECT_ORIGINALS = Statement(
    _Original,
    """
    SELECT id, storage_key, size_bytes FROM assets
    WHERE id = ANY(%(ids)s) AND state = 'ready' AND deleted_at IS NULL
    """,
)
_INSERT_PICTURE = Statement(
    LockedAsset,
    f"""
    INSERT INTO assets (id, owner, created_by, kind, state, public, free, file_name, storage_key,
        size_bytes, mime_type, width, height, sha256, session_id, room_id, facts, provenance)
    VALUES (%(id)s, %(owner)s, %(created_by)s, 'render', 'ready', false, true, 'before-after.jpg',
        %(key)s, %(size)s, %(mime_type)s, %(width)s, %(height)s, %(sha256)s, %(session_id)s,
        %(room_id)s, %(facts)s, %(provenance)s)
    RETURNING {ASSETS.columns}
    """,
)


class Comparer:
    def __init__(
        self,
        db: Database,
        storage: Storage,
        queue: jobs.JobQueue,
        pool: ImagingPool,
        presets: Presets,
        quota: Quotas,
    ) -> None:
        self._db = db
        self._storage = storage
        self._queue = queue
        self._pool = pool
        self._presets = presets
        self._quotas = quota
        self._kind = JobTable(
            COMPARISONS, rules.STATES, "processing", "ready", comparison_rows.publish
        )

    async def run(self, comparison_id: str) -> None:
        await attempts.run(self._db, self._kind, comparison_id, self._make)

    async def _make(self, attempt: Attempt[Comparison]) -> Outcome[Comparison]:
        directory = Path(tempfile.mkdtemp(prefix="atelier-"))
        try:
            before, after = await self._originals(attempt, directory)
            made = directory / "both.jpg"
            await self._pool.run(side_by_side.compose, before, after, made)
            facts = await self._pool.run(imaging.inspect, made, _JPEG)
            return self._outcome(await self._store(attempt.row, made, facts))
        except ImageRejected as refusal:
            raise attempts.JobFailed(refusal.reason, refusal.message) from None
        except ObjectNotFound:
            raise attempts.JobFailed("ORIGINAL_GONE", "one of the two is no longer there") from None
        finally:
            # Awaits nothing, so that no cancellation replaces what was returned.
            shutil.rmtree(directory, ignore_errors=True)

    async def _originals(self, attempt: Attempt[Comparison], directory: Path) -> list[Path]:
        ids = [attempt.row.before_asset_id, attempt.row.after_asset_id]
        async with self._db.transaction(attempt.row.owner) as m:
            rows = await m.all(_SELECT_ORIGINALS, {"ids": ids})
        found = {row.id: row for row in rows}
        if len(found) < len(ids):
            raise ObjectNotFound
        paths = [directory / str(asset_id) for asset_id in ids]
        for asset_id, path in zip(ids, paths, strict=True):
            await self._storage.fetch(found[asset_id].storage_key, path)
            attempt.input_bytes += found[asset_id].size_bytes
        return paths

    async def _store(self, row: Comparison, made: Path, facts: Facts) -> _Picture:
        asset_id = new_id()
        key = asset_rules.object_key(
            row.owner, _scope(row), str(asset_id), str(new_id()), folder="original", public=False
        )
        sha256 = hashlib.sha256(made.read_bytes()).hexdigest()
        try:
            await self._storage.put(key, made, content_type=_JPEG, sha256=sha256)
        except BaseException:  # also when cancelled, because another attempt has the row
            await asyncio.shield(self._storage.delete([key]))
            raise
        return _Picture(asset_id, key, sha256, facts)

    def _outcome(self, picture: _Picture) -> Outcome[Comparison]:
        async def show(m: Mutation, row: Comparison) -> None:
            await self._show(m, row, picture)

        async def remove_stored() -> None:
            await self._storage.delete([picture.key])

        return Outcome(
            {"picture_asset_id": picture.asset_id},
            output_bytes=picture.facts.size,
            in_transaction=show,
            if_not_committed=remove_stored,
        )

    async def _show(self, m: Mutation, row: Comparison, picture: _Picture) -> None:
        """Adds the picture's asset, with a reference from the comparison, and enqueues its
        variants."""
        provenance = {
            "model": _MAKER,
            "model_version": side_by_side.VERSION,
            "prompt": "",
            "source_asset_ids": [str(row.before_asset_id), str(row.after_asset_id)],
        }
        values = {
            "id": picture.asset_id,
            "owner": row.owner,
            "created_by": row.created_by,
            "key": picture.key,
            "size": picture.facts.size,
            "mime_type": _JPEG,
            "width": picture.facts.width,
            "height": picture.facts.height,
            "sha256": picture.sha256,
            **_scope(row),
            "facts": verifying.stored_facts(picture.facts),
            "provenance": Jsonb(provenance),
        }
        asset = await m.one(_INSERT_PICTURE, values)
        try:
            await self._quotas.announce(m, picture.facts.size, set_for_it=True)
        except DomainError as refusal:
            full = refusal.reason == Reason.ERROR_REASON_QUOTA_EXCEEDED
            raise attempts.JobFailed("QUOTA_EXCEEDED", refusal.text, final=full) from None
        await asset_rows.publish(m, asset)
        held = [("picture_asset_id", asset.id)]
        await holding.hold(m, rules.holder(row.id), held)
        eager = self._presets.eager[asset.kind]
        await rendition_rows.ask(m, self._queue, asset, eager, priority=jobs.BACKFILL)


def _scope(row: Comparison) -> dict[str, str]:
    return {"session_id": row.session_id, "room_id": row.room_id}
