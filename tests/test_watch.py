"""A watch misses nothing, tells nothing twice, and never falls silent, within one process. assets
stands for every service: its watch is made of shared.background.watches."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
import psycopg
import pytest
from atelier.assets.v1 import asset_pb2

from shared.background import events, watches
from shared.database.db import Database
from tests import calls
from tests.assets import flows
from tests.suite import Client, Suite

DATA = flows.jpeg(64, 48)


@pytest.fixture
async def suite(suite: Suite) -> Suite:
    await suite.serve("assets")
    await suite.work("assets")
    return suite


def watch(client: Client, cursor: str = "", asset_ids: Sequence[str] = ()) -> Any:
    return flows.assets(client).WatchAssets(
        asset_pb2.WatchAssetsRequest(cursor=cursor, asset_ids=asset_ids)
    )


async def ready(stream: Any) -> list[Any]:
    """Returns the current state, up to and with the bookmark that it is complete."""
    items = []
    async with asyncio.timeout(20):
        while True:
            items.append(await stream.read())
            if items[-1].bookmark.ready:
                return items


async def read(stream: Any, count: int) -> list[Any]:
    """Returns the next changes; bookmarks are skipped."""
    items: list[Any] = []
    async with asyncio.timeout(20):
        while len(items) < count:
            item = await stream.read()
            assert item is not grpc.aio.EOF
            if item.WhichOneof("item") != "bookmark":
                items.append(item)
    return items


def names(items: Sequence[Any]) -> list[str]:
    return [item.asset.file_name for item in items]


def event(
    conn: psycopg.Connection[Any], name: str, *, owner: str = "user:ada", filler: int = 0
) -> None:
    """Writes an outbox row as a mutation does, in the caller's transaction."""
    asset = asset_pb2.Asset(
        id=str(uuid.uuid4()), owner=owner, file_name=name, rejection_message="x" * filler
    )
    conn.execute(
        "INSERT INTO assets.events (owner, subject, subject_id, version, type, payload)"
        " VALUES (%s, 'asset', %s, 1, 'atelier.assets.v1.Asset', %s)",
        (owner, asset.id, asset.SerializeToString()),
    )
    conn.execute("SELECT pg_notify('assets_outbox', '')")


def connect(suite: Suite) -> psycopg.Connection[Any]:
    return psycopg.connect(suite.cluster.url(suite.database))


def write(suite: Suite, *file_names: str, filler: int = 0) -> None:
    with connect(suite) as conn:
        for name in file_names:
            event(conn, name, filler=filler)


async def stamped(suite: Suite) -> None:
    """Waits until the sequencer has given every committed event its position."""
    async with asyncio.timeout(20):
        while not suite.sql("SELECT bool_and(position IS NOT NULL) FROM assets.events")[0][0]:
            await asyncio.sleep(0.02)


@asynccontextmanager
async def database(suite: Suite, role: str) -> AsyncIterator[Database]:
    db = Database(suite.settings("assets", role), "assets")
    await db.open()
    try:
        yield db
    finally:
        await db.close()


async def test_it_tells_what_is_then_what_changes_in_the_order_of_versions(suite: Suite) -> None:
    ada = suite.client("ada")
    before = await flows.announce(ada, DATA, file_name="before.jpg")
    stream = watch(ada)
    assert names(await ready(stream)) == ["before.jpg", ""]

    await flows.send(before.target, DATA)
    asset = await flows.confirm(ada, before.upload_id)
    await flows.variants_of(ada, asset.id)
    states: dict[str, list[int]] = {}
    # The asset is confirmed; then each of four variants becomes pending, processing and ready.
    for item in await read(stream, 13):
        thing = item.asset if item.WhichOneof("item") == "asset" else item.variant
        states.setdefault(thing.id, []).append(thing.state)
    assert states.pop(asset.id) == [asset_pb2.ASSET_STATE_READY]

    made = [
        asset_pb2.VARIANT_STATE_PENDING,
        asset_pb2.VARIANT_STATE_PROCESSING,
        asset_pb2.VARIANT_STATE_READY,
    ]
    assert list(states.values()) == [made] * 4


async def test_a_change_that_commits_late_is_told_late_and_never_lost(suite: Suite) -> None:
    stream = watch(suite.client("ada"))
    await ready(stream)
    with connect(suite) as slow, connect(suite) as fast:
        event(slow, "written first, committed last")
        event(fast, "written last, committed first")
        fast.commit()
        [early] = await read(stream, 1)
        slow.commit()
        [late] = await read(stream, 1)
    assert names([early, late]) == [
        "written last, committed first",
        "written first, committed last",
    ]

    resumed = watch(suite.client("ada"), early.cursor)
    assert names(await read(resumed, 1)) == ["written first, committed last"]


async def test_an_open_transaction_elsewhere_holds_nobody_up(suite: Suite) -> None:
    stream = watch(suite.client("ada"))
    await ready(stream)
    other = suite.cluster.clone()

    try:
        with connect(suite) as here, psycopg.connect(suite.cluster.url(other)) as there:
            event(here, "never committed")
            event(there, "in another database")
            write(suite, "told")
            assert names(await read(stream, 1)) == ["told"]
            here.rollback()
            write(suite, "next")
            assert names(await read(stream, 1)) == ["next"]
    finally:
        suite.cluster.drop(other)


@pytest.mark.long
async def test_it_goes_on_from_its_cursor_over_a_restart_without_gap_or_repeat(
    suite: Suite,
) -> None:
    told: list[str] = []
    stream = watch(suite.client("ada"))
    cursor = (await ready(stream))[-1].cursor

    for round_ in range(3):
        write(suite, *(f"{round_}.{n}" for n in range(20)))
        for item in await read(stream, 7):
            told.append(item.asset.file_name)
            cursor = item.cursor
        await suite.stop("assets", seconds=2)
        write(suite, *(f"{round_}.{n} while away" for n in range(5)))
        await suite.serve("assets")
        stream = watch(suite.client("ada"), cursor)

    told += names(await read(stream, 3 * 25 - len(told)))
    expected = [
        f"{r}.{n}{suffix}"
        for r in range(3)
        for count, suffix in ((20, ""), (5, " while away"))
        for n in range(count)
    ]
    assert told == expected


async def test_a_drain_ends_it_with_its_cursor(suite: Suite) -> None:
    stream = watch(suite.client("ada"))
    await ready(stream)
    write(suite, "seen")
    [seen] = await read(stream, 1)
    stopping = asyncio.create_task(suite.stop("assets", seconds=10))
    ended = await calls.refused(stream, grpc.StatusCode.UNAVAILABLE)
    await stopping
    assert ended.reason == "SHUTTING_DOWN"

    await suite.serve("assets")
    write(suite, "after")
    assert names(await read(watch(suite.client("ada"), ended.trailers["cursor"]), 1)) == ["after"]
    assert seen.cursor


async def test_an_idle_watch_gets_bookmarks_that_can_be_resumed_from(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "BOOKMARK_SECONDS", 0.2)
    stream = watch(suite.client("ada"))
    first = (await ready(stream))[-1].cursor
    with connect(suite) as conn:  # changes of other owners move the stream on
        for n in range(5):
            event(conn, f"{n}", owner="user:bob")
    async with asyncio.timeout(20):
        while (item := await stream.read()).cursor == first:
            assert item.WhichOneof("item") == "bookmark" and not item.bookmark.ready
    assert item.bookmark.cursor == item.cursor

    write(suite, "after")
    assert names(await read(watch(suite.client("ada"), item.cursor), 1)) == ["after"]


async def test_a_cursor_of_another_owner_or_filter_is_refused(suite: Suite) -> None:
    ada = suite.client("ada")
    cursor = (await ready(watch(ada)))[-1].cursor
    some_id = str(uuid.uuid4())
    narrow = (await ready(watch(ada, asset_ids=[some_id])))[-1].cursor

    for client, request in (
        (suite.client("bob"), {"cursor": cursor}),
        (suite.client("ada", "vendor"), {"cursor": cursor}),
        (ada, {"cursor": cursor, "asset_ids": [some_id]}),
        (ada, {"cursor": narrow}),
        (ada, {"cursor": narrow, "asset_ids": [str(uuid.uuid4())]}),
        (ada, {"cursor": cursor[:-4]}),
        (ada, {"cursor": "AAAA"}),
        (ada, {"cursor": "\N{SNOWMAN}"}),
    ):
        call = watch(client, **request)
        refusal = await calls.refused(call, grpc.StatusCode.INVALID_ARGUMENT)
        assert refusal.fields == ["cursor"], request


async def test_a_filter_is_kept(suite: Suite) -> None:
    ada = suite.client("ada")
    wanted = await flows.announce(ada, DATA, file_name="wanted.jpg")
    await flows.announce(ada, DATA, file_name="other.jpg")
    stream = watch(ada, asset_ids=[wanted.asset.id])
    assert names(await ready(stream)) == ["wanted.jpg", ""]
    await flows.announce(ada, DATA, file_name="another.jpg")
    await flows.update(ada, wanted.asset.id, file_name="renamed.jpg")
    assert names(await read(stream, 1)) == ["renamed.jpg"]


async def test_watchers_with_other_filters_and_owners_are_each_told_their_own(suite: Suite) -> None:
    ada, bob = suite.client("ada"), suite.client("bob")
    mine = await flows.announce(ada, DATA, file_name="mine.jpg")
    one: list[str] = [mine.asset.id]
    streams = [
        watch(client, asset_ids=ids)
        for client, ids in ((ada, []), (ada, []), (ada, one), (ada, one), (bob, []))
    ]
    for stream in streams:
        await ready(stream)
    write(suite, "other")
    await flows.update(ada, mine.asset.id, file_name="renamed.jpg")
    with connect(suite) as conn:
        event(conn, "bob's", owner="user:bob")

    for all_of_ada in streams[:2]:
        told = await read(all_of_ada, 2)
        assert names(told) == ["other", "renamed.jpg"]
        assert names(await read(watch(ada, told[0].cursor), 1)) == ["renamed.jpg"]
    for one_of_ada in streams[2:4]:
        assert names(await read(one_of_ada, 1)) == ["renamed.jpg"]
    assert names(await read(streams[4], 1)) == ["bob's"]


async def test_what_happens_while_a_watch_begins_is_told_after_the_state(suite: Suite) -> None:
    first = watch(suite.client("ada"))
    await ready(first)
    with calls.holding(suite, "LOCK TABLE assets.assets IN ACCESS EXCLUSIVE MODE", None):
        second = watch(suite.client("ada"))
        beginning = asyncio.create_task(ready(second))
        async with asyncio.timeout(20):
            while not suite.sql(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND"
                " wait_event_type = 'Lock' AND query LIKE '%%FROM assets%%ORDER BY created_at%%'"
            ):
                await asyncio.sleep(0.02)

        write(suite, "meanwhile")
        assert names(await read(first, 1)) == ["meanwhile"]
    assert names(await beginning) == [""]
    assert names(await read(second, 1)) == ["meanwhile"]


async def test_a_watch_of_one_asset_gets_bookmarks_while_others_change(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "BOOKMARK_SECONDS", 0.5)
    stream = watch(suite.client("ada"), asset_ids=[str(uuid.uuid4())])
    cursor = (await ready(stream))[-1].cursor

    async def write_on() -> None:
        while True:
            write(suite, "another")
            await asyncio.sleep(0.1)

    writing = asyncio.create_task(write_on())
    async with asyncio.timeout(20):
        bookmark = await stream.read()
    writing.cancel()
    assert bookmark.WhichOneof("item") == "bookmark" and bookmark.cursor not in ("", cursor)


async def test_many_owners_with_long_names_are_told_at_once(suite: Suite) -> None:
    """The notification that wakes the servers has room for 8,000 bytes; a backslash takes two of
    them."""
    stream = watch(suite.client("ada"))
    await ready(stream)
    for count in (39, 100):
        with connect(suite) as conn:
            for n in range(count):
                event(conn, "long", owner=f"user:{n}{chr(92) * 110}")
            event(conn, "hers")
        assert names(await read(stream, 1)) == ["hers"]


async def test_a_cursor_from_before_what_was_pruned_is_out_of_range_and_a_later_one_is_not(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    stream = watch(ada)
    old = (await ready(stream))[-1].cursor
    write(suite, "a", "b", "c")
    [a, _b, c] = await read(stream, 3)
    async with database(suite, "worker") as worker:
        assert await events.prune_events(worker, timedelta(0), chunk=2) == 3
    for cursor in (old, a.cursor):
        ended = await calls.refused(watch(ada, cursor), grpc.StatusCode.OUT_OF_RANGE)
        assert ended.reason == "CURSOR_TOO_OLD"

    resumed = watch(ada, c.cursor)
    write(suite, "d")
    assert names(await read(resumed, 1)) == ["d"]


async def test_after_a_restore_old_cursors_are_out_of_range(suite: Suite) -> None:
    ada = suite.client("ada")
    cursor = (await ready(watch(ada)))[-1].cursor
    await suite.change("UPDATE assets.event_stream SET epoch = gen_random_uuid()")
    await calls.refused(watch(ada, cursor), grpc.StatusCode.OUT_OF_RANGE)

    write(suite, "a")
    await stamped(suite)
    ahead = (await ready(watch(ada)))[-1].cursor
    await suite.change(
        "UPDATE assets.event_stream SET position = 0"
    )  # a restored backup is behind the cursor
    await calls.refused(watch(ada, ahead), grpc.StatusCode.OUT_OF_RANGE)


@pytest.mark.long
async def test_a_slow_reader_is_sent_away_with_a_cursor_and_loses_nothing(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "QUEUE_LIMIT", 50)
    stream = watch(suite.client("ada"))
    await ready(stream)
    count, told = 600, []
    write(
        suite, *(str(n) for n in range(count)), filler=30_000
    )  # 18 MB: more than the buffers in between hold
    await stamped(suite)
    await asyncio.sleep(0.5)  # the reader sleeps while the server wants to send
    ended = None

    try:
        async with asyncio.timeout(20):
            async for item in stream:
                told.append(item.asset.file_name)
    except grpc.aio.AioRpcError as error:
        ended = calls.refusal_of(error)
    assert ended is not None and (ended.code, ended.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "SLOW_READER",
    )
    assert 0 < len(told) < count

    told += names(
        await read(watch(suite.client("ada"), ended.trailers["cursor"]), count - len(told))
    )
    assert told == [str(n) for n in range(count)]


@pytest.mark.long
async def test_a_reader_that_resumes_far_behind_is_not_a_slow_one(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "QUEUE_LIMIT", 20)
    cursor = (await ready(watch(suite.client("ada"))))[-1].cursor
    write(suite, *(str(n) for n in range(1500)))
    await stamped(suite)
    assert names(await read(watch(suite.client("ada"), cursor), 1500)) == [
        str(n) for n in range(1500)
    ]


@pytest.mark.long
async def test_it_ends_when_the_token_expires(suite: Suite) -> None:
    stream = watch(suite.client("ada", seconds=2))
    await ready(stream)
    ended = await calls.refused(stream, grpc.StatusCode.UNAUTHENTICATED)
    assert ended.reason == "TOKEN_INVALID"
    write(suite, "after")
    assert names(await read(watch(suite.client("ada"), ended.trailers["cursor"]), 1)) == ["after"]


@pytest.mark.long
async def test_it_survives_the_loss_of_the_listening_connections(suite: Suite) -> None:
    stream = watch(suite.client("ada"))
    await ready(stream)
    for n in range(3):
        for last_statement in (
            "LISTEN assets_events",
            "%WITH fresh AS%",
        ):  # the last statements of the server and of the sequencer
            async with asyncio.timeout(20):
                while not suite.sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ="
                    " current_database() AND query LIKE %s AND pid <> pg_backend_pid()",
                    (last_statement,),
                ):
                    await asyncio.sleep(0.02)

        write(suite, f"{n}")
        assert names(await read(stream, 1)) == [f"{n}"]


@pytest.mark.long
async def test_two_sequencers_stamp_each_event_once(suite: Suite) -> None:
    stream = watch(suite.client("ada"))
    await ready(stream)

    async with database(suite, "worker") as worker:
        second = asyncio.create_task(events.run_sequencer(worker))
        for n in range(50):
            write(suite, str(n))
        assert names(await read(stream, 50)) == [str(n) for n in range(50)]
        await suite.stop_work("assets")  # the first gives up the lock; the second takes over
        write(suite, "taken over")
        assert names(await read(stream, 1)) == ["taken over"]
        second.cancel()
    assert suite.sql("SELECT min(position), max(position), count(*) FROM assets.events") == [
        (1, 51, 51)
    ]


async def test_the_current_state_may_be_longer_than_a_page(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.assets.core.assets._SNAPSHOT_PAGE", 3)
    ada = suite.client("ada")
    for n in range(7):
        await flows.announce(ada, DATA, file_name=f"{n}.jpg")
    assert names(await ready(watch(ada))) == [*(f"{n}.jpg" for n in range(7)), ""]
