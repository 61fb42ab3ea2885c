"""Spending: the price of a job is set aside when it is created, and a call to a paid provider is
compared with the day's budget before it is made.

What a job had set aside is settled by the database, in the statement that ends the job (tables.sql,
settle_credits): whatever ends it, it is charged once at most, and the rest is available again.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from atelier.conversions.v1 import credit_pb2 as pb
from prometheus_client import Counter

from services.conversions import credit_rows, provider_rows, rules
from services.conversions.credit_rows import Limits
from services.conversions.job_rows import JobKind, ModelJob
from services.conversions.prices import Price, Priced, Prices
from services.conversions.providers.routes import Candidate, Routes
from shared.database.db import Database, Mutation
from shared.rpc import auth, errors
from shared.rpc.errors import DomainError, Reason
from shared.telemetry import METRICS

A = TypeVar("A")
_REFUSED = "ATL01"  # of tables.sql, reserve_credits

CREDITS = Counter(
    "atelier_credits_committed",
    "Credits that jobs which this worker completed cost",
    ["kind", "task"],
    registry=METRICS,
)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a job costs at most, and the prices of the providers that may run it. `is_free`: it
    costs nothing, since its pictures are free and the owner's free quota lasts. `most`: the
    request's limit."""

    priced: Priced
    prices: Sequence[Price]
    credits: int
    is_free: bool
    most: int | None

    @property
    def set_aside(self) -> int:
        return 0 if self.is_free else self.credits

    @property
    def providers(self) -> list[str]:
        return [price.provider for price in self.prices]

    @property
    def columns(self) -> dict[str, object]:
        """The columns of the job's row that follow from the offer."""
        free = {"free": self.is_free} if self.priced.kind == "conversion" and self.prices else {}
        return {"credits_reserved": self.set_aside, "max_credits": self.most, **free}

    def paid(self) -> "Offer":
        return replace(self, is_free=False)

    @property
    def too_dear(self) -> DomainError | None:
        """The refusal of a job that costs more than its request allows, whoever runs it."""
        if self.is_free or self.most is None or not self.prices:
            return None
        least = min(price.credits for price in self.prices)
        if rules.affordable(least, self.most):
            return None
        text = (
            f"this costs {least} credits and max_credits is {self.most}: nothing was created; raise"
            " max_credits or leave it out"
        )
        return _exceeded("max_credits", self.most, 0, least, text)


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted for one call to a provider, among the costs of `day`. `refusal`: why the
    call may not be made; '' if it may."""

    refusal: str = ""
    micros: int = 0
    day: date | None = None


class Spending:
    """The price table with the limits of the settings and the routes of jobs to providers."""

    def __init__(self, limits: Limits, prices: Prices, routes: Routes) -> None:
        self.limits = limits
        self.prices = prices
        self.routes = routes

    def offer(
        self,
        priced: Priced,
        columns: Mapping[str, Any],
        candidates: Sequence[Candidate],
    ) -> Offer:
        """Returns what a job with these columns would set aside, which one of the candidates runs.
        One that an earlier result answers costs nothing, and so does one that an outside worker
        runs, unless the table has a price for these."""
        most: int | None = columns["max_credits"]
        if columns.get("answered_from"):
            return Offer(priced, [], 0, False, most)
        today = datetime.now(UTC).date()
        if columns["external"]:
            stated = self.prices.of_outside(priced, today)
            return Offer(
                priced, [stated] if stated else [], stated.credits if stated else 0, False, most
            )
        prices = [
            self.prices.quote(priced, each.provider, each.model, today) for each in candidates
        ]
        credits = rules.credits_to_set_aside([price.credits for price in prices], most)
        return Offer(priced, prices, credits, bool(columns.get("free")), most)

    async def candidates(self, db: Database, task: str, provider: str) -> list[Candidate]:
        """Returns the providers that a job of the current owner's is asked of, in order, with their
        models."""
        of_owner = {}
        if self.routes.hosted:
            owner = {"owner": auth.current().owner}
            rows = await db.all(provider_rows.SELECT_ROUTES, owner)
            of_owner = {each.task: each.providers for each in rows}
        return self.routes.candidates(task, provider, of_owner)

    async def reserve(
        self,
        m: Mutation,
        kind: JobKind[Any, Any],
        row_id: UUID,
        offer: Offer,
        *,
        after_attempts: int = 0,
    ) -> None:
        """Sets the price of a job aside whose row was inserted, or requeued after so many attempts.
        Call it last in the transaction: the owner's account is locked until that ends, and a
        refusal surfaces with its end."""
        if not offer.set_aside and not offer.is_free:
            return
        values = {
            "owner": m.owner,
            "job": kind.table.name,
            "job_id": row_id,
            "task": offer.priced.name,
            "price": offer.credits,
            "is_free": offer.is_free,
            "after_attempts": after_attempts,
            **self.limits.parameters(),
        }
        await m.run(credit_rows.RESERVE, values)

    async def agreed(self, offer: Offer, work: Callable[[Offer], Awaitable[A]]) -> A:
        """Runs the transaction that creates a job of this offer; once more, with the price, if it
        was to be free and the month's quota is used up. Raises CREDITS_EXHAUSTED or
        BUDGET_EXCEEDED, and then nothing is kept."""
        if offer.too_dear:
            raise offer.too_dear
        try:
            return await work(offer)
        except psycopg.Error as error:
            refusal = refusal_of(error, offer)
            if refusal is not None:
                raise refusal from None
            if not is_refused(error):
                raise
        return await self.agreed(offer.paid(), work)

    def price(self, kind: JobKind[Any, Any], row: ModelJob, provider: str, model: str) -> Price:
        """Returns the price of a job's row if this provider runs it, by the prices of the day on
        which the row was created, or last requeued."""
        day = _day(row.requeued_at or row.created_at)
        return self.prices.quote(self.priced(kind, row), provider, model, day)

    def outside_credits(self, kind: JobKind[Any, Any], row: ModelJob) -> int:
        """Returns what a job's row costs that an outside worker has run, by the prices of the same
        day."""
        day = _day(row.requeued_at or row.created_at)
        price = self.prices.of_outside(self.priced(kind, row), day)
        return price.credits if price else 0

    def priced(self, kind: JobKind[Any, Any], row: ModelJob) -> Priced:
        return kind.priced(_columns(kind, row))

    async def offer_again(self, db: Database, kind: JobKind[Any, Any], row: ModelJob) -> Offer:
        """Returns what a row of the current owner's would set aside if it were run again. Raises
        FAILED_PRECONDITION if the provider that it asked for is gone."""
        self.check_provider(kind, row)
        columns = _columns(kind, row)
        priced = kind.priced(columns)
        candidates = await self.candidates(db, priced.model_task, row.provider)
        return self.offer(priced, columns, candidates)

    def check_provider(self, kind: JobKind[Any, Any], row: ModelJob) -> None:
        """Raises FAILED_PRECONDITION if this deployment no longer has the provider that a row asked
        for."""
        if row.provider and not self.routes.names(row.model_task, row.provider):
            raise errors.precondition(
                f"it asked for {row.provider}, which this deployment no longer has for"
                f" {row.model_task}; create a new one",
                subject=f"{kind.table.name}/{row.id}",
            )

    async def may_call(self, db: Database, row: ModelJob, price: Price) -> "Counted":
        """Call this before each call to a provider, and commit nothing else with it. Counts the
        call's estimated cost among the day's, unless a budget forbids the call: then `refusal` says
        why."""
        if not is_free(row) and not rules.affordable(price.credits, row.max_credits):
            return Counted(
                f"{price.provider} costs {price.credits} credits, and max_credits of the job is"
                f" {row.max_credits}: create one that may cost more"
            )
        if not price.cost_micros:
            return Counted()
        async with db.transaction(row.owner) as m:
            asked = {"owner": m.owner, "cost_micros": price.cost_micros}
            counted = await m.one(credit_rows.COUNT_COST, asked | self.limits.parameters())
        if counted.allowed:
            return Counted(micros=price.cost_micros, day=counted.counted_on)
        return Counted(
            f"a call to {price.provider} costs some {self.money(price.cost_micros)}, and of today's"
            f" budget of {self.money(counted.budget or 0)} {self.money(counted.spent)} are used:"
            " wait for the next day (UTC), or ask the operator for more"
        )

    async def correct(self, db: Database, row: ModelJob, counted: "Counted", micros: int) -> None:
        """Replaces what was counted for a call by what it cost, once that is known: 0 if the
        provider surely charged nothing."""
        if counted.day is not None and micros != counted.micros:
            async with db.transaction(row.owner) as m:
                by = micros - counted.micros
                values = {"owner": m.owner, "counted_on": counted.day, "by": by}
                await m.run(credit_rows.CORRECT_COST, values)

    def charge(self, row: ModelJob, price: Price) -> int:
        """Returns the credits that the row costs if a provider of this price made its result."""
        return min(price.credits, row.credits_reserved)

    def money(self, micros: int) -> str:
        return f"{micros / 1_000_000:.4f} {self.prices.currency}"

    async def quote(self, m: Mutation, owner: str, offer: Offer) -> pb.QuoteJobResponse:
        """Returns the offer as a quote, with the refusal that the job would meet now."""
        asked = {"owner": owner, **self.limits.parameters()}
        account = await m.one(credit_rows.SELECT_ACCOUNT, asked)
        purse = account.purse()
        if offer.is_free and not purse.has_free:
            offer = offer.paid()
        refusal = offer.too_dear
        problem = purse.problem(offer.set_aside, enforced=self.limits.enforced)
        if problem and not refusal:
            refusal = _refusal(
                problem, owner, offer.credits, purse.available, purse.spent, purse.budget
            )
        return pb.QuoteJobResponse(
            credits=offer.set_aside,
            free=offer.is_free,
            available=purse.available,
            available_after=purse.available - (0 if refusal else offer.set_aside),
            refusal=Reason.Name(refusal.reason) if refusal else Reason.ERROR_REASON_UNSPECIFIED,
            refusal_message=refusal.text if refusal else "",
            currency=self.prices.currency,
            lines=[_line(price) for price in offer.prices],
        )


def is_refused(error: psycopg.Error) -> bool:
    """Returns whether the database refused to set a price aside, and not something else."""
    return error.sqlstate == _REFUSED


def refusal_of(error: psycopg.Error, offer: Offer) -> DomainError | None:
    """Returns the refusal that the database gave to a job of this offer; None if the job may be
    created at its price, since the month's free quota is used up, or if it was no refusal."""
    problem = error.diag.message_primary or ""
    if not is_refused(error) or problem == "paid":
        return None
    figures = json.loads(error.diag.message_detail or "{}")
    return _refusal(problem, auth.current().owner, offer.credits, **figures)


def _line(price: Price) -> pb.QuoteLine:
    return pb.QuoteLine(
        provider=price.provider,
        model=price.model,
        credits=price.credits,
        cost_micros=price.cost_micros,
        source=price.source,
        valid_from=price.valid_from.isoformat(),
    )


def is_free(row: ModelJob) -> bool:
    """Returns whether the row's result costs nothing. Only conversions can be free."""
    return bool(getattr(row, "free", False))


def _columns(kind: JobKind[Any, Any], row: ModelJob) -> dict[str, Any]:
    return {name: getattr(row, name) for name in kind.table.names}


def _day(moment: datetime) -> date:
    return moment.astimezone(UTC).date()


def _refusal(
    problem: str, owner: str, price: int, available: int, spent: int, budget: int | None
) -> DomainError:
    if problem == "budget":
        text = (
            f"this costs {price} credits, and {spent} of today's budget of {budget} are used: wait"
            " for the next day (UTC), or have the budget raised"
        )
        return _exceeded("daily_credits", budget or 0, spent, price, text)
    text = (
        f"this costs {price} credits and {available} are available: ask the operator for credits,"
        " or wait until jobs that hold some have ended"
    )
    figures = {"available": str(available), "needed": str(price)}
    return errors.exhausted(
        Reason.ERROR_REASON_CREDITS_EXHAUSTED, text, subject=owner, metadata=figures
    )


def _exceeded(budget: str, limit: int, spent: int, needed: int, text: str) -> DomainError:
    return errors.exhausted(
        Reason.ERROR_REASON_BUDGET_EXCEEDED,
        text,
        subject=budget,
        metadata={
            "budget": budget,
            "limit": str(limit),
            "spent": str(spent),
            "needed": str(needed),
        },
    )
