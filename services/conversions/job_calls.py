"""The calls that the services of the three kinds share: creating, reading, listing, cancelling and
watching jobs, and waiting for them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Generic, TypedDict, TypeVar
from uuid import UUID

import sqlalchemy as sa
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import analysis_pb2, conversion_pb2, generation_pb2
from atelier.conversions.v1 import job_pb2 as pb
from google.protobuf.message import Message

from services.conversions import job_moves, rules, trash_rows
from services.conversions.consenting import Consents
from services.conversions.job_rows import STATES, J, JobKind, M
from services.conversions.providers.routes import Candidate
from services.conversions.retention_rows import Retention
from services.conversions.spending import Offer, Spending
from shared.background import job_tables, waiting
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
RetryRequest = (
    conversion_pb2.RetryConversionRequest
    | generation_pb2.RetryGenerationRequest
    | analysis_pb2.RetryAnalysisRequest
)
CreateRequest = ScheduledRequest | RetryRequest | generation_pb2.RegenerateGenerationRequest
ListRequest = (
    conversion_pb2.ListConversionsRequest
    | generation_pb2.ListGenerationsRequest
    | analysis_pb2.ListAnalysesRequest
)
GetRequest = (
    conversion_pb2.GetConversionRequest
    | generation_pb2.GetGenerationRequest
    | analysis_pb2.GetAnalysisRequest
)
WatchRequest = (
    conversion_pb2.WatchConversionsRequest
    | generation_pb2.WatchGenerationsRequest
    | analysis_pb2.WatchAnalysesRequest
)


class _EarlierDeleted(Exception):
    """The row that was to answer another one was deleted meanwhile."""


class JobCalls(Generic[J, M]):
    def __init__(
        self,
        kind: JobKind[J, M],
        db: Database,
        stream: EventStream,
        queue: JobQueue,
        spending: Spending,
        retention: Retention,
    ) -> None:
        self._kind = kind
        self._retention = retention
        self._routes = spending.routes
        self._db = db
        self._stream = stream
        self._queue = queue
        self._spending = spending
        self._jobs = job_moves.job_table(kind, queue)
        self._consents = Consents(db)

    async def create(
        self, request: CreateRequest, answer: type[A], columns: Callable[[], Awaitable[Columns]]
    ) -> A:
        """Creates a job, once per request_id. `columns` checks the request and returns the columns
        that the caller decides."""
        before = await self._db.stored_answer(request, answer)
        if before is not None:
            return before
        values = await columns()
        offer = await self.offer(request, values)

        async def transaction(offer: Offer) -> A:
            async def work(m: Mutation) -> A:
                row = await self.insert(m, values, offer)
                return answer(**{self._kind.name: self._kind.to_proto(row)})

            return await self._db.mutate(request, answer, work)

        try:
            return await self._spending.agreed(offer, transaction)
        except _EarlierDeleted:  # `columns` finds another answer, or none
            return await self.create(request, answer, columns)

    async def offer(self, request: CreateRequest, columns: Columns) -> Offer:
        """Returns what a job with these columns would cost at most."""
        priced = self._kind.priced(columns)
        candidates = await self.candidates(priced.model_task, str(columns["provider"]))
        columns = {"max_credits": None, **columns}
        if request.HasField("max_credits"):
            columns["max_credits"] = request.max_credits
        return self._spending.offer(priced, columns, candidates)

    async def insert(
        self, m: Mutation, columns: Columns, offer: Offer, *, urgency: int | None = None
    ) -> J:
        """Inserts the row and its queued job in one transaction, and sets its price aside. A row
        for an outside worker gets no job; one that is answered from an earlier row gets the job
        that acquires its references. `urgency`: of the job, instead of the row's priority."""
        earlier = columns.get("answered_from")
        if isinstance(earlier, UUID) and not await trash_rows.keep(m, self._kind, earlier):
            raise _EarlierDeleted
        tried = columns.get("retry_of")
        if isinstance(tried, UUID) and not await trash_rows.keep_ended(m, self._kind, tried):
            raise errors.precondition(
                "it was requeued by an operator, or deleted, meanwhile: nothing was created",
                subject=f"{self._kind.table.name}/{tried}",
            )
        identity = {"id": new_id(), "owner": m.owner, "created_by": m.actor}
        values = {**columns, **offer.columns, **identity}
        row = await m.one(self._kind.table.insert(*values), values)
        await self._kind.publish(m, row)
        if row.finished:
            await trash_rows.enqueue(m, self._kind, self._queue, row.id)
        elif not row.external:
            await job_moves.enqueue(m, self._queue, self._kind, row, offer.providers, urgency)
        await self._spending.reserve(m, self._kind, row.id, offer)
        return row

    async def candidates(self, task: str, provider: str) -> list[Candidate]:
        """Returns the providers that a job of the caller's is asked of, in order, with their
        models."""
        return await self._spending.candidates(self._db, task, provider)

    def check_provider(self, request: ScheduledRequest, task: str) -> None:
        """Raises INVALID_ARGUMENT if the request names a provider that can't do the task, or wants
        of an outside worker what only this service can do."""
        if request.provider and not self._routes.names(task, request.provider):
            able = ", ".join(self._routes.able(task))
            raise errors.invalid(
                "provider", f"is none of this deployment's that does {task}; it has {able}"
            )
        if request.reuse_result and request.run_externally:
            raise errors.invalid(
                "reuse_result", "means nothing to a job that is run externally; leave it out"
            )
        if request.provider and request.run_externally:
            raise errors.invalid(
                "provider", "means nothing to a job that is run externally; leave it out"
            )

    async def consents(self, task: str, pictures: Sequence[asset_pb2.Asset]) -> Columns:
        """Returns the column of the consents that a job rests on. Raises CONSENT_REQUIRED if one is
        missing."""
        return {"consent_ids": await self._consents.check(task, pictures)}

    async def finished(self, request: CreateRequest, text: str) -> J:
        """Returns the row once its job has ended, or as it is shortly before the call's
        deadline."""

        async def read() -> J:
            return await self.get(text)

        def done(row: J) -> bool:
            return row.finished

        row: J = await waiting.until_told(self._stream, request, read, done)
        return row

    def act_for(self, request: GetRequest | ListRequest) -> None:
        """Enters the tenant context of the owner that the request names, as `auth.act_for` does.
        Raises INVALID_ARGUMENT if an operator asks for URLs: they would show the pictures."""
        auth.act_for(request.owner or auth.current().owner)
        if auth.current().role == "admin" and getattr(request, "include_urls", False):
            raise errors.invalid("include_urls", "is for the owner of the pictures; leave it out")

    async def get(self, text: str) -> J:
        return await self._kind.get(self._db, text)

    async def to_repeat(self, text: str) -> J:
        """Returns a row that another one can repeat. Raises FAILED_PRECONDITION if it is
        deleted."""
        row = await self.get(text)
        trash_rows.refuse_deleted(self._kind, row)
        return row

    async def to_retry(self, text: str) -> J:
        """Returns a row that can be tried again. Raises FAILED_PRECONDITION if it has neither
        failed nor been cancelled, or is deleted."""
        row = await self.to_repeat(text)
        if row.state not in ("failed", "cancelled"):
            raise errors.precondition(
                f"it is {row.state}; only what failed or was cancelled can be tried again",
                subject=f"{self._kind.table.name}/{row.id}",
                metadata={"state": row.state},
            )
        self._spending.check_provider(self._kind, row)
        return row

    def message(self, row: J) -> M:
        """Returns a row's message with the times of retention, without URLs."""
        message = self._kind.to_proto(row)
        self._retention.show(self._kind.table.name, message, row)
        return message

    async def add_position(self, message: M) -> None:
        """Sets the position in the queue of a PENDING job that this service runs."""
        if message.state == pb.JOB_STATE_PENDING and not message.run_externally:
            position = await self._queue.position(message.id)
            if position is not None:  # None: a worker has just claimed it
                message.queue_position = position

    async def page(
        self, listing: Listing[J], request: ListRequest, **wanted: object
    ) -> tuple[Page, list[J]]:
        """Returns the request's page and the owner's rows that fill it. State, dates and what is
        shown besides are read from the request; `wanted` are the filters that only this kind
        has."""
        page = paging.page(request)
        filters = {
            **wanted,
            "state": STATES.word.get(request.state),
            "hide_archived": not request.show_archived,
            "hide_deleted": not request.show_deleted,
            **created(request),
        }
        return page, await self._db.all(*listing.query(page, filters))

    async def cancel(self, m: Mutation, text: str) -> tuple[J, pb.CancelOutcome]:
        """Cancels the owner's job as far as that is still possible. Returns its row and the
        outcome."""
        kind = self._kind
        values = {"id": parse_id(text, f"{kind.name}_id")}
        row = await m.first(job_tables.lock(kind.table), values)
        if row is None:
            raise errors.not_found(kind.name, text)
        return await job_moves.cancel(m, self._jobs, row)

    def watch(self, request: WatchRequest, answer: type[A], ids: Sequence[str]) -> AsyncIterator[A]:
        """Streams the named jobs, or the recent ones if none is named, as they are now; then every
        change."""
        wanted = {UUID(text) for text in ids}
        name = self._kind.name

        items: dict[str, tuple[str, type[Message]]] = {
            name: (name, self._kind.message),
            self._kind.purged_subject: ("purged", self._kind.purged_message),
        }

        def show(event: Event) -> Fields | None:
            if event.subject not in items or (wanted and event.subject_id not in wanted):
                return None
            field, message = items[event.subject]
            return {field: message.FromString(event.payload)}

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
    """The columns of a create request that every kind has: when a job runs, where, by whom, and
    whether it drops its inputs."""

    priority: int
    external: bool
    provider: str
    drop_inputs: bool


def scheduling(request: ScheduledRequest) -> Scheduling:
    priority = request.priority if request.HasField("priority") else rules.DEFAULT_PRIORITY
    return {
        "priority": priority,
        "external": request.run_externally,
        "provider": request.provider,
        "drop_inputs": request.drop_inputs,
    }
