"""The rows of the three tables as outside runners name them: by id, or the next one of a kind.

Everything works in an open transaction and never commits.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from services.conversions import job_moves, rules
from services.conversions.job_kinds import KINDS, AnyKind
from services.conversions.job_rows import ModelJob
from shared.background import job_tables, leases
from shared.background.job_tables import JobTable
from shared.background.jobs import JobQueue
from shared.database.db import Mutation
from shared.database.ids import parse_id
from shared.database.rows import Command, Statement
from shared.rpc import errors

_SELECT_TABLE = Statement(
    str,
    """
    SELECT 'conversions' AS name FROM conversions WHERE id = %(id)s
    UNION ALL SELECT 'generations' FROM generations WHERE id = %(id)s
    UNION ALL SELECT 'analyses' FROM analyses WHERE id = %(id)s
    """,
)
_DELETE_ATTEMPT = Command("DELETE FROM attempts WHERE id = %(id)s")
# The row to be claimed next. Skips rows that others have locked, because they are claiming them.
_LOCK_FIRST = {
    name: Statement(
        kind.table.row,
        f"""
        SELECT {kind.table.columns} FROM {name}
        WHERE owner = %(owner)s AND external AND (state = 'pending' OR (
            state = 'processing' AND lease_expires_at < now() AND attempt_number < %(most)s))
        ORDER BY priority DESC, created_at, id LIMIT 1 FOR UPDATE SKIP LOCKED
        """,
    )
    for name, kind in KINDS.items()
}
_WHY_LOST = "its worker let the lease pass without a heartbeat"


@dataclass(frozen=True, slots=True)
class LockedJob:
    """A row that the transaction has locked. `jobs` moves it."""

    kind: AnyKind
    jobs: JobTable[Any]
    row: ModelJob

    def is_claimed_by(self, token: UUID) -> bool:
        return leases.is_claimed_by(self.jobs, self.row, token)


class OutsideJobs:
    """Finds and locks the rows that outside runners name."""

    def __init__(self, queue: JobQueue) -> None:
        self._tables = job_moves.job_tables(queue)

    async def lock(self, m: Mutation, text: str) -> LockedJob:
        """Locks the owner's row, of any kind, and returns it. Raises NOT_FOUND if there is none."""
        wanted = {"id": parse_id(text, "job_id")}
        name = await m.first(_SELECT_TABLE, wanted)
        if name is None:
            raise errors.not_found("job", text)
        jobs = self._tables[name]
        return LockedJob(KINDS[name], jobs, await m.one(job_tables.lock(jobs.table), wanted))

    async def lock_claimed(self, m: Mutation, text: str, token: str) -> LockedJob:
        """Locks the row and returns it. Raises ATTEMPT_SUPERSEDED unless the token is its current
        one."""
        job = await self.lock(m, text)
        subject = f"jobs/{job.row.id}"
        leases.check_claimed(job.jobs, job.row, token, named="the job", subject=subject)
        return job

    async def lock_claimable(self, m: Mutation, text: str) -> LockedJob:
        """Locks the row of this id and returns it. Raises FAILED_PRECONDITION if it can't be
        claimed now."""
        job = await self.lock(m, text)
        row = job.row
        if not row.external or not (row.state == "pending" or await _is_lost(m, job)):
            raise errors.precondition(
                _why_not(row), subject=f"jobs/{row.id}", metadata={"state": row.state}
            )
        return job

    async def lock_first(self, m: Mutation, kind: AnyKind) -> LockedJob | None:
        """Locks the owner's row that is to be claimed next and returns it, or None if none
        waits."""
        name = kind.table.name
        row = await m.first(_LOCK_FIRST[name], {"owner": m.owner, "most": rules.MAX_ATTEMPTS})
        return None if row is None else LockedJob(kind, self._tables[name], row)


async def _is_lost(m: Mutation, job: LockedJob) -> bool:
    """Returns whether another runner may have the row because its lease has passed."""
    if job.row.attempt_number >= rules.MAX_ATTEMPTS:
        return False
    return await leases.lock_late(m, job.jobs, job.row.id) is not None


def _why_not(row: ModelJob) -> str:
    if not row.external:
        return (
            "this service runs it; say run_externally when you create one for a worker of your own"
        )
    if row.state == "processing":
        return "another worker has it; wait until its lease passes"
    return f"it is {row.state}"


async def undo_claim(m: Mutation, job: LockedJob) -> None:
    """Undoes a claim: deletes its attempt, and makes the row PENDING with the attempt number it had
    before."""
    await m.run(_DELETE_ATTEMPT, {"id": job.row.attempt_token})
    number = job.row.attempt_number - 1
    await job.jobs.move(
        m, job.row, "pending", attempt_token=None, attempt_number=number, lease_expires_at=None
    )


async def expire_lease(jobs: JobTable[Any], m: Mutation, row: ModelJob) -> None:
    """Ends the attempt of an outside runner whose lease has passed."""
    await leases.give_up(m, jobs, row, "WORKER_LOST", _WHY_LOST, retryable=True, lost=True)
