"""Background work on Procrastinate: enqueue in the caller's transaction, workers with leases, a
reaper, pruning.

Each service has its own instance in schema `<service>_jobs`, and gives every job a queue named
`<service>.<what>`, because abort notifications cross schemas. A queue row carries only ids, and a
number for its owner; the domain row is the truth, and `shared.background.attempts` fences it, since
a queue can only promise at-least-once. Cancelling is asked of the domain row, too, so that a job
always comes to its own end.

Owners take turns. Among jobs of one priority the queue starts the one with the earliest turn, and
each job of an owner gets the turn after that of the owner's job before it, as start-time fair
queueing has it: one that comes while another owner has thousands waiting is among the next to
start, and an owner alone has all workers. The turn is fixed when the job is enqueued, so that
nothing waits for ever; a job that is tried again keeps it.

What an owner calls more urgent goes first among the owner's own jobs, at nobody else's cost: when a
turn of the owner has come, the most urgent of the owner's jobs is done in it, and the one that it
was meant for gets that job's turn.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import procrastinate
import psycopg
import structlog
from procrastinate import JobContext, jobs, retry

from shared.background import worker as job_worker
from shared.background.worker import LONG_AGO
from shared.database.db import Database, Mutation
from shared.rpc import auth, errors

FRESH = 100  # priority of work somebody waits for
FRESH_APART = 101  # the same in a queue that is apart: its turns go at the pace of its own workers
BACKFILL = 0  # priority of work nobody waits for
# that a priority has; after so many without a pause, turns go by arrival until nothing waits
_TURNS = 10_000_000
_TIMES_APART = 8  # as many slots for jobs that wait most of their time
_log = structlog.get_logger("jobs")

# A priority stands in the table as a range of numbers, one for each of its turns, the first being
# the highest. Which turn has come is told by what waits for its first try; a job that shall be
# tried again, later, is from an earlier one. The order names the index's columns: under row-level
# security the planner doesn't see that two of them are given.
_ENQUEUE: LiteralString = """
    SELECT procrastinate_defer_jobs_v1(ARRAY[ROW(
        %(queue)s::text, %(task)s::text,
        greatest(%(last)s::int, least(
            %(first)s::int,
            (SELECT priority FROM procrastinate_jobs
             WHERE status = 'todo' AND attempts = 0 AND priority BETWEEN %(last)s::int
                 AND %(first)s::int
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
# The queue's own tables: what waits there has no contents, only ids, so that counting it tells of
# nobody's work.
_POSITION = """
    WITH mine AS (
        SELECT id, priority, queue_name, args ->> 'owner' AS owner, args ->> 'row_id' AS row_id,
            (args ->> 'urgency')::int AS urgency FROM procrastinate_jobs
        WHERE status = 'todo' AND args ->> 'row_id' = %(row_id)s ORDER BY id LIMIT 1
    ), turns AS (
        SELECT other.id, other.priority, row_number() OVER (ORDER BY other.priority DESC,
            other.id) AS turn,
            row_number() OVER (ORDER BY (other.args ->> 'urgency')::int DESC,
                other.args ->> 'row_id') AS rank,
            other.id = mine.id AS is_mine
        FROM mine JOIN procrastinate_jobs other
            ON other.status = 'todo' AND other.attempts = 0 AND other.queue_name = mine.queue_name
            AND other.args ->> 'owner' = mine.owner
    ), slot AS (
        SELECT COALESCE(turns.id, mine.id) AS id, COALESCE(turns.priority,
            mine.priority) AS priority, queue_name
        FROM mine LEFT JOIN turns ON turn = (SELECT rank FROM turns WHERE is_mine)
    )
    SELECT 1 + count(other.id) AS position FROM slot LEFT JOIN procrastinate_jobs other
        ON other.status = 'todo' AND other.queue_name = slot.queue_name
        AND (other.scheduled_at IS NULL OR other.scheduled_at <= now())
        AND (other.priority > slot.priority OR (other.priority = slot.priority AND other.id
            < slot.id))
    GROUP BY slot.id
"""
_BUSY = """
    SELECT EXISTS (
        SELECT FROM procrastinate_jobs WHERE queue_name = %(queue)s AND status = 'todo'
            AND priority > %(above)s
        AND (scheduled_at IS NULL OR scheduled_at <= now())
    ) AS busy
"""
_NOTE_WAIT: LiteralString = """
    UPDATE procrastinate_jobs SET args = args - 'waits_for' || jsonb_strip_nulls(
        jsonb_build_object('waits_for', NULLIF(%(waits_for)s::text, ''))) WHERE id
            = %(id)s RETURNING id
"""
_WAKE: LiteralString = """
    UPDATE procrastinate_jobs SET scheduled_at = now()
    WHERE status = 'todo' AND args ->> 'waits_for' = %(waits_for)s AND scheduled_at
        > now() RETURNING id
"""
_PAUSE_SECONDS = 1.0
_LONGEST_BACKOFF_SECONDS = 60

TaskFunction = Callable[[str], Awaitable[None]]


@dataclass
class TryAgain(Exception):
    """Raised by a task that shall run again at `at`, a time of the database's clock; by default at
    once. `waits_for`: what it waits for until then, so that `wake` finds it."""

    at: datetime = LONG_AGO
    waits_for: str = ""


class _Again(retry.BaseRetryStrategy):
    """Whatever didn't return runs again, also what was cancelled: the row knows whether there is
    more to do."""

    def get_retry_decision(self, *, exception: BaseException, job: jobs.Job) -> retry.RetryDecision:
        return procrastinate.RetryDecision(
            retry_at=exception.at if isinstance(exception, TryAgain) else LONG_AGO
        )


async def wake(db: Database, waits_for: str) -> None:
    """Ends the pauses of all jobs that wait for this: one of them got through."""
    with contextlib.suppress(psycopg.Error):  # they come back after their pauses
        await db.system_rows(_WAKE, {"waits_for": waits_for})


class JobQueue:
    """One service's queue. A server only enqueues; `work` runs jobs."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._app = procrastinate.App(connector=procrastinate.PsycopgConnector())
        self._manager = self._app.job_manager = job_worker.Manager(db, self._app.connector)
        self._queues: set[str] = set()
        self._apart: set[str] = set()

    def task(self, name: str, queue: str, function: TaskFunction, *, apart: bool = False) -> None:
        """Registers what runs for jobs called `name`; it gets the id of the row that the job
        serves. `apart`: the queue has more slots, of its own, because its jobs wait for servers of
        others."""

        async def run(context: JobContext, /, row_id: str, **_for_the_queue: str) -> None:
            try:
                await function(row_id)
            except TryAgain as again:
                await self._note_wait(context.job, again.waits_for)
                raise
            except Exception as error:
                # Not even the end of the try could be written, so the row still needs this job.
                _log.exception("job could not record its end", task=name, row=row_id)
                raise await self._after_pause(error, context.job.attempts) from error

        self._app.task(name=name, queue=self._queue(queue), retry=_Again(), pass_context=True)(run)
        self._queues.add(self._queue(queue))
        if apart:
            self._apart.add(self._queue(queue))

    async def _note_wait(self, job: jobs.Job, waits_for: str) -> None:
        if waits_for or job.task_kwargs.get("waits_for"):
            with contextlib.suppress(
                psycopg.Error
            ):  # then it isn't woken, and comes back after its pause
                await self._db.system_rows(_NOTE_WAIT, {"id": job.id, "waits_for": waits_for})

    async def _after_pause(self, error: Exception, attempts: int) -> TryAgain:
        seconds = (
            _PAUSE_SECONDS if errors.passing(error) else min(2**attempts, _LONGEST_BACKOFF_SECONDS)
        )
        with contextlib.suppress(psycopg.Error):
            rows = await self._db.system_rows(
                "SELECT now() + make_interval(secs => %s) AS at", (seconds,)
            )
            return TryAgain(rows[0].at)
        return TryAgain()  # nothing runs before the database is back

    def _queue(self, name: str) -> str:
        return f"{self._db.service}.{name}"

    async def enqueue(
        self,
        m: Mutation,
        name: str,
        queue: str,
        row_id: Any,
        *,
        priority: int = FRESH,
        urgency: int | None = None,
    ) -> None:
        """Adds a job that starts after the transaction commits, or never; in the next turn of its
        owner. `urgency` orders it among the owner's own jobs in a queue where all have one."""
        first = priority * _TURNS
        await m.run(
            _ENQUEUE,
            {
                "queue": self._queue(queue),
                "task": name,
                "first": first,
                "last": first - _TURNS + 1,
                "row_id": str(row_id),
                "share": auth.share_of(m.owner),
                "owner": None if urgency is None else m.owner,
                "urgency": urgency,
            },
        )

    async def position(self, row_id: Any) -> int | None:
        """Where the row's job stands among those that wait in its queue, whoever's they are: 1
        starts next. None: it isn't waiting."""
        row = await self._db.row(_POSITION, {"row_id": str(row_id)})
        return row.position if row else None

    async def busy(self, queue: str, *, above: int) -> bool:
        """Whether a job of that queue, of a higher priority than `above`, waits for a worker right
        now."""
        [row] = await self._db.system_rows(
            _BUSY, {"queue": self._queue(queue), "above": above * _TURNS}
        )
        return bool(row.busy)

    async def work(self, *, concurrency: int, lease_seconds: float) -> None:
        """Runs jobs until cancelled, then gives those in hand 5 seconds and puts the rest back."""
        worker = job_worker.Worker(self._db, self._app, self._manager, lease_seconds)
        async with self._app.open_async(self._db.pool), asyncio.TaskGroup() as group:
            reaper = group.create_task(worker.reap(lambda: self._queues))
            try:
                groups = [(self._queues - self._apart, concurrency)]
                groups += [({queue}, _TIMES_APART * concurrency) for queue in self._apart]
                async with (
                    asyncio.TaskGroup() as workers
                ):  # asks each to end once, and waits for what it has in hand
                    for queues, slots in groups:
                        if queues:
                            workers.create_task(worker.run(sorted(queues), slots))
            finally:
                # the group would wait for it: a worker that ends amid an outage returns normally
                reaper.cancel()
