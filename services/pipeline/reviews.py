"""ReviewService: people decide what a model was not sure of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from atelier.pipeline.v1 import result_pb2, review_pb2_grpc
from atelier.pipeline.v1 import review_pb2 as pb
from grpc.aio import ServicerContext
from psycopg.types.json import Jsonb

from services.pipeline import (
    claiming,
    decision_rows,
    log_rows,
    phase_rows,
    product_rows,
    progress,
    rated_rows,
    result_rows,
    review_rows,
    reviewing,
    rules,
    sources,
)
from services.pipeline import review_metrics as metrics
from services.pipeline.checking import check_usable, stored_value
from services.pipeline.phase_rows import LockedPhase
from services.pipeline.review_rows import REVIEWS, LockedReview, Review
from shared.database import states
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.lists import Listing
from shared.database.rows import Statement
from shared.rpc import auth, errors, paging


@dataclass(slots=True)
class _Subject:
    """The phase that a review is about."""

    product_id: UUID
    phase: int


@dataclass(slots=True)
class _Grounds:
    """The source of a result: its provider and evidence."""

    provider: str
    evidence: list[dict[str, Any]]


@dataclass(slots=True)
class _Restated:
    """What the owner of a product stated anew, and since when it counts for a phase's result."""

    restated: dict[str, str]
    inputs_at: datetime


_READ_AT_ONCE = 50
_OPEN: sa.ColumnElement[str] = sa.literal_column("'open'")


def _held(row: Any) -> sa.ColumnElement[bool]:
    held: sa.ColumnElement[bool] = sa.and_(row.state == _OPEN, row.claim_expires_at > sa.func.now())
    return held


_LIST = Listing(
    REVIEWS,
    Review,
    overdue=lambda row, _: sa.and_(row.state == _OPEN, row.due_at < sa.func.now()),
    held_by=lambda row, actor: sa.and_(_held(row), row.claimed_by == actor),
    held=lambda row, _: _held(row),
    free=lambda row, _: sa.and_(
        row.state == _OPEN,
        sa.or_(row.claim_expires_at.is_(None), row.claim_expires_at <= sa.func.now()),
    ),
)
_SELECT_SUBJECT = Statement(_Subject, "SELECT product_id, phase FROM reviews WHERE id = %(id)s")
_SELECT_GROUNDS = Statement(
    _Grounds,
    """
    SELECT provider, evidence FROM results
    WHERE product_id = %(product_id)s AND phase = %(phase)s
""",
)
_SELECT_RESTATED = Statement(
    _Restated,
    """
    SELECT p.restated, r.inputs_at
    FROM products p JOIN results r ON r.product_id = p.id AND r.phase = %(phase)s
    WHERE p.id = %(product_id)s
""",
)
_DECIDED = {
    pb.REVIEW_DECISION_APPROVE: "approved",
    pb.REVIEW_DECISION_EDIT: "edited",
    pb.REVIEW_DECISION_REJECT: "rejected",
    pb.REVIEW_DECISION_SEND_BACK: "sent_back",
}


class ReviewService(review_pb2_grpc.ReviewServiceServicer):
    def __init__(self, db: Database, flows: progress.Progress) -> None:
        self._db = db
        self._flows = flows

    async def ListReviews(
        self, request: pb.ListReviewsRequest, context: ServicerContext
    ) -> pb.ListReviewsResponse:
        identity = auth.current()
        auth.act_for(request.owner or identity.owner)
        page = paging.page(request)
        wanted = {
            "phase": request.phase,
            "overdue": request.overdue,
            "sample": request.sample,
            "disputed": request.disputed,
            "held_by": request.holder == pb.REVIEW_HOLDER_ME and identity.actor,
            "held": request.holder == pb.REVIEW_HOLDER_ANYBODY,
            "free": request.holder == pb.REVIEW_HOLDER_NOBODY,
            "state": request.state and review_rows.STATES.word[request.state],
            "product_id": request.product_id and parse_id(request.product_id, "product_id"),
        }
        rows, messages = await self._read(page, wanted)
        reviews, token = page.fill(rows, messages)
        return pb.ListReviewsResponse(reviews=reviews, next_page_token=token)

    async def _read(
        self, page: paging.Page, wanted: Mapping[str, object]
    ) -> tuple[list[Review], list[pb.Review]]:
        """Reads the page's rows some at a time, as many as an answer holds: a review may have two
        megabytes. Returns them with one row more, if there is one, and their messages."""
        part = replace(page, size=min(page.size, _READ_AT_ONCE))
        rows: list[Review] = []
        messages: list[pb.Review] = []
        room = paging.ANSWER_BYTES
        while True:
            found = await self._db.all(*_LIST.query(part, wanted))
            rows += (new := part.cut(found))
            messages += map(review_rows.to_proto, new)
            room -= sum(message.ByteSize() for message in messages[-len(new) :])
            if len(found) <= part.size or len(rows) >= page.size or room < 0:
                return [*rows, *found[part.size :]], messages
            part = replace(part, after=(new[-1].created_at, new[-1].id), skip=0)

    async def ClaimReview(
        self, request: pb.ClaimReviewRequest, context: ServicerContext
    ) -> pb.ClaimReviewResponse:
        review_id = parse_id(request.review_id, "review_id")

        async def work(m: Mutation) -> pb.ClaimReviewResponse:
            review = await review_rows.lock_open(m, review_id)
            review_rows.refuse_decided(review)
            await product_rows.check_usable(m, review.product_id)
            row = await claiming.claim(m, review_id, request.minutes)
            return pb.ClaimReviewResponse(review=review_rows.to_proto(row))

        return await self._db.mutate(request, pb.ClaimReviewResponse, work)

    async def SubmitReview(
        self, request: pb.SubmitReviewRequest, context: ServicerContext
    ) -> pb.SubmitReviewResponse:
        review_id = parse_id(request.review_id, "review_id")

        async def work(m: Mutation) -> pb.SubmitReviewResponse:
            subject = await m.first(_SELECT_SUBJECT, {"id": review_id})
            if subject is None:
                raise errors.not_found("review", review_id)
            phase = await phase_rows.lock(m, subject.product_id, subject.phase)
            open_review = await review_rows.lock_open(m, review_id)
            review_rows.refuse_decided(open_review)
            await product_rows.check_usable(m, open_review.product_id)
            errors.check_etag(request.etag, open_review.version, "review", review_id)
            review = await _decide(m, request, open_review, phase)
            row = phase if review.state == "open" else await self._carry_out(m, review, phase)
            metrics.count_decision(request.decision)
            return pb.SubmitReviewResponse(
                review=review_rows.to_proto(review), phase=phase_rows.to_proto(row)
            )

        return await self._db.mutate(request, pb.SubmitReviewResponse, work)

    async def _carry_out(self, m: Mutation, review: Review, phase: LockedPhase) -> LockedPhase:
        """Applies the review's decision to the phase. Returns the phase's new row."""
        if review.effective_value is not None:
            reviewed = {"product_id": review.product_id, "phase": review.phase}
            grounds = await m.one(_SELECT_GROUNDS, reviewed)
            outcome = progress.PhaseOutcome(
                review.effective_value,
                1.0,
                "reviewer",
                grounds.provider,
                grounds.evidence,
                review.findings,
            )
            row, _ = await self._flows.complete(m, phase, outcome, cancel_requested=False)
            return row
        if review.state == "rejected":
            reason = review.note or "the reviewer gave no reason"
            text = f"a reviewer rejected it: {reason}"
            return await progress.JOBS.move(
                m, phase, "failed", error_class="REVIEW_REJECTED", error_message=text
            )
        row = await self._flows.retry(m, phase)
        await progress.settle(m, review.product_id)
        return row


async def _decide(
    m: Mutation, request: pb.SubmitReviewRequest, review: LockedReview, phase: LockedPhase
) -> Review:
    """Adds the decision, and ends the review if it is the last one that was missing. Returns the
    review's new row."""
    values: dict[str, Any] = {}  # JSON columns
    if request.decision == pb.REVIEW_DECISION_APPROVE:
        kind = result_rows.VALUES[review.phase]
        approved = {kind: await _without_restated(m, review, review.model_value[kind], {})}
        found = _confirmed(m, review, approved, {})
        values = {"effective_value": approved, "findings": found}
    if request.decision == pb.REVIEW_DECISION_EDIT:
        values = await _edit(m, request, review, phase)
    votes = await decision_rows.add(
        m,
        review.id,
        decision_rows.KINDS.word[request.decision],
        request.note,
        values.get("reviewer_value"),
        values.get("effective_value"),
    )
    columns: dict[str, Any] = {
        "decisions_made": votes.made,
        "disputed": votes.alike < votes.made,
    }
    state = _DECIDED[request.decision]
    stamps: tuple[str, ...] = ("decided_at",)
    if reviewing.is_settled(review.decisions_needed, votes.made, votes.alike):
        columns |= {"note": request.note, "decided_by": m.actor}
        columns |= {name: Jsonb(value) for name, value in values.items()}
        await rated_rows.judge(m, review.id, right=state == "approved")
    else:
        state, stamps = "open", ()
        columns |= {"claimed_by": "", "claim_expires_at": None}
    row = await states.move(
        m, rules.REVIEW_STATES, REVIEWS, review, state, stamps=stamps, **columns
    )
    await review_rows.publish(m, row)
    await _log_decision(m, row, _DECIDED[request.decision], request.note)
    return row


async def _log_decision(m: Mutation, review: Review, said: str, note: str) -> None:
    text = f"{m.actor} decided: {said.replace('_', ' ')}{f' ({note})' if note else ''}"
    if review.state == "open":
        text += f"; it waits for another person, after {review.decisions_made}"
    action = "review_decision" if review.state == "open" else f"review_{said}"
    await log_rows.add(m, review.product_id, review.phase, action, text)


async def _edit(
    m: Mutation, request: pb.SubmitReviewRequest, review: Review, phase: LockedPhase
) -> dict[str, Any]:
    """Returns the JSON columns of an edit: the reviewer's value, the effective one, the findings.
    Raises INVALID_ARGUMENT if it changes nothing, or the next phases would refuse its value."""
    kind, mask = result_rows.VALUES[review.phase], list(request.update_mask.paths)
    _check_mask(mask, kind)
    model = review.model_value[kind]
    given = stored_value(request.value, review.phase, "value")[kind]
    effective = rules.effective(model, given, mask)
    if effective == model:
        text = (
            "changes nothing of what the model said; set what is to change, or APPROVE it as it is"
        )
        raise errors.invalid("value", text)
    reviewer = {**dict.fromkeys(mask), **given}  # None: the reviewer emptied the field
    effective = await _without_restated(m, review, effective, reviewer)
    said = rules.said_in(model, reviewer, effective)
    await check_usable(m, phase, {kind: effective}, "value", said)
    return {
        "reviewer_value": {kind: reviewer},
        "effective_value": {kind: effective},
        "findings": _confirmed(m, review, {kind: effective}, said),
    }


async def _without_restated(
    m: Mutation, review: Review, value: Mapping[str, Any], decided: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns a value of phase 1 without what the owner stated anew since the model was given it:
    an approval of all else doesn't take that back. `decided`: the fields that the person set."""
    if review.phase != 1:
        return dict(value)
    named = {"product_id": review.product_id, "phase": review.phase}
    known = await m.one(_SELECT_RESTATED, named)
    kept = rules.without(value, rules.restated_since(known.restated, known.inputs_at))
    return {name: each for name, each in value.items() if name in kept or name in decided}


def _confirmed(
    m: Mutation, review: Review, effective: Mapping[str, Any], said: Mapping[str, Any]
) -> list[sources.Finding]:
    """Returns the findings with what the person confirms. `said`: the fields decided on."""
    value = effective[result_rows.VALUES[review.phase]]
    return sources.confirmed(review.findings, value, said, m.actor, str(review.id))


def _check_mask(mask: Sequence[str], kind: str) -> None:
    field = result_pb2.PhaseValue.DESCRIPTOR.fields_by_name[kind]
    known = field.message_type.fields_by_name if field.message_type else {}
    for index, name in enumerate(mask):
        if name not in known:
            text = f"{name[:60]!r} is not a field of {kind}; there are {', '.join(known)}"
            raise errors.invalid(f"update_mask.paths[{index}]", text)
