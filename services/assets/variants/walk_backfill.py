"""The job of a backfill: walks over all owners' images, and makes presets that they lack.

A backfill works on one image at a time, in one slot of a worker. It gives the slot back whenever a
fresh job waits, and after 500 images, so that the queue decides anew; its row says how far it is.
What an image lacks is an ordinary rendition that is not enqueued: the walk runs it, and after a
crash finishes it first.
"""

from dataclasses import dataclass
from uuid import UUID

from services.assets.core import rules
from services.assets.core.asset_rows import ASSETS, LockedAsset
from services.assets.variants import rendition_rows
from services.assets.variants.backfill_rows import BACKFILLS, Backfill
from services.assets.variants.make_variants import VariantMaker
from services.assets.variants.presets import Presets
from shared.background import attempts, jobs
from shared.background.attempts import Attempt, Outcome
from shared.background.job_tables import JobTable
from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement

_PAGE = 200  # images examined in one statement
_STRETCH = 500  # images made before the queue decides anew


@dataclass(slots=True)
class _Image:
    """An image, and the presets that it lacks."""

    id: UUID
    owner: str
    missing: list[str]


_WANTED = """
    state = 'ready' AND deleted_at IS NULL AND bytes_gone_at IS NULL
    AND mime_type <> 'application/pdf' AND kind = ANY(%(kinds)s) AND created_at <= %(started)s
    AND id > %(reached)s
"""
_COUNT_IMAGES = Statement(int, f"SELECT count(*) FROM assets WHERE {_WANTED}")
_SELECT_IMAGES = Statement(
    _Image,
    f"""
    SELECT a.id, a.owner, ARRAY(
        SELECT name FROM unnest(%(presets)s::text[]) AS wanted (name) WHERE NOT EXISTS (
            SELECT FROM variants v WHERE v.asset_id = a.id AND v.preset = wanted.name
            AND (v.state <> 'failed' OR v.error_class = ANY(%(final)s)))
    ) AS missing
    FROM assets a WHERE {_WANTED} ORDER BY a.id LIMIT %(limit)s
    """,
)
_LOCK_ASSET = Statement(
    LockedAsset,
    f"SELECT {ASSETS.columns} FROM assets WHERE id = %(id)s AND owner = %(owner)s FOR UPDATE",
)
_SET_TOTAL = Command("UPDATE backfills SET total = %(total)s WHERE id = %(id)s")
_REACH = Statement(
    UUID,
    """
    UPDATE backfills SET reached = %(reached)s, examined = examined + %(examined)s,
        version = version + 1, updated_at = now()
    WHERE id = %(id)s AND attempt_token = %(token)s AND state = 'running' RETURNING id
    """,
)
_SELECT_UNFINISHED = Statement(
    UUID,
    """
    SELECT id FROM renditions
    WHERE backfill_id = %(backfill_id)s AND state IN ('pending', 'running')
    """,
)


class Walk:
    """Runs the job of a backfill: stretches of the walk, until there is nothing left."""

    def __init__(
        self, db: Database, queue: jobs.JobQueue, maker: VariantMaker, presets: Presets
    ) -> None:
        self._db = db
        self._queue = queue
        self._maker = maker
        self._presets = presets
        self._kind = JobTable(BACKFILLS, rules.JOB_STATES, "running", "done", self._ended)

    async def run(self, backfill_id: str) -> None:
        await attempts.run(self._db, self._kind, backfill_id, self._stretch)

    async def _stretch(self, attempt: Attempt[Backfill]) -> Outcome[Backfill]:
        """Makes the presets that the next images lack. It is tried again if there are more."""
        job = attempt.row
        if unknown := [name for name in job.presets if name not in self._presets.by_name]:
            raise attempts.JobFailed("PRESET_UNKNOWN", f"{unknown[0]} is no longer a preset")
        if job.total is None:
            await self._count(attempt)
        try:
            for left_over in await self._db.system_all(_SELECT_UNFINISHED, {"backfill_id": job.id}):
                await self._maker.run(str(left_over))
            if await self._walk(attempt):
                return Outcome({})
            again = jobs.TryAgain()
        except jobs.TryAgain as later:  # the store is away; the image is not given up yet
            again = later
        return Outcome({}, to="pending", again=again)

    async def _walk(self, attempt: Attempt[Backfill]) -> bool:
        """Returns True at the end of the walk, False if other jobs are to run before it goes on."""
        reached, examined, made = attempt.row.reached, 0, 0
        while rows := await self._db.system_all(_SELECT_IMAGES, self._next(attempt.row, reached)):
            for row in rows:
                reached, examined = row.id, examined + 1
                if not row.missing:
                    continue
                if made == _STRETCH or await self._queue.busy(
                    rendition_rows.QUEUE, above=jobs.BACKFILL
                ):
                    return False
                rendition = await self._take(attempt, row, examined)
                examined = 0
                if rendition:
                    await self._maker.run(str(rendition))
                    made += 1
            await self._reach(attempt, reached, examined)
            examined = 0
        return True

    def _next(self, job: Backfill, reached: UUID) -> dict[str, object]:
        return {
            "presets": job.presets,
            "kinds": job.kinds,
            "started": job.created_at,
            "reached": reached,
            "limit": _PAGE,
            "final": list(rendition_rows.UNDECODABLE),
        }

    async def _count(self, attempt: Attempt[Backfill]) -> None:
        job = attempt.row
        [total] = await self._db.system_all(_COUNT_IMAGES, self._next(job, job.reached))
        async with self._db.transaction(job.owner) as m:
            await m.run(_SET_TOTAL, {"total": total, "id": job.id})

    async def _reach(self, attempt: Attempt[Backfill], reached: UUID, examined: int) -> None:
        async with self._db.transaction(attempt.row.owner) as m:
            await self._note(m, attempt, reached, examined)

    async def _note(
        self, m: Mutation, attempt: Attempt[Backfill], reached: UUID, examined: int
    ) -> None:
        values = {
            "id": attempt.row.id,
            "token": attempt.token,
            "reached": reached,
            "examined": examined,
        }
        if await m.first(_REACH, values) is None:
            raise attempts.Superseded

    async def _take(self, attempt: Attempt[Backfill], row: _Image, examined: int) -> UUID | None:
        """Records that the walk reached the image, and plans the presets that it lacks, in one
        transaction, so that a crash loses neither. Returns the rendition, or None."""
        async with self._db.transaction(row.owner) as m:
            await self._note(m, attempt, row.id, examined)
            asset = await m.first(_LOCK_ASSET, {"id": row.id, "owner": row.owner})
            if asset is None or asset.state != "ready" or asset.deleted_at:
                return None
            return await rendition_rows.plan(
                m, asset, row.missing, again=("failed",), backfill_id=attempt.row.id
            )

    async def _ended(self, m: Mutation, job: Backfill) -> None:
        """Enqueues the unfinished rendition of a walk that was cancelled or failed."""
        if job.state in ("cancelled", "failed"):
            for rendition in await m.all(_SELECT_UNFINISHED, {"backfill_id": job.id}):
                await self._queue.enqueue(
                    m,
                    rendition_rows.TASK,
                    rendition_rows.QUEUE,
                    rendition,
                    priority=jobs.BACKFILL,
                )
