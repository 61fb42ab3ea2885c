"""The job that fills a tech pack: every step asks `conversions`, and what comes back becomes a tech
file.

Requests are named after the run and the step, so that a repeat after a crash finds the job it
started before. A step that fails is recorded and the rest goes on; a step that has ended isn't done
again.
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from uuid import UUID

from atelier.common.v1 import facts_pb2
from atelier.conversions.v1 import (
    analysis_pb2,
    analysis_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    job_pb2,
)

from services.techfiles import exports, rules, steps
from services.techfiles.assets import Assets
from services.techfiles.exports import Exporter
from services.techfiles.rules import Step
from services.techfiles.steps import Result
from shared.background import attempts, tasks
from shared.database.db import Database
from shared.database.ids import new_id
from shared.rpc import auth, calls, errors, protos
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError

TASK = "tech_pack"
QUEUE = "packs"
_AT_ONCE = 4  # steps of one run
_PATIENCE_SECONDS = 60.0  # with a service that can't be reached, before the whole run waits for it
_JOB_SECONDS = (
    1800.0  # for one job of `conversions`, before the run waits and gives others its place
)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 3.0
_LOOK_PAUSE = 1.0
_UNFINISHED = (job_pb2.JOB_STATE_PENDING, job_pb2.JOB_STATE_PROCESSING)

T = TypeVar("T")


class StepFailed(Exception):
    """A step can't be done. `error_class` is a word, `message` is for a person."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.message = message


class Orchestrator:
    """Runs of tech packs. `run` is the job of a `runs` row."""

    def __init__(self, db: Database, peers: Peers, exporter: Exporter) -> None:
        self._db = db
        self._exporter = exporter
        self._assets = Assets(peers)
        self._analyses = peers.stub(analysis_pb2_grpc.AnalysisServiceStub)
        self._generations = peers.stub(generation_pb2_grpc.GenerationServiceStub)
        self._kind = attempts.Kind(
            "runs", rules.RUN_STATES, "processing", "completed", steps.publish
        )

    async def run(self, run_id: str) -> None:
        await attempts.run(self._db, self._kind, run_id, self._work)
        await self._stop_what_is_left(UUID(run_id))

    async def _work(self, attempt: attempts.Attempt) -> attempts.Outcome:
        run = attempt.row
        async with self._db.transaction(run.owner) as m:
            before = await steps.recorded(m, run.id)
            collection = await m.one(
                "SELECT facts FROM collections WHERE id = %s", (run.collection_id,)
            )
        facts = protos.facts_message(collection.facts)
        ended = {name for name, row in before.items() if not rules.STEP_STATES[row.state]}
        *first, last = steps.plan_of(run)
        turns = asyncio.Semaphore(_AT_ONCE)

        async def take(step: Step) -> None:
            async with turns:
                await self._take(attempt, step, facts)

        # What takes longest is begun first, so that at the end nothing is waited for alone.
        left = sorted(
            (step for step in first if step.name not in ended),
            key=lambda step: step.kind != "sketch",
        )
        await tasks.all_of([take(step) for step in left])
        if last.name not in ended:
            await self._pack(attempt, last)
        async with self._db.transaction(run.owner) as m:
            after = (await steps.recorded(m, run.id)).values()
        failed = any(row.state == "failed" for row in after)
        return attempts.Outcome(
            {},
            to="completed_with_failures" if failed else None,
            credits=sum(row.credits for row in after),
        )

    async def _take(self, attempt: attempts.Attempt, step: Step, facts: facts_pb2.Facts) -> None:
        result = Result()
        do = {
            "category": self._category,
            "base_view": self._base_view,
            "closeup": self._closeup,
            "sketch": self._sketch,
        }[step.kind]
        try:
            await do(attempt, step, facts, result)
        except StepFailed as failure:
            result.error_class, result.error_message = failure.error_class, failure.message
        except DomainError as refusal:
            found = attempts.verdict(refusal)
            if isinstance(found, attempts.Waits):
                raise  # the run waits, and goes on with this step
            result.error_class, result.error_message = found.error_class, found.message
        async with self._db.transaction(attempt.row.owner) as m:
            await steps.end(m, attempt, step, result)

    async def _category(
        self, attempt: attempts.Attempt, step: Step, facts: facts_pb2.Facts, result: Result
    ) -> None:
        plan = steps.plan_of(attempt.row)
        view = next(
            (s.view for s in plan if s.kind == "base_view" and s.asset_id == step.asset_id), ""
        )
        await self._ask_analysis(
            attempt, step, facts, result, analysis_pb2.ANALYSIS_TASK_CATEGORY, view
        )
        await self._begin(attempt, step, result)
        await self._take_analysis(result)

    async def _base_view(
        self, attempt: attempts.Attempt, step: Step, facts: facts_pb2.Facts, result: Result
    ) -> None:
        await self._ask_analysis(
            attempt, step, facts, result, analysis_pb2.ANALYSIS_TASK_BASE_VIEW, step.view
        )
        await self._begin(attempt, step, result)
        await self._take_analysis(result)

    async def _closeup(
        self, attempt: attempts.Attempt, step: Step, facts: facts_pb2.Facts, result: Result
    ) -> None:
        at = facts_pb2.Point(x=step.at[0], y=step.at[1]) if step.at else None
        await self._ask_generation(
            attempt, step, result, generation_pb2.GENERATION_TASK_CLOSEUP, at
        )
        await self._begin(attempt, step, result)
        await self._take_generation(attempt, result)

    async def _sketch(
        self, attempt: attempts.Attempt, step: Step, facts: facts_pb2.Facts, result: Result
    ) -> None:
        """The drawing, and the call-outs and measurements that belong on it: two jobs at once."""
        await self._ask_generation(
            attempt, step, result, generation_pb2.GENERATION_TASK_SKETCH, None
        )
        await self._ask_analysis(
            attempt, step, facts, result, analysis_pb2.ANALYSIS_TASK_SKETCH, step.view
        )
        await self._begin(attempt, step, result)
        await self._take_generation(attempt, result)
        await self._take_analysis(result)

    async def _begin(self, attempt: attempts.Attempt, step: Step, result: Result) -> None:
        async with self._db.transaction(attempt.row.owner) as m:
            await steps.begin(m, attempt, step, result)

    async def _ask_analysis(
        self,
        attempt: attempts.Attempt,
        step: Step,
        facts: facts_pb2.Facts,
        result: Result,
        task: Any,
        view: str,
    ) -> None:
        request = analysis_pb2.CreateAnalysisRequest(
            request_id=f"{attempt.row.id}/{step.name}/analysis",
            task=task,
            facts=facts,
            product_id=attempt.row.product_id,
            images=[analysis_pb2.AnalysisImage(asset_id=step.asset_id, view=view)],
        )
        answer = await _patiently(lambda: self._analyses.CreateAnalysis(request))
        result.analysis_id = answer.analysis.id

    async def _ask_generation(
        self,
        attempt: attempts.Attempt,
        step: Step,
        result: Result,
        task: Any,
        at: facts_pb2.Point | None,
    ) -> None:
        request = generation_pb2.CreateGenerationRequest(
            request_id=f"{attempt.row.id}/{step.name}/generation",
            task=task,
            source_asset_id=step.asset_id,
            view=step.view,
            at=at,
            name=step.shot,
            product_id=attempt.row.product_id,
        )
        answer = await _patiently(lambda: self._generations.CreateGeneration(request))
        result.generation_id = answer.generation.id

    async def _take_analysis(self, result: Result) -> None:
        """Waits for the step's analysis and puts what it found into the result."""
        request = analysis_pb2.GetAnalysisRequest(analysis_id=result.analysis_id)

        async def look() -> analysis_pb2.Analysis:
            return (await self._analyses.GetAnalysis(request)).analysis

        analysis = await _finished(look)
        found = protos.plain(analysis.result)
        result.credits += analysis.credits
        result.columns |= {
            "analysis": found,
            "confidence": analysis.confidence,
            "model": analysis.recipe.model,
        }
        quality = (found.get("image_quality") or {}).get("score")
        if isinstance(quality, int | float) and 0 <= quality <= 1:
            result.columns["quality_score"] = quality

    async def _take_generation(self, attempt: attempts.Attempt, result: Result) -> None:
        """Waits for the step's picture, holds it, and puts it into the result."""
        request = generation_pb2.GetGenerationRequest(generation_id=result.generation_id)

        async def look() -> generation_pb2.Generation:
            return (await self._generations.GetGeneration(request)).generation

        made = await _finished(look)
        picture = made.result_asset_id
        await _patiently(
            lambda: self._assets.hold(
                attempt.row.product_id, [picture], "result_asset_id", pictures=True
            )
        )
        result.credits += made.credits
        result.columns |= {
            "file_asset_id": UUID(picture),
            "confidence": made.confidence,
            "model": made.recipe.model,
            "prompt": made.full_prompt[:8000],
        }

    async def _pack(self, attempt: attempts.Attempt, step: Step) -> None:
        """The PDF of what there is. Its export belongs to the run, and is there if and only if the
        step succeeded."""
        run = attempt.row
        async with self._db.transaction(run.owner) as m:
            await steps.begin(m, attempt, step, Result())
            collection = await m.one(
                "SELECT * FROM collections WHERE id = %s", (run.collection_id,)
            )
        draft = exports.Draft(new_id(), run.owner, collection.id, "pdf", None, run.created_at)
        try:
            made = await self._exporter.make(draft, attempt.token)
        except Exception as error:
            failure = attempts.verdict(error)
            if isinstance(failure, attempts.Waits) or not (
                failure.final or run.faults + 1 >= self._kind.max_attempts
            ):
                raise  # the run waits or is tried again, and goes on here
            result = Result(error_class=failure.error_class, error_message=failure.message)
            async with self._db.transaction(run.owner) as m:
                await steps.end(m, attempt, step, result)
            return
        try:
            async with self._db.transaction(run.owner, run.created_by) as m:
                await exports.create(m, draft.id, collection, "pdf", None, made)
                await steps.end(m, attempt, step, Result({"export_id": draft.id}))
        except attempts.Superseded:
            await self._exporter.remove(made)
            raise

    async def _stop_what_is_left(self, run_id: UUID) -> None:
        """Cancels the jobs of steps that a cancelled run was at. One that is finished is let be."""
        [run] = await self._db.system_rows("SELECT * FROM runs WHERE id = %s", (run_id,)) or [None]
        if run is None or run.state != "cancelled":
            return
        auth.enter(calls.owner_identity(run.owner))
        async with self._db.transaction(run.owner) as m:
            left = [
                row
                for row in (await steps.recorded(m, run_id)).values()
                if row.state == "processing"
            ]
        for row in left:
            name = f"{run_id}/{row.name}/cancel"
            if row.analysis_id:
                analysis = analysis_pb2.CancelAnalysisRequest(
                    request_id=name, analysis_id=row.analysis_id
                )
                await _patiently(functools.partial(self._analyses.CancelAnalysis, analysis))
            if row.generation_id:
                generation = generation_pb2.CancelGenerationRequest(
                    request_id=name, generation_id=row.generation_id
                )
                await _patiently(functools.partial(self._generations.CancelGeneration, generation))


async def _finished(look: Callable[[], Awaitable[Any]]) -> Any:
    """The job of `conversions` once it is COMPLETED. Raises StepFailed if it ends otherwise, Waits
    if it takes long."""
    give_up = time.monotonic() + _JOB_SECONDS
    pause = _FIRST_PAUSE
    while (job := await _patiently(look)).state in _UNFINISHED:
        if time.monotonic() > give_up:
            text = f"conversions had not finished {job.id} after {_JOB_SECONDS / 60:.0f} minutes"
            raise attempts.Waits("conversions", "DEADLINE", text)
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LOOK_PAUSE)
    if job.state != job_pb2.JOB_STATE_COMPLETED:
        raise StepFailed(
            job.error_class or "CANCELLED", job.error_message or "its job was cancelled"
        )
    return job


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Repeats a call that was refused for a reason that passes."""
    give_up = time.monotonic() + _PATIENCE_SECONDS
    pause = _FIRST_PAUSE
    while True:
        try:
            return await call()
        except DomainError as refusal:
            if errors.passing(refusal) is None or time.monotonic() > give_up:
                raise
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
