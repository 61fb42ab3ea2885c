"""Collections: the row classes of a collection, its files and its changes, and its message.

Progress, state and credits are derived from the files; an override is recorded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from atelier.techfiles.v1 import collection_pb2 as pb
from psycopg.types.json import Jsonb

from services.techfiles import rules
from services.techfiles.tech_file_rows import TECH_FILES, TechFile
from shared.background import events
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Statement, Table, compiled
from shared.rpc import errors
from shared.rpc.protos import EnumNames, timestamp

TYPES = EnumNames(pb.CollectionType, "COLLECTION_TYPE_")
STATES = EnumNames(pb.CollectionState, "COLLECTION_STATE_")


@dataclass(slots=True)
class Collection:
    id: UUID
    owner: str
    created_by: str
    version: int
    product_id: str
    revision_id: str
    name: str
    description: str
    collection_type: str
    facts: dict[str, Any]  # in the plain form of shared.formats.facts
    progress_override: int | None
    state_override: str
    credits_adjustment: int
    created_at: datetime
    updated_at: datetime
    fact_sources: dict[str, Any]  # by the fact's path; see GetCollectionResponse.fact_sources
    archived_at: datetime | None
    deleted_at: datetime | None
    expires_at: datetime | None
    facts_number: int
    facts_by: str  # empty: created_by
    facts_reason: str
    facts_at: datetime | None  # None: created_at


class LockedCollection(Collection):
    """A collection whose row the transaction has locked, and with it the places of its files."""

    __slots__ = ()


@dataclass(slots=True)
class NamedCollection:
    id: UUID
    name: str
    deleted_at: datetime | None


@dataclass(slots=True)
class CollectedFile(TechFile):
    """A file and its place in a collection."""

    section: str
    display_order: int


@dataclass(slots=True)
class Place:
    section: str
    display_order: int


@dataclass(slots=True)
class Figures:
    """Number and credits of a collection's files in one state, live or not: archived or deleted."""

    collection_id: UUID
    state: str
    archived: bool
    files: int
    credits: int


@dataclass(slots=True)
class CollectionChange:
    id: UUID
    owner: str
    collection_id: UUID
    actor: str
    kind: str
    value: int | None  # None: the progress is derived again
    state: str
    reason: str
    created_at: datetime


COLLECTIONS = Table("collections", LockedCollection)
COLLECTION_CHANGES = Table("collection_changes", CollectionChange)
FILE_COLUMNS = f"{TECH_FILES.of('f')}, i.section, i.display_order"
SELECT_COLLECTION = Statement(
    Collection, f"SELECT {COLLECTIONS.columns} FROM collections WHERE id = %(id)s"
)
SELECT_NAME = Statement(
    NamedCollection, "SELECT id, name, deleted_at FROM collections WHERE id = %(id)s"
)
_SHARE_COLLECTION = Statement(NamedCollection, f"{SELECT_NAME.text} FOR SHARE")
SELECT_FACTS = Statement(dict, "SELECT facts FROM collections WHERE id = %(id)s")
SELECT_FILES = Statement(
    CollectedFile,
    f"""
    SELECT {FILE_COLUMNS}
    FROM collection_items i JOIN tech_files f ON f.id = i.tech_file_id
    WHERE i.collection_id = %(id)s ORDER BY i.section, i.display_order
    """,
)
SUM_FILES = Statement(
    Figures,
    """
    SELECT i.collection_id, f.state,
           f.archived_at IS NOT NULL OR f.deleted_at IS NOT NULL AS archived, count(*) AS files,
           sum(f.credits_used)::bigint AS credits
    FROM collection_items i JOIN tech_files f ON f.id = i.tech_file_id
    WHERE i.collection_id = ANY(%(ids)s) GROUP BY 1, 2, 3
    """,
)
_LOCK_COLLECTION = Statement(LockedCollection, f"{SELECT_COLLECTION.text} FOR UPDATE")
# A file that is already in the collection keeps its place. A place that is taken isn't given twice:
# the file is appended instead.
_INSERT_ITEM = Statement(
    Place,
    """
    INSERT INTO collection_items (owner, collection_id, tech_file_id, section, display_order)
    SELECT %(owner)s, %(id)s, %(file_id)s, %(section)s, CASE
        WHEN %(place)s::int IS NOT NULL AND NOT EXISTS (
            SELECT FROM collection_items
            WHERE collection_id = %(id)s AND section = %(section)s AND display_order = %(place)s)
        THEN %(place)s
        ELSE (SELECT coalesce(max(display_order) + 1, 0) FROM collection_items
              WHERE collection_id = %(id)s AND section = %(section)s) END
    ON CONFLICT ON CONSTRAINT collection_items_pkey DO NOTHING
    RETURNING section, display_order
    """,
)
_SELECT_PLACE = Statement(
    Place,
    """
    SELECT section, display_order FROM collection_items
    WHERE collection_id = %(id)s AND tech_file_id = %(file_id)s
    """,
)
_INSERT_CHANGE = Command("""
    INSERT INTO collection_changes (id, owner, collection_id, actor, kind, value, state, reason)
    VALUES (%(id)s, %(owner)s, %(collection_id)s, %(actor)s, %(kind)s, %(value)s, %(state)s,
        %(reason)s)
""")
_SET_ARCHIVED = Statement(
    LockedCollection,
    f"""
    UPDATE collections SET archived_at = CASE WHEN %(archived)s THEN now() END,
        version = version + 1, updated_at = now()
    WHERE id = %(id)s RETURNING {COLLECTIONS.columns}
    """,
)
_NEW = (
    "id",
    "owner",
    "created_by",
    "product_id",
    "revision_id",
    "name",
    "description",
    "collection_type",
    "facts",
    "fact_sources",
)


@cache
def _update(columns: tuple[str, ...]) -> Statement[LockedCollection]:
    """Returns the statement that sets columns of a collection and raises its version."""
    row = COLLECTIONS.core.c
    values: dict[str, Any] = {name: sa.bindparam(name) for name in columns}
    values |= {
        "version": row.version + sa.literal_column("1"),
        "updated_at": sa.func.now(),
    }
    one = sa.update(COLLECTIONS.core).where(row.id == sa.bindparam("row_id"))
    return compiled(COLLECTIONS.row, one.values(values).returning(*row))


def to_proto(row: Collection, figures: Sequence[Figures]) -> pb.Collection:
    """Returns the message. `figures`: those of this collection."""
    states = {f.state: f.files for f in figures if not f.archived}
    state, percent = rules.progress(states)
    overridden = row.progress_override is not None
    return pb.Collection(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        product_id=row.product_id,
        revision_id=row.revision_id,
        name=row.name,
        description=row.description,
        collection_type=TYPES.number[row.collection_type],
        state=STATES.number[row.state_override or state],
        progress_percent=row.progress_override if overridden else percent,
        progress_overridden=overridden,
        total_credits_used=sum(f.credits for f in figures) + row.credits_adjustment,
        credits_adjustment=row.credits_adjustment,
        file_count=sum(states.values()),
        etag=str(row.version),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        archive_time=timestamp(row.archived_at),
        delete_time=timestamp(row.deleted_at),
        expire_time=timestamp(row.expires_at),
        facts_number=row.facts_number,
    )


def change_to_proto(row: CollectionChange) -> pb.CollectionChange:
    change = pb.CollectionChange(
        id=str(row.id), actor=row.actor, reason=row.reason, create_time=timestamp(row.created_at)
    )
    if row.kind == "progress":
        state = STATES.number.get(row.state)
        change.progress.CopyFrom(pb.ProgressOverride(progress_percent=row.value, state=state))
    elif row.kind == "credits":
        change.credits = row.value or 0
    else:
        change.progress_derived = True
    return change


async def read(m: Mutation, row: Collection) -> pb.Collection:
    """Returns the collection's message."""
    return to_proto(row, await m.all(SUM_FILES, {"ids": [row.id]}))


async def publish(m: Mutation, row: Collection) -> pb.Collection:
    """Publishes the collection and returns its message."""
    collection = await read(m, row)
    await events.publish(m, "collection", row.id, row.version, collection)
    return collection


async def create(
    m: Mutation,
    *,
    product_id: str,
    revision_id: str = "",
    name: str,
    description: str = "",
    collection_type: str,
    facts: Mapping[str, Any],
    fact_sources: Mapping[str, Any] | None = None,
) -> LockedCollection:
    """Creates an empty collection and publishes it."""
    values = {
        "id": new_id(),
        "owner": m.owner,
        "created_by": m.actor,
        "product_id": product_id,
        "revision_id": revision_id,
        "name": name,
        "description": description,
        "collection_type": collection_type,
        "facts": Jsonb(facts),
        "fact_sources": Jsonb(fact_sources or {}),
    }
    row = await m.one(COLLECTIONS.insert(*_NEW), values)
    await publish(m, row)
    return row


async def lock(
    m: Mutation, collection_id: UUID, etag: str = "", *, deleted: bool = False
) -> LockedCollection:
    """Locks the owner's collection until the commit and returns it. Raises NOT_FOUND if it isn't
    theirs, ETAG_MISMATCH, and FAILED_PRECONDITION if it is in the trash, unless `deleted`."""
    row = await m.first(_LOCK_COLLECTION, {"id": collection_id})
    if row is None:
        raise errors.not_found("collection", collection_id)
    errors.check_etag(etag, row.version, "collection", collection_id)
    if not deleted:
        refuse_deleted(row)
    return row


def refuse_deleted(row: Collection | NamedCollection) -> None:
    """Raises FAILED_PRECONDITION for a collection in the trash."""
    if row.deleted_at:
        text = "the collection is deleted; undelete it first (UndeleteCollection)"
        raise errors.precondition(text, subject=f"collections/{row.id}")


async def share(m: Mutation, collection_id: UUID) -> NamedCollection:
    """Keeps the owner's collection from being deleted until the commit. Raises NOT_FOUND if it
    isn't theirs, FAILED_PRECONDITION if it is in the trash."""
    row = await m.first(_SHARE_COLLECTION, {"id": collection_id})
    if row is None:
        raise errors.not_found("collection", collection_id)
    refuse_deleted(row)
    return row


async def set_archived(
    m: Mutation, collection: LockedCollection, *, archived: bool
) -> LockedCollection:
    """Archives or unarchives a collection. The caller publishes it."""
    return await m.one(_SET_ARCHIVED, {"id": collection.id, "archived": archived})


async def update(m: Mutation, collection: LockedCollection, **columns: Any) -> pb.Collection:
    """Sets columns, raises the version and publishes the collection. Returns its message."""
    values = {**columns, "row_id": collection.id}
    row = await m.one(_update(tuple(columns)), values)
    return await publish(m, row)


async def add_file(
    m: Mutation, collection: LockedCollection, file_id: UUID, section: str, place: int | None
) -> tuple[bool, Place]:
    """Adds a file to a collection. Returns whether it is new there, and its place."""
    values = {
        "owner": m.owner,
        "id": collection.id,
        "file_id": file_id,
        "section": section,
        "place": place,
    }
    added = await m.first(_INSERT_ITEM, values)
    if added is not None:
        return True, added
    return False, await m.one(_SELECT_PLACE, values)


async def record_change(
    m: Mutation,
    collection: LockedCollection,
    kind: str,
    value: int | None,
    reason: str,
    state: str = "",
) -> None:
    """Records who overrides the progress or adjusts the credits, and why."""
    values = {
        "id": new_id(),
        "owner": m.owner,
        "collection_id": collection.id,
        "actor": m.actor,
        "kind": kind,
        "value": value,
        "state": state,
        "reason": reason,
    }
    await m.run(_INSERT_CHANGE, values)
