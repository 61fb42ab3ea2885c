"""The counts are true, whoever changed the rows and whenever they are read."""

import asyncio
import base64
import json
from collections.abc import Callable

import grpc
import pytest
from atelier.assets.v1 import album_pb2, asset_pb2, document_pb2, variant_pb2
from atelier.assets.v1 import storage_report_pb2 as pb

from services.assets.accounting import rules as storage_rules
from tests import calls
from tests.assets import flows, storage
from tests.assets import test_albums as albums
from tests.assets import test_documents as documents
from tests.suite import Client, Suite

DATA = flows.jpeg(64, 48)


def owner_of(client: Client) -> str:
    return f"user:{client.subject}"


async def test_a_report_counts_what_is_there_by_kind_type_and_status(
    suite: Suite, ada: Client
) -> None:
    ready = await flows.upload(ada, DATA, scope=asset_pb2.AssetScope(session_id="visit"))
    await flows.announce(ada, DATA, kind=asset_pb2.ASSET_KIND_PHOTO)
    broken = await flows.announce(ada, DATA)
    await flows.send(broken.target, b"\0" * len(DATA))
    await calls.refused(flows.confirm(ada, broken.upload_id), grpc.StatusCode.FAILED_PRECONDITION)
    variants = await flows.variants_of(ada, ready.id)

    report = await storage.report(ada)
    assert report.owner == owner_of(ada)
    counted = {(c.kind, c.mime_type, c.status): (c.assets, c.bytes) for c in report.asset_counts}
    product, photo = asset_pb2.ASSET_KIND_PRODUCT, asset_pb2.ASSET_KIND_PHOTO
    assert counted == {
        (product, "image/jpeg", pb.STORAGE_STATUS_READY): (1, len(DATA)),
        (product, "image/jpeg", pb.STORAGE_STATUS_REJECTED): (1, 0),
        (photo, "image/jpeg", pb.STORAGE_STATUS_PENDING): (1, len(DATA)),
    }
    made = {(c.preset, c.state): (c.variants, c.bytes) for c in report.variant_counts}
    assert made == {
        (name, asset_pb2.VARIANT_STATE_READY): (1, v.size_bytes) for name, v in variants.items()
    }
    assert (report.assets, report.stored_bytes) == storage.truth(suite, owner_of(ada))
    assert (report.pending_uploads, report.failed_variants) == (1, 0)
    assert report.upload_success_rate == 0.5 and report.variant_failure_rate == 0
    [average] = report.average_sizes
    assert (average.mime_type, average.assets, average.average_bytes) == (
        "image/jpeg",
        1,
        len(DATA),
    )


async def test_folding_changes_no_figure(suite: Suite, ada: Client) -> None:
    await flows.upload(ada, DATA, scope=asset_pb2.AssetScope(session_id="visit"))
    reports = []
    async with asyncio.timeout(20):
        while True:  # from before the first change is folded until all are
            report = await storage.report(ada)
            reports.append((report.assets, report.upload_success_rate, len(report.asset_counts)))
            if not suite.sql(
                "SELECT 1 FROM assets.storage_deltas WHERE owner = %s", (owner_of(ada),)
            ):
                break
    assert set(reports) == {(1, 1.0, 1)}

    await storage.settled(suite, owner_of(ada))
    report = await storage.report(ada)
    assert (report.assets, report.stored_bytes) == storage.truth(suite, owner_of(ada))


async def test_every_way_a_row_changes_or_goes_is_counted(suite: Suite, ada: Client) -> None:
    made = [await flows.upload(ada, DATA) for _ in range(3)]
    for asset in made:
        await flows.variants_of(ada, asset.id)
    mine = {"owner": owner_of(ada), "id": made[0].id}

    for statement, statuses in (
        (
            "UPDATE assets.assets SET archived_at = now() WHERE id = %(id)s",
            {pb.STORAGE_STATUS_ARCHIVED: 1},
        ),
        (
            (
                "UPDATE assets.assets SET deleted_at = now(), expires_at = now() WHERE owner ="
                " %(owner)s"
            ),
            {pb.STORAGE_STATUS_DELETED: 3},
        ),
        ("DELETE FROM assets.assets WHERE id = %(id)s", {pb.STORAGE_STATUS_DELETED: 2}),
        ("DELETE FROM assets.assets WHERE owner = %(owner)s", {}),
    ):
        suite.sql(statement, mine)
        report = await storage.report(ada)

        found = {
            c.status: c.assets for c in report.asset_counts if c.status != pb.STORAGE_STATUS_READY
        }
        assert found == statuses, statement
        assert (report.assets, report.stored_bytes) == storage.truth(suite, owner_of(ada)), (
            statement
        )
    assert not report.variant_counts and report.stored_bytes == 0


async def test_a_refused_upload_uses_nothing_in_the_trash_either(suite: Suite, ada: Client) -> None:
    broken = await flows.announce(ada, DATA)
    await flows.send(broken.target, b"\0" * len(DATA))
    await calls.refused(flows.confirm(ada, broken.upload_id), grpc.StatusCode.FAILED_PRECONDITION)
    await suite.change(
        "UPDATE assets.assets SET deleted_at = now(), expires_at = now() WHERE id = %s",
        (broken.asset.id,),
    )

    report = await storage.report(ada)
    assert [c.status for c in report.asset_counts] == [pb.STORAGE_STATUS_REJECTED]
    assert (report.assets, report.stored_bytes) == (0, 0)


async def test_deleting_as_the_serving_and_the_working_role_counts_the_variants_too(
    suite: Suite, ada: Client
) -> None:
    from shared.database.db import Database
    from shared.database.rows import Command

    for role in ("app", "worker"):
        asset = await flows.upload(ada, DATA)
        await flows.variants_of(ada, asset.id)
        db = Database(suite.settings("assets", role), "assets", pool_size=1)
        await db.open()
        try:
            async with db.transaction(owner_of(ada)) as m:
                await m.run(Command("DELETE FROM assets WHERE id = %(id)s"), {"id": asset.id})
        finally:
            await db.close()
        report = await storage.report(ada)
        assert (report.assets, report.stored_bytes, len(report.variant_counts)) == (0, 0, 0), role


async def test_a_change_that_is_rolled_back_is_not_counted(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    await flows.variants_of(
        ada, asset.id
    )  # the worker locks the row in the event loop, which the next line blocks
    with calls.holding(suite, "DELETE FROM assets.assets WHERE id = %s", (asset.id,)):
        assert (await storage.report(ada)).assets == 1
    assert (await storage.report(ada)).assets == 1


async def test_a_download_is_counted_exactly_and_an_issued_url_once(
    suite: Suite, ada: Client
) -> None:
    asset = await flows.upload(ada, DATA, scope=asset_pb2.AssetScope(session_id="visit"))
    ready = (
        "SELECT size_bytes FROM assets.variants WHERE asset_id = %s AND state = 'ready' ORDER BY"
        " preset = 'thumb'"
    )
    async with asyncio.timeout(30):
        while len(sizes := [size for (size,) in suite.sql(ready, (asset.id,))]) < 4:
            await asyncio.sleep(0.1)

    for _ in range(2):
        async for _part in flows.assets(ada).DownloadAsset(
            asset_pb2.DownloadAssetRequest(asset_id=asset.id)
        ):
            pass

    async for _part in flows.assets(ada).DownloadAsset(
        asset_pb2.DownloadAssetRequest(asset_id=asset.id, variant="thumb")
    ):
        pass
    await flows.get(ada, asset.id)
    await flows.get(ada, asset.id, include_urls=True)
    for with_urls in (True, False):
        listed = variant_pb2.ListVariantsRequest(asset_id=asset.id, include_urls=with_urls)
        await flows.variants(ada).ListVariants(listed)

    for with_urls in (True, False):
        named = variant_pb2.GetVariantRequest(
            asset_id=asset.id, preset="thumb", include_urls=with_urls
        )
        await flows.variants(ada).GetVariant(named)

    expected = pb.Bandwidth(
        downloaded_bytes=2 * len(DATA) + sizes[-1], issued_bytes=len(DATA) + max(sizes) + sizes[-1]
    )
    async with asyncio.timeout(10):
        while (report := await storage.report(ada)).bandwidth_this_month != expected:
            await asyncio.sleep(0.1)
    assert report.bandwidth_last_30_days == expected

    await storage.folded(suite)
    [session] = (
        await storage.reports(ada).ListStorageSessions(pb.ListStorageSessionsRequest())
    ).sessions
    sent = expected.downloaded_bytes + len(DATA)  # sessions don't count variants
    assert session == pb.SessionUsage(
        session_id="visit", assets=1, stored_bytes=len(DATA), sent_bytes=sent
    )


async def test_a_server_that_stops_writes_what_it_counted(own_suite: Suite) -> None:
    await own_suite.serve("assets")
    ada = own_suite.client("ada")
    asset = await flows.upload(ada, DATA)
    for _ in range(3):
        await flows.get(ada, asset.id, include_urls=True)
    await own_suite.stop("assets")

    counted = (
        "SELECT sum(number)::int, sum(bytes)::int FROM assets.storage_deltas WHERE noun ="
        " 'download'"
    )
    assert own_suite.sql(counted) == [(3, 3 * len(DATA))]


async def test_documents_and_albums_that_are_sent_count_too(suite: Suite, ada: Client) -> None:
    asset = await flows.upload(ada, DATA)
    album = (await albums.stub(ada).CreateAlbum(album_pb2.CreateAlbumRequest(name="trip"))).album
    added = album_pb2.AddAlbumAssetsRequest(album_id=album.id, asset_ids=[asset.id])
    await albums.stub(ada).AddAlbumAssets(added)
    document = await documents.create(ada, documents.checklist())

    await albums.download(ada, album)
    sent = len(await documents.download(ada, document)) + len(
        DATA
    )  # of the archive, only the asset's bytes count
    asked = document_pb2.GetDocumentRequest(document_id=document.id, include_urls=True)
    await documents.stub(ada).GetDocument(asked)

    expected = pb.Bandwidth(downloaded_bytes=sent, issued_bytes=document.size_bytes)
    async with asyncio.timeout(10):
        while (await storage.report(ada)).bandwidth_this_month != expected:
            await asyncio.sleep(0.1)


async def test_what_others_read_of_a_public_asset_counts_for_its_owner(
    suite: Suite, caller: Callable[..., Client]
) -> None:
    ada, bob = caller(), caller()
    asset = await flows.upload(ada, DATA, visibility=asset_pb2.VISIBILITY_PUBLIC)
    async for _part in flows.assets(bob).DownloadAsset(
        asset_pb2.DownloadAssetRequest(asset_id=asset.id)
    ):
        pass
    async with asyncio.timeout(10):
        while (await storage.report(ada)).bandwidth_this_month.downloaded_bytes != len(DATA):
            await asyncio.sleep(0.1)

    assert (await storage.report(bob)).bandwidth_this_month == pb.Bandwidth()


async def test_an_operator_sees_the_deployment_and_every_owner_others_only_themselves(
    suite: Suite, caller: Callable[..., Client]
) -> None:
    ada, bob, admin = caller(), caller(), caller("admin")
    before = await storage.report(admin)
    await flows.announce(ada, DATA)
    after = await storage.report(admin)
    assert after.owner == ""
    assert (after.assets - before.assets, after.stored_bytes - before.stored_bytes) == (
        1,
        len(DATA),
    )
    assert (await storage.report(admin, owner_of(ada))).pending_uploads == 1
    assert (await storage.report(ada, owner_of(ada))).pending_uploads == 1

    named = pb.GetStorageReportRequest(owner=owner_of(ada))
    await calls.refused(storage.reports(bob).GetStorageReport(named), grpc.StatusCode.NOT_FOUND)
    assert (await storage.report(bob)).assets == 0
    # The word for everybody is no owner, nor is a name without its role: totals of 0 would be
    # believed.
    for client in (bob, admin):
        for owner in ("deployment", "%", ada.subject):
            asked = storage.reports(client).GetStorageReport(
                pb.GetStorageReportRequest(owner=owner)
            )
            refusal = await calls.refused(asked, grpc.StatusCode.INVALID_ARGUMENT)
            assert refusal.fields == ["owner"], owner


async def test_the_largest_owners_and_sessions_come_first_in_pages(
    suite: Suite, caller: Callable[..., Client]
) -> None:
    ada, admin = caller(), caller("admin")
    for number in range(5):
        for _ in range(number + 1):
            await flows.announce(ada, DATA, scope=asset_pb2.AssetScope(session_id=f"s{number}"))
    await storage.folded(suite)
    found: list[pb.SessionUsage] = []
    request = pb.ListStorageSessionsRequest(page_size=2, owner=owner_of(ada))

    while True:
        page = await storage.reports(admin).ListStorageSessions(request)
        found += page.sessions
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert [s.session_id for s in found] == ["s4", "s3", "s2", "s1", "s0"]
    assert [s.stored_bytes for s in found] == [n * len(DATA) for n in (5, 4, 3, 2, 1)]

    owners = (
        await storage.reports(admin).ListStorageOwners(pb.ListStorageOwnersRequest(page_size=1000))
    ).owners
    assert [o.stored_bytes for o in owners] == sorted(
        (o.stored_bytes for o in owners), reverse=True
    )

    [mine] = [o for o in owners if o.owner == owner_of(ada)]
    assert (mine.assets, mine.stored_bytes) == (15, 15 * len(DATA))


@pytest.mark.parametrize("token", ["W10=", "WzEsMixudWxsXQ==", "x", "é", "WyIiLCAxLCAieCJd"])
async def test_a_page_token_of_something_else_is_refused(
    caller: Callable[..., Client], token: str
) -> None:
    refusal = await calls.refused(
        storage.reports(caller("admin")).ListStorageOwners(
            pb.ListStorageOwnersRequest(page_token=token)
        ),
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    assert refusal.reason == "PAGE_TOKEN_INVALID" and refusal.fields == ["page_token"]


async def test_a_page_token_with_a_name_that_is_no_text_is_refused(
    suite: Suite, ada: Client
) -> None:
    for number in range(2):
        await flows.announce(ada, DATA, scope=asset_pb2.AssetScope(session_id=f"s{number}"))
    await storage.folded(suite)
    request = pb.ListStorageSessionsRequest(page_size=1)
    digest, size, _name = json.loads(
        base64.urlsafe_b64decode(
            (await storage.reports(ada).ListStorageSessions(request)).next_page_token
        )
    )
    request.page_token = base64.urlsafe_b64encode(
        json.dumps([digest, size, "\ud800"]).encode()
    ).decode()

    refusal = await calls.refused(
        storage.reports(ada).ListStorageSessions(request), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.reason == "PAGE_TOKEN_INVALID"


async def test_only_operators_list_owners_and_project_costs(suite: Suite, ada: Client) -> None:
    for call in (
        storage.reports(ada).ListStorageOwners(pb.ListStorageOwnersRequest()),
        storage.reports(ada).ProjectCosts(pb.ProjectCostsRequest()),
    ):
        await calls.refused(call, grpc.StatusCode.PERMISSION_DENIED)


async def alerts(client: Client) -> dict[int, pb.Alert]:
    return {
        a.kind: a for a in (await storage.reports(client).ListAlerts(pb.ListAlertsRequest())).alerts
    }


async def test_alerts_fire_over_their_thresholds_and_not_before(
    suite: Suite, caller: Callable[..., Client]
) -> None:
    ada, admin = caller(), caller("admin")
    found = await alerts(ada)
    assert set(found) == {
        pb.ALERT_KIND_PENDING_UPLOADS,
        pb.ALERT_KIND_FAILED_PROCESSING,
    }, "there is no quota"
    assert not any(alert.firing for alert in found.values())

    suite.sql(
        "INSERT INTO assets.assets (id, owner, created_by, kind, public, free, file_name,"
        " size_bytes, mime_type) SELECT gen_random_uuid(), %s, 'x', 'photo', false, true, 'a', 10,"
        " 'image/jpeg' FROM generate_series(1, 100)",
        (owner_of(ada),),
    )
    await storage.set_quota(admin, owner_of(ada), stored_bytes=1250, monthly_bandwidth_bytes=100)
    found = await alerts(ada)
    assert (
        found[pb.ALERT_KIND_PENDING_UPLOADS].value,
        found[pb.ALERT_KIND_PENDING_UPLOADS].firing,
    ) == (100, False)
    assert (
        found[pb.ALERT_KIND_STORAGE_QUOTA].value,
        found[pb.ALERT_KIND_STORAGE_QUOTA].firing,
    ) == (0.8, False)

    suite.sql(
        "INSERT INTO assets.storage_deltas (owner, noun, state, number, bytes) VALUES"
        " (%(owner)s, 'making', 'failed', 1, 0), (%(owner)s, 'making', 'ready', 9, 0),"
        " (%(owner)s, 'download', 'exact', 1, 81), (%(owner)s, 'asset', 'ready', 1, 1)",
        {"owner": owner_of(ada)},
    )
    await flows.announce(ada, DATA[:1], sha256="")
    found = await alerts(ada)
    assert {kind for kind, alert in found.items() if alert.firing} == set(storage_report_kinds())
    assert found[pb.ALERT_KIND_FAILED_PROCESSING].value == 0.1
    assert all(alert.message for alert in found.values())


def storage_report_kinds() -> list[int]:
    return [
        pb.AlertKind.Value(f"ALERT_KIND_{name.upper()}") for name in storage_rules.ALERT_THRESHOLDS
    ]
