"""Uploads: announce, send, confirm. What is confirmed is a copy that nobody else can write to.

Confirming works outside any transaction: copy the object to a key of its own, verify that copy, then one transaction
makes the asset READY (or REJECTED). A crash leaves the asset PENDING and perhaps a copy; confirming again starts anew.
"""

import hashlib
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from atelier.assets.v1 import asset_pb2, upload_pb2_grpc
from atelier.assets.v1 import upload_pb2 as pb
from psycopg.types.json import Jsonb

from services.assets import assets, quotas, rules, variants
from services.assets.visibility import belongs, name_by_content
from shared import auth, errors, imaging, jobs, states
from shared.db import Database, Mutation, forget_answer
from shared.errors import DomainError, Reason
from shared.ids import new_id, parse_id
from shared.imaging import ImageRejected, ImagingPool, Limits
from shared.protos import metadata, timestamp
from shared.storage import ChecksumMismatch, ObjectNotFound, Storage

_INSERT_ASSET = """
    INSERT INTO assets (id, owner, created_by, kind, public, free, file_name, size_bytes, mime_type, tags, metadata,
                        session_id, room_id, product_id, dataset_id, provenance)
    VALUES (%(id)s, %(owner)s, %(actor)s, %(kind)s, %(public)s, %(free)s, %(file_name)s, %(size_bytes)s,
            %(mime_type)s, %(tags)s, %(metadata)s, %(session_id)s, %(room_id)s, %(product_id)s, %(dataset_id)s,
            %(provenance)s)
    RETURNING *
"""
_GET_UPLOAD = """
    SELECT u.id, u.upload_key, u.declared_sha256, u.expires_at, u.expires_at < now() AS expired, a.id AS asset_id
    FROM uploads u JOIN assets a ON a.id = u.asset_id WHERE u.id = %(id)s
"""
_GET_ASSET = "SELECT * FROM assets WHERE id = %(id)s"


@dataclass(frozen=True)
class Refused:
    """Why what was sent is not kept."""

    reason: str
    message: str


@dataclass(frozen=True)
class Verified:
    """What the bytes turned out to be. `key`: where the verified copy lies."""

    key: str
    size: int
    sha256: str
    facts: imaging.Facts


class UploadService(upload_pb2_grpc.UploadServiceServicer):
    def __init__(
        self, db: Database, storage: Storage, queue: jobs.JobQueue, pool: ImagingPool, urls: assets.Urls,
        *, url_life: timedelta, limits: Limits, quota: quotas.Quotas,
    ) -> None:  # fmt: skip
        self._db = db
        self._storage = storage
        self._queue = queue
        self._pool = pool
        self._urls = urls
        self._url_life = url_life
        self._limits = limits
        self._quota = quota

    async def RequestUpload(self, request: pb.RequestUploadRequest, context: Any) -> pb.RequestUploadResponse:
        columns = self._columns(request.declaration, "declaration.")

        async def work(m: Mutation) -> pb.RequestUploadResponse:
            asset, upload = await self._announce(m, columns, request.declaration.sha256)
            return pb.RequestUploadResponse(upload_id=str(upload), asset=assets.to_proto(asset))

        response = await self._db.mutate(request, pb.RequestUploadResponse, work)
        asset = response.asset
        key = _upload_key(asset.owner, columns, asset.id, response.upload_id)
        response.target.CopyFrom(self._target(key, request.declaration))
        return response

    async def ConfirmUpload(self, request: pb.ConfirmUploadRequest, context: Any) -> pb.ConfirmUploadResponse:
        upload_id = parse_id(request.upload_id, "upload_id")
        await self._db.stored_answer(request, pb.ConfirmUploadResponse)  # refuses a reused request_id at once
        upload = await self._db.row(_GET_UPLOAD, {"id": upload_id})
        if upload is None:
            raise errors.not_found("upload", upload_id)
        asset = await self._db.row(_GET_ASSET, {"id": upload.asset_id})
        if asset.state == "pending":
            verified = await self._verify_upload(upload, asset)
            if verified:
                asset = await self._settle(request, asset, verified)
            else:
                asset = await self._db.row(_GET_ASSET, {"id": asset.id})
            await self._storage.delete([upload.upload_key])
        if asset.state == "rejected":
            raise _rejected(asset.id, asset.rejection, asset.rejection_message)
        urls = self._urls if request.include_urls else None
        return pb.ConfirmUploadResponse(asset=assets.to_proto(asset, urls))

    async def Upload(self, request_iterator: AsyncIterator[pb.UploadRequest], context: Any) -> pb.UploadResponse:
        head = await _head(request_iterator)
        columns = self._columns(head.declaration, "head.declaration.")

        async def announce(m: Mutation) -> pb.UploadResponse:
            asset, _upload = await self._announce(m, columns, head.declaration.sha256)
            return pb.UploadResponse(asset=assets.to_proto(asset))

        # What is stored for request_id is which asset it is; a repeat finds that asset as far as it has come.
        announced = await self._db.mutate(head, pb.UploadResponse, announce)
        asset = await self._db.row(_GET_ASSET, {"id": UUID(announced.asset.id)})
        if asset.state == "pending":
            asset = await self._receive(head, asset, request_iterator)
        if asset.state == "rejected":
            raise _rejected(asset.id, asset.rejection, asset.rejection_message)
        return pb.UploadResponse(asset=assets.to_proto(asset))

    async def _receive(self, head: pb.UploadHead, asset: Any, requests: AsyncIterator[pb.UploadRequest]) -> Any:
        """Stores and verifies what follows the declaration. Returns the asset's new row."""
        declared = head.declaration
        key = self._key(asset)
        try:
            stat = await self._storage.put(
                key,
                _chunks(requests, declared.size_bytes),
                content_type=asset.mime_type,
                sha256=declared.sha256 or None,
            )
        except ChecksumMismatch:
            return await self._settle(head, asset, _HASH_DIFFERS)
        except DomainError as error:  # of the stream: more bytes than declared, a second head
            await self._settle(head, asset, Refused("INCOMPLETE", error.text))
            raise
        return await self._settle(head, asset, await self._inspect(key, asset, stat.size, declared.sha256))

    def _columns(self, declaration: pb.UploadDeclaration, path: str) -> dict[str, Any]:
        """Checks what protovalidate can't, and turns the declaration into the asset's columns."""
        identity = auth.current()
        kind = assets.KINDS.word[declaration.kind]
        if not rules.may_upload(kind, identity.role, identity.service is not None):
            raise DomainError(
                Reason.ERROR_REASON_ROLE_NOT_ALLOWED, f"a {identity.role} may not upload files of kind {kind}",
                {"role": identity.role, "kind": kind},
            )  # fmt: skip
        if problem := rules.type_problem(kind, declaration.mime_type):
            raise errors.invalid(f"{path}mime_type", problem)
        limit = self._limits.pdf_bytes if declaration.mime_type == rules.PDF else self._limits.image_bytes
        if declaration.size_bytes > limit:
            raise errors.invalid(
                f"{path}size_bytes", f"{declaration.size_bytes} bytes is over the limit of {limit} for this type"
            )
        if declaration.HasField("provenance") and kind not in rules.SERVICE_KINDS:
            raise errors.invalid(f"{path}provenance", f"a {kind} was not made by a model")
        public = declaration.visibility == asset_pb2.VISIBILITY_PUBLIC or (
            not declaration.visibility and kind in rules.PUBLIC_KINDS
        )
        provenance = declaration.provenance
        made_by = {
            "model": provenance.model, "model_version": provenance.model_version, "prompt": provenance.prompt,
            "source_asset_ids": list(provenance.source_asset_ids),
        }  # fmt: skip
        return {
            "kind": kind, "public": public, "free": declaration.free if declaration.HasField("free") else True,
            "file_name": assets.checked_name(declaration.file_name, f"{path}file_name"),
            "size_bytes": declaration.size_bytes, "mime_type": declaration.mime_type, "tags": list(declaration.tags),
            "metadata": Jsonb(metadata(declaration.metadata, f"{path}metadata")),
            "provenance": Jsonb(made_by) if declaration.HasField("provenance") else None,
            **{name: getattr(declaration.scope, name) for name in assets.SCOPES},
        }  # fmt: skip

    async def _announce(self, m: Mutation, columns: Mapping[str, Any], sha256: str) -> tuple[Any, Any]:
        await self._quota.announce(m, columns["size_bytes"])
        asset = await m.one(_INSERT_ASSET, {**columns, "id": new_id(), "owner": m.owner, "actor": m.actor})
        upload_id = new_id()
        key = _upload_key(m.owner, columns, str(asset.id), str(upload_id))
        await m.run(
            "INSERT INTO uploads (id, owner, asset_id, upload_key, declared_sha256, expires_at)"
            " VALUES (%(id)s, %(owner)s, %(asset_id)s, %(key)s, %(sha256)s, now() + %(life)s)",
            {"id": upload_id, "owner": m.owner, "asset_id": asset.id, "key": key, "sha256": sha256,
             "life": self._url_life},
        )  # fmt: skip
        await assets.publish(m, asset)
        return asset, upload_id

    def _target(self, key: str, declaration: pb.UploadDeclaration) -> pb.UploadTarget:
        """A form that the store caps at the declared size; where a store has no forms, a PUT with signed length."""
        if self._storage.supports_post:
            post = self._storage.sign_post(
                key, max_bytes=declaration.size_bytes, content_type=declaration.mime_type, expires_in=self._url_life
            )
            return pb.UploadTarget(
                method="POST", url=post.url, fields=post.fields, expire_time=timestamp(post.expires_at)
            )
        put = self._storage.sign_put(
            key, length=declaration.size_bytes, content_type=declaration.mime_type, expires_in=self._url_life
        )
        return pb.UploadTarget(method="PUT", url=put.url, headers=put.headers, expire_time=timestamp(put.expires_at))

    def _key(self, asset: Any) -> str:
        scope = {name: getattr(asset, name) for name in assets.SCOPES}
        return rules.object_key(
            asset.owner, scope, str(asset.id), str(new_id()), folder="original", public=asset.public
        )

    async def _verify_upload(self, upload: Any, asset: Any) -> Verified | Refused | None:
        """Copies what was sent to a key that no URL was ever signed for, and verifies the copy.

        None: a confirm at the same time was first, and has removed what was sent.
        """
        try:
            stat = await self._storage.stat(upload.upload_key)
            if stat.size != asset.size_bytes:
                return _size_differs(stat.size, asset.size_bytes)
            key = self._key(asset)
            await self._storage.copy(upload.upload_key, key, content_type=asset.mime_type)
            return await self._inspect(key, asset, stat.size, upload.declared_sha256)
        except ObjectNotFound:
            if (await self._db.row(_GET_ASSET, {"id": asset.id})).state != "pending":
                return None
            if upload.expired:
                text = "nothing arrived before the upload's URL expired; request a new upload"
                raise errors.precondition(text, subject=f"uploads/{upload.id}") from None
            text = "nothing is stored at the upload's URL yet; send the file there, then confirm"
            raise errors.precondition(
                text, subject=f"uploads/{upload.id}", reason=Reason.ERROR_REASON_NOTHING_UPLOADED
            ) from None

    async def _inspect(self, key: str, asset: Any, size: int, declared_sha256: str) -> Verified | Refused:
        """Hash and contents of the stored object itself. A refused one is removed."""
        with tempfile.TemporaryDirectory(prefix="atelier-") as directory:
            path = Path(directory) / "file"
            stat = await self._storage.fetch(key, path)
            sha256 = stat.sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
            try:
                if size != asset.size_bytes:
                    return await self._refuse(key, _size_differs(size, asset.size_bytes))
                if declared_sha256 and sha256 != declared_sha256:
                    return await self._refuse(key, _HASH_DIFFERS)
                facts = await self._pool.run(imaging.inspect, path, asset.mime_type, self._limits)
                if asset.public:
                    key = await name_by_content(self._storage, key, sha256, facts.mime_type)
                return Verified(key, size, sha256, facts)
            except ImageRejected as refusal:
                return await self._refuse(key, Refused(str(refusal.reason), refusal.message))

    async def _refuse(self, key: str, refused: Refused) -> Refused:
        await self._storage.delete([key])
        return refused

    async def _settle(self, request: Any, asset: Any, verified: Verified | Refused) -> Any:
        """Makes the asset READY or REJECTED, once, and returns its row. Of two confirms the second finds what the
        first did. Only a confirm that succeeds is stored: a refused upload must not be the answer to a repeat."""

        async def work(m: Mutation) -> pb.ConfirmUploadResponse:
            now = await assets.lock(m, asset.id)
            if isinstance(verified, Refused):
                columns: dict[str, Any] = {"rejection": verified.reason, "rejection_message": verified.message}
                row = await states.advance(m, rules.ASSET_STATES, "assets", asset.id, "rejected", **columns)
                await forget_answer(m, request)
            else:
                row = await self._accept(m, now, verified)
            if row is None:
                row = await m.one(_GET_ASSET, {"id": asset.id})
            else:
                await assets.publish(m, row)
            return pb.ConfirmUploadResponse(asset=assets.to_proto(row))

        try:
            if isinstance(verified, Verified) and isinstance(request, pb.ConfirmUploadRequest):
                await self._db.mutate(request, pb.ConfirmUploadResponse, work)
            else:
                async with self._db.transaction(auth.current().owner, auth.current().actor) as m:
                    await work(m)
        except DomainError:
            if isinstance(verified, Verified):
                await self._storage.delete([verified.key])
            raise
        row = await self._db.row(_GET_ASSET, {"id": asset.id})
        if isinstance(verified, Verified) and row.storage_key != verified.key:
            await self._storage.delete([verified.key])  # another confirm was first, with its own copy
        return row

    async def _accept(self, m: Mutation, asset: Any, verified: Verified) -> Any:
        """`asset` is locked. None if it was settled before."""
        if asset.state == "pending" and not belongs(verified.key, asset):
            text = "the asset's visibility was changed while its bytes were verified; try again"
            raise errors.retry_later(Reason.ERROR_REASON_REQUEST_IN_PROGRESS, text, 0)
        if asset.state == "pending":
            await self._quota.settle(m, asset, verified.size)
        facts = verified.facts
        row = await states.advance(
            m, rules.ASSET_STATES, "assets", asset.id, "ready",
            storage_key=verified.key, size_bytes=verified.size, sha256=verified.sha256, mime_type=facts.mime_type,
            width=facts.width or 0, height=facts.height or 0, facts=_stored_facts(facts),
        )  # fmt: skip
        if row is None:
            return None
        if row.kind == "product" and row.product_id:
            row = await assets.make_primary(m, row, only_first=True)
        if facts.kind == "image":
            await variants.ask(m, self._queue, row, list(variants.PRESETS), priority=jobs.FRESH)
        return row


def _upload_key(owner: str, columns: Mapping[str, Any], asset_id: str, upload_id: str) -> str:
    """Where the upload is to be sent: it follows from the ids, so that a repeat is given the same place."""
    scope = {name: columns[name] for name in assets.SCOPES}
    return rules.object_key(owner, scope, asset_id, upload_id, folder="upload", public=False)


def _stored_facts(facts: imaging.Facts) -> Jsonb | None:
    if facts.measures is None:
        return None
    measured = asdict(facts.measures)
    colours = [[colour["hex"], round(colour["share"], 4)] for colour in measured["colours"]]
    names = ("placeholder", "focal_x", "focal_y", "sharpness", "exposure")
    return Jsonb({"colours": colours, **{name: measured[name] for name in names}})


_HASH_DIFFERS = Refused("HASH_MISMATCH", "the bytes don't have the declared sha256; upload again")


def _size_differs(arrived: int, declared: int) -> Refused:
    if arrived == 0:
        return Refused("EMPTY", "the file is empty; upload a picture or a PDF")
    return Refused("SIZE_MISMATCH", f"{arrived} bytes arrived, {declared} were declared; upload again")


def _rejected(asset_id: Any, rejection: str, message: str) -> DomainError:
    return errors.precondition(
        message, subject=f"assets/{asset_id}", reason=Reason.ERROR_REASON_UPLOAD_REJECTED,
        metadata={"rejection": rejection, "asset_id": str(asset_id)},
    )  # fmt: skip


async def _head(requests: AsyncIterator[pb.UploadRequest]) -> pb.UploadHead:
    async for request in requests:
        if request.WhichOneof("part") == "head":
            return request.head
        break
    raise errors.invalid("head", "must be the first message of the stream")


async def _chunks(requests: AsyncIterator[pb.UploadRequest], declared: int) -> AsyncIterator[bytes]:
    """The bytes that follow; more than declared are refused as they come."""
    total = 0
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise errors.invalid("head", "must be sent only once, first")
        total += len(request.chunk)
        if total > declared:
            raise errors.invalid("chunk", f"more than the declared {declared} bytes were sent")
        yield request.chunk
