"""Reads log lines for an export: oldest first, in chunks by key, so that no transaction is open
while the caller reads."""

from collections.abc import AsyncIterator, Mapping

from services.pipeline.log_rows import LOGS, Log
from shared.database.db import Database
from shared.database.rows import Statement

_CHUNK = 500
_FIRST_ID = "00000000-0000-0000-0000-000000000000"


def _statement(whose: str) -> Statement[Log]:
    return Statement(
        Log,
        f"""
        SELECT {LOGS.columns} FROM logs
        WHERE {whose} AND (created_at, id) > (coalesce(%(after_at)s::timestamptz, '-infinity'),
                %(after_id)s::uuid)
            AND created_at < coalesce(%(created_before)s::timestamptz, now())
            AND (%(phase)s::int = 0 OR phase = %(phase)s)
            AND (%(levels)s::text[] IS NULL OR level = ANY(%(levels)s))
            AND (%(action)s::text = '' OR action = %(action)s)
            AND (%(text)s::text = '' OR strpos(lower(message), lower(%(text)s)) > 0)
        ORDER BY created_at, id LIMIT {_CHUNK}
        """,
    )


_OF_OWNER = _statement("owner = %(owner)s")
_OF_PRODUCT = _statement("owner = %(owner)s AND product_id = %(product_id)s")


async def chunks(db: Database, wanted: Mapping[str, object]) -> AsyncIterator[list[Log]]:
    """Yields the lines that `wanted` selects. A line is left out if it is younger than the query
    for its chunk."""
    statement = _OF_PRODUCT if wanted["product_id"] else _OF_OWNER
    after: dict[str, object] = {"after_at": wanted["created_from"], "after_id": _FIRST_ID}
    while rows := await db.all(statement, {**wanted, **after}):
        yield rows
        if len(rows) < _CHUNK:
            return
        after = {"after_at": rows[-1].created_at, "after_id": rows[-1].id}
