"""Removes log lines that the settings keep no longer, level by level, in chunks.

Several workers may do it at the same time: each passes over lines that another one is removing.
"""

from collections.abc import AsyncIterator
from datetime import timedelta

import psycopg
import structlog
from prometheus_client import Counter

from shared.background import tasks
from shared.database.db import Database
from shared.database.rows import Statement
from shared.settings import Settings
from shared.telemetry import METRICS

_CHUNK = 1000
_PAUSE_SECONDS = 600.0
_log = structlog.get_logger("logs")

PRUNED = Counter(
    "atelier_product_logs_pruned_total",
    "Lines of products' logs that were kept long enough and removed, by level",
    ["level"],
    registry=METRICS,
)
# Every line belongs to a product, whose owners a worker may read. Each step looks one index entry
# up, however many products an owner has.
_SELECT_NEXT_OWNER = Statement(
    str, "SELECT owner FROM products WHERE owner > %(after)s ORDER BY owner LIMIT 1"
)
_DELETE_CHUNK = Statement(
    int,
    """
    DELETE FROM logs WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM logs WHERE owner = %(owner)s AND level = %(level)s
            AND created_at < now() - %(kept)s::interval
        ORDER BY created_at LIMIT %(chunk)s FOR UPDATE SKIP LOCKED))
    RETURNING 1 AS removed
""",
)


class LogPruner:
    def __init__(self, db: Database, settings: Settings, *, chunk: int = _CHUNK) -> None:
        days = {
            "debug": settings.log_debug_days,
            "info": settings.log_info_days,
            "warning": settings.log_warning_days,
            "error": settings.log_error_days,
        }
        self._db = db
        self._kept = {level: timedelta(days=number) for level, number in days.items() if number}
        self._chunk = chunk

    async def run_forever(self) -> None:
        while tasks.not_cancelled():
            try:
                if removed := await self.run():
                    _log.info("log lines were kept long enough", lines=removed)
            except psycopg.Error as error:
                _log.warning("old log lines stay for now", error=type(error).__name__)
            await tasks.pause(_PAUSE_SECONDS)

    async def run(self) -> int:
        """Removes what is due. Returns how many lines that were."""
        total = 0
        if self._kept:
            async for owner in self._owners():
                for level, kept in self._kept.items():
                    total += await self._prune(owner, level, kept)
        return total

    async def _owners(self) -> AsyncIterator[str]:
        after = ""
        while found := await self._db.system_all(_SELECT_NEXT_OWNER, {"after": after}):
            [after] = found
            yield after

    async def _prune(self, owner: str, level: str, kept: timedelta) -> int:
        about = {"owner": owner, "level": level, "kept": kept, "chunk": self._chunk}
        total = 0
        while True:
            async with self._db.transaction(owner) as m:
                removed = len(await m.all(_DELETE_CHUNK, about))
            PRUNED.labels(level).inc(removed)
            total += removed
            if removed < self._chunk:
                return total
