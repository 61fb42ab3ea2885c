"""Cuts the subject of a picture out of its fairly even background.

A smooth surface is fitted to the colours at the picture's border, the distance of every pixel from
that surface is taken in Lab, a threshold is chosen from the histogram of the distances (Otsu), and
the regions that are left are cleaned up. Nothing is learned and nothing is assumed about what the
subject is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import dist
from statistics import median

import pyvips

from services.conversions.local import picture

WORKING_SIDE = 1000
_FIT_SIDE = 72
_TERMS = 6
_FAR = 16.0
"""Lab distance from the border's median above which a border pixel belongs to a subject that
touches the edge."""
_APART = 30.0
"""Mean Lab distance between subject and background that counts as certainly apart."""
_MAX_REGIONS = 60_000


@dataclass(frozen=True)
class Subject:
    """Where the subject is, at working size, and what was measured on the way.

    mask: one band, uchar, 0 or 255; its longer side is at most WORKING_SIDE.
    box: left, top, width, height as fractions of the picture.
    coverage: share of the picture inside the mask, 0..1.
    separation: how far the subject's colours are from the background's, from 0 (they can't be told
        apart; the mask is then the whole picture) to 1 (certainly apart).
    background: sRGB of the background in the middle of the picture, 0..255 each.
    light: lightness (Lab) of the background as coefficients of a quadratic surface; see
        `lightness`.
    threshold: the Lab distance that divides subject from background.
    """

    mask: pyvips.Image
    box: tuple[float, float, float, float]
    coverage: float
    separation: float
    background: tuple[float, float, float]
    light: tuple[float, ...]
    threshold: float


def find(image: pyvips.Image) -> Subject:
    """Finds the subject of an upright sRGB picture. One with a meaningful alpha band is already cut
    out, and that band gives the mask."""
    scale = min(1.0, WORKING_SIDE / max(image.width, image.height))
    small = (image.resize(scale) if scale < 1 else image).copy_memory()
    if small.hasalpha() and small[small.bands - 1].min() < 128:
        mask = (small[small.bands - 1] > 127).copy_memory()
        return _subject(mask, 1.0, (255.0, 255.0, 255.0), (100.0, 0.0, 0.0, 0.0, 0.0, 0.0), 0.0)
    lab = picture.flat(small).gaussblur(0.7).colourspace("lab").copy_memory()
    backdrop = _fit_backdrop(lab)
    distance = _distance(lab, _surface(backdrop, lab.width, lab.height)).copy_memory()
    threshold = _threshold(distance)
    mask = _clean(distance > threshold)
    centre = (pyvips.Image.black(1, 1) + [c[0] for c in backdrop]).copy(interpretation="lab")
    red, green, blue = (float(value) for value in centre.colourspace("srgb")(0, 0))
    return _subject(
        mask, _separation(distance, mask), (red, green, blue), tuple(backdrop[0]), threshold
    )


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
    return _surface([subject.light], width, height)


def row_runs(mask: pyvips.Image) -> list[list[tuple[int, int]]]:
    """Returns the runs of each row of a 0/255 mask as (left, right), right exclusive, from left to
    right."""
    data, width = mask.write_to_memory(), mask.width
    return [list(_runs(data[start : start + width])) for start in range(0, len(data), width)]


def bounds(mask: pyvips.Image) -> tuple[int, int, int, int]:
    """Returns left, top, width and height of what is set, in pixels; all zero for an empty mask."""
    left, top, width, height = mask.find_trim(background=[0], threshold=64, line_art=True)
    return int(left), int(top), int(width), int(height)


def regions(mask: pyvips.Image) -> tuple[pyvips.Image, list[int], list[bool]] | None:
    """Returns the connected regions of a 0/255 mask: a ushort image of labels, and per label its
    area in pixels and whether it is set. Returns None if there are too many to be anything but
    noise."""
    labels, found = mask.labelregions(segments=True)
    if found["segments"] > _MAX_REGIONS:
        return None
    labels = labels.cast("ushort").copy_memory()
    areas = memoryview(labels.hist_find().cast("uint").write_to_memory()).cast("I")
    inside = memoryview(
        mask.hist_find_indexed(labels, combine="max").cast("uchar").write_to_memory()
    )
    return labels, list(areas), [value > 0 for value in inside]


def select(labels: pyvips.Image, keep: Sequence[bool]) -> pyvips.Image:
    """Returns the mask of those regions whose label is to be kept."""
    table = bytes(255 if kept else 0 for kept in keep)
    return labels.maplut(pyvips.Image.new_from_memory(table, len(table), 1, 1, "uchar"))


def _subject(
    mask: pyvips.Image,
    separation: float,
    background: tuple[float, float, float],
    light: tuple[float, ...],
    threshold: float,
) -> Subject:
    coverage = mask.avg() / 255
    if not 0.01 <= coverage <= 0.97:
        mask, coverage, separation = (mask * 0 + 255).cast("uchar").copy_memory(), 1.0, 0.0
    left, top, width, height = bounds(mask)
    box = (left / mask.width, top / mask.height, width / mask.width, height / mask.height)
    return Subject(mask, box, coverage, separation, background, light, threshold)


def _fit_backdrop(lab: pyvips.Image) -> list[list[float]]:
    """Returns coefficients (per Lab band) of a quadratic surface through the background's colours.

    The surface is fitted to the border first, then to everything close to the first fit, so that it
    follows a vignette or a gradient over the whole backdrop into the picture's middle.
    """
    scale = _FIT_SIDE / max(lab.width, lab.height)
    tiny = lab.resize(min(1.0, scale)).cast("float")
    width, height = tiny.width, tiny.height
    values = memoryview(tiny.write_to_memory()).cast("f")
    pixels = []
    for index in range(width * height):
        x, y = (index % width + 0.5) / width - 0.5, (index // width + 0.5) / height - 0.5
        pixels.append((x, y, (values[3 * index], values[3 * index + 1], values[3 * index + 2])))
    border = [
        p
        for p in pixels
        if max(abs(p[0]) * width + 3, 0) > width / 2 or abs(p[1]) * height + 3 > height / 2
    ]
    typical = [median(p[2][band] for p in border) for band in range(3)]
    chosen = [p for p in border if _apart(p[2], typical) < _FAR] or border
    for reach in (12.0, 8.0):
        surface = [_least_squares([(p[0], p[1], p[2][band]) for p in chosen]) for band in range(3)]
        near = [
            p for p in pixels if _apart(p[2], [_evaluate(c, p[0], p[1]) for c in surface]) < reach
        ]
        chosen = near if len(near) > len(border) // 2 else chosen
    return [_least_squares([(p[0], p[1], p[2][band]) for p in chosen]) for band in range(3)]


def _apart(colour: Sequence[float], other: Sequence[float]) -> float:
    return dist(colour, other)


def _basis(x: float, y: float) -> tuple[float, ...]:
    return (1.0, x, y, x * y, x * x, y * y)


def _evaluate(coefficients: Sequence[float], x: float, y: float) -> float:
    return sum(c * b for c, b in zip(coefficients, _basis(x, y), strict=True))


def _least_squares(points: Iterable[tuple[float, float, float]]) -> list[float]:
    """Solves the normal equations of the quadratic surface by Gauss-Jordan, slightly damped, so
    that they have a solution."""
    matrix = [
        [1e-3 if row == column and row else 0.0 for column in range(_TERMS + 1)]
        for row in range(_TERMS)
    ]
    for x, y, value in points:
        basis = _basis(x, y)
        for row in range(_TERMS):
            for column in range(_TERMS):
                matrix[row][column] += basis[row] * basis[column]
            matrix[row][_TERMS] += basis[row] * value
    for pivot in range(_TERMS):
        best = max(range(pivot, _TERMS), key=lambda row: abs(matrix[row][pivot]))
        matrix[pivot], matrix[best] = matrix[best], matrix[pivot]
        matrix[pivot] = [value / matrix[pivot][pivot] for value in matrix[pivot]]
        for row in range(_TERMS):
            if row != pivot:
                factor = matrix[row][pivot]
                matrix[row] = [
                    a - factor * b for a, b in zip(matrix[row], matrix[pivot], strict=True)
                ]
    return [matrix[row][_TERMS] for row in range(_TERMS)]


def _surface(coefficients: Sequence[Sequence[float]], width: int, height: int) -> pyvips.Image:
    grid = (pyvips.Image.xyz(width, height) + 0.5) / [width, height] - 0.5
    x, y = grid[0], grid[1]
    bands = [
        c[0] + x * c[1] + y * c[2] + x * y * c[3] + x * x * c[4] + y * y * c[5]
        for c in coefficients
    ]
    return bands[0].bandjoin(bands[1:]) if bands[1:] else bands[0]


def _distance(lab: pyvips.Image, backdrop: pyvips.Image) -> pyvips.Image:
    # Darker pixels count less: a soft shadow on the backdrop differs only by being darker. Only a
    # subject is lighter.
    difference = lab - backdrop
    difference = (difference[0] < 0).ifthenelse(
        difference * [0.4, 1.0, 1.0], difference * [1.2, 1.0, 1.0]
    )
    squares = difference * difference
    return (squares[0] + squares[1] + squares[2]) ** 0.5


def _threshold(distance: pyvips.Image) -> float:
    """Returns at most half of Otsu's threshold, since a subject may have pale parts; less if the
    backdrop is smooth."""
    histogram = memoryview(
        (distance * 2.5).cast("uchar").hist_find().cast("uint").write_to_memory()
    ).cast("I")
    total, everything = sum(histogram), sum(i * n for i, n in enumerate(histogram))
    best, level, count, mass = -1.0, 0, 0, 0
    for i, n in enumerate(histogram):
        count, mass = count + n, mass + i * n
        if 0 < count < total:
            between = (
                (mass / count - (everything - mass) / (total - count)) ** 2
                * count
                * (total - count)
            )
            if between > best:
                best, level = between, i
    edge = max(2, round(0.03 * min(distance.width, distance.height)))
    noise = distance.crop(0, 0, distance.width, edge).percent(90) if distance.max() > 0 else 0.0
    otsu = level / 2.5
    return max(3.0, min(0.5 * otsu, max(5.0, 0.38 * otsu, 2.5 * float(noise))))


def _separation(distance: pyvips.Image, mask: pyvips.Image) -> float:
    inside = mask.avg() / 255
    if inside in (0.0, 1.0):
        return 0.0
    within = (distance * (mask / 255)).avg() / inside
    without = (distance * ((255 - mask) / 255)).avg() / (1 - inside)
    return max(0.0, min(1.0, float(within - without) / _APART))


def _clean(mask: pyvips.Image) -> pyvips.Image:
    """Removes specks and pinholes: keeps the largest region and others of comparable size, and
    fills small holes."""
    mask = mask.rank(5, 5, 12).copy_memory()
    labelled = regions(mask)
    if labelled is None:
        return mask
    labels, areas, inside = labelled
    largest = max((area for area, is_set in zip(areas, inside, strict=True) if is_set), default=0)
    edge = _labels_on_border(labels)
    keep = [
        area >= 0.15 * largest if is_set else (area < 0.02 * largest and label not in edge)
        for label, (area, is_set) in enumerate(zip(areas, inside, strict=True))
    ]
    return select(labels, keep).rank(5, 5, 12).copy_memory()


def _labels_on_border(labels: pyvips.Image) -> set[int]:
    width, height = labels.width, labels.height
    strips = [
        (0, 0, width, 1),
        (0, height - 1, width, 1),
        (0, 0, 1, height),
        (width - 1, 0, 1, height),
    ]
    return {
        value
        for strip in strips
        for value in memoryview(labels.crop(*strip).write_to_memory()).cast("H")
    }


def _runs(row: bytes) -> Iterable[tuple[int, int]]:
    left = row.find(b"\xff")
    while left >= 0:
        right = row.find(b"\x00", left)
        right = len(row) if right < 0 else right
        yield left, right
        left = row.find(b"\xff", right)
