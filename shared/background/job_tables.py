"""Rows of jobs, and records of their attempts: what the attempts of workers (`attempts`) and of
outside workers (`leases`) have in common.

The tables' row classes derive from `JobRow`. A `JobTable` says how the rows of one table move, and
who is told. Each attempt has a record in the table `attempts`.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, Generic, TypeVar
from uuid import UUID

import sqlalchemy as sa

from shared.database import states
from shared.database.db import Mutation
from shared.database.rows import Command, Statement, Table, compiled


@dataclass(slots=True)
class JobRow:
    """The columns that every table of jobs has. The tables' row classes derive from it."""

    id: UUID
    owner: str
    state: str
    version: int
    attempt_token: UUID | None
    attempt_number: int
    faults: int
    losses: int
    waits_for: str
    waiting_since: datetime | None
    cancel_requested: bool
    error_class: str
    error_message: str
    updated_at: datetime


J = TypeVar("J", bound=JobRow)


@dataclass(frozen=True)
class JobTable(Generic[J]):
    """How the jobs of one noun run. `publish(m, row)` publishes the row's new state.

    `stamps` maps a state to the columns that get the time of the move to it. `in_transaction(m,
    row)` runs after `publish`, in the transaction of every move without an outcome: an attempt
    begins, ends without a result or is cancelled. `computed` maps a state to the columns that SQL
    computes in the move to it. `counted(row)` returns how many of the row's attempts count towards
    `max_attempts`, if outside workers run it. `ready(row)` returns whether a pending row may begin:
    a queued job whose row is no longer meant to run does nothing. `pauses` are what rows wait for
    because somebody decided so: a wait that comes after one of these is a new one.
    """

    table: Table[J]
    machine: states.Machine
    running: str
    done: str
    publish: Callable[[Mutation, J], Awaitable[None]]
    max_attempts: int = 3
    counted: Callable[[J], int] = lambda row: row.attempt_number
    ready: Callable[[J], bool] = lambda _row: True
    pauses: frozenset[str] = frozenset()
    cancelled: str = "cancelled"
    stamps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    computed: Mapping[str, states.Computed] = field(default_factory=dict)
    in_transaction: Callable[[Mutation, J], Awaitable[None]] | None = None

    async def advance(
        self,
        m: Mutation,
        row_id: UUID,
        to: str,
        *,
        token: UUID | None = None,
        computed: states.Computed = states.NOTHING,
        **columns: Any,
    ) -> J | None:
        """Moves a row as `states.advance` does, with the state's stamps and computed columns. The
        caller publishes it."""
        # An attempt may move its row only from running: once its commit went through, it must not
        # change the row again, even if it never heard of that commit.
        machine = self.machine if token is None else {self.running: self.machine[self.running]}
        return await states.advance(
            m,
            machine,
            self.table,
            row_id,
            to,
            token=token,
            stamps=self.stamps.get(to, ()),
            computed={**self.computed.get(to, {}), **computed},
            **columns,
        )

    async def follow(self, m: Mutation, row: J) -> None:
        """Publishes a row that moved without an outcome, and runs `in_transaction`."""
        await self.publish(m, row)
        if self.in_transaction:
            await self.in_transaction(m, row)

    async def move(
        self,
        m: Mutation,
        row: J,
        to: str,
        *,
        computed: states.Computed = states.NOTHING,
        **columns: Any,
    ) -> J:
        """Moves a row that the transaction has locked and follows the move. Returns the new row.
        Raises RuntimeError if the machine does not allow it, which is a bug of ours."""
        moved = await self.advance(m, row.id, to, computed=computed, **columns)
        if moved is None:
            raise RuntimeError(f"the machine has no way from {row.state} to {to}")
        await self.follow(m, moved)
        return moved


_INSERT_ATTEMPT = Command("""
    INSERT INTO attempts (id, owner, job, job_id, number, worker)
    VALUES (%(id)s, %(owner)s, %(job)s, %(job_id)s, %(number)s, %(worker)s)
""")
_END_ATTEMPT = Command("""
    UPDATE attempts SET outcome = %(outcome)s, ended_at = now(), error_class = %(error_class)s,
        error_message = %(error_message)s, model = %(model)s, input_bytes = %(input_bytes)s,
        output_bytes = %(output_bytes)s, credits = %(credits)s
    WHERE id = %(token)s AND outcome = 'running'
""")
# An unended attempt of this very process didn't lose its worker: the database was unreachable when
# the attempt ended.
END_UNENDED_ATTEMPTS = Statement(
    str,
    """
    UPDATE attempts SET ended_at = now(),
        outcome = CASE WHEN worker = %(me)s THEN 'waited' ELSE 'lost' END,
        error_class = CASE WHEN worker = %(me)s THEN 'DEPENDENCY_UNAVAILABLE' ELSE 'WORKER_LOST' END
    WHERE job_id = %(job_id)s AND outcome = 'running' RETURNING outcome
    """,
)
DELETE_WAITED_ATTEMPTS = Command(
    "DELETE FROM attempts WHERE job_id = %(job_id)s AND outcome = 'waited'"
)
SELECT_SUCCEEDED = Statement(
    UUID, "SELECT id FROM attempts WHERE id = %(token)s AND outcome = 'succeeded'"
)


@dataclass(slots=True)
class WaitSoFar:
    """Since when a row waits. `now` is the time of the statement."""

    now: datetime
    waiting_since: datetime | None


@dataclass(slots=True)
class Hold:
    """Which attempt has a row, and whether it shall end."""

    cancel_requested: bool
    attempt_token: UUID | None
    state: str


@cache
def lock(table: Table[J]) -> Statement[J]:
    """Returns the statement that selects the row `id` and locks it until the transaction ends."""
    row = table.core.c
    one = sa.select(table.core).where(row.id == sa.bindparam("id")).with_for_update()
    return compiled(table.row, one)


@cache
def select_owner(table: Table[J]) -> Statement[str]:
    row = table.core.c
    return compiled(str, sa.select(row.owner).where(row.id == sa.bindparam("id")))


@cache
def select_wait(table: Table[J]) -> Statement[WaitSoFar]:
    row = table.core.c
    columns = (sa.func.now().label("now"), row.waiting_since)
    return compiled(WaitSoFar, sa.select(*columns).where(row.id == sa.bindparam("id")))


@cache
def select_hold(table: Table[J]) -> Statement[Hold]:
    row = table.core.c
    columns = (row.cancel_requested, row.attempt_token, row.state)
    return compiled(Hold, sa.select(*columns).where(row.id == sa.bindparam("id")))


async def record_begin(
    m: Mutation, token: UUID, job: str, job_id: UUID, number: int, worker: str
) -> None:
    """Adds the record of an attempt, also for attempts of outside workers."""
    values = {
        "id": token,
        "owner": m.owner,
        "job": job,
        "job_id": job_id,
        "number": number,
        "worker": worker,
    }
    await m.run(_INSERT_ATTEMPT, values)


async def record_end(
    m: Mutation,
    token: UUID,
    outcome: str,
    *,
    error_class: str = "",
    error_message: str = "",
    model: str = "",
    input_bytes: int = 0,
    output_bytes: int = 0,
    credits: int = 0,
) -> None:
    """Ends the record of an attempt; does nothing if it has ended already."""
    values = {
        "token": token,
        "outcome": outcome,
        "error_class": error_class,
        "error_message": error_message,
        "model": model,
        "input_bytes": input_bytes,
        "output_bytes": output_bytes,
        "credits": credits,
    }
    await m.run(_END_ATTEMPT, values)
