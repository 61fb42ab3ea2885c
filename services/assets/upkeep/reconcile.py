"""Rows and stored bytes agree: what a crash, a restore or somebody at the bucket left is found and
mended.

The listing of the store and the keys that rows show are walked side by side, in the byte order of
keys, a chunk at a time; the next run goes on where the last one ended. Only the prefixes of
`assets` are looked at. Whoever has come to the last key recounts what is counted, once a day,
before it begins at the first again.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import structlog
from prometheus_client import Gauge

from services.assets.core import asset_rows
from services.assets.documents import documents
from services.assets.upkeep.recount import recount
from services.assets.upkeep.runs import Report, Walk
from services.assets.variants import rendition_rows
from shared.background import jobs
from shared.background.tasks import wanted
from shared.database.db import Database, Mutation
from shared.storage import ObjectNotFound, Stat, Storage
from shared.telemetry import METRICS

PREFIXES = ("assets/", "public/assets/")
CHUNK = 1000
_METRICS_SECONDS = 15.0
_RECOUNT_PAUSE = timedelta(days=1)
_WHAT = (
    "lost_originals",
    "lost_variants",
    "lost_documents",
    "restored_originals",
    "stray_objects",
    "drifted_figures",
    "drifted_albums",
)
_log = structlog.get_logger("reconcile")

# Whatever shows objects under these prefixes stands in both statements.
_ROWS = """
    SELECT * FROM (
        (SELECT storage_key COLLATE "C" AS key, 'originals' AS what, owner, id, '' AS preset,
            size_bytes, bytes_gone_at
         FROM assets WHERE storage_key <> '' AND state = 'ready'
             AND storage_key COLLATE "C" > %(after)s AND storage_key COLLATE "C" <= %(until)s
         ORDER BY storage_key COLLATE "C" LIMIT %(limit)s)
        UNION ALL
        (SELECT storage_key COLLATE "C", 'variants', owner, asset_id, preset, size_bytes, NULL
         FROM variants WHERE storage_key <> '' AND state = 'ready'
             AND storage_key COLLATE "C" > %(after)s AND storage_key COLLATE "C" <= %(until)s
         ORDER BY storage_key COLLATE "C" LIMIT %(limit)s)
        UNION ALL
        (SELECT storage_key COLLATE "C", 'documents', owner, id, '', size_bytes, NULL
         FROM documents WHERE storage_key <> '' AND state = 'ready'
             AND storage_key COLLATE "C" > %(after)s AND storage_key COLLATE "C" <= %(until)s
         ORDER BY storage_key COLLATE "C" LIMIT %(limit)s)
    ) AS shown ORDER BY key LIMIT %(limit)s
"""
_UNKNOWN = """
    SELECT key FROM unnest(%(keys)s::text[]) AS key
    WHERE NOT EXISTS (SELECT FROM assets WHERE storage_key COLLATE "C" = key AND storage_key <> '')
        AND NOT EXISTS (SELECT FROM variants WHERE storage_key COLLATE "C" = key AND storage_key
            <> '')
        AND NOT EXISTS (SELECT FROM uploads u JOIN assets a ON a.id = u.asset_id
                        WHERE u.upload_key COLLATE "C" = key AND a.state = 'pending')
        AND NOT EXISTS (SELECT FROM resumable_uploads r JOIN assets a ON a.id = r.asset_id
                        WHERE r.upload_key COLLATE "C" = key AND a.state = 'pending')
        AND NOT EXISTS (SELECT FROM documents WHERE storage_key COLLATE "C" = key AND storage_key
            <> '')
        AND NOT EXISTS (SELECT FROM doomed_objects WHERE storage_key COLLATE "C" = key)
"""
_LAST_CURSOR = """
    SELECT progress -> 'cursors' ->> 'key' AS key FROM storage_runs
    WHERE owner = '' AND action = 'reconcile' AND state = 'done'
        AND NOT (arguments ->> 'dry_run')::boolean
    ORDER BY created_at DESC, id DESC LIMIT 1
"""
_RECOUNT_DUE = """
    SELECT NOT EXISTS (
        SELECT FROM storage_runs WHERE owner = '' AND action = 'reconcile' AND state = 'done'
        AND progress -> 'cursors' ? 'recounted' AND NOT (arguments ->> 'dry_run')::boolean
        AND created_at > now() - %(pause)s) AS due
"""
_MARK = """
    UPDATE assets SET bytes_gone_at = now(), version = version + 1, updated_at = now()
    WHERE id = %(id)s AND storage_key = %(key)s AND bytes_gone_at IS NULL RETURNING *
"""
_UNMARK = """
    UPDATE assets SET bytes_gone_at = NULL, version = version + 1, updated_at = now()
    WHERE id = %(id)s AND storage_key = %(key)s AND bytes_gone_at IS NOT NULL RETURNING *
"""
_GIVE_UP = """
    UPDATE variants SET state = 'failed', storage_key = '', version = version + 1, updated_at
        = now(),
        error_class = 'BYTES_GONE', error_message
            = 'its bytes are lost, and so are those of the original'
    WHERE asset_id = %(id)s AND preset = %(preset)s AND storage_key = %(key)s AND state
        = 'ready' RETURNING *
"""
_LOSE_DOCUMENT = """
    UPDATE documents SET state = 'failed', storage_key = '', size_bytes = 0, version = version + 1,
        updated_at = now(),
        error_class = 'BYTES_GONE', error_message
            = 'its bytes are lost; RegenerateDocument makes it again'
    WHERE id = %(id)s AND storage_key = %(key)s AND state = 'ready' RETURNING *
"""
_STILL_SHOWN = """
    SELECT id FROM variants
    WHERE asset_id = %(id)s AND preset = %(preset)s AND storage_key = %(key)s AND state = 'ready'
"""
_LAST_RUN = """
    SELECT progress, updated_at FROM storage_runs
    WHERE owner = '' AND action = 'reconcile' AND state = 'done' ORDER BY created_at DESC,
        id DESC LIMIT 1
"""

FOUND = Gauge(
    "atelier_reconciler_found", "Disagreements that the last run found", ["what"], registry=METRICS
)
MENDED = Gauge(
    "atelier_reconciler_mended",
    "Disagreements that the last run mended",
    ["what"],
    registry=METRICS,
)
for _what in _WHAT:  # there from the start, at 0
    FOUND.labels(_what)
    MENDED.labels(_what)
LAST = Gauge(
    "atelier_reconciler_last_run_timestamp_seconds", "When the last run ended", registry=METRICS
)
PAUSE = Gauge(
    "atelier_reconciler_pause_seconds",
    "Between runs; 0: they run only when asked",
    registry=METRICS,
)


@dataclass(frozen=True)
class Part:
    """A stretch of keys: the objects and the rows in it. `until` is its last key."""

    listed: Mapping[str, Stat]
    rows: Sequence[Any]
    until: str
    last_of_prefix: bool


class Reconciler:
    """The walk of RUN_ACTION_RECONCILE."""

    def __init__(
        self,
        db: Database,
        storage: Storage,
        queue: jobs.JobQueue,
        *,
        max_items: int,
        grace: timedelta,
    ) -> None:
        self._db = db
        self._storage = storage
        self._queue = queue
        self._max_items = max_items
        self._grace = grace

    async def reconcile(self, walk: Walk) -> None:
        arguments = walk.row.arguments
        most = arguments["max_items"] or self._max_items
        cursors = walk.report.cursors
        if "key" not in cursors:
            last = [] if arguments["from_start"] else await self._db.system_rows(_LAST_CURSOR)
            cursors["key"] = last[0].key or "" if last else ""
        for what in _WHAT:  # those of which there are none, too: the metrics show the last run
            walk.report.count(what)
        for prefix in PREFIXES:
            if cursors["key"] > _end(prefix):
                continue
            while True:
                left = most - cursors.get("seen", 0)
                if left <= 0:
                    walk.report.capped = True
                    return
                part = await self._part(prefix, cursors["key"], min(CHUNK, left))
                await self._compare(walk, part)
                cursors |= {
                    "key": part.until,
                    "seen": cursors.get("seen", 0) + max(len(part.listed), len(part.rows)),
                }
                async with walk.step(""):
                    pass  # the place it came to
                cursors = walk.report.cursors
                if part.last_of_prefix:
                    break
        if arguments["from_start"] or "recounted" in cursors or await self._recount_is_due():
            await recount(walk)
        walk.report.cursors["key"] = ""

    async def _recount_is_due(self) -> bool:
        """It looks at every owner, so that small deployments, whose keys are soon through, do it
        once a day."""
        [row] = await self._db.system_rows(_RECOUNT_DUE, {"pause": _RECOUNT_PAUSE})
        return bool(row.due)

    async def _part(self, prefix: str, after: str, limit: int) -> Part:
        listed: dict[str, Stat] = {}
        full = False
        async with aclosing(self._storage.list(prefix, after=after)) as objects:  # type: ignore[type-var]
            async for stat in objects:
                listed[stat.key] = stat
                if full := len(listed) == limit:
                    break
        until = next(reversed(listed)) if full else _end(prefix)
        span = {"after": max(after, prefix), "until": until, "limit": limit}
        rows = await self._db.system_rows(_ROWS, span)
        if cut := len(rows) == limit:
            until = rows[-1].key
            listed = {key: stat for key, stat in listed.items() if key.encode() <= until.encode()}
        return Part(listed, rows, until, not full and not cut)

    async def _compare(self, walk: Walk, part: Part) -> None:
        dry = walk.row.arguments["dry_run"]
        for row in part.rows:
            stat = part.listed.get(row.key)
            there = stat is not None and stat.size == row.size_bytes
            if there == (row.bytes_gone_at is None) or (not there and await self._there(row)):
                continue
            what = f"{'restored' if there else 'lost'}_{row.what}"
            if dry:
                walk.report.count(what).note([row.id])
            else:
                await walk.each(what, [row], partial(self._mend, walk, what))
        unknown = await self._db.system_rows(_UNKNOWN, {"keys": list(part.listed)})
        await self._remove(walk, [part.listed[row.key] for row in unknown], dry)

    async def _there(self, row: Any) -> bool:
        """Asked again, of the object itself: a listing isn't a snapshot."""
        try:
            return (await self._storage.stat(row.key)).size == row.size_bytes
        except ObjectNotFound:
            return False

    async def _mend(self, walk: Walk, what: str, rows: Sequence[Any]) -> None:
        """In the owner's transaction, if the one row of `rows` still shows that key."""
        (row,) = rows
        async with walk.step(row.owner) as (m, report):
            mend = {"originals": _original, "variants": self._variant, "documents": _document}[
                row.what
            ]
            if await mend(m, row):
                report.count(what).note([row.id])
                report.count(what).done += 1

    async def _variant(self, m: Mutation, row: Any) -> bool:
        """Made again from the original; without one, it is FAILED."""
        of = {"id": row.id, "preset": row.preset, "key": row.key}
        asset = await asset_rows.lock(m, row.id)
        if asset.bytes_gone_at:
            given_up = await m.one(_GIVE_UP, of)
            if given_up is not None:
                await asset_rows.publish_variant(m, given_up)
            return given_up is not None
        if await m.one(_STILL_SHOWN, of) is None:
            return False
        await rendition_rows.ask(m, self._queue, asset, [row.preset], priority=jobs.BACKFILL)
        return True

    async def _remove(self, walk: Walk, unknown: Sequence[Stat], dry: bool) -> None:
        before = datetime.now(UTC) - self._grace
        old = [stat for stat in unknown if stat.modified <= before]
        if old and not dry:
            await self._storage.delete([stat.key for stat in old])
        count = walk.report.count("stray_objects")
        count.note([stat.key for stat in old])
        count.bytes += sum(stat.size for stat in old)
        count.done += 0 if dry else len(old)
        if fresh := len(unknown) - len(old):
            count.found, count.kept = count.found + fresh, count.kept + fresh
            count.why_kept = "they are young, and may belong to an upload in flight"


async def _original(m: Mutation, row: Any) -> bool:
    """Marked as lost, or as there again; never removed."""
    statement = _UNMARK if row.bytes_gone_at else _MARK
    changed = await m.one(statement, {"id": row.id, "key": row.key})
    if changed is not None:
        await asset_rows.publish(m, changed)
    return changed is not None


async def _document(m: Mutation, row: Any) -> bool:
    """Its content is there still, so that its owner can have it made again."""
    changed = await m.one(_LOSE_DOCUMENT, {"id": row.id, "key": row.key})
    if changed is not None:
        await documents.publish(m, changed)
    return changed is not None


def _end(prefix: str) -> str:
    """The first text after all keys that begin with the prefix: `/` is followed by `0`."""
    return f"{prefix[:-1]}0"


async def show_metrics(db: Database, pause: timedelta) -> None:
    """Keeps the gauges at what the last run reported. Servers have the metrics port, so that they
    show it."""
    PAUSE.set(pause.total_seconds())
    while wanted():
        try:
            for row in await db.system_rows(_LAST_RUN):
                LAST.set(row.updated_at.timestamp())
                for what, count in Report.of(row.progress).counts.items():
                    FOUND.labels(what).set(count.found - count.kept)
                    MENDED.labels(what).set(count.done)
        except psycopg.Error as error:
            _log.warning("can't read the reconciler's last run", error=type(error).__name__)
        await asyncio.sleep(_METRICS_SECONDS)
