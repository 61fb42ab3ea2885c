"""A missing preset is made on the first request, once; one that can't be made says why."""

import asyncio
import hashlib
import itertools
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, variant_pb2
from google.rpc import error_details_pb2

from shared.main import open_storage
from tests import calls
from tests.assets import flows
from tests.shared.imaging import pictures
from tests.suite import Client, Suite, browser

READY = asset_pb2.VARIANT_STATE_READY
PENDING = asset_pb2.VARIANT_STATE_PENDING
FAILED = asset_pb2.VARIANT_STATE_FAILED
PICTURE = flows.jpeg(64, 48)


async def got(client: Client, asset_id: str, preset: str, **fields: Any) -> asset_pb2.Variant:
    request = variant_pb2.GetVariantRequest(asset_id=asset_id, preset=preset, **fields)
    variant: asset_pb2.Variant = (await flows.variants(client).GetVariant(request)).variant
    return variant


def download(client: Client, asset_id: str, preset: str, **options: Any) -> Any:
    request = asset_pb2.DownloadAssetRequest(asset_id=asset_id, variant=preset)
    return flows.assets(client).DownloadAsset(request, **options)


async def regenerate(client: Client, asset_id: str, **fields: Any) -> None:
    await flows.variants(client).RegenerateVariants(
        variant_pb2.RegenerateVariantsRequest(asset_id=asset_id, **fields)
    )


async def fetched(url: str) -> bytes:
    async with browser() as http:
        return (await http.get(url)).raise_for_status().content


async def test_asking_for_a_preset_that_is_not_made_yet_makes_it(suite: Suite, ada: Client) -> None:
    asset = await flows.made_by_a_service(
        suite, ada.subject, PICTURE, kind=asset_pb2.ASSET_KIND_GENERATED
    )
    large = await got(ada, asset.id, "large", wait=True, include_urls=True)
    assert (large.state, large.width, large.height) == (READY, 64, 48)
    assert len(await fetched(large.url)) == large.size_bytes

    again = await got(ada, asset.id, "large", wait=True)
    assert (again.sha256, again.update_time) == (
        large.sha256,
        large.update_time,
    ), "asking again makes nothing again"
    assert set(await flows.variants_of(ada, asset.id)) == {"thumb", "large"}


async def test_downloading_a_preset_that_is_not_made_yet_makes_it(
    suite: Suite, ada: Client
) -> None:
    asset = await flows.made_by_a_service(
        suite, ada.subject, PICTURE, kind=asset_pb2.ASSET_KIND_SKETCH
    )
    content = b"".join([part.chunk async for part in download(ada, asset.id, "avif")])
    assert hashlib.sha256(content).hexdigest() == (await got(ada, asset.id, "avif")).sha256


@pytest.mark.long
async def test_many_who_ask_first_at_once_start_one_run(own_suite: Suite) -> None:
    await own_suite.serve("assets")
    asset = await flows.made_by_a_service(
        own_suite, "ada", PICTURE, kind=asset_pb2.ASSET_KIND_RESULT
    )
    callers = [own_suite.client("ada") for _ in range(4)]
    asked = await asyncio.gather(*(got(client, asset.id, "small") for client in callers * 3))
    assert len({v.id for v in asked}) == 1 and {v.state for v in asked} == {PENDING}

    runs = "SELECT count(*) FROM assets.renditions WHERE presets = '{small}'"
    assert own_suite.sql(runs) == [(1,)]
    # No worker runs yet. A download says within its deadline what to do next; a wait ends with the
    # row unchanged.
    refusal = await calls.refused(
        download(callers[0], asset.id, "small", timeout=1), grpc.StatusCode.FAILED_PRECONDITION
    )
    assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.seconds > 0

    request = variant_pb2.GetVariantRequest(asset_id=asset.id, preset="small", wait=True)
    assert (
        await flows.variants(callers[0]).GetVariant(request, timeout=1)
    ).variant.state == PENDING

    await own_suite.work("assets")
    assert (await got(callers[0], asset.id, "small", wait=True)).state == READY
    assert own_suite.sql(runs) == [(1,)]


async def test_a_failed_variant_says_why_and_is_tried_again_only_if_that_may_help(
    suite: Suite, ada: Client
) -> None:
    asset = await flows.made_by_a_service(
        suite, ada.subject, PICTURE, kind=asset_pb2.ASSET_KIND_RESULT
    )
    await flows.variants_of(ada, asset.id)
    storage = open_storage(suite.settings("assets", "worker"))
    await storage.put(asset.file_path, PICTURE[: len(PICTURE) // 2], content_type="image/jpeg")
    for _ in range(2):
        small = await got(ada, asset.id, "small", wait=True)
        assert (small.state, small.error_class) == (FAILED, "CORRUPT")
        assert "damaged" in small.error_message
    await calls.refused(
        download(ada, asset.id, "small"), grpc.StatusCode.FAILED_PRECONDITION, "CORRUPT"
    )
    tries = (
        "SELECT count(*) FROM assets.attempts t JOIN assets.renditions r ON r.id = t.job_id WHERE"
        " r.asset_id = %s"
    )
    assert suite.sql(tries, (asset.id,)) == [(2,)], (
        "one for the thumbnail, one that failed for good"
    )

    await storage.delete([asset.file_path])
    assert (await got(ada, asset.id, "large", wait=True)).error_class == "ORIGINAL_GONE"
    await storage.put(asset.file_path, PICTURE, content_type="image/jpeg")
    await storage.close()
    await regenerate(ada, asset.id, only_failed=True)
    after = await flows.variants_of(ada, asset.id)
    assert after["large"].state == READY, "what can be cured is tried again"
    assert after["small"].error_class == "CORRUPT", "what the original is to blame for is left"
    assert "avif" not in after, "what never was isn't failed"
    await regenerate(ada, asset.id, presets=["small"])
    assert (await flows.variants_of(ada, asset.id))["small"].state == READY, "unless it is named"


@pytest.mark.long
async def test_others_may_have_variants_of_public_images_made_but_not_many_at_once(
    own_suite: Suite,
) -> None:
    await own_suite.serve("assets")
    ada, bob = own_suite.client("ada"), own_suite.client("bob")
    public = [
        await flows.upload(ada, flows.jpeg(64, 48, seed=n), visibility=asset_pb2.VISIBILITY_PUBLIC)
        for n in range(6)
    ]
    private = await flows.upload(ada, PICTURE)
    await own_suite.change("DELETE FROM assets.variants")
    await calls.refused(got(bob, private.id, "thumb"), grpc.StatusCode.NOT_FOUND)
    for picture, preset in itertools.product(public[:5], ("thumb", "small", "large", "avif")):
        assert (await got(bob, picture.id, preset)).state == PENDING

    refusal = await calls.refused(
        got(bob, public[5].id, "thumb"), grpc.StatusCode.RESOURCE_EXHAUSTED
    )
    assert refusal.reason == "OVERLOADED"
    assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.seconds > 0
    assert (await got(bob, public[0].id, "thumb")).state == PENDING, (
        "what was started can be asked for"
    )

    await got(ada, public[5].id, "thumb")  # others' requests don't limit the owner
    owners = "SELECT owner FROM assets.variants UNION SELECT owner FROM assets.renditions"
    assert own_suite.sql(owners) == [("user:ada",)]

    await own_suite.work("assets")
    shown = await got(bob, public[0].id, "thumb", wait=True, include_urls=True)
    assert len(await fetched(shown.url)) == shown.size_bytes


async def test_what_can_have_no_variant_says_so_when_asked_for_one(
    suite: Suite, ada: Client
) -> None:
    pdf = await flows.upload(
        ada, pictures.pdf(), kind=asset_pb2.ASSET_KIND_DOCUMENT, mime_type="application/pdf"
    )
    pending = (await flows.announce(ada, flows.jpeg(64, 48))).asset
    deleted = await flows.made_by_a_service(
        suite, ada.subject, PICTURE, kind=asset_pb2.ASSET_KIND_RESULT
    )
    await flows.variants_of(ada, deleted.id)
    await suite.change(
        "UPDATE assets.assets SET deleted_at = now(), expires_at = now() WHERE id = %s",
        (deleted.id,),
    )
    for asset, word in ((pdf, "PDF"), (pending, "pending"), (deleted, "deleted")):
        await calls.refused(got(ada, asset.id, "large"), grpc.StatusCode.FAILED_PRECONDITION, word)
    assert (await got(ada, deleted.id, "thumb", include_urls=True)).url == "", (
        "no URL of what is in the trash"
    )

    refusal = await calls.refused(
        got(ada, pdf.id, "huge"), grpc.StatusCode.INVALID_ARGUMENT, "thumb, small, large, avif"
    )
    assert refusal.fields == ["preset"]

    refusal = await calls.refused(download(ada, pdf.id, "huge"), grpc.StatusCode.INVALID_ARGUMENT)
    assert refusal.fields == ["variant"]
    await calls.refused(
        got(ada, "0190f3c0-0000-7000-8000-000000000000", "thumb"), grpc.StatusCode.NOT_FOUND
    )
