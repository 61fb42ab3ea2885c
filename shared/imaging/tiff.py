"""Reads the structure of a TIFF, and of EXIF, which is a TIFF without a picture: directories of
untrusted entries. Offsets outside the bytes read as zeros, so nothing here raises."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

HEADS = (b"II*\0", b"MM\0*")
EXIF_DIRECTORY, GPS_DIRECTORY, SUB_DIRECTORIES = 34665, 34853, 330
# Photometric interpretations.
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = (
    0,
    1,
    2,
    3,
    5,
    6,
    8,
)
# The size of a value in bytes, by its kind.
_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
}
MULTIPLIED_IN, BESIDE = 1, 2  # alpha premultiplied or not; 0 is no transparency
_REDUCED = 1
_MOST_BELOW = 64  # subdirectories that are read; a pyramid has a handful


class Entry(NamedTuple):
    kind: int
    length: int  # the number of values
    at: int  # the offset of the values from the TIFF's start


@dataclass(frozen=True)
class Directory:
    entries: dict[int, Entry]
    length: int  # the number of entries, also of repeated tags, of which only the last is kept
    next: int  # the offset of the next directory; 0 for the last


class Tiff:
    """The TIFF in `content` from `start` on."""

    def __init__(self, content: bytes, start: int = 0) -> None:
        self._content = content
        self._start = start
        self._order: Literal["little", "big"] = (
            "little" if content[start : start + 2] == b"II" else "big"
        )

    @property
    def first(self) -> int:
        return self._number(4, 4)

    def directory(self, at: int) -> Directory:
        count = min(self._number(at, 2), (len(self._content) - self._start - at) // 12)
        entries = {}
        for place in range(at + 2, at + 2 + 12 * count, 12):
            kind, values = self._number(place + 2, 2), self._number(place + 4, 4)
            inline = _SIZES.get(kind, 1) * values <= 4
            entries[self._number(place, 2)] = Entry(
                kind, values, place + 8 if inline else self._number(place + 8, 4)
            )
        return Directory(entries, count, self._number(at + 2 + 12 * count, 4) if count > 0 else 0)

    def chain(self) -> Iterator[Directory]:
        """Yields the directories of its pages in order, each once."""
        at, seen = self.first, set[int]()
        while at and at not in seen:
            seen.add(at)
            yield (found := self.directory(at))
            at = found.next

    def numbers(self, entry: Entry | None, most: int = 1 << 20) -> list[int]:
        """Returns at most `most` values of an entry; none if they aren't whole numbers."""
        if entry is None or entry.kind not in (1, 3, 4, 7, 13):
            return []
        size = _SIZES[entry.kind]
        count = min(entry.length, len(self._content) // size, most)
        return [self._number(entry.at + size * index, size) for index in range(count)]

    def data(self, at: int, length: int) -> bytes:
        return self._content[self._start + at : self._start + at + length]

    def _number(self, at: int, size: int) -> int:
        start = self._start + at
        return int.from_bytes(self._content[start : start + size], self._order)


class Page:
    """The layout of a directory's picture, in the terms of the specification."""

    def __init__(self, tiff: Tiff, directory: Directory) -> None:
        self.tags = directory.entries
        self._tiff = tiff

    def value(self, tag: int, default: int) -> int:
        return next(iter(self.all(tag, 1)), default)

    def all(self, tag: int, most: int = 1 << 20) -> list[int]:
        return self._tiff.numbers(self.tags.get(tag), most)

    @cached_property
    def size(self) -> tuple[int, int]:
        return self.value(256, 0), self.value(257, 0)

    @cached_property
    def bits(self) -> set[int]:
        return set(self.all(258)[: self.samples]) or {1}

    @cached_property
    def sample_format(self) -> set[int]:
        """The kinds of samples: 1 unsigned, 2 signed, 3 floating-point, 5 and 6 complex. Undefined
        ones (4) count as unsigned."""
        return {1 if said == 4 else said for said in self.all(339)[: self.samples]} or {1}

    @cached_property
    def compression(self) -> int:
        return self.value(259, 1)

    @cached_property
    def photometric(self) -> int:
        return self.value(262, -1)

    @cached_property
    def samples(self) -> int:
        return self.value(277, 1)

    @cached_property
    def planes(self) -> bool:
        return self.value(284, 1) == 2

    @cached_property
    def tiled(self) -> bool:
        return 322 in self.tags

    @cached_property
    def reduced(self) -> bool:
        """True if the page declares itself a smaller version of another picture in the file."""
        return bool(self.value(254, 0) & _REDUCED) or self.value(255, 0) == 2

    @cached_property
    def transparencies(self) -> dict[int, int]:
        """The samples after the colours that are declared as transparency, counted from 0, and how
        each is stored."""
        return {
            index: way for index, way in enumerate(self.all(338)) if way in (MULTIPLIED_IN, BESIDE)
        }

    def unpacked(self, index: int) -> int:
        """Returns the least uncompressed size in bytes of the strip or tile with this number. For
        YCbCr only luma counts, since the other components may be subsampled at will."""
        width, height = self.size
        if self.tiled:
            width, height = self.value(322, 0), self.value(323, 0)
        else:
            rows = max(1, min(self.value(278, height), height))
            height = min(rows, height - index % -(-height // rows) * rows)
        bits = (
            8
            if self.photometric == YCBCR
            else (1 if self.planes else self.samples) * max(self.bits)
        )
        return -(-width * bits // 8) * height

    @property
    def places(self) -> list[int]:
        """The offsets of its strips or tiles."""
        return self.all(324) or self.all(273)

    def parts(self) -> Iterator[bytes]:
        """Yields its strips or tiles as stored in the file."""
        for at, length in zip(self.places, self.all(325) or self.all(279), strict=False):
            yield self._tiff.data(at, length)

    def below(self) -> Iterator["Page"]:
        """Yields the pictures in its subdirectories, which are outside the chain of pages."""
        for at in self.all(SUB_DIRECTORIES, _MOST_BELOW):
            yield Page(self._tiff, self._tiff.directory(at))


def pages(content: bytes) -> Iterator[Page]:
    tiff = Tiff(content)
    return (Page(tiff, directory) for directory in tiff.chain())
