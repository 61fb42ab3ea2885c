"""Cleaning up: what nobody wants any more goes, a chunk at a time, each item on its own. And whole
sessions."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, LiteralString
from uuid import UUID

from services.assets.comparisons import comparisons
from services.assets.core.trashing import Results, Trash
from services.assets.documents import documents
from services.assets.upkeep.runs import Walk
from shared.database.db import Database, Mutation
from shared.rpc import auth
from shared.rpc.calls import owner_identity
from shared.rpc.errors import DomainError
from shared.storage import Storage

CHUNK = 500
_ABANDONED = timedelta(hours=1)  # past an upload's expiry: a confirmation may still be verifying
_REJECTED = timedelta(days=30)  # in which somebody may want to know why
_UNFINISHED = timedelta(days=1)  # past the life of an upload in parts


@dataclass(frozen=True)
class Kind:
    """What a cleanup looks for. `find` gives owner, id (of what is to be purged) and at, in the
    order of (at, id), after %(after_at)s and %(after_id)s, at most %(limit)s. Documents aren't
    assets: they have rows and bytes of their own."""

    what: str
    find: LiteralString
    documents: bool = False


# What keeps assets for a time says here which of them have expired.
KINDS = (
    Kind(
        "abandoned_uploads",
        """SELECT a.owner, a.id, a.created_at AS at FROM assets a
           WHERE a.state = 'pending' AND a.deleted_at IS NULL AND (a.created_at, a.id)
               > (%(after_at)s, %(after_id)s)
               AND NOT EXISTS (SELECT FROM uploads u WHERE u.asset_id = a.id AND u.expires_at
                   > now() - %(abandoned)s)
               AND NOT EXISTS (SELECT FROM resumable_uploads r
                               WHERE r.asset_id = a.id AND r.expires_at > now() - %(abandoned)s)
               AND NOT EXISTS (SELECT FROM imports i WHERE i.asset_id = a.id
                   AND i.state IN ('pending', 'running'))
           ORDER BY a.created_at, a.id LIMIT %(limit)s""",
    ),
    Kind(
        "rejected_uploads",
        """SELECT owner, id, created_at AS at FROM assets
           WHERE state = 'rejected' AND deleted_at IS NULL AND created_at < now() - %(rejected)s
               AND (created_at, id) > (%(after_at)s, %(after_id)s)
           ORDER BY created_at, id LIMIT %(limit)s""",
    ),
    Kind(
        "expired_trash",
        """SELECT owner, id, expires_at AS at FROM assets
           WHERE deleted_at IS NOT NULL AND expires_at < now() AND (expires_at, id)
               > (%(after_at)s, %(after_id)s)
           ORDER BY expires_at, id LIMIT %(limit)s""",
    ),
    Kind(
        "expired_documents",
        """SELECT owner, id, expires_at AS at FROM documents
           WHERE expires_at <= now() AND (expires_at, id) > (%(after_at)s, %(after_id)s)
           ORDER BY expires_at, id LIMIT %(limit)s""",
        documents=True,
    ),
)
_FORGET_RUNS = """
    DELETE FROM storage_runs WHERE action <> 'erase' AND state IN ('done', 'failed')
        AND created_at < now() - %(age)s
"""
_RUNS_KEPT = timedelta(days=90)
_START = ("-infinity", "00000000-0000-0000-0000-000000000000")
_IDLE = """
    SELECT owner, session_id FROM assets
    WHERE session_id <> '' AND deleted_at IS NULL AND (owner, session_id) > (%(after_owner)s,
        %(after_session)s)
    GROUP BY owner, session_id HAVING max(updated_at) < now() - %(idle)s
    ORDER BY owner, session_id LIMIT %(limit)s
"""
_OF_SESSION = """
    SELECT id FROM assets WHERE owner = %(owner)s AND session_id = %(session_id)s AND id > %(after)s
        AND (%(purge)s OR deleted_at IS NULL)
    ORDER BY id LIMIT %(limit)s
"""
_DOCUMENTS_OF_SESSION = """
    SELECT id FROM documents WHERE owner = %(owner)s AND session_id = %(session_id)s AND id
        > %(after)s
    ORDER BY id LIMIT %(limit)s
"""
_COMPARISONS_OF_SESSION = """
    SELECT id FROM comparisons WHERE owner = %(owner)s AND session_id = %(session_id)s AND id
        > %(after)s
    ORDER BY id LIMIT %(limit)s
"""
TakeOut = Callable[[Mutation, Sequence[UUID]], Awaitable[list[Any]]]


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
        for kind in KINDS:
            await self._kind(walk, kind)
        if self._idle:
            await self._idle_sessions(walk)
        if not walk.row.arguments["dry_run"]:
            removed = await self._storage.sweep(self._unfinished)
            count = walk.report.count("unfinished_writes")
            count.found, count.done = count.found + removed, count.done + removed
            async with walk.step("") as (m, _report):
                await m.run(_FORGET_RUNS, {"age": _RUNS_KEPT})

    async def session(self, walk: Walk) -> None:
        arguments, owner = walk.row.arguments, walk.row.owner
        purging = arguments["purge"]
        if purging:  # before the pictures that they hold
            await self._session_loses(
                walk, "documents", owner, _DOCUMENTS_OF_SESSION, documents.take_out
            )
            await self._session_loses(
                walk, "comparisons", owner, _COMPARISONS_OF_SESSION, comparisons.take_out
            )
        await self._session(
            walk,
            "assets",
            owner,
            arguments["session_id"],
            purging=purging,
            force=arguments["force"],
        )

    async def _session_loses(
        self, walk: Walk, what: str, owner: str, of_session: LiteralString, take_out: TakeOut
    ) -> None:
        """Takes out all that `of_session` finds, a chunk at a time; an item that fails is noted and
        passed over."""
        after = _START[1]
        while True:
            session = {
                "owner": owner,
                "session_id": walk.row.arguments["session_id"],
                "after": after,
                "limit": CHUNK,
            }
            ids = [row.id for row in await self._db.rows(of_session, session)]
            if not ids:
                return
            await _take_out(walk, what, owner, ids, take_out)
            after = str(ids[-1])

    async def _kind(self, walk: Walk, kind: Kind) -> None:
        most = walk.row.arguments["max_items"] or self._max_items
        walk.report.count(kind.what)  # shown even if there are none
        while True:
            left = most - walk.report.count(kind.what).found
            after_at, after_id = walk.report.cursors.get(kind.what, _START)
            rows = await self._db.system_rows(
                kind.find,
                {
                    "after_at": after_at,
                    "after_id": after_id,
                    "abandoned": _ABANDONED,
                    "rejected": _REJECTED,
                    "limit": min(CHUNK, left) + 1,
                },
            )
            more, rows = len(rows) > min(CHUNK, left), rows[: min(CHUNK, left)]
            if rows:
                place = [rows[-1].at.isoformat(), str(rows[-1].id)]
                await self._go(walk, kind, rows, place)
            if not more:
                return
            if left <= CHUNK:
                walk.report.capped = True
                return

    async def _go(self, walk: Walk, kind: Kind, rows: Sequence[Any], place: list[str]) -> None:
        """Purges what was found, owner by owner; or, in a dry run, only counts it."""
        owners: dict[str, list[UUID]] = {}
        for row in rows:
            owners.setdefault(row.owner, []).append(row.id)
        if not walk.row.arguments["dry_run"]:
            for owner, ids in owners.items():
                auth.enter(owner_identity(owner))
                if kind.documents:
                    await _take_out(walk, kind.what, owner, ids, documents.take_out)
                else:
                    await self._purge(walk, kind.what, owner, ids, force=True)
        else:
            walk.report.count(kind.what).note([row.id for row in rows])
        walk.report.cursors[kind.what] = place

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

    async def _delete(
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
        self, walk: Walk, what: str, owner: str, session_id: str, *, purging: bool, force: bool
    ) -> None:
        auth.enter(owner_identity(owner))
        after = walk.report.cursors.get(what, _START[1])
        while True:
            of_session = {
                "owner": owner,
                "session_id": session_id,
                "after": after,
                "purge": purging,
                "limit": CHUNK,
            }
            ids = [row.id for row in await self._db.rows(_OF_SESSION, of_session)]
            if ids:
                if purging:
                    await self._purge(walk, what, owner, ids, force=force, ordered=True)
                else:
                    await self._delete(walk, what, owner, ids, force=force)
                after = str(ids[-1])
            if len(ids) < CHUNK:
                return

    async def _idle_sessions(self, walk: Walk) -> None:
        """To the trash, where their owners can recover them. What something uses stays."""
        most = walk.row.arguments["max_items"] or self._max_items
        while True:
            sessions = walk.report.count("idle_sessions")
            after = walk.report.cursors.get("idle_sessions", ["", ""])
            limit = min(CHUNK, most - sessions.found)
            rows = await self._db.system_rows(
                _IDLE,
                {
                    "after_owner": after[0],
                    "after_session": after[1],
                    "idle": self._idle,
                    "limit": limit + 1,
                },
            )
            for row in rows[:limit]:
                if not walk.row.arguments["dry_run"]:
                    walk.report.cursors.pop("idle_session_assets", None)
                    await self._session(
                        walk,
                        "idle_session_assets",
                        row.owner,
                        row.session_id,
                        purging=False,
                        force=False,
                    )
                    walk.report.count("idle_sessions").done += 1
                walk.report.count("idle_sessions").note([row.session_id])
                walk.report.cursors["idle_sessions"] = [row.owner, row.session_id]
            if len(rows) <= limit:
                return
            if most - walk.report.count("idle_sessions").found <= 0:
                walk.report.capped = True
                return


async def _take_out(
    walk: Walk, what: str, owner: str, ids: Sequence[UUID], take_out: TakeOut
) -> None:
    async def act(some: Sequence[UUID]) -> None:
        async with walk.step(owner) as (m, report):
            gone = await take_out(m, some)
            report.count(what).note(some)
            report.count(what).done += len(gone)
            report.count(what).bytes += sum(row.size_bytes for row in gone)

    await walk.each(what, ids, act)


def _count(count: Any, results: Results) -> None:
    count.note(list(results))
    for result in results.values():
        if isinstance(result, DomainError):
            count.kept += 1
            count.why_kept = result.text
        else:
            count.done += 1
