"""Notes pictures whose references may be needed by nothing, so that the upkeep releases those that
nothing of their product has."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import psycopg
import structlog

from shared.database.db import Database, Mutation
from shared.database.rows import Command
from shared.rpc import auth, errors

# A call that acquired a reference has made its row after this time, or failed.
SETTLED_AFTER = timedelta(minutes=3)
_PAUSE_SECONDS = 1.0
_log = structlog.get_logger("pictures")
# The event loop keeps only weak references to tasks.
_under_way: set[asyncio.Task[None]] = set()

_NOTE = Command("""
    INSERT INTO picture_releases (id, owner, product_id, asset_id, settles_at)
    VALUES (gen_random_uuid(), %(owner)s, %(product_id)s, %(asset_id)s,
        now() + %(settled)s::interval)
    ON CONFLICT ON CONSTRAINT picture_releases_picture
        DO UPDATE SET due_at = now(), settles_at = EXCLUDED.settles_at
""")


async def note(m: Mutation, product_id: str, asset_id: UUID) -> None:
    """Notes a picture whose reference is released unless something of the product has it."""
    values = {"owner": m.owner, "product_id": product_id, "asset_id": asset_id}
    await m.run(_NOTE, {**values, "settled": SETTLED_AFTER})


@asynccontextmanager
async def unless_kept(
    db: Database, product_id: str, *asset_ids: UUID | None
) -> AsyncIterator[None]:
    """Notes the pictures if the change that acquires references to them fails or is cancelled,
    since they may have been acquired, and the change may have been committed."""
    pictures = [asset_id for asset_id in asset_ids if asset_id]
    try:
        yield
    except (Exception, asyncio.CancelledError):
        noting = _note_persistently(db, auth.current().owner, product_id, pictures)
        task = asyncio.create_task(noting)
        _under_way.add(task)
        task.add_done_callback(_under_way.discard)
        # It goes on if this call is cancelled once more, or if the database is away for longer.
        await asyncio.wait((task,), timeout=_PAUSE_SECONDS)
        raise


async def _note_persistently(
    db: Database, owner: str, product_id: str, pictures: Sequence[UUID]
) -> None:
    give_up = time.monotonic() + SETTLED_AFTER.total_seconds()
    while pictures:
        try:
            async with db.transaction(owner) as m:
                for asset_id in pictures:
                    await note(m, product_id, asset_id)
            return
        except psycopg.Error as error:
            if errors.is_owner_erased(error):  # and so are the references
                return
            if time.monotonic() > give_up:
                _log.error("pictures stay referenced", pictures=list(map(str, pictures)))
                return
        await asyncio.sleep(_PAUSE_SECONDS)
