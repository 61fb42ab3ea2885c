"""What archives are promised to be before their first byte: their size, and names that stay apart."""

import zipfile
from datetime import UTC, datetime

import pytest

from shared import zips

WHEN = datetime(2026, 11, 20, 8, 30, 10, tzinfo=UTC)
PIECE = bytes(1 << 22)


def written(entries: list[tuple[str, int]]) -> int:
    """Bytes of an archive of zeros."""
    sink = zips.Sink()
    total = 0
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for path, size in entries:
            with archive.open(zips.entry(path, size, WHEN), "w") as file:
                for start in range(0, size, len(PIECE)):
                    file.write(PIECE[: size - start])
                    total += sum(map(len, sink.drain()))
    return total + sum(map(len, sink.drain()))


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [("empty", 0), ("ä/漢.jpg", 5)],
        [(f"{n}.jpg", 1) for n in range(65_535)],
        [(f"{n}.jpg", 1) for n in range(65_536)],
        [(f"{n}.jpg", 50 << 20) for n in range(42)],  # the last begins behind 2 GiB
    ],
    ids=["none", "two", "as many as a short count holds", "more", "large"],
)
def test_the_size_is_known_beforehand(entries: list[tuple[str, int]]) -> None:
    assert zips.size_of(entries) == written(entries)


def test_ten_thousand_equal_names_stay_apart() -> None:
    paths = zips.unique_paths(["front.jpg", "FRONT.jpg"] * 5000)
    assert len({path.casefold() for path in paths}) == 10_000
    assert paths[:4] == ["front.jpg", "FRONT (2).jpg", "front (3).jpg", "FRONT (4).jpg"]
