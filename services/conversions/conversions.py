"""Conversions: a person and a garment in, a try-on preview out."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import conversion_pb2 as pb
from atelier.conversions.v1 import conversion_pb2_grpc
from psycopg.types.json import Jsonb

from services.conversions import inputs, jobs, rules
from services.conversions.making import Making
from shared.background import attempts
from shared.background.events import EventStream
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.rpc import protos
from shared.rpc.calls import Peers


def to_proto(row: Any) -> pb.Conversion:
    conversion = pb.Conversion(
        **jobs.common_fields(row),
        user_asset_id=str(row.user_asset_id),
        cloth_asset_id=str(row.cloth_asset_id),
        result_asset_id=jobs.result_of(row),
        style_name=row.style_name,
        free=row.free,
    )
    if row.metadata:
        conversion.metadata.CopyFrom(protos.struct(row.metadata))
    return conversion


def _inputs(row: Any) -> list[tuple[str, UUID]]:
    return [("user", row.user_asset_id), ("cloth", row.cloth_asset_id)]


NOUN = jobs.Noun("conversion", "conversions", pb.Conversion, to_proto, _inputs)


class ConversionService(conversion_pb2_grpc.ConversionServiceServicer):
    def __init__(self, db: Database, stream: EventStream, queue: JobQueue, peers: Peers) -> None:
        self._db = db
        self._stream = stream
        self._queue = queue
        self._peers = peers

    async def CreateConversion(
        self, request: pb.CreateConversionRequest, context: Any
    ) -> pb.CreateConversionResponse:
        answer = await self._db.stored_answer(request, pb.CreateConversionResponse)
        if answer is None:
            answer = await self._take_on(request)
        if request.wait:
            row = await jobs.finished(self._db, self._stream, NOUN, request, answer.conversion.id)
            answer.conversion.CopyFrom(await self._shown(row, with_urls=True))
        return answer

    async def _take_on(self, request: pb.CreateConversionRequest) -> pb.CreateConversionResponse:
        metadata = protos.metadata(request.metadata, "metadata")
        person, cloth = await inputs.check(
            self._peers,
            [
                inputs.Wanted("user_asset_id", request.user_asset_id, asset_pb2.ASSET_KIND_USER),
                inputs.Wanted("cloth_asset_id", request.cloth_asset_id, asset_pb2.ASSET_KIND_CLOTH),
            ],
        )
        columns = {
            "user_asset_id": UUID(person.id),
            "cloth_asset_id": UUID(cloth.id),
            "style_name": request.style_name,
            "metadata": Jsonb(metadata),
            "product_id": request.product_id,
            "free": person.free and cloth.free,
            **jobs.wishes(request),
        }

        async def work(m: Mutation) -> pb.CreateConversionResponse:
            row = await jobs.insert(m, self._queue, NOUN, columns)
            return pb.CreateConversionResponse(conversion=to_proto(row))

        return await self._db.mutate(request, pb.CreateConversionResponse, work)

    async def GetConversion(
        self, request: pb.GetConversionRequest, context: Any
    ) -> pb.GetConversionResponse:
        row = await jobs.get(self._db, NOUN, request.conversion_id)
        conversion = await self._shown(row, with_urls=request.include_urls)
        await jobs.add_position(conversion, self._queue)
        return pb.GetConversionResponse(conversion=conversion)

    async def ListConversions(
        self, request: pb.ListConversionsRequest, context: Any
    ) -> pb.ListConversionsResponse:
        page, rows = await jobs.page(self._db, NOUN, request, product_id=request.product_id)
        conversions = [to_proto(row) for row in page.cut(rows)]
        if request.include_urls:
            await inputs.add_urls(self._peers, conversions)
        conversions, token = page.fill(rows, conversions)
        return pb.ListConversionsResponse(conversions=conversions, next_page_token=token)

    async def CancelConversion(
        self, request: pb.CancelConversionRequest, context: Any
    ) -> pb.CancelConversionResponse:
        async def work(m: Mutation) -> pb.CancelConversionResponse:
            row, outcome = await jobs.cancel(m, self._queue, NOUN, request.conversion_id)
            return pb.CancelConversionResponse(conversion=to_proto(row), outcome=outcome)

        return await self._db.mutate(request, pb.CancelConversionResponse, work)

    def WatchConversions(
        self, request: pb.WatchConversionsRequest, context: Any
    ) -> AsyncIterator[pb.WatchConversionsResponse]:
        return jobs.watch(
            self._db,
            self._stream,
            NOUN,
            request,
            pb.WatchConversionsResponse,
            request.conversion_ids,
        )

    async def _shown(self, row: Any, *, with_urls: bool) -> pb.Conversion:
        conversion = to_proto(row)
        if with_urls:
            await inputs.add_urls(self._peers, [conversion])
        return conversion


async def make(making: Making) -> attempts.Outcome:
    """The job."""
    row = making.row
    person, cloth = await making.fetch()
    picture = await making.provider.try_on(
        person.path, cloth.path, making.directory, style=row.style_name
    )
    return await making.keep(
        picture,
        kind=asset_pb2.ASSET_KIND_RESULT,
        prompt=row.style_name,
        file_name="try-on.jpg",
        scope={"product_id": row.product_id},
        price=0 if row.free else rules.CONVERSION_CREDITS,
    )
