"""Runs walks over many assets in the background, a step at a time. A step's changes, its cursor and
its additions to the report are one transaction: a run whose worker died goes on where it was and
counts nothing twice.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import TypeVar
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from services.assets.upkeep import rules
from services.assets.upkeep.run_rows import RUNS, Arguments, Report, Run
from shared.background import attempts
from shared.background.attempts import Attempt, Outcome
from shared.background.job_tables import JobTable
from shared.database.db import Database, Mutation
from shared.database.rows import Statement
from shared.rpc import errors
from shared.storage import StorageError, StorageFull, StorageUnavailable

T = TypeVar("T")

_MAX_ATTEMPTS = 50  # each goes on where the one before it ended
_SAVE_PROGRESS = Statement(
    UUID,
    """
    UPDATE storage_runs SET progress = %(progress)s, updated_at = now()
    WHERE id = %(id)s AND attempt_token = %(token)s RETURNING id
    """,
)
# Errors of a database or store that is away, except for those that concern only one item.
_AWAY = (psycopg.OperationalError, StorageUnavailable, StorageFull)
_OF_AN_ITEM = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)


@dataclass
class Walk:
    """One attempt of a run."""

    db: Database
    attempt: Attempt[Run]
    report: Report = field(init=False)
    arguments: Arguments = field(init=False)

    def __post_init__(self) -> None:
        self.report = Report.of(self.row.progress)
        self.arguments = Arguments.of(self.row)

    @property
    def row(self) -> Run:
        return self.attempt.row

    @asynccontextmanager
    async def step(self, owner: str) -> AsyncIterator[tuple[Mutation, Report]]:
        """Opens a transaction for `owner`, and yields it with a copy of the report, which becomes
        the run's when it commits. Raises Superseded if another attempt has the run."""
        report = deepcopy(self.report)
        async with self.db.transaction(owner) as m:
            yield m, report
            saved = {
                "id": self.row.id,
                "token": self.attempt.token,
                "progress": Jsonb(asdict(report)),
            }
            if await m.first(_SAVE_PROGRESS, saved) is None:
                raise attempts.Superseded
        self.report = report

    async def each(
        self, what: str, items: Sequence[T], act: Callable[[Sequence[T]], Awaitable[None]]
    ) -> None:
        """Acts on all items at once; if that fails, on one after the other, so that an item that
        fails is noted in the report and stops no other."""
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


class Runner:
    """Runs the job: the walk of the action that a run's row names."""

    def __init__(self, db: Database, walks: Mapping[str, WalkFunction]) -> None:
        self._db = db
        self._walks = walks
        self._kind = JobTable(RUNS, rules.RUN_STATES, "running", "done", _unwatched, _MAX_ATTEMPTS)

    async def run(self, run_id: str) -> None:
        await attempts.run(self._db, self._kind, run_id, self._work)

    async def _work(self, attempt: Attempt[Run]) -> Outcome[Run]:
        walk = Walk(self._db, attempt)
        await self._walks[attempt.row.action](walk)
        return Outcome({"progress": Jsonb(asdict(walk.report))})


async def _unwatched(_m: Mutation, _row: Run) -> None:
    """Publishes nothing: runs have no watch, callers that wait read them."""
