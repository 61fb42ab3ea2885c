"""`python -m services.assets serve | work | migrate`: assets as processes."""

import functools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from atelier.assets.v1 import (
    asset_pb2_grpc,
    backfill_pb2_grpc,
    duplicate_pb2_grpc,
    import_pb2_grpc,
    provenance_pb2_grpc,
    resumable_pb2_grpc,
    upload_pb2_grpc,
    variant_pb2_grpc,
)

from services.assets import assets, backfill, duplicates, imports, provenance, resumable, uploads, variants, verifying
from services.assets.presets import Presets
from shared import jobs, main, server
from shared.db import Database
from shared.events import EventStream
from shared.imaging import ImagingPool, Limits
from shared.outbound import Outbound
from shared.settings import Settings

NAME = "assets"


def _limits(settings: Settings) -> Limits:
    return Limits(settings.max_image_bytes, settings.max_pdf_bytes, settings.max_pixels)


@asynccontextmanager
async def service(name: str, settings: Settings) -> AsyncIterator[server.Service]:
    db = Database(settings, name)
    storage = main.open_storage(settings)
    stream = EventStream(db)
    queue = jobs.JobQueue(db)
    pool = ImagingPool(settings.imaging_processes)
    urls = assets.Urls(storage, timedelta(minutes=settings.download_url_minutes))
    presets = Presets.of(settings)
    on_demand = variants.OnDemand(db, queue, presets)
    asset_service = assets.AssetService(db, stream, storage, urls, on_demand.ready)
    credentials = provenance.CredentialsReader(pool, settings.c2pa_trust_anchors)
    verifier = verifying.Verifier(db, storage, queue, pool, presets, _limits(settings), credentials)
    url_life = timedelta(minutes=settings.upload_url_minutes)
    upload_service = uploads.UploadService(db, storage, verifier, urls, url_life=url_life)
    resumable_service = resumable.ResumableUploadService(
        db, storage, verifier, urls, url_life=url_life, life=timedelta(hours=settings.resumable_upload_hours)
    )
    outbound = Outbound(settings)
    import_service = imports.ImportService(db, stream, queue, outbound, verifier, urls)
    duplicate_service = duplicates.DuplicateService(db)
    variant_service = variants.VariantService(db, queue, urls, presets, on_demand)
    backfill_service = backfill.BackfillService(db, queue, presets)
    provenance_service = provenance.ProvenanceService(db)
    await db.open()
    stream.start()
    try:
        async with outbound:
            yield server.Service(
                name=name,
                register=[
                    functools.partial(asset_pb2_grpc.add_AssetServiceServicer_to_server, asset_service),
                    functools.partial(upload_pb2_grpc.add_UploadServiceServicer_to_server, upload_service),
                    functools.partial(
                        resumable_pb2_grpc.add_ResumableUploadServiceServicer_to_server, resumable_service
                    ),
                    functools.partial(import_pb2_grpc.add_ImportServiceServicer_to_server, import_service),
                    functools.partial(duplicate_pb2_grpc.add_DuplicateServiceServicer_to_server, duplicate_service),
                    functools.partial(variant_pb2_grpc.add_VariantServiceServicer_to_server, variant_service),
                    functools.partial(backfill_pb2_grpc.add_BackfillServiceServicer_to_server, backfill_service),
                    functools.partial(provenance_pb2_grpc.add_ProvenanceServiceServicer_to_server, provenance_service),
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
    walk = backfill.Walk(db, queue, maker, presets)
    queue.task(backfill.TASK, backfill.QUEUE, walk.run)
    queue.task(variants.TASK, variants.QUEUE, maker.run)
    outbound = Outbound(settings)
    credentials = provenance.CredentialsReader(pool, settings.c2pa_trust_anchors)
    verifier = verifying.Verifier(db, storage, queue, pool, presets, _limits(settings), credentials)
    queue.task(imports.TASK, imports.QUEUE, imports.Importer(db, storage, outbound, verifier).run)
    try:
        async with outbound:
            await main.work(db, queue, settings)
    finally:
        await pool.close()
        await storage.close()


if __name__ == "__main__":
    main.run(NAME, service=service, work=work, arguments=sys.argv[1:])
