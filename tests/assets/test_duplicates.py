"""An owner learns which bytes are stored already, before and after sending them, also in the
trash."""

import hashlib
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, duplicate_pb2, duplicate_pb2_grpc, upload_pb2

from tests import calls
from tests.assets import flows
from tests.suite import Client, Suite

DATA = flows.jpeg(64, 48)
SHA256 = hashlib.sha256(DATA).hexdigest()
TRASH = (
    "UPDATE assets.assets SET deleted_at = now(), expires_at = now() + interval '30 days' WHERE id"
    " = %s"
)


def duplicates(client: Client) -> Any:
    return client.stub(duplicate_pb2_grpc.DuplicateServiceStub)


async def find(client: Client, *hashes: str) -> list[duplicate_pb2.DuplicateGroup]:
    request = duplicate_pb2.FindDuplicatesRequest(sha256s=hashes)
    return list((await duplicates(client).FindDuplicates(request)).groups)


async def listed(client: Client, **fields: Any) -> tuple[list[duplicate_pb2.DuplicateGroup], str]:
    page = await duplicates(client).ListDuplicates(duplicate_pb2.ListDuplicatesRequest(**fields))
    return list(page.groups), page.next_page_token


async def test_confirming_tells_of_assets_with_the_same_bytes(suite: Suite, ada: Client) -> None:
    first = await flows.upload(ada, DATA, file_name="first.jpg")
    trashed = await flows.upload(ada, DATA)
    suite.sql(TRASH, (trashed.id,))
    requested = await flows.announce(ada, DATA)
    await flows.send(requested.target, DATA)
    confirm = upload_pb2.ConfirmUploadRequest(upload_id=requested.upload_id)

    told = list((await flows.uploads(ada).ConfirmUpload(confirm)).duplicates)
    assert [(d.asset_id, d.in_trash) for d in told] == [(trashed.id, True), (first.id, False)]
    assert told[0].HasField("expire_time") and not told[1].HasField("expire_time")
    assert (told[1].file_name, told[1].kind) == ("first.jpg", first.kind)
    assert list((await flows.uploads(ada).ConfirmUpload(confirm)).duplicates) == told, (
        "a repeat is told the same"
    )


async def test_the_streamed_upload_tells_so_too(suite: Suite, ada: Client) -> None:
    first = await flows.upload(ada, DATA)
    parts = [
        upload_pb2.UploadRequest(head={"declaration": flows.declaration(DATA)}),
        upload_pb2.UploadRequest(chunk=DATA),
    ]
    answer = await flows.uploads(ada).Upload(calls.aiter_of(parts))
    assert [d.asset_id for d in answer.duplicates] == [first.id] and answer.asset.id != first.id


async def test_bytes_are_found_before_they_are_sent(suite: Suite, ada: Client) -> None:
    assert await find(ada, SHA256) == []
    asset = await flows.upload(ada, DATA)
    await flows.announce(ada, DATA)  # not READY, so its bytes aren't known
    other = flows.jpeg(64, 48, seed=5)
    second = await flows.upload(ada, other)
    unknown = hashlib.sha256(b"").hexdigest()

    groups = await find(ada, second.sha256, unknown, SHA256)
    assert [(g.sha256, g.total, [d.asset_id for d in g.assets]) for g in groups] == [
        (second.sha256, 1, [second.id]),
        (SHA256, 1, [asset.id]),
    ]
    assert groups[1].size_bytes == len(DATA)


async def test_what_others_keep_is_no_duplicate(
    suite: Suite, ada: Client, caller: Callable[..., Client]
) -> None:
    bob = caller()
    await flows.upload(bob, DATA, visibility=asset_pb2.VISIBILITY_PUBLIC)
    await flows.upload(bob, DATA)
    assert await find(ada, SHA256) == []
    assert await listed(ada) == ([], "")

    requested = await flows.announce(ada, DATA)
    await flows.send(requested.target, DATA)
    confirm = upload_pb2.ConfirmUploadRequest(upload_id=requested.upload_id)
    assert not (await flows.uploads(ada).ConfirmUpload(confirm)).duplicates


@pytest.mark.long
async def test_groups_are_listed_in_pages_newest_first(suite: Suite, ada: Client) -> None:
    pictures = [flows.jpeg(64, 48, seed=seed) for seed in (11, 12, 13)]
    for data in (*pictures, *pictures, pictures[0]):
        newest = await flows.upload(ada, data)
    await flows.upload(ada, DATA)  # once only
    suite.sql(TRASH, (newest.id,))
    await suite.change("UPDATE assets.assets SET archived_at = now() WHERE id = %s", (newest.id,))
    expected = [hashlib.sha256(pictures[n]).hexdigest() for n in (0, 2, 1)]
    everything, token = await listed(ada)
    assert [group.sha256 for group in everything] == expected and not token
    assert [group.total for group in everything] == [3, 2, 2]
    assert (everything[0].assets[0].in_trash, everything[0].assets[0].archived) == (True, True)

    first, token = await listed(ada, page_size=2)
    rest, end = await listed(ada, page_size=2, page_token=token)
    assert [*first, *rest] == everything and not end
    assert (await listed(ada, skip=1))[0] == everything[1:]


async def test_more_copies_than_are_shown_are_counted(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    columns = (
        "owner, created_by, kind, state, public, free, file_name, storage_key, size_bytes,"
        " mime_type, sha256"
    )
    suite.sql(
        f"INSERT INTO assets.assets (id, {columns}) SELECT gen_random_uuid(), {columns}"
        " FROM assets.assets, generate_series(1, 24) WHERE id = %s",
        (asset.id,),
    )

    [group] = await find(ada, SHA256)
    assert (len(group.assets), group.total) == (20, 25)


@pytest.mark.parametrize(
    ("hashes", "path"),
    [
        ((), "sha256s"),
        (("A" * 64,), "sha256s[0]"),
        (("a" * 63,), "sha256s[0]"),
        ((SHA256, SHA256), "sha256s"),
        (tuple(f"{n:064x}" for n in range(101)), "sha256s"),
        (("%" * 64,), "sha256s[0]"),
    ],
)
async def test_what_is_no_list_of_hashes_is_refused(
    ada: Client, hashes: tuple[str, ...], path: str
) -> None:
    request = duplicate_pb2.FindDuplicatesRequest(sha256s=hashes)
    refusal = await calls.refused(
        duplicates(ada).FindDuplicates(request), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.fields == [path]
