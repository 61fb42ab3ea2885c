"""Archives, deletes, undeletes and purges products.

Every function works in an open transaction and never commits. A product's phases are locked before
its open reviews, and these before the product, as everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import psycopg
import psycopg_pool
import structlog
from atelier.pipeline.v1 import product_pb2

from services.pipeline import holding, log_rows, product_rows, progress
from services.pipeline.phase_rows import PHASES, LockedPhase, named
from services.pipeline.product_rows import LockedProduct
from shared.background import events, tasks
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement
from shared.rpc import errors
from shared.rpc.errors import DomainError
from shared.rpc.protos import timestamp

_EXPIRE_SECONDS = 60.0
_EXPIRED_AT_ONCE = 100
_log = structlog.get_logger("trashing")


@dataclass(slots=True)
class _Expired:
    id: UUID
    owner: str


_LOCK_PHASES = Statement(
    LockedPhase,
    f"""
    SELECT {PHASES.columns} FROM phases WHERE product_id = %(id)s ORDER BY number FOR UPDATE
    """,
)
_LOCK_OPEN_REVIEWS = Statement(
    UUID,
    """
    SELECT id FROM reviews WHERE product_id = %(id)s AND state = 'open' ORDER BY id FOR UPDATE
    """,
)
_SELECT_LIFE_END = Statement(datetime, "SELECT now() + %(life)s::interval")
_DELETE_ATTEMPTS = Command("DELETE FROM attempts WHERE job_id = ANY(%(ids)s)")
_DELETE_PRODUCT = Statement(
    datetime, "DELETE FROM products WHERE id = %(id)s RETURNING now() AS purged_at"
)
_SELECT_EXPIRED = Statement(
    _Expired,
    """
    SELECT id, owner FROM products WHERE expires_at < now() ORDER BY expires_at LIMIT %(most)s
    """,
)
_SELECT_IS_EXPIRED = Statement(
    bool, "SELECT coalesce(expires_at < now(), false) AS expired FROM products WHERE id = %(id)s"
)


async def archive(m: Mutation, locked: LockedProduct, *, archived: bool) -> LockedProduct:
    """Hides a product from lists, or shows it again."""
    product_rows.refuse_deleted(locked)
    if (locked.archived_at is not None) == archived:
        return locked
    if archived:
        row = await product_rows.update(m, locked, {}, stamps=("archived_at",))
    else:
        row = await product_rows.update(m, locked, {"archived_at": None})
    what = "archived: lists don't show it" if archived else "no longer archived"
    await log_rows.add(m, row.id, 0, "product_archived" if archived else "product_unarchived", what)
    return row


async def lock_phases(m: Mutation, product_id: UUID) -> list[LockedPhase]:
    """Locks all phases of a product until the commit and returns them in order."""
    return await m.all(_LOCK_PHASES, {"id": product_id})


async def delete(m: Mutation, product_id: UUID, etag: str, life: timedelta) -> LockedProduct:
    """Stops what is under way and puts the product into the trash for `life`."""
    phases = await lock_phases(m, product_id)
    await m.all(_LOCK_OPEN_REVIEWS, {"id": product_id})
    locked = await _lock(m, product_id, etag)
    if locked.deleted_at:
        return locked
    if await _stop(m, locked, phases):
        await progress.settle(m, product_id)
        locked = await product_rows.lock(m, product_id)
    expires_at = await m.one(_SELECT_LIFE_END, {"life": life})
    row = await product_rows.update(m, locked, {"expires_at": expires_at}, stamps=("deleted_at",))
    text = f"deleted: it is in the trash until {expires_at:%Y-%m-%d %H:%M} UTC"
    await log_rows.add(m, row.id, 0, "product_deleted", text, level="warning")
    return row


async def _stop(m: Mutation, product: LockedProduct, phases: Sequence[LockedPhase]) -> bool:
    """Stops the phase that is under way, due, or waits for a person or for the images; asks a
    worker that runs it to stop. Returns whether there was one."""
    for phase in phases:
        if phase.state == "running" and not phase.external:
            if not phase.cancel_requested:
                await progress.request_stop(m, phase)
            return True
        waits_for_images = phase.number == 1 and product.preparation == "pending"
        pending = phase.state == "pending" and (phase.started or waits_for_images)
        if pending or phase.state in ("running", "awaiting_review"):
            text = f"{named(phase)} is stopped, because the product was deleted"
            await progress.stop(m, phase, text)
            return True
    return False


async def undelete(m: Mutation, locked: LockedProduct) -> LockedProduct:
    """Takes a product out of the trash."""
    if locked.deleted_at is None:
        return locked
    row = await product_rows.update(m, locked, {"deleted_at": None, "expires_at": None})
    await log_rows.add(m, row.id, 0, "product_undeleted", "undeleted: it is out of the trash")
    return row


async def purge(m: Mutation, queue: JobQueue, product_id: UUID, etag: str = "") -> None:
    """Deletes the product with all that belongs to it, has its images' references released, and
    publishes that it is gone. Raises FAILED_PRECONDITION if a worker runs one of its phases."""
    phases = await lock_phases(m, product_id)
    await m.all(_LOCK_OPEN_REVIEWS, {"id": product_id})
    locked = await _lock(m, product_id, etag)
    for phase in phases:
        if phase.state == "running" and not phase.external:
            raise _still_running(phase)
    images = await m.all(product_rows.SELECT_ASSET_IDS, {"id": product_id})
    await holding.note_change(m, queue, product_id, images)
    await m.run(_DELETE_ATTEMPTS, {"ids": [phase.id for phase in phases]})
    purged_at = await m.one(_DELETE_PRODUCT, {"id": product_id})
    purged = product_pb2.PurgedProduct(product_id=str(product_id), purge_time=timestamp(purged_at))
    await events.publish(m, "purged_product", product_id, locked.version + 1, purged)


def _still_running(phase: LockedPhase) -> DomainError:
    how = "is being stopped; repeat when it has" if phase.cancel_requested else "runs"
    hint = "" if phase.cancel_requested else "; DeleteProduct or StopPhase stops it, then repeat"
    return errors.precondition(
        f"{named(phase)} {how}{hint}",
        subject=f"products/{phase.product_id}/phases/{phase.number}",
        metadata={"state": phase.state},
    )


async def _lock(m: Mutation, product_id: UUID, etag: str) -> LockedProduct:
    locked = await product_rows.lock(m, product_id)
    errors.check_etag(etag, locked.version, "product", product_id)
    return locked


class Upkeep:
    """Purges products whose time in the trash is over."""

    def __init__(self, db: Database, queue: JobQueue) -> None:
        self._db = db
        self._queue = queue

    async def run_forever(self) -> None:
        while tasks.not_cancelled():
            try:
                purged = await self.purge_expired()
            except (psycopg.Error, psycopg_pool.PoolTimeout) as error:
                _log.warning("purging products waits", error=type(error).__name__)
                purged = 0
            if purged < _EXPIRED_AT_ONCE:
                await tasks.pause(_EXPIRE_SECONDS)

    async def purge_expired(self) -> int:
        """Purges up to 100 products, each in a transaction of its own. Returns how many."""
        expired = await self._db.system_all(_SELECT_EXPIRED, {"most": _EXPIRED_AT_ONCE})
        return sum([await self._purge(each) for each in expired])

    async def _purge(self, expired: _Expired) -> bool:
        try:
            async with self._db.transaction(expired.owner) as m:
                await lock_phases(m, expired.id)
                # An undelete may have come first, or another worker.
                if not await m.first(_SELECT_IS_EXPIRED, {"id": expired.id}):
                    return False
                await purge(m, self._queue, expired.id)
        except DomainError:  # a worker still has a phase, or the product is gone
            return False
        return True
