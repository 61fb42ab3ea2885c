"""Cuts the subject of a picture out of its fairly even background.

A smooth surface is fitted to the colours at the picture's border (`backdrop`), and whatever can be
reached from the edge over that surface, without crossing an outline, is background (`cut`). Nothing
is learned and nothing is assumed about what the subject is.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pyvips

from services.conversions.local import backdrop, cut, picture, regions

WORKING_SIDE = 1000


@dataclass(frozen=True)
class Subject:
    """Where the subject is, at working size, and what was measured on the way.

    mask: one band, uchar, 0 or 255; its longer side is at most WORKING_SIDE.
    box: left, top, width, height as fractions of the picture.
    coverage: share of the picture inside the mask, 0..1.
    separation: how certain the outline is, from 0 (subject and background can't be told apart; the
        mask is then the whole picture) to 1: how even the background is, or how clear the outline
        is on it, whichever is less.
    background: sRGB of the background in the middle of the picture, 0..255 each.
    light: lightness (Lab) of the background as coefficients of a quadratic surface; see
        `lightness`.
    threshold: the Lab distance that divides subject from background.
    evenness: how even the background is at the picture's border, 0..1.
    """

    mask: pyvips.Image
    box: tuple[float, float, float, float]
    coverage: float
    separation: float
    background: tuple[float, float, float]
    light: tuple[float, ...]
    threshold: float
    evenness: float


def find(image: pyvips.Image) -> Subject:
    """Finds the subject of an upright sRGB picture. One with a meaningful alpha band is already cut
    out, and that band gives the mask."""
    scale = min(1.0, WORKING_SIDE / max(image.width, image.height))
    small = (image.resize(scale) if scale < 1 else image).copy_memory()
    if small.hasalpha() and small[small.bands - 1].min() < 128:
        mask = (small[small.bands - 1] > 127).copy_memory()
        white = (100.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        return _subject(cut.Division(mask, 0.0, 1.0, 1.0), (255.0, 255.0, 255.0), white)
    lab = picture.flat(small).gaussblur(0.7).colourspace("lab").copy_memory()
    behind = backdrop.fit(lab)
    return _subject(cut.divide(lab, behind), behind.colour(), behind.coefficients[0])


def alpha(mask: pyvips.Image, width: int, height: int) -> pyvips.Image:
    """Returns the mask at another size as an alpha band, 0..255 (uchar), with smooth and steep
    edges drawn slightly inwards."""
    ratio = max(width / mask.width, height / mask.height)
    soft = mask.cast("float").resize(
        width / mask.width, vscale=height / mask.height, kernel="linear"
    )
    if (soft.width, soft.height) != (width, height):
        soft = soft.embed(0, 0, width, height, extend="copy")
    soft = soft.gaussblur(max(0.8, 0.9 * ratio))
    # Draws the edges inwards, because the outermost pixels are mixed with the old background and
    # would show as a fringe.
    return ((soft - 176) * 2.2 + 127.5).cast("uchar")


def cut_out(image: pyvips.Image, subject: Subject) -> pyvips.Image:
    """Returns the subject's box as RGBA, its backdrop transparent. `image` is the picture that the
    subject was found in."""
    left, top = round(subject.box[0] * image.width), round(subject.box[1] * image.height)
    width = max(1, min(round(subject.box[2] * image.width), image.width - left))
    height = max(1, min(round(subject.box[3] * image.height), image.height - top))
    whole = picture.flat(image).bandjoin(alpha(subject.mask, image.width, image.height))
    return whole.crop(left, top, width, height).copy_memory()


def lightness(subject: Subject, width: int, height: int) -> pyvips.Image:
    """Returns the lightness (Lab, 0..100) that the background has, or would have behind the
    subject, at any size."""
    return backdrop.surface([subject.light], width, height)


def row_runs(mask: pyvips.Image) -> list[list[tuple[int, int]]]:
    """Returns the runs of each row of a 0/255 mask as (left, right), right exclusive, from left to
    right."""
    data, width = mask.write_to_memory(), mask.width
    return [list(_runs(data[start : start + width])) for start in range(0, len(data), width)]


def _subject(
    found: cut.Division, background: tuple[float, float, float], light: tuple[float, ...]
) -> Subject:
    mask, coverage = found.mask, found.mask.avg() / 255
    separation = min(found.evenness, found.clearness)
    if not 0.01 <= coverage <= 0.97:
        mask, coverage, separation = (mask * 0 + 255).cast("uchar").copy_memory(), 1.0, 0.0
    left, top, width, height = regions.bounds(mask)
    box = (left / mask.width, top / mask.height, width / mask.width, height / mask.height)
    return Subject(
        mask, box, coverage, separation, background, light, found.threshold, found.evenness
    )


def _runs(row: bytes) -> Iterable[tuple[int, int]]:
    left = row.find(b"\xff")
    while left >= 0:
        right = row.find(b"\x00", left)
        right = len(row) if right < 0 else right
        yield left, right
        left = row.find(b"\xff", right)
