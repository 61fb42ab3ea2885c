"""ZIP files written as a stream: entries stored, not compressed, and names that are safe and different everywhere.

sink = Sink()
with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
    with archive.open(entry(path, size, created_at), "w") as file:
        file.write(chunk)
        yield from sink.drain()
yield from sink.drain()
"""

import io
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from typing_extensions import Buffer

_HEADER, _DESCRIPTOR, _LISTED, _END = 30, 16, 46, 22
# Beyond 2 GiB an entry's place takes 12 bytes more, and the end of the archive 76.
_FAR, _FAR_PLACE, _FAR_END, _MOST_ENTRIES = 2**31 - 1, 12, 76, 65535


class Sink(io.RawIOBase):
    """The file that `zipfile` writes to: it can't seek, and is emptied after every write."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, data: Buffer) -> int:
        self._chunks.append(bytes(data))
        return len(self._chunks[-1])

    def drain(self) -> list[bytes]:
        chunks, self._chunks = self._chunks, []
        return chunks


def entry(path: str, size: int, created_at: datetime) -> zipfile.ZipInfo:
    moment = created_at.astimezone(UTC)
    # The format counts from 1980, in local time without a zone: UTC is written.
    info = zipfile.ZipInfo(path, max(moment.timetuple()[:6], (1980, 1, 1, 0, 0, 0)))
    info.create_system = 3
    info.external_attr = 0o644 << 16
    info.file_size = size
    return info


def size_of(entries: Iterable[tuple[str, int]]) -> int:
    """Bytes of the archive that a Sink is given for these (path, size), each below 2 GiB."""
    place, listed, count = 0, 0, 0
    for path, size in entries:
        name = len(path.encode())
        listed += _LISTED + name + (_FAR_PLACE if place > _FAR else 0)
        place += _HEADER + name + size + _DESCRIPTOR
        count += 1
    far = place > _FAR or listed > _FAR or count > _MOST_ENTRIES
    return place + listed + _END + (_FAR_END if far else 0)


def unique_paths(given: Sequence[str], reserved: Iterable[str] = ()) -> list[str]:
    """Safe paths, none equal to another on a file system that ignores case, none both a file and a folder."""
    paths = ["/".join(safe_name(part) for part in path.split("/") if part) or "_" for path in given]
    taken = {path.casefold() for path in reserved}
    taken |= {str(folder).casefold() for path in paths for folder in Path(path).parents}
    last: dict[str, int] = {}  # the number that the name was given last: ten thousand equal names take no longer
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


def safe_name(name: str) -> str:
    """One part of a path: Unicode kept; separators, controls and what Windows forbids replaced; 150 bytes at most."""
    text = "".join(
        "_" if c in '/\\:*?"<>|' or unicodedata.category(c) in ("Cc", "Cf", "Cs") else c
        for c in unicodedata.normalize("NFC", name)
    )
    text = text.strip(" .") or "_"
    if re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", text):
        text = f"_{text}"
    stem, dot, suffix = text.rpartition(".")
    if not stem or len(suffix) > 10:
        stem, dot, suffix = text, "", ""
    room = 150 - len((dot + suffix).encode())
    return stem.encode()[:room].decode(errors="ignore") + dot + suffix
