"""Runs by workers of the owner's own: claimed for as long as a lease lasts, by the database's
clock.

Everything but the reaper works on an open transaction and never commits. A token fences every
write, as `shared.background.attempts` does for this service's own workers: whoever claims last owns
the row.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import structlog

from services.conversions import analyses, conversions, generations, rules
from services.conversions.jobs import Noun
from shared.background import attempts
from shared.background.jobs import JobQueue
from shared.background.tasks import wanted
from shared.database import states
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.rpc import errors
from shared.rpc.errors import DomainError, Reason

NOUNS: Mapping[str, Noun] = {
    noun.table: noun for noun in (conversions.NOUN, generations.NOUN, analyses.NOUN)
}

_TABLE_OF: LiteralString = """
    SELECT 'conversions' AS name FROM conversions WHERE id = %(id)s
    UNION ALL SELECT 'generations' FROM generations WHERE id = %(id)s
    UNION ALL SELECT 'analyses' FROM analyses WHERE id = %(id)s
"""
_LOCK: LiteralString = """
    SELECT *, COALESCE(lease_expires_at < now(), false) AS lease_passed,
        now() + make_interval(secs => %(lease)s) AS lease_end
    FROM {table}
"""
_THIS: LiteralString = _LOCK + " WHERE id = %(id)s FOR UPDATE"
# What others have locked, others are claiming.
_FIRST: LiteralString = (
    _LOCK
    + """
    WHERE owner = %(owner)s AND external AND (state = 'pending'
        OR (state = 'processing' AND lease_expires_at < now() AND attempt_number < %(most)s))
    ORDER BY priority DESC, created_at, id LIMIT 1 FOR UPDATE SKIP LOCKED
"""
)
_EXTEND: LiteralString = (
    "UPDATE {table} SET lease_expires_at = %(end)s WHERE id = %(id)s RETURNING *"
)
_LATE: LiteralString = """
    SELECT owner, id FROM {table} WHERE state = 'processing' AND external AND lease_expires_at
        < now()
    ORDER BY lease_expires_at LIMIT 100
"""
_log = structlog.get_logger("outside")


async def lock(m: Mutation, text: str, lease_seconds: float = 0) -> tuple[Noun, Any]:
    """The owner's row of any noun, locked, with `lease_passed`, and `lease_end` for a lease from
    now on."""
    values = {"id": parse_id(text, "job_id"), "lease": lease_seconds}
    found = await m.one(_TABLE_OF, values)
    if found is None:
        raise errors.not_found("job", text)
    noun = NOUNS[found.name]
    return noun, await m.one(_THIS.format(table=noun.table), values)


async def lock_claimable(m: Mutation, text: str, lease_seconds: float) -> tuple[Noun, Any]:
    """The row of this id, if it can be claimed now; FAILED_PRECONDITION otherwise."""
    noun, row = await lock(m, text, lease_seconds)
    lost = row.lease_passed and row.attempt_number < rules.MAX_ATTEMPTS
    if not row.external or not (row.state == "pending" or lost):
        raise errors.precondition(
            _why_not(row), subject=f"jobs/{row.id}", metadata={"state": row.state}
        )
    return noun, row


def _why_not(row: Any) -> str:
    if not row.external:
        return (
            "this service runs it; say run_externally when you create one for a worker of your own"
        )
    if row.state == "processing":
        return "another worker has it; wait until its lease passes"
    return f"it is {row.state}"


async def lock_first(m: Mutation, noun: Noun, lease_seconds: float) -> Any:
    """The owner's row that is to be claimed next; None if none waits."""
    values = {"owner": m.owner, "most": rules.MAX_ATTEMPTS, "lease": lease_seconds}
    return await m.one(_FIRST.format(table=noun.table), values)


async def lock_held(
    m: Mutation, text: str, token: str, lease_seconds: float = 0
) -> tuple[Noun, Any]:
    """The row, if the token is its current one. ATTEMPT_SUPERSEDED otherwise."""
    noun, row = await lock(m, text, lease_seconds)
    if not holds(row, UUID(token)):
        raise errors.precondition(
            f"the job is {row.state}, and not by this attempt token: it was cancelled, or its lease"
            " passed; nothing was changed, stop working on it",
            subject=f"jobs/{row.id}",
            reason=Reason.ERROR_REASON_ATTEMPT_SUPERSEDED,
            metadata={"state": row.state},
        )
    return noun, row


def holds(row: Any, token: UUID) -> bool:
    return bool(row.external and row.state == "processing" and row.attempt_token == token)


async def begin(m: Mutation, noun: Noun, row: Any, worker: str) -> Any:
    """Begins a try at a locked row. Returns the new row, whose attempt_token is the try's."""
    if row.state == "processing":
        await attempts.record_end(m, row.attempt_token, "lost", error_class="WORKER_LOST")
    token, number = new_id(), row.attempt_number + 1
    await attempts.record_begin(m, token, noun.table, row.id, number, f"outside:{worker}")
    claimed = await move(
        m,
        noun,
        row,
        "processing",
        attempt_token=token,
        attempt_number=number,
        lease_expires_at=row.lease_end,
        progress=0.0,
    )
    await noun.publish(m, claimed)
    return claimed


async def undo(m: Mutation, noun: Noun, row: Any) -> None:
    """Takes a claim back as if it had never been."""
    await m.run("DELETE FROM attempts WHERE id = %s", (row.attempt_token,))
    before = await move(
        m,
        noun,
        row,
        "pending",
        attempt_token=None,
        attempt_number=row.attempt_number - 1,
        lease_expires_at=None,
    )
    await noun.publish(m, before)


async def extend(m: Mutation, noun: Noun, row: Any, progress: float | None) -> Any:
    """Gives a held row its next lease. Watchers are told if it got on."""
    if progress is None or progress == row.progress:
        return await m.one(_EXTEND.format(table=noun.table), {"end": row.lease_end, "id": row.id})
    row = await move(m, noun, row, "processing", progress=progress, lease_expires_at=row.lease_end)
    await noun.publish(m, row)
    return row


async def give_up(
    m: Mutation,
    queue: JobQueue,
    noun: Noun,
    row: Any,
    error_class: str,
    message: str,
    *,
    retryable: bool,
    lost: bool = False,
) -> Any:
    """Ends a try without a result: the row waits for another worker, or has failed. Returns it."""
    again = retryable and row.attempt_number < rules.MAX_ATTEMPTS
    said: dict[str, Any] = {"error_class": error_class, "error_message": message}
    await attempts.record_end(
        m, row.attempt_token, "lost" if lost else "retried" if again else "failed", **said
    )
    row = await move(m, noun, row, "pending" if again else "failed", lease_expires_at=None, **said)
    return await noun.tell(m, queue, row)


async def move(m: Mutation, noun: Noun, row: Any, to: str, **columns: Any) -> Any:
    """Moves a locked row. Returns the new one; nobody is told yet."""
    moved = await states.advance(m, rules.JOB_STATES, noun.table, row.id, to, **columns)
    if moved is None:
        raise RuntimeError(f"the machine has no way from {row.state} to {to}")
    return moved


async def reap_leases(db: Database, queue: JobQueue, every_seconds: float) -> None:
    """Gives rows whose outside worker fell silent to the next one. Runs until cancelled; any number
    may."""
    while wanted():
        await asyncio.sleep(every_seconds)
        try:
            for noun in NOUNS.values():
                for late in await db.system_rows(_LATE.format(table=noun.table)):
                    async with db.transaction(late.owner) as m:
                        _, row = await lock(m, str(late.id))
                        if row.state == "processing" and row.lease_passed:
                            message = "its worker let the lease pass without a heartbeat"
                            await give_up(
                                m,
                                queue,
                                noun,
                                row,
                                "WORKER_LOST",
                                message,
                                retryable=True,
                                lost=True,
                            )
        except (psycopg.Error, DomainError) as error:
            _log.warning("leases wait to be looked at", error=type(error).__name__)
