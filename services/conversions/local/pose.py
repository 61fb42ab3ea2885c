"""Finds a person's joints and shape (MediaPipe pose: a detector, then landmarks with a matte)."""

from dataclasses import dataclass
from math import atan2, cos, dist, exp, pi, sin
from pathlib import Path

import pyvips

from services.conversions.local import detections, network, picture, vision
from services.conversions.local.detections import Detection, Grid, Point
from services.conversions.local.network import Values

_GRID = Grid(224, ((28, 2), (14, 2), (7, 6)))
_SIDE = 256
_LANDMARKS = 33
_ENLARGED = 1.25
CERTAIN = 0.5
MOUTH, SHOULDERS, ELBOWS, WRISTS, HIPS = (9, 10), (11, 12), (13, 14), (15, 16), (23, 24)
HANDS = (19, 20)
"""Numbers of the left and the right landmark, as the person has them."""


@dataclass(frozen=True)
class Landmark:
    """x, y: fractions of the picture, which it may lie outside of. visible: 0..1."""

    x: float
    y: float
    visible: float


@dataclass(frozen=True)
class Pose:
    """landmarks: MediaPipe's 33, rounded to a thousandth, since processors differ below that.
    detected: 0..1, how sure the detector is. matte: the person, 0..255, in the square `region`."""

    landmarks: tuple[Landmark, ...]
    detected: float
    matte: pyvips.Image
    region: "Region"

    def shape(self, width: int, height: int) -> pyvips.Image:
        """Returns the matte in a picture of that size, 0..255 (uchar)."""
        matrix, offset = self.region.matrix(width, height)
        place = pyvips.Image.xyz(width, height)
        x, y = place[0] + 0.5, place[1] + 0.5
        index = (x * matrix[0] + y * matrix[1] + (offset[0] - 0.5)).bandjoin(
            x * matrix[2] + y * matrix[3] + (offset[1] - 0.5)
        )
        return self.matte.mapim(index, interpolate=pyvips.Interpolate.new("bilinear")).cast("uchar")


@dataclass(frozen=True)
class Region:
    """A turned square around a person. centre: fractions of the picture. side: fraction of its
    width. turn: radians, clockwise. ratio: height by width of the picture."""

    centre: Point
    side: float
    turn: float
    ratio: float

    def matrix(self, width: int, height: int) -> tuple[tuple[float, ...], Point]:
        """Returns the matrix and the offset that take pixels of the picture into the square."""
        scale = _SIDE / (self.side * width)
        across, down = scale * cos(self.turn), scale * sin(self.turn)
        x, y = self.centre[0] * width, self.centre[1] * height
        half = _SIDE / 2
        return (across, down, -down, across), (
            half - across * x - down * y,
            half + down * x - across * y,
        )

    def back(self, x: float, y: float) -> Point:
        """Returns where a point of the square (0..1) is in the picture."""
        right, below = (x - 0.5) * self.side, (y - 0.5) * self.side
        return (
            self.centre[0] + right * cos(self.turn) - below * sin(self.turn),
            self.centre[1] + (right * sin(self.turn) + below * cos(self.turn)) / self.ratio,
        )


def detect(image: pyvips.Image, models: Path) -> list[Detection]:
    """Returns the persons in an upright sRGB picture, the surest first, without their joints."""
    square = network.squared(image, _GRID.side)
    values, scores = network.run(models / vision.DETECT_POSE, network.floats(square, -1.0))
    return detections.read(_GRID, values, scores, CERTAIN, (image.width, image.height))


def of(image: pyvips.Image, person: Detection, models: Path) -> Pose | None:
    """Returns the pose of a detected person, or None if a closer look shows nobody."""
    ratio = image.height / image.width
    region = _region(person.points[0], person.points[1], ratio)
    found = _look(image, region, models)
    if found is None:
        return None
    # The square of a first look is refined once: its own landmarks say where the person is.
    return _pose(
        image, _region(found[0][_LANDMARKS], found[0][_LANDMARKS + 1], ratio), person, models
    )


def size(person: Detection) -> float:
    """Returns how large a person is, for comparing several in one picture."""
    return dist(person.points[0], person.points[1])


def _region(hips: Point, top: Point, ratio: float) -> Region:
    across, up = top[0] - hips[0], (hips[1] - top[1]) * ratio
    turn = pi / 2 - atan2(up, across)
    return Region(hips, 2 * _ENLARGED * dist((0, 0), (across, up)), turn, ratio)


def _pose(image: pyvips.Image, region: Region, person: Detection, models: Path) -> Pose | None:
    found = _look(image, region, models)
    if found is None:
        return None
    points, raw, matte = found
    landmarks = tuple(
        Landmark(round(x, 3), round(y, 3), round(_share(raw[5 * index + 3]), 3))
        for index, (x, y) in enumerate(points[:_LANDMARKS])
    )
    return Pose(landmarks, round(person.score, 3), matte, region)


def _look(
    image: pyvips.Image, region: Region, models: Path
) -> tuple[list[Point], Values, pyvips.Image] | None:
    """Returns the landmarks in the picture, their raw values, and the matte."""
    shrunk = min(1.0, _SIDE / (region.side * image.width) * 1.5)
    small = picture.flat(image.resize(shrunk) if shrunk < 1 else image)
    matrix, offset = region.matrix(small.width, small.height)
    square = small.affine(
        list(matrix),
        interpolate=pyvips.Interpolate.new("bilinear"),
        oarea=[0, 0, _SIDE, _SIDE],
        odx=offset[0],
        ody=offset[1],
    )
    raw, present, matte, *_ = network.run(
        models / vision.FIND_LANDMARKS, network.floats(square, 0.0)
    )
    if present[0] < CERTAIN:
        return None
    points = [
        region.back(raw[5 * index] / _SIDE, raw[5 * index + 1] / _SIDE)
        for index in range(len(raw) // 5)
    ]
    logits = pyvips.Image.new_from_memory(matte.tobytes(), _SIDE, _SIDE, 1, "float")
    return points, raw, (255 / ((logits * -1).exp() + 1)).cast("uchar").copy_memory()


def _share(logit: float) -> float:
    return 1 / (1 + exp(-max(-80.0, min(logit, 80.0))))
