"""Whether a picture's file says where it was taken, in any of the ways that programs write it.

A place is: coordinates or altitude, of the camera or of what it was pointed at, or the name of a
GPS area (EXIF and XMP); the names of a city, a part of it, a state or a country of the picture
(IPTC's fields, in IIM and in XMP); the location of a shot (XMP's xmpDM). No place are: the empty
frame of GPS data, its version, time and direction, and the address of the one who made the picture.

The file is searched as bytes, not as a container: a second segment, a second picture and a later
page are found wherever they stand. Only what is packed, spelt in hexadecimal or cut into pieces is
put together first. Not read are the makers' own formats (MakerNotes, what follows the picture in a
trailer of theirs).
"""

import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain

from shared.imaging import gif
from shared.imaging.child import too_expensive
from shared.imaging.tiff import EXIF_DIRECTORY, GPS_DIRECTORY, HEADS, SUB_DIRECTORIES, Tiff

_GPS_PLACES = {
    2,
    4,
    6,
    20,
    22,
    28,
}  # latitude, longitude, altitude, those of the target, name of the area
# Of its second record: location codes and names, city, part of it, state, country.
_IIM_PLACES = {bytes((2, kind)) for kind in (26, 27, 90, 92, 95, 100, 101)}
_IIM = 33723  # the tag
_IIM_MARK, _IIM_RESOURCE = b"\x1c", b"8BIM\4\4"
_MOST_ENTRIES = 1 << 18  # of directories and of IPTC; no picture has as many
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
    """`metadata`: blocks that the decoder has put together already.

    Raises ImageRejected (TOO_EXPENSIVE) when there is more to look through than any picture has.
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
    """In UTF-8, 16 or 32: names are ASCII, and those are the same once the zeros between the
    letters are gone."""
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
    """The names, record and number, of the fields from `at` on that aren't empty."""
    while block[at : at + 1] == _IIM_MARK:
        name, length = block[at + 1 : at + 3], _big(block[at + 3 : at + 5])
        yield name if block[at + 5 : at + 5 + min(length, 99)].strip() else b""
        at += 5 + (length if length < 0x8000 else 0)


def _in_manifest(block: bytes) -> bool:
    """Content credentials may repeat the EXIF in JSON or CBOR."""
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
    """EXIF and XMP of more than 64 KiB, which a segment can't hold: EXIF goes on, XMP says where
    the piece belongs."""
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
    """A PNG's texts, unpacked; ImageMagick writes EXIF, XMP and IPTC as hexadecimal digits."""
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
    for mark in marks:  # one after the other: all in one expression take ten times as long
        yield from (found.start() for found in re.finditer(re.escape(mark), block))


def _big(number: bytes) -> int:
    return int.from_bytes(number, "big")
