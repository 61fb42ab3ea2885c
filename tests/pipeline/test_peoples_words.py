"""What a person said in a review holds for everything that follows, whatever later phases find and
whoever runs them."""

from typing import Any

import pytest
from atelier.conversions.v1 import analysis_pb2, analysis_pb2_grpc
from atelier.pipeline.v1 import phase_pb2, product_pb2, result_pb2, review_pb2
from grpc import StatusCode

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.pipeline import flows
from tests.suite import Client, Suite

Value = dict[str, Any]
EUR, USD = {"currency": "EUR"}, {"currency": "USD"}
STATED: Value = {
    "product": {
        "name": "Wrong name",
        "model": "W-1",
        "brand": "Wrong brand",
        "category": "apparel",
        "subcategory": "coat",
        "condition": "new",
        "condition_details": "as new",
        "description": "A wrong coat.",
        "keywords": ["wrong"],
    },
    "price": {"msrp": 10, "currency": "USD"},
    "market": {
        "currency": "USD",
        "price": 11,
        "competitive_price": 12,
        "marketplace": "Wrong shop",
    },
}
FOUND: dict[str, Value] = {
    "product_analysis": {
        "name": "Found name",
        "model": "F-1",
        "condition": "found",
        "condition_details": "found details",
        "categories": ["found", "kind"],
        "brands": ["Found brand"],
        "colours": [{"hex": "#ffffff"}],
        "image_quality": {"score": 0.5},
    },
    "market_research": {
        "marketplace": {"marketplace": "Found shop", "price": {"amount": 20, **USD}},
        "msrp": {"amount": 21, **USD},
        "competitive_price": {"amount": 22, **USD},
        "brand": "Found brand",
        "category": "found",
        "matched_by": "name",
        "offers": [{"marketplace": "Found shop"}],
        "extras": [{"name": "found", "flag": True}],
        "currencies": [{"currency": "EUR", "offer_count": 1}],
    },
    "seo_analysis": {
        "title": "Found title",
        "description": "Found description.",
        "keywords": ["found"],
        "slug": "found",
        "scores": [{"name": "title", "score": 0.5}],
    },
    "product_listing": {
        "title": "Found title",
        "bullets": ["found"],
        "description": "Found description.",
        "price": {"amount": 30, **USD},
        "price_source": "found",
        "category": "found",
        "subcategory": "kind",
        "condition": "found",
        "condition_details": "found details",
    },
}
"""What every phase would say without a person."""

# By phase and field: what a person says, and where else it must then appear: in the facts that
# phase 4 gets, in the listing, in the product. Fields without such a place have no counterpart
# later.
SAID: dict[str, dict[str, tuple[Any, Value]]] = {
    "product_analysis": {
        "name": ("Right name", {"facts.product.name": "Right name", "product.name": "Right name"}),
        "model": ("R-1", {"facts.product.model": "R-1", "product.model": "R-1"}),
        "condition": ("used", {"facts.product.condition": "used", "listing.condition": "used"}),
        "condition_details": (
            "a torn hem",
            {
                "facts.product.condition_details": "a torn hem",
                "listing.condition_details": "a torn hem",
            },
        ),
        "categories": (
            ["shoes"],
            {
                "facts.product.category": "shoes",
                "facts.product.subcategory": None,
                "listing.category": "shoes",
                "listing.subcategory": None,
                "market.category": "shoes",
            },
        ),
        "brands": (
            ["Right brand"],
            {"facts.product.brand": "Right brand", "market.brand": "Right brand"},
        ),
        "colours": ([{"hex": "#102030"}], {}),
        "image_quality": ({"score": 0.25}, {}),
    },
    "market_research": {
        "marketplace": (
            {"marketplace": "Right shop", "price": {"amount": 120.0, **EUR}},
            {
                "facts.market.marketplace": "Right shop",
                "facts.market.price": 120.0,
                "facts.market.currency": "EUR",
            },
        ),
        "msrp": (
            {"amount": 199.0, **EUR},
            {
                "facts.price": {"msrp": 199.0, **EUR},
                "listing.price": {"amount": 199.0, **EUR},
                "listing.price_source": "confirmed",
            },
        ),
        "competitive_price": (
            {"amount": 110.0, **EUR},
            {"facts.market.competitive_price": 110.0, "facts.market.currency": "EUR"},
        ),
        "brand": ("Market brand", {"facts.product.brand": "Market brand"}),
        "category": ("market", {"facts.product.category": "market", "listing.category": "market"}),
        "matched_by": ("a person", {}),
        "offers": ([{"marketplace": "Right shop"}], {}),
        "extras": ([{"name": "right", "flag": True}], {}),
        "currencies": ([{"currency": "USD", "offer_count": 1}], {}),
    },
    "seo_analysis": {
        "title": ("Title by hand", {"listing.title": "Title by hand"}),
        "description": (
            "Said by hand.",
            {"facts.product.description": "Said by hand.", "listing.description": "Said by hand."},
        ),
        "keywords": (["hand"], {"facts.product.keywords": ["hand"]}),
        "slug": ("by-hand", {}),
        "scores": ([{"name": "title", "score": 0.75}], {}),
    },
    "product_listing": {
        "title": ("Listed by hand", {}),
        "bullets": (["by hand"], {}),
        "description": ("Listed by hand.", {}),
        "price": ({"amount": 31.0, **EUR}, {}),
        "price_source": ("a person", {}),
        "category": ("hand", {}),
        "subcategory": ("made", {}),
        "condition": ("mended", {}),
        "condition_details": ("by hand", {}),
        "images": ([{"asset_id": "0193a1b2-0000-7000-8000-000000000000"}], {}),
    },
}
KINDS = list(SAID)


def value(kind: str, fields: Value) -> result_pb2.PhaseValue:
    made = result_pb2.PhaseValue(**{kind: fields})
    getattr(made, kind).SetInParent()
    return made


async def reviewed(
    suite: Suite,
    edits: dict[str, Value],
    outside: list[int],
    masks: dict[str, list[str]] | None = None,
    found: dict[str, Value] = FOUND,
) -> tuple[Client, str]:
    """Runs a product through all phases. Outside workers are unsure of what they found in the
    edited phases."""
    await flows.everything(suite)
    ada = suite.client("ada")
    image = await asset_flows.upload(ada, flows.photo())
    created = await flows.outside(ada, image.id, outside, stated=STATED)
    watching = flows.watch(ada, created.id)
    for number in outside:
        kind = KINDS[number - 1]
        await watching.until(lambda change, n=number: change.phase.number == n and change.phase.due)  # type: ignore[misc]
        confidence = 0.5 if kind in edits else 0.9
        claimed = await flows.claim(ada, created.id, number)
        await flows.complete(ada, claimed, value(kind, found[kind]), confidence=confidence)
        if kind in edits:
            opened = review_pb2.REVIEW_STATE_OPEN
            listed = review_pb2.ListReviewsRequest(product_id=created.id, state=opened)
            [review] = (await flows.reviews(ada).ListReviews(listed)).reviews
            await flows.reviews(ada).SubmitReview(
                review_pb2.SubmitReviewRequest(
                    request_id=flows.request_id(),
                    review_id=review.id,
                    decision=review_pb2.REVIEW_DECISION_EDIT,
                    value=value(kind, edits[kind]),
                    update_mask={"paths": (masks or {}).get(kind, [])},
                )
            )
    await watching.until(
        lambda change: (
            change.product.state
            in (
                product_pb2.PRODUCT_STATE_COMPLETED,
                product_pb2.PRODUCT_STATE_ERROR,
            )
            or flows.phase_is(4, phase_pb2.PHASE_STATE_AWAITING_REVIEW)(change)
        )
    )
    await watching.close()
    return ada, created.id


async def seen(client: Client, product_id: str) -> dict[str, Any]:
    """Returns everything in which a person's words may appear."""
    shown = await flows.get(client, product_id)
    by_phase = {
        result.phase: getattr(result.value, KINDS[result.phase - 1]) for result in shown.results
    }
    stub = client.stub(analysis_pb2_grpc.AnalysisServiceStub)
    asked = await stub.ListAnalyses(
        analysis_pb2.ListAnalysesRequest(
            product_id=product_id, task=analysis_pb2.ANALYSIS_TASK_LISTING
        )
    )
    places = {"product": shown.product, "market": by_phase[2], "listing": by_phase[4]}
    return (
        places
        | {f"phase {number}": found for number, found in by_phase.items()}
        | ({"facts": asked.analyses[0].facts} if asked.analyses else {})
    )


def at(places: dict[str, Any], path: str) -> Any:
    """Returns the value at a path, or None if there is nothing."""
    name, *steps = path.split(".")
    found = places[name]
    for step in steps:
        found = getattr(found, step)
    if hasattr(found, "ListFields"):
        return {field.name: part for field, part in found.ListFields()}
    return (list(found) if hasattr(found, "append") else found) or None


def test_every_field_of_every_phase_is_in_the_table() -> None:
    for kind, fields in SAID.items():
        message = getattr(result_pb2.PhaseValue(), kind)
        assert set(fields) == set(message.DESCRIPTOR.fields_by_name)
        assert all(said != FOUND[kind].get(name) for name, (said, _) in fields.items())


PHASES_1_AND_3 = ["product_analysis", "seo_analysis"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("kinds", "outside"),
    [
        (PHASES_1_AND_3, [1, 2, 3]),
        (PHASES_1_AND_3, [1, 2, 3, 4]),
        (["market_research"], [1, 2, 3]),
        (["market_research"], [1, 2, 3, 4]),
        (["product_listing"], [1, 2, 3, 4]),
    ],
)
async def test_a_reviewers_word_stands_in_all_that_follows(
    suite: Suite, kinds: list[str], outside: list[int]
) -> None:
    """Outside workers say something else throughout. Where phase 4 isn't theirs, our model gets the
    facts."""
    edits = {kind: {name: said for name, (said, _) in SAID[kind].items()} for kind in kinds}
    ada, product_id = await reviewed(suite, edits, outside)
    places = await seen(ada, product_id)

    for kind in kinds:
        assert places[f"phase {KINDS.index(kind) + 1}"] == getattr(value(kind, edits[kind]), kind)
        for name, (_, wanted) in SAID[kind].items():
            for path, word in wanted.items():
                if path.partition(".")[0] in places:
                    assert at(places, path) == word, f"{kind}.{name} at {path}"
    assert ("facts" in places) == (4 not in outside)
    assert places["product"].facts == flows.facts(STATED), (
        "what the caller stated stays what the caller stated"
    )


@pytest.mark.long
async def test_what_a_reviewer_emptied_stays_empty(suite: Suite) -> None:
    emptied = {
        "product_analysis": ["name", "model", "condition", "categories", "brands"],
        "seo_analysis": ["title", "description", "keywords"],
    }
    edits: dict[str, Value] = {kind: {} for kind in emptied}
    analysis = {name: word for name, word in FOUND["product_analysis"].items() if name != "model"}
    found = {**FOUND, "product_analysis": analysis}  # the caller stated the model
    ada, product_id = await reviewed(suite, edits, [1, 2, 3], emptied, found)
    places = await seen(ada, product_id)

    for name in (
        "name",
        "model",
        "condition",
        "category",
        "subcategory",
        "brand",
        "description",
        "keywords",
    ):
        assert at(places, f"facts.product.{name}") is None, name

    for name in ("title", "description", "condition", "category", "subcategory"):
        assert at(places, f"listing.{name}") is None, name
    assert (places["product"].name, places["product"].model) == ("", "")
    assert places["product"].facts.product.model == "W-1", "as the caller stated it"
    assert at(places, "facts.product.condition_details") == "found details", (
        "what nobody touched goes on"
    )


async def test_a_name_that_a_reviewer_approves_is_the_products(suite: Suite) -> None:
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    image = await asset_flows.upload(ada, flows.photo())
    created = await flows.outside(ada, image.id, stated=STATED)
    watching = flows.watch(ada, created.id)
    await flows.complete(
        ada, await flows.claim(ada, created.id, 1), flows.analysis("Found name"), confidence=0.5
    )
    assert (await flows.get(ada, created.id)).product.name == "Wrong name"

    [review] = (await flows.get(ada, created.id)).reviews
    approve = review_pb2.SubmitReviewRequest(
        review_id=review.id, decision=review_pb2.REVIEW_DECISION_APPROVE
    )
    await flows.reviews(ada).SubmitReview(approve)
    renamed = await watching.until(lambda change: change.product.name == "Found name")
    await watching.close()
    assert renamed.product.model == "W-1", "of which the review said nothing"


async def test_an_edit_that_changes_nothing_is_refused_and_the_review_stays_open(
    suite: Suite,
) -> None:
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    image = await asset_flows.upload(ada, flows.photo())
    created = await flows.outside(ada, image.id)
    found = value("product_analysis", FOUND["product_analysis"])
    await flows.complete(ada, await flows.claim(ada, created.id, 1), found, confidence=0.5)
    [review] = (await flows.get(ada, created.id)).reviews

    def edit(said: result_pb2.PhaseValue, *mask: str) -> Any:
        request = review_pb2.SubmitReviewRequest(
            review_id=review.id,
            decision=review_pb2.REVIEW_DECISION_EDIT,
            value=said,
            update_mask={"paths": mask},
        )
        return flows.reviews(ada).SubmitReview(request)

    nothing = value("product_analysis", {})
    for said, mask in ((nothing, []), (found, []), (found, ["name", "colours"])):
        info = await refused(edit(said, *mask), StatusCode.INVALID_ARGUMENT, "changes nothing")
        assert info.fields == ["value"]
    outside_mask = edit(
        value("product_analysis", {"name": "New", "condition": "found"}), "condition"
    )
    await refused(outside_mask, StatusCode.INVALID_ARGUMENT, "changes nothing")
    for path in ("colour", "product_analysis.name", "image_quality.score", "*", ""):
        info = await refused(
            edit(flows.analysis("New"), "name", path), StatusCode.INVALID_ARGUMENT, "not a field"
        )
        assert info.fields == ["update_mask.paths[1]"]
    shown = await flows.get(ada, created.id)
    assert (
        shown.reviews == [review]
        and shown.product.state == product_pb2.PRODUCT_STATE_AWAITING_REVIEW
    )
    assert (await edit(flows.analysis("New"))).review.state == review_pb2.REVIEW_STATE_EDITED


async def test_words_that_later_phases_cannot_take_are_refused(suite: Suite) -> None:
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    image = await asset_flows.upload(ada, flows.photo())
    created = await flows.outside(ada, image.id)
    for number, kind in enumerate(KINDS[:3], start=1):
        claimed = await flows.claim(ada, created.id, number)
        confidence = 0.5 if number == 3 else 0.9
        await flows.complete(ada, claimed, value(kind, FOUND[kind]), confidence=confidence)
    [review] = (await flows.get(ada, created.id)).reviews

    request = review_pb2.SubmitReviewRequest(
        review_id=review.id,
        decision=review_pb2.REVIEW_DECISION_EDIT,
        value=value("seo_analysis", {"keywords": ["two\nlines"]}),
    )
    await refused(flows.reviews(ada).SubmitReview(request), StatusCode.INVALID_ARGUMENT, "one line")
