"""Close-ups: the photograph's own pixels, the right way up."""

from collections.abc import Callable
from pathlib import Path

import pytest
import pyvips

from services.conversions.local.closeup import close_up
from tests.conversions import local_pictures as pictures

STORED: dict[int, Callable[[pyvips.Image], pyvips.Image]] = {
    1: lambda image: image,
    2: lambda image: image.fliphor(),
    3: lambda image: image.rot180(),
    4: lambda image: image.flipver(),
    5: lambda image: image.rot90().fliphor(),
    6: lambda image: image.rot270(),
    7: lambda image: image.rot90().flipver(),
    8: lambda image: image.rot90(),
}


@pytest.mark.parametrize("orientation", STORED)
def test_a_crop_is_the_upright_pictures_own_pixels_however_it_is_stored(
    tmp_path: Path, orientation: int
) -> None:
    upright = pictures.pixels(pictures.garment(tmp_path / "upright.png", width=500))
    stored = STORED[orientation](upright).copy()
    stored.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    stored.write_to_file(str(tmp_path / "stored.tif"))
    result = close_up(tmp_path / "stored.tif", tmp_path / "out.png", at=(0.3, 0.62), size=160)
    expected = upright.crop(round(0.3 * 500 - 80), round(0.62 * 625 - 80), 160, 160)
    assert (pictures.pixels(tmp_path / "out.png") - expected).abs().max() == 0
    assert result.parameters["at"] == [0.3, 0.62]


def test_near_an_edge_the_crop_moves_inwards_and_a_small_picture_is_not_enlarged(
    tmp_path: Path,
) -> None:
    photo = pictures.garment(tmp_path / "photo.jpg", width=400)
    corner = close_up(photo, tmp_path / "corner.jpg", at=(1.0, 1.0), size=128)
    assert (corner.parameters["left"], corner.parameters["top"]) == (400 - 128, 500 - 128)

    whole = close_up(photo, tmp_path / "whole.jpg", at=(0.5, 0.5), size=1600)
    assert (whole.width, whole.height) == (400, 400)
    assert (
        whole.confidence
        < close_up(
            pictures.garment(tmp_path / "large.jpg", width=1600), tmp_path / "l.jpg", at=(0.5, 0.5)
        ).confidence
    )


def test_without_a_point_attention_finds_the_one_thing_that_stands_out(tmp_path: Path) -> None:
    canvas = pictures.pixels(
        pictures.garment(tmp_path / "plain.png", (90, 92, 96), width=1000, weave=1)
    )
    badge = pyvips.Image.sdf(canvas.width, canvas.height, "circle", a=[420, 900], r=26)
    marked = (
        ((0.5 - badge) * 255)
        .cast("uchar")
        .ifthenelse((canvas * 0 + [230, 30, 20]).cast("uchar"), canvas, blend=True)
    )
    marked.copy(interpretation="srgb").write_to_file(str(tmp_path / "marked.png"))

    result = close_up(tmp_path / "marked.png", tmp_path / "out.png", size=300)
    left, top = int(str(result.parameters["left"])), int(str(result.parameters["top"]))
    assert left < 394
    assert left + 300 > 446
    assert top < 874
    assert top + 300 > 926

    given = close_up(tmp_path / "marked.png", tmp_path / "given.png", at=(0.42, 0.72), size=300)
    assert given.confidence > result.confidence


def test_a_point_outside_the_picture_and_an_absurd_size_are_refused(tmp_path: Path) -> None:
    photo = pictures.garment(tmp_path / "photo.jpg", width=400)
    with pytest.raises(ValueError, match="at:"):
        close_up(photo, tmp_path / "out.jpg", at=(1.2, 0.5))
    with pytest.raises(ValueError, match="size:"):
        close_up(photo, tmp_path / "out.jpg", size=0)


def test_a_sliver_is_refused_with_its_size(tmp_path: Path) -> None:
    whole = pictures.pixels(pictures.garment(tmp_path / "whole.png", width=400))
    whole.crop(0, 200, 400, 3).write_to_file(str(tmp_path / "sliver.png"))
    with pytest.raises(ValueError, match="400 x 3 px"):
        close_up(tmp_path / "sliver.png", tmp_path / "out.png")
