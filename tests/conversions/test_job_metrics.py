"""Figures of jobs that a worker exports: queues, dead jobs, batches, outside workers,
credits, revocations, the upkeep."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from atelier.assets.v1 import asset_pb2, storage_pb2, storage_pb2_grpc

from services.assets.upkeep.erase import OPEN_ERASURES
from services.conversions import metrics
from shared.background.metrics import watch_queues
from shared.database.db import Database
from shared.erasing.metrics import watch_erasures
from shared.telemetry import METRICS
from tests.assets import flows as assets
from tests.conversions import batch_flows as batches
from tests.conversions import flows
from tests.suite import Suite


def shown(name: str, **labels: str) -> float | None:
    return METRICS.get_sample_value(f"atelier_{name}", labels)


@asynccontextmanager
async def watched(suite: Suite) -> AsyncIterator[None]:
    """The figures are those of now, within the block."""
    db = Database(suite.settings("conversions", "worker"), "conversions")
    of_assets = Database(suite.settings("assets", "worker"), "assets")
    await db.open()
    await of_assets.open()
    reading = (
        watch_queues(db),
        metrics.watch_jobs(db),
        watch_erasures(db),
        watch_erasures(of_assets, OPEN_ERASURES),
    )
    watching = [asyncio.create_task(each) for each in reading]
    await asyncio.sleep(1)  # they read at once, and then every 15 s
    try:
        yield
    finally:
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)
        await db.close()
        await of_assets.close()


async def revoked(suite: Suite, *states: str) -> None:
    """Leaves revoked consents as their erasures leave them; each was last changed 10 minutes before
    the next one."""
    ada = suite.client("ada")
    photo = await assets.upload(ada, assets.jpeg(64, 48), kind=asset_pb2.ASSET_KIND_USER)
    for number, state in enumerate(states):
        given = await flows.consent(ada, photo.id)
        await suite.change(
            "UPDATE conversions.consents SET revoked_at = '2020-01-01', erasure = %(to)s,"
            " erased_at = CASE WHEN %(to)s <> 'running' THEN now() END,"
            " updated_at = now() - make_interval(mins => %(minutes)s) WHERE id = %(id)s",
            {"to": state, "minutes": 20 - 10 * number, "id": given.id},
        )


async def test_queues_dead_jobs_batches_revocations_and_credits_are_counted(
    suite: Suite,
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    for _ in range(3):
        await flows.analyse(ada, wait=False)
    outside = [await flows.analyse(ada, run_externally=True, wait=False) for _ in range(4)]
    await flows.claim(ada, outside[0].id)
    for number, each in enumerate(outside[1:3]):
        claimed = await flows.claim(ada, each.id)
        await flows.fail(ada, claimed, error_class=f"WORD_{number}")
    await batches.draw(ada, 1, paused=True)
    await revoked(suite, "running", "running", "held", "complete")
    suite.sql(
        "UPDATE conversions.analyses SET updated_at = now() - interval '1 hour' WHERE id = %s",
        (outside[3].id,),
    )
    suite.sql(
        "SET search_path TO conversions_jobs; UPDATE procrastinate_events SET at = now() -"
        " interval '10 minutes'; RESET search_path"
    )

    async with watched(suite):
        models = {"service": "conversions", "queue": "models", "job": "analyses"}
        assert shown("queue_jobs", **models) == 3
        assert 600 <= (shown("queue_oldest_seconds", **models) or 0) < 700
        dead = {"job": "analyses", "error_class": "OUTSIDE", "provider": ""}
        assert shown("dead_jobs", **dead) == 2
        assert shown("batches", state="paused", pause_reason="requested") == 1
        assert shown("outside_leases", job="analyses") == 1
        assert shown("outside_waiting", job="analyses") == 1
        assert 3600 <= (shown("outside_oldest_seconds", job="analyses") or 0) < 3700
        assert shown("outside_leases", job="generations") == 0
        assert shown("credits_reserved") == 3
        assert shown("revocations_open", state="running") == 2
        assert shown("revocations_open", state="held") == 1
        assert 1200 <= (shown("revocation_oldest_seconds") or 0) < 1300


async def test_a_job_that_comes_back_waits_since_it_came_back(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    for _ in range(3):
        await flows.analyse(ada, wait=False)
    models = {"service": "conversions", "queue": "models", "job": "analyses"}
    queue = "SET search_path TO conversions_jobs; {}; RESET search_path"
    age = "UPDATE procrastinate_events SET at = now() - interval '1 hour'"
    first = "(SELECT min(id) FROM procrastinate_jobs)"
    # As the conductor of a batch does every second, for hours: it runs, and is put off.
    again = "UPDATE procrastinate_jobs SET status = {}, scheduled_at = {} WHERE id = " + first
    due = "now() - interval '5 minutes'"

    suite.sql(queue.format(f"{age}; DELETE FROM procrastinate_jobs WHERE id > {first}"))
    suite.sql(queue.format(again.format("'doing'", "NULL")))
    suite.sql(queue.format(again.format("'todo'", due)))
    async with watched(suite):
        assert shown("queue_jobs", **models) == 1
        assert 300 <= (shown("queue_oldest_seconds", **models) or 0) < 400

    # As a worker that stops puts it back, to be run at once.
    suite.sql(queue.format(again.format("'todo'", "'2000-01-01 00:00Z'")))
    suite.sql(
        queue.format(
            "UPDATE procrastinate_events SET at = now() - interval '10 minutes'"
            " WHERE type = 'deferred_for_retry'"
        )
    )
    async with watched(suite):
        assert 600 <= (shown("queue_oldest_seconds", **models) or 0) < 700


@pytest.mark.long
async def test_open_erasures_are_counted_in_every_service_until_they_are_done(
    suite: Suite,
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    await flows.analyse(ada, wait=False)
    request = storage_pb2.EraseOwnerRequest(confirm_owner="user:ada")
    await ada.stub(storage_pb2_grpc.StorageServiceStub).EraseOwner(request)
    tombstones = "SELECT count(*) FROM conversions.erased_owners"
    async with asyncio.timeout(10):
        while suite.sql(tombstones) != [(1,)]:
            await asyncio.sleep(0.05)
    earlier = "now() - interval '2 hours'"
    suite.sql(f"UPDATE conversions.erased_owners SET erased_at = {earlier}")
    suite.sql(f"UPDATE assets.storage_runs SET created_at = {earlier}")

    async with watched(suite):
        for service in ("assets", "conversions"):
            assert shown("erasures_open", service=service) == 1
            assert 7200 <= (shown("erasure_oldest_seconds", service=service) or 0) < 7300

    await suite.work("assets", "conversions")
    async with asyncio.timeout(20):
        done = "SELECT count(*) FROM conversions.erased_owners WHERE reported_at IS NOT NULL"
        runs = "SELECT count(*) FROM assets.storage_runs WHERE state = 'done'"
        while (suite.sql(done), suite.sql(runs)) != ([(1,)], [(1,)]):
            await asyncio.sleep(0.05)
    async with watched(suite):
        for service in ("assets", "conversions"):
            assert shown("erasures_open", service=service) == 0
            assert shown("erasure_oldest_seconds", service=service) == 0


async def test_each_round_of_upkeep_is_told(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.conversions.upkeep._PAUSE_SECONDS", 0.05)
    began = time.time()
    await flows.start(suite)

    rounds: set[float] = set()
    async with asyncio.timeout(10):
        while len(rounds) < 4:  # the first may be when the worker began
            told = shown("upkeep_round_timestamp_seconds") or 0
            rounds |= {told} if told > began else set()
            await asyncio.sleep(0.02)
