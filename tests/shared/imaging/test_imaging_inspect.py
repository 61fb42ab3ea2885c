"""What `inspect` says about honest pictures is true, comparable and the same every time."""

import base64
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pyvips

from shared.imaging import Facts, ImagingPool, Measures, inspect
from shared.imaging.placeholder import thumbhash
from tests.shared.imaging import pictures


async def facts_of(pool: ImagingPool, path: Path, image: Any, **options: object) -> Facts:
    image.write_to_file(str(path), **options)
    return await pool.run(inspect, path)


async def measures_of(pool: ImagingPool, directory: Path, image: Any) -> Measures:
    facts = await facts_of(pool, directory / "measured.png", image)
    assert facts.measures is not None
    return facts.measures


@pytest.mark.parametrize(
    ("suffix", "mime"),
    [
        (".jpg", "image/jpeg"),
        (".png", "image/png"),
        (".webp", "image/webp"),
        (".avif", "image/avif"),
        (".gif", "image/gif"),
        (".tif", "image/tiff"),
    ],
)
async def test_every_allowed_type_is_recognised(
    pool: ImagingPool, tmp_path: Path, suffix: str, mime: str
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(pictures.textured(90, 60).write_to_buffer(suffix))

    facts = await pool.run(inspect, path, mime)
    assert (facts.kind, facts.mime_type, facts.width, facts.height, facts.pages) == (
        "image",
        mime,
        90,
        60,
        1,
    )
    assert facts.size == path.stat().st_size


@pytest.mark.parametrize(
    "claim", [None, "", "application/octet-stream", "IMAGE/JPG", "image/jpeg; charset=binary"]
)
async def test_a_claim_may_be_missing_or_spelt_differently(
    pool: ImagingPool, tmp_path: Path, claim: str | None
) -> None:
    (tmp_path / "picture").write_bytes(pictures.jpeg())
    assert (await pool.run(inspect, tmp_path / "picture", claim)).mime_type == "image/jpeg"


PROMPT = (
    b'{"nodes": ["<iframe src=x></iframe>", "<script>alert(1)</script>"]} a mug with the words'
    b" <html > on it, <?php ?> <!doctype html>"
)


def png_text() -> bytes:
    chunk = b"tEXtparameters\0" + PROMPT
    made = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return pictures.png()[:33] + made + pictures.png()[33:]


def gif_comment() -> bytes:
    made = pictures.animation(2, 16, ".gif")
    return made[:-1] + b"!\xfe" + bytes([len(PROMPT)]) + PROMPT + b"\0;"


def with_xmp(suffix: str) -> bytes:
    image = pictures.quadrants(64, 48).copy()
    image.set_type(pyvips.GValue.blob_type, "xmp-data", b"<x:xmpmeta>" + PROMPT + b"</x:xmpmeta>")
    return bytes(image.write_to_buffer(suffix))


SPEAKING: dict[str, Callable[[], bytes]] = {
    "png": png_text,
    "jpeg": lambda: pictures.with_comment(pictures.jpeg(), PROMPT),
    "jpeg, in its second picture": lambda: (
        pictures.jpeg() + pictures.with_comment(pictures.jpeg(), PROMPT)
    ),
    "gif": gif_comment,
    **{
        f"{suffix} in xmp": partial(with_xmp, suffix)
        for suffix in (".jpg", ".webp", ".avif", ".tif")
    },
}


@pytest.mark.parametrize("name", SPEAKING)
async def test_text_within_a_picture_may_speak_of_tags(
    pool: ImagingPool, tmp_path: Path, name: str
) -> None:
    """A prompt, a workflow or a caption is served as part of the picture, and nothing reads it as a
    web page."""
    content = SPEAKING[name]()
    assert PROMPT[:20] in content
    (tmp_path / "x").write_bytes(content)
    assert (await pool.run(inspect, tmp_path / "x")).kind == "image"


@pytest.mark.parametrize("before", [b"\r\n\r\n", b"\xef\xbb\xbf", b"\n" * 500])
async def test_a_pdf_may_begin_with_blanks(
    pool: ImagingPool, tmp_path: Path, before: bytes
) -> None:
    (tmp_path / "x").write_bytes(before + pictures.pdf())
    assert (await pool.run(inspect, tmp_path / "x", "application/pdf")).kind == "pdf"


async def test_a_pdf_has_pages_and_nothing_else(pool: ImagingPool, tmp_path: Path) -> None:
    (tmp_path / "three.pdf").write_bytes(pictures.pdf(pages=3))
    facts = await pool.run(inspect, tmp_path / "three.pdf", "application/pdf")
    assert facts == Facts(kind="pdf", mime_type="application/pdf", size=facts.size, pages=3)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
async def test_frames_are_counted(pool: ImagingPool, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "film").write_bytes(pictures.animation(7, 40, suffix))
    facts = await pool.run(inspect, tmp_path / "film")
    assert (facts.pages, facts.width, facts.height) == (7, 40, 40)


async def test_alpha_profile_and_orientation_are_told(pool: ImagingPool, tmp_path: Path) -> None:
    upright = await facts_of(pool, tmp_path / "a.png", pictures.plain(30, 20, 9, 9, 9, 99))
    assert (upright.has_alpha, upright.has_icc_profile, upright.orientation) == (True, False, 1)
    turned = pictures.plain(30, 20, 9, 9, 9).copy()
    turned.set_type(pyvips.GValue.gint_type, "orientation", 6)
    sideways = await facts_of(pool, tmp_path / "b.jpg", turned, profile="p3")
    assert (sideways.has_alpha, sideways.has_icc_profile, sideways.orientation) == (False, True, 6)
    assert (sideways.width, sideways.height) == (20, 30)


async def test_facts_are_the_same_every_time(pool: ImagingPool, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(pictures.jpeg(300, 200))
    assert await pool.run(inspect, path) == await pool.run(inspect, path)


@pytest.mark.parametrize(
    ("width", "height", "transparent", "expected"),
    [
        (5, 9, True, "HjmGIwYnlLC3KLmDfwJqmnB3gIiHeHc="),
        (64, 40, False, "HwgCBIAUOHZUQ1RRgFKvy75/sw=="),
        (1, 1, False, "AAgCBwAAAAAAAAAAAAAAAAAAAAAAAAAA"),
        (100, 3, True, "XviBCYIHZAJHJnjtDaVWX0QEV0dniIg="),
    ],
)
async def test_placeholders_are_those_of_the_reference_encoder(
    width: int, height: int, transparent: bool, expected: str
) -> None:
    """The expected values are from version 0.1.1 of the npm package `thumbhash`."""
    pixels = bytearray()
    for y in range(height):
        for x in range(width):
            alpha = (x * 29 + y * 17) % 256 if transparent else 255
            pixels += bytes(
                ((x * 37 + y * 11) % 256, (x * 5 + y * 53) % 256, (x * x + y * y * 3) % 256, alpha)
            )
    assert base64.b64encode(thumbhash(width, height, bytes(pixels))).decode() == expected


async def test_dominant_colours_come_with_their_shares(pool: ImagingPool, tmp_path: Path) -> None:
    image = pictures.plain(300, 200, 200, 20, 20).join(
        pictures.plain(100, 200, 20, 20, 200), "horizontal"
    )
    red, blue = (await measures_of(pool, tmp_path, image)).colours
    assert (red.hex, blue.hex) == ("#c81414", "#1414c8")
    assert red.share == pytest.approx(0.75, abs=0.03)
    assert blue.share == pytest.approx(0.25, abs=0.03)


async def test_what_is_transparent_counts_for_nothing(pool: ImagingPool, tmp_path: Path) -> None:
    hidden = pictures.plain(100, 200, 255, 255, 255, 0)
    image = pictures.plain(100, 200, 20, 120, 20, 255).join(hidden, "horizontal")
    measures = await measures_of(pool, tmp_path, image)
    assert [colour.hex for colour in measures.colours] == ["#147814"]
    assert measures.clipped_highlights == 0
    nothing = await measures_of(pool, tmp_path, hidden)
    assert (nothing.colours, nothing.exposure, nothing.clipped_highlights) == ((), 0, 0)


@pytest.mark.parametrize(("left", "top"), [(60, 40), (420, 280)])
async def test_the_focal_point_is_where_the_subject_is(
    pool: ImagingPool, tmp_path: Path, left: int, top: int
) -> None:
    subject = pictures.textured(80, 80)
    image = pictures.plain(600, 400, 120, 120, 120).insert(subject, left, top)
    measures = await measures_of(pool, tmp_path, image)
    assert measures.focal_x == pytest.approx((left + 40) / 600, abs=0.12)
    assert measures.focal_y == pytest.approx((top + 40) / 400, abs=0.12)


async def test_sharpness_falls_with_blur_and_not_with_size(
    pool: ImagingPool, tmp_path: Path
) -> None:
    detail = pictures.textured(100, 75).resize(
        8, kernel="nearest"
    )  # 800 x 600, edges 8 pixels apart
    sharp = (await measures_of(pool, tmp_path, detail)).sharpness
    soft = (await measures_of(pool, tmp_path, detail.gaussblur(4))).sharpness
    softer = (await measures_of(pool, tmp_path, detail.gaussblur(10))).sharpness
    assert sharp > 0.6 > 0.3 > soft > softer
    assert (
        await measures_of(pool, tmp_path, detail.resize(2, kernel="nearest"))
    ).sharpness == pytest.approx(sharp, abs=0.05)

    flat = await measures_of(pool, tmp_path, pictures.plain(80, 60, 90, 90, 90))
    assert flat.sharpness == 0


@pytest.mark.parametrize(
    ("grey", "exposure", "shadows", "highlights"),
    [(0, 0.0, 1, 0), (119, 0.5, 0, 0), (255, 1.0, 0, 1)],
)
async def test_exposure_is_lightness_and_clipping_is_told(
    pool: ImagingPool, tmp_path: Path, grey: int, exposure: float, shadows: int, highlights: int
) -> None:
    measures = await measures_of(pool, tmp_path, pictures.plain(80, 60, grey))
    assert measures.exposure == pytest.approx(exposure, abs=0.01)
    assert (measures.clipped_shadows, measures.clipped_highlights) == (shadows, highlights)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3000, 1), (1, 3000), (16_000, 40)])
async def test_odd_shapes_can_be_measured(
    pool: ImagingPool, tmp_path: Path, width: int, height: int
) -> None:
    facts = await facts_of(pool, tmp_path / "odd.png", pictures.plain(width, height, 10, 20, 30))
    assert (facts.width, facts.height) == (width, height)
    assert facts.measures is not None and facts.measures.colours[0].hex == "#0a141e"


@pytest.mark.parametrize("length", [0x3C, 0x93C, 0x3C08, 0x3C58, 0x3CFF])
def test_a_segment_whose_length_spells_a_bracket_is_no_markup(tmp_path: Path, length: int) -> None:
    picture = pictures.jpeg()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"
    segment = b"\xff\xe1" + struct.pack(">H", length) + exif.ljust(length - 2, b"\0")
    path = tmp_path / "phone.jpg"
    path.write_bytes(picture[:2] + segment + picture[2:])
    assert inspect(path, "image/jpeg").mime_type == "image/jpeg"


@pytest.mark.parametrize("comment", ["scan 2024 5", "Cafe 12 abc", "x 1 0"])
def test_a_comment_that_reads_like_packed_metadata_is_a_comment(
    tmp_path: Path, comment: str
) -> None:
    chunk = b"tEXtComment\0" + comment.encode()
    whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    picture = pictures.png()
    path = tmp_path / "scan.png"
    path.write_bytes(picture[:33] + whole + picture[33:])
    assert inspect(path, "image/png").mime_type == "image/png"
