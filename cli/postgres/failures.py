"""What a failure of PostgreSQL means to a person, with the next step."""

import errno
import os
import shutil
from pathlib import Path

START_ROOM = 16 * 2**20
"""Size of one segment of the write-ahead log. If less is free, a start that fails without a message
failed because of that."""


class EmbeddedPostgresError(Exception):
    """The database could not be started or stopped. The message says why and what to do next."""


def explain(output: str, data: Path, log: Path, wanted_port: int | None = None) -> str:
    """Explains what a program of PostgreSQL printed before it failed."""
    # On a full disk the log may lack the very line that says so.
    silent = "FATAL" not in output and "PANIC" not in output
    signs = (os.strerror(errno.ENOSPC), "Check free disk space", ": wrote only ")
    if any(sign in output for sign in signs) or (
        silent and shutil.disk_usage(data).free < START_ROOM
    ):
        return f"the disk that holds {data} is full; free some space"
    if "could not bind" in output and wanted_port is not None:
        return port_taken(wanted_port)
    if "could not look up effective user ID" in output:
        return (
            f"uid {os.geteuid()} has no name, which PostgreSQL needs; name it in /etc/passwd or"
            " run as another user"
        )
    last = "\n".join(f"    {line}" for line in output.strip().split("\n")[-5:])
    return f"PostgreSQL did not start on {data}; mend what it says (log: {log}):\n{last}"


def explain_system(error: OSError, directory: Path) -> str:
    """Explains an error of the operating system in a state directory."""
    if error.errno == errno.ENOSPC:
        return f"the disk that holds {directory} is full; free some space"
    if isinstance(error, FileNotFoundError) and error.filename == "setpriv":
        return "the program setpriv is missing; install the package util-linux"
    what = f"{error.strerror}: {error.filename}" if error.filename else str(error)
    return (
        f"can't keep a database in {directory}: {what}; start as its owner, or give another"
        " directory"
    )


def port_taken(port: int) -> str:
    """Explains that another program has the port."""
    return (
        f"port {port} on 127.0.0.1 is taken by another program; "
        f"stop that one (`ss -ltnp sport = :{port}` names it) or choose another port"
    )
