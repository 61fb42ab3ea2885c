"""The view of a picture: an enum in the contract, a word in tables, facts and results.

Some requests have two fields for it: the word, which came first, and the enum.
"""

from typing import Any

from atelier.common.v1 import view_pb2

from shared.rpc import errors
from shared.rpc.protos import EnumNames

VIEWS = EnumNames(view_pb2.ViewType, "VIEW_TYPE_")


def settle(message: Any, path: str = "") -> None:
    """Moves `view_type` of a message into `view`, so that both spellings make the same request.
    Raises INVALID_ARGUMENT if they differ; `path` is put before the field's name."""
    if not message.view_type:
        return
    word = VIEWS.word[message.view_type]
    if message.view not in ("", word):
        text = f"says {word} where view says {message.view}; leave view out"
        raise errors.invalid(f"{path}view_type", text)
    message.view = word
    message.ClearField("view_type")


def type_of(word: str) -> Any:
    """Returns the enum's value for a table's word; UNSPECIFIED for any other."""
    return VIEWS.number.get(word, view_pb2.VIEW_TYPE_UNSPECIFIED)
