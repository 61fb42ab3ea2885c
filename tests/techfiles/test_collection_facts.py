"""The promises of a collection that changes: names, versions of facts, etags, and what explains
it."""

from typing import Any

import grpc
import pytest
from atelier.common.v1 import facts_pb2
from atelier.techfiles.v1 import collection_pb2 as col
from atelier.techfiles.v1 import tech_file_pb2 as tf
from atelier.techfiles.v1 import tech_pack_pb2 as tp

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.suite import Client, Suite
from tests.techfiles import flows
from tests.test_pages import clone

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
ABORTED = grpc.StatusCode.ABORTED
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
async def suite(suite: Suite) -> Suite:
    await suite.serve("assets", "techfiles")
    return suite


def care(text: str) -> facts_pb2.Facts:
    return facts_pb2.Facts(care=[text])


async def state(client: Client, collection_id: str, **fields: Any) -> col.Collection:
    request = col.UpdateCollectionFactsRequest(collection_id=collection_id, **fields)
    answer = await flows.collection_service(client).UpdateCollectionFacts(request)
    collection: col.Collection = answer.collection
    return collection


async def versions(
    client: Client, collection_id: str, **fields: Any
) -> list[col.CollectionFactsVersion]:
    request = col.ListCollectionFactsVersionsRequest(collection_id=collection_id, **fields)
    answer = await flows.collection_service(client).ListCollectionFactsVersions(request)
    return list(answer.versions)


async def explain(client: Client, collection_id: str) -> col.ExplainCollectionResponse:
    request = col.ExplainCollectionRequest(collection_id=collection_id)
    answer: col.ExplainCollectionResponse = await flows.collection_service(
        client
    ).ExplainCollection(request)
    return answer


async def test_a_collection_is_renamed_by_the_mask_alone(suite: Suite) -> None:
    ada = suite.client("ada")
    collection = await flows.collect(ada, description="old")
    service = flows.collection_service(ada)
    request = col.UpdateCollectionRequest(
        collection_id=collection.id,
        etag=collection.etag,
        update_mask={"paths": ["name", "revision_id"]},
        name="Summer line",
        revision_id="rev-2",
        description="ignored",
    )
    changed = (await service.UpdateCollection(request)).collection
    assert (changed.name, changed.revision_id, changed.description) == (
        "Summer line",
        "rev-2",
        "old",
    )
    await refused(service.UpdateCollection(request), ABORTED, "read it again")
    empty = col.UpdateCollectionRequest(
        collection_id=collection.id, update_mask={"paths": ["name"]}
    )
    await refused(service.UpdateCollection(empty), INVALID, "name")
    other = col.UpdateCollectionRequest(
        collection_id=collection.id, update_mask={"paths": ["facts"]}
    )
    await refused(service.UpdateCollection(other), INVALID, "update_mask")
    await refused(
        flows.collection_service(suite.client("bob")).UpdateCollection(
            col.UpdateCollectionRequest(
                collection_id=collection.id, update_mask={"paths": ["name"]}, name="n"
            )
        ),
        NOT_FOUND,
    )


async def test_every_version_of_facts_is_kept_with_who_and_why_and_can_be_restored(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    eve = suite.client("eve", owner="user:ada")
    collection = await flows.collect(ada, facts=care("wash cold"))
    changed = await state(eve, collection.id, facts=care("wash hot"), reason="tested")
    assert changed.facts_number == 2 and changed.etag != collection.etag
    same = await state(ada, collection.id, facts=care("wash hot"))
    assert same.facts_number == 2 and same.etag == changed.etag  # nothing changed

    service = flows.collection_service(ada)
    restore = col.RestoreCollectionFactsRequest(collection_id=collection.id, number=1)
    assert (await service.RestoreCollectionFacts(restore)).collection.facts_number == 3
    cleared = await state(ada, collection.id)
    assert cleared.facts_number == 4
    assert not (await flows.contents(ada, collection.id)).HasField("facts")

    kept = await versions(ada, collection.id)
    assert [(v.number, v.current, list(v.facts.care), v.created_by, v.reason) for v in kept] == [
        (4, True, [], "ada", ""),
        (3, False, ["wash cold"], "ada", "version 1 restored"),
        (2, False, ["wash hot"], "eve", "tested"),
        (1, False, ["wash cold"], "ada", ""),
    ]
    assert kept[-1].create_time == collection.create_time
    missing = col.RestoreCollectionFactsRequest(collection_id=collection.id, number=9)
    await refused(service.RestoreCollectionFacts(missing), NOT_FOUND, "9")
    await refused(state(ada, collection.id, facts=care("x"), etag="1"), ABORTED)
    await refused(state(ada, collection.id, facts=flows.large_facts()), INVALID, "1000000")
    await refused(versions(suite.client("bob"), collection.id), NOT_FOUND)
    assert len(await versions(ada, collection.id)) == 4


async def test_an_older_etag_changes_nothing_of_a_collection(suite: Suite) -> None:
    ada = suite.client("ada")
    collection = await flows.collect(ada)
    file = await flows.create(ada)
    service = flows.collection_service(ada)
    of: dict[str, Any] = {"collection_id": collection.id, "etag": "99"}
    for call, request in (
        (service.AddFiles, col.AddFilesRequest(tech_file_ids=[file.id], **of)),
        (service.RemoveFiles, col.RemoveFilesRequest(tech_file_ids=[file.id], **of)),
        (service.SetCollectionProgress, col.SetCollectionProgressRequest(**of)),
        (service.AdjustCollectionCredits, col.AdjustCollectionCreditsRequest(credits=1, **of)),
    ):
        await refused(call(request), ABORTED, "read it again")
    assert (await flows.contents(ada, collection.id)).collection == collection

    status = tf.UpdateTechFileStatusRequest(
        tech_file_id=file.id, state=tf.TECH_FILE_STATE_FAILED, etag="99"
    )
    await refused(flows.file_service(ada).UpdateTechFileStatus(status), ABORTED)


async def test_what_a_collection_shows_is_explained_with_what_to_call(suite: Suite) -> None:
    ada = suite.client("ada")
    service = flows.collection_service(ada)
    collection = await flows.collect(ada)
    done, failed, waiting, archived = [
        await flows.create(ada, view_type=view, state=state, **fields)
        for view, state, fields in (
            (tf.VIEW_TYPE_FRONT, tf.TECH_FILE_STATE_COMPLETED, {}),
            (tf.VIEW_TYPE_BACK, tf.TECH_FILE_STATE_FAILED, {"error_message": "too dark"}),
            (tf.VIEW_TYPE_SIDE, tf.TECH_FILE_STATE_PENDING, {}),
            (tf.VIEW_TYPE_FRONT, tf.TECH_FILE_STATE_COMPLETED, {"product_id": "other"}),
        )
    ]
    ids = [done.id, failed.id, waiting.id, archived.id]
    await service.AddFiles(col.AddFilesRequest(collection_id=collection.id, tech_file_ids=ids))
    request = tf.ArchiveTechFileRequest(tech_file_id=archived.id)
    await flows.file_service(ada).ArchiveTechFile(request)

    found = await explain(ada, collection.id)
    assert found.derived_state == col.COLLECTION_STATE_PROCESSING
    assert found.derived_progress_percent == 66 and found.exportable
    assert [(each.tech_file_id, each.next_call) for each in found.left_out] == [
        (failed.id, "CreateTechFile"),
        (waiting.id, "UpdateTechFileStatus"),
        (archived.id, "UnarchiveTechFile"),
    ]
    assert "too dark" in found.left_out[0].reason and found.left_out_count == 3
    assert sum(each.files for each in found.files if not each.hidden) == 3
    answers = {each.question: each for each in found.findings}
    assert "2 of 3" in answers["where do its state and progress come from?"].answer
    assert not answers["is anything still to come?"].ok
    assert found.summary == next(each.answer for each in found.findings if not each.ok)

    said = col.ProgressOverride(progress_percent=100, state=col.COLLECTION_STATE_COMPLETED)
    await service.SetCollectionProgress(
        col.SetCollectionProgressRequest(
            collection_id=collection.id, progress=said, reason="shipped"
        )
    )
    await service.DeleteCollection(col.DeleteCollectionRequest(collection_id=collection.id))
    found = await explain(ada, collection.id)
    assert not found.exportable and "trash" in found.summary
    assert found.collection.progress_percent == 100 and found.derived_progress_percent == 66
    answer = {each.question: each.answer for each in found.findings}
    assert "ada set" in answer["where do its state and progress come from?"]
    assert "shipped" in answer["where do its state and progress come from?"]

    empty = await explain(ada, (await flows.collect(ada)).id)
    assert "No file" in empty.summary
    run = await flows.generate(ada, await flows.revisions(ada, "front"))
    texts = [each.answer for each in (await explain(ada, run.collection_id)).findings]
    assert f"The run {run.id} fills it." in texts
    await refused(explain(suite.client("bob"), collection.id), NOT_FOUND)


async def test_a_thousand_files_are_taken_and_one_beyond_is_refused_with_the_limit(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    collection = await flows.collect(ada)
    first = await flows.create(ada)
    service = flows.collection_service(ada)
    add = col.AddFilesRequest(collection_id=collection.id, tech_file_ids=[first.id])
    await service.AddFiles(add)
    for statement in (
        clone("techfiles.tech_files", 999, id="md5('f' || n)::uuid", number="n + 1",
              is_latest="false"),
        clone("techfiles.collection_items", 999, tech_file_id="md5('f' || n)::uuid",
              display_order="n"),
    ):  # fmt: skip
        await suite.change(statement)
    await suite.change("UPDATE techfiles.slots SET last_number = 1000")
    contents = await flows.contents(ada, collection.id)
    assert contents.collection.file_count == len(contents.items) == 1000

    more = [(await flows.create(ada)).id for _ in range(2)]
    add = col.AddFilesRequest(collection_id=collection.id, tech_file_ids=more)
    await refused(service.AddFiles(add), PRECONDITION, "1002", "1000", "another collection")
    assert (await flows.contents(ada, collection.id)).collection.file_count == 1000


async def test_a_file_shows_size_type_and_quality_of_its_picture_and_invents_none(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    picture = await asset_flows.upload(ada, flows.photo("front"))
    found = {"weave": "twill", "lining": "", "pockets": {"front": 2, "back": None}}
    file = await flows.create(ada, file_asset_id=picture.id, analysis=found)

    shown = await flows.get(ada, file.id, include_urls=True)
    assert (shown.size_bytes, shown.mime_type) == (picture.size_bytes, "image/jpeg")
    assert (shown.width, shown.height) == (picture.width, picture.height)
    assert shown.quality.sharpness == picture.facts.sharpness
    assert shown.quality.exposure == 1 - picture.facts.clipped_shadows
    assert shown.quality.completeness == 0.5
    parts = (shown.quality.sharpness, shown.quality.exposure, 0.5)
    assert shown.quality.score == min(parts)
    assert not (await flows.get(ada, file.id)).HasField("quality")

    bare = await flows.create(ada, view_type=tf.VIEW_TYPE_BACK)
    assert not (await flows.get(ada, bare.id, include_urls=True)).HasField("quality")
    words = await flows.create(ada, view_type=tf.VIEW_TYPE_BACK, analysis={"weave": "twill"})
    said = (await flows.get(ada, words.id, include_urls=True)).quality
    assert said.score == 1 and not said.HasField("sharpness")


async def test_a_pack_shows_the_size_of_its_document(suite: Suite) -> None:
    await suite.serve("conversions")
    await suite.work("techfiles", "conversions", "assets")
    ada = suite.client("ada")
    run = await flows.generate(ada, await flows.revisions(ada, "front"), skip_closeups=True,
                               skip_sketches=True)  # fmt: skip
    run = await flows.ended(ada, run.id)
    pack = await flows.get(ada, run.pack_file_id, include_urls=True)
    request = tp.GetExportRequest(export_id=run.export_id)
    export = (await flows.pack_service(ada).GetExport(request)).export
    assert (pack.size_bytes, pack.mime_type) == (export.size_bytes, "application/pdf")
    assert pack.size_bytes > 0


@pytest.mark.parametrize(
    ("path", "at", "beyond"),
    [
        ("facts.care", {"care": ["x"] * 500}, {"care": ["x"] * 501}),
        ("facts.care[0]", {"care": ["ä" * 300]}, {"care": ["ä" * 301]}),
        (
            "facts.materials",
            {"materials": [{"part": "p", "material": "m"}] * 500},
            {"materials": [{"part": "p", "material": "m"}] * 501},
        ),
        (
            "facts.product.description",
            {"product": {"description": "漢" * 5000}},
            {"product": {"description": "漢" * 5001}},
        ),
        ("facts.product.name", {"product": {"name": "n" * 300}}, {"product": {"name": "n" * 301}}),
    ],
)
async def test_facts_at_a_limit_are_stated_and_one_beyond_is_refused_by_path(
    suite: Suite, path: str, at: dict[str, Any], beyond: dict[str, Any]
) -> None:
    ada = suite.client("ada")
    collection = await flows.collect(ada)
    assert (await state(ada, collection.id, facts=facts_pb2.Facts(**at))).facts_number == 2
    kept = await flows.contents(ada, collection.id)
    assert kept.facts == facts_pb2.Facts(**at)

    await refused(state(ada, collection.id, facts=facts_pb2.Facts(**beyond)), INVALID, path)
    assert await flows.contents(ada, collection.id) == kept
