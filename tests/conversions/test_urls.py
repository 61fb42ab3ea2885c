"""The URLs of results: there with their thumbnails when an answer waited, and as public as the
operator's setting says."""

import time
from pathlib import Path
from typing import Any

import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import conversion_pb2, job_pb2
from atelier.conversions.v1 import generation_pb2 as pb

from services.assets.core import rules
from tests.assets import flows as assets
from tests.conversions import flows
from tests.conversions import local_pictures as pictures
from tests.suite import Suite, browser

SKETCH = pb.GENERATION_TASK_SKETCH


async def source(suite: Suite, directory: Path) -> str:
    photo = pictures.garment(directory / "front.jpg", width=320)
    return await flows.put(suite.client("ada"), photo, asset_pb2.ASSET_KIND_PRODUCT)


async def test_an_answer_that_waited_has_its_thumbnail(suite: Suite, tmp_path: Path) -> None:
    suite.overrides["thumbnail_wait_seconds"] = 10.0
    await flows.start(suite)
    await suite.work("assets")
    ada = suite.client("ada")
    made = await flows.generate(ada, task=SKETCH, source_asset_id=await source(suite, tmp_path))
    assert made.state == job_pb2.JOB_STATE_COMPLETED, made.error_message
    async with browser() as http:
        for url in (made.image_url, made.thumbnail_url):
            assert (await http.get(url)).headers["content-type"].startswith("image/")


async def test_a_thumbnail_that_nobody_makes_does_not_keep_the_answer(
    suite: Suite, tmp_path: Path
) -> None:
    suite.overrides["thumbnail_wait_seconds"] = 1.0
    await flows.start(suite)
    ada = suite.client("ada")
    picture = await source(suite, tmp_path)
    begin = time.monotonic()
    made = await flows.generate(ada, task=SKETCH, source_asset_id=picture)
    assert time.monotonic() - begin < 10
    assert made.image_url and not made.thumbnail_url


async def test_results_are_as_public_as_the_setting_says(suite: Suite, tmp_path: Path) -> None:
    suite.overrides["public_kinds"] = ["style", "sketch"]
    await flows.start(suite)
    ada, eve = suite.client("ada"), suite.client("eve")
    picture = await source(suite, tmp_path)
    shown = await flows.generate(ada, task=SKETCH, source_asset_id=picture)
    hidden = await flows.generate(ada, task=pb.GENERATION_TASK_CLOSEUP, source_asset_id=picture)
    visible = await assets.get(eve, shown.result_asset_id)
    assert visible.visibility == asset_pb2.VISIBILITY_PUBLIC
    assert "/public/" in shown.image_url
    again = await flows.generations(ada).GetGeneration(
        pb.GetGenerationRequest(generation_id=shown.id, include_urls=True)
    )
    assert again.generation.image_url == shown.image_url, "a public URL stays"

    private = await assets.get(ada, hidden.result_asset_id)
    assert private.visibility == asset_pb2.VISIBILITY_PRIVATE
    asked = asset_pb2.VISIBILITY_PRIVATE
    own = await assets.upload(ada, assets.jpeg(), kind=asset_pb2.ASSET_KIND_PHOTO, visibility=asked)
    assert own.visibility == asked


@pytest.mark.parametrize("name", ["user", "people", ""])
def test_kinds_that_can_not_be_public_by_themselves_stop_the_start(name: str) -> None:
    assert rules.public_kinds(["style", "generated"]) == {"style", "generated"}
    with pytest.raises(ValueError, match="public_kinds"):
        rules.public_kinds(["style", name])


async def test_conversions_are_listed_by_whether_they_are_free(
    suite: Suite, tmp_path: Path
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    user, cloth = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
    sold = await flows.put(
        ada,
        pictures.garment(tmp_path / "sold.jpg", width=320),
        asset_pb2.ASSET_KIND_CLOTH,
        free=False,
    )
    paid = await flows.convert(ada, user, sold)
    free = await flows.convert(ada, user, cloth)

    async def listed(**fields: Any) -> list[str]:
        request = conversion_pb2.ListConversionsRequest(**fields)
        answer = await flows.conversions(ada).ListConversions(request)
        return [conversion.id for conversion in answer.conversions]

    assert await listed(free=True) == [free.id]
    assert await listed(free=False) == [paid.id]
    assert await listed() == [free.id, paid.id]
