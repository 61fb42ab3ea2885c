"""Phases run again, in order, with what was before still to be read; many phases at once; a phase
that is paused for everyone."""

import asyncio
from typing import Any

import pytest
from atelier.pipeline.v1 import (
    phase_pause_pb2,
    phase_pause_pb2_grpc,
    phase_pb2,
    product_pb2,
    result_pb2,
    review_pb2,
)
from grpc import StatusCode

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.pipeline import flows
from tests.suite import Client, Suite

WRONG_STATE = StatusCode.FAILED_PRECONDITION
PENDING, COMPLETED = phase_pb2.PHASE_STATE_PENDING, phase_pb2.PHASE_STATE_COMPLETED
SEO = result_pb2.PhaseValue(seo_analysis=result_pb2.SeoAnalysis(title="Field jacket"))


async def rerun(
    client: Client, product_id: str, phase: int, **fields: Any
) -> list[phase_pb2.Phase]:
    request = phase_pb2.RerunPhaseRequest(
        request_id=flows.request_id(), product_id=product_id, phase=phase, **fields
    )
    return list((await flows.phases(client).RerunPhase(request)).phases)


async def ready(suite: Suite, phases: list[int], **fields: Any) -> tuple[Client, str]:
    """Returns a caller and a product of hers whose phase 1 is due; these phases are outside
    workers'."""
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    image = await asset_flows.upload(ada, flows.photo())
    created = await flows.outside(ada, image.id, phases, **fields)
    return ada, created.id


async def complete(
    client: Client, product_id: str, phase: int, value: result_pb2.PhaseValue
) -> None:
    claimed = await flows.claim(client, product_id, phase)
    await flows.complete(client, claimed, value)


async def due(client: Client, product_id: str, phase: int) -> None:
    async with asyncio.timeout(20):
        while not (await flows.get(client, product_id)).product.phases[phase - 1].due:
            await asyncio.sleep(0.05)


async def test_a_phase_runs_again_and_those_after_it_follow(suite: Suite) -> None:
    ada, product_id = await ready(suite, [1, 3, 4])
    await complete(ada, product_id, 1, flows.analysis("Canvas jacket"))
    await due(ada, product_id, 3)
    await complete(ada, product_id, 3, SEO)
    await due(ada, product_id, 4)
    busy = rerun(ada, product_id, 1)
    await refused(busy, WRONG_STATE, "phase 4 after it is waiting for a worker", "StopPhase")
    listing = result_pb2.PhaseValue(product_listing=result_pb2.ProductListing(title="Jacket"))
    await complete(ada, product_id, 4, listing)
    before = await flows.get(ada, product_id)
    assert before.product.state == product_pb2.PRODUCT_STATE_COMPLETED
    old = before.product.phases[0].etag
    await refused(rerun(ada, product_id, 1, etag="1"), StatusCode.ABORTED, "was changed")

    shown = await rerun(ada, product_id, 1, etag=old)
    assert [(each.number, each.state, each.due, each.stale) for each in shown] == [
        (1, PENDING, True, False),
        (2, PENDING, False, True),
        (3, PENDING, False, True),
        (4, PENDING, False, True),
    ]
    now = await flows.get(ada, product_id)
    assert now.product.state == product_pb2.PRODUCT_STATE_PROCESSING
    assert len(now.results) == 4, "results stay until they are replaced"
    await refused(rerun(ada, product_id, 1), WRONG_STATE, "it is pending", "StopPhase")
    await refused(rerun(ada, product_id, 3), WRONG_STATE, "it is pending")

    await complete(ada, product_id, 1, flows.analysis("Waxed jacket"))
    await due(ada, product_id, 3)
    phases = (await flows.get(ada, product_id)).product.phases
    assert [each.stale for each in phases] == [False, False, True, True]
    await complete(ada, product_id, 3, SEO)
    await due(ada, product_id, 4)
    await complete(ada, product_id, 4, listing)
    last = await flows.get(ada, product_id)
    assert last.product.state == product_pb2.PRODUCT_STATE_COMPLETED
    assert not any(each.stale for each in last.product.phases)
    assert last.results[0].value.product_analysis.name == "Waxed jacket"

    past = phase_pb2.ListPastResultsRequest(product_id=product_id, phase=1)
    [earlier] = (await flows.phases(ada).ListPastResults(past)).results
    assert earlier.value.product_analysis.name == "Canvas jacket"
    attempts = phase_pb2.ListPhaseAttemptsRequest(product_id=product_id, phase=1)
    tried = (await flows.phases(ada).ListPhaseAttempts(attempts)).attempts
    assert [each.outcome for each in tried] == [phase_pb2.ATTEMPT_OUTCOME_SUCCEEDED] * 2
    assert all(each.worker == "outside:ada" and each.end_time.seconds for each in tried)


async def test_a_review_that_waits_is_withdrawn_when_a_phase_before_runs_again(
    suite: Suite,
) -> None:
    ada, product_id = await ready(suite, [1, 3], auto_advance=False)
    await complete(ada, product_id, 1, flows.analysis())
    for number in (2, 3):
        start = phase_pb2.StartPhaseRequest(product_id=product_id, phase=number)
        await flows.phases(ada).StartPhase(start)
        if number == 2:
            await _completed(ada, product_id, 2)
    await flows.complete(ada, await flows.claim(ada, product_id, 3), SEO, confidence=0.3)
    await refused(rerun(ada, product_id, 3), WRONG_STATE, "SEND_BACK")

    await rerun(ada, product_id, 2)
    await _completed(ada, product_id, 2)
    shown = await flows.get(ada, product_id)
    assert shown.reviews[0].state == review_pb2.REVIEW_STATE_WITHDRAWN
    third = shown.product.phases[2]
    assert third.stale and third.state == PENDING and not third.due, "nobody has started it"
    await flows.phases(ada).StartPhase(phase_pb2.StartPhaseRequest(product_id=product_id, phase=3))
    await due(ada, product_id, 3)


async def _completed(client: Client, product_id: str, phase: int) -> None:
    async with asyncio.timeout(20):
        while True:
            found = (await flows.get(client, product_id)).product.phases[phase - 1]
            if found.state == COMPLETED:
                return
            await asyncio.sleep(0.05)


async def test_many_phases_are_changed_at_once_and_each_is_answered(suite: Suite) -> None:
    ada, product_id = await ready(suite, [1, 2, 3, 4])
    nobody = "0190a5c0-0000-7000-8000-000000000000"
    names = [
        phase_pb2.PhaseName(product_id=product_id, phase=1),
        phase_pb2.PhaseName(product_id=nobody, phase=1),
        phase_pb2.PhaseName(product_id=product_id, phase=4),
    ]
    request = phase_pb2.BatchUpdatePhasesRequest(
        request_id="stop-all", action=phase_pb2.PHASE_ACTION_STOP, phases=names
    )
    answer = await flows.phases(ada).BatchUpdatePhases(request)
    assert [each.error_reason for each in answer.results] == ["", "NOT_FOUND", "WRONG_STATE"]
    assert answer.refused_count == 2
    assert answer.results[0].state == phase_pb2.PHASE_STATE_STOPPED
    assert "stop that one" in answer.results[2].error_message
    again = await flows.phases(ada).BatchUpdatePhases(request)
    assert again.results[0] == answer.results[0]

    retry = phase_pb2.BatchUpdatePhasesRequest(
        action=phase_pb2.PHASE_ACTION_RETRY, phases=names[:1]
    )
    [result] = (await flows.phases(ada).BatchUpdatePhases(retry)).results
    assert result.state == PENDING
    assert (await flows.get(ada, product_id)).product.phases[0].retry_count == 1
    none = phase_pb2.BatchUpdatePhasesRequest(action=phase_pb2.PHASE_ACTION_STOP)
    await refused(flows.phases(ada).BatchUpdatePhases(none), StatusCode.INVALID_ARGUMENT, "phases")


@pytest.mark.long
async def test_a_phase_that_is_paused_waits_with_its_reason_and_goes_on(suite: Suite) -> None:
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada, admin = suite.client("ada"), suite.client("root", role="admin")
    pauses = admin.stub(phase_pause_pb2_grpc.PhasePauseServiceStub)
    for number in (1, 2):
        pause = phase_pause_pb2.PausePhaseRequest(phase=number, reason="prices are wrong")
        await pauses.PausePhase(pause)
    image = await asset_flows.upload(ada, flows.photo())
    created = await flows.outside(ada, image.id, [1, 3])
    claim = flows.claim(ada, created.id, 1)
    await refused(claim, WRONG_STATE, "paused phase 1", "prices are wrong")
    await pauses.ResumePhase(phase_pause_pb2.ResumePhaseRequest(phase=1))

    watching = flows.watch(ada, created.id)
    await complete(ada, created.id, 1, flows.analysis())
    waiting = await watching.until(lambda change: change.phase.wait.what == "a pause")
    assert "prices are wrong" in waiting.phase.error_message
    explain = product_pb2.ExplainProductRequest(product_id=created.id)
    explained = await flows.products(ada).ExplainProduct(explain)
    assert "ResumePhase" in str(explained)
    listed = await ada.stub(phase_pause_pb2_grpc.PhasePauseServiceStub).ListPhasePauses(
        phase_pause_pb2.ListPhasePausesRequest()
    )
    assert [(each.phase, each.reason) for each in listed.pauses] == [(2, "prices are wrong")]

    resumed = await pauses.ResumePhase(phase_pause_pb2.ResumePhaseRequest(phase=2))
    assert resumed.was_paused
    await watching.until(flows.phase_is(2, COMPLETED))
    await watching.close()
    phase = phase_pause_pb2.PausePhaseRequest(phase=1, reason="x")
    mine = ada.stub(phase_pause_pb2_grpc.PhasePauseServiceStub).PausePhase(phase)
    await refused(mine, StatusCode.PERMISSION_DENIED)
