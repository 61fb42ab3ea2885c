"""Pages are complete and exact, as fast anywhere, and bound to their filter and owner."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2

from tests import calls
from tests.assets import flows
from tests.suite import Client, Cluster, DiskServer, Keys, Suite, running_suite

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
COUNT = 25


@pytest.fixture(scope="module")
async def suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    """Makes 25 READY assets of ada, an hour apart but for five of the same instant, and as many
    public ones of bob."""
    async with running_suite(cluster, keys, disk) as suite:
        await suite.serve("assets")
        for n in range(COUNT):
            for owner, public in (("user:ada", False), ("user:bob", True)):
                suite.sql(
                    "INSERT INTO assets.assets (id, owner, created_by, kind, state, public, free,"
                    " file_name, storage_key, size_bytes, mime_type, sha256, product_id,"
                    " session_id, created_at) VALUES (gen_random_uuid(), %s, 'x', %s, 'ready', %s,"
                    " true, %s, %s, 1, 'image/jpeg', 'x', %s, %s, %s)",
                    (
                        owner,
                        "photo" if n % 2 else "product",
                        public,
                        f"{n}",
                        f"{'public/' if public else ''}{owner}/{n}",
                        f"p{n % 3}",
                        "%" if n == 3 else "s",
                        EPOCH + timedelta(hours=min(n, 20)),
                    ),
                )
        yield suite


async def listing(client: Client, **fields: Any) -> Any:
    return await flows.assets(client).ListAssets(asset_pb2.ListAssetsRequest(**fields))


async def walk(client: Client, **fields: Any) -> list[str]:
    found, token = [], ""
    while True:
        answer = await listing(client, page_token=token, **fields)
        found += [asset.file_name for asset in answer.assets]
        token = answer.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("size", [1, 3, 24, 25, 26, 1000])
async def test_pages_of_any_size_hold_everything_once_newest_first(suite: Suite, size: int) -> None:
    ada = suite.client("ada")
    found = await walk(ada, page_size=size)
    assert sorted(found, key=int) == [str(n) for n in range(COUNT)]
    assert found[5:] == [str(n) for n in range(19, -1, -1)], (
        "and the five of one instant before them"
    )


async def test_the_last_page_has_no_token(suite: Suite) -> None:
    answer = await listing(suite.client("ada"), page_size=COUNT)
    assert len(answer.assets) == COUNT and answer.next_page_token == ""


async def test_what_comes_while_one_pages_moves_nothing(suite: Suite) -> None:
    ada = suite.client("ada")
    first = await listing(ada, page_size=10)
    before = await walk(ada, page_size=1000)
    suite.sql(
        "INSERT INTO assets.assets (id, owner, created_by, kind, state, public, free, file_name,"
        " storage_key, size_bytes, mime_type, sha256) VALUES (gen_random_uuid(), 'user:ada', 'x',"
        " 'photo', 'ready', false, true, 'new', 'k', 1, 'image/jpeg', 'x')"
    )

    rest = [
        asset.file_name
        for asset in (await listing(ada, page_size=10, page_token=first.next_page_token)).assets
    ]
    assert rest == before[10:20]
    await suite.change("DELETE FROM assets.assets WHERE file_name = 'new'")


async def test_skip_passes_over_as_many_on_the_first_page_only(suite: Suite) -> None:
    ada = suite.client("ada")
    everything = await walk(ada)
    assert await walk(ada, skip=7, page_size=4) == everything[7:]
    assert await walk(ada, skip=10_000) == []


@pytest.mark.parametrize(
    ("fields", "numbers"),
    [
        ({"kind": asset_pb2.ASSET_KIND_PHOTO}, range(1, 25, 2)),
        ({"kind": asset_pb2.ASSET_KIND_LOGO}, ()),
        ({"product_id": "p1"}, range(1, 25, 3)),
        ({"product_id": "p1", "kind": asset_pb2.ASSET_KIND_PRODUCT}, (4, 10, 16, 22)),
        ({"session_id": "%"}, (3,)),
        ({"session_id": "_"}, ()),
        ({"room_id": "s"}, ()),
        ({"state": asset_pb2.ASSET_STATE_PENDING}, ()),
        ({"created_from": EPOCH + timedelta(hours=18)}, range(18, 25)),
        ({"created_before": EPOCH + timedelta(hours=2)}, (0, 1)),
        (
            {
                "created_from": EPOCH + timedelta(hours=2),
                "created_before": EPOCH + timedelta(hours=2),
            },
            (),
        ),
        (
            {
                "created_from": datetime(1, 1, 1, tzinfo=UTC),
                "created_before": datetime(9999, 12, 31, tzinfo=UTC),
            },
            range(25),
        ),
    ],
)
async def test_a_filter_finds_exactly_its_own(
    suite: Suite, fields: dict[str, Any], numbers: Any
) -> None:
    assert sorted(await walk(suite.client("ada"), page_size=2, **fields), key=int) == [
        str(n) for n in numbers
    ]


async def test_public_ones_of_others_are_a_list_of_their_own(suite: Suite) -> None:
    ada, bob = suite.client("ada"), suite.client("bob")
    answer = await listing(ada, public_of_others=True, page_size=1000)
    assert {asset.owner for asset in answer.assets} == {"user:bob"} and len(answer.assets) == COUNT
    assert await walk(bob, public_of_others=True) == []
    assert len(await walk(ada)) == COUNT


@pytest.mark.parametrize("label", ["session_id", "room_id", "product_id", "dataset_id"])
async def test_labels_of_others_can_not_be_searched(suite: Suite, label: str) -> None:
    refusal = await calls.refused(
        listing(suite.client("ada"), public_of_others=True, **{label: "p1"}),
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    assert refusal.fields == [label]


@pytest.mark.parametrize(
    "fields",
    [
        {"page_size": -1},
        {"page_size": 1001},
        {"skip": -1},
        {"skip": 10_001},
        {"kind": 99},
        {"state": 99},
        {"session_id": "x" * 129},
        {"page_token": "x" * 1001},
    ],
)
async def test_a_request_out_of_bounds_is_refused(suite: Suite, fields: dict[str, Any]) -> None:
    refusal = await calls.refused(
        listing(suite.client("ada"), **fields), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.fields == list(fields)


async def test_a_time_that_no_calendar_has_is_refused(suite: Suite) -> None:
    for seconds in (2**62, -(2**62)):
        refusal = await calls.refused(
            listing(suite.client("ada"), created_from={"seconds": seconds}),
            grpc.StatusCode.INVALID_ARGUMENT,
        )
        assert refusal.fields == ["created_from"]


def spelled(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


FORGED: dict[str, Callable[[list[Any]], str]] = {
    "nothing": lambda t: "x",
    "not base64": lambda t: "\N{SNOWMAN}",
    "not JSON": lambda t: base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    "null": lambda t: spelled(None),
    "a number": lambda t: spelled(1),
    "an object": lambda t: spelled({"a": 1, "b": 2, "c": 3}),
    "too short": lambda t: spelled(t[:2]),
    "too long": lambda t: spelled([*t, 1]),
    "a number as id": lambda t: spelled([*t[:2], 5]),
    "a number as time": lambda t: spelled([t[0], 5, t[2]]),
    "no time": lambda t: spelled([t[0], "'; --", t[2]]),
    "another digest": lambda t: spelled(["0" * 20, *t[1:]]),
    "nested": lambda t: base64.urlsafe_b64encode(b"[" * 700).decode(),
}


@pytest.mark.parametrize("what", FORGED)
async def test_a_page_token_that_was_not_given_is_refused(suite: Suite, what: str) -> None:
    ada = suite.client("ada")
    token = (await listing(ada, page_size=2)).next_page_token
    forged = FORGED[what](json.loads(base64.urlsafe_b64decode(token)))

    refusal = await calls.refused(
        listing(ada, page_size=2, page_token=forged), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert (refusal.reason, refusal.fields) == ("PAGE_TOKEN_INVALID", ["page_token"])


async def test_a_page_token_of_another_filter_or_owner_is_refused(suite: Suite) -> None:
    ada = suite.client("ada")
    token = (await listing(ada, page_size=2)).next_page_token

    for client, fields in (
        (suite.client("bob"), {}),
        (suite.client("ada", "vendor"), {}),
        (ada, {"kind": asset_pb2.ASSET_KIND_PHOTO}),
        (ada, {"product_id": "p1"}),
        (ada, {"public_of_others": True}),
    ):
        refusal = await calls.refused(
            listing(client, page_token=token, **fields), grpc.StatusCode.INVALID_ARGUMENT
        )
        assert refusal.reason == "PAGE_TOKEN_INVALID", fields
    assert len((await listing(ada, page_size=5, page_token=token)).assets) == 5, (
        "another page size is fine"
    )


async def test_several_at_once_come_in_the_order_asked_for_and_missing_ones_apart(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    ids = [asset.id for asset in (await listing(ada, page_size=3)).assets]
    private_of_nobody = flows.request_id()
    [public_of_bob] = [a.id for a in (await listing(suite.client("bob"), page_size=1)).assets]
    asked = [ids[2], private_of_nobody, public_of_bob, ids[0], ids[0]]

    answer = await flows.assets(ada).BatchGetAssets(
        asset_pb2.BatchGetAssetsRequest(asset_ids=asked)
    )
    assert [asset.id for asset in answer.assets] == [ids[2], public_of_bob, ids[0], ids[0]]
    assert list(answer.missing_asset_ids) == [private_of_nobody]
    for wrong in ([], [flows.request_id()] * 101, ["x"]):
        call = flows.assets(ada).BatchGetAssets(asset_pb2.BatchGetAssetsRequest(asset_ids=wrong))
        await calls.refused(call, grpc.StatusCode.INVALID_ARGUMENT)


async def test_many_readers_at_once_each_see_their_own(suite: Suite) -> None:
    clients = [suite.client(name) for name in ("ada", "bob", "carol")]
    answers = await asyncio.gather(*(listing(clients[n % 3], page_size=1000) for n in range(60)))
    for n, answer in enumerate(answers):
        assert {a.owner for a in answer.assets} == (
            {f"user:{('ada', 'bob')[n % 3]}"} if n % 3 < 2 else set()
        )
