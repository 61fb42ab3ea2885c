"""Figures of storage for reports, alerts and metrics, from what is counted."""

from services.assets.accounting import rules, usage_rows
from services.assets.accounting.enforcing import Quotas
from services.assets.accounting.rules import Alert, Allowance, Held
from services.assets.accounting.usage_rows import WINDOW_DAYS, Usage
from shared.database.db import Database


async def figures(db: Database, quotas: Quotas, owner: str) -> tuple[Usage, Allowance, Held]:
    """Everything about an owner or the deployment."""
    use = await usage_rows.read(db, owner)
    async with db.transaction("") as m:
        await usage_rows.operate(m)
        return use, *await quotas.in_force(m, owner)


def failure_rate(use: Usage) -> float | None:
    """Failed variants as a part of those that ended lately."""
    failed, _ = use.happened("making", "failed", rules.PROCESSING_DAYS)
    return _share(failed, failed + use.happened("making", "ready", rules.PROCESSING_DAYS)[0])


def success_rate(use: Usage) -> float | None:
    """Accepted uploads as a part of those that were settled in a window."""
    accepted, _ = use.happened("upload", "ready", WINDOW_DAYS)
    return _share(accepted, accepted + use.happened("upload", "rejected", WINDOW_DAYS)[0])


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def alerts(use: Usage, allowed: Allowance, held: Held) -> list[Alert]:
    return list(rules.alerts(use.number("asset", "pending"), failure_rate(use), allowed, held))


def measured_days(use: Usage) -> int:
    """Whole days that there are figures of, today among them, at most a window."""
    today = use.flow[0].today if use.flow else None
    first = use.first_day or today
    return min((today - first).days + 1, WINDOW_DAYS) if today and first else 1
