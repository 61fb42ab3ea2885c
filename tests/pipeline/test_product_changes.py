"""What changes of a product promise: phases that begin later take the new values, the answer says
which ones don't, images keep their order and can't be deleted meanwhile, and bad input changes
nothing."""

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import pytest
from atelier.assets.v1 import asset_pb2
from atelier.pipeline.v1 import phase_pb2, product_pb2, result_pb2, review_pb2
from grpc import StatusCode

from services.pipeline import holding
from tests.assets import flows as assets
from tests.calls import refused
from tests.pipeline import flows
from tests.shared.imaging import pictures as documents
from tests.suite import Client, Suite

NONE = product_pb2.MARKET_PROVIDER_NONE


@pytest.fixture
async def suite(own_suite: Suite) -> Suite:
    await own_suite.serve("assets", "pipeline")
    return own_suite


async def update(client: Client, product_id: str, *paths: str, **fields: Any) -> Any:
    mask = {"paths": list(paths or (name for name in fields if name != "etag"))}
    return await flows.change(client, "UpdateProduct", product_id, update_mask=mask, **fields)


async def pictures(client: Client, count: int) -> list[str]:
    return [(await assets.upload(client, assets.jpeg(64, 48, seed))).id for seed in range(count)]


def images(product: product_pb2.Product) -> list[str]:
    return [image.asset_id for image in product.images]


def primary(product: product_pb2.Product) -> str:
    [image] = [image for image in product.images if image.primary]
    return image.asset_id


async def test_a_product_gets_other_values(suite: Suite) -> None:
    ada = suite.client("ada")
    made = await flows.create(ada)
    assert made.name == "Canvas field jacket"

    answer = await update(
        ada, made.id, etag=made.etag, name=" Coat ", auto_advance=False, market_provider=NONE
    )
    changed = answer.product
    assert (changed.name, changed.model, changed.etag) == ("Coat", "KH-4107", "2")
    assert not changed.auto_advance and changed.market_provider == NONE
    assert not answer.outdated_phases, "no phase has begun"
    assert (await flows.get(ada, made.id)).product == changed

    same = await update(ada, made.id, name="Coat", auto_advance=False)
    assert same.product == changed, "nothing changes, so the etag stays"

    other = {**flows.FACTS, "product": flows.FACTS["product"] | {"name": "x", "model": "KH-9"}}
    follows = (await update(ada, made.id, facts=flows.facts(other))).product
    assert (follows.name, follows.model) == ("Coat", "KH-9"), "the model was as in the facts"
    as_in_facts = (await update(ada, made.id, "name", "facts", name="")).product
    assert (as_in_facts.name, as_in_facts.model) == ("", "")
    assert not as_in_facts.HasField("facts") or not as_in_facts.facts.ByteSize()


async def test_the_answer_says_which_phases_rest_on_values_of_before(suite: Suite) -> None:
    await suite.work("pipeline")
    ada = suite.client("ada")
    asset = await assets.upload(ada, flows.photo())
    made = await flows.outside(ada, asset.id, phases=(1, 2, 3, 4))
    claimed = await flows.claim(ada, made.id, 1)
    assert list((await update(ada, made.id, name="Early")).outdated_phases) == [1]

    await flows.complete(ada, claimed, flows.analysis(), confidence=0.9)
    await flows.claim(ada, made.id, 2)
    assert list((await update(ada, made.id, name="Late")).outdated_phases) == [1, 2]
    assert list((await update(ada, made.id, market_provider=NONE)).outdated_phases) == [2]
    assert not (await update(ada, made.id, auto_advance=False)).outdated_phases
    arranged = await flows.change(
        ada, "AddProductImages", made.id, images=[{"asset_id": (await pictures(ada, 1))[0]}]
    )
    assert list(arranged.outdated_phases) == [1, 2]


async def test_a_name_that_is_stated_later_counts_and_a_reviewers_before_no_longer(
    suite: Suite,
) -> None:
    await suite.work("pipeline")
    ada = suite.client("ada")
    asset = await assets.upload(ada, flows.photo())
    made = await flows.outside(ada, asset.id, auto_advance=False)
    claimed = await flows.claim(ada, made.id, 1)
    await flows.complete(ada, claimed, flows.analysis("Coat"), confidence=0.4)
    [review] = (await flows.reviews(ada).ListReviews(review_pb2.ListReviewsRequest())).reviews
    await flows.reviews(ada).SubmitReview(
        review_pb2.SubmitReviewRequest(
            review_id=review.id,
            etag=review.etag,
            decision=review_pb2.REVIEW_DECISION_EDIT,
            value=flows.analysis("Reviewed coat", condition="worn"),
        )
    )
    assert (await flows.get(ada, made.id)).product.name == "Reviewed coat"

    changed = (await update(ada, made.id, name="Owner's coat")).product
    assert changed.name == "Owner's coat"

    # What phase 4 finds is overridden by what people said: the condition still, the name no longer.
    for number in (2, 3):
        suite.sql(
            "UPDATE pipeline.phases SET state = 'completed' WHERE product_id = %s AND number = %s",
            (made.id, number),
        )
    start = phase_pb2.StartPhaseRequest(product_id=made.id, phase=4)
    await flows.phases(ada).StartPhase(start)
    listing = await flows.claim(ada, made.id, 4)
    value = result_pb2.PhaseValue(product_listing=result_pb2.ProductListing(title="A coat"))
    answer = await flows.complete(ada, listing, value)
    assert answer.result.value.product_listing.condition == "worn"
    assert (await flows.get(ada, made.id)).product.name == "Owner's coat"


async def test_phases_that_begin_later_take_what_was_stated_since_phase_1(suite: Suite) -> None:
    await suite.work("pipeline")
    ada = suite.client("ada")
    csv = b"name,price,currency\nparka,9.00,EUR\n"
    await flows.price_book(ada).ImportPriceBook(flows.book(csv))
    asset = await assets.upload(ada, flows.photo())
    fields: dict[str, Any] = {"stated": {}, "name": "Coat", "auto_advance": False}
    made = await flows.create(ada, asset.id, run_phases_externally=[1], **fields)
    watching = flows.watch(ada, made.id)
    await watching.until(lambda change: change.phase.number == 1 and change.phase.due)
    claimed = await flows.claim(ada, made.id, 1)
    await flows.complete(ada, claimed, flows.analysis("Coat"), confidence=0.9)

    answer = await update(ada, made.id, name="Parka")
    assert list(answer.outdated_phases) == [1]
    start = phase_pb2.StartPhaseRequest(product_id=made.id, phase=2)
    await flows.phases(ada).StartPhase(start)
    found = await watching.until(lambda change: change.result.phase == 2)
    await watching.close()
    assert found.result.value.market_research.marketplace.price.amount == 9.0


async def test_another_condition_in_the_facts_counts_from_then_on(suite: Suite) -> None:
    await suite.work("pipeline")
    ada = suite.client("ada")
    asset = await assets.upload(ada, flows.photo())
    made = await flows.outside(ada, asset.id, phases=(1,))
    used = {**flows.FACTS, "product": flows.FACTS["product"] | {"condition": "used"}}
    await update(ada, made.id, facts=flows.facts(used))
    watching = flows.watch(ada, made.id)
    await watching.until(lambda change: change.phase.number == 1 and change.phase.due)
    await watching.close()
    request = phase_pb2.ClaimNextPhaseRequest(request_id=flows.request_id(), phases=[1])
    claimed = await flows.phases(ada).ClaimNextPhase(request)
    assert claimed.facts.product.condition == "used"


async def test_values_that_can_not_be_are_refused(suite: Suite) -> None:
    ada, eve = suite.client("ada"), suite.client("eve")
    made = await flows.create(ada)
    bad = StatusCode.INVALID_ARGUMENT
    empty = flows.change(ada, "UpdateProduct", made.id, update_mask={})
    await refused(empty, bad, "at least one field")
    await refused(flows.change(ada, "UpdateProduct", made.id), bad, "update_mask")
    await refused(update(ada, made.id, "state"), bad, "update_mask")
    await refused(update(ada, made.id, "facts.product"), bad)
    await refused(update(ada, made.id, name="x" * 301), bad)
    unsaid = await refused(update(ada, made.id, "market_provider"), bad)
    assert unsaid.fields == ["market_provider"]
    await refused(update(eve, made.id, name="x"), StatusCode.NOT_FOUND)
    await refused(update(ada, str(uuid.uuid4()), name="x"), StatusCode.NOT_FOUND)
    assert (await flows.get(ada, made.id)).product == made


async def test_a_repeat_is_carried_out_once_and_an_etag_of_before_changes_nothing(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    made = await flows.create(ada)
    first = await update(ada, made.id, "name", name="Coat", request_id="r1")
    again = await update(ada, made.id, "name", name="Coat", request_id="r1")
    assert first == again

    [other] = await pictures(ada, 1)
    old: dict[str, Any] = {"etag": made.etag}
    calls = [
        update(ada, made.id, "name", name="x", **old),
        flows.change(ada, "AddProductImages", made.id, images=[{"asset_id": other}], **old),
        flows.change(ada, "RemoveProductImages", made.id, asset_ids=[other], **old),
        flows.change(ada, "ArrangeProductImages", made.id, primary_asset_id=other, **old),
        flows.change(ada, "ArchiveProduct", made.id, **old),
        flows.change(ada, "UnarchiveProduct", made.id, **old),
        flows.change(ada, "DeleteProduct", made.id, **old),
        flows.change(ada, "UndeleteProduct", made.id, **old),
        flows.change(ada, "PurgeProduct", made.id, **old),
    ]
    for call in calls:
        assert (await refused(call, StatusCode.ABORTED)).reason == "ETAG_MISMATCH"
    assert (await flows.get(ada, made.id)).product == first.product


async def test_of_two_updates_at_once_with_one_etag_one_is_refused(suite: Suite) -> None:
    ada = suite.client("ada")
    made = await flows.create(ada)
    calls = [update(ada, made.id, "name", name=name, etag=made.etag) for name in ("a", "b")]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    [kept] = [end for end in ends if not isinstance(end, BaseException)]
    assert (await flows.get(ada, made.id)).product.name == kept.product.name
    assert sorted(isinstance(end, BaseException) for end in ends) == [False, True]


async def test_images_are_added_removed_and_arranged(suite: Suite) -> None:
    ada = suite.client("ada")
    a, b, c, d = await pictures(ada, 4)
    made = await flows.create(ada, a, b)
    assert primary(made) == a and not made.images[0].HasField("size_bytes")

    added = await flows.change(
        ada,
        "AddProductImages",
        made.id,
        images=[{"asset_id": c, "view": "back"}, {"asset_id": a, "view": "side"}],
        position=1,
    )
    assert images(added.product) == [a, c, b] and primary(added.product) == a
    assert [image.view for image in added.product.images] == ["front", "back", "front"]
    new = added.product.images[1]
    assert (new.mime_type, new.width, new.height) == ("image/jpeg", 64, 48)
    assert new.size_bytes > 0 and new.file_name

    last = {"asset_id": d, "primary": True}
    there = (await flows.change(ada, "AddProductImages", made.id, images=[last])).product
    assert images(there) == [a, c, b, d] and primary(there) == d
    again = (await flows.change(ada, "AddProductImages", made.id, images=[last])).product
    assert again == there, "it has its place already"

    order = [b, d, a, c]
    arranged = (
        await flows.change(
            ada, "ArrangeProductImages", made.id, asset_ids=order, primary_asset_id=c.upper()
        )
    ).product
    assert images(arranged) == order and primary(arranged) == c

    gone = [c.upper(), str(uuid.uuid4())]
    removed = (await flows.change(ada, "RemoveProductImages", made.id, asset_ids=gone)).product
    assert images(removed) == [b, d, a] and primary(removed) == b
    assert (await flows.get(ada, made.id)).product == removed


async def test_images_that_can_not_be_used_change_nothing(suite: Suite) -> None:
    ada, eve = suite.client("ada"), suite.client("eve")
    mine, other = await pictures(ada, 2)
    [hers] = await pictures(eve, 1)
    pdf = await assets.upload(
        ada,
        documents.pdf(1),
        kind=asset_pb2.ASSET_KIND_DOCUMENT,
        mime_type="application/pdf",
    )
    pending = (await assets.announce(ada, flows.photo())).asset.id
    made = await flows.create(ada, mine)
    bad = StatusCode.INVALID_ARGUMENT

    def add(*ids: str) -> Any:
        return flows.change(
            ada, "AddProductImages", made.id, images=[{"asset_id": each} for each in ids]
        )

    for ids, field in (((other, hers), "images[1].asset_id"), ((str(uuid.uuid4()),), "images[0]")):
        refusal = await refused(add(*ids), StatusCode.NOT_FOUND)
        assert refusal.metadata["field"].startswith(field)
    await refused(add(other, pdf.id), bad, "picture is needed")
    await refused(add(other, pending), StatusCode.FAILED_PRECONDITION, "confirm its upload")
    await refused(add(other, other.upper()), bad, "same asset")
    await refused(add(*[str(uuid.uuid4()) for _ in range(1000)]), bad, "16")
    many = await pictures(ada, 18)
    await refused(add(*many[2:]), bad, "would have 17 images; it may have 16")

    def call(rpc: str, **fields: Any) -> Any:
        return flows.change(ada, rpc, made.id, **fields)

    await refused(call("RemoveProductImages", asset_ids=[mine]), bad, "PurgeProduct")
    await refused(call("RemoveProductImages", asset_ids=[]), bad)
    await refused(call("ArrangeProductImages"), bad, "must name the images")
    await refused(call("ArrangeProductImages", asset_ids=[other]), bad, "each image")
    await refused(call("ArrangeProductImages", asset_ids=[mine, mine.upper()]), bad, "same asset")
    stranger = call("ArrangeProductImages", primary_asset_id=other)
    assert (await refused(stranger, bad)).fields == ["primary_asset_id"]
    theirs = flows.change(eve, "RemoveProductImages", made.id, asset_ids=[mine])
    await refused(theirs, StatusCode.NOT_FOUND)
    assert (await flows.get(ada, made.id)).product == made


async def test_a_product_holds_its_images_until_they_leave_it(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "_SETTLED_AFTER", timedelta(seconds=1))
    ada = suite.client("ada")
    a, b, c = await pictures(ada, 3)
    made = await flows.create(ada, a, b, run_phases_externally=[1])
    add = flows.change(ada, "AddProductImages", made.id, images=[{"asset_id": c}])
    await add
    assert flows.held(suite, made.id) == {c}, "at once, without a worker"
    await suite.work("pipeline")
    await flows.held_are(suite, made.id, [a, b, c])

    delete = asset_pb2.DeleteAssetRequest(asset_id=c)
    in_use = await refused(
        assets.assets(ada).DeleteAsset(delete),
        StatusCode.FAILED_PRECONDITION,
        "RemoveProductImages or PurgeProduct",
    )
    assert in_use.reason == "IN_USE"

    await flows.change(ada, "RemoveProductImages", made.id, asset_ids=[c])
    await flows.held_are(suite, made.id, [a, b])
    await assets.assets(ada).DeleteAsset(delete)
    async with asyncio.timeout(20):
        while suite.sql("SELECT FROM pipeline.product_releases"):
            await asyncio.sleep(0.05)


async def test_images_show_their_files_once_they_are_ready(suite: Suite) -> None:
    await suite.work("pipeline")
    ada = suite.client("ada")
    asset = await assets.upload(ada, flows.photo(), file_name="Jacke vorn.jpg")
    made = await flows.outside(ada, asset.id)
    [image] = (await flows.get(ada, made.id)).product.images
    assert (image.file_name, image.size_bytes) == ("Jacke vorn.jpg", asset.size_bytes)
    assert (image.mime_type, image.width, image.height) == ("image/jpeg", 480, 640)
    listed = await flows.products(ada).ListProducts(product_pb2.ListProductsRequest())
    assert listed.products[0].images[0].file_name == "Jacke vorn.jpg"


async def test_a_product_with_an_unusable_image_goes_on_with_another(suite: Suite) -> None:
    await suite.work("pipeline")
    ada, eve = suite.client("ada"), suite.client("eve")
    [mine], [hers] = await pictures(ada, 1), await pictures(eve, 1)
    made = await flows.create(ada, hers, run_phases_externally=[1])
    watching = flows.watch(ada, made.id)
    failed = await watching.until(flows.product_is(product_pb2.PRODUCT_STATE_ERROR))
    assert "RemoveProductImages" in failed.product.error_message

    await flows.change(ada, "AddProductImages", made.id, images=[{"asset_id": mine}])
    await flows.change(ada, "RemoveProductImages", made.id, asset_ids=[hers])
    await flows.phases(ada).RetryPhase(phase_pb2.RetryPhaseRequest(product_id=made.id, phase=1))
    await watching.until(lambda change: change.phase.number == 1 and change.phase.due)
    assert flows.held(suite, made.id) == {mine}
    await watching.close()


async def test_a_market_endpoint_that_is_not_set_is_refused(suite: Suite) -> None:
    ada = suite.client("ada")
    made = await flows.create(ada)
    http = product_pb2.MARKET_PROVIDER_HTTP
    await refused(
        update(ada, made.id, market_provider=http),
        StatusCode.FAILED_PRECONDITION,
        "ATELIER_MARKET_URL",
    )


@pytest.mark.long
async def test_what_is_stated_while_phase_1_runs_counts_and_breaks_no_later_attempt(
    own_suite: Suite,
) -> None:
    suite = own_suite
    await suite.serve("assets", "conversions", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    made = await flows.create(ada)
    while not suite.sql("SELECT 1 FROM conversions.analyses"):  # nobody makes it yet
        await asyncio.sleep(0.05)
    await update(ada, made.id, name="Stated meanwhile")
    await suite.stop_work("pipeline")
    await suite.work("pipeline")  # another attempt, which asks with the new name
    while len(suite.sql("SELECT 1 FROM conversions.analyses")) < 2:
        await asyncio.sleep(0.05)
    await update(ada, made.id, name="Stated last")

    watching = flows.watch(ada, made.id)
    await suite.work("assets", "conversions")
    await watching.until(flows.phase_is(3, phase_pb2.PHASE_STATE_COMPLETED), seconds=60)
    await watching.close()

    shown = await flows.get(ada, made.id)
    assert shown.product.name == "Stated last"
    assert "Stated last" in shown.results[2].value.seo_analysis.title
