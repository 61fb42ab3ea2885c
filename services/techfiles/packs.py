"""TechPackService: the story of each call."""

from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from atelier.techfiles.v1 import tech_pack_pb2 as pb
from atelier.techfiles.v1 import tech_pack_pb2_grpc

from services.techfiles import collections, exports, files, orchestrator, rules, steps
from services.techfiles.assets import Assets, Shown
from services.techfiles.rules import Revision
from shared.background import events, jobs, waiting
from shared.database import states
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.formats.facts import parse_facts
from shared.rpc import auth, errors, paging, protos

_GET_RUN = "SELECT * FROM runs WHERE id = %(id)s"
_GET_EXPORT = "SELECT * FROM exports WHERE id = %(id)s"


class TechPackService(tech_pack_pb2_grpc.TechPackServiceServicer):
    def __init__(
        self,
        db: Database,
        stream: events.EventStream,
        queue: jobs.JobQueue,
        assets: Assets,
        shown: Shown,
    ) -> None:
        self._db = db
        self._stream = stream
        self._queue = queue
        self._assets = assets
        self._shown = shown

    async def GenerateTechPack(
        self, request: pb.GenerateTechPackRequest, context: Any
    ) -> pb.GenerateTechPackResponse:
        facts = _facts(request)
        revisions = [
            Revision(r.revision_id, files.VIEWS.word[r.view], r.asset_id) for r in request.revisions
        ]
        primary = request.primary_asset_id or revisions[0].asset_id
        pictures = list(dict.fromkeys([*(r.asset_id for r in revisions), primary]))
        await self._assets.hold(request.product_id, pictures, "revisions", pictures=True)
        skip = [
            kind
            for kind, skipped in (
                ("base_view", request.skip_base_views),
                ("closeup", request.skip_closeups),
                ("sketch", request.skip_sketches),
            )
            if skipped
        ]
        plan = rules.plan(revisions, parse_facts(facts), primary=primary, skip=skip)

        async def work(m: Mutation) -> pb.GenerateTechPackResponse:
            name = request.collection_name or f"Tech pack {request.product_id}"
            collection = await collections.create(
                m,
                {
                    "product_id": request.product_id,
                    "revision_id": "",
                    "name": name,
                    "description": "",
                    "collection_type": "tech_pack_v2",
                    "facts": facts,
                },
            )
            run_id = new_id()
            batch_id = f"tech-pack-{request.product_id[:128]}-{run_id}"
            run = await steps.create(m, run_id, collection, plan, batch_id)
            await self._queue.enqueue(m, orchestrator.TASK, orchestrator.QUEUE, run_id)
            return pb.GenerateTechPackResponse(run=await steps.shown(m, run))

        response = await self._db.mutate(request, pb.GenerateTechPackResponse, work)
        if request.wait:
            run_id = UUID(response.run.id)
            run = await _until_ended(lambda: self._db.row(_GET_RUN, {"id": run_id}))
            [shown] = await self._runs([run])
            response = pb.GenerateTechPackResponse(run=shown)
        return response

    async def GetTechPackRun(
        self, request: pb.GetTechPackRunRequest, context: Any
    ) -> pb.GetTechPackRunResponse:
        [run] = await self._runs([await self._run(parse_id(request.run_id, "run_id"))])
        return pb.GetTechPackRunResponse(run=run)

    async def ListTechPackRuns(
        self, request: pb.ListTechPackRunsRequest, context: Any
    ) -> pb.ListTechPackRunsResponse:
        conditions, parameters = ["owner = %(owner)s"], {"owner": auth.current().owner}
        words = {
            "product_id": request.product_id,
            "state": steps.RUN_STATES.word.get(request.state),
        }
        for name, value in words.items():
            if value:
                conditions.append(f"{name} = %({name})s")
                parameters[name] = value
        page = paging.page(request)
        statement: Any = f"SELECT * FROM runs WHERE {' AND '.join(conditions)}{page.clause}"
        rows = await self._db.rows(statement, parameters | page.parameters)
        runs, token = page.fill(rows, await self._runs(page.cut(rows), with_steps=False))
        return pb.ListTechPackRunsResponse(runs=runs, next_page_token=token)

    async def WatchTechPackRun(
        self, request: pb.WatchTechPackRunRequest, context: Any
    ) -> AsyncIterator[pb.WatchTechPackRunResponse]:
        run_id = parse_id(request.run_id, "run_id")

        async def now() -> AsyncIterator[tuple[events.Fields, Any]]:
            row = await self._run(run_id)
            [run] = await self._runs([row])
            yield {"run": run}, row

        def show(event: events.Event) -> events.Fields | None:
            return (
                {"run": pb.TechPackRun.FromString(event.payload)}
                if event.subject_id == run_id
                else None
            )

        if (await self._run(run_id)).state in rules.ENDED:
            request.cursor = ""  # nothing may come after it
        ended = False
        async for answer in self._stream.watch(request, pb.WatchTechPackRunResponse, now(), show):
            yield answer
            ended = ended or steps.RUN_STATES.word.get(answer.run.state) in rules.ENDED
            if ended and answer.cursor:  # the state as it was has none; READY follows it
                return

    async def CancelTechPackRun(
        self, request: pb.CancelTechPackRunRequest, context: Any
    ) -> pb.CancelTechPackRunResponse:
        run_id = parse_id(request.run_id, "run_id")

        async def work(m: Mutation) -> pb.CancelTechPackRunResponse:
            run = await m.one("SELECT * FROM runs WHERE id = %s FOR UPDATE", (run_id,))
            if run is None:
                raise errors.not_found("run", run_id)
            going_on = run.state not in rules.ENDED
            if run.state == "pending":
                run = await states.advance(
                    m, rules.RUN_STATES, "runs", run_id, "cancelled", cancel_requested=True
                )
            elif going_on:  # the job notices within a second
                run = await m.one(
                    "UPDATE runs SET cancel_requested = true, version = version + 1, updated_at ="
                    " now() WHERE id = %s RETURNING *",
                    (run_id,),
                )
            if going_on:
                await steps.publish(m, run)
            return pb.CancelTechPackRunResponse(run=await steps.shown(m, run), cancelling=going_on)

        return await self._db.mutate(request, pb.CancelTechPackRunResponse, work)

    async def ExportCollection(
        self, request: pb.ExportCollectionRequest, context: Any
    ) -> pb.ExportCollectionResponse:
        collection_id = parse_id(request.collection_id, "collection_id")
        facts = protos.facts(request.facts, "facts") if request.HasField("facts") else None

        async def work(m: Mutation) -> pb.ExportCollectionResponse:
            collection = await m.one(
                "SELECT id, name FROM collections WHERE id = %s", (collection_id,)
            )
            if collection is None:
                raise errors.not_found("collection", collection_id)
            format = exports.FORMATS.word[request.format]
            row = await exports.create(m, new_id(), collection, format, facts)
            await self._queue.enqueue(m, exports.TASK, exports.QUEUE, row.id)
            return pb.ExportCollectionResponse(export=exports.to_proto(row))

        response = await self._db.mutate(request, pb.ExportCollectionResponse, work)
        if request.wait:
            export_id = UUID(response.export.id)
            row = await _until_ended(lambda: self._db.row(_GET_EXPORT, {"id": export_id}))
            response = pb.ExportCollectionResponse(export=self._export(row))
        return response

    async def GetExport(self, request: pb.GetExportRequest, context: Any) -> pb.GetExportResponse:
        export_id = parse_id(request.export_id, "export_id")
        row = await self._db.row(_GET_EXPORT, {"id": export_id})
        if row is None:
            raise errors.not_found("export", export_id)
        return pb.GetExportResponse(export=self._export(row))

    def _export(self, row: Any) -> pb.Export:
        return exports.to_proto(
            row, self._shown.export_url(row) if row.state == "completed" else ""
        )

    async def _run(self, run_id: UUID) -> Any:
        row = await self._db.row(_GET_RUN, {"id": run_id})
        if row is None:
            raise errors.not_found("run", run_id)
        return row

    async def _runs(self, rows: Any, *, with_steps: bool = True) -> list[pb.TechPackRun]:
        recorded = await self._db.rows(steps.RECORDED, {"ids": [row.id for row in rows]})
        packs = await self._db.rows(
            "SELECT id, export_id FROM tech_files WHERE id = ANY(%(ids)s)",
            {"ids": [row.pack_file_id for row in rows]},
        )
        made = {pack.id: pack.export_id for pack in packs}
        of_run = defaultdict(list)
        for step in recorded:
            of_run[step.run_id].append(step)
        return [
            steps.to_proto(row, of_run[row.id], made.get(row.pack_file_id), with_steps=with_steps)
            for row in rows
        ]


def _facts(request: pb.GenerateTechPackRequest) -> dict[str, Any]:
    """What is stated, the category included. INVALID_ARGUMENT if that is said twice,
    differently."""
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


async def _until_ended(read: waiting.Read) -> Any:
    """The row once it has ended, or as it is shortly before the call's deadline."""
    return await waiting.until_seen(read, lambda row: row.state in rules.ENDED, waiting.patience())
