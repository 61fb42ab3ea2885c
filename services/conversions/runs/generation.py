"""Runs a generation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from atelier.assets.v1 import asset_pb2

from services.conversions import rules
from services.conversions.generation_rows import Generation
from services.conversions.providers.contract import ImageSettings, Picture, PictureProvider
from services.conversions.runs.run import Run, StoredAs
from shared.background import attempts

_KINDS: Mapping[str, asset_pb2.AssetKind] = {
    "image": asset_pb2.ASSET_KIND_GENERATED,
    "closeup": asset_pb2.ASSET_KIND_CLOSEUP,
    "sketch": asset_pb2.ASSET_KIND_SKETCH,
}


async def run_generation(run: Run[Generation, PictureProvider]) -> attempts.Outcome[Generation]:
    row = run.row
    paths = [item.path for item in await run.fetch_inputs()]
    elements = await run.provider.visual_elements(paths) if row.reference_asset_ids else []
    prompt = rules.full_prompt(
        row.task,
        row.prompt,
        style=row.style,
        aspect_ratio=row.aspect_ratio,
        quality=row.quality,
        elements=elements,
        name=row.name,
        view=row.view,
    )
    declared = StoredAs(
        kind=_KINDS[row.task],
        file_name=f"{row.name or row.task}.{row.format}",
        prompt=prompt,
        scope=asset_pb2.AssetScope(product_id=row.product_id, dataset_id=row.dataset_id),
        format=row.format,
    )
    return await run.store(
        await _picture(run, prompt, paths),
        declared,
        price=rules.GENERATION_CREDITS[row.task],
        full_prompt=prompt,
        unique_visual_elements=elements,
    )


async def _picture(
    run: Run[Generation, PictureProvider], prompt: str, paths: Sequence[Path]
) -> Picture:
    row, provider, directory = run.row, run.provider, run.directory
    if row.task == "closeup":
        return await provider.close_up(prompt, paths[0], directory, at=row.at, format=row.format)
    if row.task == "sketch":
        return await provider.sketch(prompt, paths[0], directory, view=row.view, format=row.format)
    settings = ImageSettings(
        row.style, row.aspect_ratio, row.quality, row.format, row.resolution, row.seed
    )
    return await provider.image(prompt, paths, directory, settings)
