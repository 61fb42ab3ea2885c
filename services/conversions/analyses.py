"""Analyses: pictures and stated facts in, structured facts with a confidence and its evidence
out."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from atelier.conversions.v1 import analysis_pb2 as pb
from atelier.conversions.v1 import analysis_pb2_grpc
from psycopg.types.json import Jsonb

from services.conversions import inputs, jobs, rules
from services.conversions.making import Making
from shared.background import attempts
from shared.background.events import EventStream
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.rpc import protos, views
from shared.rpc.calls import Peers
from shared.rpc.protos import Words

TASKS = Words(pb.AnalysisTask, "ANALYSIS_TASK_")


def to_proto(row: Any) -> pb.Analysis:
    analysis = pb.Analysis(
        **jobs.common_fields(row),
        task=TASKS.number[row.task],
        images=[
            pb.AnalysisImage(**image, view_type=views.type_of(image["view"]))
            for image in row.images
        ],
        facts=protos.facts_message(row.facts),
    )
    if row.result is not None:
        analysis.result.CopyFrom(protos.struct(row.result))
    return analysis


def _inputs(row: Any) -> list[tuple[str, UUID]]:
    named = enumerate(row.images, start=1)
    return [
        (image["view"] or f"picture {number}", UUID(image["asset_id"])) for number, image in named
    ]


NOUN = jobs.Noun("analysis", "analyses", pb.Analysis, to_proto, _inputs)


class AnalysisService(analysis_pb2_grpc.AnalysisServiceServicer):
    def __init__(self, db: Database, stream: EventStream, queue: JobQueue, peers: Peers) -> None:
        self._db = db
        self._stream = stream
        self._queue = queue
        self._peers = peers

    async def CreateAnalysis(
        self, request: pb.CreateAnalysisRequest, context: Any
    ) -> pb.CreateAnalysisResponse:
        for number, image in enumerate(request.images):
            views.settle(image, f"images[{number}].")
        answer = await self._db.stored_answer(request, pb.CreateAnalysisResponse)
        if answer is None:
            answer = await self._take_on(request)
        if request.wait:
            row = await jobs.finished(self._db, self._stream, NOUN, request, answer.analysis.id)
            answer.analysis.CopyFrom(to_proto(row))
        return answer

    async def _take_on(self, request: pb.CreateAnalysisRequest) -> pb.CreateAnalysisResponse:
        facts = protos.facts(request.facts, "facts")
        named = enumerate(request.images)
        wanted = [
            inputs.Wanted(f"images[{number}].asset_id", image.asset_id) for number, image in named
        ]
        assets = await inputs.check(self._peers, wanted)
        pairs = zip(assets, request.images, strict=True)
        images = [{"asset_id": asset.id, "view": image.view} for asset, image in pairs]
        columns = {
            "task": TASKS.word[request.task],
            "images": Jsonb(images),
            "facts": Jsonb(facts),
            "product_id": request.product_id,
            **jobs.wishes(request),
        }

        async def work(m: Mutation) -> pb.CreateAnalysisResponse:
            return pb.CreateAnalysisResponse(
                analysis=to_proto(await jobs.insert(m, self._queue, NOUN, columns))
            )

        return await self._db.mutate(request, pb.CreateAnalysisResponse, work)

    async def GetAnalysis(
        self, request: pb.GetAnalysisRequest, context: Any
    ) -> pb.GetAnalysisResponse:
        analysis = to_proto(await jobs.get(self._db, NOUN, request.analysis_id))
        await jobs.add_position(analysis, self._queue)
        return pb.GetAnalysisResponse(analysis=analysis)

    async def ListAnalyses(
        self, request: pb.ListAnalysesRequest, context: Any
    ) -> pb.ListAnalysesResponse:
        page, rows = await jobs.page(
            self._db,
            NOUN,
            request,
            product_id=request.product_id,
            task=TASKS.word.get(request.task),
        )
        analyses, token = page.fill(rows, map(to_proto, rows))
        return pb.ListAnalysesResponse(analyses=analyses, next_page_token=token)

    async def CancelAnalysis(
        self, request: pb.CancelAnalysisRequest, context: Any
    ) -> pb.CancelAnalysisResponse:
        async def work(m: Mutation) -> pb.CancelAnalysisResponse:
            row, outcome = await jobs.cancel(m, self._queue, NOUN, request.analysis_id)
            return pb.CancelAnalysisResponse(analysis=to_proto(row), outcome=outcome)

        return await self._db.mutate(request, pb.CancelAnalysisResponse, work)

    def WatchAnalyses(
        self, request: pb.WatchAnalysesRequest, context: Any
    ) -> AsyncIterator[pb.WatchAnalysesResponse]:
        return jobs.watch(
            self._db, self._stream, NOUN, request, pb.WatchAnalysesResponse, request.analysis_ids
        )


async def make(making: Making) -> attempts.Outcome:
    """The job."""
    row = making.row
    images = [(item.role, item.path) for item in await making.fetch()]
    reading = await making.provider.analyse(row.task, images, row.facts)
    return making.conclude(reading, parameters={"task": row.task}, price=rules.ANALYSIS_CREDITS)
