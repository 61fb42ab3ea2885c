"""What the trash of jobs promises: a deleted job is hidden, answers nothing and comes back as it
was, with its references and its result; a purged one is gone, and what it cost is still known."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import (
    analysis_pb2,
    conversion_pb2,
    generation_pb2,
    job_pb2,
    lineage_pb2,
    lineage_pb2_grpc,
    statistics_pb2,
    statistics_pb2_grpc,
)

from services.conversions.runs import settling
from tests.assets import flows as assets
from tests.calls import refused
from tests.conversions import flows
from tests.conversions import local_pictures as pictures
from tests.suite import Client, Suite

CLOSEUP = generation_pb2.GENERATION_TASK_CLOSEUP


@dataclass
class Kind:
    """The calls of one kind of job. `create(client, directory)` makes a job that waits."""

    name: str
    nouns: str
    messages: Any
    stub: Callable[[Client], Any]
    create: Callable[[Client, Path], Awaitable[Any]]

    async def call(self, client: Client, verb: str, row_id: str, **fields: Any) -> Any:
        method = f"{verb}{self.name.capitalize()}"
        request = getattr(self.messages, f"{method}Request")
        answer = await getattr(self.stub(client), method)(
            request(**{f"{self.name}_id": row_id}, **fields)
        )
        return getattr(answer, self.name, None)

    async def listed(self, client: Client, **filters: Any) -> list[Any]:
        method = f"List{self.nouns.capitalize()}"
        request = getattr(self.messages, f"{method}Request")(**filters)
        return list(getattr(await getattr(self.stub(client), method)(request), self.nouns))


async def _conversion(client: Client, directory: Path) -> Any:
    user, cloth = await flows.person(client, directory), await flows.cloth(client, directory)
    return await flows.convert(client, user, cloth)


async def _generation(client: Client, directory: Path) -> Any:
    return await flows.generate(client, prompt="a coat", quality="draft", wait=False)


async def _analysis(client: Client, directory: Path) -> Any:
    return await flows.analyse(client, (await flows.cloth(client, directory), "front"), wait=False)


KINDS = [
    Kind("conversion", "conversions", conversion_pb2, flows.conversions, _conversion),
    Kind("generation", "generations", generation_pb2, flows.generations, _generation),
    Kind("analysis", "analyses", analysis_pb2, flows.analyses, _analysis),
]
CONVERSION, GENERATION, ANALYSIS = KINDS
EACH = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


async def jobs(client: Client, **filters: Any) -> list[job_pb2.Job]:
    return list((await flows.jobs(client).ListJobs(job_pb2.ListJobsRequest(**filters))).jobs)


async def asset(client: Client, asset_id: str) -> asset_pb2.Asset:
    request = asset_pb2.GetAssetRequest(asset_id=asset_id)
    found: asset_pb2.Asset = (await assets.assets(client).GetAsset(request)).asset
    return found


async def eventually(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await true():
            await asyncio.sleep(0.02)


async def held_are(suite: Suite, job_id: str, *asset_ids: str) -> None:
    """Returns once the job holds references to exactly these assets."""

    async def true() -> bool:
        return flows.held(suite, job_id) == set(asset_ids)

    await eventually(true)


async def trashed(client: Client, asset_id: str, *, wanted: bool = True) -> None:
    """Returns once the asset is in the trash, or no longer."""

    async def true() -> bool:
        return (await asset(client, asset_id)).HasField("delete_time") == wanted

    await eventually(true)


async def gone(client: Client, asset_id: str) -> None:
    async def true() -> bool:
        try:
            await asset(client, asset_id)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.NOT_FOUND
        return False

    await eventually(true)


async def closeup(client: Client, directory: Path, **fields: Any) -> Any:
    source = await flows.put(
        client, pictures.garment(directory / "front.jpg", width=320), asset_pb2.ASSET_KIND_PRODUCT
    )
    return await flows.generate(client, task=CLOSEUP, source_asset_id=source, **fields)


@EACH
async def test_what_is_archived_or_deleted_is_hidden_and_comes_back_as_it_was(
    suite: Suite, tmp_path: Path, kind: Kind
) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    made = await kind.create(ada, tmp_path)
    for verb in ("Delete", "Purge"):
        early = kind.call(ada, verb, made.id)
        refusal = await refused(early, grpc.StatusCode.FAILED_PRECONDITION, "cancel it first")
        assert refusal.metadata["state"] == "pending"
    archived = await kind.call(ada, "Archive", made.id)
    assert archived.HasField("archive_time") and archived.state == made.state
    assert await kind.call(ada, "Archive", made.id) == archived, "repeating is harmless"
    assert await kind.listed(ada) == [] == await jobs(ada)
    assert await kind.listed(ada, show_archived=True) == [archived]
    assert [each.id for each in await jobs(ada, show_archived=True)] == [made.id]

    await kind.call(ada, "Cancel", made.id)
    [job] = await jobs(ada, show_archived=True)
    deleted = await kind.call(ada, "Delete", made.id)
    days = (deleted.expire_time.seconds - deleted.delete_time.seconds) / 86400
    assert days == 30 and await kind.call(ada, "Delete", made.id) == deleted
    assert await kind.listed(ada, show_archived=True) == []
    assert await kind.listed(ada, show_archived=True, show_deleted=True) == [deleted]
    assert await kind.call(ada, "Get", made.id) == deleted
    [in_trash] = await jobs(ada, show_archived=True, show_deleted=True)
    assert (in_trash.delete_time, in_trash.expire_time) == (
        deleted.delete_time,
        deleted.expire_time,
    )
    assert in_trash.end_time == job.end_time != in_trash.update_time, "the end stays the end"
    for verb in ("Archive", "Unarchive", "Retry"):
        again = kind.call(ada, verb, made.id)
        await refused(again, grpc.StatusCode.FAILED_PRECONDITION, "undelete it first")
    for verb in ("Archive", "Unarchive", "Delete", "Undelete", "Purge"):
        await refused(kind.call(eve, verb, made.id), grpc.StatusCode.NOT_FOUND)

    back = await kind.call(ada, "Undelete", made.id)
    assert back.archive_time == archived.archive_time and not back.HasField("delete_time")
    assert not back.HasField("expire_time")
    shown = await kind.call(ada, "Unarchive", made.id)
    assert not shown.HasField("archive_time") and await kind.listed(ada) == [shown]

    await kind.call(ada, "Purge", made.id, request_id="p")
    await kind.call(ada, "Purge", made.id, request_id="p")
    for verb in ("Get", "Undelete", "Purge", "Retry"):
        await refused(kind.call(ada, verb, made.id), grpc.StatusCode.NOT_FOUND)
    assert await kind.listed(ada, show_archived=True, show_deleted=True) == []
    for table in ("job_inputs", "attempts"):
        assert not suite.sql(f"SELECT 1 FROM conversions.{table} WHERE job_id = %s", (made.id,))


async def test_a_running_job_is_deleted_only_when_it_has_ended(
    suite: Suite, tmp_path: Path
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    made = await flows.analyse(ada, run_externally=True, wait=False)
    claimed = await flows.claim(ada, made.id)
    early = ANALYSIS.call(ada, "Delete", made.id)
    await refused(early, grpc.StatusCode.FAILED_PRECONDITION, "processing", "cancel it first")
    await ANALYSIS.call(ada, "Archive", made.id)

    result = job_pb2.AnalysisResult(result={"name": "coat"})
    done = await flows.complete(ada, claimed, analysis=result)
    assert done.state == job_pb2.JOB_STATE_COMPLETED and done.HasField("archive_time")
    deleted = await ANALYSIS.call(ada, "Delete", made.id)
    assert deleted.HasField("delete_time") and deleted.result["name"] == "coat"


@pytest.mark.long
async def test_references_and_result_follow_a_job_into_the_trash_and_back(
    suite: Suite, tmp_path: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    made = await closeup(ada, tmp_path)
    source, result = made.source_asset_id, made.result_asset_id
    await held_are(suite, made.id, source, result)

    await GENERATION.call(ada, "Delete", made.id)
    await held_are(suite, made.id)
    await trashed(ada, result)
    await assets.assets(ada).DeleteAsset(asset_pb2.DeleteAssetRequest(asset_id=source))
    shown = await GENERATION.call(ada, "Get", made.id, include_urls=True)
    assert shown.result_asset_id == result and not shown.image_url

    await GENERATION.call(ada, "Undelete", made.id)
    await trashed(ada, result, wanted=False)
    await held_are(suite, made.id, result)
    assert (await asset(ada, source)).HasField("delete_time"), "its owner deleted it"
    assert (await GENERATION.call(ada, "Get", made.id, include_urls=True)).image_url

    await GENERATION.call(ada, "Purge", made.id)
    await gone(ada, result)
    await held_are(suite, made.id)


@pytest.mark.long
async def test_a_result_that_something_else_uses_stays(suite: Suite, tmp_path: Path) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    first = await closeup(ada, tmp_path)
    result = first.result_asset_id
    second = await flows.generate(
        ada, task=CLOSEUP, source_asset_id=first.source_asset_id, reuse_result=True
    )
    assert second.answered_from == first.id
    await held_are(suite, second.id, result, first.source_asset_id)

    await GENERATION.call(ada, "Delete", first.id)
    await held_are(suite, first.id)
    assert not (await asset(ada, result)).HasField("delete_time"), "it is the second's, too"
    await GENERATION.call(ada, "Delete", second.id)
    await trashed(ada, result)
    await GENERATION.call(ada, "Purge", second.id)
    await GENERATION.call(ada, "Undelete", first.id)
    await trashed(ada, result, wanted=False)

    dataset = await flows.dataset(ada, image_asset_ids=[result])
    await GENERATION.call(ada, "Purge", first.id)
    await held_are(suite, first.id)
    await asyncio.sleep(0.1)
    assert flows.held(suite, dataset.id) == {result}
    assert not (await asset(ada, result)).HasField("delete_time")


async def test_a_photograph_that_a_worker_named_as_the_result_stays(
    suite: Suite, tmp_path: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    mine = await flows.person(ada, tmp_path)
    made = await flows.generate(ada, prompt="a coat", run_externally=True, wait=False)
    claimed = await flows.claim(ada, made.id)
    await flows.complete(ada, claimed, picture=job_pb2.PictureResult(asset_id=mine))

    await GENERATION.call(ada, "Delete", made.id)
    await held_are(suite, made.id)
    await GENERATION.call(ada, "Purge", made.id)
    settled = "SELECT 1 FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"

    async def rested() -> bool:
        return not suite.sql(
            f"SET search_path TO conversions_jobs; {settled} AND queue_name = 'trash' AND"
            " scheduled_at IS NULL"
        )

    await eventually(rested)
    assert not (await asset(ada, mine)).HasField("delete_time")


@pytest.mark.long
async def test_a_deleted_result_answers_nothing(suite: Suite, tmp_path: Path) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    first = await closeup(ada, tmp_path)
    asked = {"task": CLOSEUP, "source_asset_id": first.source_asset_id, "reuse_result": True}
    await GENERATION.call(ada, "Delete", first.id)
    regenerate = flows.generations(ada).RegenerateGeneration(
        generation_pb2.RegenerateGenerationRequest(generation_id=first.id)
    )
    await refused(regenerate, grpc.StatusCode.FAILED_PRECONDITION, "undelete it first")

    second = await flows.generate(ada, **asked)
    assert (second.answered_from, second.credits) == ("", 1)
    await GENERATION.call(ada, "Undelete", first.id)
    third = await flows.generate(ada, **asked)
    assert third.answered_from == second.id, "the newest one answers"


@pytest.mark.long
async def test_a_result_that_is_deleted_while_it_answers_is_made_anew(
    suite: Suite, tmp_path: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    first = await closeup(ada, tmp_path)
    delete = (
        "UPDATE conversions.generations SET deleted_at = now(), expires_at = now() + interval"
        " '1 day' WHERE id = %s"
    )
    with psycopg.connect(suite.cluster.url(suite.database)) as conn:
        conn.execute(delete, (first.id,))
        asked = {"source_asset_id": first.source_asset_id, "reuse_result": True}
        again = asyncio.create_task(flows.generate(ada, task=CLOSEUP, **asked))

        async def waits() -> bool:
            return bool(
                suite.sql(
                    "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                    " AND datname = %s AND query LIKE '%%FOR SHARE%%'",
                    (suite.database,),
                )
            )

        await eventually(waits)
        conn.commit()
    made = await again
    assert (made.answered_from, made.credits) == ("", 1)


@pytest.mark.long
async def test_what_a_purged_job_cost_and_that_it_was_is_still_known(
    suite: Suite, tmp_path: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    made = await closeup(ada, tmp_path, name="Zip")
    again = await flows.generations(ada).RegenerateGeneration(
        generation_pb2.RegenerateGenerationRequest(generation_id=made.id, wait=True)
    )
    stub = ada.stub(lineage_pb2_grpc.LineageServiceStub)
    of = lineage_pb2.GetLineageRequest(asset_id=made.source_asset_id)
    entries = await flows.entries(ada)

    deleted = await GENERATION.call(ada, "Delete", made.id)
    explained = await flows.jobs(ada).ExplainJob(job_pb2.ExplainJobRequest(job_id=made.id))
    assert "is it deleted?" in explained.summary and "undelete" in explained.answers[0].next_step
    graph = await stub.GetLineage(of)
    times = {each.job_id: each.delete_time for each in graph.jobs if each.HasField("delete_time")}
    assert times == {made.id: deleted.delete_time}

    await GENERATION.call(ada, "Purge", made.id)
    graph = await stub.GetLineage(of)
    assert [each.job_id for each in graph.jobs] == [made.id, again.generation.id]
    assert graph.jobs[0].HasField("purge_time") and not graph.jobs[0].HasField("delete_time")
    assert (graph.jobs[0].model, list(graph.jobs[0].attempts)) == ("", [])
    explain = flows.jobs(ada).ExplainJob(job_pb2.ExplainJobRequest(job_id=made.id))
    await refused(explain, grpc.StatusCode.NOT_FOUND)
    assert await flows.entries(ada) == entries
    figures = await ada.stub(statistics_pb2_grpc.StatisticsServiceStub).GetJobStatistics(
        statistics_pb2.GetJobStatisticsRequest()
    )
    assert (figures.total.jobs, figures.total.credits) == (2, 1)


@pytest.mark.long
@EACH
async def test_a_watch_tells_of_every_step(suite: Suite, tmp_path: Path, kind: Kind) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    made = await kind.create(ada, tmp_path)
    method = f"Watch{kind.nouns.capitalize()}"

    async def ended() -> bool:
        return (await kind.call(ada, "Get", made.id)).state in flows.FINISHED

    await eventually(ended)
    request = getattr(kind.messages, f"{method}Request")(**{f"{kind.name}_ids": [made.id]})
    stream = getattr(kind.stub(ada), method)(request)
    async with asyncio.timeout(30):
        assert getattr(await stream.read(), kind.name).id == made.id
        assert (await stream.read()).bookmark.ready
        for verb in ("Archive", "Delete", "Undelete"):
            changed = await kind.call(ada, verb, made.id)
            assert getattr(await stream.read(), kind.name) == changed
        await kind.call(ada, "Purge", made.id)
        purged = (await stream.read()).purged
        assert getattr(purged, f"{kind.name}_id") == made.id and purged.HasField("purge_time")
    stream.cancel()


@pytest.mark.long
async def test_what_a_purge_left_to_do_is_forgotten_once_nothing_can_follow(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "SETTLED_AFTER", timedelta(seconds=1))
    await flows.start(suite)
    ada = suite.client("ada")
    made = await closeup(ada, tmp_path)
    await GENERATION.call(ada, "Purge", made.id)
    await held_are(suite, made.id)

    # A reference that was being acquired meanwhile is released, too.
    suite.sql(
        "INSERT INTO assets.asset_references (owner, asset_id, holder, service)"
        " VALUES (%s, %s, %s, 'conversions')",
        (made.owner, made.source_asset_id, f"conversions/generations/{made.id}"),
    )
    await held_are(suite, made.id)

    async def forgotten() -> bool:
        return not suite.sql("SELECT 1 FROM conversions.purged_jobs")

    await eventually(forgotten)
