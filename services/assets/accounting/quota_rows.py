"""Quotas: the row that an operator set, the defaults where none is set, and their messages."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.assets.v1 import quota_pb2 as pb

from services.assets.accounting.rules import Allowance, Held
from services.assets.accounting.usage_rows import DEPLOYMENT
from shared.database.rows import Table
from shared.rpc.protos import EnumNames, timestamp
from shared.settings import Settings

KINDS = EnumNames(pb.QuotaKind, "QUOTA_KIND_")


@dataclass(slots=True)
class Quota:
    id: UUID
    owner: str
    stored_bytes: int | None
    assets: int | None
    monthly_bandwidth_bytes: int | None
    updated_by: str
    created_at: datetime
    updated_at: datetime


QUOTAS = Table("quotas", Quota)


def to_proto(row: Quota) -> pb.Quota:
    return pb.Quota(
        owner=shown_owner(row.owner),
        stored_bytes=row.stored_bytes,
        assets=row.assets,
        monthly_bandwidth_bytes=row.monthly_bandwidth_bytes,
        updated_by=row.updated_by,
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
    )


def shown_owner(owner: str) -> str:
    """Returns the owner as messages show it: '' for the deployment."""
    return "" if owner == DEPLOYMENT else owner


def uses(allowed: Allowance, held: Held) -> list[pb.QuotaUse]:
    used = held.by_quota()
    return [
        pb.QuotaUse(kind=KINDS.number[quota], limit=limit, used=used[quota])
        for quota, limit in allowed.by_quota().items()
    ]


def defaults(settings: Settings) -> Mapping[bool, Allowance]:
    """Returns the limits where no quota is set: of the deployment (True) and an owner (False)."""
    return {
        True: Allowance(
            settings.quota_deployment_stored_bytes,
            settings.quota_deployment_assets,
            settings.quota_deployment_monthly_bandwidth_bytes,
        ),
        False: Allowance(
            settings.quota_owner_stored_bytes,
            settings.quota_owner_assets,
            settings.quota_owner_monthly_bandwidth_bytes,
        ),
    }
