"""Deadlines that pass at any moment of a call, by the hundred, affect nobody but their caller."""

import asyncio
import random

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc

from tests.assets import flows
from tests.faults.conftest import Bench

pytestmark = pytest.mark.faults

_CALLERS = 8
_CALLS = 150


async def test_a_server_outlives_calls_that_are_given_up_at_any_moment(bench: Bench) -> None:
    served = bench.processes.serve("assets")
    await served.healthy()
    asset = await flows.upload(bench.client, flows.jpeg(64, 48))
    token = (("authorization", f"Bearer {bench.suite.keys.token(bench.client.subject)}"),)
    tags = asset_pb2.UpdateAssetRequest(
        asset_id=asset.id, update_mask={"paths": ["tags"]}, tags=["x"]
    )
    dice, codes = random.Random(3), set()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        stub = asset_pb2_grpc.AssetServiceStub(channel)

        async def impatient() -> int:
            passed = 0
            for _ in range(_CALLS):
                try:
                    await stub.UpdateAsset(tags, metadata=token, timeout=dice.uniform(0.002, 0.02))
                except grpc.aio.AioRpcError as error:
                    codes.add(error.code())
                    passed += 1
            return passed

        given_up = sum(await asyncio.gather(*(impatient() for _ in range(_CALLERS))))
        await stub.UpdateAsset(tags, metadata=token, timeout=10)
    assert given_up > _CALLERS * _CALLS // 10
    assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert await served.stop() == 0
