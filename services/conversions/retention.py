"""RetentionService: says how long jobs are kept, and what retention did."""

from atelier.conversions.v1 import retention_pb2 as pb
from atelier.conversions.v1 import retention_pb2_grpc

from services.conversions import retention_rows
from services.conversions.retention_rows import CLASSES, SELECT_COUNTS
from shared.database.db import Database
from shared.rpc.server import Context

_DAYS = 30
_SECONDS_PER_DAY = 86400


class RetentionService(retention_pb2_grpc.RetentionServiceServicer):
    def __init__(self, db: Database) -> None:
        self._db = db

    async def GetRetention(
        self, request: pb.GetRetentionRequest, context: Context
    ) -> pb.GetRetentionResponse:
        kept = retention_rows.of_settings(self._db.settings).kept
        rules = []
        for name, number in CLASSES.number.items():
            rule = pb.RetentionRule(retention_class=number)
            if name in kept:
                rule.days = kept[name].total_seconds() / _SECONDS_PER_DAY
            rules.append(rule)
        return pb.GetRetentionResponse(rules=rules)

    async def ListRetentionCounts(
        self, request: pb.ListRetentionCountsRequest, context: Context
    ) -> pb.ListRetentionCountsResponse:
        rows = await self._db.all(SELECT_COUNTS, {"days": request.days or _DAYS})
        return pb.ListRetentionCountsResponse(counts=map(retention_rows.to_proto, rows))
