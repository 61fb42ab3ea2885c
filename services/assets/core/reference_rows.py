"""Reads what holds references to an asset, before it is deleted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from google.rpc import error_details_pb2

from services.assets.core import rules
from shared.database.db import Mutation
from shared.database.rows import Statement
from shared.rpc.errors import DomainError, Reason

_MOST_NAMED = 10  # holders that a refusal lists


@dataclass(slots=True)
class Holder:
    """The holder of a reference to an asset, and the reference's owner."""

    asset_id: UUID
    owner: str
    holder: str
    service: str  # that acquired it, and alone may release it; empty: the owner itself did

    def named(self, owner: str) -> str:
        """Returns the name for this owner; holders of another owner aren't named."""
        return self.holder if self.owner == owner else "another owner"


_SELECT_HOLDERS = Statement(
    Holder,
    """
    SELECT asset_id, owner, holder, service FROM (
        SELECT asset_id, owner, holder, service, row_number() OVER (PARTITION BY asset_id
            ORDER BY created_at, holder) AS n
        FROM asset_references WHERE asset_id = ANY(%(ids)s)) AS numbered
    WHERE n <= %(most)s ORDER BY asset_id, n
    """,
)


async def holders(m: Mutation, ids: Sequence[UUID]) -> Mapping[UUID, list[Holder]]:
    """Returns up to ten holders of each asset's references, by asset. The caller has locked the
    assets, so that nobody adds a reference meanwhile."""
    found: dict[UUID, list[Holder]] = {}
    for row in await m.all(_SELECT_HOLDERS, {"ids": list(ids), "most": _MOST_NAMED}):
        found.setdefault(row.asset_id, []).append(row)
    return found


def in_use(asset_id: UUID, held_by: Sequence[Holder], owner: str) -> DomainError:
    """Returns a FAILED_PRECONDITION that lists the holders; those of other owners aren't named."""
    names = ", ".join(row.named(owner) for row in held_by)
    text = f"it is used by {names}; {how_to_release(held_by, owner)}, or repeat with `force`"
    failure = error_details_pb2.PreconditionFailure(
        violations=[
            error_details_pb2.PreconditionFailure.Violation(
                type="IN_USE",
                subject=f"assets/{asset_id}",
                description=f"used by {row.named(owner)}",
            )
            for row in held_by
        ]
    )
    return DomainError(Reason.ERROR_REASON_IN_USE, text, details=[failure])


def how_to_release(held_by: Sequence[Holder], owner: str) -> str:
    """Returns what lets go of these references, each way once."""
    ways = []
    for row in held_by:
        if row.owner != owner:
            way = "wait until the other owner lets go of it"
        elif row.service:
            way = f"{row.service} holds it: {rules.lets_go(row.holder)}"
        else:
            way = "release it there (ReleaseReferences with that holder)"
        if way not in ways:
            ways.append(way)
    return "; ".join(ways)


def not_yours(holder: str, service: str) -> DomainError:
    """Returns the refusal of a release that isn't the holder's own."""
    text = (
        f"{service} acquired the references of {holder}, and no other caller releases them;"
        f" {rules.lets_go(holder)}"
    )
    failure = error_details_pb2.PreconditionFailure(
        violations=[
            error_details_pb2.PreconditionFailure.Violation(
                type="IN_USE", subject=holder, description=f"held by {service}"
            )
        ]
    )
    return DomainError(Reason.ERROR_REASON_IN_USE, text, details=[failure])
