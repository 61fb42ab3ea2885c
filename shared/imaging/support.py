"""Decides by their headers which forms of the allowed types can be decoded here.

Other forms are refused by name before a pixel is decoded: a decoder may leave blank what it can't
read, and only a fully supported file can be distinguished from a damaged one.
"""

import re
from math import prod

from shared.imaging import jpeg, tiff
from shared.imaging.child import corrupt, unsupported
from shared.imaging.tiff import (
    BLACK_IS_ZERO,
    CMYK,
    LAB,
    MULTIPLIED_IN,
    PALETTE,
    RGB,
    WHITE_IS_ZERO,
    YCBCR,
)

_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_PHOTOMETRICS = {
    4: "a transparency mask alone",
    9: "ICC Lab colours",
    10: "ITU Lab colours",
    32844: "LogL samples",
    32845: "LogLuv samples",
    51177: "a depth map",
    52527: "a photometric mask",
}
_RAW = (32803, 34892)  # photometric interpretations: colour filter array, linear raw
_JPEG_IN_TIFF = 7
_COMPRESSIONS = {1, 2, 3, 4, 5, _JPEG_IN_TIFF, 8, 32773, 32946, 50001}
_OTHER_COMPRESSIONS = {
    6: "old-style JPEG",
    9: "JBIG",
    10: "JBIG",
    32766: "NeXT",
    32771: "CCITT RLE with word alignment",
    32809: "ThunderScan",
    32895: "IT8",
    32896: "IT8",
    32897: "IT8",
    32898: "IT8",
    32908: "PixarFilm",
    32909: "PixarLog",
    32947: "DCS",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34661: "JBIG",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG of a DNG",
    34925: "LZMA",
    50000: "Zstandard",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_BITS = {
    (WHITE_IS_ZERO, _UNSIGNED): {1, 2, 4, 8, 16, 32},
    (BLACK_IS_ZERO, _UNSIGNED): {1, 2, 4, 8, 16, 32},
    (BLACK_IS_ZERO, _FLOAT): {16, 32},
    (RGB, _UNSIGNED): {8, 16, 32},
    (RGB, _FLOAT): {16, 32},
    (PALETTE, _UNSIGNED): {1, 2, 4, 8, 16},
    (CMYK, _UNSIGNED): {8, 16},
    (YCBCR, _UNSIGNED): {8},
    (LAB, _UNSIGNED): {16},
}
_COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, LAB: 3}
_NAMES = {
    WHITE_IS_ZERO: "grey",
    BLACK_IS_ZERO: "grey",
    RGB: "RGB",
    PALETTE: "palette",
    CMYK: "CMYK",
    YCBCR: "YCbCr",
    LAB: "Lab",
}
_FORMATS = {
    _UNSIGNED: "unsigned",
    _SIGNED: "signed",
    _FLOAT: "floating-point",
    5: "complex",
    6: "complex",
}
_SAVE_TIFF = (
    "Save it as RGB with 8 or 16 bits per sample, uncompressed or with LZW or Deflate, and send"
    " that."
)
_SAVE_JPEG = (
    "Export it as an ordinary JPEG (8 bits, baseline or progressive, RGB) or as PNG, and send that."
)
_SAVE_AVIF = "Export it as a still AVIF of one piece, JPEG or PNG, and send that."
_JPEG_KINDS = {
    3: "a lossless JPEG",
    5: "a hierarchical JPEG",
    6: "a hierarchical JPEG",
    7: "a lossless JPEG",
    55: "a JPEG-LS",
}
_ITEM = re.compile(rb"infe(?:\x02...(..)|\x03...(....))..(....)", re.DOTALL)
_PRIMARY = re.compile(rb"pitm(?:\0...(..)|\x01...(....))", re.DOTALL)
_AVIF_KINDS = {
    b"grid": "put together from tiles",
    b"iovl": "put together from several pictures",
    b"hvc1": "coded with HEVC",
    b"jpeg": "coded with JPEG",
    b"avc1": "coded with AVC",
    b"vvc1": "coded with VVC",
    b"j2k1": "coded with JPEG 2000",
    b"unci": "uncompressed",
    b"mski": "a mask",
}


def refuse_unsupported(content: bytes, mime: str) -> None:
    """Raises ImageRejected (NOT_SUPPORTED with the form's name and the next step, or CORRUPT)
    unless all pages can be decoded."""
    if mime == "image/tiff":
        _check_tiff(content)
    elif mime == "image/jpeg":
        _check_jpeg(content)
    elif mime == "image/avif":
        _check_avif(content)


def _check_tiff(content: bytes) -> None:
    number = 0
    for number, page in enumerate(tiff.pages(content), 1):
        if number == 1:
            _check_first_page(content, page)
        if problem := _problem(page):
            where = f" on page {number}" if number > 1 else ""
            raise unsupported(f"a TIFF with {problem}{where}", _SAVE_TIFF)
    if number == 0:
        raise corrupt()


def _check_first_page(content: bytes, first: tiff.Page) -> None:
    """Raises ImageRejected unless the first page is the main picture, since variants and measures
    use it."""
    below, others = list(first.below()), list(tiff.pages(content))[1:]
    if 50706 in first.tags or any(page.photometric in _RAW for page in (first, *below, *others)):
        raise unsupported(
            "a camera's raw file (DNG, NEF, ARW or the like)",
            "Develop it and send a JPEG, PNG or TIFF.",
        )
    rivals = [*below, *others] if first.reduced else below
    if any(prod(page.size) > prod(first.size) and not page.reduced for page in rivals):
        raise unsupported(
            "a TIFF whose first page is only a preview of a larger picture in it",
            "Save that picture as a TIFF of its own, and send that.",
        )


def _problem(page: tiff.Page) -> str:
    """Returns what can't be decoded in a page; "" if everything can."""
    if min(page.size) == 0:
        raise corrupt()
    if page.compression not in _COMPRESSIONS:
        name = _OTHER_COMPRESSIONS.get(page.compression, f"number {page.compression}")
        return f"the compression {name}"
    if page.photometric not in _COLOURS:
        return _PHOTOMETRICS.get(
            page.photometric, f"the photometric interpretation {page.photometric}"
        )
    if len(page.bits) > 1 or len(page.sample_format) > 1:
        return "samples of different kinds"
    (bits,), (kind,) = page.bits, page.sample_format
    if bits not in _BITS.get((page.photometric, kind), ()):
        samples = f"{_FORMATS.get(kind, 'unknown')} {_NAMES[page.photometric]} samples"
        return f"{bits}-bit {samples}" if kind in (_UNSIGNED, _FLOAT) else samples
    return _arrangement_problem(page, bits)


def _arrangement_problem(page: tiff.Page, bits: int) -> str:
    if page.photometric == CMYK and (page.value(332, 1) != 1 or page.samples < 4):
        return "inks other than CMYK"
    if page.samples < _COLOURS[page.photometric]:
        raise corrupt()
    if bits < 8 and page.samples > 1:
        return f"{page.samples} samples of {bits} bits"
    if page.planes and page.tiled:
        return "tiles in separate planes"
    if page.planes and (bits < 8 or page.compression == _JPEG_IN_TIFF):
        return "separate planes that are compressed like this"
    if page.photometric == YCBCR and page.samples > 3:
        return f"{page.samples} samples of YCbCr"
    if (
        page.photometric == YCBCR
        and page.compression != _JPEG_IN_TIFF
        and page.all(530)[:2] == [1, 1]
    ):
        return "YCbCr samples that are neither JPEG nor subsampled"
    if page.photometric == LAB and (page.compression == _JPEG_IN_TIFF or page.transparencies):
        return "Lab samples with transparency or as JPEG"
    return _transparency_problem(page, bits)


def _transparency_problem(page: tiff.Page, bits: int) -> str:
    ways = page.transparencies
    if len(ways) > 1:
        return "more than one transparency"
    if ways and max(ways) >= page.samples - _COLOURS[page.photometric]:
        raise corrupt()
    divided_right = page.photometric == RGB if _FLOAT in page.sample_format else bits < 32
    if MULTIPLIED_IN in ways.values() and not divided_right:
        return "transparency that is multiplied into 32-bit or floating-point samples"
    return ""


def _check_jpeg(content: bytes) -> None:
    frame = jpeg.frame(content)
    if frame is None:
        raise corrupt()
    if frame.kind >= 9 and frame.kind != 55:
        raise unsupported("a JPEG with arithmetic coding", _SAVE_JPEG)
    if frame.kind not in (0, 1, 2):
        raise unsupported(_JPEG_KINDS[frame.kind], _SAVE_JPEG)
    if frame.bits != 8:
        raise unsupported(f"a JPEG with {frame.bits} bits per sample", _SAVE_JPEG)
    if len(frame.components) not in (1, 3, 4):
        raise unsupported(f"a JPEG with {len(frame.components)} components", _SAVE_JPEG)


def _check_avif(content: bytes) -> None:
    length = int.from_bytes(content[:4], "big")
    if b"avis" in {
        content[8:12],
        *(content[at : at + 4] for at in range(16, min(length, 4096), 4)),
    }:
        raise unsupported(
            "an animated AVIF (an image sequence)",
            "Send one picture of it as AVIF, or the animation as WebP or GIF.",
        )
    kinds = {short or long: kind for short, long, kind in _ITEM.findall(content)}
    primary = _PRIMARY.search(content)
    of_primary = kinds.get(primary[1] or primary[2]) if primary else None
    # libheif silently leaves missing or broken tiles blank, in any picture of the file.
    odd = b"grid" if b"grid" in kinds.values() else of_primary
    if odd not in (None, b"av01"):
        name = _AVIF_KINDS.get(odd, f"of the kind {odd.decode('latin-1')!r}")
        raise unsupported(f"an AVIF whose picture is {name}", _SAVE_AVIF)
