"""References from this service's own nouns to pictures; others call `AcquireReferences`."""

from collections.abc import Sequence
from uuid import UUID

from services.assets.core import asset_rows, rules
from services.assets.core.asset_rows import ASSETS, Asset
from shared.database.db import Mutation
from shared.database.rows import Command, Statement
from shared.rpc import errors

_SELECT_OTHERS = Statement(
    Asset,
    f"SELECT {ASSETS.columns} FROM assets WHERE id = ANY(%(ids)s) AND owner <> %(owner)s",
)
_SHARE_OWN = Statement(
    Asset,
    f"""
    SELECT {ASSETS.columns} FROM assets WHERE id = ANY(%(ids)s) AND owner = %(owner)s
    ORDER BY id FOR SHARE
    """,
)
_HOLD = Command("""
    INSERT INTO asset_references (owner, asset_id, holder, service)
    SELECT %(owner)s, unnest(%(ids)s::uuid[]), %(holder)s, 'assets' ON CONFLICT DO NOTHING
""")
_RELEASE = Command("""
    DELETE FROM asset_references WHERE owner = %(owner)s AND holder = ANY(%(holders)s)
        AND service = 'assets'
""")


async def hold(m: Mutation, holder: str, pictures: Sequence[tuple[str, UUID]]) -> list[Asset]:
    """Writes references to READY images, the owner's or public ones, for as long as `holder`
    exists. `pictures`: (field path, asset id), no id twice. Returns the assets' rows in that order.

    Raises NOT_FOUND for an image that the owner may not see, INVALID_ARGUMENT on the field for a
    PDF, FAILED_PRECONDITION for an image that isn't READY, is in the trash or has lost its bytes.
    """
    ids = [asset_id for _, asset_id in pictures]
    if not ids:
        return []
    # A concurrent delete waits for the lock, or came first and is seen. Rows of others can't be
    # locked; the reference's foreign key locks their keys. A delete locks in the same order: by id.
    named = {"ids": ids, "owner": m.owner}
    theirs = await m.all(_SELECT_OTHERS, named)
    own = await m.all(_SHARE_OWN, named)
    found = {row.id: row for row in (*theirs, *own)}
    for path, asset_id in pictures:
        _check(found.get(asset_id), path, asset_id)
    await m.run(_HOLD, {"owner": m.owner, "ids": sorted(ids), "holder": holder})
    return [found[asset_id] for asset_id in ids]


def _check(row: Asset | None, path: str, asset_id: UUID) -> None:
    if row is None:
        raise errors.not_found("asset", asset_id)
    if problem := asset_rows.unusable(row):
        raise errors.precondition(f"{path}: {problem}", subject=f"assets/{asset_id}")
    if row.mime_type == rules.PDF:
        raise errors.invalid(path, f"{asset_id} is a PDF; name an image")


async def release(m: Mutation, holders: Sequence[str]) -> None:
    """Deletes all references of `holders`."""
    await m.run(_RELEASE, {"owner": m.owner, "holders": list(holders)})
