"""Runs a generation."""

from collections.abc import Mapping
from typing import Literal, cast

from atelier.assets.v1 import asset_pb2

from services.conversions import rules
from services.conversions.generation_rows import Generation
from services.conversions.providers.contract import PictureRequest
from services.conversions.runs.run import Run, StoredAs
from shared.background import attempts

_KINDS: Mapping[str, asset_pb2.AssetKind] = {
    "image": asset_pb2.ASSET_KIND_GENERATED,
    "closeup": asset_pb2.ASSET_KIND_CLOSEUP,
    "sketch": asset_pb2.ASSET_KIND_SKETCH,
}


async def run_generation(run: Run[Generation]) -> attempts.Outcome[Generation]:
    row = run.row
    paths = [item.path for item in await run.fetch_inputs()]
    references = paths[: len(row.reference_asset_ids)]
    elements = await run.local.visual_elements(references) if references else []
    prompt = rules.full_prompt(
        row.task,
        row.prompt,
        style=row.style,
        aspect_ratio=row.aspect_ratio,
        quality=row.quality,
        elements=elements,
        name=row.name,
        view=row.view,
        brand=row.brand,
        vibe=row.vibe,
        logo=row.logo_asset_id is not None,
    )
    declared = StoredAs(
        kind=_KINDS[row.task],
        file_name=f"{row.name or row.task}.{row.format}",
        prompt=prompt,
        scope=asset_pb2.AssetScope(product_id=row.product_id, dataset_id=row.dataset_id),
        format=row.format,
    )
    request = PictureRequest(
        row.model_task,
        prompt,
        run.pictures(),
        run.directory,
        # The contract's words for formats are these.
        file_format=cast(Literal["jpeg", "png", "webp"], row.format),
        style=row.style,
        aspect_ratio=row.aspect_ratio,
        quality=row.quality,
        resolution=row.resolution,
        seed=row.seed,
        view=row.view,
        at=row.at,
    )
    return await run.store(
        await run.make(request),
        declared,
        full_prompt=prompt,
        unique_visual_elements=elements,
    )
