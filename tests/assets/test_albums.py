"""Albums: their counts, what others see of them, and albums as a ZIP."""

import asyncio
import base64
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import psycopg
import pytest
from atelier.assets.v1 import album_pb2 as pb
from atelier.assets.v1 import album_pb2_grpc, asset_pb2, storage_report_pb2
from google.rpc import error_details_pb2

from tests import calls, forward_zip
from tests.assets import flows, storage
from tests.shared.imaging import pictures
from tests.suite import APP_PASSWORD, Client, Suite

DATA = flows.jpeg(64, 48)
PUBLIC, PRIVATE = asset_pb2.VISIBILITY_PUBLIC, asset_pb2.VISIBILITY_PRIVATE
ADDED, ALREADY, NOT_FOUND, NOT_READY, FULL, REMOVED, NOT_THERE = range(1, 8)


def stub(client: Client) -> Any:
    return client.stub(album_pb2_grpc.AlbumServiceStub)


async def create(client: Client, name: str = "Spring", **fields: Any) -> pb.Album:
    return (await stub(client).CreateAlbum(pb.CreateAlbumRequest(name=name, **fields))).album


async def get(client: Client, album: pb.Album, **fields: Any) -> pb.Album:
    return (await stub(client).GetAlbum(pb.GetAlbumRequest(album_id=album.id, **fields))).album


async def add(client: Client, album: pb.Album, *ids: str, **fields: Any) -> list[int]:
    answer = await stub(client).AddAlbumAssets(
        pb.AddAlbumAssetsRequest(album_id=album.id, asset_ids=ids, **fields)
    )
    assert [result.asset_id for result in answer.results] == list(ids)
    return [result.outcome for result in answer.results]


async def remove(client: Client, album: pb.Album, *ids: str) -> list[int]:
    answer = await stub(client).RemoveAlbumAssets(
        pb.RemoveAlbumAssetsRequest(album_id=album.id, asset_ids=ids)
    )
    return [result.outcome for result in answer.results]


async def update(client: Client, album: pb.Album, etag: str = "", **fields: Any) -> pb.Album:
    request = pb.UpdateAlbumRequest(
        album_id=album.id, etag=etag, update_mask={"paths": list(fields)}, **fields
    )
    return (await stub(client).UpdateAlbum(request)).album


async def inside(client: Client, album: pb.Album, size: int = 0) -> list[str]:
    """Returns the ids on all pages."""
    ids: list[str] = []
    token = ""
    while True:
        request = pb.ListAlbumAssetsRequest(album_id=album.id, page_size=size, page_token=token)
        page = await stub(client).ListAlbumAssets(request)
        ids += [asset.id for asset in page.assets]
        token = page.next_page_token
        if not token:
            return ids


async def some_assets(client: Client, count: int, **fields: Any) -> list[str]:
    return [(await flows.upload(client, DATA, **fields)).id for _ in range(count)]


def many_assets(suite: Suite, client: Client, count: int) -> list[str]:
    rows = suite.sql(
        "INSERT INTO assets.assets (id, owner, created_by, kind, public, free, file_name,"
        " size_bytes, mime_type, state, storage_key, sha256) SELECT gen_random_uuid(), %s, 'x',"
        " 'photo', false, true, 'a.jpg', 1, 'image/jpeg', 'ready', 'gone/' || n, 'ab' FROM"
        " generate_series(1, %s) AS n RETURNING id::text",
        (f"user:{client.subject}", count),
    )
    return [row[0] for row in rows]


async def test_an_album_is_what_was_asked_for(ada: Client) -> None:
    album = await create(
        ada, "  Spring\u200b  2026 ", description="Looks\nfor spring", visibility=PUBLIC
    )

    assert (album.name, album.description, album.visibility) == (
        "Spring 2026",
        "Looks\nfor spring",
        PUBLIC,
    )
    assert (album.owner, album.asset_count, album.cover_asset_id) == (f"user:{ada.subject}", 0, "")
    assert await get(ada, album) == album
    assert (await create(ada, "Quiet")).visibility == PRIVATE


async def test_a_name_is_unique_per_owner_whatever_its_case(
    ada: Client, caller: Callable[..., Client]
) -> None:
    album = await create(ada, "Frühling")
    for name in ("Frühling", "FRU\u0308HLING", " frühling "):
        refusal = await calls.refused(create(ada, name), grpc.StatusCode.ALREADY_EXISTS)
        assert refusal.reason == "ALREADY_EXISTS"
        assert refusal.detail(error_details_pb2.ResourceInfo).resource_name == album.id

    other = await create(ada, "Summer")
    refusal = await calls.refused(
        update(ada, other, name="FRÜHLING"), grpc.StatusCode.ALREADY_EXISTS
    )
    assert refusal.detail(error_details_pb2.ResourceInfo).resource_name == album.id
    assert (await update(ada, album, name="FRÜHLING")).name == "FRÜHLING"
    assert (await create(caller(), "Frühling")).id != album.id


async def test_of_many_albums_made_at_once_with_one_name_one_is_there(ada: Client) -> None:
    ended = await asyncio.gather(*(create(ada, "Race") for _ in range(16)), return_exceptions=True)
    made = [each for each in ended if isinstance(each, pb.Album)]
    refused = [calls.refusal_of(each) for each in ended if isinstance(each, grpc.aio.AioRpcError)]
    assert len(made) == 1 and {r.code for r in refused} == {grpc.StatusCode.ALREADY_EXISTS}


async def test_a_repeat_gives_the_first_answer(ada: Client) -> None:
    one, two = [await create(ada, "Once", request_id="r") for _ in range(2)]
    assert one == two
    [asset_id] = await some_assets(ada, 1)
    assert [await add(ada, one, asset_id, request_id="a") for _ in range(2)] == [[ADDED], [ADDED]]
    assert (await get(ada, one)).asset_count == 1


async def test_each_asset_has_an_outcome(ada: Client, caller: Callable[..., Client]) -> None:
    album = await create(ada)
    one, two = await some_assets(ada, 2)
    pending = (await flows.announce(ada, DATA)).asset.id
    foreign = (await flows.upload(caller(), DATA, visibility=PUBLIC)).id

    never = flows.request_id()
    assert await add(ada, album, one, pending, foreign, never, one, two) == [
        ADDED,
        NOT_READY,
        NOT_FOUND,
        NOT_FOUND,
        ALREADY,
        ADDED,
    ]
    assert await add(ada, album, two, one) == [ALREADY, ALREADY]
    assert await inside(ada, album) == [one, two]
    assert await remove(ada, album, one, never, one) == [REMOVED, NOT_THERE, NOT_THERE]
    assert await inside(ada, album) == [two]
    assert (await get(ada, album)).asset_count == 1


async def test_32_adds_and_removes_at_once_end_exact(suite: Suite, ada: Client) -> None:
    album = await create(ada)
    ids = many_assets(suite, ada, 40)
    await add(ada, album, *ids[:20])
    work = [add(ada, album, *ids[n : n + 20]) for n in range(0, 20, 2)]
    work += [remove(ada, album, *ids[n : n + 5]) for n in range(22)]
    results = await asyncio.gather(*work)
    there = await inside(ada, album)
    changes = [outcome for result in results for outcome in result]
    assert len(there) == len(set(there)) == 20 + changes.count(ADDED) - changes.count(REMOVED)
    assert (await get(ada, album)).asset_count == len(there)

    positions = suite.sql(
        "SELECT count(DISTINCT position) FROM assets.album_assets WHERE album_id = %s", (album.id,)
    )
    assert positions == [(len(there),)]


async def test_an_album_has_an_end(suite: Suite, ada: Client) -> None:
    album = await create(ada)
    ids = many_assets(suite, ada, 10_001)

    suite.sql(
        "INSERT INTO assets.album_assets (owner, album_id, asset_id, position, shown, public)"
        " SELECT %s, %s, id, n, true, false FROM unnest(%s::uuid[]) WITH ORDINALITY AS i (id, n)",
        (f"user:{ada.subject}", album.id, ids[:9_999]),
    )
    assert await add(ada, album, *ids[9_998:]) == [ALREADY, ADDED, FULL]
    assert (await get(ada, album)).asset_count == 10_000


async def test_pages_keep_the_order_of_adding(suite: Suite, ada: Client) -> None:
    album = await create(ada)
    ids = many_assets(suite, ada, 23)
    await add(ada, album, *ids)
    await remove(ada, album, ids[3])
    await add(ada, album, ids[3])
    expected = [*ids[:3], *ids[4:], ids[3]]
    for size in (0, 1, 7, 23, 1000):
        assert await inside(ada, album, size) == expected


async def test_a_page_token_of_another_album_or_owner_is_refused(suite: Suite, ada: Client) -> None:
    first, second = await create(ada, "A"), await create(ada, "B", visibility=PUBLIC)
    await add(ada, first, *many_assets(suite, ada, 3))
    request = pb.ListAlbumAssetsRequest(album_id=first.id, page_size=1)
    token = (await stub(ada).ListAlbumAssets(request)).next_page_token

    for wrong in (token, "x", "W10=", "WzEsMl0=", "bnVsbA=="):
        call = stub(ada).ListAlbumAssets(
            pb.ListAlbumAssetsRequest(album_id=second.id, page_token=wrong)
        )
        refusal = await calls.refused(call, grpc.StatusCode.INVALID_ARGUMENT)
        assert refusal.reason == "PAGE_TOKEN_INVALID"

    digest, _position = json.loads(base64.urlsafe_b64decode(token))
    true = base64.urlsafe_b64encode(json.dumps([digest, True]).encode()).decode()
    call = stub(ada).ListAlbumAssets(
        pb.ListAlbumAssetsRequest(album_id=first.id, page_size=1, page_token=true)
    )
    refusal = await calls.refused(call, grpc.StatusCode.INVALID_ARGUMENT)
    assert refusal.reason == "PAGE_TOKEN_INVALID"


async def test_lists_are_newest_first_and_show_public_albums_of_others_apart(
    ada: Client, caller: Callable[..., Client]
) -> None:
    mine = [await create(ada, name) for name in ("one", "two", "three")]
    shared = await create(ada, "shared", visibility=PUBLIC)
    page = await stub(ada).ListAlbums(pb.ListAlbumsRequest(page_size=3))
    rest = await stub(ada).ListAlbums(
        pb.ListAlbumsRequest(page_size=3, page_token=page.next_page_token)
    )
    assert [a.id for a in [*page.albums, *rest.albums]] == [
        shared.id,
        *(a.id for a in reversed(mine)),
    ]

    theirs = await stub(caller()).ListAlbums(pb.ListAlbumsRequest(public_of_others=True))
    assert shared.id in [a.id for a in theirs.albums] and not {a.id for a in mine} & {
        a.id for a in theirs.albums
    }

    others = await stub(ada).ListAlbums(pb.ListAlbumsRequest(public_of_others=True))
    assert shared.id not in [a.id for a in others.albums]


async def test_a_private_asset_in_a_public_album_stays_private(
    ada: Client, caller: Callable[..., Client]
) -> None:
    album = await create(ada, visibility=PUBLIC)
    private = await some_assets(ada, 2)
    [public] = await some_assets(ada, 1, visibility=PUBLIC)
    await add(ada, album, private[0], public, private[1])
    bob = caller()
    seen = await get(bob, album)
    assert (seen.asset_count, seen.cover_asset_id, seen.etag, seen.HasField("update_time")) == (
        1,
        public,
        "",
        False,
    )
    assert await inside(bob, album) == [public]

    names, manifest = contents((await download(bob, album))[1])
    assert len(names) == 3 and [file["asset_id"] for file in manifest["files"]] == [public]
    assert ((await get(ada, album)).asset_count, await inside(ada, album)) == (
        3,
        [private[0], public, private[1]],
    )

    await remove(ada, album, private[0])
    assert await get(bob, album) == seen
    for asset_id in (private[1], public):
        await flows.variants_of(
            ada, asset_id
        )  # while variants are written, their files can't be moved
    await flows.update(ada, private[1], visibility=PUBLIC)
    await flows.update(ada, public, visibility=PRIVATE)
    assert ((await get(bob, album)).asset_count, await inside(bob, album)) == (1, [private[1]])

    await update(ada, album, visibility=PRIVATE)
    for call in (get(bob, album), inside(bob, album), download(bob, album)):
        await calls.refused(call, grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize("hide", ["deleted_at = now(), expires_at = now()", "archived_at = now()"])
async def test_an_asset_in_trash_or_archive_leaves_and_comes_back(
    suite: Suite, ada: Client, hide: str
) -> None:
    album, other = await create(ada, visibility=PUBLIC), await create(ada, "Other")
    ids = await some_assets(ada, 3, visibility=PUBLIC)
    for each in (album, other):
        await add(ada, each, *ids)
    await suite.change(f"UPDATE assets.assets SET {hide} WHERE id = %s", (ids[0],))
    for each in (album, other):
        assert ((await get(ada, each)).asset_count, await inside(ada, each)) == (2, ids[1:])
    assert (await get(ada, album)).cover_asset_id == ids[1]
    assert await add(ada, await create(ada, "Third"), ids[0]) == [NOT_READY]

    suite.sql(
        "UPDATE assets.assets SET deleted_at = NULL, expires_at = NULL, archived_at = NULL WHERE id"
        " = %s",
        (ids[0],),
    )
    for each in (album, other):
        assert ((await get(ada, each)).asset_count, await inside(ada, each)) == (3, ids)


@pytest.mark.parametrize("as_tenant", [True, False])
async def test_a_purged_asset_leaves_its_albums(suite: Suite, ada: Client, as_tenant: bool) -> None:
    """The row is deleted by the serving role, under row-level security, or from the trash by a role
    that acts for no owner."""
    album = await create(ada)
    ids = await some_assets(ada, 2)
    await add(ada, album, *ids)

    if as_tenant:
        url = suite.cluster.url(suite.database, "assets_app", APP_PASSWORD)
        with psycopg.connect(url, options="-c search_path=assets") as conn:
            conn.execute("SELECT set_config('app.owner_id', %s, true)", (f"user:{ada.subject}",))
            assert conn.execute("DELETE FROM assets WHERE id = %s", (ids[0],)).rowcount == 1
    else:
        await suite.change(
            "UPDATE assets.assets SET deleted_at = now(), expires_at = now() WHERE id = %s",
            (ids[0],),
        )
        await suite.change("DELETE FROM assets.assets WHERE id = %s", (ids[0],))
    assert ((await get(ada, album)).asset_count, await inside(ada, album)) == (1, ids[1:])


async def test_an_asset_may_be_in_several_albums_and_outlives_them(ada: Client) -> None:
    one, two = await create(ada, "One"), await create(ada, "Two")
    ids = await some_assets(ada, 2)
    for album in (one, two):
        await add(ada, album, *ids)
    asset = await flows.get(ada, ids[0], include_albums=True)
    assert set(asset.album_ids) == {one.id, two.id} and not (await flows.get(ada, ids[0])).album_ids

    await stub(ada).DeleteAlbum(pb.DeleteAlbumRequest(album_id=one.id))
    await calls.refused(get(ada, one), grpc.StatusCode.NOT_FOUND)
    assert await inside(ada, two) == ids
    assert [(await flows.get(ada, each)).state for each in ids] == [asset_pb2.ASSET_STATE_READY] * 2

    await calls.refused(
        stub(ada).DeleteAlbum(pb.DeleteAlbumRequest(album_id=one.id)), grpc.StatusCode.NOT_FOUND
    )
    assert (await create(ada, "One")).id != one.id


async def test_the_cover_is_the_chosen_one_or_the_first(ada: Client) -> None:
    album = await create(ada)
    ids = await some_assets(ada, 2)
    await add(ada, album, *ids)
    assert (await get(ada, album)).cover_asset_id == ids[0]
    assert (await update(ada, album, cover_asset_id=ids[1])).cover_asset_id == ids[1]

    await flows.variants_of(ada, ids[1])
    assert (await get(ada, album, include_urls=True)).cover_url.startswith("http")
    assert not (await get(ada, album)).cover_url

    await remove(ada, album, ids[1])
    assert (await get(ada, album)).cover_asset_id == ids[0]
    refusal = await calls.refused(
        update(ada, album, cover_asset_id=ids[1]), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.fields == ["cover_asset_id"]
    assert (await update(ada, album, cover_asset_id="")).cover_asset_id == ids[0]


async def test_an_update_changes_what_the_mask_names(ada: Client) -> None:
    album = await create(ada, "Name", description="before")
    changed = await update(ada, album, etag=album.etag, description="after")
    assert (changed.name, changed.description, changed.visibility) == ("Name", "after", PRIVATE)

    refusal = await calls.refused(
        update(ada, album, etag=album.etag, name="Late"), grpc.StatusCode.ABORTED
    )
    assert refusal.reason == "ETAG_MISMATCH"
    [asset_id] = await some_assets(ada, 1)
    await add(ada, album, asset_id)
    assert (await update(ada, album, etag=changed.etag, name="In time")).name == "In time"

    late = stub(ada).DeleteAlbum(pb.DeleteAlbumRequest(album_id=album.id, etag=album.etag))
    assert (await calls.refused(late, grpc.StatusCode.ABORTED)).reason == "ETAG_MISMATCH"


async def test_an_album_of_another_owner_is_not_found(
    ada: Client, caller: Callable[..., Client]
) -> None:
    album = await create(ada, visibility=PUBLIC)
    bob = caller()
    [mine] = await some_assets(bob, 1)

    for call in (
        update(bob, album, description="x"),
        add(bob, album, mine),
        remove(bob, album, mine),
        stub(bob).DeleteAlbum(pb.DeleteAlbumRequest(album_id=album.id)),
    ):
        await calls.refused(call, grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize(
    ("method", "request_", "fields"),
    [
        ("CreateAlbum", pb.CreateAlbumRequest(), ["name"]),
        ("CreateAlbum", pb.CreateAlbumRequest(name="\u200b\t"), ["name"]),
        ("CreateAlbum", pb.CreateAlbumRequest(name="x" * 121), ["name"]),
        ("CreateAlbum", pb.CreateAlbumRequest(name="x", description="d" * 2001), ["description"]),
        ("CreateAlbum", pb.CreateAlbumRequest(name="x", visibility=9), ["visibility"]),  # type: ignore[arg-type]
        ("GetAlbum", pb.GetAlbumRequest(album_id="x"), ["album_id"]),
        ("UpdateAlbum", pb.UpdateAlbumRequest(album_id=flows.request_id()), ["update_mask"]),
        (
            "UpdateAlbum",
            pb.UpdateAlbumRequest(album_id=flows.request_id(), update_mask={"paths": ["name"]}),
            ["name"],
        ),
        (
            "UpdateAlbum",
            pb.UpdateAlbumRequest(
                album_id=flows.request_id(), update_mask={"paths": ["visibility"]}
            ),
            ["visibility"],
        ),
        (
            "UpdateAlbum",
            pb.UpdateAlbumRequest(
                album_id=flows.request_id(), update_mask={"paths": ["asset_count"]}
            ),
            ["update_mask"],
        ),
        ("AddAlbumAssets", pb.AddAlbumAssetsRequest(album_id=flows.request_id()), ["asset_ids"]),
        (
            "RemoveAlbumAssets",
            pb.RemoveAlbumAssetsRequest(
                album_id=flows.request_id(), asset_ids=[flows.request_id()] * 501
            ),
            ["asset_ids"],
        ),
        ("ListAlbums", pb.ListAlbumsRequest(page_size=1001), ["page_size"]),
    ],
)
async def test_a_request_that_breaks_a_rule_is_refused(
    ada: Client, method: str, request_: Any, fields: Sequence[str]
) -> None:
    refusal = await calls.refused(
        getattr(stub(ada), method)(request_), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.fields == fields


async def test_text_is_text(ada: Client) -> None:
    for name in ("%_\\", "'; DROP TABLE albums; --", "$.a[*]", "a/b", "👩‍👩‍👧", "ß", "İ"):
        album = await create(ada, name, description=name * 9)
        assert ((await get(ada, album)).name, (await get(ada, album)).description) == (
            name,
            name * 9,
        )
    for fields in ({"name": "a", "description": "a\x00b"}, {"name": "\x00"}):
        await calls.refused(create(ada, **fields), grpc.StatusCode.INVALID_ARGUMENT)


# As a ZIP


async def download(
    client: Client, album: pb.Album, variant: str = ""
) -> tuple[pb.AlbumArchiveHead, bytes]:
    request = pb.DownloadAlbumRequest(album_id=album.id, variant=variant)
    parts = [part async for part in stub(client).DownloadAlbum(request)]
    assert [part.WhichOneof("part") for part in parts] == ["head", *["chunk"] * (len(parts) - 1)]
    assert max(len(part.chunk) for part in parts) <= 256 * 1024
    return parts[0].head, b"".join(part.chunk for part in parts)


def contents(data: bytes) -> tuple[list[str], Any]:
    """Returns the names and the manifest of an archive after checking every checksum."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        sums = dict(
            line.split("  ")[::-1] for line in archive.read("SHA256SUMS").decode().splitlines()
        )
        for name in set(archive.namelist()) - {"SHA256SUMS"}:
            assert hashlib.sha256(archive.read(name)).hexdigest() == sums[name]
        read_forward = forward_zip.contents(io.BytesIO(data))
        assert read_forward == {name: archive.read(name) for name in archive.namelist()}
        return archive.namelist(), json.loads(archive.read("manifest.json"))


@pytest.mark.long
async def test_a_download_has_every_file_and_the_size_it_promised(ada: Client) -> None:
    large = bytes(pictures.textured(1500, 1200).jpegsave_buffer(Q=90))
    album = await create(ada, 'Spring: "looks"')
    names = ["front.jpg", "FRONT.jpg", "front.jpg", "con.jpg", "漢字 ä.jpg", "a?b*.jpg"]
    ids = [(await flows.upload(ada, DATA, file_name=name)).id for name in names]
    ids.append((await flows.upload(ada, large, file_name="large.jpg")).id)
    await add(ada, album, *ids)
    head, data = await download(ada, album)
    assert (head.file_name, head.file_count, head.size_bytes) == (
        "Spring_ _looks_.zip",
        7,
        len(data),
    )

    found, manifest = contents(data)
    assert found == [
        "front.jpg",
        "FRONT (2).jpg",
        "front (3).jpg",
        "_con.jpg",
        "漢字 ä.jpg",
        "a_b_.jpg",
        "large.jpg",
        "manifest.json",
        "SHA256SUMS",
    ]
    assert [file["asset_id"] for file in manifest["files"]] == ids and manifest["missing"] == []
    assert zipfile.ZipFile(io.BytesIO(data)).read("large.jpg") == large


@pytest.mark.long
async def test_a_download_of_variants_falls_back_to_the_original(ada: Client) -> None:
    album = await create(ada)
    picture = await flows.upload(ada, DATA, file_name="front.jpg")
    pdf = await flows.upload(
        ada,
        pictures.pdf(),
        kind=asset_pb2.ASSET_KIND_DOCUMENT,
        mime_type="application/pdf",
        file_name="plan.pdf",
    )
    await flows.variants_of(ada, picture.id)
    await add(ada, album, picture.id, pdf.id)
    head, data = await download(ada, album, "small")
    names, manifest = contents(data)
    assert (names[:2], head.size_bytes) == (["front.webp", "plan.pdf"], len(data))
    assert [file["mime_type"] for file in manifest["files"]] == ["image/webp", "application/pdf"]

    refusal = await calls.refused(download(ada, album, "huge"), grpc.StatusCode.INVALID_ARGUMENT)
    assert refusal.fields == ["variant"]


async def test_what_vanished_is_listed_and_not_fatal(suite: Suite, ada: Client) -> None:
    album = await create(ada)
    ids = [(await flows.upload(ada, DATA, file_name=f"{n}.jpg")).id for n in range(3)]
    await add(ada, album, *ids)
    for path in suite.storage.root.rglob(f"{ids[1]}/original/*"):
        path.unlink()
    head, data = await download(ada, album)

    names, manifest = contents(data)
    assert names == ["0.jpg", "2.jpg", "manifest.json", "SHA256SUMS"] and head.file_count == 3
    assert manifest["missing"] == [{"path": "1.jpg", "asset_id": ids[1]}]


async def test_bytes_that_a_download_sends_are_counted_for_their_owner_and_sessions(
    suite: Suite, ada: Client, caller: Callable[..., Client]
) -> None:
    album = await create(ada, visibility=PUBLIC)
    files = [flows.jpeg(64, 48, seed) for seed in (1, 2)]
    made = [await flows.upload(ada, d, visibility=PUBLIC, scope={"session_id": "s"}) for d in files]
    await add(ada, album, *(asset.id for asset in made))
    await download(caller(), album)
    async with asyncio.timeout(10):
        while not (sent := (await storage.report(ada)).bandwidth_this_month.downloaded_bytes):
            await asyncio.sleep(0.1)
    assert sent == sum(map(len, files))

    await storage.folded(suite)
    request = storage_report_pb2.ListStorageSessionsRequest()
    assert [
        s.sent_bytes for s in (await storage.reports(ada).ListStorageSessions(request)).sessions
    ] == [sent]


async def test_an_empty_album_has_no_download(ada: Client, caller: Callable[..., Client]) -> None:
    album = await create(ada, visibility=PUBLIC)
    await add(ada, album, *await some_assets(ada, 1))
    refusal = await calls.refused(download(caller(), album), grpc.StatusCode.FAILED_PRECONDITION)
    assert refusal.reason == "WRONG_STATE"
