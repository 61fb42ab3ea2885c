"""One suite for all tests of assets that need no database of their own. Each test acts as owners of
its own."""

import itertools
from collections.abc import AsyncIterator, Callable

import pytest

from tests.suite import Client, Cluster, DiskServer, Keys, Suite, suite

_numbers = itertools.count()


@pytest.fixture(scope="package")
async def house(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    async with suite(cluster, keys, disk) as made:
        await made.serve("assets")
        await made.work("assets")
        yield made


@pytest.fixture(scope="package")
async def open_house(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Suite]:
    """A suite that may also call servers of this machine, for imports."""
    async with suite(cluster, keys, disk) as made:
        made.overrides["outbound_allowed_networks"] = "127.0.0.0/8"
        await made.serve("assets")
        await made.work("assets")
        yield made


@pytest.fixture
def caller(house: Suite) -> Callable[..., Client]:
    """Makes callers, each an owner that no test has used before: `caller()`, `caller("vendor")`."""

    def make(role: str = "user") -> Client:
        return house.client(f"caller{next(_numbers)}", role)

    return make


@pytest.fixture
def ada(caller: Callable[..., Client]) -> Client:
    return caller()
