"""A caller may give a view as the enum or as the older word; both are the same request."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.common.v1 import view_pb2
from atelier.conversions.v1 import analysis_pb2, generation_pb2
from atelier.pipeline.v1 import product_pb2
from atelier.techfiles.v1 import tech_file_pb2

from tests.assets.flows import request_id
from tests.calls import refused
from tests.conversions import flows
from tests.conversions import local_pictures as pictures
from tests.pipeline import flows as pipeline
from tests.suite import Client, Suite

FRONT, BACK, SIDE = view_pb2.VIEW_TYPE_FRONT, view_pb2.VIEW_TYPE_BACK, view_pb2.VIEW_TYPE_SIDE
SPELLINGS = [("back", 0), ("", BACK), ("back", BACK)]


@pytest.fixture
async def suite(suite: Suite) -> Suite:
    await suite.serve("assets", "conversions", "pipeline")
    return suite


async def picture(client: Client, directory: Path) -> str:
    path = pictures.garment(directory / "garment.jpg", width=400)
    return await flows.put(client, path, asset_pb2.ASSET_KIND_PRODUCT)


async def create(client: Client, request: Any) -> Any:
    """Sends the request. Returns the message that shows the view."""
    if isinstance(request, analysis_pb2.CreateAnalysisRequest):
        return (await flows.analyses(client).CreateAnalysis(request)).analysis.images[0]
    if isinstance(request, product_pb2.CreateProductRequest):
        return (await pipeline.products(client).CreateProduct(request)).product.images[0]
    return (await flows.generations(client).CreateGeneration(request)).generation


def requests(asset_id: str, **view: Any) -> list[tuple[Any, str]]:
    """Returns one request of each kind that shows a view, with the path to the view."""
    shown = {"asset_id": asset_id, **view}
    analysis = analysis_pb2.CreateAnalysisRequest(
        task=analysis_pb2.ANALYSIS_TASK_PRODUCT,
        images=[analysis_pb2.AnalysisImage(**shown)],
    )
    generation = generation_pb2.CreateGenerationRequest(
        task=generation_pb2.GENERATION_TASK_SKETCH, source_asset_id=asset_id, **view
    )
    product = product_pb2.CreateProductRequest(images=[product_pb2.NewImage(**shown)])
    return [(analysis, "images[0]."), (generation, ""), (product, "images[0].")]


async def test_either_spelling_is_taken_and_answers_have_both(suite: Suite, tmp_path: Path) -> None:
    ada = suite.client("ada")
    asset_id = await picture(ada, tmp_path)

    for word, number in SPELLINGS:
        for request, _path in requests(asset_id, view=word, view_type=number):
            made = await create(ada, request)
            assert (made.view, made.view_type) == ("back", BACK)

    for request, _path in requests(asset_id):
        made = await create(ada, request)
        assert (made.view, made.view_type) == ("", view_pb2.VIEW_TYPE_UNSPECIFIED)


async def test_both_spellings_with_one_request_id_are_one_request(
    suite: Suite, tmp_path: Path
) -> None:
    ada = suite.client("ada")
    asset_id, key = await picture(ada, tmp_path), request_id()

    ids = set()
    for word, number in SPELLINGS:
        [_analysis, (generation, _path), _product] = requests(asset_id, view=word, view_type=number)
        generation.request_id = key
        ids.add((await create(ada, generation)).id)
    assert len(ids) == 1


async def test_spellings_that_differ_are_refused(suite: Suite, tmp_path: Path) -> None:
    ada = suite.client("ada")
    asset_id = await picture(ada, tmp_path)

    for request, path in requests(asset_id, view="front", view_type=SIDE):
        refusal = await refused(
            create(ada, request), grpc.StatusCode.INVALID_ARGUMENT, "leave view out"
        )
        assert refusal.fields == [f"{path}view_type"]

    for request, path in requests(asset_id, view_type=4):
        refusal = await refused(create(ada, request), grpc.StatusCode.INVALID_ARGUMENT)
        assert refusal.fields == [f"{path}view_type"]


def test_the_enum_is_that_of_tech_files() -> None:
    assert view_pb2.ViewType.items() == tech_file_pb2.ViewType.items()
