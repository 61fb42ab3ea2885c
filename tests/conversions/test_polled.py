"""Jobs at providers that give a handle at once and the result later: fashn, fal and replicate."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from atelier.assets.v1 import storage_pb2, storage_pb2_grpc
from atelier.conversions.v1 import conversion_pb2, job_pb2
from atelier.conversions.v1 import provider_pb2 as pb

from tests.assets.flows import get
from tests.conversions import aimock, flows
from tests.conversions.asked import ALL, Q, configured
from tests.conversions.queues import (
    AWAY,
    KEY,
    Answer,
    FalQueue,
    FashnQueue,
    Queue,
    ReplicateQueue,
    serving,
)
from tests.conversions.test_providers import calls_of, listed, try_on, until_waiting
from tests.receiver import Request, receiving
from tests.suite import Client, Suite

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("impatient")]

NAMES: dict[type[Queue], str] = {
    FashnQueue: "fashn",
    FalQueue: "fal",
    ReplicateQueue: "replicate",
}


def configure(suite: Suite, url: str, table: dict[str, list[str]], **more: Any) -> None:
    suite.overrides |= {"providers": table, **configured(url, **more)}


@asynccontextmanager
async def at_work(
    suite: Suite, kind: type[Q], made: Path, **more: Any
) -> AsyncIterator[tuple[Q, Client]]:
    """The suite with a provider that takes jobs and doesn't finish them yet."""
    async with serving(kind(made)) as queue:
        queue.polls_at_work = 10_000
        configure(suite, queue.url, {"conversion": [NAMES[kind]]}, **more)
        await flows.start(suite)
        yield queue, suite.client("ada")


async def submitted(client: Client, queue: Queue, job_id: str) -> pb.ProviderCall:
    """Returns the record of a job's call once the provider was asked for its result."""
    async with asyncio.timeout(20):
        while not queue.polls:
            await asyncio.sleep(0.02)
    [call] = await calls_of(client, job_id=job_id)
    assert (call.state, call.charge) == (
        pb.PROVIDER_CALL_STATE_SUBMITTED,
        pb.PROVIDER_CHARGE_POSSIBLE,
    )
    assert call.handle
    return call


async def given_up(queue: Queue, times: int = 1) -> None:
    async with asyncio.timeout(20):
        while len(queue.cancelled) < times:
            await asyncio.sleep(0.02)


@ALL
async def test_a_job_survives_its_worker_and_is_paid_for_once(
    suite: Suite, made: Path, tmp_path: Path, kind: type[Queue]
) -> None:
    async with at_work(suite, kind, made) as (queue, ada):
        started = await try_on(ada, tmp_path, style_name="relaxed")
        call = await submitted(ada, queue, started.id)
        await suite.stop_work("conversions")
        queue.polls_at_work = len(queue.polls)
        queue.hiccups = [AWAY]
        await suite.work("conversions")
        done = await flows.until(ada, started.id, *flows.FINISHED)

    assert done.state == job_pb2.JOB_STATE_COMPLETED, done.error_message
    assert (len(queue.created), queue.cancelled) == (1, [])
    [answered] = await calls_of(ada, job_id=done.id)
    assert (answered.id, answered.handle) == (call.id, call.handle)
    assert (answered.state, answered.charge) == (
        pb.PROVIDER_CALL_STATE_ANSWERED,
        pb.PROVIDER_CHARGE_CHARGED,
    )
    assert len(answered.usage) == 1
    assert len(await flows.attempts_of(ada, done.id)) == 2
    recipe = done.recipe
    assert (recipe.provider, recipe.model) == (NAMES[kind], answered.model)
    asset = await get(ada, done.result_asset_id)
    assert asset.digital_source_type == "compositeWithTrainedAlgorithmicMedia"
    assert KEY not in str(done) + str(answered)


@pytest.mark.parametrize("kind", [FalQueue, ReplicateQueue])
async def test_a_cancelled_job_is_cancelled_at_its_provider(
    suite: Suite, made: Path, tmp_path: Path, kind: type[Queue]
) -> None:
    async with at_work(suite, kind, made) as (queue, ada):
        started = await try_on(ada, tmp_path)
        call = await submitted(ada, queue, started.id)
        request = conversion_pb2.CancelConversionRequest(conversion_id=started.id)
        await flows.conversions(ada).CancelConversion(request)
        await flows.until(ada, started.id, job_pb2.JOB_STATE_CANCELLED)
        await given_up(queue)
    assert queue.cancelled == [f"{call.handle}/cancel"]
    [lost] = await calls_of(ada, job_id=started.id)
    assert (lost.state, lost.charge) == (
        pb.PROVIDER_CALL_STATE_LOST,
        pb.PROVIDER_CHARGE_POSSIBLE,
    )


@pytest.mark.parametrize("is_away", [False, True])
async def test_an_erasure_gives_up_the_calls_of_its_owner_and_waits_for_no_provider(
    suite: Suite, made: Path, tmp_path: Path, is_away: bool
) -> None:
    async with at_work(suite, FalQueue, made) as (queue, ada):
        queue.cancels_are_refused = is_away
        started = await try_on(ada, tmp_path)
        call = await submitted(ada, queue, started.id)
        request = storage_pb2.EraseOwnerRequest(confirm_owner="user:ada")
        await ada.stub(storage_pb2_grpc.StorageServiceStub).EraseOwner(request)
        await given_up(queue)
        done = "SELECT count(*) FROM conversions.erased_owners WHERE done_at IS NOT NULL"
        async with asyncio.timeout(20):
            while suite.sql(done) != [(1,)]:
                await asyncio.sleep(0.05)

    assert set(queue.cancelled) == {f"{call.handle}/cancel"}
    kept = suite.sql("SELECT state, charge, handle FROM conversions.provider_calls")
    assert kept == [("lost", "possible", "")]
    assert suite.sql("SELECT count(*) FROM conversions.conversions") == [(0,)]


async def test_a_job_that_takes_too_long_is_given_up_and_submitted_anew(
    suite: Suite, made: Path, tmp_path: Path
) -> None:
    async with at_work(suite, FalQueue, made, provider_seconds={"fal": 1.0}) as (queue, ada):
        started = await try_on(ada, tmp_path)
        await submitted(ada, queue, started.id)
        await given_up(queue)
        queue.polls_at_work = 0
        done = await flows.until(ada, started.id, *flows.FINISHED)
    assert done.state == job_pb2.JOB_STATE_COMPLETED, done.error_message
    later, first = await calls_of(ada, job_id=started.id)
    assert (first.state, first.charge, first.error_class) == (
        pb.PROVIDER_CALL_STATE_LOST,
        pb.PROVIDER_CHARGE_POSSIBLE,
        "TIMED_OUT",
    )
    assert (later.charge, len(queue.created)) == (pb.PROVIDER_CHARGE_CHARGED, 2)


async def test_a_result_that_cannot_be_fetched_now_is_fetched_later_and_not_made_again(
    suite: Suite, made: Path, tmp_path: Path
) -> None:
    async with at_work(suite, FalQueue, made) as (queue, ada):
        queue.polls_at_work = 0
        queue.files_are_away = True
        started = await try_on(ada, tmp_path)
        waiting = await until_waiting(ada, started.id)
        assert (waiting.error_class, waiting.wait.what) == ("UNAVAILABLE", "fal")
        queue.files_are_away = False
        done = await flows.until(ada, started.id, *flows.FINISHED)
    assert done.state == job_pb2.JOB_STATE_COMPLETED, done.error_message
    assert len(queue.created) == 1


async def test_a_refusal_keeps_the_providers_word_and_is_final(
    suite: Suite, made: Path, tmp_path: Path
) -> None:
    async with at_work(suite, FashnQueue, made) as (queue, ada):
        queue.polls_at_work = 0
        queue.outcome = queue.failed("ContentModerationError", "the garment is not for all")
        refused = await try_on(ada, tmp_path, wait=True)
    assert (refused.state, refused.error_class, refused.credits) == (
        job_pb2.JOB_STATE_FAILED,
        "REFUSED",
        0,
    )
    assert "the garment is not for all" in refused.error_message
    [call] = await calls_of(ada)
    assert (call.category, call.charge) == ("ContentModerationError", pb.PROVIDER_CHARGE_NONE)
    assert len(queue.created) == 1


async def test_an_empty_account_switches_the_provider_off_and_the_next_one_works(
    suite: Suite, made: Path, tmp_path: Path
) -> None:
    async with at_work(suite, FashnQueue, made) as (queue, ada):
        queue.instead = [Answer(429, {"error": "OutOfCredits", "message": "Refill your credits"})]
        waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
        seen = (await listed(suite.client("root", "admin")))["fashn"]
    assert (waiting.error_class, waiting.wait.what) == ("ACCOUNT", "fashn")
    assert "Refill" not in waiting.error_message
    assert seen.state == pb.PROVIDER_STATE_SWITCHED_OFF
    assert "Refill your credits" in seen.reason


class FalOfAimock:
    """Passes what is for fal on to aimock, which wants to be told so in a header and by a prefix.
    Files come from here."""

    def __init__(self, url: str, made: Path) -> None:
        self._made = made.read_bytes()
        self._url = url

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        method, path = request.line.split(" ")[:2]
        if path == "/files/made.png":
            writer.write(Answer(200, self._made, {"content-type": "image/png"}).encoded())
            return
        kept = {"authorization", "content-type"} & request.headers.keys()
        headers = {name: request.headers[name] for name in kept}
        headers["x-fal-target-host"] = "queue.fal.run"
        async with httpx.AsyncClient(verify=False) as client:
            answer = await client.request(
                method, f"{self._url}/fal{path}", headers=headers, content=request.body
            )
        units = {name: answer.headers[name] for name in answer.headers if name.startswith("x-fal")}
        writer.write(Answer(answer.status_code, answer.json(), units).encoded())


@pytest.mark.needs_node
async def test_fal_as_aimock_speaks_it(suite: Suite, made: Path, tmp_path: Path) -> None:
    paint = {"app": "fal-ai/paint", "input": {"prompt": "{prompt}", "seed": "{seed}"}}
    with aimock.running(tmp_path) as mock:
        async with receiving(FalOfAimock(mock.url, made)) as server:
            url = f"http://127.0.0.1:{server.port}"
            result = {"images": [{"url": f"{url}/files/made.png"}], "seed": 7}
            mock.answers(
                {
                    "match": {"model": "fal-ai/paint", "userMessage": "a harbour"},
                    "response": {"json": result, "billableUnits": 0.5},
                },
                {
                    "match": {"model": "fal-ai/fashn/tryon/v1.6"},
                    "response": {"error": {"message": "down", "type": "x"}, "status": 500},
                },
            )
            table = {"generation": ["fal"], "conversion": ["fal"]}
            configure(suite, url, table, fal_models={"generation.image": paint})
            await flows.start(suite)
            ada = suite.client("ada")
            made_now = await flows.generate(ada, prompt="a harbour at dawn", seed=7, format="webp")
            waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
            asked = mock.requests("/fal")

    assert made_now.state == job_pb2.JOB_STATE_COMPLETED, made_now.error_message
    recipe = made_now.recipe
    assert (recipe.provider, recipe.model, recipe.seed) == ("fal", "fal-ai/paint", 7)
    assert json.loads(json.dumps(dict(recipe.parameters)))["seed"] == 7
    assert (waiting.error_class, waiting.wait.what) == ("UNAVAILABLE", "fal")
    [call] = await calls_of(ada, job_id=made_now.id)
    assert dict(call.usage) == {"billable_units": 0.5}
    ours = [each["path"].removeprefix("/fal") for each in asked[:3]]
    assert ours == ["/fal-ai/paint", f"{call.handle}/status", call.handle]
