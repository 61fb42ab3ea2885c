"""The state directory of a database: where its files lie, and who may touch them."""

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from cli.postgres.account import Account
from cli.postgres.failures import EmbeddedPostgresError

SYSTEM_PLACE = Path("/var/lib/atelier")
NOTE = "data-is-elsewhere.txt"
LOCK_WAIT_S = 1.0
"""Time to wait for the lock: a killed launcher holds it until the kernel has freed its memory."""


def locate(directory: Path) -> Path:
    """Returns the directory of `data` and `lock`: the state directory, or one that the server's
    account can reach."""
    if not directory.exists():
        directory.mkdir(parents=True)
        if os.geteuid() == 0:
            # The server's account has to pass through. All files here that it must not read are
            # 0600.
            directory.chmod(0o711)
    note = directory / NOTE
    if note.exists():
        return _follow(note, directory)
    data = directory / "data"
    account = Account.for_data(data)
    if os.geteuid() != 0 or account.reaches(directory):
        return directory
    if data.exists():
        raise EmbeddedPostgresError(
            f"{account.name}, to whom {data} belongs, can't reach it any more; "
            "give the directories above it back their search permission (chmod o+x)"
        )
    name = hashlib.sha256(bytes(directory.resolve())).hexdigest()[:16]
    # The random suffix keeps a state directory that was deleted and made again from reviving the
    # old one's data.
    home = system_place() / f"{name}-{secrets.token_hex(4)}"
    home.mkdir()
    home.chmod(0o711)
    (home / "belongs-to.txt").write_text(f"{directory}\n")
    write_private(
        note,
        f"{home}\nholds the database files; {account.name}, as whom PostgreSQL runs, can't come"
        " here.\n",
    )
    return home


def _follow(note: Path, directory: Path) -> Path:
    home = Path(note.read_text().partition("\n")[0])
    # The directory may be someone else's: a file in it must not lead root to write just anywhere.
    if home.parent != SYSTEM_PLACE or not home.is_dir():
        raise EmbeddedPostgresError(
            f"the database files of {directory} were in {home} and aren't there; "
            f"put them back, or remove {note} to begin with an empty database"
        )
    return home


def system_place() -> Path:
    """Returns the directory for what other accounts must reach; makes it if it is missing."""
    if not SYSTEM_PLACE.exists():
        SYSTEM_PLACE.mkdir(parents=True, exist_ok=True)
        SYSTEM_PLACE.chmod(0o755)
    return SYSTEM_PLACE


class Lock:
    """The file `lock`, held with flock(2) by the one launcher that may touch the database. `home`
    is the directory that it lies in, `directory` the state directory."""

    def __init__(self, home: Path, directory: Path) -> None:
        self._directory = directory
        self._handle = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    def take(self, check_wanted: Callable[[], None]) -> None:
        """Waits for the lock, for as long as `check_wanted` raises nothing. Raises
        EmbeddedPostgresError if another launcher keeps it."""
        give_up = time.monotonic() + LOCK_WAIT_S
        while not _flock(self._handle):
            check_wanted()
            if time.monotonic() > give_up:
                holder = os.pread(self._handle, 32, 0).decode(errors="replace").strip() or "unknown"
                raise EmbeddedPostgresError(
                    f"another launcher (process {holder}) runs the database in {self._directory}; "
                    "use that one, stop it first, or give this one a directory of its own"
                )
            time.sleep(0.02)
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._handle)


def _flock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_private(path: Path, text: str) -> None:
    """Replaces the file as a whole, mode 0600, on disk when this returns. Leaves a file with this
    text alone."""
    if path.exists() and path.read_text() == text:
        return
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    sync(path.parent)


def sync(directory: Path) -> None:
    """Returns when the entries of the directory are on disk."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
