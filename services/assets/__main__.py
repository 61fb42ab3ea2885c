"""`python -m services.assets serve | work | migrate`: assets as processes."""

import asyncio
import functools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from atelier.assets.v1 import (
    album_pb2_grpc,
    asset_pb2_grpc,
    search_pb2_grpc,
    upload_pb2_grpc,
    usage_pb2_grpc,
    variant_pb2_grpc,
)

from services.assets import albums, assets, search, uploads, usage, variants
from shared import jobs, main, origin, server
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
    urls = assets.Urls(storage, timedelta(minutes=settings.download_url_minutes))
    limits = Limits(settings.max_image_bytes, settings.max_pdf_bytes, settings.max_pixels)
    usage_log = usage.UsageLog(db, origin.networks(settings.trusted_proxies))
    asset_service = assets.AssetService(db, stream, storage, urls, usage_log)
    upload_service = uploads.UploadService(
        db, storage, queue, pool, urls, usage_log,
        url_life=timedelta(minutes=settings.upload_url_minutes), limits=limits,
    )  # fmt: skip
    variant_service = variants.VariantService(db, queue, urls)
    album_service = albums.AlbumService(db, storage, urls, usage_log)
    usage_service = usage.UsageService(db, usage_log)
    search_service = search.SearchService(db, urls)
    await db.open()
    stream.start()
    usage_log.start()
    try:
        yield server.Service(
            name=name,
            register=[
                functools.partial(asset_pb2_grpc.add_AssetServiceServicer_to_server, asset_service),
                functools.partial(upload_pb2_grpc.add_UploadServiceServicer_to_server, upload_service),
                functools.partial(variant_pb2_grpc.add_VariantServiceServicer_to_server, variant_service),
                functools.partial(album_pb2_grpc.add_AlbumServiceServicer_to_server, album_service),
                functools.partial(usage_pb2_grpc.add_UsageServiceServicer_to_server, usage_service),
                functools.partial(search_pb2_grpc.add_SearchServiceServicer_to_server, search_service),
            ],
            ready=db.ready,
            drain=stream.drain,
        )
    finally:
        await usage_log.close()
        await stream.close()
        await pool.close()
        await storage.close()
        await db.close()


async def work(name: str, settings: Settings) -> None:
    db = Database(settings, name)
    storage = main.open_storage(settings)
    pool = ImagingPool(settings.imaging_processes)
    queue = jobs.JobQueue(db)
    maker = variants.VariantMaker(db, storage, pool)
    queue.task(variants.TASK, variants.QUEUE, maker.run)
    shortening = asyncio.create_task(usage.shorten_forever(db, timedelta(days=settings.usage_address_days)))
    try:
        await main.work(db, queue, settings)
    finally:
        shortening.cancel()
        await pool.close()
        await storage.close()


if __name__ == "__main__":
    main.run(NAME, service=service, work=work, arguments=sys.argv[1:])
