"""Proves that a picture is complete: decodes everything once and accepts no complaint of a decoder.

Decoders continue where they can: libtiff leaves a broken tile blank, libjpeg fills gaps with grey.
They report it as an error that libvips keeps or a warning that it logs; this module treats both as
failures. Where a decoder reports nothing, it checks the structure of the file.
"""

import logging
import re
import zlib
from pathlib import Path

import pyvips

from shared.imaging import gif, jpeg, tiff
from shared.imaging.child import corrupt, unsupported
from shared.imaging.decode import open_page

# Warnings of libjpeg that cost no pixel. Each message comes beside a line with their number.
_HARMLESS = re.compile(
    r"extraneous bytes before marker|Invalid SOS parameters|unknown JFIF revision|Unknown Adobe"
    r" color transform"
    r"|^VIPS: read gave 1 warnings$|^VIPS: $"
)
_PNG_END = b"\0\0\0\0IEND"
_TIFF_HEAD = 8
_UNCOMPRESSED, _DEFLATE = 1, (8, 32946)
_PIECE = 1 << 20
_BEYOND = 0.1  # filters may leave floating-point samples so far below 0 or above 1


def prove_whole(path: Path, content: bytes, mime: str, pages: int) -> None:
    """Raises ImageRejected (CORRUPT), or pyvips.Error, unless all pixels of all pages are there.

    JPEG and WebP are scaled to an eighth while decoding: every coefficient is still read, which
    saves pixels and, for WebP, their memory. The other formats have no shortcut that reads all
    bytes.
    """
    if mime == "image/jpeg":
        if not jpeg.is_whole(content):
            raise corrupt()
        _decode(path, shrink=8)
    elif mime == "image/webp":
        _decode(path, n=-1, scale=1 / 8)
    elif mime == "image/png":
        if _PNG_END not in content:
            raise corrupt()
        _decode(path)
    elif mime == "image/gif":
        _decode(path, n=-1)
        _prove_frames(content)
    else:
        for page in range(pages):
            _decode(path, page=page)
        if mime == "image/tiff":
            _prove_parts(content)


class _Listener(logging.Handler):
    """Collects what libvips reports about a file, as errors or as warnings."""

    def __init__(self) -> None:
        super().__init__()
        self._warnings: list[str] = []

    def __enter__(self) -> "_Listener":
        pyvips.vips_lib.vips_error_clear()
        logging.getLogger("pyvips").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("pyvips").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self._warnings.append(record.getMessage())

    def heard(self) -> set[str]:
        """Returns the reports since the last call, without harmless ones."""
        errors = (
            pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer())
            .decode(errors="replace")
            .splitlines()
        )
        heard = {line for line in (*errors, *self._warnings) if not _HARMLESS.search(line)}
        pyvips.vips_lib.vips_error_clear()
        self._warnings.clear()
        return heard


def _decode(path: Path, **options: float) -> None:
    with _Listener() as listener:
        page = open_page(path, **options)
        # These concern the header (unknown tags, odd versions), which is read again below.
        known = listener.heard()
        _look_at(page)
        del page  # libjpeg reports its warnings when it ends
        if listener.heard() - known:
            raise corrupt()


def _look_at(page: pyvips.Image) -> None:
    if page.format != "float":
        page.avg()
        return
    seen = page.stats()
    low, high, mean = seen(0, 0)[0], seen(1, 0)[0], seen(4, 0)[0]
    # A single NaN makes the mean NaN, which doesn't equal itself.
    if not (low >= -_BEYOND and high <= 1 + _BEYOND and mean == mean):
        raise unsupported(
            f"a TIFF with floating-point samples from {low:.6g} to {high:.6g}, of which only those"
            " from 0 (black) to 1 (white) are pictures",
            "Scale them to that range, or save it with 16 bits per sample, and send that.",
        )


def _prove_frames(content: bytes) -> None:
    """Raises ImageRejected unless each frame's data is complete: where it ends too soon, libnsgif
    shows the pixels of the frame before."""
    try:
        for frame in gif.lone_frames(content):
            if pyvips.Image.gifload_buffer(frame, access="sequential", fail_on="error").min() < 255:
                raise corrupt()
    except gif.Cut:
        raise corrupt() from None


def _prove_parts(content: bytes) -> None:
    """Raises ImageRejected unless each strip or tile is complete. If told to, libtiff reads the
    file's head, or the bytes after a part that is too short, as pixels; and with Deflate it stops
    at the last pixel, before the checksum."""
    for page in tiff.pages(content):
        if min(page.places, default=0) < _TIFF_HEAD:
            raise corrupt()
        for index, part in enumerate(page.parts()):
            if page.compression in _DEFLATE:
                _prove_checksum(part, most=page.unpacked(index))
            elif page.compression == _UNCOMPRESSED and len(part) < page.unpacked(index):
                raise corrupt()


def _prove_checksum(packed: bytes, most: int) -> None:
    unpacker, seen = zlib.decompressobj(), 0
    try:
        while not unpacker.eof and seen <= most:
            unpacked = unpacker.decompress(packed, _PIECE)
            if not unpacked and not unpacker.eof:
                raise corrupt()
            packed = unpacker.unconsumed_tail
            seen += len(unpacked)
    except zlib.error:
        raise corrupt() from None
