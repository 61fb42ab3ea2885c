"""Moderation: whatever a job would send is judged first, a refusal is free and has its reason, and
without a judgement nothing is sent. `openai` is asked at aimock, which nobody here wrote; it looks
at no picture, so that pictures are judged by a model server of the test."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import conversion_pb2, credit_pb2, generation_pb2, job_pb2
from atelier.conversions.v1 import provider_pb2 as pb
from atelier.models.v1 import model_pb2
from pydantic import SecretStr

from services.conversions.providers import openai, registry
from services.conversions.providers.contract import (
    InputPicture,
    ModerationRequest,
    ProviderFailed,
)
from shared.imaging import ImagingPool
from shared.settings import Settings, WrongSetting, load
from shared.telemetry import METRICS
from tests.assets.flows import request_id
from tests.conversions import aimock, flows
from tests.conversions import local_pictures as pictures
from tests.conversions.aimock import Aimock
from tests.conversions.model_servers import (
    PASSED,
    Scripted,
    answering,
    example,
    failure,
    judging,
    picture,
    serving,
)
from tests.conversions.test_consents import expire
from tests.conversions.test_providers import calls_of, listed, switch, try_on, until_waiting
from tests.receiver import Receiver, receiving, replying
from tests.suite import Suite, free_port

KEY = "a-key-that-must-stay-here"
NUDITY = failure(model_pb2.RUN_FAILURE_KIND_REFUSED, "picture 1 shows bare skin", category="nudity")
MODERATES = {"moderation": "guard-2"}
long = pytest.mark.long


@pytest.fixture(scope="module")
def mock() -> Iterator[Aimock]:
    flagged = {"bloodbath": ["violence", "violence/graphic"], "insult": ["harassment"]}
    with aimock.moderating(flagged) as server:
        yield server


def by_openai(suite: Suite, url: str, **more: Any) -> None:
    suite.overrides |= {
        "moderation": ["openai"],
        "openai_api_key": SecretStr(KEY),
        "openai_url": f"{url}/v1",
        **more,
    }


def by_grpc(suite: Suite, address: str, **more: Any) -> None:
    suite.overrides |= {
        "moderation": ["grpc"],
        "models_address": address,
        "models_tasks": MODERATES,
        **more,
    }


def judged_by(server: Receiver) -> list[dict[str, Any]]:
    """Returns what a server was asked to judge."""
    asked = [each for each in server.requests if "/moderations " in each.line]
    return [json.loads(each.body) for each in asked]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"moderation": ["gemini"]}, "'gemini', which can't moderate; openai and grpc can"),
        ({"moderation": ["local"]}, "'local', which can't moderate"),
        ({"moderation": ["openai"]}, "set ATELIER_OPENAI_API_KEY"),
        (
            {
                "moderation": ["openai"],
                "openai_url": "http://gpu-1/v1",
                "openai_moderation_model": "",
            },
            "set ATELIER_OPENAI_MODERATION_MODEL",
        ),
        (
            {
                "moderation": ["grpc"],
                "models_address": "gpu-1:1",
                "models_tasks": {"conversion": "paste"},
            },
            "in ATELIER_MODELS_TASKS, as task moderation",
        ),
        ({"providers": {"moderation": ["local"]}}, "no task 'moderation'"),
    ],
)
def test_a_setting_that_names_no_moderation_is_refused_at_the_start(
    values: dict[str, Any], word: str
) -> None:
    settings = load("conversions")
    with pytest.raises(WrongSetting, match=word):
        registry.routes(type(settings).model_validate({**settings.model_dump(), **values}))


@long
@pytest.mark.needs_node
async def test_flagged_words_are_refused_for_free_and_clean_ones_pass(
    suite: Suite, mock: Aimock, tmp_path: Path
) -> None:
    made = pictures.person(tmp_path / "made.jpg", width=512)
    mock.answers(aimock.picture("harbour", made), aimock.picture("bloodbath", made))
    by_openai(suite, mock.url, providers={"generation": ["openai"]})
    await flows.start(suite)
    ada = suite.client("ada")
    refused = await flows.generate(ada, prompt="a bloodbath in a hall")

    assert (refused.state, refused.error_class) == (job_pb2.JOB_STATE_FAILED, "REFUSED")
    assert refused.error_message == (
        "the moderation by openai refused the job (violence, violence/graphic): its text is"
        " flagged; it was sent to no other provider and costs nothing; change what is refused,"
        " then create another one"
    )
    assert refused.credits == 0 and await calls_of(ada) == []
    asked = [each["path"] for each in mock.requests("/v1/")]
    assert asked == ["/v1/moderations"], "no provider was sent it"
    assert (await flows.balance(ada)).reserved == 0
    entries = [each.kind for each in await flows.entries(ada)]
    assert entries == [
        credit_pb2.CREDIT_ENTRY_KIND_RESERVE,
        credit_pb2.CREDIT_ENTRY_KIND_RELEASE,
    ]
    [attempt] = await flows.attempts_of(ada, refused.id)
    assert attempt.error_class == "REFUSED"

    again = generation_pb2.RetryGenerationRequest(
        request_id=request_id(), generation_id=refused.id, wait=True
    )
    repeated = (await flows.generations(ada).RetryGeneration(again)).generation
    assert (repeated.retry_of, repeated.error_class) == (refused.id, "REFUSED")

    clean = await flows.generate(ada, prompt="a harbour at dawn")
    assert clean.state == job_pb2.JOB_STATE_COMPLETED, clean.error_message
    asked = [each["path"] for each in mock.requests("/v1/")]
    assert asked == ["/v1/moderations"] * 3 + ["/v1/images/generations"]
    for outcome in ("refused", "answered"):
        labels = {"provider": "openai", "task": "moderation", "outcome": outcome}
        assert METRICS.get_sample_value("atelier_provider_calls_total", labels)
    [task] = [each for each in (await listed(ada))["openai"].tasks if each.task == "moderation"]
    assert (task.model, task.place) == ("omni-moderation-latest", 1)


@long
async def test_a_flagged_picture_is_refused_whatever_makes_the_result(
    suite: Suite, tmp_path: Path
) -> None:
    def judge(head: model_pb2.RunHead, sizes: list[int]) -> model_pb2.GetRunResponse:
        return NUDITY if "user" in [each.role for each in head.pictures] else PASSED

    async with serving(Scripted(judging(judge))) as server:
        by_grpc(suite, server.address)
        await flows.start(suite)
        ada = suite.client("ada")
        worn = await try_on(ada, tmp_path, style_name="relaxed", wait=True)
        drawn = await flows.generate(ada, prompt="a harbour", style="editorial")
        photo = await flows.put(
            ada, pictures.garment(tmp_path / "a.jpg", width=400), asset_pb2.ASSET_KIND_PRODUCT
        )
        known = await flows.analyse(
            ada, (photo, "front"), facts={"product": {"name": "Harbour coat"}}
        )

    assert (worn.state, worn.error_class) == (job_pb2.JOB_STATE_FAILED, "REFUSED")
    assert "by grpc refused the job (nudity): picture 1 shows bare skin" in worn.error_message
    assert drawn.state == job_pb2.JOB_STATE_COMPLETED, drawn.error_message
    assert known.state == job_pb2.JOB_STATE_COMPLETED, known.error_message
    assert (drawn.recipe.provider, known.recipe.provider) == ("local", "local")

    of_worn, of_drawn, of_known = server.started
    assert {(each.task, each.model) for each in server.started} == {("moderation", "guard-2")}
    assert [each.role for each in of_worn.pictures] == ["user", "cloth"]
    assert [each.size_bytes for each in of_worn.pictures] == server.received[0]
    assert of_worn.style == "relaxed"
    assert of_drawn.prompt == drawn.full_prompt and of_drawn.style == "editorial"
    assert [each.role for each in of_known.pictures] == ["front"]
    assert "Harbour coat" in of_known.instruction
    assert await calls_of(ada) == [], "a judgement isn't a call that may be charged"


@long
@pytest.mark.needs_node
async def test_two_moderations_must_both_let_a_job_pass(suite: Suite, mock: Aimock) -> None:
    refuses = failure(model_pb2.RUN_FAILURE_KIND_REFUSED, "no harbours here", category="place")

    def judge(head: model_pb2.RunHead, sizes: list[int]) -> model_pb2.GetRunResponse:
        return refuses if "harbour" in head.prompt else PASSED

    mock.answers()
    async with serving(Scripted(judging(judge))) as server:
        by_openai(suite, mock.url)
        by_grpc(suite, server.address, moderation=["openai", "grpc"])
        await flows.start(suite)
        ada = suite.client("ada")
        by_second = await flows.generate(ada, prompt="a harbour")
        by_first = await flows.generate(ada, prompt="an insult")
        passed = await flows.generate(ada, prompt="a meadow")
    assert "by grpc refused the job (place)" in by_second.error_message
    assert "by openai refused the job (harassment)" in by_first.error_message
    assert passed.state == job_pb2.JOB_STATE_COMPLETED, passed.error_message
    assert len(server.started) == 2, "what the first refuses the second isn't sent"


@long
@pytest.mark.needs_node
async def test_nothing_is_sent_while_the_moderation_is_away(
    suite: Suite, mock: Aimock, tmp_path: Path
) -> None:
    made = pictures.person(tmp_path / "made.jpg", width=512)
    mock.answers(aimock.gemini_picture("Dress the person", made))
    port = free_port()
    by_openai(
        suite,
        f"http://127.0.0.1:{port}",
        providers={"conversion": ["gemini", "local"]},
        gemini_api_key=SecretStr(KEY),
        gemini_url=mock.url,
    )
    await flows.start(suite)
    ada = suite.client("ada")
    waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
    assert (waiting.error_class, waiting.wait.what) == ("UNAVAILABLE", "openai")
    assert waiting.error_message.startswith(
        "before it is sent anywhere, a moderation judges the job: openai: "
    )
    said = await flows.jobs(ada).ExplainJob(job_pb2.ExplainJobRequest(job_id=waiting.id))
    [about] = [each for each in said.answers if each.question == "can it be judged?"]
    assert (about.ok, about.answer) == (
        True,
        "before it is sent to a provider, it must pass the moderation by openai (ready)",
    )
    assert mock.requests(":generateContent") == [], "nor does `local` make it instead"

    clean = replying(200, b'{"results": [{"flagged": false, "categories": {}}]}')
    async with receiving(clean, port=port) as server:
        done = await flows.until(ada, waiting.id, *flows.FINISHED)
    assert (done.state, done.recipe.provider) == (job_pb2.JOB_STATE_COMPLETED, "gemini")
    assert len(judged_by(server)) == 2, "the two pictures"
    assert len(mock.requests(":generateContent")) == 1


@long
async def test_a_refused_key_switches_the_moderation_off_and_jobs_wait_for_the_operator(
    suite: Suite, tmp_path: Path
) -> None:
    wrong = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
    async with receiving(replying(401, wrong)) as server:
        by_openai(suite, f"http://127.0.0.1:{server.port}")
        await flows.start(suite)
        ada, operator = suite.client("ada"), suite.client("root", "admin")
        waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
        assert (waiting.error_class, waiting.wait.what) == ("ACCOUNT", "openai")
        assert "doesn't serve this deployment now" in waiting.error_message
        assert "Incorrect" not in waiting.error_message
        seen = (await listed(operator))["openai"]
        assert seen.state == pb.PROVIDER_STATE_SWITCHED_OFF
        assert "Incorrect API key provided: [key]" in seen.reason
        said = await flows.jobs(ada).ExplainJob(job_pb2.ExplainJobRequest(job_id=waiting.id))
        [about] = [each for each in said.answers if each.question == "can it be judged?"]
        assert not about.ok and "openai (switched off)" in about.answer

        server.reply = replying(200, b'{"results": [{"flagged": false}]}')
        await switch(operator, "openai", on=True, reason="a new key")
        done = await flows.until(ada, waiting.id, *flows.FINISHED)
    assert (done.state, done.recipe.provider) == (job_pb2.JOB_STATE_COMPLETED, "local")


@long
async def test_the_example_judges_words(suite: Suite) -> None:
    with example() as address:
        by_grpc(suite, address, models_tasks={"moderation": "paste"})
        await flows.start(suite)
        ada = suite.client("ada")
        refused = await flows.generate(ada, prompt="a nude statue")
        clean = await flows.generate(ada, prompt="a clothed statue")
    assert "by grpc refused the job (nudity): nothing like this" in refused.error_message
    assert clean.state == job_pb2.JOB_STATE_COMPLETED, clean.error_message


@long
async def test_a_server_without_the_task_is_the_operators_affair(
    suite: Suite, tmp_path: Path
) -> None:
    async def refuse(context: Any) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "this server can't do moderation")

    async with serving(Scripted(answering(PASSED), refuse)) as server:
        by_grpc(suite, server.address)
        await flows.start(suite)
        ada = suite.client("ada")
        waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
        assert (waiting.error_class, waiting.wait.what) == ("ACCOUNT", "grpc")
        seen = (await listed(suite.client("root", "admin")))["grpc"]
        assert "can't do moderation; it says that it can do conversion" in seen.reason


@long
@pytest.mark.parametrize("answer", ["html", "a picture"])
async def test_an_answer_without_a_judgement_is_a_fault_and_lets_nothing_pass(
    suite: Suite, tmp_path: Path, answer: str
) -> None:
    html = replying(200, b"<html>", content_type="text/html")
    async with receiving(html) as web, serving(Scripted(answering(*picture(b"x")))) as server:
        if answer == "html":
            by_openai(suite, f"http://127.0.0.1:{web.port}")
        else:
            by_grpc(suite, server.address)
        await flows.start(suite)
        ada = suite.client("ada")
        made = await try_on(ada, tmp_path)
        failed = await flows.until(ada, made.id, *flows.FINISHED)
        assert len(web.requests) + len(server.started) == 3, "one for each attempt"
    assert (failed.state, failed.error_class) == (job_pb2.JOB_STATE_FAILED, "BAD_ANSWER")
    word = "text/html instead of JSON" if answer == "html" else "answered without passed"
    assert word in failed.error_message
    assert failed.credits == 0 and suite.sql(
        "SELECT count(*) FROM assets.assets WHERE kind = 'result'"
    ) == [(0,)]


@long
async def test_what_a_provider_has_taken_already_is_not_judged_again(
    suite: Suite, tmp_path: Path
) -> None:
    ready = asyncio.Event()
    made = pictures.person(tmp_path / "made.jpg", width=512).read_bytes()

    async def slow(_server: Scripted, _id: str) -> AsyncIterator[model_pb2.GetRunResponse]:
        await ready.wait()
        for each in picture(made):
            yield each

    async with serving(Scripted(judging(lambda head, sizes: PASSED, slow))) as server:
        by_grpc(
            suite,
            server.address,
            models_tasks={**MODERATES, "conversion": "paste"},
            providers={"conversion": ["grpc"]},
        )
        await flows.start(suite)
        ada = suite.client("ada")
        conversion = await try_on(ada, tmp_path)
        await server.until(lambda: len(server.asked) == 2)
        await suite.stop_work("conversions")
        ready.set()
        await suite.work("conversions")
        done = await flows.until(ada, conversion.id, *flows.FINISHED)
    assert done.state == job_pb2.JOB_STATE_COMPLETED, done.error_message
    assert [each.task for each in server.started] == ["moderation", "conversion"]
    [call] = await calls_of(ada, job_id=done.id)
    assert call.task == "conversion"


@long
async def test_a_job_that_a_second_provider_takes_was_judged_once(
    suite: Suite, tmp_path: Path
) -> None:
    async with (
        receiving(replying(503, b"{}")) as away,
        serving(Scripted(judging(lambda head, sizes: PASSED))) as server,
    ):
        by_grpc(
            suite,
            server.address,
            providers={"conversion": ["gemini", "local"]},
            gemini_api_key=SecretStr(KEY),
            gemini_url=f"http://127.0.0.1:{away.port}",
        )
        await flows.start(suite)
        ada = suite.client("ada")
        made = await try_on(ada, tmp_path, wait=True)
    assert (made.state, made.recipe.provider) == (job_pb2.JOB_STATE_COMPLETED, "local")
    assert (len(away.requests), len(server.started)) == (1, 1)


@long
async def test_a_call_that_came_to_nothing_is_followed_by_no_unjudged_one(
    suite: Suite, tmp_path: Path
) -> None:
    """An earlier attempt's call is asked for again without a judgement; another provider isn't sent
    the job without one."""
    refuse = asyncio.Event()

    async def fails(_server: Scripted, _id: str) -> AsyncIterator[model_pb2.GetRunResponse]:
        await refuse.wait()
        yield failure(model_pb2.RUN_FAILURE_KIND_BUSY, "no room")

    def judge(head: model_pb2.RunHead, sizes: list[int]) -> model_pb2.GetRunResponse:
        return NUDITY if refuse.is_set() else PASSED

    async with serving(Scripted(judging(judge, fails))) as server:
        by_grpc(
            suite,
            server.address,
            models_tasks={**MODERATES, "conversion": "paste"},
            providers={"conversion": ["grpc", "local"]},
        )
        await flows.start(suite)
        ada = suite.client("ada")
        conversion = await try_on(ada, tmp_path)
        await server.until(lambda: len(server.asked) == 2)
        await suite.stop_work("conversions")
        refuse.set()
        await suite.work("conversions")
        ended = await flows.until(ada, conversion.id, *flows.FINISHED)
    assert (ended.state, ended.error_class) == (job_pb2.JOB_STATE_FAILED, "REFUSED")
    assert [each.task for each in server.started] == ["moderation", "conversion", "moderation"]


@long
async def test_a_person_whose_consent_ended_is_shown_to_no_moderation(
    suite: Suite, tmp_path: Path
) -> None:
    async with serving(Scripted(judging(lambda head, sizes: PASSED))) as server:
        by_grpc(suite, server.address, consent_required=["conversion"])
        await flows.start(suite, working=False)
        ada = suite.client("ada")
        user = await flows.person(ada, tmp_path)
        consent = await flows.consent(ada, user)
        conversion = await flows.convert(ada, user, await flows.cloth(ada, tmp_path))
        expire(suite, consent.id)
        await suite.work("conversions")
        failed = await flows.until(ada, conversion.id, *flows.FINISHED)
    assert (failed.error_class, server.started) == ("CONSENT", [])


@long
async def test_a_cancelled_job_waits_for_no_moderation(suite: Suite, tmp_path: Path) -> None:
    async with receiving(replying(503, b"{}")) as server:
        by_openai(suite, f"http://127.0.0.1:{server.port}")
        await flows.start(suite)
        ada = suite.client("ada")
        waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
        assert waiting.error_class == "UNAVAILABLE"
        request = conversion_pb2.CancelConversionRequest(conversion_id=waiting.id)
        await flows.conversions(ada).CancelConversion(request)
        done = await flows.until(ada, waiting.id, *flows.FINISHED)
    assert done.state == job_pb2.JOB_STATE_CANCELLED
    assert (await flows.balance(ada)).reserved == 0


def judged(**result: Any) -> bytes:
    return json.dumps({"id": "modr-1", "model": "omni", "results": [result]}).encode()


CLEAN = judged(flagged=False, categories={"violence": False})


@pytest.fixture
async def server() -> AsyncIterator[Receiver]:
    async with receiving(replying(200, CLEAN)) as found:
        yield found


@pytest.fixture
async def moderator(server: Receiver, imaging_pool: ImagingPool) -> AsyncIterator[openai.OpenAI]:
    settings = Settings(
        moderation=["openai"],
        openai_api_key=SecretStr(KEY),
        openai_url=f"http://127.0.0.1:{server.port}/v1",
    )
    provider = openai.OpenAI(settings, imaging_pool, 5)
    yield provider
    await provider.close()


async def test_openai_is_sent_words_and_pictures_one_by_one(
    server: Receiver, moderator: openai.OpenAI, shown: list[InputPicture], tmp_path: Path
) -> None:
    facts = {"product": {"name": "Kleid für den Hafen"}}
    await moderator.moderate(ModerationRequest("relaxed", "relaxed", facts, shown, tmp_path))
    text, user, cloth = judged_by(server)
    assert {each["model"] for each in (text, user, cloth)} == {"omni-moderation-latest"}
    words = 'relaxed\n\n{"product": {"name": "Kleid für den Hafen"}}'
    assert text["input"] == [{"type": "text", "text": words}]
    for each in (user, cloth):
        [part] = each["input"]
        kind, _, content = part["image_url"]["url"].partition(",")
        assert (part["type"], kind) == ("image_url", "data:image/jpeg;base64")
        assert base64.b64decode(content).startswith(b"\xff\xd8\xff")
    assert all(each.headers["authorization"] == f"Bearer {KEY}" for each in server.requests)


async def test_openai_judges_long_words_whole(
    server: Receiver, moderator: openai.OpenAI, tmp_path: Path
) -> None:
    prompt = "".join(f"{number} " for number in range(9000))
    await moderator.moderate(ModerationRequest(prompt, "", {}, [], tmp_path))
    parts = [each["input"][0]["text"] for each in judged_by(server)]
    assert len(parts) == 3 and "".join(parts) == prompt


@pytest.mark.parametrize(
    ("status", "body", "error_class", "category", "word"),
    [
        (
            200,
            judged(flagged=True, categories={"violence": True, "hate": False, "sexual": True}),
            "REFUSED",
            "sexual, violence",
            "picture 1 (user) is flagged",
        ),
        (200, judged(flagged=True), "REFUSED", "", "is flagged"),
        (200, b'{"results": []}', "BAD_ANSWER", "", "without a judgement"),
        (200, judged(flagged="no"), "BAD_ANSWER", "", "without a judgement"),
        (200, b'{"results": {"flagged": false}}', "BAD_ANSWER", "", "without a judgement"),
        (200, b'{"results": [null]}', "BAD_ANSWER", "", "without a judgement"),
        (200, b"[]", "BAD_ANSWER", "", "without a judgement"),
        (404, b'{"error": {"message": "no such model"}}', "ACCOUNT", "", "no such model"),
        (429, b'{"error": {"code": "rate_limit_exceeded"}}', "RATE_LIMITED", "", "429"),
        (504, b"<html>", "UNAVAILABLE", "", "504"),
    ],
)
async def test_what_openai_answers_decides_what_becomes_of_the_job(
    server: Receiver,
    moderator: openai.OpenAI,
    shown: list[InputPicture],
    tmp_path: Path,
    status: int,
    body: bytes,
    error_class: str,
    category: str,
    word: str,
) -> None:
    server.reply = replying(status, body)
    with pytest.raises(ProviderFailed) as failed:
        await moderator.moderate(ModerationRequest("", "", {}, shown, tmp_path))
    found = failed.value
    assert (found.error_class, found.category) == (error_class, category)
    assert word in found.message and found.charge == "none"
    assert len(server.requests) == 1, "the second picture isn't sent any more"
