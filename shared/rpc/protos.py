"""Between rows and messages: enum names, times, JSON, facts."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar, cast

from atelier.common.v1 import facts_pb2, wait_pb2
from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

from shared.formats.facts import FactsError, parse_facts
from shared.rpc import errors

METADATA_BYTES = 16 * 1024
FACTS_BYTES = 1_000_000
METADATA_LEVELS = 32

E = TypeVar("E")


class Words(Generic[E]):
    """An enum's values and the words that stand for them in tables: ASSET_KIND_PHOTO <-> 'photo'.

    A test holds the words against the CHECK constraint and the transition table.
    """

    def __init__(self, enum: type[E], prefix: str) -> None:
        # An enum's wrapper is its class to the stubs, and its values, which are ints, are of it.
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
    """What a PENDING job waits for, of a row with the columns `waits_for` and `waiting_since`; None
    if nothing."""
    if row.state != "pending" or not row.waits_for:
        return None
    return wait_pb2.Wait(what=row.waits_for, since_time=timestamp(row.waiting_since))


def time_of(stamp: timestamp_pb2.Timestamp, present: bool, field: str = "") -> datetime | None:
    """A UTC datetime, or None if the field is absent. Beyond the years 1 to 9999: INVALID_ARGUMENT
    on `field`."""
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
    """What a caller wants kept with a row. INVALID_ARGUMENT on `field` beyond `limit` bytes as JSON
    or 32 levels."""
    made = plain(value, field)
    if _levels(made, METADATA_LEVELS) > METADATA_LEVELS:
        raise errors.invalid(field, f"is nested deeper than {METADATA_LEVELS} levels")
    size = len(json.dumps(made, ensure_ascii=False).encode())
    if size > limit:
        raise errors.invalid(field, f"is {size} bytes as JSON; the limit is {limit}")
    return made


def _levels(value: object, budget: int) -> int:
    if budget < 0 or not isinstance(value, dict | list):
        return 0 if budget >= 0 else 1
    children = value.values() if isinstance(value, dict) else value
    return 1 + max((_levels(child, budget - 1) for child in children), default=0)


def facts(value: facts_pb2.Facts, field: str) -> dict[str, Any]:
    """The plain form of facts, as shared.formats.facts.parse_facts reads it; what is absent has no
    key.

    INVALID_ARGUMENT, with the path below `field`, for facts that don't hold together, and beyond
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
    if isinstance(value, facts_pb2.Point):  # its zeros are places, too
        return {"x": value.x, "y": value.y}
    if isinstance(value, Message):
        return _fields(value)
    if isinstance(value, str | float):
        return value
    return [_stated(item) for item in cast(Iterable[object], value)]


def facts_message(stored: Mapping[str, Any]) -> facts_pb2.Facts:
    """The message of facts that were stored in their plain form."""
    return json_format.ParseDict(dict(stored), facts_pb2.Facts())
