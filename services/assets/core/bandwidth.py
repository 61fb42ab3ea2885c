"""Counts the bytes that are sent to readers. Counts are kept in memory and written every second,
because a read must not wait for a counter."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress

import structlog

from shared.background.tasks import not_cancelled
from shared.database.db import Database
from shared.database.rows import Command

_FLUSH_SECONDS = 1.0
_LAST_SECONDS = 3.0
_OPERATE = Command("SELECT set_config('app.operator', 'on', true)")
_INSERT_DELTAS = Command("""
    INSERT INTO storage_deltas (owner, session_id, noun, state, number, bytes)
    SELECT owner, session_id, 'download', state, number, bytes
    FROM unnest(%(owners)s::text[], %(sessions)s::text[], %(states)s::text[], %(numbers)s::bigint[],
                %(bytes)s::bigint[]) AS noted (owner, session_id, state, number, bytes)
""")
_log = structlog.get_logger("meter")


class Meter:
    """Counts reads by asset owner, session and state: `exact` for bytes that a call sent, `issued`
    for bytes behind a URL. A process that is killed loses the last second; `close` writes it."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._noted: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
        self._stopping = asyncio.Event()
        self._flushing: asyncio.Task[None] | None = None

    async def counted(
        self, owner: str, session_id: str, chunks: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """Yields the chunks that a call sends itself, and counts them as they are taken."""
        sent = 0
        try:
            async for chunk in chunks:
                sent += len(chunk)
                yield chunk
        finally:
            self.sent(owner, session_id, sent)

    def sent(self, owner: str, session_id: str, size: int) -> None:
        """Counts bytes that a call sent itself."""
        self._note(owner, session_id, "exact", size)

    def issued(self, owner: str, session_id: str, size: int) -> None:
        """Counts the bytes behind a URL that was handed out."""
        self._note(owner, session_id, "issued", size)

    def _note(self, owner: str, session_id: str, state: str, size: int) -> None:
        noted = self._noted[owner, session_id, state]
        noted[0] += 1
        noted[1] += size

    def start(self) -> None:
        self._flushing = asyncio.create_task(self._flush_forever())

    async def close(self) -> None:
        """Writes the remaining counts. What the database doesn't take in three seconds is lost."""
        self._stopping.set()
        if self._flushing:
            await asyncio.wait([self._flushing], timeout=_LAST_SECONDS)
            self._flushing.cancel()

    async def _flush(self) -> None:
        noted, self._noted = self._noted, defaultdict(lambda: [0, 0])
        if not noted:
            return
        columns = {
            "owners": [owner for owner, _, _ in noted],
            "sessions": [session for _, session, _ in noted],
            "states": [state for _, _, state in noted],
            "numbers": [number for number, _ in noted.values()],
            "bytes": [size for _, size in noted.values()],
        }
        try:
            async with self._db.transaction("") as m:
                await m.run(_OPERATE)
                await m.run(_INSERT_DELTAS, columns)
        except Exception:
            for (owner, session_id, state), (number, size) in noted.items():
                kept = self._noted[owner, session_id, state]
                kept[0] += number
                kept[1] += size
            raise

    async def _flush_forever(self) -> None:
        while not_cancelled() and not self._stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_SECONDS):
                    await self._stopping.wait()
            try:
                await self._flush()
            except Exception as error:
                _log.warning("reads can't be counted yet", error=type(error).__name__)
