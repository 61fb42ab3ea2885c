"""Claims a review for a person."""

from uuid import UUID

from services.pipeline import log_rows, review_rows, rules
from services.pipeline.review_rows import REVIEWS, Review
from shared.database.db import Mutation
from shared.database.rows import Statement

_CLAIM_REVIEW = Statement(
    Review,
    f"""
    UPDATE reviews SET claimed_by = %(actor)s, version = version + 1, updated_at = now(),
        claim_expires_at = now() + make_interval(mins => %(minutes)s)
    WHERE id = %(id)s RETURNING {REVIEWS.columns}
""",
)


async def claim(m: Mutation, review_id: UUID, minutes: int) -> Review:
    """Claims a locked review for the actor. Returns its new row."""
    minutes = minutes or rules.DEFAULT_CLAIM_MINUTES
    row = await m.one(_CLAIM_REVIEW, {"id": review_id, "actor": m.actor, "minutes": minutes})
    await review_rows.publish(m, row)
    text = f"{m.actor} took the review for {minutes} minutes"
    await log_rows.add(m, row.product_id, row.phase, "review_claimed", text)
    return row
