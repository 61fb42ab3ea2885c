"""The archive that leaves the house: a ZIP of every file of a collection in its section, with a manifest and checksums.

Knows no database, network or clock: the same input gives the same bytes.
"""

import hashlib
import io
import json
import re
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from typing_extensions import Buffer

# The folders of the archive, in the order of the document.
Section = Literal[
    "01-cover", "02-base-views", "03-sketches", "04-closeups", "05-materials", "06-measurements", "07-documents"
]


@dataclass(frozen=True, slots=True)
class Member:
    """A file for the archive: `open` gives its bytes in chunks, `size` and `sha256` (hex) describe them."""

    path_in_zip: str
    open: Callable[[], Iterable[bytes]]
    size: int
    sha256: str


class MemberChanged(Exception):
    """A member's bytes are not those that its size and SHA-256 promised; the archive must be thrown away."""


def member_path(section: Section, name: str) -> str:
    """The path of a file in the archive: its section's folder and its name, made safe on every system."""
    return f"{section}/{_safe_name(name)}"


def stream_zip(members: Iterable[Member], manifest: Mapping[str, Any], created_at: datetime) -> Iterator[bytes]:
    """Yield a ZIP of `members` with `manifest.json` and `SHA256SUMS`, a chunk at a time.

    Members are stored, not compressed (pictures and PDFs are already), in the order given; their bytes are read
    when their turn comes and never held. `manifest.json` is `manifest` with a `files` list of path, size and
    SHA-256; `sha256sum -c SHA256SUMS` checks all of it after unpacking. Names are made safe and unique. Every
    entry carries `created_at`, so equal input gives equal bytes. Raises `MemberChanged`.
    """
    named = _unique_paths(list(members))
    listed = [{"path": path, "size": member.size, "sha256": member.sha256} for path, member in named]
    text = json.dumps({**manifest, "files": listed}, ensure_ascii=False, indent=2, sort_keys=True, default=str)
    about = text.encode() + b"\n"
    sums = [(hashlib.sha256(about).hexdigest(), "manifest.json"), *((m.sha256, path) for path, m in named)]
    check = "".join(f"{digest}  {path}\n" for digest, path in sums).encode()

    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry("manifest.json", len(about), created_at), about)
        archive.writestr(_entry("SHA256SUMS", len(check), created_at), check)
        for path, member in named:
            with archive.open(_entry(path, member.size, created_at), "w") as entry:
                for chunk in _checked(member):
                    entry.write(chunk)
                    yield from sink.drain()
            yield from sink.drain()
    yield from sink.drain()


class _Sink(io.RawIOBase):
    """The file that `zipfile` writes to: it can't seek, and is emptied after every write."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, data: Buffer) -> int:
        self._chunks.append(bytes(data))
        return len(self._chunks[-1])

    def drain(self) -> list[bytes]:
        chunks, self._chunks = self._chunks, []
        return chunks


def _entry(path: str, size: int, created_at: datetime) -> zipfile.ZipInfo:
    moment = created_at.astimezone(UTC)
    # The format counts from 1980, in local time without a zone: UTC is written.
    info = zipfile.ZipInfo(path, max(moment.timetuple()[:6], (1980, 1, 1, 0, 0, 0)))
    info.create_system = 3
    info.external_attr = 0o644 << 16
    info.file_size = size
    return info


def _checked(member: Member) -> Iterator[bytes]:
    digest, size = hashlib.sha256(), 0
    for chunk in member.open():
        digest.update(chunk)
        size += len(chunk)
        yield chunk
    if size != member.size or digest.hexdigest() != member.sha256:
        raise MemberChanged(member.path_in_zip)


def _unique_paths(members: Sequence[Member]) -> list[tuple[str, Member]]:
    """Safe paths, none equal to another on a file system that ignores case, none both a file and a folder."""
    paths = ["/".join(_safe_name(part) for part in m.path_in_zip.split("/") if part) or "_" for m in members]
    taken = {"manifest.json", "sha256sums"}
    taken |= {str(folder).casefold() for path in paths for folder in Path(path).parents}
    named = []
    for path, member in zip(paths, members, strict=True):
        folder, _, name = path.rpartition("/")
        stem, dot, suffix = name.rpartition(".")
        number = 1
        while path.casefold() in taken:
            number += 1
            numbered = f"{stem} ({number}){dot}{suffix}" if stem else f"{name} ({number})"
            path = f"{folder}/{numbered}" if folder else numbered
        taken.add(path.casefold())
        named.append((path, member))
    return named


def _safe_name(name: str) -> str:
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
