"""Moves an asset's objects when it becomes public or private: the bytes are copied first, the rows
switched second, and only then the old objects removed."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import psycopg
import psycopg_pool

from services.assets.core import rules
from services.assets.core.asset_rows import Asset, scope_of
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Statement
from shared.rpc import auth, errors
from shared.storage import ObjectNotFound, Storage, StorageError


@dataclass(slots=True)
class _Object:
    """An object that the row of an asset, or of one of its variants, points at."""

    id: UUID
    storage_key: str
    mime_type: str
    sha256: str
    variant: bool


@dataclass(slots=True)
class _Scope:
    session_id: str
    room_id: str
    product_id: str
    dataset_id: str


_SELECT_OBJECTS = Statement(
    _Object,
    """
    SELECT id, storage_key, mime_type, sha256, false AS variant FROM assets
    WHERE id = %(id)s AND owner = %(owner)s
    UNION ALL
    SELECT id, storage_key, mime_type, sha256, true FROM variants
    WHERE asset_id = %(id)s AND owner = %(owner)s
    """,
)
_SELECT_SCOPE = Statement(
    _Scope,
    """
    SELECT session_id, room_id, product_id, dataset_id FROM assets
    WHERE id = %(id)s AND owner = %(owner)s
    """,
)
# A transaction that may still be switching the rows has this lock until it commits or rolls back.
_LOCK_ASSET = Statement(
    UUID, "SELECT id FROM assets WHERE id = %(id)s AND owner = %(owner)s FOR UPDATE"
)
_SWITCH_VARIANT = Command("UPDATE variants SET storage_key = %(key)s WHERE id = %(id)s")


class Move:
    """Moves one asset's objects for one change of its visibility. Until `copy` is called, the other
    methods change nothing."""

    def __init__(self, storage: Storage, asset_id: UUID) -> None:
        self._storage = storage
        self._asset_id = asset_id
        self._copies: dict[str, str] = {}  # old key -> new key
        self._new_key = ""
        self._public = False

    async def copy(self, db: Database, *, public: bool) -> None:
        """Copies the objects that are in the wrong place. Raises ABORTED with RetryInfo if a
        concurrent change moves one away.

        An object that the store has lost gets its new key all the same: it must not keep the asset
        from being hidden or deleted.
        """
        self._public = public
        mine = {"id": self._asset_id, "owner": auth.current().owner}
        scope = await db.first(_SELECT_SCOPE, mine)
        for row in await db.all(_SELECT_OBJECTS, mine):
            if row.storage_key and row.storage_key.startswith("public/") != public:
                target = self._target(scope_of(scope) if scope else {}, row)
                self._copies[row.storage_key] = target
                try:
                    await self._storage.copy(row.storage_key, target, content_type=row.mime_type)
                except ObjectNotFound:
                    # The object is lost if the row still points at it: a concurrent move removes
                    # objects only after its switch.
                    now = await db.all(_SELECT_OBJECTS, mine)
                    shown = {(each.id, each.storage_key) for each in now}
                    if (row.id, row.storage_key) not in shown:
                        raise _meanwhile() from None
                if not row.variant:
                    self._new_key = target

    def _target(self, scope: Mapping[str, str], row: _Object) -> str:
        """Returns a new key for a copy of the object."""
        return rules.object_key(
            auth.current().owner,
            scope,
            str(self._asset_id),
            content_name(row.sha256),
            folder="variants" if row.variant else "original",
            public=self._public,
        )

    async def switch(self, m: Mutation, current_key: str) -> str:
        """Points the variants' rows at the copies, and returns the key for the asset's row.

        Raises ABORTED with RetryInfo if a file was written after `copy` read the rows.
        """
        for row in await m.all(_SELECT_OBJECTS, {"id": self._asset_id, "owner": m.owner}):
            target = self._copies.get(row.storage_key, row.storage_key)
            if target and target.startswith("public/") != self._public:
                raise _meanwhile()
            if row.variant and target:
                await m.run(_SWITCH_VARIANT, {"key": target, "id": row.id})
        return self._copies.get(current_key, current_key)

    async def finish(self, key_in_row: str) -> None:
        """Removes the old objects; or the copies, if the call was a repeat and the row points
        elsewhere."""
        surplus = self._copies.keys() if key_in_row == self._new_key else self._copies.values()
        await self._storage.delete(list(surplus))

    async def undo(self) -> None:
        await self._storage.delete(list(self._copies.values()))

    async def settle(self, db: Database) -> None:
        """Removes the objects that no row points at, after an error that leaves open whether the
        rows were switched. If the rows can't be read now, the reconciler removes them later."""
        if not self._copies:
            return
        owner = auth.current().owner
        mine = {"id": self._asset_id, "owner": owner}
        with suppress(StorageError, psycopg.Error, psycopg_pool.PoolTimeout):
            async with db.transaction(owner) as m:
                await m.first(_LOCK_ASSET, mine)
                shown = {row.storage_key for row in await m.all(_SELECT_OBJECTS, mine)}
            await self._storage.delete(
                [key for pair in self._copies.items() for key in pair if key not in shown]
            )


async def name_by_content(storage: Storage, key: str, sha256: str, mime_type: str) -> str:
    """Gives a public object, whose URL is its key, a key with the hash of its content. Returns that
    key.

    The hash is known only once the bytes have arrived, and are stored at another key.
    """
    target = f"{key.rpartition('/')[0]}/{content_name(sha256)}"
    try:
        await storage.copy(key, target, content_type=mime_type)
    except BaseException:  # also when the call is cancelled
        await asyncio.shield(storage.delete([key, target]))
        raise
    await storage.delete([key])
    return target


def content_name(sha256: str) -> str:
    """Returns the last part of a key: new each time, with the start of the content's hash."""
    return f"{sha256[:16]}-{new_id()}"


def _meanwhile() -> errors.DomainError:
    text = "its files are being written or moved right now; nothing was changed, try again"
    return errors.retry_later(errors.Reason.ERROR_REASON_REQUEST_IN_PROGRESS, text, 1)


def belongs(key: str, asset: Asset) -> bool:
    """Returns whether an object's key fits the asset's visibility."""
    return key.startswith("public/") == asset.public
