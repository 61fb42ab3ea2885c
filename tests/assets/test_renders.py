"""Renders record what made them; before and after are compared by reference, and shown in one
picture."""

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pyvips
from atelier.assets.v1 import asset_pb2, render_pb2, render_pb2_grpc, variant_pb2

from services.assets.comparisons.side_by_side import compose
from tests import calls
from tests.assets import flows, storage
from tests.shared.imaging import pictures
from tests.suite import Client, Suite, browser

CODE = grpc.StatusCode
READY = render_pb2.COMPARISON_STATE_READY
MADE = {"prompt": "The kitchen with oak fronts", "model": "painter", "model_version": "2.1"}


def stub(client: Client) -> Any:
    return client.stub(render_pb2_grpc.ComparisonServiceStub)


async def compare(client: Client, before: str, after: str, **fields: Any) -> render_pb2.Comparison:
    request = render_pb2.CreateComparisonRequest(
        before_asset_id=before, after_asset_id=after, **{"wait": True, **fields}
    )
    comparison: render_pb2.Comparison = (
        await stub(client).CreateComparison(request, timeout=60)
    ).comparison
    return comparison


async def get(client: Client, comparison_id: str) -> render_pb2.Comparison:
    request = render_pb2.GetComparisonRequest(comparison_id=comparison_id, include_urls=True)
    comparison: render_pb2.Comparison = (await stub(client).GetComparison(request)).comparison
    return comparison


async def render(client: Client, **provenance: str) -> asset_pb2.Asset:
    made = asset_pb2.Provenance(**{**MADE, **provenance})
    return await flows.upload(
        client, flows.jpeg(320, 200, 2), kind=asset_pb2.ASSET_KIND_RENDER, provenance=made
    )


async def photo(client: Client, width: int = 320, height: int = 200) -> str:
    return str(
        (await flows.upload(client, flows.jpeg(width, height), kind=asset_pb2.ASSET_KIND_PHOTO)).id
    )


def holders(suite: Suite, asset_id: str) -> list[str]:
    return [
        h
        for (h,) in suite.sql(
            "SELECT holder FROM assets.asset_references WHERE asset_id = %s", (asset_id,)
        )
    ]


async def test_an_operator_brings_a_render_in_for_an_owner_with_what_made_it(
    suite: Suite, ada: Client
) -> None:
    operator = suite.client("ops", "admin", owner=f"user:{ada.subject}")
    made = await render(operator)
    seen = await flows.get(ada, made.id)
    assert (seen.kind, seen.owner, seen.created_by) == (
        asset_pb2.ASSET_KIND_RENDER,
        f"user:{ada.subject}",
        "ops",
    )
    assert {name: getattr(seen.provenance, name) for name in MADE} == MADE
    for name in MADE:
        refusal = await calls.refused(render(operator, **{name: ""}), CODE.INVALID_ARGUMENT)
        assert refusal.fields == [f"declaration.provenance.{name}"]

    refusal = await calls.refused(render(ada), CODE.PERMISSION_DENIED)
    assert refusal.reason == "ROLE_NOT_ALLOWED"


async def test_before_and_after_are_held_and_shown_in_one_picture(
    suite: Suite, ada: Client
) -> None:
    before = await photo(ada)
    after = (await render(suite.client("ops", "admin", owner=f"user:{ada.subject}"))).id
    made = await compare(
        ada, before, after, note="Oak it is", session_id="s", room_id="r", include_urls=True
    )
    assert (made.state, made.error_message) == (READY, "")
    assert (made.before_asset_id, made.after_asset_id, made.note) == (before, after, "Oak it is")

    asset = await flows.get(ada, made.picture_asset_id, include_urls=True)
    assert (asset.kind, asset.state) == (asset_pb2.ASSET_KIND_RENDER, asset_pb2.ASSET_STATE_READY)
    assert (asset.scope.session_id, asset.scope.room_id) == ("s", "r")
    assert list(asset.provenance.source_asset_ids) == [before, after]
    assert asset.facts.placeholder and asset.width > 2 * asset.height
    for asset_id in (before, after, asset.id):
        assert holders(suite, asset_id) == [f"assets/comparisons/{made.id}"]
    async with browser() as http:
        for url in (made.before_url, made.after_url, made.picture_url):
            assert (await http.get(url)).status_code == 200

    variants = await flows.variants_of(ada, asset.id)
    assert {name: v.state for name, v in variants.items()} == {
        "thumb": asset_pb2.VARIANT_STATE_READY
    }


@pytest.mark.long
async def test_deleting_gives_the_pictures_back_and_trashes_only_its_own(
    suite: Suite, ada: Client
) -> None:
    before, after = await photo(ada), await photo(ada, 200, 320)
    made, other = await compare(ada, before, after), await compare(ada, after, before)
    await stub(ada).DeleteComparison(render_pb2.DeleteComparisonRequest(comparison_id=made.id))
    await calls.refused(get(ada, made.id), CODE.NOT_FOUND)

    again = stub(ada).DeleteComparison(render_pb2.DeleteComparisonRequest(comparison_id=made.id))
    await calls.refused(again, CODE.NOT_FOUND)
    assert holders(suite, before) == holders(suite, after) == [f"assets/comparisons/{other.id}"]

    trashed = await flows.get(ada, made.picture_asset_id, include_urls=True)
    assert trashed.HasField("expire_time") and not trashed.original_url
    assert (await get(ada, other.id)).picture_url

    told = "SELECT subject_id::text, type FROM assets.events WHERE subject = 'purged_comparison'"
    assert (made.id, "atelier.assets.v1.PurgedComparison") in suite.sql(told)


@pytest.mark.long
async def test_a_published_picture_is_nobody_elses_once_its_comparison_is_deleted(
    suite: Suite, ada: Client
) -> None:
    made = await compare(ada, await photo(ada), await photo(ada, 200, 320))
    await flows.variants_of(ada, made.picture_asset_id)
    await flows.update(ada, made.picture_asset_id, visibility=asset_pb2.VISIBILITY_PUBLIC)
    public = (await flows.get(ada, made.picture_asset_id, include_urls=True)).original_url
    await stub(ada).DeleteComparison(render_pb2.DeleteComparisonRequest(comparison_id=made.id))

    trashed = await flows.get(ada, made.picture_asset_id)
    assert trashed.HasField("delete_time") and trashed.visibility == asset_pb2.VISIBILITY_PRIVATE
    async with browser() as http:
        assert (await http.get(public)).status_code == 404
        await flows.assets(ada).UndeleteAsset(asset_pb2.UndeleteAssetRequest(asset_id=trashed.id))
        again = await flows.get(ada, trashed.id, include_urls=True)
        assert again.visibility == asset_pb2.VISIBILITY_PUBLIC and again.original_url != public
        assert (await http.get(again.original_url)).status_code == 200


async def test_a_comparison_whose_picture_does_not_fit_the_quota_is_refused_or_fails(
    suite: Suite, ada: Client, caller: Callable[..., Client]
) -> None:
    before, after = await photo(ada), await photo(ada, 200, 320)
    await flows.variants_of(ada, before), await flows.variants_of(ada, after)
    used = (await storage.report(ada)).stored_bytes
    await storage.set_quota(caller("admin"), f"user:{ada.subject}", stored_bytes=used + 100)
    made = await compare(ada, before, after)
    assert (made.state, made.error_class) == (render_pb2.COMPARISON_STATE_FAILED, "QUOTA_EXCEEDED")

    await storage.set_quota(caller("admin"), f"user:{ada.subject}", assets=2)
    refusal = await calls.refused(compare(ada, before, after), CODE.RESOURCE_EXHAUSTED)
    assert refusal.reason == "QUOTA_EXCEEDED"
    assert (await storage.report(ada)).stored_bytes == used


async def test_lists_by_session_room_and_asset(ada: Client, caller: Callable[..., Client]) -> None:
    one, two, three = await photo(ada), await photo(ada, 64, 64), await photo(ada, 64, 32)
    await compare(ada, one, two, session_id="s", room_id="a", note="1", wait=False)
    await compare(ada, two, three, session_id="s", room_id="b", note="2", wait=False)
    await compare(ada, three, one, session_id="t", note="3", wait=False)

    async def listed(client: Client, **fields: Any) -> list[str]:
        found, token = [], ""
        while True:
            request = render_pb2.ListComparisonsRequest(page_size=1, page_token=token, **fields)
            answer = await stub(client).ListComparisons(request)
            found += [each.note for each in answer.comparisons]
            if not (token := answer.next_page_token):
                return found

    assert await listed(ada) == ["3", "2", "1"]
    assert await listed(ada, session_id="s") == ["2", "1"]
    assert await listed(ada, room_id="a") == ["1"]
    assert await listed(ada, asset_id=one) == ["3", "1"]
    assert await listed(caller()) == []


async def test_what_cannot_be_compared_is_refused(
    suite: Suite, ada: Client, caller: Callable[..., Client]
) -> None:
    mine = await photo(ada)
    pdf = await flows.upload(
        ada, pictures.pdf(), kind=asset_pb2.ASSET_KIND_DOCUMENT, mime_type="application/pdf"
    )
    pending = (await flows.announce(ada, flows.jpeg(64, 48))).asset
    foreign = await photo(caller())

    for other, code in (
        (mine, CODE.INVALID_ARGUMENT),
        (mine.upper(), CODE.INVALID_ARGUMENT),
        (pdf.id, CODE.INVALID_ARGUMENT),
        (pending.id, CODE.FAILED_PRECONDITION),
        (foreign, CODE.NOT_FOUND),
    ):
        await calls.refused(compare(ada, mine, other), code)
    assert holders(suite, mine) == []


@pytest.mark.long
async def test_a_public_picture_of_another_owner_can_be_compared(
    ada: Client, caller: Callable[..., Client]
) -> None:
    public = await flows.upload(
        caller(), flows.jpeg(64, 48), visibility=asset_pb2.VISIBILITY_PUBLIC
    )
    assert (await compare(ada, await photo(ada), public.id)).state == READY


async def test_a_picture_that_is_gone_fails_with_a_reason(suite: Suite, ada: Client) -> None:
    before, after = await photo(ada), await photo(ada, 64, 64)
    for path in suite.storage.root.rglob(f"{after}/original/*"):
        path.unlink()
    made = await compare(ada, before, after)
    assert (made.state, made.error_class) == (render_pb2.COMPARISON_STATE_FAILED, "ORIGINAL_GONE")
    assert made.error_message and not made.picture_asset_id


@pytest.mark.long
async def test_a_comparison_whose_worker_was_stopped_is_made_once(own_suite: Suite) -> None:
    await own_suite.serve("assets")
    ada = own_suite.client()
    before, after = await photo(ada, 800, 600), await photo(ada, 600, 800)
    made = [await compare(ada, before, after, wait=False) for _ in range(2)]
    await own_suite.work("assets")

    async with asyncio.timeout(20):
        while not own_suite.sql("SELECT 1 FROM assets.comparisons WHERE state = 'processing'"):
            await asyncio.sleep(0.01)

    await own_suite.stop_work("assets")
    await own_suite.work("assets")
    async with asyncio.timeout(40):
        while own_suite.sql("SELECT 1 FROM assets.comparisons WHERE state <> 'ready'"):
            await asyncio.sleep(0.05)
    [(renders,)] = own_suite.sql("SELECT count(*) FROM assets.assets WHERE kind = 'render'")
    assert renders == len(made)

    ids = {(await get(ada, each.id)).picture_asset_id for each in made}
    assert len(ids) == len(made)
    for asset_id in ids:
        assert (
            len([p for p in own_suite.storage.root.rglob(f"{asset_id}/original/*") if p.is_file()])
            == 1
        )
        request = variant_pb2.ListVariantsRequest(asset_id=asset_id)
        assert len((await flows.variants(ada).ListVariants(request)).variants) == 1


# The comparison picture


def flat(path: Path, width: int, height: int, *colour: int, **options: Any) -> Path:
    image = pictures.plain(width, height, *colour)
    if orientation := options.get("orientation"):
        image = image.copy()
        image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    image.write_to_file(str(path))
    return path


def composed(
    tmp_path: Path, before: tuple[int, int], after: tuple[int, int], **options: Any
) -> Any:
    """Composes red before and blue after."""
    first = flat(tmp_path / "a.jpg", *before, 200, 0, 0, **options)
    second = flat(tmp_path / "b.png", *after, 0, 0, 200)
    compose(first, second, tmp_path / "c.jpg")
    return pyvips.Image.new_from_buffer((tmp_path / "c.jpg").read_bytes(), "")


def colour_at(image: Any, x: float, y: float) -> str:
    red, green, blue = image(int(x * image.width), int(y * image.height))
    if min(red, green, blue) > 225:
        return "light"
    return "red" if red > 150 and blue < 60 else "blue" if blue > 150 and red < 60 else "dark"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((640, 480), (640, 480)),
        ((640, 480), (480, 640)),
        ((4000, 300), (640, 480)),
        ((300, 4000), (4000, 300)),
        ((2, 2), (3000, 2000)),
        ((1, 600), (600, 1)),
        ((3200, 2400), (3200, 2400)),
    ],
)
def test_both_pictures_are_whole_at_one_height_whatever_their_shapes(
    tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    image = composed(tmp_path, before, after)
    assert 480 <= image.height <= 1700 and image.width <= 6700
    assert len(io.BytesIO((tmp_path / "c.jpg").read_bytes()).getvalue()) < 10 * 1024 * 1024
    across = [colour_at(image, (n + 0.5) / 200, 0.5) for n in range(200)]
    assert "red" in across or before[0] == 1
    assert "blue" in across or after[1] == 1
    reds, blues = ([n for n, c in enumerate(across) if c == name] for name in ("red", "blue"))
    assert not reds or not blues or max(reds) < min(blues)


def test_the_first_is_turned_upright(tmp_path: Path) -> None:
    (tmp_path / "turned").mkdir()  # libvips caches files by their names
    upright = composed(tmp_path, (600, 300), (400, 400))
    turned = composed(tmp_path / "turned", (600, 300), (400, 400), orientation=6)
    assert upright.width / upright.height > turned.width / turned.height


def test_each_is_named_in_its_corner(tmp_path: Path) -> None:
    image = composed(tmp_path, (1600, 1200), (1600, 1200))
    for left in (0, image.width / 2):
        corner = image.crop(
            int(left) + image.height // 20, image.height // 20, image.width // 6, image.height // 20
        )
        assert corner.max() > 240  # letters
    assert colour_at(image, 0.25, 0.5) == "red" and colour_at(image, 0.75, 0.5) == "blue"
