"""Reconciles rows and stored bytes: finds and mends what a crash, a restore or a change by hand in
the bucket left.

The listing of the store and the keys in rows are walked side by side, in the byte order of keys, a
chunk at a time; the next run goes on where the last one ended. Only the prefixes of `assets` are
compared. A run that reaches the last key recounts the figures, at most once a day unless it began
at the first key on request; the next run begins at the first key again.
"""

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
import structlog
from prometheus_client import Gauge

from services.assets.core import asset_rows
from services.assets.core.asset_rows import ASSETS, VARIANTS, LockedAsset, Variant
from services.assets.documents import document_rows
from services.assets.documents.document_rows import DOCUMENTS, Document
from services.assets.upkeep.recount import recount
from services.assets.upkeep.run_rows import Report
from services.assets.upkeep.walking import Walk
from services.assets.variants import rendition_rows
from shared.background import jobs, tasks
from shared.database.db import Database, Mutation
from shared.database.rows import Statement
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


@dataclass(slots=True)
class _Shown:
    """A row that points at an object. `id`: the asset's, or the document's own."""

    key: str
    what: str  # "originals", "variants" or "documents"
    owner: str
    id: UUID
    preset: str
    size_bytes: int
    bytes_gone_at: datetime | None


@dataclass(slots=True)
class _LastRun:
    progress: dict[str, Any]  # fields of `Report`
    updated_at: datetime


# Every table that points at objects under these prefixes must be in both statements.
_SELECT_SHOWN = Statement(
    _Shown,
    """
    SELECT key, what, owner, id, preset, size_bytes, bytes_gone_at FROM (
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
    """,
)
_SELECT_UNKNOWN_KEYS = Statement(
    str,
    """
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
    """,
)
_SELECT_LAST_KEY = Statement(
    str,
    """
    SELECT coalesce(progress -> 'cursors' ->> 'key', '') FROM storage_runs
    WHERE owner = '' AND action = 'reconcile' AND state = 'done'
        AND NOT (arguments ->> 'dry_run')::boolean
    ORDER BY created_at DESC, id DESC LIMIT 1
    """,
)
_IS_RECOUNT_DUE = Statement(
    bool,
    """
    SELECT NOT EXISTS (
        SELECT FROM storage_runs WHERE owner = '' AND action = 'reconcile' AND state = 'done'
        AND progress -> 'cursors' ? 'recounted' AND NOT (arguments ->> 'dry_run')::boolean
        AND created_at > now() - %(pause)s::interval)
    """,
)
_MARK_LOST = Statement(
    LockedAsset,
    f"""
    UPDATE assets SET bytes_gone_at = now(), version = version + 1, updated_at = now()
    WHERE id = %(id)s AND storage_key = %(key)s AND bytes_gone_at IS NULL
    RETURNING {ASSETS.columns}
    """,
)
_MARK_RESTORED = Statement(
    LockedAsset,
    f"""
    UPDATE assets SET bytes_gone_at = NULL, version = version + 1, updated_at = now()
    WHERE id = %(id)s AND storage_key = %(key)s AND bytes_gone_at IS NOT NULL
    RETURNING {ASSETS.columns}
    """,
)
_FAIL_VARIANT = Statement(
    Variant,
    f"""
    UPDATE variants SET state = 'failed', storage_key = '', version = version + 1,
        updated_at = now(), error_class = 'BYTES_GONE',
        error_message = 'its bytes are lost, and so are those of the original'
    WHERE asset_id = %(id)s AND preset = %(preset)s AND storage_key = %(key)s AND state = 'ready'
    RETURNING {VARIANTS.columns}
    """,
)
_FAIL_DOCUMENT = Statement(
    Document,
    f"""
    UPDATE documents SET state = 'failed', storage_key = '', size_bytes = 0, version = version + 1,
        updated_at = now(), error_class = 'BYTES_GONE',
        error_message = 'its bytes are lost; RegenerateDocument makes it again'
    WHERE id = %(id)s AND storage_key = %(key)s AND state = 'ready' RETURNING {DOCUMENTS.columns}
    """,
)
_SELECT_STILL_SHOWN = Statement(
    UUID,
    """
    SELECT id FROM variants
    WHERE asset_id = %(id)s AND preset = %(preset)s AND storage_key = %(key)s AND state = 'ready'
    """,
)
_SELECT_LAST_RUN = Statement(
    _LastRun,
    """
    SELECT progress, updated_at FROM storage_runs
    WHERE owner = '' AND action = 'reconcile' AND state = 'done' ORDER BY created_at DESC,
        id DESC LIMIT 1
    """,
)

FOUND = Gauge(
    "atelier_reconciler_found", "Disagreements that the last run found", ["what"], registry=METRICS
)
MENDED = Gauge(
    "atelier_reconciler_mended",
    "Disagreements that the last run mended",
    ["what"],
    registry=METRICS,
)
for _what in _WHAT:  # exported from the start, at 0
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
    """A stretch of keys, with its objects and rows. `until`: its last key."""

    listed: Mapping[str, Stat]
    rows: Sequence[_Shown]
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
        if "key" not in walk.report.cursors:
            walk.report.cursors["key"] = await self._last_key(walk)
        for what in _WHAT:  # also those with none: the metrics show the last run
            walk.report.count(what)
        for prefix in PREFIXES:
            if walk.report.cursors["key"] > _end(prefix):
                continue
            if not await self._prefix(walk, prefix):
                walk.report.capped = True
                return
        again = walk.arguments.from_start or "recounted" in walk.report.cursors
        if again or await self._recount_is_due():
            await recount(walk)
        walk.report.cursors["key"] = ""

    async def _last_key(self, walk: Walk) -> str:
        """Returns the key at which the last run ended; '' to begin at the first one."""
        last = [] if walk.arguments.from_start else await self._db.system_all(_SELECT_LAST_KEY)
        return last[0] if last else ""

    async def _prefix(self, walk: Walk, prefix: str) -> bool:
        """Compares the remaining keys of a prefix. Returns False if it ended early, after as many
        items as a run may compare."""
        most = walk.arguments.max_items or self._max_items
        while True:
            seen: int = walk.report.cursors.get("seen", 0)
            if seen >= most:
                return False
            part = await self._part(prefix, walk.report.cursors["key"], min(CHUNK, most - seen))
            await self._compare(walk, part)
            seen += max(len(part.listed), len(part.rows))
            # Mending has replaced the report, and with it the cursors.
            walk.report.cursors |= {"key": part.until, "seen": seen}
            async with walk.step(""):
                pass  # saves the cursors
            if part.last_of_prefix:
                return True

    async def _recount_is_due(self) -> bool:
        """Returns whether the last recount is more than a day ago. A recount reads every owner, so
        that small deployments, where each run reaches the last key, must not do it each time."""
        [due] = await self._db.system_all(_IS_RECOUNT_DUE, {"pause": _RECOUNT_PAUSE})
        return due

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
        rows = await self._db.system_all(_SELECT_SHOWN, span)
        if cut := len(rows) == limit:
            until = rows[-1].key
            listed = {key: stat for key, stat in listed.items() if key.encode() <= until.encode()}
        return Part(listed, rows, until, not full and not cut)

    async def _compare(self, walk: Walk, part: Part) -> None:
        dry = walk.arguments.dry_run
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
        unknown = await self._db.system_all(_SELECT_UNKNOWN_KEYS, {"keys": list(part.listed)})
        await self._remove(walk, [part.listed[key] for key in unknown], dry)

    async def _there(self, row: _Shown) -> bool:
        """Returns whether the store has the object, with the row's size. It is asked for the object
        itself: a listing isn't a snapshot."""
        try:
            return (await self._storage.stat(row.key)).size == row.size_bytes
        except ObjectNotFound:
            return False

    async def _mend(self, walk: Walk, what: str, rows: Sequence[_Shown]) -> None:
        """Mends the one row of `rows` in its owner's transaction, if it still has that key."""
        (row,) = rows
        async with walk.step(row.owner) as (m, report):
            mend = {"originals": _original, "variants": self._variant, "documents": _document}[
                row.what
            ]
            if await mend(m, row):
                report.count(what).note([row.id])
                report.count(what).done += 1

    async def _variant(self, m: Mutation, row: _Shown) -> bool:
        """Has the variant made again from the original, or sets it FAILED if the original is lost.
        Returns whether it changed anything."""
        of = {"id": row.id, "preset": row.preset, "key": row.key}
        asset = await asset_rows.lock(m, row.id)
        if asset.bytes_gone_at:
            failed = await m.first(_FAIL_VARIANT, of)
            if failed is not None:
                await asset_rows.publish_variant(m, failed)
            return failed is not None
        if await m.first(_SELECT_STILL_SHOWN, of) is None:
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


async def _original(m: Mutation, row: _Shown) -> bool:
    """Marks the asset's bytes as lost, or as restored; never deletes the asset."""
    statement = _MARK_RESTORED if row.bytes_gone_at else _MARK_LOST
    changed = await m.first(statement, {"id": row.id, "key": row.key})
    if changed is not None:
        await asset_rows.publish(m, changed)
    return changed is not None


async def _document(m: Mutation, row: _Shown) -> bool:
    """Sets the document FAILED. Its content is kept, so that its owner can have it made again."""
    changed = await m.first(_FAIL_DOCUMENT, {"id": row.id, "key": row.key})
    if changed is not None:
        await document_rows.publish(m, changed)
    return changed is not None


def _end(prefix: str) -> str:
    """Returns the first text after all keys that begin with the prefix: `0` follows `/`."""
    return f"{prefix[:-1]}0"


async def show_metrics(db: Database, pause: timedelta) -> None:
    """Keeps the gauges at the figures of the last run's report. Servers call it, because they have
    the metrics port."""
    PAUSE.set(pause.total_seconds())
    while tasks.not_cancelled():
        try:
            for row in await db.system_all(_SELECT_LAST_RUN):
                LAST.set(row.updated_at.timestamp())
                for what, count in Report.of(row.progress).counts.items():
                    FOUND.labels(what).set(count.found - count.kept)
                    MENDED.labels(what).set(count.done)
        except psycopg.Error as error:
            _log.warning("can't read the reconciler's last run", error=type(error).__name__)
        await tasks.pause(_METRICS_SECONDS)
