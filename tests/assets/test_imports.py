"""The server fetches a file itself, from allowed addresses, and verifies it like any upload."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, import_pb2, import_pb2_grpc

from tests import calls
from tests.assets import flows, storage
from tests.assets.test_trash import ask, freed, stored
from tests.receiver import Receiver, Reply, Request, receiving, replying
from tests.shared.imaging import pictures
from tests.suite import Client, Suite, browser

DATA = flows.jpeg(64, 48)
PRODUCT, DOCUMENT = asset_pb2.ASSET_KIND_PRODUCT, asset_pb2.ASSET_KIND_DOCUMENT
PENDING, READY, REJECTED = (
    asset_pb2.ASSET_STATE_PENDING,
    asset_pb2.ASSET_STATE_READY,
    asset_pb2.ASSET_STATE_REJECTED,
)


@pytest.fixture
async def web() -> AsyncIterator[Receiver]:
    async with receiving(replying(200, DATA, content_type="text/html")) as receiver:
        yield receiver


_numbers = iter(range(10_000))


@pytest.fixture
def eve(open_suite: Suite) -> Client:
    return open_suite.client(f"importer{next(_numbers)}")


def imports(client: Client) -> Any:
    return client.stub(import_pb2_grpc.ImportServiceStub)


def asked(url: str, **fields: Any) -> import_pb2.ImportAssetRequest:
    values = {"request_id": flows.request_id(), "url": url, "kind": PRODUCT, "wait": True, **fields}
    return import_pb2.ImportAssetRequest(**values)


async def fetch(client: Client, url: str, **fields: Any) -> import_pb2.ImportAssetResponse:
    answer: import_pb2.ImportAssetResponse = await imports(client).ImportAsset(
        asked(url, **fields), timeout=30
    )
    return answer


async def test_what_lies_at_a_url_becomes_an_asset(
    open_suite: Suite, eve: Client, web: Receiver
) -> None:
    described: dict[str, Any] = {"tags": ["a"], "metadata": {"b": 1}, "scope": {"product_id": "p"}}
    digest = hashlib.sha256(DATA).hexdigest()
    url = f"http://127.0.0.1:{web.port}/photos/fr%C3%B6nt.jpg?signature=secret"

    asset = (await fetch(eve, url, include_urls=True, sha256=digest, **described)).asset
    assert (asset.state, asset.mime_type, asset.size_bytes, asset.sha256) == (
        READY,
        "image/jpeg",
        len(DATA),
        digest,
    )
    assert (asset.width, asset.height, asset.file_name, asset.primary) == (
        64,
        48,
        "frönt.jpg",
        True,
    )
    assert (list(asset.tags), dict(asset.metadata), asset.owner) == (
        ["a"],
        {"b": 1},
        f"user:{eve.subject}",
    )
    async with browser() as http:
        assert (await http.get(asset.original_url)).content == DATA
    assert web.requests[0].line == "GET /photos/fr%C3%B6nt.jpg?signature=secret HTTP/1.1"
    assert len(await flows.variants_of(eve, asset.id)) == 4


async def test_an_import_is_taken_on_at_once_and_followed(open_suite: Suite, eve: Client) -> None:
    go = asyncio.Event()

    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        await replying(200, DATA)(request, writer)

    async with receiving(slow) as web:
        begun = (await fetch(eve, web.url, wait=False)).asset
        assert (begun.state, begun.size_bytes, begun.mime_type, begun.file_name) == (
            PENDING,
            0,
            "",
            "hook",
        )
        still = await imports(eve).ImportAsset(asked(web.url), timeout=1.5)
        assert still.asset.state == PENDING, "a wait ends before its deadline"
        why = await flows.assets(eve).ExplainAsset(asset_pb2.ExplainAssetRequest(asset_id=begun.id))
        assert why.summary == "is it verified? no, the server is fetching it from its URL"
        go.set()
        async with asyncio.timeout(10):
            while (await flows.get(eve, begun.id)).state == PENDING:
                await asyncio.sleep(0.05)
        assert (await flows.get(eve, begun.id)).state == READY


async def test_a_file_that_comes_for_a_deleted_or_purged_asset_is_not_kept(
    open_suite: Suite, eve: Client
) -> None:
    go = asyncio.Event()

    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        await replying(200, DATA)(request, writer)

    async with receiving(slow) as web:
        deleted, purged = [(await fetch(eve, web.url, wait=False)).asset.id for _ in range(2)]
        async with asyncio.timeout(10):
            while len(web.requests) < 2:
                await asyncio.sleep(0.05)
        await ask(eve, "Delete", deleted)
        await ask(eve, "Purge", purged)
        go.set()
        async with asyncio.timeout(20):
            while (seen := await flows.get(eve, deleted)).state == PENDING:
                await asyncio.sleep(0.05)
    assert seen.rejection == "DELETED" and not stored(open_suite, deleted)
    await freed(open_suite, purged)


async def test_a_repeat_is_the_same_import(open_suite: Suite, eve: Client, web: Receiver) -> None:
    request = asked(web.url)
    answers = await asyncio.gather(
        *(imports(eve).ImportAsset(request, timeout=30) for _ in range(5))
    )
    assert len({answer.asset.id for answer in answers}) == 1 and len(web.requests) == 1
    assert {answer.asset.state for answer in answers} == {READY}
    request.tags.append("other")
    refusal = await calls.refused(
        imports(eve).ImportAsset(request), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.reason == "REQUEST_ID_REUSED"


async def test_an_import_tells_of_duplicates(open_suite: Suite, eve: Client, web: Receiver) -> None:
    first = (await fetch(eve, web.url)).asset
    assert [each.asset_id for each in (await fetch(eve, web.url)).duplicates] == [first.id]


PRIVATE = [
    "http://127.0.0.1/a.jpg",
    "http://169.254.169.254/latest/meta-data",
    "http://[::1]/",
    "http://10.0.0.1/",
    "http://[::ffff:127.0.0.1]/",
    "http://localhost/a.jpg",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
]
ODD = [
    "ftp://example.com/a",
    "file:///etc/passwd",
    "http://user:pw@example.com/a.jpg",
    "http:///a",
    "a.jpg",
    "http://example.com:22/",
    "http://example.com/\r\nx",
    "http://example.com/#a",
    "x" * 2001,
    "http://exa mple.com/",
]


@pytest.mark.parametrize("url", [*PRIVATE, *ODD])
async def test_urls_that_are_never_fetched_are_refused_at_once(
    suite: Suite, ada: Client, url: str
) -> None:
    for fields in ({}, {"file_name": "named.jpg"}):
        refusal = await calls.refused(
            imports(ada).ImportAsset(asked(url, **fields)), grpc.StatusCode.INVALID_ARGUMENT
        )
        assert refusal.fields == ["url"]
        assert "pw@" not in refusal.text
    assert not suite.sql("SELECT 1 FROM assets.assets WHERE owner = %s", (f"user:{ada.subject}",))


async def test_an_address_is_judged_again_when_it_is_fetched(
    own_suite: Suite, web: Receiver
) -> None:
    """The server may call the address and the worker may not, as if the name had pointed elsewhere
    when the import was requested."""
    own_suite.overrides["outbound_allowed_networks"] = "127.0.0.0/8"
    await own_suite.serve("assets")
    own_suite.overrides.clear()
    await own_suite.work("assets")
    asset = (await fetch(own_suite.client("ada"), web.url)).asset
    assert (asset.state, asset.rejection) == (REJECTED, "URL_REFUSED")
    assert web.connections == 0


async def packed(request: Request, writer: asyncio.StreamWriter) -> None:
    await replying(200, DATA, content_encoding="gzip")(request, writer)


async def broken(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + DATA)


async def endless(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(400):
        writer.write(bytes(100_000))
        await writer.drain()


@pytest.mark.parametrize(
    ("reply", "rejection", "words"),
    [
        (replying(404), "FETCH_FAILED", "404"),
        (replying(302, location="http://169.254.169.254/"), "FETCH_FAILED", "redirect"),
        (packed, "FETCH_FAILED", "packs"),
        (replying(200, b""), "EMPTY", "empty"),
        (endless, "TOO_MANY_BYTES", "10485760"),
    ],
)
async def test_what_can_not_be_fetched_is_data(
    open_suite: Suite, eve: Client, web: Receiver, reply: Reply, rejection: str, words: str
) -> None:
    web.reply = reply
    answer = await fetch(eve, web.url)
    assert (answer.asset.state, answer.asset.rejection) == (
        REJECTED,
        rejection,
    ), answer.asset.rejection_message
    assert words in answer.asset.rejection_message and not answer.duplicates
    assert web.connections == 1


@pytest.mark.long
@pytest.mark.parametrize("first", [replying(503), broken], ids=["busy", "broken off"])
async def test_a_busy_or_broken_server_is_asked_again(
    open_suite: Suite, eve: Client, web: Receiver, first: Reply
) -> None:
    replies = [first, replying(200, DATA)]

    async def next_one(request: Request, writer: asyncio.StreamWriter) -> None:
        await replies.pop(0)(request, writer)

    web.reply = next_one
    assert (await fetch(eve, web.url)).asset.state == READY
    outcomes = open_suite.sql(
        "SELECT number, outcome, error_class FROM assets.attempts WHERE owner = %s AND job ="
        " 'imports' ORDER BY number",
        (f"user:{eve.subject}",),
    )
    assert outcomes == [(1, "retried", "FETCH_FAILED"), (2, "succeeded", "")]


async def test_what_is_not_wanted_is_refused_by_its_bytes(
    open_suite: Suite, eve: Client, web: Receiver
) -> None:
    other = hashlib.sha256(b"").hexdigest()
    assert (await fetch(eve, web.url, sha256=other)).asset.rejection == "HASH_MISMATCH"
    web.reply = replying(200, pictures.pdf(), content_type="image/jpeg")
    assert (await fetch(eve, web.url)).asset.rejection == "TYPE_NOT_ALLOWED"
    document = (await fetch(eve, web.url, kind=DOCUMENT)).asset
    assert (document.state, document.mime_type) == (READY, "application/pdf")


async def test_a_urls_query_is_forgotten(
    open_suite: Suite, eve: Client, web: Receiver, capfd: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{web.port}/a.jpg?token=canary-in-query"
    await fetch(eve, url)
    web.reply = replying(404)
    rejected = (await fetch(eve, url)).asset
    assert "canary-in-query" not in rejected.rejection_message
    for table in ("imports", "events", "attempts", "requests", "assets"):
        found = open_suite.sql(
            f"SELECT 1 FROM assets.{table} AS t WHERE t::text LIKE '%%canary-in-query%%'"
        )
        assert not found, table

    said = capfd.readouterr()
    assert "canary-in-query" not in said.out + said.err


async def test_kinds_have_their_roles_here_too(
    suite: Suite, caller: Callable[..., Client], ada: Client
) -> None:
    for kind in (asset_pb2.ASSET_KIND_STYLE, asset_pb2.ASSET_KIND_RESULT):
        refusal = await calls.refused(
            imports(ada).ImportAsset(asked("https://example.com/a.jpg", kind=kind)),
            grpc.StatusCode.PERMISSION_DENIED,
        )
        assert refusal.reason == "ROLE_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"kind": 0}, "kind"),
        ({"kind": 99}, "kind"),
        ({"sha256": "x"}, "sha256"),
        ({"file_name": "\x00\u202e"}, "file_name"),
        ({"file_name": "x" * 10_000}, "file_name"),
        ({"tags": ["x" * 65]}, "tags[0]"),
        ({"visibility": 9}, "visibility"),
        ({"metadata": {"a": "x" * 1_000_000}}, "metadata"),
        ({"scope": {"room_id": "x" * 129}}, "scope.room_id"),
        ({"url": ""}, "url"),
    ],
)
async def test_a_request_that_breaks_a_rule_is_refused(
    ada: Client, fields: dict[str, Any], path: str
) -> None:
    refusal = await calls.refused(
        imports(ada).ImportAsset(asked(**{"url": "https://example.com/a.jpg", **fields})),
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    assert refusal.fields == [path]


async def test_a_file_that_turns_out_not_to_fit_the_quota_is_fetched_once_and_not_kept(
    open_suite: Suite, eve: Client, web: Receiver
) -> None:
    await storage.set_quota(
        open_suite.client("root", "admin"), f"user:{eve.subject}", stored_bytes=len(DATA) - 1
    )
    asset = (await fetch(eve, web.url)).asset
    assert (asset.state, asset.rejection) == (REJECTED, "QUOTA_EXCEEDED")
    assert str(len(DATA) - 1) in asset.rejection_message and len(web.requests) == 1
    assert stored(open_suite, asset.id) == set()


async def test_an_import_is_held_against_the_deployments_quota(
    open_suite: Suite, eve: Client, web: Receiver
) -> None:
    root = open_suite.client("root", "admin")
    try:
        await storage.set_quota(
            root, stored_bytes=(await storage.report(root)).stored_bytes + len(DATA) - 1
        )
        asset = (await fetch(eve, web.url)).asset
    finally:
        await storage.set_quota(root)

    assert (asset.state, asset.rejection) == (REJECTED, "QUOTA_EXCEEDED")


async def test_imports_from_a_server_that_never_answers_keep_nobody_elses_waiting(
    open_suite: Suite, eve: Client, web: Receiver
) -> None:
    async def never(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    many = 3 * open_suite.settings("assets", "worker").worker_concurrency
    async with receiving(never) as silent:
        begun = [(await fetch(eve, silent.url, wait=False)).asset.id for _ in range(many)]
        async with asyncio.timeout(10):
            while len(silent.requests) < many:
                await asyncio.sleep(0.05)
        assert (await fetch(open_suite.client("somebody-else"), web.url)).asset.state == READY
        for asset_id in begun:
            assert (await flows.get(eve, asset_id)).state == PENDING
            await ask(eve, "Purge", asset_id)


@pytest.mark.long
async def test_imports_from_a_slow_server_keep_no_image_waiting(
    open_suite: Suite, eve: Client
) -> None:
    go = asyncio.Event()

    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        await replying(200, DATA)(request, writer)

    async with receiving(slow) as web:
        begun = [(await fetch(eve, web.url, wait=False)).asset.id for _ in range(5)]
        async with asyncio.timeout(10):
            while len(web.requests) < open_suite.settings("assets", "worker").worker_concurrency:
                await asyncio.sleep(0.05)
        other = await flows.upload(open_suite.client("somebody-else"), DATA)
        made = await flows.variants_of(open_suite.client("somebody-else"), other.id, timeout=20)
        assert {v.state for v in made.values()} == {asset_pb2.VARIANT_STATE_READY}
        go.set()
        async with asyncio.timeout(30):
            for asset_id in begun:
                while (await flows.get(eve, asset_id)).state != READY:
                    await asyncio.sleep(0.1)
                await flows.variants_of(eve, asset_id)
