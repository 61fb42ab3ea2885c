"""Reads codes in pictures: EAN and UPC, Code 128 and 39, QR and Data Matrix.

A picture of about two megapixels takes 0.03 s, one of twelve 0.2 s. Codes that hold no checksum,
such as Interleaved 2 of 5, are left out: stripes and zips are often taken for them.
"""

from pathlib import Path

import pyvips
import zxingcpp
from zxingcpp import BarcodeFormat

from services.conversions.local import picture
from services.conversions.local.reading import Code, box_of, has_check_digit, printable

_NAMES = {
    BarcodeFormat.EAN13: "EAN-13",
    BarcodeFormat.EAN8: "EAN-8",
    BarcodeFormat.UPCA: "UPC-A",
    BarcodeFormat.UPCE: "UPC-E",
    BarcodeFormat.Code128: "Code 128",
    BarcodeFormat.Code39: "Code 39",
    BarcodeFormat.QRCode: "QR Code",
    BarcodeFormat.DataMatrix: "Data Matrix",
}
_RETAIL = ("EAN-13", "EAN-8", "UPC-A", "UPC-E")
_UNCHECKED = ("Code 39",)  # its check digit is optional
_MOST = 20  # codes of one picture
_FULL_SIDE = 4000


def read_codes(photo: pyvips.Image) -> tuple[Code, ...]:
    """Returns the codes in an open picture, from the top down."""
    return _read(photo, list(_NAMES))


def look_closer(path: Path) -> tuple[Code, ...]:
    """Returns the numbers of articles (EAN, UPC) in a picture at full size, at most 12 megapixels
    or so: for a picture in which `read_codes` found nothing."""
    retail = [form for form, name in _NAMES.items() if name in _RETAIL]
    return _read(picture.open_upright(path, _FULL_SIDE), retail)


def _read(photo: pyvips.Image, formats: list[BarcodeFormat]) -> tuple[Code, ...]:
    grey = picture.flat(photo).colourspace("b-w").cast("uchar")
    pixels = memoryview(grey.write_to_memory()).cast("B", (grey.height, grey.width))
    found = zxingcpp.read_barcodes(
        pixels, formats=zxingcpp.BarcodeFormats(formats), try_invert=False
    )
    codes = [_code(each, grey.width, grey.height) for each in found[:_MOST]]
    return tuple(sorted(filter(None, codes), key=lambda code: (code.box[1], code.box[0])))


def _code(found: zxingcpp.Barcode, width: int, height: int) -> Code | None:
    name, text = _NAMES.get(found.format), printable(found.text)
    if name is None or not text:
        return None
    if name in _RETAIL and not has_check_digit(text):
        return None
    at = found.position
    corners = [
        (float(corner.x), float(corner.y))
        for corner in (at.top_left, at.top_right, at.bottom_right, at.bottom_left)
    ]
    return Code(name, text, box_of(corners, width, height), name not in _UNCHECKED)
