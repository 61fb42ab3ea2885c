"""Keeps the references at `assets` those of the datasets: to every logo and image that a dataset
has, and to none that left it.

A call acquires the references of what it added right after its commit. The job that it enqueued in
its transaction does so again, and releases what left: whatever a crash between the two left undone.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg
import psycopg_pool
import structlog

from services.conversions import assets, dataset_rows, job_moves
from services.conversions.dataset_rows import HOLD_TASK, SELECT_DATASET
from shared.background import tasks
from shared.background.jobs import JobQueue, TryAgain
from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement
from shared.rpc import auth, calls
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError

_PER_CALL = 100  # assets that AcquireReferences takes
_SETTLED_SECONDS = assets.SETTLED_AFTER.total_seconds()
_EXPIRE_SECONDS = 60.0
_EXPIRED_AT_ONCE = 100
_log = structlog.get_logger("holding")


@dataclass(slots=True)
class _Due:
    """The owner of a dataset whose references are to be settled, and when to try again."""

    owner: str
    again_at: datetime


@dataclass(slots=True)
class _Release:
    """A picture that left. Its release is repeated until `settles_at`."""

    id: UUID
    asset_id: UUID
    settles_at: datetime
    now: datetime


@dataclass(slots=True)
class _Expired:
    id: UUID
    owner: str
    now: datetime


_SELECT_DUE = Statement(
    _Due,
    """
    SELECT owner, now() + make_interval(secs => %(seconds)s) AS again_at FROM (
        SELECT owner FROM datasets WHERE id = %(id)s
        UNION SELECT owner FROM dataset_releases WHERE dataset_id = %(id)s) AS named
    """,
)
_SELECT_RELEASES = Statement(
    _Release,
    """
    SELECT id, asset_id, created_at + make_interval(secs => %(seconds)s) AS settles_at, now() AS now
    FROM dataset_releases WHERE dataset_id = %(id)s
    """,
)
_DELETE_RELEASES = Command("""
    DELETE FROM dataset_releases WHERE dataset_id = %(dataset_id)s AND id = ANY(%(ids)s)
""")
_SELECT_EXPIRED = Statement(
    _Expired,
    """
    SELECT id, owner, now() AS now FROM datasets WHERE expires_at < now()
    ORDER BY expires_at LIMIT %(most)s
    """,
)


async def enqueue(m: Mutation, queue: JobQueue, dataset_id: UUID) -> None:
    await queue.enqueue(m, HOLD_TASK, job_moves.RELEASE_QUEUE, dataset_id)


async def acquire_now(peers: Peers, dataset_id: UUID, asset_ids: Sequence[UUID]) -> None:
    """Acquires references to pictures that were just added. If that fails, the job does it."""
    with suppress(DomainError):
        await _acquire(peers, dataset_id, asset_ids)


class Holder:
    """The worker's side."""

    def __init__(self, db: Database, queue: JobQueue, peers: Peers) -> None:
        self._db = db
        self._queue = queue
        self._peers = peers
        queue.task(HOLD_TASK, job_moves.RELEASE_QUEUE, self.settle)

    async def settle(self, dataset_id: str) -> None:
        """Makes the references those of the dataset's row, or releases all if it is purged."""
        row_id = UUID(dataset_id)
        named = {"id": row_id, "seconds": assets.RETRY_AFTER.total_seconds()}
        for due in await self._db.system_all(_SELECT_DUE, named):
            auth.enter(calls.owner_identity(due.owner))
            try:
                await self._settle(row_id)
            except DomainError as refusal:
                _log.warning("a dataset's pictures wait", row=dataset_id, reason=refusal.text)
                raise TryAgain(due.again_at) from None

    async def _settle(self, dataset_id: UUID) -> None:
        named = {"id": dataset_id, "seconds": _SETTLED_SECONDS}
        left = await self._db.all(_SELECT_RELEASES, named)
        gone = {each.asset_id for each in left} - set(await self._pictures(dataset_id))
        if gone:
            await assets.release(self._peers, dataset_rows.holder(dataset_id), sorted(gone))
        # The row is read again: a picture that came back while its reference was released needs
        # another one.
        pictures = await self._pictures(dataset_id)
        await _acquire(self._peers, dataset_id, await self._usable(pictures))
        settled = [each.id for each in left if each.settles_at <= each.now]
        async with self._db.transaction(auth.current().owner) as m:
            await m.run(_DELETE_RELEASES, {"dataset_id": dataset_id, "ids": settled})
        if waiting := [each.settles_at for each in left if each.settles_at > each.now]:
            raise TryAgain(max(waiting))

    async def _pictures(self, dataset_id: UUID) -> list[UUID]:
        row = await self._db.first(SELECT_DATASET, {"id": dataset_id})
        return row.pictures if row else []

    async def _usable(self, asset_ids: Sequence[UUID]) -> list[UUID]:
        """Returns the pictures without those that were deleted by force."""
        found = await self._peers.assets(map(str, asset_ids))
        return [each for each in asset_ids if assets.is_there(found.get(str(each)))]

    async def purge_expired_forever(self) -> None:
        while tasks.not_cancelled():
            try:
                purged = await self.purge_expired()
            except (psycopg.Error, psycopg_pool.PoolTimeout) as error:
                _log.warning("purging datasets waits", error=type(error).__name__)
                purged = 0
            if purged < _EXPIRED_AT_ONCE:
                await tasks.pause(_EXPIRE_SECONDS)

    async def purge_expired(self) -> int:
        """Purges datasets whose time in the trash is over, up to 100. Returns how many it saw."""
        expired = await self._db.system_all(_SELECT_EXPIRED, {"most": _EXPIRED_AT_ONCE})
        for each in expired:
            async with self._db.transaction(each.owner) as m:
                # An undelete may have come first, or another worker.
                with suppress(DomainError):
                    row = await dataset_rows.lock(m, each.id)
                    if row.expires_at and row.expires_at < each.now:
                        await dataset_rows.purge(m, row)
                        await enqueue(m, self._queue, row.id)
        return len(expired)


async def _acquire(peers: Peers, dataset_id: UUID, asset_ids: Sequence[UUID]) -> None:
    for start in range(0, len(asset_ids), _PER_CALL):
        part = asset_ids[start : start + _PER_CALL]
        await assets.acquire(peers, dataset_rows.holder(dataset_id), part)
