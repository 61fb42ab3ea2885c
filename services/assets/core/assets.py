"""Assets: reading, listing, describing, holding, following. Uploads and variants import from here,
never back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from atelier.assets.v1 import asset_pb2 as pb
from atelier.assets.v1 import asset_pb2_grpc
from psycopg.types.json import Jsonb

from services.assets.core import history as usage
from services.assets.core import rules
from services.assets.core.bandwidth import Meter
from services.assets.core.visibility import Move
from shared.background import events
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.formats import names
from shared.rpc import auth, errors, paging
from shared.rpc.protos import Words, metadata, struct, time_of, timestamp, wait_of
from shared.storage import ObjectNotFound, Storage, StorageError

KINDS = Words(pb.AssetKind, "ASSET_KIND_")
STATES = Words(pb.AssetState, "ASSET_STATE_")
VARIANT_STATES = Words(pb.VariantState, "VARIANT_STATE_")
CREDENTIALS_STATES = Words(pb.CredentialsState, "CREDENTIALS_STATE_")
SCOPES = ("session_id", "room_id", "product_id", "dataset_id")
_SNAPSHOT_AGE = timedelta(days=1)
_SNAPSHOT_PAGE = 500

_GET = "SELECT * FROM assets WHERE id = %(id)s"
BATCH = "SELECT * FROM assets WHERE id = ANY(%(ids)s)"
_THUMBNAILS = """
    SELECT asset_id, storage_key, mime_type, size_bytes FROM variants
    WHERE asset_id = ANY(%(ids)s) AND preset = 'thumb' AND state = 'ready'
"""
_ALBUMS = """
    SELECT album_id FROM album_assets WHERE asset_id = %(id)s AND owner = %(owner)s
        ORDER BY album_id LIMIT 10000
"""
_PRODUCTS = """
    SELECT product_id FROM assets WHERE id = %(id)s AND owner = %(owner)s AND product_id <> ''
    UNION SELECT %(product_id)s WHERE %(product_id)s <> '' ORDER BY product_id
"""
_HOLD_PRIMARIES = """
    SELECT FROM assets WHERE owner = %(owner)s AND (id = %(id)s OR product_id
        = ANY(%(products)s) AND is_primary)
    ORDER BY id FOR UPDATE
"""
# Whatever somebody else has locked is passed over: waiting for it, with the product held, could be
# a deadlock.
_NEXT_PRIMARY = """
    SELECT * FROM assets WHERE owner = %(owner)s AND product_id = %(product_id)s AND kind
        = 'product'
        AND state = 'ready' AND deleted_at IS NULL AND archived_at IS NULL AND bytes_gone_at IS NULL
    ORDER BY created_at, id LIMIT 1 FOR UPDATE SKIP LOCKED
"""
_LOCK = "SELECT * FROM assets WHERE id = %(id)s AND owner = %(owner)s FOR UPDATE"


# The row of a READY variant (asset, preset), made if it isn't there, within so many seconds (None:
# no deadline).
ReadyVariant = Callable[[UUID, str, float | None], Awaitable[Any]]


@dataclass(frozen=True)
class Urls:
    """Makes URLs when they are asked for; they are never stored."""

    storage: Storage
    life: timedelta
    meter: Meter

    def of(self, key: str, mime_type: str, file_name: str) -> str:
        if key.startswith("public/"):
            return self.storage.public_url(key)
        return self.storage.sign_get(
            key,
            expires_in=self.life,
            file_name=file_name,
            content_type=mime_type,
            inline=mime_type != rules.PDF,
        )


def to_proto(row: Any, urls: Urls | None = None, thumbnail: Any = None) -> pb.Asset:
    asset = pb.Asset(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        kind=KINDS.number[row.kind],
        state=STATES.number[row.state],
        visibility=pb.VISIBILITY_PUBLIC if row.public else pb.VISIBILITY_PRIVATE,
        free=row.free,
        file_name=row.file_name,
        file_path=row.storage_key,
        size_bytes=row.size_bytes,
        mime_type=row.mime_type,
        width=row.width,
        height=row.height,
        sha256=row.sha256,
        tags=row.tags,
        scope=pb.AssetScope(
            session_id=row.session_id,
            room_id=row.room_id,
            product_id=row.product_id,
            dataset_id=row.dataset_id,
        ),
        primary=row.is_primary,
        rejection=row.rejection,
        rejection_message=row.rejection_message,
        etag=str(row.version),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        archive_time=timestamp(row.archived_at),
        delete_time=timestamp(row.deleted_at),
        expire_time=timestamp(row.expires_at),
        digital_source_type=row.source_type,
        bytes_gone_time=timestamp(row.bytes_gone_at),
    )
    if row.metadata:
        asset.metadata.CopyFrom(struct(row.metadata))
    if row.facts:
        colours = [pb.DominantColour(hex=hex_, share=share) for hex_, share in row.facts["colours"]]
        figures = {name: value for name, value in row.facts.items() if name != "colours"}
        asset.facts.CopyFrom(pb.ImageFacts(dominant_colours=colours, **figures))
    if row.provenance:
        asset.provenance.CopyFrom(pb.Provenance(**row.provenance))
    if row.credentials:
        state = CREDENTIALS_STATES.number[row.credentials["state"]]
        asset.content_credentials.CopyFrom(
            pb.ContentCredentials(**{**row.credentials, "state": state})
        )
    if urls and not unusable(row):
        asset.original_url = urls.of(row.storage_key, row.mime_type, row.file_name)
        if thumbnail:
            asset.thumbnail_url = urls.of(
                thumbnail.storage_key, thumbnail.mime_type, f"{row.file_name}.thumb"
            )
    return asset


def unusable(row: Any) -> str:
    """Why nothing new may be done with the asset; empty if it may."""
    if row.deleted_at:
        return "it is deleted; undelete it first"
    if row.state != "ready":
        return f"it is {row.state}, not ready to be used"
    return "its bytes are lost; upload it again" if row.bytes_gone_at else ""


def for_caller(asset: pb.Asset) -> pb.Asset:
    """Of a public asset others see the picture and what it is, not what its owner notes about
    it."""
    if asset.owner != auth.current().owner:
        for name in ("created_by", "file_path", "metadata", "scope"):
            asset.ClearField(name)
        if asset.HasField("provenance"):
            asset.provenance.ClearField("prompt")
            asset.provenance.ClearField("source_asset_ids")
        if asset.HasField("content_credentials"):
            asset.content_credentials.ClearField("signer_name")
    return asset


def variant_to_proto(row: Any, urls: Urls | None = None) -> pb.Variant:
    variant = pb.Variant(
        id=str(row.id),
        asset_id=str(row.asset_id),
        preset=row.preset,
        state=VARIANT_STATES.number[row.state],
        width=row.width,
        height=row.height,
        size_bytes=row.size_bytes,
        mime_type=row.mime_type,
        sha256=row.sha256,
        error_class=row.error_class,
        error_message=row.error_message,
        create_time=timestamp(row.created_at),
        wait=wait_of(row),
        update_time=timestamp(row.updated_at),
    )
    if urls and row.state == "ready":
        variant.url = urls.of(
            row.storage_key, row.mime_type, f"{row.preset}.{row.mime_type.partition('/')[2]}"
        )
    return variant


async def thumbnails(db: Database, asset_ids: Sequence[UUID]) -> Mapping[UUID, Any]:
    """Key and type of each asset's thumbnail, as far as the caller may see it and it is ready."""
    return (
        {row.asset_id: row for row in await db.rows(_THUMBNAILS, {"ids": asset_ids})}
        if asset_ids
        else {}
    )


async def shown(db: Database, rows: Sequence[Any], urls: Urls | None = None) -> list[pb.Asset]:
    """The rows as the caller may see them, as many as one answer holds; with `urls`, with
    theirs."""
    found = await thumbnails(db, [row.id for row in rows]) if urls else {}
    seen = paging.fitting(for_caller(to_proto(row, urls, found.get(row.id))) for row in rows)
    for row in rows[
        : len(seen)
    ]:  # who lists looks at thumbnails; who asks for one asset fetches it
        if urls and not unusable(row):
            fetched = found.get(row.id, row) if len(rows) > 1 else row
            urls.meter.issued(row.owner, row.session_id, fetched.size_bytes)
    return seen


async def publish(m: Mutation, row: Any) -> pb.Asset:
    """Tells of a change, if the transaction commits. Returns what is told."""
    asset = to_proto(row)
    await events.publish(m, "asset", row.id, row.version, asset)
    return asset


async def publish_variant(m: Mutation, row: Any) -> None:
    await events.publish(m, "variant", row.id, row.version, variant_to_proto(row))


async def lock(m: Mutation, asset_id: UUID, etag: str = "") -> Any:
    """The owner's asset, locked until the commit. NOT_FOUND if it isn't theirs; ETAG_MISMATCH if it
    has changed."""
    row = await m.one(_LOCK, {"id": asset_id, "owner": m.owner})
    if row is None:
        raise errors.not_found("asset", asset_id)
    if etag and etag != str(row.version):
        raise errors.etag_mismatch("asset", asset_id)
    return row


def checked_name(name: str, field: str) -> str:
    kept = names.shown(name)
    if not kept:
        raise errors.invalid(field, "has no character that can be shown")
    return kept


def _primary_lock(m: Mutation, product_id: str) -> str:
    return "\x1f".join(("primary", m.owner, product_id))


async def hold_product(m: Mutation, product_id: str) -> None:
    """Until the commit nobody else decides which image of the product is primary. Before any asset
    is locked: who decides waits for the row of the one that was."""
    await m.run(
        "SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))", (_primary_lock(m, product_id),)
    )


async def _hold_without_waiting(m: Mutation, product_id: str) -> None:
    """ABORTED with RetryInfo if an asset got into this product after the transaction held those
    that it knew of, and somebody else holds it: waiting now, with assets locked, could be a
    deadlock."""
    turn = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 1)) AS held"
    if not (await m.one(turn, (_primary_lock(m, product_id),))).held:
        text = "its product is being changed right now; nothing was changed, try again"
        raise errors.retry_later(errors.Reason.ERROR_REASON_REQUEST_IN_PROGRESS, text, 0.2)


async def _hold_primaries(m: Mutation, asset_id: UUID, product_id: str) -> None:
    """What may change when the asset becomes the primary image of its product or of `product_id`,
    locked in the one order in which everybody locks: products, then assets by id."""
    mine: dict[str, Any] = {"id": asset_id, "owner": m.owner, "product_id": product_id}
    products = [row.product_id for row in await m.all(_PRODUCTS, mine)]
    for each in products:
        await hold_product(m, each)
    await m.run(_HOLD_PRIMARIES, {**mine, "products": products})


async def make_primary(m: Mutation, asset: Any, *, only_first: bool = False) -> Any:
    """Makes the asset the one primary image of its product; with `only_first`, unless the product
    has one.

    Returns the asset's new row. One at a time per product, which the caller holds: two first images
    at once would both find none.
    """
    product = {"owner": m.owner, "product_id": asset.product_id, "id": asset.id}
    await _hold_without_waiting(m, asset.product_id)
    if only_first and await m.one(
        "SELECT id FROM assets WHERE owner = %(owner)s AND product_id = %(product_id)s AND"
        " is_primary",
        product,
    ):
        return asset
    before = await m.all(
        "UPDATE assets SET is_primary = false, version = version + 1, updated_at = now() WHERE"
        " owner = %(owner)s AND product_id = %(product_id)s AND is_primary AND id <> %(id)s"
        " RETURNING *",
        product,
    )
    for row in before:
        await publish(m, row)
    return await m.one(
        "UPDATE assets SET is_primary = true, version = version + 1, updated_at = now() WHERE id ="
        " %(id)s RETURNING *",
        {"id": asset.id},
    )


def may_lead(row: Any) -> bool:
    """Whether it becomes the primary image of a product that has none."""
    return bool(
        row.kind == "product" and row.product_id and not row.archived_at and not unusable(row)
    )


async def hand_over(m: Mutation, primaries: Sequence[Any]) -> None:
    """The oldest image that is left becomes the primary one of its product. The caller holds the
    products."""
    for gone in primaries:
        heir = await m.one(_NEXT_PRIMARY, {"owner": m.owner, "product_id": gone.product_id})
        if heir is not None:
            await publish(m, await make_primary(m, heir))


class AssetService(asset_pb2_grpc.AssetServiceServicer):
    def __init__(
        self,
        db: Database,
        stream: events.EventStream,
        storage: Storage,
        urls: Urls,
        variant: ReadyVariant,
        usage_log: usage.UsageLog,
    ) -> None:
        self._db = db
        self._stream = stream
        self._storage = storage
        self._urls = urls
        self._variant = variant
        self._usage = usage_log

    async def GetAsset(self, request: pb.GetAssetRequest, context: Any) -> pb.GetAssetResponse:
        row = await self._visible(parse_id(request.asset_id, "asset_id"))
        [asset] = await shown(self._db, [row], self._urls if request.include_urls else None)
        if request.include_urls and not unusable(row):
            self._usage.note([row], "view")
        if request.include_albums:
            held = await self._db.rows(_ALBUMS, {"id": row.id, "owner": auth.current().owner})
            asset.album_ids.extend(str(each.album_id) for each in held)
        return pb.GetAssetResponse(asset=asset)

    async def BatchGetAssets(
        self, request: pb.BatchGetAssetsRequest, context: Any
    ) -> pb.BatchGetAssetsResponse:
        ids = [UUID(text) for text in request.asset_ids]
        found = {row.id: row for row in await self._db.rows(BATCH, {"ids": ids})}
        there = [found[asset_id] for asset_id in ids if asset_id in found]
        seen = await shown(self._db, there, self._urls if request.include_urls else None)
        missing = [str(asset_id) for asset_id in ids if asset_id not in found]
        left = [str(row.id) for row in there[len(seen) :]]
        return pb.BatchGetAssetsResponse(
            assets=seen, missing_asset_ids=missing, remaining_asset_ids=left
        )

    async def ListAssets(
        self, request: pb.ListAssetsRequest, context: Any
    ) -> pb.ListAssetsResponse:
        page = paging.page(request)
        where, parameters = _filter(request)
        statement: Any = f"SELECT * FROM assets WHERE {where}{page.clause}"
        rows = await self._db.rows(statement, parameters | page.parameters)
        urls = self._urls if request.include_urls else None
        seen, token = page.fill(rows, await shown(self._db, page.cut(rows), urls))
        return pb.ListAssetsResponse(assets=seen, next_page_token=token)

    async def UpdateAsset(
        self, request: pb.UpdateAssetRequest, context: Any
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
                await _hold_primaries(m, asset_id, request.scope.product_id)
            row = await lock(m, asset_id, request.etag)
            if row.deleted_at:
                raise errors.precondition(
                    "it is deleted; undelete it first", subject=f"assets/{asset_id}"
                )
            row = await self._apply(m, row, request, move)
            await publish(m, row)
            await self._usage.write(m, [row], "update")
            return pb.UpdateAssetResponse(asset=to_proto(row))

        try:
            if "visibility" in request.update_mask.paths:
                await move.copy(self._db, public=request.visibility == pb.VISIBILITY_PUBLIC)
            response = await self._db.mutate(request, pb.UpdateAssetResponse, work)
        except (errors.DomainError, StorageError):  # surely rolled back
            await move.undo()
            raise
        except BaseException:  # the caller went, or the database: rows may show the copies
            await asyncio.shield(move.settle(self._db))
            raise
        await move.finish(response.asset.file_path)
        return response

    async def DownloadAsset(
        self, request: pb.DownloadAssetRequest, context: Any
    ) -> AsyncIterator[pb.DownloadAssetResponse]:
        asset_id = parse_id(request.asset_id, "asset_id")
        asset = row = await self._visible(asset_id)
        if row.deleted_at:
            raise errors.precondition(
                "it is deleted; undelete it first", subject=f"assets/{asset_id}"
            )
        if request.variant:
            row = await self._variant(asset_id, request.variant, context.time_remaining())
        elif problem := unusable(row):
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
        self, request: pb.WatchAssetsRequest, context: Any
    ) -> AsyncIterator[pb.WatchAssetsResponse]:
        show = partial(_change, set(request.asset_ids))
        return self._stream.watch(request, pb.WatchAssetsResponse, self._snapshot(request), show)

    async def _visible(self, asset_id: UUID) -> Any:
        row = await self._db.row(_GET, {"id": asset_id})
        if row is None:
            raise errors.not_found("asset", asset_id)
        return row

    async def _apply(
        self, m: Mutation, row: Any, request: pb.UpdateAssetRequest, move: Move
    ) -> Any:
        """Writes the masked fields. Returns the new row."""
        paths = set(request.update_mask.paths)
        columns: dict[str, Any] = {}
        if "file_name" in paths:
            columns["file_name"] = checked_name(request.file_name, "file_name")
        if "tags" in paths:
            columns["tags"] = list(request.tags)
        if "metadata" in paths:
            columns["metadata"] = Jsonb(metadata(request.metadata, "metadata"))
        if "free" in paths:
            columns["free"] = request.free
        if "scope" in paths:
            columns |= {name: getattr(request.scope, name) for name in SCOPES}
            columns["is_primary"] = row.is_primary and request.scope.product_id == row.product_id
        if "visibility" in paths:
            columns["public"] = request.visibility == pb.VISIBILITY_PUBLIC
            columns["storage_key"] = await move.switch(m, row.storage_key)
        settings = ", ".join(f"{name} = %({name})s" for name in columns)
        statement: Any = (
            "UPDATE assets SET version = version + 1, updated_at = now()"
            f"{', ' if settings else ''}{settings} WHERE id = %(id)s RETURNING *"
        )
        before, row = row, await m.one(statement, {**columns, "id": row.id})
        moved = before.product_id != row.product_id
        if "primary" in paths:
            row = await self._lead(m, row, request.primary)
        elif moved and may_lead(row):
            row = await make_primary(m, row, only_first=True)
        if moved and before.is_primary:
            await hand_over(m, [before])
        return row

    async def _lead(self, m: Mutation, row: Any, primary: bool) -> Any:
        if not primary:
            return await m.one(
                "UPDATE assets SET is_primary = false WHERE id = %(id)s RETURNING *", {"id": row.id}
            )
        if not row.product_id:
            raise errors.invalid(
                "primary", "the asset belongs to no product; set scope.product_id too"
            )
        if problem := unusable(row) or (
            "it is archived; unarchive it first" if row.archived_at else ""
        ):
            raise errors.precondition(problem, subject=f"assets/{row.id}")
        return await make_primary(m, row)

    async def _snapshot(
        self, request: pb.WatchAssetsRequest
    ) -> AsyncIterator[tuple[events.Fields, Any]]:
        """What is there now: the named assets, or the owner's recent ones; each with its
        variants."""
        ids = [UUID(text) for text in request.asset_ids]
        after: Mapping[str, Any] = {"after_at": None, "after_id": None}
        while True:
            rows = await self._db.rows(
                "SELECT * FROM assets WHERE owner = %(owner)s AND (%(all)s OR id = ANY(%(ids)s))"
                " AND (NOT %(all)s OR created_at > now() - %(age)s) AND (%(after_id)s::uuid IS NULL"
                " OR (created_at, id) > (%(after_at)s, %(after_id)s)) ORDER BY created_at, id LIMIT"
                " %(limit)s",
                {
                    "owner": auth.current().owner,
                    "all": not ids,
                    "ids": ids,
                    "age": _SNAPSHOT_AGE,
                    "limit": _SNAPSHOT_PAGE,
                    **after,
                },
            )
            variants = await self._db.rows(
                "SELECT * FROM variants WHERE asset_id = ANY(%(ids)s) ORDER BY preset",
                {"ids": [r.id for r in rows]},
            )
            for row in rows:
                yield {"asset": to_proto(row)}, row
            for row in variants:
                yield {"variant": variant_to_proto(row)}, row
            if len(rows) < _SNAPSHOT_PAGE:
                return
            after = {"after_at": rows[-1].created_at, "after_id": rows[-1].id}


def _filter(request: pb.ListAssetsRequest) -> tuple[str, dict[str, Any]]:
    """Fixed conditions for the fields that are set; values are parameters."""
    conditions = ["owner = %(owner)s", "state = %(state)s"]
    for name, hidden in (("show_archived", "archived_at"), ("show_deleted", "deleted_at")):
        if not getattr(request, name):
            conditions.append(f"{hidden} IS NULL")
        elif request.public_of_others:
            raise errors.invalid(name, "what others archived or deleted is not shown")
    if request.public_of_others:
        conditions[0] = "owner <> %(owner)s AND public"
    parameters: dict[str, Any] = {
        "owner": auth.current().owner,
        "state": STATES.word[request.state] if request.state else "ready",
    }
    if request.kind:
        conditions.append("kind = %(kind)s")
        parameters["kind"] = KINDS.word[request.kind]
    for name in SCOPES:
        if getattr(request, name):
            if request.public_of_others:
                raise errors.invalid(name, "labels of others are not searchable")
            conditions.append(f"{name} = %({name})s")
            parameters[name] = getattr(request, name)
    for field, operator in (("created_from", ">="), ("created_before", "<")):
        at = time_of(getattr(request, field), request.HasField(field), field)
        if at is not None:
            conditions.append(f"created_at {operator} %({field})s")
            parameters[field] = at
    return " AND ".join(conditions), parameters


def _change(wanted: set[str], event: events.Event) -> events.Fields | None:
    if event.subject == "asset":
        asset = pb.Asset.FromString(event.payload)
        return {"asset": asset} if not wanted or asset.id in wanted else None
    if event.subject == "purged_asset":
        purged = pb.PurgedAsset.FromString(event.payload)
        return {"purged": purged} if not wanted or purged.asset_id in wanted else None
    if event.subject != "variant":  # another noun's, in the same stream
        return None
    variant = pb.Variant.FromString(event.payload)
    return {"variant": variant} if not wanted or variant.asset_id in wanted else None
