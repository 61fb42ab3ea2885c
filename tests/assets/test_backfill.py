"""When an operator adds a preset, one job makes it for the existing images; fresh uploads come
first."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from atelier.assets.v1 import asset_pb2, backfill_pb2, backfill_pb2_grpc

from tests import calls
from tests.assets import flows
from tests.faults.processes import Processes, until
from tests.suite import Client, Cluster, DiskServer, Keys, Suite, running_suite

PENDING, RUNNING, DONE, CANCELLED = (
    backfill_pb2.BACKFILL_STATE_PENDING,
    backfill_pb2.BACKFILL_STATE_RUNNING,
    backfill_pb2.BACKFILL_STATE_DONE,
    backfill_pb2.BACKFILL_STATE_CANCELLED,
)
IMAGES = 200
FEW = 30
OWNERS = 7
PICTURE = flows.jpeg(32, 24)

# Rows that share one object: only their number matters.
_MANY = """
    INSERT INTO assets.assets (id, owner, created_by, kind, state, public, free, file_name,
        storage_key, size_bytes,
                               mime_type, width, height, sha256, created_at)
    SELECT gen_random_uuid(), 'user:owner' || n %% %(owners)s, 'x', 'photo', 'ready', false, true,
        'a', storage_key,
           size_bytes, mime_type, width, height, sha256, now() - interval '1 hour'
    FROM assets.assets, generate_series(1, %(images)s) AS n WHERE id = %(id)s
"""
_ZOOMS = """
    SELECT v.state, count(*), count(DISTINCT v.asset_id) FROM assets.variants v
    JOIN assets.assets a ON a.id = v.asset_id AND a.owner = v.owner WHERE v.preset = 'zoom'
        GROUP BY v.state
"""
_JOBS = "SELECT count(*) FROM assets_jobs.procrastinate_jobs"


@pytest.fixture
async def big_suite(
    cluster: Cluster, keys: Keys, disk: DiskServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Suite]:
    """Makes some hundred images of some owners, and a preset that none of them has. No worker
    yet."""
    monkeypatch.setenv(
        "ATELIER_VARIANT_PRESETS", json.dumps([{"name": "zoom", "width": 16, "height": 16}])
    )
    async with running_suite(cluster, keys, disk) as suite:
        await suite.serve("assets")
        seed = await flows.upload(suite.client("ada"), PICTURE)
        suite.sql(_MANY, {"id": seed.id, "images": IMAGES - 1, "owners": OWNERS})
        await suite.change("UPDATE assets.assets SET created_at = now() - interval '1 hour'")
        yield suite


@pytest.fixture
def processes(big_suite: Suite, tmp_path: Path) -> Iterator[Processes]:
    made = Processes(
        big_suite.cluster,
        big_suite.database,
        big_suite.keys,
        big_suite.storage,
        tmp_path,
    )
    yield made
    made.close()


async def keep(suite: Suite, number: int) -> list[Any]:
    """Keeps only so many images. Returns their ids in the order of the walk."""
    await suite.change(
        "DELETE FROM assets.assets WHERE id IN (SELECT id FROM assets.assets ORDER BY id"
        " OFFSET %s)",
        (number,),
    )
    return [asset_id for (asset_id,) in suite.sql("SELECT id FROM assets.assets ORDER BY id")]


def backfills(client: Client) -> Any:
    return client.stub(backfill_pb2_grpc.BackfillServiceStub)


async def start(operator: Client, *presets: str, **fields: Any) -> backfill_pb2.Backfill:
    request = backfill_pb2.StartBackfillRequest(presets=presets or ["zoom"], **fields)
    backfill: backfill_pb2.Backfill = (await backfills(operator).StartBackfill(request)).backfill
    return backfill


async def get(operator: Client, backfill_id: str) -> backfill_pb2.Backfill:
    request = backfill_pb2.GetBackfillRequest(backfill_id=backfill_id)
    backfill: backfill_pb2.Backfill = (await backfills(operator).GetBackfill(request)).backfill
    return backfill


async def ended(operator: Client, backfill_id: str) -> backfill_pb2.Backfill:
    async def final() -> backfill_pb2.Backfill | None:
        found = await get(operator, backfill_id)
        return found if found.state not in (PENDING, RUNNING) else None

    found: backfill_pb2.Backfill = await until(final, "the backfill ends")
    return found


async def made_some(operator: Client, backfill_id: str, some: int) -> None:
    async def enough() -> bool:
        return (await get(operator, backfill_id)).made_images >= some

    await until(enough, f"{some} images are made")


_HOLD_LAST = "SELECT FROM assets.assets ORDER BY id DESC LIMIT 1 FOR UPDATE"


@pytest.mark.faults
async def test_it_makes_what_every_owners_images_lack_and_outlives_its_worker(
    big_suite: Suite, processes: Processes
) -> None:
    operator = big_suite.client("root", "admin")
    begun = await start(operator)
    assert (begun.state, begun.total_images, begun.created_by) == (PENDING, 0, "root")

    worker = processes.work("assets")
    await made_some(operator, begun.id, 20)
    worker.kill()
    assert big_suite.sql(_JOBS) == [(1,)], (
        "a walk is one job in the queue, however many images there are"
    )

    halfway = await get(operator, begun.id)
    assert 0 < halfway.examined_images < halfway.total_images == IMAGES
    processes.work("assets")
    done = await ended(operator, begun.id)
    assert (done.state, done.examined_images, done.made_images, done.failed_images) == (
        DONE,
        IMAGES,
        IMAGES,
        0,
    )
    assert big_suite.sql(_ZOOMS) == [("ready", IMAGES, IMAGES)], (
        "one each, and each of its image's owner"
    )
    assert big_suite.sql(
        "SELECT state, count(*) FROM assets.renditions WHERE backfill_id IS NOT NULL GROUP BY 1"
    ) == [("done", IMAGES)]

    outcomes = big_suite.sql(
        "SELECT job, outcome FROM assets.attempts WHERE outcome <> 'succeeded' ORDER BY 1"
    )
    assert ("backfills", "lost") in outcomes and len(outcomes) <= 2, (
        "the killed worker's, with the image in hand"
    )


@pytest.mark.long
async def test_a_fresh_upload_gets_its_variants_while_a_backfill_is_under_way(
    big_suite: Suite,
) -> None:
    operator, ada = big_suite.client("root", "admin"), big_suite.client("ada")
    begun = await start(operator)
    await big_suite.work("assets")
    await made_some(operator, begun.id, 5)

    for seed in range(3):
        fresh = await flows.upload(ada, flows.jpeg(640, 480, seed=seed))
        variants = await flows.variants_of(ada, fresh.id)
        assert len(variants) == 4 and {v.state for v in variants.values()} == {
            asset_pb2.VARIANT_STATE_READY
        }

    meanwhile = await get(operator, begun.id)
    assert meanwhile.state in (PENDING, RUNNING) and meanwhile.examined_images < IMAGES


@pytest.mark.long
async def test_it_gives_way_while_fresh_work_waits(big_suite: Suite) -> None:
    operator = big_suite.client("root", "admin")
    await keep(big_suite, FEW)
    begun = await start(operator)
    # Fresh work that no worker can take: as long as it waits, the walk makes nothing.
    big_suite.sql(
        "SET search_path = assets_jobs;"
        # Its worker lives, so that nobody puts its job back.
        " WITH other AS (INSERT INTO procrastinate_workers (last_heartbeat)"
        " VALUES (now() + interval '1 hour') RETURNING id)"
        " INSERT INTO procrastinate_jobs"
        " (queue_name, task_name, priority, lock, args, status, worker_id)"
        " SELECT 'assets.' || queue, 'make_variants', 1000000000, 'held', '{}',"
        " status::procrastinate_job_status, CASE status WHEN 'doing' THEN id END"
        " FROM other, (VALUES ('images', 'todo'), ('other', 'doing')) AS each (queue, status)"
    )
    await big_suite.work("assets")

    async def tried() -> bool:
        return bool(
            big_suite.sql("SELECT count(*) > 3 FROM assets.attempts WHERE job = 'backfills'")[0][0]
        )

    await until(tried, "the walk has come to its turn a few times")
    assert (await get(operator, begun.id)).examined_images == 0
    big_suite.sql(
        "SET search_path = assets_jobs; DELETE FROM procrastinate_jobs WHERE lock = 'held'"
    )
    assert (await ended(operator, begun.id)).made_images == FEW


@pytest.mark.long
async def test_a_cancelled_one_ends_and_leaves_nothing_half_made(big_suite: Suite) -> None:
    operator = big_suite.client("root", "admin")
    begun = await start(operator)
    request = backfill_pb2.CancelBackfillRequest(
        backfill_id=begun.id, request_id=flows.request_id()
    )
    async with await psycopg.AsyncConnection.connect(
        big_suite.cluster.url(big_suite.database)
    ) as holder:
        await holder.execute(_HOLD_LAST)  # however fast the worker is, it can't be done before
        await big_suite.work("assets")
        await made_some(operator, begun.id, 3)
        for _ in range(2):
            assert (await backfills(operator).CancelBackfill(request)).backfill.cancel_requested
        gone = await ended(operator, begun.id)
    assert gone.state == CANCELLED and gone.made_images < IMAGES

    async def nothing_on_its_way() -> bool:
        return all(state == "ready" for state, _, _ in big_suite.sql(_ZOOMS))

    await until(nothing_on_its_way, "the image in hand is finished")
    assert (await backfills(operator).CancelBackfill(request)).backfill.state in (
        PENDING,
        RUNNING,
    ), "a stored answer"
    request.request_id = ""
    assert (await backfills(operator).CancelBackfill(request)).backfill.state == CANCELLED, (
        "ended is ended"
    )
    again = await ended(operator, (await start(operator)).id)
    [(_, zooms, _)] = big_suite.sql(_ZOOMS)
    assert again.state == DONE and zooms == IMAGES and again.made_images < IMAGES, (
        "what is there isn't made again"
    )


async def test_it_takes_the_kinds_asked_for_and_what_may_succeed_this_time(
    big_suite: Suite,
) -> None:
    operator = big_suite.client("root", "admin")
    ids = await keep(big_suite, 9)
    await big_suite.change("UPDATE assets.assets SET kind = 'cloth' WHERE id = ANY(%s)", (ids[:7],))
    await big_suite.change(
        "UPDATE assets.assets SET deleted_at = now(), expires_at = now() WHERE id = %s", (ids[0],)
    )
    await big_suite.change(
        "UPDATE assets.assets SET storage_key = 'assets/gone' WHERE id = %s", (ids[1],)
    )
    failed = (
        "INSERT INTO assets.variants (id, owner, asset_id, preset, state, error_class) SELECT"
        " gen_random_uuid(), owner, id, 'zoom', 'failed', %s FROM assets.assets WHERE id = %s"
    )
    big_suite.sql(failed, ("STORAGE", ids[2]))
    big_suite.sql(failed, ("CORRUPT", ids[3]))
    await big_suite.work("assets")
    done = await ended(operator, (await start(operator, kinds=[asset_pb2.ASSET_KIND_CLOTH])).id)
    assert (done.state, done.total_images, done.examined_images) == (DONE, 6, 6)
    assert (done.made_images, done.failed_images) == (4, 1)

    found = dict(
        big_suite.sql(
            "SELECT asset_id, state || error_class FROM assets.variants WHERE preset = 'zoom'"
        )
    )
    assert found == {
        ids[1]: "failedORIGINAL_GONE",
        ids[3]: "failedCORRUPT",
        **dict.fromkeys((ids[2], *ids[4:7]), "ready"),
    }


async def test_one_runs_at_a_time_and_operators_see_each_others(big_suite: Suite) -> None:
    root, deputy = big_suite.client("root", "admin"), big_suite.client("deputy", "admin")
    request_id = flows.request_id()
    begun = await start(root, request_id=request_id)
    assert (await start(root, request_id=request_id)).id == begun.id, (
        "a repeat starts no second one"
    )

    await calls.refused(start(deputy), grpc.StatusCode.FAILED_PRECONDITION, "under way")
    assert (await get(deputy, begun.id)).created_by == "root"

    page = await backfills(deputy).ListBackfills(backfill_pb2.ListBackfillsRequest(page_size=1))
    assert [item.id for item in page.backfills] == [begun.id] and not page.next_page_token
    cancelled = await backfills(deputy).CancelBackfill(
        backfill_pb2.CancelBackfillRequest(backfill_id=begun.id)
    )
    assert cancelled.backfill.cancel_requested

    await calls.refused(get(big_suite.client("ada"), begun.id), grpc.StatusCode.PERMISSION_DENIED)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"presets": ["huge"]}, "presets[0]"),
        ({"presets": []}, "presets"),
        ({"presets": ["zoom", "zoom"]}, "presets"),
        ({"presets": ["zoom"], "kinds": [0]}, "kinds[0]"),
        ({"presets": ["zoom"], "kinds": [99]}, "kinds[0]"),
        ({"presets": ["zoom"], "kinds": [1, 1]}, "kinds"),
    ],
)
async def test_what_cannot_be_walked_is_refused(
    suite: Suite, fields: dict[str, Any], path: str
) -> None:
    operator = backfills(suite.client("root", "admin"))
    refusal = await calls.refused(
        operator.StartBackfill(backfill_pb2.StartBackfillRequest(**fields)),
        grpc.StatusCode.INVALID_ARGUMENT,
    )

    if fields["presets"] == ["zoom"] and path != "presets[0]":
        assert path in refusal.fields
    else:
        assert refusal.fields == [path]


async def test_a_backfill_that_is_not_there_is_not_found(suite: Suite) -> None:
    operator = suite.client("root", "admin")
    nothing = "0190f3c0-0000-7000-8000-000000000000"
    await calls.refused(get(operator, nothing), grpc.StatusCode.NOT_FOUND)
    request = backfill_pb2.CancelBackfillRequest(backfill_id=nothing)
    await calls.refused(backfills(operator).CancelBackfill(request), grpc.StatusCode.NOT_FOUND)
