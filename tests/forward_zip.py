"""A ZIP reader that can't look ahead, as strict as real ones (Java's ZipInputStream, bsdtar reading
from a pipe).

It ignores the directory at the end, and refuses an entry whose own bytes don't say where it ends.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

_AFTER_THE_DATA, _UTF8 = 1 << 3, 1 << 11
_FAR = 0xFFFFFFFF


def entries(
    stream: BinaryIO, take: Callable[[str, bytes], None] = lambda _name, _piece: None
) -> Iterator[tuple[str, int]]:
    """Yields name and size of each entry, in order, and passes its bytes to `take`. Fails if
    anything is inconsistent."""
    buffer = b""

    def read(size: int) -> bytes:
        nonlocal buffer
        while len(buffer) < size:
            more = stream.read(1 << 16)
            assert more, "the archive ends early"
            buffer += more
        data, buffer = buffer[:size], buffer[size:]
        return data

    while (signature := read(4)) == b"PK\x03\x04":
        version, flags, method, _time, _date, *sizes, name_length, extra_length = struct.unpack(
            "<5H3L2H", read(26)
        )
        name, extra = read(name_length), read(extra_length)
        assert flags & ~(_AFTER_THE_DATA | _UTF8) == 0 and (flags & _UTF8 or name.isascii())
        assert method == 8 and flags & _AFTER_THE_DATA, "only DEFLATE tells where it ends"
        far = extra[:2] == b"\x01\x00"
        assert version == (45 if far else 20) and sizes == ([0, _FAR, _FAR] if far else [0, 0, 0])
        inflate, size, packed, checksum = zlib.decompressobj(-15), 0, 0, 0
        while not inflate.eof:
            given = buffer or stream.read(1 << 16)
            assert given, "the archive ends within a file"
            piece = inflate.decompress(given)
            buffer = inflate.unused_data
            packed += len(given) - len(buffer)
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
            take(name.decode(), piece)
        assert far == (packed >= _FAR), "a reader tells the length of what follows by the size"
        told = struct.unpack("<4sL2Q" if far else "<4s3L", read(24 if far else 16))
        assert told == (b"PK\x07\x08", checksum, packed, size)
        yield name.decode(), size
    assert signature in (b"PK\x01\x02", b"PK\x05\x06")


def contents(stream: BinaryIO) -> dict[str, bytes]:
    """Returns the archive's files by name."""
    found: dict[str, bytearray] = {}

    def take(name: str, piece: bytes) -> None:
        found.setdefault(name, bytearray()).extend(piece)

    names = [name for name, _ in entries(stream, take)]
    assert names == list(dict.fromkeys(names)) == list(found)
    return {name: bytes(data) for name, data in found.items()}
