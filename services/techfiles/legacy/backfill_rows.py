"""Backfills from the older application's table: the row, its report and its message."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from atelier.techfiles.v1 import legacy_pb2 as pb

from shared.background.job_tables import JobRow
from shared.database.rows import Table
from shared.rpc.protos import EnumNames, timestamp, wait_of

TASK = "walk_legacy_table"
QUEUE = "legacy"
STATES = EnumNames(pb.LegacyBackfillState, "LEGACY_BACKFILL_STATE_")
MOST_FAILURES = 100


@dataclass(slots=True)
class Backfill(JobRow):
    created_by: str
    dry_run: bool
    reached: str | None  # the id of the last row that was looked at
    total: int | None  # rows of the table, once they were counted
    examined: int
    made: int
    archived: int
    present: int
    erased: int
    failed: int
    failures: list[dict[str, Any]]  # fields of LegacyBackfillFailure
    created_at: datetime


BACKFILLS = Table("legacy_backfills", Backfill)


@dataclass
class Report:
    """What a part of a walk came to."""

    examined: int = 0
    made: int = 0
    archived: int = 0
    present: int = 0
    erased: int = 0
    failed: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)

    def fail(self, row_id: str, message: str) -> None:
        self.failed += 1
        self.failures.append({"row_id": row_id[:200], "message": message[:500]})


def to_proto(row: Backfill) -> pb.LegacyBackfill:
    return pb.LegacyBackfill(
        id=str(row.id),
        created_by=row.created_by,
        dry_run=row.dry_run,
        state=STATES.number[row.state],
        total_rows=row.total or 0,
        examined_rows=row.examined,
        made_files=row.made,
        archived_files=row.archived,
        present_rows=row.present,
        erased_rows=row.erased,
        failed_rows=row.failed,
        failures=[pb.LegacyBackfillFailure(**failure) for failure in row.failures],
        cancel_requested=row.cancel_requested,
        error_class=row.error_class,
        error_message=row.error_message,
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        wait=wait_of(row),
    )
