"""Reviews: a person decides what a model was not sure of."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from atelier.pipeline.v1 import result_pb2, review_pb2_grpc
from atelier.pipeline.v1 import review_pb2 as pb
from psycopg.types.json import Jsonb

from services.pipeline import log_rows, progress, records, rules
from services.pipeline.phases import check_usable, checked_value
from shared.database import states
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.rpc import auth, errors, paging

_GET = "SELECT * FROM reviews WHERE id = %s"
_LOCK = """
    SELECT *, claimed_by <> '' AND claimed_by <> %(actor)s AND claim_expires_at
        > now() AS held_by_another, now() AS at
    FROM reviews WHERE id = %(id)s FOR UPDATE
"""
_CLAIM = """
    UPDATE reviews SET claimed_by = %(actor)s, claim_expires_at = now() + make_interval(mins
        => %(minutes)s),
        version = version + 1, updated_at = now()
    WHERE id = %(id)s RETURNING *
"""
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
        self, request: pb.ListReviewsRequest, context: Any
    ) -> pb.ListReviewsResponse:
        page = paging.page(request)
        conditions = ["owner = %(owner)s"]
        parameters: dict[str, Any] = {"owner": auth.current().owner}
        if request.state:
            conditions.append("state = %(state)s")
            parameters["state"] = records.REVIEW_STATES.word[request.state]
        if request.product_id:
            conditions.append("product_id = %(product_id)s")
            parameters["product_id"] = parse_id(request.product_id, "product_id")
        statement: Any = f"SELECT * FROM reviews WHERE {' AND '.join(conditions)}{page.clause}"
        rows = await self._db.rows(statement, parameters | page.parameters)
        reviews, token = page.fill(rows, map(records.review, rows))
        return pb.ListReviewsResponse(reviews=reviews, next_page_token=token)

    async def ClaimReview(
        self, request: pb.ClaimReviewRequest, context: Any
    ) -> pb.ClaimReviewResponse:
        review_id = parse_id(request.review_id, "review_id")

        async def work(m: Mutation) -> pb.ClaimReviewResponse:
            review = await _open(m, review_id)
            minutes = request.minutes or rules.DEFAULT_CLAIM_MINUTES
            row = await m.one(_CLAIM, {"id": review.id, "actor": m.actor, "minutes": minutes})
            await records.publish_review(m, row)
            text = f"{m.actor} took the review for {minutes} minutes"
            await log_rows.add(m, row.product_id, row.phase, "review_claimed", text)
            return pb.ClaimReviewResponse(review=records.review(row))

        return await self._db.mutate(request, pb.ClaimReviewResponse, work)

    async def SubmitReview(
        self, request: pb.SubmitReviewRequest, context: Any
    ) -> pb.SubmitReviewResponse:
        review_id = parse_id(request.review_id, "review_id")

        async def work(m: Mutation) -> pb.SubmitReviewResponse:
            found = await m.one(_GET, (review_id,))
            if found is None:
                raise errors.not_found("review", review_id)
            phase = await progress.lock_phase(m, found.product_id, found.phase)
            review = await _open(m, review_id)
            if request.etag and request.etag != str(review.version):
                raise errors.etag_mismatch("review", review_id)
            review = await self._decide(m, request, review, phase)
            await self._carry_out(m, review, phase)
            phase = await progress.lock_phase(m, review.product_id, review.phase)
            return pb.SubmitReviewResponse(
                review=records.review(review), phase=records.phase(phase)
            )

        return await self._db.mutate(request, pb.SubmitReviewResponse, work)

    async def _decide(
        self, m: Mutation, request: pb.SubmitReviewRequest, review: Any, phase: Any
    ) -> Any:
        """Writes the decision down. Returns the review's new row."""
        columns: dict[str, Any] = {
            "note": request.note,
            "decided_by": m.actor,
            "decided_at": review.at,
        }
        if request.decision == pb.REVIEW_DECISION_APPROVE:
            columns["effective_value"] = Jsonb(review.model_value)
        if request.decision == pb.REVIEW_DECISION_EDIT:
            columns |= await _edit(m, request, review, phase)
        state = _DECIDED[request.decision]
        row = await states.advance(m, rules.REVIEW_STATES, "reviews", review.id, state, **columns)
        await records.publish_review(m, row)
        await log_rows.add(
            m,
            row.product_id,
            row.phase,
            f"review_{state}",
            f"{m.actor} decided:"
            f" {state.replace('_', ' ')}{f' ({request.note})' if request.note else ''}",
        )
        return row

    async def _carry_out(self, m: Mutation, review: Any, phase: Any) -> None:
        if review.effective_value is not None:
            row = await states.advance(
                m,
                rules.PHASE_STATES,
                "phases",
                phase.id,
                "completed",
                confidence=1.0,
                cancel_requested=False,
            )
            result = await m.one(
                "SELECT provider, evidence FROM results WHERE product_id = %s AND phase = %s",
                (review.product_id, review.phase),
            )
            finding = progress.Finding(
                review.effective_value, 1.0, "reviewer", result.provider, result.evidence
            )
            await self._flows.finish(m, row, finding)
        elif review.state == "rejected":
            reason = review.note or "the reviewer gave no reason"
            await progress.fail(m, phase, "REVIEW_REJECTED", f"a reviewer rejected it: {reason}")
        else:
            await self._flows.again(m, phase)
            await progress.settle(m, review.product_id)


async def _open(m: Mutation, review_id: UUID) -> Any:
    """The review, locked, if it is open and nobody else has claimed it."""
    review = await m.one(_LOCK, {"id": review_id, "actor": m.actor})
    if review is None:
        raise errors.not_found("review", review_id)
    if review.state != "open":
        text = f"it is {review.state.replace('_', ' ')} already; its phase shows what came of it"
        raise errors.precondition(
            text, subject=f"reviews/{review_id}", metadata={"state": review.state}
        )
    if review.held_by_another:
        until = review.claim_expires_at.isoformat(timespec="seconds")
        text = f"{review.claimed_by} has claimed it until {until}"
        raise errors.precondition(
            text, subject=f"reviews/{review_id}", metadata={"claimed_by": review.claimed_by}
        )
    return review


async def _edit(
    m: Mutation, request: pb.SubmitReviewRequest, review: Any, phase: Any
) -> dict[str, Any]:
    """What the reviewer said, and what counts then. INVALID_ARGUMENT if that is nothing new, or of
    no use."""
    kind, mask = records.VALUES[review.phase], list(request.update_mask.paths)
    _check_mask(mask, kind)
    model, given = (
        review.model_value[kind],
        checked_value(request.value, review.phase, "value")[kind],
    )
    effective = rules.effective(model, given, mask)
    if effective == model:
        text = (
            "changes nothing of what the model said; set what is to change, or APPROVE it as it is"
        )
        raise errors.invalid("value", text)
    reviewer = {**dict.fromkeys(mask), **given}  # None: emptied
    await check_usable(
        m, phase, {kind: effective}, "value", rules.said_in(model, reviewer, effective)
    )
    return {"reviewer_value": Jsonb({kind: reviewer}), "effective_value": Jsonb({kind: effective})}


def _check_mask(mask: Sequence[str], kind: str) -> None:
    known = getattr(result_pb2.PhaseValue(), kind).DESCRIPTOR.fields_by_name
    for index, name in enumerate(mask):
        if name not in known:
            text = f"{name[:60]!r} is not a field of {kind}; there are {', '.join(known)}"
            raise errors.invalid(f"update_mask.paths[{index}]", text)
