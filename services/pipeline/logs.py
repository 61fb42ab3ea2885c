"""LogService: lists log lines, and adds those of owners and outside runners."""

import sqlalchemy as sa
from atelier.pipeline.v1 import log_pb2 as pb
from atelier.pipeline.v1 import log_pb2_grpc
from grpc.aio import ServicerContext

from services.pipeline import log_rows, product_rows
from services.pipeline.log_rows import LEVELS, LOGS, Log
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.lists import Listing
from shared.rpc import errors, paging
from shared.rpc.protos import metadata

_LIST = Listing(LOGS, Log, levels=lambda log, levels: log.level == sa.any_(levels))


class LogService(log_pb2_grpc.LogServiceServicer):
    def __init__(self, db: Database) -> None:
        self._db = db

    async def ListLogs(
        self, request: pb.ListLogsRequest, context: ServicerContext
    ) -> pb.ListLogsResponse:
        page = paging.page(request)
        wanted = {
            "product_id": request.product_id and parse_id(request.product_id, "product_id"),
            "phase": request.phase or None,
            "levels": request.min_level
            and [word for number, word in LEVELS.word.items() if number >= request.min_level],
        }
        rows = await self._db.all(*_LIST.query(page, wanted))
        logs, token = page.fill(rows, map(log_rows.to_proto, rows))
        return pb.ListLogsResponse(logs=logs, next_page_token=token)

    async def AppendLog(
        self, request: pb.AppendLogRequest, context: ServicerContext
    ) -> pb.AppendLogResponse:
        product_id = parse_id(request.product_id, "product_id")
        details = metadata(request.details, "details")

        async def work(m: Mutation) -> pb.AppendLogResponse:
            if await m.first(product_rows.SELECT_ID, {"id": product_id}) is None:
                raise errors.not_found("product", product_id)
            row = await log_rows.add(
                m,
                product_id,
                request.phase,
                request.action or "note",
                request.message,
                level=LEVELS.word[request.level],
                details=details,
            )
            return pb.AppendLogResponse(log=log_rows.to_proto(row))

        return await self._db.mutate(request, pb.AppendLogResponse, work)
