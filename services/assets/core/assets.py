"""AssetService: reads, lists, updates, downloads and watches assets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import timedelta
from functools import cache, partial
from uuid import UUID

import sqlalchemy as sa
from atelier.assets.v1 import asset_pb2 as pb
from atelier.assets.v1 import asset_pb2_grpc
from psycopg.types.json import Jsonb

from services.assets.core import asset_rows, choose_primary
from services.assets.core.asset_rows import (
    ASSETS,
    KINDS,
    SELECT_ASSET,
    SELECT_ASSETS,
    STATES,
    VARIANTS,
    Asset,
    LockedAsset,
    Urls,
    Variant,
    scope_of,
    unusable,
)
from services.assets.core.usage_log import UsageLog
from services.assets.core.visibility import Move
from shared.background.watches import Event, EventStream, Fields
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.lists import created
from shared.database.rows import Statement, compiled
from shared.rpc import auth, errors, paging
from shared.rpc.protos import metadata
from shared.rpc.server import Context
from shared.storage import ObjectNotFound, Storage, StorageError

_SNAPSHOT_AGE = timedelta(days=1)
_SNAPSHOT_PAGE = 500

_SELECT_ALBUMS = Statement(
    UUID,
    """
    SELECT album_id FROM album_assets WHERE asset_id = %(id)s AND owner = %(owner)s
    ORDER BY album_id LIMIT 10000
    """,
)
_SELECT_SNAPSHOT = Statement(
    Asset,
    f"""
    SELECT {ASSETS.columns} FROM assets
    WHERE owner = %(owner)s AND (%(all)s OR id = ANY(%(ids)s))
        AND (NOT %(all)s OR created_at > now() - %(age)s::interval)
        AND (%(after_id)s::uuid IS NULL OR (created_at, id) > (%(after_at)s, %(after_id)s))
    ORDER BY created_at, id LIMIT %(limit)s
    """,
)
_SELECT_VARIANTS = Statement(
    Variant,
    f"SELECT {VARIANTS.columns} FROM variants WHERE asset_id = ANY(%(ids)s) ORDER BY preset",
)
# The version stays: the update of the masked fields, in the same transaction, has raised it.
_UNSET_PRIMARY = Statement(
    LockedAsset,
    f"UPDATE assets SET is_primary = false WHERE id = %(id)s RETURNING {ASSETS.columns}",
)

# (asset id, preset, seconds or None for no deadline): returns the row of the READY variant, which
# is made if it isn't there.
ReadyVariant = Callable[[UUID, str, float | None], Awaitable[Variant]]


class AssetService(asset_pb2_grpc.AssetServiceServicer):
    def __init__(
        self,
        db: Database,
        stream: EventStream,
        storage: Storage,
        urls: Urls,
        variant: ReadyVariant,
        usage_log: UsageLog,
    ) -> None:
        self._db = db
        self._stream = stream
        self._storage = storage
        self._urls = urls
        self._variant = variant
        self._usage = usage_log

    async def GetAsset(self, request: pb.GetAssetRequest, context: Context) -> pb.GetAssetResponse:
        row = await self._visible(parse_id(request.asset_id, "asset_id"))
        urls = self._urls if request.include_urls else None
        [asset] = await asset_rows.shown(self._db, [row], urls)
        if request.include_urls and not unusable(row):
            self._usage.note([row], "view")
        if request.include_albums:
            mine = {"id": row.id, "owner": auth.current().owner}
            asset.album_ids.extend(map(str, await self._db.all(_SELECT_ALBUMS, mine)))
        return pb.GetAssetResponse(asset=asset)

    async def BatchGetAssets(
        self, request: pb.BatchGetAssetsRequest, context: Context
    ) -> pb.BatchGetAssetsResponse:
        ids = [UUID(text) for text in request.asset_ids]
        found = {row.id: row for row in await self._db.all(SELECT_ASSETS, {"ids": ids})}
        there = [found[asset_id] for asset_id in ids if asset_id in found]
        urls = self._urls if request.include_urls else None
        seen = await asset_rows.shown(self._db, there, urls)
        missing = [str(asset_id) for asset_id in ids if asset_id not in found]
        left = [str(row.id) for row in there[len(seen) :]]
        return pb.BatchGetAssetsResponse(
            assets=seen, missing_asset_ids=missing, remaining_asset_ids=left
        )

    async def ListAssets(
        self, request: pb.ListAssetsRequest, context: Context
    ) -> pb.ListAssetsResponse:
        page = paging.page(request)
        wanted = _filters(request)
        statement = _list(tuple(wanted), request.public_of_others, page.after is not None)
        mine = {"owner": auth.current().owner}
        rows = await self._db.all(statement, {**mine, **wanted, **page.parameters})
        urls = self._urls if request.include_urls else None
        seen, token = page.fill(rows, await asset_rows.shown(self._db, page.cut(rows), urls))
        return pb.ListAssetsResponse(assets=seen, next_page_token=token)

    async def UpdateAsset(
        self, request: pb.UpdateAssetRequest, context: Context
    ) -> pb.UpdateAssetResponse:
        asset_id = parse_id(request.asset_id, "asset_id")
        move = Move(self._storage, asset_id)
        if (
            "visibility" in request.update_mask.paths
            and request.visibility == pb.VISIBILITY_UNSPECIFIED
        ):
            raise errors.invalid("visibility", "must be private or public when the mask names it")

        async def work(m: Mutation) -> pb.UpdateAssetResponse:
            if {"primary", "scope"} & set(request.update_mask.paths):
                await choose_primary.lock_primaries(m, asset_id, request.scope.product_id)
            locked = await asset_rows.lock(m, asset_id, request.etag)
            if locked.deleted_at:
                raise errors.precondition(
                    "it is deleted; undelete it first", subject=f"assets/{asset_id}"
                )
            row = await _apply(m, locked, request, move)
            asset = await asset_rows.publish(m, row)
            await self._usage.write(m, [row], "update")
            return pb.UpdateAssetResponse(asset=asset)

        try:
            if "visibility" in request.update_mask.paths:
                await move.copy(self._db, public=request.visibility == pb.VISIBILITY_PUBLIC)
            response = await self._db.mutate(request, pb.UpdateAssetResponse, work)
        except (errors.DomainError, StorageError):  # the transaction was rolled back
            await move.undo()
            raise
        except BaseException:  # call cancelled or database lost: rows may point at the copies
            await asyncio.shield(move.settle(self._db))
            raise
        await move.finish(response.asset.file_path)
        return response

    async def DownloadAsset(
        self, request: pb.DownloadAssetRequest, context: Context
    ) -> AsyncIterator[pb.DownloadAssetResponse]:
        asset_id = parse_id(request.asset_id, "asset_id")
        asset = await self._visible(asset_id)
        if asset.deleted_at:
            raise errors.precondition(
                "it is deleted; undelete it first", subject=f"assets/{asset_id}"
            )
        row: Asset | Variant = asset
        if request.variant:
            row = await self._variant(asset_id, request.variant, context.time_remaining())
        elif problem := unusable(asset):
            raise errors.precondition(problem, subject=f"assets/{asset_id}")
        head = pb.DownloadHead(
            mime_type=row.mime_type, size_bytes=row.size_bytes, sha256=row.sha256
        )
        yield pb.DownloadAssetResponse(head=head)
        chunks = self._urls.meter.counted(
            asset.owner, asset.session_id, self._storage.get(row.storage_key)
        )
        try:
            async for chunk in chunks:
                yield pb.DownloadAssetResponse(chunk=chunk)
        except ObjectNotFound:
            raise errors.not_found("asset", asset_id) from None
        self._usage.note(
            [asset], "download", metadata={"variant": request.variant} if request.variant else {}
        )

    def WatchAssets(
        self, request: pb.WatchAssetsRequest, context: Context
    ) -> AsyncIterator[pb.WatchAssetsResponse]:
        show = partial(_change, set(request.asset_ids))
        return self._stream.watch(request, pb.WatchAssetsResponse, self._snapshot(request), show)

    async def _visible(self, asset_id: UUID) -> Asset:
        row = await self._db.first(SELECT_ASSET, {"id": asset_id})
        if row is None:
            raise errors.not_found("asset", asset_id)
        return row

    async def _snapshot(
        self, request: pb.WatchAssetsRequest
    ) -> AsyncIterator[tuple[Fields, Asset | Variant]]:
        """Yields the current state: the named assets, or the owner's assets of the last day; after
        each page of assets, their variants."""
        ids = [UUID(text) for text in request.asset_ids]
        after: Mapping[str, object] = {"after_at": None, "after_id": None}
        while True:
            rows = await self._db.all(
                _SELECT_SNAPSHOT,
                {
                    "owner": auth.current().owner,
                    "all": not ids,
                    "ids": ids,
                    "age": _SNAPSHOT_AGE,
                    "limit": _SNAPSHOT_PAGE,
                    **after,
                },
            )
            variants = await self._db.all(_SELECT_VARIANTS, {"ids": [row.id for row in rows]})
            for row in rows:
                yield {"asset": asset_rows.to_proto(row)}, row
            for variant in variants:
                yield {"variant": asset_rows.variant_to_proto(variant)}, variant
            if len(rows) < _SNAPSHOT_PAGE:
                return
            after = {"after_at": rows[-1].created_at, "after_id": rows[-1].id}


async def _apply(
    m: Mutation, before: LockedAsset, request: pb.UpdateAssetRequest, move: Move
) -> LockedAsset:
    """Writes the masked fields. Returns the new row."""
    paths = set(request.update_mask.paths)
    columns: dict[str, object] = {}
    if "file_name" in paths:
        columns["file_name"] = asset_rows.checked_name(request.file_name, "file_name")
    if "tags" in paths:
        columns["tags"] = list(request.tags)
    if "metadata" in paths:
        columns["metadata"] = Jsonb(metadata(request.metadata, "metadata"))
    if "free" in paths:
        columns["free"] = request.free
    if "scope" in paths:
        columns |= scope_of(request.scope)
        columns["is_primary"] = before.is_primary and request.scope.product_id == before.product_id
    if "visibility" in paths:
        columns["public"] = request.visibility == pb.VISIBILITY_PUBLIC
        columns["storage_key"] = await move.switch(m, before.storage_key)
    row = await asset_rows.update(m, before, **columns)
    moved = before.product_id != row.product_id
    if "primary" in paths:
        row = await _lead(m, row, request.primary)
    elif moved and choose_primary.may_lead(row):
        row = await choose_primary.make_primary(m, row, only_first=True)
    if moved and before.is_primary:
        await choose_primary.hand_over(m, [before])
    return row


async def _lead(m: Mutation, row: LockedAsset, primary: bool) -> LockedAsset:
    """Sets or clears the asset as its product's primary image. Returns the new row."""
    if not primary:
        return await m.one(_UNSET_PRIMARY, {"id": row.id})
    if not row.product_id:
        raise errors.invalid("primary", "the asset belongs to no product; set scope.product_id too")
    if problem := unusable(row) or (
        "it is archived; unarchive it first" if row.archived_at else ""
    ):
        raise errors.precondition(problem, subject=f"assets/{row.id}")
    return await choose_primary.make_primary(m, row)


def _filters(request: pb.ListAssetsRequest) -> dict[str, object]:
    """Returns the filters that the request sets, by the names that `_list` knows. Raises
    INVALID_ARGUMENT for one that can't be applied to assets of others."""
    hidden = {"not_archived": not request.show_archived, "not_deleted": not request.show_deleted}
    labels = scope_of(request)
    if request.public_of_others:
        for name, filtered in (("show_archived", "not_archived"), ("show_deleted", "not_deleted")):
            if not hidden[filtered]:
                raise errors.invalid(name, "what others archived or deleted is not shown")
        for name, label in labels.items():
            if label:
                raise errors.invalid(name, "labels of others are not searchable")
    wanted: dict[str, object] = {
        "state": STATES.word[request.state] if request.state else "ready",
        "kind": request.kind and KINDS.word[request.kind],
        **hidden,
        **labels,
        **created(request),
    }
    return {name: value for name, value in wanted.items() if value}


@cache
def _list(names: tuple[str, ...], of_others: bool, goes_on: bool) -> Statement[Asset]:
    """Returns the statement for a page of the owner's assets, or of the public ones of others, with
    these filters."""
    asset = ASSETS.core.c
    owner: sa.BindParameter[str] = sa.bindparam("owner")
    where = [asset.owner != owner, asset.public] if of_others else [asset.owner == owner]
    conditions = {
        "not_archived": asset.archived_at.is_(None),
        "not_deleted": asset.deleted_at.is_(None),
        "created_from": asset.created_at >= sa.bindparam("created_from"),
        "created_before": asset.created_at < sa.bindparam("created_before"),
    }
    for name in names:
        where.append(conditions[name] if name in conditions else asset[name] == sa.bindparam(name))
    if goes_on:
        last = sa.tuple_(sa.bindparam("after_at"), sa.bindparam("after_id"))
        where.append(sa.tuple_(asset.created_at, asset.id) < last)
    return compiled(
        Asset,
        sa.select(ASSETS.core)
        .where(*where)
        .order_by(asset.created_at.desc(), asset.id.desc())
        .limit(sa.bindparam("limit"))
        .offset(sa.bindparam("skip")),
    )


def _change(wanted: set[str], event: Event) -> Fields | None:
    if event.subject == "asset":
        asset = pb.Asset.FromString(event.payload)
        return {"asset": asset} if not wanted or asset.id in wanted else None
    if event.subject == "purged_asset":
        purged = pb.PurgedAsset.FromString(event.payload)
        return {"purged": purged} if not wanted or purged.asset_id in wanted else None
    if event.subject != "variant":  # the stream also carries events of other nouns
        return None
    variant = pb.Variant.FromString(event.payload)
    return {"variant": variant} if not wanted or variant.asset_id in wanted else None
