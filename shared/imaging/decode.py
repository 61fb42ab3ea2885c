"""Opens pictures with libvips. Only these functions decode pixels."""

from pathlib import Path
from typing import TypedDict

import pyvips

from shared.imaging import tiff
from shared.imaging.child import unsupported
from shared.imaging.sniff import HEAD_BYTES, sniff
from shared.imaging.support import refuse_unsupported

LOADERS = {
    "image/jpeg": "jpegload",
    "image/png": "pngload",
    "image/webp": "webpload",
    "image/avif": "heifload",
    "image/heic": "heifload",
    "image/gif": "gifload",
    "image/tiff": "tiffload",
}
# These decode the same picture at a fraction of its size. For the other types libvips would take a
# smaller picture from the same file, which may show something else.
_SHRINKING = ("image/jpeg", "image/webp")

_BANDS = {"b-w": 1, "grey16": 1, "cmyk": 4}  # colour bands; every kind of RGB has 3

# Without a profile these mean sRGB. A conversion from sRGB to sRGB changes no pixel and takes
# longer than decoding.
_AS_SRGB = ("srgb", "rgb16", "b-w", "grey16")


class _Fit(TypedDict, total=False):
    height: int
    size: str
    output_profile: str


def open_page(path: Path, **options: float) -> pyvips.Image:
    """Returns a lazy image of the first page, or of the pages that `page` and `n` select. Reads
    only the header; pixels can be read once, from top to bottom."""
    loader = LOADERS[_type_of(path)]
    image: pyvips.Image = pyvips.Operation.call(
        loader, str(path), access="sequential", fail_on="error", **options
    )
    return image


def open_picture(path: Path) -> pyvips.Image:
    """Returns the first page like `open_page`, in grey or colour, with an alpha band if the file
    declares one.

    In a TIFF, extra samples that aren't declared as transparency are dropped, and 32-bit or
    floating-point samples are scaled to 16 bits: the largest number, or 1.0, is full intensity.
    """
    page = open_page(path)
    if _type_of(path) != "image/tiff":
        return page
    content = path.read_bytes()
    refuse_unsupported(content, "image/tiff")
    said = next(tiff.pages(content))
    return _scaled(_with_declared_bands(page, said))


def load_scaled(path: Path, width: int, height: int, *, enlarge: bool = False) -> pyvips.Image:
    """Returns the first page in memory: upright, 8-bit sRGB with or without alpha, fitted into
    width x height pixels."""
    size = "both" if enlarge else "down"
    picture = open_picture(path)
    as_it_is = picture.get_typeof("icc-profile-data") == 0 and picture.interpretation in _AS_SRGB
    options = _Fit(height=height, size=size)
    if not as_it_is:
        options["output_profile"] = "srgb"
    if _type_of(path) in _SHRINKING:
        del picture  # for WebP it holds memory for all pixels
        image = pyvips.Image.thumbnail(str(path), width, fail_on="error", **options)
    else:
        image = picture.thumbnail_image(width, **options)
    if image.interpretation != "srgb":  # grey pictures stay grey in thumbnail
        image = image.colourspace("srgb")
    if image.bands not in (3, 4):
        raise unsupported(
            f"a picture with {image.bands} channels", "Save it as RGB, and send that."
        )
    return image.cast("uchar").copy_memory()


def orientation(image: pyvips.Image) -> int:
    """Returns the EXIF orientation, 1..8; 1 if there is none."""
    tagged = image.get("orientation") if image.get_typeof("orientation") else 1
    return tagged if isinstance(tagged, int) and 1 <= tagged <= 8 else 1


def _type_of(path: Path) -> str:
    with open(path, "rb") as file:
        return sniff(file.read(HEAD_BYTES))


def _with_declared_bands(page: pyvips.Image, said: tiff.Page) -> pyvips.Image:
    if said.photometric == tiff.LAB:
        colours = page[:3].colourspace("srgb").copy()
        colours.remove("icc-profile-data")  # the profile describes Lab
        return colours
    bands = _BANDS.get(page.interpretation, 3)
    colours = page[:bands] if bands < page.bands else page
    return colours.bandjoin([page[bands + index] for index in said.transparencies])


def _scaled(picture: pyvips.Image) -> pyvips.Image:
    """Returns the picture with 8 or 16 bits per sample."""
    # libvips would not scale the alpha of 16-bit CMYK.
    if picture.interpretation == "cmyk" and picture.format == "ushort":
        return (picture * (1 / 257)).rint().cast("uchar").copy()
    if picture.format in ("uchar", "ushort"):
        return picture
    whole = 1.0 if picture.format == "float" else 2.0**32 - 1
    interpretation = "rgb16" if picture.bands > 2 else "grey16"
    return (picture * (65535 / whole)).rint().cast("ushort").copy(interpretation=interpretation)
