from collections.abc import AsyncIterator

import pytest

from shared.imaging import ImagingPool


@pytest.fixture(scope="module")
async def pool() -> AsyncIterator[ImagingPool]:
    pool = ImagingPool(workers=1)
    yield pool
    await pool.close()
