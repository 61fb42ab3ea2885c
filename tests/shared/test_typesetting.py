"""How a text is prepared before it is set, and which fonts may be named."""

from pathlib import Path

import pytest

from shared.formats.typesetting import breakable, tidy
from shared.settings import fonts


def test_a_long_run_may_break_and_loses_nothing() -> None:
    for run in ("n" * 300, "a\u00a0" * 150, "a\u2060" * 150, "e\u0301" * 150, "x" * 29):
        broken = breakable(run, 28)
        assert broken.replace("\u200b", "") == run and max(map(len, broken.split("\u200b"))) <= 8
    for text in ("n" * 28, "words " * 50, "夾克" * 50, "ผ้าฝ้าย" * 20):
        assert breakable(text, 28) == text


def test_no_break_comes_between_a_letter_and_its_marks() -> None:
    for run in ("e\u0301" * 40, "\U0001f469\u200d\U0001f4bb" * 20, "\U0001f44d\U0001f3fd" * 40):
        for piece in breakable(run, 28).split("\u200b"):
            assert piece[0] not in "\u0301\u200d\U0001f3fd" and piece[-1] != "\u200d"


def test_a_sign_without_end_breaks_all_the_same() -> None:
    assert max(map(len, breakable("\U0001f469\u200d" * 500, 28).split("\u200b"))) <= 24


def test_marks_piled_on_a_letter_are_all_there_and_never_more_than_four_high() -> None:
    tidied = tidy("a" + "\u0323" * 50)
    assert tidied.count("\u0323") + tidied.count("\u1ea1") == 50
    assert all(len(pile) <= 5 for pile in tidied.split("\u00a0"))
    assert tidy("שָׁלוֹם Việt Nam") == "שָׁלוֹם Việt Nam"


def test_every_kind_of_line_break_is_one() -> None:
    assert tidy(" a\u2028b\u2029c\nd\te ") == "a\nb\nc\nd e"


def test_fonts_are_checked_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "notes.ttf").write_text("no font")
    font = tmp_path / "some" / "where" / "House.otf"
    font.parent.mkdir(parents=True)
    font.write_bytes(b"OTTO")
    assert fonts("") == [] and fonts(f"{tmp_path}:{font}") == [tmp_path, font]

    for wrong, said in (
        (tmp_path / "gone", "isn't there"),
        (tmp_path / "notes.ttf", "has no TTF, OTF or TTC"),
    ):
        with pytest.raises(ValueError, match=said):
            fonts(f"{font}:{wrong}")
