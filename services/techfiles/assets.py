"""The pictures of tech files, which `assets` keeps."""

from collections.abc import Sequence

from atelier.assets.v1 import asset_pb2, asset_pb2_grpc

from services.techfiles import rules
from shared.rpc import errors
from shared.rpc.calls import Peers


class Assets:
    """Calls to `assets` for the identity of the moment."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._stub = peers.stub(asset_pb2_grpc.AssetServiceStub)

    async def acquire(
        self, product_id: str, asset_ids: Sequence[str], field: str, *, pictures: bool
    ) -> None:
        """Acquires references to these READY assets for the product's files; repeating is harmless.
        `pictures`: only pictures are allowed.

        NOT_FOUND and FAILED_PRECONDITION as `assets` says; INVALID_ARGUMENT on `field` for what
        isn't a picture.
        """
        request = asset_pb2.AcquireReferencesRequest(
            holder=rules.holder(product_id), asset_ids=asset_ids
        )
        answer: asset_pb2.AcquireReferencesResponse = await self._stub.AcquireReferences(request)
        for asset in answer.assets:
            if pictures and not asset.mime_type.startswith("image/"):
                raise errors.invalid(field, f"asset {asset.id} is {asset.mime_type}, not a picture")

    async def describe(
        self, asset_ids: Sequence[str], *, urls: bool = False
    ) -> dict[str, asset_pb2.Asset]:
        """By id; those that are gone are left out."""
        return await self._peers.assets(asset_ids, urls=urls)
