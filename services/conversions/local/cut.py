"""Divides a picture into backdrop and subject: the backdrop is what can be reached from the
picture's edge without crossing an outline.

An outline is a pixel whose colour is not the backdrop's, or a step in brightness or colour that is
steeper than the backdrop's grain. So a white shirt on white is closed off by its faint edges, and
what lies inside an outline belongs to the subject however much its colour resembles the backdrop's:
a print, a stripe. A soft shadow is no step, and only darker, so it is crossed.
"""

from dataclasses import dataclass

import pyvips

from services.conversions.local import backdrop, regions
from services.conversions.local.backdrop import Backdrop
from services.conversions.local.evidence import ramp
from services.conversions.local.regions import Regions

_DARKER, _LIGHTER = 0.4, 1.2
"""Weights of the lightness: a soft shadow differs only by being darker, only a subject is
lighter."""
_COLOUR = (7.0, 9.0)
"""Least and greatest Lab distance (weighted) at which a colour is no longer the backdrop's."""
_FAINT, _STEP = 2.5, 6.0
"""Least gradient (Sobel, Lab) of a faint step, and of a step."""
_LEAKED = 1.1
"""How much larger the subject is behind faint steps, if it has run out through the others."""
_GAP = 5
"""Pixels, uneven: gaps in a faint outline up to this width are closed."""
_LEAST_HOLE, _GREATEST_HOLE = 0.015, 0.3
_LEAST_PIECE, _MOST_PIECES = 0.004, 6
"""Shares of the subject, and a count: what shows the backdrop through a gap, such as between arm
and body, is neither most of the subject nor one of many pieces of its colour, such as stripes."""


@dataclass(frozen=True)
class Division:
    """mask: 255 where the subject is. threshold: the weighted Lab distance from which a colour
    isn't the backdrop's. evenness: 0..1, how even the picture's border is. clearness: 0..1, how
    much stronger than the backdrop's grain the outline of the subject is, on average."""

    mask: pyvips.Image
    threshold: float
    evenness: float
    clearness: float


def divide(lab: pyvips.Image, found: Backdrop) -> Division:
    """Divides a picture (Lab, float, in memory) whose backdrop was fitted."""
    difference = (lab - found.surface(lab.width, lab.height)).copy_memory()
    light = difference[0]
    weighted = (light < 0).ifthenelse(light * _DARKER, light * _LIGHTER)
    distance = _squared(weighted.bandjoin(difference[1:])).copy_memory()
    steps = _squared(lab.sobel()).copy_memory()
    grain = _in_border(distance, 60)
    threshold = max(_COLOUR[0], min(3 * grain, _COLOUR[1]))
    steep, faint = max(_STEP, 5 * _in_border(steps, 60)), max(_FAINT, 2 * _in_border(steps, 95))
    alike = (distance <= threshold**2).copy_memory()
    reached, weak = _reached(alike, steps, 1.5 * steep, gap=0), 1.5 * steep
    if faint < steep:
        behind_faint = _reached(alike, steps, faint, gap=_GAP)
        if (255 - behind_faint.avg()) > _LEAKED * (255 - reached.avg()):
            reached, weak = behind_faint, faint
    # The step itself is as wide as the filter that finds it.
    reached = ((reached.morph(_square(7), "dilate") & alike) | reached).copy_memory()
    mask = (reached | _holes(reached, alike, light, grain)) ^ 255
    mask = mask.morph(_square(3), "erode").morph(_square(3), "dilate")
    mask = _largest(mask.copy_memory())
    strength = _strength(distance / threshold**2, steps / weak**2)
    return Division(mask, threshold, ramp(grain, 12, 3), _clearness(mask, strength))


def _strength(colour: pyvips.Image, step: pyvips.Image) -> pyvips.Image:
    """Returns per pixel how strongly it is an outline, 0..255, from squares in units of the squared
    threshold: all of it at twice the threshold."""
    return ((colour > step).ifthenelse(colour, step) * (255 / 4)).cast("uchar")


def _squared(difference: pyvips.Image) -> pyvips.Image:
    """Returns the squared length of three bands; a root per pixel would cost a tenth of it all."""
    squares = difference * difference
    return squares[0] + squares[1] + squares[2]


def _in_border(squares: pyvips.Image, percent: int) -> float:
    """Returns a length that so much of the border stays below. A subject may touch some of it, and
    lines of a smooth gradient's steps may cross it."""
    strips = backdrop.border(squares) ** 0.5
    return float((strips * 16).cast("ushort").percent(percent)) / 16


def _reached(alike: pyvips.Image, steps: pyvips.Image, steep: float, *, gap: int) -> pyvips.Image:
    """Returns what can be reached from outside the picture, 0 or 255. Gaps of `gap` pixels are
    closed by thickening the outlines; then what was reached grows back to them, and over the
    scatter of compression around them, but over no other colour and no clear step."""
    passable = (steps <= steep**2) & alike
    if gap:
        passable = passable.morph(_square(gap), "erode")
    width, height = passable.width, passable.height
    framed = passable.embed(
        1, 1, width + 2, height + 2, background=255, extend="background"
    ).copy_memory()
    flooded = framed ^ framed.draw_flood(0, 0, 0, equal=True)
    reached = flooded.crop(1, 1, width, height).copy_memory()
    passable = ((steps <= (1.5 * steep) ** 2) & alike).copy_memory()
    for _ in range(4):
        reached = ((reached.morph(_square(5), "dilate") & passable) | reached).copy_memory()
    return reached


def _holes(
    reached: pyvips.Image, alike: pyvips.Image, light: pyvips.Image, grain: float
) -> pyvips.Image:
    """Returns where the backdrop shows through gaps that the subject encloses: a few large areas of
    exactly its colour."""
    enclosed = ((reached ^ 255) & alike).morph(_square(3), "erode").copy_memory()
    subject = (reached ^ 255).avg() / 255 * reached.width * reached.height
    if enclosed.avg() / 255 * reached.width * reached.height < max(1, _LEAST_HOLE * subject):
        return reached * 0
    found = regions.label(enclosed)
    if found is None:
        return reached * 0
    darkest, lightest = -max(2.0, 2 * grain), max(0.8, grain)
    gaps = [
        is_set
        and _LEAST_HOLE * subject <= area <= _GREATEST_HOLE * subject
        and darkest < mean < lightest
        for area, is_set, mean in zip(
            found.areas, found.inside, regions.mean(found, light), strict=True
        )
    ]
    pieces = sum(
        area >= _LEAST_PIECE * subject and is_set
        for area, is_set in zip(found.areas, found.inside, strict=True)
    )
    if not any(gaps) or pieces > _MOST_PIECES:
        return reached * 0
    prints = _in_the_middle(found, reached)
    gaps = [gap and not printed for gap, printed in zip(gaps, prints, strict=True)]
    return regions.select(found, gaps).morph(_square(5), "dilate") & alike


def _in_the_middle(found: Regions, reached: pyvips.Image) -> list[bool]:
    """Returns which regions lie in the middle of the subject, where a print is and no gap: a gap is
    at its side, or above it, such as in a handle."""
    left, top, width, height = regions.bounds(reached ^ 255)
    place = pyvips.Image.xyz(reached.width, reached.height)
    return [
        abs((x - left) / max(1, width) - 0.5) < 1 / 6 and 0.2 < (y - top) / max(1, height) < 0.8
        for x, y in zip(regions.mean(found, place[0]), regions.mean(found, place[1]), strict=True)
    ]


def _largest(mask: pyvips.Image) -> pyvips.Image:
    """Keeps the largest part and others of comparable size, and fills pinholes."""
    found = regions.label(mask)
    if found is None:
        return mask
    parts = list(zip(found.areas, found.inside, strict=True))
    largest = max((area for area, is_set in parts if is_set), default=0)
    keep = [
        area >= 0.15 * largest if is_set else area < _LEAST_PIECE * largest
        for area, is_set in parts
    ]
    return regions.select(found, keep).copy_memory()


def _clearness(mask: pyvips.Image, strength: pyvips.Image) -> float:
    """Returns the mean strength of the outline along the mask's edge, 0..1; the strongest pixel
    within two counts."""
    edge = (mask ^ mask.morph(_square(3), "erode")).copy_memory()
    length = edge.avg()
    if length == 0:
        return 0.0
    return float((strength.rank(5, 5, 24) & edge).avg() / length)


def _square(side: int) -> pyvips.Image:
    return pyvips.Image.new_from_array([[255] * side] * side)
