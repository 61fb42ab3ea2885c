"""Whatever breaks under the queue, it is as fast as before within 30 s, and no job is FAILED
because of it."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from bench import chaos

pytestmark = pytest.mark.faults

_TIMES = 3


@dataclass
class Ground:
    """Two workers whose queues are kept full, and their rate before anything broke."""

    field: chaos.Field
    before: Mapping[str, Mapping[str, float]]


@pytest.fixture(scope="module")
async def ground() -> AsyncIterator[Ground]:
    async with AsyncExitStack() as stack:
        field = await chaos.open_field(stack, ["ours"])
        yield Ground(field, await chaos.baseline(field))


@pytest.mark.parametrize("what", chaos.CELLS)
async def test_the_queue_comes_back(
    ground: Ground, what: str, measured: Callable[[str], None]
) -> None:
    # Other programs may take a share of the machine meanwhile; a queue that doesn't come back stays
    # slower each time.
    for _ in range(_TIMES):
        [seen] = await chaos.cell(ground.field, chaos.CELLS[what], ground.before)
        if min(seen.ratios.values()) >= chaos.TARGET:
            break
    rates = ", ".join(
        f"{ratio:.2f} with jobs of {chaos.SECONDS[name]:g} s" for name, ratio in seen.ratios.items()
    )
    measured(f"R26 {what}: rate within {chaos.WITHIN} s / before: {rates}")
    assert await chaos.failed(ground.field) == []
    assert min(seen.ratios.values()) >= chaos.TARGET, seen
