"""Runs, for all modules: the row, its arguments, its report, its message, and how to begin one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any

from atelier.assets.v1 import storage_pb2 as pb
from psycopg.types.json import Jsonb

from services.assets.upkeep import erasure_rows, rules
from services.assets.upkeep.erasure_rows import Part
from shared.background import jobs
from shared.background.job_tables import JobRow
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.database.rows import Statement, Table
from shared.rpc.protos import EnumNames, timestamp, wait_of

ACTIONS = EnumNames(pb.RunAction, "RUN_ACTION_")
STATES = EnumNames(pb.RunState, "RUN_STATE_")
TASK = "storage_run"
QUEUE = "storage"
_SAMPLE = 10
_MOST_FAILURES = 100


@dataclass(slots=True)
class Run(JobRow):
    """A walk over many assets: the job and its progress."""

    action: str
    arguments: dict[str, Any]  # fields of `Arguments`
    progress: dict[str, Any]  # fields of `Report`
    created_at: datetime


RUNS = Table("storage_runs", Run)

_INSERT_RUN = Statement(
    Run,
    f"""
    INSERT INTO storage_runs (id, owner, action, arguments)
    VALUES (%(id)s, %(owner)s, %(action)s, %(arguments)s)
    ON CONFLICT DO NOTHING RETURNING {RUNS.columns}
    """,
)


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of a run. Each action has some of them."""

    dry_run: bool = False
    max_items: int = 0  # 0: as many as the settings say
    from_start: bool = False
    session_id: str = ""
    purge: bool = False
    force: bool = False

    @classmethod
    def of(cls, row: Run) -> "Arguments":
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in row.arguments.items() if name in known})


@dataclass
class Count:
    """See RunCount in the contract."""

    found: int = 0
    done: int = 0
    kept: int = 0
    why_kept: str = ""
    bytes: int = 0
    sample: list[str] = field(default_factory=list)

    def note(self, items: Sequence[object]) -> None:
        """Counts items that were found, and adds some to the sample of at most ten."""
        self.found += len(items)
        self.sample += [str(item) for item in items[: max(0, _SAMPLE - len(self.sample))]]


@dataclass
class Report:
    """What a run has found and done so far. `cursors`: where each of its walks goes on, in that
    walk's own form."""

    counts: dict[str, Count] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    cursors: dict[str, Any] = field(default_factory=dict)
    capped: bool = False

    @classmethod
    def of(cls, progress: Mapping[str, Any]) -> "Report":
        made = cls(**progress)
        made.counts = {
            what: Count(**figures) for what, figures in progress.get("counts", {}).items()
        }
        return made

    def count(self, what: str) -> Count:
        return self.counts.setdefault(what, Count())

    def fail(self, what: str, item: object, message: str) -> None:
        if len(self.failures) < _MOST_FAILURES:
            self.failures.append({"what": what, "item": str(item), "message": message})


async def begin(
    m: Mutation, queue: jobs.JobQueue, action: str, owner: str, arguments: Mapping[str, object]
) -> Run | None:
    """Adds a run with its job. Returns None if the schema allows no other run now."""
    row = await m.first(
        _INSERT_RUN,
        {"id": new_id(), "owner": owner, "action": action, "arguments": Jsonb(dict(arguments))},
    )
    if row is not None:
        await queue.enqueue(m, TASK, QUEUE, row.id, priority=jobs.BACKFILL)
    return row


def ended(row: Run, parts: Sequence[Part] = ()) -> bool:
    """Returns whether the run has ended. An erasure has when every service has done its part."""
    return rules.ended(row.state) and (row.state != "done" or erasure_rows.done(parts))


def to_proto(row: Run, parts: Sequence[Part] = ()) -> pb.Run:
    """`parts`: what other services do of an erasure."""
    report = Report.of(row.progress)
    arguments = Arguments.of(row)
    state = "running" if rules.ended(row.state) and not ended(row, parts) else row.state
    last = max([row.updated_at, *(part.updated_at for part in parts)])
    return pb.Run(
        id=str(row.id),
        action=ACTIONS.number[row.action],
        state=STATES.number[state],
        owner=row.owner,
        dry_run=arguments.dry_run,
        session_id=arguments.session_id,
        counts=[
            pb.RunCount(what=what, **asdict(count)) for what, count in sorted(report.counts.items())
        ],
        failures=[pb.RunFailure(**failure) for failure in report.failures],
        capped=report.capped,
        error_class=row.error_class,
        error_message=row.error_message,
        create_time=timestamp(row.created_at),
        wait=wait_of(row),
        end_time=timestamp(last) if ended(row, parts) else None,
        services=map(erasure_rows.to_proto, parts),
    )
