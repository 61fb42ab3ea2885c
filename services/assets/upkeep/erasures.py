"""ErasureService: tells the other services of erasures, and notes how far they are."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC

from atelier.assets.v1 import erasure_pb2 as pb
from atelier.assets.v1 import erasure_pb2_grpc
from atelier.common.v1 import watch_pb2
from psycopg.types.json import Jsonb

from services.assets.accounting import usage_rows
from services.assets.upkeep import erase, erasure_rows
from services.assets.upkeep.erasure_rows import Waker
from shared.background.jobs import JobQueue
from shared.database.db import Database
from shared.database.rows import Command, Statement
from shared.rpc import auth
from shared.rpc.errors import DomainError, Reason
from shared.rpc.server import Context
from shared.settings import SERVICES

_POLL_SECONDS = 1.0
_PAGE = 1000
_NOTE_SERVICE = Command("""
    INSERT INTO erasure_services (service) VALUES (%(service)s)
    ON CONFLICT (service) DO UPDATE SET seen_at = now()
""")
# A service that is new, or was never told, has a part in every erasure of before.
_EXPECT_SERVICE = Command("""
    INSERT INTO erasure_parts (owner, service) SELECT owner, %(service)s FROM erased_owners
    ON CONFLICT DO NOTHING
""")
_SELECT_WAITING = Statement(
    str,
    """
    SELECT owner FROM erasure_parts WHERE service = %(service)s AND state = 'waiting'
        AND owner > %(after)s ORDER BY owner LIMIT %(limit)s
    """,
)
_SELECT_ERASED = Statement(
    str,
    "SELECT owner FROM erased_owners WHERE owner > %(after)s ORDER BY owner LIMIT %(limit)s",
)
# What comes late doesn't change a part that is done: but another begin is another erasure.
_NOTE_REPORT = Command("""
    INSERT INTO erasure_parts AS p (owner, service, state, begun_at, counts)
    VALUES (%(owner)s, %(service)s, %(state)s, %(begun_at)s, %(counts)s)
    ON CONFLICT (owner, service) DO UPDATE SET state = EXCLUDED.state, begun_at = EXCLUDED.begun_at,
        counts = EXCLUDED.counts, updated_at = now()
    WHERE EXCLUDED.state = 'done' OR p.begun_at IS DISTINCT FROM EXCLUDED.begun_at
""")


class ErasureService(erasure_pb2_grpc.ErasureServiceServicer):
    def __init__(self, db: Database, queue: JobQueue, waker: Waker) -> None:
        self._db = db
        self._queue = queue
        self._waker = waker

    async def FollowErasures(
        self, request: pb.FollowErasuresRequest, context: Context
    ) -> AsyncIterator[pb.FollowErasuresResponse]:
        service = _service()
        async with self._db.transaction(auth.current().owner) as m:
            await usage_rows.operate(m)
            await m.run(_NOTE_SERVICE, {"service": service})
            await m.run(_EXPECT_SERVICE, {"service": service})
        sent: set[str] = set()
        first = _SELECT_ERASED if request.from_start else _SELECT_WAITING
        async for owner in self._owners(first, service):
            sent.add(owner)
            yield pb.FollowErasuresResponse(erased_owner=owner)
        yield pb.FollowErasuresResponse(bookmark=watch_pb2.Bookmark(ready=True))
        while time.time() < auth.current().expires_at:
            await self._waker.sleep(_POLL_SECONDS)
            if self._waker.stopping:
                text = "the server is stopping; follow again"
                raise DomainError(Reason.ERROR_REASON_SHUTTING_DOWN, text)
            async for owner in self._owners(_SELECT_WAITING, service):
                if owner not in sent:
                    sent.add(owner)
                    yield pb.FollowErasuresResponse(erased_owner=owner)

    async def _owners(self, statement: Statement[str], service: str) -> AsyncIterator[str]:
        after = ""
        while True:
            page = {"service": service, "after": after, "limit": _PAGE}
            async with self._db.transaction(auth.current().owner) as m:
                await usage_rows.operate(m)
                owners = await m.all(statement, page)
            for owner in owners:
                yield owner
            if len(owners) < _PAGE:
                return
            after = owners[-1]

    async def ReportErasure(
        self, request: pb.ReportErasureRequest, context: Context
    ) -> pb.ReportErasureResponse:
        service = _service()
        auth.enter(replace(auth.current(), owner=request.owner))
        async with self._db.transaction(request.owner) as m:
            if not await erase.is_erased(m):
                await erase.begin(m, self._queue)
                self._waker.wake()
            await m.run(_NOTE_SERVICE, {"service": service})
            values = {
                "owner": request.owner,
                "service": service,
                "state": erasure_rows.DONE if request.done else erasure_rows.ERASING,
                "begun_at": request.begin_time.ToDatetime(tzinfo=UTC),
                "counts": Jsonb(erasure_rows.counts_of(request)),
            }
            await m.run(_NOTE_REPORT, values)
        return pb.ReportErasureResponse()


def _service() -> str:
    """Returns the service that calls. Raises PERMISSION_DENIED for another caller of its role."""
    service = auth.current().service
    if service is None or service not in SERVICES:
        text = "only the services of the suite follow erasures"
        raise DomainError(Reason.ERROR_REASON_ROLE_NOT_ALLOWED, text)
    return service
