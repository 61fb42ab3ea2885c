"""A repeat is harmless. The tests go over the wire, with real concurrency; assets stands for every
service, since shared.database.db enforces the rule."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, upload_pb2
from google.rpc import error_details_pb2

from tests import calls
from tests.assets import flows
from tests.suite import Client, Cluster, DiskServer, Keys, Suite, running_suite

DATA = flows.jpeg(64, 48)


@pytest.fixture(scope="module")
async def suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    async with running_suite(cluster, keys, disk) as suite:
        suite.overrides["lock_timeout_seconds"] = 0.5
        await suite.serve("assets")
        yield suite


def asked(request_id: str, **fields: object) -> upload_pb2.RequestUploadRequest:
    return upload_pb2.RequestUploadRequest(
        request_id=request_id, declaration=flows.declaration(DATA, **fields)
    )


def rows(suite: Suite, owner: str) -> int:
    return int(suite.sql("SELECT count(*) FROM assets.assets WHERE owner = %s", (owner,))[0][0])


async def test_32_duplicates_at_once_make_one_row_and_get_one_answer(suite: Suite) -> None:
    clients = [suite.client("one") for _ in range(4)]
    answers = await asyncio.gather(
        *(flows.uploads(clients[n % 4]).RequestUpload(asked("r1")) for n in range(32))
    )
    assert rows(suite, "user:one") == 1
    assert len({answer.upload_id for answer in answers}) == 1
    assert len({answer.asset.SerializeToString() for answer in answers}) == 1

    events = suite.sql("SELECT count(*) FROM assets.events WHERE owner = 'user:one'")
    assert events == [(1,)]


async def test_a_repeat_gets_the_answer_of_then_with_urls_of_now(suite: Suite) -> None:
    client = suite.client("two")
    first = await flows.uploads(client).RequestUpload(asked("r1"))
    await flows.send(first.target, DATA)
    await flows.confirm(client, first.upload_id)

    again = await flows.uploads(client).RequestUpload(asked("r1"))
    assert again.asset == first.asset and again.upload_id == first.upload_id
    assert again.target.url
    assert suite.sql(
        "SELECT bool_or(position('http' IN encode(answer, 'escape')) > 0) FROM assets.requests"
    ) == [(False,)]


@pytest.mark.parametrize(
    "change", [{"file_name": "other.jpg"}, {"size_bytes": 1}, {"tags": ["x"]}, {"free": False}]
)
async def test_the_same_id_with_another_body_is_refused(
    suite: Suite, change: dict[str, object]
) -> None:
    client = suite.client("three")
    await flows.uploads(client).RequestUpload(asked("r1"))
    before = rows(suite, "user:three")
    refusal = await calls.refused(
        flows.uploads(client).RequestUpload(asked("r1", **change)), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.reason == "REQUEST_ID_REUSED"
    assert refusal.fields == ["request_id"]
    assert rows(suite, "user:three") == before


async def test_ids_are_scoped_to_owner_actor_and_method(suite: Suite) -> None:
    callers = [
        suite.client("four"),
        suite.client("five"),
        suite.client("four", "vendor"),
        suite.client("six", owner="user:four"),
    ]
    answers = [await flows.uploads(client).RequestUpload(asked("r1")) for client in callers]
    assert len({answer.upload_id for answer in answers}) == 4

    asset = await flows.upload(callers[0], DATA)
    assert (await flows.update(callers[0], asset.id, request_id="r1", free=False)).free is False


async def test_without_an_id_every_call_is_a_new_one(suite: Suite) -> None:
    client = suite.client("seven")
    first, second = [await flows.uploads(client).RequestUpload(asked("")) for _ in range(2)]
    assert first.upload_id != second.upload_id


async def test_a_failure_does_not_poison_the_id(suite: Suite) -> None:
    client = suite.client("eight")
    requested = await flows.uploads(client).RequestUpload(asked("r1"))
    request = upload_pb2.ConfirmUploadRequest(request_id="r2", upload_id=requested.upload_id)
    refusal = await calls.refused(
        flows.uploads(client).ConfirmUpload(request), grpc.StatusCode.FAILED_PRECONDITION
    )
    assert refusal.reason == "NOTHING_UPLOADED"

    await flows.send(requested.target, DATA)
    assert (
        await flows.uploads(client).ConfirmUpload(request)
    ).asset.state == asset_pb2.ASSET_STATE_READY


async def test_a_duplicate_that_waits_too_long_is_told_when_to_come_back(suite: Suite) -> None:
    client = suite.client("nine")
    key = "\x1f".join(("user:nine", "nine", "atelier.assets.v1.RequestUploadRequest", "r1"))
    with calls.holding(suite, "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (key,)):
        call = flows.uploads(client).RequestUpload(asked("r1"))
        refusal = await calls.refused(call, grpc.StatusCode.ABORTED)
    assert refusal.reason == "REQUEST_IN_PROGRESS"
    assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    assert (await flows.uploads(client).RequestUpload(asked("r1"))).upload_id
    assert rows(suite, "user:nine") == 1


async def test_an_answer_that_was_lost_is_given_again(suite: Suite) -> None:
    """The caller's deadline ends while the row is locked; the repeat must find nothing half
    done."""
    client = suite.client("ten")
    asset = await flows.upload(client, DATA)
    update: dict[str, Any] = {
        "request_id": "r1",
        "asset_id": asset.id,
        "update_mask": {"paths": ["free"]},
        "free": False,
    }
    request = asset_pb2.UpdateAssetRequest(**update)
    with calls.holding(suite, "SELECT * FROM assets.assets WHERE id = %s FOR UPDATE", (asset.id,)):
        await calls.refused(
            flows.assets(client).UpdateAsset(request, timeout=0.2),
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )

    answers = [(await flows.assets(client).UpdateAsset(request)).asset for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert int(answers[0].etag) == int(asset.etag) + 1, "the update ran once"


def head(request_id: str, data: bytes = DATA, **fields: object) -> upload_pb2.UploadHead:
    return upload_pb2.UploadHead(
        request_id=request_id, declaration=flows.declaration(data, **fields)
    )


@pytest.mark.long
async def test_8_streamed_duplicates_at_once_make_one_asset(suite: Suite) -> None:
    clients: list[Client] = [suite.client("eleven") for _ in range(2)]
    made = await asyncio.gather(
        *(flows.stream_upload(clients[n % 2], head("r1"), DATA) for n in range(8))
    )
    assert {asset.state for asset in made} == {asset_pb2.ASSET_STATE_READY}
    assert len({asset.id for asset in made}) == 1
    assert suite.sql("SELECT state FROM assets.assets WHERE owner = 'user:eleven'") == [("ready",)]

    stored = list((suite.storage.root).rglob(f"*{made[0].id}*/original/*"))
    assert [path.name for path in stored] == [made[0].file_path.rpartition("/")[2]], (
        "only the one that is shown is kept"
    )


async def test_a_refused_stream_can_be_sent_again_under_its_id(suite: Suite) -> None:
    client = suite.client("twelve")
    broken = DATA[:-1] + b"x"
    upload = flows.stream_upload(client, head("r1"), broken)
    refusal = await calls.refused(upload, grpc.StatusCode.FAILED_PRECONDITION)
    assert refusal.metadata["rejection"] == "HASH_MISMATCH"
    assert (
        await flows.stream_upload(client, head("r1"), DATA)
    ).state == asset_pb2.ASSET_STATE_READY
