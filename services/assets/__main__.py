"""`python -m services.assets serve | work | migrate`: assets as processes."""

import functools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from atelier.assets.v1 import (
    asset_pb2_grpc,
    document_pb2_grpc,
    render_pb2_grpc,
    style_pb2_grpc,
    upload_pb2_grpc,
    variant_pb2_grpc,
)

from services.assets import assets, document_maker, documents, renders, styles, uploads, variants
from services.assets.presets import Presets
from shared import jobs, main, server
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
    presets = Presets.of(settings)
    asset_service = assets.AssetService(db, stream, storage, urls)
    upload_service = uploads.UploadService(
        db,
        storage,
        queue,
        pool,
        urls,
        url_life=timedelta(minutes=settings.upload_url_minutes),
        limits=limits,
        presets=presets,
    )
    comparison_service = renders.ComparisonService(db, stream, queue, urls)
    document_service = documents.DocumentService(db, stream, storage, queue, urls)
    variant_service = variants.VariantService(db, queue, urls, presets)
    await db.open()
    stream.start()
    try:
        yield server.Service(
            name=name,
            register=[
                functools.partial(asset_pb2_grpc.add_AssetServiceServicer_to_server, asset_service),
                functools.partial(upload_pb2_grpc.add_UploadServiceServicer_to_server, upload_service),
                functools.partial(variant_pb2_grpc.add_VariantServiceServicer_to_server, variant_service),
                functools.partial(document_pb2_grpc.add_DocumentServiceServicer_to_server, document_service),
                functools.partial(render_pb2_grpc.add_ComparisonServiceServicer_to_server, comparison_service),
                functools.partial(style_pb2_grpc.add_StyleServiceServicer_to_server, styles.StyleService(db, urls)),
            ],
            ready=db.ready,
            drain=stream.drain,
        )
    finally:
        await stream.close()
        await pool.close()
        await storage.close()
        await db.close()


async def work(name: str, settings: Settings) -> None:
    db = Database(settings, name)
    storage = main.open_storage(settings)
    pool = ImagingPool(settings.imaging_processes)
    queue = jobs.JobQueue(db)
    presets = Presets.of(settings)
    maker = variants.VariantMaker(db, storage, pool, presets)
    queue.task(variants.TASK, variants.QUEUE, maker.run)
    queue.task(documents.TASK, documents.QUEUE, document_maker.DocumentMaker(db, storage, pool).run)
    queue.task(renders.TASK, renders.QUEUE, renders.Comparer(db, storage, queue, pool, presets).run)
    try:
        await main.work(db, queue, settings)
    finally:
        await pool.close()
        await storage.close()


if __name__ == "__main__":
    main.run(NAME, service=service, work=work, arguments=sys.argv[1:])
