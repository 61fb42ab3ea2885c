"""A program that is killed while its pool works; test_imaging_pool starts it."""

import asyncio
import sys
from pathlib import Path

from shared.imaging import ImagingPool
from tests.shared.imaging import pictures

if __name__ == "__main__":
    asyncio.run(ImagingPool(workers=1).run(pictures.sleep_after, Path(sys.argv[1])))
