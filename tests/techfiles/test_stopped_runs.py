"""A run of outside workers waits without a worker, a cancelled one leaves everything final, and a
retry does again what failed and nothing else."""

import asyncio
from typing import Any

import grpc
import pytest
from atelier.conversions.v1 import analysis_pb2, job_pb2
from atelier.techfiles.v1 import collection_pb2 as col
from atelier.techfiles.v1 import export_pb2 as ex
from atelier.techfiles.v1 import tech_file_pb2 as tf
from atelier.techfiles.v1 import tech_pack_pb2 as tp

from shared.rpc.protos import struct
from tests.calls import holding, refused
from tests.conversions import flows as conversion_flows
from tests.suite import Client, Suite
from tests.techfiles import flows
from tests.techfiles.test_runs import steps_under_way
from tests.techfiles.trash_flows import export_service

PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
COMPLETED, FAILED = tp.STEP_STATE_COMPLETED, tp.STEP_STATE_FAILED
PENDING, CANCELLED = tp.RUN_STATE_PENDING, tp.RUN_STATE_CANCELLED


@pytest.fixture
async def suite(suite: Suite) -> Suite:
    await suite.serve("assets", "conversions", "techfiles")
    return suite


async def get(client: Client, run_id: str, **fields: Any) -> tp.TechPackRun:
    request = tp.GetTechPackRunRequest(run_id=run_id, **fields)
    run: tp.TechPackRun = (await flows.pack_service(client).GetTechPackRun(request)).run
    return run


async def cancel(client: Client, run_id: str) -> tp.CancelTechPackRunResponse:
    answer: tp.CancelTechPackRunResponse = await flows.pack_service(client).CancelTechPackRun(
        tp.CancelTechPackRunRequest(run_id=run_id)
    )
    return answer


async def retry(client: Client, run_id: str) -> tp.RetryTechPackRunResponse:
    answer: tp.RetryTechPackRunResponse = await flows.pack_service(client).RetryTechPackRun(
        tp.RetryTechPackRunRequest(run_id=run_id)
    )
    return answer


async def explain(client: Client, run_id: str) -> tp.ExplainTechPackRunResponse:
    answer: tp.ExplainTechPackRunResponse = await flows.pack_service(client).ExplainTechPackRun(
        tp.ExplainTechPackRunRequest(run_id=run_id)
    )
    return answer


async def waiting(client: Client, run_id: str) -> tp.TechPackRun:
    """Returns the run once it waits for an outside worker."""
    async with asyncio.timeout(30):
        while (run := await get(client, run_id)).wait.what != "an outside worker":
            await asyncio.sleep(0.05)
    return run


async def test_a_run_of_outside_workers_waits_without_a_worker_and_survives_it(
    suite: Suite,
) -> None:
    await suite.work("techfiles")
    ada = suite.client("ada")
    pictures = await flows.revisions(ada, "front")
    started = await flows.generate(ada, pictures, run_externally=True, skip_sketches=True)
    run = await waiting(ada, started.id)
    assert run.state == PENDING and run.run_externally
    jobs = [step.analysis_id or step.generation_id for step in run.steps[:3]]
    assert all(jobs), "every job is there at once, for as many workers as there are"

    told = await explain(ada, run.id)
    assert "an outside worker" in told.summary
    by_step = {finding.step: finding for finding in told.findings}
    assert by_step["closeup/1"].who == "an outside worker"
    assert "ClaimJob" in by_step["closeup/1"].next_step and jobs[2] in by_step["closeup/1"].answer
    assert not by_step["pack"].ok and not by_step["pack"].who

    await suite.stop_work("techfiles")
    said: list[dict[str, Any]] = [{"category": "apparel"}, {"features": []}]
    for job, found in zip(jobs, said, strict=False):
        claimed = await conversion_flows.claim(ada, job)
        result = job_pb2.AnalysisResult(result=struct(found))
        await conversion_flows.complete(ada, claimed, analysis=result, confidence=0.9)
    claimed = await conversion_flows.claim(ada, jobs[2])
    await conversion_flows.fail(ada, claimed, retryable=False)
    await suite.work("techfiles")

    run = await flows.ended(ada, started.id)
    assert run.state == tp.RUN_STATE_COMPLETED_WITH_FAILURES, run
    assert [step.state for step in run.steps] == [
        COMPLETED,
        COMPLETED,
        FAILED,
        tp.STEP_STATE_SKIPPED,
        COMPLETED,
    ]
    assert run.total_credits_used == 0
    assert suite.sql("SELECT count(*) FROM conversions.analyses") == [(2,)]


async def test_what_the_jobs_of_a_run_wait_for_is_asked_at_conversions(suite: Suite) -> None:
    await suite.work("techfiles")
    ada = suite.client("ada")
    pictures = await flows.revisions(ada, "front")
    started = await flows.generate(ada, pictures, skip_closeups=True)
    run = await steps_under_way(ada, started.id, 3)
    [sketch] = [step for step in run.steps if step.name == "sketch/front"]

    async def answer() -> str:
        told = {each.step: each for each in (await explain(ada, run.id)).findings}
        text: str = told["sketch/front"].answer
        return text

    both = await answer()
    for job in (sketch.analysis_id, sketch.generation_id):
        assert f"{job}: has it a result? no, it waits" in both
    assert "is it its turn? it is number" in both
    await suite.stop("conversions")
    for job in (sketch.analysis_id, sketch.generation_id):
        assert f"{job}: conversions can't be asked about it: " in await answer()


async def test_a_cancelled_run_of_outside_workers_leaves_everything_final(suite: Suite) -> None:
    await suite.work("techfiles")
    ada = suite.client("ada")
    pictures = await flows.revisions(ada, "front")
    started = await flows.generate(ada, pictures, run_externally=True, skip_sketches=True)
    run = await waiting(ada, started.id)

    assert (await cancel(ada, run.id)).cancelling
    ended = await flows.ended(ada, run.id)
    assert (ended.state, ended.progress_percent) == (CANCELLED, 100)
    assert {step.state for step in ended.steps} == {FAILED, tp.STEP_STATE_SKIPPED}
    assert {step.error_class for step in ended.steps} == {"CANCELLED", ""}
    assert all(step.HasField("end_time") for step in ended.steps if step.state == FAILED)
    files = await flows.listed(ada, batch_id=run.batch_id)
    assert {file.state for file in files} == {tf.TECH_FILE_STATE_FAILED}
    for table in ("analyses", "generations"):
        assert suite.sql(f"SELECT DISTINCT state FROM conversions.{table}") == [("cancelled",)]
    assert not (await cancel(ada, run.id)).cancelling
    assert await get(ada, run.id) == ended, "nothing changes after the end"

    told = await explain(ada, run.id)
    assert told.summary.startswith("it is CANCELLED") and "RetryTechPackRun" in str(told.findings)


async def test_a_run_that_goes_on_or_failed_in_nothing_is_not_tried_again(suite: Suite) -> None:
    ada = suite.client("ada")
    started = await flows.generate(ada, await flows.revisions(ada, "front"))
    await refused(retry(ada, started.id), PRECONDITION, "PENDING", "CancelTechPackRun")

    held = flows.pack_service(ada).ExportCollection(
        tp.ExportCollectionRequest(
            collection_id=started.collection_id,
            format=tp.EXPORT_FORMAT_PDF,
            require_complete=True,
        )
    )
    await refused(held, PRECONDITION, started.id, "WatchTechPackRun")
    suite.sql("UPDATE techfiles.runs SET state = 'completed', ended_at = now()")
    await refused(retry(ada, started.id), PRECONDITION, "nothing in it failed")


@pytest.mark.long
async def test_a_retry_does_again_what_failed_and_charges_nothing_twice(suite: Suite) -> None:
    await suite.work("techfiles")
    ada = suite.client("ada")
    pictures = await flows.revisions(ada, "front")
    started = await flows.generate(ada, pictures, skip_closeups=True, make_zip=True)
    run = await steps_under_way(ada, started.id, 3)
    sketch = next(step for step in run.steps if step.name == "sketch/front")
    await conversion_flows.analyses(ada).CancelAnalysis(
        analysis_pb2.CancelAnalysisRequest(analysis_id=sketch.analysis_id)
    )
    await suite.work("conversions")

    run = await flows.ended(ada, started.id)
    assert run.state == tp.RUN_STATE_COMPLETED_WITH_FAILURES
    assert run.total_credits_used == 1, "the drawing of the sketch that failed"
    before = await flows.get(ada, run.pack_file_id)

    again = await retry(ada, run.id)
    assert again.run.state == PENDING and "WatchTechPackRun" in again.next_step
    assert again.run.progress_percent < 100 and again.run.retry_count == 1
    done = await flows.ended(ada, run.id)
    assert done.state == tp.RUN_STATE_COMPLETED, done
    assert suite.sql("SELECT count(*) FROM conversions.generations") == [(1,)]
    assert suite.sql("SELECT count(*) FROM conversions.analyses") == [(4,)]
    charged = suite.sql(
        "SELECT (SELECT sum(credits) FROM conversions.analyses)"
        " + (SELECT sum(credits) FROM conversions.generations)"
    )
    assert charged == [(done.total_credits_used,)]
    pack = await flows.get(ada, run.pack_file_id)
    assert pack.export_id == done.export_id != before.export_id
    assert pack.version_number == before.version_number + 1
    same = [(s.analysis_id, s.tech_file_id) for s in run.steps if s.state == COMPLETED]
    assert same[:2] == [(s.analysis_id, s.tech_file_id) for s in done.steps][:2]
    shown = await get(ada, run.id, include_urls=True)
    assert shown.pdf.file_url and shown.zip.id and len(shown.files) == 4
    assert all(file.file_url for file in shown.files)


@pytest.mark.long
async def test_what_a_cancelled_runs_jobs_had_cost_stands_in_its_steps(suite: Suite) -> None:
    await suite.work("techfiles")
    ada = suite.client("ada")
    facts = flows.example_facts()
    started = await flows.generate(
        ada, await flows.revisions(ada, "front"), facts=facts, skip_closeups=True
    )
    await steps_under_way(ada, started.id, 3)
    await suite.stop_work("techfiles")
    await suite.work("conversions")
    sql = (
        "SELECT (SELECT count(*) FROM conversions.analyses WHERE state = 'completed')"
        " + (SELECT count(*) FROM conversions.generations WHERE state = 'completed')"
    )
    async with asyncio.timeout(60):
        while suite.sql(sql) != [(4,)]:
            await asyncio.sleep(0.1)

    answer = await cancel(ada, started.id)
    assert answer.cancelling and answer.run.state == PENDING, "its jobs come first"
    await suite.work("techfiles")
    run = await flows.ended(ada, started.id)
    assert run.state == CANCELLED
    assert {step.name: step.credits for step in run.steps} == {
        "category": 1,
        "base_view/front": 1,
        "closeups": 0,
        "sketch/front": 2,
        "pack": 0,
    }
    shown = await flows.contents(ada, run.collection_id)
    assert shown.collection.total_credits_used == run.total_credits_used == 4

    await retry(ada, run.id)
    done = await flows.ended(ada, run.id)
    assert (done.state, done.total_credits_used) == (tp.RUN_STATE_COMPLETED, 4)
    assert suite.sql(sql) == [(4,)], "what was done isn't done again"


@pytest.mark.long
async def test_one_call_answers_with_files_pdf_and_zip(suite: Suite) -> None:
    await suite.work("assets", "conversions", "techfiles")
    ada = suite.client("ada")
    request = tp.GenerateTechPackRequest(
        product_id=flows.PRODUCT,
        revisions=await flows.revisions(ada, "front"),
        skip_sketches=True,
        make_zip=True,
        include_urls=True,
        wait=True,
    )
    answer = await flows.pack_service(ada).GenerateTechPack(request, timeout=90)
    run = answer.run
    assert run.state == tp.RUN_STATE_COMPLETED and not answer.next_step
    assert run.pdf.state == run.zip.state == tp.EXPORT_STATE_COMPLETED
    assert (await flows.fetch(run.pdf)).startswith(b"%PDF")
    assert (await flows.fetch(run.zip)).startswith(b"PK")
    assert not run.zip.incomplete and len(run.files) == 4
    assert (await explain(ada, run.id)).summary == "every step is done, and the pack is there"


@pytest.mark.long
async def test_a_run_without_room_for_its_pack_says_what_to_purge_and_is_finished_then(
    suite: Suite,
) -> None:
    await suite.work("conversions", "techfiles")
    ada = suite.client("ada")
    made = await flows.export(ada, (await flows.collect(ada)).id, format=tp.EXPORT_FORMAT_PDF)
    await suite.stop_work("techfiles")
    suite.overrides["quota_owner_export_bytes"] = made.size_bytes
    await suite.work("techfiles")
    pictures = await flows.revisions(ada, "front")
    started = await flows.generate(ada, pictures, skip_sketches=True, skip_closeups=True)

    run = await flows.ended(ada, started.id)
    assert run.state == tp.RUN_STATE_COMPLETED_WITH_FAILURES
    assert [step.name for step in run.steps if step.state == FAILED] == ["pack"]
    pack = run.steps[-1]
    assert pack.error_class == "QUOTA_EXCEEDED" and str(made.size_bytes) in pack.error_message
    assert "PurgeExport" in pack.error_message and "RetryTechPackRun" in pack.error_message

    await export_service(ada).PurgeExport(ex.PurgeExportRequest(export_id=made.id))
    await retry(ada, run.id)
    run = await flows.ended(ada, run.id)
    assert run.state == tp.RUN_STATE_COMPLETED and run.export_id
    assert suite.sql("SELECT count(*) FROM conversions.analyses") == [(2,)]


@pytest.mark.long
async def test_an_export_of_half_a_pack_says_so(suite: Suite) -> None:
    ada = suite.client("ada")
    pictures = await flows.revisions(ada, "front")
    request = tp.GenerateTechPackRequest(
        product_id=flows.PRODUCT, revisions=pictures, run_externally=True, wait=True
    )
    answer = await flows.pack_service(ada).GenerateTechPack(request, timeout=2)
    assert answer.run.id in answer.next_step and "repeat this call" in answer.next_step

    await suite.work("techfiles")
    export = await flows.export(ada, answer.run.collection_id, format=tp.EXPORT_FORMAT_PDF)
    assert export.incomplete and answer.run.id in export.warnings[0]
    await cancel(ada, answer.run.id)
    await flows.ended(ada, answer.run.id)
    export = await flows.export(ada, answer.run.collection_id, format=tp.EXPORT_FORMAT_PDF)
    assert not export.incomplete and not export.warnings


async def test_a_call_that_waits_for_what_is_purged_says_that_it_is_gone(suite: Suite) -> None:
    ada = suite.client("ada")
    packs, pdf = flows.pack_service(ada), tp.EXPORT_FORMAT_PDF
    collection = await flows.collect(ada)
    exporting = packs.ExportCollection(
        tp.ExportCollectionRequest(collection_id=collection.id, format=pdf, wait=True), timeout=30
    )
    waited = asyncio.ensure_future(refused(exporting, flows.NOT_FOUND, "export"))
    async with asyncio.timeout(20):
        while not (exports := suite.sql("SELECT id::text FROM techfiles.exports")):
            await asyncio.sleep(0.05)
    await export_service(ada).PurgeExport(ex.PurgeExportRequest(export_id=exports[0][0]))
    await waited

    asked = tp.GenerateTechPackRequest(
        request_id=flows.request_id(),
        product_id=flows.PRODUCT,
        revisions=await flows.revisions(ada, "front"),
        wait=True,
    )
    run = (await packs.GenerateTechPack(asked, timeout=1)).run
    await cancel(ada, run.id)
    await packs.PurgeTechPackRun(tp.PurgeTechPackRunRequest(run_id=run.id))
    # The repeat gets the stored answer, and waits for what it names.
    await refused(packs.GenerateTechPack(asked, timeout=30), flows.NOT_FOUND, run.id)


async def test_a_run_is_read_everywhere_after_its_zip_was_purged(suite: Suite) -> None:
    ada = suite.client("ada")
    packs = flows.pack_service(ada)
    asked = tp.GenerateTechPackRequest(
        request_id=flows.request_id(),
        product_id=flows.PRODUCT,
        revisions=await flows.revisions(ada, "front"),
        make_zip=True,
        wait=True,
    )
    started = (await packs.GenerateTechPack(asked, timeout=1)).run
    archive = (
        await packs.ExportCollection(
            tp.ExportCollectionRequest(
                collection_id=started.collection_id, format=tp.EXPORT_FORMAT_ZIP
            )
        )
    ).export
    await suite.change(
        "UPDATE techfiles.runs SET state = 'completed', ended_at = now(), zip_export_id = %s",
        (archive.id,),
    )

    # The call is told while it reads the ZIP's row for the first time.
    with holding(suite, "LOCK TABLE techfiles.exports IN ACCESS EXCLUSIVE MODE", None):
        waiting_call = packs.GenerateTechPack(asked, timeout=30)
        waited = asyncio.ensure_future(refused(waiting_call, flows.NOT_FOUND, archive.id))
        async with asyncio.timeout(10):
            while suite.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == [(0,)]:
                await asyncio.sleep(0.02)
    await export_service(ada).PurgeExport(ex.PurgeExportRequest(export_id=archive.id))
    await waited

    answer = await packs.GenerateTechPack(asked, timeout=30)
    assert answer.run.id == started.id and "purged" in answer.next_step
    run = await get(ada, started.id, include_urls=True)
    assert run.state == tp.RUN_STATE_COMPLETED and not run.HasField("zip")
    listed = (await packs.ListTechPackRuns(tp.ListTechPackRunsRequest())).runs
    assert [each.id for each in listed] == [started.id]
    watch = packs.WatchTechPackRun(tp.WatchTechPackRunRequest(run_id=started.id))
    assert {item.run.id async for item in watch if item.HasField("run")} == {started.id}
    told = {each.question: each for each in (await explain(ada, started.id)).findings}
    assert told["is the ZIP there?"].answer == "no, it was purged"


async def test_runs_are_listed_by_collection_state_and_time(suite: Suite) -> None:
    ada = suite.client("ada")
    pictures = await flows.revisions(ada, "front")
    one, two = [await flows.generate(ada, pictures) for _ in range(2)]
    await cancel(ada, one.id)

    async def listed(**fields: Any) -> list[str]:
        request = tp.ListTechPackRunsRequest(**fields)
        return [run.id for run in (await flows.pack_service(ada).ListTechPackRuns(request)).runs]

    assert await listed(collection_id=two.collection_id) == [two.id]
    assert await listed(state=CANCELLED) == [one.id]
    assert await listed(created_from=two.create_time) == [two.id]
    assert await listed(created_before=two.create_time) == [one.id]


async def test_what_is_in_the_trash_or_gone_is_not_tried_again(suite: Suite) -> None:
    ada = suite.client("ada")
    packs, files = flows.pack_service(ada), flows.file_service(ada)
    collections = flows.collection_service(ada)
    run = await flows.generate(ada, await flows.revisions(ada, "front"), skip_sketches=True)
    await cancel(ada, run.id)

    await packs.DeleteTechPackRun(tp.DeleteTechPackRunRequest(run_id=run.id))
    await refused(retry(ada, run.id), PRECONDITION, "in the trash", "UndeleteTechPackRun")
    await packs.UndeleteTechPackRun(tp.UndeleteTechPackRunRequest(run_id=run.id))
    collection = {"collection_id": run.collection_id}
    await collections.DeleteCollection(col.DeleteCollectionRequest(**collection))
    await refused(retry(ada, run.id), PRECONDITION, "UndeleteCollection")
    await collections.UndeleteCollection(col.UndeleteCollectionRequest(**collection))
    pack = {"tech_file_id": run.pack_file_id}
    await files.DeleteTechFile(tf.DeleteTechFileRequest(**pack))
    await refused(retry(ada, run.id), PRECONDITION, "in the trash", "UndeleteTechFile")
    await files.PurgeTechFile(tf.PurgeTechFileRequest(**pack))
    await refused(retry(ada, run.id), PRECONDITION, "step pack was purged", "GenerateTechPack")
    assert (await get(ada, run.id)).state == CANCELLED


async def test_a_base_view_in_the_trash_makes_no_pack(suite: Suite) -> None:
    ada = suite.client("ada")
    [good, bad] = await flows.revisions(ada, "front", "back")
    view = {"file_type": tf.TECH_FILE_TYPE_BASE_VIEW, "view_type": tf.VIEW_TYPE_FRONT}
    named: dict[str, Any] = {"revision_id": "r1", **view}
    kept = await flows.create(ada, file_asset_id=good.asset_id, **named)
    gone = await flows.create(ada, file_asset_id=bad.asset_id, **named)
    await flows.file_service(ada).DeleteTechFile(tf.DeleteTechFileRequest(tech_file_id=gone.id))

    answer = flows.generate(ada, [], revision_ids=[gone.id])
    await refused(answer, grpc.StatusCode.INVALID_ARGUMENT, "revision_ids", "in the trash")
    run = await flows.generate(ada, [], revision_ids=["r1"])
    plan = suite.sql("SELECT plan::text FROM techfiles.runs WHERE id = %s", (run.id,))[0][0]
    assert kept.file_asset_id in plan and bad.asset_id not in plan
