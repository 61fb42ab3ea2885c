"""Makes a ZIP of a batch's pictures while it is sent.

Neither the number of pictures nor their size changes the memory that this takes: the rows are read
in pages, one piece of one file is in memory at a time, and the manifest, which is sent last because
it says what was sent, grows in a temporary file. A row that is read as COMPLETED is sent, so that
files and manifest always agree.
"""

import json
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import IO, Any

from atelier.assets.v1 import asset_pb2, asset_pb2_grpc

from services.conversions import assets
from services.conversions.batch_plans import BatchPlan
from services.conversions.batch_rows import OF_BATCH, TABLES, Batch
from services.conversions.job_kinds import KINDS
from services.conversions.job_rows import PictureJob
from shared.database.db import Database
from shared.database.rows import Statement
from shared.formats import names, zips
from shared.rpc import errors
from shared.rpc.calls import TRANSFER_SECONDS, Peers
from shared.rpc.errors import DomainError, Reason

_MANIFEST = "manifest.json"
_PAGE = 100  # rows, whose pictures are then asked for in one call
_CHUNK = 256 * 1024

_SELECT_PAGE: Mapping[str, Statement[Any]] = {
    table: Statement(
        KINDS[table].table.row,
        f"""
        SELECT {KINDS[table].table.columns} FROM {table}
        WHERE {OF_BATCH} AND batch_item >= %(first)s AND batch_item < %(end)s ORDER BY batch_item
        """,
    )
    for table in TABLES
}
_COUNT_COMPLETED = {
    table: Statement(
        int,
        f"""
        SELECT count(*)::int AS items FROM {table}
        WHERE {OF_BATCH} AND state = 'completed' AND deleted_at IS NULL
        """,
    )
    for table in TABLES
}


class BatchZip:
    """The ZIP of a batch, for its owner."""

    def __init__(self, db: Database, peers: Peers, batch: Batch, plan: BatchPlan) -> None:
        self.file_name = names.of_file(batch.name or f"batch-{batch.id}", ".zip")
        self._db = db
        self._peers = peers
        self._batch = batch
        self._plan = plan
        self._archive = zips.Archive(batch.created_at)
        self._digits = len(str(batch.total - 1))
        self._asked = {"owner": batch.owner, "batch_id": batch.id}

    async def completed_count(self) -> int:
        return await self._db.one(_COUNT_COMPLETED[self._batch.job], self._asked)

    async def chunks(self) -> AsyncIterator[bytes]:
        with tempfile.TemporaryFile() as manifest:
            manifest.write(self._opening())
            for first in range(0, self._batch.total, _PAGE):
                end = min(first + _PAGE, self._batch.total)
                async for piece in self._page(manifest, first, end):
                    yield piece
            manifest.write(b"\n]}\n")
            for piece in self._last(manifest):
                yield piece

    async def _page(self, manifest: IO[bytes], first: int, end: int) -> AsyncIterator[bytes]:
        """Sends the pictures of the items from `first` to before `end`, and adds all these items to
        the manifest."""
        found = await self._db.all(
            _SELECT_PAGE[self._batch.job], {**self._asked, "first": first, "end": end}
        )
        rows: dict[int, PictureJob] = {row.batch_item: row for row in found}
        results = (row.shown_result for row in rows.values() if not row.deleted_at)
        there = await self._peers.assets(each for each in results if each)
        for number in range(first, end):
            row = rows.get(number)
            entry: dict[str, Any] = {"item": number, "state": self._state_without_row(number)}
            if row is not None:
                entry = _entry(number, row)
                asset = None if row.deleted_at else there.get(row.shown_result)
                if assets.is_there(asset) and asset is not None:
                    entry["file"] = self._path(number, asset)
                    try:
                        async for piece in self._file(entry["file"], asset):
                            yield piece
                    except _Vanished:
                        del entry["file"]
            separator = b",\n" if number else b"\n"
            manifest.write(separator + json.dumps(entry, ensure_ascii=False).encode())

    def _state_without_row(self, number: int) -> str:
        """Returns what the manifest says of an item that isn't created yet, or no longer there."""
        if number < self._batch.made:
            return "PURGED"
        return "CANCELLED" if self._batch.state == "cancelled" else "WAITING"

    async def _file(self, path: str, asset: asset_pb2.Asset) -> AsyncIterator[bytes]:
        """Raises _Vanished before the first piece if the picture was deleted meanwhile."""
        stub = self._peers.stub(asset_pb2_grpc.AssetServiceStub)
        request = asset_pb2.DownloadAssetRequest(asset_id=asset.id)
        try:
            begun = False
            async for answer in stub.DownloadAsset(request, timeout=TRANSFER_SECONDS):
                if answer.WhichOneof("part") == "head":
                    begun = True
                    yield self._archive.begin(path, answer.head.size_bytes)
                elif answer.chunk:
                    for piece in _pieces(self._archive.data(answer.chunk)):
                        yield piece
            yield self._archive.end()
        except DomainError as refusal:
            if begun or refusal.reason != Reason.ERROR_REASON_NOT_FOUND:
                raise
            raise _Vanished from None
        except zips.WrongSize:
            text = "its stored bytes are no longer those that were verified; try its item again"
            raise errors.precondition(text, subject=f"assets/{asset.id}") from None

    def _path(self, number: int, asset: asset_pb2.Asset) -> str:
        ending = "." + asset.mime_type.partition("/")[2].replace("jpeg", "jpg")
        return names.of_file(f"{number:0{self._digits}} {self._plan.name(number)}", ending)

    def _opening(self) -> bytes:
        batch = self._batch
        about = {
            "batch_id": str(batch.id),
            "name": batch.name,
            "state": batch.state.upper(),
            "item_count": batch.total,
        }
        return json.dumps(about, ensure_ascii=False)[:-1].encode() + b', "items": ['

    def _last(self, manifest: IO[bytes]) -> Iterator[bytes]:
        yield self._archive.begin(_MANIFEST, manifest.tell())
        manifest.seek(0)
        while listed := manifest.read(_CHUNK):
            yield from _pieces(self._archive.data(listed))
        yield self._archive.end()
        yield from _pieces(self._archive.close())


class _Vanished(Exception):
    """A picture was deleted before its turn came."""


def _entry(number: int, row: PictureJob) -> dict[str, Any]:
    """Returns what the manifest says of an item that has a row."""
    asked = ("style_name", "prompt", "full_prompt", "seed", "style")
    return {
        "item": number,
        "id": str(row.id),
        "state": row.state.upper(),
        "deleted": row.deleted_at is not None,
        "inputs": [{"role": each.role, "asset_id": str(each.asset_id)} for each in row.inputs()],
        **{name: value for name in asked if (value := getattr(row, name, None)) is not None},
        "result_asset_id": row.shown_result,
        "recipe": row.recipe,
        "credits": row.credits,
        "confidence": row.confidence,
        "error_class": row.error_class,
        "error_message": row.error_message,
    }


def _pieces(written: bytes) -> Iterator[bytes]:
    """Cuts the bytes into pieces of at most 256 KiB, one for each message."""
    for start in range(0, len(written), _CHUNK):
        yield written[start : start + _CHUNK]
