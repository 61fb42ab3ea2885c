"""Products and their images: the row classes, their messages, and publishing a product."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from atelier.pipeline.v1 import product_pb2

from services.pipeline import phase_rows
from services.pipeline.phase_rows import Phase
from shared.background import events
from shared.database.db import Mutation
from shared.database.rows import Statement, Table
from shared.rpc import views
from shared.rpc.protos import EnumNames, facts_message, timestamp

STATES = EnumNames(product_pb2.ProductState, "PRODUCT_STATE_")
PROVIDERS = EnumNames(product_pb2.MarketProvider, "MARKET_PROVIDER_")


@dataclass(slots=True)
class Product:
    id: UUID
    owner: str
    created_by: str
    name: str
    model: str
    facts: dict[str, Any]  # in the plain form of shared.formats.facts
    auto_advance: bool
    market_provider: str
    external_phases: list[int]
    state: str
    version: int
    preparation: str
    preparing_since: datetime
    running: bool
    confidence: float | None
    error_class: str
    error_message: str
    created_at: datetime
    updated_at: datetime


@dataclass(slots=True)
class ProductImage:
    owner: str
    product_id: UUID
    position: int
    asset_id: UUID
    view: str
    is_primary: bool


PRODUCTS = Table("products", Product)
IMAGES = Table("product_images", ProductImage)
SELECT_PRODUCT = Statement(Product, f"SELECT {PRODUCTS.columns} FROM products WHERE id = %(id)s")
SELECT_ID = Statement(UUID, "SELECT id FROM products WHERE id = %(id)s")
SELECT_PREPARATION = Statement(str, "SELECT preparation FROM products WHERE id = %(id)s")
SELECT_IMAGES = Statement(
    ProductImage,
    f"""
    SELECT {IMAGES.columns} FROM product_images WHERE product_id = ANY(%(ids)s)
    ORDER BY product_id, position
""",
)


def to_proto(
    row: Product,
    images: Sequence[ProductImage],
    phases: Sequence[Phase] = (),
    *,
    with_facts: bool = False,
) -> product_pb2.Product:
    """Returns the message. `images` are sorted by position, `phases` by number."""
    message = product_pb2.Product(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        name=row.name,
        model=row.model,
        state=STATES.number[row.state],
        is_pipeline_running=row.running,
        requires_manual_review=row.state == "awaiting_review",
        confidence=row.confidence,
        auto_advance=row.auto_advance,
        external_phases=row.external_phases,
        market_provider=PROVIDERS.number[row.market_provider],
        images=[_image(item) for item in images],
        phases=[phase_rows.to_proto(item) for item in phases],
        error_class=row.error_class,
        error_message=row.error_message,
        etag=str(row.version),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
    )
    if with_facts:
        message.facts.CopyFrom(facts_message(row.facts))
    return message


def _image(row: ProductImage) -> product_pb2.ProductImage:
    return product_pb2.ProductImage(
        asset_id=str(row.asset_id),
        view=row.view,
        view_type=views.type_of(row.view),
        primary=row.is_primary,
    )


async def publish(m: Mutation, row: Product) -> None:
    """Reads the product's images and publishes the product with them."""
    images = await m.all(SELECT_IMAGES, {"ids": [row.id]})
    await events.publish(m, "product", row.id, row.version, to_proto(row, images))
