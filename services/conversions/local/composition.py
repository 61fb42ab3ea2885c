"""Reads what a fabric is made of from the lines of labels: percentages that add up to 100."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.conversions.local.label_words import FIBRES, PARTS, QUALITIES, fold
from services.conversions.local.reading import CHECKED, SUGGESTED, Line, Reading, around

_WHOLE, _ROUNDING = 100.0, 0.11  # three thirds are printed as 33.3
# Longer words come first, so that "virgin wool" isn't read as wool.
_NAMES = "|".join(
    re.escape(word) for word in sorted({*FIBRES, *PARTS, *QUALITIES}, key=len, reverse=True)
)
_TOKEN = re.compile(rf"(?<!\d)(?P<percent>\d{{1,3}}(?:[.,]\d)?) ?%|(?<!\w)(?P<name>{_NAMES})(?!\w)")


@dataclass
class _Group:
    """Percentages of one part, and the lines that they stand in."""

    part: str
    shares: list[tuple[str, float]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    @property
    def sum(self) -> float:
        return sum(percent for _, percent in self.shares)

    @property
    def whole(self) -> bool:
        return abs(self.sum - _WHOLE) <= _ROUNDING


def compositions(blocks: Sequence[Sequence[Line]]) -> list[Reading]:
    """Returns what the labels of one picture say; each is a block of lines."""
    groups = [group for block in blocks for group in _groups(block)]
    whole = _once([group for group in groups if group.whole])
    parts = [group.part for group in whole]
    if whole:
        # Two statements about one part, such as two languages of which one was misread.
        clear = len(set(parts)) == len(parts)
        return [_reading(whole, CHECKED if clear else SUGGESTED)]
    return [_reading(_once(groups), SUGGESTED)] if groups else []


def fibres_in(text: str) -> set[str]:
    """Returns the fibres that a text names, in English."""
    names = (said["name"] for said in _TOKEN.finditer(fold(text)))
    return {FIBRES[name] for name in names if name in FIBRES}


def _reading(groups: Sequence[_Group], confidence: float) -> Reading:
    lines = [line for group in groups for line in group.lines]
    lines = [line for at, line in enumerate(lines) if line not in lines[:at]]
    value: list[dict[str, Any]] = [
        {
            "material": material,
            "percent": percent,
            **({"part": group.part} if group.part else {}),
        }
        for group in groups
        for material, percent in group.shares
    ]
    note = " / ".join(line.text for line in lines)
    return Reading("composition", value, confidence, note, around([line.box for line in lines]))


def _once(groups: Sequence[_Group]) -> list[_Group]:
    """Returns each statement once: labels repeat it in other languages."""
    seen: dict[tuple[object, ...], _Group] = {}
    for group in groups:
        seen.setdefault((group.part, *sorted(group.shares)), group)
    return list(seen.values())


def _groups(block: Sequence[Line]) -> Iterator[_Group]:
    group = _Group("")
    pending: float | None = None
    before: list[Line] = []  # the line of the pending percentage
    for line in block:
        for percent, name in _pairs(line, pending):
            if name in PARTS:
                if group.shares:
                    yield group
                group = _Group(PARTS[name])
            elif percent is not None and name:
                if group.sum + percent > _WHOLE + _ROUNDING:
                    yield group
                    group = _Group(group.part)
                group.shares.append((name, percent))
                group.lines += [*before, line]
                before = []
                if group.whole:
                    yield group
                    group = _Group(group.part)
            pending, before = (None, []) if name else (percent, [line])
    if group.shares:
        yield group


def _pairs(line: Line, pending: float | None) -> Iterator[tuple[float | None, str]]:
    """Returns percentages with their fibres, in the order of the line, and names of parts alone. A
    percentage at the end of the line has no fibre: it stands in the next one, for which it is
    `pending`."""
    tokens = [(m["percent"], m["name"]) for m in _TOKEN.finditer(fold(line.text))]
    fibre_first = pending is None and _fibre_comes_first(tokens)
    percent, fibre, quality = pending, "", ""
    for number, name in tokens:
        if name in QUALITIES:
            quality = f"{QUALITIES[name]} "
        elif name in FIBRES:
            fibre = fibre or FIBRES[name]
        else:
            if number and fibre_first:
                percent = _number(number)
            if percent is not None and fibre:
                yield percent, quality + fibre
            percent, fibre, quality = None, "", ""
            if name:
                yield None, name
            elif not fibre_first:
                percent = _number(number)
    if percent is not None:
        yield percent, quality + fibre if fibre else ""


def _fibre_comes_first(tokens: Sequence[tuple[str, str]]) -> bool:
    kinds = ["fibre" if name else "percent" for _, name in tokens if not name or name in FIBRES]
    return kinds[:1] == ["fibre"] and "percent" in kinds


def _number(text: str) -> float:
    value = float(text.replace(",", "."))
    return int(value) if value.is_integer() else value
