"""Attempts of outside runners: a claim holds for as long as its lease lasts, by the database's
clock.

Every function but the reaper works in an open transaction and never commits. A token fences every
write, as `shared.background.attempts` does for this service's own workers: the latest claim owns
the row.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import psycopg
import structlog

from services.conversions import job_moves, job_rows, rules
from services.conversions.job_kinds import KINDS, AnyKind
from services.conversions.job_rows import ModelJob
from shared.background.job_tables import record_begin, record_end
from shared.background.jobs import JobQueue
from shared.background.tasks import not_cancelled
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.database.rows import Command, Statement
from shared.rpc import errors
from shared.rpc.errors import DomainError, Reason

_log = structlog.get_logger("outside")


@dataclass(slots=True)
class LockedJob:
    """A row that this transaction has locked. `now` is the time of the transaction."""

    kind: AnyKind
    row: ModelJob
    now: datetime

    @property
    def lease_passed(self) -> bool:
        return self.row.lease_expires_at is not None and self.row.lease_expires_at < self.now

    def is_claimed_by(self, token: UUID) -> bool:
        row = self.row
        return row.external and row.state == "processing" and row.attempt_token == token


@dataclass(slots=True)
class Claimable:
    """The columns that a claim needs of a row that this transaction has locked. `now` is the time
    of the transaction."""

    id: UUID
    state: str
    external: bool
    attempt_token: UUID | None
    attempt_number: int
    lease_expires_at: datetime | None
    now: datetime


@dataclass(slots=True)
class _Place:
    """The table that has the row of an id. `now` is the time of the transaction."""

    name: str
    now: datetime


_SELECT_PLACE = Statement(
    _Place,
    """
    SELECT 'conversions' AS name, now() AS now FROM conversions WHERE id = %(id)s
    UNION ALL SELECT 'generations', now() FROM generations WHERE id = %(id)s
    UNION ALL SELECT 'analyses', now() FROM analyses WHERE id = %(id)s
    """,
)
_DELETE_ATTEMPT = Command("DELETE FROM attempts WHERE id = %(id)s")


@dataclass(slots=True)
class _Late:
    owner: str
    id: UUID


_CLAIMABLE = """
    SELECT id, state, external, attempt_token, attempt_number, lease_expires_at, now() AS now
"""
_LOCK_CLAIMABLE = {
    table: Statement(Claimable, f"{_CLAIMABLE} FROM {table} WHERE id = %(id)s FOR UPDATE")
    for table in KINDS
}
# The row to be claimed next. Skips rows that others have locked, because they are claiming them.
_LOCK_FIRST = {
    table: Statement(
        Claimable,
        f"""
        {_CLAIMABLE} FROM {table}
        WHERE owner = %(owner)s AND external AND (state = 'pending' OR (
            state = 'processing' AND lease_expires_at < now() AND attempt_number < %(most)s))
        ORDER BY priority DESC, created_at, id LIMIT 1 FOR UPDATE SKIP LOCKED
        """,
    )
    for table in KINDS
}
_UPDATE_LEASE = {
    table: Command(f"UPDATE {table} SET lease_expires_at = %(lease_end)s WHERE id = %(id)s")
    for table in KINDS
}
# The rows of all owners whose lease has passed.
_SELECT_LATE = {
    table: Statement(
        _Late,
        f"""
        SELECT owner, id FROM {table}
        WHERE state = 'processing' AND external AND lease_expires_at < now()
        ORDER BY lease_expires_at LIMIT 100
        """,
    )
    for table in KINDS
}


async def lock(m: Mutation, text: str) -> LockedJob:
    """Locks the owner's row, of any kind, and returns it. Raises NOT_FOUND if there is none."""
    kind, values, now = await _place(m, text)
    return LockedJob(kind, await m.one(job_rows.lock(kind.table), values), now)


async def _place(m: Mutation, text: str) -> tuple[AnyKind, dict[str, UUID], datetime]:
    values = {"id": parse_id(text, "job_id")}
    place = await m.first(_SELECT_PLACE, values)
    if place is None:
        raise errors.not_found("job", text)
    return KINDS[place.name], values, place.now


async def lock_claimable(m: Mutation, text: str) -> tuple[AnyKind, Claimable]:
    """Locks the row of this id and returns it. Raises FAILED_PRECONDITION if it can't be claimed
    now."""
    kind, values, _ = await _place(m, text)
    row = await m.one(_LOCK_CLAIMABLE[kind.table.name], values)
    lease_passed = row.lease_expires_at is not None and row.lease_expires_at < row.now
    lost = lease_passed and row.attempt_number < rules.MAX_ATTEMPTS
    if not row.external or not (row.state == "pending" or lost):
        raise errors.precondition(
            _why_not(row), subject=f"jobs/{row.id}", metadata={"state": row.state}
        )
    return kind, row


def _why_not(row: Claimable) -> str:
    if not row.external:
        return (
            "this service runs it; say run_externally when you create one for a worker of your own"
        )
    if row.state == "processing":
        return "another worker has it; wait until its lease passes"
    return f"it is {row.state}"


async def lock_first(m: Mutation, kind: AnyKind) -> Claimable | None:
    """Locks the owner's row that is to be claimed next and returns it, or None if none waits."""
    values = {"owner": m.owner, "most": rules.MAX_ATTEMPTS}
    return await m.first(_LOCK_FIRST[kind.table.name], values)


async def lock_claimed(m: Mutation, text: str, token: str) -> LockedJob:
    """Locks the row and returns it. Raises ATTEMPT_SUPERSEDED unless the token is its current
    one."""
    job = await lock(m, text)
    if not job.is_claimed_by(UUID(token)):
        row = job.row
        raise errors.precondition(
            f"the job is {row.state}, and not by this attempt token: it was cancelled, or its lease"
            " passed; nothing was changed, stop working on it",
            subject=f"jobs/{row.id}",
            reason=Reason.ERROR_REASON_ATTEMPT_SUPERSEDED,
            metadata={"state": row.state},
        )
    return job


async def begin(
    m: Mutation, kind: AnyKind, row: Claimable, worker: str, lease_seconds: float
) -> ModelJob:
    """Begins an attempt, and records an earlier one as lost if it still has the row. Returns the
    new row, whose attempt_token is the new attempt's."""
    if row.state == "processing":
        lost = job_rows.token_of(row)
        await record_end(m, lost, "lost", error_class="WORKER_LOST")
    token, number = new_id(), row.attempt_number + 1
    await record_begin(m, token, kind.table.name, row.id, number, f"outside:{worker}")
    claimed: ModelJob = await job_moves.move(
        m,
        kind.table,
        row,
        "processing",
        attempt_token=token,
        attempt_number=number,
        lease_expires_at=row.now + timedelta(seconds=lease_seconds),
        progress=0.0,
    )
    await kind.publish(m, claimed)
    return claimed


async def undo_claim(m: Mutation, job: LockedJob) -> None:
    """Undoes a claim: deletes its attempt, and makes the row PENDING with the attempt number it had
    before."""
    await m.run(_DELETE_ATTEMPT, {"id": job.row.attempt_token})
    before: ModelJob = await job_moves.move(
        m,
        job.kind.table,
        job.row,
        "pending",
        attempt_token=None,
        attempt_number=job.row.attempt_number - 1,
        lease_expires_at=None,
    )
    await job.kind.publish(m, before)


async def extend(
    m: Mutation, job: LockedJob, progress: float | None, lease_seconds: float
) -> datetime:
    """Renews the lease of a claimed row, counted from now, and returns its end. Publishes progress
    that changed."""
    table = job.kind.table
    lease_end = job.now + timedelta(seconds=lease_seconds)
    if progress is None or progress == job.row.progress:
        await m.run(_UPDATE_LEASE[table.name], {"lease_end": lease_end, "id": job.row.id})
        return lease_end
    row: ModelJob = await job_moves.move(
        m, table, job.row, "processing", progress=progress, lease_expires_at=lease_end
    )
    await job.kind.publish(m, row)
    return lease_end


async def give_up(
    m: Mutation,
    queue: JobQueue,
    job: LockedJob,
    error_class: str,
    message: str,
    *,
    retryable: bool,
    lost: bool = False,
) -> ModelJob:
    """Ends an attempt without a result: the row waits for another outside runner, or has failed.
    Returns the row."""
    kind, row = job.kind, job.row
    again = retryable and row.attempt_number < rules.MAX_ATTEMPTS
    outcome = "lost" if lost else "retried" if again else "failed"
    token = job_rows.token_of(row)
    await record_end(m, token, outcome, error_class=error_class, error_message=message)
    ended: ModelJob = await job_moves.move(
        m,
        kind.table,
        row,
        "pending" if again else "failed",
        lease_expires_at=None,
        error_class=error_class,
        error_message=message,
    )
    if ended.finished:
        await job_moves.enqueue_release(m, queue, kind, ended.id)
    await kind.publish(m, ended)
    return ended


async def reap_leases(db: Database, queue: JobQueue, every_seconds: float) -> None:
    """Takes rows back from outside runners whose lease has passed, so that others can claim them.
    Runs until cancelled; several processes may run it."""
    while not_cancelled():
        await asyncio.sleep(every_seconds)
        try:
            for table in KINDS:
                for late in await db.system_all(_SELECT_LATE[table]):
                    async with db.transaction(late.owner) as m:
                        await _reap(m, queue, late.id)
        except (psycopg.Error, DomainError) as error:
            _log.warning("leases wait to be looked at", error=type(error).__name__)


async def _reap(m: Mutation, queue: JobQueue, row_id: UUID) -> None:
    job = await lock(m, str(row_id))
    if job.row.state == "processing" and job.lease_passed:
        text = "its worker let the lease pass without a heartbeat"
        await give_up(m, queue, job, "WORKER_LOST", text, retryable=True, lost=True)
