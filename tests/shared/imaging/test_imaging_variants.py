"""Variants have the right size and the right colours, and no metadata."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import pyvips

from shared.imaging import (
    DEFAULT_PRESETS,
    ImageRejected,
    ImagingPool,
    Preset,
    Reason,
    Variant,
    make_variants,
)
from shared.imaging.decode import load_scaled
from tests.shared.imaging import pictures

EXACT = (Preset("exact", 64, 64, "png"),)
ALL_FORMATS = (
    Preset("webp", 50, 50, "webp"),
    Preset("avif", 50, 50, "avif", quality=70, effort=1),
    Preset("jpeg", 50, 50, "jpeg"),
    Preset("png", 50, 50, "png"),
)


async def variants_of(
    pool: ImagingPool, path: Path, image: Any, presets: tuple[Preset, ...] = EXACT, **options: Any
) -> list[Variant]:
    image.write_to_file(str(path), **options)
    return await pool.run(make_variants, path, presets, path.parent)


def written(variant: Variant) -> Any:
    return pyvips.Image.new_from_file(
        str(variant.path), revalidate=True
    )  # otherwise libvips returns cached earlier files


def pixel(variant: Variant, x: float = 0.5, y: float = 0.5) -> list[float]:
    image = written(variant)
    return list(image.getpoint(int(x * image.width), int(y * image.height)))


@pytest.mark.long
async def test_default_presets_give_four_files_that_are_what_they_say(
    pool: ImagingPool, tmp_path: Path
) -> None:
    variants = await variants_of(
        pool, tmp_path / "in.jpg", pictures.textured(2000, 1000), DEFAULT_PRESETS
    )

    assert [(v.name, v.mime_type, v.width, v.height) for v in variants] == [
        ("thumb", "image/webp", 256, 128),
        ("small", "image/webp", 800, 400),
        ("large", "image/webp", 1600, 800),
        ("avif", "image/avif", 800, 400),
    ]
    for variant in variants:
        content, image = variant.path.read_bytes(), written(variant)
        assert (image.width, image.height) == (variant.width, variant.height)
        assert (len(content), hashlib.sha256(content).hexdigest()) == (variant.size, variant.sha256)
        assert variant.path.parent == tmp_path and variant.path.suffix == f".{variant.format}"


async def test_the_same_picture_gives_the_same_bytes(pool: ImagingPool, tmp_path: Path) -> None:
    first = await variants_of(pool, tmp_path / "in.png", pictures.textured(90, 70), ALL_FORMATS)
    again = await pool.run(make_variants, tmp_path / "in.png", ALL_FORMATS, tmp_path)
    assert first == again


async def test_nothing_is_enlarged(pool: ImagingPool, tmp_path: Path) -> None:
    variants = await variants_of(
        pool, tmp_path / "in.png", pictures.textured(300, 40), DEFAULT_PRESETS
    )
    assert [(v.width, v.height) for v in variants] == [(256, 34), (300, 40), (300, 40), (300, 40)]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3000, 1), (1, 3000)])
async def test_odd_shapes_keep_at_least_one_pixel(
    pool: ImagingPool, tmp_path: Path, width: int, height: int
) -> None:
    for variant in await variants_of(
        pool, tmp_path / "in.png", pictures.plain(width, height, 9, 8, 7), ALL_FORMATS
    ):
        assert 1 <= variant.width <= 50 and 1 <= variant.height <= 50


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_every_orientation_comes_out_upright(
    pool: ImagingPool, tmp_path: Path, orientation: int
) -> None:
    upright = pictures.quadrants(64, 48)
    transposed = upright.rot90().fliphor()
    stored = {
        1: upright,
        2: upright.fliphor(),
        3: upright.rot180(),
        4: upright.flipver(),
        5: transposed,
        6: upright.rot270(),
        7: transposed.rot180(),
        8: upright.rot90(),
    }[orientation].copy()
    stored.set_type(pyvips.GValue.gint_type, "orientation", orientation)

    (variant,) = await variants_of(pool, tmp_path / "in.jpg", stored, Q=95)
    assert (variant.width, variant.height) == (64, 48)
    for x, y in ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)):
        assert pixel(variant, x, y) == pytest.approx(
            upright.getpoint(int(64 * x), int(48 * y)), abs=12
        )


ADOBE_RGB = pictures.matrix_profile(
    (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457), gamma=2.2
)
DISPLAY_P3 = pictures.matrix_profile(
    (0.51512, 0.24120, -0.00105),
    (0.29198, 0.69225, 0.04189),
    (0.15710, 0.06657, 0.78407),
    gamma=2.2,
)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize(
    ("profile", "stored", "in_srgb"),
    [(ADOBE_RGB, (170, 80, 80), [194, 79, 79]), (DISPLAY_P3, (200, 80, 60), [216, 69, 50])],
)
async def test_wide_gamut_pictures_get_the_same_colours_in_srgb(
    pool: ImagingPool,
    tmp_path: Path,
    suffix: str,
    profile: bytes,
    stored: tuple[int, ...],
    in_srgb: list[int],
) -> None:
    (tmp_path / "profile.icc").write_bytes(profile)
    image = pictures.plain(80, 80, *stored)
    (variant,) = await variants_of(
        pool, tmp_path / f"in{suffix}", image, profile=str(tmp_path / "profile.icc")
    )
    assert pixel(variant) == pytest.approx(in_srgb, abs=6)


@pytest.mark.parametrize("space", ["srgb", "rgb16", "b-w", "grey16"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pixels_without_a_profile_are_those_that_a_conversion_gives(
    tmp_path: Path, space: str, suffix: str
) -> None:
    path = tmp_path / f"in{suffix}"
    pictures.textured(900, 700).colourspace(space).write_to_file(str(path), keep="none")
    converted = pyvips.Image.thumbnail(str(path), 300, height=300, output_profile="srgb")
    assert (load_scaled(path, 300, 300) - converted).abs().max() == 0


@pytest.mark.parametrize("embedded", [True, False])
async def test_cmyk_becomes_srgb(pool: ImagingPool, tmp_path: Path, embedded: bool) -> None:
    image = pictures.plain(80, 80, 180, 60, 50).icc_transform("cmyk", input_profile="srgb")
    assert image.bands == 4
    options: dict[str, Any] = {} if embedded else {"keep": "none"}
    for suffix in (".jpg", ".tif"):
        (variant,) = await variants_of(pool, tmp_path / f"in{suffix}", image, **options)
        assert pixel(variant) == pytest.approx([180, 60, 50], abs=25)


async def test_deep_grey_and_palette_pictures_become_eight_bit_srgb(
    pool: ImagingPool, tmp_path: Path
) -> None:
    colour = pictures.plain(80, 80, 200, 60, 20)
    deep = (colour.cast("ushort") * 257).cast("ushort").copy(interpretation="rgb16")
    deep_grey = (
        (pictures.plain(80, 80, 90).cast("ushort") * 257)
        .cast("ushort")
        .copy(interpretation="grey16")
    )
    cases: list[tuple[Any, str, dict[str, Any], list[int]]] = [
        (deep, "deep.png", {}, [200, 60, 20]),
        (deep, "deep.tif", {}, [200, 60, 20]),
        (deep_grey, "deepgrey.png", {}, [90, 90, 90]),
        (pictures.plain(80, 80, 90), "grey.jpg", {}, [90, 90, 90]),
        (pictures.plain(80, 80, 90, 255), "greyalpha.png", {}, [90, 90, 90, 255]),
        (colour, "palette.png", {"palette": True}, [200, 60, 20]),
        (pictures.plain(80, 80, 255), "bit.png", {"bitdepth": 1}, [255, 255, 255]),
        (colour, "film.gif", {}, [200, 60, 20]),
    ]

    for image, name, options, expected in cases:
        (variant,) = await variants_of(pool, tmp_path / name, image, **options)
        result = written(variant)
        assert (result.format, result.interpretation) == ("uchar", "srgb"), name
        assert pixel(variant)[: len(expected)] == pytest.approx(expected, abs=4), name


async def test_transparency_is_kept_and_becomes_white_in_jpeg(
    pool: ImagingPool, tmp_path: Path
) -> None:
    image = pictures.plain(50, 80, 200, 20, 20, 255).join(
        pictures.plain(50, 80, 20, 20, 200, 0), "horizontal"
    )

    for variant in await variants_of(pool, tmp_path / "in.png", image, ALL_FORMATS):
        seen, hidden = pixel(variant, 0.2), pixel(variant, 0.8)
        assert seen[:3] == pytest.approx([200, 20, 20], abs=10), variant.format
        if variant.format == "jpeg":
            assert hidden == pytest.approx([255, 255, 255], abs=6)
        else:
            assert (seen[3], hidden[3]) == pytest.approx((255, 0), abs=4), variant.format


async def test_no_metadata_survives(pool: ImagingPool, tmp_path: Path) -> None:
    image = pictures.textured(120, 90).copy()
    image.set_type(pyvips.GValue.gstr_type, "exif-ifd0-Make", "SecretCamera")
    image.set_type(pyvips.GValue.gstr_type, "exif-ifd3-GPSLatitude", "52/1 31/1 12/1")
    image.set_type(pyvips.GValue.blob_type, "xmp-data", b"<x:xmpmeta>SecretPlace</x:xmpmeta>")
    variants = await variants_of(pool, tmp_path / "in.jpg", image, ALL_FORMATS, profile="p3")

    original = (tmp_path / "in.jpg").read_bytes()
    assert all(
        mark in original for mark in (b"Exif", b"SecretCamera", b"SecretPlace", b"ICC_PROFILE")
    )
    for variant in variants:
        content, fields = variant.path.read_bytes(), written(variant).get_fields()
        for mark in (
            b"Secret",
            b"GPS",
            b"xmpmeta",
            b"ICC_PROFILE",
            b"ICCP",
            b"iCCP",
            b"acsp",
            b"eXIf",
            b"EXIF",
        ):
            assert mark not in content, variant.format
        assert not {"xmp-data", "icc-profile-data", "exif-ifd3-GPSLatitude"} & set(fields), (
            variant.format
        )


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
async def test_of_an_animation_the_first_frame_is_used(
    pool: ImagingPool, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / "film"
    path.write_bytes(pictures.animation(5, 40, suffix))
    (variant,) = await pool.run(make_variants, path, EXACT, tmp_path)
    assert (variant.width, variant.height) == (40, 40)
    assert pixel(variant)[:3] == pytest.approx([0, 0, 0], abs=6)


async def test_a_pdf_has_no_variants(pool: ImagingPool, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pictures.pdf())
    with pytest.raises(ImageRejected) as caught:
        await pool.run(make_variants, tmp_path / "a.pdf", EXACT, tmp_path)
    assert caught.value.reason is Reason.TYPE_NOT_ALLOWED


async def test_a_place_that_cannot_be_written_is_not_the_pictures_fault(
    pool: ImagingPool, tmp_path: Path
) -> None:
    (tmp_path / "in.png").write_bytes(pictures.png())
    with pytest.raises(FileNotFoundError):
        await pool.run(make_variants, tmp_path / "in.png", EXACT, tmp_path / "missing")


@pytest.mark.parametrize("wrong", [{"width": 0}, {"height": 20_000}, {"quality": 0}])
async def test_a_preset_that_no_encoder_can_do_is_refused_at_once(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="preset odd"):
        Preset(**({"name": "odd", "width": 9, "height": 9, "format": "webp"} | wrong))  # type: ignore[arg-type]
