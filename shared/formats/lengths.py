"""A length in a picture, by the scale that is declared for it."""

import math

from shared.formats.facts import LENGTH_UNITS, Point, PointOfMeasure, Scale

_DECIMALS = {"mm": 1, "cm": 1, "m": 3, "in": 2}  # a millimetre at least, in every unit


def by_scale(
    point_of_measure: PointOfMeasure, scale: Scale | None, size: tuple[int, int] | None
) -> float | None:
    """The length between its points in its own unit, else the scale's, rounded for it; None if it
    doesn't follow.

    `scale` is that of its view, `size` the view's picture in pixels, upright: fractions of it
    aren't square.
    """
    start, end = point_of_measure.start, point_of_measure.end
    if scale is None or size is None or start is None or end is None:
        return None
    length = scale.value * _pixels(start, end, size) / _pixels(scale.start, scale.end, size)
    unit = point_of_measure.unit or scale.unit
    return round(length * LENGTH_UNITS[scale.unit] / LENGTH_UNITS[unit], _DECIMALS[unit])


def _pixels(start: Point, end: Point, size: tuple[int, int]) -> float:
    return math.hypot((end.x - start.x) * size[0], (end.y - start.y) * size[1])
