from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.conversions.providers import polling
from services.conversions.providers.contract import InputPicture
from shared.imaging import ImagingPool
from tests.conversions import local_pictures as pictures
from tests.conversions.asked import Asking


@pytest.fixture(scope="session")
async def imaging_pool() -> AsyncIterator[ImagingPool]:
    pool = ImagingPool(1)
    yield pool
    await pool.close()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that a provider made."""
    return pictures.person(tmp_path_factory.mktemp("pictures") / "made.png", width=512)


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[InputPicture]:
    """The pictures of a try-on."""
    folder = tmp_path_factory.mktemp("shown")
    return [
        InputPicture("user", pictures.person(folder / "person.jpg", width=256)),
        InputPicture("cloth", pictures.garment(folder / "cloth.jpg", width=256)),
    ]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Providers are polled so often that no test waits for them."""
    monkeypatch.setattr(polling, "_FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(polling, "_LONGEST_PAUSE_SECONDS", 0.05)


@pytest.fixture
def ask(
    imaging_pool: ImagingPool,
    shown: list[InputPicture],
    made: Path,
    tmp_path: Path,
    impatient: None,
) -> Asking:
    return Asking(imaging_pool, shown, made, tmp_path)
