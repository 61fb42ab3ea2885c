"""Budgets: of one job, of a day's credits, and of a day's calls to paid providers."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from atelier.conversions.v1 import (
    analysis_pb2,
    generation_pb2,
    job_pb2,
)
from google.protobuf.timestamp_pb2 import Timestamp

from services.conversions import analysis_rows, rules
from services.conversions.analysis_rows import Analysis
from services.conversions.providers.contract import (
    Call,
    Found,
    ModerationRequest,
    Provider,
    ProviderFailed,
)
from services.conversions.runs.analysis import run_analysis
from services.conversions.runs.run import Run
from shared.background.attempts import Outcome
from shared.background.jobs import TryAgain
from tests.assets.flows import request_id
from tests.calls import Refusal, refused
from tests.conversions import flows
from tests.conversions.credit_flows import (
    EXHAUSTED,
    INVALID,
    account,
    analyse,
    olga,
    set_budget,
)
from tests.suite import Client, Suite


@pytest.fixture
async def ada(suite: Suite) -> Client:
    return suite.client("ada")


class TestMaxCredits:
    async def test_a_job_that_costs_more_than_its_request_allows_is_refused(
        self, suite: Suite, ada: Client
    ) -> None:
        await flows.start(suite, working=False)

        refusal = await refused(
            flows.generate(ada, prompt="a coat", wait=False, max_credits=2),
            EXHAUSTED,
            "costs 3 credits and max_credits is 2",
        )

        assert refusal.reason == "BUDGET_EXCEEDED"
        assert refusal.metadata == {
            "budget": "max_credits",
            "limit": "2",
            "spent": "0",
            "needed": "3",
        }
        assert await account(ada) == (0, 0)
        allowed = await flows.generate(ada, prompt="a coat", wait=False, max_credits=3)
        assert allowed.credits_reserved == 3

    async def test_it_is_above_0(self, suite: Suite, ada: Client) -> None:
        await flows.start(suite, working=False)

        for wrong in (0, -1):
            refusal = await refused(analyse(ada, max_credits=wrong), INVALID)
            assert refusal.fields == ["max_credits"]


class TestBudgets:
    async def test_a_job_beyond_the_budget_of_the_day_is_refused_and_the_next_day_is_new(
        self, suite: Suite, ada: Client
    ) -> None:
        await flows.start(suite, working=False)
        await set_budget(olga(suite), "user:ada", daily_credits=4)
        held = await flows.generate(ada, prompt="a coat", wait=False)

        refusal: Refusal = await refused(
            flows.generate(ada, prompt="a hat", wait=False), EXHAUSTED, "3 of today's budget of 4"
        )
        assert refusal.reason == "BUDGET_EXCEEDED"
        assert refusal.metadata == {
            "budget": "daily_credits",
            "limit": "4",
            "spent": "3",
            "needed": "3",
        }

        # What is released is there again, and the next day begins with nothing spent.
        request = generation_pb2.CancelGenerationRequest(
            request_id=request_id(), generation_id=held.id
        )
        await flows.generations(ada).CancelGeneration(request)
        assert (await flows.balance(ada)).credits_today == 0
        await flows.generate(ada, prompt="a hat", wait=False)
        suite.sql("UPDATE conversions.credit_accounts SET day = day - 1")
        assert (await flows.balance(ada)).credits_today == 0
        await flows.generate(ada, prompt="a hat", wait=False)
        assert (await flows.balance(ada)).credits_today == 3

    async def test_the_setting_holds_where_no_budget_is_set(
        self, suite: Suite, ada: Client
    ) -> None:
        suite.overrides["budget_owner_daily_credits"] = 1
        await flows.start(suite, working=False)
        await analyse(ada)

        assert (await refused(analyse(ada), EXHAUSTED)).reason == "BUDGET_EXCEEDED"
        balance = await set_budget(olga(suite), "user:ada", daily_credits=2)
        assert (balance.budget.daily_credits, balance.credits_today) == (2, 1)
        await analyse(ada)
        await set_budget(olga(suite), "user:ada")
        assert (await refused(analyse(ada), EXHAUSTED)).reason == "BUDGET_EXCEEDED"

    async def test_an_owner_sets_a_lower_budget_and_no_higher_one(
        self, suite: Suite, ada: Client
    ) -> None:
        await flows.start(suite, working=False)
        mine = flows.credits(ada)
        await set_budget(olga(suite), "user:ada", daily_credits=10)

        refusal = await refused(
            set_budget(mine, daily_credits=11), INVALID, "higher than the budget of 10"
        )
        assert refusal.fields == ["daily_credits"]
        balance = await set_budget(mine, daily_credits=1)

        assert balance.budget.daily_credits == 1
        assert balance.operator_budget.daily_credits == 10
        assert balance.own_budget.daily_credits == 1
        await analyse(ada)
        assert (await refused(analyse(ada), EXHAUSTED)).metadata["limit"] == "1"
        balance = await set_budget(mine)
        assert not balance.HasField("own_budget")
        await analyse(ada)

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"daily_credits": 0}, "daily_credits"),
            ({"daily_credits": -5}, "daily_credits"),
            ({"daily_cost_micros": 0}, "daily_cost_micros"),
            ({"monthly_free_conversions": -1}, "monthly_free_conversions"),
            (
                {
                    "daily_credits": 5,
                    "expire_time": Timestamp(seconds=1_600_000_000),
                },
                "expire_time",
            ),
        ],
        ids=lambda value: value if isinstance(value, str) else "-".join(value),
    )
    async def test_a_budget_of_nothing_below_0_or_of_the_past_is_refused(
        self, suite: Suite, fields: dict[str, Any], named: str
    ) -> None:
        await suite.serve("conversions")

        refusal = await refused(set_budget(olga(suite), "user:ada", **fields), INVALID)

        assert refusal.fields == [named]
        assert suite.sql("SELECT count(*) FROM conversions.credit_budgets") == [(0,)]

    async def test_an_owner_does_not_set_its_free_quota(self, suite: Suite, ada: Client) -> None:
        await suite.serve("conversions")

        refusal = await refused(
            set_budget(flows.credits(ada), monthly_free_conversions=9), INVALID, "for operators"
        )

        assert refusal.fields == ["monthly_free_conversions"]

    async def test_a_budget_that_expired_limits_nothing(self, suite: Suite, ada: Client) -> None:
        await flows.start(suite, working=False)
        ends = Timestamp()
        ends.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
        await set_budget(olga(suite), "user:ada", daily_credits=1, expire_time=ends)
        await analyse(ada)
        assert (await refused(analyse(ada), EXHAUSTED)).reason == "BUDGET_EXCEEDED"

        suite.sql("UPDATE conversions.credit_budgets SET expires_at = now() - interval '1 s'")

        await analyse(ada)


@pytest.fixture
def costly(suite: Suite, tmp_path: Path) -> Path:
    """A price table that says that a call to `local` costs something, as a paid provider's does."""
    shipped = Path("services/conversions/prices.yaml").read_text()
    table = tmp_path / "prices.yaml"
    table.write_text(
        shipped + "  - {from: 2025-01-01, provider: local, cost: 0.06, source: the meter}\n"
    )
    suite.overrides["model_prices_file"] = table
    return table


@pytest.mark.long
@pytest.mark.usefixtures("costly")
async def test_an_attempt_whose_call_would_exceed_the_budget_of_costs_is_not_made(
    suite: Suite, ada: Client
) -> None:
    await flows.start(suite)
    await set_budget(olga(suite), "user:ada", daily_cost_micros=100_000)

    first, second = [await flows.analyse_facts(ada) for _ in range(2)]

    assert (first.state, first.credits) == (job_pb2.JOB_STATE_COMPLETED, 1)
    assert (second.state, second.error_class) == (job_pb2.JOB_STATE_FAILED, "BUDGET_EXCEEDED")
    assert "0.0600 USD" in second.error_message
    assert second.credits == 0
    balance = await flows.balance(ada)
    assert (balance.cost_micros_today, balance.currency) == (60_000, "USD")
    assert (balance.available, balance.reserved) == (-1, 0)


@pytest.mark.long
async def test_what_was_quoted_holds_although_the_prices_rise_meanwhile(
    suite: Suite, ada: Client, tmp_path: Path
) -> None:
    await flows.start(suite, working=False)
    limited, unlimited = await analyse(ada, max_credits=1), await analyse(ada)
    assert limited.max_credits == 1 and not unlimited.HasField("max_credits")
    dearer = tmp_path / "prices.yaml"
    dearer.write_text(
        "currency: USD\ndate: 2026-11-30\nlines:\n"
        "  - {from: 2025-01-01, provider: local, credits: 4}\n"
    )

    async with flows.running(suite, analysis_rows.KIND, dearer) as run:
        await run(run_analysis, unlimited.id)
        await run(run_analysis, limited.id)

    read = flows.analyses(ada).GetAnalysis
    done = (await read(analysis_pb2.GetAnalysisRequest(analysis_id=unlimited.id))).analysis
    assert (done.state, done.credits) == (job_pb2.JOB_STATE_COMPLETED, 1)
    refused_one = (await read(analysis_pb2.GetAnalysisRequest(analysis_id=limited.id))).analysis
    assert refused_one.error_class == "BUDGET_EXCEEDED"
    assert "local costs 4 credits, and max_credits of the job is 1" in refused_one.error_message
    assert await account(ada) == (-1, 0)


async def test_a_call_that_the_provider_had_no_room_for_counts_as_no_cost(
    suite: Suite, ada: Client, costly: Path
) -> None:
    await flows.start(suite, working=False)
    made = [await analyse(ada) for _ in range(2)]
    failure = ProviderFailed(rules.RATE_LIMITED, "not now")

    async def work(run: Run[Analysis]) -> Outcome[Analysis]:
        async def fails(_provider: Provider, _call: Call) -> Found:
            assert (await flows.balance(ada)).cost_micros_today == 60_000
            raise failure

        await run.ask(fails, ModerationRequest("", "", {}, [], run.directory))
        raise AssertionError("it fails")

    async with flows.running(suite, analysis_rows.KIND, costly) as run:
        with pytest.raises(TryAgain):
            await run(work, made[0].id)
        assert (await flows.balance(ada)).cost_micros_today == 0

        # Of a call whose answer was lost nobody knows whether it was charged.
        charge = rules.POSSIBLY_CHARGED
        failure = ProviderFailed(rules.TIMED_OUT, "silence", charge=charge)
        with pytest.raises(TryAgain):
            await run(work, made[1].id)
        assert (await flows.balance(ada)).cost_micros_today == 60_000
    assert await account(ada) == (-2, 2)
