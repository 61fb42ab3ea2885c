"""Pauses of phases: the row class, its message, and looking for pauses that hold."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from atelier.pipeline.v1 import phase_pause_pb2, phase_pb2

from services.pipeline import rules
from shared.database.rows import Statement, Table
from shared.rpc.protos import timestamp

WAITS_FOR = "a pause"  # what a paused phase waits for


@dataclass(slots=True)
class PhasePause:
    phase: int
    reason: str
    paused_by: str
    created_at: datetime
    ends_at: datetime | None


ALL: Mapping[str, object] = {"phases": list(rules.PHASES)}
"""The parameters of SELECT_PAUSES for the pauses of all phases."""
PAUSES = Table("phase_pauses", PhasePause)
SELECT_PAUSES = Statement(
    PhasePause,
    f"""
    SELECT {PAUSES.columns} FROM phase_pauses
    WHERE phase = ANY(%(phases)s) AND (ends_at IS NULL OR ends_at > now()) ORDER BY phase
    """,
)


def in_words(row: PhasePause) -> str:
    """Returns the pause for the owner of a phase that waits for it."""
    until = f" until {row.ends_at:%Y-%m-%d %H:%M} UTC" if row.ends_at else ""
    name = rules.PHASE_NAMES[row.phase]
    return f"the operator paused phase {row.phase} ({name}){until}: {row.reason}"


def show(phases: Iterable[phase_pb2.Phase], pauses: Iterable[PhasePause]) -> None:
    """Says of due phases that they are paused, also of those that no worker has looked at yet and
    of those that outside runners take."""
    by_number = {row.phase: row for row in pauses}
    for phase in phases:
        pause = by_number.get(phase.number)
        if pause is None or not phase.due:
            continue
        phase.pause = in_words(pause)
        if not phase.wait.what:
            phase.wait.what = WAITS_FOR
            began = max(pause.created_at, phase.update_time.ToDatetime(tzinfo=UTC))
            phase.wait.since_time.FromDatetime(began)


def to_proto(row: PhasePause) -> phase_pause_pb2.PhasePause:
    return phase_pause_pb2.PhasePause(
        phase=row.phase,
        reason=row.reason,
        end_time=timestamp(row.ends_at),
        create_time=timestamp(row.created_at),
    )
