"""Stops the jobs of a run that was cancelled or broke off, and ends its steps with what they cost.

A worker does so before the run becomes CANCELLED, so that nothing of it changes afterwards. If
`conversions` is away then, or the worker is killed, the next worker does it.
"""

import asyncio
from uuid import UUID

from services.techfiles import pack_rows, rules, running
from services.techfiles.pack_rows import SELECT_RUN, Run
from services.techfiles.step_jobs import StepJobs
from shared.background import tasks
from shared.database.db import Database
from shared.rpc import auth, calls

_AT_ONCE = 4  # steps whose jobs are cancelled at once


class Canceller:
    def __init__(self, db: Database, jobs: StepJobs) -> None:
        self._db = db
        self._jobs = jobs

    async def settle(self, run_id: UUID) -> None:
        """Cancels what still runs for a run that is to stop, and ends those steps. Does nothing for
        other runs. Raises a passing DomainError while `conversions` is away."""
        runs = await self._db.system_all(SELECT_RUN, {"id": run_id})
        if not runs or not _stops(runs[0]):
            return
        owner = runs[0].owner
        auth.enter(calls.owner_identity(owner))
        async with self._db.transaction(owner) as m:
            moves = await pack_rows.last_moves(m, run_id)
        left = [move for move in moves.values() if pack_rows.has_jobs(move)]
        if not left:
            return
        stopped: dict[str, running.StoppedJobs] = {}
        turns = asyncio.Semaphore(_AT_ONCE)

        async def cancel(move: pack_rows.RunStep) -> None:
            async with turns:
                stopped[move.name] = await self._jobs.cancel(move)

        await tasks.all_of([cancel(move) for move in left])
        async with self._db.transaction(owner) as m:
            await running.stop_steps(m, run_id, stopped)


def _stops(run: Run) -> bool:
    if run.state in rules.ENDED:
        return run.state in ("failed", "cancelled")
    return run.cancel_requested
