"""Exports: the row class, its message, and adding an export. An export is a collection as a PDF or
a ZIP; its row is the job that renders it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from atelier.techfiles.v1 import tech_pack_pb2 as pb
from psycopg.types.json import Jsonb

from services.techfiles import rules
from services.techfiles.collection_rows import NamedCollection
from shared.background import events
from shared.background.job_tables import JobRow
from shared.database.db import Mutation
from shared.database.rows import Statement, Table
from shared.erasing.eraser import Holdings
from shared.formats import names
from shared.rpc.protos import EnumNames, timestamp, wait_of

TASK = "export"
QUEUE = "documents"
FORMATS = EnumNames(pb.ExportFormat, "EXPORT_FORMAT_")
STATES = EnumNames(pb.ExportState, "EXPORT_STATE_")
GONE = EnumNames(pb.ExportGone, "EXPORT_GONE_")
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
    incomplete: bool  # a run fills the collection
    deleted_at: datetime | None
    expires_at: datetime | None
    ended_at: datetime | None  # None: not yet, or when it was created
    bytes_gone_at: datetime | None
    bytes_gone_reason: str
    release_id: UUID | None  # the release whose document it is
    draft: bool  # it is stamped as a draft of that release
    picture_pixels: int  # the most on the longer side of a picture in a ZIP; 0: the originals

    @property
    def has_bytes(self) -> bool:
        return self.state == "completed" and self.bytes_gone_at is None


@dataclass(slots=True)
class StoredExport:
    """The columns that the URL of an export needs."""

    id: UUID
    storage_key: str
    file_name: str
    format: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class NewExport:
    """An export that has no row yet, with the fields that rendering needs."""

    id: UUID
    owner: str
    collection_id: UUID
    format: str
    facts: None
    created_at: datetime
    release_id: None = None
    picture_pixels: int = 0


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document in the store."""

    storage_key: str = ""
    size_bytes: int = 0
    sha256: str = ""
    warnings: list[str] = field(default_factory=list)


EXPORTS = Table("exports", Export)
SELECT_EXPORT = Statement(Export, f"SELECT {EXPORTS.columns} FROM exports WHERE id = %(id)s")
# What an erasure removes from the store. The keys of rows are removed besides, since the prefix of
# an owner with a long name was another one.
HOLDINGS = Holdings(
    prefix=rules.owner_prefix,
    keys=Statement(
        str, "SELECT storage_key FROM exports WHERE owner = %(owner)s AND storage_key <> ''"
    ),
)
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
    "incomplete",
    "release_id",
    "draft",
    "picture_pixels",
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
        incomplete=row.incomplete,
        delete_time=timestamp(row.deleted_at),
        expire_time=timestamp(row.expires_at),
        etag=str(row.version),
        bytes_gone_time=timestamp(row.bytes_gone_at),
        bytes_gone_reason=GONE.number.get(row.bytes_gone_reason),
        release_id=str(row.release_id or ""),
        draft=row.draft,
        picture_pixels=row.picture_pixels,
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
    *,
    incomplete: bool = False,
    release_id: UUID | None = None,
    draft: bool = False,
    picture_pixels: int = 0,
) -> Export:
    """Adds an export and publishes it: PENDING, or COMPLETED if its document is given. `facts`
    replace those of the collection, unless None. `incomplete`: a run fills the collection. With
    `release_id` it is a document of that release, `draft` or not."""
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
        "incomplete": incomplete,
        "release_id": release_id,
        "draft": draft,
        "picture_pixels": picture_pixels,
    }
    row = await m.one(EXPORTS.insert(*_NEW), values)
    await publish(m, row)
    return row
