"""Usage: who did what with an image, and how often.

A change records itself in its own transaction (`UsageLog.write`). A read must not become a write,
so it only leaves a note (`UsageLog.note`), and the notes are written together, at the latest a
second later. A server that is killed loses the notes of that second; one that stops writes them
first. While the database is away it keeps 10,000 and then forgets the oldest.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import psycopg_pool
import structlog
from atelier.assets.v1 import usage_pb2 as pb
from atelier.assets.v1 import usage_pb2_grpc
from psycopg.types.json import Jsonb

from shared.background.tasks import wanted
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.rpc import auth, errors, origin, paging
from shared.rpc.protos import Words, metadata, struct, time_of, timestamp

ACTIONS = Words(pb.UsageAction, "USAGE_ACTION_")
METADATA_BYTES = 4096
_FLUSH_SECONDS = 1.0
_SHORTEN_SECONDS = 600.0
_BATCH = 500
_MOST_NOTES = 10_000
_MOST_DAYS = 366
_log = structlog.get_logger("usage")

_WHOSE = "SELECT set_config('app.owner_id', %s, true)"
_INSERT = """
    INSERT INTO usage_events (id, owner, actor, asset_id, action, ip, user_agent, session_id,
        conversion_id, metadata)
    SELECT id, %(owner)s, actor, asset_id, action, ip, user_agent, session_id, conversion_id,
        metadata
    FROM jsonb_to_recordset(%(uses)s) AS u (id uuid, actor text, asset_id uuid, action text,
        ip inet, user_agent text,
                                            session_id text, conversion_id text, metadata jsonb)
    ON CONFLICT DO NOTHING RETURNING *
"""
# In one order, so that no two wait for each other.
_COUNT = """
    INSERT INTO usage_days AS d (owner, asset_id, day, action, by_owner, by_others)
    SELECT %(owner)s, asset_id, current_date, action, by_owner, by_others
    FROM jsonb_to_recordset(%(counts)s) AS c (asset_id uuid, action text, by_owner bigint,
        by_others bigint)
    ORDER BY asset_id, action
    ON CONFLICT ON CONSTRAINT usage_days_pkey DO UPDATE
    SET by_owner = d.by_owner + excluded.by_owner, by_others = d.by_others + excluded.by_others
"""
_OF_ONE = """
    SELECT day, action, by_owner, by_others FROM usage_days
    WHERE owner = %(owner)s AND asset_id = %(asset_id)s AND day BETWEEN %(first)s AND %(last)s
    ORDER BY day DESC, action
"""
_OF_ALL = """
    SELECT day, action, sum(by_owner)::bigint AS by_owner, sum(by_others)::bigint AS by_others
        FROM usage_days
    WHERE owner = %(owner)s AND day BETWEEN %(first)s AND %(last)s GROUP BY day, action
        ORDER BY day DESC, action
"""
_SHORTEN = """
    UPDATE usage_events SET shortened = true, user_agent = split_part(user_agent, '/', 1),
        ip = network(set_masklen(ip, CASE family(ip) WHEN 4 THEN 24 ELSE 48 END))
    WHERE id = ANY (ARRAY(
        SELECT id FROM usage_events WHERE NOT shortened AND created_at < now() - %(age)s
            ORDER BY created_at
        LIMIT %(chunk)s FOR UPDATE SKIP LOCKED))
    RETURNING 1 AS n
"""


@dataclass(frozen=True, slots=True)
class Use:
    """One use: of whose image, and by whom."""

    asset_id: UUID
    asset_owner: str
    owner: str
    actor: str
    action: str
    come_from: origin.Origin = origin.NOWHERE
    session_id: str = ""
    conversion_id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    id: UUID = field(default_factory=new_id)

    def as_row(self) -> dict[str, Any]:
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


async def write(m: Mutation, uses: Sequence[Use]) -> list[Any]:
    """Records and counts, within the transaction; what is recorded already isn't counted again, and
    nothing is kept of an owner who was erased. Returns the new rows.

    A use of another's image is a row of whoever did it, and one more in the count of its owner: the
    transaction acts for each of them in turn, and for its own owner again at the end.
    """
    new: list[Any] = []
    for owner in sorted({use.owner for use in uses}):
        await _act_for(m, owner)
        rows = [use.as_row() for use in uses if use.owner == owner]
        new += await m.all(_INSERT, {"owner": owner, "uses": Jsonb(rows)})
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
        await _act_for(m, owner)
        await m.run(_COUNT, {"owner": owner, "counts": Jsonb(per_image)})
    await _act_for(m, m.owner)
    return new


async def _act_for(m: Mutation, owner: str) -> None:
    await m.run(_WHOSE, (owner,))


class UsageLog:
    """Records for the handlers of one server."""

    def __init__(self, db: Database, trusted_proxies: origin.Networks) -> None:
        self._db = db
        self._trusted = trusted_proxies
        self._notes: deque[Use] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._forgotten = 0

    def start(self) -> None:
        self._writing = asyncio.create_task(self._write_forever())

    async def close(self) -> None:
        """Writes what is left, if the database is there."""
        if self._writing:
            self._writing.cancel()
            await asyncio.wait([self._writing])
        try:
            async with asyncio.timeout(2):
                await self._flush()
        except (psycopg.Error, psycopg_pool.PoolTimeout, TimeoutError):
            _log.warning("uses were not recorded", count=len(self._notes))

    def uses(self, rows: Iterable[Any], action: str, **more: Any) -> list[Use]:
        """What the caller does with these assets."""
        identity = auth.current()
        # A service's own address says nothing about the person that it works for.
        come_from = origin.NOWHERE if identity.service else origin.current(self._trusted)
        return [
            Use(row.id, row.owner, identity.owner, identity.actor, action, come_from, **more)
            for row in rows
        ]

    async def write(self, m: Mutation, rows: Sequence[Any], action: str, **more: Any) -> None:
        """Records with a change: in its transaction, last, because it touches rows that other
        owners' uses do."""
        if rows:
            await write(m, self.uses(rows, action, **more))

    def note(self, rows: Iterable[Any], action: str, **more: Any) -> None:
        """Records soon what a person does, at no wait. A service that works for one reads as often
        as it needs to."""
        if auth.current().service is not None:
            return
        self._notes.extend(self.uses(rows, action, **more))
        while len(self._notes) > _MOST_NOTES:
            self._notes.popleft()
            self._forgotten += 1

    async def _write_forever(self) -> None:
        while wanted():
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
                _log.exception(
                    "uses can't be recorded", count=len(batch)
                )  # nor could they be later
            written = {use.id for use in batch}
            while (
                self._notes and self._notes[0].id in written
            ):  # some may have been forgotten meanwhile
                self._notes.popleft()


class UsageService(usage_pb2_grpc.UsageServiceServicer):
    def __init__(self, db: Database, log: UsageLog) -> None:
        self._db = db
        self._usage = log

    async def RecordUsage(
        self, request: pb.RecordUsageRequest, context: Any
    ) -> pb.RecordUsageResponse:
        asset_id = parse_id(request.asset_id, "asset_id")
        more = {
            "session_id": request.session_id,
            "conversion_id": request.conversion_id,
            "metadata": metadata(request.metadata, "metadata", METADATA_BYTES),
        }

        async def work(m: Mutation) -> pb.RecordUsageResponse:
            asset = await m.one(
                "SELECT id, owner, state, deleted_at FROM assets WHERE id = %s", (asset_id,)
            )
            if asset is None:
                raise errors.not_found("asset", asset_id)
            if asset.state != "ready" or asset.deleted_at:
                text = (
                    "it is deleted"
                    if asset.deleted_at
                    else f"it is {asset.state}, not ready to be used"
                )
                raise errors.precondition(text, subject=f"assets/{asset_id}")
            rows = await write(m, self._usage.uses([asset], ACTIONS.word[request.action], **more))
            if not rows:
                raise errors.owner_erased()
            return pb.RecordUsageResponse(usage=to_proto(rows[0]))

        return await self._db.mutate(request, pb.RecordUsageResponse, work)

    async def ListUsage(self, request: pb.ListUsageRequest, context: Any) -> pb.ListUsageResponse:
        page = paging.page(request)
        where, parameters = _filter(request)
        statement: Any = f"SELECT * FROM usage_events WHERE {where}{page.clause}"
        rows = await self._db.rows(statement, parameters | page.parameters)
        usages, token = page.fill(rows, map(to_proto, rows))
        return pb.ListUsageResponse(usages=usages, next_page_token=token)

    async def GetUsageStats(
        self, request: pb.GetUsageStatsRequest, context: Any
    ) -> pb.GetUsageStatsResponse:
        first, last = _days(request)
        asset_id = UUID(request.asset_id) if request.asset_id else None
        rows = await self._db.rows(
            _OF_ONE if asset_id else _OF_ALL,
            {"owner": auth.current().owner, "asset_id": asset_id, "first": first, "last": last},
        )
        days = [
            pb.UsageOfDay(
                day=row.day.isoformat(),
                action=ACTIONS.number[row.action],
                by_owner=row.by_owner,
                by_others=row.by_others,
            )
            for row in rows
        ]
        return pb.GetUsageStatsResponse(days=days)


def to_proto(row: Any) -> pb.Usage:
    usage = pb.Usage(
        id=str(row.id),
        asset_id=str(row.asset_id),
        action=ACTIONS.number[row.action],
        actor=row.actor,
        ip_address=str(row.ip) if row.ip else "",
        user_agent=row.user_agent,
        session_id=row.session_id,
        conversion_id=row.conversion_id,
        create_time=timestamp(row.created_at),
    )
    if row.metadata:
        usage.metadata.CopyFrom(struct(row.metadata))
    return usage


async def shorten(db: Database, older_than: timedelta, chunk: int = 5000) -> int:
    """Cuts addresses and user agents that have been kept long enough. Returns how many."""
    total = 0
    while True:
        async with db.transaction("") as m:
            done = len(await m.all(_SHORTEN, {"age": older_than, "chunk": chunk}))
        total += done
        if done < chunk:
            return total


async def shorten_forever(db: Database, older_than: timedelta) -> None:
    while wanted():
        await asyncio.sleep(_SHORTEN_SECONDS)
        try:
            await shorten(db, older_than)
        except (psycopg.Error, psycopg_pool.PoolTimeout) as error:
            _log.warning("shortening waits", error=type(error).__name__)


def _filter(request: pb.ListUsageRequest) -> tuple[str, dict[str, Any]]:
    conditions = ["owner = %(owner)s"]
    parameters: dict[str, Any] = {"owner": auth.current().owner}
    if request.asset_id:
        conditions.append("asset_id = %(asset_id)s")
        parameters["asset_id"] = UUID(request.asset_id)
    if request.action:
        conditions.append("action = %(action)s")
        parameters["action"] = ACTIONS.word[request.action]
    for name, operator in (("created_from", ">="), ("created_before", "<")):
        at = time_of(getattr(request, name), request.HasField(name), name)
        if at is not None:
            conditions.append(f"created_at {operator} %({name})s")
            parameters[name] = at
    return " AND ".join(conditions), parameters


def _days(request: pb.GetUsageStatsRequest) -> tuple[date, date]:
    last = _day(request.last_day, "last_day") or datetime.now(UTC).date()
    first = _day(request.first_day, "first_day") or max(date.min + timedelta(30), last) - timedelta(
        30
    )
    if not timedelta(0) <= last - first <= timedelta(_MOST_DAYS):
        raise errors.invalid(
            "first_day", f"must be at most {_MOST_DAYS} days before last_day, and not after it"
        )
    return first, last


def _day(text: str, name: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise errors.invalid(name, "is not a day of the calendar, such as 2026-11-20") from None
