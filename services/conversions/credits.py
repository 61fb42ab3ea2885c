"""CreditService: accounts, their ledger, quotes and budgets."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
from atelier.conversions.v1 import credit_pb2 as pb
from atelier.conversions.v1 import credit_pb2_grpc

from services.conversions import credit_rows
from services.conversions.credit_rows import (
    ENTRIES,
    ENTRY_KINDS,
    OPERATOR,
    OWNER,
    Entry,
    notes_by_entry,
    operate,
    to_proto,
)
from services.conversions.spending import Offer, Spending
from shared.database.db import Database, Mutation
from shared.database.lists import Listing, created
from shared.database.rows import Command, Statement
from shared.rpc import auth, errors, paging
from shared.rpc.protos import time_of
from shared.rpc.server import Context

# By a field of QuoteJobRequest: what checks the request in it, as creating the job does, and
# returns what the job would cost.
Quotable = Mapping[str, Callable[[Any], Awaitable[Offer]]]

_LIST = Listing(ENTRIES, Entry)
_UPSERT_BUDGET = Command("""
    INSERT INTO credit_budgets (owner, set_by, daily_credits, daily_cost_micros,
        monthly_free_conversions, expires_at, updated_by)
    VALUES (%(owner)s, %(set_by)s, %(daily_credits)s, %(daily_cost_micros)s,
        %(monthly_free_conversions)s, %(expires_at)s, %(actor)s)
    ON CONFLICT (owner, set_by) DO UPDATE SET daily_credits = excluded.daily_credits,
        daily_cost_micros = excluded.daily_cost_micros,
        monthly_free_conversions = excluded.monthly_free_conversions,
        expires_at = excluded.expires_at, updated_by = excluded.updated_by, updated_at = now()
""")
_DELETE_BUDGET = Statement(
    str,
    "DELETE FROM credit_budgets WHERE owner = %(owner)s AND set_by = %(set_by)s RETURNING owner",
)
_BUDGETS = ("daily_credits", "daily_cost_micros")


class CreditService(credit_pb2_grpc.CreditServiceServicer):
    def __init__(self, db: Database, spending: Spending, quotable: Quotable) -> None:
        self._db = db
        self._spending = spending
        self._quotable = quotable

    async def GetBalance(
        self, request: pb.GetBalanceRequest, context: Context
    ) -> pb.GetBalanceResponse:
        owner = credit_rows.named(request.owner)
        async with self._db.transaction("") as m:
            operate(m)
            balance = await self._balance(m, owner)
        return pb.GetBalanceResponse(balance=balance)

    async def ListCreditEntries(
        self, request: pb.ListCreditEntriesRequest, context: Context
    ) -> pb.ListCreditEntriesResponse:
        owner = credit_rows.named(request.owner)
        page = paging.page(request)
        wanted = {
            "job_id": request.job_id and UUID(request.job_id),
            "kind": ENTRY_KINDS.word.get(request.kind),
            **created(request),
        }
        statement, parameters = _LIST.query(page, wanted)
        async with self._db.transaction("") as m:
            operate(m)
            rows = await m.all(statement, {**parameters, "owner": owner})
            ids = [row.id for row in page.cut(rows) if not row.job]
            asked = {"owner": owner, "ids": ids}
            notes = await m.all(credit_rows.SELECT_NOTES, asked) if ids else []
        by_entry = notes_by_entry(notes)
        messages = (to_proto(row, by_entry.get(row.id)) for row in rows)
        entries, token = page.fill(rows, messages)
        return pb.ListCreditEntriesResponse(entries=entries, next_page_token=token)

    async def QuoteJob(self, request: pb.QuoteJobRequest, context: Context) -> pb.QuoteJobResponse:
        field = request.WhichOneof("job") or ""
        owner = auth.current().owner
        offer = await self._quotable[field](getattr(request, field))
        async with self._db.transaction(owner) as m:
            return await self._spending.quote(m, owner, offer)

    async def GrantCredits(
        self, request: pb.GrantCreditsRequest, context: Context
    ) -> pb.GrantCreditsResponse:
        async def work(m: Mutation) -> pb.GrantCreditsResponse:
            operate(m)
            entry = await credit_rows.add(
                m, request.owner, "grant", request.credits, request.reason, request.reference
            )
            return pb.GrantCreditsResponse(
                entry=entry, balance=await self._balance(m, request.owner)
            )

        try:
            return await self._db.mutate(request, pb.GrantCreditsResponse, work)
        except psycopg.errors.UniqueViolation:
            text = (
                f"{request.owner} has a grant of reference {request.reference!r}; nothing was"
                " granted: look at it with ListCreditEntries, or use another reference"
            )
            raise errors.already_exists("grant", request.reference, text) from None

    async def AdjustCredits(
        self, request: pb.AdjustCreditsRequest, context: Context
    ) -> pb.AdjustCreditsResponse:
        owner = request.owner

        async def work(m: Mutation) -> pb.AdjustCreditsResponse:
            operate(m)
            available = await credit_rows.lock_available(m, owner)
            if request.credits < 0 and available + request.credits < 0:
                if self._spending.limits.enforced:
                    raise _takes_too_much(owner, available)
                await credit_rows.let_owe(m, owner)
            entry = await credit_rows.add(m, owner, "adjust", request.credits, request.reason)
            return pb.AdjustCreditsResponse(entry=entry, balance=await self._balance(m, owner))

        return await self._db.mutate(request, pb.AdjustCreditsResponse, work)

    async def SetBudget(
        self, request: pb.SetBudgetRequest, context: Context
    ) -> pb.SetBudgetResponse:
        owner = credit_rows.named(request.owner)
        expires_at = _expiry(request)
        operates = auth.current().role == "admin"
        if request.HasField("monthly_free_conversions") and not operates:
            raise errors.invalid(
                "monthly_free_conversions", "is for operators to set; leave it out"
            )
        columns = {
            name: getattr(request, name) if request.HasField(name) else None
            for name in (*_BUDGETS, "monthly_free_conversions")
        }

        async def work(m: Mutation) -> pb.SetBudgetResponse:
            operate(m)
            which = {"owner": owner, "set_by": OPERATOR if operates else OWNER}
            # Without it one sees what holds otherwise.
            await m.first(_DELETE_BUDGET, which)
            if not operates:
                _check_lower(request, await self._balance(m, owner))
            if any(value is not None for value in columns.values()):
                values = {**which, **columns, "expires_at": expires_at, "actor": m.actor}
                await m.run(_UPSERT_BUDGET, values)
            return pb.SetBudgetResponse(balance=await self._balance(m, owner))

        return await self._db.mutate(request, pb.SetBudgetResponse, work)

    async def _balance(self, m: Mutation, owner: str) -> pb.Balance:
        spending = self._spending
        return await credit_rows.balance(m, owner, spending.limits, spending.prices.currency)


def _takes_too_much(owner: str, available: int) -> errors.DomainError:
    return errors.precondition(
        f"{owner} has {available} credits available; take no more than those, or wait until jobs"
        " that hold some have ended",
        subject=owner,
        metadata={"available": str(available)},
    )


def _expiry(request: pb.SetBudgetRequest) -> datetime | None:
    """Returns when the budget ends. Raises INVALID_ARGUMENT for a time that has passed."""
    at = time_of(request.expire_time, request.HasField("expire_time"), "expire_time")
    if at is not None and at <= datetime.now(UTC):
        raise errors.invalid(
            "expire_time",
            f"has passed ({at:%Y-%m-%d %H:%M} UTC): a budget of the past limits nothing; name a"
            " time to come, or leave it out",
        )
    return at


def _check_lower(request: pb.SetBudgetRequest, without: pb.Balance) -> None:
    """Raises INVALID_ARGUMENT for an owner's budget that is higher than what holds without it."""
    for name in _BUDGETS:
        if not request.HasField(name) or not without.budget.HasField(name):
            continue
        most = getattr(without.budget, name)
        if getattr(request, name) > most:
            raise errors.invalid(
                name, f"is higher than the budget of {most} that holds; ask the operator for more"
            )
