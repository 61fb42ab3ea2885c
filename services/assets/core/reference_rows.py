"""Reads what holds references to an asset, before it is deleted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from google.rpc import error_details_pb2

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


_SELECT_HOLDERS = Statement(
    Holder,
    """
    SELECT asset_id, owner, holder FROM (
        SELECT asset_id, owner, holder, row_number() OVER (PARTITION BY asset_id
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
    names = [row.holder if row.owner == owner else "another owner" for row in held_by]
    text = f"it is used by {', '.join(names)}; release it there, or repeat with `force`"
    failure = error_details_pb2.PreconditionFailure(
        violations=[
            error_details_pb2.PreconditionFailure.Violation(
                type="IN_USE", subject=f"assets/{asset_id}", description=f"used by {name}"
            )
            for name in names
        ]
    )
    return DomainError(Reason.ERROR_REASON_IN_USE, text, details=[failure])
