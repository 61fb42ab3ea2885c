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
    path: Path,
    *,
    backdrop: Colour = (190, 196, 202),
    width: int = 640,
    head: bool = True,
    beside: bool = False,
) -> Path:
    """Writes a standing figure in a grey shirt with its arms apart from the body. 2:3. Without a
    head it has no neck; `beside` puts a large dark cupboard next to it, which hides one arm."""
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
    canvas = _painted(canvas, _box(canvas, 236, 224, 404, 512, unit), (90, 92, 96), 3)
    if beside:
        canvas = _painted(canvas, _box(canvas, 410, 300, 600, 960, unit), (60, 50, 45), 3)
        canvas = _painted(canvas, _box(canvas, 380, 500, 420, 960, unit), (60, 50, 45), 3)
    return _written(canvas, path)


def tee_shape(width: int) -> pyvips.Image:
    """Returns the distance from the outline of a tee with short sleeves in a 4:5 picture; negative
    inside."""
    canvas, unit = pyvips.Image.black(width, width * 5 // 4), width / 800
    size = (canvas.width, canvas.height)

    def sleeve(x1: float, x2: float) -> pyvips.Image:
        begin, end = [x1 * unit, 250 * unit], [x2 * unit, 400 * unit]
        return pyvips.Image.sdf(*size, "line", a=begin, b=end) - 60 * unit

    return _union(_box(canvas, 230, 180, 570, 840, unit), sleeve(270, 150), sleeve(530, 650))


def tee(
    path: Path,
    colour: Colour,
    *,
    backdrop: Colour,
    ink: Colour | None = None,
    stripes: bool = False,
    shadow: float = 0.0,
    seam: int = 0,
    width: int = 800,
) -> Path:
    """Writes a tee with crisp edges on an even backdrop.

    ink: colour of a print on its chest, or of `stripes` across all of it. shadow: how much darker
    its soft shadow on the backdrop is. seam: how much darker its outline is, by which a white tee
    is told from white.
    """
    canvas, shape = _even(width, width * 5 // 4, backdrop), tee_shape(width)
    if shadow:
        soft = (
            ((shape < 0) / 255)
            .embed(12, 24, canvas.width, canvas.height, extend="copy")
            .cast("float")
            .gaussblur(width / 50)
        )
        canvas = (canvas * (1 - soft * shadow)).cast("uchar").copy(interpretation="srgb")
    if seam:
        edge = (backdrop[0] - seam, backdrop[1] - seam, backdrop[2] - seam)
        canvas = _painted(canvas, shape - 2, edge, 0)
    canvas = _painted(canvas, shape, colour, 0.8)
    if ink and stripes:
        rows = pyvips.Image.xyz(canvas.width, canvas.height)[1]
        band = (rows % 60 - 30).abs() - 12
        canvas = _painted(canvas, (band > shape).ifthenelse(band, shape + 3), ink, 0.8)
    elif ink:
        canvas = _painted(canvas, _box(canvas, 320, 350, 480, 500, width / 800), ink, 0.8)
    return _written(canvas, path)


def street(path: Path, width: int = 600) -> Path:
    """Writes patches of many colours up to the edges: no backdrop at all."""
    noise = [pyvips.Image.gaussnoise(12, 12, mean=128, sigma=70, seed=seed) for seed in (1, 2, 3)]
    patches = noise[0].bandjoin(noise[1:]).cast("uchar").resize(width / 12, kernel="nearest")
    return _written(patches.copy(interpretation="srgb"), path)


def fragments(path: Path, width: int = 600) -> Path:
    """Writes a thin frame with a gap: parts of a shape, like a badly cut print."""
    canvas, unit = _even(width, width, GREY), width / 600
    frame = _box(canvas, 120, 120, 480, 480, unit).abs() - 9 * unit
    gap = _box(canvas, 240, 400, 360, 560, unit) * -1
    return _written(_painted(canvas, (frame > gap).ifthenelse(frame, gap), NAVY, 0), path)


def poles(path: Path, width: int = 600) -> Path:
    """Writes two poles that a beam joins at the top: wide, and without a body."""
    canvas, unit = _even(width, width, GREY), width / 600
    beam = _box(canvas, 90, 90, 510, 210, unit)
    shape = _union(
        beam, _box(canvas, 90, 90, 150, 540, unit), _box(canvas, 450, 90, 510, 540, unit)
    )
    return _written(_painted(canvas, shape, NAVY, 0), path)


def belt(path: Path, width: int = 600) -> Path:
    """Writes something broad and flat."""
    canvas, unit = _even(width, width, GREY), width / 600
    return _written(_painted(canvas, _box(canvas, 60, 280, 540, 340, unit), NAVY, 0), path)


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


def _even(width: int, height: int, colour: Colour) -> pyvips.Image:
    canvas = pyvips.Image.black(width, height, bands=3) + list(colour)
    return canvas.cast("uchar").copy(interpretation="srgb")


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
