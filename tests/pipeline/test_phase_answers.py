"""What phases say of themselves: attempts in order, past results whole, pauses, lost runners, and
why a phase stands where it does."""

import asyncio
from typing import Any

import pytest
from atelier.pipeline.v1 import phase_pause_pb2, phase_pb2, product_pb2, result_pb2, review_pb2
from grpc import StatusCode

from tests.assets import flows as asset_flows
from tests.calls import holding, refused
from tests.pipeline import flows
from tests.pipeline.test_rerun import complete, ready, rerun
from tests.pipeline.test_rerun_facts import pause, pauses, phase_of
from tests.suite import Client, Suite

WRONG_STATE, ABORTED = StatusCode.FAILED_PRECONDITION, StatusCode.ABORTED
STOP, RETRY = phase_pb2.PHASE_ACTION_STOP, phase_pb2.PHASE_ACTION_RETRY
LATE = (
    "UPDATE pipeline.phases SET lease_expires_at = now() - interval '1 s' WHERE state = 'running'"
)


async def batch(client: Client, action: phase_pb2.PhaseAction, *ids: str, **fields: Any) -> Any:
    names = [phase_pb2.PhaseName(product_id=each, phase=1) for each in ids]
    request = phase_pb2.BatchUpdatePhasesRequest(action=action, phases=names, **fields)
    return await flows.phases(client).BatchUpdatePhases(request)


async def explain(client: Client, product_id: str, phase: int, **fields: Any) -> Any:
    request = phase_pb2.ExplainPhaseRequest(product_id=product_id, phase=phase, **fields)
    return await flows.phases(client).ExplainPhase(request)


async def said(client: Client, product_id: str, phase: int, word: str) -> Any:
    """Returns the answer to the question that has this word."""
    answers = (await explain(client, product_id, phase)).answers
    [found] = [each for each in answers if word in each.question]
    return found


async def test_one_request_id_is_for_one_batch_alone(suite: Suite) -> None:
    ada, product_id = await ready(suite, [1, 2, 3, 4])
    stopped = await batch(ada, STOP, product_id, request_id="same")
    assert stopped.results[0].state == phase_pb2.PHASE_STATE_STOPPED
    other = batch(ada, RETRY, product_id, request_id="same")
    assert (await refused(other, StatusCode.INVALID_ARGUMENT)).reason == "REQUEST_ID_REUSED"
    await batch(ada, RETRY, product_id, request_id="another")
    again = await batch(ada, STOP, product_id, request_id="same")
    assert again == stopped
    phase = await phase_of(ada, product_id, 1)
    assert phase.due, "a repeat isn't carried out again"


@pytest.mark.long
async def test_what_passes_is_the_result_of_its_own_phase(suite: Suite) -> None:
    ada, first = await ready(suite, [1])
    image = await asset_flows.upload(ada, flows.photo())
    second = (await flows.outside(ada, image.id, [1])).id
    lock = "SELECT FROM pipeline.phases WHERE product_id = %s FOR UPDATE"
    with holding(suite, lock, (first,)):
        answer = await batch(ada, STOP, first, second, request_id="monday")
    held, other = answer.results
    assert held.error_reason == "REQUEST_IN_PROGRESS" and held.error_message
    assert other.state == phase_pb2.PHASE_STATE_STOPPED and answer.refused_count == 1
    again = await batch(ada, STOP, first, second, request_id="monday")
    assert [each.state for each in again.results] == [phase_pb2.PHASE_STATE_STOPPED] * 2


async def test_a_phase_of_an_outside_runner_shows_its_pause(suite: Suite) -> None:
    ada, product_id = await ready(suite, [1, 2, 3, 4])
    await pause(suite, 1)
    [listed] = (await flows.products(ada).ListProducts(product_pb2.ListProductsRequest())).products
    for phase in (await phase_of(ada, product_id, 1), listed.phases[0]):
        assert "prices are wrong" in phase.pause and phase.wait.what == "a pause"
        assert phase.wait.HasField("since_time")
    assert not (await phase_of(ada, product_id, 2)).pause
    request = product_pb2.ExplainProductRequest(product_id=product_id)
    answers = (await flows.products(ada).ExplainProduct(request)).answers
    [paused] = [each for each in answers if "prices are wrong" in each.answer]
    assert "ResumePhase" in paused.next_step
    await pauses(suite).ResumePhase(phase_pause_pb2.ResumePhaseRequest(phase=1))
    phase = await phase_of(ada, product_id, 1)
    assert not phase.pause and not phase.HasField("wait")


async def test_attempts_have_places_and_past_results_stay_whole(suite: Suite) -> None:
    ada, product_id = await ready(suite, [1, 2, 3, 4])
    await flows.claim(ada, product_id, 1)
    named: dict[str, Any] = {"product_id": product_id, "phase": 1}
    await flows.phases(ada).StopPhase(phase_pb2.StopPhaseRequest(**named))
    await flows.phases(ada).RetryPhase(phase_pb2.RetryPhaseRequest(**named))
    evidence = [result_pb2.Evidence(name="label", value=0.9, weight=1.0, note="read twice")]
    claimed = await flows.claim(ada, product_id, 1)
    await flows.complete(
        ada, claimed, flows.analysis("First"), confidence=0.9, evidence=evidence, provider="gpu"
    )
    done = (await flows.get(ada, product_id)).results[0]
    await flows.phases(ada).StopPhase(phase_pb2.StopPhaseRequest(product_id=product_id, phase=2))
    [again, *_] = await rerun(ada, product_id, 1)
    assert not again.HasField("confidence") and not again.HasField("complete_time")
    await complete(ada, product_id, 1, flows.analysis("Second"))

    list_attempts = flows.phases(ada).ListPhaseAttempts
    first = await list_attempts(phase_pb2.ListPhaseAttemptsRequest(page_size=2, **named))
    rest = await list_attempts(
        phase_pb2.ListPhaseAttemptsRequest(page_token=first.next_page_token, **named)
    )
    tried = [*first.attempts, *rest.attempts]
    assert [each.place for each in tried] == [3, 2, 1]
    assert [each.number for each in tried] == [1, 1, 1]
    asked = phase_pb2.ListPastResultsRequest(**named)
    [past] = (await flows.phases(ada).ListPastResults(asked)).results
    assert (past.evidence, past.findings) == (done.evidence, done.findings) and past.findings


async def test_a_phase_whose_runner_vanished_says_so(suite: Suite) -> None:
    ada, product_id = await ready(suite, [1])
    await flows.claim(ada, product_id, 1, lease_seconds=1)
    async with asyncio.timeout(60):
        while (phase := await phase_of(ada, product_id, 1)).state != phase_pb2.PHASE_STATE_PENDING:
            await asyncio.sleep(0.1)
    assert phase.error_class == "WORKER_LOST" and "lease" in phase.error_message
    assert "WORKER_LOST" in (await explain(ada, product_id, 1)).summary
    await suite.stop_work("pipeline")
    await flows.claim(ada, product_id, 1)
    await suite.change("UPDATE pipeline.phases SET attempt_number = 6 WHERE state = 'running'")
    await suite.change(LATE)
    claim = flows.claim(ada, product_id, 1)
    await refused(claim, WRONG_STATE, "6 runners let their leases pass", "RetryPhase")
    holder = await said(ada, product_id, 1, "who has it")
    assert not holder.ok and "let its lease pass" in holder.answer
    assert "RetryPhase" in holder.next_step


async def test_start_stop_and_retry_mind_the_etag(suite: Suite) -> None:
    ada, product_id = await ready(suite, [1, 2], auto_advance=False)
    service = flows.phases(ada)
    named: dict[str, Any] = {"product_id": product_id, "phase": 1}
    stop, retry = phase_pb2.StopPhaseRequest, phase_pb2.RetryPhaseRequest
    await refused(service.StopPhase(stop(etag="0", **named)), ABORTED, "phase 1 was changed")
    etag = (await phase_of(ada, product_id, 1)).etag
    stopped = (await service.StopPhase(stop(etag=etag, **named))).phase
    await refused(service.RetryPhase(retry(etag=etag, **named)), ABORTED)
    await service.RetryPhase(retry(etag=stopped.etag, **named))
    await complete(ada, product_id, 1, flows.analysis())
    start = phase_pb2.StartPhaseRequest
    second: dict[str, Any] = {"product_id": product_id, "phase": 2}
    await refused(service.StartPhase(start(etag="0", **second)), ABORTED, "phase 2 was changed")
    etag = (await phase_of(ada, product_id, 2)).etag
    assert (await service.StartPhase(start(etag=etag, **second))).phase.due


async def test_a_phase_is_explained_condition_by_condition(suite: Suite) -> None:
    ada, product_id = await ready(suite, [1, 2, 3, 4], auto_advance=False)
    whole = await explain(ada, product_id, 1)
    assert "waits for an outside worker" in whole.summary and "ClaimNextPhase" in whole.next_step
    assert (await said(ada, product_id, 1, "images")).ok
    assert (
        "phase 1 (product analysis) is pending"
        in (await said(ada, product_id, 2, "before it")).answer
    )
    assert (await said(ada, product_id, 1, "started")).ok

    claimed = await flows.claim(ada, product_id, 1)
    holder = await said(ada, product_id, 1, "who has it")
    assert holder.ok and "by a lease until" in holder.answer
    await flows.complete(ada, claimed, flows.analysis(), confidence=0.3)
    review = await said(ada, product_id, 1, "person")
    assert not review.ok and "nobody has claimed it" in review.answer
    [shown] = (await flows.get(ada, product_id)).reviews
    claim = flows.reviews(ada).ClaimReview
    await claim(review_pb2.ClaimReviewRequest(review_id=shown.id))
    assert "ada has claimed it until" in (await said(ada, product_id, 1, "person")).answer
    await flows.reviews(ada).SubmitReview(
        review_pb2.SubmitReviewRequest(
            review_id=shown.id,
            etag=(await flows.get(ada, product_id)).reviews[0].etag,
            decision=review_pb2.REVIEW_DECISION_APPROVE,
        )
    )
    assert (await said(ada, product_id, 1, "how far")).ok
    start = await said(ada, product_id, 2, "started")
    assert not start.ok and start.next_step == "you call StartPhase"

    await pause(suite, 2)
    named: dict[str, Any] = {"product_id": product_id, "phase": 2}
    await flows.phases(ada).StartPhase(phase_pb2.StartPhaseRequest(**named))
    paused = await said(ada, product_id, 2, "begun now")
    assert "prices are wrong" in paused.answer and "ResumePhase" in paused.next_step
    assert "ResumePhase" in (await explain(ada, product_id, 2)).next_step
    await pauses(suite).ResumePhase(phase_pause_pb2.ResumePhaseRequest(phase=2))
    none = result_pb2.PhaseValue(market_research=result_pb2.MarketResearch())
    await complete(ada, product_id, 2, none)
    await rerun(ada, product_id, 1)
    stale = await said(ada, product_id, 2, "up to date")
    assert not stale.ok and "run again" in stale.answer

    admin = suite.client("root", role="admin")
    asked = await explain(admin, product_id, 1, owner="user:ada")
    assert asked.answers
    await refused(explain(suite.client("eve"), product_id, 1), StatusCode.NOT_FOUND)
