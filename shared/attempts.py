"""One try of a job, fenced: whoever begins last owns the row, and what an earlier try still does changes nothing.

A row that is a job has the columns id, owner, state, version, attempt_token, attempt_number, cancel_requested,
error_class, error_message, updated_at. `run` moves it pending -> running -> done / failed / cancelled, writes one
`attempts` row per try, and tells watchers of every move in the same transaction.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

import structlog

from shared import auth, calls, states
from shared.db import Database, Mutation
from shared.ids import new_id
from shared.jobs import TryAgain

WORKER = f"{socket.gethostname()}:{os.getpid()}"
CANCEL_POLL_SECONDS = 1.0
_FIRST_BACKOFF_SECONDS = 1.0
_LONGEST_BACKOFF_SECONDS = 60.0
_log = structlog.get_logger("attempts")

Publish = Callable[[Mutation, Any], Awaitable[None]]


@dataclass(frozen=True)
class Kind:
    """What a noun's jobs have in common. `publish(m, row)` tells of the row's new state."""

    table: LiteralString
    machine: states.Machine
    running: str
    done: str
    publish: Publish
    max_attempts: int = 3
    cancelled: str = "cancelled"


@dataclass
class JobFailed(Exception):
    """The work can't be done. `final`: trying again would not help. `error_class` is one of a service's few words."""

    error_class: str
    message: str
    final: bool = True


@dataclass
class Outcome:
    """What a try achieved: the row's new columns, figures for the attempt, and what else the commit does. `to`: another
    state than the kind's `done`."""

    columns: dict[str, Any]
    to: str | None = None
    output_bytes: int = 0
    credits: int = 0
    also: Callable[[Mutation, Any], Awaitable[None]] | None = None  # within the commit
    after: Callable[[], Awaitable[None]] | None = None  # once committed
    undo: Callable[[], Awaitable[None]] | None = None  # if another try has the row: remove what this one stored


@dataclass
class Attempt:
    """The try in hand. `row` is the job's row as claimed; `token` fences every write. The rest is for its record, and
    stands there however the try ends."""

    row: Any
    token: UUID
    input_bytes: int = 0
    model: str = ""


class Superseded(Exception):
    """Another try has the row now."""


Work = Callable[[Attempt], Awaitable[Outcome]]

_BEGIN: LiteralString = """
    INSERT INTO attempts (id, owner, job, job_id, number, worker)
    VALUES (%(id)s, %(owner)s, %(job)s, %(job_id)s, %(number)s, %(worker)s)
"""
_END: LiteralString = """
    UPDATE attempts SET outcome = %(outcome)s, ended_at = now(), error_class = %(error_class)s,
        error_message = %(error_message)s, model = %(model)s, input_bytes = %(input_bytes)s,
        output_bytes = %(output_bytes)s, credits = %(credits)s
    WHERE id = %(token)s AND outcome = 'running'
"""


async def run(db: Database, kind: Kind, row_id: str, work: Work) -> None:
    """Runs one try of the job whose row is `row_id`, for the owner of that row. A row that is finished or gone is left
    alone."""
    attempt = await _begin(db, kind, UUID(row_id))
    if attempt is None:
        return
    auth.enter(calls.owner_identity(attempt.row.owner))
    working = asyncio.ensure_future(work(attempt))
    watching = asyncio.create_task(_watch_for_cancel(db, kind, attempt))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await working
            watching.result()  # raises Superseded if that is why
            await _end(db, kind, attempt, kind.cancelled, "cancelled")
            return
        await _finish(db, kind, attempt, working.result())
    except JobFailed as failure:
        await _fail(db, kind, attempt, failure)
    except Superseded:
        _log.warning("late result discarded", table=kind.table, row=row_id)
    except asyncio.CancelledError:
        working.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await working
        await asyncio.shield(_end(db, kind, attempt, "pending", "retried", error_class="WORKER_STOPPED"))
        raise TryAgain() from None
    except Exception as error:
        _log.exception("job failed unexpectedly", table=kind.table, row=row_id)
        await _fail(db, kind, attempt, JobFailed("INTERNAL", f"unexpected {type(error).__name__}", final=False))
    finally:
        watching.cancel()
        watching.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody asks for it any more


async def _begin(db: Database, kind: Kind, row_id: UUID) -> Attempt | None:
    """Claims the row for a new try. The try before it, if it never ended, is recorded as lost."""
    owner = await _owner_of(db, kind, row_id)
    if owner is None:
        return None
    token = new_id()
    async with db.transaction(owner) as m:
        row = await m.one(f"SELECT * FROM {kind.table} WHERE id = %s FOR UPDATE", (row_id,))
        if row is None or row.state not in ("pending", kind.running):
            return None
        await m.run(
            "UPDATE attempts SET outcome = 'lost', ended_at = now(), error_class = 'WORKER_LOST'"
            " WHERE job_id = %s AND outcome = 'running'", (row_id,),
        )  # fmt: skip
        if row.cancel_requested:
            await _move(m, kind, row_id, kind.cancelled)
            return None
        if row.attempt_number >= kind.max_attempts and row.state == kind.running:
            columns: dict[str, Any] = {
                "error_class": "WORKER_LOST",
                "error_message": f"{row.attempt_number} workers died on it",
            }
            await _move(m, kind, row_id, "failed", **columns)
            return None
        row = await _move(m, kind, row_id, kind.running, attempt_token=token, attempt_number=row.attempt_number + 1)
        await record_begin(m, token, kind.table, row_id, row.attempt_number, WORKER)
    return Attempt(row, token)


async def _owner_of(db: Database, kind: Kind, row_id: UUID) -> str | None:
    rows = await db.system_rows(f"SELECT owner FROM {kind.table} WHERE id = %s", (row_id,))
    return rows[0].owner if rows else None


async def _move(m: Mutation, kind: Kind, row_id: UUID, to: str, *, token: UUID | None = None, **columns: Any) -> Any:
    row = await states.advance(m, kind.machine, kind.table, row_id, to, token=token, **columns)
    if row is not None:
        await kind.publish(m, row)
    return row


async def _finish(db: Database, kind: Kind, attempt: Attempt, outcome: Outcome) -> None:
    try:
        async with db.transaction(attempt.row.owner) as m:
            done = {"error_class": "", "error_message": "", **outcome.columns}
            row = await _move(m, kind, attempt.row.id, outcome.to or kind.done, token=attempt.token, **done)
            if row is not None:
                if outcome.also:
                    await outcome.also(m, row)
                await _record(m, attempt, "succeeded", outcome=outcome)
    except JobFailed:
        # `also` refused, so nothing was committed. After any other error the commit may have happened, and what was
        # stored must stay: a row that shows it may be there. The reconciler knows.
        if outcome.undo:
            await outcome.undo()
        raise
    if row is None:
        if outcome.undo:
            await outcome.undo()
        raise Superseded
    if outcome.after:
        await outcome.after()


async def _fail(db: Database, kind: Kind, attempt: Attempt, failure: JobFailed) -> None:
    """A final failure is data; another is tried again after a backoff, by the database's clock."""
    said = {"error_class": failure.error_class, "error_message": failure.message[:2000]}
    if failure.final or attempt.row.attempt_number >= kind.max_attempts:
        await _end(db, kind, attempt, "failed", "failed", **said)
        return
    backoff = min(_FIRST_BACKOFF_SECONDS * 4 ** (attempt.row.attempt_number - 1), _LONGEST_BACKOFF_SECONDS)
    row = await _end(db, kind, attempt, "pending", "retried", **said)
    if row is not None:
        now = (await db.system_rows("SELECT now() + make_interval(secs => %s) AS at", (backoff,)))[0]
        raise TryAgain(now.at)


async def _end(db: Database, kind: Kind, attempt: Attempt, to: str, outcome: str, **said: Any) -> Any:
    async with db.transaction(attempt.row.owner) as m:
        row = await _move(m, kind, attempt.row.id, to, token=attempt.token, **said)
        if row is not None:
            await _record(m, attempt, outcome, **said)
        return row


async def _record(
    m: Mutation, attempt: Attempt, how: str, *, outcome: Outcome | None = None, error_class: str = "",
    error_message: str = "",
) -> None:  # fmt: skip
    figures = outcome or Outcome({})
    await record_end(
        m, attempt.token, how, error_class=error_class, error_message=error_message, model=attempt.model,
        input_bytes=attempt.input_bytes, output_bytes=figures.output_bytes, credits=figures.credits,
    )  # fmt: skip


async def record_begin(m: Mutation, token: UUID, job: str, job_id: UUID, number: int, worker: str) -> None:
    """Adds the record of a try, also of one that a worker from outside makes."""
    values = {"id": token, "owner": m.owner, "job": job, "job_id": job_id, "number": number, "worker": worker}
    await m.run(_BEGIN, values)


async def record_end(
    m: Mutation, token: UUID, outcome: str, *, error_class: str = "", error_message: str = "", model: str = "",
    input_bytes: int = 0, output_bytes: int = 0, credits: int = 0,
) -> None:  # fmt: skip
    """Ends the record of a try, once."""
    values = {
        "token": token, "outcome": outcome, "error_class": error_class, "error_message": error_message,
        "model": model, "input_bytes": input_bytes, "output_bytes": output_bytes, "credits": credits,
    }  # fmt: skip
    await m.run(_END, values)


async def _watch_for_cancel(db: Database, kind: Kind, attempt: Attempt) -> None:
    """Ends when somebody asked to cancel; raises Superseded if the row is another try's by now."""
    statement = f"SELECT cancel_requested, attempt_token, state FROM {kind.table} WHERE id = %s"
    while True:
        await asyncio.sleep(CANCEL_POLL_SECONDS)
        try:
            rows = await db.system_rows(statement, (attempt.row.id,))
        except Exception as error:
            _log.warning("can't look for a cancellation", error=type(error).__name__)
            continue
        if not rows or rows[0].attempt_token != attempt.token or rows[0].state != kind.running:
            raise Superseded
        if rows[0].cancel_requested:
            return
