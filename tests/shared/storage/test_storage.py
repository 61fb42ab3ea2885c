"""The promises of every backend to a program: the same tests run against each real store."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shared.storage import (
    ChecksumMismatch,
    InvalidKey,
    ObjectExists,
    ObjectNotFound,
    Source,
    Stat,
    Storage,
)

CHUNK = 256 * 1024
LARGE = os.urandom(CHUNK) * 70 + b"tail"  # 17.5 MiB: three parts on S3
PHOTO = os.urandom(700_000)


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read(storage: Storage, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in storage.get(key, start, end)])


async def names(storage: Storage, prefix: str) -> list[str]:
    return [found.key async for found in storage.list(prefix)]


async def assert_nothing_left(storage: Storage, key: str) -> None:
    with pytest.raises(ObjectNotFound):
        await storage.stat(key)
    assert await names(storage, key) == []
    assert await storage.sweep(timedelta(seconds=-5)) == 0  # no unfinished write, of any age


@pytest.mark.parametrize("data", [b"", b"x", PHOTO, LARGE], ids=["empty", "byte", "photo", "large"])
@pytest.mark.parametrize("kind", ["bytes", "path", "stream"])
async def test_what_was_put_is_read_back(
    storage: Storage, key: str, tmp_path: Path, kind: str, data: bytes
) -> None:
    (tmp_path / "source").write_bytes(data)
    sources: dict[str, Source] = {
        "bytes": data,
        "path": tmp_path / "source",
        "stream": pieces(data),
    }

    put = await storage.put(key, sources[kind], content_type="image/jpeg")
    assert put.size == len(data)
    assert put.sha256 == hashlib.sha256(data).hexdigest()
    assert await read(storage, key) == data


@pytest.mark.parametrize("data", [b"", PHOTO, LARGE], ids=["empty", "photo", "large"])
@pytest.mark.parametrize("kind", ["bytes", "path", "stream"])
async def test_a_check_sees_the_bytes_before_anybody_else(
    storage: Storage, key: str, tmp_path: Path, kind: str, data: bytes
) -> None:
    (tmp_path / "source").write_bytes(data)
    sources: dict[str, Callable[[], Source]] = {
        "bytes": lambda: data,
        "path": lambda: tmp_path / "source",
        "stream": lambda: pieces(data),
    }
    seen: list[tuple[bytes, str]] = []

    class Disliked(Exception):
        pass

    async def look(path: Path, sha256: str) -> None:
        with pytest.raises(ObjectNotFound):
            await storage.stat(key)
        seen.append((path.read_bytes(), sha256))

    async def dislike(path: Path, sha256: str) -> None:
        raise Disliked

    with pytest.raises(Disliked):
        await storage.put(key, sources[kind](), content_type="image/jpeg", check=dislike)
    await assert_nothing_left(storage, key)
    put = await storage.put(key, sources[kind](), content_type="image/jpeg", check=look)
    assert seen == [(data, put.sha256)] == [(data, hashlib.sha256(data).hexdigest())]
    assert await read(storage, key) == data and (await storage.stat(key)).sha256 == put.sha256


async def test_stat_tells_what_is_known(storage: Storage, key: str) -> None:
    put = await storage.put(key, PHOTO, content_type="image/webp")
    found = await storage.stat(key)
    assert found == Stat(key, len(PHOTO), put.etag, put.sha256, "image/webp", found.modified)
    assert abs(found.modified - datetime.now(UTC)) < timedelta(minutes=5)


async def test_the_digest_of_what_is_no_stream_is_recorded_at_any_size(
    storage: Storage, new_key: Callable[[], str], tmp_path: Path
) -> None:
    (tmp_path / "source").write_bytes(LARGE)
    sources: list[Source] = [LARGE, tmp_path / "source"]
    for source in sources:
        key = new_key()
        put = await storage.put(key, source, content_type="image/tiff")
        assert (await storage.stat(key)).sha256 == put.sha256 == hashlib.sha256(LARGE).hexdigest()


async def test_a_declared_digest_of_a_large_stream_is_recorded(storage: Storage, key: str) -> None:
    digest = hashlib.sha256(LARGE).hexdigest()
    await storage.put(key, pieces(LARGE), content_type="image/tiff", sha256=digest.upper())
    assert (await storage.stat(key)).sha256 == digest


async def test_other_bytes_have_another_etag(storage: Storage, key: str) -> None:
    first = await storage.put(key, b"first", content_type="image/png")
    second = await storage.put(key, b"second", content_type="image/png")
    assert first.etag != second.etag
    assert await read(storage, key) == b"second"


async def test_chunks_have_256_kib(storage: Storage, key: str) -> None:
    await storage.put(key, PHOTO, content_type="image/png")
    sizes = [len(chunk) async for chunk in storage.get(key)]
    assert sizes == [CHUNK, CHUNK, len(PHOTO) - 2 * CHUNK]


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, 10),
        (5, 5),
        (1, None),
        (300_000, 600_001),
        (699_999, 900_000),
        (700_000, None),
        (800_000, 900_000),
    ],
)
async def test_a_range_is_a_slice(storage: Storage, key: str, start: int, end: int | None) -> None:
    await storage.put(key, PHOTO, content_type="image/png")
    assert await read(storage, key, start, end) == PHOTO[start:end]


async def test_a_range_of_an_empty_object_is_empty(storage: Storage, key: str) -> None:
    await storage.put(key, b"", content_type="image/png")
    assert await read(storage, key, 0, 10) == b""


@pytest.mark.parametrize(("start", "end"), [(-1, None), (5, 4)])
async def test_an_impossible_range_is_refused(
    storage: Storage, key: str, start: int, end: int | None
) -> None:
    with pytest.raises(ValueError):
        await read(storage, key, start, end)


async def test_a_missing_object_is_not_found(
    storage: Storage, key: str, new_key: Callable[[], str], tmp_path: Path
) -> None:
    with pytest.raises(ObjectNotFound):
        await anext(storage.get(key))
    with pytest.raises(ObjectNotFound):
        await anext(storage.get(key, 3, 3))
    with pytest.raises(ObjectNotFound):
        await storage.stat(key)
    with pytest.raises(ObjectNotFound):
        await storage.copy(key, new_key())
    with pytest.raises(ObjectNotFound):
        await storage.fetch(key, tmp_path / "file")
    assert not (tmp_path / "file").exists()


async def test_a_reader_that_stops_early_disturbs_nobody(storage: Storage, key: str) -> None:
    await storage.put(key, LARGE, content_type="image/png")
    chunks = storage.get(key)
    assert await anext(chunks) == LARGE[:CHUNK]
    del chunks
    assert await read(storage, key, len(LARGE) - 4) == b"tail"


async def test_if_absent_leaves_what_is_there(storage: Storage, key: str) -> None:
    await storage.put(key, b"first", content_type="image/png", if_absent=True)
    for data in (b"second", LARGE):
        with pytest.raises(ObjectExists):
            await storage.put(key, pieces(data), content_type="image/png", if_absent=True)
    assert await read(storage, key) == b"first"
    assert await storage.sweep(timedelta(seconds=-5)) == 0


async def test_of_sixteen_concurrent_puts_one_wins(storage: Storage, key: str) -> None:
    async def attempt(number: int) -> Stat | None:
        try:
            return await storage.put(
                key, bytes([number]) * 50_000, content_type="image/png", if_absent=True
            )
        except ObjectExists:
            return None

    won = [put for put in await asyncio.gather(*map(attempt, range(16))) if put]
    assert len(won) == 1
    assert hashlib.sha256(await read(storage, key)).hexdigest() == won[0].sha256


async def test_concurrent_puts_leave_one_whole_object(storage: Storage, key: str) -> None:
    sources = [bytes([number]) * 400_000 for number in range(8)]
    await asyncio.gather(
        *(storage.put(key, pieces(data), content_type="image/png") for data in sources)
    )
    assert await read(storage, key) in sources


@pytest.mark.parametrize("data", [PHOTO, LARGE], ids=["photo", "large"])
@pytest.mark.parametrize("kind", ["bytes", "path", "stream"])
async def test_a_wrong_digest_leaves_nothing(
    storage: Storage, key: str, tmp_path: Path, kind: str, data: bytes
) -> None:
    (tmp_path / "source").write_bytes(data)
    sources: dict[str, Source] = {
        "bytes": data,
        "path": tmp_path / "source",
        "stream": pieces(data),
    }

    with pytest.raises(ChecksumMismatch):
        await storage.put(key, sources[kind], content_type="image/png", sha256="0" * 64)
    await assert_nothing_left(storage, key)


@pytest.mark.parametrize("data", [PHOTO, LARGE], ids=["photo", "large"])
async def test_a_source_that_fails_leaves_nothing(storage: Storage, key: str, data: bytes) -> None:
    async def broken() -> AsyncIterator[bytes]:
        async for piece in pieces(data):
            yield piece
        raise ConnectionResetError("the caller went away")

    with pytest.raises(ConnectionResetError):
        await storage.put(key, broken(), content_type="image/png")
    await assert_nothing_left(storage, key)


@pytest.mark.parametrize("data", [PHOTO, LARGE], ids=["photo", "large"])
async def test_a_cancelled_put_leaves_what_was_there(
    storage: Storage, key: str, data: bytes
) -> None:
    await storage.put(key, b"before", content_type="image/png")
    stalled = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        async for piece in pieces(data):
            yield piece
        stalled.set()
        await asyncio.Event().wait()

    put = asyncio.create_task(storage.put(key, stalling(), content_type="image/png"))
    await stalled.wait()
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    assert await read(storage, key) == b"before"
    assert await storage.sweep(timedelta(seconds=-5)) == 0


async def test_fetch_writes_a_private_file_and_its_digest(
    storage: Storage, key: str, tmp_path: Path
) -> None:
    await storage.put(key, pieces(LARGE), content_type="image/png")
    found = await storage.fetch(key, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == LARGE
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    assert (found.size, found.sha256) == (len(LARGE), hashlib.sha256(LARGE).hexdigest())


async def test_a_copy_takes_its_facts_along(
    storage: Storage, key: str, new_key: Callable[[], str]
) -> None:
    put = await storage.put(key, PHOTO, content_type="image/png")
    same, other = new_key(), new_key()
    copied = await storage.copy(key, same)

    await storage.copy(key, other, content_type="image/webp")
    assert (copied.key, copied.sha256, copied.size) == (same, put.sha256, len(PHOTO))
    assert await read(storage, same) == await read(storage, other) == PHOTO
    assert [(await storage.stat(each)).content_type for each in (same, other)] == [
        "image/png",
        "image/webp",
    ]
    assert (await storage.stat(same)).sha256 == put.sha256


async def test_a_copy_replaces_unless_told_not_to(
    storage: Storage, new_key: Callable[[], str]
) -> None:
    source, target = new_key(), new_key()
    await storage.put(source, b"new", content_type="image/png")
    await storage.put(target, b"old", content_type="image/png")
    with pytest.raises(ObjectExists):
        await storage.copy(source, target, if_absent=True)
    assert await read(storage, target) == b"old"

    await storage.copy(source, target)
    assert await read(storage, target) == b"new"
    await storage.delete([target])
    await storage.copy(source, target, if_absent=True)
    assert await read(storage, target) == b"new"


@pytest.mark.parametrize("data", [b"", PHOTO, LARGE], ids=["empty", "photo", "large"])
async def test_a_copy_that_a_check_dislikes_is_not_kept(
    storage: Storage, new_key: Callable[[], str], data: bytes
) -> None:
    source, target = new_key(), new_key()
    await storage.put(source, data, content_type="image/png")
    seen: list[tuple[bytes, str]] = []

    async def look(path: Path, sha256: str) -> None:
        await storage.put(source, b"swapped meanwhile", content_type="image/png")
        seen.append((path.read_bytes(), sha256))

    async def dislike(path: Path, sha256: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await storage.copy(source, target, check=dislike)
    await assert_nothing_left(storage, target)
    await storage.copy(source, target, check=look)
    assert seen == [(data, hashlib.sha256(data).hexdigest())]
    assert (
        await read(storage, target) == data and await read(storage, source) == b"swapped meanwhile"
    )


async def test_pieces_of_any_size_make_one_object(storage: Storage, key: str) -> None:
    sizes = [1, 0, 3, *[2] * 200, 5_000_000, 0, *[70_000] * 40, 1]
    data = os.urandom(sum(sizes))

    async def uneven() -> AsyncIterator[bytes]:
        start = 0
        for size in sizes:
            yield data[start : start + size]
            start += size

    put = await storage.put(key, uneven(), content_type="image/tiff")
    assert (put.size, put.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert await read(storage, key) == data


async def test_delete_takes_many_and_minds_none_missing(storage: Storage, folder: str) -> None:
    keys = [f"{folder}{number:02}" for number in range(12)]
    await asyncio.gather(*(storage.put(key, b"x", content_type="image/png") for key in keys))
    await storage.delete([*keys[1:], folder + "never-there"])
    assert await names(storage, folder) == keys[:1]
    await storage.delete(keys)
    await storage.delete(keys)
    await storage.delete([])
    assert await names(storage, folder) == []


async def test_a_key_can_be_used_again_after_its_folder_went(storage: Storage, folder: str) -> None:
    for _ in range(3):
        await storage.put(folder + "deep/down/photo", b"x", content_type="image/png")
        await storage.delete([folder + "deep/down/photo"])
    await storage.put(folder + "deep", b"now an object", content_type="image/png")
    assert await read(storage, folder + "deep") == b"now an object"


async def test_a_key_is_not_another_keys_folder(storage: Storage, folder: str) -> None:
    await storage.put(folder + "a", b"x", content_type="image/png")
    await storage.put(folder + "b/c", b"x", content_type="image/png")
    for key in (folder + "a/b", folder + "b"):
        with pytest.raises(InvalidKey):
            await storage.put(key, b"y", content_type="image/png")
    assert await names(storage, folder) == [folder + "a", folder + "b/c"]


async def test_a_listing_is_in_key_order(storage: Storage, folder: str) -> None:
    ends = ["a-b", "a/c", "a/é", "a0", "a/b/c", "Z", "é", "a b", "a%3A/x", "~"]
    await asyncio.gather(
        *(storage.put(folder + end, b"xyz", content_type="image/png") for end in ends)
    )

    assert await names(storage, folder) == [folder + end for end in sorted(ends, key=str.encode)]
    assert await names(storage, folder + "a/") == [folder + end for end in ("a/b/c", "a/c", "a/é")]
    assert await names(storage, folder + "a") == [
        folder + end for end in ("a b", "a%3A/x", "a-b", "a/b/c", "a/c", "a/é", "a0")
    ]
    assert await names(storage, folder + "nothing") == []
    assert [found.size async for found in storage.list(folder + "Z")] == [3]


async def test_a_listing_goes_on_after_any_key_whether_it_is_there_or_not(
    storage: Storage, folder: str
) -> None:
    keys = [folder + end for end in ("a b", "a/b/c", "a/b/d", "a/c", "a0", "é")]
    for key in keys:
        await storage.put(key, b"x", content_type="image/png")

    for after in (
        *keys,
        folder + "a/b",
        folder + "a/b/cc",
        folder + "a/bb",
        folder + "b",
        folder + "zz",
        "\U0010ffff",
    ):
        left = [key for key in keys if key.encode() > after.encode()]
        assert [found.key async for found in storage.list(folder, after=after)] == left, after
    assert [
        found.key async for found in storage.list(folder + "a/", after=folder + "a/b/c")
    ] == keys[2:4]


@pytest.mark.long
async def test_a_listing_goes_on_past_its_first_page(storage: Storage, folder: str) -> None:
    keys = [f"{folder}{number:04}" for number in range(1_003)]
    for start in range(0, len(keys), 100):
        batch = keys[start : start + 100]
        await asyncio.gather(*(storage.put(key, b"x", content_type="image/png") for key in batch))
    assert await names(storage, folder) == keys
    await storage.delete(keys)
    assert await names(storage, folder) == []


HOSTILE = [
    "",
    "/",
    "/etc/passwd",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../../b",
    "a/./b",
    "a\x00b",
    "a\nb",
    "a\x7fb",
    "a\\..\\b",
    "a/\ud800",
    "x/" * 500,
    "é" * 451,
    "a/" + "b" * 241,
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
async def test_a_hostile_key_is_refused_everywhere(
    storage: Storage, key: str, hostile: str, tmp_path: Path
) -> None:
    await storage.put(key, b"x", content_type="image/png")
    with pytest.raises(InvalidKey):
        await storage.put(hostile, b"x", content_type="image/png")
    with pytest.raises(InvalidKey):
        await anext(storage.get(hostile))
    with pytest.raises(InvalidKey):
        await storage.fetch(hostile, tmp_path / "file")
    with pytest.raises(InvalidKey):
        await storage.stat(hostile)
    with pytest.raises(InvalidKey):
        await storage.copy(key, hostile)
    with pytest.raises(InvalidKey):
        await storage.copy(hostile, key)
    with pytest.raises(InvalidKey):
        await storage.delete([key, hostile])
    with pytest.raises(InvalidKey):
        storage.sign_get(hostile, expires_in=timedelta(minutes=1))
    with pytest.raises(InvalidKey):
        storage.sign_put(
            hostile, length=1, content_type="image/png", expires_in=timedelta(minutes=1)
        )
    with pytest.raises(InvalidKey):
        storage.sign_post(
            hostile, max_bytes=1, content_type="image/png", expires_in=timedelta(minutes=1)
        )
    with pytest.raises(InvalidKey):
        storage.public_url(hostile)
    assert await read(storage, key) == b"x"


@pytest.mark.parametrize("prefix", ["../", "/", "a//", "a/../", "a\x00"])
async def test_a_hostile_prefix_is_refused(storage: Storage, prefix: str) -> None:
    with pytest.raises(InvalidKey):
        await names(storage, prefix)


async def test_odd_keys_are_kept_apart(storage: Storage, folder: str) -> None:
    ends = [
        "a%2Fb",
        "a%252Fb",
        "a+b",
        "a b",
        "a?b",
        "a#b",
        "a&b=c",
        "ａ",
        "a\u0301",
        "á",
        "a;b",
        "...",
        "-rf",
    ]
    for end in ends:
        await storage.put(folder + end, end.encode(), content_type="image/png")

    assert [await read(storage, folder + end) for end in ends] == [end.encode() for end in ends]


@pytest.mark.parametrize(
    "content_type", ["", "image", "image/png\r\nX-Evil: 1", "image/é", "a/" + "b" * 300]
)
async def test_a_content_type_that_is_no_header_is_refused(
    storage: Storage, key: str, content_type: str
) -> None:
    with pytest.raises(ValueError):
        await storage.put(key, b"x", content_type=content_type)


async def test_the_event_loop_stays_free(storage: Storage, key: str) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await storage.put(key, LARGE, content_type="image/png")
    await read(storage, key)
    counting.cancel()
    assert turns > 100
