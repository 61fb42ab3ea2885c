"""Makes the asset of arrived bytes READY or REJECTED, by the same checks for every way of upload.

No transaction is open meanwhile: the bytes are copied to a key that nobody has a URL to write to,
that copy is verified, then one transaction settles the asset. A crash leaves the asset PENDING and
perhaps a copy; the call can be repeated.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import psycopg
import psycopg_pool
from atelier.assets.v1.resumable_pb2 import (
    CompleteResumableUploadRequest,
    CompleteResumableUploadResponse,
)
from atelier.assets.v1.upload_pb2 import (
    ConfirmUploadRequest,
    ConfirmUploadResponse,
    UploadDeclaration,
    UploadHead,
)
from psycopg.types.json import Jsonb

from services.assets.accounting.enforcing import Quotas
from services.assets.core import asset_rows, choose_primary, rules
from services.assets.core.asset_rows import (
    ASSETS,
    SELECT_ASSET,
    Asset,
    LockedAsset,
    scope_of,
)
from services.assets.core.usage_log import UsageLog
from services.assets.core.visibility import belongs, content_name, name_by_content
from services.assets.uploads import credentials, declarations
from services.assets.uploads.credentials import CredentialsReader
from services.assets.uploads.declarations import Declared
from services.assets.variants import rendition_rows
from services.assets.variants.presets import Presets
from shared import imaging
from shared.background import jobs, waiting
from shared.background.turns import Turns
from shared.database import states
from shared.database.db import Database, Mutation, forget_answer
from shared.database.ids import new_id
from shared.database.rows import Statement
from shared.imaging import ImageRejected, ImagingPool, Limits
from shared.rpc import auth, errors
from shared.rpc.errors import DomainError, Reason
from shared.storage import Check, Stat, Storage, StorageError

# More calls at once would wait for a child process until their deadlines, in vain. One owner may
# have half of the places.
_MOST_AT_ONCE = 32
_MOST_WAITING = 2048  # calls, of which an owner alone may have half

# Calls that settle an asset, and the answers that are stored for them.
Settling = ConfirmUploadRequest | CompleteResumableUploadRequest | UploadHead
A = TypeVar("A", ConfirmUploadResponse, CompleteResumableUploadResponse)

_LOCK_KEY = Statement(str, "SELECT storage_key FROM assets WHERE id = %(id)s FOR UPDATE")


@dataclass(frozen=True)
class Refused:
    """Why the bytes that were sent are not kept."""

    reason: str
    message: str


@dataclass(frozen=True)
class Verified:
    """The findings about accepted bytes. `key`: the storage key of the verified copy."""

    key: str
    size: int
    sha256: str
    facts: imaging.Facts
    credentials: imaging.Credentials | None


class _NotKept(Exception):
    """A check examined the bytes, and they must not be stored."""

    def __init__(self, why: Refused) -> None:
        super().__init__(why)
        self.why = why


Store = Callable[[str, Check], Awaitable[object]]
"""(key, check): stores bytes at the key, unless the check raises."""

HASH_DIFFERS = Refused("HASH_MISMATCH", "the bytes don't have the declared sha256; upload again")


def size_differs(arrived: int, declared: int) -> Refused:
    if arrived == 0:
        return Refused("EMPTY", "the file is empty; upload a picture or a PDF")
    return Refused(
        "SIZE_MISMATCH", f"{arrived} bytes arrived, {declared} were declared; upload again"
    )


def rejected(asset: Asset) -> DomainError:
    """Returns the error for a caller whose upload was rejected."""
    return errors.precondition(
        asset.rejection_message,
        subject=f"assets/{asset.id}",
        reason=Reason.ERROR_REASON_UPLOAD_REJECTED,
        metadata={"rejection": asset.rejection, "asset_id": str(asset.id)},
    )


class Verifier:
    """Verifies bytes while they are stored, and settles assets by what it finds."""

    def __init__(
        self,
        db: Database,
        storage: Storage,
        queue: jobs.JobQueue,
        pool: ImagingPool,
        presets: Presets,
        limits: Limits,
        reader: CredentialsReader,
        usage_log: UsageLog,
        quotas: Quotas,
        public_kinds: frozenset[str],
    ) -> None:
        self._db = db
        self._storage = storage
        self._queue = queue
        self._pool = pool
        self._presets = presets
        self.limits = limits
        self._credentials = reader
        self._usage = usage_log
        self.quotas = quotas
        self.public_kinds = public_kinds
        self._places = Turns(_MOST_AT_ONCE, leave_room=True)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Takes a place among the calls that verify. Waits for one for half of the call's deadline,
        then raises OVERLOADED. An upload in a stream takes none: its bytes may come slowly."""
        share = auth.current_share()
        async with AsyncExitStack() as held:
            try:
                if self._places.is_full(share, _MOST_WAITING):
                    raise TimeoutError
                async with asyncio.timeout(waiting.patience() / 2):
                    await held.enter_async_context(self._places.slot(share))
            except TimeoutError:
                text = (
                    "the server is verifying as many files as it can; nothing was changed, try"
                    " again"
                )
                raise errors.retry_later(Reason.ERROR_REASON_OVERLOADED, text, 1) from None
            yield

    def declared(self, declaration: UploadDeclaration, path: str) -> Declared:
        return declarations.declared(declaration, path, self.limits, self.public_kinds)

    async def asset(self, asset_id: UUID) -> Asset:
        """Returns the current row. Raises NOT_FOUND if the asset was purged meanwhile, or since the
        request was first answered."""
        row = await self._db.first(SELECT_ASSET, {"id": asset_id})
        if row is None:
            raise errors.not_found("asset", asset_id)
        return row

    async def sent(self, source: str, asset: Asset, declared_sha256: str) -> Verified | Refused:
        """Copies the object at `source` to a key that no URL was ever signed for, and verifies the
        copy.

        Raises ObjectNotFound if nothing is there.
        """
        stat = await self._storage.stat(source)
        if stat.size != asset.size_bytes:
            return size_differs(stat.size, asset.size_bytes)

        def copy(key: str, check: Check) -> Awaitable[Stat]:
            return self._storage.copy(source, key, content_type=asset.mime_type, check=check)

        return await self.kept(asset, declared_sha256, copy)

    async def kept(self, asset: Asset, declared_sha256: str, store: Store) -> Verified | Refused:
        """Verifies the bytes that `store` writes to a key that no URL was ever signed for, while it
        does. Refused bytes aren't stored."""
        key = key_of(asset)
        seen: list[Verified] = []

        async def check(path: Path, sha256: str) -> None:
            found = await self._received(key, asset, path, sha256, declared_sha256)
            if isinstance(found, Refused):
                raise _NotKept(found)
            seen.append(found)

        try:
            await store(key, check)
        except _NotKept as refusal:
            return refusal.why
        except BaseException:
            # Also on cancellation: a caller may come again and again, with a copy each time.
            await asyncio.shield(self._storage.delete([key]))
            raise
        return await self._named(asset, seen[0])

    async def _named(self, asset: Asset, found: Verified) -> Verified:
        """Moves a public asset's bytes to a key with their hash, because the key is its URL. The
        hash is known only once the bytes are stored at another key."""
        if not asset.public:
            return found
        key = await name_by_content(self._storage, found.key, found.sha256, found.facts.mime_type)
        return replace(found, key=key)

    async def _received(
        self, key: str, asset: Asset, path: Path, sha256: str, declared_sha256: str
    ) -> Verified | Refused:
        """Compares the bytes in a local file, which will be stored at `key`, with the declaration,
        and examines them."""
        size = path.stat().st_size
        if size != asset.size_bytes:
            return size_differs(size, asset.size_bytes)
        if declared_sha256 not in ("", sha256):
            return HASH_DIFFERS
        return await self.contents(path, asset.mime_type, key, size, sha256)

    async def contents(
        self, path: Path, declared_type: str, key: str, size: int, sha256: str
    ) -> Verified | Refused:
        """Examines the bytes in a local file, which will be stored at `key`. With `declared_type`
        '' any accepted type will do."""
        try:
            facts = await self._pool.run(imaging.inspect, path, declared_type, self.limits)
            return Verified(key, size, sha256, facts, await self._credentials.read(path, facts))
        except ImageRejected as refusal:
            return Refused(str(refusal.reason), refusal.message)

    async def settle(
        self,
        request: Settling,
        asset: Asset,
        found: Verified | Refused,
        answer: type[A] | None = None,
    ) -> Asset:
        """Makes the asset READY or REJECTED, once, and returns its row. The second of two calls
        finds what the first did. `answer`: the message type, with an `asset`, that is stored for
        the request if the asset is accepted; a refusal is never stored, because it must not be the
        answer to a repeat."""
        try:
            if isinstance(found, Verified) and answer:
                await self._answer(request, asset, found, answer)
            else:
                async with self._db.transaction(auth.current().owner, auth.current().actor) as m:
                    await self._settle(m, request, asset, found)
        except DomainError:
            if isinstance(found, Verified):
                await self._storage.delete([found.key])
            raise
        except BaseException:  # call cancelled or database lost: the row may point at the copy
            if isinstance(found, Verified):
                await asyncio.shield(self._unless_shown(asset, found.key))
            raise
        row = await self.asset(asset.id)
        if isinstance(found, Verified) and row.storage_key != found.key:
            await self._storage.delete([found.key])  # another call was first, with its own copy
        return row

    async def _answer(
        self, request: Settling, asset: Asset, found: Verified, answer: type[A]
    ) -> None:
        """Accepts the asset, and stores the answer of the request."""

        async def work(m: Mutation) -> A:
            row = await self._settle(m, request, asset, found)
            return answer(asset=asset_rows.to_proto(row))

        await self._db.mutate(request, answer, work)

    async def _settle(
        self, m: Mutation, request: Settling, asset: Asset, found: Verified | Refused
    ) -> LockedAsset:
        if asset.product_id:
            await choose_primary.lock_product(m, asset.product_id)
        now = await asset_rows.lock(m, asset.id)
        if isinstance(found, Verified):
            return await self.accept(m, now, found)
        row = await reject(m, now, found)
        await forget_answer(m, request)
        return row

    async def _unless_shown(self, asset: Asset, key: str) -> None:
        """Removes the copy unless the asset's row points at it, once no transaction has the row
        locked. If the row can't be read now, the reconciler removes the copy later."""
        with suppress(StorageError, psycopg.Error, psycopg_pool.PoolTimeout):
            async with self._db.transaction(asset.owner) as m:
                shown = await m.first(_LOCK_KEY, {"id": asset.id})
            if shown != key:
                await self._storage.delete([key])

    async def accept(self, m: Mutation, asset: LockedAsset, found: Verified) -> LockedAsset:
        """Makes a PENDING asset READY. Returns its current row, changed or not. Raises
        FAILED_PRECONDITION if the asset was deleted, ABORTED if its visibility changed, and
        QUOTA_EXCEEDED."""
        if asset.state != "pending":
            return asset
        if asset.deleted_at:
            raise errors.precondition(asset_rows.unusable(asset), subject=f"assets/{asset.id}")
        if not belongs(found.key, asset):
            text = "the asset's visibility was changed while its bytes were verified; try again"
            raise errors.retry_later(Reason.ERROR_REASON_REQUEST_IN_PROGRESS, text, 0)
        await self.quotas.settle(m, asset, found.size)
        row = await _make_ready(m, asset, found)
        await credentials.keep(m, row.id, found.credentials)
        if choose_primary.may_lead(row):
            row = await choose_primary.make_primary(m, row, only_first=True)
        if found.facts.kind == "image":
            eager = self._presets.eager[row.kind]
            await rendition_rows.ask(m, self._queue, row, eager, priority=jobs.FRESH)
        await asset_rows.publish(m, row)
        await self._usage.write(m, [row], "upload")
        return row


async def _make_ready(m: Mutation, asset: LockedAsset, found: Verified) -> LockedAsset:
    """Writes the findings to a PENDING asset's row, and READY. Returns the new row."""
    facts = found.facts
    source_type, short = credentials.kept(asset, facts, found.credentials)
    row = await states.advance(
        m,
        rules.ASSET_STATES,
        ASSETS,
        asset.id,
        "ready",
        storage_key=found.key,
        size_bytes=found.size,
        sha256=found.sha256,
        mime_type=facts.mime_type,
        width=facts.width or 0,
        height=facts.height or 0,
        facts=stored_facts(facts),
        source_type=source_type,
        credentials=short,
    )
    assert row is not None  # it is locked, and was PENDING
    return row


async def reject(m: Mutation, asset: LockedAsset, refused: Refused) -> LockedAsset:
    """Makes a PENDING asset REJECTED. Returns its current row, changed or not."""
    row = await states.advance(
        m,
        rules.ASSET_STATES,
        ASSETS,
        asset.id,
        "rejected",
        rejection=refused.reason,
        rejection_message=refused.message,
    )
    if row is None:
        return asset
    await asset_rows.publish(m, row)
    return row


def key_of(asset: Asset, sha256: str = "") -> str:
    """Returns a new key for the asset's bytes that fits its visibility, with their hash in it if
    that is known."""
    unique = content_name(sha256) if sha256 else str(new_id())
    return rules.object_key(
        asset.owner, scope_of(asset), str(asset.id), unique, folder="original", public=asset.public
    )


def stored_facts(facts: imaging.Facts) -> Jsonb | None:
    if facts.measures is None:
        return None
    measured = asdict(facts.measures)
    colours = [[colour["hex"], round(colour["share"], 4)] for colour in measured["colours"]]
    names = (
        "placeholder",
        "focal_x",
        "focal_y",
        "sharpness",
        "exposure",
        "clipped_shadows",
        "clipped_highlights",
    )
    structure = {
        "frames": facts.pages,
        "has_alpha": facts.has_alpha,
        "has_location": facts.has_location,
    }
    return Jsonb({"colours": colours, **structure, **{name: measured[name] for name in names}})
