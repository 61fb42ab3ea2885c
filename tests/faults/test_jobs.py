"""Jobs whose worker is killed or frozen at every step: one effect, nothing stuck, nothing late."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc

from cli.postgres import EmbeddedPostgres
from shared.database.migrate import migrate
from shared.imaging import DEFAULT_PRESETS
from tests.assets.flows import jpeg, upload
from tests.faults.conftest import Bench
from tests.faults.effects import effect, ended, jobs_left, objects_of
from tests.faults.processes import (
    LEASE_SECONDS,
    Hold,
    Process,
    Processes,
    Superuser,
    end_process,
    kill_and_start,
    until,
)
from tests.suite import APP_PASSWORD, WORKER_PASSWORD, Cluster, DiskServer, Keys, Suite

pytestmark = pytest.mark.faults

ROUNDS = 10
PHOTO = jpeg(320, 240)
LARGE = jpeg(3000, 2000)  # takes a second to decode, in which its child can be met
CLAIM = "LOCK TABLE assets.attempts IN EXCLUSIVE MODE"
Reached = tuple[str, Hold]  # the asset's id, and the lock that holds the worker now
Step = Callable[[Bench, AsyncExitStack], Awaitable[Reached]]


def name_of(function: Any) -> str:
    return str(function.__name__)


async def dequeued(bench: Bench, stack: AsyncExitStack, photo: bytes = PHOTO) -> Reached:
    """The worker has taken the job from the queue; nothing about it is written yet."""
    claim = await stack.enter_async_context(bench.superuser.hold(CLAIM))
    asset = await upload(bench.client, photo)
    await claim.caught()
    return asset.id, claim


async def bytes_stored(bench: Bench, stack: AsyncExitStack) -> Reached:
    """The variants are in the store; no row shows them."""
    asset_id, claim = await dequeued(bench, stack)
    hold = bench.superuser.hold("SELECT FROM assets.assets WHERE id = %s FOR UPDATE", asset_id)
    row = await stack.enter_async_context(hold)
    await claim.release()
    await row.caught()
    assert len(objects_of(bench.suite.storage.root, asset_id)) == 1 + len(DEFAULT_PRESETS)
    return asset_id, row


async def before_commit(bench: Bench, stack: AsyncExitStack) -> Reached:
    """Every row but the last is written; COMMIT is next."""
    asset_id, row = await bytes_stored(bench, stack)
    end = await stack.enter_async_context(bench.superuser.hold(CLAIM))
    await row.release()
    await end.caught()
    return asset_id, end


async def after_commit(bench: Bench, stack: AsyncExitStack) -> Reached:
    """The rows show the variants; the queue doesn't know yet."""
    asset_id, claim = await dequeued(bench, stack)
    jobs = await stack.enter_async_context(
        bench.superuser.hold("SELECT FROM assets_jobs.procrastinate_jobs FOR UPDATE")
    )
    await claim.release()
    await jobs.caught()
    assert await state_of(bench.superuser, asset_id) == "done"
    return asset_id, jobs


async def cancelling(bench: Bench, stack: AsyncExitStack) -> Reached:
    """Somebody asked to cancel, the work was stopped, and the job is about to record that."""
    asset_id, claim = await dequeued(bench, stack, LARGE)
    [worker] = bench.processes.running()
    await claim.release()
    await decoding(bench, worker, asset_id)
    for child in worker.children():
        os.kill(child, signal.SIGSTOP)
        stack.callback(end_process, child)
    end = await stack.enter_async_context(bench.superuser.hold(CLAIM))
    await bench.superuser.rows(
        "UPDATE assets.renditions SET cancel_requested = true WHERE asset_id = %s", asset_id
    )
    await end.caught()
    return asset_id, end


async def decoding(bench: Bench, worker: Process, asset_id: str) -> None:
    """Returns while the worker, freshly started, starts the child that decodes."""

    async def begun() -> bool:
        return bool(worker.children()) and await state_of(bench.superuser, asset_id) == "running"

    await until(begun, "the worker has a child that decodes", pause=0.01)


# The job's state and the outcomes of its attempts: first if the machine was lost too, then if only
# the worker was, whose backend in Postgres still runs what it was sent.
ENDS: dict[Step, tuple[tuple[str, list[str]], tuple[str, list[str]]]] = {
    dequeued: (("done", ["succeeded"]),) * 2,
    bytes_stored: (("done", ["lost", "succeeded"]),) * 2,
    before_commit: (("done", ["lost", "succeeded"]), ("done", ["succeeded"])),
    after_commit: (("done", ["succeeded"]),) * 2,
    cancelling: (("cancelled", ["lost"]), ("cancelled", ["cancelled"])),
}


async def state_of(superuser: Superuser, asset_id: str) -> Any:
    return await superuser.value(
        "SELECT state FROM assets.renditions WHERE asset_id = %s", asset_id
    )


@pytest.mark.parametrize("step", ENDS, ids=name_of)
async def test_a_job_whose_worker_is_killed_has_one_effect(
    bench: Bench, step: Step, measured: Callable[[str], None]
) -> None:
    worker = bench.processes.work("assets")
    took, orphans = [], 0
    for number in range(ROUNDS):
        async with AsyncExitStack() as stack:
            asset_id, hold = await step(bench, stack)
            backend = await hold.caught()
            worker.kill()
            machine_lost = number % 2 == 0
            if machine_lost:
                await bench.superuser.rows("SELECT pg_terminate_backend(%s)", backend)

        killed = time.monotonic()
        worker = bench.processes.work("assets")
        await ended(bench, asset_id)
        took.append(time.monotonic() - killed)
        found = await effect(bench, asset_id)
        assert (found.state, found.outcomes) == ENDS[step][0 if machine_lost else 1]
        orphans += found.orphans

    measured(
        f"R2 {name_of(step)}: {ROUNDS} kills, final {min(took):.1f} to {max(took):.1f} s after the"
        f" kill (lease {LEASE_SECONDS:g} s, with the start of a new worker), {orphans} objects for"
        " the reconciler"
    )


async def test_jobs_outlive_workers_killed_at_any_moment(
    bench: Bench, measured: Callable[[str], None]
) -> None:
    chance = random.Random(7)
    worker = bench.processes.work("assets")
    assets: list[str] = []

    async def load() -> None:
        for number in range(30):
            assets.append((await upload(bench.client, jpeg(1600, 1200, seed=number))).id)
            await asyncio.sleep(chance.uniform(0.5, 2.5))

    loading = asyncio.create_task(load())
    for number in range(20):
        await asyncio.sleep(chance.uniform(1.5, 3.5))
        if number % 4 == 3:
            assert await worker.stop() in (
                0,
                -signal.SIGTERM,
            )  # SIGTERM if it was still starting
        else:
            worker.kill()
        worker = bench.processes.work("assets")
    await loading
    killed = time.monotonic()

    async def idle() -> bool:
        return not await jobs_left(bench)

    await until(idle, "every job has ended")
    effects = [await effect(bench, asset_id) for asset_id in assets]
    for found in effects:
        assert found.state == "done", found  # a killed worker doesn't cost the job an attempt
    states = Counter(found.state for found in effects)
    lost = sum(found.outcomes.count("lost") for found in effects)
    measured(
        f"R2 any moment: 15 kills and 5 SIGTERM under {len(assets)} uploads: {dict(states)}, {lost}"
        f" tries lost, {sum(found.orphans for found in effects)} objects for the reconciler, idle"
        f" {time.monotonic() - killed:.1f} s after the last kill"
    )


async def working(bench: Bench, worker: Process, stack: AsyncExitStack) -> str:
    """A child decodes the picture."""
    asset = await upload(bench.client, PHOTO)
    await decoding(bench, worker, asset.id)
    worker.freeze()
    return asset.id


async def storing(bench: Bench, worker: Process, stack: AsyncExitStack) -> str:
    """Some of the variants are in the store, not all."""
    root = bench.suite.storage.root
    for seed in range(60):
        asset = await upload(bench.client, jpeg(1600, 1200, seed=seed))
        [home] = (root / "data").glob(f"**/{asset.id}")
        # The files follow each other within milliseconds: poll without a pause, and for nothing
        # else.
        deadline = time.monotonic() + 30
        while not (home / "variants").exists() and time.monotonic() < deadline:
            pass
        worker.freeze()
        if len(objects_of(root, asset.id)) <= len(DEFAULT_PRESETS):
            return asset.id
        worker.thaw()
        await ended(bench, asset.id)
    raise AssertionError("frozen too late, each time")


async def committing(bench: Bench, worker: Process, stack: AsyncExitStack) -> str:
    """The transaction that shows the variants is half done and has locked the job's row."""
    asset_id, row = await bytes_stored(bench, stack)
    worker.freeze()
    await row.release()
    return asset_id


@pytest.mark.parametrize("moment", [working, storing, committing], ids=name_of)
async def test_a_frozen_worker_changes_nothing_when_it_comes_back(
    bench: Bench,
    moment: Callable[[Bench, Process, AsyncExitStack], Awaitable[str]],
    measured: Callable[[str], None],
) -> None:
    took, orphans = [], 0
    for _ in range(3):
        # A transaction may take as long as a statement: then the frozen worker loses its locks,
        # too.
        late = bench.processes.work("assets", statement_timeout_seconds=8)
        async with AsyncExitStack() as stack:
            asset_id = await moment(bench, late, stack)
        frozen = time.monotonic()
        other = bench.processes.work("assets")
        await ended(bench, asset_id)
        took.append(time.monotonic() - frozen)
        before = await shown(bench.superuser, asset_id)
        late.thaw()

        async def noticed(late: Process = late) -> bool:
            told = ("late result discarded", "job failed unexpectedly", "it gives up its jobs")
            return any(map(late.logged, told))

        async def clean(asset_id: str = asset_id) -> bool:
            return (await effect(bench, asset_id)).orphans == 0

        await until(noticed, "the late worker notices")
        await until(clean, "the late worker removes what it stored")
        assert await shown(bench.superuser, asset_id) == before
        found = await effect(bench, asset_id)
        assert (found.state, found.outcomes) == ("done", ["lost", "succeeded"])
        orphans += found.orphans
        other.kill()
        again = await upload(bench.client, PHOTO)
        await ended(bench, again.id)  # by the worker that was late
        late.kill()
    # This holds also where the commit was cut off: the late worker checks whether it happened, and
    # removes what it stored.
    assert orphans == 0
    measured(
        f"R3 {name_of(moment)}: final {min(took):.1f} to {max(took):.1f} s after the freeze,"
        f" {orphans} objects for the reconciler"
    )


async def shown(superuser: Superuser, asset_id: str) -> list[Any]:
    """Returns every row of the asset."""
    found = []
    for table in ("renditions", "variants", "events"):
        key = "asset_id" if table != "events" else "owner <> '' AND subject_id"
        rows = await superuser.rows(
            f"SELECT * FROM assets.{table} WHERE {key} = %s ORDER BY 1", asset_id
        )
        found.append(rows)
    return found


async def test_a_late_end_leaves_the_job_to_its_new_worker(bench: Bench) -> None:
    for _ in range(3):
        late = bench.processes.work("assets")
        async with AsyncExitStack() as stack:
            asset_id = await working(bench, late, stack)
            row = await stack.enter_async_context(
                bench.superuser.hold("SELECT FROM assets.assets WHERE id = %s FOR UPDATE", asset_id)
            )
            other = bench.processes.work("assets")
            await row.caught()
            late.thaw()

            async def noticed(late: Process = late) -> bool:
                return late.logged("late result discarded")

            await until(noticed, "the late worker notices")
            late.kill()
            await bench.superuser.rows("SELECT pg_terminate_backend(%s)", await row.caught())
            other.kill()
        third = bench.processes.work("assets")
        await ended(bench, asset_id)
        found = await effect(bench, asset_id)
        assert (found.state, found.outcomes) == ("done", ["lost", "lost", "succeeded"])
        third.kill()


async def test_jobs_outlive_a_killed_postgres(
    durable: EmbeddedPostgres,
    keys: Keys,
    disk: DiskServer,
    tmp_path: Path,
    measured: Callable[[str], None],
) -> None:
    migrate("assets", durable.url, APP_PASSWORD, WORKER_PASSWORD)
    suite = Suite(Cluster(durable.url), "postgres", keys, disk)
    await suite.serve("assets")
    processes = Processes(suite.cluster, "postgres", keys, disk, tmp_path)
    bench = Bench(suite, processes)
    chance, took = random.Random(3), []

    try:
        processes.work("assets")
        for number in range(8):
            # Briefly refused: connections of the pool died with the last Postgres.
            await until(suite_answers(bench), "the service answers")
            assets = [await upload(bench.client, jpeg(640, 480, seed=seed)) for seed in range(3)]
            await asyncio.sleep(chance.uniform(0, 0.8))
            await kill_and_start(durable)

            back = time.monotonic()
            for asset in assets:
                await ended(bench, asset.id)
                found = await effect(bench, asset.id)
                assert found.state == "done", (number, found)
            took.append(time.monotonic() - back)
    finally:
        processes.close()
        await suite.close()

    measured(
        f"R2 Postgres killed: 8 times with jobs under way, idle {min(took):.1f} to {max(took):.1f}"
        " s after its return"
    )


def suite_answers(bench: Bench) -> Callable[[], Awaitable[bool]]:
    stub = bench.client.stub(asset_pb2_grpc.AssetServiceStub)

    async def answers() -> bool:
        try:
            for _ in range(10):
                await stub.ListAssets(asset_pb2.ListAssetsRequest(), timeout=5)
        except grpc.aio.AioRpcError:
            return False
        return True

    return answers
