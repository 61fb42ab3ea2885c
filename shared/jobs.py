"""Background work on Procrastinate: enqueue in the caller's transaction, workers with leases, a reaper, pruning.

Each service has its own instance in schema `<service>_jobs`, and gives every job a queue named `<service>.<what>`,
because abort notifications cross schemas. A queue row carries only ids, and a number for its owner; the domain row is
the truth, and `shared.attempts` fences it, since a queue can only promise at-least-once. Cancelling is asked of the
domain row, too, so that a job always comes to its own end.

Owners take turns. Among jobs of one priority the queue starts the one with the earliest turn, and each job of an owner
gets the turn after that of the owner's job before it, as start-time fair queueing has it: one that comes while another
owner has thousands waiting is among the next to start, and an owner alone has all workers. The turn is fixed when the
job is enqueued, so that nothing waits for ever; a job that is tried again keeps it.

What an owner calls more urgent goes first among the owner's own jobs, at nobody else's cost: when a turn of the owner
has come, the most urgent of the owner's jobs is done in it, and the one that it was meant for gets that job's turn.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString

import procrastinate
import psycopg
import structlog
from procrastinate import JobContext, exceptions, jobs, manager, retry

from shared import auth
from shared.db import Database, Mutation
from shared.tasks import wanted

FRESH = 100  # priority of work somebody waits for
FRESH_APART = 101  # the same in a queue that is apart: its turns go at the pace of its own workers
BACKFILL = 0  # priority of work nobody waits for
_TURNS = 10_000_000  # that a priority has; after so many without a pause, turns go by arrival until nothing waits
_TIMES_APART = 8  # as many slots for jobs that wait most of their time
_DAY = 24
_log = structlog.get_logger("jobs")

# A priority stands in the table as a range of numbers, one for each of its turns, the first being the highest. Which
# turn has come is told by what waits for its first try; a job that shall be tried again, later, is from an earlier one.
# The order names the index's columns: under row-level security the planner doesn't see that two of them are given.
_ENQUEUE: LiteralString = """
    SELECT procrastinate_defer_jobs_v1(ARRAY[ROW(
        %(queue)s::text, %(task)s::text,
        greatest(%(last)s::int, least(
            %(first)s::int,
            (SELECT priority FROM procrastinate_jobs
             WHERE status = 'todo' AND attempts = 0 AND priority BETWEEN %(last)s::int AND %(first)s::int
             ORDER BY priority DESC LIMIT 1),
            (SELECT priority - 1 FROM procrastinate_jobs
             WHERE status = 'todo' AND queue_name = %(queue)s::text AND args ->> 'share' = share
             AND -priority BETWEEN -%(first)s::int AND -%(last)s::int
             ORDER BY queue_name DESC, args ->> 'share' DESC, -priority DESC LIMIT 1)
        )),
        NULL, NULL, jsonb_strip_nulls(jsonb_build_object(
            'row_id', %(row_id)s::text, 'share', share,
            'owner', hashtextextended(%(owner)s::text, 0)::text, 'urgency', %(urgency)s::int
        )), NULL
    )::procrastinate_job_to_defer_v1])
    FROM (SELECT hashtextextended(%(share)s::text, 0)::text AS share) AS of_owner
"""
# The queue's own tables: what waits there has no contents, only ids, so that counting it tells of nobody's work.
_POSITION = """
    WITH mine AS (
        SELECT id, priority, queue_name, args ->> 'owner' AS owner, args ->> 'row_id' AS row_id,
            (args ->> 'urgency')::int AS urgency FROM procrastinate_jobs
        WHERE status = 'todo' AND args ->> 'row_id' = %(row_id)s ORDER BY id LIMIT 1
    ), turns AS (
        SELECT other.id, other.priority, row_number() OVER (ORDER BY other.priority DESC, other.id) AS turn,
            row_number() OVER (ORDER BY (other.args ->> 'urgency')::int DESC, other.args ->> 'row_id') AS rank,
            other.id = mine.id AS is_mine
        FROM mine JOIN procrastinate_jobs other
            ON other.status = 'todo' AND other.attempts = 0 AND other.queue_name = mine.queue_name
            AND other.args ->> 'owner' = mine.owner
    ), slot AS (
        SELECT COALESCE(turns.id, mine.id) AS id, COALESCE(turns.priority, mine.priority) AS priority, queue_name
        FROM mine LEFT JOIN turns ON turn = (SELECT rank FROM turns WHERE is_mine)
    )
    SELECT 1 + count(other.id) AS position FROM slot LEFT JOIN procrastinate_jobs other
        ON other.status = 'todo' AND other.queue_name = slot.queue_name
        AND (other.scheduled_at IS NULL OR other.scheduled_at <= now())
        AND (other.priority > slot.priority OR (other.priority = slot.priority AND other.id < slot.id))
    GROUP BY slot.id
"""
_BUSY = """
    SELECT EXISTS (
        SELECT FROM procrastinate_jobs WHERE queue_name = %(queue)s AND status = 'todo' AND priority > %(above)s
        AND (scheduled_at IS NULL OR scheduled_at <= now())
    ) AS busy
"""
_FETCHED = """
    (SELECT id FROM procrastinate_jobs
     WHERE id = %(job_id)s AND attempts = %(attempts)s AND status = 'doing' FOR UPDATE) AS fetched
"""
_FINISH = f"SELECT procrastinate_finish_job_v1(id, %(status)s, %(delete_job)s) FROM {_FETCHED}"
_RETRY = f"""
    SELECT procrastinate_retry_job_v2(id, %(retry_at)s::timestamptz, %(priority)s, %(queue)s, %(lock)s) FROM {_FETCHED}
"""
# Others that look at the same time skip what this one has locked. The order names the columns of the index.
_EXCHANGE = f"""
    WITH urgent AS (
        SELECT id, task_name, args FROM procrastinate_jobs
        WHERE status = 'todo' AND attempts = 0 AND queue_name = %(queue)s AND args ->> 'owner' = %(owner)s
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
_INSIST_SECONDS = 60.0  # longer than any heartbeat: by then this worker knows that its database is away
_LONGEST_BACKOFF_SECONDS = 60
_LONGEST_BEAT_SECONDS = 5.0
_LONGEST_REAPING_SECONDS = 3.0  # with a poll of 1 s: taken over within lease + 5 s

TaskFunction = Callable[[str], Awaitable[None]]


_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass
class TryAgain(Exception):
    """Raised by a task that shall run again at `at`, a time of the database's clock; by default at once."""

    at: datetime = _LONG_AGO


class _Again(retry.BaseRetryStrategy):
    """Whatever didn't return runs again, also what was cancelled: the row knows whether there is more to do."""

    def get_retry_decision(self, *, exception: BaseException, job: jobs.Job) -> retry.RetryDecision:
        return procrastinate.RetryDecision(retry_at=exception.at if isinstance(exception, TryAgain) else _LONG_AGO)


class _Manager(manager.JobManager):
    """Ends only the run that was fetched, and insists on it.

    A worker that was frozen past its lease comes back with a job that another one has by now; every return to the
    queue raises `attempts`, which tells the two apart. And a job whose end the queue never hears of, because the
    database was away for a moment, would stay taken for as long as this worker lives.
    """

    async def register_worker(self) -> int:
        registered = await super().register_worker()
        if not wanted():  # asked to end before it began, and not heard: the worker would run for ever
            raise asyncio.CancelledError
        return registered

    async def fetch_job(self, queues: Iterable[str] | None, worker_id: int) -> jobs.Job | None:
        """The job whose turn it is, or a more urgent one of the same owner.

        If what the exchange did isn't heard of, this raises: the job must be put back and looked up anew, since its
        row of the queue may stand for the other one by now.
        """
        job = await super().fetch_job(queues, worker_id)
        if job is None or job.attempts or "urgency" not in job.task_kwargs:
            return job
        own = job.task_kwargs
        found = await self.connector.execute_query_all_async(
            _EXCHANGE, queue=job.queue, owner=own["owner"], urgency=own["urgency"], row_id=own["row_id"],
            job_id=job.id, attempts=job.attempts, task=job.task_name, args=own,
        )  # fmt: skip
        return job.evolve(task_name=found[0]["task_name"], task_kwargs=found[0]["args"]) if found else job

    async def finish_job(self, job: jobs.Job, status: jobs.Status, delete_job: bool) -> None:
        await self._insist(_FINISH, job, status=status.value, delete_job=delete_job)

    async def retry_job(
        self, job: jobs.Job, retry_at: datetime | None = None, priority: int | None = None,
        queue: str | None = None, lock: str | None = None,
    ) -> None:  # fmt: skip
        await self._insist(_RETRY, job, retry_at=retry_at, priority=priority, queue=queue, lock=lock)

    async def _insist(self, statement: str, job: jobs.Job, **parameters: Any) -> None:
        deadline = time.monotonic() + _INSIST_SECONDS
        while True:
            try:
                return await self.connector.execute_query_async(
                    statement, job_id=job.id, attempts=job.attempts, **parameters
                )
            except exceptions.ConnectorException:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(1)


class JobQueue:
    """One service's queue. A server only enqueues; `work` runs jobs."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._app = procrastinate.App(connector=procrastinate.PsycopgConnector())
        self._app.job_manager = _Manager(self._app.connector)
        self._queues: set[str] = set()
        self._apart: set[str] = set()

    def task(self, name: str, queue: str, function: TaskFunction, *, apart: bool = False) -> None:
        """Registers what runs for jobs called `name`; it gets the id of the row that the job serves. `apart`: the queue
        has more slots, of its own, because its jobs wait for servers of others."""

        async def run(context: JobContext, /, row_id: str, **_for_the_queue: str) -> None:
            try:
                await function(row_id)
            except TryAgain:
                raise
            except Exception as error:
                # Not even the end of the try could be written, so the row still needs this job.
                _log.exception("job could not record its end", task=name, row=row_id)
                raise await self._after_backoff(context.job.attempts) from error

        self._app.task(name=name, queue=self._queue(queue), retry=_Again(), pass_context=True)(run)
        self._queues.add(self._queue(queue))
        if apart:
            self._apart.add(self._queue(queue))

    async def _after_backoff(self, attempts: int) -> TryAgain:
        seconds = min(2**attempts, _LONGEST_BACKOFF_SECONDS)
        with contextlib.suppress(psycopg.Error):
            rows = await self._db.system_rows("SELECT now() + make_interval(secs => %s) AS at", (seconds,))
            return TryAgain(rows[0].at)
        return TryAgain()  # nothing runs before the database is back

    def _queue(self, name: str) -> str:
        return f"{self._db.service}.{name}"

    async def enqueue(
        self, m: Mutation, name: str, queue: str, row_id: Any, *, priority: int = FRESH, urgency: int | None = None
    ) -> None:
        """Adds a job that starts after the transaction commits, or never; in the next turn of its owner. `urgency`
        orders it among the owner's own jobs in a queue where all have one."""
        first = priority * _TURNS
        await m.run(
            _ENQUEUE,
            {"queue": self._queue(queue), "task": name, "first": first, "last": first - _TURNS + 1,
             "row_id": str(row_id), "share": auth.share_of(m.owner),
             "owner": None if urgency is None else m.owner, "urgency": urgency},
        )  # fmt: skip

    async def position(self, row_id: Any) -> int | None:
        """Where the row's job stands among those that wait in its queue, whoever's they are: 1 starts next. None: it
        isn't waiting."""
        row = await self._db.row(_POSITION, {"row_id": str(row_id)})
        return row.position if row else None

    async def busy(self, queue: str, *, above: int) -> bool:
        """Whether a job of that queue, of a higher priority than `above`, waits for a worker right now."""
        [row] = await self._db.system_rows(_BUSY, {"queue": self._queue(queue), "above": above * _TURNS})
        return bool(row.busy)

    async def work(self, *, concurrency: int, lease_seconds: float) -> None:
        """Runs jobs until cancelled, then gives those in hand 5 seconds and puts the rest back."""
        async with self._app.open_async(self._db.pool), asyncio.TaskGroup() as group:
            reaper = group.create_task(self._reap(lease_seconds))
            try:
                groups = [(self._queues - self._apart, concurrency)]
                groups += [({queue}, _TIMES_APART * concurrency) for queue in self._apart]
                async with asyncio.TaskGroup() as workers:  # asks each to end once, and waits for what it has in hand
                    for queues, slots in groups:
                        if queues:
                            workers.create_task(self._work(sorted(queues), slots, lease_seconds))
            finally:
                reaper.cancel()  # the group would wait for it: a worker that ends amid an outage returns normally

    async def _work(self, queues: Sequence[str], concurrency: int, lease_seconds: float) -> None:
        while wanted():
            reason = "it was taken for dead"
            try:
                await self._app.run_worker_async(
                    queues=queues,
                    concurrency=concurrency,
                    fetch_job_polling_interval=1.0,
                    abort_job_polling_interval=3600.0,
                    update_heartbeat_interval=min(lease_seconds / 3, _LONGEST_BEAT_SECONDS),
                    stalled_worker_timeout=lease_seconds,
                    shutdown_graceful_timeout=5.0,
                    install_signal_handlers=False,
                    delete_jobs=jobs.DeleteJobCondition.SUCCESSFUL.value,
                    name=self._db.service,
                )
            except (exceptions.ConnectorException, psycopg.Error) as error:
                reason = str(error.__cause__ or error)
            # It only returns if the database went away under it, or this worker was taken for dead: begin anew.
            _log.warning("worker restarts", service=self._db.service, reason=reason)
            await asyncio.sleep(1)

    async def _reap(self, lease_seconds: float) -> None:
        """Gives jobs of dead workers to live ones. Any number may run: putting a job back twice is harmless."""
        manager = self._app.job_manager
        passes = 0
        while wanted():
            await asyncio.sleep(min(lease_seconds / 3, _LONGEST_REAPING_SECONDS))
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
            await self._app.job_manager.retry_job(job, retry_at=_LONG_AGO)  # unless another reaper was faster
