"""Line drawings: dark lines where the garment has edges, white everywhere else."""

from pathlib import Path

import pytest

from services.conversions.local.sketch import line_drawing
from tests.conversions import local_pictures as pictures


@pytest.mark.long
def test_outline_and_seams_are_drawn_and_cloth_and_backdrop_stay_white(tmp_path: Path) -> None:
    photo = pictures.garment(tmp_path / "photo.jpg", width=1000)
    out = tmp_path / "out.png"
    result = line_drawing(photo, out, view="front")
    drawing = pictures.pixels(out).colourspace("b-w")
    assert (drawing.width, drawing.height) == (1000, 1250) == (result.width, result.height)

    def darkest(left: int, top: int, width: int, height: int) -> float:
        return float(drawing.crop(left, top, width, height).min())

    assert darkest(480, 1040, 40, 30) < 60  # hem
    assert darkest(690, 900, 20, 40) < 60  # right side
    assert darkest(330, 780, 20, 20) < 170  # left side of the pocket
    assert darkest(485, 500, 30, 20) < 170  # zip
    assert darkest(380, 450, 90, 150) > 230  # cloth between seams, weave and all
    assert darkest(0, 0, 1000, 120) > 250  # backdrop

    assert 0.85 < drawing.avg() / 255 < 0.995
    assert result.confidence > 0.8
    assert result.parameters["view"] == "front"


@pytest.mark.long
def test_the_same_photograph_gives_the_same_drawing_and_another_gives_another(
    tmp_path: Path,
) -> None:
    photo = pictures.garment(tmp_path / "photo.jpg", width=500)
    first, again, other = (tmp_path / f"{name}.png" for name in ("first", "again", "other"))
    assert line_drawing(photo, first, view="front") == line_drawing(photo, again, view="front")
    assert first.read_bytes() == again.read_bytes()
    line_drawing(pictures.person(tmp_path / "person.jpg", width=500), other, view="front")
    assert other.read_bytes() != first.read_bytes()


def test_a_photograph_without_a_subject_gets_an_empty_drawing_and_little_confidence(
    tmp_path: Path,
) -> None:
    result = line_drawing(
        pictures.plain(tmp_path / "plain.jpg"), tmp_path / "out.png", view="front"
    )
    assert pictures.pixels(tmp_path / "out.png").avg() > 250
    assert result.confidence < 0.3
