"""Reads the outbox and makes a delivery of every event for every endpoint that takes its type.

One dispatcher per service works at a time, under an advisory lock of its transaction (a lock on the
cursor's row would write even when nothing happens). The cursor moves in the transaction that makes
the deliveries, so a crash neither loses an event nor makes two deliveries of it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg
import structlog

from shared.background.events import POLL_SECONDS
from shared.background.tasks import not_cancelled
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Statement
from shared.outbound import Outbound
from shared.settings import Settings
from shared.webhooks.event_types import EventTypes, body_of
from shared.webhooks.sending import Sender

_BATCH = 500
_log = structlog.get_logger("webhooks")


@dataclass(slots=True)
class _Stream:
    position: int
    pruned_to: int


@dataclass(slots=True)
class _Event:
    position: int | None  # None until the sequencer stamps the event
    owner: str
    subject: str
    version: int
    payload: bytes
    created_at: datetime


@dataclass(slots=True)
class _Receiver:
    id: UUID
    owner: str
    event_types: list[str]


@dataclass(slots=True)
class _Replay(_Receiver):
    replay_from: int | None
    replay_to: int | None


_LOCK_CURSOR = Statement(
    int,
    """
    SELECT position FROM webhook_cursor
        WHERE pg_try_advisory_xact_lock(hashtextextended(current_schema(), 8))
    """,
)
_SELECT_STREAM = Statement(_Stream, "SELECT position, pruned_to FROM event_stream")
_SELECT_FRESH_EVENTS = Statement(
    _Event,
    """
    SELECT position, owner, subject, version, payload, created_at FROM events
    WHERE position > %(after)s AND position <= %(until)s AND EXISTS (
        SELECT FROM webhook_endpoints e WHERE e.owner = events.owner AND e.state = 'enabled')
    ORDER BY position
    """,
)
_SELECT_MISSED_EVENTS = Statement(
    _Event,
    """
    SELECT position, owner, subject, version, payload, created_at FROM events
    WHERE owner = %(owner)s AND position > %(after)s AND position <= %(until)s
    ORDER BY position LIMIT %(limit)s
    """,
)
# Locks the endpoints against deletion until their deliveries are committed.
_HOLD_RECEIVERS = Statement(
    _Receiver,
    """
    SELECT id, owner, event_types FROM webhook_endpoints
    WHERE owner = ANY(%(owners)s) AND state = 'enabled'
    FOR KEY SHARE
    """,
)
_LOCK_REPLAY = Statement(
    _Replay,
    """
    SELECT id, owner, event_types, replay_from, replay_to FROM webhook_endpoints
    WHERE replay_from IS NOT NULL AND state = 'enabled' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
    """,
)
_INSERT_DELIVERIES = Command("""
    INSERT INTO webhook_deliveries (id, owner, endpoint_id, position, event_type, body)
    SELECT * FROM unnest(%(ids)s::uuid[], %(owners)s::text[], %(endpoints)s::uuid[],
        %(positions)s::bigint[], %(types)s::text[], %(bodies)s::text[])
    ON CONFLICT (endpoint_id, position) WHERE position IS NOT NULL DO NOTHING
""")
# Used for steps that make no deliveries: a step that a crash loses is repeated.
_COMMIT_WITHOUT_WAIT = Command("SET LOCAL synchronous_commit = off")
_MOVE_CURSOR = Command("UPDATE webhook_cursor SET position = %(position)s")
_MOVE_REPLAY = Command("UPDATE webhook_endpoints SET replay_from = %(at)s WHERE id = %(id)s")


async def run(db: Database, settings: Settings, types: EventTypes) -> None:
    """Delivers events until cancelled. Any number may run."""
    async with (
        Outbound(settings, https_only=not settings.webhook_http) as out,
        asyncio.TaskGroup() as group,
    ):
        sender = Sender(db, settings, out)
        group.create_task(sender.run())
        while not_cancelled():
            try:
                async with await db.connect() as conn:
                    await conn.execute(f"LISTEN {db.service}_events")
                    while not_cancelled():
                        more = await dispatch(db, types)
                        sender.wake()
                        if not more:
                            async for _ in conn.notifies(timeout=POLL_SECONDS, stop_after=1):
                                pass
            except (psycopg.Error, TimeoutError, OSError) as error:
                _log.warning(
                    "webhooks wait for the database", service=db.service, error=type(error).__name__
                )
            await asyncio.sleep(POLL_SECONDS)
        # The cancellation was lost above; without it the group would wait for its sender.
        raise asyncio.CancelledError


async def dispatch(db: Database, types: EventTypes) -> bool:
    """Makes the deliveries of one batch of new events and of one batch of a replay. Returns whether
    more is left to do at once."""
    async with db.transaction("") as m:
        position = await m.first(_LOCK_CURSOR)
        if position is None:
            return False  # another dispatcher is working
        stream = await m.one(_SELECT_STREAM)
        after = max(position, stream.pruned_to)
        if after > position:
            _log.error(
                "events were pruned before webhooks took them up",
                service=db.service,
                lost=after - position,
            )
        until = min(after + _BATCH, stream.position)
        if until > position:
            events = await m.all(_SELECT_FRESH_EVENTS, {"after": after, "until": until})
            owners = list({event.owner for event in events})
            receivers = await m.all(_HOLD_RECEIVERS, {"owners": owners}) if owners else []
            if not await _deliver(m, types, events, receivers):
                await m.run(_COMMIT_WITHOUT_WAIT)
            await m.run(_MOVE_CURSOR, {"position": until})
        return await _replay(m, types) or until < stream.position


async def _replay(m: Mutation, types: EventTypes) -> bool:
    replay = await m.first(_LOCK_REPLAY)
    if replay is None:
        return False
    events = await m.all(
        _SELECT_MISSED_EVENTS,
        {
            "owner": replay.owner,
            "after": replay.replay_from,
            "until": replay.replay_to,
            "limit": _BATCH,
        },
    )
    await _deliver(m, types, events, [replay])
    await m.run(
        _MOVE_REPLAY,
        {"id": replay.id, "at": events[-1].position if len(events) == _BATCH else None},
    )
    return True


async def _deliver(
    m: Mutation, types: EventTypes, events: Sequence[_Event], receivers: Sequence[_Receiver]
) -> int:
    """Makes the missing deliveries. Returns how many these events need, existing ones included."""
    of_owner = defaultdict(list)
    for receiver in receivers:
        of_owner[receiver.owner].append(receiver)
    rows = []
    for event in events:
        told = _name_and_body(types, event)
        if told is None:
            continue
        name, body = told
        rows += [
            (new_id(), event.owner, receiver.id, event.position, name, body)
            for receiver in of_owner[event.owner]
            if not receiver.event_types or name in receiver.event_types
        ]
    if rows:
        names = ("ids", "owners", "endpoints", "positions", "types", "bodies")
        columns = map(list, zip(*rows, strict=True))
        await m.run(_INSERT_DELIVERIES, dict(zip(names, columns, strict=True)))
    return len(rows)


def _name_and_body(types: EventTypes, event: _Event) -> tuple[str, str] | None:
    """Returns an event's type and body; None if the event isn't sent."""
    message = types.subjects.get(event.subject)
    if message is None:
        return None
    try:
        told = message.FromString(event.payload)
        name = types.name(event.subject, event.version, told)
        return name, body_of(name, event.created_at, told)
    except Exception as error:  # one unreadable event must not block those after it
        _log.error(
            "event can't be told",
            subject=event.subject,
            position=event.position,
            error=type(error).__name__,
        )
        return None
