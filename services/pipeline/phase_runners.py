"""The calls of PhaseService for outside runners: they claim phases, renew their leases, and
complete or fail them."""

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from atelier.assets.v1 import asset_pb2
from atelier.pipeline.v1 import phase_pb2 as pb
from atelier.pipeline.v1 import phase_pb2_grpc
from grpc.aio import ServicerContext

from services.pipeline import (
    outside,
    phase_inputs,
    phase_pause_rows,
    phase_rows,
    progress,
    result_rows,
    rules,
    sources,
)
from services.pipeline.checking import check_usable, stored_value
from services.pipeline.phase_rows import LockedPhase, Phase, wrong_state
from services.pipeline.product_rows import ProductImage
from shared.background import leases
from shared.database.db import Database, Mutation, forget_answer
from shared.database.ids import parse_id
from shared.rpc import auth, errors, paging
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError
from shared.rpc.protos import facts_message, timestamp


class _PhaseRequest(Protocol):
    """A request about one phase."""

    product_id: str
    phase: int


class _RunnerRequest(_PhaseRequest, Protocol):
    """A request of the outside worker that has claimed the phase."""

    attempt_token: str


class RunnerCalls(phase_pb2_grpc.PhaseServiceServicer):
    """Implements ClaimPhase, ClaimNextPhase, HeartbeatPhase, CompletePhase and FailPhase."""

    _db: Database
    _flows: progress.Progress
    _peers: Peers

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

    async def ClaimNextPhase(
        self, request: pb.ClaimNextPhaseRequest, context: ServicerContext
    ) -> pb.ClaimNextPhaseResponse:
        caller = auth.current()
        claim = self._claim_next
        if outside.of_deployment():
            claim = self._claim_for_any
        else:
            auth.act_for(request.owner)

        async def work(m: Mutation) -> pb.ClaimNextPhaseResponse:
            return await claim(m, request) or pb.ClaimNextPhaseResponse()

        answer = await self._db.mutate(request, pb.ClaimNextPhaseResponse, work)
        if answer.attempt_token:
            if outside.of_deployment():
                outside.act_for(answer.owner)
            try:
                await self._add_inputs(answer)
            except DomainError as refusal:
                if errors.passing(refusal):
                    await self._undo_claim(request, caller, answer)
                raise
        return answer

    async def _claim_for_any(
        self, m: Mutation, request: pb.ClaimNextPhaseRequest
    ) -> pb.ClaimNextPhaseResponse | None:
        """Claims a phase for a runner of the deployment: of the owner whose turn it is, unless the
        request names one. The transaction acts for that owner meanwhile."""
        owners: Sequence[str] = [request.owner]
        if not request.owner:
            owners = await outside.owners_in_turn(m, request.phases)
        for owner in owners:
            with m.acting_for(owner):
                answer = await self._claim_next(m, request)
                if answer is not None:
                    await outside.take_turn(m)
                    return answer
        return None

    async def _claim_next(
        self, m: Mutation, request: pb.ClaimNextPhaseRequest
    ) -> pb.ClaimNextPhaseResponse | None:
        """Claims a phase of the transaction's owner. Returns None if none waits."""
        phase = await outside.lock_next(m, request.phases)
        if phase is None:
            return None
        if phase.state == "running":
            phase = await progress.expire_lease(m, phase)
        seconds = request.lease_seconds or rules.DEFAULT_LEASE_SECONDS
        row = await leases.begin(m, progress.JOBS, phase, m.actor, seconds)
        return pb.ClaimNextPhaseResponse(
            phase=phase_rows.to_proto(row), attempt_token=str(row.attempt_token), owner=m.owner
        )

    async def _add_inputs(self, answer: pb.ClaimNextPhaseResponse) -> None:
        """Adds what is known about the product, and URLs of now. They aren't kept for a repeat."""
        product_id, number = UUID(answer.phase.product_id), answer.phase.number
        async with self._db.transaction(auth.current().owner) as m:
            phase = await phase_rows.lock(m, product_id, number)
            inputs = await phase_inputs.read(m, phase)
        found = await self._peers.assets((str(row.asset_id) for row in inputs.images), urls=True)
        answer.facts.CopyFrom(facts_message(inputs.facts()))
        answer.images.extend(_image(row, found.get(str(row.asset_id))) for row in inputs.images)
        answer.results.extend(map(result_rows.to_proto, inputs.results))
        room = paging.ANSWER_BYTES - answer.ByteSize()
        room += sum(each.ByteSize() for each in answer.results)
        paging.trim_to_limit(answer.results, ("evidence", "findings"), room)

    async def _undo_claim(
        self,
        request: pb.ClaimNextPhaseRequest,
        caller: auth.Identity,
        answer: pb.ClaimNextPhaseResponse,
    ) -> None:
        """Makes a phase wait again whose images can't be asked for, as if nobody had claimed it."""
        identity = auth.current()
        async with self._db.transaction(identity.owner, identity.actor) as m:
            phase = await phase_rows.lock(m, UUID(answer.phase.product_id), answer.phase.number)
            await forget_answer(m, request, caller)
            if leases.is_claimed_by(progress.JOBS, phase, UUID(answer.attempt_token)):
                await progress.undo_claim(m, phase)

    async def HeartbeatPhase(
        self, request: pb.HeartbeatPhaseRequest, context: ServicerContext
    ) -> pb.HeartbeatPhaseResponse:
        await outside.act_for_claimed(self._db, request)
        identity = auth.current()
        seconds = request.lease_seconds or rules.DEFAULT_LEASE_SECONDS
        async with self._db.transaction(identity.owner, identity.actor) as m:
            phase = await _lock_claimed(m, request)
            row = await leases.extend(m, progress.JOBS, phase, seconds)
        return pb.HeartbeatPhaseResponse(lease_expire_time=timestamp(row.lease_expires_at))

    async def CompletePhase(
        self, request: pb.CompletePhaseRequest, context: ServicerContext
    ) -> pb.CompletePhaseResponse:
        await outside.act_for_claimed(self._db, request)
        value = stored_value(request.value, request.phase, "value")
        confidence = request.confidence if request.HasField("confidence") else None
        said = value[result_rows.VALUES[request.phase]]
        outcome = progress.PhaseOutcome(
            value,
            confidence,
            "runner",
            request.provider,
            [result_rows.plain(item) for item in request.evidence],
            sources.of_runner(said, request.provider, confidence),
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
        await outside.act_for_claimed(self._db, request)

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
        subject=phase_rows.subject(phase),
    )
    return phase


async def _lock_claimable(m: Mutation, request: _PhaseRequest) -> LockedPhase:
    """Locks the phase and returns it; ends a lease that has passed first. Raises
    FAILED_PRECONDITION unless an outside worker may claim it."""
    phase = await _lock(m, request)
    late = await leases.lock_late(m, progress.JOBS, phase.id) if phase.state == "running" else None
    if late is not None and late.attempt_number >= rules.MAX_ATTEMPTS:
        text = (
            f"{late.attempt_number} runners let their leases pass, so that it is about to be"
            " FAILED; call RetryPhase once it is"
        )
        raise wrong_state(phase, text)
    if late is not None:
        phase = await progress.expire_lease(m, late)
    if not (phase.external and rules.is_due(phase)):
        raise wrong_state(phase, _why_not_claimable(phase))
    for pause in await m.all(phase_pause_rows.SELECT_PAUSES, {"phases": [phase.number]}):
        raise wrong_state(phase, f"{phase_pause_rows.in_words(pause)}; claim it later")
    return phase


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


def _image(row: ProductImage, asset: asset_pb2.Asset | None) -> pb.PhaseImage:
    """Returns an image of a claimed phase. One whose asset is gone has no URL."""
    return pb.PhaseImage(
        asset_id=str(row.asset_id),
        view=row.view,
        primary=row.is_primary,
        url=asset.original_url if asset is not None else "",
        mime_type=row.mime_type,
        size_bytes=row.size_bytes,
        width=row.width,
        height=row.height,
    )
