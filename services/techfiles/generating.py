"""Generates a tech pack in a job: every step asks `conversions`, and each answer becomes a tech
file.

Request ids name the run and the step, so that a repeat after a crash finds the job that it created
before. A step that fails is recorded and the others continue; a step that has ended isn't repeated.
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

from atelier.common.v1 import facts_pb2
from atelier.conversions.v1 import (
    analysis_pb2,
    analysis_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    job_pb2,
)
from psycopg.types.json import Jsonb

from services.techfiles import export_rows, pack_rows, rules, running
from services.techfiles.assets import Assets
from services.techfiles.collection_rows import SELECT_FACTS, SELECT_NAME
from services.techfiles.export_rows import NewExport
from services.techfiles.pack_rows import RUNS, SELECT_RUN, Run
from services.techfiles.rendering import Renderer
from services.techfiles.rules import Step
from services.techfiles.running import StepResult
from shared.background import attempts, tasks
from shared.background.job_tables import JobTable
from shared.database.db import Database
from shared.database.ids import new_id
from shared.rpc import auth, calls, errors, protos
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError

_AT_ONCE = 4  # steps of one run that are processed at once
_PATIENCE_SECONDS = 60.0  # to repeat calls to an unreachable service, before the run waits for it
_JOB_SECONDS = (
    1800.0  # to wait for one job of `conversions`, before the run waits and frees its worker
)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 3.0
_LOOK_PAUSE = 1.0
_UNFINISHED = (job_pb2.JOB_STATE_PENDING, job_pb2.JOB_STATE_PROCESSING)

Attempt = attempts.Attempt[Run]

T = TypeVar("T")
Job = TypeVar("Job", analysis_pb2.Analysis, generation_pb2.Generation)


class StepFailed(Exception):
    """Raised if a step can't be done. `error_class` is a word, `message` is for a person."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.message = message


class PackGenerator:
    """Generates tech packs. `run` is the job of a row of `runs`."""

    def __init__(self, db: Database, peers: Peers, renderer: Renderer) -> None:
        self._db = db
        self._renderer = renderer
        self._assets = Assets(peers)
        self._analyses = peers.stub(analysis_pb2_grpc.AnalysisServiceStub)
        self._generations = peers.stub(generation_pb2_grpc.GenerationServiceStub)
        self._kind = JobTable(RUNS, rules.RUN_STATES, "processing", "completed", running.follow)

    async def run(self, run_id: str) -> None:
        await attempts.run(self._db, self._kind, run_id, self._work)
        await self._cancel_jobs(UUID(run_id))

    async def _work(self, attempt: Attempt) -> attempts.Outcome[Run]:
        run = attempt.row
        async with self._db.transaction(run.owner) as m:
            before = await pack_rows.last_moves(m, run.id)
            stated = await m.one(SELECT_FACTS, {"id": run.collection_id})
        facts = protos.facts_message(stated)
        ended = {name for name, row in before.items() if not rules.STEP_STATES[row.state]}
        *first, last = pack_rows.plan_of(run)
        turns = asyncio.Semaphore(_AT_ONCE)

        async def take(step: Step) -> None:
            async with turns:
                await self._take(attempt, step, facts)

        # Starts the longest steps, the sketches, first, so that the run doesn't wait for one of
        # them alone at the end.
        left = sorted(
            (step for step in first if step.name not in ended),
            key=lambda step: step.kind != "sketch",
        )
        await tasks.all_of([take(step) for step in left])
        if last.name not in ended:
            await self._pack(attempt, last)
        async with self._db.transaction(run.owner) as m:
            after = (await pack_rows.last_moves(m, run.id)).values()
        failed = any(row.state == "failed" for row in after)
        return attempts.Outcome(
            {},
            to="completed_with_failures" if failed else None,
            credits=sum(row.credits for row in after),
        )

    async def _take(self, attempt: Attempt, step: Step, facts: facts_pb2.Facts) -> None:
        result = StepResult()
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
                raise  # the run waits, and continues with this step
            result.error_class, result.error_message = found.error_class, found.message
        async with self._db.transaction(attempt.row.owner) as m:
            await running.end_step(m, attempt, step, result)

    async def _category(
        self, attempt: Attempt, step: Step, facts: facts_pb2.Facts, result: StepResult
    ) -> None:
        plan = pack_rows.plan_of(attempt.row)
        view = next(
            (s.view for s in plan if s.kind == "base_view" and s.asset_id == step.asset_id), ""
        )
        await self._ask_analysis(
            attempt, step, facts, result, analysis_pb2.ANALYSIS_TASK_CATEGORY, view
        )
        await self._begin(attempt, step, result)
        await self._take_analysis(result)

    async def _base_view(
        self, attempt: Attempt, step: Step, facts: facts_pb2.Facts, result: StepResult
    ) -> None:
        await self._ask_analysis(
            attempt, step, facts, result, analysis_pb2.ANALYSIS_TASK_BASE_VIEW, step.view
        )
        await self._begin(attempt, step, result)
        await self._take_analysis(result)

    async def _closeup(
        self, attempt: Attempt, step: Step, facts: facts_pb2.Facts, result: StepResult
    ) -> None:
        at = facts_pb2.Point(x=step.at[0], y=step.at[1]) if step.at else None
        await self._ask_generation(
            attempt, step, result, generation_pb2.GENERATION_TASK_CLOSEUP, at
        )
        await self._begin(attempt, step, result)
        await self._take_generation(attempt, result)

    async def _sketch(
        self, attempt: Attempt, step: Step, facts: facts_pb2.Facts, result: StepResult
    ) -> None:
        """Makes the drawing, and the call-outs and measurements that belong on it: two jobs at
        once."""
        await self._ask_generation(
            attempt, step, result, generation_pb2.GENERATION_TASK_SKETCH, None
        )
        await self._ask_analysis(
            attempt, step, facts, result, analysis_pb2.ANALYSIS_TASK_SKETCH, step.view
        )
        await self._begin(attempt, step, result)
        await self._take_generation(attempt, result)
        await self._take_analysis(result)

    async def _begin(self, attempt: Attempt, step: Step, result: StepResult) -> None:
        async with self._db.transaction(attempt.row.owner) as m:
            await running.begin_step(m, attempt, step, result)

    async def _ask_analysis(
        self,
        attempt: Attempt,
        step: Step,
        facts: facts_pb2.Facts,
        result: StepResult,
        task: analysis_pb2.AnalysisTask,
        view: str,
    ) -> None:
        request = analysis_pb2.CreateAnalysisRequest(
            request_id=f"{attempt.row.id}/{step.name}/analysis",
            task=task,
            facts=facts,
            product_id=attempt.row.product_id,
            images=[analysis_pb2.AnalysisImage(asset_id=step.asset_id, view=view)],
        )
        answer: analysis_pb2.CreateAnalysisResponse = await _patiently(
            lambda: self._analyses.CreateAnalysis(request)
        )
        result.analysis_id = answer.analysis.id

    async def _ask_generation(
        self,
        attempt: Attempt,
        step: Step,
        result: StepResult,
        task: generation_pb2.GenerationTask,
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
        answer: generation_pb2.CreateGenerationResponse = await _patiently(
            lambda: self._generations.CreateGeneration(request)
        )
        result.generation_id = answer.generation.id

    async def _take_analysis(self, result: StepResult) -> None:
        """Waits for the step's analysis and puts what it found into the result."""
        request = analysis_pb2.GetAnalysisRequest(analysis_id=result.analysis_id)

        async def look() -> analysis_pb2.Analysis:
            answer: analysis_pb2.GetAnalysisResponse = await self._analyses.GetAnalysis(request)
            return answer.analysis

        analysis = await _finished(look)
        found = protos.plain(analysis.result)
        result.credits += analysis.credits
        result.columns |= {
            "analysis": Jsonb(found),
            "confidence": analysis.confidence,
            "model": analysis.recipe.model,
        }
        quality = (found.get("image_quality") or {}).get("score")
        if isinstance(quality, int | float) and 0 <= quality <= 1:
            result.columns["quality_score"] = quality

    async def _take_generation(self, attempt: Attempt, result: StepResult) -> None:
        """Waits for the step's picture, acquires a reference to it, and puts it into the result."""
        request = generation_pb2.GetGenerationRequest(generation_id=result.generation_id)

        async def look() -> generation_pb2.Generation:
            answer: generation_pb2.GetGenerationResponse = await self._generations.GetGeneration(
                request
            )
            return answer.generation

        made = await _finished(look)
        picture = made.result_asset_id
        await _patiently(
            lambda: self._assets.acquire(
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

    async def _pack(self, attempt: Attempt, step: Step) -> None:
        """Renders the PDF of the files that exist. Its export belongs to the run, and exists if and
        only if the step succeeded."""
        run = attempt.row
        async with self._db.transaction(run.owner) as m:
            await running.begin_step(m, attempt, step, StepResult())
            collection = await m.one(SELECT_NAME, {"id": run.collection_id})
        export = NewExport(new_id(), run.owner, collection.id, "pdf", None, run.created_at)
        try:
            document = await self._renderer.render(export, attempt.token)
        except Exception as error:
            failure = attempts.verdict(error)
            if isinstance(failure, attempts.Waits) or not (
                failure.final or run.faults + 1 >= self._kind.max_attempts
            ):
                raise  # the run waits or gets another attempt, and continues here
            result = StepResult(error_class=failure.error_class, error_message=failure.message)
            async with self._db.transaction(run.owner) as m:
                await running.end_step(m, attempt, step, result)
            return
        try:
            async with self._db.transaction(run.owner, run.created_by) as m:
                await export_rows.create(m, export.id, collection, "pdf", None, document)
                await running.end_step(m, attempt, step, StepResult({"export_id": export.id}))
        except attempts.Superseded:
            await self._renderer.delete(document)
            raise

    async def _cancel_jobs(self, run_id: UUID) -> None:
        """Cancels the jobs of `conversions` that a cancelled run's steps were waiting for. Finished
        ones stay."""
        runs = await self._db.system_all(SELECT_RUN, {"id": run_id})
        if not runs or runs[0].state != "cancelled":
            return
        owner = runs[0].owner
        auth.enter(calls.owner_identity(owner))
        async with self._db.transaction(owner) as m:
            moves = await pack_rows.last_moves(m, run_id)
        for row in moves.values():
            name = f"{run_id}/{row.name}/cancel"
            if row.state != "processing":
                continue
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


async def _finished(look: Callable[[], Awaitable[Job]]) -> Job:
    """Returns the job of `conversions` once it is COMPLETED. Raises StepFailed if it ends
    otherwise, Waits if it takes longer than _JOB_SECONDS."""
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
    """Makes a call, and repeats it for up to _PATIENCE_SECONDS if it is refused for a reason that
    passes."""
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
