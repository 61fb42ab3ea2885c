"""Tech files: the row class, its message, and what is written together with a row: numbers,
snapshots, and which file is a slot's latest.

A transaction locks a slot before it gives a number and keeps the lock until the commit, so numbers
count up without gaps and the latest is always the live file with the highest number. A transaction
that locks both a slot and a file locks the slot first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from atelier.techfiles.v1 import tech_file_pb2 as pb
from psycopg.types.json import Jsonb

from services.techfiles import rules
from shared.background import events
from shared.database import states
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Statement, Table, command
from shared.rpc import errors
from shared.rpc.protos import EnumNames, struct, timestamp

TYPES = EnumNames(pb.TechFileType, "TECH_FILE_TYPE_")
VIEWS = EnumNames(pb.ViewType, "VIEW_TYPE_")
STATES = EnumNames(pb.TechFileState, "TECH_FILE_STATE_")


@dataclass(slots=True)
class TechFile:
    id: UUID
    owner: str
    created_by: str
    version: int
    slot_id: UUID
    product_id: str
    revision_id: str
    file_type: str
    view_type: str
    file_category: str
    file_asset_id: UUID | None
    analysis: dict[str, Any] | None  # found by a model, or stated by a caller
    state: str
    error_message: str
    credits_used: int
    model: str
    prompt: str
    batch_id: str
    confidence: float | None
    quality_score: float | None
    number: int
    numbered_at: datetime
    parent_file_id: UUID | None
    is_latest: bool
    collection_id: UUID | None
    export_id: UUID | None
    archived_at: datetime | None
    created_at: datetime
    updated_at: datetime
    origin: str  # "legacy": its analysis was taken from an older application's table
    deleted_at: datetime | None
    expires_at: datetime | None
    parent_purged: bool
    restored_from: int | None  # the number of the version that the file restored
    restore_reason: str


class LockedTechFile(TechFile):
    """A file that the transaction has locked, together with its slot."""

    __slots__ = ()


@dataclass(slots=True)
class TechFileVersion:
    """A file under one of its numbers: its present number (`current`), or an earlier one."""

    id: UUID
    tech_file_id: UUID
    number: int
    snapshot: dict[str, Any]  # the row of tech_files
    created_by: str
    reason: str
    created_at: datetime
    current: bool


@dataclass(slots=True)
class _SlotNumber:
    id: UUID
    last_number: int


@dataclass(slots=True)
class _SlotName:
    name: str


TECH_FILES = Table("tech_files", TechFile)
SELECT_TECH_FILE = Statement(
    TechFile, f"SELECT {TECH_FILES.columns} FROM tech_files WHERE id = %(id)s"
)
_LOCK_TECH_FILE = Statement(TechFile, f"{SELECT_TECH_FILE.text} FOR UPDATE")
_LOCK_SLOT = Statement(
    UUID,
    """
    SELECT id FROM slots
    WHERE id = (SELECT slot_id FROM tech_files WHERE id = %(file_id)s) FOR UPDATE
    """,
)
_LOCK_TECH_FILE_OF_SLOT = Statement(LockedTechFile, _LOCK_TECH_FILE.text)
_TAKE_FIRST_NUMBER = Statement(
    _SlotNumber,
    """
    INSERT INTO slots (id, owner, product_id, file_type, view_type, file_category, last_number)
    VALUES (%(slot_id)s, %(owner)s, %(product_id)s, %(file_type)s, %(view_type)s,
        %(slot_name)s, 1)
    ON CONFLICT ON CONSTRAINT slots_place DO UPDATE SET last_number = slots.last_number + 1
    RETURNING id, last_number
    """,
)
_SELECT_SLOT_NAMES = Statement(
    _SlotName,
    """
    SELECT file_category AS name FROM slots
    WHERE owner = %(owner)s AND product_id = %(product_id)s AND file_type = %(file_type)s
        AND view_type = %(view_type)s AND file_category <> ''
    ORDER BY last_number DESC, id
    """,
)
_TAKE_NUMBER = Statement(
    int,
    """
    UPDATE slots SET last_number = last_number + 1 WHERE id = %(slot_id)s RETURNING last_number
    """,
)
_INSERT_TECH_FILE = Command("""
    INSERT INTO tech_files (id, owner, created_by, slot_id, product_id, revision_id, file_type,
        view_type, file_category, file_asset_id, analysis, state, error_message, credits_used,
        model, prompt, batch_id, confidence, quality_score, number, numbered_at, parent_file_id,
        collection_id, origin, export_id, restored_from, restore_reason)
    VALUES (%(id)s, %(owner)s, %(actor)s, %(slot_id)s, %(product_id)s, %(revision_id)s,
        %(file_type)s, %(view_type)s, %(file_category)s, %(file_asset_id)s, %(analysis)s,
        %(state)s, %(error_message)s, %(credits_used)s, %(model)s, %(prompt)s, %(batch_id)s,
        %(confidence)s, %(quality_score)s, %(number)s, clock_timestamp(),
        (SELECT id FROM tech_files WHERE slot_id = %(slot_id)s AND is_latest), %(collection_id)s,
        %(origin)s, %(export_id)s, %(restored_from)s, %(restore_reason)s)
""")
_INSERT_VERSION = Statement(
    TechFileVersion,
    """
    INSERT INTO tech_file_versions
        (id, owner, slot_id, tech_file_id, number, snapshot, created_by, reason, created_at, sha256)
    SELECT %(version_id)s, f.owner, f.slot_id, f.id, f.number, to_jsonb(f), %(actor)s, %(reason)s,
        f.numbered_at, encode(sha256(convert_to(to_jsonb(f)::text, 'UTF8')), 'hex')
    FROM tech_files f WHERE f.id = %(id)s
    RETURNING id, tech_file_id, number, snapshot, created_by, reason, created_at, false AS current
    """,
)
_DEMOTE = Statement(
    TechFile,
    f"""
    UPDATE tech_files SET is_latest = false, version = version + 1, updated_at = now()
    WHERE slot_id = %(slot_id)s AND is_latest AND id IS DISTINCT FROM
        (SELECT id FROM tech_files WHERE slot_id = %(slot_id)s AND archived_at IS NULL
            AND deleted_at IS NULL ORDER BY number DESC LIMIT 1)
    RETURNING {TECH_FILES.columns}
    """,
)
_PROMOTE = Statement(
    TechFile,
    f"""
    UPDATE tech_files SET is_latest = true, version = version + 1, updated_at = now()
    WHERE NOT is_latest AND id =
        (SELECT id FROM tech_files WHERE slot_id = %(slot_id)s AND archived_at IS NULL
            AND deleted_at IS NULL ORDER BY number DESC LIMIT 1)
    RETURNING {TECH_FILES.columns}
    """,
)
_DEFAULTS: Mapping[str, Any] = {
    "revision_id": "",
    "view_type": "",
    "file_category": "",
    "file_asset_id": None,
    "analysis": None,
    "state": "pending",
    "error_message": "",
    "credits_used": 0,
    "model": "",
    "prompt": "",
    "batch_id": "",
    "confidence": None,
    "quality_score": None,
    "collection_id": None,
    "origin": "",
    "export_id": None,
    "restored_from": None,
    "restore_reason": "",
}
# Columns that a snapshot's JSON holds as text.
_TIMES = ("numbered_at", "archived_at", "created_at", "updated_at", "deleted_at", "expires_at")
_IDS = ("id", "slot_id", "file_asset_id", "parent_file_id", "collection_id", "export_id")


@cache
def _set_number(columns: tuple[str, ...]) -> Command:
    """Returns the command that gives a file a number of its slot and sets columns."""
    row = TECH_FILES.core.c
    values: dict[str, Any] = {
        name: sa.bindparam(name) for name in (*columns, "number", "created_by")
    }
    values |= {
        "version": row.version + sa.literal_column("1"),
        "updated_at": sa.func.now(),
        "numbered_at": sa.func.clock_timestamp(),
    }
    one = sa.update(TECH_FILES.core).where(row.id == sa.bindparam("row_id"))
    return command(one.values(values))


def to_proto(row: TechFile) -> pb.TechFile:
    file = pb.TechFile(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        product_id=row.product_id,
        revision_id=row.revision_id,
        file_type=TYPES.number[row.file_type],
        view_type=VIEWS.number.get(row.view_type),
        file_category=row.file_category,
        file_asset_id=_id(row.file_asset_id),
        state=STATES.number[row.state],
        error_message=row.error_message,
        credits_used=row.credits_used,
        model=row.model,
        prompt=row.prompt,
        batch_id=row.batch_id,
        confidence=row.confidence,
        quality_score=row.quality_score,
        version_number=row.number,
        parent_file_id=_id(row.parent_file_id),
        is_latest=row.is_latest,
        collection_id=_id(row.collection_id),
        export_id=_id(row.export_id),
        archive_time=timestamp(row.archived_at),
        delete_time=timestamp(row.deleted_at),
        expire_time=timestamp(row.expires_at),
        parent_purged=row.parent_purged,
        etag=str(row.version),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        from_legacy_table=row.origin == "legacy",
        restored_version_number=row.restored_from,
        restore_reason=row.restore_reason,
    )
    if row.analysis is not None:
        file.analysis.CopyFrom(struct(row.analysis))
    return file


def counts(row: TechFile) -> bool:
    """Returns whether a file is live: neither archived nor in the trash."""
    return row.archived_at is None and row.deleted_at is None


def _id(value: UUID | None) -> str:
    return "" if value is None else str(value)


def version_to_proto(row: TechFileVersion) -> pb.TechFileVersion:
    return pb.TechFileVersion(
        id=str(row.id),
        tech_file_id=str(row.tech_file_id),
        version_number=row.number,
        current=row.current,
        created_by=row.created_by,
        reason=row.reason,
        create_time=timestamp(row.created_at),
        tech_file=to_proto(row_of(row.snapshot)),
    )


def row_of(snapshot: Mapping[str, Any]) -> TechFile:
    """Returns the row that a snapshot kept as JSON. A column that was added after the snapshot is
    None."""
    values: dict[str, Any] = {name: snapshot.get(name) for name in TECH_FILES.names}
    for names, read in ((_TIMES, datetime.fromisoformat), (_IDS, UUID)):
        values |= {name: read(values[name]) for name in names if values[name]}
    values["origin"] = values["origin"] or ""
    return TechFile(**values)


async def publish(m: Mutation, row: TechFile) -> None:
    await events.publish(m, "tech_file", row.id, row.version, to_proto(row))


async def lock(m: Mutation, file_id: UUID) -> TechFile:
    """Locks the owner's file until the commit and returns it. Raises NOT_FOUND if it isn't
    theirs."""
    row = await m.first(_LOCK_TECH_FILE, {"id": file_id})
    if row is None:
        raise errors.not_found("tech file", file_id)
    return row


async def lock_with_slot(m: Mutation, file_id: UUID) -> LockedTechFile:
    """Locks the slot of the owner's file, then the file, until the commit, and returns the file.
    Raises NOT_FOUND if it isn't theirs."""
    if await m.first(_LOCK_SLOT, {"file_id": file_id}) is None:
        raise errors.not_found("tech file", file_id)
    row = await m.first(_LOCK_TECH_FILE_OF_SLOT, {"id": file_id})
    if row is None:  # purged while this call waited for the slot
        raise errors.not_found("tech file", file_id)
    return row


async def create(
    m: Mutation, columns: Mapping[str, Any], locked: LockedTechFile | None = None
) -> TechFile:
    """Adds a file with the next number of its slot, makes it the latest and publishes it. The slot
    is that of `locked` or, without one, follows from the columns."""
    file_id = new_id()
    values = {
        **_DEFAULTS,
        **columns,
        "id": file_id,
        "slot_id": new_id(),
        "owner": m.owner,
        "actor": m.actor,
    }
    values["analysis"] = Jsonb(values["analysis"]) if values["analysis"] is not None else None
    if locked is None:
        values["slot_name"] = await _slot_name(m, values)
        slot = await m.one(_TAKE_FIRST_NUMBER, values)
    else:
        number = await m.one(_TAKE_NUMBER, {"slot_id": locked.slot_id})
        slot = _SlotNumber(locked.slot_id, number)
    await m.run(_INSERT_TECH_FILE, {**values, "slot_id": slot.id, "number": slot.last_number})
    return await settle_latest(m, slot.id, file_id)


async def _slot_name(m: Mutation, values: Mapping[str, Any]) -> str:
    """Returns the name of the slot that a file with this name of a shot belongs to. Slots have
    names in one form; a slot from before that was so is found by its name in that form, and of
    several the one with the most versions goes on."""
    name = rules.slot_name(values["file_category"])
    if not name:
        return name
    slots = await m.all(_SELECT_SLOT_NAMES, values)
    same = [slot.name for slot in slots if rules.slot_name(slot.name) == name]
    return name if name in same or not same else same[0]


async def renumber(
    m: Mutation, row: LockedTechFile, reason: str, columns: Mapping[str, Any]
) -> tuple[TechFileVersion, TechFile]:
    """Stores a snapshot of a file, then sets `columns` under the slot's next number. Returns the
    snapshot and the file's new row."""
    kept = await m.one(
        _INSERT_VERSION,
        {"version_id": new_id(), "actor": m.actor, "reason": reason, "id": row.id},
    )
    number = await m.one(_TAKE_NUMBER, {"slot_id": row.slot_id})
    await m.run(
        _set_number(tuple(sorted(columns))),
        {**columns, "number": number, "created_by": m.actor, "row_id": row.id},
    )
    return kept, await settle_latest(m, row.slot_id, row.id)


async def settle_latest(m: Mutation, slot_id: UUID, file_id: UUID) -> TechFile:
    """Makes the live file with the highest number the latest. Publishes every file that changed,
    and in any case `file_id`, whose row it returns. The slot must be locked.

    It takes two statements, since there may never be two latest files.
    """
    await settle_slot(m, slot_id, but=file_id)
    row = await m.one(SELECT_TECH_FILE, {"id": file_id})
    await publish(m, row)
    return row


async def settle_slot(m: Mutation, slot_id: UUID, *, but: UUID | None = None) -> None:
    """Does so for a slot, and publishes every file that changed except `but`."""
    slot = {"slot_id": slot_id}
    for other in await m.all(_DEMOTE, slot) + await m.all(_PROMOTE, slot):
        if other.id != but:
            await publish(m, other)


async def advance(m: Mutation, file_id: UUID, to: str, **columns: Any) -> TechFile | None:
    """Moves a file to state `to` and publishes it. Returns its row, or None if that state can't
    follow its own."""
    row = await states.advance(m, rules.FILE_STATES, TECH_FILES, file_id, to, **columns)
    if row is not None:
        await publish(m, row)
    return row


async def reopen(m: Mutation, file_id: UUID) -> TechFile:
    """Makes a FAILED file PENDING, because its run is tried again, and publishes it. Returns the
    file; one that isn't FAILED stays as it is."""
    row = await states.advance(m, rules.REOPENED, TECH_FILES, file_id, "pending", error_message="")
    if row is None:
        return await m.one(SELECT_TECH_FILE, {"id": file_id})
    await publish(m, row)
    return row
