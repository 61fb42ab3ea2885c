"""Runs of tech packs: the row classes of a run and of its steps, and its message.

A run's plan is fixed when the run is created. A step that moves adds a row, which never changes, in
the transaction that raises the run's version: so a watch shows every step, and an attempt that lost
the run adds nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from atelier.techfiles.v1 import tech_pack_pb2 as pb

from services.techfiles import rules
from services.techfiles.rules import Step
from shared.background import events
from shared.background.job_tables import JobRow
from shared.database.db import Mutation
from shared.database.rows import Statement, Table
from shared.rpc import errors
from shared.rpc.protos import EnumNames, timestamp, wait_of

TASK = "tech_pack"
QUEUE = "packs"
RUN_STATES = EnumNames(pb.RunState, "RUN_STATE_")
STEP_STATES = EnumNames(pb.StepState, "STEP_STATE_")


@dataclass(slots=True)
class Run(JobRow):
    created_by: str
    product_id: str
    collection_id: UUID
    pack_file_id: UUID
    batch_id: str
    plan: list[dict[str, Any]]  # its steps; see Step.stored
    ended_at: datetime | None
    created_at: datetime
    source_product_id: UUID | None
    run_externally: bool
    make_zip: bool
    zip_export_id: UUID | None
    round: int  # the number of the current try
    resumed_at: datetime | None  # when that try was asked for; None: it is the first
    spent_ms: int  # by earlier tries
    deleted_at: datetime | None
    expires_at: datetime | None


@dataclass(slots=True)
class RunStep:
    """A move of a step. The last row of a name has that step's current state."""

    id: UUID
    owner: str
    run_id: UUID
    name: str
    state: str
    credits: int
    error_class: str
    error_message: str
    analysis_id: str
    generation_id: str
    created_at: datetime
    round: int
    earlier_credits: int  # of `credits`: those of jobs that the step doesn't use any more


@dataclass(slots=True)
class PackFile:
    """The file of a run's pack, and the export that it shows once one exists."""

    id: UUID
    export_id: UUID | None


RUNS = Table("runs", Run)
RUN_STEPS = Table("run_steps", RunStep)
SELECT_RUN = Statement(Run, f"SELECT {RUNS.columns} FROM runs WHERE id = %(id)s")
SELECT_STEPS = Statement(
    RunStep,
    f"""
    SELECT {RUN_STEPS.columns} FROM run_steps WHERE run_id = ANY(%(ids)s) ORDER BY created_at, id
    """,
)
# A run that still fills a collection. A run's own ZIP is begun when its files are there.
SELECT_UNENDED = Statement(
    UUID,
    """
    SELECT id FROM runs
    WHERE collection_id = %(collection_id)s AND state IN ('pending', 'processing')
        AND (zip_export_id IS NULL OR zip_export_id IS DISTINCT FROM %(export_id)s::uuid)
    ORDER BY created_at LIMIT 1
    """,
)
SELECT_PACK_FILES = Statement(
    PackFile, "SELECT id, export_id FROM tech_files WHERE id = ANY(%(ids)s)"
)


def plan_of(run: Run) -> list[Step]:
    return [Step.read(stored) for stored in run.plan]


def to_proto(
    run: Run, moves: Sequence[RunStep], export_id: UUID | None, *, with_steps: bool = True
) -> pb.TechPackRun:
    """Returns the message. `moves`: the run's rows of run_steps, in order."""
    steps = [
        _step_to_proto(step, [row for row in moves if row.name == step.name])
        for step in plan_of(run)
    ]
    last = {row.name: row.state for row in moves}
    ended = [name for name, state in last.items() if not rules.STEP_STATES[state]]
    return pb.TechPackRun(
        id=str(run.id),
        owner=run.owner,
        created_by=run.created_by,
        product_id=run.product_id,
        collection_id=str(run.collection_id),
        batch_id=run.batch_id,
        state=RUN_STATES.number[run.state],
        error_class=run.error_class,
        error_message=run.error_message,
        steps=steps if with_steps else [],
        progress_percent=100 * len(ended) // len(steps),
        total_credits_used=sum(step.credits for step in steps),
        generation_time_ms=spent_ms(run) if run.ended_at else 0,
        pack_file_id=str(run.pack_file_id),
        export_id=str(export_id) if export_id else "",
        create_time=timestamp(run.created_at),
        update_time=timestamp(run.updated_at),
        wait=wait_of(run),
        retry_count=run.round - 1,
        source_product_id=str(run.source_product_id or ""),
        run_externally=run.run_externally,
        delete_time=timestamp(run.deleted_at),
        expire_time=timestamp(run.expires_at),
    )


def spent_ms(run: Run) -> int:
    """Returns the milliseconds that an ended run took, without the time between an end and a
    retry."""
    if run.ended_at is None:
        return run.spent_ms
    latest = run.ended_at - (run.resumed_at or run.created_at)
    return run.spent_ms + int(latest.total_seconds() * 1000)


def _step_to_proto(step: Step, rows: Sequence[RunStep]) -> pb.TechPackStep:
    last = rows[-1]
    begun = next(
        (row.created_at for row in rows if row.state == "processing" and row.round == last.round),
        None,
    )
    ended = last.state in ("completed", "failed")
    return pb.TechPackStep(
        name=step.name,
        state=STEP_STATES.number[last.state],
        credits=last.credits,
        error_class=last.error_class,
        error_message=last.error_message,
        tech_file_id=step.tech_file_id,
        analysis_id=last.analysis_id,
        generation_id=last.generation_id,
        start_time=timestamp(begun),
        end_time=timestamp(last.created_at if ended else None),
    )


async def read(m: Mutation, run: Run) -> pb.TechPackRun:
    """Returns the run's message, with its steps."""
    moves = await m.all(SELECT_STEPS, {"ids": [run.id]})
    pack = await m.first(SELECT_PACK_FILES, {"ids": [run.pack_file_id]})
    return to_proto(run, moves, pack.export_id if pack else None)


async def publish(m: Mutation, run: Run) -> None:
    await events.publish(m, "run", run.id, run.version, await read(m, run))


def has_jobs(move: RunStep) -> bool:
    """Returns whether jobs of `conversions` may still run for a step that is as this move says."""
    return move.state == "processing" and bool(move.analysis_id or move.generation_id)


def refuse_jobs_left(moves: Iterable[RunStep]) -> None:
    """Raises ABORTED while jobs of a run that has ended are still being cancelled."""
    if any(map(has_jobs, moves)):
        text = "jobs of the run are still being cancelled; repeat the call in some seconds"
        raise errors.retry_later(errors.Reason.ERROR_REASON_REQUEST_IN_PROGRESS, text, 2)


async def last_moves(m: Mutation, run_id: UUID) -> Mapping[str, RunStep]:
    """Returns the last move of each step, by the step's name."""
    return {row.name: row for row in await m.all(SELECT_STEPS, {"ids": [run_id]})}
