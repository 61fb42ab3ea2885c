"""Models the fairly even backdrop of a photograph: a smooth surface through the colours at the
picture's border, and how even that border really is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import dist
from statistics import median

import pyvips

_FIT_SIDE = 60
_TERMS = 6
_BANDS = 3
_FAR = 16.0
"""Lab distance from the border's median above which a border pixel belongs to a subject that
touches the edge."""
_STRIP = 0.03
_SURFACE_STEP = 8

Pixel = tuple[float, float, tuple[float, ...]]


@dataclass(frozen=True)
class Backdrop:
    """coefficients: per Lab band, of a quadratic surface over x and y in -0.5..0.5."""

    coefficients: tuple[tuple[float, ...], ...]

    def colour(self) -> tuple[float, float, float]:
        """Returns the backdrop's sRGB colour, 0..255 each, in the middle of the picture."""
        centre = pyvips.Image.black(1, 1) + [terms[0] for terms in self.coefficients]
        red, green, blue = centre.copy(interpretation="lab").colourspace("srgb")(0, 0)
        return float(red), float(green), float(blue)

    def surface(self, width: int, height: int) -> pyvips.Image:
        """Returns the Lab values that the backdrop has, or would have behind the subject. They are
        computed at an eighth of the size, since the surface is smooth."""
        columns, rows = max(2, width // _SURFACE_STEP), max(2, height // _SURFACE_STEP)
        small = surface(self.coefficients, columns, rows)
        return small.resize(width / columns, vscale=height / rows, kernel="linear").crop(
            0, 0, width, height
        )


def fit(lab: pyvips.Image) -> Backdrop:
    """Fits the surface to the border first, then to everything close to the first fit, so that it
    follows a vignette or a gradient over the whole backdrop into the picture's middle."""
    tiny = lab.resize(min(1.0, _FIT_SIDE / max(lab.width, lab.height))).cast("float")
    width, height = tiny.width, tiny.height
    values = memoryview(tiny.write_to_memory()).cast("f")
    pixels: list[Pixel] = []
    for index in range(width * height):
        x, y = (index % width + 0.5) / width - 0.5, (index // width + 0.5) / height - 0.5
        pixels.append((x, y, tuple(values[_BANDS * index : _BANDS * index + _BANDS])))
    border = [
        p
        for p in pixels
        if abs(p[0]) * width + 3 > width / 2 or abs(p[1]) * height + 3 > height / 2
    ]
    typical = [median(p[2][band] for p in border) for band in range(_BANDS)]
    chosen = [p for p in border if dist(p[2], typical) < _FAR] or border
    for reach in (12.0, 8.0):
        terms = _least_squares(chosen)
        near = [p for p in pixels if dist(p[2], _evaluate(terms, p[0], p[1])) < reach]
        chosen = near if len(near) > len(border) // 2 else chosen
    return Backdrop(_least_squares(chosen))


def surface(coefficients: Sequence[Sequence[float]], width: int, height: int) -> pyvips.Image:
    """Returns one band per row of coefficients."""
    grid = (pyvips.Image.xyz(width, height) + 0.5) / [width, height] - 0.5
    x, y = grid[0], grid[1]
    bands = [
        c[0] + x * c[1] + y * c[2] + x * y * c[3] + x * x * c[4] + y * y * c[5]
        for c in coefficients
    ]
    return bands[0].bandjoin(bands[1:]) if bands[1:] else bands[0]


def border(values: pyvips.Image) -> pyvips.Image:
    """Returns the strips along the top, the left and the right edge as one picture. Subjects are
    often cut off by the lower edge, so that it says little about the backdrop."""
    strip = max(2, round(_STRIP * min(values.width, values.height)))
    left = values.crop(0, 0, strip, values.height).rot90()
    right = values.crop(values.width - strip, 0, strip, values.height).rot90()
    return left.join(right, "horizontal").join(values.crop(0, 0, values.width, strip), "horizontal")


def _basis(x: float, y: float) -> tuple[float, ...]:
    return (1.0, x, y, x * y, x * x, y * y)


def _evaluate(terms: Sequence[Sequence[float]], x: float, y: float) -> tuple[float, ...]:
    basis = _basis(x, y)
    return tuple(sum(c * b for c, b in zip(band, basis, strict=True)) for band in terms)


def _least_squares(points: Iterable[Pixel]) -> tuple[tuple[float, ...], ...]:
    """Solves the normal equations of the quadratic surfaces by Gauss-Jordan, slightly damped, so
    that they have a solution. The bands share the left side."""
    columns = _TERMS + _BANDS
    matrix = [
        [1e-3 if row == column and row else 0.0 for column in range(columns)]
        for row in range(_TERMS)
    ]
    for x, y, values in points:
        known = (*_basis(x, y), *values)
        for row in range(_TERMS):
            factor, target = known[row], matrix[row]
            for column in range(row, columns):
                target[column] += factor * known[column]
    for row in range(_TERMS):  # the left side is symmetric
        for column in range(row):
            matrix[row][column] = matrix[column][row]
    for pivot in range(_TERMS):
        best = max(range(pivot, _TERMS), key=lambda row: abs(matrix[row][pivot]))
        matrix[pivot], matrix[best] = matrix[best], matrix[pivot]
        matrix[pivot] = [value / matrix[pivot][pivot] for value in matrix[pivot]]
        for row in range(_TERMS):
            if row != pivot:
                factor = matrix[row][pivot]
                matrix[row] = [
                    a - factor * b for a, b in zip(matrix[row], matrix[pivot], strict=True)
                ]
    return tuple(
        tuple(matrix[row][_TERMS + band] for row in range(_TERMS)) for band in range(_BANDS)
    )
