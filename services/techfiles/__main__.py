"""Runs `techfiles` as a process: `python -m services.techfiles serve | work | migrate`."""

import functools
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from atelier.owners.v1 import owner_pb2_grpc
from atelier.techfiles.v1 import (
    collection_pb2,
    collection_pb2_grpc,
    export_pb2,
    export_pb2_grpc,
    history_pb2_grpc,
    legacy_pb2_grpc,
    release_pb2,
    release_pb2_grpc,
    tech_file_pb2,
    tech_file_pb2_grpc,
    tech_pack_pb2,
    tech_pack_pb2_grpc,
    verification_pb2_grpc,
)
from atelier.webhooks.v1 import webhook_pb2_grpc

from services.techfiles import (
    collections,
    explaining_collections,
    export_rows,
    export_storage,
    exports,
    generating,
    history,
    pack_rows,
    packs,
    reconciling,
    releases,
    tech_files,
    upkeep,
)
from services.techfiles.assets import Assets
from services.techfiles.legacy import analyses, backfill_rows, walk_backfill, writing
from services.techfiles.legacy.old_table import OldTable
from services.techfiles.pack_sources import PackSources
from services.techfiles.rendering import Renderer
from services.techfiles.step_jobs import StepJobs
from services.techfiles.verifying import check_rows, checks, finding_metrics, walk_history
from services.techfiles.views import TechFileViews
from shared import main, webhooks
from shared.background import jobs
from shared.background.watches import EventStream
from shared.database.db import Database
from shared.erasing.eraser import Eraser
from shared.erasing.follower import Follower
from shared.erasing.metrics import watch_erasures
from shared.erasing.service import OwnerService
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
        "purged_tech_file": tech_file_pb2.PurgedTechFile,
        "purged_collection": collection_pb2.PurgedCollection,
        "purged_run": tech_pack_pb2.PurgedTechPackRun,
        "purged_export": export_pb2.PurgedExport,
        "release": release_pb2.Release,
        "purged_release": release_pb2.PurgedRelease,
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
    export_life = timedelta(days=settings.retention_export_days) or None
    views = TechFileViews(db, assets, storage, url_life, export_life)
    quotas = export_storage.ExportQuotas(settings)
    file_servicer = tech_files.TechFileService(db, stream, assets, views)
    collection_servicer = collections.CollectionService(
        db,
        views,
        explaining_collections.Explaining(db, quotas),
        timedelta(days=settings.trash_days),
    )
    queue = jobs.JobQueue(db)
    sources = PackSources(db, peers, assets)
    pack_servicer = packs.TechPackService(
        db, stream, queue, assets, sources, views, quotas, StepJobs(peers)
    )
    grace = timedelta(minutes=settings.reconcile_grace_minutes)
    reconciler = reconciling.ExportReconciler(db, storage, grace)
    export_servicer = exports.ExportService(db, views, quotas, reconciler)
    release_servicer = releases.ReleaseService(db, queue, assets, views, quotas)
    legacy_servicer = analyses.LegacyAnalysisService(db, queue, OldTable(settings))
    history_servicer = history.HistoryService(db, assets)
    check_servicer = checks.HistoryCheckService(db, queue)
    hooks = webhooks.WebhookService(db, settings, EVENTS)
    follower = Follower(db, peers)
    await db.open()
    stream.start()
    await follower.start()
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
                    history_pb2_grpc.add_HistoryServiceServicer_to_server, history_servicer
                ),
                functools.partial(
                    verification_pb2_grpc.add_HistoryCheckServiceServicer_to_server, check_servicer
                ),
                functools.partial(
                    tech_pack_pb2_grpc.add_TechPackServiceServicer_to_server, pack_servicer
                ),
                functools.partial(
                    legacy_pb2_grpc.add_LegacyAnalysisServiceServicer_to_server, legacy_servicer
                ),
                functools.partial(
                    export_pb2_grpc.add_ExportServiceServicer_to_server, export_servicer
                ),
                functools.partial(
                    release_pb2_grpc.add_ReleaseServiceServicer_to_server, release_servicer
                ),
                functools.partial(webhook_pb2_grpc.add_WebhookServiceServicer_to_server, hooks),
                functools.partial(
                    owner_pb2_grpc.add_OwnerServiceServicer_to_server,
                    OwnerService(db, {"exports": views.row_url}),
                ),
            ],
            ready=db.ready,
            drain=stream.drain,
        )
    finally:
        await follower.close()
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
    legacy_table = OldTable(settings)
    queue.task(backfill_rows.TASK, backfill_rows.QUEUE, walk_backfill.Walk(db, legacy_table).run)
    queue.task(check_rows.TASK, check_rows.QUEUE, walk_history.Walk(db).run)
    queue.task(export_rows.TASK, export_rows.QUEUE, exporter.run)
    quotas = export_storage.ExportQuotas(settings)
    generator = generating.PackGenerator(db, peers, renderer, queue, legacy_table, quotas)
    queue.task(pack_rows.TASK, pack_rows.QUEUE, generator.run)
    try:
        eraser = Eraser(db, peers, export_rows.HOLDINGS, storage)
        keeper = upkeep.Upkeep(db, Assets(peers), storage, settings)
        writer = writing.Writer(db, legacy_table)
        await main.work(
            db,
            queue,
            settings,
            EVENTS,
            eraser.run(),
            watch_erasures(db),
            keeper.run_forever(),
            writer.run(),
            finding_metrics.watch_findings(db),
        )
    finally:
        await peers.close()
        await pool.close()
        await storage.close()


if __name__ == "__main__":
    main.run(NAME, service=service, work=work, arguments=sys.argv[1:])
