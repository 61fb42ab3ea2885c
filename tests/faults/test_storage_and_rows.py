"""A process is killed at each step of an upload, of making variants and of deleting. The reconciler
and the cleanup find what it leaves in rows and store, and repair it until both agree to the last
object."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, storage_pb2, upload_pb2

from tests.assets import flows
from tests.assets.test_cleanup import figures, run
from tests.assets.test_references import acquire
from tests.faults.effects import objects_of
from tests.faults.processes import Process, Processes, Superuser, until
from tests.suite import Client, Cluster, DiskServer, Keys

pytestmark = pytest.mark.faults
DATA = flows.jpeg(640, 480)
PUBLIC = asset_pb2.VISIBILITY_PUBLIC
_LOCK_ASSET = "SELECT FROM assets.assets WHERE id = %s FOR UPDATE"
_SHOWN = """
    SELECT storage_key FROM assets.assets WHERE storage_key <> '' UNION ALL
    SELECT storage_key FROM assets.variants WHERE storage_key <> '' UNION ALL
    SELECT upload_key FROM assets.uploads u JOIN assets.assets a ON a.id = u.asset_id
        WHERE a.state = 'pending'
"""


class House:
    """A server and a worker as processes, over a store of their own, which tests kill and
    restart."""

    def __init__(self, processes: Processes, keys: Keys) -> None:
        self.processes = processes
        self.keys = keys
        self.superuser = Superuser(processes.cluster.url(processes.database))
        self.root = processes.storage.root
        self._clients: list[Client] = []

    async def serve(self) -> Process:
        server = self.processes.serve("assets")
        await server.healthy()
        self.address = f"127.0.0.1:{server.port}"
        return server

    def work(self) -> Process:
        """Starts a worker for which no object is too young: no upload is in flight when the
        reconciler runs."""
        return self.processes.work(
            "assets", reconcile_grace_minutes=0, reconcile_minutes=0, cleanup_minutes=0
        )

    def client(self, subject: str = "ada", role: str = "user") -> Client:
        made = Client({"assets": self.address}, self.keys.token(subject, role), subject)
        self._clients.append(made)
        return made

    async def killed_at(
        self, server: Process, call: Callable[[], Any], statement: str, *parameters: Any
    ) -> None:
        """Makes the call after the statement has taken its locks, and kills the server while it
        waits for them."""
        async with self.superuser.hold(statement, *parameters) as lock:
            calling = asyncio.ensure_future(call())
            await lock.caught("assets_app")
            server.kill()
            with suppress(grpc.aio.AioRpcError):
                await calling

    async def shown(self) -> set[str]:
        return {row.storage_key for row in await self.superuser.rows(_SHOWN)}

    def stored(self) -> set[str]:
        data = self.root / "data"
        return {str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()}

    async def disagreements(self) -> tuple[int, int]:
        """Returns the number of objects without a row, and of rows without their object. Uploads
        for which nothing was sent don't count."""
        shown, stored = await self.shown(), self.stored()
        unsent = {key for key in shown if "/upload/" in key}
        return len(stored - shown), len(shown - stored - unsent)

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


@pytest.fixture
async def house(cluster: Cluster, keys: Keys, tmp_path: Path) -> AsyncIterator[House]:
    disk = DiskServer(tmp_path)
    database = cluster.clone()
    processes = Processes(cluster, database, keys, disk, tmp_path)
    made = House(processes, keys)
    try:
        yield made
    finally:
        await made.close()
        processes.close()
        disk.stop()
        cluster.drop(database)


async def mended(
    house: House, measured: Callable[[str], None], what: str
) -> dict[str, tuple[int, int, int]]:
    """Lets a worker tidy up, and asserts that rows and store agree. Returns the reconciler's
    figures."""
    house.work()
    root = house.client("root", "admin")

    async def settled() -> bool:
        doomed = await house.superuser.value(
            "SELECT count(*) FROM assets.doomed_objects WHERE due_at <= now()"
        )
        making = "SELECT count(*) FROM assets.renditions WHERE state IN ('pending', 'running')"
        return not doomed and not await house.superuser.value(making)

    await until(settled, "what is doomed is removed, and no variant is being made")
    found = figures(await run(root, "RunReconciler", from_start=True))
    again = figures(await run(root, "RunReconciler", from_start=True))
    assert {each[:2] for each in again.values()} == {(0, 0)}
    assert await house.disagreements() == (0, 0)
    measured(f"R22 {what}: reconciler found and mended {found}, then 0")
    return found


async def test_killed_while_an_upload_is_confirmed(
    house: House, measured: Callable[[str], None]
) -> None:
    server = await house.serve()
    ada = house.client()
    announced = await flows.announce(ada, DATA)
    sent = await flows.announce(ada, DATA)
    await flows.send(sent.target, DATA)
    verified = await flows.announce(ada, DATA)
    await flows.send(verified.target, DATA)
    await house.killed_at(
        server, lambda: flows.confirm(ada, verified.upload_id), _LOCK_ASSET, verified.asset.id
    )
    assert await house.disagreements() == (1, 0)  # the verified copy
    await house.serve()
    ada = house.client()
    settled = await flows.confirm(ada, verified.upload_id)
    await flows.send(
        verified.target, DATA
    )  # the form still works: stands for bytes that were not removed
    found = await mended(house, measured, "upload")
    assert found["stray_objects"] == (2, 2, 0)
    # The cleanup deletes an upload that was never confirmed, once it has expired.
    await house.superuser.rows("UPDATE assets.uploads SET expires_at = now() - interval '2 hours'")
    cleaned = figures(await run(house.client("root", "admin"), "RunCleanup"))
    assert cleaned["abandoned_uploads"] == (2, 2, 0)

    async def gone() -> bool:
        return not any(objects_of(house.root, each.asset.id) for each in (announced, sent))

    await until(gone, "the bytes that were never confirmed are removed")
    assert (await flows.get(ada, settled.id)).state == asset_pb2.ASSET_STATE_READY
    await mended(house, measured, "abandoned uploads")


async def test_killed_while_a_one_call_upload_is_stored(
    house: House, measured: Callable[[str], None]
) -> None:
    server = await house.serve()
    head = upload_pb2.UploadHead(declaration=flows.declaration(DATA), request_id="once")

    async def pending() -> Any:
        return await house.superuser.value("SELECT id FROM assets.assets WHERE state = 'pending'")

    ada = house.client()
    reached = asyncio.Event()

    async def parts() -> AsyncIterator[upload_pb2.UploadRequest]:
        yield upload_pb2.UploadRequest(head=head)
        await reached.wait()
        yield upload_pb2.UploadRequest(chunk=DATA)

    uploading = asyncio.ensure_future(flows.uploads(ada).Upload(parts()))
    asset_id = await until(pending, "the upload is announced")
    async with house.superuser.hold(_LOCK_ASSET, asset_id) as lock:
        reached.set()
        await lock.caught("assets_app")
        server.kill()
        with suppress(grpc.aio.AioRpcError):
            await uploading
    assert await house.disagreements() == (1, 0)
    await house.serve()
    asset = await flows.stream_upload(house.client(), head, DATA)
    assert asset.id == str(asset_id)
    assert (await mended(house, measured, "one-call upload"))["stray_objects"] == (1, 1, 0)


async def test_killed_while_variants_are_stored(
    house: House, measured: Callable[[str], None]
) -> None:
    await house.serve()
    ada = house.client()
    asset = await flows.upload(ada, DATA)
    worker = house.work()

    async def stored() -> bool:
        return len(objects_of(house.root, asset.id)) == 5

    async with house.superuser.hold(_LOCK_ASSET, asset.id) as lock:
        await until(stored, "the variants are stored")
        await lock.caught("assets_worker")
        worker.kill()
    assert await house.disagreements() == (4, 0)
    house.work()
    made = await flows.variants_of(ada, asset.id, timeout=60)
    assert {variant.state for variant in made.values()} == {asset_pb2.VARIANT_STATE_READY}
    assert (await mended(house, measured, "variants"))["stray_objects"] == (4, 4, 0)


async def test_killed_while_a_public_asset_is_deleted(
    house: House, measured: Callable[[str], None]
) -> None:
    server = await house.serve()
    worker = house.work()
    ada = house.client()
    asset = await flows.upload(ada, DATA, visibility=PUBLIC)
    await flows.variants_of(ada, asset.id)
    worker.kill()
    delete = asset_pb2.DeleteAssetRequest(asset_id=asset.id, request_id="once")
    await house.killed_at(
        server, lambda: flows.assets(ada).DeleteAsset(delete), _LOCK_ASSET, asset.id
    )
    assert await house.disagreements() == (5, 0)  # the copies
    assert not (await _row(house, asset.id)).deleted_at

    await house.serve()
    ada = house.client()
    await flows.assets(ada).DeleteAsset(delete)
    assert not [key for key in await house.shown() if key.startswith("public/")]
    assert (await mended(house, measured, "delete"))["stray_objects"] == (5, 5, 0)

    back = await flows.assets(ada).UndeleteAsset(asset_pb2.UndeleteAssetRequest(asset_id=asset.id))
    assert back.asset.visibility == PUBLIC
    await mended(house, measured, "undelete")


async def _row(house: House, asset_id: str) -> Any:
    [row] = await house.superuser.rows("SELECT * FROM assets.assets WHERE id = %s", asset_id)
    return row


async def test_killed_before_and_amid_a_purge(
    house: House, measured: Callable[[str], None]
) -> None:
    server = await house.serve()
    worker = house.work()
    ada = house.client()
    assets = [await flows.upload(ada, DATA, visibility=v) for v in (0, PUBLIC)]
    for asset in assets:
        await flows.variants_of(ada, asset.id)
    worker.kill()
    await acquire(ada, "h", assets[0].id)
    purges = [asset_pb2.PurgeAssetRequest(asset_id=asset.id, force=True) for asset in assets]
    await house.killed_at(
        server, lambda: flows.assets(ada).PurgeAsset(purges[0]), _LOCK_ASSET, assets[0].id
    )
    assert await house.disagreements() == (0, 0)

    await house.serve()
    ada = house.client()
    for purge in purges:
        await flows.assets(ada).PurgeAsset(purge)

    # The bytes are removed, and the worker dies before it can delete their doomed objects.
    async with house.superuser.hold("SELECT FROM assets.doomed_objects FOR UPDATE") as lock:
        worker = house.work()
        backend = await lock.caught("assets_worker")
        assert not house.stored()
        worker.kill()
        await house.superuser.rows(
            "SELECT pg_terminate_backend(%s)", backend
        )  # else the backend continues without its client
    assert await house.superuser.value("SELECT count(*) FROM assets.doomed_objects") >= 10

    found = await mended(house, measured, "purge")
    assert {each[:2] for each in found.values()} == {(0, 0)}
    assert await house.superuser.value("SELECT count(*) FROM assets.assets") == 0
    assert (
        await house.superuser.value(
            "SELECT count(*) FROM assets.doomed_objects WHERE due_at <= now()"
        )
        == 0
    )


async def test_a_store_that_lost_objects_is_told_of(
    house: House, measured: Callable[[str], None]
) -> None:
    await house.serve()
    worker = house.work()
    ada = house.client()
    whole, lost = [await flows.upload(ada, DATA) for _ in range(2)]
    for asset in (whole, lost):
        await flows.variants_of(ada, asset.id)
    worker.kill()
    for key in objects_of(house.root, lost.id):
        (house.root / "data" / key).unlink()
    [variant] = await house.superuser.rows(
        "SELECT storage_key FROM assets.variants WHERE asset_id = %s AND preset = 'avif'", whole.id
    )
    (house.root / "data" / variant.storage_key).unlink()
    house.work()
    root = house.client("root", "admin")
    found = figures(await run(root, "RunReconciler", from_start=True))
    assert (found["lost_originals"], found["lost_variants"]) == ((1, 1, 0), (5, 5, 0))

    made = await flows.variants_of(ada, whole.id, timeout=60)
    assert {each.state for each in made.values()} == {asset_pb2.VARIANT_STATE_READY}
    assert (await flows.get(ada, lost.id)).HasField("bytes_gone_time")

    again = await run(root, "RunReconciler", from_start=True)
    assert again.state == storage_pb2.RUN_STATE_DONE
    assert {each[:2] for each in figures(again).values()} == {(0, 0)}
    measured(f"R22 lost objects: {found}, then 0")
