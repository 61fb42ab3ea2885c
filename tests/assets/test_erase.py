"""An owner gets everything that is kept about it, and can have it erased for good, with a
receipt."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, storage_pb2, upload_pb2, usage_pb2, usage_pb2_grpc
from google.protobuf.json_format import MessageToDict

from tests import calls
from tests.assets import flows
from tests.assets.test_cleanup import DONE, figures, in_session, run, runs_of, storage
from tests.assets.test_references import acquire
from tests.assets.test_trash import ask, listed, stored
from tests.faults.processes import Processes, until
from tests.suite import Client, Cluster, DiskServer, Keys, Suite, browser, running_suite

DATA = flows.jpeg(64, 48)
PUBLIC = asset_pb2.VISIBILITY_PUBLIC
_numbers = itertools.count()


@pytest.fixture(scope="module")
async def suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    async with running_suite(cluster, keys, disk) as suite:
        await suite.serve("assets")
        await suite.work("assets")
        yield suite


@pytest.fixture
def ada(suite: Suite) -> Client:
    return suite.client(f"erased{next(_numbers)}")


def owner_of(client: Client) -> str:
    return f"user:{client.subject}"


async def erase(client: Client, confirm_owner: str, **fields: Any) -> storage_pb2.Run:
    return await run(client, "EraseOwner", confirm_owner=confirm_owner, **fields)


def rows_of(suite: Suite, owner: str) -> dict[str, int]:
    """Returns the number of the owner's rows in each table that has some."""
    tables = suite.sql(
        "SELECT table_name FROM information_schema.columns WHERE table_schema = 'assets' AND"
        " column_name = 'owner'"
    )
    found = {
        t: suite.sql(f"SELECT count(*) FROM assets.{t} WHERE owner = %s", (owner,))[0][0]
        for (t,) in tables
    }
    return {table: count for table, count in found.items() if count}


async def only_receipts(suite: Suite, owner: str) -> None:
    """Waits until nothing else is left. Bytes sent to readers are recorded a second later, also for
    an erased owner; the record is deleted once it is added to the deployment's totals."""
    kept = {"erased_owners", "storage_runs", "attempts", "doomed_objects"}

    async def nothing_else() -> bool:
        return rows_of(suite, owner).keys() <= kept

    await until(nothing_else, f"of {owner} only {kept} are left")


@pytest.mark.long
async def test_an_erased_owner_leaves_a_tombstone_and_a_receipt(suite: Suite, ada: Client) -> None:
    other = suite.client("somebody-else")
    mine = [await flows.upload(ada, DATA, visibility=v, file_name="diary.jpg") for v in (0, PUBLIC)]
    await flows.variants_of(ada, mine[0].id)
    await acquire(ada, "h", mine[0].id)
    pending = await flows.announce(ada, DATA)
    await flows.send(pending.target, DATA)
    theirs = await flows.upload(other, DATA, visibility=PUBLIC)
    await acquire(ada, "h", theirs.id)
    await acquire(other, "h", mine[1].id)
    owner = owner_of(ada)
    receipt = await erase(ada, owner, request_id="please")
    assert figures(receipt)["assets"] == (3, 3, 0)
    assert {count.what: bool(count.why_kept) for count in receipt.counts if count.kept} == {
        "tombstone": True,
        "receipt": True,
    }
    assert "diary" not in str(receipt)

    await only_receipts(suite, owner)
    assert not [key for asset in (*mine, pending.asset) for key in stored(suite, asset.id)]
    async with browser() as http:
        assert (await http.get(mine[1].original_url)).status_code == 404
    assert (await flows.get(other, theirs.id)).id == theirs.id


async def test_nothing_new_is_kept_for_an_erased_owner(suite: Suite, ada: Client) -> None:
    public = await flows.upload(suite.client("somebody-else"), DATA, visibility=PUBLIC)
    first = await erase(ada, owner_of(ada))
    head = upload_pb2.UploadHead(declaration=flows.declaration(DATA))

    for call in (
        flows.announce(ada, DATA),
        flows.stream_upload(ada, head, DATA),
        acquire(ada, "h", public.id),
        usages(ada).RecordUsage(
            usage_pb2.RecordUsageRequest(asset_id=public.id, action=usage_pb2.USAGE_ACTION_VIEW)
        ),
    ):
        refusal = await calls.refused(call, grpc.StatusCode.FAILED_PRECONDITION)
        assert refusal.reason == "OWNER_ERASED"
    assert await listed(ada) == []
    assert (await erase(ada, owner_of(ada))).id == first.id

    root = suite.client("root", "admin")
    assert [
        r.id for r in await runs_of(root, owner=owner_of(ada), action=storage_pb2.RUN_ACTION_ERASE)
    ] == [first.id]


def deployment(suite: Suite) -> tuple[int, int]:
    """Returns the counted assets and stored bytes of all owners together."""
    [(assets, stored)] = suite.sql(
        "SELECT coalesce(sum(number) FILTER (WHERE noun = 'asset'), 0)::int, coalesce(sum(bytes),"
        " 0)::int FROM ( SELECT noun, number, bytes FROM assets.storage_totals WHERE owner ="
        " 'deployment' UNION ALL SELECT noun, number, bytes FROM assets.storage_deltas WHERE noun"
        " IN ('asset', 'variant')) AS counted"
    )
    return assets, stored


def usages(client: Client) -> Any:
    return client.stub(usage_pb2_grpc.UsageServiceStub)


async def test_a_use_noted_before_or_after_the_erasure_is_not_kept_but_those_of_others_are(
    suite: Suite, ada: Client
) -> None:
    other = suite.client("somebody-else")
    mine, theirs = (
        await flows.upload(ada, DATA, visibility=PUBLIC),
        await flows.upload(other, DATA, visibility=PUBLIC),
    )
    for client, asset in ((ada, mine), (ada, theirs), (other, mine)):  # counted a moment later
        await flows.get(client, asset.id, include_urls=True)
    await erase(ada, owner_of(ada))
    await flows.get(ada, theirs.id, include_urls=True)
    await flows.get(other, theirs.id, include_urls=True)
    views = (
        "SELECT count(*) FROM assets.usage_events WHERE owner = 'user:somebody-else' AND asset_id"
        " = %s"
    )

    async with asyncio.timeout(10):
        while suite.sql(views, (theirs.id,)) == [(0,)] or suite.sql(
            "SELECT 1 FROM assets.storage_deltas LIMIT 1"
        ):
            await asyncio.sleep(0.1)
    await only_receipts(suite, owner_of(ada))


async def test_what_is_erased_is_taken_off_the_figures_of_the_deployment(
    suite: Suite, ada: Client
) -> None:
    before = deployment(suite)
    asset = await flows.upload(ada, DATA, **in_session("s"))
    await flows.variants_of(ada, asset.id)
    await flows.announce(ada, DATA)
    assert deployment(suite) > before
    await erase(ada, owner_of(ada))
    assert deployment(suite) == before


async def test_of_the_owners_runs_only_the_receipt_stays(suite: Suite, ada: Client) -> None:
    await flows.upload(ada, DATA, **in_session("a name"))
    await run(ada, "DeleteSession", session_id="a name")
    receipt = await erase(ada, owner_of(ada))
    assert [r.id for r in await runs_of(ada)] == [receipt.id]


async def test_who_waits_for_a_run_that_is_erased_is_told(suite: Suite, ada: Client) -> None:
    await suite.stop_work()
    request = storage_pb2.DeleteSessionRequest(session_id="a name", wait=True)
    waiting = asyncio.ensure_future(storage(ada).DeleteSession(request, timeout=60))

    async def begun() -> bool:
        return bool(await runs_of(ada))

    await until(begun, "the run is there")
    later = "UPDATE procrastinate_jobs SET scheduled_at = now() + interval '1 hour'"
    await suite.change(f"SET search_path = assets_jobs; {later}")
    await suite.work("assets")
    await erase(ada, owner_of(ada))
    await calls.refused(waiting, grpc.StatusCode.NOT_FOUND)


async def test_an_upload_on_its_way_is_erased_or_refused(suite: Suite, ada: Client) -> None:
    answers = await asyncio.gather(
        *(flows.announce(ada, DATA) for _ in range(10)),
        erase(ada, owner_of(ada)),
        return_exceptions=True,
    )

    assert {a.code().name for a in answers if isinstance(a, grpc.aio.AioRpcError)} <= {
        "FAILED_PRECONDITION"
    }
    assert "assets" not in rows_of(suite, owner_of(ada))


async def test_erasing_needs_the_owners_name_spelled_out_and_the_right_to(
    suite: Suite, ada: Client
) -> None:
    asset = await flows.upload(ada, DATA)
    root, bob = suite.client("root", "admin"), suite.client("bob")
    owner = owner_of(ada)
    refusals: list[tuple[Client, dict[str, Any], grpc.StatusCode]] = [
        (ada, {"confirm_owner": "user:somebody"}, grpc.StatusCode.INVALID_ARGUMENT),
        (ada, {}, grpc.StatusCode.INVALID_ARGUMENT),
        (
            root,
            {"owner": owner, "confirm_owner": "user:somebody"},
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (root, {"owner": "ada", "confirm_owner": "ada"}, grpc.StatusCode.INVALID_ARGUMENT),
        (bob, {"owner": owner, "confirm_owner": owner}, grpc.StatusCode.NOT_FOUND),
    ]

    for client, fields, code in refusals:
        await calls.refused(
            storage(client).EraseOwner(storage_pb2.EraseOwnerRequest(**fields)), code
        )
    assert await listed(ada) == [asset.id]

    receipt = await erase(root, owner, owner=owner)
    assert (receipt.owner, figures(receipt)["assets"]) == (owner, (1, 1, 0))
    assert (await storage(ada).GetRun(storage_pb2.GetRunRequest(run_id=receipt.id))).run == receipt


async def exported(client: Client, **fields: Any) -> list[storage_pb2.ExportOwnerResponse]:
    return [r async for r in storage(client).ExportOwner(storage_pb2.ExportOwnerRequest(**fields))]


async def test_an_export_has_every_row_and_the_bytes(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA, **in_session("s"))
    deleted = await flows.upload(ada, DATA)
    await flows.variants_of(ada, asset.id), await flows.variants_of(ada, deleted.id)
    await ask(ada, "Delete", deleted.id)
    await acquire(ada, "pipeline/products/7", asset.id)
    endpoint, secret = "01920000-0000-7000-8000-000000000000", "whsec_canary"
    await suite.change(
        "WITH made AS (INSERT INTO assets.webhook_endpoints (id, owner, created_by, url,"
        " description, event_types) VALUES (%s, %s, '', 'https://x', '', '{}')) INSERT INTO"
        " assets.webhook_secrets (owner, endpoint_id, version, secret) VALUES (%s, %s, 1, %s)",
        (endpoint, owner_of(ada), owner_of(ada), endpoint, secret),
    )

    async def counted() -> bool:
        return "storage_totals" in rows_of(suite, owner_of(ada))

    await until(counted, "what was counted is in the sums")
    records = await exported(ada)
    assert "webhook_secrets" in str(records) and secret not in str(records)
    assets = {
        record.asset.id: record.asset
        for record in records
        if record.WhichOneof("record") == "asset"
    }
    assert set(assets) == {asset.id, deleted.id}
    async with browser() as http:
        for each in assets.values():
            assert (await http.get(each.original_url)).content == DATA
    assert len([record for record in records if record.WhichOneof("record") == "variant"]) == 8
    rows = [
        (r.row.table, MessageToDict(r.row.columns))
        for r in records
        if r.WhichOneof("record") == "row"
    ]
    assert ("asset_references", asset.id, "pipeline/products/7") in [
        (table, columns.get("asset_id"), columns.get("holder")) for table, columns in rows
    ]
    apart = {
        "assets",
        "variants",
        "requests",
        "events",
        "doomed_objects",
        "storage_deltas",
    }  # folding deletes deltas at any time
    assert {table for table, _ in rows} - apart == rows_of(suite, owner_of(ada)).keys() - apart


async def test_an_export_is_for_the_owner_and_operators(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    root, bob = suite.client("root", "admin"), suite.client("bob")

    await calls.refused(
        storage(bob).ExportOwner(storage_pb2.ExportOwnerRequest(owner=owner_of(ada))),
        grpc.StatusCode.NOT_FOUND,
    )
    assert [
        r.asset.id for r in await exported(root, owner=owner_of(ada)) if r.HasField("asset")
    ] == [asset.id]


@pytest.mark.faults
async def test_an_erasure_whose_worker_is_killed_goes_on_and_counts_once(
    cluster: Cluster, keys: Keys, disk: DiskServer, tmp_path: Any
) -> None:
    async with running_suite(cluster, keys, disk) as suite:
        await suite.serve("assets")
        ada = suite.client("ada")
        suite.sql(
            "INSERT INTO assets.assets (id, owner, created_by, kind, state, public, free,"
            " file_name, size_bytes, mime_type, storage_key, sha256) SELECT gen_random_uuid(),"
            " 'user:ada', 'ada', 'photo', 'ready', false, true, 'a', 1, 'image/jpeg',"
            " 'assets/user%3Aada/x/' || n, 'ab' FROM generate_series(1, 3000) AS n"
        )
        processes = Processes(cluster, suite.database, keys, disk, tmp_path)
        try:
            asked = storage_pb2.EraseOwnerRequest(confirm_owner="user:ada")
            run_id = (await storage(ada).EraseOwner(asked)).run.id
            killed = 0
            while suite.sql("SELECT count(*) FROM assets.assets")[0][0] and killed < 3:
                left = suite.sql("SELECT count(*) FROM assets.assets")[0][0]
                worker = processes.work("assets")

                async def moved(left: int = left) -> bool:
                    return bool(suite.sql("SELECT count(*) FROM assets.assets")[0][0] < left)

                await until(moved, "the erasure goes on", pause=0.005)
                worker.kill()
                killed += 1
            processes.work("assets")

            async def ended() -> Any:
                answer = await storage(ada).GetRun(storage_pb2.GetRunRequest(run_id=run_id))
                return answer.run if answer.run.state == DONE else None

            receipt = await until(ended, "the erasure is done")
        finally:
            processes.close()
        assert killed and figures(receipt)["assets"] == (3000, 3000, 0)
        assert "assets" not in rows_of(suite, "user:ada")
