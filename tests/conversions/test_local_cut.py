"""What is cut out: the whole garment, whatever its colours have in common with its backdrop."""

from pathlib import Path

import pytest
import pyvips

from services.conversions.local import picture, subject
from services.conversions.local.subject import Subject
from tests.conversions import local_pictures as pictures

WHITE, PALE, INK = (250, 250, 250), (244, 244, 244), (30, 30, 34)


def found(path: Path) -> Subject:
    return subject.find(picture.open_upright(path, 1600))


def agreement(mask: pyvips.Image, shape: pyvips.Image) -> float:
    """Returns the area that two masks share, as a share of the area that either has."""
    return float((mask & shape).avg() / (mask | shape).avg())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("white on white", {"colour": WHITE, "backdrop": WHITE, "seam": 12}),
        ("white on pale", {"colour": WHITE, "backdrop": PALE, "shadow": 0.05}),
        ("white with a print", {"colour": WHITE, "backdrop": PALE, "ink": INK}),
        (
            "stripes of the backdrop's colour",
            {"colour": INK, "backdrop": WHITE, "ink": WHITE, "stripes": True},
        ),
        ("a print of the backdrop's colour", {"colour": INK, "backdrop": PALE, "ink": PALE}),
        ("a soft shadow", {"colour": pictures.NAVY, "backdrop": PALE, "shadow": 0.12}),
    ],
)
def test_a_tee_is_cut_out_whole(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    photo = pictures.tee(tmp_path / "tee.jpg", **options)  # type: ignore[arg-type]
    cut = found(photo)
    shape = (pictures.tee_shape(800) < 0).copy_memory()
    assert agreement(cut.mask, shape) > 0.93, name
    assert cut.separation > 0.3


def test_the_backdrop_shows_between_arm_and_body(tmp_path: Path) -> None:
    cut = found(pictures.person(tmp_path / "person.png"))
    for x, y in ((226, 450), (414, 450), (320, 700)):
        assert cut.mask(x, y)[0] == 0
    for x, y in ((320, 400), (320, 130), (203, 450), (270, 700)):
        assert cut.mask(x, y)[0] == 255


def test_a_transparent_backdrop_is_taken_as_it_is(tmp_path: Path) -> None:
    shape = (pictures.tee_shape(800) < 0).copy_memory()
    colours = pictures.pixels(
        pictures.tee(tmp_path / "tee.png", WHITE, backdrop=WHITE)  # no outline at all
    )
    colours.bandjoin(shape).write_to_file(str(tmp_path / "cut.png"))
    cut = found(tmp_path / "cut.png")
    assert (cut.mask - shape).abs().max() == 0
    assert cut.separation == 1


def test_where_nothing_can_be_told_apart_the_subject_is_the_whole_picture(tmp_path: Path) -> None:
    same = found(pictures.tee(tmp_path / "same.png", WHITE, backdrop=WHITE))
    assert (same.separation, same.coverage) == (0, 1)
    assert found(pictures.street(tmp_path / "street.png")).separation == 0
