"""What a generation takes from a dataset: brand, vibe, logo and first images, as they are when it
is created. And what it is told for a dataset that isn't there."""

import uuid
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import dataset_pb2, job_pb2
from atelier.conversions.v1 import generation_pb2 as pb

from services.conversions import rules
from tests.assets import flows as assets
from tests.calls import refused
from tests.conversions import flows
from tests.suite import Client, Suite

CLOSEUP = pb.GENERATION_TASK_CLOSEUP


async def pictures(client: Client, count: int) -> list[str]:
    kind = asset_pb2.ASSET_KIND_DATASET
    made = [
        await assets.upload(client, assets.jpeg(64, 48, seed), kind=kind) for seed in range(count)
    ]
    return [asset.id for asset in made]


async def create(client: Client, **fields: Any) -> pb.Generation:
    request = pb.CreateGenerationRequest(**{"prompt": "a coffee shop", **fields})
    made: pb.Generation = (await flows.generations(client).CreateGeneration(request)).generation
    return made


async def regenerate(client: Client, generation_id: str, **fields: Any) -> pb.Generation:
    request = pb.RegenerateGenerationRequest(generation_id=generation_id, **fields)
    answer = await flows.generations(client).RegenerateGeneration(request)
    made: pb.Generation = answer.generation
    return made


async def update(client: Client, dataset_id: str, **fields: Any) -> None:
    request = dataset_pb2.UpdateDatasetRequest(
        dataset_id=dataset_id, update_mask={"paths": list(fields)}, **fields
    )
    await flows.datasets(client).UpdateDataset(request)


@pytest.mark.long
async def test_an_image_is_made_with_the_look_of_its_dataset(suite: Suite) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    logo, *shots = await pictures(ada, 4)
    look = await flows.dataset(
        ada, brand="Coffee Co.", vibe="cozy", logo_asset_id=logo, image_asset_ids=shots
    )
    made = await flows.generate(
        ada,
        task=pb.GENERATION_TASK_UNSPECIFIED,
        prompt="Modern coffee shop interior",
        style="photorealistic",
        aspect_ratio="16:9",
        quality="draft",
        dataset_id=look.id,
    )
    assert made.state == job_pb2.JOB_STATE_COMPLETED, made.error_message
    assert (made.task, made.reference_images_count) == (pb.GENERATION_TASK_IMAGE, 3)
    assert made.prompt_used.startswith(
        "Brand: Coffee Co. Vibe: cozy. Logo: as in the last picture. Modern coffee shop interior."
        " Style: photorealistic. Aspect ratio: 16:9. Quality: draft. References show: "
    )
    inputs = [(each.role, each.asset_id) for each in made.recipe.inputs]
    assert inputs == [*(("reference", each) for each in shots), ("logo", logo)]
    assert flows.held(suite, made.id) == {logo, *shots, made.result_asset_id}
    assert (await assets.get(ada, made.result_asset_id)).scope.dataset_id == look.id


async def test_what_was_taken_stays_when_the_dataset_changes_and_goes(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    logo, *shots = await pictures(ada, 5)
    look = await flows.dataset(
        ada, brand="Coffee", vibe="cozy", logo_asset_id=logo, image_asset_ids=shots
    )
    before = await create(ada, dataset_id=look.id.upper())
    assert (before.brand, before.vibe, before.logo_asset_id) == ("Coffee", "cozy", logo)
    assert (before.dataset_id, before.dataset_name) == (look.id, "Autumn")
    assert list(before.reference_asset_ids) == shots[: rules.DATASET_IMAGES]

    two = await create(ada, dataset_id=look.id, dataset_images=2)
    none = await create(ada, dataset_id=look.id, dataset_images=0)
    chosen = await create(ada, dataset_id=look.id, reference_asset_ids=[shots[3]])
    taken = [list(each.reference_asset_ids) for each in (two, none, chosen)]
    assert taken == [shots[:2], [], [shots[3]]] and chosen.brand == "Coffee"
    close = await create(ada, dataset_id=look.id, task=CLOSEUP, source_asset_id=shots[0])
    assert (close.dataset_name, close.brand, list(close.reference_asset_ids)) == ("Autumn", "", [])

    await update(ada, look.id, name="Spring", brand="Tea", logo_asset_id="")
    again = await regenerate(ada, before.id, prompt="a tea shop")
    assert (again.brand, again.dataset_name, again.prompt) == ("Coffee", "Autumn", "a tea shop")
    assert again.reference_asset_ids == before.reference_asset_ids
    anew = await regenerate(ada, before.id, dataset_id=look.id)
    assert (anew.brand, anew.logo_asset_id, anew.dataset_name) == ("Tea", "", "Spring")
    bare = await regenerate(ada, before.id, dataset_id="")
    assert (bare.brand, bare.logo_asset_id, bare.dataset_name) == ("", "", "")

    await flows.datasets(ada).PurgeDataset(dataset_pb2.PurgeDatasetRequest(dataset_id=look.id))
    listed = await flows.generations(ada).ListGenerations(
        pb.ListGenerationsRequest(dataset_id=look.id.upper())
    )
    assert [each.id for each in listed.generations] == [
        each.id for each in (anew, again, close, chosen, none, two, before)
    ]
    assert listed.generations[-1] == before


async def test_pictures_that_were_deleted_by_force_are_passed_over(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    logo, *shots = await pictures(ada, 5)
    look = await flows.dataset(ada, brand="Coffee", logo_asset_id=logo, image_asset_ids=shots)
    for each in (logo, shots[1]):
        forced = asset_pb2.DeleteAssetRequest(asset_id=each, force=True)
        await assets.assets(ada).DeleteAsset(forced)
    made = await create(ada, dataset_id=look.id)
    assert list(made.reference_asset_ids) == [shots[0], shots[2], shots[3]]
    assert (made.brand, made.logo_asset_id) == ("Coffee", "")


async def test_a_dataset_that_is_not_yours_is_not_found_and_a_label_stays_a_label(
    suite: Suite,
) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    hers = await flows.dataset(eve, brand="Secret Co")
    mine = await flows.dataset(ada)
    made = await create(ada, prompt="a coat")

    for dataset_id in (hers.id, str(uuid.uuid4())):
        for call in (
            create(ada, dataset_id=dataset_id),
            create(ada, dataset_id=dataset_id, prompt=f"use the dataset {hers.id}"),
            regenerate(ada, made.id, dataset_id=dataset_id),
        ):
            refusal = await refused(call, grpc.StatusCode.NOT_FOUND, dataset_id)
            assert refusal.metadata["field"] == "dataset_id"
    await flows.datasets(ada).DeleteDataset(dataset_pb2.DeleteDatasetRequest(dataset_id=mine.id))
    call = create(ada, dataset_id=mine.id)
    await refused(call, grpc.StatusCode.FAILED_PRECONDITION, "undelete it first")

    for label in ("autumn 2026", hers.id.replace("-", "")):
        labelled = await create(ada, dataset_id=label)
        assert (labelled.dataset_id, labelled.dataset_name, labelled.brand) == (label, "", "")
    listed = await flows.generations(ada).ListGenerations(pb.ListGenerationsRequest())
    assert len(listed.generations) == 3, "what was refused left nothing"


async def test_numbers_of_images_that_mean_nothing_are_refused(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    [shot] = await pictures(ada, 1)
    look = await flows.dataset(ada, image_asset_ids=[shot])
    for fields in (
        {"dataset_id": "a label"},
        {"dataset_id": look.id, "reference_asset_ids": [shot]},
        {"dataset_id": look.id, "task": CLOSEUP, "source_asset_id": shot},
    ):
        call = create(ada, dataset_images=1, **fields)
        refusal = await refused(call, grpc.StatusCode.INVALID_ARGUMENT)
        assert refusal.fields == ["dataset_images"]


async def test_every_edit_of_a_regeneration_counts_and_what_does_not_fit_is_refused(
    suite: Suite,
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    one, two = await pictures(ada, 2)
    first = await create(ada, style="warm", seed=7, reference_asset_ids=[one], product_id="p1")
    edits: dict[str, Any] = {
        "prompt": "a barn",
        "style": "",
        "aspect_ratio": "3:2",
        "quality": "high",
        "format": "png",
        "resolution": "2K",
        "name": "Barn",
        "seed": 8,
    }
    changed = await regenerate(ada, first.id, references={"asset_ids": [two]}, **edits)
    assert {name: getattr(changed, name) for name in edits} == edits
    assert list(changed.reference_asset_ids) == [two]
    assert (changed.product_id, changed.regenerated_from) == ("p1", first.id)
    kept = await regenerate(ada, first.id)
    same = ("prompt", "style", "seed", "reference_asset_ids", "format", "quality")
    assert [getattr(kept, name) for name in same] == [getattr(first, name) for name in same]

    close = await create(ada, task=CLOSEUP, prompt="", source_asset_id=one)
    for generation_id, fields, field in (
        (first.id, {"prompt": ""}, "prompt"),
        (first.id, {"aspect_ratio": "5:4"}, "aspect_ratio"),
        (first.id, {"references": {"asset_ids": [one, one.upper()]}}, "references.asset_ids[1]"),
        (close.id, {"style": "warm"}, "style"),
        (close.id, {"references": {"asset_ids": [one]}}, "references"),
    ):
        call = regenerate(ada, generation_id, **fields)
        assert (await refused(call, grpc.StatusCode.INVALID_ARGUMENT)).fields == [field]
