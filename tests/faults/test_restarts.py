"""Two instances behind one client: each is restarted in turn under load, and no call in flight
fails."""

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2 as pb
from atelier.assets.v1 import asset_pb2_grpc

from tests.assets.flows import request_id
from tests.faults.processes import Process, Processes, Superuser, until
from tests.faults.test_watches import OWNER, database, make_assets
from tests.suite import APP_PASSWORD

pytestmark = pytest.mark.faults

ROUNDS = 6
# The recommended setting for clients of several instances: an instance that is shutting down gets
# no new calls.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": ""},
}


class Caller:
    """Calls one or several servers. The only retries are gRPC's own, of calls that no server has
    begun."""

    def __init__(self, token: str, *ports: int) -> None:
        target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        options = [
            ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channel = grpc.aio.insecure_channel(target, options=options)
        self._metadata = [("authorization", f"Bearer {token}")]
        self._stub: Any = asset_pb2_grpc.AssetServiceStub(self._channel)

    async def get(self, asset_id: str) -> None:
        await self._call(self._stub.GetAsset, pb.GetAssetRequest(asset_id=asset_id))

    async def update(self, asset_id: str) -> None:
        request = pb.UpdateAssetRequest(
            request_id=request_id(), asset_id=asset_id, tags=[request_id()]
        )
        request.update_mask.paths.append("tags")
        await self._call(self._stub.UpdateAsset, request)

    async def _call(self, method: Any, request: Any) -> None:
        await method(request, metadata=self._metadata, wait_for_ready=True, timeout=20)

    def watch(self, cursor: str = "") -> Any:
        request = pb.WatchAssetsRequest(cursor=cursor)
        return self._stub.WatchAssets(request, metadata=self._metadata, wait_for_ready=True)

    async def close(self) -> None:
        await self._channel.close()


class Load:
    """Calls without a pause from several tasks; records every failure."""

    def __init__(self, caller: Caller, ids: list[str]) -> None:
        self.calls = 0
        self.failures: list[str] = []
        self._tasks = [
            asyncio.create_task(self._run(caller, ids, random.Random(seed))) for seed in range(8)
        ]

    async def _run(self, caller: Caller, ids: list[str], chance: random.Random) -> None:
        while True:
            call = caller.get if chance.random() < 0.7 else caller.update
            try:
                await call(chance.choice(ids))
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")
            self.calls += 1
            await asyncio.sleep(0.002)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def end_of(watch: Any) -> tuple[float, str, int]:
    """Reads to the end. Returns its time, the cursor in the trailers, and the number of changes."""
    changes = 0
    try:
        async for item in watch:
            changes += item.HasField("asset")
    except grpc.aio.AioRpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error  # noqa: PT017
        trailers = dict(error.trailing_metadata() or ())
        return time.monotonic(), str(trailers["cursor"]), changes
    raise AssertionError("a watch doesn't end by itself")


async def ready(watch: Any) -> None:
    async for item in watch:
        if item.bookmark.ready:
            return


async def resumes(caller: Caller, cursor: str, asset_id: str) -> None:
    """Asserts that the other instance continues from the cursor."""
    watch = caller.watch(cursor)
    await caller.update(asset_id)
    async with asyncio.timeout(20):
        async for item in watch:
            if item.asset.id == asset_id:
                watch.cancel()
                return


async def restart(
    processes: Processes, superuser: Superuser, victim: Process, other: Caller, slow_id: str
) -> tuple[Process, float]:
    """Sends SIGTERM with a slow call in flight and three watches open. Returns the new process, and
    how long the watches took to end."""
    caller = Caller(processes.keys.token("ada"), victim.port)
    watches = [caller.watch() for _ in range(3)]
    for watch in watches:
        await ready(watch)
    ends = [asyncio.create_task(end_of(watch)) for watch in watches]
    async with superuser.hold("SELECT FROM assets.assets WHERE id = %s FOR UPDATE", slow_id) as row:
        slow = asyncio.create_task(caller.update(slow_id))
        await row.caught("assets_app")
        told = time.monotonic()
        stopping = asyncio.create_task(victim.stop())
        ended = [await end for end in ends]
        await row.release()
    await slow
    assert await stopping == 0
    await caller.close()
    for _at, cursor, _changes in ended:
        await resumes(other, cursor, slow_id)
    again = processes.serve("assets", victim.port)
    await again.healthy()
    return again, max(at for at, _cursor, _changes in ended) - told


async def test_a_restart_under_load_fails_no_call_in_flight(
    processes: Processes, measured: Callable[[str], None]
) -> None:
    servers = [processes.serve("assets"), processes.serve("assets")]
    processes.work("assets")
    for server in servers:
        await server.healthy()
    db, superuser = (
        database(processes, "app", APP_PASSWORD),
        Superuser(processes.cluster.url(processes.database)),
    )
    await db.open()
    slow, *ids = [str(asset_id) for asset_id in await make_assets(db)]
    await db.close()
    token = processes.keys.token(OWNER.removeprefix("user:"))
    behind_both = Caller(token, *(server.port for server in servers))
    load, took = Load(behind_both, ids), []

    for number in range(ROUNDS):
        other = Caller(token, servers[1 - number % 2].port)
        servers[number % 2], seconds = await restart(
            processes, superuser, servers[number % 2], other, slow
        )
        took.append(seconds)
        await other.close()

    await load.stop()
    await behind_both.close()
    assert not load.failures, Counter(load.failures)

    measured(
        f"R21: {ROUNDS} restarts under {load.calls} calls, 0 failed; watches ended with their"
        f" cursor within {max(took):.2f} s of SIGTERM"
    )


async def test_processes_that_share_a_port_are_replaced_and_end_together(
    processes: Processes,
) -> None:
    server = processes.serve("assets", processes=2)
    await server.healthy()
    [first, second] = await two_servers(server)
    os.kill(first, signal.SIGKILL)
    [other, another] = await two_servers(server, but=first)
    assert second in (other, another)

    await server.healthy()
    server.kill()  # the parent alone: nobody passes a signal on
    await until(lambda: gone(other, another), "servers without their parent end")
    again = processes.serve("assets", server.port, processes=2)
    await again.healthy()
    assert await again.stop() == 0


async def two_servers(server: Process, but: int = 0) -> list[int]:
    """Returns the process ids of the two children that serve."""

    async def found() -> list[int]:
        children = sorted(server.children() - {but})
        return children if len(children) == 2 else []

    return list(await until(found, "two children serve"))


async def gone(*pids: int) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)
