"""Every form of the allowed types gives either the picture in its own colours, or a refusal that
names the form."""

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.imaging import (
    Facts,
    ImageRejected,
    ImagingPool,
    Preset,
    Reason,
    gif,
    inspect,
    make_variants,
)
from shared.imaging.child import nothing_unforeseen
from shared.imaging.decode import load_scaled
from tests.shared.imaging import pictures
from tests.shared.imaging.tiffs import Page, coded, page, samples, tiff

GREY, RGB, CMYK, YCBCR, LAB = 1, 2, 5, 6, 8
HALF = 32768
TILE = bytes(64 * 64 * 3)
NOISE = [bytes((n * 7 + i * 31) % 256 for i in range(600)) for n in range(4)]

READ: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "grey, 16 bits": (samples(200 * 257, letter="H", photometric=GREY), (200, 200, 200)),
    "grey, 32 bits": (samples(200 * 16843009, letter="I", photometric=GREY), (200, 200, 200)),
    "grey, 32 bits, white is zero": (
        samples(55 * 16843009, letter="I", photometric=0),
        (200, 200, 200),
    ),
    "grey, floating-point": (samples(0.75, letter="f", photometric=GREY), (191, 191, 191)),
    "grey, half floating-point": (samples(0.75, letter="e", photometric=GREY), (191, 191, 191)),
    "grey, a little above white": (samples(1.05, letter="f", photometric=GREY), (255, 255, 255)),
    "grey with transparency": (
        samples(200, 128, photometric=GREY, extra=(2,)),
        (200, 200, 200, 128),
    ),
    "grey with two masks": (samples(200, 1, 2, photometric=GREY, extra=(0, 0)), (200, 200, 200)),
    "RGB, 16 bits": (samples(200 * 257, 60 * 257, 20 * 257, letter="H"), (200, 60, 20)),
    "RGB, 32 bits": (
        samples(200 * 16843009, 60 * 16843009, 20 * 16843009, letter="I"),
        (200, 60, 20),
    ),
    "RGB, floating-point": (samples(0.8, 0.25, 0.1, letter="f"), (204, 64, 25)),
    "RGB with a saved selection": (samples(200, 60, 20, 0, extra=(0,)), (200, 60, 20)),
    "RGB with two saved selections": (samples(200, 60, 20, 0, 9, extra=(0, 0)), (200, 60, 20)),
    "RGB with a sample of which nothing is said": (samples(200, 60, 20, 0), (200, 60, 20)),
    "RGB with transparency": (samples(200, 60, 20, 128, extra=(2,)), (200, 60, 20, 128)),
    "RGB with transparency and a selection": (
        samples(200, 60, 20, 128, 9, extra=(2, 0)),
        (200, 60, 20, 128),
    ),
    "RGB with a selection and transparency": (
        samples(200, 60, 20, 9, 128, extra=(0, 2)),
        (200, 60, 20, 128),
    ),
    "RGB, transparency multiplied in": (samples(100, 30, 10, 128, extra=(1,)), (199, 59, 19, 128)),
    "RGB, floating-point, multiplied in": (
        samples(0.4, 0.125, 0.05, 0.5, letter="f", extra=(1,)),
        (204, 64, 25, 128),
    ),
    "CMYK": (samples(0, 200, 200, 0, photometric=CMYK), (237, 81, 69)),
    "CMYK with a selection": (
        samples(0, 200, 200, 0, 9, photometric=CMYK, extra=(0,)),
        (237, 81, 69),
    ),
    "CMYK, 16 bits, with transparency": (
        samples(0, 51400, 51400, 0, HALF, letter="H", photometric=CMYK, extra=(2,)),
        (237, 81, 69, 128),
    ),
    "Lab, 16 bits": (samples(32896, 15360, 10240, letter="H", photometric=LAB), (218, 61, 55)),
}


@pytest.mark.parametrize("name", READ)
async def test_a_picture_keeps_its_colours_and_only_declared_transparency(
    pool: ImagingPool, tmp_path: Path, name: str
) -> None:
    content, expected = READ[name]
    (tmp_path / "file").write_bytes(content)
    facts = await pool.run(inspect, tmp_path / "file", "image/tiff")
    assert facts.has_alpha == (len(expected) == 4)
    (variant,) = await pool.run(
        make_variants, tmp_path / "file", (Preset("p", 64, 64, "png"),), tmp_path
    )
    assert load_scaled(variant.path, 64, 64)(9, 9) == pytest.approx(expected, abs=2)


def bytes_of_jpeg(marker: int, bits: int = 8, components: int = 3) -> bytes:
    """Returns the head of a JPEG that declares the rest to be of this kind."""
    frame = struct.pack(">BHHB", bits, 16, 16, components) + b"\1\x11\0" * components
    return b"\xff\xd8\xff" + struct.pack(">BH", marker, len(frame) + 2) + frame + b"\xff\xd9"


def avif(**options: int) -> bytes:
    return bytes(pictures.textured(64, 48).heifsave_buffer(compression="av1", effort=0, **options))


def raw_of_a_camera() -> bytes:
    sensor = Page(64, 32, (bytes(4096),), {258: (16,), 262: (32803,), 277: (1,)})
    preview = page(9, 9, 9)
    return tiff(Page(32, 16, preview.data, preview.tags | {254: (1,)}, below=(sensor,)))


REFUSED: dict[str, tuple[str, bytes, str]] = {
    **{
        name: ("image/tiff", coded(number, *NOISE, photometric=RGB), name)
        for name, number in (
            ("compression old-style JPEG", 6),
            ("compression LZMA", 34925),
            ("compression Zstandard", 50000),
            ("compression JPEG 2000", 34712),
            ("compression LERC", 34887),
            ("compression JPEG XL", 50002),
            ("compression JBIG", 34661),
            ("compression PixarLog", 32909),
            ("compression number 12345", 12345),
        )
    },
    **{
        name: (
            "image/tiff",
            samples(*values, letter=letter, photometric=photometric, extra=extra),
            name,
        )
        for name, values, letter, photometric, extra in (
            ("signed grey", (9,), "b", GREY, ()),
            ("signed grey samples", (9,), "h", GREY, ()),
            ("signed RGB", (9, 9, 9), "i", RGB, ()),
            ("64-bit floating-point", (0.5,), "d", GREY, ()),
            ("samples from 0 to 200", (200, 0, 0), "f", RGB, ()),
            ("samples from -3 to -3", (-3,), "f", GREY, ()),
            ("samples from inf to inf", (float("inf"),), "f", GREY, ()),
            ("floating-point samples", (float("nan"),), "f", GREY, ()),
            ("floating-point grey", (0.5,), "f", 0, ()),
            ("transparency that is multiplied", (0.2, 0.5), "f", GREY, (1,)),
            ("more than one transparency", (9, 9, 9, 9, 9), "B", RGB, (2, 2)),
            ("inks other", (9, 9, 9), "B", CMYK, ()),
            ("samples of YCbCr", (9, 9, 9, 9), "B", YCBCR, (0,)),
            ("8-bit unsigned Lab", (9, 9, 9), "B", LAB, ()),
            ("ICC Lab", (9, 9, 9), "B", 9, ()),
            ("LogLuv", (9, 9, 9), "B", 32845, ()),
            ("photometric interpretation 77", (9,), "B", 77, ()),
        )
    },
    "12-bit unsigned": (
        "image/tiff",
        coded(1, bytes(20000), photometric=GREY, count=1, t258=(12,)),
        "12-bit unsigned",
    ),
    "complex": (
        "image/tiff",
        coded(1, bytes(99000), photometric=GREY, count=1, t258=(64,), t339=(6,)),
        "complex",
    ),
    "separate planes": ("image/tiff", coded(1, *[TILE] * 4, t284=(2,)), "tiles in separate planes"),
    "different samples": (
        "image/tiff",
        coded(1, TILE, t258=(5, 6, 5)),
        "samples of different kinds",
    ),
    "raw": ("image/tiff", raw_of_a_camera(), "camera's raw file"),
    "a preview first": (
        "image/tiff",
        tiff(Page(8, 8, (bytes(192),), page(9, 9, 9).tags | {254: (1,)}), page(9, 9, 9)),
        "preview of a larger picture",
    ),
    "a larger picture below": (
        "image/tiff",
        tiff(Page(8, 8, (bytes(192),), page(9, 9, 9).tags, below=(page(9, 9, 9),))),
        "preview of a larger picture",
    ),
    "a later page": (
        "image/tiff",
        tiff(page(9, 9, 9), page(9, letter="h", photometric=GREY)),
        "on page 2",
    ),
    "arithmetic JPEG": ("image/jpeg", bytes_of_jpeg(0xC9), "arithmetic"),
    "lossless JPEG": ("image/jpeg", bytes_of_jpeg(0xC3), "lossless"),
    "JPEG-LS": ("image/jpeg", bytes_of_jpeg(0xF7), "JPEG-LS"),
    "hierarchical JPEG": ("image/jpeg", bytes_of_jpeg(0xC5), "hierarchical"),
    "JPEG of 12 bits": ("image/jpeg", bytes_of_jpeg(0xC1, bits=12), "12 bits"),
    "JPEG of two components": ("image/jpeg", bytes_of_jpeg(0xC0, components=2), "2 components"),
    "animated AVIF": ("image/avif", avif().replace(b"mif1", b"avis", 1), "animated AVIF"),
    "AVIF of tiles": (
        "image/avif",
        re.sub(b"(infe.{8})av01", rb"\1grid", avif()),
        "put together from tiles",
    ),
    "AVIF of HEVC": (
        "image/avif",
        re.sub(b"(infe.{8})av01", rb"\1hvc1", avif()),
        "coded with HEVC",
    ),
}


async def error_of(pool: ImagingPool, path: Path, content: bytes, mime: str) -> ImageRejected:
    path.write_bytes(content)
    with pytest.raises(ImageRejected) as caught:
        await pool.run(inspect, path, mime)
    return caught.value


@pytest.mark.parametrize("name", REFUSED)
async def test_a_form_that_cannot_be_read_is_refused_by_its_name(
    pool: ImagingPool, tmp_path: Path, name: str
) -> None:
    mime, content, words = REFUSED[name]
    error = await error_of(pool, tmp_path / "file", content, mime)

    assert (error.reason, words in error.message) == (
        Reason.NOT_SUPPORTED,
        True,
    ), error.message
    assert "damaged" not in error.message and error.message.endswith(
        (" send that.", "WebP or GIF.", "or TIFF.")
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + bytes(16), "BigTIFF"),
        (b"8BPS\0\1" + bytes(30), "Photoshop document"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(30), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(30), "JPEG 2000"),
        (b"v/1\1" + bytes(30), "OpenEXR"),
        (b"BM" + bytes(90), "a BMP"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(30), "raw file (CR2)"),
        (struct.pack(">I", 24) + b"ftypcrx \0\0\0\1crx isom", "raw file (CR3)"),
        (b"P6\n1 1\n255\nabc", "Netpbm"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (bytes(128) + b"DICM" + bytes(30), "DICOM"),
    ],
)
async def test_a_well_known_type_that_is_not_accepted_is_called_by_its_name(
    pool: ImagingPool, tmp_path: Path, content: bytes, words: str
) -> None:
    error = await error_of(pool, tmp_path / "file", content, "image/tiff")
    assert (error.reason, words in error.message) == (
        Reason.TYPE_NOT_ALLOWED,
        True,
    ), error.message
    assert re.search("Export|Save|Develop", error.message)


def jpeg(**options: object) -> bytes:
    return bytes(pictures.textured(96, 64).jpegsave_buffer(**options))


def scans(content: bytes, count: int) -> bytes:
    """Returns a JPEG with only its first scans, and its end."""
    starts = [*(found.start() for found in re.finditer(b"\xff\xda", content)), len(content) - 2]
    return content[: starts[count]] + content[-2:]


def cut_gif() -> bytes:
    """Returns a GIF whose one frame has less data than pixels, with its end."""
    content = bytes(pictures.textured(96, 96).gifsave_buffer())
    [frame] = [block for block in gif.blocks(content) if block.label < 0]
    half = content[frame.start : frame.start + 256 * 10]
    return content[: frame.start] + half + b"\0;"


def cut_png(content: bytes) -> bytes:
    """Returns a PNG with half of its coded pixels and a checksum that fits."""
    at = content.index(b"IDAT")
    half = content[at + 4 : at + 4 + int.from_bytes(content[at - 4 : at], "big") // 2]
    return content[: at - 4] + pictures.chunk(b"IDAT", half) + pictures.chunk(b"IEND", b"")


def tiled(compression: str) -> bytes:
    image = pictures.textured(128, 128)
    return bytes(
        image.tiffsave_buffer(compression=compression, tile=True, tile_width=64, tile_height=64)
    )


def spoilt(content: bytes, where: int, with_what: bytes) -> bytes:
    return content[:where] + with_what + content[where + len(with_what) :]


DEFLATED = zlib.compress(bytes(96 * 128 * 3))
HALVES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "JPEG, an end too soon": ("image/jpeg", lambda: jpeg()[:2000] + b"\xff\xd9"),
    "JPEG, no end": ("image/jpeg", lambda: jpeg()[:-2]),
    "JPEG, only the first scan": ("image/jpeg", lambda: scans(jpeg(interlace=True), 1)),
    "JPEG, details of the colours missing": ("image/jpeg", lambda: scans(jpeg(interlace=True), 4)),
    "JPEG, the last scan missing": ("image/jpeg", lambda: scans(jpeg(interlace=True), -2)),
    "JPEG, an interval left out": (
        "image/jpeg",
        lambda: re.sub(
            b"\xff\xd1.*?(?=\xff\xd2)", b"", jpeg(restart_interval=6), count=1, flags=re.DOTALL
        ),
    ),
    "GIF, a frame cut": ("image/gif", cut_gif),
    "GIF, no end": ("image/gif", lambda: bytes(pictures.textured(96, 96).gifsave_buffer())[:-1]),
    "PNG, cut": ("image/png", lambda: cut_png(pictures.png())),
    "PNG, no end": ("image/png", lambda: pictures.png()[:-12]),
    "TIFF, a tile of noise": ("image/tiff", lambda: coded(5, *NOISE)),
    "TIFF, an LZW tile spoilt": ("image/tiff", lambda: spoilt(tiled("lzw"), 9000, b"\xff" * 400)),
    "TIFF, a JPEG tile spoilt": (
        "image/tiff",
        lambda: spoilt(tiled("jpeg"), 1200, b"\xff\xd9" * 9),
    ),
    "TIFF, a deflated strip spoilt at its end": (
        "image/tiff",
        lambda: coded(8, DEFLATED[:-4] + b"spot"),
    ),
    "TIFF, a tile too short": ("image/tiff", lambda: coded(1, TILE, TILE[:-9], TILE, TILE)),
    "TIFF, an empty tile": ("image/tiff", lambda: coded(1, TILE, b"", TILE, TILE)),
    "TIFF, tiles missing": ("image/tiff", lambda: coded(1, TILE, TILE)),
    "TIFF, an empty strip": ("image/tiff", lambda: coded(1, b"")),
    "TIFF, a strip too short": ("image/tiff", lambda: coded(1, bytes(96 * 128 * 3 - 5))),
    "TIFF, a strip in the file's head": (
        "image/tiff",
        lambda: coded(1, bytes(96 * 128 * 3), t273=(0,)),
    ),
    "TIFF, a fax that ends early": (
        "image/tiff",
        lambda: coded(4, bytes(99), photometric=0, count=1, t258=(1,)),
    ),
}


@pytest.mark.parametrize("name", HALVES)
async def test_what_was_not_decoded_whole_is_never_accepted(
    pool: ImagingPool, tmp_path: Path, name: str
) -> None:
    mime, make = HALVES[name]
    assert (await error_of(pool, tmp_path / "file", make(), mime)).reason is Reason.CORRUPT


WHOLE: dict[str, Callable[[], bytes]] = {
    "interlaced JPEG": lambda: jpeg(interlace=True),
    "grey JPEG": lambda: bytes(pictures.plain(96, 64, 120).jpegsave_buffer(interlace=True)),
    "JPEG with restarts": lambda: jpeg(restart_interval=2),
    "JPEG with something behind it": lambda: jpeg() + bytes(999),
    "JPEG with an unknown version": lambda: jpeg().replace(b"JFIF\0\1\1", b"JFIF\0\7\1"),
    "interlaced GIF": lambda: bytes(pictures.textured(96, 64).gifsave_buffer(interlace=True)),
    "GIF with transparency": lambda: bytes(pictures.plain(96, 64, 9, 8, 7, 0).gifsave_buffer()),
    "GIF of small frames": lambda: pictures.animation(7, 40, ".gif"),
    "TIFF in deflated strips": lambda: coded(8, DEFLATED),
    "TIFF with a deflated strip of more than it needs": lambda: coded(
        8, zlib.compress(bytes(96 * 128 * 3 + 999))
    ),
    "TIFF with unknown tags": lambda: coded(1, bytes(96 * 128 * 3), t65000=(7,), t50341=(1,)),
    "TIFF in JPEG tiles": lambda: tiled("jpeg"),
    "TIFF of a fax": lambda: bytes(
        (pictures.textured(96, 64)[0] > 128).tiffsave_buffer(compression="ccittfax4", bitdepth=1)
    ),
    "AVIF of 12 bits": lambda: avif(bitdepth=12),
}


@pytest.mark.parametrize("name", WHOLE)
async def test_a_whole_picture_is_not_suspected(
    pool: ImagingPool, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_bytes(WHOLE[name]())
    assert isinstance(await pool.run(inspect, tmp_path / "file"), Facts)


async def test_variants_are_of_the_picture_that_was_verified(
    pool: ImagingPool, tmp_path: Path
) -> None:
    """They must not show a smaller picture that is stored beside it with other content."""
    smaller = tuple(
        Page(size, size, (bytes(colour) * size * size,), page(9, 9, 9).tags | {254: (1,)})
        for size, colour in ((200, (30, 200, 30)), (100, (30, 30, 200)))
    )
    red = Page(400, 400, (bytes((200, 30, 30)) * 160_000,), page(9, 9, 9).tags, below=smaller)
    (tmp_path / "file").write_bytes(tiff(red))
    presets = [Preset(str(size), size, size, "png") for size in (90, 190, 390, 800)]
    facts = await pool.run(inspect, tmp_path / "file")
    assert (facts.width, facts.height) == (400, 400)
    assert facts.measures is not None and facts.measures.colours[0].hex == "#c81e1e"

    variants = await pool.run(make_variants, tmp_path / "file", presets, tmp_path)
    assert [variant.width for variant in variants] == [90, 190, 390, 400]
    for variant in variants:
        assert load_scaled(variant.path, 800, 800)(5, 5) == pytest.approx((200, 30, 30), abs=2)


@nothing_unforeseen("tried")
def stumble() -> None:
    raise ValueError("zip() argument 2 is shorter than argument 1")


async def test_what_nobody_foresaw_is_a_refusal_that_says_so(pool: ImagingPool) -> None:
    with pytest.raises(ImageRejected, match="ValueError while it was tried") as caught:
        await pool.run(stumble)
    assert caught.value.reason is Reason.NOT_SUPPORTED
