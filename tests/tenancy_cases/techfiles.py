"""Cases for every rpc of techfiles. No worker runs: the run and the export stay pending."""

from dataclasses import dataclass

from atelier.techfiles.v1 import collection_pb2 as col
from atelier.techfiles.v1 import tech_file_pb2 as tf
from atelier.techfiles.v1 import tech_pack_pb2 as tp

from tests.assets import flows as assets
from tests.suite import Client, Suite
from tests.techfiles import flows
from tests.tenancy_cases import NOT_FOUND, Case, empty, only_ready

PICTURE = assets.jpeg(64, 48)


@dataclass
class Owned:
    """Rows of one owner."""

    product_id: str
    asset_id: str
    file_id: str
    loose_file_id: str  # in no collection
    unfinished_file_id: str
    collection_id: str
    run_id: str
    export_id: str


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
    collection = await flows.collect(owner, product_id=canary, name=canary)
    await flows.collection_service(owner).AddFiles(
        col.AddFilesRequest(collection_id=collection.id, tech_file_ids=[file.id])
    )
    revision = tp.PackRevision(revision_id=canary, view=tf.VIEW_TYPE_FRONT, asset_id=asset.id)
    run = await flows.generate(owner, [revision], product_id=canary)
    request = tp.ExportCollectionRequest(collection_id=collection.id, format=tp.EXPORT_FORMAT_PDF)
    export = (await flows.pack_service(owner).ExportCollection(request)).export
    return Owned(
        canary, asset.id, file.id, loose.id, unfinished.id, collection.id, run.id, export.id
    )


_FILES = "atelier.techfiles.v1.TechFileService."
_COLLECTIONS = "atelier.techfiles.v1.CollectionService."
_PACKS = "atelier.techfiles.v1.TechPackService."

CASES = {
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
    _PACKS + "ExportCollection": Case(
        lambda o: tp.ExportCollectionRequest(
            request_id="export", collection_id=o.collection_id, format=tp.EXPORT_FORMAT_ZIP
        ),
        NOT_FOUND,
    ),
    _PACKS + "GetExport": Case(lambda o: tp.GetExportRequest(export_id=o.export_id), NOT_FOUND),
}
