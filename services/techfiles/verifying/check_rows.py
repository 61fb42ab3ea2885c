"""Checks of histories: the row, which is the job of the walk, and its message."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.techfiles.v1 import verification_pb2 as pb

from shared.background.job_tables import JobRow
from shared.database.rows import Table
from shared.rpc.protos import EnumNames, timestamp, wait_of

TASK = "verify_history"
QUEUE = "history"
STATES = EnumNames(pb.HistoryCheckState, "HISTORY_CHECK_STATE_")


@dataclass(slots=True)
class Check(JobRow):
    created_by: str
    all_owners: bool
    record_digests: bool
    reached_owner: str  # with reached_slot: the last slot that was examined
    reached_slot: UUID
    total_slots: int | None  # once they were counted
    examined_slots: int
    examined_rows: int
    findings: int
    uncheckable: int  # snapshots without a digest
    recorded: int  # snapshots that the check gave one
    created_at: datetime


CHECKS = Table("history_checks", Check)


def to_proto(row: Check) -> pb.HistoryCheck:
    return pb.HistoryCheck(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        all_owners=row.all_owners,
        record_digests=row.record_digests,
        state=STATES.number[row.state],
        total_slots=row.total_slots or 0,
        examined_slots=row.examined_slots,
        examined_rows=row.examined_rows,
        findings=row.findings,
        uncheckable_snapshots=row.uncheckable,
        recorded_digests=row.recorded,
        cancel_requested=row.cancel_requested,
        error_class=row.error_class,
        error_message=row.error_message,
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        wait=wait_of(row),
    )
