"""Drafts a generation: the columns of a new row, from a request or from a stored row with edits,
and from the dataset that it names.

What is taken from a dataset is written to the row, so that it stays when the dataset changes. A
dataset_id that looks like a UUID names a dataset; any other text is a label.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import generation_pb2 as pb

from services.conversions import assets, dataset_rows, earlier, rules
from services.conversions.dataset_rows import SELECT_DATASET, Dataset
from services.conversions.generation_rows import TASKS, Generation
from services.conversions.job_calls import scheduling
from shared.database.db import Database
from shared.database.rows import field_names
from shared.rpc import errors
from shared.rpc.calls import Peers

# Fields of RegenerateGenerationRequest that replace a column of the same name.
_EDITS = ("prompt", "style", "aspect_ratio", "quality", "format", "resolution", "name", "seed")


@dataclass
class NewGeneration:
    """The columns that the caller decides. The last four are what was taken from the dataset."""

    task: str
    prompt: str
    style: str
    aspect_ratio: str
    quality: str
    format: str
    resolution: str
    seed: int | None
    reference_asset_ids: list[UUID]
    source_asset_id: UUID | None
    view: str
    at_x: float | None
    at_y: float | None
    name: str
    product_id: str
    dataset_id: str
    priority: int
    external: bool
    provider: str
    drop_inputs: bool
    regenerated_from: UUID | None = None
    retry_of: UUID | None = None
    brand: str = ""
    vibe: str = ""
    logo_asset_id: UUID | None = None
    dataset_name: str = ""

    def columns(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in _COLUMNS}


_COLUMNS = field_names(NewGeneration)


def new(request: pb.CreateGenerationRequest) -> NewGeneration:
    """Returns the columns that the request asks for, with the defaults of its task. Raises
    INVALID_ARGUMENT for fields that don't fit the task."""
    task = TASKS.word.get(request.task, "image")
    given = frozenset(field.name for field, _ in request.ListFields())
    if not request.prompt.strip():
        given -= {"prompt"}
    if problem := rules.generation_problem(task, given):
        raise errors.invalid(*problem)
    defaults = rules.GENERATION_DEFAULTS[task]
    placed = request.HasField("at")
    references = assets.each_once(request.reference_asset_ids, "reference_asset_ids")
    return NewGeneration(
        task=task,
        prompt=request.prompt,
        style=request.style,
        aspect_ratio=request.aspect_ratio or defaults.get("aspect_ratio", ""),
        quality=request.quality or defaults.get("quality", ""),
        format=request.format or defaults["format"],
        resolution=request.resolution or defaults.get("resolution", ""),
        seed=request.seed if request.HasField("seed") else None,
        reference_asset_ids=references,
        source_asset_id=UUID(request.source_asset_id) if request.source_asset_id else None,
        view=request.view,
        at_x=request.at.x if placed else None,
        at_y=request.at.y if placed else None,
        name=request.name,
        product_id=request.product_id,
        dataset_id=request.dataset_id,
        **scheduling(request),
    )


def again(row: Generation) -> NewGeneration:
    """Returns the columns that made the row."""
    return NewGeneration(**{name: getattr(row, name) for name in _COLUMNS})


def retried(row: Generation) -> NewGeneration:
    """Returns the columns of a row that tries this one again."""
    return replace(again(row), retry_of=row.id)


def edited(row: Generation, request: pb.RegenerateGenerationRequest) -> NewGeneration:
    """Returns the columns that made the row, with the edits of the request. Raises INVALID_ARGUMENT
    for edits that the row's task doesn't take."""
    given = frozenset(field.name for field, _ in request.ListFields())
    for name in rules.MEANINGLESS[row.task]:
        if name in given:
            raise errors.invalid(name, f"means nothing to task {row.task}; leave it out")
    edits: dict[str, Any] = {name: getattr(request, name) for name in _EDITS if name in given}
    if "references" in given:
        chosen = assets.each_once(request.references.asset_ids, "references.asset_ids")
        edits["reference_asset_ids"] = chosen
    draft = replace(again(row), regenerated_from=row.id, retry_of=None, **edits)
    if "prompt" in rules.NEEDED[row.task] and not draft.prompt.strip():
        raise errors.invalid("prompt", f"is needed for task {row.task}")
    return draft


async def take_from_dataset(
    db: Database, peers: Peers, draft: NewGeneration, *, images: int | None
) -> None:
    """Writes to the draft what its dataset gives: brand, vibe, logo and, unless `images` is None,
    that many of its first images as references. A draft without a dataset stays as it is.

    Raises NOT_FOUND if dataset_id is a UUID and the caller has no such dataset,
    FAILED_PRECONDITION if it is deleted.
    """
    if not rules.is_dataset_id(draft.dataset_id):
        return
    row = await db.first(SELECT_DATASET, {"id": UUID(draft.dataset_id)})
    if row is None:
        refusal = errors.not_found("dataset", draft.dataset_id)
        refusal.metadata.update({"field": "dataset_id"})
        raise refusal
    dataset_rows.refuse_deleted(row)
    draft.dataset_id, draft.dataset_name = str(row.id), row.name
    if draft.task != "image":
        return
    there = await _that_are_there(peers, row)
    draft.brand, draft.vibe = row.brand, row.vibe
    draft.logo_asset_id = row.logo_asset_id if row.logo_asset_id in there else None
    if images is not None:
        usable = [each for each in row.image_asset_ids if each in there]
        draft.reference_asset_ids = usable[:images]


async def move(
    db: Database, peers: Peers, draft: NewGeneration, dataset_id: str, *, images: int | None
) -> None:
    """Moves the draft to another dataset, or to none if `dataset_id` is empty: forgets what was
    taken, and takes anew, as `take_from_dataset` does."""
    draft.dataset_id = dataset_id
    draft.brand, draft.vibe, draft.logo_asset_id, draft.dataset_name = "", "", None, ""
    await take_from_dataset(db, peers, draft, images=images)


async def _that_are_there(peers: Peers, row: Dataset) -> set[UUID]:
    """Returns the dataset's pictures that weren't deleted by force."""
    found = await peers.assets(map(str, row.pictures))
    return {each for each in row.pictures if assets.is_there(found.get(str(each)))}


def wanted(draft: NewGeneration, references_field: str) -> list[assets.Wanted]:
    """Returns the pictures of the draft, in the order in which they go into the model."""
    pictures = [
        assets.Wanted(f"{references_field}[{number}]", str(each))
        for number, each in enumerate(draft.reference_asset_ids)
    ]
    for field in ("logo_asset_id", "source_asset_id"):
        if asset_id := getattr(draft, field):
            pictures.append(assets.Wanted(field, str(asset_id)))
    return pictures


def recipe(draft: NewGeneration, pictures: Sequence[asset_pb2.Asset]) -> earlier.Recipe:
    """Returns the recipe of the draft; `pictures` are those of `wanted`."""
    names = (
        "task",
        "prompt",
        "style",
        "aspect_ratio",
        "quality",
        "format",
        "resolution",
        "view",
        "at_x",
        "at_y",
        "name",
        "brand",
        "vibe",
    )
    asked = {name: getattr(draft, name) for name in names}
    logo = draft.logo_asset_id is not None
    inputs = [("picture", asset.sha256) for asset in pictures]
    unseeded = rules.recipe_digest(inputs, logo=logo, seed=None, **asked)
    seed = draft.seed
    if seed is None:
        return earlier.Recipe(unseeded)
    return earlier.Recipe(
        rules.recipe_digest(inputs, logo=logo, seed=seed, **asked), unseeded, seed
    )
