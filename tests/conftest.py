import gc
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cli.postgres import EmbeddedPostgres
from tests.suite import Cluster, DiskServer, Keys, Suite, running_suite

# Whole jobs through running processes. They begin first, so that no test worker is left alone with
# them at the end.
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
    # Without this the garbage collector walks thousands of tests and modules repeatedly, which
    # costs a twentieth of the whole run.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


_IN_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 2 * 1024**3


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A directory for files that are made and thrown away by the thousand, in memory if there is
    room.

    Copying a database, which is a thousand files, costs up to thirty times as much on a disk.
    (Storage's own tests are on disk.)
    """
    # Not below pytest's directory: run by root, that is closed to the account that Postgres runs
    # as.
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
        # DROP DATABASE waits for abandoned logins, which take a minute to time out by default.
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
async def own_suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    """The suite on a database of the test's own. Tests start the services they need: `await
    suite.serve("assets")`."""
    async with running_suite(cluster, keys, disk) as suite:
        yield suite


@pytest.fixture
def suite(own_suite: Suite) -> Suite:
    """The suite of the test: its own, unless its package or its module shares one."""
    return own_suite
