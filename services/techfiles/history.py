"""HistoryService: one method per call, but for ExplainTechFile."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from atelier.techfiles.v1 import history_pb2 as pb

from services.techfiles import (
    collection_rows,
    diffing,
    history_rows,
    releasing_pictures,
    slot_changes,
    tech_file_rows,
)
from services.techfiles.assets import Assets
from services.techfiles.collection_rows import SELECT_COLLECTION, Collection
from services.techfiles.explaining_files import ExplainCalls
from services.techfiles.history_rows import SELECT_VERSION, content_of
from services.techfiles.slot_changes import Placed, picture_of
from services.techfiles.tech_file_rows import TECH_FILES, TechFile, row_of
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.rows import Statement
from shared.rpc import errors
from shared.rpc.server import Context

# Together below the 4 MiB that clients take.
_CHANGES_BYTES = 3_500_000
_FACTS_BYTES = 2_000_000
_SLOTS_BYTES = 1_500_000


_SELECT_PLACED = Statement(
    Placed,
    """
    SELECT f.id, f.file_type, f.view_type, f.file_category, f.number
    FROM collection_items i JOIN tech_files f ON f.id = i.tech_file_id
    WHERE i.collection_id = %(id)s AND f.archived_at IS NULL AND f.deleted_at IS NULL
    """,
)
_SELECT_FILES = Statement(
    TechFile, f"SELECT {TECH_FILES.columns} FROM tech_files WHERE id = ANY(%(ids)s)"
)
_SELECT_LATEST_VERSION = Statement(
    int, "SELECT version FROM tech_files WHERE slot_id = %(slot_id)s AND is_latest"
)
_SELECT_EXPORT = Statement(UUID, "SELECT id FROM exports WHERE id = %(id)s AND state = 'completed'")


@dataclass(frozen=True, slots=True)
class _Version:
    file_id: UUID  # the file that has or had the number
    number: int
    content: TechFile
    intact: bool


class HistoryService(ExplainCalls):
    def __init__(self, db: Database, assets: Assets) -> None:
        super().__init__(db)
        self._assets = assets

    async def RestoreTechFileVersion(
        self, request: pb.RestoreTechFileVersionRequest, context: Context
    ) -> pb.RestoreTechFileVersionResponse:
        answer = pb.RestoreTechFileVersionResponse
        if stored := await self._db.stored_answer(request, answer):
            return stored
        columns = await self._restored_columns(request)

        async def work(m: Mutation) -> pb.RestoreTechFileVersionResponse:
            file_id = parse_id(request.tech_file_id, "tech_file_id")
            if columns["collection_id"]:
                await collection_rows.share(m, columns["collection_id"])
            locked = await tech_file_rows.lock_with_slot(m, file_id)
            latest = await m.first(_SELECT_LATEST_VERSION, {"slot_id": locked.slot_id})
            errors.check_etag(request.etag, latest or 0, "latest file of the slot of", file_id)
            row = await tech_file_rows.create(m, columns, locked)
            return answer(tech_file=tech_file_rows.to_proto(row))

        product_id, picture = columns["product_id"], columns["file_asset_id"]
        async with releasing_pictures.unless_kept(self._db, product_id, picture):
            if picture:
                pictures = columns["file_type"] != "complete_pack"
                await self._assets.acquire(
                    product_id, [str(picture)], "version_number", pictures=pictures
                )
            return await self._db.mutate(request, answer, work)

    async def CompareTechFiles(
        self, request: pb.CompareTechFilesRequest, context: Context
    ) -> pb.CompareTechFilesResponse:
        before, after = await self._pair(request)
        one, other = before.content, after.content
        changes = await asyncio.to_thread(
            _compared,
            content_of(one),
            content_of(other),
            (picture_of(one), picture_of(other)),
            _CHANGES_BYTES,
        )
        return pb.CompareTechFilesResponse(
            before_tech_file_id=str(before.file_id),
            before_version_number=before.number,
            after_tech_file_id=str(after.file_id),
            after_version_number=after.number,
            changes=changes,
        )

    async def ComparePictures(
        self, request: pb.ComparePicturesRequest, context: Context
    ) -> pb.ComparePicturesResponse:
        pair = await self._pair(request)
        pictures = [picture_of(version.content) for version in pair]
        for version, picture in zip(pair, pictures, strict=True):
            if not picture:
                raise errors.precondition(
                    f"version {version.number} has no picture; compare versions that have one",
                    subject=f"tech_files/{version.file_id}",
                )
        if pictures[0] == pictures[1]:
            raise errors.precondition(
                f"both versions have the picture {pictures[0]}; there is nothing to compare",
                subject=f"tech_files/{pair[1].file_id}",
            )
        return await self._assets.side_by_side(pictures[0], pictures[1], request.request_id)

    async def CompareCollections(
        self, request: pb.CompareCollectionsRequest, context: Context
    ) -> pb.CompareCollectionsResponse:
        before = await self._collection(request.before_collection_id, "before_collection_id")
        after = await self._collection(request.after_collection_id, "after_collection_id")
        if before.product_id != after.product_id:
            text = (
                f"is of the product {after.product_id}, and the earlier one of {before.product_id};"
                " compare collections of one product"
            )
            raise errors.invalid("after_collection_id", text)
        facts = await asyncio.to_thread(
            _compared, {"facts": before.facts}, {"facts": after.facts}, ("", ""), _FACTS_BYTES
        )
        answer = pb.CompareCollectionsResponse(facts=facts)
        size = 0
        slots = await slot_changes.of_sets(
            await self._db.all(_SELECT_PLACED, {"id": before.id}),
            await self._db.all(_SELECT_PLACED, {"id": after.id}),
            self._files,
            self._files,
        )
        for slot in slots:
            size += slot.ByteSize() + 10
            if size > _SLOTS_BYTES:
                answer.slots_left_out += 1
            else:
                answer.slots.append(slot)
        answer.identical = facts.identical and not answer.slots
        return answer

    async def _files(self, ids: Sequence[UUID]) -> dict[UUID, TechFile]:
        return {row.id: row for row in await self._db.all(_SELECT_FILES, {"ids": list(ids)})}

    async def _collection(self, text: str, field: str) -> Collection:
        row = await self._db.first(SELECT_COLLECTION, {"id": parse_id(text, field)})
        if row is None:
            raise errors.not_found("collection", text)
        return row

    async def _pair(
        self, request: pb.CompareTechFilesRequest | pb.ComparePicturesRequest
    ) -> tuple[_Version, _Version]:
        """Returns the two versions. Raises INVALID_ARGUMENT if they can't be compared."""
        before = await self._version(
            request.before.tech_file_id, request.before.version_number, "before.tech_file_id"
        )
        after = await self._version(
            request.after.tech_file_id, request.after.version_number, "after.tech_file_id"
        )
        one, other = before.content, after.content
        for what, first, second in (
            ("product", one.product_id, other.product_id),
            ("type", one.file_type, other.file_type),
        ):
            if first != second:
                text = (
                    f"is of the {what} {second}, and the earlier one of {first}; compare files of"
                    f" one {what}"
                )
                raise errors.invalid("after.tech_file_id", text)
        return before, after

    async def _version(self, file_id: str, number: int, field: str) -> _Version:
        values = {"file_id": parse_id(file_id, field), "number": number}
        row = await self._db.first(SELECT_VERSION, values)
        if row is not None:
            return _Version(row.tech_file_id, row.number, row_of(row.snapshot), row.intact)
        there = await self._db.first(SELECT_VERSION, {**values, "number": 0})
        if there is not None:
            raise errors.not_found("version", f"{number} of the slot of tech file {file_id}")
        raise errors.not_found("tech file", file_id)

    async def _restored_columns(self, request: pb.RestoreTechFileVersionRequest) -> dict[str, Any]:
        """Returns the columns of the file that a restoring adds. Raises NOT_FOUND and
        FAILED_PRECONDITION as the contract says.

        What is checked here can't change any more: a completed version is final.
        """
        version = await self._version(request.tech_file_id, request.version_number, "tech_file_id")
        was = version.content
        if was.state != "completed":
            raise errors.precondition(
                f"version {version.number} was {was.state}; restore one that was completed",
                subject=f"tech_files/{version.file_id}",
            )
        if not version.intact:
            raise errors.precondition(
                f"the snapshot of version {version.number} is no longer what was stored; restore"
                " another version, and tell the operator",
                subject=f"tech_files/{version.file_id}",
            )
        if was.export_id and not await self._db.first(_SELECT_EXPORT, {"id": was.export_id}):
            raise errors.precondition(
                f"the export {was.export_id} of version {version.number} is gone; export the"
                " collection again",
                subject=f"exports/{was.export_id}",
            )
        return {
            **{name: getattr(was, name) for name in _RESTORED},
            "file_asset_id": await self._picture_to_restore(request, was),
            "restored_from": version.number,
            "restore_reason": request.reason,
        }

    async def _picture_to_restore(
        self, request: pb.RestoreTechFileVersionRequest, was: TechFile
    ) -> UUID | None:
        if was.file_asset_id is None:
            return None
        asset_id = str(was.file_asset_id)
        found = await self._assets.describe([asset_id])
        if asset_id not in found or found[asset_id].HasField("bytes_gone_time"):
            if request.without_missing_picture:
                return None
            raise errors.precondition(
                f"the picture {asset_id} of version {request.version_number} was purged; set"
                " without_missing_picture to restore the rest, or upload the picture again and set"
                " it with UpdateTechFile",
                subject=f"assets/{asset_id}",
            )
        return was.file_asset_id


_RESTORED = (
    "product_id",
    "revision_id",
    "file_type",
    "view_type",
    "file_category",
    "analysis",
    "state",
    "model",
    "prompt",
    "batch_id",
    "confidence",
    "quality_score",
    "collection_id",
    "export_id",
)


def _compared(
    before: Mapping[str, Any], after: Mapping[str, Any], pictures: tuple[str, str], most_bytes: int
) -> pb.ContentChanges:
    """Compares two contents. It runs in a thread, since large ones take a second."""
    return history_rows.changes_to_proto(diffing.compare(before, after), *pictures, most_bytes)
