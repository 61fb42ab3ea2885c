"""GenerationService: makes pictures from prompts, and close-ups and line drawings from
photographs."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from uuid import UUID

from atelier.conversions.v1 import generation_pb2 as pb
from atelier.conversions.v1 import generation_pb2_grpc

from services.conversions import assets, drafting, earlier, rules, trash_rows
from services.conversions.generation_rows import GENERATIONS, KIND, TASKS, Generation, to_proto
from services.conversions.job_calls import Columns, CreateRequest, JobCalls
from services.conversions.retention_rows import Retention
from services.conversions.spending import Offer, Spending
from services.conversions.trash import TrashCalls
from shared.background.jobs import JobQueue
from shared.background.watches import EventStream
from shared.database.db import Database, Mutation
from shared.database.lists import Listing
from shared.rpc import errors, views
from shared.rpc.calls import Peers
from shared.rpc.server import Context

_LIST = Listing(GENERATIONS, Generation, **trash_rows.HIDES)


class GenerationService(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(
        self,
        db: Database,
        stream: EventStream,
        queue: JobQueue,
        peers: Peers,
        spending: Spending,
        thumbnail_seconds: float,
        life: timedelta,
        retention: Retention,
    ) -> None:
        """`thumbnail_seconds`: how long an answer that waited for a picture waits for its
        thumbnail. `life`: how long a deleted generation stays in the trash."""
        self._db = db
        self._peers = peers
        self._thumbnail_seconds = thumbnail_seconds
        self._jobs = JobCalls(KIND, db, stream, queue, spending, retention)
        self._trash = TrashCalls(KIND, db, queue, life=life)

    async def CreateGeneration(
        self, request: pb.CreateGenerationRequest, context: Context
    ) -> pb.CreateGenerationResponse:
        views.settle(request)

        async def columns() -> Columns:
            return await self._columns(request)

        answer = await self._jobs.create(request, pb.CreateGenerationResponse, columns)
        if request.wait:
            answer.generation.CopyFrom(await self._finished(request, answer.generation.id))
        return answer

    async def RegenerateGeneration(
        self, request: pb.RegenerateGenerationRequest, context: Context
    ) -> pb.RegenerateGenerationResponse:
        async def columns() -> Columns:
            row = await self._jobs.to_repeat(request.generation_id)
            return await self._columns_again(row, request)

        answer = await self._jobs.create(request, pb.RegenerateGenerationResponse, columns)
        if request.wait:
            answer.generation.CopyFrom(await self._finished(request, answer.generation.id))
        return answer

    async def offer(self, request: pb.CreateGenerationRequest) -> Offer:
        """Returns what the request would cost."""
        views.settle(request)
        return await self._jobs.offer(request, await self._columns(request))

    async def offer_again(self, request: pb.RegenerateGenerationRequest) -> Offer:
        """Returns what a request that repeats a generation would cost."""
        row = await self._jobs.to_repeat(request.generation_id)
        return await self._jobs.offer(request, await self._columns_again(row, request))

    async def _columns(self, request: pb.CreateGenerationRequest) -> Columns:
        """Checks the request and returns the columns that it decides."""
        draft = drafting.new(request)
        self._jobs.check_provider(request, f"generation.{draft.task}")
        images = _dataset_images(request)
        await drafting.take_from_dataset(self._db, self._peers, draft, images=images)
        return await self._checked(draft, reuse=request.reuse_result)

    async def _columns_again(
        self, row: Generation, request: pb.RegenerateGenerationRequest
    ) -> Columns:
        draft = drafting.edited(row, request)
        if request.HasField("dataset_id"):
            images = None if request.HasField("references") else rules.DATASET_IMAGES
            await drafting.move(self._db, self._peers, draft, request.dataset_id, images=images)
        if row.inputs_dropped_at:
            await self._refuse_dropped(row, draft, row.inputs_dropped_at)
        return await self._checked(draft, reuse=True, references="references.asset_ids")

    async def _refuse_dropped(
        self, row: Generation, draft: drafting.NewGeneration, dropped_at: datetime
    ) -> None:
        """Raises FAILED_PRECONDITION if the draft needs a picture that the row let go of, and that
        isn't there any more."""
        needed = {each.asset_id for each in drafting.wanted(draft, "")}
        needed &= {str(each.asset_id) for each in row.inputs()}
        found = await self._peers.assets(needed)
        if gone := sorted(each for each in needed if not assets.is_there(found.get(each))):
            text = (
                f"its pictures were dropped on {dropped_at:%Y-%m-%d} and {gone[0]} is deleted; name"
                " others in `references`, undelete it, or create a generation"
            )
            raise errors.precondition(text, subject=f"generations/{row.id}")

    async def RetryGeneration(
        self, request: pb.RetryGenerationRequest, context: Context
    ) -> pb.RetryGenerationResponse:
        async def columns() -> Columns:
            row = await self._jobs.to_retry(request.generation_id)
            columns = await self._checked(drafting.retried(row), reuse=False)
            return {**columns, "max_credits": row.max_credits}

        answer = await self._jobs.create(request, pb.RetryGenerationResponse, columns)
        if request.wait:
            answer.generation.CopyFrom(await self._finished(request, answer.generation.id))
        return answer

    async def _checked(
        self,
        draft: drafting.NewGeneration,
        *,
        reuse: bool,
        references: str = "reference_asset_ids",
    ) -> Columns:
        """Checks the pictures of the draft and returns the columns of its row; with `reuse` perhaps
        those of a row that an earlier result answers. `references`: the field of the references in
        errors."""
        pictures = await assets.check(self._peers, drafting.wanted(draft, references))
        recipe = drafting.recipe(draft, pictures)
        consents = await self._jobs.consents(f"generation.{draft.task}", pictures)
        columns = {**draft.columns(), "recipe_digest": recipe.digest, **consents}
        if reuse and not draft.external:
            [first, *_] = await self._jobs.candidates(f"generation.{draft.task}", draft.provider)
            columns |= await earlier.answer(self._db, self._peers, KIND, first, recipe)
        return columns

    async def _finished(self, request: CreateRequest, generation_id: str) -> pb.Generation:
        row = await self._jobs.finished(request, generation_id)
        generation = await self._message(row, with_urls=True)
        await assets.wait_for_thumbnail(self._peers, generation, self._thumbnail_seconds)
        return generation

    async def GetGeneration(
        self, request: pb.GetGenerationRequest, context: Context
    ) -> pb.GetGenerationResponse:
        self._jobs.act_for(request)
        row = await self._jobs.get(request.generation_id)
        generation = await self._message(row, with_urls=request.include_urls)
        await self._jobs.add_position(generation)
        return pb.GetGenerationResponse(generation=generation)

    async def ListGenerations(
        self, request: pb.ListGenerationsRequest, context: Context
    ) -> pb.ListGenerationsResponse:
        self._jobs.act_for(request)
        page, rows = await self._jobs.page(
            _LIST,
            request,
            product_id=request.product_id,
            dataset_id=_as_stored(request.dataset_id),
            batch_id=request.batch_id and UUID(request.batch_id),
            task=TASKS.word.get(request.task),
        )
        generations = [self._jobs.message(row) for row in page.cut(rows)]
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

    async def ArchiveGeneration(
        self, request: pb.ArchiveGenerationRequest, context: Context
    ) -> pb.ArchiveGenerationResponse:
        return await self._trash.archive(request, pb.ArchiveGenerationResponse, archived=True)

    async def UnarchiveGeneration(
        self, request: pb.UnarchiveGenerationRequest, context: Context
    ) -> pb.UnarchiveGenerationResponse:
        return await self._trash.archive(request, pb.UnarchiveGenerationResponse, archived=False)

    async def DeleteGeneration(
        self, request: pb.DeleteGenerationRequest, context: Context
    ) -> pb.DeleteGenerationResponse:
        return await self._trash.delete(request, pb.DeleteGenerationResponse)

    async def UndeleteGeneration(
        self, request: pb.UndeleteGenerationRequest, context: Context
    ) -> pb.UndeleteGenerationResponse:
        return await self._trash.undelete(request, pb.UndeleteGenerationResponse)

    async def PurgeGeneration(
        self, request: pb.PurgeGenerationRequest, context: Context
    ) -> pb.PurgeGenerationResponse:
        return await self._trash.purge(request, pb.PurgeGenerationResponse)

    def WatchGenerations(
        self, request: pb.WatchGenerationsRequest, context: Context
    ) -> AsyncIterator[pb.WatchGenerationsResponse]:
        return self._jobs.watch(request, pb.WatchGenerationsResponse, request.generation_ids)

    async def _message(self, row: Generation, *, with_urls: bool) -> pb.Generation:
        generation = self._jobs.message(row)
        if with_urls:
            await assets.add_urls(self._peers, [generation])
        return generation


def _dataset_images(request: pb.CreateGenerationRequest) -> int | None:
    """Returns how many of its dataset's images the generation refers to; None if it refers to
    chosen pictures. Raises INVALID_ARGUMENT for a number without a dataset, or beside chosen
    pictures."""
    if not request.HasField("dataset_images"):
        return None if request.reference_asset_ids else rules.DATASET_IMAGES
    if request.reference_asset_ids:
        text = "means nothing beside reference_asset_ids; leave out one of the two"
        raise errors.invalid("dataset_images", text)
    if not rules.is_dataset_id(request.dataset_id):
        text = "needs the id of a dataset in dataset_id"
        raise errors.invalid("dataset_images", text)
    return request.dataset_images


def _as_stored(dataset_id: str) -> str:
    """Returns the id or label of a filter as rows have it."""
    return dataset_id.lower() if rules.is_dataset_id(dataset_id) else dataset_id
