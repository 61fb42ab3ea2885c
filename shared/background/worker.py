"""Runs the jobs of a service's queue and survives outages of the database.

Procrastinate's worker watches its side tasks only until the first of them ends, and one ends at
once if no task is periodic. A heartbeat that failed once would go unnoticed, and the reaper would
requeue every job of a live worker. So this module sends the heartbeats itself. Nothing that
Procrastinate runs by itself fails while the database is unreachable: it waits, and jobs whose state
is in doubt are put back once the database answers.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import procrastinate
import psycopg
import structlog
from procrastinate import exceptions, jobs, manager, worker

from shared.background.tasks import not_cancelled
from shared.database.db import Database

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
_INSIST_SECONDS = 60.0  # longer than a lease: by then this worker has given up its jobs
_LONGEST_BEAT_SECONDS = 5.0
_LONGEST_REAPING_SECONDS = 3.0  # with a poll of 1 s, jobs are taken over within lease + 5 s
_PAUSE_SECONDS = 1.0
_REGISTERING_SECONDS = 0.1
_GRACE_SECONDS = 5.0  # for running jobs when the worker is stopped
_PRUNE_PASSES = 200
_DAY = 24
_log = structlog.get_logger("jobs")

# Returns no row if another worker declared this one dead: its row is deleted then, and others have
# its jobs.
_BEAT = (
    "UPDATE procrastinate_workers SET last_heartbeat = now() WHERE id = %(worker_id)s RETURNING id"
)
_FETCHED = """
    (SELECT id FROM procrastinate_jobs
     WHERE id = %(job_id)s AND attempts = %(attempts)s AND status = 'doing' FOR UPDATE) AS fetched
"""
_FINISH = f"SELECT procrastinate_finish_job_v1(id, %(status)s, %(delete_job)s) FROM {_FETCHED}"
_RETRY = f"""
    SELECT procrastinate_retry_job_v2(id, %(retry_at)s::timestamptz, %(priority)s, %(queue)s,
        %(lock)s) FROM {_FETCHED}
"""
# Puts back jobs that the queue gave to this worker unnoticed, because the answer to a fetch was
# lost.
_PUT_BACK = """
    SELECT procrastinate_retry_job_v2(id, %(retry_at)s::timestamptz, NULL, NULL, NULL) FROM (
        SELECT id FROM procrastinate_jobs
        WHERE worker_id = %(worker_id)s AND status = 'doing' AND NOT id = ANY(%(held)s) FOR UPDATE
    ) AS unheard
"""
# Exchanges a fetched job for the owner's most urgent one. Concurrent fetches skip the row that this
# one locks. ORDER BY names the columns of the index.
_EXCHANGE = f"""
    WITH urgent AS (
        SELECT id, task_name, args FROM procrastinate_jobs
        WHERE status = 'todo' AND attempts = 0 AND queue_name = %(queue)s AND args ->> 'owner'
            = %(owner)s
        AND (-(args ->> 'urgency')::int, args ->> 'row_id') < (-%(urgency)s::int, %(row_id)s::text)
        ORDER BY queue_name, args ->> 'owner', -(args ->> 'urgency')::int, args ->> 'row_id'
        LIMIT 1 FOR UPDATE SKIP LOCKED
    ), mine AS (SELECT id FROM {_FETCHED}), put_off AS (
        UPDATE procrastinate_jobs AS job SET task_name = %(task)s, args = %(args)s::jsonb
        FROM urgent, mine WHERE job.id = urgent.id
    )
    UPDATE procrastinate_jobs AS job SET task_name = urgent.task_name, args = urgent.args
    FROM urgent, mine WHERE job.id = mine.id RETURNING job.task_name, job.args
"""


class Manager(manager.JobManager):
    """A worker's statements to the queue. No job is lost or stuck if the database becomes
    unreachable in the middle of one.

    Ends only the execution that was fetched: a worker that was frozen past its lease may hold a job
    that another worker has by now. Every return to the queue increments `attempts`, which tells the
    two executions apart.
    """

    def __init__(self, db: Database, connector: Any) -> None:
        super().__init__(connector)
        self._db = db
        self._held: dict[int, set[int]] = {}  # by worker: the jobs that it knows it has
        self._doubtful: set[int] = set()  # workers that may have been given jobs unnoticed

    async def register_worker(self) -> int:
        registered = await super().register_worker()
        self._held[registered] = set()
        # A cancellation before this point may have been lost; the worker would run for ever.
        if not not_cancelled():
            raise asyncio.CancelledError
        return registered

    async def unregister_worker(self, worker_id: int) -> None:
        self._held.pop(worker_id, None)
        self._doubtful.discard(worker_id)
        await super().unregister_worker(worker_id)

    async def beat(self, worker_id: int) -> bool:
        """Sends a heartbeat. Returns False if the worker was declared dead."""
        return bool(await self.connector.execute_query_all_async(_BEAT, worker_id=worker_id))

    async def fetch_job(self, queues: Iterable[str] | None, worker_id: int) -> jobs.Job | None:
        """Fetches the job whose turn it is, or a more urgent one of the same owner. Returns None if
        no job waits or the database is unreachable."""
        held = self._held[worker_id]
        try:
            if worker_id in self._doubtful:
                # This comes before the statement: a doubt that arises meanwhile concerns another
                # job.
                self._doubtful.discard(worker_id)
                await self.connector.execute_query_all_async(
                    _PUT_BACK, worker_id=worker_id, held=list(held), retry_at=LONG_AGO
                )
            job = await super().fetch_job(queues, worker_id)
            job = job and await self._exchanged(job)
        except exceptions.ConnectorException as error:
            # A job may have been fetched or exchanged although the answer was lost.
            self._doubtful.add(worker_id)
            troubled(self._db, "fetching waits for the database", error)
            return None
        if job is not None and job.id is not None:
            held.add(job.id)
        return job

    async def _exchanged(self, job: jobs.Job) -> jobs.Job:
        if job.attempts or "urgency" not in job.task_kwargs:
            return job
        own = job.task_kwargs
        found = await self.connector.execute_query_all_async(
            _EXCHANGE,
            queue=job.queue,
            owner=own["owner"],
            urgency=own["urgency"],
            row_id=own["row_id"],
            job_id=job.id,
            attempts=job.attempts,
            task=job.task_name,
            args=own,
        )
        return (
            job.evolve(task_name=found[0]["task_name"], task_kwargs=found[0]["args"])
            if found
            else job
        )

    async def finish_job(self, job: jobs.Job, status: jobs.Status, delete_job: bool) -> None:
        await self._insist(_FINISH, job, status=status.value, delete_job=delete_job)

    async def retry_job(
        self,
        job: jobs.Job,
        retry_at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        lock: str | None = None,
    ) -> None:
        await self._insist(
            _RETRY, job, retry_at=retry_at, priority=priority, queue=queue, lock=lock
        )

    async def put_back(self, job: jobs.Job) -> None:
        """Puts a dead worker's job back into the queue, unless another reaper has done so."""
        await self.connector.execute_query_async(
            _RETRY,
            job_id=job.id,
            attempts=job.attempts,
            retry_at=LONG_AGO,
            priority=None,
            queue=None,
            lock=None,
        )

    async def _insist(self, statement: str, job: jobs.Job, **parameters: Any) -> None:
        """Runs a statement that ends a job, and retries it for a minute: otherwise the job would
        stay taken for as long as this worker lives."""
        deadline = time.monotonic() + _INSIST_SECONDS
        try:
            while True:
                try:
                    await self.connector.execute_query_async(
                        statement, job_id=job.id, attempts=job.attempts, **parameters
                    )
                    return
                except exceptions.ConnectorException as error:
                    if time.monotonic() > deadline:
                        self._doubtful.update(self._held)
                        raise
                    troubled(self._db, "a job's end waits for the database", error)
                    await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            for held in self._held.values():
                held.discard(job.id or 0)

    async def listen_for_jobs(
        self, *, on_notification: Any, queues: Iterable[str] | None = None
    ) -> None:
        """Listens until cancelled; opens a new connection whenever one breaks."""
        while not_cancelled():
            try:
                await super().listen_for_jobs(on_notification=on_notification, queues=queues)
            except (exceptions.ConnectorException, psycopg.Error) as error:
                troubled(self._db, "listening waits for the database", error)
            await asyncio.sleep(_PAUSE_SECONDS)


class Worker:
    """Runs the jobs of some queues of one service, in a given number of slots."""

    def __init__(
        self, db: Database, app: procrastinate.App, jobs_of: Manager, lease_seconds: float
    ) -> None:
        self._db = db
        self._app = app
        self._manager = jobs_of
        self._lease_seconds = lease_seconds
        self._unsteady_until = 0.0
        self._heard = 0.0  # when the last answered heartbeat was sent

    @property
    def _beat_seconds(self) -> float:
        return min(self._lease_seconds / 3, _LONGEST_BEAT_SECONDS)

    async def run(self, queues: Sequence[str], slots: int) -> None:
        """Runs jobs until cancelled; then gives running jobs a few seconds and puts the rest
        back."""
        while not_cancelled():
            try:
                await self._until_lost(queues, slots)
            except (exceptions.ConnectorException, psycopg.Error) as error:
                troubled(self._db, "worker restarts", error)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _until_lost(self, queues: Sequence[str], slots: int) -> None:
        working = worker.Worker(
            self._app,
            queues=queues,
            name=self._db.service,
            concurrency=slots,
            fetch_job_polling_interval=1.0,
            abort_job_polling_interval=3600.0,
            update_heartbeat_interval=3600.0,  # its own ends at the first failure: see _beat
            stalled_worker_timeout=self._lease_seconds,
            shutdown_graceful_timeout=_GRACE_SECONDS,
            install_signal_handlers=False,
            delete_jobs=jobs.DeleteJobCondition.SUCCESSFUL,
        )
        running = asyncio.create_task(working.run())
        beating = asyncio.create_task(self._beat(working))
        try:
            await asyncio.wait((running, beating), return_when=asyncio.FIRST_COMPLETED)
            if not running.done():  # heartbeats ended: others may have its jobs by now
                working.shutdown_graceful_timeout = 0
        finally:
            beating.cancel()
            running.cancel()
            await asyncio.wait((running, beating))
        if not running.cancelled() and (error := running.exception()):
            raise error

    async def _beat(self, working: worker.Worker) -> None:
        """Sends heartbeats; returns when the others have declared the worker dead or must do so."""
        heard = time.monotonic()
        while not_cancelled():  # a cancellation may be lost while psycopg waits for a connection
            asked, pause = time.monotonic(), self._beat_seconds
            if working.worker_id is None:
                await asyncio.sleep(_REGISTERING_SECONDS)
                continue
            try:
                async with asyncio.timeout(self._lease_seconds / 2):
                    alive = await self._manager.beat(working.worker_id)
                if not alive:
                    _log.warning(
                        "worker was taken for dead; it gives up its jobs", service=self._db.service
                    )
                    return
                heard = self._heard = asked
            except (exceptions.ConnectorException, psycopg.Error, TimeoutError) as error:
                self._unsteady_until = time.monotonic() + self._lease_seconds
                if time.monotonic() - heard > self._lease_seconds:
                    _log.warning(
                        "worker can't beat; it gives up its jobs", service=self._db.service
                    )
                    return
                pause = min(_PAUSE_SECONDS, self._beat_seconds)
                troubled(self._db, "heartbeat failed", error)
            await asyncio.sleep(pause)

    async def reap(self) -> None:
        """Puts jobs of dead workers back into their queues, also into those that this worker
        doesn't serve: perhaps no worker does any more. Any number of reapers may run: putting a job
        back twice is harmless.

        A worker without a recent heartbeat of its own declares no other dead: the same cause may
        have delayed their heartbeats.
        """
        passes = 0
        while not_cancelled():
            await asyncio.sleep(min(self._lease_seconds / 3, _LONGEST_REAPING_SECONDS))
            asked = time.monotonic()
            if asked < self._unsteady_until or asked - self._heard > 2 * self._beat_seconds:
                continue
            try:
                stalled = await self._manager.get_stalled_jobs(
                    seconds_since_heartbeat=self._lease_seconds
                )
                # A delayed answer says that heartbeats may have been delayed too.
                if time.monotonic() - asked <= self._beat_seconds:
                    await self._requeue(stalled)
                if passes % _PRUNE_PASSES == 0:
                    await self._manager.delete_old_jobs(
                        _DAY, include_failed=True, include_cancelled=True, include_aborted=True
                    )
                passes += 1
            except (exceptions.ConnectorException, psycopg.Error) as error:
                troubled(self._db, "reaper waits for the database", error)

    async def _requeue(self, stalled: Iterable[jobs.Job]) -> None:
        for job in stalled:
            _log.warning(
                "job of a dead worker put back", job=job.id, task=job.task_name, row=job.task_kwargs
            )
            await self._manager.put_back(job)  # does nothing if another reaper was faster


def troubled(db: Database, what: str, error: Exception) -> None:
    """Logs a failed statement and lets the pool replace other connections that broke too."""
    _log.warning(what, service=db.service, error=str(error.__cause__ or error).strip()[:200])
    db.mend()
