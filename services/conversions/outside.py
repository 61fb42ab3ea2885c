"""The rows of the three tables as outside workers name them: by id, or the next one of a kind.

Everything works in an open transaction and never commits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from services.conversions import job_moves, rules
from services.conversions.job_kinds import KINDS, AnyKind
from services.conversions.job_rows import ModelJob
from shared.background import job_tables, leases
from shared.background.job_tables import JobTable
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.rows import Command, Statement
from shared.rpc import auth, calls, errors

_SELECT_TABLE = Statement(
    str,
    """
    SELECT 'conversions' AS name FROM conversions WHERE id = %(id)s
    UNION ALL SELECT 'generations' FROM generations WHERE id = %(id)s
    UNION ALL SELECT 'analyses' FROM analyses WHERE id = %(id)s
    """,
)
_CLAIMING = b"SELECT set_config('app.claiming', $1, true)"
_DELETE_ATTEMPT = Command("DELETE FROM attempts WHERE id = %(id)s")
# The row to be claimed next. Skips rows that others have locked, because they are claiming them.
_LOCK_FIRST = {
    name: Statement(
        kind.table.row,
        f"""
        SELECT {kind.table.columns} FROM {name}
        WHERE owner = %(owner)s AND external AND (state = 'pending' OR (
            state = 'processing' AND lease_expires_at < now()
            AND attempt_number - requeued_after < %(most)s))
        ORDER BY priority DESC, created_at, id LIMIT 1 FOR UPDATE SKIP LOCKED
        """,
    )
    for name, kind in KINDS.items()
}
# The owners whose rows wait for outside workers, the one first that was served longest ago.
_SELECT_TURNS = {
    name: Statement(
        str,
        f"""
        SELECT owner FROM (
            SELECT DISTINCT owner FROM {name}
            WHERE external AND state IN ('pending', 'processing') AND (state = 'pending' OR (
                lease_expires_at < now() AND attempt_number - requeued_after < %(most)s))
        ) AS waiting LEFT JOIN outside_turns USING (owner)
        ORDER BY claimed_at NULLS FIRST, owner LIMIT 20
        """,
    )
    for name in KINDS
}
_SELECT_OWNER = Statement(
    str,
    """
    SELECT owner FROM conversions WHERE id = %(id)s AND external
    UNION ALL SELECT owner FROM generations WHERE id = %(id)s AND external
    UNION ALL SELECT owner FROM analyses WHERE id = %(id)s AND external
    """,
)
_SELECT_CLAIMED = Statement(
    str, "SELECT owner FROM attempts WHERE id = %(token)s AND job_id = %(job_id)s"
)
# The clock's time and not the transaction's: claims that began together still take turns.
_TAKE_TURN = Command("""
    INSERT INTO outside_turns (owner, claimed_at) VALUES (%(owner)s, clock_timestamp())
    ON CONFLICT (owner) DO UPDATE SET claimed_at = clock_timestamp()
""")
_WHY_LOST = "its worker let the lease pass without a heartbeat"


@dataclass(frozen=True, slots=True)
class LockedJob:
    """A row that the transaction has locked. `jobs` moves it."""

    kind: AnyKind
    jobs: JobTable[Any]
    row: ModelJob

    def is_claimed_by(self, token: UUID) -> bool:
        return leases.is_claimed_by(self.jobs, self.row, token)


class JobLocks:
    """Finds and locks rows of any kind, as outside workers and operators name them."""

    def __init__(self, queue: JobQueue) -> None:
        self._tables = job_moves.job_tables(queue)

    async def lock(self, m: Mutation, text: str) -> LockedJob:
        """Locks the owner's row, of any kind, and returns it. Raises NOT_FOUND if there is none."""
        wanted = {"id": parse_id(text, "job_id")}
        name = await m.first(_SELECT_TABLE, wanted)
        if name is None:
            raise errors.not_found("job", text)
        jobs = self._tables[name]
        row: ModelJob | None = await m.first(job_tables.lock(jobs.table), wanted)
        if row is None:  # purged meanwhile
            raise errors.not_found("job", text)
        return LockedJob(KINDS[name], jobs, row)

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


def of_deployment() -> bool:
    """Returns whether the caller is a worker of the deployment, which serves every owner."""
    return auth.current().role == "service"


async def owners_in_turn(m: Mutation, kind: AnyKind) -> Sequence[str]:
    """Returns owners whose rows of this kind wait for outside workers, in the order of their
    turns."""
    asked = {"most": rules.MAX_ATTEMPTS}
    return await _claiming(m, _SELECT_TURNS[kind.table.name], asked)


async def owner_of(m: Mutation, job_id: str) -> str:
    """Returns the owner of a row that outside workers may claim. Raises NOT_FOUND."""
    owners = await _claiming(m, _SELECT_OWNER, {"id": parse_id(job_id, "job_id")})
    if not owners:
        raise errors.not_found("job", job_id)
    return owners[0]


async def take_turn(m: Mutation) -> None:
    """Notes that the owner was served now."""
    await m.run(_TAKE_TURN, {"owner": m.owner})


async def act_for_claimed(db: Database, job_id: str, attempt_token: str) -> None:
    """Lets a worker of the deployment act for the owner of the row that it claimed, for the rest of
    the call. Raises NOT_FOUND if nobody made this claim."""
    if not of_deployment():
        return
    named = {"token": UUID(attempt_token), "job_id": UUID(job_id)}
    async with db.transaction("") as m:
        owners = await _claiming(m, _SELECT_CLAIMED, named)
    if not owners:
        raise errors.not_found("job", job_id)
    act_for(owners[0])


def act_for(owner: str) -> None:
    """Lets a worker of the deployment act for an owner, for the rest of the call."""
    auth.enter(replace(calls.owner_identity(owner), actor=auth.current().actor))


async def _claiming(
    m: Mutation, statement: Statement[str], parameters: Mapping[str, object]
) -> list[str]:
    """Runs a statement that reads the owners of claimable rows, and nothing else."""
    m.send(_CLAIMING, "on")
    owners = await m.all(statement, parameters)
    m.send(_CLAIMING, "off")
    return owners


async def _is_lost(m: Mutation, job: LockedJob) -> bool:
    """Returns whether another runner may have the row because its lease has passed."""
    if job.jobs.counted(job.row) >= rules.MAX_ATTEMPTS:
        return False
    return await leases.lock_late(m, job.jobs, job.row.id) is not None


def _why_not(row: ModelJob) -> str:
    if not row.external:
        return "this service runs it; say run_externally when you create one for an outside worker"
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
    """Ends the attempt of an outside worker whose lease has passed."""
    await leases.give_up(m, jobs, row, "WORKER_LOST", _WHY_LOST, retryable=True, lost=True)
