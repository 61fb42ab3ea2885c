"""Callers who want no places in files are told of every one, however it was written. exiftool sees
all of these but XMP in UTF-16 and the picture behind a picture, and nothing in them that `inspect`
misses."""

from contextlib import suppress
from pathlib import Path

import pytest

from shared.imaging import ImageRejected, ImagingPool, Limits, Reason, inspect
from tests.shared.imaging import located, pictures


@pytest.mark.parametrize("name", located.LOCATED)
async def test_a_place_is_seen_however_it_is_written(
    pool: ImagingPool, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_bytes(located.LOCATED[name])
    with pytest.raises(ImageRejected) as caught:
        await pool.run(inspect, tmp_path / "file", None, Limits(locations=False))
    assert caught.value.reason is Reason.HAS_LOCATION


@pytest.mark.parametrize("name", located.NOWHERE)
async def test_what_is_no_place_is_none(pool: ImagingPool, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(located.NOWHERE[name])
    assert not (await pool.run(inspect, tmp_path / "file")).has_location


@pytest.mark.parametrize(
    "filler",
    [
        pytest.param(b"II*\0\x08\0\0\0\xff\xff" * 60_000, id="EXIF upon EXIF"),
        pytest.param(b"rdf:RDF" * 100_000, id="XMP that never ends"),
        pytest.param(
            b"\xff\xe1\0\x60http://ns.adobe.com/xmp/extension/\0" * 20_000, id="pieces of XMP"
        ),
        pytest.param(b"\x1c\2\x05\0\x0c8BIM\4\4\0\0\xff\xff\xff\xff" * 100_000, id="IPTC in IPTC"),
    ],
)
async def test_a_file_that_is_all_metadata_ends_soon(
    pool: ImagingPool, tmp_path: Path, filler: bytes
) -> None:
    """It ends with an answer or a refusal, and the child that looked isn't killed."""
    (tmp_path / "file").write_bytes(pictures.jpeg() + filler)
    child = await pool.run(pictures.process_id)
    with suppress(ImageRejected):
        assert not (await pool.run(inspect, tmp_path / "file")).has_location
    assert await pool.run(pictures.process_id) == child
