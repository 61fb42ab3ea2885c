"""Settles what a job's row says about pictures at `assets`: which references it has, and whether
its result is in the trash.

A completed row refers to its inputs, unless it drops them, and to its result; one that goes on
refers to its inputs. A row that failed, was cancelled or purged, or is in the trash, refers to
nothing. A result is in the trash while every row that it is the result of is there, and is purged
with the last of them, unless something else uses it.

Rows may change meanwhile, so a row is read again at the end: whoever settles last does so for the
row as it is then.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from services.conversions import assets, trash_rows
from services.conversions.assets import SETTLED_AFTER
from services.conversions.job_kinds import KINDS
from services.conversions.job_rows import JobKind, ModelJob, PictureJob
from services.conversions.runs.asking import Providers
from services.conversions.trash_rows import PURGED_JOBS, PurgedJob
from shared.background.jobs import JobQueue, TryAgain
from shared.database.db import Database
from shared.database.rows import Command, Statement
from shared.rpc import auth, calls
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError

_PER_CALL = 100  # assets that AcquireReferences takes
_log = structlog.get_logger("settling")


@dataclass(slots=True)
class _Owner:
    owner: str
    now: datetime


@dataclass(slots=True)
class _Uses:
    """How a result is used by rows that it is the result of. `ours`: this service put it into the
    trash."""

    live: bool
    deleted: bool
    ours: bool


_SELECT_OWNER = {
    table: Statement(
        _Owner,
        f"""
        SELECT owner, now() AS now FROM {table} WHERE id = %(id)s
        UNION SELECT owner, now() AS now FROM purged_jobs WHERE job_id = %(id)s
        """,
    )
    for table in KINDS
}
_SELECT_PURGED = Statement(
    PurgedJob, f"SELECT {PURGED_JOBS.columns} FROM purged_jobs WHERE job_id = %(id)s"
)
_FORGET_SETTLED = Command("""
    DELETE FROM purged_jobs WHERE job_id = %(id)s AND %(settles_at)s::timestamptz <= now()
""")
_SELECT_USES = Statement(
    _Uses,
    """
    SELECT coalesce(bool_or(deleted_at IS NULL), false) AS live,
        coalesce(bool_or(deleted_at IS NOT NULL), false) AS deleted,
        EXISTS (SELECT FROM deleted_results
            WHERE owner = %(owner)s AND asset_id = %(asset_id)s) AS ours
    FROM (
        SELECT deleted_at FROM conversions
        WHERE owner = %(owner)s AND result_asset_id = %(asset_id)s AND state = 'completed'
        UNION ALL SELECT deleted_at FROM generations
        WHERE owner = %(owner)s AND result_asset_id = %(asset_id)s AND state = 'completed'
    ) AS used
    """,
)
# A job that waits acquires its references when it begins, and most items of a batch are created
# later still.
_SELECT_AWAITED = Statement(
    bool,
    """
    SELECT EXISTS (
        SELECT FROM batch_pictures p JOIN batches b ON b.owner = p.owner AND b.id = p.batch_id
        WHERE p.owner = %(owner)s AND p.asset_id = %(asset_id)s AND b.state IN ('running', 'paused')
    ) OR EXISTS (
        SELECT FROM job_inputs i
        LEFT JOIN conversions c ON c.id = i.job_id
        LEFT JOIN generations g ON g.id = i.job_id
        LEFT JOIN analyses a ON a.id = i.job_id
        WHERE i.owner = %(owner)s AND i.asset_id = %(asset_id)s
            AND coalesce(c.state, g.state, a.state) IN ('pending', 'processing')
    )
    """,
)
_NOTE_DELETED = Command("""
    INSERT INTO deleted_results (owner, asset_id) VALUES (%(owner)s, %(asset_id)s)
    ON CONFLICT DO NOTHING
""")
_FORGET_DELETED = Command("""
    DELETE FROM deleted_results WHERE owner = %(owner)s AND asset_id = %(asset_id)s
""")


class Settler:
    def __init__(self, db: Database, queue: JobQueue, peers: Peers, providers: Providers) -> None:
        self._db = db
        self._peers = peers
        self._providers = providers
        self._queue = queue

    def register(self, kind: JobKind[Any, Any]) -> None:
        async def settle(row_id: str) -> None:
            await self.settle(kind, row_id)

        self._queue.task(kind.settle_task, trash_rows.SETTLE_QUEUE, settle)

    async def settle(self, kind: JobKind[Any, Any], row_id: str) -> None:
        """Makes references and result those of the row, or of none if it is purged."""
        named = {"id": UUID(row_id)}
        for found in await self._db.system_all(_SELECT_OWNER[kind.table.name], named):
            auth.enter(calls.owner_identity(found.owner))
            try:
                repeats_at = await self._settle(kind, row_id)
            except DomainError as refusal:
                _log.warning("pictures wait to be settled", row=row_id, reason=refusal.text)
                raise TryAgain(found.now + assets.RETRY_AFTER) from None
            if repeats_at and repeats_at > found.now:
                raise TryAgain(repeats_at)

    async def _settle(self, kind: JobKind[Any, Any], row_id: str) -> datetime | None:
        """Settles a row of the owner's. Returns when that is to be repeated; None: never."""
        while True:
            row: ModelJob | None = await kind.find(self._db, row_id)
            if row is None:
                return await self._settle_purged(kind, UUID(row_id))
            if trash_rows.is_to_drop(row):
                await self._drop(kind, row.id, {each.asset_id for each in row.inputs()})
                async with self._db.transaction(row.owner) as m:
                    await trash_rows.note_dropped(m, kind, row.id)
                continue
            if row.deleted_at:
                await assets.release(self._peers, kind.holder(row.id))
            if isinstance(row, PictureJob) and row.shown_result:
                await self._settle_result(UUID(row.shown_result))
            if row.state not in ("failed", "cancelled") and row.deleted_at is None:
                await self._acquire(kind, row)
            now: ModelJob | None = await kind.find(self._db, row_id)
            if now and now.deleted_at == row.deleted_at:
                return row.deleted_at + SETTLED_AFTER if row.deleted_at else None

    async def _settle_purged(self, kind: JobKind[Any, Any], row_id: UUID) -> datetime | None:
        purged = await self._db.first(_SELECT_PURGED, {"id": row_id})
        if purged is None:
            return None
        async with self._db.transaction(purged.owner) as m:
            given_up = await self._providers.settle(m, row_id)
        await self._providers.give_up(given_up)
        await assets.release(self._peers, kind.holder(row_id))
        await self._drop(kind, row_id, set(purged.drop_asset_ids))
        if purged.result_asset_id:
            await self._settle_result(
                purged.result_asset_id, purge=True, from_trash=purged.from_trash
            )
        # The note is deleted by the repeat, when nothing can come after it any more.
        settled_at = purged.created_at + SETTLED_AFTER
        async with self._db.transaction(purged.owner) as m:
            await m.run(trash_rows.FORGET_TEXTS, {"ids": [row_id]})
            await m.run(_FORGET_SETTLED, {"id": row_id, "settles_at": settled_at})
        return settled_at

    async def _acquire(self, kind: JobKind[Any, Any], row: ModelJob) -> None:
        """Acquires references to the row's pictures that are still there."""
        dropped = row.drop_inputs and row.state == "completed"
        wanted = {} if dropped else {each.asset_id: None for each in row.inputs()}
        if isinstance(row, PictureJob) and row.result_asset_id:
            wanted[row.result_asset_id] = None
        usable = await self._that_are_there(wanted)
        for start in range(0, len(usable), _PER_CALL):
            part = usable[start : start + _PER_CALL]
            await assets.acquire(self._peers, kind.holder(row.id), part)

    async def _drop(self, kind: JobKind[Any, Any], row_id: UUID, inputs: set[UUID]) -> None:
        """Releases a row's references to these inputs, and deletes the owner's photographs among
        them that nothing else uses."""
        if not inputs:
            return
        owner = auth.current().owner
        await assets.release(self._peers, kind.holder(row_id), sorted(inputs))
        for asset in (await self._peers.assets(map(str, inputs))).values():
            photograph = asset.kind in assets.PHOTOGRAPHS and asset.owner == owner
            if photograph and assets.is_there(asset):
                named = {"owner": owner, "asset_id": UUID(asset.id)}
                if not await self._db.one(_SELECT_AWAITED, named):
                    await assets.delete(self._peers, UUID(asset.id))

    async def _that_are_there(self, asset_ids: Iterable[UUID]) -> list[UUID]:
        wanted = list(asset_ids)
        found = await self._peers.assets(map(str, wanted))
        return [each for each in wanted if assets.is_there(found.get(str(each)))]

    async def _settle_result(
        self, asset_id: UUID, *, purge: bool = False, from_trash: bool = False
    ) -> None:
        """Puts a result into the trash, takes it out or purges it, as its rows say. With `purge` a
        row of it was just purged, which was in the trash if `from_trash`."""
        owner = auth.current().owner
        named = {"owner": owner, "asset_id": asset_id}
        uses = await self._db.one(_SELECT_USES, named)
        asset = (await self._peers.assets([str(asset_id)])).get(str(asset_id))
        # An outside worker may have named a picture that its owner had uploaded as something else.
        if asset is None or asset.owner != owner or asset.kind not in assets.MADE:
            await self._note(_FORGET_DELETED, named)
        elif uses.live:
            if uses.ours:
                await assets.undelete(self._peers, asset_id)
                await self._note(_FORGET_DELETED, named)
        elif uses.deleted:
            if not asset.HasField("delete_time"):
                # Noted first: a crash after the deletion would make it look like its owner's.
                await self._note(_NOTE_DELETED, named)
                if not await assets.delete(self._peers, asset_id):
                    await self._note(_FORGET_DELETED, named)
        elif purge and (not from_trash or (uses.ours and asset.HasField("delete_time"))):
            await assets.purge(self._peers, asset_id)
            await self._note(_FORGET_DELETED, named)

    async def _note(self, command: Command, values: dict[str, Any]) -> None:
        async with self._db.transaction(auth.current().owner) as m:
            await m.run(command, values)
