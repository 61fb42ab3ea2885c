"""Changes a run and its files together: a run is created with the files that its steps will make, a
step's move moves its file, and a run that ends ends its files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from services.techfiles import collection_rows, pack_rows, rules, tech_file_rows
from services.techfiles.collection_rows import LockedCollection
from services.techfiles.pack_rows import RUNS, Run
from services.techfiles.rules import Step
from shared.background import attempts
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Statement

_ERROR_CHARACTERS = 2000
_NEW = (
    "id",
    "owner",
    "created_by",
    "product_id",
    "collection_id",
    "pack_file_id",
    "batch_id",
    "plan",
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
_INSERT_STEP = Command("""
    INSERT INTO run_steps (id, owner, run_id, name, state, credits, error_class, error_message,
        analysis_id, generation_id)
    VALUES (%(id)s, %(owner)s, %(run_id)s, %(name)s, %(state)s, %(credits)s, %(error_class)s,
        %(error_message)s, %(analysis_id)s, %(generation_id)s)
""")


@dataclass
class StepResult:
    """The result of a step: columns of its file, its cost, the jobs of `conversions` that did it,
    and why it failed."""

    columns: dict[str, Any] = field(default_factory=dict)
    credits: int = 0
    analysis_id: str = ""
    generation_id: str = ""
    error_class: str = ""
    error_message: str = ""

    @property
    def state(self) -> str:
        return "failed" if self.error_class else "completed"


async def create(
    m: Mutation, run_id: UUID, collection: LockedCollection, plan: Sequence[Step], batch_id: str
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
    }
    run = await m.one(RUNS.insert(*_NEW), values)
    for step in plan:
        state = "skipped" if step.skipped else "pending"
        await _add_move(m, run_id, step, state, StepResult(error_message=step.reason))
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
    await _add_move(m, run.id, step, "processing", result)
    await tech_file_rows.advance(m, UUID(step.tech_file_id), "processing")
    await pack_rows.publish(m, run)


async def end_step(
    m: Mutation, attempt: attempts.Attempt[Run], step: Step, result: StepResult
) -> None:
    """Ends a step and its file. If somebody finished the file meanwhile, the file stays as they
    left it and the step has FAILED.

    Raises Superseded.
    """
    run = await _raise_version(m, attempt)
    columns = {
        **result.columns,
        "credits_used": result.credits,
        "error_message": result.error_message,
    }
    file = await tech_file_rows.advance(m, UUID(step.tech_file_id), result.state, **columns)
    if file is None and not result.error_class:
        result.error_class = "FILE_CHANGED"
        result.error_message = "its file was finished by somebody else meanwhile"
    await _add_move(m, run.id, step, result.state, result)
    await pack_rows.publish(m, run)


async def follow(m: Mutation, run: Run) -> None:
    """Side effects of a state change, in its transaction: if the run ended, set ended_at and fail
    the files that it leaves unfinished; publish the run."""
    if run.state in rules.ENDED and run.ended_at is None:
        run = await m.one(_STAMP_END, {"id": run.id})
    if run.state in ("failed", "cancelled"):
        left = [UUID(step.tech_file_id) for step in pack_rows.plan_of(run) if step.tech_file_id]
        await tech_file_rows.fail_unfinished(m, left, f"its run ended {run.state}")
    await pack_rows.publish(m, run)


async def _raise_version(m: Mutation, attempt: attempts.Attempt[Run]) -> Run:
    run = await m.first(_RAISE_VERSION, {"id": attempt.row.id, "token": attempt.token})
    if run is None:
        raise attempts.Superseded
    return run


async def _add_move(m: Mutation, run_id: UUID, step: Step, state: str, result: StepResult) -> None:
    values = {
        "id": new_id(),
        "owner": m.owner,
        "run_id": run_id,
        "name": step.name,
        "state": state,
        "credits": result.credits,
        "error_class": result.error_class,
        "error_message": result.error_message[:_ERROR_CHARACTERS],
        "analysis_id": result.analysis_id,
        "generation_id": result.generation_id,
    }
    await m.run(_INSERT_STEP, values)
