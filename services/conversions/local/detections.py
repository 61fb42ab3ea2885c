"""What a single-shot detector found: its raw outputs become boxes with points.

The detectors predict offsets from a fixed grid of anchors, one or several per cell. Their boxes and
points are in the square that the picture was fitted into, and come back as fractions of the
picture.
"""

from dataclasses import dataclass
from math import exp, log

from services.conversions.local.network import Values

Point = tuple[float, float]


@dataclass(frozen=True)
class Detection:
    """score: 0..1. box: left, top, width, height; points: x, y; as fractions of the picture."""

    score: float
    box: tuple[float, float, float, float]
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Grid:
    """side: of the square, in pixels. cells: columns of each layer and anchors per cell."""

    side: int
    cells: tuple[tuple[int, int], ...]

    def anchors(self) -> list[Point]:
        return [
            ((column + 0.5) / columns, (row + 0.5) / columns)
            for columns, each in self.cells
            for row in range(columns)
            for column in range(columns)
            for _ in range(each)
        ]


def read(
    grid: Grid, values: Values, scores: Values, least: float, size: tuple[int, int]
) -> list[Detection]:
    """Returns the detections with at least that score in a picture of that size, the surest first.
    Of those that overlap the surest stays."""
    width = len(values) // len(scores)
    limit = log(least / (1 - least))
    found = [
        _detection(grid.side, anchor, values[index * width : (index + 1) * width], score, size)
        for index, (anchor, score) in enumerate(zip(grid.anchors(), scores, strict=True))
        if score >= limit
    ]
    found.sort(key=lambda each: -each.score)
    kept: list[Detection] = []
    for each in found:
        if all(_overlap(each.box, other.box) < 0.3 for other in kept):
            kept.append(each)
    return kept


def _detection(
    side: int, anchor: Point, raw: Values, score: float, size: tuple[int, int]
) -> Detection:
    longest = max(size)

    def placed(x: float, y: float) -> Point:
        return (
            ((x - 0.5) * longest / size[0]) + 0.5,
            ((y - 0.5) * longest / size[1]) + 0.5,
        )

    across, down = raw[2] / side, raw[3] / side
    left, top = placed(raw[0] / side + anchor[0] - across / 2, raw[1] / side + anchor[1] - down / 2)
    points = tuple(
        placed(raw[i] / side + anchor[0], raw[i + 1] / side + anchor[1])
        for i in range(4, len(raw), 2)
    )
    return Detection(
        1 / (1 + exp(-max(-80.0, min(score, 80.0)))),
        (left, top, across * longest / size[0], down * longest / size[1]),
        points,
    )


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> float:
    """Returns the shared area as a share of the area of both."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / max(1e-9, one[2] * one[3] + other[2] * other[3] - shared)
