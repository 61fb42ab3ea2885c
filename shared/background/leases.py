"""Leases of outside workers, which claim rows, renew their leases and end their attempts over gRPC.

A claimed row belongs to its runner for as long as its lease lasts, by the database's clock. The
token of the attempt fences every write, as in `attempts`: the latest claim owns the row. A runner
whose lease has passed keeps its row until another claims it or the reaper ends its attempt.

Every function but `reap` works in an open transaction and never commits. A row that it takes is one
that the transaction has locked.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, TypeVar
from uuid import UUID

import psycopg
import sqlalchemy as sa
import structlog

from shared.background.job_tables import JobRow, JobTable, record_begin, record_end
from shared.background.tasks import not_cancelled
from shared.database import states
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.database.rows import Statement, Table, compiled
from shared.rpc import errors
from shared.rpc.errors import DomainError, Reason

_log = structlog.get_logger("leases")


@dataclass(slots=True)
class LeasedRow(JobRow):
    """The columns of a table of jobs that outside workers may claim."""

    external: bool  # only an outside worker may claim the row
    lease_expires_at: datetime | None


L = TypeVar("L", bound=LeasedRow)

# The value that is bound for the column is the length of the lease.
_LEASE_END: states.Computed = {
    "lease_expires_at": sa.func.now() + sa.bindparam("lease_expires_at", type_=sa.Interval())
}


@dataclass(slots=True)
class _Late:
    owner: str
    id: UUID


@cache
def _extend(table: Table[L]) -> Statement[L]:
    row = table.core.c
    this = sa.update(table.core).where(row.id == sa.bindparam("row_id"))
    return compiled(table.row, this.values(dict(_LEASE_END)).returning(*row))


@cache
def _select_late(table: Table[L], running: str) -> Statement[_Late]:
    row = table.core.c
    late = sa.select(row.owner, row.id).where(_is_late(table, running))
    first = late.order_by(row.lease_expires_at).limit(sa.literal_column("100"))
    return compiled(_Late, first)


@cache
def _lock_late(table: Table[L], running: str) -> Statement[L]:
    this = sa.select(table.core).where(table.core.c.id == sa.bindparam("row_id"))
    return compiled(table.row, this.where(_is_late(table, running)).with_for_update())


def _is_late(table: Table[L], running: str) -> sa.ColumnElement[Any]:
    row = table.core.c
    # The state is no parameter, so that the planner may use an index of the claimed rows.
    is_running = row.state == sa.literal_column(f"'{running}'")
    return sa.and_(is_running, row.external, row.lease_expires_at < sa.func.now())


def is_claimed_by(jobs: JobTable[L], row: L, token: UUID) -> bool:
    """Returns whether the attempt of this token has the row."""
    return row.external and row.state == jobs.running and row.attempt_token == token


def check_claimed(jobs: JobTable[L], row: L, token: str, *, named: str, subject: str) -> None:
    """Raises ATTEMPT_SUPERSEDED unless the attempt of this token has the row, or has completed it:
    then FAILED_PRECONDITION. `named` is the row in the refusal's text, `subject` in its details."""
    if is_claimed_by(jobs, row, UUID(token)):
        return
    if row.external and row.state == jobs.done and row.attempt_token == UUID(token):
        raise errors.precondition(
            f"{named} is {row.state} by this attempt token: its result was kept. A repeat is"
            " answered like the first call if both carry the same request_id",
            subject=subject,
            metadata={"state": row.state},
        )
    raise errors.precondition(
        f"{named} is {row.state}, and not by this attempt token: it was {jobs.cancelled}, or its"
        " lease passed; nothing was changed, stop working on it",
        subject=subject,
        reason=Reason.ERROR_REASON_ATTEMPT_SUPERSEDED,
        metadata={"state": row.state},
    )


async def begin(
    m: Mutation, jobs: JobTable[L], row: L, worker: str, seconds: float, **columns: Any
) -> L:
    """Begins an attempt, and records an earlier one as lost if it still has the row. Returns the
    new row, whose attempt_token is the new attempt's."""
    if row.state == jobs.running:
        await end_attempt(m, row, "lost", "WORKER_LOST")
    token, number = new_id(), row.attempt_number + 1
    await record_begin(m, token, jobs.table.name, row.id, number, f"outside:{worker}")
    return await jobs.move(
        m,
        row,
        jobs.running,
        computed=_LEASE_END,
        attempt_token=token,
        attempt_number=number,
        lease_expires_at=timedelta(seconds=seconds),
        **columns,
    )


async def extend(m: Mutation, jobs: JobTable[L], row: L, seconds: float, **columns: Any) -> L:
    """Renews the lease of a claimed row, counted from now. Publishes the row if `columns` change
    too; a lease alone is no new version. Returns the row."""
    lease = {"lease_expires_at": timedelta(seconds=seconds)}
    if columns:
        return await jobs.move(m, row, jobs.running, computed=_LEASE_END, **lease, **columns)
    return await m.one(_extend(jobs.table), {**lease, "row_id": row.id})


async def end_attempt(
    m: Mutation, row: LeasedRow, outcome: str, error_class: str = "", error_message: str = ""
) -> None:
    """Ends the record of the row's attempt, if one has the row."""
    if row.attempt_token is not None:
        await record_end(
            m, row.attempt_token, outcome, error_class=error_class, error_message=error_message
        )


async def give_up(
    m: Mutation,
    jobs: JobTable[L],
    row: L,
    error_class: str,
    error_message: str,
    *,
    retryable: bool,
    lost: bool = False,
) -> L:
    """Ends an attempt without a result: the row waits for another outside worker, or has failed.
    `lost`: its runner didn't say so itself. Returns the new row."""
    again = retryable and jobs.counted(row) < jobs.max_attempts
    outcome = "lost" if lost else "retried" if again else "failed"
    await end_attempt(m, row, outcome, error_class, error_message)
    return await jobs.move(
        m,
        row,
        "pending" if again else "failed",
        attempt_token=None,
        lease_expires_at=None,
        error_class=error_class,
        error_message=error_message,
    )


async def lock_late(m: Mutation, jobs: JobTable[L], row_id: UUID) -> L | None:
    """Locks the row and returns it if an outside worker has it whose lease has passed."""
    return await m.first(_lock_late(jobs.table, jobs.running), {"row_id": row_id})


async def reap(
    db: Database,
    jobs: JobTable[L],
    expire: Callable[[Mutation, L], Awaitable[object]],
    every_seconds: float,
) -> None:
    """Takes rows back from outside workers whose lease has passed, so that others can claim them:
    `expire(m, row)` ends the attempt of each. Runs until cancelled; several processes may run
    it."""
    while not_cancelled():
        await asyncio.sleep(every_seconds)
        try:
            for late in await db.system_all(_select_late(jobs.table, jobs.running)):
                await _expire(db, jobs, expire, late)
        except (psycopg.Error, DomainError) as error:
            _log.warning(
                "leases wait to be looked at", table=jobs.table.name, error=type(error).__name__
            )


async def _expire(
    db: Database,
    jobs: JobTable[L],
    expire: Callable[[Mutation, L], Awaitable[object]],
    late: _Late,
) -> None:
    """Ends the attempt of one row. A row that fails doesn't keep the others waiting."""
    try:
        async with db.transaction(late.owner) as m:
            row = await lock_late(m, jobs, late.id)
            if row is not None:
                await expire(m, row)
    except (psycopg.Error, DomainError) as error:
        _log.warning(
            "a lease waits to be ended",
            table=jobs.table.name,
            row=str(late.id),
            error=type(error).__name__,
        )
