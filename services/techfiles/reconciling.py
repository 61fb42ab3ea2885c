"""Compares the rows of exports with the bytes in the store: finds and mends what a crash, a restore
or a change by hand in the bucket left.

The listing of the store and the keys in rows are walked side by side, in the byte order of keys, a
stretch at a time. Whoever walks keeps the key at which the next stretch begins.
"""

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from services.techfiles import export_rows
from services.techfiles.export_rows import EXPORTS, Export
from shared.database.db import Database
from shared.database.rows import Statement
from shared.storage import ObjectNotFound, Stat, Storage

PREFIX = "techfiles/"
_END = "techfiles0"  # the first text after all keys that begin with the prefix


@dataclass(slots=True)
class _Shown:
    """An export that names an object, and says that its bytes are there or were lost."""

    id: UUID
    owner: str
    storage_key: str
    size_bytes: int
    bytes_gone_at: datetime | None


@dataclass
class Found:
    """The result of one stretch. `next_key`: where the next one begins; '' at the end."""

    compared: int = 0
    strays: list[Stat] = field(default_factory=list)
    young: int = 0
    lost: list[UUID] = field(default_factory=list)
    mended: int = 0
    next_key: str = ""


_SELECT_SHOWN = Statement(
    _Shown,
    """
    SELECT id, owner, storage_key, size_bytes, bytes_gone_at FROM exports
    WHERE storage_key <> '' AND state = 'completed' AND bytes_gone_reason <> 'retention'
        AND storage_key COLLATE "C" > %(after)s AND storage_key COLLATE "C" <= %(until)s
    ORDER BY storage_key COLLATE "C" LIMIT %(limit)s
    """,
)
_SELECT_UNKNOWN_KEYS = Statement(
    str,
    """
    SELECT key FROM unnest(%(keys)s::text[]) AS key
    WHERE NOT EXISTS (SELECT FROM exports WHERE storage_key COLLATE "C" = key AND storage_key <> ''
            AND bytes_gone_reason <> 'retention')
        AND NOT EXISTS (SELECT FROM doomed_objects WHERE storage_key COLLATE "C" = key)
    """,
)
_MARK = Statement(
    Export,
    f"""
    UPDATE exports SET bytes_gone_at = CASE WHEN %(lost)s THEN now() END,
        bytes_gone_reason = CASE WHEN %(lost)s THEN 'lost' ELSE '' END, version = version + 1,
        updated_at = now()
    WHERE id = %(id)s AND storage_key = %(key)s AND (bytes_gone_at IS NULL) = %(lost)s
        AND bytes_gone_reason <> 'retention'
    RETURNING {EXPORTS.columns}
    """,
)


class ExportReconciler:
    """`grace`: an object younger than this may belong to an export that is being made."""

    def __init__(self, db: Database, storage: Storage, grace: timedelta) -> None:
        self._db = db
        self._storage = storage
        self._grace = grace

    async def stretch(self, after: str, limit: int, *, dry_run: bool) -> Found:
        """Compares at most `limit` keys after `after`, and mends what differs unless `dry_run`."""
        listed, rows, until = await self._read(max(after, PREFIX), limit)
        found = Found(compared=max(len(listed), len(rows)), next_key="" if until == _END else until)
        for row in rows:
            stat = listed.get(row.storage_key)
            there = stat is not None and stat.size == row.size_bytes
            if there == (row.bytes_gone_at is None) or (not there and await self._is_there(row)):
                continue
            if not there:
                found.lost.append(row.id)
            if not dry_run:
                found.mended += await self._mark(row, lost=not there)
        await self._remove_strays(found, listed, dry_run=dry_run)
        return found

    async def _read(
        self, after: str, limit: int
    ) -> tuple[Mapping[str, Stat], Sequence[_Shown], str]:
        """Returns objects and rows of a stretch, and its last key."""
        listed: dict[str, Stat] = {}
        full = False
        async with aclosing(self._storage.list(PREFIX, after=after)) as objects:  # type: ignore[type-var]
            async for stat in objects:
                listed[stat.key] = stat
                if full := len(listed) == limit:
                    break
        until = next(reversed(listed)) if full else _END
        span = {"after": after, "until": until, "limit": limit}
        async with self._db.transaction("") as m:
            m.operate()
            rows = await m.all(_SELECT_SHOWN, span)
        if len(rows) == limit:
            until = rows[-1].storage_key
            listed = {key: stat for key, stat in listed.items() if key.encode() <= until.encode()}
        return listed, rows, until

    async def _is_there(self, row: _Shown) -> bool:
        """Returns whether the store has the object, with the row's size. It is asked for the object
        itself: a listing isn't a snapshot."""
        if row.bytes_gone_at is not None:
            return False
        try:
            return (await self._storage.stat(row.storage_key)).size == row.size_bytes
        except ObjectNotFound:
            return False

    async def _mark(self, row: _Shown, *, lost: bool) -> int:
        """Notes that an export's bytes are lost, or there again. Returns how many rows changed."""
        async with self._db.transaction(row.owner) as m:
            named = {"id": row.id, "key": row.storage_key, "lost": lost}
            changed = await m.first(_MARK, named)
            if changed is not None:
                await export_rows.publish(m, changed)
        return int(changed is not None)

    async def _remove_strays(
        self, found: Found, listed: Mapping[str, Stat], *, dry_run: bool
    ) -> None:
        async with self._db.transaction("") as m:
            m.operate()
            unknown = await m.all(_SELECT_UNKNOWN_KEYS, {"keys": list(listed)})
        found.strays = [listed[key] for key in unknown]
        before = datetime.now(UTC) - self._grace
        old = [stat.key for stat in found.strays if stat.modified <= before]
        found.young = len(found.strays) - len(old)
        if old and not dry_run:
            await self._storage.delete(old)
            found.mended += len(old)
