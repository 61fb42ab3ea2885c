"""Documents, for all modules: the row, its message, its event, its file name for a download."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from atelier.assets.v1 import document_pb2 as pb
from google.protobuf import json_format

from services.assets.core import rules as asset_rules
from services.assets.core.asset_rows import Urls
from shared.background import events
from shared.background.job_tables import JobRow
from shared.database.db import Mutation
from shared.database.rows import Table
from shared.formats import names
from shared.rpc.protos import EnumNames, timestamp, wait_of

TASK = "make_document"
QUEUE = "documents"
KINDS = EnumNames(pb.DocumentKind, "DOCUMENT_KIND_")
STATES = EnumNames(pb.DocumentState, "DOCUMENT_STATE_")


@dataclass(slots=True)
class Document(JobRow):
    """A version of a document, and the job that makes it."""

    created_by: str
    session_id: str
    kind: str
    phase: str
    number: int
    title: str
    content: dict[str, Any]  # a DocumentContent as JSON
    regenerated_from: UUID | None
    storage_key: str
    size_bytes: int
    sha256: str
    page_count: int
    warnings: list[str]
    expires_at: datetime
    created_at: datetime


DOCUMENTS = Table("documents", Document)


def to_proto(row: Document, urls: Urls | None = None, *, with_content: bool = False) -> pb.Document:
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
        file_name=file_name(row),
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
        document.file_url = urls.of(row.storage_key, asset_rules.PDF, document.file_name)
    return document


def file_name(row: Document) -> str:
    """Returns the name of the PDF for a download."""
    return names.of_file(row.title, f"-v{row.number}.pdf")


async def publish(m: Mutation, row: Document) -> None:
    await events.publish(m, "document", row.id, row.version, to_proto(row))
