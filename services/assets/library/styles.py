"""StyleService: a catalogue that its operator writes and everyone reads, in versions that never
change."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.assets.v1 import style_pb2 as pb
from atelier.assets.v1 import style_pb2_grpc

from services.assets.core import asset_rows
from services.assets.core.asset_rows import Urls
from services.assets.core.pages import Paged
from services.assets.library import style_rows
from services.assets.library.style_rows import LockedStyle, StyleImage, StyleVersion
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Statement
from shared.rpc import auth, errors, paging
from shared.rpc.server import Context

_VERSION = """
    s.slug, s.number AS latest, v.id AS version_id, v.number, v.name, v.description, v.room_types,
    v.palette, v.image_count, v.created_at AS made_at
"""
_LATEST = f"""
    SELECT s.id, s.created_at, {_VERSION}
    FROM styles s JOIN style_versions v ON v.style_id = s.id AND v.number = s.number
"""
_VERSIONS = f"""
    SELECT v.id, v.created_at, {_VERSION}
    FROM styles s JOIN style_versions v ON v.style_id = s.id WHERE s.slug = %(slug)s
"""
_SELECT_LATEST = Statement(StyleVersion, f"{_LATEST} WHERE s.id = %(id)s")
_SELECT_LATEST_NAMED = Statement(StyleVersion, f"{_VERSIONS} AND v.number = s.number")
_SELECT_VERSION = Statement(StyleVersion, f"{_VERSIONS} AND v.number = %(number)s")


def _pages(select: str) -> Paged[StyleVersion]:
    columns = """
        id, created_at, slug, latest, version_id, number, name, description, room_types, palette,
        image_count, made_at
    """
    return Paged(StyleVersion, f"SELECT {columns} FROM ({select}) AS found WHERE true")


# A catalogue is small: its filters need no index.
_LIST_STYLES = _pages(f"""
    {_LATEST} WHERE (%(room_type)s::text = '' OR %(room_type)s = ANY(v.room_types)
            OR v.room_types = '{{}}')
        AND (%(palette_word)s::text = '' OR %(palette_word)s = ANY(v.palette))
""")
_LIST_VERSIONS = _pages(_VERSIONS)
_IMAGES = """
    SELECT i.style_version_id, i.position, i.room_type, i.caption, a.id AS asset_id, a.sha256,
        a.mime_type, a.width, a.height, a.storage_key, a.file_name,
        t.storage_key AS thumbnail_key, t.mime_type AS thumbnail_type
    FROM style_images i JOIN assets a ON a.id = i.asset_id AND a.state = 'ready'
        AND a.deleted_at IS NULL
    LEFT JOIN variants t ON t.asset_id = a.id AND t.preset = 'thumb' AND t.state = 'ready'
    WHERE i.style_version_id = ANY(%(ids)s)
        AND (%(room_type)s::text = '' OR i.room_type = %(room_type)s)
    ORDER BY i.style_version_id, i.position
"""
_SELECT_IMAGES = Statement(StyleImage, _IMAGES)
_SELECT_FIRST_IMAGES = Statement(
    StyleImage,
    f"""
    SELECT DISTINCT ON (style_version_id) style_version_id, position, room_type, caption, asset_id,
        sha256, mime_type, width, height, storage_key, file_name, thumbnail_key, thumbnail_type
    FROM ({_IMAGES}) AS found ORDER BY style_version_id, position
    """,
)
_SELECT_STYLE = Statement(UUID, "SELECT id FROM styles WHERE slug = %(slug)s")
_SELECT_DIGEST = Statement(
    str, "SELECT digest FROM style_versions WHERE style_id = %(id)s AND number = %(number)s"
)
_INSERT_STYLE = Command("""
    INSERT INTO styles (id, owner, slug) VALUES (%(id)s, %(owner)s, %(slug)s)
    ON CONFLICT (slug) DO NOTHING
""")
_LOCK_STYLE = Statement(
    LockedStyle,
    "SELECT id, slug, number FROM styles WHERE slug = %(slug)s AND owner = %(owner)s FOR UPDATE",
)
_RAISE_NUMBER = Command("UPDATE styles SET number = number + 1 WHERE id = %(id)s")
_INSERT_VERSION = Command("""
    INSERT INTO style_versions (id, owner, style_id, number, created_by, name, description,
        room_types, palette, image_count, digest)
    VALUES (%(id)s, %(owner)s, %(style_id)s, %(number)s, %(actor)s, %(name)s, %(description)s,
        %(room_types)s, %(palette)s, %(image_count)s, %(digest)s)
""")
_INSERT_IMAGES = Command("""
    INSERT INTO style_images (owner, style_version_id, position, asset_id, room_type, caption)
    SELECT %(owner)s, %(version_id)s, n, asset_id, room_type, caption
    FROM unnest(%(ids)s::uuid[], %(room_types)s::text[], %(captions)s::text[]) WITH ORDINALITY AS
        given (asset_id, room_type, caption, n)
""")
_INSERT_REFERENCES = Command("""
    INSERT INTO asset_references (owner, asset_id, holder, service)
    SELECT DISTINCT %(owner)s, unnest(%(ids)s::uuid[]), %(holder)s, 'assets'
    ON CONFLICT DO NOTHING
""")


@dataclass(slots=True)
class _KnownPicture:
    """A public picture of kind style that the owner has already."""

    id: UUID
    sha256: str


_SELECT_KNOWN_PICTURES = Statement(
    _KnownPicture,
    """
    SELECT DISTINCT ON (sha256) id, sha256 FROM assets
    WHERE owner = %(owner)s AND kind = 'style' AND state = 'ready' AND public
        AND deleted_at IS NULL AND sha256 = ANY(%(sha256s)s)
    ORDER BY sha256, created_at, id
    """,
)


@dataclass(slots=True)
class _Picture:
    """The columns that decide whether an asset can be a style's picture."""

    id: UUID
    kind: str
    public: bool
    state: str
    deleted_at: datetime | None
    bytes_gone_at: datetime | None


# A concurrent delete waits for the lock, or came first and is seen.
_LOCK_PICTURES = Statement(
    _Picture,
    """
    SELECT id, kind, public, state, deleted_at, bytes_gone_at FROM assets
    WHERE id = ANY(%(ids)s) AND owner = %(owner)s ORDER BY id FOR SHARE
    """,
)


class StyleService(style_pb2_grpc.StyleServiceServicer):
    def __init__(self, db: Database, urls: Urls) -> None:
        self._db = db
        self._urls = urls

    async def PutStyle(self, request: pb.PutStyleRequest, context: Context) -> pb.PutStyleResponse:
        _check_room_types(request)

        async def work(m: Mutation) -> pb.PutStyleResponse:
            style = await _lock(m, request.slug)
            if request.expected_version and request.expected_version != style.number:
                text = (
                    f"the latest version of {request.slug} is {style.number}; read it, then expect"
                    " that one"
                )
                raise errors.DomainError(errors.Reason.ERROR_REASON_ETAG_MISMATCH, text)
            digest = _digest(request)
            latest = await m.first(_SELECT_DIGEST, {"id": style.id, "number": style.number})
            changed = latest != digest
            if changed:
                await _write(m, style, request, digest)
            row = await m.one(_SELECT_LATEST, {"id": style.id})
            images = await m.all(_SELECT_IMAGES, {"ids": [row.version_id], "room_type": ""})
            return pb.PutStyleResponse(style=_style(row, images, None), changed=changed)

        return await self._db.mutate(request, pb.PutStyleResponse, work)

    async def FindStylePictures(
        self, request: pb.FindStylePicturesRequest, context: Context
    ) -> pb.FindStylePicturesResponse:
        rows = await self._db.all(
            _SELECT_KNOWN_PICTURES,
            {"owner": auth.current().owner, "sha256s": list(request.sha256s)},
        )
        found = [pb.StylePicture(sha256=row.sha256, asset_id=str(row.id)) for row in rows]
        return pb.FindStylePicturesResponse(pictures=found)

    async def GetStyle(self, request: pb.GetStyleRequest, context: Context) -> pb.GetStyleResponse:
        number = request.version_number
        row = await self._db.first(
            _SELECT_VERSION if number else _SELECT_LATEST_NAMED,
            {"slug": request.slug, "number": number},
        )
        if row is None:
            raise errors.not_found("style", f"{request.slug}/{number}" if number else request.slug)
        images = await self._db.all(
            _SELECT_IMAGES, {"ids": [row.version_id], "room_type": request.room_type}
        )
        urls = self._urls if request.include_urls else None
        return pb.GetStyleResponse(style=_style(row, images, urls))

    async def ListStyles(
        self, request: pb.ListStylesRequest, context: Context
    ) -> pb.ListStylesResponse:
        filters = {"room_type": request.room_type, "palette_word": request.palette_word}
        styles, token = await self._listed(_LIST_STYLES, filters, request)
        return pb.ListStylesResponse(styles=styles, next_page_token=token)

    async def ListStyleVersions(
        self, request: pb.ListStyleVersionsRequest, context: Context
    ) -> pb.ListStyleVersionsResponse:
        named = {"slug": request.slug}
        styles, token = await self._listed(_LIST_VERSIONS, named, request)
        if not styles and await self._db.first(_SELECT_STYLE, named) is None:
            raise errors.not_found("style", request.slug)
        return pb.ListStyleVersionsResponse(styles=styles, next_page_token=token)

    async def _listed(
        self,
        paged: Paged[StyleVersion],
        filters: Mapping[str, str],
        request: pb.ListStylesRequest | pb.ListStyleVersionsRequest,
    ) -> tuple[list[pb.Style], str]:
        """Returns a page of styles, each with its first picture, and the next page's token."""
        page = paging.page(request)
        rows = await self._db.all(paged.of(page), {**filters, **page.parameters})
        ids = [row.version_id for row in page.cut(rows)]
        images = await self._db.all(_SELECT_FIRST_IMAGES, {"ids": ids, "room_type": ""})
        urls = self._urls if request.include_urls else None
        first = {image.style_version_id: [image] for image in images}
        return page.fill(rows, (_style(row, first.get(row.version_id, ()), urls) for row in rows))


def _style(row: StyleVersion, images: Sequence[StyleImage], urls: Urls | None) -> pb.Style:
    return style_rows.to_proto(row, [style_rows.image_to_proto(image, urls) for image in images])


def _check_room_types(request: pb.PutStyleRequest) -> None:
    """Raises INVALID_ARGUMENT for a picture of a room type that the style isn't for: nobody would
    ever find it."""
    for index, image in enumerate(request.images):
        if image.room_type and request.room_types and image.room_type not in request.room_types:
            text = f"{image.room_type!r} is none of the style's room types; add it to room_types"
            raise errors.invalid(f"images[{index}].room_type", text)


def _digest(request: pb.PutStyleRequest) -> str:
    """Returns a digest of all that a version says."""
    said = [
        request.name,
        request.description,
        list(request.room_types),
        list(request.palette),
        [[str(UUID(image.asset_id)), image.room_type, image.caption] for image in request.images],
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


async def _lock(m: Mutation, slug: str) -> LockedStyle:
    """Locks and returns the operator's style, which is made if there is none yet. Concurrent puts
    of one style are serialised."""
    named = {"slug": slug, "owner": m.owner}
    await m.run(_INSERT_STYLE, {**named, "id": new_id()})
    style = await m.first(_LOCK_STYLE, named)
    if style is None:
        text = (
            f"the style {slug!r} belongs to another operator's owner; use a token with that owner,"
            " or another slug"
        )
        raise errors.already_exists("style", slug, text)
    return style


async def _write(m: Mutation, style: LockedStyle, request: pb.PutStyleRequest, digest: str) -> None:
    """Adds the next version, with references to its pictures."""
    ids = [UUID(image.asset_id) for image in request.images]
    await _check_pictures(m, ids)
    version_id = new_id()
    await m.run(_RAISE_NUMBER, {"id": style.id})
    version = {
        "id": version_id,
        "owner": m.owner,
        "style_id": style.id,
        "number": style.number + 1,
        "actor": m.actor,
        "name": request.name,
        "description": request.description,
        "room_types": list(request.room_types),
        "palette": list(request.palette),
        "image_count": len(ids),
        "digest": digest,
    }
    await m.run(_INSERT_VERSION, version)
    images = {
        "owner": m.owner,
        "version_id": version_id,
        "ids": ids,
        "room_types": [image.room_type for image in request.images],
        "captions": [image.caption for image in request.images],
    }
    await m.run(_INSERT_IMAGES, images)
    held = {"owner": m.owner, "ids": ids, "holder": f"assets/styles/{style.slug}"}
    await m.run(_INSERT_REFERENCES, held)


async def _check_pictures(m: Mutation, ids: Sequence[UUID]) -> None:
    rows = await m.all(_LOCK_PICTURES, {"ids": list(ids), "owner": m.owner})
    found = {row.id: row for row in rows}
    for index, asset_id in enumerate(ids):
        row = found.get(asset_id)
        if row is None:
            raise errors.not_found("asset", asset_id)
        if row.kind != "style":
            text = f"{asset_id} is of kind {row.kind}; upload the picture with kind style"
            raise errors.invalid(f"images[{index}].asset_id", text)
        if problem := asset_rows.unusable(row) or (
            "" if row.public else "it is private; make it public first"
        ):
            text = f"images[{index}]: {problem}"
            raise errors.precondition(text, subject=f"assets/{asset_id}")
