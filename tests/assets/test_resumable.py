"""A file comes in parts, over connections that break: it is joined once and verified like any
upload, or gone without a trace."""

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pikepdf
import pytest
from atelier.assets.v1 import asset_pb2, resumable_pb2

from services.assets.core import rules
from shared.storage import open_disk, read_secret
from tests import calls, versitygw
from tests.assets import flows
from tests.suite import Client, Suite, browser

MIB = 1024 * 1024
READY, REJECTED = asset_pb2.ASSET_STATE_READY, asset_pb2.ASSET_STATE_REJECTED
DOCUMENT: dict[str, Any] = {"kind": asset_pb2.ASSET_KIND_DOCUMENT, "mime_type": "application/pdf"}
SMALL = flows.jpeg(64, 48)


def large_pdf(size: int) -> bytes:
    document, file = pikepdf.new(), io.BytesIO()
    document.add_blank_page()
    document.Root.Data = document.make_stream(os.urandom(size))
    document.save(file)
    return file.getvalue()


LARGE = large_pdf(17 * MIB)  # three parts


async def sign(client: Client, upload_id: str, *numbers: int) -> list[resumable_pb2.PartTarget]:
    request = resumable_pb2.SignPartsRequest(upload_id=upload_id, part_numbers=numbers)
    return list((await flows.resumable(client).SignParts(request)).targets)


async def look(client: Client, upload_id: str) -> resumable_pb2.GetResumableUploadResponse:
    request = resumable_pb2.GetResumableUploadRequest(upload_id=upload_id)
    seen: resumable_pb2.GetResumableUploadResponse = await flows.resumable(
        client
    ).GetResumableUpload(request)
    return seen


async def complete(
    client: Client, upload_id: str, **fields: Any
) -> resumable_pb2.CompleteResumableUploadResponse:
    request = resumable_pb2.CompleteResumableUploadRequest(
        upload_id=upload_id, include_urls=True, **fields
    )
    completed: resumable_pb2.CompleteResumableUploadResponse = await flows.resumable(
        client
    ).CompleteResumableUpload(request)
    return completed


async def abort(client: Client, upload_id: str) -> asset_pb2.Asset:
    request = resumable_pb2.AbortResumableUploadRequest(upload_id=upload_id)
    aborted: asset_pb2.Asset = (await flows.resumable(client).AbortResumableUpload(request)).asset
    return aborted


async def stored(suite: Suite, client: Client) -> list[str]:
    """Returns the keys of the caller's objects without variants, which are made meanwhile."""
    storage = open_disk(
        suite.storage.root, base_url="http://x", secret=read_secret(suite.storage.secret_file)
    )
    keys = [found.key async for found in storage.list(f"assets/user%3A{client.subject}/")]
    await storage.close()
    return [key for key in keys if "/variants/" not in key]


def unfinished(suite: Suite, upload_id: str) -> list[Path]:
    """Returns the folder in which parts of this upload are."""
    [(name,)] = suite.sql(
        "SELECT multipart FROM assets.resumable_uploads WHERE id = %s", (upload_id,)
    )
    return [path for path in (suite.storage.root / "incoming").iterdir() if path.name == name]


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.needs_go)])
async def own_suite(
    request: pytest.FixtureRequest, own_suite: Suite, tmp_path: Path
) -> AsyncIterator[Suite]:
    """The suite on a database of its own, with either store."""
    if request.param == "disk":
        await own_suite.serve("assets")
        yield own_suite
        return
    with versitygw.running(tmp_path) as gateway:
        own_suite.overrides |= {
            "storage": "s3",
            "s3_endpoint": gateway.endpoint,
            "s3_bucket": gateway.bucket,
            "s3_access_key": gateway.access_key,
            "s3_secret_key": gateway.secret_key,
        }
        await own_suite.serve("assets")
        yield own_suite
        await own_suite.stop("assets")


async def test_a_file_in_parts_becomes_an_asset_in_either_store(own_suite: Suite) -> None:
    ada = own_suite.client("ada")
    started = await flows.start(ada, LARGE, **DOCUMENT)
    assert (started.part_size_bytes, started.part_count, len(started.targets)) == (8 * MIB, 3, 3)
    assert started.asset.state == asset_pb2.ASSET_STATE_PENDING

    # The connection breaks after two parts, the last part first. The upload continues later,
    # perhaps elsewhere.
    await flows.send_parts([started.targets[2], started.targets[0]], LARGE)
    seen = await look(ada, started.upload_id)
    assert [(p.part_number, p.size_bytes) for p in seen.parts] == [
        (1, 8 * MIB),
        (3, len(LARGE) - 16 * MIB),
    ]
    assert list(seen.missing_part_numbers) == [2] and seen.expire_time == started.expire_time

    request = resumable_pb2.CompleteResumableUploadRequest(upload_id=started.upload_id)
    refusal = await calls.refused(
        flows.resumable(ada).CompleteResumableUpload(request), grpc.StatusCode.FAILED_PRECONDITION
    )
    assert refusal.reason == "PARTS_MISSING"
    assert refusal.metadata == {"parts": "2"}

    await flows.send_parts(await sign(ada, started.upload_id, 2), LARGE)
    done = await complete(ada, started.upload_id)
    assert (done.asset.state, done.asset.size_bytes, done.asset.sha256) == (
        READY,
        len(LARGE),
        hashlib.sha256(LARGE).hexdigest(),
    )
    async with browser() as http:
        assert (await http.get(done.asset.original_url)).content == LARGE
    assert (await complete(ada, started.upload_id)).asset.file_path == done.asset.file_path

    over = await look(ada, started.upload_id)
    assert over.asset.state == READY and not over.parts and not over.missing_part_numbers


async def test_completes_at_once_end_as_one_in_either_store(own_suite: Suite) -> None:
    ada = own_suite.client("ada")
    started = await flows.start(ada, LARGE, **DOCUMENT)
    await flows.send_parts(started.targets, LARGE)

    async def insist() -> asset_pb2.Asset:
        while True:
            try:
                return (await complete(ada, started.upload_id)).asset
            except grpc.aio.AioRpcError as error:
                refused = calls.refusal_of(error)
                assert refused.reason in ("REQUEST_IN_PROGRESS", "DEPENDENCY_UNAVAILABLE"), refused
                await asyncio.sleep(0.1)

    done = await asyncio.gather(*(insist() for _ in range(4)))
    assert {asset.state for asset in done} == {READY} and len(
        {asset.file_path for asset in done}
    ) == 1


async def test_what_is_in_parts_is_verified_like_any_upload(suite: Suite, ada: Client) -> None:
    for data, fields, rejection in (
        (b"<html>" + bytes(100), {}, "ACTIVE_CONTENT"),
        (SMALL, {"sha256": "0" * 64}, "HASH_MISMATCH"),
        (SMALL, {"mime_type": "image/png"}, "TYPE_MISMATCH"),
    ):
        started = await flows.start(ada, data, **fields)
        await flows.send_parts(started.targets, data)
        request = resumable_pb2.CompleteResumableUploadRequest(upload_id=started.upload_id)
        for _ in range(2):
            refusal = await calls.refused(
                flows.resumable(ada).CompleteResumableUpload(request),
                grpc.StatusCode.FAILED_PRECONDITION,
            )
            assert (refusal.reason, refusal.metadata["rejection"]) == ("UPLOAD_REJECTED", rejection)
        assert (await look(ada, started.upload_id)).asset.state == REJECTED
    assert await stored(suite, ada) == []


async def test_a_part_has_exactly_its_bytes(suite: Suite, ada: Client) -> None:
    started = await flows.start(ada, SMALL)
    [target] = started.targets
    async with browser() as http:
        for wrong in (SMALL + b"x", SMALL[:-1], b""):
            assert (await http.put(target.url, content=wrong)).status_code in (403, 413)
        assert (
            await http.put(target.url.replace("part=1", "part=2"), content=SMALL)
        ).status_code == 403
    assert list((await look(ada, started.upload_id)).missing_part_numbers) == [1]

    await flows.send_parts([target], SMALL[::-1])
    await flows.send_parts([target], SMALL)  # sent again: the later one counts
    assert (await complete(ada, started.upload_id)).asset.state == READY
    assert len(await stored(suite, ada)) == 1 and unfinished(suite, started.upload_id) == []


async def test_a_crash_after_joining_is_mended_by_completing_again(
    suite: Suite, ada: Client
) -> None:
    started = await flows.start(ada, SMALL)
    await flows.send_parts(started.targets, SMALL)
    storage = open_disk(
        suite.storage.root, base_url="http://x", secret=read_secret(suite.storage.secret_file)
    )
    [(key, name)] = suite.sql(
        "SELECT upload_key, multipart FROM assets.resumable_uploads WHERE id = %s",
        (started.upload_id,),
    )
    await storage.complete_multipart(key, name, await storage.list_parts(key, name))
    await storage.close()
    assert (await look(ada, started.upload_id)).asset.state == asset_pb2.ASSET_STATE_PENDING

    done = await complete(ada, started.upload_id)
    assert done.asset.state == READY and await stored(suite, ada) == [done.asset.file_path]


async def test_an_aborted_upload_leaves_nothing_and_stays_aborted(
    suite: Suite, ada: Client
) -> None:
    started = await flows.start(ada, SMALL)
    await flows.send_parts(started.targets, SMALL)
    for _ in range(2):
        aborted = await abort(ada, started.upload_id)
        assert (aborted.state, aborted.rejection) == (REJECTED, "ABORTED")
    assert await stored(suite, ada) == [] and unfinished(suite, started.upload_id) == []
    async with browser() as http:
        assert (await http.put(started.targets[0].url, content=SMALL)).status_code == 404

    request = resumable_pb2.CompleteResumableUploadRequest(upload_id=started.upload_id)
    refusal = await calls.refused(
        flows.resumable(ada).CompleteResumableUpload(request), grpc.StatusCode.FAILED_PRECONDITION
    )
    assert (refusal.reason, refusal.metadata["rejection"]) == ("UPLOAD_REJECTED", "ABORTED")

    sign_again = resumable_pb2.SignPartsRequest(upload_id=started.upload_id, part_numbers=[1])
    over = await calls.refused(
        flows.resumable(ada).SignParts(sign_again), grpc.StatusCode.FAILED_PRECONDITION
    )
    assert over.reason == "WRONG_STATE"


async def test_a_completed_upload_is_not_aborted(suite: Suite, ada: Client) -> None:
    started = await flows.start(ada, SMALL)
    await flows.send_parts(started.targets, SMALL)
    done = await complete(ada, started.upload_id)
    request = resumable_pb2.AbortResumableUploadRequest(upload_id=started.upload_id)
    refusal = await calls.refused(
        flows.resumable(ada).AbortResumableUpload(request), grpc.StatusCode.FAILED_PRECONDITION
    )
    assert refusal.reason == "WRONG_STATE"
    assert (await flows.get(ada, done.asset.id)).state == READY


async def test_an_expired_upload_takes_no_more_parts(suite: Suite, ada: Client) -> None:
    started = await flows.start(ada, SMALL)
    full = await flows.start(ada, SMALL)
    await flows.send_parts(full.targets, SMALL)
    ids = [started.upload_id, full.upload_id]
    await suite.change(
        "UPDATE assets.resumable_uploads SET expires_at = now() WHERE id = ANY(%s::uuid[])", (ids,)
    )

    for request, method in (
        (
            resumable_pb2.SignPartsRequest(upload_id=started.upload_id, part_numbers=[1]),
            "SignParts",
        ),
        (
            resumable_pb2.CompleteResumableUploadRequest(upload_id=started.upload_id),
            "CompleteResumableUpload",
        ),
    ):
        refusal = await calls.refused(
            getattr(flows.resumable(ada), method)(request),
            grpc.StatusCode.FAILED_PRECONDITION,
            "start another",
        )
        assert refusal.reason == "WRONG_STATE"
    assert (await complete(ada, full.upload_id)).asset.state == READY, "what came in time counts"


async def test_a_repeated_start_goes_on_with_the_same_upload(suite: Suite, ada: Client) -> None:
    request = resumable_pb2.StartResumableUploadRequest(
        request_id="again", declaration=flows.declaration(SMALL)
    )
    answers = await asyncio.gather(
        *(flows.resumable(ada).StartResumableUpload(request) for _ in range(6))
    )
    assert len({answer.upload_id for answer in answers}) == 1 and all(
        answer.targets for answer in answers
    )

    names = suite.sql(
        "SELECT multipart FROM assets.resumable_uploads WHERE owner = %s", (f"user:{ada.subject}",)
    )
    assert len(names) == 1 and len(unfinished(suite, answers[0].upload_id)) == 1

    request.declaration.file_name = "other.jpg"
    refusal = await calls.refused(
        flows.resumable(ada).StartResumableUpload(request), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.reason == "REQUEST_ID_REUSED"


async def test_completing_tells_of_duplicates_and_a_repeat_is_the_same(
    suite: Suite, ada: Client
) -> None:
    first = await flows.upload(ada, SMALL)
    started = await flows.start(ada, SMALL)
    await flows.send_parts(started.targets, SMALL)
    done = await complete(ada, started.upload_id, request_id="done")
    assert [each.asset_id for each in done.duplicates] == [first.id]
    again = await complete(ada, started.upload_id, request_id="done")
    assert (again.asset.id, again.asset.file_path) == (done.asset.id, done.asset.file_path)
    assert again.duplicates == done.duplicates


async def test_anothers_upload_does_not_exist(
    suite: Suite, ada: Client, caller: Callable[..., Client]
) -> None:
    started = await flows.start(ada, SMALL)
    bob = caller()

    for method, request in (
        (
            "SignParts",
            resumable_pb2.SignPartsRequest(upload_id=started.upload_id, part_numbers=[1]),
        ),
        (
            "GetResumableUpload",
            resumable_pb2.GetResumableUploadRequest(upload_id=started.upload_id),
        ),
        (
            "CompleteResumableUpload",
            resumable_pb2.CompleteResumableUploadRequest(upload_id=started.upload_id),
        ),
        (
            "AbortResumableUpload",
            resumable_pb2.AbortResumableUploadRequest(upload_id=started.upload_id),
        ),
    ):
        await calls.refused(
            getattr(flows.resumable(bob), method)(request), grpc.StatusCode.NOT_FOUND
        )
    assert (await look(ada, started.upload_id)).asset.state == asset_pb2.ASSET_STATE_PENDING


@pytest.mark.parametrize(
    ("numbers", "path"),
    [
        ((), "part_numbers"),
        ((0,), "part_numbers[0]"),
        ((-1,), "part_numbers[0]"),
        ((1, 2), "part_numbers[1]"),
        ((1, 1), "part_numbers"),
        ((2**31 - 1,), "part_numbers[0]"),
        (tuple(range(1, 102)), "part_numbers"),
    ],
)
async def test_parts_that_a_file_has_not_are_refused(
    ada: Client, numbers: tuple[int, ...], path: str
) -> None:
    started = await flows.start(ada, SMALL)
    request = resumable_pb2.SignPartsRequest(upload_id=started.upload_id, part_numbers=numbers)
    refusal = await calls.refused(
        flows.resumable(ada).SignParts(request), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.fields == [path]


@pytest.mark.parametrize(
    ("size", "part", "count"),
    [
        (1, 8 * MIB, 1),
        (8 * MIB, 8 * MIB, 1),
        (8 * MIB + 1, 8 * MIB, 2),
        (8000 * MIB, 8 * MIB, 1000),
        (8000 * MIB + 1, 9 * MIB, 889),
        (5 * 1024 * 1024 * MIB, 5243 * MIB, 1000),
    ],
)
def test_a_file_of_any_size_has_at_most_a_thousand_parts(size: int, part: int, count: int) -> None:
    assert rules.part_bytes(size) == part
    sizes = rules.part_sizes(size, part)
    assert (len(sizes), sum(sizes.values()), min(sizes)) == (count, size, 1)
