"""Comparisons as rows: under which name they hold their pictures, and how they go. They are made in
`renders`."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from atelier.assets.v1 import render_pb2 as pb

from services.assets.core import holding
from shared.background import events
from shared.database.db import Mutation
from shared.rpc.protos import timestamp


def holder(comparison_id: object) -> str:
    return f"assets/comparisons/{comparison_id}"


async def take_out(m: Mutation, ids: Sequence[UUID]) -> list[Any]:
    """Removes comparisons of the transaction's owner and gives their two pictures back. Returns
    those that were there; the picture that was made of each is an asset still."""
    gone = await m.all(
        "DELETE FROM comparisons WHERE id = ANY(%(ids)s) AND owner = %(owner)s"
        " RETURNING id, version, picture_asset_id, 0 AS size_bytes, now() AS at",
        {"ids": list(ids), "owner": m.owner},
    )
    changes = [
        (
            row.id,
            row.version + 1,
            pb.PurgedComparison(comparison_id=str(row.id), purge_time=timestamp(row.at)),
        )
        for row in gone
    ]
    await events.publish_all(m, "purged_comparison", changes)
    await holding.release(m, [holder(row.id) for row in gone])
    return gone
