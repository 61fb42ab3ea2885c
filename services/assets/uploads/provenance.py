"""Where a picture comes from: the credentials that it brings along, and the digital source type
that it hands on."""

from pathlib import Path
from typing import Any
from uuid import UUID

from atelier.assets.v1 import provenance_pb2 as pb
from atelier.assets.v1 import provenance_pb2_grpc
from psycopg.types.json import Jsonb

from shared import imaging
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.formats import names
from shared.imaging import Credentials, ImageRejected, ImagingPool
from shared.rpc import auth, errors

_SECONDS = 10.0
_GET = """
    SELECT a.id, s.store FROM assets a LEFT JOIN manifest_stores s ON s.asset_id = a.id
    WHERE a.id = %(id)s AND a.owner = %(owner)s
"""


class CredentialsReader:
    """Reads what comes with an upload. `trust_anchors`: PEM text of the certificates whose signers
    are trusted."""

    def __init__(self, pool: ImagingPool, trust_anchors: Path | None) -> None:
        self._pool = pool
        self._trust_anchors = trust_anchors.read_text() if trust_anchors else ""

    async def read(self, path: Path, facts: imaging.Facts) -> Credentials | None:
        """None for a PDF, and for an image without a manifest. A manifest never makes an upload
        fail: one that hurts the child process is unreadable."""
        if not facts.may_have_manifest:
            return None
        try:
            return await self._pool.run(
                imaging.read_credentials,
                path,
                facts.mime_type,
                self._trust_anchors,
                timeout=_SECONDS,
            )
        except ImageRejected:
            return Credentials(state="unreadable")


def columns(asset: Any, facts: imaging.Facts, credentials: Credentials | None) -> dict[str, Any]:
    """What the asset's row keeps. What the service says that made it comes first; then a manifest
    that holds, then XMP, which anybody may have written."""
    said = (asset.provenance or {}).get("digital_source_type", "")
    if not said and credentials and credentials.state in ("trusted", "valid"):
        said = credentials.source_type
    kept = None
    if credentials:
        kept = {
            "state": credentials.state,
            "digital_source_type": credentials.source_type,
            "claim_generator": names.shown(credentials.claim_generator),
            "signer": names.shown(credentials.signer),
            "signer_name": names.shown(credentials.signer_name),
            "sign_time": names.shown(credentials.signed_at),
            "problems": [names.shown(problem) for problem in credentials.problems],
            "manifest_kept": bool(credentials.manifest_store),
        }
    return {"source_type": said or facts.source_type, "credentials": Jsonb(kept) if kept else None}


async def keep(m: Mutation, asset_id: UUID, credentials: Credentials | None) -> None:
    """Keeps the manifest store itself, beside the row, so that lists needn't carry it."""
    if credentials and credentials.manifest_store:
        await m.run(
            "INSERT INTO manifest_stores (owner, asset_id, store) VALUES (%s, %s, %s)",
            (m.owner, asset_id, credentials.manifest_store),
        )


class ProvenanceService(provenance_pb2_grpc.ProvenanceServiceServicer):
    def __init__(self, db: Database) -> None:
        self._db = db

    async def GetManifestStore(
        self, request: pb.GetManifestStoreRequest, context: Any
    ) -> pb.GetManifestStoreResponse:
        asset_id = parse_id(request.asset_id, "asset_id")
        row = await self._db.row(_GET, {"id": asset_id, "owner": auth.current().owner})
        if row is None:
            raise errors.not_found("asset", asset_id)
        if row.store is None:
            raise errors.not_found("manifest store of asset", asset_id)
        return pb.GetManifestStoreResponse(manifest_store=row.store)
