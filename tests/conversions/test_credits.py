"""Credits: what is set aside, charged and released, what is free, and what operators do."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import (
    analysis_pb2,
    conversion_pb2,
    credit_pb2,
    generation_pb2,
    job_pb2,
)
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2

from services.conversions import credit_rows
from shared.database.db import Database
from tests.assets import flows as assets
from tests.assets.flows import request_id
from tests.calls import refused
from tests.conversions import flows
from tests.conversions.credit_flows import (
    ADJUST,
    COMMIT,
    EXHAUSTED,
    GRANT,
    INVALID,
    NOT_FOUND,
    RELEASE,
    RESERVE,
    account,
    analyse,
    cancel,
    changes,
    olga,
    pictures,
    set_budget,
    shown,
)
from tests.suite import Client, Suite


@pytest.fixture
async def ada(suite: Suite) -> Client:
    return suite.client("ada")


@pytest.mark.long
async def test_a_job_sets_its_price_aside_and_is_charged_once_when_it_completes(
    suite: Suite, ada: Client
) -> None:
    await flows.start(suite)
    await flows.grant(suite, 10)
    before = shown("atelier_credits_committed_total", kind="analysis", task="product")

    made = await flows.analyse_facts(ada)

    assert made.state == job_pb2.JOB_STATE_COMPLETED, made.error_message
    assert (made.credits, made.credits_reserved) == (1, 0)
    entries = await flows.entries(ada)
    assert await changes(ada) == [(GRANT, 10, 10, 0), (RESERVE, 1, -1, 1), (COMMIT, 1, 0, -1)]
    assert await account(ada) == (9, 0)

    assert shown("atelier_credits_committed_total", kind="analysis", task="product") == before + 1

    [attempt] = await flows.attempts_of(ada, made.id)
    assert (entries[2].job_id, entries[2].attempt_id) == (made.id, attempt.id)
    assert (entries[2].job_kind, entries[2].task) == (job_pb2.JOB_KIND_ANALYSIS, "product")
    assert attempt.credits == 1
    assert (entries[0].actor, entries[0].reason) == ("olga", "a test")


async def test_a_cancelled_job_costs_nothing_and_gives_back_what_it_held(
    suite: Suite, ada: Client
) -> None:
    await flows.start(suite, working=False)

    made = await analyse(ada)
    assert (made.credits_reserved, await account(ada)) == (1, (-1, 1))
    cancelled = await cancel(ada, made.id)
    again = await cancel(ada, made.id)

    assert (cancelled.credits_reserved, again.credits_reserved) == (0, 0)
    assert await changes(ada) == [(RESERVE, 1, -1, 1), (RELEASE, 1, 1, -1)]
    assert await account(ada) == (0, 0)


@pytest.mark.long
async def test_a_job_that_fails_costs_nothing(suite: Suite, ada: Client) -> None:
    await flows.start(suite)
    user, _ = await pictures(ada, free=False)
    strip = await assets.upload(
        ada, assets.jpeg(2000, 16), kind=asset_pb2.ASSET_KIND_CLOTH, free=False
    )

    made = await flows.convert(ada, user, strip.id, wait=True)

    assert made.state == job_pb2.JOB_STATE_FAILED
    assert (made.credits, made.credits_reserved) == (0, 0)
    assert await changes(ada) == [(RESERVE, 2, -2, 2), (RELEASE, 2, 2, -2)]


async def test_a_repeated_request_sets_its_price_aside_once(suite: Suite, ada: Client) -> None:
    await flows.start(suite, working=False)
    named = request_id()

    first, second = [await analyse(ada, request_id=named) for _ in range(2)]

    assert first.id == second.id
    assert await account(ada) == (-1, 1)


async def test_without_credits_a_job_is_refused_and_nothing_is_kept(
    suite: Suite, ada: Client
) -> None:
    suite.overrides["credits"] = "enforced"
    await flows.start(suite, working=False)
    await flows.grant(suite, 2)
    asked = {"prompt": "a coat", "wait": False, "request_id": request_id()}

    refusal = await refused(
        flows.generate(ada, **asked), EXHAUSTED, "costs 3 credits and 2 are available"
    )

    assert refusal.reason == "CREDITS_EXHAUSTED"
    assert refusal.metadata == {"available": "2", "needed": "3"}
    violation = refusal.detail(error_details_pb2.QuotaFailure).violations[0]
    assert violation.subject == "user:ada"
    assert await account(ada) == (2, 0)
    assert suite.sql("SELECT count(*) FROM conversions.generations") == [(0,)]
    assert suite.sql("SELECT count(*) FROM conversions_jobs.procrastinate_jobs") == [(0,)]

    # A refusal isn't remembered: the same request succeeds once there are credits.
    await flows.grant(suite, 1)
    assert (await flows.generate(ada, **asked)).credits_reserved == 3
    assert await account(ada) == (0, 3)


async def test_a_job_that_runs_outside_costs_nothing(suite: Suite, ada: Client) -> None:
    suite.overrides["credits"] = "enforced"
    await flows.start(suite, working=False)

    made = await analyse(ada, run_externally=True)
    claimed = await flows.claim(ada, made.id)
    job = await flows.complete(
        ada, claimed, analysis=job_pb2.AnalysisResult(result={"name": "coat"})
    )

    assert (job.state, job.credits) == (job_pb2.JOB_STATE_COMPLETED, 0)
    assert await flows.entries(ada) == []


@pytest.mark.long
async def test_a_regeneration_sets_its_price_aside_anew(suite: Suite, ada: Client) -> None:
    await flows.start(suite)
    made = await flows.generate(ada, prompt="a coat", quality="draft")
    request = generation_pb2.RegenerateGenerationRequest(
        request_id=request_id(), generation_id=made.id, seed=made.recipe.seed + 1, wait=True
    )

    again = (await flows.generations(ada).RegenerateGeneration(request)).generation

    assert (made.credits, again.credits) == (3, 3)
    assert await account(ada) == (-6, 0)


class TestFreeQuota:
    async def test_conversions_beyond_the_free_quota_of_the_month_cost_credits(
        self, suite: Suite, ada: Client
    ) -> None:
        suite.overrides["quota_owner_monthly_free_conversions"] = 1
        await flows.start(suite, working=False)
        pair = await pictures(ada, free=True)

        first, second = [await flows.convert(ada, *pair) for _ in range(2)]

        assert (first.free, first.credits_reserved) == (True, 0)
        assert (second.free, second.credits_reserved) == (False, 2)
        read = await flows.read(ada, second.id)
        assert (read.free, read.credits_reserved) == (False, 2)
        balance = await flows.balance(ada)
        assert balance.free_conversions_this_month == 1
        assert balance.budget.monthly_free_conversions == 1

        suite.sql("UPDATE conversions.credit_accounts SET month = month - interval '1 month'")
        assert (await flows.balance(ada)).free_conversions_this_month == 0
        assert (await flows.convert(ada, *pair)).free

    async def test_a_free_conversion_without_a_result_does_not_count(
        self, suite: Suite, ada: Client
    ) -> None:
        suite.overrides["quota_owner_monthly_free_conversions"] = 1
        await flows.start(suite, working=False)
        pair = await pictures(ada, free=True)
        first = await flows.convert(ada, *pair)
        request = conversion_pb2.CancelConversionRequest(
            request_id=request_id(), conversion_id=first.id
        )
        await flows.conversions(ada).CancelConversion(request)

        assert (await flows.convert(ada, *pair)).free
        assert not (await flows.convert(ada, *pair)).free

    async def test_an_operator_sets_another_quota_for_an_owner(
        self, suite: Suite, ada: Client
    ) -> None:
        await flows.start(suite, working=False)
        pair = await pictures(ada, free=True)
        await set_budget(olga(suite), "user:ada", monthly_free_conversions=0)

        assert not (await flows.convert(ada, *pair)).free

    async def test_one_paid_picture_makes_a_conversion_paid(
        self, suite: Suite, ada: Client
    ) -> None:
        await flows.start(suite, working=False)
        (user, _), (_, cloth) = await pictures(ada, free=True), await pictures(ada, free=False)

        made = await flows.convert(ada, user, cloth)

        assert (made.free, made.credits_reserved) == (False, 2)

    async def test_an_exhausted_quota_without_credits_refuses_the_conversion(
        self, suite: Suite, ada: Client
    ) -> None:
        suite.overrides |= {"quota_owner_monthly_free_conversions": 0, "credits": "enforced"}
        await flows.start(suite, working=False)
        pair = await pictures(ada, free=True)

        refusal = await refused(flows.convert(ada, *pair), EXHAUSTED, "costs 2 credits")
        assert refusal.reason == "CREDITS_EXHAUSTED"

        refusal = await refused(flows.convert(ada, *pair, max_credits=1), EXHAUSTED)
        assert refusal.reason == "BUDGET_EXCEEDED"
        assert suite.sql("SELECT count(*) FROM conversions.conversions") == [(0,)]


class TestOperators:
    async def test_a_repeated_grant_is_no_second_one_and_a_reference_is_granted_once(
        self, suite: Suite, ada: Client
    ) -> None:
        await suite.serve("conversions")
        named = request_id()

        first = await flows.grant(suite, 5, request_id=named, reference="invoice 17")
        again = await flows.grant(suite, 5, request_id=named, reference="invoice 17")
        assert first == again
        refusal = await refused(
            flows.grant(suite, 5, reference="invoice 17"),
            grpc.StatusCode.ALREADY_EXISTS,
            "invoice 17",
        )
        assert refusal.reason == "ALREADY_EXISTS"
        await flows.grant(suite, 5, owner="user:bob", reference="invoice 17")

        assert (first.balance.available, await account(ada)) == (5, (5, 0))
        [entry] = await flows.entries(ada)
        assert (entry.reference, entry.actor) == ("invoice 17", "olga")

    async def test_an_adjustment_takes_no_more_than_there_is_if_credits_are_enforced(
        self, suite: Suite, ada: Client
    ) -> None:
        suite.overrides["credits"] = "enforced"
        await suite.serve("conversions")
        await flows.grant(suite, 5)

        def adjust(credits: int) -> Any:
            request = credit_pb2.AdjustCreditsRequest(
                request_id=request_id(), owner="user:ada", credits=credits, reason="an error"
            )
            return olga(suite).AdjustCredits(request)

        refusal = await refused(
            adjust(-6), grpc.StatusCode.FAILED_PRECONDITION, "5 credits available"
        )
        assert refusal.metadata == {"available": "5"}
        assert (await adjust(-5)).balance.available == 0
        assert (await adjust(2)).balance.available == 2
        assert (await refused(adjust(0), INVALID)).fields == ["credits"]
        assert [change[:3] for change in await changes(ada)] == [
            (GRANT, 5, 5),
            (ADJUST, -5, -5),
            (ADJUST, 2, 2),
        ]

    async def test_an_account_may_go_below_0_if_credits_are_only_recorded(
        self, suite: Suite, ada: Client
    ) -> None:
        await suite.serve("conversions")
        request = credit_pb2.AdjustCreditsRequest(
            request_id=request_id(), owner="user:ada", credits=-6, reason="an error"
        )

        assert (await olga(suite).AdjustCredits(request)).balance.available == -6
        assert await account(ada) == (-6, 0)

    async def test_an_operator_reads_any_account_and_an_owner_only_its_own(
        self, suite: Suite, ada: Client
    ) -> None:
        await suite.serve("conversions")
        await flows.grant(suite, 5)
        operator, bob = suite.client("olga", "admin"), suite.client("bob")

        assert (await flows.balance(operator, "user:ada")).available == 5
        assert len(await flows.entries(operator, owner="user:ada")) == 1
        await refused(flows.balance(bob, "user:ada"), NOT_FOUND)
        await refused(flows.entries(bob, owner="user:ada"), NOT_FOUND)
        await refused(set_budget(flows.credits(bob), "user:ada", daily_credits=1), NOT_FOUND)
        request = credit_pb2.GrantCreditsRequest(owner="user:ada", credits=5, reason="me")
        denied = grpc.StatusCode.PERMISSION_DENIED
        await refused(flows.credits(ada).GrantCredits(request), denied)


async def test_entries_are_found_by_job_kind_and_time_and_come_in_pages(
    suite: Suite, ada: Client
) -> None:
    await flows.start(suite, working=False)
    first, second = await analyse(ada), await analyse(ada)
    await cancel(ada, first.id)
    since = Timestamp()
    since.FromDatetime(datetime.now(UTC) + timedelta(hours=1))

    assert [e.kind for e in await flows.entries(ada, job_id=first.id)] == [RESERVE, RELEASE]
    assert [e.job_id for e in await flows.entries(ada, kind=RESERVE)] == [first.id, second.id]
    assert await flows.entries(ada, created_from=since) == []
    assert len(await flows.entries(ada, created_before=since)) == 3

    found, token = [], ""
    while True:
        request = credit_pb2.ListCreditEntriesRequest(page_size=1, page_token=token)
        page = await flows.credits(ada).ListCreditEntries(request)
        found += page.entries
        token = page.next_page_token
        if not token:
            break
    assert [entry.kind for entry in found] == [RELEASE, RESERVE, RESERVE]


async def test_an_erasure_drops_what_people_wrote_and_keeps_the_figures(
    suite: Suite, ada: Client
) -> None:
    await suite.serve("conversions")
    await flows.grant(suite, 5, reason="for Ada's birthday", reference="letter 3")
    await flows.grant(suite, 6, owner="user:bob")
    await set_budget(olga(suite), "user:ada", daily_credits=5)
    db = Database(suite.settings("conversions", "worker"), "conversions")
    await db.open()
    try:
        async with db.transaction("user:ada") as m:
            await credit_rows.forget_texts(m, "user:ada")
    finally:
        await db.close()

    [entry] = await flows.entries(ada)
    assert (entry.credits, entry.actor, entry.reason, entry.reference) == (5, "", "", "")
    assert await account(ada) == (5, 0)
    [other] = await flows.entries(suite.client("bob"))
    assert other.reason == "a test"


async def test_jobs_created_at_once_spend_no_more_than_there_is(suite: Suite, ada: Client) -> None:
    suite.overrides["credits"] = "enforced"
    await flows.start(suite, working=False)
    await flows.grant(suite, 5)

    made = await asyncio.gather(*(analyse(ada) for _ in range(12)), return_exceptions=True)

    created = [each for each in made if isinstance(each, analysis_pb2.Analysis)]
    assert len(created) == 5
    assert await account(ada) == (0, 5)
