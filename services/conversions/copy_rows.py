"""Copies of pictures with a visible label: which picture each was made of."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement
from shared.rpc import auth


@dataclass(slots=True)
class PictureCopy:
    """A copy, and the picture that it was made of."""

    copy_asset_id: UUID
    asset_id: UUID


_INSERT = Command("""
    INSERT INTO picture_copies (owner, copy_asset_id, asset_id)
    VALUES (%(owner)s, %(copy_asset_id)s, %(asset_id)s)
""")
_SELECT_COPIES = Statement(
    PictureCopy,
    """
    SELECT copy_asset_id, asset_id FROM picture_copies
    WHERE owner = %(owner)s AND asset_id = ANY(%(ids)s)
    """,
)
_SELECT_ORIGINALS = Statement(
    PictureCopy,
    """
    SELECT copy_asset_id, asset_id FROM picture_copies
    WHERE owner = %(owner)s AND copy_asset_id = ANY(%(ids)s)
    """,
)


async def note(m: Mutation, copy_asset_id: UUID, asset_id: UUID) -> None:
    values = {"owner": m.owner, "copy_asset_id": copy_asset_id, "asset_id": asset_id}
    await m.run(_INSERT, values)


async def copies(db: Database, asset_ids: Collection[UUID]) -> Sequence[PictureCopy]:
    """Returns the copies of pictures."""
    values = {"owner": auth.current().owner, "ids": list(asset_ids)}
    return await db.all(_SELECT_COPIES, values)


async def originals(db: Database, asset_ids: Collection[UUID]) -> Sequence[PictureCopy]:
    """Returns of what pictures were made that are copies."""
    values = {"owner": auth.current().owner, "ids": list(asset_ids)}
    return await db.all(_SELECT_ORIGINALS, values)
