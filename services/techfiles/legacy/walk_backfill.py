"""The job of a backfill: walks over the older application's table by id, and makes tech files of
its rows.

Each row's file and the walk's progress are committed together, so that a crash makes nothing twice.
After 2,000 rows the walk gives its worker back, so that the queue decides anew.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from services.techfiles import rules, tech_file_rows
from services.techfiles.legacy.backfill_rows import BACKFILLS, MOST_FAILURES, Backfill, Report
from services.techfiles.legacy.old_table import (
    OldAnalysis,
    OldRow,
    OldTable,
    OldTableWrong,
    Session,
    ValueRefused,
)
from shared.background import attempts, jobs
from shared.background.attempts import Attempt, JobFailed, Outcome, Waits
from shared.background.job_tables import JobTable
from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement
from shared.rpc import errors, protos
from shared.rpc.errors import DomainError

_PAGE = 200
_STRETCH = 2000


@dataclass(slots=True)
class _Slot:
    """What is there of a row's slot. `present`: a base view of the same revision."""

    present: bool
    latest_since: datetime | None


_SELECT_SLOT = Statement(
    _Slot,
    """
    SELECT coalesce(bool_or(revision_id = %(revision_id)s), false) AS present,
        max(created_at) FILTER (WHERE is_latest) AS latest_since
    FROM tech_files
    WHERE owner = %(owner)s AND product_id = %(product_id)s AND file_type = 'base_view'
        AND view_type = %(view_type)s
    """,
)
_ARCHIVE = Command("""
    UPDATE tech_files SET archived_at = now(), is_latest = false, version = version + 1,
        updated_at = now()
    WHERE id = %(id)s
""")
_SET_TOTAL = Command("UPDATE legacy_backfills SET total = %(total)s WHERE id = %(id)s")
_REACH = Statement(
    UUID,
    f"""
    UPDATE legacy_backfills SET reached = %(reached)s, examined = examined + %(examined)s,
        made = made + %(made)s, archived = archived + %(archived)s,
        present = present + %(present)s, erased = erased + %(erased)s,
        failed = failed + %(failed)s,
        failures = CASE WHEN jsonb_array_length(failures) < {MOST_FAILURES}
            THEN failures || %(failures)s::jsonb ELSE failures END,
        version = version + 1, updated_at = now()
    WHERE id = %(id)s AND attempt_token = %(token)s AND state = 'running' RETURNING id
    """,
)


class Walk:
    """Runs the job of a backfill: stretches of the walk, until there is nothing left."""

    def __init__(self, db: Database, table: OldTable) -> None:
        self._db = db
        self._table = table
        self._kind = JobTable(BACKFILLS, rules.WALK_STATES, "running", "done", _publish_nothing)

    async def run(self, backfill_id: str) -> None:
        await attempts.run(self._db, self._kind, backfill_id, self._stretch)

    async def _stretch(self, attempt: Attempt[Backfill]) -> Outcome[Backfill]:
        """Takes the next rows. It is tried again if there are more."""
        try:
            async with self._table.session() as session:
                if attempt.row.total is None:
                    await self._count(attempt, session)
                if await self._walk(attempt, session):
                    return Outcome({})
        except OldTableWrong as wrong:
            raise JobFailed("TABLE_WRONG", str(wrong)) from None
        except psycopg.OperationalError as error:
            text = f"its database is away: {type(error).__name__}"
            raise Waits("legacy", "UNAVAILABLE", text) from None
        return Outcome({}, to="pending", again=jobs.TryAgain())

    async def _count(self, attempt: Attempt[Backfill], session: Session) -> None:
        total = await session.count()
        async with self._db.transaction(attempt.row.owner) as m:
            await m.run(_SET_TOTAL, {"total": total, "id": attempt.row.id})

    async def _walk(self, attempt: Attempt[Backfill], session: Session) -> bool:
        """Returns True at the end of the table, False if the walk is to go on later."""
        reached, taken = attempt.row.reached, 0
        while rows := await session.page(reached, _PAGE):
            for row in rows:
                await self._take(attempt, row)
            reached, taken = rows[-1].id, taken + len(rows)
            if taken >= _STRETCH:
                return False
        return True

    async def _take(self, attempt: Attempt[Backfill], row: OldRow) -> None:
        """Makes the file of a row, or counts why there is none, and moves the walk on."""
        report, row_id = Report(examined=1), str(row.id)
        try:
            found = _checked(self._table.read(row))
            await self._make(attempt, row_id, found, report)
            return
        except ValueRefused as refused:
            report.fail(row_id, str(refused))
        except psycopg.errors.CheckViolation as refusal:
            if not errors.is_owner_erased(refusal):
                raise
            report.erased += 1
        async with self._db.transaction(attempt.row.owner) as m:
            await _reach(m, attempt, row_id, report)

    async def _make(
        self, attempt: Attempt[Backfill], row_id: str, found: OldAnalysis, report: Report
    ) -> None:
        async with self._db.transaction(found.owner) as m:
            place = {
                "owner": found.owner,
                "product_id": found.product_id,
                "view_type": found.view_type,
                "revision_id": found.revision_id,
            }
            slot = await m.one(_SELECT_SLOT, place)
            if slot.present:
                report.present += 1
            else:
                report.made += 1
                older = bool(
                    slot.latest_since and found.created_at and found.created_at < slot.latest_since
                )
                report.archived += older
                if not attempt.row.dry_run:
                    await _create(m, found, archived=older)
            await _reach(m, attempt, row_id, report)


async def _create(m: Mutation, found: OldAnalysis, *, archived: bool) -> None:
    columns: dict[str, Any] = {
        "product_id": found.product_id,
        "revision_id": found.revision_id,
        "file_type": "base_view",
        "view_type": found.view_type,
        "analysis": dict(found.analysis),
        "model": found.model,
        "confidence": found.confidence,
        "state": "completed",
        "origin": "legacy",
    }
    file = await tech_file_rows.create(m, columns)
    if archived:
        await m.run(_ARCHIVE, {"id": file.id})
        await tech_file_rows.settle_latest(m, file.slot_id, file.id)


async def _reach(m: Mutation, attempt: Attempt[Backfill], row_id: str, report: Report) -> None:
    values = {
        "id": attempt.row.id,
        "token": attempt.token,
        "reached": row_id,
        "examined": report.examined,
        "made": report.made,
        "archived": report.archived,
        "present": report.present,
        "erased": report.erased,
        "failed": report.failed,
        "failures": Jsonb(report.failures),
    }
    if await m.first(_REACH, values) is None:
        raise attempts.Superseded


def _checked(found: OldAnalysis) -> OldAnalysis:
    """Returns an analysis that a tech file can hold. Raises ValueRefused."""
    if found.view_type not in ("front", "back", "side"):
        raise ValueRefused(f"its view is {found.view_type[:40]!r}; it can be front, back or side")
    for name in ("owner", "product_id", "revision_id"):
        text = str(getattr(found, name))
        if len(text) > 128 or "\0" in text:
            raise ValueRefused(f"its {name} has more than 128 characters")
    try:
        protos.check_json(found.analysis, "analysis", rules.ANALYSIS_BYTES)
    except DomainError as refusal:
        raise ValueRefused(refusal.text) from None
    return found


async def _publish_nothing(_m: Mutation, _row: Backfill) -> None:
    """Nobody watches backfills: operators look at them."""
