"""Uploads in parts: the same tests against each real store."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx
import pytest

from shared.storage import MultipartEnded, ObjectNotFound, Part, Storage, StorageUnavailable

HOUR = timedelta(hours=1)
MIB = 1024 * 1024
FIRST = os.urandom(5 * MIB)
OTHER = os.urandom(60_000)
LAST = os.urandom(70_000)


async def send(
    storage: Storage, http: httpx.AsyncClient, key: str, upload: str, number: int, data: bytes
) -> int:
    signed = storage.sign_part(key, upload, number, length=len(data), expires_in=HOUR)
    return (await http.put(signed.url, headers=signed.headers, content=data)).status_code


async def read(storage: Storage, key: str) -> bytes:
    return b"".join([chunk async for chunk in storage.get(key)])


@pytest.fixture
async def upload(storage: Storage, key: str) -> AsyncIterator[str]:
    started = await storage.start_multipart(key, content_type="image/png")
    yield started
    await storage.abort_multipart(key, started)


async def test_parts_make_an_object_in_the_order_of_their_numbers(
    storage: Storage, http: httpx.AsyncClient, key: str, upload: str
) -> None:
    assert await storage.list_parts(key, upload) == []
    assert await send(storage, http, key, upload, 2, LAST) == 200
    assert await send(storage, http, key, upload, 1, FIRST) == 200
    with pytest.raises(ObjectNotFound):
        await storage.stat(key)

    parts = await storage.list_parts(key, upload)
    assert [(part.number, part.size) for part in parts] == [(1, len(FIRST)), (2, len(LAST))]
    stat = await storage.complete_multipart(key, upload, parts)
    assert (stat.key, stat.size, stat.content_type) == (key, len(FIRST) + len(LAST), "image/png")
    assert await read(storage, key) == FIRST + LAST
    assert (await storage.stat(key)).etag == stat.etag


async def test_a_part_that_is_sent_again_is_replaced(
    storage: Storage, http: httpx.AsyncClient, key: str, upload: str
) -> None:
    await send(storage, http, key, upload, 1, LAST)
    before = await storage.list_parts(key, upload)
    await send(storage, http, key, upload, 1, FIRST)
    after = await storage.list_parts(key, upload)
    assert [part.size for part in after] == [len(FIRST)] and after[0].etag != before[0].etag
    with pytest.raises(StorageUnavailable):
        await storage.complete_multipart(key, upload, before)

    await storage.complete_multipart(key, upload, after)
    assert await read(storage, key) == FIRST


async def test_a_part_url_is_for_one_part_of_one_length(
    storage: Storage, http: httpx.AsyncClient, key: str, upload: str
) -> None:
    signed = storage.sign_part(key, upload, 1, length=len(LAST), expires_in=HOUR)
    longer = await http.put(signed.url, content=LAST + b"x")
    shorter = await http.put(signed.url, content=LAST[:-1])
    assert longer.status_code >= 400 and shorter.status_code >= 400

    parts = urlsplit(signed.url)
    query = dict(parse_qsl(parts.query))
    number = next(name for name in query if name.lower() in ("part", "partnumber"))
    moved = urlunsplit(parts._replace(query=urlencode({**query, number: "2"})))
    assert (await http.put(moved, headers=signed.headers, content=LAST)).status_code == 403

    whole = urlunsplit(
        parts._replace(query=urlencode({n: v for n, v in query.items() if n != number}))
    )
    assert (await http.put(whole, headers=signed.headers, content=LAST)).status_code >= 400
    assert await storage.list_parts(key, upload) == []


@pytest.mark.long
async def test_a_part_url_ends(
    storage: Storage, http: httpx.AsyncClient, key: str, upload: str
) -> None:
    signed = storage.sign_part(key, upload, 1, length=len(LAST), expires_in=timedelta(seconds=1))
    await asyncio.sleep(2.1)
    assert (await http.put(signed.url, headers=signed.headers, content=LAST)).status_code == 403


async def test_a_completed_upload_has_ended(
    storage: Storage, http: httpx.AsyncClient, key: str, upload: str
) -> None:
    await send(storage, http, key, upload, 1, LAST)
    parts = await storage.list_parts(key, upload)
    await storage.complete_multipart(key, upload, parts)
    with suppress(MultipartEnded):  # a store may still know the finished upload
        assert (await storage.complete_multipart(key, upload, parts)).size == len(LAST)
    with pytest.raises(MultipartEnded):
        await storage.list_parts(key, upload)
    assert await send(storage, http, key, upload, 1, OTHER) == 404

    await storage.abort_multipart(key, upload)
    assert await read(storage, key) == LAST, "nothing that came later changed the object"


async def test_an_aborted_upload_leaves_nothing(
    storage: Storage, http: httpx.AsyncClient, key: str, upload: str
) -> None:
    await send(storage, http, key, upload, 1, LAST)
    parts = await storage.list_parts(key, upload)
    await storage.abort_multipart(key, upload)

    await storage.abort_multipart(key, upload)
    assert await send(storage, http, key, upload, 1, LAST) == 404
    with pytest.raises(MultipartEnded):
        await storage.complete_multipart(key, upload, parts)
    with pytest.raises(ObjectNotFound):
        await storage.stat(key)
    assert await storage.sweep(timedelta(seconds=-5)) == 0


async def test_two_that_complete_at_once_make_one_object(
    storage: Storage, http: httpx.AsyncClient, key: str, upload: str
) -> None:
    await send(storage, http, key, upload, 1, FIRST)
    await send(storage, http, key, upload, 2, LAST)
    parts = await storage.list_parts(key, upload)
    calls = (storage.complete_multipart(key, upload, parts) for _ in range(4))
    ended = await asyncio.gather(*calls, return_exceptions=True)
    faults = [each for each in ended if isinstance(each, BaseException)]
    assert len(faults) < 4 and all(isinstance(fault, MultipartEnded) for fault in faults), faults
    assert await read(storage, key) == FIRST + LAST


async def test_uploads_know_their_keys(storage: Storage, key: str, upload: str) -> None:
    for name in ("../../etc", "", "0" * 32, f"{'0' * 32}.parts"):
        with pytest.raises(MultipartEnded):
            await storage.list_parts(key, name or "x")
    with pytest.raises(MultipartEnded):
        await storage.list_parts(key + "-other", upload)


async def test_parts_that_never_came_complete_nothing(
    storage: Storage, http: httpx.AsyncClient, key: str, upload: str
) -> None:
    await send(storage, http, key, upload, 1, FIRST)
    [part] = await storage.list_parts(key, upload)
    with pytest.raises((StorageUnavailable, MultipartEnded)):
        await storage.complete_multipart(key, upload, [part, replace(part, number=2)])
    assert await storage.list_parts(key, upload) == [part], "and nothing is lost"
    assert part == Part(1, len(FIRST), part.etag)


async def test_abandoned_uploads_are_swept(
    storage: Storage, http: httpx.AsyncClient, key: str, upload: str
) -> None:
    await send(storage, http, key, upload, 1, LAST)
    assert await storage.sweep(HOUR) == 0
    assert len(await storage.list_parts(key, upload)) == 1
    assert await storage.sweep(timedelta(seconds=-5)) == 1
    with pytest.raises(MultipartEnded):
        await storage.list_parts(key, upload)
