"""Turns rows of tech files and exports into messages, with URLs if a caller wants them.

URLs are never stored: they expire.
"""

from collections.abc import Sequence
from datetime import timedelta

from atelier.techfiles.v1 import tech_file_pb2 as pb

from services.techfiles import export_rows, tech_file_rows
from services.techfiles.assets import Assets
from services.techfiles.export_rows import StoredExport
from services.techfiles.tech_file_rows import TechFile
from shared.database.db import Database
from shared.database.rows import Statement
from shared.storage import Storage

_SELECT_COMPLETED_EXPORTS = Statement(
    StoredExport,
    """
    SELECT id, storage_key, file_name, format FROM exports
    WHERE id = ANY(%(ids)s) AND state = 'completed'
    """,
)


class TechFileViews:
    def __init__(self, db: Database, assets: Assets, storage: Storage, url_life: timedelta) -> None:
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
            if file.file_asset_id in assets:
                file.file_url = assets[file.file_asset_id].original_url
                file.thumbnail_url = assets[file.file_asset_id].thumbnail_url
            if row.export_id in exports:
                file.file_url = self.export_url(exports[row.export_id])
        return files

    def export_url(self, row: StoredExport | export_rows.Export) -> str:
        return self._storage.sign_get(
            row.storage_key,
            expires_in=self._url_life,
            file_name=row.file_name,
            content_type=export_rows.CONTENT_TYPES[row.format],
        )
