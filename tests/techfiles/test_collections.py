"""The promises of collections: order, derived progress and credits, and a record of every
override."""

import asyncio
from typing import Any

import grpc
import pytest
from atelier.common.v1 import facts_pb2
from atelier.techfiles.v1 import collection_pb2 as col
from atelier.techfiles.v1 import tech_file_pb2 as tf
from atelier.techfiles.v1 import tech_pack_pb2 as tp

from tests.calls import refused
from tests.suite import Client, Suite
from tests.techfiles import flows

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
async def suite(suite: Suite) -> Suite:
    # Many concurrent calls wait for one row, and a busy machine may be slow.
    suite.overrides |= {"pool_wait_seconds": 60.0, "lock_timeout_seconds": 60.0}
    await suite.serve("assets", "techfiles")
    return suite


async def add(
    client: Client, collection_id: str, *file_ids: str, **fields: Any
) -> col.AddFilesResponse:
    request = col.AddFilesRequest(collection_id=collection_id, tech_file_ids=file_ids, **fields)
    answer: col.AddFilesResponse = await flows.collection_service(client).AddFiles(request)
    return answer


async def some_files(client: Client, count: int, **fields: Any) -> list[tf.TechFile]:
    closeup = tf.TECH_FILE_TYPE_CLOSEUP
    return [
        await flows.create(
            client, file_type=closeup, view_type=0, file_category=f"shot {n}", **fields
        )
        for n in range(count)
    ]


async def test_files_keep_their_order_and_equal_places_are_appended(suite: Suite) -> None:
    ada = suite.client("ada")
    collection = await flows.collect(ada)
    a, b, c, d = await some_files(ada, 4)
    await add(ada, collection.id, a.id, b.id, section="closeups", display_order=0)
    answer = await add(ada, collection.id, c.id, section="closeups", display_order=0)
    assert answer.results[0].display_order == 2
    assert (await add(ada, collection.id, d.id, section="base_views")).results[0].display_order == 0

    items = (await flows.contents(ada, collection.id)).items
    assert [(i.section, i.display_order, i.tech_file.id) for i in items] == [
        ("base_views", 0, d.id),
        ("closeups", 0, a.id),
        ("closeups", 1, b.id),
        ("closeups", 2, c.id),
    ]


async def test_concurrent_additions_never_share_a_place(suite: Suite) -> None:
    ada = suite.client("ada")
    collection = await flows.collect(ada)
    files = await some_files(ada, 16)
    await asyncio.gather(
        *(add(ada, collection.id, file.id, section="s", display_order=3) for file in files)
    )
    items = (await flows.contents(ada, collection.id)).items
    assert sorted(item.display_order for item in items) == list(range(3, 19))


async def test_adding_answers_per_file_and_adding_twice_changes_nothing(suite: Suite) -> None:
    ada, bob = suite.client("ada"), suite.client("bob")
    collection = await flows.collect(ada)
    mine = (await some_files(ada, 1, credits_used=2))[0]
    theirs = await flows.create(bob)
    await add(ada, collection.id, mine.id, section="closeups")
    answer = await add(
        ada, collection.id, theirs.id, mine.id, mine.id, section="elsewhere", display_order=7
    )
    assert [(r.outcome, r.section, r.display_order) for r in answer.results] == [
        (col.ADD_FILE_OUTCOME_NOT_FOUND, "", 0),
        (col.ADD_FILE_OUTCOME_ALREADY_THERE, "closeups", 0),
        (col.ADD_FILE_OUTCOME_ALREADY_THERE, "closeups", 0),
    ]
    assert (answer.collection.file_count, answer.collection.total_credits_used) == (1, 2)

    removed = await flows.collection_service(ada).RemoveFiles(
        col.RemoveFilesRequest(
            collection_id=collection.id, tech_file_ids=[theirs.id, mine.id, mine.id]
        )
    )
    assert list(removed.removed_tech_file_ids) == [mine.id] and removed.collection.file_count == 0
    assert (await flows.get(ada, mine.id)).id == mine.id


async def test_progress_state_and_credits_follow_the_files(suite: Suite) -> None:
    ada = suite.client("ada")
    collection = await flows.collect(ada)
    files = await some_files(ada, 4, state=tf.TECH_FILE_STATE_PENDING, credits_used=1)
    await add(ada, collection.id, *(file.id for file in files))

    async def seen() -> tuple[int, int, int, int]:
        now = (await flows.contents(ada, collection.id)).collection
        return now.state, now.progress_percent, now.total_credits_used, now.file_count

    async def move(index: int, state: tf.TechFileState) -> None:
        await flows.file_service(ada).UpdateTechFileStatus(
            tf.UpdateTechFileStatusRequest(tech_file_id=files[index].id, state=state)
        )

    assert await seen() == (col.COLLECTION_STATE_PENDING, 0, 4, 4)
    await move(0, tf.TECH_FILE_STATE_COMPLETED)
    assert await seen() == (col.COLLECTION_STATE_PROCESSING, 25, 4, 4)

    await move(1, tf.TECH_FILE_STATE_FAILED)
    await move(2, tf.TECH_FILE_STATE_COMPLETED)
    await move(3, tf.TECH_FILE_STATE_COMPLETED)
    assert await seen() == (col.COLLECTION_STATE_FAILED, 100, 4, 4)

    await flows.file_service(ada).ArchiveTechFile(
        tf.ArchiveTechFileRequest(tech_file_id=files[1].id)
    )
    assert await seen() == (col.COLLECTION_STATE_COMPLETED, 100, 4, 3)

    [listed] = (
        await flows.collection_service(ada).ListCollections(col.ListCollectionsRequest())
    ).collections
    assert listed == (await flows.contents(ada, collection.id)).collection


async def test_an_override_and_an_adjustment_are_explicit_and_recorded(suite: Suite) -> None:
    ada = suite.client("ada")
    service = flows.collection_service(ada)
    collection = await flows.collect(ada)
    said = col.ProgressOverride(progress_percent=50, state=col.COLLECTION_STATE_PROCESSING)
    answer = await service.SetCollectionProgress(
        col.SetCollectionProgressRequest(
            collection_id=collection.id, progress=said, reason="by hand"
        )
    )
    now = answer.collection
    assert (now.progress_percent, now.state, now.progress_overridden) == (
        50,
        col.COLLECTION_STATE_PROCESSING,
        True,
    )

    name = flows.request_id()
    for _ in range(2):
        adjusted = await service.AdjustCollectionCredits(
            col.AdjustCollectionCreditsRequest(
                request_id=name, collection_id=collection.id, credits=3, reason="retouching"
            )
        )
    assert (adjusted.collection.total_credits_used, adjusted.collection.credits_adjustment) == (
        3,
        3,
    )
    await refused(
        service.AdjustCollectionCredits(
            col.AdjustCollectionCreditsRequest(collection_id=collection.id, credits=-4)
        ),
        PRECONDITION,
        "-1",
    )

    derived = await service.SetCollectionProgress(
        col.SetCollectionProgressRequest(collection_id=collection.id)
    )
    assert (derived.collection.progress_percent, derived.collection.progress_overridden) == (
        0,
        False,
    )

    changes = (await flows.contents(ada, collection.id)).changes
    assert [(c.WhichOneof("change"), c.actor, c.reason) for c in changes] == [
        ("progress_derived", "ada", ""),
        ("credits", "ada", "retouching"),
        ("progress", "ada", "by hand"),
    ]
    assert changes[1].credits == 3 and changes[2].progress == said


async def test_facts_come_back_as_they_were_stated_or_are_refused_by_path(suite: Suite) -> None:
    ada = suite.client("ada")
    facts = facts_pb2.Facts(
        care=["wash cold"], price=facts_pb2.PriceFact(msrp=189.5, currency="EUR")
    )
    collection = await flows.collect(ada, facts=facts)
    assert (await flows.contents(ada, collection.id)).facts == facts

    twice = facts_pb2.PointOfMeasureFact(code="A", name="chest", value=58, unit="cm")
    await refused(
        flows.collect(ada, facts=facts_pb2.Facts(points_of_measure=[twice, twice])),
        INVALID,
        "facts.points_of_measure[1]",
    )
    await refused(flows.collect(ada, facts=flows.large_facts()), INVALID, "facts", "1000000")
    await refused(
        flows.export(ada, collection.id, format=tp.EXPORT_FORMAT_PDF, facts=flows.large_facts()),
        INVALID,
        "facts",
        "1000000",
    )


@pytest.mark.parametrize(
    ("name", "file_name"),
    [
        ("Winter line", "Winter line.pdf"),
        ("v1.2", "v1.2.pdf"),
        ("con", "_con.pdf"),
        ("../../../home/you/.bashrc\n#", "_.._.._home_you_.bashrc#.pdf"),
        ('a"b;\u202efdp.exe', "a_b;fdp.exe.pdf"),
        ("漢" * 200, "漢" * 48 + ".pdf"),
    ],
)
async def test_an_export_is_called_after_its_collection_as_files_may_be_called(
    suite: Suite, name: str, file_name: str
) -> None:
    ada = suite.client("ada")
    collection = await flows.collect(ada, name=name)
    assert collection.name == name

    request = tp.ExportCollectionRequest(collection_id=collection.id, format=tp.EXPORT_FORMAT_PDF)
    export = (await flows.pack_service(ada).ExportCollection(request)).export
    assert export.file_name == file_name

    await suite.change(
        "UPDATE techfiles.exports SET file_name = %s", (f"{name}.pdf",)
    )  # the name as older versions stored it
    found = await flows.pack_service(ada).GetExport(tp.GetExportRequest(export_id=export.id))
    assert found.export.file_name == file_name


async def test_another_owner_neither_sees_nor_changes_a_collection(suite: Suite) -> None:
    ada, bob = suite.client("ada"), suite.client("bob")
    collection = await flows.collect(ada)
    file = await flows.create(bob)
    service = flows.collection_service(bob)

    for call, request in (
        (service.GetCollection, col.GetCollectionRequest(collection_id=collection.id)),
        (
            service.AddFiles,
            col.AddFilesRequest(collection_id=collection.id, tech_file_ids=[file.id]),
        ),
        (
            service.RemoveFiles,
            col.RemoveFilesRequest(collection_id=collection.id, tech_file_ids=[file.id]),
        ),
        (
            service.SetCollectionProgress,
            col.SetCollectionProgressRequest(collection_id=collection.id),
        ),
        (
            service.AdjustCollectionCredits,
            col.AdjustCollectionCreditsRequest(collection_id=collection.id, credits=1),
        ),
    ):
        await refused(call(request), NOT_FOUND)

    await refused(
        flows.create(
            bob, file_type=tf.TECH_FILE_TYPE_COMPLETE_PACK, view_type=0, collection_id=collection.id
        ),
        NOT_FOUND,
    )
    assert not (await service.ListCollections(col.ListCollectionsRequest())).collections
    assert (await flows.contents(ada, collection.id)).collection.etag == collection.etag
