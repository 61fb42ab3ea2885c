"""B5: the queue of jobs: how soon a job begins after its commit, and how many jobs that do nothing
run in a second, compared with a bare loop that takes rows with SKIP LOCKED."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psycopg

from bench.figure import Figure, Report, Rounds
from bench.site import OWNER, Site
from shared.background.jobs import JobQueue
from shared.database.db import Database
from shared.database.ids import new_id
from shared.settings import Settings

_SINGLE = 300
_PAUSE_SECONDS = 0.02
_JOBS = 1000
_ROUNDS = 3
_SLOTS = 4
_LEASE_SECONDS = 30.0
_TAKE = """
    DELETE FROM bench_jobs
    WHERE id = (SELECT id FROM bench_jobs ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id
"""


def queues(report: Report) -> list[Figure]:
    return asyncio.run(_queues(report))


async def _queues(report: Report) -> list[Figure]:
    with Site() as site:
        site.sql("CREATE TABLE bench_jobs (id bigint PRIMARY KEY)")
        db = Database(Settings(database_url=site.url("app")), "assets", pool_size=2)
        await db.open()
        try:
            report(f"{_SINGLE} jobs, one after the other")
            waits = await _single(site, db)
            pairs = []
            for number in range(_ROUNDS):
                report(f"round {number + 1}: {_JOBS:,} jobs that do nothing")
                ours = _JOBS / await _many(site, db)
                site.sql("INSERT INTO bench_jobs SELECT generate_series(1, %s)", (_JOBS,))
                pairs.append((ours, _JOBS / await _bare(site)))
        finally:
            await db.close()
    cuts = statistics.quantiles(waits, n=100)
    note = f"{_SINGLE} jobs, {1 / _PAUSE_SECONDS:.0f} a second"
    return [
        Figure("B5", "commit to start, half of the jobs", "ms", cuts[49], 5, note=note),
        Figure("B5", "commit to start, 99 of 100 jobs", "ms", cuts[98], 15, note=note),
        Rounds(pairs).figure("B5", "jobs / bare SKIP LOCKED", "/s", 0.09, at_most=False),
    ]


class _Counter:
    """A job that does nothing but say when it began."""

    def __init__(self, number: int) -> None:
        self.began: dict[str, float] = {}
        self.all_began = asyncio.Event()
        self._number = number

    async def run(self, row_id: str) -> None:
        self.began[row_id] = time.perf_counter()
        if len(self.began) == self._number:
            self.all_began.set()


@asynccontextmanager
async def _working(site: Site, counter: _Counter) -> AsyncIterator[None]:
    db = Database(Settings(database_url=site.url("worker")), "assets")
    queue = JobQueue(db)
    queue.task("bench", "bench", counter.run)
    await db.open()
    working = asyncio.create_task(queue.work(concurrency=_SLOTS, lease_seconds=_LEASE_SECONDS))
    try:
        yield
    finally:
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
        await db.close()


async def _enqueue(db: Database, queue: JobQueue, number: int) -> list[str]:
    ids = [new_id() for _ in range(number)]
    async with db.transaction(OWNER) as m:
        for each in ids:
            await queue.enqueue(m, "bench", "bench", each)
    return [str(each) for each in ids]


async def _single(site: Site, db: Database) -> list[float]:
    """Returns the milliseconds from the commit of each job to its start."""
    counter, queue = _Counter(_SINGLE), JobQueue(db)
    committed: dict[str, float] = {}
    async with _working(site, counter):
        await asyncio.sleep(2)  # until it listens
        for _ in range(_SINGLE):
            [row_id] = await _enqueue(db, queue, 1)
            committed[row_id] = time.perf_counter()
            await asyncio.sleep(_PAUSE_SECONDS)
        await counter.all_began.wait()
    return [max(counter.began[each] - at, 0) * 1000 for each, at in committed.items()]


async def _many(site: Site, db: Database) -> float:
    """Returns the seconds that the jobs take from the first to the last."""
    counter = _Counter(_JOBS)
    await _enqueue(db, JobQueue(db), _JOBS)
    async with _working(site, counter):
        await counter.all_began.wait()
    return max(counter.began.values()) - min(counter.began.values())


async def _bare(site: Site) -> float:
    async with await psycopg.AsyncConnection.connect(site.admin_url, autocommit=True) as conn:
        start = time.perf_counter()
        while await (await conn.execute(_TAKE)).fetchone():
            pass
        return time.perf_counter() - start
