"""The job of an import: fetches the URL to a local file, verifies and stores it, then makes the
asset READY."""

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

from services.assets.core import asset_rows, choose_primary, rules
from services.assets.core.asset_rows import SELECT_ASSET, Asset
from services.assets.core.visibility import belongs
from services.assets.uploads.import_rows import IMPORTS, Import, without_secrets
from services.assets.uploads.verifying import (
    HASH_DIFFERS,
    Refused,
    Verified,
    Verifier,
    key_of,
    reject,
    size_differs,
)
from shared.background import attempts
from shared.background.attempts import Attempt, JobFailed, Outcome
from shared.background.job_tables import JobTable
from shared.database.db import Database, Mutation
from shared.database.rows import Command
from shared.outbound import Fetched, Outbound, OutboundFailed, OutboundRefused
from shared.rpc import auth
from shared.rpc.errors import DomainError, Reason
from shared.storage import Storage, StorageError

_FETCH_SECONDS = 60.0
# Statuses after which a retry may help, as after 5xx; 0: there was no answer.
_PASSING = frozenset({0, 408, 425, 429})

_SET_URL = Command("UPDATE imports SET url = %(url)s WHERE id = %(id)s")


class Importer:
    def __init__(
        self, db: Database, storage: Storage, outbound: Outbound, verifier: Verifier
    ) -> None:
        self._db = db
        self._storage = storage
        self._outbound = outbound
        self._verifier = verifier
        self._kind = JobTable(IMPORTS, rules.JOB_STATES, "running", "done", _follow)

    async def run(self, import_id: str) -> None:
        await attempts.run(self._db, self._kind, import_id, self._import)

    async def _import(self, attempt: Attempt[Import]) -> Outcome[Import]:
        job = attempt.row
        async with self._db.transaction(job.owner) as m:
            asset = await m.first(SELECT_ASSET, {"id": job.asset_id})
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

        async def show(m: Mutation, _job: Import) -> None:
            auth.enter(replace(auth.current(), actor=asset.created_by))  # the use is theirs
            if asset.product_id:
                await choose_primary.lock_product(m, asset.product_id)
            now = await asset_rows.lock(m, asset.id)
            if now.deleted_at:
                raise JobFailed("DELETED", "it was deleted before its file came; import it again")
            if not belongs(found.key, now):
                raise JobFailed("MOVED", "the asset's visibility changed meanwhile", final=False)
            try:
                await self._verifier.accept(m, now, found)
            except DomainError as refusal:
                # The size is known only now: it may not fit into a quota.
                reason = Reason.Name(refusal.reason).removeprefix("ERROR_REASON_")
                raise JobFailed(reason, refusal.text) from None

        async def remove() -> None:
            await self._storage.delete([found.key])

        return Outcome(
            {"url": without_secrets(job.url)},
            output_bytes=found.size,
            in_transaction=show,
            if_not_committed=remove,
        )

    async def _fetch(self, asset: Asset, url: str, path: Path) -> Fetched:
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
        self, asset: Asset, declared_sha256: str, path: Path, fetched: Fetched
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
        except BaseException:  # cancelled: another attempt has the row, or the worker stops
            await asyncio.shield(self._storage.delete([found.key]))
            raise


async def _follow(m: Mutation, job: Import) -> None:
    """Rejects the asset of an import that ended without a file, and cuts the query off the URL."""
    if job.state in ("failed", "cancelled"):
        asset = await asset_rows.lock(m, job.asset_id)
        await reject(m, asset, Refused(job.error_class or "CANCELLED", job.error_message))
        await m.run(_SET_URL, {"url": without_secrets(job.url), "id": job.id})
