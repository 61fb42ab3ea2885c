"""Products and their images: the row classes, their messages, locking, changing and publishing a
product."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from atelier.assets.v1 import asset_pb2
from atelier.pipeline.v1 import product_pb2

from services.pipeline import phase_rows
from services.pipeline.phase_rows import Phase
from shared.background import events
from shared.database.db import Mutation
from shared.database.rows import Command, Statement, Table, compiled
from shared.rpc import errors, views
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
    condition: str
    condition_details: str
    nothing_found: bool  # phase 2 looked for the product on the market
    archived_at: datetime | None
    deleted_at: datetime | None
    expires_at: datetime | None
    restated: dict[str, str]  # what its owner stated anew, with the time as text


class LockedProduct(Product):
    """A product whose row the transaction has locked."""

    __slots__ = ()


@dataclass(slots=True)
class ProductImage:
    owner: str
    product_id: UUID
    position: int
    asset_id: UUID
    view: str
    is_primary: bool
    source_url: str  # without its query; empty: the image wasn't fetched
    file_name: str
    size_bytes: int | None
    mime_type: str
    width: int | None
    height: int | None


PRODUCTS = Table("products", LockedProduct)
IMAGES = Table("product_images", ProductImage)
SELECT_PRODUCT = Statement(Product, f"SELECT {PRODUCTS.columns} FROM products WHERE id = %(id)s")
_LOCK_PRODUCT = Statement(LockedProduct, f"{SELECT_PRODUCT.text} FOR UPDATE")
SELECT_ID = Statement(UUID, "SELECT id FROM products WHERE id = %(id)s")
# A purge waits until rows that belong to the product are committed.
_SELECT_IN_TRASH = Statement(
    bool,
    "SELECT deleted_at IS NOT NULL AS deleted FROM products WHERE id = %(id)s FOR KEY SHARE",
)
SELECT_PREPARATION = Statement(str, "SELECT preparation FROM products WHERE id = %(id)s")
SELECT_ASSET_IDS = Statement(
    UUID, "SELECT asset_id FROM product_images WHERE product_id = %(id)s ORDER BY position"
)
SELECT_IMAGES = Statement(
    ProductImage,
    f"""
    SELECT {IMAGES.columns} FROM product_images WHERE product_id = ANY(%(ids)s)
    ORDER BY product_id, position
""",
)
_DELETE_IMAGES = Command("DELETE FROM product_images WHERE product_id = %(id)s")
_INSERT_IMAGES = Command("""
    INSERT INTO product_images (owner, product_id, position, asset_id, view, is_primary, source_url,
        file_name, size_bytes, mime_type, width, height)
    SELECT %(owner)s, %(id)s, position, asset_id, view, is_primary, source_url, file_name,
        size_bytes, mime_type, width, height
    FROM unnest(%(positions)s::smallint[], %(assets)s::uuid[], %(views)s::text[],
            %(primary)s::boolean[], %(urls)s::text[], %(names)s::text[], %(sizes)s::bigint[],
            %(types)s::text[], %(widths)s::integer[], %(heights)s::integer[])
        AS t (position, asset_id, view, is_primary, source_url, file_name, size_bytes, mime_type,
            width, height)
""")
_NOTE_FILES = Command("""
    UPDATE product_images i SET file_name = t.file_name, size_bytes = t.size_bytes,
        mime_type = t.mime_type, width = t.width, height = t.height
    FROM unnest(%(assets)s::uuid[], %(names)s::text[], %(sizes)s::bigint[], %(types)s::text[],
            %(widths)s::integer[], %(heights)s::integer[])
        AS t (asset_id, file_name, size_bytes, mime_type, width, height)
    WHERE i.product_id = %(id)s AND i.asset_id = t.asset_id
""")


@cache
def _update(columns: tuple[str, ...], stamps: tuple[str, ...]) -> Statement[LockedProduct]:
    """Returns the statement that sets columns, and stamps with the time of the transaction, and
    raises the version."""
    row = PRODUCTS.core.c
    values: dict[str, Any] = {name: sa.bindparam(name) for name in columns}
    values |= {name: sa.func.now() for name in ("updated_at", *stamps)}
    values["version"] = row.version + sa.literal_column("1")
    one = sa.update(PRODUCTS.core).where(row.id == sa.bindparam("row_id"))
    return compiled(PRODUCTS.row, one.values(values).returning(*row))


async def lock(m: Mutation, product_id: UUID) -> LockedProduct:
    """Locks the owner's product until the commit and returns it. Raises NOT_FOUND if there is
    none."""
    row = await m.first(_LOCK_PRODUCT, {"id": product_id})
    if row is None:
        raise errors.not_found("product", product_id)
    return row


async def update(
    m: Mutation, locked: LockedProduct, columns: Mapping[str, Any], *, stamps: Sequence[str] = ()
) -> LockedProduct:
    """Sets columns, and `stamps` to the time of the transaction, raises the version, publishes the
    product and returns it."""
    statement = _update(tuple(columns), tuple(stamps))
    row = await m.one(statement, {**columns, "row_id": locked.id})
    await publish(m, row)
    return row


async def replace_images(
    m: Mutation, locked: LockedProduct, images: Sequence[ProductImage]
) -> None:
    """Makes these the images of a product, in this order. The caller publishes the product."""
    await m.run(_DELETE_IMAGES, {"id": locked.id})
    await m.run(
        _INSERT_IMAGES,
        {
            "owner": locked.owner,
            "id": locked.id,
            "positions": list(range(1, len(images) + 1)),
            "assets": [row.asset_id for row in images],
            "views": [row.view for row in images],
            "primary": [row.is_primary for row in images],
            "urls": [row.source_url for row in images],
            "names": [row.file_name for row in images],
            "sizes": [row.size_bytes for row in images],
            "types": [row.mime_type for row in images],
            "widths": [row.width for row in images],
            "heights": [row.height for row in images],
        },
    )


async def note_files(m: Mutation, product_id: UUID, assets: Sequence[asset_pb2.Asset]) -> None:
    """Notes what `assets` knows of the files of a product's images."""
    await m.run(
        _NOTE_FILES,
        {
            "id": product_id,
            "assets": [UUID(asset.id) for asset in assets],
            "names": [asset.file_name for asset in assets],
            "sizes": [asset.size_bytes for asset in assets],
            "types": [asset.mime_type for asset in assets],
            "widths": [asset.width or None for asset in assets],
            "heights": [asset.height or None for asset in assets],
        },
    )


def refuse_deleted(row: Product) -> None:
    """Raises FAILED_PRECONDITION for a product in the trash."""
    if row.deleted_at:
        raise _in_trash(row.id)


async def check_usable(m: Mutation, product_id: UUID) -> None:
    """Raises NOT_FOUND if the owner has no such product, FAILED_PRECONDITION if it is in the
    trash."""
    deleted = await m.first(_SELECT_IN_TRASH, {"id": product_id})
    if deleted is None:
        raise errors.not_found("product", product_id)
    if deleted:
        raise _in_trash(product_id)


def _in_trash(product_id: UUID) -> errors.DomainError:
    text = "the product is deleted; UndeleteProduct takes it out of the trash, then repeat"
    return errors.precondition(text, subject=f"products/{product_id}")


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
        market_nothing_found=row.nothing_found,
        condition=row.condition,
        condition_details=row.condition_details,
        archive_time=timestamp(row.archived_at),
        delete_time=timestamp(row.deleted_at),
        expire_time=timestamp(row.expires_at),
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
        source_url=row.source_url,
        file_name=row.file_name,
        size_bytes=row.size_bytes,
        mime_type=row.mime_type,
        width=row.width,
        height=row.height,
    )


async def publish(m: Mutation, row: Product) -> None:
    """Reads the product's images and publishes the product with them."""
    images = await m.all(SELECT_IMAGES, {"ids": [row.id]})
    await events.publish(m, "product", row.id, row.version, to_proto(row, images))
