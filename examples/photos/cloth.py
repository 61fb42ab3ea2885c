"""Cloth as a height field: woven texture, folds, seams and stitches, lit by one lamp.

Lengths in pattern pieces are centimetres, with x = 0 on the centre line of the garment and y
growing downwards from the high point of the shoulder. A `Frame` says where that origin falls in a
picture; every picture has the same scale, `PX_PER_CM`. Images are pyvips float images in linear
light, so that shading multiplies as it does in front of a lens.
"""

import math
import random
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyvips

Image = Any  # pyvips ships no type information

PX_PER_CM = 35.0
LAMP = (-0.46, -0.50, 0.73)  # a large softbox above the camera's left shoulder
FILL = (0.62, -0.10, 0.78)  # a weak reflector on the right, so that the far side keeps its texture


@dataclass(frozen=True)
class Frame:
    """A picture of width x height pixels whose pattern origin lies at (x, y) pixels."""

    width: int
    height: int
    x: float
    y: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the pixel position of a point given in centimetres."""
        return self.x + x * PX_PER_CM, self.y + y * PX_PER_CM


@dataclass(frozen=True)
class Box:
    """A rectangle of a frame in pixels; drawings are cut off at its edges."""

    frame: Frame
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Cloth:
    """A material: sRGB colour 0..255, weave name, and the relief of weave and folds in pixels of
    height."""

    colour: tuple[int, int, int]
    weave: str = "canvas"
    relief: float = 0.8
    sheen: float = 0.03
    thread: tuple[int, int, int] = (208, 176, 122)


@dataclass(frozen=True)
class Fold:
    """A lens-shaped ridge (`rise` > 0) or valley from one point to another, bulging sideways by
    `bend` (all cm)."""

    x0: float
    y0: float
    x1: float
    y1: float
    width: float
    rise: float
    bend: float = 0.0


@dataclass(frozen=True)
class Piece:
    """One cut piece of the garment: outline, grooves along its seams, stitched lines, and folds."""

    outline: str
    cloth: Cloth
    grain: float = 0.0  # degrees the warp is turned
    seams: tuple[str, ...] = ()
    stitches: tuple[str, ...] = ()
    folds: tuple[Fold, ...] = ()
    puff: tuple[float, float] = (
        2.0,
        0.5,
    )  # how rounded: reach in cm, and height as a share of the reach
    form: str = ""  # the shape it is rounded over, where that is more than the piece itself
    slack: float = 0.5  # height in cm of the random drape
    lift: float = 0.25  # cm the piece stands off what lies under it
    edge: float = 0.12  # cm: how softly its edge is turned
    seed: int = 1


def mirrored(path: str) -> str:
    """Returns the path mirrored at the centre line. Paths hold absolute M, L, C, Q and Z only."""
    numbers = iter(range(10**6))
    return re.sub(
        r"-?\d+\.?\d*", lambda m: f"{-float(m[0]):g}" if next(numbers) % 2 == 0 else m[0], path
    )


def box_around(frame: Frame, path: str, margin: float) -> Box:
    """Returns the part of the frame that holds a path and `margin` centimetres around it."""
    numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", path)]
    x0, y0 = frame.at(min(numbers[::2]) - margin, min(numbers[1::2]) - margin)
    x1, y1 = frame.at(max(numbers[::2]) + margin, max(numbers[1::2]) + margin)
    left, top = max(0, int(x0)), max(0, int(y0))
    return Box(frame, left, top, min(frame.width, int(x1)) - left, min(frame.height, int(y1)) - top)


def svg(box: Box, body: str) -> Image:
    """Draws SVG elements in centimetres into a box: RGBA, 8 bits."""
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{box.width}" height="{box.height}"><g'
        f' transform="translate({box.frame.x - box.left} {box.frame.y - box.top})'
        f' scale({PX_PER_CM})" stroke-linejoin="round">{body}</g></svg>'
    )
    return pyvips.Image.svgload_buffer(text.encode()).copy_memory()


def coverage(box: Box, body: str) -> Image:
    """Returns how much of each pixel the elements cover, 0..1."""
    return svg(box, body)[3].cast("float") / 255


def filled(paths: tuple[str, ...]) -> str:
    return "".join(f'<path d="{d}"/>' for d in paths)


def stroked(paths: tuple[str, ...], width: float, dash: str = "") -> str:
    style = f'fill="none" stroke="#fff" stroke-width="{width}" stroke-dasharray="{dash}"'
    return "".join(f'<path d="{d}" {style}/>' for d in paths)


def soft(image: Image, sigma: float) -> Image:
    """Applies a Gaussian blur. Wide blurs run on a reduced copy, where they cost little and look
    the same."""
    step = max(1, int(sigma / 6))
    if step == 1:
        return image.gaussblur(sigma, precision="float") if sigma > 0.2 else image
    width, height = image.width, image.height
    room = int(3 * sigma / step) * step + step
    padded = image.embed(room, room, width + 2 * room, height + 2 * room, extend="copy")
    small = padded.shrink(step, step).gaussblur(sigma / step, precision="float")
    wide = small.resize(step, kernel="cubic")
    return wide.crop(room, room, width, height)


def drape(width: int, height: int, across: float, along: float, seed: int) -> Image:
    """Returns a smooth random height -1..1 whose bumps are `across` x `along` pixels wide."""
    cell = 16
    columns, rows = (
        math.ceil(width / across * cell) + 2 * cell,
        math.ceil(height / along * cell) + 2 * cell,
    )
    noise = pyvips.Image.perlin(columns, rows, cell_size=cell, seed=seed).copy_memory()
    grown = noise.resize(across / cell, vscale=along / cell, kernel="cubic")
    return grown.crop(int(across / 2), int(along / 2), width, height)


def streaks(width: int, height: int, long: int, seed: int) -> Image:
    """Returns unit noise one pixel wide and about `long` pixels tall: yarn of uneven thickness."""
    fine = pyvips.Image.gaussnoise(width, height // long + 3, sigma=1.0, mean=0, seed=seed)
    return fine.resize(1, vscale=long, kernel="cubic").crop(0, long, width, height)


@cache
def weave(kind: str) -> Image:
    """Returns a large swatch with two bands: height 0..1 and tone around 0."""
    size = 3600
    grid = pyvips.Image.xyz(size, size).cast("float")
    x, y = (
        grid[0] + 1.1 * drape(size, size, 90, 300, 5),
        grid[1] + 1.1 * drape(size, size, 300, 90, 6),
    )
    warp, weft = streaks(size, size, 46, 11), streaks(size, size, 46, 12).rot90()
    if kind == "corduroy":
        wale = (x * (180 / 9.6)).sin().abs()
        pile = soft(pyvips.Image.gaussnoise(size, size, sigma=1.0, mean=0, seed=13), 0.9)
        height, tone = wale**0.7 * 4.2 + pile * 0.8, (wale - 0.6) * 0.55 + pile * 0.16 + warp * 0.03
    else:
        pitch = {"canvas": 3.7, "linen": 4.3, "lining": 2.6}[kind]
        crossing = (x * (180 / pitch)).sin() * (y * (180 / pitch)).sin()
        upper = (crossing * 3).cast("float") / 2 + 0.5
        share = (upper > 1).ifthenelse(1, (upper < 0).ifthenelse(0, upper))
        yarn = soft(warp, 0.8) * share + soft(weft, 0.8) * (1 - share)
        fluff = soft(pyvips.Image.gaussnoise(size, size, sigma=1.0, mean=0, seed=14), 0.7)
        rough = {"canvas": 1.0, "linen": 1.5, "lining": 0.4}[kind]
        height = crossing.abs() ** 0.8 + yarn * 0.22 * rough
        tone = (crossing.abs() - 0.45) * 0.20 + yarn * 0.085 * rough + fluff * 0.05
    return height.bandjoin(tone).cast("float").copy_memory()


def lens(fold: Fold) -> str:
    """Returns a fold's outline: pointed at both ends and as wide as `width` in the middle."""
    dx, dy = fold.x1 - fold.x0, fold.y1 - fold.y0
    length = math.hypot(dx, dy)
    nx, ny = -dy / length, dx / length
    mx, my = (fold.x0 + fold.x1) / 2, (fold.y0 + fold.y1) / 2
    a, b = fold.bend * 2 + fold.width, fold.bend * 2 - fold.width
    opacity = min(1.0, abs(fold.rise))
    return (
        f'<path opacity="{opacity:.3f}" d="M {fold.x0:.2f} {fold.y0:.2f} Q {mx + nx * a:.2f}'
        f" {my + ny * a:.2f} {fold.x1:.2f} {fold.y1:.2f} Q {mx + nx * b:.2f} {my + ny * b:.2f}"
        f' {fold.x0:.2f} {fold.y0:.2f} Z"/>'
    )


def folded(box: Box, piece: Piece) -> Image:
    """Returns the height in pixels of a piece's folds: the drawn ones, and random slack."""
    total = pyvips.Image.black(box.width, box.height).cast("float")
    for low, high, sigma in ((0.0, 0.7, 0.16), (0.7, 1.5, 0.36), (1.5, 9.0, 0.85)):
        some = [f for f in piece.folds if low <= f.width < high]
        for sign in (1, -1):
            paths = "".join(lens(f) for f in some if f.rise * sign > 0)
            if paths:
                ridge = soft(coverage(box, paths), sigma * PX_PER_CM)
                total += ridge * (sign * (low + high if high < 9 else 3.4) * 0.26 * PX_PER_CM)
    if piece.slack:
        wide = drape(box.width, box.height, 230, 620, piece.seed) * 2.2 + drape(
            box.width, box.height, 95, 210, piece.seed + 1
        )
        grid = pyvips.Image.xyz(box.width, box.height).cast("float")
        bent = grid + (wide * 34).bandjoin(wide * -25)
        crease = drape(box.width, box.height, 240, 1000, piece.seed + 2).abs()
        crease = soft(crease.mapim(bent, extend="copy"), 8) * -1.9
        total += (wide * 0.42 + crease) * (piece.slack * PX_PER_CM)
    return total


def slope(height: Image) -> tuple[Image, Image]:
    """Returns the rise per pixel to the right and downwards."""
    across = pyvips.Image.new_from_array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], scale=8)
    return height.conv(across, precision="float"), height.conv(across.rot90(), precision="float")


def limited(image: Image, low: float, high: float) -> Image:
    return (image < low).ifthenelse(low, (image > high).ifthenelse(high, image))


def linear(colour: tuple[int, int, int]) -> list[float]:
    """Converts an sRGB colour 0..255 to linear light 0..1."""
    return [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]


def lit(height: Image, rough: Image) -> tuple[Image, Image]:
    """Returns the diffuse light, and the share of light that reaches hollows, for a surface
    `height` with a texture `rough` on it."""
    gx, gy = slope(height + rough)
    norm = (gx * gx + gy * gy + 1) ** -0.5
    facing = [limited((gx * -d[0] + gy * -d[1] + d[2]) * norm, 0, 1) for d in (LAMP, FILL)]
    hollow = (soft(height, 14) - height) * 0.030 + (soft(height, 60) - height) * 0.011
    return facing[0] * 0.86 + facing[1] * 0.16 + norm * 0.10, limited(1 - hollow, 0.45, 1.10)


@dataclass(frozen=True)
class Rendered:
    """A piece ready to be laid down: colour in linear light, cover 0..1."""

    box: Box
    colour: Image
    cover: Image


def sampled(box: Box, piece: Piece, warp: Image) -> Image:
    """Returns the swatch of a piece's cloth, turned to its grain and dragged along by its folds."""
    angle = math.radians(piece.grain)
    grid = pyvips.Image.xyz(box.width, box.height).cast("float") - [box.width / 2, box.height / 2]
    x, y = grid[0] + warp * 0.5, grid[1] + warp * 0.35
    shift = random.Random(piece.seed).uniform(-60, 60)
    u = x * math.cos(angle) + y * math.sin(angle) + (1800 + shift)
    v = y * math.cos(angle) - x * math.sin(angle) + (1800 - shift)
    return weave(piece.cloth.weave).mapim(
        u.bandjoin(v), interpolate=pyvips.Interpolate.new("bicubic"), extend="mirror"
    )


@cache
def rounded(frame: Frame, form: str, reach: float) -> Image:
    """Returns a shape over the whole frame, 0..1, that falls off smoothly within `reach` pixels of
    its outline."""
    whole = Box(frame, 0, 0, frame.width, frame.height)
    return soft(coverage(whole, filled((form,))), reach).copy_memory()


def rendered(frame: Frame, piece: Piece) -> Rendered:
    """Shades one piece by itself."""
    box = box_around(frame, piece.outline, piece.lift * 3 + 1)
    cover = coverage(box, filled((piece.outline,)))
    reach = piece.puff[0] * PX_PER_CM
    if piece.form:
        round_ = rounded(frame, piece.form, reach).crop(box.left, box.top, box.width, box.height)
    else:
        round_ = soft(cover, reach)
    folds = folded(box, piece).copy_memory()  # several branches below read it: computed once
    height = (1 - (1 - round_) ** 2) * (reach * piece.puff[1] * 2.2) + folds
    height += soft(cover, piece.edge * PX_PER_CM) * (piece.edge * PX_PER_CM * 1.4)
    swatch = sampled(box, piece, folds).copy_memory()
    tone = swatch[1]
    if piece.seams:
        groove = coverage(box, stroked(piece.seams, 0.10))
        height += soft(groove, 2.0) * -7 + soft(groove, 11) * -9
        tone = tone - soft(groove, 1.4) * 0.35
    rough = swatch[0] * piece.cloth.relief
    thread = None
    if piece.stitches:
        thread = coverage(box, stroked(piece.stitches, 0.075, "0.24 0.085"))
        line = coverage(box, stroked(piece.stitches, 0.10))
        pucker = soft(coverage(box, stroked(piece.stitches, 0.5)), 9) * drape(
            box.width, box.height, 26, 26, piece.seed + 7
        )
        height += soft(line, 5) * -6 + pucker * 3.4
        rough = rough * (1 - thread) + soft(thread, 0.9) * 2.6
        tone = tone + soft(line, 7) * 0.16 - (soft(line, 1.2) - thread * 0.8) * 0.22
    light, open_ = lit(height.copy_memory(), rough)
    faded = (
        soft(
            pyvips.Image.gaussnoise(box.width, box.height, sigma=1, mean=0, seed=piece.seed + 3), 26
        )
        * 1.6
    )
    albedo = limited(1 + tone + faded, 0.25, 1.8)
    colour = albedo * linear(piece.cloth.colour)
    if thread is not None:
        colour = colour * (1 - thread) + thread * linear(piece.cloth.thread) * 0.92
    gloss = limited(light - 0.74, 0, 1) * (piece.cloth.sheen * 4)
    return Rendered(box, colour * (light * open_) + gloss, cover)


def laid(canvas: Image, part: Rendered, lift: float) -> Image:
    """Returns the canvas with a part on it, which shades what lies beneath according to its
    distance (`lift`, cm)."""
    box = part.box
    under = canvas.crop(box.left, box.top, box.width, box.height)
    step = max(1, round(lift * PX_PER_CM * 0.45))
    moved = part.cover.embed(step, step, box.width + step, box.height + step).crop(
        0, 0, box.width, box.height
    )
    shade = (
        soft(moved, lift * PX_PER_CM * 0.55) * 0.46
        + soft(part.cover, lift * PX_PER_CM * 0.22 + 1) * 0.28
    )
    over = under * (1 - shade) * (1 - part.cover) + part.colour * part.cover
    return canvas.insert(over, box.left, box.top).copy_memory()


def painted(frame: Frame, path: str, body: str) -> Rendered:
    """Draws small hardware with its own colours (SVG in cm), around the given path."""
    box = box_around(frame, path, 0.8)
    drawn = svg(box, body)
    colour = drawn[:3].copy(interpretation="srgb").colourspace("scrgb")
    return Rendered(box, colour, drawn[3].cast("float") / 255)
