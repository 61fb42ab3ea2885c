"""StorageService: starts and shows runs, erases and exports an owner."""

from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import TypeVar
from uuid import UUID

from atelier.assets.v1 import storage_pb2 as pb
from atelier.assets.v1 import storage_pb2_grpc

from services.assets.core.asset_rows import Urls
from services.assets.upkeep import erase, erasure_rows, export, run_rows
from services.assets.upkeep.erasure_rows import SELECT_PARTS, Part, Waker
from services.assets.upkeep.run_rows import ACTIONS, RUNS, Run
from shared.background import waiting
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.lists import Listing
from shared.database.rows import Statement
from shared.rpc import auth, calls, errors, paging
from shared.rpc.errors import Reason
from shared.rpc.server import Context

_Start = pb.DeleteSessionRequest | pb.RunCleanupRequest | pb.RunReconcilerRequest
_Started = TypeVar(
    "_Started",
    pb.DeleteSessionResponse,
    pb.RunCleanupResponse,
    pb.RunReconcilerResponse,
    pb.EraseOwnerResponse,
)

_REACH_SECONDS = 3.0  # for which EraseOwner waits for the other services
_SELECT_RUN = Statement(
    Run, f"SELECT {RUNS.columns} FROM storage_runs WHERE id = %(id)s AND owner = %(owner)s"
)
_SELECT_SEEN_RUN = Statement(Run, f"SELECT {RUNS.columns} FROM storage_runs WHERE id = %(id)s")
_LIST = Listing(RUNS, Run)


class StorageService(storage_pb2_grpc.StorageServiceServicer):
    def __init__(self, db: Database, queue: JobQueue, urls: Urls, waker: Waker) -> None:
        self._db = db
        self._queue = queue
        self._urls = urls
        self._waker = waker

    async def DeleteSession(
        self, request: pb.DeleteSessionRequest, context: Context
    ) -> pb.DeleteSessionResponse:
        arguments = {
            "session_id": request.session_id,
            "purge": request.purge,
            "force": request.force,
        }
        return await self._start(
            request, pb.DeleteSessionResponse, "session", auth.current().owner, arguments
        )

    async def RunCleanup(
        self, request: pb.RunCleanupRequest, context: Context
    ) -> pb.RunCleanupResponse:
        arguments = {"dry_run": request.dry_run, "max_items": request.max_items}
        return await self._start(request, pb.RunCleanupResponse, "cleanup", "", arguments)

    async def RunReconciler(
        self, request: pb.RunReconcilerRequest, context: Context
    ) -> pb.RunReconcilerResponse:
        arguments = {
            "dry_run": request.dry_run,
            "max_items": request.max_items,
            "from_start": request.from_start,
        }
        return await self._start(request, pb.RunReconcilerResponse, "reconcile", "", arguments)

    async def EraseOwner(
        self, request: pb.EraseOwnerRequest, context: Context
    ) -> pb.EraseOwnerResponse:
        owner = auth.act_for(request.owner or auth.current().owner)
        if request.confirm_owner != owner:
            raise errors.invalid(
                "confirm_owner", "is not the owner that is to be erased; spell its name out"
            )

        async def work(m: Mutation) -> pb.EraseOwnerResponse:
            row = await erase.begin(m, self._queue)
            return pb.EraseOwnerResponse(run=run_rows.to_proto(row))

        answer = await self._db.mutate(request, pb.EraseOwnerResponse, work)
        self._waker.wake()
        seconds = min(_REACH_SECONDS, calls.time_left() or 0.0)
        await waiting.until_seen(partial(self._parts, owner), erasure_rows.reached, seconds)
        if request.wait:
            return await self._finish(request, answer)
        answer.run.CopyFrom(await self._shown(await self._read(UUID(answer.run.id))))
        return answer

    async def ExportOwner(
        self, request: pb.ExportOwnerRequest, context: Context
    ) -> AsyncIterator[pb.ExportOwnerResponse]:
        auth.act_for(request.owner or auth.current().owner)
        async for record in export.export(self._db, self._urls):
            yield record

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        owner = auth.act_for(request.owner)
        mine = {"id": parse_id(request.run_id, "run_id"), "owner": owner}
        row = await self._db.first(_SELECT_RUN, mine)
        if row is None:
            raise errors.not_found("run", request.run_id)
        return pb.GetRunResponse(run=await self._shown(row))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        auth.act_for(request.owner)
        page = paging.page(request)
        wanted = {"action": ACTIONS.word.get(request.action)}
        rows = await self._db.all(*_LIST.query(page, wanted))
        shown = [await self._shown(row) for row in rows]
        found, token = page.fill(rows, shown)
        return pb.ListRunsResponse(runs=found, next_page_token=token)

    async def _start(
        self,
        request: _Start,
        answer: type[_Started],
        action: str,
        owner: str,
        arguments: Mapping[str, object],
    ) -> _Started:
        async def work(m: Mutation) -> _Started:
            row = await run_rows.begin(m, self._queue, action, owner, arguments)
            if row is None:
                text = (
                    f"a {action} run is under way; nothing was started, try again when it has ended"
                )
                raise errors.retry_later(Reason.ERROR_REASON_REQUEST_IN_PROGRESS, text, 5)
            return answer(run=run_rows.to_proto(row))

        return await self._finish(request, await self._db.mutate(request, answer, work))

    async def _finish(self, request: _Start | pb.EraseOwnerRequest, answer: _Started) -> _Started:
        """Waits for the run's end if the request says so. Raises NOT_FOUND if the run was erased
        with its owner."""
        if request.wait:
            read = partial(self._read_all, UUID(answer.run.id))
            row, parts = await waiting.until_seen(read, _ended, waiting.patience())
            answer.run.CopyFrom(run_rows.to_proto(row, parts))
        return answer

    async def _read_all(self, run_id: UUID) -> tuple[Run, list[Part]]:
        row = await self._read(run_id)
        return row, await self._parts_of(row)

    async def _shown(self, row: Run) -> pb.Run:
        return run_rows.to_proto(row, await self._parts_of(row))

    async def _parts_of(self, row: Run) -> list[Part]:
        return await self._parts(row.owner) if row.action == "erase" else []

    async def _parts(self, owner: str) -> list[Part]:
        return await self._db.all(SELECT_PARTS, {"owner": owner})

    async def _read(self, run_id: UUID) -> Run:
        row = await self._db.first(_SELECT_SEEN_RUN, {"id": run_id})
        if row is None:
            raise errors.not_found("run", run_id)
        return row


def _ended(read: tuple[Run, list[Part]]) -> bool:
    return run_rows.ended(*read)
