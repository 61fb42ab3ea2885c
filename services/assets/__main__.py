"""`python -m services.assets serve | work | migrate`: assets as processes."""

import asyncio
import functools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from atelier.assets.v1 import asset_pb2_grpc, storage_pb2_grpc, upload_pb2_grpc, variant_pb2_grpc

from services.assets import (
    assets,
    cleanup,
    erase,
    explain,
    keeper,
    reconcile,
    references,
    runs,
    trash,
    uploads,
    variants,
)
from services.assets.storage_service import StorageService
from shared import jobs, main, server
from shared.db import Database
from shared.events import EventStream
from shared.imaging import ImagingPool, Limits
from shared.settings import Settings
from shared.storage import Storage

NAME = "assets"


class AssetService(assets.AssetService, references.ReferenceCalls, trash.TrashCalls, explain.ExplainCalls):
    """All of the contract's AssetService."""

    def __init__(
        self, db: Database, stream: EventStream, storage: Storage, urls: assets.Urls, bin_: trash.Trash
    ) -> None:
        assets.AssetService.__init__(self, db, stream, storage, urls)
        references.ReferenceCalls.__init__(self, db)
        trash.TrashCalls.__init__(self, db, bin_)
        explain.ExplainCalls.__init__(self, db)


@asynccontextmanager
async def service(name: str, settings: Settings) -> AsyncIterator[server.Service]:
    db = Database(settings, name)
    storage = main.open_storage(settings)
    stream = EventStream(db)
    queue = jobs.JobQueue(db)
    pool = ImagingPool(settings.imaging_processes)
    urls = assets.Urls(storage, timedelta(minutes=settings.download_url_minutes))
    limits = Limits(settings.max_image_bytes, settings.max_pdf_bytes, settings.max_pixels)
    bin_ = trash.Trash(db, storage, settings.trash_days)
    asset_service = AssetService(db, stream, storage, urls, bin_)
    upload_service = uploads.UploadService(
        db, storage, queue, pool, urls, url_life=timedelta(minutes=settings.upload_url_minutes), limits=limits
    )
    variant_service = variants.VariantService(db, queue, urls)
    storage_service = StorageService(db, queue, urls)
    await db.open()
    shown = asyncio.create_task(reconcile.show_metrics(db))
    stream.start()
    try:
        yield server.Service(
            name=name,
            register=[
                functools.partial(asset_pb2_grpc.add_AssetServiceServicer_to_server, asset_service),
                functools.partial(upload_pb2_grpc.add_UploadServiceServicer_to_server, upload_service),
                functools.partial(variant_pb2_grpc.add_VariantServiceServicer_to_server, variant_service),
                functools.partial(storage_pb2_grpc.add_StorageServiceServicer_to_server, storage_service),
            ],
            ready=db.ready,
            drain=stream.drain,
        )
    finally:
        shown.cancel()
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
    queue.task(runs.TASK, runs.QUEUE, _runner(db, storage, queue, settings).run)
    try:
        await main.work(db, queue, settings, keeper.Keeper(db, storage, queue, settings).run())
    finally:
        await pool.close()
        await storage.close()


def _runner(db: Database, storage: Storage, queue: jobs.JobQueue, settings: Settings) -> runs.Runner:
    bin_ = trash.Trash(db, storage, settings.trash_days)
    cleaner = cleanup.Cleaner(
        db, storage, bin_, max_items=settings.cleanup_max_items, idle_days=settings.idle_session_days
    )
    reconciler = reconcile.Reconciler(
        db, storage, queue, max_items=settings.reconcile_max_items,
        grace=timedelta(minutes=settings.reconcile_grace_minutes),
    )  # fmt: skip
    walks = {
        "session": cleaner.session, "cleanup": cleaner.cleanup, "reconcile": reconciler.reconcile,
        "erase": erase.Eraser(db, storage).erase,
    }  # fmt: skip
    return runs.Runner(db, walks)


if __name__ == "__main__":
    main.run(NAME, service=service, work=work, arguments=sys.argv[1:])
