"""Lists the rows of a table: newest first, in pages, filtered by the fields that a request sets.

    _LIST = Listing(LOGS, Log, levels=lambda logs, levels: logs.level == sa.any_(levels))

    page = paging.page(request)
    wanted = {"product_id": ..., "levels": [...], **created(request)}
    rows = await db.all(*_LIST.query(page, wanted))
    logs, token = page.fill(rows, map(to_proto, rows))

A filter is named after its column and compares for equality, unless the list defines it otherwise.
A filter whose value is None or empty is ignored. The statement for each set of filters is built and
compiled once.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from shared.database.rows import Statement, Table, compiled
from shared.rpc import auth
from shared.rpc.paging import Page
from shared.rpc.protos import time_of

R = TypeVar("R")
_Columns = Any  # Core's columns of a table, by name; an unknown name raises AttributeError
Filter = Callable[[_Columns, sa.BindParameter[Any]], sa.ColumnElement[bool]]

_COMMON: Mapping[str, Filter] = {
    "created_from": lambda row, at: row.created_at >= at,
    "created_before": lambda row, at: row.created_at < at,
}


def created(request: Any) -> dict[str, object]:
    """Returns the filters for a request's fields `created_from` and `created_before`."""
    return {name: time_of(getattr(request, name), request.HasField(name), name) for name in _COMMON}


class Listing(Generic[R]):
    """Lists one owner's rows of one table. Needs an index on (owner, .., created_at DESC,
    id DESC)."""

    def __init__(self, table: Table[Any], row: type[R], **filters: Filter) -> None:
        self._table = table
        self._row = row
        self._filters = {**_COMMON, **filters}

    def query(
        self, page: Page, wanted: Mapping[str, object]
    ) -> tuple[Statement[R], dict[str, object]]:
        """Returns a page's statement and parameters. It reads one row more than the page has."""
        given = {name: value for name, value in wanted.items() if value}
        statement = self._statement(tuple(sorted(given)), page.after is not None)
        return statement, {"owner": auth.current().owner, **given, **page.parameters}

    @cache  # noqa: B019 - lists live as long as the process
    def _statement(self, names: tuple[str, ...], goes_on: bool) -> Statement[R]:
        row = self._table.core.c
        where = [row.owner == sa.bindparam("owner"), *map(self._condition, names)]
        if goes_on:
            last = sa.tuple_(sa.bindparam("after_at"), sa.bindparam("after_id"))
            where.append(sa.tuple_(row.created_at, row.id) < last)
        return compiled(
            self._row,
            sa.select(self._table.core)
            .where(*where)
            .order_by(row.created_at.desc(), row.id.desc())
            .limit(sa.bindparam("limit"))
            .offset(sa.bindparam("skip")),
        )

    def _condition(self, name: str) -> sa.ColumnElement[bool]:
        row = self._table.core.c
        value: sa.BindParameter[Any] = sa.bindparam(name)
        if name in self._filters:
            return self._filters[name](row, value)
        column: sa.ColumnElement[Any] = row[name]
        return column == value
