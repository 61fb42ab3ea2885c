"""Albums: an owner's images under a name. What is in one, and how much others see of it, is counted
by the database."""

from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

import psycopg
from atelier.assets.v1 import album_pb2 as pb
from atelier.assets.v1 import album_pb2_grpc, asset_pb2

from services.assets.core import asset_rows, rules
from services.assets.core.usage_log import UsageLog
from services.assets.library import album_zip
from services.assets.variants.presets import Presets
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.rpc import auth, errors, paging
from shared.rpc.protos import timestamp
from shared.storage import Storage

MOST_ASSETS = 10_000  # of one album

# The owner's choice counts while the caller can see it in the album; else the first one does.
_ALBUM = """
    SELECT a.*, coalesce(
        (SELECT i.asset_id FROM album_assets i WHERE i.album_id = a.id AND i.asset_id
            = a.cover_asset_id AND i.shown
             AND (i.public OR a.owner = %(me)s)),
        (SELECT i.asset_id FROM album_assets i WHERE i.album_id = a.id AND i.shown AND (i.public
            OR a.owner = %(me)s)
         ORDER BY i.position LIMIT 1)) AS cover
    FROM albums a
"""
_LOCK = "SELECT * FROM albums WHERE id = %(id)s AND owner = %(owner)s FOR UPDATE"
_CREATE = """
    INSERT INTO albums (id, owner, name, name_key, description, public)
    VALUES (%(id)s, %(owner)s, %(name)s, %(name_key)s, %(description)s, %(public)s)
    ON CONFLICT ON CONSTRAINT albums_name DO NOTHING RETURNING *, NULL AS cover
"""
# What an asset is must not change until it is in the album. Assets are locked before albums, as
# everywhere.
_LOCK_ASSETS = """
    SELECT id, public, state = 'ready' AND deleted_at IS NULL AND archived_at IS NULL AS usable
        FROM assets
    WHERE owner = %(owner)s AND id = ANY(%(ids)s) ORDER BY id FOR SHARE
"""
_MEMBERS = """
    SELECT count(*) AS members, coalesce(max(position), 0) AS last,
           coalesce(array_agg(asset_id) FILTER (WHERE asset_id = ANY(%(ids)s)), '{}') AS there
    FROM album_assets WHERE album_id = %(album_id)s
"""
_ADD = """
    INSERT INTO album_assets (owner, album_id, asset_id, position, shown, public)
    SELECT %(owner)s, %(album_id)s, id, %(last)s + n, true, public
    FROM unnest(%(ids)s::uuid[], %(public)s::boolean[]) WITH ORDINALITY AS added (id, public, n)
"""
_INSIDE = """
    SELECT {columns}, i.position FROM album_assets i JOIN assets a ON a.id = i.asset_id
    WHERE i.album_id = %(album_id)s AND i.shown AND (%(mine)s OR i.public) AND i.position
        > %(after)s
    ORDER BY i.position LIMIT %(limit)s
"""
# What a download needs of each of ten thousand rows, which it keeps until its last byte was read;
# notes of the owner's on each may take 16 KiB.
_OF_FILE = (
    "a.id, a.owner, a.session_id, a.file_name, a.storage_key, a.size_bytes, a.sha256, a.mime_type"
)
_Outcome = pb.AlbumItemOutcome


def to_proto(row: Any, urls: asset_rows.Urls | None = None, thumbnail: Any = None) -> pb.Album:
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
    if not mine:  # these would tell of private assets that come and go
        album.ClearField("etag")
        album.ClearField("update_time")
    if urls and thumbnail:
        album.cover_url = urls.of(thumbnail.storage_key, thumbnail.mime_type, f"{row.name}.thumb")
    return album


class AlbumService(album_pb2_grpc.AlbumServiceServicer):
    def __init__(
        self,
        db: Database,
        storage: Storage,
        urls: asset_rows.Urls,
        presets: Presets,
        usage_log: UsageLog,
    ) -> None:
        self._db = db
        self._storage = storage
        self._urls = urls
        self._presets = presets
        self._usage = usage_log

    async def CreateAlbum(
        self, request: pb.CreateAlbumRequest, context: Any
    ) -> pb.CreateAlbumResponse:
        name = _checked_name(request.name)

        async def work(m: Mutation) -> pb.CreateAlbumResponse:
            row = await m.one(
                _CREATE,
                {
                    "id": new_id(),
                    "owner": m.owner,
                    "name": name,
                    "name_key": rules.name_key(name),
                    "description": request.description,
                    "public": request.visibility == asset_pb2.VISIBILITY_PUBLIC,
                },
            )
            if row is None:
                raise _taken(name, await _named(m, name))
            return pb.CreateAlbumResponse(album=to_proto(row))

        return await self._db.mutate(request, pb.CreateAlbumResponse, work)

    async def GetAlbum(self, request: pb.GetAlbumRequest, context: Any) -> pb.GetAlbumResponse:
        row = await self._visible(parse_id(request.album_id, "album_id"))
        [album] = await self._shown([row], request.include_urls)
        return pb.GetAlbumResponse(album=album)

    async def ListAlbums(
        self, request: pb.ListAlbumsRequest, context: Any
    ) -> pb.ListAlbumsResponse:
        page = paging.page(request)
        whose = "a.owner <> %(me)s AND a.public" if request.public_of_others else "a.owner = %(me)s"
        statement: Any = f"{_ALBUM} WHERE {whose}{page.clause}"
        rows = await self._db.rows(statement, {"me": auth.current().owner, **page.parameters})
        found, token = page.fill(rows, await self._shown(page.cut(rows), request.include_urls))
        return pb.ListAlbumsResponse(albums=found, next_page_token=token)

    async def UpdateAlbum(
        self, request: pb.UpdateAlbumRequest, context: Any
    ) -> pb.UpdateAlbumResponse:
        album_id = parse_id(request.album_id, "album_id")
        columns = _columns(request)

        async def work(m: Mutation) -> pb.UpdateAlbumResponse:
            await _lock(m, album_id, request.etag)
            if columns.get("cover_asset_id"):
                await _check_member(m, album_id, columns["cover_asset_id"])
            settings = ", ".join(f"{name} = %({name})s" for name in columns)
            statement: Any = (
                f"UPDATE albums SET {settings}, version = version + 1, updated_at = now() WHERE id"
                " = %(id)s RETURNING 1"
            )
            if "name" in columns and (other := await _named(m, columns["name"])) not in (
                None,
                album_id,
            ):
                raise _taken(columns["name"], other)
            try:
                await m.one(statement, {**columns, "id": album_id})
            except psycopg.errors.UniqueViolation:  # of one that is being made at the same time
                raise _taken(columns["name"], None) from None
            return pb.UpdateAlbumResponse(album=await _read(m, album_id))

        return await self._db.mutate(request, pb.UpdateAlbumResponse, work)

    async def DeleteAlbum(
        self, request: pb.DeleteAlbumRequest, context: Any
    ) -> pb.DeleteAlbumResponse:
        album_id = parse_id(request.album_id, "album_id")

        async def work(m: Mutation) -> pb.DeleteAlbumResponse:
            await _lock(m, album_id, request.etag)
            await m.run("DELETE FROM albums WHERE id = %s", (album_id,))
            return pb.DeleteAlbumResponse()

        return await self._db.mutate(request, pb.DeleteAlbumResponse, work)

    async def AddAlbumAssets(
        self, request: pb.AddAlbumAssetsRequest, context: Any
    ) -> pb.AddAlbumAssetsResponse:
        album_id = parse_id(request.album_id, "album_id")
        ids = [UUID(text) for text in request.asset_ids]

        async def work(m: Mutation) -> pb.AddAlbumAssetsResponse:
            known = {
                row.id: row for row in await m.all(_LOCK_ASSETS, {"owner": m.owner, "ids": ids})
            }
            await _lock(m, album_id)
            now = await m.one(_MEMBERS, {"album_id": album_id, "ids": ids})
            outcomes = _outcomes_of_add(ids, known, set(now.there), MOST_ASSETS - now.members)
            new = [
                i
                for i, what in zip(ids, outcomes, strict=True)
                if what == _Outcome.ALBUM_ITEM_OUTCOME_ADDED
            ]
            if new:
                await m.run(
                    _ADD,
                    {
                        "owner": m.owner,
                        "album_id": album_id,
                        "ids": new,
                        "last": now.last,
                        "public": [known[asset_id].public for asset_id in new],
                    },
                )
            return pb.AddAlbumAssetsResponse(
                album=await _read(m, album_id), results=_results(ids, outcomes)
            )

        return await self._db.mutate(request, pb.AddAlbumAssetsResponse, work)

    async def RemoveAlbumAssets(
        self, request: pb.RemoveAlbumAssetsRequest, context: Any
    ) -> pb.RemoveAlbumAssetsResponse:
        album_id = parse_id(request.album_id, "album_id")
        ids = [UUID(text) for text in request.asset_ids]

        async def work(m: Mutation) -> pb.RemoveAlbumAssetsResponse:
            await _lock(m, album_id)
            gone = await m.all(
                "DELETE FROM album_assets WHERE album_id = %s AND asset_id = ANY(%s) RETURNING"
                " asset_id",
                (album_id, ids),
            )
            left = {row.asset_id for row in gone}
            outcomes = []
            for asset_id in ids:
                removed = asset_id in left
                left.discard(asset_id)  # named twice: it can only go once
                outcomes.append(
                    _Outcome.ALBUM_ITEM_OUTCOME_REMOVED
                    if removed
                    else _Outcome.ALBUM_ITEM_OUTCOME_NOT_THERE
                )
            return pb.RemoveAlbumAssetsResponse(
                album=await _read(m, album_id), results=_results(ids, outcomes)
            )

        return await self._db.mutate(request, pb.RemoveAlbumAssetsResponse, work)

    async def ListAlbumAssets(
        self, request: pb.ListAlbumAssetsRequest, context: Any
    ) -> pb.ListAlbumAssetsResponse:
        album = await self._visible(parse_id(request.album_id, "album_id"))
        digest = paging.filter_digest(request, ("page_size", "page_token"))
        size = request.page_size or paging.DEFAULT_SIZE
        after = paging.key_of(request.page_token, digest, int)[0] if request.page_token else 0
        rows = await self._inside(album, after, size + 1)
        found = await asset_rows.shown(
            self._db, rows[:size], self._urls if request.include_urls else None
        )
        token = (
            paging.token_of(digest, rows[len(found) - 1].position) if len(found) < len(rows) else ""
        )
        return pb.ListAlbumAssetsResponse(assets=found, next_page_token=token)

    async def DownloadAlbum(
        self, request: pb.DownloadAlbumRequest, context: Any
    ) -> AsyncIterator[pb.DownloadAlbumResponse]:
        if request.variant:
            self._presets.check({"variant": request.variant})
        album = await self._visible(parse_id(request.album_id, "album_id"))
        rows = await self._inside(album, 0, MOST_ASSETS, _OF_FILE)
        if not rows:
            text = "the album has nothing that you could download; put READY assets into it"
            raise errors.precondition(text, subject=f"albums/{album.id}")
        smaller = {}
        if request.variant:
            found = await self._db.rows(
                "SELECT asset_id, storage_key, size_bytes, sha256, mime_type FROM variants"
                " WHERE asset_id = ANY(%s) AND preset = %s AND state = 'ready'",
                ([row.id for row in rows], request.variant),
            )
            smaller = {row.asset_id: row for row in found}
        archive = album_zip.AlbumZip(album, rows, smaller)
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
        about = {
            "album_id": str(album.id),
            **({"variant": request.variant} if request.variant else {}),
        }
        self._usage.note(
            [row for row in rows if row.id not in archive.missing], "download", metadata=about
        )

    async def _visible(self, album_id: UUID) -> Any:
        row = await self._db.row(
            f"{_ALBUM} WHERE a.id = %(id)s", {"id": album_id, "me": auth.current().owner}
        )
        if row is None:
            raise errors.not_found("album", album_id)
        return row

    async def _inside(self, album: Any, after: int, limit: int, columns: str = "a.*") -> list[Any]:
        mine = album.owner == auth.current().owner
        statement: Any = _INSIDE.format(columns=columns)
        return await self._db.rows(
            statement, {"album_id": album.id, "mine": mine, "after": after, "limit": limit}
        )

    async def _shown(self, rows: Sequence[Any], with_urls: bool) -> list[pb.Album]:
        if not with_urls:
            return [to_proto(row) for row in rows]
        thumbnails = await asset_rows.thumbnails(self._db, [row.cover for row in rows if row.cover])
        return [to_proto(row, self._urls, thumbnails.get(row.cover)) for row in rows]


def _columns(request: pb.UpdateAlbumRequest) -> dict[str, Any]:
    """The masked fields, checked, as columns."""
    paths = set(request.update_mask.paths)
    columns: dict[str, Any] = {}
    if "name" in paths:
        columns["name"] = _checked_name(request.name)
        columns["name_key"] = rules.name_key(columns["name"])
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
    ids: Sequence[UUID], known: dict[UUID, Any], there: set[UUID], room: int
) -> list[Any]:
    outcomes = []
    for asset_id in ids:
        if asset_id not in known:
            outcomes.append(_Outcome.ALBUM_ITEM_OUTCOME_NOT_FOUND)
        elif asset_id in there:
            outcomes.append(_Outcome.ALBUM_ITEM_OUTCOME_ALREADY_THERE)
        elif not known[asset_id].usable:
            outcomes.append(_Outcome.ALBUM_ITEM_OUTCOME_NOT_READY)
        elif room <= 0:
            outcomes.append(_Outcome.ALBUM_ITEM_OUTCOME_FULL)
        else:
            outcomes.append(_Outcome.ALBUM_ITEM_OUTCOME_ADDED)
            there.add(asset_id)
            room -= 1
    return outcomes


def _results(ids: Sequence[UUID], outcomes: Sequence[Any]) -> list[pb.AlbumItemResult]:
    return [
        pb.AlbumItemResult(asset_id=str(i), outcome=what)
        for i, what in zip(ids, outcomes, strict=True)
    ]


async def _lock(m: Mutation, album_id: UUID, etag: str = "") -> Any:
    row = await m.one(_LOCK, {"id": album_id, "owner": m.owner})
    if row is None:
        raise errors.not_found("album", album_id)
    if etag and etag != str(row.version):
        raise errors.etag_mismatch("album", album_id)
    return row


async def _read(m: Mutation, album_id: UUID) -> pb.Album:
    return to_proto(await m.one(f"{_ALBUM} WHERE a.id = %(id)s", {"id": album_id, "me": m.owner}))


async def _check_member(m: Mutation, album_id: UUID, asset_id: UUID) -> None:
    held = await m.one(
        "SELECT 1 FROM album_assets WHERE album_id = %s AND asset_id = %s", (album_id, asset_id)
    )
    if held is None:
        raise errors.invalid("cover_asset_id", "is not in the album; add it first")


def _taken(name: str, by: UUID | None) -> errors.DomainError:
    """`by`: the album of that name; None if it isn't known."""
    return errors.already_exists(
        "album", str(by or name), f"you have an album named {name!r} already; take another name"
    )


async def _named(m: Mutation, name: str) -> UUID | None:
    """The owner's album of that name."""
    row = await m.one(
        "SELECT id FROM albums WHERE owner = %s AND name_key = %s", (m.owner, rules.name_key(name))
    )
    return row.id if row else None


def _checked_name(name: str) -> str:
    shown = rules.plain_text(name)
    if not shown:
        raise errors.invalid("name", "has no character that can be shown")
    return shown
