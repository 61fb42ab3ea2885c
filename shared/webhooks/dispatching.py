"""Follows the outbox: makes a delivery of every event that an endpoint is for.

One dispatcher of a service works at a time, by an advisory lock of its transaction (a lock on the
cursor's row would write, also while nothing happens). The cursor moves in the transaction that
makes the deliveries, so that a crash neither loses an event nor makes two deliveries of it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg
import structlog

from shared.background.events import POLL_SECONDS
from shared.background.tasks import wanted
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.outbound import Outbound
from shared.settings import Settings
from shared.webhooks.event_types import EventTypes, body_of
from shared.webhooks.sending import Sender

_BATCH = 500
_log = structlog.get_logger("webhooks")

_CURSOR: LiteralString = """
    SELECT position FROM webhook_cursor
        WHERE pg_try_advisory_xact_lock(hashtextextended(current_schema(), 8))
"""
_FRESH: LiteralString = """
    SELECT position, owner, subject, version, payload, created_at FROM events
    WHERE position > %(after)s AND position <= %(until)s AND EXISTS (
        SELECT FROM webhook_endpoints e WHERE e.owner = events.owner AND e.state = 'enabled')
    ORDER BY position
"""
_MISSED: LiteralString = """
    SELECT position, owner, subject, version, payload, created_at FROM events
    WHERE owner = %(owner)s AND position > %(after)s AND position <= %(until)s
        ORDER BY position LIMIT %(limit)s
"""
# Held against deletion until the deliveries are there.
_ENDPOINTS: LiteralString = """
    SELECT id, owner, event_types FROM webhook_endpoints WHERE owner = ANY(%(owners)s) AND state
        = 'enabled'
    FOR KEY SHARE
"""
_REPLAYING: LiteralString = """
    SELECT id, owner, event_types, replay_from, replay_to FROM webhook_endpoints
    WHERE replay_from IS NOT NULL AND state = 'enabled' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
"""
_DELIVER: LiteralString = """
    INSERT INTO webhook_deliveries (id, owner, endpoint_id, position, event_type, body)
    SELECT * FROM unnest(%(ids)s::uuid[], %(owners)s::text[], %(endpoints)s::uuid[],
        %(positions)s::bigint[],
        %(types)s::text[], %(bodies)s::text[])
    ON CONFLICT (endpoint_id, position) WHERE position IS NOT NULL DO NOTHING
"""


async def run(db: Database, settings: Settings, types: EventTypes) -> None:
    """Delivers for ever. Any number may run. Ends only by cancellation."""
    async with (
        Outbound(settings, https_only=not settings.webhook_http) as out,
        asyncio.TaskGroup() as group,
    ):
        sender = Sender(db, settings, out)
        group.create_task(sender.run())
        while wanted():
            try:
                async with await db.connect() as conn:
                    await conn.execute(f"LISTEN {db.service}_events")
                    while wanted():
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
        # it was lost above: without it the group would wait for its sender
        raise asyncio.CancelledError


async def dispatch(db: Database, types: EventTypes) -> bool:
    """Takes up a batch of fresh events, and one of a replay. Returns whether there is more to do at
    once."""
    async with db.transaction("") as m:
        cursor = await m.one(_CURSOR)
        if cursor is None:
            return False  # another one is at it
        stream = await m.one("SELECT position, pruned_to FROM event_stream")
        after = max(cursor.position, stream.pruned_to)
        if after > cursor.position:
            _log.error(
                "events were pruned before webhooks took them up",
                service=db.service,
                lost=after - cursor.position,
            )
        until = min(after + _BATCH, stream.position)
        if until > cursor.position:
            events = await m.all(_FRESH, {"after": after, "until": until})
            endpoints = (
                await m.all(_ENDPOINTS, {"owners": list({event.owner for event in events})})
                if events
                else []
            )
            if not await _deliver(m, types, events, endpoints):
                await m.run(
                    "SET LOCAL synchronous_commit = off"
                )  # lost in a crash, the step is only taken again
            await m.run("UPDATE webhook_cursor SET position = %s", (until,))
        return await _replay(m, types) or until < stream.position


async def _replay(m: Mutation, types: EventTypes) -> bool:
    endpoint = await m.one(_REPLAYING)
    if endpoint is None:
        return False
    events = await m.all(
        _MISSED,
        {
            "owner": endpoint.owner,
            "after": endpoint.replay_from,
            "until": endpoint.replay_to,
            "limit": _BATCH,
        },
    )
    await _deliver(m, types, events, [endpoint])
    await m.run(
        "UPDATE webhook_endpoints SET replay_from = %(at)s WHERE id = %(id)s",
        {"id": endpoint.id, "at": events[-1].position if len(events) == _BATCH else None},
    )
    return True


async def _deliver(
    m: Mutation, types: EventTypes, events: Sequence[Any], endpoints: Sequence[Any]
) -> int:
    """Makes the deliveries that aren't there yet. Returns how many the endpoints are for."""
    of_owner = defaultdict(list)
    for endpoint in endpoints:
        of_owner[endpoint.owner].append(endpoint)
    rows = []
    for event in events:
        message = types.subjects.get(event.subject)
        if message is None:
            continue
        try:
            told = message.FromString(event.payload)
            name = types.name(event.subject, event.version, told)
            body = body_of(name, event.created_at, told)
        except Exception as error:  # one event that can't be told must not stop those after it
            _log.error(
                "event can't be told",
                subject=event.subject,
                position=event.position,
                error=type(error).__name__,
            )
            continue
        rows += [
            (new_id(), event.owner, endpoint.id, event.position, name, body)
            for endpoint in of_owner[event.owner]
            if not endpoint.event_types or name in endpoint.event_types
        ]
    if rows:
        columns = [list(column) for column in zip(*rows, strict=True)]
        await m.run(
            _DELIVER,
            dict(
                zip(
                    ("ids", "owners", "endpoints", "positions", "types", "bodies"),
                    columns,
                    strict=True,
                )
            ),
        )
    return len(rows)
