"""The shared part of the four services' `__main__`: the three commands, the storage, the worker's
side tasks."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
import uvloop

from shared import telemetry, webhooks
from shared.background import events
from shared.background import metrics as job_metrics
from shared.background.jobs import JobQueue
from shared.background.tasks import not_cancelled
from shared.database import db
from shared.rpc import server
from shared.settings import STORAGE_HTTP_PORT, Settings, WrongSetting, load
from shared.storage import Storage, open_disk, open_s3, read_secret

_USAGE = "usage: python -m services.{name} serve | work | migrate   (settings: `atelier settings`)"
_HOUSEKEEPING_SECONDS = 600.0
_STOP_SECONDS = 12.0
_NICENESS = 5  # calls have priority: somebody waits for them, and nobody for a worker
_log = structlog.get_logger("main")

Command = Callable[[str, Settings], Coroutine[Any, Any, None]]


def run(name: str, *, service: server.Opener, work: Command, arguments: Sequence[str]) -> None:
    """Runs the command named on the command line. Exits with status 1 and one line if the usage is
    wrong or the command can't start. Raises pydantic.ValidationError for a wrong setting."""
    if len(arguments) != 1 or arguments[0] not in ("serve", "work", "migrate"):
        sys.exit(_USAGE.format(name=name))
    settings = load(name)
    try:
        if arguments[0] == "serve":
            server.run(name, settings, service)
        elif arguments[0] == "work":
            telemetry.set_up(name, settings.log_level)
            uvloop.run(run_workers([(name, settings, work)]))
        else:
            migrate_from_settings(name, settings)
    except WrongSetting as problem:
        sys.exit(f"atelier: {problem}")


def migrate_from_settings(name: str, settings: Settings) -> None:
    from shared.database.migrate import MigrationFailed, migrate

    try:
        migrate(
            name,
            settings.database_url.get_secret_value(),
            settings.app_password.get_secret_value(),
            settings.worker_password.get_secret_value(),
        )
    except MigrationFailed as problem:
        sys.exit(f"atelier: {problem}")


async def run_workers(workers: Sequence[tuple[str, Settings, Command]]) -> None:
    """Runs the background work of some services in this process until SIGTERM or SIGINT."""
    os.nice(_NICENESS)
    if sys.platform == "linux":
        # A batch process doesn't preempt processes that serve calls.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    _, first, _ = workers[0]
    telemetry.serve_metrics(first.host, first.worker_metrics_port, 1)
    tasks = [asyncio.create_task(work(name, settings)) for name, settings, work in workers]
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    ended, stuck = await asyncio.wait(tasks, timeout=_STOP_SECONDS)
    if stuck:
        # A task that waits for a database that is gone would wait for ever, and then work in the
        # next suite. After the leases expire, other workers take over its jobs.
        _log.error("work did not end in time; leaving it", seconds=_STOP_SECONDS)
        os._exit(1)
    faults = [error for task in ended if not task.cancelled() and (error := task.exception())]
    if faults:
        raise faults[0]


async def work(
    database: db.Database,
    queue: JobQueue,
    settings: Settings,
    types: webhooks.EventTypes,
    *endless: Coroutine[Any, Any, None],
) -> None:
    """Runs a service's background work: its queue, the sequencer of its events, its webhooks, the
    pruning of rows past their retention, the job metrics, and the coroutines `endless`."""
    await database.open()
    try:
        async with asyncio.TaskGroup() as group:
            for each in endless:
                group.create_task(each)
            group.create_task(events.run_sequencer(database))
            group.create_task(webhooks.run(database, settings, types))
            group.create_task(_prune(database, settings))
            group.create_task(job_metrics.watch_waits(database))
            group.create_task(job_metrics.watch_queues(database))
            group.create_task(
                queue.work(
                    concurrency=settings.worker_concurrency,
                    lease_seconds=settings.job_lease_seconds,
                )
            )
    finally:
        await database.close()


async def _prune(database: db.Database, settings: Settings) -> None:
    while not_cancelled():
        await asyncio.sleep(_HOUSEKEEPING_SECONDS)
        try:
            await events.prune_events(database, timedelta(hours=settings.event_retention_hours))
            await db.forget_answers(database, timedelta(hours=settings.answer_retention_hours))
            await webhooks.prune(database, settings)
        except Exception as error:
            _log.warning("pruning waits", service=database.service, error=type(error).__name__)


def open_storage(settings: Settings) -> Storage:
    if settings.storage == "s3":
        return open_s3(
            endpoint=settings.s3_endpoint,
            public_endpoint=settings.s3_public_endpoint or settings.s3_endpoint,
            bucket=settings.s3_bucket,
            region=settings.s3_region,
            access_key=settings.s3_access_key.get_secret_value(),
            secret_key=settings.s3_secret_key.get_secret_value(),
            public_base_url=settings.public_url or None,
        )
    return open_disk(
        Path(settings.storage_root),
        base_url=settings.storage_url or f"http://127.0.0.1:{STORAGE_HTTP_PORT}",
        secret=read_secret(settings.storage_secret_file),
        public_base_url=settings.public_url or None,
    )
