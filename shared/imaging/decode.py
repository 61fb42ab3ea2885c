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


def open_page(path: Path, **options: float) -> Any:
    """A lazy `pyvips.Image` of the first page, or of what `page` and `n` say. Only the header is read until pixels are
    asked for, which is possible once, from top to bottom."""
    return pyvips.Image.new_from_file(str(path), access="sequential", fail_on="error", **options)


def load_scaled(path: Path, width: int, height: int, *, enlarge: bool = False) -> Any:
    """The first page in memory: upright, 8-bit sRGB with or without alpha, fitted into width x height pixels."""
    header = open_page(path)
    options = {"size": "both" if enlarge else "down", "fail_on": "error"}
    # Eight bits without a profile are sRGB as they are: "transforming" them costs more than all the rest.
    if header.interpretation not in ("srgb", "b-w") or header.get_typeof("icc-profile-data"):
        options["output_profile"] = "srgb"
    image = pyvips.Image.thumbnail(str(path), width, height=height, **options)
    if image.interpretation != "srgb":  # grey pictures stay grey in thumbnail
        image = image.colourspace("srgb")
    return image.cast("uchar").copy_memory()
