"""Generations: pictures from prompts, close-ups and line drawings from photographs."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from atelier.assets.v1 import asset_pb2
from atelier.common.v1 import facts_pb2
from atelier.conversions.v1 import generation_pb2 as pb
from atelier.conversions.v1 import generation_pb2_grpc

from services.conversions import inputs, jobs, rules
from services.conversions.making import Making
from services.conversions.providers import ImageSettings, Picture
from shared.background import attempts
from shared.background.events import EventStream
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.rpc import errors, views
from shared.rpc.calls import Peers
from shared.rpc.protos import Words

TASKS = Words(pb.GenerationTask, "GENERATION_TASK_")
_TEXTS = (
    "prompt",
    "style",
    "aspect_ratio",
    "quality",
    "format",
    "resolution",
    "view",
    "name",
    "product_id",
    "dataset_id",
)
_KINDS = {
    "image": asset_pb2.ASSET_KIND_GENERATED,
    "closeup": asset_pb2.ASSET_KIND_CLOSEUP,
    "sketch": asset_pb2.ASSET_KIND_SKETCH,
}


def to_proto(row: Any) -> pb.Generation:
    return pb.Generation(
        **jobs.common_fields(row),
        **{name: getattr(row, name) for name in _TEXTS if name != "product_id"},
        task=TASKS.number[row.task],
        view_type=views.type_of(row.view),
        seed=row.seed,
        full_prompt=row.full_prompt,
        prompt_used=row.full_prompt,
        reference_asset_ids=[str(each) for each in row.reference_asset_ids],
        reference_images_count=len(row.reference_asset_ids),
        unique_visual_elements=row.unique_visual_elements,
        source_asset_id=str(row.source_asset_id or ""),
        at=None if row.at_x is None else facts_pb2.Point(x=row.at_x, y=row.at_y),
        regenerated_from=str(row.regenerated_from or ""),
        result_asset_id=jobs.result_of(row),
        caption=row.prompt or row.name,
    )


def _inputs(row: Any) -> list[tuple[str, UUID]]:
    pairs = [("reference", each) for each in row.reference_asset_ids]
    return [*pairs, ("source", row.source_asset_id)] if row.source_asset_id else pairs


NOUN = jobs.Noun("generation", "generations", pb.Generation, to_proto, _inputs)


class GenerationService(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, db: Database, stream: EventStream, queue: JobQueue, peers: Peers) -> None:
        self._db = db
        self._stream = stream
        self._queue = queue
        self._peers = peers

    async def CreateGeneration(
        self, request: pb.CreateGenerationRequest, context: Any
    ) -> pb.CreateGenerationResponse:
        views.settle(request)
        return await self._answer(request, pb.CreateGenerationResponse, lambda: _columns(request))

    async def RegenerateGeneration(
        self, request: pb.RegenerateGenerationRequest, context: Any
    ) -> pb.RegenerateGenerationResponse:
        row = await jobs.get(self._db, NOUN, request.generation_id)
        return await self._answer(
            request, pb.RegenerateGenerationResponse, lambda: _again(row, request)
        )

    async def _answer(self, request: Any, answer_type: Any, columns_of: Any) -> Any:
        """Takes on what the columns say, once per request_id, and waits for it if the request says
        so."""
        answer = await self._db.stored_answer(request, answer_type)
        if answer is None:
            columns = columns_of()
            await inputs.check(self._peers, _wanted(columns))

            async def work(m: Mutation) -> Any:
                return answer_type(
                    generation=to_proto(await jobs.insert(m, self._queue, NOUN, columns))
                )

            answer = await self._db.mutate(request, answer_type, work)
        if request.wait:
            row = await jobs.finished(self._db, self._stream, NOUN, request, answer.generation.id)
            answer.generation.CopyFrom(await self._shown(row, with_urls=True))
        return answer

    async def GetGeneration(
        self, request: pb.GetGenerationRequest, context: Any
    ) -> pb.GetGenerationResponse:
        row = await jobs.get(self._db, NOUN, request.generation_id)
        generation = await self._shown(row, with_urls=request.include_urls)
        await jobs.add_position(generation, self._queue)
        return pb.GetGenerationResponse(generation=generation)

    async def ListGenerations(
        self, request: pb.ListGenerationsRequest, context: Any
    ) -> pb.ListGenerationsResponse:
        page, rows = await jobs.page(
            self._db,
            NOUN,
            request,
            product_id=request.product_id,
            dataset_id=request.dataset_id,
            task=TASKS.word.get(request.task),
        )
        generations = [to_proto(row) for row in page.cut(rows)]
        if request.include_urls:
            await inputs.add_urls(self._peers, generations)
        generations, token = page.fill(rows, generations)
        return pb.ListGenerationsResponse(generations=generations, next_page_token=token)

    async def CancelGeneration(
        self, request: pb.CancelGenerationRequest, context: Any
    ) -> pb.CancelGenerationResponse:
        async def work(m: Mutation) -> pb.CancelGenerationResponse:
            row, outcome = await jobs.cancel(m, self._queue, NOUN, request.generation_id)
            return pb.CancelGenerationResponse(generation=to_proto(row), outcome=outcome)

        return await self._db.mutate(request, pb.CancelGenerationResponse, work)

    def WatchGenerations(
        self, request: pb.WatchGenerationsRequest, context: Any
    ) -> AsyncIterator[pb.WatchGenerationsResponse]:
        return jobs.watch(
            self._db,
            self._stream,
            NOUN,
            request,
            pb.WatchGenerationsResponse,
            request.generation_ids,
        )

    async def _shown(self, row: Any, *, with_urls: bool) -> pb.Generation:
        generation = to_proto(row)
        if with_urls:
            await inputs.add_urls(self._peers, [generation])
        return generation


def _columns(request: pb.CreateGenerationRequest) -> dict[str, Any]:
    """The row of a request, with the task's defaults. INVALID_ARGUMENT for fields that don't fit
    the task."""
    task = TASKS.word[request.task]
    if problem := rules.generation_problem(
        task, frozenset(field.name for field, _ in request.ListFields())
    ):
        raise errors.invalid(*problem)
    given = {name: getattr(request, name) for name in _TEXTS}
    defaults = rules.GENERATION_DEFAULTS[task]
    placed = request.HasField("at")
    return {
        **given,
        **{name: given[name] or default for name, default in defaults.items()},
        "task": task,
        "seed": request.seed if request.HasField("seed") else None,
        "reference_asset_ids": _each_once(request.reference_asset_ids),
        "source_asset_id": UUID(request.source_asset_id) if request.source_asset_id else None,
        "at_x": request.at.x if placed else None,
        "at_y": request.at.y if placed else None,
        **jobs.wishes(request),
    }


def _each_once(references: Sequence[str]) -> list[UUID]:
    """The ids. INVALID_ARGUMENT if two are one: protovalidate compares texts, in which case
    counts."""
    seen: dict[UUID, int] = {}
    for index, text in enumerate(references):
        earlier = seen.setdefault(UUID(text), index)
        if earlier != index:
            field = f"reference_asset_ids[{index}]"
            raise errors.invalid(field, f"names the same asset as reference_asset_ids[{earlier}]")
    return list(seen)


def _again(row: Any, request: pb.RegenerateGenerationRequest) -> dict[str, Any]:
    seeded = request.HasField("seed")
    if seeded and row.task != "image":
        raise errors.invalid("seed", f"means nothing to task {row.task}; leave it out")
    same = (
        *_TEXTS,
        "task",
        "reference_asset_ids",
        "source_asset_id",
        "at_x",
        "at_y",
        "priority",
        "external",
    )
    return {
        **{name: getattr(row, name) for name in same},
        "seed": request.seed if seeded else row.seed,
        "regenerated_from": row.id,
    }


def _wanted(columns: Mapping[str, Any]) -> list[inputs.Wanted]:
    references = enumerate(columns["reference_asset_ids"])
    wanted = [
        inputs.Wanted(f"reference_asset_ids[{number}]", str(each)) for number, each in references
    ]
    if columns["source_asset_id"]:
        wanted.append(inputs.Wanted("source_asset_id", str(columns["source_asset_id"])))
    return wanted


async def make(making: Making) -> attempts.Outcome:
    """The job."""
    row = making.row
    paths = [item.path for item in await making.fetch()]
    elements = await making.provider.visual_elements(paths) if row.reference_asset_ids else []
    prompt = rules.full_prompt(
        row.task,
        row.prompt,
        style=row.style,
        aspect_ratio=row.aspect_ratio,
        quality=row.quality,
        elements=elements,
        name=row.name,
        view=row.view,
    )
    return await making.keep(
        await _picture(making, prompt, paths),
        kind=_KINDS[row.task],
        prompt=prompt,
        format=row.format,
        file_name=f"{row.name or row.task}.{row.format}",
        scope={"product_id": row.product_id, "dataset_id": row.dataset_id},
        price=rules.GENERATION_CREDITS[row.task],
        full_prompt=prompt,
        unique_visual_elements=elements,
    )


async def _picture(making: Making, prompt: str, paths: list[Any]) -> Picture:
    row, provider, directory = making.row, making.provider, making.directory
    if row.task == "closeup":
        at = None if row.at_x is None else (row.at_x, row.at_y)
        return await provider.close_up(prompt, paths[0], directory, at=at, format=row.format)
    if row.task == "sketch":
        return await provider.sketch(prompt, paths[0], directory, view=row.view, format=row.format)
    settings = ImageSettings(
        row.style, row.aspect_ratio, row.quality, row.format, row.resolution, row.seed
    )
    return await provider.image(prompt, paths, directory, settings)
