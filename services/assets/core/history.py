"""UsageService: the history of what the caller did with images, and how often they were used."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from atelier.assets.v1 import usage_pb2 as pb
from atelier.assets.v1 import usage_pb2_grpc

from services.assets.core import usage_log
from services.assets.core.history_rows import ACTIONS, USAGE_EVENTS, UsageEvent, to_proto
from services.assets.core.usage_log import Details, UsageLog
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.lists import Listing, created
from shared.database.rows import Statement
from shared.rpc import auth, errors, paging
from shared.rpc.protos import metadata
from shared.rpc.server import Context

METADATA_BYTES = 4096
_MOST_DAYS = 366

_LIST = Listing(USAGE_EVENTS, UsageEvent)


@dataclass(slots=True)
class _Used:
    """The columns that decide whether an asset's use is recorded, and for which owner."""

    id: UUID
    owner: str
    state: str
    deleted_at: datetime | None


@dataclass(slots=True)
class _Day:
    """How often one action was done on one day."""

    day: date
    action: str
    by_owner: int
    by_others: int


_SELECT_ASSET = Statement(
    _Used, "SELECT id, owner, state, deleted_at FROM assets WHERE id = %(id)s"
)
_SELECT_DAYS_OF_ASSET = Statement(
    _Day,
    """
    SELECT day, action, by_owner, by_others FROM usage_days
    WHERE owner = %(owner)s AND asset_id = %(asset_id)s AND day BETWEEN %(first)s AND %(last)s
    ORDER BY day DESC, action
    """,
)
_SELECT_DAYS = Statement(
    _Day,
    """
    SELECT day, action, sum(by_owner)::bigint AS by_owner, sum(by_others)::bigint AS by_others
    FROM usage_days WHERE owner = %(owner)s AND day BETWEEN %(first)s AND %(last)s
    GROUP BY day, action ORDER BY day DESC, action
    """,
)


class UsageService(usage_pb2_grpc.UsageServiceServicer):
    def __init__(self, db: Database, log: UsageLog) -> None:
        self._db = db
        self._usage = log

    async def RecordUsage(
        self, request: pb.RecordUsageRequest, context: Context
    ) -> pb.RecordUsageResponse:
        asset_id = parse_id(request.asset_id, "asset_id")
        more: Details = {
            "session_id": request.session_id,
            "conversion_id": request.conversion_id,
            "metadata": metadata(request.metadata, "metadata", METADATA_BYTES),
        }

        async def work(m: Mutation) -> pb.RecordUsageResponse:
            asset = await m.first(_SELECT_ASSET, {"id": asset_id})
            if asset is None:
                raise errors.not_found("asset", asset_id)
            if asset.state != "ready" or asset.deleted_at:
                text = (
                    "it is deleted"
                    if asset.deleted_at
                    else f"it is {asset.state}, not ready to be used"
                )
                raise errors.precondition(text, subject=f"assets/{asset_id}")
            uses = self._usage.uses([asset], ACTIONS.word[request.action], **more)
            rows = await usage_log.write(m, uses)
            if not rows:
                raise errors.owner_erased()
            return pb.RecordUsageResponse(usage=to_proto(rows[0]))

        return await self._db.mutate(request, pb.RecordUsageResponse, work)

    async def ListUsage(
        self, request: pb.ListUsageRequest, context: Context
    ) -> pb.ListUsageResponse:
        page = paging.page(request)
        wanted = {
            "asset_id": request.asset_id and UUID(request.asset_id),
            "action": request.action and ACTIONS.word[request.action],
            **created(request),
        }
        rows = await self._db.all(*_LIST.query(page, wanted))
        usages, token = page.fill(rows, map(to_proto, rows))
        return pb.ListUsageResponse(usages=usages, next_page_token=token)

    async def GetUsageStats(
        self, request: pb.GetUsageStatsRequest, context: Context
    ) -> pb.GetUsageStatsResponse:
        first, last = _days(request)
        asset_id = UUID(request.asset_id) if request.asset_id else None
        rows = await self._db.all(
            _SELECT_DAYS_OF_ASSET if asset_id else _SELECT_DAYS,
            {"owner": auth.current().owner, "asset_id": asset_id, "first": first, "last": last},
        )
        days = [
            pb.UsageOfDay(
                day=row.day.isoformat(),
                action=ACTIONS.number[row.action],
                by_owner=row.by_owner,
                by_others=row.by_others,
            )
            for row in rows
        ]
        return pb.GetUsageStatsResponse(days=days)


def _days(request: pb.GetUsageStatsRequest) -> tuple[date, date]:
    last = _day(request.last_day, "last_day") or datetime.now(UTC).date()
    first = _day(request.first_day, "first_day") or max(date.min + timedelta(30), last) - timedelta(
        30
    )
    if not timedelta(0) <= last - first <= timedelta(_MOST_DAYS):
        raise errors.invalid(
            "first_day", f"must be at most {_MOST_DAYS} days before last_day, and not after it"
        )
    return first, last


def _day(text: str, name: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise errors.invalid(name, "is not a day of the calendar, such as 2026-11-20") from None
