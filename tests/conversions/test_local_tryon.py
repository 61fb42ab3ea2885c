"""The try-on preview: real garments on real figures, made of pixels."""

from pathlib import Path

import pytest

from services.conversions.local.tryon import try_on
from shared.imaging.source_type import packet
from tests.conversions import local_pictures as pictures


@pytest.mark.long
def test_changing_either_input_changes_the_pixels_and_repeating_does_not(tmp_path: Path) -> None:
    person, other_person = (
        pictures.person(tmp_path / "p1.jpg"),
        pictures.person(tmp_path / "p2.jpg", backdrop=(150, 160, 175)),
    )
    cloth, other_cloth = (
        pictures.garment(tmp_path / "c1.jpg"),
        pictures.garment(tmp_path / "c2.jpg", pictures.SAND),
    )

    first, again = tmp_path / "first.jpg", tmp_path / "again.jpg"
    assert try_on(person, cloth, first) == try_on(person, cloth, again)
    assert first.read_bytes() == again.read_bytes()
    for index, pair in enumerate(((other_person, cloth), (person, other_cloth))):
        out = tmp_path / f"changed{index}.jpg"
        try_on(*pair, out)
        assert pictures.difference(first, out) > 40


def test_the_garment_covers_the_torso_and_leaves_head_legs_and_backdrop_alone(
    tmp_path: Path,
) -> None:
    person = pictures.person(tmp_path / "person.png")
    out = tmp_path / "out.png"
    result = try_on(person, pictures.garment(tmp_path / "cloth.jpg", (160, 30, 40)), out)
    before, after = pictures.pixels(person), pictures.pixels(out)
    assert (
        (after.width, after.height)
        == (before.width, before.height)
        == (result.width, result.height)
    )

    red, green, _ = after(350, 350)
    assert red > 110
    assert green < 70
    for untouched in ((320, 130), (270, 880), (30, 40), (600, 900)):
        assert after(*untouched) == before(*untouched)

    box = result.parameters["torso_box"]
    assert isinstance(box, dict)
    assert box["top"] * 960 == pytest.approx(236, abs=25)
    assert (box["left"] + box["width"] / 2) * 640 == pytest.approx(320, abs=12)


@pytest.mark.long
def test_the_worst_evidence_caps_the_confidence(tmp_path: Path) -> None:
    cloth = pictures.garment(tmp_path / "cloth.jpg")
    good = try_on(pictures.person(tmp_path / "person.jpg"), cloth, tmp_path / "good.jpg")
    headless = try_on(
        pictures.person(tmp_path / "headless.jpg", head=False), cloth, tmp_path / "headless_out.jpg"
    )
    assert good.confidence > 0.8
    assert sum(item.weight for item in good.evidence) == pytest.approx(1)

    worst = min(headless.evidence, key=lambda item: item.value)
    assert (worst.name, headless.confidence) == ("torso", worst.value)
    assert "no neck" in worst.note


def test_what_is_no_garment_is_refused_with_its_reason_and_what_to_send(tmp_path: Path) -> None:
    person = pictures.person(tmp_path / "person.jpg")
    refused = {
        pictures.plain(tmp_path / "plain.jpg"): "nothing stands out",
        pictures.street(tmp_path / "street.jpg"): "border is not one even backdrop",
        pictures.fragments(tmp_path / "parts.png"): "no closed shape",
        pictures.poles(tmp_path / "poles.png"): "no body",
    }
    for cloth, reason in refused.items():
        with pytest.raises(ValueError, match=reason) as said:
            try_on(person, cloth, tmp_path / "out.jpg")
        assert str(said.value).startswith("no garment could be told from its backdrop: ")
        assert "Send the garment alone" in str(said.value)
    assert not (tmp_path / "out.jpg").exists()


def test_what_is_no_person_is_refused_with_its_reason_and_what_to_send(tmp_path: Path) -> None:
    cloth = pictures.garment(tmp_path / "cloth.jpg")
    refused = {
        pictures.plain(tmp_path / "plain.jpg"): "nothing stands out",
        pictures.street(tmp_path / "street.jpg"): "border is not one even backdrop",
        pictures.person(tmp_path / "seated.jpg", beside=True): "beside the neck",
    }
    for person, reason in refused.items():
        with pytest.raises(ValueError, match=reason) as said:
            try_on(person, cloth, tmp_path / "out.jpg")
        assert str(said.value).startswith("no person could be told from the backdrop: ")
        assert "Send one person" in str(said.value)
    assert not (tmp_path / "out.jpg").exists()


def test_a_garment_that_would_not_cover_the_torso_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"would cover \d+% of the torso"):
        try_on(
            pictures.person(tmp_path / "person.jpg"),
            pictures.belt(tmp_path / "belt.png"),
            tmp_path / "out.jpg",
        )


@pytest.mark.long
def test_style_words_take_effect_and_are_named_and_others_change_nothing(tmp_path: Path) -> None:
    person, cloth = (
        pictures.person(tmp_path / "person.jpg"),
        pictures.garment(tmp_path / "cloth.jpg"),
    )
    plain = try_on(person, cloth, tmp_path / "plain.png")
    styled = try_on(person, cloth, tmp_path / "styled.png", style="Oversized, warm")

    unknown = try_on(person, cloth, tmp_path / "unknown.png", style="zebra")
    assert styled.parameters["style_words_used"] == ["oversized", "warm"]
    assert float(str(styled.parameters["scale"])) > float(str(plain.parameters["scale"]))
    assert pictures.difference(tmp_path / "plain.png", tmp_path / "styled.png") > 40
    assert unknown.parameters["style_words_used"] == []
    assert pictures.difference(tmp_path / "plain.png", tmp_path / "unknown.png") == 0


@pytest.mark.long
def test_the_result_is_no_larger_than_asked_and_carries_no_metadata_but_its_source_type(
    tmp_path: Path,
) -> None:
    person, cloth = (
        pictures.person(tmp_path / "person.jpg"),
        pictures.garment(tmp_path / "cloth.jpg"),
    )
    result = try_on(person, cloth, tmp_path / "out.webp", max_side=512)

    written = pictures.pixels(tmp_path / "out.webp")
    assert (written.width, written.height) == (result.width, result.height)
    assert max(written.width, written.height) == 512
    assert not [
        field for field in written.get_fields() if field.startswith(("exif", "icc", "iptc"))
    ]
    assert written.get("xmp-data") == packet("composite")
