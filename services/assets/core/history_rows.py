"""Usage events: the row and its message."""

from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any
from uuid import UUID

from atelier.assets.v1 import usage_pb2 as pb

from shared.database.rows import Table
from shared.rpc.protos import EnumNames, struct, timestamp

ACTIONS = EnumNames(pb.UsageAction, "USAGE_ACTION_")


@dataclass(slots=True)
class UsageEvent:
    id: UUID
    owner: str
    actor: str
    asset_id: UUID
    action: str
    ip: IPv4Address | IPv6Address | IPv4Interface | IPv6Interface | None  # a network once shortened
    user_agent: str
    session_id: str
    conversion_id: str
    metadata: dict[str, Any]  # JSON from whoever recorded the use
    created_at: datetime


USAGE_EVENTS = Table("usage_events", UsageEvent)


def to_proto(row: UsageEvent) -> pb.Usage:
    usage = pb.Usage(
        id=str(row.id),
        asset_id=str(row.asset_id),
        action=ACTIONS.number[row.action],
        actor=row.actor,
        ip_address=str(row.ip) if row.ip else "",
        user_agent=row.user_agent,
        session_id=row.session_id,
        conversion_id=row.conversion_id,
        create_time=timestamp(row.created_at),
    )
    if row.metadata:
        usage.metadata.CopyFrom(struct(row.metadata))
    return usage
