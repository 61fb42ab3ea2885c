"""Writes to a bucket: objects whole or in parts, each made visible by one request that is known
again if its answer is lost."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from .base import (
    ChecksumMismatch,
    MultipartEnded,
    ObjectExists,
    ObjectNotFound,
    Stat,
    StorageError,
    StorageUnavailable,
    cache_control,
    check_key,
    is_raster,
)
from .s3_errors import translated
from .streams import Threads, digest

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import CompletedPartTypeDef, HeadObjectOutputTypeDef

PART: Final = 8 * 1024 * 1024
_WRITE: Final = "atelier-write"


class Writes:
    """Writes the objects of one bucket.

    Headers come from `headers_of`: they mark the write, so that a request which the driver repeats
    after a lost answer is told from another writer's.
    """

    def __init__(self, client: S3Client, bucket: str, threads: Threads) -> None:
        self._client = client
        self._bucket = bucket
        self._threads = threads
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def put(
        self,
        key: str,
        parts: AsyncIterator[bytes],
        headers: dict[str, Any],
        declared: str | None,
        if_absent: bool,
    ) -> Stat:
        """Writes blocks of PART bytes, of which the last may be shorter, as one object. Raises
        ChecksumMismatch if they are not the declared ones."""
        first = await anext(parts, b"")
        if len(first) < PART:
            return await self._put_whole(key, first, headers, declared, if_absent)
        return await self._put_parts(key, first, parts, headers, declared, if_absent)

    async def head(self, key: str) -> HeadObjectOutputTypeDef:
        """Returns the headers of the object that is there. Raises ObjectNotFound."""
        with translated(key):
            return await self._threads.run(
                self._client.head_object, Bucket=self._bucket, Key=check_key(key)
            )

    async def _put_whole(
        self, key: str, body: bytes, headers: dict[str, Any], declared: str | None, if_absent: bool
    ) -> Stat:
        found = await self._threads.run(digest, body)
        compare(key, found, declared)
        headers["Metadata"]["sha256"] = found
        send = partial(self._client.put_object, Bucket=self._bucket, Key=key, Body=body, **headers)
        etag = await self.conclude(key, send, headers, if_absent)
        return Stat(key, len(body), etag, found, headers["ContentType"], datetime.now(UTC))

    async def _put_parts(
        self,
        key: str,
        first: bytes,
        rest: AsyncIterator[bytes],
        headers: dict[str, Any],
        declared: str | None,
        if_absent: bool,
    ) -> Stat:
        if declared:
            headers["Metadata"]["sha256"] = declared
        of: dict[str, Any] = {"Bucket": self._bucket, "Key": key}
        with translated(key):
            of["UploadId"] = (
                await self._threads.run(self._client.create_multipart_upload, **of, **headers)
            )["UploadId"]
        try:
            hashed = hashlib.sha256()
            size, parts = await self._send_parts(of, hashed, first, rest)
            compare(key, found := hashed.hexdigest(), declared)
            send = partial(
                self._client.complete_multipart_upload, **of, MultipartUpload={"Parts": parts}
            )
            etag = await self.conclude(key, send, headers, if_absent)
        except BaseException:
            await self._threads.insist(self._abort, of)
            raise
        return Stat(key, size, etag, found, headers["ContentType"], datetime.now(UTC))

    async def _send_parts(
        self, of: dict[str, Any], hashed: hashlib._Hash, first: bytes, rest: AsyncIterator[bytes]
    ) -> tuple[int, Sequence[CompletedPartTypeDef]]:
        """Sends all parts, each while the next arrives; returns the total size and the list that
        completes the upload."""

        def send(number: int, part: bytes) -> CompletedPartTypeDef:
            hashed.update(part)
            answer = self._client.upload_part(**of, PartNumber=number, Body=part)
            return {"PartNumber": number, "ETag": answer["ETag"]}

        size, sent = len(first), []
        sending = self._threads.start(send, 1, first)
        try:
            async for part in rest:
                with translated(of["Key"]):
                    sent.append(await asyncio.shield(sending))
                sending = self._threads.start(send, len(sent) + 1, part)
                size += len(part)
            with translated(of["Key"]):
                sent.append(await asyncio.shield(sending))
        finally:
            # An upload that is aborted while a part arrives may keep that part.
            await asyncio.wait({sending})
        return size, sent

    async def conclude(
        self, key: str, send: Callable[..., Any], headers: dict[str, Any], if_absent: bool
    ) -> str:
        """Sends the request that makes the object visible; returns its etag. With `if_absent`,
        serialised per key. Raises ObjectExists, StorageUnavailable."""
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        async with self._turn(key) if if_absent else nullcontext():
            # This checks first because some stores ignore the condition, above all on copies.
            if if_absent:
                with suppress(ObjectNotFound):
                    await self.head(key)
                    raise ObjectExists(f"{key} exists already")
            try:
                with translated(key):
                    answer: dict[str, Any] = await self._threads.run(send, **condition)
                return etag_of(answer.get("CopyObjectResult", answer))
            except (ObjectExists, MultipartEnded):
                # The driver repeats a request whose answer was lost, so the existing object may be
                # the one that this call wrote.
                with suppress(ObjectNotFound):
                    there = await self.head(key)
                    if there["Metadata"].get(_WRITE) == headers["Metadata"][_WRITE]:
                        return etag_of(there)
                    if if_absent:
                        raise
                raise StorageUnavailable(f"{key}: another writer was at work") from None

    def _abort(self, of: dict[str, Any]) -> None:
        # The caller reports the error that led here; `sweep` removes what can't be aborted now.
        with suppress(StorageError), translated(of["Key"]):
            self._client.abort_multipart_upload(**of)

    def _turn(self, key: str) -> asyncio.Lock:
        lock = self._turns.get(key)
        if lock is None:
            self._turns[key] = lock = asyncio.Lock()
        return lock


def headers_of(key: str, content_type: str, cache_forever: bool) -> dict[str, Any]:
    """Returns the headers sent with an object's bytes. A random mark in its metadata identifies
    this write."""
    headers: dict[str, Any] = {
        "ContentType": content_type,
        "CacheControl": cache_control(key, cache_forever),
        "Metadata": {_WRITE: uuid.uuid4().hex},
    }
    if not is_raster(content_type):
        headers["ContentDisposition"] = "attachment"  # public URLs set no disposition themselves
    return headers


def compare(key: str, found: str, declared: str | None) -> None:
    """Raises ChecksumMismatch if the digests differ; an absent one is not compared."""
    if declared and found != declared:
        raise ChecksumMismatch(f"{key}: the bytes have SHA-256 {found}, declared was {declared}")


def etag_of(answer: Mapping[str, Any]) -> str:
    """Returns the etag without the quotes that the store puts around it."""
    return str(answer["ETag"]).strip('"')
