"""Fixtures of the fault tests, and the figures they measure, which are printed at the end and never
asserted."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.postgres import EmbeddedPostgres
from tests.faults.processes import Processes, Superuser
from tests.suite import Client, Cluster, DiskServer, Keys, Suite, running_suite

_MEASURED: list[str] = []


@pytest.fixture
def measured() -> Callable[[str], None]:
    """Returns a function that adds a line to the summary."""
    return _MEASURED.append


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _MEASURED:
        terminalreporter.section("measured")
        for line in _MEASURED:
            terminalreporter.line(line)


class Bench:
    """One database with the suite's server in this process and workers in processes of their
    own."""

    def __init__(self, suite: Suite, processes: Processes) -> None:
        self.suite = suite
        self.processes = processes
        self.superuser = Superuser(suite.cluster.url(suite.database))
        self.client: Client = suite.client()


@pytest.fixture
async def bench(
    cluster: Cluster, keys: Keys, disk: DiskServer, tmp_path: Path
) -> AsyncIterator[Bench]:
    """Serves assets; tests start workers with `bench.processes.work("assets")`."""
    async with running_suite(cluster, keys, disk) as suite:
        await suite.serve("assets")
        processes = Processes(cluster, suite.database, keys, disk, tmp_path)
        try:
            yield Bench(suite, processes)
        finally:
            processes.close()


@pytest.fixture
def processes(
    cluster: Cluster, keys: Keys, disk: DiskServer, tmp_path: Path
) -> Iterator[Processes]:
    """Processes over a database of the test's own; none is started yet."""
    database = cluster.clone()
    made = Processes(cluster, database, keys, disk, tmp_path)
    try:
        yield made
    finally:
        made.close()
        cluster.drop(database)


@pytest.fixture
def durable() -> Iterator[EmbeddedPostgres]:
    """A Postgres as in production: what it acknowledges is on the disk."""
    # Not below pytest's directory: run by root, that is closed to the account that Postgres runs
    # as.
    directory = Path(tempfile.mkdtemp(prefix="atelier-postgres-"))
    directory.chmod(0o755)
    try:
        with EmbeddedPostgres(directory) as postgres:
            yield postgres
    finally:
        shutil.rmtree(directory)
