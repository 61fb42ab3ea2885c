"""The structure of a GIF: its frames, each with coded data and its own size."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_EXTENSION, _FRAME, _END = b"!", b",", b";"
_WHITE = b"\xff" * 3 * 256


@dataclass(frozen=True)
class Block:
    """An extension with its label, or a frame (label -1) with its head; `data` is the joined data
    of its sub-blocks."""

    label: int
    head: bytes
    start: int  # where its sub-blocks start
    end: int
    data: bytes


class Cut(Exception):
    """The file ends before the GIF does."""


def blocks(content: bytes) -> Iterator[Block]:
    """Yields the blocks in order. Raises Cut where the bytes are no longer a GIF."""
    at = 13 + _table(content[10:11])
    while (kind := content[at : at + 1]) != _END:
        if kind == _EXTENSION:
            label, head, start = content[at + 1 : at + 2], b"", at + 2
        elif kind == _FRAME:
            label, head = b"", content[at + 1 : at + 10]
            start = at + 10 + _table(head[8:]) + 1  # after the byte with the first code size
        else:
            raise Cut
        data, at = _joined(content, start)
        yield Block(label[0] if label else -1, head, start, at, data)


def lone_frames(content: bytes) -> Iterator[bytes]:
    """Yields each frame as its own GIF in which every colour is white: a pixel that isn't white has
    no data."""
    for block in blocks(content):
        if block.label == -1:
            width, height = struct.unpack_from("<HH", block.head, 4)
            flags = 0x87 | (block.head[8] & 0x40)  # a local table of 256 colours; interlaced or not
            head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)
            frame = _FRAME + struct.pack("<HHHHB", 0, 0, width, height, flags) + _WHITE
            yield head + frame + content[block.start - 1 : block.end] + _END


def _table(flags: bytes) -> int:
    """Returns the size in bytes of the colour table that these flags announce."""
    if not flags:
        raise Cut
    return 3 * (2 << (flags[0] & 7)) if flags[0] & 0x80 else 0


def _joined(content: bytes, at: int) -> tuple[bytes, int]:
    """Returns the joined sub-blocks from `at` on, and where they end."""
    parts = []
    while size := content[at] if at < len(content) else -1:
        if size < 0:
            raise Cut
        parts.append(content[at + 1 : at + 1 + size])
        at += 1 + size
    return b"".join(parts), at + 1
