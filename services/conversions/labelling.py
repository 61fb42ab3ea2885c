"""Writes a visible label into a corner of a picture. Runs in a child process of an ImagingPool.

The compiler of our documents sets the text, so that the bundled fonts and those of the operator
serve every script, and a character that none has is noticed instead of printed as a box.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shared.imaging import ImageRejected, Reason

if TYPE_CHECKING:
    import pyvips

TEMPLATE = Path(__file__).with_name("label.typ")
_ENTIRE = 16383
_SHARE = 0.055  # of the shorter side, for the height of a label
_LEAST_HEIGHT, _WIDEST = 18, 0.9  # in pixels; of the picture's width
_DRAWN_AT = 144  # pixels per inch: larger than most pictures need
_INK = 128  # white letters on black have more
_QUALITIES = (92, 80, 65)  # until the file is small enough


class LabelRefused(ImageRejected):
    """The text can't be shown in the picture."""


@dataclass(frozen=True)
class Label:
    """A label. `top`, `left`: the corner. `source_type`: what the copy states; may be empty."""

    text: str
    top: bool
    left: bool
    source_type: str


def add_label(path: Path, out: Path, label: Label, fonts: Sequence[Path], largest: int) -> None:
    """Writes the picture with the label to `out`, in the format of its suffix, and in `largest`
    bytes if a lower quality helps.

    Raises LabelRefused; ImageRejected if the picture can't be decoded.
    """
    from shared.imaging.decode import load_scaled

    base = load_scaled(path, _ENTIRE, _ENTIRE)
    with tempfile.TemporaryDirectory(prefix="atelier-") as directory:
        drawn = _drawn(label, Path(directory), fonts)
        sign = _fitted(drawn, base)
        gap = max(4, sign.height // 3)
        across = gap if label.left else base.width - sign.width - gap
        down = gap if label.top else base.height - sign.height - gap
        result = base.composite2(sign, "over", x=across, y=down).cast("uchar")
        result = result.copy(interpretation="srgb")
        if not base.hasalpha():
            result = result[:3]
        for quality in _QUALITIES:
            content = _encoded(result, out.suffix, label.source_type, quality)
            if len(content) <= largest:
                break
        out.write_bytes(content)


def _drawn(label: Label, root: Path, fonts: Sequence[Path]) -> "pyvips.Image":
    import pyvips

    from shared.formats.typesetting import Press

    press = Press(root, TEMPLATE, fonts)
    if missing := press.missing_glyphs(label.text):
        raise LabelRefused(Reason.NOT_SUPPORTED, missing)
    (root / "label.json").write_text(json.dumps(label.text), encoding="utf-8")
    press.draw(root / "label.png", _DRAWN_AT)
    drawn = pyvips.Image.new_from_file(str(root / "label.png")).copy_memory()
    if drawn[0].max() < _INK:
        raise LabelRefused(Reason.NOT_SUPPORTED, "Nothing of the text can be seen: write letters.")
    return drawn


def _fitted(drawn: "pyvips.Image", base: "pyvips.Image") -> "pyvips.Image":
    """Returns the label at the size that the picture needs. Raises LabelRefused if nobody could
    read it."""
    wanted = max(_LEAST_HEIGHT, round(min(base.width, base.height) * _SHARE))
    scale = min(wanted / drawn.height, base.width * _WIDEST / drawn.width)
    if drawn.height * scale < _LEAST_HEIGHT or base.height < 2 * _LEAST_HEIGHT:
        raise LabelRefused(
            Reason.NOT_SUPPORTED,
            f"The picture has {base.width} x {base.height} px: too few for a label of this length"
            " that can be read. Use a larger picture or a shorter text.",
        )
    return drawn.resize(scale)


def _encoded(image: "pyvips.Image", suffix: str, source_type: str, quality: int) -> bytes:
    import pyvips

    from shared.imaging.source_type import packet

    image = image.copy()
    if source_type:
        image.set_type(pyvips.GValue.blob_type, "xmp-data", packet(source_type))
    keep = "xmp" if source_type else "none"
    if suffix == ".png":
        return bytes(image.pngsave_buffer(keep=keep))
    if suffix == ".webp":
        return bytes(image.webpsave_buffer(Q=quality, keep=keep))
    opaque = image.flatten(background=255) if image.hasalpha() else image
    return bytes(opaque.jpegsave_buffer(Q=quality, optimize_coding=True, keep=keep))
