"""Runs `conversions` as a process: `python -m services.conversions serve | work | migrate`."""

import asyncio
import functools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from atelier.conversions.v1 import (
    analysis_pb2,
    analysis_pb2_grpc,
    conversion_pb2,
    conversion_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    job_pb2_grpc,
)
from atelier.webhooks.v1 import webhook_pb2_grpc

from services.conversions import (
    analyses,
    analysis_rows,
    conversion_rows,
    conversions,
    generation_rows,
    generations,
    job_moves,
    jobs,
    outside,
)
from services.conversions.providers.local import LocalProvider
from services.conversions.runs.analysis import run_analysis
from services.conversions.runs.conversion import run_conversion
from services.conversions.runs.generation import run_generation
from services.conversions.runs.runner import Runner
from shared import main, webhooks
from shared.background import leases
from shared.background.jobs import JobQueue
from shared.background.watches import EventStream
from shared.database.db import Database
from shared.imaging import ImagingPool
from shared.rpc import server
from shared.rpc.calls import Peers
from shared.settings import Settings

NAME = "conversions"
EVENTS = webhooks.EventTypes(
    NAME,
    {
        "conversion": conversion_pb2.Conversion,
        "generation": generation_pb2.Generation,
        "analysis": analysis_pb2.Analysis,
    },
)


@asynccontextmanager
async def service(name: str, settings: Settings) -> AsyncIterator[server.Service]:
    db = Database(settings, name)
    stream = EventStream(db)
    queue = JobQueue(db)
    peers = Peers(settings, name)
    conversion_service = conversions.ConversionService(db, stream, queue, peers)
    generation_service = generations.GenerationService(db, stream, queue, peers)
    analysis_service = analyses.AnalysisService(db, stream, queue, peers)
    job_service = jobs.JobService(db, queue, peers, settings.job_lease_seconds)
    add_analysis = analysis_pb2_grpc.add_AnalysisServiceServicer_to_server
    add_conversion = conversion_pb2_grpc.add_ConversionServiceServicer_to_server
    add_generation = generation_pb2_grpc.add_GenerationServiceServicer_to_server
    hooks = webhooks.WebhookService(db, settings, EVENTS)
    await db.open()
    stream.start()
    try:
        yield server.Service(
            name=name,
            register=[
                functools.partial(add_conversion, conversion_service),
                functools.partial(add_generation, generation_service),
                functools.partial(add_analysis, analysis_service),
                functools.partial(job_pb2_grpc.add_JobServiceServicer_to_server, job_service),
                functools.partial(webhook_pb2_grpc.add_WebhookServiceServicer_to_server, hooks),
            ],
            ready=db.ready,
            drain=stream.drain,
        )
    finally:
        await stream.close()
        await hooks.close()
        await peers.close()
        await db.close()


async def work(name: str, settings: Settings) -> None:
    db = Database(settings, name)
    pool = ImagingPool(settings.imaging_processes)
    peers = Peers(settings, name)
    queue = JobQueue(db)
    # These lines say which provider serves which kind of job.
    local = LocalProvider(pool)
    runner = Runner(db, queue, peers)
    runner.register(conversion_rows.KIND, local, run_conversion)
    runner.register(generation_rows.KIND, local, run_generation)
    runner.register(analysis_rows.KIND, local, run_analysis)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(main.work(db, queue, settings, EVENTS))
            for table in job_moves.job_tables(queue).values():
                expire = functools.partial(outside.expire_lease, table)
                reaping = leases.reap(db, table, expire, settings.job_lease_seconds / 3)
                group.create_task(reaping)
    finally:
        await peers.close()
        await pool.close()


if __name__ == "__main__":
    main.run(NAME, service=service, work=work, arguments=sys.argv[1:])
