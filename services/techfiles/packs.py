"""TechPackService, the servicer of runs and of exports: one method per call."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

from atelier.techfiles.v1 import tech_pack_pb2 as pb

from services.techfiles import (
    collection_rows,
    explaining,
    export_rows,
    pack_rows,
    releasing_pictures,
    rules,
    running,
    trash_rows,
)
from services.techfiles.assets import Assets
from services.techfiles.export_rows import SELECT_EXPORT, Export
from services.techfiles.export_storage import ExportQuotas
from services.techfiles.pack_rows import RUN_STATES, RUNS, SELECT_RUN, Run
from services.techfiles.pack_sources import PackSource, PackSources
from services.techfiles.rules import Shot
from services.techfiles.run_views import RunViews
from services.techfiles.running import RunOptions
from services.techfiles.step_jobs import StepJobs
from services.techfiles.trash import RunTrash
from services.techfiles.views import TechFileViews
from shared.background import jobs, waiting
from shared.background.job_tables import JobRow
from shared.background.watches import Event, EventStream, Fields
from shared.database import states
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.database.lists import Listing, created
from shared.database.rows import Statement
from shared.formats.facts import Facts, parse_facts
from shared.rpc import auth, errors, paging, protos
from shared.rpc.server import Context

J = TypeVar("J", bound=JobRow)

_LIST = Listing(RUNS, Run, **trash_rows.HIDES)
_LOCK_RUN = Statement(Run, f"{SELECT_RUN.text} FOR UPDATE")
_REQUEST_CANCEL = Statement(
    Run,
    f"""
    UPDATE runs SET cancel_requested = true, version = version + 1, updated_at = now()
    WHERE id = %(id)s RETURNING {RUNS.columns}
    """,
)


class TechPackService(RunTrash):
    def __init__(
        self,
        db: Database,
        stream: EventStream,
        queue: jobs.JobQueue,
        assets: Assets,
        sources: PackSources,
        views: TechFileViews,
        quotas: ExportQuotas,
        step_jobs: StepJobs,
    ) -> None:
        super().__init__(db, timedelta(days=db.settings.trash_days))
        self._quotas = quotas
        self._jobs = step_jobs
        self._stream = stream
        self._queue = queue
        self._assets = assets
        self._sources = sources
        self._runs = RunViews(db, views)

    async def GenerateTechPack(
        self, request: pb.GenerateTechPackRequest, context: Context
    ) -> pb.GenerateTechPackResponse:
        # What a repeat would find anew, such as the product, may have changed since, and what it
        # would hold may be purged.
        response = await self._db.stored_answer(request, pb.GenerateTechPackResponse)
        if response is None:
            source = await self._sources.find(request)
            pictures = map(UUID, source.pictures)
            async with releasing_pictures.unless_kept(self._db, source.product_id, *pictures):
                await self._assets.acquire(
                    source.product_id, source.pictures, "revisions", pictures=True
                )
                response = await self._start(request, source)
        if not request.wait:
            response.next_step = explaining.going_on(response.run.id)
            return response
        run, archive = await self._ended(UUID(response.run.id))
        return pb.GenerateTechPackResponse(
            run=await self._runs.message(run, urls=request.include_urls),
            next_step=explaining.next_step(run, archive),
        )

    async def _start(
        self, request: pb.GenerateTechPackRequest, source: PackSource
    ) -> pb.GenerateTechPackResponse:
        plan = rules.plan(
            source.revisions,
            _shots(parse_facts(source.facts)),
            primary=source.primary,
            skip=_skipped_kinds(request),
        )

        async def work(m: Mutation) -> pb.GenerateTechPackResponse:
            collection = await collection_rows.create(
                m,
                product_id=source.product_id,
                name=request.collection_name or f"Tech pack {source.product_id}",
                collection_type="tech_pack_v2",
                facts=source.facts,
                fact_sources=source.fact_sources,
            )
            run_id = new_id()
            batch_id = f"tech-pack-{source.product_id[:128]}-{run_id}"
            run = await running.create(m, run_id, collection, plan, batch_id, _options(request))
            await self._queue.enqueue(m, pack_rows.TASK, pack_rows.QUEUE, run_id)
            return pb.GenerateTechPackResponse(run=await pack_rows.read(m, run))

        return await self._db.mutate(request, pb.GenerateTechPackResponse, work)

    async def GetTechPackRun(
        self, request: pb.GetTechPackRunRequest, context: Context
    ) -> pb.GetTechPackRunResponse:
        row = await self._run(parse_id(request.run_id, "run_id"))
        run = await self._runs.message(row, urls=request.include_urls)
        return pb.GetTechPackRunResponse(run=run)

    async def ListTechPackRuns(
        self, request: pb.ListTechPackRunsRequest, context: Context
    ) -> pb.ListTechPackRunsResponse:
        auth.act_for(request.owner or auth.current().owner)
        page = paging.page(request)
        wanted = {
            "product_id": request.product_id,
            "state": RUN_STATES.word.get(request.state),
            "collection_id": UUID(request.collection_id) if request.collection_id else None,
            **created(request),
            "hide_deleted": not request.show_deleted,
        }
        rows = await self._db.all(*_LIST.query(page, wanted))
        messages = await self._runs.messages(page.cut(rows), with_steps=False)
        runs, token = page.fill(rows, messages)
        return pb.ListTechPackRunsResponse(runs=runs, next_page_token=token)

    async def WatchTechPackRun(
        self, request: pb.WatchTechPackRunRequest, context: Context
    ) -> AsyncIterator[pb.WatchTechPackRunResponse]:
        run_id = parse_id(request.run_id, "run_id")

        async def now() -> AsyncIterator[tuple[Fields, Run]]:
            row = await self._run(run_id)
            yield {"run": await self._runs.message(row)}, row

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
            moves = await pack_rows.last_moves(m, run_id)
            if run.state == "pending" and not any(map(pack_rows.has_jobs, moves.values())):
                run = await _cancel(m, run)
            elif cancelling:  # a worker cancels its jobs first
                waits = run.state == "pending" and not run.cancel_requested
                run = await m.one(_REQUEST_CANCEL, {"id": run_id})
                await pack_rows.publish(m, run)
                if waits:  # it would only go on after its pause
                    await self._queue.enqueue(m, pack_rows.TASK, pack_rows.QUEUE, run_id)
            return pb.CancelTechPackRunResponse(
                run=await pack_rows.read(m, run), cancelling=cancelling
            )

        return await self._db.mutate(request, pb.CancelTechPackRunResponse, work)

    async def RetryTechPackRun(
        self, request: pb.RetryTechPackRunRequest, context: Context
    ) -> pb.RetryTechPackRunResponse:
        run_id = parse_id(request.run_id, "run_id")

        async def work(m: Mutation) -> pb.RetryTechPackRunResponse:
            before = await m.first(SELECT_RUN, {"id": run_id})
            if before is None:
                raise errors.not_found("run", run_id)
            _check_retry(before)
            moves = await trash_rows.keep_what_is_retried(m, before)
            run = await m.first(_LOCK_RUN, {"id": run_id})
            if run is None:
                raise errors.not_found("run", run_id)
            _check_retry(run)  # it may have changed before it was locked
            pack_rows.refuse_jobs_left(moves.values())
            run = await running.retry(m, run)
            await self._queue.enqueue(m, pack_rows.TASK, pack_rows.QUEUE, run_id)
            return pb.RetryTechPackRunResponse(run=await pack_rows.read(m, run))

        response = await self._db.mutate(request, pb.RetryTechPackRunResponse, work)
        if not request.wait:
            response.next_step = explaining.going_on(response.run.id)
            return response
        run, archive = await self._ended(run_id)
        return pb.RetryTechPackRunResponse(
            run=await self._runs.message(run), next_step=explaining.next_step(run, archive)
        )

    async def ExplainTechPackRun(
        self, request: pb.ExplainTechPackRunRequest, context: Context
    ) -> pb.ExplainTechPackRunResponse:
        run = await self._run(parse_id(request.run_id, "run_id"))
        moves = await self._db.all(pack_rows.SELECT_STEPS, {"ids": [run.id]})
        last = {move.name: move for move in moves}
        said = await self._jobs.explain(filter(pack_rows.has_jobs, last.values()))
        found = explaining.findings(run, pack_rows.plan_of(run), last, await self._zip(run), said)
        return pb.ExplainTechPackRunResponse(summary=explaining.summary(run, found), findings=found)

    async def ExportCollection(
        self, request: pb.ExportCollectionRequest, context: Context
    ) -> pb.ExportCollectionResponse:
        collection_id = parse_id(request.collection_id, "collection_id")
        facts = protos.facts(request.facts, "facts") if request.HasField("facts") else None
        if request.picture_pixels and request.format != pb.EXPORT_FORMAT_ZIP:
            raise errors.invalid("picture_pixels", "is for a ZIP; leave it out, or ask for a ZIP")

        async def work(m: Mutation) -> pb.ExportCollectionResponse:
            collection = await collection_rows.share(m, collection_id)
            await self._quotas.room(m)
            going_on = await m.first(
                pack_rows.SELECT_UNENDED, {"collection_id": collection_id, "export_id": None}
            )
            if going_on and request.require_complete:
                raise errors.precondition(
                    f"run {going_on} still fills the collection; wait for it with"
                    " WatchTechPackRun, or export without require_complete",
                    subject=f"runs/{going_on}",
                )
            format = export_rows.FORMATS.word[request.format]
            row = await export_rows.create(
                m,
                new_id(),
                collection,
                format,
                facts,
                incomplete=going_on is not None,
                picture_pixels=request.picture_pixels,
            )
            await self._queue.enqueue(m, export_rows.TASK, export_rows.QUEUE, row.id)
            return pb.ExportCollectionResponse(export=export_rows.to_proto(row))

        response = await self._db.mutate(request, pb.ExportCollectionResponse, work)
        if request.wait:
            export_id = UUID(response.export.id)
            row = await self._export_ended(export_id)
            response = pb.ExportCollectionResponse(export=self._runs.export(row))
            response.next_step = explaining.of_export(row)
        return response

    async def GetExport(
        self, request: pb.GetExportRequest, context: Context
    ) -> pb.GetExportResponse:
        row = await self._export(parse_id(request.export_id, "export_id"))
        return pb.GetExportResponse(export=self._runs.export(row))

    async def _ended(self, run_id: UUID) -> tuple[Run, Export | None]:
        """Returns the run and its ZIP, if it has one, once both have ended, or as they are shortly
        before the call's deadline. Raises NOT_FOUND if one is purged meanwhile."""
        run = await _until_ended(lambda: self._run(run_id))
        archive = await self._zip(run)
        if archive is None:  # it may have been purged before: the run is still an answer
            return run, None
        return run, await self._export_ended(archive.id)

    async def _export_ended(self, export_id: UUID) -> Export:
        return await _until_ended(lambda: self._export(export_id))

    async def _zip(self, run: Run) -> Export | None:
        if run.zip_export_id is None:
            return None
        return await self._db.first(SELECT_EXPORT, {"id": run.zip_export_id})

    async def _export(self, export_id: UUID) -> Export:
        row = await self._db.first(SELECT_EXPORT, {"id": export_id})
        if row is None:
            raise errors.not_found("export", export_id)
        return row

    async def _run(self, run_id: UUID) -> Run:
        row = await self._db.first(SELECT_RUN, {"id": run_id})
        if row is None:
            raise errors.not_found("run", run_id)
        return row


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


def _options(request: pb.GenerateTechPackRequest) -> RunOptions:
    return RunOptions(
        UUID(request.source_product_id) if request.source_product_id else None,
        request.run_externally,
        request.make_zip,
    )


def _check_retry(run: Run) -> None:
    """Raises FAILED_PRECONDITION if nothing in the run can be tried again."""
    subject = f"runs/{run.id}"
    if run.state == "completed":
        text = "nothing in it failed; GenerateTechPack makes another pack"
        raise errors.precondition(text, subject=subject)
    if run.state not in rules.ENDED:
        text = (
            f"it is {run.state.upper()}, and tries again by itself; wait for its end with"
            " WatchTechPackRun, or cancel it first with CancelTechPackRun"
        )
        raise errors.precondition(text, subject=subject)
    if run.deleted_at is not None:
        text = "it is in the trash; undelete it first (UndeleteTechPackRun)"
        raise errors.precondition(text, subject=subject)


async def _until_ended(read: Callable[[], Awaitable[J]]) -> J:
    """Returns the row once it has ended, or as it is shortly before the call's deadline."""
    row: J = await waiting.until_seen(
        read, lambda row: row.state in rules.ENDED, waiting.patience()
    )
    return row
