"""Enforces quotas: every upload is compared with them.

Concurrent uploads of an owner must not wait for each other, nor go over the limit together. Far
from the limit they take its lock shared: the uploads that are under way can't reach it, because
each is bounded in size and there are only so many connections. Near the limit they take the lock
exclusively, one after the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from google.rpc import error_details_pb2

from services.assets.accounting import quota_rows, usage_rows
from services.assets.accounting.rules import Allowance, Excess, Held, excess
from services.assets.accounting.usage_rows import DEPLOYMENT
from shared.database.db import Mutation
from shared.database.rows import Command, Statement
from shared.rpc import errors
from shared.rpc.errors import DomainError, Reason
from shared.settings import Settings

# Whether a quota was set for the owner or the deployment.
SET = "EXISTS (SELECT FROM quotas q WHERE q.owner IN (%(owner)s, 'deployment'))"


@dataclass(slots=True)
class _Limits:
    """The limits that an operator set for the owner or the deployment. None: not set."""

    owner: str
    stored_bytes: int | None
    assets: int | None
    monthly_bandwidth_bytes: int | None
    connections: int  # the most that the database takes


_SELECT_LIMITS = Statement(
    _Limits,
    """
    SELECT owner, stored_bytes, assets, monthly_bandwidth_bytes,
        current_setting('max_connections')::int AS connections
    FROM (VALUES (%(owner)s), ('deployment')) AS wanted (owner) LEFT JOIN quotas USING (owner)
    """,
)
_LOCK_QUOTA = Command("SELECT pg_advisory_xact_lock(hashtextextended(%(key)s, 3))")
_LOCK_QUOTA_SHARED = Command("SELECT pg_advisory_xact_lock_shared(hashtextextended(%(key)s, 3))")
_PURGE = (
    "delete and purge assets that aren't needed (what is in the trash counts until it is purged)"
)
_ADVICE: Mapping[str, str] = {
    "stored_bytes": _PURGE,
    "assets": _PURGE,
    "monthly_bandwidth_bytes": "wait for the next calendar month (UTC)",
}


class Announced(Protocol):
    """An asset that was counted with its declared size."""

    @property
    def size_bytes(self) -> int: ...


class Quotas:
    """Compares uploads with the limits. `_largest`: the size in bytes that no upload exceeds."""

    def __init__(self, settings: Settings) -> None:
        self._defaults = quota_rows.defaults(settings)
        self._largest = max(settings.max_image_bytes, settings.max_pdf_bytes)

    async def announce(self, m: Mutation, size: int, *, set_for_it: bool) -> None:
        """Makes sure that the asset of `size` bytes that this transaction has just added fits,
        until the commit. Raises QUOTA_EXCEEDED, or ABORTED with RetryInfo if too many uploads were
        announced at once. `set_for_it`: the value of SET; without any limit nothing is read.
        """
        if not set_for_it and not any(
            default.limits_anything for default in self._defaults.values()
        ):
            return
        await usage_rows.operate(m)
        for owner, allowed, connections in await self._in_force(m):
            held = await _held(m, owner)
            roomy = not excess(allowed, held, size=self._largest, assets=1, slack=2 * connections)
            await _lock(m, owner, shared=roomy)
            held = await _held(m, owner)
            # The asset itself is counted already.
            held = replace(held, stored_bytes=held.stored_bytes - size, assets=held.assets - 1)
            if found := excess(allowed, held, size=size, assets=1):
                raise _exceeded(owner, found)
            if roomy and excess(allowed, held, size=self._largest, assets=1, slack=connections):
                text = "many uploads were announced just now; nothing was changed, try again"
                raise errors.retry_later(Reason.ERROR_REASON_REQUEST_IN_PROGRESS, text, 0.2)
        await usage_rows.end_operating(m)

    async def room(self, m: Mutation) -> None:
        """Raises QUOTA_EXCEEDED if not one more asset fits: the result of the work could not be
        kept."""
        await usage_rows.operate(m)
        for owner, allowed, _ in await self._in_force(m):
            if found := excess(allowed, await _held(m, owner), size=0, assets=1):
                raise _exceeded(owner, found)
        await usage_rows.end_operating(m)

    async def settle(self, m: Mutation, asset: Announced, size: int) -> None:
        """Makes sure that a PENDING asset whose bytes arrived still fits. Raises QUOTA_EXCEEDED.

        The asset was counted when it was announced, so that it is refused only if a quota was
        lowered since, or more bytes came than were declared: variants that were made meanwhile
        don't take the room that it was promised.
        """
        await usage_rows.operate(m)
        for owner, allowed, _ in await self._in_force(m):
            grown = size - asset.size_bytes
            if grown > 0:
                await _lock(m, owner, shared=False)
            used = await usage_rows.used(m, owner)
            # Bytes beyond the declared ones were promised no room: all stored bytes count.
            stored = used.stored if grown > 0 else used.originals
            if found := excess(allowed, Held(stored, used.assets, 0), size=grown, assets=0):
                raise _exceeded(owner, found)
        await usage_rows.end_operating(m)

    async def in_force(self, m: Mutation, owner: str) -> tuple[Allowance, Held]:
        """Returns the limits of an owner or the deployment, and what is used of them. The
        transaction must have called `usage_rows.operate`."""
        rows = {row.owner: row for row in await m.all(_SELECT_LIMITS, {"owner": owner})}
        return self._allowed(rows[owner]), await _held(m, owner)

    async def _in_force(self, m: Mutation) -> list[tuple[str, Allowance, int]]:
        """Returns (owner, limits, most connections) for this transaction's owner and for the
        deployment, as far as they have limits."""
        rows = await m.all(_SELECT_LIMITS, {"owner": m.owner})
        limits = [(row.owner, self._allowed(row), row.connections) for row in rows]
        return [limit for limit in limits if limit[1].limits_anything]

    def _allowed(self, row: _Limits) -> Allowance:
        default = self._defaults[row.owner == DEPLOYMENT]
        return Allowance(
            _or(row.stored_bytes, default.stored_bytes),
            _or(row.assets, default.assets),
            _or(row.monthly_bandwidth_bytes, default.monthly_bandwidth_bytes),
        )


def _or(chosen: int | None, default: int) -> int:
    return default if chosen is None else chosen


async def _held(m: Mutation, owner: str) -> Held:
    used = await usage_rows.used(m, owner)
    return Held(used.stored, used.assets, used.sent)


async def _lock(m: Mutation, owner: str, *, shared: bool) -> None:
    statement = _LOCK_QUOTA_SHARED if shared else _LOCK_QUOTA
    await m.run(statement, {"key": "\x1f".join(("quota", owner))})


def _exceeded(owner: str, found: Excess) -> DomainError:
    name = found.quota.replace("_", " ")
    if owner == DEPLOYMENT:  # figures would reveal how much others use
        text = f"the deployment's quota of {name} is used up; nothing was kept, tell the operator"
        figures = {}
    else:
        figures = {"limit": str(found.limit), "used": str(found.used), "needed": str(found.needed)}
        text = (
            f"your quota of {name} is {found.limit}; {found.used} are used and this needs"
            f" {found.needed} more: {_ADVICE[found.quota]}, or ask the operator for more"
        )
    violation = error_details_pb2.QuotaFailure.Violation(subject=owner, description=text)
    return DomainError(
        Reason.ERROR_REASON_QUOTA_EXCEEDED,
        text,
        {"quota": found.quota, **figures},
        details=[error_details_pb2.QuotaFailure(violations=[violation])],
    )
