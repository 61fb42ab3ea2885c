"""Jobs: what conversions, generations and analyses have in common.

Each of the three nouns is its own job: one row that is asked for, waits, runs and comes to an end.
A `Noun` says what differs; inserting, reading, listing, moving, cancelling, watching and waiting
are the same. Nouns import from here, never back.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, LiteralString, TypeVar
from uuid import UUID

from atelier.conversions.v1 import job_pb2 as pb
from google.protobuf.message import Message
from psycopg import sql

from services.conversions import rules
from shared.background import attempts, events, waiting
from shared.background.jobs import FRESH, JobQueue
from shared.database import states
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.rpc import auth, errors, paging
from shared.rpc.protos import Words, struct, time_of, timestamp, wait_of

M = TypeVar("M", bound=Message)
QUEUE = "models"
STATES = Words(pb.JobState, "JOB_STATE_")
RELEASE_QUEUE = "references"
_BRIEF = FRESH + 1  # priority of what takes a moment: before any job
_SNAPSHOT_AGE = timedelta(days=1)
_SNAPSHOT_PAGE = 500


# A try that is still running ends with the transaction that moves the row.
_STAMP = """
    UPDATE {table} SET processing_time_ms = COALESCE((
        SELECT round(extract(epoch FROM COALESCE(ended_at, now()) - created_at) * 1000)
            FROM attempts
        WHERE job_id = {table}.id ORDER BY number DESC LIMIT 1), 0)
    WHERE id = %(id)s RETURNING *
"""


@dataclass(frozen=True)
class Noun:
    """One of the three. `name` is the subject of its events and the field of its messages,
    `message` its message type, `to_proto` makes that of a row, without URLs, and `inputs` are a
    row's pictures as (role, asset).
    """

    name: str
    table: LiteralString
    message: Any
    to_proto: Callable[[Any], Any]
    inputs: Callable[[Any], list[tuple[str, UUID]]]

    @property
    def release_task(self) -> str:
        return f"release_{self.table}"

    def holder(self, row_id: UUID) -> str:
        """The name under which a row holds its pictures at assets, and the beginning of its request
        id there."""
        return f"conversions/{self.table}/{row_id}"

    async def publish(self, m: Mutation, row: Any) -> None:
        await events.publish(m, self.name, row.id, row.version, self.to_proto(row))

    async def tell(self, m: Mutation, queue: JobQueue, row: Any) -> Any:
        """What a move brings with it, in its transaction: watchers are told; one that came to its
        end gets the time of its last try; and one without a result gives its pictures back. Returns
        the row as it is then.
        """
        if row.state in rules.FINISHED:
            stamp: Any = _STAMP.format(table=self.table)
            row = await m.one(stamp, {"id": row.id})
            if row.state != "completed":
                await queue.enqueue(m, self.release_task, RELEASE_QUEUE, row.id, priority=_BRIEF)
        await self.publish(m, row)
        return row


def result_of(row: Any) -> str:
    """The picture that a COMPLETED row shows. One that is still being made may have its picture,
    too."""
    return str(row.result_asset_id) if row.state == "completed" else ""


def common_fields(row: Any) -> dict[str, Any]:
    """The fields that the three messages share, by name."""
    return {
        "id": str(row.id),
        "owner": row.owner,
        "created_by": row.created_by,
        "state": STATES.number[row.state],
        "product_id": row.product_id,
        "progress": row.progress,
        "cancel_requested": row.cancel_requested,
        "confidence": row.confidence,
        "evidence": [pb.Evidence(**item) for item in row.evidence],
        "recipe": _recipe(row.recipe) if row.recipe else None,
        "credits": row.credits,
        "error_class": row.error_class,
        "error_message": row.error_message,
        "processing_time_ms": row.processing_time_ms,
        "create_time": timestamp(row.created_at),
        "wait": wait_of(row),
        "update_time": timestamp(row.updated_at),
        "priority": row.priority,
        "run_externally": row.external,
    }


def _recipe(stored: Mapping[str, Any]) -> pb.Recipe:
    return pb.Recipe(
        model=stored["model"],
        model_version=stored["model_version"],
        seed=stored["seed"],
        parameters=struct(stored["parameters"]),
        inputs=[pb.RecipeInput(**item) for item in stored["inputs"]],
    )


def wishes(request: Any) -> dict[str, Any]:
    """The columns of what a request says about the running of it."""
    priority = request.priority if request.HasField("priority") else rules.DEFAULT_PRIORITY
    return {"priority": priority, "external": request.run_externally}


async def insert(m: Mutation, queue: JobQueue, noun: Noun, columns: Mapping[str, Any]) -> Any:
    """Takes one on: its row and its job commit together. One for an outside worker has no job.
    Returns the row."""
    row_id = new_id()
    values = {**columns, "id": row_id, "owner": m.owner, "created_by": m.actor}
    statement: Any = sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING *").format(
        sql.Identifier(noun.table),
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(map(sql.Placeholder, values)),
    )
    row = await m.one(statement, values)
    row = await noun.tell(m, queue, row)
    if not row.external:
        await queue.enqueue(m, noun.table, QUEUE, row_id, urgency=row.priority)
    return row


async def get(db: Database, noun: Noun, text: str) -> Any:
    """The owner's row. NOT_FOUND if there is none."""
    row = await db.row(_select(noun), {"id": parse_id(text, f"{noun.name}_id")})
    if row is None:
        raise errors.not_found(noun.name, text)
    return row


def _select(noun: Noun) -> Any:
    return f"SELECT * FROM {noun.table} WHERE id = %(id)s"


async def add_position(message: Any, queue: JobQueue) -> None:
    """Says where a PENDING one stands in the queue."""
    if message.state == pb.JOB_STATE_PENDING and not message.run_externally:
        position = await queue.position(message.id)
        if position is not None:  # None: a worker took it this moment
            message.queue_position = position


async def page(
    db: Database, noun: Noun, request: Any, **wanted: Any
) -> tuple[paging.Page, Sequence[Any]]:
    """A page of the owner's rows, to be filled with. `wanted`: columns and the values they must
    have; those that are empty don't filter. State and dates are read from the request."""
    where = ["owner = %(owner)s"]
    parameters: dict[str, Any] = {"owner": auth.current().owner}
    if request.state:
        wanted["state"] = STATES.word[request.state]
    for name, value in wanted.items():
        if value:
            where.append(f"{name} = %({name})s")
            parameters[name] = value
    for field, operator in (("created_from", ">="), ("created_before", "<")):
        at = time_of(getattr(request, field), request.HasField(field), field)
        if at is not None:
            where.append(f"created_at {operator} %({field})s")
            parameters[field] = at
    asked = paging.page(request)
    statement: Any = f"SELECT * FROM {noun.table} WHERE {' AND '.join(where)}{asked.clause}"
    return asked, await db.rows(statement, parameters | asked.parameters)


async def cancel(m: Mutation, queue: JobQueue, noun: Noun, text: str) -> tuple[Any, Any]:
    """Stops the owner's row as far as that is still possible. Returns the row as it is now, and
    what was done."""
    statement: Any = f"{_select(noun)} FOR UPDATE"
    row = await m.one(statement, {"id": parse_id(text, f"{noun.name}_id")})
    if row is None:
        raise errors.not_found(noun.name, text)
    if row.state in rules.FINISHED:
        return row, pb.CANCEL_OUTCOME_ALREADY_FINISHED
    if row.state == "pending":
        outcome, to = pb.CANCEL_OUTCOME_CANCELLED_BEFORE_START, "cancelled"
    elif row.external:  # its worker learns of it by its next call
        outcome, to = pb.CANCEL_OUTCOME_WITHDRAWN, "cancelled"
        await attempts.record_end(m, row.attempt_token, "cancelled")
    else:  # its worker looks every second, and ends the try itself
        outcome, to = pb.CANCEL_OUTCOME_CANCEL_REQUESTED, row.state
    row = await states.advance(
        m, rules.JOB_STATES, noun.table, row.id, to, cancel_requested=True, lease_expires_at=None
    )
    return await noun.tell(m, queue, row), outcome


async def finished(
    db: Database, stream: events.EventStream, noun: Noun, request: Message, text: str
) -> Any:
    """The row once it has come to its end, or as it is shortly before the call's deadline."""

    async def read() -> Any:
        return await get(db, noun, text)

    return await waiting.until_told(stream, request, read, lambda row: row.state in rules.FINISHED)


def watch(
    db: Database,
    stream: events.EventStream,
    noun: Noun,
    request: Any,
    answer: type[M],
    ids: Sequence[str],
) -> AsyncIterator[M]:
    """What is there now (the named ones, or the recent ones), then every change."""
    wanted = {UUID(text) for text in ids}

    def show(event: events.Event) -> events.Fields | None:
        told = event.subject == noun.name and (not wanted or event.subject_id in wanted)
        return {noun.name: noun.message.FromString(event.payload)} if told else None

    return stream.watch(request, answer, _snapshot(db, noun, wanted), show)


async def _snapshot(
    db: Database, noun: Noun, wanted: set[UUID]
) -> AsyncIterator[tuple[events.Fields, Any]]:
    after: Mapping[str, Any] = {"after_at": None, "after_id": None}
    statement: Any = (
        f"SELECT * FROM {noun.table} WHERE owner = %(owner)s"
        " AND CASE WHEN %(all)s THEN created_at > now() - %(age)s ELSE id = ANY(%(ids)s) END"
        " AND (%(after_id)s::uuid IS NULL OR (created_at, id) > (%(after_at)s, %(after_id)s))"
        " ORDER BY created_at, id LIMIT %(limit)s"
    )
    while True:
        rows = await db.rows(
            statement,
            {
                "owner": auth.current().owner,
                "all": not wanted,
                "ids": list(wanted),
                "age": _SNAPSHOT_AGE,
                "limit": _SNAPSHOT_PAGE,
                **after,
            },
        )
        for row in rows:
            yield {noun.name: noun.to_proto(row)}, row
        if len(rows) < _SNAPSHOT_PAGE:
            return
        after = {"after_at": rows[-1].created_at, "after_id": rows[-1].id}
