"""One call erases an owner in all four services: nothing new is kept from its answer on, a worker
of each service removes what is there, and one receipt says what was removed and what is kept."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import erasure_pb2, erasure_pb2_grpc, storage_pb2, storage_pb2_grpc
from atelier.common.v1 import facts_pb2
from atelier.conversions.v1 import generation_pb2, job_pb2
from atelier.owners.v1 import owner_pb2, owner_pb2_grpc
from atelier.techfiles.v1 import tech_pack_pb2
from atelier.webhooks.v1 import webhook_pb2

from services.conversions import analysis_rows
from services.conversions.owner_holdings import HOLDINGS
from shared.background.attempts import Outcome
from tests import calls
from tests.assets import flows as assets
from tests.conversions import flows
from tests.faults.processes import Processes, until
from tests.pipeline import flows as pipeline
from tests.suite import (
    Client,
    Cluster,
    DiskServer,
    Keys,
    Suite,
    browser,
    built_services,
    running_suite,
)
from tests.techfiles import flows as techfiles
from tests.webhooks import flows as webhooks

SERVICES = built_services()
REFUSED = grpc.StatusCode.FAILED_PRECONDITION
FOLLOWERS = ["conversions", "pipeline", "techfiles"]
PRIVATE = "a coat that nobody may see"
RUNNING, ENDED = storage_pb2.RUN_STATE_RUNNING, storage_pb2.RUN_STATE_DONE
WAITING = storage_pb2.SERVICE_ERASURE_STATE_WAITING
ERASING = storage_pb2.SERVICE_ERASURE_STATE_ERASING
DONE = storage_pb2.SERVICE_ERASURE_STATE_DONE
# Tables with an owner whose rows nothing refuses, and why that is no gap.
UNREFUSED = {
    "requests": "stored answers, pruned after a day; the owner's own calls add them",
    "events": "written with the row that they tell of",
    "attempts": "written with the move of a job that is there",
    "erased_owners": "the tombstone",
    "webhook_secrets": "depend on an endpoint",
    "webhook_deliveries": "depend on an endpoint",
    # assets
    "variants": "depend on an asset",
    "renditions": "depend on an asset",
    "imports": "depend on an asset",
    "asset_terms": "written with an asset",
    "document_slots": "a number for documents, which are refused",
    "doomed_objects": "objects to be removed",
    "storage_runs": "the receipt",
    "erasure_parts": "the receipt",
    "storage_deltas": "written by triggers of what is counted",
    "storage_totals": "sums, which folding keeps for owners who aren't erased",
    "storage_days": "sums, likewise",
    "storage_places": "sums, likewise",
    # conversions
    "job_inputs": "written by triggers of the jobs",
    "counted_jobs": "written by triggers of the jobs",
    "dataset_releases": "what is left of rows that are gone",
    "credit_accounts": "the sum of the ledger",
    "credit_entries": "what ends a job adds one; a grant has a note, which is refused",
    "purged_jobs": "what is left of rows that are gone",
    "purged_makers": "what is left of rows that are gone",
    "deleted_results": "what a worker did to the result of a job that is there",
    "dead_jobs": "written by triggers of the jobs",
    "job_requeues": "written with the move of a job that is there",
    "job_dismissals": "written of a job that is there",
    "outside_turns": "written with the claim of a job that is there",
    # techfiles
    "legacy_writes": "written by triggers of tech files",
    # pipeline
    "product_images": "depend on a product",
    "phases": "depend on a product",
    "past_results": "written by triggers of results",
    "product_terms": "written by triggers of the products",
    "product_releases": "what is left of rows that are gone",
}
BOOK = b"brand,model,name,marketplace,link,price,currency\nK,KH,Jacket,shop,https://x/1,9,EUR\n"
FOUND = job_pb2.AnalysisResult(result={"name": "coat"})
COAT = facts_pb2.Facts(product={"name": "coat"})
_numbers = itertools.count()


@pytest.fixture(scope="module")
async def suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    """All services, without workers: what refuses a call works without any."""
    async with running_suite(cluster, keys, disk) as suite:
        suite.overrides["outbound_allowed_networks"] = "127.0.0.0/8"
        await suite.serve(*SERVICES)
        yield suite


@pytest.fixture(scope="module")
async def working(suite: Suite) -> Suite:
    await suite.work(*SERVICES)
    return suite


@pytest.fixture
def ada(suite: Suite) -> Client:
    return suite.client(f"leaving{next(_numbers)}")


def owner_of(client: Client) -> str:
    return f"user:{client.subject}"


def storage(client: Client) -> Any:
    return client.stub(storage_pb2_grpc.StorageServiceStub)


async def erase(client: Client, *, wait: bool = False) -> storage_pb2.Run:
    request = storage_pb2.EraseOwnerRequest(confirm_owner=owner_of(client), wait=wait)
    run: storage_pb2.Run = (await storage(client).EraseOwner(request, timeout=100)).run
    return run


async def receipt(client: Client, run_id: str) -> storage_pb2.Run:
    answer = await storage(client).GetRun(storage_pb2.GetRunRequest(run_id=run_id))
    run: storage_pb2.Run = answer.run
    return run


async def ended(client: Client, run_id: str) -> storage_pb2.Run:
    async def is_done() -> Any:
        run = await receipt(client, run_id)
        return run if run.state == ENDED else None

    run: storage_pb2.Run = await until(is_done, "the erasure is done")
    return run


def states(run: storage_pb2.Run) -> dict[str, Any]:
    return {part.service: part.state for part in run.services}


def counts(run: storage_pb2.Run, service: str) -> dict[str, tuple[int, int]]:
    """Returns what a service erased and kept, by table."""
    [part] = [part for part in run.services if part.service == service]
    return {count.what: (count.erased, count.kept) for count in part.counts}


def rows_of(suite: Suite, service: str, owner: str) -> dict[str, int]:
    """Returns the number of the owner's rows in each table of the service that has some."""
    tables = suite.sql(
        "SELECT table_name FROM information_schema.columns WHERE table_schema = %s AND"
        " column_name = 'owner'",
        (service,),
    )
    found = {
        table: suite.sql(f"SELECT count(*) FROM {service}.{table} WHERE owner = %s", (owner,))
        for (table,) in tables
    }
    return {table: number for table, [(number,)] in found.items() if number}


async def generate(client: Client, **fields: Any) -> generation_pb2.Generation:
    return await flows.generate(client, prompt=PRIVATE, wait=False, **fields)


def endpoint(client: Client, service: str) -> Awaitable[webhook_pb2.CreateEndpointResponse]:
    call: Awaitable[webhook_pb2.CreateEndpointResponse] = webhooks.stub(
        client, service
    ).CreateEndpoint(webhook_pb2.CreateEndpointRequest(url="https://127.0.0.1:18443/"))
    return call


async def refused_now(call: Awaitable[Any]) -> None:
    refusal = await calls.refused(call, REFUSED, "this owner was erased")
    assert refusal.reason == "OWNER_ERASED"


@pytest.mark.parametrize("service", SERVICES)
def test_every_table_refuses_rows_of_an_erased_owner_or_says_why_not(
    suite: Suite, service: str
) -> None:
    tables = suite.sql(
        "SELECT c.oid::regclass::text, EXISTS (SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid ="
        " t.tgfoid WHERE t.tgrelid = c.oid AND p.proname LIKE '%%_erased_owner') FROM pg_class c"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'owner'"
        " WHERE c.relkind = 'r' AND c.relnamespace = %s::regnamespace",
        (service,),
    )
    references = suite.sql(
        "SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint"
        " WHERE contype = 'f' AND connamespace = %s::regnamespace",
        (service,),
    )
    assert len(tables) > 8
    refusing = {table for table, refuses in tables if refuses}
    while more := {table for table, other in references if other in refusing} - refusing:
        refusing |= more  # a row that refers to one that is refused isn't there either
    rest = {table.partition(".")[2] for table, _ in tables if table not in refusing}
    assert sorted(rest - UNREFUSED.keys()) == [], (
        "a table that calls add to has the trigger refuse_erased_owner, another a reason here"
    )


async def test_from_the_answer_on_every_service_refuses_what_is_new(
    suite: Suite, ada: Client
) -> None:
    picture = (await assets.upload(ada, assets.jpeg(64, 48))).id
    claimed = await outside_job(ada)
    dataset = await flows.dataset(ada, brand="Kesterholt")
    collection = await techfiles.collect(ada)

    run = await erase(ada)

    assert run.state != ENDED and states(run) == dict.fromkeys(FOLLOWERS, ERASING)
    new: list[Callable[[], Awaitable[Any]]] = [
        lambda: generate(ada),
        lambda: flows.analyse(ada, facts=COAT, wait=False),
        lambda: flows.dataset(ada),
        lambda: flows.grant(suite, 5, owner_of(ada)),
        lambda: flows.complete(ada, claimed, analysis=FOUND),
        lambda: pipeline.create(ada, picture),
        lambda: pipeline.price_book(ada).ImportPriceBook(pipeline.book(BOOK)),
        lambda: techfiles.create(ada),
        lambda: techfiles.collect(ada),
        lambda: techfiles.pack_service(ada).ExportCollection(
            tech_pack_pb2.ExportCollectionRequest(
                collection_id=collection.id, format=tech_pack_pb2.EXPORT_FORMAT_PDF
            )
        ),
        *(lambda each=each: endpoint(ada, each) for each in SERVICES),
    ]
    for call in new:
        await refused_now(call())
    assert (await erase(ada)).id == run.id
    await flows.dataset(suite.client("somebody-else"))
    assert dataset.brand == "Kesterholt"


async def outside_job(client: Client) -> job_pb2.ClaimJobResponse:
    """Creates an analysis for an outside worker, and claims it."""
    made = await flows.analyse(client, run_externally=True, wait=False)
    return await flows.claim(client, made.id)


@pytest.mark.long
async def test_one_receipt_says_what_every_service_removed_and_keeps(
    working: Suite, ada: Client, tmp_path: Path
) -> None:
    suite, bob = working, working.client(f"staying{next(_numbers)}")
    await flows.grant(suite, 50, owner_of(ada), reason=PRIVATE)
    for client in (ada, bob):
        picture = (await assets.upload(client, assets.jpeg(64, 48))).id
        await generate(client)
        await flows.dataset(client, name=PRIVATE)
        await pipeline.create(client, picture)
        await pipeline.price_book(client).ImportPriceBook(pipeline.book(BOOK))
        collection = await techfiles.collect(client, name=PRIVATE)
        await techfiles.export(client, collection.id, format=tech_pack_pb2.EXPORT_FORMAT_PDF)
        for service in SERVICES:
            await endpoint(client, service)
    before = {name: rows_of(suite, name, owner_of(bob)) for name in FOLLOWERS}
    urls = [url for row in await exported(ada, "techfiles") for url in row.urls]
    async with browser() as http:
        assert [(await http.get(url)).content[:4] for url in urls] == [b"%PDF"]
    objects = suite.storage.root / "data" / "techfiles"
    assert len(list(objects.glob(f"*{ada.subject}/**/*.pdf"))) == 1

    run = await erase(ada, wait=True)

    assert (run.state, states(run)) == (ENDED, dict.fromkeys(FOLLOWERS, DONE))
    assert run.HasField("end_time") and PRIVATE not in str(run)
    assert counts(run, "conversions")["datasets"] == (1, 0)
    assert counts(run, "conversions")["generations"] == (1, 0)
    assert counts(run, "conversions")["credit_accounts"] == (0, 1)
    assert counts(run, "pipeline")["products"] == (1, 0)
    assert counts(run, "techfiles")["exports"] == (1, 0)
    assert counts(run, "techfiles")["objects"] == (1, 0)
    for part in run.services:
        assert all(bool(count.kept) == bool(count.why_kept) for count in part.counts)
        kept = {"erased_owners", *(HOLDINGS.kept if part.service == "conversions" else ())}
        assert rows_of(suite, part.service, owner_of(ada)).keys() <= kept
        left = rows_of(suite, part.service, owner_of(bob))
        assert {t: left.get(t, 0) for t in NOUNS} == {
            t: before[part.service].get(t, 0) for t in NOUNS
        }
    assert not list(objects.glob(f"*{ada.subject}/**/*.pdf"))
    assert list(objects.glob(f"*{bob.subject}/**/*.pdf"))
    dump = suite.sql("SELECT string_agg(e::text, '') FROM conversions.credit_notes e")
    assert PRIVATE not in str(dump)


NOUNS = ("generations", "datasets", "products", "price_book_entries", "collections", "exports")


@pytest.mark.long
async def test_a_job_that_runs_ends_with_its_owner(working: Suite, ada: Client) -> None:
    await working.stop_work("conversions")
    made = await flows.analyse(ada, facts=COAT, wait=False)
    queued = "DELETE FROM procrastinate_jobs"  # it runs below, and not in a worker
    await working.change(f"SET search_path = conversions_jobs; {queued}")
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(run: Any) -> Outcome[Any]:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()
        raise AssertionError("it was to be cancelled")

    async with flows.running(working, analysis_rows.KIND) as run:
        attempt = asyncio.ensure_future(run(endless, made.id))
        await begun.wait()
        await working.work("conversions")
        erased = await erase(ada, wait=True)
        await asyncio.wait_for(attempt, 10)
    assert cancelled.is_set() and erased.state == ENDED
    assert rows_of(working, "conversions", owner_of(ada)).keys() <= {
        "erased_owners",
        *HOLDINGS.kept,
    }


@pytest.mark.long
async def test_a_service_that_is_down_is_named_and_erases_when_it_is_back(
    own_suite: Suite,
) -> None:
    suite = own_suite
    await suite.serve(*SERVICES)
    await suite.work("assets", "techfiles", "conversions")
    ada = suite.client("ada")
    await flows.dataset(ada, name=PRIVATE)
    await suite.stop_work("conversions")
    await suite.stop("conversions")

    run = await erase(ada)

    assert states(run)["conversions"] == WAITING and states(run)["pipeline"] == ERASING
    [part] = [part for part in run.services if part.service == "conversions"]
    assert part.message.startswith("not reached yet: last heard of at ")
    assert not part.HasField("update_time")
    await suite.work("pipeline")

    async def others_are_done() -> bool:
        found = states(await receipt(ada, run.id))
        return {found["pipeline"], found["techfiles"]} == {DONE}

    await until(others_are_done, "the services that are up have erased")
    assert (await receipt(ada, run.id)).state == RUNNING

    await suite.serve("conversions")
    back = suite.client("ada")
    await refused_now(flows.dataset(back))
    await suite.work("conversions")
    done = await ended(back, run.id)
    assert counts(done, "conversions")["datasets"] == (1, 0)


@pytest.mark.long
async def test_a_backup_that_is_restored_is_erased_again(own_suite: Suite) -> None:
    """Conversions goes back to before the erasure, then assets does."""
    suite = own_suite
    await suite.serve(*SERVICES)
    await suite.work(*SERVICES)
    ada = suite.client("ada")
    first = await erase(ada, wait=True)
    await suite.stop_work("conversions")
    await suite.stop("conversions")
    await suite.change("DELETE FROM conversions.erased_owners")
    await suite.serve("conversions")
    await flows.dataset(suite.client("ada"))

    await suite.work("conversions")

    async def erased_again() -> bool:
        return rows_of(suite, "conversions", "user:ada").keys() <= {"erased_owners"}

    await until(erased_again, "the restored rows are erased")
    again = await ended(ada, first.id)
    assert counts(again, "conversions")["datasets"] == (1, 0)

    await suite.stop_work()
    for table in ("erased_owners", "erasure_parts", "storage_runs"):
        await suite.change(f"DELETE FROM assets.{table}")
    picture = await assets.upload(ada, assets.jpeg(64, 48))
    await suite.work(*SERVICES)

    async def gone() -> bool:
        sql = "SELECT 1 FROM assets.assets WHERE id = %s"
        return not suite.sql(sql, (picture.id,))

    await until(gone, "assets erases again what it forgot that it had erased")
    await refused_now(assets.announce(ada, assets.jpeg(64, 48)))


@pytest.mark.faults
async def test_an_erasure_whose_worker_is_killed_goes_on_and_counts_once(
    own_suite: Suite, cluster: Cluster, keys: Keys, disk: DiskServer, tmp_path: Path
) -> None:
    suite = own_suite
    await suite.serve("assets", "conversions")
    await suite.work("assets")
    ada = suite.client("ada")
    suite.sql(
        "INSERT INTO conversions.datasets (id, owner, created_by, name, brand, vibe,"
        " image_asset_ids) SELECT gen_random_uuid(), 'user:ada', 'ada', 'a', '', '', '{}'"
        " FROM generate_series(1, 30000)"
    )
    processes = Processes(cluster, suite.database, keys, disk, tmp_path)
    processes.addresses |= suite.addresses
    left = "SELECT count(*) FROM conversions.datasets"
    try:
        run = await erase(ada)
        killed = 0
        while (number := suite.sql(left)[0][0]) and killed < 3:
            worker = processes.work("conversions")

            async def moved(number: int = number) -> bool:
                return bool(suite.sql(left)[0][0] < number)

            await until(moved, "the erasure goes on", pause=0.005)
            worker.kill()
            killed += 1
        processes.work("conversions")
        done = await ended(ada, run.id)
    finally:
        processes.close()
    assert killed and counts(done, "conversions")["datasets"] == (30000, 0)


async def exported(
    client: Client, service: str, owner: str = ""
) -> list[owner_pb2.ExportOwnerResponse]:
    stub = owner_pb2_grpc.OwnerServiceStub(client.channel(service))
    return [each async for each in stub.ExportOwner(owner_pb2.ExportOwnerRequest(owner=owner))]


async def test_an_export_has_every_row_of_every_service_and_no_secret(
    suite: Suite, ada: Client
) -> None:
    picture = await assets.upload(ada, assets.jpeg(64, 48))
    await generate(ada)
    await flows.dataset(ada)
    await pipeline.create(ada, picture.id)
    await techfiles.collect(ada)
    secrets = [(await endpoint(ada, service)).secret for service in SERVICES]
    root, bob = suite.client("root", "admin"), suite.client("bob")

    for service in SERVICES:
        kept = rows_of(suite, service, owner_of(ada))
        rows = await exported(ada, service)
        assert {row.service for row in rows} == {service}
        found = Counter(row.table for row in rows)
        assert kept.keys() - found.keys() <= {"requests", "events", "storage_deltas"}
        assert [found[table] for table in NOUNS] == [kept.get(table, 0) for table in NOUNS]
        assert not [secret for secret in secrets for row in rows if secret in row.row_json]
        assert all(json.loads(row.row_json)["owner"] == owner_of(ada) for row in rows)
        if service == "assets":
            [asset] = [row for row in rows if row.table == "assets"]
            async with browser() as http:
                assert len((await http.get(asset.urls[0])).content) == picture.size_bytes
        seen = Counter(row.table for row in await exported(root, service, owner_of(ada)))
        assert [seen[table] for table in NOUNS] == [found[table] for table in NOUNS]
        await calls.refused(exported(bob, service, owner_of(ada)), grpc.StatusCode.NOT_FOUND)


async def test_only_services_follow_erasures(suite: Suite, ada: Client) -> None:
    stub = ada.stub(erasure_pb2_grpc.ErasureServiceStub)
    follow = stub.FollowErasures(erasure_pb2.FollowErasuresRequest())
    await calls.refused(follow, grpc.StatusCode.PERMISSION_DENIED)
    acting = suite.as_token(suite.keys.service_token("conversions", owner_of(ada)))
    acting_stub = acting.stub(erasure_pb2_grpc.ErasureServiceStub)
    follow = acting_stub.FollowErasures(erasure_pb2.FollowErasuresRequest())
    await calls.refused(follow, grpc.StatusCode.PERMISSION_DENIED)
