"""Labels and hang tags drawn in code, and pasted at an angle on a photograph of a garment."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyvips
import zxingcpp

EAN = "4006381333931"
LINK = "https://example.com/p/nf-2207"
CARE_LABEL = (
    "KESTERHOLT",
    "SIZE M",
    "98% cotton, 2% elastane",
    "98% Baumwolle, 2% Elasthan",
    "98% coton, 2% élasthanne",
    "Machine wash 30°C",
    "Do not bleach",
    "Made in Portugal",
)
HANG_TAG = ("KESTERHOLT", "Model NF-2207-TAN", "Field jacket")
_FONT = str(files("ttf_opensans").joinpath("ttf", "OpenSans-SemiBold.ttf"))
_PAPER, _MARGIN, _GAP = 244, 26, 14


def card(
    lines: Sequence[str], *, ean: str = "", link: str = "", height: int = 30, module: int = 3
) -> pyvips.Image:
    """Draws white cardboard with lines of text, `height` pixels to a line, and with an EAN whose
    bars are `module` pixels wide, or a QR code."""
    parts = [_text(line, height) for line in lines]
    if ean:
        parts.append(_code(ean, zxingcpp.BarcodeFormat.EAN13, module))
        parts.append(_text(f"{ean[0]} {ean[1:7]} {ean[7:]}", height))
    if link:
        parts.append(_code(link, zxingcpp.BarcodeFormat.QRCode, 2 * module))
    sheet, *others = parts
    for part in others:
        sheet = sheet.join(part, "vertical", expand=True, shim=_GAP, background=[_PAPER])
    wide, high = sheet.width + 2 * _MARGIN, sheet.height + 2 * _MARGIN
    return sheet.embed(_MARGIN, _MARGIN, wide, high, extend="background", background=[_PAPER])


def pasted(
    photograph: Path,
    out: Path,
    *cards: tuple[pyvips.Image, float, tuple[float, float]],
    blur: float = 0.0,
    mirrored: bool = False,
) -> Path:
    """Writes the photograph with cards on it, each turned by degrees, its centre at fractions."""
    picture = pyvips.Image.new_from_file(str(photograph))
    for sheet, angle, (x, y) in cards:
        opaque = sheet.bandjoin([sheet, sheet, sheet.new_from_image(255)])
        turned = opaque.copy(interpretation="srgb").rotate(angle, background=[0, 0, 0, 0])
        left = round(x * picture.width - turned.width / 2)
        top = round(y * picture.height - turned.height / 2)
        picture = picture.composite2(turned, "over", x=left, y=top).flatten()
    if blur:
        picture = picture.gaussblur(blur)
    if mirrored:
        picture = picture.fliphor()
    picture.cast("uchar").write_to_file(str(out), Q=90)
    return out


def _text(words: str, height: int) -> pyvips.Image:
    drawn = pyvips.Image.text(words, font=f"Open Sans {height}", fontfile=_FONT, dpi=60)
    return ((255 - drawn) * (_PAPER / 255)).cast("uchar")


def _code(content: str, form: zxingcpp.BarcodeFormat, module: int) -> pyvips.Image:
    image: Any = zxingcpp.create_barcode(content, form).to_image(scale=module)
    pixels = memoryview(image)  # which its types don't say
    rows, columns = pixels.shape or ()
    return pyvips.Image.new_from_memory(pixels.tobytes(), columns, rows, 1, "uchar")
