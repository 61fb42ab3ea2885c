"""Conducts batches: creates their items as those before end, counts them, and sees to their end.

Each batch that isn't at rest has one job, which comes back every second. It creates items while few
wait, so a batch of ten thousand never fills the queue, and a change of the batch touches few jobs.
Everything that it does is a transaction under the lock of the batch's row: `made` advances together
with the rows, so that a worker that is killed leaves no item twice and none out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from services.conversions import batch_plans, batch_rows, job_moves, retention_rows, rules, spending
from services.conversions.batch_plans import BatchPlan, Columns
from services.conversions.batch_rows import OF_BATCH, TABLES, Batch, Figures, LockedBatch
from services.conversions.consenting import Consents
from services.conversions.job_calls import JobCalls
from services.conversions.job_kinds import KINDS
from services.conversions.job_rows import ModelJob
from services.conversions.prices import Priced
from services.conversions.providers.routes import Candidate
from services.conversions.spending import Offer, Spending
from shared.background.jobs import JobQueue, TryAgain
from shared.background.watches import EventStream
from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement
from shared.rpc import auth, calls
from shared.rpc.errors import DomainError, Reason

SLOTS = 2  # of a worker for conducting: a step takes milliseconds
_CHUNK = 25  # items per transaction: the owner's account is locked while they are created
_PAUSE = timedelta(seconds=1)
_CANCELS = 25  # items per transaction


@dataclass(slots=True)
class _Failed:
    """A row that is to be tried again."""

    id: UUID
    batch_item: int


@dataclass(slots=True)
class _Item:
    """An item to create. `retry_of`: the row that failed."""

    number: int
    retry_of: UUID | None = None


_TO_RETRY = f"""{OF_BATCH} AND state = 'failed' AND deleted_at IS NULL
    AND coalesce(ended_at, updated_at) <= %(until)s
    AND (cardinality(%(classes)s::text[]) = 0 OR error_class = ANY(%(classes)s::text[]))"""
# Skips what somebody is changing: whoever has an item may wait for the batch.
_LOCK_FAILED = {
    table: Statement(
        _Failed,
        f"""
        SELECT id, coalesce(batch_item, 0) AS batch_item FROM {table}
        WHERE {_TO_RETRY} ORDER BY 2 LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        """,
    )
    for table in TABLES
}
COUNT_FAILED = {
    table: Statement(int, f"SELECT count(*)::int AS items FROM {table} WHERE {_TO_RETRY}")
    for table in TABLES
}
_REPLACE = {
    table: Command(f"UPDATE {table} SET batch_item = NULL WHERE id = %(id)s") for table in TABLES
}
_SELECT_OPEN = {
    table: Statement(
        UUID,
        f"""
        SELECT id FROM {table} WHERE {OF_BATCH}
            AND (state = 'pending' OR state = 'processing' AND NOT cancel_requested) LIMIT %(limit)s
        """,
    )
    for table in TABLES
}


class Conductor:
    """Runs the jobs that conduct batches."""

    def __init__(self, db: Database, queue: JobQueue, spending: Spending) -> None:
        stream = EventStream(db)  # a worker serves no watch: it isn't started
        self._db = db
        self._queue = queue
        self._spending = spending
        self._consents = Consents(db)
        kept = retention_rows.of_settings(db.settings)
        self._calls: dict[str, JobCalls[Any, Any]] = {
            table: JobCalls(KINDS[table], db, stream, queue, spending, kept) for table in TABLES
        }
        queue.task(batch_rows.TASK, batch_rows.QUEUE, self.conduct)
        queue.add_queue(batch_rows.QUEUE, SLOTS)

    async def conduct(self, row_id: str) -> None:
        """Does one step for a batch. `row_id`: its id and the round that the job belongs to."""
        text, _, number = row_id.partition("/")
        found = await self._db.system_all(batch_rows.SELECT_OWNER, {"id": UUID(text)})
        if not found:
            return
        auth.enter(calls.owner_identity(found[0]))
        batch = await self._db.first(batch_rows.SELECT_BATCH, {"id": UUID(text)})
        if batch is None or batch.round != int(number):
            return
        if batch.state == "running":
            await self._create_items(batch)
        elif batch.state == "cancelled":
            await self._cancel_items(batch)
        if await self._settle(batch):
            [now] = await self._db.system_all(batch_rows.SELECT_NOW)
            raise TryAgain(now + _PAUSE)

    async def _create_items(self, batch: Batch) -> None:
        """Creates items until enough of them wait, all are there, or the money is used up."""
        stored = await self._db.one(batch_rows.SELECT_PLAN, {"id": batch.id})
        plan = batch_plans.read(batch.job, stored.plan)
        task = batch.kind.priced(plan.columns(0)).model_task
        if batch.provider and not self._spending.routes.names(task, batch.provider):
            await self._pause(batch, rules.NO_PROVIDER, _gone(batch.provider, task))
            return
        candidates = await self._calls[batch.job].candidates(task, batch.provider)
        creation = _Creation(
            self._queue,
            self._calls[batch.job],
            self._spending,
            self._consents,
            plan,
            task,
            candidates,
        )
        most = _CHUNK
        while True:
            try:
                async with self._db.transaction(batch.owner, batch.created_by) as m:
                    locked = await self._lock(m, batch)
                    if locked is None or not await creation.step(m, locked, most):
                        return
            except DomainError as refusal:
                if refusal.reason != Reason.ERROR_REASON_CONSENT_REQUIRED:
                    raise
                await self._pause(batch, rules.NO_CONSENT, refusal.text)
                return
            except psycopg.Error as error:
                if not spending.is_refused(error):
                    raise
                too_dear = creation.refusal(error)
                if most > 1:
                    most = 1  # some of the items may be affordable: now one at a time
                elif too_dear is None:
                    creation.paid = True
                else:
                    await self._wait_or_pause(batch, too_dear)
                    return

    async def _lock(self, m: Mutation, batch: Batch) -> LockedBatch | None:
        """Locks the row if it still runs in this round."""
        locked = await batch_rows.find(m, batch.id)
        if locked is None or locked.round != batch.round or locked.state != "running":
            return None
        return locked

    async def _wait_or_pause(self, batch: Batch, refusal: DomainError) -> None:
        """Pauses a batch whose owner can't pay for another item, once none can give back what is
        set aside for it."""
        exhausted = refusal.reason == Reason.ERROR_REASON_CREDITS_EXHAUSTED
        async with self._db.transaction(batch.owner, batch.created_by) as m:
            locked = await self._lock(m, batch)
            if locked is None or _has_open(await batch_rows.count(m, locked)):
                return
            reason = rules.CREDITS_EXHAUSTED if exhausted else rules.DAY_BUDGET
            await batch_rows.pause(m, self._queue, locked, reason, refusal.text)

    async def _pause(self, batch: Batch, reason: str, message: str) -> None:
        async with self._db.transaction(batch.owner, batch.created_by) as m:
            locked = await self._lock(m, batch)
            if locked is not None:
                await batch_rows.pause(m, self._queue, locked, reason, message)

    async def _cancel_items(self, batch: Batch) -> None:
        """Cancels the items that haven't ended. Needs no lock of the batch: nothing follows on its
        state."""
        cancels = self._calls[batch.job]
        asked = {"owner": batch.owner, "batch_id": batch.id, "limit": _CANCELS}
        while True:
            async with self._db.transaction(batch.owner, batch.created_by) as m:
                found = await m.all(_SELECT_OPEN[batch.job], asked)
                for each in found:
                    await cancels.cancel(m, str(each))
            if not found:
                return

    async def _settle(self, batch: Batch) -> bool:
        """Notes the figures of the batch, and its end. Returns whether the job must come back."""
        async with self._db.transaction(batch.owner, batch.created_by) as m:
            locked = await batch_rows.find(m, batch.id)
            if locked is None or locked.round != batch.round or locked.state == "completed":
                return False
            if locked.state == "paused":  # items that run may come back for another attempt
                await batch_rows.withdraw(m, self._queue, locked)
            figures = await batch_rows.count(m, locked)
            if _ended(locked, figures):
                await _end(m, locked, figures)
                return False
            changed = figures != locked.figures
            if changed:
                await batch_rows.update(m, locked, figures=Jsonb(figures))
        # A paused batch is at rest once what ran has ended; a job that a worker had just fetched
        # begins its attempt before the next step.
        return locked.state != "paused" or changed or bool(figures.get("processing"))


def _has_open(figures: Figures) -> bool:
    return bool(figures.get("pending") or figures.get("processing"))


def _ended(batch: Batch, figures: Figures) -> bool:
    if _has_open(figures):
        return False
    whole = batch.made == batch.total and batch.retry_until is None
    return whole or batch.state == "cancelled"


async def _end(m: Mutation, batch: LockedBatch, figures: Figures) -> None:
    columns = {"figures": Jsonb(figures), "ended_at": await m.one(batch_rows.SELECT_NOW)}
    if batch.state != "cancelled":
        unpaused = {"pause_reason": "", "pause_message": ""}
        await batch_rows.move(m, batch, "completed", **columns, **unpaused)
    elif batch.ended_at is None:
        await batch_rows.update(m, batch, **columns)


class _Creation:
    """Creates items of one batch. `paid`: the owner's free quota is used up."""

    def __init__(
        self,
        queue: JobQueue,
        job_calls: JobCalls[Any, Any],
        spending: Spending,
        consents: Consents,
        plan: BatchPlan,
        task: str,
        candidates: Sequence[Candidate],
    ) -> None:
        self.paid = False
        self._queue = queue
        self._calls = job_calls
        self._spending = spending
        self._consents = consents
        self._plan = plan
        self._task = task
        self._candidates = candidates
        self._last: Offer | None = None  # the one that the database may have refused

    def refusal(self, error: psycopg.Error) -> DomainError | None:
        assert self._last is not None
        return spending.refusal_of(error, self._last)

    async def step(self, m: Mutation, batch: LockedBatch, most: int) -> bool:
        """Creates at most so many items. Returns whether there may be more to create now."""
        waiting = await batch_rows.pending(m, batch)
        if batch.held:
            await self._enqueue(m, batch, waiting)
            batch = await batch_rows.update(m, batch, held=False)
        room = min(most, rules.BATCH_WAITING - len(waiting))
        if room <= 0:
            return False
        items = await self._next_items(m, batch, room)
        if not items:
            if batch.retry_until is None:
                return False
            left = await m.one(COUNT_FAILED[batch.job], to_retry(batch))
            if left:  # somebody is changing them
                return False
            await batch_rows.update(m, batch, retry_until=None, retry_classes=[])
            return True
        return await self._create(m, batch, items)

    async def _enqueue(self, m: Mutation, batch: Batch, waiting: Sequence[UUID]) -> None:
        """Enqueues rows that left the queue while the batch was paused."""
        for each in await self._queue.without_job(m, waiting):
            row: ModelJob = await m.one(batch_rows.SELECT_ITEM[batch.job], {"id": each})
            providers = [each.provider for each in self._candidates]
            await job_moves.enqueue(m, self._queue, batch.kind, row, providers, batch.urgency)

    async def _next_items(self, m: Mutation, batch: Batch, most: int) -> list[_Item]:
        if batch.retry_until is not None:
            failed = await m.all(_LOCK_FAILED[batch.job], {**to_retry(batch), "limit": most})
            return [_Item(each.batch_item, each.id) for each in failed]
        return [_Item(number) for number in range(batch.made, min(batch.made + most, batch.total))]

    async def _create(self, m: Mutation, batch: LockedBatch, items: Sequence[_Item]) -> bool:
        photographs = {each for item in items for each in self._plan.photographs(item.number)}
        consents = await self._consents.keep(m, self._task, sorted(photographs), batch.created_at)
        figures = await batch_rows.count(m, batch)
        held = figures["credits"] + figures["credits_reserved"]
        left = None if batch.max_credits is None else batch.max_credits - held
        created = 0
        for item in items:
            offer, columns = self._offer(batch, item, left)
            if offer.too_dear:
                break
            used = self._plan.photographs(item.number) if consents else []
            columns["consent_ids"] = [consents[each] for each in used]
            await self._insert(m, batch, item, offer, columns)
            created += 1
            left = None if left is None else left - offer.set_aside
        new = sum(item.retry_of is None for item in items[:created])
        if new:
            await m.run(_ADVANCE, {"id": batch.id, "made": batch.made + new})
        if not created:
            await self._wait_or_pause(m, batch, figures, max(left or 0, 0))
        return created == len(items)

    def _offer(self, batch: Batch, item: _Item, left: int | None) -> tuple[Offer, Columns]:
        columns = {"max_credits": None, **self._plan.columns(item.number)}
        priced = batch.kind.priced(columns)
        offer = self._priced(priced, columns)
        if left is not None and offer.set_aside > left:  # perhaps not the dearest provider
            offer = self._priced(priced, {**columns, "max_credits": left})
        return offer, columns

    def _priced(self, priced: Priced, columns: Columns) -> Offer:
        offer = self._spending.offer(priced, columns, self._candidates)
        return offer.paid() if self.paid else offer

    async def _insert(
        self, m: Mutation, batch: Batch, item: _Item, offer: Offer, columns: Columns
    ) -> None:
        if item.retry_of is not None:
            await m.run(_REPLACE[batch.job], {"id": item.retry_of})
            columns["retry_of"] = item.retry_of
        columns |= {"batch_id": batch.id, "batch_item": item.number}
        self._last = offer
        await self._calls.insert(m, columns, offer, urgency=batch.urgency)

    async def _wait_or_pause(
        self, m: Mutation, batch: LockedBatch, figures: Figures, left: int
    ) -> None:
        """Pauses a batch whose max_credits don't pay for another item, once none can give back what
        is set aside for it."""
        if _has_open(figures):
            return
        message = (
            f"max_credits of the batch is {batch.max_credits}, of which its items cost"
            f" {figures['credits']}: {left} credits don't pay for another item; resume the batch"
            " with a higher max_credits"
        )
        await batch_rows.pause(m, self._queue, batch, rules.MAX_CREDITS, message)


_ADVANCE = Command("UPDATE batches SET made = %(made)s WHERE id = %(id)s")


def _gone(provider: str, task: str) -> str:
    return (
        f"this deployment no longer has {provider} for {task}: ask the operator for it and resume"
        " the batch, or cancel it and create one with another provider"
    )


def to_retry(batch: Batch) -> dict[str, object]:
    """Returns the parameters that select what is to be tried again."""
    return {
        "owner": batch.owner,
        "batch_id": batch.id,
        "until": batch.retry_until,
        "classes": batch.retry_classes,
    }
