"""Moves bytes between tasks and threads in bounded memory; used by both backends."""

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
"""Error numbers of the operating system for an exhausted disk, quota or file-size limit."""

BLOCK: Final = 1024 * 1024
"""Bytes passed to a thread at once: a switch to the thread costs as much as hashing some tens of
kilobytes."""

_MOST_PIECES: Final = 64


class Threads:
    """A bounded pool of threads for blocking calls."""

    def __init__(self, size: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix=name)

    async def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs the call in a thread and returns its result. If the waiting task is cancelled, a
        call that has begun still runs to its end."""
        return await self.start(call, *args, **kwargs)

    async def open(self, call: Callable[[], T]) -> T:
        """Does the same as `run` for a call that opens something or returns None. If the waiting
        task is cancelled, the opened thing is closed."""
        opening = self.start(call)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close)
            raise

    def start(
        self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """Starts the call and returns its future, so that the caller can prepare the next one
        meanwhile."""
        future = asyncio.wrap_future(self._pool.submit(call, *args, **kwargs))
        # This retrieves the exception: otherwise the event loop would report it if the caller
        # failed meanwhile and never asks for it.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    async def insist(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Does the same as `run`, but the call also runs if the task is cancelled before a thread
        is free. Use it for cleaning up."""
        return await asyncio.shield(self.start(call, *args, **kwargs))

    async def close(self) -> None:
        """Waits for calls in flight, then ends the threads."""
        await asyncio.to_thread(self._pool.shutdown)


def _close(opening: asyncio.Future[Any]) -> None:
    if not opening.cancelled() and not opening.exception() and (opened := opening.result()):
        opened.close()


async def blocks(source: Source, size: int, threads: Threads) -> AsyncGenerator[bytes, None]:
    """Yields the bytes of `source` in blocks of exactly `size` bytes (the last may be shorter);
    never an empty block."""
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
    """Yields lists of the pieces of `source` as they arrive, some 1 MiB per list."""
    if isinstance(source, bytes):
        yield [source]
        return
    held: list[bytes] = []
    size = 0
    async for piece in _file_chunks(source, threads) if isinstance(source, Path) else source:
        held.append(piece)
        size += len(piece)
        # The number of pieces is bounded too: one-byte pieces must not fill the memory.
        if size >= BLOCK or len(held) == _MOST_PIECES:
            yield held
            held, size = [], 0
    if held:
        yield held


async def _file_chunks(path: Path, threads: Threads) -> AsyncIterator[bytes]:
    with await threads.open(lambda: path.open("rb")) as file:
        while chunk := await threads.run(file.read, BLOCK):
            yield chunk


def digest(data: bytes | Path) -> str:
    """Returns the SHA-256 of bytes or of a local file in lower-case hex. Blocks while it reads."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def save(chunks: AsyncIterator[bytes], path: Path, threads: Threads) -> str:
    """Writes `chunks` to `path` (mode 0600) and returns their SHA-256. Removes the file if anything
    fails.

    Raises StorageFull if the local disk is full; other local errors pass as OSError, since the
    caller chose the path.
    """
    hashed = hashlib.sha256()
    # The first chunk is read before the file is created: a missing object must not leave an empty
    # file.
    first = await anext(chunks, b"")
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
