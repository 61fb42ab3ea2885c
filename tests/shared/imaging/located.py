"""Pictures whose files say where they were taken, in the formats of many programs. All are made
here, byte by byte."""

import struct
import zlib
from typing import Any

from tests.shared.imaging import pictures

JPEG = bytes(pictures.textured(64, 48).jpegsave_buffer(keep="none"))
PNG = bytes(pictures.textured(64, 48).pngsave_buffer(keep="none"))
GIF = bytes(pictures.textured(64, 48).gifsave_buffer(keep="none"))
WEBP = bytes(pictures.textured(64, 48).webpsave_buffer(keep="none"))

_LATITUDE, _ALTITUDE, _TARGET, _VERSION, _DATE = 2, 6, 20, 0, 29
_PACKET = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF'
    ' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
    ' xmlns:exif="http://ns.adobe.com/exif/1.0/"'
    ' xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/"'
    ' xmlns:p="http://ns.adobe.com/photoshop/1.0/"'
    ' xmlns:drone-dji="http://www.dji.com/drone-dji/1.0/"'
    ' xmlns:xmpDM="http://ns.adobe.com/xmp/1.0/DynamicMedia/"'
    ' xmlns:Iptc4xmpCore="http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    " {0}>{1}</rdf:Description></rdf:RDF></x:xmpmeta>"
)


def xmp(
    attributes: str = 'exif:GPSLatitude="52,30.0N" exif:GPSLongitude="13,24.0E"', elements: str = ""
) -> bytes:
    return _PACKET.format(attributes, elements).encode()


def tiff(
    order: str = "<", tags: tuple[int, ...] = (1, 2, 3, 4), pointer: int = 34853, before: int = 0
) -> bytes:
    """Returns EXIF with a GPS directory of these tags, to which a tag of the first directory
    points. `before` is the number of bytes between the two."""
    at = 26 + before
    entries, values = b"", b""
    for tag in tags:
        if tag in (1, 3, 19, 21, 29):
            entries += struct.pack(order + "HHI4s", tag, 2, 2, b"N\0\0\0")
        elif tag == _VERSION:
            entries += struct.pack(order + "HHI4s", tag, 1, 4, b"\2\3\0\0")
        else:
            count = 1 if tag == _ALTITUDE else 3
            place = at + 2 + 12 * len(tags) + 4 + len(values)
            entries += struct.pack(order + "HHII", tag, 5, count, place)
            values += struct.pack(order + "II", 52, 1) * count
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    first = struct.pack(order + "HHHII", 1, pointer, 4, 1, at) + bytes(4 + before)
    return head + first + struct.pack(order + "H", len(tags)) + entries + bytes(4) + values


def exif(**options: Any) -> bytes:
    return b"Exif\0\0" + tiff(**options)


def iim(kind: int, text: bytes) -> bytes:
    return b"\x1c\2\x05\0\4name\x1c\2" + struct.pack(">BH", kind, len(text)) + text


def resource(data: bytes) -> bytes:
    return b"8BIM\4\4\0\0" + struct.pack(">I", len(data)) + data + bytes(len(data) % 2)


def segment(body: bytes, marker: int = 0xE1) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg(*segments: bytes) -> bytes:
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def jpeg_xmp(packet: bytes) -> bytes:
    return segment(b"http://ns.adobe.com/xap/1.0/\0" + packet)


def extended_xmp(packet: bytes, piece: int = 100) -> bytes:
    """Returns a packet in many segments, the last one first, after a main one that names it."""
    guid = b"0123456789ABCDEF0123456789ABCDEF"
    main = xmp(
        f'xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="{guid.decode()}"'
    )
    parts = [
        segment(
            b"http://ns.adobe.com/xmp/extension/\0"
            + guid
            + struct.pack(">II", len(packet), at)
            + packet[at : at + piece]
        )
        for at in range(0, len(packet), piece)
    ]
    return jpeg(jpeg_xmp(main), *reversed(parts))


def long_exif() -> bytes:
    """Returns EXIF in two segments: the GPS data is in the second."""
    content = tiff(before=60_000)
    return jpeg(segment(b"Exif\0\0" + content[:50_000]), segment(b"Exif\0\0" + content[50_000:]))


def png(*chunks: tuple[bytes, bytes], late: bool = False) -> bytes:
    at = len(PNG) - 12 if late else 33
    made = b"".join(pictures.chunk(kind, data) for kind, data in chunks)
    return PNG[:at] + made + PNG[at:]


def raw_profile(kind: str, data: bytes, *, packed: bool = True) -> tuple[bytes, bytes]:
    """Returns a PNG chunk with metadata as ImageMagick writes it: lines of hexadecimal digits."""
    digits = data.hex()
    lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    text = f"\n{kind}\n{len(data):8}\n{lines}\n".encode()
    keyword = f"Raw profile type {kind}".encode()
    return (
        (b"zTXt", keyword + b"\0\0" + zlib.compress(text))
        if packed
        else (b"tEXt", keyword + b"\0" + text)
    )


def international(packet: bytes, *, packed: bool) -> tuple[bytes, bytes]:
    text = zlib.compress(packet) if packed else packet
    return b"iTXt", b"XML:com.adobe.xmp\0" + bytes([packed, 0]) + b"\0\0" + text


def gif(packet: bytes, *, in_blocks: bool) -> bytes:
    """Returns a GIF with XMP: as Adobe specifies it, running through the blocks up to a trailer, or
    in blocks like everything else."""
    if in_blocks:
        pieces = [packet[at : at + 200] for at in range(0, len(packet), 200)]
        body = b"".join(bytes([len(piece)]) + piece for piece in pieces) + b"\0"
    else:
        body = packet + b"\1" + bytes(range(255, -1, -1)) + b"\0"
    return GIF[:-1] + b"!\xff\x0bXMP DataXMP" + body + GIF[-1:]


def webp(kind: bytes, data: bytes) -> bytes:
    flags = 8 if kind == b"EXIF" else 4
    chunks = (
        b"VP8X"
        + struct.pack("<IB3x", 10, flags)
        + (63).to_bytes(3, "little")
        + (47).to_bytes(3, "little")
    )
    chunks += WEBP[12:] + kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def tiff_page(*tags: tuple[int, int, bytes], page: int = 0) -> bytes:
    """Returns a TIFF of two pages, one of which also has these tags (tag, kind, data). If a tag
    points to a directory (kind 13), offsets in its data count from the start of the data."""
    pages = pictures.plain(60, 160, 9, 99, 199).copy()
    pages.set_type(pictures.INTEGER, "page-height", 80)
    content = bytes(pages.tiffsave_buffer(keep="none"))
    link = 4
    for _ in range(page + 1):
        [at] = struct.unpack_from("<I", content, link)
        [count] = struct.unpack_from("<H", content, at)
        last, link = link, at + 2 + count * 12
    entries, tail = (
        [content[at + 2 + 12 * index : at + 14 + 12 * index] for index in range(count)],
        b"",
    )
    for tag, kind, data in tags:
        place = len(content) + len(tail)
        entries.append(
            struct.pack(
                "<HHII", tag, 4 if kind == 13 else kind, 1 if kind == 13 else len(data), place
            )
        )
        tail += directory(place, data) if kind == 13 else data + bytes(len(data) % 2)
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    moved = struct.pack("<I", len(content) + len(tail))
    new = struct.pack("<H", len(entries)) + b"".join(entries) + content[link : link + 4]
    return content[:last] + moved + content[last + 4 :] + tail + new


def directory(place: int, tags: bytes) -> bytes:
    """Returns a GPS directory for this place of a file, with these tags of three rational
    numbers."""
    values = place + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 5, 3, values + 24 * index) for index, tag in enumerate(tags)
    )
    return (
        struct.pack("<H", len(tags))
        + entries
        + bytes(4)
        + struct.pack("<II", 52, 1) * 3 * len(tags)
    )


def tiff_with_pointer_below(tag: int) -> bytes:
    """Returns a TIFF whose first page points, by this tag, to a directory that points to GPS
    data."""
    whole = tiff_page((tag, 13, b"\2\4"))
    # The original pointer led to the GPS directory; it now leads to a new directory at the end,
    # which points to it.
    at = whole.index(struct.pack("<H", tag) + struct.pack("<HI", 4, 1)) + 8
    below = struct.pack("<HHHII", 1, 34853, 4, 1, struct.unpack_from("<I", whole, at)[0]) + bytes(4)
    return whole[:at] + struct.pack("<I", len(whole)) + whole[at + 4 :] + below


def avif(name: str, data: bytes) -> bytes:
    image = pictures.textured(64, 48).copy()
    image.set_type(pictures.BLOB, name, data)
    return bytes(image.heifsave_buffer(compression="av1", effort=0))


LOCATED = {
    "jpeg: exif": jpeg(segment(exif())),
    "jpeg: exif, big-endian": jpeg(segment(exif(order=">"))),
    "jpeg: exif, the second segment": jpeg(segment(exif(tags=(_VERSION,))), segment(exif())),
    "jpeg: exif in two segments": long_exif(),
    "jpeg: exif, altitude alone": jpeg(segment(exif(tags=(5, _ALTITUDE)))),
    "jpeg: exif, target alone": jpeg(segment(exif(tags=(19, _TARGET, 21, 22)))),
    "jpeg: exif after another picture": JPEG + jpeg(segment(exif())),
    "jpeg: exif after xmp": jpeg(jpeg_xmp(xmp("")), segment(exif())),
    "jpeg: xmp, attribute": jpeg(jpeg_xmp(xmp())),
    "jpeg: xmp, element": jpeg(
        jpeg_xmp(xmp("", "<exif:GPSLongitude>13,24.0E</exif:GPSLongitude>"))
    ),
    "jpeg: xmp, single quotes": jpeg(jpeg_xmp(xmp("exif:GPSLatitude = '52,30.0N'"))),
    "jpeg: xmp of a drone": jpeg(jpeg_xmp(xmp('drone-dji:GpsLatitude="+52.5"'))),
    "jpeg: xmp, its writer's own misspelling": jpeg(
        jpeg_xmp(xmp('drone-dji:GpsLongtitude="+13.4"'))
    ),
    "jpeg: xmp, city": jpeg(jpeg_xmp(xmp('photoshop:City="Berlin"'))),
    "jpeg: xmp, city under another prefix": jpeg(jpeg_xmp(xmp("", "<p:City>Berlin</p:City>"))),
    "jpeg: xmp, sublocation": jpeg(jpeg_xmp(xmp('Iptc4xmpCore:Location="Alexanderplatz"'))),
    "jpeg: xmp, location shown": jpeg(
        jpeg_xmp(
            xmp(
                "",
                "<Iptc4xmpExt:LocationShown><rdf:Bag><rdf:li"
                ' rdf:parseType="Resource"><Iptc4xmpExt:CountryName>'
                "Germany</Iptc4xmpExt:CountryName></rdf:li></rdf:Bag></Iptc4xmpExt:LocationShown>",
            )
        )
    ),
    "jpeg: xmp, shot location": jpeg(jpeg_xmp(xmp('xmpDM:shotLocation="Berlin"'))),
    **{
        f"jpeg: xmp in {name}": jpeg(jpeg_xmp(b"".join((mark, xmp().decode().encode(name)))))
        for name, mark in (
            ("utf-16-be", b"\xfe\xff"),
            ("utf-16-le", b"\xff\xfe"),
            ("utf-32-be", b"\0\0\xfe\xff"),
            ("utf-32-le", b"\xff\xfe\0\0"),
        )
    },
    "jpeg: xmp in utf-16 without a mark": jpeg(jpeg_xmp(xmp().decode().encode("utf-16-be"))),
    "jpeg: extended xmp": extended_xmp(xmp()),
    "jpeg: iptc, city": jpeg(segment(b"Photoshop 3.0\0" + resource(iim(90, b"Berlin")), 0xED)),
    "jpeg: iptc, country": jpeg(segment(b"Photoshop 3.0\0" + resource(iim(101, b"Germany")), 0xED)),
    "png: eXIf": png((b"eXIf", tiff())),
    "png: eXIf after the pixels": png((b"eXIf", tiff(order=">")), late=True),
    "png: raw profile exif": png(raw_profile("exif", exif())),
    "png: raw profile exif, not packed": png(raw_profile("exif", exif(), packed=False)),
    "png: raw profile APP1": png(raw_profile("APP1", exif())),
    "png: raw profile xmp": png(raw_profile("xmp", xmp())),
    "png: raw profile iptc": png(raw_profile("iptc", resource(iim(90, b"Berlin")))),
    "png: iTXt": png(international(xmp(), packed=False)),
    "png: iTXt, packed": png(international(xmp(), packed=True)),
    "png: iTXt, packed, after the pixels": png(international(xmp(), packed=True), late=True),
    "gif: xmp": gif(xmp(), in_blocks=False),
    "webp: exif": webp(b"EXIF", tiff()),
    "webp: exif with its name": webp(b"EXIF", exif()),
    "webp: xmp": webp(b"XMP ", xmp()),
    "avif: exif": avif("exif-data", exif()),
    "avif: xmp": avif("xmp-data", xmp()),
    "tiff: exif": tiff_page((34853, 13, b"\2\4")),
    "tiff: exif, second page": tiff_page((34853, 13, b"\2\4"), page=1),
    "tiff: exif, in the exif directory": tiff_with_pointer_below(34665),
    "tiff: exif, in a sub-image": tiff_with_pointer_below(330),
    "tiff: xmp": tiff_page((700, 1, xmp())),
    "tiff: xmp, second page": tiff_page((700, 1, xmp()), page=1),
    "tiff: iptc": tiff_page((33723, 7, iim(90, b"Berlin"))),
    "tiff: iptc among Photoshop's": tiff_page((34377, 1, resource(iim(92, b"Mitte")))),
}

NOWHERE = {
    "jpeg": JPEG,
    "jpeg: gps data without a place": jpeg(segment(exif(tags=(_VERSION, _DATE)))),
    "jpeg: an empty city": jpeg(
        jpeg_xmp(xmp('photoshop:City=""', "<Iptc4xmpExt:City></Iptc4xmpExt:City><p:City/>"))
    ),
    "jpeg: the creator's address": jpeg(jpeg_xmp(xmp('Iptc4xmpCore:CiAdrCity="Berlin"'))),
    "jpeg: a city of something else": jpeg(jpeg_xmp(xmp('xmlns:o="urn:other" o:City="Berlin"'))),
    "jpeg: words about places": pictures.with_comment(JPEG, b"GPSLatitude=52 City=Berlin"),
    "jpeg: iptc, headline": jpeg(segment(b"Photoshop 3.0\0" + resource(iim(105, b"Berlin")), 0xED)),
    "png": png(
        (b"tEXt", b"Comment\0in Berlin"),
        (b"zTXt", b"Comment\0\0broken"),
        raw_profile("exif", b"odd"),
    ),
    "gif": GIF,
    "webp: exif": webp(b"EXIF", exif(tags=(_VERSION,))),
    "tiff": tiff_page((34853, 13, b"")),
    "avif": avif("exif-data", exif(tags=(_VERSION,))),
}
