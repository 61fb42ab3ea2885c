"""Finds faces (BlazeFace, full range)."""

from pathlib import Path

import pyvips

from services.conversions.local import detections, network, vision
from services.conversions.local.detections import Detection, Grid

_GRID = Grid(192, ((48, 1),))
_CERTAIN = 0.5
"""Faces of persons before a camera have 0.8 and more, small ones 0.5. A drawn one on a tee had
0.52."""


def find(image: pyvips.Image, models: Path) -> list[Detection]:
    """Returns the faces in an upright sRGB picture, the surest first."""
    square = network.squared(image, _GRID.side)
    values, scores = network.run(models / vision.DETECT_FACES, network.floats(square, -1.0))
    return detections.read(_GRID, values, scores, _CERTAIN, (image.width, image.height))
