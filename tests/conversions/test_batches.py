"""What batches promise: every item once, partial success, one budget, and that pausing, cancelling
and going first hold for what waits, at once."""

import asyncio
from pathlib import Path

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import batch_pb2 as pb
from atelier.conversions.v1 import conversion_pb2, generation_pb2, job_pb2
from PIL import Image

from services.conversions import rules
from tests.assets.flows import request_id
from tests.calls import refused
from tests.conversions import batch_flows as batches
from tests.conversions import flows
from tests.conversions.credit_flows import olga, set_budget
from tests.suite import Client, Suite

INVALID = grpc.StatusCode.INVALID_ARGUMENT
WRONG_STATE = grpc.StatusCode.FAILED_PRECONDITION
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PENDING = job_pb2.JOB_STATE_PENDING
COST = 3  # credits of a generation by `local`


@pytest.fixture
async def suite(own_suite: Suite) -> Suite:
    await flows.start(own_suite, working=False)
    return own_suite


@pytest.fixture
def ada(suite: Suite) -> Client:
    return suite.client("ada")


def counts(batch: pb.Batch) -> tuple[int, int, int, int, int]:
    """Returns how many items wait, are made, are completed, have failed and were cancelled."""
    return (
        batch.waiting_count,
        batch.processing_count,
        batch.completed_count,
        batch.failed_count,
        batch.cancelled_count,
    )


async def blank(client: Client, directory: Path) -> str:
    """Uploads a picture that shows no garment."""
    path = directory / "nothing.jpg"
    Image.new("RGB", (400, 500), (200, 200, 200)).save(path)
    return await flows.put(client, path, asset_pb2.ASSET_KIND_CLOTH, file_name="nothing.jpg")


@pytest.mark.long
async def test_persons_x_garments_come_out_in_order_and_one_bad_garment_fails_alone(
    suite: Suite, ada: Client, tmp_path: Path
) -> None:
    await suite.work("conversions")
    persons = await batches.persons(ada, tmp_path, 2)
    garments = [*await batches.clothes(ada, tmp_path, 1), await blank(ada, tmp_path)]
    asked = pb.BatchConversions(user_asset_ids=persons, cloth_asset_ids=garments)

    made = await batches.create(ada, conversions=asked, name="Autumn")
    assert (made.kind, made.item_count) == (job_pb2.JOB_KIND_CONVERSION, 4)
    assert made.state == pb.BATCH_STATE_RUNNING and counts(made) == (4, 0, 0, 0, 0)

    ended = await batches.completed(ada, made.id)
    assert counts(ended) == (0, 0, 2, 2, 0) and ended.progress == 1.0
    assert ended.HasField("end_time") and ended.credits_reserved == 0
    assert ended.credits == sum(each.credits for each in await batches.tries(ada, made.id))
    [error] = ended.errors
    assert error.item_count == 2 and error.error_class and error.error_message

    tries = await batches.tries(ada, made.id)
    assert [(each.user_asset_id, each.cloth_asset_id) for each in tries] == [
        (person, garment) for person in persons for garment in garments
    ]
    assert [each.batch_item for each in tries] == [0, 1, 2, 3]
    assert error.item_id in (tries[1].id, tries[3].id)

    again = await batches.batches(ada).GetBatch(pb.GetBatchRequest(batch_id=made.id))
    assert again.conversions == asked

    head, archive, manifest = await batches.download(ada, made.id)
    assert (head.file_name, head.file_count) == ("Autumn.zip", 2)
    assert archive.namelist() == [
        "0 person 0 + coat 0.jpg",
        "2 person 1 + coat 0.jpg",
        "manifest.json",
    ]
    listed = manifest["items"]
    assert [each["state"] for each in listed] == ["COMPLETED", "FAILED"] * 2
    assert [each.get("file") for each in listed] == [
        "0 person 0 + coat 0.jpg",
        None,
        "2 person 1 + coat 0.jpg",
        None,
    ]
    assert listed[1]["error_class"] == error.error_class
    assert listed[0]["recipe"]["provider"] == "local" and listed[1]["recipe"] is None
    assert [each["asset_id"] for each in listed[2]["inputs"]] == [persons[1], garments[0]]


@pytest.mark.long
async def test_prompts_x_seeds_each_run_once_with_the_seed_and_the_settings(
    suite: Suite, ada: Client
) -> None:
    await suite.work("conversions")
    made = await batches.draw(ada, 2, prompts=2, priority=7, provider="local")
    ended = await batches.completed(ada, made.id)

    assert counts(ended) == (0, 0, 4, 0, 0) and ended.credits == 4 * COST
    items = await batches.items(ada, made.id)
    assert [(each.prompt, each.seed) for each in items] == [
        (prompt, seed) for prompt in batches.PROMPTS[:2] for seed in range(2)
    ]
    assert {(each.quality, each.priority, each.provider) for each in items} == {
        ("draft", 7, "local")
    }
    assert len({each.result_asset_id for each in items}) == 4

    _, archive, manifest = await batches.download(ada, made.id)
    assert archive.namelist()[1] == "1 a linen shirt on sand + seed 1.jpg"
    assert [each["seed"] for each in manifest["items"]] == [0, 1, 0, 1]
    answer = await batches.batches(ada).GetBatch(pb.GetBatchRequest(batch_id=made.id))
    assert list(answer.generations.seeds) == [0, 1]
    assert answer.generations.aspect_ratio == "1:1"  # the default that was used


async def test_a_repeat_creates_no_second_batch(suite: Suite, ada: Client) -> None:
    request = request_id()
    first, second = [await batches.draw(ada, 2, request_id=request, paused=True) for _ in range(2)]

    assert first == second
    found = await batches.batches(ada).ListBatches(pb.ListBatchesRequest())
    assert list(found.batches) == [first]
    paused = pb.ListBatchesRequest(state=pb.BATCH_STATE_PAUSED)
    assert len((await batches.batches(ada).ListBatches(paused)).batches) == 1
    running = pb.ListBatchesRequest(state=pb.BATCH_STATE_RUNNING)
    assert not (await batches.batches(ada).ListBatches(running)).batches


async def test_batches_of_none_and_of_too_many_create_nothing(suite: Suite, ada: Client) -> None:
    ids = [f"00000000-0000-0000-0000-{number:012d}" for number in range(201)]
    prompts = [f"a shirt, number {number}" for number in range(100)]
    many = pb.BatchConversions(
        user_asset_ids=ids[:200], cloth_asset_ids=ids[:200], style_names=["plain", "street"]
    )
    images = pb.BatchGenerations(prompts=prompts, seeds=range(100))
    none = pb.BatchGenerations(seeds=range(3))
    wide = pb.BatchConversions(user_asset_ids=ids, cloth_asset_ids=ids[:1])

    said = ("80,000 items", "200 persons x 200 garments x 2 styles", "at most 10,000")
    assert (await refused(batches.create(ada, conversions=many), INVALID, *said)).fields == [
        "conversions"
    ]
    await refused(batches.create(ada), INVALID)
    assert (await refused(batches.create(ada, generations=none), INVALID)).fields == [
        "generations.prompts"
    ]
    assert (await refused(batches.create(ada, conversions=wide), INVALID)).fields == [
        "conversions.user_asset_ids"
    ]
    made = await batches.create(ada, generations=images, paused=True)
    assert made.item_count == rules.BATCH_ITEMS
    assert suite.sql("SELECT count(*) FROM conversions.batches") == [(1,)]


async def test_wrong_pictures_are_named_before_anything_is_created(
    suite: Suite, ada: Client, tmp_path: Path
) -> None:
    person, cloth = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
    gone = "00000000-0000-0000-0000-000000000001"
    swapped = pb.BatchConversions(user_asset_ids=[person, cloth], cloth_asset_ids=[cloth])
    missing = pb.BatchConversions(user_asset_ids=[person], cloth_asset_ids=[cloth, gone])
    dataset = pb.BatchGenerations(prompts=["a shirt"], dataset_id=gone)

    refusal = await refused(batches.create(ada, conversions=swapped), INVALID, "kind CLOTH")
    assert refusal.fields == ["conversions.user_asset_ids[1]"]
    refusal = await refused(batches.create(ada, conversions=missing), NOT_FOUND)
    assert refusal.metadata["field"] == "conversions.cloth_asset_ids[1]"
    refusal = await refused(batches.create(ada, generations=dataset), NOT_FOUND)
    assert refusal.metadata["field"] == "generations.dataset_id"
    await refused(batches.draw(ada, 1, provider="nobody"), INVALID, "provider", "local")
    await refused(batches.draw(ada, 9, max_credits=2), EXHAUSTED, "costs 3 credits")
    assert suite.sql("SELECT count(*) FROM conversions.batches") == [(0,)]


@pytest.mark.long
async def test_a_paused_batch_starts_nothing_until_it_is_resumed(suite: Suite, ada: Client) -> None:
    made = await batches.draw(ada, 6, paused=True)
    await suite.work("conversions")
    other = await batches.draw(ada, 1)
    await batches.completed(ada, other.id)
    assert counts(await batches.get(ada, made.id)) == (6, 0, 0, 0, 0)
    assert not await batches.items(ada, made.id)

    await batches.resume(ada, made.id)
    await batches.until(ada, made.id, lambda batch: batch.completed_count > 0)
    paused = await batches.pause(ada, made.id)
    assert paused.pause_reason == pb.BATCH_PAUSE_REASON_REQUESTED
    rested = await batches.until(ada, made.id, lambda batch: not batch.processing_count)
    assert rested.waiting_count > 0
    waiting = [each for each in await batches.items(ada, made.id) if each.state == PENDING]
    explained = job_pb2.ExplainJobRequest(job_id=waiting[0].id)
    answers = (await flows.jobs(ada).ExplainJob(explained)).answers
    assert any("its batch is paused (requested)" in each.answer for each in answers)
    await asyncio.sleep(1.5)  # a worker looks for jobs every second
    assert counts(await batches.get(ada, made.id)) == counts(rested)
    assert await batches.pause(ada, made.id)  # a second time changes nothing

    await batches.resume(ada, made.id)
    ended = await batches.completed(ada, made.id)
    assert counts(ended) == (0, 0, 6, 0, 0) and ended.credits == 6 * COST
    for call in (batches.pause, batches.resume, batches.prioritize, batches.cancel):
        await refused(call(ada, made.id), WRONG_STATE, "completed")


@pytest.mark.long
async def test_waiting_items_are_moved_to_the_front_in_the_queue(suite: Suite, ada: Client) -> None:
    await suite.work("conversions")
    slow = await batches.draw(ada, 40, priority=9)
    await batches.until(ada, slow.id, lambda batch: batch.completed_count > 0)
    other = await batches.draw(ada, 2, prompts=1, priority=0)

    shown = await batches.prioritize(ada, other.id)
    assert shown.prioritized and shown.priority == 0
    await batches.completed(ada, other.id)
    left = await batches.get(ada, slow.id)
    assert left.waiting_count > 20, left
    await batches.cancel(ada, slow.id)


async def test_a_batch_moves_to_the_front_once(suite: Suite, ada: Client) -> None:
    made = await batches.draw(ada, 2, prompts=1)  # no worker runs, so nothing else changes it
    shown = await batches.prioritize(ada, made.id)
    assert int(shown.etag) == int(made.etag) + 1
    assert (await batches.prioritize(ada, made.id)).etag == shown.etag


@pytest.mark.long
async def test_cancelling_ends_what_waits_and_keeps_what_is_there(
    suite: Suite, ada: Client
) -> None:
    await suite.work("conversions")
    made = await batches.draw(ada, 60, prompts=3)
    await batches.until(ada, made.id, lambda batch: batch.completed_count > 0)

    cancelled = await batches.cancel(ada, made.id)
    assert cancelled.state == pb.BATCH_STATE_CANCELLED
    delete = pb.DeleteBatchRequest(batch_id=made.id)
    ended = await batches.until(ada, made.id, lambda batch: batch.HasField("end_time"))
    assert ended.waiting_count == ended.processing_count == ended.credits_reserved == 0
    assert ended.completed_count + ended.cancelled_count == 180 and ended.progress == 1.0
    assert ended.credits == ended.completed_count * COST
    assert (await flows.balance(ada)).reserved == 0
    await refused(batches.resume(ada, made.id), WRONG_STATE, "cancelled")
    await refused(batches.retry(ada, made.id), WRONG_STATE, "cancelled")
    assert (await batches.cancel(ada, made.id)).state == pb.BATCH_STATE_CANCELLED

    await batches.batches(ada).DeleteBatch(delete)
    await refused(batches.get(ada, made.id), NOT_FOUND)
    kept = await batches.items(ada, made.id)
    done = [each for each in kept if each.state == job_pb2.JOB_STATE_COMPLETED]
    assert len(done) == ended.completed_count and done[0].result_asset_id


@pytest.mark.long
async def test_max_credits_hold_over_all_items_and_a_higher_one_goes_on(
    suite: Suite, ada: Client
) -> None:
    await suite.work("conversions")
    made = await batches.draw(ada, 4, max_credits=2 * COST + 1)

    paused = await batches.until(ada, made.id, lambda batch: batch.state == pb.BATCH_STATE_PAUSED)
    assert paused.pause_reason == pb.BATCH_PAUSE_REASON_MAX_CREDITS
    assert "1 credits don't pay for another item" in paused.pause_message
    assert (paused.completed_count, paused.credits) == (2, 2 * COST)

    await batches.resume(ada, made.id, max_credits=4 * COST)
    ended = await batches.completed(ada, made.id)
    assert (ended.completed_count, ended.credits) == (4, 4 * COST)
    assert ended.max_credits == 4 * COST and not ended.pause_message


@pytest.mark.long
async def test_an_account_without_credits_pauses_the_batch_and_fails_nothing(
    own_suite: Suite,
) -> None:
    own_suite.overrides["credits"] = "enforced"
    await flows.start(own_suite)
    ada = own_suite.client("ada")
    await flows.grant(own_suite, 2 * COST)
    made = await batches.draw(ada, 3)

    paused = await batches.until(ada, made.id, lambda batch: batch.state == pb.BATCH_STATE_PAUSED)
    assert paused.pause_reason == pb.BATCH_PAUSE_REASON_CREDITS_EXHAUSTED
    assert "ask the operator" in paused.pause_message
    await batches.until(ada, made.id, lambda batch: batch.completed_count == 2)

    await flows.grant(own_suite, COST)
    await batches.resume(ada, made.id)
    ended = await batches.completed(ada, made.id)
    assert counts(ended) == (0, 0, 3, 0, 0)
    assert (await flows.balance(ada)).available == 0


@pytest.mark.long
async def test_what_other_items_give_back_pays_for_the_next(
    own_suite: Suite, tmp_path: Path
) -> None:
    own_suite.overrides["credits"] = "enforced"
    own_suite.overrides["model_prices_file"] = table = tmp_path / "prices.yaml"
    shipped = Path("services/conversions/prices.yaml").read_text()
    # What is set aside is the price of the dearer of two that may run it.
    table.write_text(shipped + "  - {from: 2026-01-01, provider: grpc, credits: 6}\n")
    own_suite.overrides["providers"] = {"generation": ["local", "grpc"]}
    own_suite.overrides["models_address"] = "127.0.0.1:9"
    own_suite.overrides["models_tasks"] = {"generation.image": "dearer"}
    await flows.start(own_suite)
    ada = own_suite.client("ada")
    await flows.grant(own_suite, 6 + COST)

    made = await batches.draw(ada, 3, prompts=1)

    ended = await batches.until(ada, made.id, lambda batch: batch.state != pb.BATCH_STATE_RUNNING)
    assert (ended.state, ended.completed_count) == (pb.BATCH_STATE_PAUSED, 2)
    assert (await flows.balance(ada)).available == COST


@pytest.mark.long
async def test_a_call_that_the_budget_of_the_day_forbids_pauses_the_batch(
    own_suite: Suite, tmp_path: Path
) -> None:
    shipped = Path("services/conversions/prices.yaml").read_text()
    table = tmp_path / "prices.yaml"
    table.write_text(
        shipped + "  - {from: 2025-01-01, provider: local, cost: 0.06, source: the meter}\n"
    )
    own_suite.overrides["model_prices_file"] = table
    own_suite.overrides["worker_concurrency"] = 1
    await flows.start(own_suite)
    ada = own_suite.client("ada")
    await set_budget(olga(own_suite), "user:ada", daily_cost_micros=130_000)
    made = await batches.draw(ada, 8)

    paused = await batches.until(ada, made.id, lambda batch: batch.state == pb.BATCH_STATE_PAUSED)
    assert paused.pause_reason == pb.BATCH_PAUSE_REASON_BUDGET_EXCEEDED
    assert "today's budget of 0.1300 USD" in paused.pause_message
    rested = await batches.until(ada, made.id, lambda batch: not batch.processing_count)
    assert rested.completed_count == 2 and 1 <= rested.failed_count <= 2
    assert rested.waiting_count == 6 - rested.failed_count

    await set_budget(olga(own_suite), "user:ada")
    assert (await batches.retry(ada, made.id)).item_count == rested.failed_count
    await batches.resume(ada, made.id)
    assert counts(await batches.completed(ada, made.id)) == (0, 0, 8, 0, 0)


@pytest.mark.long
async def test_free_items_beyond_the_quota_of_the_month_cost_their_price(
    own_suite: Suite, tmp_path: Path
) -> None:
    own_suite.overrides["quota_owner_monthly_free_conversions"] = 2
    await flows.start(own_suite)
    ada = own_suite.client("ada")
    persons = await batches.persons(ada, tmp_path, 2, free=True)
    garments = await batches.clothes(ada, tmp_path, 2, free=True)
    asked = pb.BatchConversions(user_asset_ids=persons, cloth_asset_ids=garments)

    made = await batches.create(ada, conversions=asked, max_credits=4)
    ended = await batches.completed(ada, made.id)
    tries = await batches.tries(ada, made.id)
    assert [each.free for each in tries] == [True, True, False, False]
    assert [each.credits for each in tries] == [0, 0, 2, 2] and ended.credits == 4


@pytest.mark.long
async def test_items_that_failed_are_tried_again_by_class(
    suite: Suite, ada: Client, tmp_path: Path
) -> None:
    await suite.work("conversions")
    [person] = await batches.persons(ada, tmp_path, 1)
    garments = [*await batches.clothes(ada, tmp_path, 1), await blank(ada, tmp_path)]
    asked = pb.BatchConversions(user_asset_ids=[person], cloth_asset_ids=garments)
    made = await batches.create(ada, conversions=asked)
    ended = await batches.completed(ada, made.id)
    [failed] = ended.errors

    assert (await batches.retry(ada, made.id, "NO_SUCH_CLASS")).item_count == 0
    assert (await batches.get(ada, made.id)).state == pb.BATCH_STATE_COMPLETED
    again = await batches.retry(ada, made.id, failed.error_class)
    assert again.item_count == 1 and again.batch.state == pb.BATCH_STATE_RUNNING

    ended = await batches.completed(ada, made.id)
    assert counts(ended) == (0, 0, 1, 1, 0)
    tries = await batches.tries(ada, made.id)
    [retried] = [each for each in tries if each.retry_of]
    assert retried.retry_of == failed.item_id and retried.batch_item == 1
    [old] = [each for each in tries if each.id == failed.item_id]
    assert not old.HasField("batch_item") and old.batch_id == made.id


@pytest.mark.long
async def test_pictures_are_downloaded_while_the_batch_runs(suite: Suite, ada: Client) -> None:
    await suite.work("conversions")
    made = await batches.draw(ada, 30)
    await batches.until(ada, made.id, lambda batch: batch.completed_count >= 2)

    head, archive, manifest = await batches.download(ada, made.id)
    states = [each["state"] for each in manifest["items"]]
    assert len(states) == 30 and states.count("COMPLETED") == len(archive.namelist()) - 1
    assert head.file_count >= 2 and states[-1] in ("WAITING", "PENDING")
    assert head.file_name == f"batch-{made.id}.zip"
    await batches.cancel(ada, made.id)


@pytest.mark.long
async def test_a_watch_tells_of_a_batch_at_most_once_a_second(suite: Suite, ada: Client) -> None:
    await suite.work("conversions")
    stream = batches.batches(ada).WatchBatches(pb.WatchBatchesRequest())
    async with asyncio.timeout(60):
        assert (await stream.read()).bookmark.ready
        made = await batches.draw(ada, 12)
        told: list[pb.Batch] = []
        while not told or told[-1].state != pb.BATCH_STATE_COMPLETED:
            answer = await stream.read()
            if answer.WhichOneof("item") == "batch":
                told.append(answer.batch)
        await batches.batches(ada).DeleteBatch(pb.DeleteBatchRequest(batch_id=made.id))
        while answer.WhichOneof("item") != "purged":
            answer = await stream.read()
    stream.cancel()

    assert answer.purged.batch_id == made.id
    progress = [each.progress for each in told]
    assert progress == sorted(progress) and progress[-1] == 1.0
    seconds = told[-1].update_time.ToDatetime() - told[0].update_time.ToDatetime()
    assert len(told) <= seconds.total_seconds() + 3


async def test_ten_thousand_items_fill_neither_queue_nor_tables(suite: Suite, ada: Client) -> None:
    prompts = [f"a shirt, number {number}" for number in range(100)]
    asked = pb.BatchGenerations(prompts=prompts, seeds=range(100))
    made = await batches.create(ada, generations=asked, paused=True)

    assert suite.sql("SELECT count(*) FROM conversions.generations") == [(0,)]
    assert suite.sql("SELECT count(*) FROM conversions_jobs.procrastinate_jobs") == [(0,)]
    await batches.cancel(ada, made.id)
    _, archive, manifest = await batches.download(ada, made.id)
    assert archive.namelist() == ["manifest.json"]
    assert len(manifest["items"]) == rules.BATCH_ITEMS
    assert {each["state"] for each in manifest["items"]} == {"CANCELLED"}


async def test_a_batch_that_has_not_ended_is_not_deleted(suite: Suite, ada: Client) -> None:
    made = await batches.draw(ada, 2, paused=True)
    request = pb.DeleteBatchRequest(batch_id=made.id)
    await refused(batches.batches(ada).DeleteBatch(request), WRONG_STATE, "cancel it first")
    stale = pb.DeleteBatchRequest(batch_id=made.id, etag="7")
    await refused(batches.batches(ada).DeleteBatch(stale), grpc.StatusCode.ABORTED)


async def test_lists_of_items_are_filtered_by_batch(suite: Suite, ada: Client) -> None:
    alone = await flows.generate(ada, prompt="a shirt", wait=False)
    assert not alone.batch_id and not alone.HasField("batch_item")
    other = generation_pb2.ListGenerationsRequest(batch_id="00000000-0000-0000-0000-000000000001")
    assert not (await flows.generations(ada).ListGenerations(other)).generations
    wrong = conversion_pb2.ListConversionsRequest(batch_id="autumn")
    await refused(flows.conversions(ada).ListConversions(wrong), INVALID)
