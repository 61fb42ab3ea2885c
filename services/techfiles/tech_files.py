"""TechFileService: one method per call."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

import sqlalchemy as sa
from atelier.techfiles.v1 import tech_file_pb2 as pb
from psycopg.types.json import Jsonb

from services.techfiles import (
    collection_rows,
    releasing_pictures,
    rules,
    tech_file_rows,
    trash_rows,
)
from services.techfiles.assets import Assets
from services.techfiles.tech_file_rows import (
    SELECT_TECH_FILE,
    STATES,
    TECH_FILES,
    TYPES,
    VIEWS,
    TechFile,
    TechFileVersion,
)
from services.techfiles.trash import TechFileTrash
from services.techfiles.views import TechFileViews
from shared.background.watches import Event, EventStream, Fields
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.lists import Listing, created
from shared.database.rows import Command, Statement
from shared.rpc import auth, errors, paging, protos
from shared.rpc.server import Context

F = TypeVar("F", bound=TechFile)

_URLS_AT_ONCE = 100
_SNAPSHOT_AGE = timedelta(days=1)
_SNAPSHOT_PAGE = 500


@dataclass(slots=True)
class _Figures:
    file_type: str
    state: str
    archived: bool
    deleted: bool
    files: int
    credits: int


_COMPLETED: sa.ColumnElement[str] = sa.literal_column("'completed'")


def _is_latest_completed(file: Any, _: sa.BindParameter[Any]) -> sa.ColumnElement[bool]:
    """Returns the condition that a file is live and completed, and no such file of its slot has a
    higher number."""
    newer = TECH_FILES.core.alias("newer").c
    newer_completed = sa.select(newer.id).where(
        newer.slot_id == file.slot_id,
        newer.number > file.number,
        newer.state == _COMPLETED,
        newer.archived_at.is_(None),
        newer.deleted_at.is_(None),
    )
    live = (file.archived_at.is_(None), file.deleted_at.is_(None))
    return sa.and_(file.state == _COMPLETED, *live, ~newer_completed.exists())


_LIST = Listing(
    TECH_FILES,
    TechFile,
    latest_completed=_is_latest_completed,
    latest=lambda file, _: file.is_latest,
    live=lambda file, _: file.archived_at.is_(None),
    archived=lambda file, _: file.archived_at.is_not(None),
    **trash_rows.HIDES,
)
# A slot's versions: the present and the earlier numbers of its files.
_VERSIONS = """
    SELECT id, tech_file_id, number, snapshot, created_by, reason, created_at, current FROM (
        SELECT id, tech_file_id, number, snapshot, created_by, reason, created_at, false AS current
        FROM tech_file_versions WHERE slot_id = %(slot_id)s
        UNION ALL
        SELECT id, id, number, to_jsonb(f), created_by, restore_reason, numbered_at, true
        FROM tech_files f WHERE slot_id = %(slot_id)s
    ) AS versions
"""
_PAGE = "ORDER BY created_at DESC, id DESC LIMIT %(limit)s OFFSET %(skip)s"
_SELECT_VERSIONS = Statement(TechFileVersion, f"{_VERSIONS} {_PAGE}")
_SELECT_VERSIONS_AFTER = Statement(
    TechFileVersion,
    f"{_VERSIONS} WHERE (created_at, id) < (%(after_at)s, %(after_id)s) {_PAGE}",
)
_SUM_BY_TYPE_AND_STATE = Statement(
    _Figures,
    """
    SELECT file_type, state, archived_at IS NOT NULL AS archived,
           deleted_at IS NOT NULL AS deleted, count(*) AS files,
           sum(credits_used)::bigint AS credits
    FROM tech_files WHERE owner = %(owner)s AND product_id = %(product_id)s GROUP BY 1, 2, 3, 4
    """,
)
# The files of one product, or the recent ones of all products, oldest first.
_SELECT_SNAPSHOT = Statement(
    TechFile,
    f"""
    SELECT {TECH_FILES.columns} FROM tech_files
    WHERE owner = %(owner)s
        AND (product_id = %(product_id)s
             OR (%(product_id)s = '' AND created_at > now() - %(age)s::interval))
        AND (%(after_id)s::uuid IS NULL OR (created_at, id) > (%(after_at)s, %(after_id)s))
    ORDER BY created_at, id LIMIT %(limit)s
    """,
)
_SET_ARCHIVED = Command("""
    UPDATE tech_files SET archived_at = CASE WHEN %(archived)s THEN now() END,
        version = version + 1, updated_at = now(), is_latest = false
    WHERE id = %(id)s
""")


class TechFileService(TechFileTrash):
    def __init__(
        self, db: Database, stream: EventStream, assets: Assets, views: TechFileViews
    ) -> None:
        super().__init__(db, timedelta(days=db.settings.trash_days))
        self._stream = stream
        self._assets = assets
        self._views = views

    async def CreateTechFile(
        self, request: pb.CreateTechFileRequest, context: Context
    ) -> pb.CreateTechFileResponse:
        columns = _new_columns(request)

        async def work(m: Mutation) -> pb.CreateTechFileResponse:
            if columns["collection_id"]:
                await collection_rows.share(m, columns["collection_id"])
            return pb.CreateTechFileResponse(
                tech_file=tech_file_rows.to_proto(await tech_file_rows.create(m, columns))
            )

        picture = columns["file_asset_id"]
        if not picture:
            return await self._db.mutate(request, pb.CreateTechFileResponse, work)
        # A repeat holds no picture: its file may be purged by now.
        if stored := await self._db.stored_answer(request, pb.CreateTechFileResponse):
            return stored
        async with releasing_pictures.unless_kept(self._db, request.product_id, picture):
            pictures = columns["file_type"] != "complete_pack"
            await self._assets.acquire(
                request.product_id, [request.file_asset_id], "file_asset_id", pictures=pictures
            )
            return await self._db.mutate(request, pb.CreateTechFileResponse, work)

    async def GetTechFile(
        self, request: pb.GetTechFileRequest, context: Context
    ) -> pb.GetTechFileResponse:
        row = await self._file(parse_id(request.tech_file_id, "tech_file_id"))
        [file] = await self._views.files([row], urls=request.include_urls)
        return pb.GetTechFileResponse(tech_file=file)

    async def ListTechFiles(
        self, request: pb.ListTechFilesRequest, context: Context
    ) -> pb.ListTechFilesResponse:
        wanted = _wanted(request)
        auth.act_for(request.owner or auth.current().owner)
        if request.include_urls:
            request.page_size = min(request.page_size or paging.DEFAULT_SIZE, _URLS_AT_ONCE)
        page = paging.page(request)
        rows = await self._db.all(*_LIST.query(page, wanted))
        shown, token = page.fill(
            rows, await self._views.files(page.cut(rows), urls=request.include_urls)
        )
        return pb.ListTechFilesResponse(tech_files=shown, next_page_token=token)

    async def UpdateTechFile(
        self, request: pb.UpdateTechFileRequest, context: Context
    ) -> pb.UpdateTechFileResponse:
        file_id = parse_id(request.tech_file_id, "tech_file_id")
        columns = _changed_columns(request)

        async def work(m: Mutation) -> pb.UpdateTechFileResponse:
            locked = _live(await tech_file_rows.lock_with_slot(m, file_id))
            errors.check_etag(request.etag, locked.version, "tech file", file_id)
            _kept, row = await tech_file_rows.renumber(m, locked, request.reason, columns)
            return pb.UpdateTechFileResponse(tech_file=tech_file_rows.to_proto(row))

        picture = columns.get("file_asset_id")
        if not picture:
            return await self._db.mutate(request, pb.UpdateTechFileResponse, work)
        if stored := await self._db.stored_answer(request, pb.UpdateTechFileResponse):
            return stored
        row = await self._file(file_id)
        async with releasing_pictures.unless_kept(self._db, row.product_id, picture):
            pictures = row.file_type != "complete_pack"
            await self._assets.acquire(
                row.product_id, [request.file_asset_id], "file_asset_id", pictures=pictures
            )
            return await self._db.mutate(request, pb.UpdateTechFileResponse, work)

    async def UpdateTechFileStatus(
        self, request: pb.UpdateTechFileStatusRequest, context: Context
    ) -> pb.UpdateTechFileStatusResponse:
        file_id = parse_id(request.tech_file_id, "tech_file_id")
        to = STATES.word[request.state]
        _check_error_message(request.error_message, to)

        async def work(m: Mutation) -> pb.UpdateTechFileStatusResponse:
            before = _undeleted(await tech_file_rows.lock(m, file_id))
            errors.check_etag(request.etag, before.version, "tech file", file_id)
            row = await tech_file_rows.advance(m, file_id, to, error_message=request.error_message)
            if row is None:
                text = (
                    f"it is {before.state}, and that doesn't become {to}; another try is a new file"
                    " in its slot"
                )
                raise errors.precondition(text, subject=f"tech_files/{file_id}")
            return pb.UpdateTechFileStatusResponse(tech_file=tech_file_rows.to_proto(row))

        return await self._db.mutate(request, pb.UpdateTechFileStatusResponse, work)

    async def ArchiveTechFile(
        self, request: pb.ArchiveTechFileRequest, context: Context
    ) -> pb.ArchiveTechFileResponse:
        async def work(m: Mutation) -> pb.ArchiveTechFileResponse:
            row = await _set_archived(
                m,
                parse_id(request.tech_file_id, "tech_file_id"),
                request.etag,
                archived=True,
            )
            return pb.ArchiveTechFileResponse(tech_file=tech_file_rows.to_proto(row))

        return await self._db.mutate(request, pb.ArchiveTechFileResponse, work)

    async def UnarchiveTechFile(
        self, request: pb.UnarchiveTechFileRequest, context: Context
    ) -> pb.UnarchiveTechFileResponse:
        async def work(m: Mutation) -> pb.UnarchiveTechFileResponse:
            row = await _set_archived(
                m,
                parse_id(request.tech_file_id, "tech_file_id"),
                request.etag,
                archived=False,
            )
            return pb.UnarchiveTechFileResponse(tech_file=tech_file_rows.to_proto(row))

        return await self._db.mutate(request, pb.UnarchiveTechFileResponse, work)

    async def CreateTechFileVersion(
        self, request: pb.CreateTechFileVersionRequest, context: Context
    ) -> pb.CreateTechFileVersionResponse:
        file_id = parse_id(request.tech_file_id, "tech_file_id")

        async def work(m: Mutation) -> pb.CreateTechFileVersionResponse:
            locked = _live(await tech_file_rows.lock_with_slot(m, file_id))
            errors.check_etag(request.etag, locked.version, "tech file", file_id)
            kept, row = await tech_file_rows.renumber(m, locked, request.reason, {})
            return pb.CreateTechFileVersionResponse(
                version=tech_file_rows.version_to_proto(kept),
                tech_file=tech_file_rows.to_proto(row),
            )

        return await self._db.mutate(request, pb.CreateTechFileVersionResponse, work)

    async def ListTechFileVersions(
        self, request: pb.ListTechFileVersionsRequest, context: Context
    ) -> pb.ListTechFileVersionsResponse:
        row = await self._file(parse_id(request.tech_file_id, "tech_file_id"))
        page = paging.page(request)
        statement = _SELECT_VERSIONS_AFTER if page.after else _SELECT_VERSIONS
        rows = await self._db.all(statement, {"slot_id": row.slot_id, **page.parameters})
        versions, token = page.fill(rows, map(tech_file_rows.version_to_proto, rows))
        return pb.ListTechFileVersionsResponse(versions=versions, next_page_token=token)

    async def GetProductStatistics(
        self, request: pb.GetProductStatisticsRequest, context: Context
    ) -> pb.GetProductStatisticsResponse:
        owner = auth.act_for(request.owner or auth.current().owner)
        named = {"owner": owner, "product_id": request.product_id}
        rows = await self._db.all(_SUM_BY_TYPE_AND_STATE, named)
        types: dict[str, int] = {}
        states: dict[str, int] = {}
        for row in rows:
            if not row.archived and not row.deleted:
                types[row.file_type] = types.get(row.file_type, 0) + row.files
                states[row.state] = states.get(row.state, 0) + row.files
        return pb.GetProductStatisticsResponse(
            total_files=sum(types.values()),
            total_credits_used=sum(row.credits for row in rows),
            files_by_type=[
                pb.TypeCount(file_type=number, files=types[word])
                for word, number in TYPES.number.items()
                if word in types
            ],
            files_by_state=[
                pb.StateCount(state=number, files=states[word])
                for word, number in STATES.number.items()
                if word in states
            ],
            archived_files=sum(row.files for row in rows if row.archived and not row.deleted),
            deleted_files=sum(row.files for row in rows if row.deleted),
        )

    def WatchTechFiles(
        self, request: pb.WatchTechFilesRequest, context: Context
    ) -> AsyncIterator[pb.WatchTechFilesResponse]:
        def show(event: Event) -> Fields | None:
            if event.subject == "purged_tech_file":
                purged = pb.PurgedTechFile.FromString(event.payload)
                wanted = request.product_id in ("", purged.product_id)
                return {"purged": purged} if wanted else None
            if event.subject != "tech_file":
                return None
            file = pb.TechFile.FromString(event.payload)
            return {"tech_file": file} if request.product_id in ("", file.product_id) else None

        return self._stream.watch(
            request, pb.WatchTechFilesResponse, self._snapshot(request.product_id), show
        )

    async def _snapshot(self, product_id: str) -> AsyncIterator[tuple[Fields, TechFile]]:
        """Yields the product's files, or the owner's recent ones, oldest first."""
        after: dict[str, Any] = {"after_at": None, "after_id": None}
        while True:
            rows = await self._db.all(
                _SELECT_SNAPSHOT,
                {
                    "owner": auth.current().owner,
                    "product_id": product_id,
                    "age": _SNAPSHOT_AGE,
                    "limit": _SNAPSHOT_PAGE,
                    **after,
                },
            )
            for row in rows:
                yield {"tech_file": tech_file_rows.to_proto(row)}, row
            if len(rows) < _SNAPSHOT_PAGE:
                return
            after = {"after_at": rows[-1].created_at, "after_id": rows[-1].id}

    async def _file(self, file_id: UUID) -> TechFile:
        row = await self._db.first(SELECT_TECH_FILE, {"id": file_id})
        if row is None:
            raise errors.not_found("tech file", file_id)
        return row


async def _set_archived(m: Mutation, file_id: UUID, etag: str, *, archived: bool) -> TechFile:
    """Archives or unarchives a file; its state stays. Does nothing if the file is so already."""
    row = _undeleted(await tech_file_rows.lock_with_slot(m, file_id))
    errors.check_etag(etag, row.version, "tech file", file_id)
    if (row.archived_at is not None) == archived:
        return row
    await m.run(_SET_ARCHIVED, {"archived": archived, "id": file_id})
    return await tech_file_rows.settle_latest(m, row.slot_id, file_id)


def _undeleted(row: F) -> F:
    if row.deleted_at is not None:
        text = "it is deleted; undelete it first (UndeleteTechFile)"
        raise errors.precondition(text, subject=f"tech_files/{row.id}")
    return row


def _live(row: F) -> F:
    if _undeleted(row).archived_at is not None:
        raise errors.precondition(
            "it is archived; unarchive it first", subject=f"tech_files/{row.id}"
        )
    return row


def _check_error_message(message: str, state: str) -> None:
    if message and state != "failed":
        raise errors.invalid("error_message", "is only for a state of FAILED")


def _new_columns(request: pb.CreateTechFileRequest) -> dict[str, Any]:
    """Checks what protovalidate can't, and returns the request as columns."""
    file_type = TYPES.word[request.file_type]
    view = VIEWS.word.get(request.view_type, "")
    problem = rules.file_problem(
        file_type,
        revision_id=request.revision_id,
        view=view,
        shot=request.file_category,
        collection_id=request.collection_id,
    )
    if problem:
        raise errors.invalid(*problem)
    if request.file_category and not rules.slot_name(request.file_category):
        raise errors.invalid("file_category", "is only spaces; name the shot")
    state = STATES.word.get(request.state, "pending")
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


def _analysis(request: pb.CreateTechFileRequest | pb.UpdateTechFileRequest) -> dict[str, Any]:
    return protos.metadata(request.analysis, "analysis", rules.ANALYSIS_BYTES)


def _optional(
    request: pb.CreateTechFileRequest | pb.UpdateTechFileRequest, name: str
) -> float | None:
    return getattr(request, name) if request.HasField(name) else None


def _uuid(text: str) -> UUID | None:
    return UUID(text) if text else None


def _wanted(request: pb.ListTechFilesRequest) -> dict[str, object]:
    """Returns the filters of a list. Raises INVALID_ARGUMENT for filters that exclude each
    other."""
    wanted: dict[str, object] = {
        "file_type": TYPES.word.get(request.file_type),
        "view_type": VIEWS.word.get(request.view_type),
        "state": STATES.word.get(request.state),
        "product_id": request.product_id,
        "revision_id": request.revision_id,
        "batch_id": request.batch_id,
        "hide_deleted": not request.show_deleted,
        **created(request),
    }
    if request.versions == pb.VERSION_FILTER_LATEST_COMPLETED:
        if request.state not in (pb.TECH_FILE_STATE_UNSPECIFIED, pb.TECH_FILE_STATE_COMPLETED):
            raise errors.invalid(
                "state", "must be COMPLETED or unspecified with VERSION_FILTER_LATEST_COMPLETED"
            )
        wanted["latest_completed"] = True
    elif request.versions == pb.VERSION_FILTER_LATEST:
        wanted["latest"] = True
    elif request.archived == pb.ARCHIVED_FILTER_ONLY:
        wanted["archived"] = True
    elif request.archived != pb.ARCHIVED_FILTER_INCLUDED:
        wanted["live"] = True
    return wanted
