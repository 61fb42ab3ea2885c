"""A picture that was generated for a run is held by the file that has it, and by nothing else."""

import asyncio

import psycopg
import pytest
from atelier.conversions.v1 import job_pb2
from atelier.techfiles.v1 import tech_file_pb2 as tf
from atelier.techfiles.v1 import tech_pack_pb2 as tp

from shared.rpc.protos import struct
from tests.assets import flows as asset_flows
from tests.conversions import flows as conversion_flows
from tests.suite import Client, Suite
from tests.techfiles import flows
from tests.techfiles.test_runs import steps_under_way
from tests.techfiles.test_stopped_runs import cancel, waiting
from tests.techfiles.trash_flows import holders, upkeep

HOLDER = f"techfiles/products/{flows.PRODUCT}"


@pytest.fixture
async def suite(suite: Suite) -> Suite:
    await suite.serve("assets", "conversions", "techfiles")
    await suite.work("techfiles")
    return suite


async def drawn(client: Client, generation_id: str) -> str:
    """Completes a generation as an outside worker; returns the id of its picture."""
    picture = await asset_flows.upload(client, asset_flows.jpeg(640, 480))
    claimed = await conversion_flows.claim(client, generation_id)
    result = job_pb2.PictureResult(asset_id=picture.id)
    await conversion_flows.complete(client, claimed, picture=result, confidence=0.9)
    return str(picture.id)


async def acquired(client: Client, picture: str) -> None:
    async with asyncio.timeout(60):
        while HOLDER not in await holders(client, picture):
            await asyncio.sleep(0.05)


@pytest.mark.long
async def test_a_picture_whose_file_somebody_else_finished_is_released(suite: Suite) -> None:
    ada = suite.client("ada")
    pictures = await flows.revisions(ada, "front")
    started = await flows.generate(ada, pictures, run_externally=True, skip_sketches=True)
    run = await waiting(ada, started.id)
    steps = {step.name: step for step in run.steps}
    failed = tf.UpdateTechFileStatusRequest(
        tech_file_id=steps["closeup/1"].tech_file_id, state=tf.TECH_FILE_STATE_FAILED
    )
    await flows.file_service(ada).UpdateTechFileStatus(failed)
    for name, found in (("category", {"category": "bag"}), ("base_view/front", {"features": []})):
        claimed = await conversion_flows.claim(ada, steps[name].analysis_id)
        result = job_pb2.AnalysisResult(result=struct(found))
        await conversion_flows.complete(ada, claimed, analysis=result, confidence=0.9)
    picture = await drawn(ada, steps["closeup/1"].generation_id)

    run = await flows.ended(ada, run.id)
    [step] = [step for step in run.steps if step.name == "closeup/1"]
    assert (step.state, step.error_class) == (tp.STEP_STATE_FAILED, "FILE_CHANGED")
    await upkeep(suite)
    assert HOLDER not in await holders(ada, picture)


@pytest.mark.long
async def test_a_picture_of_a_step_that_is_cancelled_is_released(suite: Suite) -> None:
    ada = suite.client("ada")
    pictures = await flows.revisions(ada, "front")
    started = await flows.generate(ada, pictures, run_externally=True, skip_closeups=True)
    run = await waiting(ada, started.id)
    [step] = [step for step in run.steps if step.name == "sketch/front"]
    picture = await drawn(ada, step.generation_id)
    await acquired(ada, picture)  # while the step waits for its analysis

    await cancel(ada, run.id)
    await flows.ended(ada, run.id)
    await upkeep(suite)
    assert HOLDER not in await holders(ada, picture)


@pytest.mark.long
async def test_a_picture_of_an_attempt_that_lost_its_run_is_released(suite: Suite) -> None:
    ada = suite.client("ada")
    started = await flows.generate(ada, await flows.revisions(ada, "front"), skip_sketches=True)
    await steps_under_way(ada, started.id, 3)

    def lose() -> None:
        conn.execute("UPDATE techfiles.runs SET attempt_token = gen_random_uuid()")

    # The attempt takes what was made, and waits for the row of its run.
    with psycopg.connect(suite.cluster.url(suite.database)) as conn:
        await asyncio.to_thread(lose)
        await suite.work("conversions")
        async with asyncio.timeout(60):
            while not (
                made := suite.sql(
                    "SELECT result_asset_id::text FROM conversions.generations"
                    " WHERE state = 'completed'"
                )
            ):
                await asyncio.sleep(0.05)
        await acquired(ada, made[0][0])

    async with asyncio.timeout(20):
        while HOLDER in await holders(ada, made[0][0]):
            await upkeep(suite)
