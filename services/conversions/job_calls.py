"""The calls that the services of the three kinds share: creating, reading, listing, cancelling and
watching jobs, and waiting for them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Generic, TypedDict, TypeVar
from uuid import UUID

import sqlalchemy as sa
from atelier.conversions.v1 import analysis_pb2, conversion_pb2, generation_pb2
from atelier.conversions.v1 import job_pb2 as pb
from google.protobuf.message import Message

from services.conversions import job_moves, rules
from services.conversions.job_rows import STATES, J, JobKind, M
from shared.background import job_tables, leases, waiting
from shared.background.jobs import JobQueue
from shared.background.watches import Event, EventStream, Fields
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.database.lists import Listing, created
from shared.database.rows import Statement, Table, compiled
from shared.rpc import auth, errors, paging
from shared.rpc.paging import Page

_SNAPSHOT_AGE = timedelta(days=1)
_SNAPSHOT_PAGE = 500

A = TypeVar("A", bound=Message)
Columns = Mapping[str, object]
ScheduledRequest = (
    conversion_pb2.CreateConversionRequest
    | generation_pb2.CreateGenerationRequest
    | analysis_pb2.CreateAnalysisRequest
)
CreateRequest = ScheduledRequest | generation_pb2.RegenerateGenerationRequest
ListRequest = (
    conversion_pb2.ListConversionsRequest
    | generation_pb2.ListGenerationsRequest
    | analysis_pb2.ListAnalysesRequest
)
WatchRequest = (
    conversion_pb2.WatchConversionsRequest
    | generation_pb2.WatchGenerationsRequest
    | analysis_pb2.WatchAnalysesRequest
)


class JobCalls(Generic[J, M]):
    def __init__(
        self, kind: JobKind[J, M], db: Database, stream: EventStream, queue: JobQueue
    ) -> None:
        self._kind = kind
        self._db = db
        self._stream = stream
        self._queue = queue
        self._jobs = job_moves.job_table(kind, queue)

    async def create(
        self, request: CreateRequest, answer: type[A], columns: Callable[[], Awaitable[Columns]]
    ) -> A:
        """Creates a job, once per request_id. `columns` checks the request and returns the columns
        that the caller decides."""
        before = await self._db.stored_answer(request, answer)
        if before is not None:
            return before
        values = await columns()

        async def work(m: Mutation) -> A:
            row = await self._insert(m, values)
            return answer(**{self._kind.name: self._kind.to_proto(row)})

        return await self._db.mutate(request, answer, work)

    async def _insert(self, m: Mutation, columns: Columns) -> J:
        """Inserts the row and its queued job in one transaction. A row for an outside runner gets
        no job."""
        values = {**columns, "id": new_id(), "owner": m.owner, "created_by": m.actor}
        row = await m.one(self._kind.table.insert(*values), values)
        await self._kind.publish(m, row)
        if not row.external:
            table = self._kind.table.name
            await self._queue.enqueue(
                m, table, job_moves.MODELS_QUEUE, row.id, urgency=row.priority
            )
        return row

    async def finished(self, request: CreateRequest, text: str) -> J:
        """Returns the row once its job has ended, or as it is shortly before the call's
        deadline."""

        async def read() -> J:
            return await self.get(text)

        def done(row: J) -> bool:
            return row.finished

        row: J = await waiting.until_told(self._stream, request, read, done)
        return row

    async def get(self, text: str) -> J:
        return await self._kind.get(self._db, text)

    async def add_position(self, message: M) -> None:
        """Sets the position in the queue of a PENDING job that this service runs."""
        if message.state == pb.JOB_STATE_PENDING and not message.run_externally:
            position = await self._queue.position(message.id)
            if position is not None:  # None: a worker has just claimed it
                message.queue_position = position

    async def page(
        self, listing: Listing[J], request: ListRequest, **wanted: object
    ) -> tuple[Page, list[J]]:
        """Returns the request's page and the owner's rows that fill it. State and dates are read
        from the request; `wanted` are the filters that only this kind has."""
        page = paging.page(request)
        filters = {**wanted, "state": STATES.word.get(request.state), **created(request)}
        return page, await self._db.all(*listing.query(page, filters))

    async def cancel(self, m: Mutation, text: str) -> tuple[J, pb.CancelOutcome]:
        """Cancels the owner's job as far as that is still possible. Returns its row and the
        outcome."""
        kind = self._kind
        values = {"id": parse_id(text, f"{kind.name}_id")}
        row = await m.first(job_tables.lock(kind.table), values)
        if row is None:
            raise errors.not_found(kind.name, text)
        if row.finished:
            return row, pb.CANCEL_OUTCOME_ALREADY_FINISHED
        if row.state == "pending":
            outcome, to = pb.CANCEL_OUTCOME_CANCELLED_BEFORE_START, "cancelled"
        elif row.external:  # its runner learns of it at its next call
            outcome, to = pb.CANCEL_OUTCOME_WITHDRAWN, "cancelled"
            await leases.end_attempt(m, row, "cancelled")
        else:  # its worker checks every second, and ends the attempt itself
            outcome, to = pb.CANCEL_OUTCOME_CANCEL_REQUESTED, row.state
        row = await self._jobs.move(m, row, to, cancel_requested=True, lease_expires_at=None)
        return row, outcome

    def watch(self, request: WatchRequest, answer: type[A], ids: Sequence[str]) -> AsyncIterator[A]:
        """Streams the named jobs, or the recent ones if none is named, as they are now; then every
        change."""
        wanted = {UUID(text) for text in ids}
        name = self._kind.name

        def show(event: Event) -> Fields | None:
            if event.subject != name or (wanted and event.subject_id not in wanted):
                return None
            return {name: self._kind.message.FromString(event.payload)}

        return self._stream.watch(request, answer, self._snapshot(wanted), show)

    async def _snapshot(self, wanted: set[UUID]) -> AsyncIterator[tuple[Fields, J]]:
        values: dict[str, object] = {
            "owner": auth.current().owner,
            "ids": list(wanted),
            "age": _SNAPSHOT_AGE,
            "limit": _SNAPSHOT_PAGE,
        }
        goes_on = False
        while True:
            statement = _select_snapshot(self._kind.table, bool(wanted), goes_on)
            rows = await self._db.all(statement, values)
            for row in rows:
                yield {self._kind.name: self._kind.to_proto(row)}, row
            if len(rows) < _SNAPSHOT_PAGE:
                return
            values |= {"after_at": rows[-1].created_at, "after_id": rows[-1].id}
            goes_on = True


@cache
def _select_snapshot(table: Table[J], named: bool, goes_on: bool) -> Statement[J]:
    row = table.core.c
    where = [
        row.owner == sa.bindparam("owner"),
        row.id == sa.any_(sa.bindparam("ids"))
        if named
        else row.created_at > sa.func.now() - sa.bindparam("age", type_=sa.Interval()),
    ]
    if goes_on:
        last = sa.tuple_(sa.bindparam("after_at"), sa.bindparam("after_id"))
        where.append(sa.tuple_(row.created_at, row.id) > last)
    whole = sa.select(table.core).where(*where).order_by(row.created_at, row.id)
    return compiled(table.row, whole.limit(sa.bindparam("limit")))


class Scheduling(TypedDict):
    """Scheduling columns of a create request: when a job runs, and where."""

    priority: int
    external: bool


def scheduling(request: ScheduledRequest) -> Scheduling:
    priority = request.priority if request.HasField("priority") else rules.DEFAULT_PRIORITY
    return {"priority": priority, "external": request.run_externally}
