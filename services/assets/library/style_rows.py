"""Rows of styles: the catalogue's versions and their pictures, and their messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.assets.v1 import style_pb2 as pb

from services.assets.core.asset_rows import Urls
from shared.rpc.protos import timestamp


@dataclass(slots=True)
class LockedStyle:
    """The owner's style, whose row the transaction has locked until it ends. `number`: the latest
    version's."""

    id: UUID
    slug: str
    number: int


@dataclass(slots=True)
class StyleVersion:
    """A version of a style. Lists are ordered by `created_at` and `id`: the style's in a list of
    styles, the version's in a list of versions."""

    id: UUID
    created_at: datetime
    slug: str
    latest: int
    version_id: UUID
    number: int
    name: str
    description: str
    room_types: list[str]
    palette: list[str]
    image_count: int
    made_at: datetime


@dataclass(slots=True)
class StyleImage:
    """A picture of a version, with its thumbnail, if that is ready."""

    style_version_id: UUID
    position: int
    room_type: str
    caption: str
    asset_id: UUID
    sha256: str
    mime_type: str
    width: int
    height: int
    storage_key: str
    file_name: str
    thumbnail_key: str | None
    thumbnail_type: str | None


def to_proto(row: StyleVersion, images: Sequence[pb.StyleImage]) -> pb.Style:
    return pb.Style(
        slug=row.slug,
        version_number=row.number,
        latest=row.number == row.latest,
        name=row.name,
        description=row.description,
        room_types=row.room_types,
        palette=row.palette,
        images=images,
        image_count=row.image_count,
        create_time=timestamp(row.made_at),
    )


def image_to_proto(row: StyleImage, urls: Urls | None) -> pb.StyleImage:
    image = pb.StyleImage(
        asset_id=str(row.asset_id),
        room_type=row.room_type,
        caption=row.caption,
        sha256=row.sha256,
        mime_type=row.mime_type,
        width=row.width,
        height=row.height,
    )
    if urls:
        image.image_url = urls.of(row.storage_key, row.mime_type, row.file_name)
        if row.thumbnail_key and row.thumbnail_type:
            image.thumbnail_url = urls.of(
                row.thumbnail_key, row.thumbnail_type, f"{row.file_name}.thumb"
            )
    return image
