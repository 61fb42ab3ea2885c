"""The promises of versions, states and lists of tech files."""

import asyncio

import grpc
import pytest
from atelier.techfiles.v1 import tech_file_pb2 as tf
from google.protobuf import field_mask_pb2, json_format, struct_pb2

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.suite import Suite
from tests.techfiles import flows

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
COMPLETED = tf.TECH_FILE_STATE_COMPLETED
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
async def suite(suite: Suite) -> Suite:
    # Many concurrent calls wait for one row, and a busy machine may be slow.
    suite.overrides |= {"pool_wait_seconds": 60.0, "lock_timeout_seconds": 60.0}
    await suite.serve("assets", "techfiles")
    return suite


def analysis(**values: object) -> struct_pb2.Struct:
    return json_format.ParseDict(values, struct_pb2.Struct())


def mask(*paths: str) -> field_mask_pb2.FieldMask:
    return field_mask_pb2.FieldMask(paths=paths)


async def test_concurrent_versions_are_numbered_exactly_with_one_latest(suite: Suite) -> None:
    ada = suite.client("ada")
    first = await flows.create(ada)
    requests = [
        tf.CreateTechFileVersionRequest(tech_file_id=first.id, reason=f"try {n}") for n in range(63)
    ]
    await asyncio.gather(
        *(flows.file_service(ada).CreateTechFileVersion(request) for request in requests)
    )
    history = await flows.versions(ada, first.id)
    assert [version.version_number for version in history] == list(
        range(64, 14, -1)
    )  # the default page of 50

    history = await flows.versions(ada, first.id, page_size=100)
    assert [version.version_number for version in history] == list(range(64, 0, -1))
    assert [version.current for version in history] == [True] + [False] * 63
    assert {version.reason for version in history[1:]} == {f"try {n}" for n in range(63)}

    [latest] = await flows.listed(ada, product_id=flows.PRODUCT, versions=tf.VERSION_FILTER_LATEST)
    assert (latest.id, latest.version_number, latest.is_latest) == (first.id, 64, True)


async def test_concurrent_files_in_one_slot_are_numbered_exactly_with_one_latest(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    made = await asyncio.gather(*(flows.create(ada) for _ in range(64)))
    assert sorted(file.version_number for file in made) == list(range(1, 65))

    by_number = {file.version_number: file for file in made}
    files = await flows.listed(ada, page_size=100)
    assert [file.version_number for file in files if file.is_latest] == [64]
    for file in files:
        earlier = by_number[file.version_number - 1].id if file.version_number > 1 else ""
        assert file.parent_file_id == earlier


async def test_numbers_stay_exact_while_files_are_made_changed_and_archived_at_once(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    service = flows.file_service(ada)
    files = [await flows.create(ada) for _ in range(4)]
    calls = []

    for n in range(40):
        file_id = files[n % 4].id
        update = tf.UpdateTechFileRequest(
            tech_file_id=file_id, update_mask=mask("model"), model=f"m{n}"
        )
        calls += [flows.create(ada), service.UpdateTechFile(update)]
        if n % 10 == 0:
            calls.append(service.ArchiveTechFile(tf.ArchiveTechFileRequest(tech_file_id=file_id)))

    done = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in done if isinstance(answer, grpc.aio.AioRpcError)]
    assert {refusal.code() for refusal in refused} <= {
        PRECONDITION
    }  # the files that came after the archiving

    history = await flows.versions(ada, files[0].id, page_size=1000)
    assert [v.version_number for v in history] == list(range(84 - len(refused), 0, -1))
    live = [v for v in history if v.current and not v.tech_file.HasField("archive_time")]
    assert [v.version_number for v in live if v.tech_file.is_latest] == [
        max(v.version_number for v in live)
    ]
    assert sum(v.tech_file.is_latest for v in history if v.current) == 1


async def test_an_update_keeps_what_was_there_before_under_its_number(suite: Suite) -> None:
    ada = suite.client("ada")
    file = await flows.create(
        ada, analysis=analysis(call_outs=[{"name": "collar"}]), credits_used=1
    )
    changed = await flows.file_service(ada).UpdateTechFile(
        tf.UpdateTechFileRequest(
            tech_file_id=file.id,
            etag=file.etag,
            reason="client feedback",
            update_mask=mask("analysis", "confidence"),
            analysis=analysis(call_outs=[{"name": "stand collar"}]),
            confidence=0.9,
        )
    )
    assert changed.tech_file.version_number == 2 and changed.tech_file.confidence == 0.9
    assert changed.tech_file.credits_used == 1

    now, before = await flows.versions(ada, file.id)
    assert (now.version_number, now.current, before.version_number, before.current) == (
        2,
        True,
        1,
        False,
    )
    assert before.reason == "client feedback" and before.created_by == "ada"
    assert before.tech_file.analysis == file.analysis
    assert not before.tech_file.HasField("confidence")
    assert before.tech_file.create_time == file.create_time
    await refused(
        flows.file_service(ada).UpdateTechFile(
            tf.UpdateTechFileRequest(
                tech_file_id=file.id, etag=file.etag, update_mask=mask("model"), model="x"
            )
        ),
        grpc.StatusCode.ABORTED,
        "etag",
    )
    assert len(await flows.versions(ada, file.id)) == 2


async def test_a_new_file_in_the_slot_continues_its_numbers_and_its_history(suite: Suite) -> None:
    ada = suite.client("ada")
    first = await flows.create(ada)
    await flows.file_service(ada).CreateTechFileVersion(
        tf.CreateTechFileVersionRequest(tech_file_id=first.id)
    )
    second = await flows.create(ada)
    assert second.version_number == 3 and second.parent_file_id == first.id and second.is_latest
    assert not (await flows.get(ada, first.id)).is_latest
    for file_id in (first.id, second.id):
        history = await flows.versions(ada, file_id)
        assert [(v.version_number, v.tech_file_id, v.current) for v in history] == [
            (3, second.id, True),
            (2, first.id, True),
            (1, first.id, False),
        ]

    other = await flows.create(ada, view_type=tf.VIEW_TYPE_BACK)
    assert other.version_number == 1 and other.parent_file_id == ""


async def test_archiving_the_latest_promotes_the_newest_live_file_and_keeps_the_state(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    service = flows.file_service(ada)
    files = [await flows.create(ada, state=tf.TECH_FILE_STATE_PROCESSING) for _ in range(3)]
    await service.ArchiveTechFile(tf.ArchiveTechFileRequest(tech_file_id=files[1].id))
    archived = (
        await service.ArchiveTechFile(tf.ArchiveTechFileRequest(tech_file_id=files[2].id))
    ).tech_file
    assert archived.HasField("archive_time") and archived.state == tf.TECH_FILE_STATE_PROCESSING
    assert not archived.is_latest

    [latest] = await flows.listed(ada, versions=tf.VERSION_FILTER_LATEST)
    assert latest.id == files[0].id
    assert [f.id for f in await flows.listed(ada)] == [files[0].id]

    only = await flows.listed(ada, archived=tf.ARCHIVED_FILTER_ONLY)
    assert [f.id for f in only] == [files[2].id, files[1].id]
    assert len(await flows.listed(ada, archived=tf.ARCHIVED_FILTER_INCLUDED)) == 3
    await refused(
        service.CreateTechFileVersion(tf.CreateTechFileVersionRequest(tech_file_id=files[2].id)),
        PRECONDITION,
        "archived",
    )

    back = (
        await service.UnarchiveTechFile(tf.UnarchiveTechFileRequest(tech_file_id=files[2].id))
    ).tech_file
    assert (
        back.is_latest
        and back.state == tf.TECH_FILE_STATE_PROCESSING
        and not back.HasField("archive_time")
    )
    assert not (await flows.get(ada, files[0].id)).is_latest


async def test_an_unfinished_or_failed_version_does_not_hide_the_completed_one(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    done = await flows.create(ada)
    await flows.create(ada, state=tf.TECH_FILE_STATE_FAILED, error_message="no edges found")
    await flows.create(ada, state=tf.TECH_FILE_STATE_PROCESSING)
    [latest] = await flows.listed(ada, versions=tf.VERSION_FILTER_LATEST)
    assert latest.version_number == 3

    [completed] = await flows.listed(ada, versions=tf.VERSION_FILTER_LATEST_COMPLETED)
    assert completed.id == done.id
    await refused(
        flows.listed(
            ada, versions=tf.VERSION_FILTER_LATEST_COMPLETED, state=tf.TECH_FILE_STATE_FAILED
        ),
        INVALID,
        "LATEST_COMPLETED",
    )


async def test_a_final_state_is_final(suite: Suite) -> None:
    ada = suite.client("ada")
    service = flows.file_service(ada)
    file = await flows.create(ada, state=tf.TECH_FILE_STATE_PENDING)

    async def move(state: tf.TechFileState, message: str = "") -> tf.TechFile:
        request = tf.UpdateTechFileStatusRequest(
            tech_file_id=file.id, state=state, error_message=message
        )
        moved: tf.TechFile = (await service.UpdateTechFileStatus(request)).tech_file
        return moved

    assert (await move(tf.TECH_FILE_STATE_PROCESSING)).version_number == 1
    await refused(move(tf.TECH_FILE_STATE_COMPLETED, "but why"), INVALID, "error_message")
    failed = await move(tf.TECH_FILE_STATE_FAILED, "the model refused")
    assert failed.error_message == "the model refused"
    await refused(move(tf.TECH_FILE_STATE_COMPLETED), PRECONDITION, "failed")
    await refused(move(tf.TECH_FILE_STATE_PENDING), INVALID)


BROKEN: list[tuple[dict[str, object], str]] = [
    ({"file_type": tf.TECH_FILE_TYPE_BASE_VIEW}, "revision_id"),
    ({"file_type": tf.TECH_FILE_TYPE_BASE_VIEW, "revision_id": "r", "view_type": 0}, "view_type"),
    (
        {"file_type": tf.TECH_FILE_TYPE_BASE_VIEW, "revision_id": "r", "file_category": "x"},
        "file_category",
    ),
    ({"file_type": tf.TECH_FILE_TYPE_CLOSEUP}, "file_category"),
    (
        {"file_type": tf.TECH_FILE_TYPE_CLOSEUP, "file_category": "Zip", "revision_id": "r"},
        "revision_id",
    ),
    ({"view_type": 0}, "view_type"),
    ({"file_type": tf.TECH_FILE_TYPE_CATEGORY}, "view_type"),
    ({"file_type": tf.TECH_FILE_TYPE_COMPLETE_PACK, "view_type": 0}, "collection_id"),
    ({"file_type": 99}, "file_type"),
    ({"confidence": 80.0}, "confidence"),
    ({"quality_score": float("nan")}, "quality_score"),
    ({"credits_used": -1}, "credits_used"),
    ({"product_id": ""}, "product_id"),
    ({"product_id": "a\x00b"}, "NUL"),
    ({"file_asset_id": "not-an-id"}, "file_asset_id"),
    ({"analysis": analysis(text="x" * 300_000)}, "analysis"),
    ({"error_message": "only failed files have one"}, "error_message"),
]


async def test_a_file_that_breaks_a_rule_is_refused_with_the_field(suite: Suite) -> None:
    ada = suite.client("ada")
    for fields, word in BROKEN:
        await refused(flows.create(ada, **fields), INVALID, word)
    assert suite.sql("SELECT count(*) FROM techfiles.tech_files")[0][0] == 0


async def test_an_update_takes_whole_fields_and_not_too_many(suite: Suite) -> None:
    ada = suite.client("ada")
    file = await flows.create(ada)
    for paths in (
        ["analysis.foo"],
        ["analysis.fields"],
        ["model.x"],
        ["prompt."],
        ["model"] * 101,
        [],
    ):
        request = tf.UpdateTechFileRequest(
            tech_file_id=file.id, update_mask=mask(*paths), model="m"
        )
        await refused(flows.file_service(ada).UpdateTechFile(request), INVALID, "update_mask")

    assert await flows.get(ada, file.id) == file


@pytest.mark.long
async def test_a_file_takes_only_a_ready_picture_of_its_owner_and_shows_its_urls(
    suite: Suite,
) -> None:
    await suite.work("assets")
    ada, bob = suite.client("ada"), suite.client("bob")
    asset = await asset_flows.upload(ada, asset_flows.jpeg())
    await refused(flows.create(bob, file_asset_id=asset.id), NOT_FOUND)

    await asset_flows.variants_of(ada, asset.id)
    file = await flows.create(ada, file_asset_id=asset.id)
    assert file.file_url == ""

    seen = await flows.get(ada, file.id, include_urls=True)
    assert seen.file_url.startswith("http") and seen.thumbnail_url.startswith("http")
    [listed] = await flows.listed(ada, include_urls=True)
    assert listed.file_url.startswith("http")

    holders = suite.sql("SELECT holder FROM assets.asset_references")
    assert [row[0] for row in holders] == [f"techfiles/products/{flows.PRODUCT}"]


async def test_a_repeat_gives_the_same_file_and_another_body_is_refused(suite: Suite) -> None:
    ada = suite.client("ada")
    name = flows.request_id()
    made = await asyncio.gather(*(flows.create(ada, request_id=name) for _ in range(8)))
    assert len({file.id for file in made}) == 1 and made[0].version_number == 1
    await refused(flows.create(ada, request_id=name, model="another"), INVALID, "request_id")


async def test_another_owner_neither_sees_nor_counts_nor_changes_a_file(suite: Suite) -> None:
    ada, bob = suite.client("ada"), suite.client("bob")
    file = await flows.create(ada)
    service = flows.file_service(bob)

    for call, request in (
        (service.GetTechFile, tf.GetTechFileRequest(tech_file_id=file.id)),
        (
            service.UpdateTechFile,
            tf.UpdateTechFileRequest(tech_file_id=file.id, update_mask=mask("model"), model="x"),
        ),
        (
            service.UpdateTechFileStatus,
            tf.UpdateTechFileStatusRequest(
                tech_file_id=file.id, state=tf.TECH_FILE_STATE_COMPLETED
            ),
        ),
        (service.ArchiveTechFile, tf.ArchiveTechFileRequest(tech_file_id=file.id)),
        (service.UnarchiveTechFile, tf.UnarchiveTechFileRequest(tech_file_id=file.id)),
        (service.CreateTechFileVersion, tf.CreateTechFileVersionRequest(tech_file_id=file.id)),
        (service.ListTechFileVersions, tf.ListTechFileVersionsRequest(tech_file_id=file.id)),
    ):
        await refused(call(request), NOT_FOUND)
    assert await flows.listed(bob, product_id=flows.PRODUCT) == []

    figures = await service.GetProductStatistics(
        tf.GetProductStatisticsRequest(product_id=flows.PRODUCT)
    )
    assert figures == tf.GetProductStatisticsResponse()

    own = await flows.create(bob)
    assert own.version_number == 1 and own.parent_file_id == ""
    assert (await flows.get(ada, file.id)).etag == file.etag


async def test_lists_filter_by_every_field_and_page_through_all(suite: Suite) -> None:
    ada = suite.client("ada")
    for number in range(7):
        await flows.create(
            ada,
            file_type=tf.TECH_FILE_TYPE_CLOSEUP,
            view_type=0,
            file_category=f"shot {number}",
            batch_id="b-1",
        )

    view = await flows.create(
        ada, file_type=tf.TECH_FILE_TYPE_BASE_VIEW, revision_id="rev-9", product_id="product-2"
    )
    assert [f.id for f in await flows.listed(ada, revision_id="rev-9")] == [view.id]
    assert [f.id for f in await flows.listed(ada, product_id="product-2")] == [view.id]
    assert [f.id for f in await flows.listed(ada, view_type=tf.VIEW_TYPE_FRONT)] == [view.id]
    assert [f.id for f in await flows.listed(ada, file_type=tf.TECH_FILE_TYPE_BASE_VIEW)] == [
        view.id
    ]
    assert len(await flows.listed(ada, batch_id="b-1")) == 7
    assert await flows.listed(ada, created_before=view.create_time, batch_id="none") == []
    assert [f.id for f in await flows.listed(ada, created_from=view.create_time)] == [view.id]

    seen: list[str] = []
    token = ""
    while True:
        request = tf.ListTechFilesRequest(batch_id="b-1", page_size=3, page_token=token)
        page = await flows.file_service(ada).ListTechFiles(request)
        seen += [file.file_category for file in page.tech_files]
        token = page.next_page_token
        if not token:
            break
    assert seen == [f"shot {number}" for number in range(6, -1, -1)]
    await refused(flows.listed(ada, batch_id="b-2", page_token=seen[0]), INVALID, "page_token")


async def test_statistics_count_what_there_is(suite: Suite) -> None:
    ada = suite.client("ada")
    await flows.create(ada, credits_used=2)
    gone = await flows.create(ada, credits_used=3, view_type=tf.VIEW_TYPE_BACK)
    await flows.create(
        ada, file_type=tf.TECH_FILE_TYPE_CATEGORY, view_type=0, state=tf.TECH_FILE_STATE_PENDING
    )
    service = flows.file_service(ada)
    await service.ArchiveTechFile(tf.ArchiveTechFileRequest(tech_file_id=gone.id))

    figures = await service.GetProductStatistics(
        tf.GetProductStatisticsRequest(product_id=flows.PRODUCT)
    )
    assert (figures.total_files, figures.total_credits_used, figures.archived_files) == (2, 5, 1)
    assert {count.file_type: count.files for count in figures.files_by_type} == {
        tf.TECH_FILE_TYPE_SKETCH: 1,
        tf.TECH_FILE_TYPE_CATEGORY: 1,
    }
    assert {count.state: count.files for count in figures.files_by_state} == {
        tf.TECH_FILE_STATE_COMPLETED: 1,
        tf.TECH_FILE_STATE_PENDING: 1,
    }


async def test_a_watch_shows_what_is_there_and_then_every_change(suite: Suite) -> None:
    await suite.work("techfiles")
    ada = suite.client("ada")
    first = await flows.create(ada)
    await flows.create(ada, product_id="product-2")
    watch = flows.file_service(ada).WatchTechFiles(
        tf.WatchTechFilesRequest(product_id=flows.PRODUCT)
    )
    items = aiter(watch)

    async with asyncio.timeout(20):
        assert (await anext(items)).tech_file.id == first.id
        assert (await anext(items)).bookmark.ready
        second = await flows.create(ada)
        demoted, added = await anext(items), await anext(items)
    assert (demoted.tech_file.id, demoted.tech_file.is_latest) == (first.id, False)
    assert (added.tech_file.id, added.tech_file.version_number) == (second.id, 2)
    assert added.cursor
    watch.cancel()
