"""Documents: taking on versions, reading them, taking them out. The job that makes one is in
document_maker.py."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from atelier.assets.v1 import document_pb2 as pb
from atelier.assets.v1 import document_pb2_grpc
from google.protobuf import json_format
from psycopg.types.json import Jsonb

from services.assets.core import asset_rows, holding, rules
from services.assets.core import deletions as doomed
from services.assets.documents import rules as decide
from shared.background import events, waiting
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.rpc import auth, errors, paging
from shared.rpc.protos import Words, timestamp, wait_of
from shared.storage import ObjectNotFound, Storage

TASK = "make_document"
QUEUE = "documents"
_SNAPSHOT_AGE = timedelta(days=1)
_SNAPSHOT_PAGE = 500
KINDS = Words(pb.DocumentKind, "DOCUMENT_KIND_")
STATES = Words(pb.DocumentState, "DOCUMENT_STATE_")
# What a watch tells of each subject: the answer's field, and what the event holds.
_TOLD: dict[str, tuple[str, Any]] = {
    "document": ("document", pb.Document),
    "purged_document": ("purged", pb.PurgedDocument),
}

# The row of the slot is locked by this until the commit: numbers are dense, and in the order of the
# commits.
_NEXT_NUMBER = """
    INSERT INTO document_slots AS slot (owner, session_id, kind, phase, last_number)
    VALUES (%(owner)s, %(session_id)s, %(kind)s, %(phase)s, 1)
    ON CONFLICT (owner, session_id, kind, phase) DO UPDATE SET last_number = slot.last_number + 1
    RETURNING last_number
"""
_INSERT = """
    INSERT INTO documents (id, owner, created_by, session_id, kind, phase, number, title, content,
        regenerated_from,
                           expires_at)
    VALUES (%(id)s, %(owner)s, %(actor)s, %(session_id)s, %(kind)s, %(phase)s, %(number)s,
        %(title)s, %(content)s,
            %(regenerated_from)s, now() + %(keep)s)
    RETURNING *
"""
# What has expired is gone for its owner at once, whenever its bytes are.
_LIVE = "expires_at > now()"
_GET = f"SELECT * FROM documents WHERE id = %(id)s AND {_LIVE}"


def to_proto(
    row: Any, urls: asset_rows.Urls | None = None, *, with_content: bool = False
) -> pb.Document:
    document = pb.Document(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        kind=KINDS.number[row.kind],
        session_id=row.session_id,
        phase=row.phase,
        version_number=row.number,
        state=STATES.number[row.state],
        title=row.title,
        file_name=decide.file_name(row.title, row.number),
        file_path=row.storage_key,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        page_count=row.page_count,
        warnings=row.warnings,
        error_class=row.error_class,
        error_message=row.error_message,
        regenerated_from=str(row.regenerated_from or ""),
        expire_time=timestamp(row.expires_at),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        wait=wait_of(row),
    )
    if with_content:
        json_format.ParseDict(row.content, document.content)
    if urls and row.state == "ready":
        document.file_url = urls.of(row.storage_key, rules.PDF, document.file_name)
    return document


async def publish(m: Mutation, row: Any) -> None:
    await events.publish(m, "document", row.id, row.version, to_proto(row))


class DocumentService(document_pb2_grpc.DocumentServiceServicer):
    def __init__(
        self,
        db: Database,
        stream: events.EventStream,
        storage: Storage,
        queue: JobQueue,
        urls: asset_rows.Urls,
    ) -> None:
        self._db = db
        self._stream = stream
        self._storage = storage
        self._queue = queue
        self._urls = urls

    async def CreateDocument(
        self, request: pb.CreateDocumentRequest, context: Any
    ) -> pb.CreateDocumentResponse:
        kind, content = _checked(request.content)
        slot = {"session_id": request.session_id, "phase": request.phase, "kind": kind}

        async def work(m: Mutation) -> pb.CreateDocumentResponse:
            row = await self._take_on(m, slot, content, request.keep_days)
            return pb.CreateDocumentResponse(document=to_proto(row))

        answer = await self._db.mutate(request, pb.CreateDocumentResponse, work)
        await self._finish(request, answer)
        return answer

    async def RegenerateDocument(
        self, request: pb.RegenerateDocumentRequest, context: Any
    ) -> pb.RegenerateDocumentResponse:
        document_id = parse_id(request.document_id, "document_id")
        given = _checked(request.content) if request.HasField("content") else None

        async def work(m: Mutation) -> pb.RegenerateDocumentResponse:
            earlier = await m.one(_GET, {"id": document_id})
            if earlier is None:
                raise errors.not_found("document", document_id)
            if given and given[0] != earlier.kind:
                raise errors.invalid(
                    "content", f"is a {given[0]}, the document is a {earlier.kind}; create another"
                )
            slot = {"session_id": earlier.session_id, "phase": earlier.phase, "kind": earlier.kind}
            content = given[1] if given else earlier.content
            row = await self._take_on(
                m, slot, content, request.keep_days, regenerated_from=earlier.id
            )
            return pb.RegenerateDocumentResponse(document=to_proto(row))

        answer = await self._db.mutate(request, pb.RegenerateDocumentResponse, work)
        await self._finish(request, answer)
        return answer

    async def GetDocument(
        self, request: pb.GetDocumentRequest, context: Any
    ) -> pb.GetDocumentResponse:
        row = await self._get(request.document_id)
        if request.include_urls and row.state == "ready":
            self._urls.meter.issued(row.owner, row.session_id, row.size_bytes)
        return pb.GetDocumentResponse(
            document=self._shown(row, request.include_urls, with_content=True)
        )

    async def GetLatestDocument(
        self, request: pb.GetLatestDocumentRequest, context: Any
    ) -> pb.GetLatestDocumentResponse:
        kind = KINDS.word[request.kind]
        row = await self._db.row(
            "SELECT * FROM documents WHERE owner = %(owner)s AND session_id = %(session_id)s AND"
            " kind = %(kind)s AND phase = %(phase)s AND (NOT %(ready)s OR state = 'ready') AND"
            f" {_LIVE} ORDER BY number DESC LIMIT 1",
            {
                "owner": auth.current().owner,
                "session_id": request.session_id,
                "kind": kind,
                "phase": request.phase,
                "ready": request.ready_only,
            },
        )
        if row is None:
            raise errors.not_found("document", f"{request.session_id}/{kind}/{request.phase}")
        return pb.GetLatestDocumentResponse(
            document=self._shown(row, request.include_urls, with_content=True)
        )

    async def ListDocuments(
        self, request: pb.ListDocumentsRequest, context: Any
    ) -> pb.ListDocumentsResponse:
        page = paging.page(request)
        wanted = {
            "session_id": request.session_id,
            "phase": request.phase,
            "kind": KINDS.word.get(request.kind),
            "state": STATES.word.get(request.state),
        }
        where = [
            "owner = %(owner)s",
            _LIVE,
            *(f"{name} = %({name})s" for name, value in wanted.items() if value),
        ]
        statement: Any = f"SELECT * FROM documents WHERE {' AND '.join(where)}{page.clause}"
        found = await self._db.rows(
            statement, {"owner": auth.current().owner, **wanted, **page.parameters}
        )
        documents, token = page.fill(
            found, (self._shown(row, request.include_urls) for row in found)
        )
        return pb.ListDocumentsResponse(documents=documents, next_page_token=token)

    async def DownloadDocument(
        self, request: pb.DownloadDocumentRequest, context: Any
    ) -> AsyncIterator[pb.DownloadDocumentResponse]:
        row = await self._get(request.document_id)
        if row.state != "ready":
            raise errors.precondition(
                f"it is {row.state}, and only READY ones have a PDF; wait for it, or regenerate it",
                subject=f"documents/{row.id}",
            )
        name = decide.file_name(row.title, row.number)
        head = pb.DocumentHead(file_name=name, size_bytes=row.size_bytes, sha256=row.sha256)
        yield pb.DownloadDocumentResponse(head=head)
        chunks = self._urls.meter.counted(
            row.owner, row.session_id, self._storage.get(row.storage_key)
        )
        try:
            async for chunk in chunks:
                yield pb.DownloadDocumentResponse(chunk=chunk)
        except ObjectNotFound:
            raise errors.not_found("document", row.id) from None

    def WatchDocuments(
        self, request: pb.WatchDocumentsRequest, context: Any
    ) -> AsyncIterator[pb.WatchDocumentsResponse]:
        show = partial(_change, request.session_id)
        return self._stream.watch(
            request, pb.WatchDocumentsResponse, self._snapshot(request.session_id), show
        )

    async def _snapshot(self, session_id: str) -> AsyncIterator[tuple[events.Fields, Any]]:
        after: Mapping[str, Any] = {"after_at": None, "after_id": None}
        where = "session_id = %(session_id)s" if session_id else "created_at > now() - %(age)s"
        statement: Any = (
            f"SELECT * FROM documents WHERE owner = %(owner)s AND {where} AND {_LIVE}"
            " AND (%(after_id)s::uuid IS NULL OR (created_at, id) > (%(after_at)s, %(after_id)s))"
            " ORDER BY created_at, id LIMIT %(limit)s"
        )
        asked = {
            "owner": auth.current().owner,
            "session_id": session_id,
            "age": _SNAPSHOT_AGE,
            "limit": _SNAPSHOT_PAGE,
        }
        while True:
            rows = await self._db.rows(statement, {**asked, **after})
            for row in rows:
                yield {"document": to_proto(row)}, row
            if len(rows) < _SNAPSHOT_PAGE:
                return
            after = {"after_at": rows[-1].created_at, "after_id": rows[-1].id}

    async def PurgeDocument(
        self, request: pb.PurgeDocumentRequest, context: Any
    ) -> pb.PurgeDocumentResponse:
        document_id = parse_id(request.document_id, "document_id")

        async def work(m: Mutation) -> pb.PurgeDocumentResponse:
            if not await take_out(m, [document_id]):
                raise errors.not_found("document", document_id)
            return pb.PurgeDocumentResponse()

        return await self._db.mutate(request, pb.PurgeDocumentResponse, work)

    async def _take_on(
        self,
        m: Mutation,
        slot: Mapping[str, str],
        content: Mapping[str, Any],
        keep_days: int,
        regenerated_from: UUID | None = None,
    ) -> Any:
        """The next version of the slot, with its job. Its pictures are held while it exists."""
        document_id = new_id()
        await holding.hold(m, decide.holder(document_id), _pictures(content))
        numbered = await m.one(_NEXT_NUMBER, {**slot, "owner": m.owner})
        values = {
            **slot,
            "id": document_id,
            "owner": m.owner,
            "actor": m.actor,
            "number": numbered.last_number,
            "title": content["cover"]["title"],
            "content": Jsonb(content),
            "regenerated_from": regenerated_from,
            "keep": timedelta(days=keep_days or decide.KEEP_DAYS),
        }
        row = await m.one(_INSERT, values)
        await publish(m, row)
        await self._queue.enqueue(m, TASK, QUEUE, document_id)
        return row

    async def _finish(self, request: Any, answer: Any) -> None:
        """Waits if the request says so, and adds what it wants to see."""
        if not request.wait and not request.include_urls:
            return
        document_id = answer.document.id

        async def read() -> Any:
            return await self._get(document_id)

        def ended(row: Any) -> bool:
            return row.state in decide.ENDED

        row = await (
            waiting.until_told(self._stream, request, read, ended) if request.wait else read()
        )
        answer.document.CopyFrom(self._shown(row, request.include_urls))

    async def _get(self, text: str) -> Any:
        row = await self._db.row(_GET, {"id": parse_id(text, "document_id")})
        if row is None:
            raise errors.not_found("document", text)
        return row

    def _shown(self, row: Any, with_urls: bool, *, with_content: bool = False) -> pb.Document:
        return to_proto(row, self._urls if with_urls else None, with_content=with_content)


def _checked(message: pb.DocumentContent) -> tuple[str, dict[str, Any]]:
    """Kind and plain form of the content. INVALID_ARGUMENT with the path of what doesn't hold
    together."""
    content = json_format.MessageToDict(message, preserving_proto_field_name=True)
    kind = str(message.WhichOneof("body"))
    content.setdefault(kind, {})
    if problems := list(decide.content_problems(kind, content[kind])):
        raise errors.invalid_fields([(f"content.{path}", text) for path, text in problems])
    return kind, content


def _pictures(content: Mapping[str, Any]) -> list[tuple[str, UUID]]:
    """(field path, asset id) of every picture, each id once."""
    named: list[tuple[str, str]] = []
    if logo := content["cover"].get("logo_asset_id"):
        named.append(("content.cover.logo_asset_id", logo))
    for index, room in enumerate(content.get("renovation_plan", {}).get("rooms", ())):
        for number, asset_id in enumerate(room.get("picture_asset_ids", ())):
            named.append(
                (f"content.renovation_plan.rooms[{index}].picture_asset_ids[{number}]", asset_id)
            )
    return list({UUID(asset_id): (path, UUID(asset_id)) for path, asset_id in named}.values())


def _change(session_id: str, event: events.Event) -> events.Fields | None:
    if event.subject not in _TOLD:  # another noun's, in the same stream
        return None
    field, kind = _TOLD[event.subject]
    message = kind.FromString(event.payload)
    return {field: message} if session_id in ("", message.session_id) else None


async def take_out(m: Mutation, ids: Sequence[UUID]) -> list[Any]:
    """Removes documents of the transaction's owner with their bytes, and gives their pictures back.
    Returns id and size_bytes of those that were there."""
    gone = await m.all(
        "DELETE FROM documents WHERE id = ANY(%(ids)s) AND owner = %(owner)s"
        " RETURNING id, version, session_id, size_bytes, storage_key, now() AS at",
        {"ids": list(ids), "owner": m.owner},
    )
    changes = [
        (
            row.id,
            row.version + 1,
            pb.PurgedDocument(
                document_id=str(row.id), session_id=row.session_id, purge_time=timestamp(row.at)
            ),
        )
        for row in gone
    ]
    await events.publish_all(m, "purged_document", changes)
    await doomed.doom(m, [row.storage_key for row in gone if row.storage_key])
    await holding.release(m, [decide.holder(row.id) for row in gone])
    return gone
