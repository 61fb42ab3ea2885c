"""Phases: starting, stopping, retrying, and outside runners that claim them."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from atelier.pipeline.v1 import phase_pb2 as pb
from atelier.pipeline.v1 import phase_pb2_grpc

from services.pipeline import log_rows, progress, records, rules
from shared.background import attempts
from shared.database import states
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.rpc import auth, errors
from shared.rpc.errors import Reason
from shared.rpc.protos import facts as check_facts
from shared.rpc.protos import facts_message, timestamp

_LEASE = "UPDATE phases SET lease_expires_at = now() + make_interval(secs => %s) WHERE id = %s"
_HEARTBEAT = """
    UPDATE phases SET lease_expires_at = now() + make_interval(secs => %(seconds)s)
    WHERE product_id = %(product_id)s AND number = %(number)s AND state = 'running' AND external
        AND attempt_token = %(token)s
    RETURNING lease_expires_at
"""
_OPEN_PHASES_BEFORE = (
    "SELECT 1 AS n FROM phases WHERE product_id = %s AND number < %s AND state <> 'completed'"
    " LIMIT 1"
)


class PhaseService(phase_pb2_grpc.PhaseServiceServicer):
    def __init__(self, db: Database, flows: progress.Progress) -> None:
        self._db = db
        self._flows = flows

    async def StartPhase(
        self, request: pb.StartPhaseRequest, context: Any
    ) -> pb.StartPhaseResponse:
        async def work(m: Mutation) -> pb.StartPhaseResponse:
            phase = await _locked(m, request)
            if phase.state != "pending" or phase.started:
                state = (
                    "waits for a runner already"
                    if phase.state == "pending"
                    else f"is {phase.state}"
                )
                hint = "; RetryPhase runs it again" if phase.state in ("failed", "stopped") else ""
                raise _wrong_state(phase, f"it {state}{hint}")
            if await m.one(_OPEN_PHASES_BEFORE, (phase.product_id, phase.number)):
                raise _wrong_state(phase, f"phase {phase.number - 1} isn't completed")
            product = await m.one(
                "SELECT preparation FROM products WHERE id = %s", (phase.product_id,)
            )
            if product.preparation != "done":
                raise _wrong_state(
                    phase,
                    "the product's images aren't all READY; it starts by itself once they are",
                )
            row = await self._flows.start(m, phase)
            await progress.settle(m, phase.product_id)
            return pb.StartPhaseResponse(phase=records.phase(row))

        return await self._db.mutate(request, pb.StartPhaseResponse, work)

    async def StopPhase(self, request: pb.StopPhaseRequest, context: Any) -> pb.StopPhaseResponse:
        async def work(m: Mutation) -> pb.StopPhaseResponse:
            phase = await _locked(m, request)
            if phase.state in ("completed", "failed"):
                raise _wrong_state(phase, f"it is {phase.state}; there is nothing to stop")
            if phase.state == "stopped":
                return pb.StopPhaseResponse(
                    phase=records.phase(phase), outcome=pb.STOP_OUTCOME_WAS_STOPPED
                )
            if await m.one(_OPEN_PHASES_BEFORE, (phase.product_id, phase.number)):
                raise _wrong_state(phase, "a phase before it is under way; stop that one")
            if phase.state == "running" and not phase.external:
                row = await progress.move(m, phase, "running", cancel_requested=True)
                await log_rows.add(
                    m, row.product_id, row.number, "stop_requested", "the worker was asked to stop"
                )
                return pb.StopPhaseResponse(
                    phase=records.phase(row), outcome=pb.STOP_OUTCOME_REQUESTED
                )
            row = await progress.stop(m, phase)
            await progress.settle(m, row.product_id)
            return pb.StopPhaseResponse(phase=records.phase(row), outcome=pb.STOP_OUTCOME_STOPPED)

        return await self._db.mutate(request, pb.StopPhaseResponse, work)

    async def RetryPhase(
        self, request: pb.RetryPhaseRequest, context: Any
    ) -> pb.RetryPhaseResponse:
        async def work(m: Mutation) -> pb.RetryPhaseResponse:
            phase = await _locked(m, request)
            if phase.state not in ("failed", "stopped") and not await _images_failed(m, phase):
                raise _wrong_state(
                    phase, f"it is {phase.state}; only a failed or stopped phase is run again"
                )
            await log_rows.add(
                m, phase.product_id, phase.number, "phase_retry", "somebody asked to run it again"
            )
            row = await self._flows.again(m, phase)
            await progress.settle(m, row.product_id)
            return pb.RetryPhaseResponse(phase=records.phase(row))

        return await self._db.mutate(request, pb.RetryPhaseResponse, work)

    async def ClaimPhase(
        self, request: pb.ClaimPhaseRequest, context: Any
    ) -> pb.ClaimPhaseResponse:
        async def work(m: Mutation) -> pb.ClaimPhaseResponse:
            phase = await _locked(m, request)
            if phase.external and phase.state == "running" and phase.lease_passed:
                phase = await progress.lose(m, phase)
            if not (phase.external and rules.is_due(phase)):
                raise _wrong_state(phase, _why_not_claimable(phase))
            token = new_id()
            number = phase.attempt_number + 1
            await attempts.record_begin(m, token, "phases", phase.id, number, f"outside:{m.actor}")
            await m.run(_LEASE, (request.lease_seconds or rules.DEFAULT_LEASE_SECONDS, phase.id))
            row = await states.advance(
                m,
                rules.PHASE_STATES,
                "phases",
                phase.id,
                "running",
                attempt_token=token,
                attempt_number=number,
            )
            await progress.follow(m, row)
            row = await _locked(m, request)  # with the times that were stamped on the way
            return pb.ClaimPhaseResponse(phase=records.phase(row), attempt_token=str(token))

        return await self._db.mutate(request, pb.ClaimPhaseResponse, work)

    async def HeartbeatPhase(
        self, request: pb.HeartbeatPhaseRequest, context: Any
    ) -> pb.HeartbeatPhaseResponse:
        identity = auth.current()
        async with self._db.transaction(identity.owner, identity.actor) as m:
            held = await m.one(
                _HEARTBEAT,
                {
                    "seconds": request.lease_seconds or rules.DEFAULT_LEASE_SECONDS,
                    "number": request.phase,
                    "product_id": UUID(request.product_id),
                    "token": UUID(request.attempt_token),
                },
            )
            if held is None:
                raise _superseded(await _locked(m, request))
        return pb.HeartbeatPhaseResponse(lease_expire_time=timestamp(held.lease_expires_at))

    async def CompletePhase(
        self, request: pb.CompletePhaseRequest, context: Any
    ) -> pb.CompletePhaseResponse:
        value = checked_value(request.value, request.phase, "value")
        confidence = request.confidence if request.HasField("confidence") else None

        async def work(m: Mutation) -> pb.CompletePhaseResponse:
            phase = await _held(m, request)
            await check_usable(m, phase, value, "value")
            await progress.end_attempt(m, phase, "succeeded")
            row = await states.advance(
                m,
                rules.PHASE_STATES,
                "phases",
                phase.id,
                "awaiting_review" if rules.wants_review(confidence) else "completed",
                token=phase.attempt_token,
                attempt_token=None,
                lease_expires_at=None,
                confidence=confidence,
                error_class="",
                error_message="",
            )
            finding = progress.Finding(
                value,
                confidence,
                "runner",
                request.provider,
                [records.plain(item) for item in request.evidence],
            )
            result = await self._flows.finish(m, row, finding)
            row = await _locked(m, request)
            return pb.CompletePhaseResponse(phase=records.phase(row), result=records.result(result))

        return await self._db.mutate(request, pb.CompletePhaseResponse, work)

    async def FailPhase(self, request: pb.FailPhaseRequest, context: Any) -> pb.FailPhaseResponse:
        async def work(m: Mutation) -> pb.FailPhaseResponse:
            phase = await _held(m, request)
            row = await progress.fail(m, phase, request.error_class, request.error_message)
            return pb.FailPhaseResponse(phase=records.phase(row))

        return await self._db.mutate(request, pb.FailPhaseResponse, work)


def checked_value(value: Any, number: int, field: str) -> dict[str, Any]:
    """JSON of a PhaseValue that belongs to the phase and isn't too large; INVALID_ARGUMENT on
    `field` otherwise."""
    kind = records.VALUES[number]
    if value.WhichOneof("value") != kind:
        raise errors.invalid(field, f"phase {number} ({rules.PHASE_NAMES[number]}) needs {kind}")
    made = records.plain(value)
    size = len(json.dumps(made, ensure_ascii=False).encode())
    if size > rules.VALUE_BYTES:
        raise errors.invalid(field, f"is {size} bytes as JSON; the limit is {rules.VALUE_BYTES}")
    return made


async def check_usable(
    m: Mutation,
    phase: Any,
    value: dict[str, Any],
    field: str,
    said: Mapping[str, Any] | None = None,
) -> None:
    """INVALID_ARGUMENT if the phases that build on this value would refuse it as facts. `said`:
    what a reviewer said in it."""
    kind = records.VALUES[phase.number]
    product = await m.one(
        "SELECT name, model, facts FROM products WHERE id = %s", (phase.product_id,)
    )
    made = rules.facts_for(product, {phase.number: value[kind]}, {phase.number: said or {}})
    check_facts(facts_message(made), field)


async def _locked(m: Mutation, request: Any) -> Any:
    return await progress.lock_phase(m, parse_id(request.product_id, "product_id"), request.phase)


async def _held(m: Mutation, request: Any) -> Any:
    """The phase, locked, if the request's token is the current one."""
    phase = await _locked(m, request)
    if (
        phase.state != "running"
        or not phase.external
        or phase.attempt_token != UUID(request.attempt_token)
    ):
        raise _superseded(phase)
    return phase


async def _images_failed(m: Mutation, phase: Any) -> bool:
    product = await m.one("SELECT preparation FROM products WHERE id = %s", (phase.product_id,))
    return bool(phase.number == 1 and product.preparation == "failed")


def _why_not_claimable(phase: Any) -> str:
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


def _wrong_state(phase: Any, text: str) -> errors.DomainError:
    return errors.precondition(
        f"phase {phase.number}: {text}",
        subject=f"products/{phase.product_id}/phases/{phase.number}",
        metadata={"state": phase.state},
    )


def _superseded(phase: Any) -> errors.DomainError:
    return errors.precondition(
        f"phase {phase.number} is {phase.state}, and not by this attempt token: it was stopped, or"
        " its lease passed; nothing was changed, stop working on it",
        subject=f"products/{phase.product_id}/phases/{phase.number}",
        reason=Reason.ERROR_REASON_ATTEMPT_SUPERSEDED,
        metadata={"state": phase.state},
    )
