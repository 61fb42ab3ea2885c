"""Attempts at a job whose database fails at the worst moment, or whose workers vanish (real table,
queue and worker)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from uuid import UUID

import psycopg
import pytest

from bench import naps
from shared.background import attempts
from shared.background.jobs import TryAgain
from shared.database.db import Database
from shared.database.ids import new_id
from tests.shared.test_job_worker import until
from tests.suite import Suite

OWNER = "user:ada"


@asynccontextmanager
async def database(suite: Suite) -> AsyncIterator[Database]:
    suite.sql(naps.TABLES)
    db = Database(suite.settings("assets", "worker"), "assets")
    await db.open()
    try:
        yield db
    finally:
        await db.close()


async def asked(db: Database, seconds: float, *, losses: int = 0) -> UUID:
    """Enqueues a job that sleeps; returns its id."""
    row_id = new_id()
    async with db.transaction(OWNER) as m:
        values = {"id": row_id, "owner": OWNER, "seconds": seconds, "losses": losses}
        await m.run(naps.NAPS.table.insert(*values), values)
        await naps.queue_of(db).enqueue(m, "short", "short", row_id)
    return row_id


def lose(suite: Suite, row_id: UUID) -> None:
    """Leaves the rows of a worker that began an attempt and vanished."""
    suite.sql(
        "UPDATE assets.naps SET state = 'running', attempt_number = attempt_number + 1 WHERE id"
        " = %s",
        (row_id,),
    )
    suite.sql(
        "INSERT INTO assets.attempts (id, owner, job, job_id, number, worker) SELECT"
        " gen_random_uuid(), owner, 'naps', id, attempt_number, 'elsewhere:1:a' FROM assets.naps"
        " WHERE id = %s",
        (row_id,),
    )


async def test_a_result_whose_commit_is_cut_off_is_committed_again_and_not_made_again(
    suite: Suite,
) -> None:
    async with database(suite) as db:
        working = asyncio.create_task(naps.queue_of(db).work(concurrency=1, lease_seconds=15))
        row_id = await asked(db, 0.5)
        running = "SELECT state = 'running' FROM assets.naps"
        await until(lambda: suite.sql(running) == [(True,)], "the job runs")

        async with await psycopg.AsyncConnection.connect(
            suite.cluster.url(suite.database)
        ) as holder:
            await holder.execute("LOCK TABLE assets.attempts IN EXCLUSIVE MODE")
            caught = "SELECT pid FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
            await until(
                lambda: bool(suite.sql(caught, (holder.info.backend_pid,))), "the commit waits"
            )
            [(pid,)] = suite.sql(caught, (holder.info.backend_pid,))
            suite.sql("SELECT pg_terminate_backend(%s)", (pid,))

        done = "SELECT state FROM assets.naps"
        await until(lambda: suite.sql(done) == [("done",)], "the job is done")
        working.cancel()
        await asyncio.wait([working])

    tries = "SELECT outcome, number FROM assets.attempts WHERE job_id = %s"
    assert suite.sql(tries, (row_id,)) == [("succeeded", 1)]


@pytest.mark.parametrize(
    ("losses", "state"), [(0, "done"), (1, "done"), (2, "pending"), (22, "pending")]
)
async def test_a_job_pauses_from_the_third_worker_on_that_vanished_with_it(
    suite: Suite, losses: int, state: str
) -> None:
    async with database(suite) as db:
        row_id = await asked(db, 0, losses=losses)
        lose(suite, row_id)
        if state == "pending":
            with pytest.raises(TryAgain) as later:
                await naps.run(db, str(row_id))
            [(pause,)] = suite.sql(
                "SELECT extract(epoch FROM %s - now())::float8", (later.value.at,)
            )
            assert 0 < pause <= 20
        else:
            await naps.run(db, str(row_id))

        [row] = suite.sql(
            "SELECT state, losses, waits_for, waiting_since IS NOT NULL FROM assets.naps"
        )
        # An attempt that makes progress starts over: earlier losses no longer count.
        assert row == (
            (state, losses + 1, "a worker", True) if state == "pending" else (state, 0, "", False)
        )
        if state == "pending":
            await naps.run(db, str(row_id))  # the pause is over
            assert suite.sql("SELECT state, losses FROM assets.naps") == [("done", 0)]


async def test_a_job_that_every_worker_vanishes_with_fails_in_the_end(suite: Suite) -> None:
    async with database(suite) as db:
        row_id = await asked(db, 0, losses=23)
        lose(suite, row_id)
        await naps.run(db, str(row_id))
    [(state, error_class)] = suite.sql("SELECT state, error_class FROM assets.naps")
    assert (state, error_class) == ("failed", "WORKER_LOST")


@pytest.mark.parametrize("fenced", [False, True])
async def test_a_result_that_is_there_when_its_worker_stops_is_committed_or_taken_back(
    suite: Suite, fenced: bool
) -> None:
    """It may have cost money, and what it stored must not stay without a row."""
    taken_back: list[bool] = []

    async def take_back() -> None:
        taken_back.append(True)

    async with database(suite) as db:
        row_id = await asked(db, 0)

        async def work(attempt: attempts.Attempt[naps.Nap]) -> attempts.Outcome[naps.Nap]:
            if fenced:
                suite.sql("UPDATE assets.naps SET attempt_token = gen_random_uuid()")
            running.cancel()  # ends the wait for this work in the moment in which the work ends
            return attempts.Outcome({}, if_not_committed=take_back)

        running = asyncio.create_task(attempts.run(db, naps.NAPS, str(row_id), work))
        await asyncio.wait([running])

    state = "running" if fenced else "done"
    assert suite.sql("SELECT state FROM assets.naps") == [(state,)]
    assert taken_back == [True] * fenced


async def test_a_result_that_was_taken_back_is_not_committed_if_the_worker_stops_then(
    suite: Suite,
) -> None:
    taken_back: list[bool] = []
    cancelled = asyncio.Event()

    async def take_back() -> None:
        running.cancel()  # the worker stops in this moment
        taken_back.append(True)

    async with database(suite) as db:
        row_id = await asked(db, 0)

        async def work(attempt: attempts.Attempt[naps.Nap]) -> attempts.Outcome[naps.Nap]:
            suite.sql("UPDATE assets.naps SET cancel_requested = true")
            with suppress(asyncio.CancelledError):  # it comes to its end nevertheless
                await cancelled.wait()
            return attempts.Outcome({}, if_not_committed=take_back)

        kind = replace(naps.NAPS, cancelled="failed")  # naps have no state for it
        running = asyncio.create_task(attempts.run(db, kind, str(row_id), work))
        await asyncio.wait([running], timeout=30)

    assert suite.sql("SELECT state FROM assets.naps") == [("failed",)]
    assert taken_back == [True]


async def test_a_try_that_this_process_could_not_end_is_no_lost_worker(suite: Suite) -> None:
    async with database(suite) as db:
        row_id = await asked(db, 0)
        lose(suite, row_id)
        suite.sql("UPDATE assets.attempts SET worker = %s", (attempts.WORKER,))
        await naps.run(db, str(row_id))
    assert suite.sql("SELECT state, losses FROM assets.naps") == [("done", 0)]
    outcomes = suite.sql("SELECT outcome FROM assets.attempts ORDER BY number")
    assert outcomes == [("waited",), ("succeeded",)]
