"""Runs `conversions` as a process: `python -m services.conversions serve | work | migrate`."""

import asyncio
import functools
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import grpc
from atelier.conversions.v1 import (
    analysis_pb2,
    analysis_pb2_grpc,
    batch_pb2,
    batch_pb2_grpc,
    consent_pb2,
    consent_pb2_grpc,
    conversion_pb2,
    conversion_pb2_grpc,
    credit_pb2_grpc,
    dataset_pb2,
    dataset_pb2_grpc,
    dead_job_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    job_pb2_grpc,
    lineage_pb2_grpc,
    marking_pb2_grpc,
    provider_pb2_grpc,
    retention_pb2_grpc,
    statistics_pb2_grpc,
    work_pb2_grpc,
)
from atelier.owners.v1 import owner_pb2_grpc
from atelier.webhooks.v1 import webhook_pb2_grpc

from services.conversions import (
    analyses,
    analysis_rows,
    batches,
    batching,
    claimed_work,
    consenting,
    consents,
    conversion_rows,
    conversions,
    credit_rows,
    credits,
    datasets,
    dead_jobs,
    generation_rows,
    generations,
    holding,
    job_moves,
    jobs,
    ledger,
    lineage,
    marks,
    metrics,
    outside,
    owner_holdings,
    prices,
    retention,
    retention_rows,
    revoking,
    statistics,
    upkeep,
)
from services.conversions.local import vision
from services.conversions.provider_service import ProviderService
from services.conversions.providers import registry
from services.conversions.providers.local import LocalProvider
from services.conversions.providers.routes import Routes
from services.conversions.runs.analysis import run_analysis
from services.conversions.runs.asking import Providers
from services.conversions.runs.conversion import run_conversion
from services.conversions.runs.generation import run_generation
from services.conversions.runs.marking import Marker, open_marker
from services.conversions.runs.runner import Runner
from services.conversions.spending import Spending
from shared import main, webhooks
from shared.background import leases
from shared.background.jobs import JobQueue
from shared.background.watches import EventStream
from shared.database.db import Database
from shared.erasing.eraser import Eraser
from shared.erasing.follower import Follower
from shared.erasing.metrics import watch_erasures
from shared.erasing.service import OwnerService
from shared.imaging import ImagingPool, Limits
from shared.rpc import server
from shared.rpc.calls import Peers
from shared.settings import Settings, WrongSetting, fonts

NAME = "conversions"
EVENTS = webhooks.EventTypes(
    NAME,
    {
        "conversion": conversion_pb2.Conversion,
        "generation": generation_pb2.Generation,
        "analysis": analysis_pb2.Analysis,
        "purged_conversion": conversion_pb2.PurgedConversion,
        "purged_generation": generation_pb2.PurgedGeneration,
        "purged_analysis": analysis_pb2.PurgedAnalysis,
        "dataset": dataset_pb2.Dataset,
        "purged_dataset": dataset_pb2.PurgedDataset,
        "consent": consent_pb2.Consent,
        "batch": batch_pb2.Batch,
        "purged_batch": batch_pb2.PurgedBatch,
    },
)


@asynccontextmanager
async def service(name: str, settings: Settings) -> AsyncIterator[server.Service]:
    db = Database(settings, name)
    stream = EventStream(db)
    queue = JobQueue(db)
    peers = Peers(settings, name)
    routes = registry.routes(settings)
    life = timedelta(days=settings.trash_days)
    dataset_service = datasets.DatasetService(db, stream, queue, peers, life=life)
    spending = _spending(settings, routes)
    job_service = jobs.JobService(db, queue, peers, spending, settings.job_lease_seconds)
    add_dataset = dataset_pb2_grpc.add_DatasetServiceServicer_to_server
    add_lineage = lineage_pb2_grpc.add_LineageServiceServicer_to_server
    add_marking = marking_pb2_grpc.add_MarkingServiceServicer_to_server
    add_provider = provider_pb2_grpc.add_ProviderServiceServicer_to_server
    add_retention = retention_pb2_grpc.add_RetentionServiceServicer_to_server
    add_statistics = statistics_pb2_grpc.add_StatisticsServiceServicer_to_server
    add_work = work_pb2_grpc.add_WorkServiceServicer_to_server
    provider_service = ProviderService(db, settings, routes)
    hooks = webhooks.WebhookService(db, settings, EVENTS)
    # Their processes start with the first file.
    pool, marker = ImagingPool(1), open_marker(settings)
    follower = Follower(db, peers)
    await db.open()
    stream.start()
    await follower.start()
    try:
        yield server.Service(
            name=name,
            register=[
                *_priced(db, stream, queue, peers, spending),
                functools.partial(job_pb2_grpc.add_JobServiceServicer_to_server, job_service),
                functools.partial(add_dataset, dataset_service),
                functools.partial(add_statistics, statistics.StatisticsService(db, peers)),
                functools.partial(add_provider, provider_service),
                functools.partial(add_work, claimed_work.WorkService(db, queue, peers)),
                functools.partial(add_lineage, lineage.LineageService(db, peers)),
                functools.partial(add_marking, _marking(db, peers, pool, marker)),
                functools.partial(add_retention, retention.RetentionService(db)),
                functools.partial(webhook_pb2_grpc.add_WebhookServiceServicer_to_server, hooks),
                functools.partial(
                    consent_pb2_grpc.add_ConsentServiceServicer_to_server,
                    consents.ConsentService(db, stream, queue, peers),
                ),
                functools.partial(
                    owner_pb2_grpc.add_OwnerServiceServicer_to_server, OwnerService(db)
                ),
            ],
            ready=db.ready,
            drain=stream.drain,
        )
    finally:
        await follower.close()
        await stream.close()
        await provider_service.close()
        await hooks.close()
        await pool.close()
        if marker:
            await marker.close()
        await peers.close()
        await db.close()


def _marking(
    db: Database, peers: Peers, pool: ImagingPool, marker: Marker | None
) -> marks.MarkingService:
    settings = db.settings
    limits = Limits(image_bytes=settings.max_image_bytes, pixels=settings.max_pixels)
    anchors = settings.c2pa_trust_anchors
    trusted = anchors.read_text() if anchors else ""
    return marks.MarkingService(db, peers, pool, limits, trusted, marker, fonts(settings.fonts))


def _priced(
    db: Database, stream: EventStream, queue: JobQueue, peers: Peers, spending: Spending
) -> list[Callable[[grpc.aio.Server], None]]:
    """Returns what registers the services of the three kinds of jobs, their batches and prices."""
    shared = (db, stream, queue, peers, spending)
    kept = timedelta(days=db.settings.trash_days), retention_rows.of_settings(db.settings)
    patience = db.settings.thumbnail_wait_seconds
    conversion_service = conversions.ConversionService(*shared, patience, *kept)
    generation_service = generations.GenerationService(*shared, patience, *kept)
    analysis_service = analyses.AnalysisService(*shared, *kept)
    batch_service = batches.BatchService(*shared)
    quotable: credits.Quotable = {
        "conversion": conversion_service.offer,
        "generation": generation_service.offer,
        "regeneration": generation_service.offer_again,
        "analysis": analysis_service.offer,
    }
    credit_service = credits.CreditService(db, spending, quotable)
    add_analysis = analysis_pb2_grpc.add_AnalysisServiceServicer_to_server
    add_batch = batch_pb2_grpc.add_BatchServiceServicer_to_server
    add_conversion = conversion_pb2_grpc.add_ConversionServiceServicer_to_server
    add_credit = credit_pb2_grpc.add_CreditServiceServicer_to_server
    add_generation = generation_pb2_grpc.add_GenerationServiceServicer_to_server
    add_dead_job = dead_job_pb2_grpc.add_DeadJobServiceServicer_to_server
    return [
        functools.partial(add_conversion, conversion_service),
        functools.partial(add_generation, generation_service),
        functools.partial(add_analysis, analysis_service),
        functools.partial(add_credit, credit_service),
        functools.partial(add_batch, batch_service),
        functools.partial(add_dead_job, dead_jobs.DeadJobService(db, queue, spending)),
    ]


def _spending(settings: Settings, routes: Routes) -> Spending:
    try:
        table = prices.load_prices(settings.model_prices_file)
    except prices.PricesProblem as problem:
        raise WrongSetting(str(problem)) from None
    return Spending(credit_rows.limits_of(settings), table, routes)


async def work(name: str, settings: Settings) -> None:
    try:
        models = vision.models_in(settings.vision_models)
    except vision.NotInstalled as problem:
        sys.exit(f"atelier: ATELIER_VISION_MODELS: {problem}")
    marker = open_marker(settings)
    if marker:
        await marker.try_certificate()
    db = Database(settings, name)
    pool = ImagingPool(settings.imaging_processes)
    peers = Peers(settings, name)
    queue = JobQueue(db)
    routes = registry.routes(settings)
    consenting.required(settings)
    local = LocalProvider(pool, models)
    opened = registry.open_providers(settings, pool, local)
    providers = Providers(db, settings, routes, opened)
    spending = _spending(settings, routes)
    runner = Runner(db, queue, peers, providers, local, spending, marker)
    batching.Conductor(db, queue, spending)
    runner.register(conversion_rows.KIND, run_conversion)
    runner.register(generation_rows.KIND, run_generation)
    runner.register(analysis_rows.KIND, run_analysis)
    holder = holding.Holder(db, queue, peers)
    revoker = revoking.Revoker(db, queue, peers)
    for provider, limit in routes.limits(settings).items():
        queue.add_queue(job_moves.queue_of(provider), limit)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(
                main.work(
                    db,
                    queue,
                    settings,
                    EVENTS,
                    holder.purge_expired_forever(),
                    revoker.tell_expiries_forever(),
                    upkeep.Upkeep(db, queue, settings).run_forever(),
                    Eraser(db, peers, owner_holdings.holdings(db, providers.give_up)).run(),
                    watch_erasures(db),
                    ledger.check_forever(db, settings.ledger_check_minutes * 60),
                    metrics.watch_providers(db, routes),
                    metrics.watch_jobs(db),
                    job_moves.adopt_jobs_forever(db, routes),
                )
            )
            if routes.hosted:
                group.create_task(providers.wakes.listen())
            for table in job_moves.job_tables(queue).values():
                expire = functools.partial(outside.expire_lease, table)
                reaping = leases.reap(db, table, expire, settings.job_lease_seconds / 3)
                group.create_task(reaping)
    finally:
        for each in opened.values():
            await each.close()
        if marker:
            await marker.close()
        await peers.close()
        await pool.close()


if __name__ == "__main__":
    main.run(NAME, service=service, work=work, arguments=sys.argv[1:])
