"""The libraries that FASHN, fal and Replicate publish, against the servers of these tests: they
understand what these answer, and send what our providers send."""

import asyncio
import json
from pathlib import Path
from typing import Any

import fal_client
import httpx
import pytest
from fashn import Fashn
from fashn.types import prediction_run_params
from replicate.client import Client as ReplicateClient

from tests.conversions.asked import DRESS, Asking
from tests.conversions.queues import KEY, FalQueue, FashnQueue, ReplicateQueue

VERSION = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"


@pytest.mark.parametrize("model", ["tryon-v1.6", "tryon-max"])
async def test_the_library_of_fashn_sends_the_same_and_understands_the_server(
    ask: Asking, model: str
) -> None:
    fields = {"style": "relaxed", "resolution": "2K"}
    async with ask(FashnQueue, fashn_model=model, fields=fields) as asked:
        await asked.picture()
        [ours] = asked.queue.bodies
        asked.queue.polls_at_work = len(asked.queue.polls) + 1

        def subscribe() -> Any:
            with Fashn(
                api_key=KEY, base_url=asked.queue.url, _strict_response_validation=True
            ) as client:
                return client.predictions.subscribe(**ours, poll_interval=10)

        answer = await asyncio.to_thread(subscribe)
    assert (answer.status, answer.credits_used, len(answer.output)) == ("completed", 2, 1)
    [first, second] = asked.queue.created
    assert (first.line, json.loads(first.body)) == (second.line, json.loads(second.body))
    known = {
        "tryon-v1.6": prediction_run_params.TryOnRequestInputs,
        "tryon-max": prediction_run_params.TryOnMaxRequestInputs,
    }
    assert set(ours["inputs"]) <= set(known[model].__annotations__)


class _ToQueue(httpx.BaseTransport):
    """Sends what is for fal to a server of the test."""

    def __init__(self, url: str) -> None:
        self._url, self._out = httpx.URL(url), httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert request.url.host == "queue.fal.run"
        request.url = request.url.copy_with(scheme="http", host=self._url.host, port=self._url.port)
        return self._out.handle_request(request)


async def test_the_library_of_fal_sends_the_same_and_understands_the_server(ask: Asking) -> None:
    async with ask(FalQueue) as asked:
        await asked.picture()
        [ours] = asked.queue.bodies
        asked.queue.polls_at_work = len(asked.queue.polls) + 1

        def subscribe() -> Any:
            client = fal_client.SyncClient(key=KEY)
            headers = {"Authorization": f"Key {KEY}"}
            with httpx.Client(transport=_ToQueue(asked.queue.url), headers=headers) as out:
                client.__dict__["_client"] = out
                handle = client.submit("fal-ai/fashn/tryon/v1.6", arguments=ours)
                states = [type(each) for each in handle.iter_events(interval=0.01)]
                result = handle.get()
                handle.cancel()
                return states, result, handle.response_url

        states, result, url = await asyncio.to_thread(subscribe)
    assert states[-1] is fal_client.Completed and fal_client.InProgress in states
    assert result["images"][0]["url"] == asked.queue.picture_url
    [first, second] = asked.queue.created
    assert (first.line, json.loads(first.body)) == (second.line, json.loads(second.body))
    assert url.endswith(asked.call.handles[0].replace("request-1", "request-2"))
    assert len(asked.queue.cancelled) == 1


@pytest.mark.parametrize("version", ["", VERSION])
async def test_the_library_of_replicate_sends_the_same_and_understands_the_server(
    ask: Asking, version: str
) -> None:
    models = {"conversion": {"model": f"studio/dress:{version}".strip(":"), "input": DRESS}}
    async with ask(ReplicateQueue, replicate_models=models) as asked:
        await asked.picture()
        [ours] = asked.queue.bodies

        def run(picture: Path) -> Any:
            client = ReplicateClient(api_token=KEY, base_url=asked.queue.url)
            client.poll_interval = 0.01
            of = client.predictions if version else client.models.predictions
            reference: Any = version or "studio/dress"
            made = of.create(reference, input=ours["input"])
            made.wait()
            made.cancel()
            return made, client.files.create(picture).urls["get"]

        made, url = await asyncio.to_thread(run, asked.request.pictures[0].path)
    assert made.urls["cancel"].endswith(f"{asked.call.handles[0][:-1]}2/cancel")
    assert url.startswith("https://api.replicate.com/v1/files/")
    [first, second] = asked.queue.created
    assert (first.line, json.loads(first.body)) == (second.line, json.loads(second.body))
