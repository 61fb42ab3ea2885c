"""Hosted providers: what they are asked, what becomes of their answers, and what a failure of
theirs does. The server is aimock, which nobody here wrote; only answers that it can't give come
from a socket of the test."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import analysis_pb2, conversion_pb2, job_pb2, provider_pb2_grpc
from atelier.conversions.v1 import provider_pb2 as pb
from pydantic import SecretStr

from shared.rpc.protos import plain
from shared.telemetry import METRICS
from tests.assets.flows import get, request_id
from tests.calls import refused
from tests.conversions import aimock, flows
from tests.conversions import local_pictures as pictures
from tests.conversions.aimock import Aimock
from tests.receiver import Receiver, Reply, receiving, replying
from tests.suite import Client, Suite

pytestmark = [pytest.mark.long, pytest.mark.needs_node]

KEY = "a-key-that-must-stay-here"
TRY_ON = "Dress the person"  # the beginning of what a model is told


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aimock]:
    with aimock.running(tmp_path_factory.mktemp("aimock")) as server:
        yield server


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.person(tmp_path_factory.mktemp("pictures") / "made.jpg", width=768)


def providers(client: Client) -> Any:
    return client.stub(provider_pb2_grpc.ProviderServiceStub)


def configure(suite: Suite, url: str, table: dict[str, list[str]], **more: Any) -> None:
    suite.overrides |= {
        "providers": table,
        "gemini_api_key": SecretStr(KEY),
        "gemini_url": url,
        "openai_api_key": SecretStr(KEY),
        "openai_url": f"{url}/v1",
        **more,
    }


async def try_on(client: Client, directory: Path, **fields: Any) -> conversion_pb2.Conversion:
    user = await flows.person(client, directory)
    return await flows.convert(client, user, await flows.cloth(client, directory), **fields)


async def calls_of(client: Client, **fields: Any) -> list[pb.ProviderCall]:
    """Returns the recorded calls, newest first."""
    answer = await providers(client).ListProviderCalls(pb.ListProviderCallsRequest(**fields))
    return list(answer.calls)


async def listed(client: Client) -> dict[str, pb.Provider]:
    answer = await providers(client).ListProviders(pb.ListProvidersRequest())
    return {each.name: each for each in answer.providers}


async def switch(client: Client, name: str, *, on: bool, reason: str = "a test") -> pb.Provider:
    request = pb.SwitchProviderRequest(request_id=request_id(), provider=name, on=on, reason=reason)
    provider: pb.Provider = (await providers(client).SwitchProvider(request)).provider
    return provider


async def until_waiting(client: Client, conversion_id: str) -> conversion_pb2.Conversion:
    async with asyncio.timeout(20):
        while True:
            conversion = await flows.read(client, conversion_id)
            if conversion.HasField("wait"):
                return conversion
            assert conversion.state not in flows.FINISHED, conversion.error_message
            await asyncio.sleep(0.05)


async def test_a_try_on_by_gemini_is_kept_with_recipe_source_and_record(
    suite: Suite, mock: Aimock, drawn: Path, tmp_path: Path
) -> None:
    mock.answers(aimock.gemini_picture(TRY_ON, drawn))
    configure(suite, mock.url, {"conversion": ["gemini"]})
    await flows.start(suite)
    ada = suite.client("ada")
    made = await try_on(ada, tmp_path, style_name="relaxed", wait=True)

    assert made.state == job_pb2.JOB_STATE_COMPLETED, made.error_message
    recipe = made.recipe
    assert (recipe.provider, recipe.model) == ("gemini", "gemini-nano-banana-2.1")
    assert "relaxed" in plain(recipe.parameters)["instruction"]
    assert [each.role for each in recipe.inputs] == ["user", "cloth"]
    asset = await get(ada, made.result_asset_id)
    assert asset.digital_source_type == "compositeWithTrainedAlgorithmicMedia"
    assert (asset.provenance.model, asset.mime_type) == (recipe.model, "image/jpeg")
    assert 0 < made.confidence <= 0.5, "nobody looked at the picture"

    counted = {"provider": "gemini", "task": "conversion", "outcome": "answered"}
    assert METRICS.get_sample_value("atelier_provider_calls_total", counted), "operators see it"
    [call] = await calls_of(ada, job_id=made.id)
    assert (call.state, call.charge) == (
        pb.PROVIDER_CALL_STATE_ANSWERED,
        pb.PROVIDER_CHARGE_CHARGED,
    )
    assert (call.provider, call.model, call.task) == ("gemini", recipe.model, "conversion")
    assert "totalTokenCount" in call.usage
    assert await calls_of(suite.client("eve")) == []

    [asked] = mock.requests(":generateContent")
    assert asked["path"].startswith("/v1beta/models/gemini-nano-banana-2.1")


async def test_pictures_go_to_openai_as_files_and_settings_as_its_words(
    suite: Suite, mock: Aimock, drawn: Path, tmp_path: Path
) -> None:
    mock.answers(aimock.picture(TRY_ON, drawn), aimock.picture("harbour", drawn))
    configure(suite, mock.url, {"conversion": ["openai"], "generation": ["openai"]})
    await flows.start(suite)
    ada = suite.client("ada")
    worn = await try_on(ada, tmp_path, wait=True)
    assert (worn.state, worn.recipe.provider) == (job_pb2.JOB_STATE_COMPLETED, "openai")

    made = await flows.generate(
        ada, prompt="a harbour at dawn", aspect_ratio="16:9", quality="high", format="webp"
    )
    assert made.state == job_pb2.JOB_STATE_COMPLETED, made.error_message
    asked = made.recipe.parameters
    assert (asked["size"], asked["quality"], asked["output_format"]) == (
        "1024x576",
        "high",
        "webp",
    )
    asset = await get(ada, made.result_asset_id)
    assert asset.digital_source_type == "trainedAlgorithmicMedia"
    assert (asset.mime_type, asset.kind) == ("image/webp", asset_pb2.ASSET_KIND_GENERATED)
    assert [each["path"] for each in mock.requests("/images/")] == [
        "/v1/images/edits",
        "/v1/images/generations",
    ]


async def test_a_busy_provider_is_left_alone_for_as_long_as_it_says_and_jobs_wait(
    suite: Suite, mock: Aimock, drawn: Path, tmp_path: Path
) -> None:
    mock.answers(aimock.gemini_picture(TRY_ON, drawn))
    mock.chaos(rateLimitRate=1)
    configure(suite, mock.url, {"conversion": ["gemini"]})
    await flows.start(suite)
    ada, operator = suite.client("ada"), suite.client("root", "admin")
    waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
    assert (waiting.error_class, waiting.wait.what) == ("RATE_LIMITED", "gemini")
    assert (await listed(operator))["gemini"].state == pb.PROVIDER_STATE_PAUSED
    [call] = await calls_of(ada, job_id=waiting.id)
    assert (call.state, call.charge) == (pb.PROVIDER_CALL_STATE_FAILED, pb.PROVIDER_CHARGE_NONE)

    mock.chaos()
    made = await flows.until(ada, waiting.id, *flows.FINISHED)
    assert made.state == job_pb2.JOB_STATE_COMPLETED, made.error_message
    gemini = (await listed(operator))["gemini"]
    assert (gemini.state, gemini.failures) == (pb.PROVIDER_STATE_READY, 0)


async def test_a_refusal_is_final_free_and_keeps_the_providers_word(
    suite: Suite, mock: Aimock, tmp_path: Path
) -> None:
    blocked = {"type": "image_generation_user_error", "code": "moderation_blocked"}
    mock.answers(aimock.error(TRY_ON, 400, "Your request was rejected", **blocked))
    configure(suite, mock.url, {"conversion": ["openai", "local"]})
    await flows.start(suite)
    ada = suite.client("ada")
    made = await try_on(ada, tmp_path, wait=True)
    assert (made.state, made.error_class, made.credits) == (
        job_pb2.JOB_STATE_FAILED,
        "REFUSED",
        0,
    )
    assert "Your request was rejected" in made.error_message
    [call] = await calls_of(ada)
    assert (call.category, call.charge) == ("moderation_blocked", pb.PROVIDER_CHARGE_NONE)
    assert len(mock.requests("/images/")) == 1, "another attempt would be refused, too"


async def test_the_next_provider_is_asked_in_the_same_attempt(
    suite: Suite, mock: Aimock, drawn: Path, tmp_path: Path
) -> None:
    mock.answers(
        {**aimock.error(TRY_ON, 503, "overloaded"), "match": {"model": "gemini-nano-banana-2.1"}},
        aimock.picture(TRY_ON, drawn),
    )
    configure(suite, mock.url, {"conversion": ["gemini", "openai"]})
    await flows.start(suite)
    ada = suite.client("ada")
    made = await try_on(ada, tmp_path, wait=True)
    assert (made.state, made.recipe.provider) == (job_pb2.JOB_STATE_COMPLETED, "openai")
    later, first = await calls_of(ada, job_id=made.id)
    assert (first.provider, first.error_class) == ("gemini", "UNAVAILABLE")
    assert (later.provider, later.charge) == ("openai", pb.PROVIDER_CHARGE_CHARGED)
    assert first.attempt_id == later.attempt_id
    assert len(await flows.attempts_of(ada, made.id)) == 1


async def test_a_refused_key_switches_the_provider_off_until_an_operator_acts(
    suite: Suite, mock: Aimock, drawn: Path, tmp_path: Path
) -> None:
    mock.answers(aimock.error(TRY_ON, 401, f"Incorrect API key provided: {KEY}"))
    configure(suite, mock.url, {"conversion": ["openai"]})
    await flows.start(suite)
    ada, operator = suite.client("ada"), suite.client("root", "admin")
    waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
    assert (waiting.error_class, waiting.wait.what) == ("ACCOUNT", "openai")
    assert "Incorrect" not in waiting.error_message, "the account is the operator's affair"

    seen = (await listed(operator))["openai"]
    assert (seen.state, seen.switched_by) == (pb.PROVIDER_STATE_SWITCHED_OFF, "atelier")
    assert "Incorrect API key provided: [key]" in seen.reason
    request = job_pb2.ExplainJobRequest(job_id=waiting.id)
    said = await flows.jobs(ada).ExplainJob(request)
    [waits] = [each for each in said.answers if each.question == "does it wait for something?"]
    assert waits.answer.startswith("yes, for openai since ")
    [about] = [each for each in said.answers if each.question == "is its provider ready?"]
    assert (about.ok, about.answer) == (False, "asked in this order: openai (switched off)")
    assert "an operator" in about.next_step
    shown = (await listed(ada))["openai"]
    assert (shown.state, shown.reason) == (pb.PROVIDER_STATE_SWITCHED_OFF, "")

    asked = len(mock.requests())
    await until_waiting(ada, (await try_on(ada, tmp_path)).id)
    assert len(mock.requests()) == asked, "nothing is sent to a provider that is switched off"

    mock.answers(aimock.picture(TRY_ON, drawn))
    on = await switch(operator, "openai", on=True, reason="a new key")
    assert (on.state, on.switched_by) == (pb.PROVIDER_STATE_READY, "root")
    made = await flows.until(ada, waiting.id, *flows.FINISHED)
    assert made.state == job_pb2.JOB_STATE_COMPLETED, made.error_message


@asynccontextmanager
async def socket(suite: Suite, reply: Reply, **settings: Any) -> AsyncIterator[Receiver]:
    """A provider `openai` that replies as the test says."""
    async with receiving(reply) as server:
        url = f"http://127.0.0.1:{server.port}"
        configure(suite, url, {"conversion": ["openai"]}, **settings)
        await flows.start(suite)
        yield server


def b64(content: bytes) -> bytes:
    import base64

    return json.dumps({"data": [{"b64_json": base64.b64encode(content).decode()}]}).encode()


async def silence(_request: Any, _writer: Any) -> None:
    await asyncio.sleep(30)


async def endless(_request: Any, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    try:
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
    except OSError:
        return


@pytest.mark.parametrize(
    ("reply", "error_class", "word"),
    [
        pytest.param(
            replying(200, b"<html>", content_type="text/html"), "BAD_ANSWER", "text/html", id="html"
        ),
        pytest.param(replying(200, b'{"data": []}'), "BAD_ANSWER", "without a picture", id="none"),
        pytest.param(replying(200, b64(b"no picture")), "BAD_ANSWER", "not a picture", id="text"),
        pytest.param(
            replying(200, b64(b"\xff\xd8\xff\xe0" + bytes(45_000_000))),
            "BAD_ANSWER",
            "not a picture",
            id="45 MB",
        ),
        pytest.param(endless, "BAD_ANSWER", "more than", id="endless"),
        pytest.param(silence, "TIMED_OUT", "2 s", id="silence"),
    ],
)
async def test_an_answer_without_a_result_is_a_fault_that_may_have_cost_money(
    suite: Suite, tmp_path: Path, reply: Reply, error_class: str, word: str
) -> None:
    seconds = 2.0 if reply is silence else 60.0
    async with socket(suite, reply, provider_seconds={"openai": seconds}) as server:
        ada = suite.client("ada")
        made = await try_on(ada, tmp_path)
        failed = await flows.until(ada, made.id, *flows.FINISHED, seconds=60)
    assert (failed.state, failed.error_class, failed.credits) == (
        job_pb2.JOB_STATE_FAILED,
        error_class,
        0,
    )
    assert word in failed.error_message
    calls = await calls_of(ada, job_id=made.id)
    assert len(calls) == len(server.requests) == 3, "one call for each attempt"
    assert all(call.charge != pb.PROVIDER_CHARGE_NONE for call in calls)
    assert suite.sql("SELECT count(*) FROM assets.assets WHERE kind = 'result'") == [(0,)]


async def test_a_provider_that_is_away_is_waited_for_and_charges_nothing(
    suite: Suite, tmp_path: Path
) -> None:
    async with socket(suite, silence) as server:
        pass
    ada = suite.client("ada")
    waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
    assert (waiting.error_class, waiting.wait.what) == ("UNAVAILABLE", "openai")
    assert server.requests == []
    assert all(call.charge == pb.PROVIDER_CHARGE_NONE for call in await calls_of(ada))


async def test_a_call_whose_worker_vanished_is_noted_as_possibly_charged(
    suite: Suite, mock: Aimock, drawn: Path, tmp_path: Path
) -> None:
    async with socket(suite, silence) as server:
        ada = suite.client("ada")
        made = await try_on(ada, tmp_path)
        while not server.requests:
            await asyncio.sleep(0.05)
        await suite.stop_work("conversions")
    [call] = await calls_of(ada, job_id=made.id)
    assert (call.state, call.charge) == (
        pb.PROVIDER_CALL_STATE_BEGUN,
        pb.PROVIDER_CHARGE_POSSIBLE,
    )

    mock.answers(aimock.picture(TRY_ON, drawn))
    configure(suite, mock.url, {"conversion": ["openai"]})
    await suite.work("conversions")
    done = await flows.until(ada, made.id, *flows.FINISHED)
    assert done.state == job_pb2.JOB_STATE_COMPLETED, done.error_message
    later, first = await calls_of(ada, job_id=made.id)
    assert (first.id, first.state, first.charge) == (
        call.id,
        pb.PROVIDER_CALL_STATE_LOST,
        pb.PROVIDER_CHARGE_POSSIBLE,
    )
    assert later.charge == pb.PROVIDER_CHARGE_CHARGED


async def test_a_request_may_name_a_provider_that_can_do_it_and_no_other(
    suite: Suite, mock: Aimock, drawn: Path, tmp_path: Path
) -> None:
    mock.answers(aimock.picture(TRY_ON, drawn))
    configure(suite, mock.url, {})
    await flows.start(suite)
    ada = suite.client("ada")
    made = await try_on(ada, tmp_path, provider="openai", wait=True)
    assert (made.provider, made.recipe.provider) == ("openai", "openai")
    source = await flows.put(ada, drawn, asset_pb2.ASSET_KIND_REFERENCE)
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await try_on(ada, tmp_path, provider="dalle")
    assert unknown.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "it has local, gemini, openai" in (unknown.value.details() or "")
    with pytest.raises(grpc.aio.AioRpcError) as unable:
        await flows.generate(ada, task=2, source_asset_id=source, provider="gemini")
    assert "generation.closeup" in (unable.value.details() or "")
    assert (await flows.generate(ada, task=2, source_asset_id=source)).recipe.provider == "local"


async def test_an_owner_may_have_a_route_of_its_own(
    suite: Suite, mock: Aimock, drawn: Path, tmp_path: Path
) -> None:
    mock.answers(aimock.picture(TRY_ON, drawn))
    configure(suite, mock.url, {"conversion": ["local"]})
    await flows.start(suite)
    ada, eve, operator = suite.client("ada"), suite.client("eve"), suite.client("root", "admin")

    def route(*names: str, task: str = "conversion") -> pb.SetProviderRouteRequest:
        return pb.SetProviderRouteRequest(
            request_id=request_id(), owner="user:ada", task=task, providers=names
        )

    answer = await providers(operator).SetProviderRoute(route("openai"))
    assert (answer.route.set_by, list(answer.route.providers)) == ("root", ["openai"])
    assert (await try_on(ada, tmp_path, wait=True)).recipe.provider == "openai"
    assert (await try_on(eve, tmp_path, wait=True)).recipe.provider == "local"
    owned = pb.ListProviderRoutesRequest(owner="user:ada")
    assert list((await providers(operator).ListProviderRoutes(owned)).routes) == [answer.route]

    await providers(operator).SetProviderRoute(route())
    assert not (await providers(operator).ListProviderRoutes(owned)).routes
    assert (await try_on(ada, tmp_path, wait=True)).recipe.provider == "local"
    await refused(
        providers(operator).SetProviderRoute(route("fashion")),
        grpc.StatusCode.INVALID_ARGUMENT,
        "fashion",
    )
    await refused(
        providers(operator).SetProviderRoute(route("gemini", task="painting")),
        grpc.StatusCode.INVALID_ARGUMENT,
        "painting",
    )
    await refused(
        providers(ada).SetProviderRoute(route("openai")), grpc.StatusCode.PERMISSION_DENIED
    )


FOUND: dict[str, Any] = {
    "name": {
        "value": "Harbour coat",
        "confidence": 0.8,
        "evidence": "the hang tag in the picture",
        "picture": 1,
    },
    "model": None,
    "condition": {"value": "new", "confidence": 0.6, "evidence": "no wear to see", "picture": 1},
    "condition_details": None,
    "categories": {
        "value": ["apparel", "coat"],
        "confidence": 0.9,
        "evidence": "its cut",
        "picture": 1,
    },
    "brands": {"value": ["Tidewick"], "confidence": 0.7, "evidence": "the label", "picture": 1},
}


@pytest.mark.parametrize("provider", ["gemini", "openai"])
async def test_what_a_model_found_is_kept_beside_what_was_stated(
    suite: Suite, mock: Aimock, drawn: Path, provider: str
) -> None:
    mock.answers(aimock.words("Look at the pictures", FOUND))
    configure(suite, mock.url, {"analysis": [provider]})
    await flows.start(suite)
    ada = suite.client("ada")
    photo = await flows.put(ada, drawn, asset_pb2.ASSET_KIND_PRODUCT)
    facts = {"product": {"brand": "Eastbay", "category": "apparel"}}
    made = await flows.analyse(ada, (photo, "front"), facts=facts)

    assert made.state == job_pb2.JOB_STATE_COMPLETED, made.error_message
    assert (made.recipe.provider, made.credits) == (provider, 1)
    assert made.result["name"] == "Harbour coat"
    assert plain(made.result)["brands"] == ["Eastbay"], "what was stated stays"
    by_source = {(each.key, each.source): each for each in made.findings}
    found = by_source["brands", analysis_pb2.VALUE_SOURCE_FOUND]
    assert (found.disagrees, found.confidence, found.picture) == (True, 0.7, 1)
    assert found.note == "the label" and found.model == made.recipe.model
    stated = by_source["brands", analysis_pb2.VALUE_SOURCE_SUPPLIED]
    assert (stated.disagrees, stated.confidence) == (False, 1)
    assert ("colours", analysis_pb2.VALUE_SOURCE_MEASURED) in by_source
    [known] = [each for each in made.evidence if each.name == "completeness"]
    # Of name, model, brand, category and condition two are stated and two found.
    assert known.value == pytest.approx((0.8 + 0 + 1 + 1 + 0.6) / 5, abs=0.001)
    assert made.confidence <= known.value


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ({**FOUND, "price": 12}, "price"),
        ({**FOUND, "name": {**FOUND["name"], "confidence": 7}}, "must be 0 to 1"),
        ("I see a coat.", "Invalid JSON"),
    ],
    ids=["a key too many", "a confidence of 7", "words"],
)
async def test_findings_that_break_the_schema_are_a_fault(
    suite: Suite, mock: Aimock, answer: Any, word: str
) -> None:
    mock.answers(aimock.words("Look at the pictures", answer))
    configure(suite, mock.url, {"analysis": ["openai"]})
    await flows.start(suite)
    ada = suite.client("ada")
    made = await flows.analyse(ada)
    assert (made.state, made.error_class) == (job_pb2.JOB_STATE_FAILED, "BAD_ANSWER")
    assert word in made.error_message and made.credits == 0
