"""`python -m services.assets serve | work | migrate`: runs assets as processes."""

import asyncio
import functools
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from atelier.assets.v1 import (
    album_pb2_grpc,
    asset_pb2,
    asset_pb2_grpc,
    backfill_pb2_grpc,
    document_pb2,
    document_pb2_grpc,
    duplicate_pb2_grpc,
    erasure_pb2_grpc,
    import_pb2_grpc,
    provenance_pb2_grpc,
    quota_pb2_grpc,
    render_pb2,
    render_pb2_grpc,
    resumable_pb2_grpc,
    search_pb2_grpc,
    storage_pb2_grpc,
    storage_report_pb2_grpc,
    style_pb2_grpc,
    upload_pb2_grpc,
    usage_pb2_grpc,
    variant_pb2_grpc,
)
from atelier.owners.v1 import owner_pb2_grpc
from atelier.webhooks.v1 import webhook_pb2_grpc

from services.assets.accounting import costs, folding, quotas
from services.assets.accounting.enforcing import Quotas
from services.assets.comparisons import comparison_rows, comparisons
from services.assets.comparisons.comparing import Comparer
from services.assets.core import assets, explain, history, references, rules, trash, usage_log
from services.assets.core.asset_rows import Urls
from services.assets.core.bandwidth import Meter
from services.assets.core.trashing import Trash
from services.assets.documents import document_rows, documents
from services.assets.documents.maker import DocumentMaker
from services.assets.library import albums, search, styles
from services.assets.upkeep import cleanup, erase, export, reconcile, run_rows
from services.assets.upkeep import loop as keeper
from services.assets.upkeep.erasure_rows import Waker
from services.assets.upkeep.erasures import ErasureService
from services.assets.upkeep.metrics import StorageCollector
from services.assets.upkeep.report import StorageReportService
from services.assets.upkeep.service import StorageService
from services.assets.upkeep.walking import Runner
from services.assets.uploads import duplicates, import_rows, imports, provenance, resumable, single
from services.assets.uploads.credentials import CredentialsReader
from services.assets.uploads.import_asset import Importer
from services.assets.uploads.verifying import Verifier
from services.assets.variants import backfill, backfill_rows, rendition_rows, variants
from services.assets.variants.make_variants import VariantMaker
from services.assets.variants.presets import Presets
from services.assets.variants.walk_backfill import Walk
from shared import main, telemetry, webhooks
from shared.background import jobs
from shared.background.watches import EventStream
from shared.database.db import Database
from shared.erasing.metrics import watch_erasures
from shared.erasing.service import OwnerService
from shared.imaging import ImagingPool, Limits
from shared.outbound import Outbound
from shared.rpc import origin, server
from shared.settings import Settings, fonts
from shared.storage import Storage

NAME = "assets"
EVENTS = webhooks.EventTypes(
    NAME,
    {
        "asset": asset_pb2.Asset,
        "purged_asset": asset_pb2.PurgedAsset,
        "variant": asset_pb2.Variant,
        "document": document_pb2.Document,
        "purged_document": document_pb2.PurgedDocument,
        "comparison": render_pb2.Comparison,
        "purged_comparison": render_pb2.PurgedComparison,
    },
)


class Parts:
    """The parts that a server and a worker of assets have in common."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.settings = settings
        self.db = Database(settings, name)
        self.storage: Storage = main.open_storage(settings)
        self.queue = jobs.JobQueue(self.db)
        self.pool = ImagingPool(settings.imaging_processes)
        self.presets = Presets.of(settings)
        self.outbound = Outbound(settings)
        limits = Limits(
            settings.max_image_bytes,
            settings.max_pdf_bytes,
            settings.max_pixels,
            locations=not settings.refuse_locations,
        )
        credentials = CredentialsReader(self.pool, settings.c2pa_trust_anchors)
        self.usage_log = usage_log.UsageLog(self.db, origin.networks(settings.trusted_proxies))
        self.quotas = Quotas(settings)
        self.verifier = Verifier(
            self.db,
            self.storage,
            self.queue,
            self.pool,
            self.presets,
            limits,
            credentials,
            self.usage_log,
            self.quotas,
            rules.public_kinds(settings.public_kinds),
        )
        self.trash = Trash(self.db, self.storage, self.usage_log, settings.trash_days)

    async def close(self) -> None:
        await self.pool.close()
        await self.storage.close()


class AssetService(
    assets.AssetService, references.ReferenceCalls, trash.TrashCalls, explain.ExplainCalls
):
    """Implements all methods of the contract's AssetService."""

    def __init__(
        self, p: Parts, stream: EventStream, urls: Urls, on_demand: variants.OnDemand
    ) -> None:
        assets.AssetService.__init__(
            self, p.db, stream, p.storage, urls, on_demand.ready, p.usage_log
        )
        references.ReferenceCalls.__init__(self, p.db, p.usage_log)
        trash.TrashCalls.__init__(self, p.db, p.trash)
        explain.ExplainCalls.__init__(self, p.db)


@asynccontextmanager
async def service(name: str, settings: Settings) -> AsyncIterator[server.Service]:
    parts = Parts(name, settings)
    stream = EventStream(parts.db)
    hooks = webhooks.WebhookService(parts.db, settings, EVENTS)
    meter = Meter(parts.db)
    waker = Waker()
    collector = StorageCollector(parts.db, parts.quotas)
    servicers = [
        (webhook_pb2_grpc.add_WebhookServiceServicer_to_server, hooks),
        *_servicers(parts, stream, meter, waker),
    ]
    await parts.db.open()
    shown = asyncio.create_task(
        reconcile.show_metrics(parts.db, timedelta(minutes=settings.reconcile_minutes))
    )
    stream.start()
    parts.usage_log.start()
    meter.start()
    telemetry.METRICS.register(collector)
    try:
        async with parts.outbound:
            yield server.Service(
                name=name,
                register=[functools.partial(add, servicer) for add, servicer in servicers],
                ready=parts.db.ready,
                drain=functools.partial(waker.drain, stream.drain),
            )
    finally:
        telemetry.METRICS.unregister(collector)
        shown.cancel()
        await meter.close()
        await parts.usage_log.close()
        await stream.close()
        await hooks.close()
        await parts.close()
        await parts.db.close()


def _servicers(
    p: Parts, stream: EventStream, meter: Meter, waker: Waker
) -> list[tuple[Callable[..., Any], Any]]:
    db, storage, queue, verifier = p.db, p.storage, p.queue, p.verifier
    urls = Urls(storage, timedelta(minutes=p.settings.download_url_minutes), meter)
    url_life = timedelta(minutes=p.settings.upload_url_minutes)
    parts_life = timedelta(hours=p.settings.resumable_upload_hours)
    on_demand = variants.OnDemand(db, queue, p.presets)
    return [
        (
            asset_pb2_grpc.add_AssetServiceServicer_to_server,
            AssetService(p, stream, urls, on_demand),
        ),
        (
            upload_pb2_grpc.add_UploadServiceServicer_to_server,
            single.UploadService(db, storage, verifier, urls, url_life=url_life),
        ),
        (
            resumable_pb2_grpc.add_ResumableUploadServiceServicer_to_server,
            resumable.ResumableUploadService(
                db, storage, verifier, urls, url_life=url_life, life=parts_life
            ),
        ),
        (
            import_pb2_grpc.add_ImportServiceServicer_to_server,
            imports.ImportService(db, stream, queue, p.outbound, verifier, urls),
        ),
        (
            duplicate_pb2_grpc.add_DuplicateServiceServicer_to_server,
            duplicates.DuplicateService(db),
        ),
        (
            variant_pb2_grpc.add_VariantServiceServicer_to_server,
            variants.VariantService(db, queue, urls, p.presets, on_demand),
        ),
        (
            backfill_pb2_grpc.add_BackfillServiceServicer_to_server,
            backfill.BackfillService(db, queue, p.presets),
        ),
        (
            provenance_pb2_grpc.add_ProvenanceServiceServicer_to_server,
            provenance.ProvenanceService(db),
        ),
        (style_pb2_grpc.add_StyleServiceServicer_to_server, styles.StyleService(db, urls)),
        (
            document_pb2_grpc.add_DocumentServiceServicer_to_server,
            documents.DocumentService(db, stream, storage, queue, urls),
        ),
        (
            render_pb2_grpc.add_ComparisonServiceServicer_to_server,
            comparisons.ComparisonService(db, stream, queue, urls, p.trash, p.quotas),
        ),
        (
            album_pb2_grpc.add_AlbumServiceServicer_to_server,
            albums.AlbumService(db, storage, urls, p.presets, p.usage_log),
        ),
        (usage_pb2_grpc.add_UsageServiceServicer_to_server, history.UsageService(db, p.usage_log)),
        (
            storage_pb2_grpc.add_StorageServiceServicer_to_server,
            StorageService(db, queue, urls, waker),
        ),
        (
            owner_pb2_grpc.add_OwnerServiceServicer_to_server,
            OwnerService(db, export.url_makers(urls), export.LEFT_OUT),
        ),
        (
            erasure_pb2_grpc.add_ErasureServiceServicer_to_server,
            ErasureService(db, queue, waker),
        ),
        (
            storage_report_pb2_grpc.add_StorageReportServiceServicer_to_server,
            StorageReportService(db, p.quotas, _prices(p.settings)),
        ),
        (quota_pb2_grpc.add_QuotaServiceServicer_to_server, quotas.QuotaService(db, p.quotas)),
        (search_pb2_grpc.add_SearchServiceServicer_to_server, search.SearchService(db, urls)),
    ]


def _prices(settings: Settings) -> costs.Prices:
    try:
        return costs.load_prices(settings.prices_file)
    except costs.PricesProblem as problem:
        sys.exit(f"atelier: {problem}")


async def work(name: str, settings: Settings) -> None:
    p = Parts(name, settings)
    db, storage, queue = p.db, p.storage, p.queue
    maker = VariantMaker(db, storage, p.pool, p.presets)
    queue.task(rendition_rows.TASK, rendition_rows.QUEUE, maker.run)
    queue.task(backfill_rows.TASK, backfill_rows.QUEUE, Walk(db, queue, maker, p.presets).run)
    queue.task(
        import_rows.TASK,
        import_rows.QUEUE,
        Importer(db, storage, p.outbound, p.verifier).run,
        apart=True,
    )
    queue.task(
        document_rows.TASK,
        document_rows.QUEUE,
        DocumentMaker(db, storage, p.pool, fonts(settings.fonts)).run,
    )
    queue.task(
        comparison_rows.TASK,
        comparison_rows.QUEUE,
        Comparer(db, storage, queue, p.pool, p.presets, p.quotas).run,
    )
    queue.task(run_rows.TASK, run_rows.QUEUE, _runner(p).run)
    endless = (
        keeper.Keeper(db, storage, queue, settings).run(),
        folding.fold_forever(db),
        usage_log.shorten_forever(db, timedelta(days=settings.usage_address_days)),
        watch_erasures(db, erase.OPEN_ERASURES),
    )
    try:
        async with p.outbound:
            await main.work(db, queue, settings, EVENTS, *endless)
    finally:
        await p.close()


def _runner(p: Parts) -> Runner:
    cleaner = cleanup.Cleaner(
        p.db,
        p.storage,
        p.trash,
        max_items=p.settings.cleanup_max_items,
        idle_days=p.settings.idle_session_days,
        longest_upload=timedelta(hours=p.settings.resumable_upload_hours),
    )
    reconciler = reconcile.Reconciler(
        p.db,
        p.storage,
        p.queue,
        max_items=p.settings.reconcile_max_items,
        grace=timedelta(minutes=p.settings.reconcile_grace_minutes),
    )
    walks = {
        "session": cleaner.session,
        "cleanup": cleaner.cleanup,
        "reconcile": reconciler.reconcile,
        "erase": erase.Eraser(p.db, p.storage, p.trash).erase,
    }
    return Runner(p.db, walks)


if __name__ == "__main__":
    main.run(NAME, service=service, work=work, arguments=sys.argv[1:])
