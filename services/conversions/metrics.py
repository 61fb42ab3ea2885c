"""Metrics of conversions: calls to providers of models and how the providers are doing, dead jobs,
open batches, outside workers, credits that are set aside, revocations, and the upkeep."""

from dataclasses import dataclass

import psycopg
import structlog
from prometheus_client import Counter, Gauge, Histogram

from services.conversions import provider_rows
from services.conversions.job_kinds import KINDS
from services.conversions.providers.routes import Routes
from shared.background import tasks
from shared.background.metrics import PAUSE_SECONDS, Figures
from shared.database.db import Database
from shared.database.rows import Statement
from shared.telemetry import METRICS

_WATCH_SECONDS = 10.0
_log = structlog.get_logger("providers")

PROVIDER_CALLS = Counter(
    "atelier_provider_calls_total",
    "Calls to providers of models, by how they ended",
    ["provider", "task", "outcome"],
    registry=METRICS,
)
PROVIDER_SECONDS = Histogram(
    "atelier_provider_seconds",
    "Duration of calls to providers of models",
    ["provider"],
    buckets=(0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320),
    registry=METRICS,
)
RETENTION = Counter(
    "atelier_retention_total",
    "Jobs and calls to providers that retention took, by class",
    ["class"],
    registry=METRICS,
)
UPKEEP_ROUND = Gauge(
    "atelier_upkeep_round_timestamp_seconds",
    "When this worker last ended a round of upkeep, or when it began to look for its turn",
    registry=METRICS,
)
PROVIDER_ASKABLE = Gauge(
    "atelier_provider_askable",
    "1 if jobs may ask the provider, 0 if it is paused or switched off",
    ["provider", "why"],
    registry=METRICS,
)


async def watch_providers(db: Database, routes: Routes) -> None:
    """Keeps the gauge of the providers' states up to date."""
    names = [name for name in routes.offers if routes.hosted]
    while tasks.not_cancelled():
        try:
            found = {
                each.name: each for each in await db.system_all(provider_rows.SELECT_AVAILABILITY)
            }
            for name in names:
                standing = found.get(name)
                off = bool(standing and standing.switched_off)
                paused = bool(standing and standing.paused_seconds > 0)
                PROVIDER_ASKABLE.labels(name, "switch").set(0 if off else 1)
                PROVIDER_ASKABLE.labels(name, "pause").set(0 if paused else 1)
        except Exception as error:
            _log.warning("can't look at the providers", error=type(error).__name__)
        await tasks.pause(_WATCH_SECONDS)


DEAD_JOBS = Gauge(
    "atelier_dead_jobs",
    "Jobs that failed for good through no fault of their owners; of outside workers' words for"
    " errors there may be many, so that they count as OUTSIDE",
    ["job", "error_class", "provider"],
    registry=METRICS,
)
BATCHES = Gauge(
    "atelier_batches",
    "Batches that are open; of those that are paused, by why",
    ["state", "pause_reason"],
    registry=METRICS,
)
REVOCATIONS = Gauge(
    "atelier_revocations_open",
    "Consents that were revoked and whose pictures aren't all erased",
    ["state"],
    registry=METRICS,
)
REVOCATION_OLDEST = Gauge(
    "atelier_revocation_oldest_seconds",
    "For how long the first of those that are being erased has made no progress",
    registry=METRICS,
)
_OUTSIDE_LABELS = ["job"]
LEASES = Gauge(
    "atelier_outside_leases", "Jobs that outside workers have", _OUTSIDE_LABELS, registry=METRICS
)
OUTSIDE_WAITING = Gauge(
    "atelier_outside_waiting",
    "Jobs that wait for an outside worker",
    _OUTSIDE_LABELS,
    registry=METRICS,
)
OUTSIDE_OLDEST = Gauge(
    "atelier_outside_oldest_seconds",
    "How long the first of them has been waiting",
    _OUTSIDE_LABELS,
    registry=METRICS,
)
CREDITS_RESERVED = Gauge(
    "atelier_credits_reserved", "Credits that are set aside for jobs", registry=METRICS
)


@dataclass(slots=True)
class _Dead:
    job: str
    error_class: str
    provider: str
    number: int


@dataclass(slots=True)
class _Batches:
    state: str
    pause_reason: str
    number: int


@dataclass(slots=True)
class _Revocations:
    running: int
    held: int
    oldest: float  # seconds


@dataclass(slots=True)
class _Outside:
    job: str
    leases: int
    waiting: int
    oldest: float  # seconds


_SELECT_DEAD = Statement(
    _Dead,
    """
    SELECT job, CASE WHEN external THEN 'OUTSIDE' ELSE error_class END AS error_class, provider,
        count(*) AS number
    FROM dead_jobs GROUP BY 1, 2, 3
    """,
)
_SELECT_BATCHES = Statement(
    _Batches,
    """
    SELECT state, pause_reason, count(*) AS number FROM batches
    WHERE state IN ('running', 'paused') GROUP BY state, pause_reason
    """,
)
# The condition is that of the index consents_open. What an erasure does changes the row.
_SELECT_REVOCATIONS = Statement(
    _Revocations,
    """
    SELECT count(*) FILTER (WHERE erasure = 'running') AS running,
        count(*) FILTER (WHERE erasure = 'held') AS held,
        COALESCE(extract(epoch FROM now() - min(updated_at) FILTER (WHERE erasure = 'running')),
            0)::double precision AS oldest
    FROM consents WHERE erasure IN ('running', 'held')
    """,
)
# The conditions are those of the indexes <table>_claim.
_SELECT_OUTSIDE = Statement(
    _Outside,
    " UNION ALL ".join(
        f"""
        SELECT '{table}' AS job, count(*) FILTER (WHERE state = 'processing') AS leases,
            count(*) FILTER (WHERE state = 'pending') AS waiting,
            COALESCE(extract(epoch FROM now() - min(updated_at) FILTER (WHERE state = 'pending')),
                0)::double precision AS oldest
        FROM {table} WHERE external AND state IN ('pending', 'processing')
        """
        for table in KINDS
    ),
)
_SELECT_RESERVED = Statement(
    int, "SELECT COALESCE(sum(reserved), 0)::bigint FROM credit_accounts WHERE reserved > 0"
)


async def watch_jobs(db: Database) -> None:
    """Updates the gauges of dead jobs, batches, outside workers, revocations and credits every 15 s
    until cancelled. Every worker shows the figures of the whole service, so alert rules must take
    their maximum."""
    dead, outside = Figures(DEAD_JOBS), Figures(LEASES, OUTSIDE_WAITING, OUTSIDE_OLDEST)
    batches = Figures(BATCHES)
    while tasks.not_cancelled():
        try:
            rows = await db.system_all(_SELECT_DEAD)
            dead.show({(row.job, row.error_class, row.provider): (row.number,) for row in rows})
            open_batches = await db.system_all(_SELECT_BATCHES)
            batches.show({(row.state, row.pause_reason): (row.number,) for row in open_batches})
            found = await db.system_all(_SELECT_OUTSIDE)
            outside.show({(row.job,): (row.leases, row.waiting, row.oldest) for row in found})
            [revoked] = await db.system_all(_SELECT_REVOCATIONS)
            REVOCATIONS.labels("running").set(revoked.running)
            REVOCATIONS.labels("held").set(revoked.held)
            REVOCATION_OLDEST.set(revoked.oldest)
            [reserved] = await db.system_all(_SELECT_RESERVED)
            CREDITS_RESERVED.set(reserved)
        except psycopg.Error as error:
            _log.warning("figures of jobs are old", error=type(error).__name__)
        await tasks.pause(PAUSE_SECONDS)
