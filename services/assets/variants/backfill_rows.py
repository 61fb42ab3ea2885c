"""Backfills: the row and its message."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.assets.v1 import backfill_pb2 as pb

from services.assets.core.asset_rows import KINDS
from shared.background.job_tables import JobRow
from shared.database.rows import Table
from shared.rpc.protos import EnumNames, timestamp, wait_of

TASK = "walk_backfill"
QUEUE = "backfills"
STATES = EnumNames(pb.BackfillState, "BACKFILL_STATE_")


@dataclass(slots=True)
class Backfill(JobRow):
    created_by: str
    presets: list[str]
    kinds: list[str]
    reached: UUID  # images up to this id were examined
    total: int | None  # images to examine, once they were counted
    examined: int
    made: int
    failed: int
    created_at: datetime


BACKFILLS = Table("backfills", Backfill)


def to_proto(row: Backfill) -> pb.Backfill:
    return pb.Backfill(
        id=str(row.id),
        created_by=row.created_by,
        presets=row.presets,
        kinds=[KINDS.number[kind] for kind in row.kinds],
        state=STATES.number[row.state],
        total_images=row.total or 0,
        examined_images=row.examined,
        made_images=row.made,
        failed_images=row.failed,
        cancel_requested=row.cancel_requested,
        error_class=row.error_class,
        error_message=row.error_message,
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        wait=wait_of(row),
    )
