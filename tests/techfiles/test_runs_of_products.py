"""A run takes facts, confirmed values and pictures from a product of `pipeline`, pictures from base
views and from URLs, and says what is missing."""

import io
import json
import uuid
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from atelier.common.v1 import facts_pb2
from atelier.pipeline.v1 import product_pb2, result_pb2, review_pb2
from atelier.techfiles.v1 import collection_pb2 as col
from atelier.techfiles.v1 import tech_file_pb2 as tf
from atelier.techfiles.v1 import tech_pack_pb2 as tp
from google.protobuf import json_format

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.pipeline import flows as pipeline_flows
from tests.pipeline.test_reviews import submit
from tests.receiver import Receiver, receiving, replying
from tests.suite import Client, Suite
from tests.techfiles import flows

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
SKIP: dict[str, Any] = {"skip_closeups": True, "skip_sketches": True}


@pytest.fixture
async def suite(suite: Suite) -> Suite:
    suite.overrides["outbound_allowed_networks"] = "127.0.0.0/8"
    await suite.serve("assets", "conversions", "pipeline", "techfiles")
    await suite.work("assets", "pipeline")
    return suite


@pytest.fixture
async def web() -> AsyncIterator[Receiver]:
    async with receiving(replying(200, flows.photo("back"))) as receiver:
        yield receiver


async def unsure_product(ada: Client) -> tuple[product_pb2.Product, review_pb2.Review]:
    """Returns a product whose phase 1 waits for a person."""
    front = await asset_flows.upload(ada, flows.photo("front"))
    created = await pipeline_flows.outside(ada, front.id)
    claimed = await pipeline_flows.claim(ada, created.id, 1)
    said = pipeline_flows.analysis("Jacket", model="X-1", condition="new", brands=["Nobody's"])
    await pipeline_flows.complete(ada, claimed, said, confidence=0.42, provider="ours")
    request = review_pb2.ListReviewsRequest(product_id=created.id)
    [review] = (await pipeline_flows.reviews(ada).ListReviews(request)).reviews
    return created, review


async def generate(ada: Client, **fields: Any) -> tp.TechPackRun:
    return await flows.generate(ada, [], **{"product_id": "", **SKIP, **fields})


async def sources_of(ada: Client, run: tp.TechPackRun) -> tuple[facts_pb2.Facts, dict[str, Any]]:
    shown = await flows.contents(ada, run.collection_id)
    return shown.facts, json_format.MessageToDict(shown.fact_sources)


async def test_what_a_person_confirmed_stands_in_the_pack_with_its_source(suite: Suite) -> None:
    ada = suite.client("ada")
    product, review = await unsure_product(ada)
    said = pipeline_flows.analysis("Field coat", model="FC-9", condition="used")
    await pipeline_flows.reviews(ada).SubmitReview(submit(review, "EDIT", value=said))

    waits = generate(ada, source_product_id=product.id)
    await refused(waits, PRECONDITION, "PROCESSING", "WatchProduct", "allow_unfinished_product")
    added = facts_pb2.Facts(
        product=facts_pb2.ProductFacts(condition="restored"), care=["wash cold"]
    )
    run = await generate(
        ada,
        source_product_id=product.id,
        allow_unfinished_product=True,
        facts=added,
        category="outerwear",
    )

    assert (run.product_id, run.source_product_id) == (product.id, product.id)
    assert [step.name for step in run.steps][:2] == ["category", "base_view/front"]
    facts, sources = await sources_of(ada, run)
    assert (facts.product.name, facts.product.model) == ("Field coat", "FC-9")
    assert (facts.product.condition, list(facts.care)) == ("restored", ["wash cold"])
    assert facts.materials == product.facts.materials

    name = sources["product.name"]
    assert (name["source"], name["by"], name["phase"]) == ("confirmed", "ada", 1)
    assert (name["review_id"], name["model"], name["corrected"]) == (review.id, "ours", True)
    assert round(name["confidence"], 2) == 0.42
    assert sources["materials"]["source"] == "supplied"
    assert facts.product.category == "outerwear"
    assert sources["product.category"]["instead_of"]["value"] == "apparel"
    condition = sources["product.condition"]
    assert condition["source"] == "supplied" and condition["by"] == "ada"
    assert condition["instead_of"]["value"] == "used"
    assert condition["instead_of"]["source"] == "confirmed"
    assert sources["care"] == {"source": "supplied", "by": "ada"}


async def test_a_pack_says_who_confirmed_a_fact_until_somebody_states_another(
    suite: Suite,
) -> None:
    await suite.work("conversions", "techfiles")
    ada, eve = suite.client("ada"), suite.client("eve", owner="user:ada")
    product, review = await unsure_product(ada)
    said = pipeline_flows.analysis("Field coat", model="FC-9", condition="new")
    await pipeline_flows.reviews(ada).SubmitReview(submit(review, "EDIT", value=said))
    run = await generate(ada, source_product_id=product.id, allow_unfinished_product=True)
    run = await flows.ended(ada, run.id)
    collection_id = run.collection_id
    facts, sources = await sources_of(ada, run)

    async def text(**fields: Any) -> str:
        made = await flows.export(ada, collection_id, format=tp.EXPORT_FORMAT_PDF, **fields)
        return flows.text_of(await flows.fetch(made))

    printed = await text()
    on = sources["product.name"]["at"][:10]
    assert "corrected" not in sources["product.condition"], "the model had said the same"
    assert f"corrected by ada on {on}" in printed and f"confirmed by ada on {on}" in printed
    assert "asked about what ours said, 42 % sure" in printed
    assert "confirmed by ada" not in await text(facts=facts_pb2.Facts(care=["wash cold"]))
    assert "confirmed by ada" in await text(facts=facts)

    service = flows.collection_service(ada)
    changed = facts_pb2.Facts()
    changed.CopyFrom(facts)
    changed.product.name = "Rain coat"
    changed.product.ClearField("model")
    await flows.collection_service(eve).UpdateCollectionFacts(
        col.UpdateCollectionFactsRequest(collection_id=collection_id, facts=changed)
    )
    _, after = await sources_of(ada, run)
    assert after["product.condition"] == sources["product.condition"]
    assert after["materials"] == sources["materials"]
    name = after["product.name"]
    assert (name["source"], name["by"]) == ("supplied", "eve") and name["at"]
    assert (name["instead_of"]["by"], name["instead_of"]["version"]) == ("ada", 1)
    assert after["product.model"]["instead_of"]["version"] == 1

    request = col.ListCollectionFactsVersionsRequest(collection_id=collection_id)
    versions = (await service.ListCollectionFactsVersions(request)).versions
    kept = [json_format.MessageToDict(each.fact_sources) for each in versions]
    assert kept == [after, sources]
    restore = col.RestoreCollectionFactsRequest(collection_id=collection_id, number=1)
    await service.RestoreCollectionFacts(restore)
    assert await sources_of(ada, run) == (facts, sources)
    archive = await flows.export(ada, collection_id, format=tp.EXPORT_FORMAT_ZIP)
    with zipfile.ZipFile(io.BytesIO(await flows.fetch(archive))) as members:
        listed = json.loads(members.read("07-documents/fact-sources.json"))
    assert listed == sources


@pytest.mark.long
async def test_a_completed_product_is_made_into_a_pack(suite: Suite) -> None:
    await suite.work("conversions", "techfiles")
    ada = suite.client("ada")
    product, review = await unsure_product(ada)
    await pipeline_flows.reviews(ada).SubmitReview(submit(review, "APPROVE"))
    seo = result_pb2.SeoAnalysis(title="Jacket", description="found by a model")
    values = {
        2: result_pb2.PhaseValue(market_research=result_pb2.MarketResearch()),
        3: result_pb2.PhaseValue(seo_analysis=seo),
        4: result_pb2.PhaseValue(product_listing=result_pb2.ProductListing(title="Jacket")),
    }
    for phase, value in values.items():
        claimed = await pipeline_flows.claim(ada, product.id, phase)
        await pipeline_flows.complete(ada, claimed, value, confidence=0.9, provider="ours")
    shown = await pipeline_flows.get(ada, product.id)
    assert shown.product.state == product_pb2.PRODUCT_STATE_COMPLETED

    run = await generate(ada, source_product_id=product.id)
    run = await flows.ended(ada, run.id)
    assert run.state == tp.RUN_STATE_COMPLETED, run
    assert (run.product_id, run.source_product_id) == (product.id, product.id)
    assert [step.name for step in run.steps if step.state == tp.STEP_STATE_COMPLETED] == [
        "category",
        "base_view/front",
        "pack",
    ]
    facts, sources = await sources_of(ada, run)
    assert (facts.product.name, facts.product.model) == ("Jacket", "X-1")
    assert facts.product.description != seo.description, "what only a model found is no fact"
    approved = sources["product.condition"]
    assert (approved["source"], approved["by"]) == ("confirmed", "ada")
    assert "corrected" not in approved
    export = await flows.pack_service(ada).GetExport(tp.GetExportRequest(export_id=run.export_id))
    printed = flows.text_of(await flows.fetch(export.export))
    assert "confirmed by ada on" in printed and "corrected by" not in printed


async def test_a_product_that_waits_for_a_person_says_which_call_helps(suite: Suite) -> None:
    ada = suite.client("ada")
    product, review = await unsure_product(ada)
    waits = generate(ada, source_product_id=product.id)
    await refused(waits, PRECONDITION, "AWAITING_REVIEW", review.id, "SubmitReview")

    bob = suite.client("bob")
    theirs = generate(bob, source_product_id=product.id)
    await refused(theirs, flows.NOT_FOUND, product.id)
    nowhere = str(uuid.uuid4())
    await refused(generate(ada, source_product_id=nowhere), flows.NOT_FOUND, nowhere)
    await refused(generate(ada, source_product_id="jacket-1"), INVALID, "source_product_id")
    await refused(generate(ada), INVALID, "product_id or source_product_id")

    image = product_pb2.NewImage(asset_id=product.images[0].asset_id)
    blind = await pipeline_flows.create(ada, images=[image])
    pictureless = generate(ada, source_product_id=blind.id, allow_unfinished_product=True)
    await refused(pictureless, PRECONDITION, "which view it shows", "revisions")
    for table in ("collections", "tech_files", "runs"):
        assert suite.sql(f"SELECT count(*) FROM techfiles.{table}") == [(0,)]


async def test_revisions_are_told_by_their_ids_alone(suite: Suite) -> None:
    ada = suite.client("ada")
    front = await asset_flows.upload(ada, flows.photo("front"))
    back = await asset_flows.upload(ada, flows.photo("back"))

    async def base_view(revision: str, view: int, asset_id: str, **fields: Any) -> tf.TechFile:
        return await flows.create(
            ada,
            file_type=tf.TECH_FILE_TYPE_BASE_VIEW,
            revision_id=revision,
            view_type=view,
            file_asset_id=asset_id,
            **fields,
        )

    one = await base_view("rev-1", tf.VIEW_TYPE_FRONT, front.id)
    await base_view("rev-2", tf.VIEW_TYPE_BACK, back.id)
    other = await base_view("rev-1", tf.VIEW_TYPE_FRONT, front.id, product_id="another")
    sketch = await flows.create(ada)

    async def ask(*ids: str, **fields: Any) -> tp.TechPackRun:
        return await generate(ada, product_id=flows.PRODUCT, revision_ids=ids, **fields)

    run = await ask(one.id, "rev-2")
    assert [step.name for step in run.steps][1:3] == ["base_view/front", "base_view/back"]
    files = [(await flows.get(ada, step.tech_file_id)) for step in run.steps[1:3]]
    assert [file.file_asset_id for file in files] == [front.id, back.id]
    assert [file.revision_id for file in files] == ["rev-1", "rev-2"]

    await refused(ask(other.id), INVALID, "revision_ids[0]", "another", flows.PRODUCT)
    await refused(ask(sketch.id), INVALID, "revision_ids[0]", "is a sketch")
    await refused(ask("rev-2", front.id), INVALID, "revision_ids[1]", "no base view")
    await refused(ask(one.id, "rev-1"), INVALID, "revision_ids", "the front")

    image = product_pb2.NewImage(asset_id=back.id, view="back")
    product = await pipeline_flows.create(ada, images=[image])
    told = await ask(back.id, source_product_id=product.id, allow_unfinished_product=True)
    assert [step.name for step in told.steps][1] == "base_view/back"


async def test_pictures_at_urls_become_assets_and_what_is_none_is_refused(
    suite: Suite, web: Receiver
) -> None:
    ada = suite.client("ada")
    url = f"http://127.0.0.1:{web.port}/back.jpg"

    async def ask(at: str, **fields: Any) -> tp.TechPackRun:
        picture = tp.PackRevision(view=tf.VIEW_TYPE_BACK, image_url=at)
        return await flows.generate(ada, [picture], primary_image_url=at, **{**SKIP, **fields})

    run = await ask(url, request_id="once")
    assert (await ask(url, request_id="once")).id == run.id
    file = await flows.get(ada, run.steps[1].tech_file_id, include_urls=True)
    assert file.file_url and file.revision_id == file.file_asset_id
    assert suite.sql("SELECT count(*) FROM assets.assets") == [(2,)]

    web.reply = replying(200, b"<html>", content_type="image/jpeg")
    await refused(ask(url), INVALID, "revisions[0].image_url", "no picture")
    await refused(ask("ftp://example.org/a.jpg"), INVALID, "url")
    both = tp.PackRevision(view=tf.VIEW_TYPE_BACK, image_url=url, asset_id=file.file_asset_id)
    await refused(flows.generate(ada, [both]), INVALID, "either asset_id or image_url")
    assert suite.sql("SELECT count(*) FROM techfiles.runs") == [(1,)]
