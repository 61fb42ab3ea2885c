"""Files for the imaging tests, honest and hostile, and jobs that misbehave. All are made here, none
stored."""

import base64
import ctypes
import io
import os
import resource
import signal
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pikepdf
import pyvips

# 16x16 pixels, HEVC: its header can be read everywhere, its pixels only where libvips has an HEVC
# decoder.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAA"
    "AERAAAEAAQAAAAABoAABAAAAAAAAACoAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/GlwcnAAAADc"
    "aXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAA"
    "AwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFw"
    "AAAAEAAAAAEAAAAQAAAAAf///9AAAAAC////0AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAAMm1kYXQAAAAm"
    "KAGvGSFeQkDvXaW//34+/1mF/iVbfKZKppcE14iZCwOBgI2RnTg="
)
INTEGER, BLOB = pyvips.GValue.gint_type, pyvips.GValue.blob_type
HTML = b"<html><script>alert(1)</script></html>"


def plain(width: int, height: int, *colour: int) -> Any:
    """Returns a one-coloured `pyvips.Image`: 1 value grey, 2 grey and alpha, 3 sRGB, 4 sRGB and
    alpha."""
    image = (pyvips.Image.black(width, height, bands=len(colour)) + list(colour)).cast("uchar")
    return image.copy(interpretation="srgb" if len(colour) > 2 else "b-w")


def quadrants(width: int, height: int) -> Any:
    """Returns red and green above blue and white, so that every turn and mirror image differs."""
    half = (width // 2, height // 2)
    above = plain(*half, 220, 30, 30).join(plain(*half, 30, 200, 30), "horizontal")
    below = plain(*half, 30, 30, 220).join(plain(*half, 240, 240, 240), "horizontal")
    return above.join(below, "vertical")


def textured(width: int, height: int) -> Any:
    """Returns a picture with detail that doesn't compress to nothing; the same every time."""
    noise = pyvips.Image.gaussnoise(width, height, mean=128, sigma=50, seed=7)
    return noise.bandjoin([noise.rot180(), 255 - noise]).cast("uchar").copy(interpretation="srgb")


def animation(frames: int, size: int, suffix: str) -> bytes:
    """Returns an animation whose frames differ a lot, because encoders drop frames that don't."""
    pages = [plain(size, size, 97 * i % 256, 61 * i % 256, 151 * i % 256) for i in range(frames)]
    film = pyvips.Image.arrayjoin(pages, across=1).copy_memory()
    film.set_type(pyvips.GValue.gint_type, "page-height", size)
    return bytes(film.write_to_buffer(suffix))


def noisy_pages(pages: int, size: int, suffix: str, **options: object) -> bytes:
    """Returns pages that no encoder can make small, so that most of the file is in the later
    ones."""
    noise = [
        pyvips.Image.gaussnoise(size, size, mean=128, sigma=50, seed=seed).cast("uchar")
        for seed in range(pages)
    ]
    stack = pyvips.Image.arrayjoin(noise, across=1).copy_memory()
    stack.set_type(pyvips.GValue.gint_type, "page-height", size)
    return bytes(stack.write_to_buffer(suffix, **options))


def png_bomb(side: int = 50_000) -> bytes:
    """Returns a complete 1-bit PNG of side x side pixels in some hundred kilobytes."""
    row = bytes(1 + (side + 7) // 8)
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(row * 1000) for _ in range(side // 1000)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def thread_png(height: int = 49_000_000) -> bytes:
    """Returns a complete 1-bit PNG of one column in less than two hundred kilobytes."""
    packer = zlib.compressobj(9)
    packed = (
        b"".join(packer.compress(bytes(2 * (height // 10))) for _ in range(10)) + packer.flush()
    )
    header = struct.pack(">IIBBBBB", 1, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def hard_png(side: int = 4000) -> bytes:
    """Returns an honest picture of a hundred kilobytes that takes a processor some tenths of a
    second: it is interlaced and can only be decoded as a whole."""
    return bytes(quadrants(side, side).pngsave_buffer(interlace=True))


def long_gif(frames: int = 5000) -> bytes:
    frame = (
        b"\x21\xf9\x04\x00\x01\x00\x00\x00"
        + b"\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00"
        + b"\x02\x02\x44\x01\x00"
    )
    return b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff" + frame * frames + b";"


def gif_script() -> bytes:
    """Returns a GIF whose first bytes are JavaScript, `GIF89a/* ... */=alert(1)//`."""
    gif = bytearray(plain(8, 8, 10, 20, 30).gifsave_buffer())
    gif[6:8] = b"/*"
    return bytes(gif) + b"*/=alert(1)//"


def jpeg(width: int = 64, height: int = 48) -> bytes:
    return bytes(textured(width, height).jpegsave_buffer(Q=90))


def png(width: int = 64, height: int = 48) -> bytes:
    return bytes(textured(width, height).pngsave_buffer())


def with_comment(content: bytes, comment: bytes) -> bytes:
    """Returns a JPEG with a comment segment right after its start."""
    return content[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + content[2:]


def with_archive(content: bytes) -> bytes:
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("payload.txt", "hidden")
    return file.getvalue()


def big_tile_tiff(side: int = 1 << 20) -> bytes:
    """Returns a 16x16 TIFF that declares one uncompressed tile of side x side pixels."""
    tags = [
        (256, 16),
        (257, 16),
        (258, 8),
        (259, 1),
        (262, 1),
        (277, 1),
        (322, side),
        (323, side),
        (324, 8),
        (325, 16),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def pdf(pages: int = 3, password: str | None = None) -> bytes:
    document, file = pikepdf.new(), io.BytesIO()
    for _ in range(pages):
        document.add_blank_page()
    encryption = pikepdf.Encryption(owner=password, user=password) if password else False
    document.save(file, encryption=encryption)
    return file.getvalue()


def matrix_profile(red: Any, green: Any, blue: Any, gamma: float) -> bytes:
    """Returns an ICC version 2 display profile from D50 primaries (XYZ each) and one gamma."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    name = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    text = b"text\0\0\0\0none\0\0\0\0"
    tags = {b"desc": name + b"\0", b"cprt": text, b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    tags |= {b"rXYZ": xyz(*red), b"gXYZ": xyz(*green), b"bXYZ": xyz(*blue)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        content += bytes(-len(content) % 4)
        table += tag + struct.pack(">II", start + len(data), len(content))
        data += content
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(
        ">I4xI4s4s4s12s4s",
        128 + len(body),
        0x02400000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        bytes(12),
        b"acsp",
    )
    illuminant = b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    return (head + bytes(28) + illuminant).ljust(128, b"\0") + body


def chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


# Jobs for the pool


def process_id() -> int:
    return os.getpid()


def sleep_after(started: Path, seconds: float = 60) -> None:
    """Writes a file with its process id when the job has begun, then hangs."""
    started.with_suffix(".new").write_text(str(os.getpid()))
    started.with_suffix(".new").rename(started)
    time.sleep(seconds)


def hang_first_time(started: Path) -> str:
    if started.exists():
        return "second run"
    sleep_after(started)
    return "first run"


def divide(a: int, b: int) -> float:
    return a / b


def allocate(mebibytes: int) -> int:
    return len(bytearray(mebibytes << 20))


def hold_image_and_fail(path: Path) -> None:
    image = pyvips.Image.new_from_file(str(path)).copy_memory()
    raise ValueError(image.width)


def crash() -> None:
    ctypes.string_at(0)


def peak_memory() -> int:
    """Returns the largest resident size so far in bytes. (getrusage would include that of the
    parent at the fork.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def limits() -> dict[str, int]:
    return {
        "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
        "oom_score": int(Path("/proc/self/oom_score_adj").read_text()),
        "nice": os.nice(0),
        "default_term": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
    }


def load_with_libvips(path: Path) -> int:
    return int(pyvips.Image.new_from_file(str(path)).width)
