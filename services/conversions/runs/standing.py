"""How providers are doing: whether one may be asked now, and what a failure says about it."""

import structlog

from services.conversions import provider_rows, rules
from services.conversions.providers.contract import ProviderFailed
from shared.database.db import Database, Mutation

# What callers are told of a provider that refuses the deployment's account.
NOT_SERVED = (
    "doesn't serve this deployment now: what went wrong is for its operator, who was told; the job"
    " waits"
)
_log = structlog.get_logger("providers")


async def check_available(db: Database, name: str, *, kept: bool = False) -> None:
    """Raises ProviderFailed if the provider may not be asked now. `kept`: it has taken a call
    of the job."""
    for each in await db.system_all(provider_rows.SELECT_AVAILABILITY):
        if each.name == name and each.switched_off:
            raise ProviderFailed(
                rules.ACCOUNT,
                f"{name} is switched off; an operator can switch it on",
                kept=kept,
            )
        if each.name == name and each.paused_seconds > 0:
            raise ProviderFailed(
                rules.RATE_LIMITED,
                f"{name} is left alone for {each.paused_seconds:.0f} s more: it said so, or"
                " failed repeatedly",
                retry_after=each.paused_seconds,
                kept=kept,
            )


async def note(m: Mutation, name: str, failed: ProviderFailed) -> None:
    """Notes what a failure says about its provider."""
    match failed.error_class:
        case rules.ACCOUNT:
            _log.error("a provider is switched off", provider=name, reason=failed.message)
            by = provider_rows.OURSELVES
            await m.run(
                provider_rows.TRIP, {"name": name, "by": by, "reason": failed.message[:500]}
            )
        case rules.RATE_LIMITED:
            seconds = min(
                max(failed.retry_after, rules.LEAST_PAUSE_SECONDS), rules.MOST_PAUSE_SECONDS
            )
            await _pause(m, name, seconds, failed.message)
        case rules.UNAVAILABLE | rules.TIMED_OUT | rules.BAD_ANSWER:
            failures = await m.one(provider_rows.COUNT_FAILURE, {"name": name})
            seconds = max(rules.break_seconds(failures), failed.retry_after)
            if seconds:
                await _pause(m, name, min(seconds, rules.MOST_PAUSE_SECONDS), failed.message)
        case _:  # a refusal, or bad input: the provider is well
            await m.run(provider_rows.COUNT_SUCCESS, {"name": name})


async def _pause(m: Mutation, name: str, seconds: float, reason: str) -> None:
    _log.warning("a provider is left alone", provider=name, seconds=round(seconds), reason=reason)
    values = {"name": name, "seconds": seconds, "reason": reason[:500]}
    await m.run(provider_rows.PAUSE, values)
