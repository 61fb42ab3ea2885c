"""Renders the example photographs from code alone: `python -m examples.photos.make [directory]`.

Every random number comes from a fixed seed, so the same libvips makes the same pictures, byte for
byte.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pyvips

from examples.photos import figure, jacket
from examples.photos.cloth import Box, Frame, Image, coverage, drape, filled, limited, linear, soft

JACKET_FRAME = Frame(3000, 4000, 1500, 820)
FIGURE_FRAME = Frame(3000, 4000, 1500, 1260)


def studio(frame: Frame, outlines: tuple[str, ...]) -> Image:
    """Returns a light grey seamless background, lit from the upper left, with the shadow of the
    subject that will stand before it."""
    grid = pyvips.Image.xyz(frame.width, frame.height).cast("float")
    dx, dy = (
        (grid[0] - frame.width * 0.44) / frame.width,
        (grid[1] - frame.height * 0.40) / frame.height,
    )
    glow = 1.06 - (dx * dx * 0.55 + dy * dy * 0.62)
    wall = glow + drape(frame.width, frame.height, 900, 1200, 901) * 0.012
    shape = coverage(Box(frame, 0, 0, frame.width, frame.height), filled(outlines))
    far = shape.embed(85, 120, frame.width, frame.height)
    near = shape.embed(22, 30, frame.width, frame.height)
    shade = soft(far, 95) * 0.26 + soft(near, 26) * 0.24 + soft(shape, 8) * 0.12
    return (wall * (1 - shade) * linear((217, 217, 215))).copy_memory()


def unsteady(canvas: Image, seed: int) -> Image:
    """Returns the canvas with every line shifted by up to 5 pixels, as cut and sewn cloth is: no
    edge stays ruler-straight."""
    width, height = canvas.width, canvas.height
    grid = pyvips.Image.xyz(width, height).cast("float")
    x, y = (
        limited(
            grid[k]
            + drape(width, height, 260, 330, seed + k) * 7
            + drape(width, height, 70, 80, seed + k + 2) * 2.2,
            1,
            size - 3,
        )
        for k, size in ((0, width), (1, height))
    )
    return canvas.mapim(x.bandjoin(y), interpolate=pyvips.Interpolate.new("bicubic"))


def developed(canvas: Image, seed: int) -> Image:
    """Applies what a camera does: fall-off to the corners, a trace of lens blur, sharpening, grain.
    Returns sRGB, 8 bits."""
    width, height = canvas.width, canvas.height
    grid = pyvips.Image.xyz(width, height).cast("float")
    dx, dy = grid[0] / width - 0.5, grid[1] / height - 0.5
    light = soft(canvas * (1 - (dx * dx + dy * dy) * 0.30), 0.5).copy(interpretation="scrgb")
    grain = soft(pyvips.Image.gaussnoise(width, height, sigma=1, mean=0, seed=seed), 0.6) * 4.2
    # Values stay within 10 to 246: no highlight burns out and no shadow closes.
    plain = light.colourspace("srgb").cast("float").copy_memory()
    shown = limited(plain + (plain - soft(plain, 1.4)) * 0.6 + grain, 10, 246)
    return shown.cast("uchar").copy(interpretation="srgb")


def saved(image: Image, path: Path) -> None:
    """Writes a JPEG with the sRGB profile and the orientation tag 1, upright."""
    image = image.copy()
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)
    image.jpegsave(str(path), Q=88, optimize_coding=True, profile="srgb", keep="exif|icc")


def blurred(path: Path, out: Path, sigma: float) -> None:
    """Writes a copy of a photograph of the same size, out of focus by `sigma` pixels."""
    saved(pyvips.Image.new_from_file(str(path)).gaussblur(sigma), out)


def photograph(
    out: Path,
    frame: Frame,
    draw: Callable[[Image, Frame], Image],
    outlines: tuple[str, ...],
    seed: int,
) -> None:
    """Renders one subject before the studio background and writes it to `out`."""
    saved(developed(unsteady(draw(studio(frame, outlines), frame), seed), seed), out)


def main(folder: Path) -> None:
    """Renders all four photographs into a folder, about twenty seconds each."""
    for seed, (view, (draw, outlines)) in enumerate(jacket.VIEWS.items()):
        photograph(folder / f"{view}.jpg", JACKET_FRAME, draw, outlines, seed * 10 + 1001)
    photograph(folder / "figure.jpg", FIGURE_FRAME, figure.figure, figure.OUTLINES, 1101)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
