"""Owners take turns for the processes that decode pictures, however their bytes came."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from atelier.assets.v1 import resumable_pb2, upload_pb2

from services.assets.variants.make_variants import VariantMaker
from services.assets.variants.presets import Presets
from shared.database.db import Database
from shared.imaging import ImagingPool
from shared.main import open_storage
from tests.assets import flows
from tests.shared.imaging import pictures
from tests.suite import Client, Suite

HARD, SMALL = pictures.hard_png(), pictures.png()
MANY = 24
LastCall = Callable[[], Awaitable[Any]]


async def confirming(client: Client, data: bytes) -> LastCall:
    requested = await flows.announce(client, data, mime_type="image/png")
    assert (await flows.send(requested.target, data)).status_code == 204
    return lambda: flows.confirm(client, requested.upload_id)


async def completing(client: Client, data: bytes) -> LastCall:
    started = await flows.start(client, data, mime_type="image/png")
    await flows.send_parts(started.targets, data)
    request = resumable_pb2.CompleteResumableUploadRequest(upload_id=started.upload_id)
    return lambda: flows.resumable(client).CompleteResumableUpload(request)


async def streaming(client: Client, data: bytes) -> LastCall:
    head = upload_pb2.UploadHead(
        request_id=flows.request_id(), declaration=flows.declaration(data, mime_type="image/png")
    )
    return lambda: flows.stream_upload(client, head, data[:200_000], data[200_000:])


@pytest.mark.long
@pytest.mark.parametrize("way", [confirming, completing, streaming])
async def test_a_picture_is_ready_before_the_many_hard_ones_that_another_owner_sent_earlier(
    own_suite: Suite, way: Callable[[Client, bytes], Awaitable[LastCall]]
) -> None:
    await own_suite.serve("assets")
    ada, bob = own_suite.client("ada"), own_suite.client("bob")
    last_calls = [await way(ada, HARD) for _ in range(MANY)]
    bobs = await way(bob, SMALL)
    asked = [asyncio.ensure_future(last_call()) for last_call in last_calls]
    await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)  # the others arrived long ago
    await bobs()
    served = [
        each for each in asked if each.done() and not each.exception()
    ]  # the others were told to retry
    assert len(served) < 8

    for each in asked:
        each.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.long
async def test_jobs_take_turns_as_their_rows_owners(own_suite: Suite) -> None:
    await own_suite.serve("assets")
    ada, bob = own_suite.client("ada"), own_suite.client("bob")
    hard = flows.jpeg(2000, 1500)
    for _ in range(8):
        await flows.upload(ada, hard)
    await flows.upload(bob, flows.jpeg(64, 48))
    jobs = own_suite.sql("SELECT id::text FROM assets.renditions ORDER BY owner, id")
    settings = own_suite.settings("assets", "worker")
    db, storage, pool = Database(settings, "assets"), open_storage(settings), ImagingPool(1)
    await db.open()

    try:
        maker = VariantMaker(db, storage, pool, Presets.of(settings))
        adas = [asyncio.create_task(maker.run(job)) for (job,) in jobs[:-1]]
        while own_suite.sql("SELECT count(*) FROM assets.attempts") != [(len(adas),)]:
            await asyncio.sleep(0.01)
        await maker.run(*jobs[-1])
        assert sum(each.done() for each in adas) < 4
        await asyncio.gather(*adas)
    finally:
        await pool.close()
        await storage.close()
        await db.close()
