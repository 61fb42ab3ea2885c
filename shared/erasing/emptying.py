"""Empties the tables of an owner, and removes the owner's objects from the store, in small steps
that can be repeated."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cache

import psycopg
import sqlalchemy as sa

from shared.database.rows import Statement, compiled
from shared.storage import Storage

ROWS = 2000  # that one step deletes
_KEYS = 500  # of objects that one call removes


class RowsLeft(Exception):
    """No order of the tables works: rows of one are still referred to. The text says which."""


@cache
def delete_rows(table: str, spared: str = "") -> Statement[int]:
    """Returns the statement that deletes at most `limit` rows of the owner, and yields a number for
    each. `spared`: the column whose value must not be the parameter `spared`."""
    row = sa.table(table, *map(sa.column, {"ctid", "owner", spared} - {""}))
    mine = row.alias("mine")
    where = [mine.c.owner == sa.bindparam("owner")]
    if spared:
        where.append(mine.c[spared] != sa.bindparam("spared"))
    some = sa.select(mine.c.ctid).where(*where).limit(sa.bindparam("limit"))
    deleted = sa.delete(row).where(row.c.ctid == sa.any_(sa.func.array(some.scalar_subquery())))
    return compiled(int, deleted.returning(sa.literal_column("1")))


async def empty_tables(tables: Iterable[str], empty: Callable[[str], Awaitable[int]]) -> int:
    """Empties the tables with `empty(table)`, which returns how many rows it deleted. A table whose
    rows are referred to by another table is emptied after it. Returns the sum. Raises RowsLeft."""
    left = list(tables)
    stuck = deleted = 0
    while left:
        table = left.pop(0)
        try:
            deleted += await empty(table)
            stuck = 0
        except psycopg.errors.ForeignKeyViolation as error:
            left.append(table)
            stuck += 1
            if stuck > len(left):
                text = f"rows of {table} are still referred to: {error.diag.constraint_name}"
                raise RowsLeft(text) from None
    return deleted


async def remove_objects(
    storage: Storage, prefix: str, note: Callable[[int], Awaitable[None]]
) -> int:
    """Removes all objects below the prefix, whether a row named them or not. Calls `note` with the
    number of each batch after it was removed. Returns the sum."""
    removed = 0
    batch: list[str] = []
    async for found in storage.list(prefix):
        batch.append(found.key)
        if len(batch) == _KEYS:
            removed += await _remove(storage, batch, note)
            batch = []
    return removed + await _remove(storage, batch, note)


async def _remove(
    storage: Storage, keys: Sequence[str], note: Callable[[int], Awaitable[None]]
) -> int:
    if keys:
        await storage.delete(keys)
        await note(len(keys))
    return len(keys)
