import pytest
from atelier.pipeline.v1 import log_pb2, phase_pb2, price_book_pb2, product_pb2, result_pb2
from grpc import StatusCode

from services.pipeline.price_csv import read_csv
from shared.rpc.errors import DomainError
from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.pipeline import flows
from tests.suite import Client, Suite

HEADER = "brand,model,name,marketplace,price,msrp,currency,link,category\n"
OFFERS = (
    HEADER + "Kesterholt,KH-4107,Canvas field"
    " jacket,Marktplatz,149.90,189,EUR,https://m.example/1,jackets\n"
    "kesterholt,kh-4107,,Bazaar,139.00,,EUR,https://b.example/7,\n"
    "Kesterholt,KH-4107,,Overseas,99.00,,USD,,\n"
    "Other,KH-4107,,Marktplatz,10.00,,EUR,,\n"
    "Kesterholt,,Canvas field jacket,Flea market,20.00,,EUR,,\n"
)


async def entries(client: Client) -> list[price_book_pb2.PriceBookEntry]:
    request = price_book_pb2.ListPriceBookEntriesRequest(page_size=1000)
    return list((await flows.price_book(client).ListPriceBookEntries(request)).entries)


async def researched(
    suite: Suite, csv: str | None, **fields: object
) -> tuple[Client, str, result_pb2.PhaseResult]:
    """Returns phase 2 as the worker runs it, after an outside phase 1 that found the sample
    jacket."""
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    if csv is not None:
        await flows.price_book(ada).ImportPriceBook(flows.book(csv.encode()))
    image = await asset_flows.upload(ada, flows.photo())
    created = await flows.outside(ada, image.id, [1, 3], **fields)
    watching = flows.watch(ada, created.id)
    await flows.complete(ada, await flows.claim(ada, created.id, 1), flows.analysis())
    await watching.until(flows.phase_is(2, phase_pb2.PHASE_STATE_COMPLETED))
    await watching.close()
    return ada, created.id, (await flows.get(ada, created.id)).results[1]


async def test_market_research_finds_the_owners_offers(suite: Suite) -> None:
    _, _, found = await researched(suite, OFFERS)
    market = found.value.market_research

    assert (found.provider, found.confidence, market.matched_by) == ("price_book", 1, "model")
    assert (market.marketplace.marketplace, market.marketplace.price.amount) == ("Bazaar", 139)
    assert market.marketplace.link == "https://b.example/7"
    assert (market.competitive_price.amount, market.msrp.amount, market.msrp.currency) == (
        149.9,
        189,
        "EUR",
    )
    assert (market.brand.lower(), market.category) == ("kesterholt", "jackets")
    assert [offer.marketplace for offer in market.offers] == ["Bazaar", "Marktplatz", "Overseas"]


async def test_without_a_number_the_name_is_looked_up(suite: Suite) -> None:
    csv = (
        HEADER + ",,Canvas  FIELD jacket,Flea market,20.00,,EUR,,\n,X-9,Canvas field"
        " jacket,Elsewhere,1.00,,EUR,,\n"
    )
    _, _, found = await researched(suite, csv)

    market = found.value.market_research
    assert (market.matched_by, market.marketplace.marketplace) == ("name", "Flea market")
    assert len(market.offers) == 1, "an offer of another number is another product"
    assert not market.HasField("competitive_price") and not market.HasField("msrp")


async def test_a_name_is_found_however_its_characters_are_put_together(suite: Suite) -> None:
    """The book's name comes from a Mac: decomposed, with a no-break space and a curly apostrophe;
    the facts have a typed one."""
    typed, pasted = "B\u00e9ret d'M\u00e5ns", "Be\u0301ret\u00a0d\u2019Ma\u030ans"
    data = f"model;name;marketplace;price;currency\n;{pasted};Shop;19,90;EUR\n".encode("utf-16")
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    assert (await flows.price_book(ada).ImportPriceBook(flows.book(data))).added == 1

    image = await asset_flows.upload(ada, flows.photo())
    created = await flows.outside(ada, image.id, [1, 3], stated={})
    watching = flows.watch(ada, created.id)
    await flows.complete(ada, await flows.claim(ada, created.id, 1), flows.analysis(typed))
    await watching.until(flows.phase_is(2, phase_pb2.PHASE_STATE_COMPLETED))
    await watching.close()
    found = (await flows.get(ada, created.id)).results[1].value.market_research
    assert (found.matched_by, found.marketplace.price.amount) == ("name", 19.9)


async def test_a_book_is_read_in_the_encoding_that_its_owner_names(suite: Suite) -> None:
    await suite.serve("pipeline")
    ada = suite.client("ada")
    data = "name;price;currency\nBéret;19,90;EUR\n".encode("cp1252")
    told = "windows-1252 if it is 'Béret'"
    await refused(
        flows.price_book(ada).ImportPriceBook(flows.book(data)), StatusCode.INVALID_ARGUMENT, told
    )

    await flows.price_book(ada).ImportPriceBook(flows.book(data, encoding="windows-1252"))
    assert [entry.name for entry in await entries(ada)] == ["Béret"]


async def test_nothing_found_is_completed_empty_and_says_so(suite: Suite) -> None:
    ada, product_id, found = await researched(
        suite, HEADER + "Kesterholt,KH-9,,Marktplatz,1.00,,EUR,,\n"
    )
    assert found.value == result_pb2.PhaseValue(market_research=result_pb2.MarketResearch())
    assert not found.HasField("confidence")
    lines = await flows.logs(ada).ListLogs(log_pb2.ListLogsRequest(product_id=product_id, phase=2))
    [line] = [line for line in lines.logs if line.action == "phase_found"]
    assert "no offer in the price book matches" in line.message


async def test_a_product_without_a_market_provider_looks_nowhere(suite: Suite) -> None:
    _, _, found = await researched(suite, OFFERS, market_provider=product_pb2.MARKET_PROVIDER_NONE)
    assert found.provider == "none" and not found.value.market_research.offers


async def test_good_lines_are_kept_and_bad_ones_named(suite: Suite) -> None:
    await suite.serve("assets", "pipeline")
    ada = suite.client("ada")
    csv = (
        HEADER + "A,1,,M,10,,EUR,,\n"
        "A,2,,M,ten,,EUR,,\n"
        "A,3,,M,10,,euro,,\n"
        "A,,,M,10,,EUR,,\n"
        "A,4,,M,,,EUR,,\n"
        "A,5,,M,10,,EUR,javascript:x,\n"
        "\n"
        "a,1,,m,11,,EUR,,\n"
        "A,6\n"
        'A,"7,,M,10,,EUR,,\n'
    )

    answer = await flows.price_book(ada).ImportPriceBook(flows.book(csv.encode()))
    assert (answer.added, answer.updated, answer.refused) == (1, 0, 8)
    assert [(fault.line, fault.column) for fault in answer.errors] == [
        (3, "price"),
        (4, "currency"),
        (5, ""),
        (6, ""),
        (7, "link"),
        (9, ""),
        (10, ""),
        (11, "model"),
    ]
    assert "same offer as line 2" in answer.errors[5].message
    assert [entry.model for entry in await entries(ada)] == ["1"]


async def test_importing_again_replaces_offers_and_may_remove_the_others(suite: Suite) -> None:
    await suite.serve("assets", "pipeline")
    ada, eve = suite.client("ada"), suite.client("eve")
    first = flows.book((HEADER + "A,1,,M,10,,EUR,,\nA,2,,M,20,,EUR,,\n").encode())
    await flows.price_book(eve).ImportPriceBook(first)
    assert (await flows.price_book(ada).ImportPriceBook(first)).added == 2
    assert (await flows.price_book(ada).ImportPriceBook(first)).added == 2, (
        "a repeat gives the first answer"
    )

    second = (HEADER + "A,1,,M,11,,EUR,,\nA,3,,M,30,,EUR,,\n").encode()
    spoilt = await flows.price_book(ada).ImportPriceBook(
        flows.book(second + b"A,4,,M,,,EUR,,\n", replace=True)
    )
    assert (spoilt.added, spoilt.updated, spoilt.removed) == (
        1,
        1,
        0,
    ), "a refused line keeps the book whole"

    clean = await flows.price_book(ada).ImportPriceBook(flows.book(second, replace=True))
    assert (clean.added, clean.updated, clean.removed) == (0, 2, 1)
    assert {entry.model: entry.offer.price.amount for entry in await entries(ada)} == {
        "1": 11,
        "3": 30,
    }
    assert {entry.model for entry in await entries(eve)} == {"1", "2"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"brand,model,price,currency,colour\n", "unknown column 'colour'"),
        (b"brand,price,currency\n", "needs currency, model or name"),
        (b"model,model,price,currency\n", "names a column twice"),
        (b"\n", "the header needs"),
        (b"model,price,currency\n" + b"\n" * 10_001, "more than 10,000 lines"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(DomainError, match=says):
        read_csv(data)


def test_a_byte_order_mark_odd_case_and_other_scripts_are_read() -> None:
    book = read_csv("\ufeffModel, PRICE ,Currency,name\nÄ-1,5.00,EUR,Пальто ﷽\n".encode())
    assert not book.errors and book.entries[0]["model"] == "Ä-1" and book.entries[0]["price"] == 5


def test_ten_thousand_lines_are_read() -> None:
    lines = "".join(f"{n},1,EUR\n" for n in range(10_000))
    book = read_csv(f"model,price,currency\n{lines}".encode())
    assert len(book.entries) == 10_000 and not book.errors


async def test_a_line_whose_texts_are_too_long_to_be_looked_up_is_named(suite: Suite) -> None:
    await suite.serve("pipeline")
    ada = suite.client("u" * 100)
    # Each character differs, because Postgres compresses repeats: 600 bytes each fit, one byte more
    # doesn't.
    longest = ["".join(chr(0x4E00 + 200 * column + n) for n in range(200)) for column in range(4)]
    grown = "ﷺ" * 20  # 60 bytes as written, 660 folded
    lines = [
        f"{','.join(longest)},1,,EUR,,",
        f"a,1,{longest[2]}x,m,1,,EUR,,",
        f"{grown},2,,m,1,,EUR,,",
    ]

    answer = await flows.price_book(ada).ImportPriceBook(
        flows.book((HEADER + "\n".join(lines)).encode())
    )
    assert (answer.added, answer.refused) == (1, 2)
    assert [(fault.line, fault.column) for fault in answer.errors] == [(3, "name"), (4, "brand")]
    assert "601 bytes" in answer.errors[0].message and "at most 600" in answer.errors[0].message


async def test_more_than_a_megabyte_is_refused(suite: Suite) -> None:
    await suite.serve("assets", "pipeline")
    ada = suite.client("ada")
    large = flows.book(b"x" * 1_000_001)
    await refused(flows.price_book(ada).ImportPriceBook(large), StatusCode.INVALID_ARGUMENT, "csv")


async def test_offers_of_several_products_are_a_question_to_a_person(suite: Suite) -> None:
    csv = (
        "brand,model,name,marketplace,price,currency\n"
        "Kesterholt,,Canvas field jacket,Bazaar,139,EUR\n"
        "Northline,,Canvas field jacket,Bazaar,20,EUR\n"
    )
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    await flows.price_book(ada).ImportPriceBook(flows.book(csv.encode()))
    image = await asset_flows.upload(ada, flows.photo())
    stated = {"product": {"name": "Canvas field jacket"}}
    created = await flows.outside(ada, image.id, [1, 3], stated=stated)
    watching = flows.watch(ada, created.id)
    await flows.complete(
        ada, await flows.claim(ada, created.id, 1), flows.analysis(), confidence=0.95
    )
    await watching.until(flows.phase_is(2, phase_pb2.PHASE_STATE_AWAITING_REVIEW))
    await watching.close()

    found = (await flows.get(ada, created.id)).results[1]
    assert found.confidence == 0 and len(found.value.market_research.offers) == 2
    assert "of several products: Kesterholt; Northline" in found.evidence[0].note


async def test_offers_in_the_currency_of_the_product_are_not_cut_off(suite: Suite) -> None:
    lines = "".join(
        f"Kesterholt,KH-4107,Canvas field jacket,Shop {n},{100 + n},AUD\n" for n in range(120)
    )
    csv = "brand,model,name,marketplace,price,currency\n" + lines
    _, _, found = await researched(
        suite, csv + "Kesterholt,KH-4107,Canvas field jacket,Bazaar,139,EUR\n"
    )
    assert found.value.market_research.marketplace.price.currency == "EUR"
