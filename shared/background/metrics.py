"""Figures of jobs, on the metrics port of a worker."""

import asyncio
from typing import LiteralString

import psycopg
import structlog
from prometheus_client import Counter, Gauge, Histogram

from shared.background.tasks import wanted
from shared.database.db import Database
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

# Every table whose rows are jobs has this column.
_TABLES: LiteralString = """
    SELECT table_name FROM information_schema.columns WHERE table_schema = %s AND column_name
        = 'losses' ORDER BY 1
"""
_OF_TABLE = """
    SELECT '{table}' AS job, waits_for AS what, count(*) AS number,
        extract(epoch FROM now() - min(waiting_since))::float8 AS oldest
    FROM {table} WHERE waiting_since IS NOT NULL AND state = 'pending' GROUP BY waits_for
"""


async def watch_waits(db: Database) -> None:
    """Shows again and again what the service's jobs wait for. Every worker shows the figures of the
    whole service, so that rules take their maximum. Runs until cancelled."""
    statement: LiteralString = ""
    shown: set[tuple[str, str]] = set()
    while wanted():
        try:
            if not statement:
                tables = [row.table_name for row in await db.system_rows(_TABLES, (db.service,))]
                statement = " UNION ALL ".join(_OF_TABLE.format(table=table) for table in tables)
            found = {(row.job, row.what): row for row in await db.system_rows(statement)}
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
