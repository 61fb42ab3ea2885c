"""Makes a ZIP of an album while it is sent: one piece of one file is in memory at a time, and the
size is known before the first byte."""

import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from uuid import UUID

from services.assets.library.album_rows import Album, AlbumFile, AlbumVariant
from shared.formats import names, zips
from shared.rpc import errors
from shared.storage import ObjectNotFound, Storage
from shared.storage.base import CHUNK

_MANIFEST, _SUMS = "manifest.json", "SHA256SUMS"


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    asset_id: UUID
    key: str
    size: int
    sha256: str
    mime_type: str


class AlbumZip:
    """The ZIP of an album. `rows`: its assets; `smaller`: by asset, the variant to take instead of
    the original."""

    def __init__(
        self, album: Album, rows: Sequence[AlbumFile], smaller: Mapping[UUID, AlbumVariant]
    ) -> None:
        self._album = album
        chosen = [smaller.get(row.id, row) for row in rows]
        paths = zips.unique_paths(
            [_name(row, taken) for row, taken in zip(rows, chosen, strict=True)], (_MANIFEST, _SUMS)
        )
        self.files = [
            _File(path, row.id, taken.storage_key, taken.size_bytes, taken.sha256, taken.mime_type)
            for path, row, taken in zip(paths, rows, chosen, strict=True)
        ]
        self.sent: dict[UUID, int] = {}  # bytes of each asset's file so far
        self.missing: set[UUID] = set()  # assets whose file had vanished when its turn came
        self.file_name = names.of_file(album.name, ".zip")

    @property
    def size_bytes(self) -> int:
        """The size of the whole archive in bytes, if every file is still there when its turn
        comes."""
        last = [(path, len(content)) for path, content in self._last(self.files, [])]
        return zips.size_of([*((file.path, file.size) for file in self.files), *last])

    async def chunks(self, storage: Storage) -> AsyncIterator[bytes]:
        archive = zips.Archive(self._album.created_at)
        there, missing = [], []
        for file in self.files:
            content = storage.get(file.key)
            try:
                first = await anext(content, b"")
            except ObjectNotFound:
                # It is raised before the first piece, so that the archive has nothing of the file.
                missing.append(file)
                self.missing.add(file.asset_id)
                continue
            there.append(file)
            yield archive.begin(file.path, file.size)
            try:
                self.sent[file.asset_id] = len(first)
                for piece in _pieces(archive.data(first)):
                    yield piece
                async for chunk in content:
                    self.sent[file.asset_id] += len(chunk)
                    for piece in _pieces(archive.data(chunk)):
                        yield piece
                yield archive.end()
            except zips.WrongSize:
                text = (
                    "its stored bytes are no longer those that were verified; remove it from the"
                    " album"
                )
                raise errors.precondition(text, subject=f"assets/{file.asset_id}") from None
        for path, listed in self._last(there, missing):
            for piece in _pieces(
                archive.begin(path, len(listed)) + archive.data(listed) + archive.end()
            ):
                yield piece
        for piece in _pieces(archive.close()):
            yield piece

    def _last(self, there: Sequence[_File], missing: Sequence[_File]) -> list[tuple[str, bytes]]:
        """Returns the files at the end of the archive, which list what is in it: that is known only
        after the others were sent."""
        listed = [
            {
                "path": file.path,
                "asset_id": str(file.asset_id),
                "size": file.size,
                "sha256": file.sha256,
                "mime_type": file.mime_type,
            }
            for file in there
        ]
        lost = [{"path": file.path, "asset_id": str(file.asset_id)} for file in missing]
        about = {
            "album": self._album.name,
            "album_id": str(self._album.id),
            "files": listed,
            "missing": lost,
        }
        manifest = json.dumps(about, ensure_ascii=False, indent=1).encode() + b"\n"
        sums = [
            *((file.sha256, file.path) for file in there),
            (hashlib.sha256(manifest).hexdigest(), _MANIFEST),
        ]
        return [
            (_MANIFEST, manifest),
            (_SUMS, "".join(f"{digest}  {path}\n" for digest, path in sums).encode()),
        ]


def _name(asset: AlbumFile, taken: AlbumFile | AlbumVariant) -> str:
    """Returns the file's name; a variant's has the ending of its own type. It has no folders:
    slashes were replaced on upload."""
    if taken is asset:
        return asset.file_name
    return PurePosixPath(asset.file_name).stem + "." + taken.mime_type.partition("/")[2]


def _pieces(written: bytes) -> Iterator[bytes]:
    """Cuts the bytes into pieces of at most 256 KiB, one for each message."""
    for start in range(0, len(written), CHUNK):
        yield written[start : start + CHUNK]
