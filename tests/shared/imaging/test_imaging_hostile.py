"""Files that are broken, mislabelled or hostile are refused with the exact reason, and the pool
survives them."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.imaging import (
    DEFAULT_LIMITS,
    DEFAULT_PRESETS,
    Facts,
    ImageRejected,
    ImagingPool,
    Limits,
    Reason,
    inspect,
    make_variants,
)
from tests.shared.imaging import pictures


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes, share: float) -> bytes:
    """Returns the content with 16 bytes changed, at `share` of its length."""
    at = int(len(content) * share)
    return content[:at] + bytes(byte ^ 0xFF for byte in content[at : at + 16]) + content[at + 16 :]


def textured(suffix: str, **options: object) -> bytes:
    return bytes(pictures.textured(96, 96).write_to_buffer(suffix, **options))


FILES: dict[str, tuple[str, Callable[[], bytes], Reason]] = {
    "empty": ("image/png", bytes, Reason.EMPTY),
    "text": ("image/png", lambda: b"just words", Reason.TYPE_NOT_ALLOWED),
    "bmp": ("image/bmp", lambda: b"BM" + bytes(100), Reason.TYPE_NOT_ALLOWED),
    "zip": ("image/png", lambda: pictures.with_archive(b""), Reason.TYPE_NOT_ALLOWED),
    "gzip": ("image/png", lambda: b"\x1f\x8b\x08" + bytes(50), Reason.TYPE_NOT_ALLOWED),
    "audio": (
        "image/png",
        lambda: struct.pack(">I", 16) + b"ftypM4A \0\0\0\0",
        Reason.TYPE_NOT_ALLOWED,
    ),
    "svg": (
        "image/jpeg",
        lambda: b'<?xml version="1.0"?><svg><script/></svg>',
        Reason.ACTIVE_CONTENT,
    ),
    "svg after blanks": ("image/jpeg", lambda: b"\xef\xbb\xbf \n\t<svg/>", Reason.ACTIVE_CONTENT),
    "svg in utf-16": ("image/jpeg", lambda: "<svg/>".encode("utf-16"), Reason.ACTIVE_CONTENT),
    "html": ("image/png", lambda: b"<!DOCTYPE html>" + pictures.HTML, Reason.ACTIVE_CONTENT),
    "elf": ("image/jpeg", lambda: b"\x7fELF\x02\x01\x01" + bytes(57), Reason.EXECUTABLE),
    "exe": ("image/jpeg", lambda: b"MZ\x90\x00" + bytes(60), Reason.EXECUTABLE),
    "shell": ("image/jpeg", lambda: b"#!/bin/sh\nrm -rf /\n", Reason.EXECUTABLE),
    "mp4": (
        "image/jpeg",
        lambda: struct.pack(">I", 24) + b"ftypisom\0\0\2\0isommp42",
        Reason.VIDEO_NOT_SUPPORTED,
    ),
    "mov": (
        "video/quicktime",
        lambda: struct.pack(">I", 20) + b"ftypqt  \0\0\0\0qt  ",
        Reason.VIDEO_NOT_SUPPORTED,
    ),
    "webm": (
        "video/webm",
        lambda: b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm" + bytes(50),
        Reason.VIDEO_NOT_SUPPORTED,
    ),
    "heic": ("image/heic", lambda: pictures.HEIC, Reason.HEIC_NOT_SUPPORTED),
    "heic, cut": ("image/heic", lambda: pictures.HEIC[:60], Reason.HEIC_NOT_SUPPORTED),
    "heic named avif": ("image/avif", lambda: pictures.HEIC, Reason.TYPE_MISMATCH),
    "heic in an avif wrapper": (
        "image/avif",
        lambda: pictures.HEIC.replace(b"ftypheic", b"ftypavif"),
        Reason.NOT_SUPPORTED,
    ),
    "endless brand list": (
        "image/avif",
        lambda: b"\xff\xff\xff\xf0ftypmp42" + bytes(8),
        Reason.VIDEO_NOT_SUPPORTED,
    ),
    "png named jpeg": ("image/jpeg", pictures.png, Reason.TYPE_MISMATCH),
    "jpeg named pdf": ("application/pdf", pictures.jpeg, Reason.TYPE_MISMATCH),
    "only magic bytes": ("image/jpeg", lambda: b"\xff\xd8\xff\xe0", Reason.CORRUPT),
    "jpeg, half": ("image/jpeg", lambda: half(pictures.jpeg()), Reason.CORRUPT),
    "jpeg, end missing": ("image/jpeg", lambda: pictures.jpeg(512, 512)[:-200], Reason.CORRUPT),
    "progressive jpeg, half": (
        "image/jpeg",
        lambda: half(textured(".jpg", interlace=True)),
        Reason.CORRUPT,
    ),
    "png, half": ("image/png", lambda: half(pictures.png()), Reason.CORRUPT),
    "png, wrong checksum": ("image/png", lambda: flipped(pictures.png(), 0.5), Reason.CORRUPT),
    "webp, half": ("image/webp", lambda: half(textured(".webp")), Reason.CORRUPT),
    "webp lossless, half": (
        "image/webp",
        lambda: half(textured(".webp", lossless=True)),
        Reason.CORRUPT,
    ),
    "animated webp, half": (
        "image/webp",
        lambda: half(pictures.animation(9, 40, ".webp")),
        Reason.CORRUPT,
    ),
    "avif, half": ("image/avif", lambda: half(textured(".avif", effort=0)), Reason.CORRUPT),
    "gif, half": ("image/gif", lambda: half(textured(".gif")), Reason.CORRUPT),
    "tiff, half": (
        "image/tiff",
        lambda: half(textured(".tif", compression="deflate")),
        Reason.CORRUPT,
    ),
    "gif, damage in a later frame": (
        "image/gif",
        lambda: flipped(pictures.noisy_pages(4, 64, ".gif"), 0.8),
        Reason.CORRUPT,
    ),
    "tiff, damage in a later page": (
        "image/tiff",
        lambda: flipped(pictures.noisy_pages(4, 64, ".tif", compression="deflate"), 0.8),
        Reason.CORRUPT,
    ),
    "png bomb": ("image/png", pictures.png_bomb, Reason.TOO_MANY_PIXELS),
    "png of one column": ("image/png", pictures.thread_png, Reason.TOO_MANY_PIXELS),
    "gif of 5,000 frames": ("image/gif", pictures.long_gif, Reason.TOO_MANY_FRAMES),
    "tiff with an enormous tile": ("image/tiff", pictures.big_tile_tiff, Reason.CORRUPT),
    "jpeg, then html": (
        "image/jpeg",
        lambda: pictures.jpeg() + pictures.HTML,
        Reason.ACTIVE_CONTENT,
    ),
    "two jpegs, then html": (
        "image/jpeg",
        lambda: pictures.jpeg() * 2 + pictures.HTML,
        Reason.ACTIVE_CONTENT,
    ),
    "png, then html": ("image/png", lambda: pictures.png() + pictures.HTML, Reason.ACTIVE_CONTENT),
    "gif, then html": (
        "image/gif",
        lambda: pictures.animation(3, 16, ".gif") + pictures.HTML,
        Reason.ACTIVE_CONTENT,
    ),
    "webp, then php": (
        "image/webp",
        lambda: pictures.animation(2, 16, ".webp") + b"<?php system($_GET[0]);",
        Reason.ACTIVE_CONTENT,
    ),
    "avif, then html": (
        "image/avif",
        lambda: pictures.quadrants(64, 48).write_to_buffer(".avif") + pictures.HTML,
        Reason.ACTIVE_CONTENT,
    ),
    "gif and javascript": ("image/gif", pictures.gif_script, Reason.ACTIVE_CONTENT),
    "jpeg and javascript": (
        "image/jpeg",
        lambda: b"\xff\xd8\xff\xe0/*" + bytes(0x2F2A - 2) + pictures.jpeg()[2:] + b"*/=alert(1)",
        Reason.ACTIVE_CONTENT,
    ),
    "png and zip": (
        "image/png",
        lambda: pictures.with_archive(pictures.png()),
        Reason.TYPE_NOT_ALLOWED,
    ),
    "pdf, half": ("application/pdf", lambda: half(pictures.pdf()), Reason.CORRUPT),
    "pdf with a broken cross-reference": (
        "application/pdf",
        lambda: pictures.pdf().replace(b"startxref\n", b"startxref\n9"),
        Reason.CORRUPT,
    ),
    "encrypted pdf": ("application/pdf", lambda: pictures.pdf(password="secret"), Reason.ENCRYPTED),
    "pdf with one object twice": (
        "application/pdf",
        lambda: pictures.pdf().replace(b"\n4 0 obj", b"\n1 0 obj"),
        Reason.CORRUPT,
    ),
    "only pdf magic": ("application/pdf", lambda: b"%PDF-1.7\n", Reason.CORRUPT),
}


async def reason_for(
    pool: ImagingPool, path: Path, content: bytes, declared: str, limits: Limits
) -> Reason:
    path.write_bytes(content)
    with pytest.raises(ImageRejected) as caught:
        await pool.run(inspect, path, declared, limits)
    assert str(path.parent) not in caught.value.message, "a path of ours leaks"
    assert caught.value.message.endswith("."), "the message is a sentence that says what to do"
    return caught.value.reason


@pytest.mark.parametrize("name", FILES)
async def test_a_bad_file_is_refused_with_its_reason(
    pool: ImagingPool, tmp_path: Path, name: str
) -> None:
    declared, make, reason = FILES[name]
    child = await pool.run(pictures.process_id)
    # The name doesn't matter: only the content counts.
    assert (
        await reason_for(pool, tmp_path / "picture.jpg", make(), declared, DEFAULT_LIMITS) is reason
    )
    assert await pool.run(pictures.process_id) == child


@pytest.mark.parametrize(
    ("limits", "make", "declared", "reason", "named"),
    [
        (Limits(image_bytes=1000), pictures.jpeg, "image/jpeg", Reason.TOO_MANY_BYTES, "1,000"),
        (Limits(pdf_bytes=500), pictures.pdf, "application/pdf", Reason.TOO_MANY_BYTES, "500"),
        (Limits(pixels=3000), pictures.jpeg, "image/jpeg", Reason.TOO_MANY_PIXELS, "megapixels"),
        (
            Limits(pixels=10_000),
            lambda: pictures.animation(9, 40, ".gif"),
            "image/gif",
            Reason.TOO_MANY_PIXELS,
            "all frames",
        ),
        (Limits(side=63), pictures.jpeg, "image/jpeg", Reason.TOO_MANY_PIXELS, "at most 63"),
        (
            Limits(side=63),
            lambda: pictures.noisy_pages(2, 64, ".tif", compression="deflate"),
            "image/tiff",
            Reason.TOO_MANY_PIXELS,
            "longer side",
        ),
        (
            Limits(frames=8),
            lambda: pictures.animation(9, 40, ".webp"),
            "image/webp",
            Reason.TOO_MANY_FRAMES,
            "8",
        ),
        (Limits(pdf_pages=2), pictures.pdf, "application/pdf", Reason.TOO_MANY_FRAMES, "2"),
    ],
)
async def test_a_file_over_a_limit_is_told_the_limit(
    pool: ImagingPool,
    tmp_path: Path,
    limits: Limits,
    make: Callable[[], bytes],
    declared: str,
    reason: Reason,
    named: str,
) -> None:
    path = tmp_path / "file"
    assert await reason_for(pool, path, make(), declared, limits) is reason
    with pytest.raises(ImageRejected, match=named):
        await pool.run(inspect, path, declared, limits)
    assert await pool.run(inspect, path, declared)


async def test_a_missing_file_is_not_the_senders_fault(pool: ImagingPool, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await pool.run(inspect, tmp_path / "nothing.png", "image/png")


@pytest.mark.long
async def test_random_damage_ends_in_facts_or_a_refusal(pool: ImagingPool, tmp_path: Path) -> None:
    chance = random.Random(4)
    wholes = [textured(suffix) for suffix in (".jpg", ".png", ".webp", ".gif", ".tif")] + [
        pictures.pdf()
    ]

    for number in range(30):
        content = bytearray(wholes[number % len(wholes)])
        for _ in range(chance.randint(1, 8)):
            content[chance.randrange(12, len(content))] = chance.randrange(256)
        (tmp_path / "damaged").write_bytes(content)
        try:
            facts = await pool.run(inspect, tmp_path / "damaged", None)
        except ImageRejected:
            continue

        assert isinstance(facts, Facts)


@pytest.mark.long
async def test_fifty_megapixels_stay_within_the_memory_limit(tmp_path: Path) -> None:
    pool = ImagingPool(workers=1)
    path = tmp_path / "large.jpg"
    pictures.plain(10_000, 5_000, 200, 100, 50).jpegsave(
        str(path), interlace=True, subsample_mode="off"
    )
    facts = await pool.run(inspect, path, "image/jpeg")
    await pool.run(make_variants, path, DEFAULT_PRESETS[:1], tmp_path)
    peak = await pool.run(pictures.peak_memory)

    await pool.close()
    assert (facts.width, facts.height) == (10_000, 5_000)
    assert peak <= 512 << 20
