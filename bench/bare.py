"""The reference of B1, B3, B6 and B8: the least that can answer, without token, validation,
tenancy, log, metrics or idempotency.

python -m bench.bare <database> <port> <trust file, unused>
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from atelier.assets.v1 import asset_pb2, asset_pb2_grpc, upload_pb2, upload_pb2_grpc
from atelier.common.v1 import watch_pb2
from google.protobuf import json_format, timestamp_pb2
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from uuid_utils.compat import uuid7

_GET = "SELECT * FROM assets.assets WHERE id = %s"
_INSERT = """
    INSERT INTO assets.assets (id, owner, created_by, kind, public, free, file_name, size_bytes,
        mime_type, tags,
        metadata, session_id, room_id, product_id, dataset_id)
    VALUES (%s, %s, %s, 'photo', false, true, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING *
"""
TELL = (  # sends its request, a WatchAssetsResponse, to every watch; answers its start time in ns
    "/bench.Bare/Tell"
)
_STATES = {"pending": asset_pb2.ASSET_STATE_PENDING, "ready": asset_pb2.ASSET_STATE_READY}


class Bare(asset_pb2_grpc.AssetServiceServicer, upload_pb2_grpc.UploadServiceServicer):
    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool
        self._told = asyncio.Event()
        self._latest: asset_pb2.WatchAssetsResponse | None = None

    async def GetAsset(
        self, request: asset_pb2.GetAssetRequest, context: Any
    ) -> asset_pb2.GetAssetResponse:
        async with self._pool.connection() as conn:
            row = await (await conn.execute(_GET, (request.asset_id,))).fetchone()
        return asset_pb2.GetAssetResponse(asset=_message(row))

    async def RequestUpload(
        self, request: upload_pb2.RequestUploadRequest, context: Any
    ) -> upload_pb2.RequestUploadResponse:
        asked = request.declaration
        scope = asked.scope
        values = (
            uuid7(),
            "user:ada",
            "ada",
            asked.file_name,
            asked.size_bytes,
            asked.mime_type,
            list(asked.tags),
            Jsonb(json_format.MessageToDict(asked.metadata)),
            scope.session_id,
            scope.room_id,
            scope.product_id,
            scope.dataset_id,
        )
        async with self._pool.connection() as conn:
            row = await (await conn.execute(_INSERT, values)).fetchone()
        return upload_pb2.RequestUploadResponse(upload_id=str(uuid7()), asset=_message(row))

    async def Upload(
        self, request_iterator: AsyncIterator[upload_pb2.UploadRequest], context: Any
    ) -> Any:
        with tempfile.TemporaryFile() as file:
            async for request in request_iterator:
                file.write(request.chunk)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        return upload_pb2.UploadResponse(asset=asset_pb2.Asset(size_bytes=size))

    async def WatchAssets(
        self, request: asset_pb2.WatchAssetsRequest, context: Any
    ) -> AsyncIterator[asset_pb2.WatchAssetsResponse]:
        sent = self._latest
        yield asset_pb2.WatchAssetsResponse(bookmark=watch_pb2.Bookmark(ready=True))
        while True:
            while self._latest is sent:
                await self._told.wait()
            sent = self._latest
            assert sent
            yield sent

    async def tell(self, change: asset_pb2.WatchAssetsResponse, context: Any) -> bytes:
        began = time.monotonic_ns()
        self._latest = change
        self._told.set()
        self._told.clear()
        return str(began).encode()


def _message(row: Any) -> asset_pb2.Asset:
    asset = asset_pb2.Asset(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        kind=asset_pb2.ASSET_KIND_PHOTO,
        state=_STATES[row.state],
        visibility=asset_pb2.VISIBILITY_PRIVATE,
        free=row.free,
        file_name=row.file_name,
        file_path=row.storage_key,
        size_bytes=row.size_bytes,
        mime_type=row.mime_type,
        width=row.width,
        height=row.height,
        sha256=row.sha256,
        tags=row.tags,
        etag=str(row.version),
        scope=asset_pb2.AssetScope(
            session_id=row.session_id,
            room_id=row.room_id,
            product_id=row.product_id,
            dataset_id=row.dataset_id,
        ),
    )
    asset.create_time.CopyFrom(_time(row.created_at))
    asset.update_time.CopyFrom(_time(row.updated_at))
    if row.metadata:
        asset.metadata.update(row.metadata)
    if row.facts:
        colours = [
            asset_pb2.DominantColour(hex=hex_, share=share)
            for hex_, share in row.facts.pop("colours")
        ]
        asset.facts.CopyFrom(asset_pb2.ImageFacts(dominant_colours=colours, **row.facts))
    return asset


def _time(at: Any) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(at)
    return stamp


async def serve(database: str, port: str) -> None:
    options: Any = {"autocommit": True, "row_factory": namedtuple_row}
    async with AsyncConnectionPool[Any](database, kwargs=options, min_size=10, open=False) as pool:
        server = grpc.aio.server()
        bare = Bare(pool)
        asset_pb2_grpc.add_AssetServiceServicer_to_server(bare, server)
        upload_pb2_grpc.add_UploadServiceServicer_to_server(bare, server)
        tell: Any = grpc.unary_unary_rpc_method_handler(
            bare.tell, asset_pb2.WatchAssetsResponse.FromString
        )
        service, name = TELL[1:].split("/")
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {name: tell}),)
        )
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], sys.argv[2]))
