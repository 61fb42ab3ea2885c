"""Findings about histories: the row, its message, and adding rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from atelier.techfiles.v1 import verification_pb2 as pb
from psycopg.types.json import Jsonb

from services.techfiles.tech_file_rows import TYPES, VIEWS
from services.techfiles.verifying.examining import Fault, Slot
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Table
from shared.rpc.protos import EnumNames, timestamp

FAULTS = EnumNames(pb.HistoryFault, "HISTORY_FAULT_")
STATES = EnumNames(pb.HistoryFindingState, "HISTORY_FINDING_STATE_")


@dataclass(slots=True)
class Finding:
    id: UUID
    owner: str
    check_id: UUID
    slot_id: UUID
    product_id: str
    file_type: str
    view_type: str
    file_category: str
    fault: str
    state: str
    message: str
    advice: str
    repair: list[dict[str, Any]]  # fields of HistoryRepair
    repaired_by: str
    repaired_at: datetime | None
    created_at: datetime


FINDINGS = Table("history_findings", Finding)
# Superseded findings stay until the next check, so that a call that names one is told why it is
# refused.
_DELETE_SUPERSEDED = Command(
    "DELETE FROM history_findings WHERE slot_id = ANY(%(slots)s) AND state = 'superseded'"
)
_SUPERSEDE = Command("""
    UPDATE history_findings SET state = 'superseded'
    WHERE slot_id = ANY(%(slots)s) AND state = 'open'
""")
_INSERT = Command("""
    INSERT INTO history_findings (id, owner, check_id, slot_id, product_id, file_type, view_type,
        file_category, fault, message, advice, repair)
    VALUES (%(id)s, %(owner)s, %(check_id)s, %(slot_id)s, %(product_id)s, %(file_type)s,
        %(view_type)s, %(file_category)s, %(fault)s, %(message)s, %(advice)s, %(repair)s)
""")


async def supersede(m: Mutation, slots: Sequence[UUID]) -> None:
    """Replaces what earlier checks found in these slots and nobody repaired."""
    await m.run(_DELETE_SUPERSEDED, {"slots": list(slots)})
    await m.run(_SUPERSEDE, {"slots": list(slots)})


async def add(m: Mutation, check_id: UUID, slot: Slot, fault: Fault) -> None:
    values = {
        "id": new_id(),
        "owner": m.owner,
        "check_id": check_id,
        "slot_id": slot.id,
        "product_id": slot.product_id,
        "file_type": slot.file_type,
        "view_type": slot.view_type,
        "file_category": slot.file_category,
        "fault": fault.kind,
        "message": fault.message,
        "advice": fault.advice,
        "repair": Jsonb([asdict(line) for line in fault.repair]),
    }
    await m.run(_INSERT, values)


def to_proto(row: Finding) -> pb.HistoryFinding:
    return pb.HistoryFinding(
        id=str(row.id),
        check_id=str(row.check_id),
        owner=row.owner,
        slot_id=str(row.slot_id),
        product_id=row.product_id,
        file_type=TYPES.number[row.file_type],
        view_type=VIEWS.number.get(row.view_type),
        file_category=row.file_category,
        fault=FAULTS.number[row.fault],
        state=STATES.number[row.state],
        message=row.message,
        advice=row.advice,
        repair=[pb.HistoryRepair(**line) for line in row.repair],
        repaired_by=row.repaired_by,
        repair_time=timestamp(row.repaired_at),
        create_time=timestamp(row.created_at),
    )
