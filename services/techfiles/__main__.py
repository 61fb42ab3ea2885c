"""Runs `techfiles` as a process: `python -m services.techfiles serve | work | migrate`."""

import functools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from atelier.techfiles.v1 import (
    collection_pb2,
    collection_pb2_grpc,
    tech_file_pb2,
    tech_file_pb2_grpc,
    tech_pack_pb2,
    tech_pack_pb2_grpc,
)
from atelier.webhooks.v1 import webhook_pb2_grpc

from services.techfiles import (
    collections,
    export_rows,
    exports,
    generating,
    pack_rows,
    packs,
    tech_files,
)
from services.techfiles.assets import Assets
from services.techfiles.rendering import Renderer
from services.techfiles.views import TechFileViews
from shared import main, webhooks
from shared.background import jobs
from shared.background.watches import EventStream
from shared.database.db import Database
from shared.imaging import ImagingPool
from shared.rpc import server
from shared.rpc.calls import Peers
from shared.settings import Settings, fonts

NAME = "techfiles"
EVENTS = webhooks.EventTypes(
    NAME,
    {
        "tech_file": tech_file_pb2.TechFile,
        "collection": collection_pb2.Collection,
        "run": tech_pack_pb2.TechPackRun,
        "export": tech_pack_pb2.Export,
    },
)


@asynccontextmanager
async def service(name: str, settings: Settings) -> AsyncIterator[server.Service]:
    db = Database(settings, name)
    storage = main.open_storage(settings)
    stream = EventStream(db)
    peers = Peers(settings, name)
    assets = Assets(peers)
    url_life = timedelta(minutes=settings.download_url_minutes)
    views = TechFileViews(db, assets, storage, url_life)
    file_servicer = tech_files.TechFileService(db, stream, assets, views)
    collection_servicer = collections.CollectionService(db, views)
    pack_servicer = packs.TechPackService(db, stream, jobs.JobQueue(db), assets, views)
    hooks = webhooks.WebhookService(db, settings, EVENTS)
    await db.open()
    stream.start()
    try:
        yield server.Service(
            name=name,
            register=[
                functools.partial(
                    tech_file_pb2_grpc.add_TechFileServiceServicer_to_server, file_servicer
                ),
                functools.partial(
                    collection_pb2_grpc.add_CollectionServiceServicer_to_server, collection_servicer
                ),
                functools.partial(
                    tech_pack_pb2_grpc.add_TechPackServiceServicer_to_server, pack_servicer
                ),
                functools.partial(webhook_pb2_grpc.add_WebhookServiceServicer_to_server, hooks),
            ],
            ready=db.ready,
            drain=stream.drain,
        )
    finally:
        await stream.close()
        await hooks.close()
        await peers.close()
        await storage.close()
        await db.close()


async def work(name: str, settings: Settings) -> None:
    db = Database(settings, name)
    storage = main.open_storage(settings)
    peers = Peers(settings, name)
    pool = ImagingPool(settings.imaging_processes)
    queue = jobs.JobQueue(db)
    renderer = Renderer(db, storage, peers, pool, fonts(settings.fonts))
    exporter = exports.Exporter(db, renderer)
    queue.task(export_rows.TASK, export_rows.QUEUE, exporter.run)
    generator = generating.PackGenerator(db, peers, renderer)
    queue.task(pack_rows.TASK, pack_rows.QUEUE, generator.run)
    try:
        await main.work(db, queue, settings, EVENTS)
    finally:
        await peers.close()
        await pool.close()
        await storage.close()


if __name__ == "__main__":
    main.run(NAME, service=service, work=work, arguments=sys.argv[1:])
