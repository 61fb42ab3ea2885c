"""Pages in keyset order (AIP-158): newest first by (created_at, id), flat wherever you are in the
list.

    page = paging.page(request)
    rows = await db.all(*_LIST.query(page, {...}))         # shared/database/lists.py
    things, token = page.fill(rows, map(to_proto, rows))

A page token holds the last row's key and a digest of the filter and the owner, so that it can't be
used for another list. It isn't secret and grants nothing: row-level security decides what is seen.

A page ends early, with a token, before its answer is larger than what clients take: see `fitting`.
"""

import base64
import hashlib
import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from shared.rpc import auth, errors
from shared.rpc.errors import Reason

DEFAULT_SIZE = 50
# Of the messages of an answer. A gRPC client refuses more than 4 MiB unless it is told otherwise;
# the rest is for what an answer says besides, and for tags and lengths.
ANSWER_BYTES = 3_500_000
_PAGING_FIELDS = ("page_size", "page_token", "skip")


M = TypeVar("M", bound=Message)
R = TypeVar("R")


class ListedRow(Protocol):
    """A row with the key that lists are ordered by."""

    @property
    def id(self) -> uuid.UUID: ...
    @property
    def created_at(self) -> datetime: ...


class ListRequest(Protocol):
    page_size: int
    page_token: str
    skip: int


@dataclass(frozen=True, slots=True)
class Page:
    """`limit` rows after the key (`created_at`, `id`), or from the start if both are None."""

    size: int
    skip: int
    after: tuple[datetime, uuid.UUID] | None
    digest: str

    @property
    def parameters(self) -> dict[str, Any]:
        """For a statement made with `clause`. One row more than the page tells whether there is
        another page."""
        after = self.after or (None, None)
        return {
            "after_at": after[0],
            "after_id": after[1],
            "limit": self.size + 1,
            "skip": self.skip,
        }

    @property
    def clause(self) -> str:
        """Ends a SELECT whose WHERE is already written. Needs an index on (.., created_at DESC, id
        DESC)."""
        key = "AND (created_at, id) < (%(after_at)s, %(after_id)s) " if self.after else ""
        return f" {key}ORDER BY created_at DESC, id DESC LIMIT %(limit)s OFFSET %(skip)s"

    def cut(self, rows: Sequence[R]) -> Sequence[R]:
        """The page's rows without the one more, for what is looked up for all of them."""
        return rows[: self.size]

    def fill(self, rows: Sequence[ListedRow], messages: Iterable[M]) -> tuple[list[M], str]:
        """As many of the rows' messages as one answer holds, and the token of the next page (''
        after the last). `rows` as they were read, with the one more."""
        shown = fitting(islice(messages, self.size))
        if len(shown) == len(rows):
            return shown, ""
        last = rows[len(shown) - 1]
        return shown, token_of(self.digest, last.created_at.isoformat(), str(last.id))


def fitting(messages: Iterable[M], room: int = ANSWER_BYTES) -> list[M]:
    """As many of the messages, from the first on, as fit into `room` bytes of one answer. No more
    of them are made.

    The first always comes, so that a list can't stand still: the limits of the contract keep each
    below the room.
    """
    taken: list[M] = []
    for message in messages:
        room -= message.ByteSize()
        if room < 0 and taken:
            break
        taken.append(message)
    return taken


def lighten(messages: Iterable[Message], names: Sequence[str], room: int) -> int:
    """Takes the fields of these names out of the messages that don't fit into `room` bytes with
    them: for an answer without pages. Returns the room that is left."""
    for message in messages:
        if message.ByteSize() > room:
            for name in names:
                message.ClearField(name)
        room -= message.ByteSize()
    return room


def token_of(digest: str, *key: str | int) -> str:
    """The token of the page after the row with this key."""
    return base64.urlsafe_b64encode(json.dumps([digest, *key]).encode()).decode()


def key_of(token: str, digest: str, *kinds: type) -> Any:
    """The key in a token, whose parts are of these types; INVALID_ARGUMENT if it isn't of the list
    of this digest."""
    try:
        found, *key = json.loads(base64.urlsafe_b64decode(token))
        "".join(
            part for part in key if isinstance(part, str)
        ).encode()  # JSON spells half a surrogate pair, too
    except (ValueError, TypeError, RecursionError):  # anything may be spelled in base64
        found, key = None, []
    if found != digest or [type(part) for part in key] != list(kinds):  # true is no int here
        raise _not_a_token()
    if any(isinstance(part, int) and abs(part) >= 2**63 for part in key):
        raise _not_a_token()
    return key


def _not_a_token() -> errors.DomainError:
    text = "is not of this list with this filter; start again without a token"
    return errors.invalid("page_token", text, Reason.ERROR_REASON_PAGE_TOKEN_INVALID)


def filter_digest(request: Message, without: Sequence[str]) -> str:
    """A digest of the request's type, its fields except `without`, and the caller's owner."""
    bare = type(request)()
    bare.CopyFrom(request)
    for name in without:
        if name in bare.DESCRIPTOR.fields_by_name:
            bare.ClearField(name)
    text = bare.DESCRIPTOR.full_name.encode() + bare.SerializeToString(deterministic=True)
    return hashlib.sha256(text + auth.current().owner.encode()).hexdigest()[:20]


def page(request: Any) -> Page:
    """Reads `page_size`, `page_token` and, where the list has it, `skip`."""
    digest = filter_digest(request, _PAGING_FIELDS)
    skip = getattr(request, "skip", 0)
    after = None
    if request.page_token:
        created_at, row_id = key_of(request.page_token, digest, str, str)
        try:
            after = (datetime.fromisoformat(created_at), uuid.UUID(row_id))
        except ValueError:
            raise _not_a_token() from None
        skip = 0  # only the first page skips: later ones go on where it ended
    return Page(request.page_size or DEFAULT_SIZE, skip, after, digest)
