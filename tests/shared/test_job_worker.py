"""A worker and its queue while the database fails: no job is lost, done twice or stuck because of
it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import psycopg.sql
import pytest

from shared.background.jobs import JobQueue
from shared.database.db import Database
from tests.suite import Suite

LEASE_SECONDS = 1.5
PATIENCE_SECONDS = 60


class Sleepers:
    """A queue of assets whose jobs take as long as their row's id says."""

    def __init__(self, suite: Suite) -> None:
        suite.overrides["lock_timeout_seconds"] = 0.5
        self.db = Database(suite.settings("assets", "worker"), "assets")
        self.queue = JobQueue(self.db)
        self.queue.task("sleep", "sleepers", self._sleep)
        self.begun: list[str] = []
        self.done: list[str] = []

    async def _sleep(self, job: str) -> None:
        self.begun.append(job)
        await asyncio.sleep(float(job.split(":")[0]))
        self.done.append(job)

    async def ask(self, *named: str) -> None:
        async with self.db.transaction("user:ada") as m:
            for job in named:
                await self.queue.enqueue(m, "sleep", "sleepers", job)

    async def until_done(self, count: int) -> None:
        await until(lambda: len(self.done) >= count, f"{count} jobs are done")


async def until(found: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not found():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {PATIENCE_SECONDS} s: {what}") from None


@asynccontextmanager
async def sleepers(
    suite: Suite, *, lease_seconds: float = LEASE_SECONDS
) -> AsyncIterator[Sleepers]:
    made = Sleepers(suite)
    await made.db.open()
    working = asyncio.create_task(made.queue.work(concurrency=2, lease_seconds=lease_seconds))
    try:
        yield made
    finally:
        working.cancel()
        await asyncio.wait([working])
        await made.db.close()


@asynccontextmanager
async def locked(suite: Suite, table: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Locks the queue's table against changes by others. What the connection itself does is
    committed."""
    url = suite.cluster.url(suite.database)
    async with await psycopg.AsyncConnection.connect(url) as conn:
        await conn.execute(
            psycopg.sql.SQL("LOCK TABLE assets_jobs.{} IN EXCLUSIVE MODE").format(
                psycopg.sql.Identifier(table)
            )
        )
        yield conn


def workers(suite: Suite) -> int:
    return int(suite.sql("SELECT count(*) FROM assets_jobs.procrastinate_workers")[0][0])


async def beats_again(suite: Suite) -> None:
    age = (
        "SELECT count(*) FROM assets_jobs.procrastinate_workers WHERE last_heartbeat > now() -"
        " interval '1 second'"
    )
    await until(lambda: bool(suite.sql(age)[0][0]), "a worker beats")


@pytest.mark.long
async def test_a_heartbeat_that_fails_is_made_up_for_and_the_job_in_hand_goes_on(
    suite: Suite,
) -> None:
    async with sleepers(suite, lease_seconds=4) as here:
        await here.ask("3:long")
        await until(lambda: here.begun == ["3:long"], "the job begins")
        async with locked(suite, "procrastinate_workers"):
            await asyncio.sleep(
                2.2
            )  # a third of the lease and the lock timeout: one heartbeat fails, no lease passes
        await here.until_done(1)
        # Longer than a lease, so that a reaper would take it from a worker without heartbeat.
        await here.ask("5:after")

        await here.until_done(2)
        await beats_again(suite)

    assert here.begun == here.done == ["3:long", "5:after"]


@pytest.mark.long
async def test_a_worker_that_cannot_beat_gives_up_its_jobs_and_comes_back(suite: Suite) -> None:
    async with sleepers(suite) as here:
        await here.ask("5:long")
        await until(lambda: len(here.begun) == 1, "the job begins")
        async with locked(suite, "procrastinate_workers"):
            await asyncio.sleep(3 * LEASE_SECONDS)
        await beats_again(suite)
        await here.ask("0:short")
        await here.until_done(2)

    assert sorted(here.done) == ["0:short", "5:long"]
    assert (
        here.begun.count("5:long") == 2
    )  # the first attempt was given up: others might have taken the job


async def test_a_worker_that_was_taken_for_dead_begins_anew(suite: Suite) -> None:
    async with sleepers(suite) as here:
        await until(lambda: workers(suite) == 1, "the worker registers")
        suite.sql("DELETE FROM assets_jobs.procrastinate_workers")
        await until(lambda: workers(suite) == 1, "it registers again")
        await here.ask("0:after")
        await here.until_done(1)


@pytest.mark.long
async def test_jobs_and_their_worker_outlive_the_loss_of_every_connection(suite: Suite) -> None:
    async with sleepers(suite) as here:
        await here.ask("4:long")
        await until(lambda: len(here.begun) == 1, "the job begins")
        [before] = suite.sql("SELECT id FROM assets_jobs.procrastinate_workers")

        for number in range(6):
            suite.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND usename = 'assets_worker'"
            )
            with contextlib.suppress(psycopg.Error):
                await here.ask(f"0:{number}")
            await asyncio.sleep(0.3)

        asked = len(
            suite.sql(
                "SELECT FROM assets_jobs.procrastinate_jobs WHERE status IN ('todo', 'doing')"
            )
        )
        await until(lambda: not jobs_left(suite), f"the queue is empty, after {asked}")
        assert suite.sql("SELECT id FROM assets_jobs.procrastinate_workers") == [before]
    assert here.begun.count("4:long") == 1 and set(here.begun) == set(here.done)


def jobs_left(suite: Suite) -> int:
    left = "SELECT count(*) FROM assets_jobs.procrastinate_jobs WHERE status IN ('todo', 'doing')"
    return int(suite.sql(left)[0][0])


@pytest.mark.long
async def test_a_job_that_was_given_without_the_worker_hearing_of_it_is_put_back(
    suite: Suite,
) -> None:
    """The answer to a fetch is lost: in the queue the worker has the job, but the worker doesn't
    know."""
    async with sleepers(suite) as here:
        await until(lambda: workers(suite) == 1, "the worker registers")
        await here.ask("0:first")
        await here.until_done(1)

        async with locked(suite, "procrastinate_jobs") as holder:
            await asyncio.sleep(2.5)  # longer than a poll and the lock timeout: a fetch fails
            await holder.execute(
                "INSERT INTO assets_jobs.procrastinate_jobs (queue_name, task_name, args, status,"
                " worker_id) SELECT 'assets.sleepers', 'sleep', '{\"row_id\": \"0:unheard\"}',"
                " 'doing', id FROM assets_jobs.procrastinate_workers"
            )
        await here.until_done(2)

    assert here.done == ["0:first", "0:unheard"]


@pytest.mark.long
@pytest.mark.parametrize("table", ["procrastinate_jobs", "procrastinate_workers"])
async def test_after_a_lock_on_the_queue_new_jobs_start_at_once(suite: Suite, table: str) -> None:
    async with sleepers(suite) as here:
        await here.ask("0:before")
        await here.until_done(1)
        async with locked(suite, table):
            await asyncio.sleep(2 * LEASE_SECONDS)
        await here.ask(*(f"0:{number}" for number in range(20)))
        await here.until_done(21)
    assert len(here.begun) == 21
