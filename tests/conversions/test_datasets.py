"""What datasets promise: their pictures keep their order and can't be deleted meanwhile, a change
with an old etag is refused, the trash gives back what was put there, and a watch sends every
change."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import dataset_pb2 as pb

from services.conversions import holding
from tests.assets import flows as assets
from tests.calls import refused
from tests.conversions import flows
from tests.conversions.flows import datasets as stub
from tests.shared.imaging import pictures as documents
from tests.suite import Client, Suite


@pytest.fixture
async def suite(own_suite: Suite) -> Suite:
    await own_suite.serve("assets", "conversions")
    return own_suite


async def pictures(client: Client, count: int) -> list[str]:
    kind = asset_pb2.ASSET_KIND_DATASET
    made = [
        await assets.upload(client, assets.jpeg(64, 48, seed), kind=kind) for seed in range(count)
    ]
    return [asset.id for asset in made]


async def update(client: Client, dataset_id: str, etag: str = "", **fields: Any) -> pb.Dataset:
    request = pb.UpdateDatasetRequest(
        dataset_id=dataset_id, etag=etag, update_mask={"paths": list(fields)}, **fields
    )
    changed: pb.Dataset = (await stub(client).UpdateDataset(request)).dataset
    return changed


async def listed(client: Client, **filters: Any) -> list[pb.Dataset]:
    return list((await stub(client).ListDatasets(pb.ListDatasetsRequest(**filters))).datasets)


def images(dataset: pb.Dataset) -> list[str]:
    return [image.asset_id for image in dataset.images]


async def held_are(suite: Suite, dataset_id: str, wanted: Sequence[str]) -> None:
    """Returns once the dataset holds references to exactly these assets."""
    async with asyncio.timeout(20):
        while flows.held(suite, dataset_id) != set(wanted):
            await asyncio.sleep(0.02)


async def test_it_is_created_read_listed_changed_and_purged(suite: Suite) -> None:
    ada = suite.client("ada")
    logo, *shots = await pictures(ada, 3)
    made = await flows.dataset(
        ada, brand="Coffee Co", vibe="cozy", logo_asset_id=logo, image_asset_ids=shots
    )
    assert (made.owner, made.created_by, made.etag) == ("user:ada", "ada", "1")
    assert (made.brand, made.vibe, made.logo_asset_id) == ("Coffee Co", "cozy", logo)
    assert (images(made), made.image_count) == (shots, 2)

    get = pb.GetDatasetRequest(dataset_id=made.id)
    assert (await stub(ada).GetDataset(get)).dataset == made
    shown = (
        await stub(ada).GetDataset(pb.GetDatasetRequest(dataset_id=made.id, include_urls=True))
    ).dataset
    assert shown.logo_url and all(image.image_url for image in shown.images)

    assert await listed(ada) == [made] == await listed(ada, brand="Coffee Co")
    assert await listed(ada, created_before=made.create_time) == []
    assert await listed(ada, brand="Tea Co") == []

    changed = await update(ada, made.id, made.etag, name="Second", vibe="", logo_asset_id="")
    assert (changed.name, changed.vibe, changed.logo_asset_id) == ("Second", "", "")
    assert (changed.brand, images(changed), changed.etag) == ("Coffee Co", shots, "2")

    await stub(ada).PurgeDataset(pb.PurgeDatasetRequest(dataset_id=made.id, etag=changed.etag))
    await refused(stub(ada).GetDataset(get), grpc.StatusCode.NOT_FOUND)
    assert await listed(ada, show_deleted=True) == []


async def test_images_keep_the_order_that_their_owner_gives_them(suite: Suite) -> None:
    ada = suite.client("ada")
    a, b, c, d = await pictures(ada, 4)
    made = await flows.dataset(ada, image_asset_ids=[a, b])

    async def add(*ids: str, **fields: Any) -> pb.Dataset:
        request = pb.AddDatasetImagesRequest(dataset_id=made.id, asset_ids=ids, **fields)
        added: pb.Dataset = (await stub(ada).AddDatasetImages(request)).dataset
        return added

    assert images(await add(c)) == [a, b, c]
    assert images(await add(d, a, position=1)) == [a, d, b, c], "a has its place already"
    again = await add(d)
    assert again.etag == "3", "nothing changed"

    order = pb.OrderDatasetImagesRequest(dataset_id=made.id, asset_ids=[c, b, d, a])
    assert images((await stub(ada).OrderDatasetImages(order)).dataset) == [c, b, d, a]
    for wrong in ([c, b, d], [c, b, d, str(uuid.uuid4())]):
        request = pb.OrderDatasetImagesRequest(dataset_id=made.id, asset_ids=wrong)
        call = stub(ada).OrderDatasetImages(request)
        assert (await refused(call, grpc.StatusCode.INVALID_ARGUMENT)).fields == ["asset_ids"]

    remove = pb.RemoveDatasetImagesRequest(
        dataset_id=made.id, asset_ids=[b.upper(), str(uuid.uuid4())]
    )
    assert images((await stub(ada).RemoveDatasetImages(remove)).dataset) == [c, d, a]


async def test_pictures_that_can_not_be_used_change_nothing(suite: Suite) -> None:
    ada, eve = suite.client("ada"), suite.client("eve")
    [mine], [hers] = await pictures(ada, 1), await pictures(eve, 1)
    pdf = await assets.upload(
        ada,
        documents.pdf(1),
        kind=asset_pb2.ASSET_KIND_DOCUMENT,
        mime_type="application/pdf",
    )
    made = await flows.dataset(ada)

    for ids, field in (([mine, hers], "asset_ids[1]"), ([str(uuid.uuid4())], "asset_ids[0]")):
        request = pb.AddDatasetImagesRequest(dataset_id=made.id, asset_ids=ids)
        refusal = await refused(stub(ada).AddDatasetImages(request), grpc.StatusCode.NOT_FOUND)
        assert refusal.metadata["field"] == field
    request = pb.AddDatasetImagesRequest(dataset_id=made.id, asset_ids=[mine, pdf.id])
    await refused(stub(ada).AddDatasetImages(request), grpc.StatusCode.INVALID_ARGUMENT, "picture")
    await refused(update(ada, made.id, logo_asset_id=hers), grpc.StatusCode.NOT_FOUND)
    await refused(flows.dataset(ada, logo_asset_id=hers), grpc.StatusCode.NOT_FOUND)
    twice = flows.dataset(ada, image_asset_ids=[mine, mine.upper()])
    await refused(twice, grpc.StatusCode.INVALID_ARGUMENT, "image_asset_ids[1]")

    full = str(uuid.uuid4())
    suite.sql(
        "UPDATE conversions.datasets SET image_asset_ids ="
        " ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 100)) WHERE id = %s RETURNING id",
        (made.id,),
    )
    request = pb.AddDatasetImagesRequest(dataset_id=made.id, asset_ids=[mine], request_id=full)
    await refused(stub(ada).AddDatasetImages(request), grpc.StatusCode.INVALID_ARGUMENT, "101")
    [now] = await listed(ada)
    assert now.etag == made.etag and mine not in images(now)


async def test_a_dataset_holds_its_pictures_until_they_leave_it(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "_SETTLED_SECONDS", 3.0)
    ada = suite.client("ada")
    a, b, c = await pictures(ada, 3)
    made = await flows.dataset(ada, logo_asset_id=a, image_asset_ids=[a, b])
    assert flows.held(suite, made.id) == {a, b}, "at once, without a worker"
    add = pb.AddDatasetImagesRequest(dataset_id=made.id, asset_ids=[c])
    await stub(ada).AddDatasetImages(add)
    assert flows.held(suite, made.id) == {a, b, c}
    delete = asset_pb2.DeleteAssetRequest(asset_id=c)
    refusal = await refused(
        assets.assets(ada).DeleteAsset(delete), grpc.StatusCode.FAILED_PRECONDITION
    )
    assert refusal.reason == "IN_USE"

    # What a crash after the commit leaves behind is put right by the job.
    suite.sql("DELETE FROM assets.asset_references WHERE asset_id = %s", (a,))
    remove = pb.RemoveDatasetImagesRequest(dataset_id=made.id, asset_ids=[a, b])
    await stub(ada).RemoveDatasetImages(remove)
    await suite.work("conversions")
    await held_are(suite, made.id, [a, c])  # `a` is still the logo

    forced = asset_pb2.DeleteAssetRequest(asset_id=a, force=True)
    await assets.assets(ada).DeleteAsset(forced)
    await stub(ada).DeleteDataset(pb.DeleteDatasetRequest(dataset_id=made.id))
    await stub(ada).PurgeDataset(pb.PurgeDatasetRequest(dataset_id=made.id))
    await held_are(suite, made.id, [])

    # What was being acquired meanwhile is released, too.
    suite.sql(
        "INSERT INTO assets.asset_references (owner, asset_id, holder, service) VALUES (%s, %s,"
        " %s, 'conversions')",
        (made.owner, c, f"conversions/datasets/{made.id}"),
    )
    await held_are(suite, made.id, [])
    async with asyncio.timeout(20):
        while suite.sql("SELECT FROM conversions.dataset_releases"):
            await asyncio.sleep(0.02)


async def test_an_archived_one_is_hidden_and_a_deleted_one_comes_back_as_it_was(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    made = await flows.dataset(ada)
    archive = pb.ArchiveDatasetRequest(dataset_id=made.id, etag=made.etag)
    archived = (await stub(ada).ArchiveDataset(archive)).dataset
    assert archived.HasField("archive_time") and await listed(ada) == []
    assert await listed(ada, show_archived=True) == [archived]

    delete = pb.DeleteDatasetRequest(dataset_id=made.id)
    deleted = (await stub(ada).DeleteDataset(delete)).dataset
    days = (deleted.expire_time.seconds - deleted.delete_time.seconds) / 86400
    assert days == 30 and (await stub(ada).DeleteDataset(delete)).dataset == deleted
    assert await listed(ada, show_archived=True) == []
    assert await listed(ada, show_archived=True, show_deleted=True) == [deleted]

    refusals = [
        stub(ada).ArchiveDataset(pb.ArchiveDatasetRequest(dataset_id=made.id)),
        stub(ada).UnarchiveDataset(pb.UnarchiveDatasetRequest(dataset_id=made.id)),
        stub(ada).OrderDatasetImages(pb.OrderDatasetImagesRequest(dataset_id=made.id)),
        update(ada, made.id, name="x"),
    ]
    for call in refusals:
        await refused(call, grpc.StatusCode.FAILED_PRECONDITION, "undelete it first")

    back = (await stub(ada).UndeleteDataset(pb.UndeleteDatasetRequest(dataset_id=made.id))).dataset
    assert back.archive_time == archived.archive_time and not back.HasField("delete_time")
    unarchive = pb.UnarchiveDatasetRequest(dataset_id=made.id)
    shown = (await stub(ada).UnarchiveDataset(unarchive)).dataset
    assert not shown.HasField("archive_time") and await listed(ada) == [shown]


async def test_a_worker_purges_what_was_in_the_trash_long_enough(suite: Suite) -> None:
    ada = suite.client("ada")
    old, young = await flows.dataset(ada), await flows.dataset(ada)
    for each in (old, young):
        await stub(ada).DeleteDataset(pb.DeleteDatasetRequest(dataset_id=each.id))
    suite.sql("UPDATE conversions.datasets SET expires_at = now() WHERE id = %s", (old.id,))
    await suite.work("conversions")
    async with asyncio.timeout(20):
        while len(await listed(ada, show_deleted=True)) > 1:
            await asyncio.sleep(0.02)
    assert [each.id for each in await listed(ada, show_deleted=True)] == [young.id]


async def test_a_repeat_is_carried_out_once(suite: Suite) -> None:
    ada = suite.client("ada")
    first, second = [await flows.dataset(ada, request_id="r1") for _ in range(2)]
    assert first == second and await listed(ada) == [first]


async def test_an_etag_of_before_changes_nothing(suite: Suite) -> None:
    ada = suite.client("ada")
    made = await flows.dataset(ada)
    changed = await update(ada, made.id, name="Second")
    old = {"dataset_id": made.id, "etag": made.etag}
    calls = [
        update(ada, made.id, made.etag, name="x"),
        stub(ada).OrderDatasetImages(pb.OrderDatasetImagesRequest(**old)),
        stub(ada).ArchiveDataset(pb.ArchiveDatasetRequest(**old)),
        stub(ada).DeleteDataset(pb.DeleteDatasetRequest(**old)),
        stub(ada).PurgeDataset(pb.PurgeDatasetRequest(**old)),
    ]
    for call in calls:
        assert (await refused(call, grpc.StatusCode.ABORTED)).reason == "ETAG_MISMATCH"
    assert await listed(ada) == [changed]


async def test_what_is_required_stays(suite: Suite) -> None:
    ada = suite.client("ada")
    made = await flows.dataset(ada)
    for call in (flows.dataset(ada, name=""), update(ada, made.id, name="")):
        assert (await refused(call, grpc.StatusCode.INVALID_ARGUMENT)).fields == ["name"]
    assert await listed(ada) == [made]


async def test_a_watch_tells_what_is_there_then_every_change(suite: Suite) -> None:
    await suite.work("conversions")
    ada = suite.client("ada")
    made = await flows.dataset(ada)
    stream = stub(ada).WatchDatasets(pb.WatchDatasetsRequest())
    async with asyncio.timeout(30):
        assert (await stream.read()).dataset == made
        assert (await stream.read()).bookmark.ready
        changed = await update(ada, made.id, name="Second")
        assert (await stream.read()).dataset == changed
        await stub(ada).PurgeDataset(pb.PurgeDatasetRequest(dataset_id=made.id))
        assert (await stream.read()).purged.dataset_id == made.id
    stream.cancel()
