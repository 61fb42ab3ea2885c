"""Erases an owner. The tombstone comes first: from then on the schema refuses new rows of the
owner. Then a run removes the rows and bytes of every table that the schema has with an owner
column, so that a table added later isn't forgotten.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from services.assets.accounting import folding
from services.assets.core import rules
from services.assets.core.deletions import BATCH, DOOMED_OBJECTS, DoomedObject, remove
from services.assets.core.trashing import Trash
from services.assets.upkeep import erasure_rows, run_rows
from services.assets.upkeep.run_rows import RUNS, Run
from services.assets.upkeep.walking import Walk
from shared.background import attempts
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement
from shared.erasing import tombstones
from shared.erasing.emptying import ROWS, RowsLeft, delete_rows, empty_tables, remove_objects
from shared.erasing.metrics import OpenErasures
from shared.erasing.owned_tables import owned_tables
from shared.storage import Storage

_CHUNK = 500
_FOLD_SECONDS = 0.1


_SELECT_ERASED = Statement(str, "SELECT owner FROM erased_owners WHERE owner = %(owner)s")
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
OPEN_ERASURES = Statement(
    OpenErasures,
    """
    SELECT count(*) AS number,
        COALESCE(extract(epoch FROM now() - min(created_at)), 0)::double precision AS oldest
    FROM storage_runs WHERE action = 'erase' AND state <> 'done'
    """,
)
# Tables that keep their rows: the tombstone, the reports of the other services, the objects still
# to be removed from the store, and the deltas still to be subtracted from the sums of all owners.
_KEPT = ("erased_owners", "erasure_parts", "doomed_objects", "storage_deltas")
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


async def begin(m: Mutation, queue: JobQueue) -> Run:
    """Begins the erasure of the transaction's owner. Returns its run, which for an owner who is
    erased already is the earlier one."""
    await tombstones.bury(m)
    await erasure_rows.expect(m)
    begun = await run_rows.begin(m, queue, "erase", m.owner, {})
    if begun is None:
        return await m.one(_SELECT_ERASURE, {"owner": m.owner})
    return begun


async def is_erased(m: Mutation) -> bool:
    """Returns whether the transaction's owner is erased, or being erased."""
    return await m.first(_SELECT_ERASED, {"owner": m.owner}) is not None


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
        """Empties the other tables. Raises JobFailed if no order of them works."""
        tables = [row.name for row in await owned_tables(self.db) if row.name not in _KEPT]
        try:
            await empty_tables(tables, partial(self._empty, walk))
        except RowsLeft as error:
            raise attempts.JobFailed("ROWS_LEFT", str(error)) from None

    async def _empty(self, walk: Walk, table: str) -> int:
        owned = {"owner": walk.row.owner, "limit": ROWS, "spared": walk.row.id}
        statement = delete_rows(table, _RUN_COLUMNS.get(table, ""))
        total = 0
        while True:
            async with walk.step(walk.row.owner) as (m, report):
                deleted = len(await m.all(statement, owned))
                if deleted:
                    report.count(table).found += deleted
                    report.count(table).done += deleted
            total += deleted
            if deleted < ROWS:
                return total

    async def _bytes(self, walk: Walk) -> None:
        """Removes all objects below the owner's prefix, and the doomed objects, which include the
        public ones, by their keys."""
        owner = walk.row.owner
        after = 0
        while rows := await self.db.all(
            _SELECT_DOOMED, {"owner": owner, "after": after, "limit": BATCH}
        ):
            await remove(self.storage, rows)
            after = rows[-1].seq

        async def note(number: int) -> None:
            async with walk.step(owner) as (_m, report):
                report.count("stray_objects").found += number
                report.count("stray_objects").done += number

        await remove_objects(self.storage, rules.owner_prefix(owner), note)
        # Objects that are due only later, when upload URLs have expired, are removed again then.
        async with walk.step(owner) as (m, _report):
            await m.run(_FORGET_DOOMED, {"owner": owner})
