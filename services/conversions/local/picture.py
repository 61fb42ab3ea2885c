"""Reads pictures at the size that a task needs, and writes results that hold pixels and their
digital source type.

The pictures were inspected when they were uploaded. One that can't be decoded after all raises
pyvips.Error, which the imaging pool turns into ImageRejected.
"""

from collections.abc import Sequence
from pathlib import Path

import pyvips

from shared.imaging.decode import load_scaled, orientation
from shared.imaging.source_type import packet

MIN_SIDE = 48
_SAVE: dict[str, dict[str, object]] = {
    ".jpg": {"optimize_coding": True},
    ".jpeg": {"optimize_coding": True},
    ".webp": {"effort": 4},
    ".png": {"compression": 6},
}


def size_of(path: Path) -> tuple[int, int]:
    """Returns width and height in pixels, as seen after the orientation tag is applied. Reads the
    header only."""
    header = pyvips.Image.new_from_file(str(path), access="sequential")
    width, height = header.width, header.height
    return (height, width) if orientation(header) >= 5 else (width, height)


def open_upright(path: Path, max_side: int) -> pyvips.Image:
    """Returns the picture upright, in sRGB, 8 bit, three or four bands, in memory, its longer side
    at most `max_side` pixels.

    Shrinks while decoding, so that a 50 MP photograph is never in memory at full size. Raises
    ValueError if the shorter side is then below MIN_SIDE: a sliver shows nothing.
    """
    image = load_scaled(path, max_side, max_side)
    if min(image.width, image.height) < MIN_SIDE:
        raise ValueError(
            f"the picture, scaled to fit {max_side} px, is {image.width} x {image.height} px:"
            " too small or too narrow to work with"
        )
    return image


def open_full(path: Path) -> pyvips.Image:
    """Returns the stored picture at full resolution, not yet upright, decoded from the top as it is
    read."""
    return pyvips.Image.new_from_file(str(path), access="sequential", fail_on="error")


def to_srgb(image: pyvips.Image) -> pyvips.Image:
    """Returns eight-bit sRGB with three bands, or four if there is an alpha band."""
    if image.interpretation != "srgb":
        image = image.colourspace("srgb")
    return image if image.format == "uchar" else image.cast("uchar")


def flat(image: pyvips.Image, background: Sequence[float] = (255, 255, 255)) -> pyvips.Image:
    """Returns three bands: an alpha band is composited onto `background`."""
    return image.flatten(background=list(background)) if image.hasalpha() else image


def clip(image: pyvips.Image, low: float, high: float) -> pyvips.Image:
    """Limits every value to at least `low` and at most `high`."""
    return (image < low).ifthenelse(low, (image > high).ifthenelse(high, image))


def write(image: pyvips.Image, out: Path, quality: int, source_type: str) -> tuple[int, int]:
    """Writes JPEG, WebP or PNG by the suffix of `out`; returns (width, height).

    The only metadata is XMP that states `source_type`: where the pixels come from, a term of IPTC's
    vocabulary. Nothing that is written here was made by a trained model, so it is never
    `trainedAlgorithmicMedia`.
    """
    suffix = out.suffix.lower()
    if suffix not in _SAVE:
        raise ValueError(
            f"out: {suffix or 'a file without suffix'} is not one of {', '.join(_SAVE)}"
        )
    options = _SAVE[suffix] if suffix == ".png" else {**_SAVE[suffix], "Q": quality}
    image = image.cast("uchar").copy(interpretation="srgb")
    image.set_type(pyvips.GValue.blob_type, "xmp-data", packet(source_type))
    image.write_to_file(str(out), keep="xmp", **options)
    return image.width, image.height
