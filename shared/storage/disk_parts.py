"""Multipart uploads on disk. Each is a folder with `about`, an empty object whose trailer holds key
and type, and the parts, each in the format of an object."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, Final

from .base import MultipartEnded, Part, Stat
from .disk_files import Temporary, flush_folder, open_object, read_trailer, stat_of

_ABOUT: Final = "about"


def begin(folder: Path, about: dict[str, Any]) -> None:
    folder.mkdir(mode=0o700)
    file = Temporary(folder / _ABOUT)
    try:
        file.finish({"size": 0, "sha256": file.hashed.hexdigest(), "cache_forever": False, **about})
    finally:
        file.close()
    flush_folder(folder)
    flush_folder(folder.parent)


def publish_part(target: Path, temporary: Temporary) -> Stat:
    trailer = {
        "size": temporary.size,
        "sha256": temporary.hashed.hexdigest(),
        "content_type": "",
        "cache_forever": False,
    }
    modified = temporary.finish(trailer)
    try:
        temporary.path.replace(target)
        flush_folder(target.parent)
    except FileNotFoundError:
        raise ended(target.parent.name) from None
    return stat_of(target.name, trailer, modified)


def about_of(folder: Path, key: str) -> dict[str, Any]:
    """Returns the key and type of a multipart upload. Raises MultipartEnded."""
    try:
        with FileIO(folder / _ABOUT) as file:
            about = read_trailer(file.fileno(), os.fstat(file.fileno()).st_size)
    except (FileNotFoundError, NotADirectoryError):
        about = None
    if about is None or about["key"] != key:
        raise ended(folder.name)
    return about


def list_parts(folder: Path, key: str) -> Sequence[Part]:
    about_of(folder, key)
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.name != _ABOUT)
    except FileNotFoundError:
        raise ended(folder.name) from None
    parts = []
    for name in names:
        if opened := open_object(folder / name, name):
            opened.file.close()
            parts.append(Part(int(name), opened.stat.size, opened.stat.etag))
    return parts


def remove_parts(folder: Path) -> None:
    """Deletes the upload's folder. Renames it first: a part that arrives meanwhile must find no
    folder."""
    gone = folder.with_suffix(f".{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        folder.replace(gone)
        shutil.rmtree(gone)


def sweep(folder: Path, before: float) -> bool:
    """Removes the upload if it began before this time (seconds since 1970); returns whether it
    did."""
    about = folder / _ABOUT
    old = (about if about.exists() else folder).stat().st_mtime < before
    if old:
        remove_parts(folder)
    return old


def ended(upload: str) -> MultipartEnded:
    return MultipartEnded(f"the upload in parts {upload[:80]} has ended")
