"""Who did what with an image, how often, and which of it others learn."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import album_pb2, album_pb2_grpc, asset_pb2, usage_pb2_grpc
from atelier.assets.v1 import usage_pb2 as pb

from services.assets.core import usage_log
from shared.database.db import Database
from shared.rpc import origin
from tests import calls
from tests.assets import flows
from tests.assets.test_trash import ask
from tests.suite import Client, Suite

DATA = flows.jpeg(64, 48)
PUBLIC = asset_pb2.VISIBILITY_PUBLIC
UPLOAD, VIEW, DOWNLOAD, DELETE, UPDATE, SHARE, CONVERT, USE = range(1, 9)


def stub(client: Client) -> Any:
    return client.stub(usage_pb2_grpc.UsageServiceStub)


async def record(client: Client, asset_id: str, action: Any = SHARE, **fields: Any) -> pb.Usage:
    request = pb.RecordUsageRequest(asset_id=asset_id, action=action, **fields)
    return (await stub(client).RecordUsage(request)).usage


async def history(client: Client, **fields: Any) -> list[pb.Usage]:
    return list((await stub(client).ListUsage(pb.ListUsageRequest(**fields))).usages)


async def until(client: Client, count: int, **fields: Any) -> list[pb.Usage]:
    """Returns the history once it has so many rows."""
    async with asyncio.timeout(10):
        while len(found := await history(client, **fields)) < count:
            await asyncio.sleep(0.05)
    assert len(found) == count
    return found


async def stats(client: Client, **fields: Any) -> dict[int, tuple[int, int]]:
    """Returns (by the owner, by others) per action."""
    answer = await stub(client).GetUsageStats(pb.GetUsageStatsRequest(**fields))
    found: dict[int, tuple[int, int]] = {}
    for day in answer.days:
        before = found.get(day.action, (0, 0))
        found[day.action] = (before[0] + day.by_owner, before[1] + day.by_others)
    return found


async def download(client: Client, asset_id: str, variant: str = "") -> None:
    async for _ in flows.assets(client).DownloadAsset(
        asset_pb2.DownloadAssetRequest(asset_id=asset_id, variant=variant)
    ):
        pass


async def test_changes_record_themselves_at_once(ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    await flows.update(ada, asset.id, tags=["a"])
    await record(ada, asset.id, CONVERT)

    found = await history(ada, asset_id=asset.id)
    assert [use.action for use in found] == [CONVERT, UPDATE, UPLOAD]
    assert {use.actor for use in found} == {ada.subject} and {use.ip_address for use in found} == {
        "127.0.0.1"
    }
    assert all(use.user_agent.startswith("grpc-python") for use in found)
    assert await stats(ada, asset_id=asset.id) == {UPLOAD: (1, 0), UPDATE: (1, 0), CONVERT: (1, 0)}


async def test_a_delete_is_recorded_once_whichever_way_it_goes(ada: Client) -> None:
    trashed, purged, batched = [(await flows.upload(ada, DATA)).id for _ in range(3)]
    pending = (await flows.announce(ada, DATA)).asset.id
    for _ in range(2):  # the second call finds the asset in the trash
        await ask(ada, "Delete", trashed)
    await ask(ada, "Purge", trashed)
    await ask(ada, "Purge", purged)
    for _ in range(2):
        asked = asset_pb2.BatchDeleteAssetsRequest(asset_ids=[batched, pending], request_id="both")
        await flows.assets(ada).BatchDeleteAssets(asked)
    await flows.get(ada, batched, include_urls=True)  # the call shows no picture

    found = await until(ada, 3, action=DELETE)
    assert {(use.asset_id, use.actor) for use in found} == {
        (i, ada.subject) for i in (trashed, purged, batched)
    }
    assert await stats(ada) == {UPLOAD: (3, 0), DELETE: (3, 0)}


async def test_a_change_that_fails_or_is_repeated_is_not_recorded(ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    outdated = flows.update(ada, asset.id, etag="0", tags=["a"])
    await calls.refused(outdated, grpc.StatusCode.ABORTED)
    for _ in range(3):
        await flows.update(ada, asset.id, tags=["b"], request_id="u")
        await record(ada, asset.id, SHARE, request_id="r")
    assert await stats(ada, asset_id=asset.id) == {UPLOAD: (1, 0), UPDATE: (1, 0), SHARE: (1, 0)}


async def test_reads_are_recorded_soon_and_only_those_that_show_the_image(ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    await flows.variants_of(ada, asset.id)
    await flows.get(ada, asset.id)
    await flows.get(ada, asset.id, include_urls=True)
    await download(ada, asset.id)
    await download(ada, asset.id, "thumb")

    found = await until(ada, 4, asset_id=asset.id)
    assert sorted((use.action, dict(use.metadata).get("variant", "")) for use in found) == [
        (UPLOAD, ""),
        (VIEW, ""),
        (DOWNLOAD, ""),
        (DOWNLOAD, "thumb"),
    ]
    assert await stats(ada, asset_id=asset.id) == {UPLOAD: (1, 0), VIEW: (1, 0), DOWNLOAD: (2, 0)}


async def test_an_albums_download_is_one_of_each_image(ada: Client) -> None:
    ids = [(await flows.upload(ada, DATA)).id for _ in range(2)]
    albums = ada.stub(album_pb2_grpc.AlbumServiceStub)
    album = (await albums.CreateAlbum(album_pb2.CreateAlbumRequest(name="x"))).album
    await albums.AddAlbumAssets(album_pb2.AddAlbumAssetsRequest(album_id=album.id, asset_ids=ids))
    async for _ in albums.DownloadAlbum(album_pb2.DownloadAlbumRequest(album_id=album.id)):
        pass

    found = await until(ada, 2, action=DOWNLOAD)
    assert {use.asset_id for use in found} == set(ids)
    assert {dict(use.metadata)["album_id"] for use in found} == {album.id}


@pytest.mark.long
async def test_the_owner_learns_how_often_and_not_who(
    suite: Suite, ada: Client, caller: Callable[..., Client]
) -> None:
    asset = await flows.upload(ada, DATA, visibility=PUBLIC)
    others = [caller(role) for role in ("user", "vendor", "anonymous")]
    for other in others:
        await record(other, asset.id, SHARE, session_id="s", metadata={"where": "blog"})
        await flows.get(other, asset.id, include_urls=True)

        [view, share] = await until(other, 2)
        assert (share.session_id, dict(share.metadata), share.asset_id) == (
            "s",
            {"where": "blog"},
            asset.id,
        )
        assert view.action == VIEW
        assert await stats(other) == {} and await stats(other, asset_id=asset.id) == {}
    assert (await stats(ada, asset_id=asset.id))[SHARE] == (0, 3)
    assert (await stats(ada))[VIEW] == (0, 3)

    answers = [
        await stub(ada).ListUsage(pb.ListUsageRequest()),
        await stub(ada).GetUsageStats(pb.GetUsageStatsRequest(asset_id=asset.id)),
    ]
    for other in others:
        assert not any(other.subject.encode() in answer.SerializeToString() for answer in answers)
    assert [use.action for use in await history(ada)] == [UPLOAD]


async def test_32_at_once_are_counted_exactly(ada: Client, caller: Callable[..., Client]) -> None:
    assets = [await flows.upload(ada, DATA, visibility=PUBLIC) for _ in range(2)]
    callers = [ada, *(caller() for _ in range(3))]
    await asyncio.gather(*(record(callers[n % 4], assets[n // 4 % 2].id, VIEW) for n in range(32)))
    for asset in assets:
        assert (await stats(ada, asset_id=asset.id))[VIEW] == (4, 12)
    assert (await stats(ada))[VIEW] == (8, 24)


async def test_a_conversions_inputs_are_recorded_once_per_holder(
    suite: Suite, ada: Client, caller: Callable[..., Client]
) -> None:
    owner = caller("vendor")
    cloth = await flows.upload(owner, DATA, visibility=PUBLIC)
    conversions = suite.as_token(suite.keys.service_token("conversions", f"user:{ada.subject}"))

    for conversion in ("c1", "c1", "c2"):
        request = asset_pb2.AcquireReferencesRequest(
            holder=f"conversions/conversions/{conversion}",
            asset_ids=[cloth.id],
            conversion_id=conversion,
        )
        await flows.assets(conversions).AcquireReferences(request)

    await flows.assets(conversions).AcquireReferences(
        asset_pb2.AcquireReferencesRequest(holder="other", asset_ids=[cloth.id])
    )
    assert [(use.action, use.conversion_id, use.ip_address) for use in await history(ada)] == [
        (USE, "c2", ""),
        (USE, "c1", ""),
    ]
    assert (await stats(owner, asset_id=cloth.id))[USE] == (0, 2)

    await download(conversions, cloth.id)
    await record(ada, cloth.id, VIEW)
    assert [use.action for use in await history(ada)] == [VIEW, USE, USE]


async def test_history_survives_the_image(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    await suite.change("DELETE FROM assets.assets WHERE id = %s", (asset.id,))
    assert [use.action for use in await history(ada, asset_id=asset.id)] == [UPLOAD]
    assert await stats(ada, asset_id=asset.id) == {UPLOAD: (1, 0)}
    await calls.refused(record(ada, asset.id), grpc.StatusCode.NOT_FOUND)


async def test_what_may_not_be_used_is_not_recorded(
    suite: Suite, ada: Client, caller: Callable[..., Client]
) -> None:
    pending = (await flows.announce(ada, DATA)).asset
    deleted = await flows.upload(ada, DATA)
    await suite.change(
        "UPDATE assets.assets SET deleted_at = now(), expires_at = now() WHERE id = %s",
        (deleted.id,),
    )
    for asset_id in (pending.id, deleted.id):
        await calls.refused(record(ada, asset_id), grpc.StatusCode.FAILED_PRECONDITION)

    foreign = await flows.upload(caller(), DATA)
    for asset_id in (foreign.id, flows.request_id()):
        await calls.refused(record(ada, asset_id), grpc.StatusCode.NOT_FOUND)
    assert {use.action for use in await history(ada)} == {UPLOAD}


async def test_pages_filters_and_dates(ada: Client) -> None:
    one, two = [await flows.upload(ada, DATA) for _ in range(2)]
    made = [await record(ada, (one, two)[n % 2].id, (SHARE, VIEW)[n // 2 % 2]) for n in range(12)]
    made.reverse()
    ids = [use.id for use in made]
    assert [use.id for use in await history(ada)][:12] == ids
    assert [use.id for use in await history(ada, skip=2, page_size=3)] == ids[2:5]

    seen: list[str] = []
    token = ""
    while len(seen) < 12:
        page = await stub(ada).ListUsage(pb.ListUsageRequest(page_size=5, page_token=token))
        seen += [use.id for use in page.usages]
        token = page.next_page_token
    assert seen[:12] == ids and not token

    shares = [use.id for use in made if use.asset_id == one.id and use.action == SHARE]
    assert [use.id for use in await history(ada, asset_id=one.id, action=SHARE)] == shares
    between = await history(
        ada, created_from=made[8].create_time, created_before=made[4].create_time
    )
    assert [use.id for use in between] == ids[5:9]


async def test_sums_are_by_day(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    today = datetime.now(UTC).date()
    for days in (1, 30, 31, 400):
        suite.sql(
            "INSERT INTO assets.usage_days VALUES (%s, %s, %s, 'view', %s, 1)",
            (f"user:{ada.subject}", asset.id, today - timedelta(days), days),
        )

    answer = await stub(ada).GetUsageStats(pb.GetUsageStatsRequest(asset_id=asset.id))
    assert [(day.day, day.by_owner) for day in answer.days if day.action == VIEW] == [
        (str(today - timedelta(1)), 1),
        (str(today - timedelta(30)), 30),
    ]

    old = today - timedelta(400)
    assert await stats(ada, first_day=str(old), last_day=str(old)) == {VIEW: (400, 1)}
    assert await stats(ada, first_day="0001-01-01", last_day="0001-01-01") == {}


async def test_addresses_are_shortened_in_time(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    rows = [(9, "203.0.113.77"), (9, "2001:db8:1:2::3"), (9, None), (1, "203.0.113.78")]
    for days, ip in rows:
        suite.sql(
            "INSERT INTO assets.usage_events (id, owner, actor, asset_id, action, ip, user_agent,"
            " created_at) VALUES (gen_random_uuid(), %s, 'x', %s, 'view', %s, 'Mozilla/5.0 (X11)',"
            " now() - %s)",
            (f"user:{ada.subject}", asset.id, ip, timedelta(days)),
        )

    db = Database(suite.settings("assets", "worker"), "assets")
    await db.open()
    try:
        assert await usage_log.shorten(db, timedelta(days=5), chunk=2) == 3
        assert await usage_log.shorten(db, timedelta(days=5)) == 0
    finally:
        await db.close()

    found = [(use.ip_address, use.user_agent) for use in await history(ada, action=VIEW)]
    assert found[0] == ("203.0.113.78", "Mozilla/5.0 (X11)")
    assert sorted(found[1:]) == [
        ("", "Mozilla"),
        ("2001:db8:1::/48", "Mozilla"),
        ("203.0.113.0/24", "Mozilla"),
    ]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"action": 0}, "action"),
        ({"action": UPLOAD}, "action"),
        ({"action": DELETE}, "action"),
        ({"action": UPDATE}, "action"),
        ({"action": USE}, "action"),
        ({"action": 99}, "action"),
        ({"session_id": "x" * 129}, "session_id"),
        ({"conversion_id": "x" * 129}, "conversion_id"),
        ({"metadata": {"x": "y" * 5000}}, "metadata"),
        ({"asset_id": "x"}, "asset_id"),
    ],
)
async def test_a_record_that_breaks_a_rule_is_refused(
    ada: Client, fields: dict[str, Any], path: str
) -> None:
    request = pb.RecordUsageRequest(**{"asset_id": flows.request_id(), "action": SHARE, **fields})
    refusal = await calls.refused(stub(ada).RecordUsage(request), grpc.StatusCode.INVALID_ARGUMENT)
    assert refusal.fields == [path]
    assert path != "action" or "VIEW, DOWNLOAD, SHARE or CONVERT" in refusal.text


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"first_day": "2026-13-01"}, "first_day"),
        ({"last_day": "2026-02-30"}, "last_day"),
        ({"first_day": "yesterday"}, "first_day"),
        ({"first_day": "2026-02-02", "last_day": "2026-02-01"}, "first_day"),
        ({"first_day": "2024-01-01", "last_day": "2026-01-01"}, "first_day"),
        ({"asset_id": "x"}, "asset_id"),
    ],
)
async def test_sums_of_impossible_days_are_refused(
    ada: Client, fields: dict[str, Any], path: str
) -> None:
    refusal = await calls.refused(
        stub(ada).GetUsageStats(pb.GetUsageStatsRequest(**fields)), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.fields == [path]


async def test_text_is_text(ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    for text in (
        "%_\\",
        "'; DROP TABLE usage_events; --",
        "$.a",
        "\u202egpj",
        "👩‍👩‍👧",
        "e\u0301",
        "x" * 128,
    ):
        made = await record(
            ada, asset.id, session_id=text, conversion_id=text, metadata={text: text}
        )
        [found, *_] = await history(ada, action=SHARE, page_size=1)
        assert (found, found.session_id, found.conversion_id) == (made, text, text)
        assert dict(found.metadata) == {text: text}

    for fields in ({"session_id": "a\x00"}, {"metadata": {"a": "\x00"}}):
        await calls.refused(record(ada, asset.id, **fields), grpc.StatusCode.INVALID_ARGUMENT)


async def test_notes_outlive_a_stop_and_are_counted_once(own_suite: Suite) -> None:
    await own_suite.serve("assets")
    ada = own_suite.client("ada")
    asset = await flows.upload(ada, DATA)
    for _ in range(7):
        await flows.get(ada, asset.id, include_urls=True)

    await own_suite.stop("assets")
    assert own_suite.sql("SELECT count(*) FROM assets.usage_events WHERE action = 'view'") == [(7,)]
    assert own_suite.sql(
        "SELECT by_owner, by_others FROM assets.usage_days WHERE action = 'view'"
    ) == [(7, 0)]


@pytest.mark.long
async def test_a_read_is_answered_though_its_use_cannot_be_written(own_suite: Suite) -> None:
    """The use isn't lost either: it is written once that is possible again."""
    await own_suite.serve("assets")
    ada = own_suite.client("ada")
    asset = await flows.upload(ada, DATA)
    with calls.holding(own_suite, "LOCK TABLE assets.usage_events IN ACCESS EXCLUSIVE MODE", None):
        for _ in range(3):
            assert (await flows.get(ada, asset.id, include_urls=True)).original_url
        await asyncio.sleep(1.2)  # a flush has begun, and waits
    assert len(await until(ada, 3, action=VIEW)) == 3


# The origin of a call


class Context:
    """The call's facts that gRPC passes to a handler."""

    def __init__(self, peer: str, metadata: Sequence[tuple[str, str | bytes]] = ()) -> None:
        self._peer = peer
        self._metadata = metadata

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        return self._metadata


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "ip"),
    [
        ("ipv4:198.51.100.7:4000", None, "", "198.51.100.7"),
        ("ipv6:%5B2001:db8::1%5D:4000", None, "", "2001:db8::1"),
        ("ipv6:[::ffff:198.51.100.7]:4000", None, "", "198.51.100.7"),
        ("unix:/tmp/socket", "203.0.113.1", "0.0.0.0/0", None),
        ("ipv4:198.51.100.7:4000", "203.0.113.1", "", "198.51.100.7"),
        ("ipv4:198.51.100.7:4000", "203.0.113.1", "10.0.0.0/8", "198.51.100.7"),
        ("ipv4:10.0.0.1:4000", "203.0.113.1", "10.0.0.0/8", "203.0.113.1"),
        ("ipv4:10.0.0.1:4000", "6.6.6.6, 203.0.113.1", "10.0.0.0/8", "203.0.113.1"),
        ("ipv4:10.0.0.1:4000", "203.0.113.1, 10.0.0.2", "10.0.0.0/8, fd00::/8", "203.0.113.1"),
        ("ipv4:10.0.0.1:4000", "203.0.113.1, nonsense", "10.0.0.0/8", "10.0.0.1"),
        ("ipv4:10.0.0.1:4000", "", "10.0.0.0/8", "10.0.0.1"),
    ],
)
async def test_only_trusted_proxies_are_believed(
    peer: str, forwarded: str | None, trusted: str, ip: str | None
) -> None:
    agent: list[tuple[str, str | bytes]] = [
        ("user-agent", "front\x00end/1.0 " + "x" * 400),
        ("trace-bin", b"\xff"),
    ]
    origin.enter(
        Context(
            peer, [*agent, *([("x-forwarded-for", forwarded)] if forwarded is not None else [])]
        )
    )

    found = origin.current(origin.networks(trusted))
    assert found.ip == ip and found.user_agent == ("frontend/1.0 " + "x" * 400)[:300]


async def test_a_job_comes_from_nowhere() -> None:
    origin.enter(None)
    assert origin.current([]) == origin.NOWHERE
