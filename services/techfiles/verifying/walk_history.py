"""The job of a check: walks over slots in the order (owner, id), and leaves findings.

The findings of a group of slots and the walk's progress are committed together, so that a crash
finds nothing twice. Slots are examined without locks; one that looks wrong is examined again under
its lock, so that what others write meanwhile is no finding. After 2,000 slots or 20,000 rows the
walk gives its worker back, so that the queue decides anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from uuid import UUID

import psycopg

from services.techfiles import rules
from services.techfiles.verifying import finding_rows
from services.techfiles.verifying.check_rows import CHECKS, Check
from services.techfiles.verifying.examining import (
    SHOWN,
    Fault,
    Slot,
    changed_snapshots,
    examine,
    lock,
)
from shared.background import attempts, jobs
from shared.background.attempts import Attempt, Outcome
from shared.background.job_tables import JobTable
from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement
from shared.rpc import errors

_PAGE = 200  # slots in one statement
_NUMBERS = 2000  # that the slots of one statement have together, unless one slot has more
_SNAPSHOTS = 200  # in one statement: each may have 256 KiB
_STRETCH_SLOTS = 2000
_STRETCH_ROWS = 20_000
_NOWHERE = UUID(int=0)


@dataclass(slots=True)
class _Next:
    """A slot that is to be examined."""

    owner: str
    id: UUID
    last_number: int


@dataclass(slots=True)
class _Digests:
    """What some snapshots of a slot are by their digests. `reached`: the number of the last."""

    slot_id: UUID
    snapshots: int
    reached: int
    without: int
    wrong: int
    wrong_numbers: list[int] | None


@dataclass
class _Report:
    """What a group of slots came to."""

    slots: int = 0
    rows: int = 0
    findings: int = 0
    uncheckable: int = 0
    wrong: dict[UUID, int] = field(default_factory=dict)
    numbers: dict[UUID, list[int]] = field(default_factory=dict)


_NEXT = """
    SELECT owner, id, last_number FROM slots WHERE (owner, id) > (%(owner)s, %(slot)s)
"""
_PAGED = "ORDER BY owner, id LIMIT %(limit)s"
_SELECT_NEXT = Statement(_Next, f"{_NEXT} {_PAGED}")
_SELECT_NEXT_OF_OWNER = Statement(_Next, f"{_NEXT} AND owner = %(of)s {_PAGED}")
_COUNT = Statement(int, "SELECT count(*) FROM slots")
_COUNT_OF_OWNER = Statement(int, "SELECT count(*) FROM slots WHERE owner = %(of)s")
_SET_TOTAL = Command("UPDATE history_checks SET total_slots = %(total)s WHERE id = %(id)s")
_REACH = Statement(
    UUID,
    """
    UPDATE history_checks SET reached_owner = %(owner)s, reached_slot = %(slot)s,
        examined_slots = examined_slots + %(slots)s, examined_rows = examined_rows + %(rows)s,
        findings = findings + %(findings)s, uncheckable = uncheckable + %(uncheckable)s,
        version = version + 1, updated_at = now()
    WHERE id = %(id)s AND attempt_token = %(token)s AND state = 'running' RETURNING id
    """,
)
_ADD_RECORDED = Statement(
    UUID,
    """
    UPDATE history_checks SET recorded = recorded + %(recorded)s
    WHERE id = %(id)s AND attempt_token = %(token)s AND state = 'running' RETURNING id
    """,
)
_DIGEST = "encode(sha256(convert_to(snapshot::text, 'UTF8')), 'hex')"
_COMPARE_DIGESTS = Statement(
    _Digests,
    f"""
    SELECT slot_id, count(*) AS snapshots, max(number) AS reached,
        count(*) FILTER (WHERE is_right IS NULL) AS without,
        count(*) FILTER (WHERE NOT is_right) AS wrong,
        (array_agg(number ORDER BY number) FILTER (WHERE NOT is_right))[1:{SHOWN}] AS wrong_numbers
    FROM (
        SELECT slot_id, number, CASE WHEN sha256 <> '' THEN sha256 = {_DIGEST} END AS is_right
        FROM tech_file_versions
        WHERE slot_id = ANY(%(slots)s) AND (slot_id, number) > (%(slot)s, %(number)s)
        ORDER BY slot_id, number LIMIT %(limit)s) AS compared
    GROUP BY slot_id ORDER BY slot_id
    """,
)
_RECORD_DIGESTS = Statement(
    int,
    f"""
    UPDATE tech_file_versions SET sha256 = {_DIGEST}
    WHERE slot_id = ANY(%(slots)s) AND (slot_id, number) > (%(slot)s, %(number)s)
        AND (slot_id, number) <= (%(last_slot)s, %(last_number)s) AND sha256 = '' RETURNING 1
    """,
)


class Walk:
    """Runs the job of a check: stretches of the walk, until there is nothing left."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._kind = JobTable(CHECKS, rules.WALK_STATES, "running", "done", _publish_nothing)

    async def run(self, check_id: str) -> None:
        await attempts.run(self._db, self._kind, check_id, self._stretch)

    async def _stretch(self, attempt: Attempt[Check]) -> Outcome[Check]:
        """Examines the next slots. It is tried again if there are more."""
        if attempt.row.total_slots is None:
            await self._count(attempt.row)
        if await self._walk(attempt):
            return Outcome({})
        return Outcome({}, to="pending", again=jobs.TryAgain())

    async def _count(self, check: Check) -> None:
        count = _COUNT if check.all_owners else _COUNT_OF_OWNER
        [total] = await self._db.system_all(count, {"of": check.owner})
        async with self._db.transaction(check.owner) as m:
            await m.run(_SET_TOTAL, {"total": total, "id": check.id})

    async def _walk(self, attempt: Attempt[Check]) -> bool:
        """Returns True after the last slot, False if the walk is to go on later."""
        check = attempt.row
        following = _SELECT_NEXT if check.all_owners else _SELECT_NEXT_OF_OWNER
        owner, slot, slots, rows = check.reached_owner, check.reached_slot, 0, 0
        while True:
            place = {"owner": owner, "slot": slot, "of": check.owner, "limit": _PAGE}
            found = _cut(await self._db.system_all(following, place))
            if not found:
                return True
            for each, group in groupby(found, key=lambda row: row.owner):
                report = await self._take(attempt, each, [row.id for row in group])
                slots, rows = slots + report.slots, rows + report.rows
            owner, slot = found[-1].owner, found[-1].id
            if slots >= _STRETCH_SLOTS or rows >= _STRETCH_ROWS:
                return False

    async def _take(self, attempt: Attempt[Check], owner: str, slots: list[UUID]) -> _Report:
        """Examines some slots of one owner, and moves the walk on."""
        report = _Report()
        await self._digests(attempt, owner, slots, report)
        try:
            async with self._db.transaction(owner) as m:
                await self._examine(m, attempt, slots, report)
                await _reach(m, attempt, owner, slots[-1], report)
            return report
        except psycopg.errors.CheckViolation as refusal:
            # An erasure removes the slots of this owner; the walk goes on with the next one.
            if not errors.is_owner_erased(refusal):
                raise
        report = _Report(slots=len(slots))
        async with self._db.transaction(owner) as m:
            await _reach(m, attempt, owner, slots[-1], report)
        return report

    async def _digests(
        self, attempt: Attempt[Check], owner: str, slots: list[UUID], report: _Report
    ) -> None:
        """Compares snapshots with their digests, some in a transaction: they may be large."""
        place: dict[str, object] = {"slots": slots, "slot": _NOWHERE, "number": 0}
        while True:
            async with self._db.transaction(owner) as m:
                found = await m.all(_COMPARE_DIGESTS, {**place, "limit": _SNAPSHOTS})
                for row in found:
                    if row.wrong:
                        report.wrong[row.slot_id] = report.wrong.get(row.slot_id, 0) + row.wrong
                        report.numbers.setdefault(row.slot_id, []).extend(row.wrong_numbers or ())
                without = sum(row.without for row in found)
                if without and attempt.row.record_digests:
                    await _record(m, attempt, place, found[-1])
                else:
                    report.uncheckable += without
            if sum(row.snapshots for row in found) < _SNAPSHOTS:
                return
            place = {"slots": slots, "slot": found[-1].slot_id, "number": found[-1].reached}

    async def _examine(
        self, m: Mutation, attempt: Attempt[Check], slots: list[UUID], report: _Report
    ) -> None:
        examined = await examine(m, slots)
        report.slots, report.rows = len(slots), sum(slot.rows for slot, _ in examined)
        found = {slot.id: (slot, faults) for slot, faults in examined}
        # Locked, too, where findings are added: two checks may meet in a slot.
        suspects = [slot.id for slot, faults in examined if faults or slot.id in report.wrong]
        if suspects:
            await lock(m, suspects)
            found |= {each[0].id: each for each in await examine(m, suspects)}
        await finding_rows.supersede(m, slots)
        for slot, faults in found.values():
            for fault in (*faults, *_wrong_snapshots(slot, report)):
                await finding_rows.add(m, attempt.row.id, slot, fault)
                report.findings += 1


def _cut(slots: Sequence[_Next]) -> Sequence[_Next]:
    """Returns the first slots that have not too many numbers together, at least one."""
    numbers = 0
    for index, slot in enumerate(slots):
        numbers += slot.last_number
        if index and numbers > _NUMBERS:
            return slots[:index]
    return slots


def _wrong_snapshots(slot: Slot, report: _Report) -> list[Fault]:
    wrong = report.wrong.get(slot.id, 0)
    return [changed_snapshots(report.numbers[slot.id][:SHOWN], wrong)] if wrong else []


async def _record(
    m: Mutation, attempt: Attempt[Check], place: dict[str, object], last: _Digests
) -> None:
    until = {"last_slot": last.slot_id, "last_number": last.reached}
    recorded = await m.all(_RECORD_DIGESTS, {**place, **until})
    values = {"recorded": len(recorded), "id": attempt.row.id, "token": attempt.token}
    if await m.first(_ADD_RECORDED, values) is None:
        raise attempts.Superseded


async def _reach(
    m: Mutation, attempt: Attempt[Check], owner: str, slot: UUID, report: _Report
) -> None:
    values = {
        "id": attempt.row.id,
        "token": attempt.token,
        "owner": owner,
        "slot": slot,
        "slots": report.slots,
        "rows": report.rows,
        "findings": report.findings,
        "uncheckable": report.uncheckable,
    }
    if await m.first(_REACH, values) is None:
        raise attempts.Superseded


async def _publish_nothing(_m: Mutation, _row: Check) -> None:
    """Nobody watches checks: callers look at them."""
