"""StorageReportService: figures of storage, the largest owners and sessions, alerts, costs."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from atelier.assets.v1 import storage_report_pb2 as pb
from atelier.assets.v1 import storage_report_pb2_grpc
from google.protobuf import timestamp_pb2

from services.assets.accounting import costs, quota_rows, usage_rows
from services.assets.accounting.enforcing import Quotas
from services.assets.accounting.rules import Allowance, Held
from services.assets.accounting.usage_rows import DEPLOYMENT, WINDOW_DAYS, Stock, Usage
from services.assets.core.asset_rows import KINDS, VARIANT_STATES
from services.assets.upkeep import figures
from shared.database.db import Database
from shared.database.rows import Statement
from shared.rpc import auth, paging
from shared.rpc.protos import EnumNames
from shared.rpc.server import Context

STATUSES = EnumNames(pb.StorageStatus, "STORAGE_STATUS_")
ALERTS = EnumNames(pb.AlertKind, "ALERT_KIND_")
_M = TypeVar("_M", pb.OwnerUsage, pb.SessionUsage)


@dataclass(slots=True)
class _Place:
    """The storage that an owner or a session uses."""

    name: str
    assets: int
    stored_bytes: int
    sent_bytes: int


_LIST_OWNERS = Statement(
    _Place,
    """
    SELECT owner AS name, assets, stored_bytes, sent_bytes FROM storage_places
    WHERE session_id = '' AND (assets <> 0 OR stored_bytes <> 0)
    AND (%(after)s::text IS NULL OR (-stored_bytes, owner) > (%(after_bytes)s, %(after)s))
    ORDER BY stored_bytes DESC, owner LIMIT %(limit)s
    """,
)
_LIST_SESSIONS = Statement(
    _Place,
    """
    SELECT session_id AS name, assets, stored_bytes, sent_bytes FROM storage_places
    WHERE owner = %(owner)s AND session_id <> '' AND (assets <> 0 OR stored_bytes <> 0)
    AND (%(after)s::text IS NULL OR (-stored_bytes, session_id) > (%(after_bytes)s, %(after)s))
    ORDER BY stored_bytes DESC, session_id LIMIT %(limit)s
    """,
)


class StorageReportService(storage_report_pb2_grpc.StorageReportServiceServicer):
    def __init__(self, db: Database, quotas: Quotas, prices: costs.Prices) -> None:
        self._db = db
        self._quotas = quotas
        self._prices = prices

    async def GetStorageReport(
        self, request: pb.GetStorageReportRequest, context: Context
    ) -> pb.GetStorageReportResponse:
        owner = usage_rows.named(request.owner)
        found = await figures.figures(self._db, self._quotas, owner)
        return pb.GetStorageReportResponse(report=_report(owner, *found))

    async def ListStorageOwners(
        self, request: pb.ListStorageOwnersRequest, context: Context
    ) -> pb.ListStorageOwnersResponse:
        found, token = await self._page(request, _LIST_OWNERS, {}, _owner_usage)
        return pb.ListStorageOwnersResponse(owners=found, next_page_token=token)

    async def ListStorageSessions(
        self, request: pb.ListStorageSessionsRequest, context: Context
    ) -> pb.ListStorageSessionsResponse:
        owner = usage_rows.named(request.owner)
        owner = auth.current().owner if owner == DEPLOYMENT else owner
        found, token = await self._page(request, _LIST_SESSIONS, {"owner": owner}, _session_usage)
        return pb.ListStorageSessionsResponse(sessions=found, next_page_token=token)

    async def ListAlerts(
        self, request: pb.ListAlertsRequest, context: Context
    ) -> pb.ListAlertsResponse:
        owner = usage_rows.named(request.owner)
        found = figures.alerts(*await figures.figures(self._db, self._quotas, owner))
        return pb.ListAlertsResponse(
            alerts=[
                pb.Alert(
                    kind=ALERTS.number[alert.kind],
                    firing=alert.firing,
                    value=alert.value,
                    threshold=alert.threshold,
                    message=alert.message,
                )
                for alert in found
            ]
        )

    async def ProjectCosts(
        self, request: pb.ProjectCostsRequest, context: Context
    ) -> pb.ProjectCostsResponse:
        use = await usage_rows.read(self._db, DEPLOYMENT)
        days = figures.measured_days(use)
        sent = sum(use.sent(days).values())
        now = costs.Use(use.stored_bytes, use.grown(days), sent, days)
        return costs.project(self._prices, now, request.months)

    async def _page(
        self,
        request: pb.ListStorageOwnersRequest | pb.ListStorageSessionsRequest,
        statement: Statement[_Place],
        parameters: Mapping[str, str],
        show: Callable[[_Place], _M],
    ) -> tuple[list[_M], str]:
        """Returns a page, the largest first, equal ones by name, and the next page's token."""
        digest = paging.filter_digest(request, ("page_size", "page_token"))
        size = request.page_size or paging.DEFAULT_SIZE
        after_bytes: int = 0
        after: str | None = None
        if request.page_token:
            after_bytes, after = paging.key_of(request.page_token, digest, int, str)
        async with self._db.transaction("") as m:
            await usage_rows.operate(m)
            key = {"after_bytes": -after_bytes, "after": after, "limit": size + 1}
            rows = await m.all(statement, {**parameters, **key})
        found = paging.fitting(map(show, rows[:size]))
        if len(found) == len(rows):
            return found, ""
        last = rows[len(found) - 1]
        return found, paging.token_of(digest, last.stored_bytes, last.name)


def _report(owner: str, use: Usage, allowed: Allowance, held: Held) -> pb.StorageReport:
    assets = [row for row in use.stock if row.noun == "asset"]
    variants = [row for row in use.stock if row.noun == "variant"]
    read_time = timestamp_pb2.Timestamp()
    read_time.GetCurrentTime()
    return pb.StorageReport(
        owner=quota_rows.shown_owner(owner),
        assets=use.assets,
        stored_bytes=use.stored_bytes,
        pending_uploads=use.number("asset", "pending"),
        failed_variants=use.number("variant", "failed"),
        variant_failure_rate=figures.failure_rate(use),
        upload_success_rate=figures.success_rate(use),
        bandwidth_this_month=_bandwidth(use.sent_this_month()),
        bandwidth_last_30_days=_bandwidth(use.sent(WINDOW_DAYS)),
        asset_counts=[
            pb.AssetCount(
                kind=KINDS.number[row.kind],
                mime_type=row.mime_type,
                status=STATUSES.number[row.state],
                assets=row.number,
                bytes=row.bytes,
            )
            for row in assets
        ],
        variant_counts=_variant_counts(variants),
        average_sizes=_average_sizes(assets),
        quotas=quota_rows.uses(allowed, held),
        read_time=read_time,
    )


def _bandwidth(sent: Mapping[str, int]) -> pb.Bandwidth:
    return pb.Bandwidth(downloaded_bytes=sent["exact"], issued_bytes=sent["issued"])


def _average_sizes(assets: Iterable[Stock]) -> list[pb.AverageSize]:
    """Returns the average size by media type of READY assets, archived ones included."""
    sums: dict[str, tuple[int, int]] = {}
    for row in assets:
        if row.state in ("ready", "archived"):
            number, size = sums.get(row.mime_type, (0, 0))
            sums[row.mime_type] = (number + row.number, size + row.bytes)
    return [
        pb.AverageSize(mime_type=name, assets=number, average_bytes=round(size / number))
        for name, (number, size) in sorted(sums.items())
        if number
    ]


def _variant_counts(variants: Iterable[Stock]) -> list[pb.VariantCount]:
    """Returns counts by preset and state, not by media type: a variant has none until it is
    made."""
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for row in variants:
        number, size = sums.get((row.kind, row.state), (0, 0))
        sums[row.kind, row.state] = (number + row.number, size + row.bytes)
    return [
        pb.VariantCount(
            preset=preset, state=VARIANT_STATES.number[state], variants=number, bytes=size
        )
        for (preset, state), (number, size) in sorted(sums.items())
    ]


def _owner_usage(row: _Place) -> pb.OwnerUsage:
    return pb.OwnerUsage(
        owner=row.name,
        assets=row.assets,
        stored_bytes=row.stored_bytes,
        sent_bytes=row.sent_bytes,
    )


def _session_usage(row: _Place) -> pb.SessionUsage:
    return pb.SessionUsage(
        session_id=row.name,
        assets=row.assets,
        stored_bytes=row.stored_bytes,
        sent_bytes=row.sent_bytes,
    )
