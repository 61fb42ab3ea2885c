"""ExportService: one method per call; and the job of an export."""

from dataclasses import asdict
from datetime import timedelta

from atelier.techfiles.v1 import export_pb2 as pb

from services.techfiles import export_rows, export_storage, pack_rows, rules, trash_rows
from services.techfiles.export_rows import EXPORTS, FORMATS, STATES, Export
from services.techfiles.export_storage import ExportQuotas
from services.techfiles.reconciling import ExportReconciler
from services.techfiles.rendering import Renderer
from services.techfiles.trash import ExportTrash
from services.techfiles.views import TechFileViews
from shared.background import attempts
from shared.background.job_tables import JobTable
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.lists import Listing, created
from shared.database.rows import Statement
from shared.formats import names
from shared.rpc import auth, errors, paging
from shared.rpc.errors import DomainError, Reason
from shared.rpc.server import Context

_MOST_NAMED = 100
_KEYS = 1000
_LIST = Listing(EXPORTS, Export, **trash_rows.HIDES)
_LOCK_EXPORT = Statement(Export, f"{export_rows.SELECT_EXPORT.text} FOR UPDATE")
_RENAME = Statement(
    Export,
    f"""
    UPDATE exports SET file_name = %(file_name)s, version = version + 1, updated_at = now()
    WHERE id = %(id)s RETURNING {EXPORTS.columns}
    """,
)


class ExportService(ExportTrash):
    def __init__(
        self,
        db: Database,
        views: TechFileViews,
        quotas: ExportQuotas,
        reconciler: ExportReconciler,
    ) -> None:
        super().__init__(db, timedelta(days=db.settings.trash_days))
        self._views = views
        self._quotas = quotas
        self._reconciler = reconciler

    async def ListExports(
        self, request: pb.ListExportsRequest, context: Context
    ) -> pb.ListExportsResponse:
        auth.act_for(request.owner or auth.current().owner)
        page = paging.page(request)
        wanted = {
            "collection_id": parse_id(request.collection_id, "collection_id")
            if request.collection_id
            else None,
            "state": STATES.word.get(request.state),
            "format": FORMATS.word.get(request.format),
            "hide_deleted": not request.show_deleted,
            **created(request),
        }
        rows = await self._db.all(*_LIST.query(page, wanted))
        urls = request.include_urls and auth.current().role != "admin"
        shown = (self._views.export(row, urls=urls) for row in page.cut(rows))
        exports, token = page.fill(rows, shown)
        return pb.ListExportsResponse(exports=exports, next_page_token=token)

    async def UpdateExport(
        self, request: pb.UpdateExportRequest, context: Context
    ) -> pb.UpdateExportResponse:
        export_id = parse_id(request.export_id, "export_id")

        async def work(m: Mutation) -> pb.UpdateExportResponse:
            row = await m.first(_LOCK_EXPORT, {"id": export_id})
            if row is None:
                raise errors.not_found("export", export_id)
            errors.check_etag(request.etag, row.version, "export", export_id)
            if row.deleted_at:
                text = "the export is deleted; undelete it first (UndeleteExport)"
                raise errors.precondition(text, subject=f"exports/{export_id}")
            suffix = f".{row.format}"
            stem = request.file_name.removesuffix(suffix)
            named = {"id": export_id, "file_name": names.of_file(stem, suffix)}
            renamed = await m.one(_RENAME, named)
            await export_rows.publish(m, renamed)
            return pb.UpdateExportResponse(export=export_rows.to_proto(renamed))

        return await self._db.mutate(request, pb.UpdateExportResponse, work)

    async def GetStorageReport(
        self, request: pb.GetStorageReportRequest, context: Context
    ) -> pb.GetStorageReportResponse:
        if request.all_owners and auth.current().role != "admin":
            text = "all_owners is for operators; leave it out for your own figures"
            raise DomainError(Reason.ERROR_REASON_ROLE_NOT_ALLOWED, text)
        owner = auth.act_for(request.owner or auth.current().owner)
        answer = pb.GetStorageReportResponse(
            owner_limit_bytes=self._quotas.owner_bytes,
            retention_days=self._db.settings.retention_export_days,
        )
        async with self._db.transaction(owner) as m:
            if request.all_owners:
                rows, owners = await export_storage.all_figures(m)
                answer.owners.extend(map(export_storage.owner_to_proto, owners))
                answer.deployment_limit_bytes = self._quotas.deployment_bytes
            else:
                rows = await export_storage.own_figures(m, owner)
        answer.exports.extend(map(export_storage.use_to_proto, rows))
        completed = [row for row in rows if row.state == "completed"]
        answer.stored_bytes = sum(row.bytes for row in completed)
        answer.stored_exports = sum(row.exports - row.without_bytes for row in completed)
        return answer

    async def ReconcileExports(
        self, request: pb.ReconcileExportsRequest, context: Context
    ) -> pb.ReconcileExportsResponse:
        found = await self._reconciler.stretch(
            request.after_key, request.max_keys or _KEYS, dry_run=request.dry_run
        )
        return pb.ReconcileExportsResponse(
            compared=found.compared,
            stray_objects=len(found.strays),
            stray_bytes=sum(stat.size for stat in found.strays),
            young_objects=found.young,
            lost_export_ids=map(str, found.lost[:_MOST_NAMED]),
            lost_exports=len(found.lost),
            mended=found.mended,
            next_key=found.next_key,
        )


class Exporter:
    """Renders exports. `run` is the job of a row of `exports`."""

    def __init__(self, db: Database, renderer: Renderer) -> None:
        self._db = db
        self._renderer = renderer
        self._kind = JobTable(
            EXPORTS,
            rules.EXPORT_STATES,
            "processing",
            "completed",
            export_rows.publish,
            stamps={"completed": ("ended_at",), "failed": ("ended_at",)},
        )

    async def run(self, export_id: str) -> None:
        await attempts.run(self._db, self._kind, export_id, self._work)

    async def _work(self, attempt: attempts.Attempt[Export]) -> attempts.Outcome[Export]:
        row = attempt.row
        going_on = None
        if row.release_id is None:  # a release holds what was there when it was frozen
            async with self._db.transaction(row.owner) as m:
                going_on = await m.first(
                    pack_rows.SELECT_UNENDED,
                    {"collection_id": row.collection_id, "export_id": row.id},
                )
        document = await self._renderer.render(row, attempt.token)
        columns = asdict(document)
        if going_on:
            text = f"incomplete: run {going_on} still filled the collection when this was made"
            columns["warnings"] = [text, *document.warnings]

        async def remove_stored() -> None:
            await self._renderer.delete(document)

        return attempts.Outcome(
            {**columns, "incomplete": going_on is not None},
            output_bytes=document.size_bytes,
            if_not_committed=remove_stored,
        )
