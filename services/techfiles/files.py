"""Tech files as rows: numbers, snapshots and which file is a slot's latest. `file_service` answers
calls with these.

A slot's row is locked before a number is given and until the commit, so numbers count up without
gaps and the latest is always the live file with the highest number. Whoever locks both takes the
slot before the file.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from atelier.techfiles.v1 import tech_file_pb2 as pb
from psycopg.types.json import Jsonb

from services.techfiles import rules
from shared.background import events
from shared.database import states
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.rpc import errors
from shared.rpc.protos import Words, struct, timestamp

TYPES = Words(pb.TechFileType, "TECH_FILE_TYPE_")
VIEWS = Words(pb.ViewType, "VIEW_TYPE_")
STATES = Words(pb.TechFileState, "TECH_FILE_STATE_")

_TAKE_FIRST_NUMBER = """
    INSERT INTO slots (id, owner, product_id, file_type, view_type, file_category, last_number)
    VALUES (%(slot_id)s, %(owner)s, %(product_id)s, %(file_type)s, %(view_type)s,
        %(file_category)s, 1)
    ON CONFLICT ON CONSTRAINT slots_place DO UPDATE SET last_number = slots.last_number + 1
    RETURNING id, last_number
"""
_TAKE_NUMBER = "UPDATE slots SET last_number = last_number + 1 WHERE id = %s RETURNING last_number"
_INSERT = """
    INSERT INTO tech_files (id, owner, created_by, slot_id, product_id, revision_id, file_type,
        view_type,
        file_category, file_asset_id, analysis, state, error_message, credits_used, model, prompt,
            batch_id,
        confidence, quality_score, number, numbered_at, parent_file_id, collection_id)
    VALUES (%(id)s, %(owner)s, %(actor)s, %(slot_id)s, %(product_id)s, %(revision_id)s,
        %(file_type)s, %(view_type)s,
        %(file_category)s, %(file_asset_id)s, %(analysis)s, %(state)s, %(error_message)s,
            %(credits_used)s, %(model)s,
        %(prompt)s, %(batch_id)s, %(confidence)s, %(quality_score)s, %(number)s, clock_timestamp(),
        (SELECT id FROM tech_files WHERE slot_id = %(slot_id)s AND is_latest), %(collection_id)s)
"""
_SNAPSHOT = """
    INSERT INTO tech_file_versions
        (id, owner, slot_id, tech_file_id, number, snapshot, created_by, reason, created_at)
    SELECT %(version_id)s, f.owner, f.slot_id, f.id, f.number, to_jsonb(f), %(actor)s, %(reason)s,
        f.numbered_at
    FROM tech_files f WHERE f.id = %(id)s
    RETURNING id, tech_file_id, number, snapshot, created_by, reason, created_at, false AS current
"""
_DEMOTE = """
    UPDATE tech_files SET is_latest = false, version = version + 1, updated_at = now()
    WHERE slot_id = %(slot)s AND is_latest AND id IS DISTINCT FROM
        (SELECT id FROM tech_files WHERE slot_id = %(slot)s AND archived_at IS NULL
            ORDER BY number DESC LIMIT 1)
    RETURNING *
"""
_PROMOTE = """
    UPDATE tech_files SET is_latest = true, version = version + 1, updated_at = now()
    WHERE NOT is_latest AND id =
        (SELECT id FROM tech_files WHERE slot_id = %(slot)s AND archived_at IS NULL
            ORDER BY number DESC LIMIT 1)
    RETURNING *
"""
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
}


def to_proto(row: Any) -> pb.TechFile:
    file = pb.TechFile(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        product_id=row.product_id,
        revision_id=row.revision_id,
        file_type=TYPES.number[row.file_type],
        view_type=VIEWS.number.get(row.view_type, 0),
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
        etag=str(row.version),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
    )
    if row.analysis is not None:
        file.analysis.CopyFrom(struct(row.analysis))
    return file


def _id(value: object) -> str:
    return "" if value is None else str(value)


def version_to_proto(row: Any) -> pb.TechFileVersion:
    """From a row with `snapshot`, the tech_files row as JSON."""
    times = {
        name: datetime.fromisoformat(row.snapshot[name]) if row.snapshot[name] else None
        for name in ("created_at", "updated_at", "archived_at")
    }
    return pb.TechFileVersion(
        id=str(row.id),
        tech_file_id=str(row.tech_file_id),
        version_number=row.number,
        current=row.current,
        created_by=row.created_by,
        reason=row.reason,
        create_time=timestamp(row.created_at),
        tech_file=to_proto(SimpleNamespace(**{**row.snapshot, **times})),
    )


async def publish(m: Mutation, row: Any) -> None:
    await events.publish(m, "tech_file", row.id, row.version, to_proto(row))


async def get(m: Mutation, file_id: UUID) -> Any:
    """The owner's file, locked until the commit. NOT_FOUND if it isn't theirs."""
    row = await m.one("SELECT * FROM tech_files WHERE id = %s FOR UPDATE", (file_id,))
    if row is None:
        raise errors.not_found("tech file", file_id)
    return row


async def get_with_slot(m: Mutation, file_id: UUID) -> Any:
    """The owner's file, its slot and itself locked until the commit."""
    slot = await m.one(
        "SELECT id FROM slots WHERE id = (SELECT slot_id FROM tech_files WHERE id = %s) FOR UPDATE",
        (file_id,),
    )
    if slot is None:
        raise errors.not_found("tech file", file_id)
    return await get(m, file_id)


async def create(m: Mutation, columns: Mapping[str, Any]) -> Any:
    """Adds a file with the next number of its slot; it becomes the latest. Returns its row."""
    values = {
        **_DEFAULTS,
        **columns,
        "id": new_id(),
        "slot_id": new_id(),
        "owner": m.owner,
        "actor": m.actor,
    }
    values["analysis"] = Jsonb(values["analysis"]) if values["analysis"] is not None else None
    slot = await m.one(_TAKE_FIRST_NUMBER, values)
    await m.run(_INSERT, {**values, "slot_id": slot.id, "number": slot.last_number})
    return await settled(m, slot.id, values["id"])


async def renumber(
    m: Mutation, row: Any, reason: str, columns: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Keeps a snapshot of a file whose slot is locked, then sets `columns` under the slot's next
    number.

    Returns (the snapshot's row, the file's new row).
    """
    kept = await m.one(
        _SNAPSHOT, {"version_id": new_id(), "actor": m.actor, "reason": reason, "id": row.id}
    )
    number = (await m.one(_TAKE_NUMBER, (row.slot_id,))).last_number
    settings = "".join(f", {name} = %({name})s" for name in columns)
    await m.run(
        "UPDATE tech_files SET version = version + 1, updated_at = now(), number = %(number)s,"
        f" numbered_at = clock_timestamp(), created_by = %(actor)s{settings} WHERE id = %(id)s",
        {**columns, "number": number, "actor": m.actor, "id": row.id},
    )
    return kept, await settled(m, row.slot_id, row.id)


async def settled(m: Mutation, slot_id: UUID, file_id: UUID) -> Any:
    """Makes the live file with the highest number the latest, tells of every file that changed, and
    of `file_id`.

    Two statements, since there may never be two latest. Returns the row of `file_id`.
    """
    changed = await m.all(_DEMOTE, {"slot": slot_id}) + await m.all(_PROMOTE, {"slot": slot_id})
    for other in changed:
        if other.id != file_id:
            await publish(m, other)
    row = await m.one("SELECT * FROM tech_files WHERE id = %s", (file_id,))
    await publish(m, row)
    return row


async def advance(m: Mutation, file_id: UUID, to: str, **columns: Any) -> Any:
    """Moves a file on and tells of it. Returns its row, or None if its state doesn't go there."""
    row = await states.advance(m, rules.FILE_STATES, "tech_files", file_id, to, **columns)
    if row is not None:
        await publish(m, row)
    return row


async def fail_unfinished(m: Mutation, file_ids: Sequence[UUID], message: str) -> None:
    """What nobody will finish any more becomes FAILED."""
    for file_id in file_ids:
        await advance(m, file_id, "failed", error_message=message)
