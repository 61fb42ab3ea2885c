"""Requeues a dead job: it is PENDING again, and everything about it counts anew but its history."""

from typing import Any
from uuid import UUID

import sqlalchemy as sa
import structlog
from atelier.conversions.v1 import dead_job_pb2 as pb

from services.conversions import (
    batch_rows,
    consenting,
    dead_job_rows,
    job_kinds,
    job_messages,
    job_moves,
    rules,
    spending,
)
from services.conversions.batch_rows import LockedBatch
from services.conversions.dead_job_rows import REQUEUES, DeadJob
from services.conversions.job_rows import ModelJob, PictureJob
from services.conversions.outside import JobLocks, LockedJob
from services.conversions.spending import Offer, Spending
from shared.background.jobs import JobQueue
from shared.database import states
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.rpc import auth, errors
from shared.rpc.errors import DomainError

_log = structlog.get_logger("requeueing")

_REQUEUED: states.Computed = {"requeued_at": sa.func.now()}
# The columns that count or say something about the attempts so far. Why the last one failed stays,
# as it does between two attempts.
_ANEW: dict[str, Any] = {
    "attempt_token": None,
    "faults": 0,
    "losses": 0,
    "progress": 0.0,
    "processing_time_ms": 0,
    "cancel_requested": False,
    "ended_at": None,
    "kept_from": None,
}


class Requeueing:
    def __init__(self, db: Database, queue: JobQueue, spending: Spending) -> None:
        self._db = db
        self._queue = queue
        self._spending = spending
        self._rows = JobLocks(queue)

    async def requeue(self, request: pb.RequeueJobRequest) -> pb.RequeueJobResponse:
        """Requeues the job of the request, once per request_id. Raises NOT_FOUND,
        FAILED_PRECONDITION if it isn't dead, its provider is gone, or it would no longer be free,
        CONSENT_REQUIRED if a consent was revoked, CREDITS_EXHAUSTED or BUDGET_EXCEEDED. The current
        identity is the operator's, and acts for the job's owner from here on."""
        auth.act_for(request.owner)
        before = await self._db.stored_answer(request, pb.RequeueJobResponse)
        if before is not None:
            return before
        kind, row = await job_kinds.get(self._db, request.job_id)
        offer = await self._spending.offer_again(self._db, kind, row)

        async def transaction(offer: Offer) -> pb.RequeueJobResponse:
            if spending.is_free(row) and not offer.is_free:
                raise errors.precondition(
                    "it is a free conversion, and its owner's free quota of this month is used up;"
                    " its owner can try it again at its price",
                    subject=f"jobs/{row.id}",
                )

            async def work(m: Mutation) -> pb.RequeueJobResponse:
                job = await self._rows.lock(m, request.job_id)
                return await self._requeue(m, job, offer, request.reason)

            return await self._db.mutate(request, pb.RequeueJobResponse, work)

        return await self._spending.agreed(offer, transaction)

    async def _requeue(
        self, m: Mutation, job: LockedJob, offer: Offer, reason: str
    ) -> pb.RequeueJobResponse:
        # The lock keeps its owner's retry, which takes the job off the list, apart from this.
        dead = await m.first(dead_job_rows.LOCK_DEAD_JOB, {"id": job.row.id})
        if dead is None:
            raise await not_dead(m, job.row)
        await consenting.check_unrevoked(m, job.row)
        batch = await self._batch(m, job.row, offer)
        attempts = job.row.attempt_number
        row: ModelJob = await job.jobs.move(
            m,
            job.row,
            "pending",
            computed=_REQUEUED,
            requeued_after=attempts,
            **_ANEW,
            **offer.columns,
        )
        await self._record(m, dead, reason)
        # A batch that is paused enqueues its items when it is resumed.
        if not row.external and (batch is None or batch.state != "paused"):
            urgency = None if batch is None else batch.urgency
            await job_moves.enqueue(m, self._queue, job.kind, row, offer.providers, urgency)
        if batch is not None and batch.state == "completed":
            await batch_rows.run(m, self._queue, batch)
        answer = pb.RequeueJobResponse(job=await job_messages.message(m, job.kind, row))
        await self._spending.reserve(m, job.kind, row.id, offer, after_attempts=attempts)
        return answer

    async def _batch(self, m: Mutation, row: ModelJob, offer: Offer) -> LockedBatch | None:
        """Returns the batch that the row is an item of, locked, or None. Raises FAILED_PRECONDITION
        if its owner cancelled it, or limits it to less than another item costs."""
        batch_id = row.batch_id if isinstance(row, PictureJob) else None
        batch = None if batch_id is None else await batch_rows.find(m, batch_id)
        if batch is None:
            return None
        if batch.state == "cancelled":
            raise errors.precondition(
                "its owner cancelled its batch", subject=f"batches/{batch.id}"
            )
        if batch.max_credits is not None:
            figures = await batch_rows.count(m, batch)
            left = batch.max_credits - figures["credits"] - figures["credits_reserved"]
            if offer.set_aside > left:
                raise errors.precondition(
                    f"max_credits of its batch leaves {left} credits and it costs"
                    f" {offer.set_aside}; its owner can resume the batch with more",
                    subject=f"batches/{batch.id}",
                )
        return batch

    async def _record(self, m: Mutation, dead: DeadJob, reason: str) -> None:
        values = {
            "id": new_id(),
            "owner": dead.owner,
            "job": dead.job,
            "job_id": dead.id,
            "actor": m.actor,
            "reason": reason,
            "error_class": dead.error_class,
        }
        await m.one(REQUEUES.insert(*values), values)
        _log.info("a job is requeued", job=str(dead.id), owner=dead.owner, actor=m.actor)


def request_for(request: pb.RequeueJobsRequest, owner: str, job_id: UUID) -> pb.RequeueJobRequest:
    """Returns the request for one job of several. Its name follows from theirs, so that a repeat
    requeues no job twice."""
    named = f"{request.request_id}/{job_id}" if request.request_id else ""
    return pb.RequeueJobRequest(
        request_id=named, owner=owner, job_id=str(job_id), reason=request.reason
    )


async def not_dead(m: Mutation, row: ModelJob) -> DomainError:
    """Returns the refusal that says why a locked row, which isn't listed as dead, isn't."""
    named = {"owner": row.owner, "job_id": row.id}
    if row.state != "failed":
        text = f"it is {row.state}; only a job that failed can be dead"
    elif row.error_class in rules.FINAL_ERRORS:
        text = f"it failed of {row.error_class}, which its owner mends and then tries again"
    elif row.deleted_at:
        text = "it is deleted; it can be requeued once its owner has undeleted it"
    elif dismissal := await m.first(dead_job_rows.SELECT_DISMISSAL, named):
        text = f"{dismissal.actor} has dismissed it; its owner can try it again"
    else:
        text = "its owner has tried it again, as a job of its own"
    return errors.precondition(text, subject=f"jobs/{row.id}", metadata={"state": row.state})
