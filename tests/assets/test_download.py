"""Downloads; and clients without files find their way by health and reflection."""

import hashlib
from collections.abc import Callable

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests import calls
from tests.assets import flows
from tests.shared.imaging import pictures
from tests.suite import Client, Suite, browser

DATA = flows.jpeg(64, 48)


async def download(
    client: Client, asset_id: str, variant: str = ""
) -> tuple[asset_pb2.DownloadHead, list[bytes]]:
    stream = flows.assets(client).DownloadAsset(
        asset_pb2.DownloadAssetRequest(asset_id=asset_id, variant=variant)
    )
    parts = [part async for part in stream]
    assert [part.WhichOneof("part") for part in parts] == ["head", *["chunk"] * (len(parts) - 1)]
    return parts[0].head, [part.chunk for part in parts[1:]]


@pytest.mark.long
async def test_the_head_says_what_the_bytes_are(ada: Client) -> None:
    data = bytes(pictures.textured(1500, 1200).jpegsave_buffer(Q=90))
    asset = await flows.upload(ada, data)
    head, chunks = await download(ada, asset.id)
    assert b"".join(chunks) == data and len(chunks) > 2 and max(map(len, chunks)) <= 256 * 1024
    assert (head.mime_type, head.size_bytes, head.sha256) == (
        "image/jpeg",
        len(data),
        hashlib.sha256(data).hexdigest(),
    )

    await flows.variants_of(ada, asset.id)
    head, chunks = await download(ada, asset.id, "large")
    assert (head.mime_type, head.sha256) == (
        "image/webp",
        hashlib.sha256(b"".join(chunks)).hexdigest(),
    )


async def test_what_is_not_there_is_not_found(ada: Client, caller: Callable[..., Client]) -> None:
    asset = await flows.upload(ada, DATA)
    for client, asset_id, variant in (
        (ada, flows.request_id(), ""),
        (caller(), asset.id, ""),
        (caller(), asset.id, "thumb"),
    ):
        request = asset_pb2.DownloadAssetRequest(asset_id=asset_id, variant=variant)
        await calls.refused(flows.assets(client).DownloadAsset(request), grpc.StatusCode.NOT_FOUND)


async def test_a_public_asset_is_downloaded_by_anybody(
    ada: Client, caller: Callable[..., Client]
) -> None:
    asset = await flows.upload(ada, DATA, visibility=asset_pb2.VISIBILITY_PUBLIC)
    await flows.variants_of(ada, asset.id)
    assert b"".join((await download(caller("anonymous"), asset.id))[1]) == DATA
    assert (await download(caller("vendor"), asset.id, "thumb"))[0].mime_type == "image/webp"


async def test_bytes_that_are_gone_from_the_store_are_not_found(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    for path in suite.storage.root.rglob(f"{asset.id}/original/*"):
        path.unlink()
    request = asset_pb2.DownloadAssetRequest(asset_id=asset.id)
    await calls.refused(flows.assets(ada).DownloadAsset(request), grpc.StatusCode.NOT_FOUND)


async def test_a_url_shows_pictures_in_place_and_saves_everything_else(ada: Client) -> None:
    pdf = await flows.upload(
        ada, pictures.pdf(), kind=asset_pb2.ASSET_KIND_DOCUMENT, mime_type="application/pdf"
    )
    picture = await flows.upload(ada, DATA)

    async with browser() as http:
        for asset, disposition in ((pdf, "attachment"), (picture, "inline")):
            answer = await http.get(asset.original_url)
            assert answer.headers["content-disposition"].startswith(disposition)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-type"] == asset.mime_type
        part = await http.get(picture.original_url, headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, DATA[10:20])


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_tells_every_service_and_every_file_it_needs(
    suite: Suite, version: str
) -> None:
    channel = suite.client(None).channel("assets")
    services = await calls.reflected_services(channel, version)
    assert {
        "atelier.assets.v1.AssetService",
        "atelier.assets.v1.UploadService",
        "atelier.assets.v1.VariantService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    } <= set(services)
    for service in services:
        answer = await calls.reflect(channel, version, file_containing_symbol=service)
        assert not answer.HasField("error_response"), (
            f"{service}: {answer.error_response.error_message}"
        )

        files = [
            descriptor_pb2.FileDescriptorProto.FromString(f)
            for f in answer.file_descriptor_response.file_descriptor_proto
        ]
        had = {file.name for file in files}
        needed = {imported for file in files for imported in file.dependency}

        while missing := needed - had:
            for name in missing:
                answer = await calls.reflect(channel, version, file_by_filename=name)
                assert not answer.HasField("error_response"), name
                for packed in answer.file_descriptor_response.file_descriptor_proto:
                    file = descriptor_pb2.FileDescriptorProto.FromString(packed)
                    had.add(file.name)
                    needed |= set(file.dependency)


async def test_reflection_says_not_found_of_what_is_not_there(suite: Suite) -> None:
    channel = suite.client(None).channel("assets")
    answer = await calls.reflect(channel, "v1", file_containing_symbol="no.such.Thing")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.parametrize(
    "name", ["", "atelier.assets.v1.AssetService", "atelier.assets.v1.UploadService"]
)
async def test_health_is_told_per_service_and_overall(suite: Suite, name: str) -> None:
    stub = health_pb2_grpc.HealthStub(suite.client(None).channel("assets"))
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_knows_no_other_service(suite: Suite) -> None:
    stub = health_pb2_grpc.HealthStub(suite.client(None).channel("assets"))
    await calls.refused(
        stub.Check(health_pb2.HealthCheckRequest(service="nonsense")), grpc.StatusCode.NOT_FOUND
    )
