"""Provider `comfyui`. The real one needs torch, so that the server is one of the test, on a real
socket; its nodes work on real pictures."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import conversion_pb2, job_pb2
from atelier.conversions.v1 import provider_pb2 as pb
from pydantic import ValidationError

from services.conversions.providers import registry
from shared.settings import load
from tests.assets.flows import get
from tests.conversions import comfy, flows
from tests.conversions import local_pictures as pictures
from tests.conversions.comfy import IMAGE, TRY_ON, Comfy, workflow
from tests.conversions.test_providers import calls_of, listed, try_on, until_waiting
from tests.suite import Suite

pytestmark = pytest.mark.long


def configure(
    suite: Suite,
    port: int,
    directory: Path,
    *,
    nodes: Any = TRY_ON,
    image: Any = IMAGE,
    **more: Any,
) -> None:
    suite.overrides |= {
        "providers": {"conversion": ["comfyui"], "generation": ["comfyui"]},
        "comfyui_url": f"http://127.0.0.1:{port}",
        "comfyui_workflows": {
            "conversion": workflow(directory / "tryon.json", nodes),
            "generation.image": workflow(directory / "picture.json", image),
        },
        **more,
    }


@asynccontextmanager
async def running(
    suite: Suite, directory: Path, server: Comfy, **more: Any
) -> AsyncIterator[tuple[Comfy, int]]:
    async with comfy.serving(server) as receiver:
        configure(suite, receiver.port, directory, **more)
        await flows.start(suite)
        yield server, receiver.port


async def seen(what: Any) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("old", [False, True], ids=["jobs", "before there were jobs"])
async def test_a_try_on_and_a_picture_by_workflows(suite: Suite, tmp_path: Path, old: bool) -> None:
    async with running(suite, tmp_path, Comfy(tmp_path / "comfy", old=old)) as (server, _):
        ada = suite.client("ada")
        worn = await try_on(ada, tmp_path, style_name="relaxed", wait=True)
        assert worn.state == job_pb2.JOB_STATE_COMPLETED, worn.error_message
        made = await flows.generate(ada, prompt="a harbour", aspect_ratio="16:9", seed=0x336699)

    recipe = worn.recipe
    assert (recipe.provider, recipe.model, len(recipe.model_version)) == ("comfyui", "tryon", 12)
    assert str(recipe.parameters["prompt"]).endswith("Style: relaxed.")
    assert recipe.parameters["pictures_sent"] == 2
    assert "seed" not in recipe.parameters and not recipe.HasField("seed")
    asset = await get(ada, worn.result_asset_id)
    assert asset.digital_source_type == "compositeWithTrainedAlgorithmicMedia"
    [call] = await calls_of(ada, job_id=worn.id)
    assert (call.state, call.charge) == (pb.PROVIDER_CALL_STATE_ANSWERED, pb.PROVIDER_CHARGE_NONE)
    assert call.handle == ("own-1" if old else call.id)
    assert server.uploads == [f"atelier-{call.id}-{name}.jpg" for name in ("cloth", "user")]

    assert made.state == job_pb2.JOB_STATE_COMPLETED, made.error_message
    assert (made.recipe.seed, made.recipe.parameters["width"]) == (0x336699, 1024)
    drawn = await get(ada, made.result_asset_id)
    assert (drawn.width, drawn.height) == (1024, 576)
    assert str(made.recipe.parameters["prompt"]).startswith("a harbour")


async def test_the_result_is_the_node_with_that_title(suite: Suite, tmp_path: Path) -> None:
    saving = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}}
    nodes = {"0": saving, **TRY_ON}
    async with running(suite, tmp_path, Comfy(tmp_path / "comfy"), nodes=nodes):
        ada = suite.client("ada")
        worn = await try_on(ada, tmp_path, wait=True)
    result = await get(ada, worn.result_asset_id)
    assert result.width == 320, "the person's picture, not the garment's"


async def test_a_worker_that_comes_back_finds_its_prompt(suite: Suite, tmp_path: Path) -> None:
    async with running(suite, tmp_path, Comfy(tmp_path / "comfy", held=True)) as (server, _):
        ada = suite.client("ada")
        made = await try_on(ada, tmp_path)
        await seen(lambda: server.queue)
        await suite.stop_work("conversions")
        await suite.work("conversions")
        server.held = False
        done = await flows.until(ada, made.id, *flows.FINISHED)
    assert done.state == job_pb2.JOB_STATE_COMPLETED, done.error_message
    assert server.submits == 1
    assert len(await calls_of(ada, job_id=made.id)) == 1


async def test_a_server_that_was_restarted_gets_the_prompt_again(
    suite: Suite, tmp_path: Path
) -> None:
    async with running(suite, tmp_path, Comfy(tmp_path / "comfy", held=True)) as (first, port):
        ada = suite.client("ada")
        made = await try_on(ada, tmp_path)
        await seen(lambda: first.queue)
    await asyncio.sleep(1)
    second = Comfy(tmp_path / "comfy")
    async with comfy.serving(second, port):
        done = await flows.until(ada, made.id, *flows.FINISHED)
    assert done.state == job_pb2.JOB_STATE_COMPLETED, done.error_message
    assert second.submits == 1 and list(second.history) == list(first.queue)
    assert len(await flows.attempts_of(ada, made.id)) == 1


async def test_a_prompt_that_takes_too_long_is_cancelled(suite: Suite, tmp_path: Path) -> None:
    seconds = {"provider_seconds": {"comfyui": 0.6}}
    server = Comfy(tmp_path / "comfy", held=True)
    async with running(suite, tmp_path, server, **seconds):
        ada = suite.client("ada")
        failed = await flows.until(ada, (await try_on(ada, tmp_path)).id, *flows.FINISHED)
    assert failed.error_class == "TIMED_OUT" and "0.6 s" in failed.error_message
    assert len(server.cancelled) == 3 and not server.queue
    assert {each.charge for each in await calls_of(ada)} == {pb.PROVIDER_CHARGE_NONE}


@pytest.mark.parametrize("old", [False, True], ids=["jobs", "before there were jobs"])
async def test_a_cancelled_job_is_taken_off_the_server(
    suite: Suite, tmp_path: Path, old: bool
) -> None:
    server = Comfy(tmp_path / "comfy", old=old, held=True)
    async with running(suite, tmp_path, server):
        ada = suite.client("ada")
        made = await try_on(ada, tmp_path)
        await seen(lambda: server.queue)
        others = next(iter(server.queue))
        await seen(lambda: any("GET" in each for each in server.seen))
        request = conversion_pb2.CancelConversionRequest(conversion_id=made.id)
        await flows.conversions(ada).CancelConversion(request)
        await seen(lambda: not server.queue)
    assert server.cancelled == [others]


NO_SUCH_NODE = {**TRY_ON, "8": {"class_type": "FancyTryOn", "inputs": {}}}
UNFILLED = {**TRY_ON, "4": {"class_type": "ImageScale", "inputs": {"image": ["2", 0], "width": 9}}}


@pytest.mark.parametrize(
    ("how", "error_class", "words"),
    [
        pytest.param(
            {"nodes": UNFILLED},
            "BAD_INPUT",
            ["node 4 (ImageScale)", "Required input is missing: height"],
            id="node errors",
        ),
        pytest.param(
            {"nodes": NO_SUCH_NODE}, "BAD_INPUT", ["Node 'FancyTryOn' not found"], id="no such node"
        ),
        pytest.param(
            {"fails": "3"},
            "BAD_ANSWER",
            ["node 3 (ImageCompositeMasked)", "OutOfMemoryError: Allocation on device"],
            id="a node that fails",
        ),
        pytest.param({"html": True}, "BAD_ANSWER", ["text/html"], id="html"),
        pytest.param({"no_history": True}, "BAD_ANSWER", ["has no result"], id="no history"),
    ],
)
async def test_a_prompt_without_a_result_fails_with_its_node(
    suite: Suite, tmp_path: Path, how: dict[str, Any], error_class: str, words: list[str]
) -> None:
    nodes = how.pop("nodes", TRY_ON)
    async with running(suite, tmp_path, Comfy(tmp_path / "comfy", **how), nodes=nodes):
        ada = suite.client("ada")
        failed = await flows.until(ada, (await try_on(ada, tmp_path)).id, *flows.FINISHED)
    assert (failed.state, failed.error_class, failed.credits) == (
        job_pb2.JOB_STATE_FAILED,
        error_class,
        0,
    )
    assert [word for word in words if word not in failed.error_message] == [], failed.error_message
    calls = await calls_of(ada, job_id=failed.id)
    assert {each.charge for each in calls} == {pb.PROVIDER_CHARGE_NONE}


async def test_a_workflow_that_takes_more_references_says_how_many(
    suite: Suite, tmp_path: Path
) -> None:
    image = {
        **IMAGE,
        "3": {"class_type": "LoadImage", "inputs": {"image": "{reference_1}"}},
        "4": {"class_type": "LoadImage", "inputs": {"image": "{reference_2}"}},
    }
    server = Comfy(tmp_path / "comfy")
    async with running(suite, tmp_path, server, image=image):
        ada = suite.client("ada")
        ids = [
            await flows.put(
                ada,
                pictures.garment(tmp_path / f"{number}.jpg", width=300 + number),
                asset_pb2.ASSET_KIND_REFERENCE,
            )
            for number in range(3)
        ]
        few = await flows.generate(ada, prompt="a set", reference_asset_ids=ids[:1])
        many = await flows.generate(ada, prompt="a set", reference_asset_ids=ids)
    assert few.error_class == "BAD_INPUT" and server.submits == 1
    assert "takes 2 reference pictures, and 1 came" in few.error_message
    assert many.state == job_pb2.JOB_STATE_COMPLETED, many.error_message
    assert many.recipe.parameters["pictures_sent"] == 2


async def test_a_server_that_is_away_is_waited_for(suite: Suite, tmp_path: Path) -> None:
    async with running(suite, tmp_path, Comfy(tmp_path / "comfy")):
        pass
    ada, operator = suite.client("ada"), suite.client("root", "admin")
    waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
    assert (waiting.error_class, waiting.wait.what) == ("UNAVAILABLE", "comfyui")
    tasks = [each.task for each in (await listed(operator))["comfyui"].tasks]
    assert tasks == ["conversion", "generation.image"]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {**TRY_ON, "8": {"class_type": kind, "inputs": inputs}}


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (node("LoadImage", image="me.png"), "node 8 (LoadImage), input image loads a file"),
        (node("LoadImageMask", image="{prompt}"), "node 8 (LoadImageMask), input image loads"),
        (node("LoadImagesFromFolder", folder="x"), "input folder loads a file"),
        (node("LoadImageOutput"), "node 8 (LoadImageOutput), input image loads a file"),
        (node("Any", x="/etc/passwd"), "node 8 (Any), input x names a file ('/etc/passwd')"),
        (node("Any", x="a/../../b"), "names a file"),
        (node("Any", x={"deep": [["C:\\b"]]}), "input x names a file"),
        (node("Any", x="file:///etc/passwd"), "names a file"),
        (node("Any", x="{model}"), "has {model}, which nothing fills; there are {user}, {cloth}"),
        (node("Any", x="{reference_1}"), "which nothing fills"),
        (node("Any", x="photo of {prompt}"), "has {prompt} inside other text"),
        ({"1": TRY_ON["1"]}, "nothing takes {cloth}"),
        ({"nodes": [], "links": []}, "isn't in API format"),
        ([], "isn't in API format"),
        ("{", "isn't JSON"),
        ("[" * 100_000, "isn't JSON"),
        ('{"1": NaN}', "isn't JSON"),
        (" " * 1_100_000, "more than 1 MB"),
        (None, "can't be read: No such file"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_workflow_that_names_files_or_is_none_is_refused_at_start(
    tmp_path: Path, nodes: Any, words: str
) -> None:
    path = tmp_path / "tryon.json"
    if nodes is not None:
        path.write_text(nodes if isinstance(nodes, str) else json.dumps(nodes))
    settings = load("conversions").model_dump()
    settings |= {"comfyui_url": "http://gpu:8188", "comfyui_workflows": {"conversion": str(path)}}
    with pytest.raises(ValueError, match="ATELIER_COMFYUI_WORKFLOWS: conversion: /") as refused:
        registry.routes(type(load("conversions")).model_validate(settings))
    assert str(path) in str(refused.value) and words in str(refused.value)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"comfyui_url": "gpu:8188"}, "http://gpu-1:8188"),
        ({"comfyui_url": "http://gpu:8188"}, "belong together"),
        ({"comfyui_url": "http://gpu", "comfyui_workflows": {"analysis.seo": "x"}}, "has no task"),
        ({"provider_seconds": {"comfy": 5}}, "comfyui"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_setting_is_refused_at_start(values: dict[str, Any], word: str) -> None:
    settings = load("conversions")
    with pytest.raises((ValueError, ValidationError), match=word):
        registry.routes(type(settings).model_validate({**settings.model_dump(), **values}))
