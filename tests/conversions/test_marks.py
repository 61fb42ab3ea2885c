"""VerifyMark says what marks a picture and what that rests on; GetDisclosure, what has to be said
of it."""

import asyncio
import io
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import generation_pb2, job_pb2, marking_pb2_grpc
from atelier.conversions.v1 import marking_pb2 as pb
from PIL import Image, ImageChops

from services.conversions import disclosure
from services.conversions.disclosure import Source
from shared.imaging.certificates import make_untrusted
from tests.assets import flows as assets
from tests.assets.flows import request_id
from tests.calls import refused
from tests.conversions import flows, model_servers
from tests.conversions import local_pictures as pictures
from tests.conversions.test_marking import configure, identity, manifests, stored
from tests.conversions.test_providers import try_on
from tests.shared.imaging import signing
from tests.suite import Client, Suite

TRAINED = "trainedAlgorithmicMedia"
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
async def ada(suite: Suite) -> Client:
    await flows.start(suite, working=False)
    return suite.client("ada")


def marking(client: Client) -> Any:
    return client.stub(marking_pb2_grpc.MarkingServiceStub)


async def mark(client: Client, **of: Any) -> pb.VerifyMarkResponse:
    answer: pb.VerifyMarkResponse = await marking(client).VerifyMark(pb.VerifyMarkRequest(**of))
    return answer


async def disclosed(client: Client, asset_id: str) -> pb.GetDisclosureResponse:
    request = pb.GetDisclosureRequest(asset_id=asset_id)
    answer: pb.GetDisclosureResponse = await marking(client).GetDisclosure(request)
    return answer


async def test_a_manifest_is_told_from_a_broken_one_in_an_asset_and_in_bytes(
    ada: Client, tmp_path: Path
) -> None:
    plain = pictures.garment(tmp_path / "cloth.jpg").read_bytes()
    signed = signing.signed(plain)
    broken = signing.tampered(signed, plain)
    states = {signed: pb.MARK_STATE_VALID, broken: pb.MARK_STATE_INVALID}

    for content, state in states.items():
        asset = await assets.upload(ada, content, kind=asset_pb2.ASSET_KIND_PRODUCT)
        of_asset = await mark(ada, asset_id=asset.id)
        of_bytes = await mark(ada, content=content)
        for found in (of_asset, of_bytes):
            assert (found.found, found.manifest.state) == (pb.MARK_KIND_MANIFEST, state)
            assert found.manifest.claim_generator == "Test Camera 1.2"
            assert (found.manifest.signer, found.sha256) == (signing.SIGNER, asset.sha256)
        assert of_asset.manifest == of_bytes.manifest
        assert of_bytes.registry_match.asset_id == asset.id
    assert "anybody can make a certificate" in (await mark(ada, content=signed)).rests_on[0]
    assert "assertion.dataHash.mismatch" in (await mark(ada, content=broken)).manifest.problems


async def test_without_a_manifest_the_registry_answers_to_its_owner_alone(
    suite: Suite, ada: Client, tmp_path: Path
) -> None:
    known = pictures.garment(tmp_path / "known.jpg")
    asset_id = await flows.put(ada, known, asset_pb2.ASSET_KIND_PRODUCT)
    unsaid = await mark(ada, content=known.read_bytes())
    assert unsaid.found == pb.MARK_KIND_NOTHING, "an upload alone says nothing of an origin"
    assert unsaid.registry_match.asset_id == asset_id
    assert "nothing was guessed from pixels" in unsaid.rests_on[0]

    await suite.work("conversions")
    made = await flows.generate(ada, prompt="a table", quality="draft")
    _, content = await stored(ada, made.result_asset_id)
    found = await mark(ada, content=content)
    match = found.registry_match
    assert found.found == pb.MARK_KIND_REGISTRY_MATCH
    assert (match.asset_id, match.job_id) == (made.result_asset_id, made.id)
    assert (match.job_kind, match.provider) == (job_pb2.JOB_KIND_GENERATION, "local")
    assert match.digital_source_type == found.stated_source_type == "algorithmicMedia"
    assert (await mark(ada, asset_id=made.result_asset_id)).found == pb.MARK_KIND_REGISTRY_MATCH

    eve = await mark(suite.client("eve"), content=content)
    assert eve.found == pb.MARK_KIND_NOTHING and not eve.HasField("registry_match")
    assert eve.stated_source_type == "algorithmicMedia"
    assert any("anybody can write it" in each for each in eve.rests_on)


async def test_what_is_no_picture_is_refused_by_name(ada: Client) -> None:
    await refused(mark(ada, content=b"hello"), INVALID, "content")
    await refused(mark(ada, content=b"\xff\xd8\xff" + bytes(100)), INVALID, "content")
    await refused(mark(ada, content=b"%PDF-1.4"), INVALID, "content")
    await refused(mark(ada, content=bytes(4_000_001)), INVALID, "content")
    await refused(mark(ada), INVALID, "of")


@pytest.mark.long
async def test_a_try_on_by_a_model_has_to_be_disclosed_and_one_by_local_has_not(
    suite: Suite, tmp_path: Path
) -> None:
    with model_servers.example() as address:
        configure(suite, address, tmp_path)
        await flows.start(suite)
        ada = suite.client("ada")
        worn = await try_on(ada, tmp_path, wait=True)
        scene = await flows.generate(ada, prompt="a harbour")
        on_table = await flows.generate(
            ada, prompt="on a table", reference_asset_ids=[scene.result_asset_id], provider="local"
        )
        sketch = await flows.generate(
            ada,
            task=generation_pb2.GENERATION_TASK_SKETCH,
            source_asset_id=worn.cloth_asset_id,
        )

    found = await disclosed(ada, worn.result_asset_id)
    assert found.duty == pb.DISCLOSURE_DUTY_DISCLOSE and found.marked
    causes = {(each.cause, each.asset_id) for each in found.reasons}
    assert (pb.DISCLOSURE_CAUSE_TRAINED_MODEL, worn.result_asset_id) in causes
    assert (pb.DISCLOSURE_CAUSE_PERSON, worn.user_asset_id) in causes
    assert (pb.DISCLOSURE_CAUSE_PHOTOGRAPH, worn.cloth_asset_id) in causes
    assert found.reasons[0].job_id == worn.id, "the picture itself comes first"

    found = await disclosed(ada, scene.result_asset_id)
    assert (found.duty, found.marked) == (pb.DISCLOSURE_DUTY_MARK, True)
    found = await disclosed(ada, on_table.result_asset_id)
    assert (found.duty, found.marked) == (pb.DISCLOSURE_DUTY_MARK, False)
    assert found.reasons[0].asset_id == scene.result_asset_id, "what it was made from counts"
    found = await disclosed(ada, sketch.result_asset_id)
    assert found.duty == pb.DISCLOSURE_DUTY_NONE_FOUND
    copy = await labelled(ada, worn.result_asset_id)
    of_copy = await flows.generate(
        ada, prompt="a shop", reference_asset_ids=[copy], provider="local"
    )
    found = await disclosed(ada, of_copy.result_asset_id)
    assert found.duty == pb.DISCLOSURE_DUTY_DISCLOSE, "what the copy was made of counts"
    await refused(disclosed(suite.client("eve"), scene.result_asset_id), grpc.StatusCode.NOT_FOUND)

    mine = await mark(ada, asset_id=worn.result_asset_id)
    assert mine.found == pb.MARK_KIND_MANIFEST and mine.registry_match.provider == "grpc"


async def labelled(client: Client, asset_id: str, **fields: Any) -> str:
    values = {"request_id": request_id(), "text": "AI-generated", **fields}
    answer = await marking(client).CreateLabelledPicture(
        pb.CreateLabelledPictureRequest(asset_id=asset_id, **values), timeout=60
    )
    made: str = answer.asset_id
    return made


@pytest.mark.long
async def test_a_labelled_copy_shows_its_label_and_is_signed_with_its_original_as_parent(
    suite: Suite, tmp_path: Path
) -> None:
    identity(suite, tmp_path, *make_untrusted())
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    plain = pictures.garment(tmp_path / "cloth.jpg", width=600).read_bytes()
    theirs = signing.signed(plain, source_type=f"{signing.CAPTURE[:-14]}{TRAINED}")
    original = await assets.upload(ada, theirs, kind=asset_pb2.ASSET_KIND_PRODUCT)
    assert original.digital_source_type == TRAINED
    again = request_id()
    copy = await labelled(ada, original.id, request_id=again, text="Создано ИИ")

    assert await labelled(ada, original.id, request_id=again, text="Создано ИИ") == copy
    at_once = request_id()
    [one, other] = await asyncio.gather(
        *(labelled(ada, original.id, request_id=at_once) for _ in range(2))
    )
    assert one == other, "repeats at once leave one copy"
    [(kept,)] = suite.sql(
        "SELECT count(*) FROM assets.assets WHERE owner = 'user:ada' AND state = 'ready'"
    )
    assert kept == 3
    asset, content = await stored(ada, copy)
    assert (asset.width, asset.height) == (original.width, original.height)
    assert asset.kind == asset_pb2.ASSET_KIND_GENERATED
    assert asset.digital_source_type == TRAINED
    generators = {
        each["claim_generator_info"][0]["name"] for each in manifests(content)["manifests"].values()
    }
    assert generators == {"Atelier", "Test Camera"}
    changed = difference(plain, content)
    width, height = asset.width, asset.height
    assert changed[0] > 0.3 * width and changed[1] > 0.8 * height, "only the corner has changed"
    found = await disclosed(ada, copy)
    assert found.duty == pb.DISCLOSURE_DUTY_MARK and found.marked
    assert {each.asset_id for each in found.reasons} == {copy, original.id}

    corner = pb.LABEL_CORNER_TOP_LEFT
    _, content = await stored(ada, await labelled(ada, original.id, corner=corner))
    left, top, right, bottom = difference(plain, content)
    assert left < 0.1 * width and top < 0.1 * height
    assert right < 0.7 * width and bottom < 0.2 * height


async def test_a_label_that_nobody_could_read_is_refused(ada: Client, tmp_path: Path) -> None:
    small = await assets.upload(ada, assets.jpeg(64, 48), kind=asset_pb2.ASSET_KIND_PRODUCT)
    large = await flows.put(
        ada, pictures.garment(tmp_path / "cloth.jpg", width=600), asset_pb2.ASSET_KIND_PRODUCT
    )
    await refused(labelled(ada, small.id), INVALID, "text", "64 x 48")
    await refused(labelled(ada, large, text="\U0001f9e0\u4eba"), INVALID, "text", "人")
    await refused(labelled(ada, large, text="two\nlines"), INVALID, "text")
    await refused(labelled(ada, large, text="  "), INVALID, "text")
    for hidden in ("\u200b", "\u00ad\u200b", "\u2060"):
        await refused(labelled(ada, large, text=hidden), INVALID, "text", "can be seen")


def difference(one: bytes, other: bytes) -> tuple[int, int, int, int]:
    """Returns the box of the pixels that differ clearly: left, top, right, bottom."""
    first, second = (Image.open(io.BytesIO(each)).convert("L") for each in (one, other))
    box = ImageChops.difference(first, second).point(lambda each: 255 * (each > 60)).getbbox()
    assert box
    return box


def test_duties_follow_from_origins() -> None:
    scene = Source("scene", source_type=TRAINED, made_here=True)
    photo = Source("photo", source_type="digitalCapture")
    person = Source("person", roles=frozenset({"user"}))
    drawn = Source("drawn", source_type="algorithmicMedia", made_here=True)
    cases: list[tuple[Source, list[Source], str, list[str]]] = [
        (scene, [], disclosure.MARK, [disclosure.TRAINED_MODEL]),
        (
            scene,
            [photo],
            disclosure.DISCLOSE,
            [disclosure.TRAINED_MODEL, disclosure.PHOTOGRAPH],
        ),
        (
            scene,
            [person],
            disclosure.DISCLOSE,
            [disclosure.TRAINED_MODEL, disclosure.ORIGIN_UNKNOWN, disclosure.PERSON],
        ),
        (drawn, [scene], disclosure.MARK, [disclosure.TRAINED_MODEL]),
        (drawn, [photo], disclosure.NONE_FOUND, [disclosure.PHOTOGRAPH]),
        (
            scene,
            [Source("gone", gone=True)],
            disclosure.DISCLOSE,
            [disclosure.TRAINED_MODEL, disclosure.GONE],
        ),
        (Source("upload"), [], disclosure.NONE_FOUND, [disclosure.ORIGIN_UNKNOWN]),
        # An upload whose manifest says so counts like a picture that was made here.
        (Source("upload", source_type=TRAINED), [], disclosure.MARK, [disclosure.TRAINED_MODEL]),
    ]
    for picture, made_from, duty, names in cases:
        found = disclosure.causes(picture, made_from)
        assert [each.cause for each in found] == names, picture
        assert disclosure.duty(found) == duty
        assert all(len(each.text) <= 300 for each in found)
