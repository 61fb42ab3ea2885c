"""Small photographs made in code: a garment laid flat and a standing person, each on a softly lit
backdrop."""

from pathlib import Path

import pyvips

Colour = tuple[int, int, int]
NAVY, SAND, GREY = (40, 70, 120), (190, 165, 125), (226, 227, 228)


def garment(
    path: Path,
    colour: Colour = NAVY,
    *,
    backdrop: Colour = GREY,
    width: int = 800,
    weave: float = 6.0,
) -> Path:
    """Writes a jacket with sleeves apart from the body, a dark pocket seam and a brass zip. 4:5, in
    the format of the suffix."""
    canvas, unit = _backdrop(width, width * 5 // 4, backdrop), width / 800

    def line(x1: float, y1: float, x2: float, y2: float, thick: float) -> pyvips.Image:
        begin, end = [x1 * unit, y1 * unit], [x2 * unit, y2 * unit]
        return pyvips.Image.sdf(canvas.width, canvas.height, "line", a=begin, b=end) - thick * unit

    body = _box(canvas, 240, 160, 560, 840, unit)
    shape = _union(body, line(256, 208, 132, 680, 48), line(544, 208, 668, 680, 48))
    canvas = _painted(canvas, shape, colour, weave)
    canvas = _painted(canvas, line(400, 170, 400, 830, 5), (205, 170, 80), 0)
    seam = _box(canvas, 270, 560, 370, 700, unit).abs() - 2.5 * unit
    return _written(
        _painted(canvas, seam, (colour[0] // 3, colour[1] // 3, colour[2] // 3), 0), path
    )


def person(
    path: Path, *, backdrop: Colour = (190, 196, 202), width: int = 640, head: bool = True
) -> Path:
    """Writes a standing figure in a grey shirt with its arms apart from the body. 2:3. Without a
    head it has no neck."""
    canvas, unit = _backdrop(width, width * 3 // 2, backdrop), width / 640
    size = (canvas.width, canvas.height)

    def limb(x1: float, y1: float, x2: float, y2: float, thick: float) -> pyvips.Image:
        begin, end = [x1 * unit, y1 * unit], [x2 * unit, y2 * unit]
        return pyvips.Image.sdf(*size, "line", a=begin, b=end) - thick * unit

    skin = [limb(240, 260, 188, 528, 22), limb(400, 260, 452, 528, 22)]
    if head:
        skin += [
            limb(320, 170, 320, 230, 24),
            pyvips.Image.sdf(*size, "circle", a=[320 * unit, 132 * unit], r=56 * unit),
        ]
    canvas = _painted(
        canvas, _union(limb(276, 512, 268, 900, 36), limb(364, 512, 372, 900, 36)), (50, 52, 60), 3
    )
    canvas = _painted(canvas, _union(*skin), (205, 160, 135), 3)
    return _written(_painted(canvas, _box(canvas, 236, 224, 404, 512, unit), (90, 92, 96), 3), path)


def plain(path: Path, colour: Colour = GREY, width: int = 600) -> Path:
    """Writes an empty backdrop."""
    return _written(_backdrop(width, width, colour), path)


def blurred(source: Path, path: Path) -> Path:
    """Writes the same picture out of focus."""
    image = pyvips.Image.new_from_file(str(source))
    return _written(image.gaussblur(image.width / 130), path)


def pixels(path: Path) -> pyvips.Image:
    """Returns the decoded picture in memory, without libvips's cache of this path."""
    return pyvips.Image.new_from_buffer(path.read_bytes(), "").copy_memory()


def difference(one: Path, other: Path) -> float:
    """Returns the greatest difference of any value between two pictures of the same size."""
    return float((pixels(one).cast("float") - pixels(other).cast("float")).abs().max())


def _backdrop(width: int, height: int, colour: Colour) -> pyvips.Image:
    grid = pyvips.Image.xyz(width, height)
    fall_off = ((grid[0] / width - 0.5) ** 2 + (grid[1] / height - 0.45) ** 2) * -36
    noise = pyvips.Image.gaussnoise(width, height, sigma=1.5, mean=0, seed=11)
    lit = fall_off.bandjoin([fall_off, fall_off]) + list(colour) + noise
    return lit.cast("uchar").copy(interpretation="srgb")


def _box(
    canvas: pyvips.Image, left: float, top: float, right: float, bottom: float, unit: float
) -> pyvips.Image:
    return pyvips.Image.sdf(
        canvas.width,
        canvas.height,
        "rounded-box",
        a=[left * unit, top * unit],
        b=[right * unit, bottom * unit],
        corners=[16 * unit] * 4,
    )


def _union(*shapes: pyvips.Image) -> pyvips.Image:
    whole = shapes[0]
    for shape in shapes[1:]:
        whole = (whole < shape).ifthenelse(whole, shape)
    return whole


def _painted(
    canvas: pyvips.Image, shape: pyvips.Image, colour: Colour, weave: float
) -> pyvips.Image:
    noise = pyvips.Image.gaussnoise(canvas.width, canvas.height, sigma=weave, mean=0, seed=5)
    paint = (canvas * 0 + list(colour) + noise).cast("uchar")
    return (
        ((0.5 - shape) * 255)
        .cast("uchar")
        .ifthenelse(paint, canvas, blend=True)
        .copy(interpretation="srgb")
    )


def _written(image: pyvips.Image, path: Path) -> Path:
    image.write_to_file(str(path), **({"Q": 92} if path.suffix == ".jpg" else {}))
    return path
