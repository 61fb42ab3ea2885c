"""Metrics of erasures of owners: how many are open in a service, and since when."""

from dataclasses import dataclass

import psycopg
import structlog
from prometheus_client import Gauge

from shared.background import tasks
from shared.background.metrics import PAUSE_SECONDS, Figures
from shared.database.db import Database
from shared.database.rows import Statement
from shared.telemetry import METRICS

OPEN = Gauge(
    "atelier_erasures_open",
    "Owners who are being erased in the service",
    ["service"],
    registry=METRICS,
)
OLDEST = Gauge(
    "atelier_erasure_oldest_seconds",
    "How long ago the first of these erasures began",
    ["service"],
    registry=METRICS,
)
_log = structlog.get_logger("erasing")


@dataclass(slots=True)
class OpenErasures:
    number: int
    oldest: float  # seconds


_SELECT_OPEN = Statement(
    OpenErasures,
    """
    SELECT count(*) AS number,
        COALESCE(extract(epoch FROM now() - min(erased_at)), 0)::double precision AS oldest
    FROM erased_owners WHERE done_at IS NULL OR reported_at IS NULL
    """,
)


async def watch_erasures(db: Database, select: Statement[OpenErasures] = _SELECT_OPEN) -> None:
    """Updates the gauges of erasures every 15 s until cancelled. `select` counts those that are
    open. Every worker shows the figures of the whole service, so alert rules must take their
    maximum."""
    figures = Figures(OPEN, OLDEST)
    while tasks.not_cancelled():
        try:
            [found] = await db.system_all(select)
            figures.show({(db.service,): (found.number, found.oldest)})
        except psycopg.Error as error:
            _log.warning(
                "figures of erasures are old", service=db.service, error=type(error).__name__
            )
        await tasks.pause(PAUSE_SECONDS)
