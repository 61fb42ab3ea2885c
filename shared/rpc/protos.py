"""Converts between rows and messages: enum names, times, JSON, facts."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar, cast

from atelier.common.v1 import facts_pb2, wait_pb2
from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

from shared.formats.fact_tables import FactsError
from shared.formats.facts import parse_facts
from shared.rpc import errors

METADATA_BYTES = 16 * 1024
FACTS_BYTES = 1_000_000
METADATA_LEVELS = 32

E = TypeVar("E")


class EnumNames(Generic[E]):
    """Maps an enum's values to the words for them in tables: ASSET_KIND_PHOTO <-> 'photo'.

    A test compares the words with the CHECK constraint and the state machine.
    """

    def __init__(self, enum: type[E], prefix: str) -> None:
        # The stubs type an enum's wrapper as its class, and its values, which are ints, as
        # instances of it.
        values = cast(EnumTypeWrapper, enum).items()
        names = {number: name.removeprefix(prefix).lower() for name, number in values if number}
        self.word: Mapping[int, str] = names
        self.number = cast(Mapping[str, E], {word: number for number, word in names.items()})


def timestamp(at: datetime | None) -> timestamp_pb2.Timestamp | None:
    if at is None:
        return None
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(at)
    return stamp


class _Job(Protocol):
    @property
    def state(self) -> str: ...
    @property
    def waits_for(self) -> str: ...
    @property
    def waiting_since(self) -> datetime | None: ...


def wait_of(row: _Job) -> wait_pb2.Wait | None:
    """Returns what a PENDING job waits for, from the columns `waits_for` and `waiting_since`; None
    if it doesn't wait."""
    if row.state != "pending" or not row.waits_for:
        return None
    return wait_pb2.Wait(what=row.waits_for, since_time=timestamp(row.waiting_since))


def time_of(stamp: timestamp_pb2.Timestamp, present: bool, field: str = "") -> datetime | None:
    """Returns a UTC datetime, or None if the field is absent. Raises INVALID_ARGUMENT on `field`
    outside the years 1 to 9999."""
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
    """Converts a Struct to plain JSON values. Whole numbers become ints, since a Struct knows only
    doubles. Raises INVALID_ARGUMENT on `field` for NaN and infinity, which JSON lacks.
    """
    try:
        made = json_format.MessageToDict(value)
    except (json_format.Error, ValueError):
        raise errors.invalid(field, "holds a number that JSON can't express") from None
    return {name: _whole(item) for name, item in made.items()}


def _whole(value: object) -> object:
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def metadata(value: struct_pb2.Struct, field: str, limit: int = METADATA_BYTES) -> dict[str, Any]:
    """Converts metadata that a caller stores with a row. Raises INVALID_ARGUMENT on `field` beyond
    `limit` bytes as JSON or 32 levels."""
    made = plain(value, field)
    check_json(made, field, limit)
    return made


def check_json(value: Mapping[str, Any], field: str, limit: int) -> None:
    """Raises INVALID_ARGUMENT on `field` for JSON beyond `limit` bytes or 32 levels."""
    if _levels(value, METADATA_LEVELS) > METADATA_LEVELS:
        raise errors.invalid(field, f"is nested deeper than {METADATA_LEVELS} levels")
    size = len(json.dumps(value, ensure_ascii=False).encode())
    if size > limit:
        raise errors.invalid(field, f"is {size} bytes as JSON; the limit is {limit}")


def _levels(value: object, budget: int) -> int:
    if budget < 0 or not isinstance(value, dict | list):
        return 0 if budget >= 0 else 1
    children = value.values() if isinstance(value, dict) else value
    return 1 + max((_levels(child, budget - 1) for child in children), default=0)


def facts(value: facts_pb2.Facts, field: str) -> dict[str, Any]:
    """Converts facts to the plain form that shared.formats.facts.parse_facts reads; absent fields
    have no key.

    Raises INVALID_ARGUMENT, with the path below `field`, for inconsistent facts, and beyond
    FACTS_BYTES as JSON.
    """
    made = _fields(value)
    size = len(json.dumps(made, ensure_ascii=False).encode())
    if size > FACTS_BYTES:
        raise errors.invalid(field, f"are {size} bytes as JSON; the limit is {FACTS_BYTES}")
    try:
        parse_facts(made)
    except FactsError as error:
        raise errors.invalid(
            f"{field}.{error.path}" if error.path else field, error.reason
        ) from None
    return made


def _fields(value: Message) -> dict[str, Any]:
    return {field.name: _stated(item) for field, item in value.ListFields()}


def _stated(value: object) -> object:
    if isinstance(value, facts_pb2.Point):  # its zeros are coordinates, not absent fields
        return {"x": value.x, "y": value.y}
    if isinstance(value, Message):
        return _fields(value)
    if isinstance(value, str | float):
        return value
    return [_stated(item) for item in cast(Iterable[object], value)]


def facts_message(stored: Mapping[str, Any]) -> facts_pb2.Facts:
    """Returns the message for facts stored in their plain form."""
    return json_format.ParseDict(dict(stored), facts_pb2.Facts())


def digest(message: Message) -> str:
    """Returns 32 characters that messages of one content share."""
    data = message.SerializeToString(deterministic=True)
    return hashlib.sha256(data).hexdigest()[:32]
