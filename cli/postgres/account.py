"""The operating system account that PostgreSQL runs as, which is never root."""

import contextlib
import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cli.postgres.failures import EmbeddedPostgresError


@dataclass(frozen=True)
class Account:
    """The operating system account that the server runs as."""

    uid: int
    gid: int

    @classmethod
    def for_data(cls, data: Path) -> Self:
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid())
        if data.exists() and (owner := data.stat()).st_uid != 0:
            return cls(owner.st_uid, owner.st_gid)
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(entry.pw_uid, entry.pw_gid)
        raise EmbeddedPostgresError(
            "PostgreSQL refuses to run as root and there is no account `postgres` or `nobody`; "
            "run `useradd --system postgres`, or start as an ordinary user"
        )

    @property
    def name(self) -> str:
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(self.uid).pw_name
        return f"uid {self.uid}"

    def command(self, argv: Sequence[str | Path], when_launcher_dies: str) -> list[str]:
        """Returns `argv` prefixed to run under this account. The kernel sends it the signal
        `when_launcher_dies` when the thread that spawns it ends."""
        change = []
        if os.geteuid() == 0:
            change = [f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        # If the launcher dies before setpriv has asked for the signal, the program would be an
        # orphan. The shell runs after that and checks that its parent is still the launcher.
        guard = ["sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid())]
        return ["setpriv", *change, "--pdeathsig", when_launcher_dies, *guard, *map(str, argv)]

    def run(
        self, argv: Sequence[str | Path], cwd: Path, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(argv, "KILL"),
            check=False,
            cwd=cwd,
            input=stdin,
            env=environment(),
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def reaches(self, directory: Path) -> bool:
        """Returns whether this account can enter the directory. It asks the kernel as that account,
        so that access lists and mounts count too."""
        answer = self.run(["test", "-x", directory], cwd=Path("/"))
        if answer.stdout:
            raise EmbeddedPostgresError(
                f"can't run anything as {self.name}: {answer.stdout.strip()}; start as an ordinary"
                " user"
            )
        return answer.returncode == 0


def environment() -> dict[str, str]:
    """Returns the environment of PostgreSQL's programs."""
    # No variables of the caller: PG* would change what the programs do, LC_ALL the language of
    # their messages.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
