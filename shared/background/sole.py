"""Work that only one process of a service does at a time, however many run it."""

import enum
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.database.db import Database, execute
from shared.database.exchange import Connection
from shared.database.rows import Statement


class Duty(enum.IntEnum):
    """Such work, each with the number of its lock. Other locks of a schema's name: 8, dispatching
    webhooks."""

    SEQUENCING = 7
    UPKEEP = 12
    ERASING = 13
    LEGACY_WRITING = 14


_TRY_LOCK = Statement(
    bool,
    "SELECT pg_try_advisory_lock(hashtextextended(current_schema(), %(duty)s::bigint)) AS held",
)
_ALIVE = Statement(int, "SELECT 1 AS alive")


@asynccontextmanager
async def alone(
    db: Database, duty: Duty, *, silent_seconds: int
) -> AsyncIterator[Connection | None]:
    """Yields a session that holds the lock of this duty, or None if another process has it.

    The database ends a session that is silent for `silent_seconds`, so that a frozen process
    doesn't keep the lock: use it more often, if only by `check`. Raises psycopg.Error."""
    async with await db.connect() as session:
        await session.execute(f"SET idle_session_timeout = '{silent_seconds}s'")
        held = await (await execute(session, _TRY_LOCK, {"duty": int(duty)})).fetchone()
        yield session if held else None


async def check(session: Connection) -> None:
    """Raises psycopg.Error if the session, and with it the lock, is lost."""
    await execute(session, _ALIVE)
