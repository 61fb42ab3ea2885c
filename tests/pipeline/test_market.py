"""Market research: the deployment's endpoint is asked and its answer read with suspicion; offers
stand side by side in each currency; nothing found is a finding."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from atelier.pipeline.v1 import phase_pb2, price_book_pb2, product_pb2, result_pb2
from grpc import StatusCode

from services.pipeline import offers
from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.pipeline import flows
from tests.receiver import Receiver, receiving, replying
from tests.suite import Client, Suite

TOKEN = "a-token-that-must-stay-here"
HEADER = "brand,model,name,marketplace,price,msrp,currency,link,category\n"
ANSWER: dict[str, Any] = {
    "offers": [
        {"marketplace": "Bazaar", "price": {"amount": 139.0, "currency": "EUR"}},
        {"marketplace": "Overseas", "price": {"amount": 99.5, "currency": "USD"}},
        {
            "marketplace": "Marktplatz",
            "price": {"amount": 129.9, "currency": "EUR"},
            "link": "https://m.example/1",
        },
    ],
    "msrp": {"amount": 189, "currency": "EUR"},
    "brand": "Kesterholt",
    "matchedBy": "ean",
    "extras": [{"name": "rank", "number": 7}],
    "confidence": 0.93,
    "source": "prices.example",
}


@pytest.fixture
async def endpoint(suite: Suite) -> AsyncIterator[Receiver]:
    """A market endpoint whose answer a test sets."""
    async with receiving() as receiver:
        suite.overrides |= {
            "market_provider": "http",
            "market_url": f"http://127.0.0.1:{receiver.port}/offers?shop=1",
            "market_token": TOKEN,
        }
        yield receiver


def says(receiver: Receiver, answer: object, status: int = 200, **headers: str) -> None:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    receiver.reply = replying(status, body, **headers)


async def researched(
    suite: Suite, state: int = phase_pb2.PHASE_STATE_COMPLETED
) -> tuple[Client, product_pb2.GetProductResponse]:
    """Returns a product when phase 2 is in this state, after an outside phase 1."""
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    image = await asset_flows.upload(ada, flows.photo())
    created = await flows.outside(ada, image.id, [1, 3])
    watching = flows.watch(ada, created.id)
    await flows.complete(ada, await flows.claim(ada, created.id, 1), flows.analysis())
    await watching.until(flows.phase_is(2, state))
    await watching.close()
    return ada, await flows.get(ada, created.id)


def test_offers_stand_side_by_side_in_each_currency() -> None:
    found = offers.research(
        [
            {"marketplace": "A", "price": {"amount": 20.0, "currency": "USD"}},
            {"marketplace": "B", "price": {"amount": 12.0, "currency": "EUR"}},
            {"marketplace": "b", "price": {"amount": 11.0, "currency": "EUR"}},
            {"marketplace": "C", "price": {"amount": 14.0, "currency": "EUR"}},
            {"marketplace": "C", "msrp": {"amount": 19.0, "currency": "USD"}},
            {"marketplace": "D", "price": {"amount": 900.0, "currency": "JPY"}},
        ],
        matched_by="model",
        preferred_currency="USD",
    )
    rows = [
        (
            each["currency"],
            each["offer_count"],
            each.get("best", {}).get("price", {}).get("amount"),
            each.get("msrp", {}).get("amount"),
            each.get("competitive_price", {}).get("amount"),
        )
        for each in found["currencies"]
    ]
    assert rows == [
        ("USD", 2, 20.0, 19.0, None),
        ("EUR", 3, 11.0, None, 14.0),
        ("JPY", 1, 900.0, None, None),
    ]
    assert found["marketplace"] == found["currencies"][0]["best"]
    assert offers.research([], matched_by="model") == {}


async def test_one_marketplace_has_an_offer_in_two_currencies(suite: Suite) -> None:
    await suite.serve("pipeline")
    ada = suite.client("ada")
    csv = HEADER + ",KH-4107,,Shop,139.00,,EUR,,\n,kh-4107,,Shop,149.00,,USD,,\n"
    assert (await flows.price_book(ada).ImportPriceBook(flows.book(csv.encode()))).added == 2
    again = await flows.price_book(ada).ImportPriceBook(flows.book(csv.encode()))
    assert (again.added, again.updated, again.refused) == (0, 2, 0)

    listed = await flows.price_book(ada).ListPriceBookEntries(
        price_book_pb2.ListPriceBookEntriesRequest(model="KH-4107 ")
    )
    assert {entry.offer.price.currency for entry in listed.entries} == {"EUR", "USD"}
    none = price_book_pb2.ListPriceBookEntriesRequest(model="KH-4107", name="coat")
    assert not (await flows.price_book(ada).ListPriceBookEntries(none)).entries


async def test_offers_leave_the_book_by_id_or_all_at_once(suite: Suite) -> None:
    await suite.serve("pipeline")
    ada, eve = suite.client("ada"), suite.client("eve")
    lines = "".join(f",M-{n},,Shop,10.00,,EUR,,\n" for n in range(5))
    for client in (ada, eve):
        await flows.price_book(client).ImportPriceBook(flows.book((HEADER + lines).encode()))
    everything = price_book_pb2.ListPriceBookEntriesRequest()
    first, *_ = (await flows.price_book(ada).ListPriceBookEntries(everything)).entries

    async def delete(client: Client, *ids: str, all: bool = False) -> int:
        request = price_book_pb2.DeletePriceBookEntriesRequest(entry_ids=ids, all=all)
        answer = await flows.price_book(client).DeletePriceBookEntries(request)
        return int(answer.deleted)

    assert await delete(eve, first.id) == 0
    assert await delete(ada, first.id) == 1
    assert await delete(ada, all=True) == 4
    assert len((await flows.price_book(eve).ListPriceBookEntries(everything)).entries) == 5
    await refused(delete(ada), StatusCode.INVALID_ARGUMENT, "entry_ids, or all")
    await refused(delete(ada, first.id, all=True), StatusCode.INVALID_ARGUMENT, "not both")


async def test_the_endpoint_is_asked_and_its_answer_keeps_its_source(
    suite: Suite, endpoint: Receiver
) -> None:
    says(endpoint, ANSWER)
    _, shown = await researched(suite)

    [request] = endpoint.requests
    assert request.line == "POST /offers?shop=1 HTTP/1.1"
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    asked = json.loads(request.body)
    assert (asked["owner"], asked["currency"]) == ("user:ada", "EUR")
    assert asked["product"]["model"] == "KH-4107" and asked["productId"] == shown.product.id

    found = shown.results[1]
    market = found.value.market_research
    assert (found.provider, found.confidence) == ("http prices.example", 0.93)
    assert (market.marketplace.marketplace, market.marketplace.price.amount) == (
        "Marktplatz",
        129.9,
    )
    assert (market.msrp.amount, market.competitive_price.amount) == (189, 139)
    assert (market.brand, market.matched_by, market.extras[0].number) == ("Kesterholt", "ean", 7)
    assert [each.currency for each in market.currencies] == ["EUR", "USD"]
    assert "3 offers" in found.evidence[0].note
    assert not shown.product.market_nothing_found


@pytest.mark.parametrize(("answer", "status"), [({}, 200), (b"", 204), ({"source": "x"}, 200)])
async def test_nothing_found_is_flagged_and_counted(
    suite: Suite, endpoint: Receiver, answer: object, status: int
) -> None:
    says(endpoint, answer, status)
    ada, shown = await researched(suite)
    assert shown.product.market_nothing_found
    assert shown.results[1].value.market_research == result_pb2.MarketResearch()
    assert not shown.results[1].HasField("confidence")
    summary = await flows.products(ada).GetSummary(product_pb2.GetSummaryRequest())
    assert summary.market_nothing_found_products == 1


async def test_nothing_found_asks_a_person_if_the_deployment_says_so(
    suite: Suite, endpoint: Receiver
) -> None:
    suite.overrides["market_nothing_found"] = "review"
    says(endpoint, {})
    _, shown = await researched(suite, phase_pb2.PHASE_STATE_AWAITING_REVIEW)
    assert shown.product.market_nothing_found
    assert shown.reviews[0].phase == 2 and shown.reviews[0].model_confidence == 0


@pytest.mark.parametrize(
    ("status", "answer", "error_class", "words"),
    [
        (401, b"who are you?", "ACCOUNT", "ATELIER_MARKET_TOKEN"),
        (422, b"no such shop", "BAD_INPUT", "422: no such shop"),
        (302, b"", "BAD_ANSWER", "302"),
        (200, b"<html>", "BAD_ANSWER", "not a MarketAnswer"),
        (200, [1], "BAD_ANSWER", "not a MarketAnswer"),
        (200, {"offers": [], "prices": 3}, "BAD_ANSWER", "prices"),
        (200, {"offers": [{"marketplace": "Bazaar"}]}, "BAD_ANSWER", "neither a price"),
        (
            200,
            {"offers": [{"price": {"amount": -1, "currency": "EUR"}}]},
            "BAD_ANSWER",
            "offers[0].price.amount",
        ),
        (200, {"msrp": {"amount": 1, "currency": "euro"}}, "BAD_ANSWER", "msrp.currency"),
        (
            200,
            {
                "offers": [
                    {"price": {"amount": 1, "currency": "EUR"}, "link": "javascript:alert(1)"}
                ]
            },
            "BAD_ANSWER",
            "https://",
        ),
        (200, {"confidence": 80}, "BAD_ANSWER", "confidence"),
        (200, b"[" * 100_000, "BAD_ANSWER", "not a MarketAnswer"),
        (200, b"x" * 400_001, "BAD_ANSWER", "400000 bytes"),
    ],
)
@pytest.mark.long
async def test_what_the_endpoint_says_wrongly_fails_the_phase_by_name(
    suite: Suite,
    endpoint: Receiver,
    status: int,
    answer: object,
    error_class: str,
    words: str,
) -> None:
    says(endpoint, answer, status)
    _, shown = await researched(suite, phase_pb2.PHASE_STATE_FAILED)
    phase = shown.product.phases[1]
    assert phase.error_class == error_class and words in phase.error_message, phase
    assert len(shown.results) == 1 and len(endpoint.requests) == 1


async def test_a_busy_endpoint_is_waited_for_and_no_message_shows_the_token(
    suite: Suite, endpoint: Receiver
) -> None:
    says(endpoint, f"slow down, {TOKEN}".encode(), 429, Retry_After="1")
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    image = await asset_flows.upload(ada, flows.photo())
    created = await flows.outside(ada, image.id, [1, 3])
    watching = flows.watch(ada, created.id)
    await flows.complete(ada, await flows.claim(ada, created.id, 1), flows.analysis())
    waiting = await watching.until(lambda change: change.phase.wait.what == "market")
    says(endpoint, ANSWER)
    assert TOKEN not in str(waiting)
    await watching.until(flows.phase_is(2, phase_pb2.PHASE_STATE_COMPLETED))
    assert TOKEN not in str(watching.changes)
    await watching.close()
    keys = {request.headers["idempotency-key"] for request in endpoint.requests}
    assert len(endpoint.requests) >= 2 and len(keys) == 1


async def test_an_endpoint_that_is_not_set_cannot_be_asked_for(suite: Suite) -> None:
    await suite.serve("assets", "pipeline")
    ada = suite.client("ada")
    wanted = flows.create(
        ada,
        "0190a5c0-0000-7000-8000-000000000000",
        market_provider=product_pb2.MARKET_PROVIDER_HTTP,
    )
    await refused(wanted, StatusCode.FAILED_PRECONDITION, "ATELIER_MARKET_URL")
