"""ConversionService: makes try-on previews from pictures of a person and a garment."""

from collections.abc import AsyncIterator
from uuid import UUID

from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import conversion_pb2 as pb
from atelier.conversions.v1 import conversion_pb2_grpc
from psycopg.types.json import Jsonb

from services.conversions import assets
from services.conversions.conversion_rows import CONVERSIONS, KIND, Conversion, to_proto
from services.conversions.job_calls import Columns, JobCalls, scheduling
from shared.background.jobs import JobQueue
from shared.background.watches import EventStream
from shared.database.db import Database, Mutation
from shared.database.lists import Listing
from shared.rpc import protos
from shared.rpc.calls import Peers
from shared.rpc.server import Context

_LIST = Listing(CONVERSIONS, Conversion)


class ConversionService(conversion_pb2_grpc.ConversionServiceServicer):
    def __init__(self, db: Database, stream: EventStream, queue: JobQueue, peers: Peers) -> None:
        self._db = db
        self._peers = peers
        self._jobs = JobCalls(KIND, db, stream, queue)

    async def CreateConversion(
        self, request: pb.CreateConversionRequest, context: Context
    ) -> pb.CreateConversionResponse:
        async def columns() -> Columns:
            return await self._columns(request)

        answer = await self._jobs.create(request, pb.CreateConversionResponse, columns)
        if request.wait:
            row = await self._jobs.finished(request, answer.conversion.id)
            answer.conversion.CopyFrom(await self._message(row, with_urls=True))
        return answer

    async def _columns(self, request: pb.CreateConversionRequest) -> Columns:
        metadata = protos.metadata(request.metadata, "metadata")
        person, cloth = await assets.check(
            self._peers,
            [
                assets.Wanted("user_asset_id", request.user_asset_id, asset_pb2.ASSET_KIND_USER),
                assets.Wanted("cloth_asset_id", request.cloth_asset_id, asset_pb2.ASSET_KIND_CLOTH),
            ],
        )
        return {
            "user_asset_id": UUID(person.id),
            "cloth_asset_id": UUID(cloth.id),
            "style_name": request.style_name,
            "metadata": Jsonb(metadata),
            "product_id": request.product_id,
            "free": person.free and cloth.free,
            **scheduling(request),
        }

    async def GetConversion(
        self, request: pb.GetConversionRequest, context: Context
    ) -> pb.GetConversionResponse:
        row = await self._jobs.get(request.conversion_id)
        conversion = await self._message(row, with_urls=request.include_urls)
        await self._jobs.add_position(conversion)
        return pb.GetConversionResponse(conversion=conversion)

    async def ListConversions(
        self, request: pb.ListConversionsRequest, context: Context
    ) -> pb.ListConversionsResponse:
        page, rows = await self._jobs.page(_LIST, request, product_id=request.product_id)
        conversions = [to_proto(row) for row in page.cut(rows)]
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

    def WatchConversions(
        self, request: pb.WatchConversionsRequest, context: Context
    ) -> AsyncIterator[pb.WatchConversionsResponse]:
        return self._jobs.watch(request, pb.WatchConversionsResponse, request.conversion_ids)

    async def _message(self, row: Conversion, *, with_urls: bool) -> pb.Conversion:
        conversion = to_proto(row)
        if with_urls:
            await assets.add_urls(self._peers, [conversion])
        return conversion
