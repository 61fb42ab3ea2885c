"""Runs the job of an export."""

from dataclasses import asdict

from services.techfiles import export_rows, rules
from services.techfiles.export_rows import EXPORTS, Export
from services.techfiles.rendering import Renderer
from shared.background import attempts
from shared.background.job_tables import JobTable
from shared.database.db import Database


class Exporter:
    """Renders exports. `run` is the job of a row of `exports`."""

    def __init__(self, db: Database, renderer: Renderer) -> None:
        self._db = db
        self._renderer = renderer
        self._kind = JobTable(
            EXPORTS, rules.EXPORT_STATES, "processing", "completed", export_rows.publish
        )

    async def run(self, export_id: str) -> None:
        await attempts.run(self._db, self._kind, export_id, self._work)

    async def _work(self, attempt: attempts.Attempt[Export]) -> attempts.Outcome[Export]:
        document = await self._renderer.render(attempt.row, attempt.token)

        async def remove_stored() -> None:
            await self._renderer.delete(document)

        return attempts.Outcome(
            asdict(document), output_bytes=document.size_bytes, if_not_committed=remove_stored
        )
