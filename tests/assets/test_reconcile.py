"""Rows and stored bytes agree, whatever happened to either."""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import (
    asset_pb2,
    document_pb2,
    render_pb2,
    render_pb2_grpc,
    storage_pb2,
    variant_pb2,
)

from services.assets.upkeep.reconcile import show_metrics
from shared.database.db import Database
from shared.telemetry import METRICS
from tests import calls
from tests.assets import flows
from tests.assets import test_documents as documents
from tests.assets.test_cleanup import figures, run, storage
from tests.assets.test_references import acquire
from tests.assets.test_trash import ask, stored
from tests.suite import Client, Cluster, DiskServer, Keys, Suite, running_suite

DATA = flows.jpeg(64, 48)
WHAT = (
    "lost_originals",
    "lost_variants",
    "lost_documents",
    "restored_originals",
    "stray_objects",
    "drifted_figures",
    "drifted_albums",
)
NOTHING = dict.fromkeys(WHAT, (0, 0, 0))
_numbers = itertools.count()


@pytest.fixture(scope="module")
async def suite(
    cluster: Cluster, keys: Keys, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Suite]:
    """Has a store of its own: everything in the store is compared with this database."""
    disk = DiskServer(tmp_path_factory.mktemp("reconciled"))
    try:
        async with running_suite(cluster, keys, disk) as suite:
            suite.overrides["reconcile_grace_minutes"] = 30
            await suite.serve("assets")
            await suite.work("assets")
            yield suite
    finally:
        disk.stop()


@pytest.fixture
def ada(suite: Suite) -> Client:
    return suite.client(f"ada{next(_numbers)}")


@pytest.fixture
def root(suite: Suite) -> Client:
    return suite.client("root", "admin")


async def reconcile(client: Client, **fields: Any) -> dict[str, tuple[int, int, int]]:
    return figures(await run(client, "RunReconciler", **{"from_start": True, **fields}))


def path_of(suite: Suite, key: str) -> Path:
    return suite.storage.root / "data" / key


def stray(suite: Suite, key: str, *, hours: float = 1) -> Path:
    """Makes an object without a row, some hours old: a copy of an existing one."""
    source = next(path for path in (suite.storage.root / "data").rglob("*") if path.is_file())
    path = path_of(suite, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source.read_bytes())
    os.utime(path, (time.time() - hours * 3600,) * 2)
    return path


async def whole(client: Client, **fields: Any) -> asset_pb2.Asset:
    """Makes an asset with its variants; all its objects have rows."""
    asset = await flows.upload(client, DATA, **fields)
    await flows.variants_of(client, asset.id)
    return asset


async def test_what_agrees_is_left_alone(suite: Suite, root: Client, ada: Client) -> None:
    assets = [await whole(ada, visibility=v) for v in (0, asset_pb2.VISIBILITY_PUBLIC)]
    pending = await flows.announce(ada, DATA)
    await flows.send(pending.target, DATA)
    await ask(ada, "Delete", assets[0].id)
    for path in (suite.storage.root / "data").rglob("*"):
        os.utime(path, (0, 0))

    before = [stored(suite, asset.id) for asset in (*assets, pending.asset)]
    assert await reconcile(root) == NOTHING
    assert [stored(suite, asset.id) for asset in (*assets, pending.asset)] == before
    assert [len(keys) for keys in before] == [5, 5, 1]


async def test_bytes_without_a_row_go_once_they_are_old_and_only_ours(
    suite: Suite, root: Client, ada: Client
) -> None:
    await whole(ada)
    old = [
        stray(suite, key)
        for key in (
            "assets/user%3Aada/x/original/1",
            "assets/zz",
            "public/assets/x/original/1",
            "public/assets/zz",
        )
    ]
    young = stray(suite, "assets/user%3Aada/x/original/2", hours=0)
    foreign = [
        stray(suite, key)
        for key in ("techfiles/user%3Aada/1", "assets-not/1", "public/other/1", "z")
    ]
    looked = await reconcile(root, dry_run=True)
    assert looked["stray_objects"] == (5, 0, 1) and all(path.exists() for path in old)
    assert (await reconcile(root))["stray_objects"] == (5, 4, 1)
    assert not any(path.exists() for path in old)
    assert young.exists() and all(path.exists() for path in foreign)

    young.unlink()
    assert await reconcile(root) == NOTHING


async def test_a_lost_original_is_marked_told_and_no_longer_given_out(
    suite: Suite, root: Client, ada: Client
) -> None:
    asset = await whole(ada)
    path = path_of(suite, asset.file_path)
    saved = path.read_bytes()
    stream = flows.assets(ada).WatchAssets(asset_pb2.WatchAssetsRequest(asset_ids=[asset.id]))
    while not (await stream.read()).bookmark.ready:
        pass
    path.unlink()
    assert (await reconcile(root, dry_run=True))["lost_originals"] == (1, 0, 0)
    assert not (await flows.get(ada, asset.id)).HasField("bytes_gone_time")
    assert (await reconcile(root))["lost_originals"] == (1, 1, 0)
    assert (await stream.read()).asset.HasField("bytes_gone_time")

    gone = await flows.get(ada, asset.id, include_urls=True)
    assert (
        gone.HasField("bytes_gone_time")
        and not gone.original_url
        and gone.state == asset_pb2.ASSET_STATE_READY
    )

    await calls.refused(acquire(ada, "h", asset.id), grpc.StatusCode.FAILED_PRECONDITION, "lost")
    assert await reconcile(root) == NOTHING  # reported once

    path.write_bytes(saved)
    assert (await reconcile(root))["restored_originals"] == (1, 1, 0)
    back = (await stream.read()).asset
    assert back.id == asset.id and not back.HasField("bytes_gone_time")
    assert (await flows.get(ada, asset.id, include_urls=True)).original_url
    stream.cancel()


async def test_nothing_new_is_made_of_a_lost_original_and_what_was_made_stays(
    suite: Suite, root: Client, ada: Client
) -> None:
    lost, other = await whole(ada), await whole(ada)
    path_of(suite, lost.file_path).unlink()
    assert (await reconcile(root))["lost_originals"] == (1, 1, 0)

    comparison = render_pb2.CreateComparisonRequest(
        before_asset_id=other.id, after_asset_id=lost.id
    )

    for call in (
        flows.variants(ada).RegenerateVariants(
            variant_pb2.RegenerateVariantsRequest(asset_id=lost.id)
        ),
        flows.assets(ada).DownloadAsset(asset_pb2.DownloadAssetRequest(asset_id=lost.id)),
        ada.stub(render_pb2_grpc.ComparisonServiceStub).CreateComparison(comparison),
    ):
        await calls.refused(call, grpc.StatusCode.FAILED_PRECONDITION, "its bytes are lost")
    assert {v.state for v in (await flows.variants_of(ada, lost.id)).values()} == {
        asset_pb2.VARIANT_STATE_READY
    }

    thumb = asset_pb2.DownloadAssetRequest(asset_id=lost.id, variant="thumb")
    assert [part async for part in flows.assets(ada).DownloadAsset(thumb)]


async def test_a_lost_or_cut_variant_is_made_again(suite: Suite, root: Client, ada: Client) -> None:
    asset = await whole(ada)
    keys = suite.sql(
        "SELECT storage_key FROM assets.variants WHERE asset_id = %s ORDER BY preset", (asset.id,)
    )
    path_of(suite, keys[0][0]).unlink()
    cut = path_of(suite, keys[1][0])
    cut.write_bytes(cut.read_bytes()[:40])
    assert (await reconcile(root))["lost_variants"] == (2, 2, 0)

    again = await flows.variants_of(ada, asset.id)
    assert {variant.state for variant in again.values()} == {asset_pb2.VARIANT_STATE_READY}
    for path in (suite.storage.root / "data").rglob("*"):
        os.utime(path, (0, 0))
    assert await reconcile(root) == NOTHING


async def test_a_lost_variant_of_a_lost_original_fails_and_says_why(
    suite: Suite, root: Client, ada: Client
) -> None:
    asset = await whole(ada)
    for key in stored(suite, asset.id):
        path_of(suite, key).unlink()
    found = await reconcile(root)
    assert (found["lost_originals"], found["lost_variants"]) == ((1, 1, 0), (4, 4, 0))
    failed = await flows.variants_of(ada, asset.id)
    assert {variant.error_class for variant in failed.values()} == {"BYTES_GONE"}
    assert await reconcile(root) == NOTHING


async def test_a_lost_document_says_so_and_can_be_made_again(
    suite: Suite, root: Client, ada: Client
) -> None:
    made = await documents.create(ada, documents.checklist())
    path_of(suite, made.file_path).unlink()
    assert (await reconcile(root))["lost_documents"] == (1, 1, 0)
    lost = await documents.get(ada, made.id)
    assert (lost.state, lost.error_class) == (document_pb2.DOCUMENT_STATE_FAILED, "BYTES_GONE")
    assert (await documents.regenerate(ada, made.id)).state == document_pb2.DOCUMENT_STATE_READY
    assert await reconcile(root) == NOTHING


@pytest.mark.long
async def test_it_goes_on_where_it_was_a_part_at_a_time(
    suite: Suite, root: Client, ada: Client
) -> None:
    await whole(ada, visibility=asset_pb2.VISIBILITY_PUBLIC)
    strays = [stray(suite, f"assets/{name}/{n}") for name in ("a", "b", "zz") for n in range(3)]
    strays += [stray(suite, f"public/assets/zz/{n}") for n in range(3)]
    asked = {"from_start": True, "max_items": 2}
    parts = 0

    while True:
        last = await run(root, "RunReconciler", **asked)
        assert sum(count.found for count in last.counts) <= 2
        asked["from_start"] = False
        parts += 1
        if not last.capped:
            break
        await run(root, "RunReconciler", dry_run=True, max_items=1)  # a dry run keeps the position
    assert parts > 6
    assert not any(path.exists() for path in strays)


@pytest.mark.long
async def test_more_rows_than_a_part_holds_are_compared_with_nothing_at_all(
    suite: Suite, root: Client
) -> None:
    suite.sql(
        "INSERT INTO assets.assets (id, owner, created_by, kind, state, public, free, file_name,"
        " size_bytes, mime_type, storage_key, sha256) SELECT gen_random_uuid(), 'user:lost', 'x',"
        " 'photo', 'ready', false, true, 'a', 1, 'image/jpeg', 'assets/user%3Alost/x/' || n, 'ab'"
        " FROM generate_series(1, 2100) AS n"
    )

    found = await reconcile(root)
    assert found["lost_originals"] == (2100, 2100, 0)
    assert (await reconcile(root))["lost_originals"] == (0, 0, 0)


async def test_servers_show_the_last_run_as_metrics(suite: Suite, root: Client) -> None:
    await whole(suite.client("ada"))  # of which the stray object is a copy
    stray(suite, "assets/metrics/1")
    await reconcile(root)
    [row] = suite.sql(
        "SELECT extract(epoch FROM max(updated_at)) FROM assets.storage_runs WHERE action ="
        " 'reconcile'"
    )
    db = Database(suite.settings("assets", "app"), "assets")
    await db.open()
    showing = asyncio.create_task(show_metrics(db, timedelta(minutes=7)))

    try:
        async with asyncio.timeout(10):
            # Another test of this process may have shown the run of its own database before.
            while METRICS.get_sample_value(
                "atelier_reconciler_last_run_timestamp_seconds"
            ) != pytest.approx(float(row[0]), abs=0.001):
                await asyncio.sleep(0.05)
    finally:
        showing.cancel()
        await db.close()
    assert METRICS.get_sample_value("atelier_reconciler_found", {"what": "stray_objects"}) == 1
    assert METRICS.get_sample_value("atelier_reconciler_mended", {"what": "stray_objects"}) == 1
    assert METRICS.get_sample_value(
        "atelier_reconciler_last_run_timestamp_seconds"
    ) == pytest.approx(float(row[0]))
    assert METRICS.get_sample_value("atelier_reconciler_pause_seconds") == 7 * 60


async def test_only_operators_reconcile(ada: Client) -> None:
    await calls.refused(
        storage(ada).RunReconciler(storage_pb2.RunReconcilerRequest()),
        grpc.StatusCode.PERMISSION_DENIED,
    )


async def test_a_part_in_which_something_was_mended_is_looked_at_once(
    suite: Suite, root: Client
) -> None:
    first = suite.client("0first")  # its keys come before those of the others
    asset = await whole(first)
    young = stray(suite, "assets/0/young", hours=0)
    path_of(suite, asset.file_path).unlink()

    found = await reconcile(root, max_items=3)

    assert found["lost_originals"] == (1, 1, 0)
    assert found["stray_objects"] == (1, 0, 1)
    young.unlink()
