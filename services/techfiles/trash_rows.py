"""The trash of tech files, collections, runs, exports and releases: deletes, undeletes and purges
their rows.

What a purge leaves to be done outside the database is noted in its transaction: objects to be
removed from the store, and pictures whose references may be released. The upkeep does it.
Everything works in an open transaction and never commits. Locks are taken in one order:
collections, slots, files, releases, exports, runs.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from atelier.techfiles.v1 import (
    collection_pb2,
    export_pb2,
    release_pb2,
    tech_file_pb2,
    tech_pack_pb2,
)
from google.protobuf.message import Message

from services.techfiles import collection_rows, pack_rows, release_rows, tech_file_rows
from services.techfiles.collection_rows import COLLECTIONS, LockedCollection
from services.techfiles.export_rows import EXPORTS, Export
from services.techfiles.pack_rows import RUNS, Run, RunStep
from services.techfiles.release_rows import RELEASES, Release
from services.techfiles.releasing_pictures import SETTLED_AFTER
from services.techfiles.rules import Step
from services.techfiles.tech_file_rows import TECH_FILES, TechFile
from shared.background import events
from shared.database.db import Mutation
from shared.database.lists import Filter
from shared.database.rows import Command, Statement, Table
from shared.rpc import errors
from shared.rpc.errors import Reason
from shared.rpc.protos import timestamp

R = TypeVar("R")

# Filters of lists.
HIDES: Mapping[str, Filter] = {
    "hide_archived": lambda row, _: row.archived_at.is_(None),
    "hide_deleted": lambda row, _: row.deleted_at.is_(None),
}
CANCEL = "cancel it first (CancelTechPackRun)"


@dataclass(slots=True)
class Held:
    """A file that something needs. `reason` ends with the call that lets go."""

    tech_file_id: UUID
    reason: str


Hold = Callable[[Mutation, Sequence[UUID]], Awaitable[Sequence[Held]]]
"""Returns those of the files that something needs, so that they may not be purged."""


@dataclass(slots=True)
class _OpenRun:
    id: UUID
    tech_file_id: UUID


@dataclass(slots=True)
class _Gone:
    """A row that was deleted. `label`: the product of a file or a release; `export_id`: a file's
    document."""

    id: UUID
    version: int
    purged_at: datetime
    label: str
    export_id: UUID | None


_TABLES: tuple[Table[Any], ...] = (TECH_FILES, COLLECTIONS, EXPORTS, RUNS, RELEASES)


def _changing(assignments: str, condition: str) -> dict[str, Statement[Any]]:
    """Returns by table the statement that changes a row and returns it."""
    return {
        table.name: Statement(
            table.row,
            f"""
            UPDATE {table.name} SET {assignments}, version = version + 1, updated_at = now()
            WHERE id = %(id)s AND {condition} RETURNING {table.columns}
            """,
        )
        for table in _TABLES
    }


_DELETE = _changing(
    "deleted_at = now(), expires_at = now() + %(life)s::interval", "deleted_at IS NULL"
)
_DELETE[TECH_FILES.name] = Statement(
    TechFile,
    _DELETE[TECH_FILES.name].text.replace("SET deleted_at", "SET is_latest = false, deleted_at"),
)
_UNDELETE = _changing("deleted_at = NULL, expires_at = NULL", "deleted_at IS NOT NULL")
_PURGE = {
    name: Statement(
        _Gone,
        f"""
        DELETE FROM {name} WHERE id = ANY(%(ids)s)
        RETURNING id, version + 1 AS version, now() AS purged_at, {columns}
        """,
    )
    for name, columns in {
        TECH_FILES.name: "product_id AS label, export_id",
        COLLECTIONS.name: "'' AS label, NULL::uuid AS export_id",
        EXPORTS.name: "'' AS label, NULL::uuid AS export_id",
        RUNS.name: "'' AS label, NULL::uuid AS export_id",
        RELEASES.name: "product_id AS label, NULL::uuid AS export_id",
    }.items()
}
_SELECT_OPEN_RUNS = Statement(
    _OpenRun,
    """
    SELECT r.id, (s.step ->> 'tech_file_id')::uuid AS tech_file_id
    FROM runs r, jsonb_array_elements(r.plan) AS s (step)
    WHERE r.owner = %(owner)s AND r.state IN ('pending', 'processing')
        AND s.step ->> 'tech_file_id' = ANY(%(ids)s::text[])
    """,
)
SELECT_RUN_OF_COLLECTION = Statement(
    UUID,
    """
    SELECT id FROM runs WHERE collection_id = %(id)s AND state IN ('pending', 'processing') LIMIT 1
    """,
)
_LOCK_COLLECTIONS_OF_FILES = Statement(
    LockedCollection,
    f"""
    SELECT {COLLECTIONS.columns} FROM collections WHERE id IN (
        SELECT collection_id FROM collection_items WHERE tech_file_id = ANY(%(ids)s))
    ORDER BY id FOR UPDATE
    """,
)
_LOCK_SLOTS = Statement(
    UUID,
    """
    SELECT id FROM slots WHERE id IN (SELECT slot_id FROM tech_files WHERE id = ANY(%(ids)s))
    ORDER BY id FOR UPDATE
    """,
)
_LOCK = {
    table.name: Statement(
        table.row,
        f"SELECT {table.columns} FROM {table.name} WHERE id = ANY(%(ids)s) ORDER BY id FOR UPDATE",
    )
    for table in _TABLES
}
_KEEP_NUMBERS = Command("""
    INSERT INTO purged_numbers (owner, slot_id, number, tech_file_id, purged_by)
    SELECT owner, slot_id, number, id, %(actor)s FROM tech_files WHERE id = ANY(%(ids)s)
    UNION ALL
    SELECT owner, slot_id, number, tech_file_id, %(actor)s FROM tech_file_versions
    WHERE tech_file_id = ANY(%(ids)s)
""")
_NOTE_PICTURES_OF_FILES = Command("""
    INSERT INTO picture_releases (id, owner, product_id, asset_id, settles_at)
    SELECT gen_random_uuid(), %(owner)s, product_id, asset_id, now() + %(settled)s::interval FROM (
        SELECT product_id, file_asset_id AS asset_id FROM tech_files WHERE id = ANY(%(ids)s)
        UNION
        SELECT f.product_id, (v.snapshot ->> 'file_asset_id')::uuid
        FROM tech_file_versions v JOIN tech_files f ON f.id = v.tech_file_id
        WHERE v.tech_file_id = ANY(%(ids)s)) AS pictures
    WHERE asset_id IS NOT NULL
    ON CONFLICT ON CONSTRAINT picture_releases_picture
        DO UPDATE SET due_at = now(), settles_at = EXCLUDED.settles_at
""")
_NOTE_PICTURES_OF_RUNS = Command("""
    INSERT INTO picture_releases (id, owner, product_id, asset_id, settles_at)
    SELECT gen_random_uuid(), %(owner)s, product_id, asset_id, now() + %(settled)s::interval FROM (
        SELECT DISTINCT r.product_id, (s.step ->> 'asset_id')::uuid AS asset_id
        FROM runs r, jsonb_array_elements(r.plan) AS s (step)
        WHERE r.id = ANY(%(ids)s) AND s.step ->> 'asset_id' <> '') AS pictures
    ON CONFLICT ON CONSTRAINT picture_releases_picture
        DO UPDATE SET due_at = now(), settles_at = EXCLUDED.settles_at
""")
_NOTE_PICTURES_OF_RELEASES = Command("""
    INSERT INTO picture_releases (id, owner, product_id, asset_id, settles_at)
    SELECT gen_random_uuid(), %(owner)s, product_id, asset_id, now() + %(settled)s::interval FROM (
        SELECT DISTINCT product_id, asset_id FROM release_files
        WHERE release_id = ANY(%(ids)s) AND asset_id IS NOT NULL) AS pictures
    ON CONFLICT ON CONSTRAINT picture_releases_picture
        DO UPDATE SET due_at = now(), settles_at = EXCLUDED.settles_at
""")
_DELETE_VERSIONS = Command("DELETE FROM tech_file_versions WHERE tech_file_id = ANY(%(ids)s)")
_DELETE_ITEMS_OF_FILES = Command("DELETE FROM collection_items WHERE tech_file_id = ANY(%(ids)s)")
_FORGET_PARENT = Statement(
    TechFile,
    f"""
    UPDATE tech_files SET parent_file_id = NULL, parent_purged = true, version = version + 1,
        updated_at = now()
    WHERE parent_file_id = ANY(%(ids)s) AND NOT id = ANY(%(ids)s) RETURNING {TECH_FILES.columns}
    """,
)
_SELECT_UNSHOWN = Statement(
    UUID,
    """
    SELECT id FROM exports e WHERE id = ANY(%(ids)s) AND NOT EXISTS (
        SELECT FROM tech_files f WHERE f.export_id = e.id)
    """,
)
_FORGET_EXPORT = Statement(
    TechFile,
    f"""
    UPDATE tech_files SET export_id = NULL, version = version + 1, updated_at = now()
    WHERE export_id = ANY(%(ids)s) RETURNING {TECH_FILES.columns}
    """,
)
_DOOM_EXPORTS = Command("""
    INSERT INTO doomed_objects (owner, storage_key)
    SELECT owner, storage_key FROM exports
    WHERE id = ANY(%(ids)s) AND storage_key <> '' AND bytes_gone_at IS NULL ORDER BY storage_key
""")
_DELETE_ATTEMPTS = Command("DELETE FROM attempts WHERE job_id = ANY(%(ids)s)")
_DELETE_STEPS = Command("DELETE FROM run_steps WHERE run_id = ANY(%(ids)s)")
_SELECT_RELEASE_DOCUMENTS = Statement(
    UUID, "SELECT id FROM exports WHERE release_id = ANY(%(ids)s)"
)
_DELETE_OF_RELEASES = tuple(
    Command(f"DELETE FROM {table} WHERE release_id = ANY(%(ids)s)")
    for table in ("release_files", "release_contents")
)
_SELECT_PACKS = Statement(UUID, "SELECT id FROM tech_files WHERE collection_id = ANY(%(ids)s)")
_SELECT_EXPORTS = Statement(UUID, "SELECT id FROM exports WHERE collection_id = ANY(%(ids)s)")
_SELECT_RUNS = Statement(UUID, "SELECT id FROM runs WHERE collection_id = ANY(%(ids)s)")
_DELETE_OF_COLLECTIONS = tuple(
    Command(f"DELETE FROM {table} WHERE collection_id = ANY(%(ids)s)")
    for table in ("collection_items", "collection_changes", "collection_facts")
)


async def delete(m: Mutation, table: Table[R], row_id: UUID, life: timedelta) -> R:
    """Puts a locked row that isn't there yet into the trash for `life`. Returns its new row."""
    row: R = await m.one(_DELETE[table.name], {"id": row_id, "life": life})
    return row


async def undelete(m: Mutation, table: Table[R], row_id: UUID) -> R:
    """Takes a locked row out of the trash. Returns its new row."""
    row: R = await m.one(_UNDELETE[table.name], {"id": row_id})
    return row


async def _open_runs(m: Mutation, ids: Sequence[UUID]) -> list[Held]:
    rows = await m.all(_SELECT_OPEN_RUNS, {"owner": m.owner, "ids": list(ids)})
    text = "the run {} is to make it; cancel the run first (CancelTechPackRun)"
    return [Held(row.tech_file_id, text.format(row.id)) for row in rows]


# What may need a file. A noun that does adds its function.
HOLDS: tuple[Hold, ...] = (_open_runs,)


async def held(m: Mutation, ids: Sequence[UUID]) -> dict[UUID, str]:
    """Returns why files may not be purged, by file; files that may are left out."""
    found: dict[UUID, str] = {}
    for hold in HOLDS:
        for each in await hold(m, ids):
            found.setdefault(each.tech_file_id, each.reason)
    return found


async def refuse_held(m: Mutation, ids: Sequence[UUID]) -> None:
    """Raises FAILED_PRECONDITION (IN_USE) if something needs one of these files."""
    for file_id, reason in (await held(m, ids)).items():
        raise errors.precondition(
            f"the file {file_id} is held: {reason}",
            subject=f"tech_files/{file_id}",
            reason=Reason.ERROR_REASON_IN_USE,
        )


async def lock(m: Mutation, table: Table[R], ids: Sequence[UUID]) -> list[R]:
    """Locks those of the owner's rows that are there until the commit, files after the collections
    and slots that they are in. Returns them."""
    named = {"ids": list(ids)}
    if table is TECH_FILES:
        await m.all(_LOCK_COLLECTIONS_OF_FILES, named)
        await m.all(_LOCK_SLOTS, named)
    rows: list[R] = await m.all(_LOCK[table.name], named)
    return rows


async def purge_files(m: Mutation, rows: Sequence[TechFile]) -> None:
    """Deletes locked files with their versions, and their documents unless other files show them.
    Keeps their numbers."""
    if not rows:
        return
    named = {
        "owner": m.owner,
        "actor": m.actor,
        "ids": [row.id for row in rows],
        "settled": SETTLED_AFTER,
    }
    await m.run(_KEEP_NUMBERS, named)
    await m.run(_NOTE_PICTURES_OF_FILES, named)
    await m.run(_DELETE_VERSIONS, named)
    collections = await m.all(_LOCK_COLLECTIONS_OF_FILES, named)
    await m.run(_DELETE_ITEMS_OF_FILES, named)
    for child in await m.all(_FORGET_PARENT, named):
        await tech_file_rows.publish(m, child)
    gone = await m.all(_PURGE[TECH_FILES.name], named)
    for slot_id in sorted({row.slot_id for row in rows}):
        await tech_file_rows.settle_slot(m, slot_id)
    for collection in collections:
        await collection_rows.update(m, collection)
    await events.publish_all(m, "purged_tech_file", _changes(gone, _purged_file))
    documents = [each.export_id for each in gone if each.export_id]
    if documents:
        unshown = await m.all(_SELECT_UNSHOWN, {"ids": documents})
        await purge_exports(m, await lock(m, EXPORTS, unshown))


async def purge_exports(m: Mutation, rows: Sequence[Export]) -> None:
    """Deletes locked exports and dooms their bytes. An attempt that makes one notices that it is
    gone, and discards what it made."""
    if not rows:
        return
    named = {"ids": [row.id for row in rows]}
    for file in await m.all(_FORGET_EXPORT, named):
        await tech_file_rows.publish(m, file)
    await m.run(_DOOM_EXPORTS, named)
    await m.run(_DELETE_ATTEMPTS, named)
    gone = await m.all(_PURGE[EXPORTS.name], named)
    await events.publish_all(m, "purged_export", _changes(gone, _purged_export))


async def purge_runs(m: Mutation, rows: Sequence[Run]) -> None:
    """Deletes locked runs with their steps. Raises FAILED_PRECONDITION if one hasn't ended, and
    ABORTED while its jobs are still being cancelled: nobody would cancel or count them."""
    if not rows:
        return
    for row in rows:
        refuse_unfinished(row, "run", CANCEL)
        pack_rows.refuse_jobs_left((await pack_rows.last_moves(m, row.id)).values())
    named = {"owner": m.owner, "ids": [row.id for row in rows], "settled": SETTLED_AFTER}
    await m.run(_NOTE_PICTURES_OF_RUNS, named)
    await m.run(_DELETE_STEPS, named)
    await m.run(_DELETE_ATTEMPTS, named)
    gone = await m.all(_PURGE[RUNS.name], named)
    await events.publish_all(m, "purged_run", _changes(gone, _purged_run))


async def keep_what_is_retried(m: Mutation, run: Run) -> Mapping[str, RunStep]:
    """Keeps a run's collection, and the files that another try of it makes, until the commit.
    Returns the last move of each step. Raises FAILED_PRECONDITION if one of them is in the trash or
    gone."""
    await collection_rows.share(m, run.collection_id)
    moves = await pack_rows.last_moves(m, run.id)
    again = [
        step
        for step in pack_rows.plan_of(run)
        if moves[step.name].state == "failed" or step.kind == "complete_pack"
    ]
    there = {row.id: row for row in await lock(m, TECH_FILES, [_file_of(step) for step in again])}
    for step in again:
        file = there.get(_file_of(step))
        if file is None:
            text = f"the file of step {step.name} was purged; GenerateTechPack makes another pack"
            raise errors.precondition(text, subject=f"runs/{run.id}")
        if file.deleted_at is not None:
            text = (
                f"the file {file.id} of step {step.name} is in the trash; undelete it first"
                " (UndeleteTechFile)"
            )
            raise errors.precondition(text, subject=f"tech_files/{file.id}")
    return moves


def _file_of(step: Step) -> UUID:
    return UUID(step.tech_file_id)


async def purge_collections(m: Mutation, rows: Sequence[LockedCollection]) -> None:
    """Deletes locked collections without open runs, with their packs, exports, runs and facts.
    Raises FAILED_PRECONDITION (IN_USE) if something needs one of the packs, or a release was made
    of one of the collections."""
    if not rows:
        return
    for row in rows:
        await release_rows.refuse_released(m, row)
    named = {"ids": [row.id for row in rows]}
    packs = await lock(m, TECH_FILES, await m.all(_SELECT_PACKS, named))
    await refuse_held(m, [row.id for row in packs])
    await purge_files(m, packs)
    await purge_exports(m, await lock(m, EXPORTS, await m.all(_SELECT_EXPORTS, named)))
    await purge_runs(m, await lock(m, RUNS, await m.all(_SELECT_RUNS, named)))
    for statement in _DELETE_OF_COLLECTIONS:
        await m.run(statement, named)
    gone = await m.all(_PURGE[COLLECTIONS.name], named)
    await events.publish_all(m, "purged_collection", _changes(gone, _purged_collection))


async def refuse_open_run(m: Mutation, collection: LockedCollection) -> None:
    """Raises FAILED_PRECONDITION (IN_USE) while a run fills the collection."""
    run_id = await m.first(SELECT_RUN_OF_COLLECTION, {"id": collection.id})
    if run_id is not None:
        raise errors.precondition(
            f"the run {run_id} fills the collection; cancel the run first (CancelTechPackRun)",
            subject=f"collections/{collection.id}",
            reason=Reason.ERROR_REASON_IN_USE,
        )


async def purge_releases(m: Mutation, rows: Sequence[Release]) -> None:
    """Deletes locked releases with what they froze and their documents. Raises FAILED_PRECONDITION
    as `release_rows.refuse_kept` does."""
    if not rows:
        return
    for row in rows:
        await release_rows.refuse_kept(m, row)
    named = {"owner": m.owner, "ids": [row.id for row in rows], "settled": SETTLED_AFTER}
    documents = await m.all(_SELECT_RELEASE_DOCUMENTS, named)
    await purge_exports(m, await lock(m, EXPORTS, documents))
    await m.run(_NOTE_PICTURES_OF_RELEASES, named)
    for statement in _DELETE_OF_RELEASES:
        await m.run(statement, named)
    gone = await m.all(_PURGE[RELEASES.name], named)
    await events.publish_all(m, "purged_release", _changes(gone, _purged_release))


def refuse_unfinished(row: Run | Export, noun: str, way: str) -> None:
    """Raises FAILED_PRECONDITION for a job that hasn't ended. `way`: what ends it."""
    if row.state in ("pending", "processing"):
        raise errors.precondition(
            f"the {noun} is {row.state}; {way}",
            subject=f"{noun}s/{row.id}",
            metadata={"state": row.state},
        )


def _purged_file(gone: _Gone) -> Message:
    return tech_file_pb2.PurgedTechFile(
        tech_file_id=str(gone.id), purge_time=timestamp(gone.purged_at), product_id=gone.label
    )


def _purged_collection(gone: _Gone) -> Message:
    return collection_pb2.PurgedCollection(
        collection_id=str(gone.id), purge_time=timestamp(gone.purged_at)
    )


def _purged_run(gone: _Gone) -> Message:
    return tech_pack_pb2.PurgedTechPackRun(
        run_id=str(gone.id), purge_time=timestamp(gone.purged_at)
    )


def _purged_release(gone: _Gone) -> Message:
    return release_pb2.PurgedRelease(
        release_id=str(gone.id), purge_time=timestamp(gone.purged_at), product_id=gone.label
    )


def _purged_export(gone: _Gone) -> Message:
    return export_pb2.PurgedExport(export_id=str(gone.id), purge_time=timestamp(gone.purged_at))


def _changes(
    gone: Sequence[_Gone], message: Callable[[_Gone], Message]
) -> list[tuple[UUID, int, Message]]:
    return [(each.id, each.version, message(each)) for each in gone]
