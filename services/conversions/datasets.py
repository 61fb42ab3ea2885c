"""DatasetService: keeps the look of a brand, with its logo and images in the owner's order."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

from atelier.conversions.v1 import dataset_pb2 as pb
from atelier.conversions.v1 import dataset_pb2_grpc

from services.conversions import assets, dataset_rows, holding
from services.conversions.dataset_rows import (
    DATASETS,
    MOST_IMAGES,
    SELECT_DATASET,
    Dataset,
    LockedDataset,
)
from shared.background.jobs import JobQueue
from shared.background.watches import Event, EventStream, Fields
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.lists import Listing, created
from shared.database.rows import Statement
from shared.rpc import auth, errors, paging
from shared.rpc.calls import Peers
from shared.rpc.server import Context

_SNAPSHOT_PAGE = 500
_LIST = Listing(
    DATASETS,
    Dataset,
    hide_archived=lambda row, _: row.archived_at.is_(None),
    hide_deleted=lambda row, _: row.deleted_at.is_(None),
)
_SELECT_SNAPSHOT = Statement(
    Dataset,
    f"""
    SELECT {DATASETS.columns} FROM datasets
    WHERE owner = %(owner)s
        AND (%(after_id)s::uuid IS NULL OR (created_at, id) > (%(after_at)s, %(after_id)s))
    ORDER BY created_at, id LIMIT %(limit)s
    """,
)
# For each subject: the field of the watch's answer, and the message of the event.
_ITEMS: Mapping[str, tuple[str, Any]] = {
    "dataset": ("dataset", pb.Dataset),
    "purged_dataset": ("purged", pb.PurgedDataset),
}

A = TypeVar(
    "A",
    pb.UpdateDatasetResponse,
    pb.AddDatasetImagesResponse,
    pb.RemoveDatasetImagesResponse,
    pb.OrderDatasetImagesResponse,
    pb.ArchiveDatasetResponse,
    pb.UnarchiveDatasetResponse,
    pb.DeleteDatasetResponse,
    pb.UndeleteDatasetResponse,
)
_ChangeRequest = (
    pb.UpdateDatasetRequest
    | pb.AddDatasetImagesRequest
    | pb.RemoveDatasetImagesRequest
    | pb.OrderDatasetImagesRequest
    | pb.ArchiveDatasetRequest
    | pb.UnarchiveDatasetRequest
    | pb.DeleteDatasetRequest
    | pb.UndeleteDatasetRequest
)
_Change = Callable[[Mutation, LockedDataset], Awaitable[Dataset]]


class DatasetService(dataset_pb2_grpc.DatasetServiceServicer):
    def __init__(
        self, db: Database, stream: EventStream, queue: JobQueue, peers: Peers, *, life: timedelta
    ) -> None:
        """`life`: how long a deleted dataset stays in the trash."""
        self._db = db
        self._stream = stream
        self._queue = queue
        self._peers = peers
        self._life = life

    async def CreateDataset(
        self, request: pb.CreateDatasetRequest, context: Context
    ) -> pb.CreateDatasetResponse:
        images = assets.each_once(request.image_asset_ids, "image_asset_ids")
        logo = UUID(request.logo_asset_id) if request.logo_asset_id else None
        answer = await self._db.stored_answer(request, pb.CreateDatasetResponse)
        if answer is None:
            await self._check_logo(logo)
            await self._check_images(images, "image_asset_ids")
            columns = {
                "name": request.name,
                "brand": request.brand,
                "vibe": request.vibe,
                "logo_asset_id": logo,
                "image_asset_ids": images,
            }

            async def work(m: Mutation) -> pb.CreateDatasetResponse:
                row = await dataset_rows.create(m, columns)
                await holding.enqueue(m, self._queue, row.id)
                return pb.CreateDatasetResponse(dataset=dataset_rows.to_proto(row))

            answer = await self._db.mutate(request, pb.CreateDatasetResponse, work)
            await self._acquire(answer.dataset, [*images, *([logo] if logo else [])])
        return answer

    async def GetDataset(
        self, request: pb.GetDatasetRequest, context: Context
    ) -> pb.GetDatasetResponse:
        dataset_id = parse_id(request.dataset_id, "dataset_id")
        row = await self._db.first(SELECT_DATASET, {"id": dataset_id})
        if row is None:
            raise errors.not_found("dataset", dataset_id)
        dataset = dataset_rows.to_proto(row)
        if request.include_urls:
            await self._add_urls(dataset, row)
        return pb.GetDatasetResponse(dataset=dataset)

    async def _add_urls(self, dataset: pb.Dataset, row: Dataset) -> None:
        found = await self._peers.assets(map(str, row.pictures), urls=True)
        for image in dataset.images:
            if asset := found.get(image.asset_id):
                image.image_url, image.thumbnail_url = asset.original_url, asset.thumbnail_url
        if asset := found.get(dataset.logo_asset_id):
            dataset.logo_url = asset.original_url

    async def ListDatasets(
        self, request: pb.ListDatasetsRequest, context: Context
    ) -> pb.ListDatasetsResponse:
        page = paging.page(request)
        wanted = {
            "brand": request.brand,
            "hide_archived": not request.show_archived,
            "hide_deleted": not request.show_deleted,
            **created(request),
        }
        rows = await self._db.all(*_LIST.query(page, wanted))
        found, token = page.fill(rows, map(dataset_rows.to_proto, rows))
        return pb.ListDatasetsResponse(datasets=found, next_page_token=token)

    async def UpdateDataset(
        self, request: pb.UpdateDatasetRequest, context: Context
    ) -> pb.UpdateDatasetResponse:
        columns = _changed_columns(request)
        new: list[UUID] = []
        if "logo_asset_id" in request.update_mask.paths:
            logo = UUID(request.logo_asset_id) if request.logo_asset_id else None
            columns["logo_asset_id"] = logo
            if logo and await self._db.stored_answer(request, pb.UpdateDatasetResponse) is None:
                await self._check_logo(logo)
                new = [logo]

        async def change(m: Mutation, locked: LockedDataset) -> Dataset:
            dataset_rows.refuse_deleted(locked)
            return await self._update(m, locked, columns)

        answer = await self._change(request, pb.UpdateDatasetResponse, change)
        await self._acquire(answer.dataset, new)
        return answer

    async def AddDatasetImages(
        self, request: pb.AddDatasetImagesRequest, context: Context
    ) -> pb.AddDatasetImagesResponse:
        added = assets.each_once(request.asset_ids, "asset_ids")
        # A repeat acquires nothing: the images may have left the dataset since.
        is_new = await self._db.stored_answer(request, pb.AddDatasetImagesResponse) is None
        if is_new:
            await self._check_images(added, "asset_ids")
        position = request.position if request.HasField("position") else MOST_IMAGES

        async def change(m: Mutation, locked: LockedDataset) -> Dataset:
            dataset_rows.refuse_deleted(locked)
            there = locked.image_asset_ids
            new = [each for each in added if each not in there]
            if len(there) + len(new) > MOST_IMAGES:
                text = f"the dataset would have {len(there) + len(new)} images; it may have 100"
                raise errors.invalid("asset_ids", text)
            images = [*there[:position], *new, *there[position:]]
            return await self._update(m, locked, {"image_asset_ids": images}) if new else locked

        answer = await self._change(request, pb.AddDatasetImagesResponse, change)
        await self._acquire(answer.dataset, added if is_new else [])
        return answer

    async def RemoveDatasetImages(
        self, request: pb.RemoveDatasetImagesRequest, context: Context
    ) -> pb.RemoveDatasetImagesResponse:
        removed = {UUID(text) for text in request.asset_ids}

        async def change(m: Mutation, locked: LockedDataset) -> Dataset:
            dataset_rows.refuse_deleted(locked)
            images = [each for each in locked.image_asset_ids if each not in removed]
            if len(images) == len(locked.image_asset_ids):
                return locked
            return await self._update(m, locked, {"image_asset_ids": images})

        return await self._change(request, pb.RemoveDatasetImagesResponse, change)

    async def OrderDatasetImages(
        self, request: pb.OrderDatasetImagesRequest, context: Context
    ) -> pb.OrderDatasetImagesResponse:
        images = assets.each_once(request.asset_ids, "asset_ids")

        async def change(m: Mutation, locked: LockedDataset) -> Dataset:
            dataset_rows.refuse_deleted(locked)
            if set(images) != set(locked.image_asset_ids):
                text = "must name each image of the dataset once; read it again, then repeat"
                raise errors.invalid("asset_ids", text)
            return await dataset_rows.update(m, locked, {"image_asset_ids": images})

        return await self._change(request, pb.OrderDatasetImagesResponse, change)

    async def ArchiveDataset(
        self, request: pb.ArchiveDatasetRequest, context: Context
    ) -> pb.ArchiveDatasetResponse:
        async def change(m: Mutation, locked: LockedDataset) -> Dataset:
            dataset_rows.refuse_deleted(locked)
            return locked if locked.archived_at else await dataset_rows.archive(m, locked)

        return await self._change(request, pb.ArchiveDatasetResponse, change)

    async def UnarchiveDataset(
        self, request: pb.UnarchiveDatasetRequest, context: Context
    ) -> pb.UnarchiveDatasetResponse:
        async def change(m: Mutation, locked: LockedDataset) -> Dataset:
            dataset_rows.refuse_deleted(locked)
            if locked.archived_at is None:
                return locked
            return await dataset_rows.update(m, locked, {"archived_at": None})

        return await self._change(request, pb.UnarchiveDatasetResponse, change)

    async def DeleteDataset(
        self, request: pb.DeleteDatasetRequest, context: Context
    ) -> pb.DeleteDatasetResponse:
        async def change(m: Mutation, locked: LockedDataset) -> Dataset:
            if locked.deleted_at:
                return locked
            return await dataset_rows.delete(m, locked, self._life)

        return await self._change(request, pb.DeleteDatasetResponse, change)

    async def UndeleteDataset(
        self, request: pb.UndeleteDatasetRequest, context: Context
    ) -> pb.UndeleteDatasetResponse:
        async def change(m: Mutation, locked: LockedDataset) -> Dataset:
            if locked.deleted_at is None:
                return locked
            return await dataset_rows.update(m, locked, {"deleted_at": None, "expires_at": None})

        return await self._change(request, pb.UndeleteDatasetResponse, change)

    async def PurgeDataset(
        self, request: pb.PurgeDatasetRequest, context: Context
    ) -> pb.PurgeDatasetResponse:
        dataset_id = parse_id(request.dataset_id, "dataset_id")

        async def work(m: Mutation) -> pb.PurgeDatasetResponse:
            locked = await _lock(m, dataset_id, request.etag)
            await dataset_rows.purge(m, locked)
            await holding.enqueue(m, self._queue, dataset_id)
            return pb.PurgeDatasetResponse()

        return await self._db.mutate(request, pb.PurgeDatasetResponse, work)

    async def _change(self, request: _ChangeRequest, answer: type[A], change: _Change) -> A:
        """Runs `change` with the locked row, and answers with the row that it returns."""
        dataset_id = parse_id(request.dataset_id, "dataset_id")

        async def work(m: Mutation) -> A:
            row = await change(m, await _lock(m, dataset_id, request.etag))
            return answer(dataset=dataset_rows.to_proto(row))

        return await self._db.mutate(request, answer, work)

    async def _update(
        self, m: Mutation, locked: LockedDataset, columns: Mapping[str, Any]
    ) -> Dataset:
        """Sets columns. If the pictures change, enqueues the job that settles their references."""
        row = await dataset_rows.update(m, locked, columns)
        if row.pictures != locked.pictures:
            await holding.enqueue(m, self._queue, row.id)
        return row

    async def _acquire(self, dataset: pb.Dataset, added: Sequence[UUID]) -> None:
        await holding.acquire_now(self._peers, UUID(dataset.id), added)

    async def _check_logo(self, logo: UUID | None) -> None:
        if logo is not None:
            await assets.check(self._peers, [assets.Wanted("logo_asset_id", str(logo))])

    async def _check_images(self, images: Sequence[UUID], field: str) -> None:
        wanted = (
            assets.Wanted(f"{field}[{number}]", str(each)) for number, each in enumerate(images)
        )
        await assets.check(self._peers, list(wanted))

    def WatchDatasets(
        self, request: pb.WatchDatasetsRequest, context: Context
    ) -> AsyncIterator[pb.WatchDatasetsResponse]:
        return self._stream.watch(request, pb.WatchDatasetsResponse, self._snapshot(), _change)

    async def _snapshot(self) -> AsyncIterator[tuple[Fields, Dataset]]:
        """Yields all rows of the owner, oldest first."""
        after: dict[str, Any] = {"after_at": None, "after_id": None}
        asked = {"owner": auth.current().owner, "limit": _SNAPSHOT_PAGE}
        while True:
            rows = await self._db.all(_SELECT_SNAPSHOT, {**asked, **after})
            for row in rows:
                yield {"dataset": dataset_rows.to_proto(row)}, row
            if len(rows) < _SNAPSHOT_PAGE:
                return
            after = {"after_at": rows[-1].created_at, "after_id": rows[-1].id}


def _change(event: Event) -> Fields | None:
    """Returns the watch's item for an event. None: the watch leaves the event out."""
    if event.subject not in _ITEMS:
        return None
    field, message = _ITEMS[event.subject]
    return {field: message.FromString(event.payload)}


async def _lock(m: Mutation, dataset_id: UUID, etag: str) -> LockedDataset:
    """Locks the row. Raises ETAG_MISMATCH if it changed since the caller read it."""
    locked = await dataset_rows.lock(m, dataset_id)
    errors.check_etag(etag, locked.version, "dataset", dataset_id)
    return locked


def _changed_columns(request: pb.UpdateDatasetRequest) -> dict[str, Any]:
    """Returns the fields that the mask names as columns, but for the logo. Only those fields are
    checked."""
    paths = set(request.update_mask.paths)
    columns: dict[str, Any] = {}
    if "name" in paths:
        if not request.name:
            raise errors.invalid("name", "must not be empty when the mask names it")
        columns["name"] = request.name
    if "brand" in paths:
        columns["brand"] = request.brand
    if "vibe" in paths:
        columns["vibe"] = request.vibe
    return columns
