"""How much room exports take, and the quotas of it."""

from dataclasses import dataclass

from atelier.techfiles.v1 import export_pb2 as pb

from services.techfiles.export_rows import FORMATS, STATES
from shared.database.db import Mutation
from shared.database.rows import Statement
from shared.rpc import errors
from shared.rpc.errors import Reason
from shared.settings import Settings

_MOST_OWNERS = 100


@dataclass(slots=True)
class ExportFigures:
    """Exports of one format in one state, and the bytes that they have in the store."""

    format: str
    state: str
    deleted: bool
    exports: int
    bytes: int
    without_bytes: int


@dataclass(slots=True)
class OwnerFigures:
    owner: str
    exports: int
    bytes: int


@dataclass(slots=True)
class _Used:
    """Bytes of exports that are stored, and an estimate for those that are being made."""

    stored: int
    unfinished: int


# What an export is estimated at while there is none to go by.
_UNKNOWN_BYTES = 1_000_000
_FIGURES = """
    SELECT format, state, deleted_at IS NOT NULL AS deleted, count(*) AS exports,
        coalesce(sum(size_bytes) FILTER (WHERE bytes_gone_at IS NULL), 0)::bigint AS bytes,
        count(*) FILTER (WHERE bytes_gone_at IS NOT NULL) AS without_bytes
    FROM exports WHERE {which} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
_SUM_OWN = Statement(ExportFigures, _FIGURES.format(which="owner = %(owner)s"))
_SUM_ALL = Statement(ExportFigures, _FIGURES.format(which="true"))
_STORED = "state = 'completed' AND bytes_gone_at IS NULL"
_SUM_OWNERS = Statement(
    OwnerFigures,
    f"""
    SELECT owner, count(*) AS exports, coalesce(sum(size_bytes), 0)::bigint AS bytes
    FROM exports WHERE {_STORED} GROUP BY owner ORDER BY bytes DESC, owner LIMIT %(limit)s
    """,
)
_USED = """
    SELECT stored.bytes AS stored,
        (unfinished.exports * coalesce(stored.average, %(unknown)s))::bigint AS unfinished
    FROM
        (SELECT coalesce(sum(size_bytes), 0)::bigint AS bytes, avg(size_bytes) AS average
            FROM exports WHERE {which} AND state = 'completed' AND bytes_gone_at IS NULL) stored,
        (SELECT count(*) AS exports
            FROM exports WHERE {which} AND state IN ('pending', 'processing')) unfinished
"""
_USED_BY_OWNER = Statement(_Used, _USED.format(which="owner = %(owner)s"))
_USED_BY_ALL = Statement(_Used, _USED.format(which="true"))


class ExportQuotas:
    """Compares the bytes of exports with the limits of the settings.

    An export's size is known once it is made. One that is being made counts as much as those that
    are there on the average. A new one is refused when the limit is reached, and the last one
    before may go over it.
    """

    def __init__(self, settings: Settings) -> None:
        self.owner_bytes = settings.quota_owner_export_bytes
        self.deployment_bytes = settings.quota_deployment_export_bytes

    async def room(self, m: Mutation) -> None:
        """Raises QUOTA_EXCEEDED if no further export is allowed. It shows the transaction's later
        statements the exports of all owners, if the deployment has a limit."""
        named = {"owner": m.owner, "unknown": _UNKNOWN_BYTES}
        if self.owner_bytes:
            used = await m.one(_USED_BY_OWNER, named)
            if used.stored + used.unfinished >= self.owner_bytes:
                raise self._owner_refusal(m.owner, used)
        if self.deployment_bytes:
            m.operate()
            used = await m.one(_USED_BY_ALL, named)
            if used.stored + used.unfinished >= self.deployment_bytes:
                raise errors.exhausted(  # figures would reveal how much others use
                    Reason.ERROR_REASON_QUOTA_EXCEEDED,
                    "the deployment's quota of export bytes is used up; tell the operator",
                    subject="deployment",
                    metadata={"quota": "export_bytes"},
                )

    def _owner_refusal(self, owner: str, used: _Used) -> errors.DomainError:
        unfinished = f" and exports that are being made take about {used.unfinished}"
        return errors.exhausted(
            Reason.ERROR_REASON_QUOTA_EXCEEDED,
            f"your quota of export bytes is {self.owner_bytes}, and {used.stored} are used"
            f"{unfinished if used.unfinished else ''}: purge exports that aren't needed"
            " (PurgeExport; what is in the trash counts until it is purged), or ask the operator"
            " for more",
            subject=owner,
            metadata={
                "quota": "export_bytes",
                "limit": str(self.owner_bytes),
                "used": str(used.stored + used.unfinished),
            },
        )


async def own_figures(m: Mutation, owner: str) -> list[ExportFigures]:
    return await m.all(_SUM_OWN, {"owner": owner})


async def all_figures(m: Mutation) -> tuple[list[ExportFigures], list[OwnerFigures]]:
    """Returns the figures of all owners together, and of those with the most bytes."""
    m.operate()
    return await m.all(_SUM_ALL), await m.all(_SUM_OWNERS, {"limit": _MOST_OWNERS})


def use_to_proto(row: ExportFigures) -> pb.ExportUse:
    return pb.ExportUse(
        format=FORMATS.number[row.format],
        state=STATES.number[row.state],
        deleted=row.deleted,
        exports=row.exports,
        bytes=row.bytes,
        without_bytes=row.without_bytes,
    )


def owner_to_proto(row: OwnerFigures) -> pb.OwnerUse:
    return pb.OwnerUse(owner=row.owner, exports=row.exports, bytes=row.bytes)
