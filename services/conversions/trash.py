"""The calls about archive and trash that the services of the three kinds share."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Generic, TypeVar

from atelier.conversions.v1 import analysis_pb2, conversion_pb2, generation_pb2
from google.protobuf.message import Message

from services.conversions import trash_rows
from services.conversions.job_rows import J, JobKind, M
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.rpc import errors

A = TypeVar("A", bound=Message)
TrashRequest = (
    conversion_pb2.ArchiveConversionRequest
    | conversion_pb2.UnarchiveConversionRequest
    | conversion_pb2.DeleteConversionRequest
    | conversion_pb2.UndeleteConversionRequest
    | conversion_pb2.PurgeConversionRequest
    | generation_pb2.ArchiveGenerationRequest
    | generation_pb2.UnarchiveGenerationRequest
    | generation_pb2.DeleteGenerationRequest
    | generation_pb2.UndeleteGenerationRequest
    | generation_pb2.PurgeGenerationRequest
    | analysis_pb2.ArchiveAnalysisRequest
    | analysis_pb2.UnarchiveAnalysisRequest
    | analysis_pb2.DeleteAnalysisRequest
    | analysis_pb2.UndeleteAnalysisRequest
    | analysis_pb2.PurgeAnalysisRequest
)


class TrashCalls(Generic[J, M]):
    """`life`: how long a deleted row can be undeleted."""

    def __init__(
        self, kind: JobKind[J, M], db: Database, queue: JobQueue, *, life: timedelta
    ) -> None:
        self._kind = kind
        self._db = db
        self._queue = queue
        self._life = life

    async def archive(self, request: TrashRequest, answer: type[A], *, archived: bool) -> A:
        async def change(m: Mutation, row: J) -> J:
            trash_rows.refuse_deleted(self._kind, row)
            if (row.archived_at is not None) == archived:
                return row
            return await trash_rows.archive(m, self._kind, row, archived=archived)

        return await self._change(request, answer, change)

    async def delete(self, request: TrashRequest, answer: type[A]) -> A:
        async def change(m: Mutation, row: J) -> J:
            trash_rows.refuse_unfinished(self._kind, row)
            if row.deleted_at:
                return row
            [deleted] = await trash_rows.delete(m, self._kind, self._queue, [row.id], self._life)
            return deleted

        return await self._change(request, answer, change)

    async def undelete(self, request: TrashRequest, answer: type[A]) -> A:
        async def change(m: Mutation, row: J) -> J:
            if row.deleted_at is None:
                return row
            return await trash_rows.undelete(m, self._kind, self._queue, row)

        return await self._change(request, answer, change)

    async def purge(self, request: TrashRequest, answer: type[A]) -> A:
        async def work(m: Mutation) -> A:
            row = await self._lock(m, request)
            trash_rows.refuse_unfinished(self._kind, row)
            await trash_rows.purge(m, self._kind, self._queue, [row])
            return answer()

        return await self._db.mutate(request, answer, work)

    async def _change(
        self,
        request: TrashRequest,
        answer: type[A],
        change: Callable[[Mutation, J], Awaitable[J]],
    ) -> A:
        """Runs `change` with the locked row, and answers with the row that it returns."""

        async def work(m: Mutation) -> A:
            row = await change(m, await self._lock(m, request))
            return answer(**{self._kind.name: self._kind.to_proto(row)})

        return await self._db.mutate(request, answer, work)

    async def _lock(self, m: Mutation, request: TrashRequest) -> J:
        """Locks the row that the request names. Raises NOT_FOUND if the owner has none."""
        field = f"{self._kind.name}_id"
        text: str = getattr(request, field)
        found = await trash_rows.lock(m, self._kind, [parse_id(text, field)])
        if not found:
            raise errors.not_found(self._kind.name, text)
        [row] = found
        return row
