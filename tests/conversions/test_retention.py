"""What retention promises: what is older than the settings allow goes to the trash, every job says
when, operators read what was done, and photographs are dropped early when asked."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import generation_pb2, job_pb2, retention_pb2_grpc
from atelier.conversions.v1 import retention_pb2 as pb

from services.conversions.upkeep import Upkeep
from shared.background.jobs import JobQueue
from shared.database.db import Database
from tests.assets import flows as assets
from tests.calls import refused
from tests.conversions import flows
from tests.conversions import local_pictures as pictures
from tests.conversions.test_trash import (
    ANALYSIS,
    CLOSEUP,
    CONVERSION,
    GENERATION,
    asset,
    eventually,
    held_are,
    trashed,
)
from tests.suite import Client, Suite

DAY = timedelta(days=1)


def retention(client: Client) -> Any:
    return client.stub(retention_pb2_grpc.RetentionServiceStub)


async def upkeep(suite: Suite) -> None:
    """Does one round of upkeep, as a worker does."""
    settings = suite.settings("conversions", "worker")
    db = Database(settings, "conversions")
    await db.open()
    try:
        async for _ in Upkeep(db, JobQueue(db), settings).run():
            pass
    finally:
        await db.close()


def grow_older(suite: Suite, table: str, row_id: str, days: float) -> None:
    suite.sql(
        f"UPDATE conversions.{table} SET kept_from = kept_from - make_interval(secs => %s)"
        " WHERE id = %s RETURNING id",
        (days * 86400, row_id),
    )


async def counts(suite: Suite) -> dict[int, int]:
    stub = retention(suite.client("olga", "admin"))
    answer = await stub.ListRetentionCounts(pb.ListRetentionCountsRequest())
    return {each.retention_class: each.done for each in answer.counts}


async def ids(client: Client, kind: Any, **filters: Any) -> list[str]:
    return [each.id for each in await kind.listed(client, **filters)]


async def test_each_class_goes_to_the_trash_when_its_time_has_come(
    suite: Suite, tmp_path: Path
) -> None:
    suite.overrides |= {"retention_failed_days": 3, "retention_analysis_days": 10}
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    old, young, kept = [await flows.analyse(ada, wait=False) for _ in range(3)]
    for each in (old, young):
        shown = await ANALYSIS.call(ada, "Cancel", each.id)
        assert not shown.HasField("retention_time"), "answers of changes don't say"
    outside = await flows.analyse(ada, run_externally=True, wait=False)
    result = job_pb2.AnalysisResult(result={"name": "coat"})
    await flows.complete(ada, await flows.claim(ada, outside.id), analysis=result)

    waiting = await ANALYSIS.call(ada, "Get", kept.id)
    assert not waiting.HasField("retention_time"), "it hasn't ended"
    cancelled = await ANALYSIS.call(ada, "Get", old.id)
    ended = cancelled.update_time.ToDatetime()
    assert cancelled.retention_time.ToDatetime() - ended == 3 * DAY
    [done] = await ANALYSIS.listed(ada, state=job_pb2.JOB_STATE_COMPLETED)
    assert done.retention_time.ToDatetime() - done.update_time.ToDatetime() == 10 * DAY

    grow_older(suite, "analyses", old.id, 3)
    grow_older(suite, "analyses", young.id, 2.9)
    grow_older(suite, "analyses", outside.id, 9.9)
    await upkeep(suite)
    assert await ids(ada, ANALYSIS) == [outside.id, kept.id, young.id]
    assert await counts(suite) == {pb.RETENTION_CLASS_FAILED: 1}
    in_trash = await ANALYSIS.call(ada, "Get", old.id)
    assert in_trash.HasField("expire_time") and not in_trash.HasField("retention_time")

    # What its owner takes out of the trash isn't put there again at once.
    back = await ANALYSIS.call(ada, "Undelete", old.id)
    await upkeep(suite)
    assert old.id in await ids(ada, ANALYSIS)
    again = await ANALYSIS.call(ada, "Get", old.id)
    assert again.retention_time.ToDatetime() - back.update_time.ToDatetime() == 3 * DAY

    grow_older(suite, "analyses", outside.id, 0.2)
    await upkeep(suite)
    assert outside.id not in await ids(ada, ANALYSIS)
    assert (await counts(suite))[pb.RETENTION_CLASS_ANALYSES] == 1


async def test_a_job_that_ended_before_its_end_was_noted_counts_from_its_last_change(
    suite: Suite,
) -> None:
    suite.overrides["retention_failed_days"] = 3
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    made = await flows.analyse(ada, wait=False)
    await ANALYSIS.call(ada, "Cancel", made.id)
    suite.sql(
        "UPDATE conversions.analyses SET ended_at = NULL, kept_from = NULL,"
        " updated_at = updated_at - interval '2 days' WHERE id = %s",
        (made.id,),
    )
    before = await ANALYSIS.call(ada, "Get", made.id)
    assert before.retention_time.ToDatetime() - before.update_time.ToDatetime() == 3 * DAY

    await ANALYSIS.call(ada, "Archive", made.id)
    after = await ANALYSIS.call(ada, "Get", made.id)
    assert after.retention_time == before.retention_time
    listed = job_pb2.ListJobsRequest(show_archived=True)
    [job] = (await flows.jobs(ada).ListJobs(listed)).jobs
    assert job.end_time == before.update_time != after.update_time

    suite.sql(
        "UPDATE conversions.analyses SET ended_at = NULL, kept_from = NULL,"
        " updated_at = updated_at - interval '3 days' WHERE id = %s",
        (made.id,),
    )
    await upkeep(suite)
    assert (await ANALYSIS.call(ada, "Get", made.id)).HasField("delete_time")


async def test_what_was_in_the_trash_long_enough_is_purged_chunk_by_chunk(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.background.due._CHUNK", 2)
    suite.overrides["cleanup_max_items"] = 5
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    mine = [await flows.analyse(ada, wait=False) for _ in range(4)]
    hers = [await flows.analyse(eve, wait=False) for _ in range(3)]
    for client, made in ((ada, mine), (eve, hers)):
        for each in made:
            await ANALYSIS.call(client, "Cancel", each.id)
            await ANALYSIS.call(client, "Delete", each.id)
    suite.sql("UPDATE conversions.analyses SET expires_at = now() WHERE id <> %s", (mine[0].id,))

    await upkeep(suite)
    assert await counts(suite) == {pb.RETENTION_CLASS_PURGED: 5}, "a round takes so many at most"
    await upkeep(suite)
    assert await counts(suite) == {pb.RETENTION_CLASS_PURGED: 6}
    assert await ids(ada, ANALYSIS, show_deleted=True) == [mine[0].id]
    assert await ids(eve, ANALYSIS, show_deleted=True) == []


async def test_a_row_that_somebody_changes_right_now_is_left_for_the_next_round(
    suite: Suite,
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    made = await flows.analyse(ada, wait=False)
    await ANALYSIS.call(ada, "Cancel", made.id)
    await ANALYSIS.call(ada, "Delete", made.id)
    suite.sql("UPDATE conversions.analyses SET expires_at = now() WHERE id = %s", (made.id,))
    with psycopg.connect(suite.cluster.url(suite.database)) as conn:
        conn.execute("SELECT FROM conversions.analyses WHERE id = %s FOR UPDATE", (made.id,))
        await upkeep(suite)
    assert await ids(ada, ANALYSIS, show_deleted=True) == [made.id]
    await upkeep(suite)
    assert await ids(ada, ANALYSIS, show_deleted=True) == []


async def test_a_worker_does_it_by_itself(suite: Suite, tmp_path: Path) -> None:
    suite.overrides["retention_generation_days"] = 0.5
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    made = await flows.generate(ada, prompt="a coat", wait=False)
    await GENERATION.call(ada, "Cancel", made.id)
    await GENERATION.call(ada, "Delete", made.id)
    suite.sql("UPDATE conversions.generations SET expires_at = now() WHERE id = %s", (made.id,))
    await suite.work("conversions")

    async def gone() -> bool:
        return not await ids(ada, GENERATION, show_deleted=True)

    await eventually(gone)


async def test_owners_read_the_rules_and_operators_what_was_done(suite: Suite) -> None:
    suite.overrides |= {"retention_failed_days": 1.5, "trash_days": 7}
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    rules = (await retention(ada).GetRetention(pb.GetRetentionRequest())).rules
    kept = {each.retention_class: each.days for each in rules if each.HasField("days")}
    assert kept == {pb.RETENTION_CLASS_FAILED: 1.5, pb.RETENTION_CLASS_PURGED: 7}
    assert len(rules) == 7, "the others are kept for ever"
    asked = retention(ada).ListRetentionCounts(pb.ListRetentionCountsRequest())
    await refused(asked, grpc.StatusCode.PERMISSION_DENIED)


async def test_texts_of_calls_to_providers_are_forgotten_and_what_they_cost_is_not(
    suite: Suite,
) -> None:
    suite.overrides["retention_call_days"] = 2
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    made = await flows.analyse(ada, wait=False)
    for age in ("3 days", "1 day"):
        suite.sql(
            "INSERT INTO conversions.provider_calls (id, owner, job, job_id, attempt_id, provider,"
            " model, task, state, handle, charge, usage, category, ended_at) VALUES"
            " (gen_random_uuid(), %s, 'analyses', %s, gen_random_uuid(), 'gemini', 'm', 'seo',"
            " 'failed', 'h', 'charged', '{\"tokens\": 3}', 'SAFETY', now() - %s::interval)"
            " RETURNING id",
            (made.owner, made.id, age),
        )
    texts = "SELECT handle, category, charge FROM conversions.provider_calls ORDER BY ended_at"
    await upkeep(suite)
    assert suite.sql(texts) == [("", "", "charged"), ("h", "SAFETY", "charged")]
    assert await counts(suite) == {pb.RETENTION_CLASS_CALLS: 1}

    await ANALYSIS.call(ada, "Cancel", made.id)
    await ANALYSIS.call(ada, "Purge", made.id)
    assert suite.sql(texts) == [("", "", "charged"), ("", "", "charged")]


async def test_photographs_are_dropped_early_when_asked_unless_something_else_uses_them(
    suite: Suite, tmp_path: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    user, cloth = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
    # One that waits needs the photograph still.
    waiting = await flows.convert(ada, user, cloth, run_externally=True)
    made = await flows.convert(ada, user, cloth, wait=True, drop_inputs=True)
    assert made.inputs.drop
    await held_are(suite, made.id, made.result_asset_id)

    async def dropped() -> bool:
        return (await CONVERSION.call(ada, "Get", made.id)).inputs.HasField("drop_time")

    await eventually(dropped)
    assert not (await asset(ada, user)).HasField("delete_time")

    await CONVERSION.call(ada, "Cancel", waiting.id)
    second = await flows.convert(
        ada, user, cloth, wait=True, drop_inputs=True, reuse_result=True, style_name="loose"
    )
    await trashed(ada, user)
    assert not (await asset(ada, cloth)).HasField("delete_time"), "it shows nobody"
    shown = await CONVERSION.call(ada, "Get", second.id)
    assert [each.sha256 for each in shown.recipe.inputs] == [
        each.sha256 for each in made.recipe.inputs
    ], "the recipe keeps the digests"
    assert not (await asset(ada, second.result_asset_id)).HasField("delete_time")

    explained = await flows.jobs(ada).ExplainJob(job_pb2.ExplainJobRequest(job_id=second.id))
    [answer] = [each for each in explained.answers if each.question == "are its pictures kept?"]
    assert answer.answer.startswith("no, they were dropped on")


async def test_a_job_of_an_outside_worker_drops_its_photograph_even_if_it_is_purged_at_once(
    suite: Suite,
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    photos = [
        await assets.upload(ada, assets.jpeg(64, 48, seed), kind=asset_pb2.ASSET_KIND_PHOTO)
        for seed in range(2)
    ]
    made = [
        await flows.analyse(
            ada, (each.id, "front"), run_externally=True, drop_inputs=True, wait=False
        )
        for each in photos
    ]
    result = job_pb2.AnalysisResult(result={"name": "coat"})
    for each in made:
        await flows.complete(ada, await flows.claim(ada, each.id), analysis=result)
        assert flows.held(suite, each.id)
    await ANALYSIS.call(ada, "Purge", made[1].id)
    await suite.work("conversions")
    for job, photo in zip(made, photos, strict=True):
        await held_are(suite, job.id)
        await trashed(ada, photo.id)


async def test_what_failed_drops_nothing(suite: Suite, tmp_path: Path) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    user, cloth = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
    made = await flows.convert(ada, user, cloth, run_externally=True, drop_inputs=True)
    await flows.fail(ada, await flows.claim(ada, made.id))
    await flows.given_back(suite, made.id)
    assert not (await asset(ada, user)).HasField("delete_time")
    again = await CONVERSION.call(ada, "Retry", made.id)
    assert again.inputs.drop and not again.inputs.HasField("drop_time")


async def test_a_generation_whose_photograph_was_dropped_says_so_when_it_is_repeated(
    suite: Suite, tmp_path: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    photo = await flows.put(
        ada, pictures.garment(tmp_path / "front.jpg", width=320), asset_pb2.ASSET_KIND_PHOTO
    )
    made = await flows.generate(ada, task=CLOSEUP, source_asset_id=photo, drop_inputs=True)
    await trashed(ada, photo)

    async def dropped() -> bool:
        return (await GENERATION.call(ada, "Get", made.id)).inputs.HasField("drop_time")

    await eventually(dropped)

    def regenerate() -> Any:
        return flows.generations(ada).RegenerateGeneration(
            generation_pb2.RegenerateGenerationRequest(generation_id=made.id, wait=True)
        )

    words = ("its pictures were dropped on", "undelete it")
    await refused(regenerate(), grpc.StatusCode.FAILED_PRECONDITION, *words)
    await assets.assets(ada).UndeleteAsset(asset_pb2.UndeleteAssetRequest(asset_id=photo))
    assert (await regenerate()).generation.answered_from == made.id


async def test_retention_drops_the_photographs_of_people_before_the_conversions(
    suite: Suite, tmp_path: Path
) -> None:
    suite.overrides |= {"retention_input_days": 2, "retention_conversion_days": 4}
    await flows.start(suite)
    ada = suite.client("ada")
    user, cloth = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
    made = await flows.convert(ada, user, cloth, wait=True)
    shown = await CONVERSION.call(ada, "Get", made.id)
    between = shown.retention_time.ToDatetime() - shown.inputs.retention_time.ToDatetime()
    assert between == 2 * DAY and not shown.inputs.drop

    grow_older(suite, "conversions", made.id, 2)
    await upkeep(suite)
    await trashed(ada, user)
    await held_are(suite, made.id, made.result_asset_id)
    after = await CONVERSION.call(ada, "Get", made.id)
    assert after.inputs.drop and not after.inputs.HasField("retention_time")
    assert shown.retention_time.ToDatetime() - after.retention_time.ToDatetime() == 2 * DAY

    grow_older(suite, "conversions", made.id, 2)
    await upkeep(suite)
    await trashed(ada, made.result_asset_id)
    assert await counts(suite) == {
        pb.RETENTION_CLASS_INPUTS: 1,
        pb.RETENTION_CLASS_CONVERSIONS: 1,
    }


async def test_workers_do_not_do_it_twice_at_once(suite: Suite) -> None:
    await flows.start(suite, working=False)
    for _ in range(2):
        await suite.work("conversions")

    async def one_keeps() -> bool:
        held = suite.sql(
            "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
            " WHERE l.locktype = 'advisory' AND l.granted AND d.datname = %s AND l.objid ="
            " (hashtextextended('conversions', 13) & 4294967295)::oid",
            (suite.database,),
        )
        return bool(held[0][0] == 1)

    await eventually(one_keeps)
    await asyncio.sleep(0.2)
    assert await one_keeps()
