"""Pictures from prompts by rules: repeatable, changed by every input, and in the requested
shape."""

from pathlib import Path

import pytest

from services.conversions.local.colours import mentioned, name, rgb, to_lab
from services.conversions.local.elements import unique_visual_elements
from services.conversions.local.generate import ASPECT_RATIOS, FORMATS, generate
from shared.imaging.source_type import packet
from tests.conversions import local_pictures as pictures


@pytest.mark.long
def test_the_same_inputs_give_the_same_bytes_and_each_other_input_moves_the_pixels(
    tmp_path: Path,
) -> None:
    navy = pictures.garment(tmp_path / "navy.jpg", width=500)
    sand = pictures.garment(tmp_path / "sand.jpg", pictures.SAND, width=500)

    first, again = tmp_path / "first.png", tmp_path / "again.png"
    assert generate(
        "A calm studio", [navy], first, format="png", quality="draft", seed=7
    ) == generate("A calm studio", [navy], again, format="png", quality="draft", seed=7)
    assert first.read_bytes() == again.read_bytes()
    for index, (prompt, references, style, seed) in enumerate(
        (
            ("A calm room", [navy], None, 7),
            ("A calm studio", [sand], None, 7),
            ("A calm studio", [navy, sand], None, 7),
            ("A calm studio", [], None, 7),
            ("A calm studio", [navy], "vintage", 7),
            ("A calm studio", [navy], None, 8),
        )
    ):
        out = tmp_path / f"{index}.png"
        generate(prompt, references, out, format="png", quality="draft", style=style, seed=seed)
        assert pictures.difference(first, out) > 20


def test_a_seed_that_was_not_given_is_derived_and_reported_and_repeats_the_picture(
    tmp_path: Path,
) -> None:
    first = generate("Blue hour", [], tmp_path / "first.png", format="png", quality="draft")
    seed = int(str(first.parameters["seed"]))
    generate("Blue hour", [], tmp_path / "second.png", format="png", quality="draft", seed=seed)
    assert pictures.difference(tmp_path / "first.png", tmp_path / "second.png") == 0


@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
def test_every_aspect_ratio_is_exact_and_its_long_side_is_the_resolution(
    tmp_path: Path, aspect_ratio: str
) -> None:
    result = generate("x", [], tmp_path / "out.jpg", aspect_ratio=aspect_ratio, quality="draft")
    across, down = (int(part) for part in aspect_ratio.split(":"))
    assert max(result.width, result.height) == 1024
    assert result.width / result.height == pytest.approx(across / down, rel=0.003)
    written = pictures.pixels(tmp_path / "out.jpg")
    assert (written.width, written.height) == (result.width, result.height)


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_is_of_the_format_asked_for(tmp_path: Path, format: str) -> None:
    out = tmp_path / f"out.{format}"
    generate("x", [], out, format=format, quality="draft")

    magic = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG", "webp": b"RIFF"}[format]
    assert out.read_bytes().startswith(magic)
    assert not [
        field
        for field in pictures.pixels(out).get_fields()
        if field.startswith(("exif", "icc", "iptc"))
    ]
    assert pictures.pixels(out).get("xmp-data") == packet("algorithmicMedia"), (
        "drawn by rules, by no trained model"
    )


def test_what_is_not_offered_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="aspect_ratio"):
        generate("x", [], tmp_path / "out.jpg", aspect_ratio="5:4")
    with pytest.raises(ValueError, match="resolution"):
        generate("x", [], tmp_path / "out.jpg", resolution="4K")
    with pytest.raises(ValueError, match="quality"):
        generate("x", [], tmp_path / "out.jpg", quality="best")
    with pytest.raises(ValueError, match="format"):
        generate("x", [], tmp_path / "out.gif", format="gif")
    with pytest.raises(ValueError, match="suffix"):
        generate("x", [], tmp_path / "out.jpg", format="png")


def test_colours_named_in_the_prompt_lead_the_palette_and_the_words_with_effect_are_named(
    tmp_path: Path,
) -> None:
    result = generate(
        "Teal and #c04020 on a dark wall, zebra", [], tmp_path / "out.jpg", quality="draft"
    )
    palette = result.parameters["palette"]
    assert isinstance(palette, list)
    assert name(rgb(palette[0])) == "teal"
    assert palette[1] == "#c04020"
    assert result.parameters["words_used"] == ["dark"]


@pytest.mark.long
def test_a_reference_is_cut_out_and_shown_in_its_own_colours(tmp_path: Path) -> None:
    cloth = pictures.garment(tmp_path / "cloth.jpg", (160, 30, 40), width=700)
    result = generate(
        "Minimal", [cloth], tmp_path / "out.png", format="png", quality="draft", seed=1
    )
    centre = pictures.pixels(tmp_path / "out.png").crop(540, 480, 60, 60)
    red, green, blue = (centre[band].avg() for band in range(3))
    assert red > 110
    assert max(green, blue) < 80
    assert result.parameters["references_used"] == 1

    plain = generate(
        "Minimal",
        [pictures.plain(tmp_path / "plain.jpg")],
        tmp_path / "plain_out.jpg",
        quality="draft",
    )
    assert plain.confidence < result.confidence
    assert "1 shown as prints" in " ".join(item.note for item in plain.evidence)


@pytest.mark.long
def test_visual_elements_name_what_was_measured(tmp_path: Path) -> None:
    cloth = pictures.garment(tmp_path / "cloth.jpg", (200, 40, 50), width=600)
    found = unique_visual_elements([cloth, cloth])
    assert found == unique_visual_elements([cloth])
    assert found[0].startswith("red #")
    assert any("backdrop" in element for element in found)
    assert any(element.startswith("fine texture") for element in found)
    assert unique_visual_elements([]) == []


def test_colour_words_are_found_as_words_only() -> None:
    assert mentioned("Navy on sandy ground, gray, #FF8800, navy again") == [
        rgb("#1d2b4d"),
        rgb("#808285"),
        rgb("#ff8800"),
    ]
    assert to_lab((255, 255, 255)) == pytest.approx((100, 0, 0), abs=0.1)
