"""Cases for every rpc of assets."""

from dataclasses import dataclass

from atelier.assets.v1 import (
    album_pb2,
    album_pb2_grpc,
    asset_pb2,
    search_pb2,
    upload_pb2,
    usage_pb2,
    usage_pb2_grpc,
    variant_pb2,
)

from tests.assets import flows
from tests.suite import Client, Suite
from tests.tenancy_cases import NOT_FOUND, Case, empty, nothing, only_ready

PICTURE = flows.jpeg(64, 48)


@dataclass
class Owned:
    """Rows of one owner."""

    asset_id: str
    upload_id: str  # sent, not confirmed
    product_id: str
    holder: str
    album_id: str  # the asset is in it
    doomed_album_id: str


async def prepare(atelier: Suite, owner: Client, canary: str) -> Owned:
    described = {
        "file_name": f"{canary}.jpg", "tags": [canary], "metadata": {"note": canary},
        "scope": asset_pb2.AssetScope(product_id=canary),
    }  # fmt: skip
    asset = await flows.upload(owner, PICTURE, **described)
    pending = await flows.announce(owner, PICTURE, **described)
    await flows.send(pending.target, PICTURE)
    holder = f"tests/{canary}"
    stub = flows.assets(owner)
    await stub.AcquireReferences(asset_pb2.AcquireReferencesRequest(holder=holder, asset_ids=[asset.id]))
    albums = owner.stub(album_pb2_grpc.AlbumServiceStub)
    made = [
        (await albums.CreateAlbum(album_pb2.CreateAlbumRequest(name=f"{canary} {n}", description=canary))).album.id
        for n in range(2)
    ]
    await albums.AddAlbumAssets(album_pb2.AddAlbumAssetsRequest(album_id=made[0], asset_ids=[asset.id]))
    await owner.stub(usage_pb2_grpc.UsageServiceStub).RecordUsage(
        usage_pb2.RecordUsageRequest(asset_id=asset.id, action=usage_pb2.USAGE_ACTION_SHARE, session_id=canary)
    )
    return Owned(asset.id, pending.upload_id, canary, holder, *made)


def _photo() -> upload_pb2.UploadDeclaration:
    return flows.declaration(PICTURE, kind=asset_pb2.ASSET_KIND_PHOTO)


_ASSETS = "atelier.assets.v1.AssetService."
_UPLOADS = "atelier.assets.v1.UploadService."
_VARIANTS = "atelier.assets.v1.VariantService."
_ALBUMS = "atelier.assets.v1.AlbumService."
_USAGE = "atelier.assets.v1.UsageService."
_SEARCH = "atelier.assets.v1.SearchService."

CASES = {
    _ASSETS + "GetAsset": Case(lambda o: asset_pb2.GetAssetRequest(asset_id=o.asset_id, include_urls=True), NOT_FOUND),
    _ASSETS + "BatchGetAssets": Case(
        lambda o: asset_pb2.BatchGetAssetsRequest(asset_ids=[o.asset_id], include_urls=True),
        lambda answers: not answers[0].assets and len(answers[0].missing_asset_ids) == 1,
    ),
    _ASSETS + "ListAssets": Case(
        lambda o: asset_pb2.ListAssetsRequest(product_id=o.product_id, include_urls=True),
        empty("assets"),
    ),
    _ASSETS + "UpdateAsset": Case(
        lambda o: asset_pb2.UpdateAssetRequest(
            request_id=f"update {o.asset_id}", asset_id=o.asset_id, update_mask={"paths": ["free"]}, free=True
        ),
        NOT_FOUND,
    ),
    _ASSETS + "DownloadAsset": Case(lambda o: asset_pb2.DownloadAssetRequest(asset_id=o.asset_id), NOT_FOUND),
    _ASSETS + "WatchAssets": Case(
        lambda o: asset_pb2.WatchAssetsRequest(asset_ids=[o.asset_id]),
        only_ready,
    ),
    _ASSETS + "AcquireReferences": Case(
        lambda o: asset_pb2.AcquireReferencesRequest(
            request_id=f"acquire {o.asset_id}", holder=o.holder, asset_ids=[o.asset_id]
        ),
        NOT_FOUND,
    ),
    _ASSETS + "ReleaseReferences": Case(
        lambda o: asset_pb2.ReleaseReferencesRequest(request_id=f"release {o.asset_id}", holder=o.holder),
        lambda answers: answers[0].released == 0,
    ),
    _UPLOADS + "RequestUpload": Case(
        lambda o: upload_pb2.RequestUploadRequest(request_id=f"request {o.asset_id}", declaration=_photo()), nothing
    ),
    _UPLOADS + "ConfirmUpload": Case(
        lambda o: upload_pb2.ConfirmUploadRequest(request_id=f"confirm {o.upload_id}", upload_id=o.upload_id), NOT_FOUND
    ),
    _UPLOADS + "Upload": Case(
        lambda o: [
            upload_pb2.UploadRequest(head={"request_id": f"upload {o.asset_id}", "declaration": _photo()}),
            upload_pb2.UploadRequest(chunk=PICTURE),
        ],
        nothing,
    ),
    _VARIANTS + "ListVariants": Case(
        lambda o: variant_pb2.ListVariantsRequest(asset_id=o.asset_id, include_urls=True), NOT_FOUND
    ),
    _VARIANTS + "RegenerateVariants": Case(
        lambda o: variant_pb2.RegenerateVariantsRequest(request_id=f"again {o.asset_id}", asset_id=o.asset_id),
        NOT_FOUND,
    ),
    _ALBUMS + "CreateAlbum": Case(
        lambda o: album_pb2.CreateAlbumRequest(request_id=f"create {o.asset_id}", name=o.asset_id), nothing
    ),
    _ALBUMS + "GetAlbum": Case(lambda o: album_pb2.GetAlbumRequest(album_id=o.album_id, include_urls=True), NOT_FOUND),
    _ALBUMS + "ListAlbums": Case(lambda o: album_pb2.ListAlbumsRequest(), nothing),
    _ALBUMS + "UpdateAlbum": Case(
        lambda o: album_pb2.UpdateAlbumRequest(
            request_id=f"update {o.album_id}", album_id=o.album_id, update_mask={"paths": ["description"]}
        ),
        NOT_FOUND,
    ),
    _ALBUMS + "DeleteAlbum": Case(
        lambda o: album_pb2.DeleteAlbumRequest(request_id=f"delete {o.album_id}", album_id=o.doomed_album_id), NOT_FOUND
    ),
    _ALBUMS + "AddAlbumAssets": Case(
        lambda o: album_pb2.AddAlbumAssetsRequest(
            request_id=f"add {o.album_id}", album_id=o.album_id, asset_ids=[o.asset_id]
        ),
        NOT_FOUND,
    ),
    _ALBUMS + "RemoveAlbumAssets": Case(
        lambda o: album_pb2.RemoveAlbumAssetsRequest(
            request_id=f"remove {o.album_id}", album_id=o.album_id, asset_ids=["0190f3c0-0000-7000-8000-000000000000"]
        ),
        NOT_FOUND,
    ),
    _ALBUMS + "ListAlbumAssets": Case(
        lambda o: album_pb2.ListAlbumAssetsRequest(album_id=o.album_id, include_urls=True), NOT_FOUND
    ),
    _ALBUMS + "DownloadAlbum": Case(lambda o: album_pb2.DownloadAlbumRequest(album_id=o.album_id), NOT_FOUND),
    _USAGE + "RecordUsage": Case(
        lambda o: usage_pb2.RecordUsageRequest(
            request_id=f"record {o.asset_id}", asset_id=o.asset_id, action=usage_pb2.USAGE_ACTION_VIEW
        ),
        NOT_FOUND,
    ),
    _USAGE + "ListUsage": Case(lambda o: usage_pb2.ListUsageRequest(asset_id=o.asset_id), empty("usages")),
    _USAGE + "GetUsageStats": Case(
        lambda o: usage_pb2.GetUsageStatsRequest(asset_id=o.asset_id), lambda answers: not answers[0].days
    ),
    _SEARCH + "SearchAssets": Case(
        lambda o: search_pb2.SearchAssetsRequest(scope={"product_id": o.product_id}, include_urls=True), empty("assets")
    ),
    _SEARCH + "GetAssetStats": Case(lambda o: search_pb2.GetAssetStatsRequest(), nothing),
}
