"""How jobs of the three kinds move, and what follows from a move."""

import contextlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import psycopg
import psycopg_pool
import sqlalchemy as sa
from atelier.conversions.v1 import job_pb2 as pb

from services.conversions import batch_rows, rules, trash_rows
from services.conversions.attempt_rows import ATTEMPTS
from services.conversions.job_kinds import KINDS
from services.conversions.job_rows import J, JobKind, ModelJob, PictureJob
from services.conversions.providers.routes import Routes
from shared.background import leases, tasks
from shared.background.job_tables import JobTable
from shared.background.jobs import FRESH, JobQueue
from shared.database import states
from shared.database.db import Database, Mutation
from shared.database.rows import Statement, Table

MODELS_QUEUE = "models"
RELEASE_QUEUE = "references"
# Jobs whose first provider is a hosted one mostly wait for it, so each has a queue with slots of
# its own: those of a slow provider hold up nobody else's.
_PROVIDER_QUEUE = "models.{}"
_ADOPT_SECONDS = 60.0
# A deployment that no longer has a provider would leave that provider's queue alone for ever.
_ADOPT_JOBS = Statement(
    int,
    """
    UPDATE procrastinate_jobs SET queue_name = %(models)s
    WHERE status = 'todo' AND starts_with(queue_name, %(prefix)s) AND NOT queue_name = ANY(%(own)s)
    RETURNING id
    """,
)
# What an item fails of, its batch would go on to fail of. The trigger lock_batch of tables.sql has
# these words.
_PAUSING = frozenset({rules.BUDGET_EXCEEDED, rules.CONSENT})
_RELEASE_PRIORITY = FRESH + 1  # before any job, because a release takes only a moment


def queue_of(provider: str) -> str:
    """Returns the name of the queue of the jobs that ask this provider first."""
    return MODELS_QUEUE if provider == rules.LOCAL else _PROVIDER_QUEUE.format(provider)


async def enqueue(
    m: Mutation,
    queue: JobQueue,
    kind: JobKind[J, Any],
    row: J,
    providers: Sequence[str],
    urgency: int | None = None,
) -> None:
    """Enqueues a row's job, to wait for the first of the providers that it is asked of. `urgency`:
    of the job, instead of the row's priority."""
    name = queue_of(providers[0] if providers else rules.LOCAL)
    urgency = row.priority if urgency is None else urgency
    await queue.enqueue(m, kind.table.name, name, row.id, urgency=urgency)


async def adopt_jobs_forever(db: Database, routes: Routes) -> None:
    """Moves the waiting jobs of providers that this deployment doesn't have into the queue of
    `local`. A process of yesterday's configuration may still add some, so this goes on."""
    prefix = f"{db.service}.{_PROVIDER_QUEUE.format('')}"
    own = [f"{db.service}.{queue_of(name)}" for name in routes.offers]
    values = {"models": f"{db.service}.{MODELS_QUEUE}", "prefix": prefix, "own": own}
    while tasks.not_cancelled():
        with contextlib.suppress(psycopg.Error, psycopg_pool.PoolTimeout):  # the next round does it
            await db.system_all(_ADOPT_JOBS, values)
        await tasks.pause(_ADOPT_SECONDS)


def job_table(kind: JobKind[J, Any], queue: JobQueue) -> JobTable[J]:
    """Returns how the jobs of one kind move. A move to an end sets the processing time; one without
    a result enqueues the release of the row's references, one with a result that of its inputs, if
    it drops them. If a budget or a missing consent ended the job, its batch is paused, so that the
    other items don't fail, too."""

    async def release_ended(m: Mutation, row: J) -> None:
        if row.state == "completed":
            if row.drop_inputs:
                await trash_rows.enqueue(m, kind, queue, row.id)
        elif row.finished:
            await queue.enqueue(
                m, kind.release_task, RELEASE_QUEUE, row.id, priority=_RELEASE_PRIORITY
            )
        if row.state == "failed" and row.error_class in _PAUSING:
            await _pause_batch(m, queue, row)

    return JobTable(
        kind.table,
        rules.JOB_STATES,
        "processing",
        "completed",
        kind.publish,
        max_attempts=rules.MAX_ATTEMPTS,
        counted=_begun_since_requeue,
        computed=dict.fromkeys(rules.FINISHED, _processing_time(kind.table)),
        in_transaction=release_ended,
    )


def counted(row: ModelJob) -> int:
    """Returns how many attempts of a job have counted against it: in the service those that failed
    through it, outside all that ended."""
    if not row.external:
        return row.faults
    return _begun_since_requeue(row) - (1 if row.state == "processing" else 0)


def _begun_since_requeue(row: ModelJob) -> int:
    return row.attempt_number - row.requeued_after


async def _pause_batch(m: Mutation, queue: JobQueue, row: ModelJob) -> None:
    batch_id = row.batch_id if isinstance(row, PictureJob) else None
    batch = None if batch_id is None else await batch_rows.find(m, batch_id)
    if batch is not None and batch.state == "running":
        reason = rules.DAY_BUDGET if row.max_credits is None else rules.MAX_CREDITS
        if row.error_class == rules.CONSENT:
            reason = rules.NO_CONSENT
        await batch_rows.pause(m, queue, batch, reason, row.error_message)


def job_tables(queue: JobQueue) -> Mapping[str, JobTable[Any]]:
    """Returns how the jobs of every kind move, by table."""
    return {name: job_table(kind, queue) for name, kind in KINDS.items()}


async def cancel(m: Mutation, jobs: JobTable[J], row: J) -> tuple[J, pb.CancelOutcome]:
    """Cancels a job that the transaction has locked, as far as that is still possible. Returns its
    row and the outcome."""
    if row.finished:
        return row, pb.CANCEL_OUTCOME_ALREADY_FINISHED
    if row.state == "pending":
        outcome, to = pb.CANCEL_OUTCOME_CANCELLED_BEFORE_START, "cancelled"
    elif row.external:  # its runner learns of it at its next call
        outcome, to = pb.CANCEL_OUTCOME_WITHDRAWN, "cancelled"
        await leases.end_attempt(m, row, "cancelled")
    else:  # its worker checks every second, and ends the attempt itself
        outcome, to = pb.CANCEL_OUTCOME_CANCEL_REQUESTED, row.state
    row = await jobs.move(m, row, to, cancel_requested=True, lease_expires_at=None)
    return row, outcome


@cache
def _processing_time(table: Table[J]) -> states.Computed:
    """Returns the column of the milliseconds of the row's last attempt. An attempt that is still
    running ends with this transaction."""
    attempt = ATTEMPTS.core.c
    lasted = sa.func.coalesce(attempt.ended_at, sa.func.now()) - attempt.created_at
    last = (
        sa.select(sa.func.round(sa.extract("epoch", lasted) * sa.literal_column("1000")))
        .where(attempt.job_id == table.core.c.id)
        .order_by(attempt.number.desc())
        .limit(sa.literal_column("1"))
        .correlate(table.core)
    )
    milliseconds = sa.func.coalesce(last.scalar_subquery(), sa.literal_column("0"))
    return {"processing_time_ms": milliseconds}
