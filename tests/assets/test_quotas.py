"""Nothing exceeds a quota, whoever sends it, however, and however many at once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2, upload_pb2
from atelier.assets.v1 import quota_pb2 as pb
from google.rpc import error_details_pb2

from tests import calls
from tests.assets import flows, storage
from tests.assets.test_report import owner_of
from tests.suite import Client, Suite

DATA = flows.jpeg(64, 48)
SIZE = len(DATA)
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def request() -> upload_pb2.RequestUploadRequest:
    return upload_pb2.RequestUploadRequest(declaration=flows.declaration(DATA))


def head() -> upload_pb2.UploadHead:
    return upload_pb2.UploadHead(declaration=flows.declaration(DATA))


WAYS: dict[str, Callable[[Client], Awaitable[Any]]] = {
    "by a signed URL": lambda client: flows.uploads(client).RequestUpload(request()),
    "in one call": lambda client: flows.stream_upload(client, head(), DATA),
}


@pytest.fixture
def admin(caller: Callable[..., Client]) -> Client:
    return caller("admin")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("quota", "limit", "used"),
    [("stored_bytes", 2 * SIZE, 2 * SIZE), ("assets", 2, 2)],
    ids=["bytes", "assets"],
)
async def test_an_upload_that_does_not_fit_is_refused_with_quota_limit_and_use(
    suite: Suite, ada: Client, admin: Client, way: str, quota: str, limit: int, used: int
) -> None:
    await storage.set_quota(admin, owner_of(ada), **{quota: limit})
    for _ in range(2):
        await flows.announce(ada, DATA)  # pending uploads count with their declared size
    refusal = await calls.refused(WAYS[way](ada), EXHAUSTED)
    assert refusal.reason == "QUOTA_EXCEEDED"

    needed = SIZE if quota == "stored_bytes" else 1
    figures = {"limit": str(limit), "used": str(used), "needed": str(needed)}
    assert refusal.metadata == {"quota": quota, **figures}

    [violation] = refusal.detail(error_details_pb2.QuotaFailure).violations
    assert violation.subject == owner_of(ada) and str(limit) in violation.description
    assert "purge" in refusal.text, "what to do next"
    assert (await storage.report(ada)).assets == 2, "nothing was kept"


async def test_purging_makes_room_the_trash_does_not(
    suite: Suite, ada: Client, admin: Client
) -> None:
    await storage.set_quota(admin, owner_of(ada), assets=1)
    asset = await flows.upload(ada, DATA)
    await suite.change(
        "UPDATE assets.assets SET deleted_at = now(), expires_at = now() WHERE id = %s", (asset.id,)
    )
    assert (await calls.refused(flows.announce(ada, DATA), EXHAUSTED)).reason == "QUOTA_EXCEEDED"
    await suite.change("DELETE FROM assets.assets WHERE id = %s", (asset.id,))
    assert (await flows.upload(ada, DATA)).state == asset_pb2.ASSET_STATE_READY


@pytest.mark.parametrize(
    ("limits", "fit"),
    [
        ({"stored_bytes": 20 * SIZE + SIZE // 2}, 20),
        ({"assets": 7}, 7),
        ({"assets": 7, "stored_bytes": 5 * SIZE}, 5),
    ],
    ids=["bytes", "assets", "both"],
)
async def test_uploads_at_once_never_go_over_it_and_use_it_up(
    suite: Suite, ada: Client, admin: Client, limits: dict[str, int], fit: int
) -> None:
    await storage.set_quota(admin, owner_of(ada), **limits)
    answers = await asyncio.gather(
        *(flows.uploads(ada).RequestUpload(request()) for _ in range(32)), return_exceptions=True
    )
    served = [a for a in answers if isinstance(a, upload_pb2.RequestUploadResponse)]

    refused = [calls.refusal_of(a) for a in answers if isinstance(a, grpc.aio.AioRpcError)]
    assert len(served) == fit
    assert {r.reason for r in refused} == {"QUOTA_EXCEEDED"} and len(refused) == 32 - fit
    assert storage.truth(suite, owner_of(ada)) == (fit, fit * SIZE)


async def test_uploads_far_from_the_limit_do_not_wait_for_each_other(
    suite: Suite, ada: Client, admin: Client
) -> None:
    await storage.set_quota(admin, owner_of(ada), stored_bytes=10**15)
    key = "\x1f".join(("quota", owner_of(ada)))
    # Stands for another upload of this owner that is announced and not yet committed.
    with calls.holding(
        suite, "SELECT pg_advisory_xact_lock_shared(hashtextextended(%s, 3))", (key,)
    ):
        await flows.announce(ada, DATA)
    await storage.set_quota(admin, owner_of(ada), stored_bytes=10 * SIZE)

    with calls.holding(
        suite, "SELECT pg_advisory_xact_lock_shared(hashtextextended(%s, 3))", (key,)
    ):
        waiting = asyncio.ensure_future(flows.announce(ada, DATA))
        async with asyncio.timeout(10):
            while not suite.sql(
                "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ):
                await asyncio.sleep(0.02)
        assert not waiting.done(), "near the limit they take turns"
    await waiting


async def test_a_quota_that_was_lowered_holds_when_the_upload_is_settled(
    suite: Suite, ada: Client, admin: Client
) -> None:
    requested = await flows.announce(ada, DATA)
    await flows.send(requested.target, DATA)
    await storage.set_quota(admin, owner_of(ada), stored_bytes=SIZE - 1)
    refusal = await calls.refused(flows.confirm(ada, requested.upload_id), EXHAUSTED)
    assert (refusal.reason, refusal.metadata["used"]) == ("QUOTA_EXCEEDED", str(SIZE))
    assert (await flows.get(ada, requested.asset.id)).state == asset_pb2.ASSET_STATE_PENDING

    left = [
        p for p in suite.storage.root.rglob(f"user%3A{ada.subject}/**/original/*") if p.is_file()
    ]
    assert left == [], "the verified copy is gone"

    await storage.set_quota(admin, owner_of(ada), stored_bytes=SIZE)
    assert (await flows.confirm(ada, requested.upload_id)).state == asset_pb2.ASSET_STATE_READY


async def test_variants_use_room_but_never_take_what_an_upload_was_promised(
    suite: Suite, ada: Client, admin: Client
) -> None:
    await storage.set_quota(admin, owner_of(ada), stored_bytes=2 * SIZE)
    promised = await flows.announce(ada, DATA)
    first = await flows.upload(ada, DATA)
    variants = await flows.variants_of(ada, first.id)
    assert all(v.state == asset_pb2.VARIANT_STATE_READY for v in variants.values())

    quota = await storage.quotas(ada).GetQuota(pb.GetQuotaRequest())
    used = {use.kind: use.used for use in quota.uses}
    assert used[pb.QUOTA_KIND_STORED_BYTES] == 2 * SIZE + sum(
        v.size_bytes for v in variants.values()
    )

    await flows.send(promised.target, DATA)
    assert (await flows.confirm(ada, promised.upload_id)).state == asset_pb2.ASSET_STATE_READY


async def test_bandwidth_that_is_used_up_stops_uploads_and_no_reading(
    suite: Suite, ada: Client, admin: Client
) -> None:
    asset = await flows.upload(ada, DATA)
    await storage.set_quota(admin, owner_of(ada), monthly_bandwidth_bytes=SIZE)
    async for _part in flows.assets(ada).DownloadAsset(
        asset_pb2.DownloadAssetRequest(asset_id=asset.id)
    ):
        pass
    async with asyncio.timeout(10):
        while (await storage.report(ada)).bandwidth_this_month.downloaded_bytes < SIZE:
            await asyncio.sleep(0.1)

    refusal = await calls.refused(flows.announce(ada, DATA), EXHAUSTED, "next calendar month")
    assert refusal.metadata["quota"] == "monthly_bandwidth_bytes"
    assert (await flows.get(ada, asset.id, include_urls=True)).original_url


async def test_the_deployments_quota_binds_all_owners_together(own_suite: Suite) -> None:
    own_suite.overrides |= {"quota_deployment_stored_bytes": 3 * SIZE, "quota_owner_assets": 2}
    await own_suite.serve("assets")
    ada, bob, admin = (
        own_suite.client("ada"),
        own_suite.client("bob"),
        own_suite.client("root", "admin"),
    )
    for client in (ada, ada, bob):
        await flows.announce(client, DATA)
    refusal = await calls.refused(flows.announce(bob, DATA), EXHAUSTED)
    assert refusal.metadata == {"quota": "stored_bytes"}, "how much others use is not told"

    [violation] = refusal.detail(error_details_pb2.QuotaFailure).violations
    assert violation.subject == "deployment"
    refusal = await calls.refused(flows.announce(ada, DATA), EXHAUSTED)
    assert refusal.metadata["quota"] == "assets", "the default of the settings"

    await storage.set_quota(admin, stored_bytes=0)
    assert (await flows.announce(bob, DATA)).upload_id
    await storage.set_quota(admin)
    refusal = await calls.refused(flows.announce(own_suite.client("eve"), DATA), EXHAUSTED)
    assert refusal.reason == "QUOTA_EXCEEDED"

    uses = (await storage.quotas(admin).GetQuota(pb.GetQuotaRequest())).uses
    assert {u.kind: (u.limit, u.used) for u in uses} == {
        pb.QUOTA_KIND_STORED_BYTES: (3 * SIZE, 4 * SIZE),
        pb.QUOTA_KIND_ASSETS: (0, 4),
        pb.QUOTA_KIND_MONTHLY_BANDWIDTH_BYTES: (0, 0),
    }


async def test_operators_set_and_list_quotas_owners_read_their_own(
    suite: Suite, caller: Callable[..., Client], ada: Client, admin: Client
) -> None:
    set_request = pb.SetQuotaRequest(request_id=flows.request_id(), owner=owner_of(ada), assets=5)
    first = await storage.quotas(admin).SetQuota(set_request)
    assert await storage.quotas(admin).SetQuota(set_request) == first
    assert first.quota.updated_by == admin.subject and not first.quota.HasField("stored_bytes")

    mine = await storage.quotas(ada).GetQuota(pb.GetQuotaRequest())
    assert mine.quota == first.quota
    assert {u.kind: u.limit for u in mine.uses}[pb.QUOTA_KIND_ASSETS] == 5

    await storage.set_quota(admin, owner_of(caller()), assets=1)
    page = await storage.quotas(admin).ListQuotas(pb.ListQuotasRequest(page_size=1))
    rest = await storage.quotas(admin).ListQuotas(
        pb.ListQuotasRequest(page_size=100, page_token=page.next_page_token)
    )
    assert first.quota in rest.quotas and first.quota not in page.quotas
    for call in (
        storage.quotas(ada).SetQuota(pb.SetQuotaRequest(assets=100)),
        storage.quotas(ada).ListQuotas(pb.ListQuotasRequest()),
    ):
        await calls.refused(call, grpc.StatusCode.PERMISSION_DENIED)

    other = storage.quotas(caller()).GetQuota(pb.GetQuotaRequest(owner=owner_of(ada)))
    await calls.refused(other, grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"owner": "ada"}, "owner"),
        ({"owner": "deployment"}, "owner"),
        ({"owner": "user:ada", "assets": -1}, "assets"),
        ({"owner": "user:" + "x" * 121}, "owner"),
    ],
)
async def test_a_quota_that_makes_no_sense_is_refused(
    admin: Client, fields: dict[str, Any], path: str
) -> None:
    refusal = await calls.refused(
        storage.quotas(admin).SetQuota(pb.SetQuotaRequest(**fields)),
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    assert refusal.fields == [path]


async def test_the_serving_role_cannot_raise_a_quota_without_saying_that_it_operates(
    suite: Suite,
) -> None:
    from shared.database.db import Database
    from shared.database.rows import Statement

    suite.sql(
        "INSERT INTO assets.quotas (id, owner, assets, updated_by) VALUES (gen_random_uuid(),"
        " 'user:held', 1, 'x')"
    )
    db = Database(suite.settings("assets", "app"), "assets", pool_size=1)
    await db.open()
    try:
        async with db.transaction("user:held") as m:
            assert len(await m.all(Statement(str, "SELECT owner FROM quotas"))) == 1
            changed = Statement(str, "UPDATE quotas SET assets = 100 RETURNING owner")
            assert await m.all(changed) == []
            deleted = Statement(str, "DELETE FROM quotas RETURNING owner")
            assert await m.all(deleted) == []
    finally:
        await db.close()
