"""Prepares a product: waits until its images are READY, acquires references to them at `assets`,
then starts phase 1.

The product's row is the intent. The job may run any number of times: its calls can be repeated, and
only one run writes the result.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc

from services.pipeline import log_rows, phase_rows, product_rows, progress, rules
from shared.background.jobs import TryAgain
from shared.database.db import Database
from shared.database.rows import Statement
from shared.rpc import auth
from shared.rpc.calls import Peers, owner_identity
from shared.rpc.errors import DomainError, Reason

_log = structlog.get_logger("preparing")


@dataclass(slots=True)
class _Waiting:
    """A product that may wait for its images."""

    owner: str
    preparation: str
    waited: float  # seconds


_SELECT_WAITING = Statement(
    _Waiting,
    """
    SELECT owner, preparation, extract(epoch FROM now() - preparing_since)::float8 AS waited
    FROM products WHERE id = %(id)s
""",
)
_SELECT_ASSET_IDS = Statement(UUID, "SELECT asset_id FROM product_images WHERE product_id = %(id)s")
_SELECT_LATER = Statement(datetime, "SELECT now() + make_interval(secs => %(seconds)s)")


class ImagesUnusable(Exception):
    """Raised if the product can't continue with these images. `error_class` is one word."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class Preparer:
    def __init__(self, db: Database, flows: progress.Progress, peers: Peers) -> None:
        self._db = db
        self._flows = flows
        self._peers = peers

    async def run(self, product_id: str) -> None:
        found = await self._db.system_all(_SELECT_WAITING, {"id": UUID(product_id)})
        if not found or found[0].preparation != "pending":
            return
        auth.enter(owner_identity(found[0].owner))
        try:
            await self._prepare(UUID(product_id), found[0].waited)
        except ImagesUnusable as problem:
            await self._fail(UUID(product_id), problem)
        except TryAgain:
            raise
        except DomainError as error:
            _log.warning(
                "assets can't be asked", product=product_id, reason=Reason.Name(error.reason)
            )
            raise await self._later(rules.images_wait(found[0].waited)) from None
        except Exception:
            _log.exception("preparing failed unexpectedly", product=product_id)
            await asyncio.sleep(1)
            raise TryAgain from None

    async def _prepare(self, product_id: UUID, waited: float) -> None:
        if await self._acquire_references(product_id):
            await self._start(product_id)
            return
        if waited > rules.IMAGES_WAIT_SECONDS:
            text = (
                "not all images were READY within a day; confirm their uploads, then retry phase 1"
            )
            raise ImagesUnusable("IMAGES_NOT_READY", text)
        raise await self._later(rules.images_wait(waited))

    async def _later(self, seconds: float) -> TryAgain:
        [at] = await self._db.system_all(_SELECT_LATER, {"seconds": seconds})
        return TryAgain(at)

    async def _acquire_references(self, product_id: UUID) -> bool:
        """Acquires references on the images. Returns False if not all are READY yet."""
        ids = list(map(str, await self._db.all(_SELECT_ASSET_IDS, {"id": product_id})))
        found = await self._peers.assets(ids)
        for asset_id in ids:
            if asset_id not in found:
                text = f"there is no image {asset_id} that you may see; upload it first"
                raise ImagesUnusable("IMAGE_NOT_FOUND", text)
            _check(found[asset_id])
        if any(asset.state != asset_pb2.ASSET_STATE_READY for asset in found.values()):
            return False
        holder = f"pipeline/products/{product_id}"
        assets = self._peers.stub(asset_pb2_grpc.AssetServiceStub)
        await assets.AcquireReferences(
            asset_pb2.AcquireReferencesRequest(
                request_id=f"{product_id}/hold", holder=holder, asset_ids=ids
            )
        )
        return True

    async def _start(self, product_id: UUID) -> None:
        async with self._db.transaction(auth.current().owner) as m:
            phase = await phase_rows.lock(m, product_id, 1)
            if await m.one(product_rows.SELECT_PREPARATION, {"id": product_id}) != "pending":
                return
            await log_rows.add(m, product_id, 0, "images_ready", "all images are READY")
            if phase.state == "pending":  # otherwise somebody stopped it meanwhile
                await self._flows.start(m, phase)
            await progress.settle(m, product_id, preparation="done")

    async def _fail(self, product_id: UUID, problem: ImagesUnusable) -> None:
        async with self._db.transaction(auth.current().owner) as m:
            await phase_rows.lock(m, product_id, 1)
            if await m.one(product_rows.SELECT_PREPARATION, {"id": product_id}) != "pending":
                return
            await log_rows.add(
                m,
                product_id,
                0,
                "images_unusable",
                str(problem),
                level="error",
                details={"error_class": problem.error_class},
            )
            about = {"error_class": problem.error_class, "error_message": str(problem)}
            await progress.settle(m, product_id, preparation="failed", **about)


def _check(asset: asset_pb2.Asset) -> None:
    if asset.state == asset_pb2.ASSET_STATE_REJECTED:
        text = f"image {asset.id} was rejected ({asset.rejection}): {asset.rejection_message}"
        raise ImagesUnusable(
            "IMAGE_REJECTED", f"{text}; create the product again with another picture"
        )
    if not asset.mime_type.startswith("image/"):
        text = (
            f"{asset.id} is {asset.mime_type}, not a picture; create the product again with"
            " pictures"
        )
        raise ImagesUnusable("IMAGE_NOT_A_PICTURE", text)
