"""Acknowledged changes stay, and happened once, whoever is killed."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2 as pb
from atelier.assets.v1 import asset_pb2_grpc, upload_pb2, upload_pb2_grpc

from cli.postgres import EmbeddedPostgres
from shared.database.migrate import migrate
from tests.assets.flows import declaration, request_id
from tests.faults.processes import Processes, Superuser, kill_and_start, until
from tests.suite import APP_PASSWORD, WORKER_PASSWORD, Client, Cluster, DiskServer, Keys

pytestmark = pytest.mark.faults

KILLS = 5  # kills of the service, and as many of Postgres
WRITERS = 4
# The codes after which a client repeats a call, with the same request_id.
_REPEATED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


class Writer:
    """Makes assets and changes its newest one, one call after the other; repeats unacknowledged
    calls."""

    def __init__(self, client: Client, number: int) -> None:
        self._assets = client.stub(asset_pb2_grpc.AssetServiceStub)
        self._uploads = client.stub(upload_pb2_grpc.UploadServiceStub)
        self._number = number
        self.acknowledged: dict[str, pb.Asset] = {}  # by file name
        self.updates: dict[str, int] = {}
        self.count = 0
        self.last = 0.0
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while not self.stop.is_set():
            name = f"{self._number}-{len(self.acknowledged)}.jpg"
            request = upload_pb2.RequestUploadRequest(
                request_id=request_id(), declaration=declaration(b"x", file_name=name)
            )
            asset = (await self._acknowledged(self._uploads.RequestUpload, request)).asset
            self.updates[name] = 0
            for number in range(5):
                update = pb.UpdateAssetRequest(
                    request_id=request_id(), asset_id=asset.id, tags=[f"{name} {number}"]
                )
                update.update_mask.paths.append("tags")
                asset = (await self._acknowledged(self._assets.UpdateAsset, update)).asset
                self.updates[name] += 1
            self.acknowledged[name] = asset

    async def _acknowledged(self, method: Any, request: Any) -> Any:
        while True:
            try:
                answer = await method(request, timeout=5)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _REPEATED:
                    raise
                await asyncio.sleep(0.1)
            else:
                self.count += 1
                self.last = time.monotonic()
                return answer


async def test_acknowledged_writes_stay_and_happened_once(
    durable: EmbeddedPostgres,
    keys: Keys,
    disk: DiskServer,
    tmp_path: Path,
    measured: Callable[[str], None],
) -> None:
    cluster = Cluster(durable.url)
    migrate("assets", durable.url, APP_PASSWORD, WORKER_PASSWORD)
    processes = Processes(cluster, "postgres", keys, disk, tmp_path)
    superuser = Superuser(durable.url)
    try:
        server = processes.serve("assets")
        processes.work("assets")
        await server.healthy()
        client = Client(processes.addresses, keys.token("ada"))
        writers = [Writer(client, number) for number in range(WRITERS)]
        outages: dict[str, list[float]] = {"service": [], "Postgres": []}
        for number in range(2 * KILLS):
            await asyncio.sleep(1.5)
            killed = time.monotonic()
            if number % 2:
                server.kill()
                server = processes.serve("assets", server.port)
            else:
                await kill_and_start(durable)
            back = time.monotonic()

            async def writing(back: float = back) -> bool:
                assert not any(writer.task.done() for writer in writers), [
                    writer.task for writer in writers
                ]
                return all(writer.last > back for writer in writers)

            await until(writing, "every writer writes again")
            outages["service" if number % 2 else "Postgres"].append(time.monotonic() - killed)
        for writer in writers:
            writer.stop.set()
        await asyncio.gather(*(writer.task for writer in writers))
        await client.close()
        await hold(superuser, writers)
        await until(
            lambda: superuser.value("SELECT bool_and(position IS NOT NULL) FROM assets.events"),
            "all is stamped",
        )
    finally:
        processes.close()
    measured(
        f"R1: {KILLS} kill -9 each of service and Postgres under"
        f" {sum(writer.count for writer in writers)} acknowledged writes, 0 lost, 0 doubled; every"
        f" writer writes again within {max(outages['service']):.1f} s (service),"
        f" {max(outages['Postgres']):.1f} s (Postgres)"
    )


async def hold(superuser: Superuser, writers: list[Writer]) -> None:
    """Asserts that each asset exists once, with the last acknowledged change, and that each change
    was made and published once."""
    rows = await superuser.rows(
        "SELECT id::text, file_name, tags, version, (SELECT array_agg(e.version ORDER BY seq) FROM"
        " assets.events e WHERE e.subject_id = a.id) AS told FROM assets.assets a"
    )
    found = {row.file_name: row for row in rows}
    assert len(found) == len(rows) == sum(len(writer.acknowledged) for writer in writers)
    for writer in writers:
        for name, asset in writer.acknowledged.items():
            row = found[name]
            assert (row.id, row.tags, str(row.version)) == (asset.id, list(asset.tags), asset.etag)
            assert row.version == 1 + writer.updates[name]
            assert row.told == list(range(1, row.version + 1))
