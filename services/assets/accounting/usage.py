"""What is used: reading it exactly, and folding what the database counted since into the tables
that are read.

Triggers count (tables.sql); a figure is the folded rows plus the deltas that aren't folded yet,
read by one statement, and so at one moment.
"""

import asyncio
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import structlog

from shared.background.tasks import wanted
from shared.database.db import Database, Mutation
from shared.rpc import auth, errors

DEPLOYMENT = "deployment"
WINDOW_DAYS = 30
_FOLD_SECONDS = 1.0
_FOLD_BATCH = 20_000
_log = structlog.get_logger("usage")

# What takes room, as opposed to what happened.
STOCKED = "noun IN ('asset', 'variant', 'document')"
# The word 'deployment' in a row stands for all owners, so its deltas are everybody's.
_STOCK = f"""
    SELECT noun, kind, mime_type, state, sum(number)::bigint AS number,
        sum(bytes)::bigint AS bytes FROM (
        SELECT noun, kind, mime_type, state, number, bytes FROM storage_totals WHERE owner
            = %(owner)s
        UNION ALL
        SELECT noun, kind, mime_type, state, number, bytes FROM storage_deltas
        WHERE {STOCKED} AND {{whose}}
    ) AS counted GROUP BY noun, kind, mime_type, state HAVING sum(number) <> 0 OR sum(bytes) <> 0
    ORDER BY noun, kind, mime_type, state
"""
_FLOW = f"""
    SELECT day, noun, state, sum(number)::bigint AS number, sum(bytes)::bigint AS bytes, today
        FROM (
        SELECT day, noun, state, number, bytes FROM storage_days
        WHERE owner = %(owner)s AND day > (now() AT TIME ZONE 'UTC')::date - %(days)s
        UNION ALL
        SELECT day, CASE WHEN {STOCKED} THEN 'stored' ELSE noun END,
               CASE WHEN {STOCKED} THEN '' ELSE state END, number, bytes FROM storage_deltas
        WHERE day > (now() AT TIME ZONE 'UTC')::date - %(days)s AND {{whose}}
    ) AS counted, (SELECT (now() AT TIME ZONE 'UTC')::date AS today) AS clock GROUP BY day, noun,
        state, today
"""
_FIRST_DAY = "SELECT min(day) AS day FROM storage_days WHERE owner = %(owner)s"
_HELD = f"""
    SELECT coalesce(sum(number) FILTER (WHERE noun = 'asset' AND state <> 'rejected'),
        0)::bigint AS assets,
           coalesce(sum(bytes) FILTER (WHERE noun = 'asset'), 0)::bigint AS originals,
           coalesce(sum(bytes), 0)::bigint AS stored,
           (SELECT coalesce(sum(bytes), 0)::bigint FROM (
                SELECT bytes FROM storage_days WHERE owner = %(owner)s AND noun = 'download'
                    AND day >= month
                UNION ALL
                SELECT bytes FROM storage_deltas WHERE noun = 'download' AND day >= month
                    AND {{whose}}) AS all_sent
           ) AS sent
    FROM (SELECT date_trunc('month', now() AT TIME ZONE 'UTC')::date AS month) AS clock LEFT
        JOIN LATERAL (
        SELECT noun, state, number, bytes FROM storage_totals WHERE owner = %(owner)s
        UNION ALL
        SELECT noun, state, number, bytes FROM storage_deltas WHERE {STOCKED} AND {{whose}}
    ) AS counted ON true GROUP BY month
"""
# Up to the last one that is seen, not one by one: a plan made while there were no deltas would look
# for each in all.
_FOLD = f"""
    WITH gone AS (
        DELETE FROM storage_deltas WHERE seq <= (
            SELECT max(seq) FROM (SELECT seq FROM storage_deltas ORDER BY seq
                LIMIT %(batch)s) AS first)
        RETURNING owner, session_id, noun, kind, mime_type, state, number, bytes, day
    ), kept AS (
        SELECT * FROM gone WHERE NOT EXISTS (SELECT FROM erased_owners e WHERE e.owner = gone.owner)
    ), counted AS (
        SELECT * FROM kept
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
    SELECT count(*) AS n FROM gone
"""


@dataclass
class Usage:
    """What an owner, or the deployment, uses. `stock`: rows of what is there; `flow`: rows of what
    happened by day."""

    stock: list[Any]
    flow: list[Any]
    first_day: date | None = None

    def number(self, noun: str, *states: str) -> int:
        return sum(
            r.number for r in self.stock if r.noun == noun and (not states or r.state in states)
        )

    @property
    def assets(self) -> int:
        return self.number("asset") - self.number("asset", "rejected")

    @property
    def stored_bytes(self) -> int:
        return sum(row.bytes for row in self.stock)

    def happened(self, noun: str, state: str, days: int) -> tuple[int, int]:
        """Number and bytes in the last `days` days, today among them."""
        rows = [r for r in self._since(days) if r.noun == noun and r.state == state]
        return sum(r.number for r in rows), sum(r.bytes for r in rows)

    def grown(self, days: int) -> int:
        """By how many bytes what is stored grew in the last `days` days."""
        return sum(row.bytes for row in self._since(days) if row.noun == "stored")

    def sent_this_month(self) -> dict[str, int]:
        return {
            how: sum(
                r.bytes
                for r in self.flow
                if r.noun == "download" and r.state == how and _same_month(r)
            )
            for how in ("exact", "issued")
        }

    def _since(self, days: int) -> list[Any]:
        return [row for row in self.flow if row.day > row.today - timedelta(days=days)]


def _same_month(row: Any) -> bool:
    return bool((row.day.year, row.day.month) == (row.today.year, row.today.month))


def _of(statement: str, owner: str) -> Any:
    return statement.format(whose="true" if owner == DEPLOYMENT else "owner = %(owner)s")


async def operate(m: Mutation) -> None:
    """Lets this transaction see use and quotas of every owner."""
    m.send(b"SELECT set_config('app.operator', 'on', true)")


def named(owner: str) -> str:
    """Whose figures a request is about. NOT_FOUND if it names another owner and the caller isn't an
    operator."""
    identity = auth.current()
    if identity.role == "admin":
        return owner or DEPLOYMENT
    if owner not in ("", identity.owner):
        raise errors.not_found("owner", owner)
    return identity.owner


async def read(db: Database, owner: str) -> Usage:
    """All figures of an owner, or the deployment, at one moment each."""
    async with db.transaction("") as m:
        await operate(m)
        stock = await m.all(_of(_STOCK, owner), {"owner": owner})
        flow = await m.all(_of(_FLOW, owner), {"owner": owner, "days": WINDOW_DAYS + 1})
        first = await m.one(_FIRST_DAY, {"owner": owner})
    return Usage(stock, flow, first.day)


async def held(m: Mutation, owner: str) -> Any:
    """assets, originals (bytes), stored (bytes), sent (bytes of this month): what quotas are about.
    After `operate`."""
    return await m.one(_of(_HELD, owner), {"owner": owner})


async def hold_folding(m: Mutation) -> None:
    """Nothing is folded while this transaction lasts."""
    await m.run("SELECT pg_advisory_xact_lock(hashtextextended('fold usage', 2))")


async def fold(db: Database) -> int:
    """Folds what was counted since, once; for a worker. Returns how many deltas there were; 0 if
    another one folds."""
    async with db.transaction("") as m:
        turn = await m.one(
            "SELECT pg_try_advisory_xact_lock(hashtextextended('fold usage', 2)) AS mine"
        )
        return (await m.one(_FOLD, {"batch": _FOLD_BATCH})).n if turn.mine else 0


async def fold_forever(db: Database) -> None:
    folded = 0
    while wanted():
        if folded < _FOLD_BATCH:
            await asyncio.sleep(_FOLD_SECONDS)
        try:
            folded = await fold(db)
        except Exception as error:
            _log.warning("folding waits", error=type(error).__name__)
