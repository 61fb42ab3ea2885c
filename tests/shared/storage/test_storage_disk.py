"""The disk backend keeps files private, whole after a crash, and leaves none when the disk is
full."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import pytest

from shared.storage import (
    ChecksumMismatch,
    ObjectNotFound,
    Storage,
    StorageError,
    open_disk,
    read_secret,
)
from shared.storage.streams import Threads
from tests.shared.storage.servers import PROJECT

SECRET = b"s" * 32
KEY = "assets/user%3Aada/photos/1/2"
MIB = 1024 * 1024


async def test_what_is_opened_for_somebody_who_has_gone_is_closed(tmp_path: Path) -> None:
    threads = Threads(1, "test")
    begun, go_on = threading.Event(), threading.Event()
    opened: list[BinaryIO] = []

    def open_slowly() -> BinaryIO:
        begun.set()
        go_on.wait()
        opened.append((tmp_path / "file").open("wb"))
        return opened[0]

    opening = asyncio.create_task(threads.open(open_slowly))
    await asyncio.to_thread(begun.wait)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    go_on.set()
    await threads.close()
    await asyncio.sleep(0.01)
    assert opened[0].closed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def disk(root: Path) -> AsyncIterator[Storage]:
    opened = open_disk(root, base_url="http://127.0.0.1:1", secret=SECRET)
    yield opened
    await opened.close()


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


async def test_nobody_else_can_read_the_files(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        disk = open_disk(tmp_path / "a" / "store", base_url="http://127.0.0.1:1", secret=SECRET)
        await disk.put(KEY, b"x", content_type="image/png")
        await disk.close()
    finally:
        os.umask(before)

    for path in [tmp_path / "a/store", *(tmp_path / "a/store").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


async def test_an_object_begins_with_its_bytes(disk: Storage, root: Path) -> None:
    await disk.put(KEY, b"\x89PNG picture", content_type="image/png")
    (path,) = files(root)
    assert path == root / "data" / KEY
    assert path.read_bytes().startswith(b"\x89PNG picture")


async def test_deleting_the_last_object_leaves_no_folder(disk: Storage, root: Path) -> None:
    await disk.put(KEY, b"x", content_type="image/png")
    await disk.delete([KEY])
    assert sorted(path.name for path in root.rglob("*")) == ["data", "incoming"]


async def test_deleting_many_objects_in_any_order_leaves_no_folder(
    disk: Storage, root: Path
) -> None:
    ends = ("original/1", "variants/small", "variants/thumb")
    keys = [
        f"assets/user/{number}/{end}" for end in ends for number in range(400)
    ]  # more than one thread handles
    for key in keys:
        path = root / "data" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")

    await disk.delete([*keys, "assets/user/never/there"])
    assert sorted(path.name for path in root.rglob("*")) == ["data", "incoming"]


async def test_puts_and_deletes_in_one_folder_do_not_disturb_each_other(disk: Storage) -> None:
    async def come_and_go(number: int) -> None:
        for _ in range(15):
            await disk.put(f"a/b/{number}", b"x", content_type="image/png")
            await disk.delete([f"a/b/{number}"])

    await asyncio.gather(*map(come_and_go, range(8)))
    assert [found async for found in disk.list("")] == []


PUT_FOREVER = """
import asyncio, sys
from pathlib import Path
from shared.storage import open_disk

async def source():
    yield b"x" * 1_000_000
    yield b"x" * 1_000_000
    print("stalled", flush=True)
    await asyncio.Event().wait()

disk = open_disk(Path(sys.argv[1]), base_url="http://127.0.0.1:1", secret=b"s" * 32)
asyncio.run(disk.put(sys.argv[2], source(), content_type="image/png"))
"""


async def test_a_killed_put_leaves_no_object_and_is_swept(disk: Storage, root: Path) -> None:
    await disk.put(KEY, b"before", content_type="image/png")
    command = [sys.executable, "-c", PUT_FOREVER, str(root), KEY]
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stdout=subprocess.PIPE
    )
    assert process.stdout
    assert await process.stdout.readline() == b"stalled\n"
    async with asyncio.timeout(20):
        while len(files(root)) == 1:  # a thread creates the file while the next bytes are awaited
            await asyncio.sleep(0.01)

    process.kill()
    await process.wait()
    assert [chunk async for chunk in disk.get(KEY)] == [b"before"]
    assert [found.key async for found in disk.list("")] == [KEY]
    assert await disk.sweep(timedelta(hours=1)) == 0  # the put may still be running
    assert await disk.sweep(timedelta(0)) == 1
    assert len(files(root)) == 1


PUT_TOO_MUCH = """
import asyncio, json, resource, sys
from pathlib import Path
from shared.storage import StorageError, open_disk

async def pieces(size):
    for _ in range(size // 100_000):
        yield b"x" * 100_000

async def attempt(call):
    try:
        await call
        return "stored"
    except StorageError as error:
        return type(error).__name__

async def main():
    root, limited = Path(sys.argv[1]), sys.argv[2] == "limited"
    disk = open_disk(root, base_url="http://127.0.0.1:1", secret=b"s" * 32)
    if limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
    outcomes = [
        await attempt(disk.put("a/kept", pieces(1_000_000), content_type="image/png")),
        await attempt(disk.put("a/stream", pieces(9_000_000), content_type="image/png")),
        await attempt(
            disk.put("a/bytes", b"x" * 9_000_000, content_type="image/png", if_absent=True)
        ),
        await attempt(disk.put("a/kept", pieces(9_000_000), content_type="image/png")),
    ]
    listed = [[found.key, found.size] async for found in disk.list("")]
    left = len(list((root / "incoming").iterdir()))
    outcomes.append(await attempt(disk.put("a/after", pieces(1_000_000), content_type="image/png")))
    print(json.dumps([outcomes, listed, left]))

asyncio.run(main())
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Mounts a file system of 4 MB. Where that isn't possible, the process gets a limit on file
    sizes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        yield folder, "limited"
        return
    try:
        yield folder, "mounted"
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("way", ["full", "limited"])
def test_a_full_disk_is_said_and_nothing_is_left(
    small_disk: tuple[Path, str], tmp_path: Path, way: str
) -> None:
    folder, kind = small_disk if way == "full" else (tmp_path / "large", "limited")
    ended = subprocess.run(
        [sys.executable, "-c", PUT_TOO_MUCH, str(folder / "store"), kind],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr

    outcomes, listed, left = json.loads(ended.stdout)
    assert outcomes == ["stored", "StorageFull", "StorageFull", "StorageFull", "stored"]
    assert listed == [["a/kept", 1_000_000]]
    assert left == 0


async def test_a_damaged_object_is_neither_fetched_nor_copied(
    disk: Storage, root: Path, tmp_path: Path
) -> None:
    await disk.put(KEY, b"x" * MIB, content_type="image/png")
    with (root / "data" / KEY).open("r+b") as file:
        file.seek(500_000)
        file.write(b"y")

    with pytest.raises(ChecksumMismatch):
        await disk.fetch(KEY, tmp_path / "file")
    with pytest.raises(ChecksumMismatch):
        await disk.copy(KEY, "assets/copy")
    assert not (tmp_path / "file").exists()
    assert [found.key async for found in disk.list("")] == [KEY]


@pytest.mark.parametrize("keep", [0, 3, 10, 60])
async def test_a_file_that_is_not_whole_is_no_object(disk: Storage, root: Path, keep: int) -> None:
    await disk.put(KEY, b"0123456789", content_type="image/png")
    os.truncate(root / "data" / KEY, keep)
    with pytest.raises(ObjectNotFound):
        await disk.stat(KEY)
    assert [found async for found in disk.list("")] == []
    await disk.put(KEY, b"whole again", content_type="image/png")
    assert [chunk async for chunk in disk.get(KEY)] == [b"whole again"]


async def test_a_link_out_of_the_root_is_no_object(
    disk: Storage, root: Path, tmp_path: Path
) -> None:
    await disk.put("real", b"x", content_type="image/png")
    (root / "data/link").symlink_to(root / "data/real")
    with pytest.raises(ObjectNotFound):
        await disk.stat("link")
    assert [found.key async for found in disk.list("")] == ["real"]


async def test_a_missing_or_unwritable_target_of_fetch_is_the_callers(
    disk: Storage, tmp_path: Path
) -> None:
    await disk.put(KEY, b"x", content_type="image/png")
    with pytest.raises(FileNotFoundError):
        await disk.fetch(KEY, tmp_path / "no/such/folder/file")


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        open_disk(tmp_path / "file", base_url="http://127.0.0.1:1", secret=SECRET)


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("short\n")
    with pytest.raises(ValueError, match="32 bytes"):
        read_secret(tmp_path / "secret")
    with pytest.raises(ValueError, match="32 bytes"):
        open_disk(tmp_path / "store", base_url="http://127.0.0.1:1", secret=b"short")


def test_a_cdn_stands_in_public_urls_only(tmp_path: Path) -> None:
    disk = open_disk(
        tmp_path,
        base_url="https://files.example/",
        secret=SECRET,
        public_base_url="https://cdn.example/pictures/",
    )
    assert disk.public_url("public/a b") == "https://cdn.example/pictures/public/a%20b"

    url = disk.sign_get("public/a b", expires_in=timedelta(hours=1))
    assert url.startswith("https://files.example/o/public/a%20b?")
