"""Draws a garment from its photograph, in the manner of a flat sketch: dark lines on white.

Edges and fittings (by Canny) and seams (by the second derivative) are drawn where the photograph
has them: long and strong lines are kept, short and weak ones dropped. The outline comes from the
subject's mask and is drawn stronger.
"""

from dataclasses import dataclass
from math import cos, pi, sin
from pathlib import Path

import pyvips

from services.conversions.local import picture, regions, subject
from services.conversions.local.evidence import Evidence, Rendering, capped, ramp
from services.conversions.local.subject import Subject

WORKING_SIDE = 2000
_SOURCE_TYPE = "algorithmicMedia"  # every line is computed; no pixel of the photograph is left
_INK = (28, 30, 36)
_FAINTEST = 0.15
_DIRECTIONS = 12
_FADE = (0.42, 1.0)
"""Darkness of the weakest and the strongest inner line."""


@dataclass(frozen=True)
class _Choice:
    """Which pixels become lines: those above `weak` that are connected to one above `strong`, both
    as multiples of the cloth's own texture, in lines of some `shortest` pixels or more at working
    size."""

    weak: float
    strong: float
    shortest: float


_CONTOURS = _Choice(weak=2.6, strong=4.5, shortest=40)
_SEAMS = _Choice(weak=2.2, strong=4.8, shortest=130)


def line_drawing(image: Path, out: Path, *, view: str) -> Rendering:
    """Writes the drawing (PNG, JPEG or WebP by the suffix of `out`), its longer side at most
    WORKING_SIDE pixels.

    `view` is recorded with the parameters. The drawing keeps the photograph's frame, so that a
    place in the photograph (as a fraction) is the same place in the drawing.
    """
    photo = picture.open_upright(image, WORKING_SIDE)
    found = subject.find(photo)
    width, height = photo.width, photo.height
    unit = max(width, height) / WORKING_SIDE
    shape = _smooth_shape(found, width, height, unit)
    lines, kept = _inner_lines(picture.flat(photo), shape, unit)
    outline = _outline(shape, unit)
    ink = (lines > outline).ifthenelse(lines, outline)
    drawing = (ink * -1 + 1) * [255 - c for c in _INK] + list(_INK)
    picture.write(drawing, out, 92, _SOURCE_TYPE)
    evidence = (
        Evidence(
            "separation",
            round(found.separation, 3),
            0.45,
            "how even the backdrop is, and how clear the outline on it",
        ),
        Evidence(
            "resolution",
            0.5 + 0.5 * ramp(max(width, height), 500, 1600),
            0.25,
            f"drawn from {width} x {height} px",
        ),
        Evidence(
            "lines",
            ramp(kept, 0.0005, 0.006) if kept < 0.09 else ramp(kept, 0.2, 0.09),
            0.3,
            f"inner lines cover {kept:.2%} of the subject; next to none or a web of them is"
            " doubtful",
        ),
    )
    parameters = {"view": view, "working_side": WORKING_SIDE, "coverage": round(found.coverage, 3)}
    return Rendering(width, height, capped(evidence), evidence, parameters, _SOURCE_TYPE)


def _smooth_shape(found: Subject, width: int, height: int, unit: float) -> pyvips.Image:
    """Returns the mask at the drawing's size with its staircase smoothed away: 0..1, 0.5 on the
    outline."""
    mask = found.mask
    soft = (
        mask.cast("float")
        .gaussblur(1.6)
        .resize(width / mask.width, vscale=height / mask.height, kernel="cubic")
    )
    soft = soft.embed(0, 0, width, height, extend="copy")
    return (soft.gaussblur(2.2 * unit) / 255).copy_memory()


def _outline(shape: pyvips.Image, unit: float) -> pyvips.Image:
    """Returns a stroke along the shape's edge, 0..1. A picture that is all subject has none."""
    slope = picture.clip(_slope(shape), 0.004 / unit, 1)
    distance = (shape - 0.5).abs() / slope
    return picture.clip(3.0 * unit + 0.5 - distance, 0, 1)


def _slope(image: pyvips.Image) -> pyvips.Image:
    """Returns the change per pixel of a smooth one-band picture."""
    across = pyvips.Image.new_from_array([[-0.5, 0, 0.5]])
    x, y = image.conv(across, precision="float"), image.conv(across.rot90(), precision="float")
    return (x * x + y * y) ** 0.5


def _inner_lines(
    photo: pyvips.Image, shape: pyvips.Image, unit: float
) -> tuple[pyvips.Image, float]:
    """Returns the lines inside the outline, 0..1, and their share of the subject."""
    lab = photo.colourspace("lab")
    inside = ((shape > 0.985).rank(5, 5, 0) / 255).copy_memory()
    contours = _contours(lab, unit) * inside
    seams = _seams(lab[0], unit) * inside
    drawn = _drawn(contours, _CONTOURS, unit)
    # A contour already shows the seam beside it; both would make a thick, frayed line.
    reach = 2 * round(6 * max(unit, 0.3)) + 1
    beside = (drawn > 0).rank(reach, reach, reach * reach - 1)
    seams = _drawn(seams * ((255 - beside) / 255), _SEAMS, unit)
    drawn = (seams > drawn).ifthenelse(seams, drawn)
    share = (drawn > 0).avg() / 255 / max(1e-6, inside.avg())
    spread = drawn.rank(3, 3, 8).gaussblur(0.7 * max(unit, 0.5), precision="float")
    return picture.clip(spread * 1.25, 0, 1), float(share)


def _drawn(strength: pyvips.Image, choice: "_Choice", unit: float) -> pyvips.Image:
    """Returns how dark to draw each pixel, 0..1: only lines that are long enough and have a strong
    pixel."""
    strength = strength.copy_memory()
    texture = _texture(strength)
    strong = choice.strong * texture
    kept = _linked(
        strength, weak=choice.weak * texture, strong=strong, shortest=round(choice.shortest * unit)
    )
    return (picture.clip(strength / (2 * strong), *_FADE) * (kept / 255)).copy_memory()


def _contours(lab: pyvips.Image, unit: float) -> pyvips.Image:
    """Returns where colour or lightness changes sharply, one pixel wide: fittings, facings, parts
    of another colour."""
    # Chroma has half the weight: a fitting of another colour counts, a coloured weave doesn't.
    strength = pyvips.Image.black(lab.width, lab.height)
    for plane in (lab[0] * 2.55, lab[1] * 1.3 + 128, lab[2] * 1.3 + 128):
        smooth = plane.cast("uchar").rank(5, 5, 12).rank(5, 5, 12)
        edges = smooth.canny(sigma=1.6 * max(unit, 0.5), precision="float")
        strength = (edges > strength).ifthenelse(edges, strength)
    return strength


def _seams(lightness: pyvips.Image, unit: float) -> pyvips.Image:
    """Returns how much a pixel belongs to a thin dark line that runs straight on for some length:
    seams and folded edges.

    The second derivative across each of _DIRECTIONS directions is averaged along that direction. A
    weave averages out, a soft fold in the cloth has almost no second derivative, and what is dark
    in every direction (a button) is subtracted.
    """
    smooth = lightness.gaussblur(2.0 * max(unit, 0.5), precision="float").copy_memory()
    second = pyvips.Image.new_from_array([[1, -2, 1]])
    mixed = pyvips.Image.new_from_array([[0.25, 0, -0.25], [0, 0, 0], [-0.25, 0, 0.25]])
    xx, yy, xy = (
        smooth.conv(kernel, precision="float").copy_memory()
        for kernel in (second, second.rot90(), mixed)
    )
    best = total = pyvips.Image.black(smooth.width, smooth.height).cast("float")
    for step in range(_DIRECTIONS):
        angle = pi * step / _DIRECTIONS
        across_x, across_y = -sin(angle), cos(angle)
        curve = xx * across_x**2 + yy * across_y**2 + xy * (2 * across_x * across_y)
        along = curve.conv(
            _line_kernel(angle, round(15 * max(unit, 0.3))), precision="float"
        ).copy_memory()
        best = (along > best).ifthenelse(along, best).copy_memory()
        total = (total + picture.clip(along, 0, 1e9)).copy_memory()
    straight = picture.clip(best - total * (1.3 / _DIRECTIONS), 0, 1e9).copy_memory()
    peak = straight.rank(7, 7, 48)
    return straight * ((straight > peak * 0.75) / 255)


def _line_kernel(angle: float, reach: int) -> pyvips.Image:
    """Returns the kernel that averages along a line through the middle. Most of its elements are
    zero, which libvips skips."""
    side = 2 * reach + 1
    places = {
        (round(reach + s * sin(angle)), round(reach + s * cos(angle)))
        for s in range(-reach, reach + 1)
    }
    rows = [
        [1.0 if (row, column) in places else 0.0 for column in range(side)] for row in range(side)
    ]
    return pyvips.Image.new_from_array(rows, scale=len(places))


def _texture(strength: pyvips.Image) -> float:
    """Returns the strength of a typical edge pixel: the cloth's own texture, since most of a
    garment is plain cloth."""
    counts = memoryview(
        (strength * 20).cast("uchar").hist_find().cast("uint").write_to_memory()
    ).cast("I")
    half, seen = sum(counts[1:]) / 2, 0
    for level in range(1, len(counts)):
        seen += counts[level]
        if seen >= half:
            return max(_FAINTEST, level / 20)
    return _FAINTEST


def _linked(strength: pyvips.Image, *, weak: float, strong: float, shortest: int) -> pyvips.Image:
    """Returns a mask of 0 or 255 of the weak pixels that are connected to a strong one, in lines of
    some length."""
    thin = (strength > weak).copy_memory()
    # Widens the lines first: regions join along edges only, and a thin line runs along diagonals
    # too.
    found = regions.label(thin.rank(3, 3, 8).copy_memory())
    if found is None:
        return strength > strong
    peaks = memoryview(
        strength.hist_find_indexed(found.labels, combine="max").cast("float").write_to_memory()
    ).cast("f")
    keep = [
        is_set and peak >= strong and area >= 3 * shortest
        for area, is_set, peak in zip(found.areas, found.inside, peaks, strict=True)
    ]
    return regions.select(found, keep) & thin
