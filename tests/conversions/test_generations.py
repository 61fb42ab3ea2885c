"""Generations: the results of a prompt, a close-up and a sketch, what repeats exactly, and what is
refused."""

import hashlib
from pathlib import Path
from typing import Any

import grpc
import pytest
import pyvips
from atelier.assets.v1 import asset_pb2
from atelier.common.v1 import facts_pb2
from atelier.conversions.v1 import generation_pb2 as pb
from atelier.conversions.v1 import job_pb2

from services.conversions import rules
from shared.imaging.source_type import packet
from shared.rpc.protos import plain
from tests.assets.flows import get, request_id
from tests.calls import refused
from tests.conversions import flows
from tests.conversions import local_pictures as pictures
from tests.suite import Client, Suite, browser

CLOSEUP, SKETCH = pb.GENERATION_TASK_CLOSEUP, pb.GENERATION_TASK_SKETCH


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.garment(tmp_path_factory.mktemp("photos") / "front.jpg")


async def picture_of(generation: pb.Generation) -> pyvips.Image:
    async with browser() as http:
        return pyvips.Image.new_from_buffer(
            (await http.get(generation.image_url)).content, ""
        ).copy_memory()


async def digest_of(client: Client, generation: pb.Generation) -> str:
    return (await get(client, generation.result_asset_id)).sha256


@pytest.mark.long
async def test_an_image_comes_back_with_all_that_its_caller_shows(
    suite: Suite, photo: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    reference = await flows.put(ada, photo, asset_pb2.ASSET_KIND_REFERENCE)
    made = await flows.generate(
        ada,
        prompt="A field jacket on a stand",
        style="minimal studio",
        aspect_ratio="16:9",
        quality="high",
        format="webp",
        reference_asset_ids=[reference],
        product_id="p1",
        dataset_id="d1",
    )

    assert made.state == job_pb2.JOB_STATE_COMPLETED, made.error_message
    assert (made.caption, made.reference_images_count, made.credits) == (
        "A field jacket on a stand",
        1,
        3,
    )
    assert made.unique_visual_elements and any(
        "#" in element for element in made.unique_visual_elements
    )

    assert made.prompt_used == made.full_prompt
    assert made.full_prompt.startswith(
        "A field jacket on a stand. Style: minimal studio. Aspect ratio: 16:9. Quality: high."
        " References show: "
    )
    assert all(element in made.full_prompt for element in made.unique_visual_elements)

    assert (made.recipe.model, made.recipe.inputs[0].role) == ("local", "reference")
    assert made.recipe.inputs[0].sha256 == hashlib.sha256(photo.read_bytes()).hexdigest()
    assert made.recipe.HasField("seed") and not made.HasField("seed")

    shown = await picture_of(made)
    assert (shown.width, shown.height) == (1024, 576)

    asset = await get(ada, made.result_asset_id)
    assert (asset.kind, asset.mime_type) == (asset_pb2.ASSET_KIND_GENERATED, "image/webp")
    assert (asset.scope.product_id, asset.scope.dataset_id) == ("p1", "d1")
    assert asset.provenance.prompt == made.full_prompt
    assert asset.digital_source_type == "compositeSynthetic", (
        "a picture of the caller's in a scene that was drawn"
    )
    assert shown.get("xmp-data") == packet("compositeSynthetic")


@pytest.mark.long
async def test_the_same_recipe_gives_the_same_bytes_and_another_seed_another_picture(
    suite: Suite,
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    settings: dict[str, Any] = {"prompt": "coastal shop window", "quality": "draft"}
    first = await flows.generate(ada, **settings)
    again = await flows.generations(ada).RegenerateGeneration(
        pb.RegenerateGenerationRequest(generation_id=first.id, request_id=request_id(), wait=True),
        timeout=60,
    )
    other = await flows.generations(ada).RegenerateGeneration(
        pb.RegenerateGenerationRequest(
            generation_id=first.id, request_id=request_id(), wait=True, seed=5
        ),
        timeout=60,
    )
    seeded = await flows.generate(ada, seed=first.recipe.seed, **settings)
    worded = await flows.generate(ada, **settings | {"prompt": "mountain shop window"})

    assert again.generation.regenerated_from == other.generation.regenerated_from == first.id
    assert again.generation.id not in (first.id, other.generation.id)

    digest = await digest_of(ada, first)
    assert await digest_of(ada, again.generation) == digest == await digest_of(ada, seeded)
    assert other.generation.recipe.seed == 5
    assert len({digest, await digest_of(ada, other.generation), await digest_of(ada, worded)}) == 3


@pytest.mark.long
async def test_a_close_up_is_cut_from_the_photograph_itself(suite: Suite, tmp_path: Path) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    large = pictures.garment(tmp_path / "large.png", width=2000)
    source = await flows.put(ada, large, asset_pb2.ASSET_KIND_PRODUCT)
    made = await flows.generate(
        ada,
        task=CLOSEUP,
        source_asset_id=source,
        view="front",
        name="Zipper Detail",
        format="png",
        at=facts_pb2.Point(x=0.5, y=0.4),
    )
    assert (made.state, made.credits, made.caption) == (
        job_pb2.JOB_STATE_COMPLETED,
        1,
        "Zipper Detail",
    )
    assert made.full_prompt == "Close-up of Zipper Detail, front view."

    cut, parameters = await picture_of(made), plain(made.recipe.parameters)
    left, top = parameters["left"], parameters["top"]
    whole = pyvips.Image.new_from_file(str(large))
    assert (cut - whole.crop(left, top, cut.width, cut.height)).abs().max() == 0

    asset = await get(ada, made.result_asset_id)
    assert (asset.kind, asset.file_name) == (asset_pb2.ASSET_KIND_CLOSEUP, "Zipper Detail.png")
    assert asset.digital_source_type == "algorithmicallyEnhanced"
    assert list(asset.provenance.source_asset_ids) == [source]


@pytest.mark.long
async def test_a_sketch_is_a_drawing_in_the_frame_of_its_photograph(
    suite: Suite, photo: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    source = await flows.put(ada, photo, asset_pb2.ASSET_KIND_PRODUCT)
    made = await flows.generate(ada, task=SKETCH, source_asset_id=source, view="back")
    assert (made.state, made.credits, made.format) == (job_pb2.JOB_STATE_COMPLETED, 1, "png")
    assert (made.aspect_ratio, made.quality, made.resolution) == ("", "", "")

    drawn = await picture_of(made)
    assert (drawn.width, drawn.height) == (800, 1000)
    assert drawn.avg() > 200  # mostly paper

    asset = await get(ada, made.result_asset_id)
    assert (asset.kind, asset.digital_source_type) == (
        asset_pb2.ASSET_KIND_SKETCH,
        "algorithmicMedia",
    )


async def test_what_cannot_be_generated_is_refused_before_anything_is_taken_on(
    suite: Suite, photo: Path
) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    own, foreign = [await flows.put(c, photo, asset_pb2.ASSET_KIND_REFERENCE) for c in (ada, eve)]
    many = [f"01890000-0000-7000-8000-{number:012d}" for number in range(17)]

    async def create(**fields: Any) -> Any:
        values = {"task": pb.GENERATION_TASK_IMAGE, "prompt": "a coat", **fields}
        request = pb.CreateGenerationRequest(**values)
        return await flows.generations(ada).CreateGeneration(request)

    for fields, field in (
        ({"prompt": "x" * 10_001}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " "}, "prompt"),
        ({"reuse_result": True, "run_externally": True}, "reuse_result"),
        ({"reference_asset_ids": many}, "reference_asset_ids"),
        ({"reference_asset_ids": [own, own]}, "reference_asset_ids"),
        ({"reference_asset_ids": [own, own.upper()]}, "reference_asset_ids[1]"),
        ({"reference_asset_ids": ["nothing"]}, "reference_asset_ids[0]"),
        ({"task": 99}, "task"),
        ({"aspect_ratio": "5:4"}, "aspect_ratio"),
        ({"quality": "ultra"}, "quality"),
        ({"format": "svg"}, "format"),
        ({"resolution": "8K"}, "resolution"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"source_asset_id": own}, "source_asset_id"),
        ({"at": facts_pb2.Point(x=0, y=0)}, "at"),
        ({"task": CLOSEUP}, "source_asset_id"),
        ({"task": CLOSEUP, "source_asset_id": own, "at": facts_pb2.Point(x=1.5)}, "at.x"),
        ({"task": CLOSEUP, "source_asset_id": own, "style": "warm"}, "style"),
        ({"task": SKETCH, "source_asset_id": own, "seed": 0}, "seed"),
        ({"task": SKETCH, "source_asset_id": own, "view": "top"}, "view"),
    ):
        found = await refused(create(**fields), grpc.StatusCode.INVALID_ARGUMENT)
        assert found.fields == [field], fields

    unseen = await refused(create(reference_asset_ids=[own, foreign]), grpc.StatusCode.NOT_FOUND)
    assert unseen.metadata["field"] == "reference_asset_ids[1]"
    assert not (
        await flows.generations(ada).ListGenerations(pb.ListGenerationsRequest())
    ).generations


async def test_a_document_is_no_reference(suite: Suite, photo: Path) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    own = await flows.put(ada, photo, asset_pb2.ASSET_KIND_REFERENCE)
    await suite.change("UPDATE assets.assets SET mime_type = 'application/pdf'")

    request = pb.CreateGenerationRequest(task=SKETCH, source_asset_id=own)
    refusal = await refused(
        flows.generations(ada).CreateGeneration(request), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.fields == ["source_asset_id"]


async def test_history_is_read_newest_first_by_dataset_task_and_id(
    suite: Suite, photo: Path
) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    source = await flows.put(ada, photo, asset_pb2.ASSET_KIND_PRODUCT)
    texts = [
        await flows.generate(ada, prompt=f"coat {number}", dataset_id=f"d{number % 2}", wait=False)
        for number in range(4)
    ]
    sketch = await flows.generate(
        ada, task=SKETCH, source_asset_id=source, product_id="p1", wait=False
    )

    async def listed(client: Client, **fields: Any) -> list[str]:
        answer = await flows.generations(client).ListGenerations(
            pb.ListGenerationsRequest(**fields)
        )
        return [generation.id for generation in answer.generations]

    newest_first = [sketch.id, *(text.id for text in reversed(texts))]
    assert await listed(ada) == newest_first
    assert await listed(ada, page_size=2, skip=2) == newest_first[2:4]
    assert await listed(ada, dataset_id="d1") == [texts[3].id, texts[1].id]
    assert await listed(ada, task=SKETCH) == await listed(ada, product_id="p1") == [sketch.id]
    assert await listed(eve) == []

    one = await flows.generations(ada).GetGeneration(
        pb.GetGenerationRequest(generation_id=texts[0].id)
    )
    assert (one.generation.prompt, one.generation.queue_position) == ("coat 0", 1)

    for call in (
        flows.generations(eve).GetGeneration(pb.GetGenerationRequest(generation_id=sketch.id)),
        flows.generations(eve).CancelGeneration(
            pb.CancelGenerationRequest(generation_id=sketch.id)
        ),
        flows.generations(eve).RegenerateGeneration(
            pb.RegenerateGenerationRequest(generation_id=sketch.id)
        ),
    ):
        await refused(call, grpc.StatusCode.NOT_FOUND)


async def test_a_generation_is_cancelled_and_watched_like_a_conversion(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    made = await flows.generate(ada, prompt="a coat", wait=False)
    request = pb.CancelGenerationRequest(generation_id=made.id)
    answer = await flows.generations(ada).CancelGeneration(request)
    assert answer.outcome == job_pb2.CANCEL_OUTCOME_CANCELLED_BEFORE_START

    watch = aiter(flows.generations(ada).WatchGenerations(pb.WatchGenerationsRequest(), timeout=30))
    assert (await anext(watch)).generation == answer.generation
    assert (await anext(watch)).bookmark.ready


def test_the_full_prompt_leaves_out_what_was_not_given() -> None:
    bare: dict[str, Any] = dict.fromkeys(("style", "aspect_ratio", "quality", "name", "view"), "")
    bare["elements"] = ()
    image = {**bare, "aspect_ratio": "1:1", "quality": "draft"}
    said = rules.full_prompt("image", " a\n coat! ", **image)
    branded = rules.full_prompt("image", "a coat", brand="B\n Co.", vibe="", logo=True, **image)
    assert branded.startswith("Brand: B Co. Logo: as in the last picture. a coat. Aspect")
    assert said == "a coat! Aspect ratio: 1:1. Quality: draft."
    assert rules.full_prompt("sketch", "", **bare) == "Technical line drawing."
    closeup = rules.full_prompt("closeup", "macro", **bare | {"view": "side"})
    assert closeup == "Close-up, side view. macro."
