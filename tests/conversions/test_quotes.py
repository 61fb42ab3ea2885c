"""Quotes: what a job would cost, before it is created."""

import uuid

import pytest
from atelier.common.v1 import errors_pb2
from atelier.conversions.v1 import (
    analysis_pb2,
    conversion_pb2,
    credit_pb2,
    generation_pb2,
)

from tests.calls import refused
from tests.conversions import flows
from tests.conversions.credit_flows import (
    INVALID,
    NOT_FOUND,
    account,
    analyse,
    pictures,
)
from tests.suite import Client, Suite


@pytest.fixture
async def ada(suite: Suite) -> Client:
    return suite.client("ada")


class TestQuotes:
    async def test_a_quote_says_what_creating_the_job_would_set_aside(
        self, suite: Suite, ada: Client
    ) -> None:
        suite.overrides["credits"] = "enforced"
        await flows.start(suite, working=False)
        await flows.grant(suite, 7)
        user, cloth = await pictures(ada, free=False)
        conversion = conversion_pb2.CreateConversionRequest(
            user_asset_id=user, cloth_asset_id=cloth
        )
        generation = generation_pb2.CreateGenerationRequest(
            task=generation_pb2.GENERATION_TASK_IMAGE, prompt="a coat"
        )
        analysis = analysis_pb2.CreateAnalysisRequest(task=analysis_pb2.ANALYSIS_TASK_SEO)
        asked = {
            "conversion": credit_pb2.QuoteJobRequest(conversion=conversion),
            "generation": credit_pb2.QuoteJobRequest(generation=generation),
            "analysis": credit_pb2.QuoteJobRequest(analysis=analysis),
        }
        quotes = {
            name: await flows.credits(ada).QuoteJob(request) for name, request in asked.items()
        }

        assert {name: (q.credits, q.available_after) for name, q in quotes.items()} == {
            "conversion": (2, 5),
            "generation": (3, 4),
            "analysis": (1, 6),
        }
        [line] = quotes["generation"].lines
        assert (line.provider, line.credits, line.cost_micros) == ("local", 3, 0)
        assert quotes["generation"].currency == "USD"
        assert await account(ada) == (7, 0)

        made = [
            (await flows.convert(ada, user, cloth)).credits_reserved,
            (await flows.generate(ada, prompt="a coat", wait=False)).credits_reserved,
            (await analyse(ada, task=analysis_pb2.ANALYSIS_TASK_SEO)).credits_reserved,
        ]
        assert made == [quotes[name].credits for name in asked]

    async def test_a_quote_says_why_the_job_would_be_refused(
        self, suite: Suite, ada: Client
    ) -> None:
        suite.overrides["credits"] = "enforced"
        await flows.start(suite, working=False)
        await flows.grant(suite, 2)
        generation = generation_pb2.CreateGenerationRequest(
            task=generation_pb2.GENERATION_TASK_IMAGE, prompt="a coat"
        )

        quote = await flows.credits(ada).QuoteJob(credit_pb2.QuoteJobRequest(generation=generation))
        assert quote.refusal == errors_pb2.ERROR_REASON_CREDITS_EXHAUSTED
        assert "costs 3 credits and 2 are available" in quote.refusal_message
        assert (quote.available, quote.available_after) == (2, 2)

        generation.max_credits = 1
        quote = await flows.credits(ada).QuoteJob(credit_pb2.QuoteJobRequest(generation=generation))
        assert quote.refusal == errors_pb2.ERROR_REASON_BUDGET_EXCEEDED

    async def test_a_quote_of_what_costs_nothing_says_why(self, suite: Suite, ada: Client) -> None:
        await flows.start(suite, working=False)
        user, cloth = await pictures(ada, free=True)
        request = conversion_pb2.CreateConversionRequest(user_asset_id=user, cloth_asset_id=cloth)

        quote = await flows.credits(ada).QuoteJob(credit_pb2.QuoteJobRequest(conversion=request))
        assert (quote.credits, quote.free, len(quote.lines)) == (0, True, 1)

        request.run_externally = True
        quote = await flows.credits(ada).QuoteJob(credit_pb2.QuoteJobRequest(conversion=request))
        assert (quote.credits, quote.free, len(quote.lines)) == (0, False, 0)

    async def test_a_quote_of_a_regeneration_is_that_of_the_stored_request(
        self, suite: Suite, ada: Client
    ) -> None:
        await flows.start(suite, working=False)
        made = await flows.generate(ada, prompt="a coat", wait=False)
        request = generation_pb2.RegenerateGenerationRequest(generation_id=made.id)

        quote = await flows.credits(ada).QuoteJob(credit_pb2.QuoteJobRequest(regeneration=request))

        assert quote.credits == 3

    async def test_a_request_that_would_be_refused_is_refused(
        self, suite: Suite, ada: Client
    ) -> None:
        await flows.start(suite, working=False)
        quote = flows.credits(ada).QuoteJob
        gone = str(uuid.uuid4())
        conversion = conversion_pb2.CreateConversionRequest(user_asset_id=gone, cloth_asset_id=gone)
        generation = generation_pb2.CreateGenerationRequest(
            task=generation_pb2.GENERATION_TASK_CLOSEUP
        )

        await refused(quote(credit_pb2.QuoteJobRequest(conversion=conversion)), NOT_FOUND)
        refusal = await refused(quote(credit_pb2.QuoteJobRequest(generation=generation)), INVALID)
        assert refusal.fields == ["source_asset_id"]
        await refused(quote(credit_pb2.QuoteJobRequest()), INVALID)
