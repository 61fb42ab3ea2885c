"""Moving bytes between tasks and threads in bounded memory; what both backends share."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Final, ParamSpec, TypeVar

from .base import Source, StorageFull

P = ParamSpec("P")
T = TypeVar("T")

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the operating system says when a disk, a quota or a file-size limit is used up."""

BLOCK: Final = 1024 * 1024
"""Bytes that are handed to a thread at once: its turn alone costs as much as hashing some tens of
kilobytes."""

_MOST_PIECES: Final = 64


class Threads:
    """A bounded pool for calls that block."""

    def __init__(self, size: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix=name)

    async def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The call's result; if the waiting task is cancelled, a call that has begun still runs to
        its end."""
        return await self.start(call, *args, **kwargs)

    async def open(self, call: Callable[[], T]) -> T:
        """As `run`, for what must be closed, or None: if nobody waits for it any more, it is."""
        opening = self.start(call)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close)
            raise

    def start(
        self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """Begin the call now and hand back its future, so that the caller can prepare the next one
        meanwhile."""
        future = asyncio.wrap_future(self._pool.submit(call, *args, **kwargs))
        # A caller that failed meanwhile no longer asks: that is no reason for the event loop to
        # report it.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    async def insist(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, but the call also happens if the task is cancelled before a thread was free:
        for cleaning up."""
        return await asyncio.shield(self.start(call, *args, **kwargs))

    async def close(self) -> None:
        """Wait for calls in flight, then end the threads."""
        await asyncio.to_thread(self._pool.shutdown)


def _close(opening: asyncio.Future[Any]) -> None:
    if not opening.cancelled() and not opening.exception() and (opened := opening.result()):
        opened.close()


async def blocks(source: Source, size: int, threads: Threads) -> AsyncGenerator[bytes, None]:
    """The bytes of `source`, every block but the last of exactly `size` bytes; no empty block."""
    if isinstance(source, bytes):
        for start in range(0, len(source), size):
            yield source[start : start + size]
        return
    chunks = _file_chunks(source, threads) if isinstance(source, Path) else source
    held = bytearray()
    async for chunk in chunks:
        if not held and len(chunk) == size:
            yield chunk
            continue
        held += chunk
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


async def batches(source: Source, threads: Threads) -> AsyncGenerator[list[bytes], None]:
    """The bytes of `source` in pieces as they come, some 1 MiB at a time."""
    if isinstance(source, bytes):
        yield [source]
        return
    held: list[bytes] = []
    size = 0
    async for piece in _file_chunks(source, threads) if isinstance(source, Path) else source:
        held.append(piece)
        size += len(piece)
        if (
            size >= BLOCK or len(held) == _MOST_PIECES
        ):  # whoever sends a byte at a time is not to fill the memory
            yield held
            held, size = [], 0
    if held:
        yield held


async def _file_chunks(path: Path, threads: Threads) -> AsyncIterator[bytes]:
    with await threads.open(lambda: path.open("rb")) as file:
        while chunk := await threads.run(file.read, BLOCK):
            yield chunk


def digest(data: bytes | Path) -> str:
    """The SHA-256 of bytes or of a local file, lower-case hex. Blocks for as long as that takes."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def save(chunks: AsyncIterator[bytes], path: Path, threads: Threads) -> str:
    """Write `chunks` to `path` (mode 0600), which is removed again if anything fails; answers their
    SHA-256.

    Raises StorageFull when the local disk is; other local faults pass as the OSError they are, they
    are the caller's.
    """
    hashed = hashlib.sha256()
    first = await anext(
        chunks, b""
    )  # before the file is made: a missing object must not leave an empty one
    file = await threads.run(_create, path)
    try:
        with file:
            await threads.run(_append, file, hashed, first)
            async for chunk in chunks:
                await threads.run(_append, file, hashed, chunk)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise StorageFull(f"no space left to write {path.name}") from None
        raise
    return hashed.hexdigest()


def _create(path: Path) -> BinaryIO:
    return os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb"
    )


def _append(file: BinaryIO, hashed: hashlib._Hash, chunk: bytes) -> None:
    hashed.update(chunk)
    file.write(chunk)
