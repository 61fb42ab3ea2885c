"""JobService: lists jobs of all three kinds and their attempts, and serves outside workers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import job_pb2 as pb
from atelier.conversions.v1 import job_pb2_grpc
from psycopg.types.json import Jsonb

from services.conversions import (
    assets,
    attempt_rows,
    explaining,
    job_kinds,
    job_messages,
    job_rows,
    outside,
    rules,
)
from services.conversions.analysis_rows import Analysis
from services.conversions.attempt_rows import ATTEMPTS, OUTCOMES, SELECT_SUMMARIES, Attempt
from services.conversions.consenting import Consents
from services.conversions.generation_rows import Generation
from services.conversions.job_kinds import BY_NUMBER, KINDS
from services.conversions.job_messages import ListedJob
from services.conversions.job_rows import STATES, ModelJob, PictureJob
from services.conversions.outside import JobLocks, LockedJob, undo_claim
from services.conversions.rules import Evidence
from services.conversions.spending import Spending
from shared.background import leases
from shared.background.job_tables import record_end
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation, forget_answer
from shared.database.lists import Listing
from shared.database.rows import Statement, compiled, field_names
from shared.rpc import auth, errors, paging, protos
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError, Reason
from shared.rpc.protos import timestamp
from shared.rpc.server import Context

_LIST_ATTEMPTS = Listing(ATTEMPTS, Attempt)
# Why a result is refused that comes after the end of its attempt, or of its job.
_TOO_LATE = (
    Reason.ERROR_REASON_ATTEMPT_SUPERSEDED,
    Reason.ERROR_REASON_NOT_FOUND,
    Reason.ERROR_REASON_WRONG_STATE,
)


@cache
def _select_jobs(
    tables: tuple[str, ...], in_state: bool, goes_on: bool, hides: tuple[str, ...]
) -> Statement[ListedJob]:
    """Returns the statement for a page of the rows of these tables, without those that have a time
    in a column of `hides`. Each table's part is ordered and limited to a page, so that its index is
    read no further."""

    def page(query: sa.Select[Any], row: Any) -> sa.Select[Any]:  # row: columns by name
        if goes_on:
            last = sa.tuple_(sa.bindparam("after_at"), sa.bindparam("after_id"))
            query = query.where(sa.tuple_(row.created_at, row.id) < last)
        ordered = query.order_by(row.created_at.desc(), row.id.desc())
        return ordered.limit(sa.bindparam("limit"))

    parts = []
    for name in tables:
        row = KINDS[name].table.core.c
        columns = [row[column] for column in field_names(ListedJob) if column != "job"]
        part = sa.select(sa.literal_column(f"'{name}'").label("job"), *columns)
        part = part.where(row.owner == sa.bindparam("owner"))
        if in_state:
            part = part.where(row.state == sa.bindparam("state"))
        part = part.where(*(row[column].is_(None) for column in hides))
        parts.append(page(part, row))
    jobs = sa.union_all(*parts).subquery("jobs")
    return compiled(ListedJob, page(sa.select(jobs), jobs.c))


class JobService(job_pb2_grpc.JobServiceServicer):
    def __init__(
        self,
        db: Database,
        queue: JobQueue,
        peers: Peers,
        spending: Spending,
        lease_seconds: float,
    ) -> None:
        self._db = db
        self._queue = queue
        self._spending = spending
        self._outside = JobLocks(queue)
        self._peers = peers
        self._lease = lease_seconds
        self._consents = Consents(db)

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        auth.act_for(request.owner or auth.current().owner)
        kinds = [BY_NUMBER[request.kind]] if request.kind else KINDS.values()
        page = paging.page(request)
        shown = {"archived_at": request.show_archived, "deleted_at": request.show_deleted}
        statement = _select_jobs(
            tuple(kind.table.name for kind in kinds),
            bool(request.state),
            page.after is not None,
            tuple(column for column, show in shown.items() if not show),
        )
        wanted = {"owner": auth.current().owner, "state": STATES.word.get(request.state)}
        rows = await self._db.all(statement, wanted | page.parameters)
        ids = {"ids": [row.id for row in page.cut(rows)]}
        summaries = {each.job_id: each for each in await self._db.all(SELECT_SUMMARIES, ids)}
        messages = (
            job_messages.to_proto(KINDS[row.job], row, summaries.get(row.id)) for row in rows
        )
        jobs, token = page.fill(rows, messages)
        return pb.ListJobsResponse(jobs=jobs, next_page_token=token)

    async def ListAttempts(
        self, request: pb.ListAttemptsRequest, context: Context
    ) -> pb.ListAttemptsResponse:
        auth.act_for(request.owner or auth.current().owner)
        page = paging.page(request)
        wanted = {
            "job_id": request.job_id and UUID(request.job_id),
            "outcome": OUTCOMES.word.get(request.outcome),
        }
        rows = await self._db.all(*_LIST_ATTEMPTS.query(page, wanted))
        shown, token = page.fill(rows, map(attempt_rows.to_proto, rows))
        return pb.ListAttemptsResponse(attempts=shown, next_page_token=token)

    async def ExplainJob(
        self, request: pb.ExplainJobRequest, context: Context
    ) -> pb.ExplainJobResponse:
        auth.act_for(request.owner or auth.current().owner)
        kind, row = await job_kinds.get(self._db, request.job_id)
        return await explaining.explain(
            self._db, self._queue, self._peers, self._spending.routes, kind.table.name, row
        )

    async def ClaimJob(self, request: pb.ClaimJobRequest, context: Context) -> pb.ClaimJobResponse:
        caller = auth.current()
        claim = self._claim
        if outside.of_deployment():
            claim = self._claim_for_any
        else:
            auth.act_for(request.owner)

        async def work(m: Mutation) -> pb.ClaimJobResponse:
            return await claim(m, request) or pb.ClaimJobResponse()

        answer = await self._db.mutate(request, pb.ClaimJobResponse, work)
        if answer.attempt_token:
            if outside.of_deployment():
                outside.act_for(answer.owner)
            token = UUID(answer.attempt_token)
            await self._acquire_claimed(request, caller, answer.job.id, token)
        return answer

    async def _claim_for_any(
        self, m: Mutation, request: pb.ClaimJobRequest
    ) -> pb.ClaimJobResponse | None:
        """Claims a row for a worker of the deployment: of the owner whose turn it is, unless the
        request names one. The transaction acts for that owner meanwhile."""
        if request.WhichOneof("job") == "job_id":
            owners: Sequence[str] = [await outside.owner_of(m, request.job_id)]
        else:
            owners = await outside.owners_in_turn(m, BY_NUMBER[request.kind])
        if request.owner and request.owner not in owners and request.job_id:
            raise errors.not_found("job", request.job_id)
        for owner in [request.owner] if request.owner else owners:
            with m.acting_for(owner):
                answer = await self._claim(m, request)
                if answer is not None:
                    await outside.take_turn(m)
                    return answer
        return None

    async def _claim(self, m: Mutation, request: pb.ClaimJobRequest) -> pb.ClaimJobResponse | None:
        """Claims a row of the transaction's owner. Returns None if none waits."""
        job: LockedJob | None
        if request.WhichOneof("job") == "kind":
            job = await self._outside.lock_first(m, BY_NUMBER[request.kind])
        else:
            job = await self._outside.lock_claimable(m, request.job_id)
        if job is None:
            return None
        claimed: ModelJob = await leases.begin(
            m, job.jobs, job.row, request.worker, self._lease, progress=0.0
        )
        return pb.ClaimJobResponse(
            job=await job_messages.message(m, job.kind, claimed),
            attempt_token=str(claimed.attempt_token),
            lease_ms=round(self._lease * 1000),
            owner=claimed.owner,
        )

    async def _acquire_claimed(
        self, request: pb.ClaimJobRequest, caller: auth.Identity, job_id: str, token: UUID
    ) -> None:
        """Acquires references to the pictures of a claimed row. If they can't be used, the row
        fails; while assets is away, the claim is undone. A repeat of the claim runs this again,
        since the first may have been interrupted. `caller` made the claim."""
        identity = auth.current()
        async with self._db.transaction(identity.owner, identity.actor) as m:
            job = await self._outside.lock(m, job_id)
        if not job.is_claimed_by(token):
            return
        try:
            pictures = await self._acquire_inputs(job)
            await self._consents.check(job.row.model_task, pictures)
        except DomainError as refusal:
            final = assets.error_class(refusal) in rules.FINAL_ERRORS
            async with self._db.transaction(identity.owner, identity.actor) as m:
                job = await self._outside.lock(m, job_id)
                await forget_answer(m, request, caller)
                if not job.is_claimed_by(token):
                    raise
                if final:
                    error_class = assets.error_class(refusal)
                    await leases.give_up(
                        m, job.jobs, job.row, error_class, refusal.text, retryable=False
                    )
                else:
                    await undo_claim(m, job)
            if not final:
                raise
            text = f"it can't be begun, so that it is FAILED now: {refusal.text}"
            raise errors.precondition(
                text,
                subject=f"jobs/{job_id}",
                metadata={"state": "failed", "error_class": assets.error_class(refusal)},
            ) from None

    async def HeartbeatJob(
        self, request: pb.HeartbeatJobRequest, context: Context
    ) -> pb.HeartbeatJobResponse:
        await outside.act_for_claimed(self._db, request.job_id, request.attempt_token)
        identity = auth.current()
        async with self._db.transaction(identity.owner, identity.actor) as m:
            job = await self._outside.lock_claimed(m, request.job_id, request.attempt_token)
            tells = request.HasField("progress") and request.progress != job.row.progress
            columns = {"progress": request.progress} if tells else {}
            row: ModelJob = await leases.extend(m, job.jobs, job.row, self._lease, **columns)
        return pb.HeartbeatJobResponse(lease_expire_time=timestamp(row.lease_expires_at))

    async def CompleteJob(
        self, request: pb.CompleteJobRequest, context: Context
    ) -> pb.CompleteJobResponse:
        await outside.act_for_claimed(self._db, request.job_id, request.attempt_token)
        answer = await self._db.stored_answer(request, pb.CompleteJobResponse)
        if answer is not None:
            return answer
        identity = auth.current()
        async with self._db.transaction(identity.owner, identity.actor) as m:
            job = await self._outside.lock_claimed(m, request.job_id, request.attempt_token)
        used = await self._acquire_inputs(job)
        columns = _completed(request, job.row, used)
        # Findings that hold nothing cost nothing.
        if columns["confidence"] or isinstance(job.row, PictureJob):
            columns["credits"] = self._spending.outside_credits(job.kind, job.row)
        # Comes last, so that a refused request acquires no reference to the result.
        result = await self._result(job, request)

        async def work(m: Mutation) -> pb.CompleteJobResponse:
            job = await self._outside.lock_claimed(m, request.job_id, request.attempt_token)
            return await _complete(
                m, job, request, {**columns, **result.columns}, used, result.size
            )

        try:
            return await self._db.mutate(request, pb.CompleteJobResponse, work)
        except DomainError as refusal:
            if refusal.reason in _TOO_LATE and result.asset_id:
                await self._discard(job, result.asset_id, purge=result.uploaded)
            raise

    async def FailJob(self, request: pb.FailJobRequest, context: Context) -> pb.FailJobResponse:
        await outside.act_for_claimed(self._db, request.job_id, request.attempt_token)

        async def work(m: Mutation) -> pb.FailJobResponse:
            job = await self._outside.lock_claimed(m, request.job_id, request.attempt_token)
            row: ModelJob = await leases.give_up(
                m,
                job.jobs,
                job.row,
                request.error_class,
                request.error_message,
                retryable=request.retryable,
            )
            return pb.FailJobResponse(job=await job_messages.message(m, job.kind, row))

        return await self._db.mutate(request, pb.FailJobResponse, work)

    async def _result(self, job: LockedJob, request: pb.CompleteJobRequest) -> "_Result":
        """Checks and returns what the outside worker made. Acquires a reference to a picture."""
        kind, row = job.kind, job.row
        given = request.WhichOneof("result") or ""
        needed = "analysis" if isinstance(row, Analysis) else "picture"
        if given != needed:
            raise errors.invalid(
                given, f"is not what a job of kind {kind.name} gives; send `{needed}`"
            )
        if isinstance(row, Analysis):
            result = _analysis_result(request.analysis, row.task)
            return _Result({"result": Jsonb(result)}, len(json.dumps(result)))
        prompt = request.picture.prompt_used
        made_from = {"full_prompt": prompt} if isinstance(row, Generation) else {}
        if prompt and not made_from:
            raise errors.invalid(
                "picture.prompt_used", f"means nothing to a {kind.name}; leave it out"
            )
        uploaded = ""
        if request.picture.upload_id:
            uploaded = await assets.confirm_upload(self._peers, request.picture.upload_id)
        asset = await self._picture(job, request.picture)
        asset_id = UUID(asset.id)
        return _Result(
            {"result_asset_id": asset_id, **made_from},
            asset.size_bytes,
            asset_id,
            uploaded=asset.id == uploaded,
        )

    async def _picture(self, job: LockedJob, picture: pb.PictureResult) -> asset_pb2.Asset:
        field = "picture.asset_id"
        [asset] = await assets.check(self._peers, [assets.Wanted(field, picture.asset_id)])
        if asset.owner != job.row.owner:
            raise errors.invalid(field, "is another owner's; upload the picture as your own")
        if UUID(asset.id) in (each.asset_id for each in job.row.inputs()):
            raise errors.invalid(field, "went into the job; upload what came out of it")
        await assets.acquire(self._peers, job.kind.holder(job.row.id), [UUID(asset.id)])
        return asset

    async def _acquire_inputs(self, job: LockedJob) -> list[asset_pb2.Asset]:
        """Acquires references to the row's pictures, and returns their assets."""
        row = job.row
        ids = [each.asset_id for each in row.inputs()]
        holder = job.kind.holder(row.id)
        return await assets.acquire(self._peers, holder, ids, conversion_id=str(row.id))

    async def _discard(self, job: LockedJob, asset_id: UUID, *, purge: bool) -> None:
        """Releases the reference to a picture that came too late, unless another attempt gave the
        same one. `purge`: the picture was uploaded for the job alone."""
        row = await job.kind.find(self._db, str(job.row.id))
        if isinstance(row, PictureJob) and row.result_asset_id == asset_id:
            return
        await assets.release(self._peers, job.kind.holder(job.row.id), [asset_id])
        if purge:
            await assets.purge(self._peers, asset_id)


@dataclass(frozen=True, slots=True)
class _Result:
    """What an outside worker made. `size`: in bytes. `asset_id`: the asset of a picture.
    `uploaded`: it was uploaded for this job."""

    columns: dict[str, object]
    size: int
    asset_id: UUID | None = None
    uploaded: bool = False


def _analysis_result(given: pb.AnalysisResult, task: str) -> dict[str, Any]:
    result = protos.metadata(given.result, "analysis.result", rules.ANALYSIS_BYTES)
    if unknown := sorted(set(result) - rules.ANALYSIS_KEYS[task]):
        known = ", ".join(sorted(rules.ANALYSIS_KEYS[task]))
        raise errors.invalid(
            "analysis.result",
            f"has no meaning for key {unknown[0][:100]!r}; task {task} has {known}",
        )
    return result


def _completed(
    request: pb.CompleteJobRequest, row: ModelJob, used: Sequence[asset_pb2.Asset]
) -> dict[str, object]:
    """Returns the columns of a completed row that don't depend on what its outside worker made."""
    evidence = [
        Evidence(name=item.name, value=item.value, weight=item.weight, note=item.note)
        for item in request.evidence
    ]
    recipe = job_rows.recipe(
        model=request.model,
        model_version=request.model_version,
        seed=request.seed if request.HasField("seed") else None,
        parameters=protos.metadata(request.parameters, "parameters"),
        inputs=[
            {"role": wanted.role, "asset_id": asset.id, "sha256": asset.sha256}
            for wanted, asset in zip(row.inputs(), used, strict=True)
        ],
    )
    given = request.HasField("confidence")
    return {
        "recipe": recipe,
        "evidence": Jsonb(evidence),
        "confidence": request.confidence if given else rules.confidence(evidence),
        "progress": 1.0,
        "error_class": "",
        "error_message": "",
        "lease_expires_at": None,
    }


async def _complete(
    m: Mutation,
    job: LockedJob,
    request: pb.CompleteJobRequest,
    columns: dict[str, Any],
    used: Sequence[asset_pb2.Asset],
    size: int,
) -> pb.CompleteJobResponse:
    await record_end(
        m,
        UUID(request.attempt_token),
        "succeeded",
        model=f"{request.model} {request.model_version}".strip(),
        input_bytes=sum(asset.size_bytes for asset in used),
        output_bytes=size,
    )
    row: ModelJob = await job.jobs.move(m, job.row, "completed", **columns)
    return pb.CompleteJobResponse(job=await job_messages.message(m, job.kind, row))
