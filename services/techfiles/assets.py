"""The pictures of tech files: they live in `assets`. Here they are held, described, and given URLs
when shown."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from atelier.assets.v1 import asset_pb2, asset_pb2_grpc
from atelier.techfiles.v1 import tech_file_pb2 as pb

from services.techfiles import files, rules
from shared.database.db import Database
from shared.rpc import errors
from shared.rpc.calls import Peers
from shared.storage import Storage

_EXPORTS = (
    "SELECT id, storage_key, file_name, format FROM exports WHERE id = ANY(%(ids)s) AND state ="
    " 'completed'"
)
TYPES = {"pdf": "application/pdf", "zip": "application/zip"}


class Assets:
    """Calls to `assets` for the identity of the moment."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._stub = peers.stub(asset_pb2_grpc.AssetServiceStub)

    async def hold(
        self, product_id: str, asset_ids: Sequence[str], field: str, *, pictures: bool
    ) -> None:
        """Notes that the product's files use these READY assets; repeating is harmless. `pictures`:
        only those.

        NOT_FOUND and FAILED_PRECONDITION as `assets` says; INVALID_ARGUMENT on `field` for what
        isn't a picture.
        """
        request = asset_pb2.AcquireReferencesRequest(
            holder=rules.holder(product_id), asset_ids=asset_ids
        )
        answer = await self._stub.AcquireReferences(request)
        for asset in answer.assets:
            if pictures and not asset.mime_type.startswith("image/"):
                raise errors.invalid(field, f"asset {asset.id} is {asset.mime_type}, not a picture")

    async def describe(
        self, asset_ids: Sequence[str], *, urls: bool = False
    ) -> dict[str, asset_pb2.Asset]:
        """By id; those that are gone are left out."""
        return await self._peers.assets(asset_ids, urls=urls)


class Shown:
    """Turns rows into messages, with URLs when they are wanted; URLs are never stored."""

    def __init__(self, db: Database, assets: Assets, storage: Storage, url_life: timedelta) -> None:
        self._db = db
        self._assets = assets
        self._storage = storage
        self._url_life = url_life

    async def files(self, rows: Sequence[Any], *, urls: bool) -> list[pb.TechFile]:
        shown = [files.to_proto(row) for row in rows]
        if not urls:
            return shown
        held = [file.file_asset_id for file in shown if file.file_asset_id]
        assets = await self._assets.describe(held, urls=True)
        exports = {
            row.id: row
            for row in await self._db.rows(_EXPORTS, {"ids": [row.export_id for row in rows]})
        }
        for row, file in zip(rows, shown, strict=True):
            if file.file_asset_id in assets:
                file.file_url = assets[file.file_asset_id].original_url
                file.thumbnail_url = assets[file.file_asset_id].thumbnail_url
            if row.export_id in exports:
                file.file_url = self.export_url(exports[row.export_id])
        return shown

    def export_url(self, row: Any) -> str:
        return self._storage.sign_get(
            row.storage_key,
            expires_in=self._url_life,
            file_name=row.file_name,
            content_type=TYPES[row.format],
        )
