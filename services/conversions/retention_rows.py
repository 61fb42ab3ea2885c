"""Retention: how long each class of jobs is kept by the settings, and what retention did."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from atelier.conversions.v1 import retention_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.conversions import rules
from services.conversions.job_rows import JobMessage, ModelJob
from shared.database.db import Mutation
from shared.database.rows import Command, Statement
from shared.rpc.protos import EnumNames, timestamp
from shared.settings import Settings

CLASSES = EnumNames(pb.RetentionClass, "RETENTION_CLASS_")


@dataclass(slots=True)
class RetentionCount:
    """What retention did to a class on a UTC day. `name`: the class."""

    day: date
    name: str
    done: int
    updated_at: datetime


SELECT_COUNTS = Statement(
    RetentionCount,
    """
    SELECT day, class AS name, done, updated_at FROM retention_counts
    WHERE day > (now() AT TIME ZONE 'UTC')::date - %(days)s::int ORDER BY day DESC, class
    """,
)
_COUNT = Command("""
    INSERT INTO retention_counts (day, class, done)
    VALUES ((now() AT TIME ZONE 'UTC')::date, %(class)s, %(done)s)
    ON CONFLICT (day, class) DO UPDATE
        SET done = retention_counts.done + EXCLUDED.done, updated_at = now()
""")


async def count(m: Mutation, retention_class: str, done: int) -> None:
    """Counts what retention does to a class in this transaction."""
    if done:
        await m.run(_COUNT, {"class": retention_class, "done": done})


def to_proto(row: RetentionCount) -> pb.RetentionCount:
    return pb.RetentionCount(
        day=row.day.isoformat(),
        retention_class=CLASSES.number[row.name],
        done=row.done,
        update_time=timestamp(row.updated_at),
    )


@dataclass(frozen=True)
class Retention:
    """For each class how long it is kept; a class that isn't there is kept for ever."""

    kept: Mapping[str, timedelta]

    def show(self, table: str, message: JobMessage, row: ModelJob) -> None:
        """Sets the times at which retention takes a row of this table, or its inputs."""
        if not row.finished or row.deleted_at:
            return
        kept_from = row.kept_from or row.updated_at
        if ends_at := self._end(rules.retention_class(table, row.state), kept_from):
            message.retention_time.CopyFrom(ends_at)
        takes_inputs = rules.retains_inputs(table, row.state) and not row.drop_inputs
        if takes_inputs and (ends_at := self._end("inputs", kept_from)):
            message.inputs.retention_time.CopyFrom(ends_at)

    def _end(self, retention_class: str, kept_from: datetime) -> Timestamp | None:
        kept = self.kept.get(retention_class)
        return None if kept is None else timestamp(kept_from + kept)


def of_settings(settings: Settings) -> Retention:
    days = {
        "failed": settings.retention_failed_days,
        "conversions": settings.retention_conversion_days,
        "generations": settings.retention_generation_days,
        "analyses": settings.retention_analysis_days,
        "inputs": settings.retention_input_days,
        "calls": settings.retention_call_days,
        "purged": settings.trash_days,
    }
    return Retention({name: timedelta(days=kept) for name, kept in days.items() if kept})
