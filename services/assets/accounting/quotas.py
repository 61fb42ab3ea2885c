"""QuotaService: operators set quotas; owners read theirs."""

from atelier.assets.v1 import quota_pb2 as pb
from atelier.assets.v1 import quota_pb2_grpc

from services.assets.accounting import quota_rows, usage_rows
from services.assets.accounting.enforcing import Quotas
from services.assets.accounting.quota_rows import QUOTAS, Quota
from services.assets.accounting.rules import LIMITS
from services.assets.accounting.usage_rows import DEPLOYMENT
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.database.rows import Statement
from shared.rpc import paging
from shared.rpc.server import Context

_UPSERT_QUOTA = Statement(
    Quota,
    f"""
    INSERT INTO quotas (id, owner, stored_bytes, assets, monthly_bandwidth_bytes, updated_by)
    VALUES (%(id)s, %(owner)s, %(stored_bytes)s, %(assets)s, %(monthly_bandwidth_bytes)s, %(actor)s)
    ON CONFLICT (owner) DO UPDATE SET stored_bytes = excluded.stored_bytes,
        assets = excluded.assets, monthly_bandwidth_bytes = excluded.monthly_bandwidth_bytes,
        updated_by = excluded.updated_by, updated_at = now()
    RETURNING {QUOTAS.columns}
    """,
)
_SELECT_QUOTA = Statement(Quota, f"SELECT {QUOTAS.columns} FROM quotas WHERE owner = %(owner)s")
_LIST_QUOTAS, _LIST_MORE_QUOTAS = (
    Statement(
        Quota,
        f"""
        SELECT {QUOTAS.columns} FROM quotas {where}
        ORDER BY created_at DESC, id DESC LIMIT %(limit)s OFFSET %(skip)s
        """,
    )
    for where in ("", "WHERE (created_at, id) < (%(after_at)s, %(after_id)s)")
)


class QuotaService(quota_pb2_grpc.QuotaServiceServicer):
    def __init__(self, db: Database, quotas: Quotas) -> None:
        self._db = db
        self._quotas = quotas

    async def SetQuota(self, request: pb.SetQuotaRequest, context: Context) -> pb.SetQuotaResponse:
        limits = {
            name: getattr(request, name) if request.HasField(name) else None for name in LIMITS
        }

        async def work(m: Mutation) -> pb.SetQuotaResponse:
            await usage_rows.operate(m)
            whose = {"id": new_id(), "owner": request.owner or DEPLOYMENT, "actor": m.actor}
            row = await m.one(_UPSERT_QUOTA, {**whose, **limits})
            return pb.SetQuotaResponse(quota=quota_rows.to_proto(row))

        return await self._db.mutate(request, pb.SetQuotaResponse, work)

    async def GetQuota(self, request: pb.GetQuotaRequest, context: Context) -> pb.GetQuotaResponse:
        owner = usage_rows.named(request.owner)
        async with self._db.transaction("") as m:
            await usage_rows.operate(m)
            allowed, held = await self._quotas.in_force(m, owner)
            row = await m.first(_SELECT_QUOTA, {"owner": owner})
        quota = quota_rows.to_proto(row) if row else pb.Quota(owner=quota_rows.shown_owner(owner))
        return pb.GetQuotaResponse(quota=quota, uses=quota_rows.uses(allowed, held))

    async def ListQuotas(
        self, request: pb.ListQuotasRequest, context: Context
    ) -> pb.ListQuotasResponse:
        page = paging.page(request)
        statement = _LIST_MORE_QUOTAS if page.after else _LIST_QUOTAS
        async with self._db.transaction("") as m:
            await usage_rows.operate(m)
            rows = await m.all(statement, page.parameters)
        quotas, token = page.fill(rows, map(quota_rows.to_proto, rows))
        return pb.ListQuotasResponse(quotas=quotas, next_page_token=token)
