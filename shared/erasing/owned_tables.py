"""Lists the tables with an owner column from the schema itself: an export or an erasure must not
forget a table that is added later."""

from dataclasses import dataclass

from shared.database.db import Database
from shared.database.rows import Statement


@dataclass(slots=True)
class OwnedTable:
    name: str
    keys: list[str]  # columns of its primary key, in order


_SELECT_TABLES = Statement(
    OwnedTable,
    """
    SELECT c.relname::text AS name,
        (SELECT array_agg(a.attname::text ORDER BY array_position(i.indkey::int2[], a.attnum))
         FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY(i.indkey)
         WHERE i.indrelid = c.oid AND i.indisprimary) AS keys
    FROM pg_class c JOIN pg_attribute o ON o.attrelid = c.oid AND o.attname = 'owner'
    WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace ORDER BY 1
    """,
)


async def owned_tables(db: Database) -> list[OwnedTable]:
    """Returns the tables in the order of their names."""
    return await db.all(_SELECT_TABLES)
