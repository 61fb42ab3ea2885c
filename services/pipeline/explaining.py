"""ExplainProduct: shows each condition that decides where a product stands, as a question with its
answer and what to do next."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import analysis_pb2, analysis_pb2_grpc, job_pb2
from atelier.pipeline.v1 import product_pb2 as pb
from atelier.pipeline.v1 import product_pb2_grpc

from services.pipeline import phase_pause_rows, phase_rows, product_rows, progress, rules
from services.pipeline.phase_pause_rows import PhasePause, in_words
from services.pipeline.phase_rows import Phase, named
from services.pipeline.product_rows import Product
from shared.background.jobs import JobQueue
from shared.database.db import Database
from shared.database.ids import parse_id
from shared.database.rows import Statement
from shared.rpc import auth, calls, errors
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError
from shared.rpc.server import Context

T = TypeVar("T")
_MEND = "then RetryPhase of phase 1"
_UNDER_WAY = frozenset({job_pb2.JOB_STATE_PENDING, job_pb2.JOB_STATE_PROCESSING})


@dataclass(slots=True)
class _Turn:
    """The queue's entry of a phase or product. `starts_at`: not before; None: as soon as its turn
    comes."""

    row_id: str
    status: str
    starts_at: datetime | None
    now: datetime


@dataclass(slots=True)
class _Review:
    """The open review of a phase. `claimed_by`: who has claimed it for now, or empty."""

    id: UUID
    phase: int
    claimed_by: str
    claim_expires_at: datetime | None


_SELECT_NOW = Statement(datetime, "SELECT now()")
_SELECT_TURNS = Statement(
    _Turn,
    """
    SELECT args ->> 'row_id' AS row_id, status::text AS status, scheduled_at AS starts_at,
        now() AS now
    FROM procrastinate_jobs
    WHERE args ->> 'row_id' = ANY(%(ids)s) AND status IN ('todo', 'doing')
        AND task_name = ANY(%(tasks)s)
    ORDER BY id
    """,
)
_SELECT_REVIEWS = Statement(
    _Review,
    """
    SELECT id, phase, CASE WHEN claim_expires_at > now() THEN claimed_by ELSE '' END AS claimed_by,
        claim_expires_at
    FROM reviews WHERE product_id = %(id)s AND state = 'open'
    """,
)


@dataclass(frozen=True)
class Known:
    """A product and what decides where it stands. `assets` None: they can't be asked right now, or
    need not be."""

    row: Product
    phases: Sequence[Phase]
    images: Sequence[UUID]
    turns: Mapping[str, _Turn]
    positions: Mapping[UUID, int]
    reviews: Mapping[int, _Review]
    pauses: Mapping[int, PhasePause]
    now: datetime
    assets: Mapping[str, asset_pb2.Asset] | None
    analysis: analysis_pb2.Analysis | None

    def before(self, phase: Phase) -> Phase | None:
        """Returns the first phase before this one that isn't completed."""
        earlier = (each for each in self.phases if each.number < phase.number)
        return next((each for each in earlier if each.state != "completed"), None)


class ExplainCalls(product_pb2_grpc.ProductServiceServicer):
    """Implements ExplainProduct of ProductService."""

    _db: Database
    _peers: Peers
    _queue: JobQueue

    async def ExplainProduct(
        self, request: pb.ExplainProductRequest, context: Context
    ) -> pb.ExplainProductResponse:
        auth.act_for(request.owner or auth.current().owner)
        product_id = parse_id(request.product_id, "product_id")
        known = await look(self._db, self._queue, self._peers, product_id)
        answers = [answer for question in _QUESTIONS if (answer := question(known))]
        answers += [phase_answer(known, phase) for phase in known.phases]
        wrong = [answer for answer in answers if not answer.ok]
        summary = (
            f"{wrong[0].question} {wrong[0].answer}" if wrong else "all four phases are completed"
        )
        return pb.ExplainProductResponse(summary=summary, answers=answers)


async def look(db: Database, queue: JobQueue, peers: Peers, product_id: UUID) -> Known:
    """Reads a product of the current owner and what decides where it stands. Raises NOT_FOUND."""
    one = {"id": product_id, "ids": [product_id]}
    async with db.transaction(auth.current().owner) as m:
        found = m.ask(product_rows.SELECT_PRODUCT, one)
        phases = m.ask(phase_rows.SELECT_PHASES, one)
        images = m.ask(product_rows.SELECT_ASSET_IDS, one)
        reviews = m.ask(_SELECT_REVIEWS, one)
        pauses = m.ask(phase_pause_rows.SELECT_PAUSES, phase_pause_rows.ALL)
        now = m.ask(_SELECT_NOW)
    row = found.first()
    if row is None:
        raise errors.not_found("product", product_id)
    waiting = [each for each in phases.rows() if rules.is_due(each) and not each.external]
    asked = {
        "ids": [str(product_id), *(str(each.id) for each in waiting)],
        "tasks": [progress.TASK, progress.PREPARE_TASK],
    }
    turns = await db.all(_SELECT_TURNS, asked)
    places = {each.id: await queue.position(each.id) for each in waiting}
    return Known(
        row,
        phases.rows(),
        images.rows(),
        {each.row_id: each for each in turns},
        {row_id: place for row_id, place in places.items() if place},
        {each.phase: each for each in reviews.rows()},
        {each.phase: each for each in pauses.rows()},
        now.rows()[0],
        await _as_owner(row, _assets(peers, row, images.rows())),
        await _as_owner(row, _analysis(peers, row, phases.rows())),
    )


async def _assets(
    peers: Peers, row: Product, images: Sequence[UUID]
) -> dict[str, asset_pb2.Asset] | None:
    """Returns the images' assets, if they are what the product waits for."""
    if row.preparation == "done":
        return None
    return await peers.assets(map(str, images))


async def _analysis(
    peers: Peers, row: Product, phases: Sequence[Phase]
) -> analysis_pb2.Analysis | None:
    """Returns the analysis that a phase which a worker of this service runs waits for."""
    if not any(each.state == "running" and not each.external for each in phases):
        return None
    stub = peers.stub(analysis_pb2_grpc.AnalysisServiceStub)
    newest = analysis_pb2.ListAnalysesRequest(product_id=str(row.id), page_size=1)
    answer: analysis_pb2.ListAnalysesResponse = await stub.ListAnalyses(newest)
    under_way = [each for each in answer.analyses if each.state in _UNDER_WAY]
    return under_way[0] if under_way else None


async def _as_owner(row: Product, look: Coroutine[Any, Any, T | None]) -> T | None:
    """Returns what the product's owner sees, in a task of its own: an operator sees none of it.
    Returns None if the other service can't be asked right now."""

    async def run() -> T | None:
        if auth.current().owner != row.owner or auth.current().role == "admin":
            auth.enter(calls.owner_identity(row.owner))
        try:
            return await look
        except DomainError:
            return None

    return await asyncio.create_task(run())


def _deleted(known: Known) -> pb.ProductAnswer | None:
    row = known.row
    if not row.deleted_at or not row.expires_at:
        return None
    return pb.ProductAnswer(
        question="is it deleted?",
        answer=f"yes, since {in_iso(row.deleted_at)}; it can be recovered until"
        f" {in_iso(row.expires_at)}",
        next_step="UndeleteProduct brings it back; PurgeProduct removes it now",
    )


def _archived(known: Known) -> pb.ProductAnswer | None:
    if not known.row.archived_at:
        return None
    return pb.ProductAnswer(
        question="is it in lists?",
        answer=f"no, it was archived at {in_iso(known.row.archived_at)}; its phases go on",
        next_step="list with show_archived, or UnarchiveProduct",
    )


def images_answer(known: Known) -> pb.ProductAnswer:
    """Returns whether the images can be used, and if not, why."""
    asked, row = "are its images ready?", known.row
    if row.preparation == "done":
        text = f"yes, all {len(known.images)} are READY and in use"
        return pb.ProductAnswer(question=asked, ok=True, answer=text)
    wrong = [said for each in known.images if (said := _image(known, each))]
    if row.preparation == "failed":
        text = row.error_message or "no"
        still = f"; now {'; '.join(wrong)}" if wrong else "; all are READY now"
        step = "you take out what can't be used (RemoveProductImages), add others, " + _MEND
        return pb.ProductAnswer(
            question=asked,
            answer=f"no, {text}{still if known.assets is not None else ''}",
            next_step=step if wrong or known.assets is None else f"you call {_MEND[5:]}",
        )
    text = "no, assets can't be asked right now" if known.assets is None else "no"
    if known.assets is not None:
        text = f"no, {'; '.join(wrong)}" if wrong else "all are READY; a worker is about to see it"
    next_look = next_try(known.turns.get(str(row.id)))
    step = "you confirm the uploads; after a day of waiting it is an ERROR" if wrong else ""
    return pb.ProductAnswer(
        question=asked,
        answer=f"{text}; it waits since {in_iso(row.preparing_since)}{next_look}",
        next_step=step,
    )


def _image(known: Known, asset_id: UUID) -> str:
    """Returns why an image can't be used yet, or nothing if it can."""
    if known.assets is None:
        return ""
    asset = known.assets.get(str(asset_id))
    if asset is None:
        return f"{asset_id} doesn't exist, or you may not see it"
    if asset.state == asset_pb2.ASSET_STATE_REJECTED:
        return f"{asset_id} was rejected ({asset.rejection}): {asset.rejection_message}"
    if asset.state != asset_pb2.ASSET_STATE_READY:
        return f"{asset_id} is PENDING: its upload isn't confirmed"
    if not asset.mime_type.startswith("image/"):
        return f"{asset_id} is {asset.mime_type}, not a picture"
    return ""


_QUESTIONS: Sequence[Callable[[Known], pb.ProductAnswer | None]] = (
    _deleted,
    _archived,
    images_answer,
)


def phase_answer(known: Known, phase: Phase) -> pb.ProductAnswer:
    """Returns whether a phase is completed, and if not, the first reason."""
    asked = f"is {named(phase)} completed?"
    if phase.state == "completed":
        sure = "" if phase.confidence is None else f", with confidence {phase.confidence:.2f}"
        at = f", at {in_iso(phase.completed_at)}" if phase.completed_at else ""
        return pb.ProductAnswer(question=asked, ok=True, answer=f"yes{at}{sure}")
    answer, next_step = _ANSWERS[phase.state](known, phase)
    return pb.ProductAnswer(question=asked, answer=answer, next_step=next_step)


def _pending(known: Known, phase: Phase) -> tuple[str, str]:
    earlier = known.before(phase)
    if earlier is not None:
        return f"no, it waits for phase {earlier.number}", ""
    if phase.number == 1 and known.row.preparation != "done":
        return "no, it starts by itself once the images are ready", ""
    if not phase.started:
        text = "no, nobody has started it: auto_advance is off, or was when its turn came"
        return text, "you call StartPhase"
    failed = f" ({phase.error_class}): {phase.error_message}" if phase.error_class else ""
    if pause := known.pauses.get(phase.number):
        return f"no, {in_words(pause)}", "the operator calls ResumePhase"
    if phase.external:
        lost = f"; its last attempt came to nothing{failed}" if failed else ""
        text = f"no, it waits for an outside worker{lost}"
        return text, "your worker calls ClaimPhase or ClaimNextPhase"
    turn = known.turns.get(str(phase.id))
    if phase.waits_for and phase.waiting_since:
        text = f"no, it waits for {phase.waits_for} since {in_iso(phase.waiting_since)}{failed}"
        step = "nobody need act: it goes on by itself, and fails after ATELIER_JOB_WAIT_HOURS"
        if phase.waits_for == phase_pause_rows.WAITS_FOR:
            step = "nobody need act: the pause has ended, and it goes on by itself"
        return text + next_try(turn), step
    if phase.attempt_number:
        text = f"no, attempt {phase.attempt_number} came to nothing{failed}"
        return text + next_try(turn), "nobody need act: it is tried again by itself"
    place = known.positions.get(phase.id)
    text = f"number {place} in the queue" if place else "taken up by a worker"
    return f"no, it is {text}", "" if place else "ask again in a few seconds"


def _running(known: Known, phase: Phase) -> tuple[str, str]:
    since = f" since {in_iso(phase.started_at)}" if phase.started_at else ""
    text = f"no, attempt {phase.attempt_number} is under way{since}"
    if phase.external:
        until = f" until {in_iso(phase.lease_expires_at)}" if phase.lease_expires_at else ""
        return (
            f"{text} with an outside worker, whose lease lasts{until}",
            "the worker calls HeartbeatPhase, then CompletePhase or FailPhase",
        )
    if phase.cancel_requested:
        return f"{text}; it was asked to stop", "ask again in a few seconds"
    if known.analysis is None:
        return f"{text} with a worker of this service", ""
    state = job_pb2.JobState.Name(known.analysis.state).removeprefix("JOB_STATE_")
    wait = known.analysis.wait.what
    held = f", it waits for {wait}" if wait else ""
    return (
        f"{text}; its analysis {known.analysis.id} at conversions is {state}{held}",
        "ExplainJob of conversions says more about the analysis",
    )


def _reviewed(known: Known, phase: Phase) -> tuple[str, str]:
    review = known.reviews.get(phase.number)
    sure = 0.0 if phase.confidence is None else phase.confidence
    text = f"no, it waits for a person: its confidence is {sure:.2f}"
    if review is None:
        return text, "ask again in a few seconds"
    if review.claimed_by and review.claim_expires_at:
        text += f"; {review.claimed_by} has claimed it until {in_iso(review.claim_expires_at)}"
        return text, f"{review.claimed_by} calls SubmitReview of review {review.id}"
    return text, f"a reviewer calls SubmitReview of review {review.id}"


def _failed(_known: Known, phase: Phase) -> tuple[str, str]:
    return (
        f"no, it failed ({phase.error_class}): {phase.error_message}",
        "you mend what the message names, then RetryPhase",
    )


def _stopped(known: Known, phase: Phase) -> tuple[str, str]:
    at = f" at {in_iso(phase.stopped_at)}" if phase.stopped_at else ""
    step = "UndeleteProduct, then RetryPhase" if known.row.deleted_at else "you call RetryPhase"
    return f"no, it was stopped{at}", step


_ANSWERS: Mapping[str, Callable[[Known, Phase], tuple[str, str]]] = {
    "pending": _pending,
    "running": _running,
    "awaiting_review": _reviewed,
    "failed": _failed,
    "stopped": _stopped,
}


def next_try(turn: _Turn | None) -> str:
    """Returns when the next try begins, as the end of a sentence; empty: its turn has come."""
    if turn is None or turn.starts_at is None or turn.starts_at <= turn.now:
        return ""
    seconds = (turn.starts_at - turn.now).total_seconds()
    return f"; its next try begins in {seconds:.0f} s"


def in_iso(at: datetime) -> str:
    return at.isoformat(timespec="seconds")
