"""Where a picture comes from is read, kept, shown and passed on; where it was taken is not."""

import json
from typing import Any

import filetype
import grpc
import pytest
import pyvips
from atelier.assets.v1 import asset_pb2, provenance_pb2, provenance_pb2_grpc, variant_pb2

from shared.imaging.source_type import packet
from tests import calls
from tests.assets import flows
from tests.shared.imaging import located, pictures, signing
from tests.suite import Client, Suite, browser

PUBLIC = asset_pb2.VISIBILITY_PUBLIC
IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
PICTURE = flows.jpeg(96, 64)


async def store_of(client: Client, asset_id: str) -> Any:
    stub = client.stub(provenance_pb2_grpc.ProvenanceServiceStub)
    answer = await stub.GetManifestStore(provenance_pb2.GetManifestStoreRequest(asset_id=asset_id))
    return json.loads(answer.manifest_store)


def with_xmp(xmp: str) -> bytes:
    image = pictures.textured(120, 90).copy()
    image.set_type(pyvips.GValue.gstr_type, "exif-ifd3-GPSLatitude", "52/1 31/1 12/1")
    image.set_type(pyvips.GValue.blob_type, "xmp-data", xmp.encode())
    return bytes(image.jpegsave_buffer(Q=90))


async def contents_of_variants(client: Client, asset_id: str) -> dict[str, bytes]:
    async with browser() as http:
        variants = await flows.variants_of(client, asset_id)
        return {name: (await http.get(variant.url)).content for name, variant in variants.items()}


async def test_credentials_that_come_with_a_picture_are_kept_and_shown(
    suite: Suite, ada: Client
) -> None:
    asset = await flows.upload(ada, signing.signed(PICTURE))
    shown = asset.content_credentials
    assert shown.state == asset_pb2.CREDENTIALS_STATE_VALID
    assert (shown.claim_generator, shown.signer, shown.signer_name) == (
        "Test Camera 1.2",
        signing.SIGNER,
        signing.SIGNER_NAME,
    )
    assert list(shown.problems) == ["signingCredential.untrusted"] and shown.manifest_kept
    assert shown.digital_source_type == asset.digital_source_type == "digitalCapture"
    assert (await flows.get(ada, asset.id)).content_credentials == shown

    store = await store_of(ada, asset.id)
    assert "canary-note" in json.dumps(store["manifests"][store["active_manifest"]])


async def test_others_see_of_public_credentials_what_names_no_person(
    suite: Suite, ada: Client, caller: Any
) -> None:
    public = await flows.upload(ada, signing.signed(PICTURE), visibility=PUBLIC)
    bob = caller()

    shown = (await flows.get(bob, public.id)).content_credentials
    assert shown.signer == signing.SIGNER and shown.digital_source_type == "digitalCapture"
    assert shown.signer_name == "" and signing.SIGNER_NAME not in str(
        await flows.get(bob, public.id)
    )
    for client, asset_id in ((bob, public.id), (ada, (await flows.upload(ada, PICTURE)).id)):
        await calls.refused(store_of(client, asset_id), grpc.StatusCode.NOT_FOUND)


async def test_credentials_that_do_not_hold_are_shown_as_such_and_not_believed(
    suite: Suite, ada: Client
) -> None:
    plain = bytes(
        pictures.textured(96, 64).write_to_buffer(".tif")
    )  # any byte of which may differ without a format error
    generated = signing.signed(plain, "image/tiff", source_type=f"{IPTC}trainedAlgorithmicMedia")

    asset = await flows.upload(ada, signing.tampered(generated, plain), mime_type="image/tiff")
    assert asset.state == asset_pb2.ASSET_STATE_READY
    assert asset.content_credentials.state == asset_pb2.CREDENTIALS_STATE_INVALID
    assert "assertion.dataHash.mismatch" in asset.content_credentials.problems
    assert (
        asset.content_credentials.digital_source_type == "trainedAlgorithmicMedia"
        and not asset.digital_source_type
    )


async def test_an_operator_says_whose_signatures_are_trusted(
    own_suite: Suite, tmp_path: Any
) -> None:
    anchors = tmp_path / "anchors.pem"
    anchors.write_text(signing.trust_anchor())
    own_suite.overrides["c2pa_trust_anchors"] = anchors
    await own_suite.serve("assets")
    asset = await flows.upload(own_suite.client("ada"), signing.signed(PICTURE))
    assert asset.content_credentials.state == asset_pb2.CREDENTIALS_STATE_TRUSTED
    assert not asset.content_credentials.problems


async def test_text_of_a_manifest_is_only_text(suite: Suite, ada: Client) -> None:
    nasty = 'x\u202egpj\u0007<b>"%s"\ud83d\ude00'.encode("utf-16", "surrogatepass").decode("utf-16")
    asset = await flows.upload(ada, signing.signed(PICTURE, generator=nasty))
    assert asset.content_credentials.claim_generator == 'xgpj<b>"%s"\U0001f600 1.2'


async def test_what_a_model_made_says_so_in_every_variant(suite: Suite, ada: Client) -> None:
    provenance = asset_pb2.Provenance(
        model="local", model_version="1", digital_source_type="algorithmicMedia"
    )
    asset = await flows.made_by_a_service(
        suite, ada.subject, PICTURE, kind=asset_pb2.ASSET_KIND_GENERATED, provenance=provenance
    )
    assert asset.digital_source_type == asset.provenance.digital_source_type == "algorithmicMedia"

    await flows.variants(ada).RegenerateVariants(
        variant_pb2.RegenerateVariantsRequest(asset_id=asset.id)
    )
    made = await contents_of_variants(ada, asset.id)
    assert len(made) == 4
    for name, content in made.items():
        assert pyvips.Image.new_from_buffer(content, "").get("xmp-data") == packet(
            "algorithmicMedia"
        ), name


async def test_what_the_files_xmp_says_is_handed_on_and_its_places_are_not(
    suite: Suite, ada: Client
) -> None:
    xmp = (
        '<x:xmpmeta exif:GPSLatitude="52,31N" photoshop:City="Hidden"'
        f' Iptc4xmpExt:DigitalSourceType="{IPTC}print"/>'
    )
    asset = await flows.upload(ada, with_xmp(xmp))
    assert asset.digital_source_type == "print"
    for name, content in (await contents_of_variants(ada, asset.id)).items():
        assert pyvips.Image.new_from_buffer(content, "").get("xmp-data") == packet("print"), name
        assert not any(mark in content for mark in (b"GPS", b"Hidden", b"Exif")), name

    signed = await flows.upload(ada, signing.signed(with_xmp(xmp)))
    assert signed.digital_source_type == "digitalCapture", (
        "what is signed counts for more than what isn't"
    )


async def test_a_source_type_outside_the_vocabulary_is_refused(suite: Suite, ada: Client) -> None:
    provenance = asset_pb2.Provenance(model="local", digital_source_type="magic")
    made = flows.made_by_a_service(
        suite, ada.subject, PICTURE, kind=asset_pb2.ASSET_KIND_SKETCH, provenance=provenance
    )
    refusal = await calls.refused(made, grpc.StatusCode.INVALID_ARGUMENT)
    assert refusal.fields == ["head.declaration.provenance.digital_source_type"]


@pytest.mark.parametrize(
    ("suffix", "mime_type"),
    [(".png", "image/png"), (".webp", "image/webp"), (".avif", "image/avif")],
)
async def test_every_image_has_its_facts(
    suite: Suite, ada: Client, suffix: str, mime_type: str
) -> None:
    half = pictures.plain(60, 80, 255, 255, 255, 200).join(
        pictures.plain(60, 80, 0, 0, 0, 200), "horizontal"
    )
    asset = await flows.upload(ada, bytes(half.write_to_buffer(suffix)), mime_type=mime_type)
    facts = asset.facts
    assert (facts.frames, facts.has_alpha) == (1, True)
    assert facts.clipped_shadows == pytest.approx(0.5, abs=0.05)
    assert facts.clipped_highlights == pytest.approx(0.5, abs=0.05)
    assert facts.placeholder and len(facts.dominant_colours) == 2 and 0 < facts.exposure < 1

    film = await flows.upload(ada, pictures.animation(5, 40, ".gif"), mime_type="image/gif")
    assert film.facts.frames == 5
    assert not (facts.has_location or film.facts.has_location)


@pytest.mark.parametrize(
    "name", ["jpeg: exif", "png: raw profile exif", "tiff: exif, second page", "avif: xmp"]
)
async def test_an_original_that_says_where_it_was_taken_is_told_of(
    suite: Suite, ada: Client, name: str
) -> None:
    data = located.LOCATED[name]
    asset = await flows.upload(ada, data, mime_type=filetype.guess_mime(data))
    assert asset.facts.has_location


async def test_originals_that_say_where_they_were_taken_are_refused_where_that_is_set(
    own_suite: Suite,
) -> None:
    own_suite.overrides["refuse_locations"] = True
    await own_suite.serve("assets")
    ada = own_suite.client("ada")

    for name in ("jpeg: exif, the second segment", "gif: xmp", "tiff: iptc"):
        data = located.LOCATED[name]
        refusal = await calls.refused(
            flows.upload(ada, data, mime_type=filetype.guess_mime(data)),
            grpc.StatusCode.FAILED_PRECONDITION,
        )
        assert (refusal.reason, refusal.metadata["rejection"]) == (
            "UPLOAD_REJECTED",
            "HAS_LOCATION",
        )
        kept = own_suite.storage.root.rglob(f"{refusal.metadata['asset_id']}/original/*")
        assert not [path for path in kept if path.is_file()]
    assert (await flows.upload(ada, PICTURE)).state == asset_pb2.ASSET_STATE_READY
