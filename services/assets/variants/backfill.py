"""BackfillService: starts, shows and cancels backfills."""

from uuid import UUID

from atelier.assets.v1 import backfill_pb2 as pb
from atelier.assets.v1 import backfill_pb2_grpc

from services.assets.core.asset_rows import KINDS
from services.assets.core.pages import Paged
from services.assets.variants.backfill_rows import BACKFILLS, QUEUE, TASK, Backfill, to_proto
from services.assets.variants.presets import Presets
from shared.background import jobs
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.database.rows import Command, Statement
from shared.rpc import errors, paging
from shared.rpc.server import Context

_SELECT_BACKFILL = Statement(
    Backfill, f"SELECT {BACKFILLS.columns} FROM backfills WHERE id = %(id)s"
)
_SELECT_UNDER_WAY = Statement(
    UUID, "SELECT id FROM backfills WHERE state IN ('pending', 'running')"
)
_INSERT_BACKFILL = Statement(
    Backfill,
    f"""
    INSERT INTO backfills (id, owner, created_by, presets, kinds)
    VALUES (%(id)s, %(owner)s, %(actor)s, %(presets)s, %(kinds)s)
    ON CONFLICT DO NOTHING RETURNING {BACKFILLS.columns}
    """,
)
_REQUEST_CANCEL = Command("""
    UPDATE backfills SET cancel_requested = true, version = version + 1, updated_at = now()
    WHERE id = %(id)s AND state IN ('pending', 'running') AND NOT cancel_requested
""")
_LIST = Paged(Backfill, f"SELECT {BACKFILLS.columns} FROM backfills WHERE true")


class BackfillService(backfill_pb2_grpc.BackfillServiceServicer):
    def __init__(self, db: Database, queue: jobs.JobQueue, presets: Presets) -> None:
        self._db = db
        self._queue = queue
        self._presets = presets

    async def StartBackfill(
        self, request: pb.StartBackfillRequest, context: Context
    ) -> pb.StartBackfillResponse:
        self._presets.check(
            {f"presets[{index}]": name for index, name in enumerate(request.presets)}
        )
        kinds = [KINDS.word[kind] for kind in request.kinds] or sorted(KINDS.number)

        async def work(m: Mutation) -> pb.StartBackfillResponse:
            columns = {
                "id": new_id(),
                "owner": m.owner,
                "actor": m.actor,
                "presets": list(request.presets),
            }
            row = await m.first(_INSERT_BACKFILL, {**columns, "kinds": kinds})
            if row is None:
                other = await m.first(_SELECT_UNDER_WAY)
                subject = f"backfills/{other}" if other else "backfills"
                text = "a backfill is under way; wait until it is done, or cancel it"
                raise errors.precondition(text, subject=subject)
            await self._queue.enqueue(m, TASK, QUEUE, row.id, priority=jobs.BACKFILL)
            return pb.StartBackfillResponse(backfill=to_proto(row))

        return await self._db.mutate(request, pb.StartBackfillResponse, work)

    async def GetBackfill(
        self, request: pb.GetBackfillRequest, context: Context
    ) -> pb.GetBackfillResponse:
        backfill_id = parse_id(request.backfill_id, "backfill_id")
        row = await self._db.first(_SELECT_BACKFILL, {"id": backfill_id})
        if row is None:
            raise errors.not_found("backfill", backfill_id)
        return pb.GetBackfillResponse(backfill=to_proto(row))

    async def ListBackfills(
        self, request: pb.ListBackfillsRequest, context: Context
    ) -> pb.ListBackfillsResponse:
        page = paging.page(request)
        rows = await self._db.all(_LIST.of(page), page.parameters)
        backfills, token = page.fill(rows, map(to_proto, rows))
        return pb.ListBackfillsResponse(backfills=backfills, next_page_token=token)

    async def CancelBackfill(
        self, request: pb.CancelBackfillRequest, context: Context
    ) -> pb.CancelBackfillResponse:
        backfill_id = parse_id(request.backfill_id, "backfill_id")

        async def work(m: Mutation) -> pb.CancelBackfillResponse:
            await m.run(_REQUEST_CANCEL, {"id": backfill_id})
            row = await m.first(_SELECT_BACKFILL, {"id": backfill_id})
            if row is None:
                raise errors.not_found("backfill", backfill_id)
            return pb.CancelBackfillResponse(backfill=to_proto(row))

        return await self._db.mutate(request, pb.CancelBackfillResponse, work)
