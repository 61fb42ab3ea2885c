"""Calls between services: their owner, their deadline, and how a refusal is passed on."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc, upload_pb2
from google.rpc import error_details_pb2

from shared.rpc import auth, calls
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError, Reason
from tests.assets import flows
from tests.calls import holding
from tests.suite import Suite

NOBODYS = "01890000-0000-7000-8000-000000000000"


@pytest.fixture
async def peers(suite: Suite) -> AsyncIterator[Peers]:
    await suite.serve("assets")
    auth.enter(calls.owner_identity("user:ada"))
    made = Peers(suite.settings("conversions", "app"), "conversions")
    yield made
    await made.close()


async def error_of(call: object) -> DomainError:
    with pytest.raises(DomainError) as caught:
        await call  # type: ignore[misc]
    return caught.value


def declared() -> upload_pb2.UploadDeclaration:
    return upload_pb2.UploadDeclaration(
        kind=asset_pb2.ASSET_KIND_RESULT,
        file_name="a.jpg",
        mime_type="image/jpeg",
        provenance=asset_pb2.Provenance(model="local"),
    )


async def test_bytes_go_to_assets_and_come_back_for_the_owner(
    suite: Suite, peers: Peers, tmp_path: Path
) -> None:
    auth.enter(calls.owner_identity("user:ada"))
    source = tmp_path / "a.jpg"
    source.write_bytes(flows.jpeg(2000, 1500))
    asset = await peers.upload(declared(), source, request_id="row/result")
    again = await peers.upload(declared(), source, request_id="row/result")
    assert (asset.owner, asset.state, again.id) == (
        "user:ada",
        asset_pb2.ASSET_STATE_READY,
        asset.id,
    )

    head = await peers.download(asset.id, tmp_path / "b.jpg")
    assert (tmp_path / "b.jpg").read_bytes() == source.read_bytes()
    assert (head.mime_type, head.sha256) == (
        "image/jpeg",
        hashlib.sha256(source.read_bytes()).hexdigest(),
    )

    auth.enter(calls.owner_identity("user:eve"))
    assert (
        await error_of(peers.download(asset.id, tmp_path / "c.jpg"))
    ).reason == Reason.ERROR_REASON_NOT_FOUND


async def test_a_refusal_comes_through_with_its_reason_text_and_details(peers: Peers) -> None:
    auth.enter(calls.owner_identity("user:ada"))
    assets = peers.stub(asset_pb2_grpc.AssetServiceStub)
    missing = await error_of(assets.GetAsset(asset_pb2.GetAssetRequest(asset_id=NOBODYS)))
    assert missing.reason == Reason.ERROR_REASON_NOT_FOUND and NOBODYS in missing.text

    [detail] = missing.details
    assert isinstance(detail, error_details_pb2.ResourceInfo) and detail.resource_name == NOBODYS
    malformed = await error_of(assets.GetAsset(asset_pb2.GetAssetRequest(asset_id="x")))
    [detail] = malformed.details
    assert (
        isinstance(detail, error_details_pb2.BadRequest)
        and detail.field_violations[0].field == "asset_id"
    )

    update = asset_pb2.UpdateAssetRequest(asset_id=NOBODYS, update_mask={"paths": ["free"]})
    assert (
        await error_of(assets.UpdateAsset(update))
    ).reason == Reason.ERROR_REASON_ROLE_NOT_ALLOWED


async def test_a_key_that_the_callee_does_not_trust_is_our_fault_not_the_callers(
    suite: Suite, peers: Peers
) -> None:
    suite.overrides["service_key_file"] = suite.keys.directory / "stranger.jwk"
    auth.enter(calls.owner_identity("user:ada"))
    stranger = Peers(suite.settings("conversions", "app"), "conversions")
    assets = stranger.stub(asset_pb2_grpc.AssetServiceStub)
    fault = await error_of(assets.ListAssets(asset_pb2.ListAssetsRequest()))
    await stranger.close()
    assert fault.reason == Reason.ERROR_REASON_INTERNAL


async def test_a_callee_gets_less_time_than_is_left(suite: Suite, peers: Peers) -> None:
    auth.enter(calls.owner_identity("user:ada"))
    assets = peers.stub(asset_pb2_grpc.AssetServiceStub)
    calls.set_deadline(0.5)
    left = calls.time_left()
    assert left is not None and left < 0.5
    with holding(suite, "LOCK TABLE assets.assets IN ACCESS EXCLUSIVE MODE", None):
        late = await error_of(assets.ListAssets(asset_pb2.ListAssetsRequest()))
    assert late.reason == Reason.ERROR_REASON_DEADLINE


async def test_a_callee_that_is_away_is_unavailable_with_a_time_to_come_back(
    suite: Suite, peers: Peers
) -> None:
    auth.enter(calls.owner_identity("user:ada"))
    await suite.stop("assets")
    away = await error_of(
        peers.stub(asset_pb2_grpc.AssetServiceStub).ListAssets(asset_pb2.ListAssetsRequest())
    )
    assert away.reason == Reason.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert isinstance(away.details[0], error_details_pb2.RetryInfo)


async def test_a_service_without_a_key_does_not_start(suite: Suite) -> None:
    suite.overrides["service_key_file"] = None
    with pytest.raises(ValueError, match="ATELIER_SERVICE_KEY_FILE"):
        Peers(suite.settings("conversions", "app"), "conversions")


@pytest.mark.parametrize(
    ("owner", "role"),
    [
        ("user:ada", "user"),
        ("vendor:acme", "vendor"),
        ("anonymous:x7", "anonymous"),
        ("odd", "user"),
    ],
)
def test_a_job_acts_in_the_role_of_its_rows_owner(owner: str, role: str) -> None:
    identity = calls.owner_identity(owner)
    assert (identity.owner, identity.role, identity.service) == (owner, role, None)
