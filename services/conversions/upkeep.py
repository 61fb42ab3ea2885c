"""The upkeep of jobs: purges what was in the trash long enough, and puts there what the settings
say is kept no longer.

Any number of workers may run it; a session's advisory lock lets one of them work. It takes items in
chunks, each owner's in a transaction that also counts them, so that whatever stops it, the next
round goes on with what is left.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import structlog

from services.conversions import conversion_rows, metrics, retention_rows, rules, trash_rows
from services.conversions.job_kinds import KINDS, AnyKind
from shared.background import due, sole, tasks
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.database.exchange import Connection
from shared.database.rows import Statement
from shared.settings import Settings

_PAUSE_SECONDS = 60.0
_SILENT_SECONDS = 180  # longer than a chunk takes, and than the pause
_log = structlog.get_logger("upkeep")


_KEPT_FROM = "coalesce(kept_from, updated_at)"
# Conditions are those of the indexes <table>_expire, <table>_retained, conversions_inputs and
# provider_calls_texts.
_FIND_EXPIRED = {
    name: Statement(due.Found, due.oldest(name, "expires_at", "expires_at IS NOT NULL"))
    for name in KINDS
}
_FIND_DUE = {
    (name, state): Statement(
        due.Found, due.oldest(name, _KEPT_FROM, f"deleted_at IS NULL AND state = '{state}'")
    )
    for name in KINDS
    for state in sorted(rules.FINISHED)
}
_FIND_INPUTS = Statement(
    due.Found,
    due.oldest(
        "conversions", _KEPT_FROM, "deleted_at IS NULL AND state = 'completed' AND NOT drop_inputs"
    ),
)
_FIND_CALLS = Statement(
    due.Found, due.oldest("provider_calls", "ended_at", "(handle <> '' OR category <> '')")
)
# What changed since it was found is left alone, and so is what somebody changes right now.
_LOCK_EXPIRED = {
    name: Statement(
        kind.table.row,
        f"""
        SELECT {kind.table.columns} FROM {name} WHERE id = ANY(%(ids)s) AND expires_at < now()
        ORDER BY id FOR UPDATE SKIP LOCKED
        """,
    )
    for name, kind in KINDS.items()
}
_LOCK_DUE = {
    name: Statement(
        UUID,
        f"""
        SELECT id FROM {name} WHERE id = ANY(%(ids)s) AND deleted_at IS NULL
            AND {_KEPT_FROM} < now() - %(kept)s::interval
        ORDER BY id FOR UPDATE SKIP LOCKED
        """,
    )
    for name in KINDS
}
_FORGET_TEXTS = Statement(
    UUID,
    """
    UPDATE provider_calls SET handle = '', category = '' WHERE id = ANY(%(ids)s)
    RETURNING id
    """,
)


class Upkeep:
    def __init__(self, db: Database, queue: JobQueue, settings: Settings) -> None:
        self._db = db
        self._queue = queue
        self._kept = retention_rows.of_settings(settings).kept
        self._life = timedelta(days=settings.trash_days)
        self._most = settings.cleanup_max_items

    async def run_forever(self) -> None:
        metrics.UPKEEP_ROUND.set_to_current_time()
        while tasks.not_cancelled():
            try:
                alone = sole.alone(self._db, sole.Duty.UPKEEP, silent_seconds=_SILENT_SECONDS)
                async with alone as session:
                    if session:
                        await self._keep(session)
            except psycopg.Error as error:
                _log.warning("upkeep waits", error=type(error).__name__)
            await tasks.pause(_PAUSE_SECONDS)

    async def _keep(self, session: Connection) -> None:
        """Works round by round while this session holds the lock."""
        while tasks.not_cancelled():
            total = 0
            async for done in self.run():
                total += done
                await sole.check(session)
            metrics.UPKEEP_ROUND.set_to_current_time()
            if total:
                _log.info("upkeep took items", items=total)
            await tasks.pause(_PAUSE_SECONDS)
            await sole.check(session)

    async def run(self) -> AsyncIterator[int]:
        """Takes what is due, up to a limit of each kind. Yields after each chunk how many items it
        took."""
        for kind in KINDS.values():
            find = _FIND_EXPIRED[kind.table.name]
            async for done in self._take("purged", find, self._purging(kind)):
                yield done
        for (table, state), find in _FIND_DUE.items():
            name = rules.retention_class(table, state)
            if kept := self._kept.get(name):
                async for done in self._take(name, find, self._deleting(KINDS[table], kept), kept):
                    yield done
        if kept := self._kept.get("inputs"):
            async for done in self._take("inputs", _FIND_INPUTS, self._dropping(kept), kept):
                yield done
        if kept := self._kept.get("calls"):
            async for done in self._take("calls", _FIND_CALLS, _forget_texts, kept):
                yield done

    async def _take(
        self, name: str, find: Statement[due.Found], act: due.Act, kept: timedelta = timedelta()
    ) -> AsyncIterator[int]:
        """Lets `act` take the items that `find` finds, and counts them as of this class."""

        async def counted(m: Mutation, ids: Sequence[UUID]) -> int:
            done = await act(m, ids)
            await retention_rows.count(m, name, done)
            return done

        async for done in due.take(self._db, find, counted, most=self._most, kept=kept):
            metrics.RETENTION.labels(name).inc(done)
            yield done

    def _purging(self, kind: AnyKind) -> due.Act:
        async def act(m: Mutation, ids: Sequence[UUID]) -> int:
            rows: list[Any] = await m.all(_LOCK_EXPIRED[kind.table.name], {"ids": list(ids)})
            await trash_rows.purge(m, kind, self._queue, rows)
            return len(rows)

        return act

    def _deleting(self, kind: AnyKind, kept: timedelta) -> due.Act:
        async def act(m: Mutation, ids: Sequence[UUID]) -> int:
            kept_long = await m.all(_LOCK_DUE[kind.table.name], {"ids": list(ids), "kept": kept})
            return len(await trash_rows.delete(m, kind, self._queue, kept_long, self._life))

        return act

    def _dropping(self, kept: timedelta) -> due.Act:
        async def act(m: Mutation, ids: Sequence[UUID]) -> int:
            kept_long = await m.all(_LOCK_DUE["conversions"], {"ids": list(ids), "kept": kept})
            dropped = await trash_rows.drop_inputs(m, conversion_rows.KIND, self._queue, kept_long)
            return len(dropped)

        return act


async def _forget_texts(m: Mutation, ids: Sequence[UUID]) -> int:
    return len(await m.all(_FORGET_TEXTS, {"ids": list(ids)}))
