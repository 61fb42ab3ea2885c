"""Reviews: the row class, its message, what reviewers decided, and publishing a review."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from atelier.pipeline.v1 import review_pb2

from services.pipeline import result_rows, rules
from services.pipeline.sources import Finding
from shared.background import events
from shared.database.db import Mutation
from shared.database.rows import Statement, Table
from shared.rpc import errors
from shared.rpc.protos import EnumNames, timestamp

STATES = EnumNames(review_pb2.ReviewState, "REVIEW_STATE_")


@dataclass(slots=True)
class Review:
    id: UUID
    owner: str
    product_id: UUID
    phase_id: UUID
    phase: int
    state: str
    version: int
    model_value: dict[str, Any]  # JSON of a PhaseValue, like reviewer_value and effective_value
    model_confidence: float
    evidence: list[dict[str, Any]]  # JSON of Evidence
    reviewer_value: dict[str, Any] | None
    effective_value: dict[str, Any] | None
    note: str
    claimed_by: str
    claim_expires_at: datetime | None
    decided_by: str
    decided_at: datetime | None
    created_at: datetime
    updated_at: datetime
    findings: list[Finding]
    due_at: datetime | None  # None: no time is set
    decisions_needed: int
    decisions_made: int
    disputed: bool
    sample: bool  # the model was sure enough


@dataclass(slots=True)
class LockedReview(Review):
    """A review whose row the transaction has locked."""

    claimed_by_another: bool
    decided_by_actor: bool


@dataclass(slots=True)
class _Decided:
    """The values of a review that ended in an edit or an approval."""

    phase: int
    state: str
    model_value: dict[str, Any]
    reviewer_value: dict[str, Any] | None
    effective_value: dict[str, Any] | None
    decided_at: datetime | None
    restated: dict[str, str]  # what the owner stated anew, see Product


REVIEWS = Table("reviews", Review)
_SELECT_DECIDED = Statement(
    _Decided,
    """
    SELECT r.phase, r.state, r.model_value, r.reviewer_value, r.effective_value,
        r.decided_at, p.restated
    FROM reviews r JOIN products p ON p.id = r.product_id
    WHERE r.product_id = %(product_id)s AND r.state IN ('edited', 'approved')
    ORDER BY r.decided_at, r.id
""",
)
_LOCK_REVIEW = Statement(
    LockedReview,
    f"""
    SELECT {REVIEWS.columns}, claimed_by <> '' AND claimed_by <> %(actor)s
        AND claim_expires_at > now() AS claimed_by_another,
        EXISTS (SELECT FROM review_decisions d WHERE d.review_id = reviews.id
            AND d.decided_by = %(actor)s) AS decided_by_actor
    FROM reviews WHERE id = %(id)s FOR UPDATE
""",
)


async def lock_open(m: Mutation, review_id: UUID) -> LockedReview:
    """Locks the review and returns it. Raises FAILED_PRECONDITION if it isn't open or somebody else
    has claimed it."""
    review = await m.first(_LOCK_REVIEW, {"id": review_id, "actor": m.actor})
    if review is None:
        raise errors.not_found("review", review_id)
    subject = f"reviews/{review_id}"
    if review.state != "open":
        text = f"it is {review.state.replace('_', ' ')} already; its phase shows what came of it"
        raise errors.precondition(text, subject=subject, metadata={"state": review.state})
    if review.claimed_by_another and review.claim_expires_at:
        until = review.claim_expires_at.isoformat(timespec="seconds")
        text = f"{review.claimed_by} has claimed it until {until}"
        raise errors.precondition(text, subject=subject, metadata={"claimed_by": review.claimed_by})
    return review


def refuse_decided(review: LockedReview) -> None:
    """Raises FAILED_PRECONDITION if the actor has decided the open review."""
    if review.decided_by_actor:
        text = (
            "you have decided it already; it waits for another person, as"
            f" {review.decisions_needed} have to say the same. NextReview gives you another one"
        )
        raise errors.precondition(
            text,
            subject=f"reviews/{review.id}",
            metadata={"decisions_made": str(review.decisions_made)},
        )


async def edits(m: Mutation, product_id: UUID) -> dict[int, dict[str, Any]]:
    """Returns the fields that reviewers decided on, by phase; see rules.ByPhase. What the
    owner stated anew since is left out. The last decision counts: an approval says anew what an
    edit before it said."""
    found: dict[int, dict[str, Any]] = {}
    for row in await m.all(_SELECT_DECIDED, {"product_id": product_id}):
        kind = result_rows.VALUES[row.phase]
        reviewer, effective = row.reviewer_value or {}, row.effective_value or {}
        if row.state == "approved":
            approved, before = effective.get(kind, {}), found.get(row.phase, {})
            found[row.phase] = {name: approved[name] for name in before if name in approved}
            continue
        said = rules.said_in(row.model_value[kind], reviewer.get(kind, {}), effective.get(kind, {}))
        restated = rules.restated_since(row.restated, row.decided_at) if row.decided_at else ()
        found[row.phase] = rules.without(said, restated) if row.phase < 4 else said
    return found


def to_proto(row: Review) -> review_pb2.Review:
    message = review_pb2.Review(
        id=str(row.id),
        product_id=str(row.product_id),
        phase=row.phase,
        state=STATES.number[row.state],
        model_value=result_rows.value(row.model_value),
        model_confidence=row.model_confidence,
        evidence=result_rows.evidence(row.evidence),
        note=row.note,
        claimed_by=row.claimed_by,
        claim_expire_time=timestamp(row.claim_expires_at),
        decided_by=row.decided_by,
        decide_time=timestamp(row.decided_at),
        etag=str(row.version),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        findings=result_rows.findings(row.findings),
        due_time=timestamp(row.due_at),
        decisions_needed=row.decisions_needed,
        decisions_made=row.decisions_made,
        disputed=row.disputed,
        sample=row.sample,
    )
    if row.reviewer_value is not None:
        message.reviewer_value.CopyFrom(result_rows.value(row.reviewer_value))
    if row.effective_value is not None:
        message.effective_value.CopyFrom(result_rows.value(row.effective_value))
    return message


async def publish(m: Mutation, row: Review) -> None:
    await events.publish(m, "review", row.id, row.version, to_proto(row))
