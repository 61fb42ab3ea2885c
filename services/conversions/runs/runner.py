"""Runs queued jobs, each with the provider that serves its kind.

A separate job releases the references of a row that fails or is cancelled, and purges the picture
that the row had made. That job is committed together with the end of the row. A completed row keeps
its references.
"""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import structlog

from services.conversions import assets, job_moves, rules
from services.conversions.job_kinds import KINDS, AnyKind
from services.conversions.job_rows import J, JobKind, PictureJob
from services.conversions.providers.contract import Provider, ProviderFailed
from services.conversions.runs.run import Run
from shared.background import attempts
from shared.background.job_tables import JobTable
from shared.background.jobs import JobQueue, TryAgain
from shared.database.db import Database
from shared.database.rows import Statement
from shared.rpc import auth, calls
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError

P = TypeVar("P", bound=Provider)
Work = Callable[[Run[J, P]], Awaitable[attempts.Outcome[J]]]

_RETRY_AFTER = timedelta(seconds=10)  # if assets refuses, or is away
# A reference that was being acquired when the row ended may take effect after the release, so the
# release is repeated after this time.
_SETTLED_AFTER = timedelta(seconds=2 * assets.REFERENCE_SECONDS)
_log = structlog.get_logger("runner")

# By table: the column of the picture that a row may have made.
_RESULT = {
    name: "result_asset_id" if issubclass(kind.table.row, PictureJob) else "NULL::uuid"
    for name, kind in KINDS.items()
}


@dataclass(slots=True)
class _EndedJob:
    """A row that failed or was cancelled. `result_asset_id`: the picture that it had made."""

    owner: str
    result_asset_id: UUID | None
    updated_at: datetime
    now: datetime


_SELECT_ENDED = {
    table: Statement(
        _EndedJob,
        f"""
        SELECT owner, {_RESULT[table]} AS result_asset_id, updated_at, now() AS now
        FROM {table} WHERE id = %(id)s AND state IN ('failed', 'cancelled')
        """,
    )
    for table in KINDS
}


class Runner:
    """Runs the jobs of this service's queue."""

    def __init__(self, db: Database, queue: JobQueue, peers: Peers) -> None:
        self._db = db
        self._queue = queue
        self._jobs = job_moves.job_tables(queue)
        self._peers = peers

    def register(self, kind: JobKind[J, Any], provider: P, work: Work[J, P]) -> None:
        """Registers `provider` for the jobs of this kind. `work` runs a job with it."""
        run = functools.partial(self.run, kind, provider, work)
        release = functools.partial(self.release, kind)
        self._queue.task(kind.table.name, job_moves.MODELS_QUEUE, run)
        self._queue.task(kind.release_task, job_moves.RELEASE_QUEUE, release)

    async def run(self, kind: JobKind[J, Any], provider: P, work: Work[J, P], row_id: str) -> None:
        async def attempt_work(attempt: attempts.Attempt[J]) -> attempts.Outcome[J]:
            run = Run(self._db, self._peers, kind, provider, attempt)
            try:
                return await work(run)
            except ProviderFailed as failure:
                raise _verdict(failure, provider) from None
            except DomainError as refusal:
                raise assets.verdict(refusal) from None
            finally:
                run.clear()  # awaits nothing, so that no cancellation replaces what was returned

        jobs: JobTable[J] = self._jobs[kind.table.name]
        await attempts.run(self._db, jobs, row_id, attempt_work)

    async def release(self, kind: AnyKind, row_id: str) -> None:
        """Releases the references of a row that failed or was cancelled, and purges the picture
        that it had made."""
        rows = await self._db.system_all(_SELECT_ENDED[kind.table.name], {"id": UUID(row_id)})
        if not rows:
            return
        [row] = rows
        auth.enter(calls.owner_identity(row.owner))
        try:
            await assets.release(self._peers, kind.holder(UUID(row_id)))
            if row.result_asset_id:
                await assets.purge(self._peers, row.result_asset_id)
        except DomainError as refusal:
            _log.warning("pictures wait to be released", row=row_id, reason=refusal.text)
            raise TryAgain(row.now + _RETRY_AFTER) from None
        settled_at = row.updated_at + _SETTLED_AFTER
        if settled_at > row.now:
            raise TryAgain(settled_at)


def _verdict(failure: ProviderFailed, provider: Provider) -> attempts.Waits | attempts.JobFailed:
    """Returns how an attempt ends whose provider failed."""
    if failure.error_class in rules.PASSING_ERRORS:
        return attempts.Waits(provider.name, failure.error_class, failure.message)
    final = failure.error_class in rules.FINAL_ERRORS
    return attempts.JobFailed(failure.error_class, failure.message, final=final)
