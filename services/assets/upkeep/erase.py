"""Erasing and exporting an owner. The tombstone comes first: from then on the schema refuses new
rows of the owner. Then a run takes away rows and bytes of every table that has owners, so that a
table of tomorrow isn't forgotten.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from atelier.assets.v1 import storage_pb2 as pb
from google.protobuf.json_format import ParseDict

from services.assets.accounting import usage as storage_usage
from services.assets.core import asset_rows, rules
from services.assets.core.deletions import BATCH, remove
from services.assets.core.trashing import Trash
from services.assets.upkeep import runs
from services.assets.upkeep.runs import Walk
from shared.background import attempts
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.rpc import auth
from shared.storage import Storage

_CHUNK = 500
_ROWS = 2000
_TOMBSTONE = "INSERT INTO erased_owners (owner) VALUES (%(owner)s) ON CONFLICT DO NOTHING"
# Whoever adds a row of the owner holds this shared until its commit: see refuse_erased_owner in
# tables.sql.
_ALONE = "SELECT pg_advisory_xact_lock(hashtextextended(%(owner)s, 11))"
_RUN = "SELECT * FROM storage_runs WHERE owner = %(owner)s AND action = 'erase'"
_ASSETS = "SELECT id FROM assets WHERE owner = %(owner)s ORDER BY id LIMIT %(limit)s"
# The tombstone, what is still to be removed from the store, and what is still to be taken off the
# sums of all owners.
_KEPT = ("erased_owners", "doomed_objects", "storage_deltas")
# Of these tables all rows but this run's: its try, and the run itself, which is the receipt.
_BUT = {"attempts": " AND job_id <> %(run)s", "storage_runs": " AND id <> %(run)s"}
_UNFOLDED = "SELECT 1 FROM storage_deltas WHERE owner = %(owner)s LIMIT 1"
_FOLD_SECONDS = 0.1
# Copies of what the other tables say.
_COPIES = ("requests", "events")
# What would let whoever reads an export act for the owner.
_CREDENTIALS = "secret"
_TABLES = """
    SELECT c.relname::text AS name,
        (SELECT array_agg(a.attname::text ORDER BY array_position(i.indkey::int2[], a.attnum))
         FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY(i.indkey)
         WHERE i.indrelid = c.oid AND i.indisprimary) AS keys
    FROM pg_class c JOIN pg_attribute o ON o.attrelid = c.oid AND o.attname = 'owner'
    WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace ORDER BY 1
"""


async def bury(m: Mutation, queue: JobQueue) -> Any:
    """Begins the erasure of the transaction's owner; of one that is erased already, its run."""
    await m.run(_ALONE, {"owner": m.owner})
    await m.run(_TOMBSTONE, {"owner": m.owner})
    return await runs.begin(m, queue, "erase", m.owner, {}) or await m.one(_RUN, {"owner": m.owner})


@dataclass(frozen=True)
class Eraser:
    """The walk of RUN_ACTION_ERASE."""

    db: Database
    storage: Storage
    trash: Trash

    async def erase(self, walk: Walk) -> None:
        owner = walk.row.owner
        while ids := [
            row.id for row in await self.db.rows(_ASSETS, {"owner": owner, "limit": _CHUNK})
        ]:
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
        """What went is taken off the sums of all owners, too: deltas are folded, never deleted."""
        while await self.db.rows(_UNFOLDED, {"owner": owner}):
            if not await storage_usage.fold(self.db):  # another one is at it
                await asyncio.sleep(_FOLD_SECONDS)

    async def _rows(self, walk: Walk) -> None:
        """The other tables. One that another one's rows hang on waits for that one."""
        tables = [row.name for row in await self.db.rows(_TABLES) if row.name not in _KEPT]
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
        statement: Any = (
            f"DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table} WHERE owner ="
            f" %(owner)s{_BUT.get(table, '')} LIMIT %(limit)s)) RETURNING 1 AS n"
        )
        owned = {"owner": walk.row.owner, "limit": _ROWS, "run": walk.row.id}
        while True:
            async with walk.step(walk.row.owner) as (m, report):
                gone = len(await m.all(statement, owned))
                if gone:
                    report.count(table).found += gone
                    report.count(table).done += gone
            if gone < _ROWS:
                return

    async def _bytes(self, walk: Walk) -> None:
        """What lies below the owner's prefix goes whether a row named it or not; what was public,
        by its name."""
        owner = walk.row.owner
        doomed = (
            "SELECT seq, storage_key, multipart FROM doomed_objects WHERE owner = %(owner)s AND seq"
            " > %(after)s"
        )
        after = 0
        while rows := await self.db.rows(
            f"{doomed} ORDER BY seq LIMIT {BATCH}", {"owner": owner, "after": after}
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
        # What is due only later, when upload URLs have expired, is removed again then.
        async with walk.step(owner) as (m, _report):
            await m.run(
                "DELETE FROM doomed_objects WHERE owner = %(owner)s AND due_at <= now()",
                {"owner": owner},
            )

    async def _remove(self, walk: Walk, keys: Sequence[str]) -> None:
        await self.storage.delete(keys)
        if keys:
            async with walk.step(walk.row.owner) as (_m, report):
                report.count("stray_objects").found += len(keys)
                report.count("stray_objects").done += len(keys)


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


async def export(db: Database, urls: asset_rows.Urls) -> AsyncIterator[pb.ExportOwnerResponse]:
    """Every record of the current owner. Pages in the order of keys: no transaction is open while
    the caller reads."""
    for table in await db.rows(_TABLES):
        if table.name in _COPIES or table.name == "doomed_objects":
            continue
        async for row in _walk(db, table.name, table.keys):
            if table.name == "assets":
                asset = asset_rows.to_proto(row, urls)
                if (
                    row.deleted_at and row.storage_key and not row.bytes_gone_at
                ):  # hidden, but theirs
                    asset.original_url = urls.of(row.storage_key, row.mime_type, row.file_name)
                yield pb.ExportOwnerResponse(asset=asset)
            elif table.name == "variants":
                yield pb.ExportOwnerResponse(variant=asset_rows.variant_to_proto(row, urls))
            else:
                shown = pb.OwnedRow(table=table.name)
                ParseDict(row.shown, shown.columns)
                yield pb.ExportOwnerResponse(row=shown)


async def _walk(db: Database, table: str, keys: Sequence[str]) -> AsyncIterator[Any]:
    columns = (
        "*"
        if table in ("assets", "variants")
        else f"{', '.join(keys)}, to_jsonb(t) - '{_CREDENTIALS}' AS shown"
    )
    after: dict[str, Any] = {}
    while True:
        beyond = (
            f"AND ({', '.join(keys)}) > ({', '.join(f'%({key})s' for key in keys)})"
            if after
            else ""
        )
        statement: Any = (
            f"SELECT {columns} FROM {table} t WHERE owner = %(of)s {beyond} ORDER BY"
            f" {', '.join(keys)} LIMIT {_CHUNK}"
        )
        rows = await db.rows(statement, {"of": auth.current().owner, **after})
        for row in rows:
            yield row
        if len(rows) < _CHUNK:
            return
        after = {key: getattr(rows[-1], key) for key in keys}
