"""Rated results: a narrow row per result with a confidence, from which the report counts."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from shared.database.db import Mutation
from shared.database.rows import Command, Table


@dataclass(slots=True)
class RatedResult:
    id: UUID  # of its review, if there is one
    owner: str
    phase: int
    provider: str
    confidence: float
    confident: bool  # the confidence reached the threshold of then
    verdict: str  # empty: nobody has decided
    created_at: datetime


RATED = Table("rated_results", RatedResult)
_INSERT = RATED.insert("id", "owner", "phase", "provider", "confidence", "confident")
_JUDGE = Command("UPDATE rated_results SET verdict = %(verdict)s WHERE id = %(id)s")


async def add(
    m: Mutation, row_id: UUID, phase: int, provider: str, confidence: float, *, confident: bool
) -> None:
    """Counts a result. `row_id`: the id of its review, or a new one."""
    await m.run(
        _INSERT,
        {
            "id": row_id,
            "owner": m.owner,
            "phase": phase,
            "provider": provider,
            "confidence": confidence,
            "confident": confident,
        },
    )


async def judge(m: Mutation, review_id: UUID, *, right: bool) -> None:
    """Notes what persons made of the result of this review."""
    await m.run(_JUDGE, {"id": review_id, "verdict": "right" if right else "wrong"})
