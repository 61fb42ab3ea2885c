"""AnalysisService: turns pictures and stated facts into structured facts with a confidence and its
evidence."""

from collections.abc import AsyncIterator

from atelier.conversions.v1 import analysis_pb2 as pb
from atelier.conversions.v1 import analysis_pb2_grpc
from psycopg.types.json import Jsonb

from services.conversions import assets
from services.conversions.analysis_rows import ANALYSES, KIND, TASKS, Analysis, to_proto
from services.conversions.job_calls import Columns, JobCalls, scheduling
from shared.background.jobs import JobQueue
from shared.background.watches import EventStream
from shared.database.db import Database, Mutation
from shared.database.lists import Listing
from shared.rpc import protos, views
from shared.rpc.calls import Peers
from shared.rpc.server import Context

_LIST = Listing(ANALYSES, Analysis)


class AnalysisService(analysis_pb2_grpc.AnalysisServiceServicer):
    def __init__(self, db: Database, stream: EventStream, queue: JobQueue, peers: Peers) -> None:
        self._db = db
        self._peers = peers
        self._jobs = JobCalls(KIND, db, stream, queue)

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
            answer.analysis.CopyFrom(to_proto(row))
        return answer

    async def _columns(self, request: pb.CreateAnalysisRequest) -> Columns:
        facts = protos.facts(request.facts, "facts")
        wanted = [
            assets.Wanted(f"images[{number}].asset_id", image.asset_id)
            for number, image in enumerate(request.images)
        ]
        pictures = await assets.check(self._peers, wanted)
        pairs = zip(pictures, request.images, strict=True)
        images = [{"asset_id": picture.id, "view": image.view} for picture, image in pairs]
        return {
            "task": TASKS.word[request.task],
            "images": Jsonb(images),
            "facts": Jsonb(facts),
            "product_id": request.product_id,
            **scheduling(request),
        }

    async def GetAnalysis(
        self, request: pb.GetAnalysisRequest, context: Context
    ) -> pb.GetAnalysisResponse:
        analysis = to_proto(await self._jobs.get(request.analysis_id))
        await self._jobs.add_position(analysis)
        return pb.GetAnalysisResponse(analysis=analysis)

    async def ListAnalyses(
        self, request: pb.ListAnalysesRequest, context: Context
    ) -> pb.ListAnalysesResponse:
        page, rows = await self._jobs.page(
            _LIST, request, product_id=request.product_id, task=TASKS.word.get(request.task)
        )
        analyses, token = page.fill(rows, map(to_proto, rows))
        return pb.ListAnalysesResponse(analyses=analyses, next_page_token=token)

    async def CancelAnalysis(
        self, request: pb.CancelAnalysisRequest, context: Context
    ) -> pb.CancelAnalysisResponse:
        async def work(m: Mutation) -> pb.CancelAnalysisResponse:
            row, outcome = await self._jobs.cancel(m, request.analysis_id)
            return pb.CancelAnalysisResponse(analysis=to_proto(row), outcome=outcome)

        return await self._db.mutate(request, pb.CancelAnalysisResponse, work)

    def WatchAnalyses(
        self, request: pb.WatchAnalysesRequest, context: Context
    ) -> AsyncIterator[pb.WatchAnalysesResponse]:
        return self._jobs.watch(request, pb.WatchAnalysesResponse, request.analysis_ids)
