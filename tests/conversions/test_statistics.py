"""Statistics: they say what the jobs say, follow every change at once, and show nobody the figures
of others."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import conversion_pb2, dataset_pb2, job_pb2, statistics_pb2_grpc
from atelier.conversions.v1 import generation_pb2 as generations
from atelier.conversions.v1 import statistics_pb2 as pb

from services.conversions import statistics
from shared.rpc.protos import timestamp
from tests.assets import flows as assets
from tests.calls import refused
from tests.conversions import flows
from tests.conversions import local_pictures as pictures
from tests.suite import Client, Suite

CLOSEUP = generations.GENERATION_TASK_CLOSEUP
LABELS = ("owner", "created_by", "jobs", "completed", "credits")


def stub(client: Client) -> Any:
    return client.stub(statistics_pb2_grpc.StatisticsServiceStub)


async def of_jobs(client: Client, **fields: Any) -> pb.GetJobStatisticsResponse:
    request = pb.GetJobStatisticsRequest(**fields)
    found: pb.GetJobStatisticsResponse = await stub(client).GetJobStatistics(request)
    return found


async def of_generations(client: Client, **fields: Any) -> pb.GetGenerationStatisticsResponse:
    request = pb.GetGenerationStatisticsRequest(**fields)
    found: pb.GetGenerationStatisticsResponse = await stub(client).GetGenerationStatistics(request)
    return found


def states(figures: pb.JobFigures) -> tuple[int, ...]:
    """Returns how many jobs are pending, processing, completed, failed and cancelled."""
    return (
        figures.pending,
        figures.processing,
        figures.completed,
        figures.failed,
        figures.cancelled,
    )


async def finish(client: Client, job_id: str, source: str) -> None:
    """Completes a job as an outside worker, with a copy of the source as its picture."""
    copy = await assets.upload(client, assets.jpeg(64, 48, 9), kind=asset_pb2.ASSET_KIND_PHOTO)
    assert copy.id != source
    claimed = await flows.claim(client, job_id)
    await flows.complete(client, claimed, picture=job_pb2.PictureResult(asset_id=copy.id))


async def test_jobs_are_counted_by_type_and_state_at_once(suite: Suite, tmp_path: Path) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    assert states((await of_jobs(ada)).total) == (0, 0, 0, 0, 0)
    user, cloth = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
    sold = await flows.put(
        ada,
        pictures.garment(tmp_path / "sold.jpg", width=320),
        asset_pb2.ASSET_KIND_CLOTH,
        free=False,
    )
    outside: dict[str, Any] = {"run_externally": True, "wait": False}
    done, failed, cancelled, waiting = [
        await flows.convert(ada, user, cloth, **outside) for _ in range(4)
    ]
    await flows.convert(ada, user, sold, style_name="loose", **outside)
    close = await flows.generate(ada, task=CLOSEUP, source_asset_id=cloth, **outside)

    await finish(ada, done.id, user)
    await flows.fail(ada, await flows.claim(ada, failed.id))
    await flows.conversions(ada).CancelConversion(
        conversion_pb2.CancelConversionRequest(conversion_id=cancelled.id)
    )
    await flows.claim(ada, waiting.id)

    found = await of_jobs(ada)
    figures = {(each.kind, each.type): each for each in found.by_type}
    free = figures[job_pb2.JOB_KIND_CONVERSION, "free"]
    assert (free.jobs, states(free)) == (4, (0, 1, 1, 1, 1))
    assert free.success_rate == 0.5
    read = await flows.read(ada, done.id)
    if read.processing_time_ms:
        assert free.average_time_ms == free.p95_time_ms == read.processing_time_ms
    assert states(figures[job_pb2.JOB_KIND_CONVERSION, "paid"]) == (1, 0, 0, 0, 0)
    closeups = figures[job_pb2.JOB_KIND_GENERATION, "closeup"]
    assert states(closeups) == (1, 0, 0, 0, 0)
    assert not closeups.HasField("success_rate") and not closeups.HasField("p95_time_ms")
    assert len(figures) == 3 and found.total.jobs == 6
    assert states(found.total) == tuple(
        map(sum, zip(*(states(each) for each in figures.values()), strict=True))
    )

    only = await of_jobs(ada, kind=job_pb2.JOB_KIND_GENERATION)
    assert [(each.kind, each.type) for each in only.by_type] == [
        (job_pb2.JOB_KIND_GENERATION, "closeup")
    ]
    assert only.total.jobs == 1
    early = await of_jobs(ada, created_before=close.create_time)
    assert early.total.jobs == 5
    late = await of_jobs(ada, created_from=close.create_time)
    assert late.total.jobs == 1


async def test_times_are_the_mean_and_the_95th_of_100(suite: Suite, tmp_path: Path) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    cloth = await flows.cloth(ada, tmp_path)
    await flows.analyse(ada, (cloth, "front"), wait=False)
    # A hundred that took 1 to 100 ms, one that was answered from another one, and one that failed.
    suite.sql(
        "INSERT INTO conversions.counted_jobs (id, owner, created_by, job, type, state, credits,"
        " processing_time_ms, features, created_at) SELECT gen_random_uuid(), owner, 'eve', job,"
        " type, CASE WHEN n = 102 THEN 'failed' ELSE 'completed' END, 1,"
        " CASE WHEN n = 101 THEN 0 ELSE n END, '{}', created_at"
        " FROM conversions.counted_jobs, generate_series(1, 102) AS n"
    )
    found = (await of_jobs(ada)).total
    assert (found.average_time_ms, found.p95_time_ms) == (50.5, 95)
    assert (found.completed, found.failed, found.credits) == (101, 1, 102)
    costs = [[getattr(cost, name) for name in LABELS] for cost in (await of_jobs(ada)).costs]
    assert costs == [["user:ada", "eve", 102, 101, 102], ["user:ada", "ada", 1, 0, 0]]


async def test_admins_see_all_owners_or_one_and_others_only_themselves(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada, eve, root = suite.client("ada"), suite.client("eve"), suite.client("root", "admin")
    for client, count in ((ada, 2), (eve, 3)):
        for number in range(count):
            prompt = "Our coat" if number else "A   Hat\n for all"
            await flows.generate(client, prompt=prompt, wait=False)

    everything = await of_jobs(root)
    assert everything.total.jobs == 5
    assert [(cost.owner, cost.created_by, cost.jobs) for cost in everything.costs] == [
        ("user:eve", "", 3),
        ("user:ada", "", 2),
    ]
    assert (await of_jobs(root, owner="user:ada")).total.jobs == 2
    assert (await of_jobs(root, owner="user:nobody")).total.jobs == 0
    prompts = (await of_generations(root)).prompts
    assert [(each.prompt, each.generations, each.owners) for each in prompts] == [
        ("our coat", 3, 2),
        ("a hat for all", 2, 2),
    ]

    for client, count in ((ada, 2), (eve, 3), (suite.client("bob"), 0)):
        assert (await of_jobs(client)).total.jobs == count
        volume = (await of_generations(client)).volume
        assert sum(each.generations for each in volume) == count
    for call in (of_jobs(ada, owner="user:eve"), of_generations(ada, owner="user:eve")):
        await refused(call, grpc.StatusCode.NOT_FOUND)
    assert (await of_jobs(ada, owner="user:ada")).total.jobs == 2


async def test_generations_are_counted_by_period_prompt_and_setting(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    for prompt, style in (("Coat", "warm"), (" COAT ", "cool"), ("hat", "warm")):
        await flows.generate(ada, prompt=prompt, style=style, aspect_ratio="16:9", wait=False)
    months_ago = datetime(2026, 1, 31, 12, tzinfo=UTC)
    suite.sql(
        "UPDATE conversions.counted_jobs SET created_at = %s WHERE prompt = 'hat'", (months_ago,)
    )
    times: dict[str, Any] = {
        "created_from": timestamp(months_ago - timedelta(days=200)),
        "created_before": timestamp(datetime.now(UTC) + timedelta(days=1)),
    }
    for period, begins in (
        (pb.STATISTICS_PERIOD_WEEK, datetime(2026, 1, 26, tzinfo=UTC)),
        (pb.STATISTICS_PERIOD_MONTH, datetime(2026, 1, 1, tzinfo=UTC)),
    ):
        found = await of_generations(ada, period=period, **times)
        assert found.volume[0].start_time.ToDatetime(tzinfo=UTC) == begins
        assert [each.generations for each in found.volume] == [1, 2]
    assert [each.generations for each in (await of_generations(ada)).volume] == [2]

    counted = [(each.prompt, each.generations) for each in found.prompts]
    assert counted == [("coat", 2), ("hat", 1)]
    assert len((await of_generations(ada, most=1)).prompts) == 1
    patterns = {(each.setting, each.value): each for each in found.patterns}
    assert patterns["style", "warm"].generations == 2
    assert round(patterns["style", "warm"].share, 3) == 0.667
    assert patterns["aspect_ratio", "16:9"].share == 1
    assert patterns["hour", "12"].generations >= 1 and patterns["weekday", "6"].generations >= 1
    assert {each.setting for each in found.patterns} == {
        "task",
        "style",
        "aspect_ratio",
        "quality",
        "format",
        "resolution",
        "hour",
        "weekday",
    }


async def test_features_say_how_widely_they_are_used(suite: Suite, tmp_path: Path) -> None:
    await flows.start(suite, working=False)
    ada, eve, root = suite.client("ada"), suite.client("eve"), suite.client("root", "admin")
    cloth = await flows.cloth(ada, tmp_path)
    look = await flows.dataset(ada, logo_asset_id=cloth, image_asset_ids=[cloth])
    first = await flows.generate(ada, prompt="a", dataset_id=look.id, wait=False)
    await flows.generations(ada).RegenerateGeneration(
        generations.RegenerateGenerationRequest(generation_id=first.id, seed=1, style="warm")
    )
    await flows.analyse(
        ada, (cloth, "front"), facts={"product": {"brand": "X"}}, product_id="p", wait=False
    )
    await flows.generate(eve, prompt="b", dataset_id="a label", seed=2, wait=False)

    used = {
        statistics.FEATURES.word[each.feature]: (each.jobs, each.share, each.owners)
        for each in (await of_jobs(root)).features
    }
    assert used == {
        "references": (2, 0.5, 1),
        "dataset": (2, 0.5, 1),
        "logo": (2, 0.5, 1),
        "seed": (2, 0.5, 2),
        "regenerated": (1, 0.25, 1),
        "style": (1, 0.25, 1),
        "facts": (1, 0.25, 1),
        "product": (1, 0.25, 1),
    }


async def test_a_dataset_is_as_effective_as_its_results_are_kept(
    suite: Suite, tmp_path: Path
) -> None:
    await flows.start(suite, working=False)
    ada, root = suite.client("ada"), suite.client("root", "admin")
    look, other = await flows.dataset(ada), await flows.dataset(ada, name="Other")
    made = [
        await flows.generate(ada, prompt="a", dataset_id=look.id, run_externally=True, wait=False)
        for _ in range(4)
    ]
    await flows.generate(ada, prompt="a", dataset_id=other.id, wait=False)
    results = []
    for each in made[:3]:
        picture = await assets.upload(ada, assets.jpeg(), kind=asset_pb2.ASSET_KIND_PHOTO)
        claimed = await flows.claim(ada, each.id)
        await flows.complete(ada, claimed, picture=job_pb2.PictureResult(asset_id=picture.id))
        results.append(picture.id)
    for forced in results[:1]:
        await assets.assets(ada).DeleteAsset(
            asset_pb2.DeleteAssetRequest(asset_id=forced, force=True)
        )
    await flows.datasets(ada).PurgeDataset(dataset_pb2.PurgeDatasetRequest(dataset_id=look.id))

    for client, named in ((ada, ""), (root, "user:ada")):
        one, two = (await of_generations(client, owner=named)).datasets
        assert (one.dataset_id, one.dataset_name, one.owner) == (look.id, "Autumn", "user:ada")
        assert (one.runs, one.completed, one.completed_per_run) == (4, 3, 0.75)
        assert (one.checked, one.kept, one.kept_per_run) == (3, 2, 0.5)
        assert (two.runs, two.checked, two.HasField("kept_per_run")) == (1, 0, False)
    [everywhere, _] = (await of_generations(root)).datasets
    assert everywhere.completed == 3 and not everywhere.HasField("kept")


async def test_spans_that_mean_nothing_are_refused(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    now = datetime.now(UTC)
    for call, days in (
        (of_jobs(ada, created_from=timestamp(now + timedelta(days=1))), "comes after"),
        (of_jobs(ada, created_from=timestamp(now - timedelta(days=3700))), "3660"),
        (of_generations(ada, created_from=timestamp(now - timedelta(days=400))), "366"),
    ):
        refusal = await refused(call, grpc.StatusCode.INVALID_ARGUMENT, days)
        assert refusal.fields == ["created_from"]


async def test_what_a_deleted_job_said_is_forgotten_and_it_still_counts(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    made = await flows.generate(ada, prompt="a secret", style="hidden", wait=False)
    suite.sql("DELETE FROM conversions.generations WHERE id = %s", (made.id,))
    found = await of_generations(ada)
    assert [each.generations for each in found.volume] == [1] and not found.prompts
    assert "hidden" not in {each.value for each in found.patterns}


@pytest.mark.long
async def test_hundreds_of_thousands_of_jobs_are_counted_while_a_person_waits(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada, root = suite.client("ada"), suite.client("root", "admin")
    suite.sql(
        "INSERT INTO conversions.counted_jobs (id, owner, created_by, job, type, state, credits,"
        " processing_time_ms, features, created_at, prompt, style, aspect_ratio)"
        " SELECT gen_random_uuid(), 'user:' || n %% 100, 'ada', 'generations', 'image',"
        " 'completed', 3, n %% 9000 + 1, '{style,seed}', now() - (n %% 29) * interval '1 day',"
        " 'a picture of product number ' || n %% 5000, 'style ' || n %% 50, '16:9'"
        " FROM generate_series(1, 300000) AS n",
        (),
    )
    suite.sql("ANALYZE conversions.counted_jobs")
    for client, jobs in ((root, 300_000), (suite.client("7"), 3_000), (ada, 0)):
        begin = datetime.now(UTC)
        assert (await of_jobs(client)).total.jobs == jobs
        found = await of_generations(client)
        assert sum(each.generations for each in found.volume) == jobs
        assert datetime.now(UTC) - begin < timedelta(seconds=8)
