"""The trash: archive, delete, undelete, purge; of one asset or of many, in one transaction each
time.

A deleted asset is private, whatever it was before: its objects leave `public/` with it, copied
first, switched in the transaction, removed after it. What a purge leaves to be removed is noted in
its transaction (doomed.py).
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, LiteralString
from uuid import UUID

from atelier.assets.v1 import asset_pb2 as pb
from atelier.assets.v1 import asset_pb2_grpc
from atelier.common.v1 import errors_pb2

from services.assets.core import assets
from services.assets.core import deletions as doomed
from services.assets.core import history as usage
from services.assets.core.references import holders, in_use
from services.assets.core.visibility import Move
from shared.background import events
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.rpc import auth, errors
from shared.rpc.errors import DomainError
from shared.rpc.protos import timestamp
from shared.storage import Storage, StorageError

_COPIES_AT_ONCE = 8
_MINE = "SELECT * FROM assets WHERE owner = %(owner)s AND id = ANY(%(ids)s) ORDER BY id FOR UPDATE"
_PRODUCTS = """
    SELECT DISTINCT product_id FROM assets
    WHERE owner = %(owner)s AND id = ANY(%(ids)s) AND product_id <> '' ORDER BY product_id
"""
# Jobs that are ending hold their own rows, then want the asset's.
_JOBS: tuple[LiteralString, ...] = (
    (
        "SELECT FROM renditions WHERE owner = %(owner)s AND asset_id = ANY(%(ids)s) ORDER BY id FOR"
        " UPDATE"
    ),
    (
        "SELECT FROM imports WHERE owner = %(owner)s AND asset_id = ANY(%(ids)s) ORDER BY id FOR"
        " UPDATE"
    ),
)
# The triggers that follow assets in albums take an asset's albums in order, but one asset after the
# other.
_ALBUMS = """
    SELECT FROM albums WHERE owner = %(owner)s AND id IN (
        SELECT album_id FROM album_assets WHERE owner = %(owner)s AND asset_id = ANY(%(ids)s))
    ORDER BY id FOR UPDATE
"""
_DELETE = """
    UPDATE assets a SET deleted_at = now(), expires_at = now() + %(life)s, hidden_public
        = a.public, public = false,
        is_primary = false, storage_key = moved.key, version = version + 1, updated_at = now()
    FROM unnest(%(ids)s::uuid[], %(keys)s::text[]) AS moved (id, key) WHERE a.id
        = moved.id RETURNING a.*
"""
_UNDELETE = """
    UPDATE assets a SET deleted_at = NULL, expires_at = NULL, public = a.hidden_public,
        hidden_public = false,
        storage_key = moved.key, version = version + 1, updated_at = now()
    FROM unnest(%(ids)s::uuid[], %(keys)s::text[]) AS moved (id, key) WHERE a.id
        = moved.id RETURNING a.*
"""
_BYTES = """
    SELECT coalesce((SELECT sum(size_bytes) FROM assets WHERE id = ANY(%(ids)s) AND storage_key
        <> ''), 0)
         + coalesce((SELECT sum(size_bytes) FROM variants WHERE asset_id = ANY(%(ids)s)), 0) AS n
"""
_PUBLIC_KEYS = """
    SELECT storage_key FROM assets WHERE id = %(id)s AND owner = %(owner)s
        AND storage_key LIKE 'public/%%'
    UNION ALL
    SELECT storage_key FROM variants WHERE asset_id = %(id)s AND owner = %(owner)s
        AND storage_key LIKE 'public/%%'
"""
_PURGE = (
    "DELETE FROM assets WHERE owner = %(owner)s AND id = ANY(%(ids)s) RETURNING id, version, now()"
    " AS at"
)


@dataclass(frozen=True)
class Result:
    """What became of one asset: its row as it is now or, if it was purged, as it was; or why
    not."""

    row: Any = None
    error: DomainError | None = None


Results = Mapping[UUID, Result]


class Trash:
    """Deletes, undeletes and purges many assets of an owner. `days` is how long they can be
    undeleted."""

    def __init__(
        self, db: Database, storage: Storage, usage_log: usage.UsageLog, days: float
    ) -> None:
        self._db = db
        self._storage = storage
        self._usage = usage_log
        self._life = timedelta(days=days)

    @asynccontextmanager
    async def moves(self, ids: Sequence[UUID], *, public: bool) -> AsyncIterator[dict[UUID, Move]]:
        """Copies of what has to lie elsewhere once the assets are in the trash (`public` False) or
        out of it. Inside, a transaction switches rows to them; after it goes whatever no row
        shows."""
        column: LiteralString = "hidden_public" if public else "public"
        statement: LiteralString = (
            f"SELECT id FROM assets WHERE owner = %(owner)s AND id = ANY(%(ids)s) AND {column}"
        )
        mine = {"owner": auth.current().owner, "ids": list(ids)}
        moves = {
            row.id: Move(self._storage, row.id) for row in await self._db.rows(statement, mine)
        }
        several = asyncio.Semaphore(_COPIES_AT_ONCE)

        async def copy(move: Move) -> None:
            async with several:
                await move.copy(self._db, public=public)

        async def settle() -> None:
            for move in moves.values():
                await move.settle(self._db)

        try:
            copied = await asyncio.gather(*map(copy, moves.values()), return_exceptions=True)
            failed = [error for error in copied if error is not None]
            if failed:
                raise failed[0]
            yield moves
        except (DomainError, StorageError):  # surely rolled back
            for move in moves.values():
                await move.undo()
            raise
        except BaseException:  # the caller went, or the database: rows may show the copies
            await asyncio.shield(settle())
            raise
        if moves:
            keys = "SELECT id, storage_key FROM assets WHERE id = ANY(%(ids)s)"
            now = {
                row.id: row.storage_key for row in await self._db.rows(keys, {"ids": list(moves)})
            }
            for asset_id, move in moves.items():
                await move.finish(now.get(asset_id, ""))

    async def public_keys(self, asset_id: UUID) -> list[str]:
        """Objects of the caller's asset that everyone can fetch."""
        mine = {"id": asset_id, "owner": auth.current().owner}
        return [row.storage_key for row in await self._db.rows(_PUBLIC_KEYS, mine)]

    async def stop_serving(self, keys: Sequence[str]) -> None:
        """Removes at once what is doomed anyway. If the store is away, a worker does it later."""
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
        """Each into the trash, unless something uses it, or it isn't what `etag` says. One that is
        there already stays as it is. Last in the caller's transaction: it counts uses, which others
        count, too."""
        rows = await _lock(m, ids)
        held = (
            {} if force else await holders(m, [i for i, row in rows.items() if not row.deleted_at])
        )
        results = {asset_id: _refused(asset_id, rows, held, m.owner, etag) for asset_id in ids}
        going = [rows[i] for i in sorted(rows) if not results[i].error and not rows[i].deleted_at]
        old_keys = [key for row in going if row.public for key in await _keys(m, row)]
        keys = [await _switch(m, row, moves, row.public) for row in going]
        gone = await m.all(
            _DELETE, {"ids": [row.id for row in going], "keys": keys, "life": self._life}
        )
        await doomed.doom(m, old_keys)
        await _tell(m, gone)
        await assets.hand_over(m, [row for row in going if row.is_primary])
        await self._used(m, going)
        return results | {row.id: Result(row) for row in gone}

    async def undelete(
        self, m: Mutation, ids: Sequence[UUID], moves: Mapping[UUID, Move]
    ) -> Results:
        """Each out of the trash. One that isn't in it stays as it is."""
        rows = await _lock(m, ids)
        results = {asset_id: _refused(asset_id, rows, {}, m.owner) for asset_id in ids}
        back = [rows[i] for i in sorted(rows) if rows[i].deleted_at]
        old_keys = [key for row in back if row.hidden_public for key in await _keys(m, row)]
        keys = [await _switch(m, row, moves, row.hidden_public) for row in back]
        shown = await m.all(_UNDELETE, {"ids": [row.id for row in back], "keys": keys})
        await doomed.doom(m, old_keys)
        for index, row in enumerate(shown):
            if assets.may_lead(row):
                shown[index] = await assets.make_primary(m, row, only_first=True)
        await _tell(m, shown)
        return results | {row.id: Result(row) for row in shown}

    async def purge(self, m: Mutation, ids: Sequence[UUID], *, force: bool) -> tuple[Results, int]:
        """Each for good, unless something uses it. Also returns the bytes that are being freed.
        Last in the caller's transaction, as `delete`."""
        for jobs in _JOBS:
            await m.run(jobs, {"owner": m.owner, "ids": list(ids)})
        rows = await _lock(m, ids)
        held = {} if force else await holders(m, list(rows))
        results = {asset_id: _refused(asset_id, rows, held, m.owner) for asset_id in ids}
        going = [rows[i] for i in sorted(rows) if not results[i].error]
        gone_ids = [row.id for row in going]
        freed = int((await m.one(_BYTES, {"ids": gone_ids})).n)
        await doomed.doom_assets(m, gone_ids)
        changes = [
            (
                row.id,
                row.version + 1,
                pb.PurgedAsset(asset_id=str(row.id), purge_time=timestamp(row.at)),
            )
            for row in await m.all(_PURGE, {"owner": m.owner, "ids": gone_ids})
        ]
        await events.publish_all(m, "purged_asset", changes)
        await assets.hand_over(m, [row for row in going if row.is_primary])
        await self._used(m, going)
        return results, freed

    async def _used(self, m: Mutation, going: Sequence[Any]) -> None:
        """Whatever could be used is deleted once: by what takes it out of use, not by what empties
        the trash."""
        await self._usage.write(
            m, [row for row in going if row.state == "ready" and not row.deleted_at], "delete"
        )


def _refused(
    asset_id: UUID,
    rows: Mapping[UUID, Any],
    held: Mapping[UUID, Sequence[Any]],
    owner: str,
    etag: str = "",
) -> Result:
    """Why nothing is done to the asset; else its row as it is."""
    if asset_id not in rows:
        return Result(error=errors.not_found("asset", asset_id))
    if etag and etag != str(rows[asset_id].version):
        return Result(error=errors.etag_mismatch("asset", asset_id))
    if asset_id in held:
        return Result(error=in_use(asset_id, held[asset_id], owner))
    return Result(rows[asset_id])


async def _lock(m: Mutation, ids: Sequence[UUID]) -> dict[UUID, Any]:
    """The owner's assets, locked in the one order in which everybody locks: products, assets,
    albums."""
    mine = {"owner": m.owner, "ids": list(ids)}
    for row in await m.all(_PRODUCTS, mine):
        await assets.hold_product(m, row.product_id)
    rows = {row.id: row for row in await m.all(_MINE, mine)}
    await m.run(_ALBUMS, mine)
    return rows


async def _keys(m: Mutation, row: Any) -> list[str]:
    found = await m.all(
        "SELECT storage_key FROM variants WHERE asset_id = %s AND storage_key <> ''", (row.id,)
    )
    return [each.storage_key for each in (row, *found) if each.storage_key]


async def _switch(m: Mutation, row: Any, moves: Mapping[UUID, Move], moving: bool) -> str:
    """The asset's key from now on."""
    if not moving:
        return str(row.storage_key)
    if row.id not in moves:  # its visibility changed since the copies were made
        text = "its visibility is being changed right now; nothing was changed, try again"
        raise errors.retry_later(errors.Reason.ERROR_REASON_REQUEST_IN_PROGRESS, text, 0.2)
    return await moves[row.id].switch(m, row.storage_key)


async def _tell(m: Mutation, rows: Sequence[Any]) -> None:
    await events.publish_all(
        m, "asset", [(row.id, row.version, assets.to_proto(row)) for row in rows]
    )


class TrashCalls(asset_pb2_grpc.AssetServiceServicer):
    """The calls of AssetService about archive and trash."""

    def __init__(self, db: Database, trash: Trash) -> None:
        self._db = db
        self._trash = trash

    async def ArchiveAsset(
        self, request: pb.ArchiveAssetRequest, context: Any
    ) -> pb.ArchiveAssetResponse:
        return await self._archive(request, pb.ArchiveAssetResponse, "now()")

    async def UnarchiveAsset(
        self, request: pb.UnarchiveAssetRequest, context: Any
    ) -> pb.UnarchiveAssetResponse:
        return await self._archive(request, pb.UnarchiveAssetResponse, "NULL")

    async def _archive(self, request: Any, answer: Any, when: LiteralString) -> Any:
        asset_id = parse_id(request.asset_id, "asset_id")

        async def work(m: Mutation) -> Any:
            row = await assets.lock(m, asset_id, request.etag)
            if row.deleted_at:
                raise errors.precondition(assets.unusable(row), subject=f"assets/{asset_id}")
            if (row.archived_at is None) == (when == "now()"):
                row = await m.one(
                    f"UPDATE assets SET archived_at = {when}, version = version + 1, updated_at ="
                    " now() WHERE id = %s RETURNING *",
                    (asset_id,),
                )
                await assets.publish(m, row)
            return answer(asset=assets.to_proto(row))

        return await self._db.mutate(request, answer, work)

    async def DeleteAsset(
        self, request: pb.DeleteAssetRequest, context: Any
    ) -> pb.DeleteAssetResponse:
        asset_id = parse_id(request.asset_id, "asset_id")

        async def work(m: Mutation) -> pb.DeleteAssetResponse:
            results = await self._trash.delete(
                m, [asset_id], moves, force=request.force, etag=request.etag
            )
            return pb.DeleteAssetResponse(asset=assets.to_proto(_only(results[asset_id])))

        async with self._trash.moves([asset_id], public=False) as moves:
            return await self._db.mutate(request, pb.DeleteAssetResponse, work)

    async def UndeleteAsset(
        self, request: pb.UndeleteAssetRequest, context: Any
    ) -> pb.UndeleteAssetResponse:
        asset_id = parse_id(request.asset_id, "asset_id")

        async def work(m: Mutation) -> pb.UndeleteAssetResponse:
            results = await self._trash.undelete(m, [asset_id], moves)
            return pb.UndeleteAssetResponse(asset=assets.to_proto(_only(results[asset_id])))

        async with self._trash.moves([asset_id], public=True) as moves:
            return await self._db.mutate(request, pb.UndeleteAssetResponse, work)

    async def PurgeAsset(
        self, request: pb.PurgeAssetRequest, context: Any
    ) -> pb.PurgeAssetResponse:
        asset_id = parse_id(request.asset_id, "asset_id")

        async def work(m: Mutation) -> pb.PurgeAssetResponse:
            results, freed = await self._trash.purge(m, [asset_id], force=request.force)
            _only(results[asset_id])
            return pb.PurgeAssetResponse(freed_bytes=freed)

        public = await self._trash.public_keys(asset_id)
        response = await self._db.mutate(request, pb.PurgeAssetResponse, work)
        await self._trash.stop_serving(public)
        return response

    async def BatchDeleteAssets(
        self, request: pb.BatchDeleteAssetsRequest, context: Any
    ) -> pb.BatchDeleteAssetsResponse:
        ids = [UUID(text) for text in request.asset_ids]

        async def work(m: Mutation) -> pb.BatchDeleteAssetsResponse:
            results = await self._trash.delete(m, ids, moves, force=request.force)
            return pb.BatchDeleteAssetsResponse(results=[_shown(i, results[i]) for i in ids])

        async with self._trash.moves(ids, public=False) as moves:
            return await self._db.mutate(request, pb.BatchDeleteAssetsResponse, work)

    async def BatchUndeleteAssets(
        self, request: pb.BatchUndeleteAssetsRequest, context: Any
    ) -> pb.BatchUndeleteAssetsResponse:
        ids = [UUID(text) for text in request.asset_ids]

        async def work(m: Mutation) -> pb.BatchUndeleteAssetsResponse:
            results = await self._trash.undelete(m, ids, moves)
            return pb.BatchUndeleteAssetsResponse(results=[_shown(i, results[i]) for i in ids])

        async with self._trash.moves(ids, public=True) as moves:
            return await self._db.mutate(request, pb.BatchUndeleteAssetsResponse, work)


def _only(result: Result) -> Any:
    """The row of the one asset that was asked for, or its refusal."""
    if result.error:
        raise result.error
    return result.row


def _shown(asset_id: UUID, result: Result) -> pb.AssetResult:
    if result.error is None:
        return pb.AssetResult(
            asset_id=str(asset_id), done=True, expire_time=timestamp(result.row.expires_at)
        )
    reason = errors_pb2.ErrorReason.Name(result.error.reason).removeprefix("ERROR_REASON_")
    return pb.AssetResult(asset_id=str(asset_id), reason=reason, message=result.error.text)
