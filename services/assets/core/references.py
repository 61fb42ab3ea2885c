"""References: other services note here that they use an asset, so that it isn't deleted."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg
from atelier.assets.v1 import asset_pb2 as pb
from atelier.assets.v1 import asset_pb2_grpc

from services.assets.core import asset_rows, reference_rows
from services.assets.core.asset_rows import SELECT_ASSETS, Asset
from services.assets.core.pages import Paged
from services.assets.core.usage_log import UsageLog
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.rows import Statement
from shared.rpc import auth, errors, paging
from shared.rpc.protos import timestamp
from shared.rpc.server import Context


@dataclass(slots=True)
class _Reference:
    """A reference, with an id that is computed: it has none of its own, and pages need one."""

    owner: str
    holder: str
    service: str
    created_at: datetime
    id: UUID


_SELECT_VISIBLE = Statement(UUID, "SELECT id FROM assets WHERE id = ANY(%(ids)s)")
_SELECT_OWN = Statement(UUID, "SELECT id FROM assets WHERE id = %(asset_id)s AND owner = %(owner)s")
_HOLD = Statement(
    UUID,
    """
    INSERT INTO asset_references (owner, asset_id, holder, service)
    SELECT %(owner)s, unnest(%(ids)s::uuid[]), %(holder)s, %(service)s
    ON CONFLICT DO NOTHING RETURNING asset_id
    """,
)
_RELEASE = Statement(
    UUID,
    """
    DELETE FROM asset_references WHERE owner = %(owner)s AND holder = %(holder)s
        AND service = %(service)s AND (%(all)s OR asset_id = ANY(%(ids)s)) RETURNING asset_id
    """,
)
# What somebody else acquired under the name of the holder.
_SELECT_BOUND = Statement(
    str,
    """
    SELECT service FROM asset_references WHERE owner = %(owner)s AND holder = %(holder)s
        AND service <> '' AND (%(all)s OR asset_id = ANY(%(ids)s)) LIMIT 1
    """,
)
_LIST = Paged(
    _Reference,
    """
    SELECT owner, holder, service, created_at, id FROM (
        SELECT owner, holder, service, created_at,
            md5(owner || chr(31) || holder || chr(31) || service)::uuid AS id
        FROM asset_references WHERE asset_id = %(asset_id)s) AS named
    WHERE true
    """,
)

# Fields that owners write or that came with the file: a hundred assets with much in them are too
# much for one answer.
_HEAVY = ("tags", "metadata", "provenance", "content_credentials")


class ReferenceCalls(asset_pb2_grpc.AssetServiceServicer):
    """The calls of AssetService about references."""

    def __init__(self, db: Database, usage_log: UsageLog) -> None:
        self._db = db
        self._usage = usage_log

    async def AcquireReferences(
        self, request: pb.AcquireReferencesRequest, context: Context
    ) -> pb.AcquireReferencesResponse:
        ids = [UUID(text) for text in request.asset_ids]

        async def work(m: Mutation) -> pb.AcquireReferencesResponse:
            found = await m.all(_SELECT_VISIBLE, {"ids": ids})
            for asset_id in ids:
                if asset_id not in found:
                    raise errors.not_found("asset", asset_id)
            new = await m.all(
                _HOLD,
                {
                    "owner": m.owner,
                    "ids": sorted(ids),
                    "holder": request.holder,
                    "service": auth.current().service or "",
                },
            )
            # The foreign key has locked the assets against a delete: what is read now stays true
            # until the commit.
            held = _usable(ids, await m.all(SELECT_ASSETS, {"ids": ids}))
            if request.conversion_id:
                used = [held[asset_id] for asset_id in new]
                await self._usage.write(
                    m, used, "use_in_conversion", conversion_id=request.conversion_id
                )
            shown = [asset_rows.for_caller(asset_rows.to_proto(held[asset_id])) for asset_id in ids]
            paging.trim_to_limit(shown, _HEAVY, paging.ANSWER_BYTES)
            return pb.AcquireReferencesResponse(assets=shown)

        try:
            return await self._db.mutate(request, pb.AcquireReferencesResponse, work)
        except psycopg.errors.ForeignKeyViolation:  # purged at the same time
            raise errors.not_found("asset", ", ".join(request.asset_ids)) from None

    async def ReleaseReferences(
        self, request: pb.ReleaseReferencesRequest, context: Context
    ) -> pb.ReleaseReferencesResponse:
        async def work(m: Mutation) -> pb.ReleaseReferencesResponse:
            named = {
                "owner": m.owner,
                "holder": request.holder,
                "all": not request.asset_ids,
                "ids": [UUID(text) for text in request.asset_ids],
            }
            service = auth.current().service or ""
            gone = await m.all(_RELEASE, {**named, "service": service})
            if not gone and (bound := await m.first(_SELECT_BOUND, named)):
                raise reference_rows.not_yours(request.holder, bound)
            return pb.ReleaseReferencesResponse(released=len(gone))

        return await self._db.mutate(request, pb.ReleaseReferencesResponse, work)

    async def ListReferences(
        self, request: pb.ListReferencesRequest, context: Context
    ) -> pb.ListReferencesResponse:
        page = paging.page(request)
        asset_id, owner = parse_id(request.asset_id, "asset_id"), auth.current().owner
        if await self._db.first(_SELECT_OWN, {"asset_id": asset_id, "owner": owner}) is None:
            raise errors.not_found("asset", asset_id)
        rows = await self._db.all(_LIST.of(page), {"asset_id": asset_id, **page.parameters})
        references, token = page.fill(rows, (_to_proto(row, owner) for row in rows))
        return pb.ListReferencesResponse(references=references, next_page_token=token)


def _usable(ids: Sequence[UUID], rows: Sequence[Asset]) -> dict[UUID, Asset]:
    """Returns the assets' rows by id. Raises NOT_FOUND for a missing asset, FAILED_PRECONDITION for
    one that can't be used."""
    found = {row.id: row for row in rows}
    for asset_id in ids:
        if asset_id not in found:
            raise errors.not_found("asset", asset_id)
        if problem := asset_rows.unusable(found[asset_id]):
            raise errors.precondition(problem, subject=f"assets/{asset_id}")
    return found


def _to_proto(row: _Reference, owner: str) -> pb.Reference:
    """Returns the message without the holder if the reference is another owner's."""
    return pb.Reference(
        holder=row.holder if row.owner == owner else "",
        yours=row.owner == owner,
        service=row.service if row.owner == owner else "",
        create_time=timestamp(row.created_at),
    )
