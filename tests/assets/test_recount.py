"""Totals and albums' counts agree with the rows, whatever happened to either."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from atelier.assets.v1 import album_pb2, asset_pb2, storage_pb2, storage_pb2_grpc
from atelier.assets.v1 import storage_report_pb2 as pb

from tests.assets import flows, storage
from tests.assets import test_albums as albums
from tests.assets import test_documents as documents
from tests.assets.test_reconcile import NOTHING, reconcile
from tests.assets.test_trash import ask
from tests.faults.processes import Superuser
from tests.suite import Client, Cluster, DiskServer, Keys, Suite, running_suite

DATA = flows.jpeg(64, 48)
VISIT = asset_pb2.AssetScope(session_id="visit")
TOTALS = (
    "SELECT * FROM assets.storage_totals WHERE number <> 0 OR bytes <> 0 ORDER BY 1, 2, 3, 4, 5"
)
PLACES = (
    "SELECT * FROM assets.storage_places WHERE (assets, stored_bytes) <> (0, 0) ORDER BY owner,"
    " session_id"
)
DAYS = "SELECT * FROM assets.storage_days ORDER BY owner, day, noun, state"


@pytest.fixture
async def suite(
    cluster: Cluster, keys: Keys, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Suite]:
    """Has a store of its own: everything in the store is compared with this database."""
    disk = DiskServer(tmp_path_factory.mktemp("recounted"))
    try:
        async with running_suite(cluster, keys, disk) as suite:
            await suite.serve("assets")
            await suite.work("assets")
            yield suite
    finally:
        disk.stop()


def figures(suite: Suite) -> list[Any]:
    return [suite.sql(statement) for statement in (TOTALS, PLACES, DAYS)]


async def stocked(client: Client) -> album_pb2.Album:
    """Makes assets in several states, variants, a document, and an album with three pictures.
    Returns the album."""
    made = [await flows.upload(client, DATA, scope=VISIT) for _ in range(4)]
    for asset in made:
        await flows.variants_of(client, asset.id)
    await flows.announce(client, DATA)
    await ask(client, "Delete", made[3].id)
    await documents.create(client, documents.checklist(), wait=True)
    album = await albums.create(client)
    await albums.add(client, album, *(asset.id for asset in made[:3]))
    return album


@pytest.mark.long
async def test_what_drifted_is_found_and_mended(suite: Suite) -> None:
    ada, bob, root = suite.client("ada"), suite.client("bob"), suite.client("root", "admin")
    album = await stocked(ada)
    await flows.upload(bob, DATA)
    await storage.settled(suite)
    assert await reconcile(root) == NOTHING
    right = figures(suite)

    for statement in (
        (
            "UPDATE assets.storage_totals SET number = number + 2 WHERE owner = 'user:ada' AND noun"
            " = 'asset'"
        ),
        "DELETE FROM assets.storage_totals WHERE owner = 'user:ada' AND noun = 'variant'",
        (
            "INSERT INTO assets.storage_totals VALUES ('user:ada', 'document', 'plan', '', 'ready',"
            " 7, 700)"
        ),
        (
            "UPDATE assets.storage_totals SET bytes = bytes - 1 WHERE owner = 'deployment' AND noun"
            " = 'asset'"
        ),
        "DELETE FROM assets.storage_totals WHERE owner = 'user:bob'",
        "DELETE FROM assets.storage_places WHERE owner = 'user:bob'",
        "UPDATE assets.storage_places SET stored_bytes = 1, assets = 0 WHERE session_id = 'visit'",
        (
            "INSERT INTO assets.storage_places VALUES ('user:ada', 'a visit that never was', 3,"
            " 300, 0)"
        ),
        "UPDATE assets.albums SET asset_count = 9, public_count = 1",
    ):
        await suite.change(statement)
    wrong = figures(suite)
    found = await reconcile(root, dry_run=True)
    assert found["drifted_albums"] == (1, 0, 0) and found["drifted_figures"][0] > 12
    assert figures(suite) == wrong and (await albums.get(ada, album)).asset_count == 9, (
        "a dry run changes nothing"
    )

    assert await reconcile(root) == {
        **NOTHING,
        "drifted_albums": (1, 1, 0),
        "drifted_figures": (found["drifted_figures"][0],) * 2 + (0,),
    }
    assert figures(suite) == right
    assert (await albums.get(ada, album)).asset_count == 3
    for client in (ada, bob):
        report = await storage.report(client)
        assert (report.assets, report.stored_bytes) == storage.truth(
            suite, f"user:{client.subject}"
        )
    assert await reconcile(root) == NOTHING


@pytest.mark.long
async def test_what_is_under_way_is_no_drift(suite: Suite) -> None:
    """Uploads, variants, deletes and folding continue during the recount."""
    ada, root = suite.client("ada"), suite.client("root", "admin")
    album = await albums.create(ada)
    over = asyncio.Event()

    async def change() -> None:
        while not over.is_set():
            asset = await flows.upload(ada, DATA, scope=VISIT)
            await albums.add(ada, album, asset.id)
            await ask(ada, "Delete", asset.id)

    changing = [asyncio.create_task(change()) for _ in range(3)]
    while suite.sql("SELECT count(*) FROM assets.assets WHERE deleted_at IS NOT NULL")[0][0] < 12:
        found = await reconcile(root)
        assert (found["drifted_figures"], found["drifted_albums"]) == ((0, 0, 0), (0, 0, 0))
    over.set()
    await asyncio.gather(*changing)
    await storage.settled(suite)
    report = await storage.report(ada)
    assert (report.assets, report.stored_bytes) == storage.truth(suite, "user:ada")
    assert {c.status for c in report.asset_counts} == {pb.STORAGE_STATUS_DELETED}


@pytest.mark.long
async def test_a_drift_is_mended_while_its_figures_change(suite: Suite) -> None:
    ada, root = suite.client("ada"), suite.client("root", "admin")
    await flows.upload(ada, DATA)
    await storage.settled(suite)
    await suite.change(
        "UPDATE assets.storage_totals SET number = number + 100 WHERE owner = 'user:ada'"
    )
    uploads = asyncio.gather(*(flows.upload(ada, DATA) for _ in range(20)))
    assert (await reconcile(root))["drifted_figures"][1] > 0

    for asset in await uploads:
        await flows.variants_of(ada, asset.id)
    report = await storage.report(ada)
    assert (
        (report.assets, report.stored_bytes)
        == storage.truth(suite, "user:ada")
        == (21, report.stored_bytes)
    )


@pytest.mark.long
async def test_it_may_take_longer_than_other_transactions(suite: Suite) -> None:
    """One statement reads everything of an owner, or of the deployment."""
    ada, root = suite.client("ada"), suite.client("root", "admin")
    await flows.upload(ada, DATA)
    await storage.settled(suite)
    await suite.stop_work()
    suite.overrides |= {"statement_timeout_seconds": 0.5, "lock_timeout_seconds": 30.0}
    await suite.work("assets")
    database = Superuser(suite.cluster.url(suite.database))

    async with database.hold("LOCK TABLE assets.album_assets IN ACCESS EXCLUSIVE MODE") as slow:
        reconciling = asyncio.create_task(reconcile(root))
        await slow.caught()
        await asyncio.sleep(1.5)
        await slow.release()
    assert await reconciling == NOTHING
    assert suite.sql("SELECT outcome FROM assets.attempts WHERE job = 'storage_runs'") == [
        ("succeeded",)
    ]


async def test_an_owner_who_is_erased_meanwhile_gets_no_figures_back(suite: Suite) -> None:
    bob, root = suite.client("bob"), suite.client("root", "admin")
    await suite.change(
        "INSERT INTO assets.storage_totals VALUES ('user:bob', 'asset', 'photo', '', 'ready', 5,"
        " 500)"
    )
    database = Superuser(suite.cluster.url(suite.database))

    async with database.hold(
        "SELECT pg_advisory_xact_lock(hashtextextended('fold usage', 2))"
    ) as folding:
        reconciling = asyncio.create_task(reconcile(root))
        await folding.caught()  # the drift is known, and not corrected yet
        request = storage_pb2.EraseOwnerRequest(confirm_owner="user:bob", wait=True)
        erased = await bob.stub(storage_pb2_grpc.StorageServiceStub).EraseOwner(request, timeout=30)
        assert erased.run.state == storage_pb2.RUN_STATE_DONE
        await folding.release()
    assert await reconciling == NOTHING
    assert suite.sql("SELECT * FROM assets.storage_totals WHERE owner = 'user:bob'") == []


async def test_it_is_recounted_once_a_day_unless_somebody_asks(suite: Suite) -> None:
    ada, root = suite.client("ada"), suite.client("root", "admin")
    await flows.upload(ada, DATA)
    await storage.settled(suite)
    assert await reconcile(root, from_start=False) == NOTHING

    await suite.change(
        "UPDATE assets.storage_totals SET number = number + 100 WHERE owner = 'user:ada'"
    )
    assert await reconcile(root, from_start=False) == NOTHING, "it was recounted a moment ago"

    await suite.change(
        "UPDATE assets.storage_runs SET created_at = created_at - interval '25 hours'"
    )
    assert (await reconcile(root, from_start=False))["drifted_figures"][1] > 0
