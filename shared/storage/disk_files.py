"""The files of the disk backend: an object's bytes, then a trailer with its size, digest and
type."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any, Final

from .base import CHUNK, InvalidKey, Stat, StorageError, StorageFull, StorageUnavailable
from .streams import BLOCK, FULL, Threads

_MAGIC: Final = b"ATL1"
_TAIL: Final = struct.Struct(">I4s")
_MAX_TRAILER: Final = 1024
_SEND: Final = 8 * 1024 * 1024
_MISPLACED: Final = frozenset(
    {errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP}
)
_NO_OBJECT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
_PASSING: Final = frozenset(
    {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN}
)


@dataclass(frozen=True)
class OpenObject:
    """An open object, unaffected by replacing or deleting the object meanwhile. The caller closes
    it."""

    file: FileIO
    stat: Stat
    cache_forever: bool

    def close(self) -> None:
        self.file.close()

    async def read(self, start: int, end: int | None, threads: Threads) -> AsyncIterator[bytes]:
        """Yields bytes `start` to `end`, clipped to the object, in chunks of 256 KiB."""
        stop = self.stat.size if end is None else min(end, self.stat.size)
        while start < stop:
            chunk = await threads.run(os.pread, self.file.fileno(), min(CHUNK, stop - start), start)
            if not chunk:
                raise _too_short(self)
            yield chunk
            start += len(chunk)


def _too_short(opened: OpenObject) -> StorageError:
    return StorageError(f"{opened.stat.key} is shorter than its trailer says")


class Temporary:
    """A file being written; the first write creates it.

    All steps take one lock: the last write of a cancelled caller may still run in a thread, and
    `discard` must wait for it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.hashed = hashlib.sha256()
        self._lock = threading.Lock()
        self._file: FileIO | None = None
        self._discarded = False
        self._sent = 0  # bytes whose write to the disk was started

    def write(self, pieces: Sequence[bytes]) -> None:
        """Appends to the object's bytes."""
        with self._lock:
            file = self._opened()
            # One piece means fewer calls: after each, the thread must get the GIL back, which takes
            # long beside a busy event loop.
            whole = b"".join(pieces)
            self.hashed.update(whole)
            self.size += len(whole)
            _write_all(file, whole)
            if self.size - self._sent >= _SEND:
                # This starts writing to the disk without waiting, so that the final flush has
                # little to do.
                os.posix_fadvise(
                    file.fileno(), self._sent, self.size - self._sent, os.POSIX_FADV_DONTNEED
                )
                self._sent = self.size

    def copy(self, opened: OpenObject) -> None:
        """Appends the bytes of another object."""
        self.write([])  # creates the file even if the object is empty
        start = 0
        while start < opened.stat.size:
            # pread leaves the file's position alone: a cancelled caller may have closed the file,
            # and its descriptor may be another file's by now.
            piece = os.pread(opened.file.fileno(), min(BLOCK, opened.stat.size - start), start)
            if not piece:
                raise _too_short(opened)
            self.write([piece])
            start += len(piece)

    def flush(self) -> None:
        """Flushes the bytes written so far to the disk."""
        with self._lock:
            if self._file and not self._discarded:
                os.fsync(self._file.fileno())

    def finish(self, trailer: dict[str, Any]) -> float:
        """Appends the trailer and flushes to the disk; returns the file's modification time."""
        with self._lock:
            text = json.dumps(trailer).encode()
            file = self._opened()
            _write_all(file, text + _TAIL.pack(len(text), _MAGIC))
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_mtime

    def close(self) -> None:
        """Closes the file and keeps it under its current name."""
        if self._file:
            self._file.close()

    def discard(self) -> None:
        """Closes the file and removes its temporary name, if it still has it. Later writes raise
        StorageError."""
        with self._lock:
            self._discarded = True
            if self._file:
                self._file.close()
                self.path.unlink(missing_ok=True)

    def _opened(self) -> FileIO:
        if self._discarded:
            raise StorageError("the write was given up")
        if self._file is None:
            self._file = FileIO(
                self.path, "x", opener=lambda path, flags: os.open(path, flags, 0o600)
            )
        return self._file


def _write_all(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file.fileno(), rest) :]


def open_object(path: Path, key: str) -> OpenObject | None:
    """Opens the object. Returns None for a folder, a link, or a file that this backend didn't write
    completely."""
    try:
        file = FileIO(path, "r", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW))
        status = os.fstat(file.fileno())
        trailer = read_trailer(file.fileno(), status.st_size)
    except OSError as error:
        if error.errno in _NO_OBJECT:
            return None
        raise
    if trailer is None:
        file.close()
        return None
    return OpenObject(file, stat_of(key, trailer, status.st_mtime), trailer["cache_forever"])


def read_trailer(descriptor: int, file_size: int) -> dict[str, Any] | None:
    tail = os.pread(descriptor, _MAX_TRAILER, max(0, file_size - _MAX_TRAILER))
    if len(tail) < _TAIL.size:
        return None
    length, magic = _TAIL.unpack(tail[-_TAIL.size :])
    if magic != _MAGIC or length > len(tail) - _TAIL.size:
        return None
    trailer: dict[str, Any] = json.loads(tail[-_TAIL.size - length : -_TAIL.size])
    return trailer if trailer["size"] + length + _TAIL.size == file_size else None


def stat_of(key: str, trailer: dict[str, Any], modified: float) -> Stat:
    digest: str = trailer["sha256"]
    return Stat(
        key=key,
        size=trailer["size"],
        etag=digest[:32],
        sha256=digest,
        content_type=trailer["content_type"],
        modified=datetime.fromtimestamp(modified, UTC),
    )


def flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def translated(subject: str) -> Iterator[None]:
    """Raises this package's errors for those of the file system."""
    try:
        yield
    except OSError as error:
        code, text = error.errno or 0, error.strerror or type(error).__name__
        if code in FULL:
            raise StorageFull(f"{subject}: no space left") from None
        if code in _MISPLACED:
            raise InvalidKey(
                f"{subject}: a key can't be another key's folder, or its path is too long"
            ) from None
        if code in _PASSING:
            raise StorageUnavailable(f"{subject}: {text}") from None
        raise StorageError(f"{subject}: {text}") from None
