"""Runs `pipeline` as a process: `python -m services.pipeline serve | work | migrate`."""

import asyncio
import functools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from atelier.pipeline.v1 import (
    log_pb2,
    log_pb2_grpc,
    phase_pb2,
    phase_pb2_grpc,
    price_book_pb2_grpc,
    product_pb2,
    product_pb2_grpc,
    result_pb2,
    review_pb2,
    review_pb2_grpc,
)
from atelier.webhooks.v1 import webhook_pb2_grpc

from services.pipeline import (
    logs,
    phases,
    preparing,
    price_book,
    products,
    progress,
    reviews,
    runner,
)
from shared import main, webhooks
from shared.background import jobs, leases
from shared.background.watches import EventStream
from shared.database.db import Database
from shared.rpc import server
from shared.rpc.calls import Peers
from shared.settings import Settings

NAME = "pipeline"
EVENTS = webhooks.EventTypes(
    NAME,
    {
        "product": product_pb2.Product,
        "phase": phase_pb2.Phase,
        "result": result_pb2.PhaseResult,
        "review": review_pb2.Review,
        "log": log_pb2.LogEntry,
    },
)


@asynccontextmanager
async def service(name: str, settings: Settings) -> AsyncIterator[server.Service]:
    db = Database(settings, name)
    stream = EventStream(db)
    peers = Peers(settings, name)
    hooks = webhooks.WebhookService(db, settings, EVENTS)
    flows = progress.Progress(jobs.JobQueue(db))
    register = [
        functools.partial(
            product_pb2_grpc.add_ProductServiceServicer_to_server,
            products.ProductService(db, stream, flows, peers),
        ),
        functools.partial(
            phase_pb2_grpc.add_PhaseServiceServicer_to_server, phases.PhaseService(db, flows)
        ),
        functools.partial(
            review_pb2_grpc.add_ReviewServiceServicer_to_server, reviews.ReviewService(db, flows)
        ),
        functools.partial(log_pb2_grpc.add_LogServiceServicer_to_server, logs.LogService(db)),
        functools.partial(
            price_book_pb2_grpc.add_PriceBookServiceServicer_to_server,
            price_book.PriceBookService(db),
        ),
        functools.partial(webhook_pb2_grpc.add_WebhookServiceServicer_to_server, hooks),
    ]
    await db.open()
    stream.start()
    try:
        yield server.Service(name=name, register=register, ready=db.ready, drain=stream.drain)
    finally:
        await stream.close()
        await hooks.close()
        await peers.close()
        await db.close()


async def work(name: str, settings: Settings) -> None:
    db = Database(settings, name)
    queue = jobs.JobQueue(db)
    peers = Peers(settings, name)
    flows = progress.Progress(queue)
    queue.task(
        progress.PREPARE_TASK, progress.PREPARE_QUEUE, preparing.Preparer(db, flows, peers).run
    )
    queue.task(progress.TASK, progress.QUEUE, runner.PhaseRunner(db, flows, peers).run)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(main.work(db, queue, settings, EVENTS))
            lease_check = settings.job_lease_seconds / 3
            reaping = leases.reap(db, progress.JOBS, progress.expire_lease, lease_check)
            group.create_task(reaping)
    finally:
        await peers.close()


if __name__ == "__main__":
    main.run(NAME, service=service, work=work, arguments=sys.argv[1:])
