"""Archive and trash hide assets and bring them back, purge doesn't, and an asset in use is not
deleted."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, resumable_pb2, upload_pb2
from google.rpc import error_details_pb2

from tests import calls
from tests.assets import flows
from tests.assets.test_references import acquire, release
from tests.suite import Client, Suite, browser

DATA = flows.jpeg(64, 48)
PUBLIC, PRIVATE = asset_pb2.VISIBILITY_PUBLIC, asset_pb2.VISIBILITY_PRIVATE


async def ask(client: Client, method: str, asset_id: str, **fields: Any) -> Any:
    request = getattr(asset_pb2, f"{method}AssetRequest")(asset_id=asset_id, **fields)
    return await getattr(flows.assets(client), f"{method}Asset")(request)


async def listed(client: Client, **fields: Any) -> list[str]:
    return [
        asset.id
        for asset in (
            await flows.assets(client).ListAssets(asset_pb2.ListAssetsRequest(**fields))
        ).assets
    ]


async def status_of(url: str) -> int:
    async with browser() as http:
        return (await http.get(url)).status_code


def stored(suite: Suite, asset_id: str) -> set[str]:
    """Returns the keys of all objects of the asset."""
    data = suite.storage.root / "data"
    return {
        str(path.relative_to(data)) for path in data.glob(f"**/{asset_id}/**/*") if path.is_file()
    }


async def freed(suite: Suite, asset_id: str) -> None:
    """Returns once no object of the asset is left."""
    async with asyncio.timeout(20):
        while True:
            with suppress(FileNotFoundError):  # a folder is removed while it is read
                if not stored(suite, asset_id):
                    return
            await asyncio.sleep(0.05)


def in_product(product_id: str, **fields: Any) -> dict[str, Any]:
    return {"scope": asset_pb2.AssetScope(product_id=product_id), **fields}


async def test_archived_is_hidden_from_lists_and_otherwise_as_before(
    suite: Suite, ada: Client
) -> None:
    asset = await flows.upload(ada, DATA)
    other = await flows.upload(ada, DATA)
    archived = (await ask(ada, "Archive", asset.id)).asset
    assert archived.HasField("archive_time")
    assert await listed(ada) == [other.id]
    assert await listed(ada, show_archived=True) == [other.id, asset.id]
    assert (await flows.get(ada, asset.id, include_urls=True)).original_url

    await acquire(ada, "h", asset.id)
    assert (await ask(ada, "Archive", asset.id)).asset == archived
    shown = (await ask(ada, "Unarchive", asset.id, etag=archived.etag)).asset
    assert not shown.HasField("archive_time")
    assert await listed(ada) == [other.id, asset.id]


async def test_deleted_is_recoverable_and_as_before_once_recovered(
    suite: Suite, ada: Client
) -> None:
    asset = await flows.upload(ada, DATA)
    await flows.variants_of(ada, asset.id)
    before = stored(suite, asset.id)
    await ask(ada, "Archive", asset.id)
    deleted = (await ask(ada, "Delete", asset.id)).asset
    assert (deleted.expire_time.seconds - deleted.delete_time.seconds) == 30 * 24 * 3600
    assert await listed(ada, show_archived=True) == []
    assert await listed(ada, show_archived=True, show_deleted=True) == [asset.id]
    assert not (await flows.get(ada, asset.id, include_urls=True)).original_url
    assert (await ask(ada, "Delete", asset.id)).asset == deleted

    back = (await ask(ada, "Undelete", asset.id)).asset
    assert (
        back.HasField("archive_time")
        and not back.HasField("delete_time")
        and not back.HasField("expire_time")
    )
    assert (await ask(ada, "Undelete", asset.id)).asset == back
    assert stored(suite, asset.id) == before


async def test_nothing_new_is_done_with_a_deleted_asset(ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    await ask(ada, "Delete", asset.id)

    for call in (
        acquire(ada, "h", asset.id),
        flows.update(ada, asset.id, tags=["a"]),
        ask(ada, "Archive", asset.id),
        ask(ada, "Unarchive", asset.id),
        flows.assets(ada).DownloadAsset(asset_pb2.DownloadAssetRequest(asset_id=asset.id)),
    ):
        refusal = await calls.refused(
            call, grpc.StatusCode.FAILED_PRECONDITION, "undelete it first"
        )
        assert refusal.reason == "WRONG_STATE"


async def test_a_file_that_comes_for_a_deleted_asset_waits_until_it_is_undeleted(
    suite: Suite, ada: Client
) -> None:
    pending = await flows.announce(ada, DATA, **in_product("jacket"))
    await flows.send(pending.target, DATA)
    started = await flows.start(ada, DATA)
    await flows.send_parts(started.targets, DATA)
    for asset_id in (pending.asset.id, started.asset.id):
        await ask(ada, "Delete", asset_id)
    completed = resumable_pb2.CompleteResumableUploadRequest(upload_id=started.upload_id)

    for call in (
        flows.confirm(ada, pending.upload_id),
        flows.resumable(ada).CompleteResumableUpload(completed),
    ):
        refusal = await calls.refused(call, grpc.StatusCode.FAILED_PRECONDITION)
        assert refusal.reason == "WRONG_STATE"
    assert not [key for key in stored(suite, pending.asset.id) if "/original/" in key]

    for asset_id in (pending.asset.id, started.asset.id):
        await ask(ada, "Undelete", asset_id)
    assert (await flows.confirm(ada, pending.upload_id)).primary

    await flows.resumable(ada).CompleteResumableUpload(completed)
    assert set(await listed(ada)) == {pending.asset.id, started.asset.id}


async def test_past_its_time_and_not_yet_purged_it_can_still_be_undeleted(
    suite: Suite, ada: Client
) -> None:
    asset = await flows.upload(ada, DATA)
    await ask(ada, "Delete", asset.id)
    await suite.change(
        "UPDATE assets.assets SET expires_at = now() - interval '1 day' WHERE id = %s", (asset.id,)
    )
    await ask(ada, "Undelete", asset.id)
    assert await listed(ada) == [asset.id]


async def test_purge_leaves_no_row_and_no_byte(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    made = await flows.variants_of(ada, asset.id)
    total = asset.size_bytes + sum(variant.size_bytes for variant in made.values())
    purged = await ask(ada, "Purge", asset.id)
    assert purged.freed_bytes == total
    for table, column in (
        ("assets", "id"),
        ("variants", "asset_id"),
        ("uploads", "asset_id"),
        ("renditions", "asset_id"),
    ):
        assert suite.sql(
            f"SELECT count(*) FROM assets.{table} WHERE {column} = %s", (asset.id,)
        ) == [(0,)]

    await freed(suite, asset.id)
    for method in ("Purge", "Undelete", "Delete"):
        await calls.refused(ask(ada, method, asset.id), grpc.StatusCode.NOT_FOUND)
    await calls.refused(flows.get(ada, asset.id), grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize("way", ["visibility", "delete"])
async def test_a_caller_who_goes_leaves_no_copies(suite: Suite, ada: Client, way: str) -> None:
    asset = await flows.upload(ada, DATA, visibility=PUBLIC)
    await flows.variants_of(ada, asset.id)
    before = stored(suite, asset.id)

    with calls.holding(suite, "SELECT 1 FROM assets.assets WHERE id = %s FOR UPDATE", (asset.id,)):
        if way == "delete":
            call = flows.assets(ada).DeleteAsset(
                asset_pb2.DeleteAssetRequest(asset_id=asset.id), timeout=0.5
            )
        else:
            request = asset_pb2.UpdateAssetRequest(
                asset_id=asset.id, update_mask={"paths": ["visibility"]}, visibility=PRIVATE
            )
            call = flows.assets(ada).UpdateAsset(request, timeout=0.5)

        await calls.refused(call, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert len(stored(suite, asset.id)) == 2 * len(before)

    async with asyncio.timeout(10):
        while stored(suite, asset.id) != before:
            await asyncio.sleep(0.1)
    assert (await flows.get(ada, asset.id)).visibility == PUBLIC


async def test_a_public_asset_whose_bytes_are_lost_can_be_hidden_and_deleted(
    suite: Suite, ada: Client
) -> None:
    lost, whole = [await flows.upload(ada, DATA, visibility=PUBLIC) for _ in range(2)]
    await flows.variants_of(ada, lost.id), await flows.variants_of(ada, whole.id)
    (suite.storage.root / "data" / lost.file_path).unlink()
    hidden = await flows.update(ada, lost.id, visibility=asset_pb2.VISIBILITY_PRIVATE)
    assert (
        not any(key.startswith("public/") for key in stored(suite, lost.id))
        and hidden.sha256 == lost.sha256
    )

    await flows.update(ada, lost.id, visibility=PUBLIC)
    request = asset_pb2.BatchDeleteAssetsRequest(asset_ids=[lost.id, whole.id])
    results = (await flows.assets(ada).BatchDeleteAssets(request)).results
    assert [result.done for result in results] == [True, True]


async def test_an_upload_that_is_confirmed_in_the_trash_is_no_products_primary_image(
    ada: Client,
) -> None:
    product = asset_pb2.AssetScope(product_id="p")
    pending = await flows.announce(ada, DATA, scope=product)
    await flows.send(pending.target, DATA)
    await ask(ada, "Delete", pending.asset.id)

    await calls.refused(
        flows.confirm(ada, pending.upload_id),
        grpc.StatusCode.FAILED_PRECONDITION,
        "undelete it first",
    )
    assert (await flows.upload(ada, DATA, scope=product)).primary


async def test_parts_of_a_purged_upload_go_at_once_and_no_more_come(
    suite: Suite, ada: Client
) -> None:
    started = await flows.start(ada, DATA)
    [(name,)] = suite.sql(
        "SELECT multipart FROM assets.resumable_uploads WHERE id = %s", (started.upload_id,)
    )
    arrived = suite.storage.root / "incoming" / name
    await flows.send_parts(started.targets, DATA)
    assert arrived.exists()

    await ask(ada, "Purge", started.asset.id)
    async with asyncio.timeout(10):
        while arrived.exists():
            await asyncio.sleep(0.1)
    [part] = started.targets
    async with browser() as http:
        assert (
            await http.put(part.url, headers=dict(part.headers), content=DATA)
        ).status_code == 404


async def test_a_repeat_of_a_request_whose_asset_was_purged_is_not_found(
    suite: Suite, ada: Client
) -> None:
    head = upload_pb2.UploadHead(request_id=flows.request_id(), declaration=flows.declaration(DATA))
    asset = await flows.stream_upload(ada, head, DATA)
    await ask(ada, "Purge", asset.id)
    await calls.refused(flows.stream_upload(ada, head, DATA), grpc.StatusCode.NOT_FOUND)


async def test_what_was_sent_for_a_purged_upload_goes_once_its_url_has_expired(
    suite: Suite, ada: Client
) -> None:
    pending = await flows.announce(ada, DATA)
    await flows.send(pending.target, DATA)
    await ask(ada, "Purge", pending.asset.id)
    await calls.refused(flows.confirm(ada, pending.upload_id), grpc.StatusCode.NOT_FOUND)
    assert len(stored(suite, pending.asset.id)) == 1

    await suite.change(
        "UPDATE assets.doomed_objects SET due_at = now() WHERE owner = %s", (f"user:{ada.subject}",)
    )
    await freed(suite, pending.asset.id)


async def test_what_is_in_use_is_deleted_only_by_force_and_its_holder_sees_that_it_is_gone(
    ada: Client,
) -> None:
    asset = await flows.upload(ada, DATA)
    await acquire(ada, "pipeline/products/7", asset.id)
    for method in ("Delete", "Purge"):
        refusal = await calls.refused(
            ask(ada, method, asset.id), grpc.StatusCode.FAILED_PRECONDITION
        )
        assert refusal.reason == "IN_USE"
        [violation] = refusal.detail(error_details_pb2.PreconditionFailure).violations
        assert (violation.subject, violation.description) == (
            f"assets/{asset.id}",
            "used by pipeline/products/7",
        )

    await ask(ada, "Delete", asset.id, force=True)
    assert (await flows.get(ada, asset.id)).HasField("delete_time")
    assert [r.holder for r in await references(ada, asset.id)] == ["pipeline/products/7"]
    refusal = await calls.refused(ask(ada, "Purge", asset.id), grpc.StatusCode.FAILED_PRECONDITION)
    assert refusal.reason == "IN_USE"

    await ask(ada, "Purge", asset.id, force=True)
    await calls.refused(flows.get(ada, asset.id), grpc.StatusCode.NOT_FOUND)
    assert await release(ada, "pipeline/products/7") == 0


async def references(client: Client, asset_id: str, **fields: Any) -> list[asset_pb2.Reference]:
    request = asset_pb2.ListReferencesRequest(asset_id=asset_id, **fields)
    return list((await flows.assets(client).ListReferences(request)).references)


async def test_where_used_is_paged_and_names_no_other_owner(
    ada: Client, caller: Callable[..., Client]
) -> None:
    asset = await flows.upload(ada, DATA, visibility=PUBLIC)
    other = caller()
    await acquire(other, "theirs", asset.id)
    for number in range(3):
        await acquire(ada, f"h{number}", asset.id)
    seen: list[tuple[str, bool]] = []
    token = ""

    while True:
        request = asset_pb2.ListReferencesRequest(asset_id=asset.id, page_size=2, page_token=token)
        answer = await flows.assets(ada).ListReferences(request)
        seen += [(reference.holder, reference.yours) for reference in answer.references]
        token = answer.next_page_token
        if not token:
            break
    assert seen == [("h2", True), ("h1", True), ("h0", True), ("", False)]

    await calls.refused(references(other, asset.id), grpc.StatusCode.NOT_FOUND)
    await release(ada, "h0"), await release(ada, "h1"), await release(ada, "h2")
    refusal = await calls.refused(
        ask(ada, "Delete", asset.id), grpc.StatusCode.FAILED_PRECONDITION, "another owner"
    )
    assert refusal.reason == "IN_USE" and other.subject not in refusal.text


async def test_a_public_file_is_not_served_from_the_moment_it_is_deleted(
    suite: Suite, ada: Client, caller: Callable[..., Client]
) -> None:
    asset = await flows.upload(ada, DATA, visibility=PUBLIC)
    made = await flows.variants_of(ada, asset.id)
    urls = [asset.original_url, *(variant.url for variant in made.values())]
    assert {await status_of(url) for url in urls} == {200}

    deleted = (await ask(ada, "Delete", asset.id)).asset
    assert {await status_of(url) for url in urls} == {404}
    assert deleted.visibility == asset_pb2.VISIBILITY_PRIVATE
    await calls.refused(flows.get(caller(), asset.id), grpc.StatusCode.NOT_FOUND)
    assert len(stored(suite, asset.id)) == 5

    back = (await ask(ada, "Undelete", asset.id)).asset
    assert back.visibility == PUBLIC
    shown = await flows.get(caller(), asset.id, include_urls=True)
    assert (await status_of(shown.original_url), await status_of(shown.thumbnail_url)) == (200, 200)

    await ask(ada, "Purge", asset.id)
    assert await status_of(shown.original_url) == 404


async def test_a_refused_delete_leaves_a_public_file_where_it_is(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA, visibility=PUBLIC)
    await flows.variants_of(ada, asset.id)
    await acquire(ada, "h", asset.id)
    before = stored(suite, asset.id)
    refusal = await calls.refused(ask(ada, "Delete", asset.id), grpc.StatusCode.FAILED_PRECONDITION)
    assert refusal.reason == "IN_USE"

    one = await batch(ada, "Delete", asset.id)
    assert [result.reason for result in one] == ["IN_USE"]
    assert stored(suite, asset.id) == before
    assert await status_of(asset.original_url) == 200


async def test_a_deleted_primary_hands_over_to_the_oldest_that_is_left(ada: Client) -> None:
    first, second, third = [await flows.upload(ada, DATA, **in_product("jacket")) for _ in range(3)]
    assert (await flows.get(ada, first.id)).primary
    await ask(ada, "Delete", first.id)
    assert (await flows.get(ada, second.id)).primary and not (
        await flows.get(ada, third.id)
    ).primary

    await ask(ada, "Undelete", first.id)
    assert not (await flows.get(ada, first.id)).primary
    await ask(ada, "Purge", second.id)
    assert (await flows.get(ada, first.id)).primary

    await batch(ada, "Delete", first.id, third.id)
    await ask(ada, "Undelete", third.id)
    assert (await flows.get(ada, third.id)).primary


async def batch(
    client: Client, verb: str, *asset_ids: str, **fields: Any
) -> list[asset_pb2.AssetResult]:
    request = getattr(asset_pb2, f"Batch{verb}AssetsRequest")(asset_ids=asset_ids, **fields)
    return list((await getattr(flows.assets(client), f"Batch{verb}Assets")(request)).results)


@pytest.mark.long
async def test_a_batch_tells_of_each_and_one_that_cannot_go_stops_no_other(
    ada: Client, caller: Callable[..., Client]
) -> None:
    mine, used, public = [await flows.upload(ada, DATA, visibility=v) for v in (0, 0, PUBLIC)]
    foreign = await flows.upload(caller(), DATA)
    await acquire(ada, "h", used.id)
    ids = [foreign.id, used.id, mine.id, public.id]
    results = await batch(ada, "Delete", *ids, request_id="once")
    assert [(r.asset_id, r.done, r.reason) for r in results] == [
        (foreign.id, False, "NOT_FOUND"),
        (used.id, False, "IN_USE"),
        (mine.id, True, ""),
        (public.id, True, ""),
    ]
    assert [r.HasField("expire_time") for r in results] == [False, False, True, True]
    assert await status_of(public.original_url) == 404
    assert await batch(ada, "Delete", *ids, request_id="once") == results
    assert await listed(ada) == [used.id]

    back = await batch(ada, "Undelete", *ids)
    assert [(r.done, r.reason) for r in back] == [
        (False, "NOT_FOUND"),
        (True, ""),
        (True, ""),
        (True, ""),
    ]
    assert len(await listed(ada)) == 3


async def test_watchers_are_told_of_deleted_undeleted_and_purged(ada: Client) -> None:
    asset = await flows.upload(ada, DATA, kind=asset_pb2.ASSET_KIND_DOCUMENT)
    await flows.variants_of(ada, asset.id)
    stream = flows.assets(ada).WatchAssets(asset_pb2.WatchAssetsRequest(asset_ids=[asset.id]))
    while not (await stream.read()).bookmark.ready:
        pass
    await ask(ada, "Delete", asset.id)
    assert (await stream.read()).asset.HasField("delete_time")

    await ask(ada, "Undelete", asset.id)
    assert not (await stream.read()).asset.HasField("delete_time")
    await ask(ada, "Purge", asset.id)
    told = await stream.read()
    assert told.purged.asset_id == asset.id and told.purged.HasField("purge_time") and told.cursor
    stream.cancel()


@pytest.mark.long
async def test_of_using_and_deleting_at_once_one_is_refused(ada: Client) -> None:
    for _ in range(8):
        asset = await flows.upload(ada, DATA, kind=asset_pb2.ASSET_KIND_PHOTO)
        used, deleted = await asyncio.gather(
            *(outcome(call) for call in (acquire(ada, "h", asset.id), ask(ada, "Delete", asset.id)))
        )
        assert sorted((used, deleted)) == ["FAILED_PRECONDITION", "OK"], (used, deleted)


async def test_a_delete_waits_for_a_use_that_is_on_its_way(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    owner = f"user:{ada.subject}"

    with calls.holding(
        suite,
        "INSERT INTO assets.asset_references (owner, asset_id, holder) VALUES (%s, %s, 'h')",
        (owner, asset.id),
    ):
        deleting = asyncio.create_task(outcome(ask(ada, "Delete", asset.id)))
        done, _ = await asyncio.wait([deleting], timeout=0.3)
        assert not done
    assert await deleting == "OK"  # the reference was rolled back


async def outcome(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def test_an_older_etag_deletes_nothing(ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    await flows.update(ada, asset.id, tags=["changed"])
    for method in ("Delete", "Archive", "Unarchive"):
        refusal = await calls.refused(
            ask(ada, method, asset.id, etag=asset.etag), grpc.StatusCode.ABORTED
        )
        assert refusal.reason == "ETAG_MISMATCH"
    assert await listed(ada) == [asset.id]


@pytest.mark.parametrize("method", ["Archive", "Unarchive", "Delete", "Undelete", "Purge"])
async def test_another_owners_public_asset_is_theirs_alone_to_delete(
    ada: Client, caller: Callable[..., Client], method: str
) -> None:
    asset = await flows.upload(caller(), DATA, visibility=PUBLIC)
    await calls.refused(ask(ada, method, asset.id), grpc.StatusCode.NOT_FOUND)
    refusal = await calls.refused(ask(ada, method, "x"), grpc.StatusCode.INVALID_ARGUMENT)
    assert refusal.fields == ["asset_id"]


async def test_what_others_hid_is_not_shown(ada: Client) -> None:
    for name in ("show_archived", "show_deleted"):
        refusal = await calls.refused(
            listed(ada, public_of_others=True, **{name: True}), grpc.StatusCode.INVALID_ARGUMENT
        )
        assert refusal.fields == [name]
