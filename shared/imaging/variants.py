"""Implements `make_variants`: one decode, many sizes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pyvips

from shared.imaging.child import nothing_unforeseen
from shared.imaging.decode import load_scaled
from shared.imaging.model import Format, ImageRejected, Preset, Reason, Variant
from shared.imaging.sniff import HEAD_BYTES, PDF, sniff
from shared.imaging.source_type import packet

_EXTENSIONS: dict[Format, str] = {"webp": ".webp", "avif": ".avif", "jpeg": ".jpg", "png": ".png"}


@nothing_unforeseen("made smaller")
def write_variants(
    path: Path, presets: Sequence[Preset], directory: Path, source_type: str
) -> list[Variant]:
    """Implements `shared.imaging.make_variants`."""
    with open(path, "rb") as file:
        if sniff(file.read(HEAD_BYTES)) == PDF:
            raise ImageRejected(
                Reason.TYPE_NOT_ALLOWED, "A PDF has no variants. Send its pages as pictures."
            )
    base = load_scaled(
        path, max(preset.width for preset in presets), max(preset.height for preset in presets)
    )
    return [_write(base, preset, directory, source_type) for preset in presets]


def _write(base: pyvips.Image, preset: Preset, directory: Path, source_type: str) -> Variant:
    image = base.thumbnail_image(preset.width, height=preset.height, size="down")
    if source_type:  # replaces any XMP of the original
        image = image.copy()
        image.set_type(pyvips.GValue.blob_type, "xmp-data", packet(source_type))
    # libvips encodes in memory and Python writes the file, so that a full disk is an OSError and
    # not a fault of the picture.
    content = _encode(image, preset, "xmp" if source_type else "none")
    path = directory / f"{preset.name}{_EXTENSIONS[preset.format]}"
    path.write_bytes(content)
    return Variant(
        name=preset.name,
        path=path,
        format=preset.format,
        mime_type=f"image/{preset.format}",
        width=image.width,
        height=image.height,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _encode(image: pyvips.Image, preset: Preset, keep: str) -> bytes:
    if preset.format == "webp":
        return bytes(
            image.webpsave_buffer(Q=preset.quality, effort=min(preset.effort, 6), keep=keep)
        )
    if preset.format == "avif":
        return bytes(
            image.heifsave_buffer(
                compression="av1", bitdepth=8, Q=preset.quality, effort=preset.effort, keep=keep
            )
        )
    if preset.format == "png":
        return bytes(image.pngsave_buffer(keep=keep))
    opaque = image.flatten(background=255) if image.hasalpha() else image
    return bytes(opaque.jpegsave_buffer(Q=preset.quality, optimize_coding=True, keep=keep))
