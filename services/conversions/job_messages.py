"""The message of a job of any kind, with a summary of its attempts."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.conversions.v1 import job_pb2 as pb

from services.conversions import job_rows, rules
from services.conversions.attempt_rows import SELECT_SUMMARIES, AttemptSummary
from services.conversions.job_kinds import AnyKind
from services.conversions.job_rows import STATES, ModelJob
from shared.database.db import Mutation
from shared.rpc.protos import timestamp, wait_of


@dataclass(slots=True)
class ListedJob:
    """The columns of a row that a list shows. `job`: the row's table."""

    job: str
    id: UUID
    state: str
    attempt_number: int
    progress: float
    cancel_requested: bool
    error_class: str
    error_message: str
    credits: int
    priority: int
    external: bool
    lease_expires_at: datetime | None
    waits_for: str
    waiting_since: datetime | None
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None
    deleted_at: datetime | None
    expires_at: datetime | None
    ended_at: datetime | None
    requeued_at: datetime | None


async def message(m: Mutation, kind: AnyKind, row: ModelJob) -> pb.Job:
    summary = await m.first(SELECT_SUMMARIES, {"ids": [row.id]})
    return to_proto(kind, row, summary)


def to_proto(kind: AnyKind, row: ModelJob | ListedJob, summary: AttemptSummary | None) -> pb.Job:
    return pb.Job(
        id=str(row.id),
        kind=kind.number,
        state=STATES.number[row.state],
        worker=summary.worker if summary else "",
        attempts=row.attempt_number,
        max_retries=rules.MAX_ATTEMPTS,
        progress=row.progress,
        cancel_requested=row.cancel_requested,
        error_class=row.error_class,
        error_message=row.error_message,
        credits=row.credits,
        start_time=timestamp(summary.started_at) if summary else None,
        end_time=timestamp(job_rows.end_of(row)),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        wait=wait_of(row),
        retry_count=summary.retries if summary else 0,
        priority=row.priority,
        run_externally=row.external,
        lease_expire_time=timestamp(row.lease_expires_at),
        archive_time=timestamp(row.archived_at),
        delete_time=timestamp(row.deleted_at),
        expire_time=timestamp(row.expires_at),
        requeue_time=timestamp(row.requeued_at),
    )
