"""Logs: reading them, and lines that owners and outside runners add."""

from typing import Any

from atelier.pipeline.v1 import log_pb2 as pb
from atelier.pipeline.v1 import log_pb2_grpc

from services.pipeline import records
from shared import auth, errors, paging
from shared.db import Database, Mutation
from shared.ids import parse_id
from shared.protos import metadata

_PRODUCT = "SELECT id FROM products WHERE id = %s"


class LogService(log_pb2_grpc.LogServiceServicer):
    def __init__(self, db: Database) -> None:
        self._db = db

    async def ListLogs(self, request: pb.ListLogsRequest, context: Any) -> pb.ListLogsResponse:
        page = paging.page(request)
        conditions = ["owner = %(owner)s"]
        parameters: dict[str, Any] = {"owner": auth.current().owner}
        if request.product_id:
            parameters["product_id"] = parse_id(request.product_id, "product_id")
            conditions.append("product_id = %(product_id)s")
        if request.phase:
            conditions.append("phase = %(phase)s")
            parameters["phase"] = request.phase
        if request.min_level:
            conditions.append("level = ANY(%(levels)s)")
            parameters["levels"] = [
                w for number, w in records.LOG_LEVELS.word.items() if number >= request.min_level
            ]
        statement: Any = f"SELECT * FROM logs WHERE {' AND '.join(conditions)}{page.clause}"
        rows = await self._db.rows(statement, parameters | page.parameters)
        logs, token = page.fill(rows, map(records.log, rows))
        return pb.ListLogsResponse(logs=logs, next_page_token=token)

    async def AppendLog(self, request: pb.AppendLogRequest, context: Any) -> pb.AppendLogResponse:
        product_id = parse_id(request.product_id, "product_id")
        details = metadata(request.details, "details")

        async def work(m: Mutation) -> pb.AppendLogResponse:
            if await m.one(_PRODUCT, (product_id,)) is None:
                raise errors.not_found("product", product_id)
            row = await records.add_log(
                m,
                product_id,
                request.phase,
                request.action or "note",
                request.message,
                level=records.LOG_LEVELS.word[request.level],
                details=details,
            )
            return pb.AppendLogResponse(log=records.log(row))

        return await self._db.mutate(request, pb.AppendLogResponse, work)
