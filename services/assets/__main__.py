"""`python -m services.assets serve | work | migrate`: assets as processes."""

import asyncio
import functools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from atelier.assets.v1 import (
    asset_pb2_grpc,
    quota_pb2_grpc,
    storage_report_pb2_grpc,
    upload_pb2_grpc,
    variant_pb2_grpc,
)

from services.assets import assets, costs, quotas, storage_report, storage_usage, uploads, variants
from services.assets.meter import Meter
from services.assets.storage_metrics import StorageCollector
from shared import jobs, main, server, telemetry
from shared.db import Database
from shared.events import EventStream
from shared.imaging import ImagingPool, Limits
from shared.settings import Settings

NAME = "assets"


@asynccontextmanager
async def service(name: str, settings: Settings) -> AsyncIterator[server.Service]:
    db = Database(settings, name)
    storage = main.open_storage(settings)
    stream = EventStream(db)
    queue = jobs.JobQueue(db)
    pool = ImagingPool(settings.imaging_processes)
    meter = Meter(db)
    urls = assets.Urls(storage, timedelta(minutes=settings.download_url_minutes), meter)
    quota = quotas.Quotas(settings)
    limits = Limits(settings.max_image_bytes, settings.max_pdf_bytes, settings.max_pixels)
    asset_service = assets.AssetService(db, stream, storage, urls)
    upload_service = uploads.UploadService(
        db, storage, queue, pool, urls,
        url_life=timedelta(minutes=settings.upload_url_minutes), limits=limits, quota=quota,
    )  # fmt: skip
    variant_service = variants.VariantService(db, queue, urls)
    report_service = storage_report.StorageReportService(db, quota, _prices(settings))
    collector = StorageCollector(db, quota)
    await db.open()
    stream.start()
    meter.start()
    telemetry.METRICS.register(collector)
    try:
        yield server.Service(
            name=name,
            register=[
                functools.partial(asset_pb2_grpc.add_AssetServiceServicer_to_server, asset_service),
                functools.partial(upload_pb2_grpc.add_UploadServiceServicer_to_server, upload_service),
                functools.partial(variant_pb2_grpc.add_VariantServiceServicer_to_server, variant_service),
                functools.partial(storage_report_pb2_grpc.add_StorageReportServiceServicer_to_server, report_service),
                functools.partial(quota_pb2_grpc.add_QuotaServiceServicer_to_server, quotas.QuotaService(db, quota)),
            ],
            ready=db.ready,
            drain=stream.drain,
        )
    finally:
        telemetry.METRICS.unregister(collector)
        await stream.close()
        await meter.close()
        await pool.close()
        await storage.close()
        await db.close()


def _prices(settings: Settings) -> costs.Prices:
    try:
        return costs.load_prices(settings.prices_file)
    except costs.PricesProblem as problem:
        sys.exit(f"atelier: {problem}")


async def work(name: str, settings: Settings) -> None:
    db = Database(settings, name)
    storage = main.open_storage(settings)
    pool = ImagingPool(settings.imaging_processes)
    queue = jobs.JobQueue(db)
    maker = variants.VariantMaker(db, storage, pool)
    queue.task(variants.TASK, variants.QUEUE, maker.run)
    try:
        async with asyncio.TaskGroup() as group:
            folding = group.create_task(storage_usage.fold_forever(db))
            try:
                await main.work(db, queue, settings)
            finally:
                folding.cancel()
    finally:
        await pool.close()
        await storage.close()


if __name__ == "__main__":
    main.run(NAME, service=service, work=work, arguments=sys.argv[1:])
