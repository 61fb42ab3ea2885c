"""Versions by their numbers, and the messages of what differs between two of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from atelier.techfiles.v1 import history_pb2 as pb
from google.protobuf import json_format, struct_pb2
from google.protobuf.message import Message

from services.techfiles import diffing
from services.techfiles.diffing import Changes
from services.techfiles.tech_file_rows import TechFile, TechFileVersion
from shared.database.rows import Statement
from shared.rpc.protos import EnumNames, struct

KINDS = EnumNames(pb.ChangeKind, "CHANGE_KIND_")
# What a version says. How it came about (numbers, credits, batch, times) is not compared.
_SAID = (
    "revision_id",
    "view_type",
    "file_category",
    "analysis",
    "state",
    "error_message",
    "model",
    "prompt",
    "confidence",
    "quality_score",
)
_OF_SLOT = """
    slot_id = (SELECT slot_id FROM tech_files WHERE id = %(file_id)s)
    AND number = CASE WHEN %(number)s > 0 THEN %(number)s
        ELSE (SELECT number FROM tech_files WHERE id = %(file_id)s) END
"""


@dataclass(slots=True)
class NumberedVersion(TechFileVersion):
    """The version of one number. `intact`: a snapshot is as it was written; a snapshot without a
    digest, and a file itself, count as intact."""

    intact: bool


SELECT_VERSION = Statement(
    NumberedVersion,
    f"""
    SELECT id, tech_file_id, number, snapshot, created_by, reason, created_at, false AS current,
        sha256 IN ('', encode(sha256(convert_to(snapshot::text, 'UTF8')), 'hex')) AS intact
    FROM tech_file_versions WHERE {_OF_SLOT}
    UNION ALL
    SELECT id, id, number, to_jsonb(f), created_by, restore_reason, numbered_at, true, true
    FROM tech_files f WHERE {_OF_SLOT}
    """,
)


def content_of(file: TechFile) -> dict[str, Any]:
    """Returns what a version says, without what it doesn't say."""
    said = {name: getattr(file, name) for name in _SAID}
    return {name: value for name, value in said.items() if value not in (None, "")}


def changes_to_proto(
    changes: Changes, before_asset: str, after_asset: str, most_bytes: int
) -> pb.ContentChanges:
    """Returns the message. Changes beyond `most_bytes` are counted, not listed."""
    moved = before_asset != after_asset
    answer = pb.ContentChanges(
        identical=not len(changes) and not moved,
        picture_changed=moved,
        before_asset_id=before_asset,
        after_asset_id=after_asset,
    )
    size = 0
    for name, change in _messages(changes):
        size += change.ByteSize() + 10
        if size > most_bytes:
            answer.left_out += 1
        else:
            getattr(answer, name).append(change)
    return answer


def _messages(changes: Changes) -> Iterator[tuple[str, Message]]:
    for material in changes.materials:
        yield "materials", pb.MaterialChange(part=material.name, **_row(material))
    for length in changes.lengths:
        shown = length.after if length.after is not None else length.before
        code = (shown or {}).get("code")
        yield (
            "lengths",
            pb.LengthChange(
                code=code if isinstance(code, str) else "",
                name=length.name,
                view=length.view,
                list=length.list,
                delta=length.delta,
                delta_unit=length.unit,
                not_comparable=length.not_comparable,
                **_row(length),
            ),
        )
    for place in changes.places:
        right, down = place.moved or (None, None)
        yield (
            "places",
            pb.PlaceChange(
                name=place.name,
                view=place.view,
                list=place.list,
                right=right,
                down=down,
                **_row(place),
            ),
        )
    for value in changes.values:
        yield "values", _value_change(value)


def _row(change: diffing.RowChange) -> dict[str, Any]:
    return {
        "kind": KINDS.number[change.kind],
        "before": None if change.before is None else struct(change.before),
        "after": None if change.after is None else struct(change.after),
        "fields": change.fields,
    }


def _value_change(change: diffing.ValueChange) -> pb.ValueChange:
    message = pb.ValueChange(kind=KINDS.number[change.kind], path=change.path)
    if change.kind != "added":
        message.before.CopyFrom(json_format.ParseDict(change.before, struct_pb2.Value()))
    if change.kind != "removed":
        message.after.CopyFrom(json_format.ParseDict(change.after, struct_pb2.Value()))
    return message
