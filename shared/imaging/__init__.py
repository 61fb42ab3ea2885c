"""Checks, measures and resizes untrusted pictures in limited child processes.

Works on local files and knows nothing of gRPC, SQL or object storage. Typical use:

    pool = ImagingPool(workers=2)
    facts = await pool.run(inspect, path, "image/jpeg")
    variants = await pool.run(make_variants, path, DEFAULT_PRESETS, directory)

Call `inspect` and `make_variants` through `ImagingPool.run`. They load libvips when called, so only
the children hold it, and only the children ever parse foreign bytes.
"""

from collections.abc import Sequence
from pathlib import Path

from shared.imaging.model import (
    DEFAULT_LIMITS,
    DEFAULT_PRESETS,
    Claim,
    Colour,
    Credentials,
    Facts,
    ImageRejected,
    Ingredient,
    Limits,
    Measures,
    Preset,
    Reason,
    SigningFailed,
    SigningIdentity,
    Variant,
)
from shared.imaging.pool import ImagingPool

__all__ = [
    "DEFAULT_LIMITS",
    "DEFAULT_PRESETS",
    "Claim",
    "Colour",
    "Credentials",
    "Facts",
    "ImageRejected",
    "ImagingPool",
    "Ingredient",
    "Limits",
    "Measures",
    "Preset",
    "Reason",
    "SigningFailed",
    "SigningIdentity",
    "Variant",
    "check_identity",
    "inspect",
    "make_variants",
    "read_credentials",
    "sign",
]


def inspect(path: Path, declared_type: str | None = None, limits: Limits = DEFAULT_LIMITS) -> Facts:
    """Checks an untrusted file and returns its facts. Deterministic; only reads the file.

    `declared_type` is the media type that the sender claimed; None, "" and
    "application/octet-stream" claim nothing. The content decides: magic bytes choose the type. The
    header must announce a supported form and is checked against `limits` before any pixel is
    decoded; then every page is decoded once to prove that the file is complete.

    Raises `ImageRejected` with the reason; `OSError` if the file can't be read.
    """
    from shared.imaging.inspection import inspect_file

    return inspect_file(path, declared_type, limits)


def make_variants(
    path: Path, presets: Sequence[Preset], directory: Path, source_type: str = ""
) -> list[Variant]:
    """Writes one file per preset to `directory` (`<name>.<extension>`), in the order of `presets`.

    The picture must have passed `inspect`. It is decoded once for all presets, turned upright,
    converted to 8-bit sRGB and never enlarged. Variants have no EXIF, GPS, XMP or profile, except
    that a `source_type` that isn't empty is stated in our own XMP packet. Transparency is kept; a
    JPEG gets a white background. Of an animation or of several pages, the first one is used.

    Raises `ImageRejected` (CORRUPT, NOT_SUPPORTED, TOO_EXPENSIVE, TYPE_NOT_ALLOWED for a PDF),
    `OSError` if writing fails.
    """
    from shared.imaging.variants import write_variants

    return write_variants(path, presets, directory, source_type)


def read_credentials(path: Path, mime_type: str, trust_anchors: str = "") -> Credentials | None:
    """Reads and validates the C2PA manifest in an image that has passed `inspect`; returns None if
    the file has none.

    `trust_anchors` is PEM text: certificates whose signers are trusted. A manifest to which the
    file only points is not fetched and counts as none. Returns at most 64 KiB of manifest.
    """
    from shared.imaging.credentials import read

    return read(path, mime_type, trust_anchors)


def sign(path: Path, out: Path, claim: Claim, identity: SigningIdentity, room: int) -> str:
    """Writes the picture with a signed C2PA manifest to `out`. The picture is our own, a JPEG, PNG
    or WebP; the claim's ingredients may be foreign.

    Ingredients keep the manifests that they came with, as far as these are readable and make the
    file at most `room` bytes larger. Returns which were kept: `all`, `parent` (that of the
    provider's file alone) or `none`; every ingredient is named by its digest in any case.

    Raises SigningFailed.
    """
    from shared.imaging.marking import write_mark

    return write_mark(path, out, claim, identity, room)


def check_identity(identity: SigningIdentity) -> None:
    """Signs a tiny picture. Raises SigningFailed if C2PA's rules for certificates forbid it."""
    from shared.imaging.marking import try_identity

    try_identity(identity)
