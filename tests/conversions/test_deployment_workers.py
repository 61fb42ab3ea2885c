"""Outside workers of the deployment: one token claims the jobs of every owner, who take turns, and
everything stays its owner's."""

import asyncio
from collections import Counter
from typing import Any

import grpc
import httpx
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import (
    analysis_pb2,
    conversion_pb2,
    generation_pb2,
    job_pb2,
    work_pb2,
    work_pb2_grpc,
)

from tests.assets import flows as assets
from tests.assets.flows import request_id
from tests.calls import holding, refused
from tests.conversions import flows
from tests.suite import Client, Suite

NOT_FOUND = grpc.StatusCode.NOT_FOUND
WRONG_STATE = grpc.StatusCode.FAILED_PRECONDITION
ANALYSIS, CONVERSION = job_pb2.JOB_KIND_ANALYSIS, job_pb2.JOB_KIND_CONVERSION
PICTURE = assets.jpeg(320, 240)


@pytest.fixture
async def gpu(suite: Suite) -> Client:
    """A worker of the deployment."""
    return suite.as_token(suite.keys.worker_token("gpu-box"))


def work(client: Client) -> Any:
    return client.stub(work_pb2_grpc.WorkServiceStub)


async def looked(client: Client, **fields: Any) -> str:
    """Creates an analysis for an outside worker."""
    made = await flows.analyse(client, **{"run_externally": True, "wait": False, **fields})
    return made.id


async def get(client: Client, claimed: job_pb2.ClaimJobResponse) -> work_pb2.GetWorkResponse:
    request = work_pb2.GetWorkRequest(job_id=claimed.job.id, attempt_token=claimed.attempt_token)
    answer: work_pb2.GetWorkResponse = await work(client).GetWork(request)
    return answer


async def place(
    client: Client, claimed: job_pb2.ClaimJobResponse, content: bytes, **fields: Any
) -> work_pb2.RequestResultUploadResponse:
    request = work_pb2.RequestResultUploadRequest(
        job_id=claimed.job.id,
        attempt_token=claimed.attempt_token,
        size_bytes=len(content),
        **{"mime_type": "image/jpeg", "request_id": request_id(), **fields},
    )
    answer: work_pb2.RequestResultUploadResponse = await work(client).RequestResultUpload(request)
    return answer


async def test_one_token_makes_a_try_on_of_any_owner_from_claim_to_result(
    suite: Suite, gpu: Client
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    user = await assets.upload(ada, PICTURE, kind=asset_pb2.ASSET_KIND_USER)
    cloth = await assets.upload(ada, PICTURE, kind=asset_pb2.ASSET_KIND_CLOTH)
    asked = await flows.convert(ada, user.id, cloth.id, run_externally=True, style_name="loose")

    claimed = await flows.claim(gpu, kind=CONVERSION, worker="gpu-3")
    assert (claimed.owner, claimed.job.id) == ("user:ada", asked.id)
    assert flows.held(suite, asked.id) == {user.id, cloth.id}
    await flows.heartbeat(gpu, claimed, progress=0.5)
    shown = await get(gpu, claimed)
    assert (shown.conversion.id, shown.conversion.style_name) == (asked.id, "loose")
    assert [each.role for each in shown.pictures] == ["user", "cloth"]
    async with httpx.AsyncClient(verify=False) as http:
        for picture in shown.pictures:
            assert (await http.get(picture.url)).content == PICTURE
            assert (picture.mime_type, picture.size_bytes) == ("image/jpeg", len(PICTURE))

    content = assets.jpeg(200, 300)
    there = await place(gpu, claimed, content)
    result = job_pb2.PictureResult(asset_id=there.asset_id, upload_id=there.upload_id)
    early = await refused(flows.complete(gpu, claimed, picture=result), WRONG_STATE)
    assert early.reason == "NOTHING_UPLOADED"
    await assets.send(there.target, content)
    named = request_id()
    job = await flows.complete(gpu, claimed, picture=result, request_id=named)
    assert job.state == job_pb2.JOB_STATE_COMPLETED
    assert await flows.complete(gpu, claimed, picture=result, request_id=named) == job

    done = await flows.read(ada, asked.id, include_urls=True)
    assert (done.owner, done.created_by, done.result_asset_id) == (
        "user:ada",
        "ada",
        there.asset_id,
    )
    made = (
        await assets.assets(ada).GetAsset(asset_pb2.GetAssetRequest(asset_id=there.asset_id))
    ).asset
    assert (made.owner, made.state) == ("user:ada", asset_pb2.ASSET_STATE_READY)
    [attempt] = await flows.attempts_of(ada, asked.id)
    assert attempt.worker == "outside:gpu-3"
    owned = suite.sql(
        "SELECT DISTINCT owner FROM conversions.attempts UNION SELECT DISTINCT owner FROM"
        " conversions.events UNION SELECT DISTINCT owner FROM assets.asset_references UNION"
        " SELECT DISTINCT owner FROM assets.assets"
    )
    assert owned == [("user:ada",)]


@pytest.mark.parametrize("purged", [False, True])
async def test_a_picture_that_comes_too_late_is_purged(
    suite: Suite, gpu: Client, purged: bool
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    user = await assets.upload(ada, PICTURE, kind=asset_pb2.ASSET_KIND_USER)
    cloth = await assets.upload(ada, PICTURE, kind=asset_pb2.ASSET_KIND_CLOTH)
    asked = await flows.convert(ada, user.id, cloth.id, run_externally=True)
    claimed = await flows.claim(gpu, kind=CONVERSION)
    content = assets.jpeg(200, 300)
    there = await place(gpu, claimed, content)
    await assets.send(there.target, content)
    result = job_pb2.PictureResult(asset_id=there.asset_id, upload_id=there.upload_id)

    lock = "SELECT FROM assets.assets WHERE id = %s FOR UPDATE"
    with holding(suite, lock, (there.asset_id,)):  # its confirmation waits
        code = NOT_FOUND if purged else WRONG_STATE
        late = asyncio.create_task(refused(flows.complete(gpu, claimed, picture=result), code))
        await flows.blocked(suite, "assets_app")
        cancel = conversion_pb2.CancelConversionRequest(conversion_id=asked.id)
        await flows.conversions(ada).CancelConversion(cancel)
        if purged:
            purge = conversion_pb2.PurgeConversionRequest(conversion_id=asked.id)
            await flows.conversions(ada).PurgeConversion(purge)
    await late

    gone = assets.assets(ada).GetAsset(asset_pb2.GetAssetRequest(asset_id=there.asset_id))
    await refused(gone, NOT_FOUND)
    assert there.asset_id not in flows.held(suite, asked.id)


async def test_owners_take_turns_however_much_each_has_waiting(suite: Suite, gpu: Client) -> None:
    await flows.start(suite, working=False)
    ada, eve, bob = (suite.client(name) for name in ("ada", "eve", "bob"))
    for _ in range(6):
        await looked(ada, priority=9)
    await looked(eve)
    last = await looked(eve, priority=8)
    await looked(bob)

    got = [await flows.claim(gpu, kind=ANALYSIS) for _ in range(10)]

    order = [each.owner.removeprefix("user:") for each in got]
    assert sorted(order[:3]) == ["ada", "bob", "eve"]
    assert Counter(order) == {"ada": 6, "eve": 2, "bob": 1, "": 1}
    assert order[3:5] == ["ada", "eve"] and order[5:] == ["ada"] * 4 + [""]
    [first, _] = [each for each in got if each.owner == "user:eve"]
    assert first.job.id == last  # of one owner the job of the highest priority comes first


async def test_a_worker_may_ask_for_one_owner_and_gets_no_other_ones(
    suite: Suite, gpu: Client
) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    mine, hers = await looked(ada), await looked(eve)

    assert not (await flows.claim(gpu, kind=ANALYSIS, owner="user:bob")).attempt_token
    got = await flows.claim(gpu, kind=ANALYSIS, owner="user:eve")
    assert (got.job.id, got.owner) == (hers, "user:eve")
    await refused(flows.claim(gpu, mine, owner="user:eve"), NOT_FOUND)
    assert (await flows.claim(gpu, mine)).owner == "user:ada"
    await refused(flows.claim(gpu, mine), WRONG_STATE, "another worker has it")
    inside = await looked(ada, run_externally=False)
    await refused(flows.claim(gpu, inside), NOT_FOUND)


async def test_a_users_token_claims_its_own_jobs_alone(suite: Suite, gpu: Client) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    mine = await looked(ada)

    assert not (await flows.claim(eve, kind=ANALYSIS)).attempt_token
    await refused(flows.claim(eve, kind=ANALYSIS, owner="user:ada"), NOT_FOUND)
    await refused(flows.claim(eve, mine), NOT_FOUND)
    claimed = await flows.claim(gpu, mine)
    for call in (flows.heartbeat(eve, claimed), flows.fail(eve, claimed), get(eve, claimed)):
        await refused(call, NOT_FOUND)
    assert (await flows.claim(ada, await looked(ada), owner="user:ada")).owner == "user:ada"
    assert (await get(ada, claimed)).analysis.id == mine
    refusal = refused(
        flows.jobs(gpu).ListJobs(job_pb2.ListJobsRequest()), grpc.StatusCode.PERMISSION_DENIED
    )
    await refusal


async def test_a_repeated_claim_is_the_same_claim(suite: Suite, gpu: Client) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    await looked(ada), await looked(eve)
    named = request_id()

    first = await flows.claim(gpu, kind=ANALYSIS, request_id=named)
    assert await flows.claim(gpu, kind=ANALYSIS, request_id=named) == first
    other = await flows.claim(gpu, kind=ANALYSIS)
    assert {first.owner, other.owner} == {"user:ada", "user:eve"}


async def test_of_24_claims_at_once_each_job_goes_to_one(suite: Suite, gpu: Client) -> None:
    await flows.start(suite, working=False)
    clients = [suite.client(name) for name in ("ada", "eve", "bob")]
    wanted = {await looked(client) for client in clients for _ in range(3)}

    claims = (flows.claim(gpu, kind=ANALYSIS, worker=f"gpu-{n}") for n in range(24))
    got = [each for each in await asyncio.gather(*claims) if each.attempt_token]

    assert sorted(each.job.id for each in got) == sorted(wanted)


async def test_a_claim_that_nobody_made_is_none(suite: Suite, gpu: Client) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    claimed = await flows.claim(gpu, await looked(ada))
    other = job_pb2.ClaimJobResponse()
    other.CopyFrom(claimed)
    other.attempt_token = "0190f3c0-0000-7000-8000-000000000000"
    for call in (flows.heartbeat(gpu, other), flows.fail(gpu, other), get(gpu, other)):
        await refused(call, NOT_FOUND)

    await flows.analyses(ada).CancelAnalysis(
        analysis_pb2.CancelAnalysisRequest(analysis_id=claimed.job.id)
    )
    for late in (flows.heartbeat(gpu, claimed), flows.fail(gpu, claimed), get(gpu, claimed)):
        assert (await refused(late, WRONG_STATE)).reason == "ATTEMPT_SUPERSEDED"


async def test_a_job_whose_pictures_are_gone_fails_and_the_claim_can_be_repeated(
    suite: Suite, gpu: Client
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    cloth = await assets.upload(ada, PICTURE)
    made = await flows.analyse(ada, (cloth.id, "front"), run_externally=True, wait=False)
    await assets.assets(ada).DeleteAsset(
        asset_pb2.DeleteAssetRequest(asset_id=cloth.id, request_id=request_id())
    )
    named = request_id()

    await refused(
        flows.claim(gpu, kind=ANALYSIS, request_id=named), WRONG_STATE, "it can't be begun"
    )
    assert not (await flows.claim(gpu, kind=ANALYSIS, request_id=named)).attempt_token
    request = analysis_pb2.GetAnalysisRequest(analysis_id=made.id)
    failed = (await flows.analyses(ada).GetAnalysis(request)).analysis
    assert (failed.state, failed.error_class) == (job_pb2.JOB_STATE_FAILED, "BAD_INPUT")


async def test_what_a_worker_is_shown_of_a_generation_has_prompt_and_sources(
    suite: Suite, gpu: Client
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    one = await assets.upload(ada, PICTURE)
    made = await flows.generate(
        ada, prompt="a red coat", reference_asset_ids=[one.id], run_externally=True, wait=False
    )
    claimed = await flows.claim(gpu, kind=job_pb2.JOB_KIND_GENERATION)
    shown = await get(gpu, claimed)
    assert shown.generation.task == generation_pb2.GENERATION_TASK_IMAGE
    assert shown.generation.prompt == made.prompt == "a red coat"
    assert [(each.role, each.asset_id) for each in shown.pictures] == [("reference", one.id)]

    named = request_id()
    first = await place(gpu, claimed, PICTURE, request_id=named)
    assert (await place(gpu, claimed, PICTURE, request_id=named)).asset_id == first.asset_id
    assert (await place(gpu, claimed, PICTURE)).asset_id != first.asset_id
    await refused(
        place(gpu, await flows.claim(gpu, await looked(ada)), PICTURE),
        grpc.StatusCode.INVALID_ARGUMENT,
        "is an analysis",
    )


async def test_nothing_but_owners_is_read_across_owners(suite: Suite) -> None:
    """The serving role without an owner sees no row, and while it claims, only what runs
    outside."""
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    await looked(ada, run_externally=False)
    outside = await looked(ada)
    await flows.generate(ada, prompt="a coat", wait=False)
    await flows.conversions(ada).ListConversions(conversion_pb2.ListConversionsRequest())
    seen = """
        SELECT id::text FROM conversions.analyses UNION ALL SELECT id::text FROM
        conversions.generations UNION ALL SELECT owner FROM conversions.job_inputs
    """
    suite.sql("SET ROLE conversions_app")
    try:
        assert suite.sql(seen) == []
        suite.sql("SET app.claiming = 'on'")
        assert suite.sql(seen) == [(outside,)]
        assert suite.sql("UPDATE conversions.analyses SET priority = 1 RETURNING id") == []
        assert suite.sql("SELECT id FROM conversions.analyses FOR UPDATE") == []
    finally:
        suite.sql("RESET ROLE; RESET app.claiming")
