"""Publishes changes as events, and gives them positions in commit order.

`publish` writes an outbox row in the transaction of the change. One sequencer per service
(`run_sequencer`, in the worker) stamps committed rows with dense positions and notifies the
servers, whose `watches` read them.

A sequence doesn't follow commit order, and waiting for the oldest open transaction would wait for
the whole cluster. Stamping visible rows under an advisory lock avoids both problems.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import psycopg
import structlog
from google.protobuf.message import Message

from shared.background import sole
from shared.background.tasks import not_cancelled
from shared.database.db import Database, Mutation, execute
from shared.database.exchange import Connection
from shared.database.rows import Command, Statement

POLL_SECONDS = 1.0  # the fallback when a notification is lost
STAMP_BATCH = 1000
_NOTICE_BYTES = 7999  # Postgres refuses a longer notification; an empty one wakes all readers
_SILENT_SECONDS = 10
_log = structlog.get_logger("events")

_PUBLISH = b"""
    INSERT INTO events (owner, subject, subject_id, version, type, payload) VALUES ($1, $2, $3, $4,
        $5, $6)
    RETURNING pg_notify(current_schema() || '_outbox', '')
"""


async def publish(
    m: Mutation, subject: str, subject_id: UUID, version: int, payload: Message
) -> None:
    """Publishes a change if the transaction commits. The payload must not hold URLs: they would
    expire."""
    m.send(
        _PUBLISH,
        m.owner,
        subject,
        str(subject_id),
        str(version),
        payload.DESCRIPTOR.full_name,
        payload.SerializeToString(),
    )


_PUBLISH_ALL = Command("""
    INSERT INTO events (owner, subject, subject_id, version, type, payload)
    SELECT %(owner)s, %(subject)s, id, version, %(type)s, payload
    FROM unnest(%(ids)s::uuid[], %(versions)s::bigint[], %(payloads)s::bytea[])
        AS c (id, version, payload)
""")
_NOTIFY = Command("SELECT pg_notify(current_schema() || '_outbox', '')")


async def publish_all(
    m: Mutation, subject: str, changes: Sequence[tuple[UUID, int, Message]]
) -> None:
    """Publishes many changes (subject id, version, payload) of one kind with one statement, in this
    order."""
    if changes:
        await m.run(
            _PUBLISH_ALL,
            {
                "owner": m.owner,
                "subject": subject,
                "type": changes[0][2].DESCRIPTOR.full_name,
                "ids": [change[0] for change in changes],
                "versions": [change[1] for change in changes],
                "payloads": [change[2].SerializeToString() for change in changes],
            },
        )
        await m.run(_NOTIFY)


# _STAMP stamps and notifies in one statement, so in one round trip, because every watcher waits for
# it.
_STAMP = Statement(
    int,
    """
    WITH fresh AS (
        SELECT seq, row_number() OVER (ORDER BY seq) AS n FROM
            (SELECT seq FROM events WHERE position IS NULL ORDER BY seq
                LIMIT %(batch)s) AS unstamped
    ), advanced AS (
        UPDATE event_stream SET position = position + (SELECT count(*) FROM fresh)
        WHERE EXISTS (SELECT FROM fresh) RETURNING position - (SELECT count(*) FROM fresh) AS base
    ), stamped AS (
        UPDATE events SET position = advanced.base + fresh.n
        FROM fresh, advanced WHERE events.seq = fresh.seq RETURNING events.owner
    ), summed AS (
        SELECT json_agg(DISTINCT owner)::text AS owners, count(*) AS stamped FROM stamped
    )
    , told AS (
        SELECT pg_notify(
            current_schema() || '_events',
            CASE WHEN octet_length(owners) <= %(room)s THEN owners ELSE '' END
        ) FROM summed WHERE stamped > 0
    )
    SELECT stamped FROM summed LEFT JOIN told ON true
""",
)
_PRUNE = Statement(
    int,
    """
    WITH old AS (
        SELECT seq, position FROM events
        WHERE position IS NOT NULL AND created_at < now() - %(age)s::interval
        ORDER BY position LIMIT %(chunk)s
    ), gone AS (
        DELETE FROM events USING old WHERE events.seq = old.seq RETURNING events.position
    ), marked AS (
        UPDATE event_stream SET pruned_to = greatest(pruned_to, last.p)
        FROM (SELECT max(position) AS p FROM old) AS last WHERE last.p IS NOT NULL
    )
    SELECT count(*) FROM gone
""",
)


async def run_sequencer(db: Database) -> None:
    """Stamps events until cancelled. Any number may run; a session's advisory lock lets only one
    work."""
    while not_cancelled():
        try:
            alone = sole.alone(db, sole.Duty.SEQUENCING, silent_seconds=_SILENT_SECONDS)
            async with alone as session:
                if session:
                    await _stamp_forever(session, db.service)
        except psycopg.Error as error:
            _log.warning(
                "sequencer lost its connection", service=db.service, error=type(error).__name__
            )
        await asyncio.sleep(POLL_SECONDS)


async def _stamp_forever(conn: Connection, service: str) -> None:
    await conn.execute(f"LISTEN {service}_outbox")
    # A plan cached while the outbox was empty would scan the whole outbox for every event.
    await conn.execute("SET plan_cache_mode = force_custom_plan")
    # A cancellation that meets the end of a statement may be lost: only not_cancelled() sees it.
    while not_cancelled():
        stamping = await execute(conn, _STAMP, {"batch": STAMP_BATCH, "room": _NOTICE_BYTES})
        stamped = await stamping.fetchone()
        if stamped is not None and stamped < STAMP_BATCH:
            async for _ in conn.notifies(timeout=POLL_SECONDS, stop_after=1):
                pass


async def prune_events(db: Database, older_than: timedelta, chunk: int = 5000) -> int:
    """Deletes stamped events past their retention. Watches with an older cursor are then answered
    OUT_OF_RANGE."""
    total = 0
    while True:
        async with db.transaction("") as m:
            pruned = await m.one(_PRUNE, {"age": older_than, "chunk": chunk})
        total += pruned
        if pruned < chunk:
            return total
