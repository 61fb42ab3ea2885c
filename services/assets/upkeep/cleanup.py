"""Deletes abandoned uploads, rejected uploads, expired trash and expired documents in chunks; if a
chunk fails, item by item. Deletes whole sessions, too: the one that a run names, or idle ones."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from services.assets.comparisons import deleting as comparison_deleting
from services.assets.core.trashing import Results, Trash
from services.assets.documents import deleting as document_deleting
from services.assets.upkeep.run_rows import Count
from services.assets.upkeep.walking import Walk
from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement
from shared.rpc import auth
from shared.rpc.calls import owner_identity
from shared.rpc.errors import DomainError
from shared.storage import Storage

CHUNK = 500
_ABANDONED = timedelta(hours=1)  # past an upload's expiry: a confirmation may still be verifying
_REJECTED = timedelta(days=30)  # somebody may want to know why until then
_UNFINISHED = timedelta(days=1)  # past the life of an upload in parts


@dataclass(slots=True)
class _Found:
    """An item that is to be deleted. `at`: the time that the items of its target are ordered by."""

    owner: str
    id: UUID
    at: datetime


@dataclass(slots=True)
class _Session:
    owner: str
    session_id: str


@dataclass(frozen=True)
class Target:
    """One kind of item that a cleanup deletes. `find` selects at most %(limit)s items after
    (%(after_at)s, %(after_id)s). `documents`: they are documents, with rows and bytes of their own,
    and no assets."""

    what: str
    find: Statement[_Found]
    documents: bool = False


# A module that keeps assets for a limited time adds a target here that finds the expired ones.
TARGETS = (
    Target(
        "abandoned_uploads",
        Statement(
            _Found,
            """
            SELECT a.owner, a.id, a.created_at AS at FROM assets a
            WHERE a.state = 'pending' AND a.deleted_at IS NULL AND (a.created_at, a.id)
                > (%(after_at)s, %(after_id)s)
                AND NOT EXISTS (SELECT FROM uploads u WHERE u.asset_id = a.id AND u.expires_at
                    > now() - %(abandoned)s::interval)
                AND NOT EXISTS (SELECT FROM resumable_uploads r
                    WHERE r.asset_id = a.id AND r.expires_at > now() - %(abandoned)s::interval)
                AND NOT EXISTS (SELECT FROM imports i WHERE i.asset_id = a.id
                    AND i.state IN ('pending', 'running'))
            ORDER BY a.created_at, a.id LIMIT %(limit)s
            """,
        ),
    ),
    Target(
        "rejected_uploads",
        Statement(
            _Found,
            """
            SELECT owner, id, created_at AS at FROM assets
            WHERE state = 'rejected' AND deleted_at IS NULL
                AND created_at < now() - %(rejected)s::interval
                AND (created_at, id) > (%(after_at)s, %(after_id)s)
            ORDER BY created_at, id LIMIT %(limit)s
            """,
        ),
    ),
    Target(
        "expired_trash",
        Statement(
            _Found,
            """
            SELECT owner, id, coalesce(expires_at, now()) AS at FROM assets
            WHERE deleted_at IS NOT NULL AND expires_at < now() AND (expires_at, id)
                > (%(after_at)s, %(after_id)s)
            ORDER BY expires_at, id LIMIT %(limit)s
            """,
        ),
    ),
    Target(
        "expired_documents",
        Statement(
            _Found,
            """
            SELECT owner, id, expires_at AS at FROM documents
            WHERE expires_at <= now() AND (expires_at, id) > (%(after_at)s, %(after_id)s)
            ORDER BY expires_at, id LIMIT %(limit)s
            """,
        ),
        documents=True,
    ),
)
_FORGET_RUNS = Command("""
    DELETE FROM storage_runs WHERE action <> 'erase' AND state IN ('done', 'failed')
        AND created_at < now() - %(age)s::interval
""")
_RUNS_KEPT = timedelta(days=90)
_FIRST_TIME, _FIRST_ID = "-infinity", "00000000-0000-0000-0000-000000000000"
_SELECT_IDLE_SESSIONS = Statement(
    _Session,
    """
    SELECT owner, session_id FROM assets
    WHERE session_id <> '' AND deleted_at IS NULL AND (owner, session_id) > (%(after_owner)s,
        %(after_session)s)
    GROUP BY owner, session_id HAVING max(updated_at) < now() - %(idle)s::interval
    ORDER BY owner, session_id LIMIT %(limit)s
    """,
)
_SELECT_ASSETS = Statement(
    UUID,
    """
    SELECT id FROM assets WHERE owner = %(owner)s AND session_id = %(session_id)s AND id > %(after)s
        AND (%(purge)s OR deleted_at IS NULL)
    ORDER BY id LIMIT %(limit)s
    """,
)
_SELECT_DOCUMENTS = Statement(
    UUID,
    """
    SELECT id FROM documents WHERE owner = %(owner)s AND session_id = %(session_id)s
        AND id > %(after)s ORDER BY id LIMIT %(limit)s
    """,
)
_SELECT_COMPARISONS = Statement(
    UUID,
    """
    SELECT id FROM comparisons WHERE owner = %(owner)s AND session_id = %(session_id)s
        AND id > %(after)s ORDER BY id LIMIT %(limit)s
    """,
)


class Deleted(Protocol):
    """An item that was deleted, and how many bytes that freed."""

    @property
    def size_bytes(self) -> int: ...


Delete = Callable[[Mutation, Sequence[UUID]], Awaitable[Sequence[Deleted]]]


class Cleaner:
    """The walks of RUN_ACTION_CLEANUP and RUN_ACTION_SESSION."""

    def __init__(
        self,
        db: Database,
        storage: Storage,
        trash: Trash,
        *,
        max_items: int,
        idle_days: float,
        longest_upload: timedelta,
    ) -> None:
        self._db = db
        self._storage = storage
        self._trash = trash
        self._max_items = max_items
        self._idle = timedelta(days=idle_days)
        self._unfinished = longest_upload + _UNFINISHED

    async def cleanup(self, walk: Walk) -> None:
        for target in TARGETS:
            await self._clean(walk, target)
        if self._idle:
            await self._idle_sessions(walk)
        if not walk.arguments.dry_run:
            removed = await self._storage.sweep(self._unfinished)
            count = walk.report.count("unfinished_writes")
            count.found, count.done = count.found + removed, count.done + removed
            async with walk.step("") as (m, _report):
                await m.run(_FORGET_RUNS, {"age": _RUNS_KEPT})

    async def session(self, walk: Walk) -> None:
        asked = walk.arguments
        if asked.purge:  # before the pictures that they refer to
            await self._delete_all(walk, "documents", _SELECT_DOCUMENTS, document_deleting.delete)
            await self._delete_all(
                walk, "comparisons", _SELECT_COMPARISONS, comparison_deleting.delete
            )
        session = _Session(walk.row.owner, asked.session_id)
        await self._session(walk, "assets", session, purging=asked.purge, force=asked.force)

    async def _delete_all(
        self, walk: Walk, what: str, of_session: Statement[UUID], delete: Delete
    ) -> None:
        """Deletes all items that `of_session` finds, a chunk at a time. An item that fails is noted
        in the report and passed over."""
        owner, after = walk.row.owner, _FIRST_ID
        while True:
            session = {
                "owner": owner,
                "session_id": walk.arguments.session_id,
                "after": after,
                "limit": CHUNK,
            }
            ids = await self._db.all(of_session, session)
            if not ids:
                return
            await _delete(walk, what, owner, ids, delete)
            after = str(ids[-1])

    async def _clean(self, walk: Walk, target: Target) -> None:
        most = walk.arguments.max_items or self._max_items
        walk.report.count(target.what)  # shown even if there are none
        while True:
            left = most - walk.report.count(target.what).found
            after_at, after_id = walk.report.cursors.get(target.what, (_FIRST_TIME, _FIRST_ID))
            wanted = {
                "after_at": after_at,
                "after_id": after_id,
                "abandoned": _ABANDONED,
                "rejected": _REJECTED,
                "limit": min(CHUNK, left) + 1,
            }
            rows = await self._db.system_all(target.find, wanted)
            more, rows = len(rows) > min(CHUNK, left), rows[: min(CHUNK, left)]
            if rows:
                await self._purge_found(walk, target, rows)
            if not more:
                return
            if left <= CHUNK:
                walk.report.capped = True
                return

    async def _purge_found(self, walk: Walk, target: Target, rows: Sequence[_Found]) -> None:
        """Purges the items, owner by owner; a dry run only counts them."""
        if walk.arguments.dry_run:
            walk.report.count(target.what).note([row.id for row in rows])
        else:
            owners: dict[str, list[UUID]] = {}
            for row in rows:
                owners.setdefault(row.owner, []).append(row.id)
            for owner, ids in owners.items():
                auth.enter(owner_identity(owner))
                if target.documents:
                    await _delete(walk, target.what, owner, ids, document_deleting.delete)
                else:
                    await self._purge(walk, target.what, owner, ids, force=True)
        walk.report.cursors[target.what] = [rows[-1].at.isoformat(), str(rows[-1].id)]

    async def _purge(
        self,
        walk: Walk,
        what: str,
        owner: str,
        ids: Sequence[UUID],
        *,
        force: bool,
        ordered: bool = False,
    ) -> None:
        async def act(some: Sequence[UUID]) -> None:
            async with walk.step(owner) as (m, report):
                results, freed = await self._trash.purge(m, some, force=force)
                _count(report.count(what), results)
                report.count(what).bytes += freed
                if ordered:
                    report.cursors[what] = str(some[-1])

        await walk.each(what, ids, act)

    async def _move_to_trash(
        self, walk: Walk, what: str, owner: str, ids: Sequence[UUID], *, force: bool
    ) -> None:
        async def act(some: Sequence[UUID]) -> None:
            async with self._trash.moves(some, public=False) as moves:
                async with walk.step(owner) as (m, report):
                    results = await self._trash.delete(m, some, moves, force=force)
                    _count(report.count(what), results)
                    report.cursors[what] = str(some[-1])

        await walk.each(what, ids, act)

    async def _session(
        self, walk: Walk, what: str, session: _Session, *, purging: bool, force: bool
    ) -> None:
        owner = session.owner
        auth.enter(owner_identity(owner))
        after: str = walk.report.cursors.get(what, _FIRST_ID)
        while True:
            of_session = {
                "owner": owner,
                "session_id": session.session_id,
                "after": after,
                "purge": purging,
                "limit": CHUNK,
            }
            ids = await self._db.all(_SELECT_ASSETS, of_session)
            if ids:
                if purging:
                    await self._purge(walk, what, owner, ids, force=force, ordered=True)
                else:
                    await self._move_to_trash(walk, what, owner, ids, force=force)
                after = str(ids[-1])
            if len(ids) < CHUNK:
                return

    async def _idle_sessions(self, walk: Walk) -> None:
        """Moves the assets of idle sessions to the trash, where their owners can recover them.
        Assets with references stay."""
        most = walk.arguments.max_items or self._max_items
        while True:
            limit = min(CHUNK, most - walk.report.count("idle_sessions").found)
            after_owner, after_session = walk.report.cursors.get("idle_sessions", ("", ""))
            wanted = {
                "after_owner": after_owner,
                "after_session": after_session,
                "idle": self._idle,
                "limit": limit + 1,
            }
            rows = await self._db.system_all(_SELECT_IDLE_SESSIONS, wanted)
            for row in rows[:limit]:
                await self._idle_session(walk, row)
            if len(rows) <= limit:
                return
            if most - walk.report.count("idle_sessions").found <= 0:
                walk.report.capped = True
                return

    async def _idle_session(self, walk: Walk, session: _Session) -> None:
        if not walk.arguments.dry_run:
            walk.report.cursors.pop("idle_session_assets", None)
            await self._session(walk, "idle_session_assets", session, purging=False, force=False)
            walk.report.count("idle_sessions").done += 1
        walk.report.count("idle_sessions").note([session.session_id])
        walk.report.cursors["idle_sessions"] = [session.owner, session.session_id]


async def _delete(walk: Walk, what: str, owner: str, ids: Sequence[UUID], delete: Delete) -> None:
    async def act(some: Sequence[UUID]) -> None:
        async with walk.step(owner) as (m, report):
            deleted = await delete(m, some)
            report.count(what).note(some)
            report.count(what).done += len(deleted)
            report.count(what).bytes += sum(row.size_bytes for row in deleted)

    await walk.each(what, ids, act)


def _count(count: Count, results: Results) -> None:
    count.note(list(results))
    for result in results.values():
        if isinstance(result, DomainError):
            count.kept += 1
            count.why_kept = result.text
        else:
            count.done += 1
