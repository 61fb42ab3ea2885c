"""DocumentService: creates versions, reads and purges them. `maker` runs the job that makes the
PDF."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from atelier.assets.v1 import document_pb2 as pb
from atelier.assets.v1 import document_pb2_grpc
from google.protobuf import json_format
from psycopg.types.json import Jsonb

from services.assets.core import holding
from services.assets.core.asset_rows import Urls
from services.assets.documents import deleting, document_rows, rules
from services.assets.documents.document_rows import DOCUMENTS, KINDS, STATES, Document
from shared.background import waiting
from shared.background.jobs import JobQueue
from shared.background.watches import Event, EventStream, Fields
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.database.lists import Listing
from shared.database.rows import Statement
from shared.rpc import auth, errors, paging
from shared.rpc.server import Context
from shared.storage import ObjectNotFound, Storage

_SNAPSHOT_AGE = timedelta(days=1)
_SNAPSHOT_PAGE = 500
# By subject: the field of a watch's answer, and the type of the event's message.
_WATCHED: Mapping[str, tuple[str, type[pb.Document] | type[pb.PurgedDocument]]] = {
    "document": ("document", pb.Document),
    "purged_document": ("purged", pb.PurgedDocument),
}

# This locks the slot's row until the commit, so that numbers are dense and in the order of commits.
_TAKE_NEXT_NUMBER = Statement(
    int,
    """
    INSERT INTO document_slots AS slot (owner, session_id, kind, phase, last_number)
    VALUES (%(owner)s, %(session_id)s, %(kind)s, %(phase)s, 1)
    ON CONFLICT (owner, session_id, kind, phase) DO UPDATE SET last_number = slot.last_number + 1
    RETURNING last_number
    """,
)
_INSERT_DOCUMENT = Statement(
    Document,
    f"""
    INSERT INTO documents (id, owner, created_by, session_id, kind, phase, number, title, content,
        regenerated_from, expires_at)
    VALUES (%(id)s, %(owner)s, %(actor)s, %(session_id)s, %(kind)s, %(phase)s, %(number)s,
        %(title)s, %(content)s, %(regenerated_from)s, now() + %(keep)s::interval)
    RETURNING {DOCUMENTS.columns}
    """,
)
# An expired document is hidden from its owner at once; a cleanup deletes it later.
_LIVE = "expires_at > now()"
_SELECT_DOCUMENT = Statement(
    Document, f"SELECT {DOCUMENTS.columns} FROM documents WHERE id = %(id)s AND {_LIVE}"
)
_SELECT_LATEST = Statement(
    Document,
    f"""
    SELECT {DOCUMENTS.columns} FROM documents
    WHERE owner = %(owner)s AND session_id = %(session_id)s AND kind = %(kind)s
        AND phase = %(phase)s AND (NOT %(ready)s OR state = 'ready') AND {_LIVE}
    ORDER BY number DESC LIMIT 1
    """,
)
_LIST = Listing(DOCUMENTS, Document, live=lambda row, _: row.expires_at > sa.func.now())


def _snapshot_of(which: str) -> Statement[Document]:
    return Statement(
        Document,
        f"""
        SELECT {DOCUMENTS.columns} FROM documents WHERE owner = %(owner)s AND {which} AND {_LIVE}
            AND (%(after_id)s::uuid IS NULL OR (created_at, id) > (%(after_at)s, %(after_id)s))
        ORDER BY created_at, id LIMIT %(limit)s
        """,
    )


_SELECT_OF_SESSION = _snapshot_of("session_id = %(session_id)s")
_SELECT_RECENT = _snapshot_of("created_at > now() - %(age)s::interval")


@dataclass(frozen=True)
class _NewVersion:
    """The slot and the content of a new version."""

    session_id: str
    kind: str
    phase: str
    content: Mapping[str, Any]
    keep_days: int
    regenerated_from: UUID | None = None


class DocumentService(document_pb2_grpc.DocumentServiceServicer):
    def __init__(
        self,
        db: Database,
        stream: EventStream,
        storage: Storage,
        queue: JobQueue,
        urls: Urls,
    ) -> None:
        self._db = db
        self._stream = stream
        self._storage = storage
        self._queue = queue
        self._urls = urls

    async def CreateDocument(
        self, request: pb.CreateDocumentRequest, context: Context
    ) -> pb.CreateDocumentResponse:
        kind, content = _checked(request.content)
        new = _NewVersion(request.session_id, kind, request.phase, content, request.keep_days)

        async def work(m: Mutation) -> pb.CreateDocumentResponse:
            row = await self._create(m, new)
            return pb.CreateDocumentResponse(document=document_rows.to_proto(row))

        answer = await self._db.mutate(request, pb.CreateDocumentResponse, work)
        await self._finish(request, answer.document)
        return answer

    async def RegenerateDocument(
        self, request: pb.RegenerateDocumentRequest, context: Context
    ) -> pb.RegenerateDocumentResponse:
        document_id = parse_id(request.document_id, "document_id")
        given = _checked(request.content) if request.HasField("content") else None

        async def work(m: Mutation) -> pb.RegenerateDocumentResponse:
            earlier = await m.first(_SELECT_DOCUMENT, {"id": document_id})
            if earlier is None:
                raise errors.not_found("document", document_id)
            kind, content = given or (earlier.kind, earlier.content)
            if kind != earlier.kind:
                raise errors.invalid(
                    "content", f"is a {kind}, the document is a {earlier.kind}; create another"
                )
            new = _NewVersion(
                earlier.session_id, kind, earlier.phase, content, request.keep_days, earlier.id
            )
            row = await self._create(m, new)
            return pb.RegenerateDocumentResponse(document=document_rows.to_proto(row))

        answer = await self._db.mutate(request, pb.RegenerateDocumentResponse, work)
        await self._finish(request, answer.document)
        return answer

    async def GetDocument(
        self, request: pb.GetDocumentRequest, context: Context
    ) -> pb.GetDocumentResponse:
        row = await self._read(request.document_id)
        if request.include_urls and row.state == "ready":
            self._urls.meter.issued(row.owner, row.session_id, row.size_bytes)
        return pb.GetDocumentResponse(
            document=self._shown(row, request.include_urls, with_content=True)
        )

    async def GetLatestDocument(
        self, request: pb.GetLatestDocumentRequest, context: Context
    ) -> pb.GetLatestDocumentResponse:
        kind = KINDS.word[request.kind]
        slot = {"session_id": request.session_id, "kind": kind, "phase": request.phase}
        row = await self._db.first(
            _SELECT_LATEST, {**slot, "owner": auth.current().owner, "ready": request.ready_only}
        )
        if row is None:
            raise errors.not_found("document", f"{request.session_id}/{kind}/{request.phase}")
        return pb.GetLatestDocumentResponse(
            document=self._shown(row, request.include_urls, with_content=True)
        )

    async def ListDocuments(
        self, request: pb.ListDocumentsRequest, context: Context
    ) -> pb.ListDocumentsResponse:
        page = paging.page(request)
        wanted = {
            "live": True,
            "session_id": request.session_id,
            "phase": request.phase,
            "kind": KINDS.word.get(request.kind),
            "state": STATES.word.get(request.state),
        }
        rows = await self._db.all(*_LIST.query(page, wanted))
        documents, token = page.fill(rows, (self._shown(row, request.include_urls) for row in rows))
        return pb.ListDocumentsResponse(documents=documents, next_page_token=token)

    async def DownloadDocument(
        self, request: pb.DownloadDocumentRequest, context: Context
    ) -> AsyncIterator[pb.DownloadDocumentResponse]:
        row = await self._read(request.document_id)
        if row.state != "ready":
            raise errors.precondition(
                f"it is {row.state}, and only READY ones have a PDF; wait for it, or regenerate it",
                subject=f"documents/{row.id}",
            )
        head = pb.DocumentHead(
            file_name=document_rows.file_name(row), size_bytes=row.size_bytes, sha256=row.sha256
        )
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
        self, request: pb.WatchDocumentsRequest, context: Context
    ) -> AsyncIterator[pb.WatchDocumentsResponse]:
        show = partial(_change, request.session_id)
        return self._stream.watch(
            request, pb.WatchDocumentsResponse, self._snapshot(request.session_id), show
        )

    async def _snapshot(self, session_id: str) -> AsyncIterator[tuple[Fields, Document]]:
        """Yields the documents of the session, or the owner's documents of the last day."""
        statement = _SELECT_OF_SESSION if session_id else _SELECT_RECENT
        asked = {
            "owner": auth.current().owner,
            "session_id": session_id,
            "age": _SNAPSHOT_AGE,
            "limit": _SNAPSHOT_PAGE,
        }
        after_at: datetime | None = None
        after_id: UUID | None = None
        while True:
            after = {"after_at": after_at, "after_id": after_id}
            rows = await self._db.all(statement, {**asked, **after})
            for row in rows:
                yield {"document": document_rows.to_proto(row)}, row
            if len(rows) < _SNAPSHOT_PAGE:
                return
            after_at, after_id = rows[-1].created_at, rows[-1].id

    async def PurgeDocument(
        self, request: pb.PurgeDocumentRequest, context: Context
    ) -> pb.PurgeDocumentResponse:
        document_id = parse_id(request.document_id, "document_id")

        async def work(m: Mutation) -> pb.PurgeDocumentResponse:
            if not await deleting.delete(m, [document_id]):
                raise errors.not_found("document", document_id)
            return pb.PurgeDocumentResponse()

        return await self._db.mutate(request, pb.PurgeDocumentResponse, work)

    async def _create(self, m: Mutation, new: _NewVersion) -> Document:
        """Adds the next version of the slot, with its job, and with references to its pictures for
        as long as it exists."""
        document_id = new_id()
        await holding.hold(m, rules.holder(document_id), _pictures(new.content))
        slot = {"session_id": new.session_id, "kind": new.kind, "phase": new.phase}
        number = await m.one(_TAKE_NEXT_NUMBER, {**slot, "owner": m.owner})
        values = {
            **slot,
            "id": document_id,
            "owner": m.owner,
            "actor": m.actor,
            "number": number,
            "title": new.content["cover"]["title"],
            "content": Jsonb(new.content),
            "regenerated_from": new.regenerated_from,
            "keep": timedelta(days=new.keep_days or rules.KEEP_DAYS),
        }
        row = await m.one(_INSERT_DOCUMENT, values)
        await document_rows.publish(m, row)
        await self._queue.enqueue(m, document_rows.TASK, document_rows.QUEUE, document_id)
        return row

    async def _finish(
        self,
        request: pb.CreateDocumentRequest | pb.RegenerateDocumentRequest,
        document: pb.Document,
    ) -> None:
        """Waits for the job's end if the request says so, and shows the document as it is then."""
        if not request.wait and not request.include_urls:
            return
        read = partial(self._read, document.id)
        row: Document = await (
            waiting.until_told(self._stream, request, read, _ended) if request.wait else read()
        )
        document.CopyFrom(self._shown(row, request.include_urls))

    async def _read(self, text: str) -> Document:
        row = await self._db.first(_SELECT_DOCUMENT, {"id": parse_id(text, "document_id")})
        if row is None:
            raise errors.not_found("document", text)
        return row

    def _shown(self, row: Document, with_urls: bool, *, with_content: bool = False) -> pb.Document:
        urls = self._urls if with_urls else None
        return document_rows.to_proto(row, urls, with_content=with_content)


def _ended(row: Document) -> bool:
    return row.state in rules.ENDED


def _checked(message: pb.DocumentContent) -> tuple[str, dict[str, Any]]:
    """Returns the kind, and the content as JSON. Raises INVALID_ARGUMENT with the path of each part
    that breaks a rule."""
    content = json_format.MessageToDict(message, preserving_proto_field_name=True)
    kind = str(message.WhichOneof("body"))
    content.setdefault(kind, {})
    if problems := list(rules.content_problems(kind, content[kind])):
        raise errors.invalid_fields([(f"content.{path}", text) for path, text in problems])
    return kind, content


def _pictures(content: Mapping[str, Any]) -> list[tuple[str, UUID]]:
    """Returns (field path, asset id) of every picture, each id once."""
    named = rules.named_pictures(content)
    return list({UUID(text): (f"content.{path}", UUID(text)) for path, text in named}.values())


def _change(session_id: str, event: Event) -> Fields | None:
    if event.subject not in _WATCHED:  # the stream also carries events of other nouns
        return None
    field, kind = _WATCHED[event.subject]
    message = kind.FromString(event.payload)
    return {field: message} if session_id in ("", message.session_id) else None
