"""Changes, told in commit order.

`publish` writes an outbox row in the transaction of the change. One sequencer per service (`run_sequencer`, in the
worker) stamps committed rows with dense positions. A server's `EventStream` follows the stamped rows with one
listening connection per process: for each owner that somebody watches, one reader fans out to all its watchers.

A sequence isn't commit order, and waiting for the oldest open transaction waits for the whole cluster; stamping what
is visible, under an advisory lock, has neither fault.
"""

import asyncio
import base64
import binascii
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import structlog
from google.protobuf.message import Message
from psycopg import AsyncConnection

from shared import auth, errors, paging
from shared.db import Database, Mutation
from shared.errors import DomainError, Reason
from shared.tasks import wanted

BOOKMARK_SECONDS = 10.0
POLL_SECONDS = 1.0  # the fallback when a notification is lost
STAMP_BATCH = 1000
READ_BATCH = 500
QUEUE_LIMIT = 2000  # events a slow watcher may be behind before it is sent away
_MOST_OWNERS_TOLD = 40
_SILENT_SECONDS = 10
_log = structlog.get_logger("events")


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one row. `version` is the row's after the change; `payload` a serialised message."""

    position: int
    subject: str
    subject_id: UUID
    version: int
    type: str
    payload: bytes


_PUBLISH = b"""
    INSERT INTO events (owner, subject, subject_id, version, type, payload) VALUES ($1, $2, $3, $4, $5, $6)
    RETURNING pg_notify(current_schema() || '_outbox', '')
"""


async def publish(m: Mutation, subject: str, subject_id: UUID, version: int, payload: Message) -> None:
    """Tells of a change, if the transaction commits. The payload must not hold URLs: they would expire."""
    m.send(
        _PUBLISH, m.owner, subject, str(subject_id), str(version), payload.DESCRIPTOR.full_name,
        payload.SerializeToString(),
    )  # fmt: skip


async def publish_all(m: Mutation, subject: str, changes: Sequence[tuple[UUID, int, Message]]) -> None:
    """Tells of many changes (subject id, version, payload) of one kind, in this order: one statement for all."""
    if changes:
        await m.run(
            "INSERT INTO events (owner, subject, subject_id, version, type, payload)"
            " SELECT %(owner)s, %(subject)s, id, version, %(type)s, payload"
            " FROM unnest(%(ids)s::uuid[], %(versions)s::bigint[], %(payloads)s::bytea[]) AS c (id, version, payload)",
            {
                "owner": m.owner, "subject": subject, "type": changes[0][2].DESCRIPTOR.full_name,
                "ids": [change[0] for change in changes], "versions": [change[1] for change in changes],
                "payloads": [change[2].SerializeToString() for change in changes],
            },
        )  # fmt: skip
        await m.run("SELECT pg_notify(current_schema() || '_outbox', '')")


# Sequencer

_STAMP: LiteralString = """
    WITH fresh AS (
        SELECT seq, row_number() OVER (ORDER BY seq) AS n FROM
            (SELECT seq FROM events WHERE position IS NULL ORDER BY seq LIMIT %(batch)s) AS unstamped
    ), advanced AS (
        UPDATE event_stream SET position = position + (SELECT count(*) FROM fresh)
        WHERE EXISTS (SELECT FROM fresh) RETURNING position - (SELECT count(*) FROM fresh) AS base, position
    ), stamped AS (
        UPDATE events SET position = advanced.base + fresh.n
        FROM fresh, advanced WHERE events.seq = fresh.seq RETURNING events.owner, advanced.position AS last
    )
    SELECT array_agg(DISTINCT owner) AS owners, max(last) AS last, count(*) AS stamped FROM stamped
"""


async def run_sequencer(db: Database) -> None:
    """Stamps forever. Any number may run; an advisory lock of the session lets one work. Ends only by cancellation."""
    while wanted():
        try:
            async with await db.connect() as conn:
                # A frozen process must not keep the lock: the server ends sessions that have stopped polling.
                await conn.execute(f"SET idle_session_timeout = '{_SILENT_SECONDS}s'")
                lock = await conn.execute("SELECT pg_try_advisory_lock(hashtextextended(current_schema(), 7))  AS held")
                if (await lock.fetchone()).held:  # type: ignore[union-attr]
                    await _stamp_forever(conn, db.service)
        except psycopg.Error as error:
            _log.warning("sequencer lost its connection", service=db.service, error=type(error).__name__)
        await asyncio.sleep(POLL_SECONDS)


async def _stamp_forever(conn: AsyncConnection[Any], service: str) -> None:
    await conn.execute(f"LISTEN {service}_outbox")
    # A plan that was made, and kept, while the outbox was empty goes through all of it for every event.
    await conn.execute("SET plan_cache_mode = force_custom_plan")
    while True:
        row: Any = None
        async with conn.transaction():
            row = await (await conn.execute(_STAMP, {"batch": STAMP_BATCH})).fetchone()
            if row.stamped:
                owners = row.owners if len(row.owners) <= _MOST_OWNERS_TOLD else None
                told = json.dumps({"last": row.last, "owners": owners})
                await conn.execute("SELECT pg_notify(current_schema() || '_events', %s)", (told,))
        if row.stamped < STAMP_BATCH:
            async for _ in conn.notifies(timeout=POLL_SECONDS, stop_after=1):
                pass


async def prune_events(db: Database, older_than: timedelta, chunk: int = 5000) -> int:
    """Deletes stamped events past their retention. Cursors from before are then answered OUT_OF_RANGE."""
    total = 0
    while True:
        async with db.transaction("") as m:
            row = await m.one(
                """WITH old AS (SELECT seq, position FROM events
                                WHERE position IS NOT NULL AND created_at < now() - %(age)s
                                ORDER BY position LIMIT %(chunk)s),
                        gone AS (DELETE FROM events USING old WHERE events.seq = old.seq RETURNING events.position),
                        marked AS (UPDATE event_stream SET pruned_to = greatest(pruned_to, last.p)
                                   FROM (SELECT max(position) AS p FROM old) AS last WHERE last.p IS NOT NULL)
                   SELECT count(*) AS n FROM gone""",
                {"age": older_than, "chunk": chunk},
            )
        total += row.n
        if row.n < chunk:
            return total


# Following


@dataclass(slots=True)
class Cursor:
    """Where a watcher is. `digest` binds it to the filter and owner."""

    epoch: UUID
    position: int
    digest: str

    def encode(self) -> str:
        text = f"{self.epoch.hex}.{self.position}.{self.digest}"
        return base64.urlsafe_b64encode(text.encode()).decode()

    @classmethod
    def decode(cls, text: str, digest: str) -> "Cursor":
        try:
            epoch, position, found = base64.urlsafe_b64decode(text).decode("ascii").split(".")
            cursor = cls(UUID(epoch), int(position), found)
        except (ValueError, binascii.Error):
            cursor = None
        if cursor is None or cursor.digest != digest or cursor.position < 0:
            raise errors.invalid("cursor", "is not of a watch with this filter and owner; leave it empty")
        return cursor


@dataclass(eq=False)
class _Watcher:
    queue: asyncio.Queue[Event | int | None]
    overflown: bool = False


@dataclass(eq=False)
class _Owner:
    """Everybody here who watches one owner. `position`: the stream's, up to which events were handed out."""

    position: int
    watchers: set[_Watcher] = field(default_factory=set)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    reader: asyncio.Task[None] | None = None


_READ = """
    SELECT position, subject, subject_id, version, type, payload FROM events
    WHERE owner = %(owner)s AND position > %(after)s AND position <= %(until)s ORDER BY position LIMIT %(limit)s
"""


class EventStream:
    """Follows one service's stamped events on behalf of this process's watchers."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._owners: dict[str, _Owner] = {}
        self._listener: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    def start(self) -> None:
        self._listener = asyncio.create_task(self._listen())

    async def drain(self) -> None:
        """Ends every watch with its cursor."""
        self._stopping.set()
        for owner in list(self._owners.values()):
            for watcher in owner.watchers:
                with suppress(asyncio.QueueFull):
                    watcher.queue.put_nowait(None)

    async def close(self) -> None:
        tasks = [owner.reader for owner in self._owners.values() if owner.reader] + [self._listener]
        for task in filter(None, tasks):
            task.cancel()

    async def head(self) -> Cursor:
        """The end of the stream now, for the caller. Read it before the state that a watch begins with."""
        row = await self._db.row("SELECT epoch, position FROM event_stream")
        return Cursor(row.epoch, row.position, "")

    async def follow(self, request: Any, start: Cursor) -> AsyncGenerator[tuple[Event | None, str], None]:
        """Yields (event, cursor) in order, after `start`; (None, cursor) as a bookmark while idle.

        Raises CURSOR_TOO_OLD; and, with the cursor to go on from in the trailers, SHUTTING_DOWN, SLOW_READER,
        TOKEN_INVALID when the caller's token expires, DEPENDENCY_UNAVAILABLE if history can't be read.
        """
        identity = auth.current()
        # Without a cursor `start` is the head as it was a moment ago: nothing to check, nothing that could fail now.
        # A call that only waits for the end of what it asked for has none in its request.
        head = await self._check(start) if getattr(request, "cursor", "") else start.position
        watcher = _Watcher(asyncio.Queue(QUEUE_LIMIT))
        # The first watcher of an owner starts its reader at the head, not at its own cursor: a long history would
        # overflow its queue at once, whereas `_history` goes at the pace of the watcher.
        owner = self._enter(identity.owner, watcher, head)
        cursor = Cursor(start.epoch, start.position, watch_digest(request))
        try:
            live_from = owner.position
            async for event in self._history(identity.owner, start.position, live_from):
                cursor.position = event.position
                yield event, cursor.encode()
            cursor.position = max(cursor.position, live_from)
            async for item in self._live(watcher, identity, cursor):
                if isinstance(item, Event):
                    if item.position <= cursor.position:
                        continue
                    cursor.position = item.position
                    yield item, cursor.encode()
                else:
                    cursor.position = max(cursor.position, item)
                    yield None, cursor.encode()
        except psycopg.Error:
            text = "the database can't be reached right now; watch again with the cursor"
            raise _ended(Reason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, text, cursor) from None
        finally:
            owner.watchers.discard(watcher)
            if not owner.watchers:
                self._owners.pop(identity.owner, None)
                if owner.reader:
                    owner.reader.cancel()

    async def _live(self, watcher: _Watcher, identity: auth.Identity, cursor: Cursor) -> AsyncIterator[Event | int]:
        loop = asyncio.get_running_loop()
        expires = loop.time() + identity.expires_at - time.time()
        bookmark_due = loop.time() + BOOKMARK_SECONDS
        latest = cursor.position
        while True:
            if self._stopping.is_set():
                raise _ended(Reason.ERROR_REASON_SHUTTING_DOWN, "the server is stopping; watch again", cursor)
            if watcher.overflown and watcher.queue.empty():
                raise _ended(Reason.ERROR_REASON_SLOW_READER, "read faster; watch again with the cursor", cursor)
            wait = min(bookmark_due, expires) - loop.time()
            if loop.time() >= expires:
                raise _ended(Reason.ERROR_REASON_TOKEN_INVALID, "the token has expired; get a new one", cursor)
            try:
                async with asyncio.timeout(max(wait, 0)):
                    item = await watcher.queue.get()
            except TimeoutError:
                item = latest
            if isinstance(item, Event):
                bookmark_due = loop.time() + BOOKMARK_SECONDS
                yield item
            elif item is not None:
                latest = max(latest, item)
                if loop.time() >= bookmark_due:
                    bookmark_due = loop.time() + BOOKMARK_SECONDS
                    yield latest

    async def _check(self, cursor: Cursor) -> int:
        """The position of the stream now. Raises CURSOR_TOO_OLD."""
        row = await self._db.row("SELECT epoch, position, pruned_to FROM event_stream")
        if cursor.epoch != row.epoch or cursor.position < row.pruned_to or cursor.position > row.position:
            raise DomainError(
                Reason.ERROR_REASON_CURSOR_TOO_OLD,
                "the history after this cursor is no longer kept; watch again without a cursor",
            )
        position: int = row.position
        return position

    def _enter(self, name: str, watcher: _Watcher, position: int) -> _Owner:
        """Joins before history is read, so that nothing falls between."""
        if self._stopping.is_set():
            raise DomainError(Reason.ERROR_REASON_SHUTTING_DOWN, "the server is stopping; connect again")
        owner = self._owners.get(name)
        if owner is None:
            owner = self._owners[name] = _Owner(position)
            owner.reader = asyncio.create_task(self._read_owner(name, owner, auth.current()))
            owner.wake.set()
        owner.watchers.add(watcher)
        return owner

    async def _history(self, owner: str, after: int, until: int) -> AsyncIterator[Event]:
        while after < until:
            rows = await self._db.rows(_READ, {"owner": owner, "after": after, "until": until, "limit": READ_BATCH})
            for row in rows:
                yield Event(*row)
            if len(rows) < READ_BATCH:
                return
            after = rows[-1].position

    async def _read_owner(self, name: str, owner: _Owner, identity: auth.Identity) -> None:
        """The one reader of an owner: woken by the listener, or by the poll if a notification was lost."""
        auth.enter(identity)  # for the tenant context only: each watcher checks its own token's expiry
        while True:
            try:
                until = (await self.head()).position
                async for event in self._history(name, owner.position, until):
                    _hand_out(owner, event)
                owner.position = max(owner.position, until)
                _hand_out(owner, until)
            except (psycopg.Error, TimeoutError) as error:
                _log.warning("can't read events", service=self._db.service, error=type(error).__name__)
                await asyncio.sleep(POLL_SECONDS)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(BOOKMARK_SECONDS / 2):
                    await owner.wake.wait()
            owner.wake.clear()

    async def _listen(self) -> None:
        """One listening connection per process. While it is away, owners are woken by the poll."""
        while True:
            with suppress(psycopg.Error, OSError, TimeoutError):
                async with await self._db.connect() as conn:
                    await conn.execute(f"LISTEN {self._db.service}_events")
                    self._wake(None)
                    async for notice in conn.notifies():
                        self._wake(json.loads(notice.payload)["owners"])
            self._wake(None)
            await asyncio.sleep(POLL_SECONDS)

    def _wake(self, names: list[str] | None) -> None:
        for name in self._owners if names is None else names:
            if owner := self._owners.get(name):
                owner.wake.set()


def _hand_out(owner: _Owner, item: Event | int) -> None:
    if isinstance(item, Event):
        owner.position = item.position
    for watcher in owner.watchers:
        if watcher.overflown:
            continue
        try:
            watcher.queue.put_nowait(item)
        except asyncio.QueueFull:
            watcher.overflown = isinstance(item, Event)


def _ended(reason: int, text: str, cursor: Cursor) -> DomainError:
    return DomainError(reason, text, trailers=[("cursor", cursor.encode())])


def watch_digest(request: Message) -> str:
    return paging.filter_digest(request, ("cursor",))


def start_of(request: Any, head: Cursor) -> Cursor:
    """Where to go on: the request's cursor, else `head`. A cursor of another filter is INVALID_ARGUMENT."""
    return Cursor.decode(request.cursor, watch_digest(request)) if request.cursor else head
