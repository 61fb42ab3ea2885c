"""Writes finished analyses of base views to the older application's table.

A trigger asks for each write in the transaction that finishes the file, so none is forgotten; one
process works the list off. A row that the table doesn't take is tried again ever more rarely, and
shown with the reason.
"""

import math
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg
import structlog
from prometheus_client import Counter, Gauge

from services.techfiles.legacy.old_table import (
    OldAnalysis,
    OldTable,
    OldTableWrong,
    Session,
    ValueRefused,
)
from services.techfiles.tech_file_rows import TECH_FILES, TechFile
from shared.background import sole, tasks
from shared.database.db import Database
from shared.database.exchange import Connection
from shared.database.rows import Command, Statement
from shared.telemetry import METRICS

_PAUSE_SECONDS = 1.0
_AWAY_SECONDS = 15.0
_SILENT_SECONDS = 60
_BATCH = 100
_LONGEST_SECONDS = 3600
_log = structlog.get_logger("legacy")

WRITES = Counter(
    "atelier_legacy_writes_total",
    "Analyses written to the older application's table, by outcome: written, newer, empty, refused",
    ["outcome"],
    registry=METRICS,
)
PENDING = Gauge(
    "atelier_legacy_writes_pending",
    "Analyses that wait to be written to the older application's table",
    registry=METRICS,
)
OLDEST = Gauge(
    "atelier_legacy_writes_oldest_seconds",
    "How long the oldest of them has waited",
    registry=METRICS,
)


@dataclass(slots=True)
class Write:
    tech_file_id: UUID
    owner: str
    asked_at: datetime
    attempts: int


@dataclass(slots=True)
class _Finished(TechFile):
    """A file that is to be written. `outdone`: a later version of its slot has an analysis that
    belongs in the same row."""

    outdone: bool


@dataclass(slots=True)
class Waiting:
    number: int
    since: datetime | None
    oldest: float  # seconds


SELECT_WAITING = Statement(
    Waiting,
    """
    SELECT count(*) AS number, min(since) AS since,
        coalesce(extract(epoch FROM now() - min(since)), 0)::float8 AS oldest
    FROM legacy_writes
    """,
)
_SELECT_DUE = Statement(
    Write,
    """
    SELECT tech_file_id, owner, asked_at, attempts FROM legacy_writes
    WHERE next_at <= now() ORDER BY next_at LIMIT %(limit)s
    """,
)
_SELECT_FINISHED = Statement(
    _Finished,
    f"""
    SELECT {TECH_FILES.of("f")}, EXISTS (
        SELECT FROM tech_files later WHERE later.slot_id = f.slot_id AND later.number > f.number
            AND later.revision_id = f.revision_id AND later.state = 'completed'
            AND later.archived_at IS NULL AND later.deleted_at IS NULL
            AND later.analysis <> '{{}}') AS outdone
    FROM tech_files f WHERE f.id = %(id)s
    """,
)
_DONE = Command("DELETE FROM legacy_writes WHERE tech_file_id = %(id)s AND asked_at = %(asked_at)s")
_POSTPONE = Command("""
    UPDATE legacy_writes SET attempts = attempts + 1, problem = %(problem)s,
        next_at = now() + %(seconds)s * interval '1 second'
    WHERE tech_file_id = %(id)s AND asked_at = %(asked_at)s
""")
_SWITCH_ON = Command("INSERT INTO legacy_switch DEFAULT VALUES ON CONFLICT DO NOTHING")
_SWITCH_OFF = Command("DELETE FROM legacy_switch")


class Writer:
    def __init__(self, db: Database, table: OldTable) -> None:
        self._db = db
        self._table = table

    async def run(self) -> None:
        """Works until cancelled."""
        while tasks.not_cancelled():
            pause = _PAUSE_SECONDS
            try:
                alone = sole.alone(
                    self._db, sole.Duty.LEGACY_WRITING, silent_seconds=_SILENT_SECONDS
                )
                async with alone as lock:
                    if lock:
                        pause = await self._keep_writing(lock)
            except psycopg.Error as error:
                _log.warning("writing waits", error=type(error).__name__)
            await tasks.pause(pause)

    async def _keep_writing(self, lock: Connection) -> float:
        """Writes while this process has the duty. Returns the pause after which to try again."""
        await self._switch()
        while tasks.not_cancelled() and self._table.writes:
            await self._show_figures()
            due = await self._db.system_all(_SELECT_DUE, {"limit": _BATCH})
            try:
                if due:
                    async with self._table.session() as session:
                        for write in due:
                            await self._write(session, write)
                            await sole.check(lock)
            except OldTableWrong as wrong:
                _log.error("the table can't be used", problems=wrong.problems)
                return _AWAY_SECONDS
            except psycopg.OperationalError as error:
                _log.warning("the other database is away", error=type(error).__name__)
                return _AWAY_SECONDS
            await sole.check(lock)
            if len(due) < _BATCH:
                await tasks.pause(_PAUSE_SECONDS)
        return _AWAY_SECONDS

    async def _switch(self) -> None:
        async with self._db.transaction("") as m:
            await m.run(_SWITCH_ON if self._table.writes else _SWITCH_OFF)

    async def _show_figures(self) -> None:
        [waiting] = await self._db.system_all(SELECT_WAITING)
        PENDING.set(waiting.number)
        OLDEST.set(waiting.oldest)

    async def _write(self, session: Session, write: Write) -> None:
        one = {"id": write.tech_file_id, "asked_at": write.asked_at}
        async with self._db.transaction(write.owner) as m:
            file = await m.first(_SELECT_FINISHED, {"id": write.tech_file_id})
        problem = await self._put(session, file) if file else ""
        async with self._db.transaction(write.owner) as m:
            if problem:
                seconds = min(math.pow(4, write.attempts + 1), _LONGEST_SECONDS)
                await m.run(_POSTPONE, {**one, "problem": problem, "seconds": seconds})
            else:
                await m.run(_DONE, one)

    async def _put(self, session: Session, file: _Finished) -> str:
        """Writes the file's analysis unless it is empty or a later version has another one. Returns
        why the table doesn't take it, or ""."""
        values = self._table.written(_analysis(file), file.updated_at)
        if values is None:
            return ""
        if not file.analysis or file.outdone:
            WRITES.labels("newer" if file.outdone else "empty").inc()
            return ""
        try:
            WRITES.labels(await session.write(values)).inc()
        except ValueRefused as refused:
            WRITES.labels("refused").inc()
            return str(refused)[:1000]
        return ""


def _analysis(file: TechFile) -> OldAnalysis:
    return OldAnalysis(
        owner=file.owner,
        product_id=file.product_id,
        revision_id=file.revision_id,
        view_type=file.view_type,
        analysis=file.analysis or {},
        model=file.model,
        confidence=file.confidence,
        created_at=file.created_at,
    )
