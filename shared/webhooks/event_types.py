"""The names and bodies of webhook events. Both follow from the event alone."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

PING = "webhook.ping"
_PURGED = "purged_"


class EventTypes:
    """A service's event types: `<service>.<subject>.<change>`. `subjects` maps each subject to the
    message that its events carry. The subject `purged_<subject>` becomes the change `purged` of
    `<subject>`.

    The change is the subject's state after it, or `created` or `updated` for a subject without
    states. In the trash it is `deleted`, and archived it is `archived`, whatever the state.
    """

    def __init__(self, service: str, subjects: Mapping[str, type[Message]]) -> None:
        self._service = service
        self.subjects = subjects
        self.messages = {
            f"{service}.{subject.removeprefix(_PURGED)}.{change}": message.DESCRIPTOR.full_name
            for subject, message in subjects.items()
            for change in (["purged"] if subject.startswith(_PURGED) else _changes(message))
        }

    def name(self, subject: str, version: int, message: Message) -> str:
        change = "purged" if subject.startswith(_PURGED) else _change(message, version)
        return f"{self._service}.{subject.removeprefix(_PURGED)}.{change}"


def _changes(message: type[Message]) -> Iterator[str]:
    fields = message.DESCRIPTOR.fields_by_name
    yield from (word for name, word in _PUT_AWAY.items() if name in fields)
    yield from _states(message).values() if "state" in fields else ("created", "updated")


def _change(message: Message, version: int) -> str:
    fields = message.DESCRIPTOR.fields_by_name
    for name, word in _PUT_AWAY.items():
        if name in fields and message.HasField(name):
            return word
    if "state" in fields:
        state: int = getattr(message, "state")  # noqa: B009 - a field of some messages
        return _states(type(message))[state]
    return "created" if version == 1 else "updated"


_PUT_AWAY = {"delete_time": "deleted", "archive_time": "archived"}


def _states(message: type[Message]) -> dict[int, str]:
    """Returns the words for the enum of the field `state`, without UNSPECIFIED: ASSET_STATE_READY
    is 'ready'."""
    enum = message.DESCRIPTOR.fields_by_name["state"].enum_type
    assert enum is not None
    names = {number: value.name for number, value in enum.values_by_number.items()}
    prefix = names[0].removesuffix("UNSPECIFIED")
    return {number: name.removeprefix(prefix).lower() for number, name in names.items() if number}


def body_of(name: str, at: datetime, message: Message) -> str:
    return body(name, at, json_format.MessageToDict(message))


def body(name: str, at: datetime, data: Mapping[str, Any]) -> str:
    """Returns the JSON body of a delivery. It is made once, so every attempt sends the same."""
    timestamp = at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return json.dumps(
        {"type": name, "timestamp": timestamp, "data": data},
        ensure_ascii=False,
        separators=(",", ":"),
    )
