"""Objects in a directory. One file per object: its bytes, then a trailer with what is known of them.

The trailer keeps bytes and facts in one file, so one rename replaces both. Under the root (mode 0700, files 0600):
`data/<key>` are the objects, `incoming/` is where they are written before they get their name.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import itertools
import json
import os
import struct
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import FileIO
from pathlib import Path
from typing import Any, Final

from .base import (
    CHUNK,
    ChecksumMismatch,
    InvalidKey,
    ObjectExists,
    ObjectNotFound,
    SignedPost,
    SignedPut,
    Source,
    Stat,
    StorageError,
    StorageFull,
    StorageUnavailable,
    check_content_type,
    check_digest,
    check_key,
    check_prefix,
    check_range,
)
from .links import Links
from .streams import FULL, Threads, blocks, save

_THREADS: Final = 8
_BATCH: Final = 1000
_PART: Final = 250  # deletes of one thread
_MAGIC: Final = b"ATL1"
_TAIL: Final = struct.Struct(">I4s")
_MAX_TRAILER: Final = 1024
_MISPLACED: Final = frozenset({errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP})
_NO_OBJECT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
_PASSING: Final = frozenset({errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN})


def open_disk(root: Path, *, base_url: str, secret: bytes, public_base_url: str | None = None) -> DiskStorage:
    """Objects under the directory `root`, made if missing.

    base_url: where `python -m shared.storage.http` answers, as clients reach it. secret: at least 32 bytes, the same as
    that server's. public_base_url: stands in public URLs for `<base_url>/o`, for a CDN in front of it.
    """
    with _translated("the storage root"):
        for folder in (root, root / "data", root / "incoming"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return DiskStorage(root, Links(secret, base_url, public_base_url))


@dataclass(frozen=True)
class OpenObject:
    """An object held open: replacing or deleting it meanwhile changes nothing here. Close it."""

    file: FileIO
    stat: Stat
    cache_forever: bool

    async def read(self, start: int, end: int | None, threads: Threads) -> AsyncIterator[bytes]:
        """Bytes `start` to `end`, cut to the object, in chunks of 256 KiB."""
        stop = self.stat.size if end is None else min(end, self.stat.size)
        while start < stop:
            chunk = await threads.run(os.pread, self.file.fileno(), min(CHUNK, stop - start), start)
            if not chunk:
                raise StorageError(f"{self.stat.key} is shorter than its trailer says")
            yield chunk
            start += len(chunk)


class DiskStorage:
    """The Storage of a directory; see the protocol for what each method promises."""

    supports_post = True

    def __init__(self, root: Path, links: Links) -> None:
        self.links = links
        self.threads = Threads(_THREADS, "storage-disk")
        self._data = root / "data"
        self._incoming = root / "incoming"

    async def put(
        self,
        key: str,
        source: Source,
        *,
        content_type: str,
        if_absent: bool = False,
        sha256: str | None = None,
        cache_forever: bool = False,
    ) -> Stat:
        facts = {"content_type": check_content_type(content_type), "cache_forever": cache_forever}
        declared = check_digest(sha256)
        check_key(key)
        async with aclosing(blocks(source, CHUNK, self.threads)) as pieces:
            return await self._write(key, pieces, facts, declared, if_absent)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        check_range(start, end)
        opened = await self.open(key)
        with opened.file:
            async for chunk in opened.read(start, end, self.threads):
                yield chunk

    async def fetch(self, key: str, path: Path) -> Stat:
        opened = await self.open(key)
        with opened.file:
            found = await save(opened.read(0, None, self.threads), path, self.threads)
        if found != opened.stat.sha256:
            path.unlink(missing_ok=True)
            raise ChecksumMismatch(f"{key} is damaged: its bytes are not the recorded ones")
        return opened.stat

    async def stat(self, key: str) -> Stat:
        opened = await self.open(key)
        opened.file.close()
        return opened.stat

    async def copy(self, source: str, target: str, *, content_type: str | None = None, if_absent: bool = False) -> Stat:
        check_key(target)
        opened = await self.open(source)
        # Bytes, not a hard link: the copy needs its own `modified`, by which a fresh object is told from a lost one.
        facts = {
            "content_type": check_content_type(content_type or opened.stat.content_type),
            "cache_forever": opened.cache_forever,
        }
        with opened.file:
            pieces = opened.read(0, None, self.threads)
            return await self._write(target, pieces, facts, opened.stat.sha256, if_absent)

    async def delete(self, keys: Iterable[str]) -> None:
        paths = iter([self._path(key) for key in keys])
        while batch := list(itertools.islice(paths, _BATCH)):
            parts = [batch[start : start + _PART] for start in range(0, len(batch), _PART)]
            with _translated("delete"):
                await asyncio.gather(*(self.threads.run(self._unlink, part) for part in parts))

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[Stat]:
        walk = self._walk(check_prefix(prefix), after)
        while True:
            with _translated("list"):
                page = await self.threads.run(lambda: [*itertools.islice(walk, _BATCH)])
            if not page:
                return
            for stat in page:
                yield stat

    async def sweep(self, older_than: timedelta) -> int:
        with _translated("sweep"):
            return await self.threads.run(self._sweep, time.time() - older_than.total_seconds())

    def sign_post(self, key: str, *, max_bytes: int, content_type: str, expires_in: timedelta) -> SignedPost:
        return self.links.sign_post(key, max_bytes, content_type, expires_in)

    def sign_put(self, key: str, *, length: int, content_type: str, expires_in: timedelta) -> SignedPut:
        return self.links.sign_put(key, length, content_type, expires_in)

    def sign_get(
        self,
        key: str,
        *,
        expires_in: timedelta,
        file_name: str | None = None,
        content_type: str | None = None,
        inline: bool = False,
    ) -> str:
        return self.links.sign_get(key, expires_in, file_name, content_type, inline)

    def public_url(self, key: str) -> str:
        return self.links.public_url(key)

    async def close(self) -> None:
        await self.threads.close()

    async def open(self, key: str) -> OpenObject:
        """The object, held open. Raises ObjectNotFound."""
        path = self._path(key)
        with _translated(key):
            opened = await self.threads.run(_open_object, path, key)
        if opened is None:
            raise ObjectNotFound(f"there is no object {key}")
        return opened

    def _path(self, key: str) -> Path:
        return self._data.joinpath(*check_key(key).split("/"))

    async def _write(
        self, key: str, pieces: AsyncIterator[bytes], facts: dict[str, Any], declared: str | None, if_absent: bool
    ) -> Stat:
        temporary = _Temporary(self._incoming / uuid.uuid4().hex)
        # One block is written while the next arrives; never more than that is held.
        writing: asyncio.Future[None] | None = None
        try:
            async for piece in pieces:
                with _translated(key):
                    if writing:
                        await writing
                    writing = self.threads.start(temporary.write, piece)
            with _translated(key):
                if writing:
                    await writing
            found = temporary.hashed.hexdigest()
            if declared and found != declared:
                raise ChecksumMismatch(f"{key}: the bytes have SHA-256 {found}, declared was {declared}")
            with _translated(key):
                return await self.threads.run(self._publish, temporary, key, facts, if_absent)
        finally:
            await self.threads.insist(temporary.discard)

    def _publish(self, temporary: _Temporary, key: str, facts: dict[str, Any], if_absent: bool) -> Stat:
        trailer = {"size": temporary.size, "sha256": temporary.hashed.hexdigest(), **facts}
        modified = temporary.finish(trailer)
        target = self._path(key)
        for _ in range(20):  # a concurrent delete may take away the folder that was just made
            with suppress(FileNotFoundError):
                _make_folder(target.parent, self._data)
                self._name(temporary.path, target, if_absent)
                break
        else:
            raise StorageUnavailable(f"{key}: its folder keeps disappearing")
        with suppress(FileNotFoundError):  # already deleted again by another caller
            _flush_folder(target.parent)
        return _stat(key, trailer, modified)

    def _name(self, temporary: Path, target: Path, if_absent: bool) -> None:
        if target.is_dir():
            with suppress(OSError):  # a folder that a killed delete left empty
                target.rmdir()
        if not if_absent:
            temporary.replace(target)
            return
        try:
            target.hardlink_to(temporary)
        except FileExistsError:
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "is a folder") from None
            raise ObjectExists(f"{target.relative_to(self._data)} exists already") from None

    def _unlink(self, paths: Sequence[Path]) -> None:
        for path in paths:
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                path.unlink()
        # Each folder is tried once: to find out that a large one still holds something can take long.
        emptied = {path.parent for path in paths}
        while emptied := emptied - {self._data}:
            above = set()
            for folder in emptied:
                with suppress(OSError):  # it still holds something
                    folder.rmdir()
                    above.add(folder.parent)
            emptied = above

    def _walk(self, prefix: str, after: str) -> Iterator[Stat]:
        folder, _, beginning = prefix.rpartition("/")
        passed = os.fsencode(after)
        top = f"{folder}/" if folder else ""
        pending = [iter(_names(self._data, top, beginning))]
        while pending:
            name = next(pending[-1], None)
            if name is None:
                pending.pop()
            elif os.fsencode(name) <= passed and not (name.endswith("/") and after.startswith(name)):
                continue
            elif name.endswith("/"):
                pending.append(iter(_names(self._data, name, "")))
            elif opened := _open_object(self._data / name, name):
                opened.file.close()
                yield opened.stat

    def _sweep(self, before: float) -> int:
        removed = 0
        for path in self._incoming.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()
                    removed += 1
        return removed


class _Temporary:
    """A file being written, made with its first byte.

    All steps take one lock: when a caller is cancelled, its last write may still be in a thread, and `discard` must
    follow it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.hashed = hashlib.sha256()
        self._lock = threading.Lock()
        self._file: FileIO | None = None
        self._discarded = False

    def write(self, piece: bytes) -> None:
        """Add to the object's bytes."""
        with self._lock:
            self.hashed.update(piece)
            self.size += len(piece)
            self._append(piece)

    def finish(self, trailer: dict[str, Any]) -> float:
        """Append the trailer and flush to the disk; answers the file's time."""
        with self._lock:
            text = json.dumps(trailer).encode()
            file = self._append(text + _TAIL.pack(len(text), _MAGIC))
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_mtime

    def discard(self) -> None:
        """Close the file and remove its temporary name, if it still has it. A later write is refused."""
        with self._lock:
            self._discarded = True
            if self._file:
                self._file.close()
                self.path.unlink(missing_ok=True)

    def _append(self, data: bytes) -> FileIO:
        if self._discarded:
            raise StorageError("the write was given up")
        if self._file is None:
            self._file = FileIO(self.path, "x", opener=lambda path, flags: os.open(path, flags, 0o600))
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file.fileno(), rest) :]
        return self._file


def _open_object(path: Path, key: str) -> OpenObject | None:
    """The object, or None: a folder or a link is no object, nor is a file that was not completely written here."""
    try:
        file = FileIO(path, "r", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW))
        status = os.fstat(file.fileno())
        trailer = _read_trailer(file.fileno(), status.st_size)
    except OSError as error:
        if error.errno in _NO_OBJECT:
            return None
        raise
    if trailer is None:
        file.close()
        return None
    return OpenObject(file, _stat(key, trailer, status.st_mtime), trailer["cache_forever"])


def _read_trailer(descriptor: int, file_size: int) -> dict[str, Any] | None:
    tail = os.pread(descriptor, _MAX_TRAILER, max(0, file_size - _MAX_TRAILER))
    if len(tail) < _TAIL.size:
        return None
    length, magic = _TAIL.unpack(tail[-_TAIL.size :])
    if magic != _MAGIC or length > len(tail) - _TAIL.size:
        return None
    trailer: dict[str, Any] = json.loads(tail[-_TAIL.size - length : -_TAIL.size])
    return trailer if trailer["size"] + length + _TAIL.size == file_size else None


def _stat(key: str, trailer: dict[str, Any], modified: float) -> Stat:
    digest: str = trailer["sha256"]
    return Stat(
        key=key,
        size=trailer["size"],
        etag=digest[:32],
        sha256=digest,
        content_type=trailer["content_type"],
        modified=datetime.fromtimestamp(modified, UTC),
    )


def _names(data: Path, folder: str, beginning: str) -> list[str]:
    """Keys and folders (with a slash) in one folder, so sorted that going down into each gives the order of keys."""
    try:
        with os.scandir(data / folder) as entries:
            names = [
                entry.name + ("/" if entry.is_dir(follow_symlinks=False) else "")
                for entry in entries
                if entry.name.startswith(beginning)
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder + name for name in sorted(names, key=os.fsencode)]


def _make_folder(folder: Path, root: Path) -> None:
    """Make the missing folders from `root` down, each durable before the next."""
    missing = list(itertools.takewhile(lambda each: each != root and not each.exists(), (folder, *folder.parents)))
    for each in reversed(missing):
        with suppress(FileExistsError):
            each.mkdir(mode=0o700)
            _flush_folder(each.parent)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(subject: str) -> Iterator[None]:
    """Turn what the file system says into this package's errors."""
    try:
        yield
    except OSError as error:
        code, text = error.errno or 0, error.strerror or type(error).__name__
        if code in FULL:
            raise StorageFull(f"{subject}: no space left") from None
        if code in _MISPLACED:
            raise InvalidKey(f"{subject}: a key can't be another key's folder, or its path is too long") from None
        if code in _PASSING:
            raise StorageUnavailable(f"{subject}: {text}") from None
        raise StorageError(f"{subject}: {text}") from None
