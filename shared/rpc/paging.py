"""Pages in keyset order (AIP-158): newest first by (created_at, id), equally fast anywhere in the
list.

    page = paging.page(request)
    rows = await db.all(*_LIST.query(page, {...}))         # shared/database/lists.py
    things, token = page.fill(rows, map(to_proto, rows))

A page token holds the last row's key and a digest of filter and owner, so it can't be used for
another list. It isn't secret and grants nothing: row-level security decides which rows are visible.

A page ends early, with a token, before its answer exceeds what clients accept: see `fitting`.
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
# The most bytes of an answer's messages. A gRPC client refuses more than 4 MiB by default; the rest
# is for the answer's other fields, tags and lengths.
ANSWER_BYTES = 3_500_000
_PAGING_FIELDS = ("page_size", "page_token", "skip")


M = TypeVar("M", bound=Message)
R = TypeVar("R")


class ListedRow(Protocol):
    """A row with the key by which lists are ordered."""

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
    """The requested page: `size` rows after the key `after` (created_at, id), or from the start,
    passing over `skip` rows, if `after` is None."""

    size: int
    skip: int
    after: tuple[datetime, uuid.UUID] | None
    digest: str

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters for a statement that ends with `clause`. It reads one row more than the page
        has, which tells whether another page follows."""
        after = self.after or (None, None)
        return {
            "after_at": after[0],
            "after_id": after[1],
            "limit": self.size + 1,
            "skip": self.skip,
        }

    @property
    def clause(self) -> str:
        """The end of a SELECT that has a WHERE already. Needs an index on (.., created_at DESC, id
        DESC)."""
        key = "AND (created_at, id) < (%(after_at)s, %(after_id)s) " if self.after else ""
        return f" {key}ORDER BY created_at DESC, id DESC LIMIT %(limit)s OFFSET %(skip)s"

    def cut(self, rows: Sequence[R]) -> Sequence[R]:
        """Returns the page's rows without the extra one, for look-ups that concern all of them."""
        return rows[: self.size]

    def fill(self, rows: Sequence[ListedRow], messages: Iterable[M]) -> tuple[list[M], str]:
        """Returns as many of the messages as one answer holds, and the next page's token ('' after
        the last page). Pass `rows` as they were read, with the extra one."""
        shown = fitting(islice(messages, self.size))
        if len(shown) == len(rows):
            return shown, ""
        last = rows[len(shown) - 1]
        return shown, token_of(self.digest, last.created_at.isoformat(), str(last.id))


def fitting(messages: Iterable[M], room: int = ANSWER_BYTES) -> list[M]:
    """Returns as many of the first messages as fit into `room` bytes. Stops the iteration at the
    first message that doesn't fit.

    The first message is always returned, so that a list can't get stuck; the contract's limits keep
    each message below `room`.
    """
    taken: list[M] = []
    for message in messages:
        room -= message.ByteSize()
        if room < 0 and taken:
            break
        taken.append(message)
    return taken


def trim_to_limit(messages: Iterable[Message], names: Sequence[str], room: int) -> int:
    """Clears the named fields of messages that don't fit into `room` bytes with them, for answers
    without pages. Returns the remaining room."""
    for message in messages:
        if message.ByteSize() > room:
            for name in names:
                message.ClearField(name)
        room -= message.ByteSize()
    return room


def token_of(digest: str, *key: str | int) -> str:
    """Returns the token of the page after the row with this key."""
    return base64.urlsafe_b64encode(json.dumps([digest, *key]).encode()).decode()


def key_of(token: str, digest: str, *kinds: type) -> Any:
    """Returns the key in a token, whose parts have the types `kinds`. Raises INVALID_ARGUMENT if
    the token is not one of the list with this digest."""
    try:
        found, *key = json.loads(base64.urlsafe_b64decode(token))
        # JSON may hold half a surrogate pair, which fails to encode.
        "".join(part for part in key if isinstance(part, str)).encode()
    except (ValueError, TypeError, RecursionError):  # base64 may hold anything
        found, key = None, []
    if found != digest or [type(part) for part in key] != list(kinds):  # a bool is no int here
        raise _not_a_token()
    if any(isinstance(part, int) and abs(part) >= 2**63 for part in key):
        raise _not_a_token()
    return key


def _not_a_token() -> errors.DomainError:
    text = "is not of this list with this filter; start again without a token"
    return errors.invalid("page_token", text, Reason.ERROR_REASON_PAGE_TOKEN_INVALID)


def filter_digest(request: Message, without: Sequence[str]) -> str:
    """Returns a digest of the request's type, its fields except `without`, and the caller's
    owner."""
    bare = type(request)()
    bare.CopyFrom(request)
    for name in without:
        if name in bare.DESCRIPTOR.fields_by_name:
            bare.ClearField(name)
    text = bare.DESCRIPTOR.full_name.encode() + bare.SerializeToString(deterministic=True)
    return hashlib.sha256(text + auth.current().owner.encode()).hexdigest()[:20]


def page(request: Any) -> Page:
    """Returns the page for a request's `page_size`, `page_token` and, if it has one, `skip`. Raises
    INVALID_ARGUMENT for a token of another list."""
    digest = filter_digest(request, _PAGING_FIELDS)
    skip = getattr(request, "skip", 0)
    after = None
    if request.page_token:
        created_at, row_id = key_of(request.page_token, digest, str, str)
        try:
            after = (datetime.fromisoformat(created_at), uuid.UUID(row_id))
        except ValueError:
            raise _not_a_token() from None
        skip = 0  # only the first page skips; later ones continue where it ended
    return Page(request.page_size or DEFAULT_SIZE, skip, after, digest)
