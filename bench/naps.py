"""A worker whose jobs only sleep: `python -m bench.naps ours|raw`, with the settings of a worker of
assets.

`ours` is the queue of the suite with attempts, leases and fencing. `raw` is Procrastinate as it is
documented: a task that is retried, and a periodic task that puts stalled jobs back.
"""

import asyncio
import signal
import sys
from dataclasses import dataclass
from functools import partial

import procrastinate
import uvloop

from shared import telemetry
from shared.background import attempts
from shared.background.job_tables import JobRow, JobTable
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.database.rows import Table
from shared.settings import load

SLOTS = {
    "short": 1,
    "long": 8,
}  # per process; JobQueue gives a queue that is apart eight times as many slots
RAW_SCHEMA = "raw_jobs"
TABLES = """
    CREATE TABLE assets.naps (
        id uuid PRIMARY KEY, owner text NOT NULL, seconds float8 NOT NULL,
            state text NOT NULL DEFAULT 'pending',
        version bigint NOT NULL DEFAULT 1, attempt_token uuid,
            attempt_number int NOT NULL DEFAULT 0,
        faults int NOT NULL DEFAULT 0, losses int NOT NULL DEFAULT 0,
            waits_for text NOT NULL DEFAULT '',
        waiting_since timestamptz, cancel_requested bool NOT NULL DEFAULT false,
            error_class text NOT NULL DEFAULT '',
        error_message text NOT NULL DEFAULT '', updated_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE assets.raw_naps (seconds float8 NOT NULL,
        ended_at timestamptz NOT NULL DEFAULT now());
    GRANT ALL ON assets.naps, assets.raw_naps TO assets_app, assets_worker;
"""
MACHINE = {
    "pending": frozenset({"running", "failed"}),
    "running": frozenset({"running", "pending", "done", "failed"}),
    "done": frozenset[str](),
    "failed": frozenset[str](),
}


@dataclass(slots=True)
class Nap(JobRow):
    seconds: float


async def publish(_m: Mutation, _nap: Nap) -> None: ...


NAPS = JobTable(Table("naps", Nap), MACHINE, "running", "done", publish)


async def run(db: Database, row_id: str) -> None:
    """Runs one attempt at the nap."""

    async def sleep(attempt: attempts.Attempt[Nap]) -> attempts.Outcome[Nap]:
        await asyncio.sleep(attempt.row.seconds)
        return attempts.Outcome({})

    await attempts.run(db, NAPS, row_id, sleep)


def queue_of(db: Database) -> JobQueue:
    queue = JobQueue(db)
    queue.task("short", "short", partial(run, db))
    queue.task("long", "long", partial(run, db), apart=True)
    return queue


async def ours() -> None:
    settings = load("assets")
    db = Database(settings, "assets")
    await db.open()
    try:
        await queue_of(db).work(
            concurrency=SLOTS["short"], lease_seconds=settings.job_lease_seconds
        )
    finally:
        await db.close()


def raw_app(url: str) -> procrastinate.App:
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(
            conninfo=url,
            kwargs={"options": f"-c search_path={RAW_SCHEMA}"},
            min_size=1,
            max_size=10,
        )
    )

    async def nap(seconds: float) -> None:
        await asyncio.sleep(seconds)
        statement = "INSERT INTO assets.raw_naps (seconds) VALUES (%(seconds)s)"
        await app.connector.execute_query_async(statement, seconds=seconds)

    for name in SLOTS:
        app.task(
            name=name,
            queue=f"raw.{name}",
            retry=procrastinate.RetryStrategy(max_attempts=100, wait=1),
        )(nap)

    @app.periodic(cron="* * * * * */5")
    @app.task(name="put_back", queue="raw.short", pass_context=True)
    async def put_back(_context: procrastinate.JobContext, timestamp: int) -> None:
        for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=5):
            await app.job_manager.retry_job(job)

    return app


async def raw() -> None:
    app = raw_app(load("assets").database_url.get_secret_value())
    async with app.open_async(), asyncio.TaskGroup() as group:
        for name, slots in SLOTS.items():
            group.create_task(
                app.run_worker_async(
                    queues=[f"raw.{name}"],
                    concurrency=slots,
                    fetch_job_polling_interval=1,
                    update_heartbeat_interval=1.5,
                    stalled_worker_timeout=5,
                    delete_jobs="successful",
                    install_signal_handlers=False,
                )
            )


async def main(side: str) -> None:
    working = asyncio.create_task(ours() if side == "ours" else raw())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, working.cancel)
    await asyncio.wait([working])
    if not working.cancelled() and (error := working.exception()):
        raise error


if __name__ == "__main__":
    telemetry.set_up("naps", "warning")
    uvloop.run(main(sys.argv[1]))
