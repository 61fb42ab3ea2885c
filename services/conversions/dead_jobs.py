"""DeadJobService: lists dead jobs of all owners, requeues and dismisses them."""

from collections.abc import Mapping

import structlog
from atelier.conversions.v1 import dead_job_pb2 as pb
from atelier.conversions.v1 import dead_job_pb2_grpc

from services.conversions import dead_job_rows, job_messages, requeueing
from services.conversions.dead_job_rows import DISMISSALS, DeadJob
from services.conversions.job_kinds import BY_NUMBER
from services.conversions.outside import JobLocks
from services.conversions.requeueing import Requeueing
from services.conversions.spending import Spending
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.database.lists import created
from shared.rpc import auth, paging
from shared.rpc.errors import DomainError, Reason
from shared.rpc.protos import timestamp
from shared.rpc.server import Context

_MOST_AT_ONCE = 100
_log = structlog.get_logger("dead jobs")


class DeadJobService(dead_job_pb2_grpc.DeadJobServiceServicer):
    def __init__(self, db: Database, queue: JobQueue, spending: Spending) -> None:
        self._db = db
        self._requeueing = Requeueing(db, queue, spending)
        self._rows = JobLocks(queue)

    async def ListDeadJobs(
        self, request: pb.ListDeadJobsRequest, context: Context
    ) -> pb.ListDeadJobsResponse:
        page = paging.page(request)
        limit = page.parameters["limit"]
        wanted = {**_filters(request), **page.parameters}
        rows = await dead_job_rows.select(self._db, wanted, limit=limit)
        jobs, token = page.fill(rows, map(dead_job_rows.to_proto, rows))
        return pb.ListDeadJobsResponse(jobs=jobs, next_page_token=token)

    async def RequeueJob(
        self, request: pb.RequeueJobRequest, context: Context
    ) -> pb.RequeueJobResponse:
        return await self._requeueing.requeue(request)

    async def RequeueJobs(
        self, request: pb.RequeueJobsRequest, context: Context
    ) -> pb.RequeueJobsResponse:
        before = await self._db.stored_answer(request, pb.RequeueJobsResponse)
        if before is not None:
            return before
        operator = auth.current()
        most = request.max_jobs or _MOST_AT_ONCE
        filters = _filters(request)
        rows = await dead_job_rows.select(self._db, filters, limit=most + 1, oldest_first=True)
        results = []
        for row in rows[:most]:
            results.append(await self._result(request, row))
            auth.enter(operator)  # acted for the job's owner
        answer = pb.RequeueJobsResponse(results=results, more=len(rows) > most)

        async def work(_: Mutation) -> pb.RequeueJobsResponse:
            return answer

        return await self._db.mutate(request, pb.RequeueJobsResponse, work)

    async def DismissJob(
        self, request: pb.DismissJobRequest, context: Context
    ) -> pb.DismissJobResponse:
        auth.act_for(request.owner)

        async def work(m: Mutation) -> pb.DismissJobResponse:
            job = await self._rows.lock(m, request.job_id)
            dead = await m.first(dead_job_rows.LOCK_DEAD_JOB, {"id": job.row.id})
            if dead is None:
                raise await requeueing.not_dead(m, job.row)
            values = {
                "job_id": dead.id,
                "owner": dead.owner,
                "job": dead.job,
                "actor": m.actor,
                "reason": request.reason,
                "error_class": dead.error_class,
            }
            await m.one(DISMISSALS.insert(*values), values)
            await m.run(dead_job_rows.DELETE_DEAD_JOB, {"owner": dead.owner, "id": dead.id})
            _log.info("a job is dismissed", job=str(dead.id), owner=dead.owner, actor=m.actor)
            message = await job_messages.message(m, job.kind, job.row)
            return pb.DismissJobResponse(job=message)

        return await self._db.mutate(request, pb.DismissJobResponse, work)

    async def _result(self, request: pb.RequeueJobsRequest, row: DeadJob) -> pb.RequeueResult:
        result = pb.RequeueResult(
            job_id=str(row.id), owner=row.owner, fail_time=timestamp(row.created_at)
        )
        try:
            await self._requeueing.requeue(requeueing.request_for(request, row.owner, row.id))
        except DomainError as refusal:
            named = Reason.Name(refusal.reason)
            result.MergeFrom(pb.RequeueResult(refusal=named, refusal_message=refusal.text))
        return result


def _filters(request: pb.ListDeadJobsRequest | pb.RequeueJobsRequest) -> Mapping[str, object]:
    return {
        "owner": request.owner,
        "job": BY_NUMBER[request.kind].table.name if request.kind else "",
        "error_class": request.error_class,
        "provider": request.provider,
        **created(request),
    }
