"""What was read in pictures: codes, lines of text, and the values that they state."""

from dataclasses import dataclass
from typing import Any

Box = tuple[float, float, float, float]
"""Left, top, width and height, as fractions of the upright picture."""


@dataclass(frozen=True)
class Code:
    """A bar code or a two-dimensional code. `format`: its name, such as EAN-13. `checked`: its own
    check digits or error correction confirm the text."""

    format: str
    text: str
    box: Box
    checked: bool


@dataclass(frozen=True)
class Line:
    """A line of text. `score`: how sure the model is, 0 to 1, which says little: wrong lines come
    with 0.88 to 0.98."""

    text: str
    score: float
    box: Box


@dataclass(frozen=True)
class Labels:
    """The lines of one picture, from the top down, and the codes that only a closer look found."""

    lines: tuple[Line, ...]
    codes: tuple[Code, ...]


@dataclass(frozen=True)
class Reading:
    """A value that stands in a picture. `key`: that of an analysis's result. `confidence`: CHECKED,
    AGREES or SUGGESTED. `note`: the lines or the code that say it."""

    key: str
    value: Any  # ready for JSON
    confidence: float
    note: str
    box: Box


# It checks itself: a check digit, percentages that add up to 100, a known word at a known place.
CHECKED = 0.9
# The caller states the same.
AGREES = 0.95
# Nothing confirms it.
SUGGESTED = 0.3

_RETAIL = (8, 12, 13, 14)  # digits of EAN-8, UPC-A, EAN-13 and ITF-14


def has_check_digit(digits: str) -> bool:
    """Returns whether this is a number of an article whose last digit confirms the others."""
    if len(digits) not in _RETAIL or not (digits.isascii() and digits.isdigit()):
        return False
    weighted = sum(int(digit) * (3, 1)[at % 2] for at, digit in enumerate(reversed(digits[:-1])))
    return (weighted + int(digits[-1])) % 10 == 0


def around(boxes: list[Box]) -> Box:
    """Returns the smallest box that holds all of them."""
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right = max(box[0] + box[2] for box in boxes)
    bottom = max(box[1] + box[3] for box in boxes)
    return (left, top, round(right - left, 4), round(bottom - top, 4))


def box_of(corners: list[tuple[float, float]], width: int, height: int) -> Box:
    """Returns the upright box around corners that are given in pixels of a picture of this size."""
    xs = [min(max(x / width, 0.0), 1.0) for x, _ in corners]
    ys = [min(max(y / height, 0.0), 1.0) for _, y in corners]
    left, top = round(min(xs), 4), round(min(ys), 4)
    return (left, top, round(max(xs) - left, 4), round(max(ys) - top, 4))


def printable(text: str) -> str:
    """Returns the text on one line, without characters that can't be printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
