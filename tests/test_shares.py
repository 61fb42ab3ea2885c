"""One owner's concurrent calls leave places for others, and every place is freed again."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, render_pb2, render_pb2_grpc, upload_pb2, variant_pb2
from google.rpc import error_details_pb2

from shared.rpc import auth, guard, limits
from shared.telemetry import METRICS
from tests import calls
from tests.assets import flows
from tests.shared.imaging import pictures
from tests.suite import Client, Suite

DATA = flows.jpeg(64, 48)
NEVER = "0190f3c0-0000-7000-8000-000000000000"
PLACES = 40  # ten of them are kept back for owners with next to none
SHARE = 15  # the most that a single owner may hold: half of the others


@pytest.fixture(autouse=True)
def short_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "QUEUE_SECONDS", 0.2)


async def pending(suite: Suite, client: Client, **fields: Any) -> str:
    """Returns the id of an image whose variants are never made, so that asking for one waits. There
    is room for one stream only, which is taken: the waiting calls count among the calls that work.
    """
    suite.overrides |= {"max_in_flight": PLACES, "max_streams": 1}
    await suite.serve("assets")
    assert (
        await flows.assets(client).WatchAssets(asset_pb2.WatchAssetsRequest()).read()
    ).bookmark.ready
    return (await flows.upload(client, DATA, **fields)).id


def waiting(
    client: Client, asset_id: str, count: int, seconds: float = 60
) -> list["asyncio.Future[Any]"]:
    request = variant_pb2.GetVariantRequest(asset_id=asset_id, preset="large", wait=True)
    return [
        asyncio.ensure_future(flows.variants(client).GetVariant(request, timeout=seconds))
        for _ in range(count)
    ]


async def refusals_of(asked: list["asyncio.Future[Any]"], count: int) -> list[calls.Refusal]:
    """Waits until so many calls have ended and returns their refusals. The others continue."""
    going = set(asked)
    while len(asked) - len(going) < count:
        _, going = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    return [await calls.refused(each, exhausted) for each in asked if each.done()]


async def listing(client: Client) -> Any:
    return await flows.assets(client).ListAssets(asset_pb2.ListAssetsRequest())


async def insist(call: Callable[[], Awaitable[Any]]) -> Any:
    """Repeats a call until it isn't refused as one too many: the server learns of a cancellation
    only after a while."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if calls.refusal_of(error).reason != "TOO_MANY_CALLS":
                    raise
                await asyncio.sleep(0.02)


async def idle(name: str = "atelier_calls_in_flight") -> None:
    """Waits until the server has noticed that every call has ended."""
    await figure(name, 0)


async def figure(name: str, value: int) -> None:
    async with asyncio.timeout(10):
        while METRICS.get_sample_value(name) != value:
            await asyncio.sleep(0.02)


async def cancel(asked: list["asyncio.Future[Any]"]) -> None:
    for each in asked:
        each.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_an_owner_whose_calls_wait_leaves_places_for_others(suite: Suite) -> None:
    ada, bob = suite.client("ada"), suite.client("bob")
    asset = await pending(suite, ada)
    held = waiting(ada, asset, SHARE + 3)

    for refusal in await refusals_of(held, 3):
        assert refusal.reason == "TOO_MANY_CALLS"
        assert refusal.text.startswith("15 calls of this owner are under way")
        assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    refusal = await calls.refused(listing(suite.client("ada")), grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert refusal.reason == "TOO_MANY_CALLS", "over any connection"
    assert (await listing(bob)).assets == []

    service = suite.as_token(suite.keys.service_token("conversions", "user:ada"))
    assert (await listing(service)).assets, "what ada waits for goes on for her"
    await cancel(held)
    await insist(lambda: listing(ada))


@pytest.mark.long
async def test_calls_that_wait_take_no_place_from_those_that_work(suite: Suite) -> None:
    few = 4  # one of them is kept back
    suite.overrides |= {"max_in_flight": few, "max_streams": PLACES}
    await suite.serve("assets")
    ada = suite.client("ada")
    assets = [(await flows.upload(ada, DATA)).id for _ in range(2)]
    comparison = render_pb2.CreateComparisonRequest(
        before_asset_id=assets[0], after_asset_id=assets[1], wait=True
    )
    create = ada.stub(render_pb2_grpc.ComparisonServiceStub).CreateComparison
    held = [asyncio.ensure_future(create(comparison, timeout=60))]
    for number in range(1, SHARE):
        held += waiting(ada, assets[0], 1)
        await figure("atelier_streams_open", number + 1)
        assert len((await listing(ada)).assets) == 2

    held += waiting(
        ada, assets[0], few
    )  # there is no room left to wait in, so they keep their places while they wait
    [refusal] = await refusals_of(held, 1)
    assert refusal.text.startswith("3 calls of this owner are under way")

    await cancel(held)
    await idle()
    await idle("atelier_streams_open")


async def test_a_burst_of_short_calls_is_served_in_turns(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "QUEUE_SECONDS", 60.0)
    suite.overrides["max_in_flight"] = few = 8
    await suite.serve("assets")
    ada, bob = suite.client("ada"), suite.client("bob")

    burst = [asyncio.ensure_future(listing(ada)) for _ in range(2 * few)]
    leaver = asyncio.ensure_future(listing(ada))
    others = [asyncio.ensure_future(listing(bob)) for _ in range(few)]
    await asyncio.sleep(0.01)
    leaver.cancel()
    await asyncio.gather(*burst, *others)
    await idle()

    with calls.holding(suite, "LOCK TABLE assets.assets IN ACCESS EXCLUSIVE MODE", ()):
        held: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(listing(ada)) for _ in range(6 * few)
        ]
        for refusal in await refusals_of(held, few):
            assert refusal.reason == "TOO_MANY_CALLS", "only so many wait"
    for each in held:
        if not each.done():
            await each
    await idle()


@pytest.mark.long
async def test_an_owner_who_floods_leaves_room_to_wait_for_others() -> None:
    places = limits.Places(PLACES)
    ada, bob = (
        auth.Identity(actor=name, owner=f"user:{name}", role="user", expires_at=0)
        for name in ("ada", "bob")
    )
    flood = [asyncio.ensure_future(places.take_within(ada, lambda: 60.0)) for _ in range(400)]
    await asyncio.sleep(0)
    others = [asyncio.ensure_future(places.take_within(bob, lambda: 60.0)) for _ in range(20)]
    await asyncio.sleep(0.01)

    refused = [each for each in flood if each.done() and each.exception()]
    assert len(refused) > PLACES and not any(each.done() and each.exception() for each in others)
    while going := [each for each in flood + others if not each.done()]:
        ended = next(each for each in flood + others if each.done() and each not in refused)
        places.give_back(ended.result())
        flood, others = ([e for e in them if e is not ended] for them in (flood, others))
        await asyncio.sleep(0)
    assert not going


async def test_whoever_comes_next_finds_a_place_however_many_are_held(suite: Suite) -> None:
    owner = suite.client("ada", role="vendor")
    asset = await pending(suite, owner, visibility=asset_pb2.VISIBILITY_PUBLIC)
    held = []
    # The last ten places are for owners who hold next to none; the last of these owners is refused
    # by the server itself.
    few = [(f"owner-{number}", 2) for number in range(4)]

    for name, holds in (("ann", 15), ("ben", 8), ("dan", 7), *few, ("eve", 2)):
        asked = waiting(suite.client(name), asset, holds + 1)
        [refusal] = await refusals_of(asked, 1)
        assert refusal.reason == ("OVERLOADED" if name == "eve" else "TOO_MANY_CALLS"), name
        held += asked
    await cancel(held)


@pytest.mark.long
async def test_anonymous_callers_share_the_places_of_one(suite: Suite) -> None:
    vendor = suite.client("acme", role="vendor")
    asset = await pending(suite, vendor, visibility=asset_pb2.VISIBILITY_PUBLIC)
    visitors = [suite.client(f"visitor-{n}", role="anonymous") for n in range(PLACES)]
    held = [each for visitor in visitors for each in waiting(visitor, asset, 1)]
    refusals = await refusals_of(held, PLACES - SHARE)
    assert {each.reason for each in refusals} == {"TOO_MANY_CALLS"}
    assert refusals[0].text.startswith("15 calls of all anonymous callers together")

    await listing(vendor)
    await cancel(held)


@pytest.mark.long
async def test_places_come_back_after_errors_and_deadlines(suite: Suite) -> None:
    ada = suite.client("ada")
    asset = await pending(suite, ada)
    nothing = asset_pb2.GetAssetRequest(asset_id=NEVER)
    malformed = asset_pb2.GetAssetRequest(asset_id="x")

    for _ in range(PLACES):
        refusal = await calls.refused(
            flows.assets(ada).GetAsset(nothing), grpc.StatusCode.NOT_FOUND
        )
        assert refusal.reason == "NOT_FOUND"
        refusal = await calls.refused(
            flows.assets(ada).GetAsset(malformed), grpc.StatusCode.INVALID_ARGUMENT
        )
        assert refusal.reason == "INVALID_FIELD"

    with calls.holding(suite, "LOCK TABLE assets.assets IN ACCESS EXCLUSIVE MODE", ()):
        late = [
            asyncio.ensure_future(flows.assets(ada).GetAsset(nothing, timeout=0.3))
            for _ in range(SHARE)
        ]
        for each in late:
            await calls.refused(each, grpc.StatusCode.DEADLINE_EXCEEDED)

    for _ in range(2):
        await idle()
        held = waiting(ada, asset, SHARE + 1)
        [refusal] = await refusals_of(held, 1)
        assert refusal.text.startswith("15 calls of this owner"), (
            "all of the share, no more and no less"
        )
        await cancel(held)


async def silent() -> AsyncIterator[upload_pb2.UploadRequest]:
    yield upload_pb2.UploadRequest(head={"declaration": flows.declaration(DATA)})
    await asyncio.sleep(60)


@pytest.mark.long
async def test_uploads_in_a_stream_are_shared_apart(suite: Suite) -> None:
    suite.overrides["max_in_flight"] = 4 * PLACES
    await suite.serve("assets")
    ada, bob = suite.client("ada"), suite.client("bob")
    held = [asyncio.ensure_future(flows.uploads(ada).Upload(silent())) for _ in range(SHARE + 1)]
    [refusal] = await refusals_of(held, 1)
    assert refusal.reason == "TOO_MANY_CALLS"
    assert await flows.upload(ada, DATA), "the same owner's other calls aren't counted with them"

    head = upload_pb2.UploadRequest(head={"declaration": flows.declaration(DATA)})
    parts = [head, upload_pb2.UploadRequest(chunk=DATA)]
    assert (await flows.uploads(bob).Upload(calls.aiter_of(parts))).asset.id
    await cancel(held)


@pytest.mark.long
@pytest.mark.parametrize("messages", [1, 1000])
async def test_an_upload_that_trickles_loses_its_place(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, messages: int
) -> None:
    """The upload sends nothing, or just enough to stay open. It loses its place after a second
    instead of a minute."""
    monkeypatch.setattr(guard, "_HEAD_START_SECONDS", 1.0)
    await suite.serve("assets")
    ada = suite.client("ada")

    async def trickle() -> AsyncIterator[upload_pb2.UploadRequest]:
        yield upload_pb2.UploadRequest(head={"declaration": flows.declaration(DATA)})
        for _ in range(messages):
            await asyncio.sleep(0.1)
            yield upload_pb2.UploadRequest(chunk=b"")
        await asyncio.sleep(60)

    refusal = await calls.refused(
        flows.uploads(ada).Upload(trickle(), timeout=30),
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "slower than",
    )
    assert refusal.reason == "DEADLINE"


async def test_watches_of_one_owner_leave_places_for_others(suite: Suite) -> None:
    suite.overrides["max_streams"] = PLACES
    await suite.serve("assets")
    ada, bob = suite.client("ada"), suite.client("bob")

    def watch(client: Client) -> Any:
        return flows.assets(client).WatchAssets(asset_pb2.WatchAssetsRequest())

    async def begun(stream: Any) -> Any:
        assert (await stream.read()).bookmark.ready
        return stream

    streams = [await begun(watch(ada)) for _ in range(SHARE)]
    refusal = await calls.refused(watch(ada), grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert refusal.reason == "TOO_MANY_CALLS"
    streams.append(await begun(watch(bob)))
    streams.pop(0).cancel()
    streams.append(await insist(lambda: begun(watch(ada))))
    for stream in streams:
        stream.cancel()


@pytest.mark.long
async def test_downloads_that_nobody_reads_give_their_places_back_when_they_are_cancelled(
    suite: Suite,
) -> None:
    suite.overrides["max_streams"] = PLACES
    await suite.serve("assets")
    ada = suite.client("ada")
    ada.options = [
        ("grpc.http2.bdp_probe", 0)
    ]  # a client that doesn't read gets a window of 64 KiB, which must not grow to megabytes
    asset = await flows.upload(ada, pictures.png(1200, 900), mime_type="image/png")
    assert asset.size_bytes > 1_000_000

    download = asset_pb2.DownloadAssetRequest(asset_id=asset.id)
    cancelled = {"method": "atelier.assets.v1.AssetService/DownloadAsset", "code": "CANCELLED"}
    before = METRICS.get_sample_value("atelier_calls_total", cancelled) or 0

    for number in (1, 2):
        unread = [flows.assets(ada).DownloadAsset(download) for _ in range(SHARE)]
        for stream in unread:
            assert (await stream.read()).head.size_bytes == asset.size_bytes
            assert (await stream.read()).chunk
        refusal = await calls.refused(
            flows.assets(ada).DownloadAsset(download), grpc.StatusCode.RESOURCE_EXHAUSTED
        )
        assert refusal.reason == "TOO_MANY_CALLS"

        for stream in unread:
            stream.cancel()
        await idle("atelier_streams_open")
        assert (
            METRICS.get_sample_value("atelier_calls_total", cancelled) == before + number * SHARE
        ), "no fault of ours"
