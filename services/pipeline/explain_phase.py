"""ExplainPhase: shows each condition that decides where a phase stands, as a question with its
answer and what to do next."""

from collections.abc import Callable, Sequence

from atelier.pipeline.v1 import phase_pb2 as pb
from atelier.pipeline.v1 import phase_pb2_grpc

from services.pipeline import explaining, rules
from services.pipeline.explaining import Known, in_iso, next_try
from services.pipeline.phase_pause_rows import in_words
from services.pipeline.phase_rows import Phase, named
from shared.background.jobs import JobQueue
from shared.database.db import Database
from shared.database.ids import parse_id
from shared.rpc import auth
from shared.rpc.calls import Peers
from shared.rpc.server import Context

_OPEN = ("pending", "running", "awaiting_review")


class ExplainPhaseCalls(phase_pb2_grpc.PhaseServiceServicer):
    """Implements ExplainPhase of PhaseService."""

    _db: Database
    _peers: Peers
    _queue: JobQueue

    async def ExplainPhase(
        self, request: pb.ExplainPhaseRequest, context: Context
    ) -> pb.ExplainPhaseResponse:
        auth.act_for(request.owner or auth.current().owner)
        product_id = parse_id(request.product_id, "product_id")
        known = await explaining.look(self._db, self._queue, self._peers, product_id)
        phase = known.phases[request.phase - 1]
        whole = explaining.phase_answer(known, phase)
        answers = [answer for question in _QUESTIONS if (answer := question(known, phase))]
        wrong = [answer for answer in answers if not answer.ok and answer.next_step]
        return pb.ExplainPhaseResponse(
            summary=f"{whole.question} {whole.answer}",
            next_step=whole.next_step or (wrong[0].next_step if wrong else ""),
            answers=answers,
        )


def _ok(question: str, answer: str) -> pb.PhaseAnswer:
    return pb.PhaseAnswer(question=question, answer=answer, ok=True)


def _not(question: str, answer: str, next_step: str = "") -> pb.PhaseAnswer:
    return pb.PhaseAnswer(question=question, answer=answer, next_step=next_step)


def _state(_known: Known, phase: Phase) -> pb.PhaseAnswer:
    asked = "how far is it?"
    match phase.state:
        case "completed":
            return _ok(asked, "it is completed")
        case "failed":
            text = f"it failed ({phase.error_class}): {phase.error_message}"
            return _not(asked, text, "you mend what the message names, then RetryPhase")
        case "stopped":
            at = f" at {in_iso(phase.stopped_at)}" if phase.stopped_at else ""
            return _not(asked, f"it was stopped{at}", "you call RetryPhase")
    return _not(asked, f"it is {phase.state.replace('_', ' ')}")


def _trash(known: Known, _phase: Phase) -> pb.PhaseAnswer:
    asked, row = "is its product in use?", known.row
    if not row.deleted_at:
        return _ok(asked, "yes, it isn't in the trash")
    text = f"no, it is in the trash since {in_iso(row.deleted_at)}"
    return _not(asked, text, "you call UndeleteProduct")


def _images(known: Known, _phase: Phase) -> pb.PhaseAnswer:
    said = explaining.images_answer(known)
    return pb.PhaseAnswer(
        question="are the product's images ready?",
        answer=said.answer,
        ok=said.ok,
        next_step=said.next_step,
    )


def _before(known: Known, phase: Phase) -> pb.PhaseAnswer | None:
    if phase.number == rules.PHASES[0]:
        return None
    asked, earlier = "are the phases before it completed?", known.before(phase)
    if earlier is None:
        return _ok(asked, "yes")
    text = f"no, {named(earlier)} is {earlier.state.replace('_', ' ')}"
    return _not(asked, text, f"ExplainPhase of phase {earlier.number} says what that one needs")


def _started(known: Known, phase: Phase) -> pb.PhaseAnswer | None:
    if phase.state not in _OPEN:
        return None
    asked = "is it started?"
    if phase.started:
        return _ok(asked, "yes")
    if known.before(phase) is not None or known.row.preparation != "done":
        how = "by itself" if known.row.auto_advance or phase.number == 1 else "by StartPhase"
        return _not(asked, f"no, it is started {how} once what it rests on is there")
    return _not(asked, "no, nobody has started it", "you call StartPhase")


def _paused(known: Known, phase: Phase) -> pb.PhaseAnswer:
    asked, pause = "may it be begun now?", known.pauses.get(phase.number)
    if pause is None:
        return _ok(asked, "yes, no operator has paused it")
    if phase.state != "pending":
        return _ok(asked, f"not again, {in_words(pause)}; as it is now, it isn't touched by that")
    return _not(asked, f"no, {in_words(pause)}", "the operator calls ResumePhase")


def _runner(_known: Known, phase: Phase) -> pb.PhaseAnswer:
    if phase.external:
        return _ok("who runs it?", "an outside worker, which calls ClaimPhase or ClaimNextPhase")
    return _ok("who runs it?", "a worker of this service")


def _holder(known: Known, phase: Phase) -> pb.PhaseAnswer | None:
    if phase.state != "running":
        return None
    asked = "who has it now?"
    since = f" since {in_iso(phase.started_at)}" if phase.started_at else ""
    if not phase.external:
        stops = "; it was asked to stop" if phase.cancel_requested else ""
        return _ok(asked, f"a worker of this service{since}{stops}")
    until = f" until {in_iso(phase.lease_expires_at)}" if phase.lease_expires_at else ""
    if phase.lease_expires_at and phase.lease_expires_at < known.now:
        text = f"an outside worker{since}, which let its lease pass{until.replace('until', 'at')}"
        step = "another worker calls ClaimPhase or ClaimNextPhase"
        if phase.attempt_number >= rules.MAX_ATTEMPTS:
            step = "you call RetryPhase once it is FAILED, in a moment: this was its last attempt"
        return _not(asked, text, step)
    text = f"an outside worker{since}, by a lease{until}"
    return _ok(asked, text)


def _wait(known: Known, phase: Phase) -> pb.PhaseAnswer | None:
    if not rules.is_due(phase) or phase.number in known.pauses:
        return None
    asked, turn = "what does it wait for?", known.turns.get(str(phase.id))
    if phase.external:
        step = "your worker calls ClaimPhase or ClaimNextPhase"
        return _not(asked, "for an outside worker to claim it", step)
    if phase.waits_for and phase.waiting_since:
        since = in_iso(phase.waiting_since)
        text = f"for {phase.waits_for} since {since}: {phase.error_message}"
        return _not(asked, f"{text}{next_try(turn)}")
    if place := known.positions.get(phase.id):
        return _not(asked, f"for its turn: it is number {place} in the queue{next_try(turn)}")
    return _not(asked, f"for a worker, which is about to begin{next_try(turn)}")


def _attempts(_known: Known, phase: Phase) -> pb.PhaseAnswer:
    asked, most = "what came of its attempts?", rules.MAX_ATTEMPTS
    if not phase.attempt_number:
        return _ok(asked, f"none was made since it was last started; it fails after {most} faults")
    last = f"; the last one said {phase.error_class}: {phase.error_message}"
    faults = phase.attempt_number if phase.external else phase.faults
    counted = "leases" if phase.external else "faults"
    text = (
        f"{phase.attempt_number} begun; it fails after {most} {counted}, of which it had {faults}"
    )
    if phase.external:
        text = f"{phase.attempt_number} begun; the lease of number {most} is the last one"
    said = last if phase.error_class else ""
    return _ok(asked, f"{text}{said}; ListPhaseAttempts shows each")


def _review(known: Known, phase: Phase) -> pb.PhaseAnswer | None:
    review = known.reviews.get(phase.number)
    if phase.state != "awaiting_review" or review is None:
        return None
    asked = "does a person have to decide?"
    sure = 0.0 if phase.confidence is None else phase.confidence
    text = f"yes, its confidence is {sure:.2f}; review {review.id} is open"
    if review.claimed_by and review.claim_expires_at:
        text += f", and {review.claimed_by} has claimed it until {in_iso(review.claim_expires_at)}"
        return _not(asked, text, f"{review.claimed_by} calls SubmitReview")
    return _not(asked, f"{text}, and nobody has claimed it", "a reviewer calls SubmitReview")


def _stale(_known: Known, phase: Phase) -> pb.PhaseAnswer:
    asked = "is its result up to date?"
    if phase.stale:
        text = "no, a phase before it was run again; its result stays until it has run again, too"
        return _not(asked, text)
    return _ok(asked, "yes, or it has none yet")


_QUESTIONS: Sequence[Callable[[Known, Phase], pb.PhaseAnswer | None]] = (
    _state,
    _trash,
    _images,
    _before,
    _started,
    _paused,
    _runner,
    _holder,
    _wait,
    _attempts,
    _review,
    _stale,
)
