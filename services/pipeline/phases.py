"""PhaseService: starts, stops and retries phases, and serves the outside runners that claim
them."""

from typing import Protocol
from uuid import UUID

from atelier.pipeline.v1 import phase_pb2 as pb
from atelier.pipeline.v1 import phase_pb2_grpc
from grpc.aio import ServicerContext

from services.pipeline import phase_rows, product_rows, progress, result_rows, rules
from services.pipeline.checking import check_usable, stored_value
from services.pipeline.phase_rows import LockedPhase, Phase
from shared.background import leases
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.rows import Statement
from shared.rpc import auth, errors
from shared.rpc.protos import timestamp

_SELECT_OPEN_PHASE_BEFORE = Statement(
    UUID,
    """
    SELECT id FROM phases
    WHERE product_id = %(product_id)s AND number < %(number)s AND state <> 'completed' LIMIT 1
""",
)


class _PhaseRequest(Protocol):
    """A request about one phase."""

    product_id: str
    phase: int


class _RunnerRequest(_PhaseRequest, Protocol):
    """A request of the outside runner that has claimed the phase."""

    attempt_token: str


class PhaseService(phase_pb2_grpc.PhaseServiceServicer):
    def __init__(self, db: Database, flows: progress.Progress) -> None:
        self._db = db
        self._flows = flows

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
                raise _wrong_state(
                    phase, f"it is {phase.state}; only a failed or stopped phase is run again"
                )
            await progress.log(m, phase, "phase_retry", "somebody asked to run it again")
            row = await self._flows.retry(m, phase)
            await progress.settle(m, row.product_id)
            return pb.RetryPhaseResponse(phase=phase_rows.to_proto(row))

        return await self._db.mutate(request, pb.RetryPhaseResponse, work)

    async def ClaimPhase(
        self, request: pb.ClaimPhaseRequest, context: ServicerContext
    ) -> pb.ClaimPhaseResponse:
        seconds = request.lease_seconds or rules.DEFAULT_LEASE_SECONDS

        async def work(m: Mutation) -> pb.ClaimPhaseResponse:
            phase = await _lock_claimable(m, request)
            row = await leases.begin(m, progress.JOBS, phase, m.actor, seconds)
            return pb.ClaimPhaseResponse(
                phase=phase_rows.to_proto(row), attempt_token=str(row.attempt_token)
            )

        return await self._db.mutate(request, pb.ClaimPhaseResponse, work)

    async def HeartbeatPhase(
        self, request: pb.HeartbeatPhaseRequest, context: ServicerContext
    ) -> pb.HeartbeatPhaseResponse:
        identity = auth.current()
        seconds = request.lease_seconds or rules.DEFAULT_LEASE_SECONDS
        async with self._db.transaction(identity.owner, identity.actor) as m:
            phase = await _lock_claimed(m, request)
            row = await leases.extend(m, progress.JOBS, phase, seconds)
        return pb.HeartbeatPhaseResponse(lease_expire_time=timestamp(row.lease_expires_at))

    async def CompletePhase(
        self, request: pb.CompletePhaseRequest, context: ServicerContext
    ) -> pb.CompletePhaseResponse:
        value = stored_value(request.value, request.phase, "value")
        outcome = progress.PhaseOutcome(
            value,
            request.confidence if request.HasField("confidence") else None,
            "runner",
            request.provider,
            [result_rows.plain(item) for item in request.evidence],
        )

        async def work(m: Mutation) -> pb.CompletePhaseResponse:
            phase = await _lock_claimed(m, request)
            await check_usable(m, phase, value, "value")
            await leases.end_attempt(m, phase, "succeeded")
            row, result = await self._flows.complete(
                m,
                phase,
                outcome,
                attempt_token=None,
                lease_expires_at=None,
                error_class="",
                error_message="",
            )
            return pb.CompletePhaseResponse(
                phase=phase_rows.to_proto(row), result=result_rows.to_proto(result)
            )

        return await self._db.mutate(request, pb.CompletePhaseResponse, work)

    async def FailPhase(
        self, request: pb.FailPhaseRequest, context: ServicerContext
    ) -> pb.FailPhaseResponse:
        async def work(m: Mutation) -> pb.FailPhaseResponse:
            phase = await _lock_claimed(m, request)
            row = await leases.give_up(
                m,
                progress.JOBS,
                phase,
                request.error_class,
                request.error_message,
                retryable=False,
            )
            return pb.FailPhaseResponse(phase=phase_rows.to_proto(row))

        return await self._db.mutate(request, pb.FailPhaseResponse, work)


async def _lock(m: Mutation, request: _PhaseRequest) -> LockedPhase:
    return await phase_rows.lock(m, parse_id(request.product_id, "product_id"), request.phase)


async def _lock_claimed(m: Mutation, request: _RunnerRequest) -> LockedPhase:
    """Locks the phase and returns it. Raises ATTEMPT_SUPERSEDED unless the request's token is the
    current one."""
    phase = await _lock(m, request)
    leases.check_claimed(
        progress.JOBS,
        phase,
        request.attempt_token,
        named=f"phase {phase.number}",
        subject=_subject(phase),
    )
    return phase


async def _lock_claimable(m: Mutation, request: _PhaseRequest) -> LockedPhase:
    """Locks the phase and returns it; ends a lease that has passed first. Raises
    FAILED_PRECONDITION unless an outside runner may claim it."""
    phase = await _lock(m, request)
    if phase.state == "running":
        late = await leases.lock_late(m, progress.JOBS, phase.id)
        phase = phase if late is None else await progress.expire_lease(m, late)
    if not (phase.external and rules.is_due(phase)):
        raise _wrong_state(phase, _why_not_claimable(phase))
    return phase


async def _check_startable(m: Mutation, phase: Phase) -> None:
    if phase.state != "pending" or phase.started:
        pending = phase.state == "pending"
        state = "waits for a runner already" if pending else f"is {phase.state}"
        hint = "; RetryPhase runs it again" if phase.state in ("failed", "stopped") else ""
        raise _wrong_state(phase, f"it {state}{hint}")
    if await _is_phase_open_before(m, phase):
        raise _wrong_state(phase, f"phase {phase.number - 1} isn't completed")
    if await _preparation(m, phase) != "done":
        text = "the product's images aren't all READY; it starts by itself once they are"
        raise _wrong_state(phase, text)


async def _stop(m: Mutation, phase: LockedPhase) -> tuple[LockedPhase, pb.StopOutcome]:
    if phase.state in ("completed", "failed"):
        raise _wrong_state(phase, f"it is {phase.state}; there is nothing to stop")
    if phase.state == "stopped":
        return phase, pb.STOP_OUTCOME_WAS_STOPPED
    if await _is_phase_open_before(m, phase):
        raise _wrong_state(phase, "a phase before it is under way; stop that one")
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


def _why_not_claimable(phase: Phase) -> str:
    if not phase.external:
        return "this service runs it; name it in run_phases_externally when you create the product"
    if phase.state == "running":
        return "another runner has it; wait until its lease passes"
    if phase.state == "pending":
        return (
            "it isn't due: the images aren't READY, the phase before it isn't completed, or nobody"
            " started it"
        )
    return f"it is {phase.state}"


def _wrong_state(phase: Phase, text: str) -> errors.DomainError:
    return errors.precondition(
        f"phase {phase.number}: {text}",
        subject=_subject(phase),
        metadata={"state": phase.state},
    )


def _subject(phase: Phase) -> str:
    return f"products/{phase.product_id}/phases/{phase.number}"
