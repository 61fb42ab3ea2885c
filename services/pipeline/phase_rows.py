"""Phases: the row class, its message, locking a phase and publishing it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.pipeline.v1 import phase_pb2

from services.pipeline import rules
from shared.background import events
from shared.background.leases import LeasedRow
from shared.database.db import Mutation
from shared.database.rows import Statement, Table
from shared.rpc import errors
from shared.rpc.protos import EnumNames, timestamp, wait_of

STATES = EnumNames(phase_pb2.PhaseState, "PHASE_STATE_")
STAMPS: Mapping[str, tuple[str, ...]] = {
    "running": ("started_at",),
    "completed": ("completed_at",),
    "stopped": ("stopped_at",),
}
"""By state: the columns that get the time of a move to it."""


@dataclass(slots=True)
class Phase(LeasedRow):
    product_id: UUID
    number: int
    started: bool  # a start was requested, by the phase before it or by a person
    retry_count: int
    confidence: float | None
    started_at: datetime | None
    completed_at: datetime | None
    stopped_at: datetime | None
    created_at: datetime
    stale: bool  # a phase before it was run again, and this one not yet


class LockedPhase(Phase):
    """A phase whose row the transaction has locked."""

    __slots__ = ()


PHASES = Table("phases", LockedPhase)
SELECT_PHASES = Statement(
    Phase,
    f"""
    SELECT {PHASES.columns} FROM phases WHERE product_id = ANY(%(ids)s)
    ORDER BY product_id, number
""",
)
_LOCK_PHASE = Statement(
    LockedPhase,
    f"""
    SELECT {PHASES.columns} FROM phases
    WHERE product_id = %(product_id)s AND number = %(number)s FOR UPDATE
""",
)


async def lock(m: Mutation, product_id: UUID, number: int) -> LockedPhase:
    """Locks the owner's phase until the commit and returns it. Raises NOT_FOUND if there is no such
    product."""
    row = await m.first(_LOCK_PHASE, {"product_id": product_id, "number": number})
    if row is None:
        raise errors.not_found("product", product_id)
    return row


def named(phase: Phase) -> str:
    """Returns the phase's name in log lines, such as `phase 2 (market research)`."""
    return f"phase {phase.number} ({rules.PHASE_NAMES[phase.number]})"


def subject(phase: Phase) -> str:
    return f"products/{phase.product_id}/phases/{phase.number}"


def wrong_state(phase: Phase, text: str) -> errors.DomainError:
    """Returns the refusal of a call that a phase doesn't allow as it is."""
    return errors.precondition(
        f"phase {phase.number}: {text}",
        subject=subject(phase),
        metadata={"state": phase.state},
    )


def to_proto(row: Phase) -> phase_pb2.Phase:
    return phase_pb2.Phase(
        id=str(row.id),
        product_id=str(row.product_id),
        number=row.number,
        state=STATES.number[row.state],
        due=rules.is_due(row),
        external=row.external,
        retry_count=row.retry_count,
        attempt_number=row.attempt_number,
        stop_requested=row.state == "running" and row.cancel_requested,
        confidence=row.confidence,
        error_class=row.error_class,
        error_message=row.error_message,
        start_time=timestamp(row.started_at),
        wait=wait_of(row),
        complete_time=timestamp(row.completed_at),
        stop_time=timestamp(row.stopped_at),
        lease_expire_time=timestamp(row.lease_expires_at),
        etag=str(row.version),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        stale=row.stale,
    )


async def publish(m: Mutation, row: Phase) -> None:
    await events.publish(m, "phase", row.id, row.version, to_proto(row))
