"""Objects in a bucket of any S3-compatible store, through boto3 in a bounded pool of threads."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote, urlsplit

from .base import (
    CHUNK,
    Check,
    ChecksumMismatch,
    MultipartEnded,
    ObjectNotFound,
    Part,
    SignedPost,
    SignedPut,
    Source,
    Stat,
    StorageError,
    check_content_type,
    check_digest,
    check_key,
    check_lifetime,
    check_prefix,
    check_public,
    check_range,
    content_disposition,
    is_raster,
)
from .s3_errors import MISSING, code_of, translated
from .s3_writes import PART, Writes, compare, etag_of, headers_of
from .streams import Threads, blocks, digest, save

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import (
        CompletedPartTypeDef,
        GetObjectOutputTypeDef,
        HeadObjectOutputTypeDef,
    )

_THREADS: Final = 16
_BATCH: Final = 1000


def open_s3(
    *,
    endpoint: str | None,
    public_endpoint: str | None,
    bucket: str,
    region: str,
    access_key: str,
    secret_key: str,
    addressing: Literal["path", "virtual"] = "path",
    aws: bool = False,
    supports_post: bool = True,
    public_base_url: str | None = None,
) -> S3Storage:
    """Opens an existing bucket.

    endpoint: the store's URL for this process; empty for AWS. public_endpoint: its URL for clients
    (the host is part of a signature); empty if it is the same. aws: uses checksums that AWS has and
    other stores may lack. supports_post: False for stores without POST policies (Cloudflare R2).
    public_base_url: the start of public URLs, for a CDN; without it the bucket's policy must let
    anyone read `public/*`.

    Of several concurrent writers with `if_absent` in one process, one wins. Between processes that
    depends on the store: AWS, MinIO and R2 decide atomically; versitygw on a POSIX file system
    checks before it writes, so two may win there.
    """
    import boto3  # slow to import, and not needed with the disk backend
    from botocore.config import Config

    options: dict[str, Any] = {
        "signature_version": "s3v4",
        "s3": {"addressing_style": addressing, "payload_signing_enabled": True},
        "retries": {"mode": "standard", "max_attempts": 4},
        "connect_timeout": 3,
        "read_timeout": 30,
        "max_pool_connections": _THREADS,
    }
    if not aws:
        options |= {
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
    session = boto3.session.Session(access_key, secret_key, region_name=region)
    client, signer = (
        session.client("s3", endpoint_url=url or None, config=Config(**options))
        for url in (endpoint, public_endpoint or endpoint)
    )
    base = (public_base_url or _bucket_url(signer.meta.endpoint_url, bucket, addressing)).rstrip(
        "/"
    )
    return S3Storage(client, signer, bucket, base, supports_post)


def _bucket_url(endpoint: str, bucket: str, addressing: str) -> str:
    if addressing == "path":
        return f"{endpoint.rstrip('/')}/{bucket}"
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{bucket}.{parts.netloc}"


class S3Storage:
    """The Storage of a bucket; the protocol documents the methods."""

    def __init__(
        self, client: S3Client, signer: S3Client, bucket: str, public_base: str, supports_post: bool
    ) -> None:
        self._client = client
        self._signer = signer
        self._bucket = bucket
        self._public_base = public_base
        self._supports_post = supports_post
        self._threads = Threads(_THREADS, "storage-s3")
        self._writes = Writes(client, bucket, self._threads)

    @property
    def supports_post(self) -> bool:
        return self._supports_post

    async def put(
        self,
        key: str,
        source: Source,
        *,
        content_type: str,
        if_absent: bool = False,
        sha256: str | None = None,
        cache_forever: bool = False,
        check: Check | None = None,
    ) -> Stat:
        headers = headers_of(check_key(key), check_content_type(content_type), cache_forever)
        declared = check_digest(sha256)
        if check:
            with tempfile.TemporaryDirectory(prefix="atelier-") as directory:
                path = Path(directory) / "object"
                found = await save(blocks(source, CHUNK, self._threads), path, self._threads)
                compare(key, found, declared)
                await check(path, found)
                return await self.put(
                    key,
                    path,
                    content_type=content_type,
                    if_absent=if_absent,
                    sha256=found,
                    cache_forever=cache_forever,
                )
        if isinstance(source, bytes | Path):
            # The source is read twice: the digest goes into the metadata, which a large object
            # sends before its bytes.
            found = await self._threads.run(digest, source)
            compare(key, found, declared)
            declared = found
        async with aclosing(blocks(source, PART, self._threads)) as parts:
            return await self._writes.put(key, parts, headers, declared, if_absent)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        check_range(start, end)
        if start == end:
            await self.stat(key)
            return
        span: dict[str, Any] = {}
        if start or end is not None:
            span["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        with translated(key):
            try:
                answer = await self._open(key, **span)
            except self._client.exceptions.ClientError as error:
                if code_of(error) == "InvalidRange":  # the range begins at or past the end
                    return
                raise
        async with aclosing(self._body(key, answer["Body"])) as chunks:
            async for chunk in chunks:
                yield chunk

    async def fetch(self, key: str, path: Path) -> Stat:
        with translated(key):
            answer = await self._open(key)
        found = await save(self._body(key, answer["Body"]), path, self._threads)
        try:
            compare(key, found, answer["Metadata"].get("sha256"))
        except ChecksumMismatch:
            path.unlink(missing_ok=True)
            raise
        return replace(_stat(key, answer), sha256=found)

    async def stat(self, key: str) -> Stat:
        return _stat(key, await self._writes.head(key))

    async def copy(
        self,
        source: str,
        target: str,
        *,
        content_type: str | None = None,
        if_absent: bool = False,
        check: Check | None = None,
    ) -> Stat:
        check_key(target)
        head = await self._writes.head(source)
        forever = "immutable" in head.get("CacheControl", "")
        headers = headers_of(
            target, check_content_type(content_type or head["ContentType"]), forever
        )
        sha256 = head["Metadata"].get("sha256")
        if sha256:
            headers["Metadata"]["sha256"] = sha256
        send = partial(
            self._client.copy_object,
            Bucket=self._bucket,
            Key=target,
            CopySource={"Bucket": self._bucket, "Key": source},
            CopySourceIfMatch=head["ETag"],  # copies only the bytes whose facts were read above
            MetadataDirective="REPLACE",
            **headers,
        )
        etag = await self._writes.conclude(target, send, headers, if_absent)
        if check:
            await self._look(target, check)
        return Stat(
            target, head["ContentLength"], etag, sha256, headers["ContentType"], datetime.now(UTC)
        )

    async def delete(self, keys: Iterable[str]) -> None:
        names = iter([check_key(key) for key in keys])
        while batch := list(itertools.islice(names, _BATCH)):
            with translated("delete"):
                answer = await self._threads.run(
                    self._client.delete_objects,
                    Bucket=self._bucket,
                    Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True},
                )
            failed = [
                error for error in answer.get("Errors", []) if error.get("Code") not in MISSING
            ]
            if failed:
                raise StorageError(
                    f"{len(failed)} objects were not deleted, the first with"
                    f" {failed[0].get('Code')}"
                )

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[Stat]:
        more: dict[str, Any] = {
            "Bucket": self._bucket,
            "Prefix": check_prefix(prefix),
            "MaxKeys": _BATCH,
        }
        if after:
            more["StartAfter"] = check_key(after)
        while more:
            with translated("list"):
                page = await self._threads.run(self._client.list_objects_v2, **more)
            for entry in page.get("Contents", []):
                yield Stat(
                    entry["Key"], entry["Size"], etag_of(entry), None, "", entry["LastModified"]
                )
            token = page.get("NextContinuationToken")
            more = {**more, "ContinuationToken": token} if token else {}

    async def sweep(self, older_than: timedelta) -> int:
        before = datetime.now(UTC) - older_than
        with translated("sweep"):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket
            )
            found = await self._threads.run(
                lambda: [upload for page in pages for upload in page.get("Uploads", [])]
            )
            abandoned = [upload for upload in found if upload["Initiated"] < before]
            for upload in abandoned:
                of: dict[str, Any] = {
                    "Bucket": self._bucket,
                    "Key": upload["Key"],
                    "UploadId": upload["UploadId"],
                }
                await self._threads.run(self._client.abort_multipart_upload, **of)
        return len(abandoned)

    async def start_multipart(self, key: str, *, content_type: str) -> str:
        headers = headers_of(check_key(key), check_content_type(content_type), False)
        with translated(key):
            answer = await self._threads.run(
                self._client.create_multipart_upload, Bucket=self._bucket, Key=key, **headers
            )
        return answer["UploadId"]

    def sign_part(
        self, key: str, upload: str, number: int, *, length: int, expires_in: timedelta
    ) -> SignedPut:
        seconds = check_lifetime(expires_in)
        params = {**self._of(key, upload), "PartNumber": number, "ContentLength": length}
        url = self._signer.generate_presigned_url("upload_part", Params=params, ExpiresIn=seconds)
        return SignedPut(url, {"Content-Length": str(length)}, _expires_at(seconds))

    async def list_parts(self, key: str, upload: str) -> Sequence[Part]:
        pages = self._client.get_paginator("list_parts").paginate(**self._of(key, upload))
        with translated(key):
            found = await self._threads.run(
                lambda: [part for page in pages for part in page.get("Parts", [])]
            )
        return [Part(part["PartNumber"], part["Size"], etag_of(part)) for part in found]

    async def complete_multipart(self, key: str, upload: str, parts: Sequence[Part]) -> Stat:
        chosen: Sequence[CompletedPartTypeDef] = [
            {"PartNumber": part.number, "ETag": f'"{part.etag}"'} for part in parts
        ]
        try:
            with translated(key):
                await self._threads.run(
                    self._client.complete_multipart_upload,
                    **self._of(key, upload),
                    MultipartUpload={"Parts": chosen},
                )
            return await self.stat(key)
        except ObjectNotFound:  # another call is joining the parts right now
            raise MultipartEnded(f"{key}: its upload in parts has ended") from None

    async def abort_multipart(self, key: str, upload: str) -> None:
        with suppress(MultipartEnded), translated(key):
            await self._threads.run(self._client.abort_multipart_upload, **self._of(key, upload))

    def _of(self, key: str, upload: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": check_key(key), "UploadId": upload}

    def sign_post(
        self, key: str, *, max_bytes: int, content_type: str, expires_in: timedelta
    ) -> SignedPost:
        seconds = check_lifetime(expires_in)
        answer = self._signer.generate_presigned_post(
            self._bucket,
            check_key(key),
            Fields={"Content-Type": check_content_type(content_type)},
            Conditions=[{"Content-Type": content_type}, ["content-length-range", 1, max_bytes]],
            ExpiresIn=seconds,
        )
        return SignedPost(answer["url"], dict(answer["fields"]), _expires_at(seconds))

    def sign_put(
        self, key: str, *, length: int, content_type: str, expires_in: timedelta
    ) -> SignedPut:
        seconds = check_lifetime(expires_in)
        url = self._signer.generate_presigned_url(
            "put_object",
            Params={
                "Bucket": self._bucket,
                "Key": check_key(key),
                "ContentLength": length,
                "ContentType": check_content_type(content_type),
            },
            ExpiresIn=seconds,
        )
        return SignedPut(
            url, {"Content-Type": content_type, "Content-Length": str(length)}, _expires_at(seconds)
        )

    def sign_get(
        self,
        key: str,
        *,
        expires_in: timedelta,
        file_name: str | None = None,
        content_type: str | None = None,
        inline: bool = False,
    ) -> str:
        shown = inline and content_type is not None and is_raster(content_type)
        params = {
            "Bucket": self._bucket,
            "Key": check_key(key),
            "ResponseContentDisposition": content_disposition(file_name, inline=shown),
        }
        if content_type:
            params["ResponseContentType"] = check_content_type(content_type)
        return self._signer.generate_presigned_url(
            "get_object", Params=params, ExpiresIn=check_lifetime(expires_in)
        )

    def public_url(self, key: str) -> str:
        return f"{self._public_base}/{quote(check_public(key))}"

    async def close(self) -> None:
        await self._threads.close()
        self._client.close()
        self._signer.close()

    async def _look(self, key: str, check: Check) -> None:
        """Runs `check` on the stored copy, since the source may have changed by now. Deletes the
        copy if that fails."""
        try:
            with tempfile.TemporaryDirectory(prefix="atelier-") as directory:
                path = Path(directory) / "object"
                stat = await self.fetch(key, path)
                await check(path, stat.sha256 or "")
        except BaseException:
            await asyncio.shield(self.delete([key]))
            raise

    async def _open(self, key: str, **span: Any) -> GetObjectOutputTypeDef:
        opened = await self._threads.open(
            lambda: _Opened(
                self._client.get_object(Bucket=self._bucket, Key=check_key(key), **span)
            )
        )
        return opened.answer

    async def _body(self, key: str, body: StreamingBody) -> AsyncGenerator[bytes, None]:
        with closing(body):
            while True:
                with translated(key):
                    chunk = await self._threads.run(body.read, CHUNK)
                if not chunk:
                    return
                yield chunk


@dataclass(frozen=True)
class _Opened:
    """An answer whose body has not been read from its connection yet."""

    answer: GetObjectOutputTypeDef

    def close(self) -> None:
        self.answer["Body"].close()


def _stat(key: str, answer: HeadObjectOutputTypeDef | GetObjectOutputTypeDef) -> Stat:
    return Stat(
        key=key,
        size=answer["ContentLength"],
        etag=etag_of(answer),
        sha256=answer["Metadata"].get("sha256"),
        content_type=answer.get("ContentType", ""),
        modified=answer["LastModified"],
    )


def _expires_at(seconds: int) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)
