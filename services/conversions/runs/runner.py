"""Runs queued jobs.

A separate job releases the references of a row that fails or is cancelled, and purges the picture
that the row had made. That job is committed together with the end of the row. A completed row keeps
its references, unless it drops its inputs, until it is deleted.
"""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from services.conversions import assets, job_moves, rules
from services.conversions.job_kinds import KINDS, AnyKind
from services.conversions.job_rows import J, JobKind, PictureJob
from services.conversions.providers.contract import Measurer, ProviderFailed
from services.conversions.runs.asking import Providers
from services.conversions.runs.marking import Marker
from services.conversions.runs.run import Run
from services.conversions.runs.settling import Settler
from services.conversions.spending import Spending
from shared.background import attempts
from shared.background.job_tables import JobTable
from shared.background.jobs import JobQueue, TryAgain
from shared.database.db import Database
from shared.database.rows import Statement
from shared.rpc import auth, calls
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError

Work = Callable[[Run[J]], Awaitable[attempts.Outcome[J]]]

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
_LOCK_ENDED = {
    table: Statement(
        UUID,
        f"SELECT id FROM {table} WHERE id = %(id)s AND state IN ('failed', 'cancelled') FOR SHARE",
    )
    for table in KINDS
}


class Runner:
    """Runs the jobs of this service's queue."""

    def __init__(
        self,
        db: Database,
        queue: JobQueue,
        peers: Peers,
        providers: Providers,
        local: Measurer,
        spending: Spending,
        marker: Marker | None = None,
    ) -> None:
        """`marker` None: pictures aren't signed."""
        self._spending = spending
        self._marker = marker
        self._db = db
        self._queue = queue
        self._jobs = job_moves.job_tables(queue)
        self._peers = peers
        self._providers = providers
        self._local = local
        self._settler = Settler(db, queue, peers, providers)

    def register(self, kind: JobKind[J, Any], work: Work[J]) -> None:
        """Registers `work`, which runs a job of this kind."""
        run = functools.partial(self.run, kind, work)
        release = functools.partial(self.release, kind)
        self._queue.task(kind.table.name, job_moves.MODELS_QUEUE, run)
        self._queue.task(kind.release_task, job_moves.RELEASE_QUEUE, release)
        self._settler.register(kind)

    async def run(self, kind: JobKind[J, Any], work: Work[J], row_id: str) -> None:
        async def attempt_work(attempt: attempts.Attempt[J]) -> attempts.Outcome[J]:
            run = Run(
                self._db,
                self._queue,
                self._peers,
                kind,
                self._providers,
                self._local,
                attempt,
                self._spending,
                self._marker,
            )
            try:
                return await work(run)
            except ProviderFailed as failure:
                raise _verdict(failure) from None
            except DomainError as refusal:
                raise assets.verdict(refusal) from None
            finally:
                run.clear()  # awaits nothing, so that no cancellation replaces what was returned

        jobs: JobTable[J] = self._jobs[kind.table.name]
        await attempts.run(self._db, jobs, row_id, attempt_work)

    async def release(self, kind: AnyKind, row_id: str) -> None:
        """Releases the references of a row that failed or was cancelled, purges the picture that it
        had made, and gives up the calls to providers that it left open."""
        named = {"id": UUID(row_id)}
        rows = await self._db.system_all(_SELECT_ENDED[kind.table.name], named)
        if not rows:  # it was requeued meanwhile, so what it had acquired may be gone; or purged
            await self._settler.settle(kind, row_id)
            return
        [row] = rows
        auth.enter(calls.owner_identity(row.owner))
        async with self._db.transaction(row.owner) as m:
            # Locked, so that no call of an attempt after a requeue is given up.
            if not await m.all(_LOCK_ENDED[kind.table.name], named):
                return
            given_up = await self._providers.settle(m, UUID(row_id))
        await self._providers.give_up(given_up)
        try:
            await assets.release(self._peers, kind.holder(UUID(row_id)))
            if row.result_asset_id:
                await assets.purge(self._peers, row.result_asset_id)
        except DomainError as refusal:
            _log.warning("pictures wait to be released", row=row_id, reason=refusal.text)
            raise TryAgain(row.now + assets.RETRY_AFTER) from None
        if not await self._db.system_all(_SELECT_ENDED[kind.table.name], named):
            await self._settler.settle(kind, row_id)
            return
        settled_at = row.updated_at + assets.SETTLED_AFTER
        if settled_at > row.now:
            raise TryAgain(settled_at)


def _verdict(failure: ProviderFailed) -> attempts.Waits | attempts.JobFailed:
    """Returns how an attempt ends whose providers failed."""
    if failure.error_class in rules.PASSING_ERRORS:
        pause = min(failure.retry_after, rules.MOST_PAUSE_SECONDS)  # what it says may be wrong
        return attempts.Waits(failure.provider, failure.error_class, failure.message, pause)
    final = failure.error_class in rules.FINAL_ERRORS
    return attempts.JobFailed(failure.error_class, failure.message, final=final)
