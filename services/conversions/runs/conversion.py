"""Runs a conversion."""

from atelier.assets.v1 import asset_pb2

from services.conversions import rules
from services.conversions.conversion_rows import Conversion
from services.conversions.providers.contract import TryOnProvider
from services.conversions.runs.run import Run, StoredAs
from shared.background import attempts


async def run_conversion(run: Run[Conversion, TryOnProvider]) -> attempts.Outcome[Conversion]:
    row = run.row
    person, cloth = await run.fetch_inputs()
    picture = await run.provider.try_on(
        person.path, cloth.path, run.directory, style=row.style_name
    )
    declared = StoredAs(
        kind=asset_pb2.ASSET_KIND_RESULT,
        file_name="try-on.jpg",
        prompt=row.style_name,
        scope=asset_pb2.AssetScope(product_id=row.product_id),
    )
    return await run.store(picture, declared, price=0 if row.free else rules.CONVERSION_CREDITS)
