"""Metrics of reviews: how many are open and overdue, how long the oldest waits, and what persons
decided."""

from dataclasses import dataclass

import psycopg
import structlog
from atelier.pipeline.v1 import review_pb2
from prometheus_client import Counter, Gauge

from services.pipeline import decision_rows
from shared.background import tasks
from shared.background.metrics import PAUSE_SECONDS
from shared.database.db import Database
from shared.database.rows import Statement
from shared.telemetry import METRICS

_log = structlog.get_logger("reviews")

DECISIONS = Counter(
    "atelier_review_decisions_total",
    "Decisions of persons about reviews, by kind",
    ["decision"],
    registry=METRICS,
)
OPEN = Gauge("atelier_reviews_open", "Reviews that wait for a person", registry=METRICS)
OVERDUE = Gauge(
    "atelier_reviews_overdue", "Open reviews that should have been decided by now", registry=METRICS
)
OLDEST = Gauge(
    "atelier_review_oldest_seconds", "How long the oldest open review waits", registry=METRICS
)


@dataclass(slots=True)
class _Open:
    number: int
    overdue: int
    oldest: float  # seconds


_SELECT_OPEN = Statement(
    _Open,
    """
    SELECT count(*) AS number, count(*) FILTER (WHERE due_at < now()) AS overdue,
        COALESCE(extract(epoch FROM now() - min(created_at)), 0)::double precision AS oldest
    FROM reviews WHERE state = 'open'
""",
)


def count_decision(decision: review_pb2.ReviewDecision) -> None:
    DECISIONS.labels(decision_rows.KINDS.word[decision]).inc()


async def watch_reviews(db: Database) -> None:
    """Updates the gauges of reviews every 15 s until cancelled. Every worker shows the figures of
    the whole service, so alert rules must take their maximum."""
    while tasks.not_cancelled():
        try:
            [found] = await db.system_all(_SELECT_OPEN)
            OPEN.set(found.number)
            OVERDUE.set(found.overdue)
            OLDEST.set(found.oldest)
        except psycopg.Error as error:
            _log.warning("figures of reviews are old", error=type(error).__name__)
        await tasks.pause(PAUSE_SECONDS)
