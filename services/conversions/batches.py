"""BatchService: makes many pictures by one request, and stops, resumes and downloads them together.

What runs a batch is `batching`, in workers. The calls change the batch's row, and the jobs of the
few items that wait in the queue.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from atelier.conversions.v1 import batch_pb2 as pb
from atelier.conversions.v1 import batch_pb2_grpc

from services.conversions import batch_plans, batch_rows, batching, retention_rows, rules
from services.conversions.batch_plans import BatchPlan
from services.conversions.batch_rows import BATCHES, SELECT_BATCH, STATES, Batch, LockedBatch
from services.conversions.batch_zip import BatchZip
from services.conversions.job_calls import JobCalls
from services.conversions.job_kinds import KINDS
from services.conversions.spending import Spending
from shared.background.jobs import JobQueue
from shared.background.watches import Event, EventStream, Fields
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.lists import Listing, created
from shared.database.rows import Statement
from shared.rpc import auth, errors, paging
from shared.rpc.calls import Peers
from shared.rpc.server import Context

_SNAPSHOT_PAGE = 500
_LIST = Listing(BATCHES, Batch)
_SELECT_SNAPSHOT = Statement(
    Batch,
    f"""
    SELECT {BATCHES.columns} FROM batches
    WHERE owner = %(owner)s
        AND (%(after_id)s::uuid IS NULL OR (created_at, id) > (%(after_at)s, %(after_id)s))
    ORDER BY created_at, id LIMIT %(limit)s
    """,
)
# For each subject: the field of the watch's answer, and the message of the event.
_ITEMS: Mapping[str, tuple[str, Any]] = {
    "batch": ("batch", pb.Batch),
    "purged_batch": ("purged", pb.PurgedBatch),
}

A = TypeVar(
    "A",
    pb.PauseBatchResponse,
    pb.ResumeBatchResponse,
    pb.PrioritizeBatchResponse,
    pb.CancelBatchResponse,
)
_ChangeRequest = (
    pb.PauseBatchRequest | pb.ResumeBatchRequest | pb.PrioritizeBatchRequest | pb.CancelBatchRequest
)
_Change = Callable[[Mutation, LockedBatch], Awaitable[LockedBatch]]


class BatchService(batch_pb2_grpc.BatchServiceServicer):
    def __init__(
        self, db: Database, stream: EventStream, queue: JobQueue, peers: Peers, spending: Spending
    ) -> None:
        self._db = db
        self._stream = stream
        self._queue = queue
        self._peers = peers
        self._spending = spending
        kept = retention_rows.of_settings(db.settings)
        self._calls: dict[str, JobCalls[Any, Any]] = {
            table: JobCalls(KINDS[table], db, stream, queue, spending, kept)
            for table in batch_rows.TABLES
        }

    async def CreateBatch(
        self, request: pb.CreateBatchRequest, context: Context
    ) -> pb.CreateBatchResponse:
        total = batch_plans.item_count(request)
        before = await self._db.stored_answer(request, pb.CreateBatchResponse)
        if before is not None:
            return before
        job = request.WhichOneof("items") or ""
        columns = {
            "name": request.name,
            "job": job,
            "total": total,
            "provider": request.provider,
            "max_credits": request.max_credits if request.HasField("max_credits") else None,
            "state": "paused" if request.paused else "running",
            "pause_reason": rules.REQUESTED if request.paused else "",
            "priority": batch_plans.first_request(request).priority,
        }
        plan = await self._checked(request, job)

        async def work(m: Mutation) -> pb.CreateBatchResponse:
            planned = (plan.to_json(), plan.pictures())
            row = await batch_rows.create(m, self._queue, columns, *planned)
            return pb.CreateBatchResponse(batch=batch_rows.to_proto(row))

        return await self._db.mutate(request, pb.CreateBatchResponse, work)

    async def _checked(self, request: pb.CreateBatchRequest, job: str) -> BatchPlan:
        """Checks what the request names, and that its money pays for one item. Returns the plan."""
        priced_for = KINDS[job]
        task = rules.CONVERSION_TASK if job == "conversions" else "generation.image"
        job_calls = self._calls[job]
        job_calls.check_provider(batch_plans.first_request(request), task)
        plan = await batch_plans.check(self._db, self._peers, request)
        if request.HasField("max_credits"):
            columns = {**plan.columns(0), "max_credits": request.max_credits}
            candidates = await job_calls.candidates(task, request.provider)
            offer = self._spending.offer(priced_for.priced(columns), columns, candidates)
            if offer.too_dear:
                raise offer.too_dear
        return plan

    async def GetBatch(self, request: pb.GetBatchRequest, context: Context) -> pb.GetBatchResponse:
        row, plan = await self._read(request.batch_id)
        async with self._db.transaction(row.owner) as m:
            row.figures = await batch_rows.count(m, row)
        return pb.GetBatchResponse(batch=batch_rows.to_proto(row), **plan.answer())

    async def _read(self, text: str) -> tuple[Batch, BatchPlan]:
        batch_id = parse_id(text, "batch_id")
        row = await self._db.first(SELECT_BATCH, {"id": batch_id})
        plan = await self._db.first(batch_rows.SELECT_PLAN, {"id": batch_id})
        if row is None or plan is None:
            raise errors.not_found("batch", batch_id)
        return row, batch_plans.read(row.job, plan.plan)

    async def ListBatches(
        self, request: pb.ListBatchesRequest, context: Context
    ) -> pb.ListBatchesResponse:
        page = paging.page(request)
        wanted = {"state": STATES.word.get(request.state), **created(request)}
        rows = await self._db.all(*_LIST.query(page, wanted))
        found, token = page.fill(rows, map(batch_rows.to_proto, rows))
        return pb.ListBatchesResponse(batches=found, next_page_token=token)

    async def PauseBatch(
        self, request: pb.PauseBatchRequest, context: Context
    ) -> pb.PauseBatchResponse:
        async def change(m: Mutation, locked: LockedBatch) -> LockedBatch:
            _refuse(locked, "completed", "cancelled")
            if locked.state == "paused":
                return locked
            return await batch_rows.pause(m, self._queue, locked, rules.REQUESTED, "")

        return await self._change(request, pb.PauseBatchResponse, change)

    async def ResumeBatch(
        self, request: pb.ResumeBatchRequest, context: Context
    ) -> pb.ResumeBatchResponse:
        async def change(m: Mutation, locked: LockedBatch) -> LockedBatch:
            _refuse(locked, "completed", "cancelled")
            columns = (
                {"max_credits": request.max_credits} if request.HasField("max_credits") else {}
            )
            if locked.state == "paused":
                return await batch_rows.run(m, self._queue, locked, **columns)
            return await batch_rows.update(m, locked, **columns) if columns else locked

        return await self._change(request, pb.ResumeBatchResponse, change)

    async def PrioritizeBatch(
        self, request: pb.PrioritizeBatchRequest, context: Context
    ) -> pb.PrioritizeBatchResponse:
        async def change(m: Mutation, locked: LockedBatch) -> LockedBatch:
            _refuse(locked, "completed", "cancelled")
            return await batch_rows.to_front(m, self._queue, locked)

        return await self._change(request, pb.PrioritizeBatchResponse, change)

    async def CancelBatch(
        self, request: pb.CancelBatchRequest, context: Context
    ) -> pb.CancelBatchResponse:
        async def change(m: Mutation, locked: LockedBatch) -> LockedBatch:
            _refuse(locked, "completed")
            if locked.state == "cancelled":
                return locked
            return await batch_rows.cancel(m, self._queue, locked)

        return await self._change(request, pb.CancelBatchResponse, change)

    async def RetryBatch(
        self, request: pb.RetryBatchRequest, context: Context
    ) -> pb.RetryBatchResponse:
        batch_id = parse_id(request.batch_id, "batch_id")

        async def work(m: Mutation) -> pb.RetryBatchResponse:
            locked = await batch_rows.lock(m, batch_id)
            _refuse(locked, "cancelled")
            row, items = await self._retry(m, locked, [*request.error_classes])
            return pb.RetryBatchResponse(batch=batch_rows.to_proto(row), item_count=items)

        return await self._db.mutate(request, pb.RetryBatchResponse, work)

    async def _retry(
        self, m: Mutation, locked: LockedBatch, classes: list[str]
    ) -> tuple[LockedBatch, int]:
        """Marks the items that failed until now. An earlier call's that are still to be tried again
        stay marked."""
        until = await m.one(batch_rows.SELECT_NOW)
        if locked.retry_until is not None:
            both = locked.retry_classes and classes
            classes = [*dict.fromkeys([*locked.retry_classes, *classes])] if both else []
        marked = {"retry_until": until, "retry_classes": classes}
        asked = {"owner": m.owner, "batch_id": locked.id, "until": until, "classes": classes}
        items = await m.one(batching.COUNT_FAILED[locked.job], asked)
        if not items:
            return locked, 0
        if locked.state == "completed":
            return await batch_rows.run(m, self._queue, locked, **marked), items
        return await batch_rows.update(m, locked, **marked), items

    async def DeleteBatch(
        self, request: pb.DeleteBatchRequest, context: Context
    ) -> pb.DeleteBatchResponse:
        batch_id = parse_id(request.batch_id, "batch_id")

        async def work(m: Mutation) -> pb.DeleteBatchResponse:
            locked = await batch_rows.lock(m, batch_id)
            errors.check_etag(request.etag, locked.version, "batch", batch_id)
            if locked.ended_at is None:
                help_ = "repeat in a moment" if locked.state == "cancelled" else "cancel it first"
                raise errors.precondition(
                    f"some of its items haven't ended; {help_}",
                    subject=f"batches/{batch_id}",
                    metadata={"state": locked.state},
                )
            await batch_rows.delete(m, locked)
            return pb.DeleteBatchResponse()

        return await self._db.mutate(request, pb.DeleteBatchResponse, work)

    def WatchBatches(
        self, request: pb.WatchBatchesRequest, context: Context
    ) -> AsyncIterator[pb.WatchBatchesResponse]:
        return self._stream.watch(request, pb.WatchBatchesResponse, self._snapshot(), _event)

    async def DownloadBatch(
        self, request: pb.DownloadBatchRequest, context: Context
    ) -> AsyncIterator[pb.DownloadBatchResponse]:
        row, plan = await self._read(request.batch_id)
        archive = BatchZip(self._db, self._peers, row, plan)
        head = pb.BatchArchiveHead(
            file_name=archive.file_name, file_count=await archive.completed_count()
        )
        yield pb.DownloadBatchResponse(head=head)
        async for chunk in archive.chunks():
            yield pb.DownloadBatchResponse(chunk=chunk)

    async def _change(self, request: _ChangeRequest, answer: type[A], change: _Change) -> A:
        batch_id = parse_id(request.batch_id, "batch_id")

        async def work(m: Mutation) -> A:
            row = await change(m, await batch_rows.lock(m, batch_id))
            return answer(batch=batch_rows.to_proto(row))

        return await self._db.mutate(request, answer, work)

    async def _snapshot(self) -> AsyncIterator[tuple[Fields, Batch]]:
        """Yields all rows of the owner, oldest first."""
        after: dict[str, Any] = {"after_at": None, "after_id": None}
        asked = {"owner": auth.current().owner, "limit": _SNAPSHOT_PAGE}
        while True:
            rows = await self._db.all(_SELECT_SNAPSHOT, {**asked, **after})
            for row in rows:
                yield {"batch": batch_rows.to_proto(row)}, row
            if len(rows) < _SNAPSHOT_PAGE:
                return
            after = {"after_at": rows[-1].created_at, "after_id": rows[-1].id}


def _event(event: Event) -> Fields | None:
    """Returns the watch's item for an event. None: the watch leaves the event out."""
    if event.subject not in _ITEMS:
        return None
    field, message = _ITEMS[event.subject]
    return {field: message.FromString(event.payload)}


def _refuse(row: Batch, *states: str) -> None:
    """Raises FAILED_PRECONDITION if the batch is in one of these states."""
    if row.state in states:
        raise errors.precondition(
            f"the batch is {row.state}; create another one",
            subject=f"batches/{row.id}",
            metadata={"state": row.state},
        )
