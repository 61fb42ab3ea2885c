"""Chooses the primary image of a product: at most one per product.

Every transaction locks in one order: products, then assets by id.
"""

from collections.abc import Sequence
from uuid import UUID

from services.assets.core import asset_rows
from services.assets.core.asset_rows import ASSETS, Asset, LockedAsset
from shared.database.db import Mutation
from shared.database.rows import Command, Statement
from shared.rpc import errors

_SELECT_PRODUCTS = Statement(
    str,
    """
    SELECT product_id FROM assets WHERE id = %(id)s AND owner = %(owner)s AND product_id <> ''
    UNION SELECT %(product_id)s::text WHERE %(product_id)s::text <> '' ORDER BY product_id
    """,
)
_LOCK_PRODUCT = Command("SELECT pg_advisory_xact_lock(hashtextextended(%(key)s, 1))")
_TRY_LOCK_PRODUCT = Statement(
    bool, "SELECT pg_try_advisory_xact_lock(hashtextextended(%(key)s, 1))"
)
_LOCK_PRIMARIES = Command("""
    SELECT FROM assets WHERE owner = %(owner)s AND (id = %(id)s OR product_id
        = ANY(%(products)s) AND is_primary)
    ORDER BY id FOR UPDATE
""")
_SELECT_PRIMARY = Statement(
    UUID,
    """
    SELECT id FROM assets
    WHERE owner = %(owner)s AND product_id = %(product_id)s AND is_primary
    """,
)
_UNSET_OTHER_PRIMARIES = Statement(
    LockedAsset,
    f"""
    UPDATE assets SET is_primary = false, version = version + 1, updated_at = now()
    WHERE owner = %(owner)s AND product_id = %(product_id)s AND is_primary AND id <> %(id)s
    RETURNING {ASSETS.columns}
    """,
)
# SKIP LOCKED passes over an image that another transaction has locked: waiting for it, with the
# product locked, could be a deadlock.
_LOCK_NEXT_PRIMARY = Statement(
    LockedAsset,
    f"""
    SELECT {ASSETS.columns} FROM assets
    WHERE owner = %(owner)s AND product_id = %(product_id)s AND kind = 'product'
        AND state = 'ready' AND deleted_at IS NULL AND archived_at IS NULL AND bytes_gone_at IS NULL
    ORDER BY created_at, id LIMIT 1 FOR UPDATE SKIP LOCKED
    """,
)


def _lock_key(m: Mutation, product_id: str) -> dict[str, str]:
    return {"key": "\x1f".join(("primary", m.owner, product_id))}


async def lock_product(m: Mutation, product_id: str) -> None:
    """Locks the product until the commit, so that nobody else chooses its primary image. Call it
    before any asset is locked: whoever has this lock waits for the row of the old primary image."""
    await m.run(_LOCK_PRODUCT, _lock_key(m, product_id))


async def _lock_without_waiting(m: Mutation, product_id: str) -> None:
    """Locks the product, or raises ABORTED with RetryInfo if another transaction has the lock. That
    happens if an asset got into this product after the transaction locked the products that it
    knew of: waiting now, with assets locked, could be a deadlock."""
    if not await m.one(_TRY_LOCK_PRODUCT, _lock_key(m, product_id)):
        text = "its product is being changed right now; nothing was changed, try again"
        raise errors.retry_later(errors.Reason.ERROR_REASON_REQUEST_IN_PROGRESS, text, 0.2)


async def lock_primaries(m: Mutation, asset_id: UUID, product_id: str) -> None:
    """Locks the products and assets that may change when the asset becomes the primary image of its
    product or of `product_id`."""
    mine: dict[str, object] = {"id": asset_id, "owner": m.owner, "product_id": product_id}
    products = await m.all(_SELECT_PRODUCTS, mine)
    for each in products:
        await lock_product(m, each)
    await m.run(_LOCK_PRIMARIES, {**mine, "products": products})


async def make_primary(m: Mutation, asset: LockedAsset, *, only_first: bool = False) -> LockedAsset:
    """Makes the asset the one primary image of its product; with `only_first`, unless the product
    has one. Returns the asset's new row.

    The caller has locked the product: else two concurrent first images would both find none. A
    product that the caller couldn't know of is locked here, or ABORTED is raised.
    """
    product = {"owner": m.owner, "product_id": asset.product_id, "id": asset.id}
    await _lock_without_waiting(m, asset.product_id)
    if only_first and await m.first(_SELECT_PRIMARY, product) is not None:
        return asset
    for row in await m.all(_UNSET_OTHER_PRIMARIES, product):
        await asset_rows.publish(m, row)
    return await asset_rows.update(m, asset, is_primary=True)


def may_lead(row: Asset) -> bool:
    """Returns whether the asset becomes the primary image of its product if there is none."""
    return bool(
        row.kind == "product"
        and row.product_id
        and not row.archived_at
        and not asset_rows.unusable(row)
    )


async def hand_over(m: Mutation, primaries: Sequence[Asset]) -> None:
    """Makes the oldest image that is left the primary one, in each product of `primaries`. The
    caller has locked the products."""
    for gone in primaries:
        product = {"owner": m.owner, "product_id": gone.product_id}
        heir = await m.first(_LOCK_NEXT_PRIMARY, product)
        if heir is not None:
            await asset_rows.publish(m, await make_primary(m, heir))
