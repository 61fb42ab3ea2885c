"""A run of a tech pack whose worker is killed at each of its moves: every step has one effect and
one charge, and the run ends."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest
from atelier.techfiles.v1 import tech_pack_pb2 as tp

from tests.faults.conftest import Bench
from tests.faults.processes import LEASE_SECONDS, Hold, until
from tests.techfiles import flows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]  # ten kills, some 10 s each

MOVES = 10  # five steps begin and end
JOBS = {"analyses": 3, "generations": 2}
LOCK = "LOCK TABLE techfiles.run_steps IN EXCLUSIVE MODE"
WORKER = "techfiles_worker"


async def reached(bench: Bench, stack: AsyncExitStack, run_id: str, move: int) -> Hold:
    """Lets the worker write so many moves of the run's steps, and stops it in the next one. Moves
    that wait for the same lock are written together, so that the run may end before."""
    hold = await stack.enter_async_context(bench.superuser.hold(LOCK))
    bench.processes.work("techfiles")
    for _ in range(move):
        if not await caught_or_ended(bench, hold, run_id):
            return hold
        # Queued behind the worker's statement: granted when its transaction has ended.
        waiting = asyncio.create_task(stack.enter_async_context(bench.superuser.hold(LOCK)))
        await hold.caught("postgres")
        await hold.release()
        hold = await waiting
    await caught_or_ended(bench, hold, run_id)
    return hold


async def caught_or_ended(bench: Bench, hold: Hold, run_id: str) -> bool:
    """Waits until the worker waits for the lock. Returns False if the run ended instead."""
    caught = asyncio.ensure_future(hold.caught(WORKER))
    ended = asyncio.ensure_future(run_ended(bench, run_id))
    await asyncio.wait((caught, ended), return_when=asyncio.FIRST_COMPLETED)
    stopped = caught.done()
    for task in (caught, ended):
        task.cancel()
    await asyncio.gather(caught, ended, return_exceptions=True)
    return stopped


async def killed(bench: Bench, hold: Hold) -> None:
    """Kills the worker and its connections, as if its machine were lost."""
    [worker] = bench.processes.running()
    worker.kill()
    await bench.superuser.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", WORKER
    )
    await hold.release()


async def run_ended(bench: Bench, run_id: str) -> None:
    async def ended() -> bool:
        state = await bench.superuser.value(
            "SELECT state FROM techfiles.runs WHERE id = %s", run_id
        )
        return state not in ("pending", "processing")

    await until(ended, "the run has ended")


async def prepare(bench: Bench, *services: str) -> None:
    await bench.suite.serve("conversions", "techfiles")
    bench.processes.addresses |= bench.suite.addresses
    await bench.suite.work(*services)


async def final(bench: Bench, run: tp.TechPackRun) -> tp.TechPackRun:
    """Asserts what holds for every end, and returns the run."""
    request = tp.GetTechPackRunRequest(run_id=run.id)
    run = (await flows.pack_service(bench.client).GetTechPackRun(request)).run
    ends = await bench.superuser.rows(
        "SELECT name, count(*) AS ends FROM techfiles.run_steps WHERE run_id = %s"
        " AND state IN ('completed', 'failed', 'skipped') GROUP BY name",
        run.id,
    )
    assert {row.name: row.ends for row in ends} == {step.name: 1 for step in run.steps}
    assert run.progress_percent == 100
    charged = 0
    for table in JOBS:
        charged += await bench.superuser.value(
            f"SELECT coalesce(sum(credits), 0)::bigint FROM conversions.{table}"
        )
    runs = await bench.superuser.value(
        "SELECT coalesce(sum(credits), 0)::bigint FROM techfiles.run_steps"
        " WHERE state IN ('completed', 'failed')"
    )
    assert charged == runs
    open_files = await bench.superuser.value(
        "SELECT count(*) FROM techfiles.tech_files WHERE state IN ('pending', 'processing')"
    )
    assert open_files == 0
    return run


async def test_a_run_whose_worker_is_killed_at_each_move_does_each_step_once(
    bench: Bench, measured: Callable[[str], None]
) -> None:
    await prepare(bench, "conversions")
    pictures = await flows.revisions(bench.client, "front")
    facts = flows.example_facts()
    del facts.closeups[:]  # one is made
    took = []
    for move in range(MOVES):
        run = await flows.generate(bench.client, pictures, facts=facts)
        async with AsyncExitStack() as stack:
            hold = await reached(bench, stack, run.id, move)
            await killed(bench, hold)
        start = time.monotonic()
        worker = bench.processes.work("techfiles")
        await run_ended(bench, run.id)
        took.append(time.monotonic() - start)
        await worker.stop()

        done = await final(bench, run)
        assert done.state == tp.RUN_STATE_COMPLETED, done
        assert done.total_credits_used == sum(JOBS.values())
        for table, number in JOBS.items():
            made = await bench.superuser.value(f"SELECT count(*) FROM conversions.{table}")
            assert made == number * (move + 1)
        exports = await bench.superuser.value("SELECT count(*) FROM techfiles.exports")
        assert exports == move + 1
    measured(
        f"a run of a tech pack: {MOVES} kills, one at each move, ended {min(took):.1f} to"
        f" {max(took):.1f} s after the start of a new worker (lease {LEASE_SECONDS:g} s)"
    )


async def test_a_run_whose_worker_is_killed_while_it_is_cancelled_is_final(bench: Bench) -> None:
    await prepare(bench)  # nobody does the jobs: they are there when the run is cancelled
    pictures = await flows.revisions(bench.client, "front")
    run = await flows.generate(bench.client, pictures)
    async with AsyncExitStack() as stack:
        hold = await reached(bench, stack, run.id, 3)  # the last of four steps that begin
        await hold.release()
    cancel = tp.CancelTechPackRunRequest(run_id=run.id)
    async with AsyncExitStack() as stack:
        hold = await stack.enter_async_context(bench.superuser.hold(LOCK))
        await flows.pack_service(bench.client).CancelTechPackRun(cancel)
        await hold.caught(WORKER)  # about to end the steps: their jobs are cancelled
        await killed(bench, hold)
    bench.processes.work("techfiles")
    await run_ended(bench, run.id)

    done = await final(bench, run)
    assert done.state == tp.RUN_STATE_CANCELLED and done.total_credits_used == 0
    assert {step.error_class for step in done.steps} == {"CANCELLED"}
    for table in JOBS:
        states = await bench.superuser.rows(f"SELECT DISTINCT state FROM conversions.{table}")
        assert [row.state for row in states] == ["cancelled"]
