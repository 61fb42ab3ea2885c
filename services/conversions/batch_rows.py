"""Batches: the rows, their message, their figures, and the statements that change them.

Locks are taken in one order: an item with its dead job, its batch, the owner's account. Whoever
requeues an item, or ends one so that its batch is paused, has the item and asks for the batch. What
conducts a batch has the batch and needs items that failed, so it takes only those that nobody else
has, and waits for none. A purge waits for nobody who has the batch but for its deletion.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, TypedDict
from uuid import UUID

import sqlalchemy as sa
from atelier.conversions.v1 import batch_pb2 as pb
from psycopg.types.json import Jsonb

from services.conversions import rules
from services.conversions.job_kinds import KINDS, AnyKind
from shared.background import events
from shared.background.jobs import FRESH, JobQueue
from shared.database import states
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Statement, Table, compiled
from shared.rpc import errors
from shared.rpc.protos import EnumNames, timestamp

STATES = EnumNames(pb.BatchState, "BATCH_STATE_")
REASONS = EnumNames(pb.BatchPauseReason, "BATCH_PAUSE_REASON_")
TASK = QUEUE = "batches"
_PRIORITY = FRESH + 1
_MOST_ERRORS = 10
_SHOWN_OF_ERROR = 500
# Urgencies of items of batches before the owner's other jobs begin above those of any priority.
_HIGHEST_PRIORITY = 9


class FailedItems(TypedDict):
    """Items that failed for one reason. `error_message` and `item_id`: of the first that is still
    there; '' if none is."""

    error_class: str
    item_count: int
    error_message: str
    item_id: str


class Figures(TypedDict, total=False):
    """What is counted of a batch's items, by state, with their credits. Empty: without items."""

    pending: int
    processing: int
    completed: int
    failed: int
    cancelled: int
    credits: int
    credits_reserved: int
    errors: list[FailedItems]


@dataclass(slots=True)
class Batch:
    id: UUID
    owner: str
    created_by: str
    version: int
    name: str
    job: str
    total: int
    made: int
    priority: int
    provider: str
    max_credits: int | None
    state: str
    pause_reason: str
    pause_message: str
    held: bool
    front: int
    round: int
    retry_until: datetime | None
    retry_classes: list[str]
    figures: Mapping[str, Any]  # the last Figures
    ended_at: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def kind(self) -> AnyKind:
        return KINDS[self.job]

    @property
    def urgency(self) -> int:
        """Returns the urgency of the jobs of its items."""
        return _HIGHEST_PRIORITY + self.front if self.front else self.priority


class LockedBatch(Batch):
    """A row that is locked until the transaction ends."""

    __slots__ = ()


@dataclass(slots=True)
class Plan:
    owner: str
    batch_id: UUID
    plan: Mapping[str, Any]  # as batch_plans.py reads it


BATCHES = Table("batches", LockedBatch)
PLANS = Table("batch_plans", Plan)
SELECT_BATCH = Statement(Batch, f"SELECT {BATCHES.columns} FROM batches WHERE id = %(id)s")
SELECT_PLAN = Statement(Plan, f"SELECT {PLANS.columns} FROM batch_plans WHERE batch_id = %(id)s")
SELECT_OWNER = Statement(str, "SELECT owner FROM batches WHERE id = %(id)s")
_LOCK_BATCH = Statement(LockedBatch, f"{SELECT_BATCH.text} FOR NO KEY UPDATE")
_DELETE_BATCH = Statement(
    datetime, "DELETE FROM batches WHERE id = %(id)s RETURNING now() AS deleted_at"
)
_INSERT_PLAN = Command(
    "INSERT INTO batch_plans (owner, batch_id, plan) VALUES (%(owner)s, %(batch_id)s, %(plan)s)"
)
_INSERT_PICTURES = Command("""
    INSERT INTO batch_pictures (owner, batch_id, asset_id)
    SELECT %(owner)s, %(batch_id)s, unnest(%(asset_ids)s::uuid[])
""")
_SELECT_FRONT = Statement(
    int,
    """
    SELECT coalesce(max(front), 0) AS front FROM batches
    WHERE owner = %(owner)s AND state IN ('running', 'paused')
    """,
)
SELECT_NOW = Statement(datetime, "SELECT now()")
# The rows that stand for items. A row that another one tries again has failed and cost nothing.
OF_BATCH = "owner = %(owner)s AND batch_id = %(batch_id)s AND batch_item IS NOT NULL"
SELECT_PENDING = {
    table: Statement(UUID, f"SELECT id FROM {table} WHERE {OF_BATCH} AND state = 'pending'")
    for table in KINDS
    if "batch_id" in KINDS[table].table.names
}
TABLES = tuple(SELECT_PENDING)
SELECT_ITEM: Mapping[str, Statement[Any]] = {
    table: Statement(
        KINDS[table].table.row,
        f"SELECT {KINDS[table].table.columns} FROM {table} WHERE id = %(id)s",
    )
    for table in TABLES
}


@dataclass(slots=True)
class _Counted:
    """The rows of one state and error class."""

    state: str
    error_class: str
    items: int
    credits: int
    credits_reserved: int
    error_message: str
    item_id: UUID | None  # None: all of them are purged


_COUNT = {
    table: Statement(
        _Counted,
        f"""
        SELECT state, CASE WHEN state = 'failed' THEN error_class ELSE '' END AS error_class,
            count(*) AS items, sum(credits)::bigint AS credits,
            sum(credits_reserved)::bigint AS credits_reserved,
            coalesce((array_agg(left(error_message, {_SHOWN_OF_ERROR}) ORDER BY at, id)
                FILTER (WHERE id IS NOT NULL))[1], '') AS error_message,
            (array_agg(id ORDER BY at, id) FILTER (WHERE id IS NOT NULL))[1] AS item_id
        FROM (
            SELECT state, error_class, credits, credits_reserved, error_message, id,
                coalesce(ended_at, updated_at) AS at
            FROM {table} WHERE {OF_BATCH}
            UNION ALL SELECT state, error_class, credits, 0, '', NULL, NULL
            FROM purged_items WHERE owner = %(owner)s AND batch_id = %(batch_id)s
        ) AS items GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2
        """,
    )
    for table in TABLES
}
_NEW = (
    "id",
    "owner",
    "created_by",
    "name",
    "job",
    "total",
    "priority",
    "provider",
    "max_credits",
    "state",
    "pause_reason",
)


@cache
def _update(columns: tuple[str, ...]) -> Statement[LockedBatch]:
    """Returns the statement that sets columns and raises the version."""
    row = BATCHES.core.c
    values: dict[str, Any] = {name: sa.bindparam(name) for name in columns}
    values |= {"version": row.version + sa.literal_column("1"), "updated_at": sa.func.now()}
    one = sa.update(BATCHES.core).where(row.id == sa.bindparam("row_id"))
    return compiled(BATCHES.row, one.values(values).returning(*row))


def to_proto(row: Batch) -> pb.Batch:
    found = row.figures
    never = row.total - row.made
    cancelled = row.state == "cancelled"
    ended = [found.get("completed", 0), found.get("failed", 0), found.get("cancelled", 0)]
    if cancelled:
        ended[2] += never
    return pb.Batch(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        name=row.name,
        kind=row.kind.number,
        state=STATES.number[row.state],
        pause_reason=REASONS.number.get(row.pause_reason),
        pause_message=row.pause_message,
        item_count=row.total,
        waiting_count=found.get("pending", 0) + (0 if cancelled else never),
        processing_count=found.get("processing", 0),
        completed_count=ended[0],
        failed_count=ended[1],
        cancelled_count=ended[2],
        progress=sum(ended) / row.total,
        credits=found.get("credits", 0),
        credits_reserved=found.get("credits_reserved", 0),
        max_credits=row.max_credits,
        errors=[pb.BatchError(**each) for each in found.get("errors", [])],
        priority=row.priority,
        prioritized=row.front > 0,
        provider=row.provider,
        etag=str(row.version),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        end_time=timestamp(row.ended_at),
    )


async def publish(m: Mutation, row: Batch) -> None:
    await events.publish(m, "batch", row.id, row.version, to_proto(row))


async def create(
    m: Mutation,
    queue: JobQueue,
    columns: Mapping[str, Any],
    plan: Mapping[str, Any],
    pictures: Collection[UUID],
) -> Batch:
    """Inserts a row of the mutation's owner with its plan and the pictures that this names, and
    publishes it. Unless it is paused, the job that conducts it begins."""
    values = {"id": new_id(), "owner": m.owner, "created_by": m.actor, **columns}
    row = await m.one(BATCHES.insert(*_NEW), values)
    planned = {"owner": m.owner, "batch_id": row.id, "plan": Jsonb(plan)}
    await m.run(_INSERT_PLAN, planned)
    used = {"owner": m.owner, "batch_id": row.id, "asset_ids": sorted(pictures)}
    await m.run(_INSERT_PICTURES, used)
    await publish(m, row)
    if row.state == "running":
        await enqueue(m, queue, row)
    return row


async def enqueue(m: Mutation, queue: JobQueue, row: Batch) -> None:
    """Enqueues the job that conducts the batch in its present round."""
    await queue.enqueue(m, TASK, QUEUE, f"{row.id}/{row.round}", priority=_PRIORITY)


async def lock(m: Mutation, batch_id: UUID) -> LockedBatch:
    """Returns the owner's row, locked until the commit. Raises NOT_FOUND if there is none."""
    row = await find(m, batch_id)
    if row is None:
        raise errors.not_found("batch", batch_id)
    return row


async def find(m: Mutation, batch_id: UUID) -> LockedBatch | None:
    """Returns the owner's row, locked until the commit, or None."""
    return await m.first(_LOCK_BATCH, {"id": batch_id})


async def update(m: Mutation, locked: LockedBatch, **columns: Any) -> LockedBatch:
    """Sets columns, raises the version, publishes the row and returns it."""
    row = await m.one(_update(tuple(columns)), {**columns, "row_id": locked.id})
    await publish(m, row)
    return row


async def move(m: Mutation, locked: LockedBatch, to: str, **columns: Any) -> LockedBatch:
    """Moves the row to a state, publishes it and returns it."""
    row = await states.move(m, rules.BATCH_STATES, BATCHES, locked, to, **columns)
    await publish(m, row)
    return row


async def pause(
    m: Mutation, queue: JobQueue, locked: LockedBatch, reason: str, message: str
) -> LockedBatch:
    """Pauses a running batch: its waiting items leave the queue."""
    await withdraw(m, queue, locked)
    return await move(m, locked, "paused", pause_reason=reason, pause_message=message, held=True)


async def run(m: Mutation, queue: JobQueue, locked: LockedBatch, **columns: Any) -> LockedBatch:
    """Lets a paused or completed batch run, conducted by a new job."""
    shown = {"pause_reason": "", "pause_message": "", "ended_at": None, "round": locked.round + 1}
    row = await move(m, locked, "running", **shown, **columns)
    await enqueue(m, queue, row)
    return row


async def cancel(m: Mutation, queue: JobQueue, locked: LockedBatch) -> LockedBatch:
    """Cancels the batch: its waiting items leave the queue, and its job cancels them."""
    await withdraw(m, queue, locked)
    shown = {"pause_reason": "", "pause_message": "", "round": locked.round + 1}
    row = await move(m, locked, "cancelled", retry_until=None, **shown)
    await enqueue(m, queue, row)
    return row


async def to_front(m: Mutation, queue: JobQueue, locked: LockedBatch) -> LockedBatch:
    """Puts the items of the batch before all other jobs of the owner."""
    front = await m.one(_SELECT_FRONT, {"owner": m.owner})
    if front == locked.front and front:
        return locked
    row = await update(m, locked, front=front + 1)
    await queue.set_urgency(m, await pending(m, row), row.urgency)
    return row


async def withdraw(m: Mutation, queue: JobQueue, row: Batch) -> None:
    """Takes the waiting items of the batch out of the queue."""
    await queue.withdraw(m, await pending(m, row))


async def pending(m: Mutation, row: Batch) -> list[UUID]:
    """Returns the rows that wait, of which there are few at any time."""
    return await m.all(SELECT_PENDING[row.job], {"owner": row.owner, "batch_id": row.id})


async def count(m: Mutation, row: Batch) -> Figures:
    """Counts the items of the batch, also those in the trash and those that were purged."""
    found = await m.all(_COUNT[row.job], {"owner": row.owner, "batch_id": row.id})
    figures = Figures(
        credits=sum(each.credits for each in found),
        credits_reserved=sum(each.credits_reserved for each in found),
        errors=[
            FailedItems(
                error_class=each.error_class,
                item_count=each.items,
                error_message=each.error_message,
                item_id=str(each.item_id or ""),
            )
            for each in found
            if each.state == "failed"
        ][:_MOST_ERRORS],
    )
    of_state: dict[str, int] = {}
    for each in found:
        of_state[each.state] = of_state.get(each.state, 0) + each.items
    figures.update(of_state)  # type: ignore[typeddict-item]  # the states are its other keys
    return figures


async def delete(m: Mutation, locked: LockedBatch) -> None:
    """Deletes the row and publishes that it is gone."""
    deleted_at = await m.one(_DELETE_BATCH, {"id": locked.id})
    purged = pb.PurgedBatch(batch_id=str(locked.id), purge_time=timestamp(deleted_at))
    await events.publish(m, "purged_batch", locked.id, locked.version + 1, purged)
