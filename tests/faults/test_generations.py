"""A picture whose worker is killed: one result asset, one charge, no stuck job."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from atelier.conversions.v1 import generation_pb2

from tests.conversions import flows
from tests.faults.conftest import Bench
from tests.faults.processes import LEASE_SECONDS, Hold, until

pytestmark = pytest.mark.faults

ROUNDS = 5
CREDITS = 3
CLAIM = "LOCK TABLE conversions.attempts IN EXCLUSIVE MODE"
Reached = tuple[str, Hold]  # the generation's id, and the lock that holds the worker now


async def dequeued(bench: Bench, stack: AsyncExitStack) -> Reached:
    """The worker has taken the job from the queue; nothing about it is written yet."""
    claim = await stack.enter_async_context(bench.superuser.hold(CLAIM))
    generation = await flows.generate(
        bench.client, prompt="a linen shirt on sand", quality="draft", wait=False
    )
    await claim.caught("conversions_worker")
    return generation.id, claim


async def result_stored(bench: Bench, stack: AsyncExitStack) -> Reached:
    """The result is a READY asset; the generation's row is about to name it."""
    generation_id, claim = await dequeued(bench, stack)
    # Queued behind the worker: granted when its claim is committed, before the attempt ends.
    waiting = asyncio.create_task(stack.enter_async_context(bench.superuser.hold(CLAIM)))
    await claim.caught("postgres")
    await claim.release()
    end = await waiting
    await end.caught("conversions_worker")
    assert len(await results(bench)) == 1 + await bench.superuser.value(
        "SELECT count(*) FROM conversions.generations WHERE state = 'completed'"
    )
    return generation_id, end


async def results(bench: Bench) -> set[str]:
    rows = await bench.superuser.rows("SELECT id::text FROM assets.assets WHERE state = 'ready'")
    return {row.id for row in rows}


@pytest.mark.parametrize("step", [dequeued, result_stored], ids=lambda step: step.__name__)
async def test_a_picture_whose_worker_is_killed_is_made_and_charged_once(
    bench: Bench,
    step: Callable[[Bench, AsyncExitStack], Awaitable[Reached]],
    measured: Callable[[str], None],
) -> None:
    await bench.suite.serve("conversions")
    bench.processes.addresses |= bench.suite.addresses
    worker = bench.processes.work("conversions")
    took = []

    for number in range(ROUNDS):
        async with AsyncExitStack() as stack:
            generation_id, hold = await step(bench, stack)
            backend = await hold.caught("conversions_worker")
            worker.kill()
            await bench.superuser.rows("SELECT pg_terminate_backend(%s)", backend)

        killed = time.monotonic()
        worker = bench.processes.work("conversions")
        await until(lambda: completed(bench, generation_id), "the generation is completed")  # noqa: B023
        took.append(time.monotonic() - killed)
        await charged_once(bench, generation_id, lost=0 if step is dequeued else 1)
        assert len(await results(bench)) == number + 1

    pending = await bench.superuser.value(
        "SELECT count(*) FROM assets.assets WHERE state = 'pending'"
    )
    measured(
        f"R2 generation, {step.__name__}: {ROUNDS} kills, completed {min(took):.1f} to"
        f" {max(took):.1f} s after the kill (lease {LEASE_SECONDS:g} s, with the start of a new"
        f" worker), {pending} uploads abandoned"
    )


async def completed(bench: Bench, generation_id: str) -> bool:
    """Returns whether the generation is final and gone from the queue."""
    state = await bench.superuser.value(
        "SELECT state FROM conversions.generations WHERE id = %s", generation_id
    )
    left = await bench.superuser.value(
        "SELECT count(*) FROM conversions_jobs.procrastinate_jobs WHERE status IN ('todo', 'doing')"
    )
    assert state != "failed"
    return state == "completed" and not left


async def charged_once(bench: Bench, generation_id: str, *, lost: int) -> None:
    [row] = await bench.superuser.rows(
        "SELECT * FROM conversions.generations WHERE id = %s", generation_id
    )
    assert row.credits == CREDITS
    assert str(row.result_asset_id) in await results(bench)
    attempts = await bench.superuser.rows(
        "SELECT outcome, credits FROM conversions.attempts WHERE job_id = %s ORDER BY created_at",
        generation_id,
    )
    assert [(each.outcome, each.credits) for each in attempts] == [("lost", 0)] * lost + [
        ("succeeded", CREDITS)
    ]
    entries = await bench.superuser.rows(
        "SELECT kind, credits FROM conversions.credit_entries WHERE job_id = %s"
        " ORDER BY created_at",
        generation_id,
    )
    assert [(each.kind, each.credits) for each in entries] == [
        ("reserve", CREDITS),
        ("commit", CREDITS),
    ]
    told = await bench.superuser.rows(
        "SELECT payload FROM conversions.events WHERE subject_id = %s ORDER BY seq", generation_id
    )
    shown = [generation_pb2.Generation.FromString(event.payload).result_asset_id for event in told]
    assert [each for each in shown if each] == [str(row.result_asset_id)]
