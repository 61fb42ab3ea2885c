"""Runs one attempt of a job under a fencing token: the latest attempt owns the row, and writes of
earlier attempts change nothing.

The row of a job has the columns of `JobRow`. `run` moves it pending -> running -> done / failed /
cancelled, writes one `attempts` row per attempt and publishes every move in the same transaction.

An attempt without a result counts by its cause:

    fault   The job itself failed. Counts in `faults`; the job fails after `max_attempts` of them.
    wait    Another service, the database or the store is unreachable or full. Doesn't count.
            `waits_for` and `waiting_since` state what the job waits for and since when. Pauses
            between its attempts grow with the wait; the job fails after ATELIER_JOB_WAIT_HOURS.
    loss    Its worker disappeared. Counts in `losses`, since the job may have killed the worker.
            The job pauses from the third loss on and fails after many.
"""

import asyncio
import os
import random
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic
from uuid import UUID

import psycopg
import structlog

from shared.background import job_tables
from shared.background import metrics as job_metrics
from shared.background.job_tables import J, JobRow, JobTable, record_begin, record_end
from shared.background.jobs import TryAgain, wake
from shared.background.tasks import not_cancelled
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.database.rows import Statement
from shared.formats.texts import storable
from shared.rpc import auth, calls, errors
from shared.rpc.errors import DomainError, Reason
from shared.storage import StorageError

# The random part is needed because in containers every process has the same pid.
WORKER = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
CANCEL_POLL_SECONDS = 1.0
_FIRST_BACKOFF_SECONDS = 1.0
_LONGEST_BACKOFF_SECONDS = 60.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0  # between attempts of a waiting job
_PAUSE_OF_WAIT = 0.25  # a pause as a fraction of the wait so far
_FREE_LOSSES = 2  # after these a job pauses before its next attempt
_MOST_LOSSES = 24  # pauses included, some six minutes in which every worker that claims it dies
_LONGEST_LOSS_PAUSE_SECONDS = 20.0
_INSIST_SECONDS = 60.0  # longer than a lease: by then the worker gives up its jobs
_log = structlog.get_logger("attempts")


@dataclass
class JobFailed(Exception):
    """The work can't be done. `final` means that a retry would not help. `error_class` is one of
    the service's few words for errors."""

    error_class: str
    message: str
    final: bool = True


@dataclass
class Waits(Exception):
    """The work can't be done now, without a fault of the job: it waits for `what`, such as
    "assets", for at least `pause` seconds. `endless`: somebody decided so, and the job doesn't fail
    by it."""

    what: str
    error_class: str
    message: str
    pause: float = 0.0
    endless: bool = False


@dataclass
class Outcome(Generic[J]):
    """The result of an attempt: the row's new columns, figures for the attempt's record, and what
    else the commit does. `to` replaces the kind's `done` state. `in_transaction` runs in the
    transaction that commits the outcome, `after_commit` after it. `if_not_committed` runs if
    nothing was committed (another attempt has the row, or `in_transaction` refused): it removes
    what this attempt stored. With `publishes`, `in_transaction` publishes the row itself, because
    something must be published before it. `again` says when a job that isn't done goes on; `to` is
    its pending state then."""

    columns: dict[str, Any]
    to: str | None = None
    output_bytes: int = 0
    credits: int = 0
    publishes: bool = False
    in_transaction: Callable[[Mutation, J], Awaitable[None]] | None = None
    after_commit: Callable[[], Awaitable[None]] | None = None
    if_not_committed: Callable[[], Awaitable[None]] | None = None
    again: TryAgain | None = None

    async def discard(self) -> None:
        if self.if_not_committed:
            await self.if_not_committed()


@dataclass
class Attempt(Generic[J]):
    """The current attempt. `row` is the job's row as claimed; `token` fences every write. The other
    fields go into the attempt's record, however the attempt ends."""

    row: J
    token: UUID
    input_bytes: int = 0
    model: str = ""
    began: float = field(default_factory=time.monotonic)


class Superseded(Exception):
    """Another attempt owns the row now."""


Work = Callable[[Attempt[J]], Awaitable[Outcome[J]]]

_SELECT_NOW = Statement(datetime, "SELECT now()")
_NO_WAIT: dict[str, Any] = {"waits_for": "", "waiting_since": None}


async def run(db: Database, kind: JobTable[J], row_id: str, work: Work[J]) -> None:
    """Runs one attempt of the job whose row is `row_id`, for the owner of that row. Does nothing if
    the row is in a final state or gone, or its owner was erased. Raises TryAgain if the job is to
    go on later."""
    try:
        again = await _run(db, kind, row_id, work)
    except psycopg.errors.CheckViolation as refusal:
        if not errors.is_owner_erased(refusal):
            raise
        # The erasure deletes the row; there is nobody to be told how the attempt ended.
        _log.info("an attempt ended with its owner", table=kind.table.name, row=row_id)
        return
    if again is not None:
        raise again


async def _run(db: Database, kind: JobTable[J], row_id: str, work: Work[J]) -> TryAgain | None:
    attempt = await _begin(db, kind, UUID(row_id))
    if attempt is None:
        return None
    auth.enter(calls.owner_identity(attempt.row.owner))
    working = asyncio.ensure_future(work(attempt))
    watching = asyncio.create_task(_watch_for_cancel(db, kind, attempt))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            await _to_its_end(_cancel(db, kind, attempt, working, watching))
            return None
        outcome = working.result()
        await _to_its_end(_finish(db, kind, attempt, outcome))
        return outcome.again
    except Superseded:
        _log.warning("late result discarded", table=kind.table.name, row=row_id)
    except asyncio.CancelledError:
        if not_cancelled():  # this task was not cancelled: the work itself raised the error
            await _fail(
                db,
                kind,
                attempt,
                JobFailed("INTERNAL", "the work was cancelled from within", final=False),
            )
            return None
        if not await asyncio.shield(_ended_with_worker(db, kind, attempt, working)):
            raise TryAgain(waits_for=attempt.row.waits_for) from None
    except Exception as error:
        match verdict(error):
            case Waits() as waits:
                await _put_off(db, kind, attempt, waits)
            case JobFailed() as failure:
                await _fail(db, kind, attempt, failure)
    finally:
        watching.cancel()
        # Retrieves the exception, which asyncio would log otherwise.
        watching.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    return None


async def _cancel(
    db: Database,
    kind: JobTable[J],
    attempt: Attempt[J],
    working: "asyncio.Future[Outcome[J]]",
    watching: "asyncio.Future[None]",
) -> None:
    """Ends an attempt whose job is to be cancelled. A result that is there nevertheless is taken
    back. Raises Superseded if another attempt has the row."""
    if outcome := await _stopped(working):
        await outcome.discard()
    watching.result()  # raises Superseded if that is why
    await _end(db, kind, attempt, kind.cancelled, "cancelled")


async def _stopped(working: "asyncio.Future[Outcome[J]]") -> Outcome[J] | None:
    """Cancels the work. Returns its outcome if it came to its end nevertheless."""
    working.cancel()
    with suppress(asyncio.CancelledError, Exception):
        return await working
    return None


async def _ended_with_worker(
    db: Database, kind: JobTable[J], attempt: Attempt[J], working: "asyncio.Future[Outcome[J]]"
) -> bool:
    """Ends an attempt whose worker stops or was taken for dead. A result that is there already is
    committed, as it may have cost money. Returns False if the job must run again."""
    with suppress(JobFailed):  # refused by `in_transaction`: the next attempt will say why
        if outcome := await _stopped(working):
            try:
                await _finish(db, kind, attempt, outcome)
            except Superseded:
                _log.warning(
                    "late result discarded", table=kind.table.name, row=str(attempt.row.id)
                )
            return True
    await _end(db, kind, attempt, "pending", "retried", error_class="WORKER_STOPPED")
    return False


async def _to_its_end(finishing: Coroutine[Any, Any, None]) -> None:
    """Waits for the end of an attempt even if this task is cancelled meanwhile: finished work may
    have cost money, a result that was taken back must not be committed, and the fencing token
    protects a row that another attempt owns."""
    task = asyncio.ensure_future(finishing)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()


def verdict(error: Exception) -> Waits | JobFailed:
    """Decides how an attempt ends that raised this error. Understands refusals and storage errors,
    so the work need not translate them."""
    if isinstance(error, JobFailed | Waits):
        return error
    if refusal := errors.passing(error):
        return Waits(refusal.source or "a service", _class_of(refusal), refusal.text)
    if isinstance(error, DomainError):
        return JobFailed(
            _class_of(error), error.text, final=error.reason != Reason.ERROR_REASON_INTERNAL
        )
    if isinstance(error, StorageError):
        return JobFailed("STORAGE", str(error), final=False)
    if errors.is_owner_erased(error):
        return JobFailed("OWNER_ERASED", errors.owner_erased().text)
    _log.error("job failed unexpectedly", exc_info=error)
    return JobFailed("INTERNAL", f"unexpected {type(error).__name__}", final=False)


def _class_of(refusal: DomainError) -> str:
    return Reason.Name(refusal.reason).removeprefix("ERROR_REASON_")


async def _begin(db: Database, kind: JobTable[J], row_id: UUID) -> Attempt[J] | None:
    """Claims the row for a new attempt. Records an earlier attempt that never ended as lost, or as
    waited if it was this process's own."""
    owner = await _owner_of(db, kind, row_id)
    if owner is None:
        return None
    token = new_id()
    again: TryAgain | None = None
    async with db.transaction(owner) as m:
        row = await m.first(job_tables.lock(kind.table), {"id": row_id})
        if row is None or row.state not in ("pending", kind.running):
            return None
        if row.state == "pending" and not kind.ready(row):
            return None
        outcomes = await m.all(job_tables.END_UNENDED_ATTEMPTS, {"job_id": row_id, "me": WORKER})
        if row.cancel_requested:
            await _move(m, kind, row_id, kind.cancelled)
            return None
        columns: dict[str, Any] = {}
        if "lost" in outcomes:
            columns = _lost(row, await m.one(_SELECT_NOW))
            if "error_class" in columns:
                await _move(m, kind, row_id, "failed", **columns)
                return None
            if "later" in columns:
                again = TryAgain(columns.pop("later"))
        if again:
            await _move(m, kind, row_id, "pending", **columns)
            claimed = None
        else:
            columns |= {"attempt_token": token, "attempt_number": row.attempt_number + 1}
            claimed = await _move(m, kind, row_id, kind.running, **columns)
            number = row.attempt_number + 1
            await record_begin(m, token, kind.table.name, row_id, number, WORKER)
    if claimed is None:
        raise again or TryAgain()
    return Attempt(claimed, token)


def _lost(row: JobRow, now: datetime) -> dict[str, Any]:
    """Returns the new columns of a row whose worker disappeared. If its next attempt may not begin
    at once, `later` is the time for it."""
    losses = row.losses + 1
    if losses >= _MOST_LOSSES:
        text = f"{losses} workers vanished while they worked on it; the last one said nothing"
        return {"losses": losses, "error_class": "WORKER_LOST", "error_message": text}
    if losses <= _FREE_LOSSES:
        return {"losses": losses}
    pause = min(2.0 ** (losses - _FREE_LOSSES), _LONGEST_LOSS_PAUSE_SECONDS)
    return {
        "losses": losses,
        "waits_for": "a worker",
        "waiting_since": row.waiting_since or now,
        "later": now + timedelta(seconds=pause),
    }


async def _owner_of(db: Database, kind: JobTable[J], row_id: UUID) -> str | None:
    owners = await db.system_all(job_tables.select_owner(kind.table), {"id": row_id})
    return owners[0] if owners else None


async def _move(
    m: Mutation,
    kind: JobTable[J],
    row_id: UUID,
    to: str,
    *,
    token: UUID | None = None,
    **columns: Any,
) -> J | None:
    """Moves a row without an outcome, publishes it and runs the kind's `in_transaction`."""
    row = await kind.advance(m, row_id, to, token=token, **columns)
    if row is not None:
        await kind.follow(m, row)
    return row


async def _finish(
    db: Database, kind: JobTable[J], attempt: Attempt[J], outcome: Outcome[J]
) -> None:
    """Commits the attempt's outcome. Retries for a minute while the database is unreachable: the
    work is done and may have cost money."""
    deadline = time.monotonic() + _INSIST_SECONDS
    unheard = False  # an earlier commit may have succeeded although its answer was lost
    while True:
        try:
            row = (
                attempt.row
                if unheard and await _is_committed(db, attempt)
                else await _commit(db, kind, attempt, outcome)
            )
            if row is None and unheard and await _is_committed(db, attempt):
                row = attempt.row  # the first commit succeeded while this one waited for its lock
            break
        except JobFailed:  # `in_transaction` refused, so nothing was committed
            await outcome.discard()
            raise
        except Exception as error:
            if errors.is_owner_erased(error):
                await outcome.discard()
                raise
            # Stored bytes must stay: a committed row may refer to them. If none does, the
            # reconciler finds them.
            if errors.passing(error) is None or time.monotonic() > deadline:
                raise
            _log.warning(
                "a result waits to be committed", table=kind.table.name, row=str(attempt.row.id)
            )
            unheard = True
        await asyncio.sleep(_FIRST_PAUSE_SECONDS)
    if row is None:
        await outcome.discard()
        raise Superseded
    if outcome.after_commit:
        await outcome.after_commit()
    if attempt.row.waits_for:
        await wake(db, attempt.row.waits_for)


async def _commit(db: Database, kind: JobTable[J], attempt: Attempt[J], outcome: Outcome[J]) -> Any:
    async with db.transaction(attempt.row.owner) as m:
        done = {
            "error_class": "",
            "error_message": "",
            "faults": 0,
            "losses": 0,
            **_NO_WAIT,
            **outcome.columns,
        }
        row = await kind.advance(
            m, attempt.row.id, outcome.to or kind.done, token=attempt.token, **done
        )
        if row is not None:
            if not outcome.publishes:
                await kind.publish(m, row)
            if outcome.in_transaction:
                await outcome.in_transaction(m, row)
            await _record(m, attempt, "succeeded", outcome=outcome)
    _count_attempt(kind, "succeeded" if row is not None else "superseded")
    job_metrics.SECONDS.labels(kind.table.name).observe(time.monotonic() - attempt.began)
    return row


def _count_attempt(kind: JobTable[J], outcome: str) -> None:
    job_metrics.TRIES.labels(kind.table.name, outcome).inc()


async def _is_committed(db: Database, attempt: Attempt[J]) -> bool:
    return bool(await db.system_all(job_tables.SELECT_SUCCEEDED, {"token": attempt.token}))


async def _fail(db: Database, kind: JobTable[J], attempt: Attempt[J], failure: JobFailed) -> None:
    """Ends an attempt that failed. A final failure, or the last allowed one, fails the job; any
    other is retried after a backoff, by the database's clock."""
    faults = attempt.row.faults + 1
    said = {"error_class": failure.error_class, "error_message": failure.message[:2000]}
    if failure.final or faults >= kind.max_attempts:
        await _end(db, kind, attempt, "failed", "failed", faults=faults, **said)
        return
    backoff = min(_FIRST_BACKOFF_SECONDS * 4 ** (faults - 1), _LONGEST_BACKOFF_SECONDS)
    row = await _end(db, kind, attempt, "pending", "retried", faults=faults, **said, **_NO_WAIT)
    if row is not None:
        raise TryAgain(await _now(db) + timedelta(seconds=backoff))


async def _put_off(db: Database, kind: JobTable[J], attempt: Attempt[J], waits: Waits) -> None:
    """Ends an attempt that must wait: records the wait in the row and keeps the job's progress.
    Fails the job if it has waited for too long."""
    found = await db.system_all(job_tables.select_wait(kind.table), {"id": attempt.row.id})
    if not found:
        return
    now = found[0].now
    since = now if _follows_pause(kind, attempt.row, waits) else found[0].waiting_since or now
    said = {"error_class": waits.error_class, "error_message": waits.message[:2000]}
    if not waits.endless and now - since > timedelta(hours=db.settings.job_wait_hours):
        said["error_message"] = (
            f"{waits.what} was waited for since {since:%Y-%m-%d %H:%M} UTC: {waits.message}"[:2000]
        )
        await _end(db, kind, attempt, "failed", "failed", **said)
        return
    row = await _end(
        db, kind, attempt, "pending", "waited", waits_for=waits.what, waiting_since=since, **said
    )
    if row is not None:
        waited = (now - since).total_seconds()
        pause = min(max(waited * _PAUSE_OF_WAIT, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
        # The pause is randomised: otherwise a thousand jobs that wait for the same thing would all
        # come back at once.
        pause = max(pause * random.uniform(0.8, 1.2), waits.pause * random.uniform(1.0, 1.2))
        raise TryAgain(now + timedelta(seconds=pause), waits.what)


def _follows_pause(kind: JobTable[J], row: J, waits: Waits) -> bool:
    """Returns whether a wait is the first one after a pause, whose time doesn't count: the job
    didn't wait for what it lacks, somebody held it."""
    return row.waits_for in kind.pauses and not waits.endless


async def _now(db: Database) -> datetime:
    [now] = await db.system_all(_SELECT_NOW)
    return now


async def _end(
    db: Database,
    kind: JobTable[J],
    attempt: Attempt[J],
    to: str,
    outcome: str,
    *,
    error_class: str = "",
    error_message: str = "",
    **columns: Any,
) -> Any:
    # Nothing that a model or another service said may keep an attempt from its end.
    said: dict[str, Any] = {"error_class": error_class, "error_message": storable(error_message)}
    kept = _NO_WAIT if outcome in ("failed", "cancelled") else {}
    async with db.transaction(attempt.row.owner) as m:
        row = await _move(
            m, kind, attempt.row.id, to, token=attempt.token, **{**kept, **said, **columns}
        )
        _count_attempt(kind, outcome if row is not None else "superseded")
        if row is not None:
            # Only the latest attempt of a wait is kept: there may be thousands.
            if outcome == "waited":
                await m.run(job_tables.DELETE_WAITED_ATTEMPTS, {"job_id": attempt.row.id})
            await _record(m, attempt, outcome, **said)
        return row


async def _record(
    m: Mutation,
    attempt: Attempt[J],
    how: str,
    *,
    outcome: Outcome[J] | None = None,
    error_class: str = "",
    error_message: str = "",
) -> None:
    figures = outcome or Outcome({})
    await record_end(
        m,
        attempt.token,
        how,
        error_class=error_class,
        error_message=error_message,
        model=storable(attempt.model),
        input_bytes=attempt.input_bytes,
        output_bytes=figures.output_bytes,
        credits=figures.credits,
    )


async def _watch_for_cancel(db: Database, kind: JobTable[J], attempt: Attempt[J]) -> None:
    """Returns when cancellation is requested. Raises Superseded if another attempt owns the row."""
    while True:
        await asyncio.sleep(CANCEL_POLL_SECONDS)
        try:
            holds = await db.system_all(job_tables.select_hold(kind.table), {"id": attempt.row.id})
        except Exception as error:
            _log.warning("can't look for a cancellation", error=type(error).__name__)
            continue
        if not holds or holds[0].attempt_token != attempt.token or holds[0].state != kind.running:
            raise Superseded
        if holds[0].cancel_requested:
            return
