"""A full storage says so, shows nothing that doesn't exist, and works again once there is room."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, upload_pb2

from tests import calls
from tests.assets import flows
from tests.faults.conftest import Bench
from tests.faults.effects import effect, ended
from tests.faults.processes import Processes, until
from tests.small_disk import Filler, mounted
from tests.suite import Cluster, DiskServer, Keys, running_suite

pytestmark = [pytest.mark.faults, pytest.mark.needs_mount]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[DiskServer]:
    """Runs storage on a file system of 8 MiB."""
    with mounted(tmp_path / "small", "8m") as place:
        server = DiskServer(place)
        yield server
        server.stop()


@pytest.fixture
async def small(
    cluster: Cluster, keys: Keys, small_disk: DiskServer, tmp_path: Path
) -> AsyncIterator[Bench]:
    async with running_suite(cluster, keys, small_disk) as suite:
        await suite.serve("assets")
        processes = Processes(cluster, suite.database, keys, small_disk, tmp_path)
        try:
            yield Bench(suite, processes)
        finally:
            processes.close()


async def test_a_full_storage_says_so_and_recovers(small: Bench) -> None:
    client, root, photo = small.client, small.suite.storage.root, flows.jpeg(1600, 1200)
    filler = Filler(root)
    filler.leave(len(photo) // 2)
    head = upload_pb2.UploadHead(
        request_id=flows.request_id(), declaration=flows.declaration(photo)
    )
    refusal = await calls.refused(
        flows.stream_upload(client, head, photo), grpc.StatusCode.RESOURCE_EXHAUSTED
    )
    assert refusal.reason == "STORAGE_FULL"

    announced = await flows.announce(client, photo)
    assert (await flows.send(announced.target, photo)).status_code == 507
    assert not list((root / "incoming").iterdir())

    # The file fits, its verified copy doesn't.
    filler.leave(len(photo) * 3 // 2)
    assert (await flows.send(announced.target, photo)).status_code == 204

    refusal = await calls.refused(
        flows.confirm(client, announced.upload_id), grpc.StatusCode.RESOURCE_EXHAUSTED
    )
    assert refusal.reason == "STORAGE_FULL"
    assert (await flows.get(client, announced.asset.id)).state == asset_pb2.ASSET_STATE_PENDING

    filler.remove()
    asset = await flows.confirm(client, announced.upload_id)
    assert asset.state == asset_pb2.ASSET_STATE_READY

    # The disk is full again before the variants are made.
    filler.leave(4096)
    small.processes.work("assets")
    failed = (
        "SELECT count(*) FROM assets.attempts WHERE error_class = 'STORAGE_FULL' AND outcome ="
        " 'waited'"
    )
    await until(lambda: small.superuser.value(failed), "the worker finds the storage full")
    assert not await small.superuser.value(
        "SELECT count(*) FROM assets.variants WHERE state = 'ready'"
    )

    filler.remove()
    await ended(small, asset.id)
    found = await effect(small, asset.id)
    assert (found.state, found.orphans) == ("done", 0)


async def test_logs_on_a_full_disk_fail_no_call_no_job_and_no_end(
    cluster: Cluster, keys: Keys, disk: DiskServer, tmp_path: Path
) -> None:
    async with running_suite(cluster, keys, disk) as suite:
        with mounted(tmp_path / "logs", "1m") as logs:
            processes, filler = (
                Processes(cluster, suite.database, keys, disk, tmp_path),
                Filler(logs),
            )
            processes.logs = logs

            try:
                bench = Bench(suite, processes)
                filler.leave(4096)
                server, worker = processes.serve("assets"), processes.work("assets")
                suite.addresses["assets"] = processes.addresses["assets"]
                await server.healthy()
                filler.leave(0)
                for _ in range(100):
                    await flows.assets(bench.client).ListAssets(
                        asset_pb2.ListAssetsRequest(), timeout=20
                    )
                asset = await flows.upload(bench.client, flows.jpeg(640, 480))
                await ended(bench, asset.id)
                assert (await effect(bench, asset.id)).state == "done"
                assert not server.logged("log lines were lost")

                filler.remove()
                await flows.get(bench.client, asset.id)
                assert server.logged("log lines were lost")

                filler.leave(0)
                assert (await server.stop(), await worker.stop()) == (0, 0)
            finally:
                processes.close()
