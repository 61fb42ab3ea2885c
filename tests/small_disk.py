"""File systems that can be filled to the last byte."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mounted(place: Path, size: str) -> Iterator[Path]:
    """Mounts a file system of the given size."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        # Helpers of a process that has just ended hold its log open for a moment longer.
        subprocess.run(["umount", "--lazy", place], check=True)


class Filler:
    """Fills a file system."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._file = root / "filler"

    def leave(self, room: int) -> None:
        """Fills all but `room` bytes."""
        self.remove()
        with self._file.open("wb") as file:
            while (size := self._free() - room) > 0:
                try:
                    os.posix_fallocate(file.fileno(), 0, size)
                except OSError as error:
                    # Another file grew after the check: less is free now.
                    if error.errno != errno.ENOSPC:
                        raise
                else:
                    break

    def _free(self) -> int:
        status = os.statvfs(self._root)
        return status.f_bavail * status.f_frsize

    def remove(self) -> None:
        self._file.unlink(missing_ok=True)
