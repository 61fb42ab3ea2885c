import gc
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cli.embedded import EmbeddedPostgres
from tests.suite import Cluster, DiskServer, Keys, Suite, suite

# Whole jobs through running processes. They begin first, so that no worker is left alone with them
# at the end.
_LONG = (
    "tests/docs",
    "tests/tools",
    "tests/cli",
    "tests/pipeline",
    "tests/techfiles/test_runs",
    "tests/techfiles/test_packs",
    "tests/techfiles/test_print_limits",
    "tests/conversions",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(_LONG))
    # The collector would walk thousands of tests and modules again and again, a twentieth of the
    # whole run.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


_IN_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 2 * 1024**3


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """For what is made and thrown away by the thousand. In memory where there is room: copying a
    database, which is a thousand files, costs a disk's file system up to thirty times as much.
    (Storage's own tests are on disk.)
    """
    # Not below pytest's directory: as root that is closed to the account that Postgres runs as.
    roomy = _IN_MEMORY.is_dir() and shutil.disk_usage(_IN_MEMORY).free > _ROOM_BYTES
    directory = Path(tempfile.mkdtemp(prefix="atelier-tests-", dir=_IN_MEMORY if roomy else None))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def cluster(scratch: Path) -> Iterator[Cluster]:
    # Nothing here outlives the session, so it need not survive a power cut.
    options = {
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "max_connections": "300",
        "max_wal_size": "128MB",
        # A connection that was given up while it logged in would hold up DROP DATABASE for the
        # usual minute.
        "authentication_timeout": "3s",
    }
    with EmbeddedPostgres(scratch / "postgres", options=options) as postgres:
        made = Cluster(postgres.url)
        made.make_template()
        yield made


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def disk(scratch: Path) -> Iterator[DiskServer]:
    directory = scratch / "storage"
    directory.mkdir()
    server = DiskServer(directory)
    yield server
    server.stop()


@pytest.fixture
async def atelier(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    """The suite on a database of the test's own. Start what the test needs: `await
    atelier.serve("assets")`."""
    async with suite(cluster, keys, disk) as made:
        yield made
