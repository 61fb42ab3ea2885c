"""The two real stores of this folder's tests: a directory with its HTTP server, and versitygw."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import pytest

from shared.storage import Storage, open_disk, open_s3
from tests import versitygw
from tests.shared.storage.servers import DiskServer, serve_disk
from tests.suite import browser


@pytest.fixture(scope="session")
def disk_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiskServer]:
    with serve_disk(tmp_path_factory.mktemp("disk")) as server:
        yield server


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[versitygw.Gateway]:
    with versitygw.running(tmp_path_factory.mktemp("s3")) as gateway:
        yield gateway


@pytest.fixture(scope="session", params=["disk", pytest.param("s3", marks=pytest.mark.needs_go)])
async def storage(request: pytest.FixtureRequest) -> AsyncIterator[Storage]:
    """Opens one store of each kind; tests use different keys."""
    opened: Storage
    if request.param == "disk":
        server: DiskServer = request.getfixturevalue("disk_server")
        opened = open_disk(server.root, base_url=server.url, secret=server.secret)
    else:
        gateway: versitygw.Gateway = request.getfixturevalue("gateway")
        opened = open_s3(
            endpoint=gateway.endpoint,
            public_endpoint=gateway.endpoint,
            bucket=gateway.bucket,
            region=gateway.region,
            access_key=gateway.access_key,
            secret_key=gateway.secret_key,
        )
    yield opened
    await opened.close()


@pytest.fixture
def folder() -> str:
    """Returns a key prefix that no other test uses."""
    return f"assets/user%3Aada/photos/{uuid.uuid4()}/"


@pytest.fixture
def new_key(folder: str) -> Callable[[], str]:
    return lambda: folder + uuid.uuid4().hex


@pytest.fixture
def key(new_key: Callable[[], str]) -> str:
    return new_key()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with browser() as client:
        yield client
