"""LogService: lists and exports log lines, and adds those of owners and outside workers."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import sqlalchemy as sa
from atelier.pipeline.v1 import log_pb2 as pb
from atelier.pipeline.v1 import log_pb2_grpc
from grpc.aio import ServicerContext

from services.pipeline import log_export, log_rows, product_rows
from services.pipeline.log_rows import LEVELS, LOGS, Log
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.lists import Listing, created
from shared.rpc import auth, errors, paging
from shared.rpc.protos import metadata

_LIST = Listing(
    LOGS,
    Log,
    levels=lambda log, levels: log.level == sa.any_(levels),
    text=lambda log, text: (
        sa.func.strpos(sa.func.lower(log.message), sa.func.lower(text)) > sa.literal_column("0")
    ),
)


class LogService(log_pb2_grpc.LogServiceServicer):
    def __init__(self, db: Database) -> None:
        self._db = db

    async def ListLogs(
        self, request: pb.ListLogsRequest, context: ServicerContext
    ) -> pb.ListLogsResponse:
        auth.act_for(request.owner or auth.current().owner)
        page = paging.page(request)
        rows = await self._db.all(*_LIST.query(page, _wanted(request)))
        logs, token = page.fill(rows, map(log_rows.to_proto, rows))
        return pb.ListLogsResponse(logs=logs, next_page_token=token)

    async def ExportLogs(
        self, request: pb.ExportLogsRequest, context: ServicerContext
    ) -> AsyncIterator[pb.ExportLogsResponse]:
        owner = auth.act_for(request.owner or auth.current().owner)
        wanted = {"owner": owner, **_wanted(request)}
        if wanted["created_before"] is None:  # so that the stream ends however much is written
            wanted["created_before"] = datetime.now(UTC)
        async for rows in log_export.chunks(self._db, wanted):
            lines = [log_rows.to_proto(row) for row in rows]
            while lines:
                shown = paging.fitting(lines)
                yield pb.ExportLogsResponse(logs=shown)
                del lines[: len(shown)]

    async def AppendLog(
        self, request: pb.AppendLogRequest, context: ServicerContext
    ) -> pb.AppendLogResponse:
        product_id = parse_id(request.product_id, "product_id")
        details = metadata(request.details, "details")

        async def work(m: Mutation) -> pb.AppendLogResponse:
            await product_rows.check_usable(m, product_id)
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


def _wanted(request: pb.ListLogsRequest | pb.ExportLogsRequest) -> dict[str, object]:
    """Returns the filters of a request, by the names of the list's. Raises INVALID_ARGUMENT if the
    time ends before it begins."""
    times = created(request)
    first, before = times["created_from"], times["created_before"]
    if isinstance(first, datetime) and isinstance(before, datetime) and first > before:
        raise errors.invalid("created_from", "comes after created_before; swap the two")
    levels = [word for number, word in LEVELS.word.items() if number >= request.min_level]
    return {
        "product_id": parse_id(request.product_id, "product_id") if request.product_id else None,
        "phase": request.phase,
        "levels": levels if request.min_level else None,
        "action": request.action,
        "text": request.text,
        **times,
    }
