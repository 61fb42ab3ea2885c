"""The service assets itself knows who uses an asset."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from google.rpc import error_details_pb2

from tests import calls
from tests.assets import flows
from tests.suite import Client, Suite

DATA = flows.jpeg(64, 48)


async def acquire(
    client: Client, holder: str, *asset_ids: str, **fields: Any
) -> list[asset_pb2.Asset]:
    request = asset_pb2.AcquireReferencesRequest(holder=holder, asset_ids=asset_ids, **fields)
    return list((await flows.assets(client).AcquireReferences(request)).assets)


async def release(client: Client, holder: str, *asset_ids: str) -> int:
    request = asset_pb2.ReleaseReferencesRequest(holder=holder, asset_ids=asset_ids)
    return int((await flows.assets(client).ReleaseReferences(request)).released)


def held(suite: Suite, client: Client) -> set[tuple[str, str]]:
    rows = suite.sql(
        "SELECT holder, asset_id::text FROM assets.asset_references WHERE owner = %s",
        (f"user:{client.subject}",),
    )
    return set(rows)


async def test_a_holder_acquires_once_however_often_it_asks(suite: Suite, ada: Client) -> None:
    one, two = [await flows.upload(ada, DATA) for _ in range(2)]
    assert [a.id for a in await acquire(ada, "h", two.id, one.id)] == [two.id, one.id]
    await asyncio.gather(*(acquire(ada, "h", one.id, two.id) for _ in range(8)))
    await acquire(ada, "other", one.id, one.id)
    assert held(suite, ada) == {("h", one.id), ("h", two.id), ("other", one.id)}


async def test_releasing_takes_back_what_is_named_or_everything(suite: Suite, ada: Client) -> None:
    ids = [(await flows.upload(ada, DATA)).id for _ in range(3)]
    await acquire(ada, "h", *ids)
    await acquire(ada, "other", *ids)
    assert await release(ada, "h", ids[0], flows.request_id()) == 1
    assert await release(ada, "h", ids[0]) == 0
    assert await release(ada, "h") == 2
    assert await release(ada, "h") == 0
    assert held(suite, ada) == {("other", i) for i in ids}


async def test_all_or_nothing(suite: Suite, ada: Client, caller: Callable[..., Client]) -> None:
    mine = await flows.upload(ada, DATA)
    foreign = await flows.upload(caller(), DATA)
    pending = (await flows.announce(ada, DATA)).asset

    for other, code in (
        (foreign.id, grpc.StatusCode.NOT_FOUND),
        (flows.request_id(), grpc.StatusCode.NOT_FOUND),
        (pending.id, grpc.StatusCode.FAILED_PRECONDITION),
    ):
        await calls.refused(acquire(ada, "h", mine.id, other), code)
    assert held(suite, ada) == set()


async def test_a_public_asset_of_another_owner_can_be_held_and_only_by_the_holder_released(
    suite: Suite, ada: Client, caller: Callable[..., Client]
) -> None:
    owner = caller()
    asset = await flows.upload(owner, DATA, visibility=asset_pb2.VISIBILITY_PUBLIC)
    await acquire(ada, "h", asset.id)
    assert await release(owner, "h", asset.id) == 0
    assert held(suite, ada) == {("h", asset.id)}
    assert await release(ada, "h", asset.id) == 1


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"holder": "", "asset_ids": [flows.request_id()]}, "holder"),
        ({"holder": "x" * 201, "asset_ids": [flows.request_id()]}, "holder"),
        ({"holder": "h", "asset_ids": []}, "asset_ids"),
        ({"holder": "h", "asset_ids": ["x"]}, "asset_ids[0]"),
        ({"holder": "h", "asset_ids": [flows.request_id()] * 101}, "asset_ids"),
    ],
)
async def test_a_request_that_breaks_a_rule_is_refused(
    ada: Client, fields: dict[str, Any], path: str
) -> None:
    call = flows.assets(ada).AcquireReferences(asset_pb2.AcquireReferencesRequest(**fields))
    refusal = await calls.refused(call, grpc.StatusCode.INVALID_ARGUMENT)
    assert refusal.fields == [path]


async def test_a_service_holds_for_the_owner_it_acts_for(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    techfiles = suite.as_token(suite.keys.service_token("techfiles", f"user:{ada.subject}"))
    await acquire(techfiles, "techfiles/files/1", asset.id)
    assert held(suite, ada) == {("techfiles/files/1", asset.id)}


def of_service(suite: Suite, service: str, owner: Client) -> Client:
    return suite.as_token(suite.keys.service_token(service, f"user:{owner.subject}"))


async def test_what_a_service_acquired_only_that_service_releases(
    suite: Suite, ada: Client
) -> None:
    asset = await flows.upload(ada, DATA)
    holder = f"conversions/datasets/{flows.request_id()}"
    conversions = of_service(suite, "conversions", ada)
    await acquire(conversions, holder, asset.id)

    for other in (ada, of_service(suite, "pipeline", ada)):
        refusal = await calls.refused(
            release(other, holder), grpc.StatusCode.FAILED_PRECONDITION, "PurgeDataset lets go"
        )
        assert refusal.reason == "IN_USE"
    request = asset_pb2.DeleteAssetRequest(asset_id=asset.id)
    in_use = await calls.refused(
        flows.assets(ada).DeleteAsset(request),
        grpc.StatusCode.FAILED_PRECONDITION,
        f"it is used by {holder}; conversions holds it: RemoveDatasetImages",
    )
    [violation] = in_use.detail(error_details_pb2.PreconditionFailure).violations
    assert violation.description == f"used by {holder}"

    assert await release(conversions, holder) == 1
    assert await release(conversions, holder) == 0


async def test_an_owner_may_take_a_services_name_for_a_holder(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    holder = f"pipeline/products/{flows.request_id()}"
    pipeline = of_service(suite, "pipeline", ada)
    await acquire(ada, holder, asset.id)
    await acquire(pipeline, holder, asset.id)
    request = asset_pb2.ListReferencesRequest(asset_id=asset.id)
    listed = (await flows.assets(ada).ListReferences(request)).references
    assert {each.service for each in listed} == {"", "pipeline"}

    assert await release(ada, holder) == 1
    await calls.refused(release(ada, holder, asset.id), grpc.StatusCode.FAILED_PRECONDITION)
    assert held(suite, ada) == {(holder, asset.id)}
    assert await release(pipeline, holder) == 1
