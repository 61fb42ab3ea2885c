"""Cases for every rpc of assets."""

from dataclasses import dataclass

from atelier.assets.v1 import asset_pb2, quota_pb2, storage_report_pb2, upload_pb2, variant_pb2

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
    return Owned(asset.id, pending.upload_id, canary, holder)


def _photo() -> upload_pb2.UploadDeclaration:
    return flows.declaration(PICTURE, kind=asset_pb2.ASSET_KIND_PHOTO)


_ASSETS = "atelier.assets.v1.AssetService."
_UPLOADS = "atelier.assets.v1.UploadService."
_VARIANTS = "atelier.assets.v1.VariantService."
_REPORTS = "atelier.assets.v1.StorageReportService."
_QUOTAS = "atelier.assets.v1.QuotaService."

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
    _REPORTS + "GetStorageReport": Case(
        lambda o: storage_report_pb2.GetStorageReportRequest(owner="user:ada"), NOT_FOUND
    ),
    _REPORTS + "ListStorageSessions": Case(
        lambda o: storage_report_pb2.ListStorageSessionsRequest(owner="user:ada"), NOT_FOUND
    ),
    _REPORTS + "ListAlerts": Case(lambda o: storage_report_pb2.ListAlertsRequest(owner="user:ada"), NOT_FOUND),
    _REPORTS + "ListStorageOwners": Case(
        lambda o: storage_report_pb2.ListStorageOwnersRequest(), nothing, owner_role="admin"
    ),
    _REPORTS + "ProjectCosts": Case(lambda o: storage_report_pb2.ProjectCostsRequest(), nothing, owner_role="admin"),
    _QUOTAS + "GetQuota": Case(lambda o: quota_pb2.GetQuotaRequest(owner="user:ada"), NOT_FOUND),
    _QUOTAS + "SetQuota": Case(
        lambda o: quota_pb2.SetQuotaRequest(request_id=f"quota {o.asset_id}", owner="user:ada", assets=10_000),
        nothing,
        owner_role="admin",
    ),
    _QUOTAS + "ListQuotas": Case(lambda o: quota_pb2.ListQuotasRequest(), nothing, owner_role="admin"),
}
