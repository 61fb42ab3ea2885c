"""ResumableUploadService: uploads in parts. Start, send the missing parts, complete; or abort.

The store keeps the parts under an id of its own until they are joined at the upload's key; then the
file is verified as any other upload is. A crash after joining leaves the whole file at that key,
where the next CompleteResumableUpload finds it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from atelier.assets.v1 import resumable_pb2 as pb
from atelier.assets.v1 import resumable_pb2_grpc

from services.assets.core import asset_rows, rules
from services.assets.core.asset_rows import Asset, Urls
from services.assets.uploads import declarations, duplicate_rows
from services.assets.uploads.declarations import Declared
from services.assets.uploads.verifying import Refused, Verified, Verifier, reject, rejected
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.database.rows import Statement
from shared.rpc import auth, errors
from shared.rpc.errors import DomainError, Reason
from shared.rpc.protos import timestamp
from shared.rpc.server import Context
from shared.storage import MultipartEnded, ObjectNotFound, Part, Storage

_FIRST_TARGETS = 100
_MOST_NAMED = 20


@dataclass(slots=True)
class _Upload:
    """The row of an upload in parts."""

    id: UUID
    asset_id: UUID
    upload_key: str  # where the parts are joined
    multipart: str  # the store's id of the parts until then
    part_bytes: int
    declared_sha256: str
    expires_at: datetime
    expired: bool


_INSERT_UPLOAD = Statement(
    datetime,
    """
    INSERT INTO resumable_uploads (id, owner, asset_id, upload_key, multipart, part_bytes,
        declared_sha256, expires_at)
    VALUES (%(id)s, %(owner)s, %(asset_id)s, %(key)s, %(multipart)s, %(part_bytes)s, %(sha256)s,
        now() + %(life)s::interval)
    RETURNING expires_at
    """,
)
_SELECT_UPLOAD = Statement(
    _Upload,
    """
    SELECT id, asset_id, upload_key, multipart, part_bytes, declared_sha256, expires_at,
        expires_at < now() AS expired
    FROM resumable_uploads WHERE id = %(id)s
    """,
)
_ABORTED = Refused("ABORTED", "the upload was given up by its sender; start another")


class ResumableUploadService(resumable_pb2_grpc.ResumableUploadServiceServicer):
    def __init__(
        self,
        db: Database,
        storage: Storage,
        verifier: Verifier,
        urls: Urls,
        *,
        url_life: timedelta,
        life: timedelta,
    ) -> None:
        self._db = db
        self._storage = storage
        self._verifier = verifier
        self._urls = urls
        self._url_life = url_life
        self._life = life

    async def StartResumableUpload(
        self, request: pb.StartResumableUploadRequest, context: Context
    ) -> pb.StartResumableUploadResponse:
        declaration = request.declaration
        made = self._verifier.declared(declaration, "declaration.")
        response = await self._db.stored_answer(request, pb.StartResumableUploadResponse)
        if response is None:
            response = await self._start(request, made)
        upload = await self._upload(response.upload_id)
        sizes = rules.part_sizes(made.size_bytes, upload.part_bytes)
        response.targets.extend(self._targets(upload, sizes, list(sizes)[:_FIRST_TARGETS]))
        return response

    async def SignParts(
        self, request: pb.SignPartsRequest, context: Context
    ) -> pb.SignPartsResponse:
        upload = await self._upload(request.upload_id)
        asset = await self._verifier.asset(upload.asset_id)
        if asset.state != "pending" or upload.expired:
            state = "expired" if asset.state == "pending" else f"over, the asset is {asset.state}"
            text = f"the upload is {state}; start another to send the file"
            raise errors.precondition(text, subject=f"uploads/{upload.id}")
        sizes = rules.part_sizes(asset.size_bytes, upload.part_bytes)
        for index, number in enumerate(request.part_numbers):
            if number not in sizes:
                raise errors.invalid(
                    f"part_numbers[{index}]", f"the file has parts 1 to {len(sizes)}, not {number}"
                )
        return pb.SignPartsResponse(targets=self._targets(upload, sizes, request.part_numbers))

    async def GetResumableUpload(
        self, request: pb.GetResumableUploadRequest, context: Context
    ) -> pb.GetResumableUploadResponse:
        upload = await self._upload(request.upload_id)
        asset = await self._verifier.asset(upload.asset_id)
        sizes = rules.part_sizes(asset.size_bytes, upload.part_bytes)
        response = pb.GetResumableUploadResponse(
            asset=asset_rows.to_proto(asset),
            part_size_bytes=upload.part_bytes,
            part_count=len(sizes),
            expire_time=timestamp(upload.expires_at),
        )
        try:
            parts = await self._storage.list_parts(upload.upload_key, upload.multipart)
        except MultipartEnded:
            return response
        response.parts.extend(
            pb.UploadedPart(part_number=part.number, size_bytes=part.size) for part in parts
        )
        response.missing_part_numbers.extend(_missing(sizes, parts))
        return response

    async def CompleteResumableUpload(
        self, request: pb.CompleteResumableUploadRequest, context: Context
    ) -> pb.CompleteResumableUploadResponse:
        async with self._verifier.place():
            asset = await self._completed(request)
        if asset.state == "rejected":
            raise rejected(asset)
        urls = self._urls if request.include_urls else None
        return pb.CompleteResumableUploadResponse(
            asset=asset_rows.to_proto(asset, urls),
            duplicates=await duplicate_rows.others(self._db, asset),
        )

    async def AbortResumableUpload(
        self, request: pb.AbortResumableUploadRequest, context: Context
    ) -> pb.AbortResumableUploadResponse:
        upload = await self._upload(request.upload_id)

        async def work(m: Mutation) -> pb.AbortResumableUploadResponse:
            row = await reject(m, await asset_rows.lock(m, upload.asset_id), _ABORTED)
            if row.state == "ready":
                text = (
                    "the upload is complete and the asset READY; delete the asset if it isn't"
                    " wanted"
                )
                raise errors.precondition(text, subject=f"assets/{row.id}")
            return pb.AbortResumableUploadResponse(asset=asset_rows.to_proto(row))

        response = await self._db.mutate(request, pb.AbortResumableUploadResponse, work)
        await self._storage.abort_multipart(upload.upload_key, upload.multipart)
        await self._storage.delete([upload.upload_key])
        return response

    async def _completed(self, request: pb.CompleteResumableUploadRequest) -> Asset:
        """Joins and verifies the parts, unless that was done. Returns the asset, READY or
        REJECTED."""
        upload = await self._upload(request.upload_id)
        # Refuses a reused request_id before any work is done.
        await self._db.stored_answer(request, pb.CompleteResumableUploadResponse)
        asset = await self._verifier.asset(upload.asset_id)
        if asset.state == "pending":
            await self._join(upload, asset)
            found = await self._sent(upload, asset)
            if found:
                asset = await self._verifier.settle(
                    request, asset, found, pb.CompleteResumableUploadResponse
                )
            else:
                asset = await self._verifier.asset(asset.id)
            await self._storage.delete([upload.upload_key])
        return asset

    async def _start(
        self, request: pb.StartResumableUploadRequest, made: Declared
    ) -> pb.StartResumableUploadResponse:
        """Starts the upload in the store, then writes the rows. The store's sweep removes what a
        crash between the two leaves."""
        asset_id, upload_id = new_id(), new_id()
        key = declarations.upload_key(auth.current().owner, made, asset_id, upload_id)
        part_bytes = rules.part_bytes(made.size_bytes)
        multipart = await self._storage.start_multipart(key, content_type=made.mime_type)
        upload = {
            "id": upload_id,
            "owner": auth.current().owner,
            "asset_id": asset_id,
            "key": key,
            "multipart": multipart,
            "part_bytes": part_bytes,
            "sha256": request.declaration.sha256,
            "life": self._life,
        }

        async def work(m: Mutation) -> pb.StartResumableUploadResponse:
            asset = await declarations.announce(m, self._verifier.quotas, asset_id, made)
            expires_at = await m.one(_INSERT_UPLOAD, upload)
            return pb.StartResumableUploadResponse(
                upload_id=str(upload_id),
                asset=asset,
                part_size_bytes=part_bytes,
                part_count=len(rules.part_sizes(asset.size_bytes, part_bytes)),
                expire_time=timestamp(expires_at),
            )

        try:
            response = await self._db.mutate(request, pb.StartResumableUploadResponse, work)
        except DomainError:
            await self._storage.abort_multipart(key, multipart)
            raise
        if response.upload_id != str(upload_id):  # a concurrent repeat was first
            await self._storage.abort_multipart(key, multipart)
        return response

    async def _upload(self, text: str) -> _Upload:
        upload_id = parse_id(text, "upload_id")
        upload = await self._db.first(_SELECT_UPLOAD, {"id": upload_id})
        if upload is None:
            raise errors.not_found("upload", upload_id)
        return upload

    def _targets(
        self, upload: _Upload, sizes: Mapping[int, int], numbers: Iterable[int]
    ) -> list[pb.PartTarget]:
        made: list[pb.PartTarget] = []
        life = min(self._url_life, upload.expires_at - datetime.now(UTC))
        if life < timedelta(seconds=1):
            return made
        for number in numbers:
            put = self._storage.sign_part(
                upload.upload_key, upload.multipart, number, length=sizes[number], expires_in=life
            )
            made.append(
                pb.PartTarget(
                    part_number=number,
                    url=put.url,
                    headers=put.headers,
                    size_bytes=sizes[number],
                    offset_bytes=(number - 1) * upload.part_bytes,
                    expire_time=timestamp(put.expires_at),
                )
            )
        return made

    async def _join(self, upload: _Upload, asset: Asset) -> None:
        """Joins the parts to one object, unless that was done before. Raises FAILED_PRECONDITION if
        parts are missing."""
        try:
            parts = await self._storage.list_parts(upload.upload_key, upload.multipart)
            if missing := _missing(rules.part_sizes(asset.size_bytes, upload.part_bytes), parts):
                raise _parts_missing(upload, missing)
            await self._storage.complete_multipart(upload.upload_key, upload.multipart, parts)
        except MultipartEnded:
            pass

    async def _sent(self, upload: _Upload, asset: Asset) -> Verified | Refused | None:
        """Verifies the joined file. Returns None if a concurrent call was first and has removed
        it."""
        try:
            return await self._verifier.sent(upload.upload_key, asset, upload.declared_sha256)
        except ObjectNotFound:
            if (await self._verifier.asset(asset.id)).state != "pending":
                return None
            if not upload.expired:  # another call is joining them right now
                text = "the parts are being joined; nothing was changed, try again"
                raise errors.retry_later(Reason.ERROR_REASON_REQUEST_IN_PROGRESS, text, 1) from None
            text = "the upload expired and its parts are gone; start another"
            raise errors.precondition(text, subject=f"uploads/{upload.id}") from None


def _missing(sizes: Mapping[int, int], parts: Iterable[Part]) -> list[int]:
    """Returns the numbers of the parts that didn't arrive, or arrived with a wrong size."""
    arrived = {part.number: part.size for part in parts}
    return [number for number, size in sizes.items() if arrived.get(number) != size]


def _parts_missing(upload: _Upload, missing: list[int]) -> DomainError:
    named = ", ".join(map(str, missing[:_MOST_NAMED]))
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    subject = f"uploads/{upload.id}"
    if upload.expired:
        return errors.precondition(
            f"the upload expired before part {named}{more} came; start another", subject=subject
        )
    return errors.precondition(
        f"part {named}{more} is missing; send it to a URL from SignParts, then complete",
        subject=subject,
        reason=Reason.ERROR_REASON_PARTS_MISSING,
        metadata={"parts": named},
    )
