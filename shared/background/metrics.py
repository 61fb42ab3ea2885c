"""Job metrics, served on a worker's metrics port."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import sqlalchemy as sa
import structlog
from prometheus_client import Counter, Gauge, Histogram

from shared.background import tasks
from shared.background.worker import LONG_AGO
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
_QUEUE_LABELS = ("service", "queue", "job")
QUEUED = Gauge(
    "atelier_queue_jobs", "Jobs that wait for their turn", _QUEUE_LABELS, registry=METRICS
)
QUEUED_OLDEST = Gauge(
    "atelier_queue_oldest_seconds",
    "How long the first of them has been waiting for its turn",
    _QUEUE_LABELS,
    registry=METRICS,
)
PAUSE_SECONDS = 15.0  # between two readings of figures
_log = structlog.get_logger("jobs")


@dataclass(slots=True)
class _Queue:
    """The jobs of one kind that wait in a queue."""

    queue: str
    job: str
    number: int
    oldest: float  # seconds


# Every table of jobs has a column `losses`.
_SELECT_TABLES = Statement(
    str,
    """
    SELECT table_name::text FROM information_schema.columns
    WHERE table_schema = %(schema)s AND column_name = 'losses' ORDER BY 1
""",
)


# Jobs keep their ids when they run again, so that the smallest id is the one to have waited longest
# only of those that never ran. One that ran waits since the time for which it was put off, or if it
# was put back at once, since then.
_SELECT_QUEUES = Statement(
    _Queue,
    """
    SELECT queue, job, number, COALESCE(extract(epoch FROM now() - least(
            put_off, put_back, deferred.at)), 0)::double precision AS oldest
    FROM (SELECT queue_name AS queue, task_name AS job, count(*) AS number,
            min(id) FILTER (WHERE scheduled_at IS NULL) AS first,
            min(scheduled_at) FILTER (WHERE scheduled_at > %(at_once)s::timestamptz) AS put_off,
            min(CASE WHEN scheduled_at <= %(at_once)s::timestamptz THEN
                (SELECT max(at) FROM procrastinate_events AS event WHERE event.job_id = waiting.id
                    AND event.type IN ('deferred', 'deferred_for_retry')) END) AS put_back
        FROM procrastinate_jobs AS waiting
        WHERE status = 'todo' AND (scheduled_at IS NULL OR scheduled_at <= now())
        GROUP BY queue_name, task_name) AS queues
    LEFT JOIN procrastinate_events AS deferred
        ON deferred.job_id = queues.first AND deferred.type = 'deferred'
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


class Figures:
    """Gauges with the same labels, which show what was counted last."""

    def __init__(self, *gauges: Gauge) -> None:
        self._gauges = gauges
        self._shown: set[tuple[str, ...]] = set()

    def show(self, found: Mapping[tuple[str, ...], Sequence[float]]) -> None:
        """Shows a value for each gauge by labels, and takes away what was shown and isn't found."""
        for gone in self._shown - found.keys():
            for gauge in self._gauges:
                gauge.remove(*gone)
        for labels, values in found.items():
            for gauge, value in zip(self._gauges, values, strict=True):
                gauge.labels(*labels).set(value)
        self._shown = set(found)


async def watch_queues(db: Database) -> None:
    """Updates the gauges of queues every 15 s until cancelled. Every worker shows the figures of
    the whole service, so alert rules must take their maximum."""
    figures = Figures(QUEUED, QUEUED_OLDEST)
    while tasks.not_cancelled():
        try:
            figures.show(
                {
                    (db.service, row.queue.removeprefix(f"{db.service}."), row.job): (
                        row.number,
                        row.oldest,
                    )
                    for row in await db.system_all(_SELECT_QUEUES, {"at_once": LONG_AGO})
                }
            )
        except psycopg.Error as error:
            _log.warning(
                "figures of queues are old", service=db.service, error=type(error).__name__
            )
        await tasks.pause(PAUSE_SECONDS)


async def watch_waits(db: Database) -> None:
    """Updates the gauges of waiting jobs every 15 s until cancelled. Every worker shows the figures
    of the whole service, so alert rules must take their maximum."""
    statement: Statement[_Waiting] | None = None
    shown: set[tuple[str, str]] = set()
    while tasks.not_cancelled():
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
        await tasks.pause(PAUSE_SECONDS)
