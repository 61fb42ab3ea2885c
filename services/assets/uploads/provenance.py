"""ProvenanceService: returns the manifest stores that came with pictures."""

from dataclasses import dataclass
from uuid import UUID

from atelier.assets.v1 import provenance_pb2 as pb
from atelier.assets.v1 import provenance_pb2_grpc

from shared.database.db import Database
from shared.database.ids import parse_id
from shared.database.rows import Statement
from shared.rpc import auth, errors
from shared.rpc.server import Context


@dataclass(slots=True)
class _Kept:
    """An asset and its manifest store, if it has one."""

    id: UUID
    store: str | None


_SELECT_STORE = Statement(
    _Kept,
    """
    SELECT a.id, s.store FROM assets a LEFT JOIN manifest_stores s ON s.asset_id = a.id
    WHERE a.id = %(id)s AND a.owner = %(owner)s
    """,
)


class ProvenanceService(provenance_pb2_grpc.ProvenanceServiceServicer):
    def __init__(self, db: Database) -> None:
        self._db = db

    async def GetManifestStore(
        self, request: pb.GetManifestStoreRequest, context: Context
    ) -> pb.GetManifestStoreResponse:
        asset_id = parse_id(request.asset_id, "asset_id")
        row = await self._db.first(_SELECT_STORE, {"id": asset_id, "owner": auth.current().owner})
        if row is None:
            raise errors.not_found("asset", asset_id)
        if row.store is None:
            raise errors.not_found("manifest store of asset", asset_id)
        return pb.GetManifestStoreResponse(manifest_store=row.store)
