"""AnalysisService: turns pictures and stated facts into structured facts with a confidence and its
evidence."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

from atelier.conversions.v1 import analysis_pb2 as pb
from atelier.conversions.v1 import analysis_pb2_grpc
from psycopg.types.json import Jsonb

from services.conversions import assets, earlier, rules, trash_rows
from services.conversions.analysis_rows import (
    ANALYSES,
    KIND,
    TASKS,
    AnalysedImage,
    Analysis,
    to_proto,
)
from services.conversions.job_calls import Columns, JobCalls, scheduling
from services.conversions.retention_rows import Retention
from services.conversions.spending import Offer, Spending
from services.conversions.trash import TrashCalls
from shared.background.jobs import JobQueue
from shared.background.watches import EventStream
from shared.database.db import Database, Mutation
from shared.database.lists import Listing
from shared.rpc import protos, views
from shared.rpc.calls import Peers
from shared.rpc.server import Context

_LIST = Listing(ANALYSES, Analysis, **trash_rows.HIDES)


class AnalysisService(analysis_pb2_grpc.AnalysisServiceServicer):
    def __init__(
        self,
        db: Database,
        stream: EventStream,
        queue: JobQueue,
        peers: Peers,
        spending: Spending,
        life: timedelta,
        retention: Retention,
    ) -> None:
        """`life`: how long a deleted analysis stays in the trash."""
        self._db = db
        self._peers = peers
        self._jobs = JobCalls(KIND, db, stream, queue, spending, retention)
        self._trash = TrashCalls(KIND, db, queue, life=life)

    async def CreateAnalysis(
        self, request: pb.CreateAnalysisRequest, context: Context
    ) -> pb.CreateAnalysisResponse:
        for number, image in enumerate(request.images):
            views.settle(image, f"images[{number}].")

        async def columns() -> Columns:
            return await self._columns(request)

        answer = await self._jobs.create(request, pb.CreateAnalysisResponse, columns)
        if request.wait:
            row = await self._jobs.finished(request, answer.analysis.id)
            answer.analysis.CopyFrom(self._jobs.message(row))
        return answer

    async def offer(self, request: pb.CreateAnalysisRequest) -> Offer:
        """Returns what the request would cost."""
        for number, image in enumerate(request.images):
            views.settle(image, f"images[{number}].")
        return await self._jobs.offer(request, await self._columns(request))

    async def _columns(self, request: pb.CreateAnalysisRequest) -> Columns:
        """Checks the request and returns the columns that it decides."""
        task = TASKS.word[request.task]
        self._jobs.check_provider(request, f"analysis.{task}")
        draft = {
            "task": task,
            "product_id": request.product_id,
            **scheduling(request),
        }
        facts = protos.facts(request.facts, "facts")
        images = [
            AnalysedImage(asset_id=image.asset_id, view=image.view) for image in request.images
        ]
        return await self._checked(draft, facts, images, reuse=request.reuse_result)

    async def RetryAnalysis(
        self, request: pb.RetryAnalysisRequest, context: Context
    ) -> pb.RetryAnalysisResponse:
        async def columns() -> Columns:
            row = await self._jobs.to_retry(request.analysis_id)
            draft = {
                "task": row.task,
                "product_id": row.product_id,
                "priority": row.priority,
                "external": row.external,
                "provider": row.provider,
                "drop_inputs": row.drop_inputs,
                "max_credits": row.max_credits,
                "retry_of": row.id,
            }
            return await self._checked(draft, row.facts, row.images, reuse=False)

        answer = await self._jobs.create(request, pb.RetryAnalysisResponse, columns)
        if request.wait:
            row = await self._jobs.finished(request, answer.analysis.id)
            answer.analysis.CopyFrom(self._jobs.message(row))
        return answer

    async def _checked(
        self,
        draft: dict[str, object],
        facts: dict[str, Any],
        images: Sequence[AnalysedImage],
        *,
        reuse: bool,
    ) -> Columns:
        """Checks the pictures and returns the columns of the draft's row; with `reuse` perhaps
        those of a row that an earlier result answers."""
        wanted = [
            assets.Wanted(f"images[{number}].asset_id", image["asset_id"])
            for number, image in enumerate(images)
        ]
        pictures = await assets.check(self._peers, wanted)
        pairs = list(zip(pictures, images, strict=True))
        inputs = [(image["view"], picture.sha256) for picture, image in pairs]
        digest = rules.recipe_digest(inputs, task=draft["task"], facts=facts)
        columns = {
            **draft,
            "images": Jsonb(
                [{"asset_id": picture.id, "view": image["view"]} for picture, image in pairs]
            ),
            "facts": Jsonb(facts),
            "recipe_digest": digest,
            **await self._jobs.consents(f"analysis.{draft['task']}", pictures),
        }
        if reuse:
            recipe = earlier.Recipe(digest)
            [first, *_] = await self._jobs.candidates(
                f"analysis.{draft['task']}", str(draft["provider"])
            )
            columns |= await earlier.answer(self._db, self._peers, KIND, first, recipe)
        return columns

    async def GetAnalysis(
        self, request: pb.GetAnalysisRequest, context: Context
    ) -> pb.GetAnalysisResponse:
        self._jobs.act_for(request)
        analysis = self._jobs.message(await self._jobs.get(request.analysis_id))
        await self._jobs.add_position(analysis)
        return pb.GetAnalysisResponse(analysis=analysis)

    async def ListAnalyses(
        self, request: pb.ListAnalysesRequest, context: Context
    ) -> pb.ListAnalysesResponse:
        self._jobs.act_for(request)
        page, rows = await self._jobs.page(
            _LIST, request, product_id=request.product_id, task=TASKS.word.get(request.task)
        )
        analyses, token = page.fill(rows, map(self._jobs.message, rows))
        return pb.ListAnalysesResponse(analyses=analyses, next_page_token=token)

    async def CancelAnalysis(
        self, request: pb.CancelAnalysisRequest, context: Context
    ) -> pb.CancelAnalysisResponse:
        async def work(m: Mutation) -> pb.CancelAnalysisResponse:
            row, outcome = await self._jobs.cancel(m, request.analysis_id)
            return pb.CancelAnalysisResponse(analysis=to_proto(row), outcome=outcome)

        return await self._db.mutate(request, pb.CancelAnalysisResponse, work)

    async def ArchiveAnalysis(
        self, request: pb.ArchiveAnalysisRequest, context: Context
    ) -> pb.ArchiveAnalysisResponse:
        return await self._trash.archive(request, pb.ArchiveAnalysisResponse, archived=True)

    async def UnarchiveAnalysis(
        self, request: pb.UnarchiveAnalysisRequest, context: Context
    ) -> pb.UnarchiveAnalysisResponse:
        return await self._trash.archive(request, pb.UnarchiveAnalysisResponse, archived=False)

    async def DeleteAnalysis(
        self, request: pb.DeleteAnalysisRequest, context: Context
    ) -> pb.DeleteAnalysisResponse:
        return await self._trash.delete(request, pb.DeleteAnalysisResponse)

    async def UndeleteAnalysis(
        self, request: pb.UndeleteAnalysisRequest, context: Context
    ) -> pb.UndeleteAnalysisResponse:
        return await self._trash.undelete(request, pb.UndeleteAnalysisResponse)

    async def PurgeAnalysis(
        self, request: pb.PurgeAnalysisRequest, context: Context
    ) -> pb.PurgeAnalysisResponse:
        return await self._trash.purge(request, pb.PurgeAnalysisResponse)

    def WatchAnalyses(
        self, request: pb.WatchAnalysesRequest, context: Context
    ) -> AsyncIterator[pb.WatchAnalysesResponse]:
        return self._jobs.watch(request, pb.WatchAnalysesResponse, request.analysis_ids)
