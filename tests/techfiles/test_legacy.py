"""An older application's table of analyses: read before anything is paid, written beside, carried
over, and switched off."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from atelier.techfiles.v1 import legacy_pb2 as lg
from atelier.techfiles.v1 import legacy_pb2_grpc
from atelier.techfiles.v1 import tech_file_pb2 as tf
from atelier.techfiles.v1 import tech_pack_pb2 as tp
from google.protobuf import json_format
from grpc import StatusCode
from psycopg.rows import dict_row

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.suite import Client, Cluster, Suite
from tests.techfiles import flows

ADA, EVE = "8c6f9d1a-8f0c-4d8e-9f57-0a4b5c1d2e3f", "1b2a3c4d-0000-4000-8000-000000000001"
PRODUCT, REVISION = (
    "11111111-1111-4111-8111-111111111111",
    "22222222-2222-4222-8222-222222222222",
)
# The table of the application whose store of tech files this service replaces.
OLD = """
    CREATE TYPE view_kind AS ENUM ('front', 'back', 'side', 'top');
    CREATE TABLE revision_vision_analysis (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        product_idea_id uuid NOT NULL,
        user_id uuid NOT NULL,
        revision_id uuid NOT NULL,
        view_type view_kind NOT NULL,
        image_url text,
        analysis_data jsonb NOT NULL DEFAULT '{}',
        ai_model_used text,
        confidence_score numeric(4, 2),
        created_at timestamptz DEFAULT now(),
        updated_at timestamptz DEFAULT now()
    )
"""
FOUND = {"materials": [{"part": "shell", "material": "cotton"}], "features": [{"name": "pocket"}]}
_INSERT = """
    INSERT INTO revision_vision_analysis (product_idea_id, user_id, revision_id, view_type,
        analysis_data, ai_model_used, confidence_score, created_at)
    VALUES (%(product)s, %(user)s, %(revision)s, %(view)s, %(analysis)s::jsonb,
        'gpt-4-vision-preview', %(confidence)s, %(at)s)
"""


class Old:
    """The other database."""

    def __init__(self, connection: psycopg.AsyncConnection[dict[str, Any]]) -> None:
        self.connection = connection

    async def add(self, **values: Any) -> None:
        row = {
            "product": PRODUCT,
            "user": ADA,
            "revision": REVISION,
            "view": "front",
            "analysis": '{"materials": [{"part": "shell", "material": "cotton"}]}',
            "confidence": 0.92,
            "at": "2025-01-02T00:00:00Z",
        }
        await self.connection.execute(_INSERT, {**row, **values})

    async def rows(self) -> list[dict[str, Any]]:
        cursor = await self.connection.execute(
            "SELECT * FROM revision_vision_analysis ORDER BY created_at, id"
        )
        return await cursor.fetchall()

    async def until(self, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        async with asyncio.timeout(30):
            while not enough(rows := await self.rows()):
                await asyncio.sleep(0.1)
        return rows


@asynccontextmanager
async def older_application(cluster: Cluster, suite: Suite, ddl: str) -> AsyncIterator[Old]:
    name = f"old_{uuid4().hex[:12]}"
    admin = await psycopg.AsyncConnection.connect(cluster.url("postgres"), autocommit=True)
    async with admin:
        await admin.execute(f'CREATE DATABASE "{name}"')
        try:
            url = cluster.url(name)
            connection = await psycopg.AsyncConnection.connect(
                url, autocommit=True, row_factory=dict_row
            )
            async with connection:
                await connection.execute(ddl)
                suite.overrides["legacy_database_url"] = url
                yield Old(connection)
        finally:
            await suite.stop_work()
            await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
async def old(cluster: Cluster, suite: Suite) -> AsyncIterator[Old]:
    async with older_application(cluster, suite, OLD) as old:
        yield old


def legacy(client: Client) -> Any:
    return client.stub(legacy_pb2_grpc.LegacyAnalysisServiceStub)


async def table(suite: Suite) -> lg.GetLegacyTableResponse:
    answer: lg.GetLegacyTableResponse = await legacy(
        suite.client("root", role="admin")
    ).GetLegacyTable(lg.GetLegacyTableRequest())
    return answer


async def view(client: Client, **fields: Any) -> tf.TechFile:
    """Creates a finished base view."""
    values = {
        "product_id": PRODUCT,
        "revision_id": REVISION,
        "file_type": tf.TECH_FILE_TYPE_BASE_VIEW,
        "analysis": FOUND,
        "model": "a-model",
        "confidence": 0.5,
        **fields,
    }
    return await flows.create(client, **values)


async def walked(suite: Suite, **fields: Any) -> lg.LegacyBackfill:
    """Returns a backfill that has ended."""
    admin = suite.client("root", role="admin")
    started = await legacy(admin).StartLegacyBackfill(lg.StartLegacyBackfillRequest(**fields))
    async with asyncio.timeout(60):
        while True:
            request = lg.GetLegacyBackfillRequest(backfill_id=started.backfill.id)
            shown: lg.LegacyBackfill = (await legacy(admin).GetLegacyBackfill(request)).backfill
            if shown.state not in (
                lg.LEGACY_BACKFILL_STATE_PENDING,
                lg.LEGACY_BACKFILL_STATE_RUNNING,
            ):
                return shown
            await asyncio.sleep(0.1)


async def generate(client: Client, **fields: Any) -> tp.TechPackRun:
    """Returns a run of the front alone that has ended."""
    photo = await asset_flows.upload(client, (flows.PHOTOS / "front.jpg").read_bytes())
    request = tp.GenerateTechPackRequest(
        product_id=PRODUCT,
        revisions=[
            tp.PackRevision(revision_id=REVISION, view=tf.VIEW_TYPE_FRONT, asset_id=photo.id)
        ],
        skip_closeups=True,
        skip_sketches=True,
        **fields,
    )
    started = await flows.pack_service(client).GenerateTechPack(request)
    return await flows.ended(client, started.run.id)


def step_of(run: tp.TechPackRun, name: str) -> tp.TechPackStep:
    return next(step for step in run.steps if step.name == name)


@pytest.mark.long
async def test_a_run_takes_what_the_old_table_has_and_pays_nothing_for_it(
    suite: Suite, old: Old
) -> None:
    await old.add()
    await suite.serve("assets", "conversions", "techfiles")
    await suite.work("conversions", "techfiles")
    ada = suite.client(ADA)

    step = step_of(await generate(ada), "base_view/front")
    assert (step.state, step.credits, step.analysis_id) == (tp.STEP_STATE_COMPLETED, 0, "")
    file = await flows.get(ada, step.tech_file_id)
    assert file.from_legacy_table and file.model == "gpt-4-vision-preview"
    assert file.confidence == 0.92
    assert json_format.MessageToDict(file.analysis)["materials"][0]["material"] == "cotton"
    assert (await table(suite)).pending_write_count == 0, "what came from there isn't written back"

    other = step_of(await generate(suite.client(EVE)), "base_view/front")
    assert other.analysis_id, "another owner's row isn't hers"
    rows = await old.until(lambda rows: len(rows) == 2)
    assert str(rows[1]["user_id"]) == EVE, "what was paid for is written beside"


async def test_finished_base_views_are_written_beside(suite: Suite, old: Old) -> None:
    await suite.serve("assets", "conversions", "techfiles")
    await suite.work("techfiles")
    ada = suite.client(ADA)
    async with asyncio.timeout(20):
        while not (await table(suite)).configured:
            await asyncio.sleep(0.1)
    await asyncio.sleep(1)  # the worker turns the switch when it starts

    file = await view(ada)
    [row] = await old.until(lambda rows: len(rows) == 1)
    assert (row["analysis_data"], row["ai_model_used"], row["view_type"]) == (
        FOUND,
        "a-model",
        "front",
    )
    change = tf.UpdateTechFileRequest(
        tech_file_id=file.id, update_mask={"paths": ["analysis"]}, analysis={"materials": []}
    )
    await flows.file_service(ada).UpdateTechFile(change)
    await old.until(lambda rows: rows[0]["analysis_data"] == {"materials": []})
    await view(ada, view_type=tf.VIEW_TYPE_BACK, state=tf.TECH_FILE_STATE_PENDING)
    await flows.create(ada)  # a sketch
    await view(suite.client("not-a-uuid"))
    shown = await table(suite)
    async with asyncio.timeout(20):
        while not (shown := await table(suite)).write_problems:
            await asyncio.sleep(0.1)
    [problem] = shown.write_problems
    assert "uuid" in problem.message and problem.owner == "user:not-a-uuid"
    assert len(await old.rows()) == 1 and shown.pending_write_count == 1


async def test_the_latest_analysis_of_a_slot_is_the_one_that_is_written(
    suite: Suite, old: Old
) -> None:
    await suite.serve("assets", "conversions", "techfiles")
    await suite.work("techfiles")
    ada = suite.client(ADA)
    async with asyncio.timeout(20):
        while suite.sql("SELECT count(*) FROM techfiles.legacy_switch") == [(0,)]:
            await asyncio.sleep(0.05)

    older = await view(ada, state=tf.TECH_FILE_STATE_PENDING, analysis={"moods": ["older"]})
    await view(ada)
    await old.until(lambda rows: len(rows) == 1)
    done = tf.UpdateTechFileStatusRequest(tech_file_id=older.id, state=tf.TECH_FILE_STATE_COMPLETED)
    await flows.file_service(ada).UpdateTechFileStatus(done)
    await view(ada, analysis={})
    # What is finished later is written later.
    other = {"moods": ["calm"]}
    await view(ada, view_type=tf.VIEW_TYPE_BACK, analysis=other)
    rows = await old.until(lambda rows: len(rows) == 2)
    assert [row["analysis_data"] for row in rows] == [FOUND, other]


async def test_the_table_is_looked_into_by_its_owners(suite: Suite, old: Old) -> None:
    await old.add(confidence=None)
    await old.add(view="top")
    await suite.serve("techfiles")

    def asking(client: Client, **fields: Any) -> Any:
        values = {"product_id": PRODUCT, "revision_id": REVISION, **fields}
        return legacy(client).FindLegacyAnalysis(
            lg.FindLegacyAnalysisRequest(**{"view_type": tf.VIEW_TYPE_FRONT, **values})
        )

    ada = suite.client(ADA)
    found = (await asking(ada)).analysis
    assert found.model == "gpt-4-vision-preview" and not found.HasField("confidence")
    for call in (
        asking(ada, view_type=tf.VIEW_TYPE_BACK),
        asking(ada, product_id="no uuid, so it can't be there"),
        asking(suite.client(EVE)),
        asking(suite.client("bob")),
    ):
        await refused(call, StatusCode.NOT_FOUND, "older application")
    columns = {column.field: column.column for column in (await table(suite)).columns}
    assert columns["owner"] == "user_id uuid" and columns["confidence"].endswith("numeric(4,2)")


async def test_a_backfill_makes_each_row_a_tech_file_once(suite: Suite, old: Old) -> None:
    await suite.serve("assets", "techfiles")
    await suite.work("techfiles")
    ada = suite.client(ADA)
    newer = await view(ada, revision_id="newer", view_type=tf.VIEW_TYPE_SIDE)
    revisions = [f"3333333{n}-3333-4333-8333-333333333333" for n in range(3)]
    for number, revision in enumerate(revisions):
        await old.add(revision=revision, view=["front", "back", "side"][number])
    await old.add(view="top")
    await old.add(confidence=92, user=EVE)
    await old.add(analysis="[1]", user=EVE)

    tried = await walked(suite, dry_run=True)
    assert (tried.examined_rows, tried.made_files, tried.failed_rows) == (6, 3, 3)
    assert len(await flows.listed(ada)) == 1
    done = await walked(suite)
    assert done.state == lg.LEGACY_BACKFILL_STATE_DONE and done.total_rows == 6
    assert (done.made_files, done.archived_files, done.failed_rows) == (3, 1, 3)
    reasons = " ".join(failure.message for failure in done.failures)
    assert "'top'" in reasons and "beyond 1" in reasons and "isn't a JSON object" in reasons

    archived = tf.ARCHIVED_FILTER_INCLUDED
    files = await flows.listed(ada, archived=archived)
    assert {file.revision_id for file in files} == {"newer", *revisions}
    assert (await flows.get(ada, newer.id)).is_latest, "an older row hides no newer file"
    again = await walked(suite)
    assert (again.made_files, again.present_rows, again.failed_rows) == (0, 3, 3)
    assert len(await flows.listed(ada, archived=archived)) == 4


@pytest.mark.parametrize(
    ("ddl", "overrides", "problem"),
    [
        ("CREATE TABLE other (id int)", {}, "no table revision_vision_analysis"),
        (OLD.replace("jsonb", "bytea"), {}, "analysis: the column 'analysis_data' is bytea"),
        (OLD.replace("user_id", "uid"), {}, 'name it in LEGACY_COLUMNS: {"owner": "..."}'),
        (OLD, {"legacy_columns": {"colour": "x"}}, "names 'colour'; the fields are id, owner"),
        (OLD, {"legacy_columns": {"model": "llm"}}, "no column 'llm'"),
        (
            OLD.replace("confidence_score numeric(4, 2)", "confidence_score text"),
            {},
            "it can be float4, float8",
        ),
    ],
)
async def test_a_table_of_other_columns_is_refused_by_name_and_harms_nobody(
    cluster: Cluster, suite: Suite, ddl: str, overrides: dict[str, Any], problem: str
) -> None:
    async with older_application(
        cluster, suite, ddl.replace("'{}'", "''") if "bytea" in ddl else ddl
    ):
        suite.overrides |= overrides
        await suite.serve("techfiles")
        shown = await table(suite)
        assert any(problem in each for each in shown.problems), shown
        call = legacy(suite.client(ADA)).FindLegacyAnalysis(
            lg.FindLegacyAnalysisRequest(
                product_id=PRODUCT, revision_id=REVISION, view_type=tf.VIEW_TYPE_FRONT
            )
        )
        await refused(call, StatusCode.FAILED_PRECONDITION, problem)


async def test_columns_of_other_names_and_types_are_mapped(cluster: Cluster, suite: Suite) -> None:
    ddl = """
        CREATE SCHEMA shop;
        CREATE TABLE shop.vision (n bigint PRIMARY KEY, who text, "Product" text, rev integer,
            side varchar(10), result text, sure integer, made timestamp)
    """
    mapping = {
        "id": "n",
        "owner": "who",
        "product_id": "Product",
        "revision_id": "rev",
        "view_type": "side",
        "analysis": "result",
        "confidence": "sure",
        "create_time": "made",
    }
    async with older_application(cluster, suite, ddl) as old:
        suite.overrides |= {
            "legacy_table": "shop.vision",
            "legacy_columns": mapping,
            "legacy_confidence_maximum": 100.0,
            "legacy_owner": "vendor:{}",
        }
        await old.connection.execute(
            "INSERT INTO shop.vision"
            " VALUES (7, 'acme', 'p-1', 3, 'FRONT', '{\"care\": []}', 80, now())"
        )
        await suite.serve("assets", "techfiles")
        await suite.work("techfiles")
        assert (await walked(suite)).made_files == 1
        acme = suite.client("acme", role="vendor")
        [file] = await flows.listed(acme)
        assert (file.revision_id, file.confidence, file.product_id) == ("3", 0.8, "p-1")


async def test_without_a_table_calls_say_what_to_set(suite: Suite) -> None:
    await suite.serve("techfiles")
    admin = suite.client("root", role="admin")
    start = legacy(admin).StartLegacyBackfill(lg.StartLegacyBackfillRequest())
    await refused(start, StatusCode.FAILED_PRECONDITION, "ATELIER_LEGACY_DATABASE_URL")
    shown = await table(suite)
    assert not shown.configured and "ATELIER_LEGACY_DATABASE_URL" in shown.problems[0]


@pytest.mark.long
async def test_a_run_waits_while_the_old_database_is_away(suite: Suite, old: Old) -> None:
    await old.add()
    url = suite.overrides["legacy_database_url"]
    suite.overrides["legacy_database_url"] = "postgresql://nobody@127.0.0.1:1/none"
    await suite.serve("assets", "conversions", "techfiles")
    await suite.work("conversions", "techfiles")
    ada = suite.client(ADA)
    photo = await asset_flows.upload(ada, (flows.PHOTOS / "front.jpg").read_bytes())
    revision = tp.PackRevision(revision_id=REVISION, view=tf.VIEW_TYPE_FRONT, asset_id=photo.id)
    request = tp.GenerateTechPackRequest(
        product_id=PRODUCT, revisions=[revision], skip_closeups=True, skip_sketches=True
    )
    run = (await flows.pack_service(ada).GenerateTechPack(request)).run
    async with asyncio.timeout(30):
        while run.wait.what != "legacy":
            await asyncio.sleep(0.2)
            got = await flows.pack_service(ada).GetTechPackRun(
                tp.GetTechPackRunRequest(run_id=run.id)
            )
            run = got.run
    await suite.stop_work("techfiles")
    suite.overrides["legacy_database_url"] = url
    await suite.work("techfiles")
    ended = await flows.ended(ada, run.id)
    assert step_of(ended, "base_view/front").credits == 0
