"""What a phase is given when it runs again, and when it may run: its old result is no fact about
the product, an old job begins nothing, and a pause doesn't count as waiting."""

import asyncio
import time
from typing import Any

import pytest
from atelier.pipeline.v1 import (
    finding_pb2,
    phase_pause_pb2,
    phase_pause_pb2_grpc,
    phase_pb2,
    result_pb2,
    review_pb2,
)

from tests.pipeline import flows
from tests.pipeline.test_rerun import complete, due, ready, rerun
from tests.suite import Client, Suite

PENDING = phase_pb2.PHASE_STATE_PENDING
ENDED = (
    phase_pb2.PHASE_STATE_COMPLETED,
    phase_pb2.PHASE_STATE_AWAITING_REVIEW,
    phase_pb2.PHASE_STATE_FAILED,
)


def pauses(suite: Suite) -> Any:
    admin = suite.client("root", role="admin")
    return admin.stub(phase_pause_pb2_grpc.PhasePauseServiceStub)


async def pause(suite: Suite, phase: int) -> None:
    request = phase_pause_pb2.PausePhaseRequest(phase=phase, reason="prices are wrong")
    await pauses(suite).PausePhase(request)


async def resume(suite: Suite, phase: int) -> None:
    await pauses(suite).ResumePhase(phase_pause_pb2.ResumePhaseRequest(phase=phase))


async def phase_of(client: Client, product_id: str, number: int) -> phase_pb2.Phase:
    return (await flows.get(client, product_id)).product.phases[number - 1]


async def ended(client: Client, product_id: str, number: int) -> phase_pb2.Phase:
    async with asyncio.timeout(30):
        while (found := await phase_of(client, product_id, number)).state not in ENDED:
            await asyncio.sleep(0.1)
    return found


async def waits(client: Client, product_id: str, number: int, what: str) -> None:
    async with asyncio.timeout(30):
        while (await phase_of(client, product_id, number)).wait.what != what:
            await asyncio.sleep(0.1)


async def met_pause(suite: Suite, number: int) -> None:
    """Returns when a worker has met the pause; a due phase shows it before."""
    met = "SELECT 1 FROM pipeline.phases WHERE number = %s AND waits_for = 'a pause'"
    async with asyncio.timeout(30):
        while not suite.sql(f"{met} AND state = 'pending'", (number,)):
            await asyncio.sleep(0.05)


@pytest.mark.long
async def test_an_old_result_is_no_fact_of_the_next_run(suite: Suite) -> None:
    await flows.everything(suite)
    ada = suite.client("ada")
    words = {name: word for name, word in flows.FACTS["product"].items() if name != "brand"}
    made = await flows.create(ada, stated={**flows.FACTS, "product": words}, auto_advance=False)
    first = await ended(ada, made.id, 1)
    assert not (await flows.get(ada, made.id)).results[0].value.product_analysis.brands
    wrong = """'{"product_analysis": {"brands": ["Wrongly read"]}}'"""
    listing = """'{"seo_analysis": {"description": "Of a later phase"}}'"""
    await suite.change(f"UPDATE pipeline.results SET value = {wrong}")
    await suite.change(
        "INSERT INTO pipeline.results (id, owner, product_id, phase, value, source, provider)"
        f" SELECT gen_random_uuid(), owner, product_id, 3, {listing}, source, provider"
        " FROM pipeline.results"
    )
    if first.state == phase_pb2.PHASE_STATE_AWAITING_REVIEW:
        [review] = (await flows.get(ada, made.id)).reviews
        back = review_pb2.SubmitReviewRequest(
            review_id=review.id, etag=review.etag, decision=review_pb2.REVIEW_DECISION_SEND_BACK
        )
        await flows.reviews(ada).SubmitReview(back)
    else:
        await rerun(ada, made.id, 1)
    await ended(ada, made.id, 1)

    asked = suite.sql("SELECT facts -> 'product' FROM conversions.analyses ORDER BY created_at")
    assert len(asked) == 2 and asked[0] == asked[1]
    [result, _] = (await flows.get(ada, made.id)).results
    assert not result.value.product_analysis.brands
    assert "Wrongly read" not in str(result.findings)


@pytest.mark.long
async def test_what_a_person_decided_stays_theirs_when_the_phase_runs_again(suite: Suite) -> None:
    await flows.everything(suite)
    ada = suite.client("ada")
    made = await flows.create(ada, stated=flows.UNSURE, auto_advance=False)
    await ended(ada, made.id, 1)
    [review] = (await flows.get(ada, made.id)).reviews
    edit = flows.analysis("Canvas jacket", brands=["Kesterholt"])
    await flows.reviews(ada).SubmitReview(
        review_pb2.SubmitReviewRequest(
            review_id=review.id,
            etag=review.etag,
            decision=review_pb2.REVIEW_DECISION_EDIT,
            value=edit,
        )
    )
    await rerun(ada, made.id, 1)
    await ended(ada, made.id, 1)

    [result] = (await flows.get(ada, made.id)).results
    assert list(result.value.product_analysis.brands) == ["Kesterholt"]
    said = [each for each in result.findings if each.key == "brands" and not each.disagrees]
    assert said and all(each.source == finding_pb2.VALUE_SOURCE_CONFIRMED for each in said)
    assert {each.confirmed_by for each in said} == {"ada"}


@pytest.mark.long
async def test_the_job_of_a_stopped_phase_begins_nothing(suite: Suite) -> None:
    ada, product_id = await ready(suite, [1, 3, 4], auto_advance=False)
    await pause(suite, 2)
    await complete(ada, product_id, 1, flows.analysis())
    named: dict[str, Any] = {"product_id": product_id, "phase": 2}
    await flows.phases(ada).StartPhase(phase_pb2.StartPhaseRequest(**named))
    await met_pause(suite, 2)
    await flows.phases(ada).StopPhase(phase_pb2.StopPhaseRequest(**named))
    async with asyncio.timeout(30):  # a worker may be looking at it
        while (await phase_of(ada, product_id, 2)).state != phase_pb2.PHASE_STATE_STOPPED:
            await asyncio.sleep(0.05)
    await rerun(ada, product_id, 1)
    await resume(suite, 2)
    todo = "SELECT count(*) FROM pipeline_jobs.procrastinate_jobs WHERE status IN ('todo', 'doing')"
    async with asyncio.timeout(90):
        while suite.sql(f"{todo} AND task_name = 'run_phase'") != [(0,)]:
            await asyncio.sleep(0.1)
    phase = await phase_of(ada, product_id, 2)
    assert (phase.state, phase.due, phase.stale) == (PENDING, False, True)


@pytest.mark.long
async def test_a_wait_after_a_long_pause_is_a_new_one(suite: Suite) -> None:
    ada, product_id = await ready(suite, [1, 2, 4])
    await pause(suite, 3)
    await complete(ada, product_id, 1, flows.analysis())
    await due(ada, product_id, 2)
    none = result_pb2.PhaseValue(market_research=result_pb2.MarketResearch())
    await complete(ada, product_id, 2, none)
    await met_pause(suite, 3)
    await suite.change(
        "UPDATE pipeline.phases SET waiting_since = now() - interval '9 days'"
        " WHERE waits_for = 'a pause'"
    )
    assert (await phase_of(ada, product_id, 3)).wait.since_time.seconds < time.time() - 86_400
    await resume(suite, 3)  # conversions isn't there
    await waits(ada, product_id, 3, "conversions")
    phase = await phase_of(ada, product_id, 3)
    assert phase.state == PENDING
    assert phase.wait.since_time.seconds >= phase.create_time.seconds, "the wait is a new one"


async def test_an_approval_after_an_edit_is_the_last_word(suite: Suite) -> None:
    ada, product_id = await ready(suite, [1, 2, 3, 4])
    market = result_pb2.PhaseValue(market_research=result_pb2.MarketResearch(brand="Kesterholt"))
    await complete(ada, product_id, 1, flows.analysis())
    await due(ada, product_id, 2)
    await complete(ada, product_id, 2, market)
    await due(ada, product_id, 3)
    await unsure_of(ada, product_id, "Found first")
    value = result_pb2.PhaseValue(seo_analysis=result_pb2.SeoAnalysis(title="By hand"))
    await decide(ada, review_pb2.REVIEW_DECISION_EDIT, value=value)
    await due(ada, product_id, 4)
    listing = result_pb2.PhaseValue(product_listing=result_pb2.ProductListing(title="Listed"))
    await complete(ada, product_id, 4, listing)
    assert (await flows.get(ada, product_id)).results[3].value.product_listing.title == "By hand"

    await rerun(ada, product_id, 3)
    await due(ada, product_id, 3)
    await unsure_of(ada, product_id, "Found later")
    await decide(ada, review_pb2.REVIEW_DECISION_APPROVE)
    await due(ada, product_id, 4)
    await complete(ada, product_id, 4, listing)

    shown = (await flows.get(ada, product_id)).results[3].value.product_listing
    assert shown.title == "Found later"


async def unsure_of(client: Client, product_id: str, title: str) -> None:
    value = result_pb2.PhaseValue(seo_analysis=result_pb2.SeoAnalysis(title=title))
    claimed = await flows.claim(client, product_id, 3)
    await flows.complete(client, claimed, value, confidence=0.4)


async def decide(client: Client, decision: Any, **fields: Any) -> None:
    """Decides the only open review."""
    listed = review_pb2.ListReviewsRequest(state=review_pb2.REVIEW_STATE_OPEN)
    [review] = (await flows.reviews(client).ListReviews(listed)).reviews
    request = review_pb2.SubmitReviewRequest(review_id=review.id, decision=decision, **fields)
    await flows.reviews(client).SubmitReview(request)
