"""Between rows and messages: enum names, times, JSON."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from shared import errors


class Words:
    """An enum's values and the words that stand for them in tables: ASSET_KIND_PHOTO <-> 'photo'.

    A test holds the words against the CHECK constraint and the transition table.
    """

    def __init__(self, enum: EnumTypeWrapper, prefix: str) -> None:
        names = {number: name.removeprefix(prefix).lower() for name, number in enum.items() if number}
        self.word: Mapping[int, str] = names
        self.number: Mapping[str, Any] = {word: number for number, word in names.items()}


def timestamp(at: datetime | None) -> timestamp_pb2.Timestamp | None:
    if at is None:
        return None
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(at)
    return stamp


def time_of(stamp: timestamp_pb2.Timestamp, present: bool, field: str = "") -> datetime | None:
    """A UTC datetime, or None if the field is absent. One before year 1 or after 9999 is INVALID_ARGUMENT on `field`."""
    try:
        return stamp.ToDatetime(tzinfo=UTC) if present else None
    except (ValueError, OverflowError):
        raise errors.invalid(field, "is not a time between the years 1 and 9999") from None


def struct(value: Mapping[str, Any]) -> struct_pb2.Struct:
    message = struct_pb2.Struct()
    if value:
        message.update(value)
    return message


def plain(value: struct_pb2.Struct, field: str = "") -> dict[str, Any]:
    """JSON of a Struct; whole numbers become integers again, since a Struct only knows doubles.

    NaN and infinity, which JSON lacks, are INVALID_ARGUMENT on `field`.
    """
    try:
        made: dict[str, Any] = _whole(json_format.MessageToDict(value))
    except (json_format.Error, ValueError):
        raise errors.invalid(field, "holds a number that JSON can't express") from None
    return made


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
