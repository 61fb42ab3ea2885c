"""R26: how soon a queue is as fast as before after a failure under it, compared with plain
Procrastinate.

Two worker processes per side run jobs that only sleep, for 50 ms or for 20 s, from queues that are
kept full. A failure hits both sides at the same moment. The work done in windows of five seconds is
compared with the work before the failure: the number of ended jobs of 50 ms, and the seconds spent
on those jobs of 20 s that ended.
"""

import asyncio
import importlib.resources
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg

from bench import naps
from bench.figure import Figure, Report
from bench.site import OWNER, Site
from shared.database.db import Database
from shared.database.ids import new_id
from shared.settings import load

SECONDS = {"short": 0.05, "long": 20.0}
SIDES = ("ours", "raw")
WINDOW = 5
WITHIN = 30
TARGET = 0.95
_LAST = 3  # windows before the 30 s are over; the best counts, since another program may take one
_PROCESSES = 2
_LEASE = 5
_AHEAD = {"short": 60, "long": 24}  # jobs that wait, so that no slot is ever idle
_WARM_SECONDS = 8
_FEED_PAUSE = 0.25
_BURST = 2000

_DONE_OURS = """
    SELECT extract(epoch FROM a.ended_at)::float8, n.seconds, a.worker
    FROM assets.attempts a JOIN assets.naps n ON n.id = a.job_id WHERE a.outcome = 'succeeded'
"""
_DONE_RAW = "SELECT extract(epoch FROM ended_at)::float8, seconds, '' FROM assets.raw_naps"
_WAITING_OURS = """
    SELECT count(*) FROM assets_jobs.procrastinate_jobs WHERE status = 'todo' AND queue_name
        = 'assets.' || %s
"""
_WAITING_RAW = (
    "SELECT count(*) FROM raw_jobs.procrastinate_jobs WHERE status = 'todo' AND queue_name = 'raw.'"
    " || %s"
)
_DEFER_RAW = """
    SELECT raw_jobs.procrastinate_defer_jobs_v1(array_agg(ROW(
        'raw.' || %(name)s, %(name)s, 0, NULL, NULL, jsonb_build_object('seconds',
            %(seconds)s::float8), NULL
    )::raw_jobs.procrastinate_job_to_defer_v1)) FROM generate_series(1, %(count)s)
"""


@dataclass
class Field:
    """Postgres, and the workers of some sides. `open_field` makes it."""

    site: Site
    sides: Sequence[str]
    workers: dict[str, list["subprocess.Popen[bytes]"]] = field(default_factory=dict)
    burst: int = 0
    fed: asyncio.Event = field(default_factory=asyncio.Event)

    def start_workers(self) -> None:
        for side in self.sides:
            self.workers[side] = [self._worker(side) for _ in range(_PROCESSES)]

    def _worker(self, side: str) -> "subprocess.Popen[bytes]":
        own = {
            "ATELIER_DATABASE_URL": self.site.url("worker"),
            "ATELIER_JOB_LEASE_SECONDS": str(_LEASE),
            "ATELIER_TRUST_FILE": str(self.site.state.trust_file),
        }
        return self.site.start("bench.naps", side, environment=own)

    async def supervise(self) -> None:
        """Restarts ended workers a second later, as the operator of a suite does."""
        while True:
            await asyncio.sleep(1)
            for side, processes in self.workers.items():
                for index, process in enumerate(processes):
                    if process.poll() is not None:
                        processes[index] = self._worker(side)

    async def feed(self) -> None:
        """Keeps the queues full. Waits while the database is away."""
        while True:
            with suppress(psycopg.Error, OSError):
                async with AsyncExitStack() as stack:
                    conn = await psycopg.AsyncConnection.connect(
                        self.site.admin_url,
                        autocommit=True,
                        options=f"-c search_path={naps.RAW_SCHEMA}",
                    )
                    await stack.enter_async_context(conn)
                    db = await stack.enter_async_context(_database(self.site))
                    while True:
                        await self._fill(conn, db)
                        await asyncio.sleep(_FEED_PAUSE)
            await asyncio.sleep(_FEED_PAUSE)

    async def _fill(self, conn: psycopg.AsyncConnection[Any], db: Database) -> None:
        for side in self.sides:
            waiting = _WAITING_OURS if side == "ours" else _WAITING_RAW
            for name, ahead in _AHEAD.items():
                [count] = await (await conn.execute(waiting, (name,))).fetchone() or [0]
                wanted = ahead - count + (self.burst if name == "short" else 0)
                if wanted > 0:
                    await self._defer(conn, db, side, name, wanted)
        self.burst = 0
        self.fed.set()

    async def _defer(
        self, conn: psycopg.AsyncConnection[Any], db: Database, side: str, name: str, count: int
    ) -> None:
        if side == "raw":
            await conn.execute(_DEFER_RAW, {"name": name, "seconds": SECONDS[name], "count": count})
            return
        queue = naps.queue_of(db)
        async with db.transaction(OWNER) as m:
            for _ in range(count):
                row_id = new_id()
                values = {"id": row_id, "owner": OWNER, "seconds": SECONDS[name]}
                await m.run(naps.NAPS.table.insert(*values), values)
                await queue.enqueue(m, name, name, row_id)

    async def sql(self, statement: str) -> list[tuple[Any, ...]]:
        return await asyncio.to_thread(self.site.sql, statement)

    async def now(self) -> float:
        [(now,)] = await self.sql("SELECT extract(epoch FROM clock_timestamp())::float8")
        return float(now)


class _database:
    """The database pool of the enqueuing client."""

    def __init__(self, site: Site) -> None:
        own = {
            "ATELIER_DATABASE_URL": site.url("app"),
            "ATELIER_TRUST_FILE": str(site.state.trust_file),
        }
        before = dict(os.environ)
        os.environ |= own
        try:
            self._db = Database(load("assets"), "assets", pool_size=2)
        finally:
            os.environ.clear()
            os.environ |= before

    async def __aenter__(self) -> Database:
        await self._db.open()
        return self._db

    async def __aexit__(self, *_: object) -> None:
        await self._db.close()


Chaos = Callable[[Field], Awaitable[None]]


async def restarted(here: Field) -> None:
    """Stops Postgres in order, and starts it again."""
    await asyncio.to_thread(here.site.postgres.stop)
    await asyncio.sleep(3)
    await asyncio.to_thread(here.site.postgres.start)


async def crashed(here: Field) -> None:
    """Kills Postgres, and starts it again."""
    os.kill(here.site.postgres.pid, signal.SIGKILL)
    await asyncio.sleep(3)
    await asyncio.to_thread(here.site.postgres.start)


async def backends_killed(here: Field) -> None:
    for _ in range(10):
        await here.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'assets_worker'"
        )
        await asyncio.sleep(1.5)


async def workers_killed(here: Field) -> None:
    for number in range(10):
        for processes in here.workers.values():
            processes[number % _PROCESSES].kill()
        await asyncio.sleep(2.5)


async def worker_frozen(here: Field) -> None:
    """Freezes one worker of each side for longer than its lease."""
    frozen = [processes[0] for processes in here.workers.values()]
    for process in frozen:
        process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(3 * _LEASE)
    for process in frozen:
        process.send_signal(signal.SIGCONT)


async def idle_in_transaction(here: Field) -> None:
    """Keeps a session's snapshot open for a minute, so that Postgres can't vacuum deleted rows."""
    async with await psycopg.AsyncConnection.connect(here.site.admin_url) as conn:
        await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await conn.execute("SELECT count(*) FROM pg_class")
        await asyncio.sleep(60)


async def burst(here: Field) -> None:
    """Enqueues 2,000 jobs of 50 ms at once, beside the others."""
    here.burst = _BURST
    here.fed.clear()
    await here.fed.wait()


async def queue_locked(here: Field) -> None:
    locks = "LOCK TABLE assets_jobs.procrastinate_jobs IN EXCLUSIVE MODE"
    if "raw" in here.sides:
        locks += "; LOCK TABLE raw_jobs.procrastinate_jobs IN EXCLUSIVE MODE"
    await _hold(here, locks)


async def heartbeats_locked(here: Field) -> None:
    locks = "LOCK TABLE assets_jobs.procrastinate_workers IN EXCLUSIVE MODE"
    if "raw" in here.sides:
        locks += "; LOCK TABLE raw_jobs.procrastinate_workers IN EXCLUSIVE MODE"
    await _hold(here, locks)


async def _hold(here: Field, locks: str) -> None:
    async with await psycopg.AsyncConnection.connect(here.site.admin_url) as conn:
        await conn.execute(locks.encode())
        await asyncio.sleep(12)


CELLS: Mapping[str, Chaos] = {
    "Postgres restarted": restarted,
    "Postgres crashed": crashed,
    "backends killed ten times": backends_killed,
    "workers killed ten times": workers_killed,
    "a worker frozen past its lease": worker_frozen,
    "a session idle in its transaction for 60 s": idle_in_transaction,
    "a burst of 2,000 jobs": burst,
    "the queue's table locked for 12 s": queue_locked,
    "the heartbeats' table locked for 12 s": heartbeats_locked,
}


@dataclass(frozen=True)
class Seen:
    """How a side recovered: its rate at the end of the 30 s, as a fraction of the rate before, for
    each kind of job."""

    side: str
    ratios: Mapping[str, float]


async def open_field(stack: AsyncExitStack, sides: Sequence[str]) -> Field:
    """Starts Postgres with the queues and the workers, and the tasks that keep the queues full and
    the workers alive."""
    site = stack.enter_context(Site())
    site.sql(naps.TABLES)
    if "raw" in sides:
        schema = (importlib.resources.files("procrastinate.sql") / "schema.sql").read_text(
            encoding="utf-8"
        )
        site.sql(
            f"CREATE SCHEMA {naps.RAW_SCHEMA}; SET search_path = {naps.RAW_SCHEMA};"
            f" {schema.replace('%', '%%')}"
        )
        for what in ("ALL TABLES", "ALL SEQUENCES", "ALL FUNCTIONS"):
            site.sql(f"GRANT ALL ON {what} IN SCHEMA {naps.RAW_SCHEMA} TO assets_worker")
        site.sql(f"GRANT USAGE ON SCHEMA {naps.RAW_SCHEMA} TO assets_worker")
    here = Field(site, sides)
    here.start_workers()
    for endless in (here.feed(), here.supervise()):
        task = asyncio.create_task(endless)
        stack.push_async_callback(_end, task)
    return here


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])


async def baseline(here: Field) -> dict[str, dict[str, float]]:
    """Returns each side's work per window without failures, by kind of job: the median of four
    windows."""
    await asyncio.sleep(_WARM_SECONDS)
    begun = await here.now()
    await asyncio.sleep(
        4 * WINDOW + SECONDS["long"]
    )  # jobs of 20 s that run in the last window end, too
    windows = [begun + number * WINDOW for number in range(4)]
    return {
        side: {name: statistics.median(await _done(here, side, name, windows)) for name in SECONDS}
        for side in here.sides
    }


async def cell(here: Field, chaos: Chaos, before: Mapping[str, Mapping[str, float]]) -> list[Seen]:
    """Causes one failure, and measures the rate 30 s after it."""
    await chaos(here)
    over = await here.now()
    await asyncio.sleep(WITHIN + SECONDS["long"] + 1)
    windows = [over + WITHIN - (number + 1) * WINDOW for number in range(_LAST)]
    return [
        Seen(
            side,
            {
                name: max(await _done(here, side, name, windows)) / before[side][name]
                for name in SECONDS
            },
        )
        for side in here.sides
    ]


async def _done(here: Field, side: str, name: str, windows: Sequence[float]) -> list[float]:
    """Returns for each window the number of ended jobs of 50 ms, or the seconds in it that were
    spent on jobs of 20 s that ended."""
    rows = await here.sql(_DONE_OURS if side == "ours" else _DONE_RAW)
    ends = [float(at) for at, seconds, _worker in rows if seconds == SECONDS[name]]
    if name == "short":
        return [float(sum(begin <= at < begin + WINDOW for at in ends)) for begin in windows]
    spans = [(at - SECONDS[name], at) for at in ends]
    return [
        sum(max(0.0, min(end, begin + WINDOW) - max(start, begin)) for start, end in spans)
        for begin in windows
    ]


async def failed(here: Field) -> list[tuple[Any, ...]]:
    """Returns our FAILED jobs: there should be none, whatever broke."""
    return await here.sql(
        "SELECT id, error_class, error_message FROM assets.naps WHERE state = 'failed'"
    )


def queues(report: Report) -> list[Figure]:
    """Measures R26."""
    return asyncio.run(_queues(report))


async def _queues(report: Report) -> list[Figure]:
    figures: list[Figure] = []
    async with AsyncExitStack() as stack:
        here = await open_field(stack, SIDES)
        report("the rate before")
        before = await baseline(here)
        for what, chaos in CELLS.items():
            report(what)
            began = time.monotonic()
            ours, raw = await cell(here, chaos, before)
            took = time.monotonic() - began
            for name, seconds in SECONDS.items():
                figures.append(
                    Figure(
                        "R26",
                        f"{what}, jobs of {seconds:g} s: rate within 30 s / before;"
                        " Procrastinate's",
                        "x",
                        ours.ratios[name],
                        TARGET,
                        raw.ratios[name],
                        ours.ratios[name],
                        at_most=False,
                        note=f"{took:.0f} s",
                    )
                )
        lost = len(await failed(here))
    return [*figures, Figure("R26", "jobs FAILED for any of it", "jobs", lost, 0)]
