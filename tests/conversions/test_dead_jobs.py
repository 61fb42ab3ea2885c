"""Dead jobs: which jobs are dead, what operators see of them, and what requeueing one does."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import (
    analysis_pb2,
    batch_pb2,
    consent_pb2,
    consent_pb2_grpc,
    dead_job_pb2,
    dead_job_pb2_grpc,
    job_pb2,
)

from services.conversions import rules
from services.conversions.analysis_rows import KIND as ANALYSES
from shared.background.attempts import JobFailed
from tests.assets import flows as assets
from tests.assets.flows import request_id
from tests.calls import holding, refused
from tests.conversions import batch_flows as batches
from tests.conversions import flows
from tests.conversions.credit_flows import RELEASE, RESERVE, account, cancel, changes
from tests.suite import Client, Suite

WRONG_STATE = grpc.StatusCode.FAILED_PRECONDITION
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
PENDING, FAILED = job_pb2.JOB_STATE_PENDING, job_pb2.JOB_STATE_FAILED


@pytest.fixture
async def olga(suite: Suite) -> Client:
    """An operator."""
    return suite.client("olga", "admin")


def dead(client: Client) -> Any:
    return client.stub(dead_job_pb2_grpc.DeadJobServiceStub)


async def listed(olga: Client, **fields: Any) -> list[dead_job_pb2.DeadJob]:
    return list((await dead(olga).ListDeadJobs(dead_job_pb2.ListDeadJobsRequest(**fields))).jobs)


async def requeue(olga: Client, job_id: str, owner: str = "user:ada", **fields: Any) -> job_pb2.Job:
    values = {"request_id": request_id(), "reason": "the provider is back", **fields}
    request = dead_job_pb2.RequeueJobRequest(owner=owner, job_id=job_id, **values)
    job: job_pb2.Job = (await dead(olga).RequeueJob(request)).job
    return job


async def requeue_all(olga: Client, **fields: Any) -> dead_job_pb2.RequeueJobsResponse:
    values = {"request_id": request_id(), "reason": "the provider is back", **fields}
    request = dead_job_pb2.RequeueJobsRequest(**values)
    answer: dead_job_pb2.RequeueJobsResponse = await dead(olga).RequeueJobs(request)
    return answer


async def dismiss(olga: Client, job_id: str, owner: str = "user:ada", **fields: Any) -> job_pb2.Job:
    values = {"request_id": request_id(), "reason": "nobody wants it", **fields}
    request = dead_job_pb2.DismissJobRequest(owner=owner, job_id=job_id, **values)
    job: job_pb2.Job = (await dead(olga).DismissJob(request)).job
    return job


async def explained(client: Client, job_id: str) -> dict[str, str]:
    """Returns the answers of ExplainJob by question."""
    answer = await flows.jobs(client).ExplainJob(job_pb2.ExplainJobRequest(job_id=job_id))
    return {each.question: each.answer for each in answer.answers}


async def delete(client: Client, analysis_id: str) -> None:
    named = {"request_id": request_id(), "analysis_id": analysis_id}
    await flows.analyses(client).DeleteAnalysis(analysis_pb2.DeleteAnalysisRequest(**named))


async def undelete(client: Client, analysis_id: str) -> None:
    named = {"request_id": request_id(), "analysis_id": analysis_id}
    await flows.analyses(client).UndeleteAnalysis(analysis_pb2.UndeleteAnalysisRequest(**named))


async def fail(suite: Suite, job_id: str, error_class: str = "TIMED_OUT", times: int = 3) -> None:
    """Runs an analysis until it has failed, as a worker does whose provider fails so."""

    async def work(run: Any) -> Any:
        raise JobFailed(error_class, "made to fail", final=error_class in rules.FINAL_ERRORS)

    async with flows.running(suite, ANALYSES) as run:
        for _ in range(times):
            try:
                await run(work, job_id)
            except Exception as error:
                if type(error).__name__ != "TryAgain":
                    raise


async def died(suite: Suite, client: Client, **fields: Any) -> str:
    """Creates an analysis that dies, and returns its id."""
    made = await flows.analyse(client, wait=False, **fields)
    await fail(suite, made.id)
    return made.id


async def state_of(client: Client, job_id: str) -> job_pb2.Job:
    jobs = (await flows.jobs(client).ListJobs(job_pb2.ListJobsRequest())).jobs
    [job] = [each for each in jobs if each.id == job_id]
    return job


async def test_what_failed_through_no_fault_of_its_owner_is_listed_for_operators(
    suite: Suite, olga: Client
) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    before = datetime.now(UTC)
    first = await died(suite, ada)
    second = await died(suite, eve)
    for error_class in sorted(rules.FINAL_ERRORS):
        mended = await flows.analyse(ada, wait=False)
        await fail(suite, mended.id, error_class)
    await cancel(ada, (await flows.analyse(ada, wait=False)).id)
    suite.sql(
        "INSERT INTO conversions.provider_calls (id, owner, job, job_id, attempt_id, provider,"
        " model, task) VALUES (gen_random_uuid(), 'user:ada', 'analyses', %s, gen_random_uuid(),"
        " 'gemini', 'm', 'analysis.product')",
        ((third := (await flows.analyse(ada, wait=False)).id),),
    )
    await fail(suite, third, "BAD_ANSWER")

    found = await listed(olga)

    assert [each.job_id for each in found] == [third, second, first]
    assert [each.provider for each in found] == ["gemini", "", ""]
    oldest = found[2]
    assert (oldest.owner, oldest.kind, oldest.task) == (
        "user:ada",
        job_pb2.JOB_KIND_ANALYSIS,
        "analysis.product",
    )
    assert (oldest.error_class, oldest.error_message) == ("TIMED_OUT", "made to fail")
    assert (oldest.attempts, oldest.run_externally) == (3, False)
    assert oldest.create_time.ToDatetime(UTC) < oldest.fail_time.ToDatetime(UTC)
    assert not oldest.HasField("requeue_time")

    async def ids(**fields: Any) -> list[str]:
        return [each.job_id for each in await listed(olga, **fields)]

    assert await ids(owner="user:eve") == [second]
    assert await ids(error_class="BAD_ANSWER", provider="gemini") == [third]
    assert await ids(kind=job_pb2.JOB_KIND_ANALYSIS, created_from=oldest.fail_time) == [
        third,
        second,
        first,
    ]
    assert await ids(created_before=before) == await ids(kind=job_pb2.JOB_KIND_GENERATION) == []
    page = await dead(olga).ListDeadJobs(dead_job_pb2.ListDeadJobsRequest(page_size=2))
    assert await ids(page_size=2, page_token=page.next_page_token) == [first]


async def test_a_job_that_waited_in_vain_names_the_provider_that_was_away(
    suite: Suite, olga: Client
) -> None:
    await flows.start(suite, working=False)
    made = await flows.analyse(suite.client("ada"), wait=False)
    suite.sql("INSERT INTO conversions.providers (name, failures) VALUES ('fal', 3)")
    suite.sql(
        "UPDATE conversions.analyses SET waits_for = 'fal', waiting_since = now(),"
        " attempt_number = 9 WHERE id = %s",
        (made.id,),
    )
    suite.sql(
        "UPDATE conversions.analyses SET state = 'failed', error_class = 'UNAVAILABLE',"
        " waits_for = '', waiting_since = NULL WHERE id = %s",
        (made.id,),
    )
    [found] = await listed(olga)
    assert (found.provider, found.error_class, found.attempts) == ("fal", "UNAVAILABLE", 9)


async def test_a_requeued_job_starts_anew_and_keeps_its_attempts(
    suite: Suite, olga: Client
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    job_id = await died(suite, ada, priority=7)
    await flows.given_back(suite, job_id)
    failed = await state_of(ada, job_id)
    assert (failed.state, failed.attempts, failed.retry_count) == (FAILED, 3, 3)

    job = await requeue(olga, job_id, reason="the network was mended")

    assert (job.state, job.attempts, job.priority) == (PENDING, 3, 7)
    assert job.HasField("requeue_time") and not job.HasField("end_time")
    assert await listed(olga) == []
    answers = await explained(ada, job_id)
    assert "yes, once" in answers["was it requeued?"]
    assert "by olga" in answers["was it requeued?"]
    assert answers["was it requeued?"].endswith("of TIMED_OUT: the network was mended")
    assert "may fail 3 more times" in answers["how many attempts were there?"]

    await fail(suite, job_id, times=2)
    assert (await state_of(ada, job_id)).state == PENDING
    await fail(suite, job_id, times=1)

    assert (await state_of(ada, job_id)).state == FAILED
    [again] = await listed(olga)
    assert again.attempts == 6 and again.HasField("requeue_time")
    numbers = [each.number for each in await flows.attempts_of(ada, job_id)]
    assert numbers == [6, 5, 4, 3, 2, 1]


@pytest.mark.long
async def test_a_requeued_picture_is_made_by_a_worker(suite: Suite, olga: Client) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    cloth = await assets.upload(ada, assets.jpeg(320, 240), kind=asset_pb2.ASSET_KIND_CLOTH)
    made = await flows.generate(ada, prompt="a coat", reference_asset_ids=[cloth.id], wait=False)
    # As a worker leaves it that vanished for the last time, when it had stored a picture.
    earlier = await assets.upload(ada, assets.jpeg(64, 48))
    await suite.change(
        "UPDATE conversions.generations SET state = 'failed', error_class = 'WORKER_LOST',"
        " attempt_number = 3, losses = 24, result_asset_id = %s WHERE id = %s",
        (earlier.id, made.id),
    )
    suite.sql(
        "SET search_path TO conversions_jobs; DELETE FROM procrastinate_jobs; RESET search_path"
    )

    await requeue(olga, made.id)
    await suite.work("conversions")

    async with asyncio.timeout(30):
        while (job := await state_of(ada, made.id)).state != job_pb2.JOB_STATE_COMPLETED:
            assert job.state != FAILED, job.error_message
            await asyncio.sleep(0.1)
    assert (job.attempts, job.credits) == (4, 3)
    gone = assets.assets(ada).GetAsset(asset_pb2.GetAssetRequest(asset_id=earlier.id))
    await refused(gone, grpc.StatusCode.NOT_FOUND)


async def test_a_requeue_is_carried_out_once(suite: Suite, olga: Client) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    job_id = await died(suite, ada)
    named = request_id()

    first = await requeue(olga, job_id, request_id=named)
    await fail(suite, job_id)
    second = await requeue(olga, job_id, request_id=named)

    assert first == second
    assert (await state_of(ada, job_id)).state == FAILED
    at_once = [requeue(olga, job_id) for _ in range(8)]
    answers = await asyncio.gather(*at_once, return_exceptions=True)
    assert len([each for each in answers if isinstance(each, job_pb2.Job)]) == 1
    assert (
        suite.sql("SELECT actor, reason, error_class FROM conversions.job_requeues")
        == [("olga", "the provider is back", "TIMED_OUT")] * 2
    )
    waiting = "SELECT count(*) FROM conversions_jobs.procrastinate_jobs WHERE task_name = %s"
    assert suite.sql(waiting, ("analyses",)) == [
        (3,)
    ]  # the first one, which no worker took, and two requeues


async def test_what_is_not_dead_is_not_requeued(suite: Suite, olga: Client) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    waits = await flows.analyse(ada, wait=False)
    mended = await flows.analyse(ada, wait=False)
    await fail(suite, mended.id, "BAD_INPUT")
    tried = await died(suite, ada)
    again = await flows.analyses(ada).RetryAnalysis(
        analysis_pb2.RetryAnalysisRequest(analysis_id=tried)
    )
    assert await listed(olga) == []

    await refused(requeue(olga, waits.id), WRONG_STATE, "it is pending")
    await refused(requeue(olga, mended.id), WRONG_STATE, "BAD_INPUT, which its owner mends")
    await refused(requeue(olga, tried), WRONG_STATE, "tried it again")
    await refused(requeue(olga, tried, "user:eve"), grpc.StatusCode.NOT_FOUND)
    await refused(requeue(ada, tried), grpc.StatusCode.PERMISSION_DENIED)
    await refused(requeue(olga, tried, reason=""), grpc.StatusCode.INVALID_ARGUMENT)

    await fail(suite, again.analysis.id)
    assert [each.job_id for each in await listed(olga)] == [again.analysis.id]


async def test_what_its_owner_deletes_is_no_longer_dead_until_it_is_undeleted(
    suite: Suite, olga: Client
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    job_id = await died(suite, ada)
    [before] = await listed(olga)

    await delete(ada, job_id)
    assert await listed(olga) == []
    await refused(requeue(olga, job_id), WRONG_STATE, "it is deleted")

    await undelete(ada, job_id)
    assert await listed(olga) == [before]
    assert (await requeue(olga, job_id)).state == PENDING


async def test_what_its_owner_mends_or_tried_again_stays_off_the_list_when_it_is_undeleted(
    suite: Suite, olga: Client
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    mended = (await flows.analyse(ada, wait=False)).id
    await fail(suite, mended, "BAD_INPUT")
    tried = await died(suite, ada)
    await flows.analyses(ada).RetryAnalysis(analysis_pb2.RetryAnalysisRequest(analysis_id=tried))

    for each in (mended, tried):
        await delete(ada, each)
        await undelete(ada, each)

    assert await listed(olga) == []
    await refused(requeue(olga, tried), WRONG_STATE, "tried it again")


async def test_a_dismissed_job_is_off_the_list_for_good_and_stays_failed(
    suite: Suite, olga: Client
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    job_id, other = await died(suite, ada), await died(suite, ada)
    named = request_id()

    first = await dismiss(olga, job_id, request_id=named, reason="its owner has no credits")
    again = await dismiss(olga, job_id, request_id=named, reason="its owner has no credits")

    assert first == again and first.state == FAILED
    assert [each.job_id for each in await listed(olga)] == [other]
    answers = await explained(ada, job_id)
    assert answers["was it dismissed?"].endswith("requeues it: its owner has no credits")
    assert "by olga" in answers["was it dismissed?"]
    await refused(dismiss(olga, job_id), WRONG_STATE, "olga has dismissed it")
    await refused(requeue(olga, job_id), WRONG_STATE, "olga has dismissed it")
    await delete(ada, job_id)
    await undelete(ada, job_id)
    assert [each.job_id for each in await listed(olga)] == [other]

    request = analysis_pb2.RetryAnalysisRequest(analysis_id=job_id)
    retried = (await flows.analyses(ada).RetryAnalysis(request)).analysis
    await fail(suite, retried.id)
    assert [each.job_id for each in await listed(olga)] == [retried.id, other]
    purge = analysis_pb2.PurgeAnalysisRequest(request_id=request_id(), analysis_id=job_id)
    await flows.analyses(ada).PurgeAnalysis(purge)
    assert suite.sql("SELECT count(*) FROM conversions.job_dismissals") == [(0,)]


async def test_what_is_not_dead_is_not_dismissed(suite: Suite, olga: Client) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    waits = (await flows.analyse(ada, wait=False)).id
    job_id = await died(suite, ada)

    await refused(dismiss(olga, waits), WRONG_STATE, "it is pending")
    await refused(dismiss(olga, job_id, "user:eve"), grpc.StatusCode.NOT_FOUND)
    await refused(dismiss(ada, job_id), grpc.StatusCode.PERMISSION_DENIED)
    await refused(dismiss(olga, job_id, reason=""), grpc.StatusCode.INVALID_ARGUMENT)
    assert [each.job_id for each in await listed(olga)] == [job_id]


async def test_a_dead_job_is_explained_as_one_that_an_operator_requeues(
    suite: Suite, olga: Client
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    for error_class in ("ACCOUNT", "TIMED_OUT", "BAD_ANSWER", "WORKER_LOST", *rules.FINAL_ERRORS):
        job_id = (await flows.analyse(ada, wait=False)).id
        await fail(suite, job_id, error_class, times=1 if error_class in rules.FINAL_ERRORS else 3)
        explanation = await flows.jobs(ada).ExplainJob(job_pb2.ExplainJobRequest(job_id=job_id))
        [step] = [a.next_step for a in explanation.answers if a.question == "has it a result?"]
        assert step.startswith("an operator requeues it") == (error_class not in rules.FINAL_ERRORS)

    dead_id = (await listed(olga))[0].job_id
    await dismiss(olga, dead_id)
    explanation = await flows.jobs(ada).ExplainJob(job_pb2.ExplainJobRequest(job_id=dead_id))
    assert [a.next_step for a in explanation.answers if a.next_step.startswith("try it again")]


async def test_a_requeued_job_ends_anew(suite: Suite, olga: Client) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    job_id = await died(suite, ada)
    first = await state_of(ada, job_id)

    await requeue(olga, job_id)
    assert not (await state_of(ada, job_id)).HasField("end_time")
    await fail(suite, job_id)

    again = await state_of(ada, job_id)
    assert again.end_time.ToDatetime() > first.end_time.ToDatetime()


@pytest.mark.long
async def test_a_requeued_item_belongs_to_its_batch_again(suite: Suite, olga: Client) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    made = await batches.draw(ada, 8, max_credits=24)
    await batches.until(ada, made.id, lambda batch: batch.completed_count > 0)
    await batches.pause(ada, made.id)
    await batches.until(ada, made.id, lambda batch: not batch.processing_count)
    await suite.stop_work("conversions")
    first, second, *_ = items = [
        each.id for each in await batches.items(ada, made.id) if each.state == PENDING
    ]
    # As workers leave them that vanished for the last time.
    await suite.change(
        "UPDATE conversions.generations SET state = 'failed', error_class = 'WORKER_LOST',"
        " attempt_number = 3 WHERE id = ANY(%s::uuid[])",
        (items,),
    )

    await requeue(olga, first)
    await suite.work("conversions")
    await asyncio.sleep(1.5)  # a worker looks for jobs every second
    assert (await state_of(ada, first)).state == PENDING  # while the batch is paused
    await batches.resume(ada, made.id)
    ended = await batches.completed(ada, made.id)
    assert ended.failed_count == len(items) - 1
    assert (await state_of(ada, first)).state == job_pb2.JOB_STATE_COMPLETED

    await requeue(olga, second)
    assert (await batches.get(ada, made.id)).state == batch_pb2.BATCH_STATE_RUNNING
    ended = await batches.completed(ada, made.id)
    assert (ended.failed_count, ended.credits) == (len(items) - 2, 3 * (8 - len(items) + 2))


async def dies(suite: Suite, conversion_id: str) -> None:
    """Leaves a conversion as workers leave it that vanished for the last time."""
    await suite.change(
        "UPDATE conversions.conversions SET state = 'failed', error_class = 'WORKER_LOST',"
        " attempt_number = 3 WHERE id = %s",
        (conversion_id,),
    )


async def test_a_free_conversion_is_not_requeued_at_a_price(
    suite: Suite, olga: Client, tmp_path: Path
) -> None:
    suite.overrides["quota_owner_monthly_free_conversions"] = 1
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    person = await flows.person(ada, tmp_path, free=True)
    garment = await flows.cloth(ada, tmp_path, free=True)
    first = await flows.convert(ada, person, garment)
    await dies(suite, first.id)
    second = await flows.convert(ada, person, garment)
    assert first.free and second.free

    await refused(requeue(olga, first.id), WRONG_STATE, "free quota of this month is used up")
    assert [each.job_id for each in await listed(olga)] == [first.id]
    await dies(suite, second.id)
    assert (await requeue(olga, first.id)).state == PENDING
    assert (await account(ada))[1] == 0


@pytest.mark.long
async def test_what_a_person_no_longer_agrees_to_is_not_requeued(
    suite: Suite, olga: Client, tmp_path: Path
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    person, garment = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
    consent = await flows.consent(ada, person)
    job = await flows.convert(ada, person, garment)
    await dies(suite, job.id)
    stub = ada.stub(consent_pb2_grpc.ConsentServiceStub)
    await stub.RevokeConsent(consent_pb2.RevokeConsentRequest(consent_id=consent.id))

    refusal = await refused(requeue(olga, job.id), WRONG_STATE, "was revoked at")
    assert refusal.reason == "CONSENT_REQUIRED"
    [result] = (await requeue_all(olga)).results
    assert "was revoked" in result.refusal_message
    await flows.consent(ada, person)
    assert (await requeue(olga, job.id)).state == PENDING


async def test_the_price_of_a_requeued_job_is_set_aside_anew_and_settled_once_more(
    suite: Suite, olga: Client
) -> None:
    suite.overrides["credits"] = "enforced"
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    await flows.grant(suite, 1)
    job_id = await died(suite, ada)
    assert await account(ada) == (1, 0)

    await requeue(olga, job_id)
    assert await account(ada) == (0, 1)
    await cancel(ada, job_id)  # before an attempt

    assert await account(ada) == (1, 0)
    once = [(RESERVE, 1, -1, 1), (RELEASE, 1, 1, -1)]
    assert (await changes(ada))[1:] == once * 2
    balance = await flows.balance(ada)
    assert balance.credits_today == 0


async def test_a_job_that_is_requeued_on_another_day_counts_in_that_days_budget(
    suite: Suite, olga: Client
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    job_id = await died(suite, ada)
    suite.sql("UPDATE conversions.analyses SET created_at = created_at - interval '40 days'")
    suite.sql("UPDATE conversions.credit_accounts SET day = day - 40, month = '2000-01-01'")

    await requeue(olga, job_id)
    assert (await flows.balance(ada)).credits_today == 1
    await fail(suite, job_id)
    assert (await flows.balance(ada)).credits_today == 0


async def test_of_many_each_is_requeued_or_refused_by_itself(suite: Suite, olga: Client) -> None:
    suite.overrides["credits"] = "enforced"
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    await flows.grant(suite, 2)
    await flows.grant(suite, 1, owner="user:eve")
    mine = [await died(suite, ada) for _ in range(2)]
    hers = await died(suite, eve)
    spent = await flows.analyse(eve, wait=False)
    named = request_id()

    answer = await requeue_all(olga, request_id=named, max_jobs=2, error_class="TIMED_OUT")
    assert [each.job_id for each in answer.results] == mine and answer.more
    assert not any(each.refusal for each in answer.results)
    await fail(suite, mine[0])
    again = await requeue_all(olga, request_id=named, max_jobs=2, error_class="TIMED_OUT")
    assert again == answer
    assert (await state_of(ada, mine[0])).state == FAILED

    rest = await requeue_all(olga, owner="user:eve")
    assert [each.job_id for each in rest.results] == [hers] and not rest.more
    assert "costs 1 credits and 0 are available" in rest.results[0].refusal_message
    assert (await state_of(eve, hers)).state == FAILED
    await cancel(eve, spent.id)
    rest = await requeue_all(olga, created_from=rest.results[0].fail_time)
    assert {each.job_id: each.refusal_message for each in rest.results} == {mine[0]: "", hers: ""}


async def test_a_call_that_was_cut_off_goes_on_and_requeues_no_job_twice(
    suite: Suite, olga: Client
) -> None:
    suite.overrides["lock_timeout_seconds"] = 0.3
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    first, second = await died(suite, ada), await died(suite, ada)
    named = request_id()

    with holding(suite, "SELECT FROM conversions.analyses WHERE id = %s FOR UPDATE", (second,)):
        await refused(requeue_all(olga, request_id=named), grpc.StatusCode.ABORTED)
    assert [(await state_of(ada, each)).state for each in (first, second)] == [PENDING, FAILED]
    await fail(suite, first)

    answer = await requeue_all(olga, request_id=named)
    assert {each.job_id for each in answer.results} == {first, second}
    states = [(await state_of(ada, each)).state for each in (first, second)]
    assert states == [FAILED, PENDING]


async def test_an_outside_workers_dead_job_can_be_claimed_three_times_more(
    suite: Suite, olga: Client
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    job_id = (await flows.analyse(ada, run_externally=True, wait=False)).id
    for failed_times in range(3):
        claimed = await flows.claim(ada, job_id)
        told = (await explained(ada, job_id))["how many attempts were there?"]
        assert f"may fail {3 - failed_times} more times" in told
        await flows.fail(ada, claimed, retryable=True)
        if failed_times < 2:
            told = (await explained(ada, job_id))["how many attempts were there?"]
            assert f"may fail {2 - failed_times} more times" in told
    [found] = await listed(olga, error_class="NO_GPU")
    assert found.run_externally and found.attempts == 3

    await requeue(olga, job_id)

    for number in (4, 5, 6):
        claimed = await flows.claim(ada, kind=job_pb2.JOB_KIND_ANALYSIS)
        assert claimed.job.attempts == number
        failed = await flows.fail(ada, claimed, retryable=True)
    assert failed.state == FAILED
    assert [each.job_id for each in await listed(olga)] == [job_id]


async def test_the_database_and_the_rules_name_the_same_errors_as_final(suite: Suite) -> None:
    definitions = suite.sql(
        "SELECT pg_get_triggerdef(oid) FROM pg_trigger"
        " WHERE tgname IN ('note_dead_job', 'note_undeleted_job')"
    )
    assert len(definitions) == 6
    for (definition,) in definitions:
        words = {word for word in definition.split("'") if word.isupper()}
        assert words == rules.FINAL_ERRORS
