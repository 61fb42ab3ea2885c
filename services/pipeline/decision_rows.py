"""Decisions of persons about reviews: the row class, its message, and adding one. Rows are never
changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from atelier.pipeline.v1 import review_desk_pb2, review_pb2
from psycopg.types.json import Jsonb

from services.pipeline import result_rows
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.database.rows import Statement, Table
from shared.rpc.protos import EnumNames, timestamp

KINDS = EnumNames(review_pb2.ReviewDecision, "REVIEW_DECISION_")


@dataclass(slots=True)
class Decision:
    id: UUID
    owner: str
    review_id: UUID
    decided_by: str
    decision: str
    note: str
    reviewer_value: dict[str, Any] | None  # JSON of a PhaseValue, like effective_value
    effective_value: dict[str, Any] | None
    created_at: datetime


@dataclass(slots=True)
class Votes:
    """The decisions about a review. `alike`: those that say the same as one of them."""

    made: int
    alike: int


DECISIONS = Table("review_decisions", Decision)
_INSERT = DECISIONS.insert(*(name for name in DECISIONS.names if name != "created_at"))
_COUNT = Statement(
    Votes,
    """
    SELECT count(*) AS made, count(*) FILTER (WHERE decision = %(decision)s
        AND effective_value IS NOT DISTINCT FROM %(effective)s::jsonb) AS alike
    FROM review_decisions WHERE review_id = %(review_id)s
""",
)


async def add(
    m: Mutation,
    review_id: UUID,
    decision: str,
    note: str,
    reviewer: Mapping[str, Any] | None,
    effective: Mapping[str, Any] | None,
) -> Votes:
    """Adds the decision of the mutation's actor. Returns how many there are now, and how many of
    them say the same as this one."""
    value = None if effective is None else Jsonb(effective)
    await m.run(
        _INSERT,
        {
            "id": new_id(),
            "owner": m.owner,
            "review_id": review_id,
            "decided_by": m.actor,
            "decision": decision,
            "note": note,
            "reviewer_value": None if reviewer is None else Jsonb(reviewer),
            "effective_value": value,
        },
    )
    about = {"review_id": review_id, "decision": decision, "effective": value}
    return await m.one(_COUNT, about)


def to_proto(row: Decision) -> review_desk_pb2.ReviewDecisionRecord:
    message = review_desk_pb2.ReviewDecisionRecord(
        id=str(row.id),
        review_id=str(row.review_id),
        decided_by=row.decided_by,
        decision=KINDS.number[row.decision],
        note=row.note,
        create_time=timestamp(row.created_at),
    )
    if row.reviewer_value is not None:
        message.reviewer_value.CopyFrom(result_rows.value(row.reviewer_value))
    if row.effective_value is not None:
        message.effective_value.CopyFrom(result_rows.value(row.effective_value))
    return message
