"""An erasure whose workers are killed at every table that they empty, in every service: it goes on,
counts each row once, and leaves nothing."""

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from services.conversions.owner_holdings import HOLDINGS
from tests.assets import flows as assets
from tests.conversions import flows
from tests.faults.processes import Processes, Superuser, until
from tests.pipeline import flows as pipeline
from tests.suite import Cluster, DiskServer, Keys, Suite, running_suite
from tests.techfiles import flows as techfiles
from tests.test_erasure import (
    BOOK,
    ENDED,
    FOLLOWERS,
    PRIVATE,
    SERVICES,
    counts,
    ended,
    endpoint,
    erase,
    generate,
    rows_of,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]  # two minutes on an idle machine

OWNER = "user:ada"
# Rows that come and go while the erasure runs, or stay: they aren't compared with the receipt.
_MOVING = {"erased_owners", "erasure_parts", "storage_runs", "requests", "events", "attempts"}


@pytest.fixture
async def suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    async with running_suite(cluster, keys, disk) as suite:
        suite.overrides["outbound_allowed_networks"] = "127.0.0.0/8"
        await suite.serve(*SERVICES)
        yield suite


async def test_an_erasure_killed_at_each_table_of_each_service_ends_with_one_exact_receipt(
    suite: Suite,
    cluster: Cluster,
    keys: Keys,
    disk: DiskServer,
    tmp_path: Path,
    measured: Callable[[str], None],
) -> None:
    await fill(suite)
    before = {service: rows_of(suite, service, OWNER) for service in SERVICES}
    assert all(len(tables) > 4 for tables in before.values()), before
    ada, superuser = suite.client("ada"), Superuser(cluster.url(suite.database))
    processes = Processes(cluster, suite.database, keys, disk, tmp_path)
    processes.addresses |= suite.addresses
    run = await erase(ada)

    async def nothing_left() -> bool:
        # Objects of the store go after the rows that named them, and some are due only later.
        left = rows_of(suite, "assets", OWNER).keys() - _MOVING
        due = "SELECT count(*) FROM assets.doomed_objects WHERE owner = %s AND due_at <= now()"
        return left <= {"doomed_objects", "storage_deltas"} and suite.sql(due, (OWNER,)) == [(0,)]

    kills = 0
    try:
        for service in SERVICES:
            for table in sorted(before[service]):
                kills += await killed_at(processes, superuser, service, table)
        for service in SERVICES:
            processes.work(service)
        done = await ended(ada, run.id)
        await until(nothing_left, "assets keeps nothing of the owner")
    finally:
        processes.close()

    assert done.state == ENDED
    for service in FOLLOWERS:
        found = counts(done, service)
        kept = {"erased_owners", *(HOLDINGS.kept if service == "conversions" else ())}
        assert rows_of(suite, service, OWNER).keys() <= kept
        # Rows that go with the one they depend on are counted nowhere.
        names = before[service].keys() & found.keys() - _MOVING - kept
        assert len(names) > 2, found
        assert {name: found[name] for name in names} == {
            name: (before[service][name], 0) for name in names
        }
    assert kills > 30, "most workers ended before they reached the table"
    measured(f"erasure: {kills} workers killed, each at a table that it was about to empty")


async def fill(suite: Suite) -> None:
    """Makes rows of ada in many tables of every service."""
    ada = suite.client("ada")
    await flows.grant(suite, 50, OWNER, reason=PRIVATE)
    picture = (await assets.upload(ada, assets.jpeg(64, 48))).id
    for _ in range(3):
        await generate(ada)
        await flows.dataset(ada, name=PRIVATE)
        await pipeline.create(ada, picture)
        await techfiles.collect(ada, name=PRIVATE)
        await techfiles.create(ada, file_asset_id=picture)
    await pipeline.price_book(ada).ImportPriceBook(pipeline.book(BOOK))
    for service in SERVICES:
        await endpoint(ada, service)


async def killed_at(processes: Processes, superuser: Superuser, service: str, table: str) -> int:
    """Kills a worker while it waits to change the table. Returns 1, or 0 if it never came there:
    the erasure spares the table, or is done."""
    locked = f"LOCK TABLE {service}.{table} IN EXCLUSIVE MODE"
    async with superuser.hold(locked) as hold:
        worker = processes.work(service)
        caught = 0
        with suppress(AssertionError):
            backend = await hold.caught(f"{service}_worker", seconds=10)
            caught = 1
        worker.kill()
        if caught:
            await superuser.rows("SELECT pg_terminate_backend(%s)", backend)
    return caught
