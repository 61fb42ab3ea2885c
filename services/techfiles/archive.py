"""Writes the archive of a collection for its receivers: a ZIP of every file in its section, with a
manifest and checksums.

Uses no database, network or clock: the same input gives the same bytes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from shared.formats import names, zips

# The folders of the archive, in the order of the document.
Section = Literal[
    "01-cover",
    "02-base-views",
    "03-sketches",
    "04-closeups",
    "05-materials",
    "06-measurements",
    "07-documents",
]


@dataclass(frozen=True, slots=True)
class Member:
    """A file for the archive: `open` returns its bytes in chunks, `size` and `sha256` (hex)
    describe them."""

    path_in_zip: str
    open: Callable[[], Iterable[bytes]]
    size: int
    sha256: str


class MemberChanged(Exception):
    """Raised if a member's bytes are not those that its size and SHA-256 promised; the archive must
    be thrown away."""


def member_path(section: Section, name: str) -> str:
    """Returns the path of a file in the archive: its section's folder and its name, made safe for
    every system."""
    return f"{section}/{names.of_file(name)}"


def stream_zip(
    members: Iterable[Member], manifest: Mapping[str, Any], created_at: datetime
) -> Iterator[bytes]:
    """Yields a ZIP of `members` with `manifest.json` and `SHA256SUMS`, in chunks.

    Members aren't compressed (pictures and PDFs are already), and come in the order given; their
    bytes are read when their turn comes and never held. `manifest.json` is `manifest` with a
    `files` list of path, size and SHA-256; `sha256sum -c SHA256SUMS` checks all of it after
    unpacking. Names are made safe and unique. Every entry carries `created_at`, so equal input
    gives equal bytes. Raises `MemberChanged`.
    """
    members = list(members)
    paths = zips.unique_paths([m.path_in_zip for m in members], ("manifest.json", "SHA256SUMS"))
    named = list(zip(paths, members, strict=True))
    listed = [
        {"path": path, "size": member.size, "sha256": member.sha256} for path, member in named
    ]
    text = json.dumps(
        {**manifest, "files": listed}, ensure_ascii=False, indent=2, sort_keys=True, default=str
    )
    about = text.encode() + b"\n"
    sums = [
        (hashlib.sha256(about).hexdigest(), "manifest.json"),
        *((m.sha256, path) for path, m in named),
    ]
    check = "".join(f"{digest}  {path}\n" for digest, path in sums).encode()

    archive = zips.Archive(created_at)
    for path, content in (("manifest.json", about), ("SHA256SUMS", check)):
        yield archive.begin(path, len(content)) + archive.data(content) + archive.end()
    for path, member in named:
        yield archive.begin(path, member.size)
        for chunk in _checked(member):
            yield archive.data(chunk)
        yield archive.end()
    yield archive.close()


def _checked(member: Member) -> Iterator[bytes]:
    digest, size = hashlib.sha256(), 0
    for chunk in member.open():
        digest.update(chunk)
        size += len(chunk)
        if size > member.size:
            break
        yield chunk
    if size != member.size or digest.hexdigest() != member.sha256:
        raise MemberChanged(member.path_in_zip)
