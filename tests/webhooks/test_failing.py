"""Receivers fail and workers die: nobody else is delayed, nothing is lost, and the owner sees
why."""

import asyncio
import importlib
import signal
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from atelier.webhooks.v1 import webhook_pb2 as pb

from shared.webhooks import sending
from tests.faults.processes import Processes
from tests.receiver import Receiver, Reply, Request, receiving, replying
from tests.suite import Client, Cluster, DiskServer, Keys, Suite
from tests.webhooks import flows
from tests.webhooks.flows import assets_in, delivered, ids, verify


@pytest.mark.long
async def test_what_happens_while_nobody_works_arrives_afterwards(suite: Suite) -> None:
    await flows.start(suite, work=False)
    ada = suite.client("ada")
    async with receiving() as receiver:
        await flows.create(ada, receiver.url)
        made = await flows.happen(ada, 3)
        await suite.work("assets")
        await flows.until(lambda: len(receiver.requests) == 3, "what happened before")
    assert assets_in(receiver) == set(made)


async def endless(_request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 X\r\n\r\n")
    for _ in range(1000):
        writer.write(b"x" * 65536)
        await writer.drain()


async def silent(_request: Request, writer: asyncio.StreamWriter) -> None:
    await writer.wait_closed()


@pytest.mark.long
@pytest.mark.parametrize(
    ("reply", "status", "error_class"),
    [
        (replying(302, location="http://127.0.0.1:1/"), 302, "STATUS"),
        (replying(404), 404, "STATUS"),
        (silent, 0, "TIMEOUT"),
        (endless, 200, ""),
    ],
)
async def test_the_owner_sees_what_a_receiver_did(
    suite: Suite, reply: Reply, status: int, error_class: str
) -> None:
    await flows.start(suite, webhook_timeout_seconds=0.3, webhook_first_retry_seconds=60)
    ada = suite.client("ada")
    async with receiving(reply) as receiver:
        made = await flows.create(ada, receiver.url)
        await flows.happen(ada)

        async def ended() -> Any:
            [delivery] = await flows.log(ada, made.endpoint.id) or [pb.Delivery()]
            return (
                delivery
                if delivery.error_class or delivery.state == pb.DELIVERY_STATE_DELIVERED
                else None
            )

        delivery = await flows.until(ended, "the end of the attempt")
        assert (delivery.status_code, delivery.error_class) == (status, error_class)
        assert len(delivery.response_excerpt) <= 1000
        assert len(receiver.requests) == 1, "nothing is followed, nothing is hurried"


async def taken_but_slow(_request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 900\r\n\r\nthanks")
    await writer.wait_closed()


@pytest.mark.long
async def test_what_was_taken_is_not_sent_again_for_a_slow_body(suite: Suite) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    async with receiving(taken_but_slow) as receiver:
        made = await flows.create(ada, receiver.url)
        await flows.happen(ada)

        delivery = await flows.delivery_in(ada, made.endpoint.id, pb.DELIVERY_STATE_DELIVERED)
        assert (delivery.attempts, delivery.status_code, delivery.response_excerpt) == (
            1,
            200,
            "thanks",
        )
        assert len(receiver.requests) == 1


IN_TWO_HOURS = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)


async def paused(client: Client, endpoint_id: str) -> float:
    """Waits for a pause; returns its remaining seconds."""

    async def until() -> Any:
        endpoint = await flows.get(client, endpoint_id)
        return endpoint if endpoint.HasField("pause_end_time") else None

    endpoint = await flows.until(until, "a pause")
    assert endpoint.state == pb.ENDPOINT_STATE_ENABLED
    return float(endpoint.pause_end_time.seconds - time.time())


@pytest.mark.parametrize(
    ("status", "asked", "least", "most"),
    [
        (429, "600", 500, 601),
        (503, "600", 500, 601),
        (302, "600", 500, 601),
        pytest.param(503, IN_TWO_HOURS, 5400, 7201, id="a date"),
        (429, "99999999999", 8 * 3600 - 100, 8 * 3600 + 1),
    ],
)
async def test_a_receiver_that_asks_for_a_pause_gets_it(
    suite: Suite, status: int, asked: str, least: float, most: float
) -> None:
    """All deliveries to its endpoint wait, also of later events and replays; no others do."""
    await flows.start(suite, webhook_give_up_hours=1)
    ada = suite.client("ada")
    async with receiving(replying(status, retry_after=asked)) as busy, receiving() as other:
        made = await flows.create(ada, busy.url)
        await flows.happen(ada)
        assert least < await paused(ada, made.endpoint.id) < most

        await flows.until(lambda: busy.requests, "the first")
        count = len(busy.requests)
        [delivery] = await flows.log(ada, made.endpoint.id)
        assert delivery.state == pb.DELIVERY_STATE_PENDING, (
            "to wait as asked is no reason to give up"
        )
        assert least < delivery.next_attempt_time.seconds - time.time() < most
        assert "asked for a pause" in delivery.error_message

        await flows.create(ada, other.url)
        await flows.happen(ada, 2)
        await flows.stub(ada).PingEndpoint(pb.PingEndpointRequest(endpoint_id=made.endpoint.id))
        await flows.stub(ada).ReplayDelivery(pb.ReplayDeliveryRequest(delivery_id=delivery.id))
        await flows.until(lambda: len(other.requests) == 2, "what goes elsewhere")
        assert len(busy.requests) == count


@pytest.mark.long
async def test_a_pause_ends_with_its_time_with_another_url_and_when_its_endpoint_is_enabled_anew(
    suite: Suite,
) -> None:
    await flows.start(suite)
    ada, stub = suite.client("ada"), flows.stub(suite.client("ada"))
    async with receiving(replying(503, retry_after="600")) as receiver, receiving() as other:
        made = await flows.create(ada, receiver.url)
        await flows.happen(ada)
        await paused(ada, made.endpoint.id)
        renamed = pb.UpdateEndpointRequest(
            endpoint_id=made.endpoint.id,
            update_mask={"paths": ["description"]},
            description="the shop",
        )
        assert (await stub.UpdateEndpoint(renamed)).endpoint.HasField("pause_end_time")

        moved = pb.UpdateEndpointRequest(
            endpoint_id=made.endpoint.id, update_mask={"paths": ["url"]}, url=other.url
        )
        assert not (await stub.UpdateEndpoint(moved)).endpoint.HasField("pause_end_time")

        await flows.happen(ada)
        await flows.until(lambda: other.requests, "the other URL gets what happens")
        back = pb.UpdateEndpointRequest(
            endpoint_id=made.endpoint.id, update_mask={"paths": ["url"]}, url=receiver.url
        )
        await stub.UpdateEndpoint(back)
        await flows.happen(ada)
        await paused(ada, made.endpoint.id)
        await stub.DisableEndpoint(pb.DisableEndpointRequest(endpoint_id=made.endpoint.id))
        receiver.reply = replying(503, retry_after="1")
        await stub.EnableEndpoint(pb.EnableEndpointRequest(endpoint_id=made.endpoint.id))
        await paused(ada, made.endpoint.id)
        receiver.reply = replying(200)
        await flows.until(
            lambda: receiver.requests and delivered(ada, made, 3), "the pause is over"
        )


async def test_a_slow_receiver_delays_nobody_else(suite: Suite) -> None:
    await flows.start(suite, webhook_timeout_seconds=30)
    ada = suite.client("ada")
    async with receiving(silent) as slow, receiving() as quick:
        await flows.create(ada, slow.url)
        await flows.create(ada, quick.url)
        await flows.happen(ada, 12)
        await flows.until(lambda: len(quick.requests) == 12, "everything at the quick one", 10)
        await flows.until(lambda: slow.connections == 4, "the few at once that the slow one gets")
        await flows.happen(ada)

        await flows.until(lambda: len(quick.requests) == 13, "one more at the quick one")
        assert slow.connections == 4
        await suite.stop_work()


async def test_slow_receivers_on_every_runner_give_way(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "RUNNERS", 1)
    await flows.start(suite, work=False, webhook_timeout_seconds=0.2)
    eve, ada = suite.client("eve"), suite.client("ada")

    async with receiving(silent) as slow, receiving() as quick:
        await flows.create(eve, slow.url)
        await flows.create(ada, quick.url)
        await flows.happen(eve, 80)
        await suite.work("assets")
        await flows.until(lambda: slow.connections, "the runner is with the slow one")
        await flows.happen(ada)

        await flows.until(lambda: quick.requests, "the quick one gets it")
        assert slow.connections < 80, "ada would have waited for all of eve's"
        await suite.stop_work()


async def test_an_endpoint_that_fails_for_long_is_disabled_and_says_why(suite: Suite) -> None:
    await flows.start(suite, webhook_give_up_hours=1 / 3600)
    ada = suite.client("ada")
    async with receiving(replying(503)) as receiver:
        made = await flows.create(ada, receiver.url)

        async def disabled() -> Any:
            await flows.happen(ada)
            endpoint = await flows.get(ada, made.endpoint.id)
            return endpoint if endpoint.state == pb.ENDPOINT_STATE_DISABLED else None

        endpoint = await flows.until(disabled, "it is disabled")
        assert (endpoint.disable_reason, endpoint.last_error_class) == (
            pb.DISABLE_REASON_FAILING,
            "STATUS",
        )
        failed = await flows.log(ada, made.endpoint.id, state=pb.DELIVERY_STATE_FAILED)
        assert not any(d.HasField("next_attempt_time") for d in failed)
        assert any(d.attempts > 1 for d in failed), "the first one was tried again before"


@pytest.mark.long
async def test_an_endpoint_inside_is_refused_and_one_that_moves_inside_gets_nothing(
    suite: Suite,
) -> None:
    """A network that the operator allowed yesterday isn't allowed today: every connection is
    checked again."""
    await flows.start(suite, work=False)
    ada = suite.client("ada")
    async with receiving() as canary:
        made = await flows.create(ada, canary.url)
        await flows.happen(ada)
        suite.overrides["outbound_allowed_networks"] = "127.0.0.2/32"
        await suite.work("assets")

        async def tried() -> Any:
            [delivery] = await flows.log(ada, made.endpoint.id) or [pb.Delivery()]
            return delivery if delivery.error_class else None

        delivery = await flows.until(tried, "an attempt")
        assert (delivery.error_class, delivery.status_code) == ("REFUSED", 0)
        await flows.until(
            lambda: suite.sql("SELECT 1 FROM assets.webhook_deliveries WHERE attempts > 2"),
            "more attempts",
        )
        assert canary.connections == 0


@pytest.mark.faults
async def test_a_worker_killed_between_sending_and_recording_sends_the_same_again(
    cluster: Cluster, keys: Keys, disk: DiskServer, suite: Suite, tmp_path: Path
) -> None:
    await flows.start(suite, work=False)
    ada = suite.client("ada")
    processes = Processes(cluster, suite.database, keys, disk, tmp_path)
    settings = {**flows.SETTINGS, "job_lease_seconds": 1}
    arrived = asyncio.Event()

    async def never_answers(_request: Request, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await writer.wait_closed()

    try:
        async with receiving(never_answers) as receiver:
            made = await flows.create(ada, receiver.url)
            [asset_id] = await flows.happen(ada)
            worker = processes.work("assets", **settings)
            async with asyncio.timeout(30):
                await arrived.wait()
            worker.signal(signal.SIGKILL)
            await asyncio.to_thread(worker.popen.wait)
            [delivery] = await flows.log(ada, made.endpoint.id)
            assert (delivery.state, delivery.attempts) == (pb.DELIVERY_STATE_PENDING, 1)
            receiver.reply = replying(200)
            processes.work("assets", **settings)
            await flows.until(lambda: len(receiver.requests) == 2, "it again", 30)
            await flows.until(lambda: delivered(ada, made, 1), "it is recorded")
        assert len(set(ids(receiver))) == 1 and assets_in(receiver) == {asset_id}
        verify(made.secret, receiver.requests[1])
    finally:
        processes.close()


async def test_two_workers_make_one_delivery_of_an_event(suite: Suite) -> None:
    await flows.start(suite)
    module = importlib.import_module("services.assets.__main__")
    second = asyncio.create_task(module.work("assets", suite.settings("assets", "worker")))
    ada = suite.client("ada")

    try:
        async with receiving() as receiver:
            made = await flows.create(ada, receiver.url)
            happened = await flows.happen(ada, 15)
            await flows.until(lambda: delivered(ada, made, 15), "all")
        assert len(receiver.requests) == 15 and assets_in(receiver) == set(happened)
    finally:
        while not second.done():
            second.cancel()
            await asyncio.wait([second], timeout=5)


@pytest.mark.faults
async def test_workers_killed_again_and_again_neither_lose_nor_double_an_event(
    cluster: Cluster, keys: Keys, disk: DiskServer, suite: Suite, tmp_path: Path
) -> None:
    await flows.start(suite, work=False)
    ada = suite.client("ada")
    processes = Processes(cluster, suite.database, keys, disk, tmp_path)
    settings: dict[str, Any] = {**flows.SETTINGS, "job_lease_seconds": 1}
    happened: set[str] = set()

    try:
        async with receiving() as receiver:
            made = await flows.create(ada, receiver.url)
            for _ in range(8):
                worker = processes.work("assets", **settings)
                before = len(assets_in(receiver))
                happened |= set(await flows.happen(ada, 25))
                arrived = partial(_more_assets, receiver, before)
                await flows.until(arrived, "some arrive", 60)
                worker.signal(signal.SIGKILL)
                await asyncio.to_thread(worker.popen.wait)

            processes.work("assets", **settings)
            await flows.until(
                lambda: delivered(ada, made, len(happened)), "everything is delivered", 60
            )
        assert assets_in(receiver) == happened
        assert len(set(ids(receiver))) == len(happened), "a repeat has the id of the first"

        print(
            f"{len(happened)} events, 8 kills: {len(receiver.requests) - len(happened)} sent more"
            " than once"
        )
    finally:
        processes.close()


def _more_assets(receiver: Receiver, before: int) -> bool:
    return len(assets_in(receiver)) > before
