"""Renders beside what they were made from: comparisons by reference, and a picture of the two made
by a job."""

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from atelier.assets.v1 import render_pb2 as pb
from atelier.assets.v1 import render_pb2_grpc
from psycopg.types.json import Jsonb

from services.assets.accounting.quotas import Quotas
from services.assets.comparisons import comparisons, side_by_side
from services.assets.core import asset_rows, holding, rules
from services.assets.core.trashing import Trash
from services.assets.uploads import verifying
from services.assets.variants import rendition_rows
from services.assets.variants.presets import Presets
from shared import imaging
from shared.background import attempts, events, jobs, waiting
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.imaging import Facts, ImageRejected, ImagingPool
from shared.rpc import auth, errors, paging
from shared.rpc.errors import DomainError, Reason
from shared.rpc.protos import Words, timestamp, wait_of
from shared.storage import ObjectNotFound, Storage

TASK = "compare"
QUEUE = "images"
STATES = Words(pb.ComparisonState, "COMPARISON_STATE_")
COMPARISON_STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"processing", "failed"}),
    "processing": frozenset({"processing", "pending", "ready", "failed"}),
    "ready": frozenset(),
    "failed": frozenset(),
}
_ENDED = frozenset({"ready", "failed"})
_JPEG = "image/jpeg"
_MAKER = "side-by-side"

_INSERT = """
    INSERT INTO comparisons (id, owner, created_by, before_asset_id, after_asset_id, note,
        session_id, room_id)
    VALUES (%(id)s, %(owner)s, %(actor)s, %(before)s, %(after)s, %(note)s, %(session_id)s,
        %(room_id)s)
    RETURNING *
"""
_GET = "SELECT * FROM comparisons WHERE id = %(id)s"
_INSERT_PICTURE = """
    INSERT INTO assets (id, owner, created_by, kind, state, public, free, file_name, storage_key,
        size_bytes, mime_type,
                        width, height, sha256, session_id, room_id, facts, provenance)
    VALUES (%(id)s, %(owner)s, %(created_by)s, 'render', 'ready', false, true, %(file_name)s,
        %(key)s, %(size)s,
            %(mime_type)s, %(width)s, %(height)s, %(sha256)s, %(session_id)s, %(room_id)s,
                %(facts)s, %(provenance)s)
    RETURNING *
"""


def to_proto(row: Any, urls: Mapping[UUID, str] | None = None) -> pb.Comparison:
    """`urls`: by asset id, of those that are there."""
    found = urls or {}
    return pb.Comparison(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        before_asset_id=str(row.before_asset_id),
        after_asset_id=str(row.after_asset_id),
        note=row.note,
        session_id=row.session_id,
        room_id=row.room_id,
        state=STATES.number[row.state],
        picture_asset_id=str(row.picture_asset_id or ""),
        error_class=row.error_class,
        error_message=row.error_message,
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        wait=wait_of(row),
        before_url=found.get(row.before_asset_id),
        after_url=found.get(row.after_asset_id),
        picture_url=found.get(row.picture_asset_id),
    )


async def publish(m: Mutation, row: Any) -> None:
    await events.publish(m, "comparison", row.id, row.version, to_proto(row))


class ComparisonService(render_pb2_grpc.ComparisonServiceServicer):
    def __init__(
        self,
        db: Database,
        stream: events.EventStream,
        queue: jobs.JobQueue,
        urls: asset_rows.Urls,
        trash: Trash,
        quota: Quotas,
    ) -> None:
        self._db = db
        self._stream = stream
        self._queue = queue
        self._urls = urls
        self._trash = trash
        self._quotas = quota

    async def CreateComparison(
        self, request: pb.CreateComparisonRequest, context: Any
    ) -> pb.CreateComparisonResponse:
        before, after = UUID(request.before_asset_id), UUID(request.after_asset_id)
        if before == after:
            raise errors.invalid("after_asset_id", "names the same picture as before_asset_id")

        async def work(m: Mutation) -> pb.CreateComparisonResponse:
            comparison_id = new_id()
            await self._quotas.room(
                m
            )  # how large the picture of the two will be is known when it is made
            pictures = [("before_asset_id", before), ("after_asset_id", after)]
            await holding.hold(m, comparisons.holder(comparison_id), pictures)
            row = await m.one(
                _INSERT,
                {
                    "id": comparison_id,
                    "owner": m.owner,
                    "actor": m.actor,
                    "before": before,
                    "after": after,
                    "note": request.note,
                    "session_id": request.session_id,
                    "room_id": request.room_id,
                },
            )
            await publish(m, row)
            await self._queue.enqueue(m, TASK, QUEUE, comparison_id)
            return pb.CreateComparisonResponse(comparison=to_proto(row))

        answer = await self._db.mutate(request, pb.CreateComparisonResponse, work)
        if request.wait or request.include_urls:

            async def read() -> Any:
                return await self._get(answer.comparison.id)

            def ended(row: Any) -> bool:
                return row.state in _ENDED

            row = await (
                waiting.until_told(self._stream, request, read, ended) if request.wait else read()
            )
            [shown] = await self._shown([row], request.include_urls)
            answer.comparison.CopyFrom(shown)
        return answer

    async def GetComparison(
        self, request: pb.GetComparisonRequest, context: Any
    ) -> pb.GetComparisonResponse:
        [shown] = await self._shown([await self._get(request.comparison_id)], request.include_urls)
        return pb.GetComparisonResponse(comparison=shown)

    async def ListComparisons(
        self, request: pb.ListComparisonsRequest, context: Any
    ) -> pb.ListComparisonsResponse:
        page = paging.page(request)
        where = ["owner = %(owner)s"]
        parameters: dict[str, Any] = {"owner": auth.current().owner}
        for name in ("session_id", "room_id"):
            if getattr(request, name):
                where.append(f"{name} = %({name})s")
                parameters[name] = getattr(request, name)
        if request.asset_id:
            where.append("(before_asset_id = %(asset_id)s OR after_asset_id = %(asset_id)s)")
            parameters["asset_id"] = UUID(request.asset_id)
        statement: Any = f"SELECT * FROM comparisons WHERE {' AND '.join(where)}{page.clause}"
        rows = await self._db.rows(statement, parameters | page.parameters)
        shown, token = page.fill(rows, await self._shown(page.cut(rows), request.include_urls))
        return pb.ListComparisonsResponse(comparisons=shown, next_page_token=token)

    async def DeleteComparison(
        self, request: pb.DeleteComparisonRequest, context: Any
    ) -> pb.DeleteComparisonResponse:
        comparison_id = parse_id(request.comparison_id, "comparison_id")
        mine = {"id": comparison_id, "owner": auth.current().owner}
        made = await self._db.rows(
            "SELECT picture_asset_id AS id FROM comparisons"
            " WHERE id = %(id)s AND owner = %(owner)s AND picture_asset_id IS NOT NULL",
            mine,
        )

        async def work(m: Mutation) -> pb.DeleteComparisonResponse:
            gone = await comparisons.take_out(m, [comparison_id])
            if not gone:
                raise errors.not_found("comparison", comparison_id)
            if (
                gone[0].picture_asset_id
            ):  # only it was made for this; if something else holds it by now, it stays
                await self._trash.delete(m, [gone[0].picture_asset_id], moves, force=False)
            return pb.DeleteComparisonResponse()

        async with self._trash.moves([row.id for row in made], public=False) as moves:
            return await self._db.mutate(request, pb.DeleteComparisonResponse, work)

    async def _get(self, text: str) -> Any:
        row = await self._db.row(_GET, {"id": parse_id(text, "comparison_id")})
        if row is None:
            raise errors.not_found("comparison", text)
        return row

    async def _shown(self, rows: Iterable[Any], with_urls: bool) -> list[pb.Comparison]:
        rows = list(rows)
        if not with_urls or not rows:
            return [to_proto(row) for row in rows]
        ids = {
            each
            for row in rows
            for each in (row.before_asset_id, row.after_asset_id, row.picture_asset_id)
            if each
        }
        found = await self._db.rows(
            "SELECT id, storage_key, mime_type, file_name FROM assets"
            " WHERE id = ANY(%s) AND state = 'ready' AND deleted_at IS NULL",
            (list(ids),),
        )
        urls = {
            asset.id: self._urls.of(asset.storage_key, asset.mime_type, asset.file_name)
            for asset in found
        }
        return [to_proto(row, urls) for row in rows]


class Comparer:
    """The job: fetch the two originals, make one picture of them, store it, then let a READY asset
    show it."""

    def __init__(
        self,
        db: Database,
        storage: Storage,
        queue: jobs.JobQueue,
        pool: ImagingPool,
        presets: Presets,
        quota: Quotas,
    ) -> None:
        self._db = db
        self._storage = storage
        self._queue = queue
        self._pool = pool
        self._presets = presets
        self._quotas = quota
        self._kind = attempts.Kind("comparisons", COMPARISON_STATES, "processing", "ready", publish)

    async def run(self, comparison_id: str) -> None:
        await attempts.run(self._db, self._kind, comparison_id, self._make)

    async def _make(self, attempt: attempts.Attempt) -> attempts.Outcome:
        directory = Path(tempfile.mkdtemp(prefix="atelier-"))
        try:
            originals = await self._originals(attempt, directory)
            made = directory / "both.jpg"
            await self._pool.run(side_by_side.compose, *originals, made)
            facts = await self._pool.run(imaging.inspect, made, _JPEG)
            return await self._store(attempt, made, facts)
        except ImageRejected as refusal:
            raise attempts.JobFailed(refusal.reason, refusal.message) from None
        except ObjectNotFound:
            raise attempts.JobFailed("ORIGINAL_GONE", "one of the two is no longer there") from None
        finally:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def _originals(self, attempt: attempts.Attempt, directory: Path) -> list[Path]:
        ids = [attempt.row.before_asset_id, attempt.row.after_asset_id]
        async with self._db.transaction(attempt.row.owner) as m:
            rows = await m.all(
                "SELECT * FROM assets WHERE id = ANY(%s) AND state = 'ready' AND deleted_at IS"
                " NULL",
                (ids,),
            )
        found = {row.id: row for row in rows}
        if len(found) < len(ids):
            raise ObjectNotFound
        paths = [directory / str(asset_id) for asset_id in ids]
        for asset_id, path in zip(ids, paths, strict=True):
            await self._storage.fetch(found[asset_id].storage_key, path)
            attempt.input_bytes += found[asset_id].size_bytes
        return paths

    async def _store(self, attempt: attempts.Attempt, made: Path, facts: Facts) -> attempts.Outcome:
        """The asset is new with every try, so that two tries never write the same object."""
        row = attempt.row
        asset_id = new_id()
        scope = {"session_id": row.session_id, "room_id": row.room_id}
        key = rules.object_key(
            row.owner, scope, str(asset_id), str(new_id()), folder="original", public=False
        )
        sha256 = hashlib.sha256(made.read_bytes()).hexdigest()
        try:
            await self._storage.put(key, made, content_type=_JPEG, sha256=sha256)
        except BaseException:  # also when cancelled, because another try has the row
            await asyncio.shield(self._storage.delete([key]))
            raise

        async def show(m: Mutation, _comparison: Any) -> None:
            sources = [str(row.before_asset_id), str(row.after_asset_id)]
            provenance = {
                "model": _MAKER,
                "model_version": side_by_side.VERSION,
                "prompt": "",
                "source_asset_ids": sources,
            }
            asset = await m.one(
                _INSERT_PICTURE,
                {
                    "id": asset_id,
                    "owner": row.owner,
                    "created_by": row.created_by,
                    "file_name": "before-after.jpg",
                    "key": key,
                    "size": facts.size,
                    "mime_type": _JPEG,
                    "width": facts.width,
                    "height": facts.height,
                    "sha256": sha256,
                    **scope,
                    "facts": verifying.stored_facts(facts),
                    "provenance": Jsonb(provenance),
                },
            )
            try:
                await self._quotas.announce(m, facts.size, set_for_it=True)
            except DomainError as refusal:
                full = refusal.reason == Reason.ERROR_REASON_QUOTA_EXCEEDED
                raise attempts.JobFailed("QUOTA_EXCEEDED", refusal.text, final=full) from None
            await asset_rows.publish(m, asset)
            await holding.hold(m, comparisons.holder(row.id), [("picture_asset_id", asset_id)])
            await rendition_rows.ask(
                m, self._queue, asset, self._presets.eager[asset.kind], priority=jobs.BACKFILL
            )

        async def remove_stored() -> None:
            await self._storage.delete([key])

        return attempts.Outcome(
            {"picture_asset_id": asset_id}, output_bytes=facts.size, also=show, undo=remove_stored
        )
