"""Job metrics, served on a worker's metrics port."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import sqlalchemy as sa
import structlog
from prometheus_client import Counter, Gauge, Histogram

from shared.background.tasks import not_cancelled
from shared.database.db import Database
from shared.database.rows import Statement, compiled
from shared.telemetry import METRICS

TRIES = Counter(
    "atelier_job_tries",
    "Tries of jobs that this worker ended",
    ["job", "outcome"],
    registry=METRICS,
)
SECONDS = Histogram(
    "atelier_job_try_seconds",
    "Duration of tries that succeeded",
    ["job"],
    registry=METRICS,
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600),
)
_LABELS = ("service", "job", "what")
WAITING = Gauge(
    "atelier_jobs_waiting", "Jobs that wait for something that is away", _LABELS, registry=METRICS
)
OLDEST = Gauge(
    "atelier_jobs_waiting_oldest_seconds",
    "How long the first of them has been waiting",
    _LABELS,
    registry=METRICS,
)
_PAUSE_SECONDS = 15.0
_log = structlog.get_logger("jobs")

# Every table of jobs has a column `losses`.
_SELECT_TABLES = Statement(
    str,
    """
    SELECT table_name::text FROM information_schema.columns
    WHERE table_schema = %(schema)s AND column_name = 'losses' ORDER BY 1
""",
)


@dataclass(slots=True)
class _Waiting:
    """The jobs of one table that wait for the same thing."""

    job: str
    what: str
    number: int
    oldest: float  # seconds


def _select_waiting(names: Sequence[str]) -> Statement[_Waiting]:
    return compiled(_Waiting, sa.union_all(*map(_waiting_of, names)))


def _waiting_of(name: str) -> sa.Select[Any]:
    table = sa.table(name, *map(sa.column, ("state", "waits_for", "waiting_since")))
    row = table.c
    age = sa.func.extract("epoch", sa.func.now() - sa.func.min(row.waiting_since))
    return (
        sa.select(
            sa.literal_column(f"'{name}'").label("job"),
            row.waits_for.label("what"),
            sa.func.count().label("number"),
            sa.cast(age, sa.Double).label("oldest"),
        )
        .where(row.waiting_since.is_not(None), row.state == sa.literal_column("'pending'"))
        .group_by(row.waits_for)
    )


async def watch_waits(db: Database) -> None:
    """Updates the gauges of waiting jobs every 15 s until cancelled. Every worker shows the figures
    of the whole service, so alert rules must take their maximum."""
    statement: Statement[_Waiting] | None = None
    shown: set[tuple[str, str]] = set()
    while not_cancelled():
        try:
            if statement is None:
                tables = await db.system_all(_SELECT_TABLES, {"schema": db.service})
                statement = _select_waiting(tables)
            found = {(row.job, row.what): row for row in await db.system_all(statement)}
            for gone in shown - found.keys():
                WAITING.remove(db.service, *gone)
                OLDEST.remove(db.service, *gone)
            for (job, what), row in found.items():
                WAITING.labels(db.service, job, what).set(row.number)
                OLDEST.labels(db.service, job, what).set(row.oldest)
            shown = set(found)
        except psycopg.Error as error:
            _log.warning(
                "figures of waiting jobs are old", service=db.service, error=type(error).__name__
            )
        await asyncio.sleep(_PAUSE_SECONDS)
