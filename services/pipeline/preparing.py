"""Preparing a product: wait until its images are READY, hold them at `assets`, then start phase 1.

The product's row is the intent. The job may run any number of times: its calls can be repeated, and
only one run gets to write the end.
"""

import asyncio
from typing import Any
from uuid import UUID

import structlog
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc

from services.pipeline import log_rows, progress, rules
from shared.background.jobs import TryAgain
from shared.database.db import Database
from shared.rpc import auth
from shared.rpc.calls import Peers, owner_identity
from shared.rpc.errors import DomainError, Reason

_log = structlog.get_logger("preparing")

_PRODUCT = """
    SELECT owner, preparation, extract(epoch FROM now() - preparing_since)::float8 AS waited
        FROM products WHERE id = %s
"""


class ImagesUnusable(Exception):
    """The product can't go on with these images. `error_class` is one word."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class Preparer:
    def __init__(self, db: Database, flows: progress.Progress, peers: Peers) -> None:
        self._db = db
        self._flows = flows
        self._peers = peers

    async def run(self, product_id: str) -> None:
        found = await self._db.system_rows(_PRODUCT, (UUID(product_id),))
        if not found or found[0].preparation != "pending":
            return
        auth.enter(owner_identity(found[0].owner))
        try:
            if not await self._hold(UUID(product_id)):
                if found[0].waited > rules.IMAGES_WAIT_SECONDS:
                    text = (
                        "not all images were READY within a day; confirm their uploads, then retry"
                        " phase 1"
                    )
                    raise ImagesUnusable("IMAGES_NOT_READY", text)
                raise await self._later(rules.images_wait(found[0].waited))
            await self._start(UUID(product_id))
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

    async def _later(self, seconds: float) -> TryAgain:
        rows = await self._db.system_rows(
            "SELECT now() + make_interval(secs => %s) AS at", (seconds,)
        )
        return TryAgain(rows[0].at)

    async def _hold(self, product_id: UUID) -> bool:
        """Acquires references on the images. False: not all are READY yet."""
        rows = await self._db.rows(
            "SELECT asset_id FROM product_images WHERE product_id = %s", (product_id,)
        )
        ids = [str(row.asset_id) for row in rows]
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
            phase = await progress.lock_phase(m, product_id, 1)
            product = await m.one("SELECT preparation FROM products WHERE id = %s", (product_id,))
            if product.preparation != "pending":
                return
            await log_rows.add(m, product_id, 0, "images_ready", "all images are READY")
            if phase.state == "pending":  # else somebody stopped it meanwhile
                await self._flows.start(m, phase)
            await progress.settle(m, product_id, preparation="done")

    async def _fail(self, product_id: UUID, problem: ImagesUnusable) -> None:
        async with self._db.transaction(auth.current().owner) as m:
            await progress.lock_phase(m, product_id, 1)
            product = await m.one("SELECT preparation FROM products WHERE id = %s", (product_id,))
            if product.preparation != "pending":
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
            said: dict[str, Any] = {
                "error_class": problem.error_class,
                "error_message": str(problem),
            }
            await progress.settle(m, product_id, preparation="failed", **said)


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
