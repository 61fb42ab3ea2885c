"""Turns rows of runs into messages, with their files, PDF and ZIP if a caller wants them."""

from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

from atelier.techfiles.v1 import tech_pack_pb2 as pb

from services.techfiles import pack_rows
from services.techfiles.export_rows import EXPORTS, Export
from services.techfiles.pack_rows import Run, RunStep
from services.techfiles.tech_file_rows import TECH_FILES, TechFile
from services.techfiles.views import TechFileViews
from shared.database.db import Database
from shared.database.rows import Statement

_SELECT_FILES = Statement(
    TechFile, f"SELECT {TECH_FILES.columns} FROM tech_files WHERE id = ANY(%(ids)s)"
)
_SELECT_EXPORTS = Statement(
    Export, f"SELECT {EXPORTS.columns} FROM exports WHERE id = ANY(%(ids)s)"
)
_WARNINGS = 10  # of each export; GetExport has all


class RunViews:
    def __init__(self, db: Database, views: TechFileViews) -> None:
        self._db = db
        self._views = views

    async def messages(
        self, rows: Sequence[Run], *, with_steps: bool = True
    ) -> list[pb.TechPackRun]:
        run_ids = [row.id for row in rows]
        moves = defaultdict[UUID, list[RunStep]](list)
        for move in await self._db.all(pack_rows.SELECT_STEPS, {"ids": run_ids}):
            moves[move.run_id].append(move)
        pack_ids = [row.pack_file_id for row in rows]
        packs = await self._db.all(pack_rows.SELECT_PACK_FILES, {"ids": pack_ids})
        exports = {pack.id: pack.export_id for pack in packs}
        return [
            pack_rows.to_proto(
                row, moves[row.id], exports.get(row.pack_file_id), with_steps=with_steps
            )
            for row in rows
        ]

    async def message(self, row: Run, *, urls: bool = False) -> pb.TechPackRun:
        """Returns the run's message; with `urls` it shows its files, PDF and ZIP."""
        [run] = await self.messages([row])
        if urls:
            await self._add_files(row, run)
            await self._add_exports(row, run)
        return run

    def export(self, row: Export) -> pb.Export:
        return self._views.export(row)

    async def _add_files(self, row: Run, run: pb.TechPackRun) -> None:
        ids = [UUID(step.tech_file_id) for step in pack_rows.plan_of(row) if step.tech_file_id]
        rows = {file.id: file for file in await self._db.all(_SELECT_FILES, {"ids": ids})}
        kept = [rows[file_id] for file_id in ids if file_id in rows]
        for file in await self._views.files(kept, urls=True):
            file.ClearField("analysis")
            file.ClearField("prompt")
            run.files.append(file)

    async def _add_exports(self, row: Run, run: pb.TechPackRun) -> None:
        wanted = [UUID(run.export_id)] if run.export_id else []
        if row.zip_export_id:
            wanted.append(row.zip_export_id)
        for export in await self._db.all(_SELECT_EXPORTS, {"ids": wanted}):
            shown = run.zip if export.id == row.zip_export_id else run.pdf
            shown.CopyFrom(self.export(export))
            del shown.warnings[_WARNINGS:]
