"""No page is larger than a client accepts, and over the pages every row arrives exactly once.

Every rpc with pages is called for the largest page, by a client with the default limit of 4 MiB,
when the rows are as large as the contract allows. LISTS says how they are made; an rpc that it
lacks fails here.
"""

import uuid
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc
from atelier.pipeline.v1 import product_pb2, product_pb2_grpc
from buf.validate import validate_pb2
from google.protobuf.message import Message

from shared.rpc import auth
from shared.rpc.calls import Peers, owner_identity
from shared.rpc.paging import ANSWER_BYTES
from tests import calls
from tests import test_tenancy as tenancy
from tests.suite import Client, Suite
from tests.test_tenancy import CANARY, METHODS, cases, rows_for

suite, owned = tenancy.suite, tenancy.owned

PAGED = {
    name
    for name, method in METHODS.items()
    if "next_page_token" in method.output_type.fields_by_name
}


def wide(characters: int) -> str:
    """Returns SQL for a text of so many characters, four bytes each."""
    return f"repeat('\U0001f9e5', {characters})"


def clone(table: str, count: int, where: str = "owner = 'user:ada'", **columns: str) -> str:
    """Returns SQL that adds `count` rows like the newest one, each older than the one before.
    `columns` are SQL expressions of `n`, which counts from 1."""
    named = {"created_at": "t.created_at - n * interval '1 millisecond'", **columns}
    pairs = ", ".join(f"'{name}', {expression}" for name, expression in named.items())
    return (
        f"INSERT INTO {table} SELECT made.* FROM {table} t JOIN (SELECT ctid AS place FROM {table}"
        f" WHERE {where} ORDER BY created_at DESC LIMIT 1) newest ON t.ctid = newest.place,"
        f" generate_series(1, {count}) n, LATERAL jsonb_populate_record(t,"
        f" jsonb_build_object({pairs})) made"
    )


NEW_ID = "gen_random_uuid()"
FACTS = (
    "jsonb_build_object('care', (SELECT jsonb_agg(repeat('x', 295) || m) FROM generate_series(1,"
    " 500) m))"
)
VALUE = (
    f"jsonb_build_object('product_analysis', jsonb_build_object('condition_details', {wide(5000)}))"
)
FINDINGS = (
    f"jsonb_build_array(jsonb_build_object('key', 'condition_details', 'value', {wide(5000)},"
    f" 'source', 'found', 'model', 'tests', 'confidence', 0.5, 'note', {wide(1000)}, 'asset_id',"
    " '', 'box', NULL, 'disagrees', false, 'confirmed_by', '', 'review_id', ''))"
)
SNAPSHOT = "t.snapshot || jsonb_build_object('id', gen_random_uuid(), 'prompt', repeat('x', 8000))"
LARGE_ASSET = {
    "id": NEW_ID,
    "file_name": wide(240),
    "metadata": "jsonb_build_object('note', repeat('m', 15500))",
    "is_primary": "false",
}
_READY = "owner = 'user:ada' AND state = 'ready' AND product_id <> ''"


@dataclass(frozen=True)
class Grown:
    """Statements that add `count` rows. `small`: even the largest page of the largest rows fits
    into one answer."""

    count: int
    statements: tuple[str, ...]
    small: bool = False


def grown(table: str, count: int, where: str = "owner = 'user:ada'", **columns: str) -> Grown:
    return Grown(count, (clone(table, count, where, id=NEW_ID, **columns),))


def small(rows: Grown) -> Grown:
    return replace(rows, small=True)


def job_columns(**columns: str) -> dict[str, str]:
    return {
        "state": "'failed'",
        "error_class": "'MADE_UP'",
        "error_message": wide(1000),
        "lease_expires_at": "null",
        "credits_reserved": "0",
        **columns,
    }


LISTS: dict[str, Grown] = {
    "assets.v1.AssetService.ListAssets": Grown(
        400, (clone("assets.assets", 400, _READY, **LARGE_ASSET),)
    ),
    "assets.v1.SearchService.SearchAssets": Grown(
        400, (clone("assets.assets", 400, _READY, **LARGE_ASSET),)
    ),
    "assets.v1.AlbumService.ListAlbumAssets": Grown(
        400,
        (
            clone("assets.assets", 400, _READY, **{**LARGE_ASSET, "session_id": "'inside'"}),
            (
                "INSERT INTO assets.album_assets (owner, album_id, asset_id, position, shown,"
                " public) SELECT a.owner, i.album_id, a.id, 1000 + row_number() OVER (), true,"
                " false FROM assets.assets a JOIN (SELECT album_id FROM assets.album_assets LIMIT"
                " 1) i ON true WHERE a.session_id = 'inside'"
            ),
        ),
    ),
    "assets.v1.DuplicateService.ListDuplicates": Grown(
        200,
        (
            clone(
                "assets.assets",
                4000,
                _READY,
                id=NEW_ID,
                product_id="''",
                file_name=wide(255),
                is_primary="false",
                sha256="lpad((n % 200)::text, 64, 'd')",
            ),
            "ANALYZE assets.assets",
        ),
    ),
    "assets.v1.AlbumService.ListAlbums": grown(
        "assets.albums",
        700,
        name=f"{wide(110)} || n",
        name_key=f"{wide(110)} || n",
        description=wide(2000),
    ),
    "assets.v1.AssetService.ListReferences": Grown(
        1000,
        (
            clone(
                "assets.asset_references",
                1000,
                "asset_id = %(asset_id)s",
                holder=f"{wide(190)} || n",
            ),
        ),
        small=True,
    ),
    "assets.v1.BackfillService.ListBackfills": small(
        grown(
            "assets.backfills",
            1000,
            "true",
            state="'failed'",
            error_message=wide(500),
        )
    ),
    "techfiles.v1.LegacyAnalysisService.ListLegacyBackfills": small(
        grown(
            "techfiles.legacy_backfills",
            1000,
            "true",
            state="'failed'",
            error_message=wide(500),
        )
    ),
    "techfiles.v1.HistoryCheckService.ListHistoryChecks": small(
        grown(
            "techfiles.history_checks",
            1000,
            state="'failed'",
            error_message=wide(500),
        )
    ),
    "techfiles.v1.HistoryCheckService.ListHistoryFindings": grown(
        "techfiles.history_findings",
        700,
        state="'superseded'",  # of open ones a slot has one for each fault
        message=wide(2000),
        advice=wide(1000),
    ),
    "assets.v1.DocumentService.ListDocuments": grown(
        "assets.documents",
        700,
        number="n + 100",
        title=wide(200),
        warnings=f"jsonb_build_array({wide(500)}, {wide(500)}, {wide(500)})",
    ),
    "assets.v1.QuotaService.ListQuotas": Grown(
        1000,
        (
            (
                "INSERT INTO assets.quotas (id, owner, assets, updated_by) SELECT"
                " gen_random_uuid(), 'user:' || lpad(n::text, 120, 'q'), 1, repeat('u', 128) FROM"
                " generate_series(1, 1000) n"
            ),
        ),
        small=True,
    ),
    "assets.v1.ComparisonService.ListComparisons": grown(
        "assets.comparisons", 700, note=wide(2000)
    ),
    "assets.v1.StorageService.ListRuns": grown(
        "assets.storage_runs", 300, state="'failed'", error_message=wide(4000)
    ),
    "assets.v1.StorageReportService.ListStorageOwners": Grown(
        1000,
        (
            (
                "INSERT INTO assets.storage_places SELECT 'user:' || lpad(n::text, 120, 'o'), '',"
                " 1, n, 0 FROM generate_series(1, 1000) n"
            ),
        ),
        small=True,
    ),
    "assets.v1.StorageReportService.ListStorageSessions": Grown(
        1000,
        (
            (
                f"INSERT INTO assets.storage_places SELECT 'user:ada', {wide(120)} || n, 1, n, 0"
                " FROM generate_series(1, 1000) n"
            ),
        ),
        small=True,
    ),
    "assets.v1.StyleService.ListStyles": Grown(
        300,
        (
            clone(
                "assets.styles",
                300,
                "true",
                id="md5('style' || n)::uuid",
                slug="'style-' || n",
                number="1",
            ),
            clone(
                "assets.style_versions",
                300,
                "true",
                id=NEW_ID,
                style_id="md5('style' || n)::uuid",
                number="1",
                description=wide(4000),
            ),
        ),
    ),
    "assets.v1.StyleService.ListStyleVersions": Grown(
        300,
        (
            clone(
                "assets.style_versions",
                300,
                "number = 1 AND description = ''",
                id=NEW_ID,
                number="n + 1",
                description=wide(4000),
            ),
        ),
    ),
    "assets.v1.UsageService.ListUsage": grown(
        "assets.usage_events",
        700,
        "asset_id = %(asset_id)s",
        user_agent=wide(500),
        metadata="jsonb_build_object('note', repeat('m', 4000))",
    ),
    "conversions.v1.AnalysisService.ListAnalyses": grown(
        "conversions.analyses", 40, f"product_id = '{CANARY}'", **job_columns(facts=FACTS)
    ),
    "conversions.v1.ConversionService.ListConversions": grown(
        "conversions.conversions",
        400,
        **job_columns(metadata="jsonb_build_object('note', repeat('m', 16000))"),
    ),
    "conversions.v1.CreditService.ListCreditEntries": Grown(
        1000,
        (
            (
                "INSERT INTO conversions.credit_entries (id, owner, kind, credits, created_at)"
                " SELECT md5('entry' || n)::uuid, 'user:ada', 'grant', 1,"
                " now() - n * interval '1 millisecond' FROM generate_series(1, 1000) n"
            ),
            (
                "INSERT INTO conversions.credit_notes SELECT 'user:ada', md5('entry' || n)::uuid,"
                f" {wide(128)}, {wide(500)}, {wide(120)} || n FROM generate_series(1, 1000) n"
            ),
        ),
        small=True,
    ),
    "conversions.v1.DeadJobService.ListDeadJobs": grown(
        "conversions.dead_jobs", 1000, error_message=wide(2000)
    ),
    "conversions.v1.GenerationService.ListGenerations": grown(
        "conversions.generations", 100, **job_columns(prompt=wide(10000), full_prompt=wide(10000))
    ),
    "conversions.v1.JobService.ListJobs": grown(
        "conversions.conversions", 1000, **job_columns(error_message=wide(2000))
    ),
    "conversions.v1.JobService.ListAttempts": grown(
        "conversions.attempts",
        1000,
        "job_id = %(job_id)s",
        number="n + 1",
        error_message=wide(2000),
    ),
    "conversions.v1.ProviderService.ListProviderCalls": grown(
        "conversions.provider_calls",
        1000,
        f"model = '{CANARY}'",
        usage="jsonb_build_object('note', repeat('m', 4000))",
    ),
    "pipeline.v1.LogService.ListLogs": grown(
        "pipeline.logs",
        300,
        f"message = '{CANARY}'",
        message=wide(2000),
        details="jsonb_build_object('note', repeat('m', 16000))",
    ),
    "pipeline.v1.PriceBookService.ListPriceBookEntries": grown(
        "pipeline.price_book_entries",
        1000,
        brand=wide(300),
        model=wide(300),
        name=wide(300),
        category=wide(300),
        link="repeat('l', 2000)",
        model_key="'model ' || n",
    ),
    "pipeline.v1.PhaseService.ListPhaseAttempts": grown(
        "pipeline.attempts",
        1000,
        "job_id = (SELECT id FROM pipeline.phases WHERE product_id = %(product_id)s"
        " AND number = 1)",
        error_message=wide(2000),
    ),
    "pipeline.v1.PhaseService.ListPastResults": Grown(
        300,
        (
            "INSERT INTO pipeline.past_results (owner, product_id, phase, value, source, provider,"
            f" made_at, evidence) SELECT owner, product_id, phase, {VALUE}, source, provider,"
            f" now(), (SELECT jsonb_agg(jsonb_build_object('name', 'e', 'note', {wide(1000)}))"
            " FROM generate_series(1, 100))"
            " FROM pipeline.results, generate_series(1, 300) WHERE owner = 'user:ada'",
        ),
    ),
    "pipeline.v1.ProductService.ListProducts": grown(
        "pipeline.products",
        1000,
        name=wide(300),
        model=wide(300),
        condition=wide(300),
        condition_details=wide(5000),
        error_class="'MADE_UP'",
        state="'error'",
        error_message=wide(1000),
        running="false",
    ),
    "pipeline.v1.ReviewDeskService.ListReviewDecisions": Grown(
        100,
        (
            "INSERT INTO pipeline.review_decisions (id, owner, review_id, decided_by, decision,"
            " note, reviewer_value, effective_value) SELECT gen_random_uuid(), owner, id, 'p' || n,"
            f" 'edit', {wide(1000)}, {VALUE}, {VALUE} FROM pipeline.reviews,"
            " generate_series(1, 100) n",
        ),
    ),
    "pipeline.v1.ReviewService.ListReviews": grown(
        "pipeline.reviews",
        100,
        state="'edited'",
        findings=FINDINGS,
        model_value=VALUE,
        reviewer_value=VALUE,
        effective_value=VALUE,
        decided_at="now()",
    ),
    "techfiles.v1.CollectionService.ListCollections": grown(
        "techfiles.collections", 400, description=wide(5000)
    ),
    "techfiles.v1.CollectionService.GetCollection": Grown(
        900,
        (
            clone(
                "techfiles.slots",
                900,
                id="md5('slot' || n)::uuid",
                view_type="'front'",
                file_type="'closeup'",
                file_category="'shot ' || n",
            ),
            clone(
                "techfiles.tech_files",
                900,
                "state = 'pending' AND file_type <> 'complete_pack'",
                id="md5('file' || n)::uuid",
                slot_id="md5('slot' || n)::uuid",
                number="1",
                parent_file_id="null",
                file_type="'closeup'",
                revision_id="''",
                file_category="'shot ' || n",
                error_message=wide(2000),
            ),
            clone(
                "techfiles.collection_items",
                900,
                "collection_id = %(collection_id)s",
                tech_file_id="md5('file' || n)::uuid",
                section="'03-shots'",
                display_order="n",
            ),
        ),
    ),
    "techfiles.v1.CollectionService.ListCollectionFactsVersions": Grown(
        30,
        (
            (
                "INSERT INTO techfiles.collection_facts SELECT gen_random_uuid(), c.owner, c.id,"
                f" 100 + n, {FACTS}, c.created_by, {wide(1000)}, c.created_at - n * interval"
                " '1 millisecond' FROM techfiles.collections c, generate_series(1, 30) n WHERE"
                " c.id = %(collection_id)s"
            ),
        ),
    ),
    "techfiles.v1.ExportService.ListExports": grown(
        "techfiles.exports",
        300,
        "owner = 'user:ada' AND release_id IS NULL",
        state="'failed'",
        error_message=wide(2000),
        warnings="ARRAY(SELECT repeat('w', 150) || m FROM generate_series(1, 100) m)",
    ),
    "techfiles.v1.ReleaseService.ListReleases": grown(
        "techfiles.releases",
        900,
        name=wide(200),
        note=wide(2000),
        decision_note=wide(2000),
        state="'rejected'",
        decided_at="now()",
        number="null",
        withdrawn_at="null",
    ),
    "techfiles.v1.ReleaseService.GetRelease": Grown(
        900,
        (
            "INSERT INTO techfiles.release_files SELECT f.release_id, f.owner, n + 1,"
            " gen_random_uuid(), f.product_id, f.file_type, f.view_type, f.file_category, f.number,"
            f" f.section, f.asset_id, f.asset_sha256, '', '', {SNAPSHOT.replace('t.', 'f.')}"
            " FROM techfiles.release_files f, generate_series(1, 900) n"
            " WHERE f.release_id = %(release_id)s AND f.position = 1",
            "UPDATE techfiles.releases SET file_count = 901 WHERE id = %(release_id)s",
        ),
    ),
    "techfiles.v1.TechFileService.ListTechFiles": Grown(
        120,
        (
            clone(
                "techfiles.slots",
                120,
                id="md5('list' || n)::uuid",
                view_type="'front'",
                file_type="'closeup'",
                file_category="'listed ' || n",
            ),
            clone(
                "techfiles.tech_files",
                120,
                "state = 'pending' AND file_type <> 'complete_pack'",
                id=NEW_ID,
                slot_id="md5('list' || n)::uuid",
                number="1",
                parent_file_id="null",
                file_type="'closeup'",
                revision_id="''",
                file_category="'listed ' || n",
                prompt=wide(8000),
                analysis="jsonb_build_object('note', repeat('m', 100000))",
            ),
        ),
    ),
    "techfiles.v1.TechFileService.ListTechFileVersions": Grown(
        700,
        (
            (
                "INSERT INTO techfiles.tech_file_versions SELECT gen_random_uuid(), f.owner,"
                " f.slot_id, f.id, f.number + n, to_jsonb(f) || jsonb_build_object('prompt',"
                " repeat('x', 8000)), f.created_by, '', f.created_at - n * interval '1 millisecond'"
                " FROM techfiles.tech_files f, generate_series(1, 700) n WHERE f.id ="
                " %(tech_file_id)s"
            ),
        ),
    ),
    "techfiles.v1.TechPackService.ListTechPackRuns": Grown(
        1000,
        (
            clone(
                "techfiles.runs",
                1000,
                id="md5('run' || n)::uuid",
                state="'failed'",
                error_message=wide(2000),
            ),
            (
                "INSERT INTO techfiles.run_steps (id, owner, run_id, name, state) SELECT"
                " gen_random_uuid(), s.owner, md5('run' || n)::uuid, s.name, s.state FROM"
                " techfiles.run_steps s, generate_series(1, 1000) n"
                " WHERE s.run_id = (SELECT run_id FROM techfiles.run_steps LIMIT 1)"
            ),
        ),
    ),
    "conversions.v1.DatasetService.ListDatasets": grown(
        "conversions.datasets",
        700,
        name=wide(200),
        brand=wide(200),
        vibe=wide(500),
        image_asset_ids="ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 100))",
    ),
    "conversions.v1.ConsentService.ListConsents": grown(
        "conversions.consents",
        300,
        wording_version=wide(100),
        wording=wide(10000),
        given_by=wide(200),
        note=wide(2000),
    ),
    "conversions.v1.BatchService.ListBatches": grown(
        "conversions.batches",
        700,
        name=wide(200),
        state="'paused'",
        pause_reason="'max_credits'",
        pause_message=wide(400),
        figures=(
            "jsonb_build_object('errors', (SELECT jsonb_agg(jsonb_build_object('error_class',"
            f" repeat('X', 100), 'item_count', 1, 'error_message', {wide(500)}, 'item_id',"
            " gen_random_uuid())) FROM generate_series(1, 10)))"
        ),
    ),
}
LISTS = {f"atelier.{name}": how for name, how in LISTS.items()}
for _service in ("assets", "conversions", "pipeline", "techfiles"):
    LISTS[f"{_service}/atelier.webhooks.v1.WebhookService.ListEndpoints"] = grown(
        f"{_service}.webhook_endpoints",
        500,
        url="repeat('u', 2000)",
        description=wide(500),
        event_types="(SELECT jsonb_agg(repeat('t', 98) || m) FROM generate_series(1, 99) m)",
    )
    LISTS[f"{_service}/atelier.webhooks.v1.WebhookService.ListDeliveries"] = grown(
        f"{_service}.webhook_deliveries",
        1000,
        response_excerpt=wide(1000),
        error_message=wide(200),
        position="null",
    )


def most_rows(name: str) -> int:
    """Returns the largest page size that the contract allows."""
    constraint: Any = validate_pb2.field
    return int(
        METHODS[name]
        .input_type.fields_by_name["page_size"]
        .GetOptions()
        .Extensions[constraint]
        .int32.lte
    )


async def read(client: Client, name: str, request: Any) -> tuple[list[Message], int]:
    """Returns all rows and the number of pages."""
    [rows_field] = [
        f for f in METHODS[name].output_type.fields if f.is_repeated and f.message_type
    ][:1]
    found: list[Message] = []
    pages = 0
    while True:
        answer: Any = (
            await calls.invoke(client, METHODS[name], [request], calls.service_of(name))
        )[0]
        found += getattr(answer, rows_field.name)
        pages += 1
        request.page_token = answer.next_page_token
        if not request.page_token:
            return found, pages


def test_every_rpc_with_pages_has_rows() -> None:
    assert PAGED - set(LISTS) == set(), "LISTS says for each how its rows become many and large"
    assert set(LISTS) - PAGED == set(), "LISTS names rpcs without pages: take them out"


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(PAGED & set(LISTS)))
async def test_every_row_arrives_once_in_answers_that_clients_take(
    suite: Suite, owned: Any, name: str
) -> None:
    [request] = cases()[name].requests(rows_for(name, owned))
    client = suite.client("ada", cases()[name].owner_role)
    asked: Any = type(request)(
        **{f.name: v for f, v in request.ListFields()}, page_size=most_rows(name)
    )
    before, _ = await read(client, name, type(asked).FromString(asked.SerializeToString()))
    how = LISTS[name]
    ids = {f.name: v for f, v in request.ListFields() if f.name.endswith("_id")}
    for statement in how.statements:
        await suite.change(statement, ids if "%(" in statement else None)
    found, pages = await read(client, name, asked)
    assert len(found) == len(before) + how.count
    assert [n for n in Counter(row.SerializeToString() for row in found).values() if n > 1] == []

    in_all = sum(row.ByteSize() for row in found)
    assert (pages > 1) == (in_all > ANSWER_BYTES or len(found) > most_rows(name))
    assert how.small or in_all > 4 * 1024 * 1024, (
        f"{in_all} bytes fit into one answer of 4 MiB and prove nothing. In LISTS, make each text"
        " as long as the contract lets it be; if each is, write"
        f" small(grown(..., {most_rows(name)}, ...))"
    )


@pytest.fixture(scope="module")
async def large_assets(suite: Suite, owned: Any) -> list[str]:
    """Makes a hundred assets as large as possible; returns their ids."""
    numbers = "(SELECT jsonb_build_object('n', jsonb_agg(0)) FROM generate_series(1, 5400))"
    await suite.change(
        clone(
            "assets.assets",
            100,
            _READY,
            **{**LARGE_ASSET, "metadata": numbers, "session_id": "'large'"},
        )
    )
    rows = suite.sql("SELECT id FROM assets.assets WHERE session_id = 'large' ORDER BY id")
    return [str(row[0]) for row in rows]


@pytest.mark.long
async def test_what_is_left_of_a_batch_is_named(suite: Suite, large_assets: list[str]) -> None:
    stub = suite.client("ada").stub(asset_pb2_grpc.AssetServiceStub)
    gone = str(uuid.uuid4())
    wanted, found, batches = [gone, *large_assets[1:]], [], 0

    while wanted:
        answer = await stub.BatchGetAssets(
            asset_pb2.BatchGetAssetsRequest(asset_ids=wanted, include_urls=True)
        )
        assert list(answer.missing_asset_ids) == ([gone] if batches == 0 else [])
        found += answer.assets
        wanted = list(answer.remaining_asset_ids)
        batches += 1
    assert [asset.id for asset in found] == large_assets[1:]
    assert batches > 1 and all(asset.metadata.fields and asset.original_url for asset in found)


@pytest.mark.long
async def test_services_read_what_is_left_of_a_batch(suite: Suite, large_assets: list[str]) -> None:
    peers = Peers(suite.settings("techfiles", "app"), "techfiles")
    auth.enter(owner_identity("user:ada"))
    found = await peers.assets([*large_assets, *large_assets, str(uuid.uuid4())])
    await peers.close()
    assert sorted(found) == large_assets


@pytest.mark.long
async def test_a_hundred_large_assets_are_held_in_one_answer(
    suite: Suite, large_assets: list[str]
) -> None:
    stub = suite.client("ada").stub(asset_pb2_grpc.AssetServiceStub)
    request = asset_pb2.AcquireReferencesRequest(
        request_id="hold", holder="tests/pages", asset_ids=large_assets
    )
    for answer in (await stub.AcquireReferences(request), await stub.AcquireReferences(request)):
        assert [asset.id for asset in answer.assets] == large_assets
        assert answer.assets[0].metadata.fields and not answer.assets[-1].metadata.fields
        assert all(asset.sha256 and asset.file_name for asset in answer.assets)


@pytest.mark.long
async def test_a_product_with_large_results_is_read(suite: Suite, owned: Any) -> None:
    product_id = owned["pipeline"].product_id
    value = (
        "jsonb_build_object('seo_analysis', jsonb_build_object('keywords',"
        " (SELECT jsonb_agg(repeat('\U0001f9e5', 300)) FROM generate_series(1, 400))))"
    )
    await suite.change("DELETE FROM pipeline.results WHERE product_id = %s", (product_id,))
    await suite.change(
        "INSERT INTO pipeline.results (id, owner, product_id, phase, value, source, provider,"
        f" evidence) SELECT gen_random_uuid(), 'user:ada', %s, n, {value}, 'runner', 'tests',"
        f" (SELECT jsonb_agg(jsonb_build_object('name', 'e', 'note', {wide(1000)})) FROM"
        " generate_series(1, 100)) FROM generate_series(1, 4) n",
        (product_id,),
    )
    await suite.change(
        "INSERT INTO pipeline.reviews (id, owner, product_id, phase_id, phase, state, model_value,"
        " model_confidence, effective_value, decided_at) SELECT gen_random_uuid(), 'user:ada',"
        f" %(id)s, id, 3, 'approved', {VALUE}, 0.5, {VALUE}, now() FROM pipeline.phases,"
        " generate_series(1, 100) WHERE product_id = %(id)s AND number = 3",
        {"id": product_id},
    )
    stub = suite.client("ada").stub(product_pb2_grpc.ProductServiceStub)
    answer = await stub.GetProduct(product_pb2.GetProductRequest(product_id=product_id))
    assert [result.phase for result in answer.results] == [1, 2, 3, 4]

    whole = [result.phase for result in answer.results if result.HasField("value")]
    assert whole == [1, 2, 3] and all(
        bool(r.evidence) == r.HasField("value") for r in answer.results
    )
    assert 5 < len(answer.reviews) < 100 and all(
        review.HasField("model_value") for review in answer.reviews
    )

    sent = {}
    async for item in stub.WatchProduct(
        product_pb2.WatchProductRequest(product_id=product_id), timeout=30
    ):
        if item.change.HasField("bookmark"):
            break
        if item.change.HasField("result"):
            sent[item.change.result.phase] = item.change.result
    assert sorted(sent) == [1, 2, 3, 4] and all(len(r.evidence) == 100 for r in sent.values())
