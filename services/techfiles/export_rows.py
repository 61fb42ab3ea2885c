"""Exports: the row class, its message, and adding an export. An export is a collection as a PDF or
a ZIP; its row is the job that renders it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from atelier.techfiles.v1 import tech_pack_pb2 as pb
from psycopg.types.json import Jsonb

from services.techfiles.collection_rows import NamedCollection
from shared.background import events
from shared.background.job_tables import JobRow
from shared.database.db import Mutation
from shared.database.rows import Statement, Table
from shared.formats import names
from shared.rpc.protos import EnumNames, timestamp, wait_of

TASK = "export"
QUEUE = "documents"
FORMATS = EnumNames(pb.ExportFormat, "EXPORT_FORMAT_")
STATES = EnumNames(pb.ExportState, "EXPORT_STATE_")
CONTENT_TYPES = {"pdf": "application/pdf", "zip": "application/zip"}


@dataclass(slots=True)
class Export(JobRow):
    created_by: str
    collection_id: UUID
    format: str
    facts: dict[str, Any] | None  # None: those of the collection
    file_name: str
    storage_key: str
    size_bytes: int
    sha256: str
    warnings: list[str]
    created_at: datetime


@dataclass(slots=True)
class StoredExport:
    """The columns that the URL of an export needs."""

    id: UUID
    storage_key: str
    file_name: str
    format: str


@dataclass(frozen=True, slots=True)
class NewExport:
    """An export that has no row yet, with the fields that rendering needs."""

    id: UUID
    owner: str
    collection_id: UUID
    format: str
    facts: None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document in the store."""

    storage_key: str = ""
    size_bytes: int = 0
    sha256: str = ""
    warnings: list[str] = field(default_factory=list)


EXPORTS = Table("exports", Export)
SELECT_EXPORT = Statement(Export, f"SELECT {EXPORTS.columns} FROM exports WHERE id = %(id)s")
_NEW = (
    "id",
    "owner",
    "created_by",
    "collection_id",
    "format",
    "facts",
    "file_name",
    "state",
    "storage_key",
    "size_bytes",
    "sha256",
    "warnings",
)


def to_proto(row: Export, url: str = "") -> pb.Export:
    return pb.Export(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        collection_id=str(row.collection_id),
        format=FORMATS.number[row.format],
        state=STATES.number[row.state],
        error_class=row.error_class,
        error_message=row.error_message,
        file_name=names.of_file(row.file_name),
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        warnings=row.warnings,
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        file_url=url,
        wait=wait_of(row),
    )


async def publish(m: Mutation, row: Export) -> None:
    await events.publish(m, "export", row.id, row.version, to_proto(row))


async def create(
    m: Mutation,
    export_id: UUID,
    collection: NamedCollection,
    format: str,
    facts: Mapping[str, Any] | None,
    document: StoredDocument | None = None,
) -> Export:
    """Adds an export and publishes it: PENDING, or COMPLETED if its document is given. `facts`
    replace those of the collection, unless None."""
    values = {
        **asdict(document or StoredDocument()),
        "id": export_id,
        "owner": m.owner,
        "created_by": m.actor,
        "format": format,
        "collection_id": collection.id,
        "facts": None if facts is None else Jsonb(facts),
        "file_name": names.of_file(collection.name, f".{format}"),
        "state": "completed" if document else "pending",
    }
    row = await m.one(EXPORTS.insert(*_NEW), values)
    await publish(m, row)
    return row
