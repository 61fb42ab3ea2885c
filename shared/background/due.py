"""Takes what has become due, such as rows whose time in the trash is over: the oldest first, in
chunks, each owner's in a transaction. Whatever stops it, the next round goes on with what is left.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import psycopg
import structlog

from shared.database.db import Database, Mutation
from shared.database.rows import Statement
from shared.rpc.errors import DomainError

_CHUNK = 100
_FIRST_TIME, _FIRST_ID = "-infinity", "00000000-0000-0000-0000-000000000000"
_log = structlog.get_logger("upkeep")

Act = Callable[[Mutation, Sequence[UUID]], Awaitable[int]]
"""Takes items of an owner, those that are still to be taken. Returns how many these were."""


@dataclass(slots=True)
class Found:
    """An item that is to be taken. `at`: the time by which they are ordered."""

    owner: str
    id: UUID
    at: datetime


def oldest(table: str, at: str, condition: str) -> str:
    """Returns the SQL that finds the oldest rows of a table, where `at`, an SQL expression, was
    longer ago than they are kept. An index should be on (`at`, id) where `condition`."""
    return f"""
        SELECT owner, id, coalesce({at}, now()) AS at FROM {table}
        WHERE {at} < now() - %(kept)s::interval AND {condition}
            AND ({at}, id) > (%(after_at)s::timestamptz, %(after_id)s::uuid)
        ORDER BY {at}, id LIMIT %(limit)s
    """


async def take(
    db: Database, find: Statement[Found], act: Act, *, most: int, kept: timedelta = timedelta()
) -> AsyncIterator[int]:
    """Lets `act` take up to `most` items that `find`, a statement of `oldest`, finds. Yields after
    each chunk how many it took. Raises psycopg.OperationalError while the database is away."""
    left, after = most, {"after_at": _FIRST_TIME, "after_id": _FIRST_ID}
    while left > 0:
        limit = min(_CHUNK, left)
        found = await db.system_all(find, {**after, "kept": kept, "limit": limit})
        if not found:
            return
        owners: dict[str, list[UUID]] = {}
        for each in found:
            owners.setdefault(each.owner, []).append(each.id)
        yield sum([await _step(db, owner, ids, act) for owner, ids in owners.items()])
        left -= len(found)
        after = {"after_at": found[-1].at.isoformat(), "after_id": str(found[-1].id)}
        if len(found) < limit:
            return


async def _step(db: Database, owner: str, ids: Sequence[UUID], act: Act) -> int:
    """Takes an owner's items together; if one of them can't be taken, each on its own."""
    try:
        async with db.transaction(owner) as m:
            return await act(m, ids)
    except psycopg.OperationalError:
        raise
    except (psycopg.Error, DomainError) as error:  # the next round tries these again
        if len(ids) == 1:
            _log.warning("upkeep left an item", item=str(ids[0]), error=str(error)[:300])
            return 0
    return sum([await _step(db, owner, [each], act) for each in ids])
