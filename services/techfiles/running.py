"""Changes a run and its files together: a run is created with the files that its steps will make, a
step's move moves its file, and a run that ends ends its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from services.techfiles import (
    collection_rows,
    pack_rows,
    releasing_pictures,
    rules,
    tech_file_rows,
)
from services.techfiles.collection_rows import LockedCollection
from services.techfiles.pack_rows import RUNS, SELECT_RUN, Run, RunStep
from services.techfiles.rules import Step
from shared.background import attempts
from shared.database import states
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Statement

_ERROR_CHARACTERS = 2000
_CANCELLED = "CANCELLED"
_NEW = (
    "id",
    "owner",
    "created_by",
    "product_id",
    "collection_id",
    "pack_file_id",
    "batch_id",
    "plan",
    "source_product_id",
    "run_externally",
    "make_zip",
)
# Raises the version of a run that this attempt has claimed, and ends the run's wait.
_RAISE_VERSION = Statement(
    Run,
    f"""
    UPDATE runs SET version = version + 1, updated_at = now(), waits_for = '', waiting_since = NULL
    WHERE id = %(id)s AND attempt_token = %(token)s AND state = 'processing'
    RETURNING {RUNS.columns}
    """,
)
_STAMP_END = Statement(
    Run, f"UPDATE runs SET ended_at = now() WHERE id = %(id)s RETURNING {RUNS.columns}"
)
# A step that ended in this try stays as it ended: nothing that comes late is added.
_INSERT_STEP = Command("""
    INSERT INTO run_steps (id, owner, run_id, name, state, credits, error_class, error_message,
        analysis_id, generation_id, round, earlier_credits)
    SELECT %(id)s, %(owner)s, %(run_id)s, %(name)s, %(state)s, %(credits)s, %(error_class)s,
        %(error_message)s, %(analysis_id)s, %(generation_id)s, %(round)s, %(earlier_credits)s
    WHERE NOT EXISTS (
        SELECT FROM run_steps WHERE run_id = %(run_id)s AND name = %(name)s AND round = %(round)s
            AND state IN ('completed', 'failed', 'skipped'))
""")
_LOCK_RUN = Statement(Run, f"{SELECT_RUN.text} FOR UPDATE")
_TELL = Statement(
    Run,
    f"""
    UPDATE runs SET version = version + 1, updated_at = now() WHERE id = %(id)s
    RETURNING {RUNS.columns}
    """,
)
_SET_ZIP = Command("UPDATE runs SET zip_export_id = %(export_id)s WHERE id = %(id)s")


@dataclass
class StepResult:
    """The result of a step: columns of its file, its cost, the jobs of `conversions` that did it,
    and why it failed."""

    columns: dict[str, Any] = field(default_factory=dict)
    job_credits: int = 0  # of the jobs that it names
    earlier_credits: int = 0  # of jobs of earlier tries that it doesn't name any more
    analysis_id: str = ""
    generation_id: str = ""
    error_class: str = ""
    error_message: str = ""

    @property
    def credits(self) -> int:
        return self.job_credits + self.earlier_credits

    @property
    def state(self) -> str:
        return "failed" if self.error_class else "completed"

    @classmethod
    def of(cls, move: RunStep) -> "StepResult":
        """Returns what is known of a step after its last move."""
        return cls(
            job_credits=move.credits - move.earlier_credits,
            earlier_credits=move.earlier_credits,
            analysis_id=move.analysis_id,
            generation_id=move.generation_id,
        )


@dataclass(frozen=True, slots=True)
class StoppedJobs:
    """The jobs of a step that was stopped: what they cost, and the picture that was made
    nevertheless, or ''."""

    credits: int = 0
    picture: str = ""


@dataclass(frozen=True)
class RunOptions:
    """What a request says about a run besides its steps."""

    source_product_id: UUID | None = None
    run_externally: bool = False
    make_zip: bool = False


async def create(
    m: Mutation,
    run_id: UUID,
    collection: LockedCollection,
    plan: Sequence[Step],
    batch_id: str,
    options: RunOptions,
) -> Run:
    """Adds a run and the files that its steps will make, each in its section of the collection, and
    publishes them."""
    planned = []
    for step in plan:
        file_id = ""
        if not (step.skipped and step.kind != "base_view"):
            file = await tech_file_rows.create(m, _file_columns(step, collection, batch_id))
            file_id = str(file.id)
            if step.kind in rules.SECTIONS:
                section = rules.SECTIONS[step.kind]
                await collection_rows.add_file(m, collection, file.id, section, None)
        planned.append({**step.stored(), "tech_file_id": file_id})
    values = {
        "id": run_id,
        "owner": m.owner,
        "created_by": m.actor,
        "product_id": collection.product_id,
        "collection_id": collection.id,
        "pack_file_id": planned[-1]["tech_file_id"],
        "batch_id": batch_id,
        "plan": Jsonb(planned),
        "source_product_id": options.source_product_id,
        "run_externally": options.run_externally,
        "make_zip": options.make_zip,
    }
    run = await m.one(RUNS.insert(*_NEW), values)
    for step in plan:
        state = "skipped" if step.skipped else "pending"
        await _add_move(m, run, step.name, state, StepResult(error_message=step.reason))
    await pack_rows.publish(m, run)
    return run


def _file_columns(step: Step, collection: LockedCollection, batch_id: str) -> dict[str, Any]:
    pictured = step.kind in ("category", "base_view")
    return {
        "product_id": collection.product_id,
        "file_type": step.kind,
        "view_type": step.view,
        "revision_id": step.revision_id,
        "file_category": step.shot,
        "batch_id": batch_id,
        "file_asset_id": UUID(step.asset_id) if pictured else None,
        "collection_id": collection.id if step.kind == "complete_pack" else None,
        "state": "completed" if step.skipped else "pending",
    }


async def begin_step(
    m: Mutation, attempt: attempts.Attempt[Run], step: Step, result: StepResult
) -> None:
    """Moves a step and its file to PROCESSING. `result` names the jobs of `conversions` that do the
    step. Raises Superseded."""
    run = await _raise_version(m, attempt)
    await _add_move(m, run, step.name, "processing", result)
    await tech_file_rows.advance(m, UUID(step.tech_file_id), "processing")
    await pack_rows.publish(m, run)


async def end_step(
    m: Mutation, attempt: attempts.Attempt[Run], step: Step, result: StepResult
) -> None:
    """Ends a step and its file. If somebody finished the file meanwhile, the file stays as they
    left it and the step has FAILED; but the file of a pack that is made once more gets its next
    version.

    Raises Superseded.
    """
    run = await _raise_version(m, attempt)
    columns = {
        **result.columns,
        "credits_used": result.credits,
        "error_message": result.error_message,
    }
    file_id = UUID(step.tech_file_id)
    file = await tech_file_rows.advance(m, file_id, result.state, **columns)
    if file is None and step.kind == "complete_pack" and run.round > 1 and result.columns:
        locked = await tech_file_rows.lock_with_slot(m, file_id)
        _kept, file = await tech_file_rows.renumber(m, locked, "run tried again", result.columns)
    if file is None and not result.error_class:
        result.error_class = "FILE_CHANGED"
        result.error_message = "its file was finished by somebody else meanwhile"
    picture = result.columns.get("file_asset_id")
    if file is None and picture:  # it was acquired for the file
        await releasing_pictures.note(m, run.product_id, picture)
    await _add_move(m, run, step.name, result.state, result)
    await pack_rows.publish(m, run)


async def follow(m: Mutation, run: Run) -> None:
    """Side effects of a state change, in its transaction: if the run ended, set ended_at and end
    the steps that it leaves unfinished, with their files; publish the run. Steps whose jobs may
    still cost something are left to `cancelling`."""
    if run.state in rules.ENDED and run.ended_at is None:
        run = await m.one(_STAMP_END, {"id": run.id})
    if run.state in ("failed", "cancelled"):
        moves = await pack_rows.last_moves(m, run.id)
        for step in pack_rows.plan_of(run):
            move = moves[step.name]
            if rules.STEP_STATES[move.state] and not pack_rows.has_jobs(move):
                await _stop_step(m, run, step, StepResult.of(move))
    await pack_rows.publish(m, run)


async def stop_steps(m: Mutation, run_id: UUID, stopped: Mapping[str, StoppedJobs]) -> None:
    """Ends steps of a run that was stopped, with their files, and publishes it. `stopped`: the jobs
    of each step, by its name. Steps that have ended stay."""
    run = await m.first(_LOCK_RUN, {"id": run_id})
    if run is None:
        return
    moves = await pack_rows.last_moves(m, run_id)
    for step in pack_rows.plan_of(run):
        move = moves[step.name]
        if step.name in stopped and rules.STEP_STATES[move.state]:
            jobs = stopped[step.name]
            result = StepResult.of(move)
            result.job_credits = jobs.credits
            await _stop_step(m, run, step, result)
            if jobs.picture:  # the step may have acquired it, and its file hasn't got it
                await releasing_pictures.note(m, run.product_id, UUID(jobs.picture))
    await pack_rows.publish(m, await m.one(_TELL, {"id": run_id}))


async def _stop_step(m: Mutation, run: Run, step: Step, result: StepResult) -> None:
    """Ends a step that the end of its run kept from its result, and its file."""
    ended = run.state in rules.ENDED and run.state != "cancelled"
    result.error_class = (run.error_class or "FAILED") if ended else _CANCELLED
    result.error_message = f"its run ended {run.state}" if ended else "its run was cancelled"
    await _add_move(m, run, step.name, "failed", result)
    if step.tech_file_id:
        await tech_file_rows.advance(
            m,
            UUID(step.tech_file_id),
            "failed",
            credits_used=result.credits,
            error_message=result.error_message,
        )


async def retry(m: Mutation, run: Run) -> Run:
    """Begins the next try of a locked run that has ended: the steps that FAILED, and the pack after
    them, are PENDING again, and so are their files. Returns the run's new row."""
    again = await states.advance(
        m,
        rules.RUN_STATES,
        RUNS,
        run.id,
        "pending",
        stamps=("resumed_at",),
        round=run.round + 1,
        spent_ms=pack_rows.spent_ms(run),
        ended_at=None,
        cancel_requested=False,
        attempt_token=None,
        zip_export_id=None,
        faults=0,
        losses=0,
        error_class="",
        error_message="",
    )
    if again is None:
        raise LookupError(f"run {run.id} is locked and ended, and can't be tried again")
    moves = await pack_rows.last_moves(m, run.id)
    for step in pack_rows.plan_of(run):
        last = step.kind == "complete_pack"
        if moves[step.name].state == "failed" or last:
            file = await tech_file_rows.reopen(m, UUID(step.tech_file_id))
            finished = file.state == "completed" and not last  # by somebody else
            state = "completed" if finished else "pending"
            await _add_move(m, again, step.name, state, StepResult.of(moves[step.name]))
    await pack_rows.publish(m, again)
    return again


async def set_zip(m: Mutation, run_id: UUID, export_id: UUID) -> None:
    """Notes the export that is the run's ZIP."""
    await m.run(_SET_ZIP, {"id": run_id, "export_id": export_id})


async def _raise_version(m: Mutation, attempt: attempts.Attempt[Run]) -> Run:
    run = await m.first(_RAISE_VERSION, {"id": attempt.row.id, "token": attempt.token})
    if run is None:
        raise attempts.Superseded
    return run


async def _add_move(m: Mutation, run: Run, name: str, state: str, result: StepResult) -> None:
    values = {
        "id": new_id(),
        "owner": m.owner,
        "run_id": run.id,
        "round": run.round,
        "earlier_credits": result.earlier_credits,
        "name": name,
        "state": state,
        "credits": result.credits,
        "error_class": result.error_class,
        "error_message": result.error_message[:_ERROR_CHARACTERS],
        "analysis_id": result.analysis_id,
        "generation_id": result.generation_id,
    }
    await m.run(_INSERT_STEP, values)
