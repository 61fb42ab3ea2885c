"""Searches find exactly the assets that the conditions describe; their sums are exact."""

import itertools
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, search_pb2_grpc
from atelier.assets.v1 import search_pb2 as pb
from google.protobuf import json_format, struct_pb2

from tests import calls
from tests.assets import flows
from tests.suite import Client, Suite

DATA = flows.jpeg(64, 48)
PHOTO, PRODUCT = asset_pb2.ASSET_KIND_PHOTO, asset_pb2.ASSET_KIND_PRODUCT


def stub(client: Client) -> Any:
    return client.stub(search_pb2_grpc.SearchServiceStub)


async def page(client: Client, **fields: Any) -> pb.SearchAssetsResponse:
    return await stub(client).SearchAssets(pb.SearchAssetsRequest(**fields))


async def found(client: Client, **fields: Any) -> list[str]:
    return [asset.id for asset in (await page(client, **fields)).assets]


def leaf(value: Any, *path: str) -> pb.MetadataCondition:
    made = struct_pb2.Value()
    json_format.ParseDict(value, made)
    return pb.MetadataCondition(path=path, value=made)


async def upload(client: Client, **fields: Any) -> str:
    return (await flows.upload(client, DATA, **fields)).id


def seed(suite: Suite, client: Client, count: int, **columns: Any) -> list[str]:
    """Makes READY rows, oldest first, a second apart; a callable column gets the row's number."""
    ids = []
    for n in range(count):
        given = {name: value(n) if callable(value) else value for name, value in columns.items()}
        row = {"kind": "photo", "file_name": "a.jpg", "tags": [], "public": False, **given}
        names = ", ".join(row)
        places = ", ".join(f"%({name})s" for name in row)
        [(asset_id,)] = suite.sql(
            "INSERT INTO assets.assets (id, owner, created_by, free, size_bytes, mime_type, state,"
            f" storage_key, sha256, created_at, {names}) VALUES (gen_random_uuid(), %(owner)s, 'x',"
            " true, 1, 'image/jpeg', 'ready', 'none', 'ab', timestamptz '2026-01-01' + %(n)s *"
            f" interval '1 second', {places}) RETURNING id::text",
            {**row, "owner": f"user:{client.subject}", "n": n},
        )
        ids.append(asset_id)
    return ids


async def test_tags_all_of_them_or_any(ada: Client) -> None:
    red, both, blue = [
        await upload(ada, tags=tags) for tags in (["red"], ["red", "blue"], ["blue"])
    ]

    assert await found(ada, all_tags=["red"]) == [both, red]
    assert await found(ada, all_tags=["blue", "red"]) == [both]
    assert await found(ada, any_tags=["blue", "red"]) == [blue, both, red]
    assert await found(ada, any_tags=["blue", "green"], all_tags=["red"]) == [both]
    assert await found(ada, all_tags=["green"]) == await found(ada, all_tags=["RED"]) == []
    assert await found(ada, all_tags=["red", "red"], any_tags=["blue", "blue"]) == [both]


async def test_metadata_by_its_leaves(ada: Client) -> None:
    data = {
        "camera": {"model": "X100", "iso": 200},
        "lights": ["key", {"gel": "warm"}],
        "ok": True,
        "note": None,
        "a.b": 1.5,
        "a": {"b": "nested"},
        "none": {},
        "empty": "",
    }
    asset_id = await upload(ada, metadata=data)
    await upload(
        ada, metadata={"camera": "X100", "ok": "true", "note": "null", "lights": {"key": "x"}}
    )

    for condition in (
        leaf("X100", "camera", "model"),
        leaf(200, "camera", "iso"),
        leaf(200.0, "camera", "iso"),
        leaf("key", "lights"),
        leaf("warm", "lights", "gel"),
        leaf(True, "ok"),
        leaf(None, "note"),
        leaf(1.5, "a.b"),
        leaf("nested", "a", "b"),
        leaf("", "empty"),
    ):
        assert await found(ada, metadata=[condition]) == [asset_id], condition

    for condition in (
        leaf("200", "camera", "iso"),
        leaf("true", "ok2"),
        leaf(1, "ok"),
        leaf(False, "ok"),
        leaf("nested", "a.b"),
        leaf(1.5, "a", "b"),
        leaf("X100", "camera.model"),
        leaf("x100", "camera", "model"),
        leaf("X100", "model"),
        leaf(None, "missing"),
        leaf(None, "none"),
        leaf("0", "lights", "0"),
    ):
        assert await found(ada, metadata=[condition]) == [], condition
    assert await found(ada, metadata=[leaf(True, "ok"), leaf("key", "lights")]) == [asset_id]


async def test_kind_scope_dates_and_everything_together(ada: Client) -> None:
    scope = asset_pb2.AssetScope(session_id="s", room_id="r", product_id="p", dataset_id="d")
    one = await flows.upload(
        ada, DATA, kind=PHOTO, tags=["t"], scope=scope, metadata={"m": 1}, file_name="front.jpg"
    )
    two = await flows.upload(ada, DATA, kind=PRODUCT, tags=["t"], file_name="front.jpg")
    assert await found(ada, kind=PHOTO) == [one.id]
    assert await found(ada, scope=asset_pb2.AssetScope(room_id="r")) == [one.id]
    assert await found(ada, scope=asset_pb2.AssetScope(room_id="s")) == []

    everything = {
        "all_tags": ["t"],
        "any_tags": ["t", "u"],
        "kind": PHOTO,
        "scope": scope,
        "metadata": [leaf(1, "m")],
        "file_name_prefix": "fron",
        "created_from": one.create_time,
        "created_before": two.create_time,
    }
    assert await found(ada, **everything) == [one.id]
    assert await found(ada, all_tags=["t"], created_from=two.create_time) == [two.id]
    assert await found(ada, all_tags=["t"], created_before=two.create_time) == [one.id]
    assert await found(ada, **{**everything, "kind": PRODUCT}) == []


async def test_names_by_their_beginning(suite: Suite, ada: Client) -> None:
    names = [
        "a",
        "ab",
        "abc",
        "abcdefgh-1.jpg",
        "abcdefgh-2.jpg",
        "Abc",
        "é%_x.jpg",
        "x" * 250 + ".jpg",
    ]
    ids = dict(zip(names, seed(suite, ada, len(names), file_name=names.__getitem__), strict=True))

    for prefix in (
        "a",
        "ab",
        "abc",
        "abcdefgh",
        "abcdefgh-",
        "abcdefgh-2",
        "é",
        "e\u0301%_",
        "é%_x.jpg",
        "x" * 17,
        "%",
        "b",
    ):
        expected = [
            ids[name] for name in reversed(names) if name.startswith(prefix.replace("e\u0301", "é"))
        ]
        assert await found(ada, file_name_prefix=prefix) == expected, prefix


TEXTS = (
    "%",
    "_",
    "\\",
    "%_\\",
    "'; DROP TABLE assets; --",
    "$.a[*]",
    "{}",
    "[]",
    '"',
    "a,b",
    "{a,b}",
    " a",
    "a ",
    "A",
    "a",
    "é",
    "e\u0301",
    "ß",
    "ss",
    "\ud7ff\ue000\uffff",
    "👩‍👩‍👧",
    "\u202egpj.exe",
    "\t",
    "\n",
    "null",
    "true",
    "1",
    "1.0",
    "\U0001f9e5" * 64,
    "İ",
    "x" * 64,
)


async def test_text_is_text(suite: Suite, ada: Client) -> None:
    """Each text is found by itself alone, as a tag, as a value and as a name in metadata, and is
    returned unchanged."""
    ids = dict(zip(TEXTS, seed(suite, ada, len(TEXTS)), strict=True))
    for text, asset_id in ids.items():
        await flows.update(ada, asset_id, tags=[text], metadata={text: [text, {text: text}]})

    for text in TEXTS:
        [asset] = (await page(ada, all_tags=[text])).assets
        assert (asset.id, list(asset.tags)) == (ids[text], [text])
        assert json_format.MessageToDict(asset.metadata) == {text: [text, {text: text}]}
        assert await found(ada, any_tags=[text]) == [ids[text]]
        assert await found(ada, metadata=[leaf(text, text)]) == [ids[text]]
        assert await found(ada, metadata=[leaf(text, text, text)]) == [ids[text]]


async def test_long_values_are_found_exactly(ada: Client) -> None:
    long = "漢" * 5000
    one = await upload(ada, metadata={"text": long, "n" * 900: 1})
    await upload(ada, metadata={"text": long + "x"})
    assert await found(ada, metadata=[leaf(long, "text")]) == [one]
    assert await found(ada, metadata=[leaf(1, "n" * 900)]) == [one]

    deep: Any = "leaf"
    for _ in range(30):
        deep = {"d": deep}
    two = await upload(ada, metadata=deep)
    assert await found(ada, metadata=[leaf("leaf", *["d"] * 30)]) == [two]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "all_tags"),
        ({"created_from": {"seconds": 1}}, "all_tags"),
        ({"all_tags": ["a\x00"]}, "all_tags[0]"),
        ({"any_tags": ["a", "\x00"]}, "any_tags[1]"),
        ({"all_tags": [""]}, "all_tags[0]"),
        ({"all_tags": ["x" * 65]}, "all_tags[0]"),
        ({"all_tags": [str(n) for n in range(11)]}, "all_tags"),
        ({"metadata": [pb.MetadataCondition(path=["a"])]}, "metadata[0].value"),
        ({"metadata": [leaf("a")]}, "metadata[0].path"),
        ({"metadata": [leaf({"a": 1}, "a")]}, "metadata[0].value"),
        ({"metadata": [leaf([], "a")]}, "metadata[0].value"),
        ({"metadata": [leaf("\x00", "a")]}, "metadata[0].value"),
        ({"metadata": [leaf("a", "a", "\x00")]}, "metadata[0].path[1]"),
        (
            {"metadata": [{"path": ["a"], "value": struct_pb2.Value(number_value=float("nan"))}]},
            "metadata[0].value",
        ),
        ({"file_name_prefix": "a\x00"}, "file_name_prefix"),
        ({"file_name_prefix": "x" * 256}, "file_name_prefix"),
        ({"scope": {"room_id": "\x00"}}, "scope.room_id"),
        ({"kind": 99}, "kind"),
        ({"page_size": 1001}, "page_size"),
        ({"kind": PHOTO, "created_from": {"seconds": 10**15}}, "created_from"),
        ({"kind": PHOTO, "page_token": "x"}, "page_token"),
    ],
)
async def test_a_search_that_breaks_a_rule_is_refused(
    ada: Client, fields: dict[str, Any], path: str
) -> None:
    refusal = await calls.refused(page(ada, **fields), grpc.StatusCode.INVALID_ARGUMENT)
    assert refusal.fields == [path]


async def test_a_change_is_found_at_once(suite: Suite, ada: Client) -> None:
    pending = await flows.announce(ada, DATA, tags=["new"], metadata={"a": 1})
    assert await found(ada, all_tags=["new"]) == []
    await flows.send(pending.target, DATA)
    asset = await flows.confirm(ada, pending.upload_id)
    assert await found(ada, all_tags=["new"], metadata=[leaf(1, "a")]) == [asset.id]

    await flows.update(
        ada,
        asset.id,
        tags=["newer"],
        metadata={"a": 2},
        file_name="later.jpg",
        scope={"room_id": "r"},
    )
    for gone in ({"all_tags": ["new"]}, {"metadata": [leaf(1, "a")]}, {"file_name_prefix": "f"}):
        assert await found(ada, **gone) == []

    now: list[dict[str, Any]] = [
        {"all_tags": ["newer"]},
        {"metadata": [leaf(2, "a")]},
        {"file_name_prefix": "later"},
        {"scope": asset_pb2.AssetScope(room_id="r")},
        {"kind": PRODUCT},
    ]

    for hide, show in (
        ("deleted_at = now(), expires_at = now()", "deleted_at = NULL, expires_at = NULL"),
        ("archived_at = now()", "archived_at = NULL"),
    ):
        assert [await found(ada, **fields) for fields in now] == [[asset.id]] * len(now)
        await suite.change(f"UPDATE assets.assets SET {hide} WHERE id = %s", (asset.id,))
        assert [await found(ada, **fields) for fields in now] == [[]] * len(now)
        await suite.change(f"UPDATE assets.assets SET {show} WHERE id = %s", (asset.id,))

    await flows.update(ada, asset.id, visibility=asset_pb2.VISIBILITY_PUBLIC, free=False)
    assert await found(ada, all_tags=["newer"]) == [asset.id]
    await suite.change("DELETE FROM assets.assets WHERE id = %s", (asset.id,))
    assert suite.sql("SELECT count(*) FROM assets.asset_terms WHERE id = %s", (asset.id,)) == [(0,)]


async def test_an_update_that_fails_changes_nothing_that_is_found(ada: Client) -> None:
    asset_id = await upload(ada, tags=["before"])
    for fields, code in (
        ({"etag": "0"}, grpc.StatusCode.ABORTED),
        ({"metadata": {"x": "\x00"}}, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        await calls.refused(flows.update(ada, asset_id, tags=["after"], **fields), code)
    assert (await found(ada, all_tags=["before"]), await found(ada, all_tags=["after"])) == (
        [asset_id],
        [],
    )


async def test_nobody_finds_another_owners(ada: Client, caller: Callable[..., Client]) -> None:
    await upload(ada, tags=["mine"], visibility=asset_pb2.VISIBILITY_PUBLIC)
    await upload(ada, tags=["mine"])
    assert len(await found(ada, all_tags=["mine"])) == 2
    assert await found(caller(), all_tags=["mine"]) == []


async def test_pages_join_without_gap_or_repeat_whatever_leads(suite: Suite, ada: Client) -> None:
    ids = seed(
        suite,
        ada,
        60,
        tags=lambda n: [t for t, each in (("two", 2), ("three", 3), ("five", 5)) if n % each == 0],
        file_name=lambda n: f"picture {n % 4}.jpg",
        kind=lambda n: ("photo", "product")[n % 2],
    )
    expected: list[tuple[dict[str, Any], Callable[[int], bool]]] = [
        ({"all_tags": ["two"]}, lambda n: n % 2 == 0),
        ({"all_tags": ["two", "three"]}, lambda n: n % 6 == 0),
        ({"any_tags": ["two", "three", "five"]}, lambda n: n % 2 == 0 or n % 3 == 0 or n % 5 == 0),
        (
            {"any_tags": ["three", "five"], "all_tags": ["two"]},
            lambda n: n % 2 == 0 and (n % 3 == 0 or n % 5 == 0),
        ),
        (
            {"file_name_prefix": "picture 1", "any_tags": ["three", "five"]},
            lambda n: n % 4 == 1 and (n % 3 == 0 or n % 5 == 0),
        ),
        ({"kind": PHOTO, "any_tags": ["two", "three"]}, lambda n: n % 2 == 0),
    ]

    for (conditions, fits), size in itertools.product(expected, (1, 7, 50)):
        seen: list[str] = []
        token = ""
        while True:
            answer = await page(ada, page_size=size, page_token=token, **conditions)
            seen += [asset.id for asset in answer.assets]
            token = answer.next_page_token
            if not token:
                break

        assert seen == [ids[n] for n in range(59, -1, -1) if fits(n)], (conditions, size)


async def test_a_page_token_is_of_its_search_alone(
    suite: Suite, ada: Client, caller: Callable[..., Client]
) -> None:
    seed(suite, ada, 3, tags=["t"])
    token = (await page(ada, all_tags=["t"], page_size=1)).next_page_token
    assert len(await found(ada, all_tags=["t"], page_token=token)) == 2
    for client, fields in ((ada, {"any_tags": ["t"]}), (caller(), {"all_tags": ["t"]})):
        refusal = await calls.refused(
            page(client, page_token=token, **fields), grpc.StatusCode.INVALID_ARGUMENT
        )
        assert refusal.reason == "PAGE_TOKEN_INVALID"


async def test_sums_by_kind_and_type(
    suite: Suite, ada: Client, caller: Callable[..., Client]
) -> None:
    ids = seed(suite, ada, 6, kind=lambda n: ("photo", "product")[n % 2], public=lambda n: n < 1)
    answer = await stub(ada).GetAssetStats(pb.GetAssetStatsRequest())
    assert [
        (s.kind, s.mime_type, s.asset_count, s.public_count, s.size_bytes) for s in answer.sums
    ] == [(PHOTO, "image/jpeg", 3, 1, 3), (PRODUCT, "image/jpeg", 3, 0, 3)]
    assert (answer.asset_count, answer.size_bytes) == (6, 6)

    await suite.change("UPDATE assets.assets SET archived_at = now() WHERE id = %s", (ids[0],))
    await suite.change(
        "UPDATE assets.assets SET deleted_at = now(), expires_at = now() WHERE id = %s", (ids[1],)
    )
    await flows.announce(ada, DATA)
    assert (await stub(ada).GetAssetStats(pb.GetAssetStatsRequest())).asset_count == 4
    assert (await stub(ada).GetAssetStats(pb.GetAssetStatsRequest(kind=PHOTO))).asset_count == 2

    start = {"seconds": 1767225600}
    dates = pb.GetAssetStatsRequest(
        created_from={"seconds": start["seconds"] + 4},
        created_before={"seconds": start["seconds"] + 5},
    )
    assert (await stub(ada).GetAssetStats(dates)).asset_count == 1
    assert not (await stub(caller()).GetAssetStats(pb.GetAssetStatsRequest())).sums
