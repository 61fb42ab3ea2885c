"""Provider `grpc`: a model server of one's own. The example serves as a process; answers that it
doesn't give come from a server of the test on a real socket."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import analysis_pb2, job_pb2
from atelier.conversions.v1 import provider_pb2 as pb
from atelier.models.v1 import model_pb2, model_pb2_grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from pydantic import SecretStr, ValidationError

from services.conversions.providers import registry
from shared.settings import load
from tests.assets.flows import get
from tests.calls import aiter_of, refusal_of, refused
from tests.conversions import flows, model_servers
from tests.conversions import local_pictures as pictures
from tests.conversions.model_servers import Scripted, answering, failure, picture, serving
from tests.conversions.test_providers import calls_of, listed, try_on, until_waiting
from tests.shared.test_outbound import certificate
from tests.suite import Suite

pytestmark = pytest.mark.long

TOKEN = "a-token-that-must-stay-here"
TASKS = {
    "conversion": "paste",
    "generation.image": "paste",
    "analysis.product": "paste",
}
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PROGRESS = model_pb2.GetRunResponse(progress=model_pb2.RunProgress(fraction=0.5))


@pytest.fixture(scope="module")
def example() -> Iterator[str]:
    with model_servers.example(TOKEN) as address:
        yield address


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("pictures")
    return pictures.person(directory / "made.jpg", width=768).read_bytes()


def configure(suite: Suite, address: str, **more: Any) -> None:
    suite.overrides |= {
        "providers": {"conversion": ["grpc"], "generation": ["grpc"], "analysis": ["grpc"]},
        "models_address": address,
        "models_tasks": TASKS,
        "models_token": SecretStr(TOKEN),
        **more,
    }


async def test_the_example_does_a_try_on_a_picture_and_an_analysis(
    suite: Suite, example: str, tmp_path: Path
) -> None:
    configure(suite, example)
    await flows.start(suite)
    ada = suite.client("ada")
    worn = await try_on(ada, tmp_path, wait=True)

    assert worn.state == job_pb2.JOB_STATE_COMPLETED, worn.error_message
    recipe = worn.recipe
    assert (recipe.provider, recipe.model, recipe.model_version) == ("grpc", "paste", "1")
    [likeness] = [each for each in worn.evidence if each.name == "likeness"]
    assert likeness.value == pytest.approx(0.2) and "nobody looked" in likeness.note
    assert 0 < worn.confidence <= 0.2
    [call] = await calls_of(ada, job_id=worn.id)
    assert (call.state, call.charge) == (pb.PROVIDER_CALL_STATE_ANSWERED, pb.PROVIDER_CHARGE_NONE)
    assert call.handle == call.id and "seconds" in call.usage

    made = await flows.generate(ada, prompt="a harbour", aspect_ratio="16:9", seed=7)
    again = await flows.generate(ada, prompt="a harbour", aspect_ratio="16:9", seed=7)
    assert made.state == job_pb2.JOB_STATE_COMPLETED, made.error_message
    assert (made.recipe.seed, made.recipe.parameters["steps"]) == (7, 8)
    asset, same = await get(ada, made.result_asset_id), await get(ada, again.result_asset_id)
    assert (asset.width, asset.height, asset.sha256) == (1024, 576, same.sha256)
    assert asset.digital_source_type == "trainedAlgorithmicMedia"

    photo = await flows.put(
        ada, pictures.garment(tmp_path / "blue.jpg", width=400), asset_pb2.ASSET_KIND_PRODUCT
    )
    known = await flows.analyse(ada, (photo, "front"))
    assert known.state == job_pb2.JOB_STATE_COMPLETED, known.error_message
    [found] = [each for each in known.findings if each.key == "name"]
    assert (found.source, found.model, found.picture) == (
        analysis_pb2.VALUE_SOURCE_FOUND,
        "paste",
        1,
    )
    assert str(known.result["name"]).endswith(" product")


async def test_a_refusal_of_the_example_is_final_and_says_why(suite: Suite, example: str) -> None:
    configure(suite, example)
    await flows.start(suite)
    ada = suite.client("ada")
    made = await flows.generate(ada, prompt="a nude statue")
    assert (made.state, made.error_class, made.credits) == (
        job_pb2.JOB_STATE_FAILED,
        "REFUSED",
        0,
    )
    assert "ask for something else" in made.error_message
    [call] = await calls_of(ada)
    assert (call.category, call.charge) == ("nudity", pb.PROVIDER_CHARGE_NONE)


async def test_a_wrong_token_switches_the_provider_off_and_is_shown_to_nobody(
    suite: Suite, example: str, tmp_path: Path
) -> None:
    configure(suite, example, models_token=SecretStr("another"))
    await flows.start(suite)
    ada, operator = suite.client("ada"), suite.client("root", "admin")
    waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
    assert (waiting.error_class, waiting.wait.what) == ("ACCOUNT", "grpc")
    seen = (await listed(operator))["grpc"]
    assert seen.state == pb.PROVIDER_STATE_SWITCHED_OFF
    assert "UNAUTHENTICATED: the token is missing or wrong" in seen.reason


async def test_pictures_larger_than_a_message_go_there_and_back_in_chunks(
    suite: Suite, tmp_path: Path
) -> None:
    from PIL import Image

    noise = Image.frombytes("RGB", (1800, 1800), random.Random(1).randbytes(1800 * 1800 * 3))
    noise.save(tmp_path / "noise.jpg", quality=95)
    noise.save(tmp_path / "noise.png")
    content = (tmp_path / "noise.png").read_bytes()
    assert len(content) > 8 << 20
    async with serving(Scripted(answering(*picture(content)))) as server:
        configure(suite, server.address)
        await flows.start(suite)
        ada = suite.client("ada")
        user = await flows.put(ada, tmp_path / "noise.jpg", asset_pb2.ASSET_KIND_USER)
        cloth = await flows.cloth(ada, tmp_path)
        made = await flows.convert(ada, user, cloth, wait=True)
    assert made.state == job_pb2.JOB_STATE_COMPLETED, made.error_message
    [head], [sizes] = server.started, server.received
    assert [each.size_bytes for each in head.pictures] == sizes and sizes[0] > 1 << 20
    assert [each.role for each in head.pictures] == ["user", "cloth"]
    assert head.instruction.startswith("Dress the person")


async def test_a_worker_that_comes_back_asks_for_the_run_and_starts_none(
    suite: Suite, drawn: bytes, tmp_path: Path
) -> None:
    ready = asyncio.Event()

    async def slow(_server: Scripted, _id: str) -> AsyncIterator[model_pb2.GetRunResponse]:
        yield PROGRESS
        await ready.wait()
        for each in picture(drawn):
            yield each

    async with serving(Scripted(slow)) as server:
        configure(suite, server.address)
        await flows.start(suite)
        ada = suite.client("ada")
        made = await try_on(ada, tmp_path)
        await server.until(lambda: server.asked)
        await suite.stop_work("conversions")
        ready.set()
        await suite.work("conversions")
        done = await flows.until(ada, made.id, *flows.FINISHED)
    assert done.state == job_pb2.JOB_STATE_COMPLETED, done.error_message
    assert len(server.started) == 1 and len(server.asked) == 2
    [call] = await calls_of(ada, job_id=made.id)
    assert (call.id, call.charge) == (server.started[0].run_id, pb.PROVIDER_CHARGE_NONE)


async def test_a_server_that_comes_back_without_memory_is_given_the_same_run_again(
    suite: Suite, drawn: bytes, tmp_path: Path
) -> None:
    async def endless(_server: Scripted, _id: str) -> AsyncIterator[model_pb2.GetRunResponse]:
        yield PROGRESS
        await asyncio.sleep(60)

    async with serving(Scripted(endless)) as first:
        configure(suite, first.address)
        await flows.start(suite)
        ada = suite.client("ada")
        made = await try_on(ada, tmp_path)
        await first.until(lambda: first.asked)
    port = int(first.address.rpartition(":")[2])
    async with serving(Scripted(answering(*picture(drawn))), port) as second:
        done = await flows.until(ada, made.id, *flows.FINISHED)
    assert done.state == job_pb2.JOB_STATE_COMPLETED, done.error_message
    assert [each.run_id for each in second.started] == [first.started[0].run_id]
    assert len(await flows.attempts_of(ada, made.id)) == 1


async def test_a_busy_server_is_left_alone_for_as_long_as_it_says(
    suite: Suite, drawn: bytes, tmp_path: Path
) -> None:
    async def busy(context: Any) -> None:
        status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="16 runs wait")
        pause = error_details_pb2.RetryInfo()
        pause.retry_delay.FromSeconds(2)
        status.details.add().Pack(pause)
        details = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, status.message, details)

    async with serving(Scripted(answering(*picture(drawn)), busy)) as server:
        configure(suite, server.address)
        await flows.start(suite)
        ada = suite.client("ada")
        waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
        began = time.monotonic()
        assert (waiting.error_class, waiting.wait.what) == ("RATE_LIMITED", "grpc")
        server.refuse = None
        done = await flows.until(ada, waiting.id, *flows.FINISHED)
    assert done.state == job_pb2.JOB_STATE_COMPLETED, done.error_message
    assert time.monotonic() - began > 1


async def test_a_run_that_takes_too_long_is_given_up_at_the_server(
    suite: Suite, tmp_path: Path
) -> None:
    async def endless(_server: Scripted, _id: str) -> AsyncIterator[model_pb2.GetRunResponse]:
        while True:
            yield PROGRESS
            await asyncio.sleep(0.1)

    async with serving(Scripted(endless)) as server:
        configure(suite, server.address, provider_seconds={"grpc": 0.5})
        await flows.start(suite)
        ada = suite.client("ada")
        failed = await flows.until(ada, (await try_on(ada, tmp_path)).id, *flows.FINISHED)
    assert failed.error_class == "TIMED_OUT" and "0.5 s" in failed.error_message
    assert server.cancelled == [each.run_id for each in server.started] and server.cancelled
    calls = await calls_of(ada, job_id=failed.id)
    assert {each.charge for each in calls} == {pb.PROVIDER_CHARGE_NONE}


async def test_a_cancelled_job_gives_its_run_up_and_owes_nothing(
    suite: Suite, tmp_path: Path
) -> None:
    async def endless(_server: Scripted, _id: str) -> AsyncIterator[model_pb2.GetRunResponse]:
        yield PROGRESS
        await asyncio.sleep(60)

    from atelier.conversions.v1 import conversion_pb2

    async with serving(Scripted(endless)) as server:
        configure(suite, server.address)
        await flows.start(suite)
        ada = suite.client("ada")
        made = await try_on(ada, tmp_path)
        await server.until(lambda: server.asked)
        request = conversion_pb2.CancelConversionRequest(conversion_id=made.id)
        await flows.conversions(ada).CancelConversion(request)
        await server.until(lambda: server.cancelled)
    [call] = await calls_of(ada, job_id=made.id)
    assert (call.state, call.charge) == (pb.PROVIDER_CALL_STATE_LOST, pb.PROVIDER_CHARGE_NONE)


async def test_what_a_run_cost_is_recorded_if_the_server_says_so(
    suite: Suite, drawn: bytes, tmp_path: Path
) -> None:
    answers = picture(drawn, charged=True, usage={"euro": 0.04})
    async with serving(Scripted(answering(*answers))) as server:
        configure(suite, server.address)
        await flows.start(suite)
        ada = suite.client("ada")
        made = await try_on(ada, tmp_path, wait=True)
    [call] = await calls_of(ada, job_id=made.id)
    assert (call.charge, call.usage["euro"]) == (pb.PROVIDER_CHARGE_CHARGED, 0.04)


async def test_the_example_knows_a_run_again_and_takes_no_more_than_it_can_keep() -> None:
    def parts(run_id: str, size: int = 0, **fields: Any) -> Any:
        given = [model_pb2.RunPicture(role="reference", size_bytes=size)] if size else []
        head = model_pb2.RunHead(run_id=run_id, pictures=given, **fields)
        return aiter_of([model_pb2.StartRunRequest(head=head)])

    image: dict[str, Any] = {"task": "generation.image", "seed": 1, "resolution": "2K"}
    first, other = str(uuid.uuid4()), str(uuid.uuid4())
    with model_servers.example() as address:
        async with grpc.aio.insecure_channel(address) as channel:
            server: Any = model_pb2_grpc.ModelServiceStub(channel)
            await refused(server.GetRun(model_pb2.GetRunRequest(run_id=first)), NOT_FOUND)
            await refused(server.StartRun(parts(first, task="analysis.seo")), NOT_FOUND)
            lacking = server.StartRun(parts(first, size=9, **image))
            await refused(lacking, grpc.StatusCode.INVALID_ARGUMENT, "sizes")

            for _ in range(2):
                await server.StartRun(parts(first, **image))
            asked = model_pb2.GetRunRequest(run_id=first)
            once, again = [[each async for each in server.GetRun(asked)] for _ in range(2)]
            assert once[-1] == again[-1] and once[-1].chunk

            waiting = [str(uuid.uuid4()) for _ in range(8)]
            for each in (*waiting, other):
                await server.StartRun(parts(each, **image))
            await server.CancelRun(model_pb2.CancelRunRequest(run_id=other))
            asked = model_pb2.GetRunRequest(run_id=other)
            *_, last = [each async for each in server.GetRun(asked)]
            assert last.outcome.failure.kind == model_pb2.RUN_FAILURE_KIND_CANCELLED

            many = [server.StartRun(parts(str(uuid.uuid4()), **image)) for _ in range(60)]
            ended = await asyncio.gather(*many, return_exceptions=True)
            busy = next(each for each in ended if isinstance(each, grpc.aio.AioRpcError))
            pause = refusal_of(busy).detail(error_details_pb2.RetryInfo)
            assert pause.retry_delay.seconds == 10


SMALL = picture(b"no picture at all")
KINDS = model_pb2.RunFailureKind


@pytest.mark.parametrize(
    ("answers", "error_class", "word"),
    [
        pytest.param([], "BAD_ANSWER", "without an outcome", id="nothing"),
        pytest.param(SMALL, "BAD_ANSWER", "not a picture", id="no picture"),
        pytest.param(SMALL[:1], "BAD_ANSWER", "less of its picture", id="cut short"),
        pytest.param([*SMALL, SMALL[1]], "BAD_ANSWER", "more of its picture", id="too much"),
        pytest.param(SMALL[1:], "BAD_ANSWER", "wrong order", id="bytes first"),
        pytest.param(
            [
                model_pb2.GetRunResponse(
                    outcome=model_pb2.RunOutcome(findings=model_pb2.FindingsResult(json="{}"))
                )
            ],
            "BAD_ANSWER",
            "without picture",
            id="findings for a picture",
        ),
        pytest.param(
            [model_pb2.GetRunResponse(progress=model_pb2.RunProgress(fraction=7))],
            "BAD_ANSWER",
            "progress.fraction: ",
            id="progress of 7",
        ),
        pytest.param(
            picture(b"x" * 5_000_000, chunk=5_000_000),
            "BAD_ANSWER",
            "at most 1 MiB",
            id="a chunk of 5 MB",
        ),
        pytest.param(
            [failure(KINDS.RUN_FAILURE_KIND_FAULT, "CUDA: out of memory")],
            "BAD_ANSWER",
            "out of memory",
            id="a fault",
        ),
        pytest.param(
            [failure(KINDS.RUN_FAILURE_KIND_BAD_INPUT, "nobody is in the picture\0")],
            "BAD_ANSWER",
            "NUL",
            id="a NUL",
        ),
        pytest.param(
            [failure(KINDS.RUN_FAILURE_KIND_BAD_INPUT, "nobody is in the picture")],
            "BAD_INPUT",
            "nobody is in the picture",
            id="bad input",
        ),
    ],
)
async def test_an_answer_without_a_result_fails_the_job_with_its_reason(
    suite: Suite,
    tmp_path: Path,
    answers: list[model_pb2.GetRunResponse],
    error_class: str,
    word: str,
) -> None:
    async with serving(Scripted(answering(*answers))) as server:
        configure(suite, server.address)
        await flows.start(suite)
        ada = suite.client("ada")
        failed = await flows.until(ada, (await try_on(ada, tmp_path)).id, *flows.FINISHED)
    assert (failed.state, failed.error_class, failed.credits) == (
        job_pb2.JOB_STATE_FAILED,
        error_class,
        0,
    )
    assert word in failed.error_message
    calls = await calls_of(ada, job_id=failed.id)
    assert len(calls) == (1 if error_class == "BAD_INPUT" else 3)
    assert {each.charge for each in calls} == {pb.PROVIDER_CHARGE_NONE}


@pytest.mark.parametrize(
    ("code", "error_class", "waits"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "BAD_INPUT", False),
        (grpc.StatusCode.INTERNAL, "BAD_ANSWER", False),
        (grpc.StatusCode.PERMISSION_DENIED, "ACCOUNT", True),
        (grpc.StatusCode.NOT_FOUND, "ACCOUNT", True),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_the_status_of_a_refusal_decides_what_happens_next(
    suite: Suite, tmp_path: Path, code: grpc.StatusCode, error_class: str, waits: bool
) -> None:
    async def refuse(context: Any) -> None:
        await context.abort(code, f"not for {TOKEN}")

    async with serving(Scripted(answering(), refuse, tasks=("generation.image",))) as server:
        configure(suite, server.address)
        await flows.start(suite)
        ada, operator = suite.client("ada"), suite.client("root", "admin")
        made = await try_on(ada, tmp_path)
        if waits:
            ended = await until_waiting(ada, made.id)
            reason = (await listed(operator))["grpc"].reason
        else:
            ended = await flows.until(ada, made.id, *flows.FINISHED)
            reason = ended.error_message
    assert ended.error_class == error_class
    assert f"{code.name}: not for [token]" in reason
    if code is grpc.StatusCode.NOT_FOUND:
        assert "it can do generation.image: set ATELIER_MODELS_TASKS" in reason


async def test_a_server_is_called_by_tls_and_its_certificate_is_checked(
    suite: Suite, drawn: bytes, tmp_path: Path
) -> None:
    authority, _ = certificate(tmp_path, "localhost")
    key = authority.with_suffix(".key")
    pair = [(key.read_bytes(), authority.read_bytes())]
    server = Scripted(answering(*picture(drawn)))
    async with serving(server, credentials=grpc.ssl_server_credentials(pair)):
        configure(suite, server.address, models_tls=True, outbound_ca_file=authority)
        await flows.start(suite)
        ada = suite.client("ada")
        assert (await try_on(ada, tmp_path, wait=True)).state == job_pb2.JOB_STATE_COMPLETED

        await suite.stop_work("conversions")
        suite.overrides |= {"outbound_ca_file": None}
        await suite.work("conversions")
        waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
    assert waiting.error_class == "UNAVAILABLE" and len(server.started) == 1


async def test_a_server_that_is_away_is_waited_for(suite: Suite, tmp_path: Path) -> None:
    async with serving(Scripted(answering())) as server:
        pass
    configure(suite, server.address)
    await flows.start(suite)
    ada = suite.client("ada")
    waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
    assert (waiting.error_class, waiting.wait.what) == ("UNAVAILABLE", "grpc")


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"models_address": "http://gpu:50060", "models_tasks": TASKS}, "without a scheme"),
        ({"models_address": "gpu:50060"}, "belong together"),
        ({"models_tasks": TASKS}, "belong together"),
        ({"models_address": "gpu:1", "models_tasks": {"painting": "x"}}, "no task 'painting'"),
        ({"models_address": "gpu:1", "models_tasks": {"conversion": ""}}, "1 to 100 letters"),
        ({"models_token": SecretStr("two words")}, "one word"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_setting_is_refused_at_start(values: dict[str, Any], word: str) -> None:
    settings = load("conversions")
    with pytest.raises((ValueError, ValidationError), match=word):
        registry.routes(type(settings).model_validate({**settings.model_dump(), **values}))
