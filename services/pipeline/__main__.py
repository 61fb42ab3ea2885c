"""Runs `pipeline` as a process: `python -m services.pipeline serve | work | migrate`."""

import asyncio
import functools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from atelier.owners.v1 import owner_pb2_grpc
from atelier.pipeline.v1 import (
    log_pb2,
    log_pb2_grpc,
    phase_pause_pb2_grpc,
    phase_pb2,
    phase_pb2_grpc,
    price_book_pb2_grpc,
    product_pb2,
    product_pb2_grpc,
    result_pb2,
    review_desk_pb2_grpc,
    review_pb2,
    review_pb2_grpc,
)
from atelier.webhooks.v1 import webhook_pb2_grpc

from services.pipeline import (
    drafting,
    holding,
    logs,
    phase_pauses,
    phases,
    preparing,
    price_book,
    products,
    progress,
    review_desk,
    review_metrics,
    reviews,
    runner,
    trashing,
)
from services.pipeline.log_pruning import LogPruner
from services.pipeline.researching import MarketResearch
from services.pipeline.reviewing import ReviewPolicy
from shared import main, webhooks
from shared.background import jobs, leases
from shared.background.watches import EventStream
from shared.database.db import Database
from shared.erasing.eraser import Eraser, Holdings
from shared.erasing.follower import Follower
from shared.erasing.metrics import watch_erasures
from shared.erasing.service import OwnerService
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
        "purged_product": product_pb2.PurgedProduct,
    },
)


@asynccontextmanager
async def service(name: str, settings: Settings) -> AsyncIterator[server.Service]:
    db = Database(settings, name)
    stream = EventStream(db)
    peers = Peers(settings, name)
    hooks = webhooks.WebhookService(db, settings, EVENTS)
    queue = jobs.JobQueue(db)
    flows = progress.Progress(queue, _review_policy(settings))
    drafts = drafting.Drafts(db, peers)
    register = [
        functools.partial(
            product_pb2_grpc.add_ProductServiceServicer_to_server,
            products.ProductService(db, stream, queue, flows, peers, drafts),
        ),
        functools.partial(
            phase_pb2_grpc.add_PhaseServiceServicer_to_server,
            phases.PhaseService(db, flows, queue, peers),
        ),
        functools.partial(
            phase_pause_pb2_grpc.add_PhasePauseServiceServicer_to_server,
            phase_pauses.PhasePauseService(db),
        ),
        functools.partial(
            review_pb2_grpc.add_ReviewServiceServicer_to_server, reviews.ReviewService(db, flows)
        ),
        functools.partial(
            review_desk_pb2_grpc.add_ReviewDeskServiceServicer_to_server,
            review_desk.ReviewDeskService(db, peers),
        ),
        functools.partial(log_pb2_grpc.add_LogServiceServicer_to_server, logs.LogService(db)),
        functools.partial(
            price_book_pb2_grpc.add_PriceBookServiceServicer_to_server,
            price_book.PriceBookService(db),
        ),
        functools.partial(webhook_pb2_grpc.add_WebhookServiceServicer_to_server, hooks),
        functools.partial(owner_pb2_grpc.add_OwnerServiceServicer_to_server, OwnerService(db)),
    ]
    follower = Follower(db, peers)
    await db.open()
    stream.start()
    await follower.start()
    try:
        yield server.Service(name=name, register=register, ready=db.ready, drain=stream.drain)
    finally:
        await drafts.close()
        await follower.close()
        await stream.close()
        await hooks.close()
        await peers.close()
        await db.close()


def _review_policy(settings: Settings) -> ReviewPolicy:
    return ReviewPolicy(
        below={
            1: settings.review_below_analysis,
            2: settings.review_below_market,
            3: settings.review_below_seo,
            4: settings.review_below_listing,
        },
        sample=settings.review_sample,
        decisions=settings.review_decisions,
        due_in=timedelta(hours=settings.review_due_hours) if settings.review_due_hours else None,
    )


async def work(name: str, settings: Settings) -> None:
    db = Database(settings, name)
    queue = jobs.JobQueue(db)
    peers = Peers(settings, name)
    flows = progress.Progress(queue, _review_policy(settings))
    queue.task(
        progress.PREPARE_TASK, progress.PREPARE_QUEUE, preparing.Preparer(db, flows, peers).run
    )
    market = MarketResearch(db, settings)
    queue.task(progress.TASK, progress.QUEUE, runner.PhaseRunner(db, flows, peers, market).run)
    holding.Holder(db, queue, peers)
    try:
        async with asyncio.TaskGroup() as group:
            eraser = Eraser(db, peers, Holdings())
            endless = (
                eraser.run(),
                watch_erasures(db),
                trashing.Upkeep(db, queue).run_forever(),
                drafting.sweep(db, peers),
                review_metrics.watch_reviews(db),
                LogPruner(db, settings).run_forever(),
            )
            group.create_task(main.work(db, queue, settings, EVENTS, *endless))
            lease_check = settings.job_lease_seconds / 3
            reaping = leases.reap(db, progress.JOBS, progress.expire_lease, lease_check)
            group.create_task(reaping)
    finally:
        await market.close()
        await peers.close()


if __name__ == "__main__":
    main.run(NAME, service=service, work=work, arguments=sys.argv[1:])
