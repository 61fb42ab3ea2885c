"""Repairs findings: writes what they list, each slot under its lock, unless its rows changed."""

from collections.abc import Sequence
from uuid import UUID

from services.techfiles import tech_file_rows
from services.techfiles.tech_file_rows import TECH_FILES, TechFile
from services.techfiles.verifying import examining
from services.techfiles.verifying.examining import Fault
from services.techfiles.verifying.finding_rows import FINDINGS, Finding
from shared.database.db import Mutation
from shared.database.rows import Command, Statement
from shared.rpc import errors
from shared.rpc.errors import DomainError, Reason

_AGAIN = "verify again (VerifyHistory), and list the findings anew (ListHistoryFindings)"
_SELECT_SLOTS = Statement(
    UUID,
    """
    SELECT DISTINCT slot_id FROM history_findings
    WHERE owner = %(owner)s AND id = ANY(%(ids)s) ORDER BY slot_id
    """,
)
_LOCK_FINDINGS = Statement(
    Finding,
    f"""
    SELECT {FINDINGS.columns} FROM history_findings
    WHERE owner = %(owner)s AND id = ANY(%(ids)s) ORDER BY id FOR UPDATE
    """,
)
_SET_LAST_NUMBER = Command("UPDATE slots SET last_number = %(number)s WHERE id = %(slot_id)s")
_FORGET_PARENTS = Statement(
    TechFile,
    f"""
    UPDATE tech_files SET parent_file_id = NULL, parent_purged = true, version = version + 1,
        updated_at = now()
    WHERE id = ANY(%(ids)s) RETURNING {TECH_FILES.columns}
    """,
)
_NOTE_REPAIR = Statement(
    Finding,
    f"""
    UPDATE history_findings SET state = 'repaired', repaired_by = %(actor)s, repaired_at = now()
    WHERE id = %(id)s RETURNING {FINDINGS.columns}
    """,
)


async def repair(m: Mutation, ids: Sequence[UUID]) -> list[Finding]:
    """Repairs the owner's findings, all or none. Returns their new rows in the order of `ids`."""
    named = {"owner": m.owner, "ids": list(ids)}
    # Slots before findings, as a check locks them.
    slots = await m.all(_SELECT_SLOTS, named)
    await examining.lock(m, slots)
    findings = {row.id: row for row in await m.all(_LOCK_FINDINGS, named)}
    for finding_id in ids:
        if finding_id not in findings:
            raise errors.not_found("finding", finding_id)
        _refuse_unfit(findings[finding_id])
    now = {
        (slot.id, fault.kind): fault
        for slot, faults in await examining.examine(m, slots)
        for fault in faults
    }
    for row in findings.values():
        _refuse_changed(row, now.get((row.slot_id, row.fault)))
    for row in findings.values():
        await _write(m, row)
    return [await m.one(_NOTE_REPAIR, {"id": each, "actor": m.actor}) for each in ids]


def _refuse_unfit(row: Finding) -> None:
    subject = f"history_findings/{row.id}"
    if row.state == "repaired":
        text = f"the finding {row.id} was repaired by {row.repaired_by}; nothing is left to do"
        raise errors.precondition(text, subject=subject)
    if row.state == "superseded":
        text = f"a later check replaced the finding {row.id}; list the findings anew"
        raise DomainError(Reason.ERROR_REASON_ETAG_MISMATCH, f"{text} (ListHistoryFindings)")
    if not row.repair:
        text = f"the finding {row.id} can't be repaired without a loss: {row.advice}"
        raise errors.precondition(text, subject=subject)


def _refuse_changed(row: Finding, fault: Fault | None) -> None:
    lines = [(line["row"], line["column"], line["before"], line["after"]) for line in row.repair]
    found = fault.repair if fault else ()
    if lines != [(each.row, each.column, each.before, each.after) for each in found]:
        text = f"the rows of the finding {row.id} have changed since; {_AGAIN}"
        raise DomainError(Reason.ERROR_REASON_ETAG_MISMATCH, text)


async def _write(m: Mutation, row: Finding) -> None:
    match row.fault:
        case "last_number_low":
            number = int(row.repair[0]["after"])
            await m.run(_SET_LAST_NUMBER, {"slot_id": row.slot_id, "number": number})
        case "several_latest" | "no_latest" | "wrong_latest":
            await tech_file_rows.settle_slot(m, row.slot_id)
        case "missing_parent":
            ids = {UUID(line["row"].partition("/")[2]) for line in row.repair}
            for file in await m.all(_FORGET_PARENTS, {"ids": sorted(ids)}):
                await tech_file_rows.publish(m, file)
        case other:
            raise RuntimeError(f"nothing repairs {other}")
