"""ReviewService: people decide what a model was not sure of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from atelier.pipeline.v1 import result_pb2, review_pb2_grpc
from atelier.pipeline.v1 import review_pb2 as pb
from grpc.aio import ServicerContext
from psycopg.types.json import Jsonb

from services.pipeline import log_rows, phase_rows, progress, result_rows, review_rows, rules
from services.pipeline.checking import check_usable, stored_value
from services.pipeline.phase_rows import LockedPhase
from services.pipeline.review_rows import REVIEWS, Review
from shared.database import states
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.lists import Listing
from shared.database.rows import Statement
from shared.rpc import errors, paging


@dataclass(slots=True)
class _Subject:
    """The phase that a review is about."""

    product_id: UUID
    phase: int


@dataclass(slots=True)
class LockedReview(Review):
    """A review whose row the transaction has locked."""

    claimed_by_another: bool


@dataclass(slots=True)
class _Grounds:
    """The source of a result: its provider and evidence."""

    provider: str
    evidence: list[dict[str, Any]]


_LIST = Listing(REVIEWS, Review)
_SELECT_SUBJECT = Statement(_Subject, "SELECT product_id, phase FROM reviews WHERE id = %(id)s")
_LOCK_REVIEW = Statement(
    LockedReview,
    f"""
    SELECT {REVIEWS.columns}, claimed_by <> '' AND claimed_by <> %(actor)s
        AND claim_expires_at > now() AS claimed_by_another
    FROM reviews WHERE id = %(id)s FOR UPDATE
""",
)
_CLAIM_REVIEW = Statement(
    Review,
    f"""
    UPDATE reviews SET claimed_by = %(actor)s, version = version + 1, updated_at = now(),
        claim_expires_at = now() + make_interval(mins => %(minutes)s)
    WHERE id = %(id)s RETURNING {REVIEWS.columns}
""",
)
_SELECT_GROUNDS = Statement(
    _Grounds,
    """
    SELECT provider, evidence FROM results
    WHERE product_id = %(product_id)s AND phase = %(phase)s
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
        page = paging.page(request)
        wanted = {
            "state": request.state and review_rows.STATES.word[request.state],
            "product_id": request.product_id and parse_id(request.product_id, "product_id"),
        }
        rows = await self._db.all(*_LIST.query(page, wanted))
        reviews, token = page.fill(rows, map(review_rows.to_proto, rows))
        return pb.ListReviewsResponse(reviews=reviews, next_page_token=token)

    async def ClaimReview(
        self, request: pb.ClaimReviewRequest, context: ServicerContext
    ) -> pb.ClaimReviewResponse:
        review_id = parse_id(request.review_id, "review_id")

        async def work(m: Mutation) -> pb.ClaimReviewResponse:
            review = await _lock_open(m, review_id)
            minutes = request.minutes or rules.DEFAULT_CLAIM_MINUTES
            claim = {"id": review.id, "actor": m.actor, "minutes": minutes}
            row = await m.one(_CLAIM_REVIEW, claim)
            await review_rows.publish(m, row)
            text = f"{m.actor} took the review for {minutes} minutes"
            await log_rows.add(m, row.product_id, row.phase, "review_claimed", text)
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
            open_review = await _lock_open(m, review_id)
            errors.check_etag(request.etag, open_review.version, "review", review_id)
            review = await _decide(m, request, open_review, phase)
            row = await self._carry_out(m, review, phase)
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
                review.effective_value, 1.0, "reviewer", grounds.provider, grounds.evidence
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


async def _lock_open(m: Mutation, review_id: UUID) -> LockedReview:
    """Locks the review and returns it. Raises FAILED_PRECONDITION if it isn't open or somebody else
    has claimed it."""
    review = await m.first(_LOCK_REVIEW, {"id": review_id, "actor": m.actor})
    if review is None:
        raise errors.not_found("review", review_id)
    if review.state != "open":
        text = f"it is {review.state.replace('_', ' ')} already; its phase shows what came of it"
        raise errors.precondition(
            text, subject=f"reviews/{review_id}", metadata={"state": review.state}
        )
    if review.claimed_by_another and review.claim_expires_at:
        until = review.claim_expires_at.isoformat(timespec="seconds")
        text = f"{review.claimed_by} has claimed it until {until}"
        raise errors.precondition(
            text, subject=f"reviews/{review_id}", metadata={"claimed_by": review.claimed_by}
        )
    return review


async def _decide(
    m: Mutation, request: pb.SubmitReviewRequest, review: LockedReview, phase: LockedPhase
) -> Review:
    """Records the decision. Returns the review's new row."""
    columns: dict[str, Any] = {"note": request.note, "decided_by": m.actor}
    if request.decision == pb.REVIEW_DECISION_APPROVE:
        columns["effective_value"] = Jsonb(review.model_value)
    if request.decision == pb.REVIEW_DECISION_EDIT:
        columns |= await _edit(m, request, review, phase)
    state = _DECIDED[request.decision]
    row = await states.move(
        m, rules.REVIEW_STATES, REVIEWS, review, state, stamps=("decided_at",), **columns
    )
    await review_rows.publish(m, row)
    note = f" ({request.note})" if request.note else ""
    await log_rows.add(
        m,
        row.product_id,
        row.phase,
        f"review_{state}",
        f"{m.actor} decided: {state.replace('_', ' ')}{note}",
    )
    return row


async def _edit(
    m: Mutation, request: pb.SubmitReviewRequest, review: Review, phase: LockedPhase
) -> dict[str, Jsonb]:
    """Returns the columns of an edit: the reviewer's value and the effective one. Raises
    INVALID_ARGUMENT if the edit changes nothing, or the next phases would refuse its value."""
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
    said = rules.said_in(model, reviewer, effective)
    await check_usable(m, phase, {kind: effective}, "value", said)
    return {"reviewer_value": Jsonb({kind: reviewer}), "effective_value": Jsonb({kind: effective})}


def _check_mask(mask: Sequence[str], kind: str) -> None:
    field = result_pb2.PhaseValue.DESCRIPTOR.fields_by_name[kind]
    known = field.message_type.fields_by_name if field.message_type else {}
    for index, name in enumerate(mask):
        if name not in known:
            text = f"{name[:60]!r} is not a field of {kind}; there are {', '.join(known)}"
            raise errors.invalid(f"update_mask.paths[{index}]", text)
