"""Backfills: presets made of the images that are already there, by one job that walks over all
owners' images.

A backfill takes one image at a time and one slot of a worker. It gives the slot back whenever a
fresh job waits, and after a few hundred images, so that the queue decides anew; the row holds how
far it is. What it makes of an image is an ordinary rendition that never stands in the queue: the
walk runs it, and after a crash finishes it first.
"""

from functools import partial
from typing import Any
from uuid import UUID

from atelier.assets.v1 import backfill_pb2 as pb
from atelier.assets.v1 import backfill_pb2_grpc

from services.assets.core import asset_rows, rules
from services.assets.variants import rendition_rows
from services.assets.variants.make_variants import VariantMaker
from services.assets.variants.presets import Presets
from shared.background import attempts, jobs
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.rpc import errors, paging
from shared.rpc.protos import Words, timestamp, wait_of

TASK = "walk_backfill"
QUEUE = "backfills"
STATES = Words(pb.BackfillState, "BACKFILL_STATE_")
_PAGE = 200  # images looked at in one statement
_STRETCH = 500  # images made before the queue decides anew

_GET = "SELECT * FROM backfills WHERE id = %(id)s"
_INSERT = """
    INSERT INTO backfills (id, owner, created_by, presets, kinds)
    VALUES (%(id)s, %(owner)s, %(actor)s, %(presets)s, %(kinds)s) ON CONFLICT DO NOTHING RETURNING *
"""
_UNDER_WAY = "SELECT id FROM backfills WHERE state IN ('pending', 'running')"
_WANTED = """
    state = 'ready' AND deleted_at IS NULL AND bytes_gone_at IS NULL AND mime_type
        <> 'application/pdf'
    AND kind = ANY(%(kinds)s) AND created_at <= %(started)s AND id > %(reached)s
"""
_COUNT = f"SELECT count(*) AS total FROM assets WHERE {_WANTED}"
_NEXT = f"""
    SELECT a.id, a.owner, ARRAY(
        SELECT name FROM unnest(%(presets)s::text[]) AS wanted (name) WHERE NOT EXISTS (
            SELECT FROM variants v WHERE v.asset_id = a.id AND v.preset = wanted.name
            AND (v.state <> 'failed' OR v.error_class = ANY(%(final)s)))
    ) AS missing
    FROM assets a WHERE {_WANTED} ORDER BY a.id LIMIT %(limit)s
"""
_REACH = """
    UPDATE backfills SET reached = %(reached)s, examined = examined + %(examined)s, version
        = version + 1,
        updated_at = now()
    WHERE id = %(id)s AND attempt_token = %(token)s AND state = 'running' RETURNING id
"""
_UNFINISHED = "SELECT id FROM renditions WHERE backfill_id = %s AND state IN ('pending', 'running')"


def to_proto(row: Any) -> pb.Backfill:
    return pb.Backfill(
        id=str(row.id),
        created_by=row.created_by,
        presets=row.presets,
        kinds=[asset_rows.KINDS.number[kind] for kind in row.kinds],
        state=STATES.number[row.state],
        total_images=row.total or 0,
        examined_images=row.examined,
        made_images=row.made,
        failed_images=row.failed,
        cancel_requested=row.cancel_requested,
        error_class=row.error_class,
        error_message=row.error_message,
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        wait=wait_of(row),
    )


class BackfillService(backfill_pb2_grpc.BackfillServiceServicer):
    def __init__(self, db: Database, queue: jobs.JobQueue, presets: Presets) -> None:
        self._db = db
        self._queue = queue
        self._presets = presets

    async def StartBackfill(
        self, request: pb.StartBackfillRequest, context: Any
    ) -> pb.StartBackfillResponse:
        self._presets.check(
            {f"presets[{index}]": name for index, name in enumerate(request.presets)}
        )
        kinds = [asset_rows.KINDS.word[kind] for kind in request.kinds] or sorted(
            asset_rows.KINDS.number
        )

        async def work(m: Mutation) -> pb.StartBackfillResponse:
            columns = {
                "id": new_id(),
                "owner": m.owner,
                "actor": m.actor,
                "presets": list(request.presets),
            }
            row = await m.one(_INSERT, {**columns, "kinds": kinds})
            if row is None:
                other = await m.one(_UNDER_WAY)
                subject = f"backfills/{other.id}" if other else "backfills"
                text = "a backfill is under way; wait until it is done, or cancel it"
                raise errors.precondition(text, subject=subject)
            await self._queue.enqueue(m, TASK, QUEUE, row.id, priority=jobs.BACKFILL)
            return pb.StartBackfillResponse(backfill=to_proto(row))

        return await self._db.mutate(request, pb.StartBackfillResponse, work)

    async def GetBackfill(
        self, request: pb.GetBackfillRequest, context: Any
    ) -> pb.GetBackfillResponse:
        backfill_id = parse_id(request.backfill_id, "backfill_id")
        row = await self._db.row(_GET, {"id": backfill_id})
        if row is None:
            raise errors.not_found("backfill", backfill_id)
        return pb.GetBackfillResponse(backfill=to_proto(row))

    async def ListBackfills(
        self, request: pb.ListBackfillsRequest, context: Any
    ) -> pb.ListBackfillsResponse:
        page = paging.page(request)
        statement: Any = f"SELECT * FROM backfills WHERE true{page.clause}"
        rows = await self._db.rows(statement, page.parameters)
        backfills, token = page.fill(rows, map(to_proto, rows))
        return pb.ListBackfillsResponse(backfills=backfills, next_page_token=token)

    async def CancelBackfill(
        self, request: pb.CancelBackfillRequest, context: Any
    ) -> pb.CancelBackfillResponse:
        backfill_id = parse_id(request.backfill_id, "backfill_id")

        async def work(m: Mutation) -> pb.CancelBackfillResponse:
            await m.run(
                "UPDATE backfills SET cancel_requested = true, version = version + 1, updated_at ="
                " now() WHERE id = %s AND state IN ('pending', 'running') AND NOT cancel_requested",
                (backfill_id,),
            )
            row = await m.one(_GET, {"id": backfill_id})
            if row is None:
                raise errors.not_found("backfill", backfill_id)
            return pb.CancelBackfillResponse(backfill=to_proto(row))

        return await self._db.mutate(request, pb.CancelBackfillResponse, work)


class Walk:
    """The job of a backfill: a stretch of the walk, again and again until there is nothing left."""

    def __init__(
        self, db: Database, queue: jobs.JobQueue, maker: VariantMaker, presets: Presets
    ) -> None:
        self._db = db
        self._queue = queue
        self._maker = maker
        self._presets = presets
        self._kind = attempts.Kind("backfills", rules.JOB_STATES, "running", "done", self._ended)

    async def run(self, backfill_id: str) -> None:
        again: list[jobs.TryAgain] = []
        await attempts.run(self._db, self._kind, backfill_id, partial(self._stretch, again))
        if again:
            raise again[0]

    async def _stretch(
        self, again: list[jobs.TryAgain], attempt: attempts.Attempt
    ) -> attempts.Outcome:
        """Makes what the next images lack. Adds to `again` if there are more."""
        job = attempt.row
        if unknown := [name for name in job.presets if name not in self._presets.by_name]:
            raise attempts.JobFailed("PRESET_UNKNOWN", f"{unknown[0]} is no longer a preset")
        if job.total is None:
            await self._count(attempt)
        try:
            for left_over in await self._db.system_rows(_UNFINISHED, (job.id,)):
                await self._maker.run(str(left_over.id))
            if await self._walk(attempt):
                return attempts.Outcome({})
            again.append(jobs.TryAgain())
        except jobs.TryAgain as later:  # the store is away; the image is not given up yet
            again.append(later)
        return attempts.Outcome({}, to="pending")

    async def _walk(self, attempt: attempts.Attempt) -> bool:
        """True at the end of the walk, False if it should go on after others."""
        reached, examined, made = attempt.row.reached, 0, 0
        while rows := await self._db.system_rows(_NEXT, self._next(attempt.row, reached)):
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

    def _next(self, job: Any, reached: UUID) -> dict[str, Any]:
        return {
            "presets": job.presets,
            "kinds": job.kinds,
            "started": job.created_at,
            "reached": reached,
            "limit": _PAGE,
            "final": list(rendition_rows.UNDECODABLE),
        }

    async def _count(self, attempt: attempts.Attempt) -> None:
        [counted] = await self._db.system_rows(_COUNT, self._next(attempt.row, attempt.row.reached))
        async with self._db.transaction(attempt.row.owner) as m:
            await m.run(
                "UPDATE backfills SET total = %s WHERE id = %s", (counted.total, attempt.row.id)
            )

    async def _reach(self, attempt: attempts.Attempt, reached: UUID, examined: int) -> None:
        async with self._db.transaction(attempt.row.owner) as m:
            await self._note(m, attempt, reached, examined)

    async def _note(
        self, m: Mutation, attempt: attempts.Attempt, reached: UUID, examined: int
    ) -> None:
        values = {
            "id": attempt.row.id,
            "token": attempt.token,
            "reached": reached,
            "examined": examined,
        }
        if await m.one(_REACH, values) is None:
            raise attempts.Superseded

    async def _take(self, attempt: attempts.Attempt, row: Any, examined: int) -> UUID | None:
        """Moves on to the image and plans what it lacks, in one transaction, so that a crash loses
        neither."""
        async with self._db.transaction(row.owner) as m:
            await self._note(m, attempt, row.id, examined)
            asset = await m.one(
                "SELECT * FROM assets WHERE id = %s AND owner = %s FOR UPDATE", (row.id, row.owner)
            )
            if asset is None or asset.state != "ready" or asset.deleted_at:
                return None
            return await rendition_rows.plan(
                m, asset, row.missing, again=("failed",), backfill_id=attempt.row.id
            )

    async def _ended(self, m: Mutation, job: Any) -> None:
        """A walk that is cancelled, or can't go on, leaves the image in hand to the queue."""
        if job.state in ("cancelled", "failed"):
            for rendition in await m.all(_UNFINISHED, (job.id,)):
                await self._queue.enqueue(
                    m,
                    rendition_rows.TASK,
                    rendition_rows.QUEUE,
                    rendition.id,
                    priority=jobs.BACKFILL,
                )
