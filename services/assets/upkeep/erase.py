"""Erases an owner. The tombstone comes first: from then on the schema refuses new rows of the
owner. Then a run removes the rows and bytes of every table that the schema has with an owner
column, so that a table added later isn't forgotten.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from uuid import UUID

import psycopg
import sqlalchemy as sa

from services.assets.accounting import folding
from services.assets.core import rules
from services.assets.core.deletions import BATCH, DOOMED_OBJECTS, DoomedObject, remove
from services.assets.core.trashing import Trash
from services.assets.upkeep import run_rows
from services.assets.upkeep.owned_tables import owned_tables
from services.assets.upkeep.run_rows import RUNS, Run
from services.assets.upkeep.walking import Walk
from shared.background import attempts
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement, compiled
from shared.storage import Storage

_CHUNK = 500
_ROWS = 2000
_FOLD_SECONDS = 0.1


_INSERT_TOMBSTONE = Command(
    "INSERT INTO erased_owners (owner) VALUES (%(owner)s) ON CONFLICT DO NOTHING"
)
# A transaction that adds a row of the owner has this lock shared until its commit: see
# refuse_erased_owner in tables.sql.
_LOCK_OWNER = Command("SELECT pg_advisory_xact_lock(hashtextextended(%(owner)s, 11))")
_SELECT_ERASURE = Statement(
    Run,
    f"SELECT {RUNS.columns} FROM storage_runs WHERE owner = %(owner)s AND action = 'erase'",
)
_SELECT_ASSETS = Statement(
    UUID, "SELECT id FROM assets WHERE owner = %(owner)s ORDER BY id LIMIT %(limit)s"
)
_SELECT_UNFOLDED = Statement(int, "SELECT seq FROM storage_deltas WHERE owner = %(owner)s LIMIT 1")
_SELECT_DOOMED = Statement(
    DoomedObject,
    f"""
    SELECT {DOOMED_OBJECTS.columns} FROM doomed_objects
    WHERE owner = %(owner)s AND seq > %(after)s ORDER BY seq LIMIT %(limit)s
    """,
)
_FORGET_DOOMED = Command("DELETE FROM doomed_objects WHERE owner = %(owner)s AND due_at <= now()")
# Tables that keep their rows: the tombstone, the objects still to be removed from the store, and
# the deltas still to be subtracted from the sums of all owners.
_KEPT = ("erased_owners", "doomed_objects", "storage_deltas")
# The column in which a row of these tables names its run. This run's rows stay: its attempts, and
# the run itself, which is the receipt.
_RUN_COLUMNS: Mapping[str, str] = {"attempts": "job_id", "storage_runs": "id"}
_LEFT = (
    (
        "tombstone",
        (
            "the owner's name, so that nothing new is kept for it and a restored backup is erased"
            " again"
        ),
    ),
    ("receipt", "this report: counts, and nothing of what was erased"),
)


@cache
def _delete_rows(table: str) -> Statement[int]:
    """Returns the statement that deletes at most `limit` rows of the owner, and yields a number for
    each."""
    row = sa.table(table, *map(sa.column, ("ctid", "owner", *_RUN_COLUMNS.values())))
    mine = row.alias("mine")
    where = [mine.c.owner == sa.bindparam("owner")]
    if table in _RUN_COLUMNS:
        where.append(mine.c[_RUN_COLUMNS[table]] != sa.bindparam("run"))
    some = sa.select(mine.c.ctid).where(*where).limit(sa.bindparam("limit"))
    deleted = sa.delete(row).where(row.c.ctid == sa.any_(sa.func.array(some.scalar_subquery())))
    return compiled(int, deleted.returning(sa.literal_column("1")))


async def begin(m: Mutation, queue: JobQueue) -> Run:
    """Begins the erasure of the transaction's owner. Returns its run, which for an owner who is
    erased already is the earlier one."""
    await m.run(_LOCK_OWNER, {"owner": m.owner})
    await m.run(_INSERT_TOMBSTONE, {"owner": m.owner})
    begun = await run_rows.begin(m, queue, "erase", m.owner, {})
    if begun is None:
        return await m.one(_SELECT_ERASURE, {"owner": m.owner})
    return begun


@dataclass(frozen=True)
class Eraser:
    """The walk of RUN_ACTION_ERASE."""

    db: Database
    storage: Storage
    trash: Trash

    async def erase(self, walk: Walk) -> None:
        owner = walk.row.owner
        while ids := await self.db.all(_SELECT_ASSETS, {"owner": owner, "limit": _CHUNK}):
            async with walk.step(owner) as (m, report):
                _results, freed = await self.trash.purge(m, ids, force=True)
                report.count("assets").found += len(ids)
                report.count("assets").done += len(ids)
                report.count("assets").bytes += freed
        await self._figures(owner)
        await self._rows(walk)
        await self._bytes(walk)
        for what, why in _LEFT:
            kept = walk.report.count(what)
            kept.found = kept.kept = 1
            kept.why_kept = why

    async def _figures(self, owner: str) -> None:
        """Folds all deltas of the owner: what was erased is subtracted from the sums of all owners,
        too, so that deltas are folded and never deleted."""
        while await self.db.all(_SELECT_UNFOLDED, {"owner": owner}):
            if not await folding.fold(self.db):  # another worker is folding
                await asyncio.sleep(_FOLD_SECONDS)

    async def _rows(self, walk: Walk) -> None:
        """Empties the other tables. A table whose rows are referred to by another table is tried
        again after it. Raises JobFailed if no order works."""
        tables = [row.name for row in await owned_tables(self.db) if row.name not in _KEPT]
        stuck = 0
        while tables:
            table = tables.pop(0)
            try:
                await self._empty(walk, table)
                stuck = 0
            except psycopg.errors.ForeignKeyViolation as error:
                tables.append(table)
                stuck += 1
                if stuck > len(tables):
                    text = f"rows of {table} are still referred to: {error.diag.constraint_name}"
                    raise attempts.JobFailed("ROWS_LEFT", text) from None

    async def _empty(self, walk: Walk, table: str) -> None:
        owned = {"owner": walk.row.owner, "limit": _ROWS, "run": walk.row.id}
        while True:
            async with walk.step(walk.row.owner) as (m, report):
                deleted = len(await m.all(_delete_rows(table), owned))
                if deleted:
                    report.count(table).found += deleted
                    report.count(table).done += deleted
            if deleted < _ROWS:
                return

    async def _bytes(self, walk: Walk) -> None:
        """Removes all objects below the owner's prefix, whether a row named them or not, and the
        doomed objects, which include the public ones, by their keys."""
        owner = walk.row.owner
        after = 0
        while rows := await self.db.all(
            _SELECT_DOOMED, {"owner": owner, "after": after, "limit": BATCH}
        ):
            await remove(self.storage, rows)
            after = rows[-1].seq
        batch: list[str] = []
        async for found in self.storage.list(rules.owner_prefix(owner)):
            batch.append(found.key)
            if len(batch) == BATCH:
                await self._remove(walk, batch)
                batch = []
        await self._remove(walk, batch)
        # Objects that are due only later, when upload URLs have expired, are removed again then.
        async with walk.step(owner) as (m, _report):
            await m.run(_FORGET_DOOMED, {"owner": owner})

    async def _remove(self, walk: Walk, keys: Sequence[str]) -> None:
        await self.storage.delete(keys)
        if keys:
            async with walk.step(walk.row.owner) as (_m, report):
                report.count("stray_objects").found += len(keys)
                report.count("stray_objects").done += len(keys)
