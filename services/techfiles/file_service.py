"""TechFileService: the story of each call."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, LiteralString
from uuid import UUID

from atelier.techfiles.v1 import tech_file_pb2 as pb
from atelier.techfiles.v1 import tech_file_pb2_grpc
from psycopg.types.json import Jsonb

from services.techfiles import files, rules
from services.techfiles.assets import Assets, Shown
from shared.background import events
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.rpc import auth, errors, paging, protos
from shared.rpc.protos import time_of

_URLS_AT_ONCE = 100
_SNAPSHOT_AGE = timedelta(days=1)
_SNAPSHOT_PAGE = 500
_GET = "SELECT * FROM tech_files WHERE id = %(id)s"
# Two states of one slot are one list: what its files are now, and what they were.
_VERSIONS = """
    SELECT * FROM (
        SELECT id, tech_file_id, number, snapshot, created_by, reason, created_at, false AS current
        FROM tech_file_versions WHERE slot_id = %(slot)s
        UNION ALL
        SELECT id, id, number, to_jsonb(f), created_by, '', numbered_at, true FROM tech_files f
        WHERE slot_id = %(slot)s
    ) AS versions WHERE true
"""
_STATISTICS = """
    SELECT file_type, state, archived_at IS NOT NULL AS archived, count(*) AS files,
           sum(credits_used)::bigint AS credits
    FROM tech_files WHERE owner = %(owner)s AND product_id = %(product_id)s GROUP BY 1, 2, 3
"""
_NEWEST_COMPLETED: LiteralString = (
    "state = 'completed' AND archived_at IS NULL AND NOT EXISTS (SELECT FROM tech_files newer"
    " WHERE newer.slot_id = tech_files.slot_id AND newer.number > tech_files.number"
    " AND newer.state = 'completed' AND newer.archived_at IS NULL)"
)


class TechFileService(tech_file_pb2_grpc.TechFileServiceServicer):
    def __init__(
        self, db: Database, stream: events.EventStream, assets: Assets, shown: Shown
    ) -> None:
        self._db = db
        self._stream = stream
        self._assets = assets
        self._shown = shown

    async def CreateTechFile(
        self, request: pb.CreateTechFileRequest, context: Any
    ) -> pb.CreateTechFileResponse:
        columns = _new_columns(request)
        if request.file_asset_id:
            pictures = columns["file_type"] != "complete_pack"
            await self._assets.hold(
                request.product_id, [request.file_asset_id], "file_asset_id", pictures=pictures
            )

        async def work(m: Mutation) -> pb.CreateTechFileResponse:
            if columns["collection_id"] and not await m.one(
                "SELECT id FROM collections WHERE id = %s", (columns["collection_id"],)
            ):
                raise errors.not_found("collection", request.collection_id)
            return pb.CreateTechFileResponse(
                tech_file=files.to_proto(await files.create(m, columns))
            )

        return await self._db.mutate(request, pb.CreateTechFileResponse, work)

    async def GetTechFile(
        self, request: pb.GetTechFileRequest, context: Any
    ) -> pb.GetTechFileResponse:
        row = await self._visible(parse_id(request.tech_file_id, "tech_file_id"))
        [file] = await self._shown.files([row], urls=request.include_urls)
        return pb.GetTechFileResponse(tech_file=file)

    async def ListTechFiles(
        self, request: pb.ListTechFilesRequest, context: Any
    ) -> pb.ListTechFilesResponse:
        where, parameters = _filter(request)
        if request.include_urls:
            request.page_size = min(request.page_size or paging.DEFAULT_SIZE, _URLS_AT_ONCE)
        page = paging.page(request)
        statement: Any = f"SELECT * FROM tech_files WHERE {where}{page.clause}"
        rows = await self._db.rows(statement, parameters | page.parameters)
        shown, token = page.fill(
            rows, await self._shown.files(page.cut(rows), urls=request.include_urls)
        )
        return pb.ListTechFilesResponse(tech_files=shown, next_page_token=token)

    async def UpdateTechFile(
        self, request: pb.UpdateTechFileRequest, context: Any
    ) -> pb.UpdateTechFileResponse:
        file_id = parse_id(request.tech_file_id, "tech_file_id")
        columns = _changed_columns(request)
        if columns.get("file_asset_id"):
            row = await self._visible(file_id)
            pictures = row.file_type != "complete_pack"
            await self._assets.hold(
                row.product_id, [request.file_asset_id], "file_asset_id", pictures=pictures
            )

        async def work(m: Mutation) -> pb.UpdateTechFileResponse:
            row = _live(await files.get_with_slot(m, file_id))
            if request.etag and request.etag != str(row.version):
                raise errors.etag_mismatch("tech file", file_id)
            _kept, row = await files.renumber(m, row, request.reason, columns)
            return pb.UpdateTechFileResponse(tech_file=files.to_proto(row))

        return await self._db.mutate(request, pb.UpdateTechFileResponse, work)

    async def UpdateTechFileStatus(
        self, request: pb.UpdateTechFileStatusRequest, context: Any
    ) -> pb.UpdateTechFileStatusResponse:
        file_id = parse_id(request.tech_file_id, "tech_file_id")
        to = files.STATES.word[request.state]
        _check_error_message(request.error_message, to)

        async def work(m: Mutation) -> pb.UpdateTechFileStatusResponse:
            before = await files.get(m, file_id)
            row = await files.advance(m, file_id, to, error_message=request.error_message)
            if row is None:
                text = (
                    f"it is {before.state}, and that doesn't become {to}; another try is a new file"
                    " in its slot"
                )
                raise errors.precondition(text, subject=f"tech_files/{file_id}")
            return pb.UpdateTechFileStatusResponse(tech_file=files.to_proto(row))

        return await self._db.mutate(request, pb.UpdateTechFileStatusResponse, work)

    async def ArchiveTechFile(
        self, request: pb.ArchiveTechFileRequest, context: Any
    ) -> pb.ArchiveTechFileResponse:
        async def work(m: Mutation) -> pb.ArchiveTechFileResponse:
            row = await _set_archived(
                m, parse_id(request.tech_file_id, "tech_file_id"), archived=True
            )
            return pb.ArchiveTechFileResponse(tech_file=files.to_proto(row))

        return await self._db.mutate(request, pb.ArchiveTechFileResponse, work)

    async def UnarchiveTechFile(
        self, request: pb.UnarchiveTechFileRequest, context: Any
    ) -> pb.UnarchiveTechFileResponse:
        async def work(m: Mutation) -> pb.UnarchiveTechFileResponse:
            row = await _set_archived(
                m, parse_id(request.tech_file_id, "tech_file_id"), archived=False
            )
            return pb.UnarchiveTechFileResponse(tech_file=files.to_proto(row))

        return await self._db.mutate(request, pb.UnarchiveTechFileResponse, work)

    async def CreateTechFileVersion(
        self, request: pb.CreateTechFileVersionRequest, context: Any
    ) -> pb.CreateTechFileVersionResponse:
        file_id = parse_id(request.tech_file_id, "tech_file_id")

        async def work(m: Mutation) -> pb.CreateTechFileVersionResponse:
            row = _live(await files.get_with_slot(m, file_id))
            kept, row = await files.renumber(m, row, request.reason, {})
            return pb.CreateTechFileVersionResponse(
                version=files.version_to_proto(kept), tech_file=files.to_proto(row)
            )

        return await self._db.mutate(request, pb.CreateTechFileVersionResponse, work)

    async def ListTechFileVersions(
        self, request: pb.ListTechFileVersionsRequest, context: Any
    ) -> pb.ListTechFileVersionsResponse:
        row = await self._visible(parse_id(request.tech_file_id, "tech_file_id"))
        page = paging.page(request)
        statement: Any = _VERSIONS + page.clause
        rows = await self._db.rows(statement, {"slot": row.slot_id, **page.parameters})
        versions, token = page.fill(rows, map(files.version_to_proto, rows))
        return pb.ListTechFileVersionsResponse(versions=versions, next_page_token=token)

    async def GetProductStatistics(
        self, request: pb.GetProductStatisticsRequest, context: Any
    ) -> pb.GetProductStatisticsResponse:
        rows = await self._db.rows(
            _STATISTICS, {"owner": auth.current().owner, "product_id": request.product_id}
        )
        types: dict[str, int] = {}
        states: dict[str, int] = {}
        for row in rows:
            if not row.archived:
                types[row.file_type] = types.get(row.file_type, 0) + row.files
                states[row.state] = states.get(row.state, 0) + row.files
        return pb.GetProductStatisticsResponse(
            total_files=sum(types.values()),
            total_credits_used=sum(row.credits for row in rows),
            files_by_type=[
                pb.TypeCount(file_type=number, files=types[word])
                for word, number in files.TYPES.number.items()
                if word in types
            ],
            files_by_state=[
                pb.StateCount(state=number, files=states[word])
                for word, number in files.STATES.number.items()
                if word in states
            ],
            archived_files=sum(row.files for row in rows if row.archived),
        )

    def WatchTechFiles(
        self, request: pb.WatchTechFilesRequest, context: Any
    ) -> AsyncIterator[pb.WatchTechFilesResponse]:
        def show(event: events.Event) -> events.Fields | None:
            if event.subject != "tech_file":
                return None
            file = pb.TechFile.FromString(event.payload)
            return {"tech_file": file} if request.product_id in ("", file.product_id) else None

        return self._stream.watch(
            request, pb.WatchTechFilesResponse, self._now(request.product_id), show
        )

    async def _now(self, product_id: str) -> AsyncIterator[tuple[events.Fields, Any]]:
        """The product's files, or the owner's recent ones, oldest first."""
        after: dict[str, Any] = {"after_at": None, "after_id": None}
        while True:
            rows = await self._db.rows(
                "SELECT * FROM tech_files WHERE owner = %(owner)s AND (product_id = %(product_id)s"
                " OR (%(product_id)s = '' AND created_at > now() - %(age)s)) AND"
                " (%(after_id)s::uuid IS NULL OR (created_at, id) > (%(after_at)s, %(after_id)s))"
                " ORDER BY created_at, id LIMIT %(limit)s",
                {
                    "owner": auth.current().owner,
                    "product_id": product_id,
                    "age": _SNAPSHOT_AGE,
                    "limit": _SNAPSHOT_PAGE,
                    **after,
                },
            )
            for row in rows:
                yield {"tech_file": files.to_proto(row)}, row
            if len(rows) < _SNAPSHOT_PAGE:
                return
            after = {"after_at": rows[-1].created_at, "after_id": rows[-1].id}

    async def _visible(self, file_id: UUID) -> Any:
        row = await self._db.row(_GET, {"id": file_id})
        if row is None:
            raise errors.not_found("tech file", file_id)
        return row


async def _set_archived(m: Mutation, file_id: UUID, *, archived: bool) -> Any:
    """Hides or shows a file; its state stays. Nothing happens to one that is so already."""
    row = await files.get_with_slot(m, file_id)
    if (row.archived_at is not None) == archived:
        return row
    await m.run(
        "UPDATE tech_files SET archived_at = CASE WHEN %(archived)s THEN now() END, version ="
        " version + 1, updated_at = now(), is_latest = false WHERE id = %(id)s",
        {"archived": archived, "id": file_id},
    )
    return await files.settled(m, row.slot_id, file_id)


def _live(row: Any) -> Any:
    if row.archived_at is not None:
        raise errors.precondition(
            "it is archived; unarchive it first", subject=f"tech_files/{row.id}"
        )
    return row


def _check_error_message(message: str, state: str) -> None:
    if message and state != "failed":
        raise errors.invalid("error_message", "is only for a state of FAILED")


def _new_columns(request: pb.CreateTechFileRequest) -> dict[str, Any]:
    """Checks what protovalidate can't, and turns the request into columns."""
    file_type = files.TYPES.word[request.file_type]
    view = files.VIEWS.word.get(request.view_type, "")
    problem = rules.file_problem(
        file_type,
        revision_id=request.revision_id,
        view=view,
        shot=request.file_category,
        collection_id=request.collection_id,
    )
    if problem:
        raise errors.invalid(*problem)
    state = files.STATES.word.get(request.state, "pending")
    _check_error_message(request.error_message, state)
    return {
        "product_id": request.product_id,
        "revision_id": request.revision_id,
        "file_type": file_type,
        "view_type": view,
        "file_category": request.file_category,
        "state": state,
        "error_message": request.error_message,
        "file_asset_id": _uuid(request.file_asset_id),
        "analysis": _analysis(request) if request.HasField("analysis") else None,
        "credits_used": request.credits_used,
        "model": request.model,
        "prompt": request.prompt,
        "batch_id": request.batch_id,
        "confidence": _optional(request, "confidence"),
        "quality_score": _optional(request, "quality_score"),
        "collection_id": _uuid(request.collection_id),
    }


def _changed_columns(request: pb.UpdateTechFileRequest) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(request.update_mask.paths):
        if name == "file_asset_id":
            columns[name] = _uuid(request.file_asset_id)
        elif name == "analysis":
            columns[name] = Jsonb(_analysis(request)) if request.HasField("analysis") else None
        elif name in ("confidence", "quality_score"):
            columns[name] = _optional(request, name)
        else:
            columns[name] = getattr(request, name)
    return columns


def _analysis(request: Any) -> dict[str, Any]:
    return protos.metadata(request.analysis, "analysis", rules.ANALYSIS_BYTES)


def _optional(request: Any, name: str) -> float | None:
    return getattr(request, name) if request.HasField(name) else None


def _uuid(text: str) -> UUID | None:
    return UUID(text) if text else None


def _filter(request: pb.ListTechFilesRequest) -> tuple[str, dict[str, Any]]:
    """Fixed conditions for the fields that are set; values are parameters."""
    conditions: list[str] = ["owner = %(owner)s"]
    parameters: dict[str, Any] = {"owner": auth.current().owner}
    words = {
        "file_type": files.TYPES.word.get(request.file_type),
        "view_type": files.VIEWS.word.get(request.view_type),
        "state": files.STATES.word.get(request.state),
        "product_id": request.product_id,
        "revision_id": request.revision_id,
        "batch_id": request.batch_id,
    }
    for name, value in words.items():
        if value:
            conditions.append(f"{name} = %({name})s")
            parameters[name] = value
    for field, operator in (("created_from", ">="), ("created_before", "<")):
        at = time_of(getattr(request, field), request.HasField(field), field)
        if at is not None:
            conditions.append(f"created_at {operator} %({field})s")
            parameters[field] = at
    if request.versions == pb.VERSION_FILTER_LATEST_COMPLETED:
        if request.state not in (pb.TECH_FILE_STATE_UNSPECIFIED, pb.TECH_FILE_STATE_COMPLETED):
            raise errors.invalid(
                "state", "must be COMPLETED or unspecified with VERSION_FILTER_LATEST_COMPLETED"
            )
        conditions.append(_NEWEST_COMPLETED)
    elif request.versions == pb.VERSION_FILTER_LATEST:
        conditions.append("is_latest")
    elif request.archived != pb.ARCHIVED_FILTER_INCLUDED:
        hidden = "NOT" if request.archived == pb.ARCHIVED_FILTER_ONLY else ""
        conditions.append(f"archived_at IS {hidden} NULL")
    return " AND ".join(conditions), parameters
