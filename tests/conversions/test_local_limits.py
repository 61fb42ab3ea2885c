"""The local provider runs in limited child processes."""

from functools import partial
from pathlib import Path

import pytest

from services.conversions.local.assess import assess
from services.conversions.local.closeup import close_up
from services.conversions.local.sketch import line_drawing
from services.conversions.local.tryon import try_on
from shared.formats.fact_tables import FactsError
from shared.formats.facts import load_facts
from shared.imaging import ImageRejected, ImagingPool, Reason
from tests.conversions import local_pictures as pictures


@pytest.mark.long
async def test_photographs_of_24_megapixels_fit_into_a_limited_child(tmp_path: Path) -> None:
    small, cloth = pictures.garment(tmp_path / "small.png", width=880), tmp_path / "cloth.jpg"
    pictures.pixels(small).resize(5, kernel="linear").write_to_file(str(cloth))
    person = pictures.person(tmp_path / "person.jpg", width=640)
    pool = ImagingPool(workers=1)

    try:
        preview = await pool.run(try_on, person, cloth, tmp_path / "preview.webp")
        drawing = await pool.run(
            partial(line_drawing, view="front"), cloth, tmp_path / "drawing.png"
        )
        detail = await pool.run(partial(close_up, at=(0.5, 0.5)), cloth, tmp_path / "detail.jpg")
        measured = await pool.run(assess, "front", cloth)
    finally:
        await pool.close()
    assert (preview.width, preview.height) == (640, 960)
    assert max(drawing.width, drawing.height) == 2000
    assert (detail.width, detail.height) == (1600, 1600)
    assert measured.quality.width == 4400


async def test_a_damaged_picture_and_bad_facts_come_back_as_their_own_errors(
    tmp_path: Path,
) -> None:
    whole = pictures.garment(tmp_path / "whole.png", width=500).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 3])
    pool = ImagingPool(workers=1)

    try:
        with pytest.raises(ImageRejected) as rejected:
            await pool.run(
                partial(line_drawing, view="front"), tmp_path / "cut.png", tmp_path / "out.png"
            )
        with pytest.raises(FactsError) as refused:
            await pool.run(load_facts, "scales: [{view: front}]")
    finally:
        await pool.close()
    assert rejected.value.reason is Reason.CORRUPT
    assert refused.value.path == "scales[0].value"
