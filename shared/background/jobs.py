"""Background work on Procrastinate: enqueueing in the caller's transaction, workers with leases, a
reaper, pruning.

Each service has its own instance in schema `<service>_jobs`. Queues are named `<service>.<what>`,
because abort notifications cross schemas. A queue row holds only ids and a number for its owner.
The domain row is the source of truth, and `shared.background.attempts` fences it, since a queue can
only promise at-least-once. Cancellation is requested on the domain row too, so a job always ends
its own attempt.

Owners take turns. Among jobs of one priority the queue starts the one with the earliest turn. Each
job gets the turn after that of the same owner's previous job (start-time fair queueing): a job that
arrives while another owner has thousands waiting is among the next to start, and an owner alone has
all workers. The turn is fixed when the job is enqueued, so no job waits for ever; a retry keeps it.

Urgency orders the jobs of one owner at no other owner's cost: when a turn of the owner has come,
the most urgent of the owner's jobs runs in it, and the job that had this turn gets the urgent job's
turn.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import procrastinate
import psycopg
import structlog
from procrastinate import JobContext, jobs, retry

from shared.background import worker as job_worker
from shared.background.worker import LONG_AGO
from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement
from shared.rpc import auth, errors

FRESH = 100  # priority of work that somebody waits for
FRESH_APART = 101  # the same in a separate queue: its turns advance with its own workers
BACKFILL = 0  # priority of work that nobody waits for
# Turns per priority. Once a queue has used them all without a pause, its jobs run in order of
# arrival until none waits.
_TURNS = 10_000_000
_TIMES_APART = 8  # times as many slots in a separate queue, whose jobs mostly wait
_log = structlog.get_logger("jobs")

# In the table a priority is a range of numbers, one per turn; the first turn has the highest. The
# current turn is the highest number among jobs that wait for their first attempt; a job that waits
# for a retry has the number of an earlier turn. ORDER BY names the index's columns: under row-level
# security the planner doesn't see that two of them are fixed.
_ENQUEUE = Command("""
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
""")
# This counts all owners' jobs in the queue's tables, which hold only ids: the count reveals nothing
# about other owners' work.
_SELECT_POSITION = Statement(
    int,
    """
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
""",
)
_SELECT_BUSY = Statement(
    bool,
    """
    SELECT EXISTS (
        SELECT FROM procrastinate_jobs WHERE queue_name = %(queue)s AND status = 'todo'
            AND priority > %(above)s
        AND (scheduled_at IS NULL OR scheduled_at <= now())
    ) AS busy
""",
)
_NOTE_WAIT = Statement(
    int,
    """
    UPDATE procrastinate_jobs SET args = args - 'waits_for' || jsonb_strip_nulls(
        jsonb_build_object('waits_for', NULLIF(%(waits_for)s::text, '')))
    WHERE id = %(id)s RETURNING id
""",
)
_WAKE = Statement(
    int,
    """
    UPDATE procrastinate_jobs SET scheduled_at = now()
    WHERE status = 'todo' AND args ->> 'waits_for' = %(waits_for)s
        AND scheduled_at > now()
    RETURNING id
""",
)
# These touch only jobs that no worker has: a job that is being fetched is no longer `todo`.
_WITHDRAW = Statement(
    int,
    """
    DELETE FROM procrastinate_jobs WHERE status = 'todo'
        AND args ->> 'owner' = hashtextextended(%(owner)s::text, 0)::text
        AND args ->> 'row_id' = ANY(%(row_ids)s::text[])
    RETURNING id
""",
)
_SET_URGENCY = Command("""
    UPDATE procrastinate_jobs SET args = args || jsonb_build_object('urgency', %(urgency)s::int)
    WHERE status = 'todo' AND args ->> 'owner' = hashtextextended(%(owner)s::text, 0)::text
        AND args ->> 'row_id' = ANY(%(row_ids)s::text[])
""")
_SELECT_ENQUEUED = Statement(
    str,
    """
    SELECT args ->> 'row_id' AS row_id FROM procrastinate_jobs
    WHERE status IN ('todo', 'doing')
        AND args ->> 'owner' = hashtextextended(%(owner)s::text, 0)::text
        AND args ->> 'row_id' = ANY(%(row_ids)s::text[])
""",
)
_SELECT_LATER = Statement(datetime, "SELECT now() + make_interval(secs => %(seconds)s)")
_PAUSE_SECONDS = 1.0
_LONGEST_BACKOFF_SECONDS = 60

TaskFunction = Callable[[str], Awaitable[None]]


@dataclass
class TryAgain(Exception):
    """Raised by a task to run again at `at`, a time of the database's clock; by default at once.
    `waits_for` names what the task waits for, so that `wake` finds it."""

    at: datetime = LONG_AGO
    waits_for: str = ""


class _Again(retry.BaseRetryStrategy):
    """Retries every task that raised, also a cancelled one: the row's state says whether work is
    left."""

    def get_retry_decision(self, *, exception: BaseException, job: jobs.Job) -> retry.RetryDecision:
        return procrastinate.RetryDecision(
            retry_at=exception.at if isinstance(exception, TryAgain) else LONG_AGO
        )


async def wake(db: Database, waits_for: str) -> None:
    """Ends the pauses of all jobs that wait for `waits_for`. Call it when one of them succeeded."""
    with contextlib.suppress(psycopg.Error):  # they run after their pauses anyway
        await db.system_all(_WAKE, {"waits_for": waits_for})


class JobQueue:
    """One service's job queue. A server only enqueues; workers call `work` to run jobs."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._app = procrastinate.App(connector=procrastinate.PsycopgConnector())
        self._manager = self._app.job_manager = job_worker.Manager(db, self._app.connector)
        self._queues: set[str] = set()
        self._apart: set[str] = set()
        self._added: dict[str, int] = {}

    def task(self, name: str, queue: str, function: TaskFunction, *, apart: bool = False) -> None:
        """Registers the function for jobs called `name`; it is called with the id of the job's row.
        `apart` gives the queue its own, more numerous slots, because its jobs mostly wait for
        foreign servers."""

        async def run(context: JobContext, /, row_id: str, **_for_the_queue: str) -> None:
            try:
                await function(row_id)
            except TryAgain as again:
                await self._note_wait(context.job, again.waits_for)
                raise
            except Exception as error:
                # The attempt's end could not be written, so the row still needs this job.
                _log.exception("job could not record its end", task=name, row=row_id)
                raise await self._after_pause(error, context.job.attempts) from error

        self._app.task(name=name, queue=self._queue(queue), retry=_Again(), pass_context=True)(run)
        self._queues.add(self._queue(queue))
        if apart:
            self._apart.add(self._queue(queue))

    def add_queue(self, queue: str, slots: int) -> None:
        """Adds a queue with `slots` slots of its own, for jobs of tasks that are registered
        already. Its jobs don't hold up those of other queues."""
        self._added[self._queue(queue)] = slots

    async def _note_wait(self, job: jobs.Job, waits_for: str) -> None:
        if waits_for or job.task_kwargs.get("waits_for"):
            # If this fails, `wake` doesn't find the job, and it runs after its pause.
            with contextlib.suppress(psycopg.Error):
                await self._db.system_all(_NOTE_WAIT, {"id": job.id, "waits_for": waits_for})

    async def _after_pause(self, error: Exception, attempts: int) -> TryAgain:
        seconds = (
            _PAUSE_SECONDS if errors.passing(error) else min(2**attempts, _LONGEST_BACKOFF_SECONDS)
        )
        with contextlib.suppress(psycopg.Error):
            [later] = await self._db.system_all(_SELECT_LATER, {"seconds": seconds})
            return TryAgain(later)
        return TryAgain()  # no pause needed: nothing runs before the database is back

    def _queue(self, name: str) -> str:
        return f"{self._db.service}.{name}"

    async def enqueue(
        self,
        m: Mutation,
        name: str,
        queue: str,
        row_id: UUID | str,
        *,
        priority: int = FRESH,
        urgency: int | None = None,
    ) -> None:
        """Adds a job in its owner's next turn; it exists only if the transaction commits. `urgency`
        orders the owner's jobs in a queue where all jobs have one; higher runs earlier."""
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

    async def withdraw(self, m: Mutation, row_ids: Sequence[UUID]) -> None:
        """Removes the waiting jobs of these rows of the mutation's owner, for jobs that have an
        urgency. A job that a worker has stays. Whoever calls it enqueues them again."""
        if row_ids:
            await m.all(_WITHDRAW, {"owner": m.owner, "row_ids": [str(each) for each in row_ids]})

    async def set_urgency(self, m: Mutation, row_ids: Sequence[UUID], urgency: int) -> None:
        """Gives the waiting jobs of these rows of the mutation's owner another urgency."""
        if row_ids:
            texts = [str(each) for each in row_ids]
            values = {"owner": m.owner, "row_ids": texts, "urgency": urgency}
            await m.run(_SET_URGENCY, values)

    async def without_job(self, m: Mutation, row_ids: Sequence[UUID]) -> list[UUID]:
        """Returns those of these rows of the mutation's owner that no job with an urgency waits or
        runs for."""
        if not row_ids:
            return []
        texts = [str(each) for each in row_ids]
        found = set(await m.all(_SELECT_ENQUEUED, {"owner": m.owner, "row_ids": texts}))
        return [each for each in row_ids if str(each) not in found]

    async def position(self, row_id: UUID | str) -> int | None:
        """Returns the position of the row's job among all owners' waiting jobs of its queue: 1
        starts next. Returns None if it isn't waiting."""
        return await self._db.first(_SELECT_POSITION, {"row_id": str(row_id)})

    async def busy(self, queue: str, *, above: int) -> bool:
        """Returns whether a job with a priority higher than `above` waits for a worker of that
        queue right now."""
        asked = {"queue": self._queue(queue), "above": above * _TURNS}
        [busy] = await self._db.system_all(_SELECT_BUSY, asked)
        return busy

    async def work(self, *, concurrency: int, lease_seconds: float) -> None:
        """Runs jobs until cancelled, then gives running ones 5 seconds and puts the rest back."""
        worker = job_worker.Worker(self._db, self._app, self._manager, lease_seconds)
        async with self._app.open_async(self._db.pool), asyncio.TaskGroup() as group:
            reaper = group.create_task(worker.reap())
            try:
                groups = [(self._queues - self._apart, concurrency)]
                groups += [({queue}, _TIMES_APART * concurrency) for queue in self._apart]
                groups += [({queue}, slots) for queue, slots in self._added.items()]
                # The group cancels each worker once and waits for its running jobs.
                async with asyncio.TaskGroup() as workers:
                    for queues, slots in groups:
                        if queues:
                            workers.create_task(worker.run(sorted(queues), slots))
            finally:
                # A worker that ends during an outage returns normally, and then the outer group
                # would wait for the reaper.
                reaper.cancel()
