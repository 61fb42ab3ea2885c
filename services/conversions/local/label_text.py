"""Rules that turn the lines of labels and tags into values: what a line says, and what confirms it.

A reader's own score confirms nothing: "100%" is read as "10%" at 0.88. A value is CHECKED if its
percentages add up to 100, its check digit is right, or each of its words is a known one at a known
place; it AGREES if the caller states the same; otherwise it is SUGGESTED.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from services.conversions.local.composition import compositions
from services.conversions.local.label_words import (
    CARE_VERBS,
    CARE_WORDS,
    COUNTRIES,
    FIBRES,
    PARTS,
    fold,
)
from services.conversions.local.reading import (
    AGREES,
    CHECKED,
    SUGGESTED,
    Line,
    Reading,
    around,
    has_check_digit,
)

_LETTER_SIZES = "XXXS XXS XS S M L XL XXL XXXL 2XL 3XL 4XL 5XL"
_SIZES = {
    **{size.lower(): size for size in _LETTER_SIZES.split()},
    **{str(number): str(number) for number in range(30, 61)},
    **dict.fromkeys(
        ("one size", "onesize", "einheitsgrosse", "taille unique", "taglia unica", "talla unica"),
        "one size",
    ),
}
_SIZE = re.compile(r"(?:size|grosse|gr|taille|taglia|talla|eur|eu)\b\.? ?[:/]? ?([a-z0-9]+)")
_MADE_IN = re.compile(
    r"(?:made|manufactured|hergestellt|gefertigt|fabriquee?|confectionnee?|fabricad[oa]|hech[oa]"
    r"|prodott[oa]|fatt[oa]|confezionat[oa]) ?(?:in|en|aux|au) ?(.+)"
)
_MODEL = re.compile(
    r"(?:model|modell|modele|modello|modelo|style|article|artikel|art|reference|ref|item|sku)\b"
    r"\.?[ -]?(?:no|nr|number|nummer)?\.? ?[:#]? ?(?P<number>[a-z0-9][a-z0-9./-]*)$"
)
_DIGITS = re.compile(r"(?<![\d.,])\d(?: ?\d){11,12}(?![\d.,])")
_DEGREES = re.compile(r"(?<!\d)(\d{2,3}) ?[°º]+ ?c?\b")
_WASH_DEGREES = (20, 30, 40, 50, 60, 70, 95)
_IRON_DEGREES = (110, 150, 200)
_BRAND = re.compile(r"(?=.*[^\W\d_]{3})[^\W\d_](?:[^\W\d_]|[ &'.-]){2,29}")
_BRAND_SCORE, _BRAND_WORDS, _MOST_BRANDS = 0.9, 3, 2


@dataclass(frozen=True)
class Stated:
    """What the caller states that a label may say, too. Empty: nothing."""

    brand: str = ""
    model: str = ""


def values(lines: Sequence[Line], stated: Stated) -> list[Reading]:
    """Returns what the lines of one picture say."""
    blocks = _blocks(lines)
    found = [
        *compositions(blocks),
        *_alike(_origins(lines)),
        *_articles(lines),
        *_models(lines, stated.model),
        *_care(blocks),
    ]
    found += _alike([*_sizes(blocks, found)])
    return [*found, *_brands(lines, stated.brand, found)]


def _blocks(lines: Sequence[Line]) -> list[list[Line]]:
    """Returns the lines by the labels that they stand on: those that are near each other."""
    blocks: list[list[Line]] = []
    for line in lines:
        near = [block for block in blocks if any(_near(line, other) for other in block)]
        blocks = [block for block in blocks if block not in near]
        blocks.append([*(each for block in near for each in block), line])
    return blocks


def _near(one: Line, other: Line) -> bool:
    x, y = _gap(one.box, other.box, 0), _gap(one.box, other.box, 1)
    height = min(one.box[3], other.box[3])
    return (x <= 0 and y <= 1.5 * height) or (y <= -height / 2 and x <= 2 * height)


def _gap(one: Sequence[float], other: Sequence[float], axis: int) -> float:
    """Returns the distance of two boxes along an axis; negative: they overlap by so much."""
    end = min(one[axis] + one[axis + 2], other[axis] + other[axis + 2])
    return max(one[axis], other[axis]) - end


def _reading(key: str, value: Any, confidence: float, *lines: Line) -> Reading:
    note = " / ".join(line.text for line in lines)
    return Reading(key, value, confidence, note, around([line.box for line in lines]))


def _alike(found: Iterable[Reading]) -> list[Reading]:
    """Returns the readings, each value once; only as suggestions if the checked ones differ."""
    once = {repr((each.value, each.confidence)): each for each in reversed([*found])}
    kept = list(reversed(once.values()))
    if len({repr(each.value) for each in kept if each.confidence >= CHECKED}) < 2:
        return kept
    return [Reading(each.key, each.value, SUGGESTED, each.note, each.box) for each in kept]


def _origins(lines: Sequence[Line]) -> Iterator[Reading]:
    for line in lines:
        if not (said := _MADE_IN.search(fold(line.text))):
            continue
        place = said[1].removeprefix("the ")
        names = (name for name in COUNTRIES if re.match(rf"{re.escape(name)}(?!\w)", place))
        if name := max(names, key=len, default=None):
            yield _reading("origin", COUNTRIES[name], CHECKED, line)
        else:
            yield _reading("origin", place, SUGGESTED, line)


def _articles(lines: Sequence[Line]) -> Iterator[Reading]:
    for line in lines:
        for said in _DIGITS.finditer(line.text):
            digits = said[0].replace(" ", "")
            if has_check_digit(digits):
                yield _reading("ean", digits, CHECKED, line)


def _models(lines: Sequence[Line], stated: str) -> Iterator[Reading]:
    wanted = _packed(stated)
    for line in lines:
        plain = fold(line.text)
        said = _MODEL.search(plain)
        number = said["number"] if said else ""
        if wanted and wanted in (_packed(plain), _packed(number)):
            yield _reading("model", stated, AGREES, line)
        elif any(c.isdigit() for c in number) and not has_check_digit(_packed(number)):
            yield _reading("model", line.text[-len(number) :], SUGGESTED, line)


def _sizes(blocks: Sequence[Sequence[Line]], known: Sequence[Reading]) -> Iterator[Reading]:
    """Finds sizes. A size alone, such as "L", counts only beside something else that labels say,
    and a number alone not at all: a fold of cloth is read as a letter."""
    for block in blocks:
        of_label = any(
            line.text in each.note for each in known if each.confidence >= CHECKED for line in block
        )
        for line in block:
            plain = fold(line.text)
            said = _SIZE.fullmatch(plain)
            if said and said[1] in _SIZES:
                yield _reading("size", _SIZES[said[1]], CHECKED, line)
            elif plain in _SIZES and not plain.isdigit():
                sure = of_label or _SIZES[plain] == "one size"
                yield _reading("size", _SIZES[plain], CHECKED if sure else SUGGESTED, line)


def _care(blocks: Sequence[Sequence[Line]]) -> Iterator[Reading]:
    """Finds how to wash and clean: one value a label."""
    for block in blocks:
        lines = [line for line in block if CARE_VERBS & set(_words(line.text))]
        known = [line for line in lines if _is_care(line)]
        if known:
            yield _reading("care", _care_of(known), CHECKED, *known)
        if others := [line for line in lines if line not in known]:
            yield _reading("care", _care_of(others), SUGGESTED, *others)


def _care_of(lines: Sequence[Line]) -> dict[str, Any]:
    value: dict[str, Any] = {"text": [line.text for line in lines]}
    degrees = {
        said
        for line in lines
        for said in _degrees(line)
        if said in _WASH_DEGREES and re.search(r"wash|wasch|\blav", fold(line.text))
    }
    return {**value, "wash_celsius": degrees.pop()} if len(degrees) == 1 else value


def _is_care(line: Line) -> bool:
    if not all(degree in (*_WASH_DEGREES, *_IRON_DEGREES) for degree in _degrees(line)):
        return False
    return set(_words(line.text)) <= CARE_WORDS and _only_degrees(line)


def _degrees(line: Line) -> list[int]:
    return [int(said[1]) for said in _DEGREES.finditer(fold(line.text))]


def _only_degrees(line: Line) -> bool:
    """Returns whether every number of the line is a temperature."""
    return not re.search(r"\d", _DEGREES.sub("", fold(line.text)))


def _brands(lines: Sequence[Line], stated: str, known: Sequence[Reading]) -> Iterator[Reading]:
    """Finds the stated brand; if it isn't there, the largest lines that might be one."""
    name = fold(stated)
    agreeing = [line for line in lines if name and f" {name} " in f" {fold(line.text)} "]
    if agreeing:
        yield _reading("brands", [stated], AGREES, max(agreeing, key=lambda line: line.score))
        return
    said = {text for each in known for text in each.note.split(" / ")}
    names: dict[str, Line] = {}
    for line in sorted(lines, key=lambda line: -line.box[3]):
        if line.text not in said and _is_name(line):
            names.setdefault(fold(line.text), line)
    for line in list(names.values())[:_MOST_BRANDS]:
        yield _reading("brands", [line.text], SUGGESTED, line)


def _is_name(line: Line) -> bool:
    words = _words(line.text)
    usual = any(word in CARE_VERBS or word in FIBRES or word in PARTS for word in words)
    few = 1 <= len(words) <= _BRAND_WORDS
    return few and not usual and line.score >= _BRAND_SCORE and bool(_BRAND.fullmatch(line.text))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", fold(text))


def _packed(text: str) -> str:
    return re.sub(r"[\s]", "", fold(text))
