"""The lineage of a picture: what it was made from, and what was made of it."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import generation_pb2, job_pb2, lineage_pb2_grpc
from atelier.conversions.v1 import lineage_pb2 as pb

from tests.assets import flows as assets
from tests.calls import refused
from tests.conversions import flows
from tests.conversions import local_pictures as pictures
from tests.conversions.test_marks import labelled
from tests.suite import Client, Suite

pytestmark = pytest.mark.long


async def lineage(client: Client, **fields: Any) -> pb.GetLineageResponse:
    stub = client.stub(lineage_pb2_grpc.LineageServiceStub)
    answer: pb.GetLineageResponse = await stub.GetLineage(pb.GetLineageRequest(**fields))
    return answer


def edges(graph: pb.GetLineageResponse) -> set[tuple[str, str, str]]:
    return {(each.from_id, each.to_id, each.role) for each in graph.edges}


async def test_a_pictures_graph_goes_back_to_its_inputs_and_on_to_what_used_it(
    suite: Suite, tmp_path: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    photo = await flows.put(
        ada, pictures.garment(tmp_path / "front.jpg"), asset_pb2.ASSET_KIND_REFERENCE
    )
    sketch = await flows.generate(
        ada, task=generation_pb2.GENERATION_TASK_SKETCH, source_asset_id=photo
    )
    scene = await flows.generate(
        ada, prompt="on a table", reference_asset_ids=[sketch.result_asset_id], quality="draft"
    )
    facts = {"product": {"name": "coat"}}
    analysis = await flows.analyse(ada, (scene.result_asset_id, "front"), facts=facts)
    aside = await flows.generate(ada, prompt="alone", reference_asset_ids=[photo], quality="draft")

    graph = await lineage(ada, asset_id=sketch.result_asset_id)
    assert [each.job_id for each in graph.jobs] == [sketch.id, scene.id, analysis.id]
    assert [each.task for each in graph.jobs] == [
        "generation.sketch",
        "generation.image",
        "analysis.product",
    ]
    assert edges(graph) == {
        (photo, sketch.id, "source"),
        (sketch.id, sketch.result_asset_id, "result"),
        (sketch.result_asset_id, scene.id, "reference"),
        (scene.id, scene.result_asset_id, "result"),
        (scene.result_asset_id, analysis.id, "front"),
    }
    assert aside.id not in {each.job_id for each in graph.jobs}, "a sibling is not its lineage"
    by_id = {each.asset_id: each for each in graph.pictures}
    assert by_id[photo].kind == "REFERENCE" and len(by_id[photo].sha256) == 64
    first = graph.jobs[0]
    assert (first.provider, first.model) == ("local", "local")
    assert [each.outcome for each in first.attempts] == [job_pb2.ATTEMPT_OUTCOME_SUCCEEDED]
    assert not graph.truncated

    # From a job: its inputs, how they were made, and what came of its result.
    from_job = await lineage(ada, job_id=scene.id)
    assert edges(from_job) == edges(graph)
    # From the photograph: everything that used it.
    whole = await lineage(ada, asset_id=photo)
    assert {each.job_id for each in whole.jobs} == {sketch.id, scene.id, analysis.id, aside.id}

    short = await lineage(ada, asset_id=photo, max_jobs=2)
    assert short.truncated and len(short.jobs) == 2

    eve = suite.client("eve")
    for wanted in ({"job_id": scene.id}, {"asset_id": photo}):
        await refused(lineage(eve, **wanted), grpc.StatusCode.NOT_FOUND)


async def test_labelled_copies_are_in_the_graph(suite: Suite, tmp_path: Path) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    photo = await flows.put(
        ada, pictures.garment(tmp_path / "front.jpg"), asset_pb2.ASSET_KIND_REFERENCE
    )
    sketch = await flows.generate(
        ada, task=generation_pb2.GENERATION_TASK_SKETCH, source_asset_id=photo
    )
    made = sketch.result_asset_id
    first = await labelled(ada, made)
    second = await labelled(ada, first)
    of_copy = edges(await lineage(ada, asset_id=second))
    assert {(made, first, "label"), (first, second, "label"), (sketch.id, made, "result")} < of_copy
    assert {(made, first, "label"), (first, second, "label")} < edges(
        await lineage(ada, job_id=sketch.id)
    )


async def test_a_repeat_is_connected_and_a_deleted_picture_is_shown_as_gone(
    suite: Suite, tmp_path: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    made = await flows.generate(ada, prompt="a shop window", quality="draft")
    again = await flows.generations(ada).RegenerateGeneration(
        generation_pb2.RegenerateGenerationRequest(generation_id=made.id, seed=7, wait=True)
    )
    for start in (made.id, again.generation.id):
        graph = await lineage(ada, job_id=start)
        assert [each.job_id for each in graph.jobs] == [made.id, again.generation.id]
        assert (made.id, again.generation.id, "regenerated") in edges(graph)

    photo = await flows.put(
        ada, pictures.garment(tmp_path / "front.jpg"), asset_pb2.ASSET_KIND_REFERENCE
    )
    failed = await flows.generate(ada, prompt="x", reference_asset_ids=[photo], wait=False)
    await flows.generations(ada).CancelGeneration(
        generation_pb2.CancelGenerationRequest(generation_id=failed.id)
    )
    await flows.given_back(suite, failed.id)
    # The worker may not have let go of it yet.
    await assets.assets(ada).PurgeAsset(asset_pb2.PurgeAssetRequest(asset_id=photo, force=True))
    gone = await lineage(ada, job_id=failed.id)
    assert [(each.asset_id, each.gone) for each in gone.pictures] == [(photo, True)]
