"""Reads every row of an owner, in pages by primary key: no transaction is open while the caller
reads."""

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import array

from shared.database.db import Database
from shared.database.rows import Statement, compiled
from shared.erasing.owned_tables import OwnedTable
from shared.rpc import auth

_PAGE = 50  # rows of up to a megabyte each
# Tables that repeat what others say.
REPEATING = frozenset({"requests", "events"})
# Columns whose values would let a reader of the export act for the owner.
_CREDENTIALS = ("secret", "handle")


@dataclass(slots=True)
class OwnedRow:
    """A row of any table: its primary key, each part as text, and the row as JSON without
    credentials."""

    key: list[str]
    shown: str


@cache
def _select_rows(table: str, keys: tuple[str, ...], goes_on: bool) -> Statement[OwnedRow]:
    row = sa.table(table, *map(sa.column, sorted({"owner", *keys}))).alias("t")
    key = [row.c[name] for name in keys]
    where = [row.c.owner == sa.bindparam("of")]
    if goes_on:
        last = sa.tuple_(*(sa.bindparam(f"after_{n}") for n in range(len(keys))))
        where.append(sa.tuple_(*key) > last)
    without = " - ".join(f"'{name}'" for name in _CREDENTIALS)
    shown: sa.ColumnElement[Any] = sa.literal_column(f"(to_jsonb(t) - {without})::text")
    return compiled(
        OwnedRow,
        sa.select(
            array([sa.cast(part, sa.Text) for part in key]).label("key"), shown.label("shown")
        )
        .select_from(row)
        .where(*where)
        .order_by(*key)
        .limit(sa.bindparam("limit")),
    )


async def rows(db: Database, table: OwnedTable) -> AsyncIterator[str]:
    """Yields the rows that the current owner has in a table, in the order of their keys."""
    keys = tuple(table.keys)
    after: Sequence[str] = ()
    while True:
        wanted = {
            "of": auth.current().owner,
            "limit": _PAGE,
            **{f"after_{n}": part for n, part in enumerate(after)},
        }
        found = await db.all(_select_rows(table.name, keys, bool(after)), wanted)
        for row in found:
            yield row.shown
        if len(found) < _PAGE:
            return
        after = found[-1].key


def shown_tables(tables: Sequence[OwnedTable], left_out: Collection[str] = ()) -> list[OwnedTable]:
    return [table for table in tables if table.name not in REPEATING | set(left_out)]
