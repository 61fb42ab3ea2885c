"""AlbumService: collects an owner's images under a name. The database counts the assets in an
album, and those that others see."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

import psycopg
import sqlalchemy as sa
from atelier.assets.v1 import album_pb2 as pb
from atelier.assets.v1 import album_pb2_grpc, asset_pb2

from services.assets.core import asset_rows, rules
from services.assets.core.asset_rows import ASSETS, Urls
from services.assets.core.pages import Paged
from services.assets.core.usage_log import UsageLog
from services.assets.library import album_rows
from services.assets.library.album_rows import (
    ALBUMS,
    AlbumAsset,
    AlbumFile,
    AlbumVariant,
    ShownAlbum,
)
from services.assets.library.album_zip import AlbumZip
from services.assets.variants.presets import Presets
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.database.rows import Command, Statement, compiled
from shared.rpc import auth, errors, paging
from shared.rpc.server import Context
from shared.storage import Storage

MOST_ASSETS = 10_000  # in one album

# The cover is the owner's choice while the caller can see it in the album, else the first asset.
_SELECT_SHOWN = f"""
    SELECT {ALBUMS.of("a")}, coalesce(
        (SELECT i.asset_id FROM album_assets i WHERE i.album_id = a.id AND i.asset_id
            = a.cover_asset_id AND i.shown
             AND (i.public OR a.owner = %(me)s)),
        (SELECT i.asset_id FROM album_assets i WHERE i.album_id = a.id AND i.shown AND (i.public
            OR a.owner = %(me)s)
         ORDER BY i.position LIMIT 1)) AS cover
    FROM albums a
"""
_SELECT_ALBUM = Statement(ShownAlbum, f"{_SELECT_SHOWN} WHERE a.id = %(id)s")
_LIST_MINE = Paged(ShownAlbum, f"{_SELECT_SHOWN} WHERE a.owner = %(me)s")
_LIST_PUBLIC_OF_OTHERS = Paged(ShownAlbum, f"{_SELECT_SHOWN} WHERE a.owner <> %(me)s AND a.public")
_LOCK_ALBUM = Statement(
    int, "SELECT version FROM albums WHERE id = %(id)s AND owner = %(owner)s FOR UPDATE"
)
_SELECT_NAMED = Statement(
    UUID, "SELECT id FROM albums WHERE owner = %(owner)s AND name_key = %(name_key)s"
)
_INSERT_ALBUM = Statement(
    ShownAlbum,
    f"""
    INSERT INTO albums (id, owner, name, name_key, description, public)
    VALUES (%(id)s, %(owner)s, %(name)s, %(name_key)s, %(description)s, %(public)s)
    ON CONFLICT ON CONSTRAINT albums_name DO NOTHING RETURNING {ALBUMS.columns}, NULL::uuid AS cover
    """,
)
_DELETE_ALBUM = Command("DELETE FROM albums WHERE id = %(id)s")


@dataclass(slots=True)
class _NewMember:
    """An asset that is to be added, and whether it can be."""

    id: UUID
    public: bool
    usable: bool


@dataclass(slots=True)
class _Members:
    """How many assets are in an album, their last position, and which of the named ones are
    there."""

    members: int
    last: int
    there: list[UUID]


# An asset's state and visibility must not change until it is in the album. Assets are locked before
# albums, as everywhere.
_LOCK_ASSETS = Statement(
    _NewMember,
    """
    SELECT id, public, state = 'ready' AND deleted_at IS NULL AND archived_at IS NULL AS usable
        FROM assets
    WHERE owner = %(owner)s AND id = ANY(%(ids)s) ORDER BY id FOR SHARE
    """,
)
_SELECT_MEMBERS = Statement(
    _Members,
    """
    SELECT count(*) AS members, coalesce(max(position), 0) AS last,
           coalesce(array_agg(asset_id) FILTER (WHERE asset_id = ANY(%(ids)s)), '{}') AS there
    FROM album_assets WHERE album_id = %(album_id)s
    """,
)
_SELECT_MEMBER = Statement(
    UUID,
    """
    SELECT asset_id FROM album_assets WHERE album_id = %(album_id)s AND asset_id = %(asset_id)s
    """,
)
_INSERT_MEMBERS = Command("""
    INSERT INTO album_assets (owner, album_id, asset_id, position, shown, public)
    SELECT %(owner)s, %(album_id)s, id, %(last)s + n, true, public
    FROM unnest(%(ids)s::uuid[], %(public)s::boolean[]) WITH ORDINALITY AS added (id, public, n)
""")
_DELETE_MEMBERS = Statement(
    UUID,
    """
    DELETE FROM album_assets WHERE album_id = %(album_id)s AND asset_id = ANY(%(ids)s)
    RETURNING asset_id
    """,
)
_INSIDE = """
    FROM album_assets i JOIN assets a ON a.id = i.asset_id
    WHERE i.album_id = %(album_id)s AND i.shown AND (%(mine)s OR i.public) AND i.position
        > %(after)s
    ORDER BY i.position LIMIT %(limit)s
"""
_LIST_ASSETS = Statement(AlbumAsset, f"SELECT {ASSETS.of('a')}, i.position {_INSIDE}")
_LIST_FILES = Statement(
    AlbumFile,
    f"""
    SELECT a.id, a.owner, a.session_id, a.file_name, a.storage_key, a.size_bytes, a.sha256,
        a.mime_type {_INSIDE}
    """,
)
_SELECT_VARIANTS = Statement(
    AlbumVariant,
    """
    SELECT asset_id, storage_key, size_bytes, sha256, mime_type FROM variants
    WHERE asset_id = ANY(%(ids)s) AND preset = %(preset)s AND state = 'ready'
    """,
)


@cache
def _update(columns: tuple[str, ...]) -> Statement[UUID]:
    row = ALBUMS.core.c
    values: dict[str, sa.ColumnElement[Any]] = {name: sa.bindparam(name) for name in columns}
    values |= {"version": row.version + sa.literal_column("1"), "updated_at": sa.func.now()}
    where = row.id == sa.bindparam("row_id")
    return compiled(UUID, sa.update(ALBUMS.core).values(values).where(where).returning(row.id))


class AlbumService(album_pb2_grpc.AlbumServiceServicer):
    def __init__(
        self,
        db: Database,
        storage: Storage,
        urls: Urls,
        presets: Presets,
        usage_log: UsageLog,
    ) -> None:
        self._db = db
        self._storage = storage
        self._urls = urls
        self._presets = presets
        self._usage = usage_log

    async def CreateAlbum(
        self, request: pb.CreateAlbumRequest, context: Context
    ) -> pb.CreateAlbumResponse:
        name = _checked_name(request.name)

        async def work(m: Mutation) -> pb.CreateAlbumResponse:
            values = {
                "id": new_id(),
                "owner": m.owner,
                "name": name,
                "name_key": rules.name_key(name),
                "description": request.description,
                "public": request.visibility == asset_pb2.VISIBILITY_PUBLIC,
            }
            row = await m.first(_INSERT_ALBUM, values)
            if row is None:
                raise _taken(name, await _named(m, name))
            return pb.CreateAlbumResponse(album=album_rows.to_proto(row))

        return await self._db.mutate(request, pb.CreateAlbumResponse, work)

    async def GetAlbum(self, request: pb.GetAlbumRequest, context: Context) -> pb.GetAlbumResponse:
        row = await self._visible(parse_id(request.album_id, "album_id"))
        [album] = await self._shown([row], request.include_urls)
        return pb.GetAlbumResponse(album=album)

    async def ListAlbums(
        self, request: pb.ListAlbumsRequest, context: Context
    ) -> pb.ListAlbumsResponse:
        page = paging.page(request)
        listed = _LIST_PUBLIC_OF_OTHERS if request.public_of_others else _LIST_MINE
        rows = await self._db.all(listed.of(page), {"me": auth.current().owner, **page.parameters})
        found, token = page.fill(rows, await self._shown(page.cut(rows), request.include_urls))
        return pb.ListAlbumsResponse(albums=found, next_page_token=token)

    async def UpdateAlbum(
        self, request: pb.UpdateAlbumRequest, context: Context
    ) -> pb.UpdateAlbumResponse:
        album_id = parse_id(request.album_id, "album_id")
        name = _checked_name(request.name) if "name" in request.update_mask.paths else None
        columns = _columns(request, name)

        async def work(m: Mutation) -> pb.UpdateAlbumResponse:
            await _lock(m, album_id, request.etag)
            if columns.get("cover_asset_id"):
                await _check_member(m, album_id, UUID(request.cover_asset_id))
            if name is not None and (other := await _named(m, name)) not in (None, album_id):
                raise _taken(name, other)
            try:
                await m.one(_update(tuple(columns)), {**columns, "row_id": album_id})
            except psycopg.errors.UniqueViolation:  # a concurrent call took the name
                raise _taken(name or "", None) from None
            return pb.UpdateAlbumResponse(album=await _read(m, album_id))

        return await self._db.mutate(request, pb.UpdateAlbumResponse, work)

    async def DeleteAlbum(
        self, request: pb.DeleteAlbumRequest, context: Context
    ) -> pb.DeleteAlbumResponse:
        album_id = parse_id(request.album_id, "album_id")

        async def work(m: Mutation) -> pb.DeleteAlbumResponse:
            await _lock(m, album_id, request.etag)
            await m.run(_DELETE_ALBUM, {"id": album_id})
            return pb.DeleteAlbumResponse()

        return await self._db.mutate(request, pb.DeleteAlbumResponse, work)

    async def AddAlbumAssets(
        self, request: pb.AddAlbumAssetsRequest, context: Context
    ) -> pb.AddAlbumAssetsResponse:
        album_id = parse_id(request.album_id, "album_id")
        ids = [UUID(text) for text in request.asset_ids]

        async def work(m: Mutation) -> pb.AddAlbumAssetsResponse:
            rows = await m.all(_LOCK_ASSETS, {"owner": m.owner, "ids": ids})
            known = {row.id: row for row in rows}
            await _lock(m, album_id)
            now = await m.one(_SELECT_MEMBERS, {"album_id": album_id, "ids": ids})
            outcomes = _outcomes_of_add(ids, known, set(now.there), MOST_ASSETS - now.members)
            new = [
                asset_id
                for asset_id, outcome in zip(ids, outcomes, strict=True)
                if outcome == pb.AlbumItemOutcome.ALBUM_ITEM_OUTCOME_ADDED
            ]
            if new:
                values = {
                    "owner": m.owner,
                    "album_id": album_id,
                    "ids": new,
                    "last": now.last,
                    "public": [known[asset_id].public for asset_id in new],
                }
                await m.run(_INSERT_MEMBERS, values)
            return pb.AddAlbumAssetsResponse(
                album=await _read(m, album_id), results=_results(ids, outcomes)
            )

        return await self._db.mutate(request, pb.AddAlbumAssetsResponse, work)

    async def RemoveAlbumAssets(
        self, request: pb.RemoveAlbumAssetsRequest, context: Context
    ) -> pb.RemoveAlbumAssetsResponse:
        album_id = parse_id(request.album_id, "album_id")
        ids = [UUID(text) for text in request.asset_ids]

        async def work(m: Mutation) -> pb.RemoveAlbumAssetsResponse:
            await _lock(m, album_id)
            removed = await m.all(_DELETE_MEMBERS, {"album_id": album_id, "ids": ids})
            outcomes = _outcomes_of_remove(ids, set(removed))
            return pb.RemoveAlbumAssetsResponse(
                album=await _read(m, album_id), results=_results(ids, outcomes)
            )

        return await self._db.mutate(request, pb.RemoveAlbumAssetsResponse, work)

    async def ListAlbumAssets(
        self, request: pb.ListAlbumAssetsRequest, context: Context
    ) -> pb.ListAlbumAssetsResponse:
        album = await self._visible(parse_id(request.album_id, "album_id"))
        digest = paging.filter_digest(request, ("page_size", "page_token"))
        size = request.page_size or paging.DEFAULT_SIZE
        after = paging.key_of(request.page_token, digest, int)[0] if request.page_token else 0
        rows = await self._db.all(_LIST_ASSETS, _inside(album, after, size + 1))
        found = await asset_rows.shown(
            self._db, rows[:size], self._urls if request.include_urls else None
        )
        token = (
            paging.token_of(digest, rows[len(found) - 1].position) if len(found) < len(rows) else ""
        )
        return pb.ListAlbumAssetsResponse(assets=found, next_page_token=token)

    async def DownloadAlbum(
        self, request: pb.DownloadAlbumRequest, context: Context
    ) -> AsyncIterator[pb.DownloadAlbumResponse]:
        if request.variant:
            self._presets.check({"variant": request.variant})
        album = await self._visible(parse_id(request.album_id, "album_id"))
        rows = await self._db.all(_LIST_FILES, _inside(album, 0, MOST_ASSETS))
        if not rows:
            text = "the album has nothing that you could download; put READY assets into it"
            raise errors.precondition(text, subject=f"albums/{album.id}")
        archive = AlbumZip(album, rows, await self._smaller(rows, request.variant))
        head = pb.AlbumArchiveHead(
            file_name=archive.file_name,
            size_bytes=archive.size_bytes,
            file_count=len(archive.files),
        )
        yield pb.DownloadAlbumResponse(head=head)
        try:
            async for chunk in archive.chunks(self._storage):
                yield pb.DownloadAlbumResponse(chunk=chunk)
        finally:
            for row in rows:
                if row.id in archive.sent:
                    self._urls.meter.sent(row.owner, row.session_id, archive.sent[row.id])
        about = {"album_id": str(album.id)}
        if request.variant:
            about["variant"] = request.variant
        sent = [row for row in rows if row.id not in archive.missing]
        self._usage.note(sent, "download", metadata=about)

    async def _smaller(self, rows: Sequence[AlbumFile], preset: str) -> Mapping[UUID, AlbumVariant]:
        """Returns, by asset, the variant of each asset that has it; nothing without a preset."""
        if not preset:
            return {}
        wanted = {"ids": [row.id for row in rows], "preset": preset}
        return {row.asset_id: row for row in await self._db.all(_SELECT_VARIANTS, wanted)}

    async def _visible(self, album_id: UUID) -> ShownAlbum:
        row = await self._db.first(_SELECT_ALBUM, {"id": album_id, "me": auth.current().owner})
        if row is None:
            raise errors.not_found("album", album_id)
        return row

    async def _shown(self, rows: Sequence[ShownAlbum], with_urls: bool) -> list[pb.Album]:
        if not with_urls:
            return [album_rows.to_proto(row) for row in rows]
        covers = [row.cover for row in rows if row.cover]
        thumbnails = await asset_rows.thumbnails(self._db, covers)
        return [
            album_rows.to_proto(row, self._urls, thumbnails.get(row.cover) if row.cover else None)
            for row in rows
        ]


def _inside(album: ShownAlbum, after: int, limit: int) -> dict[str, object]:
    """Returns the parameters that select the assets that the caller sees in the album, after a
    position."""
    mine = album.owner == auth.current().owner
    return {"album_id": album.id, "mine": mine, "after": after, "limit": limit}


def _columns(request: pb.UpdateAlbumRequest, name: str | None) -> dict[str, object]:
    """Returns the masked fields, checked, as columns. `name`: the new name; None if it isn't
    masked."""
    paths = set(request.update_mask.paths)
    columns: dict[str, object] = {}
    if name is not None:
        columns |= {"name": name, "name_key": rules.name_key(name)}
    if "description" in paths:
        columns["description"] = request.description
    if "visibility" in paths:
        if request.visibility == asset_pb2.VISIBILITY_UNSPECIFIED:
            raise errors.invalid("visibility", "must be private or public when the mask names it")
        columns["public"] = request.visibility == asset_pb2.VISIBILITY_PUBLIC
    if "cover_asset_id" in paths:
        columns["cover_asset_id"] = UUID(request.cover_asset_id) if request.cover_asset_id else None
    return columns


def _outcomes_of_add(
    ids: Sequence[UUID], known: Mapping[UUID, _NewMember], there: set[UUID], room: int
) -> list[pb.AlbumItemOutcome]:
    outcomes = []
    for asset_id in ids:
        if asset_id not in known:
            outcomes.append(pb.AlbumItemOutcome.ALBUM_ITEM_OUTCOME_NOT_FOUND)
        elif asset_id in there:
            outcomes.append(pb.AlbumItemOutcome.ALBUM_ITEM_OUTCOME_ALREADY_THERE)
        elif not known[asset_id].usable:
            outcomes.append(pb.AlbumItemOutcome.ALBUM_ITEM_OUTCOME_NOT_READY)
        elif room <= 0:
            outcomes.append(pb.AlbumItemOutcome.ALBUM_ITEM_OUTCOME_FULL)
        else:
            outcomes.append(pb.AlbumItemOutcome.ALBUM_ITEM_OUTCOME_ADDED)
            there.add(asset_id)
            room -= 1
    return outcomes


def _outcomes_of_remove(ids: Sequence[UUID], removed: set[UUID]) -> list[pb.AlbumItemOutcome]:
    outcomes = []
    for asset_id in ids:
        if asset_id in removed:
            removed.discard(asset_id)  # an id that is named twice is removed once
            outcomes.append(pb.AlbumItemOutcome.ALBUM_ITEM_OUTCOME_REMOVED)
        else:
            outcomes.append(pb.AlbumItemOutcome.ALBUM_ITEM_OUTCOME_NOT_THERE)
    return outcomes


def _results(
    ids: Sequence[UUID], outcomes: Sequence[pb.AlbumItemOutcome]
) -> list[pb.AlbumItemResult]:
    return [
        pb.AlbumItemResult(asset_id=str(asset_id), outcome=outcome)
        for asset_id, outcome in zip(ids, outcomes, strict=True)
    ]


async def _lock(m: Mutation, album_id: UUID, etag: str = "") -> None:
    version = await m.first(_LOCK_ALBUM, {"id": album_id, "owner": m.owner})
    if version is None:
        raise errors.not_found("album", album_id)
    errors.check_etag(etag, version, "album", album_id)


async def _read(m: Mutation, album_id: UUID) -> pb.Album:
    return album_rows.to_proto(await m.one(_SELECT_ALBUM, {"id": album_id, "me": m.owner}))


async def _check_member(m: Mutation, album_id: UUID, asset_id: UUID) -> None:
    if await m.first(_SELECT_MEMBER, {"album_id": album_id, "asset_id": asset_id}) is None:
        raise errors.invalid("cover_asset_id", "is not in the album; add it first")


def _taken(name: str, by: UUID | None) -> errors.DomainError:
    """Returns the error for a name that is taken. `by`: the album of that name; None if it isn't
    known."""
    return errors.already_exists(
        "album", str(by or name), f"you have an album named {name!r} already; take another name"
    )


async def _named(m: Mutation, name: str) -> UUID | None:
    """Returns the id of the owner's album of that name, or None."""
    return await m.first(_SELECT_NAMED, {"owner": m.owner, "name_key": rules.name_key(name)})


def _checked_name(name: str) -> str:
    shown = rules.plain_text(name)
    if not shown:
        raise errors.invalid("name", "has no character that can be shown")
    return shown
