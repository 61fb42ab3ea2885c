"""Turns rows of tech files and exports into messages, with URLs if a caller wants them.

URLs are never stored: they expire.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from atelier.assets.v1 import asset_pb2
from atelier.techfiles.v1 import tech_file_pb2 as pb
from atelier.techfiles.v1 import tech_pack_pb2

from services.techfiles import export_rows, rules, tech_file_rows
from services.techfiles.assets import Assets
from services.techfiles.export_rows import Export, StoredExport
from services.techfiles.tech_file_rows import TechFile
from shared.database.db import Database
from shared.database.rows import Statement
from shared.storage import Storage

_SELECT_COMPLETED_EXPORTS = Statement(
    StoredExport,
    """
    SELECT id, storage_key, file_name, format, size_bytes FROM exports
    WHERE id = ANY(%(ids)s) AND state = 'completed' AND bytes_gone_at IS NULL
        AND deleted_at IS NULL
    """,
)


class TechFileViews:
    """`export_life`: how long the bytes of exports are kept; None: for ever."""

    def __init__(
        self,
        db: Database,
        assets: Assets,
        storage: Storage,
        url_life: timedelta,
        export_life: timedelta | None,
    ) -> None:
        self._export_life = export_life
        self._db = db
        self._assets = assets
        self._storage = storage
        self._url_life = url_life

    async def files(self, rows: Sequence[TechFile], *, urls: bool) -> list[pb.TechFile]:
        files = [tech_file_rows.to_proto(row) for row in rows]
        if not urls:
            return files
        pictures = [file.file_asset_id for file in files if file.file_asset_id]
        assets = await self._assets.describe(pictures, urls=True)
        export_ids = [row.export_id for row in rows]
        found = await self._db.all(_SELECT_COMPLETED_EXPORTS, {"ids": export_ids})
        exports = {row.id: row for row in found}
        for row, file in zip(rows, files, strict=True):
            asset = assets.get(file.file_asset_id)
            if asset:
                file.file_url = asset.original_url
                file.thumbnail_url = asset.thumbnail_url
                file.size_bytes, file.mime_type = asset.size_bytes, asset.mime_type
                file.width, file.height = asset.width, asset.height
            if row.export_id in exports:
                export = exports[row.export_id]
                file.file_url = self.export_url(export)
                file.size_bytes = export.size_bytes
                file.mime_type = export_rows.CONTENT_TYPES[export.format]
            if row.state == "completed" and (quality := quality_of(row.analysis, asset)):
                file.quality.CopyFrom(quality)
        return files

    def row_url(self, row: Mapping[str, Any]) -> str:
        """Returns the URL of an export's bytes, from its columns as JSON."""
        columns = (row["storage_key"], row["file_name"], row["format"], row["size_bytes"])
        return self.export_url(StoredExport(UUID(row["id"]), *columns))

    def export(self, row: Export, *, urls: bool = True) -> tech_pack_pb2.Export:
        """Returns the message of an export: with a URL if its bytes are there, and with the time at
        which they go."""
        if not row.has_bytes:
            return export_rows.to_proto(row)
        shown = urls and row.deleted_at is None
        export = export_rows.to_proto(row, self.export_url(row) if shown else "")
        if self._export_life and row.release_id is None:
            ends_at = (row.ended_at or row.created_at) + self._export_life
            export.retention_time.FromDatetime(ends_at)
        return export

    def export_url(self, row: StoredExport | Export) -> str:
        return self._storage.sign_get(
            row.storage_key,
            expires_in=self._url_life,
            file_name=row.file_name,
            content_type=export_rows.CONTENT_TYPES[row.format],
        )


def quality_of(
    analysis: Mapping[str, Any] | None, asset: asset_pb2.Asset | None
) -> pb.FileQuality | None:
    """Returns the quality of a file from what `assets` measured of its picture and from its
    findings; None if nothing is known of either."""
    quality = pb.FileQuality()
    if asset is not None and asset.HasField("facts"):
        quality.sharpness = asset.facts.sharpness
        quality.exposure = 1 - asset.facts.clipped_shadows
    if analysis:
        quality.completeness = rules.completeness(analysis)
    known = [name for name in ("sharpness", "exposure", "completeness") if quality.HasField(name)]
    if not known:
        return None
    quality.score = min(getattr(quality, name) for name in known)
    return quality
