"""A call that waits for its job may answer before the job has ended; the same request waits on."""

import asyncio
from pathlib import Path

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import generation_pb2, job_pb2

from tests.assets.flows import request_id
from tests.conversions import flows
from tests.conversions import local_pictures as pictures
from tests.suite import Client, Suite


async def sketch_that_waits(
    client: Client, directory: Path
) -> generation_pb2.CreateGenerationRequest:
    photo = pictures.garment(directory / "garment.jpg", width=400)
    return generation_pb2.CreateGenerationRequest(
        request_id=request_id(),
        task=generation_pb2.GENERATION_TASK_SKETCH,
        source_asset_id=await flows.put(client, photo, asset_pb2.ASSET_KIND_PRODUCT),
        wait=True,
    )


@pytest.mark.long
async def test_a_stopping_server_answers_and_another_waits_on(suite: Suite, tmp_path: Path) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    request = await sketch_that_waits(ada, tmp_path)

    waiting = asyncio.ensure_future(flows.generations(ada).CreateGeneration(request, timeout=60))
    while not suite.sql("SELECT id FROM conversions.generations"):
        await asyncio.sleep(0.02)
    await suite.stop("conversions", seconds=10)
    first = (await waiting).generation
    assert first.state == job_pb2.JOB_STATE_PENDING

    await suite.serve("conversions")
    await suite.work("conversions")
    again = suite.client("ada")
    second = (await flows.generations(again).CreateGeneration(request, timeout=60)).generation
    assert (second.id, second.state) == (first.id, job_pb2.JOB_STATE_COMPLETED)


@pytest.mark.long
async def test_a_client_that_repeats_at_once_does_not_spin_while_the_server_stops(
    suite: Suite, tmp_path: Path
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    request = await sketch_that_waits(ada, tmp_path)
    answers = 0

    async def repeat() -> grpc.StatusCode:
        nonlocal answers
        while True:
            try:
                await flows.generations(ada).CreateGeneration(request, timeout=60)
            except grpc.aio.AioRpcError as error:
                return error.code()
            answers += 1

    repeating = asyncio.ensure_future(repeat())
    while not suite.sql("SELECT id FROM conversions.generations"):
        await asyncio.sleep(0.02)
    await suite.stop("conversions", seconds=10)
    assert await repeating == grpc.StatusCode.UNAVAILABLE, "what every client repeats"
    assert answers == 1


@pytest.mark.long
async def test_a_deadline_that_is_near_ends_the_wait_with_an_answer(
    suite: Suite, tmp_path: Path
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    request = await sketch_that_waits(ada, tmp_path)

    answer = await flows.generations(ada).CreateGeneration(request, timeout=2)
    assert answer.generation.state == job_pb2.JOB_STATE_PENDING
