"""Background work on Procrastinate: enqueue in the caller's transaction, workers with leases, a reaper, pruning.

Each service has its own instance in schema `<service>_jobs`, and gives every job a queue named `<service>.<what>`,
because abort notifications cross schemas. A queue row carries only ids; the domain row is the truth, and
`shared.attempts` fences it, since a queue can only promise at-least-once. Cancelling is asked of the domain row, too,
so that a job always comes to its own end.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import procrastinate
import psycopg
import structlog
from procrastinate import exceptions, jobs, retry

from shared.db import Database, Mutation

FRESH = 100  # priority of work somebody waits for
BACKFILL = 0  # priority of work nobody waits for
_DAY = 24
_log = structlog.get_logger("jobs")

TaskFunction = Callable[[str], Awaitable[None]]


_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass
class TryAgain(Exception):
    """Raised by a task that shall run again at `at`, a time of the database's clock; by default at once."""

    at: datetime = _LONG_AGO


class _Again(retry.BaseRetryStrategy):
    def get_retry_decision(self, *, exception: BaseException, job: jobs.Job) -> retry.RetryDecision | None:
        if isinstance(exception, TryAgain):
            return procrastinate.RetryDecision(retry_at=exception.at)
        return None


class JobQueue:
    """One service's queue. A server only enqueues; `work` runs jobs."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._app = procrastinate.App(connector=procrastinate.PsycopgConnector())
        self._queues: set[str] = set()

    def task(self, name: str, queue: str, function: TaskFunction) -> None:
        """Registers what runs for jobs called `name`; it gets the id of the row that the job serves."""

        async def run(row_id: str) -> None:
            await function(row_id)

        self._app.task(name=name, queue=self._queue(queue), retry=_Again())(run)
        self._queues.add(self._queue(queue))

    def _queue(self, name: str) -> str:
        return f"{self._db.service}.{name}"

    async def enqueue(self, m: Mutation, name: str, queue: str, row_id: Any, *, priority: int = FRESH) -> None:
        """Adds a job that starts after the transaction commits, or never."""
        task = self._app.configure_task(name, queue=self._queue(queue), priority=priority, connection=m.conn)
        await task.defer_async(row_id=str(row_id))

    async def work(self, *, concurrency: int, lease_seconds: float) -> None:
        """Runs jobs until cancelled, then gives those in hand 5 seconds and puts the rest back."""
        async with self._app.open_async(self._db.pool), asyncio.TaskGroup() as group:
            group.create_task(self._reap(lease_seconds))
            while True:
                with contextlib.suppress(exceptions.ConnectorException, psycopg.Error):
                    await self._app.run_worker_async(
                        queues=sorted(self._queues),
                        concurrency=concurrency,
                        fetch_job_polling_interval=1.0,
                        abort_job_polling_interval=3600.0,
                        update_heartbeat_interval=lease_seconds / 3,
                        stalled_worker_timeout=lease_seconds,
                        shutdown_graceful_timeout=5.0,
                        install_signal_handlers=False,
                        delete_jobs=jobs.DeleteJobCondition.SUCCESSFUL.value,
                        name=self._db.service,
                    )
                # It only returns if the database went away under it, or this worker was taken for dead: begin anew.
                _log.warning("worker restarts", service=self._db.service)
                await asyncio.sleep(1)

    async def _reap(self, lease_seconds: float) -> None:
        """Gives jobs of dead workers to live ones. Any number may run: putting a job back twice is harmless."""
        manager = self._app.job_manager
        passes = 0
        while True:
            await asyncio.sleep(lease_seconds / 3)
            try:
                for queue in sorted(self._queues):
                    await self._requeue(
                        await manager.get_stalled_jobs(queue=queue, seconds_since_heartbeat=lease_seconds)
                    )
                if passes % 200 == 0:
                    await manager.delete_old_jobs(
                        _DAY, include_failed=True, include_cancelled=True, include_aborted=True
                    )
                passes += 1
            except (exceptions.ConnectorException, psycopg.Error) as error:
                _log.warning("reaper waits for the database", service=self._db.service, error=type(error).__name__)

    async def _requeue(self, stalled: Iterable[jobs.Job]) -> None:
        for job in stalled:
            _log.warning("job of a dead worker put back", job=job.id, task=job.task_name, row=job.task_kwargs)
            with contextlib.suppress(exceptions.ConnectorException):  # another reaper was faster
                await self._app.job_manager.retry_job(job, retry_at=_LONG_AGO)
