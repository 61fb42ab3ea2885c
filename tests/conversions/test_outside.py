"""Outside workers: claims, heartbeats, results, failures, expired leases, and the references held
meanwhile."""

import asyncio
import hashlib
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import analysis_pb2, conversion_pb2, generation_pb2, job_pb2

from tests.assets import flows as assets
from tests.calls import holding, refused
from tests.conversions import flows
from tests.conversions.credit_flows import account
from tests.suite import Client, Suite

INVALID = grpc.StatusCode.INVALID_ARGUMENT
WRONG_STATE = grpc.StatusCode.FAILED_PRECONDITION
PICTURE = assets.jpeg(320, 240)


async def asked(client: Client, **fields: Any) -> conversion_pb2.Conversion:
    """Creates a conversion for an outside worker."""
    user = await assets.upload(client, PICTURE, kind=asset_pb2.ASSET_KIND_USER)
    cloth = await assets.upload(client, PICTURE, kind=asset_pb2.ASSET_KIND_CLOTH)
    return await flows.convert(client, user.id, cloth.id, **{"run_externally": True, **fields})


async def looked(client: Client, **fields: Any) -> analysis_pb2.Analysis:
    """Creates an analysis for an outside worker."""
    return await flows.analyse(client, **{"run_externally": True, "wait": False, **fields})


async def made(client: Client, seed: int = 7) -> asset_pb2.Asset:
    """Uploads the outside worker's result."""
    return await assets.upload(
        client, assets.jpeg(200, 300, seed), kind=asset_pb2.ASSET_KIND_REFERENCE
    )


def picture(asset_id: str, **fields: Any) -> job_pb2.PictureResult:
    return job_pb2.PictureResult(asset_id=asset_id, **fields)


async def superseded(call: Awaitable[Any]) -> None:
    assert (await refused(call, WRONG_STATE)).reason == "ATTEMPT_SUPERSEDED"


async def job_of(client: Client, job_id: str) -> job_pb2.Job:
    jobs = (await flows.jobs(client).ListJobs(job_pb2.ListJobsRequest())).jobs
    [job] = [job for job in jobs if job.id == job_id]
    return job


async def until_job(client: Client, job_id: str, state: int) -> job_pb2.Job:
    async with asyncio.timeout(20):
        while (job := await job_of(client, job_id)).state != state:
            await asyncio.sleep(0.05)
    return job


@pytest.mark.long
async def test_an_outside_worker_makes_a_conversion_that_this_service_leaves_alone(
    suite: Suite,
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    asked_for = await asked(ada, style_name="loose")

    assert asked_for.run_externally and asked_for.priority == 5
    assert suite.sql("SELECT count(*) FROM conversions_jobs.procrastinate_jobs") == [(0,)]
    assert not (await flows.read(ada, asked_for.id)).HasField("queue_position")

    claimed = await flows.claim(ada, asked_for.id, worker="gpu-3")
    assert (claimed.job.state, claimed.job.worker) == (
        job_pb2.JOB_STATE_PROCESSING,
        "outside:gpu-3",
    )
    assert (claimed.job.attempts, claimed.job.retry_count, claimed.job.max_retries) == (1, 0, 3)
    assert claimed.lease_ms == 3000 and claimed.job.HasField("lease_expire_time")
    assert flows.held(suite, asked_for.id) == {asked_for.user_asset_id, asked_for.cloth_asset_id}

    asset = await made(ada)
    evidence = [
        job_pb2.Evidence(name="likeness", value=0.9, weight=3),
        job_pb2.Evidence(name="edges", value=0.5, weight=1),
    ]
    job = await flows.complete(
        ada,
        claimed,
        picture=picture(asset.id),
        model="studio",
        model_version="2.1",
        seed=42,
        parameters={"steps": 30},
        evidence=evidence,
    )
    assert (job.state, job.credits, job.progress) == (job_pb2.JOB_STATE_COMPLETED, 0, 1)
    assert job.HasField("end_time") and not job.HasField("lease_expire_time")

    found = await flows.read(ada, asked_for.id, include_urls=True)
    assert (found.state, found.result_asset_id, found.credits) == (
        job_pb2.JOB_STATE_COMPLETED,
        asset.id,
        0,
    )
    assert found.image_url and found.processing_time_ms > 0
    assert found.confidence == pytest.approx(0.8) and [item.name for item in found.evidence] == [
        "likeness",
        "edges",
    ]

    recipe = found.recipe
    assert (recipe.model, recipe.model_version, recipe.seed) == ("studio", "2.1", 42)
    assert recipe.parameters["steps"] == 30
    digest = hashlib.sha256(PICTURE).hexdigest()
    assert [(item.role, item.sha256) for item in recipe.inputs] == [
        ("user", digest),
        ("cloth", digest),
    ]

    assert flows.held(suite, asked_for.id) == {
        found.user_asset_id,
        found.cloth_asset_id,
        asset.id,
    }

    [attempt] = await flows.attempts_of(ada, asked_for.id)
    assert (attempt.outcome, attempt.worker) == (job_pb2.ATTEMPT_OUTCOME_SUCCEEDED, "outside:gpu-3")
    assert (attempt.model, attempt.input_bytes, attempt.output_bytes) == (
        "studio 2.1",
        2 * len(PICTURE),
        asset.size_bytes,
    )


async def test_a_caller_that_waits_is_answered_once_the_outside_worker_is_done(
    suite: Suite,
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    waiting = asyncio.create_task(
        flows.generate(ada, prompt="a red coat", run_externally=True, wait=True, priority=9)
    )

    async with asyncio.timeout(20):
        while not (
            claimed := await flows.claim(ada, kind=job_pb2.JOB_KIND_GENERATION)
        ).attempt_token:
            await asyncio.sleep(0.05)

    asset = await made(ada)
    await flows.complete(
        ada,
        claimed,
        picture=picture(asset.id, prompt_used="red coat, studio light"),
        confidence=0.7,
    )
    done = await waiting
    assert (done.state, done.result_asset_id, done.confidence) == (
        job_pb2.JOB_STATE_COMPLETED,
        asset.id,
        0.7,
    )
    assert done.full_prompt == done.prompt_used == "red coat, studio light"
    assert done.image_url

    request = generation_pb2.RegenerateGenerationRequest(generation_id=done.id)
    again = (await flows.generations(ada).RegenerateGeneration(request)).generation
    assert (again.run_externally, again.priority, again.state) == (
        True,
        9,
        job_pb2.JOB_STATE_PENDING,
    )


async def test_an_analysis_from_outside_has_only_the_keys_of_its_task(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    cloth = await assets.upload(ada, PICTURE)
    analysis = await flows.analyse(ada, (cloth.id, "front"), run_externally=True, wait=False)
    claimed = await flows.claim(ada, analysis.id)

    bad: tuple[dict[str, Any], ...] = (
        {"name": "coat", "horoscope": "good"},
        {"name": "x" * 300_000},
        {"name": float("nan")},
    )
    for result in bad:
        answer = flows.complete(ada, claimed, analysis=job_pb2.AnalysisResult(result=result))
        assert (await refused(answer, INVALID)).fields == ["analysis.result"]

    found_out: Any = {"name": "Coat", "categories": ["outerwear"]}
    await flows.complete(
        ada, claimed, analysis=job_pb2.AnalysisResult(result=found_out), confidence=0
    )

    request = analysis_pb2.GetAnalysisRequest(analysis_id=analysis.id)
    done = (await flows.analyses(ada).GetAnalysis(request)).analysis
    assert (done.result["name"], list(done.result["categories"])) == ("Coat", ["outerwear"])
    assert [item.role for item in done.recipe.inputs] == ["front"]
    assert (done.confidence, done.credits) == (0, 0)


async def test_the_job_with_the_highest_priority_then_the_oldest_of_a_kind_is_given(
    suite: Suite,
) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    first, second = await looked(ada), await looked(ada)
    urgent = await looked(ada, priority=8)
    await looked(ada, run_externally=False)
    await looked(eve, priority=9)

    got = [await flows.claim(ada, kind=job_pb2.JOB_KIND_ANALYSIS) for _ in range(4)]
    assert [claimed.job.id for claimed in got] == [urgent.id, first.id, second.id, ""]
    assert not got[3].attempt_token and not got[3].HasField("job")
    assert not (await flows.claim(ada, kind=job_pb2.JOB_KIND_CONVERSION)).attempt_token


@pytest.mark.parametrize("by", ["id", "kind"])
async def test_of_16_claims_at_once_one_wins(suite: Suite, by: str) -> None:
    await flows.start(suite, working=False)
    clients = [suite.client("ada") for _ in range(4)]
    job_id = (await looked(clients[0])).id
    wanted: dict[str, Any] = (
        {"job_id": job_id} if by == "id" else {"kind": job_pb2.JOB_KIND_ANALYSIS}
    )
    claims = (
        flows.claim(clients[number % 4], worker=f"gpu-{number}", **wanted) for number in range(16)
    )
    answers = await asyncio.gather(*claims, return_exceptions=True)
    won = [
        one for one in answers if isinstance(one, job_pb2.ClaimJobResponse) and one.attempt_token
    ]
    assert len(won) == 1

    refused = [one for one in answers if isinstance(one, grpc.aio.AioRpcError)]
    assert [error.code() for error in refused] == ([WRONG_STATE] * 15 if by == "id" else [])
    assert suite.sql("SELECT count(*) FROM conversions.attempts") == [(1,)]
    await flows.heartbeat(clients[0], won[0])


@pytest.mark.long
async def test_a_heartbeat_extends_the_lease_and_tells_watchers_how_far_it_is(suite: Suite) -> None:
    suite.overrides["job_lease_seconds"] = 1.5
    await flows.start(suite)
    ada = suite.client("ada")
    job_id = (await looked(ada)).id
    claimed = await flows.claim(ada, job_id)
    until = claimed.job.lease_expire_time.ToDatetime()

    for step in range(4):  # together longer than the first lease
        await asyncio.sleep(0.5)
        answer = await flows.heartbeat(ada, claimed, progress=step / 8)
        assert answer.lease_expire_time.ToDatetime() > until
        until = answer.lease_expire_time.ToDatetime()

    job = await job_of(ada, job_id)
    assert (job.state, job.attempts, job.progress) == (job_pb2.JOB_STATE_PROCESSING, 1, 0.375)
    for progress in (-0.1, 1.1, float("nan")):
        refusal = await refused(flows.heartbeat(ada, claimed, progress=progress), INVALID)
        assert refusal.fields == ["progress"]


@pytest.mark.long
async def test_a_passed_lease_gives_the_job_to_the_next_worker_and_the_late_result_is_discarded(
    suite: Suite,
) -> None:
    suite.overrides["job_lease_seconds"] = 0.6
    await flows.start(suite)
    ada = suite.client("ada")
    conversion = await asked(ada)
    late = await flows.claim(ada, conversion.id, worker="slow")
    job = await until_job(ada, conversion.id, job_pb2.JOB_STATE_PENDING)
    assert (job.error_class, job.attempts, job.retry_count) == ("WORKER_LOST", 1, 1)

    await suite.stop_work("conversions")
    current = await flows.claim(ada, conversion.id, worker="quick")
    asset, other = await made(ada), await made(ada, seed=8)
    await superseded(flows.heartbeat(ada, late))
    await superseded(flows.complete(ada, late, picture=picture(other.id)))
    await superseded(flows.fail(ada, late))

    await flows.complete(ada, current, picture=picture(asset.id))
    await superseded(flows.complete(ada, late, picture=picture(other.id)))
    done = await flows.read(ada, conversion.id)
    assert (done.result_asset_id, done.error_class) == (asset.id, "")
    assert flows.held(suite, conversion.id) == {done.user_asset_id, done.cloth_asset_id, asset.id}

    outcomes = [
        (attempt.worker, attempt.outcome) for attempt in await flows.attempts_of(ada, conversion.id)
    ]
    assert outcomes == [
        ("outside:quick", job_pb2.ATTEMPT_OUTCOME_SUCCEEDED),
        ("outside:slow", job_pb2.ATTEMPT_OUTCOME_LOST),
    ]


async def until_waits(suite: Suite) -> None:
    """Returns once a session waits for a lock."""
    async with asyncio.timeout(10):
        waits = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
        )
        while suite.sql(waits, (suite.database,)) == [(0,)]:
            await asyncio.sleep(0.02)


async def test_of_two_results_of_one_attempt_the_later_one_is_not_held(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    conversion = await asked(ada)
    claimed = await flows.claim(ada, conversion.id)
    first, second = await made(ada), await made(ada)

    with holding(suite, "SELECT FROM assets.assets WHERE id = %s FOR UPDATE", (second.id,)):
        late = asyncio.create_task(
            refused(flows.complete(ada, claimed, picture=picture(second.id)), WRONG_STATE)
        )
        await until_waits(suite)
        await flows.complete(ada, claimed, picture=picture(first.id))
    await late
    held = flows.held(suite, conversion.id)
    assert first.id in held and second.id not in held


async def test_a_result_that_is_overtaken_while_assets_is_asked_is_not_held(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    conversion = await asked(ada)
    claimed = await flows.claim(ada, conversion.id)
    asset = await made(ada)

    # Somebody cancels between the check of the token and the end of the call: the reference to the
    # picture waits for a lock.
    with holding(suite, "SELECT FROM assets.assets WHERE id = %s FOR UPDATE", (asset.id,)):
        completing = asyncio.create_task(
            superseded(flows.complete(ada, claimed, picture=picture(asset.id)))
        )

        await until_waits(suite)
        request = conversion_pb2.CancelConversionRequest(conversion_id=conversion.id)
        await flows.conversions(ada).CancelConversion(request)
    await completing
    assert asset.id not in flows.held(suite, conversion.id)


async def test_another_may_claim_a_job_whose_lease_has_passed_without_any_worker_of_this_service(
    suite: Suite,
) -> None:
    suite.overrides["job_lease_seconds"] = 0.3
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    one, two = await looked(ada), await looked(ada)
    await flows.claim(ada, one.id)
    await flows.claim(ada, two.id)
    passed = "SELECT count(*) FROM conversions.analyses WHERE lease_expires_at < now()"
    async with asyncio.timeout(10):
        while suite.sql(passed) != [(2,)]:
            await asyncio.sleep(0.05)

    again = await flows.claim(ada, one.id)
    assert (again.job.attempts, again.job.retry_count) == (2, 1)
    assert (await flows.claim(ada, kind=job_pb2.JOB_KIND_ANALYSIS)).job.id == two.id


@pytest.mark.long
async def test_a_job_that_three_workers_lose_fails_and_gives_its_pictures_back(
    suite: Suite,
) -> None:
    suite.overrides["job_lease_seconds"] = 0.6
    await flows.start(suite)
    ada = suite.client("ada")
    conversion = await asked(ada)

    for _ in range(3):
        await until_job(ada, conversion.id, job_pb2.JOB_STATE_PENDING)
        claimed = await flows.claim(ada, conversion.id)

    job = await until_job(ada, conversion.id, job_pb2.JOB_STATE_FAILED)
    assert (job.error_class, job.attempts, job.retry_count, job.credits) == ("WORKER_LOST", 3, 3, 0)
    await superseded(flows.heartbeat(ada, claimed))
    assert (await flows.read(ada, conversion.id)).processing_time_ms >= 600

    await flows.given_back(suite, conversion.id)
    found = await refused(flows.claim(ada, conversion.id), WRONG_STATE)
    assert found.metadata["state"] == "failed"


async def test_a_failure_that_another_try_may_cure_is_tried_three_times(suite: Suite) -> None:
    await flows.start(suite)
    ada = suite.client("ada")

    conversion = await asked(ada)
    for number in (1, 2, 3):
        job = await flows.fail(ada, await flows.claim(ada, conversion.id), retryable=True)
        state = job_pb2.JOB_STATE_PENDING if number < 3 else job_pb2.JOB_STATE_FAILED
        assert (job.state, job.retry_count, job.error_class) == (state, number, "NO_GPU")
    assert [attempt.outcome for attempt in await flows.attempts_of(ada, conversion.id)] == [
        job_pb2.ATTEMPT_OUTCOME_FAILED,
        job_pb2.ATTEMPT_OUTCOME_RETRIED,
        job_pb2.ATTEMPT_OUTCOME_RETRIED,
    ]
    await flows.given_back(suite, conversion.id)


async def test_a_failure_that_is_final_ends_the_job_with_the_workers_words(suite: Suite) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    conversion = await asked(ada)
    claimed = await flows.claim(ada, conversion.id)

    for fields, field in (
        ({"error_class": "no gpu"}, "error_class"),
        ({"error_class": ""}, "error_class"),
        ({"error_message": ""}, "error_message"),
        ({"error_message": "x" * 2001}, "error_message"),
    ):
        assert (await refused(flows.fail(ada, claimed, **fields), INVALID)).fields == [field]

    await asyncio.sleep(0.05)
    await flows.fail(ada, claimed, error_class="TOO_DARK", error_message="nothing can be seen")
    found = await flows.read(ada, conversion.id)
    assert (found.state, found.credits) == (job_pb2.JOB_STATE_FAILED, 0)
    assert (found.error_class, found.error_message) == ("TOO_DARK", "nothing can be seen")
    assert found.processing_time_ms >= 50

    await flows.given_back(suite, conversion.id)
    await superseded(flows.fail(ada, claimed))


@pytest.mark.long
async def test_a_claimed_job_is_cancelled_at_once_and_its_worker_is_refused(suite: Suite) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    conversion = await asked(ada)
    claimed = await flows.claim(ada, conversion.id)

    request = conversion_pb2.CancelConversionRequest(conversion_id=conversion.id)
    answer = await flows.conversions(ada).CancelConversion(request)
    assert answer.outcome == job_pb2.CANCEL_OUTCOME_WITHDRAWN
    assert answer.conversion.state == job_pb2.JOB_STATE_CANCELLED
    await superseded(flows.heartbeat(ada, claimed))
    await superseded(flows.complete(ada, claimed, picture=picture((await made(ada)).id)))

    [attempt] = await flows.attempts_of(ada, conversion.id)
    assert attempt.outcome == job_pb2.ATTEMPT_OUTCOME_CANCELLED
    await flows.given_back(suite, conversion.id)


async def test_pictures_are_given_back_by_the_next_worker_if_assets_and_workers_were_away(
    suite: Suite,
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    conversion = await asked(ada)
    await flows.claim(ada, conversion.id)
    await suite.stop("assets")
    await flows.conversions(ada).CancelConversion(
        conversion_pb2.CancelConversionRequest(conversion_id=conversion.id)
    )
    assert len(flows.held(suite, conversion.id)) == 2

    await suite.serve("assets")
    await suite.work("conversions")
    await flows.given_back(suite, conversion.id)
    # A reference still being acquired may come after the release, so the release is repeated later.
    again = (
        "SELECT count(*) FROM conversions_jobs.procrastinate_jobs WHERE status = 'todo'"
        " AND scheduled_at > now() + interval '30 seconds'"
    )
    async with asyncio.timeout(10):
        while suite.sql(again) != [(1,)]:
            await asyncio.sleep(0.05)


async def test_nothing_is_claimed_while_assets_is_away(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    conversion = await asked(ada)
    await suite.stop("assets")
    same = {"request_id": assets.request_id()}
    found = await refused(flows.claim(ada, conversion.id, **same), grpc.StatusCode.UNAVAILABLE)
    assert found.reason == "DEPENDENCY_UNAVAILABLE"

    job = await job_of(ada, conversion.id)
    assert (job.state, job.attempts) == (job_pb2.JOB_STATE_PENDING, 0)
    assert not await flows.attempts_of(ada, conversion.id)

    await suite.stop("conversions")
    await suite.serve("assets", "conversions")
    back = suite.client("ada")
    assert (await flows.claim(back, conversion.id, **same)).job.attempts == 1


async def test_a_job_whose_picture_is_gone_fails_when_it_is_claimed(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    conversion = await asked(ada)
    await suite.change("DELETE FROM assets.assets WHERE id = %s", (conversion.cloth_asset_id,))
    found = await refused(flows.claim(ada, conversion.id), WRONG_STATE)
    assert found.metadata["state"] == "failed"

    failed = await flows.read(ada, conversion.id)
    assert (failed.state, failed.error_class) == (job_pb2.JOB_STATE_FAILED, "BAD_INPUT")
    [attempt] = await flows.attempts_of(ada, conversion.id)
    assert attempt.outcome == job_pb2.ATTEMPT_OUTCOME_FAILED


async def test_a_repeat_of_a_claim_and_of_a_result_is_answered_the_same(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    conversion = await asked(ada)
    claims = [await flows.claim(ada, conversion.id, request_id="claim") for _ in range(2)]
    assert claims[0] == claims[1]

    asset = await made(ada)
    given = [
        await flows.complete(ada, claims[0], request_id="done", picture=picture(asset.id))
        for _ in range(2)
    ]
    assert given[0] == given[1]
    assert len(await flows.attempts_of(ada, conversion.id)) == 1

    other = await refused(
        flows.complete(
            ada, claims[0], request_id="done", picture=picture(conversion.user_asset_id)
        ),
        INVALID,
    )
    assert other.reason == "REQUEST_ID_REUSED"
    unnamed = flows.complete(ada, claims[0], request_id="", picture=picture(asset.id))
    kept = await refused(unnamed, WRONG_STATE, "completed by this attempt token", "was kept")
    assert kept.reason == "WRONG_STATE"


async def test_what_cannot_be_claimed_is_refused(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    own, mine = await looked(ada, run_externally=False), await looked(ada)

    for fields, field in (
        ({"job_id": "x"}, "job_id"),
        ({"kind": 0}, "kind"),
        ({"kind": 99}, "kind"),
        ({}, "job"),
        ({"job_id": mine.id, "worker": ""}, "worker"),
        ({"job_id": mine.id, "worker": "a b"}, "worker"),
        ({"job_id": mine.id, "request_id": "r" * 129}, "request_id"),
    ):
        found = await refused(flows.claim(ada, **fields), INVALID)
        assert found.fields == [field], fields

    unknown = "01890000-0000-7000-8000-000000000000"
    await refused(flows.claim(ada, unknown), grpc.StatusCode.NOT_FOUND)
    await refused(flows.claim(eve, mine.id), grpc.StatusCode.NOT_FOUND)

    found = await refused(flows.claim(ada, own.id), WRONG_STATE, "run_externally")
    assert found.reason == "WRONG_STATE"

    await flows.claim(ada, mine.id)
    await refused(flows.claim(ada, mine.id), WRONG_STATE, "another worker has it")


@pytest.mark.long
async def test_a_result_that_is_not_one_is_refused_and_the_claim_stays(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada, eve, acme = suite.client("ada"), suite.client("eve"), suite.client("acme", "vendor")
    conversion = await asked(ada)
    claimed = await flows.claim(ada, conversion.id)
    asset, foreign = await made(ada), await made(eve)
    public = await assets.upload(
        acme, PICTURE, kind=asset_pb2.ASSET_KIND_CLOTH, visibility=asset_pb2.VISIBILITY_PUBLIC
    )
    pending = (await assets.announce(ada, PICTURE)).asset
    good = {"picture": picture(asset.id)}
    unweighted = job_pb2.Evidence(name="a", value=0.5, weight=0)

    for fields, code, field in (
        ({}, INVALID, "result"),
        ({"picture": picture("x")}, INVALID, "picture.asset_id"),
        ({"analysis": job_pb2.AnalysisResult(result={"name": "coat"})}, INVALID, "analysis"),
        ({"picture": picture(asset.id, prompt_used="a prompt")}, INVALID, "picture.prompt_used"),
        ({"picture": picture(conversion.user_asset_id)}, INVALID, "picture.asset_id"),
        ({"picture": picture(public.id)}, INVALID, "picture.asset_id"),
        ({"picture": picture(foreign.id)}, grpc.StatusCode.NOT_FOUND, "picture.asset_id"),
        ({"picture": picture(pending.id)}, WRONG_STATE, "picture.asset_id"),
        ({**good, "model": ""}, INVALID, "model"),
        ({**good, "confidence": 1.01}, INVALID, "confidence"),
        ({**good, "confidence": float("nan")}, INVALID, "confidence"),
        ({**good, "evidence": [unweighted]}, INVALID, "evidence[0].weight"),
        (
            {**good, "evidence": [job_pb2.Evidence(name="a", value=0.5, weight=1)] * 101},
            INVALID,
            "evidence",
        ),
        ({**good, "parameters": {"blob": "x" * 20_000}}, INVALID, "parameters"),
    ):
        found = await refused(flows.complete(ada, claimed, **fields), code)
        assert (found.metadata.get("field") or found.fields[0]) == field, (fields, found)

    await refused(
        flows.complete(eve, claimed, picture=picture(foreign.id)), grpc.StatusCode.NOT_FOUND
    )
    assert flows.held(suite, conversion.id) == {
        conversion.user_asset_id,
        conversion.cloth_asset_id,
    }
    await flows.complete(ada, claimed, **good)


async def test_a_stated_price_of_outside_workers_is_set_aside_and_charged(
    suite: Suite, tmp_path: Path
) -> None:
    table = tmp_path / "prices.yaml"
    table.write_text(
        Path("services/conversions/prices.yaml").read_text()
        + "  - {from: 2025-01-01, provider: outside, kind: generation, credits: 4}\n"
    )
    suite.overrides |= {"model_prices_file": table, "credits": "enforced"}
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    asking = {"prompt": "a coat", "run_externally": True, "wait": False}
    await refused(flows.generate(ada, **asking), grpc.StatusCode.RESOURCE_EXHAUSTED)
    await flows.grant(suite, 10)
    await refused(flows.generate(ada, max_credits=3, **asking), grpc.StatusCode.RESOURCE_EXHAUSTED)

    job = await flows.generate(ada, **asking)
    assert await account(ada) == (6, 4)
    claimed = await flows.claim(ada, job.id)
    completed = await flows.complete(ada, claimed, picture=picture((await made(ada)).id))
    assert (completed.credits, await account(ada)) == (4, (6, 0))

    await flows.analyse(ada, run_externally=True, wait=False)  # has no price
    assert await account(ada) == (6, 0)
