"""What an owner states about its asset: names, labels, visibility, the primary image of a
product."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, upload_pb2
from google.rpc import error_details_pb2

from tests import calls
from tests.assets import flows
from tests.suite import Client, Suite, browser

DATA = flows.jpeg(64, 48)
PUBLIC, PRIVATE = asset_pb2.VISIBILITY_PUBLIC, asset_pb2.VISIBILITY_PRIVATE


@pytest.fixture
async def asset(ada: Client) -> asset_pb2.Asset:
    made = await flows.upload(
        ada, DATA, tags=["a"], metadata={"a": 1}, scope={"session_id": "s"}, file_name="a.jpg"
    )
    await flows.variants_of(ada, made.id)
    return made


async def status_of(url: str) -> int:
    async with browser() as http:
        return (await http.get(url)).status_code


async def test_only_what_the_mask_names_is_changed(ada: Client, asset: asset_pb2.Asset) -> None:
    request = asset_pb2.UpdateAssetRequest(
        asset_id=asset.id,
        update_mask={"paths": ["tags", "free"]},
        tags=["b", "c"],
        free=False,
        file_name="ignored.jpg",
        metadata={"ignored": True},
        visibility=PUBLIC,
    )

    changed = (await flows.assets(ada).UpdateAsset(request)).asset
    assert (list(changed.tags), changed.free) == (["b", "c"], False)
    assert (changed.file_name, dict(changed.metadata), changed.visibility) == (
        "a.jpg",
        {"a": 1},
        PRIVATE,
    )
    assert changed.etag != asset.etag and changed == await flows.get(ada, asset.id)


async def test_a_named_field_that_is_empty_is_emptied(ada: Client, asset: asset_pb2.Asset) -> None:
    request = asset_pb2.UpdateAssetRequest(
        asset_id=asset.id, update_mask={"paths": ["tags", "metadata", "scope"]}
    )
    changed = (await flows.assets(ada).UpdateAsset(request)).asset
    assert not changed.tags and not changed.HasField("metadata") and not changed.scope.session_id


async def test_an_old_etag_is_refused_and_the_new_one_is_not(
    ada: Client, asset: asset_pb2.Asset
) -> None:
    changed = await flows.update(ada, asset.id, free=False)
    refusal = await calls.refused(
        flows.update(ada, asset.id, free=True, etag=str(int(changed.etag) - 1)),
        grpc.StatusCode.ABORTED,
    )
    assert refusal.reason == "ETAG_MISMATCH"
    assert (await flows.get(ada, asset.id)).free is False
    assert (await flows.update(ada, asset.id, free=True, etag=changed.etag)).free is True


async def test_of_two_writers_with_one_etag_one_wins(ada: Client, asset: asset_pb2.Asset) -> None:
    etag = (await flows.get(ada, asset.id)).etag
    ends = await asyncio.gather(
        *(flows.update(ada, asset.id, tags=[str(n)], etag=etag) for n in range(8)),
        return_exceptions=True,
    )
    assert sum(isinstance(end, asset_pb2.Asset) for end in ends) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"a": "x" * 1_000_000}},
        {"metadata": {"a": float("nan")}},
        {"file_name": "\x00"},
        {"file_name": ""},
        {"file_name": "\u200b\ufeff\u2028"},
        {"file_name": "x" * 256},
        {"tags": [str(n) for n in range(51)]},
        {"scope": {"room_id": "x" * 129}},
        {"visibility": 9},
        {"primary": True},
    ],
)
async def test_a_change_that_breaks_a_rule_changes_nothing(
    ada: Client, asset: asset_pb2.Asset, fields: dict[str, Any]
) -> None:
    before = await flows.get(ada, asset.id)
    refusal = await calls.refused(
        flows.update(ada, asset.id, **fields), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.fields[0].startswith(next(iter(fields)))
    assert await flows.get(ada, asset.id) == before


@pytest.mark.parametrize(
    "path",
    ["owner", "kind", "state", "storage_key", "id", "scope.room_id", "*", "version = 0, owner"],
)
async def test_what_is_immutable_can_not_be_named(
    ada: Client, asset: asset_pb2.Asset, path: str
) -> None:
    request = asset_pb2.UpdateAssetRequest(asset_id=asset.id, update_mask={"paths": [path]})
    refusal = await calls.refused(
        flows.assets(ada).UpdateAsset(request), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.fields == ["update_mask"]


async def test_a_public_asset_is_read_by_everyone_at_a_url_that_stays(
    suite: Suite, ada: Client, caller: Callable[..., Client], asset: asset_pb2.Asset
) -> None:
    private = await flows.get(ada, asset.id, include_urls=True)
    assert "signature=" in private.original_url
    await flows.update(ada, asset.id, visibility=PUBLIC)

    for reader in (ada, caller(), caller("vendor"), caller("anonymous")):
        shown = await flows.get(reader, asset.id, include_urls=True)
        assert "?" not in shown.original_url and "?" not in shown.thumbnail_url
        assert (
            shown.original_url == (await flows.get(ada, asset.id, include_urls=True)).original_url
        )

    async with browser() as http:
        answer = await http.get(shown.original_url)
        assert answer.content == DATA and "immutable" in answer.headers["cache-control"]
        assert (await http.get(shown.thumbnail_url)).status_code == 200
    assert await status_of(private.original_url) in (403, 404), "the private copy is gone"
    for variant in (await flows.variants_of(caller(), asset.id)).values():
        assert await status_of(variant.url) == 200


async def test_an_asset_that_is_made_private_again_is_gone_for_everyone_else(
    suite: Suite, ada: Client, caller: Callable[..., Client], asset: asset_pb2.Asset
) -> None:
    await flows.update(ada, asset.id, visibility=PUBLIC)
    shown = await flows.get(caller(), asset.id, include_urls=True)
    variants = await flows.variants_of(caller(), asset.id)
    await flows.update(ada, asset.id, visibility=PRIVATE)
    for url in (shown.original_url, shown.thumbnail_url, *(v.url for v in variants.values())):
        assert await status_of(url) == 404

    await calls.refused(flows.get(caller(), asset.id), grpc.StatusCode.NOT_FOUND)
    mine = await flows.get(ada, asset.id, include_urls=True)
    assert await status_of(mine.original_url) == await status_of(mine.thumbnail_url) == 200


async def test_a_public_url_tells_neither_the_owner_nor_what_the_asset_belongs_to(
    suite: Suite, ada: Client
) -> None:
    scope = {
        "session_id": "visit-of-jane",
        "room_id": "bath",
        "product_id": "secret-coat",
        "dataset_id": "leads",
    }
    made = await flows.upload(ada, DATA, scope=scope)
    await flows.variants_of(ada, made.id)
    told = [made.owner.partition(":")[2], *scope.values()]
    assert all(label in made.file_path for label in told), (
        "in the store a person finds private things by them"
    )

    await flows.update(ada, made.id, visibility=PUBLIC)
    public = await flows.get(ada, made.id, include_urls=True)
    variants = await flows.variants_of(ada, made.id)
    urls = [public.original_url, public.thumbnail_url, *(v.url for v in variants.values())]
    assert not [url for url in urls for label in told if label in url]
    assert public.file_path.rpartition("/")[0] == f"public/assets/{made.id}/original"

    await flows.update(ada, made.id, visibility=PRIVATE)
    private = await flows.get(ada, made.id)
    assert private.file_path.rpartition("/")[0] == made.file_path.rpartition("/")[0]


async def test_others_do_not_get_what_a_public_asset_was_asked_for_or_made_from(
    suite: Suite, caller: Callable[..., Client]
) -> None:
    owner = f"publisher-{flows.request_id()}"
    service = suite.as_token(suite.keys.service_token("conversions", f"user:{owner}"))
    provenance = asset_pb2.Provenance(
        model="local",
        model_version="1",
        prompt="a secret coat",
        source_asset_ids=[flows.request_id()],
    )
    declared = flows.declaration(DATA, kind=asset_pb2.ASSET_KIND_RESULT, provenance=provenance)
    made = await flows.stream_upload(service, upload_pb2.UploadHead(declaration=declared), DATA)
    mine = suite.client(owner)
    await flows.variants_of(
        mine, made.id
    )  # meanwhile a change of visibility may get a refusal that asks for a repeat
    await flows.update(mine, made.id, visibility=PUBLIC)
    assert (await flows.get(mine, made.id)).provenance == provenance

    shown = await flows.get(caller(), made.id)
    assert shown.provenance == asset_pb2.Provenance(model="local", model_version="1")


async def test_others_may_read_a_public_asset_but_not_change_it(
    ada: Client, caller: Callable[..., Client], asset: asset_pb2.Asset
) -> None:
    await flows.update(ada, asset.id, visibility=PUBLIC)
    await calls.refused(
        flows.update(caller(), asset.id, file_name="mine.jpg"), grpc.StatusCode.NOT_FOUND
    )
    assert (await flows.get(ada, asset.id)).file_name == "a.jpg"


async def test_changing_visibility_to_and_fro_at_once_ends_in_one_place(
    suite: Suite, ada: Client, asset: asset_pb2.Asset
) -> None:
    wanted = [PUBLIC, PRIVATE] * 4
    ends = await asyncio.gather(
        *(flows.update(ada, asset.id, visibility=w) for w in wanted), return_exceptions=True
    )

    for end in ends:
        if isinstance(end, grpc.aio.AioRpcError):
            refused = calls.refusal_of(end)
            assert refused.code is grpc.StatusCode.ABORTED and refused.detail(
                error_details_pb2.RetryInfo
            )

    now = await flows.get(ada, asset.id, include_urls=True)
    assert now.file_path.startswith("public/") == (now.visibility == PUBLIC)
    keys = [
        now.file_path,
        *(
            key
            for (key,) in suite.sql(
                "SELECT storage_key FROM assets.variants WHERE asset_id = %s", (asset.id,)
            )
        ),
    ]
    assert {key.startswith("public/") for key in keys} == {now.visibility == PUBLIC}

    stored = [p for p in suite.storage.root.rglob(f"*{asset.id}*/**/*") if p.is_file()]
    assert len(stored) == len(keys), "no copy is left behind"
    assert await status_of(now.original_url) == 200


async def test_variants_that_are_made_after_going_public_are_public(
    ada: Client, asset: asset_pb2.Asset
) -> None:
    from atelier.assets.v1 import variant_pb2

    await flows.update(ada, asset.id, visibility=PUBLIC)
    await flows.variants(ada).RegenerateVariants(
        variant_pb2.RegenerateVariantsRequest(asset_id=asset.id)
    )
    for variant in (await flows.variants_of(ada, asset.id)).values():
        assert "/o/public/" in variant.url and await status_of(variant.url) == 200


async def test_a_repeat_of_a_change_of_visibility_is_harmless(
    ada: Client, asset: asset_pb2.Asset
) -> None:
    request_id = flows.request_id()
    await flows.update(ada, asset.id, visibility=PUBLIC, request_id=request_id)
    await flows.update(ada, asset.id, visibility=PRIVATE)
    await flows.update(ada, asset.id, visibility=PUBLIC, request_id=request_id)

    now = await flows.get(ada, asset.id, include_urls=True)
    assert (
        now.visibility == PRIVATE
        and await status_of(now.original_url) == await status_of(now.thumbnail_url) == 200
    )


@pytest.mark.long
async def test_one_image_of_a_product_is_primary(ada: Client) -> None:
    scope = {"product_id": "p"}
    first, second, third = [
        await flows.upload(ada, flows.jpeg(64, 48, seed=n), scope=scope) for n in range(3)
    ]
    assert [first.primary, second.primary, third.primary] == [True, False, False]

    async def primaries() -> list[bool]:
        return [(await flows.get(ada, a.id)).primary for a in (first, second, third)]

    await flows.update(ada, second.id, primary=True)
    assert await primaries() == [False, True, False]
    await asyncio.gather(
        *(flows.update(ada, a.id, primary=True) for a in (first, third)), return_exceptions=True
    )
    assert sum(await primaries()) == 1
    await flows.update(ada, second.id, primary=True)
    await flows.update(ada, second.id, scope={"product_id": "other"})
    assert await primaries() == [
        True,
        True,
        False,
    ], "the oldest takes its place, and it leads where it is alone"
    await flows.update(ada, second.id, scope=scope)
    assert await primaries() == [True, False, False]
    await flows.update(ada, first.id, scope={"product_id": "other"}, primary=True)
    assert await primaries() == [True, True, False]
    await flows.update(ada, first.id, scope=scope)
    assert await primaries() == [False, True, False]
    await flows.update(ada, first.id, primary=True)
    await flows.update(ada, first.id, primary=False)
    assert await primaries() == [False, False, False]


async def test_what_cannot_be_used_is_not_made_primary(ada: Client) -> None:
    scope = {"product_id": "p"}
    first, second = [
        await flows.upload(ada, flows.jpeg(64, 48, seed=n), scope=scope) for n in range(2)
    ]
    pending = await flows.announce(ada, DATA, scope=scope)
    await flows.assets(ada).ArchiveAsset(asset_pb2.ArchiveAssetRequest(asset_id=second.id))

    for asset_id in (pending.asset.id, second.id):
        refusal = await calls.refused(
            flows.update(ada, asset_id, primary=True), grpc.StatusCode.FAILED_PRECONDITION
        )
        assert refusal.reason == "WRONG_STATE"
    assert (await flows.get(ada, first.id)).primary


async def test_products_of_different_owners_share_nothing(caller: Callable[..., Client]) -> None:
    one, two = [await flows.upload(caller(), DATA, scope={"product_id": "p"}) for _ in range(2)]
    assert one.primary and two.primary
