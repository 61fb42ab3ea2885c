"""Cases for every rpc of assets."""

import hashlib
from dataclasses import dataclass

import grpc
from atelier.assets.v1 import (
    album_pb2,
    album_pb2_grpc,
    asset_pb2,
    backfill_pb2,
    backfill_pb2_grpc,
    document_pb2,
    document_pb2_grpc,
    duplicate_pb2,
    erasure_pb2,
    import_pb2,
    provenance_pb2,
    quota_pb2,
    render_pb2,
    render_pb2_grpc,
    resumable_pb2,
    search_pb2,
    storage_pb2,
    storage_pb2_grpc,
    storage_report_pb2,
    style_pb2,
    style_pb2_grpc,
    upload_pb2,
    usage_pb2,
    usage_pb2_grpc,
    variant_pb2,
)
from google.protobuf import timestamp_pb2

from tests.assets import flows
from tests.suite import Client, Suite
from tests.tenancy_cases import FORBIDDEN_BY_STATE, NOT_FOUND, Case, empty, nothing, only_ready

PICTURE = flows.jpeg(64, 48)


@dataclass
class Owned:
    """Rows of one owner."""

    asset_id: str
    upload_id: str  # its bytes are sent, not confirmed
    product_id: str
    holder: str
    resumable_id: str
    sent_resumable_id: str  # its one part was sent
    spare_resumable_id: str
    backfill_id: str  # an operator's
    documents: list[str]  # one to purge, one to keep
    pictures: list[str]  # two to compare
    comparisons: list[str]  # one to delete, one to keep
    album_id: str  # the asset is in it
    doomed_album_id: str
    spare: list[str]  # announced; to be archived, deleted and purged
    run_id: str


async def prepare(suite: Suite, owner: Client, canary: str) -> Owned:
    described = {
        "file_name": f"{canary}.jpg",
        "tags": [canary],
        "metadata": {"note": canary},
        "scope": asset_pb2.AssetScope(product_id=canary),
    }
    asset = await flows.upload(owner, PICTURE, **described)
    pending = await flows.announce(owner, PICTURE, **described)
    await flows.send(pending.target, PICTURE)
    resumable = [await flows.start(owner, PICTURE, **described) for _ in range(3)]
    await flows.send_parts(resumable[1].targets, PICTURE)
    holder = f"tests/{canary}"
    stub = flows.assets(owner)
    await stub.AcquireReferences(
        asset_pb2.AcquireReferencesRequest(holder=holder, asset_ids=[asset.id])
    )
    await suite.change(
        "INSERT INTO assets.manifest_stores VALUES (%s, %s, %s)", (asset.owner, asset.id, canary)
    )
    operator = suite.client(owner.subject, "admin")
    started = await operator.stub(backfill_pb2_grpc.BackfillServiceStub).StartBackfill(
        backfill_pb2.StartBackfillRequest(presets=["thumb"])
    )
    await operator.stub(style_pb2_grpc.StyleServiceStub).PutStyle(
        style_pb2.PutStyleRequest(slug="tenancy", name="Tenancy")
    )
    pictures = [asset.id, (await flows.upload(owner, PICTURE)).id]
    resumable_id, sent_resumable_id, spare_resumable_id = (each.upload_id for each in resumable)
    albums = owner.stub(album_pb2_grpc.AlbumServiceStub)
    made = [
        (
            await albums.CreateAlbum(
                album_pb2.CreateAlbumRequest(name=f"{canary} {n}", description=canary)
            )
        ).album.id
        for n in range(2)
    ]
    await albums.AddAlbumAssets(
        album_pb2.AddAlbumAssetsRequest(album_id=made[0], asset_ids=[asset.id])
    )
    await owner.stub(usage_pb2_grpc.UsageServiceStub).RecordUsage(
        usage_pb2.RecordUsageRequest(
            asset_id=asset.id, action=usage_pb2.USAGE_ACTION_SHARE, session_id=canary
        )
    )
    spare = [(await flows.announce(owner, PICTURE, **described)).asset.id for _ in range(3)]
    session = storage_pb2.DeleteSessionRequest(session_id=f"{canary} gone")
    run = (await owner.stub(storage_pb2_grpc.StorageServiceStub).DeleteSession(session)).run
    return Owned(
        asset_id=asset.id,
        upload_id=pending.upload_id,
        product_id=canary,
        holder=holder,
        resumable_id=resumable_id,
        sent_resumable_id=sent_resumable_id,
        spare_resumable_id=spare_resumable_id,
        backfill_id=started.backfill.id,
        documents=[await _document(owner, canary) for _ in range(2)],
        pictures=pictures,
        spare=spare,
        run_id=run.id,
        album_id=made[0],
        doomed_album_id=made[1],
        comparisons=[await _comparison(owner, pictures, canary) for _ in range(2)],
    )


async def _comparison(owner: Client, pictures: list[str], canary: str) -> str:
    request = render_pb2.CreateComparisonRequest(
        before_asset_id=pictures[0], after_asset_id=pictures[1], note=canary, session_id=canary
    )
    return str(
        (
            await owner.stub(render_pb2_grpc.ComparisonServiceStub).CreateComparison(request)
        ).comparison.id
    )


def _content(canary: str) -> document_pb2.DocumentContent:
    body = document_pb2.Checklist(sections=[{"title": canary}])
    return document_pb2.DocumentContent(cover={"title": canary}, checklist=body)


async def _document(owner: Client, canary: str) -> str:
    request = document_pb2.CreateDocumentRequest(
        session_id=canary, phase=canary, content=_content(canary)
    )
    return str(
        (
            await owner.stub(document_pb2_grpc.DocumentServiceStub).CreateDocument(request)
        ).document.id
    )


def _photo() -> upload_pb2.UploadDeclaration:
    return flows.declaration(PICTURE, kind=asset_pb2.ASSET_KIND_PHOTO)


_ASSETS = "atelier.assets.v1.AssetService."
_UPLOADS = "atelier.assets.v1.UploadService."
_RESUMABLE = "atelier.assets.v1.ResumableUploadService."
_DUPLICATES = "atelier.assets.v1.DuplicateService."
_BACKFILLS = "atelier.assets.v1.BackfillService."
_VARIANTS = "atelier.assets.v1.VariantService."
_DOCUMENTS = "atelier.assets.v1.DocumentService."
_STYLES = "atelier.assets.v1.StyleService."
_COMPARISONS = "atelier.assets.v1.ComparisonService."
_ALBUMS = "atelier.assets.v1.AlbumService."
_USAGE = "atelier.assets.v1.UsageService."
_SEARCH = "atelier.assets.v1.SearchService."
_ERASURES = "atelier.assets.v1.ErasureService."
_STORAGE = "atelier.assets.v1.StorageService."
_REPORTS = "atelier.assets.v1.StorageReportService."
_QUOTAS = "atelier.assets.v1.QuotaService."

CASES = {
    _ASSETS + "GetAsset": Case(
        lambda o: asset_pb2.GetAssetRequest(asset_id=o.asset_id, include_urls=True), NOT_FOUND
    ),
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
            request_id=f"update {o.asset_id}",
            asset_id=o.asset_id,
            update_mask={"paths": ["free"]},
            free=True,
        ),
        NOT_FOUND,
    ),
    _ASSETS + "DownloadAsset": Case(
        lambda o: asset_pb2.DownloadAssetRequest(asset_id=o.asset_id), NOT_FOUND
    ),
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
        lambda o: asset_pb2.ReleaseReferencesRequest(
            request_id=f"release {o.asset_id}", holder=o.holder
        ),
        lambda answers: answers[0].released == 0,
    ),
    _UPLOADS + "RequestUpload": Case(
        lambda o: upload_pb2.RequestUploadRequest(
            request_id=f"request {o.asset_id}", declaration=_photo()
        ),
        nothing,
    ),
    _UPLOADS + "ConfirmUpload": Case(
        lambda o: upload_pb2.ConfirmUploadRequest(
            request_id=f"confirm {o.upload_id}", upload_id=o.upload_id
        ),
        NOT_FOUND,
    ),
    _UPLOADS + "Upload": Case(
        lambda o: [
            upload_pb2.UploadRequest(
                head={"request_id": f"upload {o.asset_id}", "declaration": _photo()}
            ),
            upload_pb2.UploadRequest(chunk=PICTURE),
        ],
        nothing,
    ),
    _RESUMABLE + "StartResumableUpload": Case(
        lambda o: resumable_pb2.StartResumableUploadRequest(
            request_id=f"start {o.asset_id}", declaration=_photo()
        ),
        nothing,
    ),
    _RESUMABLE + "SignParts": Case(
        lambda o: resumable_pb2.SignPartsRequest(upload_id=o.resumable_id, part_numbers=[1]),
        NOT_FOUND,
    ),
    _RESUMABLE + "GetResumableUpload": Case(
        lambda o: resumable_pb2.GetResumableUploadRequest(upload_id=o.resumable_id), NOT_FOUND
    ),
    _RESUMABLE + "CompleteResumableUpload": Case(
        lambda o: resumable_pb2.CompleteResumableUploadRequest(upload_id=o.sent_resumable_id),
        NOT_FOUND,
    ),
    _RESUMABLE + "AbortResumableUpload": Case(
        lambda o: resumable_pb2.AbortResumableUploadRequest(upload_id=o.spare_resumable_id),
        NOT_FOUND,
    ),
    "atelier.assets.v1.ImportService.ImportAsset": Case(
        lambda o: import_pb2.ImportAssetRequest(
            request_id=f"import {o.asset_id}",
            url="https://192.0.2.1/a.jpg",
            kind=asset_pb2.ASSET_KIND_PHOTO,
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
        owner=grpc.StatusCode.INVALID_ARGUMENT,  # an address that nobody may have called
    ),
    _DUPLICATES + "FindDuplicates": Case(
        lambda o: duplicate_pb2.FindDuplicatesRequest(
            sha256s=[hashlib.sha256(PICTURE).hexdigest()]
        ),
        lambda answers: not answers[0].groups,
    ),
    _DUPLICATES + "ListDuplicates": Case(
        lambda o: duplicate_pb2.ListDuplicatesRequest(), empty("groups")
    ),
    _VARIANTS + "ListVariants": Case(
        lambda o: variant_pb2.ListVariantsRequest(asset_id=o.asset_id, include_urls=True), NOT_FOUND
    ),
    _VARIANTS + "GetVariant": Case(
        lambda o: variant_pb2.GetVariantRequest(
            asset_id=o.asset_id, preset="large", include_urls=True
        ),
        NOT_FOUND,
    ),
    _VARIANTS + "RegenerateVariants": Case(
        lambda o: variant_pb2.RegenerateVariantsRequest(
            request_id=f"again {o.asset_id}", asset_id=o.asset_id
        ),
        NOT_FOUND,
    ),
    _BACKFILLS + "StartBackfill": Case(
        lambda o: backfill_pb2.StartBackfillRequest(
            request_id=f"fill {o.asset_id}", presets=["thumb"]
        ),
        NOT_FOUND,
        owner=FORBIDDEN_BY_STATE,
        owner_role="admin",
    ),
    _BACKFILLS + "GetBackfill": Case(
        lambda o: backfill_pb2.GetBackfillRequest(backfill_id=o.backfill_id),
        NOT_FOUND,
        owner_role="admin",
    ),
    _BACKFILLS + "ListBackfills": Case(
        lambda o: backfill_pb2.ListBackfillsRequest(), NOT_FOUND, owner_role="admin"
    ),
    _BACKFILLS + "CancelBackfill": Case(
        lambda o: backfill_pb2.CancelBackfillRequest(
            request_id=f"end {o.asset_id}", backfill_id=o.backfill_id
        ),
        NOT_FOUND,
        owner_role="admin",
    ),
    "atelier.assets.v1.ProvenanceService.GetManifestStore": Case(
        lambda o: provenance_pb2.GetManifestStoreRequest(asset_id=o.asset_id), NOT_FOUND
    ),
    _DOCUMENTS + "CreateDocument": Case(
        lambda o: document_pb2.CreateDocumentRequest(
            request_id=f"create {o.asset_id}", session_id="plain", content=_content("plain")
        ),
        lambda answers: answers[0].document.version_number == 1,
    ),
    _DOCUMENTS + "RegenerateDocument": Case(
        lambda o: document_pb2.RegenerateDocumentRequest(
            request_id=f"regenerate {o.asset_id}", document_id=o.documents[1]
        ),
        NOT_FOUND,
    ),
    _DOCUMENTS + "GetDocument": Case(
        lambda o: document_pb2.GetDocumentRequest(document_id=o.documents[1], include_urls=True),
        NOT_FOUND,
    ),
    _DOCUMENTS + "GetLatestDocument": Case(
        lambda o: document_pb2.GetLatestDocumentRequest(
            session_id=o.product_id, phase=o.product_id, kind=document_pb2.DOCUMENT_KIND_CHECKLIST
        ),
        NOT_FOUND,
    ),
    _DOCUMENTS + "ListDocuments": Case(
        lambda o: document_pb2.ListDocumentsRequest(phase=o.product_id, include_urls=True),
        empty("documents"),
    ),
    _DOCUMENTS + "DownloadDocument": Case(
        lambda o: document_pb2.DownloadDocumentRequest(document_id=o.documents[1]),
        NOT_FOUND,
        FORBIDDEN_BY_STATE,
    ),
    _DOCUMENTS + "WatchDocuments": Case(
        lambda o: document_pb2.WatchDocumentsRequest(session_id=o.product_id), only_ready
    ),
    _DOCUMENTS + "PurgeDocument": Case(
        lambda o: document_pb2.PurgeDocumentRequest(
            request_id=f"purge {o.asset_id}", document_id=o.documents[0]
        ),
        NOT_FOUND,
    ),
    # The catalogue is for everyone; it names no owner.
    _STYLES + "PutStyle": Case(
        lambda o: style_pb2.PutStyleRequest(
            request_id=f"put {o.asset_id}", slug="tenancy", name="Tenancy"
        ),
        nothing,
        owner_role="admin",
    ),
    _STYLES + "FindStylePictures": Case(
        lambda o: style_pb2.FindStylePicturesRequest(sha256s=["0" * 64]),
        nothing,
        owner_role="admin",
    ),
    _STYLES + "GetStyle": Case(
        lambda o: style_pb2.GetStyleRequest(slug="tenancy", include_urls=True), nothing
    ),
    _STYLES + "ListStyles": Case(lambda o: style_pb2.ListStylesRequest(include_urls=True), nothing),
    _STYLES + "ListStyleVersions": Case(
        lambda o: style_pb2.ListStyleVersionsRequest(slug="tenancy", include_urls=True), nothing
    ),
    _COMPARISONS + "CreateComparison": Case(
        lambda o: render_pb2.CreateComparisonRequest(
            request_id=f"compare {o.asset_id}",
            before_asset_id=o.pictures[1],
            after_asset_id=o.pictures[0],
        ),
        NOT_FOUND,
    ),
    _COMPARISONS + "GetComparison": Case(
        lambda o: render_pb2.GetComparisonRequest(
            comparison_id=o.comparisons[1], include_urls=True
        ),
        NOT_FOUND,
    ),
    _COMPARISONS + "ListComparisons": Case(
        lambda o: render_pb2.ListComparisonsRequest(session_id=o.product_id, include_urls=True),
        empty("comparisons"),
    ),
    _COMPARISONS + "DeleteComparison": Case(
        lambda o: render_pb2.DeleteComparisonRequest(
            request_id=f"forget {o.asset_id}", comparison_id=o.comparisons[0]
        ),
        NOT_FOUND,
    ),
    _ALBUMS + "CreateAlbum": Case(
        lambda o: album_pb2.CreateAlbumRequest(request_id=f"create {o.asset_id}", name=o.asset_id),
        nothing,
    ),
    _ALBUMS + "GetAlbum": Case(
        lambda o: album_pb2.GetAlbumRequest(album_id=o.album_id, include_urls=True), NOT_FOUND
    ),
    _ALBUMS + "ListAlbums": Case(lambda o: album_pb2.ListAlbumsRequest(), nothing),
    _ALBUMS + "UpdateAlbum": Case(
        lambda o: album_pb2.UpdateAlbumRequest(
            request_id=f"update {o.album_id}",
            album_id=o.album_id,
            update_mask={"paths": ["description"]},
        ),
        NOT_FOUND,
    ),
    _ALBUMS + "DeleteAlbum": Case(
        lambda o: album_pb2.DeleteAlbumRequest(
            request_id=f"delete {o.album_id}", album_id=o.doomed_album_id
        ),
        NOT_FOUND,
    ),
    _ALBUMS + "AddAlbumAssets": Case(
        lambda o: album_pb2.AddAlbumAssetsRequest(
            request_id=f"add {o.album_id}", album_id=o.album_id, asset_ids=[o.asset_id]
        ),
        NOT_FOUND,
    ),
    _ALBUMS + "RemoveAlbumAssets": Case(
        lambda o: album_pb2.RemoveAlbumAssetsRequest(
            request_id=f"remove {o.album_id}",
            album_id=o.album_id,
            asset_ids=["0190f3c0-0000-7000-8000-000000000000"],
        ),
        NOT_FOUND,
    ),
    _ALBUMS + "ListAlbumAssets": Case(
        lambda o: album_pb2.ListAlbumAssetsRequest(album_id=o.album_id, include_urls=True),
        NOT_FOUND,
    ),
    _ALBUMS + "DownloadAlbum": Case(
        lambda o: album_pb2.DownloadAlbumRequest(album_id=o.album_id), NOT_FOUND
    ),
    _USAGE + "RecordUsage": Case(
        lambda o: usage_pb2.RecordUsageRequest(
            request_id=f"record {o.asset_id}",
            asset_id=o.asset_id,
            action=usage_pb2.USAGE_ACTION_VIEW,
        ),
        NOT_FOUND,
    ),
    _USAGE + "ListUsage": Case(
        lambda o: usage_pb2.ListUsageRequest(asset_id=o.asset_id), empty("usages")
    ),
    _USAGE + "GetUsageStats": Case(
        lambda o: usage_pb2.GetUsageStatsRequest(asset_id=o.asset_id),
        lambda answers: not answers[0].days,
    ),
    _SEARCH + "SearchAssets": Case(
        lambda o: search_pb2.SearchAssetsRequest(
            scope={"product_id": o.product_id}, include_urls=True
        ),
        empty("assets"),
    ),
    _SEARCH + "GetAssetStats": Case(lambda o: search_pb2.GetAssetStatsRequest(), nothing),
    _ASSETS + "ArchiveAsset": Case(
        lambda o: asset_pb2.ArchiveAssetRequest(asset_id=o.spare[0]), NOT_FOUND
    ),
    _ASSETS + "UnarchiveAsset": Case(
        lambda o: asset_pb2.UnarchiveAssetRequest(asset_id=o.spare[0]), NOT_FOUND
    ),
    _ASSETS + "DeleteAsset": Case(
        lambda o: asset_pb2.DeleteAssetRequest(asset_id=o.spare[1]), NOT_FOUND
    ),
    _ASSETS + "UndeleteAsset": Case(
        lambda o: asset_pb2.UndeleteAssetRequest(asset_id=o.spare[1]), NOT_FOUND
    ),
    _ASSETS + "PurgeAsset": Case(
        lambda o: asset_pb2.PurgeAssetRequest(asset_id=o.spare[2]), NOT_FOUND
    ),
    _ASSETS + "BatchDeleteAssets": Case(
        lambda o: asset_pb2.BatchDeleteAssetsRequest(asset_ids=[o.spare[1]]),
        lambda answers: [result.reason for result in answers[0].results] == ["NOT_FOUND"],
    ),
    _ASSETS + "BatchUndeleteAssets": Case(
        lambda o: asset_pb2.BatchUndeleteAssetsRequest(asset_ids=[o.spare[1]]),
        lambda answers: [result.reason for result in answers[0].results] == ["NOT_FOUND"],
    ),
    _ASSETS + "ListReferences": Case(
        lambda o: asset_pb2.ListReferencesRequest(asset_id=o.asset_id), NOT_FOUND
    ),
    _ASSETS + "ExplainAsset": Case(
        lambda o: asset_pb2.ExplainAssetRequest(asset_id=o.asset_id), NOT_FOUND
    ),
    _STORAGE + "DeleteSession": Case(
        lambda o: storage_pb2.DeleteSessionRequest(session_id="of nobody"), nothing
    ),
    _STORAGE + "RunCleanup": Case(
        lambda o: storage_pb2.RunCleanupRequest(), nothing, owner_role="admin"
    ),
    _STORAGE + "RunReconciler": Case(
        lambda o: storage_pb2.RunReconcilerRequest(), nothing, owner_role="admin"
    ),
    # The owner is confirmed wrongly, so that nothing is erased: the other cases need the rows.
    _STORAGE + "EraseOwner": Case(
        lambda o: storage_pb2.EraseOwnerRequest(owner="user:ada", confirm_owner="user:nobody"),
        NOT_FOUND,
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    # Only services of the suite are served: tests/test_erasure.py.
    _ERASURES + "FollowErasures": Case(
        lambda o: erasure_pb2.FollowErasuresRequest(),
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.PERMISSION_DENIED,
    ),
    _ERASURES + "ReportErasure": Case(
        lambda o: erasure_pb2.ReportErasureRequest(
            owner="user:ada", begin_time=timestamp_pb2.Timestamp(seconds=1), done=True
        ),
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.PERMISSION_DENIED,
    ),
    _STORAGE + "ExportOwner": Case(
        lambda o: storage_pb2.ExportOwnerRequest(owner="user:ada"), NOT_FOUND
    ),
    _STORAGE + "GetRun": Case(lambda o: storage_pb2.GetRunRequest(run_id=o.run_id), NOT_FOUND),
    _STORAGE + "ListRuns": Case(lambda o: storage_pb2.ListRunsRequest(), nothing),
    _REPORTS + "GetStorageReport": Case(
        lambda o: storage_report_pb2.GetStorageReportRequest(owner="user:ada"), NOT_FOUND
    ),
    _REPORTS + "ListStorageSessions": Case(
        lambda o: storage_report_pb2.ListStorageSessionsRequest(owner="user:ada"), NOT_FOUND
    ),
    _REPORTS + "ListAlerts": Case(
        lambda o: storage_report_pb2.ListAlertsRequest(owner="user:ada"), NOT_FOUND
    ),
    _REPORTS + "ListStorageOwners": Case(
        lambda o: storage_report_pb2.ListStorageOwnersRequest(), nothing, owner_role="admin"
    ),
    _REPORTS + "ProjectCosts": Case(
        lambda o: storage_report_pb2.ProjectCostsRequest(), nothing, owner_role="admin"
    ),
    _QUOTAS + "GetQuota": Case(lambda o: quota_pb2.GetQuotaRequest(owner="user:ada"), NOT_FOUND),
    _QUOTAS + "SetQuota": Case(
        lambda o: quota_pb2.SetQuotaRequest(
            request_id=f"quota {o.asset_id}", owner="user:ada", assets=10_000
        ),
        nothing,
        owner_role="admin",
    ),
    _QUOTAS + "ListQuotas": Case(
        lambda o: quota_pb2.ListQuotasRequest(), nothing, owner_role="admin"
    ),
}
