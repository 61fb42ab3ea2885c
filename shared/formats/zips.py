"""Writes ZIP files as a stream that any reader accepts, even one that reads the file as a stream.

    archive = Archive(created_at)
    yield archive.begin(path, size)
    for chunk in chunks:
        yield archive.data(chunk)
    yield archive.end()
    yield archive.close()

A file's checksum is known only after the file has been read, so it is written after the file. A
reader that can't look ahead finds the end of such a file only if the data marks its own end. So the
data is in stored (uncompressed) blocks of DEFLATE; pictures are compressed already. The positions
of the blocks depend only on the size, so that equal files give equal bytes.
"""

import struct
import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from shared.formats import names

_BLOCK = 65_535  # bytes of the longest stored block
_EMPTY = b"\x01\x00\x00\xff\xff"  # a single empty block, marked as the last
_DEFLATED = 8
# Checksum and sizes follow the data; names are in UTF-8.
_FLAGS = 1 << 3 | 1 << 11
_UNIX, _MODE = 3, 0o100644 << 16
_VERSION, _VERSION_FAR = 20, 45
# From these numbers on ZIP64's longer form is used, and the short form holds these as a mark.
_FAR, _FAR_COUNT = 0xFFFFFFFF, 0xFFFF


class WrongSize(Exception):
    """A file has more or fewer bytes than announced; the archive must be discarded."""


class Archive:
    """Returns the bytes of a ZIP in order. Every entry has the time `created_at`."""

    def __init__(self, created_at: datetime) -> None:
        moment = created_at.astimezone(UTC)
        # The format counts from 1980, in local time without a zone; this writes UTC.
        year, month, day, hour, minute, second = max(moment.timetuple()[:6], (1980, 1, 1, 0, 0, 0))
        self._when = (hour << 11 | minute << 5 | second // 2, (year - 1980) << 9 | month << 5 | day)
        self._place = 0
        self._listed: list[bytes] = []
        self._path, self._size, self._start = b"", 0, 0
        self._left, self._block, self._sum = 0, 0, 0

    def begin(self, path: str, size: int) -> bytes:
        self._path, self._size, self._start = path.encode(), size, self._place
        self._left, self._block, self._sum = size, 0, 0
        far = _is_far(size)
        sizes = _FAR if far else 0
        header = struct.pack(
            "<4s5H3L2H",
            b"PK\x03\x04",
            _VERSION_FAR if far else _VERSION,
            _FLAGS,
            _DEFLATED,
            *self._when,
            0,
            sizes,
            sizes,
            len(self._path),
            20 if far else 0,
        )
        return self._counted(
            header + self._path + (struct.pack("<2H2Q", 1, 16, 0, 0) if far else b"")
        )

    def data(self, chunk: bytes) -> bytes:
        """Returns the bytes for the next piece, of any length, of the current file. Raises
        WrongSize."""
        if len(chunk) > self._left:
            raise WrongSize(self._path.decode())
        self._sum = zlib.crc32(chunk, self._sum)
        rest = memoryview(chunk)
        pieces: list[bytes | memoryview] = []
        while rest:
            if self._block == 0:
                self._block = min(self._left, _BLOCK)
                pieces.append(
                    struct.pack("<B2H", self._left <= _BLOCK, self._block, self._block ^ 0xFFFF)
                )
            piece, rest = rest[: self._block], rest[self._block :]
            pieces.append(piece)
            self._block -= len(piece)
            self._left -= len(piece)
        return self._counted(b"".join(pieces))

    def end(self) -> bytes:
        """Ends the current file. Raises WrongSize if bytes are missing."""
        if self._left:
            raise WrongSize(self._path.decode())
        far, stored = _is_far(self._size), _stored(self._size)
        sums = struct.pack(
            "<4sL2Q" if far else "<4s3L", b"PK\x07\x08", self._sum, stored, self._size
        )
        self._listed.append(self._entry(stored))
        return self._counted((b"" if self._size else _EMPTY) + sums)

    def _entry(self, stored: int) -> bytes:
        """Returns the file's entry in the directory at the archive's end."""
        numbers = (self._size, stored, self._start)
        large = [number for number in numbers if number >= _FAR]
        extra = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""
        size, stored, start = (min(number, _FAR) for number in numbers)
        version = _VERSION_FAR if large else _VERSION
        header = struct.pack(
            "<4s2B5H3L5H2L",
            b"PK\x01\x02",
            version,
            _UNIX,
            version,
            _FLAGS,
            _DEFLATED,
            *self._when,
            self._sum,
            stored,
            size,
            len(self._path),
            len(extra),
            0,
            0,
            0,
            _MODE,
            start,
        )
        return header + self._path + extra

    def close(self) -> bytes:
        """Returns the directory of all files and the archive's end."""
        listed, count, start = b"".join(self._listed), len(self._listed), self._place
        far = b""
        if count >= _FAR_COUNT or start >= _FAR or len(listed) >= _FAR:
            far = struct.pack(
                "<4sQ2H2L4Q",
                b"PK\x06\x06",
                44,
                _VERSION_FAR,
                _VERSION_FAR,
                0,
                0,
                count,
                count,
                len(listed),
                start,
            ) + struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(listed), 1)
        short = min(count, _FAR_COUNT)
        end = struct.pack(
            "<4s4H2LH",
            b"PK\x05\x06",
            0,
            0,
            short,
            short,
            min(len(listed), _FAR),
            min(start, _FAR),
            0,
        )
        return self._counted(listed + far + end)

    def _counted(self, data: bytes) -> bytes:
        self._place += len(data)
        return data


def _stored(size: int) -> int:
    """Returns the size of `size` bytes in stored blocks."""
    return size + len(_EMPTY) * max(1, -(-size // _BLOCK))


def _is_far(size: int) -> bool:
    return _stored(size) >= _FAR


def size_of(entries: Iterable[tuple[str, int]]) -> int:
    """Returns the size in bytes of the archive of these (path, size) entries."""
    place, listed, count = 0, 0, 0
    for path, size in entries:
        name, stored = len(path.encode()), _stored(size)
        large = sum(number >= _FAR for number in (size, stored, place))
        listed += 46 + name + (4 + 8 * large if large else 0)
        place += 30 + name + stored + (20 + 24 if _is_far(size) else 16)
        count += 1
    far = count >= _FAR_COUNT or place >= _FAR or listed >= _FAR
    return place + listed + 22 + (76 if far else 0)


def unique_paths(given: Sequence[str], reserved: Iterable[str] = ()) -> list[str]:
    """Returns safe paths that differ even on a file system that ignores case; none is both a file
    and a folder."""
    paths = [
        "/".join(names.of_file(part) for part in path.split("/") if part) or "_" for path in given
    ]
    taken = {path.casefold() for path in reserved}
    taken |= {str(folder).casefold() for path in paths for folder in Path(path).parents}
    # The last number given to each name, so that ten thousand equal names stay fast.
    last: dict[str, int] = {}
    named = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        stem, dot, suffix = name.rpartition(".")
        first = path.casefold()
        number = last.get(first, 1)
        while path.casefold() in taken:
            number += 1
            numbered = f"{stem} ({number}){dot}{suffix}" if stem else f"{name} ({number})"
            path = f"{folder}/{numbered}" if folder else numbered
        last[first] = number
        taken.add(path.casefold())
        named.append(path)
    return named
