"""Runs: walks over many assets in the background, a step at a time. A step's changes, the place it
came to and what it adds to the report are one transaction: a run whose worker died goes on where it
was and counts nothing twice.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from atelier.assets.v1 import storage_pb2 as pb
from psycopg.types.json import Jsonb

from shared.background import attempts, jobs, waiting
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.rpc import errors
from shared.rpc.protos import Words, timestamp, wait_of
from shared.storage import StorageError, StorageFull, StorageUnavailable

ACTIONS = Words(pb.RunAction, "RUN_ACTION_")
STATES = Words(pb.RunState, "RUN_STATE_")
JOB_STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"running", "failed"}),
    "running": frozenset({"running", "pending", "done", "failed"}),
    "done": frozenset(),
    "failed": frozenset(),
}
TASK = "storage_run"
QUEUE = "storage"
_MAX_ATTEMPTS = 50  # each goes on where the one before it ended
_SAMPLE = 10
_MOST_FAILURES = 100
_INSERT = """
    INSERT INTO storage_runs (id, owner, action, arguments) VALUES (%(id)s, %(owner)s, %(action)s,
        %(arguments)s)
    ON CONFLICT DO NOTHING RETURNING *
"""
_SAVE = """
    UPDATE storage_runs SET progress = %(progress)s, updated_at = now()
    WHERE id = %(id)s AND attempt_token = %(token)s RETURNING id
"""
# What concerns one item, as opposed to a database or store that is away.
_AWAY = (psycopg.OperationalError, StorageUnavailable, StorageFull)
_OF_AN_ITEM = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)


@dataclass
class Count:
    """See RunCount in the contract."""

    found: int = 0
    done: int = 0
    kept: int = 0
    why_kept: str = ""
    bytes: int = 0
    sample: list[str] = field(default_factory=list)

    def note(self, items: Sequence[Any]) -> None:
        """Counts items that were found, and shows some of them."""
        self.found += len(items)
        self.sample += [str(item) for item in items[: max(0, _SAMPLE - len(self.sample))]]


@dataclass
class Report:
    """What a run has found and done so far. `cursors` is where each of its walks is."""

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


@dataclass
class Walk:
    """One try of a run."""

    db: Database
    attempt: attempts.Attempt
    report: Report

    @property
    def row(self) -> Any:
        return self.attempt.row

    @asynccontextmanager
    async def step(self, owner: str) -> AsyncIterator[tuple[Mutation, Report]]:
        """A transaction for `owner`, with the report that will be the run's if it commits."""
        report = deepcopy(self.report)
        async with self.db.transaction(owner) as m:
            yield m, report
            saved = {
                "id": self.row.id,
                "token": self.attempt.token,
                "progress": Jsonb(asdict(report)),
            }
            if await m.one(_SAVE, saved) is None:
                raise attempts.Superseded
        self.report = report

    async def each(
        self, what: str, items: Sequence[Any], act: Callable[[Sequence[Any]], Awaitable[None]]
    ) -> None:
        """Acts on all items at once; if that fails, on one after the other, so that one that can't
        be dealt with is noted and stops no other."""
        try:
            await act(items)
        except (errors.DomainError, StorageError, psycopg.Error) as error:
            if isinstance(error, _AWAY) and not isinstance(error, _OF_AN_ITEM):
                raise
            if len(items) == 1:
                self.report.fail(what, items[0], errors.from_exception(error).text)
                return
            for item in items:
                await self.each(what, [item], act)


WalkFunction = Callable[[Walk], Awaitable[None]]


async def begin(
    m: Mutation, queue: jobs.JobQueue, action: str, owner: str, arguments: Mapping[str, Any]
) -> Any:
    """A new run's row; None if the schema allows no other one now."""
    row = await m.one(
        _INSERT,
        {"id": new_id(), "owner": owner, "action": action, "arguments": Jsonb(dict(arguments))},
    )
    if row is not None:
        await queue.enqueue(m, TASK, QUEUE, row.id, priority=jobs.BACKFILL)
    return row


class Runner:
    """The job: whatever action a run's row names."""

    def __init__(self, db: Database, walks: Mapping[str, WalkFunction]) -> None:
        self._db = db
        self._walks = walks
        self._kind = attempts.Kind(
            "storage_runs", JOB_STATES, "running", "done", _unwatched, _MAX_ATTEMPTS
        )

    async def run(self, run_id: str) -> None:
        await attempts.run(self._db, self._kind, run_id, self._work)

    async def _work(self, attempt: attempts.Attempt) -> attempts.Outcome:
        walk = Walk(self._db, attempt, Report.of(attempt.row.progress))
        await self._walks[attempt.row.action](walk)
        return attempts.Outcome({"progress": Jsonb(asdict(walk.report))})


async def _unwatched(_m: Mutation, _row: Any) -> None:
    """Runs have no watch: whoever waits reads them."""


async def ended(db: Database, run_id: UUID) -> Any:
    """The run's row once it has ended, or as it is shortly before the call's deadline. NOT_FOUND if
    it was erased with its owner."""

    async def read() -> Any:
        row = await db.row("SELECT * FROM storage_runs WHERE id = %s", (run_id,))
        if row is None:
            raise errors.not_found("run", run_id)
        return row

    return await waiting.until_seen(read, lambda row: not JOB_STATES[row.state], waiting.patience())


def to_proto(row: Any) -> pb.Run:
    report = Report.of(row.progress)
    return pb.Run(
        id=str(row.id),
        action=ACTIONS.number[row.action],
        state=STATES.number[row.state],
        owner=row.owner,
        dry_run=row.arguments.get("dry_run", False),
        session_id=row.arguments.get("session_id", ""),
        counts=[
            pb.RunCount(what=what, **asdict(count)) for what, count in sorted(report.counts.items())
        ],
        failures=[pb.RunFailure(**failure) for failure in report.failures],
        capped=report.capped,
        error_class=row.error_class,
        error_message=row.error_message,
        create_time=timestamp(row.created_at),
        wait=wait_of(row),
        end_time=None if JOB_STATES[row.state] else timestamp(row.updated_at),
    )
