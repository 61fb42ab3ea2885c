"""Finds the end of a picture in its file by the structure of its format: no decoder reads the bytes
after it."""

import re
from mmap import mmap

# In a JPEG's coded data, 0xFF is followed by 0 or a restart marker.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD9)))
_START, _END = b"\xff\xd8", 0xD9


def end_of_picture(content: mmap, mime: str) -> int:
    """Returns the offset of the first byte after the picture; the file's length for a format
    without an end."""
    match mime:
        case "image/png":
            return _end_of_png(content)
        case "image/jpeg":
            return _end_of_jpeg(content)
        case "image/gif":
            return _end_of_gif(content)
        case "image/webp":
            return min(8 + int.from_bytes(content[4:8], "little") + content[4] % 2, len(content))
        case "image/avif" | "image/heic":
            return _end_of_boxes(content)
        case _:  # a TIFF's parts may be anywhere
            return len(content)


def _end_of_png(content: mmap) -> int:
    at = 8
    while at + 12 <= len(content):
        kind = content[at + 4 : at + 8]
        at += 12 + int.from_bytes(content[at : at + 4], "big")
        if kind == b"IEND":
            break
    return min(at, len(content))


def _end_of_jpeg(content: mmap) -> int:
    """Returns the end of the last picture: cameras and phones append others (MPF), each a complete
    JPEG."""
    at = 2
    while found := _MARKER.search(content, at):
        marker, at = found[1][0], found.end()
        if marker == _END:
            if content[at : at + 2] != _START:
                return at
            at += 2
        elif marker not in _STANDALONE:
            at += max(2, int.from_bytes(content[at : at + 2], "big"))
    return len(content)


def _end_of_gif(content: mmap) -> int:
    at = 13 + _table(content[10])
    while at < len(content) and (kind := content[at : at + 1]) in (b"!", b","):
        if kind == b",":
            at += 10 + _table(content[at + 9] if at + 9 < len(content) else 0) + 1
        else:
            at += 2
        while at < len(content) and content[at]:
            at += 1 + content[at]
        at += 1
    return min(at + 1, len(content))


def _table(flags: int) -> int:
    return 3 * (2 << (flags & 7)) if flags & 0x80 else 0


def _end_of_boxes(content: mmap) -> int:
    at = 0
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(content[at + 8 : at + 16], "big")
        if size == 0:  # the box reaches to the end of the file
            return len(content)
        if size < 8 or at + size > len(content):
            return at
        at += size
    return at
