"""Webhooks reach their subscribers, at least once, signed so that other libraries agree, and no
internal address."""

import asyncio
import json
import secrets
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest
from atelier.webhooks.v1 import webhook_pb2 as pb
from standardwebhooks import Webhook, WebhookVerificationError

from shared import webhooks
from shared.database.db import Database
from tests import npm
from tests.receiver import Receiver, Request, receiving, replying
from tests.suite import Client, Cluster, DiskServer, Keys, Suite, free_port, running_suite
from tests.webhooks import flows
from tests.webhooks.flows import CAUGHT_UP, assets_in, delivered, ids, verify


@pytest.fixture(scope="module")
async def suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    """One suite for all of these tests, each with an owner of its own."""
    async with running_suite(cluster, keys, disk) as suite:
        await flows.start(suite)
        yield suite


@pytest.fixture
def ada(suite: Suite) -> Client:
    return suite.client(f"ada-{secrets.token_hex(4)}")


async def test_an_event_arrives_signed_and_readable(ada: Client) -> None:
    async with receiving() as receiver:
        made = await flows.create(ada, f"{receiver.url}?token=x", "assets.asset.pending")
        [asset_id] = await flows.happen(ada)
        delivery = await flows.delivery_in(ada, made.endpoint.id, pb.DELIVERY_STATE_DELIVERED)
        [request] = receiver.requests
    assert request.line == "POST /hook?token=x HTTP/1.1"
    assert request.headers["content-type"] == "application/json"

    body = verify(made.secret, request)
    assert (body["type"], body["data"]["id"]) == ("assets.asset.pending", asset_id)
    assert body["data"]["state"] == "ASSET_STATE_PENDING" and body["data"]["createTime"].endswith(
        "Z"
    )
    assert "Url" not in request.body.decode()
    assert delivery.id == request.headers["webhook-id"]
    assert (delivery.attempts, delivery.status_code, delivery.error_class) == (1, 204, "")

    shown = await flows.stub(ada).GetDelivery(pb.GetDeliveryRequest(delivery_id=delivery.id))
    assert shown.body.encode() == request.body


async def test_a_changed_body_id_or_time_is_not_ours(ada: Client) -> None:
    async with receiving() as receiver:
        made = await flows.create(ada, receiver.url)
        await flows.stub(ada).PingEndpoint(pb.PingEndpointRequest(endpoint_id=made.endpoint.id))
        await flows.until(lambda: receiver.requests, "a ping")
    [request] = receiver.requests
    assert verify(made.secret, request)["type"] == "webhook.ping"

    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        with pytest.raises(WebhookVerificationError):
            Webhook(made.secret).verify(
                request.body, {**request.headers, name: f"1{request.headers[name]}"}
            )

    with pytest.raises(WebhookVerificationError):
        Webhook(made.secret).verify(request.body + b" ", request.headers)


@pytest.mark.long
@pytest.mark.needs_node
async def test_the_library_of_another_language_agrees(ada: Client) -> None:
    await asyncio.to_thread(npm.install)
    async with receiving() as receiver:
        made = await flows.create(ada, receiver.url)
        await flows.stub(ada).PingEndpoint(pb.PingEndpointRequest(endpoint_id=made.endpoint.id))
        await flows.until(lambda: receiver.requests, "a ping")
    [request] = receiver.requests
    script = """
        const {Webhook} = require(process.argv[1] + '/standardwebhooks');
        const {secret, body, headers} = JSON.parse(require('fs').readFileSync(0));
        console.log(new Webhook(secret).verify(body, headers).type);
    """
    given: dict[str, Any] = {
        "secret": made.secret,
        "body": request.body.decode(),
        "headers": request.headers,
    }

    for forged, expected in (({}, 0), ({"body": given["body"] + " "}, 1)):
        done = await asyncio.to_thread(
            subprocess.run,
            ["node", "-e", script, str(npm.MODULES)],
            input=json.dumps(given | forged),
            capture_output=True,
            text=True,
        )

        assert done.returncode == expected, done.stderr
        assert done.stdout.strip() == ("" if expected else "webhook.ping")


@pytest.mark.long
async def test_every_event_of_the_owner_arrives_once_and_nobody_elses(
    suite: Suite, ada: Client
) -> None:
    bob = suite.client(f"{ada.subject}-2")
    async with receiving() as receiver, receiving() as other:
        await flows.create(ada, receiver.url)
        await flows.create(bob, other.url)
        made, _ = await asyncio.gather(flows.happen(ada, 20), flows.happen(bob, 3))
        await flows.until(
            lambda: len(receiver.requests) >= 20 and len(other.requests) >= 3, "all deliveries"
        )

    assert (
        assets_in(receiver) == set(made) and len(set(ids(receiver))) == len(receiver.requests) == 20
    )
    assert len(other.requests) == 3 and not assets_in(other) & set(made)


async def test_only_the_types_asked_for_are_sent(ada: Client) -> None:
    async with receiving() as some, receiving() as everything:
        await flows.create(ada, some.url, "assets.asset.ready", "assets.variant.ready")
        await flows.create(ada, everything.url)
        await flows.happen(ada)
        await flows.until(lambda: everything.requests, "the delivery to the other")
        assert some.requests == []


async def test_a_receiver_that_was_down_gets_everything_when_it_is_up(ada: Client) -> None:
    port = free_port()
    made = await flows.create(ada, f"http://127.0.0.1:{port}/hook")
    happened = await flows.happen(ada, 3)

    async def tried() -> bool:
        log = await flows.log(ada, made.endpoint.id)
        return len(log) == len(happened) and all(
            d.attempts >= 1 and d.error_class == "CONNECT" for d in log
        )

    await flows.until(tried, "an attempt of each")
    endpoint = await flows.get(ada, made.endpoint.id)
    assert (endpoint.state, endpoint.last_error_class) == (pb.ENDPOINT_STATE_ENABLED, "CONNECT")
    assert endpoint.HasField("first_failure_time")
    async with receiving(port=port) as receiver:
        await flows.until(lambda: assets_in(receiver) == set(happened), "everything")

        async def well() -> bool:
            return not (await flows.get(ada, made.endpoint.id)).HasField("first_failure_time")

        await flows.until(well, "the endpoint is well again")


@pytest.mark.long
async def test_a_repeat_has_the_same_id_and_body_and_a_valid_signature(ada: Client) -> None:
    async with receiving(replying(500, b"<b>broken</b>\x00\x07")) as receiver:
        made = await flows.create(ada, receiver.url)
        await flows.happen(ada)
        await flows.until(lambda: len(receiver.requests) >= 2, "two attempts")
        [delivery] = await flows.log(ada, made.endpoint.id)
        assert (delivery.status_code, delivery.error_class) == (500, "STATUS")
        assert delivery.response_excerpt == "<b>broken</b>" and delivery.HasField(
            "next_attempt_time"
        )

        receiver.reply = replying(200)
        await flows.delivery_in(ada, made.endpoint.id, pb.DELIVERY_STATE_DELIVERED)
    assert (
        len(set(ids(receiver))) == 1 and len({request.body for request in receiver.requests}) == 1
    )

    for request in receiver.requests:
        verify(made.secret, request)


@pytest.mark.long
async def test_gone_means_no_more(suite: Suite, ada: Client) -> None:
    async with receiving(replying(410)) as receiver:
        made = await flows.create(ada, receiver.url)
        await flows.happen(ada)

        async def disabled() -> Any:
            endpoint = await flows.get(ada, made.endpoint.id)
            return endpoint if endpoint.state == pb.ENDPOINT_STATE_DISABLED else None

        endpoint = await flows.until(disabled, "it is disabled")
        assert endpoint.disable_reason == pb.DISABLE_REASON_GONE and endpoint.HasField(
            "disable_time"
        )
        missed = await flows.happen(ada, 2)
        await flows.until(lambda: suite.sql(CAUGHT_UP), "they are passed over")
        count = len(receiver.requests)
        receiver.reply = replying(200)
        stub = flows.stub(ada)
        enabled = await stub.EnableEndpoint(pb.EnableEndpointRequest(endpoint_id=made.endpoint.id))
        assert (
            enabled.endpoint.state == pb.ENDPOINT_STATE_ENABLED
            and not enabled.endpoint.disable_reason
        )
        # Pending deliveries resume by themselves; events of the time in between are sent on
        # request.
        await flows.until(lambda: len(receiver.requests) == count + 1, "what waited")
        since = pb.ReplaySinceRequest(endpoint_id=made.endpoint.id, since=made.endpoint.create_time)
        await stub.ReplaySince(since)
        await flows.until(lambda: set(missed) <= assets_in(receiver), "what was missed")
    assert len(receiver.requests) == count + 3


@pytest.mark.long
async def test_both_secrets_sign_while_they_overlap(ada: Client) -> None:
    stub = flows.stub(ada)

    async def ping(receiver: Receiver, endpoint_id: str) -> Request:
        count = len(receiver.requests)
        await stub.PingEndpoint(pb.PingEndpointRequest(endpoint_id=endpoint_id))
        await flows.until(lambda: len(receiver.requests) > count, "a ping")
        return receiver.requests[-1]

    async with receiving() as receiver:
        made = await flows.create(ada, receiver.url)
        rotate = pb.RotateSecretRequest(endpoint_id=made.endpoint.id, request_id="rotate")
        rotated = await stub.RotateSecret(rotate)
        assert (
            rotated.secret != made.secret
            and (await stub.RotateSecret(rotate)).secret == rotated.secret
        )
        both = await ping(receiver, made.endpoint.id)
        for secret in (made.secret, rotated.secret):
            verify(secret, both)
        at_once = pb.RotateSecretRequest(endpoint_id=made.endpoint.id, overlap_seconds=0)
        last = await stub.RotateSecret(at_once)
        only = await ping(receiver, made.endpoint.id)
        verify(last.secret, only)
        assert " " not in only.headers["webhook-signature"]


@pytest.mark.long
async def test_replay_sends_the_same_again(ada: Client) -> None:
    stub = flows.stub(ada)
    async with receiving() as receiver:
        made = await flows.create(ada, receiver.url)
        await flows.happen(ada, 2)
        await flows.until(lambda: len(receiver.requests) == 2, "both")
        [first, _] = receiver.requests
        await flows.until(lambda: delivered(ada, made, 2), "both are recorded")
        again = await stub.ReplayDelivery(
            pb.ReplayDeliveryRequest(delivery_id=first.headers["webhook-id"])
        )
        assert again.delivery.state == pb.DELIVERY_STATE_PENDING

        await flows.until(lambda: len(receiver.requests) == 3, "it again")
        assert receiver.requests[2].headers["webhook-id"] == first.headers["webhook-id"]
        assert receiver.requests[2].body == first.body

        await flows.until(lambda: delivered(ada, made, 2), "it is recorded")
        since = pb.ReplaySinceRequest(endpoint_id=made.endpoint.id, since=made.endpoint.create_time)
        await stub.ReplaySince(since)
        since.include_delivered = True
        await stub.ReplaySince(since)
        await flows.until(lambda: len(receiver.requests) == 5, "both again")
        await flows.until(lambda: delivered(ada, made, 2), "both are recorded")
    assert sorted(ids(receiver)[3:]) == sorted(ids(receiver)[:2])
    assert len(receiver.requests) == 5


async def test_an_endpoint_is_told_of_what_happened_before_it_was_made(
    suite: Suite, ada: Client
) -> None:
    before = await flows.happen(ada, 3)
    await flows.until(lambda: suite.sql(CAUGHT_UP), "they are passed over")

    async with receiving() as receiver:
        made = await flows.create(ada, receiver.url)
        since = made.endpoint.create_time
        since.seconds -= 60
        answer = await flows.stub(ada).ReplaySince(
            pb.ReplaySinceRequest(endpoint_id=made.endpoint.id, since=since)
        )
        assert answer.HasField("from_time")
        await flows.until(lambda: assets_in(receiver) == set(before), "what happened before")


async def test_a_disabled_endpoint_and_a_deleted_one_get_nothing(suite: Suite, ada: Client) -> None:
    stub = flows.stub(ada)
    async with receiving() as receiver, receiving() as witness:
        paused, deleted = (
            await flows.create(ada, receiver.url),
            await flows.create(ada, receiver.url),
        )
        await flows.create(ada, witness.url)
        off = await stub.DisableEndpoint(pb.DisableEndpointRequest(endpoint_id=paused.endpoint.id))
        assert off.endpoint.disable_reason == pb.DISABLE_REASON_ASKED

        await stub.DeleteEndpoint(pb.DeleteEndpointRequest(endpoint_id=deleted.endpoint.id))
        await flows.happen(ada)
        await flows.until(lambda: witness.requests, "the delivery to the other")
        assert receiver.connections == 0

    for table in ("webhook_secrets", "webhook_deliveries"):
        left = f"SELECT count(*) FROM assets.{table} WHERE endpoint_id = %s"
        assert suite.sql(left, (deleted.endpoint.id,)) == [(0,)]


async def test_the_log_is_forgotten_after_its_time(suite: Suite, ada: Client) -> None:
    async with receiving() as receiver:
        made = await flows.create(ada, receiver.url)
        await flows.happen(ada, 2)
        await flows.until(lambda: delivered(ada, made, 2), "both")
    old, young = await flows.log(ada, made.endpoint.id)
    await suite.change(
        "UPDATE assets.webhook_deliveries SET ended_at = now() - interval '31 days' WHERE id = %s",
        (old.id,),
    )
    settings = suite.settings("assets", "worker")
    db = Database(settings, "assets")

    await db.open()
    try:
        assert await webhooks.prune(db, settings) == 1
    finally:
        await db.close()
    assert [delivery.id for delivery in await flows.log(ada, made.endpoint.id)] == [young.id]
