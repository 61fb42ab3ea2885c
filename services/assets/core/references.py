"""Who uses an asset: noted here by the services that use it, asked before it is deleted."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import psycopg
from atelier.assets.v1 import asset_pb2 as pb
from atelier.assets.v1 import asset_pb2_grpc
from google.rpc import error_details_pb2

from services.assets.core import assets
from services.assets.core import history as usage
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.rpc import auth, errors, paging
from shared.rpc.errors import DomainError, Reason
from shared.rpc.protos import timestamp

_NAMED = 10  # holders that a refusal lists
_HOLD = """
    INSERT INTO asset_references (owner, asset_id, holder) SELECT %(owner)s,
        unnest(%(ids)s::uuid[]), %(holder)s
    ON CONFLICT DO NOTHING RETURNING asset_id
"""
_HOLDERS = """
    SELECT asset_id, owner, holder FROM (
        SELECT asset_id, owner, holder, row_number() OVER (PARTITION BY asset_id
            ORDER BY created_at, holder) AS n
        FROM asset_references WHERE asset_id = ANY(%(ids)s)) AS numbered
    WHERE n <= %(named)s ORDER BY asset_id, n
"""
# A reference has no id of its own; pages need one.
_LIST = """
    SELECT * FROM (
        SELECT owner, holder, created_at, md5(owner || chr(31) || holder)::uuid AS id
        FROM asset_references WHERE asset_id = %(asset_id)s) AS named
    WHERE true
"""


async def holders(m: Mutation, ids: Sequence[UUID]) -> Mapping[UUID, list[Any]]:
    """By asset: some of those that use it. The assets are locked, so that nobody else begins to."""
    found: dict[UUID, list[Any]] = {}
    for row in await m.all(_HOLDERS, {"ids": list(ids), "named": _NAMED}):
        found.setdefault(row.asset_id, []).append(row)
    return found


def in_use(asset_id: UUID, held_by: Sequence[Any], owner: str) -> DomainError:
    """FAILED_PRECONDITION that lists by what."""
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


# What owners note about an asset, and what came with its file: too much for one answer, if a
# hundred have much of it.
_HEAVY = ("tags", "metadata", "provenance", "content_credentials")


class ReferenceCalls(asset_pb2_grpc.AssetServiceServicer):
    """The calls of AssetService about references."""

    def __init__(self, db: Database, usage_log: usage.UsageLog) -> None:
        self._db = db
        self._usage = usage_log

    async def AcquireReferences(
        self, request: pb.AcquireReferencesRequest, context: Any
    ) -> pb.AcquireReferencesResponse:
        ids = [UUID(text) for text in request.asset_ids]

        async def work(m: Mutation) -> pb.AcquireReferencesResponse:
            found = {row.id for row in await m.all(assets.BATCH, {"ids": ids})}
            for asset_id in ids:
                if asset_id not in found:
                    raise errors.not_found("asset", asset_id)
            new = await m.all(
                _HOLD, {"owner": m.owner, "ids": sorted(ids), "holder": request.holder}
            )
            # The foreign key has locked the assets against a delete: what is read now stays so
            # until the commit.
            held = {row.id: row for row in await m.all(assets.BATCH, {"ids": ids})}
            for asset_id in ids:
                if asset_id not in held:
                    raise errors.not_found("asset", asset_id)
                if problem := assets.unusable(held[asset_id]):
                    raise errors.precondition(problem, subject=f"assets/{asset_id}")
            if request.conversion_id:
                used = [held[row.asset_id] for row in new]
                await self._usage.write(
                    m, used, "use_in_conversion", conversion_id=request.conversion_id
                )
            shown = [assets.for_caller(assets.to_proto(held[asset_id])) for asset_id in ids]
            paging.lighten(shown, _HEAVY, paging.ANSWER_BYTES)
            return pb.AcquireReferencesResponse(assets=shown)

        try:
            return await self._db.mutate(request, pb.AcquireReferencesResponse, work)
        except psycopg.errors.ForeignKeyViolation:  # purged at the same time
            raise errors.not_found("asset", ", ".join(request.asset_ids)) from None

    async def ReleaseReferences(
        self, request: pb.ReleaseReferencesRequest, context: Any
    ) -> pb.ReleaseReferencesResponse:
        async def work(m: Mutation) -> pb.ReleaseReferencesResponse:
            gone = await m.all(
                "DELETE FROM asset_references WHERE owner = %(owner)s AND holder = %(holder)s"
                " AND (%(all)s OR asset_id = ANY(%(ids)s)) RETURNING asset_id",
                {
                    "owner": m.owner,
                    "holder": request.holder,
                    "all": not request.asset_ids,
                    "ids": [UUID(text) for text in request.asset_ids],
                },
            )
            return pb.ReleaseReferencesResponse(released=len(gone))

        return await self._db.mutate(request, pb.ReleaseReferencesResponse, work)

    async def ListReferences(
        self, request: pb.ListReferencesRequest, context: Any
    ) -> pb.ListReferencesResponse:
        page = paging.page(request)
        asset_id, owner = parse_id(request.asset_id, "asset_id"), auth.current().owner
        mine = {"asset_id": asset_id, "owner": owner}
        if (
            await self._db.row(
                "SELECT id FROM assets WHERE id = %(asset_id)s AND owner = %(owner)s", mine
            )
            is None
        ):
            raise errors.not_found("asset", asset_id)
        statement: Any = _LIST + page.clause
        rows = await self._db.rows(statement, mine | page.parameters)
        references, token = page.fill(
            rows,
            (
                pb.Reference(
                    holder=row.holder if row.owner == owner else "",
                    yours=row.owner == owner,
                    create_time=timestamp(row.created_at),
                )
                for row in rows
            ),
        )
        return pb.ListReferencesResponse(references=references, next_page_token=token)
