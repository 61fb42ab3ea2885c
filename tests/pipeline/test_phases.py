import asyncio
import uuid

import pytest
from atelier.pipeline.v1 import phase_pb2, product_pb2, result_pb2, review_pb2
from grpc import StatusCode
from grpc.aio import AioRpcError

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.pipeline import flows
from tests.suite import Client, Suite

NOTHING = result_pb2.PhaseValue(market_research=result_pb2.MarketResearch())


async def with_image(suite: Suite) -> tuple[Client, str]:
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    return ada, (await asset_flows.upload(ada, flows.photo())).id


def retry(product_id: str, phase: int) -> phase_pb2.RetryPhaseRequest:
    return phase_pb2.RetryPhaseRequest(
        request_id=flows.request_id(), product_id=product_id, phase=phase
    )


def start(product_id: str, phase: int) -> phase_pb2.StartPhaseRequest:
    return phase_pb2.StartPhaseRequest(
        request_id=flows.request_id(), product_id=product_id, phase=phase
    )


def stop(product_id: str, phase: int) -> phase_pb2.StopPhaseRequest:
    return phase_pb2.StopPhaseRequest(
        request_id=flows.request_id(), product_id=product_id, phase=phase
    )


async def test_an_outside_runner_takes_a_product_through_all_phases(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    assert list(created.external_phases) == [1, 2, 3, 4]

    values = [
        flows.analysis(brands=["Kesterholt"]),
        NOTHING,
        result_pb2.PhaseValue(seo_analysis=result_pb2.SeoAnalysis(title="Jacket")),
        result_pb2.PhaseValue(product_listing=result_pb2.ProductListing(title="Jacket")),
    ]

    for number, value in enumerate(values, start=1):
        claimed = await flows.claim(ada, created.id, number)
        assert claimed.phase.state == phase_pb2.PHASE_STATE_RUNNING and claimed.phase.HasField(
            "lease_expire_time"
        )

        done = await flows.complete(ada, claimed, value, confidence=0.9, provider="ours")
        assert done.phase.state == phase_pb2.PHASE_STATE_COMPLETED
        assert (done.result.source, done.result.provider) == (
            result_pb2.RESULT_SOURCE_RUNNER,
            "ours",
        )

    shown = await flows.get(ada, created.id)
    assert shown.product.state == product_pb2.PRODUCT_STATE_COMPLETED
    assert [result.value for result in shown.results] == values

    outcomes = suite.sql("SELECT outcome, worker FROM pipeline.attempts")
    assert outcomes == [("succeeded", "outside:ada")] * 4


async def test_a_low_confidence_from_outside_waits_for_a_person_too(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    done = await flows.complete(
        ada, await flows.claim(ada, created.id, 1), flows.analysis(), confidence=0.79
    )
    assert done.phase.state == phase_pb2.PHASE_STATE_AWAITING_REVIEW
    assert (await flows.get(ada, created.id)).product.requires_manual_review


async def test_exactly_080_needs_no_person(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    done = await flows.complete(
        ada, await flows.claim(ada, created.id, 1), flows.analysis(), confidence=0.8
    )
    assert done.phase.state == phase_pb2.PHASE_STATE_COMPLETED


@pytest.mark.long
async def test_a_silent_runner_loses_its_phase_and_its_late_result_is_refused(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    watching = flows.watch(ada, created.id)
    late = await flows.claim(ada, created.id, 1, lease_seconds=1)
    again = await watching.until(lambda change: change.log.action == "lease_passed")
    await watching.until(lambda change: change.phase.due and change.phase.attempt_number == 1)
    await watching.close()
    assert again.log.actor == "atelier"

    fresh = await flows.claim(ada, created.id, 1)
    assert fresh.phase.attempt_number == 2
    info = await refused(
        flows.complete(ada, late, flows.analysis()), StatusCode.FAILED_PRECONDITION
    )
    assert info.reason == "ATTEMPT_SUPERSEDED"

    beat = phase_pb2.HeartbeatPhaseRequest(
        product_id=created.id, phase=1, attempt_token=late.attempt_token
    )
    refusal = await refused(flows.phases(ada).HeartbeatPhase(beat), StatusCode.FAILED_PRECONDITION)
    assert refusal.reason == "ATTEMPT_SUPERSEDED"

    done = await flows.complete(ada, fresh, flows.analysis())
    assert done.phase.state == phase_pb2.PHASE_STATE_COMPLETED


@pytest.mark.long
async def test_a_heartbeat_keeps_the_phase_beyond_its_first_lease(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    claimed = await flows.claim(ada, created.id, 1, lease_seconds=1)
    beat = phase_pb2.HeartbeatPhaseRequest(
        product_id=created.id, phase=1, attempt_token=claimed.attempt_token, lease_seconds=600
    )
    answer = await flows.phases(ada).HeartbeatPhase(beat)
    assert answer.lease_expire_time.seconds > claimed.phase.lease_expire_time.seconds + 500

    await asyncio.sleep(2.5)  # the reaper runs every second
    done = await flows.complete(ada, claimed, flows.analysis())
    assert done.phase.state == phase_pb2.PHASE_STATE_COMPLETED


@pytest.mark.long
async def test_another_may_claim_as_soon_as_the_lease_has_passed(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    await suite.stop_work("pipeline")  # so that no lease is reaped
    await flows.claim(ada, created.id, 1, lease_seconds=1)
    await refused(
        flows.claim(ada, created.id, 1), StatusCode.FAILED_PRECONDITION, "another runner has it"
    )

    await asyncio.sleep(1.1)
    assert (await flows.claim(ada, created.id, 1)).phase.attempt_number == 2
    assert suite.sql("SELECT outcome FROM pipeline.attempts ORDER BY created_at") == [
        ("lost",),
        ("running",),
    ]


@pytest.mark.long
async def test_a_phase_that_six_runners_let_go_fails(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    suite.sql("UPDATE pipeline.phases SET attempt_number = 5 WHERE number = 1")
    watching = flows.watch(ada, created.id)
    await flows.claim(ada, created.id, 1, lease_seconds=1)
    failed = await watching.until(lambda change: change.phase.error_class == "WORKER_LOST")
    await watching.close()

    assert failed.phase.state == phase_pb2.PHASE_STATE_FAILED
    assert failed.phase.error_message == "6 runners let their leases pass; retry it"
    assert not failed.phase.HasField("lease_expire_time")
    assert suite.sql("SELECT outcome FROM pipeline.attempts") == [("lost",)]


async def test_a_failure_from_outside_can_be_retried(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    claimed = await flows.claim(ada, created.id, 1)
    failure = phase_pb2.FailPhaseRequest(
        request_id=flows.request_id(),
        product_id=created.id,
        phase=1,
        attempt_token=claimed.attempt_token,
        error_class="MODEL_DOWN",
        error_message="the model is being replaced",
    )
    assert (await flows.phases(ada).FailPhase(failure)).phase.state == phase_pb2.PHASE_STATE_FAILED

    product = (await flows.get(ada, created.id)).product
    assert product.state == product_pb2.PRODUCT_STATE_ERROR and product.error_class == "MODEL_DOWN"
    await refused(
        flows.phases(ada).StopPhase(stop(created.id, 1)),
        StatusCode.FAILED_PRECONDITION,
        "it is failed",
    )

    again = (await flows.phases(ada).RetryPhase(retry(created.id, 1))).phase
    assert (again.retry_count, again.due, again.error_class) == (1, True, "")
    product = (await flows.get(ada, created.id)).product
    assert product.state == product_pb2.PRODUCT_STATE_PROCESSING and not product.error_class
    await flows.complete(ada, await flows.claim(ada, created.id, 1), flows.analysis())


async def test_stopping_takes_the_phase_from_an_outside_runner(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    claimed = await flows.claim(ada, created.id, 1)
    stopped = await flows.phases(ada).StopPhase(stop(created.id, 1))
    assert stopped.outcome == phase_pb2.STOP_OUTCOME_STOPPED
    assert (
        await flows.phases(ada).StopPhase(stop(created.id, 1))
    ).outcome == phase_pb2.STOP_OUTCOME_WAS_STOPPED

    info = await refused(
        flows.complete(ada, claimed, flows.analysis()), StatusCode.FAILED_PRECONDITION
    )
    assert info.reason == "ATTEMPT_SUPERSEDED"

    shown = await flows.get(ada, created.id)
    assert shown.product.state == product_pb2.PRODUCT_STATE_STOPPED and not shown.results
    await flows.phases(ada).RetryPhase(retry(created.id, 1))
    await flows.complete(ada, await flows.claim(ada, created.id, 1), flows.analysis())
    assert (await flows.get(ada, created.id)).product.state == product_pb2.PRODUCT_STATE_PROCESSING


async def test_a_stop_that_comes_as_the_phase_is_done_stops_the_next_one(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    claimed = await flows.claim(ada, created.id, 1)
    await suite.change("UPDATE pipeline.phases SET cancel_requested = true WHERE number = 1")
    done = await flows.complete(ada, claimed, flows.analysis())
    assert done.phase.state == phase_pb2.PHASE_STATE_COMPLETED

    product = (await flows.get(ada, created.id)).product
    assert product.state == product_pb2.PRODUCT_STATE_STOPPED
    assert product.phases[1].state == phase_pb2.PHASE_STATE_STOPPED

    await flows.phases(ada).RetryPhase(retry(created.id, 2))
    assert (await flows.get(ada, created.id)).product.phases[1].due


async def test_calls_at_the_same_moment_end_in_one_order(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    service = flows.phases(ada)
    claimed = await flows.claim(ada, created.id, 1)

    waves = [
        [
            flows.claim(ada, created.id, 1),
            service.StopPhase(stop(created.id, 1)),
            flows.get(ada, created.id),
            service.RetryPhase(retry(created.id, 1)),
            flows.complete(ada, claimed, flows.analysis(), confidence=0.5),
        ]
        for _ in range(6)
    ]
    ended = await asyncio.gather(*(call for wave in waves for call in wave), return_exceptions=True)

    refused_with = {error.code() for error in ended if isinstance(error, AioRpcError)}
    assert refused_with <= {StatusCode.FAILED_PRECONDITION}
    assert not [
        error
        for error in ended
        if isinstance(error, Exception) and not isinstance(error, AioRpcError)
    ]

    open_reviews = suite.sql("SELECT count(*) FROM pipeline.reviews WHERE state = 'open'")[0][0]
    phase = (await flows.get(ada, created.id)).product.phases[0]
    assert open_reviews == (phase.state == phase_pb2.PHASE_STATE_AWAITING_REVIEW)

    running = suite.sql("SELECT count(*) FROM pipeline.attempts WHERE outcome = 'running'")[0][0]
    assert running == (phase.state == phase_pb2.PHASE_STATE_RUNNING)


async def test_a_repeated_claim_or_result_is_one(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    request = phase_pb2.ClaimPhaseRequest(request_id="claim-1", product_id=created.id, phase=1)
    claimed = [await flows.phases(ada).ClaimPhase(request) for _ in range(2)]
    assert claimed[0] == claimed[1]

    done = [
        await flows.complete(ada, claimed[0], flows.analysis(), request_id="done-1")
        for _ in range(2)
    ]
    assert done[0] == done[1]

    other = flows.complete(ada, claimed[0], flows.analysis("Another"), request_id="done-1")
    assert (await refused(other, StatusCode.INVALID_ARGUMENT)).reason == "REQUEST_ID_REUSED"


async def test_a_value_must_belong_to_its_phase_and_be_usable_by_the_next(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    claimed = await flows.claim(ada, created.id, 1)
    await refused(
        flows.complete(ada, claimed, NOTHING), StatusCode.INVALID_ARGUMENT, "needs product_analysis"
    )
    await refused(
        flows.complete(ada, claimed, result_pb2.PhaseValue()), StatusCode.INVALID_ARGUMENT, "value"
    )

    two_lines = flows.analysis("a name\nof two lines")
    await refused(flows.complete(ada, claimed, two_lines), StatusCode.INVALID_ARGUMENT, "one line")
    await refused(
        flows.complete(ada, claimed, flows.analysis(), confidence=80), StatusCode.INVALID_ARGUMENT
    )
    await flows.complete(ada, claimed, flows.analysis())


async def test_a_key_that_is_too_long_is_refused_in_an_answer_that_clients_take(
    suite: Suite,
) -> None:
    ada, image = await with_image(suite)
    claimed = await flows.claim(ada, (await flows.outside(ada, image)).id, 1)
    value = flows.analysis()
    value.product_analysis.image_quality.pictures.add(measures={"k" * 100_000: 0.5})
    refusal = await refused(flows.complete(ada, claimed, value), StatusCode.INVALID_ARGUMENT)
    assert refusal.fields[0].startswith(
        'value.product_analysis.image_quality.pictures[0].measures["kkk'
    )


async def test_a_value_is_no_larger_than_three_of_them_in_an_answer(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image)
    claimed = await flows.claim(ada, created.id, 1)
    picture = result_pb2.PictureQuality(
        measures={"\U0001f9e5" * 97 + str(n): 0.5 for n in range(20)}
    )
    large = flows.analysis()
    large.product_analysis.image_quality.pictures.extend([picture] * 80)
    await refused(
        flows.complete(ada, claimed, large), StatusCode.INVALID_ARGUMENT, "the limit is 500000"
    )

    del large.product_analysis.image_quality.pictures[50:]
    done = await flows.complete(ada, claimed, large, confidence=0.4)
    assert done.result.value == large

    [review] = (
        await flows.reviews(ada).ListReviews(review_pb2.ListReviewsRequest(product_id=created.id))
    ).reviews
    large.product_analysis.image_quality.pictures.extend([picture] * 30)
    edit = review_pb2.SubmitReviewRequest(
        review_id=review.id,
        decision=review_pb2.REVIEW_DECISION_EDIT,
        value=large,
        update_mask={"paths": ["image_quality"]},
    )
    await refused(
        flows.reviews(ada).SubmitReview(edit), StatusCode.INVALID_ARGUMENT, "the limit is 500000"
    )


async def test_without_auto_advance_each_phase_waits_for_its_start(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image, auto_advance=False)
    early = flows.phases(ada).StartPhase(start(created.id, 2))
    await refused(early, StatusCode.FAILED_PRECONDITION, "phase 1 isn't completed")

    await flows.complete(ada, await flows.claim(ada, created.id, 1), flows.analysis())
    product = (await flows.get(ada, created.id)).product
    assert product.state == product_pb2.PRODUCT_STATE_PROCESSING and not product.is_pipeline_running
    await refused(flows.claim(ada, created.id, 2), StatusCode.FAILED_PRECONDITION, "isn't due")
    assert (await flows.phases(ada).StartPhase(start(created.id, 2))).phase.due

    again = flows.phases(ada).StartPhase(start(created.id, 2))
    await refused(again, StatusCode.FAILED_PRECONDITION, "waits for a runner already")
    assert (await flows.get(ada, created.id)).product.is_pipeline_running
    await flows.complete(ada, await flows.claim(ada, created.id, 2), NOTHING)


async def test_what_the_state_forbids_is_refused_with_the_state(suite: Suite) -> None:
    ada, image = await with_image(suite)
    created = await flows.outside(ada, image, [1])

    service = flows.phases(ada)
    await refused(
        service.RetryPhase(retry(created.id, 1)),
        StatusCode.FAILED_PRECONDITION,
        "only a failed or stopped",
    )
    await refused(
        service.StopPhase(stop(created.id, 3)), StatusCode.FAILED_PRECONDITION, "a phase before it"
    )
    await refused(
        service.StartPhase(start(created.id, 1)),
        StatusCode.FAILED_PRECONDITION,
        "waits for a runner already",
    )
    await refused(
        flows.claim(ada, created.id, 2), StatusCode.FAILED_PRECONDITION, "this service runs it"
    )
    await refused(flows.claim(ada, created.id, 5), StatusCode.INVALID_ARGUMENT, "phase")
    await refused(flows.claim(ada, str(uuid.uuid4()), 1), StatusCode.NOT_FOUND)
