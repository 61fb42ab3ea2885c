"""Generates a tech pack in a job: every step asks `conversions`, and each answer becomes a tech
file.

A step that fails is recorded and the others continue; a step that has ended isn't repeated. While
jobs take long, or outside workers do them, the run waits without a worker, and goes on with the
jobs that it asked for.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any
from uuid import UUID

import psycopg
import structlog
from atelier.common.v1 import facts_pb2
from psycopg.types.json import Jsonb

from services.techfiles import export_rows, pack_rows, releasing_pictures, rules, running
from services.techfiles.cancelling import Canceller
from services.techfiles.collection_rows import SELECT_FACTS, SELECT_NAME, NamedCollection
from services.techfiles.export_rows import NewExport, StoredDocument
from services.techfiles.export_storage import ExportQuotas
from services.techfiles.legacy.old_table import OldTable, OldTableWrong, ValueRefused
from services.techfiles.pack_rows import RUNS, Run, RunStep
from services.techfiles.rendering import Renderer
from services.techfiles.rules import Step
from services.techfiles.running import StepResult
from services.techfiles.step_jobs import StepFailed, StepJobs, longest_wait
from shared.background import attempts, jobs, tasks
from shared.background.job_tables import JobTable
from shared.database.db import Database
from shared.database.ids import new_id
from shared.rpc import protos
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError

_log = structlog.get_logger("generating")
_AT_ONCE = 4  # steps of one run that are processed at once

Attempt = attempts.Attempt[Run]


class PackGenerator:
    """Generates tech packs. `run` is the job of a row of `runs`."""

    def __init__(
        self,
        db: Database,
        peers: Peers,
        renderer: Renderer,
        queue: jobs.JobQueue,
        legacy: OldTable,
        quotas: ExportQuotas,
    ) -> None:
        self._db = db
        self._renderer = renderer
        self._queue = queue
        self._legacy = legacy
        self._quotas = quotas
        self._jobs = StepJobs(peers)
        self._canceller = Canceller(db, self._jobs)
        self._kind = JobTable(RUNS, rules.RUN_STATES, "processing", "completed", running.follow)

    async def run(self, run_id: str) -> None:
        await self._canceller.settle(UUID(run_id))
        await attempts.run(self._db, self._kind, run_id, self._work)
        await self._canceller.settle(UUID(run_id))

    async def _work(self, attempt: Attempt) -> attempts.Outcome[Run]:
        try:
            return await self._generate(attempt)
        except asyncio.CancelledError:  # the worker stops, or somebody cancelled the run
            await self._canceller.settle(attempt.row.id)
            raise

    async def _generate(self, attempt: Attempt) -> attempts.Outcome[Run]:
        run = attempt.row
        async with self._db.transaction(run.owner) as m:
            before = await pack_rows.last_moves(m, run.id)
            stated = await m.one(SELECT_FACTS, {"id": run.collection_id})
        facts = protos.facts_message(stated)
        *first, last = pack_rows.plan_of(run)
        turns = asyncio.Semaphore(_AT_ONCE)
        waits: list[attempts.Waits] = []

        async def take(step: Step) -> None:
            async with turns:
                try:
                    await self._take(attempt, step, facts, before[step.name])
                except attempts.Waits as wait:
                    waits.append(wait)

        # Starts the longest steps, the sketches, first, so that the run doesn't wait for one of
        # them alone at the end.
        left = sorted(
            (step for step in first if rules.STEP_STATES[before[step.name].state]),
            key=lambda step: step.kind != "sketch",
        )
        await tasks.all_of([take(step) for step in left])
        if waits:
            raise longest_wait(waits)  # the run waits, and continues with these steps
        if rules.STEP_STATES[before[last.name].state]:
            await self._pack(attempt, last, before[last.name])
        async with self._db.transaction(run.owner) as m:
            after = (await pack_rows.last_moves(m, run.id)).values()
        failed = any(row.state == "failed" for row in after)
        return attempts.Outcome(
            {},
            to="completed_with_failures" if failed else None,
            credits=sum(row.credits for row in after),
        )

    async def _take(
        self, attempt: Attempt, step: Step, facts: facts_pb2.Facts, before: RunStep
    ) -> None:
        """Takes a step to its end. Raises Waits if its jobs aren't done yet, and a passing
        DomainError while a service is away."""
        result = StepResult.of(before)
        try:
            asked = before.analysis_id or before.generation_id
            if step.kind == "base_view" and not asked and await self._known(attempt, step, result):
                if before.state != "processing":
                    async with self._db.transaction(attempt.row.owner) as m:
                        await running.begin_step(m, attempt, step, result)
            elif before.state != "processing":
                await _to_its_end(self._ask(attempt, step, facts, result))
            result.job_credits = 0  # counted when the jobs are taken
            await self._jobs.take(attempt.row, result)
        except StepFailed as failure:
            result.error_class, result.error_message = failure.error_class, failure.message
        except DomainError as refusal:
            found = attempts.verdict(refusal)
            if isinstance(found, attempts.Waits):
                raise  # the run waits, and continues with this step
            result.error_class, result.error_message = found.error_class, found.message
        picture = result.columns.get("file_asset_id")
        async with (
            releasing_pictures.unless_kept(self._db, attempt.row.product_id, picture),
            self._db.transaction(attempt.row.owner) as m,
        ):
            await running.end_step(m, attempt, step, result)

    async def _known(self, attempt: Attempt, step: Step, result: StepResult) -> bool:
        """Takes the analysis of a base view from the older application's table, if that has it:
        nobody pays for it again. A table that can't be used, or a row that can't be read, has
        none; while its database is away, the run waits. Returns whether it was there."""
        if not self._legacy.reads:
            return False
        run = attempt.row
        try:
            found = await self._legacy.find(run.owner, run.product_id, step.revision_id, step.view)
        except (OldTableWrong, ValueRefused) as wrong:
            _log.warning("the older application's table is passed over", problem=str(wrong))
            return False
        except psycopg.OperationalError as error:
            text = f"the older application's database is away: {type(error).__name__}"
            raise attempts.Waits("legacy", "UNAVAILABLE", text) from None
        if found is None or not found.analysis:
            return False
        result.columns |= {
            "analysis": Jsonb(dict(found.analysis)),
            "model": found.model,
            "confidence": found.confidence,
            "origin": "legacy",
        }
        return True

    async def _ask(
        self, attempt: Attempt, step: Step, facts: facts_pb2.Facts, result: StepResult
    ) -> None:
        """Asks for the step's jobs and begins the step. If one of them is refused for good, the
        other one is cancelled."""
        try:
            await self._jobs.ask(attempt.row, step, facts, result)
        except DomainError as refusal:
            if not isinstance(attempts.verdict(refusal), attempts.Waits):
                result.job_credits = (await self._jobs.cancel(result)).credits
            raise
        async with self._db.transaction(attempt.row.owner) as m:
            await running.begin_step(m, attempt, step, result)

    async def _pack(self, attempt: Attempt, step: Step, before: RunStep) -> None:
        """Renders the PDF of the files that exist. Its export belongs to the run, and exists if and
        only if the step succeeded."""
        run = attempt.row
        async with self._db.transaction(run.owner) as m:
            if before.state != "processing":
                await running.begin_step(m, attempt, step, StepResult())
            collection = await m.one(SELECT_NAME, {"id": run.collection_id})
        export = NewExport(new_id(), run.owner, collection.id, "pdf", None, run.created_at)
        try:
            await self._refuse_without_room(run)
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
            await self._store(attempt, step, export, collection, document)
        except attempts.Superseded:
            await self._renderer.delete(document)
            raise

    async def _refuse_without_room(self, run: Run) -> None:
        """Raises JobFailed if the quotas allow no further export."""
        try:
            async with self._db.transaction(run.owner) as m:
                await self._quotas.room(m)
        except DomainError as refusal:
            text = f"{refusal.text}; then RetryTechPackRun makes the pack"
            raise attempts.JobFailed("QUOTA_EXCEEDED", text) from None

    async def _store(
        self,
        attempt: Attempt,
        step: Step,
        export: NewExport,
        collection: NamedCollection,
        document: StoredDocument,
    ) -> None:
        """Ends the pack's step with its PDF, and begins the ZIP if the run is to have one."""
        run = attempt.row
        async with self._db.transaction(run.owner, run.created_by) as m:
            await export_rows.create(m, export.id, collection, "pdf", None, document)
            if run.make_zip:
                archive = await export_rows.create(m, new_id(), collection, "zip", None)
                await running.set_zip(m, run.id, archive.id)
                await self._queue.enqueue(m, export_rows.TASK, export_rows.QUEUE, archive.id)
            await running.end_step(m, attempt, step, StepResult({"export_id": export.id}))


async def _to_its_end(asking: Coroutine[Any, Any, None]) -> None:
    """Finishes what it began, also if this task is cancelled meanwhile: a job that was asked for
    and isn't noted would neither be cancelled nor counted."""
    task = asyncio.ensure_future(asking)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        with suppress(Exception):
            await task
        raise
