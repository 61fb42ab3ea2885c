"""ImportService: has a file fetched from a URL, under the rules of shared/outbound, and verified
as any upload is."""

from urllib.parse import unquote
from uuid import UUID

from atelier.assets.v1 import import_pb2 as pb
from atelier.assets.v1 import import_pb2_grpc

from services.assets.core import asset_rows
from services.assets.core.asset_rows import Asset, Urls
from services.assets.uploads import declarations, duplicate_rows
from services.assets.uploads.import_rows import QUEUE, TASK, without_secrets
from services.assets.uploads.verifying import Verifier
from shared.background import jobs, waiting
from shared.background.watches import EventStream
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.database.rows import Command
from shared.formats import names
from shared.outbound import Outbound, OutboundRefused, parse_url
from shared.rpc import errors
from shared.rpc.server import Context

_SETTLED = ("ready", "rejected")

_INSERT_IMPORT = Command("""
    INSERT INTO imports (id, owner, asset_id, url, declared_sha256)
    VALUES (%(id)s, %(owner)s, %(asset_id)s, %(url)s, %(sha256)s)
""")


class ImportService(import_pb2_grpc.ImportServiceServicer):
    def __init__(
        self,
        db: Database,
        stream: EventStream,
        queue: jobs.JobQueue,
        outbound: Outbound,
        verifier: Verifier,
        urls: Urls,
    ) -> None:
        self._db = db
        self._stream = stream
        self._queue = queue
        self._outbound = outbound
        self._verifier = verifier
        self._urls = urls

    async def ImportAsset(
        self, request: pb.ImportAssetRequest, context: Context
    ) -> pb.ImportAssetResponse:
        response = await self._db.stored_answer(request, pb.ImportAssetResponse)
        if response is None:
            response = await self._begin(request)
        asset_id = UUID(response.asset.id)

        async def read() -> Asset:
            return await self._verifier.asset(asset_id)

        def settled(asset: Asset) -> bool:
            return asset.state in _SETTLED

        asset: Asset = await (
            waiting.until_told(self._stream, request, read, settled) if request.wait else read()
        )
        urls = self._urls if request.include_urls else None
        others = await duplicate_rows.others(self._db, asset) if asset.state == "ready" else []
        return pb.ImportAssetResponse(asset=asset_rows.to_proto(asset, urls), duplicates=others)

    async def _begin(self, request: pb.ImportAssetRequest) -> pb.ImportAssetResponse:
        made = declarations.described(_named(request), "", self._verifier.public_kinds)
        try:
            await self._outbound.check_url(request.url)
        except OutboundRefused as refusal:
            raise errors.invalid("url", str(refusal)) from None

        async def work(m: Mutation) -> pb.ImportAssetResponse:
            asset = await declarations.announce(m, self._verifier.quotas, new_id(), made)
            job = new_id()
            values = {
                "id": job,
                "owner": m.owner,
                "asset_id": asset.id,
                "url": request.url,
                "sha256": request.sha256,
            }
            await m.run(_INSERT_IMPORT, values)
            await self._queue.enqueue(m, TASK, QUEUE, job, priority=jobs.FRESH_APART)
            return pb.ImportAssetResponse(asset=asset)

        return await self._db.mutate(request, pb.ImportAssetResponse, work)


def _named(request: pb.ImportAssetRequest) -> pb.ImportAssetRequest:
    """Returns the request with a file name: the given one, or the last part of the URL's path."""
    if request.file_name:
        return request
    try:
        path = parse_url(request.url).path
    except OutboundRefused as refusal:
        raise errors.invalid("url", str(refusal)) from None
    named = pb.ImportAssetRequest()
    named.CopyFrom(request)
    named.file_name = names.shown(unquote(without_secrets(path).rpartition("/")[2])) or "import"
    return named
