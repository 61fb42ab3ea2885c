"""Keeps the references at `assets` those of the products: to every image that a product has, and to
none that left it.

Preparing a product acquires references, and so does a call that adds images, right after its
commit. The job that a change of images enqueues in its transaction does so again, and releases what
left: whatever a crash between the two left undone.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc

from services.pipeline.product_rows import SELECT_ASSET_IDS
from shared.background.jobs import JobQueue, TryAgain
from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement
from shared.rpc import auth, calls
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError

_TASK = "hold_images"
_QUEUE = "references"
_CALL_SECONDS = 30.0  # a call about references takes effect within this time, or never
# A reference that was being acquired when its image left may take effect after the release, so the
# release is repeated after this time.
_SETTLED_AFTER = timedelta(seconds=2 * _CALL_SECONDS)
_RETRY_AFTER = timedelta(seconds=10)  # if assets refuses, or is away
_log = structlog.get_logger("holding")


@dataclass(slots=True)
class _Due:
    """The owner of a product whose references are to be settled, and when to try again."""

    owner: str
    again_at: datetime


@dataclass(slots=True)
class _Release:
    """An image that left. Its release is repeated until `settles_at`."""

    id: UUID
    asset_id: UUID
    settles_at: datetime
    now: datetime


_NOTE_RELEASES = Command("""
    INSERT INTO product_releases (id, owner, product_id, asset_id)
    SELECT gen_random_uuid(), %(owner)s, %(id)s, unnest(%(asset_ids)s::uuid[])
""")
_SELECT_DUE = Statement(
    _Due,
    """
    SELECT owner, now() + %(pause)s::interval AS again_at FROM (
        SELECT owner FROM products WHERE id = %(id)s
        UNION SELECT owner FROM product_releases WHERE product_id = %(id)s) AS named
    """,
)
_SELECT_RELEASES = Statement(
    _Release,
    """
    SELECT id, asset_id, created_at + %(settled)s::interval AS settles_at, now() AS now
    FROM product_releases WHERE product_id = %(id)s
    """,
)
_DELETE_RELEASES = Command("""
    DELETE FROM product_releases WHERE product_id = %(product_id)s AND id = ANY(%(ids)s)
""")


def holder(product_id: UUID) -> str:
    """Returns the holder of the references to a product's images."""
    return f"pipeline/products/{product_id}"


async def note_change(
    m: Mutation, queue: JobQueue, product_id: UUID, left: Sequence[UUID] = ()
) -> None:
    """Enqueues the job that settles the references of a product whose images change. `left`: the
    images that it no longer has."""
    if left:
        values = {"owner": m.owner, "id": product_id, "asset_ids": list(left)}
        await m.run(_NOTE_RELEASES, values)
    await queue.enqueue(m, _TASK, _QUEUE, product_id)


async def acquire(peers: Peers, product_id: UUID, asset_ids: Sequence[UUID]) -> None:
    """Acquires references of a product to READY images, which keep them from being deleted.

    The request has no id: a repeat changes nothing, and a stored answer would hide that references
    were released meanwhile.
    """
    if asset_ids:
        request = asset_pb2.AcquireReferencesRequest(
            holder=holder(product_id), asset_ids=list(map(str, asset_ids))
        )
        stub = peers.stub(asset_pb2_grpc.AssetServiceStub)
        await stub.AcquireReferences(request, timeout=_CALL_SECONDS)


async def acquire_now(peers: Peers, product_id: UUID, asset_ids: Sequence[UUID]) -> None:
    """Acquires references to images that were just added. If that fails, the job does it."""
    with suppress(DomainError):
        await acquire(peers, product_id, asset_ids)


class Holder:
    """The worker's side."""

    def __init__(self, db: Database, queue: JobQueue, peers: Peers) -> None:
        self._db = db
        self._peers = peers
        queue.task(_TASK, _QUEUE, self.settle)

    async def settle(self, product_id: str) -> None:
        """Makes the references those of the product's images, or releases all if it is purged."""
        row_id = UUID(product_id)
        named = {"id": row_id, "pause": _RETRY_AFTER}
        for due in await self._db.system_all(_SELECT_DUE, named):
            auth.enter(calls.owner_identity(due.owner))
            try:
                await self._settle(row_id)
            except DomainError as refusal:
                _log.warning("a product's images wait", row=product_id, reason=refusal.text)
                raise TryAgain(due.again_at) from None

    async def _settle(self, product_id: UUID) -> None:
        left = await self._db.all(_SELECT_RELEASES, {"id": product_id, "settled": _SETTLED_AFTER})
        there = await self._db.all(SELECT_ASSET_IDS, {"id": product_id})
        if gone := {each.asset_id for each in left} - set(there):
            await self._release(product_id, sorted(gone))
        # The images are read again: one that came back while its reference was released needs
        # another one.
        there = await self._db.all(SELECT_ASSET_IDS, {"id": product_id})
        await acquire(self._peers, product_id, await self._ready(there))
        settled = [each.id for each in left if each.settles_at <= each.now]
        async with self._db.transaction(auth.current().owner) as m:
            await m.run(_DELETE_RELEASES, {"product_id": product_id, "ids": settled})
        if waiting := [each.settles_at for each in left if each.settles_at > each.now]:
            raise TryAgain(max(waiting))

    async def _release(self, product_id: UUID, asset_ids: Sequence[UUID]) -> None:
        request = asset_pb2.ReleaseReferencesRequest(
            holder=holder(product_id), asset_ids=list(map(str, asset_ids))
        )
        stub = self._peers.stub(asset_pb2_grpc.AssetServiceStub)
        await stub.ReleaseReferences(request, timeout=_CALL_SECONDS)

    async def _ready(self, asset_ids: Sequence[UUID]) -> list[UUID]:
        """Returns the images that are READY, without those that were deleted by force."""
        found = await self._peers.assets(map(str, asset_ids))
        ready = {
            asset_id
            for asset_id, asset in found.items()
            if asset.state == asset_pb2.ASSET_STATE_READY and not asset.HasField("delete_time")
        }
        return [each for each in asset_ids if str(each) in ready]
