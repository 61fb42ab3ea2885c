"""Comparisons, for all modules: the row, its message, its event."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.assets.v1 import render_pb2 as pb

from shared.background import events
from shared.background.job_tables import JobRow
from shared.database.db import Mutation
from shared.database.rows import Table
from shared.rpc.protos import EnumNames, timestamp, wait_of

TASK = "compare"
QUEUE = "images"
STATES = EnumNames(pb.ComparisonState, "COMPARISON_STATE_")


@dataclass(slots=True)
class Comparison(JobRow):
    """Two pictures of the same subject, and the job that makes one picture of them."""

    created_by: str
    before_asset_id: UUID
    after_asset_id: UUID
    note: str
    session_id: str
    room_id: str
    picture_asset_id: UUID | None
    created_at: datetime

    def asset_ids(self) -> list[UUID]:
        """Returns the ids of the two pictures, and of the one made of them, if it is there."""
        ids = (self.before_asset_id, self.after_asset_id, self.picture_asset_id)
        return [asset_id for asset_id in ids if asset_id]


COMPARISONS = Table("comparisons", Comparison)


def to_proto(row: Comparison, urls: Mapping[UUID, str] | None = None) -> pb.Comparison:
    """Returns the message. `urls`: by asset id, of the assets that are there."""
    found = urls or {}
    return pb.Comparison(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        before_asset_id=str(row.before_asset_id),
        after_asset_id=str(row.after_asset_id),
        note=row.note,
        session_id=row.session_id,
        room_id=row.room_id,
        state=STATES.number[row.state],
        picture_asset_id=str(row.picture_asset_id or ""),
        error_class=row.error_class,
        error_message=row.error_message,
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        wait=wait_of(row),
        before_url=found.get(row.before_asset_id),
        after_url=found.get(row.after_asset_id),
        picture_url=found.get(row.picture_asset_id) if row.picture_asset_id else None,
    )


async def publish(m: Mutation, row: Comparison) -> None:
    await events.publish(m, "comparison", row.id, row.version, to_proto(row))
