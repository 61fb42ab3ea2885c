"""Brings the images of a product to `assets` before the product is there, and discards them if it
never is.

A row of product_drafts says that images are being brought. The transaction that creates the product
deletes it. Whatever else ends the call discards the images: the call itself, or, if its process
died, a worker some hours later.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import psycopg
import structlog
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc, import_pb2, import_pb2_grpc
from atelier.pipeline.v1 import product_pb2
from google.rpc import error_details_pb2

from shared.background.tasks import not_cancelled, pause
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Statement
from shared.rpc import auth, calls, errors
from shared.rpc.calls import Peers, owner_identity
from shared.rpc.errors import DomainError, Reason

# Longer than the slowest upload that is accepted takes: 16 images of 10 MB at 10 kB a second.
_LEFT_BEHIND = timedelta(hours=6)
_SWEEP_SECONDS = 600.0
_DISCARD_SECONDS = 60.0
_STATES = (
    asset_pb2.ASSET_STATE_PENDING,
    asset_pb2.ASSET_STATE_READY,
    asset_pb2.ASSET_STATE_REJECTED,
)
_NOT_OURS = frozenset({Reason.ERROR_REASON_NOT_FOUND, Reason.ERROR_REASON_IN_USE})
_log = structlog.get_logger("drafting")


@dataclass(slots=True)
class Draft:
    """A product that isn't there yet. `created` says that it is by now."""

    id: UUID
    created: bool = False


@dataclass(slots=True)
class _LeftBehind:
    id: UUID
    owner: str


_INSERT_DRAFT = Command("INSERT INTO product_drafts (id, owner) VALUES (%(id)s, %(owner)s)")
# Waits for a transaction that is about to delete the row.
_GIVE_UP = Statement(
    UUID, "UPDATE product_drafts SET given_up = true WHERE id = %(id)s RETURNING id"
)
_FINISH_DRAFT = Statement(
    UUID, "DELETE FROM product_drafts WHERE id = %(id)s AND NOT given_up RETURNING id"
)
_DELETE_DRAFT = Command("DELETE FROM product_drafts WHERE id = %(id)s")
_SELECT_LEFT_BEHIND = Statement(
    _LeftBehind,
    """
    SELECT id, owner FROM product_drafts WHERE created_at < now() - %(age)s::interval
    ORDER BY created_at LIMIT 100
""",
)


async def finish(m: Mutation, draft: Draft) -> None:
    """Ends a draft in the transaction that creates its product. Raises DEADLINE if it was given up
    meanwhile."""
    if await m.first(_FINISH_DRAFT, {"id": draft.id}) is None:
        text = "bringing the images took too long, and they were discarded; send them again"
        raise DomainError(Reason.ERROR_REASON_DEADLINE, text)


class Drafts:
    def __init__(self, db: Database, peers: Peers) -> None:
        self._db = db
        self._peers = peers
        self._discarding: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Draft]:
        """Yields a draft. Its images are discarded unless the block creates the product."""
        draft = Draft(new_id())
        identity = auth.current()
        async with self._db.transaction(identity.owner, identity.actor) as m:
            await m.run(_INSERT_DRAFT, {"id": draft.id, "owner": m.owner})
        try:
            yield draft
        except BaseException as error:
            discarded = self._discard_apart(draft.id)
            if isinstance(error, Exception):  # otherwise nobody waits for an answer any more
                await asyncio.shield(discarded)
            raise
        if not draft.created:
            await asyncio.shield(self._discard_apart(draft.id))

    async def import_images(
        self, draft: Draft, images: Sequence[product_pb2.NewImage]
    ) -> list[product_pb2.NewImage]:
        """Has `assets` fetch the images that are URLs, and doesn't wait for them. Returns all
        images with their assets. Raises INVALID_ARGUMENT for a URL that is never fetched."""
        imported = await asyncio.gather(
            *(self._imported(draft, number, image) for number, image in enumerate(images)),
            return_exceptions=True,  # none is under way when one is refused
        )
        made: list[product_pb2.NewImage] = []
        for each in imported:
            if isinstance(each, BaseException):
                raise each
            made.append(each)
        return made

    async def _imported(
        self, draft: Draft, number: int, image: product_pb2.NewImage
    ) -> product_pb2.NewImage:
        made = product_pb2.NewImage()
        made.CopyFrom(image)
        if image.image_url:
            request = import_pb2.ImportAssetRequest(
                url=image.image_url,
                kind=asset_pb2.ASSET_KIND_PRODUCT,
                scope=asset_pb2.AssetScope(product_id=str(draft.id)),
            )
            try:
                answer = await self._peers.stub(import_pb2_grpc.ImportServiceStub).ImportAsset(
                    request
                )
            except DomainError as error:
                raise _about_image(error, number) from None
            made.asset_id = answer.asset.id
        return made

    def _discard_apart(self, draft_id: UUID) -> asyncio.Task[None]:
        """Discards the images in a task of its own, because the call may be cancelled."""
        task = asyncio.create_task(self._discard_calmly(draft_id))
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)
        return task

    async def _discard_calmly(self, draft_id: UUID) -> None:
        calls.set_deadline(_DISCARD_SECONDS)  # that of the call may have passed
        try:
            await discard(self._db, self._peers, draft_id)
        except (psycopg.Error, DomainError) as error:
            _log.warning(
                "images of a draft stay for a worker",
                draft=str(draft_id),
                error=type(error).__name__,
            )

    async def close(self) -> None:
        await asyncio.gather(*self._discarding)


async def discard(db: Database, peers: Peers, draft_id: UUID) -> None:
    """Purges the images of a draft, and the draft, unless its product was created."""
    owner = auth.current().owner
    async with db.transaction(owner) as m:
        if await m.first(_GIVE_UP, {"id": draft_id}) is None:
            return
    assets = peers.stub(asset_pb2_grpc.AssetServiceStub)
    for state in _STATES:
        request = asset_pb2.ListAssetsRequest(product_id=str(draft_id), state=state)
        answer: asset_pb2.ListAssetsResponse = await assets.ListAssets(request)
        for asset in answer.assets:  # 16 at most
            try:
                await assets.PurgeAsset(asset_pb2.PurgeAssetRequest(asset_id=asset.id))
            except DomainError as error:  # in use: somebody has taken it for something else
                if error.reason not in _NOT_OURS:
                    raise
    async with db.transaction(owner) as m:
        await m.run(_DELETE_DRAFT, {"id": draft_id})


async def sweep(db: Database, peers: Peers) -> None:
    """Discards drafts that stayed behind. Runs until cancelled; several processes may run it."""
    while not_cancelled():
        try:
            left = await db.system_all(_SELECT_LEFT_BEHIND, {"age": _LEFT_BEHIND})
        except psycopg.Error as error:
            _log.warning("drafts wait to be discarded", error=type(error).__name__)
            left = []
        for draft in left:
            auth.enter(owner_identity(draft.owner))
            try:
                await discard(db, peers, draft.id)
            except (psycopg.Error, DomainError) as error:  # the others don't wait for it
                _log.warning(
                    "a draft waits to be discarded",
                    draft=str(draft.id),
                    error=type(error).__name__,
                )
        await pause(_SWEEP_SECONDS)


def _about_image(error: DomainError, number: int) -> DomainError:
    """Returns the refusal of an import, with the field that the caller knows."""
    for detail in error.details:
        if isinstance(detail, error_details_pb2.BadRequest):
            return errors.invalid_fields(
                [
                    (f"images[{number}].image_url", violation.description)
                    for violation in detail.field_violations
                ]
            )
    return error
