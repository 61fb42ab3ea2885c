"""The promises of an archive of a collection."""

import hashlib
import json
import re
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest

from services.techfiles.archive import Member, MemberChanged, member_path, stream_zip
from tests import forward_zip

WHEN = datetime(2026, 11, 20, 8, 30, 10, tzinfo=UTC)


def member(path: str, content: bytes) -> Member:
    def chunks() -> Iterator[bytes]:
        yield from (content[at : at + 1000] for at in range(0, len(content), 1000))

    return Member(path, chunks, len(content), hashlib.sha256(content).hexdigest())


def some_members() -> list[Member]:
    return [
        member("01-cover/front.jpg", bytes(range(256)) * 300),
        member(member_path("02-base-views", "Vorderansicht ä 漢.jpg"), b"view"),
        member("07-documents/empty.txt", b""),
    ]


def test_the_archive_unpacks_anywhere_and_its_checksums_agree(tmp_path: Path) -> None:
    archive = tmp_path / "pack.zip"
    archive.write_bytes(
        b"".join(stream_zip(some_members(), {"title": "Jäckchen", "made": WHEN}, WHEN))
    )

    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        assert {info.date_time for info in opened.infolist()} == {(2026, 11, 20, 8, 30, 10)}
        opened.extractall(tmp_path / "out")
        with archive.open("rb") as stream:
            assert forward_zip.contents(stream) == {
                name: opened.read(name) for name in opened.namelist()
            }

    sums = ["sha256sum", "-c", "--strict", "SHA256SUMS"]
    check = subprocess.run(sums, cwd=tmp_path / "out", check=True, capture_output=True, text=True)
    assert check.stdout.count(": OK") == 4

    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (
        manifest["title"] == "Jäckchen"
        and manifest["files"][1]["path"] == "02-base-views/Vorderansicht ä 漢.jpg"
    )
    assert (tmp_path / "out" / "02-base-views" / "Vorderansicht ä 漢.jpg").read_bytes() == b"view"


def test_the_same_files_give_the_same_archive() -> None:
    first = b"".join(stream_zip(some_members(), {"b": 1, "a": 2}, WHEN))
    again = b"".join(stream_zip(some_members(), {"a": 2, "b": 1}, WHEN.astimezone()))
    assert first == again
    assert first != b"".join(
        stream_zip(some_members(), {"b": 1, "a": 2}, WHEN + timedelta(minutes=1))
    )


def test_names_stay_inside_the_archive_and_apart_from_each_other() -> None:
    given = [
        "../../etc/passwd",
        "/abs/olute",
        "a\\..\\b",
        "01-cover/../x",
        "01-cover/Front.jpg",
        "01-cover/front.JPG",
        "01-cover/fro\nnt.jpg",
        "01-cover/con.txt",
        "01-cover/" + "漢" * 300 + ".jpg",
        "manifest.json",
        "sha256sums",
        "folder",
        "folder/inside",
        "01-cover/. .",
        "01-cover/name.",
        "",
    ]
    archive = b"".join(stream_zip([member(path, b"x") for path in given], {}, WHEN))

    names = zip_names(archive)
    assert len(names) == len(given) + 2
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        parts = name.split("/")
        assert all(
            part not in ("", ".", "..") and not re.search(r"[\\:\x00-\x1f]|[. ]$", part)
            for part in parts
        ), name
        assert all(len(part.encode()) <= 170 for part in parts)
    assert "folder/inside" in names and "folder" not in names
    assert "01-cover/Front.jpg" in names and "01-cover/front (2).JPG" in names
    assert member_path("04-closeups", "AC/DC ../ä.jpg") == "04-closeups/AC_DC .._ä.jpg"


def zip_names(archive: bytes) -> list[str]:
    with zipfile.ZipFile(BytesIO(archive)) as opened:
        return opened.namelist()


@pytest.mark.parametrize("wrong", [b"shorter", b"other bytes!"])
def test_a_file_that_changed_under_way_stops_the_archive(wrong: bytes) -> None:
    good = member("01-cover/a.jpg", b"right bytes!")
    changed = replace(good, open=member("", wrong).open)
    with pytest.raises(MemberChanged, match=r"01-cover/a\.jpg"):
        list(stream_zip([changed], {}, WHEN))


def test_the_archive_is_passed_on_as_it_is_read(tmp_path: Path) -> None:
    """At most one chunk is held: what has been read is yielded before the next chunk is
    requested."""
    read = 0

    def chunks(count: int) -> Callable[[], Iterable[bytes]]:
        def generate() -> Iterator[bytes]:
            nonlocal read
            for _ in range(count):
                read += 1 << 16
                yield bytes(1 << 16)

        return generate

    digest = hashlib.sha256(bytes(64 << 16)).hexdigest()
    members = [Member(f"04-closeups/{n}.jpg", chunks(64), 64 << 16, digest) for n in range(3)]
    passed = 0
    for piece in stream_zip(members, {}, WHEN):
        passed += len(piece)
        assert read - passed <= 1 << 16
    assert read == 3 * 64 << 16 and passed > read
