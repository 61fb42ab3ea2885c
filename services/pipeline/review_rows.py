"""Reviews: the row class, its message, what reviewers decided, and publishing a review."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from atelier.pipeline.v1 import review_pb2

from services.pipeline import result_rows, rules
from shared.background import events
from shared.database.db import Mutation
from shared.database.rows import Statement, Table
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


@dataclass(slots=True)
class _Edit:
    """The values of a review that ended in an edit."""

    phase: int
    model_value: dict[str, Any]
    reviewer_value: dict[str, Any] | None
    effective_value: dict[str, Any] | None


REVIEWS = Table("reviews", Review)
_SELECT_EDITS = Statement(
    _Edit,
    """
    SELECT phase, model_value, reviewer_value, effective_value FROM reviews
    WHERE product_id = %(product_id)s AND state = 'edited' ORDER BY decided_at, id
""",
)


async def edits(m: Mutation, product_id: UUID) -> dict[int, dict[str, Any]]:
    """Returns the fields that reviewers decided on, by phase; see rules.ByPhase."""
    found: dict[int, dict[str, Any]] = {}
    for row in await m.all(_SELECT_EDITS, {"product_id": product_id}):
        kind = result_rows.VALUES[row.phase]
        reviewer, effective = row.reviewer_value or {}, row.effective_value or {}
        found[row.phase] = rules.said_in(
            row.model_value[kind], reviewer.get(kind, {}), effective.get(kind, {})
        )
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
    )
    if row.reviewer_value is not None:
        message.reviewer_value.CopyFrom(result_rows.value(row.reviewer_value))
    if row.effective_value is not None:
        message.effective_value.CopyFrom(result_rows.value(row.effective_value))
    return message


async def publish(m: Mutation, row: Review) -> None:
    await events.publish(m, "review", row.id, row.version, to_proto(row))
