"""Pages in keyset order (AIP-158): newest first by (created_at, id), flat wherever you are in the list.

A page token holds the last row's key and a digest of the filter and the owner, so that it can't be used for another
list. It isn't secret and grants nothing: row-level security decides what is seen.
"""

import base64
import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from google.protobuf.message import Message

from shared import auth, errors
from shared.errors import Reason

DEFAULT_SIZE = 50
_PAGING_FIELDS = ("page_size", "page_token", "skip")


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
        """For a statement made with `clause`. One row more than the page tells whether there is another page."""
        after = self.after or (None, None)
        return {"after_at": after[0], "after_id": after[1], "limit": self.size + 1, "skip": self.skip}

    @property
    def clause(self) -> str:
        """Ends a SELECT whose WHERE is already written. Needs an index on (.., created_at DESC, id DESC)."""
        key = "AND (created_at, id) < (%(after_at)s, %(after_id)s) " if self.after else ""
        return f" {key}ORDER BY created_at DESC, id DESC LIMIT %(limit)s OFFSET %(skip)s"

    def cut(self, rows: Sequence[Any]) -> tuple[Sequence[Any], str]:
        """The page's rows, and the token of the next page ('' after the last)."""
        if len(rows) <= self.size:
            return rows, ""
        last = rows[self.size - 1]
        token = json.dumps([self.digest, last.created_at.isoformat(), str(last.id)]).encode()
        return rows[: self.size], base64.urlsafe_b64encode(token).decode()


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
        try:
            found, created_at, row_id = json.loads(base64.urlsafe_b64decode(request.page_token))
            after = (datetime.fromisoformat(created_at), uuid.UUID(row_id))
        except (ValueError, TypeError, AttributeError, RecursionError):  # anything may be spelled in base64
            found = None
        if found != digest:
            raise errors.invalid(
                "page_token",
                "is not of this list with this filter; start again without a token",
                Reason.ERROR_REASON_PAGE_TOKEN_INVALID,
            )
        skip = 0  # only the first page skips: later ones go on where it ended
    return Page(request.page_size or DEFAULT_SIZE, skip, after, digest)
