"""What is asked a second time: what failed is tried again as a new row, and the same recipe is
answered from the earlier result at no cost."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import analysis_pb2, conversion_pb2, job_pb2
from atelier.conversions.v1 import generation_pb2 as pb

from tests.assets import flows as assets
from tests.calls import refused
from tests.conversions import flows
from tests.conversions import local_pictures as pictures
from tests.suite import Client, Suite

CLOSEUP = pb.GENERATION_TASK_CLOSEUP
COMPLETED, FAILED = job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_STATE_FAILED


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.garment(tmp_path_factory.mktemp("photos") / "front.jpg", width=320)


async def regenerate(client: Client, generation_id: str, **fields: Any) -> pb.Generation:
    request = pb.RegenerateGenerationRequest(generation_id=generation_id, wait=True, **fields)
    answer = await flows.generations(client).RegenerateGeneration(request, timeout=60)
    made: pb.Generation = answer.generation
    return made


def retries(client: Client) -> dict[str, Any]:
    """Returns by kind: what retries a row by its id."""
    return {
        "conversion": lambda row_id, **more: flows.conversions(client).RetryConversion(
            conversion_pb2.RetryConversionRequest(conversion_id=row_id, **more)
        ),
        "generation": lambda row_id, **more: flows.generations(client).RetryGeneration(
            pb.RetryGenerationRequest(generation_id=row_id, **more)
        ),
        "analysis": lambda row_id, **more: flows.analyses(client).RetryAnalysis(
            analysis_pb2.RetryAnalysisRequest(analysis_id=row_id, **more)
        ),
    }


async def test_what_failed_or_was_cancelled_is_tried_again_as_a_new_row(
    suite: Suite, photo: Path, tmp_path: Path
) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    user, cloth = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
    asked: dict[str, Any] = {"product_id": "p1", "priority": 7, "wait": False}
    outside = {**asked, "run_externally": True}
    facts = {"product": {"brand": "X"}}
    made: dict[str, Any] = {
        "conversion": await flows.convert(
            ada, user, cloth, style_name="loose", metadata={"a": 1}, **outside
        ),
        "generation": await flows.generate(
            ada, task=CLOSEUP, source_asset_id=cloth, name="Zip", view="front", **outside
        ),
        "analysis": await flows.analyse(ada, (cloth, "front"), facts=facts, **outside),
    }
    for name, first in made.items():
        retry = retries(ada)[name]
        await refused(retry(first.id), grpc.StatusCode.FAILED_PRECONDITION, "pending")
        await refused(retries(eve)[name](first.id), grpc.StatusCode.NOT_FOUND)
        job = await flows.fail(ada, await flows.claim(ada, first.id))
        assert job.state == FAILED

        second = getattr(await retry(first.id, request_id="r"), name)
        assert getattr(await retry(first.id, request_id="r"), name) == second, "a repeat"
        assert (second.state, second.retry_of) == (job_pb2.JOB_STATE_PENDING, first.id)
        assert second.id != first.id
        for message in (first, second):
            for field in ("id", "retry_of", "create_time", "update_time"):
                message.ClearField(field)
        assert second == first, "everything else is as it was asked"

    cancelled = await flows.generate(ada, prompt="a coat", **asked)
    await flows.generations(ada).CancelGeneration(
        pb.CancelGenerationRequest(generation_id=cancelled.id)
    )
    assert (await retries(ada)["generation"](cancelled.id)).generation.prompt == "a coat"


async def test_a_retry_needs_pictures_that_are_there(suite: Suite, photo: Path) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    source = await flows.put(ada, photo, asset_pb2.ASSET_KIND_PRODUCT)
    made = await flows.generate(ada, task=CLOSEUP, source_asset_id=source, wait=False)
    await flows.generations(ada).CancelGeneration(pb.CancelGenerationRequest(generation_id=made.id))
    await assets.assets(ada).PurgeAsset(asset_pb2.PurgeAssetRequest(asset_id=source, force=True))
    refusal = await refused(retries(ada)["generation"](made.id), grpc.StatusCode.NOT_FOUND)
    assert refusal.metadata["field"] == "source_asset_id"


async def test_the_same_recipe_is_answered_from_the_earlier_result_at_no_cost(
    suite: Suite, photo: Path
) -> None:
    await flows.start(suite)
    ada, eve = suite.client("ada"), suite.client("eve")
    source = await flows.put(ada, photo, asset_pb2.ASSET_KIND_PRODUCT)
    first = await flows.generate(ada, task=CLOSEUP, source_asset_id=source, format="png")
    assert (first.state, first.credits, first.answered_from) == (COMPLETED, 1, "")

    again = await regenerate(ada, first.id)
    assert (again.state, again.credits, again.answered_from) == (COMPLETED, 0, first.id)
    assert again.regenerated_from == first.id != again.id
    same = ("result_asset_id", "recipe", "full_prompt", "confidence", "evidence")
    assert all(getattr(again, name) == getattr(first, name) for name in same)
    assert again.image_url and again.processing_time_ms == 0
    async with asyncio.timeout(20):
        while flows.held(suite, again.id) != {source, first.result_asset_id}:
            await asyncio.sleep(0.02)
    assert not await flows.attempts_of(ada, again.id)

    # The same bytes as another asset, and other labels, are the same recipe.
    copy = await flows.put(ada, photo, asset_pb2.ASSET_KIND_REFERENCE)
    asked = {"task": CLOSEUP, "format": "png", "product_id": "p2", "reuse_result": True}
    other = await flows.generate(ada, source_asset_id=copy, **asked)
    assert (other.answered_from, other.product_id) == (first.id, "p2")
    edited = await regenerate(ada, first.id, format="webp")
    assert (edited.answered_from, edited.credits) == ("", 1)

    theirs = await flows.put(eve, photo, asset_pb2.ASSET_KIND_PRODUCT)
    hers = await flows.generate(eve, source_asset_id=theirs, **asked)
    assert (hers.answered_from, hers.credits) == ("", 1), "results of others answer nobody"

    purge = asset_pb2.PurgeAssetRequest(asset_id=first.result_asset_id, force=True)
    await assets.assets(ada).PurgeAsset(purge)
    anew = await regenerate(ada, first.id)
    assert (anew.state, anew.answered_from, anew.credits) == (COMPLETED, "", 1)


@pytest.mark.long
async def test_another_seed_asks_for_another_picture(suite: Suite) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    first = await flows.generate(ada, prompt="coastal shop window", quality="draft")
    other = await regenerate(ada, first.id, seed=5)
    assert (other.answered_from, other.credits, other.recipe.seed) == ("", 3, 5)
    assert (await regenerate(ada, first.id, seed=5)).answered_from == other.id
    assert (await regenerate(ada, other.id)).answered_from == other.id

    # The seed that the first one derived is the first one's.
    derived = await regenerate(ada, other.id, seed=first.recipe.seed)
    assert (derived.answered_from, derived.credits) == (first.id, 0)


async def test_analyses_and_conversions_are_answered_from_earlier_ones_if_asked_to(
    suite: Suite, tmp_path: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    cloth = await flows.cloth(ada, tmp_path)
    facts: dict[str, Any] = {"facts": {"product": {"brand": "X"}}}
    first = await flows.analyse(ada, (cloth, "front"), **facts)
    again = await flows.analyse(ada, (cloth, "front"), reuse_result=True, **facts)
    assert (again.answered_from, again.credits, again.result) == (first.id, 0, first.result)
    others = {"product": {"brand": "Y"}}
    for fresh in (
        await flows.analyse(ada, (cloth, "front"), **facts),
        await flows.analyse(ada, (cloth, "back"), reuse_result=True, **facts),
        await flows.analyse(ada, (cloth, "front"), reuse_result=True, facts=others),
    ):
        assert (fresh.state, fresh.answered_from) == (COMPLETED, "")

    user = await flows.person(ada, tmp_path)
    made = await flows.convert(ada, user, cloth, wait=True)
    assert made.state == COMPLETED, made.error_message
    tried = await flows.convert(ada, user, cloth, reuse_result=True)
    assert (tried.answered_from, tried.result_asset_id) == (made.id, made.result_asset_id)
    styled = await flows.convert(ada, user, cloth, style_name="loose", reuse_result=True)
    assert (styled.answered_from, styled.state) == ("", job_pb2.JOB_STATE_PENDING)


async def test_what_other_models_made_answers_nobody(suite: Suite, tmp_path: Path) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    cloth = await flows.cloth(ada, tmp_path)
    outside = await flows.analyse(ada, (cloth, "front"), run_externally=True, wait=False)
    claimed = await flows.claim(ada, outside.id)
    await flows.complete(ada, claimed, analysis=job_pb2.AnalysisResult(result={"name": "coat"}))
    made = await flows.analyse(ada, (cloth, "front"), reuse_result=True)
    assert (made.answered_from, made.recipe.model) == ("", "local")

    older = '{"model_version": "0"}'
    await suite.change("UPDATE conversions.analyses SET recipe = recipe || %s::jsonb", (older,))
    again = await flows.analyse(ada, (cloth, "front"), reuse_result=True)
    assert again.answered_from == "", "an older version of the model"
