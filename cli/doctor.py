"""The checks of `atelier doctor`."""

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
from pydantic import ValidationError

from cli.setup import login_url
from cli.state import State
from cli.suite import answers, is_serving, ports
from shared.settings import SERVICES, load

# Connections of a process beside its pool: a server listens; a worker sequences events and follows
# them.
_LISTENERS = 2
_ENOUGH_DISK = 2 * 1024**3


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    found: str
    advice: str = ""


def run(state: State) -> Iterator[Check]:
    yield _disk(state)
    yield from _keys(state)
    settings = _settings()
    yield settings
    if not settings.passed:
        return
    serving = [name for name in SERVICES if is_serving(ports()[name])]
    for name in SERVICES:
        passed = name in serving
        yield Check(
            f"{name} answers",
            passed,
            "healthy" if passed else "no answer",
            "" if passed else "run: ./atelier up",
        )
    passed = answers("web")
    yield Check(
        "web answers",
        passed,
        "healthy" if passed else "no answer",
        "" if passed else "run: ./atelier up",
    )
    if serving:
        yield from _database(state)


def _disk(state: State) -> Check:
    place = state.directory if state.directory.exists() else state.directory.parent
    free = shutil.disk_usage(place).free
    passed = free > _ENOUGH_DISK
    return Check(
        "disk",
        passed,
        f"{free // 1024**3} GB free",
        "" if passed else f"make room on the disk of {place}",
    )


def _settings() -> Check:
    for name in SERVICES:
        try:
            load(name)
        except ValidationError as error:
            wrong = error.errors()[0]
            setting = f"ATELIER_{'_'.join(map(str, wrong['loc'])).upper()}"
            return Check(
                "settings",
                False,
                f"{setting} of {name}: {wrong['msg']}",
                "`atelier settings` explains each",
            )
    return Check("settings", True, "valid")


def _keys(state: State) -> Iterator[Check]:
    if not state.keys.exists():
        yield Check("keys", False, "none yet", "run: ./atelier up")
        return
    exposed = [
        path.name for path in state.keys.iterdir() if stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    yield Check(
        "keys",
        not exposed,
        "private" if not exposed else f"others may read {', '.join(exposed)}",
        "" if not exposed else f"run: chmod 600 {state.keys}/*",
    )


def _database(state: State) -> Iterator[Check]:
    """Checks the embedded Postgres, or the one of ATELIER_DATABASE_URL."""
    admin_url = os.environ.get("ATELIER_DATABASE_URL") or _embedded_url(state)
    if not admin_url:
        yield Check(
            "database",
            False,
            "no embedded one",
            "set ATELIER_DATABASE_URL to the one that the suite uses",
        )
        return
    available = 0
    for name in SERVICES:
        url = login_url(admin_url, f"{name}_app", state.password(name, "app"))
        try:
            exposed, available = _exposed_and_available(name, url)
        except psycopg.Error as error:
            text = str(error).strip().splitlines()[-1]
            yield Check(f"{name} database", False, text, "is Postgres running?")
            continue
        yield Check(
            f"{name} row security",
            exposed == 0,
            "forced on every table" if exposed == 0 else f"missing on {exposed} tables",
            "" if exposed == 0 else "run: ./atelier migrate",
        )
    if available:
        yield _connections(available)


def _embedded_url(state: State) -> str:
    """Returns the URL of the embedded Postgres, without a login; empty if there is none."""
    port = state.postgres / "port"
    return f"postgresql://127.0.0.1:{port.read_text()}/atelier" if port.exists() else ""


def _exposed_and_available(service: str, url: str) -> tuple[int, int]:
    """Returns how many tables of the service don't force row security, and how many connections
    Postgres has."""
    with psycopg.connect(url, connect_timeout=3) as conn:
        exposed = conn.execute(
            "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = %s::regnamespace"
            " AND NOT (relrowsecurity AND relforcerowsecurity)",
            (service,),
        ).fetchone()
        most = conn.execute(
            "SELECT setting::int FROM pg_settings WHERE name = 'max_connections'"
        ).fetchone()
    return exposed[0] if exposed else 0, most[0] if most else 0


def _connections(available: int) -> Check:
    budget = len(SERVICES) * 2 * (load("assets").pool_size + _LISTENERS)
    passed = budget <= available
    return Check(
        "connections",
        passed,
        f"{budget} of {available} at most",
        "" if passed else "lower ATELIER_POOL_SIZE",
    )
