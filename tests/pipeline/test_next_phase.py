"""Outside runners ask for any phase that waits: an owner's own runner, and those of the deployment,
which serve owners in turn with one token."""

import asyncio
from collections import Counter
from typing import Any

import grpc
import httpx
import psycopg
import pytest
from atelier.pipeline.v1 import phase_pause_pb2, phase_pause_pb2_grpc, phase_pb2, result_pb2

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.pipeline import flows
from tests.pipeline.test_rerun import complete, due
from tests.suite import Client, Suite

NOT_FOUND = grpc.StatusCode.NOT_FOUND
PHOTO = flows.photo()


async def served(suite: Suite) -> None:
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")


def runner(suite: Suite, name: str = "gpu-box") -> Client:
    """Returns a runner of the deployment."""
    return suite.as_token(suite.keys.worker_token(name))


async def waiting(client: Client, count: int, **fields: Any) -> list[str]:
    """Creates products whose phase 1 waits for an outside runner."""
    image = await asset_flows.upload(client, PHOTO)
    made = await asyncio.gather(*(flows.outside(client, image.id, **fields) for _ in range(count)))
    return [each.id for each in made]


async def claim_next(client: Client, **fields: Any) -> phase_pb2.ClaimNextPhaseResponse:
    request = phase_pb2.ClaimNextPhaseRequest(**{"request_id": flows.request_id(), **fields})
    answer: phase_pb2.ClaimNextPhaseResponse = await flows.phases(client).ClaimNextPhase(request)
    return answer


def beat(client: Client, claimed: phase_pb2.ClaimNextPhaseResponse) -> Any:
    return flows.phases(client).HeartbeatPhase(
        phase_pb2.HeartbeatPhaseRequest(
            product_id=claimed.phase.product_id,
            phase=claimed.phase.number,
            attempt_token=claimed.attempt_token,
        )
    )


def fail(client: Client, claimed: phase_pb2.ClaimNextPhaseResponse) -> Any:
    return flows.phases(client).FailPhase(
        phase_pb2.FailPhaseRequest(
            product_id=claimed.phase.product_id,
            phase=claimed.phase.number,
            attempt_token=claimed.attempt_token,
            error_class="TESTS",
            error_message="none",
        )
    )


async def test_one_token_runs_the_phase_of_any_owner_with_all_that_it_needs(suite: Suite) -> None:
    await served(suite)
    ada, gpu = suite.client("ada"), runner(suite)
    assert not (await claim_next(gpu)).HasField("phase")
    [product_id] = await waiting(ada, 1, phases=[1, 2, 3])
    named = flows.request_id()
    first = await claim_next(gpu, request_id=named)
    again = await claim_next(gpu, request_id=named)
    assert (again.attempt_token, again.facts) == (first.attempt_token, first.facts)
    assert (first.owner, first.phase.product_id, first.phase.number) == ("user:ada", product_id, 1)
    assert first.facts.product.name == flows.FACTS["product"]["name"] and not first.results
    [image] = first.images
    async with httpx.AsyncClient(verify=False) as http:
        assert (await http.get(image.url)).content == PHOTO
    assert (image.view, image.primary, image.mime_type) == ("front", True, "image/jpeg")

    await beat(gpu, first)
    await flows.complete(gpu, first, flows.analysis("Waxed jacket"), provider="gpu")
    await due(ada, product_id, 2)
    second = await claim_next(gpu, phases=[2, 4])
    assert second.phase.number == 2 and second.facts.product.name == "Waxed jacket"
    [before] = second.results
    assert before.value.product_analysis.name == "Waxed jacket" and before.provider == "gpu"
    assert not (await claim_next(gpu)).attempt_token
    owned = "SELECT DISTINCT owner FROM pipeline.attempts UNION SELECT owner FROM pipeline.results"
    assert suite.sql(owned) == [("user:ada",)]
    shown = (await flows.get(ada, product_id)).results[0]
    assert shown.source == result_pb2.RESULT_SOURCE_RUNNER


async def test_owners_take_turns_and_a_claim_may_name_one(suite: Suite) -> None:
    await served(suite)
    ada, eve, gpu = suite.client("ada"), suite.client("eve"), runner(suite)
    await waiting(ada, 5)
    await waiting(eve, 2)
    got = [(await claim_next(gpu)).owner for _ in range(4)]
    assert sorted(got[:2]) == ["user:ada", "user:eve"] and got[2:] == got[:2]
    assert not (await claim_next(gpu, owner="user:eve")).attempt_token
    assert (await claim_next(gpu, owner="user:ada")).owner == "user:ada"


async def test_of_claims_at_once_each_phase_goes_to_one(suite: Suite) -> None:
    await served(suite)
    wanted = await waiting(suite.client("ada"), 10) + await waiting(suite.client("eve"), 10)
    gpu = runner(suite)
    got = await asyncio.gather(*(claim_next(gpu) for _ in range(20)))
    assert sorted(each.phase.product_id for each in got) == sorted(wanted)
    assert Counter(each.owner for each in got) == {"user:ada": 10, "user:eve": 10}


async def test_a_claim_is_its_runners_alone(suite: Suite) -> None:
    await served(suite)
    ada, eve, gpu, other = (
        suite.client("ada"),
        suite.client("eve"),
        runner(suite),
        runner(suite, "other-box"),
    )
    [product_id] = await waiting(ada, 1)
    assert not (await claim_next(eve)).attempt_token
    await refused(claim_next(eve, owner="user:ada"), NOT_FOUND)
    claimed = await claim_next(gpu)
    for client in (other, eve):
        await refused(beat(client, claimed), NOT_FOUND)
        await refused(fail(client, claimed), NOT_FOUND)
        await refused(flows.complete(client, claimed, flows.analysis()), NOT_FOUND)
    denied = grpc.StatusCode.PERMISSION_DENIED
    await refused(flows.get(gpu, product_id), denied)
    await fail(gpu, claimed)
    late = await refused(beat(gpu, claimed), grpc.StatusCode.FAILED_PRECONDITION)
    assert late.reason == "ATTEMPT_SUPERSEDED"


async def test_an_owners_runner_gets_its_own_oldest_and_nothing_paused_or_deleted(
    suite: Suite,
) -> None:
    await served(suite)
    ada, admin = suite.client("ada"), suite.client("root", role="admin")
    pauses = admin.stub(phase_pause_pb2_grpc.PhasePauseServiceStub)
    [deleted] = await waiting(ada, 1)
    [first] = await waiting(ada, 1)
    await flows.change(ada, "DeleteProduct", deleted)
    await pauses.PausePhase(phase_pause_pb2.PausePhaseRequest(phase=1, reason="broken"))
    for client in (ada, runner(suite)):
        assert not (await claim_next(client)).attempt_token
    await pauses.ResumePhase(phase_pause_pb2.ResumePhaseRequest(phase=1))
    assert not (await claim_next(ada, phases=[2])).attempt_token
    claimed = await claim_next(ada, phases=[1], lease_seconds=5)
    assert (claimed.phase.product_id, claimed.owner) == (first, "user:ada")
    await suite.change("UPDATE pipeline.phases SET lease_expires_at = now() - interval '1 s'")
    later = await claim_next(runner(suite))
    assert later.phase.product_id == first and later.attempt_token != claimed.attempt_token
    await flows.complete(ada, await _own(ada, later), flows.analysis())
    wrong = claim_next(ada, phases=[5])
    await refused(wrong, grpc.StatusCode.INVALID_ARGUMENT, "phases")


async def _own(
    client: Client, claimed: phase_pb2.ClaimNextPhaseResponse
) -> phase_pb2.ClaimNextPhaseResponse:
    """The owner may complete a claim of hers whose token she knows."""
    await beat(client, claimed)
    return claimed


@pytest.mark.long
async def test_while_assets_is_away_nothing_is_claimed(suite: Suite) -> None:
    await served(suite)
    ada, gpu = suite.client("ada"), runner(suite)
    [product_id] = await waiting(ada, 1)
    await suite.stop("assets")
    named = flows.request_id()
    await refused(claim_next(gpu, request_id=named), grpc.StatusCode.UNAVAILABLE)
    phase = (await flows.get(ada, product_id)).product.phases[0]
    assert phase.due and phase.attempt_number == 0
    asked = phase_pb2.ListPhaseAttemptsRequest(product_id=product_id, phase=1)
    assert not (await flows.phases(ada).ListPhaseAttempts(asked)).attempts


@pytest.mark.long
async def test_a_claimed_phase_with_large_results_before_it_fits(suite: Suite) -> None:
    await served(suite)
    ada, gpu = suite.client("ada"), runner(suite)
    [product_id] = await waiting(ada, 1)
    value = """CASE n WHEN 1 THEN '{"product_analysis": {"name": "Jacket"}}'::jsonb
        WHEN 2 THEN '{"market_research": {}}' ELSE '{"seo_analysis": {"title": "Jacket"}}' END"""
    evidence = (
        "(SELECT jsonb_agg(jsonb_build_object('name', 'e', 'note', repeat('\U0001f9e5', 1000)))"
        " FROM generate_series(1, 400))"
    )
    await suite.change(
        "INSERT INTO pipeline.results (id, owner, product_id, phase, value, source, provider,"
        f" evidence) SELECT gen_random_uuid(), 'user:ada', %s, n, {value}, 'runner', 'tests',"
        f" {evidence} FROM generate_series(1, 3) n",
        (product_id,),
    )
    await suite.change(
        "UPDATE pipeline.phases SET started = number = 4, state = CASE number WHEN 4 THEN 'pending'"
        " ELSE 'completed' END"
    )
    claimed = await claim_next(gpu)
    assert claimed.phase.number == 4 and [each.phase for each in claimed.results] == [1, 2, 3]
    assert all(each.HasField("value") for each in claimed.results)
    assert [bool(each.evidence) for each in claimed.results] == [True, True, False]
    assert claimed.ByteSize() < 4 * 1024 * 1024


async def test_nothing_but_owners_is_read_across_owners(suite: Suite) -> None:
    await served(suite)
    ada = suite.client("ada")
    [product_id] = await waiting(ada, 1, phases=[1, 3])
    seen = """
        SELECT number::text FROM pipeline.phases UNION ALL SELECT owner FROM pipeline.products
        UNION ALL SELECT owner FROM pipeline.results ORDER BY 1
    """
    suite.sql("SET ROLE pipeline_app")
    try:
        assert suite.sql(seen) == []
        suite.sql("SET app.claiming = 'on'")
        assert suite.sql(seen) == [("1",), ("3",)]
        assert suite.sql("UPDATE pipeline.phases SET retry_count = 9 RETURNING id") == []
    finally:
        suite.sql("RESET ROLE; RESET app.claiming")
    await complete(ada, product_id, 1, flows.analysis())


async def test_a_phase_that_somebody_holds_is_passed_over_at_once(suite: Suite) -> None:
    await served(suite)
    ada = suite.client("ada")
    first, second = sorted(await waiting(ada, 2))
    [(oldest,)] = suite.sql(
        "SELECT id::text FROM pipeline.phases WHERE number = 1 ORDER BY created_at, id LIMIT 1"
    )
    async with await psycopg.AsyncConnection.connect(suite.cluster.url(suite.database)) as conn:
        await conn.execute("SELECT FROM pipeline.phases WHERE id = %s FOR UPDATE", (oldest,))
        async with asyncio.timeout(5):  # a claim that waited would last as long as the lock
            claimed = await claim_next(ada)
    assert claimed.phase.id != oldest and claimed.phase.product_id in (first, second)
