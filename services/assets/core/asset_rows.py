"""Rows of assets and variants, with their messages, URLs, locks and events, for all modules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Protocol
from uuid import UUID

import sqlalchemy as sa
from atelier.assets.v1 import asset_pb2 as pb

from services.assets.core import rules
from services.assets.core.bandwidth import Meter
from shared.background import events
from shared.database.db import Database, Mutation
from shared.database.rows import Statement, Table, compiled
from shared.formats import names
from shared.rpc import auth, errors, paging
from shared.rpc.protos import EnumNames, struct, timestamp, wait_of
from shared.storage import Storage

KINDS = EnumNames(pb.AssetKind, "ASSET_KIND_")
STATES = EnumNames(pb.AssetState, "ASSET_STATE_")
VARIANT_STATES = EnumNames(pb.VariantState, "VARIANT_STATE_")
CREDENTIALS_STATES = EnumNames(pb.CredentialsState, "CREDENTIALS_STATE_")
SCOPES = ("session_id", "room_id", "product_id", "dataset_id")


@dataclass(slots=True)
class Asset:
    id: UUID
    owner: str
    created_by: str
    kind: str
    state: str
    version: int
    public: bool
    free: bool
    file_name: str
    storage_key: str
    size_bytes: int
    mime_type: str
    width: int
    height: int
    sha256: str
    tags: list[str]
    metadata: dict[str, Any]  # the owner's JSON
    session_id: str
    room_id: str
    product_id: str
    dataset_id: str
    is_primary: bool
    facts: dict[str, Any] | None  # made by `verifying.stored_facts`
    provenance: dict[str, Any] | None  # the fields of a Provenance
    credentials: dict[str, Any] | None  # the fields of ContentCredentials; `state` is a word
    source_type: str
    rejection: str
    rejection_message: str
    archived_at: datetime | None
    deleted_at: datetime | None
    expires_at: datetime | None
    hidden_public: bool
    bytes_gone_at: datetime | None
    created_at: datetime
    updated_at: datetime


class LockedAsset(Asset):
    """An asset whose row the transaction has locked until it ends."""

    __slots__ = ()


@dataclass(slots=True)
class Variant:
    id: UUID
    owner: str
    asset_id: UUID
    preset: str
    state: str
    version: int
    storage_key: str
    mime_type: str
    width: int
    height: int
    size_bytes: int
    sha256: str
    error_class: str
    error_message: str
    created_at: datetime
    updated_at: datetime
    waits_for: str
    waiting_since: datetime | None


@dataclass(slots=True)
class Thumbnail:
    """The storage key, media type and size of an asset's thumbnail."""

    asset_id: UUID
    storage_key: str
    mime_type: str
    size_bytes: int


ASSETS = Table("assets", LockedAsset)
VARIANTS = Table("variants", Variant)

SELECT_ASSET = Statement(Asset, f"SELECT {ASSETS.columns} FROM assets WHERE id = %(id)s")
"""Selects the asset, if the caller may see it."""
SELECT_ASSETS = Statement(Asset, f"SELECT {ASSETS.columns} FROM assets WHERE id = ANY(%(ids)s)")
"""Selects those of the assets that the caller may see, in no particular order."""

_SELECT_THUMBNAILS = Statement(
    Thumbnail,
    """
    SELECT asset_id, storage_key, mime_type, size_bytes FROM variants
    WHERE asset_id = ANY(%(ids)s) AND preset = 'thumb' AND state = 'ready'
    """,
)
_LOCK_ASSET = Statement(
    LockedAsset,
    f"SELECT {ASSETS.columns} FROM assets WHERE id = %(id)s AND owner = %(owner)s FOR UPDATE",
)


@dataclass(frozen=True)
class Urls:
    """Makes URLs on request; URLs are never stored."""

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


def to_proto(row: Asset, urls: Urls | None = None, thumbnail: Thumbnail | None = None) -> pb.Asset:
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
    _fill_in_json(asset, row)
    if urls and not unusable(row):
        _fill_in_urls(asset, row, urls, thumbnail)
    return asset


def _fill_in_json(asset: pb.Asset, row: Asset) -> None:
    """Sets the fields whose columns hold JSON."""
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


def _fill_in_urls(asset: pb.Asset, row: Asset, urls: Urls, thumbnail: Thumbnail | None) -> None:
    asset.original_url = urls.of(row.storage_key, row.mime_type, row.file_name)
    if thumbnail:
        asset.thumbnail_url = urls.of(
            thumbnail.storage_key, thumbnail.mime_type, f"{row.file_name}.thumb"
        )


class Labels(Protocol):
    """The scope labels of an asset, which a row, a request and an `AssetScope` carry."""

    @property
    def session_id(self) -> str: ...
    @property
    def room_id(self) -> str: ...
    @property
    def product_id(self) -> str: ...
    @property
    def dataset_id(self) -> str: ...


def scope_of(labels: Labels) -> dict[str, str]:
    return {
        "session_id": labels.session_id,
        "room_id": labels.room_id,
        "product_id": labels.product_id,
        "dataset_id": labels.dataset_id,
    }


class Condition(Protocol):
    """The columns of an asset that decide whether it can be used."""

    @property
    def state(self) -> str: ...
    @property
    def deleted_at(self) -> datetime | None: ...
    @property
    def bytes_gone_at(self) -> datetime | None: ...


def unusable(row: Condition) -> str:
    """Returns why nothing new may be done with the asset; empty if the asset is usable."""
    if row.deleted_at:
        return "it is deleted; undelete it first"
    if row.state != "ready":
        return f"it is {row.state}, not ready to be used"
    return "its bytes are lost; upload it again" if row.bytes_gone_at else ""


def for_caller(asset: pb.Asset) -> pb.Asset:
    """Clears the fields that only the owner may see, unless the caller is the owner."""
    if asset.owner != auth.current().owner:
        for name in ("created_by", "file_path", "metadata", "scope"):
            asset.ClearField(name)
        if asset.HasField("provenance"):
            asset.provenance.ClearField("prompt")
            asset.provenance.ClearField("source_asset_ids")
        if asset.HasField("content_credentials"):
            asset.content_credentials.ClearField("signer_name")
    return asset


def variant_to_proto(row: Variant, urls: Urls | None = None) -> pb.Variant:
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


async def thumbnails(db: Database, asset_ids: Sequence[UUID]) -> Mapping[UUID, Thumbnail]:
    """Returns, by asset id, the thumbnails that are READY and that the caller may see."""
    if not asset_ids:
        return {}
    rows = await db.all(_SELECT_THUMBNAILS, {"ids": asset_ids})
    return {row.asset_id: row for row in rows}


async def shown(db: Database, rows: Sequence[Asset], urls: Urls | None = None) -> list[pb.Asset]:
    """Returns the messages of the rows as the caller may see them, as many as one answer holds.
    With `urls` they carry URLs, which are counted as issued."""
    found = await thumbnails(db, [row.id for row in rows]) if urls else {}
    seen = paging.fitting(for_caller(to_proto(row, urls, found.get(row.id))) for row in rows)
    if urls:
        for row in rows[: len(seen)]:
            if not unusable(row):
                # A list is read for its thumbnails; a single asset is fetched itself.
                fetched = found.get(row.id, row) if len(rows) > 1 else row
                urls.meter.issued(row.owner, row.session_id, fetched.size_bytes)
    return seen


async def publish(m: Mutation, row: Asset) -> pb.Asset:
    """Publishes the asset's state in the transaction. Returns the message."""
    asset = to_proto(row)
    await events.publish(m, "asset", row.id, row.version, asset)
    return asset


async def publish_all(m: Mutation, rows: Sequence[Asset]) -> None:
    """Publishes the states of many assets in one statement."""
    await events.publish_all(m, "asset", [(row.id, row.version, to_proto(row)) for row in rows])


async def publish_variant(m: Mutation, row: Variant) -> None:
    await events.publish(m, "variant", row.id, row.version, variant_to_proto(row))


async def lock(m: Mutation, asset_id: UUID, etag: str = "") -> LockedAsset:
    """Returns the owner's asset, locked until the commit. Raises NOT_FOUND if the owner has no such
    asset, ETAG_MISMATCH if its version isn't `etag`."""
    row = await m.first(_LOCK_ASSET, {"id": asset_id, "owner": m.owner})
    if row is None:
        raise errors.not_found("asset", asset_id)
    errors.check_etag(etag, row.version, "asset", asset_id)
    return row


async def update(m: Mutation, asset: LockedAsset, **columns: object) -> LockedAsset:
    """Sets columns of the asset, raises its version, and returns the new row."""
    return await m.one(_update(tuple(columns)), {**columns, "row_id": asset.id})


@cache
def _update(columns: tuple[str, ...]) -> Statement[LockedAsset]:
    row = ASSETS.core.c
    values: dict[str, sa.ColumnElement[Any]] = {name: sa.bindparam(name) for name in columns}
    values |= {"version": row.version + sa.literal_column("1"), "updated_at": sa.func.now()}
    where = row.id == sa.bindparam("row_id")
    return compiled(LockedAsset, sa.update(ASSETS.core).values(values).where(where).returning(*row))


def checked_name(name: str, field: str) -> str:
    kept = names.shown(name)
    if not kept:
        raise errors.invalid(field, "has no character that can be shown")
    return kept
