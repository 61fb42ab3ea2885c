"""The files of a database (in PostgreSQL's terms a cluster): made, checked, and opened with the
settings that this package stands for."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.postgres.account import Account
from cli.postgres.directory import sync, write_private
from cli.postgres.failures import EmbeddedPostgresError, explain
from cli.postgres.programs import MAJOR
from cli.postgres.server import open_log

_DEFAULTS = {
    "shared_buffers": "64MB",
    "max_connections": "200",
    "jit": "off",
    "timezone": "UTC",
}
# The log records the server's life and nothing that a client sent: no statements, no parameters, no
# DETAIL lines (which quote statements of deadlocks and killed backends). Errors of sessions go to
# the client only, see _FIRST_SQL.
_FIXED = {
    "listen_addresses": "127.0.0.1",
    # Without a Unix socket no path can be too long, and there is no second way in.
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_transaction_sample_rate": "0",
    "log_min_error_statement": "panic",
    "log_parameter_max_length": "0",
    "log_error_verbosity": "terse",
}
RESERVED = frozenset(_FIXED) | {
    "port",
    "data_directory",
    "hba_file",
    "config_file",
    "external_pid_file",
}
"""Settings that a caller may not change."""

# Even the first line of an error may quote a value ('syntax error at or near "hunter2"'). Set for
# roles, this silences sessions but not the server's own processes, so a full disk still shows.
_FIRST_SQL = "ALTER ROLE ALL SET log_min_messages = 'log'"


@dataclass(frozen=True)
class Cluster:
    """The directory `data`, with the programs that open it and the account that owns it. `log` is
    the server's log, `options` are settings that override the defaults."""

    data: Path
    log: Path
    account: Account
    programs: Path
    options: dict[str, str]

    def server_command(self, port: int) -> list[str]:
        """Returns the command that runs a server on these files. The kernel tells it to shut down
        when its launcher dies."""
        settings = _DEFAULTS | self.options | _FIXED | {"port": str(port)}
        return self.account.command(
            [self.programs / "postgres", "-D", self.data, *_as_arguments(settings)], "INT"
        )

    def prepare(self, secret: Path) -> str:
        """Makes the database if there is none, else checks that these programs may open it. Returns
        the superuser's password, which is kept in the file `secret`. Raises
        EmbeddedPostgresError."""
        self._discard_unfinished()
        known = secret.exists()
        password = secret.read_text().strip() if known else secrets.token_hex(24)
        if not self.data.exists():
            write_private(secret, password)
            self._initialise(password)
            return password
        account, owner = self.account, self.data.stat().st_uid
        if owner != account.uid:
            raise EmbeddedPostgresError(
                f"{self.data} belongs to uid {owner}, not to {account.name}; start as its owner, or"
                f" hand it over: chown -R {account.uid}:{account.gid} {self.data}"
            )
        made_by = (self.data / "PG_VERSION").read_text().strip()
        if made_by != MAJOR:
            raise EmbeddedPostgresError(
                f"{self.data} was made by PostgreSQL {made_by}, and this is {MAJOR}; dump it with"
                " the release that made it (pg_dumpall), move it away, start again and restore"
            )
        if not known:
            # The password file was lost but the database wasn't. The file is written last, so that
            # the next start repairs a failure in between.
            self._run_sql(self.data, f"ALTER ROLE postgres PASSWORD '{password}'")
            write_private(secret, password)
        return password

    def _initialise(self, password: str) -> None:
        """Makes the database under another name and renames it when it is complete, so that a crash
        leaves no half of one."""
        # The name is new each time: a child of a killed initdb may still be writing into the old
        # one.
        unfinished = self.data.with_name(f"data.init.{secrets.token_hex(4)}")
        given = unfinished.with_name("password.init")
        try:
            unfinished.mkdir(mode=0o700)
            write_private(given, password)
            if os.geteuid() == 0:
                os.chown(unfinished, self.account.uid, self.account.gid)
                os.chown(given, self.account.uid, self.account.gid)
            durable = self.options.get("fsync", "on") == "on"
            argv: list[str | Path] = [
                self.programs / "initdb",
                "-D",
                unfinished,
                "-U",
                "postgres",
                "-A",
                "scram-sha-256",
                f"--pwfile={given}",
                "--encoding=UTF8",
                "--no-locale",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--no-instructions",
            ]
            self._run(argv if durable else [*argv, "--no-sync"])
            self._run_sql(unfinished, _FIRST_SQL)
            unfinished.rename(self.data)
            sync(self.data.parent)
        finally:
            self._discard_unfinished()

    def _discard_unfinished(self) -> None:
        self.data.with_name("password.init").unlink(missing_ok=True)
        for leftover in self.data.parent.glob("data.init.*"):
            # The next start removes a directory that something still writes into.
            shutil.rmtree(leftover, ignore_errors=True)

    def _run_sql(self, data: Path, statement: str) -> None:
        """Runs one statement in single-user mode, which needs neither a port nor the password."""
        settings = _as_arguments(_FIXED | {"exit_on_error": "on"})
        argv: list[str | Path] = [
            self.programs / "postgres",
            "--single",
            "-D",
            data,
            *settings,
            "postgres",
        ]
        self._run(argv, f"{statement}\n")

    def _run(self, argv: Sequence[str | Path], stdin: str = "") -> None:
        done = self.account.run(argv, self.data.parent, stdin)
        if done.returncode != 0:
            with contextlib.suppress(OSError), open(open_log(self.log), "a") as log:
                log.write(done.stdout)
            raise EmbeddedPostgresError(explain(done.stdout, self.data, self.log))


def _as_arguments(settings: Mapping[str, str]) -> list[str]:
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
