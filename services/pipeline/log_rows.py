"""Lines of a product's log: the row class, its message, and adding a line."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from atelier.pipeline.v1 import log_pb2
from psycopg.types.json import Jsonb

from shared.background import events
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.database.rows import Table
from shared.rpc.protos import EnumNames, struct, timestamp

LEVELS = EnumNames(log_pb2.LogLevel, "LOG_LEVEL_")
_MESSAGE_CHARACTERS = 2000


@dataclass(slots=True)
class Log:
    id: UUID
    owner: str
    product_id: UUID
    phase: int  # 0: the product as a whole
    level: str
    message: str
    action: str
    details: dict[str, Any]  # JSON from the author of the line
    actor: str
    created_at: datetime


LOGS = Table("logs", Log)
_WRITTEN = tuple(name for name in LOGS.names if name != "created_at")


def to_proto(row: Log) -> log_pb2.LogEntry:
    message = log_pb2.LogEntry(
        id=str(row.id),
        product_id=str(row.product_id),
        phase=row.phase,
        level=LEVELS.number[row.level],
        message=row.message,
        action=row.action,
        actor=row.actor,
        create_time=timestamp(row.created_at),
    )
    if row.details:
        message.details.CopyFrom(struct(row.details))
    return message


async def add(
    m: Mutation,
    product_id: UUID,
    phase: int,
    action: str,
    message: str,
    *,
    level: str = "info",
    details: Mapping[str, Any] | None = None,
) -> Log:
    """Adds a line in the name of the mutation's actor and publishes it. `phase` 0: the product as a
    whole."""
    row = await m.one(
        LOGS.insert(*_WRITTEN),
        {
            "id": new_id(),
            "owner": m.owner,
            "product_id": product_id,
            "phase": phase,
            "level": level,
            "message": message[:_MESSAGE_CHARACTERS],
            "action": action,
            "details": Jsonb(dict(details or {})),
            "actor": m.actor,
        },
    )
    await events.publish(m, "log", row.id, 1, to_proto(row))
    return row
