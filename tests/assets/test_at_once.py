"""Whatever an owner does at once, no deadlock arises: everything locks in one order."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import (
    album_pb2,
    album_pb2_grpc,
    asset_pb2,
    render_pb2,
    render_pb2_grpc,
    variant_pb2,
)

from tests import calls
from tests.assets import flows
from tests.assets.test_trash import ask, in_product
from tests.suite import Client, Suite

DATA = flows.jpeg(64, 48)
# Refusals that callers may get while others change the same things; a deadlock is none of them.
_EXPECTED = {"NOT_FOUND", "WRONG_STATE", "IN_USE", "ETAG_MISMATCH"}


def albums(client: Client) -> Any:
    return client.stub(album_pb2_grpc.AlbumServiceStub)


async def album(client: Client, name: str, ids: Sequence[str]) -> str:
    made = (await albums(client).CreateAlbum(album_pb2.CreateAlbumRequest(name=name))).album
    await albums(client).AddAlbumAssets(
        album_pb2.AddAlbumAssetsRequest(album_id=made.id, asset_ids=ids)
    )
    return str(made.id)


async def repeat(times: int, act: Callable[[], Awaitable[Any]], wrong: list[str]) -> None:
    for _ in range(times):
        try:
            await act()
        except grpc.aio.AioRpcError as error:
            refused = calls.refusal_of(error)
            if refused.reason not in _EXPECTED and not refused.text.startswith(
                "its product is being changed"
            ):
                wrong.append(f"{refused.reason}: {refused.text}")


@pytest.mark.long
async def test_all_that_an_owner_may_do_at_once_ends_without_a_deadlock(
    suite: Suite, ada: Client
) -> None:
    """The same assets see batches in any order, albums, primaries, variants, comparisons,
    confirmations and purges."""
    ids = [(await flows.upload(ada, DATA, **in_product("jacket"))).id for _ in range(8)]
    holding = [await album(ada, name, ids) for name in ("one", "two", "three")]
    dice = random.Random(7)
    wrong: list[str] = []

    def some(number: int = 4) -> list[str]:
        return dice.sample(ids, number)

    async def trash_and_back() -> None:
        chosen = some()
        await flows.assets(ada).BatchDeleteAssets(
            asset_pb2.BatchDeleteAssetsRequest(asset_ids=chosen, force=True)
        )
        await flows.assets(ada).BatchUndeleteAssets(
            asset_pb2.BatchUndeleteAssetsRequest(asset_ids=chosen[::-1])
        )

    async def in_and_out() -> None:
        chosen: Any = {"album_id": dice.choice(holding), "asset_ids": some()}
        await albums(ada).RemoveAlbumAssets(album_pb2.RemoveAlbumAssetsRequest(**chosen))
        await albums(ada).AddAlbumAssets(album_pb2.AddAlbumAssetsRequest(**chosen))

    async def archive_and_back() -> None:
        [one] = some(1)
        await ask(ada, "Archive", one)
        await ask(ada, "Unarchive", one)

    async def make_primary() -> None:
        await flows.update(ada, some(1)[0], primary=True)

    async def lead_another() -> None:
        """Moves an asset into another product. It leads there if it should or if no other does;
        another asset leads the former product."""
        fields = dice.choice(({"primary": True}, {}))
        await flows.update(ada, some(1)[0], **fields, **in_product(dice.choice(("jacket", "coat"))))

    async def make_again() -> None:
        await flows.variants(ada).RegenerateVariants(
            variant_pb2.RegenerateVariantsRequest(asset_id=some(1)[0])
        )

    async def compare() -> None:
        before, after = some(2)
        request = render_pb2.CreateComparisonRequest(before_asset_id=before, after_asset_id=after)
        stub = ada.stub(render_pb2_grpc.ComparisonServiceStub)
        made = (await stub.CreateComparison(request)).comparison
        await stub.DeleteComparison(render_pb2.DeleteComparisonRequest(comparison_id=made.id))

    async def come_and_go() -> None:
        """Purges an asset while its variants are being made, with or without being a primary."""
        made = await flows.upload(ada, DATA, **in_product("jacket"))
        await albums(ada).AddAlbumAssets(
            album_pb2.AddAlbumAssetsRequest(album_id=dice.choice(holding), asset_ids=[made.id])
        )
        await ask(ada, "Purge", made.id, force=True)

    acts = (
        trash_and_back,
        trash_and_back,
        in_and_out,
        archive_and_back,
        make_primary,
        lead_another,
        make_again,
        compare,
    )
    await asyncio.gather(
        *(repeat(12, act, wrong) for act in acts),
        *(repeat(6, come_and_go, wrong) for _ in range(3)),
    )
    assert wrong == []
    failed = (
        "SELECT job, error_class, error_message FROM assets.attempts WHERE error_class = 'INTERNAL'"
        " AND owner = %s"
    )
    assert suite.sql(failed, (f"user:{ada.subject}",)) == []
