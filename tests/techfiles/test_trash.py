"""The promises of the trash: what is deleted comes back as it was until it is purged, a purge is
for good, numbers are never given again, and pictures are released exactly."""

import asyncio
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc
from atelier.techfiles.v1 import collection_pb2 as col
from atelier.techfiles.v1 import export_pb2 as ex
from atelier.techfiles.v1 import history_pb2, history_pb2_grpc
from atelier.techfiles.v1 import tech_file_pb2 as tf
from atelier.techfiles.v1 import tech_pack_pb2 as tp

from tests.assets import flows as asset_flows
from tests.calls import holding, refused
from tests.shared.imaging import pictures
from tests.suite import Client, Suite
from tests.techfiles import flows
from tests.techfiles.trash_flows import (
    expire,
    export_service,
    holders,
    keeper,
    objects,
    settle,
    upkeep,
)

NOT_FOUND = grpc.StatusCode.NOT_FOUND
ABORTED = grpc.StatusCode.ABORTED
INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
HOLDER = f"techfiles/products/{flows.PRODUCT}"


@pytest.fixture
async def suite(suite: Suite) -> Suite:
    await suite.serve("assets", "techfiles")
    return suite


async def delete(client: Client, file_id: str, **fields: Any) -> tf.TechFile:
    request = tf.DeleteTechFileRequest(tech_file_id=file_id, **fields)
    file: tf.TechFile = (await flows.file_service(client).DeleteTechFile(request)).tech_file
    return file


async def undelete(client: Client, file_id: str) -> tf.TechFile:
    request = tf.UndeleteTechFileRequest(tech_file_id=file_id)
    file: tf.TechFile = (await flows.file_service(client).UndeleteTechFile(request)).tech_file
    return file


async def purge(client: Client, file_id: str, **fields: Any) -> None:
    request = tf.PurgeTechFileRequest(tech_file_id=file_id, **fields)
    await flows.file_service(client).PurgeTechFile(request)


async def collected(client: Client, *file_ids: str) -> str:
    """Returns the id of a new collection of these files."""
    collection = await flows.collect(client)
    request = col.AddFilesRequest(collection_id=collection.id, tech_file_ids=file_ids)
    await flows.collection_service(client).AddFiles(request)
    return collection.id


async def test_a_deleted_file_is_hidden_and_comes_back_as_it_was(suite: Suite) -> None:
    ada = suite.client("ada")
    older = await flows.create(ada)
    file = await flows.create(ada)
    collection_id = await collected(ada, file.id)

    deleted = await delete(ada, file.id)
    assert deleted.delete_time.seconds and not deleted.is_latest
    life = deleted.expire_time.ToDatetime() - deleted.delete_time.ToDatetime()
    assert life.days == 30
    assert (await flows.get(ada, older.id)).is_latest
    assert [each.id for each in await flows.listed(ada)] == [older.id]
    assert [each.id for each in await flows.listed(ada, show_deleted=True)] == [file.id, older.id]
    contents = await flows.contents(ada, collection_id)
    assert contents.collection.file_count == 0 and len(contents.items) == 1
    assert (await delete(ada, file.id)).expire_time == deleted.expire_time  # harmless

    other = await flows.collect(ada)
    add = col.AddFilesRequest(collection_id=other.id, tech_file_ids=[file.id])
    [result] = (await flows.collection_service(ada).AddFiles(add)).results
    assert result.outcome == col.ADD_FILE_OUTCOME_NOT_FOUND

    for call, request in (
        (flows.file_service(ada).UpdateTechFile, {"update_mask": {"paths": ["model"]}}),
        (flows.file_service(ada).CreateTechFileVersion, {}),
        (flows.file_service(ada).ArchiveTechFile, {}),
    ):
        name = call._method.decode().rpartition("/")[2]
        message = getattr(tf, f"{name}Request")(tech_file_id=file.id, **request)
        await refused(call(message), PRECONDITION, "UndeleteTechFile")

    back = await undelete(ada, file.id)
    assert back.is_latest and not back.HasField("delete_time")
    for changed in ("etag", "update_time"):
        back.ClearField(changed)
        file.ClearField(changed)
    assert back == file
    assert (await flows.contents(ada, collection_id)).collection.file_count == 1


async def test_archive_and_trash_do_not_forget_each_other(suite: Suite) -> None:
    ada = suite.client("ada")
    file = await flows.create(ada)
    archived = tf.ArchiveTechFileRequest(tech_file_id=file.id)
    await flows.file_service(ada).ArchiveTechFile(archived)
    await delete(ada, file.id)
    back = await undelete(ada, file.id)
    assert back.HasField("archive_time") and not back.is_latest


async def test_a_purged_number_is_never_given_again_and_is_kept(suite: Suite) -> None:
    ada = suite.client("ada")
    first = await flows.create(ada)
    second = await flows.create(ada)
    change = tf.UpdateTechFileRequest(
        tech_file_id=second.id, update_mask={"paths": ["model"]}, model="m"
    )
    await flows.file_service(ada).UpdateTechFile(change)  # now number 3
    collection_id = await collected(ada, second.id)

    fourth = await flows.create(ada)
    assert (fourth.version_number, fourth.parent_file_id) == (4, second.id)
    await purge(ada, second.id)

    fourth = await flows.get(ada, fourth.id)
    assert fourth.parent_purged and not fourth.parent_file_id and fourth.is_latest
    kept = suite.sql("SELECT number, tech_file_id::text FROM techfiles.purged_numbers ORDER BY 1")
    assert kept == [(2, second.id), (3, second.id)]
    assert [v.version_number for v in await flows.versions(ada, first.id)] == [4, 1]
    assert not (await flows.contents(ada, collection_id)).items
    await refused(undelete(ada, second.id), NOT_FOUND)
    await refused(purge(ada, second.id), NOT_FOUND)

    await purge(ada, fourth.id)
    assert (await flows.get(ada, first.id)).is_latest
    assert (await flows.create(ada)).version_number == 5


async def test_what_expired_is_purged_and_what_came_back_is_not(suite: Suite) -> None:
    ada = suite.client("ada")
    gone, back, fresh = [await flows.create(ada) for _ in range(3)]
    for file in (gone, back, fresh):
        await delete(ada, file.id)
    expire(suite, "tech_files", gone.id)
    expire(suite, "tech_files", back.id)
    await undelete(ada, back.id)  # late, and still in time

    await upkeep(suite)
    await refused(flows.get(ada, gone.id), NOT_FOUND)
    await refused(undelete(ada, gone.id), NOT_FOUND)
    assert (await flows.get(ada, back.id)).is_latest
    assert (await flows.get(ada, fresh.id)).HasField("expire_time")


async def test_a_picture_is_released_with_the_last_thing_of_its_product(suite: Suite) -> None:
    ada = suite.client("ada")
    picture = await asset_flows.upload(ada, asset_flows.jpeg(64, 48))
    one = await flows.create(ada, file_asset_id=picture.id)
    two = await flows.create(ada, file_asset_id=picture.id)
    other = await flows.create(ada, file_asset_id=picture.id, product_id="another")
    clear = tf.UpdateTechFileRequest(tech_file_id=two.id, update_mask={"paths": ["file_asset_id"]})
    await flows.file_service(ada).UpdateTechFile(clear)  # an earlier version still has it
    service = ada.stub(asset_pb2_grpc.AssetServiceStub)
    await refused(
        service.DeleteAsset(asset_pb2.DeleteAssetRequest(asset_id=picture.id)),
        PRECONDITION,
        "PurgeTechFile",
    )

    await purge(ada, one.id)
    await upkeep(suite)
    assert HOLDER in await holders(ada, picture.id)

    await purge(ada, two.id)
    await upkeep(suite)
    assert await holders(ada, picture.id) == ["techfiles/products/another"]

    await purge(ada, other.id)
    await upkeep(suite)
    assert await holders(ada, picture.id) == []
    await service.DeleteAsset(asset_pb2.DeleteAssetRequest(asset_id=picture.id))
    settle(suite)
    await upkeep(suite)
    assert suite.sql("SELECT count(*) FROM techfiles.picture_releases") == [(0,)]


async def test_a_file_that_was_made_during_a_release_keeps_its_picture(suite: Suite) -> None:
    ada = suite.client("ada")
    picture = await asset_flows.upload(ada, asset_flows.jpeg(64, 48))
    file = await flows.create(ada, file_asset_id=picture.id)
    again = await flows.create(ada, file_asset_id=picture.id)
    await purge(ada, file.id)
    # As if `again` had acquired its reference before the release, and made its row after it.
    await suite.change("UPDATE techfiles.tech_files SET file_asset_id = NULL")
    await upkeep(suite)
    assert await holders(ada, picture.id) == []
    await suite.change(
        "UPDATE techfiles.tech_files SET file_asset_id = %s WHERE id = %s", (picture.id, again.id)
    )

    settle(suite)
    await upkeep(suite)
    assert await holders(ada, picture.id) == [HOLDER]


async def test_a_file_that_was_made_during_the_last_look_keeps_its_picture(suite: Suite) -> None:
    ada = suite.client("ada")
    picture = await asset_flows.upload(ada, asset_flows.jpeg(64, 48))
    file = await flows.create(ada, file_asset_id=picture.id)
    again = await flows.create(ada, file_asset_id=picture.id)
    await purge(ada, file.id)
    settle(suite)
    # As if `again` had acquired its reference before the last look, and made its row after it.
    await suite.change("UPDATE techfiles.tech_files SET file_asset_id = NULL")
    await upkeep(suite)
    assert await holders(ada, picture.id) == []
    await suite.change(
        "UPDATE techfiles.tech_files SET file_asset_id = %s WHERE id = %s", (picture.id, again.id)
    )

    settle(suite)
    await upkeep(suite)
    assert await holders(ada, picture.id) == [HOLDER]
    assert suite.sql("SELECT count(*) FROM techfiles.picture_releases") == [(0,)]


async def test_a_file_that_is_made_while_its_picture_is_released_has_it_at_once(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    picture = await asset_flows.upload(ada, asset_flows.jpeg(64, 48))
    file = await flows.create(ada, file_asset_id=picture.id)
    again = await flows.create(ada)
    await purge(ada, file.id)
    with holding(suite, "LOCK TABLE assets.asset_references IN ACCESS EXCLUSIVE MODE", None):
        keeping = asyncio.ensure_future(upkeep(suite))
        async with asyncio.timeout(10):
            while suite.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == [(0,)]:
                await asyncio.sleep(0.02)
        await suite.change(
            "UPDATE techfiles.tech_files SET file_asset_id = %s WHERE id = %s",
            (picture.id, again.id),
        )
    await keeping
    assert await holders(ada, picture.id) == [HOLDER]


async def test_a_refused_change_leaves_no_reference(suite: Suite) -> None:
    ada = suite.client("ada")
    picture = await asset_flows.upload(ada, asset_flows.jpeg(64, 48))
    file = await flows.create(ada)
    update = tf.UpdateTechFileRequest(
        tech_file_id=file.id,
        update_mask={"paths": ["file_asset_id"]},
        file_asset_id=picture.id,
        etag="99",
    )
    await refused(flows.file_service(ada).UpdateTechFile(update), ABORTED)
    await upkeep(suite)
    assert await holders(ada, picture.id) == []


async def test_refused_files_and_runs_leave_no_reference(suite: Suite) -> None:
    ada = suite.client("ada")
    document = await asset_flows.upload(
        ada, pictures.pdf(), kind=asset_pb2.ASSET_KIND_DOCUMENT, mime_type="application/pdf"
    )
    await refused(flows.create(ada, file_asset_id=document.id), INVALID, "not a picture")
    [first, second] = await flows.revisions(ada, "front", "back")
    again = flows.request_id()
    await flows.generate(ada, [first], request_id=again)
    await refused(flows.generate(ada, [second], request_id=again), INVALID, "request_id")

    await upkeep(suite)
    assert await holders(ada, document.id) == await holders(ada, second.asset_id) == []
    assert await holders(ada, first.asset_id) == [HOLDER]


async def noted(suite: Suite) -> None:
    """Waits until a picture is noted that may be released."""
    async with asyncio.timeout(20):
        while suite.sql("SELECT count(*) FROM techfiles.picture_releases") == [(0,)]:
            await asyncio.sleep(0.05)


async def test_a_call_that_is_cancelled_leaves_no_reference(suite: Suite) -> None:
    ada = suite.client("ada")
    picture = await asset_flows.upload(ada, asset_flows.jpeg(64, 48))
    with holding(suite, "LOCK TABLE techfiles.slots IN ACCESS EXCLUSIVE MODE", None):
        creating = asyncio.ensure_future(flows.create(ada, file_asset_id=picture.id))
        async with asyncio.timeout(10):
            while suite.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == [(0,)]:
                await asyncio.sleep(0.02)
        assert await holders(ada, picture.id) == [HOLDER]
        creating.cancel()
        await noted(suite)
    await upkeep(suite)
    assert await holders(ada, picture.id) == []


async def test_a_call_that_the_database_fails_leaves_no_reference(suite: Suite) -> None:
    suite.overrides["lock_timeout_seconds"] = 0.2
    await suite.stop("techfiles")
    await suite.serve("techfiles")
    ada = suite.client("ada")
    picture = await asset_flows.upload(ada, asset_flows.jpeg(64, 48))
    file = await flows.create(ada, file_asset_id=picture.id)
    clear = tf.UpdateTechFileRequest(tech_file_id=file.id, update_mask={"paths": ["file_asset_id"]})
    await flows.file_service(ada).UpdateTechFile(clear)
    # As if the reference had been released, and the version could still be restored.
    await suite.change("DELETE FROM assets.asset_references")
    service = ada.stub(history_pb2_grpc.HistoryServiceStub)
    restore = history_pb2.RestoreTechFileVersionRequest(tech_file_id=file.id, version_number=1)
    both = "LOCK TABLE techfiles.slots, techfiles.picture_releases IN ACCESS EXCLUSIVE MODE"
    with holding(suite, both, None):
        await refused(service.RestoreTechFileVersion(restore), ABORTED)
        assert await holders(ada, picture.id) == [HOLDER]

    await noted(suite)  # as soon as the database lets it
    await suite.change("DELETE FROM techfiles.tech_file_versions")
    await upkeep(suite)
    assert await holders(ada, picture.id) == []


async def test_two_at_once_purge_once(suite: Suite) -> None:
    ada = suite.client("ada")
    file = await flows.create(ada)
    collection_id = await collected(ada, file.id)
    other = await flows.create(ada)

    async def add() -> None:
        request = col.AddFilesRequest(
            collection_id=collection_id, tech_file_ids=[file.id, other.id]
        )
        await flows.collection_service(ada).AddFiles(request)

    calls = [purge(ada, file.id), purge(ada, file.id), delete(ada, file.id), add(), add()]
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert ended[:2].count(None) == 1
    codes = {each.code() for each in ended if isinstance(each, grpc.aio.AioRpcError)}
    assert codes <= {NOT_FOUND, ABORTED}
    items = (await flows.contents(ada, collection_id)).items
    assert file.id not in {item.tech_file.id for item in items}


async def test_an_older_etag_deletes_and_purges_nothing(suite: Suite) -> None:
    ada = suite.client("ada")
    file = await flows.create(ada)
    collection = await flows.collect(ada)
    await flows.create(ada)  # the file is no more the latest: another etag
    await refused(delete(ada, file.id, etag=file.etag), ABORTED)
    await refused(purge(ada, file.id, etag=file.etag), ABORTED)
    service = flows.collection_service(ada)
    for name in ("DeleteCollection", "PurgeCollection", "ArchiveCollection"):
        request = getattr(col, f"{name}Request")(collection_id=collection.id, etag="99")
        await refused(getattr(service, name)(request), ABORTED)


async def test_a_collection_is_archived_deleted_and_comes_back(suite: Suite) -> None:
    ada = suite.client("ada")
    service = flows.collection_service(ada)
    file = await flows.create(ada)
    collection_id = await collected(ada, file.id)
    of: dict[str, Any] = {"collection_id": collection_id}

    async def listed(**fields: Any) -> list[str]:
        answer = await service.ListCollections(col.ListCollectionsRequest(**fields))
        return [each.id for each in answer.collections]

    archived = (await service.ArchiveCollection(col.ArchiveCollectionRequest(**of))).collection
    assert archived.HasField("archive_time") and await listed() == []
    assert await listed(show_archived=True) == [collection_id]
    await service.UnarchiveCollection(col.UnarchiveCollectionRequest(**of))
    assert await listed() == [collection_id]

    deleted = (await service.DeleteCollection(col.DeleteCollectionRequest(**of))).collection
    assert deleted.HasField("expire_time") and await listed() == []
    assert await listed(show_deleted=True) == [collection_id]
    for call, request in (
        (service.AddFiles, col.AddFilesRequest(tech_file_ids=[file.id], **of)),
        (service.SetCollectionProgress, col.SetCollectionProgressRequest(**of)),
        (
            flows.pack_service(ada).ExportCollection,
            tp.ExportCollectionRequest(format=tp.EXPORT_FORMAT_PDF, **of),
        ),
    ):
        await refused(call(request), PRECONDITION, "UndeleteCollection")
    back = (await service.UndeleteCollection(col.UndeleteCollectionRequest(**of))).collection
    assert not back.HasField("delete_time") and back.file_count == 1


async def test_a_purged_collection_takes_its_exports_along_and_leaves_its_files(
    suite: Suite,
) -> None:
    await suite.work("techfiles")
    ada = suite.client("ada")
    file = await flows.create(ada)
    collection_id = await collected(ada, file.id)
    pack = await flows.create(
        ada, file_type=tf.TECH_FILE_TYPE_COMPLETE_PACK, view_type=0, collection_id=collection_id
    )
    made = await flows.export(ada, collection_id, format=tp.EXPORT_FORMAT_PDF)
    assert len(objects(suite, collection_id)) == 1

    request = col.PurgeCollectionRequest(collection_id=collection_id)
    await flows.collection_service(ada).PurgeCollection(request)
    await refused(flows.contents(ada, collection_id), NOT_FOUND)
    await refused(flows.get(ada, pack.id), NOT_FOUND)
    gone = flows.pack_service(ada).GetExport(tp.GetExportRequest(export_id=made.id))
    await refused(gone, NOT_FOUND)
    assert (await flows.get(ada, file.id)).id == file.id
    async with asyncio.timeout(30):
        while objects(suite, collection_id):
            await asyncio.sleep(0.1)
    assert suite.sql("SELECT count(*) FROM techfiles.attempts") == [(0,)]


async def test_a_run_that_goes_on_holds_its_files_and_its_collection(suite: Suite) -> None:
    ada = suite.client("ada")
    run = await flows.generate(ada, await flows.revisions(ada, "front"))
    service = flows.pack_service(ada)
    of_run: dict[str, Any] = {"run_id": run.id}
    await refused(delete(ada, run.pack_file_id), PRECONDITION, "CancelTechPackRun")
    await refused(purge(ada, run.pack_file_id), PRECONDITION, "CancelTechPackRun")
    for name in ("DeleteCollection", "PurgeCollection"):
        request = getattr(col, f"{name}Request")(collection_id=run.collection_id)
        call = getattr(flows.collection_service(ada), name)(request)
        await refused(call, PRECONDITION, run.id, "CancelTechPackRun")
    for name in ("DeleteTechPackRun", "PurgeTechPackRun"):
        request = getattr(tp, f"{name}Request")(**of_run)
        await refused(getattr(service, name)(request), PRECONDITION, "CancelTechPackRun")

    await service.CancelTechPackRun(tp.CancelTechPackRunRequest(**of_run))
    deleted = (await service.DeleteTechPackRun(tp.DeleteTechPackRunRequest(**of_run))).run
    assert deleted.HasField("expire_time")
    assert not (await service.ListTechPackRuns(tp.ListTechPackRunsRequest())).runs
    shown = (await service.ListTechPackRuns(tp.ListTechPackRunsRequest(show_deleted=True))).runs
    assert [each.id for each in shown] == [run.id]
    back = (await service.UndeleteTechPackRun(tp.UndeleteTechPackRunRequest(**of_run))).run
    assert not back.HasField("delete_time")

    await purge(ada, run.pack_file_id)
    [(plan,)] = suite.sql("SELECT plan FROM techfiles.runs")
    [picture] = {step["asset_id"] for step in plan if step["asset_id"]}
    assert (await service.GetTechPackRun(tp.GetTechPackRunRequest(**of_run))).run.id == run.id
    await service.PurgeTechPackRun(tp.PurgeTechPackRunRequest(**of_run))
    await refused(service.GetTechPackRun(tp.GetTechPackRunRequest(**of_run)), NOT_FOUND)
    assert await holders(ada, picture) == [HOLDER]  # its files have it

    request = col.PurgeCollectionRequest(collection_id=run.collection_id)
    await flows.collection_service(ada).PurgeCollection(request)
    for file in await flows.listed(ada):
        await purge(ada, file.id)
    await upkeep(suite)
    assert await holders(ada, picture) == []


async def test_exports_are_deleted_and_purged_with_their_bytes(suite: Suite) -> None:
    await suite.work("techfiles")
    ada = suite.client("ada")
    collection_id = await collected(ada, (await flows.create(ada)).id)
    made = await flows.export(ada, collection_id, format=tp.EXPORT_FORMAT_PDF)
    other = await flows.export(ada, collection_id, format=tp.EXPORT_FORMAT_ZIP)
    await suite.stop_work("techfiles")
    service = export_service(ada)
    of: dict[str, Any] = {"export_id": made.id}

    deleted = (await service.DeleteExport(ex.DeleteExportRequest(**of))).export
    assert deleted.HasField("expire_time")
    found = await flows.pack_service(ada).GetExport(tp.GetExportRequest(**of))
    assert not found.export.file_url
    back = (await service.UndeleteExport(ex.UndeleteExportRequest(**of))).export
    assert not back.HasField("delete_time")
    found = await flows.pack_service(ada).GetExport(tp.GetExportRequest(**of))
    assert await flows.fetch(found.export)

    await service.DeleteExport(ex.DeleteExportRequest(**of))
    expire(suite, "exports", made.id)
    await upkeep(suite)
    [left] = objects(suite, collection_id)
    assert other.id in left
    await refused(service.UndeleteExport(ex.UndeleteExportRequest(**of)), NOT_FOUND)

    waiting = tp.ExportCollectionRequest(collection_id=collection_id, format=tp.EXPORT_FORMAT_PDF)
    pending = (await flows.pack_service(ada).ExportCollection(waiting)).export
    unfinished = service.DeleteExport(ex.DeleteExportRequest(export_id=pending.id))
    await refused(unfinished, PRECONDITION, "PurgeExport")
    await service.PurgeExport(ex.PurgeExportRequest(export_id=pending.id))
    await suite.work("techfiles")
    again = await flows.export(ada, collection_id, format=tp.EXPORT_FORMAT_PDF)
    assert again.id != pending.id and len(objects(suite, collection_id)) == 2


async def test_archived_files_go_to_the_trash_after_the_days_of_the_settings(suite: Suite) -> None:
    ada = suite.client("ada")
    old, fresh, live = [await flows.create(ada) for _ in range(3)]
    for file in (old, fresh):
        request = tf.ArchiveTechFileRequest(tech_file_id=file.id)
        await flows.file_service(ada).ArchiveTechFile(request)
    await suite.change(
        "UPDATE techfiles.tech_files SET archived_at = now() - interval '8 days' WHERE id = %s",
        (old.id,),
    )
    await upkeep(suite)
    assert not (await flows.get(ada, old.id)).HasField("delete_time")  # by default for ever

    suite.overrides["retention_archived_file_days"] = 7
    await upkeep(suite)
    deleted = [(await flows.get(ada, f.id)).HasField("delete_time") for f in (old, fresh, live)]
    assert deleted == [True, False, False]


async def test_one_file_that_is_held_does_not_keep_others_from_being_purged(suite: Suite) -> None:
    ada = suite.client("ada")
    run = await flows.generate(ada, await flows.revisions(ada, "front"))
    loose = await flows.create(ada, view_type=tf.VIEW_TYPE_SIDE)
    await delete(ada, loose.id)
    await suite.change(
        "UPDATE techfiles.tech_files SET deleted_at = now(), is_latest = false,"
        " expires_at = now() - interval '1 minute'"
    )
    async with keeper(suite) as keeping:
        assert sum([done async for done in keeping.run()]) >= 1
    await refused(flows.get(ada, loose.id), NOT_FOUND)
    assert (await flows.get(ada, run.pack_file_id)).id == run.pack_file_id


async def test_watchers_are_told_of_a_purge(suite: Suite) -> None:
    ada = suite.client("ada")
    await suite.work("techfiles")
    file = await flows.create(ada)
    async with asyncio.timeout(60):
        watch = flows.file_service(ada).WatchTechFiles(tf.WatchTechFilesRequest())
        async for answer in watch:
            if answer.HasField("bookmark"):
                break
        await purge(ada, file.id)
        async for answer in watch:
            if answer.HasField("purged"):
                break
        watch.cancel()
    assert answer.purged.tech_file_id == file.id and answer.purged.product_id == flows.PRODUCT
