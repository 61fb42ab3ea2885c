"""Colours as people name them: a table of names, the nearest name to a colour, the colours that a
text mentions."""

import re
from collections.abc import Sequence
from math import atan2, cos, dist, hypot, pi, sin

Rgb = tuple[float, float, float]
"""sRGB, 0..255 each."""

NAMES: dict[str, str] = {
    "black": "#0d0d0f",
    "charcoal": "#36383c",
    "grey": "#808285",
    "silver": "#b9bcc0",
    "white": "#fafafa",
    "ivory": "#f6f1e1",
    "cream": "#f3e8cc",
    "beige": "#dcc9a7",
    "sand": "#cdb38b",
    "stone": "#a99f8f",
    "taupe": "#85766a",
    "camel": "#b98a56",
    "tan": "#c49c6e",
    "khaki": "#9c8f61",
    "brown": "#6f4a30",
    "chocolate": "#472c1d",
    "rust": "#a64b26",
    "terracotta": "#c4694a",
    "copper": "#b3703c",
    "bronze": "#8b6a35",
    "brass": "#b89a4e",
    "gold": "#cfa63c",
    "mustard": "#cf9d24",
    "yellow": "#f4d535",
    "amber": "#f2a71b",
    "orange": "#ee7d26",
    "peach": "#f6be9c",
    "apricot": "#f5a66d",
    "coral": "#f27360",
    "salmon": "#f08f7c",
    "red": "#cc2430",
    "burgundy": "#6d1b2d",
    "pink": "#f0a3b9",
    "rose": "#d9657f",
    "magenta": "#c42d82",
    "plum": "#6a2f58",
    "purple": "#6f3c96",
    "violet": "#8157b8",
    "lavender": "#b9a7dc",
    "lilac": "#c8a8d2",
    "indigo": "#38347a",
    "navy": "#1d2b4d",
    "blue": "#2a5fbd",
    "cobalt": "#1d48a8",
    "denim": "#46648c",
    "sky": "#8cc3e8",
    "turquoise": "#2fb8b4",
    "teal": "#14787b",
    "petrol": "#14505e",
    "mint": "#abdfc4",
    "sage": "#9fae8f",
    "olive": "#6d7036",
    "green": "#338a46",
    "emerald": "#0f8a5f",
    "forest": "#214f33",
    "lime": "#a9d13a",
}


def rgb(code: str) -> Rgb:
    """Converts `#rrggbb` to numbers."""
    return float(int(code[1:3], 16)), float(int(code[3:5], 16)), float(int(code[5:7], 16))


def code(colour: Sequence[float]) -> str:
    """Converts numbers to `#rrggbb`, rounded and clipped."""
    return "#" + "".join(f"{max(0, min(255, round(value))):02x}" for value in colour)


def name(colour: Sequence[float]) -> str:
    """Returns the nearest name in the table, by distance in Lab."""
    place = to_lab(colour)
    return min(NAMES, key=lambda known: dist(to_lab(rgb(NAMES[known])), place))


def mentioned(text: str) -> list[Rgb]:
    """Returns the colours that a text names, by word or as `#rrggbb`, in their order and each
    once."""
    found = re.findall(r"#[0-9a-f]{6}\b|\b(?:" + "|".join(NAMES) + r"|gray)\b", text.lower())
    codes = [
        word if word.startswith("#") else NAMES["grey" if word == "gray" else word]
        for word in found
    ]
    return [rgb(each) for each in dict.fromkeys(codes)]


def to_lab(colour: Sequence[float]) -> tuple[float, float, float]:
    """Returns the CIE Lab (D65) of an sRGB colour."""
    r, g, b = (_linear(value / 255) for value in colour)
    x = _root((0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505)
    y = _root(0.2126 * r + 0.7152 * g + 0.0722 * b)
    z = _root((0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def to_lch(colour: Sequence[float]) -> tuple[float, float, float]:
    """Returns lightness 0..100, chroma, and hue in degrees."""
    lightness, a, b = to_lab(colour)
    return lightness, hypot(a, b), atan2(b, a) * 180 / pi


def from_lch(lightness: float, chroma: float, hue: float) -> Rgb:
    """Returns the sRGB colour. Chroma is lowered until the colour can be shown."""
    while True:
        y = (lightness + 16) / 116
        x, z = y + chroma * cos(hue * pi / 180) / 500, y - chroma * sin(hue * pi / 180) / 200
        x, y, z = 0.9505 * _cube(x), _cube(y), 1.089 * _cube(z)
        r = 3.2406 * x - 1.5372 * y - 0.4986 * z
        g = -0.9689 * x + 1.8758 * y + 0.0415 * z
        b = 0.0557 * x - 0.2040 * y + 1.0570 * z
        if chroma < 1 or all(-0.002 <= value <= 1.002 for value in (r, g, b)):
            return _coded(r), _coded(g), _coded(b)
        chroma *= 0.94


def _linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else float(((value + 0.055) / 1.055) ** 2.4)


def _coded(value: float) -> float:
    value = max(0.0, min(1.0, value))
    return 255 * (
        12.92 * value if value <= 0.0031308 else 1.055 * float(value ** (1 / 2.4)) - 0.055
    )


def _root(value: float) -> float:
    return float(value ** (1 / 3)) if value > 0.008856 else 7.787 * value + 16 / 116


def _cube(value: float) -> float:
    return value**3 if value > 0.2069 else (value - 16 / 116) / 7.787
