"""One rule for names: how they are shown, and how files are called."""

import random
import re
import unicodedata

import pytest

from shared.formats import names
from shared.storage.base import content_disposition


@pytest.mark.parametrize(
    ("given", "shown", "file"),
    [
        ("front.jpg", "front.jpg", "front.jpg"),
        ("1/2.png", "1_2.png", "1_2.png"),
        ("a\\b.png", "a_b.png", "a_b.png"),
        ("x\u202egnp.exe", "xgnp.exe", "xgnp.exe"),
        ("tab\there\r\n.png", "tabhere.png", "tabhere.png"),
        ("fi\u2060ne\u2066.png\u2069", "fine.png", "fine.png"),
        ("../../../home/you/.bashrc\n#", ".._.._.._home_you_.bashrc#", "_.._.._home_you_.bashrc#"),
        ("..", "..", "_"),
        (" . \u00a0.\u3000", ". \u00a0.", "_"),
        ("\ud800lone.png", "lone.png", "lone.png"),
        (
            "\U0001f469\u200d\U0001f4bb.png",
            "\U0001f469\u200d\U0001f4bb.png",
            "\U0001f469\u200d\U0001f4bb.png",
        ),
        ("u\u0308.png", "\u00fc.png", "\u00fc.png"),
        ('a"b;c<d>|e?*:.png', 'a"b;c<d>|e?*:.png', "a_b;c_d__e___.png"),
        ("con", "con", "_con"),
        ("Com1.tar.gz", "Com1.tar.gz", "_Com1.tar.gz"),
        ("LPT\u00b9 .txt", "LPT\u00b9 .txt", "_LPT\u00b9 .txt"),
        ("console.txt", "console.txt", "console.txt"),
        ("name. ", "name.", "name"),
        ("two . jpg", "two . jpg", "two . jpg"),
        ("\u6f22" * 300 + ".jpeg", "\u6f22" * 255, "\u6f22" * 48 + ".jpeg"),
        ("", "", "_"),
        ("\x00\u200b", "", "_"),
    ],
)
def test_a_name_is_kept_as_it_can_be_seen_and_its_file_is_called_as_files_may_be(
    given: str, shown: str, file: str
) -> None:
    assert (names.shown(given), names.of_file(given)) == (shown, file)


@pytest.mark.parametrize(
    ("given", "ending", "file"),
    [
        ("Winter line", ".pdf", "Winter line.pdf"),
        ("v1.2", ".zip", "v1.2.zip"),
        ("con", ".zip", "_con.zip"),
        ("../..", ".zip", "_.zip"),
        ("\u6f22" * 200, "-v12.pdf", "\u6f22" * 47 + "-v12.pdf"),
    ],
)
def test_what_we_name_has_its_ending_whatever_it_is_named_after(
    given: str, ending: str, file: str
) -> None:
    assert names.of_file(given, ending) == file == names.of_file(file)


def test_any_text_makes_a_name_that_every_system_takes() -> None:
    chance = random.Random(20261130)
    odd = "./\\:*?\"<>|;%'\x00\r\n\t\u00a0\u2028\u202e\u200d\u200c\ud800\u0301\u6f22\U0001f9e5 aZ1"

    for _ in range(3000):
        given = "".join(chance.choice(odd) for _ in range(chance.choice((1, 2, 3, 8, 300))))
        shown, file = names.shown(given), names.of_file(given)

        assert names.shown(shown) == shown and names.of_file(file) == file and names.of_file(shown)
        assert len(shown) <= 255 and 1 <= len(file.encode()) <= 150
        for name in (shown, file):
            assert not re.search(r"[/\\]", name)
            assert all(unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") for c in name)
            assert not {c for c in name if unicodedata.category(c) == "Cf"} - set("\u200c\u200d")
        assert not re.search(r'[:*?"<>|]|^[\s.]|[\s.]$', file)


@pytest.mark.parametrize("inline", [True, False])
def test_a_header_has_one_name_in_ascii_and_the_same_exactly(inline: bool) -> None:
    kind = "inline" if inline else "attachment"
    assert content_disposition("front.jpg", inline=inline) == f'{kind}; filename="front.jpg"'
    assert (
        content_disposition('a";b\r\nX: \u6f22%.png', inline=inline)
        == f"{kind}; filename=\"a__bX_ __.png\"; filename*=UTF-8''a_%3BbX_%20%E6%BC%A2%25.png"
    )
