"""Duplicates: what an owner keeps more than once, by the hash of the bytes, the trash included."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from atelier.assets.v1 import duplicate_pb2 as pb
from atelier.assets.v1 import duplicate_pb2_grpc

from services.assets.core import asset_rows
from shared.database.db import Database
from shared.rpc import auth, paging
from shared.rpc.protos import timestamp

MOST_SHOWN = 20

# The count and the rows of each hash come from one walk of the index (owner, sha256, created_at,
# id).
_MEMBERS = """
    SELECT * FROM (
        SELECT id, sha256, kind, file_name, size_bytes, created_at, archived_at, deleted_at,
            expires_at,
            row_number() OVER (PARTITION BY sha256 ORDER BY created_at DESC, id DESC) AS place,
            count(*) OVER (PARTITION BY sha256) AS total
        FROM assets WHERE owner = %(owner)s AND state = 'ready' AND sha256 = ANY(%(hashes)s)
    ) AS numbered WHERE place <= %(most)s ORDER BY sha256, place
"""
# Each group is found by its newest asset, so that pages are in keyset order and need no aggregate
# of everything.
_NEWEST = """
    SELECT id, sha256, created_at FROM assets a WHERE owner = %(owner)s AND state = 'ready'
    AND EXISTS (SELECT FROM assets b WHERE b.owner = %(owner)s AND b.sha256 = a.sha256 AND b.state
        = 'ready'
                AND (b.created_at, b.id) < (a.created_at, a.id))
    AND NOT EXISTS (SELECT FROM assets b WHERE b.owner = %(owner)s AND b.sha256 = a.sha256
        AND b.state = 'ready'
                    AND (b.created_at, b.id) > (a.created_at, a.id))
"""


class DuplicateService(duplicate_pb2_grpc.DuplicateServiceServicer):
    def __init__(self, db: Database) -> None:
        self._db = db

    async def FindDuplicates(
        self, request: pb.FindDuplicatesRequest, context: Any
    ) -> pb.FindDuplicatesResponse:
        return pb.FindDuplicatesResponse(groups=await self._groups(request.sha256s))

    async def ListDuplicates(
        self, request: pb.ListDuplicatesRequest, context: Any
    ) -> pb.ListDuplicatesResponse:
        page = paging.page(request)
        statement: Any = _NEWEST + page.clause
        parameters = {"owner": auth.current().owner, **page.parameters}
        rows = await self._db.rows(statement, parameters)
        groups = {
            group.sha256: group
            for group in await self._groups([row.sha256 for row in page.cut(rows)])
        }
        gone = pb.DuplicateGroup()  # of one that was dissolved meanwhile
        found, token = page.fill(rows, (groups.get(row.sha256, gone) for row in rows))
        return pb.ListDuplicatesResponse(
            groups=[group for group in found if group.total], next_page_token=token
        )

    async def _groups(self, hashes: Sequence[str]) -> list[pb.DuplicateGroup]:
        """What is there, in the order of the hashes."""
        members = await _members(self._db, hashes)
        return [
            pb.DuplicateGroup(
                sha256=sha256,
                size_bytes=members[sha256][0].size_bytes,
                total=members[sha256][0].total,
                assets=[to_proto(row) for row in members[sha256]],
            )
            for sha256 in hashes
            if sha256 in members
        ]


async def others(db: Database, asset: Any) -> list[pb.Duplicate]:
    """The owner's other assets with the bytes of this READY one, newest first, at most 20."""
    members = await _members(db, [asset.sha256], most=MOST_SHOWN + 1)
    return [to_proto(row) for row in members[asset.sha256] if row.id != asset.id][:MOST_SHOWN]


def to_proto(row: Any) -> pb.Duplicate:
    return pb.Duplicate(
        asset_id=str(row.id),
        kind=asset_rows.KINDS.number[row.kind],
        file_name=row.file_name,
        create_time=timestamp(row.created_at),
        in_trash=row.deleted_at is not None,
        expire_time=timestamp(row.expires_at),
        archived=row.archived_at is not None,
    )


async def _members(
    db: Database, hashes: Sequence[str], *, most: int = MOST_SHOWN
) -> dict[str, list[Any]]:
    members: dict[str, list[Any]] = defaultdict(list)
    parameters = {"owner": auth.current().owner, "hashes": list(hashes), "most": most}
    for row in await db.rows(_MEMBERS, parameters):
        members[row.sha256].append(row)
    return members
