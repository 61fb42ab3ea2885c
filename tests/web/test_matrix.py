"""Every rpc answers the same over every protocol, and refuses with the same reason and fields."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message import Message

from tests.calls import refusal_of, served_by, service_of
from tests.suite import Client, Cluster, DiskServer, Keys, Suite, built_services, running_suite
from tests.web.conftest import serving
from tests.web.protocols import PROTOCOLS, Answer, call
from web import contract
from web.contract import Method

UNARY = [
    method
    for method in contract.methods()
    if not method.descriptor.server_streaming and not method.descriptor.client_streaming
]


@pytest.fixture(scope="module")
async def suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    async with running_suite(cluster, keys, disk) as suite:
        await suite.serve(*built_services())
        yield suite


@pytest.fixture(scope="module")
async def url(suite: Suite) -> AsyncIterator[str]:
    async with serving(suite) as url:
        yield url


async def native(client: Client, method: Method) -> Answer:
    """Makes the call with an empty request over gRPC."""
    send: Any = client.channel(method.callee).unary_unary(method.full_path)
    try:
        data = await send(b"", timeout=30)
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        return Answer(
            error.code().name.lower().replace("cancelled", "canceled"),
            refusal.text,
            refusal.reason,
            refusal.fields if error.code() is grpc.StatusCode.INVALID_ARGUMENT else [],
        )
    return Answer("ok", message=method.response.FromString(data))


def test_every_rpc_of_the_suite_has_a_path() -> None:
    served = {
        (service_of(name), f"/{method.containing_service.full_name}/{method.name}")
        for name, method in served_by(built_services()).items()
    }
    assert {(method.callee, method.full_path) for method in contract.methods()} == served


@pytest.mark.long
@pytest.mark.parametrize("service", built_services())
async def test_calls_without_a_token_are_refused_alike(
    service: str, suite: Suite, url: str
) -> None:
    async def differences(method: Method) -> list[object]:
        expected = await native(suite.client(None), method)
        assert expected.code == "unauthenticated"
        found = await answers(url, method, {})
        return [(method.path, each, expected) for each in found if each != expected]

    assert await of_all(service, differences) == []


@pytest.mark.long
@pytest.mark.parametrize("service", built_services())
async def test_empty_requests_are_answered_alike(service: str, suite: Suite, url: str) -> None:
    ada = suite.client("ada")

    async def differences(method: Method) -> list[object]:
        expected = await native(ada, method)
        found = await answers(url, method, {"authorization": f"Bearer {ada.token}"})
        if expected.code == "ok" and not method.reads:
            return []  # each call has changed something
        return [(method.path, each, expected) for each in found if not alike(each, expected)]

    assert await of_all(service, differences) == []


def alike(answer: Answer, expected: Answer) -> bool:
    same = (answer.code, answer.reason, answer.fields) == (
        expected.code,
        expected.reason,
        expected.fields,
    )
    if expected.code == "ok":
        return same and without_clock(answer.message) == without_clock(expected.message)
    return same and (answer.text == expected.text or expected.code != "invalid_argument")


def without_clock(message: Message | None) -> Message | None:
    """Returns an answer without the time at which it was read."""
    of_storage = "atelier.assets.v1.GetStorageReportResponse"
    if message is not None and message.DESCRIPTOR.full_name == of_storage:
        answer: Any = message
        answer.report.ClearField("read_time")
    return message


async def of_all(
    service: str, differences: Callable[[Method], Awaitable[list[object]]]
) -> list[object]:
    """Returns what differs in the calls of a service, some of which are made at once."""
    turns = asyncio.Semaphore(8)

    async def one(method: Method) -> list[object]:
        async with turns:
            return await differences(method)

    mine = [each for each in UNARY if each.callee == service]
    found: list[object] = []
    for reads in (True, False):  # what changes something would change what is read beside it
        made = await asyncio.gather(*(one(each) for each in mine if each.reads == reads))
        found += [each for differing in made for each in differing]
    return found


async def answers(url: str, method: Method, headers: dict[str, str]) -> list[Answer]:
    """Makes the call with an empty request over each protocol."""
    request: Message = method.request()
    async with httpx.AsyncClient() as http:
        return [
            await call(http, url + method.path, request, method.response, protocol, headers)
            for protocol in PROTOCOLS
        ]
