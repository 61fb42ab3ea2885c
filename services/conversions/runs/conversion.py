"""Runs a conversion."""

from atelier.assets.v1 import asset_pb2

from services.conversions.conversion_rows import Conversion
from services.conversions.providers.contract import PictureRequest
from services.conversions.runs.run import Run, StoredAs
from shared.background import attempts


async def run_conversion(run: Run[Conversion]) -> attempts.Outcome[Conversion]:
    row = run.row
    await run.fetch_inputs()
    request = PictureRequest(
        row.model_task, row.style_name, run.pictures(), run.directory, style=row.style_name
    )
    picture = await run.make(request)
    declared = StoredAs(
        kind=asset_pb2.ASSET_KIND_RESULT,
        file_name="try-on.jpg",
        prompt=row.style_name,
        scope=asset_pb2.AssetScope(product_id=row.product_id),
    )
    return await run.store(picture, declared)
