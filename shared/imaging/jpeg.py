"""The structure of a JPEG up to the end of its first picture: its segments and scans.

libjpeg silently replaces a missing scan by grey; this module detects it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_STANDALONE = frozenset((0x01, *range(0xD0, 0xD9)))
_START_OF_FRAME = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END, _PROGRESSIVE = 0xDA, 0xD9, 2
# In coded data, 0xFF is followed by 0 or a restart marker. The expression starts with that byte, so
# that the search is fast.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")


@dataclass(frozen=True)
class Frame:
    """A start of frame. kind: the number in its marker's name, SOF0 to SOF15; 55 is JPEG-LS."""

    kind: int
    bits: int
    components: tuple[int, ...]  # their ids


def frame(content: bytes) -> Frame | None:
    return next(
        (_frame(marker, body) for marker, body in _segments(content) if marker in _START_OF_FRAME),
        None,
    )


def is_whole(content: bytes) -> bool:
    """Returns whether the scans hold every coefficient of every component to its last bit, followed
    by the end marker."""
    said, found, ended = set[tuple[int, int]](), None, False
    for marker, body in _segments(content):
        if marker in _START_OF_FRAME and found is None:
            found = _frame(marker, body)
        elif marker == _SCAN and len(body) > 3 and len(body) >= 4 + 2 * body[0]:
            first, last, bit = body[-3], body[-2], body[-1] & 15
            if found and found.kind != _PROGRESSIVE:
                first, last, bit = 0, 63, 0
            components = body[1 : 1 + 2 * body[0] : 2]
            if bit == 0:
                said.update(
                    (component, index)
                    for component in components
                    for index in range(first, min(last, 63) + 1)
                )
        ended = marker == _END
    return (
        found is not None
        and ended
        and said >= {(part, index) for part in found.components for index in range(64)}
    )


def _frame(marker: int, body: bytes) -> Frame:
    parts = body[5] if len(body) > 5 else 0
    return Frame(marker - 0xC0, body[0] if body else 0, tuple(body[6 : 6 + 3 * parts : 3]))


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields each marker with its segment, without coded data, up to the end of the picture or of
    the file."""
    at = 2
    while found := _MARKER.search(content, at):
        marker, at = found[1][0], found.end()
        if marker in _STANDALONE:
            continue
        if marker == _END:
            yield marker, b""
            return
        length = max(2, int.from_bytes(content[at : at + 2], "big"))
        yield marker, content[at + 2 : at + length]
        at += length
