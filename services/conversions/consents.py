"""ConsentService: records what persons agreed to for their photographs, and revokes it."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import consent_pb2 as pb
from atelier.conversions.v1 import consent_pb2_grpc

from services.conversions import assets, consent_rows, job_moves
from services.conversions.consent_rows import CONSENTS, ERASE_TASK, SELECT_CONSENT, Consent
from shared.background.jobs import JobQueue
from shared.background.watches import Event, EventStream, Fields
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.lists import Listing, created
from shared.database.rows import Statement
from shared.rpc import auth, errors, paging
from shared.rpc.calls import Peers
from shared.rpc.protos import time_of
from shared.rpc.server import Context

_SNAPSHOT_PAGE = 500
_LIST = Listing(
    CONSENTS,
    Consent,
    active=lambda row, _: sa.and_(row.revoked_at.is_(None), row.expires_at > sa.func.now()),
    expired=lambda row, _: sa.and_(row.revoked_at.is_(None), row.expires_at <= sa.func.now()),
    revoked=lambda row, _: row.revoked_at.is_not(None),
)
_SELECT_SNAPSHOT = Statement(
    Consent,
    f"""
    SELECT {CONSENTS.columns} FROM consents
    WHERE owner = %(owner)s
        AND (%(after_id)s::uuid IS NULL OR (created_at, id) > (%(after_at)s, %(after_id)s))
    ORDER BY created_at, id LIMIT %(limit)s
    """,
)


class ConsentService(consent_pb2_grpc.ConsentServiceServicer):
    def __init__(self, db: Database, stream: EventStream, queue: JobQueue, peers: Peers) -> None:
        self._db = db
        self._stream = stream
        self._queue = queue
        self._peers = peers

    async def RecordConsent(
        self, request: pb.RecordConsentRequest, context: Context
    ) -> pb.RecordConsentResponse:
        stored = await self._db.stored_answer(request, pb.RecordConsentResponse)
        if stored is not None:
            return stored
        given_at, expires_at = _times(request)
        columns = {
            "asset_id": await self._photo(request.asset_id),
            "purpose": consent_rows.PURPOSES.word[request.purpose],
            "wording_version": request.wording_version,
            "wording": request.wording,
            "given_by": request.given_by,
            "given_at": given_at,
            "expires_at": expires_at,
            "note": request.note,
        }

        async def work(m: Mutation) -> pb.RecordConsentResponse:
            row = await consent_rows.record(m, columns)
            return pb.RecordConsentResponse(consent=consent_rows.to_proto(row))

        return await self._db.mutate(request, pb.RecordConsentResponse, work)

    async def _photo(self, text: str) -> UUID:
        """Returns the id of the caller's photograph of a person. Raises if it isn't one."""
        wanted = assets.Wanted("asset_id", text, asset_pb2.ASSET_KIND_USER)
        [asset] = await assets.check(self._peers, [wanted])
        if asset.owner != auth.current().owner:
            raise errors.invalid(
                "asset_id", "is another owner's; upload the photograph as your own"
            )
        return UUID(asset.id)

    async def GetConsent(
        self, request: pb.GetConsentRequest, context: Context
    ) -> pb.GetConsentResponse:
        consent_id = parse_id(request.consent_id, "consent_id")
        row = await self._db.first(SELECT_CONSENT, {"id": consent_id})
        if row is None:
            raise errors.not_found("consent", consent_id)
        return pb.GetConsentResponse(consent=consent_rows.to_proto(row))

    async def ListConsents(
        self, request: pb.ListConsentsRequest, context: Context
    ) -> pb.ListConsentsResponse:
        page = paging.page(request)
        wanted: dict[str, object] = {
            "asset_id": request.asset_id and UUID(request.asset_id),
            **created(request),
        }
        if request.state:
            wanted[consent_rows.STATES.word[request.state]] = True
        rows = await self._db.all(*_LIST.query(page, wanted))
        found, token = page.fill(rows, map(consent_rows.to_proto, rows))
        return pb.ListConsentsResponse(consents=found, next_page_token=token)

    async def RevokeConsent(
        self, request: pb.RevokeConsentRequest, context: Context
    ) -> pb.RevokeConsentResponse:
        consent_id = parse_id(request.consent_id, "consent_id")

        async def work(m: Mutation) -> pb.RevokeConsentResponse:
            locked = await consent_rows.lock(m, consent_id)
            row = await consent_rows.revoke(m, locked, erase_photo=request.erase_photo)
            await self._queue.enqueue(m, ERASE_TASK, job_moves.RELEASE_QUEUE, row.id)
            return pb.RevokeConsentResponse(consent=consent_rows.to_proto(row))

        return await self._db.mutate(request, pb.RevokeConsentResponse, work)

    def WatchConsents(
        self, request: pb.WatchConsentsRequest, context: Context
    ) -> AsyncIterator[pb.WatchConsentsResponse]:
        return self._stream.watch(request, pb.WatchConsentsResponse, self._snapshot(), _change)

    async def _snapshot(self) -> AsyncIterator[tuple[Fields, Consent]]:
        """Yields all rows of the owner, oldest first."""
        after: dict[str, Any] = {"after_at": None, "after_id": None}
        asked = {"owner": auth.current().owner, "limit": _SNAPSHOT_PAGE}
        while True:
            rows = await self._db.all(_SELECT_SNAPSHOT, {**asked, **after})
            for row in rows:
                yield {"consent": consent_rows.to_proto(row)}, row
            if len(rows) < _SNAPSHOT_PAGE:
                return
            after = {"after_at": rows[-1].created_at, "after_id": rows[-1].id}


def _change(event: Event) -> Fields | None:
    """Returns the watch's item for an event. None: the watch leaves the event out."""
    if event.subject != "consent":
        return None
    return {"consent": pb.Consent.FromString(event.payload)}


def _times(request: pb.RecordConsentRequest) -> tuple[datetime, datetime]:
    """Returns when the consent was given and when it expires. Raises INVALID_ARGUMENT for times
    that aren't possible."""
    now = datetime.now(UTC)
    given = time_of(request.give_time, request.HasField("give_time"), "give_time") or now
    expires = time_of(request.expire_time, True, "expire_time")
    assert expires is not None
    if given > now:
        raise errors.invalid("give_time", "is in the future; say when the person agreed")
    if expires <= now:
        raise errors.invalid("expire_time", "has passed; a new consent expires in the future")
    return given, expires
