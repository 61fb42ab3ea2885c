"""PhaseService: starts, stops, retries and re-runs phases. What it shows is in `phase_history` and
`explain_phase`, what runners call in `phase_runners`."""

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

import psycopg
from atelier.pipeline.v1 import phase_pb2 as pb
from grpc.aio import ServicerContext

from services.pipeline import phase_rows, product_rows, progress, rules
from services.pipeline.explain_phase import ExplainPhaseCalls
from services.pipeline.phase_history import HistoryCalls
from services.pipeline.phase_rows import LockedPhase, Phase, wrong_state
from services.pipeline.phase_runners import RunnerCalls
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.rows import Statement
from shared.rpc import errors
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError, Reason

_SELECT_OPEN_PHASE_BEFORE = Statement(
    UUID,
    """
    SELECT id FROM phases
    WHERE product_id = %(product_id)s AND number < %(number)s AND state <> 'completed' LIMIT 1
""",
)


class _ChangeRequest(Protocol):
    """A request to change one phase."""

    product_id: str
    phase: int
    etag: str


class PhaseService(HistoryCalls, RunnerCalls, ExplainPhaseCalls):
    def __init__(
        self, db: Database, flows: progress.Progress, queue: JobQueue, peers: Peers
    ) -> None:
        self._db = db
        self._flows = flows
        self._queue = queue
        self._peers = peers

    async def StartPhase(
        self, request: pb.StartPhaseRequest, context: ServicerContext
    ) -> pb.StartPhaseResponse:
        async def work(m: Mutation) -> pb.StartPhaseResponse:
            phase = await _lock(m, request)
            await _check_startable(m, phase)
            row = await self._flows.start(m, phase)
            await progress.settle(m, phase.product_id)
            return pb.StartPhaseResponse(phase=phase_rows.to_proto(row))

        return await self._db.mutate(request, pb.StartPhaseResponse, work)

    async def StopPhase(
        self, request: pb.StopPhaseRequest, context: ServicerContext
    ) -> pb.StopPhaseResponse:
        async def work(m: Mutation) -> pb.StopPhaseResponse:
            row, outcome = await _stop(m, await _lock(m, request))
            return pb.StopPhaseResponse(phase=phase_rows.to_proto(row), outcome=outcome)

        return await self._db.mutate(request, pb.StopPhaseResponse, work)

    async def RetryPhase(
        self, request: pb.RetryPhaseRequest, context: ServicerContext
    ) -> pb.RetryPhaseResponse:
        async def work(m: Mutation) -> pb.RetryPhaseResponse:
            phase = await _lock(m, request)
            if phase.state not in ("failed", "stopped") and not await _images_failed(m, phase):
                raise wrong_state(
                    phase, f"it is {phase.state}; only a failed or stopped phase is run again"
                )
            await progress.log(m, phase, "phase_retry", "somebody asked to run it again")
            row = await self._flows.retry(m, phase)
            await progress.settle(m, row.product_id)
            return pb.RetryPhaseResponse(phase=phase_rows.to_proto(row))

        return await self._db.mutate(request, pb.RetryPhaseResponse, work)

    async def RerunPhase(
        self, request: pb.RerunPhaseRequest, context: ServicerContext
    ) -> pb.RerunPhaseResponse:
        async def work(m: Mutation) -> pb.RerunPhaseResponse:
            product_id = parse_id(request.product_id, "product_id")
            numbers = range(request.phase, rules.PHASES[-1] + 1)
            phase, *later = [await phase_rows.lock(m, product_id, each) for each in numbers]
            errors.check_etag(request.etag, phase.version, "phase", phase.number)
            await _check_rerunnable(m, phase, later)
            await progress.log(m, phase, "phase_rerun", f"{m.actor} asked to run it again")
            await progress.mark_stale(m, later)
            await self._flows.retry(m, phase)
            await progress.settle(m, product_id)
            rows = await m.all(phase_rows.SELECT_PHASES, {"ids": [product_id]})
            shown = [phase_rows.to_proto(row) for row in rows if row.number >= request.phase]
            return pb.RerunPhaseResponse(phases=shown)

        return await self._db.mutate(request, pb.RerunPhaseResponse, work)

    async def BatchUpdatePhases(
        self, request: pb.BatchUpdatePhasesRequest, context: ServicerContext
    ) -> pb.BatchUpdatePhasesResponse:
        async def begin(_m: Mutation) -> pb.BatchUpdatePhasesResponse:
            return pb.BatchUpdatePhasesResponse()

        # Refuses a request_id that another request has. Each phase has an answer of its own.
        answer = await self._db.mutate(request, pb.BatchUpdatePhasesResponse, begin)
        for number, name in enumerate(request.phases):
            result = answer.results.add(product_id=name.product_id, number=name.phase)
            named = request.request_id and f"{request.request_id}/{number}"
            try:
                phase = await self._update(request.action, name, named, context)
                result.state = phase.state
            except (DomainError, psycopg.Error, TimeoutError) as error:
                refusal = _refusal(error)
                reason = Reason.Name(refusal.reason).removeprefix("ERROR_REASON_")
                result.error_reason, result.error_message = reason, refusal.text[:500]
                answer.refused_count += 1
        return answer

    async def _update(
        self, action: pb.PhaseAction, name: pb.PhaseName, request_id: str, context: ServicerContext
    ) -> pb.Phase:
        """Does one item of a batch, and returns the phase."""
        product_id, phase = name.product_id, name.phase
        if action == pb.PHASE_ACTION_START:
            start = pb.StartPhaseRequest(request_id=request_id, product_id=product_id, phase=phase)
            return (await self.StartPhase(start, context)).phase
        if action == pb.PHASE_ACTION_STOP:
            stop = pb.StopPhaseRequest(request_id=request_id, product_id=product_id, phase=phase)
            return (await self.StopPhase(stop, context)).phase
        if action == pb.PHASE_ACTION_RETRY:
            retry = pb.RetryPhaseRequest(request_id=request_id, product_id=product_id, phase=phase)
            return (await self.RetryPhase(retry, context)).phase
        rerun = pb.RerunPhaseRequest(request_id=request_id, product_id=product_id, phase=phase)
        return (await self.RerunPhase(rerun, context)).phases[0]


async def _check_startable(m: Mutation, phase: Phase) -> None:
    if phase.state != "pending" or phase.started:
        pending = phase.state == "pending"
        state = "waits for a runner already" if pending else f"is {phase.state}"
        hint = "; RetryPhase runs it again" if phase.state in ("failed", "stopped") else ""
        raise wrong_state(phase, f"it {state}{hint}")
    if await _is_phase_open_before(m, phase):
        raise wrong_state(phase, f"phase {phase.number - 1} isn't completed")
    if await _preparation(m, phase) != "done":
        text = "the product's images aren't all READY; it starts by itself once they are"
        raise wrong_state(phase, text)


async def _check_rerunnable(m: Mutation, phase: Phase, later: Sequence[Phase]) -> None:
    """Raises FAILED_PRECONDITION unless the phase has ended and no later one is under way."""
    if phase.state not in ("completed", "failed", "stopped"):
        hint = {
            "pending": "wait for it, or StopPhase",
            "running": "wait for it, or StopPhase",
            "awaiting_review": "decide its review; SEND_BACK runs it again",
        }[phase.state]
        raise wrong_state(phase, f"it is {phase.state.replace('_', ' ')}; {hint}")
    if await _is_phase_open_before(m, phase):
        text = "a phase before it isn't completed; run that one, and this one follows"
        raise wrong_state(phase, text)
    for each in later:
        if each.state == "running" or rules.is_due(each):
            state = "under way" if each.state == "running" else "waiting for a worker"
            text = f"phase {each.number} after it is {state}; wait for it, or StopPhase"
            raise wrong_state(phase, text)


async def _stop(m: Mutation, phase: LockedPhase) -> tuple[LockedPhase, pb.StopOutcome]:
    if phase.state in ("completed", "failed"):
        raise wrong_state(phase, f"it is {phase.state}; there is nothing to stop")
    if phase.state == "stopped":
        return phase, pb.STOP_OUTCOME_WAS_STOPPED
    if await _is_phase_open_before(m, phase):
        raise wrong_state(phase, "a phase before it is under way; stop that one")
    if phase.state == "running" and not phase.external:
        return await progress.request_stop(m, phase), pb.STOP_OUTCOME_REQUESTED
    row = await progress.stop(m, phase)
    await progress.settle(m, row.product_id)
    return row, pb.STOP_OUTCOME_STOPPED


async def _is_phase_open_before(m: Mutation, phase: Phase) -> bool:
    wanted = {"product_id": phase.product_id, "number": phase.number}
    return await m.first(_SELECT_OPEN_PHASE_BEFORE, wanted) is not None


async def _preparation(m: Mutation, phase: Phase) -> str:
    return await m.one(product_rows.SELECT_PREPARATION, {"id": phase.product_id})


async def _images_failed(m: Mutation, phase: Phase) -> bool:
    return phase.number == 1 and await _preparation(m, phase) == "failed"


async def _lock(m: Mutation, request: _ChangeRequest) -> LockedPhase:
    phase = await phase_rows.lock(m, parse_id(request.product_id, "product_id"), request.phase)
    errors.check_etag(request.etag, phase.version, "phase", phase.number)
    return phase


def _refusal(error: Exception) -> DomainError:
    """Returns why one phase of a batch wasn't changed. Raises the error if it is a fault of this
    service."""
    refusal = error if isinstance(error, DomainError) else errors.passing(error)
    if refusal is None or refusal.reason == Reason.ERROR_REASON_INTERNAL:
        raise error
    return refusal
