"""The promises of restored versions, of comparisons, and of what is explained."""

import asyncio
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc
from atelier.techfiles.v1 import collection_pb2 as col
from atelier.techfiles.v1 import history_pb2 as hp
from atelier.techfiles.v1 import history_pb2_grpc
from atelier.techfiles.v1 import tech_file_pb2 as tf
from google.protobuf import json_format, struct_pb2

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.suite import Client, Suite
from tests.techfiles import flows

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
ABORTED = grpc.StatusCode.ABORTED
NOBODY = "01990000-0000-7000-8000-000000000000"


@pytest.fixture
async def suite(suite: Suite) -> Suite:
    await suite.serve("assets", "techfiles")
    return suite


def service(client: Client) -> Any:
    return client.stub(history_pb2_grpc.HistoryServiceStub)


def struct(**values: object) -> struct_pb2.Struct:
    return json_format.ParseDict(values, struct_pb2.Struct())


async def restore(client: Client, file_id: str, number: int, **fields: Any) -> tf.TechFile:
    values = {"request_id": flows.request_id(), "tech_file_id": file_id, **fields}
    request = hp.RestoreTechFileVersionRequest(version_number=number, **values)
    answer = await service(client).RestoreTechFileVersion(request)
    file: tf.TechFile = answer.tech_file
    return file


def comparing(before: str, after: str, *numbers: int) -> hp.CompareTechFilesRequest:
    first, second = numbers or (0, 0)
    return hp.CompareTechFilesRequest(
        before=hp.VersionOfFile(tech_file_id=before, version_number=first),
        after=hp.VersionOfFile(tech_file_id=after, version_number=second),
    )


async def compare(client: Client, before: str, after: str, *numbers: int) -> hp.ContentChanges:
    answer = await service(client).CompareTechFiles(comparing(before, after, *numbers))
    changes: hp.ContentChanges = answer.changes
    return changes


async def update(client: Client, file: tf.TechFile, **fields: Any) -> tf.TechFile:
    request = tf.UpdateTechFileRequest(
        tech_file_id=file.id, update_mask={"paths": list(fields)}, **fields
    )
    changed: tf.TechFile = (await flows.file_service(client).UpdateTechFile(request)).tech_file
    return changed


async def explained(client: Client, file: tf.TechFile) -> dict[str, hp.TechFileFinding]:
    request = hp.ExplainTechFileRequest(tech_file_id=file.id)
    answer = await service(client).ExplainTechFile(request)
    found = {finding.question: finding for finding in answer.findings}
    wrong = [finding for finding in answer.findings if not finding.ok]
    assert (wrong[0].answer if wrong else "latest of its slot") in answer.summary
    return found


async def test_a_snapshot_is_restored_as_a_new_version_with_parent_actor_and_reason(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    file = await flows.create(ada, analysis=struct(note="first"), credits_used=7)
    changed = await update(ada, file, analysis=struct(note="second"))

    restored = await restore(ada, file.id, 1, etag=changed.etag, reason="the first was right")

    assert restored.analysis == struct(note="first") and restored.is_latest
    assert (restored.version_number, restored.parent_file_id) == (3, file.id)
    assert (restored.restored_version_number, restored.restore_reason) == (1, "the first was right")
    assert restored.created_by == "ada" and restored.credits_used == 0
    history = await flows.versions(ada, file.id)
    assert [version.version_number for version in history] == [3, 2, 1]
    assert history[0].reason == "the first was right"
    assert history[1].tech_file.analysis == struct(note="second")
    assert (await compare(ada, file.id, restored.id, 1, 0)).identical


async def test_an_earlier_file_of_the_slot_is_restored_and_a_repeat_restores_once(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    first = await flows.create(ada, analysis=struct(note="a"))
    second = await flows.create(ada, analysis=struct(note="b"))
    request_id = flows.request_id()

    restored = [await restore(ada, second.id, 1, request_id=request_id) for _ in range(2)]

    assert restored[0] == restored[1] and restored[0].analysis == first.analysis
    assert len(await flows.versions(ada, first.id)) == 3
    await refused(restore(ada, first.id, 2, request_id=request_id), INVALID, "request_id")


async def test_a_restoring_over_a_latest_file_that_changed_is_aborted(suite: Suite) -> None:
    ada = suite.client("ada")
    file = await flows.create(ada)
    changed = await update(ada, file, model="m")

    await refused(restore(ada, file.id, 1, etag=file.etag), ABORTED, "read it again")

    assert (await restore(ada, file.id, 1, etag=changed.etag)).version_number == 3


async def test_what_cannot_be_restored_is_refused_and_takes_no_number(suite: Suite) -> None:
    ada, eve = suite.client("ada"), suite.client("eve")
    file = await flows.create(ada)
    await flows.create(ada, state=tf.TECH_FILE_STATE_FAILED, error_message="no light")
    other = await flows.create(ada, product_id="another")

    await refused(restore(ada, file.id, 9), NOT_FOUND, "version", "9")
    await refused(restore(ada, file.id, 2), PRECONDITION, "was failed", "restore one")
    await refused(restore(ada, other.id, 2), NOT_FOUND, "version", "2")
    await refused(restore(eve, file.id, 1), NOT_FOUND, "tech file")
    await refused(restore(ada, NOBODY, 1), NOT_FOUND, "tech file")
    await refused(restore(ada, file.id, 0), INVALID, "version_number")

    assert (await restore(ada, file.id, 1)).version_number == 3


async def test_a_version_whose_picture_was_purged_is_restored_only_without_it_if_asked(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    asset = await asset_flows.upload(ada, asset_flows.jpeg(64, 48))
    file = await flows.create(ada, file_asset_id=asset.id, analysis=struct(note="kept"))
    await update(ada, file, file_asset_id="")
    with_picture = await restore(ada, file.id, 1)
    assert with_picture.file_asset_id == asset.id

    assets = ada.stub(asset_pb2_grpc.AssetServiceStub)
    await assets.DeleteAsset(asset_pb2.DeleteAssetRequest(asset_id=asset.id, force=True))
    await refused(restore(ada, file.id, 1), PRECONDITION, "undelete it first")
    await assets.PurgeAsset(asset_pb2.PurgeAssetRequest(asset_id=asset.id, force=True))

    await refused(
        restore(ada, file.id, 1), PRECONDITION, asset.id, "purged", "without_missing_picture"
    )
    restored = await restore(ada, file.id, 1, without_missing_picture=True)
    assert restored.file_asset_id == "" and restored.analysis == struct(note="kept")
    assert restored.version_number == with_picture.version_number + 1


async def test_a_snapshot_that_is_no_longer_what_was_stored_is_not_restored(suite: Suite) -> None:
    ada = suite.client("ada")
    file = await flows.create(ada, model="right")
    await update(ada, file, prompt="p")
    await update(ada, file, prompt="q")
    suite.sql(
        'UPDATE techfiles.tech_file_versions SET snapshot = snapshot || \'{"model": "wrong"}\''
        " WHERE number = 1"
    )

    await refused(restore(ada, file.id, 1), PRECONDITION, "no longer what was stored", "another")

    assert (await restore(ada, file.id, 2)).model == "right"


async def test_restorings_and_new_files_at_once_are_numbered_without_gaps(suite: Suite) -> None:
    ada = suite.client("ada")
    file = await flows.create(ada)

    await asyncio.gather(
        *(restore(ada, file.id, 1) for _ in range(8)), *(flows.create(ada) for _ in range(8))
    )

    history = await flows.versions(ada, file.id)
    assert [version.version_number for version in history] == list(range(17, 0, -1))
    assert [version.tech_file.is_latest for version in history] == [True] + [False] * 16


async def test_materials_lengths_and_call_outs_are_compared_by_what_they_mean(suite: Suite) -> None:
    ada = suite.client("ada")
    before = await flows.create(
        ada,
        model="m1",
        analysis=struct(
            materials=[
                {"part": "shell", "material": "cotton"},
                {"part": "lining", "material": "x"},
            ],
            measurements=[
                {"code": "A", "name": "chest", "value": 1, "unit": "cm"},
                {"name": "sleeve", "value": 12, "unit": "mm"},
                {"name": "weight", "value": 1, "unit": "kg"},
            ],
            call_outs=[
                {"number": 1, "view": "front", "name": "collar", "x": 0.5, "y": 0.25},
                {"number": 2, "view": "front", "name": "hem", "x": 0.5, "y": 0.75},
            ],
            category="jacket",
        ),
    )
    after = await flows.create(
        ada,
        model="m2",
        analysis=struct(
            materials=[{"part": "Shell", "material": "linen"}, {"part": "pocket", "material": "y"}],
            measurements=[
                {"name": "sleeve", "value": 1, "unit": "cm"},
                {"code": "A", "name": "chest", "value": 10, "unit": "mm"},
                {"name": "weight", "value": 1, "unit": "cm"},
            ],
            call_outs=[
                {"number": 2, "view": "front", "name": "hem", "x": 0.5, "y": 0.75},
                {"number": 1, "view": "front", "name": "Collar ", "x": 0.75, "y": 0.25},
                {"number": 3, "view": "front", "name": "zip", "x": 0.1, "y": 0.1},
            ],
            category="coat",
        ),
    )

    changes = await compare(ada, before.id, after.id)

    assert not changes.identical and not changes.left_out
    assert [(change.kind, change.part) for change in changes.materials] == [
        (hp.CHANGE_KIND_CHANGED, "Shell"),
        (hp.CHANGE_KIND_REMOVED, "lining"),
        (hp.CHANGE_KIND_ADDED, "pocket"),
    ]
    assert list(changes.materials[0].fields) == ["part", "material"]
    chest, sleeve, weight = changes.lengths
    assert (chest.kind, chest.delta, chest.delta_unit) == (hp.CHANGE_KIND_REWRITTEN, 0, "mm")
    assert (chest.before["unit"], chest.after["unit"]) == ("cm", "mm")
    assert (sleeve.kind, sleeve.delta, sleeve.delta_unit) == (hp.CHANGE_KIND_CHANGED, -0.2, "cm")
    assert not weight.HasField("delta") and "kg and cm" in weight.not_comparable
    collar, zipper = changes.places
    assert (collar.kind, collar.right, collar.down) == (hp.CHANGE_KIND_CHANGED, 0.25, 0)
    assert (zipper.kind, zipper.name) == (hp.CHANGE_KIND_ADDED, "zip")
    assert {change.path for change in changes.values} == {"analysis.category", "model"}


async def test_a_place_that_only_moved_is_said_to_have_moved(suite: Suite) -> None:
    ada = suite.client("ada")
    file = await flows.create(ada, analysis=struct(call_outs=[{"name": "hem", "x": 0.5, "y": 0.5}]))
    await update(ada, file, analysis=struct(call_outs=[{"name": "hem", "x": 0.5, "y": 0.4}]))

    [hem] = (await compare(ada, file.id, file.id, 1, 2)).places

    assert (hem.kind, hem.right, hem.down) == (hp.CHANGE_KIND_MOVED, 0, -0.1)


async def test_versions_that_say_the_same_are_identical(suite: Suite) -> None:
    ada = suite.client("ada")
    rows = [{"part": "shell", "material": "a"}, {"part": "hood", "material": "b"}]
    file = await flows.create(ada, analysis=struct(materials=rows), credits_used=3)
    again = await flows.create(ada, analysis=struct(materials=rows[::-1]), batch_id="other")

    for changes in (await compare(ada, file.id, file.id), await compare(ada, file.id, again.id)):
        assert changes == hp.ContentChanges(identical=True)


async def test_versions_that_have_nothing_to_do_with_each_other_are_refused(suite: Suite) -> None:
    ada, eve = suite.client("ada"), suite.client("eve")
    file = await flows.create(ada)
    other = await flows.create(ada, product_id="another")
    detail = await flows.create(
        ada, file_type=tf.TECH_FILE_TYPE_CLOSEUP, file_category="zip", view_type=0
    )
    back = await flows.create(ada, view_type=tf.VIEW_TYPE_BACK)

    ask = service(ada).CompareTechFiles
    await refused(ask(comparing(file.id, other.id)), INVALID, "another", "one product")
    await refused(ask(comparing(file.id, detail.id)), INVALID, "sketch", "one type")
    await refused(ask(comparing(file.id, file.id, 1, 2)), NOT_FOUND, "version", "2")
    await refused(ask(comparing(file.id, NOBODY)), NOT_FOUND, "tech file")
    await refused(service(eve).CompareTechFiles(comparing(file.id, file.id)), NOT_FOUND)
    assert [v.path for v in (await compare(ada, file.id, back.id)).values] == ["view_type"]


async def test_a_comparison_that_is_too_large_counts_what_it_leaves_out(suite: Suite) -> None:
    ada = suite.client("ada")
    name = "rows" * 20  # stands in the path of every change
    before = await flows.create(ada, analysis=struct(**{name: [{"a": 1}] * 25_000}))
    after = await flows.create(ada, analysis=struct(**{name: [{"b": "x"}] * 20_000}))

    answer = await service(ada).CompareTechFiles(comparing(before.id, after.id))

    assert answer.ByteSize() < 4 * 1024 * 1024
    assert len(answer.changes.values) + answer.changes.left_out == 45_000
    assert answer.changes.left_out > 0 and not answer.changes.identical


async def test_pictures_of_two_versions_are_shown_side_by_side_once(suite: Suite) -> None:
    await suite.work("assets")
    ada = suite.client("ada")
    one, other = [
        await asset_flows.upload(ada, asset_flows.jpeg(64, 48 + size)) for size in range(2)
    ]
    before = await flows.create(ada, file_asset_id=one.id)
    after = await flows.create(ada, file_asset_id=other.id)
    changes = await compare(ada, before.id, after.id)
    assert changes.picture_changed and not changes.identical
    assert (changes.before_asset_id, changes.after_asset_id) == (one.id, other.id)
    pair = comparing(before.id, after.id)
    request = hp.ComparePicturesRequest(before=pair.before, after=pair.after)

    async with asyncio.timeout(60):
        first = shown = await service(ada).ComparePictures(request)
        while shown.state == hp.PICTURE_STATE_PENDING:
            await asyncio.sleep(0.1)
            shown = await service(ada).ComparePictures(request)

    assert shown.state == hp.PICTURE_STATE_READY and shown.picture_url
    assert shown.comparison_id == first.comparison_id
    request.after.CopyFrom(request.before)
    await refused(service(ada).ComparePictures(request), PRECONDITION, "nothing to compare")
    bare = await flows.create(ada)
    request.after.tech_file_id = bare.id
    await refused(service(ada).ComparePictures(request), PRECONDITION, "has no picture")


async def test_collections_are_compared_slot_by_slot(suite: Suite) -> None:
    ada = suite.client("ada")
    facts = flows.example_facts()
    before = await flows.collect(ada, facts=facts)
    facts.materials[0].material = "another cloth"
    after = await flows.collect(ada, facts=facts)
    same = await flows.create(ada, view_type=tf.VIEW_TYPE_SIDE)
    old = await flows.create(ada, analysis=struct(note="old"))
    new = await flows.create(ada, analysis=struct(note="new"))
    gone = await flows.create(ada, view_type=tf.VIEW_TYPE_BACK)
    for collection, files in ((before, [same, old, gone]), (after, [same, new])):
        await flows.collection_service(ada).AddFiles(
            col.AddFilesRequest(collection_id=collection.id, tech_file_ids=[f.id for f in files])
        )

    request = hp.CompareCollectionsRequest(
        before_collection_id=before.id, after_collection_id=after.id
    )
    answer = await service(ada).CompareCollections(request)

    assert not answer.identical
    [material] = answer.facts.materials
    assert list(material.fields) == ["material"] and not answer.facts.values
    assert [(s.kind, s.before_tech_file_id, s.after_tech_file_id) for s in answer.slots] == [
        (hp.CHANGE_KIND_REMOVED, gone.id, ""),
        (hp.CHANGE_KIND_CHANGED, old.id, new.id),
    ]
    assert answer.slots[1].change_count == 1
    request.after_collection_id = before.id
    assert (await service(ada).CompareCollections(request)).identical
    request.after_collection_id = (await flows.collect(ada, product_id="another")).id
    await refused(service(ada).CompareCollections(request), INVALID, "another", "one product")
    request.after_collection_id = NOBODY
    await refused(service(ada).CompareCollections(request), NOT_FOUND, "collection")


async def test_collections_that_differ_in_large_facts_are_compared_in_one_answer(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    facts = flows.large_facts()
    del facts.materials[400:]
    before = await flows.collect(ada, facts=facts)
    for material in facts.materials:
        material.supplier = material.supplier[1:]
    after = await flows.collect(ada, facts=facts)

    request = hp.CompareCollectionsRequest(
        before_collection_id=before.id, after_collection_id=after.id
    )
    answer = await service(ada).CompareCollections(request)

    assert answer.ByteSize() < 4 * 1024 * 1024
    assert 0 < len(answer.facts.materials) <= 400
    assert len(answer.facts.materials) + answer.facts.left_out == 400


async def test_a_file_is_explained_with_who_must_act_and_what_to_call(suite: Suite) -> None:
    ada = suite.client("ada")
    old = await flows.create(ada)
    collection = await flows.collect(ada, name="Winter")
    await flows.collection_service(ada).AddFiles(
        col.AddFilesRequest(collection_id=collection.id, tech_file_ids=[old.id])
    )
    waiting = await flows.create(ada, state=tf.TECH_FILE_STATE_PENDING)

    found = await explained(ada, old)
    assert waiting.id in found["is it the latest of its slot?"].answer
    assert "RestoreTechFileVersion" in found["is it the latest of its slot?"].next_step
    assert found["is it the latest completed one?"].answer == "yes"
    assert "Winter" in found["which collections is it in?"].answer

    state = (await explained(ada, waiting))["is it completed?"]
    assert (state.ok, state.who, state.next_step) == (False, "you", "UpdateTechFileStatus")

    await flows.file_service(ada).ArchiveTechFile(
        tf.ArchiveTechFileRequest(tech_file_id=waiting.id)
    )
    shown = (await explained(ada, waiting))["is it shown in lists?"]
    assert (shown.ok, shown.next_step) == (False, "UnarchiveTechFile")
    assert (await explained(ada, old))["is it the latest of its slot?"].ok
    ask = service(suite.client("eve")).ExplainTechFile
    await refused(ask(hp.ExplainTechFileRequest(tech_file_id=old.id)), NOT_FOUND, "tech file")


async def test_a_file_of_a_run_names_the_run_and_its_worker(suite: Suite) -> None:
    ada = suite.client("ada")
    run = await flows.generate(ada, await flows.revisions(ada, "front"))
    [file, *_] = await flows.listed(ada, batch_id=run.batch_id)

    found = await explained(ada, file)

    assert (found["is it completed?"].who, run.id in found["is it completed?"].next_step) == (
        "a worker",
        True,
    )
    assert run.id in found["where does it come from?"].answer


async def test_names_of_one_shot_are_one_slot_and_show_as_they_were_written(suite: Suite) -> None:
    ada = suite.client("ada")
    names = ["Zipper Detail", "zipper  detail ", "ZIPPER\u00a0DETAIL", "Cafe\u0301", "CAF\u00c9"]
    shot = {"file_type": tf.TECH_FILE_TYPE_CLOSEUP, "view_type": tf.VIEW_TYPE_UNSPECIFIED}

    files = [await flows.create(ada, file_category=name, **shot) for name in names]

    assert [file.version_number for file in files] == [1, 2, 3, 1, 2]
    assert [file.file_category for file in files] == names
    await refused(flows.create(ada, file_category="  ", **shot), INVALID, "file_category", "spaces")


async def test_a_slot_with_a_name_from_before_goes_on(suite: Suite) -> None:
    ada = suite.client("ada")
    shot = {"file_type": tf.TECH_FILE_TYPE_CLOSEUP, "view_type": tf.VIEW_TYPE_UNSPECIFIED}
    first = await flows.create(ada, file_category="Zipper Detail", **shot)
    suite.sql("UPDATE techfiles.slots SET file_category = 'Zipper Detail'")

    second = await flows.create(ada, file_category="zipper detail", **shot)

    assert (second.version_number, second.parent_file_id) == (2, first.id)


async def test_every_change_of_a_file_can_be_tied_to_what_was_read(suite: Suite) -> None:
    ada = suite.client("ada")
    files = flows.file_service(ada)
    file = await flows.create(ada, state=tf.TECH_FILE_STATE_PENDING)
    old = file.etag
    done = tf.UpdateTechFileStatusRequest(
        tech_file_id=file.id, state=tf.TECH_FILE_STATE_COMPLETED, etag=old
    )
    one = {"tech_file_id": file.id, "etag": old}

    now = (await files.UpdateTechFileStatus(done)).tech_file

    assert now.etag != old
    for call, request in (
        (files.UpdateTechFileStatus, done),
        (files.CreateTechFileVersion, tf.CreateTechFileVersionRequest(**one)),
        (files.ArchiveTechFile, tf.ArchiveTechFileRequest(**one)),
        (files.UnarchiveTechFile, tf.UnarchiveTechFileRequest(**one)),
    ):
        await refused(call(request), ABORTED, "read it again")
    assert await flows.get(ada, file.id) == now
