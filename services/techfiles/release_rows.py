"""Releases: the row classes of a release and of what it froze, and its messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from atelier.techfiles.v1 import release_pb2 as pb
from atelier.techfiles.v1.history_pb2 import SlotChange

from services.techfiles import slot_changes, tech_file_rows
from services.techfiles.collection_rows import COLLECTIONS, CollectedFile, Collection
from services.techfiles.export_rows import EXPORTS, Export
from services.techfiles.slot_changes import Placed
from services.techfiles.tech_file_rows import TECH_FILES, TechFile
from shared.background import events
from shared.database.db import Database, Mutation
from shared.database.rows import Statement, Table
from shared.rpc import errors
from shared.rpc.errors import Reason
from shared.rpc.protos import EnumNames, timestamp

STATES = EnumNames(pb.ReleaseState, "RELEASE_STATE_")


@dataclass(slots=True)
class Release:
    id: UUID
    owner: str
    created_by: str
    version: int
    product_id: str
    collection_id: UUID
    name: str
    note: str
    state: str
    number: int | None  # among the approved releases of the product
    previous_id: UUID | None  # the approved release that it is compared with
    previous_number: int | None
    facts_number: int
    file_count: int
    source_product_id: UUID | None
    nothing_merely_found: bool
    merely_found: list[dict[str, str]]  # the first of merely_found_count
    merely_found_count: int
    decided_by: str
    decision_note: str
    decided_at: datetime | None
    withdrawn_by: str
    withdraw_reason: str
    withdrawn_at: datetime | None
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None
    expires_at: datetime | None

    @property
    def title(self) -> str:
        """The release in print: with its number, or as a draft."""
        return f"Release {self.number}" if self.number else "Draft"


@dataclass(slots=True)
class FrozenFile:
    """A file as a release froze it."""

    position: int
    section: str
    asset_sha256: str
    generation_id: str
    analysis_id: str
    snapshot: dict[str, Any]  # the row of tech_files


RELEASES = Table("releases", Release)
SELECT_RELEASE = Statement(Release, f"SELECT {RELEASES.columns} FROM releases WHERE id = %(id)s")
_LOCK_RELEASE = Statement(Release, f"{SELECT_RELEASE.text} FOR UPDATE")
# The release that the next one of the product is compared with.
SELECT_LATEST = Statement(
    Release,
    f"""
    SELECT {RELEASES.columns} FROM releases
    WHERE owner = %(owner)s AND product_id = %(product_id)s AND state = 'approved'
    ORDER BY number DESC LIMIT 1
    """,
)
SELECT_DOCUMENTS = Statement(
    Export,
    f"""
    SELECT {EXPORTS.columns} FROM exports WHERE release_id = %(id)s
    ORDER BY created_at DESC, id DESC
    """,
)
SELECT_COLLECTION = Statement(
    dict, "SELECT collection FROM release_contents WHERE release_id = %(id)s"
)
SELECT_FILES = Statement(
    FrozenFile,
    """
    SELECT position, section, asset_sha256, generation_id, analysis_id, snapshot
    FROM release_files WHERE release_id = %(id)s AND position > %(after)s
    ORDER BY position LIMIT %(limit)s
    """,
)
_SELECT_PLACED = Statement(
    Placed,
    """
    SELECT tech_file_id AS id, file_type, view_type, file_category, number FROM release_files
    WHERE release_id = %(id)s
    """,
)
_SELECT_SOME = Statement(
    dict,
    """
    SELECT snapshot FROM release_files
    WHERE release_id = %(id)s AND tech_file_id = ANY(%(file_ids)s)
    """,
)
_SELECT_RELEASE_OF_COLLECTION = Statement(
    UUID, "SELECT id FROM releases WHERE collection_id = %(id)s ORDER BY created_at LIMIT 1"
)
_SELECT_COMPARED = Statement(
    UUID, "SELECT id FROM releases WHERE previous_id = %(id)s ORDER BY created_at LIMIT 1"
)


def to_proto(row: Release) -> pb.Release:
    return pb.Release(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        product_id=row.product_id,
        collection_id=str(row.collection_id),
        name=row.name,
        note=row.note,
        state=STATES.number[row.state],
        number=row.number or 0,
        previous_release_id=str(row.previous_id or ""),
        previous_number=row.previous_number or 0,
        facts_number=row.facts_number,
        file_count=row.file_count,
        nothing_merely_found=row.nothing_merely_found,
        merely_found_count=row.merely_found_count,
        decided_by=row.decided_by,
        decision_note=row.decision_note,
        decide_time=timestamp(row.decided_at),
        withdrawn_by=row.withdrawn_by,
        withdraw_reason=row.withdraw_reason,
        withdraw_time=timestamp(row.withdrawn_at),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        delete_time=timestamp(row.deleted_at),
        expire_time=timestamp(row.expires_at),
        etag=str(row.version),
    )


def file_to_proto(row: FrozenFile) -> pb.ReleasedFile:
    file = tech_file_rows.row_of(row.snapshot)
    return pb.ReleasedFile(
        tech_file_id=str(file.id),
        version_number=file.number,
        file_type=tech_file_rows.TYPES.number[file.file_type],
        view_type=tech_file_rows.VIEWS.number.get(file.view_type),
        file_category=file.file_category,
        section=row.section,
        asset_id=str(file.file_asset_id or ""),
        asset_sha256=row.asset_sha256,
        model=file.model,
        prompt=file.prompt,
        generation_id=row.generation_id,
        analysis_id=row.analysis_id,
        confidence=file.confidence,
    )


def collected(row: FrozenFile) -> CollectedFile:
    """Returns a frozen file as one of a collection."""
    file = tech_file_rows.row_of(row.snapshot)
    columns = {name: getattr(file, name) for name in TECH_FILES.names}
    return CollectedFile(**columns, section=row.section, display_order=row.position)


def collection_of(frozen: Mapping[str, Any]) -> Collection:
    """Returns the row of a collection that was kept as JSON. A column that was added since is
    None."""
    values: dict[str, Any] = {name: frozen.get(name) for name in COLLECTIONS.names}
    values["id"] = UUID(values["id"])
    for name in ("created_at", "updated_at", "archived_at", "facts_at"):
        values[name] = values[name] and datetime.fromisoformat(values[name])
    return Collection(**values)


async def slots_between(db: Database, before: UUID, after: UUID) -> list[SlotChange]:
    """Returns the slots that differ between two releases."""

    def reader(release_id: UUID) -> slot_changes.Read:
        async def read(ids: Sequence[UUID]) -> dict[UUID, TechFile]:
            named = {"id": release_id, "file_ids": list(ids)}
            files = map(tech_file_rows.row_of, await db.all(_SELECT_SOME, named))
            return {file.id: file for file in files}

        return read

    return await slot_changes.of_sets(
        await db.all(_SELECT_PLACED, {"id": before}),
        await db.all(_SELECT_PLACED, {"id": after}),
        reader(before),
        reader(after),
    )


async def publish(m: Mutation, row: Release) -> pb.Release:
    """Publishes the release and returns its message."""
    message = to_proto(row)
    await events.publish(m, "release", row.id, row.version, message)
    return message


async def lock(m: Mutation, release_id: UUID, etag: str = "") -> Release:
    """Locks the owner's release until the commit and returns it. Raises NOT_FOUND if it isn't
    theirs, and ETAG_MISMATCH."""
    row = await m.first(_LOCK_RELEASE, {"id": release_id})
    if row is None:
        raise errors.not_found("release", release_id)
    errors.check_etag(etag, row.version, "release", release_id)
    return row


async def refuse_released(m: Mutation, collection: Collection) -> None:
    """Raises FAILED_PRECONDITION (IN_USE) while a release of the collection exists."""
    release_id = await m.first(_SELECT_RELEASE_OF_COLLECTION, {"id": collection.id})
    if release_id is not None:
        raise errors.precondition(
            f"the release {release_id} was made of the collection; purge the release first"
            " (PurgeRelease), or archive the collection (ArchiveCollection)",
            subject=f"collections/{collection.id}",
            reason=Reason.ERROR_REASON_IN_USE,
        )


def refuse_document(row: Export) -> None:
    """Raises FAILED_PRECONDITION (IN_USE) for a document of a release."""
    if row.release_id is not None:
        raise errors.precondition(
            f"it is a document of the release {row.release_id}, and goes with it (DeleteRelease,"
            " PurgeRelease)",
            subject=f"exports/{row.id}",
            reason=Reason.ERROR_REASON_IN_USE,
        )


async def refuse_kept(m: Mutation, row: Release) -> None:
    """Raises FAILED_PRECONDITION for an approved release (WRONG_STATE), and for one that another is
    compared with (IN_USE)."""
    if row.state == "approved":
        raise errors.precondition(
            f"release {row.number} is approved, and stays; withdraw it first (WithdrawRelease)",
            subject=f"releases/{row.id}",
            metadata={"state": "APPROVED"},
        )
    compared = await m.first(_SELECT_COMPARED, {"id": row.id})
    if compared is not None:
        raise errors.precondition(
            f"the release {compared} is compared with it; purge that one first (PurgeRelease)",
            subject=f"releases/{row.id}",
            reason=Reason.ERROR_REASON_IN_USE,
        )
