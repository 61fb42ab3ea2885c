"""Detects whether a picture's file states where it was taken, in any form that programs write.

A place is: coordinates or altitude of the camera or of its target, or the name of a GPS area (EXIF
and XMP); the name of the picture's city, a part of it, state or country (IPTC fields in IIM and
XMP); the location of a shot (XMP's xmpDM). Not a place are: an empty GPS directory, its version,
time and direction, and the address of the picture's maker.

The file is searched as bytes, not as a container: a second segment, a second picture or a later
page is found wherever it is. Only compressed, hexadecimal or split data is put together first. The
makers' own formats (MakerNotes, their trailers after the picture) are not read.
"""

import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain

from shared.imaging import gif
from shared.imaging.child import too_expensive
from shared.imaging.tiff import EXIF_DIRECTORY, GPS_DIRECTORY, HEADS, SUB_DIRECTORIES, Tiff

# Latitude, longitude, altitude; latitude and longitude of the target; name of the area.
_GPS_PLACES = {
    2,
    4,
    6,
    20,
    22,
    28,
}
# In IIM's record 2: location code and name, city, part of it, state, country code and name.
_IIM_PLACES = {bytes((2, kind)) for kind in (26, 27, 90, 92, 95, 100, 101)}
_IIM = 33723  # the TIFF tag that holds IIM
_IIM_MARK, _IIM_RESOURCE = b"\x1c", b"8BIM\4\4"
_MOST_ENTRIES = 1 << 18  # of EXIF directories and of IPTC; no real picture has as many
_UNPACKED = 16 << 20

_UNENDED_PACKET = 1 << 16
_VALUE = rb"""(?:\s*=\s*(?:"\s*[^"\s]|'\s*[^'\s])|(?:\s[^<>]{0,2000})?(?<!/)>\s*(?!</)\S)"""
_GPS_IN_XMP = re.compile(
    rb"(?i)[<\s](?:[\w.-]+:)?GPS(?:Dest)?(?:Latitude|Longt?itude|Altitude|Position|Coordinates|AreaInformation)"
    + _VALUE
)
_NAMED_IN_XMP = re.compile(
    rb"[<\s]([\w.-]+):(City|State|Country|Location|CountryCode|CountryName|ProvinceState|Sublocation|LocationName"
    rb"|LocationId|WorldRegion|shotLocation)" + _VALUE
)
_PREFIX = re.compile(rb"""xmlns:([\w.-]+)\s*=\s*["']([^"']+)["']""")
_NAMESPACES = {
    b"http://ns.adobe.com/photoshop/1.0/": {b"City", b"State", b"Country"},
    b"http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/": {b"Location", b"CountryCode"},
    b"http://iptc.org/std/Iptc4xmpExt/2008-02-29/": {
        b"City",
        b"CountryCode",
        b"CountryName",
        b"ProvinceState",
        b"Sublocation",
        b"LocationName",
        b"LocationId",
        b"WorldRegion",
    },
    b"http://ns.adobe.com/xmp/1.0/DynamicMedia/": {b"shotLocation"},
    b"http://ns.iview-multimedia.com/mediapro/1.0/": {b"Location"},
}
_USUAL = dict(
    zip(
        (b"photoshop", b"Iptc4xmpCore", b"Iptc4xmpExt", b"xmpDM", b"mediapro"),
        _NAMESPACES,
        strict=True,
    )
)

_APP1 = b"\xff\xe1"
_EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_RAW_PROFILE = re.compile(rb"\s*\w+\s+\d+\s+([0-9a-fA-F\s]+)\Z")


def says_where(content: bytes, metadata: list[bytes], mime: str) -> bool:
    """Returns whether the file states a place. `metadata` are blocks that the decoder has put
    together.

    Raises ImageRejected (TOO_EXPENSIVE) if there is more to search than any real picture has.
    """
    return any(
        _found_in(block) for block in chain([content], metadata, _put_together(content, mime))
    )


def _found_in(block: bytes) -> bool:
    return _in_exif(block) or _in_xmp(block) or _in_iptc(block) or _in_manifest(block)


def _in_exif(block: bytes) -> bool:
    budget = _MOST_ENTRIES
    for start in _all(block, *HEADS):
        exif = Tiff(block, start)
        ahead, seen = [exif.first], set[int]()
        while ahead:
            at = ahead.pop()
            if at in seen or not 0 < at < len(block) - start:
                continue
            seen.add(at)
            directory = exif.directory(at)
            entries = directory.entries
            for place in exif.numbers(entries.get(GPS_DIRECTORY), 1):
                if _GPS_PLACES & exif.directory(place).entries.keys():
                    return True
            if _IIM in entries and _in_iptc(exif.data(entries[_IIM].at, 4 * entries[_IIM].length)):
                return True
            budget -= 8 + directory.length
            if budget < 0:
                raise too_expensive()
            ahead.append(directory.next)
            for tag in (EXIF_DIRECTORY, SUB_DIRECTORIES):
                ahead.extend(exif.numbers(entries.get(tag), 64))
    return False


def _in_xmp(block: bytes) -> bool:
    """Searches XMP in UTF-8, UTF-16 or UTF-32: names are ASCII, so all three are the same without
    the zeros between the letters."""
    for zeros in (0, 1, 3):
        for mark in (b"rdf:RDF", b"xmpmeta"):
            end, stop = re.compile(_spelt(b"/" + mark, zeros)), 0
            for at in _all(block, _spelt(mark, zeros)):
                if at < stop:
                    continue
                closed = end.search(block, at)
                stop = closed.end() if closed else at + _UNENDED_PACKET
                if _packet_says(block[at:stop].replace(b"\0", b"")):
                    return True
    return False


def _packet_says(packet: bytes) -> bool:
    if _GPS_IN_XMP.search(packet):
        return True
    spaces = _USUAL | {
        prefix: space for prefix, space in _PREFIX.findall(packet) if space in _NAMESPACES
    }
    return any(
        name in _NAMESPACES.get(spaces.get(prefix, b""), ())
        for prefix, name in _NAMED_IN_XMP.findall(packet)
    )


def _in_iptc(block: bytes) -> bool:
    starts = [0] if block.startswith(_IIM_MARK) else []
    for at in _all(block, _IIM_RESOURCE):
        name = block[at + 6] if at + 6 < len(block) else 0
        starts.append(at + 6 + (name + 2) // 2 * 2 + 4)
    fields = (field for start in starts for field in _iim_fields(block, start))
    for number, field in enumerate(fields):
        if field in _IIM_PLACES:
            return True
        if number > _MOST_ENTRIES:
            raise too_expensive()
    return False


def _iim_fields(block: bytes, at: int) -> Iterator[bytes]:
    """Yields the name (record and number) of each field from `at` on; b"" for an empty field."""
    while block[at : at + 1] == _IIM_MARK:
        name, length = block[at + 1 : at + 3], _big(block[at + 3 : at + 5])
        yield name if block[at + 5 : at + 5 + min(length, 99)].strip() else b""
        at += 5 + (length if length < 0x8000 else 0)


def _in_manifest(block: bytes) -> bool:
    """Searches content credentials, which may repeat the EXIF in JSON or CBOR."""
    return b"c2pa" in block and re.search(rb"GPS(?:Lat|Long)itude", block) is not None


def _put_together(content: bytes, mime: str) -> Iterator[bytes]:
    if mime == "image/jpeg":
        yield from _split_segments(content)
    elif mime == "image/png":
        yield from _texts(content)
    elif mime == "image/gif":
        with suppress(gif.Cut):
            yield from (block.data for block in gif.blocks(content) if block.label == 0xFF)


def _split_segments(content: bytes) -> Iterator[bytes]:
    """Joins EXIF and XMP that exceed a segment's 64 KiB: EXIF continues in the next segment, XMP
    states each piece's offset."""
    yield b"".join(body[6:] for body in _segments(content, b"Exif\0"))
    pieces: dict[bytes, list[tuple[int, bytes]]] = {}
    for body in _segments(content, _EXTENDED_XMP):
        told = body[len(_EXTENDED_XMP) :]
        pieces.setdefault(told[:32], []).append((_big(told[36:40]), told[40:]))
    for packet in pieces.values():
        yield b"".join(piece for _, piece in sorted(packet))


def _segments(content: bytes, name: bytes) -> Iterator[bytes]:
    for at in _all(content, name):
        if content[at - 4 : at - 2] == _APP1:
            yield content[at : at - 2 + _big(content[at - 2 : at])]


def _texts(content: bytes) -> Iterator[bytes]:
    """Yields a PNG's texts, uncompressed, and the EXIF, XMP and IPTC that ImageMagick writes as
    hexadecimal digits."""
    at = 8
    while at + 8 <= len(content):
        length, kind = _big(content[at : at + 4]), content[at + 4 : at + 8]
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            text = _text(kind, content[at + 8 : at + 8 + length])
            yield text
            if raw := _RAW_PROFILE.match(text):
                digits = b"".join(raw[1].split()).decode()
                yield bytes.fromhex(digits[: len(digits) // 2 * 2])
        at += 12 + length


def _text(kind: bytes, chunk: bytes) -> bytes:
    _keyword, _, text = chunk.partition(b"\0")
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed, text = text[:1] == b"\1", text[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif packed:
        text = text[1:]
    with suppress(zlib.error):
        return zlib.decompressobj().decompress(text, _UNPACKED) if packed else text
    return b""


def _spelt(name: bytes, zeros: int) -> bytes:
    return bytes(zeros).join(name[index : index + 1] for index in range(len(name)))


def _all(block: bytes, *marks: bytes) -> Iterator[int]:
    for mark in marks:  # one after the other: a single expression for all takes ten times as long
        yield from (found.start() for found in re.finditer(re.escape(mark), block))


def _big(number: bytes) -> int:
    return int.from_bytes(number, "big")
