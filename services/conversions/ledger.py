"""The check of the ledger: every account is the sum of its entries, and what it has set aside is
what its jobs that haven't ended hold. What differs is told and never mended: a person must look
why."""

from dataclasses import dataclass

import psycopg
import structlog
from prometheus_client import Gauge

from shared.background import tasks
from shared.database.db import Database
from shared.database.rows import Statement
from shared.rpc.errors import DomainError
from shared.telemetry import METRICS

MISMATCHES = Gauge(
    "atelier_credit_mismatches",
    "Owners whose account isn't the sum of its entries, or holds what no job holds",
    registry=METRICS,
)
CHECKED = Gauge(
    "atelier_credit_check_timestamp_seconds",
    "When all accounts were last compared with their entries",
    registry=METRICS,
)
_MOST_TOLD = 20
_RETRY_SECONDS = 30.0
_log = structlog.get_logger("ledger")


@dataclass(slots=True)
class Mismatch:
    """An account that differs from its entries, or from what its jobs hold."""

    owner: str
    available: int
    reserved: int
    entries_available: int
    entries_reserved: int
    held_by_jobs: int


# One statement reads everything at one moment.
_SELECT_MISMATCHES = Statement(
    Mismatch,
    """
    SELECT owner, coalesce(a.available, 0) AS available, coalesce(a.reserved, 0) AS reserved,
        coalesce(e.available, 0)::bigint AS entries_available,
        coalesce(e.reserved, 0)::bigint AS entries_reserved,
        coalesce(j.held, 0)::bigint AS held_by_jobs
    FROM credit_accounts a
    FULL JOIN (
        SELECT owner, sum(available_change) AS available, sum(reserved_change) AS reserved
        FROM credit_entries GROUP BY owner
    ) AS e USING (owner)
    FULL JOIN (
        SELECT owner, sum(credits_reserved) AS held FROM (
            SELECT owner, credits_reserved FROM conversions WHERE credits_reserved > 0
            UNION ALL
            SELECT owner, credits_reserved FROM generations WHERE credits_reserved > 0
            UNION ALL
            SELECT owner, credits_reserved FROM analyses WHERE credits_reserved > 0
        ) AS held GROUP BY owner
    ) AS j USING (owner)
    WHERE coalesce(a.available, 0) <> coalesce(e.available, 0)
        OR coalesce(a.reserved, 0) <> coalesce(e.reserved, 0)
        OR coalesce(a.reserved, 0) <> coalesce(j.held, 0)
    ORDER BY owner
    """,
)


async def mismatches(db: Database) -> list[Mismatch]:
    """Returns every account that differs from its entries or its jobs, for a worker."""
    return await db.system_all(_SELECT_MISMATCHES)


async def check_forever(db: Database, every_seconds: float) -> None:
    """Checks all accounts now and then every so often, until cancelled. Every worker shows the
    figures of the whole service, so alert rules must take their maximum."""
    while tasks.not_cancelled():
        pause = every_seconds
        try:
            found = await mismatches(db)
            MISMATCHES.set(len(found))
            CHECKED.set_to_current_time()
            for wrong in found[:_MOST_TOLD]:
                _log.error(
                    "an account of credits is not the sum of its entries",
                    owner=wrong.owner,
                    available=wrong.available,
                    reserved=wrong.reserved,
                    entries_available=wrong.entries_available,
                    entries_reserved=wrong.entries_reserved,
                    held_by_jobs=wrong.held_by_jobs,
                )
        except (psycopg.Error, DomainError) as error:
            _log.warning("accounts wait to be checked", error=type(error).__name__)
            pause = min(every_seconds, _RETRY_SECONDS)
        await tasks.pause(pause)
