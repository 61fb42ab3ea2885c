"""The cleanup deletes abandoned and expired items, each on its own; whole sessions are deleted on
request."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, storage_pb2, storage_pb2_grpc

from tests import calls
from tests.assets import flows
from tests.assets import test_documents as documents
from tests.assets import test_renders as renders
from tests.assets.test_references import acquire
from tests.assets.test_trash import ask, freed, listed, stored
from tests.suite import Client, Cluster, DiskServer, Keys, Suite, running_suite

DATA = flows.jpeg(64, 48)
_numbers = itertools.count()
DONE = storage_pb2.RUN_STATE_DONE


def storage(client: Client) -> Any:
    return client.stub(storage_pb2_grpc.StorageServiceStub)


async def run(client: Client, method: str, **fields: Any) -> storage_pb2.Run:
    """Starts a run and waits for its end."""
    request = getattr(storage_pb2, f"{method}Request")(wait=True, **fields)
    # Without a deadline of its own a call has 30 s; a run over thousands of rows takes longer on a
    # busy machine.
    answer = (await getattr(storage(client), method)(request, timeout=100)).run
    made: storage_pb2.Run = answer
    assert made.state == DONE, made
    return made


def figures(run: storage_pb2.Run) -> dict[str, tuple[int, int, int]]:
    return {count.what: (count.found, count.done, count.kept) for count in run.counts}


@pytest.fixture(scope="module")
async def suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    """A database of this module's own: a cleanup covers all owners."""
    async with running_suite(cluster, keys, disk) as suite:
        suite.overrides["idle_session_days"] = 183
        await suite.serve("assets")
        await suite.work("assets")
        yield suite


@pytest.fixture
def ada(suite: Suite) -> Client:
    return suite.client(f"ada{next(_numbers)}")


@pytest.fixture
def root(suite: Suite) -> Client:
    return suite.client("root", "admin")


def in_session(session_id: str) -> dict[str, Any]:
    return {
        "scope": asset_pb2.AssetScope(session_id=session_id),
        "kind": asset_pb2.ASSET_KIND_PHOTO,
    }


async def abandoned(suite: Suite, client: Client) -> str:
    """Makes an asset whose bytes were sent and never confirmed; returns its id."""
    announced = await flows.announce(client, DATA)
    await flows.send(announced.target, DATA)
    await suite.change(
        "UPDATE assets.uploads SET expires_at = now() - interval '2 hours' WHERE id = %s",
        (announced.upload_id,),
    )
    return announced.asset.id


async def expired(suite: Suite, client: Client) -> str:
    asset = await flows.upload(client, DATA)
    await ask(client, "Delete", asset.id)
    await suite.change(
        "UPDATE assets.assets SET expires_at = now() - interval '1 s' WHERE id = %s", (asset.id,)
    )
    return asset.id


@pytest.mark.long
async def test_a_dry_run_counts_and_the_real_one_removes(
    suite: Suite, root: Client, ada: Client
) -> None:
    gone = [await abandoned(suite, ada), await expired(suite, ada)]
    fresh = (await flows.announce(ada, DATA)).asset.id
    kept = await flows.upload(ada, DATA)
    await ask(ada, "Delete", kept.id)
    looked = await run(root, "RunCleanup", dry_run=True)
    assert figures(looked) == {
        "abandoned_uploads": (1, 0, 0),
        "rejected_uploads": (0, 0, 0),
        "expired_trash": (1, 0, 0),
        "expired_documents": (0, 0, 0),
        "idle_sessions": (0, 0, 0),
    }
    assert [list(count.sample) for count in looked.counts] == [
        [gone[0]],
        [],
        [gone[1]],
        [],
        [],
    ]  # given by name
    assert {(await flows.get(ada, asset_id)).id for asset_id in gone} == set(gone)

    cleaned = await run(root, "RunCleanup")
    assert figures(cleaned)["abandoned_uploads"] == figures(cleaned)["expired_trash"] == (1, 1, 0)
    assert not cleaned.failures and not cleaned.capped and cleaned.HasField("end_time")
    for asset_id in gone:
        await calls.refused(flows.get(ada, asset_id), grpc.StatusCode.NOT_FOUND)
        await freed(suite, asset_id)
    assert (await flows.get(ada, fresh)).id == fresh and (
        await flows.get(ada, kept.id)
    ).id == kept.id
    assert {found for found, _, _ in figures(await run(root, "RunCleanup")).values()} == {0}


async def test_what_still_comes_in_parts_or_by_url_is_not_abandoned(
    suite: Suite, root: Client, ada: Client
) -> None:
    started = await flows.start(ada, DATA)
    await flows.send_parts(started.targets, DATA)
    importing = (await flows.announce(ada, DATA)).asset
    await suite.change("DELETE FROM assets.uploads WHERE asset_id = %s", (importing.id,))
    await suite.change(
        "INSERT INTO assets.imports (id, owner, asset_id, url, state)"
        " VALUES (%s, %s, %s, 'https://example.com/', 'running')",
        (flows.request_id(), importing.owner, importing.id),
    )
    both = {started.asset.id, importing.id}
    aged = (
        "UPDATE assets.assets SET created_at = now() - interval '2 days' WHERE id = ANY(%s::uuid[])"
    )
    await suite.change(aged, (list(both),))
    assert figures(await run(root, "RunCleanup"))["abandoned_uploads"] == (0, 0, 0)
    assert set(await listed(ada, state=asset_pb2.ASSET_STATE_PENDING)) == both

    await suite.change(
        "UPDATE assets.imports SET state = 'failed' WHERE asset_id = %s", (importing.id,)
    )
    over = (
        "UPDATE assets.resumable_uploads SET expires_at = now() - interval '2 hours' WHERE id = %s"
    )
    await suite.change(over, (started.upload_id,))
    assert figures(await run(root, "RunCleanup"))["abandoned_uploads"] == (2, 2, 0)


async def test_what_was_refused_long_ago_goes(suite: Suite, root: Client, ada: Client) -> None:
    refused = []
    for _ in range(2):
        broken = await flows.announce(ada, DATA)
        await flows.send(broken.target, b"\0" * len(DATA))
        await calls.refused(
            flows.confirm(ada, broken.upload_id), grpc.StatusCode.FAILED_PRECONDITION
        )
        refused.append(broken.asset.id)

    await suite.change(
        "UPDATE assets.assets SET created_at = now() - interval '31 days' WHERE id = %s",
        (refused[0],),
    )
    assert figures(await run(root, "RunCleanup"))["rejected_uploads"] == (1, 1, 0)
    await calls.refused(flows.get(ada, refused[0]), grpc.StatusCode.NOT_FOUND)
    assert (await flows.get(ada, refused[1])).state == asset_pb2.ASSET_STATE_REJECTED


async def test_expired_documents_go_with_their_bytes_and_others_stay(
    suite: Suite, root: Client, ada: Client
) -> None:
    old = [await documents.create(ada, documents.checklist()) for _ in range(3)]
    live = await documents.create(ada, documents.checklist())
    await suite.change(
        "UPDATE assets.documents SET expires_at = now() - interval '1 s' WHERE id ="
        " ANY(%s::uuid[])",
        ([each.id for each in old],),
    )
    assert figures(await run(root, "RunCleanup", dry_run=True))["expired_documents"] == (3, 0, 0)

    capped = await run(root, "RunCleanup", max_items=2)
    assert capped.capped and figures(capped)["expired_documents"] == (2, 2, 0)
    rest = await run(root, "RunCleanup")
    assert not rest.capped and figures(rest)["expired_documents"] == (1, 1, 0)

    for each in old:
        await freed(suite, each.id)
    assert (await documents.get(ada, live.id)).id == live.id and stored(suite, live.id)


async def test_a_run_is_capped_and_the_next_one_goes_on(
    suite: Suite, root: Client, ada: Client
) -> None:
    ids = [await abandoned(suite, ada) for _ in range(3)]
    first = await run(root, "RunCleanup", max_items=2)
    assert figures(first)["abandoned_uploads"] == (2, 2, 0) and first.capped
    second = await run(root, "RunCleanup", max_items=2)
    assert figures(second)["abandoned_uploads"] == (1, 1, 0) and not second.capped
    assert suite.sql("SELECT count(*) FROM assets.assets WHERE id = ANY(%s::uuid[])", (ids,)) == [
        (0,)
    ]


@pytest.mark.long
async def test_an_item_that_cannot_go_is_reported_and_stops_no_other(
    suite: Suite, root: Client, ada: Client
) -> None:
    ids = [await expired(suite, ada) for _ in range(3)]
    # Stands for a table of a newer version, which this one doesn't know.
    suite.sql("CREATE TABLE assets.newer (id uuid REFERENCES assets.assets (id))")
    await suite.change("INSERT INTO assets.newer VALUES (%s)", (ids[1],))
    try:
        cleaned = await run(root, "RunCleanup")
    finally:
        suite.sql("DROP TABLE assets.newer")

    assert figures(cleaned)["expired_trash"] == (2, 2, 0)
    assert [(failure.what, failure.item) for failure in cleaned.failures] == [
        ("expired_trash", ids[1])
    ]
    assert (await flows.get(ada, ids[1])).id == ids[1]
    assert figures(await run(root, "RunCleanup"))["expired_trash"] == (1, 1, 0)


async def test_an_idle_session_goes_to_the_trash_and_not_what_is_used(
    suite: Suite, root: Client, ada: Client
) -> None:
    old, used, lively = [
        await flows.upload(ada, DATA, **in_session(s)) for s in ("old", "old", "lively")
    ]
    await acquire(ada, "h", used.id)
    statement = (
        "UPDATE assets.assets SET updated_at = now() - interval '184 days' WHERE session_id = 'old'"
    )
    suite.sql(statement)
    assert figures(await run(root, "RunCleanup", dry_run=True))["idle_sessions"] == (1, 0, 0)

    cleaned = figures(await run(root, "RunCleanup"))
    assert (cleaned["idle_sessions"], cleaned["idle_session_assets"]) == ((1, 1, 0), (2, 1, 1))
    assert (await flows.get(ada, old.id)).HasField("expire_time")
    assert set(await listed(ada)) == {used.id, lively.id}


@pytest.mark.long
async def test_a_session_is_deleted_or_purged_whole(suite: Suite, ada: Client) -> None:
    public = asset_pb2.VISIBILITY_PUBLIC
    one = await flows.upload(ada, DATA, **in_session("s"))
    two = await flows.upload(ada, DATA, visibility=public, **in_session("s"))
    other = await flows.upload(ada, DATA, **in_session("t"))
    used = await flows.upload(ada, DATA, **in_session("s"))
    await acquire(ada, "h", used.id)
    deleted = await run(ada, "DeleteSession", session_id="s", request_id="once")
    assert (deleted.session_id, figures(deleted)) == ("s", {"assets": (3, 2, 1)})
    assert "release it there" in deleted.counts[0].why_kept
    assert set(await listed(ada)) == {other.id, used.id}
    assert {key.split("/")[0] for key in stored(suite, two.id)} == {"assets"}

    purged = await run(ada, "DeleteSession", session_id="s", purge=True, force=True)
    assert figures(purged) == {"assets": (3, 3, 0)} and purged.counts[0].bytes > 0
    for asset in (one, two, used):
        await freed(suite, asset.id)
    assert await listed(ada, show_deleted=True) == [other.id]
    assert figures(await run(ada, "DeleteSession", session_id="nothing there")) == {}


@pytest.mark.long
async def test_a_purged_session_takes_its_documents_and_comparisons_along(
    suite: Suite, ada: Client
) -> None:
    one, two = [await flows.upload(ada, DATA, **in_session("s")) for _ in range(2)]
    other = await flows.upload(ada, DATA, **in_session("t"))
    compared = await renders.compare(ada, one.id, two.id, session_id="s")
    elsewhere = await renders.compare(ada, other.id, one.id, session_id="t")
    plan = await documents.create(ada, documents.plan(one.id, other.id), session_id="s")
    stays = await documents.create(ada, documents.checklist(), session_id="t")
    purged = await run(ada, "DeleteSession", session_id="s", purge=True)
    assert figures(purged) == {
        "documents": (1, 1, 0),
        "comparisons": (1, 1, 0),
        "assets": (3, 2, 1),
    }

    await freed(suite, two.id)
    await freed(suite, compared.picture_asset_id)
    assert set(await listed(ada)) == {
        other.id,
        one.id,
        elsewhere.picture_asset_id,
    }, "another session's holds one"
    for call in (renders.get(ada, compared.id), documents.get(ada, plan.id)):
        await calls.refused(call, grpc.StatusCode.NOT_FOUND)
    assert (await renders.get(ada, elsewhere.id)).before_asset_id == other.id
    assert (await documents.get(ada, stays.id)).id == stays.id


async def test_runs_are_listed_for_those_they_concern(
    suite: Suite, root: Client, ada: Client, bob: Client
) -> None:
    mine = await run(ada, "DeleteSession", session_id="s")
    system = await run(root, "RunCleanup", dry_run=True)
    assert [each.id for each in await runs_of(ada)] == [mine.id]
    assert await runs_of(bob) == []

    seen = await runs_of(root, action=storage_pb2.RUN_ACTION_CLEANUP)
    assert seen[0] == system and {each.action for each in seen} == {storage_pb2.RUN_ACTION_CLEANUP}
    assert [each.id for each in await runs_of(root, owner=f"user:{ada.subject}")] == [mine.id]
    for client, run_id in ((bob, mine.id), (ada, system.id)):
        await calls.refused(
            storage(client).GetRun(storage_pb2.GetRunRequest(run_id=run_id)),
            grpc.StatusCode.NOT_FOUND,
        )

    named = storage_pb2.GetRunRequest(run_id=mine.id, owner=f"user:{ada.subject}")
    assert (await storage(root).GetRun(named)).run.id == mine.id
    await calls.refused(storage(bob).GetRun(named), grpc.StatusCode.NOT_FOUND)


@pytest.fixture
def bob(suite: Suite) -> Client:
    return suite.client("bob")


async def runs_of(client: Client, **fields: Any) -> list[storage_pb2.Run]:
    return list((await storage(client).ListRuns(storage_pb2.ListRunsRequest(**fields))).runs)


async def test_only_one_cleanup_runs_at_a_time(own_suite: Suite) -> None:
    await own_suite.serve("assets")
    root = own_suite.client("root", "admin")
    first = (await storage(root).RunCleanup(storage_pb2.RunCleanupRequest(request_id="a"))).run
    refusal = await calls.refused(
        storage(root).RunCleanup(storage_pb2.RunCleanupRequest()), grpc.StatusCode.ABORTED
    )
    assert refusal.reason == "REQUEST_IN_PROGRESS"

    again = (await storage(root).RunCleanup(storage_pb2.RunCleanupRequest(request_id="a"))).run
    assert again.id == first.id
    await own_suite.work("assets")
    async with asyncio.timeout(20):
        while (await runs_of(root))[0].state != DONE:
            await asyncio.sleep(0.05)
    await run(root, "RunCleanup")


@pytest.mark.long
async def test_it_runs_by_itself(own_suite: Suite) -> None:
    own_suite.overrides |= {"cleanup_minutes": 0.01, "reconcile_minutes": 0.01}
    await own_suite.serve("assets")
    ada, root = own_suite.client("ada"), own_suite.client("root", "admin")
    gone = await abandoned(own_suite, ada)
    await own_suite.work("assets")
    await freed(own_suite, gone)

    async with asyncio.timeout(20):
        while {each.action for each in await runs_of(root) if each.state == DONE} != {
            storage_pb2.RUN_ACTION_CLEANUP,
            storage_pb2.RUN_ACTION_RECONCILE,
        }:
            await asyncio.sleep(0.05)


async def test_leftovers_of_unfinished_writes_go(suite: Suite, root: Client) -> None:
    left = suite.storage.root / "incoming" / "left-by-a-killed-process"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    assert figures(await run(root, "RunCleanup"))["unfinished_writes"][1] >= 1
    assert not left.exists()
