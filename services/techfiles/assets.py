"""Calls to `assets`, which stores the pictures of tech files."""

from collections.abc import Sequence

from atelier.assets.v1 import (
    asset_pb2,
    asset_pb2_grpc,
    import_pb2,
    import_pb2_grpc,
    render_pb2,
    render_pb2_grpc,
)
from atelier.techfiles.v1 import history_pb2

from services.techfiles import rules
from shared.rpc import errors
from shared.rpc.calls import Peers


class Assets:
    """Makes calls to `assets` for the current identity."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._stub = peers.stub(asset_pb2_grpc.AssetServiceStub)
        self._imports = peers.stub(import_pb2_grpc.ImportServiceStub)
        self._comparisons = peers.stub(render_pb2_grpc.ComparisonServiceStub)

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

    async def bring_in(self, url: str, field: str, *, request_id: str) -> str:
        """Imports a picture from a URL and returns the id of its READY asset. Raises
        INVALID_ARGUMENT on `field` if no picture is there, and UNAVAILABLE if it takes longer than
        the call may."""
        request = import_pb2.ImportAssetRequest(
            request_id=request_id, url=url, kind=asset_pb2.ASSET_KIND_PRODUCT, wait=True
        )
        answer: import_pb2.ImportAssetResponse = await self._imports.ImportAsset(request)
        asset = answer.asset
        if asset.state == asset_pb2.ASSET_STATE_REJECTED:
            raise errors.invalid(
                field,
                f"no picture could be taken from it ({asset.rejection}): {asset.rejection_message}",
            )
        if asset.state != asset_pb2.ASSET_STATE_READY:
            raise errors.retry_later(
                errors.Reason.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                f"the picture of {field} is still being fetched; repeat the call with the same"
                " request_id",
                2,
            )
        if not asset.mime_type.startswith("image/"):
            raise errors.invalid(field, f"what is there is {asset.mime_type}, not a picture")
        return asset.id

    async def release(self, product_id: str, asset_ids: Sequence[str], *, request_id: str) -> int:
        """Releases the references of the product's files to these assets. Returns how many there
        were."""
        request = asset_pb2.ReleaseReferencesRequest(
            request_id=request_id, holder=rules.holder(product_id), asset_ids=asset_ids
        )
        answer: asset_pb2.ReleaseReferencesResponse = await self._stub.ReleaseReferences(request)
        return answer.released

    async def describe(
        self, asset_ids: Sequence[str], *, urls: bool = False
    ) -> dict[str, asset_pb2.Asset]:
        """Returns the assets by id; those that are gone are left out."""
        return await self._peers.assets(asset_ids, urls=urls)

    async def side_by_side(
        self, before: str, after: str, request_id: str
    ) -> history_pb2.ComparePicturesResponse:
        """Returns the owner's comparison of two pictures, and creates it if there is none."""
        listed: render_pb2.ListComparisonsResponse = await self._comparisons.ListComparisons(
            render_pb2.ListComparisonsRequest(asset_id=before, page_size=1000, include_urls=True)
        )
        pair = (before, after)
        found = [c for c in listed.comparisons if (c.before_asset_id, c.after_asset_id) == pair]
        if found:
            return _side_by_side(found[0])
        made: render_pb2.CreateComparisonResponse = await self._comparisons.CreateComparison(
            render_pb2.CreateComparisonRequest(
                request_id=request_id,
                before_asset_id=before,
                after_asset_id=after,
                include_urls=True,
            )
        )
        return _side_by_side(made.comparison)


_PICTURE_STATES = {
    render_pb2.COMPARISON_STATE_READY: history_pb2.PICTURE_STATE_READY,
    render_pb2.COMPARISON_STATE_FAILED: history_pb2.PICTURE_STATE_FAILED,
}


def _side_by_side(comparison: render_pb2.Comparison) -> history_pb2.ComparePicturesResponse:
    return history_pb2.ComparePicturesResponse(
        comparison_id=comparison.id,
        state=_PICTURE_STATES.get(comparison.state, history_pb2.PICTURE_STATE_PENDING),
        picture_asset_id=comparison.picture_asset_id,
        picture_url=comparison.picture_url,
        error_message=comparison.error_message,
    )
