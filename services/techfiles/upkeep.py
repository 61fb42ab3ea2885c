"""The upkeep of tech files: purges what was in the trash long enough, puts there what the settings
keep no longer, frees the bytes of exports whose time is over, removes doomed objects, releases
references to pictures, and reconciles exports with the store.

Any number of workers may run it; a session's advisory lock lets one of them work. It takes items in
chunks, each owner's in a transaction, so that whatever stops it, the next round goes on with what
is left.
"""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import structlog

from services.techfiles import export_rows, tech_file_rows, trash_rows
from services.techfiles.assets import Assets
from services.techfiles.collection_rows import COLLECTIONS
from services.techfiles.export_rows import EXPORTS, Export
from services.techfiles.pack_rows import RUNS
from services.techfiles.reconciling import ExportReconciler
from services.techfiles.release_rows import RELEASES
from services.techfiles.releasing_pictures import SETTLED_AFTER
from services.techfiles.tech_file_rows import TECH_FILES
from shared.background import due, sole, tasks
from shared.database.db import Database, Mutation
from shared.database.exchange import Connection
from shared.database.rows import Command, Statement, Table
from shared.rpc import auth, calls, errors
from shared.rpc.errors import DomainError
from shared.settings import Settings
from shared.storage import Storage, StorageError

_CHUNK = 100
_PAUSE_SECONDS = 5.0
_SILENT_SECONDS = 180  # longer than a chunk takes, and than the pause
_STRETCH = 1000  # keys that are compared between two looks at the lock
_log = structlog.get_logger("upkeep")


@dataclass(slots=True)
class _Doomed:
    seq: int
    storage_key: str


@dataclass(slots=True)
class _Release:
    """A picture that something purged of a product had. `last`: it is looked at no more."""

    id: UUID
    owner: str
    product_id: str
    asset_id: UUID
    last: bool
    due_at: datetime


_TABLES: tuple[Table[Any], ...] = (RELEASES, COLLECTIONS, TECH_FILES, RUNS, EXPORTS)
# Conditions are those of the indexes <table>_expire, tech_files_archived and exports_retained.
_FIND_EXPIRED = {
    t.name: Statement(due.Found, due.oldest(t.name, "expires_at", "expires_at IS NOT NULL"))
    for t in _TABLES
}
_FIND_ARCHIVED = Statement(
    due.Found,
    due.oldest("tech_files", "archived_at", "archived_at IS NOT NULL AND deleted_at IS NULL"),
)
_ENDED_AT = "coalesce(ended_at, created_at)"
_FIND_EXPORTS = Statement(
    due.Found,
    due.oldest(
        "exports",
        _ENDED_AT,
        "state = 'completed' AND bytes_gone_at IS NULL AND release_id IS NULL",
    ),
)
# What changed since it was found is left alone, and so is what somebody changes right now.
_STILL_EXPIRED = {
    t.name: Statement(
        UUID,
        f"""
        SELECT id FROM {t.name} WHERE id = ANY(%(ids)s) AND expires_at < now()
        ORDER BY id FOR UPDATE SKIP LOCKED
        """,
    )
    for t in _TABLES
}
_STILL_ARCHIVED = Statement(
    UUID,
    """
    SELECT id FROM tech_files WHERE id = ANY(%(ids)s) AND deleted_at IS NULL
        AND archived_at < now() - %(kept)s::interval ORDER BY id
    """,
)
_FREE_EXPORTS = Statement(
    Export,
    f"""
    UPDATE exports SET bytes_gone_at = now(), bytes_gone_reason = 'retention',
        version = version + 1, updated_at = now()
    WHERE id IN (
        SELECT id FROM exports WHERE id = ANY(%(ids)s) AND state = 'completed'
            AND bytes_gone_at IS NULL AND release_id IS NULL
            AND {_ENDED_AT} < now() - %(kept)s::interval
        ORDER BY id FOR UPDATE SKIP LOCKED)
    RETURNING {EXPORTS.columns}
    """,
)
_DOOM = Command("""
    INSERT INTO doomed_objects (owner, storage_key)
    SELECT %(owner)s, key FROM unnest(%(keys)s::text[]) AS key
""")
_SELECT_DOOMED = Statement(
    _Doomed, "SELECT seq, storage_key FROM doomed_objects ORDER BY seq LIMIT %(limit)s"
)
_FORGET_DOOMED = Command("DELETE FROM doomed_objects WHERE seq = ANY(%(seqs)s)")
_SELECT_RELEASES = Statement(
    _Release,
    """
    SELECT id, owner, product_id, asset_id, settles_at <= now() AS last, due_at
    FROM picture_releases WHERE due_at <= now() ORDER BY due_at, id LIMIT %(limit)s
    """,
)
_IS_USED = Statement(
    bool,
    """
    SELECT EXISTS (
        SELECT FROM tech_files WHERE owner = %(owner)s AND file_asset_id = %(asset_id)s
            AND product_id = %(product_id)s
    ) OR EXISTS (
        SELECT FROM slots s JOIN tech_file_versions v ON v.slot_id = s.id
        WHERE s.owner = %(owner)s AND s.product_id = %(product_id)s
            AND v.snapshot ->> 'file_asset_id' = %(asset_id)s::text
    ) OR EXISTS (
        SELECT FROM runs r, jsonb_array_elements(r.plan) AS p (step)
        WHERE r.owner = %(owner)s AND r.product_id = %(product_id)s
            AND p.step ->> 'asset_id' = %(asset_id)s::text
    ) OR EXISTS (
        SELECT FROM release_files WHERE owner = %(owner)s AND asset_id = %(asset_id)s
            AND product_id = %(product_id)s
    ) AS used
    """,
)
_PUT_OFF = Command("UPDATE picture_releases SET due_at = settles_at WHERE id = %(id)s")
_LOOK_AGAIN = Command("""
    UPDATE picture_releases SET due_at = now() + %(settled)s::interval,
        settles_at = now() + %(settled)s::interval
    WHERE id = %(id)s
""")
_FORGET_RELEASE = Command("""
    DELETE FROM picture_releases WHERE id = %(id)s AND settles_at <= now()
""")


class Upkeep:
    def __init__(
        self,
        db: Database,
        assets: Assets,
        storage: Storage,
        settings: Settings,
    ) -> None:
        self._db = db
        self._assets = assets
        self._storage = storage
        self._settings = settings
        self._life = timedelta(days=settings.trash_days)
        self._most = settings.cleanup_max_items
        grace = timedelta(minutes=settings.reconcile_grace_minutes)
        self._reconciler = ExportReconciler(db, storage, grace)
        self._next_key = ""
        self._reconciles_at = 0.0

    async def run_forever(self) -> None:
        while tasks.not_cancelled():
            try:
                alone = sole.alone(self._db, sole.Duty.UPKEEP, silent_seconds=_SILENT_SECONDS)
                async with alone as session:
                    if session:
                        await self._keep(session)
            except (psycopg.Error, StorageError) as error:
                _log.warning("upkeep waits", error=type(error).__name__)
            await tasks.pause(_PAUSE_SECONDS)

    async def _keep(self, session: Connection) -> None:
        """Works round by round while this session holds the lock."""
        while tasks.not_cancelled():
            async for _ in self.run():
                await sole.check(session)
            async for _ in self.reconcile():
                await sole.check(session)
            await tasks.pause(_PAUSE_SECONDS)
            await sole.check(session)

    async def run(self) -> AsyncIterator[int]:
        """Takes what is due, up to a limit of each kind. Yields after each chunk how many items it
        took."""
        for table in _TABLES:
            find = _FIND_EXPIRED[table.name]
            async for done in due.take(self._db, find, self._purging(table), most=self._most):
                yield done
        for days, find, acting in (
            (self._settings.retention_archived_file_days, _FIND_ARCHIVED, self._deleting),
            (self._settings.retention_export_days, _FIND_EXPORTS, self._freeing),
        ):
            kept = timedelta(days=days)
            if days:
                taking = due.take(self._db, find, acting(kept), most=self._most, kept=kept)
                async for done in taking:
                    yield done
        while done := await self._remove_doomed():
            yield done
        async for done in self._release():
            yield done

    async def reconcile(self) -> AsyncIterator[int]:
        """Compares exports with the store as often as the settings say, from where the last run
        ended. Yields after each stretch how many items it mended."""
        pause = self._settings.reconcile_minutes * 60
        if not pause or time.monotonic() < self._reconciles_at:
            return
        left = self._settings.reconcile_max_items
        while left > 0:
            limit = min(left, _STRETCH)
            found = await self._reconciler.stretch(self._next_key, limit, dry_run=False)
            self._next_key = found.next_key
            left -= limit
            if found.mended:
                _log.info("reconciled exports", mended=found.mended, lost=len(found.lost))
            yield found.mended
            if not found.next_key:
                break
        self._reconciles_at = time.monotonic() + pause

    def _purging(self, table: Table[Any]) -> due.Act:
        async def act(m: Mutation, ids: Sequence[UUID]) -> int:
            # Files are locked after what they are in.
            if table is TECH_FILES:
                rows: list[Any] = await trash_rows.lock(m, table, ids)
            expired = await m.all(_STILL_EXPIRED[table.name], {"ids": list(ids)})
            if table is TECH_FILES:
                held = await trash_rows.held(m, expired)
                free = set(expired) - held.keys()
                await trash_rows.purge_files(m, [row for row in rows if row.id in free])
                return len(free)
            rows = await trash_rows.lock(m, table, expired)
            if table is COLLECTIONS:
                for row in rows:
                    await trash_rows.refuse_open_run(m, row)
                await trash_rows.purge_collections(m, rows)
            elif table is RELEASES:
                await trash_rows.purge_releases(m, rows)
            elif table is RUNS:
                await trash_rows.purge_runs(m, rows)
            else:
                await trash_rows.purge_exports(m, rows)
            return len(rows)

        return act

    def _deleting(self, kept: timedelta) -> due.Act:
        async def act(m: Mutation, ids: Sequence[UUID]) -> int:
            rows = await trash_rows.lock(m, TECH_FILES, ids)
            archived = set(await m.all(_STILL_ARCHIVED, {"ids": list(ids), "kept": kept}))
            held = await trash_rows.held(m, sorted(archived))
            for row in rows:
                if row.id in archived and row.id not in held:
                    await trash_rows.delete(m, TECH_FILES, row.id, self._life)
                    await tech_file_rows.settle_latest(m, row.slot_id, row.id)
            return len(archived)

        return act

    def _freeing(self, kept: timedelta) -> due.Act:
        async def act(m: Mutation, ids: Sequence[UUID]) -> int:
            freed = await m.all(_FREE_EXPORTS, {"ids": list(ids), "kept": kept})
            keys = [row.storage_key for row in freed]
            await m.run(_DOOM, {"owner": m.owner, "keys": keys})
            for row in freed:
                await export_rows.publish(m, row)
            return len(freed)

        return act

    async def _remove_doomed(self) -> int:
        """Removes a batch of doomed objects, then their notes: after a crash in between, they are
        removed again. Returns how many there were."""
        rows = await self._db.system_all(_SELECT_DOOMED, {"limit": _STRETCH})
        if rows:
            await self._storage.delete([row.storage_key for row in rows])
            async with self._db.transaction("") as m:
                await m.run(_FORGET_DOOMED, {"seqs": [row.seq for row in rows]})
        return len(rows)

    async def _release(self) -> AsyncIterator[int]:
        """Releases references to pictures that nothing of their product has any more, and acquires
        those anew that something was made with while they were released."""
        for row in await self._db.system_all(_SELECT_RELEASES, {"limit": _CHUNK}):
            auth.enter(calls.owner_identity(row.owner))
            after = _FORGET_RELEASE if row.last else _PUT_OFF
            try:
                if await self._settle(row):
                    after = _LOOK_AGAIN
            except DomainError as refusal:
                if errors.passing(refusal):
                    _log.warning("references wait to be released", reason=refusal.text)
                    return
                # The picture itself is gone: there is nothing to refer to.
            async with self._db.transaction(row.owner) as m:
                await m.run(after, {"id": row.id, "settled": SETTLED_AFTER})
            yield 1

    async def _settle(self, row: _Release) -> bool:
        """Releases a picture that nothing has, and acquires one that something has at the last
        look. Returns whether it took a reference away: a call that acquired it just before may have
        yet to make its row, so it is looked at again."""
        asset_ids = [str(row.asset_id)]
        if not await self._is_used(row):
            # A repeat, after an answer that was lost, must know that something was released.
            name = f"{row.id}/{row.due_at.isoformat()}"
            if not await self._assets.release(row.product_id, asset_ids, request_id=name):
                return False
            if await self._is_used(row):
                await self._assets.acquire(row.product_id, asset_ids, "asset_id", pictures=False)
            return True
        if row.last:
            await self._assets.acquire(row.product_id, asset_ids, "asset_id", pictures=False)
        return False

    async def _is_used(self, row: _Release) -> bool:
        named = {"owner": row.owner, "product_id": row.product_id, "asset_id": row.asset_id}
        async with self._db.transaction(row.owner) as m:
            return await m.one(_IS_USED, named)
