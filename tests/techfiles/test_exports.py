"""The promises of exports once they are made: listed, renamed, counted, limited, freed in time, and
reconciled with the store."""

import io
import json
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pyvips
from atelier.techfiles.v1 import collection_pb2 as col
from atelier.techfiles.v1 import export_pb2 as ex
from atelier.techfiles.v1 import tech_file_pb2 as tf
from atelier.techfiles.v1 import tech_pack_pb2 as tp
from google.protobuf.timestamp_pb2 import Timestamp

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.suite import Client, Suite
from tests.techfiles import flows
from tests.techfiles.trash_flows import export_service, objects, upkeep

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
ABORTED = grpc.StatusCode.ABORTED
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
DENIED = grpc.StatusCode.PERMISSION_DENIED
PDF, ZIP = tp.EXPORT_FORMAT_PDF, tp.EXPORT_FORMAT_ZIP


@pytest.fixture
async def suite(suite: Suite) -> Suite:
    suite.overrides["reconcile_minutes"] = 0  # only when asked
    await suite.serve("assets", "techfiles")
    await suite.work("techfiles")
    return suite


async def listed(client: Client, **fields: Any) -> list[tp.Export]:
    answer = await export_service(client).ListExports(ex.ListExportsRequest(**fields))
    return list(answer.exports)


async def read(client: Client, export_id: str) -> tp.Export:
    request = tp.GetExportRequest(export_id=export_id)
    export: tp.Export = (await flows.pack_service(client).GetExport(request)).export
    return export


async def report(client: Client, **fields: Any) -> ex.GetStorageReportResponse:
    request = ex.GetStorageReportRequest(**fields)
    answer: ex.GetStorageReportResponse = await export_service(client).GetStorageReport(request)
    return answer


async def reconcile(suite: Suite, **fields: Any) -> ex.ReconcileExportsResponse:
    """Compares all keys."""
    admin = suite.client("root", role="admin")
    total = ex.ReconcileExportsResponse()
    while True:
        request = ex.ReconcileExportsRequest(after_key=total.next_key, **fields)
        found = await export_service(admin).ReconcileExports(request)
        for name in ("compared", "stray_objects", "young_objects", "lost_exports", "mended"):
            setattr(total, name, getattr(total, name) + getattr(found, name))
        total.lost_export_ids.extend(found.lost_export_ids)
        total.next_key = found.next_key
        if not total.next_key:
            return total


async def test_exports_are_listed_by_what_is_asked(suite: Suite) -> None:
    ada = suite.client("ada")
    one, two = [(await flows.collect(ada)).id for _ in range(2)]
    a = await flows.export(ada, one, format=PDF)
    b = await flows.export(ada, one, format=ZIP)
    c = await flows.export(ada, two, format=PDF)

    async def ids(**fields: Any) -> list[str]:
        return [each.id for each in await listed(ada, **fields)]

    assert await ids() == [c.id, b.id, a.id]
    assert await ids(collection_id=one) == [b.id, a.id]
    assert await ids(format=PDF) == [c.id, a.id]
    assert await ids(state=tp.EXPORT_STATE_FAILED) == []
    assert await ids(created_from=b.create_time, created_before=c.create_time) == [b.id]
    assert not any(each.file_url for each in await listed(ada))
    assert await flows.fetch((await listed(ada, include_urls=True))[0])
    assert await listed(suite.client("bob")) == []


async def test_an_export_is_renamed_and_saved_under_that_name(suite: Suite) -> None:
    ada = suite.client("ada")
    made = await flows.export(ada, (await flows.collect(ada)).id, format=PDF)
    service = export_service(ada)
    request = ex.UpdateExportRequest(
        export_id=made.id, etag=made.etag, file_name="For: Porto/2.pdf"
    )
    renamed = (await service.UpdateExport(request)).export
    assert renamed.file_name == "For_ Porto_2.pdf"
    assert "Porto" in (await read(ada, made.id)).file_url
    await refused(service.UpdateExport(request), ABORTED)
    await service.DeleteExport(ex.DeleteExportRequest(export_id=made.id))
    request = ex.UpdateExportRequest(export_id=made.id, file_name="x")
    await refused(service.UpdateExport(request), grpc.StatusCode.FAILED_PRECONDITION, "Undelete")


async def test_the_report_has_what_the_store_has(suite: Suite) -> None:
    ada, bob = suite.client("ada"), suite.client("bob")
    a = await flows.export(ada, (await flows.collect(ada)).id, format=PDF)
    b = await flows.export(ada, (await flows.collect(ada)).id, format=ZIP)
    c = await flows.export(bob, (await flows.collect(bob)).id, format=PDF)
    await export_service(ada).DeleteExport(ex.DeleteExportRequest(export_id=b.id))

    mine = await report(ada)
    assert (mine.stored_exports, mine.stored_bytes) == (2, a.size_bytes + b.size_bytes)
    assert [(use.format, use.deleted, use.bytes) for use in mine.exports] == [
        (PDF, False, a.size_bytes),
        (ZIP, True, b.size_bytes),
    ]
    assert not mine.owners

    admin = suite.client("root", role="admin")
    assert await report(admin, owner="user:ada") == mine
    every = await report(admin, all_owners=True)
    assert every.stored_bytes == mine.stored_bytes + c.size_bytes
    assert [(use.owner, use.exports) for use in every.owners] == [("user:ada", 2), ("user:bob", 1)]
    await refused(report(ada, all_owners=True), DENIED, "operators")
    await refused(report(ada, owner="user:bob"), NOT_FOUND)


async def test_a_quota_refuses_new_exports_with_the_figures_until_there_is_room(
    suite: Suite,
) -> None:
    ada, bob = suite.client("ada"), suite.client("bob")
    collection_id = (await flows.collect(ada)).id
    made = await flows.export(ada, collection_id, format=PDF)
    suite.overrides["quota_owner_export_bytes"] = made.size_bytes
    await suite.stop("techfiles")
    await suite.serve("techfiles")
    ada = suite.client("ada")

    request = tp.ExportCollectionRequest(collection_id=collection_id, format=PDF)
    refusal = await refused(
        flows.pack_service(ada).ExportCollection(request),
        EXHAUSTED,
        str(made.size_bytes),
        "PurgeExport",
    )
    assert refusal.reason == "QUOTA_EXCEEDED"
    assert refusal.metadata["used"] == refusal.metadata["limit"] == str(made.size_bytes)
    explained = await flows.collection_service(ada).ExplainCollection(
        col.ExplainCollectionRequest(collection_id=collection_id)
    )
    assert not explained.exportable
    bob = suite.client("bob")
    await flows.export(bob, (await flows.collect(bob)).id, format=PDF)

    await export_service(ada).PurgeExport(ex.PurgeExportRequest(export_id=made.id))
    await flows.export(ada, collection_id, format=PDF)

    suite.overrides |= {"quota_owner_export_bytes": 0, "quota_deployment_export_bytes": 1}
    await suite.stop("techfiles")
    await suite.serve("techfiles")
    ada = suite.client("ada")
    refusal = await refused(
        flows.pack_service(ada).ExportCollection(request), EXHAUSTED, "operator"
    )
    assert "used" not in refusal.metadata


async def test_exports_that_are_being_made_count_in_the_quota(suite: Suite) -> None:
    ada = suite.client("ada")
    collection_id = (await flows.collect(ada)).id
    made = await flows.export(ada, collection_id, format=PDF)
    await suite.stop_work("techfiles")
    suite.overrides["quota_owner_export_bytes"] = 2 * made.size_bytes
    await suite.stop("techfiles")
    await suite.serve("techfiles")
    ada = suite.client("ada")
    packs = flows.pack_service(ada)

    request = tp.ExportCollectionRequest(collection_id=collection_id, format=PDF)
    pending = (await packs.ExportCollection(request)).export
    words = str(made.size_bytes), "being made", "PurgeExport"
    refusal = await refused(packs.ExportCollection(request), EXHAUSTED, *words)
    assert refusal.metadata["used"] == str(2 * made.size_bytes)
    await export_service(ada).PurgeExport(ex.PurgeExportRequest(export_id=pending.id))
    await packs.ExportCollection(request)

    suite.overrides["quota_owner_export_bytes"] = 1_000_000
    await suite.stop("techfiles")
    await suite.serve("techfiles")
    bob = suite.client("bob")  # nothing tells how large his are
    request = tp.ExportCollectionRequest(collection_id=(await flows.collect(bob)).id, format=PDF)
    await flows.pack_service(bob).ExportCollection(request)
    await refused(flows.pack_service(bob).ExportCollection(request), EXHAUSTED, "being made")


async def test_bytes_are_freed_after_the_days_of_the_settings_and_said_to_be(suite: Suite) -> None:
    ada = suite.client("ada")
    collection_id = (await flows.collect(ada)).id
    old = await flows.export(ada, collection_id, format=PDF)
    fresh = await flows.export(ada, collection_id, format=ZIP)
    await suite.stop_work("techfiles")
    await suite.change(
        "UPDATE techfiles.exports SET ended_at = now() - interval '31 days' WHERE id = %s",
        (old.id,),
    )
    await upkeep(suite)
    assert len(objects(suite, collection_id)) == 2  # by default for ever

    suite.overrides["retention_export_days"] = 30
    await suite.stop("techfiles")
    await suite.serve("techfiles")
    ada = suite.client("ada")
    kept = await read(ada, fresh.id)
    life = kept.retention_time.ToDatetime() - kept.create_time.ToDatetime()
    assert timedelta(days=30) <= life < timedelta(days=30, hours=1)

    await upkeep(suite)
    [left] = objects(suite, collection_id)
    assert fresh.id in left
    gone = await read(ada, old.id)
    assert gone.HasField("bytes_gone_time") and not gone.file_url
    assert gone.bytes_gone_reason == tp.EXPORT_GONE_RETENTION
    assert (gone.state, gone.sha256) == (tp.EXPORT_STATE_COMPLETED, old.sha256)
    mine = await report(ada)
    assert (mine.stored_bytes, mine.retention_days) == (fresh.size_bytes, 30)
    assert mine.exports[0].without_bytes == 1
    found = await reconcile(suite)
    assert not found.lost_exports  # that its bytes are gone is known


async def test_the_reconciler_finds_both_kinds_and_mends_them(suite: Suite) -> None:
    ada = suite.client("ada")
    collection_id = (await flows.collect(ada)).id
    lost = await flows.export(ada, collection_id, format=PDF)
    kept = await flows.export(ada, collection_id, format=PDF)
    await reconcile(suite)  # what other tests left in the store
    suite.overrides["reconcile_grace_minutes"] = 0
    await suite.stop("techfiles")
    await suite.serve("techfiles")
    ada = suite.client("ada")
    await reconcile(suite)

    [bytes_of_lost] = [Path(path) for path in objects(suite, collection_id) if lost.id in path]
    content = bytes_of_lost.read_bytes()
    bytes_of_lost.rename(stray := bytes_of_lost.with_name(f"other-{bytes_of_lost.name}"))
    dry = await reconcile(suite, dry_run=True, max_keys=1)
    assert (dry.stray_objects, list(dry.lost_export_ids), dry.mended) == (1, [lost.id], 0)
    assert stray.exists() and not (await read(ada, lost.id)).HasField("bytes_gone_time")

    found = await reconcile(suite)
    assert (found.stray_objects, found.lost_exports, found.mended) == (1, 1, 2)
    assert not stray.exists()
    gone = await read(ada, lost.id)
    assert gone.bytes_gone_reason == tp.EXPORT_GONE_LOST and not gone.file_url
    assert await flows.fetch(await read(ada, kept.id))
    again = await reconcile(suite)
    assert (again.stray_objects, again.lost_exports, again.mended) == (0, 0, 0)

    bytes_of_lost.parent.mkdir(parents=True, exist_ok=True)
    bytes_of_lost.write_bytes(content)  # from a backup
    assert (await reconcile(suite)).mended == 1
    assert content.startswith(await flows.fetch(await read(ada, lost.id)))


async def test_a_young_object_is_left_alone(suite: Suite) -> None:
    ada = suite.client("ada")
    collection_id = (await flows.collect(ada)).id
    made = await flows.export(ada, collection_id, format=PDF)
    await suite.change("UPDATE techfiles.exports SET storage_key = storage_key || 'x'")
    found = await reconcile(suite)
    assert found.young_objects >= 1 and found.lost_export_ids == [made.id]
    assert objects(suite, collection_id)


async def test_operators_list_by_owner_and_nobody_else_does(suite: Suite) -> None:
    ada, admin = suite.client("ada"), suite.client("root", role="admin")
    file = await flows.create(ada)
    collection = await flows.collect(ada)
    made = await flows.export(ada, collection.id, format=PDF)

    named: dict[str, Any] = {"owner": "user:ada"}
    assert [each.id for each in await listed(admin, **named)] == [made.id]
    assert not (await listed(admin, include_urls=True, **named))[0].file_url
    assert [each.id for each in await flows.listed(admin, **named)] == [file.id]
    service = flows.collection_service(admin)
    found = await service.ListCollections(col.ListCollectionsRequest(**named))
    assert [each.id for each in found.collections] == [collection.id]
    request = tf.GetProductStatisticsRequest(product_id=flows.PRODUCT, **named)
    assert (await flows.file_service(admin).GetProductStatistics(request)).total_files == 1
    runs = flows.pack_service(admin).ListTechPackRuns(tp.ListTechPackRunsRequest(**named))
    assert not (await runs).runs
    await refused(flows.listed(suite.client("bob"), **named), NOT_FOUND)
    assert await flows.listed(admin) == []


async def test_a_page_of_dates_that_no_calendar_has_is_refused(suite: Suite) -> None:
    ada = suite.client("ada")
    await refused(
        listed(ada, created_from=Timestamp(seconds=10**15)), grpc.StatusCode.INVALID_ARGUMENT
    )


async def test_pictures_of_a_zip_are_compressed_again_if_they_are_larger_than_asked(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    collection = await flows.collect(ada)
    large = await asset_flows.upload(ada, flows.photo("front"))
    small = await asset_flows.upload(ada, asset_flows.jpeg(300, 200))
    for view, picture in ((tf.VIEW_TYPE_FRONT, large), (tf.VIEW_TYPE_BACK, small)):
        file = await flows.create(ada, view_type=view, file_asset_id=picture.id)
        await flows.collection_service(ada).AddFiles(
            col.AddFilesRequest(collection_id=collection.id, tech_file_ids=[file.id])
        )

    made = await flows.export(ada, collection.id, format=ZIP, picture_pixels=400)
    again = await flows.export(ada, collection.id, format=ZIP, picture_pixels=400)
    whole = await flows.export(ada, collection.id, format=ZIP)

    assert made.picture_pixels == 400 and made.sha256 == again.sha256
    assert made.size_bytes < whole.size_bytes
    with zipfile.ZipFile(io.BytesIO(await flows.fetch(made))) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        sizes = {
            name: max(pyvips.Image.new_from_buffer(archive.read(name), "").width, 0)
            for name in archive.namelist()
            if name.endswith((".jpg", ".jpeg"))
        }
    assert manifest["compressed_again"] == [large.id]
    assert sorted(sizes.values()) == [300, 300]  # 300 x 400 of the large one, 300 x 200 as it was
    request = tp.ExportCollectionRequest(
        collection_id=collection.id, format=PDF, picture_pixels=400
    )
    service = flows.pack_service(ada)
    await refused(service.ExportCollection(request), INVALID, "picture_pixels", "is for a ZIP")
