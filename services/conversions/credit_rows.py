"""Credits: the rows of accounts, entries and budgets, their messages, and what may be read of
them.

The account of an owner is the sum of the owner's entries: triggers see to it (tables.sql). Nothing
here changes an account but by adding an entry.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from atelier.conversions.v1 import credit_pb2 as pb

from services.conversions import rules
from services.conversions.job_kinds import KINDS
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Statement, Table
from shared.rpc import auth, errors
from shared.rpc.protos import EnumNames, timestamp
from shared.settings import Settings

ENTRY_KINDS = EnumNames(pb.CreditEntryKind, "CREDIT_ENTRY_KIND_")
OPERATOR, OWNER = "operator", "owner"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the settings say about credits. None: no limit."""

    enforced: bool
    daily_credits: int | None
    daily_cost_micros: int | None
    monthly_free_conversions: int | None

    def parameters(self) -> dict[str, object]:
        return {
            "enforced": self.enforced,
            "setting_credits": self.daily_credits,
            "setting_cost_micros": self.daily_cost_micros,
            "setting_free": self.monthly_free_conversions,
        }


def limits_of(settings: Settings) -> Limits:
    return Limits(
        settings.credits == "enforced",
        settings.budget_owner_daily_credits or None,
        settings.budget_owner_daily_cost_micros or None,
        settings.quota_owner_monthly_free_conversions,
    )


@dataclass(slots=True)
class Entry:
    id: UUID
    owner: str
    kind: str
    credits: int
    available_change: int
    reserved_change: int
    job: str  # the table of the job; empty without one
    job_id: UUID | None
    task: str
    attempt_id: UUID | None
    created_at: datetime


@dataclass(slots=True)
class Note:
    """The texts of an operator's entry."""

    owner: str
    entry_id: UUID
    actor: str
    reason: str
    reference: str


@dataclass(slots=True)
class Budget:
    owner: str
    set_by: str
    daily_credits: int | None
    daily_cost_micros: int | None
    monthly_free_conversions: int | None
    expires_at: datetime | None
    updated_by: str
    updated_at: datetime


@dataclass(slots=True)
class Account:
    """An account with its counts of today and this month, and the limits that hold."""

    available: int
    reserved: int
    credits_today: int
    cost_today: int
    free_this_month: int
    daily_credits: int | None
    daily_cost_micros: int | None
    monthly_free_conversions: int | None

    def purse(self) -> rules.Purse:
        return rules.Purse(
            self.available,
            self.credits_today,
            self.daily_credits,
            self.free_this_month,
            self.monthly_free_conversions,
        )


@dataclass(slots=True)
class Allowed:
    """Whether a call to a provider may be made. `spent` and `budget`: the costs of the day
    `counted_on` and their limit, in millionths."""

    allowed: bool
    spent: int
    budget: int | None
    counted_on: date


ENTRIES = Table("credit_entries", Entry)
NOTES = Table("credit_notes", Note)
BUDGETS = Table("credit_budgets", Budget)

_SETTINGS = "%(setting_credits)s::bigint, %(setting_cost_micros)s::bigint, %(setting_free)s::int"
SELECT_ACCOUNT = Statement(
    Account,
    f"""
    SELECT coalesce(a.available, 0) AS available, coalesce(a.reserved, 0) AS reserved,
        CASE WHEN a.day >= clock.day THEN a.day_credits ELSE 0 END AS credits_today,
        CASE WHEN a.day >= clock.day THEN a.day_cost_micros ELSE 0 END AS cost_today,
        CASE WHEN a.month >= clock.month THEN a.month_free ELSE 0 END AS free_this_month,
        l.daily_credits, l.daily_cost_micros, l.monthly_free_conversions
    FROM credit_limits(%(owner)s, {_SETTINGS}) l
    CROSS JOIN (SELECT (now() AT TIME ZONE 'UTC')::date AS day,
        date_trunc('month', now() AT TIME ZONE 'UTC')::date AS month) AS clock
    LEFT JOIN credit_accounts a ON a.owner = %(owner)s
    """,
)
_SELECT_BUDGETS = Statement(
    Budget, f"SELECT {BUDGETS.columns} FROM credit_budgets WHERE owner = %(owner)s"
)
SELECT_NOTES = Statement(
    Note,
    f"SELECT {NOTES.columns} FROM credit_notes WHERE owner = %(owner)s AND entry_id = ANY(%(ids)s)",
)
RESERVE = Command(f"""
    SELECT reserve_credits(%(owner)s, %(job)s, %(job_id)s, %(task)s, %(price)s, %(is_free)s,
        %(enforced)s, {_SETTINGS}, %(after_attempts)s::int)
""")
COUNT_COST = Statement(
    Allowed,
    f"""
    SELECT allowed, spent, budget, counted_on
    FROM count_provider_cost(%(owner)s, %(cost_micros)s, {_SETTINGS})
    """,
)
CORRECT_COST = Command("""
    UPDATE credit_accounts SET day_cost_micros = greatest(day_cost_micros + %(by)s::bigint, 0)
    WHERE owner = %(owner)s AND day = %(counted_on)s
""")
_LOCK_ACCOUNT = Statement(
    int, "SELECT available FROM credit_accounts WHERE owner = %(owner)s FOR UPDATE"
)
_LET_OWE = Command("""
    INSERT INTO credit_accounts (owner, may_owe) VALUES (%(owner)s, true)
    ON CONFLICT (owner) DO UPDATE SET may_owe = true
""")
_DELETE_NOTES = Command("DELETE FROM credit_notes WHERE owner = %(owner)s")
_DELETE_BUDGETS = Command("DELETE FROM credit_budgets WHERE owner = %(owner)s")


def named(owner: str) -> str:
    """Returns the owner whose account a request is about. Raises NOT_FOUND if the request names
    another owner and the caller isn't an operator."""
    identity = auth.current()
    if owner in ("", identity.owner):
        return identity.owner
    if identity.role != "admin":
        raise errors.not_found("owner", owner)
    return owner


def operate(m: Mutation) -> None:
    """Lets this transaction see and change the accounts of every owner."""
    m.send(b"SELECT set_config('app.operator', 'on', true)")


async def balance(m: Mutation, owner: str, limits: Limits, currency: str) -> pb.Balance:
    """Returns an owner's account. The transaction has called `operate`."""
    asked = m.ask(_SELECT_BUDGETS, {"owner": owner})
    account = await m.one(SELECT_ACCOUNT, {"owner": owner, **limits.parameters()})
    set_by = {row.set_by: row for row in asked.rows()}
    return pb.Balance(
        owner=owner,
        available=account.available,
        reserved=account.reserved,
        enforced=limits.enforced,
        credits_today=account.credits_today,
        cost_micros_today=account.cost_today,
        free_conversions_this_month=account.free_this_month,
        budget=pb.Budget(
            daily_credits=account.daily_credits,
            daily_cost_micros=account.daily_cost_micros,
            monthly_free_conversions=account.monthly_free_conversions,
        ),
        operator_budget=_budget(set_by.get(OPERATOR)),
        own_budget=_budget(set_by.get(OWNER)),
        currency=currency,
    )


def _budget(row: Budget | None) -> pb.Budget | None:
    if row is None:
        return None
    return pb.Budget(
        daily_credits=row.daily_credits,
        daily_cost_micros=row.daily_cost_micros,
        monthly_free_conversions=row.monthly_free_conversions,
        expire_time=timestamp(row.expires_at),
    )


async def add(
    m: Mutation, owner: str, kind: str, credits: int, reason: str, reference: str = ""
) -> pb.CreditEntry:
    """Adds an operator's entry. The transaction has called `operate`."""
    values = {"id": new_id(), "owner": owner, "kind": kind, "credits": credits}
    entry = await m.one(ENTRIES.insert(*values), values)
    texts = {
        "owner": owner,
        "entry_id": entry.id,
        "actor": m.actor,
        "reason": reason,
        "reference": reference,
    }
    note = await m.one(NOTES.insert(*texts), texts)
    return to_proto(entry, note)


async def lock_available(m: Mutation, owner: str) -> int:
    """Locks the account and returns what is available. The transaction has called `operate`."""
    return await m.first(_LOCK_ACCOUNT, {"owner": owner}) or 0


async def let_owe(m: Mutation, owner: str) -> None:
    """Lets an account go below 0. The transaction has called `operate`."""
    await m.run(_LET_OWE, {"owner": owner})


async def forget_texts(m: Mutation, owner: str) -> None:
    """Deletes what people wrote about an owner's account, and its budgets, in a transaction of that
    owner by a worker: for an erasure. The figures of the ledger stay."""
    await m.run(_DELETE_NOTES, {"owner": owner})
    await m.run(_DELETE_BUDGETS, {"owner": owner})


def notes_by_entry(notes: Sequence[Note]) -> Mapping[UUID, Note]:
    return {note.entry_id: note for note in notes}


def to_proto(row: Entry, note: Note | None = None) -> pb.CreditEntry:
    entry = pb.CreditEntry(
        id=str(row.id),
        owner=row.owner,
        kind=ENTRY_KINDS.number[row.kind],
        credits=row.credits,
        available_change=row.available_change,
        reserved_change=row.reserved_change,
        task=row.task,
        job_id=str(row.job_id or ""),
        attempt_id=str(row.attempt_id or ""),
        create_time=timestamp(row.created_at),
    )
    if row.job:
        entry.job_kind = KINDS[row.job].number
    if note is not None:
        entry.actor, entry.reason, entry.reference = note.actor, note.reason, note.reference
    return entry
