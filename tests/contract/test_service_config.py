"""A real channel takes the service config that `make protos` writes, and brings calls through a
server that is killed and started again."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import album_pb2, album_pb2_grpc
from google.protobuf import descriptor_pb2

from tests.assets.flows import request_id
from tests.calls import refused
from tests.contract.test_options import METHODS
from tests.faults.processes import Processes, Superuser
from tests.suite import ROOT, Cluster, DiskServer, Keys
from tools.protos import service_config

# Streams of requests wait for the server, but are never sent twice.
ONCE = {
    "atelier.assets.v1.UploadService.Upload",
    "atelier.pipeline.v1.ProductService.UploadProduct",
}


@pytest.fixture
def config() -> Any:
    contract = (ROOT / "gen/atelier.binpb").read_bytes()
    return service_config(descriptor_pb2.FileDescriptorSet.FromString(contract))


@pytest.fixture
def processes(
    cluster: Cluster, keys: Keys, disk: DiskServer, tmp_path: Path
) -> Iterator[Processes]:
    database = cluster.clone()
    made = Processes(cluster, database, keys, disk, tmp_path)
    try:
        yield made
    finally:
        made.close()
        cluster.drop(database)


def albums(channel: grpc.aio.Channel) -> Any:
    return album_pb2_grpc.AlbumServiceStub(channel)


def test_every_method_is_in_the_config_once(config: Any) -> None:
    again, once = (
        [f"{name['service']}.{name['method']}" for name in group["name"]]
        for group in config["methodConfig"]
    )
    assert set(once) == ONCE and sorted([*again, *once]) == sorted(METHODS)


@pytest.mark.long
async def test_calls_in_flight_come_through_a_server_that_is_killed(
    config: Any, processes: Processes
) -> None:
    server = processes.serve("assets")
    await server.healthy()
    target, own_pool = f"127.0.0.1:{server.port}", ("grpc.use_local_subchannel_pool", 1)
    with_config = [own_pool, ("grpc.service_config", json.dumps(config))]
    metadata = [("authorization", f"Bearer {processes.keys.token('ada')}")]
    create = album_pb2.CreateAlbumRequest(request_id=request_id(), name="Spring")
    superuser = Superuser(processes.cluster.url(processes.database))

    async with (
        grpc.aio.insecure_channel(target, options=with_config) as repeating,
        grpc.aio.insecure_channel(target, options=[own_pool]) as plain,
        superuser.hold("LOCK TABLE assets.albums IN ACCESS EXCLUSIVE MODE") as lock,
    ):
        begun = {"metadata": metadata, "timeout": 60}
        read = albums(repeating).ListAlbums(album_pb2.ListAlbumsRequest(), **begun)
        written = albums(repeating).CreateAlbum(create, **begun)
        lost = albums(plain).ListAlbums(album_pb2.ListAlbumsRequest(), **begun)
        waiting = [asyncio.ensure_future(call) for call in (read, written, lost)]
        await lock.waited_for(3)
        server.kill()

        # Without the config a client sees its line break.
        await refused(waiting[2], grpc.StatusCode.UNAVAILABLE)

        await lock.release()
        again = processes.serve("assets", server.port)
        await again.healthy()
        assert (await waiting[1]).album.name == "Spring"
        assert len((await waiting[0]).albums) <= 1
        found = await albums(repeating).ListAlbums(album_pb2.ListAlbumsRequest(), **begun)
        assert [album.name for album in found.albums] == ["Spring"]


@pytest.mark.long
async def test_a_read_waits_for_a_server_that_is_away(config: Any, processes: Processes) -> None:
    server = processes.serve("assets")
    await server.healthy()
    target = f"127.0.0.1:{server.port}"
    metadata = [("authorization", f"Bearer {processes.keys.token('ada')}")]
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.service_config", json.dumps(config))]

    async with grpc.aio.insecure_channel(target, options=options) as channel:
        server.kill()
        call = albums(channel).ListAlbums(
            album_pb2.ListAlbumsRequest(), metadata=metadata, timeout=60
        )
        waiting = asyncio.ensure_future(call)
        await asyncio.sleep(1)  # longer than it takes to be refused
        assert not waiting.done()
        processes.serve("assets", server.port)
        assert list((await waiting).albums) == []
