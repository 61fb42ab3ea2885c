"""Dead jobs, which failed for good through no fault of their owners, and the record of who requeued
or dismissed one.

Triggers keep the table of dead jobs (tables.sql, note_dead_job), so that whatever ends a job, it is
there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from uuid import UUID

import sqlalchemy as sa
from atelier.conversions.v1 import dead_job_pb2 as pb

from services.conversions.job_kinds import KINDS
from shared.database.db import Database
from shared.database.rows import Command, Statement, Table, compiled
from shared.rpc.protos import timestamp


@dataclass(slots=True)
class DeadJob:
    """`created_at`: when the job failed. `job`: its table."""

    id: UUID
    owner: str
    job: str
    task: str
    error_class: str
    error_message: str
    provider: str
    external: bool
    attempts: int
    job_created_at: datetime
    requeued_at: datetime | None
    created_at: datetime


@dataclass(slots=True)
class Requeue:
    """A requeue of a job. `error_class`: what the job had failed of."""

    id: UUID
    owner: str
    job: str
    job_id: UUID
    actor: str
    reason: str
    error_class: str
    created_at: datetime


@dataclass(slots=True)
class Dismissal:
    """Who took a job off the list, and what it had failed of."""

    job_id: UUID
    owner: str
    job: str
    actor: str
    reason: str
    error_class: str
    created_at: datetime


DEAD_JOBS = Table("dead_jobs", DeadJob)
REQUEUES = Table("job_requeues", Requeue)
DISMISSALS = Table("job_dismissals", Dismissal)
LOCK_DEAD_JOB = Statement(
    DeadJob, f"SELECT {DEAD_JOBS.columns} FROM dead_jobs WHERE id = %(id)s FOR UPDATE"
)
DELETE_DEAD_JOB = Command("DELETE FROM dead_jobs WHERE owner = %(owner)s AND id = %(id)s")
SELECT_DISMISSAL = Statement(
    Dismissal,
    f"""
    SELECT {DISMISSALS.columns} FROM job_dismissals WHERE owner = %(owner)s AND job_id = %(job_id)s
    """,
)
SELECT_REQUEUES = Statement(
    Requeue,
    f"""
    SELECT {REQUEUES.columns} FROM job_requeues WHERE owner = %(owner)s AND job_id = %(job_id)s
    ORDER BY created_at DESC LIMIT 50
    """,
)


_EQUAL = frozenset({"owner", "job", "error_class", "provider"})  # filters that compare so


async def select(
    db: Database, wanted: Mapping[str, object], *, limit: int, oldest_first: bool = False
) -> Sequence[DeadJob]:
    """Returns dead jobs of all owners, for an operator. `wanted`: filters by column, and by
    `created_from`, `created_before`, and the key `after_at` and `after_id` of the row before; what
    is None or empty doesn't filter."""
    given = {name: value for name, value in wanted.items() if value}
    async with db.transaction("") as m:
        m.operate()
        statement = _select(tuple(sorted(given)), oldest_first)
        return await m.all(statement, {**given, "limit": limit})


@cache
def _select(names: tuple[str, ...], oldest_first: bool) -> Statement[DeadJob]:
    row = DEAD_JOBS.core.c
    key = sa.tuple_(row.created_at, row.id)
    where = [row[name] == sa.bindparam(name) for name in names if name in _EQUAL]
    if "created_from" in names:
        where.append(row.created_at >= sa.bindparam("created_from"))
    if "created_before" in names:
        where.append(row.created_at < sa.bindparam("created_before"))
    if "after_id" in names:
        where.append(key < sa.tuple_(sa.bindparam("after_at"), sa.bindparam("after_id")))
    order = (row.created_at, row.id) if oldest_first else (row.created_at.desc(), row.id.desc())
    page = sa.select(DEAD_JOBS.core).where(*where).order_by(*order)
    return compiled(DeadJob, page.limit(sa.bindparam("limit")))


def to_proto(row: DeadJob) -> pb.DeadJob:
    return pb.DeadJob(
        job_id=str(row.id),
        owner=row.owner,
        kind=KINDS[row.job].number,
        task=row.task,
        error_class=row.error_class,
        error_message=row.error_message,
        provider=row.provider,
        attempts=row.attempts,
        run_externally=row.external,
        fail_time=timestamp(row.created_at),
        create_time=timestamp(row.job_created_at),
        requeue_time=timestamp(row.requeued_at),
    )
