"""Ends the pause between two polls of a call once its provider has called back.

A callback arrives at a server and the call is polled by a worker, so that a notice of Postgres
tells the worker. A notice may be lost: then the pause lasts as long as it would have anyway.
"""

import asyncio
from contextlib import suppress
from uuid import UUID

import psycopg

from services.conversions.provider_rows import CALLBACKS
from shared.background.tasks import not_cancelled
from shared.database.db import Database

_PAUSE_SECONDS = 1.0


class Wakes:
    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiting: dict[str, asyncio.Event] = {}

    async def pause(self, call_id: UUID, seconds: float) -> None:
        """Waits for so long, or until a callback about the call."""
        called = self._waiting[str(call_id)] = asyncio.Event()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await called.wait()
        finally:
            del self._waiting[str(call_id)]

    async def listen(self) -> None:
        """Listens until cancelled; opens a new connection whenever one breaks."""
        while not_cancelled():
            with suppress(psycopg.Error, OSError, TimeoutError):
                async with await self._db.connect() as conn:
                    await conn.execute(f"LISTEN {self._db.service}_{CALLBACKS}")
                    async for notice in conn.notifies():
                        if called := self._waiting.get(notice.payload):
                            called.set()
            await asyncio.sleep(_PAUSE_SECONDS)
