"""Objects in a directory. Each is one file: its bytes, then a trailer with the facts about them.

Bytes and facts share a file, so one rename replaces both. Under the root (mode 0700, files 0600),
`data/<key>` are the objects, and `incoming/` holds files that are being written before they get
their name. A multipart upload is a folder there.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from . import disk_parts
from .base import (
    Check,
    ChecksumMismatch,
    ObjectExists,
    ObjectNotFound,
    Part,
    SignedPost,
    SignedPut,
    Source,
    Stat,
    StorageUnavailable,
    check_content_type,
    check_digest,
    check_key,
    check_prefix,
    check_range,
)
from .disk_files import OpenObject, Temporary, flush_folder, open_object, stat_of, translated
from .links import Links
from .streams import Threads, batches, save

_THREADS: Final = 8
_BATCH: Final = 1000
# Deletes of a batch in one thread; another thread has the rest. Then other calls find a free
# processor.
_MOST: Final = 700
_UPLOAD: Final = re.compile(r"[0-9a-f]{32}\.parts")


def open_disk(
    root: Path, *, base_url: str, secret: bytes, public_base_url: str | None = None
) -> DiskStorage:
    """Opens the storage in the directory `root`, which it creates if missing.

    base_url: the URL at which clients reach `python -m shared.storage.http`. secret: at least 32
    bytes, the same as that server's. public_base_url: replaces `<base_url>/o` in public URLs, for a
    CDN in front of it.
    """
    with translated("the storage root"):
        for folder in (root, root / "data", root / "incoming"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return DiskStorage(root, Links(secret, base_url, public_base_url))


class DiskStorage:
    """The Storage of a directory; the protocol documents the methods."""

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
        check: Check | None = None,
    ) -> Stat:
        facts = {"content_type": check_content_type(content_type), "cache_forever": cache_forever}
        declared = check_digest(sha256)
        check_key(key)
        publish = partial(self._publish, key, facts, if_absent)
        return await self._write(key, partial(self._receive, key, source), publish, declared, check)

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
        opened.close()
        return opened.stat

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
        opened = await self.open(source)
        # The bytes are copied and not hard-linked: the copy needs its own `modified`, which
        # distinguishes a fresh object from a lost one.
        facts = {
            "content_type": check_content_type(content_type or opened.stat.content_type),
            "cache_forever": opened.cache_forever,
        }
        publish = partial(self._publish, target, facts, if_absent)
        with opened.file:
            return await self._write(
                target, partial(self._copy, target, opened), publish, opened.stat.sha256, check
            )

    async def delete(self, keys: Iterable[str]) -> None:
        # Sorted keys put the objects of a folder next to each other, so that each folder is removed
        # with one attempt, after its last object.
        paths = iter([self._path(key) for key in sorted(keys)])
        while batch := list(itertools.islice(paths, _BATCH)):
            with translated("delete"):
                await asyncio.gather(
                    *(
                        self.threads.run(self._unlink, part)
                        for part in (batch[:_MOST], batch[_MOST:])
                    )
                )

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[Stat]:
        walk = self._walk(check_prefix(prefix), after)
        while True:
            with translated("list"):
                page = await self.threads.run(lambda: [*itertools.islice(walk, _BATCH)])
            if not page:
                return
            for stat in page:
                yield stat

    async def sweep(self, older_than: timedelta) -> int:
        with translated("sweep"):
            return await self.threads.run(self._sweep, time.time() - older_than.total_seconds())

    async def start_multipart(self, key: str, *, content_type: str) -> str:
        upload = f"{uuid.uuid4().hex}.parts"
        about = {"key": check_key(key), "content_type": check_content_type(content_type)}
        with translated(key):
            await self.threads.run(disk_parts.begin, self._incoming / upload, about)
        return upload

    def sign_part(
        self, key: str, upload: str, number: int, *, length: int, expires_in: timedelta
    ) -> SignedPut:
        return self.links.sign_part(key, upload, number, length, expires_in)

    async def put_part(self, upload: str, number: int, source: Source) -> Part:
        """Stores a part. Raises MultipartEnded."""
        target = self._parts(upload) / f"{number:05}"
        name = f"part {number}"
        stat = await self._write(
            name, partial(self._receive, name, source), partial(disk_parts.publish_part, target)
        )
        return Part(number, stat.size, stat.etag)

    async def list_parts(self, key: str, upload: str) -> Sequence[Part]:
        folder = self._parts(upload)
        with translated(key):
            return await self.threads.run(disk_parts.list_parts, folder, key)

    async def complete_multipart(self, key: str, upload: str, parts: Sequence[Part]) -> Stat:
        folder = self._parts(upload)
        with translated(key):
            about = await self.threads.run(disk_parts.about_of, folder, key)
        facts = {"content_type": about["content_type"], "cache_forever": False}
        publish = partial(self._publish, key, facts, False)
        stat = await self._write(key, partial(self._join, key, folder, parts), publish)
        await self.abort_multipart(key, upload)
        return stat

    async def abort_multipart(self, key: str, upload: str) -> None:
        with translated(key):
            await self.threads.insist(disk_parts.remove_parts, self._parts(upload))

    def sign_post(
        self, key: str, *, max_bytes: int, content_type: str, expires_in: timedelta
    ) -> SignedPost:
        return self.links.sign_post(key, max_bytes, content_type, expires_in)

    def sign_put(
        self, key: str, *, length: int, content_type: str, expires_in: timedelta
    ) -> SignedPut:
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
        """Opens the object; the caller closes it. Raises ObjectNotFound."""
        path = self._path(key)
        with translated(key):
            opened = await self.threads.open(partial(open_object, path, key))
        if opened is None:
            raise ObjectNotFound(f"there is no object {key}")
        return opened

    def _path(self, key: str) -> Path:
        return self._data.joinpath(*check_key(key).split("/"))

    def _parts(self, upload: str) -> Path:
        if not _UPLOAD.fullmatch(upload):
            raise disk_parts.ended(upload)
        return self._incoming / upload

    async def _receive(self, key: str, source: Source, temporary: Temporary) -> None:
        # One batch is written while the next arrives; memory holds at most these two.
        writing: asyncio.Future[None] | None = None
        async with aclosing(batches(source, self.threads)) as arriving:
            async for pieces in arriving:
                with translated(key):
                    if writing:
                        await writing
                writing = self.threads.start(temporary.write, pieces)
        with translated(key):
            # An empty write creates the file of an empty object.
            await (writing or self.threads.run(temporary.write, []))

    async def _copy(self, key: str, opened: OpenObject, temporary: Temporary) -> None:
        with translated(key):
            await self.threads.run(temporary.copy, opened)

    async def _join(
        self, key: str, folder: Path, parts: Sequence[Part], temporary: Temporary
    ) -> None:
        for part in parts:
            name = f"part {part.number}"
            with translated(name):
                opened = await self.threads.open(
                    partial(open_object, folder / f"{part.number:05}", name)
                )
            if opened is None:
                raise disk_parts.ended(folder.name)
            with opened.file:
                if (opened.stat.size, opened.stat.etag) != (part.size, part.etag):
                    raise StorageUnavailable(f"{name} was sent anew; list the parts again")
                await self._copy(key, opened, temporary)

    async def _write(
        self,
        key: str,
        fill: Callable[[Temporary], Awaitable[None]],
        publish: Callable[[Temporary], Stat],
        declared: str | None = None,
        check: Check | None = None,
    ) -> Stat:
        """Writes the bytes to a temporary file, which `publish` then gives its final name."""
        temporary = Temporary(self._incoming / uuid.uuid4().hex)
        try:
            await fill(temporary)
            found = temporary.hashed.hexdigest()
            if declared and found != declared:
                raise ChecksumMismatch(
                    f"{key}: the bytes have SHA-256 {found}, declared was {declared}"
                )
            if check:
                # Both run at once: the flush waits for the disk, the check for a processor.
                flushing = self.threads.start(temporary.flush)
                await check(temporary.path, found)
                with translated(key):
                    await flushing
            with translated(key):
                return await self.threads.run(publish, temporary)
        finally:
            await self.threads.insist(temporary.discard)

    def _publish(
        self, key: str, facts: dict[str, Any], if_absent: bool, temporary: Temporary
    ) -> Stat:
        trailer = {"size": temporary.size, "sha256": temporary.hashed.hexdigest(), **facts}
        modified = temporary.finish(trailer)
        target = self._path(key)
        for _ in range(20):  # a concurrent delete may remove the folder that was just made
            with suppress(FileNotFoundError):
                made = _make_folders(target.parent, self._data)
                self._name(temporary.path, target, if_absent)
                break
        else:
            raise StorageUnavailable(f"{key}: its folder keeps disappearing")
        # The folders are flushed together at the end: the first flush usually writes all of them.
        for folder in dict.fromkeys((target.parent, *(each.parent for each in made))):
            with suppress(FileNotFoundError):  # another caller has deleted it already
                flush_folder(folder)
        return stat_of(key, trailer, modified)

    def _name(self, temporary: Path, target: Path, if_absent: bool) -> None:
        if target.is_dir():
            with suppress(OSError):  # removes an empty folder that a killed delete left
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
        # Each folder is tried once: an attempt on a large folder that isn't empty can take long.
        emptied = {path.parent for path in paths}
        while emptied := emptied - {self._data}:
            above = set()
            for folder in emptied:
                with suppress(OSError):  # the folder isn't empty
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
            elif os.fsencode(name) <= passed and not (
                name.endswith("/") and after.startswith(name)
            ):
                continue
            elif name.endswith("/"):
                pending.append(iter(_names(self._data, name, "")))
            elif opened := open_object(self._data / name, name):
                opened.close()
                yield opened.stat

    def _sweep(self, before: float) -> int:
        removed = 0
        for path in self._incoming.iterdir():
            with suppress(FileNotFoundError):
                if path.is_dir():
                    removed += disk_parts.sweep(path, before)
                elif path.stat().st_mtime < before:
                    path.unlink()
                    removed += 1
        return removed


def _names(data: Path, folder: str, beginning: str) -> list[str]:
    """Returns the keys and folders (with a slash) in one folder, sorted so that descending into
    each folder yields all keys in order."""
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


def _make_folders(folder: Path, root: Path) -> list[Path]:
    """Creates the missing folders from `root` down and returns them."""
    missing = list(
        itertools.takewhile(
            lambda each: each != root and not each.exists(), (folder, *folder.parents)
        )
    )
    for each in reversed(missing):
        with suppress(FileExistsError):
            each.mkdir(mode=0o700)
    return missing
