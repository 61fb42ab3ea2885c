"""Cases for every rpc of techfiles. No worker runs: the run and the export stay pending."""

from dataclasses import dataclass
from uuid import uuid4

from atelier.techfiles.v1 import collection_pb2 as col
from atelier.techfiles.v1 import export_pb2 as ex
from atelier.techfiles.v1 import history_pb2 as hp
from atelier.techfiles.v1 import legacy_pb2 as lg
from atelier.techfiles.v1 import release_pb2 as rp
from atelier.techfiles.v1 import release_pb2_grpc
from atelier.techfiles.v1 import tech_file_pb2 as tf
from atelier.techfiles.v1 import tech_pack_pb2 as tp
from atelier.techfiles.v1 import verification_pb2 as vf

from tests.assets import flows as assets
from tests.suite import Client, Suite
from tests.techfiles import flows
from tests.tenancy_cases import (
    FORBIDDEN_BY_STATE,
    NOT_FOUND,
    Case,
    empty,
    nothing,
    only_ready,
)

PICTURE = assets.jpeg(64, 48)
OTHER_PICTURE = assets.jpeg(64, 49)


@dataclass
class Owned:
    """Rows of one owner."""

    product_id: str
    asset_id: str
    file_id: str
    loose_file_id: str  # in no collection
    unfinished_file_id: str
    completed_file_id: str  # with another picture than file_id
    collection_id: str
    run_id: str
    export_id: str
    trashed_file_id: str
    purged_file_id: str
    loose_collection_id: str
    trashed_collection_id: str
    purged_collection_id: str
    ended_run_id: str
    purged_run_id: str
    purged_export_id: str
    backfill_id: str
    check_id: str
    finding_id: str
    releasable_id: str  # a collection with a finished file
    approved_id: str
    release_id: str  # a draft whose document isn't made
    rejected_id: str
    deleted_id: str
    purged_id: str


async def prepare(suite: Suite, owner: Client, canary: str) -> Owned:
    asset = await assets.upload(owner, PICTURE, file_name=canary)
    described = {"product_id": canary, "analysis": {"note": canary}}
    file = await flows.create(
        owner, file_asset_id=asset.id, state=tf.TECH_FILE_STATE_PENDING, **described
    )
    loose = await flows.create(owner, view_type=tf.VIEW_TYPE_BACK, **described)
    unfinished = await flows.create(
        owner, view_type=tf.VIEW_TYPE_SIDE, state=tf.TECH_FILE_STATE_PROCESSING, **described
    )
    other = await assets.upload(owner, OTHER_PICTURE, file_name=canary)
    completed = await flows.create(owner, revision_id=canary, file_asset_id=other.id, **described)
    collection = await flows.collect(owner, product_id=canary, name=canary)
    await flows.collection_service(owner).AddFiles(
        col.AddFilesRequest(collection_id=collection.id, tech_file_ids=[file.id])
    )
    revision = tp.PackRevision(revision_id=canary, view=tf.VIEW_TYPE_FRONT, asset_id=asset.id)
    run = await flows.generate(owner, [revision], product_id=canary)
    request = tp.ExportCollectionRequest(collection_id=collection.id, format=tp.EXPORT_FORMAT_PDF)
    export = (await flows.pack_service(owner).ExportCollection(request)).export
    backfill_id = str(uuid4())  # without an older table none can be started by a call
    suite.sql(
        "INSERT INTO techfiles.legacy_backfills (id, owner, created_by, dry_run, state)"
        " VALUES (%s, 'admin:operator', %s, false, 'done')",
        (backfill_id, canary),
    )
    check_id, finding_id = str(uuid4()), str(uuid4())
    broken = await flows.create(owner, product_id=f"{canary} broken")
    suite.sql(
        "INSERT INTO techfiles.history_checks"
        " (id, owner, created_by, all_owners, record_digests, state)"
        " SELECT %s, owner, %s, false, false, 'done' FROM techfiles.tech_files WHERE id = %s",
        (check_id, canary, file.id),
    )
    # The fault is made, too, so that it can be repaired.
    suite.sql("UPDATE techfiles.tech_files SET is_latest = false WHERE id = %s", (broken.id,))
    suite.sql(
        "INSERT INTO techfiles.history_findings (id, owner, check_id, slot_id, product_id,"
        " file_type, view_type, file_category, fault, message, advice, repair)"
        " SELECT %s, owner, %s, slot_id, product_id, file_type, view_type, '', 'no_latest',"
        " product_id, '', jsonb_build_array(jsonb_build_object('row', 'tech_files/' || id,"
        " 'column', 'is_latest', 'before', 'false', 'after', 'true'))"
        " FROM techfiles.tech_files WHERE id = %s",
        (finding_id, check_id, broken.id),
    )
    suite.sql(
        "INSERT INTO techfiles.history_findings (id, owner, check_id, slot_id, product_id,"
        " file_type, view_type, file_category, fault, state, message, advice)"
        " SELECT gen_random_uuid(), owner, check_id, slot_id, product_id, file_type, view_type, '',"
        " fault, 'superseded', message, '' FROM techfiles.history_findings WHERE id = %s",
        (finding_id,),
    )
    more = [await flows.create(owner, product_id=f"{canary} {n}") for n in range(2)]
    collections = [
        await flows.collect(owner, product_id=canary, name=f"{canary} {n}") for n in range(3)
    ]
    runs = [await flows.generate(owner, [revision], product_id=canary) for _ in range(2)]
    for each in runs:
        cancel = tp.CancelTechPackRunRequest(run_id=each.id)
        await flows.pack_service(owner).CancelTechPackRun(cancel)
    purged = (await flows.pack_service(owner).ExportCollection(request)).export
    return Owned(
        canary,
        asset.id,
        file.id,
        loose.id,
        unfinished.id,
        completed.id,
        collection.id,
        run.id,
        export.id,
        *(
            *(each.id for each in (*more, *collections, *runs, purged)),
            backfill_id,
            check_id,
            finding_id,
            *await _releases(suite, owner, canary, completed),
        ),
    )


async def _releases(suite: Suite, owner: Client, canary: str, file: tf.TechFile) -> list[str]:
    """Makes a collection and five releases of it. Returns their ids."""
    collection = await flows.collect(owner, product_id=canary, name=f"{canary} released")
    await flows.collection_service(owner).AddFiles(
        col.AddFilesRequest(collection_id=collection.id, tech_file_ids=[file.id])
    )
    service = owner.stub(release_pb2_grpc.ReleaseServiceStub)
    request = rp.CreateReleaseRequest(collection_id=collection.id, name=canary, note=canary)
    made = [(await service.CreateRelease(request)).release.id for _ in range(5)]
    suite.sql(  # no worker runs that would make its document
        "UPDATE techfiles.releases SET state = 'approved', number = 1, decided_at = now()"
        " WHERE id = %s",
        (made[0],),
    )
    return [collection.id, *made]


_FILES = "atelier.techfiles.v1.TechFileService."
_COLLECTIONS = "atelier.techfiles.v1.CollectionService."
_PACKS = "atelier.techfiles.v1.TechPackService."
_LEGACY = "atelier.techfiles.v1.LegacyAnalysisService."
_EXPORTS = "atelier.techfiles.v1.ExportService."
_HISTORY = "atelier.techfiles.v1.HistoryService."
_CHECKS = "atelier.techfiles.v1.HistoryCheckService."
_RELEASES = "atelier.techfiles.v1.ReleaseService."


def _version(file_id: str) -> hp.VersionOfFile:
    return hp.VersionOfFile(tech_file_id=file_id)


CASES = {
    _LEGACY + "FindLegacyAnalysis": Case(
        lambda o: lg.FindLegacyAnalysisRequest(
            product_id=o.product_id, revision_id="r", view_type=tf.VIEW_TYPE_FRONT
        ),
        FORBIDDEN_BY_STATE,
        owner=FORBIDDEN_BY_STATE,
    ),
    _LEGACY + "GetLegacyTable": Case(
        lambda o: lg.GetLegacyTableRequest(), NOT_FOUND, owner_role="admin"
    ),
    _LEGACY + "StartLegacyBackfill": Case(
        lambda o: lg.StartLegacyBackfillRequest(request_id=f"fill {o.asset_id}"),
        NOT_FOUND,
        owner=FORBIDDEN_BY_STATE,
        owner_role="admin",
    ),
    _LEGACY + "GetLegacyBackfill": Case(
        lambda o: lg.GetLegacyBackfillRequest(backfill_id=o.backfill_id),
        NOT_FOUND,
        owner_role="admin",
    ),
    _LEGACY + "ListLegacyBackfills": Case(
        lambda o: lg.ListLegacyBackfillsRequest(), NOT_FOUND, owner_role="admin"
    ),
    _LEGACY + "CancelLegacyBackfill": Case(
        lambda o: lg.CancelLegacyBackfillRequest(
            request_id=f"end {o.asset_id}", backfill_id=o.backfill_id
        ),
        NOT_FOUND,
        owner_role="admin",
    ),
    _FILES + "CreateTechFile": Case(
        lambda o: tf.CreateTechFileRequest(
            request_id="create",
            product_id="p",
            file_type=tf.TECH_FILE_TYPE_SKETCH,
            view_type=tf.VIEW_TYPE_FRONT,
            file_asset_id=o.asset_id,
        ),
        NOT_FOUND,
    ),
    _FILES + "GetTechFile": Case(
        lambda o: tf.GetTechFileRequest(tech_file_id=o.file_id, include_urls=True), NOT_FOUND
    ),
    _FILES + "ListTechFiles": Case(
        lambda o: tf.ListTechFilesRequest(product_id=o.product_id, include_urls=True),
        empty("tech_files"),
    ),
    _FILES + "UpdateTechFile": Case(
        lambda o: tf.UpdateTechFileRequest(
            request_id="update", tech_file_id=o.file_id, update_mask={"paths": ["model"]}, model="m"
        ),
        NOT_FOUND,
    ),
    _FILES + "UpdateTechFileStatus": Case(
        lambda o: tf.UpdateTechFileStatusRequest(
            request_id="status",
            tech_file_id=o.unfinished_file_id,
            state=tf.TECH_FILE_STATE_COMPLETED,
        ),
        NOT_FOUND,
    ),
    _FILES + "ArchiveTechFile": Case(
        lambda o: tf.ArchiveTechFileRequest(request_id="archive", tech_file_id=o.loose_file_id),
        NOT_FOUND,
    ),
    _FILES + "UnarchiveTechFile": Case(
        lambda o: tf.UnarchiveTechFileRequest(request_id="unarchive", tech_file_id=o.loose_file_id),
        NOT_FOUND,
    ),
    _FILES + "CreateTechFileVersion": Case(
        lambda o: tf.CreateTechFileVersionRequest(request_id="version", tech_file_id=o.file_id),
        NOT_FOUND,
    ),
    _FILES + "ListTechFileVersions": Case(
        lambda o: tf.ListTechFileVersionsRequest(tech_file_id=o.file_id), NOT_FOUND
    ),
    _FILES + "GetProductStatistics": Case(
        lambda o: tf.GetProductStatisticsRequest(product_id=o.product_id),
        lambda answers: not answers[0].ListFields(),
    ),
    _FILES + "WatchTechFiles": Case(
        lambda o: tf.WatchTechFilesRequest(product_id=o.product_id), only_ready
    ),
    _COLLECTIONS + "CreateCollection": Case(
        lambda o: col.CreateCollectionRequest(request_id="create", product_id="p", name="n"),
        lambda answers: answers[0].collection.product_id == "p",
    ),
    _COLLECTIONS + "GetCollection": Case(
        lambda o: col.GetCollectionRequest(collection_id=o.collection_id, include_urls=True),
        NOT_FOUND,
    ),
    _COLLECTIONS + "ListCollections": Case(
        lambda o: col.ListCollectionsRequest(product_id=o.product_id), empty("collections")
    ),
    _COLLECTIONS + "AddFiles": Case(
        lambda o: col.AddFilesRequest(
            request_id="add", collection_id=o.collection_id, tech_file_ids=[o.file_id]
        ),
        NOT_FOUND,
    ),
    _COLLECTIONS + "RemoveFiles": Case(
        lambda o: col.RemoveFilesRequest(
            request_id="remove", collection_id=o.collection_id, tech_file_ids=[o.file_id]
        ),
        NOT_FOUND,
    ),
    _COLLECTIONS + "SetCollectionProgress": Case(
        lambda o: col.SetCollectionProgressRequest(
            request_id="progress", collection_id=o.collection_id
        ),
        NOT_FOUND,
    ),
    _COLLECTIONS + "AdjustCollectionCredits": Case(
        lambda o: col.AdjustCollectionCreditsRequest(
            request_id="credits", collection_id=o.collection_id, credits=3
        ),
        NOT_FOUND,
    ),
    _PACKS + "GenerateTechPack": Case(
        lambda o: tp.GenerateTechPackRequest(
            request_id="generate",
            product_id="p",
            revisions=[
                tp.PackRevision(revision_id="r", view=tf.VIEW_TYPE_FRONT, asset_id=o.asset_id)
            ],
        ),
        NOT_FOUND,
    ),
    _PACKS + "GetTechPackRun": Case(lambda o: tp.GetTechPackRunRequest(run_id=o.run_id), NOT_FOUND),
    _PACKS + "ListTechPackRuns": Case(
        lambda o: tp.ListTechPackRunsRequest(product_id=o.product_id), empty("runs")
    ),
    _PACKS + "WatchTechPackRun": Case(
        lambda o: tp.WatchTechPackRunRequest(run_id=o.run_id), NOT_FOUND
    ),
    _PACKS + "CancelTechPackRun": Case(
        lambda o: tp.CancelTechPackRunRequest(request_id="cancel", run_id=o.run_id), NOT_FOUND
    ),
    _PACKS + "RetryTechPackRun": Case(
        lambda o: tp.RetryTechPackRunRequest(request_id="retry", run_id=o.run_id), NOT_FOUND
    ),
    _PACKS + "ExplainTechPackRun": Case(
        lambda o: tp.ExplainTechPackRunRequest(run_id=o.run_id), NOT_FOUND
    ),
    _PACKS + "ExportCollection": Case(
        lambda o: tp.ExportCollectionRequest(
            request_id="export", collection_id=o.collection_id, format=tp.EXPORT_FORMAT_ZIP
        ),
        NOT_FOUND,
    ),
    _PACKS + "GetExport": Case(lambda o: tp.GetExportRequest(export_id=o.export_id), NOT_FOUND),
    _FILES + "DeleteTechFile": Case(
        lambda o: tf.DeleteTechFileRequest(request_id="delete", tech_file_id=o.trashed_file_id),
        NOT_FOUND,
    ),
    _FILES + "UndeleteTechFile": Case(
        lambda o: tf.UndeleteTechFileRequest(request_id="undelete", tech_file_id=o.trashed_file_id),
        NOT_FOUND,
    ),
    _FILES + "PurgeTechFile": Case(
        lambda o: tf.PurgeTechFileRequest(request_id="purge", tech_file_id=o.purged_file_id),
        NOT_FOUND,
    ),
    _COLLECTIONS + "UpdateCollection": Case(
        lambda o: col.UpdateCollectionRequest(
            request_id="update",
            collection_id=o.collection_id,
            update_mask={"paths": ["description"]},
            description="other",
        ),
        NOT_FOUND,
    ),
    _COLLECTIONS + "UpdateCollectionFacts": Case(
        lambda o: col.UpdateCollectionFactsRequest(
            request_id="facts", collection_id=o.collection_id, facts={"care": ["wash cold"]}
        ),
        NOT_FOUND,
    ),
    _COLLECTIONS + "RestoreCollectionFacts": Case(
        lambda o: col.RestoreCollectionFactsRequest(
            request_id="restore", collection_id=o.collection_id, number=1
        ),
        NOT_FOUND,
    ),
    _COLLECTIONS + "ListCollectionFactsVersions": Case(
        lambda o: col.ListCollectionFactsVersionsRequest(collection_id=o.collection_id), NOT_FOUND
    ),
    _COLLECTIONS + "ExplainCollection": Case(
        lambda o: col.ExplainCollectionRequest(collection_id=o.collection_id), NOT_FOUND
    ),
    _COLLECTIONS + "ArchiveCollection": Case(
        lambda o: col.ArchiveCollectionRequest(
            request_id="archive", collection_id=o.loose_collection_id
        ),
        NOT_FOUND,
    ),
    _COLLECTIONS + "UnarchiveCollection": Case(
        lambda o: col.UnarchiveCollectionRequest(
            request_id="unarchive", collection_id=o.loose_collection_id
        ),
        NOT_FOUND,
    ),
    _COLLECTIONS + "DeleteCollection": Case(
        lambda o: col.DeleteCollectionRequest(
            request_id="delete", collection_id=o.trashed_collection_id
        ),
        NOT_FOUND,
    ),
    _COLLECTIONS + "UndeleteCollection": Case(
        lambda o: col.UndeleteCollectionRequest(
            request_id="undelete", collection_id=o.trashed_collection_id
        ),
        NOT_FOUND,
    ),
    _COLLECTIONS + "PurgeCollection": Case(
        lambda o: col.PurgeCollectionRequest(
            request_id="purge", collection_id=o.purged_collection_id
        ),
        NOT_FOUND,
    ),
    _PACKS + "DeleteTechPackRun": Case(
        lambda o: tp.DeleteTechPackRunRequest(request_id="delete", run_id=o.ended_run_id),
        NOT_FOUND,
    ),
    _PACKS + "UndeleteTechPackRun": Case(
        lambda o: tp.UndeleteTechPackRunRequest(request_id="undelete", run_id=o.ended_run_id),
        NOT_FOUND,
    ),
    _PACKS + "PurgeTechPackRun": Case(
        lambda o: tp.PurgeTechPackRunRequest(request_id="purge", run_id=o.purged_run_id),
        NOT_FOUND,
    ),
    _EXPORTS + "ListExports": Case(
        lambda o: ex.ListExportsRequest(collection_id=o.collection_id, include_urls=True),
        empty("exports"),
    ),
    _EXPORTS + "UpdateExport": Case(
        lambda o: ex.UpdateExportRequest(
            request_id="rename", export_id=o.export_id, file_name="other"
        ),
        NOT_FOUND,
    ),
    _EXPORTS + "DeleteExport": Case(
        lambda o: ex.DeleteExportRequest(request_id="delete", export_id=o.export_id),
        NOT_FOUND,
        FORBIDDEN_BY_STATE,
    ),
    _EXPORTS + "UndeleteExport": Case(
        lambda o: ex.UndeleteExportRequest(request_id="undelete", export_id=o.export_id),
        NOT_FOUND,
    ),
    _EXPORTS + "PurgeExport": Case(
        lambda o: ex.PurgeExportRequest(request_id="purge", export_id=o.purged_export_id),
        NOT_FOUND,
    ),
    _EXPORTS + "GetStorageReport": Case(
        lambda o: ex.GetStorageReportRequest(),
        lambda answers: not answers[0].exports,
    ),
    _EXPORTS + "ReconcileExports": Case(
        lambda o: ex.ReconcileExportsRequest(dry_run=True), nothing, owner_role="admin"
    ),
    _HISTORY + "RestoreTechFileVersion": Case(
        lambda o: hp.RestoreTechFileVersionRequest(
            request_id="restore", tech_file_id=o.completed_file_id, version_number=2
        ),
        NOT_FOUND,
    ),
    _HISTORY + "CompareTechFiles": Case(
        lambda o: hp.CompareTechFilesRequest(
            before=_version(o.file_id), after=_version(o.loose_file_id)
        ),
        NOT_FOUND,
    ),
    _HISTORY + "ComparePictures": Case(
        lambda o: hp.ComparePicturesRequest(
            request_id="pictures",
            before=_version(o.file_id),
            after=_version(o.completed_file_id),
        ),
        NOT_FOUND,
    ),
    _HISTORY + "CompareCollections": Case(
        lambda o: hp.CompareCollectionsRequest(
            before_collection_id=o.collection_id, after_collection_id=o.collection_id
        ),
        NOT_FOUND,
    ),
    _HISTORY + "ExplainTechFile": Case(
        lambda o: hp.ExplainTechFileRequest(tech_file_id=o.file_id), NOT_FOUND
    ),
    _RELEASES + "CreateRelease": Case(
        lambda o: rp.CreateReleaseRequest(
            request_id="release", collection_id=o.releasable_id, name="release"
        ),
        NOT_FOUND,
    ),
    _RELEASES + "GetRelease": Case(
        lambda o: rp.GetReleaseRequest(release_id=o.release_id), NOT_FOUND
    ),
    _RELEASES + "ListReleases": Case(
        lambda o: rp.ListReleasesRequest(product_id=o.product_id), empty("releases")
    ),
    _RELEASES + "ApproveRelease": Case(
        lambda o: rp.ApproveReleaseRequest(request_id="approve", release_id=o.release_id),
        NOT_FOUND,
        FORBIDDEN_BY_STATE,
    ),
    _RELEASES + "RejectRelease": Case(
        lambda o: rp.RejectReleaseRequest(
            request_id="reject", release_id=o.rejected_id, note="too short"
        ),
        NOT_FOUND,
    ),
    _RELEASES + "WithdrawRelease": Case(
        lambda o: rp.WithdrawReleaseRequest(
            request_id="withdraw", release_id=o.approved_id, reason="too short"
        ),
        NOT_FOUND,
    ),
    _RELEASES + "MakeReleaseDocuments": Case(
        lambda o: rp.MakeReleaseDocumentsRequest(request_id="make", release_id=o.release_id),
        NOT_FOUND,
        FORBIDDEN_BY_STATE,
    ),
    _RELEASES + "CompareReleases": Case(
        lambda o: rp.CompareReleasesRequest(
            before_release_id=o.approved_id, after_release_id=o.release_id
        ),
        NOT_FOUND,
    ),
    _RELEASES + "ExplainRelease": Case(
        lambda o: rp.ExplainReleaseRequest(release_id=o.release_id), NOT_FOUND
    ),
    _RELEASES + "DeleteRelease": Case(
        lambda o: rp.DeleteReleaseRequest(request_id="delete", release_id=o.deleted_id), NOT_FOUND
    ),
    _RELEASES + "UndeleteRelease": Case(
        lambda o: rp.UndeleteReleaseRequest(request_id="undelete", release_id=o.deleted_id),
        NOT_FOUND,
    ),
    _RELEASES + "PurgeRelease": Case(
        lambda o: rp.PurgeReleaseRequest(request_id="purge", release_id=o.purged_id), NOT_FOUND
    ),
    _CHECKS + "VerifyHistory": Case(
        lambda o: vf.VerifyHistoryRequest(request_id=f"verify {o.asset_id}"), nothing
    ),
    _CHECKS + "GetHistoryCheck": Case(
        lambda o: vf.GetHistoryCheckRequest(check_id=o.check_id), NOT_FOUND
    ),
    _CHECKS + "ListHistoryChecks": Case(
        lambda o: vf.ListHistoryChecksRequest(), lambda answers: len(answers[0].checks) < 2
    ),
    _CHECKS + "CancelHistoryCheck": Case(
        lambda o: vf.CancelHistoryCheckRequest(request_id=f"end {o.asset_id}", check_id=o.check_id),
        NOT_FOUND,
    ),
    _CHECKS + "ListHistoryFindings": Case(
        lambda o: vf.ListHistoryFindingsRequest(
            check_id=o.check_id, state=vf.HISTORY_FINDING_STATE_SUPERSEDED
        ),
        empty("findings"),
    ),
    _CHECKS + "RepairHistory": Case(
        lambda o: vf.RepairHistoryRequest(
            request_id=f"repair {o.asset_id}", finding_ids=[o.finding_id]
        ),
        NOT_FOUND,
    ),
}
