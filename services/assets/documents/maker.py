"""The job of a document: makes the PDF from the content and its pictures, stores it, and opens what
was stored before the row says READY."""

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from services.assets.core import rules as asset_rules
from services.assets.documents import document_rows, layout, rules
from services.assets.documents.document_rows import DOCUMENTS, Document
from shared import imaging
from shared.background import attempts
from shared.background.attempts import Attempt, Outcome
from shared.background.job_tables import JobTable
from shared.database.db import Database
from shared.database.rows import Statement
from shared.imaging import ImageRejected, ImagingPool, Limits, Preset
from shared.storage import ObjectNotFound, Storage

_RENDER_SECONDS = 120.0
_JPEG_QUALITY = 88
_MOST_WARNINGS = 100


@dataclass(slots=True)
class _Picture:
    """An asset that a document shows."""

    id: UUID
    kind: str
    storage_key: str
    size_bytes: int
    mime_type: str


_SELECT_PICTURES = Statement(
    _Picture,
    """
    SELECT id, kind, storage_key, size_bytes, mime_type FROM assets
    WHERE id = ANY(%(ids)s::uuid[]) AND state = 'ready' AND deleted_at IS NULL
    """,
)


class DocumentMaker:
    def __init__(
        self, db: Database, storage: Storage, pool: ImagingPool, fonts: Sequence[Path] = ()
    ) -> None:
        self._fonts = fonts
        self._db = db
        self._storage = storage
        self._pool = pool
        self._kind = JobTable(DOCUMENTS, rules.STATES, "processing", "ready", document_rows.publish)

    async def run(self, document_id: str) -> None:
        await attempts.run(self._db, self._kind, document_id, self._make)

    async def _make(self, attempt: Attempt[Document]) -> Outcome[Document]:
        directory = Path(tempfile.mkdtemp(prefix="atelier-"))
        try:
            pictures, gone = await self._pictures(attempt, directory)
            pdf = directory / "document.pdf"
            row = attempt.row
            imprint = layout.Imprint(row.kind, row.number, row.created_at)
            odd = await self._pool.run(
                layout.render_pdf,
                row.content,
                imprint,
                pictures,
                pdf,
                self._fonts,
                timeout=_RENDER_SECONDS,
            )
            return await self._store(attempt, pdf, [*gone, *odd][:_MOST_WARNINGS])
        except ImageRejected as refusal:  # the renderer failed: each picture alone was READY
            raise attempts.JobFailed(
                refusal.reason, "the document takes too much memory or time; make several of it"
            ) from refusal
        finally:
            # Awaits nothing, so that no cancellation replaces what was returned.
            shutil.rmtree(directory, ignore_errors=True)

    async def _pictures(
        self, attempt: Attempt[Document], directory: Path
    ) -> tuple[dict[str, Path], list[str]]:
        """Makes a file, as large as print needs, of each picture that is still there. Returns the
        files by asset id, and a warning for each other picture."""
        wanted = rules.picture_ids(attempt.row.content)
        async with self._db.transaction(attempt.row.owner) as m:
            rows = await m.all(_SELECT_PICTURES, {"ids": wanted})
        known = {str(row.id): row for row in rows}
        side = rules.page_side(len(known), rules.amount_of_text(attempt.row.content))
        made, gone = {}, []
        for asset_id in wanted:
            asset = known.get(asset_id.lower())
            try:
                if asset is None:
                    raise ObjectNotFound
                made[asset_id] = await self._page_picture(asset, directory, side)
                attempt.input_bytes += asset.size_bytes
            except ObjectNotFound:
                gone.append(f"picture: {asset_id}: it is gone")
            except ImageRejected as refusal:
                gone.append(f"picture: {asset_id}: {refusal.message}")
        return made, gone

    async def _page_picture(self, asset: _Picture, directory: Path, side: int) -> Path:
        source = directory / f"{asset.id}.source"
        await self._storage.fetch(asset.storage_key, source)
        # A logo may be transparent, which JPEG can't be.
        form = (
            "png"
            if asset.mime_type in ("image/png", "image/webp") and asset.kind == "logo"
            else "jpeg"
        )
        preset = Preset(str(asset.id), side, side, form, quality=_JPEG_QUALITY)  # type: ignore[arg-type]
        [picture] = await self._pool.run(imaging.make_variants, source, [preset], directory)
        source.unlink()
        return picture.path

    async def _store(
        self, attempt: Attempt[Document], pdf: Path, warnings: list[str]
    ) -> Outcome[Document]:
        """Stores the PDF, then fetches and opens what was stored: only then does the row point at
        it. The key has the attempt in it, so that two attempts never write the same object."""
        row = attempt.row
        key = asset_rules.object_key(
            row.owner,
            {"session_id": row.session_id},
            str(row.id),
            f"{attempt.token}.pdf",
            folder="artifacts",
            public=False,
        )
        sha256 = hashlib.sha256(pdf.read_bytes()).hexdigest()
        stored = pdf.with_name("stored.pdf")
        try:
            await self._storage.put(key, pdf, content_type=asset_rules.PDF, sha256=sha256)
            await self._storage.fetch(key, stored)
            facts = await self._pool.run(imaging.inspect, stored, asset_rules.PDF, Limits())
            if hashlib.sha256(stored.read_bytes()).hexdigest() != sha256:
                raise attempts.JobFailed(
                    "STORAGE", "what was stored isn't what was made", final=False
                )
        except BaseException:  # also when cancelled, because another attempt has the row
            await asyncio.shield(self._storage.delete([key]))
            raise

        async def remove_stored() -> None:
            await self._storage.delete([key])

        columns = {
            "storage_key": key,
            "size_bytes": facts.size,
            "sha256": sha256,
            "page_count": facts.pages,
            "warnings": warnings,
        }
        return Outcome(columns, output_bytes=facts.size, if_not_committed=remove_stored)
