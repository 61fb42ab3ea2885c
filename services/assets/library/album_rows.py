"""Rows of albums and of the assets in them, and an album's message."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.assets.v1 import album_pb2 as pb
from atelier.assets.v1 import asset_pb2

from services.assets.core.asset_rows import Asset, Thumbnail, Urls
from shared.database.rows import Table
from shared.rpc import auth
from shared.rpc.protos import timestamp


@dataclass(slots=True)
class Album:
    id: UUID
    owner: str
    name: str
    name_key: str  # the name without case: names are compared by it
    description: str
    public: bool
    version: int
    cover_asset_id: UUID | None  # chosen by the owner
    asset_count: int
    public_count: int
    created_at: datetime
    updated_at: datetime


ALBUMS = Table("albums", Album)


@dataclass(slots=True)
class ShownAlbum(Album):
    """An album with the cover that the caller sees."""

    cover: UUID | None


@dataclass(slots=True)
class AlbumAsset(Asset):
    """An asset in an album."""

    position: int


@dataclass(slots=True)
class AlbumFile:
    """The columns of an asset that a download needs. It keeps up to ten thousand rows until its
    last byte was read, and the owner's metadata of each would take up to 16 KiB more."""

    id: UUID
    owner: str
    session_id: str
    file_name: str
    storage_key: str
    size_bytes: int
    sha256: str
    mime_type: str


@dataclass(slots=True)
class AlbumVariant:
    """A variant that a download takes instead of the original."""

    asset_id: UUID
    storage_key: str
    size_bytes: int
    sha256: str
    mime_type: str


def to_proto(
    row: ShownAlbum, urls: Urls | None = None, thumbnail: Thumbnail | None = None
) -> pb.Album:
    mine = row.owner == auth.current().owner
    album = pb.Album(
        id=str(row.id),
        owner=row.owner,
        name=row.name,
        description=row.description,
        visibility=asset_pb2.VISIBILITY_PUBLIC if row.public else asset_pb2.VISIBILITY_PRIVATE,
        asset_count=row.asset_count if mine else row.public_count,
        cover_asset_id=str(row.cover) if row.cover else "",
        create_time=timestamp(row.created_at),
        etag=str(row.version),
        update_time=timestamp(row.updated_at),
    )
    if not mine:  # these would reveal changes of private assets
        album.ClearField("etag")
        album.ClearField("update_time")
    if urls and thumbnail:
        album.cover_url = urls.of(thumbnail.storage_key, thumbnail.mime_type, f"{row.name}.thumb")
    return album
