"""Steps that the tests of webhooks share. Their events are uploads to assets, which are published
as soon as they are announced."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from atelier.assets.v1 import asset_pb2
from atelier.webhooks.v1 import webhook_pb2 as pb
from atelier.webhooks.v1 import webhook_pb2_grpc
from standardwebhooks import Webhook

from tests.assets import flows as assets
from tests.receiver import Receiver, Request
from tests.suite import Client, Suite

# The receivers are on this machine, which an operator must allow; pauses are short, to keep the
# tests short.
SETTINGS = {
    "outbound_allowed_networks": "127.0.0.0/8",
    "webhook_http": True,
    "webhook_first_retry_seconds": 0.05,
    "webhook_timeout_seconds": 1.0,
}
PICTURE = assets.jpeg(64, 48)
CAUGHT_UP = """
    SELECT 1 FROM assets.webhook_cursor c JOIN assets.event_stream USING (position)
    WHERE NOT EXISTS (SELECT FROM assets.events WHERE position IS NULL)
"""


def stub(client: Client, service: str = "assets") -> Any:
    return webhook_pb2_grpc.WebhookServiceStub(client.channel(service))


async def start(suite: Suite, *, work: bool = True, **settings: Any) -> None:
    suite.overrides |= SETTINGS | settings
    await suite.serve("assets")
    if work:
        await suite.work("assets")


async def create(client: Client, url: str, *types: str, **fields: Any) -> pb.CreateEndpointResponse:
    return await stub(client).CreateEndpoint(
        pb.CreateEndpointRequest(url=url, event_types=types, **fields)
    )


async def get(client: Client, endpoint_id: str) -> pb.Endpoint:
    return (await stub(client).GetEndpoint(pb.GetEndpointRequest(endpoint_id=endpoint_id))).endpoint


async def log(client: Client, endpoint_id: str, **fields: Any) -> list[pb.Delivery]:
    answer = await stub(client).ListDeliveries(
        pb.ListDeliveriesRequest(endpoint_id=endpoint_id, page_size=1000, **fields)
    )
    return list(answer.deliveries)


async def happen(client: Client, count: int = 1) -> list[str]:
    """Causes events of type assets.asset.pending. Returns the ids of the assets."""
    made = [
        await assets.announce(client, PICTURE, kind=asset_pb2.ASSET_KIND_PHOTO)
        for _ in range(count)
    ]
    return [one.asset.id for one in made]


async def until(true: Callable[[], Any | Awaitable[Any]], what: str, seconds: float = 15) -> Any:
    """Waits for the first value that isn't false; returns it."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                value = true()
                value = await value if isinstance(value, Awaitable) else value
                if value:
                    return value
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None


async def delivery_in(client: Client, endpoint_id: str, state: Any) -> pb.Delivery:
    """Waits for a delivery in this state; returns the newest."""
    found = await until(lambda: log(client, endpoint_id, state=state), f"a delivery {state}")
    return found[0]


def ids(receiver: Receiver) -> list[str]:
    return [request.headers["webhook-id"] for request in receiver.requests]


def assets_in(receiver: Receiver) -> set[str]:
    return {json.loads(request.body)["data"]["id"] for request in receiver.requests}


def verify(secret: str, request: Request) -> Any:
    return Webhook(secret).verify(request.body, request.headers)


async def delivered(client: Client, made: pb.CreateEndpointResponse, count: int) -> bool:
    return len(await log(client, made.endpoint.id, state=pb.DELIVERY_STATE_DELIVERED)) == count
