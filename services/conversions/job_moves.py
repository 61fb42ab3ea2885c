"""Moves a job's row from state to state, and enqueues what follows from a move."""

from functools import cache
from typing import Any, Protocol
from uuid import UUID

import sqlalchemy as sa

from services.conversions import rules
from services.conversions.attempt_rows import ATTEMPTS
from services.conversions.job_kinds import AnyKind
from services.conversions.job_rows import J
from shared.background.jobs import FRESH, JobQueue
from shared.database.db import Mutation
from shared.database.rows import Statement, Table, compiled

MODELS_QUEUE = "models"
RELEASE_QUEUE = "references"
_RELEASE_PRIORITY = FRESH + 1  # before any job, because a release takes only a moment


class LockedJob(Protocol):
    """A row that the transaction has locked."""

    id: UUID
    state: str


async def move(m: Mutation, table: Table[J], row: LockedJob, to: str, **columns: object) -> J:
    """Moves a locked row to state `to`, sets `columns`, and returns the row. The same UPDATE writes
    the processing time of a row that ends."""
    if to not in rules.JOB_STATES[row.state]:
        raise RuntimeError(f"the machine has no way from {row.state} to {to}")
    statement = _move(table, tuple(columns), to in rules.FINISHED)
    return await m.one(statement, {**columns, "row_id": row.id, "to_state": to})


async def write_processing_time(m: Mutation, table: Table[J], row_id: UUID) -> J:
    """Writes the processing time of a row that `shared.background.attempts` moved to a final state.
    Returns the row."""
    return await m.one(_write_processing_time(table), {"row_id": row_id})


async def enqueue_release(m: Mutation, queue: JobQueue, kind: AnyKind, row_id: UUID) -> None:
    """Enqueues the release of the references of a row that ended without a result."""
    await queue.enqueue(m, kind.release_task, RELEASE_QUEUE, row_id, priority=_RELEASE_PRIORITY)


@cache
def _move(table: Table[J], columns: tuple[str, ...], ends: bool) -> Statement[J]:
    row = table.core.c
    values: dict[str, sa.ColumnElement[Any]] = {name: sa.bindparam(name) for name in columns}
    values |= {
        "state": sa.bindparam("to_state"),
        "version": row.version + sa.literal_column("1"),
        "updated_at": sa.func.now(),
    }
    if ends:
        values["processing_time_ms"] = _processing_time(table)
    return _update(table, values)


@cache
def _write_processing_time(table: Table[J]) -> Statement[J]:
    return _update(table, {"processing_time_ms": _processing_time(table)})


def _update(table: Table[J], values: dict[str, sa.ColumnElement[Any]]) -> Statement[J]:
    row = table.core.c
    this = sa.update(table.core).where(row.id == sa.bindparam("row_id"))
    return compiled(table.row, this.values(values).returning(*row))


def _processing_time(table: Table[J]) -> sa.ColumnElement[Any]:
    """Returns the expression for the milliseconds of the row's last attempt. An attempt that is
    still running ends with this transaction."""
    attempt = ATTEMPTS.core.c
    lasted = sa.func.coalesce(attempt.ended_at, sa.func.now()) - attempt.created_at
    last = (
        sa.select(sa.func.round(sa.extract("epoch", lasted) * sa.literal_column("1000")))
        .where(attempt.job_id == table.core.c.id)
        .order_by(attempt.number.desc())
        .limit(sa.literal_column("1"))
        .correlate(table.core)
    )
    return sa.func.coalesce(last.scalar_subquery(), sa.literal_column("0"))
