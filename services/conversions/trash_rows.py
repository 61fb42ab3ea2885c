"""The trash of jobs: archives, deletes, undeletes and purges rows of the three kinds.

What follows from that for pictures, their references and results at `assets`, is settled by a job
of the queue afterwards: see `runs/settling.py`. Everything works in an open transaction and never
commits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from services.conversions.job_kinds import KINDS
from services.conversions.job_rows import J, JobKind, ModelJob, PictureJob
from shared.background import events
from shared.background.jobs import JobQueue
from shared.database.db import Mutation
from shared.database.lists import Filter
from shared.database.rows import Command, Statement, Table
from shared.rpc import errors
from shared.rpc.protos import timestamp

SETTLE_QUEUE = "trash"
# Filters of lists.
HIDES: Mapping[str, Filter] = {
    "hide_archived": lambda row, _: row.archived_at.is_(None),
    "hide_deleted": lambda row, _: row.deleted_at.is_(None),
}


@dataclass(slots=True)
class PurgedJob:
    """A job that was purged. `result_asset_id`: the picture that it had made; `drop_asset_ids`: the
    inputs that it was still to drop."""

    job_id: UUID
    owner: str
    job: str
    result_asset_id: UUID | None
    from_trash: bool
    drop_asset_ids: list[UUID]
    created_at: datetime


PURGED_JOBS = Table("purged_jobs", PurgedJob)


@dataclass(slots=True)
class PurgedMaker:
    """What stays of a purged job that had made a picture. `answered`: it only showed the picture of
    another job."""

    owner: str
    job_id: UUID
    job: str
    result_asset_id: UUID
    answered: bool
    consent_ids: list[UUID]
    created_at: datetime
    purged_at: datetime


PURGED_MAKERS = Table("purged_makers", PurgedMaker)


@dataclass(slots=True)
class _Purged:
    id: UUID
    version: int
    purged_at: datetime


# A row that ended before its end was noted: its last change was its end until now.
_END = "CASE WHEN state IN ('completed', 'failed', 'cancelled') THEN updated_at END"


def _changing(
    assignments: str, condition: str, kept_from: str = f"coalesce(kept_from, {_END})"
) -> dict[str, Statement[Any]]:
    """Returns by table the statement that changes rows and returns them."""
    return {
        name: Statement(
            kind.table.row,
            f"""
            UPDATE {name} SET {assignments}, ended_at = coalesce(ended_at, {_END}),
                kept_from = {kept_from}, version = version + 1, updated_at = now()
            WHERE id = ANY(%(ids)s) AND {condition} RETURNING {kind.table.columns}
            """,
        )
        for name, kind in KINDS.items()
    }


_ARCHIVE = _changing("archived_at = now()", "archived_at IS NULL")
_UNARCHIVE = _changing("archived_at = NULL", "archived_at IS NOT NULL")
_TRASH = _changing(
    "deleted_at = now(), expires_at = now() + %(life)s::interval",
    "deleted_at IS NULL AND state IN ('completed', 'failed', 'cancelled')",
)
# Retention would take at once what is older than it allows, so it counts anew.
_RESTORE = _changing(
    "deleted_at = NULL, expires_at = NULL", "deleted_at IS NOT NULL", kept_from="now()"
)
_DROP_INPUTS = _changing(
    "drop_inputs = true", "deleted_at IS NULL AND state = 'completed' AND NOT drop_inputs"
)
_DROPPED = _changing("inputs_dropped_at = now()", "inputs_dropped_at IS NULL")
_LOCK = {
    name: Statement(
        kind.table.row,
        f"SELECT {kind.table.columns} FROM {name} WHERE id = ANY(%(ids)s) ORDER BY id FOR UPDATE",
    )
    for name, kind in KINDS.items()
}
_KEEP = {
    name: Statement(
        UUID,
        f"""
        SELECT id FROM {name} WHERE id = %(id)s AND deleted_at IS NULL AND recipe_digest <> ''
        FOR SHARE
        """,
    )
    for name in KINDS
}
_KEEP_ENDED = {
    name: Statement(
        UUID,
        f"""
        SELECT id FROM {name}
        WHERE id = %(id)s AND deleted_at IS NULL AND state IN ('failed', 'cancelled') FOR SHARE
        """,
    )
    for name in KINDS
}
_PURGE = {
    name: Statement(
        _Purged,
        f"""
        DELETE FROM {name} WHERE id = ANY(%(ids)s)
        RETURNING id, version + 1 AS version, now() AS purged_at
        """,
    )
    for name in KINDS
}
_NOTE_PURGED = Command("""
    INSERT INTO purged_jobs (job_id, owner, job, result_asset_id, from_trash, drop_asset_ids)
    VALUES (%(id)s, %(owner)s, %(job)s, %(result)s, %(from_trash)s, %(inputs)s)
""")
# What was made of the picture may outlive the job, and is erased with the consent to its inputs.
_REMEMBER = {
    name: Command(f"""
        INSERT INTO purged_makers (owner, job_id, job, result_asset_id, answered, consent_ids,
            created_at)
        SELECT owner, id, '{name}', result_asset_id, answered_from IS NOT NULL, consent_ids,
            created_at
        FROM {name} WHERE id = ANY(%(ids)s) AND state = 'completed'
    """)
    for name, kind in KINDS.items()
    if issubclass(kind.table.row, PictureJob)
}
_FORGET_INPUTS = Command("""
    DELETE FROM job_inputs i WHERE owner = %(owner)s AND job_id = ANY(%(ids)s) AND NOT EXISTS (
        SELECT FROM purged_makers p WHERE p.owner = i.owner AND p.job_id = i.job_id)
""")
# The record of a call that may have cost money stays, without its texts.
FORGET_TEXTS = Command("""
    UPDATE provider_calls SET handle = '', category = ''
    WHERE job_id = ANY(%(ids)s) AND ended_at IS NOT NULL
""")
_FORGET_ATTEMPTS = Command("DELETE FROM attempts WHERE job_id = ANY(%(ids)s)")


async def keep(m: Mutation, kind: JobKind[Any, Any], row_id: UUID) -> bool:
    """Keeps a row that answers others out of the trash until the commit. Returns False if it is
    there, purged, or its findings were erased."""
    return await m.first(_KEEP[kind.table.name], {"id": row_id}) is not None


async def keep_ended(m: Mutation, kind: JobKind[Any, Any], row_id: UUID) -> bool:
    """Keeps a row that is tried again as it is until the commit. Returns False if an operator
    requeued it, or it was deleted."""
    return await m.first(_KEEP_ENDED[kind.table.name], {"id": row_id}) is not None


async def lock(m: Mutation, kind: JobKind[J, Any], ids: Sequence[UUID]) -> list[J]:
    """Returns those of the owner's rows that are there, locked until the commit."""
    return await m.all(_LOCK[kind.table.name], {"ids": list(ids)})


async def archive(m: Mutation, kind: JobKind[J, Any], row: J, *, archived: bool) -> J:
    """Hides a locked row from lists, or shows it again."""
    statement = (_ARCHIVE if archived else _UNARCHIVE)[kind.table.name]
    [changed] = await _change(m, kind, statement, {"ids": [row.id]})
    return changed


async def delete(
    m: Mutation, kind: JobKind[J, Any], queue: JobQueue, ids: Sequence[UUID], life: timedelta
) -> list[J]:
    """Puts rows into the trash for `life`: those that have ended and aren't there yet. Returns
    them."""
    changed = await _change(m, kind, _TRASH[kind.table.name], {"ids": list(ids), "life": life})
    for row in changed:
        await enqueue(m, kind, queue, row.id)
    return changed


async def undelete(m: Mutation, kind: JobKind[J, Any], queue: JobQueue, row: J) -> J:
    """Takes a locked row out of the trash."""
    [changed] = await _change(m, kind, _RESTORE[kind.table.name], {"ids": [row.id]})
    await enqueue(m, kind, queue, row.id)
    return changed


async def drop_inputs(
    m: Mutation, kind: JobKind[J, Any], queue: JobQueue, ids: Sequence[UUID]
) -> list[J]:
    """Lets completed rows drop their inputs as if their requests had asked for it. Returns those
    that didn't do so before."""
    changed = await _change(m, kind, _DROP_INPUTS[kind.table.name], {"ids": list(ids)})
    for row in changed:
        await enqueue(m, kind, queue, row.id)
    return changed


def is_to_drop(row: ModelJob) -> bool:
    """Returns whether a row has yet to let go of its inputs."""
    return row.state == "completed" and row.drop_inputs and row.inputs_dropped_at is None


async def note_dropped(m: Mutation, kind: JobKind[J, Any], row_id: UUID) -> None:
    """Notes that a row has let go of its inputs."""
    await _change(m, kind, _DROPPED[kind.table.name], {"ids": [row_id]})


async def purge(m: Mutation, kind: JobKind[J, Any], queue: JobQueue, rows: Sequence[J]) -> None:
    """Deletes locked rows, with their attempts, and publishes that they are gone."""
    named = {"owner": m.owner, "ids": [row.id for row in rows]}
    if kind.table.name in _REMEMBER:
        await m.run(_REMEMBER[kind.table.name], named)
    await m.run(_FORGET_INPUTS, named)
    await m.run(_FORGET_ATTEMPTS, named)
    await m.run(FORGET_TEXTS, named)
    for row in rows:
        result = {
            "id": row.id,
            "owner": m.owner,
            "job": kind.table.name,
            "result": row.result_columns().get("result_asset_id"),
            "inputs": [each.asset_id for each in row.inputs()] if is_to_drop(row) else [],
            "from_trash": row.deleted_at is not None and row.state == "completed",
        }
        await m.run(_NOTE_PURGED, result)
        await enqueue(m, kind, queue, row.id)
    gone = await m.all(_PURGE[kind.table.name], named)
    changes = [
        (each.id, each.version, kind.purged(str(each.id), timestamp(each.purged_at)))
        for each in gone
    ]
    await events.publish_all(m, kind.purged_subject, changes)


async def enqueue(m: Mutation, kind: JobKind[Any, Any], queue: JobQueue, row_id: UUID) -> None:
    """Enqueues the job that settles the pictures of a row."""
    await queue.enqueue(m, kind.settle_task, SETTLE_QUEUE, row_id)


async def _change(
    m: Mutation, kind: JobKind[J, Any], statement: Statement[J], values: dict[str, object]
) -> list[J]:
    rows = await m.all(statement, values)
    changes = [(row.id, row.version, kind.to_proto(row)) for row in rows]
    await events.publish_all(m, kind.name, changes)
    return rows


def refuse_deleted(kind: JobKind[Any, Any], row: ModelJob) -> None:
    """Raises FAILED_PRECONDITION for a row in the trash."""
    if row.deleted_at:
        text = f"the {kind.name} is deleted; undelete it first"
        raise errors.precondition(text, subject=f"{kind.table.name}/{row.id}")


def refuse_unfinished(kind: JobKind[Any, Any], row: ModelJob) -> None:
    """Raises FAILED_PRECONDITION for a row that hasn't ended."""
    if row.finished:
        return
    text = f"the {kind.name} is {row.state}; cancel it first"
    if row.cancel_requested:
        text = f"the {kind.name} is being cancelled; repeat when it has ended"
    raise errors.precondition(
        text, subject=f"{kind.table.name}/{row.id}", metadata={"state": row.state}
    )
