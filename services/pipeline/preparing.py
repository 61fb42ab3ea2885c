"""Prepares a product: waits until its images are READY, acquires references to them at `assets`,
then starts phase 1.

The product's row is the intent. The job may run any number of times: its calls can be repeated, and
only one run writes the result.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog
from atelier.assets.v1 import asset_pb2

from services.pipeline import holding, log_rows, phase_rows, product_rows, progress, rules
from services.pipeline.product_rows import ProductImage
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
_SELECT_LATER = Statement(datetime, "SELECT now() + make_interval(secs => %(seconds)s)")

_MEND = (
    "AddProductImages with another picture, RemoveProductImages with this one, then retry phase 1"
)


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
        if images := await self._acquire_references(product_id):
            await self._start(product_id, images)
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

    async def _acquire_references(self, product_id: UUID) -> list[asset_pb2.Asset]:
        """Acquires references on the images. Returns them, or nothing if not all are READY yet."""
        images = await self._db.all(product_rows.SELECT_IMAGES, {"ids": [product_id]})
        ids = [image.asset_id for image in images]
        found = await self._peers.assets(map(str, ids))
        for image in images:
            asset = found.get(str(image.asset_id))
            if asset is None:
                text = (
                    f"there is no image {image.asset_id} that you may see; upload it and"
                    f" AddProductImages, RemoveProductImages {image.asset_id}, then retry phase 1"
                )
                raise ImagesUnusable("IMAGE_NOT_FOUND", text)
            _check(asset, image)
        if any(asset.state != asset_pb2.ASSET_STATE_READY for asset in found.values()):
            return []
        await holding.acquire(self._peers, product_id, ids)
        return list(found.values())

    async def _start(self, product_id: UUID, images: Sequence[asset_pb2.Asset]) -> None:
        async with self._db.transaction(auth.current().owner) as m:
            phase = await phase_rows.lock(m, product_id, 1)
            if await m.one(product_rows.SELECT_PREPARATION, {"id": product_id}) != "pending":
                return
            await product_rows.note_files(m, product_id, images)
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


def _check(asset: asset_pb2.Asset, image: ProductImage) -> None:
    if asset.state == asset_pb2.ASSET_STATE_REJECTED:
        place = f"{asset.id}, from {image.source_url}," if image.source_url else asset.id
        text = f"image {place} was rejected ({asset.rejection}): {asset.rejection_message}"
        raise ImagesUnusable("IMAGE_REJECTED", f"{text}; {_MEND}")
    # What is still being fetched has no type yet.
    if asset.mime_type and not asset.mime_type.startswith("image/"):
        text = f"{asset.id} is {asset.mime_type}, not a picture; {_MEND}"
        raise ImagesUnusable("IMAGE_NOT_A_PICTURE", text)
