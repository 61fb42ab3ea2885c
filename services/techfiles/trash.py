"""The calls about archive and trash: of tech files, collections, runs, exports and releases.

Each class has those of one service, which derives from it.
"""

from datetime import timedelta
from typing import TypeVar
from uuid import UUID

from atelier.techfiles.v1 import (
    collection_pb2,
    collection_pb2_grpc,
    export_pb2,
    export_pb2_grpc,
    release_pb2,
    release_pb2_grpc,
    tech_file_pb2,
    tech_file_pb2_grpc,
    tech_pack_pb2,
    tech_pack_pb2_grpc,
)

from services.techfiles import (
    collection_rows,
    export_rows,
    pack_rows,
    release_rows,
    tech_file_rows,
    trash_rows,
)
from services.techfiles.collection_rows import COLLECTIONS
from services.techfiles.export_rows import EXPORTS, Export
from services.techfiles.pack_rows import RUNS, Run
from services.techfiles.release_rows import RELEASES
from services.techfiles.tech_file_rows import TECH_FILES, TechFile
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.rows import Table
from shared.rpc import errors
from shared.rpc.server import Context

R = TypeVar("R")
_WAIT = "wait for its end, or purge it (PurgeExport)"


async def _lock(m: Mutation, table: Table[R], row_id: UUID, noun: str) -> R:
    """Locks the owner's row until the commit. Raises NOT_FOUND if it isn't theirs."""
    found = await trash_rows.lock(m, table, [row_id])
    if not found:
        raise errors.not_found(noun, row_id)
    return found[0]


class TechFileTrash(tech_file_pb2_grpc.TechFileServiceServicer):
    """`life`: how long a deleted file can be undeleted."""

    def __init__(self, db: Database, life: timedelta) -> None:
        self._db = db
        self._life = life

    async def DeleteTechFile(
        self, request: tech_file_pb2.DeleteTechFileRequest, context: Context
    ) -> tech_file_pb2.DeleteTechFileResponse:
        file_id = parse_id(request.tech_file_id, "tech_file_id")

        async def work(m: Mutation) -> tech_file_pb2.DeleteTechFileResponse:
            row: TechFile = await tech_file_rows.lock_with_slot(m, file_id)
            errors.check_etag(request.etag, row.version, "tech file", file_id)
            if row.deleted_at is None:
                await trash_rows.refuse_held(m, [file_id])
                await trash_rows.delete(m, TECH_FILES, file_id, self._life)
                row = await tech_file_rows.settle_latest(m, row.slot_id, file_id)
            return tech_file_pb2.DeleteTechFileResponse(tech_file=tech_file_rows.to_proto(row))

        return await self._db.mutate(request, tech_file_pb2.DeleteTechFileResponse, work)

    async def UndeleteTechFile(
        self, request: tech_file_pb2.UndeleteTechFileRequest, context: Context
    ) -> tech_file_pb2.UndeleteTechFileResponse:
        file_id = parse_id(request.tech_file_id, "tech_file_id")

        async def work(m: Mutation) -> tech_file_pb2.UndeleteTechFileResponse:
            row: TechFile = await tech_file_rows.lock_with_slot(m, file_id)
            if row.deleted_at is not None:
                await trash_rows.undelete(m, TECH_FILES, file_id)
                row = await tech_file_rows.settle_latest(m, row.slot_id, file_id)
            return tech_file_pb2.UndeleteTechFileResponse(tech_file=tech_file_rows.to_proto(row))

        return await self._db.mutate(request, tech_file_pb2.UndeleteTechFileResponse, work)

    async def PurgeTechFile(
        self, request: tech_file_pb2.PurgeTechFileRequest, context: Context
    ) -> tech_file_pb2.PurgeTechFileResponse:
        file_id = parse_id(request.tech_file_id, "tech_file_id")

        async def work(m: Mutation) -> tech_file_pb2.PurgeTechFileResponse:
            row = await _lock(m, TECH_FILES, file_id, "tech file")
            errors.check_etag(request.etag, row.version, "tech file", file_id)
            await trash_rows.refuse_held(m, [file_id])
            await trash_rows.purge_files(m, [row])
            return tech_file_pb2.PurgeTechFileResponse()

        return await self._db.mutate(request, tech_file_pb2.PurgeTechFileResponse, work)


class CollectionTrash(collection_pb2_grpc.CollectionServiceServicer):
    """`life`: how long a deleted collection can be undeleted."""

    def __init__(self, db: Database, life: timedelta) -> None:
        self._db = db
        self._life = life

    async def ArchiveCollection(
        self, request: collection_pb2.ArchiveCollectionRequest, context: Context
    ) -> collection_pb2.ArchiveCollectionResponse:
        async def work(m: Mutation) -> collection_pb2.ArchiveCollectionResponse:
            collection = await _archive(m, request.collection_id, request.etag, archived=True)
            return collection_pb2.ArchiveCollectionResponse(collection=collection)

        return await self._db.mutate(request, collection_pb2.ArchiveCollectionResponse, work)

    async def UnarchiveCollection(
        self, request: collection_pb2.UnarchiveCollectionRequest, context: Context
    ) -> collection_pb2.UnarchiveCollectionResponse:
        async def work(m: Mutation) -> collection_pb2.UnarchiveCollectionResponse:
            collection = await _archive(m, request.collection_id, request.etag, archived=False)
            return collection_pb2.UnarchiveCollectionResponse(collection=collection)

        return await self._db.mutate(request, collection_pb2.UnarchiveCollectionResponse, work)

    async def DeleteCollection(
        self, request: collection_pb2.DeleteCollectionRequest, context: Context
    ) -> collection_pb2.DeleteCollectionResponse:
        collection_id = parse_id(request.collection_id, "collection_id")

        async def work(m: Mutation) -> collection_pb2.DeleteCollectionResponse:
            row = await collection_rows.lock(m, collection_id, request.etag, deleted=True)
            if row.deleted_at is None:
                await trash_rows.refuse_open_run(m, row)
                await release_rows.refuse_released(m, row)
                row = await trash_rows.delete(m, COLLECTIONS, row.id, self._life)
                return collection_pb2.DeleteCollectionResponse(
                    collection=await collection_rows.publish(m, row)
                )
            return collection_pb2.DeleteCollectionResponse(
                collection=await collection_rows.read(m, row)
            )

        return await self._db.mutate(request, collection_pb2.DeleteCollectionResponse, work)

    async def UndeleteCollection(
        self, request: collection_pb2.UndeleteCollectionRequest, context: Context
    ) -> collection_pb2.UndeleteCollectionResponse:
        collection_id = parse_id(request.collection_id, "collection_id")

        async def work(m: Mutation) -> collection_pb2.UndeleteCollectionResponse:
            row = await collection_rows.lock(m, collection_id, deleted=True)
            if row.deleted_at is not None:
                row = await trash_rows.undelete(m, COLLECTIONS, row.id)
                return collection_pb2.UndeleteCollectionResponse(
                    collection=await collection_rows.publish(m, row)
                )
            return collection_pb2.UndeleteCollectionResponse(
                collection=await collection_rows.read(m, row)
            )

        return await self._db.mutate(request, collection_pb2.UndeleteCollectionResponse, work)

    async def PurgeCollection(
        self, request: collection_pb2.PurgeCollectionRequest, context: Context
    ) -> collection_pb2.PurgeCollectionResponse:
        collection_id = parse_id(request.collection_id, "collection_id")

        async def work(m: Mutation) -> collection_pb2.PurgeCollectionResponse:
            row = await collection_rows.lock(m, collection_id, request.etag, deleted=True)
            await trash_rows.refuse_open_run(m, row)
            await trash_rows.purge_collections(m, [row])
            return collection_pb2.PurgeCollectionResponse()

        return await self._db.mutate(request, collection_pb2.PurgeCollectionResponse, work)


async def _archive(
    m: Mutation, text: str, etag: str, *, archived: bool
) -> collection_pb2.Collection:
    row = await collection_rows.lock(m, parse_id(text, "collection_id"), etag)
    if (row.archived_at is not None) == archived:
        return await collection_rows.read(m, row)
    return await collection_rows.publish(
        m, await collection_rows.set_archived(m, row, archived=archived)
    )


class RunTrash(tech_pack_pb2_grpc.TechPackServiceServicer):
    """`life`: how long a deleted run can be undeleted."""

    def __init__(self, db: Database, life: timedelta) -> None:
        self._db = db
        self._life = life

    async def DeleteTechPackRun(
        self, request: tech_pack_pb2.DeleteTechPackRunRequest, context: Context
    ) -> tech_pack_pb2.DeleteTechPackRunResponse:
        async def work(m: Mutation) -> tech_pack_pb2.DeleteTechPackRunResponse:
            row = await _lock(m, RUNS, parse_id(request.run_id, "run_id"), "run")
            trash_rows.refuse_unfinished(row, "run", trash_rows.CANCEL)
            if row.deleted_at is None:
                row = await trash_rows.delete(m, RUNS, row.id, self._life)
                await pack_rows.publish(m, row)
            return tech_pack_pb2.DeleteTechPackRunResponse(run=await pack_rows.read(m, row))

        return await self._db.mutate(request, tech_pack_pb2.DeleteTechPackRunResponse, work)

    async def UndeleteTechPackRun(
        self, request: tech_pack_pb2.UndeleteTechPackRunRequest, context: Context
    ) -> tech_pack_pb2.UndeleteTechPackRunResponse:
        async def work(m: Mutation) -> tech_pack_pb2.UndeleteTechPackRunResponse:
            row = await _lock(m, RUNS, parse_id(request.run_id, "run_id"), "run")
            if row.deleted_at is not None:
                row = await trash_rows.undelete(m, RUNS, row.id)
                await pack_rows.publish(m, row)
            return tech_pack_pb2.UndeleteTechPackRunResponse(run=await pack_rows.read(m, row))

        return await self._db.mutate(request, tech_pack_pb2.UndeleteTechPackRunResponse, work)

    async def PurgeTechPackRun(
        self, request: tech_pack_pb2.PurgeTechPackRunRequest, context: Context
    ) -> tech_pack_pb2.PurgeTechPackRunResponse:
        async def work(m: Mutation) -> tech_pack_pb2.PurgeTechPackRunResponse:
            row: Run = await _lock(m, RUNS, parse_id(request.run_id, "run_id"), "run")
            await trash_rows.purge_runs(m, [row])
            return tech_pack_pb2.PurgeTechPackRunResponse()

        return await self._db.mutate(request, tech_pack_pb2.PurgeTechPackRunResponse, work)


class ExportTrash(export_pb2_grpc.ExportServiceServicer):
    """`life`: how long a deleted export can be undeleted."""

    def __init__(self, db: Database, life: timedelta) -> None:
        self._db = db
        self._life = life

    async def DeleteExport(
        self, request: export_pb2.DeleteExportRequest, context: Context
    ) -> export_pb2.DeleteExportResponse:
        async def work(m: Mutation) -> export_pb2.DeleteExportResponse:
            row = await _lock(m, EXPORTS, parse_id(request.export_id, "export_id"), "export")
            release_rows.refuse_document(row)
            trash_rows.refuse_unfinished(row, "export", _WAIT)
            if row.deleted_at is None:
                row = await trash_rows.delete(m, EXPORTS, row.id, self._life)
                await export_rows.publish(m, row)
            return export_pb2.DeleteExportResponse(export=export_rows.to_proto(row))

        return await self._db.mutate(request, export_pb2.DeleteExportResponse, work)

    async def UndeleteExport(
        self, request: export_pb2.UndeleteExportRequest, context: Context
    ) -> export_pb2.UndeleteExportResponse:
        async def work(m: Mutation) -> export_pb2.UndeleteExportResponse:
            row = await _lock(m, EXPORTS, parse_id(request.export_id, "export_id"), "export")
            if row.deleted_at is not None:
                row = await trash_rows.undelete(m, EXPORTS, row.id)
                await export_rows.publish(m, row)
            return export_pb2.UndeleteExportResponse(export=export_rows.to_proto(row))

        return await self._db.mutate(request, export_pb2.UndeleteExportResponse, work)

    async def PurgeExport(
        self, request: export_pb2.PurgeExportRequest, context: Context
    ) -> export_pb2.PurgeExportResponse:
        async def work(m: Mutation) -> export_pb2.PurgeExportResponse:
            row: Export = await _lock(
                m, EXPORTS, parse_id(request.export_id, "export_id"), "export"
            )
            release_rows.refuse_document(row)
            await trash_rows.purge_exports(m, [row])
            return export_pb2.PurgeExportResponse()

        return await self._db.mutate(request, export_pb2.PurgeExportResponse, work)


class ReleaseTrash(release_pb2_grpc.ReleaseServiceServicer):
    """`life`: how long a deleted release can be undeleted."""

    def __init__(self, db: Database, life: timedelta) -> None:
        self._db = db
        self._life = life

    async def DeleteRelease(
        self, request: release_pb2.DeleteReleaseRequest, context: Context
    ) -> release_pb2.DeleteReleaseResponse:
        release_id = parse_id(request.release_id, "release_id")

        async def work(m: Mutation) -> release_pb2.DeleteReleaseResponse:
            row = await release_rows.lock(m, release_id, request.etag)
            if row.deleted_at is None:
                await release_rows.refuse_kept(m, row)
                row = await trash_rows.delete(m, RELEASES, row.id, self._life)
                await release_rows.publish(m, row)
            return release_pb2.DeleteReleaseResponse(release=release_rows.to_proto(row))

        return await self._db.mutate(request, release_pb2.DeleteReleaseResponse, work)

    async def UndeleteRelease(
        self, request: release_pb2.UndeleteReleaseRequest, context: Context
    ) -> release_pb2.UndeleteReleaseResponse:
        release_id = parse_id(request.release_id, "release_id")

        async def work(m: Mutation) -> release_pb2.UndeleteReleaseResponse:
            row = await release_rows.lock(m, release_id)
            if row.deleted_at is not None:
                row = await trash_rows.undelete(m, RELEASES, row.id)
                await release_rows.publish(m, row)
            return release_pb2.UndeleteReleaseResponse(release=release_rows.to_proto(row))

        return await self._db.mutate(request, release_pb2.UndeleteReleaseResponse, work)

    async def PurgeRelease(
        self, request: release_pb2.PurgeReleaseRequest, context: Context
    ) -> release_pb2.PurgeReleaseResponse:
        release_id = parse_id(request.release_id, "release_id")

        async def work(m: Mutation) -> release_pb2.PurgeReleaseResponse:
            row = await release_rows.lock(m, release_id, request.etag)
            await trash_rows.purge_releases(m, [row])
            return release_pb2.PurgeReleaseResponse()

        return await self._db.mutate(request, release_pb2.PurgeReleaseResponse, work)
