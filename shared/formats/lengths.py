"""Computes a length in a picture from the scale declared for the picture."""

import math

from shared.formats.fact_tables import LENGTH_UNITS
from shared.formats.facts import Point, PointOfMeasure, Scale

_DECIMALS = {"mm": 1, "cm": 1, "m": 3, "in": 2}  # a millimetre or finer, in every unit


def by_scale(
    point_of_measure: PointOfMeasure, scale: Scale | None, size: tuple[int, int] | None
) -> float | None:
    """Returns the length between the two points in the measurement's unit, else the scale's,
    rounded for that unit; None if points, scale or size are missing.

    `scale` is the scale of its view, `size` the width and height of the view's upright picture in
    pixels: points are fractions of these, so x and y have different scales.
    """
    start, end = point_of_measure.start, point_of_measure.end
    if scale is None or size is None or start is None or end is None:
        return None
    length = scale.value * _pixels(start, end, size) / _pixels(scale.start, scale.end, size)
    unit = point_of_measure.unit or scale.unit
    return round(length * LENGTH_UNITS[scale.unit] / LENGTH_UNITS[unit], _DECIMALS[unit])


def _pixels(start: Point, end: Point, size: tuple[int, int]) -> float:
    return math.hypot((end.x - start.x) * size[0], (end.y - start.y) * size[1])
