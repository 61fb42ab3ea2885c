"""TechPackService, the servicer of runs and of exports: one method per call."""

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from atelier.techfiles.v1 import tech_pack_pb2 as pb
from atelier.techfiles.v1 import tech_pack_pb2_grpc

from services.techfiles import collection_rows, export_rows, pack_rows, rules, running
from services.techfiles.assets import Assets
from services.techfiles.collection_rows import SELECT_NAME
from services.techfiles.export_rows import SELECT_EXPORT, Export
from services.techfiles.pack_rows import RUN_STATES, RUNS, SELECT_RUN, Run, RunStep
from services.techfiles.rules import Revision, Shot
from services.techfiles.tech_file_rows import VIEWS
from services.techfiles.views import TechFileViews
from shared.background import jobs, waiting
from shared.background.job_tables import JobRow
from shared.background.watches import Event, EventStream, Fields
from shared.database import states
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.database.lists import Listing
from shared.database.rows import Statement
from shared.formats.facts import Facts, parse_facts
from shared.rpc import errors, paging, protos
from shared.rpc.server import Context

J = TypeVar("J", bound=JobRow)

_LIST = Listing(RUNS, Run)
_LOCK_RUN = Statement(Run, f"{SELECT_RUN.text} FOR UPDATE")
_REQUEST_CANCEL = Statement(
    Run,
    f"""
    UPDATE runs SET cancel_requested = true, version = version + 1, updated_at = now()
    WHERE id = %(id)s RETURNING {RUNS.columns}
    """,
)


class TechPackService(tech_pack_pb2_grpc.TechPackServiceServicer):
    def __init__(
        self,
        db: Database,
        stream: EventStream,
        queue: jobs.JobQueue,
        assets: Assets,
        views: TechFileViews,
    ) -> None:
        self._db = db
        self._stream = stream
        self._queue = queue
        self._assets = assets
        self._views = views

    async def GenerateTechPack(
        self, request: pb.GenerateTechPackRequest, context: Context
    ) -> pb.GenerateTechPackResponse:
        facts = _facts(request)
        revisions = [
            Revision(r.revision_id, VIEWS.word[r.view], r.asset_id) for r in request.revisions
        ]
        primary = request.primary_asset_id or revisions[0].asset_id
        pictures = list(dict.fromkeys([*(r.asset_id for r in revisions), primary]))
        await self._assets.acquire(request.product_id, pictures, "revisions", pictures=True)
        shots = _shots(parse_facts(facts))
        plan = rules.plan(revisions, shots, primary=primary, skip=_skipped_kinds(request))

        async def work(m: Mutation) -> pb.GenerateTechPackResponse:
            name = request.collection_name or f"Tech pack {request.product_id}"
            collection = await collection_rows.create(
                m,
                product_id=request.product_id,
                name=name,
                collection_type="tech_pack_v2",
                facts=facts,
            )
            run_id = new_id()
            batch_id = f"tech-pack-{request.product_id[:128]}-{run_id}"
            run = await running.create(m, run_id, collection, plan, batch_id)
            await self._queue.enqueue(m, pack_rows.TASK, pack_rows.QUEUE, run_id)
            return pb.GenerateTechPackResponse(run=await pack_rows.read(m, run))

        response = await self._db.mutate(request, pb.GenerateTechPackResponse, work)
        if request.wait:
            run_id = UUID(response.run.id)
            run = await _until_ended(lambda: self._db.one(SELECT_RUN, {"id": run_id}))
            [message] = await self._messages([run])
            response = pb.GenerateTechPackResponse(run=message)
        return response

    async def GetTechPackRun(
        self, request: pb.GetTechPackRunRequest, context: Context
    ) -> pb.GetTechPackRunResponse:
        [run] = await self._messages([await self._run(parse_id(request.run_id, "run_id"))])
        return pb.GetTechPackRunResponse(run=run)

    async def ListTechPackRuns(
        self, request: pb.ListTechPackRunsRequest, context: Context
    ) -> pb.ListTechPackRunsResponse:
        page = paging.page(request)
        wanted = {"product_id": request.product_id, "state": RUN_STATES.word.get(request.state)}
        rows = await self._db.all(*_LIST.query(page, wanted))
        runs, token = page.fill(rows, await self._messages(page.cut(rows), with_steps=False))
        return pb.ListTechPackRunsResponse(runs=runs, next_page_token=token)

    async def WatchTechPackRun(
        self, request: pb.WatchTechPackRunRequest, context: Context
    ) -> AsyncIterator[pb.WatchTechPackRunResponse]:
        run_id = parse_id(request.run_id, "run_id")

        async def now() -> AsyncIterator[tuple[Fields, Run]]:
            row = await self._run(run_id)
            [run] = await self._messages([row])
            yield {"run": run}, row

        def show(event: Event) -> Fields | None:
            return (
                {"run": pb.TechPackRun.FromString(event.payload)}
                if event.subject_id == run_id
                else None
            )

        if (await self._run(run_id)).state in rules.ENDED:
            request.cursor = ""  # no event may follow the cursor
        ended = False
        async for answer in self._stream.watch(request, pb.WatchTechPackRunResponse, now(), show):
            yield answer
            ended = ended or RUN_STATES.word.get(answer.run.state) in rules.ENDED
            if ended and answer.cursor:  # the current state has none; READY follows it
                return

    async def CancelTechPackRun(
        self, request: pb.CancelTechPackRunRequest, context: Context
    ) -> pb.CancelTechPackRunResponse:
        run_id = parse_id(request.run_id, "run_id")

        async def work(m: Mutation) -> pb.CancelTechPackRunResponse:
            run = await m.first(_LOCK_RUN, {"id": run_id})
            if run is None:
                raise errors.not_found("run", run_id)
            cancelling = run.state not in rules.ENDED
            if run.state == "pending":
                run = await _cancel(m, run)
            elif cancelling:  # the job notices within a second
                run = await m.one(_REQUEST_CANCEL, {"id": run_id})
                await pack_rows.publish(m, run)
            return pb.CancelTechPackRunResponse(
                run=await pack_rows.read(m, run), cancelling=cancelling
            )

        return await self._db.mutate(request, pb.CancelTechPackRunResponse, work)

    async def ExportCollection(
        self, request: pb.ExportCollectionRequest, context: Context
    ) -> pb.ExportCollectionResponse:
        collection_id = parse_id(request.collection_id, "collection_id")
        facts = protos.facts(request.facts, "facts") if request.HasField("facts") else None

        async def work(m: Mutation) -> pb.ExportCollectionResponse:
            collection = await m.first(SELECT_NAME, {"id": collection_id})
            if collection is None:
                raise errors.not_found("collection", collection_id)
            format = export_rows.FORMATS.word[request.format]
            row = await export_rows.create(m, new_id(), collection, format, facts)
            await self._queue.enqueue(m, export_rows.TASK, export_rows.QUEUE, row.id)
            return pb.ExportCollectionResponse(export=export_rows.to_proto(row))

        response = await self._db.mutate(request, pb.ExportCollectionResponse, work)
        if request.wait:
            export_id = UUID(response.export.id)
            row = await _until_ended(lambda: self._db.one(SELECT_EXPORT, {"id": export_id}))
            response = pb.ExportCollectionResponse(export=self._export(row))
        return response

    async def GetExport(
        self, request: pb.GetExportRequest, context: Context
    ) -> pb.GetExportResponse:
        export_id = parse_id(request.export_id, "export_id")
        row = await self._db.first(SELECT_EXPORT, {"id": export_id})
        if row is None:
            raise errors.not_found("export", export_id)
        return pb.GetExportResponse(export=self._export(row))

    def _export(self, row: Export) -> pb.Export:
        return export_rows.to_proto(
            row, self._views.export_url(row) if row.state == "completed" else ""
        )

    async def _run(self, run_id: UUID) -> Run:
        row = await self._db.first(SELECT_RUN, {"id": run_id})
        if row is None:
            raise errors.not_found("run", run_id)
        return row

    async def _messages(
        self, rows: Sequence[Run], *, with_steps: bool = True
    ) -> list[pb.TechPackRun]:
        run_ids = [row.id for row in rows]
        moves = defaultdict[UUID, list[RunStep]](list)
        for move in await self._db.all(pack_rows.SELECT_STEPS, {"ids": run_ids}):
            moves[move.run_id].append(move)
        pack_ids = [row.pack_file_id for row in rows]
        packs = await self._db.all(pack_rows.SELECT_PACK_FILES, {"ids": pack_ids})
        exports = {pack.id: pack.export_id for pack in packs}
        return [
            pack_rows.to_proto(
                row, moves[row.id], exports.get(row.pack_file_id), with_steps=with_steps
            )
            for row in rows
        ]


async def _cancel(m: Mutation, run: Run) -> Run:
    """Cancels a locked run that is PENDING. Returns its new row."""
    cancelled = await states.advance(
        m,
        rules.RUN_STATES,
        RUNS,
        run.id,
        "cancelled",
        stamps=("ended_at",),
        cancel_requested=True,
    )
    if cancelled is None:
        raise LookupError(f"run {run.id} is locked and PENDING, and can't be cancelled")
    await running.follow(m, cancelled)
    return cancelled


def _skipped_kinds(request: pb.GenerateTechPackRequest) -> list[str]:
    kinds = {
        "base_view": request.skip_base_views,
        "closeup": request.skip_closeups,
        "sketch": request.skip_sketches,
    }
    return [kind for kind, skipped in kinds.items() if skipped]


def _shots(facts: Facts) -> list[Shot]:
    return [
        Shot(closeup.name, closeup.view, (closeup.at.x, closeup.at.y) if closeup.at else None)
        for closeup in facts.closeups
    ]


def _facts(request: pb.GenerateTechPackRequest) -> dict[str, Any]:
    """Returns the request's facts, with its category. Raises INVALID_ARGUMENT if the facts state
    another category or too many close-ups."""
    facts = protos.facts(request.facts, "facts")
    if len(request.facts.closeups) > rules.MOST_CLOSEUPS:
        raise errors.invalid("facts.closeups", f"may have {rules.MOST_CLOSEUPS} in one pack")
    category = request.category.strip()
    if category:
        stated = facts.setdefault("product", {}).setdefault("category", category)
        if stated != category:
            raise errors.invalid(
                "category", f"the facts state {stated!r}; say it once, or the same twice"
            )
    return facts


async def _until_ended(read: Callable[[], Awaitable[J]]) -> J:
    """Returns the row once it has ended, or as it is shortly before the call's deadline."""
    row: J = await waiting.until_seen(
        read, lambda row: row.state in rules.ENDED, waiting.patience()
    )
    return row
