"""What a trained model made is signed before it is stored, and says so to whoever looks."""

import asyncio
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import c2pa
import pytest
from atelier.assets.v1 import asset_pb2, upload_pb2
from atelier.conversions.v1 import job_pb2

from services.conversions.__main__ import work
from shared.imaging.certificates import make_untrusted
from shared.rpc import auth, calls
from shared.rpc.calls import Peers
from shared.settings import WrongSetting
from tests.assets import flows as assets
from tests.conversions import flows, model_servers
from tests.conversions import local_pictures as pictures
from tests.conversions.model_servers import Scripted, answering, picture, serving
from tests.conversions.test_providers import calls_of, try_on, until_waiting
from tests.shared.imaging import signing
from tests.suite import Client, Suite

pytestmark = pytest.mark.long

TRAINED = "compositeWithTrainedAlgorithmicMedia"
TASKS = {"conversion": "paste", "generation.image": "paste"}


def identity(suite: Suite, directory: Path, chain: bytes, key: bytes) -> None:
    """Sets what pictures are signed with."""
    (directory / "c2pa.pem").write_bytes(chain)
    (directory / "c2pa-key.pem").write_bytes(key)
    suite.overrides |= {
        "c2pa_certificate": directory / "c2pa.pem",
        "c2pa_key": directory / "c2pa-key.pem",
    }


def configure(suite: Suite, address: str, directory: Path) -> None:
    suite.overrides |= {
        "providers": {"conversion": ["grpc"], "generation": ["grpc"]},
        "models_address": address,
        "models_tasks": TASKS,
    }
    identity(suite, directory, *make_untrusted())


async def stored(client: Client, asset_id: str) -> tuple[asset_pb2.Asset, bytes]:
    """Returns an asset and the bytes that are stored."""
    asset = await assets.get(client, asset_id)
    stub = assets.assets(client)
    content = b""
    async for answer in stub.DownloadAsset(asset_pb2.DownloadAssetRequest(asset_id=asset_id)):
        content += answer.chunk
    return asset, content


def manifests(content: bytes, mime_type: str = "image/jpeg") -> dict[str, Any]:
    with c2pa.Reader(mime_type, io.BytesIO(content)) as reader:
        assert reader.get_validation_state() == "Valid"
        store: dict[str, Any] = json.loads(reader.json())
        return store


async def test_what_a_model_made_is_stored_signed_with_its_inputs_and_no_names(
    suite: Suite, tmp_path: Path
) -> None:
    with model_servers.example() as address:
        configure(suite, address, tmp_path)
        await flows.start(suite)
        ada = suite.client("ada")
        worn = await try_on(ada, tmp_path, wait=True)
        made = await flows.generate(ada, prompt="canary harbour", format="png", seed=7)
        again = await flows.generate(ada, prompt="canary harbour", format="png", seed=7)

    assert worn.state == job_pb2.JOB_STATE_COMPLETED, worn.error_message
    asset, content = await stored(ada, worn.result_asset_id)
    assert asset.content_credentials.state == asset_pb2.CREDENTIALS_STATE_VALID
    assert asset.content_credentials.claim_generator == "Atelier 1"
    assert asset.digital_source_type == asset.content_credentials.digital_source_type == TRAINED
    store = manifests(content)
    [active] = store["manifests"].values()
    person = await assets.get(ada, worn.user_asset_id)
    named = [each["instance_id"] for each in active["ingredients"]]
    assert len(named) == 2 and f"sha256:{person.sha256}" in named
    # Ids of a manifest are random and hexadecimal, so that "ada" alone may stand in one.
    for secret in (b"user:ada", b"try-on", worn.id.encode(), worn.user_asset_id.encode()):
        assert secret not in json.dumps(store).encode()

    _, content = await stored(ada, made.result_asset_id)
    [active] = manifests(content, "image/png")["manifests"].values()
    [action] = active["assertions"][0]["data"]["actions"]
    assert action["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert action["softwareAgent"]["name"] == "paste"
    assert "canary" not in json.dumps(active)
    assert again.state == job_pb2.JOB_STATE_COMPLETED, "two signatures of a picture may differ"


async def test_a_providers_manifest_goes_on_as_the_parent(suite: Suite, tmp_path: Path) -> None:
    drawn = pictures.person(tmp_path / "drawn.jpg", width=768).read_bytes()
    theirs = signing.signed(drawn, generator="Their Model")
    async with serving(Scripted(answering(*picture(theirs)))) as server:
        configure(suite, server.address, tmp_path)
        await flows.start(suite)
        ada = suite.client("ada")
        worn = await try_on(ada, tmp_path, wait=True)

    assert worn.state == job_pb2.JOB_STATE_COMPLETED, worn.error_message
    _, content = await stored(ada, worn.result_asset_id)
    store = manifests(content)
    by_name = {
        each["claim_generator_info"][0]["name"]: each for each in store["manifests"].values()
    }
    assert set(by_name) == {"Atelier", "Their Model"}
    [parent] = [
        each for each in by_name["Atelier"]["ingredients"] if each["relationship"] == "parentOf"
    ]
    assert parent["active_manifest"] == by_name["Their Model"]["label"]


async def test_what_local_made_has_the_same_bytes_each_time(suite: Suite, tmp_path: Path) -> None:
    identity(suite, tmp_path, *make_untrusted())
    await flows.start(suite)
    ada = suite.client("ada")
    one = await flows.generate(ada, prompt="a table", quality="draft", seed=3)
    two = await flows.generate(ada, prompt="a table", quality="draft", seed=3)

    first, content = await stored(ada, one.result_asset_id)
    second, _ = await stored(ada, two.result_asset_id)
    assert first.id != second.id and first.sha256 == second.sha256
    assert b"c2pa" not in content
    assert first.digital_source_type == "algorithmicMedia"


async def test_an_attempt_after_a_crash_stores_its_own_signature(
    suite: Suite, tmp_path: Path
) -> None:
    """The attempt before had stored a picture with another signature, and died before the row knew
    of it."""
    with model_servers.example() as address:
        configure(suite, address, tmp_path)
        await flows.start(suite, working=False)
        ada = suite.client("ada")
        waiting = await try_on(ada, tmp_path)
        before = pictures.person(tmp_path / "before.jpg", width=300)
        auth.enter(calls.owner_identity("user:ada"))
        peers = Peers(suite.settings("conversions", "worker"), "conversions")
        declaration = upload_pb2.UploadDeclaration(
            kind=asset_pb2.ASSET_KIND_RESULT, file_name="try-on.jpg", mime_type="image/jpeg"
        )
        request_id = f"conversions/conversions/{waiting.id}/result"
        await peers.upload(declaration, before, request_id=request_id)
        await peers.close()
        await suite.work("conversions")
        worn = await flows.until(ada, waiting.id, job_pb2.JOB_STATE_COMPLETED)
    _, content = await stored(ada, worn.result_asset_id)
    assert content != before.read_bytes() and manifests(content)


async def test_an_expired_certificate_makes_jobs_wait_before_anything_is_paid(
    suite: Suite, tmp_path: Path
) -> None:
    """It expires while the worker runs."""
    soon = datetime.now(UTC) + timedelta(seconds=3)
    async with serving(Scripted(answering())) as server:
        configure(suite, server.address, tmp_path)
        identity(suite, tmp_path, *signing.chain_of(ends=soon))
        await flows.start(suite)
        await asyncio.sleep((soon - datetime.now(UTC)).total_seconds() + 1)
        ada = suite.client("ada")
        waiting = await until_waiting(ada, (await try_on(ada, tmp_path)).id)
    assert waiting.wait.what == "c2pa_certificate"
    assert "the operator has to renew it" in waiting.error_message
    assert not server.started and not await calls_of(ada)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("other key", "is not the key of the first certificate"),
        ("expired", "expired on"),
        ("no purpose", "C2PA doesn't allow to sign with it"),
        ("alone", "need each other"),
    ],
)
async def test_a_certificate_that_can_not_sign_ends_the_start_with_one_line(
    suite: Suite, tmp_path: Path, case: str, words: str
) -> None:
    chain, key = signing.chain_of()
    now = datetime.now(UTC)
    if case == "other key":
        key = make_untrusted()[1]
    elif case == "expired":
        then = now - timedelta(days=3)
        chain, key = signing.chain_of(starts=then - timedelta(days=3), ends=then)
    elif case == "no purpose":
        chain, key = signing.chain_of(purpose=False)
    identity(suite, tmp_path, chain, key)
    if case == "alone":
        suite.overrides["c2pa_key"] = None
    with pytest.raises(WrongSetting, match=words) as problem:
        await work("conversions", suite.settings("conversions", "worker"))
    assert "\n" not in str(problem.value) and "PRIVATE" not in str(problem.value)
