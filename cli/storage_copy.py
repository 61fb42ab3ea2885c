"""Copies all objects from one store to another and verifies them. An interrupted copy can be run
again."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from rich.progress import Progress, TaskID

from shared.settings import load
from shared.storage import (
    ChecksumMismatch,
    ObjectNotFound,
    Stat,
    Storage,
    StorageError,
    StorageUnavailable,
    open_disk,
    open_s3,
)

_PATIENCE_SECONDS = (1, 3, 10)
_PAGE = 1000


class BadLocation(Exception):
    """The given text doesn't name a store; the message says how one is named."""


@dataclass(frozen=True)
class Location:
    """An open store. `root` is its directory if the store is on disk."""

    storage: Storage
    root: Path | None = None

    async def keys(self) -> AsyncIterator[tuple[str, int]]:
        """Yields the key and size of everything that is there.

        In a directory the files are listed, not the objects: the store doesn't count a truncated
        file as an object, but a copy has to report it.
        """
        if self.root is None:
            async for stat in self.storage.list(""):
                yield stat.key, stat.size
            return
        files = _files(self.root / "data")
        while page := await asyncio.to_thread(
            lambda: [found for found, _ in zip(files, range(_PAGE), strict=False)]
        ):
            for found in page:
                yield found

    def has_file(self, key: str) -> bool:
        return self.root is not None and (self.root / "data" / key).is_file()


def _files(data: Path) -> Iterator[tuple[str, int]]:
    for folder, folders, names in os.walk(data):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            with suppress(FileNotFoundError):  # deleted meanwhile
                yield str(path.relative_to(data)), path.stat().st_size


def open_location(text: str, side: str) -> Location:
    """Opens `disk:/path`, or `s3://bucket?endpoint=URL&region=NAME`.

    The keys of an S3 store come from ATELIER_<side>_S3_ACCESS_KEY and _SECRET_KEY; whatever isn't
    given comes from ATELIER_S3_*. Raises BadLocation.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "disk" and rest:
        root = Path(rest)
        if side == "FROM" and not (root / "data").is_dir():
            raise BadLocation(f"{root} is no store: it has no folder `data`")
        # Nothing is signed here, so any secret works.
        return Location(open_disk(root, base_url="http://127.0.0.1", secret=os.urandom(32)), root)
    parts = urlsplit(text)
    if scheme != "s3" or not parts.netloc:
        raise BadLocation(
            f"{text!r} names no store: use disk:/path or"
            " s3://bucket?endpoint=https://host&region=name"
        )
    settings = load("assets")
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    endpoint = query.get("endpoint", settings.s3_endpoint)
    keys = [
        os.environ.get(f"ATELIER_{side}_S3_{name.upper()}")
        or getattr(settings, f"s3_{name}").get_secret_value()
        for name in ("access_key", "secret_key")
    ]
    if not all(keys):
        raise BadLocation(
            f"{text}: its keys are missing; set ATELIER_{side}_S3_ACCESS_KEY and _SECRET_KEY"
        )
    return Location(
        open_s3(
            endpoint=endpoint,
            public_endpoint=None,
            bucket=parts.netloc,
            access_key=keys[0],
            secret_key=keys[1],
            region=query.get("region", settings.s3_region),
            aws=not endpoint or ".amazonaws.com" in endpoint,
        )
    )


@dataclass
class Outcome:
    """What a run of a copy did."""

    copied: int = 0
    copied_bytes: int = 0
    present: int = 0
    gone: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


@dataclass
class Copy:
    """One run of a copy. With `read_back`, objects are compared with the bytes read back from the
    target instead of the digest that it recorded.
    """

    source: Location
    target: Location
    progress: Progress
    concurrency: int
    read_back: bool
    outcome: Outcome = field(default_factory=Outcome)

    async def run(self) -> Outcome:
        """Copies everything. Raises StorageError if a store can't be listed."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        try:
            task = self.progress.add_task("looking", total=None)
            total = 0
            async for _, size in self.source.keys():
                total += size
                if stop.is_set():
                    break
            self.progress.update(task, total=total, description="copying")
            await self._copy_all(task, stop)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            await self.source.storage.close()
            await self.target.storage.close()
        self.outcome.interrupted = stop.is_set()
        return self.outcome

    async def _copy_all(self, task: TaskID, stop: asyncio.Event) -> None:
        """Copies until the source is exhausted or `stop` is set; started copies are finished."""
        waiting: asyncio.Queue[tuple[str, int] | None] = asyncio.Queue(self.concurrency)

        async def work() -> None:
            while item := await waiting.get():
                await self._one(item[0])
                self.progress.update(task, advance=item[1])

        async with asyncio.TaskGroup() as group:
            for _ in range(self.concurrency):
                group.create_task(work())
            try:
                async for item in self.source.keys():
                    if stop.is_set():
                        break
                    await waiting.put(item)
            finally:
                for _ in range(self.concurrency):
                    await waiting.put(None)

    async def _one(self, key: str) -> None:
        for pause in (*_PATIENCE_SECONDS, None):
            try:
                await self._move(key)
            except StorageUnavailable as error:
                if pause is not None:
                    await asyncio.sleep(pause)
                    continue
                self.outcome.failed[key] = str(error)
            except (StorageError, OSError) as error:
                self.outcome.failed[key] = str(error)
            return

    async def _move(self, key: str) -> None:
        try:
            there = await self.source.storage.stat(key)
        except ObjectNotFound:
            if self.source.has_file(key):
                raise StorageError(
                    f"{key} is damaged: the file was cut short or isn't the store's"
                ) from None
            self.outcome.gone += 1
            return
        found = await self._found(key)
        alike = found and (found.size, found.content_type) == (there.size, there.content_type)
        if alike and not self.read_back and there.sha256 and found and found.sha256 == there.sha256:
            self.outcome.present += 1
            return
        with tempfile.TemporaryDirectory(prefix="atelier-") as directory:
            path = Path(directory) / "object"
            sha256 = (await self.source.storage.fetch(key, path)).sha256  # of the bytes read
            if alike and await self._holds(key, sha256, path.with_name("back")):
                self.outcome.present += 1
                return
            await self.target.storage.put(key, path, content_type=there.content_type, sha256=sha256)
            if not await self._holds(key, sha256, path.with_name("back")):
                raise StorageError(f"{key}: the target doesn't hold what was sent")
        self.outcome.copied += 1
        self.outcome.copied_bytes += there.size

    async def _found(self, key: str) -> Stat | None:
        try:
            return await self.target.storage.stat(key)
        except ObjectNotFound:
            return None

    async def _holds(self, key: str, sha256: str | None, path: Path) -> bool:
        """Returns whether the target has these bytes. It compares the recorded digest, or the bytes
        read back if there is none or `read_back` is set."""
        found = await self._found(key)
        if found and found.sha256 and not self.read_back:
            return found.sha256 == sha256
        try:
            return (await self.target.storage.fetch(key, path)).sha256 == sha256
        except (ObjectNotFound, ChecksumMismatch):
            return False
