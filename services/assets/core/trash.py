"""Calls that archive, delete, undelete and purge an asset, or delete and undelete many."""

from typing import TypeVar
from uuid import UUID

from atelier.assets.v1 import asset_pb2 as pb
from atelier.assets.v1 import asset_pb2_grpc
from atelier.common.v1 import errors_pb2

from services.assets.core import asset_rows
from services.assets.core.asset_rows import ASSETS, LockedAsset
from services.assets.core.trashing import Trash
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.rows import Statement
from shared.rpc import errors
from shared.rpc.errors import DomainError
from shared.rpc.protos import timestamp
from shared.rpc.server import Context

_ARCHIVE = Statement(
    LockedAsset,
    f"""
    UPDATE assets SET archived_at = now(), version = version + 1, updated_at = now()
    WHERE id = %(id)s RETURNING {ASSETS.columns}
    """,
)
_UNARCHIVE = Statement(
    LockedAsset,
    f"""
    UPDATE assets SET archived_at = NULL, version = version + 1, updated_at = now()
    WHERE id = %(id)s RETURNING {ASSETS.columns}
    """,
)

A = TypeVar("A", pb.ArchiveAssetResponse, pb.UnarchiveAssetResponse)


class TrashCalls(asset_pb2_grpc.AssetServiceServicer):
    """The calls of AssetService about archive and trash."""

    def __init__(self, db: Database, trash: Trash) -> None:
        self._db = db
        self._trash = trash

    async def ArchiveAsset(
        self, request: pb.ArchiveAssetRequest, context: Context
    ) -> pb.ArchiveAssetResponse:
        return await self._archive(request, pb.ArchiveAssetResponse, archived=True)

    async def UnarchiveAsset(
        self, request: pb.UnarchiveAssetRequest, context: Context
    ) -> pb.UnarchiveAssetResponse:
        return await self._archive(request, pb.UnarchiveAssetResponse, archived=False)

    async def _archive(
        self,
        request: pb.ArchiveAssetRequest | pb.UnarchiveAssetRequest,
        answer: type[A],
        *,
        archived: bool,
    ) -> A:
        asset_id = parse_id(request.asset_id, "asset_id")

        async def work(m: Mutation) -> A:
            row = await asset_rows.lock(m, asset_id, request.etag)
            if row.deleted_at:
                raise errors.precondition(asset_rows.unusable(row), subject=f"assets/{asset_id}")
            if (row.archived_at is not None) == archived:
                return answer(asset=asset_rows.to_proto(row))
            row = await m.one(_ARCHIVE if archived else _UNARCHIVE, {"id": asset_id})
            return answer(asset=await asset_rows.publish(m, row))

        return await self._db.mutate(request, answer, work)

    async def DeleteAsset(
        self, request: pb.DeleteAssetRequest, context: Context
    ) -> pb.DeleteAssetResponse:
        asset_id = parse_id(request.asset_id, "asset_id")

        async def work(m: Mutation) -> pb.DeleteAssetResponse:
            results = await self._trash.delete(
                m, [asset_id], moves, force=request.force, etag=request.etag
            )
            return pb.DeleteAssetResponse(asset=asset_rows.to_proto(_only(results[asset_id])))

        async with self._trash.moves([asset_id], public=False) as moves:
            return await self._db.mutate(request, pb.DeleteAssetResponse, work)

    async def UndeleteAsset(
        self, request: pb.UndeleteAssetRequest, context: Context
    ) -> pb.UndeleteAssetResponse:
        asset_id = parse_id(request.asset_id, "asset_id")

        async def work(m: Mutation) -> pb.UndeleteAssetResponse:
            results = await self._trash.undelete(m, [asset_id], moves)
            return pb.UndeleteAssetResponse(asset=asset_rows.to_proto(_only(results[asset_id])))

        async with self._trash.moves([asset_id], public=True) as moves:
            return await self._db.mutate(request, pb.UndeleteAssetResponse, work)

    async def PurgeAsset(
        self, request: pb.PurgeAssetRequest, context: Context
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
        self, request: pb.BatchDeleteAssetsRequest, context: Context
    ) -> pb.BatchDeleteAssetsResponse:
        ids = [UUID(text) for text in request.asset_ids]

        async def work(m: Mutation) -> pb.BatchDeleteAssetsResponse:
            results = await self._trash.delete(m, ids, moves, force=request.force)
            return pb.BatchDeleteAssetsResponse(results=[_to_proto(i, results[i]) for i in ids])

        async with self._trash.moves(ids, public=False) as moves:
            return await self._db.mutate(request, pb.BatchDeleteAssetsResponse, work)

    async def BatchUndeleteAssets(
        self, request: pb.BatchUndeleteAssetsRequest, context: Context
    ) -> pb.BatchUndeleteAssetsResponse:
        ids = [UUID(text) for text in request.asset_ids]

        async def work(m: Mutation) -> pb.BatchUndeleteAssetsResponse:
            results = await self._trash.undelete(m, ids, moves)
            return pb.BatchUndeleteAssetsResponse(results=[_to_proto(i, results[i]) for i in ids])

        async with self._trash.moves(ids, public=True) as moves:
            return await self._db.mutate(request, pb.BatchUndeleteAssetsResponse, work)


def _only(result: LockedAsset | DomainError) -> LockedAsset:
    """Returns the row of the one requested asset, or raises its refusal."""
    if isinstance(result, DomainError):
        raise result
    return result


def _to_proto(asset_id: UUID, result: LockedAsset | DomainError) -> pb.AssetResult:
    if isinstance(result, DomainError):
        reason = errors_pb2.ErrorReason.Name(result.reason).removeprefix("ERROR_REASON_")
        return pb.AssetResult(asset_id=str(asset_id), reason=reason, message=result.text)
    return pb.AssetResult(
        asset_id=str(asset_id), done=True, expire_time=timestamp(result.expires_at)
    )
