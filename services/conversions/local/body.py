"""Finds shoulders and body in a mask from its row widths, in the same way for a person and for a
garment laid flat."""

from dataclasses import dataclass
from statistics import median

import pyvips

from services.conversions.local import regions, subject

# Height by width. A standing person is much higher than wide; below this ratio the picture shows
# less than the whole figure.
_WHOLE_FIGURE = 1.9


@dataclass(frozen=True)
class Body:
    """Measures of a body, in pixels of the mask.

    shoulder: the row where the body reaches most of its width, counted from above.
    hem: the last row of the body (a garment's hem, a person's hip).
    width: between the sides, without arms or sleeves where these stand apart.
    span: from the left to the right side just below the shoulder, arms or sleeves included.
    centre: the column between the sides.
    neck: the narrowest row between head and shoulders; None for a garment or if there is none.
    lean: how far the body's centre is from the neck's, in widths of the body; 0 without a neck.
    apart: share of the body's rows in which arms or sleeves stand apart, 0..1.
    """

    shoulder: int
    hem: int
    width: float
    span: float
    centre: float
    neck: int | None
    apart: float
    lean: float = 0.0


def of_garment(mask: pyvips.Image) -> Body:
    """Measures a garment laid flat or on a stand, upright, seen from the front or the back."""
    _, top, _, height = regions.bounds(mask)
    rows = subject.row_runs(mask)
    start, end = top + round(0.35 * height), top + round(0.92 * height)
    # Straps that hang down and the lower part of a bodysuit are not the body.
    widest = max((_longest(runs) for runs in rows[start:end]), default=0)
    kept = [runs if 2.4 * _longest(runs) >= widest else [] for runs in rows]
    width, centre, apart = _trunk(kept, start, end)
    shoulder = _shoulder(rows, top, top + height // 2, width)
    return Body(shoulder, top + height, width, _span(rows, shoulder, width), centre, None, apart)


def of_person(mask: pyvips.Image) -> Body:
    """Measures a standing person, whole or cut below the chest, facing the camera.

    If no neck is found, the rows from 20 % to 75 % of the visible height count as the torso.
    """
    _, top, width, height = regions.bounds(mask)
    whole = height / max(1, width) >= _WHOLE_FIGURE
    rows = subject.row_runs(mask)
    neck = _neck(rows, top, height if whole else round(1.4 * height))
    if neck is None and 0.9 < height / max(1, width) / _WHOLE_FIGURE < 1.1:  # it may be either
        whole = not whole
        neck = _neck(rows, top, height if whole else round(1.4 * height))
    if neck is None:
        start, end = top + round(0.20 * height), top + round(0.75 * height)
        trunk, centre, apart = _trunk(rows, start, end)
        return Body(start, end, trunk, _span(rows, start, trunk), centre, None, apart)
    reach = round(0.36 * height) if whole else top + height - neck
    end = min(neck + reach, top + height)
    trunk, centre, apart = _trunk(rows, neck + round(0.3 * reach), end)
    shoulder = _shoulder(rows, neck, neck + reach // 2, trunk)
    lean = (centre - (rows[neck][0][0] + rows[neck][-1][1]) / 2) / trunk
    return Body(shoulder, end, trunk, _span(rows, shoulder, trunk), centre, neck, apart, lean)


def _extent(runs: list[tuple[int, int]]) -> int:
    return runs[-1][1] - runs[0][0] if runs else 0


def _longest(runs: list[tuple[int, int]]) -> int:
    return max((right - left for left, right in runs), default=0)


def _span(rows: list[list[tuple[int, int]]], shoulder: int, width: float) -> float:
    return float(_extent(rows[min(shoulder + round(0.2 * width), len(rows) - 1)]) or width)


def _neck(rows: list[list[tuple[int, int]]], top: int, height: int) -> int | None:
    """Returns the narrowest row below the widest row of the head, or None unless head and shoulders
    are both clearly wider."""
    first, last = top + round(0.06 * height), min(top + round(0.26 * height), len(rows) - 1)
    if last <= first:
        return None
    row = min(range(first, last), key=lambda r: (_extent(rows[r]) or len(rows), -r))
    narrow = _extent(rows[row])
    head = max(_extent(rows[r]) for r in range(top, row + 1))
    below = max(
        (_extent(rows[r]) for r in range(row, min(row + round(0.12 * height), len(rows)))),
        default=0,
    )
    return row if narrow and head > 1.15 * narrow and below > 1.6 * narrow else None


def _trunk(rows: list[list[tuple[int, int]]], start: int, end: int) -> tuple[float, float, float]:
    """Returns width and centre of the body between two rows, and the share of rows in which
    something stands apart on both sides."""
    filled = [runs for runs in rows[start:end] if runs]
    if not filled:
        return float(len(rows)), len(rows) / 2, 0.0
    split = [max(runs[1:-1], key=lambda run: run[1] - run[0]) for runs in filled if len(runs) >= 3]
    widest = [max(runs, key=lambda run: run[1] - run[0]) for runs in filled]
    if len(split) >= 0.05 * len(filled):
        chosen = split
    else:  # arms or sleeves hardly stand apart: the narrower rows show the body best
        chosen = sorted(widest, key=lambda run: run[1] - run[0])[: max(1, len(widest) // 2)]
    width = median(right - left for left, right in chosen)
    return (
        float(width),
        float(median((left + right) / 2 for left, right in chosen)),
        len(split) / len(filled),
    )


def _shoulder(rows: list[list[tuple[int, int]]], start: int, end: int, width: float) -> int:
    return next((row for row in range(start, end) if _extent(rows[row]) >= 0.8 * width), start)
