"""The metric of history checks: the findings that are open, by the kind of fault."""

from dataclasses import dataclass

import psycopg
import structlog
from prometheus_client import Gauge

from services.techfiles.verifying.finding_rows import FAULTS
from shared.background import tasks
from shared.background.metrics import PAUSE_SECONDS
from shared.database.db import Database
from shared.database.rows import Statement
from shared.telemetry import METRICS

_log = structlog.get_logger("verifying")

OPEN = Gauge(
    "atelier_history_findings_open",
    "Faults that checks found in histories of tech files and that nobody has repaired, by kind",
    ["fault"],
    registry=METRICS,
)


@dataclass(slots=True)
class _Open:
    fault: str
    number: int


_SELECT_OPEN = Statement(
    _Open,
    "SELECT fault, count(*) AS number FROM history_findings WHERE state = 'open' GROUP BY fault",
)


async def watch_findings(db: Database) -> None:
    """Updates the gauge every 15 s until cancelled. Every worker shows the figures of the whole
    service, so alert rules must take their maximum."""
    while tasks.not_cancelled():
        try:
            found = {row.fault: row.number for row in await db.system_all(_SELECT_OPEN)}
            for fault in FAULTS.number:
                OPEN.labels(fault).set(found.get(fault, 0))
        except psycopg.Error as error:
            _log.warning("figures of findings are old", error=type(error).__name__)
        await tasks.pause(PAUSE_SECONDS)
