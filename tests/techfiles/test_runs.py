"""The promises of a run: it continues after failures and restarts, shows each step, and can be
stopped."""

import asyncio

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.common.v1 import facts_pb2
from atelier.conversions.v1 import analysis_pb2, job_pb2
from atelier.techfiles.v1 import collection_pb2 as col
from atelier.techfiles.v1 import tech_file_pb2 as tf
from atelier.techfiles.v1 import tech_pack_pb2 as tp

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.conversions import flows as conversion_flows
from tests.suite import Client, Suite
from tests.techfiles import flows

INVALID = grpc.StatusCode.INVALID_ARGUMENT
COMPLETED, FAILED, SKIPPED = tp.STEP_STATE_COMPLETED, tp.STEP_STATE_FAILED, tp.STEP_STATE_SKIPPED


@pytest.fixture
async def suite(suite: Suite) -> Suite:
    await suite.serve("assets", "conversions", "techfiles")
    return suite


async def steps_under_way(client: Client, run_id: str, count: int) -> tp.TechPackRun:
    """Returns the run once so many of its steps wait for `conversions`."""
    async with asyncio.timeout(30):
        while True:
            run: tp.TechPackRun = (
                await flows.pack_service(client).GetTechPackRun(
                    tp.GetTechPackRunRequest(run_id=run_id)
                )
            ).run
            if sum(step.state == tp.STEP_STATE_PROCESSING for step in run.steps) >= count:
                return run
            await asyncio.sleep(0.05)


def two_closeups() -> facts_pb2.Facts:
    """Returns facts with one close-up of the back and one of the front."""
    shots = [
        facts_pb2.CloseupFact(name="yoke", view="back"),
        facts_pb2.CloseupFact(name="collar", view="front"),
    ]
    return facts_pb2.Facts(closeups=shots)


@pytest.mark.long
async def test_an_owner_with_many_exports_lets_another_ones_begin(suite: Suite) -> None:
    suite.overrides["worker_concurrency"] = 1
    clients = [suite.client("ada")] * 5 + [suite.client("bob")]
    asked = [
        await flows.pack_service(client).ExportCollection(
            tp.ExportCollectionRequest(
                collection_id=(await flows.collect(client, name=f"Line {number}")).id,
                format=tp.EXPORT_FORMAT_ZIP,
            )
        )
        for number, client in enumerate(clients)
    ]
    await suite.work("techfiles")
    await flows.export(clients[0], asked[0].export.collection_id, format=tp.EXPORT_FORMAT_ZIP)

    begun = [
        owner for (owner,) in suite.sql("SELECT owner FROM techfiles.attempts ORDER BY created_at")
    ]
    assert begun.index("user:bob") == 1, begun


@pytest.mark.long
async def test_a_step_that_fails_is_recorded_and_the_rest_goes_on(suite: Suite) -> None:
    await suite.work("techfiles")
    ada = suite.client("ada")
    facts = two_closeups()
    started = await flows.generate(
        ada, await flows.revisions(ada, "front"), facts=facts, skip_sketches=True
    )

    run = await steps_under_way(ada, started.id, 3)
    analysis_id = next(step.analysis_id for step in run.steps if step.name == "base_view/front")
    await conversion_flows.analyses(ada).CancelAnalysis(
        analysis_pb2.CancelAnalysisRequest(analysis_id=analysis_id)
    )
    await suite.work("conversions")

    run = await flows.ended(ada, started.id)
    assert run.state == tp.RUN_STATE_COMPLETED_WITH_FAILURES

    by_name = {step.name: step for step in run.steps}
    assert {name: step.state for name, step in by_name.items()} == {
        "category": COMPLETED,
        "base_view/front": FAILED,
        "closeup/1": SKIPPED,
        "closeup/2": COMPLETED,
        "sketches": SKIPPED,
        "pack": COMPLETED,
    }
    assert by_name["base_view/front"].error_class == "CANCELLED"
    assert run.total_credits_used == 1 and run.progress_percent == 100

    failed = await flows.get(ada, by_name["base_view/front"].tech_file_id)
    assert failed.state == tf.TECH_FILE_STATE_FAILED and failed.error_message
    shown = await flows.contents(ada, run.collection_id)
    assert (shown.collection.state, shown.collection.progress_percent) == (
        col.COLLECTION_STATE_FAILED,
        100,
    )
    assert (await flows.get(ada, run.pack_file_id)).state == tf.TECH_FILE_STATE_COMPLETED


@pytest.mark.faults
async def test_a_run_goes_on_after_its_worker_was_stopped_and_repeats_nothing(suite: Suite) -> None:
    await suite.work("techfiles")
    ada = suite.client("ada")
    started = await flows.generate(ada, await flows.revisions(ada, "front"), skip_closeups=True)
    before = await steps_under_way(ada, started.id, 3)

    await suite.stop_work("techfiles")
    await suite.work("conversions")
    await suite.work("techfiles")
    run = await flows.ended(ada, started.id)

    assert run.state == tp.RUN_STATE_COMPLETED, run
    assert [(s.analysis_id, s.generation_id) for s in run.steps] == [
        (s.analysis_id, s.generation_id) for s in before.steps
    ]
    assert suite.sql("SELECT count(*) FROM conversions.analyses") == [(3,)]
    assert suite.sql("SELECT count(*) FROM conversions.generations") == [(1,)]
    assert run.total_credits_used == 1

    outcomes = suite.sql(
        "SELECT outcome FROM techfiles.attempts WHERE job = 'runs' ORDER BY number"
    )
    assert outcomes == [("retried",), ("succeeded",)]
    assert len(await flows.listed(ada, page_size=100)) == 4  # category, view, sketch, pack


@pytest.mark.long
async def test_a_cancelled_run_stops_and_takes_its_jobs_with_it(suite: Suite) -> None:
    await suite.work("techfiles")
    ada = suite.client("ada")
    started = await flows.generate(ada, await flows.revisions(ada, "front"), skip_closeups=True)
    under_way = await steps_under_way(ada, started.id, 3)
    service = flows.pack_service(ada)
    answer = await service.CancelTechPackRun(tp.CancelTechPackRunRequest(run_id=started.id))
    assert answer.cancelling

    run = await flows.ended(ada, started.id)
    assert (
        run.state == tp.RUN_STATE_CANCELLED
        and run.total_credits_used == 0
        and run.generation_time_ms > 0
    )

    files = [item.tech_file for item in (await flows.contents(ada, run.collection_id)).items]
    assert {file.state for file in files} == {tf.TECH_FILE_STATE_FAILED} and "cancelled" in files[
        0
    ].error_message
    assert not (
        await service.CancelTechPackRun(tp.CancelTechPackRunRequest(run_id=started.id))
    ).cancelling

    for step in under_way.steps:
        if step.analysis_id:
            await analysis_cancelled(ada, step.analysis_id)


async def analysis_cancelled(client: Client, analysis_id: str) -> None:
    request = analysis_pb2.GetAnalysisRequest(analysis_id=analysis_id)
    async with asyncio.timeout(20):
        while True:
            answer = await conversion_flows.analyses(client).GetAnalysis(request)
            if answer.analysis.state == job_pb2.JOB_STATE_CANCELLED:
                return
            await asyncio.sleep(0.1)


async def test_a_run_that_no_worker_took_is_cancelled_at_once(suite: Suite) -> None:
    ada = suite.client("ada")
    started = await flows.generate(ada, await flows.revisions(ada, "front"))
    answer = await flows.pack_service(ada).CancelTechPackRun(
        tp.CancelTechPackRunRequest(run_id=started.id)
    )
    assert answer.run.state == tp.RUN_STATE_CANCELLED and answer.cancelling
    assert answer.run.generation_time_ms > 0 and answer.run == await flows.ended(ada, started.id)


@pytest.mark.long
async def test_what_is_skipped_is_not_asked_for_but_its_pictures_are_there(suite: Suite) -> None:
    ada = suite.client("ada")
    pictures = await flows.revisions(ada, "front", "back")
    skip = {"skip_base_views": True, "skip_closeups": True, "skip_sketches": True}
    started = await flows.generate(ada, pictures, primary_asset_id=pictures[1].asset_id, **skip)
    assert [(step.name, step.state) for step in started.steps] == [
        ("category", tp.STEP_STATE_PENDING),
        ("base_view/front", SKIPPED),
        ("base_view/back", SKIPPED),
        ("closeups", SKIPPED),
        ("sketches", SKIPPED),
        ("pack", tp.STEP_STATE_PENDING),
    ]

    files = [item.tech_file for item in (await flows.contents(ada, started.collection_id)).items]
    assert [(file.file_asset_id, file.state) for file in files] == [
        (pictures[0].asset_id, tf.TECH_FILE_STATE_COMPLETED),
        (pictures[1].asset_id, tf.TECH_FILE_STATE_COMPLETED),
        (pictures[1].asset_id, tf.TECH_FILE_STATE_PENDING),
    ]

    await suite.work("techfiles", "conversions")
    run = await flows.ended(ada, started.id)
    assert run.state == tp.RUN_STATE_COMPLETED and run.total_credits_used == 0


@pytest.mark.long
async def test_a_close_up_of_a_view_that_no_revision_shows_is_skipped_and_says_why(
    suite: Suite,
) -> None:
    await suite.work("techfiles", "conversions")
    ada = suite.client("ada")
    started = await flows.generate(
        ada, await flows.revisions(ada, "front"), facts=two_closeups(), skip_sketches=True
    )
    run = await flows.ended(ada, started.id)
    assert run.state == tp.RUN_STATE_COMPLETED and run.progress_percent == 100

    steps = {step.name: step for step in run.steps}
    assert [steps[name].state for name in ("closeup/1", "closeup/2")] == [SKIPPED, COMPLETED]
    assert "no revision shows the back" in steps["closeup/1"].error_message
    assert not steps["closeup/1"].error_class and not steps["closeup/1"].tech_file_id


@pytest.mark.long
async def test_a_watch_shows_every_step_and_ends_with_the_run(suite: Suite) -> None:
    ada = suite.client("ada")
    started = await flows.generate(ada, await flows.revisions(ada, "front"), skip_closeups=True)
    request = tp.WatchTechPackRunRequest(run_id=started.id)
    items: list[tp.WatchTechPackRunResponse] = []

    async with asyncio.timeout(90):
        async for item in flows.pack_service(ada).WatchTechPackRun(request):
            items.append(item)
            if item.bookmark.ready:
                await suite.work("techfiles", "conversions")
    assert items[0].run == started and items[1].bookmark.ready

    told = [item.run for item in items[2:] if item.WhichOneof("item") == "run"]
    assert told[-1].state == tp.RUN_STATE_COMPLETED and told[-1].progress_percent == 100
    assert [run.progress_percent for run in told] == sorted(run.progress_percent for run in told)

    seen = {(step.name, step.state) for run in told for step in run.steps}
    for name in ("category", "base_view/front", "sketch/front", "pack"):
        assert {(name, tp.STEP_STATE_PROCESSING), (name, COMPLETED)} <= seen

    again = [item async for item in flows.pack_service(ada).WatchTechPackRun(request)]
    assert again[0].run.state == tp.RUN_STATE_COMPLETED and len(again) == 2


async def test_a_repeat_of_a_request_is_one_run(suite: Suite) -> None:
    ada = suite.client("ada")
    pictures = await flows.revisions(ada, "front")
    name = flows.request_id()
    runs = await asyncio.gather(*(flows.generate(ada, pictures, request_id=name) for _ in range(4)))
    assert len({run.id for run in runs}) == 1
    assert suite.sql("SELECT count(*) FROM techfiles.collections") == [(1,)]
    await refused(
        flows.generate(ada, pictures, request_id=name, category="bag"), INVALID, "request_id"
    )


async def test_a_call_that_waits_answers_with_the_run_as_it_is_when_time_is_up(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    pictures = await flows.revisions(ada, "front")
    request = tp.GenerateTechPackRequest(product_id=flows.PRODUCT, revisions=pictures, wait=True)
    answer = await flows.pack_service(ada).GenerateTechPack(request, timeout=2)
    assert answer.run.state == tp.RUN_STATE_PENDING and answer.run.steps


async def test_a_run_that_breaks_a_rule_is_refused_before_anything_is_kept(suite: Suite) -> None:
    ada, bob = suite.client("ada"), suite.client("bob")
    [front] = await flows.revisions(ada, "front")
    theirs = await asset_flows.upload(bob, asset_flows.jpeg())
    other = tp.PackRevision(revision_id="r", view=tf.VIEW_TYPE_BACK, asset_id=theirs.id)

    await refused(flows.generate(ada, [front, other]), flows.NOT_FOUND, theirs.id)
    await refused(flows.generate(ada, [front, front]), INVALID, "revisions")
    await refused(flows.generate(ada, []), INVALID, "revisions")

    bag = facts_pb2.Facts(product=facts_pb2.ProductFacts(category="bag"))
    mixed = flows.generate(ada, [front], category="jacket", facts=bag)
    await refused(mixed, INVALID, "category", "bag")

    shots = [facts_pb2.CloseupFact(name=f"{n}", view="front") for n in range(61)]
    many = flows.generate(ada, [front], facts=facts_pb2.Facts(closeups=shots))
    await refused(many, INVALID, "facts.closeups")

    await refused(
        flows.generate(ada, [front], facts=flows.large_facts()), INVALID, "facts", "1000000"
    )

    point = facts_pb2.Point(x=0.5, y=0.5)
    scale = facts_pb2.ScaleFact(view="front", value=1, unit="cm", to=point, **{"from": point})
    pointless = flows.generate(ada, [front], facts=facts_pb2.Facts(scales=[scale]))
    await refused(pointless, INVALID, "facts.scales[0]")

    pending = await asset_flows.announce(ada, asset_flows.jpeg())
    await refused(
        flows.generate(ada, [front], primary_asset_id=pending.asset.id),
        grpc.StatusCode.FAILED_PRECONDITION,
    )
    assert pending.asset.state == asset_pb2.ASSET_STATE_PENDING
    for table in ("collections", "tech_files", "runs"):
        assert suite.sql(f"SELECT count(*) FROM techfiles.{table}") == [(0,)]
