"""What was paid for isn't paid again, and what wasn't charged counts for nothing: hosted providers
whose calls fail in the middle."""

import asyncio
import json
from pathlib import Path

import pytest
from atelier.conversions.v1 import job_pb2
from atelier.conversions.v1 import provider_pb2 as pb

from services.conversions import job_moves
from services.conversions.runs import run
from tests.assets.flows import request_id
from tests.conversions import flows
from tests.conversions import local_pictures as pictures
from tests.conversions.asked import configured
from tests.conversions.queues import FalQueue, serving
from tests.conversions.test_providers import (
    b64,
    calls_of,
    configure,
    listed,
    providers,
    socket,
    switch,
    try_on,
    until_waiting,
)
from tests.receiver import Request, receiving, replying
from tests.suite import Suite

pytestmark = pytest.mark.long


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    return pictures.person(tmp_path / "made.jpg", width=768)


@pytest.fixture
def priced(suite: Suite, tmp_path: Path) -> None:
    """A price table in which calls of two providers cost something."""
    table = tmp_path / "prices.yaml"
    table.write_text(
        Path("services/conversions/prices.yaml").read_text()
        + "  - {from: 2026-11-01, provider: openai, credits: 3, cost: 0.05, source: a test}\n"
        + "  - {from: 2026-11-01, provider: gemini, credits: 3, cost: 0.07, source: a test}\n"
    )
    suite.overrides["model_prices_file"] = table


async def test_a_paid_result_that_cannot_be_stored_counts_as_a_fault(
    suite: Suite, tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_INSIST_SECONDS", 0.5)

    async def answers_and_assets_goes_away(_request: Request, writer: asyncio.StreamWriter) -> None:
        await suite.stop("assets")
        await replying(200, b64(drawn.read_bytes()))(_request, writer)

    async with socket(suite, answers_and_assets_goes_away) as server:
        ada = suite.client("ada")
        made = await try_on(ada, tmp_path)
        async with asyncio.timeout(30):
            while True:
                attempts = await flows.attempts_of(ada, made.id)
                if attempts and attempts[0].outcome != job_pb2.ATTEMPT_OUTCOME_RUNNING:
                    break
                await asyncio.sleep(0.1)
        first = attempts[0]
    assert (first.outcome, first.error_class) == (
        job_pb2.ATTEMPT_OUTCOME_RETRIED,
        "DEPENDENCY_UNAVAILABLE",
    )
    assert len(server.requests) == 1


async def test_no_other_provider_is_paid_while_the_result_of_the_first_can_be_had(
    suite: Suite, tmp_path: Path, drawn: Path
) -> None:
    async with serving(FalQueue(drawn)) as queue, receiving(replying(200, b"{}")) as other:
        queue.files_are_away = True
        suite.overrides |= configured(queue.url)
        suite.overrides |= {
            "providers": {"conversion": ["fal", "openai"]},
            "openai_url": f"http://127.0.0.1:{other.port}",
        }
        await flows.start(suite)
        ada = suite.client("ada")
        waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
        assert (waiting.error_class, waiting.wait.what) == ("UNAVAILABLE", "fal")
        [call] = await calls_of(ada, job_id=waiting.id)
        assert (call.state, call.charge) == (
            pb.PROVIDER_CALL_STATE_SUBMITTED,
            pb.PROVIDER_CHARGE_CHARGED,
        )

        queue.files_are_away = False
        done = await flows.until(ada, waiting.id, *flows.FINISHED)
        assert done.state == job_pb2.JOB_STATE_COMPLETED, done.error_message
        [call] = await calls_of(ada, job_id=waiting.id)
        assert (call.state, call.charge) == (
            pb.PROVIDER_CALL_STATE_ANSWERED,
            pb.PROVIDER_CHARGE_CHARGED,
        )
        assert (len(queue.created), other.requests) == (1, [])


@pytest.mark.usefixtures("priced")
async def test_the_cost_of_a_call_is_taken_back_once_and_no_other_calls(
    suite: Suite, tmp_path: Path, drawn: Path
) -> None:
    async with socket(suite, replying(200, b64(drawn.read_bytes()))) as server:
        suite.overrides["providers"] = {"conversion": ["openai", "gemini"]}
        await suite.stop_work("conversions")
        await suite.work("conversions")
        ada, operator = suite.client("ada"), suite.client("root", "admin")
        assert (await try_on(ada, tmp_path, wait=True)).recipe.provider == "openai"
        assert (await flows.balance(ada)).cost_micros_today == 50_000

        await switch(operator, "gemini", on=False)
        server.reply = replying(429, b"{}", retry_after="1")
        await until_waiting(ada, (await try_on(ada, tmp_path)).id)
        assert (await flows.balance(ada)).cost_micros_today == 50_000


async def test_an_answer_with_characters_that_cannot_be_stored_is_kept_without_them(
    suite: Suite,
) -> None:
    said = {"value": "Coat\u0000!", "confidence": 0.9, "evidence": "its cut", "picture": 0}
    names = ("name", "model", "condition", "condition_details", "categories", "brands")
    content = json.dumps({name: said if name == "name" else None for name in names})
    answer = {
        "model": "coat\u0000reader",
        "choices": [{"message": {"content": content}}],
        "usage": {"tokens\u0000": 7, "wrong": float("nan"), "much": 1e300},
    }
    async with socket(suite, replying(200, json.dumps(answer).encode())):
        suite.overrides["providers"] = {"analysis": ["openai"]}
        await suite.stop_work("conversions")
        await suite.work("conversions")
        ada = suite.client("ada")
        made = await flows.analyse(ada)
    assert made.state == job_pb2.JOB_STATE_COMPLETED, made.error_message
    assert (made.recipe.model_version, made.result["name"]) == ("coat reader", "Coat !")
    [call] = await calls_of(ada, job_id=made.id)
    assert {name: call.usage[name] for name in call.usage} == {"tokens ": 7, "much": 1e300}


async def test_a_refusal_with_odd_characters_is_final_too(suite: Suite, tmp_path: Path) -> None:
    error = {
        "error": {
            "code": "moderation_blocked",
            "message": "no\u0000",
            "moderation_details": {"categories": ["\ud800", "nudity\u0000"]},
        }
    }
    async with socket(suite, replying(400, json.dumps(error).encode())) as server:
        ada = suite.client("ada")
        made = await try_on(ada, tmp_path, wait=True)
    assert (made.state, made.error_class) == (job_pb2.JOB_STATE_FAILED, "REFUSED")
    assert len(server.requests) == 1


async def test_an_answer_of_a_shape_that_nobody_foresaw_is_a_bad_answer(
    suite: Suite, tmp_path: Path
) -> None:
    odd = replying(400, json.dumps({"error": {"code": {"a": 1}, "message": ["x"]}}).encode())
    async with socket(suite, odd):
        ada = suite.client("ada")
        made = await try_on(ada, tmp_path, wait=True)
    assert (made.state, made.error_class) == (job_pb2.JOB_STATE_FAILED, "BAD_INPUT")
    deep = b'{"data":' + b"[" * 100_000
    async with receiving(replying(200, deep)) as server:
        await suite.stop_work("conversions")
        configure(suite, f"http://127.0.0.1:{server.port}", {"conversion": ["openai"]})
        await suite.work("conversions")
        made = await try_on(ada, tmp_path, wait=True)
    assert (made.state, made.error_class) == (job_pb2.JOB_STATE_FAILED, "BAD_ANSWER")


async def test_a_gateway_that_gave_up_may_have_cost_money(suite: Suite, tmp_path: Path) -> None:
    async with socket(suite, replying(504, b"{}")) as server:
        ada = suite.client("ada")
        made = await try_on(ada, tmp_path)
        failed = await flows.until(ada, made.id, *flows.FINISHED)
    assert (failed.state, failed.error_class) == (job_pb2.JOB_STATE_FAILED, "TIMED_OUT")
    calls = await calls_of(ada, job_id=made.id)
    assert len(calls) == len(server.requests) == 3, "not for as long as a job may wait"
    assert {call.charge for call in calls} == {pb.PROVIDER_CHARGE_POSSIBLE}


async def test_a_server_without_an_address_is_away_and_no_matter_of_the_account(
    suite: Suite, tmp_path: Path
) -> None:
    configure(suite, "http://gpu.invalid:8000", {"conversion": ["openai"]})
    await flows.start(suite)
    ada = suite.client("ada")
    waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
    assert (waiting.error_class, waiting.wait.what) == ("UNAVAILABLE", "openai")
    shown = (await listed(suite.client("root", "admin")))["openai"]
    assert shown.state != pb.PROVIDER_STATE_SWITCHED_OFF


async def test_a_provider_that_says_next_month_is_asked_again_in_a_quarter_of_an_hour(
    suite: Suite, tmp_path: Path
) -> None:
    async with socket(suite, replying(429, b"{}", retry_after="9" * 400)):
        ada = suite.client("ada")
        made = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
        async with asyncio.timeout(10):
            while not (
                pauses := suite.sql(
                    "SELECT extract(epoch FROM scheduled_at - now())::int"
                    " FROM conversions_jobs.procrastinate_jobs WHERE args ->> 'row_id' = %s"
                    " AND status = 'todo' AND scheduled_at > now()",
                    [made.id],
                )
            ):
                await asyncio.sleep(0.05)
    assert pauses[0][0] <= 1.2 * 900


async def test_an_owners_route_decides_in_which_queue_a_job_waits(
    suite: Suite, tmp_path: Path
) -> None:
    configure(suite, "http://127.0.0.1:9999", {"conversion": ["local"]})
    await flows.start(suite, working=False)
    route = pb.SetProviderRouteRequest(
        request_id=request_id(), owner="user:ada", task="conversion", providers=["openai"]
    )
    await providers(suite.client("root", "admin")).SetProviderRoute(route)
    made = await try_on(suite.client("ada"), tmp_path)
    assert queue_of(suite, made.id) == "conversions.models.openai"


async def test_jobs_of_a_provider_that_is_gone_are_run_though_they_came_after_the_start(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_moves, "_ADOPT_SECONDS", 0.2)
    configure(suite, "http://127.0.0.1:9999", {"conversion": ["openai"]})
    await flows.start(suite, working=False)  # a server of yesterday
    suite.overrides["providers"] = {"conversion": ["local"]}
    suite.overrides["openai_url"] = "https://api.openai.com/v1"
    suite.overrides["openai_api_key"] = ""
    await suite.work("conversions")
    made = await try_on(suite.client("ada"), tmp_path, wait=True)
    assert (made.state, made.recipe.provider) == (job_pb2.JOB_STATE_COMPLETED, "local")


def queue_of(suite: Suite, job_id: str) -> str:
    [[name]] = suite.sql(
        "SELECT queue_name FROM conversions_jobs.procrastinate_jobs WHERE args ->> 'row_id' = %s",
        [job_id],
    )
    return str(name)
