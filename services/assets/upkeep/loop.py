"""The upkeep loop of a worker of assets: removes doomed objects, and starts a cleanup or a
reconciler run when one is due. Any number of workers may run it; a session's advisory lock lets one
of them work."""

import asyncio

import psycopg
import structlog

from services.assets.core.deletions import BATCH, remove_due
from services.assets.upkeep import run_rows
from shared.background import sole
from shared.background.jobs import JobQueue
from shared.background.tasks import not_cancelled
from shared.database.db import Database
from shared.database.exchange import Connection
from shared.database.rows import Statement
from shared.settings import Settings
from shared.storage import Storage, StorageError

_TICK_SECONDS = 1.0
_SILENT_SECONDS = 120  # longer than removing a batch takes
_LONGEST_WAIT_SECONDS = 30.0
_IS_DUE = Statement(
    bool,
    """
    SELECT NOT EXISTS (SELECT FROM storage_runs WHERE owner = '' AND action = %(action)s
                       AND created_at > now() - make_interval(secs => %(seconds)s))
    """,
)
_log = structlog.get_logger("keeper")


class Keeper:
    def __init__(self, db: Database, storage: Storage, queue: JobQueue, settings: Settings) -> None:
        self._db = db
        self._storage = storage
        self._queue = queue
        every = {"cleanup": settings.cleanup_minutes, "reconcile": settings.reconcile_minutes}
        self._seconds = {action: minutes * 60 for action, minutes in every.items() if minutes}

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while not_cancelled():
            try:
                alone = sole.alone(self._db, sole.Duty.UPKEEP, silent_seconds=_SILENT_SECONDS)
                async with alone as session:
                    if session:
                        await self._keep(session)
            except (psycopg.Error, StorageError) as error:
                _log.warning("keeping waits", service=self._db.service, error=type(error).__name__)
            await asyncio.sleep(_TICK_SECONDS)

    async def _keep(self, session: Connection) -> None:
        loop = asyncio.get_running_loop()
        wait = min([_LONGEST_WAIT_SECONDS, *self._seconds.values()])
        look_at = loop.time() + wait
        # A cancellation that meets the end of a statement may be lost: only not_cancelled() sees it
        while not_cancelled():
            await sole.check(session)
            while await remove_due(self._db, self._storage) == BATCH:
                await sole.check(session)
            if loop.time() >= look_at:
                look_at = loop.time() + wait
                for action, seconds in self._seconds.items():
                    await self._begin_if_due(action, seconds)
            await asyncio.sleep(_TICK_SECONDS)

    async def _begin_if_due(self, action: str, seconds: float) -> None:
        async with self._db.transaction("") as m:
            if await m.one(_IS_DUE, {"action": action, "seconds": seconds}):
                arguments = {"dry_run": False, "max_items": 0, "from_start": False}
                await run_rows.begin(m, self._queue, action, "", arguments)
