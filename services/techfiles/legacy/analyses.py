"""LegacyAnalysisService: looks into the older application's table, shows its state, and starts,
shows and cancels backfills from it."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg
from atelier.techfiles.v1 import legacy_pb2 as pb
from atelier.techfiles.v1 import legacy_pb2_grpc

from services.techfiles.legacy.backfill_rows import BACKFILLS, QUEUE, TASK, Backfill, to_proto
from services.techfiles.legacy.old_table import OldTable, OldTableWrong, ValueRefused
from services.techfiles.legacy.writing import SELECT_WAITING
from services.techfiles.tech_file_rows import VIEWS
from shared.background import jobs
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.database.rows import Command, Statement
from shared.rpc import auth, errors, paging
from shared.rpc.protos import struct, timestamp
from shared.rpc.server import Context

_MOST_PROBLEMS = 100
_NO_TABLE = "no older table is set; the operator sets ATELIER_LEGACY_DATABASE_URL of techfiles"


@dataclass(slots=True)
class _Problem:
    owner: str
    tech_file_id: UUID
    problem: str
    attempts: int
    next_at: datetime


_SELECT_PROBLEMS = Statement(
    _Problem,
    """
    SELECT owner, tech_file_id, problem, attempts, next_at FROM legacy_writes
    WHERE problem <> '' ORDER BY asked_at DESC LIMIT %(limit)s
    """,
)
_SELECT_BACKFILL = Statement(
    Backfill, f"SELECT {BACKFILLS.columns} FROM legacy_backfills WHERE id = %(id)s"
)
_SELECT_UNDER_WAY = Statement(
    UUID, "SELECT id FROM legacy_backfills WHERE state IN ('pending', 'running')"
)
_INSERT_BACKFILL = Statement(
    Backfill,
    f"""
    INSERT INTO legacy_backfills (id, owner, created_by, dry_run)
    VALUES (%(id)s, %(owner)s, %(actor)s, %(dry_run)s)
    ON CONFLICT DO NOTHING RETURNING {BACKFILLS.columns}
    """,
)
_REQUEST_CANCEL = Command("""
    UPDATE legacy_backfills SET cancel_requested = true, version = version + 1, updated_at = now()
    WHERE id = %(id)s AND state IN ('pending', 'running') AND NOT cancel_requested
""")
_PAGE = "ORDER BY created_at DESC, id DESC LIMIT %(limit)s OFFSET %(skip)s"
_LIST = Statement(Backfill, f"SELECT {BACKFILLS.columns} FROM legacy_backfills {_PAGE}")
_LIST_AFTER = Statement(
    Backfill,
    f"""
    SELECT {BACKFILLS.columns} FROM legacy_backfills
    WHERE (created_at, id) < (%(after_at)s, %(after_id)s) {_PAGE}
    """,
)


class LegacyAnalysisService(legacy_pb2_grpc.LegacyAnalysisServiceServicer):
    def __init__(self, db: Database, queue: jobs.JobQueue, table: OldTable) -> None:
        self._db = db
        self._queue = queue
        self._table = table

    async def FindLegacyAnalysis(
        self, request: pb.FindLegacyAnalysisRequest, context: Context
    ) -> pb.FindLegacyAnalysisResponse:
        self._check_configured()
        owner = auth.current().owner
        try:
            found = await self._table.find(
                owner, request.product_id, request.revision_id, VIEWS.word[request.view_type]
            )
        except OldTableWrong as wrong:
            raise errors.precondition(str(wrong), subject="legacy_table") from None
        except ValueRefused as refused:
            raise errors.precondition(
                f"the row can't be read: {refused}", subject="legacy_table"
            ) from None
        except psycopg.OperationalError:
            raise errors.unavailable("the older application's database", "legacy") from None
        if found is None:
            place = f"{request.product_id}/{request.revision_id}"
            raise errors.not_found("row of the older application's table", place)
        return pb.FindLegacyAnalysisResponse(
            analysis=pb.LegacyAnalysis(
                product_id=found.product_id,
                revision_id=found.revision_id,
                view_type=request.view_type,
                analysis=struct(found.analysis),
                model=found.model,
                confidence=found.confidence,
                create_time=timestamp(found.created_at),
            )
        )

    async def GetLegacyTable(
        self, request: pb.GetLegacyTableRequest, context: Context
    ) -> pb.GetLegacyTableResponse:
        answer = pb.GetLegacyTableResponse(configured=self._table.configured)
        if not self._table.configured:
            answer.problems.append(_NO_TABLE)
            return answer
        answer.table, answer.reads = self._table.named, self._table.reads
        answer.writes = self._table.writes
        try:
            async with self._table.session() as session:
                answer.row_count = await session.count()
                for field, column in session.columns.items():
                    answer.columns.add(field=field, column=column)
        except OldTableWrong as wrong:
            answer.problems.extend(wrong.problems)
        except psycopg.Error as error:
            answer.problems.append(f"its database can't be asked: {type(error).__name__}")
        waiting = await self._db.one(SELECT_WAITING)
        answer.pending_write_count = waiting.number
        if waiting.since:
            answer.oldest_pending_time.FromDatetime(waiting.since)
        for row in await self._db.all(_SELECT_PROBLEMS, {"limit": _MOST_PROBLEMS}):
            answer.write_problems.add(
                owner=row.owner,
                tech_file_id=str(row.tech_file_id),
                message=row.problem,
                attempts=row.attempts,
                next_time=timestamp(row.next_at),
            )
        return answer

    async def StartLegacyBackfill(
        self, request: pb.StartLegacyBackfillRequest, context: Context
    ) -> pb.StartLegacyBackfillResponse:
        self._check_configured()

        async def work(m: Mutation) -> pb.StartLegacyBackfillResponse:
            columns = {"id": new_id(), "owner": m.owner, "actor": m.actor}
            row = await m.first(_INSERT_BACKFILL, {**columns, "dry_run": request.dry_run})
            if row is None:
                other = await m.first(_SELECT_UNDER_WAY)
                subject = f"legacy_backfills/{other}" if other else "legacy_backfills"
                text = "a backfill is under way; wait until it is done, or cancel it"
                raise errors.precondition(text, subject=subject)
            await self._queue.enqueue(m, TASK, QUEUE, row.id, priority=jobs.BACKFILL)
            return pb.StartLegacyBackfillResponse(backfill=to_proto(row))

        return await self._db.mutate(request, pb.StartLegacyBackfillResponse, work)

    async def GetLegacyBackfill(
        self, request: pb.GetLegacyBackfillRequest, context: Context
    ) -> pb.GetLegacyBackfillResponse:
        backfill_id = parse_id(request.backfill_id, "backfill_id")
        row = await self._db.first(_SELECT_BACKFILL, {"id": backfill_id})
        if row is None:
            raise errors.not_found("backfill", backfill_id)
        return pb.GetLegacyBackfillResponse(backfill=to_proto(row))

    async def ListLegacyBackfills(
        self, request: pb.ListLegacyBackfillsRequest, context: Context
    ) -> pb.ListLegacyBackfillsResponse:
        page = paging.page(request)
        rows = await self._db.all(_LIST_AFTER if page.after else _LIST, page.parameters)
        backfills, token = page.fill(rows, map(to_proto, rows))
        return pb.ListLegacyBackfillsResponse(backfills=backfills, next_page_token=token)

    async def CancelLegacyBackfill(
        self, request: pb.CancelLegacyBackfillRequest, context: Context
    ) -> pb.CancelLegacyBackfillResponse:
        backfill_id = parse_id(request.backfill_id, "backfill_id")

        async def work(m: Mutation) -> pb.CancelLegacyBackfillResponse:
            await m.run(_REQUEST_CANCEL, {"id": backfill_id})
            row = await m.first(_SELECT_BACKFILL, {"id": backfill_id})
            if row is None:
                raise errors.not_found("backfill", backfill_id)
            return pb.CancelLegacyBackfillResponse(backfill=to_proto(row))

        return await self._db.mutate(request, pb.CancelLegacyBackfillResponse, work)

    def _check_configured(self) -> None:
        if not self._table.configured:
            raise errors.precondition(_NO_TABLE, subject="legacy_table")
