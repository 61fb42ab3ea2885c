"""Analyses return what was stated and measured, with a confidence that follows from its
evidence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.common.v1 import facts_pb2
from atelier.conversions.v1 import analysis_pb2 as pb
from atelier.conversions.v1 import job_pb2
from google.protobuf import json_format

from shared.rpc.protos import facts_message
from tests.calls import refused
from tests.conversions import flows
from tests.conversions import local_pictures as pictures
from tests.conversions.test_local_analyse import STATED
from tests.suite import Client, Suite


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.garment(tmp_path_factory.mktemp("photos") / "sharp.jpg", width=1000)


@pytest.fixture(scope="module")
def blurred(sharp: Path) -> Path:
    return pictures.blurred(sharp, sharp.with_name("blurred.jpg"))


def result_of(analysis: pb.Analysis) -> Mapping[str, Any]:
    assert analysis.state == job_pb2.JOB_STATE_COMPLETED, analysis.error_message
    found: Mapping[str, Any] = json_format.MessageToDict(analysis.result)
    return found


async def put(client: Client, path: Path) -> str:
    return await flows.put(client, path, asset_pb2.ASSET_KIND_PRODUCT)


@pytest.mark.long
async def test_a_sharp_described_product_and_a_blurred_bare_one_fall_on_opposite_sides_of_080(
    suite: Suite, sharp: Path, blurred: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    described = await flows.analyse(
        ada, (await put(ada, sharp), "front"), facts=facts_message(STATED)
    )

    bare = await flows.analyse(ada, (await put(ada, blurred), "front"))
    assert (bare.confidence, bare.credits) == (0, 0), "nothing is known, and nothing is charged"
    assert described.confidence >= 0.80
    for analysis in (described, bare):
        weights = sum(item.weight for item in analysis.evidence)
        mean = sum(item.value * item.weight for item in analysis.evidence) / weights
        [known] = [item.value for item in analysis.evidence if item.name == "completeness"]
        assert analysis.confidence == pytest.approx(min(mean, known), abs=0.001)
        assert all(item.note for item in analysis.evidence)
    assert result_of(described)["name"] == "Harbour coat"
    assert described.facts == facts_message(STATED)
    # What nobody stated is missing.
    assert set(result_of(bare)) == {"colours", "image_quality"}
    assert (described.credits, described.recipe.model) == (1, "local")
    assert [item.role for item in described.recipe.inputs] == ["front"]


@pytest.mark.long
async def test_every_task_completes_with_a_result_and_a_confidence(
    suite: Suite, sharp: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    front = await put(ada, sharp)
    for task in filter(None, pb.AnalysisTask.values()):
        made = await flows.analyse(ada, (front, "front"), task=task, facts=facts_message(STATED))
        assert result_of(made), task
        assert 0.8 <= made.confidence <= 1


@pytest.mark.long
async def test_a_picture_without_a_view_and_no_picture_at_all_are_analysed_too(
    suite: Suite, sharp: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    made = await flows.analyse(ada, (await put(ada, sharp), ""), task=pb.ANALYSIS_TASK_BASE_VIEW)
    assert result_of(made)["views"] == ["picture 1"]
    told = await flows.analyse(ada, task=pb.ANALYSIS_TASK_SEO, facts=facts_message(STATED))
    assert result_of(told)["title"]
    nothing = await flows.analyse(ada, task=pb.ANALYSIS_TASK_CATEGORY)
    assert (dict(result_of(nothing)), nothing.confidence) == ({}, 0)


@pytest.mark.long
async def test_what_cannot_be_analysed_is_refused_before_anything_is_taken_on(
    suite: Suite, sharp: Path
) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    own, foreign = await put(ada, sharp), await put(eve, sharp)
    stub = flows.analyses(ada)

    async def create(**fields: Any) -> Any:
        return await stub.CreateAnalysis(pb.CreateAnalysisRequest(**{"task": 1, **fields}))

    place = facts_pb2.Point(x=0.5, y=0)
    placeless = facts_pb2.Facts(features=[facts_pb2.FeatureFact(name="zip", at=place)])
    measureless = facts_pb2.Facts(
        points_of_measure=[facts_pb2.PointOfMeasureFact(code="A", name="width")]
    )
    for fields, field in (
        ({"task": 0}, "task"),
        ({"task": 77}, "task"),
        ({"images": [{"asset_id": own}] * 17}, "images"),
        ({"images": [{"asset_id": own, "view": "inside"}]}, "images[0].view"),
        ({"images": [{"asset_id": "x"}]}, "images[0].asset_id"),
        ({"facts": placeless}, "facts.features[0].view"),
        ({"facts": measureless}, "facts.points_of_measure[0].value"),
        ({"facts": {"product": {"name": "x" * 301}}}, "facts.product.name"),
        ({"facts": {"price": {"msrp": -1, "currency": "EUR"}}}, "facts.price.msrp"),
        ({"facts": {"price": {"msrp": float("nan"), "currency": "EUR"}}}, "facts.price.msrp"),
    ):
        found = await refused(create(**fields), grpc.StatusCode.INVALID_ARGUMENT)
        assert found.fields == [field], fields

    unseen = await refused(
        create(images=[{"asset_id": own}, {"asset_id": foreign}]), grpc.StatusCode.NOT_FOUND
    )
    assert unseen.metadata["field"] == "images[1].asset_id"
    assert not (await stub.ListAnalyses(pb.ListAnalysesRequest())).analyses


async def test_analyses_are_listed_read_cancelled_and_watched_by_their_owner_alone(
    suite: Suite,
) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    seo = await flows.analyse(ada, task=pb.ANALYSIS_TASK_SEO, product_id="p1", wait=False)
    category = await flows.analyse(ada, task=pb.ANALYSIS_TASK_CATEGORY, wait=False)

    async def listed(client: Client, **fields: Any) -> list[str]:
        answer = await flows.analyses(client).ListAnalyses(pb.ListAnalysesRequest(**fields))
        return [analysis.id for analysis in answer.analyses]

    assert await listed(ada) == [category.id, seo.id]
    assert (
        await listed(ada, task=pb.ANALYSIS_TASK_SEO)
        == await listed(ada, product_id="p1")
        == [seo.id]
    )
    assert await listed(eve) == []

    one = await flows.analyses(ada).GetAnalysis(pb.GetAnalysisRequest(analysis_id=category.id))
    assert one.analysis.queue_position == 2
    for call in (
        flows.analyses(eve).GetAnalysis(pb.GetAnalysisRequest(analysis_id=seo.id)),
        flows.analyses(eve).CancelAnalysis(pb.CancelAnalysisRequest(analysis_id=seo.id)),
    ):
        await refused(call, grpc.StatusCode.NOT_FOUND)

    request = pb.CancelAnalysisRequest(analysis_id=seo.id)
    answer = await flows.analyses(ada).CancelAnalysis(request)
    assert answer.outcome == job_pb2.CANCEL_OUTCOME_CANCELLED_BEFORE_START

    watch = aiter(
        flows.analyses(ada).WatchAnalyses(
            pb.WatchAnalysesRequest(analysis_ids=[seo.id]), timeout=30
        )
    )
    assert (await anext(watch)).analysis == answer.analysis
    assert (await anext(watch)).bookmark.ready
