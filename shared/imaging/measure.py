"""Measures a picture on one 800-pixel copy, so that measures can be compared across sizes."""

import base64
from collections import defaultdict
from collections.abc import Iterable, Iterator
from math import dist
from pathlib import Path
from typing import TypeVar

import pyvips

from shared.imaging.decode import load_scaled
from shared.imaging.model import Colour, Measures
from shared.imaging.placeholder import thumbhash

T = TypeVar("T")

WORKING_SIZE = 800
PLACEHOLDER_SIZE = 64
PALETTE_SIZE = 96
PALETTE_CELL = 8.0  # side of a cell in CIELAB units
SAME_COLOUR = 20.0  # colours closer than this in CIELAB count as one
SHARPNESS_HALF = 200.0  # the Laplacian variance with sharpness 0.5
OPAQUE = 128

_LAPLACIAN = [[0, 1, 0], [1, -4, 1], [0, 1, 0]]


def measure(path: Path) -> Measures:
    """Measures the first frame; `Measures` explains each number."""
    image = load_scaled(path, WORKING_SIZE, WORKING_SIZE, enlarge=True)
    if not image.hasalpha():
        image = image.bandjoin(255).copy_memory()
    colour, alpha = image[:3], image[3]
    luma = colour.colourspace("b-w").copy_memory()
    focal_x, focal_y = _focal_point(colour)
    exposure, shadows, highlights = _exposure(luma, alpha)
    variance = luma.conv(pyvips.Image.new_from_array(_LAPLACIAN), precision="float").deviate() ** 2
    return Measures(
        placeholder=_placeholder(image),
        colours=_dominant_colours(image),
        focal_x=focal_x,
        focal_y=focal_y,
        sharpness=round(variance / (variance + SHARPNESS_HALF), 4),
        exposure=exposure,
        clipped_shadows=shadows,
        clipped_highlights=highlights,
    )


def _focal_point(colour: pyvips.Image) -> tuple[float, float]:
    width, height = max(1, colour.width // 2), max(1, colour.height // 2)
    _, found = colour.smartcrop(
        width, height, interesting="attention", attention_x=True, attention_y=True
    )
    x, y = found["attention_x"] / colour.width, found["attention_y"] / colour.height
    return round(min(max(x, 0.0), 1.0), 4), round(min(max(y, 0.0), 1.0), 4)


def _exposure(luma: pyvips.Image, alpha: pyvips.Image) -> tuple[float, float, float]:
    """Returns mean lightness, clipped shadows and clipped highlights of the opaque pixels."""
    opaque = (alpha >= OPAQUE).ifthenelse(1, 0)
    counts = opaque.hist_find_indexed(luma, combine="sum").tolist()[0]
    total = sum(counts)
    if not total:
        return 0.0, 0.0, 0.0
    mean = sum(count * _lightness(value) for value, count in enumerate(counts)) / total
    return round(mean, 4), round(sum(counts[:3]) / total, 4), round(sum(counts[253:]) / total, 4)


def _lightness(value: int) -> float:
    """Returns CIE L*/100 of an 8-bit sRGB grey."""
    coded = value / 255
    linear = coded / 12.92 if coded <= 0.04045 else ((coded + 0.055) / 1.055) ** 2.4
    return (116 * linear ** (1 / 3) - 16) / 100 if linear > 216 / 24389 else linear * 24389 / 2700


def _dominant_colours(image: pyvips.Image) -> tuple[Colour, ...]:
    """Returns up to five colours. Pixels are sorted into cells of CIELAB; the fullest cell absorbs
    those near it, then the next fullest of the rest, and so on. A colour is the mean of its fullest
    cell; its share is that of all cells it absorbed.
    """
    small = image.thumbnail_image(PALETTE_SIZE, height=PALETTE_SIZE, size="down")
    lab = memoryview(small[:3].colourspace("lab").write_to_memory()).cast("B").cast("f")
    pixels = _groups(bytes(small.write_to_memory()), 4)
    cells: dict[tuple[int, ...], list[tuple[int, ...]]] = defaultdict(list)
    for pixel, place in zip(pixels, _groups(lab, 3), strict=True):
        if pixel[3] >= OPAQUE:
            cells[tuple(round(part / PALETTE_CELL) for part in place)].append(pixel)
    total = sum(map(len, cells.values()))
    left = sorted(cells, key=lambda cell: (-len(cells[cell]), cell))
    colours: list[Colour] = []
    while left and len(colours) < 5:
        seed = left[0]
        near = [cell for cell in left if dist(cell, seed) * PALETTE_CELL < SAME_COLOUR]
        left = [cell for cell in left if cell not in near]
        share = sum(len(cells[cell]) for cell in near) / total
        mean = (round(sum(band) / len(band)) for band in zip(*cells[seed], strict=True))
        red, green, blue, _ = mean
        colours.append(Colour(f"#{red:02x}{green:02x}{blue:02x}", round(share, 4)))
    colours.sort(key=lambda colour: -colour.share)
    return tuple(colour for colour in colours if colour.share >= 0.01)


def _placeholder(image: pyvips.Image) -> str:
    small = image.thumbnail_image(PLACEHOLDER_SIZE, height=PLACEHOLDER_SIZE, size="down")
    return base64.b64encode(
        thumbhash(small.width, small.height, bytes(small.write_to_memory()))
    ).decode()


def _groups(values: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Yields consecutive tuples of `size` values."""
    return zip(*[iter(values)] * size, strict=True)
