"""Imports: the server fetches a file from a URL, under the guard of shared/outbound, and verifies
it as any upload."""

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import UUID

from atelier.assets.v1 import import_pb2 as pb
from atelier.assets.v1 import import_pb2_grpc

from services.assets.core import asset_rows, choose_primary, rules
from services.assets.core.visibility import belongs
from services.assets.uploads import declarations, duplicates
from services.assets.uploads.verifying import (
    HASH_DIFFERS,
    Refused,
    Verified,
    Verifier,
    key_of,
    reject,
    size_differs,
)
from shared.background import attempts, jobs, waiting
from shared.background.attempts import JobFailed
from shared.background.events import EventStream
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.formats import names
from shared.outbound import Fetched, Outbound, OutboundFailed, OutboundRefused, parse_url
from shared.rpc import auth, errors
from shared.rpc.errors import DomainError, Reason
from shared.storage import Storage, StorageError

TASK = "import_asset"
QUEUE = "imports"
_FETCH_SECONDS = 60.0
_SETTLED = ("ready", "rejected")
_PASSING = frozenset(
    {0, 408, 425, 429}
)  # statuses after which asking again may help, as after 5xx; 0: no answer came
_INSERT = """
    INSERT INTO imports (id, owner, asset_id, url, declared_sha256)
    VALUES (%(id)s, %(owner)s, %(asset_id)s, %(url)s, %(sha256)s)
"""


class ImportService(import_pb2_grpc.ImportServiceServicer):
    def __init__(
        self,
        db: Database,
        stream: EventStream,
        queue: jobs.JobQueue,
        outbound: Outbound,
        verifier: Verifier,
        urls: asset_rows.Urls,
    ) -> None:
        self._db = db
        self._stream = stream
        self._queue = queue
        self._outbound = outbound
        self._verifier = verifier
        self._urls = urls

    async def ImportAsset(
        self, request: pb.ImportAssetRequest, context: Any
    ) -> pb.ImportAssetResponse:
        response = await self._db.stored_answer(request, pb.ImportAssetResponse)
        if response is None:
            response = await self._begin(request)
        asset_id = UUID(response.asset.id)

        async def read() -> Any:
            return await self._verifier.asset(asset_id)

        def settled(asset: Any) -> bool:
            return asset.state in _SETTLED

        asset = await (
            waiting.until_told(self._stream, request, read, settled) if request.wait else read()
        )
        urls = self._urls if request.include_urls else None
        others = await duplicates.others(self._db, asset) if asset.state == "ready" else []
        return pb.ImportAssetResponse(asset=asset_rows.to_proto(asset, urls), duplicates=others)

    async def _begin(self, request: pb.ImportAssetRequest) -> pb.ImportAssetResponse:
        columns = declarations.described(_named(request), "")
        try:
            await self._outbound.check_url(request.url)
        except OutboundRefused as refusal:
            raise errors.invalid("url", str(refusal)) from None

        async def work(m: Mutation) -> pb.ImportAssetResponse:
            asset = await declarations.announce(m, self._verifier.quotas, new_id(), columns)
            job = new_id()
            values = {
                "id": job,
                "owner": m.owner,
                "asset_id": asset.id,
                "url": request.url,
                "sha256": request.sha256,
            }
            await m.run(_INSERT, values)
            await self._queue.enqueue(m, TASK, QUEUE, job, priority=jobs.FRESH_APART)
            return pb.ImportAssetResponse(asset=asset)

        return await self._db.mutate(request, pb.ImportAssetResponse, work)


class Importer:
    """The job: fetch to a local file, verify that, store it, then let the asset show it."""

    def __init__(
        self, db: Database, storage: Storage, outbound: Outbound, verifier: Verifier
    ) -> None:
        self._db = db
        self._storage = storage
        self._outbound = outbound
        self._verifier = verifier
        self._kind = attempts.Kind("imports", rules.JOB_STATES, "running", "done", _follow)

    async def run(self, import_id: str) -> None:
        await attempts.run(self._db, self._kind, import_id, self._import)

    async def _import(self, attempt: attempts.Attempt) -> attempts.Outcome:
        job = attempt.row
        async with self._db.transaction(job.owner) as m:
            asset = await m.one("SELECT * FROM assets WHERE id = %s", (job.asset_id,))
        if asset is None:  # purged, and this job's row with it
            raise attempts.Superseded
        with tempfile.TemporaryDirectory(prefix="atelier-") as directory:
            path = Path(directory) / "file"
            fetched = await self._fetch(asset, job.url, path)
            attempt.input_bytes = fetched.size
            found = await self._verify(asset, job.declared_sha256, path, fetched)
            if isinstance(found, Refused):
                raise JobFailed(found.reason, found.message)
            await self._store(found, path)

        async def show(m: Mutation, _job: Any) -> None:
            auth.enter(replace(auth.current(), actor=asset.created_by))  # whose use it is
            if asset.product_id:
                await choose_primary.lock_product(m, asset.product_id)
            now = await asset_rows.lock(m, asset.id)
            if now.deleted_at:
                raise JobFailed("DELETED", "it was deleted before its file came; import it again")
            if not belongs(found.key, now):
                raise JobFailed("MOVED", "the asset's visibility changed meanwhile", final=False)
            try:
                await self._verifier.accept(m, now, found)
            except (
                DomainError
            ) as refusal:  # how many bytes there are is known only now: they may not fit
                reason = Reason.Name(refusal.reason).removeprefix("ERROR_REASON_")
                raise JobFailed(reason, refusal.text) from None

        async def remove() -> None:
            await self._storage.delete([found.key])

        return attempts.Outcome(
            {"url": _bare(job.url)}, output_bytes=found.size, also=show, undo=remove
        )

    async def _fetch(self, asset: Any, url: str, path: Path) -> Fetched:
        limits = self._verifier.limits
        most = (
            max(limits.image_bytes, limits.pdf_bytes)
            if asset.kind in rules.PDF_KINDS
            else limits.image_bytes
        )
        try:
            return await self._outbound.fetch(url, path, max_bytes=most, timeout=_FETCH_SECONDS)
        except OutboundRefused as refusal:
            raise JobFailed("URL_REFUSED", str(refusal)) from None
        except OutboundFailed as failure:
            if failure.error_class == "TOO_LARGE":
                raise JobFailed("TOO_MANY_BYTES", f"{failure}; make the file smaller") from None
            passing = failure.status >= 500 or failure.status in _PASSING
            final = failure.error_class == "TLS" or not passing
            raise JobFailed(
                "FETCH_FAILED", f"{failure}; correct the URL, or import again later", final=final
            ) from None

    async def _verify(
        self, asset: Any, declared_sha256: str, path: Path, fetched: Fetched
    ) -> Verified | Refused:
        if fetched.size == 0:
            return size_differs(0, 0)
        if declared_sha256 not in ("", fetched.sha256):
            return HASH_DIFFERS
        found = await self._verifier.contents(
            path, "", key_of(asset, fetched.sha256), fetched.size, fetched.sha256
        )
        if isinstance(found, Verified) and (
            problem := rules.type_problem(asset.kind, found.facts.mime_type)
        ):
            return Refused("TYPE_NOT_ALLOWED", problem)
        return found

    async def _store(self, found: Verified, path: Path) -> None:
        try:
            await self._storage.put(
                found.key, path, content_type=found.facts.mime_type, sha256=found.sha256
            )
        except StorageError:
            raise
        except BaseException:  # cancelled: another try has the row, or the worker stops
            await asyncio.shield(self._storage.delete([found.key]))
            raise


async def _follow(m: Mutation, job: Any) -> None:
    """A job that ends without the file ends its asset, too."""
    if job.state in ("failed", "cancelled"):
        asset = await asset_rows.lock(m, job.asset_id)
        await reject(m, asset, Refused(job.error_class or "CANCELLED", job.error_message))
        await m.run("UPDATE imports SET url = %s WHERE id = %s", (_bare(job.url), job.id))


def _named(request: pb.ImportAssetRequest) -> pb.ImportAssetRequest:
    """The request, with a file name."""
    if request.file_name:
        return request
    try:
        path = parse_url(request.url).path
    except OutboundRefused as refusal:
        raise errors.invalid("url", str(refusal)) from None
    named = pb.ImportAssetRequest()
    named.CopyFrom(request)
    named.file_name = names.shown(unquote(_bare(path).rpartition("/")[2])) or "import"
    return named


def _bare(url: str) -> str:
    """Without what may be a secret."""
    return url.partition("?")[0]
