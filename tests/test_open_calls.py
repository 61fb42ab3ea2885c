"""Health and reflection answer callers without a token, who can't fill the server. Over a real
channel."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from shared.rpc import open_calls
from tests import calls
from tests.assets import flows
from tests.suite import Suite

SERVING = health_pb2.HealthCheckResponse.SERVING
LEAST = 32  # places for streams without a token where max_streams is small


def watching(channel: grpc.aio.Channel, service: str = "") -> Any:
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))


def reflecting(channel: grpc.aio.Channel, version: str, seconds: float = 600) -> Any:
    """Opens a reflection stream that asks once and stays open."""

    async def questions() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        await asyncio.sleep(seconds)

    call: Any = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return call(questions())


async def begin(call: Any) -> grpc.StatusCode | None:
    """Returns None if the call is served, else the status it is refused with."""
    try:
        async with asyncio.timeout(30):
            answer = await call.read()
        return None if answer is not grpc.aio.EOF else await call.code()
    except grpc.aio.AioRpcError as error:
        return error.code()


@pytest.fixture
async def small_suite(suite: Suite) -> Suite:
    suite.overrides["max_streams"] = 4
    await suite.serve("assets")
    return suite


async def test_a_flood_of_streams_without_a_token_is_counted_and_health_answers(
    small_suite: Suite,
) -> None:
    nobody, ada = [small_suite.client(None) for _ in range(4)], small_suite.client("ada")
    for client in nobody:
        client.options = [("grpc.use_local_subchannel_pool", 1)]
    kinds = (
        watching,
        lambda c: watching(c, "no.such.Service"),
        lambda c: reflecting(c, "v1"),
        lambda c: reflecting(c, "v1alpha"),
    )
    flood = [kinds[number % 4](nobody[number // 4 % 4].channel("assets")) for number in range(200)]
    codes = await asyncio.gather(*map(begin, flood))
    served = codes.count(None)
    assert 0 < served <= LEAST and set(codes) == {None, grpc.StatusCode.RESOURCE_EXHAUSTED}
    fresh = small_suite.client(None)
    stub = health_pb2_grpc.HealthStub(fresh.channel("assets"))
    for _ in range(20):
        assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)).status == SERVING
    # Callers with a token have places of their own, for calls and for watches.
    assert (
        list((await flows.assets(ada).ListAssets(asset_pb2.ListAssetsRequest(), timeout=10)).assets)
        == []
    )
    watch = flows.assets(ada).WatchAssets(asset_pb2.WatchAssetsRequest())
    assert await begin(watch) is None
    watch.cancel()
    for call in flood:
        call.cancel()

    async def free() -> bool:
        again = watching(fresh.channel("assets"))
        code = await begin(again)
        again.cancel()
        return code is None

    async with asyncio.timeout(30):
        while not await free():
            await asyncio.sleep(0.02)


async def test_who_is_refused_is_told_when_to_come_back(small_suite: Suite) -> None:
    nobody = small_suite.client(None).channel("assets")
    held = [watching(nobody) for _ in range(LEAST)]
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in await asyncio.gather(*map(begin, held))
    refusal = await calls.refused(
        watching(nobody), grpc.StatusCode.RESOURCE_EXHAUSTED, "this address without a token"
    )
    assert refusal.reason == "TOO_MANY_CALLS"
    assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToSeconds() == 1


@pytest.mark.parametrize("kind", ["watch", "reflection"])
async def test_a_stream_without_a_token_ends_after_its_time(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(open_calls, "WATCH_SECONDS", 0.5)
    monkeypatch.setattr(open_calls, "REFLECTION_SECONDS", 0.5)
    await suite.serve("assets")
    channel = suite.client(None).channel("assets")
    call = watching(channel) if kind == "watch" else reflecting(channel, "v1")
    async with asyncio.timeout(30):
        await calls.refused(call, grpc.StatusCode.DEADLINE_EXCEEDED, "open another")


async def test_a_watch_tells_the_state_first_and_then_its_end(suite: Suite) -> None:
    await suite.serve("assets")
    watch = watching(suite.client(None).channel("assets"), "atelier.assets.v1.AssetService")
    unknown = watching(suite.client(None).channel("assets"), "no.such.Service")
    async with asyncio.timeout(30):
        while (await watch.read()).status != SERVING:
            pass
    assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

    stopping = asyncio.create_task(suite.stop("assets", seconds=5))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    unknown.cancel()
    await stopping


async def test_a_service_that_is_not_here_is_not_found(suite: Suite) -> None:
    await suite.serve("assets")
    stub = health_pb2_grpc.HealthStub(suite.client(None).channel("assets"))
    await calls.refused(
        stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service")),
        grpc.StatusCode.NOT_FOUND,
    )
