"""Duplicates: an owner's assets with equal bytes, by their hash, the trash included."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.assets.v1 import duplicate_pb2 as pb

from services.assets.core.asset_rows import KINDS, Asset
from shared.database.db import Database
from shared.database.rows import Statement
from shared.rpc import auth
from shared.rpc.protos import timestamp

MOST_SHOWN = 20


@dataclass(slots=True)
class Member:
    """An asset among those with the same bytes. `place`: its number, 1 for the newest; `total`: how
    many there are."""

    id: UUID
    sha256: str
    kind: str
    file_name: str
    size_bytes: int
    created_at: datetime
    archived_at: datetime | None
    deleted_at: datetime | None
    expires_at: datetime | None
    place: int
    total: int


# The count and the rows of each hash come from one walk of the index (owner, sha256, created_at,
# id).
_SELECT_MEMBERS = Statement(
    Member,
    """
    SELECT id, sha256, kind, file_name, size_bytes, created_at, archived_at, deleted_at,
        expires_at, place, total
    FROM (
        SELECT id, sha256, kind, file_name, size_bytes, created_at, archived_at, deleted_at,
            expires_at,
            row_number() OVER (PARTITION BY sha256 ORDER BY created_at DESC, id DESC) AS place,
            count(*) OVER (PARTITION BY sha256) AS total
        FROM assets WHERE owner = %(owner)s AND state = 'ready' AND sha256 = ANY(%(hashes)s)
    ) AS numbered WHERE place <= %(most)s ORDER BY sha256, place
    """,
)


async def others(db: Database, asset: Asset) -> list[pb.Duplicate]:
    """Returns the owner's other assets with the bytes of this READY one, newest first, at most
    20."""
    found = await members(db, [asset.sha256], most=MOST_SHOWN + 1)
    same = found.get(asset.sha256, [])
    return [to_proto(row) for row in same if row.id != asset.id][:MOST_SHOWN]


async def members(
    db: Database, hashes: Sequence[str], *, most: int = MOST_SHOWN
) -> Mapping[str, list[Member]]:
    """Returns, by hash, the owner's newest assets with these bytes, at most `most` of each."""
    found: dict[str, list[Member]] = defaultdict(list)
    parameters = {"owner": auth.current().owner, "hashes": list(hashes), "most": most}
    for row in await db.all(_SELECT_MEMBERS, parameters):
        found[row.sha256].append(row)
    return found


def to_proto(row: Member) -> pb.Duplicate:
    return pb.Duplicate(
        asset_id=str(row.id),
        kind=KINDS.number[row.kind],
        file_name=row.file_name,
        create_time=timestamp(row.created_at),
        in_trash=row.deleted_at is not None,
        expire_time=timestamp(row.expires_at),
        archived=row.archived_at is not None,
    )
