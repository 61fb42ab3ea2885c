"""Asks the providers of a route, one after the other, and records every call that may cost money.

The record of a call is committed before the call is sent. So a call whose answer is lost is known:
the next attempt asks for its result, if the provider gave something to ask with, or notes that it
was possibly charged. One attempt sends a call to a provider once; whether it is repeated is for the
job's next attempt to decide.

A call whose result can be asked for again stays open until the job has the result: its record ends
in the transaction that completes the job.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Generic, Protocol, TypeVar
from uuid import UUID

import structlog
from psycopg.types.json import Jsonb

from services.conversions import metrics, provider_rows, rules
from services.conversions.job_rows import ModelJob
from services.conversions.provider_rows import CALLS, ProviderCall
from services.conversions.providers.contract import (
    Call,
    Found,
    Model,
    Picture,
    Provider,
    ProviderFailed,
    Unrecorded,
)
from services.conversions.providers.routes import Candidate, Routes
from services.conversions.runs import standing
from services.conversions.runs.moderating import Moderation
from services.conversions.runs.waking import Wakes
from shared.background.attempts import Superseded
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.database.rows import Statement
from shared.formats.texts import storable, storable_json
from shared.rpc import errors
from shared.settings import Settings

_INSIST_SECONDS, _PAUSE_SECONDS = 60.0, 1.0
# For so long a job waits for the result of a call that its provider has taken, before another
# provider is paid for the same.
_WAIT_FOR_RESULT = timedelta(minutes=10)
_LARGEST_FIGURE = sys.float_info.max  # of usage that is kept
# What reading an answer raises that no provider's code foresaw.
_UNREADABLE = (TypeError, ValueError, LookupError, AttributeError, RecursionError, ArithmeticError)
_log = structlog.get_logger("providers")

A = TypeVar("A", Picture, Found)
Work = Callable[[Provider, Call], Awaitable[A]]
Progress = Callable[[float], Awaitable[None]]


class MayCall(Protocol):
    async def __call__(self, candidate: Candidate, *, counted: bool) -> str:
        """Counts what a call costs, unless it is `counted` already. Returns why it may not be made,
        "" if it may."""


@dataclass(frozen=True)
class Job:
    """The attempt that asks."""

    table: str
    row: ModelJob
    token: UUID
    progress: Progress
    tries: Callable[[str], None]  # is told the model that is asked now
    judge: Callable[[], Awaitable[None]]  # has what it sends judged, once
    may_call: MayCall
    was_not_charged: Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Asked(Generic[A]):
    """What a provider made. `paid`: it was charged for, and can't be asked for again.
    `leaves_open`: records of calls are left for `Providers.settle`. `call` is the one of them that
    was answered."""

    result: A
    provider: str
    paid: bool = False
    leaves_open: bool = False
    call: "_Recorded | None" = None


class _Recorded:
    """A call that is recorded. `earlier` is the record of an attempt before, whose result is to be
    asked for."""

    def __init__(
        self,
        db: Database,
        wakes: Wakes,
        job: Job,
        provider: str,
        earlier: ProviderCall | None,
    ) -> None:
        self._db = db
        self._wakes = wakes
        self._job = job
        self._provider = provider
        self._usage: dict[str, float | int | str] = {}
        self._key = earlier.id if earlier else new_id()
        self.begun = earlier is not None
        self.id = str(self._key)
        self.handle = earlier.handle if earlier else ""
        self.charged = provider not in rules.OWN_MACHINES

    async def begins(self, model: str) -> None:
        values = {
            "id": self._key,
            "owner": self._job.row.owner,
            "job": self._job.table,
            "job_id": self._job.row.id,
            "attempt_id": self._job.token,
            "provider": self._provider,
            "model": model,
            "task": self._job.row.model_task,
        }
        async with self._db.transaction(self._job.row.owner) as m:
            await _check_mine(m, self._job)
            await m.one(CALLS.insert(*values), values)
        self.begun = True

    async def submitted(self, handle: str) -> None:
        self.handle = handle

        async def record() -> None:
            async with self._db.transaction(self._job.row.owner) as m:
                await m.run(provider_rows.SUBMIT_CALL, {"id": self._key, "handle": handle})

        await _insist(record, self._provider, self.id)

    async def advances(self, fraction: float) -> None:
        await self._job.progress(fraction)

    async def pauses(self, seconds: float) -> None:
        await self._wakes.pause(self._key, seconds)

    def used(self, **figures: float | int | str) -> None:
        self._usage |= {name: each for name, each in figures.items() if _is_plausible(each)}

    async def answers(self, m: Mutation) -> None:
        """Notes what the answer costs. Ends the record if the result can't be asked for again."""
        if self.handle:
            charge = rules.CHARGED if self.charged else rules.NOT_CHARGED
            values = {"id": self._key, "charge": charge, "usage": Jsonb(self._usage)}
            await m.run(provider_rows.ANSWER_CALL, values)
        else:
            await self.is_done(m)

    async def is_done(self, m: Mutation) -> None:
        """Ends the record of a call that was answered."""
        await self.ends(m, "answered", rules.CHARGED if self.charged else rules.NOT_CHARGED)

    async def ends(
        self, m: Mutation, to: str, charge: str, *, error_class: str = "", category: str = ""
    ) -> None:
        """Ends the record; does nothing if it has ended."""
        values = {
            "id": self._key,
            "to": to,
            "charge": charge,
            "usage": Jsonb(self._usage),
            "error_class": error_class,
            "category": category,
        }
        await m.run(provider_rows.END_CALL, values)


async def _lose(m: Mutation, call: ProviderCall, *, error_class: str = "") -> None:
    """Ends the record of a call whose result nobody has. What is known to be charged stays so."""
    known = call.charge == rules.CHARGED
    values = {
        "id": call.id,
        "to": "lost",
        "charge": rules.CHARGED if known else rules.charge_of_lost(call.provider),
        "usage": Jsonb({}),
        "error_class": error_class,
        "category": "",
    }
    await m.run(provider_rows.END_CALL, values)


@cache
def _lock_mine(table: str) -> Statement[UUID]:
    """Returns the statement that finds a row which this attempt still has, and keeps it so until
    the transaction ends."""
    return Statement(
        UUID,
        f"""
        SELECT id FROM {table} WHERE id = %(id)s AND attempt_token = %(token)s
            AND state = 'processing' FOR SHARE
        """,
    )


async def _check_mine(m: Mutation, job: Job) -> None:
    """Raises Superseded if another attempt has the job by now: that one asks, and pays."""
    if not await m.all(_lock_mine(job.table), {"id": job.row.id, "token": job.token}):
        raise Superseded


async def _insist(record: Callable[[], Awaitable[None]], provider: str, call_id: str) -> None:
    """Repeats a record while the database is away: the call may have cost money, and must not be
    thrown away for its record."""
    deadline = time.monotonic() + _INSIST_SECONDS
    while True:
        try:
            await record()
            return
        except Exception as error:
            if errors.passing(error) is None or time.monotonic() > deadline:
                raise
            _log.warning("a call waits to be recorded", provider=provider, call=call_id)
        await asyncio.sleep(_PAUSE_SECONDS)


class Providers:
    """The providers of a worker: which there are, how many calls each takes at once, and how they
    are doing."""

    def __init__(
        self, db: Database, settings: Settings, routes: Routes, opened: Mapping[str, Provider]
    ) -> None:
        self._db = db
        self._routes = routes
        self._opened = opened
        self.hosted = routes.hosted
        self.wakes = Wakes(db)
        self.moderation = Moderation(db, settings, routes, opened)
        self._places = {
            name: asyncio.Semaphore(limit) for name, limit in routes.limits(settings).items()
        }

    async def ask(self, job: Job, work: Work[A]) -> Asked[A]:
        """Lets the providers of the job's route try in order, until one succeeds or fails in a way
        that another wouldn't help. Raises ProviderFailed."""
        names, earlier = await self._prepared(job)
        failure: ProviderFailed | None = None
        for name in names:
            try:
                asked = await self._ask(job, name, earlier.get(name), work)
            except ProviderFailed as failed:
                if failed.provider:  # a moderation, and what it withholds goes to nobody
                    raise
                failed.provider = name
                if failed.error_class not in (*rules.PASSING_ERRORS, rules.BUDGET_EXCEEDED):
                    raise
                if _is_worth_waiting(failed, earlier.get(name)):
                    raise
                failure = _first_to_wait_for(failure, failed)
                continue
            return replace(asked, leaves_open=bool(asked.call or failure or earlier))
        if failure is None:
            text = f"this deployment no longer has {job.row.provider} for {job.row.model_task}"
            raise ProviderFailed(rules.BAD_INPUT, text)
        raise failure

    async def _ask(
        self, job: Job, name: str, earlier: ProviderCall | None, work: Work[A]
    ) -> Asked[A]:
        """Asks one provider, when it has a place. Raises ProviderFailed."""
        candidate = Candidate(name, self._opened[name].tasks[job.row.model_task])
        job.tries(candidate.model)
        if name == rules.LOCAL:
            await job.judge()
            return await self._call(job, candidate, None, work)
        async with self._places[name]:
            await standing.check_available(self._db, name, kept=earlier is not None)
            if earlier is None:
                await job.judge()
            return await self._call(job, candidate, earlier, work)

    async def _call(
        self, job: Job, candidate: Candidate, earlier: ProviderCall | None, work: Work[A]
    ) -> Asked[A]:
        """Counts what a call costs, and takes that back if it surely cost nothing."""
        await _count(job, candidate, counted=earlier is not None)
        name = candidate.provider
        try:
            if name == rules.LOCAL:
                return Asked(await work(self._opened[name], Unrecorded()), name)
            call = _Recorded(self._db, self.wakes, job, name, earlier)
            return await self._try(job, name, call, work)
        except ProviderFailed as failed:
            if failed.charge == rules.NOT_CHARGED:
                await job.was_not_charged()
            raise

    async def _prepared(self, job: Job) -> tuple[Sequence[str], Mapping[str, ProviderCall]]:
        """Returns the names of the route, and by provider the calls of earlier attempts whose
        results can be asked for. Ends every other one."""
        row = job.row
        if not self._routes.hosted and row.attempt_number == 1:
            return self._routes.names(row.model_task, row.provider), {}
        found: dict[str, ProviderCall] = {}
        dropped: list[ProviderCall] = []
        async with self._db.transaction(row.owner) as m:
            routes = await m.all(provider_rows.SELECT_ROUTES, {"owner": row.owner})
            of_owner = {each.task: each.providers for each in routes}
            names = self._routes.names(row.model_task, row.provider, of_owner)
            for call in await m.all(provider_rows.LOCK_OPEN_CALLS, {"job_id": row.id}):
                if call.handle and call.provider in names and call.provider not in found:
                    found[call.provider] = call
                else:
                    dropped.append(call)
                    await _lose(m, call, error_class="WORKER_LOST")
        await self.give_up(dropped)
        # What is paid already comes first.
        return [*(n for n in names if n in found), *(n for n in names if n not in found)], found

    async def _try(self, job: Job, name: str, call: _Recorded, work: Work[A]) -> Asked[A]:
        began = time.monotonic()
        outcome = "cancelled"
        try:
            result = await _read(work, self._opened[name], call)
            outcome = "answered"
        except ProviderFailed as failed:
            outcome = failed.error_class.lower()
            await self._failed(job, name, call, failed)
            raise
        finally:
            metrics.PROVIDER_CALLS.labels(name, job.row.model_task, outcome).inc()
            metrics.PROVIDER_SECONDS.labels(name).observe(time.monotonic() - began)

        async def record() -> None:
            async with self._db.transaction(job.row.owner) as m:
                await call.answers(m)
                await m.run(provider_rows.COUNT_SUCCESS, {"name": name})

        await _insist(record, name, call.id)
        if call.handle:
            return Asked(result, name, call=call)
        return Asked(result, name, paid=call.charged)

    async def _failed(self, job: Job, name: str, call: _Recorded, failed: ProviderFailed) -> None:
        """Records a failure of a provider: of the call, and of the provider if it is at fault.
        Raises Superseded if another attempt has the job, and with it the call."""
        passing = failed.error_class in rules.PASSING_ERRORS
        # A result that is there, but couldn't be fetched now, is asked for again.
        failed.kept = passing and failed.charge == rules.CHARGED and call.handle != ""
        lost = failed.charge == rules.POSSIBLY_CHARGED and failed.error_class == rules.TIMED_OUT
        async with self._db.transaction(job.row.owner) as m:
            await _check_mine(m, job)
            if failed.kept:
                await call.answers(m)
            elif call.begun:
                await call.ends(
                    m,
                    "lost" if lost else "failed",
                    failed.charge if call.charged else rules.NOT_CHARGED,
                    error_class=failed.error_class,
                    category=failed.category,
                )
            if call.begun or passing:  # what failed before is the input's fault, or ours
                await standing.note(m, name, failed)
        if lost and call.handle:
            await self._cancel(name, call.handle)
        if passing and not failed.kept and failed.charge != rules.NOT_CHARGED:
            # It may be paid again only as often as a job may fail, not for as long as it may wait.
            failed.error_class = rules.BAD_ANSWER
        if failed.error_class == rules.ACCOUNT:
            failed.message = f"{name} {standing.NOT_SERVED}"

    async def give_up(self, calls: Sequence[ProviderCall]) -> None:
        """Asks providers to give up calls whose results nobody will fetch."""
        for call in calls:
            if call.handle and call.provider in self._opened:
                await self._cancel(call.provider, call.handle)

    async def _cancel(self, name: str, handle: str) -> None:
        try:
            await self._opened[name].cancel(handle)
        except ProviderFailed as failed:
            _log.warning("a call could not be cancelled", provider=name, reason=failed.message)

    async def settle(
        self, m: Mutation, job_id: UUID, answered: "_Recorded | None" = None
    ) -> list[ProviderCall]:
        """Ends the records of a job that has its result, or has ended. Returns the calls that are
        to be given up after the commit."""
        if answered:
            await answered.is_done(m)
        calls = await m.all(provider_rows.LOCK_OPEN_CALLS, {"job_id": job_id})
        for call in calls:
            await _lose(m, call)
        return calls


def _is_plausible(figure: float | int | str) -> bool:
    """Returns whether a figure of a provider can be kept; one that can't must not cost a result."""
    return isinstance(figure, str) or -_LARGEST_FIGURE <= figure <= _LARGEST_FIGURE


async def _read(work: Work[A], provider: Provider, call: _Recorded) -> A:
    """Returns what a provider made, in words that can be stored. Raises ProviderFailed: BAD_ANSWER
    also if the answer has a shape that nobody foresaw."""
    try:
        result = await work(provider, call)
    except _UNREADABLE as error:
        if not call.begun:
            raise
        _log.error("an answer can't be read", provider=provider.name, exc_info=error)
        charge = rules.POSSIBLY_CHARGED if call.charged else rules.NOT_CHARGED
        text = f"{provider.name} gave an answer that can't be read ({type(error).__name__})"
        raise ProviderFailed(rules.BAD_ANSWER, text, charge=charge) from None
    except ProviderFailed as failed:
        failed.message, failed.category = storable(failed.message), storable(failed.category)
        raise
    model = Model(storable(result.model.name), storable(result.model.version))
    return replace(result, model=model, parameters=storable_json(result.parameters))


def _is_worth_waiting(failed: ProviderFailed, earlier: ProviderCall | None) -> bool:
    """Returns whether the job waits for a call that its provider has taken, rather than pay another
    one. It doesn't wait for an operator, nor for long."""
    if not failed.kept or failed.error_class == rules.ACCOUNT:
        return False
    return earlier is None or datetime.now(UTC) - earlier.created_at < _WAIT_FOR_RESULT


def _first_to_wait_for(before: ProviderFailed | None, failed: ProviderFailed) -> ProviderFailed:
    """Returns which failure of a route tells what the job waits for. What costs too much is not
    waited for if another provider can be; of two pauses the shorter one counts."""
    if before is None or before.error_class not in rules.PASSING_ERRORS:
        return failed
    if failed.error_class not in rules.PASSING_ERRORS:
        return before
    failed.retry_after = min(before.retry_after, failed.retry_after)
    return failed


async def _count(job: Job, candidate: Candidate, *, counted: bool) -> None:
    """Raises ProviderFailed if a budget forbids a call."""
    if refusal := await job.may_call(candidate, counted=counted):
        raise ProviderFailed(rules.BUDGET_EXCEEDED, refusal)
