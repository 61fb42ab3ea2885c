"""Styles: a catalogue that its operator writes and everyone reads, in versions that never
change."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from atelier.assets.v1 import style_pb2 as pb
from atelier.assets.v1 import style_pb2_grpc

from services.assets.core import asset_rows
from shared.database.db import Database, Mutation
from shared.database.ids import new_id
from shared.rpc import auth, errors, paging
from shared.rpc.protos import timestamp

# `created_at` and `id` are what a list goes by: of styles the style's, of versions the version's.
_LATEST = """
    SELECT s.id, s.created_at, s.slug, s.number AS latest, v.id AS version_id, v.number, v.name,
        v.description,
        v.room_types, v.palette, v.image_count, v.created_at AS made_at
    FROM styles s JOIN style_versions v ON v.style_id = s.id AND v.number = s.number
"""
_VERSIONS = """
    SELECT v.id, v.created_at, s.slug, s.number AS latest, v.id AS version_id, v.number, v.name,
        v.description,
        v.room_types, v.palette, v.image_count, v.created_at AS made_at
    FROM styles s JOIN style_versions v ON v.style_id = s.id WHERE s.slug = %(slug)s
"""
_IMAGES = """
    SELECT i.style_version_id, i.position, i.room_type, i.caption, a.id AS asset_id, a.sha256,
        a.mime_type, a.width,
        a.height, a.storage_key, a.file_name, t.storage_key AS thumbnail_key,
            t.mime_type AS thumbnail_type
    FROM style_images i JOIN assets a ON a.id = i.asset_id AND a.state = 'ready'
        AND a.deleted_at IS NULL
    LEFT JOIN variants t ON t.asset_id = a.id AND t.preset = 'thumb' AND t.state = 'ready'
    WHERE i.style_version_id = ANY(%(ids)s) AND (%(room_type)s = '' OR i.room_type = %(room_type)s)
    ORDER BY i.style_version_id, i.position
"""
_FIRST_IMAGES = (
    f"SELECT DISTINCT ON (style_version_id) * FROM ({_IMAGES}) AS found ORDER BY style_version_id,"
    " position"
)


def to_proto(row: Any, images: Sequence[pb.StyleImage]) -> pb.Style:
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


def _image(row: Any, urls: asset_rows.Urls | None) -> pb.StyleImage:
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
        if row.thumbnail_key:
            image.thumbnail_url = urls.of(
                row.thumbnail_key, row.thumbnail_type, f"{row.file_name}.thumb"
            )
    return image


class StyleService(style_pb2_grpc.StyleServiceServicer):
    def __init__(self, db: Database, urls: asset_rows.Urls) -> None:
        self._db = db
        self._urls = urls

    async def PutStyle(self, request: pb.PutStyleRequest, context: Any) -> pb.PutStyleResponse:
        _check_room_types(request)

        async def work(m: Mutation) -> pb.PutStyleResponse:
            style = await _locked(m, request.slug)
            if request.expected_version and request.expected_version != style.number:
                text = (
                    f"the latest version of {request.slug} is {style.number}; read it, then expect"
                    " that one"
                )
                raise errors.DomainError(errors.Reason.ERROR_REASON_ETAG_MISMATCH, text)
            digest = _digest(request)
            latest = await m.one(
                "SELECT digest FROM style_versions WHERE style_id = %s AND number = %s",
                (style.id, style.number),
            )
            changed = latest is None or latest.digest != digest
            if changed:
                await _write(m, style, request, digest)
            row = await m.one(f"{_LATEST} WHERE s.id = %s", (style.id,))
            images = await m.all(_IMAGES, {"ids": [row.version_id], "room_type": ""})
            return pb.PutStyleResponse(
                style=to_proto(row, [_image(each, None) for each in images]), changed=changed
            )

        return await self._db.mutate(request, pb.PutStyleResponse, work)

    async def FindStylePictures(
        self, request: pb.FindStylePicturesRequest, context: Any
    ) -> pb.FindStylePicturesResponse:
        rows = await self._db.rows(
            "SELECT DISTINCT ON (sha256) sha256, id FROM assets WHERE owner = %(owner)s AND kind ="
            " 'style' AND state = 'ready' AND public AND deleted_at IS NULL AND sha256 ="
            " ANY(%(sha256s)s) ORDER BY sha256, created_at, id",
            {"owner": auth.current().owner, "sha256s": list(request.sha256s)},
        )
        found = [pb.StylePicture(sha256=row.sha256, asset_id=str(row.id)) for row in rows]
        return pb.FindStylePicturesResponse(pictures=found)

    async def GetStyle(self, request: pb.GetStyleRequest, context: Any) -> pb.GetStyleResponse:
        which = "v.number = %(number)s" if request.version_number else "v.number = s.number"
        statement: Any = f"{_VERSIONS} AND {which}"
        row = await self._db.row(
            statement, {"slug": request.slug, "number": request.version_number}
        )
        if row is None:
            named = (
                f"{request.slug}/{request.version_number}"
                if request.version_number
                else request.slug
            )
            raise errors.not_found("style", named)
        images = await self._db.rows(
            _IMAGES, {"ids": [row.version_id], "room_type": request.room_type}
        )
        urls = self._urls if request.include_urls else None
        return pb.GetStyleResponse(style=to_proto(row, [_image(each, urls) for each in images]))

    async def ListStyles(
        self, request: pb.ListStylesRequest, context: Any
    ) -> pb.ListStylesResponse:
        where, parameters = ["true"], {"room_type": request.room_type, "word": request.palette_word}
        if request.room_type:
            where.append("(%(room_type)s = ANY(v.room_types) OR v.room_types = '{}')")
        if request.palette_word:
            where.append("%(word)s = ANY(v.palette)")
        listed = await self._listed(f"{_LATEST} WHERE {' AND '.join(where)}", parameters, request)
        return pb.ListStylesResponse(styles=listed[0], next_page_token=listed[1])

    async def ListStyleVersions(
        self, request: pb.ListStyleVersionsRequest, context: Any
    ) -> pb.ListStyleVersionsResponse:
        styles, token = await self._listed(_VERSIONS, {"slug": request.slug}, request)
        if (
            not styles
            and await self._db.row("SELECT id FROM styles WHERE slug = %s", (request.slug,)) is None
        ):
            raise errors.not_found("style", request.slug)
        return pb.ListStyleVersionsResponse(styles=styles, next_page_token=token)

    async def _listed(
        self, select: str, parameters: Mapping[str, Any], request: Any
    ) -> tuple[list[pb.Style], str]:
        """A page of styles, each with its first picture, and the next page's token."""
        page = paging.page(request)
        statement: Any = f"SELECT * FROM ({select}) AS found WHERE true{page.clause}"
        rows = await self._db.rows(statement, {**parameters, **page.parameters})
        ids = [row.version_id for row in page.cut(rows)]
        firsts = await self._db.rows(_FIRST_IMAGES, {"ids": ids, "room_type": ""})
        urls = self._urls if request.include_urls else None
        first = {row.style_version_id: [_image(row, urls)] for row in firsts}
        return page.fill(rows, (to_proto(row, first.get(row.version_id, [])) for row in rows))


def _check_room_types(request: pb.PutStyleRequest) -> None:
    """Pictures of rooms that the style isn't for would never be found."""
    for index, image in enumerate(request.images):
        if image.room_type and request.room_types and image.room_type not in request.room_types:
            text = f"{image.room_type!r} is none of the style's room types; add it to room_types"
            raise errors.invalid(f"images[{index}].room_type", text)


def _digest(request: pb.PutStyleRequest) -> str:
    """Of all that a version says."""
    said = [
        request.name,
        request.description,
        list(request.room_types),
        list(request.palette),
        [[str(UUID(image.asset_id)), image.room_type, image.caption] for image in request.images],
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


async def _locked(m: Mutation, slug: str) -> Any:
    """The operator's style, made if there is none yet. Puts of one style go one after the other."""
    await m.run(
        "INSERT INTO styles (id, owner, slug) VALUES (%s, %s, %s) ON CONFLICT (slug) DO NOTHING",
        (new_id(), m.owner, slug),
    )
    style = await m.one(
        "SELECT * FROM styles WHERE slug = %s AND owner = %s FOR UPDATE", (slug, m.owner)
    )
    if style is None:
        text = (
            f"the style {slug!r} belongs to another operator's owner; use a token with that owner,"
            " or another slug"
        )
        raise errors.already_exists("style", slug, text)
    return style


async def _write(m: Mutation, style: Any, request: pb.PutStyleRequest, digest: str) -> None:
    """The next version, which holds its pictures."""
    ids = [UUID(image.asset_id) for image in request.images]
    await _check_pictures(m, ids)
    version_id = new_id()
    await m.run("UPDATE styles SET number = number + 1 WHERE id = %s", (style.id,))
    await m.run(
        "INSERT INTO style_versions (id, owner, style_id, number, created_by, name, description,"
        " room_types, palette, image_count, digest) VALUES (%(id)s, %(owner)s, %(style_id)s,"
        " %(number)s, %(actor)s, %(name)s, %(description)s, %(room_types)s, %(palette)s,"
        " %(image_count)s, %(digest)s)",
        {
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
        },
    )
    await m.run(
        "INSERT INTO style_images (owner, style_version_id, position, asset_id, room_type, caption)"
        " SELECT %(owner)s, %(version_id)s, n, asset_id, room_type, caption FROM"
        " unnest(%(ids)s::uuid[], %(room_types)s::text[], %(captions)s::text[]) WITH ORDINALITY AS"
        " given (asset_id, room_type, caption, n)",
        {
            "owner": m.owner,
            "version_id": version_id,
            "ids": ids,
            "room_types": [image.room_type for image in request.images],
            "captions": [image.caption for image in request.images],
        },
    )
    await m.run(
        "INSERT INTO asset_references (owner, asset_id, holder) SELECT DISTINCT %(owner)s,"
        " unnest(%(ids)s::uuid[]), %(holder)s ON CONFLICT DO NOTHING",
        {"owner": m.owner, "ids": ids, "holder": f"assets/styles/{style.slug}"},
    )


async def _check_pictures(m: Mutation, ids: Sequence[UUID]) -> None:
    # A delete waits for the lock, or was first and is seen.
    locked = "SELECT * FROM assets WHERE id = ANY(%s) AND owner = %s ORDER BY id FOR SHARE"
    rows = await m.all(locked, (list(ids), m.owner))
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
