"""How jobs of the three kinds move, and what follows from a move."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import sqlalchemy as sa

from services.conversions import rules
from services.conversions.attempt_rows import ATTEMPTS
from services.conversions.job_kinds import KINDS
from services.conversions.job_rows import J, JobKind
from shared.background.job_tables import JobTable
from shared.background.jobs import FRESH, JobQueue
from shared.database import states
from shared.database.db import Mutation
from shared.database.rows import Table

MODELS_QUEUE = "models"
RELEASE_QUEUE = "references"
_RELEASE_PRIORITY = FRESH + 1  # before any job, because a release takes only a moment


def job_table(kind: JobKind[J, Any], queue: JobQueue) -> JobTable[J]:
    """Returns how the jobs of one kind move. A move to an end sets the processing time; one without
    a result enqueues the release of the row's references."""

    async def release_ended(m: Mutation, row: J) -> None:
        if row.finished and row.state != "completed":
            await queue.enqueue(
                m, kind.release_task, RELEASE_QUEUE, row.id, priority=_RELEASE_PRIORITY
            )

    return JobTable(
        kind.table,
        rules.JOB_STATES,
        "processing",
        "completed",
        kind.publish,
        max_attempts=rules.MAX_ATTEMPTS,
        computed=dict.fromkeys(rules.FINISHED, _processing_time(kind.table)),
        in_transaction=release_ended,
    )


def job_tables(queue: JobQueue) -> Mapping[str, JobTable[Any]]:
    """Returns how the jobs of every kind move, by table."""
    return {name: job_table(kind, queue) for name, kind in KINDS.items()}


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
