"""TIFFs put together tag by tag, so that they can have every existing form and invalid ones."""

import struct
from dataclasses import dataclass, field

FORMS = {
    "B": (8, 1),
    "H": (16, 1),
    "I": (32, 1),
    "b": (8, 2),
    "h": (16, 2),
    "i": (32, 2),
    "e": (16, 3),
    "f": (32, 3),
    "d": (64, 3),
}
"""For each letter of `struct`: the bits of a sample, and its TIFF format: 1 unsigned, 2 signed, 3
floating-point."""


@dataclass(frozen=True)
class Page:
    """A page of coded data in one strip or tiles; other tags as numbers; pictures below it
    (SubIFDs)."""

    width: int
    height: int
    data: tuple[bytes, ...]
    tags: dict[int, tuple[int, ...]] = field(default_factory=dict)
    below: tuple["Page", ...] = ()


def tiff(*pages: Page) -> bytes:
    content, link = bytearray(b"II*\0\0\0\0\0"), 4
    for page in pages:
        at, after = _append(content, page)
        content[link : link + 4] = struct.pack("<I", at)
        link = after
    return bytes(content)


def samples(
    *values: float, letter: str = "B", photometric: int = 2, extra: tuple[int, ...] = ()
) -> bytes:
    """Returns a picture of 32 x 16 pixels that all have these samples. `extra` is the declared
    meaning of samples after the colours."""
    return tiff(page(*values, letter=letter, photometric=photometric, extra=extra))


def page(
    *values: float,
    letter: str = "B",
    photometric: int = 2,
    extra: tuple[int, ...] = (),
    size: tuple[int, int] = (32, 16),
) -> Page:
    bits, kind = FORMS[letter]
    width, height = size
    pixel = struct.pack(f"<{len(values)}{letter}", *values)
    tags = {
        258: (bits,) * len(values),
        262: (photometric,),
        277: (len(values),),
        339: (kind,) * len(values),
    }
    return Page(width, height, (pixel * (width * height),), tags | ({338: extra} if extra else {}))


def coded(
    compression: int, *data: bytes, photometric: int = 2, count: int = 3, **tags: tuple[int, ...]
) -> bytes:
    """Returns a picture of 128 x 96 pixels in four tiles of 64 x 64 (the lower ones overhang) or in
    one strip. `tags` are named t and the tag's number."""
    numbers = {int(name[1:]): values for name, values in tags.items()}
    if len(data) > 1:
        numbers |= {322: (64,), 323: (64,)}
    said = {258: (8,) * count, 259: (compression,), 262: (photometric,), 277: (count,)}
    return tiff(Page(128, 96, data, said | numbers))


def _append(content: bytearray, page: Page) -> tuple[int, int]:
    """Appends a page. Returns the place of its directory, and the place for the offset of the
    next."""
    places = []
    for part in page.data:
        places.append(len(content))
        content += part + bytes(len(part) % 2)
    below = tuple(_append(content, other)[0] for other in page.below)
    where, lengths = (324, 325) if 322 in page.tags else (273, 279)
    tags = {
        256: (page.width,),
        257: (page.height,),
        278: (page.height,),
        284: (1,),
        where: tuple(places),
    }
    tags |= {lengths: tuple(map(len, page.data))} | page.tags | ({330: below} if below else {})
    entries = b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            entries += struct.pack("<HHII", tag, 4, len(values), len(content))
            content += packed
        else:
            entries += struct.pack("<HHI4s", tag, 4, 1, packed)
    at = len(content)
    content += struct.pack("<H", len(tags)) + entries + bytes(4)
    return at, len(content) - 4
