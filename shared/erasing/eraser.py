"""The worker's side: carries erasures out, and reports them to `assets`.

Each step deletes a few rows and notes how many, in one transaction: an erasure whose worker was
killed goes on where it was, and counts nothing twice. Nothing gives one up; what fails is tried
again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import psycopg
import psycopg_pool
import sqlalchemy as sa
import structlog
from psycopg.types.json import Jsonb

from shared.background import sole
from shared.background.attempts import CANCEL_POLL_SECONDS
from shared.background.tasks import not_cancelled
from shared.database.db import Database, Mutation
from shared.database.exchange import Connection
from shared.database.rows import Command, Statement, compiled
from shared.erasing import tombstones
from shared.erasing.emptying import ROWS, RowsLeft, delete_rows, empty_tables, remove_objects
from shared.erasing.owned_tables import owned_tables
from shared.erasing.tombstones import SELECT_TOMBSTONE, TOMBSTONES, Tombstone
from shared.rpc import auth, calls
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError
from shared.storage import Storage, StorageError

_TICK_SECONDS = 1.0
_SILENT_SECONDS = 120
_COMPARE_SECONDS = 600.0
_STOP_SECONDS = 60.0
# What runs while its row is deleted notices within this time, and takes back what it stored.
_SETTLE_SECONDS = 3 * CANCEL_POLL_SECONDS
_AWAY = (DomainError, psycopg.Error, psycopg_pool.PoolTimeout, StorageError, RowsLeft)
_TOMBSTONE = "erased_owners"
_WHY_TOMBSTONE = (
    "the owner's name, so that nothing new is kept for it and a restored backup is erased again"
)
_SELECT_OPEN = Statement(
    Tombstone,
    f"""
    SELECT {TOMBSTONES.columns} FROM erased_owners WHERE done_at IS NULL OR reported_at IS NULL
    ORDER BY erased_at
    """,
)
_SELECT_ALL = Statement(Tombstone, f"SELECT {TOMBSTONES.columns} FROM erased_owners")
_LOCK_TOMBSTONE = Statement(Tombstone, f"{SELECT_TOMBSTONE.text} FOR UPDATE")
_SAVE_COUNTS = Command("UPDATE erased_owners SET counts = %(counts)s WHERE owner = %(owner)s")
_END = Statement(
    Tombstone,
    f"""
    UPDATE erased_owners SET done_at = now(), reported_at = NULL WHERE owner = %(owner)s
    RETURNING {TOMBSTONES.columns}
    """,
)
_NOTE_REPORT = Command("UPDATE erased_owners SET reported_at = now() WHERE owner = %(owner)s")
_HAS_RUNNING = Statement(
    bool,
    "SELECT EXISTS (SELECT FROM attempts WHERE owner = %(owner)s AND outcome = 'running')",
)
_log = structlog.get_logger("erasing")


@dataclass(frozen=True)
class Holdings:
    """What a service keeps of an owner besides rows that are simply deleted. `kept`: tables whose
    rows stay, with the reason; `forget` removes from these what isn't covered by the reason.
    `stop(owner)` ends what others do for the owner; it may be called again. `prefix(owner)`: what
    the keys of the owner's objects begin with. `keys`: the keys of objects that rows name."""

    kept: Mapping[str, str] = field(default_factory=dict)
    forget: Callable[[Mutation], Awaitable[None]] | None = None
    stop: Callable[[str], Awaitable[None]] | None = None
    prefix: Callable[[str], str] | None = None
    keys: Statement[str] | None = None


@cache
def _count_rows(table: str) -> Statement[int]:
    row = sa.table(table, sa.column("owner"))
    mine = sa.select(sa.func.count()).select_from(row).where(row.c.owner == sa.bindparam("of"))
    return compiled(int, mine)


@asynccontextmanager
async def _step(db: Database, owner: str) -> AsyncIterator[tuple[Mutation, "_Counts"]]:
    """Opens a transaction of the owner. What is counted in it is saved with it."""
    async with db.transaction(owner) as m:
        row = await m.one(_LOCK_TOMBSTONE, {"owner": owner})
        counts = _Counts(row.counts)
        yield m, counts
        await m.run(_SAVE_COUNTS, {"owner": owner, "counts": Jsonb(counts.figures)})


@dataclass
class _Counts:
    figures: dict[str, Any]

    def erased(self, what: str, number: int) -> None:
        if number:
            earlier = self.figures.get(what, {}).get("erased", 0)
            self.figures[what] = {"erased": earlier + number}

    def kept(self, what: str, number: int, why: str) -> None:
        if number:
            self.figures[what] = {"kept": number, "why_kept": why}


class Eraser:
    """Erases owners in one service. Any number of workers may run it; a session's advisory lock
    lets one of them work."""

    def __init__(
        self, db: Database, peers: Peers, holdings: Holdings, storage: Storage | None = None
    ) -> None:
        self._db = db
        self._peers = peers
        self._holdings = holdings
        self._storage = storage
        self._compare_at = 0.0

    async def run(self) -> None:
        """Runs until it is cancelled."""
        auth.enter(calls.service_identity(self._db.service))
        while not_cancelled():
            try:
                alone = sole.alone(self._db, sole.Duty.ERASING, silent_seconds=_SILENT_SECONDS)
                async with alone as session:
                    if session:
                        await self._work(session)
            except _AWAY as error:
                _log.warning("erasing waits", service=self._db.service, error=str(error))
            await asyncio.sleep(_TICK_SECONDS)

    async def _work(self, session: Connection) -> None:
        clock = asyncio.get_running_loop().time
        while not_cancelled():
            await sole.check(session)
            for row in await self._db.system_all(_SELECT_OPEN):
                await self._attend(row)
            if clock() >= self._compare_at:
                self._compare_at = clock() + _TICK_SECONDS  # soon again, if this fails
                await self._compare()
                self._compare_at = clock() + _COMPARE_SECONDS
            await asyncio.sleep(_TICK_SECONDS)

    async def _attend(self, row: Tombstone) -> None:
        """Carries on with one owner. If it fails, the others don't wait for it."""
        try:
            if row.done_at is None:
                row = await self._erase(row.owner)
            await tombstones.report(self._peers, row)
            async with self._db.transaction(row.owner) as m:
                await m.run(_NOTE_REPORT, {"owner": row.owner})
        except _AWAY as error:
            _log.warning("an erasure waits", service=self._db.service, error=str(error))

    async def _erase(self, owner: str) -> Tombstone:
        has_running = await self._read(owner, _HAS_RUNNING)
        await self._stop(owner)
        await self._remove_named(owner)
        while await self._empty_all(owner):  # again, until nothing came in between
            pass
        await self._remove_objects(owner)
        if has_running:
            await asyncio.sleep(_SETTLE_SECONDS)
            await self._stop(owner)
            await self._empty_all(owner)
            await self._remove_objects(owner)
        async with _step(self._db, owner) as (m, counts):
            for table in await self._erased_tables():
                if left := await m.one(_count_rows(table), {"of": owner}):
                    raise RowsLeft(f"{left} rows of {table} are left")
            if self._holdings.forget:
                await self._holdings.forget(m)
            for table, why in self._holdings.kept.items():
                number = await m.one(_count_rows(table), {"of": owner})
                counts.kept(table, number, why)
            counts.kept("tombstone", 1, _WHY_TOMBSTONE)
        async with self._db.transaction(owner) as m:
            return await m.one(_END, {"owner": owner})

    async def _stop(self, owner: str) -> None:
        """Ends what others do for the owner, as far as they can be asked: the erasure doesn't wait
        for them."""
        if self._holdings.stop is None:
            return
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._holdings.stop(owner)
        except Exception as error:
            _log.warning(
                "what others do for an erased owner goes on",
                service=self._db.service,
                error=type(error).__name__,
            )

    async def _read(self, owner: str, statement: Statement[Any]) -> Any:
        async with self._db.transaction(owner) as m:
            return await m.one(statement, {"owner": owner})

    async def _empty_all(self, owner: str) -> int:
        async def empty(table: str) -> int:
            total = 0
            while True:
                async with _step(self._db, owner) as (m, counts):
                    some = {"owner": owner, "limit": ROWS}
                    deleted = len(await m.all(delete_rows(table), some))
                    counts.erased(table, deleted)
                total += deleted
                if deleted < ROWS:
                    return total

        return await empty_tables(await self._erased_tables(), empty)

    async def _erased_tables(self) -> list[str]:
        spared = {_TOMBSTONE, *self._holdings.kept}
        names = [table.name for table in await owned_tables(self._db)]
        return [name for name in names if name not in spared]

    async def _remove_named(self, owner: str) -> None:
        """Removes the objects that rows name, before the rows are gone."""
        if self._storage is None or self._holdings.keys is None:
            return
        async with self._db.transaction(owner) as m:
            keys = await m.all(self._holdings.keys, {"owner": owner})
        if keys:
            await self._storage.delete(keys)
            await self._note_objects(owner, len(keys))

    async def _remove_objects(self, owner: str) -> None:
        if self._storage is not None and self._holdings.prefix is not None:

            async def note(number: int) -> None:
                await self._note_objects(owner, number)

            await remove_objects(self._storage, self._holdings.prefix(owner), note)

    async def _note_objects(self, owner: str, number: int) -> None:
        async with _step(self._db, owner) as (_m, counts):
            counts.erased("objects", number)

    async def _compare(self) -> None:
        """Compares the tombstones with those of `assets`: either side may have lost some to an
        older backup, and erases again."""
        theirs: set[str] = set()
        async with tombstones.told(self._peers, from_start=True) as items:
            async for item in items:
                if item.WhichOneof("item") != "erased_owner":
                    break
                theirs.add(item.erased_owner)
            else:
                return  # it ended before its bookmark
        own = {row.owner: row for row in await self._db.system_all(_SELECT_ALL)}
        for owner in theirs - own.keys():
            await tombstones.report(self._peers, await tombstones.refuse(self._db, owner))
        for owner in own.keys() - theirs:
            await tombstones.report(self._peers, own[owner])
