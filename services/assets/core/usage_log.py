"""Records uses: who did what with an image, and how often.

A change records its use in its own transaction (`UsageLog.write`). A read must not become a write,
so it only leaves a note in memory (`UsageLog.note`), and the notes are written together, at most a
second later. A server that is killed loses the notes of that second; one that stops writes them
first. While the database is away, a server keeps 10,000 notes and then drops the oldest.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol, TypedDict, Unpack
from uuid import UUID

import psycopg
import psycopg_pool
import structlog
from psycopg.types.json import Jsonb

from services.assets.core.history_rows import USAGE_EVENTS, UsageEvent
from shared.background.tasks import not_cancelled
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Statement
from shared.rpc import auth, origin

_FLUSH_SECONDS = 1.0
_SHORTEN_SECONDS = 600.0
_BATCH = 500
_MOST_NOTES = 10_000
_log = structlog.get_logger("usage")

_ACT_FOR = Command("SELECT set_config('app.owner_id', %(owner)s, true)")
_INSERT_USES = Statement(
    UsageEvent,
    f"""
    INSERT INTO usage_events (id, owner, actor, asset_id, action, ip, user_agent, session_id,
        conversion_id, metadata)
    SELECT id, %(owner)s, actor, asset_id, action, ip, user_agent, session_id, conversion_id,
        metadata
    FROM jsonb_to_recordset(%(uses)s) AS u (id uuid, actor text, asset_id uuid, action text,
        ip inet, user_agent text, session_id text, conversion_id text, metadata jsonb)
    ON CONFLICT DO NOTHING RETURNING {USAGE_EVENTS.columns}
    """,
)
# Ordered, so that no two transactions wait for each other.
_COUNT_USES = Command("""
    INSERT INTO usage_days AS d (owner, asset_id, day, action, by_owner, by_others)
    SELECT %(owner)s, asset_id, current_date, action, by_owner, by_others
    FROM jsonb_to_recordset(%(counts)s) AS c (asset_id uuid, action text, by_owner bigint,
        by_others bigint)
    ORDER BY asset_id, action
    ON CONFLICT ON CONSTRAINT usage_days_pkey DO UPDATE
    SET by_owner = d.by_owner + excluded.by_owner, by_others = d.by_others + excluded.by_others
""")
_SHORTEN = Statement(
    UUID,
    """
    UPDATE usage_events SET shortened = true, user_agent = split_part(user_agent, '/', 1),
        ip = network(set_masklen(ip, CASE family(ip) WHEN 4 THEN 24 ELSE 48 END))
    WHERE id = ANY (ARRAY(
        SELECT id FROM usage_events
        WHERE NOT shortened AND created_at < now() - %(age)s::interval ORDER BY created_at
        LIMIT %(chunk)s FOR UPDATE SKIP LOCKED))
    RETURNING id
    """,
)


class Owned(Protocol):
    """The columns of an asset that a record of its use needs."""

    @property
    def id(self) -> UUID: ...
    @property
    def owner(self) -> str: ...


class Details(TypedDict, total=False):
    """Optional details of a use."""

    session_id: str
    conversion_id: str
    metadata: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Use:
    """One use: `actor`, of tenant `owner`, used an image of `asset_owner`."""

    asset_id: UUID
    asset_owner: str
    owner: str
    actor: str
    action: str
    come_from: origin.Origin = origin.NOWHERE
    session_id: str = ""
    conversion_id: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    id: UUID = field(default_factory=new_id)

    def as_row(self) -> dict[str, object]:
        return {
            "id": str(self.id),
            "actor": self.actor,
            "asset_id": str(self.asset_id),
            "action": self.action,
            "ip": self.come_from.ip,
            "user_agent": self.come_from.user_agent,
            "session_id": self.session_id,
            "conversion_id": self.conversion_id,
            "metadata": self.metadata,
        }


async def write(m: Mutation, uses: Sequence[Use]) -> list[UsageEvent]:
    """Records and counts uses in the transaction. A use that is recorded already isn't counted
    again, and no use by an erased owner is kept. Returns the new rows.

    A use of another owner's image is a row of the user, and one more in the count of the image's
    owner: the transaction takes the tenant context of each in turn, and its own again at the end.
    """
    new: list[UsageEvent] = []
    for owner in sorted({use.owner for use in uses}):
        await m.run(_ACT_FOR, {"owner": owner})
        rows = [use.as_row() for use in uses if use.owner == owner]
        new += await m.all(_INSERT_USES, {"owner": owner, "uses": Jsonb(rows)})
    fresh = {row.id for row in new}
    counts = Counter(
        (u.asset_owner, u.asset_id, u.action, u.owner == u.asset_owner)
        for u in uses
        if u.id in fresh
    )
    for owner in sorted({key[0] for key in counts}):
        per_image = [
            {
                "asset_id": str(asset_id),
                "action": action,
                "by_owner": counts[owner, asset_id, action, True],
                "by_others": counts[owner, asset_id, action, False],
            }
            for asset_id, action in {(key[1], key[2]) for key in counts if key[0] == owner}
        ]
        await m.run(_ACT_FOR, {"owner": owner})
        await m.run(_COUNT_USES, {"owner": owner, "counts": Jsonb(per_image)})
    await m.run(_ACT_FOR, {"owner": m.owner})
    return new


class UsageLog:
    """Records uses for the handlers of one server."""

    def __init__(self, db: Database, trusted_proxies: origin.Networks) -> None:
        self._db = db
        self._trusted = trusted_proxies
        self._notes: deque[Use] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._forgotten = 0

    def start(self) -> None:
        self._writing = asyncio.create_task(self._write_forever())

    async def close(self) -> None:
        """Writes the remaining notes, if the database takes them in two seconds."""
        if self._writing:
            self._writing.cancel()
            await asyncio.wait([self._writing])
        try:
            async with asyncio.timeout(2):
                await self._flush()
        except (psycopg.Error, psycopg_pool.PoolTimeout, TimeoutError):
            _log.warning("uses were not recorded", count=len(self._notes))

    def uses(self, rows: Iterable[Owned], action: str, **more: Unpack[Details]) -> list[Use]:
        """Returns the caller's uses of these assets, one for each."""
        identity = auth.current()
        # A service's own address says nothing about the person that it works for.
        come_from = origin.NOWHERE if identity.service else origin.current(self._trusted)
        return [
            Use(row.id, row.owner, identity.owner, identity.actor, action, come_from, **more)
            for row in rows
        ]

    async def write(
        self, m: Mutation, rows: Sequence[Owned], action: str, **more: Unpack[Details]
    ) -> None:
        """Records uses in the transaction of a change. Call it last: it updates counts that uses by
        other owners update, too."""
        if rows:
            await write(m, self.uses(rows, action, **more))

    def note(self, rows: Iterable[Owned], action: str, **more: Unpack[Details]) -> None:
        """Notes uses by a person, to be recorded soon, without waiting. A service's reads aren't
        recorded: a service reads as often as its work needs."""
        if auth.current().service is not None:
            return
        self._notes.extend(self.uses(rows, action, **more))
        while len(self._notes) > _MOST_NOTES:
            self._notes.popleft()
            self._forgotten += 1

    async def _write_forever(self) -> None:
        while not_cancelled():
            await asyncio.sleep(_FLUSH_SECONDS)
            try:
                await self._flush()
            except (psycopg.Error, psycopg_pool.PoolTimeout) as error:
                _log.warning(
                    "uses wait to be recorded", count=len(self._notes), error=type(error).__name__
                )
            if self._forgotten:
                _log.error("uses forgotten: too many waited", count=self._forgotten)
                self._forgotten = 0

    async def _flush(self) -> None:
        while self._notes:
            batch = [self._notes[n] for n in range(min(_BATCH, len(self._notes)))]
            try:
                async with self._db.transaction("") as m:
                    await write(m, batch)
            except psycopg.DataError:
                # They are dropped: a later attempt would fail, too.
                _log.exception("uses can't be recorded", count=len(batch))
            written = {use.id for use in batch}
            # Some of the batch may have been dropped meanwhile, because too many waited.
            while self._notes and self._notes[0].id in written:
                self._notes.popleft()


async def shorten(db: Database, older_than: timedelta, chunk: int = 5000) -> int:
    """Shortens the IP addresses and user agents of events older than `older_than`, `chunk` at a
    time. Returns how many events it changed."""
    total = 0
    while True:
        async with db.transaction("") as m:
            done = len(await m.all(_SHORTEN, {"age": older_than, "chunk": chunk}))
        total += done
        if done < chunk:
            return total


async def shorten_forever(db: Database, older_than: timedelta) -> None:
    while not_cancelled():
        await asyncio.sleep(_SHORTEN_SECONDS)
        try:
            await shorten(db, older_than)
        except (psycopg.Error, psycopg_pool.PoolTimeout) as error:
            _log.warning("shortening waits", error=type(error).__name__)
