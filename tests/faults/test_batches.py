"""A batch whose worker is killed twenty times: each item is made once and charged once, and the
batch never costs more than its max_credits."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from itertools import accumulate

import pytest
from atelier.conversions.v1 import batch_pb2 as pb

from tests.conversions import batch_flows as batches
from tests.faults.conftest import Bench
from tests.faults.processes import Process, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]  # a minute on an idle machine

KILLS = 20
SEEDS, PROMPTS = 60, 2
ITEMS = SEEDS * PROMPTS
CREDITS = 3
# Both the creation of an item and the end of one write to the ledger.
MONEY = "LOCK TABLE conversions.credit_entries IN EXCLUSIVE MODE"


async def test_a_batch_whose_worker_is_killed_twenty_times_costs_nothing_twice(
    bench: Bench, measured: Callable[[str], None]
) -> None:
    await bench.suite.serve("conversions")
    bench.processes.addresses |= bench.suite.addresses
    most = (ITEMS - 1) * CREDITS
    batch = await batches.draw(bench.client, SEEDS, prompts=PROMPTS, max_credits=most)

    chance, began = random.Random(1), time.monotonic()
    for number in range(KILLS):
        worker = bench.processes.work("conversions")
        if number:  # the first is killed while it creates items
            await until(one_more(bench, await completed(bench)), "an item is completed")
        if number % 2:
            await asyncio.sleep(chance.random() / 2)
            worker.kill()
        else:
            await killed_at_the_ledger(bench, worker)
    left = await batches.get(bench.client, batch.id)
    assert left.completed_count < ITEMS - 1, "the kills came too late"

    bench.processes.work("conversions")
    paused = await batches.until(
        bench.client, batch.id, lambda found: found.state == pb.BATCH_STATE_PAUSED, 300
    )
    assert paused.pause_reason == pb.BATCH_PAUSE_REASON_MAX_CREDITS
    assert (paused.completed_count, paused.credits) == (ITEMS - 1, most)
    await made_and_charged_once(bench, batch.id, ITEMS - 1)

    await batches.resume(bench.client, batch.id, max_credits=ITEMS * CREDITS)
    ended = await batches.completed(bench.client, batch.id)
    assert (ended.completed_count, ended.credits) == (ITEMS, ITEMS * CREDITS)
    await made_and_charged_once(bench, batch.id, ITEMS)
    lost = await bench.superuser.value(
        "SELECT count(*) FROM conversions.attempts WHERE outcome = 'lost'"
    )
    assert lost >= KILLS // 4, "most kills met a worker that did nothing"
    measured(
        f"batch: {ITEMS} items, {KILLS} kills that {lost} attempts were lost in, ended after"
        f" {time.monotonic() - began:.0f} s"
    )


async def completed(bench: Bench) -> int:
    count = await bench.superuser.value(
        "SELECT count(*) FROM conversions.generations WHERE state = 'completed'"
    )
    return int(count)


def one_more(bench: Bench, before: int) -> Callable[[], Awaitable[bool]]:
    async def found() -> bool:
        return await completed(bench) > before

    return found


async def killed_at_the_ledger(bench: Bench, worker: Process) -> None:
    """Kills the worker in the middle of a transaction that moves credits."""
    async with bench.superuser.hold(MONEY) as hold:
        backend = await hold.caught("conversions_worker")
        worker.kill()
        await bench.superuser.rows("SELECT pg_terminate_backend(%s)", backend)


async def made_and_charged_once(bench: Bench, batch_id: str, items: int) -> None:
    async def settled() -> bool:
        left = "SELECT count(*) FROM conversions_jobs.procrastinate_jobs WHERE status = 'doing'"
        return not await bench.superuser.value(left)

    await until(settled, "the jobs of the items have ended")
    rows = await bench.superuser.rows(
        "SELECT batch_item, state, credits, result_asset_id::text AS result"
        " FROM conversions.generations WHERE batch_id = %s ORDER BY batch_item",
        batch_id,
    )
    assert [row.batch_item for row in rows] == list(range(items))
    assert {(row.state, row.credits) for row in rows} == {("completed", CREDITS)}
    ready = await bench.superuser.rows("SELECT id::text FROM assets.assets WHERE state = 'ready'")
    assert sorted(row.id for row in ready) == sorted(row.result for row in rows)

    entries = await bench.superuser.rows(
        "SELECT job_id, kind, credits FROM conversions.credit_entries ORDER BY created_at"
    )
    assert sorted(each.kind for each in entries) == ["commit"] * items + ["reserve"] * items
    assert len({(each.job_id, each.kind) for each in entries}) == 2 * items
    held = accumulate(each.credits for each in entries if each.kind == "reserve")
    assert max(held) == items * CREDITS
    account = await bench.superuser.rows("SELECT reserved FROM conversions.credit_accounts")
    assert [row.reserved for row in account] == [0]
