"""Pages of lists that are written as SQL, because `shared.database.lists` can't express them."""

from typing import Generic, TypeVar

from shared.database.rows import Statement
from shared.rpc.paging import Page

R = TypeVar("R")

_LATER = "AND (created_at, id) < (%(after_at)s, %(after_id)s)"
_ENDING = "ORDER BY created_at DESC, id DESC LIMIT %(limit)s OFFSET %(skip)s"


class Paged(Generic[R]):
    """Pages of a SELECT that ends in its WHERE, newest first: one statement for the first page, one
    for the later ones. Needs an index on (.., created_at DESC, id DESC)."""

    def __init__(self, row: type[R], select: str) -> None:
        self._first = Statement(row, f"{select} {_ENDING}")
        self._later = Statement(row, f"{select} {_LATER} {_ENDING}")

    def of(self, page: Page) -> Statement[R]:
        return self._later if page.after else self._first
