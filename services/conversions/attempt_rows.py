"""Attempts: the row class, its message, and a summary per job."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.conversions.v1 import job_pb2 as pb

from services.conversions.job_kinds import KINDS
from shared.database.rows import Statement, Table
from shared.rpc.protos import EnumNames, timestamp

OUTCOMES = EnumNames(pb.AttemptOutcome, "ATTEMPT_OUTCOME_")


@dataclass(slots=True)
class Attempt:
    id: UUID
    owner: str
    job: str  # the table of the job
    job_id: UUID
    number: int
    worker: str
    outcome: str
    error_class: str
    error_message: str
    model: str
    input_bytes: int
    output_bytes: int
    credits: int
    created_at: datetime
    ended_at: datetime | None


ATTEMPTS = Table("attempts", Attempt)


@dataclass(slots=True)
class AttemptSummary:
    """A summary of one job's attempts."""

    job_id: UUID
    started_at: datetime
    worker: str  # the worker of the last attempt
    retries: int


SELECT_SUMMARIES = Statement(
    AttemptSummary,
    """
    SELECT job_id, min(created_at) AS started_at,
        (array_agg(worker ORDER BY number DESC))[1] AS worker,
        count(*) FILTER (WHERE outcome IN ('failed', 'retried', 'lost')) AS retries
    FROM attempts WHERE job_id = ANY(%(ids)s) GROUP BY job_id
    """,
)


def to_proto(row: Attempt) -> pb.Attempt:
    return pb.Attempt(
        id=str(row.id),
        job_id=str(row.job_id),
        kind=KINDS[row.job].number,
        number=row.number,
        worker=row.worker,
        outcome=OUTCOMES.number[row.outcome],
        error_class=row.error_class,
        error_message=row.error_message,
        model=row.model,
        input_bytes=row.input_bytes,
        output_bytes=row.output_bytes,
        credits=row.credits,
        start_time=timestamp(row.created_at),
        end_time=timestamp(row.ended_at),
    )
