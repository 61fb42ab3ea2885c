"""Jobs: cancelling, watching, queueing, attempts that are lost or cut short, and the record of
each."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import conversion_pb2, generation_pb2, job_pb2

from services.conversions import conversion_rows, job_rows, rules
from services.conversions.conversion_rows import Conversion
from services.conversions.runs.conversion import run_conversion
from services.conversions.runs.run import Run
from shared.background import attempts
from shared.background.jobs import TryAgain
from shared.telemetry import METRICS
from tests.assets.flows import request_id
from tests.calls import holding, refused
from tests.conversions import flows
from tests.suite import Client, Suite


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("photos")


async def asked(client: Client, drawn: Path, **fields: Any) -> conversion_pb2.Conversion:
    return await flows.convert(
        client, await flows.person(client, drawn), await flows.cloth(client, drawn), **fields
    )


async def cancelled(
    client: Client, conversion_id: str, **fields: Any
) -> conversion_pb2.CancelConversionResponse:
    request = conversion_pb2.CancelConversionRequest(conversion_id=conversion_id, **fields)
    answer: conversion_pb2.CancelConversionResponse = await flows.conversions(
        client
    ).CancelConversion(request)
    return answer


# A claimed job can't continue while somebody locks the asset's row, because its worker needs a
# reference to it.
HOLD = "SELECT FROM assets.assets WHERE id = %s FOR UPDATE"


@pytest.mark.long
async def test_a_waiting_conversion_is_cancelled_and_never_starts(
    suite: Suite, drawn: Path
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    first, second = await asked(ada, drawn), await asked(ada, drawn)

    request = {"request_id": request_id()}
    answer = await cancelled(ada, first.id, **request)
    assert answer.outcome == job_pb2.CANCEL_OUTCOME_CANCELLED_BEFORE_START
    assert answer.conversion.state == job_pb2.JOB_STATE_CANCELLED
    assert await cancelled(ada, first.id, **request) == answer
    assert (await cancelled(ada, first.id)).outcome == job_pb2.CANCEL_OUTCOME_ALREADY_FINISHED

    await suite.work("conversions")
    await flows.until(ada, second.id, job_pb2.JOB_STATE_COMPLETED)
    assert not await flows.attempts_of(ada, first.id)
    assert (await flows.read(ada, first.id)).credits == 0


@pytest.mark.long
async def test_a_running_conversion_is_cancelled_and_costs_nothing(
    suite: Suite, drawn: Path
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    made = await asked(ada, drawn)

    with holding(suite, HOLD, (made.cloth_asset_id,)):
        await suite.work("conversions")
        await flows.until(ada, made.id, job_pb2.JOB_STATE_PROCESSING)
        answer = await cancelled(ada, made.id)
        assert answer.outcome == job_pb2.CANCEL_OUTCOME_CANCEL_REQUESTED
        assert answer.conversion.cancel_requested
        ended = await flows.until(ada, made.id, *flows.FINISHED)
    assert (ended.state, ended.credits) == (job_pb2.JOB_STATE_CANCELLED, 0)

    [attempt] = await flows.attempts_of(ada, made.id)
    assert (attempt.outcome, attempt.credits) == (job_pb2.ATTEMPT_OUTCOME_CANCELLED, 0)
    await flows.given_back(suite, made.id)


@pytest.mark.long
async def test_cancelling_what_is_finished_changes_nothing(suite: Suite, drawn: Path) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    made = await asked(ada, drawn, wait=True)

    answer = await cancelled(ada, made.id)
    assert answer.outcome == job_pb2.CANCEL_OUTCOME_ALREADY_FINISHED
    assert (answer.conversion.state, answer.conversion.update_time) == (
        made.state,
        made.update_time,
    )


@pytest.mark.long
async def test_a_watch_tells_the_state_then_every_change_once_and_goes_on_at_its_cursor(
    suite: Suite, drawn: Path
) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    first = await asked(ada, drawn)
    await asked(eve, drawn)

    def watching(**fields: Any) -> AsyncIterator[conversion_pb2.WatchConversionsResponse]:
        request = conversion_pb2.WatchConversionsRequest(**fields)
        return aiter(flows.conversions(ada).WatchConversions(request, timeout=60))

    watch = watching()
    assert (await anext(watch)).conversion.id == first.id
    assert (await anext(watch)).bookmark.ready

    second = await asked(ada, drawn)
    await suite.work("conversions")
    seen: list[conversion_pb2.WatchConversionsResponse] = []
    async for item in watch:
        seen.append(item)
        ended = [i for i in seen if i.conversion.state == job_pb2.JOB_STATE_COMPLETED]
        if len(ended) == 2:
            break

    for conversion in (first, second):
        told = [item.conversion for item in seen if item.conversion.id == conversion.id]
        assert [item.progress for item in told] == sorted(item.progress for item in told)
        assert told[-2].state == job_pb2.JOB_STATE_PROCESSING
        assert told[-1].recipe.model == "local" and not told[-1].image_url
    assert {item.conversion.owner for item in seen} == {"user:ada"}

    # From any cursor, the watch continues with exactly what came after it.
    middle = len(seen) // 2
    resumed = watching(cursor=seen[middle].cursor)
    assert [await anext(resumed) for _ in seen[middle + 1 :]] == seen[middle + 1 :]

    one = watching(conversion_ids=[second.id])
    assert [(await anext(one)).conversion.id, (await anext(one)).bookmark.ready] == [
        second.id,
        True,
    ]

    await refused(
        watching(cursor=seen[-1].cursor, conversion_ids=[second.id]),
        grpc.StatusCode.INVALID_ARGUMENT,
    )


@pytest.mark.long
async def test_a_waiting_job_knows_its_place_in_the_queue_of_all_owners(
    suite: Suite, drawn: Path
) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    made = [(client, await asked(client, drawn)) for client in (ada, eve, ada)]
    assert [(await flows.read(client, one.id)).queue_position for client, one in made] == [1, 2, 3]
    await cancelled(ada, made[2][1].id)
    assert not (await flows.read(ada, made[2][1].id)).HasField("queue_position")


@pytest.mark.long
async def test_a_higher_priority_starts_first_and_the_default_is_5(
    suite: Suite, drawn: Path
) -> None:
    suite.overrides["worker_concurrency"] = 1
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    low, usual, high = [
        await asked(ada, drawn, **fields) for fields in ({"priority": 0}, {}, {"priority": 9})
    ]
    assert [one.priority for one in (low, usual, high)] == [0, 5, 9]
    assert [(await flows.read(ada, one.id)).queue_position for one in (low, usual, high)] == [
        3,
        2,
        1,
    ]

    listed = (await flows.jobs(ada).ListJobs(job_pb2.ListJobsRequest())).jobs
    assert [(job.id, job.priority) for job in listed] == [(high.id, 9), (usual.id, 5), (low.id, 0)]
    await suite.work("conversions")
    await flows.until(ada, low.id, job_pb2.JOB_STATE_COMPLETED)
    begun = suite.sql("SELECT job_id::text FROM conversions.attempts ORDER BY created_at")
    assert begun == [(high.id,), (usual.id,), (low.id,)]
    for priority in (-1, 10):
        request = conversion_pb2.CreateConversionRequest(
            user_asset_id=low.user_asset_id, cloth_asset_id=low.cloth_asset_id, priority=priority
        )
        refusal = await refused(
            flows.conversions(ada).CreateConversion(request), grpc.StatusCode.INVALID_ARGUMENT
        )
        assert refusal.fields == ["priority"]


@pytest.mark.long
async def test_who_asks_with_the_highest_priority_makes_nobody_else_wait(
    suite: Suite, drawn: Path
) -> None:
    suite.overrides["worker_concurrency"] = 1
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    pushy = [await asked(ada, drawn, priority=9) for _ in range(4)]
    modest = await asked(eve, drawn, priority=0)
    assert (await flows.read(eve, modest.id)).queue_position == 2

    await suite.work("conversions")
    await flows.until(ada, pushy[-1].id, job_pb2.JOB_STATE_COMPLETED)
    begun = [
        job
        for (job,) in suite.sql("SELECT job_id::text FROM conversions.attempts ORDER BY created_at")
    ]
    assert begun == [pushy[0].id, modest.id, *(one.id for one in pushy[1:])]


async def waiting(client: Client, *ids: str) -> list[conversion_pb2.Conversion]:
    """Returns the conversions as their watch shows them once each has said what it waits for."""
    watch = flows.conversions(client).WatchConversions(
        conversion_pb2.WatchConversionsRequest(), timeout=60
    )
    found: dict[str, conversion_pb2.Conversion] = {}
    async for item in watch:
        if item.conversion.HasField("wait"):
            found[item.conversion.id] = item.conversion
        if set(ids) <= set(found):
            break
    return [found[row_id] for row_id in ids]


@pytest.mark.long
async def test_while_assets_is_away_a_job_waits_and_can_be_cancelled(
    suite: Suite, drawn: Path
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    made = await asked(ada, drawn)
    await suite.stop("assets")
    await suite.work("conversions")
    [seen] = await waiting(ada, made.id)
    assert seen.state == job_pb2.JOB_STATE_PENDING
    assert (seen.error_class, seen.credits) == ("UNAVAILABLE", 0)

    first = (await flows.attempts_of(ada, made.id))[-1]
    assert (first.outcome, first.error_class) == (job_pb2.ATTEMPT_OUTCOME_WAITED, "UNAVAILABLE")
    assert (await cancelled(ada, made.id)).conversion.state == job_pb2.JOB_STATE_CANCELLED


@pytest.mark.long
async def test_jobs_say_what_they_wait_for_and_an_outage_costs_no_try(
    suite: Suite, drawn: Path
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    ids = [(await asked(ada, drawn)).id for _ in range(2)]
    asked_at = datetime.now(UTC)
    await suite.stop("assets")
    await suite.work("conversions")

    seen = await waiting(ada, *ids)
    assert all(one.wait.what == "assets" and one.state == job_pb2.JOB_STATE_PENDING for one in seen)
    since = {one.id: one.wait.since_time.ToDatetime(UTC) for one in seen}
    assert all(abs(at - asked_at) < timedelta(seconds=60) for at in since.values())

    least = "SELECT min(attempt_number) FROM conversions.conversions"
    while suite.sql(least)[0][0] <= rules.MAX_ATTEMPTS:
        await asyncio.sleep(0.2)
    for one in (await flows.jobs(ada).ListJobs(job_pb2.ListJobsRequest())).jobs:
        if one.HasField("wait"):
            assert (
                one.wait.what == "assets" and one.wait.since_time.ToDatetime(UTC) == since[one.id]
            )
    assert suite.sql("SELECT DISTINCT faults FROM conversions.conversions") == [(0,)]

    await suite.stop_work("conversions")
    await suite.work("conversions")  # a starting worker checks at once what is waited for
    labels = {"service": "conversions", "job": "conversions", "what": "assets"}
    while METRICS.get_sample_value("atelier_jobs_waiting", labels) != len(ids):
        await asyncio.sleep(0.1)
    assert (METRICS.get_sample_value("atelier_jobs_waiting_oldest_seconds", labels) or 0) > 0

    await suite.stop_work("conversions")  # the worker knows the old address
    await suite.serve("assets")
    await suite.work("conversions")
    for row_id in ids:
        await flows.until(ada, row_id, job_pb2.JOB_STATE_COMPLETED)

    done = await flows.read(ada, ids[0])
    assert not done.HasField("wait") and (done.error_class, done.error_message) == ("", "")
    outcomes = [one.outcome for one in await flows.attempts_of(ada, ids[0])]
    assert outcomes == [
        job_pb2.ATTEMPT_OUTCOME_SUCCEEDED,
        job_pb2.ATTEMPT_OUTCOME_WAITED,
    ]  # of several waits, the latest


@pytest.mark.long
async def test_the_first_that_gets_through_ends_the_pauses_of_the_others(
    suite: Suite, drawn: Path
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    ids = [(await asked(ada, drawn)).id for _ in range(2)]
    await suite.stop("assets")
    await suite.work("conversions")
    await waiting(ada, *ids)
    await suite.stop_work("conversions")

    # After a long outage all jobs but one are delayed for hours.
    put_off = "UPDATE procrastinate_jobs SET scheduled_at = now() + interval '9 hours'"
    here = "SET search_path = conversions_jobs"
    await suite.change(f"{here}; {put_off} WHERE args ->> 'row_id' <> '{ids[0]}'")

    await suite.serve("assets")
    await suite.work("conversions")
    for row_id in ids:
        await flows.until(ada, row_id, job_pb2.JOB_STATE_COMPLETED)


@pytest.mark.long
async def test_a_job_that_has_waited_too_long_fails_and_says_for_what(
    suite: Suite, drawn: Path
) -> None:
    suite.overrides["job_wait_hours"] = 1.5 / 3600
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    made = await asked(ada, drawn)
    await suite.stop("assets")
    await suite.work("conversions")

    failed = await flows.until(ada, made.id, job_pb2.JOB_STATE_FAILED)
    assert failed.error_class == "UNAVAILABLE" and failed.error_message.startswith(
        "assets was waited for since "
    )
    assert not failed.HasField("wait") and failed.credits == 0


TryOn = Run[Conversion]
Outcome = attempts.Outcome[Conversion]


@pytest.mark.long
async def test_a_try_after_a_crash_finds_the_result_that_was_stored(
    suite: Suite, drawn: Path
) -> None:
    """The first attempt dies between storing the result and completing the row."""
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    made = await asked(ada, drawn)

    async def interrupted(run: TryOn) -> Outcome:
        await run_conversion(run)
        raise attempts.JobFailed("INTERNAL", "the machine went away", final=False)

    async with flows.running(suite, conversion_rows.KIND) as run:
        with pytest.raises(TryAgain):
            await run(interrupted, made.id)
        await run(run_conversion, made.id)
    assert (await flows.read(ada, made.id)).state == job_pb2.JOB_STATE_COMPLETED
    stored = suite.sql("SELECT id::text FROM assets.assets WHERE kind = 'result'")
    assert stored == [((await flows.read(ada, made.id)).result_asset_id,)]


@pytest.mark.long
async def test_a_job_that_fails_takes_the_picture_along_that_it_had_made(
    suite: Suite, drawn: Path
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    made = await asked(ada, drawn)

    async def fails_late(run: TryOn) -> Outcome:
        await run_conversion(run)
        raise attempts.JobFailed("INTERNAL", "it broke off after its picture was stored")

    async with flows.running(suite, conversion_rows.KIND) as run:
        await run(fails_late, made.id)
    stored = "SELECT count(*) FROM assets.assets WHERE kind = 'result'"
    assert suite.sql(stored) == [(1,)]
    failed = await flows.read(ada, made.id)
    assert (failed.state, failed.result_asset_id) == (job_pb2.JOB_STATE_FAILED, "")
    await suite.work("conversions")
    while suite.sql(stored) != [(0,)]:
        await asyncio.sleep(0.1)


@pytest.mark.long
async def test_jobs_and_attempts_of_all_kinds_are_listed_with_their_figures(
    suite: Suite, drawn: Path
) -> None:
    await flows.start(suite)
    ada, eve = suite.client("ada"), suite.client("eve")
    conversion = await asked(ada, drawn, wait=True)
    source = conversion.cloth_asset_id
    sketch = await flows.generate(
        ada, task=generation_pb2.GENERATION_TASK_SKETCH, source_asset_id=source
    )
    analysis = await flows.analyse(ada, (source, "front"))

    async def listed(client: Client, **fields: Any) -> list[job_pb2.Job]:
        return list((await flows.jobs(client).ListJobs(job_pb2.ListJobsRequest(**fields))).jobs)

    found = await listed(ada)
    assert [job.id for job in found] == [analysis.id, sketch.id, conversion.id]
    assert [job.kind for job in found] == [
        job_pb2.JOB_KIND_ANALYSIS,
        job_pb2.JOB_KIND_GENERATION,
        job_pb2.JOB_KIND_CONVERSION,
    ]

    assert all(
        job.worker and job.attempts == 1 and job.max_retries == 3 and job.progress == 1
        for job in found
    )
    assert all(
        job.create_time.ToDatetime() <= job.start_time.ToDatetime() <= job.end_time.ToDatetime()
        for job in found
    )

    assert [job.id for job in await listed(ada, kind=job_pb2.JOB_KIND_GENERATION)] == [sketch.id]
    assert not await listed(ada, state=job_pb2.JOB_STATE_FAILED)

    page = await flows.jobs(ada).ListJobs(job_pb2.ListJobsRequest(page_size=2))
    rest = await flows.jobs(ada).ListJobs(
        job_pb2.ListJobsRequest(page_size=2, page_token=page.next_page_token)
    )
    assert ([job.id for job in rest.jobs], rest.next_page_token) == ([conversion.id], "")

    [attempt] = await flows.attempts_of(ada, conversion.id)
    sizes = [(drawn / name).stat().st_size for name in ("person.jpg", "cloth.jpg")]
    [(result_size,)] = suite.sql("SELECT size_bytes FROM assets.assets WHERE kind = 'result'")
    assert (attempt.input_bytes, attempt.output_bytes) == (sum(sizes), result_size)
    assert (attempt.kind, attempt.number, attempt.model) == (
        job_pb2.JOB_KIND_CONVERSION,
        1,
        "local 1.1.0",
    )
    assert attempt.outcome == job_pb2.ATTEMPT_OUTCOME_SUCCEEDED and attempt.HasField("end_time")

    attempts_of_all = await flows.jobs(ada).ListAttempts(
        job_pb2.ListAttemptsRequest(outcome=job_pb2.ATTEMPT_OUTCOME_SUCCEEDED)
    )
    assert len(attempts_of_all.attempts) == 3
    assert not await listed(eve)
    assert not await flows.attempts_of(eve, conversion.id)


@pytest.mark.long
async def test_only_the_services_that_a_method_names_may_call_it_for_an_owner(
    suite: Suite, drawn: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    source = await flows.put(ada, drawn / "cloth.jpg", asset_pb2.ASSET_KIND_PRODUCT)
    packs = suite.as_token(suite.keys.service_token("techfiles", "user:ada"))
    made = await flows.generate(
        packs, task=generation_pb2.GENERATION_TASK_SKETCH, source_asset_id=source
    )
    assert (made.owner, made.state) == ("user:ada", job_pb2.JOB_STATE_COMPLETED)

    request = conversion_pb2.CreateConversionRequest(user_asset_id=source, cloth_asset_id=source)
    creating = flows.conversions(packs).CreateConversion(request)
    await refused(creating, grpc.StatusCode.PERMISSION_DENIED)

    store = suite.as_token(suite.keys.service_token("assets", "user:ada"))
    listing = flows.generations(store).ListGenerations(generation_pb2.ListGenerationsRequest())
    await refused(listing, grpc.StatusCode.PERMISSION_DENIED)


@pytest.mark.parametrize("table", ["conversions", "generations", "analyses"])
async def test_rules_contract_and_tables_name_the_same_states(suite: Suite, table: str) -> None:
    [(check,)] = suite.sql(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s",
        (f"{table}_state",),
    )
    named = {word for word in rules.JOB_STATES if f"'{word}'" in check}
    assert check.count("::text") == len(named) or check.count("'") == 2 * len(named)
    assert named == set(rules.JOB_STATES) == set(job_rows.STATES.number)


@pytest.mark.long
async def test_a_job_explains_itself(suite: Suite, drawn: Path) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")

    async def explained(job_id: str) -> tuple[str, dict[str, job_pb2.JobAnswer]]:
        answer = await flows.jobs(ada).ExplainJob(job_pb2.ExplainJobRequest(job_id=job_id))
        return answer.summary, {each.question: each for each in answer.answers}

    first, second = await asked(ada, drawn), await asked(ada, drawn)
    summary, answers = await explained(second.id)
    assert summary == "has it a result? no, it waits"
    assert answers["is it its turn?"].answer == "it is number 2 in its queue"
    assert answers["is its provider ready?"].answer == "asked in this order: local (ready)"

    external = await flows.analyse(ada, run_externally=True, wait=False)
    _, answers = await explained(external.id)
    assert answers["is it its turn?"].next_step == "claim it with ClaimJob"

    await cancelled(ada, first.id)
    summary, _ = await explained(first.id)
    assert summary == "has it a result? no, it was cancelled"
    await suite.work("conversions")
    await flows.until(ada, second.id, *flows.FINISHED)
    summary, answers = await explained(second.id)
    assert summary == "its result is there"
    assert answers["how many attempts were there?"].answer.startswith("1 begun, 0 came to nothing")
    await refused(
        flows.jobs(eve).ExplainJob(job_pb2.ExplainJobRequest(job_id=second.id)),
        grpc.StatusCode.NOT_FOUND,
    )


@pytest.mark.long
async def test_an_operator_sees_the_jobs_of_an_owner_and_no_picture(
    suite: Suite, drawn: Path
) -> None:
    await flows.start(suite, working=False)
    ada, eve, operator = suite.client("ada"), suite.client("eve"), suite.client("root", "admin")
    made = await asked(ada, drawn)
    read = flows.conversions(operator).GetConversion
    request = conversion_pb2.GetConversionRequest(conversion_id=made.id, owner="user:ada")
    assert (await read(request)).conversion.id == made.id
    listed = await flows.jobs(operator).ListJobs(job_pb2.ListJobsRequest(owner="user:ada"))
    assert [job.id for job in listed.jobs] == [made.id]
    explained = job_pb2.ExplainJobRequest(job_id=made.id, owner="user:ada")
    assert (await flows.jobs(operator).ExplainJob(explained)).summary
    assert not (await flows.jobs(operator).ListJobs(job_pb2.ListJobsRequest())).jobs

    request.include_urls = True
    await refused(read(request), grpc.StatusCode.INVALID_ARGUMENT, "include_urls")
    request.include_urls = False
    await refused(flows.conversions(eve).GetConversion(request), grpc.StatusCode.NOT_FOUND, "owner")
