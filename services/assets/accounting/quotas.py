"""Quotas: held by every upload, set by operators.

Concurrent uploads of an owner must not wait for each other, nor go over the limit together. Far
from it they hold its lock shared: whatever is on its way then can't reach the limit, because each
upload is bounded in size and there are only so many connections. Near it they hold the lock
exclusively, one after the other.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from atelier.assets.v1 import quota_pb2 as pb
from atelier.assets.v1 import quota_pb2_grpc
from google.rpc import error_details_pb2

from services.assets.accounting import usage as storage_usage
from services.assets.accounting.rules import Allowance, Excess, Held, excess
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.rpc import errors, paging
from shared.rpc.errors import DomainError, Reason
from shared.rpc.protos import Words, timestamp
from shared.settings import Settings

KINDS = Words(pb.QuotaKind, "QUOTA_KIND_")
LIMITS = ("stored_bytes", "assets", "monthly_bandwidth_bytes")
# Whether anything is set that could concern the owner.
SET = "EXISTS (SELECT FROM quotas q WHERE q.owner IN (%(owner)s, 'deployment'))"
_SET = """
    INSERT INTO quotas (id, owner, stored_bytes, assets, monthly_bandwidth_bytes, updated_by)
    VALUES (%(id)s, %(owner)s, %(stored_bytes)s, %(assets)s, %(monthly_bandwidth_bytes)s, %(actor)s)
    ON CONFLICT (owner) DO UPDATE SET stored_bytes = excluded.stored_bytes, assets
        = excluded.assets,
        monthly_bandwidth_bytes = excluded.monthly_bandwidth_bytes, updated_by
            = excluded.updated_by, updated_at = now()
    RETURNING *
"""
_OF = """
    SELECT owner, stored_bytes, assets, monthly_bandwidth_bytes,
        current_setting('max_connections')::int AS connections
    FROM (VALUES (%(owner)s), ('deployment')) AS wanted (owner) LEFT JOIN quotas USING (owner)
"""
_ADVICE = {
    "stored_bytes": (
        "delete and purge assets that aren't needed (what is in the trash counts until it is"
        " purged)"
    ),
    "assets": (
        "delete and purge assets that aren't needed (what is in the trash counts until it is"
        " purged)"
    ),
    "monthly_bandwidth_bytes": "wait for the next calendar month (UTC)",
}


def defaults(settings: Settings) -> Mapping[bool, Allowance]:
    """What holds where nothing was set: for the deployment (True) and for an owner (False)."""
    return {
        deployment: Allowance(*(getattr(settings, f"quota_{whose}_{name}") for name in LIMITS))
        for deployment, whose in ((True, "deployment"), (False, "owner"))
    }


class Quotas:
    """Holds uploads against the limits. `largest`: bytes that no upload exceeds."""

    def __init__(self, settings: Settings) -> None:
        self._defaults = defaults(settings)
        self._largest = max(settings.max_image_bytes, settings.max_pdf_bytes)

    async def announce(self, m: Mutation, size: int, *, set_for_it: bool) -> None:
        """Makes sure that the asset of `size` bytes that this transaction has just added fits,
        until the commit. Raises QUOTA_EXCEEDED. `set_for_it`: what SET gave; where nobody limits
        anything, there is nothing to ask.
        """
        if not set_for_it and not any(
            default.limits_anything for default in self._defaults.values()
        ):
            return
        await storage_usage.operate(m)
        for owner, allowed, connections in await self._in_force(m):
            held = await self._held(m, owner)
            roomy = not excess(allowed, held, size=self._largest, assets=1, slack=2 * connections)
            await _take_turn(m, owner, shared=roomy)
            held = await self._held(m, owner)
            held = replace(
                held, stored_bytes=held.stored_bytes - size, assets=held.assets - 1
            )  # without itself
            if found := excess(allowed, held, size=size, assets=1):
                raise _exceeded(owner, found)
            if roomy and excess(allowed, held, size=self._largest, assets=1, slack=connections):
                text = "many uploads were announced just now; nothing was changed, try again"
                raise errors.retry_later(Reason.ERROR_REASON_REQUEST_IN_PROGRESS, text, 0.2)
        await _end_operating(m)

    async def room(self, m: Mutation) -> None:
        """Refuses work whose result could not be kept, because not one more asset fits. Raises
        QUOTA_EXCEEDED."""
        await storage_usage.operate(m)
        for owner, allowed, _ in await self._in_force(m):
            if found := excess(allowed, await self._held(m, owner), size=0, assets=1):
                raise _exceeded(owner, found)
        await _end_operating(m)

    async def settle(self, m: Mutation, asset: Any, size: int) -> None:
        """Makes sure that a pending asset whose bytes came still fits. Raises QUOTA_EXCEEDED.

        It was counted when it was announced, so that only a quota that was lowered since, or more
        bytes than were declared, can refuse it: variants that were made meanwhile don't take the
        room that it was promised.
        """
        await storage_usage.operate(m)
        for owner, allowed, _ in await self._in_force(m):
            grown = size - asset.size_bytes
            if grown > 0:
                await _take_turn(m, owner, shared=False)
            row = await storage_usage.held(m, owner)
            # More than was declared was promised nothing: it is held against all that is stored.
            stored = row.stored if grown > 0 else row.originals
            if found := excess(allowed, Held(stored, row.assets, 0), size=grown, assets=0):
                raise _exceeded(owner, found)
        await _end_operating(m)

    async def in_force(self, m: Mutation, owner: str) -> tuple[Allowance, Held]:
        """The limits of an owner or the deployment, and what is used of them. After
        `storage_usage.operate`."""
        rows = {row.owner: row for row in await m.all(_OF, {"owner": owner})}
        return self._allowed(rows[owner]), await self._held(m, owner)

    async def _in_force(self, m: Mutation) -> list[tuple[str, Allowance, int]]:
        """Whose limits an upload of this transaction's owner is held against, where there are
        any."""
        rows = await m.all(_OF, {"owner": m.owner})
        limits = [(row.owner, self._allowed(row), row.connections) for row in rows]
        return [limit for limit in limits if limit[1].limits_anything]

    def _allowed(self, row: Any) -> Allowance:
        default = self._defaults[row.owner == storage_usage.DEPLOYMENT]
        chosen = {name: getattr(row, name) for name in LIMITS}
        return Allowance(
            **{n: getattr(default, n) if value is None else value for n, value in chosen.items()}
        )

    async def _held(self, m: Mutation, owner: str) -> Held:
        row = await storage_usage.held(m, owner)
        return Held(row.stored, row.assets, row.sent)


async def _take_turn(m: Mutation, owner: str, *, shared: bool) -> None:
    statement: Any = (
        f"SELECT pg_advisory_xact_lock{'_shared' if shared else ''}(hashtextextended(%s, 3))"
    )
    await m.run(statement, ("\x1f".join(("quota", owner)),))


async def _end_operating(m: Mutation) -> None:
    m.send(b"SELECT set_config('app.operator', '', true)")


def _exceeded(owner: str, found: Excess) -> DomainError:
    name = found.quota.replace("_", " ")
    if owner == storage_usage.DEPLOYMENT:  # how much others use is nobody's business
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


def uses(allowed: Allowance, held: Held) -> list[pb.QuotaUse]:
    return [
        pb.QuotaUse(kind=KINDS.number[n], limit=getattr(allowed, n), used=getattr(held, n))
        for n in LIMITS
    ]


def to_proto(row: Any) -> pb.Quota:
    quota = pb.Quota(
        owner="" if row.owner == storage_usage.DEPLOYMENT else row.owner,
        updated_by=row.updated_by,
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
    )
    for name in LIMITS:
        if (value := getattr(row, name)) is not None:
            setattr(quota, name, value)
    return quota


class QuotaService(quota_pb2_grpc.QuotaServiceServicer):
    def __init__(self, db: Database, quotas: Quotas) -> None:
        self._db = db
        self._quotas = quotas

    async def SetQuota(self, request: pb.SetQuotaRequest, context: Any) -> pb.SetQuotaResponse:
        limits = {
            name: getattr(request, name) if request.HasField(name) else None for name in LIMITS
        }

        async def work(m: Mutation) -> pb.SetQuotaResponse:
            await storage_usage.operate(m)
            whose = {
                "id": new_id(),
                "owner": request.owner or storage_usage.DEPLOYMENT,
                "actor": m.actor,
            }
            return pb.SetQuotaResponse(quota=to_proto(await m.one(_SET, {**whose, **limits})))

        return await self._db.mutate(request, pb.SetQuotaResponse, work)

    async def GetQuota(self, request: pb.GetQuotaRequest, context: Any) -> pb.GetQuotaResponse:
        owner = storage_usage.named(request.owner)
        async with self._db.transaction("") as m:
            await storage_usage.operate(m)
            allowed, held = await self._quotas.in_force(m, owner)
            row = await m.one("SELECT * FROM quotas WHERE owner = %s", (owner,))
        quota = (
            to_proto(row)
            if row
            else pb.Quota(owner="" if owner == storage_usage.DEPLOYMENT else owner)
        )
        return pb.GetQuotaResponse(quota=quota, uses=uses(allowed, held))

    async def ListQuotas(
        self, request: pb.ListQuotasRequest, context: Any
    ) -> pb.ListQuotasResponse:
        page = paging.page(request)
        statement: Any = f"SELECT * FROM quotas WHERE true{page.clause}"
        async with self._db.transaction("") as m:
            await storage_usage.operate(m)
            rows = await m.all(statement, page.parameters)
        quotas, token = page.fill(rows, map(to_proto, rows))
        return pb.ListQuotasResponse(quotas=quotas, next_page_token=token)
