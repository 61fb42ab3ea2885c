import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.embedded import EmbeddedPostgres
from tests.suite import Cluster, DiskServer, Keys, Suite, suite

# Whole jobs through running processes. They begin first, so that no worker is left alone with them at the end.
_LONG = ("tests/docs", "tests/cli", "tests/pipeline", "tests/techfiles/test_runs", "tests/techfiles/test_packs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(_LONG))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    # Not below pytest's directory: as root that is closed to the account that Postgres runs as.
    directory = Path(tempfile.mkdtemp(prefix="atelier-postgres-"))
    directory.chmod(0o755)
    # Nothing here outlives the session, so it need not survive a power cut.
    options = {
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "max_connections": "300",
        # A connection that was given up while it logged in would hold up DROP DATABASE for the usual minute.
        "authentication_timeout": "3s",
    }
    try:
        with EmbeddedPostgres(directory, options=options) as postgres:
            made = Cluster(postgres.url)
            made.make_template()
            yield made
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiskServer]:
    server = DiskServer(tmp_path_factory.mktemp("storage"))
    yield server
    server.stop()


@pytest.fixture
async def atelier(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    """The suite on a database of the test's own. Start what the test needs: `await atelier.serve("assets")`."""
    async with suite(cluster, keys, disk) as made:
        yield made
