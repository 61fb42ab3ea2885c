"""The main flow: name, model and condition, photographs, nothing else; one review; a listing."""

from collections.abc import Iterable
from typing import Any

import pytest
from atelier.pipeline.v1 import finding_pb2, phase_pb2, product_pb2, result_pb2, review_pb2
from google.protobuf import json_format

from tests.assets import flows as asset_flows
from tests.pipeline import flows
from tests.suite import Suite

AWAITING, COMPLETED = (
    product_pb2.PRODUCT_STATE_AWAITING_REVIEW,
    product_pb2.PRODUCT_STATE_COMPLETED,
)
SUPPLIED, MEASURED, FOUND, CONFIRMED = (
    finding_pb2.VALUE_SOURCE_SUPPLIED,
    finding_pb2.VALUE_SOURCE_MEASURED,
    finding_pb2.VALUE_SOURCE_FOUND,
    finding_pb2.VALUE_SOURCE_CONFIRMED,
)


Row = tuple[Any, int, bool]


def said(findings: Iterable[finding_pb2.Finding], key: str) -> list[Row]:
    """Returns value, source and disagreement of a key's findings."""
    return [
        (json_format.MessageToDict(each.value), each.source, each.disagrees)
        for each in findings
        if each.key == key
    ]


@pytest.mark.long
@pytest.mark.parametrize("decision", ["EDIT", "APPROVE"])
async def test_one_review_is_enough(suite: Suite, decision: str) -> None:
    await flows.everything(suite)
    ada = suite.client("ada")
    created = await flows.create(
        ada,
        stated={},
        name="Jacket",
        model="KH-4107",
        condition="used",
        condition_details="a torn hem",
    )
    assert (created.condition, created.condition_details) == ("used", "a torn hem")

    watching = flows.watch(ada, created.id)
    waiting = await watching.until(flows.product_is(AWAITING))
    assert 0 < waiting.product.confidence <= 0.6, "two of five things aren't known"
    review = (await watching.until(lambda change: change.HasField("review"))).review
    assert said(review.findings, "name") == [("Jacket", SUPPLIED, False)]
    assert said(review.findings, "colours")[0][1] == MEASURED

    value = flows.analysis("Field jacket", brands=["Kesterholt"]) if decision == "EDIT" else None
    await flows.reviews(ada).SubmitReview(
        review_pb2.SubmitReviewRequest(
            review_id=review.id,
            decision=f"REVIEW_DECISION_{decision}",
            value=value,
        )
    )
    done = await watching.until(flows.product_is(COMPLETED))
    await watching.close()
    name = "Field jacket" if decision == "EDIT" else "Jacket"
    assert (done.product.name, done.product.model, done.product.condition) == (
        name,
        "KH-4107",
        "used",
    )

    shown = await flows.get(ada, created.id)
    assert len(shown.reviews) == 1
    assert [phase.state for phase in shown.product.phases] == [phase_pb2.PHASE_STATE_COMPLETED] * 4
    first, market, seo, listing = shown.results
    assert not market.HasField("confidence")
    assert seo.confidence == listing.confidence == 1, "nothing was newly found"
    assert seo.evidence[0].name == "known" and not any(e.weight for e in seo.evidence[1:])
    assert listing.value.product_listing.condition == "used"
    assert name in listing.value.product_listing.title

    names = said(first.findings, "name")
    assert names[0] == (name, CONFIRMED, False)
    assert names[1:] == [("Jacket", SUPPLIED, decision == "EDIT")]
    assert first.findings[0].confirmed_by == "ada" and first.findings[0].review_id == review.id
    assert first.findings == shown.reviews[0].findings
    [title] = [each for each in listing.findings if each.key == "title"]
    assert title.source == CONFIRMED and "name (confirmed by ada)" in title.note
    assert said(listing.findings, "condition")[0] == ("used", CONFIRMED, False)


@pytest.mark.long
async def test_a_product_of_which_only_the_name_is_known_says_so(suite: Suite) -> None:
    await flows.everything(suite)
    ada = suite.client("ada")
    named = await flows.create(ada, stated={}, name="Jacket", wait=True)
    assert named.state == AWAITING and named.confidence == pytest.approx(0.2)
    nameless = await flows.create(ada, stated={}, wait=True)
    assert nameless.state == AWAITING and nameless.confidence == 0, "however sharp the photograph"


async def test_what_disagrees_stands_side_by_side_through_all_phases(suite: Suite) -> None:
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    asset = await asset_flows.upload(ada, flows.photo())
    stated = {
        "product": {"name": "Stated", "brand": "Stated brand", "condition": "new"},
        "price": {"msrp": 10.0, "currency": "EUR"},
    }
    created = await flows.outside(ada, asset.id, stated=stated)
    found = flows.analysis("Found", model="F-1", brands=["stated  BRAND"], condition="worn")
    claimed = await flows.claim(ada, created.id, 1)
    done = await flows.complete(ada, claimed, found, confidence=0.5, provider="ours")
    before = {
        "name": [("Found", FOUND, False), ("Stated", SUPPLIED, True)],
        "model": [("F-1", FOUND, False)],
        "brands": [(["Stated brand"], SUPPLIED, False), (["stated  BRAND"], FOUND, False)],
        "condition": [("worn", FOUND, False), ("new", SUPPLIED, True)],
    }
    assert {key: said(done.result.findings, key) for key in before} == before
    by_model = next(each for each in done.result.findings if each.source == FOUND)
    assert (by_model.model, by_model.confidence) == ("ours", 0.5)

    [review] = (await flows.get(ada, created.id)).reviews
    assert review.findings == done.result.findings
    request = review_pb2.SubmitReviewRequest(
        review_id=review.id,
        decision="REVIEW_DECISION_EDIT",
        value=flows.analysis("Right"),
        update_mask={"paths": ["name", "model"]},
    )
    decided = (await flows.reviews(ada).SubmitReview(request)).review
    assert said(decided.findings, "name") == [
        ("Right", CONFIRMED, False),
        ("Stated", SUPPLIED, True),
        ("Found", FOUND, True),
    ]
    assert said(decided.findings, "model") == [(None, CONFIRMED, False), ("F-1", FOUND, True)]
    assert said(decided.findings, "condition")[0] == ("worn", CONFIRMED, False), "left as it was"

    market = result_pb2.MarketResearch(
        brand="Market brand", msrp=result_pb2.Price(amount=12, currency="EUR")
    )
    values = [
        result_pb2.PhaseValue(market_research=market),
        result_pb2.PhaseValue(seo_analysis=result_pb2.SeoAnalysis(title="A title", slug="a")),
        result_pb2.PhaseValue(
            product_listing=result_pb2.ProductListing(
                title="A title",
                condition="torn",
                price=result_pb2.Price(amount=9, currency="EUR"),
                price_source="ours",
            )
        ),
    ]
    for number, value in enumerate(values, start=2):
        claimed = await flows.claim(ada, created.id, number)
        await flows.complete(ada, claimed, value, confidence=0.9, provider="ours")
    _, second, third, fourth = (await flows.get(ada, created.id)).results
    assert said(second.findings, "brand") == [
        ("Market brand", FOUND, False),
        ("stated  BRAND", CONFIRMED, True),
        ("Stated brand", SUPPLIED, True),
        ("stated  BRAND", FOUND, True),
    ]
    assert said(third.findings, "title") == [("A title", FOUND, False)]
    assert said(fourth.findings, "condition") == [
        ("torn", FOUND, False),
        ("worn", CONFIRMED, True),
        ("new", SUPPLIED, True),
        ("worn", FOUND, True),
    ]
