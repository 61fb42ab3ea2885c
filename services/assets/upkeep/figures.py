"""Figures of storage for reports, alerts and metrics, computed from the counts."""

from services.assets.accounting import rules, usage_rows
from services.assets.accounting.enforcing import Quotas
from services.assets.accounting.rules import Alert, Allowance, Held
from services.assets.accounting.usage_rows import WINDOW_DAYS, Usage
from shared.database.db import Database


async def figures(db: Database, quotas: Quotas, owner: str) -> tuple[Usage, Allowance, Held]:
    """Returns the usage of an owner or the deployment, its quotas, and what is used of them."""
    use = await usage_rows.read(db, owner)
    async with db.transaction("") as m:
        await usage_rows.operate(m)
        return use, *await quotas.in_force(m, owner)


def failure_rate(use: Usage) -> float | None:
    """Returns failed variants as a fraction (0..1) of those that ended today and yesterday; None if
    none ended."""
    failed, _ = use.happened("making", "failed", rules.PROCESSING_DAYS)
    return _share(failed, failed + use.happened("making", "ready", rules.PROCESSING_DAYS)[0])


def success_rate(use: Usage) -> float | None:
    """Returns accepted uploads as a fraction (0..1) of those settled in the last 30 days; None if
    none was settled."""
    accepted, _ = use.happened("upload", "ready", WINDOW_DAYS)
    return _share(accepted, accepted + use.happened("upload", "rejected", WINDOW_DAYS)[0])


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def alerts(use: Usage, allowed: Allowance, held: Held) -> list[Alert]:
    return list(rules.alerts(use.number("asset", "pending"), failure_rate(use), allowed, held))


def measured_days(use: Usage) -> int:
    """Returns for how many days there are figures, including today, at most 30."""
    today = use.flow[0].today if use.flow else None
    first = use.first_day or today
    return min((today - first).days + 1, WINDOW_DAYS) if today and first else 1
