"""UploadService: uploads in one piece. Announce, send, confirm; or all three in one stream."""

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from atelier.assets.v1 import asset_pb2, upload_pb2_grpc
from atelier.assets.v1 import upload_pb2 as pb

from services.assets.core import asset_rows
from services.assets.core.asset_rows import Asset, Urls
from services.assets.uploads import declarations, duplicate_rows
from services.assets.uploads.declarations import Declared
from services.assets.uploads.verifying import Refused, Verified, Verifier, rejected
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.database.rows import Statement
from shared.rpc import errors
from shared.rpc.errors import DomainError, Reason
from shared.rpc.protos import timestamp
from shared.rpc.server import Context
from shared.storage import Check, ObjectNotFound, Stat, Storage

_INSERT_UPLOAD = b"""
    INSERT INTO uploads (id, owner, asset_id, upload_key, declared_sha256, expires_at)
    VALUES ($1, $2, $3, $4, $5, now() + make_interval(secs => $6))
"""


@dataclass(slots=True)
class _Upload:
    """The row of an upload: the asset, and the key that its bytes are sent to."""

    id: UUID
    asset_id: UUID
    upload_key: str
    declared_sha256: str
    expires_at: datetime
    expired: bool


_SELECT_UPLOAD = Statement(
    _Upload,
    """
    SELECT u.id, a.id AS asset_id, u.upload_key, u.declared_sha256, u.expires_at,
        u.expires_at < now() AS expired
    FROM uploads u JOIN assets a ON a.id = u.asset_id WHERE u.id = %(id)s
    """,
)


class UploadService(upload_pb2_grpc.UploadServiceServicer):
    def __init__(
        self,
        db: Database,
        storage: Storage,
        verifier: Verifier,
        urls: Urls,
        *,
        url_life: timedelta,
    ) -> None:
        self._db = db
        self._storage = storage
        self._verifier = verifier
        self._urls = urls
        self._url_life = url_life

    async def RequestUpload(
        self, request: pb.RequestUploadRequest, context: Context
    ) -> pb.RequestUploadResponse:
        declaration = request.declaration
        made = self._verifier.declared(declaration, "declaration.")

        async def work(m: Mutation) -> pb.RequestUploadResponse:
            asset, upload = await self._announce(m, made, declaration.sha256)
            return pb.RequestUploadResponse(upload_id=str(upload), asset=asset)

        response = await self._db.mutate(request, pb.RequestUploadResponse, work)
        asset = response.asset
        key = declarations.upload_key(asset.owner, made, asset.id, response.upload_id)
        response.target.CopyFrom(self._target(key, made.size_bytes, made.mime_type))
        return response

    async def ConfirmUpload(
        self, request: pb.ConfirmUploadRequest, context: Context
    ) -> pb.ConfirmUploadResponse:
        async with self._verifier.place():
            asset = await self._confirmed(request)
        if asset.state == "rejected":
            raise rejected(asset)
        urls = self._urls if request.include_urls else None
        return pb.ConfirmUploadResponse(
            asset=asset_rows.to_proto(asset, urls),
            duplicates=await duplicate_rows.others(self._db, asset),
        )

    async def Upload(
        self, request_iterator: AsyncIterator[pb.UploadRequest], context: Context
    ) -> pb.UploadResponse:
        head = await _head(request_iterator)
        made = self._verifier.declared(head.declaration, "head.declaration.")

        async def announce(m: Mutation) -> pb.UploadResponse:
            asset, _upload = await self._announce(m, made, head.declaration.sha256)
            return pb.UploadResponse(asset=asset)

        # The answer that is stored for request_id only says which asset it is; a repeat reads that
        # asset's current state.
        announced = await self._db.mutate(head, pb.UploadResponse, announce)
        asset = await self._verifier.asset(UUID(announced.asset.id))
        if asset.state == "pending":
            asset = await self._receive(head, asset, request_iterator)
        if asset.state == "rejected":
            raise rejected(asset)
        return pb.UploadResponse(
            asset=asset_rows.to_proto(asset),
            duplicates=await duplicate_rows.others(self._db, asset),
        )

    async def _confirmed(self, request: pb.ConfirmUploadRequest) -> Asset:
        """Verifies what was sent, unless that was done. Returns the asset, READY or REJECTED."""
        upload_id = parse_id(request.upload_id, "upload_id")
        # Refuses a reused request_id before any work is done.
        await self._db.stored_answer(request, pb.ConfirmUploadResponse)
        upload = await self._db.first(_SELECT_UPLOAD, {"id": upload_id})
        if upload is None:
            raise errors.not_found("upload", upload_id)
        asset = await self._verifier.asset(upload.asset_id)
        if asset.state == "pending":
            found = await self._sent(upload, asset)
            if found:
                asset = await self._verifier.settle(request, asset, found, pb.ConfirmUploadResponse)
            else:
                asset = await self._verifier.asset(asset.id)
            await self._storage.delete([upload.upload_key])
        return asset

    async def _receive(
        self, head: pb.UploadHead, asset: Asset, requests: AsyncIterator[pb.UploadRequest]
    ) -> Asset:
        """Stores and verifies the chunks after the declaration. Returns the asset's new row."""
        declared = head.declaration
        chunks = _chunks(requests, declared.size_bytes)

        def put(key: str, check: Check) -> Awaitable[Stat]:
            return self._storage.put(key, chunks, content_type=asset.mime_type, check=check)

        try:
            found = await self._verifier.kept(asset, declared.sha256, put)
        except DomainError as error:  # the stream had too many bytes, or a second head
            await self._verifier.settle(head, asset, Refused("INCOMPLETE", error.text))
            raise
        return await self._verifier.settle(head, asset, found)

    async def _announce(
        self, m: Mutation, made: Declared, sha256: str
    ) -> tuple[asset_pb2.Asset, UUID]:
        asset_id, upload_id = new_id(), new_id()
        asset = await declarations.announce(m, self._verifier.quotas, asset_id, made)
        key = declarations.upload_key(m.owner, made, asset_id, upload_id)
        life = str(self._url_life.total_seconds())
        m.send(_INSERT_UPLOAD, str(upload_id), m.owner, str(asset_id), key, sha256, life)
        return asset, upload_id

    def _target(self, key: str, size_bytes: int, mime_type: str) -> pb.UploadTarget:
        """Returns a form that the store caps at the declared size; where a store has no forms, a
        PUT with a signed length."""
        if self._storage.supports_post:
            post = self._storage.sign_post(
                key, max_bytes=size_bytes, content_type=mime_type, expires_in=self._url_life
            )
            return pb.UploadTarget(
                method="POST",
                url=post.url,
                fields=post.fields,
                expire_time=timestamp(post.expires_at),
            )
        put = self._storage.sign_put(
            key, length=size_bytes, content_type=mime_type, expires_in=self._url_life
        )
        return pb.UploadTarget(
            method="PUT", url=put.url, headers=put.headers, expire_time=timestamp(put.expires_at)
        )

    async def _sent(self, upload: _Upload, asset: Asset) -> Verified | Refused | None:
        """Verifies what was sent to the upload's URL. Returns None if a concurrent confirm was
        first and has removed it."""
        try:
            return await self._verifier.sent(upload.upload_key, asset, upload.declared_sha256)
        except ObjectNotFound:
            if (await self._verifier.asset(asset.id)).state != "pending":
                return None
            if upload.expired:
                text = "nothing arrived before the upload's URL expired; request a new upload"
                raise errors.precondition(text, subject=f"uploads/{upload.id}") from None
            text = "nothing is stored at the upload's URL yet; send the file there, then confirm"
            raise errors.precondition(
                text, subject=f"uploads/{upload.id}", reason=Reason.ERROR_REASON_NOTHING_UPLOADED
            ) from None


async def _head(requests: AsyncIterator[pb.UploadRequest]) -> pb.UploadHead:
    async for request in requests:
        if request.WhichOneof("part") == "head":
            return request.head
        break
    raise errors.invalid("head", "must be the first message of the stream")


async def _chunks(requests: AsyncIterator[pb.UploadRequest], declared: int) -> AsyncIterator[bytes]:
    """Yields the bytes after the head. Raises INVALID_ARGUMENT once more than declared arrive."""
    total = 0
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise errors.invalid("head", "must be sent only once, first")
        chunk = request.chunk  # each access makes a copy
        total += len(chunk)
        if total > declared:
            raise errors.invalid("chunk", f"more than the declared {declared} bytes were sent")
        yield chunk
