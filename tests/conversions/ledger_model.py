"""A model of the ledger, and a player that plays the same steps against the real tables.

A game is what may happen to a few jobs of one owner: grants, budgets, jobs that are created (and
created again by a repeated call), workers that claim them, vanish, retry, fall back to another
provider, complete, and come too late; and cancellations at any moment. Any step may be rolled back,
as it is when a process dies before its commit. The model is written from the contract, in Python;
the player runs the statements of the suite: the functions and triggers of tables.sql.
"""

import json
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from services.conversions import rules

Step = dict[str, Any]

_PLAYER = Path(__file__).with_name("ledger_player.sql")


@dataclass
class Job:
    id: str
    table: str
    price: int
    state: str = "none"
    token: str = ""
    old_tokens: list[str] = field(default_factory=list)
    reserved: int = 0
    free: bool = False


@dataclass
class Owner:
    """What the contract says of one owner's account after the steps that were played."""

    name: str
    enforced: bool
    available: int = 0
    reserved: int = 0
    spent_today: int = 0
    cost_today: int = 0
    free_used: int = 0
    budget: int | None = None
    charged: dict[str, int] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)


OUTCOMES = frozenset(
    (
        *("", "free", "credits", "budget", "repeated", "refused"),
        *("allowed", "over", "moved", "nothing", "died"),
    )
)
FREE_PER_MONTH, DAILY_COST = 2, 100
# What happens at any time, and what mostly happens next to a job; more often stands more often.
_STEPS = ("grant", "adjust", "budget", "cost", "create", "claim", "end", "late", "cancel", "retry")
_NEXT = {
    "none": ("create",),
    "pending": ("claim", "claim", "claim", "cancel"),
    "processing": ("end", "end", "end", "retry", "claim", "cancel"),
}


def game(dice: random.Random, name: str) -> tuple[Owner, list[Step], list[str]]:
    """Returns an owner after a game, its steps, and what becomes of each by the model."""
    owner = Owner(name, enforced=dice.random() < 0.7)
    steps: list[Step] = []
    expected: list[str] = []
    for _ in range(dice.randint(1, 3)):
        table = dice.choice(("analyses", "conversions"))
        owner.jobs.append(Job(str(uuid.UUID(int=dice.getrandbits(128))), table, dice.randint(0, 4)))
    for number in range(dice.randint(8, 20)):
        step = _step(dice, owner) if number else {"do": "grant", "credits": dice.randint(1, 9)}
        step["owner"] = owner.name
        if dice.random() < 0.1:
            step["dies"] = True
        steps.append(step)
        said = _apply(owner, step)
        expected.append(said)
    return owner, steps, expected


def _step(dice: random.Random, owner: Owner) -> Step:
    job = dice.choice(owner.jobs)
    usual = _NEXT.get(job.state, _STEPS) if dice.random() < 0.6 else _STEPS
    which = dice.choice(usual)
    moving = {"do": "move", "table": job.table, "job": job.id}
    match which:
        case "grant":
            return {"do": "grant", "credits": dice.randint(1, 6)}
        case "adjust":
            return {"do": "adjust", "credits": dice.choice((-3, -1, 1, 2))}
        case "budget":
            return {"do": "budget", "credits": dice.randint(1, 12)}
        case "cost":
            return {"do": "cost", "micros": dice.randint(30, 90)}
        case "create":
            return {
                "do": "create",
                "table": job.table,
                "job": job.id,
                "price": job.price,
                "free": job.table == "conversions" and dice.random() < 0.6,
                "enforced": owner.enforced,
            }
        case "claim":  # also by another worker, when the first one vanished
            token = str(uuid.UUID(int=dice.getrandbits(128)))
            return {
                **moving,
                "to": "processing",
                "from": ["pending", "processing"],
                "claims": token,
            }
        case "end" | "late":
            token = dice.choice(job.old_tokens) if which == "late" and job.old_tokens else job.token
            to = dice.choice(("completed", "completed", "failed"))
            # A fallback may have been cheaper than what was set aside, or dearer.
            credits = max(0, job.price + dice.choice((-1, 0, 0, 2))) if to == "completed" else 0
            ending = {"to": to, "from": ["processing"], "credits": credits}
            return {**moving, **ending, "token": token or str(uuid.uuid4())}
        case "retry":
            token = job.token or str(uuid.uuid4())
            return {**moving, "to": "pending", "from": ["processing"], "token": token}
    return {**moving, "to": "cancelled", "from": ["pending", "processing"]}


def _apply(owner: Owner, step: Step) -> str:
    """Applies a step to the model unless its process dies. Returns what becomes of it."""
    before = _said(owner, step, commit=not step.get("dies"))
    raised = before in ("repeated", "refused", "budget", "credits")
    dies = step.get("dies") and not raised
    return "died" if dies else before


def _said(owner: Owner, step: Step, *, commit: bool) -> str:
    match step["do"]:
        case "grant" | "adjust":
            after = owner.available + step["credits"]
            owes = owner.available < 0  # an account that owes may be corrected either way
            if after < 0 and not owes:
                return "refused"
            if commit:
                owner.available = after
            return ""
        case "budget":
            if commit:
                owner.budget = step["credits"]
            return ""
        case "cost":
            if owner.cost_today + step["micros"] > DAILY_COST:
                return "over"
            if commit:
                owner.cost_today += step["micros"]
            return "allowed"
        case "create":
            return _create(owner, step, commit=commit)
    return _move(owner, step, commit=commit)


def _create(owner: Owner, step: Step, *, commit: bool) -> str:
    [job] = [job for job in owner.jobs if job.id == step["job"]]
    price = step["price"]
    free = step["free"] and owner.free_used < FREE_PER_MONTH
    purse = rules.Purse(
        owner.available, owner.spent_today, owner.budget, owner.free_used, FREE_PER_MONTH
    )
    assert purse.has_free == (owner.free_used < FREE_PER_MONTH)
    quoted = "" if free else purse.problem(price, enforced=owner.enforced)
    said = _created(owner, job, price, free=free, commit=commit)
    assert quoted == (said if said in ("budget", "credits") else ""), "the quote said otherwise"
    return said


def _created(owner: Owner, job: Job, price: int, *, free: bool, commit: bool) -> str:
    if not free and price:
        if owner.budget is not None and owner.spent_today + price > owner.budget:
            return "budget"
        if owner.enforced and owner.available < price:
            return "credits"
    if job.state != "none":
        return "repeated"
    if commit:
        job.state, job.free = "pending", free
        if free:
            owner.free_used += 1
        else:
            job.reserved = price
            owner.available -= price
            owner.reserved += price
            owner.spent_today += price
    return "free" if free else ""


def _move(owner: Owner, step: Step, *, commit: bool) -> str:
    [job] = [job for job in owner.jobs if job.id == step["job"]]
    if job.state not in step["from"] or step.get("token", job.token) != job.token:
        return "nothing"
    if not commit:
        return "moved"
    job.state = step["to"]
    if "claims" in step:
        job.old_tokens.append(job.token)
        job.token = step["claims"]
    if job.state in ("completed", "failed", "cancelled"):
        cost = min(step.get("credits", 0), job.reserved)
        if cost:
            owner.charged[job.id] = cost
        back = job.reserved - cost
        owner.reserved -= job.reserved
        owner.available += back
        owner.spent_today -= back
        job.reserved = 0
        if job.free and job.state != "completed":
            owner.free_used -= 1
    return "moved"


def prepare(conn: psycopg.Connection[Any]) -> None:
    conn.execute(_PLAYER.read_text())


def play(conn: psycopg.Connection[Any], steps: Sequence[Step]) -> list[str]:
    """Plays the steps in one round trip, as the role that serves. Returns what became of each."""
    row = conn.execute("SELECT pg_temp.play(%s)", (json.dumps(steps),)).fetchone()
    assert row is not None
    return list(row[0])


# By owner: the account, the sums of its entries, what its jobs hold, and each job's charge.
FACTS = """
    SELECT a.owner, a.available, a.reserved, a.day_credits, a.day_cost_micros, a.month_free,
        coalesce(e.available, 0)::bigint, coalesce(e.reserved, 0)::bigint, coalesce(e.charged, '{}')
    FROM conversions.credit_accounts a LEFT JOIN (
        SELECT owner, sum(available_change) AS available, sum(reserved_change) AS reserved,
            jsonb_object_agg(job_id, credits) FILTER (WHERE kind = 'commit') AS charged
        FROM conversions.credit_entries GROUP BY owner
    ) AS e USING (owner)
    WHERE a.owner = ANY(%s)
"""


def check(rows: Sequence[Any], owners: Sequence[Owner]) -> None:
    """Fails unless every account is what the model says, is the sum of its entries, and is within
    its caps."""
    found = {row[0]: row[1:] for row in rows}
    for owner in owners:
        account = found.get(owner.name, (0, 0, 0, 0, 0, 0, 0, {}))
        available, reserved, spent, cost, free, summed, held, charged = account
        assert (available, reserved) == (summed, held), f"{owner.name}: not the sum of its entries"
        assert (available, reserved, spent, cost, free) == (
            owner.available,
            owner.reserved,
            owner.spent_today,
            owner.cost_today,
            owner.free_used,
        ), owner
        assert charged == owner.charged, owner
        assert cost <= DAILY_COST and free <= FREE_PER_MONTH and reserved >= 0
