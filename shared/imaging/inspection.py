"""Implements `inspect`: the checks run in the order of their cost, each before the next."""

from dataclasses import replace
from pathlib import Path

import pikepdf
import pyvips

from shared.imaging import credentials
from shared.imaging.child import corrupt, nothing_unforeseen
from shared.imaging.decode import open_page, open_picture, orientation
from shared.imaging.measure import measure
from shared.imaging.media_types import canonical
from shared.imaging.model import MEBIBYTE, Facts, ImageRejected, Limits, Reason
from shared.imaging.places import says_where
from shared.imaging.sniff import HEAD_BYTES, HEIC, PDF, refuse_polyglot, sniff
from shared.imaging.source_type import read_packet
from shared.imaging.support import refuse_unsupported
from shared.imaging.whole import prove_whole

_SIDEWAYS = (5, 6, 7, 8)
_METADATA = ("exif-data", "xmp-data", "iptc-data")


@nothing_unforeseen("verified")
def inspect_file(path: Path, declared_type: str | None, limits: Limits) -> Facts:
    """Implements `shared.imaging.inspect`."""
    size = path.stat().st_size
    if size == 0:
        raise ImageRejected(Reason.EMPTY, "The file has no bytes. Send it again.")
    with open(path, "rb") as file:
        mime = sniff(file.read(HEAD_BYTES))
    _check_bytes(size, limits.pdf_bytes if mime == PDF else limits.image_bytes)
    _check_declared(mime, declared_type)
    if mime == PDF:
        return Facts(kind="pdf", mime_type=PDF, size=size, pages=_count_pdf_pages(path, limits))
    refuse_polyglot(path, mime)
    try:
        return _inspect_image(path, mime, limits)
    except pyvips.Error as error:
        if mime == HEIC:  # without an HEVC decoder it opens, and fails at the first pixel
            raise ImageRejected(
                Reason.HEIC_NOT_SUPPORTED,
                "HEIC pictures can't be decoded here. Convert it to JPEG, PNG or AVIF.",
            ) from error
        raise


def _inspect_image(path: Path, mime: str, limits: Limits) -> Facts:
    content = path.read_bytes()
    refuse_unsupported(content, mime)
    facts, blocks = _read_header(path, mime, len(content))
    if facts.pages > limits.frames:
        raise ImageRejected(
            Reason.TOO_MANY_FRAMES,
            f"The picture has {facts.pages} frames or pages; at most {limits.frames} are accepted."
            " Send fewer.",
        )
    _check_pixels(path, facts, limits)
    facts = replace(facts, has_location=says_where(content, blocks, mime))
    if facts.has_location and not limits.locations:
        raise ImageRejected(
            Reason.HAS_LOCATION,
            "The picture says where it was taken, which isn't kept here. Remove its EXIF, XMP and"
            " IPTC data, and send it again.",
        )
    prove_whole(path, content, mime, facts.pages)
    return replace(facts, may_have_manifest=credentials.may_be_in(path), measures=measure(path))


def _read_header(path: Path, mime: str, size: int) -> tuple[Facts, list[bytes]]:
    """Returns the facts except the measures, and the metadata blocks from the decoder. The image
    must not outlive this function: WebP's allocates memory for all pixels."""
    header = open_picture(path)
    turn = orientation(header)
    width, height = (
        (header.height, header.width) if turn in _SIDEWAYS else (header.width, header.height)
    )
    blocks: dict[str, bytes] = {}
    for name in _METADATA:
        if header.get_typeof(name):
            block = header.get(name)
            assert isinstance(block, bytes)
            blocks[name] = block
    facts = Facts(
        kind="image",
        mime_type=mime,
        size=size,
        pages=header.get_n_pages(),
        width=width,
        height=height,
        orientation=turn,
        has_alpha=bool(header.hasalpha()),
        has_icc_profile=header.get_typeof("icc-profile-data") != 0,
        source_type=read_packet(blocks.get("xmp-data", b"")),
    )
    return facts, list(blocks.values())


def _check_bytes(size: int, limit: int) -> None:
    if size > limit:
        raise ImageRejected(
            Reason.TOO_MANY_BYTES,
            f"The file has {size:,} bytes; at most {limit:,} ({limit // MEBIBYTE} MiB) are"
            " accepted. Make it smaller.",
        )


def _check_declared(mime: str, declared_type: str | None) -> None:
    claim = canonical(declared_type or "")
    if claim not in ("", "application/octet-stream", mime):
        raise _mismatch(claim, mime)


def _mismatch(claim: str, found: str) -> ImageRejected:
    return ImageRejected(
        Reason.TYPE_MISMATCH,
        f"The file is announced as {claim[:100]} but its content is {found}. Send it with its true"
        " type.",
    )


def _check_pixels(path: Path, facts: Facts, limits: Limits) -> None:
    """Checks sides and pixels by headers alone: a few bytes may stand for many rows, which take
    very long to decode one by one."""
    _check_side(facts.width or 0, facts.height or 0, limits)
    first = (facts.width or 0) * (facts.height or 0)
    if first <= limits.pixels and facts.mime_type in ("image/tiff", "image/avif", HEIC):
        # Only these types can have pages of different sizes.
        pixels = 0
        for page in (open_page(path, page=i) for i in range(facts.pages)):
            _check_side(page.width, page.height, limits)
            pixels += page.width * page.height
    else:
        pixels = first * facts.pages
    if pixels > limits.pixels:
        raise ImageRejected(
            Reason.TOO_MANY_PIXELS,
            f"The picture has {pixels / 1e6:,.1f} megapixels over all frames; at most"
            f" {limits.pixels / 1e6:,.1f} are accepted. Scale it down.",
        )


def _check_side(width: int, height: int, limits: Limits) -> None:
    if max(width, height) > limits.side:
        raise ImageRejected(
            Reason.TOO_MANY_PIXELS,
            f"The picture has {width:,} x {height:,} pixels; at most {limits.side:,} are accepted"
            " on the longer side. Scale it down.",
        )


def _count_pdf_pages(path: Path, limits: Limits) -> int:
    try:
        with pikepdf.open(path, attempt_recovery=False, suppress_warnings=True) as document:
            if document.is_encrypted:
                raise _encrypted()
            pages = len(document.pages)
    except pikepdf.PasswordError as error:
        raise _encrypted() from error
    except pikepdf.PikepdfError as error:
        raise ImageRejected(
            Reason.CORRUPT,
            "The PDF's table of its parts (cross-reference) is wrong, or the file is cut short."
            " Some viewers repair that without a word: open it in one, save it anew, and send what"
            " was saved.",
        ) from error
    if pages == 0:
        raise corrupt()
    if pages > limits.pdf_pages:
        raise ImageRejected(
            Reason.TOO_MANY_FRAMES,
            f"The PDF has {pages} pages; at most {limits.pdf_pages} are accepted. Split it.",
        )
    return pages


def _encrypted() -> ImageRejected:
    return ImageRejected(
        Reason.ENCRYPTED,
        "The PDF is encrypted. Remove its password and restrictions and send it again.",
    )
