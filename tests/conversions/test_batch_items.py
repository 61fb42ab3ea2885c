"""What becomes of a batch when its items are deleted, purged, requeued or tried again, and when its
pictures, its consents or its provider go."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import batch_pb2 as pb
from atelier.conversions.v1 import consent_pb2, generation_pb2, job_pb2

from services.conversions.conversion_rows import KIND as CONVERSIONS
from services.conversions.generation_rows import KIND as GENERATIONS
from shared.background.attempts import JobFailed
from tests.assets import flows as assets
from tests.calls import holding, refused
from tests.conversions import batch_flows as batches
from tests.conversions import flows
from tests.conversions.test_batches import COST, counts
from tests.conversions.test_consents import erased, expire, revoke
from tests.conversions.test_dead_jobs import listed, requeue
from tests.conversions.test_retention import grow_older, upkeep
from tests.conversions.test_trash import CONVERSION, GENERATION, asset, eventually, trashed
from tests.suite import Client, Suite

WRONG_STATE = grpc.StatusCode.FAILED_PRECONDITION
PAUSED, RUNNING = pb.BATCH_STATE_PAUSED, pb.BATCH_STATE_RUNNING
COMPLETED = pb.BATCH_STATE_COMPLETED
PENDING = job_pb2.JOB_STATE_PENDING
PICTURE = assets.jpeg(64, 48)


@pytest.fixture
async def ada(suite: Suite) -> Client:
    return suite.client("ada")


@pytest.fixture
async def olga(suite: Suite) -> Client:
    """An operator."""
    return suite.client("olga", "admin")


async def put(client: Client, kind: int) -> str:
    return (await assets.upload(client, PICTURE, kind=kind)).id


async def try_on(client: Client, *persons: str, **fields: Any) -> pb.Batch:
    garment = await put(client, asset_pb2.ASSET_KIND_CLOTH)
    asked = pb.BatchConversions(user_asset_ids=persons, cloth_asset_ids=[garment])
    return await batches.create(client, conversions=asked, **fields)


async def person(client: Client) -> str:
    return await put(client, asset_pb2.ASSET_KIND_USER)


async def listed_alike(client: Client, batch_id: str) -> pb.Batch:
    """Returns the batch, which has the same figures in the list."""
    [shown] = (await batches.batches(client).ListBatches(pb.ListBatchesRequest())).batches
    batch = await batches.get(client, batch_id)
    assert (counts(shown), shown.credits) == (counts(batch), batch.credits)
    return batch


async def drops(client: Client, conversion_id: str) -> None:
    """Returns once the conversion has let go of its pictures."""

    async def true() -> bool:
        shown = await CONVERSION.call(client, "Get", conversion_id)
        return bool(shown.inputs.HasField("drop_time"))

    await eventually(true)


class TestItsPictures:
    @pytest.mark.long
    async def test_a_photograph_stays_while_a_batch_still_needs_it(
        self, suite: Suite, ada: Client, tmp_path: Path
    ) -> None:
        suite.overrides["retention_input_days"] = 1
        await flows.start(suite)
        photo, garment = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
        asked = pb.BatchConversions(
            user_asset_ids=[photo], cloth_asset_ids=[garment], style_names=["relaxed", "street"]
        )
        made = await batches.create(ada, conversions=asked, paused=True)

        asked_to = await flows.convert(ada, photo, garment, wait=True, drop_inputs=True)
        old = await flows.convert(ada, photo, garment, wait=True)
        grow_older(suite, "conversions", old.id, 1)
        await upkeep(suite)
        for each in (asked_to, old):
            await drops(ada, each.id)
        assert not (await asset(ada, photo)).HasField("delete_time")

        await batches.resume(ada, made.id)
        assert (await batches.completed(ada, made.id)).completed_count == 2
        for each in await batches.tries(ada, made.id):
            grow_older(suite, "conversions", each.id, 1)
        await upkeep(suite)
        await trashed(ada, photo)
        assert not (await asset(ada, garment)).HasField("delete_time")


class TestPurgedItems:
    async def test_they_still_count_and_give_back_no_max_credits(
        self, suite: Suite, ada: Client
    ) -> None:
        await flows.start(suite, working=False)
        made = await batches.draw(ada, 5, max_credits=2 * COST)
        await batches.conduct(suite, made.id)
        first, second = [each.id for each in await batches.items(ada, made.id)]
        await batches.end(suite, "completed", first, second)
        await batches.conduct(suite, made.id)
        paused = await listed_alike(ada, made.id)
        assert paused.pause_reason == pb.BATCH_PAUSE_REASON_MAX_CREDITS
        assert (counts(paused), paused.credits) == ((3, 0, 2, 0, 0), 2 * COST)

        await GENERATION.call(ada, "Purge", first)
        await GENERATION.call(ada, "Delete", second)
        assert await listed_alike(ada, made.id) == paused
        await batches.resume(ada, made.id)
        await batches.conduct(suite, made.id)
        again = await listed_alike(ada, made.id)
        assert again.pause_reason == pb.BATCH_PAUSE_REASON_MAX_CREDITS
        assert (counts(again), again.credits) == (counts(paused), paused.credits)

        await GENERATION.call(ada, "Purge", second)
        await batches.resume(ada, made.id, max_credits=5 * COST)
        await batches.conduct(suite, made.id)
        left = await batches.items(ada, made.id)
        assert [each.batch_item for each in left] == [2, 3, 4]
        await batches.end(suite, "failed", *(each.id for each in left))
        await batches.conduct(suite, made.id)
        await GENERATION.call(ada, "Purge", left[0].id)
        ended = await listed_alike(ada, made.id)
        assert (ended.state, counts(ended)) == (COMPLETED, (0, 0, 2, 3, 0))
        [error] = ended.errors
        assert (error.item_count, error.item_id) == (3, left[1].id)
        for each in left[1:]:
            await GENERATION.call(ada, "Purge", each.id)
        [error] = (await batches.get(ada, made.id)).errors
        assert (error.item_count, error.item_id, error.error_message) == (3, "", "")
        assert (await batches.retry(ada, made.id)).item_count == 0

        await batches.batches(ada).DeleteBatch(pb.DeleteBatchRequest(batch_id=made.id))
        assert suite.sql("SELECT count(*) FROM conversions.purged_items") == [(0,)]

    async def test_the_zip_names_what_is_deleted_and_what_is_purged(
        self, suite: Suite, ada: Client
    ) -> None:
        await flows.start(suite, working=False)
        made = await batches.draw(ada, 5, max_credits=4 * COST)
        await batches.conduct(suite, made.id)
        found = [each.id for each in await batches.items(ada, made.id)]
        picture = (await assets.upload(ada, PICTURE)).id
        await batches.end(suite, "completed", *found)
        await suite.change("UPDATE conversions.generations SET result_asset_id = %s", (picture,))
        await GENERATION.call(ada, "Purge", found[0])
        await GENERATION.call(ada, "Delete", found[1])

        head, archive, manifest = await batches.download(ada, made.id)

        assert head.file_count == len(archive.namelist()) - 1 == 2
        assert [each["state"] for each in manifest["items"]] == [
            "PURGED",
            *["COMPLETED"] * 3,
            "WAITING",
        ]
        assert [each.get("deleted") for each in manifest["items"]] == [
            None,
            True,
            False,
            False,
            None,
        ]
        assert ["file" in each for each in manifest["items"]] == [False, False, True, True, False]


class TestTryingAgain:
    async def test_what_failed_is_tried_again_however_it_changed_since_unless_it_is_deleted(
        self, suite: Suite, ada: Client
    ) -> None:
        await flows.start(suite, working=False)
        made = await batches.draw(ada, 3)
        await batches.conduct(suite, made.id)
        first, second, third = [each.id for each in await batches.items(ada, made.id)]
        for each in (first, second, third):
            await batches.end(suite, "failed", each)
        await batches.conduct(suite, made.id)
        await GENERATION.call(ada, "Archive", first)
        assert (await batches.get(ada, made.id)).errors[0].item_id == first

        await GENERATION.call(ada, "Delete", third)
        assert (await batches.retry(ada, made.id)).item_count == 2
        await GENERATION.call(ada, "Archive", second)
        await batches.conduct(suite, made.id)

        request = generation_pb2.ListGenerationsRequest(
            batch_id=made.id, show_archived=True, state=PENDING
        )
        again = (await flows.generations(ada).ListGenerations(request)).generations
        assert {each.retry_of for each in again} == {first, second}
        assert counts(await batches.get(ada, made.id)) == (2, 0, 0, 1, 0)

    async def test_an_item_that_somebody_is_changing_is_left_for_the_next_step(
        self, suite: Suite, ada: Client
    ) -> None:
        await flows.start(suite, working=False)
        made = await batches.draw(ada, 2)
        await batches.conduct(suite, made.id)
        first, second = [each.id for each in await batches.items(ada, made.id)]
        await batches.end(suite, "failed", first, second)
        await batches.conduct(suite, made.id)
        await batches.retry(ada, made.id)

        lock = "SELECT FROM conversions.generations WHERE id = %s FOR UPDATE"
        with holding(suite, lock, (first,)):
            async with asyncio.timeout(5):
                await batches.conduct(suite, made.id)
        assert counts(await batches.get(ada, made.id)) == (1, 0, 0, 1, 0)
        await batches.conduct(suite, made.id)
        assert counts(await batches.get(ada, made.id)) == (2, 0, 0, 0, 0)


class TestLocks:
    async def test_an_item_that_a_budget_ends_takes_its_batch_before_the_account(
        self, suite: Suite, ada: Client
    ) -> None:
        await flows.start(suite, working=False)
        made = await batches.draw(ada, 2)
        await batches.conduct(suite, made.id)
        item, _ = await batches.items(ada, made.id)

        async def work(run: Any) -> Any:
            raise JobFailed("BUDGET_EXCEEDED", "it is too dear", final=True)

        async def waits() -> bool:
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            return bool(suite.sql(f"{waiting} AND datname = current_database()") != [(0,)])

        lock = "SELECT FROM conversions.batches WHERE id = %s FOR UPDATE"
        async with flows.running(suite, GENERATIONS) as run:
            with holding(suite, lock, (made.id,)):  # as what conducts the batch has it
                ending = asyncio.ensure_future(run(work, item.id))
                await eventually(waits)
                # What conducts the batch goes on to the account.
                suite.sql("UPDATE conversions.credit_accounts SET reserved = reserved")
            await ending
        paused = await batches.get(ada, made.id)
        assert paused.pause_reason == pb.BATCH_PAUSE_REASON_BUDGET_EXCEEDED
        assert counts(paused) == (1, 0, 0, 1, 0)

    @pytest.mark.long
    async def test_items_are_requeued_tried_again_and_purged_at_once_and_each_counts_once(
        self, suite: Suite, ada: Client, olga: Client
    ) -> None:
        await flows.start(suite, working=False)
        made = await batches.draw(ada, 24)
        await batches.conduct(suite, made.id)
        for _ in range(6):
            found = await batches.items(ada, made.id)
            waiting = [each.id for each in found if each.state == PENDING]
            await batches.end(suite, "failed", *waiting)
            await batches.conduct(suite, made.id)
            calls = [
                *(requeue(olga, each) for each in waiting),
                batches.retry(ada, made.id),
                *(batches.conduct(suite, made.id) for _ in range(3)),
                *(GENERATION.call(ada, "Purge", each) for each in waiting[::8]),
            ]
            for answer in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(answer, BaseException):
                    assert isinstance(answer, grpc.aio.AioRpcError), repr(answer)
                    assert answer.code() in (WRONG_STATE, grpc.StatusCode.NOT_FOUND), answer
            for _ in range(2):
                await batches.conduct(suite, made.id)
            now = await batches.get(ada, made.id)
            assert sum(counts(now)) == 24
        assert suite.sql(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ) == [(0,)]

    async def test_a_requeued_item_goes_before_the_owners_other_jobs_as_its_batch_does(
        self, suite: Suite, ada: Client, olga: Client
    ) -> None:
        await flows.start(suite, working=False)
        made = await batches.draw(ada, 1)
        await batches.conduct(suite, made.id)
        await batches.prioritize(ada, made.id)
        [item] = await batches.items(ada, made.id)
        await batches.end(suite, "failed", item.id)
        await flows.generate(ada, prompt="another", priority=9, wait=False)
        await requeue(olga, item.id)
        job = job_pb2.ListJobsRequest()
        found = (await flows.jobs(ada).ListJobs(job)).jobs
        assert len(found) == 2
        queued = "SELECT max((args ->> 'urgency')::int) FROM conversions_jobs.procrastinate_jobs"
        assert suite.sql(f"{queued} WHERE args ->> 'row_id' = %s", (item.id,)) == [(10,)]
        request = generation_pb2.GetGenerationRequest(generation_id=item.id)
        shown = (await flows.generations(ada).GetGeneration(request)).generation
        assert shown.queue_position == 1


class TestConsents:
    async def test_a_consent_that_expires_pauses_the_batch_until_there_is_another(
        self, suite: Suite, ada: Client
    ) -> None:
        suite.overrides["consent_required"] = ["conversion"]
        await flows.start(suite, working=False)
        photo = await person(ada)
        await refused(try_on(ada, photo), WRONG_STATE, "no consent")
        consent = await flows.consent(ada, photo)
        made = await try_on(ada, photo, paused=True)
        expire(suite, consent.id)

        await batches.resume(ada, made.id)
        await batches.conduct(suite, made.id)
        paused = await batches.get(ada, made.id)
        assert paused.pause_reason == pb.BATCH_PAUSE_REASON_CONSENT
        assert "expired at" in paused.pause_message and "resume the batch" in paused.pause_message
        assert counts(paused) == (1, 0, 0, 0, 0) and not await batches.tries(ada, made.id)

        renewed = await flows.consent(ada, photo)
        await batches.resume(ada, made.id)
        await batches.conduct(suite, made.id)
        [item] = await batches.tries(ada, made.id)
        assert item.consent_id == renewed.id

    async def test_an_item_that_fails_for_want_of_a_consent_pauses_the_others(
        self, suite: Suite, ada: Client
    ) -> None:
        suite.overrides["consent_required"] = ["conversion"]
        await flows.start(suite, working=False)
        persons = [await person(ada) for _ in range(2)]
        recorded = [await flows.consent(ada, each) for each in persons]
        made = await try_on(ada, *persons)
        await batches.conduct(suite, made.id)
        for each in recorded:
            expire(suite, each.id)
        first, _ = await batches.tries(ada, made.id)

        async def work(run: Any) -> Any:
            raise JobFailed("CONSENT", "the consent expired", final=True)

        async with flows.running(suite, CONVERSIONS) as run:
            await run(work, first.id)
        paused = await batches.get(ada, made.id)
        assert paused.pause_reason == pb.BATCH_PAUSE_REASON_CONSENT
        assert (counts(paused), paused.pause_message) == ((1, 0, 0, 1, 0), "the consent expired")

    @pytest.mark.long
    async def test_a_revoked_consent_stops_the_batch_even_where_none_is_required(
        self, suite: Suite, ada: Client
    ) -> None:
        await flows.start(suite, working=False)
        photo, other = await person(ada), await person(ada)
        before = await flows.consent(ada, other)
        await revoke(ada, before.id)
        consent = await flows.consent(ada, photo, purpose=consent_pb2.CONSENT_PURPOSE_TRY_ON)
        asked = pb.BatchGenerations(
            prompts=["on a beach"], seeds=[1, 2], reference_asset_ids=[photo]
        )
        scene = await batches.create(ada, generations=asked)
        made = await try_on(ada, other, photo)
        waiting = await try_on(ada, photo)
        await batches.conduct(suite, waiting.id)
        await batches.pause(ada, waiting.id)
        await revoke(ada, consent.id)
        await suite.work("conversions")

        stopped = await batches.until(ada, made.id, lambda batch: batch.state == PAUSED)
        assert stopped.pause_reason == pb.BATCH_PAUSE_REASON_CONSENT
        assert photo in stopped.pause_message and "was revoked at" in stopped.pause_message
        assert stopped.waiting_count == 2 and not await batches.tries(ada, made.id)
        assert (await erased(ada, consent.id)).jobs_cancelled == 1
        assert counts(await batches.get(ada, waiting.id)) == (0, 0, 0, 0, 1)
        # That consent was about try-ons.
        ended = await batches.completed(ada, scene.id)
        assert ended.completed_count + ended.failed_count == 2


class TestItsProvider:
    async def test_a_batch_whose_provider_is_gone_is_paused(
        self, suite: Suite, ada: Client
    ) -> None:
        await flows.start(suite, working=False)
        made = await batches.draw(ada, 2, provider="local")
        await suite.change("UPDATE conversions.batches SET provider = 'fal'")
        await batches.conduct(suite, made.id)
        paused = await batches.get(ada, made.id)
        assert paused.pause_reason == pb.BATCH_PAUSE_REASON_PROVIDER
        assert "no longer has fal for generation.image" in paused.pause_message
        assert counts(paused) == (2, 0, 0, 0, 0)

    async def test_a_job_whose_provider_is_gone_is_not_requeued(
        self, suite: Suite, ada: Client, olga: Client
    ) -> None:
        await flows.start(suite, working=False)
        made = await flows.generate(ada, prompt="a coat", provider="local", wait=False)
        await batches.end(suite, "failed", made.id)
        await suite.change("UPDATE conversions.generations SET provider = 'fal'")
        await refused(requeue(olga, made.id), WRONG_STATE, "no longer has", "fal")
        assert [each.job_id for each in await listed(olga)] == [made.id]
