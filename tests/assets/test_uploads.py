import httpx
from atelier.assets.v1 import asset_pb2

from tests.assets import flows
from tests.suite import Suite


async def test_a_client_uploads_and_gets_variants(atelier: Suite) -> None:
    await atelier.serve("assets")
    await atelier.work("assets")
    ada = atelier.client("ada")
    data = flows.jpeg(2000, 1500)
    asset = await flows.upload(ada, data, scope=asset_pb2.AssetScope(product_id="p1"))
    assert asset.state == asset_pb2.ASSET_STATE_READY
    assert (asset.width, asset.height, asset.size_bytes) == (2000, 1500, len(data))
    assert asset.owner == "user:ada"
    assert asset.primary
    variants = await flows.variants_of(ada, asset.id)
    assert {name: v.state for name, v in variants.items()} == dict.fromkeys(
        ("thumb", "small", "large", "avif"), asset_pb2.VARIANT_STATE_READY
    )
    assert max(variants["thumb"].width, variants["thumb"].height) == 256
    async with httpx.AsyncClient() as http:
        assert (await http.get(asset.original_url)).content == data
        fetched = await http.get(variants["avif"].url)
        assert fetched.status_code == 200 and len(fetched.content) == variants["avif"].size_bytes
