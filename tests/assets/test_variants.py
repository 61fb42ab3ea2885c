"""Smaller forms of an image are made in the background, and again on request."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import pyvips
import structlog
from atelier.assets.v1 import asset_pb2, variant_pb2

from services.assets.variants.make_variants import VariantMaker
from services.assets.variants.presets import Presets
from shared.database.db import Database
from shared.imaging import ImagingPool
from shared.main import open_storage
from shared.settings import load
from tests import calls
from tests.assets import flows
from tests.shared.imaging import pictures
from tests.suite import Client, Suite, browser

PRESETS = {
    "thumb": (256, "image/webp"),
    "small": (800, "image/webp"),
    "large": (1600, "image/webp"),
    "avif": (800, "image/avif"),
}
READY = asset_pb2.VARIANT_STATE_READY
PICTURE = flows.jpeg(64, 48)


async def regenerate(
    client: Client, asset_id: str, *presets: str, request_id: str = ""
) -> list[asset_pb2.Variant]:
    request = variant_pb2.RegenerateVariantsRequest(
        asset_id=asset_id, presets=presets, request_id=request_id
    )
    return list((await flows.variants(client).RegenerateVariants(request)).variants)


async def fetched(url: str) -> Any:
    async with browser() as http:
        answer = await http.get(url)
        answer.raise_for_status()
        return answer


async def test_each_preset_has_its_size_and_format_and_says_the_truth_about_itself(
    suite: Suite, ada: Client
) -> None:
    asset = await flows.upload(ada, flows.jpeg(2400, 1200))
    variants = await flows.variants_of(ada, asset.id)
    assert variants.keys() == PRESETS.keys()
    for name, (longest, mime_type) in PRESETS.items():
        variant = variants[name]
        assert (variant.state, variant.mime_type) == (READY, mime_type)
        answer = await fetched(variant.url)
        assert answer.headers["content-type"] == mime_type
        assert (len(answer.content), hashlib.sha256(answer.content).hexdigest()) == (
            variant.size_bytes,
            variant.sha256,
        )

        picture = pyvips.Image.new_from_buffer(answer.content, "")
        assert (
            (picture.width, picture.height)
            == (variant.width, variant.height)
            == (longest, longest // 2)
        )


async def test_a_picture_is_never_enlarged(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, flows.jpeg(100, 50))
    variants = await flows.variants_of(ada, asset.id)
    assert {(v.width, v.height) for v in variants.values()} == {(100, 50)}


async def test_it_is_turned_upright_and_loses_what_the_camera_knew(
    suite: Suite, ada: Client
) -> None:
    picture = pictures.quadrants(200, 100).copy()
    picture.set_type(pyvips.GValue.gint_type, "orientation", 6)
    picture.set_type(pyvips.GValue.gstr_type, "exif-ifd0-Artist", "canary-artist")
    data = bytes(picture.jpegsave_buffer(Q=95))
    assert b"canary-artist" in data

    asset = await flows.upload(ada, data)
    assert (asset.width, asset.height) == (100, 200)
    for variant in (await flows.variants_of(ada, asset.id)).values():
        content = (await fetched(variant.url)).content
        assert (variant.width, variant.height) == (100, 200)
        assert b"canary-artist" not in content


async def test_the_thumbnail_has_a_url_of_its_own(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, flows.jpeg(64, 48))
    await flows.variants_of(ada, asset.id)
    shown = await flows.get(ada, asset.id, include_urls=True)
    assert (await fetched(shown.thumbnail_url)).headers["content-type"] == "image/webp"
    assert not (await flows.get(ada, asset.id)).thumbnail_url


async def test_urls_come_only_when_asked_for_and_only_for_ready_ones(
    suite: Suite, ada: Client
) -> None:
    asset = await flows.upload(ada, flows.jpeg(64, 48))
    await flows.variants_of(ada, asset.id)
    answer = await flows.variants(ada).ListVariants(
        variant_pb2.ListVariantsRequest(asset_id=asset.id)
    )
    assert [v.preset for v in answer.variants] == sorted(PRESETS)
    assert {v.url for v in answer.variants} == {""}

    pending = await flows.announce(ada, flows.jpeg(64, 48))
    answer = await flows.variants(ada).ListVariants(
        variant_pb2.ListVariantsRequest(asset_id=pending.asset.id)
    )
    assert list(answer.variants) == []


async def test_making_them_again_replaces_the_files_and_keeps_the_ids(
    suite: Suite, ada: Client
) -> None:
    asset = await flows.upload(ada, flows.jpeg(64, 48))
    before = await flows.variants_of(ada, asset.id)
    asked = {v.preset: v for v in await regenerate(ada, asset.id, "thumb", "avif")}
    assert {name for name, v in asked.items() if v.state == asset_pb2.VARIANT_STATE_PENDING} == {
        "thumb",
        "avif",
    }

    after = await flows.variants_of(ada, asset.id)
    assert {name: v.id for name, v in after.items()} == {name: v.id for name, v in before.items()}
    folder = next(suite.storage.root.rglob(f"{asset.id}/variants"))
    assert len(list(folder.iterdir())) == 4, "the replaced files are gone"
    for variant in after.values():
        assert (await fetched(variant.url)).status_code == 200
    assert (await flows.get(ada, asset.id, include_urls=True)).thumbnail_url


async def test_asking_while_they_are_made_starts_no_second_run(own_suite: Suite) -> None:
    await own_suite.serve("assets")  # no worker yet
    ada = own_suite.client("ada")
    asset = await flows.upload(ada, flows.jpeg(64, 48))
    for answer in await asyncio.gather(*(regenerate(ada, asset.id) for _ in range(8))):
        assert {v.state for v in answer} == {asset_pb2.VARIANT_STATE_PENDING}
    assert own_suite.sql("SELECT count(*) FROM assets.renditions") == [(1,)]
    assert own_suite.sql("SELECT count(*) FROM assets_jobs.procrastinate_jobs") == [(1,)]

    await own_suite.work("assets")
    await flows.variants_of(ada, asset.id)
    assert own_suite.sql(
        "SELECT outcome, number, input_bytes > 0, output_bytes > 0 FROM assets.attempts"
    ) == [("succeeded", 1, True, True)]


async def test_what_can_have_no_variants_says_so(suite: Suite, ada: Client) -> None:
    pdf = await flows.upload(
        ada, pictures.pdf(), kind=asset_pb2.ASSET_KIND_DOCUMENT, mime_type="application/pdf"
    )
    pending = (await flows.announce(ada, flows.jpeg(64, 48))).asset

    for asset, word in ((pdf, "PDF"), (pending, "pending")):
        await calls.refused(regenerate(ada, asset.id), grpc.StatusCode.FAILED_PRECONDITION, word)


@pytest.mark.parametrize(
    ("presets", "path"),
    [
        (["huge"], "presets[0]"),
        (["thumb", "Thumb"], "presets[1]"),
        (["thumb", "thumb"], "presets"),
        ([""], "presets[0]"),
        (["x" * 41], "presets[0]"),
        ([f"p{n}" for n in range(21)], "presets"),
    ],
)
async def test_unknown_presets_are_refused(
    suite: Suite, ada: Client, presets: list[str], path: str
) -> None:
    asset = await flows.upload(ada, flows.jpeg(64, 48))
    refusal = await calls.refused(
        regenerate(ada, asset.id, *presets), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.fields == [path]


async def test_an_original_that_is_gone_fails_its_variants_with_a_reason(
    suite: Suite, ada: Client
) -> None:
    asset = await flows.upload(ada, flows.jpeg(64, 48))
    await flows.variants_of(ada, asset.id)
    (suite.storage.root / "objects").exists()
    for path in suite.storage.root.rglob(f"{asset.id}/original/*"):
        path.unlink()
    await regenerate(ada, asset.id, "thumb")

    thumb = (await flows.variants_of(ada, asset.id))["thumb"]
    assert (thumb.state, thumb.error_class) == (asset_pb2.VARIANT_STATE_FAILED, "ORIGINAL_GONE")
    assert thumb.error_message and not thumb.url


@pytest.mark.long
async def test_a_job_whose_worker_was_stopped_is_done_by_the_next(own_suite: Suite) -> None:
    await own_suite.serve("assets")
    ada = own_suite.client("ada")
    made = [await flows.upload(ada, flows.jpeg(1200, 900, seed=n)) for n in range(4)]
    await own_suite.work("assets")
    running = "SELECT count(*) FROM assets.renditions WHERE state = 'running'"
    async with asyncio.timeout(20):
        while not own_suite.sql(running)[0][0]:
            await asyncio.sleep(0.01)
    await own_suite.stop_work("assets")

    await own_suite.work("assets")
    for asset in made:
        assert {v.state for v in (await flows.variants_of(ada, asset.id)).values()} == {READY}
    assert own_suite.sql("SELECT count(*) FROM assets.attempts WHERE outcome = 'running'") == [(0,)]


async def test_a_purge_between_claim_and_fetch_ends_the_job_quietly(own_suite: Suite) -> None:
    await own_suite.serve("assets")
    await flows.upload(own_suite.client("ada"), PICTURE)
    [(rendition,)] = own_suite.sql("SELECT id::text FROM assets.renditions")
    settings = own_suite.settings("assets", "worker")
    db, storage, pool = Database(settings, "assets"), open_storage(settings), ImagingPool(1)
    await db.open()
    begun = db.transaction

    @asynccontextmanager
    async def transaction(owner: str, actor: str = "atelier") -> AsyncIterator[Any]:
        if own_suite.sql("SELECT 1 FROM assets.renditions WHERE state = 'running'"):
            await own_suite.change("DELETE FROM assets.assets")
        async with begun(owner, actor) as m:
            yield m

    db.transaction = transaction  # type: ignore[method-assign]
    try:
        with structlog.testing.capture_logs() as logged:
            await VariantMaker(db, storage, pool, Presets.of(settings)).run(rendition)
    finally:
        await pool.close()
        await storage.close()
        await db.close()
    assert own_suite.sql("SELECT count(*) FROM assets.renditions") == [(0,)]
    assert [line for line in logged if line["log_level"] == "error"] == []


@pytest.mark.long
async def test_what_people_upload_gets_all_presets_at_once_and_what_a_service_made_a_thumbnail(
    suite: Suite, ada: Client
) -> None:
    for uploaded in (
        asset_pb2.ASSET_KIND_PHOTO,
        asset_pb2.ASSET_KIND_CLOTH,
        asset_pb2.ASSET_KIND_LOGO,
    ):
        asset = await flows.upload(ada, PICTURE, kind=uploaded)
        assert set(await flows.variants_of(ada, asset.id)) == set(PRESETS)

    for name in ("RESULT", "GENERATED", "CLOSEUP", "SKETCH", "EXPORT", "RENDER"):
        kind: Any = asset_pb2.AssetKind.Value(f"ASSET_KIND_{name}")
        asset = await flows.made_by_a_service(suite, ada.subject, PICTURE, kind=kind)
        assert set(await flows.variants_of(ada, asset.id)) == {"thumb"}, name


@pytest.mark.long
async def test_an_operator_adds_and_changes_presets_and_says_which_are_made_at_once(
    own_suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoom = {"name": "zoom", "width": 90, "height": 40, "format": "jpeg", "quality": 60}
    monkeypatch.setenv(
        "ATELIER_VARIANT_PRESETS", json.dumps([zoom, {"name": "small", "width": 50, "height": 50}])
    )
    monkeypatch.setenv(
        "ATELIER_ASSETS_EAGER_VARIANTS", json.dumps({"photo": ["zoom", "small"], "reference": []})
    )
    await own_suite.serve("assets")
    await own_suite.work("assets")
    ada = own_suite.client("ada")
    photo = await flows.upload(ada, flows.jpeg(200, 100), kind=asset_pb2.ASSET_KIND_PHOTO)
    made = await flows.variants_of(ada, photo.id)
    assert {name: (v.mime_type, v.width, v.height) for name, v in made.items()} == {
        "zoom": ("image/jpeg", 80, 40),
        "small": ("image/webp", 50, 25),
    }

    reference = await flows.upload(ada, PICTURE, kind=asset_pb2.ASSET_KIND_REFERENCE)
    answer = await flows.variants(ada).ListVariants(
        variant_pb2.ListVariantsRequest(asset_id=reference.id)
    )
    assert not answer.variants

    product = await flows.upload(ada, PICTURE)
    assert set(await flows.variants_of(ada, product.id)) == set(PRESETS), (
        "kinds that aren't named keep the usual ones"
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("VARIANT_PRESETS", '[{"name": "Big", "width": 9, "height": 9}]', "name"),
        ("VARIANT_PRESETS", '[{"name": "big", "width": 99999, "height": 9}]', "width"),
        (
            "VARIANT_PRESETS",
            '[{"name": "big", "width": 9, "height": 9, "format": "svg"}]',
            "format",
        ),
        ("EAGER_VARIANTS", '{"photos": ["thumb"]}', "no kind 'photos'"),
        ("EAGER_VARIANTS", '{"photo": ["huge"]}', "'huge' is not a preset"),
    ],
)
def test_a_setting_that_makes_no_sense_stops_start_up_and_says_why(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"ATELIER_{name}", value)
    with pytest.raises(ValueError, match=said):
        Presets.of(load("assets"))
