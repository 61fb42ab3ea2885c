"""The jobs of all three nouns: their records, and what a worker of the owner's own calls."""

import json
from collections.abc import Sequence
from typing import Any, LiteralString
from uuid import UUID

from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import job_pb2 as pb
from atelier.conversions.v1 import job_pb2_grpc
from psycopg.types.json import Jsonb

from services.conversions import inputs, jobs, outside, rules
from services.conversions.jobs import STATES, Noun
from services.conversions.outside import NOUNS
from shared.background import attempts
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation, forget_answer
from shared.rpc import auth, errors, paging, protos
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError, Reason
from shared.rpc.protos import Words, timestamp, wait_of

OUTCOMES = Words(pb.AttemptOutcome, "ATTEMPT_OUTCOME_")
_KINDS = {
    "conversions": pb.JOB_KIND_CONVERSION,
    "generations": pb.JOB_KIND_GENERATION,
    "analyses": pb.JOB_KIND_ANALYSIS,
}
_TABLES = {kind: table for table, kind in _KINDS.items()}
_COLUMNS = (
    "id, state, attempt_number, progress, cancel_requested, error_class, error_message, credits,"
    " priority, external, lease_expires_at, waits_for, waiting_since, created_at, updated_at"
)
_TRIES: LiteralString = """
    SELECT job_id, min(created_at) AS started_at, (array_agg(worker
        ORDER BY number DESC))[1] AS worker,
        count(*) FILTER (WHERE outcome IN ('failed', 'retried', 'lost')) AS retries
    FROM attempts WHERE job_id = ANY(%(ids)s) GROUP BY job_id
"""


class JobService(job_pb2_grpc.JobServiceServicer):
    def __init__(self, db: Database, queue: JobQueue, peers: Peers, lease_seconds: float) -> None:
        self._db = db
        self._queue = queue
        self._peers = peers
        self._lease = lease_seconds

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        tables = [
            table
            for table, kind in _KINDS.items()
            if request.kind in (pb.JOB_KIND_UNSPECIFIED, kind)
        ]
        condition = "owner = %(owner)s" + (" AND state = %(state)s" if request.state else "")
        asked = paging.page(request)
        # Each part ends after a page, in order, so that its index is read no further than that.
        parts = [
            f"(SELECT '{table}' AS job, {_COLUMNS} FROM {table} WHERE {condition}{asked.clause})"
            for table in tables
        ]
        statement: Any = (
            f"SELECT * FROM ({' UNION ALL '.join(parts)}) AS jobs WHERE true{asked.clause}"
        )
        parameters = {"owner": auth.current().owner, "state": STATES.word.get(request.state)}
        rows = await self._db.rows(statement, parameters | asked.parameters)
        tries = {
            row.job_id: row
            for row in await self._db.rows(_TRIES, {"ids": [row.id for row in asked.cut(rows)]})
        }
        shown, token = asked.fill(rows, (_job(row.job, row, tries.get(row.id)) for row in rows))
        return pb.ListJobsResponse(jobs=shown, next_page_token=token)

    async def ListAttempts(
        self, request: pb.ListAttemptsRequest, context: Any
    ) -> pb.ListAttemptsResponse:
        where, parameters = ["owner = %(owner)s"], {"owner": auth.current().owner}
        if request.job_id:
            where.append("job_id = %(job_id)s::uuid")
            parameters["job_id"] = request.job_id
        if request.outcome:
            where.append("outcome = %(outcome)s")
            parameters["outcome"] = OUTCOMES.word[request.outcome]
        asked = paging.page(request)
        statement: Any = f"SELECT * FROM attempts WHERE {' AND '.join(where)}{asked.clause}"
        rows = await self._db.rows(statement, parameters | asked.parameters)
        tries, token = asked.fill(rows, map(_attempt, rows))
        return pb.ListAttemptsResponse(attempts=tries, next_page_token=token)

    async def ClaimJob(self, request: pb.ClaimJobRequest, context: Any) -> pb.ClaimJobResponse:
        async def work(m: Mutation) -> pb.ClaimJobResponse:
            if request.WhichOneof("job") == "kind":
                noun = NOUNS[_TABLES[request.kind]]
                row = await outside.lock_first(m, noun, self._lease)
            else:
                noun, row = await outside.lock_claimable(m, request.job_id, self._lease)
            if row is None:
                return pb.ClaimJobResponse()
            claimed = await outside.begin(m, noun, row, request.worker)
            return pb.ClaimJobResponse(
                job=await _shown(m, noun, claimed),
                attempt_token=str(claimed.attempt_token),
                lease_ms=round(self._lease * 1000),
            )

        answer = await self._db.mutate(request, pb.ClaimJobResponse, work)
        if answer.attempt_token:
            await self._hold_inputs(request, answer.job.id, answer.attempt_token)
        return answer

    async def _hold_inputs(self, request: pb.ClaimJobRequest, job_id: str, token: str) -> None:
        """Holds the pictures of a claimed row. One whose pictures are gone fails; while assets is
        away, the claim is undone. A repeat of the claim comes here again, since the first may have
        been cut short."""
        identity = auth.current()
        async with self._db.transaction(identity.owner, identity.actor) as m:
            noun, row = await outside.lock(m, job_id)
        if not outside.holds(row, UUID(token)):
            return
        try:
            await self._inputs(noun, row)
        except DomainError as refusal:
            error_class = inputs.error_class(refusal)
            async with self._db.transaction(identity.owner, identity.actor) as m:
                noun, row = await outside.lock(m, job_id)
                await forget_answer(m, request)
                if not outside.holds(row, UUID(token)):
                    raise
                if error_class not in rules.FINAL_ERRORS:
                    await outside.undo(m, noun, row)
                else:
                    await outside.give_up(
                        m, self._queue, noun, row, error_class, refusal.text, retryable=False
                    )
            if error_class not in rules.FINAL_ERRORS:
                raise
            text = f"its pictures can't be used, so that it is failed now: {refusal.text}"
            raise errors.precondition(
                text, subject=f"jobs/{job_id}", metadata={"state": "failed"}
            ) from None

    async def HeartbeatJob(
        self, request: pb.HeartbeatJobRequest, context: Any
    ) -> pb.HeartbeatJobResponse:
        identity = auth.current()
        progress = request.progress if request.HasField("progress") else None
        async with self._db.transaction(identity.owner, identity.actor) as m:
            noun, row = await outside.lock_held(
                m, request.job_id, request.attempt_token, self._lease
            )
            row = await outside.extend(m, noun, row, progress)
        return pb.HeartbeatJobResponse(lease_expire_time=timestamp(row.lease_expires_at))

    async def CompleteJob(
        self, request: pb.CompleteJobRequest, context: Any
    ) -> pb.CompleteJobResponse:
        answer = await self._db.stored_answer(request, pb.CompleteJobResponse)
        if answer is not None:
            return answer
        identity = auth.current()
        async with self._db.transaction(identity.owner, identity.actor) as m:
            noun, row = await outside.lock_held(m, request.job_id, request.attempt_token)
        went_in = await self._inputs(noun, row)
        columns = _recipe(request, noun, row, went_in)
        result, size = await self._result(
            noun, row, request
        )  # last, so that nothing that is refused is held

        async def work(m: Mutation) -> pb.CompleteJobResponse:
            _, row = await outside.lock_held(m, request.job_id, request.attempt_token)
            await attempts.record_end(
                m,
                row.attempt_token,
                "succeeded",
                model=f"{request.model} {request.model_version}".strip(),
                input_bytes=sum(asset.size_bytes for asset in went_in),
                output_bytes=size,
            )
            row = await outside.move(m, noun, row, "completed", **columns, **result)
            return pb.CompleteJobResponse(
                job=await _shown(m, noun, await noun.tell(m, self._queue, row))
            )

        try:
            return await self._db.mutate(request, pb.CompleteJobResponse, work)
        except DomainError as refusal:
            if refusal.reason == Reason.ERROR_REASON_ATTEMPT_SUPERSEDED:
                await self._discard(noun, row.id, result.get("result_asset_id"))
            raise

    async def FailJob(self, request: pb.FailJobRequest, context: Any) -> pb.FailJobResponse:
        async def work(m: Mutation) -> pb.FailJobResponse:
            noun, row = await outside.lock_held(m, request.job_id, request.attempt_token)
            row = await outside.give_up(
                m,
                self._queue,
                noun,
                row,
                request.error_class,
                request.error_message,
                retryable=request.retryable,
            )
            return pb.FailJobResponse(job=await _shown(m, noun, row))

        return await self._db.mutate(request, pb.FailJobResponse, work)

    async def _result(
        self, noun: Noun, row: Any, request: pb.CompleteJobRequest
    ) -> tuple[dict[str, Any], int]:
        """The columns of what came out, and its bytes. A picture is held from now on."""
        given, needed = (
            request.WhichOneof("result") or "",
            "analysis" if noun.table == "analyses" else "picture",
        )
        if given != needed:
            raise errors.invalid(
                given, f"is not what a job of kind {noun.name} gives; send `{needed}`"
            )
        if given == "analysis":
            result = _analysis_result(request.analysis, row.task)
            return {"result": Jsonb(result)}, len(json.dumps(result))
        told = {"full_prompt": request.picture.prompt_used} if noun.table == "generations" else {}
        if request.picture.prompt_used and not told:
            raise errors.invalid(
                "picture.prompt_used", f"means nothing to a {noun.name}; leave it out"
            )
        asset = await self._picture(noun, row, request.picture.asset_id)
        return {"result_asset_id": UUID(asset.id), **told}, asset.size_bytes

    async def _picture(self, noun: Noun, row: Any, asset_id: str) -> asset_pb2.Asset:
        field = "picture.asset_id"
        [asset] = await inputs.check(self._peers, [inputs.Wanted(field, asset_id)])
        if asset.owner != row.owner:
            raise errors.invalid(field, "is another owner's; upload the picture as your own")
        if UUID(asset.id) in (input_id for _, input_id in noun.inputs(row)):
            raise errors.invalid(field, "went into the job; upload what came out of it")
        await inputs.hold(self._peers, noun.holder(row.id), [asset.id])
        return asset

    async def _inputs(self, noun: Noun, row: Any) -> list[asset_pb2.Asset]:
        """The row's pictures, held."""
        ids = [each for _, each in noun.inputs(row)]
        return await inputs.hold(self._peers, noun.holder(row.id), ids, conversion_id=str(row.id))

    async def _discard(self, noun: Noun, row_id: UUID, asset_id: UUID | None) -> None:
        """Gives a picture back that came too late, unless another try has given the same."""
        row = await jobs.get(self._db, noun, str(row_id))
        if asset_id and row.result_asset_id != asset_id:
            await inputs.release(self._peers, noun.holder(row_id), [asset_id])


def _analysis_result(given: pb.AnalysisResult, task: str) -> dict[str, Any]:
    result = protos.metadata(given.result, "analysis.result", rules.ANALYSIS_BYTES)
    if unknown := sorted(set(result) - rules.ANALYSIS_KEYS[task]):
        known = ", ".join(sorted(rules.ANALYSIS_KEYS[task]))
        raise errors.invalid(
            "analysis.result",
            f"has no meaning for key {unknown[0][:100]!r}; task {task} has {known}",
        )
    return result


def _recipe(
    request: pb.CompleteJobRequest, noun: Noun, row: Any, went_in: Sequence[asset_pb2.Asset]
) -> dict[str, Any]:
    """The columns that say how it was made, and that it is."""
    evidence = [
        {"name": item.name, "value": item.value, "weight": item.weight, "note": item.note}
        for item in request.evidence
    ]
    pairs = zip(noun.inputs(row), went_in, strict=True)
    recipe = {
        "model": request.model,
        "model_version": request.model_version,
        "seed": request.seed if request.HasField("seed") else None,
        "parameters": protos.metadata(request.parameters, "parameters"),
        "inputs": [
            {"role": role, "asset_id": asset.id, "sha256": asset.sha256}
            for (role, _), asset in pairs
        ],
    }
    return {
        "recipe": Jsonb(recipe),
        "evidence": Jsonb(evidence),
        "confidence": (
            request.confidence if request.HasField("confidence") else rules.confidence(evidence)
        ),
        "progress": 1.0,
        "error_class": "",
        "error_message": "",
        "lease_expires_at": None,
    }


async def _shown(m: Mutation, noun: Noun, row: Any) -> pb.Job:
    return _job(noun.table, row, await m.one(_TRIES, {"ids": [row.id]}))


def _job(table: str, row: Any, tries: Any) -> pb.Job:
    return pb.Job(
        id=str(row.id),
        kind=_KINDS[table],
        state=STATES.number[row.state],
        worker=tries.worker if tries else "",
        attempts=row.attempt_number,
        max_retries=rules.MAX_ATTEMPTS,
        progress=row.progress,
        cancel_requested=row.cancel_requested,
        error_class=row.error_class,
        error_message=row.error_message,
        credits=row.credits,
        start_time=timestamp(tries.started_at) if tries else None,
        # The last change of a row is its coming to an end.
        end_time=timestamp(row.updated_at) if row.state in rules.FINISHED else None,
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        wait=wait_of(row),
        retry_count=tries.retries if tries else 0,
        priority=row.priority,
        run_externally=row.external,
        lease_expire_time=timestamp(row.lease_expires_at),
    )


def _attempt(row: Any) -> pb.Attempt:
    return pb.Attempt(
        id=str(row.id),
        job_id=str(row.job_id),
        kind=_KINDS[row.job],
        number=row.number,
        worker=row.worker,
        outcome=OUTCOMES.number[row.outcome],
        error_class=row.error_class,
        error_message=row.error_message,
        model=row.model,
        input_bytes=row.input_bytes,
        output_bytes=row.output_bytes,
        credits=row.credits,
        start_time=timestamp(row.created_at),
        end_time=timestamp(row.ended_at),
    )
