"""GenerationService: makes pictures from prompts, and close-ups and line drawings from
photographs."""

from collections.abc import AsyncIterator, Sequence
from uuid import UUID

from atelier.conversions.v1 import generation_pb2 as pb
from atelier.conversions.v1 import generation_pb2_grpc

from services.conversions import assets, rules
from services.conversions.generation_rows import GENERATIONS, KIND, TASKS, Generation, to_proto
from services.conversions.job_calls import Columns, CreateRequest, JobCalls, Scheduling, scheduling
from shared.background.jobs import JobQueue
from shared.background.watches import EventStream
from shared.database.db import Database, Mutation
from shared.database.lists import Listing
from shared.rpc import errors, views
from shared.rpc.calls import Peers
from shared.rpc.server import Context

_LIST = Listing(GENERATIONS, Generation)


class NewGeneration(Scheduling):
    """The columns that the caller decides."""

    task: str
    prompt: str
    style: str
    aspect_ratio: str
    quality: str
    format: str
    resolution: str
    seed: int | None
    reference_asset_ids: list[UUID]
    source_asset_id: UUID | None
    view: str
    at_x: float | None
    at_y: float | None
    name: str
    product_id: str
    dataset_id: str
    regenerated_from: UUID | None


class GenerationService(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, db: Database, stream: EventStream, queue: JobQueue, peers: Peers) -> None:
        self._db = db
        self._peers = peers
        self._jobs = JobCalls(KIND, db, stream, queue)

    async def CreateGeneration(
        self, request: pb.CreateGenerationRequest, context: Context
    ) -> pb.CreateGenerationResponse:
        views.settle(request)

        async def columns() -> Columns:
            return await self._checked(_new(request))

        answer = await self._jobs.create(request, pb.CreateGenerationResponse, columns)
        if request.wait:
            answer.generation.CopyFrom(await self._finished(request, answer.generation.id))
        return answer

    async def RegenerateGeneration(
        self, request: pb.RegenerateGenerationRequest, context: Context
    ) -> pb.RegenerateGenerationResponse:
        row = await self._jobs.get(request.generation_id)

        async def columns() -> Columns:
            return await self._checked(_again(row, request))

        answer = await self._jobs.create(request, pb.RegenerateGenerationResponse, columns)
        if request.wait:
            answer.generation.CopyFrom(await self._finished(request, answer.generation.id))
        return answer

    async def _checked(self, new: NewGeneration) -> Columns:
        await assets.check(self._peers, _wanted(new))
        return new

    async def _finished(self, request: CreateRequest, generation_id: str) -> pb.Generation:
        row = await self._jobs.finished(request, generation_id)
        return await self._message(row, with_urls=True)

    async def GetGeneration(
        self, request: pb.GetGenerationRequest, context: Context
    ) -> pb.GetGenerationResponse:
        row = await self._jobs.get(request.generation_id)
        generation = await self._message(row, with_urls=request.include_urls)
        await self._jobs.add_position(generation)
        return pb.GetGenerationResponse(generation=generation)

    async def ListGenerations(
        self, request: pb.ListGenerationsRequest, context: Context
    ) -> pb.ListGenerationsResponse:
        page, rows = await self._jobs.page(
            _LIST,
            request,
            product_id=request.product_id,
            dataset_id=request.dataset_id,
            task=TASKS.word.get(request.task),
        )
        generations = [to_proto(row) for row in page.cut(rows)]
        if request.include_urls:
            await assets.add_urls(self._peers, generations)
        generations, token = page.fill(rows, generations)
        return pb.ListGenerationsResponse(generations=generations, next_page_token=token)

    async def CancelGeneration(
        self, request: pb.CancelGenerationRequest, context: Context
    ) -> pb.CancelGenerationResponse:
        async def work(m: Mutation) -> pb.CancelGenerationResponse:
            row, outcome = await self._jobs.cancel(m, request.generation_id)
            return pb.CancelGenerationResponse(generation=to_proto(row), outcome=outcome)

        return await self._db.mutate(request, pb.CancelGenerationResponse, work)

    def WatchGenerations(
        self, request: pb.WatchGenerationsRequest, context: Context
    ) -> AsyncIterator[pb.WatchGenerationsResponse]:
        return self._jobs.watch(request, pb.WatchGenerationsResponse, request.generation_ids)

    async def _message(self, row: Generation, *, with_urls: bool) -> pb.Generation:
        generation = to_proto(row)
        if with_urls:
            await assets.add_urls(self._peers, [generation])
        return generation


def _new(request: pb.CreateGenerationRequest) -> NewGeneration:
    """Returns the columns that the request asks for, with the defaults of its task. Raises
    INVALID_ARGUMENT for fields that don't fit the task."""
    task = TASKS.word[request.task]
    given = frozenset(field.name for field, _ in request.ListFields())
    if problem := rules.generation_problem(task, given):
        raise errors.invalid(*problem)
    defaults = rules.GENERATION_DEFAULTS[task]
    placed = request.HasField("at")
    return {
        "task": task,
        "prompt": request.prompt,
        "style": request.style,
        "aspect_ratio": request.aspect_ratio or defaults.get("aspect_ratio", ""),
        "quality": request.quality or defaults.get("quality", ""),
        "format": request.format or defaults["format"],
        "resolution": request.resolution or defaults.get("resolution", ""),
        "seed": request.seed if request.HasField("seed") else None,
        "reference_asset_ids": _each_once(request.reference_asset_ids),
        "source_asset_id": UUID(request.source_asset_id) if request.source_asset_id else None,
        "view": request.view,
        "at_x": request.at.x if placed else None,
        "at_y": request.at.y if placed else None,
        "name": request.name,
        "product_id": request.product_id,
        "dataset_id": request.dataset_id,
        "regenerated_from": None,
        **scheduling(request),
    }


def _each_once(references: Sequence[str]) -> list[UUID]:
    """Returns the ids. Raises INVALID_ARGUMENT if two are the same: protovalidate compares texts,
    where case counts."""
    seen: dict[UUID, int] = {}
    for index, text in enumerate(references):
        earlier = seen.setdefault(UUID(text), index)
        if earlier != index:
            field = f"reference_asset_ids[{index}]"
            raise errors.invalid(field, f"names the same asset as reference_asset_ids[{earlier}]")
    return list(seen)


def _again(row: Generation, request: pb.RegenerateGenerationRequest) -> NewGeneration:
    """Returns the columns that made the row, perhaps with another seed. Raises INVALID_ARGUMENT for
    a seed that its task doesn't take."""
    seeded = request.HasField("seed")
    if seeded and row.task != "image":
        raise errors.invalid("seed", f"means nothing to task {row.task}; leave it out")
    return {
        "task": row.task,
        "prompt": row.prompt,
        "style": row.style,
        "aspect_ratio": row.aspect_ratio,
        "quality": row.quality,
        "format": row.format,
        "resolution": row.resolution,
        "seed": request.seed if seeded else row.seed,
        "reference_asset_ids": row.reference_asset_ids,
        "source_asset_id": row.source_asset_id,
        "view": row.view,
        "at_x": row.at_x,
        "at_y": row.at_y,
        "name": row.name,
        "product_id": row.product_id,
        "dataset_id": row.dataset_id,
        "regenerated_from": row.id,
        "priority": row.priority,
        "external": row.external,
    }


def _wanted(new: NewGeneration) -> list[assets.Wanted]:
    wanted = [
        assets.Wanted(f"reference_asset_ids[{number}]", str(each))
        for number, each in enumerate(new["reference_asset_ids"])
    ]
    if new["source_asset_id"]:
        wanted.append(assets.Wanted("source_asset_id", str(new["source_asset_id"])))
    return wanted
