"""Pictures from strangers: checked, measured and resized in limited child processes.

Works on local files and knows nothing of gRPC, SQL or object storage. Typical use:

    pool = ImagingPool(workers=2)
    facts = await pool.run(inspect, path, "image/jpeg")
    variants = await pool.run(make_variants, path, DEFAULT_PRESETS, directory)

`inspect` and `make_variants` are meant for `ImagingPool.run`: libvips is loaded when they are
called, so only the children carry it, and only the children ever parse bytes that we did not write.
"""

from collections.abc import Sequence
from pathlib import Path

from shared.imaging.model import (
    DEFAULT_LIMITS,
    DEFAULT_PRESETS,
    Colour,
    Credentials,
    Facts,
    ImageRejected,
    Limits,
    Measures,
    Preset,
    Reason,
    Variant,
)
from shared.imaging.pool import ImagingPool

__all__ = [
    "DEFAULT_LIMITS",
    "DEFAULT_PRESETS",
    "Colour",
    "Credentials",
    "Facts",
    "ImageRejected",
    "ImagingPool",
    "Limits",
    "Measures",
    "Preset",
    "Reason",
    "Variant",
    "inspect",
    "make_variants",
    "read_credentials",
]


def inspect(path: Path, declared_type: str | None = None, limits: Limits = DEFAULT_LIMITS) -> Facts:
    """Check a file from outside and say what it is. Deterministic; the file is only read.

    `declared_type` is the media type that the sender claimed; None, "" and
    "application/octet-stream" claim nothing. The content decides: magic bytes choose the type, the
    header must announce a form that can be read, and is held against `limits`, before a pixel is
    decoded; then every page is decoded once to prove that the file is whole.

    Raises `ImageRejected` with the reason; `OSError` when the file can't be read.
    """
    from shared.imaging.inspection import inspect_file

    return inspect_file(path, declared_type, limits)


def make_variants(
    path: Path, presets: Sequence[Preset], directory: Path, source_type: str = ""
) -> list[Variant]:
    """Write one file per preset to `directory` (`<name>.<extension>`), in the order of `presets`.

    The picture must have passed `inspect`. It is decoded once for all presets, turned upright,
    converted to sRGB at 8 bits, and written without EXIF, GPS, XMP or a profile; only
    `source_type`, if it isn't empty, is stated in an XMP packet of ours. It is never enlarged.
    Transparency is kept, on white where the format is JPEG. Of an animation or a document of
    several pages the first one is used.

    Raises `ImageRejected` (CORRUPT, NOT_SUPPORTED, TOO_EXPENSIVE, TYPE_NOT_ALLOWED for a PDF),
    `OSError` when writing fails.
    """
    from shared.imaging.variants import write_variants

    return write_variants(path, presets, directory, source_type)


def read_credentials(path: Path, mime_type: str, trust_anchors: str = "") -> Credentials | None:
    """Read and validate the C2PA manifest in an image that has passed `inspect`; None if there is
    none in the file.

    `trust_anchors` is PEM text: certificates whose signers are trusted. A manifest that lies
    elsewhere, to which the file only points, is not fetched and counts as none. Never more than 64
    KiB of manifest are returned.
    """
    from shared.imaging.credentials import read

    return read(path, mime_type, trust_anchors)
