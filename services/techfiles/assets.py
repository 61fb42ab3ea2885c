"""Calls to `assets`, which stores the pictures of tech files."""

from collections.abc import Sequence

from atelier.assets.v1 import asset_pb2, asset_pb2_grpc

from services.techfiles import rules
from shared.rpc import errors
from shared.rpc.calls import Peers


class Assets:
    """Makes calls to `assets` for the current identity."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._stub = peers.stub(asset_pb2_grpc.AssetServiceStub)

    async def acquire(
        self, product_id: str, asset_ids: Sequence[str], field: str, *, pictures: bool
    ) -> None:
        """Acquires references to these READY assets for the product's files; a repeat changes
        nothing. `pictures`: only pictures are allowed.

        Raises NOT_FOUND and FAILED_PRECONDITION as `assets` does, and INVALID_ARGUMENT on `field`
        for an asset that isn't a picture.
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
        """Returns the assets by id; those that are gone are left out."""
        return await self._peers.assets(asset_ids, urls=urls)
