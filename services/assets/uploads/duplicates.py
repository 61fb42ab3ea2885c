"""DuplicateService: finds duplicates by hash, and lists all duplicates of an owner."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.assets.v1 import duplicate_pb2 as pb
from atelier.assets.v1 import duplicate_pb2_grpc

from services.assets.core.pages import Paged
from services.assets.uploads.duplicate_rows import members, to_proto
from shared.database.db import Database
from shared.rpc import auth, paging
from shared.rpc.server import Context


@dataclass(slots=True)
class _Newest:
    """The newest asset of a group."""

    id: UUID
    sha256: str
    created_at: datetime


# Each group is found by its newest asset, so that pages are in keyset order and need no aggregate
# of everything.
_LIST = Paged(
    _Newest,
    """
    SELECT id, sha256, created_at FROM assets a WHERE owner = %(owner)s AND state = 'ready'
    AND EXISTS (
        SELECT FROM assets b WHERE b.owner = %(owner)s AND b.sha256 = a.sha256
            AND b.state = 'ready' AND (b.created_at, b.id) < (a.created_at, a.id))
    AND NOT EXISTS (
        SELECT FROM assets b WHERE b.owner = %(owner)s AND b.sha256 = a.sha256
            AND b.state = 'ready' AND (b.created_at, b.id) > (a.created_at, a.id))
    """,
)


class DuplicateService(duplicate_pb2_grpc.DuplicateServiceServicer):
    def __init__(self, db: Database) -> None:
        self._db = db

    async def FindDuplicates(
        self, request: pb.FindDuplicatesRequest, context: Context
    ) -> pb.FindDuplicatesResponse:
        return pb.FindDuplicatesResponse(groups=await self._groups(request.sha256s))

    async def ListDuplicates(
        self, request: pb.ListDuplicatesRequest, context: Context
    ) -> pb.ListDuplicatesResponse:
        page = paging.page(request)
        parameters = {"owner": auth.current().owner, **page.parameters}
        rows = await self._db.all(_LIST.of(page), parameters)
        found = await self._groups([row.sha256 for row in page.cut(rows)])
        groups = {group.sha256: group for group in found}
        gone = pb.DuplicateGroup()  # stands for a group that was dissolved meanwhile
        shown, token = page.fill(rows, (groups.get(row.sha256, gone) for row in rows))
        return pb.ListDuplicatesResponse(
            groups=[group for group in shown if group.total], next_page_token=token
        )

    async def _groups(self, hashes: Sequence[str]) -> list[pb.DuplicateGroup]:
        """Returns the groups that exist, in the order of the hashes."""
        found = await members(self._db, hashes)
        return [
            pb.DuplicateGroup(
                sha256=sha256,
                size_bytes=found[sha256][0].size_bytes,
                total=found[sha256][0].total,
                assets=[to_proto(row) for row in found[sha256]],
            )
            for sha256 in hashes
            if sha256 in found
        ]
