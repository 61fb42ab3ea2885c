"""Steps of a client of assets, for tests to build on."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
import pyvips
from atelier.assets.v1 import (
    asset_pb2,
    asset_pb2_grpc,
    resumable_pb2,
    resumable_pb2_grpc,
    upload_pb2,
    upload_pb2_grpc,
    variant_pb2,
    variant_pb2_grpc,
)

from tests.suite import Client, Suite, browser


def jpeg(width: int = 640, height: int = 480, seed: int = 1) -> bytes:
    """Returns a small picture with some content; another seed gives another picture."""
    noise = pyvips.Image.perlin(width, height, cell_size=64, seed=seed)
    picture = (
        (noise * 90 + 128)
        .bandjoin([noise * 60 + 140, noise * -80 + 120])
        .cast("uchar")
        .copy(interpretation="srgb")
    )
    data: bytes = picture.jpegsave_buffer(Q=85)
    return data


def declaration(data: bytes, **fields: Any) -> upload_pb2.UploadDeclaration:
    values = {
        "kind": asset_pb2.ASSET_KIND_PRODUCT,
        "file_name": "front.jpg",
        "mime_type": "image/jpeg",
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        **fields,
    }
    return upload_pb2.UploadDeclaration(**values)


def assets(client: Client) -> Any:
    return client.stub(asset_pb2_grpc.AssetServiceStub)


def uploads(client: Client) -> Any:
    return client.stub(upload_pb2_grpc.UploadServiceStub)


def resumable(client: Client) -> Any:
    return client.stub(resumable_pb2_grpc.ResumableUploadServiceStub)


def variants(client: Client) -> Any:
    return client.stub(variant_pb2_grpc.VariantServiceStub)


def request_id() -> str:
    return str(uuid.uuid4())


async def send(target: upload_pb2.UploadTarget, data: bytes, name: str = "file") -> httpx.Response:
    async with browser() as http:
        if target.method == "POST":
            return await http.post(
                target.url, data=dict(target.fields), files={"file": (name, data)}
            )
        return await http.put(target.url, content=data, headers=dict(target.headers))


async def announce(client: Client, data: bytes, **fields: Any) -> upload_pb2.RequestUploadResponse:
    request = upload_pb2.RequestUploadRequest(
        request_id=request_id(), declaration=declaration(data, **fields)
    )
    requested: upload_pb2.RequestUploadResponse = await uploads(client).RequestUpload(request)
    return requested


async def confirm(client: Client, upload_id: str, **fields: Any) -> asset_pb2.Asset:
    request = upload_pb2.ConfirmUploadRequest(
        upload_id=upload_id, include_urls=True, **{"request_id": request_id(), **fields}
    )
    confirmed = await uploads(client).ConfirmUpload(request)
    asset: asset_pb2.Asset = confirmed.asset
    return asset


async def upload(client: Client, data: bytes, **fields: Any) -> asset_pb2.Asset:
    """Requests, sends and confirms an upload. Returns the READY asset."""
    requested = await announce(client, data, **fields)
    answer = await send(requested.target, data)
    assert answer.status_code in (200, 201, 204), answer.text
    return await confirm(client, requested.upload_id)


async def stream_upload(
    client: Client, head: upload_pb2.UploadHead, *chunks: bytes
) -> asset_pb2.Asset:
    """Uploads in one streamed call; returns the asset."""

    async def parts() -> AsyncIterator[upload_pb2.UploadRequest]:
        yield upload_pb2.UploadRequest(head=head)
        for chunk in chunks:
            yield upload_pb2.UploadRequest(chunk=chunk)

    answer = await uploads(client).Upload(parts())
    asset: asset_pb2.Asset = answer.asset
    return asset


async def start(
    client: Client, data: bytes, **fields: Any
) -> resumable_pb2.StartResumableUploadResponse:
    """Starts an upload in parts."""
    declared = declaration(data, **fields)
    request = resumable_pb2.StartResumableUploadRequest(
        request_id=request_id(), declaration=declared
    )
    started: resumable_pb2.StartResumableUploadResponse = await resumable(
        client
    ).StartResumableUpload(request)
    return started


async def send_parts(targets: Iterable[resumable_pb2.PartTarget], data: bytes) -> None:
    """Sends the parts of `data` that the targets are for."""
    async with browser() as http:
        for target in targets:
            part = data[target.offset_bytes : target.offset_bytes + target.size_bytes]
            answer = await http.put(target.url, headers=dict(target.headers), content=part)
            assert answer.status_code == 200, answer.text


async def made_by_a_service(
    suite: Suite, subject: str, data: bytes, **fields: Any
) -> asset_pb2.Asset:
    """Uploads a result of `conversions`' model for `user:<subject>`, as that service does."""
    service = suite.as_token(suite.keys.service_token("conversions", f"user:{subject}"))
    made = {
        "provenance": asset_pb2.Provenance(model="local", model_version="1", prompt="a coat"),
        **fields,
    }
    head = upload_pb2.UploadHead(request_id=request_id(), declaration=declaration(data, **made))
    return await stream_upload(service, head, data)


async def update(client: Client, asset_id: str, **fields: Any) -> asset_pb2.Asset:
    """Sets the given fields; `etag` and `request_id` are sent without being in the mask."""
    paths = [name for name in fields if name not in ("etag", "request_id")]
    request = asset_pb2.UpdateAssetRequest(
        asset_id=asset_id, update_mask={"paths": paths}, **fields
    )
    answer = await assets(client).UpdateAsset(request)
    asset: asset_pb2.Asset = answer.asset
    return asset


async def variants_of(
    client: Client, asset_id: str, *, timeout: float = 30
) -> dict[str, asset_pb2.Variant]:
    """Returns the variants by preset, once all have ended."""
    on_their_way = (asset_pb2.VARIANT_STATE_PENDING, asset_pb2.VARIANT_STATE_PROCESSING)
    async with asyncio.timeout(timeout):
        while True:
            answer = await variants(client).ListVariants(
                variant_pb2.ListVariantsRequest(asset_id=asset_id, include_urls=True)
            )
            if answer.variants and all(v.state not in on_their_way for v in answer.variants):
                return {v.preset: v for v in answer.variants}
            await asyncio.sleep(0.1)


async def get(client: Client, asset_id: str, **fields: Any) -> asset_pb2.Asset:
    answer = await assets(client).GetAsset(asset_pb2.GetAssetRequest(asset_id=asset_id, **fields))
    asset: asset_pb2.Asset = answer.asset
    return asset
