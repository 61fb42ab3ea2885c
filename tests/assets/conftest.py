"""One suite for all tests of assets that need no database of their own. Each test acts as owners of
its own."""

import itertools
from collections.abc import AsyncIterator, Callable

import pytest

from tests.suite import Client, Cluster, DiskServer, Keys, Suite, running_suite

_numbers = itertools.count()


@pytest.fixture(scope="package")
async def suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    async with running_suite(cluster, keys, disk) as suite:
        await suite.serve("assets")
        await suite.work("assets")
        yield suite


@pytest.fixture(scope="package")
async def open_suite(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    """A suite that may also call servers of this machine, for imports."""
    async with running_suite(cluster, keys, disk) as suite:
        suite.overrides["outbound_allowed_networks"] = "127.0.0.0/8"
        await suite.serve("assets")
        await suite.work("assets")
        yield suite


@pytest.fixture
def caller(suite: Suite) -> Callable[..., Client]:
    """Makes callers, each an owner that no test has used before: `caller()`, `caller("vendor")`."""

    def make(role: str = "user") -> Client:
        return suite.client(f"caller{next(_numbers)}", role)

    return make


@pytest.fixture
def ada(caller: Callable[..., Client]) -> Client:
    return caller()
