"""StorageService: starting and reading runs, erasing and exporting an owner."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from atelier.assets.v1 import storage_pb2 as pb
from atelier.assets.v1 import storage_pb2_grpc

from services.assets.core import asset_rows
from services.assets.upkeep import erase, runs
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.rpc import auth, errors, paging
from shared.rpc.errors import Reason


def act_for(owner: str) -> str:
    """The owner that the call is about: an operator acts in the one it names, others only in their
    own.

    The rest of the call runs in that owner's context, and so sees its rows alone.
    """
    identity = auth.current()
    if identity.role == "admin":
        auth.enter(replace(identity, owner=owner))
        return owner
    if owner not in ("", identity.owner):
        raise errors.not_found("owner", owner)
    return identity.owner


class StorageService(storage_pb2_grpc.StorageServiceServicer):
    def __init__(self, db: Database, queue: JobQueue, urls: asset_rows.Urls) -> None:
        self._db = db
        self._queue = queue
        self._urls = urls

    async def DeleteSession(
        self, request: pb.DeleteSessionRequest, context: Any
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
        self, request: pb.RunCleanupRequest, context: Any
    ) -> pb.RunCleanupResponse:
        arguments = {"dry_run": request.dry_run, "max_items": request.max_items}
        return await self._start(request, pb.RunCleanupResponse, "cleanup", "", arguments)

    async def RunReconciler(
        self, request: pb.RunReconcilerRequest, context: Any
    ) -> pb.RunReconcilerResponse:
        arguments = {
            "dry_run": request.dry_run,
            "max_items": request.max_items,
            "from_start": request.from_start,
        }
        return await self._start(request, pb.RunReconcilerResponse, "reconcile", "", arguments)

    async def _start(
        self, request: Any, answer: Any, action: str, owner: str, arguments: Mapping[str, Any]
    ) -> Any:
        async def work(m: Mutation) -> Any:
            row = await runs.begin(m, self._queue, action, owner, arguments)
            if row is None:
                text = (
                    f"a {action} run is under way; nothing was started, try again when it has ended"
                )
                raise errors.retry_later(Reason.ERROR_REASON_REQUEST_IN_PROGRESS, text, 5)
            return answer(run=runs.to_proto(row))

        return await self._waited(request, await self._db.mutate(request, answer, work))

    async def _waited(self, request: Any, response: Any) -> Any:
        if request.wait:
            row = await runs.ended(self._db, UUID(response.run.id))
            response.run.CopyFrom(runs.to_proto(row))
        return response

    async def EraseOwner(
        self, request: pb.EraseOwnerRequest, context: Any
    ) -> pb.EraseOwnerResponse:
        owner = act_for(request.owner or auth.current().owner)
        if request.confirm_owner != owner:
            raise errors.invalid(
                "confirm_owner", "is not the owner that is to be erased; spell its name out"
            )

        async def work(m: Mutation) -> pb.EraseOwnerResponse:
            return pb.EraseOwnerResponse(run=runs.to_proto(await erase.bury(m, self._queue)))

        return await self._waited(
            request, await self._db.mutate(request, pb.EraseOwnerResponse, work)
        )

    async def ExportOwner(
        self, request: pb.ExportOwnerRequest, context: Any
    ) -> AsyncIterator[pb.ExportOwnerResponse]:
        act_for(request.owner or auth.current().owner)
        async for record in erase.export(self._db, self._urls):
            yield record

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:
        owner = act_for(request.owner)
        mine = {"id": parse_id(request.run_id, "run_id"), "owner": owner}
        row = await self._db.row(
            "SELECT * FROM storage_runs WHERE id = %(id)s AND owner = %(owner)s", mine
        )
        if row is None:
            raise errors.not_found("run", request.run_id)
        return pb.GetRunResponse(run=runs.to_proto(row))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        owner = act_for(request.owner)
        page = paging.page(request)
        action = runs.ACTIONS.word[request.action] if request.action else ""
        statement: Any = (
            "SELECT * FROM storage_runs WHERE owner = %(owner)s AND (%(action)s = '' OR action ="
            " %(action)s)" + page.clause
        )
        rows = await self._db.rows(statement, {"owner": owner, "action": action, **page.parameters})
        found, token = page.fill(rows, map(runs.to_proto, rows))
        return pb.ListRunsResponse(runs=found, next_page_token=token)
