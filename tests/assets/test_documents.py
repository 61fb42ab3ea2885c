"""Checklists and renovation plans as PDFs: every version is kept, none is lost, none is shown
before it exists."""

import asyncio
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pikepdf
import pypdf
import pytest
from atelier.assets.v1 import (
    asset_pb2,
    document_pb2,
    document_pb2_grpc,
    storage_pb2,
    storage_pb2_grpc,
)

from services.assets.documents import maker as document_maker
from services.assets.documents import rules as decide
from shared.database.db import Database
from shared.imaging import ImagingPool
from shared.main import open_storage
from tests import calls
from tests.assets import flows
from tests.assets.test_trash import freed
from tests.shared.imaging import pictures
from tests.suite import Client, Suite, browser

READY = document_pb2.DOCUMENT_STATE_READY
CHECKLIST = document_pb2.DOCUMENT_KIND_CHECKLIST
PLAN = document_pb2.DOCUMENT_KIND_RENOVATION_PLAN


def stub(client: Client) -> Any:
    return client.stub(document_pb2_grpc.DocumentServiceStub)


def checklist(title: str = "Handover", **cover: Any) -> dict[str, Any]:
    items = [
        {"text": "Meter readings noted", "done": True},
        {"text": "Paint", "quantity": "2.50", "unit": "l"},
    ]
    return {
        "cover": {"title": title, **cover},
        "checklist": {"sections": [{"title": "Kitchen", "items": items}]},
    }


def plan(*picture_ids: str, **body: Any) -> dict[str, Any]:
    rooms = [{"name": "Kitchen", "area_square_metres": "18.5", "picture_asset_ids": picture_ids}]
    phases = [
        {
            "name": "Demolition",
            "start_date": "2026-03-02",
            "end_date": "2026-03-06",
            "tasks": [{"text": "Walls"}],
        }
    ]
    return {
        "cover": {"title": "Ground floor"},
        "renovation_plan": {"rooms": rooms, "phases": phases, **body},
    }


async def create(client: Client, content: dict[str, Any], **fields: Any) -> document_pb2.Document:
    """Creates a document, and waits for its end unless `wait=False`."""
    request = document_pb2.CreateDocumentRequest(
        content=content, **{"session_id": "s-1", "wait": True, **fields}
    )
    answer = await stub(client).CreateDocument(request, timeout=60)
    made: document_pb2.Document = answer.document
    return made


async def regenerate(client: Client, document_id: str, **fields: Any) -> document_pb2.Document:
    request = document_pb2.RegenerateDocumentRequest(
        document_id=document_id, **{"wait": True, **fields}
    )
    answer = await stub(client).RegenerateDocument(request, timeout=60)
    made: document_pb2.Document = answer.document
    return made


async def get(client: Client, document_id: str, **fields: Any) -> document_pb2.Document:
    answer = await stub(client).GetDocument(
        document_pb2.GetDocumentRequest(document_id=document_id, **fields)
    )
    found: document_pb2.Document = answer.document
    return found


async def download(client: Client, document: document_pb2.Document) -> bytes:
    """Downloads the PDF; checks that it opens and is what the document says."""
    request = document_pb2.DownloadDocumentRequest(document_id=document.id)
    head, *chunks = [answer async for answer in stub(client).DownloadDocument(request)]
    data = b"".join(answer.chunk for answer in chunks)
    assert (len(data), hashlib.sha256(data).hexdigest()) == (head.head.size_bytes, head.head.sha256)
    assert (document.size_bytes, document.sha256) == (head.head.size_bytes, head.head.sha256)
    with pikepdf.open(io.BytesIO(data)) as pdf:
        assert len(pdf.pages) == document.page_count
    return data


def text_of(data: bytes) -> str:
    return " ".join(
        " ".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(data)).pages).split()
    )


def held_by(suite: Suite, document_id: str) -> set[str]:
    holder = f"assets/documents/{document_id}"
    return {
        str(i)
        for (i,) in suite.sql(
            "SELECT asset_id FROM assets.asset_references WHERE holder = %s", (holder,)
        )
    }


async def test_a_checklist_is_made_from_its_data_and_opens(ada: Client) -> None:
    made = await create(
        ada, checklist(prepared_for="Maria Weber"), phase="handover", include_urls=True
    )
    assert (made.state, made.version_number, made.kind, made.phase) == (
        READY,
        1,
        CHECKLIST,
        "handover",
    )
    assert (made.title, made.file_name, list(made.warnings)) == ("Handover", "Handover-v1.pdf", [])

    said = text_of(await download(ada, made))
    for words in (
        "Handover",
        "Maria Weber",
        "Kitchen",
        "Meter readings noted",
        "2.50 l",
        "v1",
        "Page 1 of 1",
    ):
        assert words in said

    async with browser() as http:
        answer = await http.get(made.file_url)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/pdf")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert hashlib.sha256(answer.content).hexdigest() == made.sha256


async def test_a_plan_shows_pictures_at_print_resolution_and_holds_them(
    suite: Suite, ada: Client
) -> None:
    photo = await flows.upload(ada, flows.jpeg(2400, 1600))
    logo = await flows.upload(
        ada, pictures.png(), kind=asset_pb2.ASSET_KIND_LOGO, mime_type="image/png"
    )
    content = plan(photo.id)
    content["cover"]["logo_asset_id"] = logo.id
    made = await create(ada, content)
    assert (made.state, made.kind) == (READY, PLAN), made.error_message

    data = await download(ada, made)
    found = [
        image.image for page in pypdf.PdfReader(io.BytesIO(data)).pages for image in page.images
    ]
    images = [image.size for image in found if image]
    assert (2000, 1333) in images and len(images) == 2
    assert held_by(suite, made.id) == {photo.id, logo.id}


@pytest.mark.long
async def test_thirty_two_at_once_are_numbered_without_gaps_and_each_opens(
    suite: Suite, ada: Client
) -> None:
    first = await create(ada, checklist())
    made = await asyncio.gather(*(regenerate(ada, first.id) for _ in range(32)))
    assert sorted(each.version_number for each in made) == list(range(2, 34))
    assert {each.state for each in made} == {READY}

    for each in made:
        await download(ada, each)
    latest = await stub(ada).GetLatestDocument(
        document_pb2.GetLatestDocumentRequest(session_id="s-1", kind=CHECKLIST)
    )
    assert latest.document.version_number == 33


async def test_slots_count_apart(ada: Client) -> None:
    slots = [
        ("s-1", "", checklist()),
        ("s-1", "plan", checklist()),
        ("s-2", "", checklist()),
        ("s-1", "", plan()),
    ]

    for number in (1, 2, 3):
        for session, phase, content in slots:
            made = await create(ada, content, session_id=session, phase=phase, wait=False)
            assert made.version_number == number, (session, phase)


@pytest.mark.long
async def test_regenerating_uses_the_stored_data_or_what_is_new(ada: Client) -> None:
    first = await create(ada, checklist())
    again = await regenerate(ada, first.id)
    changed = await regenerate(ada, first.id, content=checklist("Handover, corrected"))
    assert [each.regenerated_from for each in (again, changed)] == [first.id] * 2
    assert (again.version_number, changed.version_number) == (2, 3)
    assert (await get(ada, again.id)).content == (await get(ada, first.id)).content
    assert "Handover, corrected" in text_of(await download(ada, changed))
    assert "corrected" not in text_of(await download(ada, first))

    refusal = await calls.refused(
        regenerate(ada, first.id, content=plan()), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.fields == ["content"]


async def test_a_repeat_with_the_same_request_id_is_the_same_version(ada: Client) -> None:
    made = await asyncio.gather(
        *(create(ada, checklist(), request_id="once", wait=False) for _ in range(8))
    )
    assert {each.id for each in made} == {made[0].id}
    refusal = await calls.refused(
        create(ada, checklist("Other"), request_id="once"), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.reason == "REQUEST_ID_REUSED"
    assert (await create(ada, checklist(), wait=False)).version_number == 2


async def test_lists_by_session_and_phase_page_and_show_no_content(
    ada: Client, caller: Callable[..., Client]
) -> None:
    for number in range(5):
        await create(ada, checklist(str(number)), phase="plan" if number % 2 else "", wait=False)
    await create(ada, checklist("elsewhere"), session_id="s-2", wait=False)

    async def listed(client: Client, **fields: Any) -> list[str]:
        found, token = [], ""
        while True:
            request = document_pb2.ListDocumentsRequest(page_size=2, page_token=token, **fields)
            answer = await stub(client).ListDocuments(request)
            assert not any(each.HasField("content") for each in answer.documents)
            found += [each.title for each in answer.documents]
            if not (token := answer.next_page_token):
                return found

    assert await listed(ada, session_id="s-1") == ["4", "3", "2", "1", "0"]
    assert await listed(ada, session_id="s-1", phase="plan") == ["3", "1"]
    assert await listed(ada, kind=PLAN) == []
    assert len(await listed(ada)) == 6
    assert await listed(caller()) == []


async def test_the_latest_ready_one_is_not_hidden_by_one_that_is_being_made(
    own_suite: Suite,
) -> None:
    await own_suite.serve("assets")
    await own_suite.work("assets")
    ada = own_suite.client()
    first = await create(ada, checklist())
    await own_suite.stop_work("assets")
    second = await regenerate(ada, first.id, wait=False)

    async def latest(**fields: Any) -> str:
        request = document_pb2.GetLatestDocumentRequest(session_id="s-1", kind=CHECKLIST, **fields)
        return str((await stub(ada).GetLatestDocument(request)).document.id)

    assert (await latest(), await latest(ready_only=True)) == (second.id, first.id)
    await calls.refused(
        stub(ada).DownloadDocument(document_pb2.DownloadDocumentRequest(document_id=second.id)),
        grpc.StatusCode.FAILED_PRECONDITION,
    )


async def test_a_watch_tells_what_is_there_then_every_change_and_goes_on_from_its_cursor(
    own_suite: Suite,
) -> None:
    await own_suite.serve("assets")
    await own_suite.work("assets")
    ada = own_suite.client()
    there, _elsewhere = (
        await create(ada, checklist()),
        await create(ada, checklist(), session_id="s-2"),
    )

    async def told(until: int, **fields: Any) -> tuple[list[tuple[int, int]], str]:
        """Returns (version number, state) of each change up to the READY version `until`, and the
        cursor before the last."""
        found: list[tuple[int, int]] = []
        cursor = ""
        request = document_pb2.WatchDocumentsRequest(session_id="s-1", **fields)
        async for item in stub(ada).WatchDocuments(request, timeout=30):
            if item.WhichOneof("item") == "bookmark":
                marked.set()
                continue
            found.append((item.document.version_number, item.document.state))
            if found[-1] == (until, READY):
                return found, cursor
            cursor = item.cursor
        raise AssertionError("the watch ended")

    marked = asyncio.Event()
    watching = asyncio.create_task(told(2))
    await marked.wait()
    await create(ada, checklist(), session_id="s-2", wait=False)
    await regenerate(ada, there.id)
    found, cursor = await watching
    pending, processing = (
        document_pb2.DOCUMENT_STATE_PENDING,
        document_pb2.DOCUMENT_STATE_PROCESSING,
    )
    assert found == [(1, READY), (2, pending), (2, processing), (2, READY)]
    assert await told(2, cursor=cursor) == ([(2, READY)], "")


async def test_a_watch_tells_what_was_purged_in_its_session(own_suite: Suite) -> None:
    await own_suite.serve("assets")
    await own_suite.work("assets")
    ada = own_suite.client()
    mine, other = [await create(ada, checklist(), session_id=session) for session in ("w-1", "w-2")]
    stream = stub(ada).WatchDocuments(
        document_pb2.WatchDocumentsRequest(session_id="w-1"), timeout=30
    )
    while not (await stream.read()).bookmark.ready:
        pass
    for each in (other, mine):
        await stub(ada).PurgeDocument(document_pb2.PurgeDocumentRequest(document_id=each.id))

    told = await stream.read()
    assert (told.purged.document_id, told.purged.session_id) == (mine.id, "w-1")
    assert told.purged.HasField("purge_time") and told.cursor
    stream.cancel()


@pytest.mark.long
async def test_what_has_expired_is_gone_with_its_bytes_and_its_number_never_comes_back(
    own_suite: Suite,
) -> None:
    await own_suite.serve("assets")
    await own_suite.work("assets")
    ada = own_suite.client()
    photo = await flows.upload(ada, flows.jpeg(64, 48))
    old, kept = await create(ada, plan(photo.id)), await create(ada, plan(photo.id), keep_days=3650)
    await own_suite.change(
        "UPDATE assets.documents SET expires_at = now() - interval '1 second' WHERE id = %s",
        (old.id,),
    )
    await calls.refused(get(ada, old.id), grpc.StatusCode.NOT_FOUND)

    request = storage_pb2.RunCleanupRequest(wait=True)
    cleaned = (
        await own_suite.client("root", "admin")
        .stub(storage_pb2_grpc.StorageServiceStub)
        .RunCleanup(request)
    )
    assert {c.what: c.done for c in cleaned.run.counts}["expired_documents"] == 1

    await freed(own_suite, old.id)
    assert held_by(own_suite, old.id) == set() and held_by(own_suite, kept.id) == {photo.id}
    await download(ada, kept)
    await stub(ada).PurgeDocument(document_pb2.PurgeDocumentRequest(document_id=kept.id))
    await freed(own_suite, kept.id)
    await calls.refused(get(ada, kept.id), grpc.StatusCode.NOT_FOUND)
    assert (await create(ada, plan(), wait=False)).version_number == 3


async def test_a_picture_that_is_gone_by_then_is_named_and_the_rest_is_there(
    suite: Suite, ada: Client
) -> None:
    photo, other = [await flows.upload(ada, flows.jpeg(64, 48, seed=n)) for n in (1, 2)]
    for path in suite.storage.root.rglob(f"{photo.id}/original/*"):
        path.unlink()
    made = await create(ada, plan(photo.id, other.id))
    assert (made.state, list(made.warnings)) == (READY, [f"picture: {photo.id}: it is gone"])
    assert "Kitchen" in text_of(await download(ada, made))


async def test_pictures_must_be_ready_images_that_the_caller_may_see(
    suite: Suite, ada: Client, caller: Callable[..., Client]
) -> None:
    pdf = await flows.upload(
        ada, pictures.pdf(), kind=asset_pb2.ASSET_KIND_DOCUMENT, mime_type="application/pdf"
    )
    pending = (await flows.announce(ada, flows.jpeg(64, 48))).asset
    foreign = await flows.upload(caller(), flows.jpeg(64, 48))
    trashed = await flows.upload(ada, flows.jpeg(64, 48, seed=3))
    await suite.change(
        "UPDATE assets.assets SET deleted_at = now(), expires_at = now() WHERE id = %s",
        (trashed.id,),
    )

    for asset, code in (
        (pdf, grpc.StatusCode.INVALID_ARGUMENT),
        (pending, grpc.StatusCode.FAILED_PRECONDITION),
        (foreign, grpc.StatusCode.NOT_FOUND),
        (trashed, grpc.StatusCode.FAILED_PRECONDITION),
    ):
        await calls.refused(create(ada, plan(asset.id), session_id="none"), code)
    assert suite.sql("SELECT count(*) FROM assets.document_slots WHERE session_id = 'none'") == [
        (0,)
    ]


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ({"cover": {"title": "x"}}, "content.body"),
        ({"checklist": {"sections": [{"title": "x"}]}}, "content.cover"),
        ({"cover": {"title": "x"}, "checklist": {}}, "content.checklist.sections"),
        (
            {"cover": {"title": ""}, "checklist": {"sections": [{"title": "x"}]}},
            "content.cover.title",
        ),
        (
            plan(phases=[{"name": "x", "start_date": "2026-02-30"}]),
            "content.renovation_plan.phases[0].start_date",
        ),
        (
            plan(phases=[{"name": "x", "start_date": "2026-03-02", "end_date": "2026-03-01"}]),
            "content.renovation_plan.phases[0].end_date",
        ),
        (
            plan(milestones=[{"date": "0000-01-01", "text": "x"}]),
            "content.renovation_plan.milestones[0].date",
        ),
        (
            plan(budget=[{"description": "x", "unit_price": "1,5", "currency": "EUR"}]),
            "content.renovation_plan.budget[0].unit_price",
        ),
        (
            plan(budget=[{"description": "x", "unit_price": "NaN", "currency": "EUR"}]),
            "content.renovation_plan.budget[0].unit_price",
        ),
        (
            plan(budget=[{"description": "x", "unit_price": "1", "currency": "euro"}]),
            "content.renovation_plan.budget[0].currency",
        ),
        (
            {
                "cover": {"title": "x"},
                "checklist": {"sections": [{"title": "x", "items": [{"text": "y"}] * 700}] * 3},
            },
            "content.checklist.sections",
        ),
        (
            {
                "cover": {"title": "x"},
                "checklist": {"sections": [{"title": "x", "items": [{"text": "y" * 1000}] * 301}]},
            },
            "content.checklist",
        ),
        (
            plan(phases=[{"name": "x", "tasks": [{"text": "y\n" * 100 + "y"}] * 150}]),
            "content.renovation_plan",
        ),
        (
            plan(phases=[{"name": "x", "tasks": [{"text": "y"}] * 200}] * 11),
            "content.renovation_plan.phases",
        ),
        (
            plan(
                rooms=[{"name": "x", "picture_asset_ids": [flows.request_id() for _ in range(6)]}]
                * 7
            ),
            "content.renovation_plan.rooms",
        ),
    ],
)
async def test_content_that_does_not_hold_together_is_refused(
    ada: Client, content: dict[str, Any], path: str
) -> None:
    refusal = await calls.refused(create(ada, content), grpc.StatusCode.INVALID_ARGUMENT)
    assert refusal.fields == [path]


WORDS = ("Every wall of the kitchen is plastered anew before the tiles are laid. " * 40)[:1990]


@pytest.mark.long
@pytest.mark.parametrize(
    ("text", "note"), [(WORDS[:1000], WORDS), ("x", "y\n" * 100)], ids=["words", "lines"]
)
@pytest.mark.parametrize("kind", ["checklist", "renovation_plan"])
async def test_as_much_text_as_is_allowed_is_printed(
    ada: Client, kind: str, text: str, note: str
) -> None:
    entry = {"text": text, "note": note}
    entries = [entry] * (decide.MOST_TEXT // decide.amount_of_text(entry))
    if kind == "checklist":
        body: dict[str, Any] = {"sections": [{"title": "All of it", "items": entries}]}
    else:
        # As many pixels of pictures as a document may have: with more, each would be printed
        # smaller.
        shown = [(await flows.upload(ada, flows.jpeg(1500, 1500, seed))).id for seed in range(6)]
        body = {
            "phases": [{"name": "All of it", "tasks": entries}],
            "rooms": [{"name": "x", "picture_asset_ids": shown}],
        }

    made = await create(ada, {"cover": {"title": "x"}, kind: body})
    assert made.state == READY, made.error_message


async def test_texts_that_look_like_code_come_back_and_are_printed_as_they_are(ada: Client) -> None:
    attacks = (
        '#read("/etc/passwd")',
        "*bold* $x^2$ `raw`",
        "<script>alert(1)</script>",
        "'; DROP TABLE documents; --",
    )
    items = [{"text": text, "note": text} for text in attacks]
    content = {
        "cover": {"title": attacks[0]},
        "checklist": {"sections": [{"title": attacks[2], "items": items}]},
    }
    made = await create(ada, content, session_id="%_\\", phase=attacks[3])
    said = text_of(await download(ada, made))
    assert all(text in said for text in attacks) and "root:" not in said

    kept = await get(ada, made.id)
    assert [item.text for item in kept.content.checklist.sections[0].items] == list(attacks)
    assert (kept.session_id, kept.phase) == ("%_\\", attacks[3])

    await calls.refused(create(ada, checklist("a\x00b")), grpc.StatusCode.INVALID_ARGUMENT)


async def test_characters_that_no_font_has_are_listed(ada: Client) -> None:
    made = await create(ada, checklist("שלום 漢 Жук"))
    [warning] = made.warnings
    assert (
        made.state == READY
        and warning.startswith("missing glyphs: 漢; ")
        and "ATELIER_FONTS" in warning
    )


@pytest.mark.long
async def test_a_document_is_made_although_its_worker_was_stopped_in_between(
    own_suite: Suite,
) -> None:
    await own_suite.serve("assets")
    ada = own_suite.client()
    made = [await create(ada, checklist(str(n)), wait=False) for n in range(4)]
    await own_suite.work("assets")

    async with asyncio.timeout(20):
        while not own_suite.sql("SELECT 1 FROM assets.documents WHERE state <> 'pending'"):
            await asyncio.sleep(0.01)

    await own_suite.stop_work("assets")
    await own_suite.work("assets")
    again = await asyncio.gather(*(regenerate(ada, each.id) for each in made))
    assert sorted(each.version_number for each in again) == [5, 6, 7, 8]
    for each in made:
        assert (await get(ada, each.id)).state == READY

    stored = {
        str(p.relative_to(own_suite.storage.root / "data"))
        for p in own_suite.storage.root.rglob("*.pdf")
    }
    shown = {key for (key,) in own_suite.sql("SELECT storage_key FROM assets.documents")}
    assert shown <= stored and len([key for key in stored if made[0].id in key]) == 1


async def test_a_try_that_lost_its_row_leaves_no_bytes_behind(
    own_suite: Suite, tmp_path: Path
) -> None:
    """Another worker takes the row over while the PDF is stored: the PDF of this attempt is
    deleted."""
    await own_suite.serve("assets")
    ada = own_suite.client()
    made = await create(ada, checklist(), wait=False)
    settings = own_suite.settings("assets", "worker")
    db, storage, pool = Database(settings, "assets"), open_storage(settings), ImagingPool(1)
    await db.open()
    put = storage.put

    async def put_and_lose(key: str, *args: Any, **options: Any) -> Any:
        stat = await put(key, *args, **options)
        await own_suite.change("UPDATE assets.documents SET attempt_token = %s", (UUID(int=1),))
        return stat

    storage.put = put_and_lose  # type: ignore[method-assign]
    try:
        await document_maker.DocumentMaker(db, storage, pool).run(made.id)
    finally:
        await pool.close()
        await storage.close()
        await db.close()
    assert not [
        path for path in own_suite.storage.root.rglob(f"{made.id}/artifacts/*") if path.is_file()
    ]
    assert (await get(ada, made.id)).state == document_pb2.DOCUMENT_STATE_PROCESSING


async def test_a_watch_of_assets_tells_nothing_of_documents(suite: Suite, ada: Client) -> None:
    watching = flows.assets(ada).WatchAssets(asset_pb2.WatchAssetsRequest(), timeout=30)
    assert (await watching.read()).bookmark.ready
    await create(ada, checklist())
    announced = await flows.announce(ada, flows.jpeg(64, 48))
    assert (await watching.read()).asset.id == announced.asset.id
    watching.cancel()
