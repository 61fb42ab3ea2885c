"""ExplainJob: shows each condition that decides what the caller sees of a job, as a question with
its answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from atelier.conversions.v1 import job_pb2 as pb

from services.conversions import (
    assets,
    consent_rows,
    dead_job_rows,
    job_moves,
    provider_rows,
    rules,
)
from services.conversions.analysis_rows import Analysis
from services.conversions.attempt_rows import ATTEMPTS, Attempt
from services.conversions.batch_rows import SELECT_BATCH, Batch
from services.conversions.consent_rows import Consent
from services.conversions.dead_job_rows import Dismissal, Requeue
from services.conversions.job_rows import ModelJob, PictureJob
from services.conversions.provider_rows import Availability
from services.conversions.providers.routes import Routes
from shared.background.jobs import JobQueue
from shared.database.db import Database
from shared.database.rows import Statement
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError

_SELECT_ATTEMPTS = Statement(
    Attempt,
    f"""
    SELECT {ATTEMPTS.columns} FROM attempts WHERE job_id = %(id)s
    ORDER BY created_at DESC, id DESC LIMIT 50
    """,
)
_ON_ITS_WAY = ("pending", "processing")


@dataclass(slots=True)
class _Turn:
    """The queue's entry of a job. `starts_at`: not before; None: as soon as its turn comes."""

    status: str
    starts_at: datetime | None
    now: datetime


_SELECT_TURN = Statement(
    _Turn,
    """
    SELECT status::text AS status, scheduled_at AS starts_at, now() AS now FROM procrastinate_jobs
    WHERE args ->> 'row_id' = %(id)s AND status IN ('todo', 'doing') AND task_name = %(task)s
    ORDER BY id DESC LIMIT 1
    """,
)


@dataclass(frozen=True)
class _Job:
    """A job and what decides about it."""

    row: ModelJob
    is_gone: bool  # its result, which was there
    turn: _Turn | None
    position: int | None
    attempts: Sequence[Attempt]
    route: Sequence[str]
    moderation: Sequence[str]
    availability: Mapping[str, Availability]
    consents: Sequence[Consent]
    batch: Batch | None
    requeues: Sequence[Requeue]
    dismissal: Dismissal | None


async def explain(
    db: Database, queue: JobQueue, peers: Peers, routes: Routes, table: str, row: ModelJob
) -> pb.ExplainJobResponse:
    """Answers the questions about a row of the caller's."""
    one, of_job = {"id": row.id}, {"owner": row.owner, "job_id": row.id}
    of_owner = await db.all(provider_rows.SELECT_ROUTES, {"owner": row.owner})
    found = await db.all(provider_rows.SELECT_AVAILABILITY)
    job = _Job(
        row,
        await _is_gone(peers, row),
        await db.first(_SELECT_TURN, {"id": str(row.id), "task": table}),
        await queue.position(row.id) if row.state == "pending" else None,
        await db.all(_SELECT_ATTEMPTS, one),
        routes.names(
            row.model_task, row.provider, {each.task: each.providers for each in of_owner}
        ),
        routes.moderation,
        {each.name: each for each in found},
        await db.all(consent_rows.SELECT_NAMED, {"ids": row.consent_ids}),
        await _batch_of(db, row),
        await db.all(dead_job_rows.SELECT_REQUEUES, of_job),
        await db.first(dead_job_rows.SELECT_DISMISSAL, of_job),
    )
    answers = [answer for question in _QUESTIONS if (answer := question(job))]
    wrong = [answer for answer in answers if not answer.ok]
    summary = f"{wrong[0].question} {wrong[0].answer}" if wrong else "its result is there"
    return pb.ExplainJobResponse(summary=summary, answers=answers)


async def _is_gone(peers: Peers, row: ModelJob) -> bool:
    """Returns whether the result of a completed row was deleted or erased. False if assets can't be
    asked."""
    if row.state != "completed":
        return False
    if isinstance(row, Analysis):  # the erasure of a revoked consent takes its recipe, too
        return not (row.external or row.recipe_digest or row.result)
    result = str(row.result_columns()["result_asset_id"])
    try:
        return not assets.is_there((await peers.assets([result])).get(result))
    except DomainError:
        return False


async def _batch_of(db: Database, row: ModelJob) -> Batch | None:
    batch_id = row.batch_id if isinstance(row, PictureJob) else None
    return None if batch_id is None else await db.first(SELECT_BATCH, {"id": batch_id})


def _deleted(job: _Job) -> pb.JobAnswer | None:
    row = job.row
    if row.deleted_at is None or row.expires_at is None:
        return None
    return pb.JobAnswer(
        question="is it deleted?",
        answer=(
            f"yes, since {row.deleted_at:%Y-%m-%d %H:%M} UTC; after"
            f" {row.expires_at:%Y-%m-%d %H:%M} UTC it is purged"
        ),
        next_step="undelete it until then",
    )


def _ended(job: _Job) -> pb.JobAnswer:
    row, asked = job.row, "has it a result?"
    if row.state == "completed":
        what = "a picture" if isinstance(row, PictureJob) else "findings"
        if job.is_gone:
            return pb.JobAnswer(
                question=asked,
                answer=f"it had {what}, for {row.credits} credits; deleted or erased since",
                next_step="undelete the picture if it is in the trash, or create another one",
            )
        answer = f"yes, {what}, with confidence {row.confidence:.2f}, for {row.credits} credits"
        return pb.JobAnswer(question=asked, answer=answer, ok=True)
    if row.state == "failed":
        return pb.JobAnswer(
            question=asked,
            answer=f"no, it failed for good ({row.error_class}): {row.error_message}",
            next_step=_after_failing(job),
        )
    if row.state == "cancelled":
        return pb.JobAnswer(
            question=asked, answer="no, it was cancelled", next_step="create another one"
        )
    if row.cancel_requested:
        return pb.JobAnswer(question=asked, answer="no, it is being cancelled")
    where = "waits" if row.state == "pending" else f"is under way, at {row.progress:.0%}"
    return pb.JobAnswer(question=asked, answer=f"no, it {where}")


_AFTER: Mapping[str, str] = {
    rules.BAD_INPUT: "mend what the message names, then create another one",
    rules.REFUSED: (
        "use another picture or prompt; where a provider refused it, not a moderation, an operator"
        " can name another one for you, and ListProviderCalls has its word for why"
    ),
    rules.CONSENT: "record the person's consent with RecordConsent, then create another one",
    rules.BUDGET_EXCEEDED: "create another one once the budget allows it",
}


def _after_failing(job: _Job) -> str:
    if step := _AFTER.get(job.row.error_class):
        return step
    step = "try it again; ListProviderCalls says what may have been charged"
    return step if job.dismissal else f"an operator requeues it once the cause is mended, or {step}"


def _consents(job: _Job) -> pb.JobAnswer | None:
    if not job.consents:
        return None
    named = ", ".join(f"{each.id} ({each.state})" for each in job.consents)
    ended = any(each.state != "active" for each in job.consents)
    helps = ended and job.row.state in _ON_ITS_WAY
    return pb.JobAnswer(
        question="does it rest on a person's consent?",
        answer=f"yes, on {named}",
        ok=not helps,
        next_step="record another with RecordConsent before its turn comes" if helps else "",
    )


def _turn(job: _Job) -> pb.JobAnswer | None:
    row, asked = job.row, "is it its turn?"
    if row.state != "pending":
        return None
    if row.external:
        return pb.JobAnswer(
            question=asked,
            answer="an outside worker takes it, yours or the deployment's; this service doesn't",
            next_step="claim it with ClaimJob",
        )
    if job.turn is None and job.batch is not None and job.batch.state == "paused":
        why = f": {job.batch.pause_message}" if job.batch.pause_message else ""
        return pb.JobAnswer(
            question=asked,
            answer=f"no, its batch is paused ({job.batch.pause_reason}){why}",
            next_step="resume the batch with ResumeBatch",
        )
    if job.turn is None:
        return pb.JobAnswer(
            question=asked,
            answer="the queue has no entry for it: a worker is taking it up, or lets go of it",
            next_step="ask again in a few seconds",
        )
    if job.turn.starts_at and job.turn.starts_at > job.turn.now:
        seconds = (job.turn.starts_at - job.turn.now).total_seconds()
        return pb.JobAnswer(
            question=asked, answer=f"no, its next attempt begins in {seconds:.0f} s"
        )
    if job.turn.status == "doing":
        return pb.JobAnswer(question=asked, answer="yes, a worker is taking it up", ok=True)
    place = f"number {job.position}" if job.position else "next"
    return pb.JobAnswer(question=asked, answer=f"it is {place} in its queue", ok=job.position == 1)


def _waits(job: _Job) -> pb.JobAnswer | None:
    row = job.row
    if not row.waits_for or row.waiting_since is None:
        return None
    return pb.JobAnswer(
        question="does it wait for something?",
        answer=(
            f"yes, for {row.waits_for} since {row.waiting_since:%Y-%m-%d %H:%M} UTC"
            f" ({row.error_class}): {row.error_message}"
        ),
        next_step="it goes on by itself; after ATELIER_JOB_WAIT_HOURS it fails",
    )


def _providers(job: _Job) -> pb.JobAnswer | None:
    if job.row.state not in _ON_ITS_WAY or job.row.external:
        return None
    asked = "is its provider ready?"
    if not job.route:
        return pb.JobAnswer(
            question=asked,
            answer=f"this deployment no longer has {job.row.provider} for it",
            next_step="cancel it, and create one without `provider`",
        )
    ready = [name for name in job.route if _is_ready(job.availability.get(name))]
    said = ", ".join(f"{name} ({_standing(job.availability.get(name))})" for name in job.route)
    return pb.JobAnswer(
        question=asked,
        answer=f"asked in this order: {said}",
        ok=bool(ready),
        next_step="" if ready else "an operator looks at ListProviders, and switches one on",
    )


def _moderation(job: _Job) -> pb.JobAnswer | None:
    if not job.moderation or job.row.state not in _ON_ITS_WAY or job.row.external:
        return None
    ready = all(_is_ready(job.availability.get(name)) for name in job.moderation)
    said = ", ".join(f"{name} ({_standing(job.availability.get(name))})" for name in job.moderation)
    return pb.JobAnswer(
        question="can it be judged?",
        answer=f"before it is sent to a provider, it must pass the moderation by {said}",
        ok=ready,
        next_step="" if ready else "an operator looks at ListProviders, and switches it on",
    )


def _is_ready(found: Availability | None) -> bool:
    return found is None or not (found.switched_off or found.paused_seconds)


def _standing(found: Availability | None) -> str:
    if found and found.switched_off:
        return "switched off"
    if found and found.paused_seconds:
        return f"left alone for {found.paused_seconds:.0f} s more"
    return "ready"


def _inputs(job: _Job) -> pb.JobAnswer | None:
    row = job.row
    if row.state != "completed" or not row.drop_inputs:
        return None
    if row.inputs_dropped_at is None:
        return pb.JobAnswer(question="are its pictures kept?", answer="no, they are being dropped")
    return pb.JobAnswer(
        question="are its pictures kept?",
        answer=f"no, they were dropped on {row.inputs_dropped_at:%Y-%m-%d}; the recipe has digests",
        ok=True,
    )


def _attempts(job: _Job) -> pb.JobAnswer:
    failed = [each for each in job.attempts if each.outcome in ("failed", "retried", "lost")]
    left = max(0, rules.MAX_ATTEMPTS - job_moves.counted(job.row))
    answer = f"{job.row.attempt_number} begun, {len(failed)} came to nothing"
    if failed:
        answer += f"; the last of these: {failed[0].error_class} {failed[0].error_message}".rstrip()
    if job.row.state in _ON_ITS_WAY:
        answer += f"; it may fail {left} more times before it is given up"
    return pb.JobAnswer(question="how many attempts were there?", answer=answer[:2000], ok=True)


def _requeued(job: _Job) -> pb.JobAnswer | None:
    if not job.requeues:
        return None
    last = job.requeues[0]
    times = "once" if len(job.requeues) == 1 else f"{len(job.requeues)} times"
    return pb.JobAnswer(
        question="was it requeued?",
        answer=(
            f"yes, {times}; last on {last.created_at:%Y-%m-%d %H:%M} UTC by {last.actor}, after it"
            f" had failed of {last.error_class}: {last.reason}"
        ),
        ok=True,
    )


def _dismissed(job: _Job) -> pb.JobAnswer | None:
    if job.dismissal is None:
        return None
    made = job.dismissal
    return pb.JobAnswer(
        question="was it dismissed?",
        answer=(
            f"yes, on {made.created_at:%Y-%m-%d %H:%M} UTC by {made.actor}, so that no operator"
            f" requeues it: {made.reason}"
        ),
        ok=True,
    )


_QUESTIONS: Sequence[Callable[[_Job], pb.JobAnswer | None]] = (
    _deleted,
    _ended,
    _waits,
    _turn,
    _moderation,
    _providers,
    _consents,
    _inputs,
    _attempts,
    _requeued,
    _dismissed,
)
