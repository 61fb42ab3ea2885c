"""Measures one photograph and reads its codes: the pixel work behind every analysis of it."""

from pathlib import Path

import pyvips

from services.conversions.local import codes, elements, picture, subject
from services.conversions.local.evidence import ramp
from services.conversions.local.quality import Assessed, Quality

_SIDE = 1600


def assess(view: str, path: Path) -> Assessed:
    """Measures one photograph of a product and reads its codes. Both see the same pixels: decoding
    takes longer than reading codes."""
    photo = picture.open_upright(path, _SIDE)
    return Assessed(_quality(view, picture.size_of(path), photo), codes.read_codes(photo))


def _quality(view: str, size: tuple[int, int], photo: pyvips.Image) -> Quality:
    width, height = size
    cut = subject.find(photo)
    measures = elements.subject_measures(photo, cut)
    clipped = min(1.0, measures.clipped_shadows + measures.clipped_highlights)
    lit = min(ramp(measures.exposure, 0.03, 0.14), ramp(measures.exposure, 0.995, 0.93))
    return Quality(
        view=view,
        width=width,
        height=height,
        detail=measures.sharpness,
        lightness=measures.exposure,
        clipped=clipped,
        coverage=round(cut.coverage, 3),
        sharpness=ramp(measures.sharpness, 0.06, 0.34),
        exposure=round(lit * (1 - clipped), 3),
        resolution=ramp(max(width, height), 400, 1600),
        separation=round(cut.separation, 3),
        colours=measures.colours,
    )
