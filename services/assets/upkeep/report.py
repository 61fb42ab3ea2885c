"""The report on storage: what is counted, the largest, alerts, costs."""

from collections.abc import Callable
from datetime import date
from typing import Any

from atelier.assets.v1 import storage_report_pb2 as pb
from atelier.assets.v1 import storage_report_pb2_grpc
from google.protobuf import timestamp_pb2

from services.assets.accounting import costs, quotas
from services.assets.accounting import rules as storage_rules
from services.assets.accounting import usage as storage_usage
from services.assets.accounting.rules import Allowance, Held
from services.assets.core import asset_rows
from shared.database.db import Database
from shared.rpc import auth, paging
from shared.rpc.protos import Words

STATUSES = Words(pb.StorageStatus, "STORAGE_STATUS_")
ALERTS = Words(pb.AlertKind, "ALERT_KIND_")
_OWNERS = """
    SELECT owner AS name, assets, stored_bytes, sent_bytes FROM storage_places
    WHERE session_id = '' AND (assets <> 0 OR stored_bytes <> 0)
    AND (%(after)s::text IS NULL OR (-stored_bytes, owner) > (%(after_bytes)s, %(after)s))
    ORDER BY stored_bytes DESC, owner LIMIT %(limit)s
"""
_SESSIONS = """
    SELECT session_id AS name, assets, stored_bytes, sent_bytes FROM storage_places
    WHERE owner = %(owner)s AND session_id <> '' AND (assets <> 0 OR stored_bytes <> 0)
    AND (%(after)s::text IS NULL OR (-stored_bytes, session_id) > (%(after_bytes)s, %(after)s))
    ORDER BY stored_bytes DESC, session_id LIMIT %(limit)s
"""


def failure_rate(use: storage_usage.Usage) -> float | None:
    failed, _ = use.happened("making", "failed", storage_rules.PROCESSING_DAYS)
    return _share(
        failed, failed + use.happened("making", "ready", storage_rules.PROCESSING_DAYS)[0]
    )


def success_rate(use: storage_usage.Usage) -> float | None:
    accepted, _ = use.happened("upload", "ready", storage_usage.WINDOW_DAYS)
    return _share(
        accepted, accepted + use.happened("upload", "rejected", storage_usage.WINDOW_DAYS)[0]
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


async def figures(
    db: Database, held_by: quotas.Quotas, owner: str
) -> tuple[storage_usage.Usage, Allowance, Held]:
    """Everything about an owner or the deployment."""
    use = await storage_usage.read(db, owner)
    async with db.transaction("") as m:
        await storage_usage.operate(m)
        return use, *await held_by.in_force(m, owner)


def alerts(use: storage_usage.Usage, allowed: Allowance, held: Held) -> list[storage_rules.Alert]:
    return list(
        storage_rules.alerts(use.number("asset", "pending"), failure_rate(use), allowed, held)
    )


def to_proto(
    owner: str, use: storage_usage.Usage, allowed: Allowance, held: Held
) -> pb.StorageReport:
    stock = {noun: [row for row in use.stock if row.noun == noun] for noun in ("asset", "variant")}
    kept: dict[str, list[int]] = {}
    for row in stock["asset"]:
        if row.state in ("ready", "archived"):
            sums = kept.setdefault(row.mime_type, [0, 0])
            sums[0] += row.number
            sums[1] += row.bytes
    month = use.sent_this_month()
    recent = {
        how: use.happened("download", how, storage_usage.WINDOW_DAYS)[1]
        for how in ("exact", "issued")
    }
    read_time = timestamp_pb2.Timestamp()
    read_time.GetCurrentTime()
    return pb.StorageReport(
        owner="" if owner == storage_usage.DEPLOYMENT else owner,
        assets=use.assets,
        stored_bytes=use.stored_bytes,
        pending_uploads=use.number("asset", "pending"),
        failed_variants=use.number("variant", "failed"),
        variant_failure_rate=failure_rate(use),
        upload_success_rate=success_rate(use),
        bandwidth_this_month=pb.Bandwidth(
            downloaded_bytes=month["exact"], issued_bytes=month["issued"]
        ),
        bandwidth_last_30_days=pb.Bandwidth(
            downloaded_bytes=recent["exact"], issued_bytes=recent["issued"]
        ),
        asset_counts=[
            pb.AssetCount(
                kind=asset_rows.KINDS.number[r.kind],
                mime_type=r.mime_type,
                status=STATUSES.number[r.state],
                assets=r.number,
                bytes=r.bytes,
            )
            for r in stock["asset"]
        ],
        variant_counts=_variants(stock["variant"]),
        average_sizes=[
            pb.AverageSize(mime_type=name, assets=number, average_bytes=round(size / number))
            for name, (number, size) in sorted(kept.items())
            if number
        ],
        quotas=quotas.uses(allowed, held),
        read_time=read_time,
    )


def _variants(rows: list[Any]) -> list[pb.VariantCount]:
    """By preset and state: a variant has no type until it is made, and that is of no interest
    here."""
    sums: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        found = sums.setdefault((row.kind, row.state), [0, 0])
        found[0] += row.number
        found[1] += row.bytes
    return [
        pb.VariantCount(
            preset=preset,
            state=asset_rows.VARIANT_STATES.number[state],
            variants=number,
            bytes=size,
        )
        for (preset, state), (number, size) in sorted(sums.items())
    ]


class StorageReportService(storage_report_pb2_grpc.StorageReportServiceServicer):
    def __init__(self, db: Database, held_by: quotas.Quotas, prices: costs.Prices) -> None:
        self._db = db
        self._quotas = held_by
        self._prices = prices

    async def GetStorageReport(
        self, request: pb.GetStorageReportRequest, context: Any
    ) -> pb.GetStorageReportResponse:
        owner = storage_usage.named(request.owner)
        return pb.GetStorageReportResponse(
            report=to_proto(owner, *await figures(self._db, self._quotas, owner))
        )

    async def ListStorageOwners(
        self, request: pb.ListStorageOwnersRequest, context: Any
    ) -> pb.ListStorageOwnersResponse:
        def show(row: Any) -> pb.OwnerUsage:
            return pb.OwnerUsage(
                owner=row.name,
                assets=row.assets,
                stored_bytes=row.stored_bytes,
                sent_bytes=row.sent_bytes,
            )

        found, token = await self._page(request, _OWNERS, {}, show)
        return pb.ListStorageOwnersResponse(owners=found, next_page_token=token)

    async def ListStorageSessions(
        self, request: pb.ListStorageSessionsRequest, context: Any
    ) -> pb.ListStorageSessionsResponse:
        owner = storage_usage.named(request.owner)
        owner = auth.current().owner if owner == storage_usage.DEPLOYMENT else owner

        def show(row: Any) -> pb.SessionUsage:
            return pb.SessionUsage(
                session_id=row.name,
                assets=row.assets,
                stored_bytes=row.stored_bytes,
                sent_bytes=row.sent_bytes,
            )

        found, token = await self._page(request, _SESSIONS, {"owner": owner}, show)
        return pb.ListStorageSessionsResponse(sessions=found, next_page_token=token)

    async def ListAlerts(
        self, request: pb.ListAlertsRequest, context: Any
    ) -> pb.ListAlertsResponse:
        found = alerts(*await figures(self._db, self._quotas, storage_usage.named(request.owner)))
        return pb.ListAlertsResponse(
            alerts=[
                pb.Alert(
                    kind=ALERTS.number[a.kind],
                    firing=a.firing,
                    value=a.value,
                    threshold=a.threshold,
                    message=a.message,
                )
                for a in found
            ]
        )

    async def ProjectCosts(
        self, request: pb.ProjectCostsRequest, context: Any
    ) -> pb.ProjectCostsResponse:
        use = await storage_usage.read(self._db, storage_usage.DEPLOYMENT)
        days = measured_days(use)
        sent = sum(use.happened("download", how, days)[1] for how in ("exact", "issued"))
        now = costs.Use(use.stored_bytes, use.grown(days), sent, days)
        return costs.project(self._prices, now, request.months)

    async def _page(
        self, request: Any, statement: Any, parameters: dict[str, Any], show: Callable[[Any], Any]
    ) -> tuple[list[Any], str]:
        """A page by size and name, the largest first."""
        digest = paging.filter_digest(request, ("page_size", "page_token"))
        size = request.page_size or paging.DEFAULT_SIZE
        after = paging.key_of(request.page_token, digest, int, str) if request.page_token else None
        async with self._db.transaction("") as m:
            await storage_usage.operate(m)
            key = {"after_bytes": -after[0] if after else 0, "after": after[1] if after else None}
            rows = await m.all(statement, {**parameters, **key, "limit": size + 1})
        found = paging.fitting(map(show, rows[:size]))
        if len(found) == len(rows):
            return found, ""
        last = rows[len(found) - 1]
        return found, paging.token_of(digest, last.stored_bytes, last.name)


def measured_days(use: storage_usage.Usage) -> int:
    """Whole days that there are figures of, today among them, at most a window."""
    today: date | None = use.flow[0].today if use.flow else None
    first = use.first_day or today
    return min((today - first).days + 1, storage_usage.WINDOW_DAYS) if today and first else 1
