"""The view of a picture: an enum in the contract, a word in tables, facts and results.

Some requests have it in two spellings: the word, which came first, and the enum.
"""

from typing import Any

from atelier.common.v1 import view_pb2

from shared.rpc import errors
from shared.rpc.protos import Words

VIEWS = Words(view_pb2.ViewType, "VIEW_TYPE_")


def settle(message: Any, path: str = "") -> None:
    """Leaves the word alone in a message that may have `view` and `view_type`, so that both
    spellings are one request. INVALID_ARGUMENT, with the path before the field, if they differ."""
    if not message.view_type:
        return
    word = VIEWS.word[message.view_type]
    if message.view not in ("", word):
        text = f"says {word} where view says {message.view}; leave view out"
        raise errors.invalid(f"{path}view_type", text)
    message.view = word
    message.ClearField("view_type")


def type_of(word: str) -> Any:
    """The enum's value for a word of a table; UNSPECIFIED without one."""
    return VIEWS.number.get(word, view_pb2.VIEW_TYPE_UNSPECIFIED)
