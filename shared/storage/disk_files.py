"""The files of the disk backend: an object's bytes, then a trailer with what is known of them."""

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
    """An object held open: replacing or deleting it meanwhile changes nothing here. Close it."""

    file: FileIO
    stat: Stat
    cache_forever: bool

    def close(self) -> None:
        self.file.close()

    async def read(self, start: int, end: int | None, threads: Threads) -> AsyncIterator[bytes]:
        """Bytes `start` to `end`, cut to the object, in chunks of 256 KiB."""
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
    """A file being written, made with the first call.

    All steps take one lock: when a caller is cancelled, its last write may still be in a thread,
    and `discard` must follow it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.hashed = hashlib.sha256()
        self._lock = threading.Lock()
        self._file: FileIO | None = None
        self._discarded = False
        self._sent = 0  # bytes that are on their way to the disk

    def write(self, pieces: Sequence[bytes]) -> None:
        """Add to the object's bytes."""
        with self._lock:
            file = self._opened()
            # In one piece: after each of these calls the thread waits until it may go on, for long
            # beside a busy loop.
            whole = b"".join(pieces)
            self.hashed.update(whole)
            self.size += len(whole)
            _write_all(file, whole)
            if self.size - self._sent >= _SEND:
                # This begins to write to the disk without waiting for it, so that the last flush
                # finds little to do.
                os.posix_fadvise(
                    file.fileno(), self._sent, self.size - self._sent, os.POSIX_FADV_DONTNEED
                )
                self._sent = self.size

    def copy(self, opened: OpenObject) -> None:
        """Add the bytes of another object."""
        self.write([])  # even without bytes there is a file
        start = 0
        while start < opened.stat.size:
            # At a position: a caller that was cancelled may have closed the file, and its number be
            # another one's.
            piece = os.pread(opened.file.fileno(), min(BLOCK, opened.stat.size - start), start)
            if not piece:
                raise _too_short(opened)
            self.write([piece])
            start += len(piece)

    def flush(self) -> None:
        """Flush to the disk what was written so far."""
        with self._lock:
            if self._file and not self._discarded:
                os.fsync(self._file.fileno())

    def finish(self, trailer: dict[str, Any]) -> float:
        """Append the trailer and flush to the disk; answers the file's time."""
        with self._lock:
            text = json.dumps(trailer).encode()
            file = self._opened()
            _write_all(file, text + _TAIL.pack(len(text), _MAGIC))
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_mtime

    def close(self) -> None:
        """Keep the file under the name that it has."""
        if self._file:
            self._file.close()

    def discard(self) -> None:
        """Close the file and remove its temporary name, if it still has it. A later write is
        refused."""
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
    """The object, or None: a folder or a link is no object, nor is a file that was not completely
    written here."""
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
    """Turn what the file system says into this package's errors."""
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
