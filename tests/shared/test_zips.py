"""Archives can be read by every reader, their size is known beforehand, and names don't collide."""

import io
import random
import tracemalloc
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from shared.formats import zips
from tests import forward_zip

WHEN = datetime(2026, 11, 20, 8, 30, 10, tzinfo=UTC)
PIECE = bytes(1 << 22)
MANY = [(f"{n}.jpg", 1) for n in range(65_536)]


def written(entries: list[tuple[str, int]]) -> Iterator[bytes]:
    """Yields an archive of zeros."""
    archive = zips.Archive(WHEN)
    for path, size in entries:
        yield archive.begin(path, size)
        for start in range(0, size, len(PIECE)):
            yield archive.data(PIECE[: size - start])
        yield archive.end()
    yield archive.close()


def archived(files: dict[str, bytes], piece: int = 1 << 16) -> bytes:
    archive = zips.Archive(WHEN)
    made = []
    for path, data in files.items():
        made.append(archive.begin(path, len(data)))
        made += [archive.data(data[start : start + piece]) for start in range(0, len(data), piece)]
        made.append(archive.end())
    return b"".join([*made, archive.close()])


FILES = {
    "ä/漢 👩‍👩‍👧.jpg": bytes(range(256)) * 1000,
    "empty": b"",
    "one": b"1",
    "a block": bytes(65_535),
    "a block and one": bytes(65_536),
    "two": random.Random(1).randbytes(131_070),
    "zip": archived({"inner": b"x" * 9}),
}


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [("empty", 0), ("ä/漢.jpg", 5)],
        MANY[:65_534],
        MANY[:65_535],
        MANY,
        [("a block", 65_535), ("more", 65_536)],
    ],
    ids=["none", "two", "one less than a short count holds", "as many", "more", "blocks"],
)
def test_the_size_is_known_beforehand(entries: list[tuple[str, int]]) -> None:
    assert zips.size_of(entries) == sum(map(len, written(entries)))


def test_what_is_in_it_is_found_from_its_end_and_from_its_begin() -> None:
    data = archived(FILES)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == FILES
        assert {info.date_time for info in archive.infolist()} == {(2026, 11, 20, 8, 30, 10)}
        assert {info.external_attr >> 16 for info in archive.infolist()} == {0o100644}
    assert forward_zip.contents(io.BytesIO(data)) == FILES


@pytest.mark.parametrize("piece", [1, 7, 65_534, 65_535, 65_536, 1 << 20])
def test_the_same_files_give_the_same_bytes_whatever_pieces_they_come_in(piece: int) -> None:
    files = {name: data[:70_000] for name, data in FILES.items()}
    assert archived(files, piece) == archived(files)


@pytest.mark.long
def test_more_files_than_a_short_count_holds_are_read() -> None:
    data = b"".join(written(MANY))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert (
            archive.namelist() == [path for path, _ in MANY] and archive.read("65535.jpg") == b"\0"
        )
    assert list(forward_zip.entries(io.BytesIO(data))) == MANY


class Holes(io.RawIOBase):
    """A file that was written in order and keeps only the parts it was told to; the rest is read as
    zeros."""

    def __init__(self) -> None:
        self.size = self._place = 0
        self._parts: list[tuple[int, bytes]] = []

    def append(self, data: bytes, *, keep: bool) -> None:
        if keep:
            self._parts.append((self.size, data))
        self.size += len(data)

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, self.size)[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> bytes:
        end = self.size if size < 0 else min(self._place + size, self.size)
        data = bytearray(end - self._place)
        for start, part in self._parts:
            low, high = max(start, self._place), min(start + len(part), end)
            if low < high:
                data[low - self._place : high - self._place] = part[low - start : high - start]
        self._place = end
        return bytes(data)


@pytest.mark.long
def test_a_file_of_more_than_4_gib_and_what_is_behind_it_are_found() -> None:
    entries = [("far.tif", (4 << 30) + 5), ("last", 3)]
    file = Holes()
    for data in written(entries):
        file.append(data, keep=len(data) < 1000)
    assert zips.size_of(entries) == file.size
    with zipfile.ZipFile(file) as archive:
        assert [(info.filename, info.file_size) for info in archive.infolist()] == entries
        assert archive.read("last") == bytes(3)


def test_what_takes_the_longer_form_is_read_from_its_begin_and_its_size_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for far in (131_079, 131_080, 131_081, 150_000, 500_000):
        for module in (zips, forward_zip):
            monkeypatch.setattr(module, "_FAR", far)
        data = archived(FILES)
        assert forward_zip.contents(io.BytesIO(data)) == FILES
        assert zips.size_of([(path, len(content)) for path, content in FILES.items()]) == len(data)


def test_no_more_than_a_piece_is_held() -> None:
    tracemalloc.start()
    for _ in written([("a", 100 << 20), ("b", 100 << 20)]):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(PIECE)


@pytest.mark.parametrize("sent", [2, 4])
def test_a_file_of_another_size_than_was_said_stops_the_archive(sent: int) -> None:
    archive = zips.Archive(WHEN)
    archive.begin("a.jpg", 3)
    with pytest.raises(zips.WrongSize, match=r"a\.jpg"):
        _ = archive.data(bytes(sent)) + archive.end()


def test_ten_thousand_equal_names_stay_apart() -> None:
    paths = zips.unique_paths(["front.jpg", "FRONT.jpg"] * 5000)
    assert len({path.casefold() for path in paths}) == 10_000
    assert paths[:4] == ["front.jpg", "FRONT (2).jpg", "front (3).jpg", "FRONT (4).jpg"]
