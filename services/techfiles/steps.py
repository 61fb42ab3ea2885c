"""Runs and their steps as rows: what `packs` shows and `orchestrator` works off.

A run's plan is fixed when it is asked for. What becomes of a step is a row that is added, never
changed, in the transaction that raises the run's version: so a watcher sees every step, and an
attempt that lost the run adds nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from atelier.techfiles.v1 import tech_pack_pb2 as pb
from psycopg.types.json import Jsonb

from services.techfiles import collections, files, rules
from services.techfiles.rules import Step
from shared.background import attempts, events
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.rpc.protos import Words, timestamp, wait_of

RUN_STATES = Words(pb.RunState, "RUN_STATE_")
STEP_STATES = Words(pb.StepState, "STEP_STATE_")

RECORDED = "SELECT * FROM run_steps WHERE run_id = ANY(%(ids)s) ORDER BY created_at, id"
_INSERT_RUN = """
    INSERT INTO runs (id, owner, created_by, product_id, collection_id, pack_file_id, batch_id,
        plan)
    VALUES (%(id)s, %(owner)s, %(actor)s, %(product_id)s, %(collection_id)s, %(pack_file_id)s,
        %(batch_id)s, %(plan)s)
    RETURNING *
"""
_HOLD = """
    UPDATE runs SET version = version + 1, updated_at = now(), waits_for = '', waiting_since = NULL
    WHERE id = %(id)s AND attempt_token = %(token)s AND state = 'processing' RETURNING *
"""
_INSERT_STEP = """
    INSERT INTO run_steps (id, owner, run_id, name, state, credits, error_class, error_message,
        analysis_id,
        generation_id)
    VALUES (%(id)s, %(owner)s, %(run_id)s, %(name)s, %(state)s, %(credits)s, %(error_class)s,
        %(error_message)s,
        %(analysis_id)s, %(generation_id)s)
"""


@dataclass
class Result:
    """What a step made: columns of its file, what it cost, which jobs of `conversions` did it, and
    why it failed."""

    columns: dict[str, Any] = field(default_factory=dict)
    credits: int = 0
    analysis_id: str = ""
    generation_id: str = ""
    error_class: str = ""
    error_message: str = ""

    @property
    def state(self) -> str:
        return "failed" if self.error_class else "completed"


def plan_of(run: Any) -> list[Step]:
    return [Step.read(stored) for stored in run.plan]


def to_proto(
    run: Any, recorded: Sequence[Any], export_id: object = None, *, with_steps: bool = True
) -> pb.TechPackRun:
    """`recorded`: the run's rows of run_steps in order."""
    steps = [
        _step(step, [row for row in recorded if row.name == step.name]) for step in plan_of(run)
    ]
    last = {row.name: row.state for row in recorded}
    ended = [name for name, state in last.items() if not rules.STEP_STATES[state]]
    seconds = (run.ended_at - run.created_at).total_seconds() if run.ended_at else 0.0
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
        generation_time_ms=int(seconds * 1000),
        pack_file_id=str(run.pack_file_id),
        export_id=str(export_id) if export_id else "",
        create_time=timestamp(run.created_at),
        update_time=timestamp(run.updated_at),
        wait=wait_of(run),
    )


def _step(step: Step, rows: Sequence[Any]) -> pb.TechPackStep:
    last = rows[-1]
    begun = next((row.created_at for row in rows if row.state == "processing"), None)
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


async def create(
    m: Mutation, run_id: UUID, collection: Any, plan: Sequence[Step], batch_id: str
) -> Any:
    """Adds a run and the files that its steps will make, each in its section of the collection.
    Returns the run."""
    planned = []
    for step in plan:
        file_id = ""
        if not (step.skipped and step.kind != "base_view"):
            file = await files.create(m, _file_columns(step, collection, batch_id))
            file_id = str(file.id)
            if step.kind in rules.SECTIONS:
                await collections.add(m, collection.id, file.id, rules.SECTIONS[step.kind], None)
        planned.append({**step.stored(), "tech_file_id": file_id})
    values = {
        "id": run_id,
        "owner": m.owner,
        "actor": m.actor,
        "product_id": collection.product_id,
        "collection_id": collection.id,
        "pack_file_id": planned[-1]["tech_file_id"],
        "batch_id": batch_id,
        "plan": Jsonb(planned),
    }
    run = await m.one(_INSERT_RUN, values)
    for step in plan:
        await _insert(
            m,
            run_id,
            step,
            "skipped" if step.skipped else "pending",
            Result(error_message=step.reason),
        )
    await publish(m, run)
    return run


def _file_columns(step: Step, collection: Any, batch_id: str) -> dict[str, Any]:
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


async def publish(m: Mutation, run: Any) -> None:
    """Tells of a run with its steps. When it has ended that is noted first, and what it leaves
    undone has FAILED."""
    if run.state in rules.ENDED and run.ended_at is None:
        run = await m.one("UPDATE runs SET ended_at = now() WHERE id = %s RETURNING *", (run.id,))
        if run.state in ("failed", "cancelled"):
            left = [UUID(step.tech_file_id) for step in plan_of(run) if step.tech_file_id]
            await files.fail_unfinished(m, left, f"its run ended {run.state}")
    await events.publish(m, "run", run.id, run.version, await shown(m, run))


async def shown(m: Mutation, run: Any) -> pb.TechPackRun:
    recorded = await m.all(RECORDED, {"ids": [run.id]})
    pack = await m.one("SELECT export_id FROM tech_files WHERE id = %s", (run.pack_file_id,))
    return to_proto(run, recorded, pack.export_id)


async def recorded(m: Mutation, run_id: UUID) -> Mapping[str, Any]:
    """The last row of each step, by name."""
    return {row.name: row for row in await m.all(RECORDED, {"ids": [run_id]})}


async def begin(m: Mutation, attempt: attempts.Attempt, step: Step, result: Result) -> None:
    """Notes that a step is being done, and by which jobs of `conversions`. Raises Superseded."""
    run = await _hold(m, attempt)
    await _insert(m, run.id, step, "processing", result)
    await files.advance(m, UUID(step.tech_file_id), "processing")
    await publish(m, run)


async def end(m: Mutation, attempt: attempts.Attempt, step: Step, result: Result) -> None:
    """Notes how a step ended and finishes its file. A file that somebody finished meanwhile stays
    as they left it.

    Raises Superseded.
    """
    run = await _hold(m, attempt)
    columns = {
        **result.columns,
        "credits_used": result.credits,
        "error_message": result.error_message,
    }
    if isinstance(columns.get("analysis"), dict):
        columns["analysis"] = Jsonb(columns["analysis"])
    if (
        await files.advance(m, UUID(step.tech_file_id), result.state, **columns) is None
        and not result.error_class
    ):
        result.error_class, result.error_message = (
            "FILE_CHANGED",
            "its file was finished by somebody else meanwhile",
        )
    await _insert(m, run.id, step, result.state, result)
    await publish(m, run)


async def _hold(m: Mutation, attempt: attempts.Attempt) -> Any:
    run = await m.one(_HOLD, {"id": attempt.row.id, "token": attempt.token})
    if run is None:
        raise attempts.Superseded
    return run


async def _insert(m: Mutation, run_id: UUID, step: Step, state: str, result: Result) -> None:
    values = {
        "id": new_id(),
        "owner": m.owner,
        "run_id": run_id,
        "name": step.name,
        "state": state,
        "credits": result.credits,
        "error_class": result.error_class,
        "error_message": result.error_message[:2000],
        "analysis_id": result.analysis_id,
        "generation_id": result.generation_id,
    }
    await m.run(_INSERT_STEP, values)
