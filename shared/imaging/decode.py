"""Opening pictures with libvips: the only places where pixels come from."""

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
# These decode the same picture at a fraction of its size. Of the others libvips would take smaller
# ones that stand beside it in the file, and may be of something else.
_SHRINKING = ("image/jpeg", "image/webp")

_BANDS = {"b-w": 1, "grey16": 1, "cmyk": 4}  # of colour; RGB in all its kinds has 3

# Without a profile these mean sRGB. Converting from sRGB to sRGB changes no pixel, and takes longer
# than decoding.
_AS_SRGB = ("srgb", "rgb16", "b-w", "grey16")


class _Fit(TypedDict, total=False):
    height: int
    size: str
    output_profile: str


def open_page(path: Path, **options: float) -> pyvips.Image:
    """A lazy image of the first page, or of what `page` and `n` say. Only the header is
    read until pixels are asked for, which is possible once, from top to bottom."""
    loader = LOADERS[_type_of(path)]
    image: pyvips.Image = pyvips.Operation.call(
        loader, str(path), access="sequential", fail_on="error", **options
    )
    return image


def open_picture(path: Path) -> pyvips.Image:
    """The first page as `open_page` gives it, in grey or in colours, with an alpha band if the file
    declares one.

    Of a TIFF, samples that it doesn't declare to be transparency are left out, and those of 32 bits
    or floating-point are scaled to 16 bits: the largest number, or 1.0, is full light.
    """
    page = open_page(path)
    if _type_of(path) != "image/tiff":
        return page
    content = path.read_bytes()
    refuse_unsupported(content, "image/tiff")
    said = next(tiff.pages(content))
    return _scaled(_with_declared_bands(page, said))


def load_scaled(path: Path, width: int, height: int, *, enlarge: bool = False) -> pyvips.Image:
    """The first page in memory: upright, 8-bit sRGB with or without alpha, fitted into width x
    height pixels."""
    size = "both" if enlarge else "down"
    picture = open_picture(path)
    as_it_is = picture.get_typeof("icc-profile-data") == 0 and picture.interpretation in _AS_SRGB
    options = _Fit(height=height, size=size)
    if not as_it_is:
        options["output_profile"] = "srgb"
    if _type_of(path) in _SHRINKING:
        del picture  # WebP's holds room for all pixels
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
    """The EXIF orientation tag, 1..8; 1 when there is none."""
    tagged = image.get("orientation") if image.get_typeof("orientation") else 1
    return tagged if isinstance(tagged, int) and 1 <= tagged <= 8 else 1


def _type_of(path: Path) -> str:
    with open(path, "rb") as file:
        return sniff(file.read(HEAD_BYTES))


def _with_declared_bands(page: pyvips.Image, said: tiff.Page) -> pyvips.Image:
    if said.photometric == tiff.LAB:
        colours = page[:3].colourspace("srgb").copy()
        colours.remove("icc-profile-data")  # it was for Lab
        return colours
    bands = _BANDS.get(page.interpretation, 3)
    colours = page[:bands] if bands < page.bands else page
    return colours.bandjoin([page[bands + index] for index in said.transparencies])


def _scaled(picture: pyvips.Image) -> pyvips.Image:
    """In 8 or 16 bits."""
    if (
        picture.interpretation == "cmyk" and picture.format == "ushort"
    ):  # libvips would leave its alpha as it is
        return (picture * (1 / 257)).rint().cast("uchar").copy()
    if picture.format in ("uchar", "ushort"):
        return picture
    whole = 1.0 if picture.format == "float" else 2.0**32 - 1
    interpretation = "rgb16" if picture.bands > 2 else "grey16"
    return (picture * (65535 / whole)).rint().cast("ushort").copy(interpretation=interpretation)
