"""Figures of storage of the whole deployment on the metrics port. Every server process shows the
same ones, so that rules take their maximum. They are read from the database on request, and kept
for 15 seconds."""

import asyncio
import concurrent.futures
import time
from collections.abc import Iterator

import structlog
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from services.assets.accounting.enforcing import Quotas
from services.assets.accounting.rules import ALERT_THRESHOLDS, Allowance, Held
from services.assets.accounting.usage_rows import DEPLOYMENT, Usage
from services.assets.upkeep import figures
from shared.database.db import Database

_KEPT_SECONDS = 15.0
_WAIT_SECONDS = 3.0
_log = structlog.get_logger("storage metrics")


class StorageCollector:
    """A collector for a registry of prometheus_client, which collects in a thread of its own. It
    must be created on the event loop that is to read the database."""

    def __init__(self, db: Database, quotas: Quotas) -> None:
        self._db = db
        self._quotas = quotas
        self._loop = asyncio.get_running_loop()
        self._kept: list[Metric] = []
        self._read_at = float("-inf")

    def collect(self) -> Iterator[Metric]:
        """Yields the kept figures, read anew if they are old. While the database is away, the old
        figures stay, with their time."""
        if time.monotonic() - self._read_at > _KEPT_SECONDS:
            reading = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
            try:
                self._kept = reading.result(_WAIT_SECONDS)
                self._read_at = time.monotonic()
            except (Exception, concurrent.futures.CancelledError) as error:
                reading.cancel()
                _log.warning("figures of storage are old", error=type(error).__name__)
        yield from self._kept

    async def _read(self) -> list[Metric]:
        return list(metrics(*await figures.figures(self._db, self._quotas, DEPLOYMENT)))


def metrics(use: Usage, allowed: Allowance, held: Held) -> Iterator[Metric]:
    yield from _stock(use)
    yield _one(
        "pending_uploads", "Uploads announced and not confirmed", use.number("asset", "pending")
    )
    yield _one("stored_bytes", "Bytes stored: originals, variants and documents", use.stored_bytes)
    sent = _gauge("bandwidth_month_bytes", "Bytes sent this calendar month (UTC)", "how")
    for how, size in use.sent_this_month().items():
        sent.add_metric([how], size)
    yield sent
    failed = figures.failure_rate(use) or 0.0
    yield _one(
        "failed_processing_ratio", "Failed variants of those that ended today and yesterday", failed
    )
    accepted = figures.success_rate(use)
    if accepted is not None:
        yield _one("upload_success_ratio", "Accepted uploads of those settled in 30 days", accepted)
    yield from _quotas(allowed, held)
    thresholds = _gauge("alert_threshold", "Over which an alert fires", "alert")
    for name, value in ALERT_THRESHOLDS.items():
        thresholds.add_metric([name], value)
    yield thresholds
    yield _one("read_timestamp_seconds", "When these figures were read", time.time())


def _stock(use: Usage) -> Iterator[Metric]:
    nouns = {
        "asset": ("kind", "mime_type", "status"),
        "variant": ("preset", "mime_type", "state"),
        "document": ("kind", "mime_type", "state"),
    }
    for noun, labels in nouns.items():
        number = _gauge(f"{noun}s", f"{noun.capitalize()}s that there are", *labels)
        size = _gauge(f"{noun}_bytes", f"Bytes of {noun}s", *labels)
        for row in use.stock:
            if row.noun == noun:
                number.add_metric([row.kind, row.mime_type, row.state], row.number)
                size.add_metric([row.kind, row.mime_type, row.state], row.bytes)
        yield number
        yield size


def _quotas(allowed: Allowance, held: Held) -> Iterator[Metric]:
    """Yields limit, use and ratio of each quota. Without a limit there is no ratio: nothing can be
    used up."""
    limit, used = (
        _gauge("quota_limit", "Limit; 0: none", "quota"),
        _gauge("quota_used", "Used of it", "quota"),
    )
    ratio = _gauge("quota_used_ratio", "Used as a fraction of the limit", "quota")
    held_by_quota = held.by_quota()
    for name, most in allowed.by_quota().items():
        limit.add_metric([name], most)
        used.add_metric([name], held_by_quota[name])
        if most:
            ratio.add_metric([name], held_by_quota[name] / most)
    yield from (limit, used, ratio)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"atelier_storage_{name}", text, labels=labels)


def _one(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"atelier_storage_{name}", text, value=value)
