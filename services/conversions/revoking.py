"""Erases what was derived from the photograph of a revoked consent.

Derived is what the jobs made that used the photograph for the consent's purpose, what other jobs
made of these pictures, and so on. The job that does it repeats the same pass until nothing is left
to do, so that a crash at any moment loses nothing: a pass first cancels jobs, and purges once none
is under way. What the receipt counts is noted before it is done, and counted when it is.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import psycopg
import psycopg_pool
import structlog

from services.conversions import assets, consent_rows, copy_rows, job_moves, rules
from services.conversions.consent_rows import ERASE_TASK, SELECT_CONSENT, Consent, HeldPicture
from services.conversions.job_kinds import KINDS, AnyKind
from services.conversions.job_rows import ModelJob
from shared.background import job_tables, tasks
from shared.background.jobs import JobQueue, TryAgain
from shared.database.db import Database
from shared.database.rows import Command, Statement
from shared.rpc import auth, calls
from shared.rpc.calls import Peers
from shared.rpc.errors import DomainError

_ENDING_AFTER = timedelta(seconds=1)  # while jobs are being cancelled
_AT_ONCE = 100
_EXPIRY_SECONDS = 60.0
_log = structlog.get_logger("revoking")


@dataclass(slots=True)
class _Owned:
    id: UUID
    owner: str
    now: datetime


@dataclass(slots=True)
class _Job:
    """A job that used the photograph, or something that was made of it. `is_kept`: it rests on
    another consent of the photograph, which holds."""

    job: str  # its table
    id: UUID
    state: str
    cancel_requested: bool
    result_asset_id: UUID | None
    is_kept: bool

    @property
    def kind(self) -> AnyKind:
        return KINDS[self.job]


class _Derived(NamedTuple):
    """What was derived from a photograph."""

    jobs: list[_Job]
    pictures: list[UUID]

    def is_more_than(self, before: "_Derived") -> bool:
        jobs = {each.id for each in self.jobs} - {each.id for each in before.jobs}
        return bool(jobs or set(self.pictures) - set(before.pictures))


_SELECT_OWNER = Statement(_Owned, "SELECT id, owner, now() AS now FROM consents WHERE id = %(id)s")
_SELECT_EXPIRED = Statement(
    _Owned,
    """
    SELECT id, owner, now() AS now FROM consents
    WHERE NOT expiry_told AND revoked_at IS NULL AND expires_at < now()
    ORDER BY expires_at LIMIT %(most)s
    """,
)
_COLUMNS = """
    '{table}' AS job, id, state, cancel_requested, {result} AS result_asset_id, {kept} AS is_kept
"""
_RESULTS = {
    "conversions": "result_asset_id",
    "generations": "result_asset_id",
    "analyses": "NULL::uuid",
}
# `consent_id`: the consent that is revoked; NULL: nothing is kept.
_KEPT = """
    %(consent_id)s::uuid IS NOT NULL AND EXISTS (
        SELECT FROM consents WHERE owner = %(owner)s AND consents.id = ANY(consent_ids)
            AND consents.id <> %(consent_id)s AND asset_id = ANY(%(asset_ids)s)
            AND revoked_at IS NULL AND expires_at > now())
"""
_USERS = """
    SELECT job_id FROM job_inputs
    WHERE owner = %(owner)s AND asset_id = ANY(%(asset_ids)s) AND job = ANY(%(tables)s)
"""
# The jobs that used pictures, and those that did and are purged.
_SELECT_USES = Statement(
    _Job,
    " UNION ALL ".join(
        f"""
        SELECT {_COLUMNS.format(table=table, result=result, kept=_KEPT)} FROM {table}
        WHERE owner = %(owner)s AND '{table}' = ANY(%(tables)s) AND id IN ({_USERS})
        """
        for table, result in _RESULTS.items()
    )
    + f"""
        UNION ALL
        SELECT job, job_id AS id, 'completed' AS state, false AS cancel_requested, result_asset_id,
            {_KEPT} AS is_kept
        FROM purged_makers WHERE owner = %(owner)s AND job_id IN ({_USERS})
    """,
)
# The jobs that show pictures as their results, also those that are answered from others.
_SELECT_MAKERS = Statement(
    _Job,
    " UNION ALL ".join(
        f"""
        SELECT {_COLUMNS.format(table=table, result="result_asset_id", kept="false")} FROM {table}
        WHERE owner = %(owner)s AND result_asset_id = ANY(%(asset_ids)s)
        """
        for table in ("conversions", "generations")
    ),
)
# The analyses that are answered from others have the same findings.
_SELECT_ANSWERED = Statement(
    _Job,
    f"""
    SELECT {_COLUMNS.format(table="analyses", result="NULL::uuid", kept="false")} FROM analyses
    WHERE owner = %(owner)s AND answered_from = ANY(%(ids)s)
    """,
)
_NOTE = Command("""
    INSERT INTO erasure_items (owner, consent_id, item_id, kind)
    SELECT %(owner)s, %(consent_id)s, unnest(%(ids)s::uuid[]), %(kind)s
    ON CONFLICT (owner, consent_id, item_id) DO NOTHING
""")
_FINISH = Statement(
    UUID,
    """
    UPDATE erasure_items SET done = true
    WHERE owner = %(owner)s AND consent_id = %(consent_id)s AND item_id = ANY(%(ids)s) AND NOT done
    RETURNING item_id
    """,
)
_EMPTY_ANALYSES = Statement(
    UUID,
    """
    UPDATE analyses SET result = '{}', findings = '[]', evidence = '[]', confidence = 0,
        recipe_digest = '', version = version + 1, updated_at = now()
    WHERE owner = %(owner)s AND id = ANY(%(ids)s) AND state = 'completed'
        AND (result <> '{}' OR findings <> '[]')
    RETURNING id
    """,
)
# The kinds of items, each with the figure of the receipt that counts it.
ITEMS = {"job": "jobs_cancelled", "picture": "pictures_purged"}


class Revoker:
    """The worker's side."""

    def __init__(self, db: Database, queue: JobQueue, peers: Peers) -> None:
        self._db = db
        self._peers = peers
        self._jobs = job_moves.job_tables(queue)
        queue.task(ERASE_TASK, job_moves.RELEASE_QUEUE, self.erase)

    async def erase(self, consent_id: str) -> None:
        """Makes one pass for a revoked consent. Raises TryAgain if another one is needed."""
        for found in await self._db.system_all(_SELECT_OWNER, {"id": UUID(consent_id)}):
            auth.enter(calls.owner_identity(found.owner))
            consent = await self._db.first(SELECT_CONSENT, {"id": found.id})
            if consent is None or consent.erasure != "running":
                return
            try:
                await self._pass(consent, found.now)
            except DomainError as refusal:
                _log.warning("an erasure waits", row=consent_id, reason=refusal.text)
                raise TryAgain(found.now + assets.RETRY_AFTER) from None

    async def _pass(self, consent: Consent, now: datetime) -> None:
        derived = await self._derived(consent)
        jobs = derived.jobs
        if await self._cancel(consent, jobs):
            raise TryAgain(now + _ENDING_AFTER)
        await self._empty_analyses(consent, [each.id for each in jobs if each.job == "analyses"])
        for each in jobs:
            await assets.release(self._peers, each.kind.holder(each.id))
        held = await self._purge(consent, derived.pictures)
        if consent.erase_photo:
            held += await self._purge_photo(consent)
        if (await self._derived(consent)).is_more_than(derived):
            raise TryAgain(now)  # a job or a copy was created meanwhile
        async with self._db.transaction(consent.owner) as m:
            locked = await consent_rows.lock(m, consent.id)
            if locked.erase_photo == consent.erase_photo:  # else it was just asked for
                await consent_rows.end_erasure(m, consent.id, held)
                return
        raise TryAgain(now)

    async def _derived(self, consent: Consent) -> _Derived:
        """Returns the jobs that used the photograph for the consent's purpose, or what was made of
        it, and the pictures that were made. Labelled copies of the photograph are among them if it
        is to be erased itself."""
        named = {"owner": consent.owner}
        jobs: dict[UUID, _Job] = {}
        pictures = {consent.asset_id}  # that were followed
        made = await self._copies({consent.asset_id}) if consent.erase_photo else set()
        uses = await self._uses_of_photo(consent)
        found = [each for each in uses if not each.is_kept]
        kept = {each.id for each in uses if each.is_kept}
        # A job that is answered from another one shows its picture, too.
        kept_pictures = {each.result_asset_id for each in uses if each.is_kept}
        while found or made:
            new = [each for each in found if each.id not in jobs]
            jobs |= {each.id: each for each in found}
            made |= {each.result_asset_id for each in new if each.result_asset_id}
            made -= kept_pictures
            made = (made | await self._copies(made)) - pictures
            pictures |= made
            asked = {**named, "asset_ids": list(made)}
            answered = {**named, "ids": [each.id for each in new]}
            found = await self._db.all(_SELECT_ANSWERED, answered)
            found = [each for each in found if each.id not in kept]
            if made:
                using = {**asked, "tables": list(KINDS), "consent_id": None}
                found += await self._db.all(_SELECT_USES, using)
                found += await self._db.all(_SELECT_MAKERS, asked)
            found = [each for each in found if each.id not in jobs]
            made = set()
        return _Derived(list(jobs.values()), [*pictures - {consent.asset_id}])

    async def _uses_of_photo(self, consent: Consent) -> list[_Job]:
        """Returns the jobs that used the photograph, or a labelled copy of it, for the consent's
        purpose."""
        whole = consent.purpose == rules.ALL_PURPOSES
        asked = {
            "owner": consent.owner,
            "consent_id": consent.id,
            "asset_ids": [consent.asset_id, *await self._copies({consent.asset_id})],
            "tables": [
                name
                for name, kind in KINDS.items()
                if whole or rules.PURPOSES[kind.name] == consent.purpose
            ],
        }
        return await self._db.all(_SELECT_USES, asked)

    async def _copies(self, pictures: Collection[UUID]) -> set[UUID]:
        """Returns the labelled copies of pictures, and the copies of these."""
        known: set[UUID] = set()
        new = set(pictures)
        while new:
            found = await copy_rows.copies(self._db, new)
            new = {each.copy_asset_id for each in found} - known
            known |= new
        return known

    async def _cancel(self, consent: Consent, jobs: Sequence[_Job]) -> bool:
        """Cancels the jobs that haven't ended, and counts those that were. Returns whether any is
        still under way."""
        under_way = [each for each in jobs if each.state not in rules.FINISHED]
        for each in under_way:
            if not each.cancel_requested:
                async with self._db.transaction(consent.owner) as m:
                    table = self._jobs[each.job]
                    row: ModelJob | None = await m.first(
                        job_tables.lock(table.table), {"id": each.id}
                    )
                    if row is not None and not row.finished:  # else it was purged meanwhile
                        note = {"owner": consent.owner, "consent_id": consent.id, "kind": "job"}
                        await m.run(_NOTE, {**note, "ids": [each.id]})
                        await job_moves.cancel(m, table, row)
        if under_way:
            jobs = (await self._derived(consent)).jobs
        await self._finish(consent, "job", [each.id for each in jobs if each.state == "cancelled"])
        return any(each.state not in rules.FINISHED for each in jobs)

    async def _empty_analyses(self, consent: Consent, ids: Sequence[UUID]) -> None:
        kind = KINDS["analyses"]
        async with self._db.transaction(consent.owner) as m:
            named = {"owner": consent.owner, "ids": list(ids)}
            emptied = await m.all(_EMPTY_ANALYSES, named)
            for each in emptied:
                row: ModelJob = await m.one(job_tables.lock(kind.table), {"id": each})
                await kind.publish(m, row)
            if emptied:
                await consent_rows.add(m, consent.id, analyses_emptied=len(emptied))

    async def _purge(self, consent: Consent, pictures: Sequence[UUID]) -> list[HeldPicture]:
        """Purges pictures. Returns those that something holds."""
        held: list[HeldPicture] = []
        for start in range(0, len(pictures), _AT_ONCE):
            part = pictures[start : start + _AT_ONCE]
            there = await self._peers.assets(map(str, part))
            await self._note(consent, "picture", [each for each in part if str(each) in there])
            gone = []
            for each in part:
                if holders := await assets.purge(self._peers, each):
                    held.append(HeldPicture(asset_id=str(each), holders=holders))
                else:
                    gone.append(each)
            await self._finish(consent, "picture", gone)
        return held

    async def _purge_photo(self, consent: Consent) -> list[HeldPicture]:
        if holders := await assets.purge(self._peers, consent.asset_id):
            return [HeldPicture(asset_id=str(consent.asset_id), holders=holders)]
        if not consent.photo_purged:
            async with self._db.transaction(consent.owner) as m:
                await consent_rows.note_photo_purged(m, consent.id)
        return []

    async def _note(self, consent: Consent, kind: str, ids: Collection[UUID]) -> None:
        values = {"owner": consent.owner, "consent_id": consent.id, "kind": kind, "ids": list(ids)}
        async with self._db.transaction(consent.owner) as m:
            await m.run(_NOTE, values)

    async def _finish(self, consent: Consent, kind: str, ids: Collection[UUID]) -> None:
        """Counts the items among these that were noted and not counted."""
        if not ids:
            return
        values = {"owner": consent.owner, "consent_id": consent.id, "ids": list(ids)}
        async with self._db.transaction(consent.owner) as m:
            if counted := await m.all(_FINISH, values):
                await consent_rows.add(m, consent.id, **{ITEMS[kind]: len(counted)})

    async def tell_expiries_forever(self) -> None:
        while tasks.not_cancelled():
            try:
                told = await self.tell_expiries()
            except (psycopg.Error, psycopg_pool.PoolTimeout) as error:
                _log.warning("telling expiries waits", error=type(error).__name__)
                told = 0
            if told < _AT_ONCE:
                await tasks.pause(_EXPIRY_SECONDS)

    async def tell_expiries(self) -> int:
        """Publishes that consents expired, up to 100. Returns how many it saw."""
        expired = await self._db.system_all(_SELECT_EXPIRED, {"most": _AT_ONCE})
        for each in expired:
            with suppress(DomainError):
                async with self._db.transaction(each.owner) as m:
                    await consent_rows.tell_expiry(m, each.id)
        return len(expired)
