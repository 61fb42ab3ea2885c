"""ComparisonService: shows renders beside the pictures that they were made from, by reference.
`comparing` runs the job that makes one picture of the two."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import sqlalchemy as sa
from atelier.assets.v1 import render_pb2 as pb
from atelier.assets.v1 import render_pb2_grpc

from services.assets.accounting.enforcing import Quotas
from services.assets.comparisons import comparison_rows, deleting, rules
from services.assets.comparisons.comparison_rows import COMPARISONS, Comparison
from services.assets.core import holding
from services.assets.core.asset_rows import Urls
from services.assets.core.trashing import Trash
from shared.background import jobs, waiting
from shared.background.watches import EventStream
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.database.lists import Listing
from shared.database.rows import Statement
from shared.rpc import auth, errors, paging
from shared.rpc.server import Context


@dataclass(slots=True)
class _StoredPicture:
    """The storage key, media type and file name of a picture."""

    id: UUID
    storage_key: str
    mime_type: str
    file_name: str


_SELECT_COMPARISON = Statement(
    Comparison, f"SELECT {COMPARISONS.columns} FROM comparisons WHERE id = %(id)s"
)
_SELECT_MINE = Statement(
    Comparison,
    f"SELECT {COMPARISONS.columns} FROM comparisons WHERE id = %(id)s AND owner = %(owner)s",
)
_SELECT_STORED_PICTURES = Statement(
    _StoredPicture,
    """
    SELECT id, storage_key, mime_type, file_name FROM assets
    WHERE id = ANY(%(ids)s) AND state = 'ready' AND deleted_at IS NULL
    """,
)
_LIST = Listing(
    COMPARISONS,
    Comparison,
    asset_id=lambda row, asset_id: sa.or_(
        row.before_asset_id == asset_id, row.after_asset_id == asset_id
    ),
)
_INSERT_COMPARISON = COMPARISONS.insert(
    "id",
    "owner",
    "created_by",
    "before_asset_id",
    "after_asset_id",
    "note",
    "session_id",
    "room_id",
)


class ComparisonService(render_pb2_grpc.ComparisonServiceServicer):
    def __init__(
        self,
        db: Database,
        stream: EventStream,
        queue: jobs.JobQueue,
        urls: Urls,
        trash: Trash,
        quota: Quotas,
    ) -> None:
        self._db = db
        self._stream = stream
        self._queue = queue
        self._urls = urls
        self._trash = trash
        self._quotas = quota

    async def CreateComparison(
        self, request: pb.CreateComparisonRequest, context: Context
    ) -> pb.CreateComparisonResponse:
        before, after = UUID(request.before_asset_id), UUID(request.after_asset_id)
        if before == after:
            raise errors.invalid("after_asset_id", "names the same picture as before_asset_id")

        async def work(m: Mutation) -> pb.CreateComparisonResponse:
            comparison_id = new_id()
            # The size of the picture of the two is known only when it is made.
            await self._quotas.room(m)
            pictures = [("before_asset_id", before), ("after_asset_id", after)]
            await holding.hold(m, rules.holder(comparison_id), pictures)
            values = {
                "id": comparison_id,
                "owner": m.owner,
                "created_by": m.actor,
                "before_asset_id": before,
                "after_asset_id": after,
                "note": request.note,
                "session_id": request.session_id,
                "room_id": request.room_id,
            }
            row = await m.one(_INSERT_COMPARISON, values)
            await comparison_rows.publish(m, row)
            await self._queue.enqueue(m, comparison_rows.TASK, comparison_rows.QUEUE, comparison_id)
            return pb.CreateComparisonResponse(comparison=comparison_rows.to_proto(row))

        answer = await self._db.mutate(request, pb.CreateComparisonResponse, work)
        await self._finish(request, answer.comparison)
        return answer

    async def GetComparison(
        self, request: pb.GetComparisonRequest, context: Context
    ) -> pb.GetComparisonResponse:
        row = await self._read(request.comparison_id)
        [shown] = await self._shown([row], request.include_urls)
        return pb.GetComparisonResponse(comparison=shown)

    async def ListComparisons(
        self, request: pb.ListComparisonsRequest, context: Context
    ) -> pb.ListComparisonsResponse:
        page = paging.page(request)
        wanted = {
            "session_id": request.session_id,
            "room_id": request.room_id,
            "asset_id": request.asset_id and UUID(request.asset_id),
        }
        rows = await self._db.all(*_LIST.query(page, wanted))
        shown, token = page.fill(rows, await self._shown(page.cut(rows), request.include_urls))
        return pb.ListComparisonsResponse(comparisons=shown, next_page_token=token)

    async def DeleteComparison(
        self, request: pb.DeleteComparisonRequest, context: Context
    ) -> pb.DeleteComparisonResponse:
        comparison_id = parse_id(request.comparison_id, "comparison_id")
        mine = {"id": comparison_id, "owner": auth.current().owner}
        row = await self._db.first(_SELECT_MINE, mine)
        made = [row.picture_asset_id] if row and row.picture_asset_id else []

        async def work(m: Mutation) -> pb.DeleteComparisonResponse:
            deleted = await deleting.delete(m, [comparison_id])
            if not deleted:
                raise errors.not_found("comparison", comparison_id)
            # The picture was made for the comparison; if it has another reference by now, it stays.
            if picture := deleted[0].picture_asset_id:
                await self._trash.delete(m, [picture], moves, force=False)
            return pb.DeleteComparisonResponse()

        async with self._trash.moves(made, public=False) as moves:
            return await self._db.mutate(request, pb.DeleteComparisonResponse, work)

    async def _finish(self, request: pb.CreateComparisonRequest, comparison: pb.Comparison) -> None:
        """Waits for the job's end if the request says so, and shows the comparison as it is
        then."""
        if not request.wait and not request.include_urls:
            return
        read = partial(self._read, comparison.id)
        row: Comparison = await (
            waiting.until_told(self._stream, request, read, _ended) if request.wait else read()
        )
        [shown] = await self._shown([row], request.include_urls)
        comparison.CopyFrom(shown)

    async def _read(self, text: str) -> Comparison:
        row = await self._db.first(_SELECT_COMPARISON, {"id": parse_id(text, "comparison_id")})
        if row is None:
            raise errors.not_found("comparison", text)
        return row

    async def _shown(self, rows: Sequence[Comparison], with_urls: bool) -> list[pb.Comparison]:
        if not with_urls or not rows:
            return [comparison_rows.to_proto(row) for row in rows]
        ids = {asset_id for row in rows for asset_id in row.asset_ids()}
        found = await self._db.all(_SELECT_STORED_PICTURES, {"ids": list(ids)})
        urls = {
            picture.id: self._urls.of(picture.storage_key, picture.mime_type, picture.file_name)
            for picture in found
        }
        return [comparison_rows.to_proto(row, urls) for row in rows]


def _ended(row: Comparison) -> bool:
    return row.state in rules.ENDED
