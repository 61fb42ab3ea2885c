"""ConversionService: makes try-on previews from pictures of a person and a garment."""

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import conversion_pb2 as pb
from atelier.conversions.v1 import conversion_pb2_grpc
from psycopg.types.json import Jsonb

from services.conversions import assets, earlier, rules, trash_rows
from services.conversions.conversion_rows import CONVERSIONS, KIND, Conversion, to_proto
from services.conversions.job_calls import Columns, CreateRequest, JobCalls, scheduling
from services.conversions.retention_rows import Retention
from services.conversions.spending import Offer, Spending
from services.conversions.trash import TrashCalls
from shared.background.jobs import JobQueue
from shared.background.watches import EventStream
from shared.database.db import Database, Mutation
from shared.database.lists import Listing
from shared.rpc import protos
from shared.rpc.calls import Peers
from shared.rpc.server import Context

_LIST = Listing(
    CONVERSIONS,
    Conversion,
    only_free=lambda row, _: row.free,
    only_paid=lambda row, _: sa.not_(row.free),
    **trash_rows.HIDES,
)


class ConversionService(conversion_pb2_grpc.ConversionServiceServicer):
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
        thumbnail. `life`: how long a deleted conversion stays in the trash."""
        self._db = db
        self._peers = peers
        self._thumbnail_seconds = thumbnail_seconds
        self._jobs = JobCalls(KIND, db, stream, queue, spending, retention)
        self._trash = TrashCalls(KIND, db, queue, life=life)

    async def CreateConversion(
        self, request: pb.CreateConversionRequest, context: Context
    ) -> pb.CreateConversionResponse:
        async def columns() -> Columns:
            return await self._columns(request)

        answer = await self._jobs.create(request, pb.CreateConversionResponse, columns)
        if request.wait:
            answer.conversion.CopyFrom(await self._finished(request, answer.conversion.id))
        return answer

    async def offer(self, request: pb.CreateConversionRequest) -> Offer:
        """Returns what the request would cost."""
        return await self._jobs.offer(request, await self._columns(request))

    async def _columns(self, request: pb.CreateConversionRequest) -> Columns:
        """Checks the request and returns the columns that it decides."""
        self._jobs.check_provider(request, rules.CONVERSION_TASK)
        draft = {
            "style_name": request.style_name,
            "metadata": Jsonb(protos.metadata(request.metadata, "metadata")),
            "product_id": request.product_id,
            **scheduling(request),
        }
        pictures = request.user_asset_id, request.cloth_asset_id
        return await self._checked(draft, *pictures, reuse=request.reuse_result)

    async def RetryConversion(
        self, request: pb.RetryConversionRequest, context: Context
    ) -> pb.RetryConversionResponse:
        async def columns() -> Columns:
            row = await self._jobs.to_retry(request.conversion_id)
            draft = {
                "style_name": row.style_name,
                "metadata": Jsonb(row.metadata),
                "product_id": row.product_id,
                "priority": row.priority,
                "external": row.external,
                "provider": row.provider,
                "drop_inputs": row.drop_inputs,
                "max_credits": row.max_credits,
                "retry_of": row.id,
            }
            pictures = str(row.user_asset_id), str(row.cloth_asset_id)
            return await self._checked(draft, *pictures, reuse=False)

        answer = await self._jobs.create(request, pb.RetryConversionResponse, columns)
        if request.wait:
            answer.conversion.CopyFrom(await self._finished(request, answer.conversion.id))
        return answer

    async def _checked(
        self, draft: dict[str, object], user_asset_id: str, cloth_asset_id: str, *, reuse: bool
    ) -> Columns:
        """Checks both pictures and returns the columns of the draft's row; with `reuse` perhaps
        those of a row that an earlier result answers."""
        person, cloth = await assets.check(
            self._peers,
            [
                assets.Wanted("user_asset_id", user_asset_id, asset_pb2.ASSET_KIND_USER),
                assets.Wanted("cloth_asset_id", cloth_asset_id, asset_pb2.ASSET_KIND_CLOTH),
            ],
        )
        inputs = [("user", person.sha256), ("cloth", cloth.sha256)]
        recipe = earlier.Recipe(rules.recipe_digest(inputs, style=draft["style_name"]))
        columns = {
            **draft,
            "user_asset_id": UUID(person.id),
            "cloth_asset_id": UUID(cloth.id),
            "free": person.free and cloth.free,
            "recipe_digest": recipe.digest,
            **await self._jobs.consents(rules.CONVERSION_TASK, [person, cloth]),
        }
        if reuse:
            [first, *_] = await self._jobs.candidates(rules.CONVERSION_TASK, str(draft["provider"]))
            columns |= await earlier.answer(self._db, self._peers, KIND, first, recipe)
        return columns

    async def _finished(self, request: CreateRequest, conversion_id: str) -> pb.Conversion:
        row = await self._jobs.finished(request, conversion_id)
        conversion = await self._message(row, with_urls=True)
        await assets.wait_for_thumbnail(self._peers, conversion, self._thumbnail_seconds)
        return conversion

    async def GetConversion(
        self, request: pb.GetConversionRequest, context: Context
    ) -> pb.GetConversionResponse:
        self._jobs.act_for(request)
        row = await self._jobs.get(request.conversion_id)
        conversion = await self._message(row, with_urls=request.include_urls)
        await self._jobs.add_position(conversion)
        return pb.GetConversionResponse(conversion=conversion)

    async def ListConversions(
        self, request: pb.ListConversionsRequest, context: Context
    ) -> pb.ListConversionsResponse:
        self._jobs.act_for(request)
        page, rows = await self._jobs.page(
            _LIST,
            request,
            product_id=request.product_id,
            batch_id=request.batch_id and UUID(request.batch_id),
            only_free=request.HasField("free") and request.free,
            only_paid=request.HasField("free") and not request.free,
        )
        conversions = [self._jobs.message(row) for row in page.cut(rows)]
        if request.include_urls:
            await assets.add_urls(self._peers, conversions)
        conversions, token = page.fill(rows, conversions)
        return pb.ListConversionsResponse(conversions=conversions, next_page_token=token)

    async def CancelConversion(
        self, request: pb.CancelConversionRequest, context: Context
    ) -> pb.CancelConversionResponse:
        async def work(m: Mutation) -> pb.CancelConversionResponse:
            row, outcome = await self._jobs.cancel(m, request.conversion_id)
            return pb.CancelConversionResponse(conversion=to_proto(row), outcome=outcome)

        return await self._db.mutate(request, pb.CancelConversionResponse, work)

    async def ArchiveConversion(
        self, request: pb.ArchiveConversionRequest, context: Context
    ) -> pb.ArchiveConversionResponse:
        return await self._trash.archive(request, pb.ArchiveConversionResponse, archived=True)

    async def UnarchiveConversion(
        self, request: pb.UnarchiveConversionRequest, context: Context
    ) -> pb.UnarchiveConversionResponse:
        return await self._trash.archive(request, pb.UnarchiveConversionResponse, archived=False)

    async def DeleteConversion(
        self, request: pb.DeleteConversionRequest, context: Context
    ) -> pb.DeleteConversionResponse:
        return await self._trash.delete(request, pb.DeleteConversionResponse)

    async def UndeleteConversion(
        self, request: pb.UndeleteConversionRequest, context: Context
    ) -> pb.UndeleteConversionResponse:
        return await self._trash.undelete(request, pb.UndeleteConversionResponse)

    async def PurgeConversion(
        self, request: pb.PurgeConversionRequest, context: Context
    ) -> pb.PurgeConversionResponse:
        return await self._trash.purge(request, pb.PurgeConversionResponse)

    def WatchConversions(
        self, request: pb.WatchConversionsRequest, context: Context
    ) -> AsyncIterator[pb.WatchConversionsResponse]:
        return self._jobs.watch(request, pb.WatchConversionsResponse, request.conversion_ids)

    async def _message(self, row: Conversion, *, with_urls: bool) -> pb.Conversion:
        conversion = self._jobs.message(row)
        if with_urls:
            await assets.add_urls(self._peers, [conversion])
        return conversion
