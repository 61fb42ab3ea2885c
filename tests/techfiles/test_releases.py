"""The promises of releases: frozen, numbered, approved by another, printed with what changed, and
kept."""

import asyncio
import io
import json
import zipfile
from typing import Any

import grpc
import pypdf
import pytest
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc
from atelier.common.v1 import facts_pb2
from atelier.techfiles.v1 import collection_pb2 as col
from atelier.techfiles.v1 import export_pb2 as ex
from atelier.techfiles.v1 import history_pb2 as hp
from atelier.techfiles.v1 import release_pb2 as rp
from atelier.techfiles.v1 import release_pb2_grpc
from atelier.techfiles.v1 import tech_file_pb2 as tf
from atelier.techfiles.v1 import tech_pack_pb2 as tp
from google.protobuf import json_format, struct_pb2

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.suite import Client, Suite
from tests.techfiles import flows
from tests.techfiles.trash_flows import expire, export_service, holders, objects, settle, upkeep

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
ABORTED = grpc.StatusCode.ABORTED
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
NOBODY = "01990000-0000-7000-8000-000000000000"
DRAFT, APPROVED = rp.RELEASE_STATE_DRAFT, rp.RELEASE_STATE_APPROVED


@pytest.fixture
async def suite(suite: Suite) -> Suite:
    suite.overrides["reconcile_minutes"] = 0
    await suite.serve("assets", "techfiles")
    await suite.work("techfiles")
    return suite


def service(client: Client) -> Any:
    return client.stub(release_pb2_grpc.ReleaseServiceStub)


def facts(length: float = 92, weight: str = "340 g/m2", **product: str) -> facts_pb2.Facts:
    """Facts of a coat."""
    stated = {
        "product": {"name": "Field coat", **product},
        "materials": [{"part": "shell", "material": "canvas", "weight": weight}],
        "points_of_measure": [
            {"code": "A", "name": "length", "value": length, "unit": "cm", "view": "front"}
        ],
    }
    return json_format.ParseDict(stated, facts_pb2.Facts())


async def collected(client: Client, **fields: Any) -> tuple[col.Collection, tf.TechFile]:
    """Returns a collection with facts and one file with a picture."""
    collection = await flows.collect(client, **{"facts": facts(), **fields})
    picture = await asset_flows.upload(client, flows.photo("front"))
    file = await flows.create(
        client,
        product_id=collection.product_id,
        file_type=tf.TECH_FILE_TYPE_BASE_VIEW,
        revision_id="rev-1",
        file_asset_id=picture.id,
        model="drawing-1",
    )
    await add(client, collection.id, file.id)
    return collection, file


async def add(client: Client, collection_id: str, file_id: str) -> None:
    request = col.AddFilesRequest(collection_id=collection_id, tech_file_ids=[file_id])
    await flows.collection_service(client).AddFiles(request)


async def create(client: Client, collection_id: str, **fields: Any) -> rp.CreateReleaseResponse:
    values = {
        "request_id": flows.request_id(),
        "collection_id": collection_id,
        "name": "sent to the factory",
        **fields,
    }
    request = rp.CreateReleaseRequest(**{"wait": True, **values})
    answer: rp.CreateReleaseResponse = await service(client).CreateRelease(request, timeout=60)
    return answer


async def approve(client: Client, release_id: str, **fields: Any) -> rp.ApproveReleaseResponse:
    values = {"request_id": flows.request_id(), "release_id": release_id, **fields}
    request = rp.ApproveReleaseRequest(**{"wait": True, **values})
    answer: rp.ApproveReleaseResponse = await service(client).ApproveRelease(request, timeout=60)
    return answer


async def released(client: Client, collection_id: str, **fields: Any) -> rp.Release:
    """Makes a release and approves it."""
    made = await create(client, collection_id, **fields)
    return (await approve(client, made.release.id)).release


async def get(client: Client, release_id: str, **fields: Any) -> rp.GetReleaseResponse:
    request = rp.GetReleaseRequest(release_id=release_id, **fields)
    answer: rp.GetReleaseResponse = await service(client).GetRelease(request)
    return answer


async def restate(client: Client, collection_id: str, stated: facts_pb2.Facts) -> None:
    request = col.UpdateCollectionFactsRequest(collection_id=collection_id, facts=stated)
    await flows.collection_service(client).UpdateCollectionFacts(request)


def pdf_of(documents: Any) -> tp.Export:
    return next(each for each in documents if each.format == tp.EXPORT_FORMAT_PDF)


def pages(data: bytes) -> list[str]:
    return [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(data)).pages]


async def test_a_draft_is_stamped_on_each_page_and_an_approved_release_on_none(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    collection, file = await collected(ada)

    made = await create(ada, collection.id, note="first one")
    approved = await approve(ada, made.release.id, note="measures checked")

    assert made.release.state == DRAFT and made.release.number == 0
    assert made.next_step == "look at its document, then call ApproveRelease or RejectRelease"
    [draft] = made.documents
    assert draft.draft and draft.release_id == made.release.id
    assert draft.file_name == "Winter line, draft.pdf"
    stamped = pages(await flows.fetch(draft))
    assert all("DRAFT, not approved" in page for page in stamped)
    release = approved.release
    assert (release.state, release.number, release.previous_number) == (APPROVED, 1, 0)
    assert (release.decided_by, release.decision_note) == ("ada", "measures checked")
    final = [each for each in approved.documents if not each.draft]
    assert {each.file_name for each in final} == {
        "Winter line, release 1.pdf",
        "Winter line, release 1.zip",
    }
    printed = pages(await flows.fetch(pdf_of(final)))
    assert not any("DRAFT" in page for page in printed)
    words = flows.text_of(await flows.fetch(pdf_of(final)))
    assert "Release 1 sent to the factory" in words and "first one" in words
    assert "nothing: no release of this product was approved before" in words
    [frozen] = (await get(ada, release.id)).files
    assert (frozen.tech_file_id, frozen.version_number) == (file.id, file.version_number)
    assert frozen.model == "drawing-1" and len(frozen.asset_sha256) == 64


@pytest.mark.long
async def test_a_release_stays_as_it_was_whatever_becomes_of_the_collection(suite: Suite) -> None:
    ada = suite.client("ada")
    collection, file = await collected(ada)
    release = await released(ada, collection.id)
    before = await get(ada, release.id)
    request = tf.UpdateTechFileRequest(
        tech_file_id=file.id, update_mask={"paths": ["model"]}, model="drawing-2"
    )

    await restate(ada, collection.id, facts(120))
    await flows.file_service(ada).UpdateTechFile(request)
    remade = await documents_made_again(suite, ada, release.id)

    after = await get(ada, release.id)
    assert after.facts == before.facts and after.files == before.files
    assert remade == {each.format: each.sha256 for each in before.documents if not each.draft}


async def documents_made_again(suite: Suite, client: Client, release_id: str) -> dict[int, str]:
    """Lets the final documents be lost, has them made again, and returns their digests."""
    suite.sql(
        "UPDATE techfiles.exports SET bytes_gone_at = now(), bytes_gone_reason = 'lost'"
        " WHERE release_id = %s AND NOT draft RETURNING id",
        (release_id,),
    )
    request = rp.MakeReleaseDocumentsRequest(release_id=release_id)
    answer = await service(client).MakeReleaseDocuments(request)
    assert len(answer.documents) == 3
    async with asyncio.timeout(60):
        while True:
            made = [each for each in (await get(client, release_id)).documents if not each.draft]
            if all(each.state == tp.EXPORT_STATE_COMPLETED for each in made):
                return {each.format: each.sha256 for each in made}
            await asyncio.sleep(0.1)


@pytest.mark.long
async def test_a_later_release_says_what_changed_and_marks_it(suite: Suite) -> None:
    ada = suite.client("ada")
    collection, _ = await collected(ada)
    await released(ada, collection.id, name="first sample")
    other, _ = await collected(ada, facts=facts(95, "360 g/m2", brand="Alba"))

    second = await released(ada, other.id, name="second sample")

    assert (second.number, second.previous_number) == (2, 1)
    words = flows.text_of(await flows.fetch(pdf_of((await get(ada, second.id)).documents)))
    assert "Release 1: first sample" in words
    assert "Material: shell changed weight: 340 g/m2 weight: 360 g/m2" in words
    assert "Point of measure: length (A), front changed 92 cm 95 cm +3 cm" in words
    assert "Brand new Alba" in words
    assert "Base view: front changed another picture" in words
    assert "canvasΔ" in words.replace(" Δ", "Δ")
    answer = await service(ada).CompareReleases(
        rp.CompareReleasesRequest(after_release_id=second.id)
    )
    [length] = answer.facts.lengths
    assert (length.delta, length.delta_unit, answer.before.number) == (3, "cm", 1)
    [slot] = answer.slots
    assert slot.picture_changed and slot.kind == hp.CHANGE_KIND_CHANGED
    frozen = [(await get(ada, each.id)).files[0] for each in (answer.before, answer.after)]
    assert [slot.before_asset_id, slot.after_asset_id] == [each.asset_id for each in frozen]


@pytest.mark.long
async def test_the_zip_says_what_it_is_a_release_of(suite: Suite) -> None:
    ada = suite.client("ada")
    collection, _ = await collected(ada)

    release = await released(ada, collection.id)

    documents = (await get(ada, release.id)).documents
    made = next(each for each in documents if each.format == tp.EXPORT_FORMAT_ZIP)
    with zipfile.ZipFile(io.BytesIO(await flows.fetch(made))) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    assert manifest["release"]["title"] == "Release 1" and not manifest["release"]["draft"]
    assert manifest["release"]["approved"].startswith("ada, 20")


async def test_another_person_approves_if_the_settings_say_so(suite: Suite) -> None:
    await suite.stop("techfiles")
    suite.overrides["release_by_another"] = True
    await suite.serve("techfiles")
    ada, bob = suite.client("ada"), suite.client("bob", owner="user:ada")
    collection, _ = await collected(ada)
    made = await create(ada, collection.id)

    await refused(approve(ada, made.release.id), PRECONDITION, "ada made it", "another person")
    said = await explain(ada, made.release.id)
    approved = await approve(bob, made.release.id)

    [decision] = [each for each in said.findings if each.question == "is it approved?"]
    assert decision.who == "another person" and not decision.ok
    assert approved.release.decided_by == "bob"


async def explain(client: Client, release_id: str) -> rp.ExplainReleaseResponse:
    request = rp.ExplainReleaseRequest(release_id=release_id)
    answer: rp.ExplainReleaseResponse = await service(client).ExplainRelease(request)
    return answer


@pytest.mark.long
async def test_numbers_have_no_gaps_and_one_of_two_drafts_wins(suite: Suite) -> None:
    ada = suite.client("ada")
    collection, _ = await collected(ada)
    one, two = [await create(ada, collection.id, name=name) for name in ("one", "two")]

    answers = await asyncio.gather(
        approve(ada, one.release.id), approve(ada, two.release.id), return_exceptions=True
    )

    [won] = [each for each in answers if not isinstance(each, BaseException)]
    [lost] = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
    assert won.release.number == 1
    assert lost.code() is PRECONDITION
    assert "release 1 is the latest one" in (lost.details() or "")
    loser = two if won.release.id == one.release.id else one
    said = await explain(ada, loser.release.id)
    assert "it can't be approved any more" in said.summary
    assert (await released(ada, collection.id)).number == 2


@pytest.mark.long
async def test_a_withdrawn_release_keeps_its_number_and_is_no_longer_compared_with(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    collection, _ = await collected(ada)
    first = await released(ada, collection.id)
    second = await released(ada, collection.id)
    request = rp.WithdrawReleaseRequest(release_id=second.id, reason="wrong length")

    withdrawn = (await service(ada).WithdrawRelease(request)).release
    third = await released(ada, collection.id)

    assert (withdrawn.number, withdrawn.withdraw_reason) == (2, "wrong length")
    assert (third.number, third.previous_release_id) == (3, first.id)
    await refused(service(ada).WithdrawRelease(request), PRECONDITION, "withdrawn")


@pytest.mark.long
async def test_a_rejected_release_is_final(suite: Suite) -> None:
    ada = suite.client("ada")
    collection, _ = await collected(ada)
    made = await create(ada, collection.id)
    request = rp.RejectReleaseRequest(release_id=made.release.id, note="too short")

    rejected = (await service(ada).RejectRelease(request)).release

    assert rejected.state == rp.RELEASE_STATE_REJECTED and rejected.decision_note == "too short"
    await refused(approve(ada, made.release.id), PRECONDITION, "rejected by ada")
    await refused(service(ada).RejectRelease(request), PRECONDITION, "rejected by ada")


@pytest.mark.long
async def test_what_only_a_model_says_can_be_forbidden(suite: Suite) -> None:
    ada = suite.client("ada")
    collection, file = await collected(ada)
    analysis = json_format.ParseDict({"name": "Parka"}, struct_pb2.Struct())
    request = tf.UpdateTechFileRequest(
        tech_file_id=file.id,
        update_mask={"paths": ["analysis", "model"]},
        analysis=analysis,
        model="seer-1",
    )
    await flows.file_service(ada).UpdateTechFile(request)

    await refused(
        create(ada, collection.id, nothing_merely_found=True),
        PRECONDITION,
        "only a model says: name",
        "UpdateCollectionFacts",
    )
    made = await create(ada, collection.id)
    assert made.release.merely_found_count == 1
    [found] = (await get(ada, made.release.id)).merely_found
    assert (found.key, found.says) == ("name", "Parka")


async def test_what_cannot_be_released_is_refused(suite: Suite) -> None:
    ada = suite.client("ada")
    empty = await flows.collect(ada)
    deleted, _ = await collected(ada)
    old, _ = await collected(ada)
    await restate(ada, old.id, facts(93))
    await flows.collection_service(ada).DeleteCollection(
        col.DeleteCollectionRequest(collection_id=deleted.id)
    )

    await refused(create(ada, empty.id), PRECONDITION, "no finished file", "GenerateTechPack")
    await refused(create(ada, deleted.id), PRECONDITION, "UndeleteCollection")
    await refused(create(ada, NOBODY), NOT_FOUND)
    await refused(create(ada, old.id, collection_etag=old.etag), ABORTED)
    await refused(create(suite.client("bob"), old.id), NOT_FOUND)
    assert suite.sql("SELECT count(*) FROM techfiles.releases") == [(0,)]
    assert suite.sql("SELECT count(*) FROM techfiles.exports") == [(0,)]


async def test_what_a_run_still_fills_is_not_released(suite: Suite) -> None:
    await suite.stop_work("techfiles")
    ada = suite.client("ada")
    run = await flows.generate(ada, await flows.revisions(ada, "front"))

    await refused(create(ada, run.collection_id), PRECONDITION, run.id, "WatchTechPackRun")


async def test_a_draft_without_a_document_is_not_approved(suite: Suite) -> None:
    await suite.stop_work("techfiles")
    ada = suite.client("ada")
    collection, _ = await collected(ada)
    made = await create(ada, collection.id, wait=False)

    await refused(approve(ada, made.release.id, wait=False), PRECONDITION, "document is pending")
    request = rp.MakeReleaseDocumentsRequest(release_id=made.release.id)
    await refused(service(ada).MakeReleaseDocuments(request), PRECONDITION, "on its way")
    assert "a worker" in {each.who for each in (await explain(ada, made.release.id)).findings}


@pytest.mark.long
async def test_releases_of_two_products_are_not_compared(suite: Suite) -> None:
    ada = suite.client("ada")
    one, _ = await collected(ada)
    two, _ = await collected(ada, product_id="product-2")
    first, second = [(await create(ada, each.id)).release for each in (one, two)]

    request = rp.CompareReleasesRequest(before_release_id=first.id, after_release_id=second.id)
    await refused(service(ada).CompareReleases(request), INVALID, "of one product")
    request = rp.CompareReleasesRequest(after_release_id=second.id)
    await refused(service(ada).CompareReleases(request), PRECONDITION, "before_release_id")


@pytest.mark.long
async def test_what_a_release_needs_is_kept_and_freed_with_it(suite: Suite) -> None:
    ada = suite.client("ada")
    collection, file = await collected(ada)
    release = (await create(ada, collection.id)).release
    [document] = (await get(ada, release.id)).documents
    exports, collections = export_service(ada), flows.collection_service(ada)
    picture = file.file_asset_id

    of_collection = col.DeleteCollectionRequest(collection_id=collection.id)
    await refused(collections.DeleteCollection(of_collection), PRECONDITION, release.id)
    purge = col.PurgeCollectionRequest(collection_id=collection.id)
    await refused(collections.PurgeCollection(purge), PRECONDITION, "PurgeRelease")
    of_document = ex.DeleteExportRequest(export_id=document.id)
    await refused(exports.DeleteExport(of_document), PRECONDITION, "DeleteRelease")
    gone = ex.PurgeExportRequest(export_id=document.id)
    await refused(exports.PurgeExport(gone), PRECONDITION, "PurgeRelease")
    await flows.file_service(ada).PurgeTechFile(tf.PurgeTechFileRequest(tech_file_id=file.id))
    await upkeep(suite)
    settle(suite)
    await upkeep(suite)
    assert len(await holders(ada, picture)) == 1  # the release has the picture still

    await service(ada).DeleteRelease(rp.DeleteReleaseRequest(release_id=release.id))
    expire(suite, "releases", release.id)
    await upkeep(suite)
    settle(suite)
    await upkeep(suite)
    assert not await holders(ada, picture)
    assert not objects(suite, collection.id)
    await refused(get(ada, release.id), NOT_FOUND)
    await collections.DeleteCollection(of_collection)


async def test_a_release_is_not_printed_without_a_picture_that_was_purged(suite: Suite) -> None:
    ada = suite.client("ada")
    collection, file = await collected(ada)
    release = (await create(ada, collection.id)).release
    assets = ada.stub(asset_pb2_grpc.AssetServiceStub)
    picture = file.file_asset_id
    suite.sql(
        "UPDATE techfiles.exports SET bytes_gone_at = now(), bytes_gone_reason = 'lost'"
        " RETURNING id"
    )

    await assets.DeleteAsset(asset_pb2.DeleteAssetRequest(asset_id=picture, force=True))
    await assets.PurgeAsset(asset_pb2.PurgeAssetRequest(asset_id=picture, force=True))
    request = rp.MakeReleaseDocumentsRequest(release_id=release.id)
    await service(ada).MakeReleaseDocuments(request)

    document = await document_of(ada, release.id)
    assert (document.state, document.error_class) == (tp.EXPORT_STATE_FAILED, "PICTURE_GONE")
    assert picture in document.error_message and "CreateRelease" in document.error_message


async def document_of(client: Client, release_id: str) -> tp.Export:
    """Returns the only document of a release once it has ended."""
    async with asyncio.timeout(60):
        while True:
            [document] = (await get(client, release_id)).documents
            if document.state in (tp.EXPORT_STATE_COMPLETED, tp.EXPORT_STATE_FAILED):
                made: tp.Export = document
                return made
            await asyncio.sleep(0.1)


@pytest.mark.long
async def test_an_approved_release_and_what_others_are_compared_with_stay(suite: Suite) -> None:
    ada = suite.client("ada")
    collection, _ = await collected(ada)
    first = await released(ada, collection.id)
    second = await released(ada, collection.id)
    purge = rp.PurgeReleaseRequest(release_id=first.id)

    await refused(service(ada).PurgeRelease(purge), PRECONDITION, "WithdrawRelease")
    delete = rp.DeleteReleaseRequest(release_id=second.id)
    await refused(service(ada).DeleteRelease(delete), PRECONDITION, "WithdrawRelease")
    for release in (first, second):
        await service(ada).WithdrawRelease(
            rp.WithdrawReleaseRequest(release_id=release.id, reason="a test")
        )
    await refused(service(ada).PurgeRelease(purge), PRECONDITION, second.id)
    for release in (second, first):
        await service(ada).PurgeRelease(rp.PurgeReleaseRequest(release_id=release.id))
    assert (await released(ada, collection.id)).number == 3


@pytest.mark.long
async def test_a_deleted_release_comes_back_as_it_was(suite: Suite) -> None:
    ada = suite.client("ada")
    collection, _ = await collected(ada)
    release = (await create(ada, collection.id)).release

    await service(ada).DeleteRelease(rp.DeleteReleaseRequest(release_id=release.id))
    shown = await service(ada).ListReleases(rp.ListReleasesRequest())
    await refused(approve(ada, release.id), PRECONDITION, "UndeleteRelease")
    await service(ada).UndeleteRelease(rp.UndeleteReleaseRequest(release_id=release.id))

    assert not shown.releases
    assert (await approve(ada, release.id)).release.number == 1


@pytest.mark.long
async def test_retention_leaves_documents_of_releases_alone(suite: Suite) -> None:
    ada = suite.client("ada")
    collection, _ = await collected(ada)
    release = await released(ada, collection.id)
    await flows.export(ada, collection.id, format=tp.EXPORT_FORMAT_PDF)
    suite.overrides["retention_export_days"] = 1
    suite.sql("UPDATE techfiles.exports SET ended_at = now() - interval '2 days' RETURNING id")

    await upkeep(suite)

    documents = (await get(ada, release.id)).documents
    assert len(documents) == 3 and all(each.file_url for each in documents)
    [(gone,)] = suite.sql("SELECT count(*) FROM techfiles.exports WHERE bytes_gone_at IS NOT NULL")
    assert gone == 1


async def test_a_large_release_is_read_in_pages(suite: Suite) -> None:
    ada = suite.client("ada")
    collection, _ = await collected(ada)
    for view in (tf.VIEW_TYPE_BACK, tf.VIEW_TYPE_SIDE):
        file = await flows.create(ada, view_type=view)
        await add(ada, collection.id, file.id)
    release = (await create(ada, collection.id, wait=False)).release
    assert release.file_count == 3

    first = await get(ada, release.id, page_size=2)
    rest = await get(ada, release.id, page_size=2, page_token=first.next_page_token)

    assert [len(first.files), len(rest.files), rest.next_page_token] == [2, 1, ""]
    assert len({each.tech_file_id for each in (*first.files, *rest.files)}) == 3


@pytest.mark.long
async def test_releases_that_differ_in_large_facts_are_compared_in_one_answer(
    suite: Suite,
) -> None:
    await suite.stop_work("techfiles")
    ada = suite.client("ada")
    stated = flows.large_facts()
    del stated.materials[400:]
    collection, _ = await collected(ada, facts=stated)
    before = (await create(ada, collection.id, wait=False)).release
    for material in stated.materials:
        material.supplier = material.supplier[1:]
    await restate(ada, collection.id, stated)
    after = (await create(ada, collection.id, wait=False)).release

    request = rp.CompareReleasesRequest(before_release_id=before.id, after_release_id=after.id)
    answer = await service(ada).CompareReleases(request)

    assert answer.ByteSize() < 4 * 1024 * 1024
    assert len(answer.facts.materials) + answer.facts.left_out == 400
