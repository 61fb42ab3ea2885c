"""The jobs of `conversions` that do a run's steps: asks for them, takes their results and cancels
them.

Request ids name the run, the step and the try, so that a repeat after a crash finds the job that it
created before. A later try keeps the jobs of the earlier one that are done, and asks for others.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar
from uuid import UUID

from atelier.common.v1 import facts_pb2
from atelier.conversions.v1 import (
    analysis_pb2,
    analysis_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
)
from psycopg.types.json import Jsonb

from services.techfiles import findings, pack_rows
from services.techfiles.assets import Assets
from services.techfiles.pack_rows import Run, RunStep
from services.techfiles.rules import Step
from services.techfiles.running import StepResult, StoppedJobs
from shared.background import attempts, tasks
from shared.rpc import errors, protos
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError, Reason

_PATIENCE_SECONDS = 60.0  # to repeat calls to an unreachable service, before the run waits for it
_JOB_SECONDS = (
    1800.0  # to wait for one job of `conversions`, before the run waits and frees its worker
)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 3.0
_LOOK_PAUSE = 1.0
_EXPLAIN_SECONDS, _LEAST_SECONDS = 2.0, 0.1  # a call about a run waits no longer for `conversions`
_EXPLAINED_AT_ONCE, _MOST_EXPLAINED = 4, 20
_UNFINISHED = (job_pb2.JOB_STATE_PENDING, job_pb2.JOB_STATE_PROCESSING)
_ANALYSES = {
    "category": analysis_pb2.ANALYSIS_TASK_CATEGORY,
    "base_view": analysis_pb2.ANALYSIS_TASK_BASE_VIEW,
    "sketch": analysis_pb2.ANALYSIS_TASK_SKETCH,
}
_GENERATIONS = {
    "closeup": generation_pb2.GENERATION_TASK_CLOSEUP,
    "sketch": generation_pb2.GENERATION_TASK_SKETCH,
}

T = TypeVar("T")
Job = TypeVar("Job", analysis_pb2.Analysis, generation_pb2.Generation)


class StepFailed(Exception):
    """Raised if a step can't be done. `error_class` is a word, `message` is for a person."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.message = message


class StepJobs:
    """Makes calls to `conversions` for the current identity."""

    def __init__(self, peers: Peers) -> None:
        self._assets = Assets(peers)
        self._analyses = peers.stub(analysis_pb2_grpc.AnalysisServiceStub)
        self._generations = peers.stub(generation_pb2_grpc.GenerationServiceStub)
        self._jobs = peers.stub(job_pb2_grpc.JobServiceStub)

    async def ask(self, run: Run, step: Step, facts: facts_pb2.Facts, result: StepResult) -> None:
        """Asks for the jobs that do the step, and puts their ids into the result. A sketch has
        two at once: the drawing, and the call-outs and measurements that belong on it. Jobs of an
        earlier try, which the result names, are kept if they are done."""
        before = result.credits
        result.job_credits = await self._keep(result)
        result.earlier_credits = before - result.job_credits
        if step.kind in _GENERATIONS and not result.generation_id:
            result.generation_id = await self._ask_generation(run, step)
        if step.kind in _ANALYSES and not result.analysis_id:
            result.analysis_id = await self._ask_analysis(run, step, facts)

    async def take(self, run: Run, result: StepResult) -> None:
        """Waits for the jobs and puts what they made into the result, and what they cost also if
        one of them failed. Raises StepFailed, and Waits if it takes too long: at once if outside
        workers do the jobs."""
        seconds = 0.0 if run.run_externally else _JOB_SECONDS
        failures: list[Exception] = []
        if result.generation_id:
            try:
                made = await _finished(self._look_generation(result.generation_id), seconds)
                result.job_credits += made.credits
                await self._take_picture(run, made, result)
            except (StepFailed, DomainError) as failure:
                failures.append(failure)
        if result.analysis_id:
            try:
                found = await _finished(self._look_analysis(result.analysis_id), seconds)
                result.job_credits += found.credits
                _take_analysis(found, result)
            except (StepFailed, DomainError) as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    async def cancel(self, step: RunStep | StepResult) -> StoppedJobs:
        """Cancels the jobs of a step, and waits until they have ended. One that was just done
        stays, and has its cost."""
        credits, picture = 0, ""
        if step.analysis_id:
            analysis = analysis_pb2.CancelAnalysisRequest(analysis_id=step.analysis_id)
            found = await _cancelled(
                lambda: self._analyses.CancelAnalysis(analysis),
                self._look_analysis(step.analysis_id),
            )
            credits += found.credits if found else 0
        if step.generation_id:
            generation = generation_pb2.CancelGenerationRequest(generation_id=step.generation_id)
            made = await _cancelled(
                lambda: self._generations.CancelGeneration(generation),
                self._look_generation(step.generation_id),
            )
            if made:
                credits, picture = credits + made.credits, made.result_asset_id
        return StoppedJobs(credits, picture)

    async def explain(self, moves: Iterable[RunStep]) -> dict[str, str]:
        """Returns by id what the jobs of these steps wait for, in the words of `conversions`, or
        why it can't be asked. Of many jobs it asks for the first ones."""
        ids = [job for move in moves for job in (move.analysis_id, move.generation_id) if job]
        said: dict[str, str] = {}
        turns = asyncio.Semaphore(_EXPLAINED_AT_ONCE)
        give_up = time.monotonic() + _EXPLAIN_SECONDS

        async def ask(job_id: str) -> None:
            async with turns:
                said[job_id] = await self._explain(job_id, give_up - time.monotonic())

        await tasks.all_of([ask(job_id) for job_id in ids[:_MOST_EXPLAINED]])
        return said

    async def _explain(self, job_id: str, seconds: float) -> str:
        request = job_pb2.ExplainJobRequest(job_id=job_id)
        try:
            answer: job_pb2.ExplainJobResponse = await self._jobs.ExplainJob(
                request, timeout=max(seconds, _LEAST_SECONDS)
            )
        except DomainError as refusal:
            return f"conversions can't be asked about it: {refusal.text}"
        wrong = [each for each in answer.answers if not each.ok]
        return "; ".join(f"{each.question} {each.answer}" for each in wrong) or answer.summary

    async def _keep(self, result: StepResult) -> int:
        """Keeps the jobs of an earlier try that are done and whose picture is there, and forgets
        the others. Returns what the kept ones cost."""
        credits = 0
        if result.analysis_id:
            found = await _existing(self._look_analysis(result.analysis_id))
            if found is not None and found.state == job_pb2.JOB_STATE_COMPLETED:
                credits += found.credits
            else:
                result.analysis_id = ""
        if result.generation_id:
            made = await _existing(self._look_generation(result.generation_id))
            if made is not None and made.state == job_pb2.JOB_STATE_COMPLETED:
                picture = made.result_asset_id
                there = await patiently(lambda: self._assets.describe([picture]))
                if picture in there:
                    return credits + made.credits
            result.generation_id = ""
        return credits

    async def _ask_analysis(self, run: Run, step: Step, facts: facts_pb2.Facts) -> str:
        request = analysis_pb2.CreateAnalysisRequest(
            request_id=_request_id(run, step, "analysis"),
            task=_ANALYSES[step.kind],
            facts=facts,
            product_id=run.product_id,
            images=[analysis_pb2.AnalysisImage(asset_id=step.asset_id, view=_view(run, step))],
            run_externally=run.run_externally,
        )
        answer: analysis_pb2.CreateAnalysisResponse = await patiently(
            lambda: self._analyses.CreateAnalysis(request)
        )
        return answer.analysis.id

    async def _ask_generation(self, run: Run, step: Step) -> str:
        closeup = step.kind == "closeup"
        request = generation_pb2.CreateGenerationRequest(
            request_id=_request_id(run, step, "generation"),
            task=_GENERATIONS[step.kind],
            source_asset_id=step.asset_id,
            view=step.view,
            at=facts_pb2.Point(x=step.at[0], y=step.at[1]) if closeup and step.at else None,
            name=step.shot,
            product_id=run.product_id,
            run_externally=run.run_externally,
        )
        answer: generation_pb2.CreateGenerationResponse = await patiently(
            lambda: self._generations.CreateGeneration(request)
        )
        return answer.generation.id

    def _look_analysis(self, analysis_id: str) -> Callable[[], Awaitable[analysis_pb2.Analysis]]:
        request = analysis_pb2.GetAnalysisRequest(analysis_id=analysis_id)

        async def look() -> analysis_pb2.Analysis:
            answer: analysis_pb2.GetAnalysisResponse = await self._analyses.GetAnalysis(request)
            return answer.analysis

        return look

    def _look_generation(
        self, generation_id: str
    ) -> Callable[[], Awaitable[generation_pb2.Generation]]:
        request = generation_pb2.GetGenerationRequest(generation_id=generation_id)

        async def look() -> generation_pb2.Generation:
            answer: generation_pb2.GetGenerationResponse = await self._generations.GetGeneration(
                request
            )
            return answer.generation

        return look

    async def _take_picture(
        self, run: Run, made: generation_pb2.Generation, result: StepResult
    ) -> None:
        """Acquires a reference to the picture and puts it into the result."""
        picture = made.result_asset_id
        await patiently(
            lambda: self._assets.acquire(
                run.product_id, [picture], "result_asset_id", pictures=True
            )
        )
        result.columns |= {
            "file_asset_id": UUID(picture),
            "confidence": made.confidence,
            "model": made.recipe.model,
            "prompt": made.full_prompt[:8000],
        }


def _request_id(run: Run, step: Step, what: str) -> str:
    name = f"{run.id}/{step.name}/{what}"
    return name if run.round == 1 else f"{name}/{run.round}"


def _view(run: Run, step: Step) -> str:
    """Returns the view that the step's picture shows, '' if none is known."""
    return step.view or next(
        (
            other.view
            for other in pack_rows.plan_of(run)
            if other.kind == "base_view" and other.asset_id == step.asset_id
        ),
        "",
    )


def _unfinished(job: analysis_pb2.Analysis | generation_pb2.Generation) -> attempts.Waits:
    if job.run_externally:
        text = (
            f"no outside worker has done job {job.id} yet; one takes it with"
            " conversions.v1.JobService.ClaimJob"
        )
        return attempts.Waits("an outside worker", "OUTSIDE_WORKER", text)
    text = f"conversions had not finished {job.id} after {_JOB_SECONDS / 60:.0f} minutes"
    return attempts.Waits("conversions", "DEADLINE", text)


def longest_wait(waits: Sequence[attempts.Waits]) -> attempts.Waits:
    """Returns the wait of a run whose steps wait for all of these."""
    first = waits[0]
    if len(waits) == 1:
        return first
    return attempts.Waits(
        first.what, first.error_class, f"{first.message}; {len(waits)} steps wait in all"
    )


def _take_analysis(analysis: analysis_pb2.Analysis, result: StepResult) -> None:
    found = protos.plain(analysis.result)
    result.columns |= {
        "analysis": Jsonb(findings.stored(analysis)),
        "confidence": analysis.confidence,
        "model": analysis.recipe.model,
    }
    quality = (found.get("image_quality") or {}).get("score")
    if isinstance(quality, int | float) and 0 <= quality <= 1:
        result.columns["quality_score"] = quality


async def _finished(look: Callable[[], Awaitable[Job]], seconds: float) -> Job:
    """Returns the job of `conversions` once it is COMPLETED. Raises StepFailed if it ends
    otherwise, Waits if it takes longer than `seconds`."""
    give_up = time.monotonic() + seconds
    pause = _FIRST_PAUSE
    while (job := await patiently(look)).state in _UNFINISHED:
        if time.monotonic() >= give_up:
            raise _unfinished(job)
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LOOK_PAUSE)
    if job.state != job_pb2.JOB_STATE_COMPLETED:
        raise StepFailed(
            job.error_class or "CANCELLED", job.error_message or "its job was cancelled"
        )
    return job


async def _existing(look: Callable[[], Awaitable[Job]]) -> Job | None:
    """Returns the job, or None if it is gone."""
    try:
        return await patiently(look)
    except DomainError as refusal:
        if refusal.reason == Reason.ERROR_REASON_NOT_FOUND:
            return None
        raise


async def _cancelled(
    cancel: Callable[[], Awaitable[object]], look: Callable[[], Awaitable[Job]]
) -> Job | None:
    """Cancels a job and returns it once it has ended, or None if it is gone."""
    if await _existing(look) is None:
        return None
    await patiently(cancel)
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while (job := await _existing(look)) is not None and job.state in _UNFINISHED:
        if time.monotonic() > give_up:
            raise errors.unavailable("conversions", "conversions")
        await asyncio.sleep(_FIRST_PAUSE)
    return job


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
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
