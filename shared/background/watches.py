"""Serves watches: the current state, then every change in commit order.

A server's `EventStream` follows the stamped events of its service with one listening connection per
process: for each watched owner, one reader fans out to all its watchers. A watch ends with a cursor
in the error's trailers, from which it goes on. See `events` for how changes get their order.
"""

import asyncio
import base64
import binascii
import json
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

import psycopg
import structlog
from atelier.common.v1 import watch_pb2
from google.protobuf.message import Message

from shared.background.events import POLL_SECONDS
from shared.background.tasks import not_cancelled
from shared.database.db import Database
from shared.database.rows import Statement
from shared.rpc import auth, errors, paging
from shared.rpc.errors import DomainError, Reason

BOOKMARK_SECONDS = 10.0
READ_BATCH = 500
QUEUE_LIMIT = 2000  # events that a slow watcher may lag behind before its watch is ended
_log = structlog.get_logger("watches")

A = TypeVar("A", bound=Message)
Fields = Mapping[str, Any]  # fields of a watch's answer: `{"asset": ...}`


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one row. `version` is the row's version after the change, `payload` a
    serialised message."""

    position: int
    subject: str
    subject_id: UUID
    version: int
    type: str
    payload: bytes
    # Answers made from this event, by the digest of the watch.
    answers: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(slots=True)
class Cursor:
    """A watcher's position. `digest` binds it to the filter and owner."""

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
            raise errors.invalid(
                "cursor", "is not of a watch with this filter and owner; leave it empty"
            )
        return cursor


class _Watcher:
    """One watch in this process. It keeps one running timer, since a new timer per event would cost
    more than the event."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.live = False  # False while it still reads history
        self.events: deque[Event] = deque()
        self.overflown = False
        self._loop = asyncio.get_running_loop()
        self._sleep: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf

    def give(self, event: Event) -> None:
        # After an overflow no event is added: the watch ends where the gap begins.
        if self.live and not self.overflown and event.position > self.cursor.position:
            self.overflown = len(self.events) >= QUEUE_LIMIT
            if not self.overflown:
                self.events.append(event)
            self.wake()

    def wake(self) -> None:
        if self._sleep and not self._sleep.done():
            self._sleep.set_result(None)

    def _ring(self) -> None:
        self._rings_at = math.inf
        self.wake()

    async def sleep(self, until: float) -> None:
        """Sleeps until woken, at the latest until the loop's time `until`. May return early for no
        reason."""
        if until < self._rings_at:
            self.close()
            self._rings_at = until
            self._timer = self._loop.call_at(until, self._ring)
        self._sleep = self._loop.create_future()
        await self._sleep

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()


@dataclass(eq=False)
class _Owner:
    """This process's watchers of one owner. Events up to the stream's `position` were handed out.

    Watchers keep the order in which they arrived: those of one connection are then mostly served
    one after the other, and their messages are sent and received together.
    """

    position: int
    watchers: dict[_Watcher, None] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    reader: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Stream:
    """The one row of `event_stream`."""

    epoch: UUID
    position: int
    pruned_to: int


@dataclass(slots=True)
class _Told:
    """A stamped event's row."""

    position: int | None
    subject: str
    subject_id: UUID
    version: int
    type: str
    payload: bytes


@dataclass(slots=True)
class _Fresh(_Told):
    """An event's row with the end of the stream. Without new events there is one row, whose
    position and other columns of the event are None."""

    head: int


def _event(row: _Told, position: int) -> Event:
    return Event(position, row.subject, row.subject_id, row.version, row.type, row.payload)


_SELECT_STREAM = Statement(_Stream, "SELECT epoch, position, pruned_to FROM event_stream")
_SELECT_HISTORY = Statement(
    _Told,
    """
    SELECT position, subject, subject_id, version, type, payload FROM events
    WHERE owner = %(owner)s AND position > %(after)s AND position <= %(until)s
        ORDER BY position LIMIT %(limit)s
""",
)
# Reads the end of the stream and the new events from one snapshot, in one round trip.
_SELECT_FRESH = Statement(
    _Fresh,
    """
    SELECT stream.position AS head, fresh.position, fresh.subject, fresh.subject_id, fresh.version,
        fresh.type, fresh.payload FROM event_stream AS stream LEFT JOIN LATERAL (
        SELECT position, subject, subject_id, version, type, payload FROM events
        WHERE owner = %(owner)s AND position > %(after)s ORDER BY position LIMIT %(limit)s
    ) AS fresh ON true ORDER BY fresh.position
""",
)


class EventStream:
    """Reads one service's stamped events for this process's watchers."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._owners: dict[str, _Owner] = {}
        self._listener: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    def start(self) -> None:
        self._listener = asyncio.create_task(self._listen())

    async def drain(self) -> None:
        """Ends every watch; each error carries the watch's cursor."""
        self._stopping.set()
        for owner in self._owners.values():
            for watcher in owner.watchers:
                watcher.wake()

    async def close(self) -> None:
        tasks = [owner.reader for owner in self._owners.values() if owner.reader] + [self._listener]
        for task in filter(None, tasks):
            task.cancel()

    async def head(self) -> Cursor:
        """Returns the current end of the stream. Read it before the state that a watch begins
        with."""
        row = await self._db.one(_SELECT_STREAM)
        return Cursor(row.epoch, row.position, "")

    async def watch(
        self,
        request: Any,
        answer: Callable[..., A],
        now: AsyncIterator[tuple[Fields, Any]],
        show: Callable[[Event], Fields | None],
    ) -> AsyncGenerator[A, None]:
        """Serves a watch: the current state from `now` (fields with their row), the READY bookmark,
        then every change, and bookmarks.

        `show` returns the fields of an event that the request asks for, or None to skip the event.
        It must depend on the request alone: one answer serves all watches with equal requests.
        """
        start = await self._start(request)
        seen: dict[UUID, int] = {}
        if not request.cursor:
            async for fields, row in now:
                seen[row.id] = getattr(row, "version", 1)
                yield answer(**fields)
            yield _bookmark(
                answer, Cursor(start.epoch, start.position, watch_digest(request)), ready=True
            )
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        async with aclosing(self.follow(request, start)) as changes:
            async for event, cursor in changes:
                change: A | None = None
                if event and event.version > seen.get(event.subject_id, 0):
                    if cursor.digest not in event.answers:
                        told = show(event)
                        made = None if told is None else answer(**told, cursor=cursor.encode())
                        event.answers[cursor.digest] = made
                    change = event.answers[cursor.digest]
                # Skipped events must not let a watcher's cursor grow old either.
                if change is None and (event is None or loop.time() >= sent_at + BOOKMARK_SECONDS):
                    change = _bookmark(answer, cursor)
                if change is not None:
                    sent_at = loop.time()
                    yield change

    async def follow(
        self, request: Any, start: Cursor
    ) -> AsyncGenerator[tuple[Event | None, Cursor], None]:
        """Yields (event, cursor) in order after `start`, and (None, cursor) while idle. All share
        one cursor object, which advances.

        Raises CURSOR_TOO_OLD; and, with the cursor to continue from in the trailers, SHUTTING_DOWN,
        SLOW_READER, TOKEN_INVALID when the caller's token expires, DEPENDENCY_UNAVAILABLE if
        history can't be read.
        """
        identity = auth.current()
        # Without a cursor in the request, `start` was the head a moment ago and needs no check that
        # could fail. A call that only waits for its job has no such field in its request.
        until = await self._check(start) if getattr(request, "cursor", "") else start.position
        cursor = Cursor(start.epoch, start.position, watch_digest(request))
        watcher = _Watcher(cursor)
        owner = self._enter(identity.owner, watcher, until)
        try:
            # History is read at the watcher's pace. Events that arrive meanwhile are read as
            # history too, so they can't overflow its queue.
            while cursor.position < (until := max(until, owner.position)):
                async for event in self._history(identity.owner, cursor.position, until):
                    cursor.position = event.position
                    yield event, cursor
                cursor.position = until
            watcher.live = True
            async for fresh in self._live(owner, watcher, identity):
                yield fresh, cursor
        except psycopg.Error:
            text = "the database can't be reached right now; watch again with the cursor"
            raise _ended(Reason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, text, cursor) from None
        finally:
            watcher.close()
            owner.watchers.pop(watcher, None)
            if not owner.watchers:
                self._owners.pop(identity.owner, None)
                if owner.reader:
                    owner.reader.cancel()

    async def _live(
        self, owner: _Owner, watcher: _Watcher, identity: auth.Identity
    ) -> AsyncIterator[Event | None]:
        loop = asyncio.get_running_loop()
        cursor = watcher.cursor
        expires = loop.time() + identity.expires_at - time.time()
        bookmark_due = loop.time() + BOOKMARK_SECONDS
        while True:
            now = loop.time()
            if self._stopping.is_set():
                raise _ended(
                    Reason.ERROR_REASON_SHUTTING_DOWN, "the server is stopping; watch again", cursor
                )
            if now >= expires:
                raise _ended(
                    Reason.ERROR_REASON_TOKEN_INVALID,
                    "the token has expired; get a new one",
                    cursor,
                )
            if watcher.events:
                event = watcher.events.popleft()
                bookmark_due = now + BOOKMARK_SECONDS
                cursor.position = event.position
                yield event
            elif watcher.overflown:
                raise _ended(
                    Reason.ERROR_REASON_SLOW_READER,
                    "read faster; watch again with the cursor",
                    cursor,
                )
            elif now >= bookmark_due:
                bookmark_due = now + BOOKMARK_SECONDS
                cursor.position = max(cursor.position, owner.position)
                yield None
            else:
                await watcher.sleep(min(bookmark_due, expires))

    async def _start(self, request: Any) -> Cursor:
        """Returns the request's cursor, else the head. Raises INVALID_ARGUMENT for a cursor of
        another filter or owner."""
        return (
            Cursor.decode(request.cursor, watch_digest(request))
            if request.cursor
            else await self.head()
        )

    async def _check(self, cursor: Cursor) -> int:
        """Returns the stream's current position. Raises CURSOR_TOO_OLD."""
        row = await self._db.one(_SELECT_STREAM)
        if (
            cursor.epoch != row.epoch
            or cursor.position < row.pruned_to
            or cursor.position > row.position
        ):
            raise DomainError(
                Reason.ERROR_REASON_CURSOR_TOO_OLD,
                "the history after this cursor is no longer kept; watch again without a cursor",
            )
        return row.position

    def _enter(self, name: str, watcher: _Watcher, position: int) -> _Owner:
        """Adds a watcher before it reads history, so that no event is missed between. An owner's
        new reader starts at `position`."""
        if self._stopping.is_set():
            raise DomainError(
                Reason.ERROR_REASON_SHUTTING_DOWN, "the server is stopping; connect again"
            )
        owner = self._owners.get(name)
        if owner is None:
            owner = self._owners[name] = _Owner(position)
            owner.reader = asyncio.create_task(self._read_owner(name, owner, auth.current()))
        owner.watchers[watcher] = None
        return owner

    async def _history(self, owner: str, after: int, until: int) -> AsyncIterator[Event]:
        while after < until:
            rows = await self._db.all(
                _SELECT_HISTORY,
                {"owner": owner, "after": after, "until": until, "limit": READ_BATCH},
            )
            for row in rows:
                yield _event(row, row.position or 0)
            if len(rows) < READ_BATCH:
                return
            after = rows[-1].position or 0

    async def _read_owner(self, name: str, owner: _Owner, identity: auth.Identity) -> None:
        """Reads one owner's events for all watchers; woken by the listener, or by the poll if a
        notification was lost."""
        # This sets only the tenant context: each watcher checks the expiry of its own token.
        auth.enter(identity)
        while not_cancelled():
            try:
                while await self._read_fresh(name, owner):
                    pass
            except (psycopg.Error, TimeoutError) as error:
                _log.warning(
                    "can't read events", service=self._db.service, error=type(error).__name__
                )
                await asyncio.sleep(POLL_SECONDS)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(BOOKMARK_SECONDS / 2):
                    await owner.wake.wait()
            owner.wake.clear()

    async def _read_fresh(self, name: str, owner: _Owner) -> bool:
        """Hands out one batch of events. Returns whether there may be more."""
        rows = await self._db.all(
            _SELECT_FRESH, {"owner": name, "after": owner.position, "limit": READ_BATCH}
        )
        for row in rows:
            if row.position is not None:
                event = _event(row, row.position)
                for watcher in owner.watchers:
                    watcher.give(event)
                owner.position = event.position
        if len(rows) == READ_BATCH:
            return True
        owner.position = max(owner.position, rows[0].head)
        return False

    async def _listen(self) -> None:
        """Listens on one connection per process. While it is broken, the poll wakes the owners."""
        while not_cancelled():
            with suppress(psycopg.Error, OSError, TimeoutError):
                async with await self._db.connect() as conn:
                    await conn.execute(f"LISTEN {self._db.service}_events")
                    self._wake(self._owners)
                    async for notice in conn.notifies():
                        self._wake(json.loads(notice.payload) if notice.payload else self._owners)
            self._wake(self._owners)
            await asyncio.sleep(POLL_SECONDS)

    def _wake(self, names: Iterable[str]) -> None:
        for name in names:
            if owner := self._owners.get(name):
                owner.wake.set()


def _bookmark(answer: Callable[..., A], cursor: Cursor, *, ready: bool = False) -> A:
    text = cursor.encode()
    return answer(bookmark=watch_pb2.Bookmark(cursor=text, ready=ready), cursor=text)


def _ended(reason: int, text: str, cursor: Cursor) -> DomainError:
    return DomainError(reason, text, trailers=[("cursor", cursor.encode())])


def watch_digest(request: Message) -> str:
    return paging.filter_digest(request, ("cursor",))
