"""Content credentials are read as they are and believed only if they hold. Of XMP, only one word is
read and written."""

import json
import random
import socket
from pathlib import Path

import pytest
import pyvips

from shared.imaging import (
    Credentials,
    ImagingPool,
    Preset,
    inspect,
    make_variants,
    read_credentials,
)
from shared.imaging.source_type import VOCABULARY, packet, read_packet
from tests.shared.imaging import pictures, signing

FORMATS = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/webp": ".webp",
    "image/avif": ".avif",
    "image/gif": ".gif",
    "image/tiff": ".tif",
}
ALL = tuple(Preset(name, 40, 40, name, effort=1) for name in ("webp", "avif", "jpeg", "png"))
IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def picture(suffix: str) -> bytes:
    return bytes(pictures.textured(96, 64).write_to_buffer(suffix))


async def credentials_of(
    pool: ImagingPool, path: Path, content: bytes, mime_type: str = "image/jpeg", anchors: str = ""
) -> Credentials | None:
    path.write_bytes(content)
    return await pool.run(read_credentials, path, mime_type, anchors)


@pytest.mark.long
@pytest.mark.parametrize("mime_type", FORMATS)
async def test_a_manifest_is_read_in_every_format(
    pool: ImagingPool, tmp_path: Path, mime_type: str
) -> None:
    original = picture(FORMATS[mime_type])
    content = signing.signed(original, mime_type)
    read = await credentials_of(pool, tmp_path / "in", content, mime_type)
    assert read is not None
    assert (read.state, read.claim_generator, read.source_type) == (
        "valid",
        "Test Camera 1.2",
        "digitalCapture",
    )
    assert (read.signer, read.signer_name) == (signing.SIGNER, signing.SIGNER_NAME)
    assert read.problems == ("signingCredential.untrusted",)
    assert (
        "canary-note" in read.manifest_store
        and json.loads(read.manifest_store)["validation_state"] == "Valid"
    )

    facts = await pool.run(inspect, tmp_path / "in", mime_type)
    assert (facts.width, facts.height, facts.may_have_manifest) == (96, 64, True)
    changed = await credentials_of(
        pool, tmp_path / "in", signing.tampered(content, original), mime_type
    )
    assert changed is not None and changed.state == "invalid"
    assert any("ash.mismatch" in problem for problem in changed.problems)


async def test_a_signer_that_leads_to_a_trust_anchor_is_trusted(
    pool: ImagingPool, tmp_path: Path
) -> None:
    content = signing.signed(picture(".jpg"))
    read = await credentials_of(pool, tmp_path / "in", content, anchors=signing.trust_anchor())
    assert read is not None and (read.state, read.problems) == ("trusted", ())


async def test_without_a_manifest_there_are_no_credentials(
    pool: ImagingPool, tmp_path: Path
) -> None:
    plain = picture(".jpg")
    assert await credentials_of(pool, tmp_path / "in", plain) is None
    assert not (await pool.run(inspect, tmp_path / "in")).may_have_manifest
    assert (
        await credentials_of(
            pool, tmp_path / "in", pictures.with_comment(plain, b"c2pa manifest? no")
        )
        is None
    )


async def test_a_manifest_elsewhere_is_not_fetched(pool: ImagingPool, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        content = signing.signed(
            picture(".jpg"), remote=f"http://127.0.0.1:{listening.getsockname()[1]}/a.c2pa"
        )
        assert b".c2pa" in content
        assert await credentials_of(pool, tmp_path / "in", content) is None
        with pytest.raises(BlockingIOError):
            listening.accept()


async def test_a_long_manifest_is_summed_up_and_not_kept(pool: ImagingPool, tmp_path: Path) -> None:
    content = signing.signed(picture(".jpg"), note="x" * 100_000, generator="g" * 1000)
    read = await credentials_of(pool, tmp_path / "in", content)
    assert read is not None and (read.state, read.manifest_store) == ("valid", "")
    assert read.claim_generator == "g" * 200


async def test_damaged_manifests_neither_hold_nor_hurt(pool: ImagingPool, tmp_path: Path) -> None:
    content = signing.signed(picture(".png"), "image/png")
    start = content.index(b"caBX")
    length = int.from_bytes(content[start - 4 : start], "big")
    chance = random.Random(11)

    for _ in range(25):
        damaged = bytearray(content)
        for _ in range(8):
            damaged[start + 4 + chance.randrange(length)] ^= 1 << chance.randrange(8)
        read = await credentials_of(pool, tmp_path / "in", bytes(damaged), "image/png")
        assert read is None or read.state in ("invalid", "unreadable"), read
    assert await pool.run(pictures.peak_memory) < 200 << 20, (
        "the library leaves a child room for its next picture"
    )


@pytest.mark.parametrize(
    "stated",
    [
        f'<rdf:Description Iptc4xmpExt:DigitalSourceType="{IPTC}trainedAlgorithmicMedia"/>',
        f"<Iptc4xmpExt:DigitalSourceType>{IPTC}trainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>",
        f"<Iptc4xmpExt:DigitalSourceType rdf:resource='{IPTC}trainedAlgorithmicMedia'/>",
        "<Iptc4xmpExt:DigitalSourceType> trainedAlgorithmicMedia </Iptc4xmpExt:DigitalSourceType>",
    ],
)
def test_every_way_to_write_a_source_type_is_read(stated: str) -> None:
    assert read_packet(stated.encode()) == "trainedAlgorithmicMedia"


@pytest.mark.parametrize(
    "odd", ["", "DigitalSourceType", 'DigitalSourceType="nonsense"', "DigitalSourceType>" * 9999]
)
def test_what_is_no_source_type_is_none(odd: str) -> None:
    assert read_packet(odd.encode()) == ""


def test_a_packet_says_a_word_of_the_vocabulary_only() -> None:
    assert {read_packet(packet(word)) for word in VOCABULARY} == VOCABULARY
    with pytest.raises(ValueError, match="no digital source type"):
        packet('x"/><evil/>')


async def test_variants_say_where_pixels_come_from_and_nothing_else_of_the_original(
    pool: ImagingPool, tmp_path: Path
) -> None:
    image = pictures.textured(120, 90).copy()
    image.set_type(pyvips.GValue.gstr_type, "exif-ifd3-GPSLatitude", "52/1 31/1 12/1")
    xmp = (
        '<x:xmpmeta exif:GPSLatitude="52,31N" photoshop:City="Hidden"'
        f' Iptc4xmpExt:DigitalSourceType="{IPTC}print"/>'
    )
    image.set_type(pyvips.GValue.blob_type, "xmp-data", xmp.encode())
    path = tmp_path / "in.jpg"
    path.write_bytes(signing.signed(bytes(image.jpegsave_buffer(Q=90))))

    facts = await pool.run(inspect, path, "image/jpeg")
    assert facts.source_type == "print"
    for variant in await pool.run(make_variants, path, ALL, tmp_path, facts.source_type):
        content = variant.path.read_bytes()
        written = pyvips.Image.new_from_buffer(content, "")
        assert written.get("xmp-data") == packet("print"), variant.format
        assert not [
            name for name in written.get_fields() if name.startswith(("exif", "icc", "iptc"))
        ], variant.format
        for mark in (b"GPS", b"Hidden", b"c2pa", b"Exif"):
            assert mark not in content, (variant.format, mark)
