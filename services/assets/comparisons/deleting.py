"""Deletes comparisons, and their references to pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.assets.v1 import render_pb2 as pb

from services.assets.comparisons import rules
from services.assets.core import holding
from shared.background import events
from shared.database.db import Mutation
from shared.database.rows import Statement
from shared.rpc.protos import timestamp


@dataclass(slots=True)
class DeletedComparison:
    id: UUID
    version: int
    picture_asset_id: UUID | None
    size_bytes: int  # always 0: a comparison has no bytes of its own
    deleted_at: datetime


_DELETE_COMPARISONS = Statement(
    DeletedComparison,
    """
    DELETE FROM comparisons WHERE id = ANY(%(ids)s) AND owner = %(owner)s
    RETURNING id, version, picture_asset_id, 0 AS size_bytes, now() AS deleted_at
    """,
)


async def delete(m: Mutation, ids: Sequence[UUID]) -> list[DeletedComparison]:
    """Deletes comparisons of the transaction's owner, and all their references. Returns those that
    were there; the asset of the picture that was made of each stays."""
    deleted = await m.all(_DELETE_COMPARISONS, {"ids": list(ids), "owner": m.owner})
    changes = [(row.id, row.version + 1, _purged(row)) for row in deleted]
    await events.publish_all(m, "purged_comparison", changes)
    await holding.release(m, [rules.holder(row.id) for row in deleted])
    return deleted


def _purged(row: DeletedComparison) -> pb.PurgedComparison:
    return pb.PurgedComparison(comparison_id=str(row.id), purge_time=timestamp(row.deleted_at))
