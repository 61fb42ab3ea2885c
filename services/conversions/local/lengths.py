"""Lengths that a caller stated, or that follow from a declared scale; there is no third source."""

from collections.abc import Collection, Mapping
from typing import Any

from shared.formats.facts import Facts, Point, PointOfMeasure, Scale
from shared.formats.lengths import by_scale

SUPPLIED = "supplied"
MEASURED = "measured from the declared scale"


def of_views(facts: Facts, sizes: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    """Returns every dimension and point of measure that belongs to one of these views, or to no
    view in particular.

    `sizes` has each view's picture as (width, height) in pixels, upright, because fractions are not
    square. A value is None if it was not supplied and no scale is declared for its view. If both
    exist, the supplied value stands and `measured` shows what the scale gives.
    """
    rows = [
        _row(code=None, name=d.name, value=d.value, unit=d.unit, view=d.view, source=SUPPLIED)
        for d in facts.dimensions
        if _shown(d.view, sizes)
    ]
    poms = [pom for pom in facts.points_of_measure if _shown(pom.view, sizes)]
    return rows + [_point_of_measure(pom, facts.scales, sizes) for pom in poms]


def _shown(view: str | None, views: Collection[str]) -> bool:
    return view is None or view in views


def _point_of_measure(
    pom: PointOfMeasure, scales: Collection[Scale], sizes: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    scale = next((each for each in scales if each.view == pom.view), None)
    measured = by_scale(pom, scale, sizes.get(pom.view or ""))
    unit = pom.unit or (scale.unit if scale else None)
    source = SUPPLIED if pom.value is not None else MEASURED if measured is not None else None
    value = pom.value if pom.value is not None else measured
    return _row(
        code=pom.code,
        name=pom.name,
        value=value,
        unit=unit,
        view=pom.view,
        source=source,
        tolerance=pom.tolerance,
        start=_point(pom.start),
        end=_point(pom.end),
        measured=measured,
    )


def _row(**values: Any) -> dict[str, Any]:
    empty = {"tolerance": None, "start": None, "end": None, "measured": None}
    return {**values, **{key: values.get(key) for key in empty}}


def _point(point: Point | None) -> dict[str, float] | None:
    return None if point is None else {"x": point.x, "y": point.y}
