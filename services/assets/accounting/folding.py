"""Folds the deltas that triggers wrote (storage_deltas) into the tables that figures come from."""

import asyncio

import structlog

from services.assets.accounting.usage_rows import STOCKED
from shared.background.tasks import not_cancelled
from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement

_FOLD_SECONDS = 1.0
_FOLD_BATCH = 20_000
_log = structlog.get_logger("usage")

_LOCK_FOLDING = Command("SELECT pg_advisory_xact_lock(hashtextextended('fold usage', 2))")
_TRY_LOCK_FOLDING = Statement(
    bool, "SELECT pg_try_advisory_xact_lock(hashtextextended('fold usage', 2))"
)
# Deltas are deleted up to the last visible one, not by a list of them: a plan that was made while
# the table was empty would scan all deltas for each.
_FOLD_DELTAS = Statement(
    int,
    f"""
    WITH gone AS (
        DELETE FROM storage_deltas WHERE seq <= (
            SELECT max(seq) FROM (SELECT seq FROM storage_deltas ORDER BY seq
                LIMIT %(batch)s) AS first)
        RETURNING owner, session_id, noun, kind, mime_type, state, number, bytes, day
    ), kept AS (
        SELECT owner, session_id, noun, kind, mime_type, state, number, bytes, day FROM gone
        WHERE NOT EXISTS (SELECT FROM erased_owners e WHERE e.owner = gone.owner)
    ), counted AS (
        SELECT owner, session_id, noun, kind, mime_type, state, number, bytes, day FROM kept
        UNION ALL
        SELECT 'deployment', '', noun, kind, mime_type, state, number, bytes, day FROM gone
    ), totals AS (
        INSERT INTO storage_totals AS t (owner, noun, kind, mime_type, state, number, bytes)
        SELECT owner, noun, kind, mime_type, state, sum(number), sum(bytes) FROM counted
        WHERE {STOCKED} GROUP BY owner, noun, kind, mime_type, state
        ON CONFLICT (owner, noun, kind, mime_type, state)
        DO UPDATE SET number = t.number + excluded.number, bytes = t.bytes + excluded.bytes
    ), days AS (
        INSERT INTO storage_days AS t (owner, day, noun, state, number, bytes)
        SELECT owner, day, CASE WHEN {STOCKED} THEN 'stored' ELSE noun END AS what,
               CASE WHEN {STOCKED} THEN '' ELSE state END AS how, sum(number), sum(bytes)
        FROM counted GROUP BY owner, day, what, how
        ON CONFLICT (owner, day, noun, state)
        DO UPDATE SET number = t.number + excluded.number, bytes = t.bytes + excluded.bytes
    ), placed AS (
        SELECT owner, '' AS place, noun, state, number, bytes FROM kept
        UNION ALL
        SELECT owner, session_id, noun, state, number, bytes FROM kept WHERE session_id <> ''
    ), places AS (
        INSERT INTO storage_places AS t (owner, session_id, assets, stored_bytes, sent_bytes)
        SELECT owner, place, coalesce(sum(number) FILTER (WHERE noun = 'asset' AND state
            <> 'rejected'), 0),
               coalesce(sum(bytes) FILTER (WHERE {STOCKED}), 0),
               coalesce(sum(bytes) FILTER (WHERE noun = 'download'), 0)
        FROM placed GROUP BY owner, place
        ON CONFLICT (owner, session_id) DO UPDATE SET assets = t.assets + excluded.assets,
            stored_bytes = t.stored_bytes + excluded.stored_bytes, sent_bytes = t.sent_bytes
                + excluded.sent_bytes
    )
    SELECT count(*) FROM gone
    """,
)


async def lock_folding(m: Mutation) -> None:
    """Locks folding: no worker folds until this transaction ends."""
    await m.run(_LOCK_FOLDING)


async def fold(db: Database) -> int:
    """Folds a batch of deltas. Workers call it. Returns how many there were; 0 if another worker is
    folding."""
    async with db.transaction("") as m:
        if not await m.one(_TRY_LOCK_FOLDING):
            return 0
        return await m.one(_FOLD_DELTAS, {"batch": _FOLD_BATCH})


async def fold_forever(db: Database) -> None:
    folded = 0
    while not_cancelled():
        if folded < _FOLD_BATCH:
            await asyncio.sleep(_FOLD_SECONDS)
        try:
            folded = await fold(db)
        except Exception as error:
            _log.warning("folding waits", error=type(error).__name__)
