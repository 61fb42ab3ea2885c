"""Deletes, undeletes and purges assets of an owner: one or many, in one transaction each time.

A deleted asset is private, whatever it was before: its objects are moved out of `public/`. They are
copied before the transaction, the rows are switched in it, and the old objects are removed after
it. A purge notes the objects to be removed in its transaction (deletions.py).
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from atelier.assets.v1 import asset_pb2 as pb

from services.assets.core import asset_rows, choose_primary, deletions
from services.assets.core.asset_rows import ASSETS, Asset, LockedAsset
from services.assets.core.reference_rows import Holder, holders, in_use
from services.assets.core.usage_log import UsageLog
from services.assets.core.visibility import Move
from shared.background import events
from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement
from shared.rpc import auth, errors
from shared.rpc.errors import DomainError
from shared.rpc.protos import timestamp
from shared.storage import Storage, StorageError

_COPIES_AT_ONCE = 8


@dataclass(slots=True)
class _Key:
    """The storage key of an asset."""

    id: UUID
    storage_key: str


@dataclass(slots=True)
class _Purged:
    """The id and version of an asset that was purged, and when."""

    id: UUID
    version: int
    at: datetime


_LOCK_ASSETS = Statement(
    LockedAsset,
    f"""
    SELECT {ASSETS.columns} FROM assets WHERE owner = %(owner)s AND id = ANY(%(ids)s)
    ORDER BY id FOR UPDATE
    """,
)
_SELECT_PRODUCTS = Statement(
    str,
    """
    SELECT DISTINCT product_id FROM assets
    WHERE owner = %(owner)s AND id = ANY(%(ids)s) AND product_id <> '' ORDER BY product_id
    """,
)
_SELECT_PUBLIC = Statement(
    UUID, "SELECT id FROM assets WHERE owner = %(owner)s AND id = ANY(%(ids)s) AND public"
)
_SELECT_HIDDEN = Statement(
    UUID, "SELECT id FROM assets WHERE owner = %(owner)s AND id = ANY(%(ids)s) AND hidden_public"
)
_SELECT_KEYS = Statement(_Key, "SELECT id, storage_key FROM assets WHERE id = ANY(%(ids)s)")
_SELECT_VARIANT_KEYS = Statement(
    str, "SELECT storage_key FROM variants WHERE asset_id = %(id)s AND storage_key <> ''"
)
# A purge locks in the order of a job that ends: the job's own row, then the asset's.
_LOCK_JOBS = (
    Command("""
        SELECT FROM renditions WHERE owner = %(owner)s AND asset_id = ANY(%(ids)s)
        ORDER BY id FOR UPDATE
    """),
    Command("""
        SELECT FROM imports WHERE owner = %(owner)s AND asset_id = ANY(%(ids)s)
        ORDER BY id FOR UPDATE
    """),
)
# All albums are locked in one order first: the triggers that keep albums in step with their assets
# lock an asset's albums in order, but one asset after the other.
_LOCK_ALBUMS = Command("""
    SELECT FROM albums WHERE owner = %(owner)s AND id IN (
        SELECT album_id FROM album_assets WHERE owner = %(owner)s AND asset_id = ANY(%(ids)s))
    ORDER BY id FOR UPDATE
""")
_DELETE = Statement(
    LockedAsset,
    f"""
    UPDATE assets a SET deleted_at = now(), expires_at = now() + %(life)s::interval,
        hidden_public = a.public, public = false, is_primary = false, storage_key = moved.key,
        version = version + 1, updated_at = now()
    FROM unnest(%(ids)s::uuid[], %(keys)s::text[]) AS moved (id, key)
    WHERE a.id = moved.id RETURNING {ASSETS.of("a")}
    """,
)
_UNDELETE = Statement(
    LockedAsset,
    f"""
    UPDATE assets a SET deleted_at = NULL, expires_at = NULL, public = a.hidden_public,
        hidden_public = false, storage_key = moved.key, version = version + 1, updated_at = now()
    FROM unnest(%(ids)s::uuid[], %(keys)s::text[]) AS moved (id, key)
    WHERE a.id = moved.id RETURNING {ASSETS.of("a")}
    """,
)
_SUM_BYTES = Statement(
    int,
    """
    SELECT (coalesce((SELECT sum(size_bytes) FROM assets
                      WHERE id = ANY(%(ids)s) AND storage_key <> ''), 0)
        + coalesce((SELECT sum(size_bytes) FROM variants WHERE asset_id = ANY(%(ids)s)), 0))::bigint
    """,
)
_SELECT_PUBLIC_KEYS = Statement(
    str,
    """
    SELECT storage_key FROM assets WHERE id = %(id)s AND owner = %(owner)s
        AND storage_key LIKE 'public/%%'
    UNION ALL
    SELECT storage_key FROM variants WHERE asset_id = %(id)s AND owner = %(owner)s
        AND storage_key LIKE 'public/%%'
    """,
)
_PURGE = Statement(
    _Purged,
    """
    DELETE FROM assets WHERE owner = %(owner)s AND id = ANY(%(ids)s)
    RETURNING id, version, now() AS at
    """,
)


Results = Mapping[UUID, LockedAsset | DomainError]
"""The result for each asset: its current row (of a purged asset, the last one), or the error that
says why nothing was done to it."""


class Trash:
    """Deletes, undeletes and purges many assets of an owner. `days`: how long a deleted asset can
    be undeleted."""

    def __init__(self, db: Database, storage: Storage, usage_log: UsageLog, days: float) -> None:
        self._db = db
        self._storage = storage
        self._usage = usage_log
        self._life = timedelta(days=days)

    @asynccontextmanager
    async def moves(self, ids: Sequence[UUID], *, public: bool) -> AsyncIterator[dict[UUID, Move]]:
        """Copies the objects of assets that stop being public in the trash (`public` False) or are
        public again out of it (True), and yields the moves by asset. A transaction inside the
        context switches rows to the copies; then objects that no row points at are removed."""
        mine = {"owner": auth.current().owner, "ids": list(ids)}
        moving = await self._db.all(_SELECT_HIDDEN if public else _SELECT_PUBLIC, mine)
        moves = {asset_id: Move(self._storage, asset_id) for asset_id in moving}

        async def settle() -> None:
            for move in moves.values():
                await move.settle(self._db)

        try:
            await self._copy(moves.values(), public=public)
            yield moves
        except (DomainError, StorageError):  # the transaction was rolled back
            for move in moves.values():
                await move.undo()
            raise
        except BaseException:  # call cancelled or database lost: rows may point at the copies
            await asyncio.shield(settle())
            raise
        if moves:
            rows = await self._db.all(_SELECT_KEYS, {"ids": list(moves)})
            now = {row.id: row.storage_key for row in rows}
            for asset_id, move in moves.items():
                await move.finish(now.get(asset_id, ""))

    async def _copy(self, moves: Iterable[Move], *, public: bool) -> None:
        """Makes the copies of all moves, eight at a time; raises the first failure at the end."""
        several = asyncio.Semaphore(_COPIES_AT_ONCE)

        async def copy(move: Move) -> None:
            async with several:
                await move.copy(self._db, public=public)

        copied = await asyncio.gather(*map(copy, moves), return_exceptions=True)
        for error in copied:
            if error is not None:
                raise error

    async def public_keys(self, asset_id: UUID) -> list[str]:
        """Returns the keys of the public objects of the caller's asset and its variants."""
        mine = {"id": asset_id, "owner": auth.current().owner}
        return await self._db.all(_SELECT_PUBLIC_KEYS, mine)

    async def stop_serving(self, keys: Sequence[str]) -> None:
        """Removes doomed objects at once. If the store is away, a worker removes them later."""
        with suppress(StorageError):
            await self._storage.delete(keys)

    async def delete(
        self,
        m: Mutation,
        ids: Sequence[UUID],
        moves: Mapping[UUID, Move],
        *,
        force: bool,
        etag: str = "",
    ) -> Results:
        """Moves each asset to the trash, unless it has references (`force` ignores them) or its
        version isn't `etag`. One that is there already stays as it is. Call it last in the
        transaction: it updates counts of uses, which other transactions update, too."""
        rows = await _lock(m, ids)
        held = (
            {} if force else await holders(m, [i for i, row in rows.items() if not row.deleted_at])
        )
        results = {asset_id: _refused(asset_id, rows, held, m.owner, etag) for asset_id in ids}
        going = [row for row in _taken(results) if not row.deleted_at]
        old_keys = [key for row in going if row.public for key in await _keys(m, row)]
        keys = [await _switch(m, row, moves, row.public) for row in going]
        gone = await m.all(
            _DELETE, {"ids": [row.id for row in going], "keys": keys, "life": self._life}
        )
        await deletions.doom(m, old_keys)
        await asset_rows.publish_all(m, gone)
        await choose_primary.hand_over(m, [row for row in going if row.is_primary])
        await self._used(m, going)
        return results | {row.id: row for row in gone}

    async def undelete(
        self, m: Mutation, ids: Sequence[UUID], moves: Mapping[UUID, Move]
    ) -> Results:
        """Takes each asset out of the trash. One that isn't there stays as it is."""
        rows = await _lock(m, ids)
        results = {asset_id: _refused(asset_id, rows, {}, m.owner) for asset_id in ids}
        back = [row for row in _taken(results) if row.deleted_at]
        old_keys = [key for row in back if row.hidden_public for key in await _keys(m, row)]
        keys = [await _switch(m, row, moves, row.hidden_public) for row in back]
        shown = await m.all(_UNDELETE, {"ids": [row.id for row in back], "keys": keys})
        await deletions.doom(m, old_keys)
        for index, row in enumerate(shown):
            if choose_primary.may_lead(row):
                shown[index] = await choose_primary.make_primary(m, row, only_first=True)
        await asset_rows.publish_all(m, shown)
        return results | {row.id: row for row in shown}

    async def purge(self, m: Mutation, ids: Sequence[UUID], *, force: bool) -> tuple[Results, int]:
        """Purges each asset, unless it has references (`force` ignores them). Also returns how many
        bytes that frees. Call it last in the transaction, as `delete`."""
        for lock_jobs in _LOCK_JOBS:
            await m.run(lock_jobs, {"owner": m.owner, "ids": list(ids)})
        rows = await _lock(m, ids)
        held = {} if force else await holders(m, list(rows))
        results = {asset_id: _refused(asset_id, rows, held, m.owner) for asset_id in ids}
        going = _taken(results)
        gone_ids = [row.id for row in going]
        freed = await m.one(_SUM_BYTES, {"ids": gone_ids})
        await deletions.doom_assets(m, gone_ids)
        changes = [
            (
                row.id,
                row.version + 1,
                pb.PurgedAsset(asset_id=str(row.id), purge_time=timestamp(row.at)),
            )
            for row in await m.all(_PURGE, {"owner": m.owner, "ids": gone_ids})
        ]
        await events.publish_all(m, "purged_asset", changes)
        await choose_primary.hand_over(m, [row for row in going if row.is_primary])
        await self._used(m, going)
        return results, freed

    async def _used(self, m: Mutation, going: Sequence[Asset]) -> None:
        """Records a deletion of each asset that was in use until now. Purging an asset from the
        trash doesn't count: its deletion was recorded before."""
        await self._usage.write(
            m, [row for row in going if row.state == "ready" and not row.deleted_at], "delete"
        )


def _refused(
    asset_id: UUID,
    rows: Mapping[UUID, LockedAsset],
    held: Mapping[UUID, Sequence[Holder]],
    owner: str,
    etag: str = "",
) -> LockedAsset | DomainError:
    """Returns the error if the asset may not be changed, else its current row."""
    if asset_id not in rows:
        return errors.not_found("asset", asset_id)
    try:
        errors.check_etag(etag, rows[asset_id].version, "asset", asset_id)
    except DomainError as mismatch:
        return mismatch
    if asset_id in held:
        return in_use(asset_id, held[asset_id], owner)
    return rows[asset_id]


def _taken(results: Results) -> list[LockedAsset]:
    """Returns the rows of the assets that weren't refused, in the order of their ids."""
    rows = [row for row in results.values() if not isinstance(row, DomainError)]
    return sorted(rows, key=lambda row: row.id)


async def _lock(m: Mutation, ids: Sequence[UUID]) -> dict[UUID, LockedAsset]:
    """Locks and returns the owner's assets, in the order that all transactions keep: products,
    assets, albums."""
    mine = {"owner": m.owner, "ids": list(ids)}
    for product_id in await m.all(_SELECT_PRODUCTS, mine):
        await choose_primary.lock_product(m, product_id)
    rows = {row.id: row for row in await m.all(_LOCK_ASSETS, mine)}
    await m.run(_LOCK_ALBUMS, mine)
    return rows


async def _keys(m: Mutation, row: Asset) -> list[str]:
    """Returns the storage keys of the asset and of its variants that have bytes."""
    found = await m.all(_SELECT_VARIANT_KEYS, {"id": row.id})
    return [key for key in (row.storage_key, *found) if key]


async def _switch(m: Mutation, row: Asset, moves: Mapping[UUID, Move], moving: bool) -> str:
    """Points the variants' rows at the copies, if there are any. Returns the asset's new key."""
    if not moving:
        return row.storage_key
    if row.id not in moves:  # its visibility changed since the copies were made
        text = "its visibility is being changed right now; nothing was changed, try again"
        raise errors.retry_later(errors.Reason.ERROR_REASON_REQUEST_IN_PROGRESS, text, 0.2)
    return await moves[row.id].switch(m, row.storage_key)
