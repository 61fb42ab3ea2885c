"""Tombstones: the rows of erased owners in a service that follows the erasures of `assets`."""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from atelier.assets.v1 import erasure_pb2 as pb
from atelier.assets.v1 import erasure_pb2_grpc, storage_pb2

from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement, Table
from shared.rpc.calls import Peers
from shared.rpc.protos import timestamp

REPORT_SECONDS = 10.0


@dataclass(slots=True)
class Tombstone:
    """An erased owner. `counts`: the fields of ErasureCount by what was erased or kept."""

    owner: str
    erased_at: datetime
    counts: dict[str, Any]
    done_at: datetime | None
    reported_at: datetime | None


TOMBSTONES = Table("erased_owners", Tombstone)

_INSERT_TOMBSTONE = Command(
    "INSERT INTO erased_owners (owner) VALUES (%(owner)s) ON CONFLICT DO NOTHING"
)
SELECT_TOMBSTONE = Statement(
    Tombstone, f"SELECT {TOMBSTONES.columns} FROM erased_owners WHERE owner = %(owner)s"
)
# A transaction that adds a row of the owner has this lock shared until its commit: see
# refuse_erased_owner in tables.sql.
_LOCK_OWNER = Command("SELECT pg_advisory_xact_lock(hashtextextended(%(owner)s, 11))")


async def bury(m: Mutation) -> None:
    """Notes that the transaction's owner was erased. Once this has committed, the schema refuses
    new rows of the owner; those that were on their way are committed before. Repeating is
    harmless."""
    await m.run(_LOCK_OWNER, {"owner": m.owner})
    await m.run(_INSERT_TOMBSTONE, {"owner": m.owner})


async def refuse(db: Database, owner: str) -> Tombstone:
    """Notes that the owner was erased, and returns the tombstone."""
    async with db.transaction(owner) as m:
        await bury(m)
        return await m.one(SELECT_TOMBSTONE, {"owner": owner})


@asynccontextmanager
async def told(
    peers: Peers, *, from_start: bool = False
) -> AsyncIterator[AsyncIterator[pb.FollowErasuresResponse]]:
    """Yields the stream in which `assets` tells of erased owners, and ends it."""
    stub = peers.stub(erasure_pb2_grpc.ErasureServiceStub)
    # The generated type is that of a bare channel; a stub of Peers returns a generator.
    stream: Any = stub.FollowErasures(pb.FollowErasuresRequest(from_start=from_start))
    async with aclosing(stream):
        yield stream


async def report(peers: Peers, row: Tombstone) -> None:
    """Tells `assets` how far this service is."""
    counts: Mapping[str, Any] = row.counts if row.done_at else {}
    request = pb.ReportErasureRequest(
        owner=row.owner,
        begin_time=timestamp(row.erased_at),
        done=row.done_at is not None,
        counts=[storage_pb2.ErasureCount(what=what, **counts[what]) for what in sorted(counts)],
    )
    stub = peers.stub(erasure_pb2_grpc.ErasureServiceStub)
    await stub.ReportErasure(request, timeout=REPORT_SECONDS)
