"""Opening pictures with libvips: the only places where pixels come from."""

from pathlib import Path
from typing import Any

import pyvips

LOADERS = {
    "image/jpeg": "jpegload",
    "image/png": "pngload",
    "image/webp": "webpload",
    "image/avif": "heifload",
    "image/heic": "heifload",
    "image/gif": "gifload",
    "image/tiff": "tiffload",
}

# Without a profile these mean sRGB. Converting from sRGB to sRGB changes no pixel, and takes longer than decoding.
_AS_SRGB = ("srgb", "rgb16", "b-w", "grey16")


def open_page(path: Path, **options: float) -> Any:
    """A lazy `pyvips.Image` of the first page, or of what `page` and `n` say. Only the header is read until pixels are
    asked for, which is possible once, from top to bottom."""
    return pyvips.Image.new_from_file(str(path), access="sequential", fail_on="error", **options)


def load_scaled(path: Path, width: int, height: int, *, enlarge: bool = False) -> Any:
    """The first page in memory: upright, 8-bit sRGB with or without alpha, fitted into width x height pixels."""
    size = "both" if enlarge else "down"
    image = pyvips.Image.thumbnail(str(path), width, height=height, size=size, fail_on="error", **_conversion(path))
    if image.interpretation != "srgb":  # grey pictures stay grey in thumbnail
        image = image.colourspace("srgb")
    return image.cast("uchar").copy_memory()


def _conversion(path: Path) -> dict[str, str]:
    """What `thumbnail` is to convert. The header must not outlive this function: WebP's holds room for all pixels."""
    header = open_page(path)
    as_it_is = header.get_typeof("icc-profile-data") == 0 and header.interpretation in _AS_SRGB
    return {} if as_it_is else {"output_profile": "srgb"}
